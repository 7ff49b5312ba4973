//! Images: configurations named by their digest, and the names that people give them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{self, Image, ImageConfig};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::scratch::{self, Pending};
use crate::store::lease::Hold;
use crate::store::names::Names;
use crate::store::{Store, json_files};

/// An image, for lists.
#[derive(Clone, Debug)]
pub struct ImageSummary {
    /// Its id.
    pub id: Digest,
    /// What it is called.
    pub names: Names,
    /// RFC 3339, UTC.
    pub created: Option<String>,
    /// Size of the files in all its layers, bytes.
    pub size: u64,
    /// How many layers it has.
    pub layers: usize,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What a name means.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TagRecord {
    pub(crate) reference: Reference,
    pub(crate) id: Digest,
}

impl Store {
    /// The image that a name stands for, if the store has it with all its layers. What was found stays for as long
    /// as this store's lease.
    pub fn image(&self, reference: &Reference) -> Result<Option<Image>> {
        if self.tagged(reference)?.is_none() {
            return Ok(None);
        }
        // The name must not move away and its old image vanish between the two looks.
        let _shared = self.lease.as_ref().map(|_| self.shared()).transpose()?;
        match self.tagged(reference)? {
            Some(id) => self.image_by_id(&id),
            None => Ok(None),
        }
    }

    /// The id that a name stands for, whether or not that image is whole.
    pub(crate) fn tagged(&self, reference: &Reference) -> Result<Option<Digest>> {
        Ok(self.read_json::<TagRecord>(&self.tag_path(reference))?.map(|tag| tag.id))
    }

    /// The image with this id, if the store has it with all its layers. It stays for as long as this store's lease.
    pub fn image_by_id(&self, id: &Digest) -> Result<Option<Image>> {
        if !self.image_path(id).exists() {
            return Ok(None);
        }
        let _shared = self.shared_to_hold(&Hold::Image(id.clone()))?;
        let Some(config) = self.read_json::<ImageConfig>(&self.image_path(id))? else { return Ok(None) };
        let layers = config::mounted(&config.rootfs.diff_ids);
        for layer in &layers {
            if !self.data_dir.join(self.layer_path(layer)).is_dir() {
                return Err(Error::MissingLayer { layer: layer.hex().to_owned(), image: id.to_string() });
            }
        }
        Ok(Some(Image { id: id.clone(), config, layers }))
    }

    /// All images, sorted by id.
    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        let mut names: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        for path in json_files(&self.data_dir.join("tags"))? {
            if let Some(tag) = self.read_json::<TagRecord>(&path)? {
                names.entry(tag.id).or_default().push(tag.reference);
            }
        }
        let mut list = Vec::new();
        for path in json_files(&self.data_dir.join("images"))? {
            let id = path.file_stem().and_then(|stem| stem.to_str()?.parse::<Digest>().ok());
            let Some(id) = id else { continue };
            let Some(config) = self.read_json::<ImageConfig>(&path)? else { continue };
            let mut size = 0;
            for layer in &config.rootfs.diff_ids {
                size += self.layer_record(layer)?.map_or(0, |record| record.size);
            }
            list.push(ImageSummary {
                names: Names::new(names.remove(&id).unwrap_or_default()),
                id,
                created: config.created,
                size,
                layers: config.rootfs.diff_ids.len(),
                labels: config.config.labels,
            });
        }
        Ok(list)
    }

    /// Keeps an image's configuration; its layers must be in the store. It stays for as long as this store's lease,
    /// with or without a name.
    pub(crate) fn put_image(&self, config: &ImageConfig) -> Result<Image> {
        let json = config.to_json();
        let id = Digest::of(&json);
        self.keep_config(&id, &json)?;
        Ok(Image { id, config: config.clone(), layers: config::mounted(&config.rootfs.diff_ids) })
    }

    /// Keeps the configuration of an image whose layers are in the store.
    pub(crate) fn keep_config(&self, id: &Digest, json: &[u8]) -> Result<()> {
        let path = self.image_path(id);
        {
            let _shared = self.shared_to_hold(&Hold::Image(id.clone()))?;
            if path.exists() {
                return Ok(());
            }
        }
        let pending = Pending::write(&self.tmp(), json)?;
        pending.sync()?;
        // Its layers have their names on disk before there is an image that names them.
        for dir in ["layers", "l"] {
            scratch::sync_dir(&self.data_dir.join(dir))?;
        }
        let lock = self.shared()?;
        pending.rename(&path)?;
        drop(lock);
        scratch::sync_dir(&self.data_dir.join("images"))
    }

    /// Gives an image a name; the image that had it before loses it.
    pub fn tag(&self, reference: &Reference, id: &Digest) -> Result<()> {
        if self.tagged(reference)?.is_some_and(|old| old == *id) && self.image_path(id).exists() {
            return Ok(());
        }
        let record = TagRecord { reference: reference.clone(), id: id.clone() };
        let json = serde_json::to_vec(&record).expect("a tag has string keys only");
        let pending = Pending::write(&self.tmp(), &json)?;
        pending.sync()?;
        let lock = self.shared()?;
        if !self.image_path(id).exists() {
            return Err(Error::UnknownImage { name: id.to_string(), nearest: None });
        }
        pending.rename(&self.tag_path(reference))?;
        drop(lock);
        scratch::sync_dir(&self.data_dir.join("tags"))
    }

    pub(crate) fn image_path(&self, id: &Digest) -> PathBuf {
        self.data_dir.join("images").join(format!("{}.json", id.hex()))
    }

    pub(crate) fn tag_path(&self, reference: &Reference) -> PathBuf {
        let name = reference.to_string().replace('/', "%2F").replace(':', "%3A").replace('@', "%40");
        // A file name ends at 255 bytes; a digest stands for longer ones.
        let name = if name.len() > 200 { Digest::of(name.as_bytes()).hex().to_owned() } else { name };
        self.data_dir.join("tags").join(format!("{name}.json"))
    }
}
