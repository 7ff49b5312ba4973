//! netd: the process in the host's network namespace that carries published ports and answers names.
//!
//! This file is what others see: the configuration, the [`Client`] that the supervisor drives netd with,
//! [`serve_sockets`] for the hub, and [`run`], the process's body. It holds the supervisor's channel; the end of
//! that channel is netd's end.

mod connection;
mod datagram;
mod echo;
mod event;
mod flow;
mod ftp;
mod knock;
mod proxy;
mod resolver;
mod slab;
mod sockets;
mod tally;
mod topology;
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::IpTransparent;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use sys::channel::{Channel, MAX_FDS};

use crate::Error;
use crate::balance::State;
use crate::error::Doing;
use crate::intercept::Intercepted;
use crate::names::NameSockets;
use crate::plan::{NetworkPlan, Protocol, PublishedPort};

pub use event::run;

/// How long netd, which never waits for anything, may leave a message in the channel when that is full.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything netd does, at one moment; a new one replaces the last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// Whose names are answered.
    pub plan: NetworkPlan,
    /// Which ports lead where.
    pub published: Vec<Published>,
    /// Ports of containers that lead to the host.
    pub inward: Vec<Inward>,
    /// The host's resolvers for names that are not the stack's; empty to follow the host's `/etc/resolv.conf`.
    pub resolvers: Vec<SocketAddr>,
    /// Which containers take connections, by name; those that are not named are ready.
    pub states: BTreeMap<String, State>,
}

/// A published port and the service that it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Name of the service: its replicas are the endpoints of that group.
    pub service: String,
    /// The port, as bound: `host_port` is the real one, not 0.
    pub port: PublishedPort,
    /// It is one of the pool for FTP's passive mode that belongs to a port.
    pub ftp_data: bool,
}

impl Published {
    /// What a port of `service` takes on the host: itself, and the pool for passive mode with FTP.
    pub fn expand(service: &str, port: PublishedPort) -> impl Iterator<Item = Self> {
        let pool = match port.protocol {
            Protocol::Ftp { passive: (first, last), .. } => Some(first..=last),
            Protocol::Tcp | Protocol::Udp => None,
        };
        let pool = pool.into_iter().flatten().map(move |number| PublishedPort {
            host_port: number,
            container_port: number,
            ..port
        });
        let service = service.to_owned();
        std::iter::once((port, false))
            .chain(pool.map(|port| (port, true)))
            .map(move |(port, ftp_data)| Self { service: service.clone(), port, ftp_data })
    }
}

/// A port of a container that leads to a socket of the host's namespace: the container accepts on that itself
/// ([`crate::direct`]), and who is in the stack reaches it by the container's address all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inward {
    /// Name of the container.
    pub container: String,
    /// Port inside.
    pub port: u16,
    /// Where to connect to on the host.
    pub target: SocketAddr,
}

/// Descriptors that go with a [`Configuration`]: only what netd has not got yet.
#[derive(Debug, Default)]
pub struct Descriptors<'a> {
    /// netd's end of a channel whose other end the hub serves with [`serve_sockets`].
    pub hub: Option<BorrowedFd<'a>>,
    /// Name server sockets, from [`crate::names::bind_in_current_namespace`]; a network that netd has sockets
    /// for keeps them unless it is named here.
    pub names: &'a [NameSockets],
    /// Listening sockets from [`crate::publish::bind`], with their index in [`Configuration::published`]; a
    /// port that netd listens on already (same host address, port and protocol) may be left out.
    pub listeners: &'a [(usize, BorrowedFd<'a>)],
    /// What takes everything that containers send out of their networks, from
    /// [`crate::link::Namespaces::intercept`]; kept until others come.
    pub intercepted: Option<&'a Intercepted>,
    /// Listening sockets of containers' namespaces, from [`crate::direct::listen_in`]: all of them, each time, in the
    /// order of [`Configuration::inward`].
    pub inward: &'a [BorrowedFd<'a>],
}

