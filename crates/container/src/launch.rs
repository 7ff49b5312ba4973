//! From a [`Sandbox`] to a process: the parent's side and the child's straight line of system calls.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use init::process::{Assumed, CGROUP_NAMESPACE, Filter};
use init::report::{self, Failure, Outcome, Stage};
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sys::channel::Channel;
use sys::process::{Child, SpawnArgs, namespace};

use crate::Error;
use crate::join;
use crate::mounts;
pub use crate::mounts::{ROOTFS, SCRATCH};
use crate::sandbox::Sandbox;
use crate::userns;

/// How long the child may take until it executes its program; the first use of a volume copies data.
const DEADLINE: Duration = Duration::from_secs(300);

/// What a launch is given beside the description.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The program of [`crate::program::init`].
    pub init: BorrowedFd<'a>,
    /// The network namespace to stand in; `None` stays in the caller's.
    pub network: Option<BorrowedFd<'a>>,
    /// The first process of the sandbox whose PID namespace this one has, too.
    pub pid: Option<BorrowedFd<'a>>,
    /// The same for the IPC namespace.
    pub ipc: Option<BorrowedFd<'a>>,
    /// A cgroup v2 directory to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Detached mounts that [`crate::sandbox::MountSource::Descriptor`] counts.
    pub detached: &'a [OwnedFd],
    /// Seccomp programs, see [`crate::seccomp`].
    pub filters: &'a [Filter],
    /// The sandbox's first process becomes a child of the caller's parent, which reaps it.
    pub beside: bool,
    /// Until it executes its program, that process can be watched by who may watch this one, too.
    pub readable: bool,
}

/// A sandbox that runs.
#[derive(Debug)]
pub struct Launched {
    /// Its PID 1.
    pub child: Child,
    /// Where calls that one of the filters asks about are answered, if one does (`seccomp_unotify(2)`).
    pub listener: Option<OwnedFd>,
    /// Its cgroup namespace, where its PID namespace is another's: the processes in there that are its own are those
    /// that have it, and the kernel does not end them with the first.
    pub cgroup_namespace: Option<OwnedFd>,
}

/// Starts a sandbox. The caller must be root of the user namespace that is to own it, with one thread, and its
/// working directory must be the data directory, to which the paths of layers and volumes are relative: the
/// kernel carries it over into the new mount namespace, which it does not do for a descriptor. When this
/// returns the program runs.
///
/// # Errors
/// The step that failed; nothing of the sandbox is left then but what it wrote to its upper directory.
pub fn launch(sandbox: &Sandbox, around: &Surroundings<'_>) -> Result<Launched, Error> {
    let (read, write) = Channel::pair().map_err(Error::system("create a socket pair"))?;
    let shared = |with: Option<_>, kind| if with.is_some() { 0 } else { kind };
    let namespaces = namespace::MOUNT
        | namespace::UTS
        | shared(around.pid, namespace::PID)
        | shared(around.ipc, namespace::IPC);
    let spawn = SpawnArgs { namespaces, cgroup: around.cgroup, sibling: around.beside };
    let make = || {
        sys::process::spawn_with(spawn, || {
            let failure = match enter(sandbox, around, write.as_fd()) {
                Ok(assumed) => become_program(sandbox, around, &assumed, write.as_fd()),
                Err(failure) => failure,
            };
            failure.send(&write);
            failure.exit_code()
        })
    };
    let child = match around.pid {
        Some(of) => join::born_in(of, around.readable, make)?,
        None => make().map_err(Error::system("create the namespaces of the service"))?,
    };
    drop(write);
    let (mut listener, mut cgroup_namespace) = (None, None);
    let outcome = loop {
        match receive_with(read.as_fd()) {
            Ok((Outcome::Executed, _)) => return Ok(Launched { child, listener, cgroup_namespace }),
            Ok((Outcome::Listener, end)) => listener = end,
            Ok((Outcome::CgroupNamespace, namespace)) => cgroup_namespace = namespace,
            other => break other.map(|(outcome, _)| outcome),
        }
    };
    let end = if around.beside { userns::end_of_another } else { userns::end };
    end(&child).map_err(Error::system("reap the new process"))?;
    Err(refused(outcome, "service"))
}

