//! Archives and directories of files that are found by their names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{self as kernel, FileType, Mode, OFlags, ResolveFlags};

use super::layout::blob_path;
use crate::archive::tape::{Fault, Kind, Tape};
use crate::archive::{self, Limits, Packing, Promise};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::node;
use crate::scratch::Scratch;

/// Links from one name of an archive to another that are followed.
const MAX_LINKS: usize = 8;
/// Longest name that is kept.
const MAX_NAME: usize = 512;

/// Where images come from.
#[derive(Debug)]
pub enum Incoming {
    /// A file, or a pipe: an archive, packed or not.
    Archive(File),
    /// An OCI layout's directory, by a path that this process can open.
    Directory(PathBuf),
}

/// Files by name: an archive on disk with a table of contents, or a directory.
pub(super) struct Bundle {
    name: String,
    limits: Limits,
    files: Files,
}

enum Files {
    Directory(OwnedFd),
    Archive {
        file: Arc<File>,
        places: BTreeMap<String, Place>,
        /// Where the unpacked archive lies, if it came packed or through a pipe.
        _scratch: Option<Scratch>,
    },
}

enum Place {
    Content { offset: u64, length: u64 },
    Link(String),
}

impl Bundle {
    /// Opens what comes in. An archive that is packed or comes through a pipe is unpacked to a scratch directory,
    /// because what it begins with may only be understood by what it ends with.
    pub(super) fn open(
        incoming: Incoming,
        name: &str,
        tmp: &std::path::Path,
        limits: &Limits,
    ) -> Result<Self> {
        let (name, limits) = (name.to_owned(), limits.clone());
        let mut file = match incoming {
            Incoming::Directory(path) => {
                let dir = node::open_dir_path(&path);
                let dir = dir.map_err(|cause| Error::io("open directory", &path, cause))?;
                return Ok(Self { name, limits, files: Files::Directory(dir) });
            }
            Incoming::Archive(file) => file,
        };
        let fail = |cause: io::Error| Error::io("read", &name, cause);
        let (file, scratch) = if is_plain(&mut file).map_err(fail)? {
            (file, None)
        } else {
            let scratch = Scratch::new(tmp)?;
            let path = scratch.path().join("archive");
            let fail = |cause: io::Error| Error::io("write", &path, cause);
            let unpacked = File::options().read(true).write(true).create_new(true).open(&path);
            let mut unpacked = unpacked.map_err(fail)?;
            let promise = Promise { name: &name, packed: None, unpacked: None, hash: false };
            archive::through(file, &promise, &limits, |tar| {
                let mut left = limits.bytes;
                loop {
                    let bytes = tar.fill_buf().map_err(|cause| damaged(&name, None, cause))?;
                    let length = bytes.len();
                    if length == 0 {
                        return Ok(());
                    }
                    left = left.checked_sub(length as u64).ok_or_else(|| too_large(&name, &limits))?;
                    unpacked.write_all(bytes).map_err(fail)?;
                    tar.consume(length);
                }
            })?;
            unpacked.rewind().map_err(fail)?;
            (unpacked, Some(scratch))
        };
        let places = contents(&file, &name, &limits)?;
        Ok(Self { name, limits, files: Files::Archive { file: Arc::new(file), places, _scratch: scratch } })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn refuse(&self, problem: impl Into<String>) -> Error {
        Error::RefusedArchive { archive: self.name.clone(), problem: problem.into() }
    }

    pub(super) fn missing(&self, path: &str) -> Error {
        self.refuse(format!("`{}` is missing", archive::display(path.as_bytes())))
    }

    /// Compares the digest of one of the files.
    pub(super) fn check(&self, path: &str, expected: &Digest, found: &Digest) -> Result<()> {
        archive::check(&format!("{}, {path}", self.name), expected.hex(), found)
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, path: &str) -> Result<bool> {
        Ok(self.open_file(path)?.is_some())
    }

    /// A small file, whole; none if there is none of this name.
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some((reader, length)) = self.open_file(path)? else { return Ok(None) };
        if length > limit {
            return Err(self.refuse(format!("`{path}` has more than {limit} bytes")));
        }
        let mut content = Vec::new();
        let read = reader.take(limit).read_to_end(&mut content);
        read.map_err(|cause| damaged(&self.name, Some(path), cause))?;
        Ok(Some(content))
    }

    /// A small blob, whole, and what its digest and size say.
    pub(super) fn read_blob(&self, digest: &Digest, size: u64, limit: u64) -> Result<Vec<u8>> {
        let path = blob_path(digest);
        let content = self.read(&path, limit)?.ok_or_else(|| self.missing(&path))?;
        self.check_size(&path, size, content.len() as u64)?;
        self.check(&path, digest, &Digest::of(&content))?;
        Ok(content)
    }

