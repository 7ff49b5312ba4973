//! FTP control connections, which are read and rewritten until they become TLS, and the data connections that
//! they announce.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::Event;
use super::event::{Poll, Token};
use super::flow::Side;
use super::proxy::End;
use super::slab::Key;
use super::topology::{ServiceId, Target};
use crate::ftp::{Addresses, Ports, Session};

/// Bytes that may wait for one side; while there are more, the other is not read.
const BACKLOG: usize = 16 * 1024;
/// Bytes that are read at once.
const CHUNK: usize = 4096;
/// Passive data connections that one pool may be waiting for in the name of one client.
const AWAITED_EACH: usize = 1024;

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
        let told = match self.target.source {
            Some(source) => SocketAddr::new(source.ip(), client.port()),
            None => SocketAddr::new(self.target.gateway, client.port()),
        };
        let port = if self.entry.port() == 21 { 20 } else { self.entry.port().wrapping_sub(1) };
        let source = SocketAddr::new(self.entry.ip(), port);
        self.around
            .expected
            .active
            .insert((self.target.address.ip(), told), (self.around.key, client, source));
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
        let announced = gate.announce.unwrap_or(entry.ip());
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
            told: false,
            last: false,
        }
    }

    /// One end is ready, or broken.
    pub(super) fn ready(
        &mut self,
        ends: (&Side, &Side),
        end: End,
        flags: EventFlags,
        around: &mut Around<'_>,
    ) -> Course {
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            return Course::Over;
        }
        let (client, server) = ends;
        let mut doors =
            Doors { around, gate: self.gate, entry: self.entry, client: self.client, target: self.target };
        if flags.contains(EventFlags::IN) && self.read(client, server, end, &mut doors).is_none() {
            return Course::Over;
        }
        let taken = !self.last
            && match self.session.client(&self.unread, &mut doors, &mut self.to_server, &mut self.to_client) {
                Ok(taken) => {
                    self.unread.drain(..taken.min(self.unread.len()));
                    true
                }
                Err(violation) => {
                    doors.report(violation.to_string());
                    false
                }
            };
        self.last |= !taken;
        if write(&client.socket, &mut self.to_client).is_err()
            || write(&server.socket, &mut self.to_server).is_err()
        {
            return Course::Over;
        }
        if self.last || self.server_ended {
            return if self.to_client.is_empty() { Course::Over } else { Course::Goes };
        }
        let drained = self.to_client.is_empty() && self.to_server.is_empty() && self.unread.is_empty();
        if self.client_ended && self.to_server.is_empty() && !self.told {
            self.told = true;
            if rustix::net::shutdown(&server.socket, Shutdown::Write).is_err() {
                return Course::Over;
            }
        }
        if drained && self.session.is_opaque() && !self.client_ended {
            let session = (self.gate.service, self.client.ip(), self.target);
            let Around { key, expected, .. } = doors.around;
            expected.void(*key);
            expected.opaque.insert(*key, session);
            return Course::Opaque;
        }
        Course::Goes
    }

    /// Reads from one end; `None` when the connection is over.
    fn read(&mut self, client: &Side, server: &Side, end: End, doors: &mut Doors<'_, '_>) -> Option<()> {
        let mut chunk = [0; CHUNK];
        let socket = if end == End::Client { &client.socket } else { &server.socket };
        let length = match rustix::net::recv(socket, &mut chunk[..], RecvFlags::DONTWAIT) {
            Ok((_, length)) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Some(()),
            Err(_) => return None,
        };
        let bytes = chunk.get(..length)?;
        match (end, length) {
            (End::Client, 0) => self.client_ended = true,
            (End::Client, _) => self.unread.extend_from_slice(bytes),
            (End::Upstream, 0) => {
                self.session.finish(&mut self.to_client);
                self.server_ended = true;
            }
            (End::Upstream, _) => {
                if let Err(violation) = self.session.server(bytes, doors, &mut self.to_client) {
                    doors.report(violation.to_string());
                    self.last = true;
                }
            }
        }
        Some(())
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
        let reads = self.unread.len() < CHUNK && self.to_server.len() < BACKLOG && !self.client_ended;
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
