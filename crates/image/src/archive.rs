//! Unpacking tar archives that nobody vouches for.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use tar::EntryType;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::node::{self, Attributes};
use crate::tree::{OPAQUE_WHITEOUT, WHITEOUT};

/// How much an archive may hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most entries.
    pub entries: u64,
    /// Most bytes, unpacked, all files together.
    pub bytes: u64,
}

impl Default for Limits {
    /// Two million entries and 64 GiB: far more than any real image, less than a bomb unpacks to.
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 64 << 30 }
    }
}

/// Bytes that headers and padding between the content of two files may take: long names and extended
/// attributes are far smaller, and the tar reader keeps them in memory.
const HEADER_BYTES: u64 = 2 << 20;
/// Deepest path of an entry.
const MAX_COMPONENTS: usize = node::MAX_DEPTH;

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
}

/// What the reader may still take before it has to stop, shared with the loop over the entries.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too much data for one header"));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let length = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - length as u64);
        Ok(length)
    }
}

/// Hashes what passes.
struct Hashed<R> {
    inner: R,
    hasher: Option<Hasher>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
        }
        Ok(length)
    }
}

/// How the bytes at the beginning of a file say it is packed.
enum Packing {
    Gzip,
    Plain,
    Unsupported(&'static str),
}

fn packing(start: &[u8]) -> Packing {
    match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [b'B', b'Z', b'h', ..] => Packing::Unsupported("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Unsupported("xz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Unsupported("zstd"),
        _ => Packing::Plain,
    }
}

/// Whether a file is a tar archive, plain or packed, so that `ADD` unpacks it.
pub(crate) fn is_archive(file: impl Read) -> io::Result<bool> {
    let mut file = BufReader::new(file);
    let mut block = Vec::new();
    match packing(file.fill_buf()?) {
        // Read, and refused with a clear message, rather than copied as it is.
        Packing::Unsupported(_) => return Ok(true),
        // Something gzipped that cannot be unpacked is copied as it is.
        Packing::Gzip => drop(MultiGzDecoder::new(file).take(512).read_to_end(&mut block)),
        Packing::Plain => drop(file.take(512).read_to_end(&mut block)?),
    }
    let Ok(block) = <[u8; 512]>::try_from(block) else { return Ok(false) };
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(&block);
    let Ok(stored) = header.cksum() else { return Ok(false) };
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    Ok(stored == sum && block[0] != 0)
}

/// Unpacks an archive into a layer. On an error the layer is left half made: its directory must go.
pub(crate) fn unpack(file: impl Read, options: &Unpack<'_>, writer: &LayerWriter) -> Result<()> {
    let hasher = options.sha256.map(|_| Hasher::new());
    let mut file = BufReader::with_capacity(128 * 1024, Hashed { inner: file, hasher });
    let damaged = |entry: Option<String>, source: io::Error| Error::DamagedArchive {
        archive: options.archive.to_owned(),
        entry,
        source,
    };
    let refused = |problem: String| Error::RefusedArchive { archive: options.archive.to_owned(), problem };
    let start = file.fill_buf().map_err(|cause| damaged(None, cause))?;
    if start.is_empty() {
        return Err(refused("the file is empty".to_owned()));
    }
    match packing(start) {
        Packing::Gzip => entries(MultiGzDecoder::new(&mut file), options, writer)?,
        Packing::Plain => entries(&mut file, options, writer)?,
        Packing::Unsupported(name) => {
            return Err(refused(format!("it is packed with {name}; only gzip and plain tar are read")));
        }
    }
    // The checksum covers what lies behind the end mark too.
    io::copy(&mut file, &mut io::sink()).map_err(|cause| damaged(None, cause))?;
    if let (Some(expected), Some(hasher)) = (options.sha256, file.into_inner().hasher) {
        check(options.archive, expected, &hasher.finish())?;
    }
    Ok(())
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

fn entries(reader: impl Read, options: &Unpack<'_>, writer: &LayerWriter) -> Result<()> {
    let left = Rc::new(Cell::new(HEADER_BYTES));
    let mut archive = tar::Archive::new(Metered { inner: reader, left: Rc::clone(&left) });
    let mut state = State { options, writer, bytes: options.limits.bytes, dir_times: BTreeMap::new() };
    let mut last: Option<String> = None;
    let mut count = 0_u64;
    let damaged = |entry: &Option<String>, source: io::Error| Error::DamagedArchive {
        archive: options.archive.to_owned(),
        entry: entry.clone(),
        source,
    };
    let mut entries = archive.entries().map_err(|cause| damaged(&None, cause))?;
    loop {
        left.set(HEADER_BYTES);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|cause| damaged(&last, cause))?;
        count += 1;
        if count > options.limits.entries {
            let problem = format!("it holds more than {} entries", options.limits.entries);
            return Err(Error::RefusedArchive { archive: options.archive.to_owned(), problem });
        }
        // The content has a limit of its own, counted as it is read.
        left.set(u64::MAX);
        let name = display(&entry.path_bytes());
        state.entry(&mut entry, &name)?;
        // What an entry holds beyond what was used of it counts as well.
        let rest = io::copy(&mut entry.take(state.bytes.saturating_add(1)), &mut io::sink());
        let rest = rest.map_err(|cause| damaged(&Some(name.clone()), cause))?;
        state.count(rest, &name)?;
        last = Some(name);
    }
    state.set_dir_times()?;
    if count == 0 {
        let problem = "it holds no entries, or is no tar archive".to_owned();
        return Err(Error::RefusedArchive { archive: options.archive.to_owned(), problem });
    }
    // Up to the end of the stream, so that a damaged end is noticed.
    let mut reader = archive.into_inner();
    left.set(options.limits.bytes);
    io::copy(&mut reader, &mut io::sink()).map_err(|cause| damaged(&last, cause))?;
    Ok(())
}

fn display(path: &[u8]) -> String {
    // Control characters of a hostile name must not reach a terminal.
    String::from_utf8_lossy(path)
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

struct State<'a> {
    options: &'a Unpack<'a>,
    writer: &'a LayerWriter,
    bytes: u64,
    /// Set at the end: writing into a directory changes its time.
    dir_times: BTreeMap<PathBuf, (i64, i64)>,
}

impl State<'_> {
    fn refuse<T>(&self, entry: &str, problem: impl Into<String>) -> Result<T> {
        let (archive, entry) = (self.options.archive.to_owned(), entry.to_owned());
        Err(Error::RefusedEntry { archive, entry, problem: problem.into() })
    }

