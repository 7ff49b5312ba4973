//! The store: layers by content, images by the digest of their configuration, tags by name.
//!
//! ```text
//! l/<24 hex>             a layer, used as an overlayfs lowerdir as it is
//! layers/<24 hex>.json   its full DiffID and size
//! images/<64 hex>.json   an image configuration, as its digest says
//! tags/<name>.json       which image a name means
//! cache/<64 hex>.json    which layer an instruction made
//! tmp/                   work in progress, each with a lock that dies with its owner
//! ```
//!
//! Everything is made under `tmp/` and renamed into place when it is whole, so a reader never sees half of
//! anything and a process that dies leaves only what the next sweep removes.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::archive::{self, Limits};
use crate::build::RunStep;
use crate::config::{self, ContainerConfig, DEFAULT_PATH, History, Image, ImageConfig};
use crate::digest::{Digest, LayerId};
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::node::{self, Attributes};
use crate::reference::Reference;
use crate::scratch::{self, Scratch};
use crate::tree;
use crate::user::{self, User};
use crate::view::{Dir, Node, Resolved, View};

/// Most layers of one image: their names must fit into the one page of options that `mount(2)` takes.
pub const MAX_LAYERS: usize = 127;

/// The image store of one data directory.
#[derive(Clone, Debug)]
pub struct Store {
    data_dir: PathBuf,
}

/// One line of `inception-run images`.
#[derive(Clone, Debug, Serialize)]
pub struct ImageSummary {
    /// The name; none for an image that a newer one has taken the name from.
    pub reference: Option<Reference>,
    /// The image's id.
    pub id: Digest,
    /// RFC 3339, UTC.
    pub created: Option<String>,
    /// Size of the files in all its layers, bytes.
    pub size: u64,
    /// How many layers it has.
    pub layers: usize,
}

/// How a root file system becomes an image.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The archive's or directory's name for messages and for the history.
    pub source: String,
    /// The checksum that the archive, as it lies on disk, must have: hexadecimal SHA-256.
    pub sha256: Option<String>,
    /// How containers of the image run; see [`default_config`].
    pub config: ContainerConfig,
    /// How much the archive may hold.
    pub limits: Limits,
}

/// How an image is made of a container's changes.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// The new image's name.
    pub reference: Option<Reference>,
    /// What to write into the history.
    pub comment: String,
    /// A configuration other than the base's.
    pub config: Option<ContainerConfig>,
}

/// What the store knows of a layer.
#[derive(Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: LayerId,
    pub(crate) size: u64,
}

#[derive(Serialize, Deserialize)]
struct TagRecord {
    reference: Reference,
    id: Digest,
}

/// The configuration of an imported root file system: Docker's `PATH`, and a shell as command.
pub fn default_config() -> ContainerConfig {
    ContainerConfig {
        env: vec![format!("PATH={DEFAULT_PATH}")],
        cmd: Some(vec!["/bin/sh".to_owned()]),
        ..ContainerConfig::default()
    }
}

impl Store {
    /// Opens the store of a data directory and makes what is missing of it. Must run as the owner of the
    /// id map (container root); a reader outside of it uses [`Store::reader`].
    pub fn open(data_dir: &Path) -> Result<Self> {
        if let Some(parent) = data_dir.parent() {
            fs::create_dir_all(parent).map_err(|cause| Error::io("create directory", parent, cause))?;
        }
        // Closed to other users of the host: a layer may hold set-user-id programs of the owner's.
        for name in ["", "l", "layers", "images", "tags", "cache", "tmp"] {
            let path = if name.is_empty() { data_dir.to_owned() } else { data_dir.join(name) };
            scratch::make_private_dir(&path)?;
        }
        Ok(Self { data_dir: data_dir.to_owned() })
    }

