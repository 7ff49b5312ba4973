//! The resolvers that are asked for names of the world, and a query on its way to them.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType};

use crate::names::cache::Asked;
use crate::names::wire::{self, Received, Reply, UDP_LIMIT};
use crate::names::{self, PORT};
use crate::netd::slab::Key;
use crate::netd::sockets;
use crate::netd::world::{Poll, Token};
use crate::plan::{Endpoint, NetworkPlan};

/// Where the host's resolvers are listed.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The host's resolvers.
#[derive(Debug)]
pub(super) struct Host {
    resolvers: Rc<[SocketAddr]>,
    /// They are those of [`RESOLV_CONF`], not of the configuration.
    follow: bool,
    /// Of the file when it was read: device, inode and time of change.
    version: Option<(u64, u64, i64, i64)>,
}

impl Host {
    /// Those of the configuration; of [`RESOLV_CONF`] if there are none.
    pub(super) fn new(configured: &[SocketAddr]) -> Self {
        Self { resolvers: configured.into(), follow: configured.is_empty(), version: None }
    }

    /// Whom to ask for `asker`: its own resolvers (`dns`) or the host's. We are none of them, or a query would come
    /// back.
    pub(super) fn resolvers_of(&mut self, asker: &Endpoint, plan: &NetworkPlan) -> Rc<[SocketAddr]> {
        let ours = |address: IpAddr| {
            plan.networks.iter().any(|network| {
                address == network.gateway || network.v6.is_some_and(|v6| address == v6.gateway)
            })
        };
        if !asker.resolvers.is_empty() {
            let own = asker.resolvers.iter().filter(|address| !ours(**address));
            return own.map(|address| SocketAddr::new(*address, PORT)).collect();
        }
        self.read_again();
        if self.resolvers.iter().any(|resolver| ours(resolver.ip())) {
            return self.resolvers.iter().filter(|resolver| !ours(resolver.ip())).copied().collect();
        }
        Rc::clone(&self.resolvers)
    }

    /// Reads the list again when it has changed.
    fn read_again(&mut self) {
        if !self.follow {
            return;
        }
        let metadata = std::fs::metadata(RESOLV_CONF).ok();
        let version = metadata.map(|file| (file.dev(), file.ino(), file.ctime(), file.ctime_nsec()));
        if version.is_none() || version != self.version {
            let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
            let index_of = |interface: &str| {
                let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).ok()?;
                index.trim().parse().ok()
            };
            self.resolvers = names::parse_resolvers(&text, index_of).into();
            self.version = version;
        }
    }
}

/// Who asked, and how to answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    Udp(Key, SocketAddr),
    Tcp(Key),
}

/// One of those who wait for the same reply.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) origin: Origin,
    /// Name of the container.
    pub(super) container: String,
    pub(super) query: wire::Query,
    /// Its egress policy goes by the names that addresses were looked up by.
    pub(super) learns: bool,
}

/// A query on its way to a resolver.
#[derive(Debug)]
pub(super) struct Forwarded {
    pub(super) asked: Asked,
    pub(super) waiters: Vec<Waiter>,
    /// As we send it: with an id of our own.
    message: Vec<u8>,
    /// Who is asked after the one that is asked now: index of the resolver, and whether it is for the last time.
    turns: VecDeque<(usize, bool)>,
    current: (usize, bool),
    over_tcp: bool,
    /// When the current one has taken too long, and a number that makes it the only one.
    pub(super) deadline: Option<(Instant, u64)>,
    /// Connected to the resolver, so that nobody else's reply is received.
    socket: Option<OwnedFd>,
    /// TCP: bytes sent and received so far.
    sent: usize,
    received: Vec<u8>,
    /// When it was sent first.
    pub(super) sent_at: Instant,
    /// Somebody has answered, if only that it cannot tell.
    pub(super) heard: bool,
}

/// What has become of a query.
pub(super) enum Progress {
    /// It is waited for.
    Waits,
    /// The reply came over the connection that had to be opened for it: it has time again.
    Anew,
    /// Another one should be asked.
    Failed,
    Done(Reply),
}

impl Forwarded {
    /// Each resolver is asked once, and once more if it was silent. Over TCP from the start for a client that uses it:
    /// it has most likely got a reply that did not fit.
    pub(super) fn new(asked: Asked, waiter: Waiter, id: [u8; 2]) -> Self {
        Self {
            message: waiter.query.onward(id),
            turns: (0..asked.resolvers.len()).map(|index| (index, false)).collect(),
            current: (0, true),
            over_tcp: matches!(waiter.origin, Origin::Tcp(_)),
            asked,
            waiters: vec![waiter],
            deadline: None,
            socket: None,
            sent: 0,
            received: Vec::new(),
            sent_at: Instant::now(),
            heard: false,
        }
    }

    /// The resolver that is asked now has not answered.
    pub(super) fn was_silent(&mut self) {
        let (index, last) = self.current;
        if !last {
            self.turns.push_back((index, true));
        }
    }

    /// Sends the query to whose turn it is; `false` when there is nobody left.
    pub(super) fn ask_next(&mut self, poll: &Poll, key: Key) -> bool {
        while let Some(next) = self.turns.pop_front() {
            self.current = next;
            match self.send(poll, key) {
                Ok(()) => return true,
                Err(error) => tracing::debug!(%error, resolver = next.0, "ask resolver"),
            }
        }
        false
    }

