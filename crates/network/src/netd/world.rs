//! What the parts of netd share: the epoll instance and what its events are about, sockets, the topology, and what the
//! supervisor is to be told.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::Event;
use super::connection::End;
use super::ftp::Expected;
use super::slab::Key;
use super::sockets::Sockets;
use super::topology::Topology;

/// Refusals that are told in a second.
const REFUSALS: u32 = 64;

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Supervisor,
    Hub,
    Listener(Key),
    Proxy(Key, End),
    NameUdp(Key),
    NameTcp(Key),
    NameClient(Key),
    NameQuery(Key),
    DatagramListener(Key),
    Datagram(Key, End),
    /// A raw socket that echo requests come to: of IPv6 or not.
    EchoRequest(bool),
    EchoReply(Key),
    /// The queue of connections that containers begin.
    Knock,
    /// One that is made for them.
    Called(Key),
}

impl Token {
    fn encode(self) -> EventData {
        let pack =
            |kind: u64, key: Key| (kind << 56) | (u64::from(key.generation) << 32) | u64::from(key.index);
        EventData::new_u64(match self {
            Self::Supervisor => 0,
            Self::Hub => 1 << 56,
            Self::Listener(key) => pack(2, key),
            Self::Proxy(key, End::Client) => pack(3, key),
            Self::Proxy(key, End::Upstream) => pack(4, key),
            Self::NameUdp(key) => pack(5, key),
            Self::NameTcp(key) => pack(6, key),
            Self::NameClient(key) => pack(7, key),
            Self::NameQuery(key) => pack(8, key),
            Self::DatagramListener(key) => pack(9, key),
            Self::Datagram(key, End::Client) => pack(10, key),
            Self::Datagram(key, End::Upstream) => pack(11, key),
            Self::EchoRequest(v6) => (12 << 56) | u64::from(v6),
            Self::EchoReply(key) => pack(13, key),
            Self::Knock => 14 << 56,
            Self::Called(key) => pack(15, key),
        })
    }

    pub(super) fn decode(data: u64) -> Self {
        let key = Key { index: data as u32, generation: (data >> 32) as u32 & 0x00ff_ffff };
        match data >> 56 {
            0 => Self::Supervisor,
            1 => Self::Hub,
            2 => Self::Listener(key),
            3 => Self::Proxy(key, End::Client),
            4 => Self::Proxy(key, End::Upstream),
            5 => Self::NameUdp(key),
            6 => Self::NameTcp(key),
            7 => Self::NameClient(key),
            8 => Self::NameQuery(key),
            9 => Self::DatagramListener(key),
            10 => Self::Datagram(key, End::Client),
            11 => Self::Datagram(key, End::Upstream),
            12 => Self::EchoRequest(data & 1 == 1),
            13 => Self::EchoReply(key),
            14 => Self::Knock,
            _ => Self::Called(key),
        }
    }
}

/// The epoll instance.
#[derive(Debug)]
pub(super) struct Poll(OwnedFd);

impl Poll {
    fn new() -> rustix::io::Result<Self> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Self)
    }

    /// Waits until something is ready, or until the deadline; `events` are what is.
    pub(super) fn wait(
        &self,
        events: &mut Vec<epoll::Event>,
        deadline: Option<Instant>,
    ) -> rustix::io::Result<()> {
        events.clear();
        // Rounded up to epoll's milliseconds, so that the last wait is no busy loop.
        let timeout = deadline
            .map(|at| at.saturating_duration_since(Instant::now()).saturating_add(Duration::from_micros(999)))
            .and_then(|left| Timespec::try_from(left).ok());
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::add(&self.0, fd, token.encode(), flags)
    }

    pub(super) fn modify(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::modify(&self.0, fd, token.encode(), flags)
    }

    /// Needed where another process holds the same open file: closing alone would leave it registered.
    pub(super) fn delete(&self, fd: impl AsFd) {
        if let Err(error) = epoll::delete(&self.0, fd) {
            tracing::debug!(%error, "not in epoll");
        }
    }
}

/// What all that carries something shares.
#[derive(Debug)]
pub(super) struct World {
    pub(super) poll: Poll,
    pub(super) sockets: Sockets,
    pub(super) topology: Topology,
    /// FTP data connections that are expected.
    pub(super) ftp: Expected,
    /// What the supervisor is to be told.
    pub(super) events: Vec<Event>,
    /// Connections at a time.
    pub(super) most: usize,
    /// Connections of one service at a time: it may not keep all others from theirs.
    pub(super) most_each: usize,
    /// The second in which refusals are counted, and how many there were.
    refusals: (Instant, u32),
}

impl World {
    /// The world of a netd that may have so many connections.
    ///
    /// # Errors
    /// When there is no epoll instance to be had.
    pub(super) fn new(connections: usize) -> rustix::io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            sockets: Sockets::new(),
            topology: Topology::default(),
            ftp: Expected::default(),
            events: Vec::new(),
            most: connections.max(16),
            most_each: connections.saturating_mul(3) / 4,
            refusals: (Instant::now(), 0),
        })
    }

    /// Tells that a container may not go where it wanted to.
    pub(super) fn refuse(
        &mut self,
        container: String,
        destination: SocketAddr,
        name: Option<String>,
        protocol: &str,
        now: Instant,
    ) {
        if now.duration_since(self.refusals.0) >= Duration::from_secs(1) {
            self.refusals = (now, 0);
        }
        self.refusals.1 += 1;
        if self.refusals.1 <= REFUSALS {
            self.events.push(Event::Refused { container, destination, name, protocol: protocol.to_owned() });
        }
    }
}
