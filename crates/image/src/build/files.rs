//! The files of an image, out of the store.

use std::io::{Read, Write};
use std::path::Path;

use crate::archive::{self, Limits};
use crate::digest::LayerId;
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::node;
use crate::scratch::Scratch;
use crate::store::Store;
use crate::tree;

impl Store {
    /// Writes all files of an image, as a container sees them, as one tar archive.
    pub fn export_files(&self, layers: &[LayerId], out: &mut dyn Write) -> Result<()> {
        let scratch = Scratch::new(&self.tmp())?;
        let top = self.new_layer(&scratch)?;
        self.copy_out(layers, "/", &top)?;
        let dir = node::open_dir_path(&top).map_err(|cause| Error::io("open directory", &top, cause))?;
        tree::write_tar(&dir, &top, out).map(drop)
    }
}

/// Unpacks what [`Store::export_files`] wrote, as files of one owner, into a directory.
pub fn unpack_files(archive: impl Read + Send, directory: &Path, owner: (u32, u32)) -> Result<()> {
    let writer = LayerWriter::open(&[], directory)?;
    let options = archive::Unpack {
        archive: "the image's files",
        limits: &Limits::default(),
        whiteouts: false,
        below: Path::new(""),
        sha256: None,
        owner: Some(owner),
        powers: false,
    };
    archive::unpack(archive, &options, &writer)
}
