//! The new process, from clone to `inception-init`: one straight line.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use init::entry::{self, Waiting};
use init::process::{Process, become_root};
use init::report::{Failure, Stage};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sys::mount::{attribute, propagation};
use sys::process::namespace;

use super::plan::Plan;
use super::{console, devices, mounts, netdev};
use crate::join::execute_init;
use crate::launch::{make_directory, pivot, sysctl};
use crate::mounts::{Mounted, make_readonly, mask};
use crate::program;

/// How long the parent may take until it lets the child go on: it runs hooks meanwhile.
const GO_DEADLINE: Duration = Duration::from_secs(600);

/// What the child is given.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) plan: &'a Plan,
    pub(super) id: &'a str,
    /// Namespaces to join, opened by the parent, but for those that only children enter.
    pub(super) joined: &'a [(u64, OwnedFd)],
    /// The root, where the parent opened it.
    pub(super) root: Option<&'a OwnedFd>,
    /// Bind mounts that the parent opened.
    pub(super) binds: &'a [Option<OwnedFd>],
    /// This program acts as `inception-init`.
    pub(super) acts_as_init: bool,
    /// To and from the parent.
    pub(super) channel: BorrowedFd<'a>,
    /// The socket on which `start` is awaited.
    pub(super) start: BorrowedFd<'a>,
    /// Who gets the other end of the terminal.
    pub(super) console: Option<&'a OwnedFd>,
    pub(super) preserve_fds: u32,
    pub(super) no_pivot: bool,
    pub(super) no_new_keyring: bool,
}

/// Never returns but with what failed.
pub(super) fn run(around: &Surroundings<'_>) -> Failure {
    match enter(around) {
        Ok((waiting, program)) => become_init(around, &waiting, program.as_fd()),
        Err(failure) => failure,
    }
}

fn setup(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::new(Stage::Setup, what, error)
}

fn enter(around: &Surroundings<'_>) -> Result<(Waiting, OwnedFd), Failure> {
    let plan = around.plan;
    // 1. A process of its own, which dies with its parent until it is a container.
    sys::process::reset_signals().map_err(setup("reset signals"))?;
    die_with_parent()?;
    rustix::process::umask(Mode::empty());
    match rustix::process::setsid() {
        // An intermediate process can have given it a session already.
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(errno) => return Err(setup("begin a session")(errno.into())),
    }
    join_namespaces(around.joined)?;
    let state = wait_to_go(around.channel)?;
    if plan.namespaces.makes(namespace::USER) {
        become_root()?;
        die_with_parent()?;
    }
    // Until it executes init this process holds the runtime's memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| setup("make the process undumpable")(e.into()))?;
    if plan.namespaces.makes(namespace::CGROUP) {
        // Only now: its root is the cgroup that this process stands in.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
            .map_err(|e| Failure::new(Stage::Namespace, "a new cgroup namespace", e))?;
    }
    let init = program::protected(around.acts_as_init).map_err(setup("protect inception-init"))?;
    if !around.no_new_keyring {
        sys::process::new_session_keyring(Some(&format!("_ses.{}", around.id)))
            .map_err(setup("make a session keyring"))?;
    }
    names(plan)?;
    if plan.namespaces.makes(namespace::NETWORK) {
        netdev::bring_loopback_up()
            .map_err(|e| Failure::new(Stage::Namespace, "the new network namespace: bring lo up", e))?;
    }
    if let Some((mode, nodes)) = plan.program.as_ref().and_then(|program| program.scheduling.memory.as_ref())
    {
        sys::process::set_memory_policy(*mode, nodes).map_err(setup("set the memory policy"))?;
    }

    // 2. The root and everything below it. The host's file systems are still there under their own names.
    let root = root(around)?;
    let mounted = carry_out_mounts(around, root.as_fd())?;
    let program = plan.program.as_ref();
    for (name, value) in &plan.sysctls {
        sysctl(name, value)?;
    }
    for path in &plan.masked_paths {
        mask(&mounted, path)?;
    }
    for path in &plan.readonly_paths {
        make_readonly(&mounted, path)?;
    }
    if let Some(program) = program {
        make_directory(root.as_fd(), &program.process.cwd)?;
    }
    for hook in &plan.hooks.create_container {
        init::hook::run(hook, &state).map_err(|reason| Failure {
            stage: Stage::Hook,
            detail: format!("createContainer hook {}: {reason}", hook.path.display()),
            errno: 0,
            obstacle: None,
        })?;
    }

    // 3. Nothing of the host's is reachable from here on.
    if around.no_pivot {
        // Another's mount namespace is not ours to change.
        if plan.namespaces.makes(namespace::MOUNT) {
            hide_bare_kernel_files()?;
        }
        move_root(root.as_fd())?
    } else {
        pivot(root.as_fd())?
    }
    drop(mounted);
    drop(root);
    finish_root(plan)?;

    // 4. From here on it lives without its parent.
    rustix::process::set_parent_process_death_signal(None)
        .map_err(|e| setup("outlive the runtime")(e.into()))?;
    let mut process = program.map_or_else(Process::default, |program| program.process.clone());
    process.preserve_fds = around.preserve_fds;
    let hooks = plan.hooks.start_container.clone();
    Ok((Waiting { hooks, state: started_state(&state), process }, init))
}

