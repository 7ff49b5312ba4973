//! All that the store holds, as data: what decisions about it are made from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use crate::config::ImageConfig;
use crate::digest::{Digest, LayerId};
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::scratch;
use crate::store::images::TagRecord;
use crate::store::layers::{LayerRecord, short};
use crate::store::lease::{self, Hold};
use crate::store::names::Names;
use crate::store::{Store, json_files};

/// The store at one moment.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) tags: BTreeMap<Reference, Digest>,
    pub(crate) images: BTreeMap<Digest, KeptImage>,
    /// By the digits that name them.
    pub(crate) layers: BTreeMap<String, KeptLayer>,
    pub(crate) cache: BTreeMap<Digest, KeptEntry>,
    /// What is in use.
    pub(crate) holds: BTreeSet<Hold>,
}

/// An image.
#[derive(Debug)]
pub(crate) struct KeptImage {
    /// None where the configuration cannot be read.
    pub(crate) config: Option<ImageConfig>,
    /// When it came into the store.
    pub(crate) since: SystemTime,
}

/// A layer, or what is left of one.
#[derive(Debug, Default)]
pub(crate) struct KeptLayer {
    pub(crate) has_directory: bool,
    pub(crate) record: Option<LayerRecord>,
    /// Its files in `layers/`, the record and what else is kept beside it.
    pub(crate) files: Vec<PathBuf>,
}

/// An entry of the build cache.
#[derive(Debug)]
pub(crate) struct KeptEntry {
    /// None for an instruction that changed no file.
    pub(crate) layer: Option<LayerId>,
    /// When it was made or used last.
    pub(crate) used: SystemTime,
}

/// Of a cache entry, what matters to the store.
#[derive(Deserialize)]
struct EntryRecord {
    layer: Option<LayerId>,
}

impl KeptImage {
    pub(crate) fn layers(&self) -> &[LayerId] {
        self.config.as_ref().map_or(&[], |config| &config.rootfs.diff_ids)
    }
}

impl KeptLayer {
    pub(crate) fn size(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.size)
    }
}

impl Contents {
    /// Reads the store. Under the lock it is one moment; without, things may come and go meanwhile.
    pub(crate) fn read(store: &Store) -> Result<Self> {
        let dir = |name: &str| store.data_dir().join(name);
        let mut contents = Self { holds: lease::all(store.data_dir())?, ..Self::default() };
        for path in json_files(&dir("tags"))? {
            if let Some(tag) = store.read_json::<TagRecord>(&path)? {
                contents.tags.insert(tag.reference, tag.id);
            }
        }
        for (id, path) in named_by_digest(&dir("images"))? {
            let Some(since) = modified(&path)? else { continue };
            let config = unless_damaged(store.read_json::<ImageConfig>(&path))?;
            contents.images.insert(id, KeptImage { config, since });
        }
        for (key, path) in named_by_digest(&dir("cache"))? {
            let Some(used) = modified(&path)? else { continue };
            // What cannot be read is made anew by the next build, and names nothing until then.
            let layer = unless_damaged(store.read_json::<EntryRecord>(&path))?.and_then(|entry| entry.layer);
            contents.cache.insert(key, KeptEntry { layer, used });
        }
        for name in names(&dir("l"))? {
            contents.layers.entry(name).or_default().has_directory = true;
        }
        for name in names(&dir("layers"))? {
            let path = dir("layers").join(&name);
            let layer =
                contents.layers.entry(name.split('.').next().unwrap_or(&name).to_owned()).or_default();
            if name.ends_with(".json") {
                layer.record = unless_damaged(store.read_json(&path))?;
            }
            layer.files.push(path);
        }
        Ok(contents)
    }

    /// The images that somebody uses.
    pub(crate) fn held_images(&self) -> BTreeSet<&Digest> {
        self.holds.iter().filter_map(Hold::image).collect()
    }

