//! Layers as blobs: packed, with size and digest.

use std::io::{self, Write};

use flate2::write::GzEncoder;

use crate::digest::{Digest, Hashed, LayerId};
use crate::error::{Error, Result};
use crate::store::Store;

/// Effort of gzip: its own default, which registries and other tools use, too.
const GZIP_LEVEL: u32 = 6;
/// Effort of zstd, its own default.
const ZSTD_LEVEL: i32 = 3;

/// How a layer is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// With gzip; its header holds no time, so that the same layer gives the same bytes.
    #[default]
    Gzip,
    /// With zstd.
    Zstd,
}

impl Compression {
    /// The media type of a layer that is packed like this (image-spec, `layer.md`).
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A blob that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Digest of its bytes.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
}

impl Store {
    /// Writes a layer's archive, packed, and says what was written. The same layer gives the same bytes.
    ///
    /// # Errors
    /// As for [`Store::write_layer_tar`].
    pub fn write_layer_blob(
        &self,
        layer: &LayerId,
        compression: Compression,
        out: &mut dyn Write,
    ) -> Result<BlobInfo> {
        let fail = |cause: io::Error| Error::io("pack", self.layer_path(layer), cause);
        let mut out = Hashed::new(out);
        match compression {
            Compression::None => self.write_layer_tar(layer, &mut out)?,
            Compression::Gzip => {
                let mut gzip = GzEncoder::new(&mut out, flate2::Compression::new(GZIP_LEVEL));
                self.write_layer_tar(layer, &mut gzip)?;
                gzip.finish().map_err(fail)?;
            }
            Compression::Zstd => {
                let mut zstd = zstd::Encoder::new(&mut out, ZSTD_LEVEL).map_err(fail)?;
                self.write_layer_tar(layer, &mut zstd)?;
                zstd.finish().map_err(fail)?;
            }
        }
        let (digest, size) = out.finish();
        Ok(BlobInfo { digest, size })
    }
}