/// What `startContainer` hooks read: the container has been created by then.
fn started_state(state: &str) -> String {
    state.replacen("\"status\":\"creating\"", "\"status\":\"created\"", 1)
}

fn die_with_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| setup("tie the process to the runtime")(e.into()))
}

fn join_namespaces(joined: &[(u64, OwnedFd)]) -> Result<(), Failure> {
    for (kind, fd) in joined {
        let (kind, name) = match *kind {
            namespace::MOUNT => (LinkNameSpaceType::Mount, "mount"),
            namespace::UTS => (LinkNameSpaceType::HostNameAndNISDomainName, "UTS"),
            namespace::IPC => (LinkNameSpaceType::InterProcessCommunication, "IPC"),
            namespace::NETWORK => (LinkNameSpaceType::Network, "network"),
            namespace::CGROUP => (LinkNameSpaceType::ControlGroup, "cgroup"),
            // Entered before this process was made.
            _ => continue,
        };
        move_into_link_name_space(fd.as_fd(), Some(kind)).map_err(|e| {
            Failure::new(Stage::Namespace, format!("the {name} namespace of linux.namespaces"), e)
        })?;
    }
    Ok(())
}

/// Waits for the parent; its message is the container's state.
fn wait_to_go(channel: BorrowedFd<'_>) -> Result<String, Failure> {
    let receive = || -> io::Result<String> {
        sys::channel::wait_readable(channel, Instant::now() + GO_DEADLINE)?;
        let message = sys::channel::recv_fds(channel, super::create::STATE_LIMIT)?;
        if message.bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        String::from_utf8(message.bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    };
    receive().map_err(setup("wait for the runtime"))
}

fn names(plan: &Plan) -> Result<(), Failure> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|e| Failure::new(Stage::Namespace, format!("host name `{name}`"), e))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|e| Failure::new(Stage::Namespace, format!("domain name `{name}`"), e))?;
    }
    Ok(())
}

/// Puts the container's root over the root of this mount namespace.
fn root(around: &Surroundings<'_>) -> Result<OwnedFd, Failure> {
    let fail = |what: &'static str| move |e: io::Error| Failure::new(Stage::Rootfs, what, e);
    if around.plan.namespaces.makes(namespace::MOUNT) {
        let top = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| fail("open /")(e.into()))?;
        sys::mount::set_propagation(top.as_fd(), propagation::SLAVE, true)
            .map_err(fail("separate it from the host's mounts"))?;
    }
    let tree = match around.root {
        Some(tree) => tree.try_clone().map_err(fail("take it"))?,
        None => mounts::open_root(&around.plan.rootfs)
            .map_err(|error| Failure::new(Stage::Rootfs, around.plan.rootfs.display().to_string(), error))?,
    };
    sys::mount::set_propagation(tree.as_fd(), propagation::SLAVE, true).map_err(fail("separate it"))?;
    mounts::place_root(tree.as_fd()).map_err(fail("put it in place"))?;
    Ok(tree)
}

