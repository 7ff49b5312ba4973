//! Loading of seccomp filters (`seccomp(2)`).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Size of one instruction of a classic BPF program (`struct sock_filter`), in bytes.
pub const INSTRUCTION_SIZE: usize = size_of::<libc::sock_filter>();

/// Installs a classic BPF program, given as its instructions in memory order, as a filter of this thread and
/// of all that it starts. Needs `no_new_privs` or CAP_SYS_ADMIN. `flags` are `SECCOMP_FILTER_FLAG_` values; the listening
/// end comes back where they hold `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
///
/// # Errors
/// `EINVAL` for a program or flags the kernel does not accept or a length that is no whole number of instructions.
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
    match result {
        -1 => Err(io::Error::last_os_error()),
        fd if u64::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u64 != 0 => {
            // SAFETY: with this flag the call returns a new descriptor, which nobody else owns.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
        }
        _ => Ok(None),
    }
}
