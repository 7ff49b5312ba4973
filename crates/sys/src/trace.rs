//! Watching the system calls of other processes: `ptrace(2)`.
//!
//! A process that is seized stops at each of its calls, before and after, and so does every process that it makes, until
//! it is let go ([`detach`]). Those that watched end with nobody watching: what was watched goes on by itself.

use std::io;
use std::mem::MaybeUninit;

/// Something that a watched process stopped for, or its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The process, in our PID namespace.
    pub pid: i32,
    /// What it is.
    pub cause: Cause,
}

/// Why a process stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It is about to make a call: the number and the arguments as the registers have them.
    Entry {
        /// `SYS_` number.
        number: i64,
        /// The six argument registers.
        arguments: [u64; 6],
    },
    /// A call has been made; what it returned, negative for an error.
    Exit(i64),
    /// It made another process, which is watched, too.
    Made(i32),
    /// It has executed another program and has not begun to run it.
    Executed,
    /// A signal is about to reach it.
    Signal(i32),
    /// It is new, or it has come to a stop with others by a signal (`SIGSTOP`, for one).
    Stopped(i32),
    /// It is no more: its exit code, or 128 plus the number of the signal that ended it.
    Ended(i32),
    /// Nothing of interest.
    Other,
}

/// `PTRACE_EVENT_STOP` of ptrace(2), of which `libc` has no constant for every C library.
const EVENT_STOP: i32 = 128;

/// What processes are to stop for besides their calls. Without `EXITKILL`: what is watched outlives who watches.
const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXEC;

/// Begins to watch a process. It is not stopped by that; [`interrupt`] does so.
///
/// # Errors
/// What `ptrace(2)` reports: `EPERM` for processes of others, and where `/proc/sys/kernel/yama/ptrace_scope` forbids it.
pub fn seize(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, pid, 0, OPTIONS as usize)
}

/// Stops a watched process, which [`next`] then tells of as [`Cause::Stopped`].
///
/// # Errors
/// What `ptrace(2)` reports.
pub fn interrupt(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, pid, 0, 0)
}

/// Lets a stopped process go on to its next call, with `signal` (0 for none).
///
/// # Errors
/// What `ptrace(2)` reports; `ESRCH` when it was killed meanwhile.
pub fn go_on(pid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, pid, 0, signal as usize)
}

/// Leaves a process that was stopped by a signal stopped until another one has it continue.
///
/// # Errors
/// As [`go_on`].
pub fn leave_stopped(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, pid, 0, 0)
}

/// Stops watching a stopped process, which goes on with `signal` (0 for none).
///
/// # Errors
/// As [`go_on`].
pub fn detach(pid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, pid, 0, signal as usize)
}

/// The next thing that happened to a watched process or a child, if anything has; never waits. A `SIGCHLD` comes
/// whenever there is more.
///
/// # Errors
/// `ECHILD` when there is nothing to watch and no child any more.
pub fn next() -> io::Result<Option<Stop>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the answer that outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::WNOHANG) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Stop { pid, cause: cause(pid, status) })),
    }
}

fn cause(pid: i32, status: libc::c_int) -> Cause {
    if libc::WIFEXITED(status) {
        return Cause::Ended(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Cause::Ended(128 + libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => call(pid).unwrap_or(Cause::Other),
        0 => Cause::Signal(signal),
        EVENT_STOP => Cause::Stopped(signal),
        libc::PTRACE_EVENT_EXEC => Cause::Executed,
        libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => {
            made(pid).map_or(Cause::Other, Cause::Made)
        }
        _ => Cause::Other,
    }
}

/// What a process that stopped at a call is about. `None` when it was killed meanwhile.
fn call(pid: i32) -> Option<Cause> {
    // SAFETY: the structure is one of integers and a union of such, for which all-zero is a valid value.
    let mut info: libc::ptrace_syscall_info = unsafe { MaybeUninit::zeroed().assume_init() };
    let size = size_of::<libc::ptrace_syscall_info>();
    request(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &raw mut info as usize).ok()?;
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: `op` says which member of the union the kernel has filled in.
            let entry = unsafe { info.u.entry };
            Some(Cause::Entry { number: entry.nr as i64, arguments: entry.args })
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: as above.
            let exit = unsafe { info.u.exit };
            Some(Cause::Exit(exit.sval))
        }
        _ => None,
    }
}

