//! Recipes: what it takes, beside a layer's directory, to write the archive again that the layer came from.
//!
//! A recipe is the archive's bytes without the content of files, packed with zstd: a list of pieces that are either bytes
//! or the name of a file of the layer. What the directory does not hold (headers with their records, padding,
//! content that a later entry replaced, devices, attributes that are not ours to set) is bytes.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{self as kernel, Mode, OFlags, ResolveFlags};

const END: u8 = 0;
const LITERAL: u8 = 1;
const FILE: u8 = 2;
/// Bytes that are gathered before they become a piece.
const GATHERED: usize = 64 << 10;
/// Longest path of a file (`PATH_MAX`), and most bytes of one literal.
const LONGEST: u64 = 1 << 20;

/// Headers are mostly zeros, and hardly get smaller with more effort.
const LEVEL: i32 = 1;

/// A recipe in the making. An error of writing is kept until [`Writer::finish`].
pub(crate) struct Writer {
    out: zstd::Encoder<'static, BufWriter<File>>,
    literal: Vec<u8>,
    failed: Option<io::Error>,
    /// How many pieces have named a file.
    files: Rc<Cell<u64>>,
}

impl Writer {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let out = zstd::Encoder::new(BufWriter::with_capacity(GATHERED, file), LEVEL)?;
        Ok(Self { out, literal: Vec::with_capacity(GATHERED), failed: None, files: Rc::default() })
    }

    /// Bytes of the archive.
    pub(crate) fn literal(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let length = bytes.len().min(GATHERED - self.literal.len());
            self.literal.extend_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            if self.literal.len() == GATHERED {
                self.flush();
            }
        }
    }

    /// Bytes of the archive that are the content of a file, by its path in the layer.
    pub(crate) fn file(&mut self, path: &[u8], offset: u64, length: u64) {
        self.flush();
        let mut piece = vec![FILE];
        number(&mut piece, path.len() as u64);
        piece.extend_from_slice(path);
        number(&mut piece, offset);
        number(&mut piece, length);
        self.put(&piece);
        self.files.set(self.files.get() + 1);
    }

    /// How many pieces have named a file, counted on as they come.
    pub(crate) fn files(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.files)
    }

    fn flush(&mut self) {
        if self.literal.is_empty() {
            return;
        }
        let mut literal = std::mem::take(&mut self.literal);
        let mut head = vec![LITERAL];
        number(&mut head, literal.len() as u64);
        self.put(&head);
        self.put(&literal);
        literal.clear();
        self.literal = literal;
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.failed = self.out.write_all(bytes).err();
        }
    }

    pub(crate) fn finish(mut self) -> io::Result<File> {
        self.flush();
        self.put(&[END]);
        if let Some(cause) = self.failed {
            return Err(cause);
        }
        Ok(self.out.finish()?.into_inner()?)
    }
}

fn number(to: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// A piece of an archive.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    Literal(Vec<u8>),
    File { path: Vec<u8>, offset: u64, length: u64 },
}

