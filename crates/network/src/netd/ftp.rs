//! FTP control connections, which are read and rewritten until they become TLS, and the data connections that
//! they announce.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::Event;
use super::connection::End;
use super::flow::Side;
use super::slab::Key;
use super::topology::{ServiceId, Target};
use super::world::{Poll, Token};
use crate::ftp::{Addresses, Ports, Session};

/// Bytes that may wait for one side; while there are more, the other is not read.
const BACKLOG: usize = 16 * 1024;
/// Bytes that are read at once.
const CHUNK: usize = 4096;
/// Passive data connections that one pool may be waiting for in the name of one client.
const AWAITED_EACH: usize = 1024;

/// The lowest port that a server may be told of.
const FIRST_PORT: u16 = 1024;

/// The port that a control connection came in by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate {
    pub(super) service: ServiceId,
    /// First and last port of the pool for passive mode.
    pub(super) passive: (u16, u16),
    pub(super) announce: Option<IpAddr>,
}

/// Data connections that have been announced and have not come yet, and who may have others.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// By service, port of the pool, and the client's address.
    passive: HashMap<(ServiceId, u16, IpAddr), (Key, Target)>,
    /// By the replica's address and the address that it was told.
    active: HashMap<(IpAddr, SocketAddr), (Key, SocketAddr, SocketAddr)>,
    /// Control connections that cannot be read any more: their replicas announce ports of the pool themselves.
    opaque: HashMap<Key, (ServiceId, IpAddr, Target)>,
    /// Where to look for a free port next.
    next: u16,
}

impl Expected {
    /// Where a client's connection to a port of the pool goes: what was announced, or else any replica that has a
    /// session of this client that cannot be read.
    pub(super) fn passive(&mut self, service: ServiceId, port: u16, client: SocketAddr) -> Vec<Target> {
        let keep = |target: Target| Target { source: target.source.map(|_| client), ..target };
        if let Some((_, target)) = self.passive.remove(&(service, port, client.ip())) {
            return vec![keep(target)];
        }
        let mut targets: Vec<Target> = Vec::new();
        let sessions = self.opaque.values().filter(|(of, who, _)| (*of, *who) == (service, client.ip()));
        for (_, _, control) in sessions {
            let address = SocketAddr::new(control.address.ip(), port);
            if !targets.iter().any(|target| target.address == address) {
                targets.push(keep(Target { address, ..*control }));
            }
        }
        targets
    }

    /// Where a replica's connection to an address that it was told goes: the client, and the address to come from.
    pub(super) fn active(&mut self, replica: IpAddr, told: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
        self.active.remove(&(replica, told)).map(|(_, client, source)| (client, source))
    }

    /// Whether such a connection is expected.
    pub(super) fn is_expected(&self, replica: IpAddr, told: SocketAddr) -> bool {
        self.active.contains_key(&(replica, told))
    }

    /// `wanted`, or the same address with another port: the same replica has been told of that in the name of
    /// somebody who has the same address to it.
    fn free(&self, replica: IpAddr, wanted: SocketAddr) -> Option<SocketAddr> {
        let ports = std::iter::once(wanted.port()).chain(FIRST_PORT..=u16::MAX);
        let mut all = ports.map(|port| SocketAddr::new(wanted.ip(), port));
        all.find(|told| !self.active.contains_key(&(replica, *told)))
    }

    /// The control connection has ended, or its data connections will not come any more.
    fn void(&mut self, control: Key) {
        self.passive.retain(|_, (key, _)| *key != control);
        self.active.retain(|_, (key, ..)| *key != control);
    }

    pub(super) fn forget(&mut self, control: Key) {
        self.void(control);
        self.opaque.remove(&control);
    }
}

/// A control connection that is read.
#[derive(Debug)]
pub(super) struct Control {
    session: Session,
    gate: Gate,
    /// Of the client's connection: where it has connected to.
    entry: SocketAddr,
    client: SocketAddr,
    target: Target,
    /// What the client has sent and the session has not taken yet.
    unread: Vec<u8>,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    client_ended: bool,
    server_ended: bool,
    /// The server's connection was reset: so will be the client's, after what is for it.
    reset: bool,
    /// The server has been told that the client has ended.
    told: bool,
    /// It ends as soon as the client has what is for it.
    last: bool,
}

