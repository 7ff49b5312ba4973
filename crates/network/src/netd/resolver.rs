//! The name server: answers what is the stack's, and asks the host's resolvers for the rest.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::event::{Poll, Token};
use super::slab::{Key, Slab};
use crate::names::{self, Answer, Code, NameSockets, UDP_LIMIT};
use crate::plan::NetworkPlan;

/// How long one resolver of the host may take before the next is asked.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a TCP client may keep its connection without an answered query.
const IDLE: Duration = Duration::from_secs(10);
/// Forwarded queries at a time; more are answered with a failure.
const QUERIES: usize = 256;
/// Of these, what one service may have: a busy one does not keep the others from asking.
const QUERIES_EACH: usize = 64;
/// TCP clients at a time.
const CLIENTS: usize = 64;
/// Of these, what one service may have.
const CLIENTS_EACH: usize = 16;
/// How long accepting rests when descriptors have run out.
const REST: Duration = Duration::from_millis(100);
/// The longest query taken over TCP; a real one has a few hundred bytes at the most.
const TCP_QUERY: usize = 4096;
/// Datagrams answered before others get their turn.
const TURNS: usize = 64;
/// Where the host's resolvers are listed.
const RESOLV_CONF: &str = "/etc/resolv.conf";

#[derive(Debug)]
pub(super) struct Resolver {
    plan: NetworkPlan,
    servers: Slab<NameSockets>,
    clients: Slab<TcpClient>,
    queries: Slab<Query>,
    /// Set by the configuration, or read from [`RESOLV_CONF`].
    upstreams: Vec<SocketAddr>,
    follow_host: bool,
    /// Of [`RESOLV_CONF`] when it was read: device, inode and time of change.
    version: Option<(u64, u64, i64, i64)>,
    deadlines: VecDeque<(Instant, Key, usize)>,
    client_deadlines: VecDeque<(Instant, Key)>,
    /// TCP clients are not accepted until then.
    resting: Option<Instant>,
    buffer: Vec<u8>,
    random: RandomState,
    sent: u64,
}

/// Who asked, and how to answer.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Udp(Key, SocketAddr),
    Tcp(Key),
}

/// A query on its way to a resolver of the host.
#[derive(Debug)]
struct Query {
    origin: Origin,
    /// As the client sent it.
    original: Vec<u8>,
    /// As we send it: with an id of our own.
    message: Vec<u8>,
    /// Index of the resolver that is asked.
    upstream: usize,
    /// How often it was sent; a deadline of an earlier attempt is void.
    attempt: usize,
    /// Connected to the resolver, so that nobody else's reply is received.
    socket: Option<OwnedFd>,
    /// TCP: bytes sent and received so far.
    sent: usize,
    received: Vec<u8>,
}

