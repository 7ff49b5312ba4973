//! Root file systems: an archive without layers becomes an image of one, and an image such an archive.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::config::{self, ContainerConfig, History, Image, ImageConfig};
use crate::digest::LayerId;
use crate::error::{Error, Result};
use crate::layer::LayerSource;
use crate::reference::Reference;
use crate::store::Store;
use crate::tree;
use crate::view::View;

impl Store {
    /// Makes an image of one layer of an archive, packed or not, with a configuration and a remark for its history.
    ///
    /// # Errors
    /// An archive that is damaged, empty, or holds what no layer may; the store's own.
    pub fn import_rootfs(
        &self,
        archive: impl Read + Send,
        name: &str,
        config: ContainerConfig,
        comment: &str,
        reference: Option<&Reference>,
    ) -> Result<Image> {
        let source = LayerSource { may_be_empty: false, ..LayerSource::new(name) };
        let layer = self.unpack_layer(archive, &source)?;
        let created = Some(config::now());
        let comment = Some(comment.to_owned());
        let history = vec![History { created: created.clone(), comment, ..History::default() }];
        let mut image = ImageConfig { created, config, history, ..ImageConfig::default() };
        image.rootfs.diff_ids.push(layer);
        let image = self.put_image(&image)?;
        if let Some(reference) = reference {
            self.tag(reference, &image.id)?;
        }
        Ok(image)
    }

    /// Writes the file system of an image as a plain archive, with a container's changes if `upper` names the
    /// directory of them. What the container deletes or cuts short meanwhile may be missing from it.
    ///
    /// # Errors
    /// When a file cannot be read, or `out` fails.
    pub fn write_rootfs(&self, layers: &[LayerId], upper: Option<&Path>, out: &mut dyn Write) -> Result<()> {
        let mut dirs: Vec<PathBuf> = self.layer_dirs(layers);
        dirs.extend(upper.map(Path::to_owned));
        let view = View::open(&dirs).map_err(|(path, cause)| Error::io("open layer", path, cause))?;
        tree::write_merged_tar(&view, Path::new("/"), out).map(drop)
    }
}
