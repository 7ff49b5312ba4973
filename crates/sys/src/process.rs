//! Processes: `clone3(2)` with pidfds, and what ties a child to its parent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// A namespace to create (`clone3`) or to join (`setns`); the values of `clone(2)`.
pub mod namespace {
    /// Cgroup namespace.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// IPC namespace.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// Mount namespace.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// Network namespace.
    pub const NETWORK: u64 = libc::CLONE_NEWNET as u64;
    /// PID namespace.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// User namespace.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    /// Time namespace.
    pub const TIME: u64 = 0x80;
    /// UTS namespace.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
}

/// A child made by [`spawn`].
#[derive(Debug)]
pub struct Child {
    /// Its process id in the caller's PID namespace.
    pub pid: i32,
    /// Readable when it has exited; immune to reuse of the number.
    pub pidfd: OwnedFd,
}

/// `libc` has this constant in a type that is too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes a child with `clone3(2)` in the given new namespaces ([`namespace`] values or-ed). The child runs
/// `body` on a copy of this process's memory and exits with its result.
///
/// # Errors
/// What `clone3` reports; `EBUSY` when this process has more than one thread, because the copy of a threaded
/// process may hold locks (the allocator's, for one) that nobody will ever release.
pub fn spawn(namespaces: u64, body: impl FnOnce() -> i32) -> io::Result<Child> {
    spawn_with(SpawnArgs { namespaces, ..SpawnArgs::default() }, body)
}

/// What [`spawn_with`] can be told.
#[derive(Debug, Default, Clone, Copy)]
pub struct SpawnArgs<'a> {
    /// New namespaces, [`namespace`] values or-ed.
    pub namespaces: u64,
    /// A cgroup v2 directory in which the child is born (`CLONE_INTO_CGROUP`).
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Make a child of this process's parent (`CLONE_PARENT`): the parent reaps it.
    pub sibling: bool,
}

/// As [`spawn`], with more to choose.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_with(spawn: SpawnArgs<'_>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    if !is_single_threaded()? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: `clone_args` is a plain struct of integers, for which all-zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = spawn.namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    if spawn.sibling {
        args.flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = spawn.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and without a stack of its own the call behaves like fork(2): the child gets a
    // copy of the address space. There is one thread (checked above), so no lock is held by a thread
    // that does not exist in the copy. `args` and `pidfd` outlive the call.
    let mut result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if result == -1
        && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS)
        && spawn.cgroup.is_none()
    {
        // A seccomp filter (ours among them) blocks clone3, whose flags it cannot see. The old call has them in
        // its first argument, with the exit signal; CLONE_PIDFD stores through the third, clone(2).
        let flags = args.flags | args.exit_signal;
        // SAFETY: as above: no CLONE_VM and a null stack, so it behaves like fork(2); `pidfd` outlives the call.
        result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    }
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = body();
            // SAFETY: `_exit` ends the child without running the parent's exit handlers; always sound.
            unsafe { libc::_exit(code) }
        }
        pid => {
            // SAFETY: the kernel stored a new descriptor, owned by nobody else, in `pidfd`.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid: pid as i32, pidfd })
        }
    }
}

/// Whether this process has one thread.
///
/// # Errors
/// When neither the kernel nor `/proc` would tell.
pub fn is_single_threaded() -> io::Result<bool> {
    // SAFETY: this unshare changes nothing: it is allowed only where there is nothing to undo (unshare(2)).
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EINVAL) => Ok(false),
        // A seccomp filter stands before it. The link count of a task directory is two plus one for each
        // thread (proc(5)).
        _ => Ok(rustix::fs::stat("/proc/self/task")?.st_nlink == 3),
    }
}

/// Sends signal number `signal` to `pid`, real-time signals included.
///
/// # Errors
/// What `kill(2)` reports.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: `kill` takes plain integers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends signal number `signal` to the process that `pidfd` stands for.
///
/// # Errors
/// `ESRCH` when it has been reaped, `EPERM`, and what `pidfd_send_signal(2)` reports.
pub fn pidfd_kill(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed and makes the call behave like kill(2); nothing else is a pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives every signal its default action again and unblocks all, as a program expects at its start
/// (an ignored or blocked signal would survive `execve(2)`).
///
/// # Errors
/// What `sigprocmask(2)` reports.
pub fn reset_signals() -> io::Result<()> {
    // The kernel's `struct sigaction`, all zero: SIG_DFL, no flags, an empty mask. Larger than it is on any
    // architecture.
    let default = [0u64; 8];
    // The size of the kernel's signal set in bytes: one bit for each of 64 signals.
    let set_size = 8usize;
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: the kernel reads a sigaction from `default`, which is larger than one and outlives the call, and
        // stores nothing. SIG_DFL installs no handler. Not through the C library, which refuses the two signals
        // that it keeps for itself and that its posix_spawn leaves ignored.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), set_size)
        };
    }
    SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// Lets a write beyond the file size limit (`RLIMIT_FSIZE`) fail with `EFBIG` instead of ending this process by SIGXFSZ,
/// whose default action that is (setrlimit(2)). By a handler that does nothing: unlike a signal that is ignored it ends
/// with `execve(2)`, so programs that are started from here have the default. A caller's choice to ignore the signal
/// stays.
pub fn survive_file_size_limit() {
    extern "C" fn nothing(_: libc::c_int) {}
    let survive = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler touches nothing, so it may run at any moment in any thread.
    let before = unsafe { sigaction(Signal::SIGXFSZ, &survive) };
    // There is no error: the signal exists, and may be handled.
    if let Ok(before) = &before
        && matches!(before.handler(), SigHandler::SigIgn)
    {
        // SAFETY: the action that was there before has no handler.
        unsafe { sigaction(Signal::SIGXFSZ, before) }.ok();
    }
}