#[derive(Debug)]
struct TcpClient {
    socket: OwnedFd,
    network: String,
    address: Ipv4Addr,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A forwarded query; the next one is read when it has been answered.
    busy: bool,
    eof: bool,
    interest: EventFlags,
    deadline: Instant,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self {
            plan: NetworkPlan::default(),
            servers: Slab::new(),
            clients: Slab::new(),
            queries: Slab::new(),
            upstreams: Vec::new(),
            follow_host: true,
            version: None,
            deadlines: VecDeque::new(),
            client_deadlines: VecDeque::new(),
            resting: None,
            // Zeroed memory that is never touched takes no room.
            buffer: vec![0; 1 << 16],
            random: RandomState::new(),
            sent: 0,
        }
    }

    /// The address of a service's first replica on its first network.
    pub(super) fn address_of(&self, service: &str) -> Option<Ipv4Addr> {
        let endpoint = self.plan.endpoints.iter().find(|endpoint| endpoint.group == service)?;
        endpoint.interfaces.first().map(|interface| interface.address)
    }

    /// Replaces plan and resolvers; sockets of networks that are gone are closed, `names` are added or replace.
    pub(super) fn configure(
        &mut self,
        poll: &Poll,
        plan: NetworkPlan,
        resolvers: Vec<SocketAddr>,
        names: Vec<NameSockets>,
    ) -> Result<(), String> {
        let leaves = |server: &NameSockets| {
            !plan.networks.iter().any(|network| network.name == server.network)
                || names.iter().any(|fresh| fresh.network == server.network)
        };
        let gone: Vec<Key> =
            self.servers.iter().filter(|(_, server)| leaves(server)).map(|(key, _)| key).collect();
        for server in gone.into_iter().filter_map(|key| self.servers.remove(key)) {
            poll.delete(&server.udp);
            poll.delete(&server.tcp);
        }
        for server in names {
            let network = server.network.clone();
            let key = self.servers.insert(server);
            let Some(server) = self.servers.get(key) else { continue };
            poll.add(&server.udp, Token::NameUdp(key), EventFlags::IN)
                .and_then(|()| poll.add(&server.tcp, Token::NameTcp(key), EventFlags::IN))
                .map_err(|error| format!("watch the name server of network `{network}`: {error}"))?;
        }
        self.plan = plan;
        self.follow_host = resolvers.is_empty();
        self.upstreams = resolvers;
        self.version = None;
        Ok(())
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let query = self.deadlines.front().map(|(at, ..)| *at);
        let client = self.client_deadlines.front().map(|(at, _)| *at);
        [query, client, self.resting].into_iter().flatten().min()
    }

    pub(super) fn expire(&mut self, poll: &Poll, now: Instant) {
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
            self.watch_listeners(poll, EventFlags::IN);
        }
        while let Some((_, key, attempt)) = self.deadlines.pop_front_if(|(at, ..)| *at <= now) {
            if self.queries.get(key).is_some_and(|query| query.attempt == attempt) {
                self.ask_next(poll, key);
            }
        }
        while let Some((_, key)) = self.client_deadlines.pop_front_if(|(at, _)| *at <= now) {
            let Some(client) = self.clients.get(key) else { continue };
            if client.deadline <= now {
                self.clients.remove(key);
            } else {
                self.client_deadlines.push_back((client.deadline.max(now + IDLE / 2), key));
            }
        }
    }

    /// Answers the datagrams that have come.
    pub(super) fn datagrams(&mut self, poll: &Poll, key: Key) {
        for _ in 0..TURNS {
            let Some(server) = self.servers.get(key) else { return };
            let received = rustix::net::recvfrom(&server.udp, &mut self.buffer[..], RecvFlags::DONTWAIT);
            let (length, from) = match received {
                Ok((_, length, Some(from))) => (length, from),
                Err(Errno::AGAIN) => return,
                other => {
                    tracing::debug!(?other, "receive query");
                    continue;
                }
            };
            let Ok(from) = SocketAddr::try_from(from) else { continue };
            let IpAddr::V4(address) = from.ip() else { continue };
            let Some(asker) = names::asker(&self.plan, &server.network, address) else { continue };
            let query = self.buffer.get(..length).unwrap_or_default();
            match names::answer(query, asker, &self.plan, UDP_LIMIT) {
                Answer::Reply(reply) => self.answer(poll, Origin::Udp(key, from), &reply),
                Answer::Forward => {
                    let query = query.to_vec();
                    self.forward(poll, Origin::Udp(key, from), query);
                }
                Answer::Drop => {}
            }
        }
    }

    fn answer(&mut self, poll: &Poll, origin: Origin, reply: &[u8]) {
        match origin {
            Origin::Udp(key, to) => {
                let Some(server) = self.servers.get(key) else { return };
                // A client that is gone or slow asks again.
                if let Err(error) = rustix::net::sendto(&server.udp, reply, SendFlags::DONTWAIT, &to) {
                    tracing::debug!(%error, %to, "answer query");
                }
            }
            Origin::Tcp(key) => {
                if let Some(client) = self.clients.get_mut(key) {
                    let length = u16::try_from(reply.len()).unwrap_or_default();
                    client.output.extend(length.to_be_bytes());
                    client.output.extend(reply);
                    client.busy = false;
                    client.deadline = Instant::now() + IDLE;
                }
                self.advance(poll, key);
            }
        }
    }

    // Forwarding.

    fn forward(&mut self, poll: &Poll, origin: Origin, original: Vec<u8>) {
        let from_same = |query: &Query| match (origin, query.origin) {
            (Origin::Udp(_, a), Origin::Udp(_, b)) => a.ip() == b.ip(),
            _ => false,
        };
        let count = self.queries.iter().filter(|(_, query)| from_same(query)).count();
        if self.queries.len() >= QUERIES || count >= QUERIES_EACH {
            if let Some(reply) = names::failure(&original, Code::ServerFailed) {
                self.answer(poll, origin, &reply);
            }
            return;
        }
        self.read_resolvers();
        self.sent += 1;
        // SipHash under a key that the kernel's random numbers gave: not to be guessed from earlier ids.
        let [high, low, ..] = self.random.hash_one(self.sent).to_be_bytes();
        let mut message = original.clone();
        for (byte, value) in message.iter_mut().zip([high, low]) {
            *byte = value;
        }
        let query = Query {
            origin,
            original,
            message,
            upstream: 0,
            attempt: 0,
            socket: None,
            sent: 0,
            received: Vec::new(),
        };
        let key = self.queries.insert(query);
        self.ask_next(poll, key);
    }

    /// Reads the host's list again when it has changed.
    fn read_resolvers(&mut self) {
        if !self.follow_host {
            return;
        }
        let metadata = std::fs::metadata(RESOLV_CONF).ok();
        let version = metadata.map(|file| (file.dev(), file.ino(), file.ctime(), file.ctime_nsec()));
        if version.is_none() || version != self.version {
            let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
            self.upstreams = names::parse_resolvers(&text);
            self.version = version;
        }
    }

    /// Sends a query to its first resolver, or to the next one when the last did not answer.
    fn ask_next(&mut self, poll: &Poll, key: Key) {
        loop {
            let Some(query) = self.queries.get_mut(key) else { return };
            if query.attempt > 0 {
                query.upstream += 1;
            }
            query.attempt += 1;
            let attempt = query.attempt;
            let Some(upstream) = self.upstreams.get(query.upstream) else {
                return self.finish(poll, key, None);
            };
            match query.send(poll, key, upstream) {
                Ok(()) => {
                    self.deadlines.push_back((Instant::now() + TIMEOUT, key, attempt));
                    return;
                }
                Err(error) => tracing::debug!(%error, %upstream, "ask resolver"),
            }
        }
    }

    /// A resolver has answered, or refuses.
    pub(super) fn reply_ready(&mut self, poll: &Poll, key: Key, flags: EventFlags) {
        let Some(query) = self.queries.get_mut(key) else { return };
        match query.receive(poll, key, flags, &mut self.buffer) {
            Ok(Some(mut reply)) => {
                for (byte, value) in reply.iter_mut().zip(query.original.iter().take(2)) {
                    *byte = *value;
                }
                self.finish(poll, key, Some(reply));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "resolver");
                self.ask_next(poll, key);
            }
        }
    }

    fn finish(&mut self, poll: &Poll, key: Key, reply: Option<Vec<u8>>) {
        let Some(query) = self.queries.remove(key) else { return };
        if let Some(reply) = reply.or_else(|| names::failure(&query.original, Code::ServerFailed)) {
            self.answer(poll, query.origin, &reply);
        }
        let open =
            |key: Key, attempt: usize| self.queries.get(key).is_some_and(|query| query.attempt == attempt);
        while self.deadlines.pop_front_if(|(_, key, attempt)| !open(*key, *attempt)).is_some() {}
    }

    // Queries over TCP.

    pub(super) fn accept(&mut self, poll: &Poll, key: Key) {
        let Some(server) = self.servers.get(key) else { return };
        let accepted =
            rustix::net::acceptfrom_with(&server.tcp, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        let (socket, from) = match accepted {
            Ok((socket, Some(from))) => (socket, SocketAddr::try_from(from)),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                tracing::warn!("out of descriptors or memory: name queries over TCP wait");
                self.watch_listeners(poll, EventFlags::empty());
                self.resting = Some(Instant::now() + REST);
                return;
            }
            other => {
                tracing::debug!(?other, "accept");
                return;
            }
        };
        let network = server.network.clone();
        let Ok(SocketAddr::V4(from)) = from else { return };
        let known = names::asker(&self.plan, &network, *from.ip()).is_some();
        let count = self.clients.iter().filter(|(_, client)| client.address == *from.ip()).count();
        if !known || self.clients.len() >= CLIENTS || count >= CLIENTS_EACH {
            return;
        }
        let deadline = Instant::now() + IDLE;
        let client = TcpClient {
            socket,
            network,
            address: *from.ip(),
            input: Vec::new(),
            output: Vec::new(),
            busy: false,
            eof: false,
            interest: EventFlags::IN,
            deadline,
        };
        let key = self.clients.insert(client);
        self.client_deadlines.push_back((deadline, key));
        let watched = self
            .clients
            .get(key)
            .map(|client| poll.add(&client.socket, Token::NameClient(key), EventFlags::IN));
        if !matches!(watched, Some(Ok(()))) {
            self.clients.remove(key);
        }
    }

    fn watch_listeners(&self, poll: &Poll, flags: EventFlags) {
        for (key, server) in self.servers.iter() {
            if let Err(error) = poll.modify(&server.tcp, Token::NameTcp(key), flags) {
                tracing::warn!(%error, network = server.network, "watch name server");
            }
        }
    }

    pub(super) fn client_ready(&mut self, poll: &Poll, key: Key, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            self.clients.remove(key);
            return;
        }
        if flags.contains(EventFlags::IN) {
            match rustix::net::recv(&client.socket, &mut self.buffer[..TCP_QUERY], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => client.eof = true,
                Ok((_, length)) => client.input.extend(self.buffer.get(..length).unwrap_or_default()),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => {
                    self.clients.remove(key);
                    return;
                }
            }
        }
        self.advance(poll, key);
    }

    /// Does what can be done for a TCP client: write, then take the next query.
    fn advance(&mut self, poll: &Poll, key: Key) {
        loop {
            let Some(client) = self.clients.get_mut(key) else { return };
            if !client.write() {
                self.clients.remove(key);
                return;
            }
            let (query, address) = match client.next_query() {
                Next::Query(query) => (query, client.address),
                Next::Wait => break,
                Next::Close => {
                    self.clients.remove(key);
                    return;
                }
            };
            let Some(asker) = names::asker(&self.plan, &client.network, address) else {
                self.clients.remove(key);
                return;
            };
            match names::answer(&query, asker, &self.plan, usize::from(u16::MAX)) {
                Answer::Reply(reply) => {
                    client.output.extend(u16::try_from(reply.len()).unwrap_or_default().to_be_bytes());
                    client.output.extend(reply);
                    client.deadline = Instant::now() + IDLE;
                }
                Answer::Forward => {
                    client.busy = true;
                    return self.forward(poll, Origin::Tcp(key), query);
                }
                Answer::Drop => {
                    self.clients.remove(key);
                    return;
                }
            }
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.watch(poll, key).is_err() {
            self.clients.remove(key);
        }
    }
}

