//! The hub: PID 1 of a stack, root of its user namespace, and owner of everything that the kernel takes away
//! when it dies.
//!
//! [`client::Hub`] is the supervisor's side; [`serve`] is what the hub process runs.

pub(crate) mod client;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use container::sandbox::Sandbox;
use container::{Filter, Process};
use network::link::Namespaces;
use network::plan::NetworkPlan;
use network::shape::Shape;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags};
use rustix::mount::MountPropagationFlags;
use serde::{Deserialize, Serialize};
use sys::channel::{Channel, Message};

use crate::remote::{self, Context, RemoteError};

/// What the supervisor asks of the hub.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Wire this plan. Answered by `Done` with the name server's sockets of the networks that are new.
    Wire(NetworkPlan),
    /// Take the other end of netd's channel (one descriptor).
    Netd,
    /// Have what containers send out of their networks end at sockets. Answered by `Intercepted`.
    Intercept,
    /// Start a sandbox. Descriptors: standard input, output, error, then the detached mounts, then the cgroup
    /// directory if there is one.
    Start { sandbox: Box<Sandbox>, network: Option<String>, cgroup: bool },
    /// Start a process in the sandbox whose PID 1 is `target`. Descriptors: as with `Start`.
    Exec { target: i32, process: Box<Process>, cgroup: bool },
    /// A TCP socket in a service's network namespace.
    Socket { service: String },
    /// Shape a container's links like this and no more.
    Shape { container: String, shape: Shape },
    /// Cut a container off from these too, or from everybody when there is none.
    Partition { container: String, from: Vec<String> },
    /// Take everything away that is wrong with a container's network.
    Heal { container: String },
    /// Delete these directories, relative to the data directory.
    Remove { paths: Vec<String> },
}

/// What the hub tells the supervisor: one answer to each request, and deaths at any time.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// It is done; descriptors as the request says.
    Done { networks: Vec<String> },
    /// The sockets that get what containers send, as [`network::intercept::Intercepted::into_parts`] has them.
    Intercepted { optional: [bool; 4] },
    /// A process runs: its number in the hub's PID namespace, and its pidfd.
    Started { pid: i32 },
    /// It could not be done, and nothing is left of the attempt.
    Failed(RemoteError),
    /// A process that the hub started has ended: exit code, or 128 plus the signal's number.
    Exited { pid: i32, status: i32, signal: Option<i32> },
}

/// The hub's life. Returns when the supervisor is gone; its exit takes the stack with it.
pub(crate) fn serve(supervisor: Channel) -> i32 {
    match Hub::new(supervisor).and_then(|mut hub| hub.run()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: the stack's hub stops: {error}");
            1
        }
    }
}

struct Hub {
    supervisor: Channel,
    netd: Option<Channel>,
    children: SignalFd,
    init: OwnedFd,
    network: Namespaces,
    /// Compiled seccomp programs by capability set.
    filters: HashMap<u64, Vec<Filter>>,
    /// PID 1 of each sandbox, by its number here.
    sandboxes: HashMap<i32, OwnedFd>,
}

