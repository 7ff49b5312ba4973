//! Root file systems out of the store: no layers any more, one archive.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::digest::LayerId;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::tree;
use crate::view::View;

impl Store {
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