enum Next {
    Query(Vec<u8>),
    Wait,
    Close,
}

impl TcpClient {
    /// Writes what it takes; `false` when it is gone.
    fn write(&mut self) -> bool {
        while !self.output.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, &self.output, flags) {
                Ok(sent) => drop(self.output.drain(..sent.min(self.output.len()))),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// The next query, each preceded by its length (RFC 1035 section 4.2.2).
    fn next_query(&mut self) -> Next {
        if self.busy || !self.output.is_empty() {
            return Next::Wait;
        }
        let length = self.input.first_chunk::<2>().map(|length| usize::from(u16::from_be_bytes(*length)));
        match length {
            Some(length) if length > TCP_QUERY => Next::Close,
            Some(length) if self.input.len() >= 2 + length => {
                let query = self.input.get(2..2 + length).unwrap_or_default().to_vec();
                self.input.drain(..2 + length);
                Next::Query(query)
            }
            _ if self.eof => Next::Close,
            _ => Next::Wait,
        }
    }

    fn watch(&mut self, poll: &Poll, key: Key) -> rustix::io::Result<()> {
        let mut flags = EventFlags::empty();
        let waits = self.busy || !self.output.is_empty();
        flags.set(EventFlags::IN, !self.eof && !waits && self.input.len() < TCP_QUERY + 2);
        flags.set(EventFlags::OUT, !self.output.is_empty());
        if flags != self.interest {
            poll.modify(&self.socket, Token::NameClient(key), flags)?;
            self.interest = flags;
        }
        Ok(())
    }
}

impl Query {
    fn is_tcp(&self) -> bool {
        matches!(self.origin, Origin::Tcp(_))
    }