    fn count(&mut self, bytes: u64, entry: &str) -> Result<()> {
        match self.bytes.checked_sub(bytes) {
            Some(left) => {
                self.bytes = left;
                Ok(())
            }
            None => self.refuse(
                entry,
                format!("the archive unpacks to more than {} bytes", self.options.limits.bytes),
            ),
        }
    }

    /// A path of the archive as one of the image: absolute names count from the root as with Docker, and
    /// `..` is refused wherever it stands.
    fn clean(&self, raw: &[u8], entry: &str, what: &str) -> Result<PathBuf> {
        if raw.contains(&0) {
            return self.refuse(entry, format!("{what} holds a NUL byte"));
        }
        let mut path = PathBuf::new();
        for component in Path::new(OsStr::from_bytes(raw)).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::RootDir | Component::CurDir => {}
                _ => {
                    return self
                        .refuse(entry, format!("{what} holds `..`, which could lead out of the image"));
                }
            }
        }
        if path.components().count() > MAX_COMPONENTS {
            return self.refuse(entry, format!("{what} is nested more than {MAX_COMPONENTS} deep"));
        }
        Ok(path)
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, name: &str) -> Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let inside = self.clean(&entry.path_bytes(), name, "its name")?;
        let path = self.options.below.join(&inside);
        let last = inside.file_name().map(|last| last.as_bytes().to_vec()).unwrap_or_default();
        if inside.components().any(|part| part.as_os_str().as_bytes().starts_with(WHITEOUT)) {
            return self.whiteout(&path, &last, name);
        }
        let attributes = self.attributes(entry, name)?;
        let unpack = |source: Error| match source {
            // These name archive and entry themselves.
            Error::DamagedArchive { .. } | Error::RefusedEntry { .. } => source,
            source => Error::Unpack {
                archive: self.options.archive.to_owned(),
                entry: name.to_owned(),
                source: Box::new(source),
            },
        };
        match kind {
            EntryType::Directory => {
                self.writer.put_dir(&path, &attributes, true).map_err(unpack)?;
                if let Some(time) = attributes.mtime {
                    self.dir_times.insert(path, time);
                }
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                // Very old archives mark a directory by a slash at the end.
                if entry.path_bytes().ends_with(b"/") {
                    return self.writer.put_dir(&path, &attributes, true).map_err(unpack);
                }
                self.file(entry, &path, &attributes, name)
            }
            EntryType::Symlink => {
                let target = self.link_name(entry, name)?;
                if target.is_empty() || target.contains(&0) {
                    return self.refuse(name, "the target of the link is empty or holds a NUL byte");
                }
                self.writer.put_link(&path, OsStr::from_bytes(&target), &attributes).map_err(unpack)
            }
            EntryType::Link => {
                let target = self.link_name(entry, name)?;
                let target =
                    self.options.below.join(self.clean(&target, name, "the target of the hard link")?);
                if self.writer.put_hard_link(&path, &target).map_err(unpack)? {
                    return Ok(());
                }
                self.refuse(
                    name,
                    format!(
                        "the hard link's target `{}` is no file of the image",
                        display(target.as_os_str().as_bytes())
                    ),
                )
            }
            EntryType::Fifo => self.writer.put_pipe(&path, &attributes).map_err(unpack),
            EntryType::Char | EntryType::Block => {
                // A container gets a /dev of its own, so what an image brings there is never seen.
                if path.starts_with("dev") || path.starts_with("/dev") {
                    tracing::debug!(archive = self.options.archive, entry = name, "device node left out");
                    return Ok(());
                }
                self.refuse(name, "it is a device node, which an image may hold in /dev only")
            }
            other => self
                .refuse(name, format!("entries of type {:?} are not supported", char::from(other.as_byte()))),
        }
    }

    fn whiteout(&mut self, path: &Path, last: &[u8], name: &str) -> Result<()> {
        if !self.options.whiteouts {
            return self.refuse(name, "names that begin with `.wh.` are reserved for deleted files");
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        let Some(hidden) = last.strip_prefix(WHITEOUT) else {
            return self
                .refuse(name, "a directory's name begins with `.wh.`, which is reserved for deleted files");
        };
        if last == OPAQUE_WHITEOUT {
            return self.writer.put_opaque(parent);
        }
        if hidden.starts_with(WHITEOUT) {
            // AUFS' own records, which Docker leaves out too.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return self.refuse(name, "it marks no file as deleted");
        }
        self.writer.put_whiteout(&parent.join(OsStr::from_bytes(hidden)))
    }

    fn link_name<R: Read>(&self, entry: &tar::Entry<'_, R>, name: &str) -> Result<Vec<u8>> {
        match entry.link_name_bytes() {
            Some(target) => Ok(target.into_owned()),
            None => self.refuse(name, "it is a link without a target"),
        }
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        path: &Path,
        attributes: &Attributes,
        name: &str,
    ) -> Result<()> {
        let (writer, options) = (self.writer, self.options);
        let mut buffer = vec![0; 128 * 1024];
        let wrap = |source: Error| Error::Unpack {
            archive: options.archive.to_owned(),
            entry: name.to_owned(),
            source: Box::new(source),
        };
        let mut fill = |file: &mut std::fs::File| {
            loop {
                let length = match entry.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(length) => length,
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                    Err(source) => {
                        let (archive, entry) = (options.archive.to_owned(), Some(name.to_owned()));
                        return Err(Error::DamagedArchive { archive, entry, source });
                    }
                };
                self.count(length as u64, name)?;
                file.write_all(&buffer[..length]).map_err(|cause| writer.fail("write", path, cause))?;
            }
        };
        writer.put_file(path, attributes, &mut fill).map_err(|error| match error {
            Error::DamagedArchive { .. } | Error::RefusedEntry { .. } => error,
            error => wrap(error),
        })
    }

    fn attributes<R: Read>(&self, entry: &mut tar::Entry<'_, R>, name: &str) -> Result<Attributes> {
        let damaged = |source: io::Error| Error::DamagedArchive {
            archive: self.options.archive.to_owned(),
            entry: Some(name.to_owned()),
            source,
        };
        let header = entry.header();
        let mode = header.mode().map_err(damaged)? & 0o7777;
        let uid = header.uid().map_err(damaged)?;
        let gid = header.gid().map_err(damaged)?;
        let mtime = header.mtime().map_err(damaged)?;
        let (Ok(mut uid), Ok(mut gid)) = (u32::try_from(uid), u32::try_from(gid)) else {
            return self.refuse(name, format!("its owner {uid}:{gid} is out of range"));
        };
        let mut mtime = (i64::try_from(mtime).unwrap_or(0), 0);
        let mut xattrs: BTreeMap<OsString, Vec<u8>> = BTreeMap::new();
        if let Some(records) = entry.pax_extensions().map_err(damaged)? {
            for record in records {
                let record = record.map_err(damaged)?;
                let (key, value) = (record.key_bytes(), record.value_bytes());
                match key {
                    b"mtime" => mtime = pax_time(value).unwrap_or(mtime),
                    b"uid" => uid = number(value).unwrap_or(uid),
                    b"gid" => gid = number(value).unwrap_or(gid),
                    _ => {
                        let Some(xattr) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
                        // Others are the host's business (labels) or overlayfs' own marks.
                        let wanted = xattr.starts_with(b"user.") || xattr == b"security.capability";
                        if wanted && !node::is_private_xattr(xattr) && !xattr.contains(&0) {
                            xattrs.insert(OsString::from_vec(xattr.to_vec()), value.to_vec());
                        }
                    }
                }
            }
        }
        if let Some(owner) = self.options.owner {
            (uid, gid) = owner;
        }
        if uid == u32::MAX || gid == u32::MAX {
            return self.refuse(name, "its owner is no valid id");
        }
        Ok(Attributes { mode, uid, gid, mtime: Some(mtime), xattrs: xattrs.into_iter().collect() })
    }

    fn set_dir_times(&self) -> Result<()> {
        for (path, time) in &self.dir_times {
            self.writer.set_dir_time(path, *time)?;
        }
        Ok(())
    }
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional fraction, as pax writes times.
fn pax_time(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    // A time before 1970 with a fraction counts upwards from the second below.
    if text.starts_with('-') && nanoseconds > 0 {
        return Some((seconds - 1, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}
