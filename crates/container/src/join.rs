//! Entering a running sandbox: another process inside (`exec`), and the namespaces that others share with it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use init::entry::{self, Joining};
use init::process::{Filter, Process};
use init::report::{Failure, Outcome, Stage};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use rustix::process::{DumpableBehavior, PidfdFlags, getpid, pidfd_open, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use sys::channel::Channel;
use sys::process::{Child, namespace};

use crate::Error;
use crate::launch::{self, receive, refused, stdio};
use crate::userns;

/// What a join is given beside the process.
#[derive(Debug)]
pub struct Target<'a> {
    /// PID 1 of the sandbox.
    pub pidfd: BorrowedFd<'a>,
    /// The program of [`crate::program::init`].
    pub init: BorrowedFd<'a>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// The cgroup v2 directory of the sandbox.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` of further cgroups, those of cgroup v1, which nothing can be born in.
    pub entered: &'a [OwnedFd],
    /// Seccomp programs.
    pub filters: &'a [Filter],
    /// The new process becomes a child of the caller's parent, which reaps it.
    pub beside: bool,
}

/// Every namespace of a sandbox but the user namespace, which its makers stand in.
pub const SANDBOX: u64 = namespace::MOUNT
    | namespace::PID
    | namespace::NETWORK
    | namespace::UTS
    | namespace::IPC
    | namespace::CGROUP;

/// Starts `process` in `namespaces` of the sandbox ([`SANDBOX`], or those of it that are its own), and in the caller's
/// otherwise. It becomes a child of the caller, who must be root of the user namespace that owns them.
///
/// # Errors
/// The step that failed; no process is left then.
pub fn join(process: &Process, namespaces: u64, target: &Target<'_>) -> Result<Child, Error> {
    let joining =
        Joining { namespaces, root: false, keyring: None, affinity: [None, None], process: process.clone() };
    join_as(&joining, target, |_, _| Ok(()))
}

/// As [`join`], with more to choose. `meanwhile` is called with the new process's number when it exists, and once more
/// with the listening end of its seccomp filter, if that asks somebody.
///
/// # Errors
/// As [`join`], and what `meanwhile` returns.
pub(crate) fn join_as<E: From<Error>>(
    joining: &Joining,
    target: &Target<'_>,
    mut meanwhile: impl FnMut(i32, Option<OwnedFd>) -> Result<(), E>,
) -> Result<Child, E> {
    let fail = |what: &'static str| Error::system(what);
    let encoded = entry::encode(joining, target.filters).map_err(fail("encode the process"))?;
    let description =
        sys::fd::sealed(c"process", &encoded[..], false).map_err(fail("store the process in memory"))?;
    let (read, write) = Channel::pair().map_err(fail("create a socket pair"))?;
    let spawn =
        sys::process::SpawnArgs { cgroup: target.cgroup, sibling: target.beside, ..Default::default() };
    let joiner = sys::process::spawn_with(spawn, || {
        let inherited = [target.pidfd, description.as_fd(), write.as_fd()];
        let failure = become_joiner(target, joining.process.preserve_fds, &inherited);
        failure.send(&write);
        failure.exit_code()
    })
    .map_err(fail("create a process"))?;
    drop(write);
    let end = if target.beside { userns::end_of_another } else { userns::end };
    let started = match receive(read.as_fd()) {
        Ok(Outcome::Started(pid)) => pid,
        outcome => {
            end(&joiner).map_err(fail("reap the joiner"))?;
            return Err(refused(outcome, "process").into());
        }
    };
    // The joiner ends by itself after its message; otherwise it is not ours to reap.
    if !target.beside {
        waitpid(Pid::from_raw(joiner.pid), None).map_err(|e| fail("wait for the joiner")(e.into()))?;
    }
    let child = userns::adopt(started)?;
    let mut executed = || -> Result<(), E> {
        meanwhile(started, None)?;
        loop {
            match launch::receive_with(read.as_fd()) {
                Ok((Outcome::Executed, _)) => return Ok(()),
                Ok((Outcome::Listener, listener)) => meanwhile(started, listener)?,
                Ok((outcome, _)) => return Err(refused(Ok(outcome), "process").into()),
                Err(error) => return Err(refused(Err(error), "process").into()),
            }
        }
    };
    match executed() {
        Ok(()) => Ok(child),
        Err(error) => {
            end(&child).map_err(fail("reap the new process"))?;
            Err(error)
        }
    }
}

/// Moves this thread, or for [`namespace::PID`] its children to come, into a namespace of the process `of`.
pub(crate) fn enter(of: BorrowedFd<'_>, kind: u64) -> rustix::io::Result<()> {
    move_into_thread_name_spaces(of, ThreadNameSpaceType::from_bits_retain(kind as _))
}

