//! Sockets of the stack's network namespace, which netd cannot enter: the hub makes them, and some are kept ready,
//! so that a connection does not wait for a round trip. And those of the host's, which are made here.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustix::event::epoll::EventFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sys::channel::{Channel, MAX_FDS};

use super::slab::Key;
use super::world::{Poll, Token};
use super::{Kind, SocketRequest, encode};
use crate::error::errno;

/// TCP sockets over IPv4 that are kept ready.
const STOCK: usize = 32;
/// Sockets of the other kinds that are kept ready, once one was needed.
const SMALL_STOCK: usize = 8;
/// Connections that are taken without a socket at hand.
const FEW: usize = 8;
/// How long the hub is left alone after it had none to give.
const REST: Duration = Duration::from_millis(100);

/// Who waits for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiter {
    Connection(Key),
    Datagrams(Key),
}

#[derive(Debug, Default)]
struct Shelf {
    ready: Vec<OwnedFd>,
    waiting: VecDeque<Waiter>,
    stock: usize,
}

#[derive(Debug)]
pub(super) struct Sockets {
    hub: Option<Channel>,
    shelves: [Shelf; 4],
    /// A request to the hub is not answered yet.
    requested: bool,
    /// When to ask again after it had none to give.
    ask_again: Option<Instant>,
}

impl Sockets {
    pub(super) fn new() -> Self {
        let mut shelves: [Shelf; 4] = Default::default();
        shelves[Kind::Tcp4 as usize].stock = STOCK;
        Self { hub: None, shelves, requested: false, ask_again: None }
    }

    /// Takes a new channel to the hub in place of the old one.
    pub(super) fn join(&mut self, poll: &Poll, hub: Channel) -> Result<(), String> {
        if let Some(old) = self.hub.take() {
            poll.delete(old);
            self.shelves.iter_mut().for_each(|shelf| shelf.ready.clear());
        }
        rustix::io::ioctl_fionbio(&hub, true)
            .and_then(|()| poll.add(&hub, Token::Hub, EventFlags::IN))
            .map_err(|error| format!("watch the hub's channel: {error}"))?;
        self.hub = Some(hub);
        self.requested = false;
        self.ask_again = None;
        self.ask();
        Ok(())
    }

    /// A socket, or `None` and the promise that `waiter` comes out of [`Self::refill`].
    pub(super) fn take(&mut self, kind: Kind, waiter: Waiter) -> Option<OwnedFd> {
        let shelf = &mut self.shelves[kind as usize];
        shelf.stock = shelf.stock.max(SMALL_STOCK);
        let socket = shelf.ready.pop();
        if socket.is_none() {
            shelf.waiting.push_back(waiter);
        }
        if shelf.ready.len() < shelf.stock / 2 {
            self.ask();
        }
        socket
    }

    /// Whether connections had better be left where they are: those that were taken, and have no socket yet, hold
    /// descriptors that sockets need.
    pub(super) fn is_short(&self) -> bool {
        let short = |shelf: &Shelf| shelf.ready.is_empty() && shelf.waiting.len() >= FEW;
        self.hub.is_some() && self.shelves.iter().any(short)
    }

    /// Asks for the kind that is lacking most.
    fn ask(&mut self) {
        if self.requested || self.ask_again.is_some() {
            return;
        }
        let lack = |shelf: &Shelf| (shelf.stock + shelf.waiting.len()).saturating_sub(shelf.ready.len());
        let kinds = Kind::ALL.into_iter();
        let most = kinds.max_by_key(|kind| {
            let shelf = &self.shelves[*kind as usize];
            (!shelf.waiting.is_empty(), lack(shelf))
        });
        let (Some(kind), Some(hub)) = (most, &self.hub) else { return };
        let wanted = lack(&self.shelves[kind as usize]).min(MAX_FDS);
        if wanted == 0 {
            return;
        }
        match encode(&SocketRequest { kind, sockets: wanted }).and_then(|request| hub.send(&request, &[])) {
            Ok(()) => self.requested = true,
            Err(error) => {
                tracing::warn!(%error, "ask the hub for sockets");
                self.ask_again = Some(Instant::now() + REST);
            }
        }
    }

    /// Takes the sockets that the hub sent, and pairs them with those that wait; `None` when there is no hub any more.
    pub(super) fn refill(&mut self) -> Option<Vec<(Waiter, OwnedFd)>> {
        let Some(hub) = &self.hub else { return Some(Vec::new()) };
        let message = match hub.recv() {
            Ok(message) => message?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(Vec::new()),
            Err(error) => {
                tracing::info!(%error, "receive sockets from the hub");
                return None;
            }
        };
        self.requested = false;
        let kind = serde_json::from_slice(&message.bytes);
        let (Ok(kind), false) = (kind, message.fds.is_empty()) else {
            self.ask_again = Some(Instant::now() + REST);
            return Some(Vec::new());
        };
        let kind: Kind = kind;
        let shelf = &mut self.shelves[kind as usize];
        shelf.ready.extend(message.fds);
        let count = shelf.waiting.len().min(shelf.ready.len());
        let sockets = shelf.ready.drain(shelf.ready.len() - count..).collect::<Vec<_>>();
        let pairs = shelf.waiting.drain(..count).zip(sockets).collect();
        if self.shelves.iter().any(|shelf| !shelf.waiting.is_empty() || shelf.ready.len() < shelf.stock / 2) {
            self.ask();
        }
        Some(pairs)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.ask_again
    }

    pub(super) fn expire(&mut self, now: Instant) {
        if self.ask_again.is_some_and(|at| at <= now) {
            self.ask_again = None;
            self.ask();
        }
    }
}

/// A socket of the host's namespace for what goes to `address`.
pub(super) fn outside(address: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Binds a socket to an address, with another port if this one is not to be had. Port 0 is any that is free towards
/// wherever the socket is connected to.
pub(super) fn come_from(socket: &OwnedFd, source: SocketAddr) -> rustix::io::Result<()> {
    if source.port() != 0 && rustix::net::bind(socket, &source).is_ok() {
        return Ok(());
    }
    setsockopt(socket, IpBindAddressNoPort, &true).map_err(errno)?;
    rustix::net::bind(socket, &SocketAddr::new(source.ip(), 0))
}

/// Gives a transparent socket of the stack's namespace the client's own address; else it has the gateway's.
pub(super) fn keep_address(socket: &OwnedFd, client: SocketAddr) {
    if let Err(error) = come_from(socket, client) {
        tracing::warn!(%error, %client, "keep the client's address");
    }
}