impl Hub {
    fn new(supervisor: Channel) -> Result<Self, RemoteError> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().map_err(io::Error::from).context(|| "block signals".into())?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&mask, flags)
            .map_err(io::Error::from)
            .context(|| "open a signalfd".into())?;
        prepare_mounts().context(|| "prepare the stack's mount namespace".into())?;
        let init = container::program::init().context(|| "seal the init program in memory".into())?;
        let network = Namespaces::open()?;
        let (filters, sandboxes) = (HashMap::new(), HashMap::new());
        Ok(Self { supervisor, netd: None, children, init, network, filters, sandboxes })
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
            self.sandboxes.remove(&pid);
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
                let new = |network: &&network::plan::Network| changes.networks.contains(&network.name);
                let networks: Vec<_> = plan.networks.iter().filter(new).collect();
                let sockets = network::names::bind_in_current_namespace(networks)?;
                let fds = sockets.into_iter().flat_map(|s| [s.udp, s.tcp]).collect();
                Ok((Event::Done { networks: changes.networks }, fds))
            }
            Request::Netd => {
                self.netd = fds.pop().map(Channel::from);
                Ok((done(), Vec::new()))
            }
            Request::Intercept => {
                let (sockets, optional) = self.network.intercept()?.into_parts();
                Ok((Event::Intercepted { optional }, sockets))
            }
            Request::Start { sandbox, network, cgroup } => {
                let cgroup = if cgroup { fds.pop() } else { None };
                self.start(&sandbox, network.as_deref(), cgroup.as_ref(), &fds)
            }
            Request::Exec { target, process, cgroup } => {
                let cgroup = if cgroup { fds.pop() } else { None };
                self.exec(target, &process, cgroup.as_ref(), &fds)
            }
            Request::Socket { service } => {
                let namespace = self.network.get(&service).ok_or_else(|| {
                    RemoteError::message(format!("service `{service}` has no network namespace"))
                })?;
                Ok((done(), vec![network::link::socket_in(namespace)?]))
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
        }
    }

    fn start(
        &mut self,
        sandbox: &Sandbox,
        network: Option<&str>,
        cgroup: Option<&OwnedFd>,
        fds: &[OwnedFd],
    ) -> Result<(Event, Vec<OwnedFd>), RemoteError> {
        for directory in [&sandbox.root.upper, &sandbox.root.work] {
            std::fs::create_dir_all(directory).context(|| format!("create {directory}"))?;
        }
        let network = match network {
            Some(service) => Some(self.network.get(service).ok_or_else(|| {
                RemoteError::message(format!("service `{service}` has no network namespace"))
            })?),
            None => None,
        };
        let (stdio, detached) = split_stdio(fds)?;
        let filters = filters(&mut self.filters, sandbox.process.capabilities.bounding())?;
        let around = container::launch::Surroundings {
            init: self.init.as_fd(),
            network,
            cgroup: cgroup.map(AsFd::as_fd),
            stdio,
            detached,
            filters,
        };
        let child = container::launch::launch(sandbox, &around)?;
        let pidfd = child.pidfd.try_clone()?;
        self.sandboxes.insert(child.pid, child.pidfd);
        Ok((Event::Started { pid: child.pid }, vec![pidfd]))
    }

    fn exec(
        &mut self,
        target: i32,
        process: &Process,
        cgroup: Option<&OwnedFd>,
        fds: &[OwnedFd],
    ) -> Result<(Event, Vec<OwnedFd>), RemoteError> {
        let pidfd =
            self.sandboxes.get(&target).ok_or_else(|| RemoteError::message("the service is not running"))?;
        let (stdio, _) = split_stdio(fds)?;
        let filters = filters(&mut self.filters, process.capabilities.bounding())?;
        let target = container::join::Target {
            entered: &[],
            pidfd: pidfd.as_fd(),
            init: self.init.as_fd(),
            stdio,
            cgroup: cgroup.map(AsFd::as_fd),
            filters,
        };
        let child = container::join::join(process, &target)?;
        Ok((Event::Started { pid: child.pid }, vec![child.pidfd]))
    }
}

struct Ready {
    supervisor: bool,
    children: bool,
    netd: bool,
}

fn done() -> Event {
    Event::Done { networks: Vec::new() }
}

fn filters(cache: &mut HashMap<u64, Vec<Filter>>, capabilities: u64) -> Result<&[Filter], RemoteError> {
    if let std::collections::hash_map::Entry::Vacant(entry) = cache.entry(capabilities) {
        entry.insert(container::seccomp::default_profile(capabilities)?);
    }
    Ok(cache.get(&capabilities).map_or(&[], Vec::as_slice))
}

fn split_stdio(fds: &[OwnedFd]) -> Result<([BorrowedFd<'_>; 3], &[OwnedFd]), RemoteError> {
    let (stdio, rest) = fds
        .split_first_chunk::<3>()
        .ok_or_else(|| RemoteError::message("a start came without standard input and output"))?;
    Ok((stdio.each_ref().map(AsFd::as_fd), rest))
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