/// How it goes on with a control connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Course {
    Goes,
    /// It can be carried without being read from here on.
    Opaque,
    Over,
    /// It is over, and ends with a reset.
    Broken,
}

/// What a control connection lives among.
#[derive(Debug)]
pub(super) struct Around<'a> {
    pub(super) key: Key,
    /// Name of the service.
    pub(super) service: &'a str,
    pub(super) expected: &'a mut Expected,
    pub(super) events: &'a mut Vec<Event>,
}

/// What the session may ask for.
struct Doors<'a, 'b> {
    around: &'b mut Around<'a>,
    gate: Gate,
    entry: SocketAddr,
    client: SocketAddr,
    target: Target,
}

impl Ports for Doors<'_, '_> {
    fn passive(&mut self, target: SocketAddr) -> Option<u16> {
        let (first, last) = self.gate.passive;
        let own = |(service, _, client): &&(ServiceId, u16, IpAddr)| {
            *service == self.gate.service && *client == self.client.ip()
        };
        if self.around.expected.passive.keys().filter(own).count() >= AWAITED_EACH {
            return None;
        }
        let taken = |port: u16| {
            self.around.expected.passive.contains_key(&(self.gate.service, port, self.client.ip()))
        };
        let size = u32::from(last.checked_sub(first)?) + 1;
        let start = u32::from(self.around.expected.next);
        // The replica's own port first: a replica with a part of the pool of its own never collides with others.
        let own = Some(target.port()).filter(|port| (first..=last).contains(port));
        let all = (0..size).filter_map(|at| u16::try_from(u32::from(first) + (start + at) % size).ok());
        let port = own.into_iter().chain(all).find(|port| !taken(*port))?;
        self.around.expected.next = self.around.expected.next.wrapping_add(1);
        let target = Target { address: target, ..self.target };
        self.around
            .expected
            .passive
            .insert((self.gate.service, port, self.client.ip()), (self.around.key, target));
        Some(port)
    }

    fn active(&mut self, client: SocketAddr) -> Option<SocketAddr> {
        // Servers insist on the address that they see the control connection come from.
        let seen = self.target.source.map_or(self.target.gateway, |source| source.ip());
        let server = self.target.address.ip();
        let told = self.around.expected.free(server, SocketAddr::new(seen, client.port()))?;
        let port = if self.entry.port() == 21 { 20 } else { self.entry.port().wrapping_sub(1) };
        let source = SocketAddr::new(self.entry.ip(), port);
        self.around.expected.active.insert((server, told), (self.around.key, client, source));
        Some(told)
    }

    fn void(&mut self) {
        self.around.expected.void(self.around.key);
    }

    fn report(&mut self, what: String) {
        let service = self.around.service.to_owned();
        self.around.events.push(Event::Ftp { service, client: self.client, what });
    }
}

impl Control {
    pub(super) fn new(gate: Gate, client: SocketAddr, entry: SocketAddr, target: Target) -> Self {
        // A client of the other family could not be recognised when it comes for its data.
        let same_family = |announced: &IpAddr| announced.is_ipv4() == client.is_ipv4();
        let announced = gate.announce.filter(same_family).unwrap_or(entry.ip());
        let session = Session::new(Addresses { client, entry: announced, server: target.address });
        Self {
            session,
            gate,
            entry,
            client,
            target,
            unread: Vec::new(),
            to_server: Vec::new(),
            to_client: Vec::new(),
            client_ended: false,
            server_ended: false,
            reset: false,
            told: false,
            last: false,
        }
    }