/// Has `make` make its child in the PID namespace of `of`, the first process of a sandbox. Who is in there sees the child
/// from its first moment, while its memory is a copy of this one's: unless it may be `readable`, it is born undumpable.
///
/// # Errors
/// What the kernel reports, and what `make` returns.
pub(crate) fn born_in(
    of: BorrowedFd<'_>,
    readable: bool,
    make: impl FnOnce() -> io::Result<Child>,
) -> Result<Child, Error> {
    let fail = |what: &'static str| move |e: rustix::io::Errno| Error::system(what)(e.into());
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(fail("open this process"))?;
    if !readable {
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail("hide this process's memory"))?;
    }
    let made = match enter(of, namespace::PID) {
        Ok(()) => make().map_err(|error| match error.raw_os_error() {
            // clone(2): nothing is born any more where the first process has ended.
            Some(libc::ENOMEM) => Error::PartnerEnded,
            _ => Error::system("create the namespaces of the service")(error),
        }),
        Err(rustix::io::Errno::SRCH) => Err(Error::PartnerEnded),
        Err(errno) => Err(fail("enter the PID namespace of another service")(errno)),
    };
    let back = enter(own.as_fd(), namespace::PID).and_then(|()| match readable {
        true => Ok(()),
        false => set_dumpable_behavior(DumpableBehavior::Dumpable),
    });
    if back.is_err() {
        // Whatever is made from here on would be a part of that container. With this process all that it made ends.
        std::process::abort();
    }
    made
}

/// The shared memory of a running sandbox, what is mounted at `/dev/shm` there, as a detached mount: it belongs to an IPC
/// namespace as much as what the kernel keeps in it (`shm_open(3)`). `of` is its first process.
///
/// # Errors
/// What the kernel reports.
pub fn shared_memory(of: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let fail = |what: &'static str| Error::system(what);
    let (read, write) = Channel::pair().map_err(fail("create a socket pair"))?;
    // Of the sandbox it has the mounts only. Nobody in there sees it.
    let child = sys::process::spawn(0, || {
        let open = || -> io::Result<()> {
            enter(of, namespace::MOUNT)?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            let tree = rustix::mount::open_tree(CWD, "/dev/shm", flags)?;
            write.send(b"/", &[tree.as_fd()])
        };
        match open() {
            Ok(()) => 0,
            Err(error) => {
                Failure::new(Stage::Namespace, "/dev/shm of another service", error).send(&write);
                1
            }
        }
    })
    .map_err(fail("create a process"))?;
    drop(write);
    let received = sys::channel::wait_readable(read.as_fd(), std::time::Instant::now() + SHM_DEADLINE)
        .and_then(|()| sys::channel::recv_fds(read.as_fd(), init::report::LONGEST));
    userns::end(&child).map_err(fail("reap the process"))?;
    let mut message = received.map_err(fail("take the shared memory of another service"))?;
    match message.fds.pop() {
        Some(tree) => Ok(tree),
        None => Err(refused(init::report::decode(&message.bytes), "process")),
    }
}

/// How long a process may take to open a mount.
const SHM_DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

fn become_joiner(target: &Target<'_>, preserve_fds: u32, inherited: &[BorrowedFd<'_>]) -> Failure {
    let prepare = || -> Result<(), Failure> {
        let fail = |what: &'static str| move |e: io::Error| Failure::new(Stage::Setup, what, e);
        sys::process::reset_signals().map_err(fail("reset signals"))?;
        for procs in target.entered {
            rustix::io::write(procs, b"0").map_err(|e| fail("enter a cgroup of version 1")(e.into()))?;
        }
        stdio(target.stdio)?;
        sys::fd::close_on_exec_from(3 + preserve_fds).map_err(fail("close descriptors"))?;
        for fd in inherited {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
                .map_err(|e| fail("keep a descriptor")(e.into()))?;
        }
        Ok(())
    };
    if let Err(failure) = prepare() {
        return failure;
    }
    execute_init(target.init, c"join", inherited)
}

/// Replaces this process by `inception-init` in this mode, with these descriptors as its arguments.
pub(crate) fn execute_init(init: BorrowedFd<'_>, mode: &CStr, inherited: &[BorrowedFd<'_>]) -> Failure {
    let numbers: Vec<_> =
        inherited.iter().filter_map(|fd| CString::new(fd.as_raw_fd().to_string()).ok()).collect();
    let mut argv = vec![c"inception-init".to_owned(), mode.to_owned()];
    argv.extend(numbers);
    let environment: [&CStr; 0] = [];
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    let Err(errno) = nix::unistd::execveat(init, c"", &argv, &environment, flags);
    Failure::new(Stage::Exec, "inception-init", io::Error::from(errno))
}