    /// The images that have a tag: a digest alone keeps none.
    pub(crate) fn tagged_images(&self) -> BTreeSet<&Digest> {
        self.tags.iter().filter(|(name, _)| name.digest().is_none()).map(|(_, id)| id).collect()
    }

    /// The names of an image.
    pub(crate) fn names_of(&self, id: &Digest) -> Names {
        Names::new(self.tags.iter().filter(|(_, tagged)| *tagged == id).map(|(name, _)| name.clone()))
    }

    /// The layers, by the digits that name them, that these images have.
    pub(crate) fn layers_of<'a>(&'a self, images: impl IntoIterator<Item = &'a Digest>) -> BTreeSet<&'a str> {
        let images = images.into_iter().filter_map(|id| self.images.get(id));
        images.flat_map(|image| image.layers().iter().map(short)).collect()
    }

    /// The layers that are in use without regard to any name: by leases, directly or through an image.
    pub(crate) fn held_layers(&self) -> BTreeSet<&str> {
        let mut layers = self.layers_of(self.held_images());
        layers.extend(self.holds.iter().filter_map(|hold| match hold {
            Hold::Layer(layer) => Some(short(layer)),
            _ => None,
        }));
        layers
    }

    /// The size of these layers together.
    pub(crate) fn size_of<'a>(&self, layers: impl IntoIterator<Item = &'a str>) -> u64 {
        layers.into_iter().filter_map(|layer| self.layers.get(layer)).map(KeptLayer::size).sum()
    }

    /// What `text` means: a name, an id, or the beginning of one id only. The name is there where it was one.
    pub(crate) fn find(&self, text: &str) -> Result<(Digest, Option<Reference>)> {
        if let Ok(id) = text.parse::<Digest>()
            && self.images.contains_key(&id)
        {
            return Ok((id, None));
        }
        let reference = text.parse::<Reference>();
        if let Ok(reference) = &reference
            && let Some(id) = self.tags.get(reference)
        {
            return Ok((id.clone(), Some(reference.clone())));
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let is_prefix = !prefix.is_empty() && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let known = self.images.keys().filter(|id| is_prefix && id.hex().starts_with(prefix));
        match &known.collect::<Vec<_>>()[..] {
            [] => {
                // What is no name at all says so itself.
                reference?;
                Err(Error::UnknownImage { name: text.to_owned(), nearest: self.nearest(text) })
            }
            [only] => Ok(((*only).clone(), None)),
            several => Err(Error::AmbiguousId {
                prefix: text.to_owned(),
                candidates: several.iter().map(|id| id.short().to_owned()).collect(),
            }),
        }
    }

    fn nearest(&self, text: &str) -> Option<String> {
        let distance = |name: &Reference| {
            let apart = |name: &str| strsim::damerau_levenshtein(name, text);
            apart(&name.to_string()).min(apart(name.name()))
        };
        let near = self.tags.keys().map(|name| (distance(name), name)).min();
        near.filter(|(distance, _)| *distance <= text.len() / 3).map(|(_, name)| name.to_string())
    }
}

/// None for a file that does not hold what it should.
fn unless_damaged<T>(read: Result<Option<T>>) -> Result<Option<T>> {
    match read {
        Err(Error::DamagedStore { .. }) => Ok(None),
        other => other,
    }
}

fn named_by_digest(dir: &Path) -> Result<Vec<(Digest, PathBuf)>> {
    let digest = |path: PathBuf| {
        let digest = path.file_stem()?.to_str()?.parse().ok()?;
        Some((digest, path))
    };
    Ok(json_files(dir)?.into_iter().filter_map(digest).collect())
}

fn modified(path: &Path) -> Result<Option<SystemTime>> {
    match fs::metadata(path).and_then(|meta| meta.modified()) {
        Ok(time) => Ok(Some(time)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("look up", path, cause)),
    }
}

/// All names of a directory; none of one that is not there.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>> {
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(scratch::entries(dir)?.iter().map(name).collect())
}