    /// One end is ready, or broken.
    pub(super) fn ready(
        &mut self,
        ends: (&mut Side, &mut Side),
        end: End,
        flags: EventFlags,
        around: &mut Around<'_>,
    ) -> Course {
        let (client, server) = ends;
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            // A client that is gone wants nothing any more. What a server said at last is still for the client.
            if end == End::Client {
                client.hung = true;
                return Course::Broken;
            }
            server.hung = true;
        }
        let mut doors =
            Doors { around, gate: self.gate, entry: self.entry, client: self.client, target: self.target };
        let readable = flags.contains(EventFlags::IN);
        if end == End::Client && readable && !self.read_client(client) {
            return Course::Broken;
        }
        if end == End::Upstream && readable {
            self.read_server(server, &mut doors);
        }
        loop {
            self.take(&mut doors);
            if write(&client.socket, &mut self.to_client).is_err() {
                return Course::Broken;
            }
            // Nobody will tell that there is more to read from one that has hung up.
            if !server.hung || self.server_ended || self.last || self.to_client.len() >= BACKLOG {
                break;
            }
            self.read_server(server, &mut doors);
        }
        if write(&server.socket, &mut self.to_server).is_err() {
            // It has hung up, which is reported, too.
            self.to_server.clear();
        }
        if self.last || self.server_ended {
            return match self.to_client.is_empty() {
                true if self.reset => Course::Broken,
                true => Course::Over,
                false => Course::Goes,
            };
        }
        let drained = self.to_client.is_empty() && self.to_server.is_empty() && self.unread.is_empty();
        if self.client_ended && self.to_server.is_empty() && self.unread.is_empty() && !self.told {
            self.told = true;
            if let Err(error) = rustix::net::shutdown(&server.socket, Shutdown::Write) {
                tracing::debug!(%error, "end a control connection");
            }
        }
        if drained && self.session.is_opaque() && !self.client_ended && !server.hung {
            let session = (self.gate.service, self.client.ip(), self.target);
            let Around { key, expected, .. } = doors.around;
            expected.void(*key);
            expected.opaque.insert(*key, session);
            return Course::Opaque;
        }
        Course::Goes
    }

    /// Has the session take what the client has sent.
    fn take(&mut self, doors: &mut Doors<'_, '_>) {
        if self.last || self.server_ended {
            return;
        }
        match self.session.client(&self.unread, doors, &mut self.to_server, &mut self.to_client) {
            Ok(taken) => drop(self.unread.drain(..taken.min(self.unread.len()))),
            Err(violation) => {
                doors.report(violation.to_string());
                self.last = true;
            }
        }
    }

    /// `false` when the client is gone.
    fn read_client(&mut self, client: &Side) -> bool {
        let mut chunk = [0; CHUNK];
        match receive(&client.socket, &mut chunk) {
            Ok(Some(bytes)) => {
                self.client_ended = bytes.is_empty();
                self.unread.extend_from_slice(bytes);
            }
            Ok(None) => {}
            Err(_) => return false,
        }
        true
    }

    fn read_server(&mut self, server: &Side, doors: &mut Doors<'_, '_>) {
        let mut chunk = [0; CHUNK];
        match receive(&server.socket, &mut chunk) {
            // One that has hung up and has nothing to read has told of its error before.
            Ok(None) if !server.hung => {}
            Ok(Some(bytes)) if !bytes.is_empty() => {
                if let Err(violation) = self.session.server(bytes, doors, &mut self.to_client) {
                    doors.report(violation.to_string());
                    self.last = true;
                }
            }
            other => {
                self.reset = other.is_err();
                self.session.finish(&mut self.to_client);
                self.server_ended = true;
            }
        }
    }

    /// Watches both ends for what the session waits for.
    pub(super) fn watch(
        &self,
        poll: &Poll,
        key: Key,
        client: &mut Side,
        server: &mut Side,
    ) -> rustix::io::Result<()> {
        let over = self.last || self.server_ended;
        let mut flags = EventFlags::empty();
        // Who does not take the answers to its commands may not give more of them.
        let room = self.to_server.len() < BACKLOG && self.to_client.len() < BACKLOG;
        let reads = self.unread.len() < CHUNK && room && !self.client_ended;
        // A session that has to wait for the server first takes nothing; what is unread is offered again then.
        flags.set(EventFlags::IN, reads && !over && (self.session.wants_client() || self.unread.is_empty()));
        flags.set(EventFlags::OUT, !self.to_client.is_empty());
        client.watch(poll, Token::Proxy(key, End::Client), flags)?;
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.to_client.len() < BACKLOG && !over);
        flags.set(EventFlags::OUT, !self.to_server.is_empty() && !over);
        server.watch(poll, Token::Proxy(key, End::Upstream), flags)
    }
}

