//! How archives are packed, and what unpacks them.

use std::io::{self, BufReader, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

use crate::digest::{Digest, Hasher};

/// Most memory that a block of xz may ask for, KiB: four times what `xz -9` does. The format allows 4 GiB.
const XZ_MEMORY: u32 = 256 << 10;

/// How the bytes at the beginning of a file say it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
    Plain,
}

pub(crate) fn packing(start: &[u8]) -> Packing {
    match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        // The version, the size of blocks, and what the first block begins with; or the end, where there is none.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Packing::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
        // A frame, or one to be skipped (RFC 8878, 3.1), as the seekable forms begin with.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
        _ => Packing::Plain,
    }
}

/// What comes out of a packed blob.
pub(super) fn unpacked<'a>(
    packing: Packing,
    blob: BufReader<Counted<impl Read + 'a>>,
) -> io::Result<Box<dyn Source + 'a>> {
    Ok(match packing {
        Packing::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Packing::Zstd => Box::new(zstd::Decoder::with_buffer(blob)?),
        Packing::Xz => Box::new(XzReader::new_mem_limit(blob, true, XZ_MEMORY)),
        Packing::Bzip2 => Box::new(MultiBzDecoder::new(blob)),
        Packing::Plain => Box::new(blob),
    })
}

/// Counts and hashes a blob as it comes.
pub(super) struct Counted<R> {
    inner: R,
    count: u64,
    hasher: Option<Hasher>,
}

impl<R> Counted<R> {
    /// `hash`: its digest is wanted.
    pub(super) fn new(inner: R, hash: bool) -> Self {
        Self { inner, count: 0, hasher: hash.then(Hasher::new) }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count += length as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
        }
        Ok(length)
    }
}

/// A blob that is being unpacked.
pub(super) trait Source: Read {
    /// Bytes of the blob so far.
    fn packed(&self) -> u64;

    /// Reads the blob to its end; returns its digest, if that was wanted.
    fn finish(self: Box<Self>) -> io::Result<Option<Digest>>;
}

impl<R: Read> Source for BufReader<Counted<R>> {
    fn packed(&self) -> u64 {
        self.get_ref().count
    }

    fn finish(mut self: Box<Self>) -> io::Result<Option<Digest>> {
        io::copy(&mut *self, &mut io::sink())?;
        Ok(self.into_inner().hasher.map(Hasher::finish))
    }
}

impl<R: Read> Source for MultiGzDecoder<BufReader<Counted<R>>> {
    fn packed(&self) -> u64 {
        self.get_ref().packed()
    }

    fn finish(self: Box<Self>) -> io::Result<Option<Digest>> {
        Box::new(self.into_inner()).finish()
    }
}

impl<R: Read> Source for zstd::Decoder<'_, BufReader<Counted<R>>> {
    fn packed(&self) -> u64 {
        self.get_ref().packed()
    }

    fn finish(self: Box<Self>) -> io::Result<Option<Digest>> {
        // At its end it has read all there is.
        Box::new((*self).finish()).finish()
    }
}

impl<R: Read> Source for XzReader<BufReader<Counted<R>>> {
    fn packed(&self) -> u64 {
        self.inner().packed()
    }

    fn finish(self: Box<Self>) -> io::Result<Option<Digest>> {
        Box::new(self.into_inner()).finish()
    }
}

impl<R: Read> Source for MultiBzDecoder<BufReader<Counted<R>>> {
    fn packed(&self) -> u64 {
        self.get_ref().packed()
    }

    fn finish(self: Box<Self>) -> io::Result<Option<Digest>> {
        Box::new(self.into_inner()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Write;

    fn xz(plain: &[u8]) -> Vec<u8> {
        let options = lzma_rust2::XzOptions::with_preset(0);
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn bzip2(plain: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// What comes out of a blob, up to a megabyte, and whether it came to its end.
    fn read(blob: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let source = unpacked(packing(blob), BufReader::new(Counted::new(blob, false)));
        let good = source.and_then(|source| source.take(1 << 20).read_to_end(&mut bytes)).is_ok();
        (bytes, good)
    }

    #[test]
    fn beginnings() {
        for (start, is) in [
            (&b"\x1f\x8b\x08"[..], Packing::Gzip),
            (b"\x28\xb5\x2f\xfd", Packing::Zstd),
            (b"\x5f\x2a\x4d\x18", Packing::Zstd),
            (b"\xfd7zXZ\0", Packing::Xz),
            (b"BZh91AY&SY", Packing::Bzip2),
            (b"BZh0", Packing::Plain),
            (b"BZhou/", Packing::Plain),
            (b"", Packing::Plain),
        ] {
            assert_eq!(packing(start), is, "{start:?}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// Damage is an error, or shows in what comes out; it is nothing worse.
        #[test]
        fn damage_does_no_harm(
            plain: Vec<u8>, in_xz: bool, at: proptest::sample::Index, bit in 0_u8..8, cut: proptest::sample::Index,
        ) {
            let packed = if in_xz { xz(&plain) } else { bzip2(&plain) };
            proptest::prop_assert_eq!(read(&packed), (plain.clone(), true));
            // What is left is enough to be known by, and not all of it.
            let (_, whole) = read(&packed[..cut.index(packed.len()).max(10)]);
            proptest::prop_assert!(!whole);
            let mut flipped = packed.clone();
            flipped[at.index(packed.len())] ^= 1 << bit;
            drop(read(&flipped));
            drop(read(&[&packed[..], &flipped].concat()));
        }
    }
}