/// Reads a recipe.
pub(crate) struct Pieces<R: Read>(BufReader<zstd::Decoder<'static, BufReader<R>>>);

impl<R: Read> Pieces<R> {
    pub(crate) fn new(recipe: R) -> io::Result<Self> {
        Ok(Self(BufReader::with_capacity(GATHERED, zstd::Decoder::new(recipe)?)))
    }

    pub(crate) fn next(&mut self) -> io::Result<Option<Piece>> {
        match self.byte()? {
            END => Ok(None),
            LITERAL => Ok(Some(Piece::Literal(self.bytes()?))),
            FILE => {
                let path = self.bytes()?;
                Ok(Some(Piece::File { path, offset: self.number()?, length: self.number()? }))
            }
            _ => Err(damaged()),
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let length = self.number()?;
        if length > LONGEST {
            return Err(damaged());
        }
        let mut bytes = vec![0; length as usize];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a recipe of a layer")
}

/// What later entries of an archive have taken the place of: files, and directories with what they held.
///
/// A piece names a file by the path at which it was made. Nodes that are replaced are moved aside under a number,
/// and the path and the time of that (counted in pieces) lead from the piece to where the content is now.
pub(crate) struct Aside {
    dir: OwnedFd,
    files: Rc<Cell<u64>>,
    events: HashMap<Vec<u8>, Vec<Event>>,
    count: u64,
}

struct Event {
    /// Pieces before this one mean the replaced node.
    files: u64,
    /// The name under which it lies aside.
    number: u64,
}

impl Aside {
    /// Moves to the directory `dir` what is replaced while `files` counts the pieces of a recipe.
    pub(crate) fn new(dir: OwnedFd, files: Rc<Cell<u64>>) -> Self {
        Self { dir, files, events: HashMap::new(), count: 0 }
    }

    /// Moves away what is at `path` in the layer: `name` in the directory `parent`.
    pub(crate) fn take(&mut self, parent: impl AsFd, name: &OsStr, path: &[u8]) -> io::Result<()> {
        self.count += 1;
        kernel::renameat(parent, name, &self.dir, self.count.to_string())?;
        let event = Event { files: self.files.get(), number: self.count };
        self.events.entry(path.to_vec()).or_default().push(event);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Where the content of the piece number `index` lies aside; none if it is still at its path.
    fn find(&self, path: &[u8], index: u64) -> Option<Vec<u8>> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let moved = ends.chain([path.len()]).filter_map(|end| {
            let event = self.events.get(&path[..end])?.iter().find(|event| event.files > index)?;
            Some((event.number, end))
        });
        // The first move is the one that took the file along.
        let (number, end) = moved.min()?;
        Some([number.to_string().as_bytes(), &path[end..]].concat())
    }

    /// Writes a recipe again, with the content that is nowhere else as bytes.
    pub(crate) fn rewrite(&self, recipe: impl Read, to: &mut Writer) -> io::Result<()> {
        let mut pieces = Pieces::new(recipe)?;
        let mut index = 0;
        let mut source = Source::new(&self.dir);
        while let Some(piece) = pieces.next()? {
            match piece {
                Piece::Literal(bytes) => to.literal(&bytes),
                Piece::File { path, offset, length } => {
                    match self.find(&path, index) {
                        None => to.file(&path, offset, length),
                        Some(aside) => source.copy(&aside, offset, length, &mut |bytes| {
                            to.literal(bytes);
                            Ok(())
                        })?,
                    }
                    index += 1;
                }
            }
        }
        Ok(())
    }
}

/// Writes the archive that a recipe describes, with the content of the files of a layer. Returns how much of it came
/// from files, bytes.
pub(crate) fn replay(recipe: impl Read, layer: impl AsFd, out: &mut dyn Write) -> io::Result<u64> {
    let mut pieces = Pieces::new(recipe)?;
    let mut source = Source::new(layer);
    let mut size = 0;
    while let Some(piece) = pieces.next()? {
        match piece {
            Piece::Literal(bytes) => out.write_all(&bytes)?,
            Piece::File { path, offset, length } => {
                source.copy(&path, offset, length, &mut |bytes| out.write_all(bytes))?;
                size += length;
            }
        }
    }
    Ok(size)
}

/// How long the archive is that a recipe describes, bytes.
pub(crate) fn length(recipe: impl Read) -> io::Result<u64> {
    let mut pieces = Pieces::new(recipe)?;
    let mut sum = 0;
    while let Some(piece) = pieces.next()? {
        sum += match piece {
            Piece::Literal(bytes) => bytes.len() as u64,
            Piece::File { length, .. } => length,
        };
    }
    Ok(sum)
}

/// Reads files below a directory. The one that was read last stays open: a sparse file has many pieces.
struct Source<D> {
    dir: D,
    open: Option<(Vec<u8>, File)>,
    buffer: Vec<u8>,
}

impl<D: AsFd> Source<D> {
    fn new(dir: D) -> Self {
        Self { dir, open: None, buffer: vec![0; 128 << 10] }
    }

    fn copy(
        &mut self,
        path: &[u8],
        mut offset: u64,
        mut length: u64,
        to: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let file = match self.open.take() {
            Some((open, file)) if open == path => file,
            _ => open_below(&self.dir, path)?.into(),
        };
        while length > 0 {
            let most = self.buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let read = match file.read_at(&mut self.buffer[..most], offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => return Err(cause),
            };
            to(&self.buffer[..read])?;
            offset += read as u64;
            length -= read as u64;
        }
        self.open = Some((path.to_vec(), file));
        Ok(())
    }
}

fn open_below(dir: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    let path = Path::new(OsStr::from_bytes(path));
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(kernel::openat2(dir, path, flags, Mode::empty(), resolve)?)
}
