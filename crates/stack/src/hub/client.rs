//! The supervisor's side of the hub.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use container::Process;
use container::idmap::IdMap;
use container::sandbox::Sandbox;
use network::intercept::Intercepted;
use network::names::NameSockets;
use network::plan::{Network, NetworkPlan};
use sys::channel::{Channel, MAX_FDS};
use sys::process::{Child, namespace};

use super::{Event, Needs, Partners, Request};
use crate::fault::{Change, Fault};
use crate::remote::{self, Context, RemoteError};

/// How long an answer may take: the first use of a volume copies data.
const DEADLINE: Duration = Duration::from_secs(330);

/// A hub that runs.
#[derive(Debug)]
pub(crate) struct Hub {
    channel: Channel,
    /// The hub process; readable when it is gone.
    pub(crate) process: Child,
    exits: VecDeque<Exit>,
    /// It can start what has the host's network.
    pub(crate) on_host: bool,
    /// An answer did not come in time. It may still come, and would be taken for that of a later request.
    unanswered: bool,
}

/// A process of the hub's that ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    /// Number in the hub's PID namespace.
    pub(crate) pid: i32,
    /// Exit code, or 128 plus the signal's number.
    pub(crate) status: i32,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Started {
    /// Number in the hub's PID namespace.
    pub(crate) pid: i32,
    /// Its pidfd.
    pub(crate) pidfd: OwnedFd,
    /// Where calls that it asks about are answered.
    pub(crate) asks: Option<OwnedFd>,
}

impl Hub {
    /// Makes the hub of a stack. It calls `release` first, for what it is to have no copy of. Must be called before this process has threads.
    pub(crate) fn spawn(
        map: &IdMap,
        data: &OwnedFd,
        needs: Needs,
        release: impl FnOnce(),
    ) -> Result<Self, RemoteError> {
        let mut namespaces = namespace::MOUNT | namespace::PID | namespace::UTS | namespace::IPC;
        if !needs.on_host {
            namespaces |= namespace::NETWORK;
        }
        let serve = |channel| {
            release();
            super::serve(channel, needs)
        };
        let (process, channel) = container::userns::spawn(map, namespaces, data.as_fd(), serve)?;
        Ok(Self { channel, process, exits: VecDeque::new(), unanswered: false, on_host: needs.on_host })
    }

    /// Wires the networks; returns the name server's sockets of those that are new.
    pub(crate) fn wire(&mut self, plan: &NetworkPlan) -> Result<Vec<NameSockets>, RemoteError> {
        let request = Request::Wire(plan.clone());
        let (event, _) = self.call(&request, &[]).context(|| "set up the network".into())?;
        let Event::Done { networks } = event else { return Err(unexpected()) };
        let new = |network: &&Network| networks.contains(&network.name);
        let new: Vec<&Network> = plan.networks.iter().filter(new).collect();
        let mut names = Vec::new();
        for some in new.chunks(MAX_FDS / 2) {
            let request = Request::Names(some.iter().copied().cloned().collect());
            let (_, sockets) =
                self.call(&request, &[]).context(|| "open the name server's sockets".into())?;
            let mut sockets = sockets.into_iter();
            for network in some {
                let (udp, tcp) = sockets.next().zip(sockets.next()).ok_or_else(unexpected)?;
                names.push(NameSockets { network: network.name.clone(), udp, tcp });
            }
        }
        Ok(names)
    }

    /// Gives the hub its end of netd's channel.
    pub(crate) fn netd(&mut self, channel: BorrowedFd<'_>) -> Result<(), RemoteError> {
        self.call(&Request::Netd, &[channel]).map(drop)
    }

    /// The sockets that everything which containers send out of their networks ends at from now on.
    pub(crate) fn intercept(&mut self) -> Result<Intercepted, RemoteError> {
        let (Event::Intercepted { optional }, sockets) = self.call(&Request::Intercept, &[])? else {
            return Err(unexpected());
        };
        Intercepted::from_parts(sockets, optional).ok_or_else(unexpected)
    }

    /// Has what containers send out of their networks leave by a device of the stack's namespace.
    pub(crate) fn detour(&mut self, device: &str, gateway: Ipv4Addr) -> Result<(), RemoteError> {
        self.call(&Request::Detour { device: device.to_owned(), gateway }, &[]).map(drop)
    }