    /// Opens a socket to `upstream`, with a source port that the kernel picks, and sends the query, over the
    /// protocol that the client used.
    fn send(&mut self, poll: &Poll, key: Key, upstream: &SocketAddr) -> rustix::io::Result<()> {
        let family = if upstream.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = if self.is_tcp() { SocketType::STREAM } else { SocketType::DGRAM };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        match rustix::net::connect(&socket, upstream) {
            Ok(()) => {}
            Err(Errno::INPROGRESS) if self.is_tcp() => {}
            Err(error) => return Err(error),
        }
        self.sent = 0;
        self.received.clear();
        if self.is_tcp() {
            poll.add(&socket, Token::NameQuery(key), EventFlags::OUT)?;
        } else {
            rustix::net::send(&socket, &self.message, SendFlags::NOSIGNAL)?;
            poll.add(&socket, Token::NameQuery(key), EventFlags::IN)?;
        }
        self.socket = Some(socket);
        Ok(())
    }

    /// The reply, once it is complete; what is no reply to this query is passed over.
    fn receive(
        &mut self,
        poll: &Poll,
        key: Key,
        flags: EventFlags,
        buffer: &mut [u8],
    ) -> rustix::io::Result<Option<Vec<u8>>> {
        if self.is_tcp() && flags.contains(EventFlags::OUT) {
            self.write(poll, key)?;
        }
        let Some(socket) = &self.socket else { return Ok(None) };
        let length = match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((_, length)) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error),
        };
        let received = buffer.get(..length).unwrap_or_default();
        if !self.is_tcp() {
            return Ok(names::is_reply_to(received, &self.message).then(|| received.to_vec()));
        }
        if length == 0 {
            return Err(Errno::CONNRESET);
        }
        self.received.extend(received);
        let expected =
            self.received.first_chunk::<2>().map(|length| usize::from(u16::from_be_bytes(*length)));
        let Some(reply) = expected.and_then(|length| self.received.get(2..2 + length)) else {
            return Ok(None);
        };
        if names::is_reply_to(reply, &self.message) { Ok(Some(reply.to_vec())) } else { Err(Errno::PROTO) }
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
