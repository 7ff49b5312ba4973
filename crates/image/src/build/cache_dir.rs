//! Directories of `RUN --mount=type=cache`, which later builds find again:
//!
//! ```text
//! m/<24 hex>[-<n>]/lock       held while a command uses it; its time of modification is that of the last use
//! m/<24 hex>[-<n>]/info.json  the id that Dockerfiles know it by
//! m/<24 hex>[-<n>]/d          what is mounted
//! ```
//!
//! The digits stand for the id, for the owner and mode that it was made with, and for what it held at first. There
//! are several with a number where private ones were in use at the same time.

use std::fs::{self, File, FileTimes};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::build::cache::try_lock;
use crate::build::mount::cache_name;
use crate::digest::LayerId;
use crate::dockerfile::{FileOwner, Sharing};
use crate::error::{Error, Result};
use crate::node::{self, Attributes};
use crate::remove::tree_size;
use crate::scratch::{self, Scratch, make_private_dir};
use crate::store::Store;

/// All of them, in the data directory.
const DIRECTORY: &str = "m";

/// One that is in use.
pub(super) struct CacheDir {
    /// Relative to the data directory.
    path: String,
    lock: File,
}

#[derive(Serialize, Deserialize)]
struct Info {
    id: String,
}

/// A cache directory, for listings and for `prune`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheMount {
    /// The id that Dockerfiles know it by.
    pub id: String,
    /// Size of its files, bytes.
    pub size: u64,
    /// When a command used it last.
    pub last_used: SystemTime,
    /// A command uses it now.
    pub in_use: bool,
    /// Name of its directory.
    pub(crate) name: String,
}

impl CacheDir {
    /// Takes the directory of `id`, with its lock as `sharing` says; none where it has to be waited for. `first` is
    /// what a new one holds: a path in these layers.
    pub(super) fn take(
        store: &Store,
        id: &str,
        sharing: Sharing,
        owner: FileOwner,
        first: Option<(&[LayerId], &str)>,
    ) -> Result<Option<Self>> {
        let (layers, source) = first.unwrap_or_default();
        let FileOwner { mode, uid, gid } = owner;
        let facts = format!("{mode:o} {uid}:{gid}");
        let mut parts = vec![id.as_bytes(), facts.as_bytes(), source.as_bytes()];
        parts.extend(layers.iter().map(|layer| layer.hex().as_bytes()));
        let name = cache_name(&parts).hex()[..24].to_owned();
        let all = store.data_dir().join(DIRECTORY);
        make_private_dir(&all)?;
        for number in 0_u32.. {
            let name = if number == 0 { name.clone() } else { format!("{name}-{number}") };
            let dir = all.join(&name);
            make_private_dir(&dir)?;
            let lock = match (lock(&dir, sharing)?, sharing) {
                (None, Sharing::Private) => continue,
                (None, _) => return Ok(None),
                (Some(lock), _) => lock,
            };
            let content = dir.join("d");
            if !content.is_dir() {
                // Whoever shares it sees it whole or not at all.
                if sharing == Sharing::Shared && lock.try_lock().is_err() {
                    return Ok(None);
                }
                let scratch = Scratch::new(&store.tmp())?;
                let made = scratch.make_dir("d")?;
                let fail = |cause: io::Error| Error::io("make the cache directory", &content, cause);
                if let Some((layers, source)) = first {
                    store.copy_out(layers, source, &made)?;
                }
                let open = node::open_dir_path(&made).map_err(fail)?;
                let attributes = Attributes { mode, uid, gid, mtime: None, xattrs: Vec::new() };
                node::set_attributes(&open, &attributes).map_err(fail)?;
                let info = serde_json::to_vec(&Info { id: id.to_owned() }).expect("a record of text");
                scratch::write_file(&store.tmp(), &dir.join("info.json"), &info, false)?;
                fs::rename(&made, &content).map_err(fail)?;
                if sharing == Sharing::Shared {
                    lock.lock_shared().map_err(fail)?;
                }
            }
            let cache = Self { path: format!("{DIRECTORY}/{name}/d"), lock };
            cache.used();
            return Ok(Some(cache));
        }
        Ok(None)
    }

    /// What is mounted, relative to the data directory.
    pub(super) fn path(&self) -> String {
        self.path.clone()
    }

    fn used(&self) {
        // Only `prune` would miss it.
        drop(self.lock.set_times(FileTimes::new().set_modified(SystemTime::now())));
    }
}

impl Drop for CacheDir {
    fn drop(&mut self) {
        self.used();
        // A child made without exec may have a copy of the descriptor, and keep the lock.
        drop(self.lock.unlock());
    }
}

fn lock(dir: &Path, sharing: Sharing) -> Result<Option<File>> {
    try_lock(
        &dir.join("lock"),
        match sharing {
            Sharing::Shared => File::try_lock_shared,
            Sharing::Private | Sharing::Locked => File::try_lock,
        },
    )
}

impl Store {
    /// All cache directories, with the room that they take.
    pub fn cache_mounts(&self) -> Result<Vec<CacheMount>> {
        let mut found = Vec::new();
        for path in scratch::entries(&self.data_dir().join(DIRECTORY))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.extend(self.cache_mount(name)?);
        }
        found.sort_by(|a, b| (&a.id, &a.name).cmp(&(&b.id, &b.name)));
        Ok(found)
    }

    /// None if it has been taken away meanwhile.
    fn cache_mount(&self, name: String) -> Result<Option<CacheMount>> {
        let dir = self.data_dir().join(DIRECTORY).join(&name);
        let lock = dir.join("lock");
        // For a moment only: who wants it meanwhile takes another one, or waits.
        let is_free = scratch::try_lock(&lock)?.is_some();
        // What was killed before it had made it whole has neither lock nor record, but is something to take away.
        let used = fs::metadata(&lock).or_else(|_| fs::metadata(&dir));
        let last_used = match used.and_then(|meta| meta.modified()) {
            Ok(time) => time,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io("look up", dir, cause)),
        };
        let in_use = !is_free && lock.exists();
        let info = self.read_json::<Info>(&dir.join("info.json"))?;
        let id = info.map_or_else(|| name.clone(), |info| info.id);
        Ok(Some(CacheMount { id, size: tree_size(&dir.join("d"))?, last_used, in_use, name }))
    }

    /// Moves a cache directory away, to be deleted with `scratch`; false where a command uses it.
    pub(crate) fn take_cache_mount(&self, cache: &CacheMount, scratch: &Scratch) -> Result<bool> {
        let dir = self.data_dir().join(DIRECTORY).join(&cache.name);
        // Whoever waits for the lock sees that the directory has lost its name.
        let Some(_lock) = try_lock(&dir.join("lock"), File::try_lock)? else { return Ok(false) };
        fs::rename(&dir, scratch.path().join(&cache.name))
            .map_err(|cause| Error::io("move away cache directory", dir, cause))?;
        Ok(true)
    }
}
