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
    self as kernel, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
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
    create_file_with(dir, name, Mode::RUSR | Mode::WUSR)
}

/// Makes a new regular file with permissions, open for writing; an existing name is an error.
pub(crate) fn create_file_with(dir: impl AsFd, name: &OsStr, mode: Mode) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(kernel::openat(dir, name, flags, mode)?.into())
}

/// Opens a directory by a path without links below another one; anything else on the way is an error.
pub(crate) fn open_dir_below(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(kernel::openat2(dir, path, flags, Mode::empty(), resolve)?)
}

/// Makes a new directory with permissions and opens it; an existing name is an error.
pub(crate) fn create_dir(dir: impl AsFd, name: &OsStr, mode: Mode) -> io::Result<OwnedFd> {
    kernel::mkdirat(&dir, name, mode)?;
    open_dir(dir, name)
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

/// An archive's extended attribute as a layer may have it; none for those that are the host's business (labels),
/// overlayfs' own marks, and capabilities that mean another host's user namespace.
pub(crate) fn imported_xattr(name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    if name == b"security.capability" {
        return imported_capability(value);
    }
    let wanted = name.starts_with(b"user.") && !is_private_xattr(name) && !name.contains(&0);
    wanted.then(|| value.to_vec())
}

/// A file's capabilities (kernel, `include/uapi/linux/capability.h`, `vfs_cap_data`) in the form without an owner,
/// which the kernel ties to the user namespace that sets it: they are worth nothing outside.
fn imported_capability(value: &[u8]) -> Option<Vec<u8>> {
    /// `VFS_CAP_REVISION_2` and `_3`: two words each of permitted and inheritable ones, and in the later one the
    /// id of the root to whom they belong.
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    let word = |at: usize| Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?));
    let flags = word(0)?;
    match (flags & 0xff00_0000, value.len()) {
        (REVISION_2, 20) => Some(value.to_vec()),
        // Made in a user namespace whose root was that of its host's.
        (REVISION_3, 24) if word(20)? == 0 => {
            let flags = REVISION_2 | (flags & 0x00ff_ffff);
            Some([&flags.to_le_bytes(), &value[4..20]].concat())
        }
        _ => None,
    }
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

/// Sets the time of an open node.
pub(crate) fn set_time(node: impl AsFd, time: (i64, i64)) -> io::Result<()> {
    Ok(kernel::futimens(node, &times(time))?)
}

/// What nodes get that this process makes, so that only what has to be otherwise is set.
pub(crate) struct Creator {
    uid: u32,
    gid: u32,
    /// Permission bits that new nodes do not get.
    umask: u32,
}

impl Creator {
    pub(crate) fn of_this_process() -> Self {
        // The system call that tells it sets it, for all threads. Unknown, it counts as one that takes all.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        let umask = umask.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o777);
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { uid, gid, umask }
    }

    /// The mode to create a node with. Set-id bits come later: a change of owner would take them off.
    pub(crate) fn mode(&self, wanted: &Attributes) -> Mode {
        Mode::from_raw_mode(wanted.mode & 0o777)
    }

    /// Whether the owner of a node just made differs. Its group may be its directory's (`inode(7)`, "S_ISGID").
    fn is_owner(&self, wanted: &Attributes, parent_gid: u32) -> bool {
        (wanted.uid, wanted.gid) == (self.uid, self.gid) && parent_gid == self.gid
    }

    /// Sets what a file or directory does not have yet that was made with [`Creator::mode`].
    pub(crate) fn set_attributes(
        &self,
        node: impl AsFd,
        wanted: &Attributes,
        parent_gid: u32,
    ) -> io::Result<()> {
        if !self.is_owner(wanted, parent_gid) {
            kernel::fchown(&node, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))?;
        }
        if self.mode(wanted).as_raw_mode() & !self.umask != wanted.mode {
            kernel::fchmod(&node, Mode::from_raw_mode(wanted.mode))?;
        }
        for (name, value) in &wanted.xattrs {
            kernel::fsetxattr(&node, &**name, value, XattrFlags::empty())?;
        }
        match wanted.mtime {
            Some(time) => set_time(&node, time),
            None => Ok(()),
        }
    }

    /// Sets owner and time of a symbolic link just made.
    pub(crate) fn set_link_attributes(
        &self,
        dir: impl AsFd,
        name: &OsStr,
        wanted: &Attributes,
        parent_gid: u32,
    ) -> io::Result<()> {
        if !self.is_owner(wanted, parent_gid) {
            let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
            kernel::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        match wanted.mtime {
            Some(time) => Ok(kernel::utimensat(&dir, name, &times(time), AtFlags::SYMLINK_NOFOLLOW)?),
            None => Ok(()),
        }
    }
}

fn times((seconds, nanoseconds): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    Timestamps { last_access: time, last_modification: time }
}