    /// Opens a socket to the resolver, with a source port that the kernel picks, and sends the query.
    fn send(&mut self, poll: &Poll, key: Key) -> rustix::io::Result<()> {
        let upstream = self.asked.resolvers.get(self.current.0).ok_or(Errno::NOENT)?;
        let kind = if self.over_tcp { SocketType::STREAM } else { SocketType::DGRAM };
        let socket = sockets::outside(*upstream, kind)?;
        match rustix::net::connect(&socket, upstream) {
            Ok(()) => {}
            Err(Errno::INPROGRESS) if self.over_tcp => {}
            Err(error) => return Err(error),
        }
        self.sent = 0;
        self.received.clear();
        if self.over_tcp {
            poll.add(&socket, Token::NameQuery(key), EventFlags::OUT)?;
        } else {
            rustix::net::send(&socket, &self.message, SendFlags::NOSIGNAL)?;
            poll.add(&socket, Token::NameQuery(key), EventFlags::IN)?;
        }
        self.socket = Some(socket);
        Ok(())
    }

    /// Takes what there is to take from the resolver.
    pub(super) fn ready(&mut self, poll: &Poll, key: Key, flags: EventFlags, buffer: &mut [u8]) -> Progress {
        let received = match self.receive(poll, key, flags, buffer) {
            Ok(Some(received)) => received,
            Ok(None) => return Progress::Waits,
            Err(error) => {
                tracing::debug!(%error, "resolver");
                self.was_silent();
                return Progress::Failed;
            }
        };
        self.heard |= !matches!(received, Received::Foreign);
        match received {
            Received::Whole(reply) => Progress::Done(reply),
            Received::Foreign if !self.over_tcp => Progress::Waits,
            Received::Cut if !self.over_tcp => {
                if self.waiters.iter().all(|waiter| waiter.query.limit() <= UDP_LIMIT) {
                    return Progress::Done(Reply::cut(&self.message));
                }
                self.over_tcp = true;
                match self.send(poll, key) {
                    Ok(()) => Progress::Anew,
                    Err(_) => Progress::Failed,
                }
            }
            Received::Failure | Received::Foreign | Received::Cut => Progress::Failed,
        }
    }

    /// A message, once it is complete.
    fn receive(
        &mut self,
        poll: &Poll,
        key: Key,
        flags: EventFlags,
        buffer: &mut [u8],
    ) -> rustix::io::Result<Option<Received>> {
        if self.over_tcp && flags.contains(EventFlags::OUT) {
            self.write(poll, key)?;
        }
        let Some(socket) = &self.socket else { return Ok(None) };
        let length = match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((_, length)) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error),
        };
        let received = buffer.get(..length).unwrap_or_default();
        if !self.over_tcp {
            return Ok(Some(Reply::read(received, &self.message)));
        }
        if length == 0 {
            return Err(Errno::CONNRESET);
        }
        self.received.extend(received);
        let expected =
            self.received.first_chunk::<2>().map(|length| usize::from(u16::from_be_bytes(*length)));
        let reply = expected.and_then(|length| self.received.get(2..2 + length));
        Ok(reply.map(|reply| Reply::read(reply, &self.message)))
    }

    fn write(&mut self, poll: &Poll, key: Key) -> rustix::io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let length = u16::try_from(self.message.len()).unwrap_or_default();
        let framed = [&length.to_be_bytes()[..], &self.message].concat();
        let rest = framed.get(self.sent..).unwrap_or_default();
        match rustix::net::send(socket, rest, SendFlags::NOSIGNAL) {
            Ok(count) => self.sent += count,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if self.sent >= framed.len() {
            poll.modify(socket, Token::NameQuery(key), EventFlags::IN)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{EndpointRequest, NetworkRequest, allocate};

    #[test]
    fn a_service_can_have_resolvers_of_its_own_and_we_are_never_one() {
        let network = NetworkRequest { name: "front".into(), ipv6: true, ..NetworkRequest::default() };
        let plan = allocate(&[network], &[EndpointRequest::default()], &[]).unwrap();
        let (gateway, gateway6) = (plan.networks[0].gateway, plan.networks[0].v6.unwrap().gateway);
        let at = |address: IpAddr, port| SocketAddr::new(address, port);
        let configured = [at(gateway.into(), 53), at([192, 0, 2, 1].into(), 5353), at(gateway6.into(), 53)];
        let mut host = Host::new(&configured);
        let mut asker = plan.endpoints[0].clone();
        assert_eq!(*host.resolvers_of(&asker, &plan), [configured[1]]);
        assert_eq!(*host.resolvers_of(&asker, &NetworkPlan::default()), configured);
        asker.resolvers = vec![gateway6.into(), [192, 0, 2, 7].into(), gateway.into()];
        assert_eq!(*host.resolvers_of(&asker, &plan), [at([192, 0, 2, 7].into(), 53)]);
        asker.resolvers = vec![gateway.into()];
        assert!(host.resolvers_of(&asker, &plan).is_empty(), "and the host's are not asked instead");
    }
}
