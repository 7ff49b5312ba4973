//! What the running kernel offers, asked without any effect.

use std::io;

/// Whether `clone3(2)` can be called: not before Linux 5.3, and not where a seccomp filter blocks it.
pub fn has_clone3() -> bool {
    // SAFETY: arguments of size zero are refused (EINVAL) before the null pointer would be read.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::clone_args>(), 0usize) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

/// The version of the Landlock interface (landlock(7)).
///
/// # Errors
/// `ENOSYS` where the kernel was built without it, `EOPNOTSUPP` where it was switched off at boot.
pub fn landlock_abi() -> io::Result<u32> {
    /// `LANDLOCK_CREATE_RULESET_VERSION`.
    const VERSION: u32 = 1;
    // SAFETY: with this flag the pointer must be null and the size zero, and only a number comes back.
    let result = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0usize, VERSION)
    };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}
