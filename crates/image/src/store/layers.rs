//! Layers: directories named by the digest of their archive, each with a record.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::digest::LayerId;
use crate::error::{Error, Result};
use crate::node::{self, Attributes};
use crate::scratch::{Pending, Scratch};
use crate::store::Store;
use crate::store::lease::Hold;
use crate::tree;

/// Most layers of one image: their names must fit into the one page of options that `mount(2)` takes.
pub const MAX_LAYERS: usize = 127;

/// What the store knows of a layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: LayerId,
    /// Size of its files, bytes.
    pub(crate) size: u64,
}

impl Store {
    /// A layer's directory, relative to the data directory.
    pub fn layer_path(&self, layer: &LayerId) -> String {
        format!("l/{}", short(layer))
    }

    /// Layers' directories.
    pub(crate) fn layer_dirs(&self, layers: &[LayerId]) -> Vec<PathBuf> {
        layers.iter().map(|layer| self.data_dir.join(self.layer_path(layer))).collect()
    }

    /// An empty layer directory of container root's, inside a scratch directory.
    pub(crate) fn new_layer(&self, scratch: &Scratch) -> Result<PathBuf> {
        let path = scratch.make_dir("layer")?;
        let fail = |cause: io::Error| Error::io("set attributes of", &path, cause);
        let dir = node::open_dir_path(&path).map_err(fail)?;
        // Owner as made: container root.
        let made = Attributes::of(&rustix::fs::fstat(&dir).map_err(|errno| fail(errno.into()))?);
        node::set_attributes(&dir, &Attributes { mode: 0o755, mtime: None, ..made }).map_err(fail)?;
        Ok(path)
    }

    /// Names a finished layer by its content and moves it into the store.
    pub(crate) fn publish(&self, top: &Path) -> Result<LayerId> {
        let dir = node::open_dir_path(top).map_err(|cause| Error::io("open directory", top, cause))?;
        let (id, size) = tree::identify(&dir, top)?;
        self.install(top, &LayerRecord { diff_id: id.clone(), size })?;
        Ok(id)
    }

    /// Moves a finished layer into the store, unless it is there; `top` must be on the store's file system.
    pub(crate) fn install(&self, top: &Path, record: &LayerRecord) -> Result<()> {
        let id = &record.diff_id;
        if self.has_layer(id)? {
            return Ok(());
        }
        let json = serde_json::to_vec(record).expect("a layer record has string keys only");
        let prepared = Pending::write(&self.tmp(), &json)?;
        // A layer is whole on disk before it has its name, and so is its record: no crash can leave a torn one.
        let dir = node::open_dir_path(top).map_err(|cause| Error::io("open directory", top, cause))?;
        rustix::fs::syncfs(&dir).map_err(|errno| Error::io("write to disk", top, errno))?;
        let _shared = self.shared()?;
        self.hold(Hold::Layer(id.clone()))?;
        // The record first: a layer that is seen has one.
        prepared.rename(&self.record_path(id))?;
        let path = self.data_dir.join(self.layer_path(id));
        match rustix::fs::rename(top, &path) {
            // Somebody else may have been faster with the same layer.
            Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(()),
            Err(errno) => Err(Error::io("move layer to", path, errno)),
        }
    }

    /// Whether the store has a layer. One that was found stays for as long as this store's lease.
    pub(crate) fn has_layer(&self, layer: &LayerId) -> Result<bool> {
        if !self.data_dir.join(self.layer_path(layer)).is_dir() {
            return Ok(false);
        }
        let _shared = self.shared_to_hold(&Hold::Layer(layer.clone()))?;
        if !self.data_dir.join(self.layer_path(layer)).is_dir() {
            return Ok(false);
        }
        match self.layer_record(layer)? {
            Some(record) if record.diff_id == *layer => Ok(true),
            Some(_) => Err(Error::LayerCollision { layer: layer.hex().to_owned() }),
            None => Ok(false),
        }
    }

    pub(crate) fn layer_record(&self, layer: &LayerId) -> Result<Option<LayerRecord>> {
        self.read_json(&self.record_path(layer))
    }

    pub(crate) fn record_path(&self, layer: &LayerId) -> PathBuf {
        self.data_dir.join("layers").join(format!("{}.json", short(layer)))
    }
}

/// The digits of a layer's id that name its files.
pub(crate) fn short(layer: &LayerId) -> &str {
    &layer.hex()[..24]
}

/// Refuses more layers than one mount can take.
pub(crate) fn check_count(layers: &[LayerId]) -> Result<()> {
    if layers.len() > MAX_LAYERS {
        return Err(Error::TooManyLayers { limit: MAX_LAYERS });
    }
    Ok(())
}
