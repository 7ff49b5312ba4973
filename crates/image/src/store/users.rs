//! Who has the layers of an image beside it.

use std::collections::BTreeMap;

use crate::config::Image;
use crate::digest::{Digest, LayerId};
use crate::error::Result;
use crate::store::Store;
use crate::store::contents::Contents;

/// Who has a layer beside the image that was asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerUsers {
    /// Names of the other images; one without a name is told by the beginning of its id.
    pub images: Vec<String>,
    /// An entry of the build cache stands for it.
    pub cached: bool,
}

impl Store {
    /// Who has the layers of an image beside it.
    pub fn layer_users(&self, image: &Image) -> Result<BTreeMap<LayerId, LayerUsers>> {
        let contents = Contents::read(self)?;
        let name = |id: &Digest| {
            let names = contents.names_of(id);
            names.lines().first().map_or_else(|| id.short().to_owned(), |line| line.reference.to_string())
        };
        let users = |layer: &LayerId| {
            let others =
                contents.images.iter().filter(|(id, kept)| **id != image.id && kept.layers().contains(layer));
            let mut images: Vec<String> = others.map(|(id, _)| name(id)).collect();
            images.sort();
            let cached = contents.cache.values().any(|entry| entry.layer.as_ref() == Some(layer));
            (layer.clone(), LayerUsers { images, cached })
        };
        Ok(image.config.rootfs.diff_ids.iter().map(users).collect())
    }
}
