//! One file system node below an open directory: never by a path that something could redirect.
//!
//! Every function takes a directory's descriptor and one name; a name is never followed if it is a link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{
    self as kernel, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// Overlayfs' mark of a directory that hides those below it, as `userxattr` mounts use it
/// (kernel, Documentation/filesystems/overlayfs.rst).
const OPAQUE: &str = "user.overlay.opaque";

/// Deepest directory nesting of a layer: each level costs a descriptor while it is walked.
pub(crate) const MAX_DEPTH: usize = 200;

/// What a node carries besides its content.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Attributes {
    /// Permission bits, with set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds; none leaves the time at which the node was made.
    pub(crate) mtime: Option<(i64, i64)>,
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Attributes {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Some((stat.st_mtime, stat.st_mtime_nsec as i64)),
            xattrs: Vec::new(),
        }
    }

    /// A new directory of container root's.
    pub(crate) fn new_dir(owner: Option<(u32, u32)>) -> Self {
        let (uid, gid) = owner.unwrap_or((0, 0));
        Self { mode: 0o755, uid, gid, mtime: None, xattrs: Vec::new() }
    }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(crate) fn is_dir(stat: &Stat) -> bool {
    kind(stat) == FileType::Directory
}

/// Overlayfs' mark of a deleted name: a character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// `st_mode`, owner, size of a name; none where there is none.
pub(crate) fn stat(dir: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match kernel::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a directory named by a path of our own.
pub(crate) fn open_dir_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(kernel::openat(kernel::CWD, path, flags, Mode::empty())?)
}

/// Opens a directory; a link or any other file is an error.
pub(crate) fn open_dir(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(kernel::openat(dir, name, flags, Mode::empty())?)
}

/// Opens a regular file for reading; a link is an error, a pipe does not block.
pub(crate) fn open_file(dir: impl AsFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(kernel::openat(dir, name, flags, Mode::empty())?.into())
}

/// Makes a new regular file, open for writing; an existing name is an error.
pub(crate) fn create_file(dir: impl AsFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(kernel::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Makes a new directory, or takes one that is there, and opens it.
pub(crate) fn make_dir(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    match kernel::mkdirat(&dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_dir(dir, name),
        Err(errno) => Err(errno.into()),
    }
}

pub(crate) fn make_whiteout(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(kernel::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)?)
}

pub(crate) fn read_link(dir: impl AsFd, name: &OsStr) -> io::Result<OsString> {
    Ok(OsString::from_vec(kernel::readlinkat(dir, name, Vec::new())?.into_bytes()))
}

/// The names in a directory, sorted by their bytes.
pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in kernel::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(crate) fn is_opaque(dir: impl AsFd) -> io::Result<bool> {
    let mut value = [0; 8];
    match kernel::fgetxattr(dir, OPAQUE, &mut value[..]) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

pub(crate) fn set_opaque(dir: impl AsFd) -> io::Result<()> {
    Ok(kernel::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())?)
}

/// Whether an attribute is overlayfs' own, which no image may bring along, or the host's label.
pub(crate) fn is_private_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.") || name == b"security.selinux"
}

/// Names of all extended attributes.
pub(crate) fn xattr_names(node: impl AsFd) -> io::Result<Vec<OsString>> {
    let size = match kernel::flistxattr_query(&node) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(size) => size,
        Err(errno) => return Err(errno.into()),
    };
    let mut list = vec![0; size + 1024];
    let length = kernel::flistxattr(&node, &mut list[..])?;
    Ok(list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect())
}

/// The extended attributes that belong to an image, sorted by name.
pub(crate) fn xattrs(node: impl AsFd) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in xattr_names(&node)? {
        if is_private_xattr(name.as_bytes()) {
            continue;
        }
        let size = kernel::fgetxattr_query(&node, &*name)?;
        let mut value = vec![0; size];
        if size > 0 {
            let length = kernel::fgetxattr(&node, &*name, &mut value[..])?;
            value.truncate(length);
        }
        found.push((name, value));
    }
    found.sort_unstable();
    Ok(found)
}

/// Sets owner, mode, extended attributes and time of an open node, in the order in which none undoes another.
pub(crate) fn set_attributes(node: impl AsFd, wanted: &Attributes) -> io::Result<()> {
    let have = kernel::fstat(&node)?;
    if (have.st_uid, have.st_gid) != (wanted.uid, wanted.gid) {
        kernel::fchown(&node, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))?;
    }
    kernel::fchmod(&node, Mode::from_raw_mode(wanted.mode))?;
    for (name, value) in &wanted.xattrs {
        kernel::fsetxattr(&node, &**name, value, XattrFlags::empty())?;
    }
    if let Some(time) = wanted.mtime {
        kernel::futimens(&node, &times(time))?;
    }
    Ok(())
}

/// Sets owner and time (and the mode, but of a link) of a node that cannot be opened: a link or a pipe.
pub(crate) fn set_attributes_at(dir: impl AsFd, name: &OsStr, wanted: &Attributes) -> io::Result<()> {
    let have = kernel::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if (have.st_uid, have.st_gid) != (wanted.uid, wanted.gid) {
        let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
        kernel::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if kind(&have) != FileType::Symlink {
        kernel::chmodat(&dir, name, Mode::from_raw_mode(wanted.mode), AtFlags::empty())?;
    }
    if let Some(time) = wanted.mtime {
        kernel::utimensat(&dir, name, &times(time), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn times((seconds, nanoseconds): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    Timestamps { last_access: time, last_modification: time }
}
