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
