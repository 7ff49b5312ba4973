//! What is in an image, read from its layers without mounting anything.

use std::io;
use std::path::{Path, PathBuf};

use crate::build::RunStep;
use crate::digest::LayerId;
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::node::{self, Attributes};
use crate::store::Store;
use crate::user::{self, User};
use crate::view::{Dir, Node, Resolved, View};

impl Store {
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