fn carry_out_mounts<'a>(around: &Surroundings<'a>, root: BorrowedFd<'a>) -> Result<Mounted<'a>, Failure> {
    let plan = around.plan;
    let another_user = plan.namespaces.another_user();
    let with = mounts::Surroundings {
        root,
        opened: around.binds,
        another_user,
        own_cgroups: plan.namespaces.makes(namespace::CGROUP),
    };
    let foreign_dev = plan.foreign_dev();
    let mut sealed_dev = Vec::new();
    let mut below = Vec::new();
    for (index, mount) in plan.mounts.iter().enumerate() {
        let dev = mount.target.trim_end_matches('/') == "/dev" && mount.change.set & attribute::RDONLY != 0;
        let fs = if dev && !foreign_dev {
            // Not yet: device nodes, links and the console are made in it.
            let mut open = mount.clone();
            open.change.set &= !attribute::RDONLY;
            sealed_dev.push(mount);
            mounts::carry_out(index, &open, &with)?
        } else {
            mounts::carry_out(index, mount, &with)?
        };
        if mount.source != mounts::Source::Remount {
            below.push((mount.target.as_str(), fs));
        }
    }
    if !foreign_dev {
        for device in &plan.devices {
            devices::make(root, device, another_user)?;
        }
        devices::link(root)?;
    }
    if let (Some(socket), Some(terminal)) =
        (around.console, plan.program.as_ref().and_then(|program| program.terminal))
    {
        console::take(root, socket.as_fd(), terminal)?;
    }
    for mount in sealed_dev {
        mounts::change_again(root, mount)?;
    }
    Ok(Mounted { root, below })
}

/// Without `pivot_root(2)` the old root stays in this mount namespace. As long as a whole procfs or sysfs is there, the
/// kernel lets a user namespace of the container's mount another one, with nothing covered.
fn hide_bare_kernel_files() -> Result<(), Failure> {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let fail = |path: &str, e: rustix::io::Errno| Failure::new(Stage::Pivot, format!("hide {path}"), e);
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Failure::new(Stage::Pivot, "read the mounts", error))?;
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let kernel = matches!(right.split(' ').next(), Some("proc" | "sysfs"));
        // Names lead to the old root's: those of the new one are over its very top.
        let Some(path) = left.split(' ').nth(4).filter(|_| kernel) else { continue };
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            // Of another user namespace, so that it cannot be taken away; or it has been with what was above it.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {
                match mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, None) {
                    Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                    Err(errno) => return Err(fail(path, errno)),
                }
            }
            Err(errno) => return Err(fail(path, errno)),
        }
    }
    Ok(())
}

/// For roots that `pivot_root(2)` refuses: the new root goes over the old one.
fn move_root(root: BorrowedFd<'_>) -> Result<(), Failure> {
    let fail = |e: rustix::io::Errno| Failure::new(Stage::Pivot, "the root by MS_MOVE", e);
    rustix::process::fchdir(root).map_err(fail)?;
    rustix::process::chroot(".").map_err(fail)?;
    rustix::process::chdir("/").map_err(fail)
}

fn finish_root(plan: &Plan) -> Result<(), Failure> {
    let fail = |e: io::Error| Failure::new(Stage::Rootfs, "its last attributes", e);
    if plan.propagation.is_none() && !plan.read_only {
        return Ok(());
    }
    let root =
        rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|e| fail(e.into()))?;
    if let Some((kind, recursive)) = plan.propagation {
        sys::mount::set_propagation(root.as_fd(), kind, recursive).map_err(fail)?;
    }
    if plan.read_only {
        sys::mount::set_attributes(root.as_fd(), attribute::RDONLY, false).map_err(fail)?;
    }
    Ok(())
}

fn become_init(around: &Surroundings<'_>, waiting: &Waiting, program: BorrowedFd<'_>) -> Failure {
    let filters = around.plan.program.as_ref().map_or(&[][..], |program| &program.filters);
    let prepare = || -> io::Result<OwnedFd> {
        let description = sys::fd::sealed(c"process", entry::encode(waiting, filters)?.as_slice(), false)?;
        sys::fd::close_on_exec_from(3 + around.preserve_fds)?;
        for fd in [description.as_fd(), around.channel, around.start] {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        Ok(description)
    };
    match prepare() {
        Ok(description) => {
            execute_init(program, c"container", &[description.as_fd(), around.channel, around.start])
        }
        Err(error) => setup("hand the process over")(error),
    }
}