/// Mounts the root file system of a sandbox that does not run, with those of its mounts that are left in it, and returns
/// it. The caller must be root of the user namespace that owns its mount namespace, which has nothing at [`ROOTFS`], and
/// its working directory must be the data directory. Nobody else may have it mounted: overlayfs leaves undefined what
/// becomes of files that are reached by two mounts of one writable layer.
///
/// # Errors
/// The mount that failed.
pub fn mount_at_rest(sandbox: &Sandbox, detached: &[OwnedFd]) -> Result<OwnedFd, Error> {
    for directory in [&sandbox.root.upper, &sandbox.root.work] {
        std::fs::create_dir_all(directory).map_err(Error::system(format!("create {directory}")))?;
    }
    let mount = || -> Result<OwnedFd, Failure> {
        let root = mounts::root(&sandbox.root)?;
        for mount in &sandbox.mounts {
            mounts::one(root.as_fd(), mount, detached)?;
        }
        if sandbox.read_only {
            sys::mount::set_attributes(root.as_fd(), sys::mount::attribute::RDONLY, false)
                .map_err(|e| Failure::new(Stage::Mount, "/ read-only", e))?;
        }
        Ok(root)
    };
    mount().map_err(Error::child)
}

/// Why a new process, a `what`, did not execute its program.
pub(crate) fn refused(outcome: io::Result<Outcome>, what: &str) -> Error {
    match outcome {
        Ok(Outcome::Failed(failure)) => Error::child(failure),
        Err(error) => Error::system(format!("wait for the {what} to execute its program"))(error),
        Ok(_) => Error::Silent,
    }
}

pub(crate) fn receive(pipe: BorrowedFd<'_>) -> io::Result<Outcome> {
    sys::channel::wait_readable(pipe, Instant::now() + DEADLINE)?;
    report::receive(pipe)
}

/// As [`receive`], with the listening end of a filter where the message brought one.
pub(crate) fn receive_with(socket: BorrowedFd<'_>) -> io::Result<(Outcome, Option<OwnedFd>)> {
    sys::channel::wait_readable(socket, Instant::now() + DEADLINE)?;
    let mut message = sys::channel::recv_fds(socket, report::LONGEST)?;
    Ok((report::decode(&message.bytes)?, message.fds.pop()))
}

/// Everything between clone and the program's own identity, in order.
fn enter(sandbox: &Sandbox, around: &Surroundings<'_>, report: BorrowedFd<'_>) -> Result<Assumed, Failure> {
    sys::process::reset_signals().map_err(|e| Failure::new(Stage::Setup, "reset signals", e))?;
    if let Some(score) = sandbox.oom_score_adj {
        set_oom_score(score).map_err(|e| Failure::new(Stage::Setup, "oom_score_adj", e))?;
    }
    // Until exec this process holds the stack's memory. It is alone in its PID namespace, or was born undumpable.
    if !around.readable {
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .map_err(|e| Failure::new(Stage::Setup, "make the process undumpable", e))?;
    }
    stdio(around.stdio)?;

    // 1. Namespaces that exist already, and the names in the new ones.
    if let Some(network) = around.network {
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network))
            .map_err(|e| Failure::new(Stage::Namespace, "the network namespace", e))?;
    }
    if let Some(ipc) = around.ipc {
        join::enter(ipc, namespace::IPC)
            .map_err(|e| Failure::new(Stage::Namespace, "the IPC namespace of another service", e))?;
    }
    // Not with the others: the root of a new one is the cgroup of who makes it, which at clone3 is the caller's.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
        .map_err(|e| Failure::new(Stage::Namespace, "a new cgroup namespace", e))?;
    if around.pid.is_some() {
        send_cgroup_namespace(report)
            .map_err(|e| Failure::new(Stage::Namespace, "pass on the cgroup namespace", e))?;
    }
    rustix::system::sethostname(sandbox.hostname.as_bytes())
        .map_err(|e| Failure::new(Stage::Namespace, "the UTS namespace", e))?;

    // 2. The root and everything below it.
    mounts::scratch()?;
    let root = mounts::root(&sandbox.root)?;
    for mount in &sandbox.mounts {
        mounts::one(root.as_fd(), mount, around.detached)?;
    }
    // Nobody else has this root: the names in it are what they were.
    let mounted = mounts::Mounted { root: root.as_fd(), below: Vec::new() };
    for path in &sandbox.masked_paths {
        mounts::mask(&mounted, path)?;
    }
    for (name, value) in &sandbox.sysctls {
        sysctl(name, value)?;
    }
    for path in &sandbox.readonly_paths {
        mounts::make_readonly(&mounted, path)?;
    }
    make_directory(root.as_fd(), &sandbox.process.cwd)?;

    // 3. Nothing of the host's is reachable from here on.
    pivot(root.as_fd())?;
    if sandbox.read_only {
        let root = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
            .map_err(|e| Failure::new(Stage::Pivot, "/", e))?;
        sys::mount::set_attributes(root.as_fd(), sys::mount::attribute::RDONLY, false)
            .map_err(|e| Failure::new(Stage::Mount, "/ read-only", e))?;
    }

    // 4. The program's identity.
    let keep: &[BorrowedFd<'_>] = if sandbox.init.is_some() { &[report] } else { &[] };
    sandbox.process.assume(around.filters, keep, Some(report))
}

