//! netd: the process in the host's network namespace that carries published ports and answers names.
//!
//! This file is what others see: the configuration, the [`Client`] that the supervisor drives netd with,
//! [`serve_sockets`] for the hub, and [`run`], the process's body. It holds the supervisor's channel; the end of
//! that channel is netd's end.

mod event;
mod proxy;
mod resolver;
mod slab;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use sys::channel::{Channel, MAX_FDS};

use crate::Error;
use crate::error::Doing;
use crate::names::NameSockets;
use crate::plan::{NetworkPlan, PublishedPort};

pub use event::run;

/// Everything netd does, at one moment; a new one replaces the last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// Whose names are answered.
    pub plan: NetworkPlan,
    /// Which ports lead where.
    pub published: Vec<Published>,
    /// The host's resolvers for names that are not the stack's; empty to follow the host's `/etc/resolv.conf`.
    pub resolvers: Vec<SocketAddr>,
}

/// A published port and the service that it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Name of the service.
    pub service: String,
    /// Its address on one of its networks.
    pub address: Ipv4Addr,
    /// The port, as bound: `host_port` is the real one, not 0.
    pub port: PublishedPort,
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
    /// port that netd listens on already (same host address and port) may be left out.
    pub listeners: &'a [(usize, BorrowedFd<'a>)],
}

/// What the supervisor sends.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// A new configuration; `descriptors` follow, the first of them with this message.
    Configure {
        configuration: Configuration,
        hub: bool,
        /// Networks whose two sockets (UDP, TCP) come along.
        names: Vec<String>,
        /// Index in `published` of each listener that comes along.
        listeners: Vec<usize>,
    },
    /// More descriptors of the last `Configure`.
    More,
}

/// What netd answers to a complete `Configure`.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Configured,
    Refused(String),
}

/// The supervisor's handle on netd.
#[derive(Debug)]
pub struct Client(Channel);

impl AsFd for Client {
    /// Readable when there is a reply to read, or netd is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Client {
    /// Takes the other end of the channel that [`run`] got.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self(channel)
    }

    /// Sends a configuration that replaces the one before. [`Client::confirmed`] tells how it went.
    ///
    /// # Errors
    /// When netd cannot be reached.
    pub fn configure(&self, configuration: &Configuration, with: &Descriptors<'_>) -> Result<(), Error> {
        let request = Request::Configure {
            configuration: configuration.clone(),
            hub: with.hub.is_some(),
            names: with.names.iter().map(|sockets| sockets.network.clone()).collect(),
            listeners: with.listeners.iter().map(|(index, _)| *index).collect(),
        };
        let names = with.names.iter().flat_map(|sockets| [sockets.udp.as_fd(), sockets.tcp.as_fd()]);
        let listeners = with.listeners.iter().map(|(_, listener)| *listener);
        let all: Vec<BorrowedFd<'_>> = with.hub.into_iter().chain(names).chain(listeners).collect();
        let (first, rest) = all.split_at(all.len().min(MAX_FDS));
        let send = |request: &Request, fds: &[BorrowedFd<'_>]| self.0.send(&encode(request)?, fds);
        let doing = || "send netd its configuration";
        send(&request, first).doing(doing)?;
        rest.chunks(MAX_FDS).try_for_each(|fds| send(&Request::More, fds)).doing(doing)
    }

    /// Waits for netd to confirm one [`Client::configure`].
    ///
    /// # Errors
    /// [`Error::Refused`] with netd's reason, [`Error::Gone`], or a time-out at `deadline`.
    pub fn confirmed(&self, deadline: Instant) -> Result<(), Error> {
        let message = self.0.recv_until(deadline).doing(|| "wait for netd to confirm its configuration")?;
        let message = message.ok_or(Error::Gone)?;
        let reply = serde_json::from_slice(&message.bytes).map_err(std::io::Error::from);
        match reply.doing(|| "read netd's reply")? {
            Reply::Configured => Ok(()),
            Reply::Refused(reason) => Err(Error::Refused(reason)),
        }
    }
}

/// What netd sends to the hub.
#[derive(Debug, Serialize, Deserialize)]
struct SocketRequest {
    /// How many TCP sockets it wants.
    sockets: usize,
}

/// The hub's part, called in the stack's network namespace when `netd` (its end of the channel) is readable:
/// makes TCP sockets here and passes them on. `false` when netd is gone.
///
/// # Errors
/// When netd's message is not one, or the answer cannot be sent. Too few sockets are no error: netd asks again.
pub fn serve_sockets(netd: &Channel) -> Result<bool, Error> {
    let Some(message) = netd.recv().doing(|| "receive netd's request for sockets")? else { return Ok(false) };
    let request: SocketRequest = serde_json::from_slice(&message.bytes)
        .map_err(std::io::Error::from)
        .doing(|| "read netd's request for sockets")?;
    let socket = || -> rustix::io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        crate::publish::tune(&socket)?;
        Ok(socket)
    };
    let sockets: Vec<OwnedFd> = (0..request.sockets.min(MAX_FDS)).map_while(|_| socket().ok()).collect();
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    match netd.send(b"{}", &fds) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::system("pass sockets to netd", error)),
    }
}

fn encode<T: Serialize>(message: &T) -> std::io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(message)?)
}
