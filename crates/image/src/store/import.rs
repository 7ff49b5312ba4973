//! Images that are made at once: of an archive, of a directory, of a container's changes.

use std::io::Read;
use std::path::Path;

use crate::archive::Limits;
use crate::config::{self, ContainerConfig, DEFAULT_PATH, History, Image, ImageConfig};
use crate::digest::LayerId;
use crate::error::{Error, Result};
use crate::layer::LayerSource;
use crate::node;
use crate::reference::Reference;
use crate::scratch::Scratch;
use crate::store::{Store, check_count};
use crate::tree;

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
    /// Who made it; none leaves the base's.
    pub author: Option<String>,
    /// What to write into the history.
    pub comment: String,
    /// A configuration other than the base's.
    pub config: Option<ContainerConfig>,
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
    /// Makes an image of one layer from a tar archive, plain or gzipped, and names it.
    ///
    /// The archive is not trusted: see the crate's notes on archives. Nothing is left if it fails.
    pub fn import_tarball(
        &self,
        reference: &Reference,
        reader: impl Read + Send,
        options: &ImportOptions,
    ) -> Result<Image> {
        let promised = options.sha256.as_ref().map(|text| text.to_ascii_lowercase().parse()).transpose()?;
        let source = LayerSource {
            blob: promised.as_ref(),
            limits: options.limits.clone(),
            may_be_empty: false,
            ..LayerSource::new(&options.source)
        };
        let layer = self.unpack_layer(reader, &source)?;
        self.import(reference, layer, options)
    }

    /// Makes an image of one layer from a directory, and names it. Owners are kept as the id map shows them.
    pub fn import_directory(
        &self,
        reference: &Reference,
        directory: &Path,
        options: &ImportOptions,
    ) -> Result<Image> {
        self.import(reference, self.copy_as_layer(directory)?, options)
    }

    fn import(&self, reference: &Reference, layer: LayerId, options: &ImportOptions) -> Result<Image> {
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

    /// Makes a layer of a copy of a directory.
    fn copy_as_layer(&self, directory: &Path) -> Result<LayerId> {
        let scratch = Scratch::new(&self.tmp())?;
        let top = self.new_layer(&scratch)?;
        let open =
            |path: &Path| node::open_dir_path(path).map_err(|cause| Error::io("open directory", path, cause));
        let (from, to) = (open(directory)?, open(&top)?);
        tree::copy_tree(&from, &to, directory)?;
        crate::layer::copy_attributes(&from, &to).map_err(|cause| Error::io("copy", directory, cause))?;
        self.publish(&top)
    }

    /// Makes an image of a container's changes: a copy of its overlay's upper directory becomes a layer on
    /// top of the image it was started from.
    pub fn commit(&self, base: &Image, upper: &Path, options: &CommitOptions) -> Result<Image> {
        let mut config = base.config.clone();
        if let Some(changed) = &options.config {
            config.config = changed.clone();
        }
        if options.author.is_some() {
            config.author = options.author.clone();
        }
        config.rootfs.diff_ids.push(self.copy_as_layer(upper)?);
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
}
