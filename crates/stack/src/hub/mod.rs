//! The hub: PID 1 of a stack, root of its user namespace, and owner of everything that the kernel takes away
//! when it dies.
//!
//! [`client::Hub`] is the supervisor's side; [`serve`] is what the hub process runs.

pub(crate) mod client;
mod launcher;
mod porter;
mod remains;

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use container::Process;
use container::launch::Launched;
use container::sandbox::{Mount, MountSource, Sandbox, Seccomp};
use network::link::Namespaces;
use network::plan::{Network, NetworkPlan};
use network::shape::Shape;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags};
use rustix::mount::MountPropagationFlags;
use serde::{Deserialize, Serialize};
use sys::channel::{Channel, Message};
use sys::process::Child;

use launcher::Launcher;
use porter::Porter;

use crate::remote::{self, Context, RemoteError};
use crate::report::report;

/// What the supervisor asks of the hub.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Wire this plan. Answered by `Done` with the names of the networks that are new.
    Wire(NetworkPlan),
    /// The name server's sockets of these networks, two of each: no more than fit into one message.
    Names(Vec<Network>),
    /// Take the other end of netd's channel (one descriptor).
    Netd,
    /// Have what containers send out of their networks end at sockets. Answered by `Intercepted`.
    Intercept,
    /// Have what containers send out of their networks leave by `device`, on whose network another program is `gateway`.
    Detour { device: String, gateway: Ipv4Addr },
    /// Start a sandbox in the network namespace of the container `network`, or in the host's. Descriptors: standard
    /// input, output, error, then the detached mounts, then the cgroup
    /// directory if there is one.
    Start { sandbox: Box<Sandbox>, network: Option<String>, partners: Partners<i32>, cgroup: bool },
    /// Start a process in the sandbox whose PID 1 is `target`. Descriptors: as with `Start`.
    Exec { target: i32, process: Box<Process>, cgroup: bool },
    /// A TCP socket in a service's network namespace.
    Socket { service: String },
    /// A TCP socket that listens on a port in a container's network namespace.
    Listen { container: String, port: u16 },
    /// Shape a container's links like this and no more.
    Shape { container: String, shape: Shape },
    /// Cut a container off from these too, or from everybody when there is none.
    Partition { container: String, from: Vec<String> },
    /// Take everything away that is wrong with a container's network.
    Heal { container: String },
    /// Delete these directories, relative to the data directory.
    Remove { paths: Vec<String> },
    /// Write this file, likewise, in a directory that is made if need be.
    Write { path: String, content: String },
}

/// The first processes of the sandboxes whose PID and IPC namespaces another one has, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Partners<T> {
    pub(crate) pid: Option<T>,
    pub(crate) ipc: Option<T>,
}

impl<T> Partners<T> {
    /// The same with something else for each process.
    fn map<U>(&self, mut of: impl FnMut(&T) -> U) -> Partners<U> {
        Partners { pid: self.pid.as_ref().map(&mut of), ipc: self.ipc.as_ref().map(&mut of) }
    }

    /// Both.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pid.iter().chain(&self.ipc)
    }
}

/// What the hub tells the supervisor: one answer to each request, and deaths at any time.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// It is done; names of networks and descriptors as the request says.
    Done { networks: Vec<String> },
    /// The sockets that get what containers send, as [`network::intercept::Intercepted::into_parts`] has them.
    Intercepted { optional: [bool; 5] },
    /// A process runs: its number in the hub's PID namespace, and its pidfd; then, if it asks about its calls, where
    /// they are answered. Of a sandbox in another one's PID namespace the porter sends its cgroup namespace last.
    Started { pid: i32 },
    /// It could not be done, and nothing is left of the attempt.
    Failed(RemoteError),
    /// A process that the hub started has ended: exit code, or 128 plus the signal's number.
    Exited { pid: i32, status: i32, signal: Option<i32> },
}

/// What a hub is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// It can start what has the host's network.
    pub(crate) on_host: bool,
    /// What it starts can be watched, see [`container::launch::Surroundings::readable`].
    pub(crate) readable: bool,
}

/// The hub's life. Returns when the supervisor is gone; its exit takes the stack with it. With [`Needs::on_host`] this
/// process is in the host's network namespace, where it leaves a porter behind.
pub(crate) fn serve(supervisor: Channel, needs: Needs) -> i32 {
    rustix::thread::set_name(c"inception-hub").ok();
    match Hub::new(supervisor, needs).and_then(|mut hub| hub.run()) {
        Ok(()) => 0,
        Err(error) => {
            report(format_args!("error: the stack's hub stops: {error}"));
            1
        }
    }
}

struct Hub {
    supervisor: Channel,
    netd: Option<Channel>,
    children: SignalFd,
    launcher: Launcher,
    /// Starts what has the host's network, in a stack with such services.
    porter: Option<Porter>,
    network: Namespaces,
    /// PID 1 of each sandbox, by its number here.
    sandboxes: HashMap<i32, Running>,
}