fn become_program(
    sandbox: &Sandbox,
    around: &Surroundings<'_>,
    assumed: &Assumed,
    report: BorrowedFd<'_>,
) -> Failure {
    use std::os::fd::AsRawFd;
    let Some(verbosity) = sandbox.init else { return assumed.exec(&sandbox.process.argv) };
    let mut argv = vec![
        "inception-init".to_owned(),
        "pid1".to_owned(),
        verbosity.to_string(),
        report.as_raw_fd().to_string(),
    ];
    argv.extend(sandbox.process.argv.iter().cloned());
    assumed.exec_fd(around.init, &argv)
}

fn send_cgroup_namespace(report: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let own = rustix::fs::open("/proc/self/ns/cgroup", flags, rustix::fs::Mode::empty())?;
    sys::channel::send_fd(report, &[CGROUP_NAMESPACE], own.as_fd())
}

/// What is not dumpable may not write to its own files in `/proc`. Nobody in a container sees this process.
fn set_oom_score(score: i32) -> rustix::io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    // The number that this process has where `/proc` is from, which is an older namespace than its own.
    let own = rustix::fs::readlink("/proc/self", Vec::new())?;
    let own = own.to_str().map_err(|_| rustix::io::Errno::INVAL)?;
    init::procfs::write(&format!("{own}/oom_score_adj"), &score.to_string())
}

pub(crate) fn stdio([stdin, stdout, stderr]: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
    rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr))
        .map_err(|e| Failure::new(Stage::Setup, "standard input and output", e))
}

/// Through the `/proc` of before the change of roots, where nothing of the container's can stand in the way. The file
/// belongs to the namespaces of who opens it.
pub(crate) fn sysctl(name: &str, value: &str) -> Result<(), Failure> {
    // A name with slashes may have dots in its parts (sysctl(8)).
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    init::procfs::write(&format!("sys/{path}"), value)
        .map_err(|e| Failure::new(Stage::Sysctl, format!("{name} = {value}"), e))
}

/// Docker makes a missing working directory.
pub(crate) fn make_directory(root: BorrowedFd<'_>, path: &str) -> Result<(), Failure> {
    mounts::ensure_directory(root, path).map_err(|e| Failure::new(Stage::WorkingDirectory, path, e))
}

pub(crate) fn pivot(root: BorrowedFd<'_>) -> Result<(), Failure> {
    let fail = |e: rustix::io::Errno| Failure::new(Stage::Pivot, ROOTFS, e);
    rustix::process::fchdir(root).map_err(fail)?;
    // The old root ends up on top of the new one and is taken away again (pivot_root(2), "."/".").
    rustix::process::pivot_root(".", ".").map_err(fail)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(fail)?;
    rustix::process::chdir("/").map_err(fail)
}
