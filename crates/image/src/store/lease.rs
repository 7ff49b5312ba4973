//! Leases: what processes use of the store, written down where whoever deletes reads it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, LayerId};
use crate::error::{Error, Result};
use crate::scratch;

/// Something of the store that is in use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// A layer: of a build that is under way.
    Layer(LayerId),
    /// An image with all its layers.
    Image(Digest),
    /// An image that a container runs on, and whose it is.
    Container {
        /// The image.
        image: Digest,
        /// Stack and container: `shop/web-2`.
        container: String,
    },
}

impl Hold {
    /// The image, where it is one.
    pub fn image(&self) -> Option<&Digest> {
        match self {
            Self::Layer(_) => None,
            Self::Image(image) | Self::Container { image, .. } => Some(image),
        }
    }
}

/// Of the data directory, where the leases are.
const DIRECTORY: &str = "leases";

/// A line that counts instead of all before it.
#[derive(Serialize, Deserialize)]
struct Only {
    only: BTreeSet<Hold>,
}

/// Bytes from which a lease that names others instead begins anew. Its room is then enough for the new line.
const LONG: u64 = 64 * 1024;

/// What a process and its forks use, as lines of JSON in a file of `leases/`. The file is locked: the lease ends when
/// the last of these processes has. It is not removed by its owner, which does not know who that is.
#[derive(Debug)]
pub struct Lease {
    file: File,
    path: PathBuf,
    /// What this process has written, to write it once.
    held: Mutex<BTreeSet<Hold>>,
}

impl Lease {
    /// A new lease that names nothing yet. The store must be there.
    pub fn new(data_dir: &Path) -> Result<Arc<Self>> {
        let dir = data_dir.join(DIRECTORY);
        scratch::make_private_dir(&dir)?;
        sweep(data_dir)?;
        let (file, path) = scratch::locked_file(&dir, "")?;
        // Made by root outside of the id map, it is for root inside to read as well.
        let owner = fs::metadata(data_dir).map_err(|cause| Error::io("look up", data_dir, cause))?;
        for path in [&dir, &path] {
            let own = fs::metadata(path).map_err(|cause| Error::io("look up", path, cause))?;
            if own.uid() != owner.uid() {
                std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))
                    .map_err(|cause| Error::io("change the owner of", path, cause))?;
            }
        }
        Ok(Arc::new(Self { file, path, held: Mutex::default() }))
    }

    /// Whether this process has written it down before.
    pub(crate) fn has(&self, hold: &Hold) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(hold)
    }

    /// Writes it down; the caller has the store's lock.
    pub(crate) fn add(&self, hold: Hold) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.contains(&hold) {
            self.write(&line(&hold))?;
            held.insert(hold);
        }
        Ok(())
    }

    /// Names these instead of all before; the caller has the store's lock.
    pub(crate) fn replace(&self, holds: BTreeSet<Hold>) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == holds {
            return Ok(());
        }
        let fail = |cause| Error::io("write", &self.path, cause);
        if self.file.metadata().map_err(fail)?.len() > LONG {
            self.file.set_len(0).map_err(fail)?;
        }
        // One line: if it cannot be written whole, what was held before still is.
        let only = Only { only: holds };
        self.write(&line(&only))?;
        *held = only.only;
        Ok(())
    }

    fn write(&self, text: &str) -> Result<()> {
        (&self.file).write_all(text.as_bytes()).map_err(|cause| Error::io("write", &self.path, cause))
    }
}

/// A line that begins anew even after one of which a full disk took only a part.
fn line(value: &impl Serialize) -> String {
    format!("\n{}\n", serde_json::to_string(value).expect("a hold has string keys only"))
}

/// What all living processes hold; the caller has the store's lock.
pub(crate) fn all(data_dir: &Path) -> Result<BTreeSet<Hold>> {
    let mut holds = BTreeSet::new();
    for path in scratch::entries(&data_dir.join(DIRECTORY))? {
        if scratch::try_lock(&path)?.is_some() {
            continue;
        }
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
            Err(cause) => return Err(Error::io("read", path, cause)),
        };
        // Whoever could not write a whole line was told, and uses nothing.
        let mut own = BTreeSet::new();
        for line in text.lines() {
            if let Ok(hold) = serde_json::from_str::<Hold>(line) {
                own.insert(hold);
            } else if let Ok(Only { only }) = serde_json::from_str(line) {
                own = only;
            }
        }
        holds.append(&mut own);
    }
    Ok(holds)
}

/// Removes the leases of the dead.
pub(crate) fn sweep(data_dir: &Path) -> Result<()> {
    for path in scratch::entries(&data_dir.join(DIRECTORY))? {
        if let Some(_lock) = scratch::try_lock(&path)? {
            scratch::remove_file(&path)?;
        }
    }
    Ok(())
}