/// A sandbox that runs.
struct Running {
    pidfd: OwnedFd,
    /// It has the host's network.
    on_host: bool,
    /// What else is started in it has the same filter.
    seccomp: Seccomp,
    /// What its processes have in common, where the kernel does not end them with the first.
    cgroup_namespace: Option<OwnedFd>,
}

impl Hub {
    fn new(supervisor: Channel, Needs { on_host, readable }: Needs) -> Result<Self, RemoteError> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().map_err(io::Error::from).context(|| "block signals".into())?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&mask, flags)
            .map_err(io::Error::from)
            .context(|| "open a signalfd".into())?;
        prepare_mounts().context(|| "prepare the stack's mount namespace".into())?;
        // Keyrings are not namespaced: with the user's, a service without the filter of system calls would have the user's
        // keys.
        sys::process::new_session_keyring(None).context(|| "make a session keyring".into())?;
        let launcher = Launcher::new(readable)?;
        let mut porter = None;
        if on_host {
            // This process still is in the host's network namespace.
            porter = Some(Porter::spawn(launcher.of_child()?)?);
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .context(|| "create the stack's network namespace".into())?;
        }
        let network = Namespaces::open()?;
        let sandboxes = HashMap::new();
        Ok(Self { supervisor, netd: None, children, launcher, porter, network, sandboxes })
    }

    fn run(&mut self) -> Result<(), RemoteError> {
        loop {
            let ready = self.wait().context(|| "wait for work".into())?;
            if ready.children {
                self.reap().context(|| "report a process that ended".into())?;
            }
            if ready.netd {
                self.serve_netd();
            }
            if ready.supervisor {
                let Some(message) = self.supervisor.recv().context(|| "receive a request".into())? else {
                    return Ok(());
                };
                self.answer(message).context(|| "answer a request".into())?;
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut polled =
            vec![PollFd::new(&self.supervisor, PollFlags::IN), PollFd::new(&self.children, PollFlags::IN)];
        polled.extend(self.netd.as_ref().map(|netd| PollFd::new(netd, PollFlags::IN)));
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let fired = |index: usize| polled.get(index).is_some_and(|p| !p.revents().is_empty());
        Ok(Ready { supervisor: fired(0), children: fired(1), netd: fired(2) })
    }

    /// Reaps everything: what the hub started, and orphans, which as PID 1 it inherits.
    fn reap(&mut self) -> io::Result<()> {
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, status, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid.as_raw(), 128 + signal as i32, Some(signal as i32))
                }
                _ => return Ok(()),
            };
            let ended = self.sandboxes.remove(&pid);
            if let Some(namespace) = ended.and_then(|ended| ended.cgroup_namespace)
                && let Err(error) = remains::end(namespace.as_fd())
            {
                report(format_args!("warning: end what is left of a container: {error}"));
            }
            remote::send(&self.supervisor, &Event::Exited { pid, status, signal }, &[])?;
        }
    }

    fn serve_netd(&mut self) {
        let Some(netd) = &self.netd else { return };
        // A netd that died is the supervisor's to notice and to replace.
        match network::netd::serve_sockets(netd) {
            Ok(true) => {}
            Ok(false) => self.netd = None,
            Err(error) => {
                tracing::warn!("netd's channel: {error}");
                self.netd = None;
            }
        }
    }

    fn answer(&mut self, message: Message) -> io::Result<()> {
        let (request, fds) = remote::decode(message)?;
        let (event, fds) =
            self.carry_out(request, fds).unwrap_or_else(|error| (Event::Failed(error), Vec::new()));
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        remote::send(&self.supervisor, &event, &fds)
    }

    fn carry_out(
        &mut self,
        request: Request,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(Event, Vec<OwnedFd>), RemoteError> {
        match request {
            Request::Wire(plan) => {
                let changes = self.network.apply(&plan)?;
                Ok((Event::Done { networks: changes.networks }, Vec::new()))
            }
            Request::Names(networks) => {
                let sockets = network::names::bind_in_current_namespace(&networks)?;
                Ok((done(), sockets.into_iter().flat_map(|s| [s.udp, s.tcp]).collect()))
            }
            Request::Netd => {
                self.netd = fds.pop().map(Channel::from);
                Ok((done(), Vec::new()))
            }
            Request::Intercept => {
                let (sockets, optional) = self.network.intercept()?.into_parts();
                Ok((Event::Intercepted { optional }, sockets))
            }
            Request::Detour { device, gateway } => {
                self.network.detour(&device, gateway)?;
                Ok((done(), Vec::new()))
            }
            Request::Start { sandbox, network, partners, cgroup } => {
                self.start(sandbox, network.as_deref(), partners, cgroup, fds)
            }
            Request::Exec { target, process, cgroup } => self.exec(target, process, cgroup, fds),
            Request::Socket { service } => {
                let namespace = namespace_of(&self.network, &service)?;
                Ok((done(), vec![network::link::socket_in(namespace)?]))
            }
            Request::Listen { container, port } => {
                let namespace = namespace_of(&self.network, &container)?;
                Ok((done(), vec![network::direct::listen_in(namespace, port)?]))
            }
            Request::Shape { container, shape } => {
                self.network.shape(&container, &shape)?;
                Ok((done(), Vec::new()))
            }
            Request::Partition { container, from } => {
                self.network.partition(&container, &from)?;
                Ok((done(), Vec::new()))
            }
            Request::Heal { container } => {
                self.network.heal(Some(&container))?;
                Ok((done(), Vec::new()))
            }
            Request::Remove { paths } => {
                for path in &paths {
                    image::remove_tree(Path::new(path)).context(|| format!("remove {path}"))?;
                }
                Ok((done(), Vec::new()))
            }
            Request::Write { path, content } => {
                write(Path::new(&path), &content).context(|| format!("write {path}"))?;
                Ok((done(), Vec::new()))
            }
        }
    }

    fn start(
        &mut self,
        mut sandbox: Box<Sandbox>,
        network: Option<&str>,
        partners: Partners<i32>,
        cgroup: bool,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Reply, RemoteError> {
        let of = |first: &i32| self.sandboxes.get(first).map(|partner| partner.pidfd.as_fd());
        let known = partners.map(of);
        if known.iter().any(Option::is_none) {
            return Err(container::Error::PartnerEnded.into());
        }
        let partners = Partners { pid: known.pid.flatten(), ipc: known.ipc.flatten() };
        if let Some(partner) = partners.ipc {
            share_memory(&mut sandbox, partner, cgroup, &mut fds)?;
        }
        let seccomp = sandbox.seccomp.clone();
        let (event, mut fds) = match network {
            Some(container) => {
                let namespace = Some(namespace_of(&self.network, container)?);
                launched(self.launcher.start(&sandbox, namespace, partners, cgroup, fds)?)
            }
            None => self.porter()?.start(sandbox, partners, cgroup, &fds)?,
        };
        let cgroup_namespace = if partners.pid.is_some() { fds.pop() } else { None };
        if let (Event::Started { pid }, Some(pidfd)) = (&event, fds.first()) {
            let pidfd = pidfd.try_clone()?;
            let on_host = network.is_none();
            self.sandboxes.insert(*pid, Running { pidfd, on_host, seccomp, cgroup_namespace });
        }
        Ok((event, fds))
    }

    fn exec(
        &mut self,
        target: i32,
        process: Box<Process>,
        cgroup: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, RemoteError> {
        let target =
            self.sandboxes.get(&target).ok_or_else(|| RemoteError::message("the service is not running"))?;
        if target.on_host {
            let seccomp = target.seccomp.clone();
            return self.porter()?.exec(target.pidfd.as_fd(), process, seccomp, cgroup, &fds);
        }
        Ok(started(self.launcher.exec(target.pidfd.as_fd(), &process, &target.seccomp, cgroup, fds)?))
    }

    fn porter(&self) -> Result<&Porter, RemoteError> {
        self.porter.as_ref().ok_or_else(|| RemoteError::message("the stack has no porter"))
    }
}

/// What is sent back: an event and its descriptors.
type Reply = (Event, Vec<OwnedFd>);

fn started(child: Child) -> Reply {
    (Event::Started { pid: child.pid }, vec![child.pidfd])
}

fn launched(launched: Launched) -> Reply {
    let (event, mut fds) = started(launched.child);
    fds.extend(launched.listener);
    fds.extend(launched.cgroup_namespace);
    (event, fds)
}

/// Has a sandbox get the `/dev/shm` of the one whose IPC namespace it has, in the place of its own.
fn share_memory(
    sandbox: &mut Sandbox,
    partner: BorrowedFd<'_>,
    cgroup: bool,
    fds: &mut Vec<OwnedFd>,
) -> Result<(), RemoteError> {
    let own =
        |mount: &&mut Mount| mount.target == "/dev/shm" && matches!(mount.source, MountSource::Tmpfs { .. });
    if let Some(mount) = sandbox.mounts.iter_mut().find(own) {
        // Behind the detached mounts that are there, which follow the standard streams.
        let at = fds.len() - usize::from(cgroup);
        fds.insert(at, container::join::shared_memory(partner)?);
        mount.source = MountSource::Descriptor(at - 3);
    }
    Ok(())
}

fn namespace_of<'a>(network: &'a Namespaces, container: &str) -> Result<BorrowedFd<'a>, RemoteError> {
    let missing = || RemoteError::message(format!("container `{container}` has no network namespace"));
    network.get(container).ok_or_else(missing)
}

struct Ready {
    supervisor: bool,
    children: bool,
    netd: bool,
}

fn done() -> Event {
    Event::Done { networks: Vec::new() }
}

fn write(path: &Path, content: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, content)
}

/// Nothing that is mounted from here on reaches the host, and nothing of the host's reaches us any more. The
/// working directory is the data directory.
pub(crate) fn prepare_mounts() -> io::Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    for directory in [container::launch::ROOTFS, container::launch::SCRATCH] {
        std::fs::create_dir_all(directory)?;
    }
    Ok(())
}
