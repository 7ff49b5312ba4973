//! Layer directories as they lie on disk: copied, cleaned, and turned into their canonical tar stream.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self as kernel, AtFlags, FileType, Mode, Stat};

use crate::digest::{Hasher, LayerId};
use crate::error::{Error, Result};
use crate::layer::{bytes, copy_attributes};
use crate::node::{self, Attributes, MAX_DEPTH};
use crate::view::{Dir, Node, View};

/// Prefix of whiteouts in archives (image-spec, `layer.md`); no real file of a layer may bear it.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// An archive's mark of an opaque directory.
pub(crate) const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";

/// Where a hard-linked file was met first, by device and inode.
type Seen = HashMap<(u64, u64), PathBuf>;

fn first_seen(seen: &mut Seen, stat: &Stat, path: &Path) -> Option<PathBuf> {
    if stat.st_nlink < 2 {
        return None;
    }
    match seen.entry((stat.st_dev, stat.st_ino)) {
        std::collections::hash_map::Entry::Occupied(first) => Some(first.get().clone()),
        std::collections::hash_map::Entry::Vacant(slot) => {
            slot.insert(path.to_owned());
            None
        }
    }
}

fn refuse(path: &Path, problem: impl Into<String>) -> Error {
    Error::RefusedFile { path: path.to_owned(), problem: problem.into() }
}

fn check_depth(path: &Path, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(refuse(path, format!("directories are nested more than {MAX_DEPTH} deep")));
    }
    Ok(())
}

fn check_name(path: &Path, name: &OsStr) -> Result<()> {
    if name.as_bytes().starts_with(WHITEOUT) {
        return Err(refuse(path, "names that begin with `.wh.` are reserved for deleted files"));
    }
    Ok(())
}

/// Copies a tree as it is, whiteouts and opaque marks included, into an empty directory.
///
/// Attributes of overlayfs and sockets are left behind. `chown` replaces every owner.
pub(crate) fn copy_tree(from: &OwnedFd, to: &OwnedFd, name: &Path) -> Result<()> {
    let mut seen = Seen::new();
    copy_dir(from, to, to, Path::new(""), &mut seen, 0).map_err(|fault| fault.named(name))
}

/// An error together with the path inside the tree.
struct Fault {
    path: PathBuf,
    cause: FaultCause,
}

enum FaultCause {
    Io(io::Error),
    Refused(Box<Error>),
}

impl Fault {
    fn named(self, tree: &Path) -> Error {
        match self.cause {
            FaultCause::Io(cause) => Error::io("copy", tree.join(self.path), cause),
            FaultCause::Refused(error) => *error,
        }
    }
}

fn copy_dir(
    from: &OwnedFd,
    to: &OwnedFd,
    root: &OwnedFd,
    path: &Path,
    seen: &mut Seen,
    depth: usize,
) -> Result<(), Fault> {
    let fault = |at: &Path, cause: io::Error| Fault { path: at.to_owned(), cause: FaultCause::Io(cause) };
    let refused = |error: Error| Fault { path: path.to_owned(), cause: FaultCause::Refused(Box::new(error)) };
    check_depth(path, depth).map_err(refused)?;
    for name in node::names(from).map_err(|cause| fault(path, cause))? {
        let at = path.join(&name);
        check_name(&at, &name).map_err(refused)?;
        // A running container may delete a file while we look.
        let Some(stat) = node::stat(from, &name).map_err(|cause| fault(&at, cause))? else { continue };
        if node::is_dir(&stat) {
            let child = node::open_dir(from, &name).map_err(|cause| fault(&at, cause))?;
            let made = node::make_dir(to, &name).map_err(|cause| fault(&at, cause))?;
            copy_dir(&child, &made, root, &at, seen, depth + 1)?;
            if node::is_opaque(&child).map_err(|cause| fault(&at, cause))? {
                node::set_opaque(&made).map_err(|cause| fault(&at, cause))?;
            }
            copy_attributes(&child, &made).map_err(|cause| fault(&at, cause))?;
        } else if let Some(first) = first_seen(seen, &stat, &at) {
            kernel::linkat(root, &first, to, &*name, AtFlags::empty())
                .map_err(|errno| fault(&at, errno.into()))?;
        } else if !copy_leaf(from, to, &name, &stat).map_err(|cause| fault(&at, cause))? {
            return Err(refused(refuse(&at, "it is a device")));
        }
    }
    Ok(())
}

