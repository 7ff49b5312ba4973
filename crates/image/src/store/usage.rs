//! How much room everything takes, and how much of that could be freed.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::config::Image;
use crate::digest::Digest;
use crate::error::Result;
use crate::reference::Reference;
use crate::store::Store;
use crate::store::contents::Contents;
use crate::store::layers::short;
use crate::store::lease::{self, Hold};

/// The room that a kind of thing takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// How many there are.
    pub total: usize,
    /// How many of them are in use.
    pub active: usize,
    /// Bytes; what several have is counted once.
    pub size: u64,
    /// Bytes that nobody uses.
    pub reclaimable: u64,
}

/// An image, and the room that it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRoom {
    /// Its id.
    pub id: Digest,
    /// Its tags, and digests of repositories of which it has none.
    pub names: Vec<Reference>,
    /// RFC 3339, UTC.
    pub created: Option<String>,
    /// Bytes of all its layers.
    pub size: u64,
    /// Bytes of layers that other images have, too.
    pub shared: u64,
    /// How many containers use it.
    pub containers: usize,
}

/// An entry of the build cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRoom {
    /// Its key.
    pub id: Digest,
    /// Bytes of its layer.
    pub size: u64,
    /// When it was used last.
    pub used: SystemTime,
    /// An image or a container has its layer, too.
    pub shared: bool,
}

/// The room that the store takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Images in all.
    pub images: Room,
    /// The build cache in all, without what images have anyway.
    pub cache: Room,
    /// Each image.
    pub image_list: Vec<ImageRoom>,
    /// Each entry of the build cache.
    pub cache_list: Vec<CacheRoom>,
}

/// How one instruction of an image came to be; the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLine {
    /// RFC 3339, UTC.
    pub created: Option<String>,
    /// The instruction.
    pub created_by: String,
    /// Bytes of its layer; 0 where it made none.
    pub size: u64,
    /// A remark.
    pub comment: String,
    /// Its layer.
    pub layer: Option<Digest>,
}

impl Store {
    /// The room that images and the build cache take.
    pub fn usage(&self) -> Result<Usage> {
        let contents = Contents::read(self)?;
        let has = |id: &Digest, layer: &str| {
            contents.images.get(id).is_some_and(|image| image.layers().iter().any(|own| short(own) == layer))
        };
        let image_list: Vec<ImageRoom> = contents
            .images
            .iter()
            .map(|(id, image)| {
                let own = contents.layers_of([id]);
                let others: Vec<&Digest> = contents.images.keys().filter(|other| *other != id).collect();
                let is_shared = |layer: &&&str| others.iter().any(|other| has(other, layer));
                let users = |hold: &&Hold| matches!(hold, Hold::Container { image, .. } if image == id);
                ImageRoom {
                    id: id.clone(),
                    names: contents.names_of(id).lines().iter().map(|line| line.reference.clone()).collect(),
                    created: image.config.as_ref().and_then(|config| config.created.clone()),
                    size: contents.size_of(own.iter().copied()),
                    shared: contents.size_of(own.iter().filter(is_shared).copied()),
                    containers: contents.holds.iter().filter(users).count(),
                }
            })
            .collect();
        let all = contents.layers_of(contents.images.keys());
        let held = contents.held_layers();
        let images = Room {
            total: image_list.len(),
            active: image_list.iter().filter(|image| image.containers > 0).count(),
            size: contents.size_of(all.iter().copied()),
            reclaimable: contents.size_of(all.difference(&held).copied()),
        };
        let layer_of = |layer: &Option<Digest>| layer.as_ref().map(|layer| short(layer).to_owned());
        let cache_list: Vec<CacheRoom> = contents
            .cache
            .iter()
            .map(|(id, entry)| {
                let layer = layer_of(&entry.layer);
                let is_shared =
                    |layer: &String| all.contains(layer.as_str()) || held.contains(layer.as_str());
                CacheRoom {
                    id: id.clone(),
                    size: contents.size_of(layer.as_deref()),
                    used: entry.used,
                    shared: layer.as_ref().is_some_and(is_shared),
                }
            })
            .collect();
        let cached: BTreeSet<&str> =
            contents.cache.values().filter_map(|entry| entry.layer.as_ref().map(short)).collect();
        let own: BTreeSet<&str> = cached.difference(&all).copied().collect();
        let cache = Room {
            total: cache_list.len(),
            active: cache_list.iter().filter(|entry| entry.shared).count(),
            size: contents.size_of(own.iter().copied()),
            reclaimable: contents.size_of(own.difference(&held).copied()),
        };
        Ok(Usage { images, cache, image_list, cache_list })
    }

    /// The image that a container runs on, which need not be the one that its name stands for by now.
    pub fn image_of(&self, container: &str) -> Result<Option<Digest>> {
        Ok(lease::all(self.data_dir())?.into_iter().find_map(|hold| match hold {
            Hold::Container { image, container: other } if other == container => Some(image),
            _ => None,
        }))
    }

    /// How an image came to be, the newest instruction first.
    pub fn history(&self, image: &Image) -> Result<Vec<HistoryLine>> {
        let mut layers = image.config.rootfs.diff_ids.iter();
        let mut lines = Vec::new();
        for entry in &image.config.history {
            let layer = if entry.empty_layer { None } else { layers.next() };
            lines.push(HistoryLine {
                created: entry.created.clone(),
                created_by: entry.created_by.clone().unwrap_or_default(),
                size: self.size_of(layer)?,
                comment: entry.comment.clone().unwrap_or_default(),
                layer: layer.cloned(),
            });
        }
        // Some tools write no history, or not all of it.
        for layer in layers {
            let (created_by, comment) = (String::new(), String::new());
            let size = self.size_of(Some(layer))?;
            lines.push(HistoryLine { created: None, created_by, size, comment, layer: Some(layer.clone()) });
        }
        lines.reverse();
        Ok(lines)
    }

    fn size_of(&self, layer: Option<&Digest>) -> Result<u64> {
        let record = layer.map(|layer| self.layer_record(layer)).transpose()?.flatten();
        Ok(record.map_or(0, |record| record.size))
    }
}
