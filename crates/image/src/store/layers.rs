//! Layers: directories named by the digest of their archive, each with a record.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::mounted;
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

/// A layer that is whole, but not in the store.
pub(crate) struct Finished<'a> {
    /// Its directory.
    pub(crate) top: &'a Path,
    /// How its archive is made again, where that is not our own way.
    pub(crate) recipe: Option<&'a Path>,
    pub(crate) record: LayerRecord,
}

impl Store {
    /// A layer's directory, relative to the data directory.
    pub fn layer_path(&self, layer: &LayerId) -> String {
        format!("l/{}", short(layer))
    }

    /// The directories of layers to mount, relative to the data directory: of what stands there twice, one.
    pub(crate) fn layer_paths(&self, layers: &[LayerId]) -> Vec<String> {
        mounted(layers).iter().map(|layer| self.layer_path(layer)).collect()
    }

    /// As [`Store::layer_paths`], for us to open.
    pub(crate) fn layer_dirs(&self, layers: &[LayerId]) -> Vec<PathBuf> {
        self.layer_paths(layers).iter().map(|path| self.data_dir.join(path)).collect()
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
        self.install(&[Finished { top, recipe: None, record: LayerRecord { diff_id: id.clone(), size } }])?;
        Ok(id)
    }

    /// Moves finished layers into the store, those that are not there yet; all must be on the store's file system.
    pub(crate) fn install(&self, layers: &[Finished<'_>]) -> Result<()> {
        let mut prepared = Vec::new();
        for layer in layers {
            if !self.has_layer(&layer.record.diff_id)? {
                let json = serde_json::to_vec(&layer.record).expect("a layer record has string keys only");
                prepared.push((layer, Pending::write(&self.tmp(), &json)?));
            }
        }
        let Some((Finished { top, .. }, _)) = prepared.first() else { return Ok(()) };
        // Layers are whole on disk before they have their names, and so are their records: no crash can leave torn ones.
        let dir = node::open_dir_path(top).map_err(|cause| Error::io("open directory", *top, cause))?;
        rustix::fs::syncfs(&dir).map_err(|errno| Error::io("write to disk", *top, errno))?;
        for (Finished { top, recipe, record }, pending) in prepared {
            let id = &record.diff_id;
            let _shared = self.shared()?;
            self.hold(Hold::Layer(id.clone()))?;
            // The record before the layer: a layer that is seen has one. Its recipe before both.
            if let Some(recipe) = recipe {
                let path = self.recipe_path(id);
                std::fs::rename(recipe, &path).map_err(|cause| Error::io("move recipe to", path, cause))?;
            }
            pending.rename(&self.record_path(id))?;
            let path = self.data_dir.join(self.layer_path(id));
            match rustix::fs::rename(*top, &path) {
                // Somebody else may have been faster with the same layer.
                Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                Err(errno) => return Err(Error::io("move layer to", path, errno)),
            }
        }
        Ok(())
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

    /// Where the recipe of a layer is that came from elsewhere.
    pub(crate) fn recipe_path(&self, layer: &LayerId) -> PathBuf {
        self.record_path(layer).with_extension("recipe")
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
