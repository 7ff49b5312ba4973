//! Which layer an instruction made, by all that it depends on.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::build::epoch;
use crate::config;
use crate::digest::{Digest, Hasher, LayerId};
use crate::error::{Error, Result};
use crate::scratch;
use crate::store::Store;

/// Raised whenever equal keys would no longer mean equal layers.
const VERSION: &[u8] = b"2";

/// What an instruction made.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// None: it changed no file.
    pub(crate) layer: Option<LayerId>,
    /// When, RFC 3339: a reused layer keeps its date, so that an unchanged image keeps its id.
    pub(crate) created: String,
    /// When, by the clock, which `created` need not follow: nanoseconds since 1970.
    #[serde(default)]
    made: u128,
}

impl Entry {
    /// One that was made now, or at the time that all of the build has.
    pub(crate) fn new(layer: Option<LayerId>, epoch: Option<u64>) -> Self {
        let created = epoch.map_or_else(config::now, epoch::date);
        Self { layer, created, made: nanoseconds(SystemTime::now()) }
    }
}

fn nanoseconds(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// Begins the key of an instruction on top of these layers.
pub(crate) fn key(layers: &[LayerId], instruction: &str) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.field(VERSION);
    for layer in layers {
        hasher.field(layer.hex().as_bytes());
    }
    hasher.field(b"");
    hasher.field(instruction.as_bytes());
    hasher
}

/// The key of an instruction that follows the one with the key `parent`. The layers below are not enough: an
/// instruction that changed no file, or changed the same ones in another way, counts for those after it too. So does
/// the date that no file of a layer may exceed.
pub(crate) fn after(parent: Option<&Digest>, key: Digest, epoch: Option<u64>) -> Digest {
    if parent.is_none() && epoch.is_none() {
        return key;
    }
    let mut hasher = Hasher::new();
    if let Some(epoch) = epoch {
        hasher.field(format!("epoch {epoch}").as_bytes());
    }
    if let Some(parent) = parent {
        hasher.field(parent.hex().as_bytes());
    }
    hasher.field(key.hex().as_bytes());
    hasher.finish()
}

/// Where the record of a key is.
pub(super) fn path(store: &Store, key: &Digest) -> PathBuf {
    store.data_dir().join("cache").join(format!("{}.json", key.hex()))
}

/// What was made for this key, if it is all still there and not older than `fresh`.
pub(crate) fn get(store: &Store, key: &Digest, fresh: Option<SystemTime>) -> Result<Option<Entry>> {
    let entry = match store.read_json::<Entry>(&path(store, key)) {
        Ok(Some(entry)) => entry,
        Ok(None) => return Ok(None),
        // Entries are not flushed to disk one by one: a power cut may tear one.
        Err(Error::DamagedStore { path, source }) => {
            tracing::warn!(path = %path.display(), %source, "build cache entry is damaged and is made anew");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if fresh.is_some_and(|fresh| entry.made < nanoseconds(fresh)) {
        return Ok(None);
    }
    match &entry.layer {
        Some(layer) if !store.has_layer(layer)? => Ok(None),
        _ => {
            touch(&path(store, key));
            Ok(Some(entry))
        }
    }
}

/// Remembers that a record was used.
pub(super) fn touch(path: &Path) {
    // What is used stays longest when room is made. Not worth a failed build.
    File::open(path).and_then(|file| file.set_modified(SystemTime::now())).ok();
}

/// Remembers what was made by the holder of the key's claim.
pub(crate) fn put(store: &Store, key: &Digest, entry: &Entry) -> Result<()> {
    let json = serde_json::to_vec(entry).expect("a cache entry has string keys only");
    scratch::write_file(&store.tmp(), &path(store, key), &json, false)
}

/// The right to make what a key stands for. Nobody else has it meanwhile, in this process or another: builds that
/// share an instruction carry it out once. It ends with its holder.
pub(crate) struct Claim {
    key: Digest,
    path: PathBuf,
    lock: File,
}

impl Claim {
    /// None while somebody else has it.
    pub(crate) fn take(store: &Store, key: &Digest) -> Result<Option<Self>> {
        // What a dead holder left is swept up as a scratch directory's lock is.
        let path = store.tmp().join(format!("claim-{}.lock", &key.hex()[..24]));
        let lock = try_lock(&path, File::try_lock)?;
        Ok(lock.map(|lock| Self { key: key.clone(), path, lock }))
    }

    pub(crate) fn key(&self) -> &Digest {
        &self.key
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Where either fails, the file stays until a sweep, and the lock until the process ends.
        drop(fs::remove_file(&self.path));
        // A child made without exec may have a copy of the descriptor.
        drop(self.lock.unlock());
    }
}

/// Opens the file `path`, which is made if it is missing, and locks it; none where somebody else has a lock on it, or
/// has just taken it away.
pub(super) fn try_lock(
    path: &Path,
    lock: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<Option<File>> {
    let file = match File::options().create(true).append(true).open(path) {
        // Its directory was taken away.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|cause| Error::io("open", path, cause))?,
    };
    match lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(cause)) => return Err(Error::io("lock", path, cause)),
    }
    let named = file.metadata().and_then(|ours| match fs::metadata(path) {
        Ok(named) => Ok(named.ino() == ours.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    });
    Ok(named.map_err(|cause| Error::io("look up", path, cause))?.then_some(file))
}