    pub(super) fn check_size(&self, path: &str, expected: u64, found: u64) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(self.refuse(format!("`{path}` has {found} bytes, but {expected} were promised")))
    }

    /// A file to be read on any thread, and its length; none if there is none of this name.
    pub(super) fn open_file(&self, path: &str) -> Result<Option<(Section, u64)>> {
        match &self.files {
            Files::Directory(dir) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = match kernel::openat2(dir, path, flags, Mode::empty(), resolve) {
                    Ok(file) => file,
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                    Err(errno) => return Err(Error::io("open", format!("{}/{path}", self.name), errno)),
                };
                let stat = kernel::fstat(&file)
                    .map_err(|errno| Error::io("look up", format!("{}/{path}", self.name), errno))?;
                if node::kind(&stat) != FileType::RegularFile {
                    return Err(self.refuse(format!("`{path}` is no regular file")));
                }
                let length = u64::try_from(stat.st_size).unwrap_or(0);
                let file = Arc::new(File::from(file));
                Ok(Some((Section { file, offset: 0, end: length }, length)))
            }
            Files::Archive { file, places, .. } => {
                let mut path = normal(path);
                for _ in 0..MAX_LINKS {
                    match places.get(&path) {
                        None => return Ok(None),
                        Some(Place::Content { offset, length }) => {
                            let (file, offset, end) = (Arc::clone(file), *offset, offset + length);
                            return Ok(Some((Section { file, offset, end }, *length)));
                        }
                        Some(Place::Link(target)) => path = target.clone(),
                    }
                }
                Err(self.refuse(format!("`{path}` is a link that leads nowhere")))
            }
        }
    }
}

/// A part of a file, read from its beginning.
pub(super) struct Section {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.end - self.offset).unwrap_or(usize::MAX));
        let length = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

/// Whether a file is an archive that is not packed, and can be read from any place.
fn is_plain(file: &mut File) -> io::Result<bool> {
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    // Somebody may have handed us a file of which they have read a part.
    let at = file.stream_position()?;
    let mut start = [0; 8];
    let length = file.read_at(&mut start, at)?;
    Ok(at == 0 && archive::packing(&start[..length]) == Packing::Plain && length > 0)
}

fn too_large(name: &str, limits: &Limits) -> Error {
    let problem = format!("it unpacks to more than {} bytes", limits.bytes);
    Error::RefusedArchive { archive: name.to_owned(), problem }
}

fn damaged(name: &str, entry: Option<&str>, source: io::Error) -> Error {
    Error::DamagedArchive { archive: name.to_owned(), entry: entry.map(str::to_owned), source }
}

/// The table of contents of an archive. Of two files with one name the later counts.
fn contents(file: &File, name: &str, limits: &Limits) -> Result<BTreeMap<String, Place>> {
    let length = file.metadata().map_err(|cause| Error::io("look up", name, cause))?.len();
    let mut tape = Tape::new(BufReader::with_capacity(1 << 20, file), limits.bytes, None);
    let mut places = BTreeMap::new();
    let mut last: Option<String> = None;
    let fault = |last: &Option<String>, fault: Fault| match fault {
        Fault::Io(cause) => damaged(name, last.as_deref(), cause),
        Fault::Malformed(problem) => {
            damaged(name, last.as_deref(), io::Error::new(io::ErrorKind::InvalidData, problem))
        }
        Fault::TooLarge => too_large(name, limits),
    };
    let mut count = 0;
    while let Some(member) = tape.next().map_err(|error| fault(&last, error))? {
        count += 1;
        if count > limits.entries {
            let problem = format!("it holds more than {} entries", limits.entries);
            return Err(Error::RefusedArchive { archive: name.to_owned(), problem });
        }
        let text = String::from_utf8_lossy(&member.path);
        let path = normal(&text);
        last = Some(archive::display(&member.path));
        let target = String::from_utf8_lossy(&member.link);
        let place = match member.kind {
            _ if path.len() > MAX_NAME || target.len() > MAX_NAME => continue,
            Kind::File if member.sparse.is_none() => {
                Place::Content { offset: tape.position(), length: member.size }
            }
            // Older archives have a layer that several images share once, and links to it.
            Kind::Link => {
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                Place::Link(normal(&format!("{parent}/{target}")))
            }
            Kind::HardLink => Place::Link(normal(&target)),
            _ => continue,
        };
        if let Place::Content { offset, length: held } = &place
            && offset.saturating_add(*held) > length
        {
            return Err(damaged(name, last.as_deref(), io::ErrorKind::UnexpectedEof.into()));
        }
        places.insert(path, place);
    }
    if count == 0 {
        return Err(archive::no_entries(name));
    }
    Ok(places)
}

/// A name without `.`, `..` and what is not needed; it leads to nothing but an entry of the table.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::normal;

    #[test]
    fn names_stay_inside() {
        for (path, shown) in [
            ("./a//b", "a/b"),
            ("a/../../b", "b"),
            ("/etc", "etc"),
            ("x/../y/layer.tar", "y/layer.tar"),
            ("", ""),
        ] {
            assert_eq!(normal(path), shown);
        }
    }
}