impl<'a> Descriptors<'a> {
    fn all(&self) -> impl Iterator<Item = (Descriptor, BorrowedFd<'a>)> + use<'a> {
        let names = self.names.iter().flat_map(|sockets| {
            let udp = (Descriptor::NameUdp(sockets.network.clone()), sockets.udp.as_fd());
            [udp, (Descriptor::NameTcp, sockets.tcp.as_fd())]
        });
        let listeners = self.listeners.iter().map(|(index, fd)| (Descriptor::Listener(*index), *fd));
        let intercepted = self.intercepted.into_iter().flat_map(|sockets| {
            let optional = [
                (Intercept::Tcp, Some(&sockets.tcp4)),
                (Intercept::Tcp, sockets.tcp6.as_ref()),
                (Intercept::Udp4, Some(&sockets.udp4)),
                (Intercept::Udp6, sockets.udp6.as_ref()),
                (Intercept::Icmp4, sockets.icmp4.as_ref()),
                (Intercept::Icmp6, sockets.icmp6.as_ref()),
                (Intercept::Connections, sockets.connections.as_ref()),
            ];
            optional
                .into_iter()
                .filter_map(|(what, socket)| Some((Descriptor::Intercepted(what), socket?.as_fd())))
        });
        let hub = self.hub.map(|hub| (Descriptor::Hub, hub));
        let inward = self.inward.iter().map(|fd| (Descriptor::Inward, *fd));
        hub.into_iter().chain(names).chain(listeners).chain(intercepted).chain(inward)
    }
}

/// What the supervisor sends.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// A new configuration; `descriptors` follow, the first of them with this message.
    Configure {
        configuration: Box<Configuration>,
        /// Which descriptors come along, in this order.
        descriptors: Vec<Descriptor>,
    },
    /// More descriptors of the last `Configure`.
    More,
    /// What has become of containers since; there is no reply.
    States(BTreeMap<String, State>),
    /// Tell when no client of this container waits for an answer any more.
    AwaitRest(String),
}

/// What a descriptor that comes with a configuration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Descriptor {
    Hub,
    /// The name server's UDP socket of this network; its TCP socket follows.
    NameUdp(String),
    NameTcp,
    /// The published port of this index.
    Listener(usize),
    Intercepted(Intercept),
    /// Of the next of `inward`.
    Inward,
}

/// What is intercepted by a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Intercept {
    Tcp,
    Udp4,
    Udp6,
    Icmp4,
    Icmp6,
    Connections,
}

/// What netd tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// A complete `Configure` is in force.
    Configured,
    /// It is not, and the one before still is.
    Refused(String),
    /// Something happened.
    Event(Event),
}

/// Something that happened in netd and that somebody may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The egress policy of a container does not allow what it tried.
    Refused {
        /// Name of the container.
        container: String,
        /// Where it wanted to go.
        destination: SocketAddr,
        /// The name that it had looked that address up by, as far as is known.
        name: Option<String>,
        /// `tcp`, `udp` or `icmp`.
        protocol: String,
    },
    /// A container that is draining has no open connection any more.
    Drained {
        /// Name of the container.
        container: String,
    },
    /// No client of a container waits for an answer any more, as [`Client::await_rest`] asked.
    AtRest {
        /// Name of the container.
        container: String,
    },
    /// A replica could not be connected to and gets no new connections for a while.
    Ejected {
        /// Name of the container.
        container: String,
    },
    /// It gets connections again.
    Restored {
        /// Name of the container.
        container: String,
    },
    /// None of the resolvers that are asked for names of the world answers; or one does again.
    Resolvers {
        /// They.
        resolvers: Vec<SocketAddr>,
        /// Whether one answers.
        answer: bool,
    },
    /// A client of an FTP port did what is not allowed: a bounce attack, or nonsense.
    Ftp {
        /// Name of the service.
        service: String,
        /// Whose.
        client: SocketAddr,
        /// What it was.
        what: String,
    },
}

/// The supervisor's handle on netd.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    /// Events that came while a reply was waited for.
    events: VecDeque<Event>,
}

