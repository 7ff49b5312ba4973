//! What the running kernel offers, asked without any effect.

use std::io;

/// Whether `clone3(2)` can be called: not before Linux 5.3, and not where a seccomp filter blocks it.
pub fn has_clone3() -> bool {
    // SAFETY: arguments of size zero are refused (EINVAL) before the null pointer would be read.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::clone_args>(), 0usize) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

/// A system call, and how the kernel answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Its name.
    pub name: &'static str,
    /// Its number on this architecture.
    pub number: i64,
    /// Its arguments as one would write them in C.
    pub arguments: &'static str,
    /// The error number; 0 is success.
    pub errno: i32,
}

/// Makes calls that seccomp filters usually deny, with arguments by which they have no effect where they are allowed;
/// and one that no filter denies. A filter decides before the kernel looks at arguments, so its answer differs.
pub fn attempts() -> [Attempt; 6] {
    let null = std::ptr::null::<u8>();
    let attempt = |name, number, arguments, result: libc::c_long| {
        let errno = if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
        Attempt { name, number, arguments, errno }
    };
    // SAFETY: without flags there is nothing to separate.
    let unshare = attempt("unshare", libc::SYS_unshare, "0", unsafe { libc::syscall(libc::SYS_unshare, 0) });
    // SAFETY: a size of zero is refused (EINVAL) before the null pointer would be read.
    let result = unsafe { libc::syscall(libc::SYS_clone3, null, 0usize) };
    let clone3 = attempt("clone3", libc::SYS_clone3, "NULL, 0", result);
    // SAFETY: the kernel copies the target's path from a null pointer first, which fails (EFAULT).
    let result = unsafe { libc::syscall(libc::SYS_mount, null, null, null, 0usize, null) };
    let mount = attempt("mount", libc::SYS_mount, "NULL, NULL, NULL, 0, NULL", result);
    // SAFETY: there is no such operation (EOPNOTSUPP).
    let result = unsafe { libc::syscall(libc::SYS_keyctl, 0xffff, 0, 0, 0, 0) };
    let keyctl = attempt("keyctl", libc::SYS_keyctl, "0xffff, 0, 0, 0, 0", result);
    // SAFETY: the kernel copies the parameters from a null pointer first, which fails (EFAULT).
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, null) };
    let io_uring = attempt("io_uring_setup", libc::SYS_io_uring_setup, "0, NULL", result);
    // SAFETY: it only returns a number.
    let result = unsafe { libc::syscall(libc::SYS_getppid) };
    let getppid = attempt("getppid", libc::SYS_getppid, "", result);
    [unshare, clone3, mount, keyctl, io_uring, getppid]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_have_no_effect_and_an_answer_each() {
        let answers = attempts();
        let errno =
            |name: &str| answers.iter().find(|attempt| attempt.name == name).map(|attempt| attempt.errno);
        assert_eq!(errno("getppid"), Some(0));
        // Under a filter of somebody else's they fail in another way, but fail.
        assert_ne!(errno("clone3"), Some(0));
        assert_ne!(errno("mount"), Some(0));
    }
}
