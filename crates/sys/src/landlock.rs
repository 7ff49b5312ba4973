//! Landlock (landlock(7)): a process gives up files for itself and for all that it starts.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What may be done with files, `LANDLOCK_ACCESS_FS_` of `<linux/landlock.h>`.
pub mod access {
    /// Execute a file.
    pub const EXECUTE: u64 = 1 << 0;
    /// Open a file for writing.
    pub const WRITE_FILE: u64 = 1 << 1;
    /// Open a file for reading.
    pub const READ_FILE: u64 = 1 << 2;
    /// List a directory.
    pub const READ_DIR: u64 = 1 << 3;
    /// Make, remove, rename and link entries of a directory (`REMOVE_DIR` to `MAKE_SYM`, and `REFER` of version 2).
    pub const ENTRIES: u64 = 0x3ff << 4;
    /// Truncate a file; version 3.
    pub const TRUNCATE: u64 = 1 << 14;
    /// `ioctl(2)` on a device; version 5.
    pub const IOCTL_DEV: u64 = 1 << 15;
    /// Those that a file has; the kernel refuses others for it.
    pub const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
}

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

/// `struct landlock_ruleset_attr` as far as version 1 had it; the kernel takes what is missing for zero.
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Version of the kernel's Landlock, from 1 on.
///
/// # Errors
/// `ENOSYS` when the kernel was built without it, `EOPNOTSUPP` when it was not enabled at boot.
pub fn version() -> io::Result<u32> {
    let none = std::ptr::null::<RulesetAttributes>();
    // SAFETY: with this flag the kernel demands that there are no attributes, and reads none.
    let result = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, CREATE_RULESET_VERSION) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Exceptions from what is denied.
#[derive(Debug)]
pub struct Ruleset {
    fd: OwnedFd,
    handled: u64,
}

impl Ruleset {
    /// Denies `handled`, a set of [`access`] bits, wherever no exception is made.
    ///
    /// # Errors
    /// As [`version`]; `EINVAL` for bits that this version does not have.
    pub fn new(handled: u64) -> io::Result<Self> {
        let attributes = RulesetAttributes { handled_access_fs: handled };
        let size = size_of::<RulesetAttributes>();
        // SAFETY: the kernel reads `size` bytes of `attributes` during the call.
        let result =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0) };
        let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just made the descriptor (close-on-exec), and nobody else knows it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, handled })
    }

    /// Allows `allowed` of what is denied for the file or directory `place` and all below it.
    ///
    /// # Errors
    /// `EINVAL` for rights of directories on a file.
    pub fn allow(&self, place: BorrowedFd<'_>, allowed: u64) -> io::Result<()> {
        let rule = PathBeneath { allowed_access: allowed & self.handled, parent_fd: place.as_raw_fd() };
        // SAFETY: `rule` is what this kind of rule has, and the kernel copies it during the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.fd.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const rule,
                0,
            )
        };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Puts it in force for this thread and all that it starts, for ever.
    ///
    /// # Errors
    /// `EPERM` without `no_new_privs` and CAP_SYS_ADMIN.
    pub fn enforce(self) -> io::Result<()> {
        // SAFETY: takes two integers.
        let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.fd.as_raw_fd(), 0) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