/// Reads what there is: nothing but the end, or `None` when there is nothing yet.
fn receive<'a>(socket: &OwnedFd, chunk: &'a mut [u8; CHUNK]) -> rustix::io::Result<Option<&'a [u8]>> {
    match rustix::net::recv(socket, &mut chunk[..], RecvFlags::DONTWAIT) {
        Ok((_, length)) => Ok(chunk.get(..length)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes what the socket takes.
fn write(socket: &OwnedFd, bytes: &mut Vec<u8>) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => drop(bytes.drain(..sent.min(bytes.len()))),
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::slab::Slab;
    use super::super::topology::Topology;
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn replica(text: &str) -> Target {
        Target { address: at(text), source: None, gateway: at("172.18.0.1:0").ip() }
    }

    /// What is expected, two sessions of clients on loopback with two replicas, and the service.
    struct Stage {
        expected: Expected,
        keys: Vec<Key>,
        service: ServiceId,
        events: Vec<Event>,
    }

    impl Stage {
        fn new() -> Self {
            let mut slab = Slab::new();
            let keys = (0..4).map(|_| slab.insert(())).collect();
            let service = Topology::default().intern("ftp");
            Self { expected: Expected::default(), keys, service, events: Vec::new() }
        }

        fn passive(&mut self, session: usize, client: &str, data: &str) -> Option<u16> {
            self.session(session, client, data, |doors| doors.passive(at(data)))
        }

        fn active(&mut self, session: usize, client: &str, replica: &str) -> Option<SocketAddr> {
            self.session(session, client, replica, |doors| doors.active(at(client)))
        }

        /// A session of a client with the replica of that address; the pool has the ports 100 to 102.
        fn session<T>(
            &mut self,
            session: usize,
            client: &str,
            server: &str,
            ask: impl FnOnce(&mut Doors<'_, '_>) -> T,
        ) -> T {
            let mut around = Around {
                key: self.keys[session],
                service: "ftp",
                expected: &mut self.expected,
                events: &mut self.events,
            };
            let gate = Gate { service: self.service, passive: (100, 102), announce: None };
            let target = Target { address: SocketAddr::new(at(server).ip(), 21), ..replica(server) };
            let entry = at("127.0.0.1:2121");
            ask(&mut Doors { around: &mut around, gate, entry, client: at(client), target })
        }

        fn comes(&mut self, port: u16, client: &str) -> Vec<SocketAddr> {
            let targets = self.expected.passive(self.service, port, at(client));
            targets.into_iter().map(|target| target.address).collect()
        }
    }

    #[test]
    fn passive_data_is_for_the_session_that_announced_the_port() {
        let mut stage = Stage::new();
        let client = "192.0.2.7:5000";
        assert_eq!(
            stage.passive(0, client, "172.18.0.3:101"),
            Some(101),
            "the server's own port if it can be"
        );
        let other = stage.passive(1, client, "172.18.0.4:101").unwrap();
        assert_ne!(other, 101);
        // Somebody else may have the same port.
        assert_eq!(stage.passive(2, "192.0.2.8:5000", "172.18.0.4:101"), Some(101));
        assert!(stage.comes(101, "192.0.2.9:1").is_empty(), "nobody's");
        assert_eq!(stage.comes(other, "192.0.2.7:6001"), [at("172.18.0.4:101")]);
        assert_eq!(stage.comes(101, "192.0.2.7:6000"), [at("172.18.0.3:101")]);
        assert!(stage.comes(101, "192.0.2.7:6002").is_empty(), "once");
        assert_eq!(stage.comes(101, "192.0.2.8:6002"), [at("172.18.0.4:101")]);
    }

    #[test]
    fn an_empty_pool_gives_no_port_until_one_comes_back() {
        let mut stage = Stage::new();
        let client = "192.0.2.7:5000";
        let ports: Vec<_> =
            (0..3).map(|session| stage.passive(session, client, "172.18.0.3:40000")).collect();
        let mut sorted = ports.clone();
        sorted.sort();
        assert_eq!(sorted, [Some(100), Some(101), Some(102)]);
        assert_eq!(stage.passive(3, client, "172.18.0.3:40000"), None);
        assert!(stage.passive(3, "192.0.2.8:5000", "172.18.0.3:40000").is_some(), "another client's");
        stage.expected.forget(stage.keys[1]);
        assert_eq!(stage.passive(3, client, "172.18.0.3:40000"), ports[1]);
    }

    #[test]
    fn passive_data_comes_from_the_clients_own_address_where_the_session_does() {
        let mut stage = Stage::new();
        let target = Target { source: Some(at("192.0.2.7:5000")), ..replica("172.18.0.3:40000") };
        let key = (stage.service, 100, at("192.0.2.7:0").ip());
        stage.expected.passive.insert(key, (stage.keys[0], target));
        let targets = stage.expected.passive(stage.service, 100, at("192.0.2.7:6000"));
        assert_eq!(targets[0].source, Some(at("192.0.2.7:6000")));
    }

    #[test]
    fn a_port_of_a_session_that_cannot_be_read_leads_to_its_replica() {
        let mut stage = Stage::new();
        let client = at("192.0.2.7:5000").ip();
        for (session, server) in [(0, "172.18.0.3:21"), (1, "172.18.0.3:21"), (2, "172.18.0.4:21")] {
            stage.expected.opaque.insert(stage.keys[session], (stage.service, client, replica(server)));
        }
        let mut found = stage.comes(102, "192.0.2.7:6000");
        found.sort();
        assert_eq!(found, [at("172.18.0.3:102"), at("172.18.0.4:102")], "each replica once");
        assert!(stage.comes(102, "192.0.2.8:6000").is_empty());
        // What was announced goes first.
        assert_eq!(stage.passive(3, "192.0.2.7:5001", "172.18.0.5:102"), Some(102));
        assert_eq!(stage.comes(102, "192.0.2.7:6001"), [at("172.18.0.5:102")]);
        stage.expected.forget(stage.keys[2]);
        assert_eq!(stage.comes(102, "192.0.2.7:6000"), [at("172.18.0.3:102")]);
    }

    #[test]
    fn active_data_goes_to_the_client_from_the_port_below_the_published_one() {
        let mut stage = Stage::new();
        let told = stage.active(0, "127.0.0.1:5000", "172.18.0.3:21").unwrap();
        assert_eq!(told, at("172.18.0.1:5000"));
        let server = at("172.18.0.3:0").ip();
        assert_eq!(stage.expected.active(at("172.18.0.4:0").ip(), told), None, "another replica");
        assert_eq!(stage.expected.active(server, told), Some((at("127.0.0.1:5000"), at("127.0.0.1:2120"))));
        assert_eq!(stage.expected.active(server, told), None, "once");
    }

    #[test]
    fn clients_that_look_alike_to_a_replica_are_told_apart_by_port() {
        let mut stage = Stage::new();
        let first = stage.active(0, "127.0.0.1:5000", "172.18.0.3:21").unwrap();
        let second = stage.active(1, "127.0.0.2:5000", "172.18.0.3:21").unwrap();
        assert_ne!(first, second);
        assert!(second.port() >= FIRST_PORT);
        let elsewhere = stage.active(2, "127.0.0.3:5000", "172.18.0.4:21").unwrap();
        assert_eq!(elsewhere.port(), 5000);
        let server = at("172.18.0.3:0").ip();
        assert_eq!(stage.expected.active(server, second).unwrap().0, at("127.0.0.2:5000"));
        assert_eq!(stage.expected.active(server, first).unwrap().0, at("127.0.0.1:5000"));
    }

    #[test]
    fn what_a_session_expected_ends_with_it() {
        let mut stage = Stage::new();
        let port = stage.passive(0, "192.0.2.7:5000", "172.18.0.3:101").unwrap();
        let told = stage.active(0, "192.0.2.7:5000", "172.18.0.3:21").unwrap();
        stage.passive(1, "192.0.2.7:5000", "172.18.0.3:102").unwrap();
        stage.expected.forget(stage.keys[0]);
        assert!(stage.comes(port, "192.0.2.7:6000").is_empty());
        assert_eq!(stage.expected.active(at("172.18.0.3:0").ip(), told), None);
        assert_eq!(stage.comes(102, "192.0.2.7:6000"), [at("172.18.0.3:102")], "the other's stays");
    }
}
