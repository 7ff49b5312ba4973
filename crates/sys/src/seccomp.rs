//! Loading of seccomp filters (`seccomp(2)`).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Load the filter into all threads of the process.
pub const TSYNC: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC as u32;
/// Log what is not allowed.
pub const LOG: u32 = libc::SECCOMP_FILTER_FLAG_LOG as u32;
/// Leave the mitigation of speculative store bypass off.
pub const SPEC_ALLOW: u32 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
/// Return a descriptor on which another process answers for calls (seccomp_unotify(2)).
pub const NEW_LISTENER: u32 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
/// With [`TSYNC`]: fail with ESRCH rather than return the number of the thread that stood in the way.
pub const TSYNC_ESRCH: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH as u32;
/// With [`NEW_LISTENER`]: only a fatal signal interrupts a call once the listener has received it (Linux 5.19).
pub const WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// Size of one instruction of a classic BPF program (`struct sock_filter`), in bytes.
pub const INSTRUCTION_SIZE: usize = size_of::<libc::sock_filter>();

/// Installs a classic BPF program, given as its instructions in memory order, as a filter of this thread and
/// of all that it starts. Needs `no_new_privs` or CAP_SYS_ADMIN. With [`NEW_LISTENER`] among the flags, the
/// result is the listener, which is closed on exec.
///
/// # Errors
/// `EINVAL` for a program or flags that the kernel does not accept, or a length that is no whole number of
/// instructions; `EBUSY` when another filter of this process has a listener; `ESRCH` when a thread cannot take the
/// filter.
pub fn load(program: &[u8], flags: u32) -> io::Result<Option<OwnedFd>> {
    let (chunks, rest) = program.as_chunks::<INSTRUCTION_SIZE>();
    let length = u16::try_from(chunks.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    if !rest.is_empty() || length == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut filter: Vec<libc::sock_filter> = chunks
        .iter()
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points at `length` initialised instructions; the kernel copies them during the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match i32::try_from(result) {
        Ok(0) if flags & NEW_LISTENER == 0 => Ok(None),
        // SAFETY: with this flag a result that is no error is a new descriptor that nobody else knows.
        Ok(fd) if fd >= 0 && flags & NEW_LISTENER != 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        // A thread that could not take the filter; nothing was loaded.
        Ok(thread) if thread > 0 => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        _ => Err(io::Error::last_os_error()),
    }
}
