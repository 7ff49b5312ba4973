//! Unpacking tar archives that nobody vouches for.

mod entry;
mod packing;
mod pipe;
pub(crate) mod tape;

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::{LayerWriter, recipe};

use tape::{Fault, Tape};

use packing::{Counted, unpacked};
pub(crate) use packing::{Packing, packing};
pub(crate) use pipe::{Promise, through};

/// How much an archive may hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most entries.
    pub entries: u64,
    /// Most bytes, unpacked, all files together.
    pub bytes: u64,
    /// How many times its packed size an archive may unpack to, beyond the first [`FREE_BYTES`].
    pub ratio: u64,
}

/// Bytes that any archive may unpack to, however small it is packed: what a layer of zeros is packed to says
/// nothing yet.
pub const FREE_BYTES: u64 = 1 << 30;

impl Default for Limits {
    /// Two million entries, 64 GiB, and 200 times the packed size: far more than any real image, less than a bomb
    /// unpacks to.
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 64 << 30, ratio: 200 }
    }
}

/// How an archive is unpacked.
pub(crate) struct Unpack<'a> {
    /// The archive's name for messages.
    pub(crate) archive: &'a str,
    pub(crate) limits: &'a Limits,
    /// `.wh.` entries mean deletions; otherwise they are refused.
    pub(crate) whiteouts: bool,
    /// Directory of the image that the entries' paths start from.
    pub(crate) below: &'a Path,
    /// SHA-256 of the whole file as it lies on disk, hexadecimal.
    pub(crate) sha256: Option<&'a str>,
    /// Replaces every owner in the archive.
    pub(crate) owner: Option<(u32, u32)>,
    /// Programs keep what lets others have their owner's rights: set-user-ID and set-group-ID bits, and capabilities.
    pub(crate) powers: bool,
}

/// Whether a file is a tar archive, plain or packed, so that `ADD` unpacks it.
pub(crate) fn is_archive(file: impl Read) -> io::Result<bool> {
    let mut file = BufReader::new(Counted::new(file, false));
    let mut block = Vec::new();
    let packing = packing(file.fill_buf()?);
    let read = unpacked(packing, file)?.take(512).read_to_end(&mut block);
    // Something packed that cannot be unpacked is copied as it is.
    if let (Packing::Plain, Err(cause)) = (packing, read) {
        return Err(cause);
    }
    let Ok(block) = <[u8; 512]>::try_from(block) else { return Ok(false) };
    Ok(block[0] != 0 && tape::Header(&block).check().is_ok())
}

/// Unpacks an archive into a layer. On an error the layer is left half made: its directory must go.
pub(crate) fn unpack(file: impl Read + Send, options: &Unpack<'_>, writer: &LayerWriter) -> Result<()> {
    let expected = options.sha256.map(|text| text.to_ascii_lowercase().parse()).transpose()?;
    let promise = Promise { name: options.archive, packed: expected.as_ref(), unpacked: None, hash: false };
    let found = through(file, &promise, options.limits, |tar| entries(tar, options, writer, None))?;
    if found.value.0 == 0 { Err(no_entries(options.archive)) } else { Ok(()) }
}

/// Compares checksums.
pub(crate) fn check(object: &str, expected: &str, found: &Digest) -> Result<()> {
    let expected = expected.strip_prefix("sha256:").unwrap_or(expected);
    if expected.eq_ignore_ascii_case(found.hex()) {
        return Ok(());
    }
    let (expected, found) = (expected.to_owned(), found.hex().to_owned());
    Err(Error::Checksum { object: object.to_owned(), expected, found })
}

/// The error of an archive without entries, where there should be some.
pub(crate) fn no_entries(archive: &str) -> Error {
    let problem = "it holds no entries, or is no tar archive".to_owned();
    Error::RefusedArchive { archive: archive.to_owned(), problem }
}

/// Unpacks the entries of a plain tar stream, up to the end of the stream. Returns how many there were, and the size
/// of their files, bytes.
pub(crate) fn entries(
    tar: &mut dyn BufRead,
    options: &Unpack<'_>,
    writer: &LayerWriter,
    recipe: Option<&mut recipe::Writer>,
) -> Result<(u64, u64)> {
    let refused = |problem: String| Error::RefusedArchive { archive: options.archive.to_owned(), problem };
    let mut tape = Tape::new(tar, options.limits.bytes, recipe);
    let mut state = entry::State::new(options, writer);
    let mut last: Option<String> = None;
    let mut count = 0_u64;
    while let Some(member) = tape.next().map_err(|fault| options.fault(last.as_deref(), fault))? {
        count += 1;
        if count > options.limits.entries {
            return Err(refused(format!("it holds more than {} entries", options.limits.entries)));
        }
        let name = display(&member.path);
        state.entry(&mut tape, &member, &name)?;
        last = Some(name);
    }
    state.set_dir_times()?;
    // Up to the end of the stream, so that a damaged end is noticed.
    tape.finish().map_err(|fault| options.fault(last.as_deref(), fault))?;
    Ok((count, state.size))
}

impl Unpack<'_> {
    /// An error of reading, after an entry.
    fn fault(&self, entry: Option<&str>, fault: Fault) -> Error {
        let archive = self.archive.to_owned();
        let source = match fault {
            Fault::TooLarge => {
                let problem = format!("it unpacks to more than {} bytes", self.limits.bytes);
                return Error::RefusedArchive { archive, problem };
            }
            Fault::Io(cause) => cause,
            Fault::Malformed(problem) => io::Error::new(io::ErrorKind::InvalidData, problem),
        };
        Error::DamagedArchive { archive, entry: entry.map(str::to_owned), source }
    }
}

pub(crate) fn display(path: &[u8]) -> String {
    // Control characters of a hostile name must not reach a terminal.
    String::from_utf8_lossy(path)
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}