    /// A store to read from only: nothing is made, and what does not exist counts as empty.
    pub fn reader(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned() }
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.data_dir.join("tmp")
    }

    /// A layer's directory, relative to the data directory.
    pub fn layer_path(&self, layer: &LayerId) -> String {
        format!("l/{}", short(layer))
    }

    /// Layers' directories.
    pub(crate) fn layer_dirs(&self, layers: &[LayerId]) -> Vec<PathBuf> {
        layers.iter().map(|layer| self.data_dir.join(self.layer_path(layer))).collect()
    }

    /// The image that a name stands for, if the store has it with all its layers.
    pub fn image(&self, reference: &Reference) -> Result<Option<Image>> {
        match self.read_json::<TagRecord>(&self.tag_path(reference))? {
            Some(tag) => self.image_by_id(&tag.id),
            None => Ok(None),
        }
    }

    /// The image with this id.
    pub fn image_by_id(&self, id: &Digest) -> Result<Option<Image>> {
        let Some(config) = self.read_json::<ImageConfig>(&self.image_path(id))? else { return Ok(None) };
        let layers = config.rootfs.diff_ids.clone();
        for layer in &layers {
            if !self.data_dir.join(self.layer_path(layer)).is_dir() {
                return Err(Error::MissingLayer { layer: layer.hex().to_owned(), image: id.to_string() });
            }
        }
        Ok(Some(Image { id: id.clone(), config, layers }))
    }

    /// All images, those with names first, sorted by name.
    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        let mut list = Vec::new();
        for path in json_files(&self.data_dir.join("tags"))? {
            let Some(tag) = self.read_json::<TagRecord>(&path)? else { continue };
            list.extend(self.summary(&tag.id, Some(tag.reference))?);
        }
        list.sort_by(|a, b| a.reference.cmp(&b.reference));
        let mut unnamed = Vec::new();
        for path in json_files(&self.data_dir.join("images"))? {
            let Some(id) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()) else { continue };
            if !list.iter().any(|named| named.id == id) {
                unnamed.extend(self.summary(&id, None)?);
            }
        }
        list.append(&mut unnamed);
        Ok(list)
    }

    fn summary(&self, id: &Digest, reference: Option<Reference>) -> Result<Option<ImageSummary>> {
        let Some(config) = self.read_json::<ImageConfig>(&self.image_path(id))? else { return Ok(None) };
        let mut size = 0;
        for layer in &config.rootfs.diff_ids {
            size += self.read_json::<LayerRecord>(&self.record_path(layer))?.map_or(0, |record| record.size);
        }
        let layers = config.rootfs.diff_ids.len();
        Ok(Some(ImageSummary { reference, id: id.clone(), created: config.created, size, layers }))
    }

    /// Keeps an image's configuration; its layers must be in the store.
    pub fn put_image(&self, config: &ImageConfig) -> Result<Image> {
        let json = serde_json::to_vec(config).expect("an image configuration has string keys only");
        let id = Digest::of(&json);
        let path = self.image_path(&id);
        if !path.exists() {
            scratch::write_file(&self.tmp(), &path, &json, true)?;
        }
        Ok(Image { id, config: config.clone(), layers: config.rootfs.diff_ids.clone() })
    }

    /// Gives an image a name; the image that had it before loses it.
    pub fn tag(&self, reference: &Reference, id: &Digest) -> Result<()> {
        let path = self.tag_path(reference);
        if self.read_json::<TagRecord>(&path)?.is_some_and(|old| old.id == *id) {
            return Ok(());
        }
        let record = TagRecord { reference: reference.clone(), id: id.clone() };
        let json = serde_json::to_vec(&record).expect("a tag has string keys only");
        scratch::write_file(&self.tmp(), &path, &json, true)
    }

    /// Makes an image of one layer from a tar archive, plain or gzipped, and names it.
    ///
    /// The archive is not trusted: see the crate's notes on archives. Nothing is left if it fails.
    pub fn import_tarball(
        &self,
        reference: &Reference,
        reader: impl Read + Send,
        options: &ImportOptions,
    ) -> Result<Image> {
        let scratch = Scratch::new(&self.tmp())?;
        let top = self.new_layer(&scratch)?;
        let writer = LayerWriter::open(&[], &top)?;
        let unpack = archive::Unpack {
            archive: &options.source,
            limits: &options.limits,
            whiteouts: true,
            below: Path::new(""),
            sha256: options.sha256.as_deref(),
            owner: None,
        };
        archive::unpack(reader, &unpack, &writer)?;
        drop(writer);
        self.import(reference, &top, options)
    }

    /// Makes an image of one layer from a directory, and names it. Owners are kept as the id map shows them.
    pub fn import_directory(
        &self,
        reference: &Reference,
        directory: &Path,
        options: &ImportOptions,
    ) -> Result<Image> {
        let scratch = Scratch::new(&self.tmp())?;
        let top = self.new_layer(&scratch)?;
        let open =
            |path: &Path| node::open_dir_path(path).map_err(|cause| Error::io("open directory", path, cause));
        let (from, to) = (open(directory)?, open(&top)?);
        tree::copy_tree(&from, &to, directory)?;
        crate::layer::copy_attributes(&from, &to).map_err(|cause| Error::io("copy", directory, cause))?;
        self.import(reference, &top, options)
    }

    fn import(&self, reference: &Reference, top: &Path, options: &ImportOptions) -> Result<Image> {
        let layer = self.publish(top)?;
        let created = config::now();
        let history = History {
            created: Some(created.clone()),
            created_by: Some(format!("import {}", options.source)),
            ..History::default()
        };
        let mut config =
            ImageConfig { created: Some(created), config: options.config.clone(), ..ImageConfig::default() };
        config.rootfs.diff_ids.push(layer);
        config.history.push(history);
        let image = self.put_image(&config)?;
        self.tag(reference, &image.id)?;
        Ok(image)
    }

    /// Makes an image of a container's changes: a copy of its overlay's upper directory becomes a layer on
    /// top of the image it was started from.
    pub fn commit(&self, base: &Image, upper: &Path, options: &CommitOptions) -> Result<Image> {
        let scratch = Scratch::new(&self.tmp())?;
        let top = self.new_layer(&scratch)?;
        let open =
            |path: &Path| node::open_dir_path(path).map_err(|cause| Error::io("open directory", path, cause));
        let (from, to) = (open(upper)?, open(&top)?);
        tree::copy_tree(&from, &to, upper)?;
        crate::layer::copy_attributes(&from, &to).map_err(|cause| Error::io("copy", upper, cause))?;
        let mut config = base.config.clone();
        if let Some(changed) = &options.config {
            config.config = changed.clone();
        }
        config.rootfs.diff_ids.push(self.publish(&top)?);
        check_count(&config.rootfs.diff_ids)?;
        config.created = Some(config::now());
        config.history.push(History {
            created: config.created.clone(),
            created_by: Some("commit".to_owned()),
            comment: Some(options.comment.clone()).filter(|comment| !comment.is_empty()),
            empty_layer: false,
        });
        let image = self.put_image(&config)?;
        if let Some(reference) = &options.reference {
            self.tag(reference, &image.id)?;
        }
        Ok(image)
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
        if self.has_layer(&id)? {
            return Ok(id);
        }
        // A layer is whole on disk before it has its name: no crash can leave a torn one behind it.
        rustix::fs::syncfs(&dir).map_err(|errno| Error::io("write to disk", top, errno))?;
        let record = LayerRecord { diff_id: id.clone(), size };
        let json = serde_json::to_vec(&record).expect("a layer record has string keys only");
        scratch::write_file(&self.tmp(), &self.record_path(&id), &json, true)?;
        let path = self.data_dir.join(self.layer_path(&id));
        match rustix::fs::rename(top, &path) {
            Ok(()) => Ok(id),
            // Somebody else was faster with the same layer.
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(id),
            Err(errno) => Err(Error::io("move layer to", path, errno)),
        }
    }

    /// Whether the store has a layer.
    pub(crate) fn has_layer(&self, layer: &LayerId) -> Result<bool> {
        if !self.data_dir.join(self.layer_path(layer)).is_dir() {
            return Ok(false);
        }
        match self.read_json::<LayerRecord>(&self.record_path(layer))? {
            Some(record) if record.diff_id == *layer => Ok(true),
            Some(_) => Err(Error::LayerCollision { layer: layer.hex().to_owned() }),
            None => Ok(false),
        }
    }

    pub(crate) fn view(&self, layers: &[LayerId]) -> Result<View> {
        View::open(&self.layer_dirs(layers)).map_err(|(path, cause)| Error::io("open layer", path, cause))
    }

    /// Who `USER[:GROUP]` is in an image, by its own `/etc/passwd` and `/etc/group`.
    pub fn resolve_user(&self, layers: &[LayerId], spec: &str) -> Result<User> {
        user::resolve(&self.view(layers)?, spec)
    }

    /// Who a `RUN` instruction's command runs as.
    pub fn run_user(&self, step: &RunStep) -> Result<User> {
        let dirs: Vec<PathBuf> = step.layers.iter().map(|layer| self.data_dir.join(layer)).collect();
        let view = View::open(&dirs).map_err(|(path, cause)| Error::io("open layer", path, cause))?;
        user::resolve(&view, &step.user)
    }

    /// The content of a small file of an image; none if there is no such regular file.
    pub fn read_file(&self, layers: &[LayerId], path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.view(layers)?
            .read_file(Path::new(path), limit)
            .map_err(|cause| Error::io("read the image's", path, cause))
    }

    /// Copies what an image has at a path (with owners, modes and attributes) into an existing empty
    /// directory, as the first use of a named volume does; false if the image has no directory there.
    pub fn copy_out(&self, layers: &[LayerId], path: &str, to: &Path) -> Result<bool> {
        let view = self.view(layers)?;
        let found =
            view.resolve(Path::new(path), true).map_err(|cause| Error::io("read the image's", path, cause));
        let Resolved::Found(Node::Dir(dir)) = found? else { return Ok(false) };
        let writer = LayerWriter::open(&[], to)?;
        copy_merged(&view, &dir, &writer, Path::new(""))?;
        crate::layer::copy_attributes(dir.fd(), writer.view.root().fd())
            .map_err(|cause| Error::io("set attributes of", to, cause))?;
        Ok(true)
    }

    /// Deletes what builds and imports that died left behind; those that run are not touched. Returns how
    /// many were swept up.
    pub fn sweep(&self) -> Result<usize> {
        scratch::sweep(&self.tmp())
    }

    pub(crate) fn image_path(&self, id: &Digest) -> PathBuf {
        self.data_dir.join("images").join(format!("{}.json", id.hex()))
    }

    pub(crate) fn record_path(&self, layer: &LayerId) -> PathBuf {
        self.data_dir.join("layers").join(format!("{}.json", short(layer)))
    }

    fn tag_path(&self, reference: &Reference) -> PathBuf {
        let name = reference.to_string().replace('/', "%2F").replace(':', "%3A").replace('@', "%40");
        // A file name ends at 255 bytes; a digest stands for longer ones.
        let name = if name.len() > 200 { Digest::of(name.as_bytes()).hex().to_owned() } else { name };
        self.data_dir.join("tags").join(format!("{name}.json"))
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

fn short(layer: &LayerId) -> &str {
    &layer.hex()[..24]
}

/// Refuses more layers than one mount can take.
pub(crate) fn check_count(layers: &[LayerId]) -> Result<()> {
    if layers.len() > MAX_LAYERS {
        return Err(Error::TooManyLayers { limit: MAX_LAYERS });
    }
    Ok(())
}

fn json_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(Error::io("read directory", dir, cause)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|cause| Error::io("read directory", dir, cause))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Copies the content of a merged directory.
fn copy_merged(view: &View, dir: &Dir, writer: &LayerWriter, to: &Path) -> Result<()> {
    let fail = |path: &Path, cause: io::Error| Error::io("read the image's", path, cause);
    for name in view.names(dir).map_err(|cause| fail(&dir.path, cause))? {
        let target = to.join(&name);
        match view.child(dir, &name).map_err(|cause| fail(&dir.path.join(&name), cause))? {
            None => {}
            Some(Node::Dir(child)) => {
                let mut attributes = Attributes::of(&child.stat().map_err(|cause| fail(&child.path, cause))?);
                attributes.xattrs = node::xattrs(child.fd()).map_err(|cause| fail(&child.path, cause))?;
                let time = attributes.mtime;
                writer.put_dir(&target, &attributes, true)?;
                copy_merged(view, &child, writer, &target)?;
                if let Some(time) = time {
                    writer.set_dir_time(&target, time)?;
                }
            }
            Some(Node::Leaf(leaf)) => writer.put_copy(&leaf, &target)?,
        }
    }
    Ok(())
}