/// Has the process that `command` starts get `signal` when the thread that started it ends
/// (`PR_SET_PDEATHSIG`). Its own children do not.
pub fn signal_when_orphaned(command: &mut std::process::Command, signal: i32) {
    use std::os::unix::process::CommandExt;
    let set = move || {
        // SAFETY: this prctl takes plain integers and touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call, which is async-signal-safe, and allocates
    // nothing: `last_os_error` only reads errno.
    unsafe { command.pre_exec(set) };
}

/// Sets a resource limit, (soft, hard); `u64::MAX` is unlimited. `resource` is a `RLIMIT_` number.
///
/// # Errors
/// What `setrlimit(2)` reports.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    let result = unsafe { libc::setrlimit(resource as _, &raw const limit) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the execution domain of this process (personality(2)).
///
/// # Errors
/// What `personality(2)` reports.
pub fn set_personality(persona: u32) -> io::Result<()> {
    // SAFETY: `personality` takes a plain integer and touches no memory of ours.
    if unsafe { libc::personality(persona.into()) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leaves the session keyring that was inherited for a new one, of this name or without one (`keyctl(2)`,
/// `KEYCTL_JOIN_SESSION_KEYRING`). Nothing happens where the kernel has no keyrings, and where a filter keeps this
/// process, and with it all that it starts, from them.
///
/// # Errors
/// What `keyctl` reports, `EDQUOT` for a user with too many.
pub fn new_session_keyring(name: Option<&str>) -> io::Result<()> {
    let name = name.map(std::ffi::CString::new).transpose()?;
    let pointer = name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
    // SAFETY: the name is NUL-terminated and outlives the call, which only reads it; without one the kernel makes one up.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, pointer) };
    match result {
        -1 => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// Attributes of `sched_setattr(2)`, `struct sched_attr` of `<linux/sched/types.h>`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SchedulingAttributes {
    /// Size of this structure in bytes; [`set_scheduling`] sets it.
    size: u32,
    /// `SCHED_` number.
    pub policy: u32,
    /// `SCHED_FLAG_` values.
    pub flags: u64,
    /// Niceness, for ordinary policies.
    pub nice: i32,
    /// Priority, for real-time policies.
    pub priority: u32,
    /// Nanoseconds, for deadlines.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds.
    pub period: u64,
}

/// Sets how process `pid` is scheduled.
///
/// # Errors
/// What `sched_setattr(2)` reports.
pub fn set_scheduling(pid: i32, mut attributes: SchedulingAttributes) -> io::Result<()> {
    attributes.size = size_of::<SchedulingAttributes>() as u32;
    // SAFETY: the kernel reads `size` bytes of the structure, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the I/O priority of process `pid`: the class (`IOPRIO_CLASS_` of `<linux/ioprio.h>`) and the level in it.
///
/// # Errors
/// What `ioprio_set(2)` reports.
pub fn set_io_priority(pid: i32, class: u32, level: u32) -> io::Result<()> {
    /// `IOPRIO_WHO_PROCESS`.
    const PROCESS: libc::c_int = 1;
    let priority = (class << 13) | (level & 0x1fff);
    // SAFETY: the call takes plain integers and touches no memory.
    if unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, pid, priority) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets a resource limit of process `pid`, (soft, hard).
///
/// # Errors
/// What `prlimit(2)` reports.
pub fn set_rlimit_of(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a valid rlimit that outlives the call; no old limit is asked for.
    let result = unsafe { libc::prlimit64(pid, resource as _, &raw const limit, std::ptr::null_mut()) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A resource limit of this process, (soft, hard).
///
/// # Errors
/// What `prlimit(2)` reports.
pub fn rlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer that outlives the call; nothing is set.
    let result = unsafe { libc::prlimit64(0, resource as _, std::ptr::null(), &raw mut limit) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok((limit.rlim_cur, limit.rlim_max)) }
}

/// Sets from which memory nodes this process and its children get memory: an `MPOL_` mode with its flags, and the nodes
/// (`set_mempolicy(2)`).
///
/// # Errors
/// What `set_mempolicy` reports, `ENOSYS` on a kernel without.
pub fn set_memory_policy(mode: u32, nodes: &[u32]) -> io::Result<()> {
    const BITS: u32 = u64::BITS;
    let words = nodes.iter().max().map_or(0, |highest| highest / BITS + 1);
    let mut mask = vec![0u64; words as usize];
    for node in nodes {
        mask[(node / BITS) as usize] |= 1 << (node % BITS);
    }
    let pointer = if mask.is_empty() { std::ptr::null() } else { mask.as_ptr() };
    // One more than the bits that count: the kernel takes it off again.
    let bits = if mask.is_empty() { 0 } else { u64::from(words * BITS) + 1 };
    // SAFETY: the kernel reads `bits` - 1 bits of the mask, which is as long and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The id of this thread's session keyring; none where there are no keyrings.
    fn session_keyring() -> Option<i64> {
        // SAFETY: plain integers.
        let id = unsafe {
            libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, libc::KEY_SPEC_SESSION_KEYRING, 0)
        };
        (id != -1).then_some(id)
    }

    #[test]
    fn a_session_keyring_is_left_behind() {
        new_session_keyring(Some("before")).unwrap();
        let before = session_keyring();
        new_session_keyring(None).unwrap();
        let after = session_keyring();
        if before.is_none() {
            println!("skipped: a_session_keyring_is_left_behind: no keyrings here");
        }
        assert!(before.is_none() || (after.is_some() && after != before), "{before:?} {after:?}");
    }
}