/// The process that a process which stopped for that has made.
fn made(pid: i32) -> Option<i32> {
    let mut child: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, pid, 0, &raw mut child as usize).ok()?;
    i32::try_from(child).ok()
}

/// Bytes of a process's memory; fewer where less is mapped.
///
/// # Errors
/// `EFAULT` where nothing is, `EPERM` when the process is not dumpable and we have no CAP_SYS_PTRACE over its memory.
pub fn read(pid: i32, address: u64, length: usize) -> io::Result<Vec<u8>> {
    /// A range that ends within a page is read in full or not at all, so that no read goes over the end of one that is
    /// followed by nothing.
    const PAGE: usize = 4096;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = address.wrapping_add(bytes.len() as u64);
        let part = (length - bytes.len()).min(PAGE - at as usize % PAGE);
        match read_part(pid, at, part) {
            Ok(part) => bytes.extend(part),
            Err(error) if bytes.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(bytes)
}

fn read_part(pid: i32, address: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; length];
    let ours = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: length };
    let theirs =
        libc::iovec { iov_base: std::ptr::without_provenance_mut(address as usize), iov_len: length };
    // SAFETY: `ours` is all of `bytes`, which the kernel may write to; `theirs` is an address of the other process, that is
    // not looked at in this one. Both outlive the call.
    let read = unsafe { libc::process_vm_readv(pid, &raw const ours, 1, &raw const theirs, 1, 0) };
    match read {
        -1 => Err(io::Error::last_os_error()),
        read => {
            bytes.truncate(read as usize);
            Ok(bytes)
        }
    }
}

fn request(request: libc::c_uint, pid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: the requests of this module take plain integers, or store into `data`, for which each caller has a
    // structure of the size that the kernel expects and which outlives the call.
    let result = unsafe { libc::ptrace(request as _, pid, address, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_process() {
        let text = b"some bytes".to_vec();
        let pid = std::process::id() as i32;
        assert_eq!(read(pid, text.as_ptr() as u64, text.len()).unwrap(), text);
        assert_eq!(read(pid, 16, 4).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn what_a_status_means() {
        let stopped = |signal: i32, event: i32| (event << 16) | (signal << 8) | 0x7f;
        assert_eq!(cause(1, stopped(libc::SIGTERM, 0)), Cause::Signal(libc::SIGTERM));
        assert_eq!(cause(1, stopped(libc::SIGTRAP, EVENT_STOP)), Cause::Stopped(libc::SIGTRAP));
        assert_eq!(cause(1, stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXEC)), Cause::Executed);
        assert_eq!(cause(1, 7 << 8), Cause::Ended(7));
        assert_eq!(cause(1, libc::SIGKILL), Cause::Ended(137));
    }

    #[test]
    fn calls_of_a_child_before_and_after() {
        use std::io::{Read, Write};
        let (mut gate, mut opens) = io::pipe().unwrap();
        // By `fork(2)` alone, which `process::spawn` refuses in a test's process of many threads.
        // SAFETY: the child makes system calls only and ends by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut byte = [0];
            gate.read_exact(&mut byte).ok();
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o31));
            // SAFETY: always sound.
            unsafe { libc::_exit(0) };
        }
        seize(child).unwrap();
        interrupt(child).unwrap();
        opens.write_all(b"x").unwrap();
        let mut seen = Vec::new();
        loop {
            // Other tests may have children of their own: this one waits for its own alone.
            let mut status = 0;
            // SAFETY: `status` is a valid place for the answer.
            let pid = unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) };
            assert_eq!(pid, child);
            match cause(child, status) {
                Cause::Ended(_) => break,
                Cause::Entry { number: libc::SYS_umask, arguments } => seen.push(arguments[0] as i64),
                Cause::Exit(result) if seen.len() == 1 => seen.push(result),
                _ => {}
            }
            go_on(child, 0).unwrap();
        }
        assert_eq!(seen.first(), Some(&0o31));
        assert!(seen.len() == 2 && seen[1] >= 0, "{seen:?}");
    }
}