/// Copies what is no directory; false for a device. Sockets are dropped: nobody listens on a copy.
fn copy_leaf(from: &OwnedFd, to: &OwnedFd, name: &OsStr, stat: &Stat) -> io::Result<bool> {
    let mut attributes = Attributes::of(stat);
    match node::kind(stat) {
        FileType::RegularFile => {
            let mut source = node::open_file(from, name)?;
            let mut target = node::create_file(to, name)?;
            io::copy(&mut source, &mut target)?;
            attributes.xattrs = node::xattrs(&source)?;
            node::set_attributes(&target, &attributes)?;
        }
        FileType::Symlink => {
            kernel::symlinkat(&*node::read_link(from, name)?, to, name)?;
            node::set_attributes_at(to, name, &attributes)?;
        }
        FileType::Fifo => {
            kernel::mknodat(to, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            node::set_attributes_at(to, name, &attributes)?;
        }
        FileType::Socket => {}
        FileType::CharacterDevice if node::is_whiteout(stat) => node::make_whiteout(to, name)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Makes an overlay's upper directory fit to be a layer: drops sockets and what overlayfs keeps for itself.
///
/// True if the directory holds anything at all.
pub(crate) fn clean_upper(dir: &OwnedFd, name: &Path) -> Result<bool> {
    clean_dir(dir, name, Path::new(""), 0)?;
    let rest = node::names(dir).map_err(|cause| Error::io("read directory", name, cause))?;
    Ok(!rest.is_empty())
}

fn clean_dir(dir: &OwnedFd, tree: &Path, path: &Path, depth: usize) -> Result<()> {
    let fail = |at: &Path, cause: io::Error| Error::io("clean up", tree.join(at), cause);
    check_depth(path, depth)?;
    for xattr in node::xattr_names(dir).map_err(|cause| fail(path, cause))? {
        if xattr.as_bytes().starts_with(b"user.overlay.") && xattr != "user.overlay.opaque" {
            kernel::fremovexattr(dir, &*xattr).map_err(|errno| fail(path, errno.into()))?;
        }
    }
    for name in node::names(dir).map_err(|cause| fail(path, cause))? {
        let at = path.join(&name);
        let Some(stat) = node::stat(dir, &name).map_err(|cause| fail(&at, cause))? else { continue };
        match node::kind(&stat) {
            FileType::Directory => {
                let child = node::open_dir(dir, &name).map_err(|cause| fail(&at, cause))?;
                clean_dir(&child, tree, &at, depth + 1)?;
            }
            FileType::Socket => {
                kernel::unlinkat(dir, &*name, AtFlags::empty()).map_err(|errno| fail(&at, errno.into()))?;
            }
            FileType::RegularFile => {
                let file = node::open_file(dir, &name).map_err(|cause| fail(&at, cause))?;
                for xattr in node::xattr_names(&file).map_err(|cause| fail(&at, cause))? {
                    if xattr.as_bytes().starts_with(b"user.overlay.") {
                        kernel::fremovexattr(&file, &*xattr).map_err(|errno| fail(&at, errno.into()))?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The DiffID of a layer directory, and the size of its files in bytes.
pub(crate) fn identify(dir: &OwnedFd, name: &Path) -> Result<(LayerId, u64)> {
    let mut hasher = Hasher::new();
    let size = write_tar(dir, name, &mut hasher)?;
    Ok((hasher.finish(), size))
}

/// Writes a layer directory as a tar archive in OCI's form: names sorted, whiteouts as `.wh.` files,
/// owners as the id map shows them, whole seconds. Equal directories give equal bytes. Returns the
/// size of the files in it.
pub(crate) fn write_tar(dir: &OwnedFd, name: &Path, out: &mut dyn Write) -> Result<u64> {
    let mut stream =
        Stream { out: Out::Bytes(out), tree: name, seen: Seen::new(), size: 0, live: false, plain: false };
    stream.whole(dir)?;
    Ok(stream.size)
}

/// How long the archive of a layer directory is that [`write_tar`] writes, bytes. No file is read.
pub(crate) fn measure_tar(dir: &OwnedFd, name: &Path) -> Result<u64> {
    let mut stream =
        Stream { out: Out::Length(0), tree: name, seen: Seen::new(), size: 0, live: false, plain: false };
    stream.whole(dir)?;
    match stream.out {
        Out::Length(length) => Ok(length),
        Out::Bytes(_) => Ok(0),
    }
}

/// Writes a merged tree as a plain archive of a root file system: no layers any more, so nothing is marked as deleted.
/// The files may be those of a container that runs.
pub(crate) fn write_merged_tar(view: &View, name: &Path, out: &mut dyn Write) -> Result<u64> {
    let mut stream =
        Stream { out: Out::Bytes(out), tree: name, seen: Seen::new(), size: 0, live: true, plain: false };
    stream.merged(view, &view.root(), 0)?;
    stream.write(Path::new("."), &[0; 1024])?;
    Ok(stream.size)
}

/// Writes a directory whose files may change meanwhile as a plain archive in which it is called `name`; without a name
/// only what is in it. Extended attributes and sockets are left out.
pub(crate) fn write_dir_tar(
    dir: &OwnedFd,
    tree: &Path,
    name: Option<&OsStr>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut stream =
        Stream { out: Out::Bytes(out), tree, seen: Seen::new(), size: 0, live: true, plain: true };
    match name {
        Some(name) => {
            let stat = kernel::fstat(dir).map_err(|errno| Error::io("look up", tree, errno))?;
            // Below the archive's own root.
            stream.dir(dir, &stat, Path::new(name), 1)?;
        }
        None => stream.entries(dir, Path::new("."), 0)?,
    }
    stream.write(Path::new("."), &[0; 1024])
}

/// The same for one file `own` of `dir` that is no directory.
pub(crate) fn write_leaf_tar(
    dir: &OwnedFd,
    own: &OsStr,
    stat: &Stat,
    tree: &Path,
    name: &OsStr,
    out: &mut dyn Write,
) -> Result<()> {
    let mut stream =
        Stream { out: Out::Bytes(out), tree, seen: Seen::new(), size: 0, live: true, plain: true };
    stream.leaf(dir, own, stat, Path::new(name))?;
    stream.write(Path::new("."), &[0; 1024])
}

/// A node that is to be put into an archive under a name of its own.
pub(crate) struct Named {
    /// The directory that it is in.
    pub(crate) dir: OwnedFd,
    /// What it is called there.
    pub(crate) own: OsString,
    pub(crate) stat: Stat,
    /// What it is called in the archive.
    pub(crate) name: PathBuf,
}

/// The same for nodes of different directories; of one that is a directory, itself without what is in it. What is
/// gone meanwhile is left out, and so are sockets.
pub(crate) fn write_nodes_tar(
    nodes: impl Iterator<Item = Result<Named>>,
    tree: &Path,
    out: &mut dyn Write,
) -> Result<()> {
    let mut stream =
        Stream { out: Out::Bytes(out), tree, seen: Seen::new(), size: 0, live: true, plain: true };
    for node in nodes {
        let Named { dir, own, stat, name } = node?;
        let written = match node::kind(&stat) {
            FileType::Directory => {
                let with_slash = [bytes(&name), b"/"].concat();
                stream.entry(&name, &Entry::of(Kind::Directory, &with_slash, &stat))
            }
            FileType::Socket => Ok(()),
            _ => stream.leaf(&dir, &own, &stat, &name),
        };
        match written {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            written => written?,
        }
    }
    stream.write(Path::new("."), &[0; 1024])
}

/// Where an archive goes.
enum Out<'a> {
    Bytes(&'a mut dyn Write),
    /// Nowhere: only its length is wanted.
    Length(u64),
}

struct Stream<'a> {
    out: Out<'a>,
    tree: &'a Path,
    seen: Seen,
    size: u64,
    /// The files may change while they are read.
    live: bool,
    /// Extended attributes and sockets are left out.
    plain: bool,
}

impl Stream<'_> {
    fn fail(&self, at: &Path, cause: io::Error) -> Error {
        Error::io("read", self.tree.join(at), cause)
    }

    fn write(&mut self, at: &Path, bytes: &[u8]) -> Result<()> {
        match &mut self.out {
            Out::Length(length) => {
                *length += bytes.len() as u64;
                Ok(())
            }
            Out::Bytes(out) => out
                .write_all(bytes)
                .map_err(|cause| Error::io("write the archive of", self.tree.join(at), cause)),
        }
    }

    fn whole(&mut self, dir: &OwnedFd) -> Result<()> {
        let stat = kernel::fstat(dir).map_err(|errno| Error::io("look up", self.tree, errno))?;
        self.dir(dir, &stat, Path::new("."), 0)?;
        self.write(Path::new("."), &[0; 1024])
    }

    fn merged(&mut self, view: &View, dir: &Dir, depth: usize) -> Result<()> {
        let path = if depth == 0 { Path::new(".") } else { &dir.path };
        check_depth(path, depth)?;
        let stat = dir.stat().map_err(|cause| self.fail(path, cause))?;
        let xattrs = node::xattrs(dir.fd()).map_err(|cause| self.fail(path, cause))?;
        let name = [bytes(path), b"/"].concat();
        self.entry(path, &Entry { xattrs: &xattrs, ..Entry::of(Kind::Directory, &name, &stat) })?;
        for name in view.names(dir).map_err(|cause| self.fail(path, cause))? {
            match view.child(dir, &name) {
                Ok(Some(Node::Dir(child))) => self.merged(view, &child, depth + 1)?,
                // Nobody listens on a copy of a socket.
                Ok(Some(Node::Leaf(leaf))) if node::kind(&leaf.stat) == FileType::Socket => {}
                Ok(Some(Node::Leaf(leaf))) => {
                    match self.leaf(leaf.parent(), leaf.name(), &leaf.stat, &leaf.path) {
                        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                        done => done?,
                    }
                }
                // A container that runs may delete a file while we look.
                Ok(None) => {}
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => return Err(self.fail(&dir.path.join(&name), cause)),
            }
        }
        Ok(())
    }

    fn dir(&mut self, dir: &OwnedFd, stat: &Stat, path: &Path, depth: usize) -> Result<()> {
        check_depth(path, depth)?;
        let xattrs = self.xattrs(dir).map_err(|cause| self.fail(path, cause))?;
        let name = [bytes(path), b"/"].concat();
        self.entry(path, &Entry { xattrs: &xattrs, ..Entry::of(Kind::Directory, &name, stat) })?;
        if depth > 0 && node::is_opaque(dir).map_err(|cause| self.fail(path, cause))? {
            let at = path.join(OsStr::from_bytes(OPAQUE_WHITEOUT));
            self.whiteout(&at)?;
        }
        self.entries(dir, path, depth)
    }

    fn entries(&mut self, dir: &OwnedFd, path: &Path, depth: usize) -> Result<()> {
        for name in node::names(dir).map_err(|cause| self.fail(path, cause))? {
            let at = if depth == 0 { PathBuf::from(&name) } else { path.join(&name) };
            check_name(&at, &name)?;
            let stat = match node::stat(dir, &name).map_err(|cause| self.fail(&at, cause))? {
                Some(stat) => stat,
                None if self.live => continue,
                None => return Err(self.fail(&at, io::ErrorKind::NotFound.into())),
            };
            if self.plain && node::kind(&stat) == FileType::Socket {
                continue;
            }
            if node::is_dir(&stat) {
                let child = node::open_dir(dir, &name).map_err(|cause| self.fail(&at, cause))?;
                self.dir(&child, &stat, &at, depth + 1)?;
            } else {
                self.leaf(dir, &name, &stat, &at)?;
            }
        }
        Ok(())
    }

    fn xattrs(&self, node: impl AsFd) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        if self.plain { Ok(Vec::new()) } else { node::xattrs(node) }
    }

    fn leaf(&mut self, dir: &OwnedFd, name: &OsStr, stat: &Stat, at: &Path) -> Result<()> {
        if node::is_whiteout(stat) {
            let mut hidden = OsString::from(".wh.");
            hidden.push(name);
            return self.whiteout(&at.with_file_name(hidden));
        }
        if let Some(first) = first_seen(&mut self.seen, stat, at) {
            let entry = Entry::of(Kind::HardLink, bytes(at), stat);
            return self.entry(at, &Entry { link: bytes(&first), ..entry });
        }
        match node::kind(stat) {
            FileType::RegularFile => self.file(dir, name, stat, at),
            FileType::Symlink => {
                let target = node::read_link(dir, name).map_err(|cause| self.fail(at, cause))?;
                let entry = Entry::of(Kind::Symlink, bytes(at), stat);
                self.entry(at, &Entry { mode: 0o777, link: target.as_bytes(), ..entry })
            }
            FileType::Fifo => self.entry(at, &Entry::of(Kind::Fifo, bytes(at), stat)),
            FileType::Socket => Err(refuse(at, "it is a socket")),
            _ => Err(refuse(at, "it is a device")),
        }
    }

    fn file(&mut self, dir: &OwnedFd, name: &OsStr, stat: &Stat, at: &Path) -> Result<()> {
        let file = node::open_file(dir, name).map_err(|cause| self.fail(at, cause))?;
        let xattrs = self.xattrs(&file).map_err(|cause| self.fail(at, cause))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.entry(at, &Entry { size, xattrs: &xattrs, ..Entry::of(Kind::Regular, bytes(at), stat) })?;
        self.size += size;
        if let Out::Length(length) = &mut self.out {
            *length += size;
            return self.pad(at, size);
        }
        let mut buffer = vec![0; 128 * 1024];
        let mut left = size;
        let mut file = file.take(size);
        while left > 0 {
            match file.read(&mut buffer) {
                Ok(0) if self.live => {
                    // Cut short since its header was written, which says how much there is.
                    let zeros = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    buffer[..zeros].fill(0);
                    left -= zeros as u64;
                    self.write(at, &buffer[..zeros])?;
                }
                Ok(0) => return Err(self.fail(at, io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => {
                    left -= length as u64;
                    self.write(at, &buffer[..length])?;
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(self.fail(at, cause)),
            }
        }
        self.pad(at, size)
    }

    fn pad(&mut self, at: &Path, size: u64) -> Result<()> {
        let rest = (512 - size % 512) % 512;
        self.write(at, &[0; 512][..rest as usize])
    }

    fn whiteout(&mut self, path: &Path) -> Result<()> {
        self.entry(path, &Entry::new(Kind::Regular, bytes(path)))
    }

    /// Writes the header of `entry`, after a pax record (POSIX.1, pax Interchange Format) for all that it cannot hold.
    fn entry(&mut self, at: &Path, entry: &Entry<'_>) -> Result<()> {
        let records = entry.records();
        if !records.is_empty() {
            let size = records.len() as u64;
            let pax = Entry { size, ..Entry::new(Kind::Pax, b"./PaxHeaders/entry") };
            self.write(at, pax.header().as_bytes())?;
            self.write(at, &records)?;
            self.pad(at, size)?;
        }
        self.write(at, entry.header().as_bytes())
    }
}

/// What an entry of an archive is: the type flag of its header.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Kind {
    Regular = b'0',
    HardLink = b'1',
    Symlink = b'2',
    Directory = b'5',
    Fifo = b'6',
    /// Records about the entry that follows.
    Pax = b'x',
}

/// An entry of an archive.
struct Entry<'a> {
    kind: Kind,
    name: &'a [u8],
    mode: u32,
    uid: u32,
    gid: u32,
    /// Seconds since 1970, which may be before.
    mtime: i64,
    /// Bytes that follow the header.
    size: u64,
    /// The target of a link.
    link: &'a [u8],
    xattrs: &'a [(OsString, Vec<u8>)],
}

/// Bytes of a name and of a target in a header.
const NAME: usize = 100;
/// The first size that the twelve bytes for it, eleven octal digits, cannot hold.
const LARGE: u64 = 1 << 33;

impl<'a> Entry<'a> {
    /// One of root's, of 1970, without permissions.
    fn new(kind: Kind, name: &'a [u8]) -> Self {
        Self { kind, name, mode: 0, uid: 0, gid: 0, mtime: 0, size: 0, link: b"", xattrs: &[] }
    }

    /// One with a file's owner, permissions and time.
    fn of(kind: Kind, name: &'a [u8], stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: stat.st_mtime,
            ..Self::new(kind, name)
        }
    }

    /// What the header cannot hold.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if self.name.len() > NAME {
            record(&mut records, b"path", self.name);
        }
        if self.link.len() > NAME {
            record(&mut records, b"linkpath", self.link);
        }
        if self.size >= LARGE {
            record(&mut records, b"size", self.size.to_string().as_bytes());
        }
        if self.mtime < 0 {
            record(&mut records, b"mtime", self.mtime.to_string().as_bytes());
        }
        for (key, value) in self.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", key.as_bytes()].concat(), value);
        }
        records
    }

    fn header(&self) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_mtime(u64::try_from(self.mtime).unwrap_or(0));
        header.set_size(self.size);
        // Put as they are: the crate would check and rewrite them.
        let old = header.as_old_mut();
        let (name, link) = (self.name.len().min(NAME), self.link.len().min(NAME));
        old.name[..name].copy_from_slice(&self.name[..name]);
        old.linkname[..link].copy_from_slice(&self.link[..link]);
        old.linkflag = [self.kind as u8];
        header.set_cksum();
        header
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}
