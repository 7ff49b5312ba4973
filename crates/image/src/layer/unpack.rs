//! Layers that come from elsewhere: unpacked, published, and given back byte for byte.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::LayerWriter;
use super::recipe::{self, Aside};
use crate::archive::{self, Limits, Promise};
use crate::digest::{Digest, Hashed, LayerId};
use crate::error::{Error, Result};
use crate::node;
use crate::scratch::Scratch;
use crate::store::Store;
use crate::store::layers::{Finished, LayerRecord};
use crate::tree;

/// A layer's blob, and what is known of it beforehand.
#[derive(Clone, Debug)]
pub struct LayerSource<'a> {
    /// Its name for messages.
    pub name: &'a str,
    /// The digest of the blob as it comes, gzipped or not; checked when the blob has been read to its end.
    pub blob: Option<&'a Digest>,
    /// The digest of the unpacked archive, as the image's configuration says; checked too.
    pub diff_id: Option<&'a Digest>,
    /// How much it may hold.
    pub limits: Limits,
    /// It may hold nothing at all, as a layer does that changes nothing.
    pub may_be_empty: bool,
}

impl<'a> LayerSource<'a> {
    /// A blob of which nothing but a name is known.
    pub fn new(name: &'a str) -> Self {
        Self { name, blob: None, diff_id: None, limits: Limits::default(), may_be_empty: true }
    }
}

/// A layer that is unpacked and verified, but not part of the store yet: see [`Store::publish_layers`].
/// It is gone with this value.
pub struct StagedLayer {
    scratch: Scratch,
    top: PathBuf,
    recipe: PathBuf,
    id: LayerId,
    size: u64,
}

impl StagedLayer {
    /// Its DiffID.
    pub fn id(&self) -> &LayerId {
        &self.id
    }

    fn finished(&self) -> Finished<'_> {
        let record = LayerRecord { diff_id: self.id.clone(), size: self.size };
        Finished { top: &self.top, recipe: Some(&self.recipe), record }
    }
}

impl std::fmt::Debug for StagedLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StagedLayer").field("id", &self.id).field("at", &self.scratch.name()).finish()
    }
}

impl Store {
    /// Unpacks a layer's blob, packed with gzip or zstd or plain, verifies it, and makes it part of the store. Nothing is left of it
    /// if that fails.
    ///
    /// # Errors
    /// A blob that is damaged, not what was promised, or that holds what no layer may; the store's own.
    pub fn unpack_layer(&self, blob: impl Read + Send, source: &LayerSource<'_>) -> Result<LayerId> {
        let staged = self.stage_layer(blob, source)?;
        let id = staged.id.clone();
        self.publish_layers(vec![staged])?;
        Ok(id)
    }

    /// Unpacks and verifies a layer's blob without making it part of the store. Several can be staged at the same
    /// time by several threads, and published together, which waits for the disk once.
    ///
    /// # Errors
    /// As for [`Store::unpack_layer`].
    pub fn stage_layer(&self, blob: impl Read + Send, source: &LayerSource<'_>) -> Result<StagedLayer> {
        let scratch = Scratch::new(&self.tmp())?;
        let top = self.new_layer(&scratch)?;
        let recipe_path = top.with_file_name("recipe");
        let aside_path = scratch.make_dir("aside")?;
        let recipe_error = |cause: io::Error| Error::io("write recipe", &recipe_path, cause);
        let mut recipe = new_recipe(&recipe_path)?;
        let aside = node::open_dir_path(&aside_path)
            .map_err(|cause| Error::io("open directory", &aside_path, cause))?;
        let files = recipe.files();
        let unpack = archive::Unpack {
            archive: source.name,
            limits: &source.limits,
            whiteouts: true,
            below: Path::new(""),
            sha256: None,
            owner: None,
            powers: true,
        };
        let promise =
            Promise { name: source.name, packed: source.blob, unpacked: source.diff_id, hash: true };
        let found = archive::through(blob, &promise, &source.limits, |tar| {
            let writer = LayerWriter::open(&[], &top)?;
            writer.keep_replaced(Aside::new(aside, files));
            let (count, size) = archive::entries(tar, &unpack, &writer, Some(&mut recipe))?;
            if count == 0 && !source.may_be_empty {
                return Err(archive::no_entries(source.name));
            }
            let mut file = recipe.finish().map_err(recipe_error)?;
            if let Some(aside) = writer.take_replaced().filter(|aside| !aside.is_empty()) {
                file.rewind().map_err(recipe_error)?;
                std::fs::remove_file(&recipe_path).map_err(recipe_error)?;
                let mut again = new_recipe(&recipe_path)?;
                aside.rewrite(file, &mut again).map_err(recipe_error)?;
                again.finish().map_err(recipe_error)?;
            }
            Ok(size)
        })?;
        let id = found.unpacked.expect("the digest was asked for");
        Ok(StagedLayer { scratch, top, recipe: recipe_path, id, size: found.value })
    }

    /// Makes staged layers part of the store, lowest first or in any order.
    ///
    /// # Errors
    /// The store's own. Those layers that were published before stay.
    pub fn publish_layers(&self, layers: Vec<StagedLayer>) -> Result<()> {
        let finished: Vec<_> = layers.iter().map(StagedLayer::finished).collect();
        self.install(&finished)
    }

    /// Writes a layer as a plain OCI layer archive: the bytes whose digest is the layer's id, as it came or as it
    /// was made here.
    ///
    /// # Errors
    /// When the layer is not there or has been changed; when `out` fails.
    pub fn write_layer_tar(&self, layer: &LayerId, out: &mut dyn Write) -> Result<()> {
        let (found, _) = self.write_as_it_came(layer, out)?;
        archive::check(&format!("layer {}", self.layer_path(layer)), layer.hex(), &found)
    }

    /// What a layer's digest would be as its directory is now, and the size of its files, bytes.
    pub(crate) fn identify_layer(&self, layer: &LayerId) -> Result<(LayerId, u64)> {
        self.write_as_it_came(layer, &mut io::sink())
    }

    /// How long the archive of a layer is, bytes. It costs a look at each file, but none is read.
    pub(crate) fn layer_tar_length(&self, layer: &LayerId) -> Result<u64> {
        let path = self.data_dir().join(self.layer_path(layer));
        let recipe = self.recipe_path(layer);
        match File::open(&recipe) {
            Ok(file) => recipe::length(file).map_err(|cause| Error::io("read", recipe, cause)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let dir =
                    node::open_dir_path(&path).map_err(|cause| Error::io("open layer", &path, cause))?;
                tree::measure_tar(&dir, &path)
            }
            Err(cause) => Err(Error::io("open", recipe, cause)),
        }
    }

    fn write_as_it_came(&self, layer: &LayerId, out: &mut dyn Write) -> Result<(LayerId, u64)> {
        let path = self.data_dir().join(self.layer_path(layer));
        let dir = node::open_dir_path(&path).map_err(|cause| Error::io("open layer", &path, cause))?;
        let mut out = Hashed::new(out);
        let recipe = self.recipe_path(layer);
        let size = match File::open(&recipe) {
            Ok(file) => recipe::replay(file, &dir, &mut out)
                .map_err(|cause| Error::io("write the archive of", &path, cause))?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => tree::write_tar(&dir, &path, &mut out)?,
            Err(cause) => return Err(Error::io("open", recipe, cause)),
        };
        Ok((out.finish().0, size))
    }
}

fn new_recipe(path: &Path) -> Result<recipe::Writer> {
    let file = File::options().read(true).write(true).create_new(true).open(path);
    file.and_then(recipe::Writer::new).map_err(|cause| Error::io("create file", path, cause))
}
