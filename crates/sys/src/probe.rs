//! What the running kernel offers, asked without any effect.

use std::io;

/// Whether `clone3(2)` can be called: not before Linux 5.3, and not where a seccomp filter blocks it.
pub fn has_clone3() -> bool {
    // SAFETY: arguments of size zero are refused (EINVAL) before the null pointer would be read.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::clone_args>(), 0usize) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}
