//! The store: layers by content, images by the digest of their configuration, tags by name.
//!
//! ```text
//! l/<24 hex>             a layer, used as an overlayfs lowerdir as it is
//! layers/<24 hex>.json   its full DiffID and size
//! images/<64 hex>.json   an image configuration, as its digest says
//! tags/<name>.json       which image a name means
//! cache/<64 hex>.json    which layer an instruction made
//! m/<24 hex>/            a directory of `RUN --mount=type=cache`
//! tmp/                   work in progress, each with a lock that dies with its owner
//! leases/                what processes use, each with a lock that dies with them
//! ```
//!
//! Everything is made under `tmp/` and renamed into place when it is whole, so a reader never sees half of
//! anything and a process that dies leaves only what the next sweep removes. What refers to something is on disk
//! after it, and deleted before it: layer, image, name.
//!
//! Nothing is deleted while it is in use. Who finds or makes a layer or an image writes that down in its lease
//! ([`Lease`]) and then looks whether it is there, both under the store's lock ([`lock`]), shared. Who deletes has the
//! lock for itself, reads all leases, and moves away what none of them names.

mod changes;
mod content;
mod contents;
mod images;
mod import;
pub(crate) mod layers;
mod lease;
mod lock;
mod names;
mod prune;
mod usage;
mod users;
mod verify;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::config::Image;
use crate::error::{Error, Result};
use crate::scratch;

pub use changes::{Change, ChangeKind};
pub use images::ImageSummary;
pub use import::{CommitOptions, ImportOptions, default_config};
pub use layers::MAX_LAYERS;
pub(crate) use layers::check_count;
pub use lease::{Hold, Lease};
pub use names::{NameLine, Names};
pub use prune::{PrunePolicy, Pruned, Removed};
pub use usage::{CacheRoom, HistoryLine, ImageRoom, Room, Usage};
pub use users::LayerUsers;
pub use verify::{Finding, Verification};

use lock::Lock;

/// The image store of one data directory.
#[derive(Clone, Debug)]
pub struct Store {
    data_dir: PathBuf,
    /// What is found or made through this store is written down in it, and stays for as long as it is held.
    lease: Option<Arc<Lease>>,
}

impl Store {
    /// Opens the store of a data directory and makes what is missing of it, with a lease of its own. Must run as the
    /// owner of the id map (container root); a reader outside of it uses [`Store::reader`].
    pub fn open(data_dir: &Path) -> Result<Self> {
        Self::make(data_dir)?;
        Ok(Self::reader(data_dir).with_lease(Lease::new(data_dir)?))
    }

    /// The same, with a lease that others have, too: what a worker finds stays for those it works for.
    pub fn open_with(data_dir: &Path, lease: Arc<Lease>) -> Result<Self> {
        Self::make(data_dir)?;
        Ok(Self::reader(data_dir).with_lease(lease))
    }

    fn make(data_dir: &Path) -> Result<()> {
        if let Some(parent) = data_dir.parent() {
            fs::create_dir_all(parent).map_err(|cause| Error::io("create directory", parent, cause))?;
        }
        // Closed to other users of the host: a layer may hold set-user-id programs of the owner's.
        for name in ["", "l", "layers", "images", "tags", "cache", "tmp", "leases"] {
            let path = if name.is_empty() { data_dir.to_owned() } else { data_dir.join(name) };
            scratch::make_private_dir(&path)?;
        }
        Ok(())
    }

    /// A store to read from only: nothing is made, and what does not exist counts as empty. What it finds may be
    /// deleted at any time.
    pub fn reader(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned(), lease: None }
    }

    /// The same store; what it finds from now on stays for as long as anybody holds `lease`.
    #[must_use]
    pub fn with_lease(mut self, lease: Arc<Lease>) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Holds the store's lock together with others; who deletes has to wait.
    pub(crate) fn shared(&self) -> Result<Lock> {
        Lock::shared(&self.data_dir)
    }

    /// Says what is in use, instead of all that was found and made before. Without a lease it says nothing.
    pub fn use_only(&self, holds: BTreeSet<Hold>) -> Result<()> {
        let Some(lease) = &self.lease else { return Ok(()) };
        let _shared = self.shared()?;
        lease.replace(holds)
    }

    /// Writes down that something is in use; the caller has the store's lock.
    pub(crate) fn hold(&self, hold: Hold) -> Result<()> {
        self.lease.as_ref().map_or(Ok(()), |lease| lease.add(hold))
    }

    /// Writes down that something is in use, and returns the lock under which the caller looks whether it is there.
    /// Nothing to do, and no lock, for what is held already or by a store that holds nothing.
    fn shared_to_hold(&self, hold: &Hold) -> Result<Option<Lock>> {
        let Some(lease) = self.lease.as_ref().filter(|lease| !lease.has(hold)) else { return Ok(None) };
        let lock = self.shared()?;
        lease.add(hold.clone())?;
        Ok(Some(lock))
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.data_dir.join("tmp")
    }

    /// The image that `text` means: a name, an id, or the beginning of one id only. It stays for as long as this
    /// store's lease.
    pub fn find(&self, text: &str) -> Result<Image> {
        let (id, _) = contents::Contents::read(self)?.find(text)?;
        let gone = || Error::UnknownImage { name: text.to_owned(), nearest: None };
        self.image_by_id(&id)?.ok_or_else(gone)
    }

    /// Deletes what builds and imports that died left behind; those that run are not touched. Returns how
    /// many were swept up.
    pub fn sweep(&self) -> Result<usize> {
        lease::sweep(&self.data_dir)?;
        scratch::sweep(&self.tmp())
    }

    pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(&self, path: &Path) -> Result<Option<T>> {
        match fs::read(path) {
            Ok(json) => match serde_json::from_slice(&json) {
                Ok(value) => Ok(Some(value)),
                Err(source) => Err(Error::DamagedStore { path: path.to_owned(), source }),
            },
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(Error::io("read", path, cause)),
        }
    }
}

fn json_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = scratch::entries(dir)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    Ok(files)
}