impl AsFd for Client {
    /// Readable when there is an event to read, or netd is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Client {
    /// Takes the other end of the channel that [`run`] got. What is sent may wait for netd for some seconds.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        if let Err(error) = sockopt::set_socket_timeout(&channel, Timeout::Send, Some(PATIENCE)) {
            tracing::debug!(%error, "limit the time to send");
        }
        Self { channel, events: VecDeque::new() }
    }

    /// Sends a configuration that replaces the one before. [`Client::confirmed`] tells how it went.
    ///
    /// # Errors
    /// When netd cannot be reached.
    pub fn configure(&self, configuration: &Configuration, with: &Descriptors<'_>) -> Result<(), Error> {
        let all: Vec<(Descriptor, BorrowedFd<'_>)> = with.all().collect();
        let (descriptors, all): (Vec<Descriptor>, Vec<BorrowedFd<'_>>) = all.into_iter().unzip();
        let request = Request::Configure { configuration: Box::new(configuration.clone()), descriptors };
        let (first, rest) = all.split_at(all.len().min(MAX_FDS));
        let send = |request: &Request, fds: &[BorrowedFd<'_>]| self.channel.send(&encode(request)?, fds);
        let doing = || "send netd its configuration";
        send(&request, first).doing(doing)?;
        rest.chunks(MAX_FDS).try_for_each(|fds| send(&Request::More, fds)).doing(doing)
    }

    /// Waits for netd to confirm one [`Client::configure`].
    ///
    /// # Errors
    /// [`Error::Refused`] with netd's reason, [`Error::Gone`], or a time-out at `deadline`.
    pub fn confirmed(&mut self, deadline: Instant) -> Result<(), Error> {
        loop {
            let message = self.channel.recv_until(deadline);
            let message =
                message.doing(|| "wait for netd to confirm its configuration")?.ok_or(Error::Gone)?;
            match decode(&message)? {
                Reply::Configured => return Ok(()),
                Reply::Refused(reason) => return Err(Error::Refused(reason)),
                Reply::Event(event) => self.events.push_back(event),
            }
        }
    }

    /// Tells netd what has become of containers. Those that are not named stay as they are.
    ///
    /// # Errors
    /// When netd cannot be reached.
    pub fn states(&self, states: &BTreeMap<String, State>) -> Result<(), Error> {
        let request = encode(&Request::States(states.clone()));
        request.and_then(|request| self.channel.send(&request, &[])).doing(|| "tell netd of containers")
    }

    /// Asks for [`Event::AtRest`] when the last client of a container has been answered. It comes at once if nobody
    /// waits, and not at all if somebody waits for long.
    ///
    /// # Errors
    /// When netd cannot be reached.
    pub fn await_rest(&self, container: &str) -> Result<(), Error> {
        let request = encode(&Request::AwaitRest(container.to_owned()));
        request
            .and_then(|request| self.channel.send(&request, &[]))
            .doing(|| "ask netd for a container's rest")
    }

    /// The next event of those that came while a reply was waited for: the channel is not readable on their
    /// account any more.
    pub fn known_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next event, if there is one by now.
    ///
    /// # Errors
    /// [`Error::Gone`] when netd is, or what it sent makes no sense.
    pub fn event(&mut self) -> Result<Option<Event>, Error> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        match self.channel.recv_until(Instant::now()) {
            Ok(message) => match decode(&message.ok_or(Error::Gone)?)? {
                Reply::Event(event) => Ok(Some(event)),
                Reply::Configured | Reply::Refused(_) => Ok(None),
            },
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(Error::system("receive from netd", error)),
        }
    }
}

fn decode(message: &sys::channel::Message) -> Result<Reply, Error> {
    serde_json::from_slice(&message.bytes).map_err(std::io::Error::from).doing(|| "read netd's reply")
}

/// A kind of socket that netd needs in the stack's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Tcp4, Self::Tcp6, Self::Udp4, Self::Udp6];

    /// A socket that does not block, is closed on exec, and may have foreign addresses.
    fn socket(self) -> rustix::io::Result<OwnedFd> {
        let (family, kind) = match self {
            Self::Tcp4 => (AddressFamily::INET, SocketType::STREAM),
            Self::Tcp6 => (AddressFamily::INET6, SocketType::STREAM),
            Self::Udp4 => (AddressFamily::INET, SocketType::DGRAM),
            Self::Udp6 => (AddressFamily::INET6, SocketType::DGRAM),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        if kind == SocketType::STREAM {
            crate::publish::tune(&socket)?;
            // A client's port can be had for as many connections as it has, and after each of them.
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        // The option of IPv4 is one of all sockets (ip(7)); it needs root of the namespace, which the hub is.
        if let Err(error) = nix::sys::socket::setsockopt(&socket, IpTransparent, &true) {
            tracing::debug!(%error, "IP_TRANSPARENT");
        }
        Ok(socket)
    }
}

/// What netd sends to the hub.
#[derive(Debug, Serialize, Deserialize)]
struct SocketRequest {
    kind: Kind,
    /// How many it wants.
    sockets: usize,
}

/// The hub's part, called in the stack's network namespace when `netd` (its end of the channel) is readable:
/// makes sockets here and passes them on. `false` when netd is gone.
///
/// # Errors
/// When netd's message is not one, or the answer cannot be sent. Too few sockets are no error: netd asks again.
pub fn serve_sockets(netd: &Channel) -> Result<bool, Error> {
    let Some(message) = netd.recv().doing(|| "receive netd's request for sockets")? else { return Ok(false) };
    let request: SocketRequest = serde_json::from_slice(&message.bytes)
        .map_err(std::io::Error::from)
        .doing(|| "read netd's request for sockets")?;
    let wanted = 0..request.sockets.min(MAX_FDS);
    let sockets: Vec<OwnedFd> = wanted.map_while(|_| request.kind.socket().ok()).collect();
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let reply = encode(&request.kind).doing(|| "encode the answer to netd")?;
    let sent = netd.send(&reply, &fds).or_else(|error| match error.kind() {
        ErrorKind::BrokenPipe => Err(error),
        // The kernel takes no more descriptors that are on their way: netd gets none, and asks again.
        _ => netd.send(&reply, &[]),
    });
    match sent {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::system("pass sockets to netd", error)),
    }
}

fn encode<T: Serialize>(message: &T) -> std::io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(message)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_that_does_not_read_for_a_while_gets_every_answer() {
        let (ours, theirs) = Channel::pair().unwrap();
        let netd = std::thread::spawn(move || run(theirs));
        let mut client = Client::new(ours);
        for _ in 0..1000 {
            client.configure(&Configuration::default(), &Descriptors::default()).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        for _ in 0..1000 {
            client.confirmed(deadline).unwrap();
        }
        drop(client);
        netd.join().unwrap().unwrap();
    }

    #[test]
    fn a_netd_whose_hub_is_gone_ends() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (hub, hub_end) = Channel::pair().unwrap();
        let netd = std::thread::spawn(move || run(theirs));
        let mut client = Client::new(ours);
        let with = Descriptors { hub: Some(hub_end.as_fd()), ..Descriptors::default() };
        client.configure(&Configuration::default(), &with).unwrap();
        client.confirmed(Instant::now() + Duration::from_secs(20)).unwrap();
        drop((hub, hub_end));
        netd.join().unwrap().unwrap();
        assert!(client.event().is_err_and(|error| error.is_netd_gone()));
    }

    #[test]
    fn a_netd_that_takes_nothing_is_not_waited_for_for_ever() {
        let (ours, _theirs) = Channel::pair().unwrap();
        sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
        let client = Client::new(ours);
        let error = std::iter::repeat_with(|| client.states(&BTreeMap::new())).find_map(Result::err).unwrap();
        assert!(error.is_netd_silent() && !error.is_netd_gone(), "{error:?}");
    }
}
