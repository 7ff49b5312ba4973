//! The part of the mount API that `rustix` lacks: `mount_setattr(2)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Attributes of a mount (`MOUNT_ATTR_` of `mount_setattr(2)`).
pub mod attribute {
    /// Read-only.
    pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    /// No set-user-id programs.
    pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
    /// No device files.
    pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
    /// No execution.
    pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
    /// The field of access times; 0 in it is "relative to changes".
    pub const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
    /// Access times are not kept.
    pub const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
    /// Access times are always kept.
    pub const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
    /// Access times of directories are not kept.
    pub const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
}

/// Propagation types (mount_namespaces(7), "SHARED SUBTREES").
pub mod propagation {
    /// Mounts travel both ways.
    pub const SHARED: u64 = libc::MS_SHARED;
    /// Mounts travel in, and not out.
    pub const SLAVE: u64 = libc::MS_SLAVE;
    /// Mounts do not travel.
    pub const PRIVATE: u64 = libc::MS_PRIVATE;
    /// Neither that, nor can it be bound elsewhere.
    pub const UNBINDABLE: u64 = libc::MS_UNBINDABLE;
}

/// Attributes to set and to clear on a mount; the clearing comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// [`attribute`] values or-ed.
    pub set: u64,
    /// Likewise.
    pub clear: u64,
}

impl Change {
    /// Adds a change, which overrides earlier ones of the same attributes.
    pub fn apply(&mut self, set: u64, clear: u64) {
        // All values of the field of access times stand for one attribute.
        let field = if (set | clear) & attribute::ATIME != 0 { attribute::ATIME } else { 0 };
        self.set = (self.set & !(clear | field)) | set;
        self.clear = (self.clear & !set) | clear;
    }

    /// Carries it out on the mount that `mount` is the root of, and on all below it when `recursive`.
    ///
    /// # Errors
    /// What `mount_setattr(2)` reports.
    pub fn carry_out(&self, mount: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        // SAFETY: `mount_attr` is a plain struct of integers, for which all-zero is a valid value.
        let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
        (attr.attr_set, attr.attr_clr) = (self.set, self.clear);
        mount_setattr(mount, &attr, recursive)
    }
}

/// Sets the [`propagation`] type of a mount, and of all below it when `recursive`.
///
/// # Errors
/// What `mount_setattr(2)` reports.
pub fn set_propagation(mount: BorrowedFd<'_>, kind: u64, recursive: bool) -> io::Result<()> {
    // SAFETY: `mount_attr` is a plain struct of integers, for which all-zero is a valid value.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.propagation = kind;
    mount_setattr(mount, &attr, recursive)
}

/// Adds attributes to the mount that `mount` is the root of, and to all below it when `recursive`.
///
/// # Errors
/// What `mount_setattr(2)` reports.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: u64, recursive: bool) -> io::Result<()> {
    // SAFETY: `mount_attr` is a plain struct of integers, for which all-zero is a valid value.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.attr_set = attributes;
    mount_setattr(mount, &attr, recursive)
}

/// Maps the owners of files on a detached mount through `user_namespace`: what belongs to id N on disk
/// belongs to that namespace's id N when seen through this mount (idmapped mount).
///
/// # Errors
/// `EINVAL` when the file system does not support it, `EPERM` without CAP_SYS_ADMIN over it.
pub fn set_idmap(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    // SAFETY: `mount_attr` is a plain struct of integers, for which all-zero is a valid value.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.attr_set = libc::MOUNT_ATTR_IDMAP;
    attr.userns_fd = user_namespace.as_raw_fd() as u64;
    mount_setattr(mount, &attr, recursive)
}

fn mount_setattr(mount: BorrowedFd<'_>, attr: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `attr` outlives the call and its size is passed along.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A detached copy of the mount at `path`, and of all below it, whose files belong to the ids of
/// `user_namespace` with the same numbers.
///
/// # Errors
/// As `open_tree(2)` and [`set_idmap`].
pub fn idmapped_tree(path: &Path, user_namespace: &OwnedFd) -> io::Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags as Flags;
    let flags = Flags::OPEN_TREE_CLONE | Flags::OPEN_TREE_CLOEXEC | Flags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, path, flags)?;
    set_idmap(tree.as_fd(), user_namespace.as_fd(), true)?;
    Ok(tree)
}