    /// Starts a sandbox in the network namespace of a container, or in the host's, and in those of its partners.
    pub(crate) fn start(
        &mut self,
        sandbox: Sandbox,
        network: Option<String>,
        partners: Partners<i32>,
        cgroup: Option<BorrowedFd<'_>>,
        stdio: [BorrowedFd<'_>; 3],
        detached: &[OwnedFd],
    ) -> Result<Started, RemoteError> {
        let sandbox = Box::new(sandbox);
        let request = Request::Start { sandbox, network, partners, cgroup: cgroup.is_some() };
        let mut fds = stdio.to_vec();
        fds.extend(detached.iter().map(AsFd::as_fd));
        fds.extend(cgroup);
        started(self.call(&request, &fds)?)
    }

    /// Starts a process inside the sandbox whose PID 1 is `target`.
    pub(crate) fn exec(
        &mut self,
        target: i32,
        process: Process,
        cgroup: Option<BorrowedFd<'_>>,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<Started, RemoteError> {
        let request = Request::Exec { target, process: Box::new(process), cgroup: cgroup.is_some() };
        let mut fds = stdio.to_vec();
        fds.extend(cgroup);
        started(self.call(&request, &fds)?)
    }

    /// A TCP socket in a service's network namespace.
    pub(crate) fn socket(&mut self, service: &str) -> Result<OwnedFd, RemoteError> {
        let (_, mut fds) = self.call(&Request::Socket { service: service.to_owned() }, &[])?;
        fds.pop().ok_or_else(unexpected)
    }

    /// A TCP socket that listens on a port in a container's network namespace.
    pub(crate) fn listen(&mut self, container: &str, port: u16) -> Result<OwnedFd, RemoteError> {
        let (_, mut fds) = self.call(&Request::Listen { container: container.to_owned(), port }, &[])?;
        fds.pop().ok_or_else(unexpected)
    }

    /// Makes a change to what is wrong with a container's network; `fault` is what comes of it.
    pub(crate) fn fault(
        &mut self,
        container: &str,
        change: &Change,
        fault: &Fault,
    ) -> Result<(), RemoteError> {
        let container = container.to_owned();
        let request = match change {
            Change::Shape(_) => Request::Shape { container, shape: fault.shape },
            Change::Partition(from) => Request::Partition { container, from: from.clone() },
            Change::Heal => Request::Heal { container },
        };
        self.call(&request, &[]).map(drop)
    }

    /// Deletes directories of the data directory.
    pub(crate) fn remove(&mut self, paths: Vec<String>) -> Result<(), RemoteError> {
        self.call(&Request::Remove { paths }, &[]).map(drop)
    }

    /// Writes a file of the data directory.
    pub(crate) fn write(&mut self, path: String, content: String) -> Result<(), RemoteError> {
        self.call(&Request::Write { path, content }, &[]).map(drop)
    }

    /// The next process that ended, of those that were learnt of while an answer was waited for: the channel is
    /// not readable on their account any more.
    pub(crate) fn known_exit(&mut self) -> Option<Exit> {
        self.exits.pop_front()
    }

    /// The next process that ended, if one is known of or can be read of without waiting.
    pub(crate) fn next_exit(&mut self) -> Result<Option<Exit>, RemoteError> {
        if let Some(exit) = self.known_exit() {
            return Ok(Some(exit));
        }
        match self.channel.recv_until(Instant::now()) {
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error.into()),
            Ok(None) => Err(gone()),
            Ok(Some(message)) => match remote::decode(message)? {
                (Event::Exited { pid, status, signal }, _) => Ok(Some(Exit { pid, status, signal })),
                _ => Err(unexpected()),
            },
        }
    }

    /// Ends the hub, and with it all that it owns.
    pub(crate) fn end(&mut self) -> std::io::Result<()> {
        container::userns::end(&self.process)
    }

    fn call(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Event, Vec<OwnedFd>), RemoteError> {
        if self.unanswered {
            return Err(RemoteError::message("the stack's hub did not answer an earlier request")
                .or_hint("`inception-run down` ends the stack"));
        }
        remote::send(&self.channel, request, fds).context(|| "ask the stack's hub".into())?;
        let deadline = Instant::now() + DEADLINE;
        self.unanswered = true;
        let answer = loop {
            let message = self.channel.recv_until(deadline).context(|| "wait for the stack's hub".into())?;
            match remote::decode(message.ok_or_else(gone)?)? {
                (Event::Exited { pid, status, signal }, _) => {
                    self.exits.push_back(Exit { pid, status, signal })
                }
                answer => break answer,
            }
        };
        self.unanswered = false;
        match answer {
            (Event::Failed(error), _) => Err(error),
            answer => Ok(answer),
        }
    }
}

impl AsFd for Hub {
    /// Readable when a process ended or the hub is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

fn started((event, fds): (Event, Vec<OwnedFd>)) -> Result<Started, RemoteError> {
    let mut fds = fds.into_iter();
    match (event, fds.next()) {
        (Event::Started { pid }, Some(pidfd)) => Ok(Started { pid, pidfd, asks: fds.next() }),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> RemoteError {
    RemoteError::message("the stack's hub gave an answer that does not fit the request")
}

fn gone() -> RemoteError {
    RemoteError::message("the stack's hub is gone")
}
