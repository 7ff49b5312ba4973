//! Loading of seccomp filters (`seccomp(2)`), and answering for calls that a filter asks about (`seccomp_unotify(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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
    let mut filter: Vec<libc::sock_filter> = chunks.iter().map(instruction).collect();
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

/// An instruction of a classic BPF program, from its bytes in memory order.
pub(crate) fn instruction(bytes: &[u8; INSTRUCTION_SIZE]) -> libc::sock_filter {
    let [a, b, jt, jf, c, d, e, f] = *bytes;
    let (code, k) = (u16::from_ne_bytes([a, b]), u32::from_ne_bytes([c, d, e, f]));
    libc::sock_filter { code, jt, jf, k }
}

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// Names the call until it has been answered or was interrupted.
    pub id: u64,
    /// The thread that made it, by its number in our PID namespace; 0 when it has none there.
    pub thread: i32,
    /// The arguments. What they point to belongs to the caller, who can change it at any time.
    pub arguments: [u64; 6],
}

/// Takes the next call from `listener`. Waits when there is none, which poll(2) tells beforehand.
///
/// # Errors
/// `ENOENT` when the call was interrupted meanwhile, and what `ioctl` reports.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: the structure has integers only, for which all-zero is a valid value, and the kernel wants it so.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request's number has the size of what the kernel writes, which is this structure's; it outlives the
    // call.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notification) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    let libc::seccomp_notif { id, pid, data, .. } = notification;
    Ok(Notification { id, thread: pid.cast_signed(), arguments: data.args })
}

/// Whether the call still waits: then what was opened under its thread's number before this is that thread's, and no
/// other's that got the number after it.
#[must_use]
pub fn is_waiting(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the kernel reads one u64, which outlives the call.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0 }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel carries it out, with its arguments as they are at that moment.
    Continue,
    /// It is not carried out and returns this.
    Return(i64),
}

/// Answers a call.
///
/// # Errors
/// `ENOENT` when it was interrupted meanwhile, and what `ioctl` reports.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    let (val, flags) = match answer {
        Answer::Continue => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Answer::Return(value) => (value, 0),
    };
    let response = libc::seccomp_notif_resp { id, val, error: 0, flags };
    // SAFETY: the kernel reads the structure, which outlives the call.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts a copy of `fd` in place of the caller's descriptor `number`, while the call waits (Linux 5.9).
///
/// # Errors
/// `ENOENT` when the call does not wait any more, `EINVAL` or `ENOTTY` where the kernel cannot do this, and what `ioctl`
/// reports.
pub fn replace_descriptor(
    listener: BorrowedFd<'_>,
    id: u64,
    fd: BorrowedFd<'_>,
    number: RawFd,
    close_on_exec: bool,
) -> io::Result<()> {
    let request = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
        srcfd: fd.as_raw_fd().cast_unsigned(),
        newfd: number.cast_unsigned(),
        newfd_flags: if close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
    };
    // SAFETY: the kernel reads the structure, which outlives the call; the descriptor that changes is another process's.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const request) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the kernel can [`replace_descriptor`].
#[must_use]
pub fn can_replace_descriptors(listener: BorrowedFd<'_>) -> bool {
    // No call has this number: they count from a random one, and 0 is not reached.
    match replace_descriptor(listener, 0, listener, 0, false) {
        Err(error) => error.raw_os_error() == Some(libc::ENOENT),
        Ok(()) => true,
    }
}
