//! Connections carried between two sockets of two network namespaces: published ports into the stack, virtual
//! addresses within it, egress out of it.
//!
//! Level-triggered: in the steady state both ends are watched for reading, a message costs one wait, one read and one
//! write, and the interest changes only while one end cannot take what the other sent. An idle connection holds its
//! two sockets and nothing else.
//!
//! Until the other end is connected nothing is read from the client, so another replica can be tried, or the one
//! that is being restarted can be waited for, and no byte is lost.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketType, sockopt};

use super::connection::{Attempt, Connection, Dial, End};
use super::flow::{Buffers, Flow, Side, holds_unsent, reset_on_close};
use super::ftp::{Around, Control, Course, Gate};
use super::slab::{Key, Slab};
use super::sockets::{self, Waiter};
use super::topology::{Replica, Target};
use super::world::{Token, World};
use super::{Event, Kind};
use crate::balance::Pick;

/// How long a client may wait for its connection to be established, a restart of the service included.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one to outside of the stack may take to be.
pub(super) const FAR_PATIENCE: Duration = Duration::from_secs(60);
/// How long a single replica may take to answer, before another one is tried.
const ATTEMPT: Duration = Duration::from_secs(3);
/// How long one waits that nobody takes: a container that has just died is not known to be starting again yet.
const GRACE: Duration = Duration::from_millis(200);
/// How often one that waits for a service is tried again.
const PAUSE: Duration = Duration::from_millis(25);
/// Connections that may wait for a service; further ones are ended.
const HELD: usize = 4096;
/// How long a connection rests that could get no pipe.
const REST: Duration = Duration::from_millis(50);
/// How long the other end of a connection that was reset may take to receive what was sent before.
const LINGER: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(2);
/// How long it is looked for that a container's clients are all answered.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// How often connections are looked at that carry nothing.
const SWEEP: Duration = Duration::from_secs(60);
/// Sweeps that a connection may carry nothing: two hours, the kernel's own patience (`tcp_keepalive_time`).
const IDLE_SWEEPS: u8 = 120;
/// The same for one whose one direction has ended.
const HALF_OPEN_SWEEPS: u8 = 15;

#[derive(Debug)]
pub(super) struct Proxy {
    connections: Slab<Connection>,
    buffers: Buffers,
    /// When a connection must be established, or its present attempt be, by the number of attempts before it.
    deadlines: BinaryHeap<Reverse<(Instant, Key, u32)>>,
    /// Those that wait for their service, and when to try again.
    held: VecDeque<(Instant, Key)>,
    /// Connections that could get no pipe, and when to try again.
    starved: Vec<Key>,
    retry: Option<Instant>,
    /// Sockets to be reset as soon as their peers have what was sent, or when the time is over.
    lingering: Vec<(Instant, OwnedFd)>,
    /// When to look whether they have.
    look: Option<Instant>,
    /// Containers of which it is to be told when their clients are answered, and until when.
    unanswered: Vec<(String, Instant)>,
    /// When to look whether they are.
    recount: Option<Instant>,
    /// When to look for connections that carry nothing.
    sweep: Option<Instant>,
}

impl Proxy {
    pub(super) fn new() -> Self {
        Self {
            connections: Slab::new(),
            buffers: Buffers::new(),
            deadlines: BinaryHeap::new(),
            held: VecDeque::new(),
            starved: Vec::new(),
            retry: None,
            lingering: Vec::new(),
            look: None,
            unanswered: Vec::new(),
            recount: None,
            sweep: None,
        }
    }

    /// How many connections there are, those included that are almost over.
    pub(super) fn len(&self) -> usize {
        self.connections.len() + self.lingering.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let deadline = self.deadlines.peek().map(|Reverse((at, ..))| *at);
        let held = self.held.front().map(|(at, _)| *at);
        [deadline, held, self.retry, self.look, self.recount, self.sweep].into_iter().flatten().min()
    }

    /// Takes a new connection.
    pub(super) fn accepted(
        &mut self,
        world: &mut World,
        client: OwnedFd,
        address: SocketAddr,
        dial: Dial,
        gate: Option<Gate>,
    ) {
        let now = Instant::now();
        let key = self.insert(world, client, address, dial, gate, now);
        self.dial(world, key, now);
        if let Some(connection) = self.connections.get(key).filter(|connection| !connection.established) {
            self.deadlines.push(Reverse((connection.attempt.until, key, u32::MAX)));
        }
    }

    /// Takes a new connection of a service's container whose other end is connected, and counted, already.
    pub(super) fn joined(
        &mut self,
        world: &mut World,
        client: OwnedFd,
        address: SocketAddr,
        upstream: OwnedFd,
        dial: Dial,
    ) {
        let now = Instant::now();
        let key = self.insert(world, client, address, dial, None, now);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.upstream = Some(Side::new(upstream));
            self.establish(world, key);
        }
    }

    fn insert(
        &mut self,
        world: &mut World,
        client: OwnedFd,
        address: SocketAddr,
        dial: Dial,
        gate: Option<Gate>,
        now: Instant,
    ) -> Key {
        let until =
            now + if matches!(dial, Dial::Host(..) | Dial::World(..)) { FAR_PATIENCE } else { PATIENCE };
        if let Dial::World(_, service) = dial {
            world.topology.went_out(service);
        }
        let attempt = Attempt {
            dial,
            client: address,
            replica: None,
            tried: Vec::new(),
            target: None,
            number: 0,
            begun: now,
            until,
        };
        self.sweep.get_or_insert(now + SWEEP);
        self.connections.insert(Connection {
            client: Side::new(client),
            upstream: None,
            attempt,
            established: false,
            up: Flow::default(),
            down: Flow::default(),
            control: None,
            gate,
            reset: false,
            quiet: 0,
            asked: false,
            carried: now,
        })
    }

    /// Tries to connect the upstream end.
    fn dial(&mut self, world: &mut World, key: Key, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let attempt = &mut connection.attempt;
        let target = match attempt.dial {
            Dial::Host(address, source) => return self.dial_host(world, key, address, source),
            Dial::World(address, _) => return self.dial_host(world, key, address, None),
            Dial::Stack(target, _) => Some(target),
            Dial::Service(service, port, entrance) => {
                match world.topology.pick(service, attempt.client.ip(), &attempt.tried, now) {
                    Pick::Member(member) => {
                        let replica = Replica { service, member };
                        attempt.replica = Some(replica);
                        world.topology.target(replica, port, attempt.client, entrance)
                    }
                    Pick::Wait => return self.hold(world, key, now),
                    Pick::Nobody if now < attempt.begun + GRACE => {
                        attempt.tried.clear();
                        return self.hold(world, key, now);
                    }
                    Pick::Nobody => None,
                }
            }
        };
        match target {
            Some(target) => self.reach(world, key, target),
            None => self.abort(world, key),
        }
    }

    /// Connects to a place in the stack, as soon as there is a socket for it.
    fn reach(&mut self, world: &mut World, key: Key, target: Target) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.attempt.target = Some(target);
        let kind = if target.address.is_ipv4() { Kind::Tcp4 } else { Kind::Tcp6 };
        if let Some(socket) = world.sockets.take(kind, Waiter::Connection(key)) {
            self.connect(world, key, socket, target);
        }
    }

    fn dial_host(&mut self, world: &mut World, key: Key, address: SocketAddr, source: Option<SocketAddr>) {
        let target = Target { address, source: None, gateway: address.ip() };
        match outside(address, source) {
            Ok(socket) => self.connect(world, key, socket, target),
            Err(error) => {
                tracing::warn!(%error, %address, "make a socket");
                self.abort(world, key);
            }
        }
    }

    /// A socket of the stack's namespace has come for a connection.
    pub(super) fn supply(&mut self, world: &mut World, key: Key, socket: OwnedFd) {
        let connection = self.connections.get_mut(key);
        if let Some(target) = connection.and_then(|connection| connection.attempt.target) {
            self.connect(world, key, socket, target);
        }
    }

    /// Lets a connection wait until its service takes connections.
    fn hold(&mut self, world: &mut World, key: Key, now: Instant) {
        let waits = self.connections.get(key).is_some_and(|connection| now < connection.attempt.until);
        if waits && self.held.len() < HELD {
            self.held.push_back((now + PAUSE, key));
        } else {
            self.abort(world, key);
        }
    }

    /// Tries those again that wait: something has changed.
    pub(super) fn retry_held(&mut self, world: &mut World) {
        let now = Instant::now();
        for (_, key) in std::mem::take(&mut self.held) {
            self.dial(world, key, now);
        }
    }

    pub(super) fn expire(&mut self, world: &mut World, now: Instant) {
        if self.look.is_some_and(|at| at <= now) {
            self.lingering.retain(|(until, socket)| {
                let waits = *until > now && holds_unsent(socket);
                if !waits {
                    reset_on_close(socket);
                }
                waits
            });
            // Looking at many takes its time, and nobody waits for it.
            let pause = LOOK * (1 + self.lingering.len() as u32 / 64);
            self.look = (!self.lingering.is_empty()).then_some(now + pause);
        }
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            for key in std::mem::take(&mut self.starved) {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.up.starved = false;
                    connection.down.starved = false;
                }
                self.ready(world, key, End::Client, EventFlags::IN);
                self.ready(world, key, End::Upstream, EventFlags::IN);
            }
        }
        while let Some((_, key)) = self.held.pop_front_if(|(at, _)| *at <= now) {
            self.dial(world, key, now);
        }
        while self.deadlines.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Some(Reverse((_, key, number))) = self.deadlines.pop() else { break };
            match self.connections.get(key) {
                Some(connection) if connection.established => {}
                Some(_) if number == u32::MAX => self.abort(world, key),
                Some(connection) if connection.attempt.number == number && connection.upstream.is_some() => {
                    self.refused(world, key, Errno::TIMEDOUT);
                }
                _ => {}
            }
        }
        if self.recount.is_some_and(|at| at <= now) {
            self.tell_rest(world, now);
        }
        if self.sweep.is_some_and(|at| at <= now) {
            self.sweep(world);
            self.sweep = (self.connections.len() > 0).then_some(now + SWEEP);
        }
    }

    /// Has [`Event::AtRest`] told as soon as no client of a container waits for an answer.
    pub(super) fn await_rest(&mut self, container: String, now: Instant) {
        self.unanswered.push((container, now + ANSWER_PATIENCE));
        self.recount = Some(now);
    }

    fn tell_rest(&mut self, world: &mut World, now: Instant) {
        let busy = self.connections.iter().filter(|(_, connection)| !connection.is_at_rest(now));
        let busy: BTreeSet<&str> = busy
            .filter_map(|(_, connection)| world.topology.container(connection.attempt.replica?))
            .map(|endpoint| endpoint.service.as_str())
            .collect();
        let is_busy = |(container, _): &mut (String, Instant)| busy.contains(container.as_str());
        let at_rest: Vec<_> = self.unanswered.extract_if(.., |one| !is_busy(one)).collect();
        self.unanswered.retain(|(_, until)| *until > now);
        world.events.extend(at_rest.into_iter().map(|(container, _)| Event::AtRest { container }));
        self.recount = (!self.unanswered.is_empty()).then_some(now + PAUSE);
    }

    /// Ends connections that have carried nothing for long.
    fn sweep(&mut self, world: &mut World) {
        let mut idle = Vec::new();
        // An FTP control connection is silent for as long as a transfer takes; its server loses patience by itself.
        let judged = |connection: &Connection| connection.established && connection.gate.is_none();
        for (key, connection) in self.connections.iter_mut().filter(|(_, connection)| judged(connection)) {
            connection.quiet = connection.quiet.saturating_add(1);
            let half = connection.up.done || connection.down.done;
            if connection.quiet > if half { HALF_OPEN_SWEEPS } else { IDLE_SWEEPS } {
                idle.push(key);
            }
        }
        idle.into_iter().for_each(|key| self.abort(world, key));
    }

    fn connect(&mut self, world: &mut World, key: Key, socket: OwnedFd, target: Target) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(source) = target.source {
            sockets::keep_address(&socket, source);
        }
        let result = rustix::net::connect(&socket, &target.address);
        if result == Err(Errno::ADDRNOTAVAIL)
            && let Some(source) = target.source.filter(|source| source.port() != 0)
        {
            // The client has a connection from that port to this very place, or had one a moment ago.
            let source = Some(SocketAddr::new(source.ip(), 0));
            return self.reach(world, key, Target { source, ..target });
        }
        let mut upstream = Side::new(socket);
        let result = match result {
            // The handshake with a service on this machine is usually over by now.
            Ok(()) | Err(Errno::INPROGRESS) if rustix::net::getpeername(&upstream.socket).is_ok() => {
                connection.upstream = Some(upstream);
                return self.establish(world, key);
            }
            Ok(()) | Err(Errno::INPROGRESS) => {
                upstream.watch(&world.poll, Token::Proxy(key, End::Upstream), EventFlags::OUT)
            }
            Err(error) => Err(error),
        };
        connection.upstream = Some(upstream);
        match result {
            Ok(()) if matches!(connection.attempt.dial, Dial::Service(..)) => {
                let by = Instant::now() + ATTEMPT;
                self.deadlines.push(Reverse((by, key, connection.attempt.number)));
            }
            Ok(()) => {}
            Err(error) => self.refused(world, key, error),
        }
    }

    /// The upstream end could not be connected: another replica is tried, or the same one a little later.
    fn refused(&mut self, world: &mut World, key: Key, error: Errno) {
        let now = Instant::now();
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.upstream = None;
        let attempt = &mut connection.attempt;
        attempt.number += 1;
        tracing::debug!(%error, dial = ?attempt.dial, target = ?attempt.target, "connect");
        if let Dial::Stack(target, others) = &mut attempt.dial
            && let Some(next) = others.pop()
        {
            *target = next;
            return self.dial(world, key, now);
        }
        let (Dial::Service(service, ..), Some(replica)) = (&attempt.dial, attempt.replica.take()) else {
            return self.abort(world, key);
        };
        let service = *service;
        // Who is silent does listen, or is not there.
        if error != Errno::TIMEDOUT && world.topology.is_settling(replica, now) {
            world.events.extend(world.topology.closed(replica));
            return self.hold(world, key, now);
        }
        world.events.extend(world.topology.failed(replica, now));
        world.events.extend(world.topology.closed(replica));
        attempt.tried.push(replica.member);
        if attempt.tried.len() <= world.topology.retries(service) && now < attempt.until {
            self.dial(world, key, now);
        } else if now < attempt.begun + GRACE {
            attempt.tried.clear();
            self.hold(world, key, now);
        } else {
            self.abort(world, key);
        }
    }

    fn establish(&mut self, world: &mut World, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.established = true;
        connection.carried = Instant::now();
        connection.attempt.tried = Vec::new();
        let restored = connection.attempt.replica.and_then(|replica| world.topology.succeeded(replica));
        world.events.extend(restored);
        if let (Some(gate), Some(target)) = (connection.gate, connection.attempt.target) {
            let client = &connection.client.socket;
            let entry = rustix::net::getsockname(client).ok().and_then(|at| SocketAddr::try_from(at).ok());
            let Some(entry) = entry else { return self.abort(world, key) };
            connection.control = Some(Box::new(Control::new(gate, connection.attempt.client, entry, target)));
        }
        if connection.watch(&world.poll, key).is_err() {
            self.abort(world, key);
        }
        // Deadlines that have been met leave from the front.
        let open = |key: Key| self.connections.get(key).is_some_and(|connection| !connection.established);
        while self.deadlines.peek().is_some_and(|Reverse((_, key, _))| !open(*key)) {
            self.deadlines.pop();
        }
    }

    /// One end of a connection is ready for what it is watched for, or broken.
    pub(super) fn ready(&mut self, world: &mut World, key: Key, end: End, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.established {
            let upstream = connection.upstream.as_ref().map(|side| sockopt::socket_error(&side.socket));
            return match upstream {
                Some(Ok(Ok(()))) if !flags.intersects(EventFlags::HUP | EventFlags::ERR) => {
                    self.establish(world, key);
                }
                Some(Ok(Err(error)) | Err(error)) => self.refused(world, key, error),
                Some(Ok(Ok(()))) => self.refused(world, key, Errno::CONNRESET),
                None => {}
            };
        }
        connection.quiet = 0;
        if flags.contains(EventFlags::IN) {
            connection.asked = end == End::Client;
            connection.carried = Instant::now();
        }
        if let (Some(control), Some(upstream), Some(gate)) =
            (&mut connection.control, &mut connection.upstream, connection.gate)
        {
            let World { topology, ftp, events, .. } = world;
            let mut around = Around { key, service: topology.name(gate.service), expected: ftp, events };
            match control.ready((&mut connection.client, upstream), end, flags, &mut around) {
                Course::Goes => {}
                Course::Opaque => connection.control = None,
                Course::Over => return self.close(world, key),
                Course::Broken => return self.reset(world, key),
            }
            if connection.watch(&world.poll, key).is_err() {
                self.abort(world, key);
            }
            return;
        }
        connection.transfer(&mut self.buffers, end, flags);
        if connection.up.done && connection.down.done {
            if connection.reset {
                self.reset(world, key);
            } else {
                self.close(world, key);
            }
            return;
        }
        if connection.up.starved || connection.down.starved {
            self.starved.push(key);
            self.retry.get_or_insert_with(|| Instant::now() + REST);
        }
        if connection.watch(&world.poll, key).is_err() {
            self.abort(world, key);
        }
    }

    /// Ends a connection with a reset to both ends, after what was sent before has arrived: a client that closes
    /// with something unread resets the connection (TLS 1.3 has messages that an uploader never reads), and
    /// without us its service would have had all that came before the reset.
    fn reset(&mut self, world: &mut World, key: Key) {
        let Some(connection) = self.remove(world, key) else { return };
        let until = Instant::now() + LINGER;
        for side in std::iter::once(connection.client).chain(connection.upstream) {
            if side.hung || !holds_unsent(&side.socket) {
                reset_on_close(&side.socket);
                continue;
            }
            if side.interest.is_some() {
                world.poll.delete(&side.socket);
            }
            self.lingering.push((until, side.socket));
            self.look.get_or_insert_with(|| Instant::now() + LOOK);
        }
        for mut flow in [connection.up, connection.down] {
            flow.release(&mut self.buffers);
        }
    }

    /// Ends a connection with a reset to both ends, at once.
    pub(super) fn abort(&mut self, world: &mut World, key: Key) {
        if let Some(connection) = self.connections.get(key) {
            let sides = std::iter::once(&connection.client).chain(&connection.upstream);
            sides.for_each(|side| reset_on_close(&side.socket));
        }
        self.close(world, key);
    }

    fn close(&mut self, world: &mut World, key: Key) {
        let Some(connection) = self.remove(world, key) else { return };
        for mut flow in [connection.up, connection.down] {
            flow.release(&mut self.buffers);
        }
    }

    fn remove(&mut self, world: &mut World, key: Key) -> Option<Connection> {
        let connection = self.connections.remove(key)?;
        if connection.gate.is_some() {
            world.ftp.forget(key);
        }
        if let Dial::World(_, service) = connection.attempt.dial {
            world.topology.came_back(service);
        }
        let drained = connection.attempt.replica.and_then(|replica| world.topology.closed(replica));
        world.events.extend(drained);
        Some(connection)
    }
}

/// A socket of the host's namespace for a connection to `address`.
pub(super) fn outside(address: SocketAddr, source: Option<SocketAddr>) -> rustix::io::Result<OwnedFd> {
    let socket = sockets::outside(address, SocketType::STREAM)?;
    crate::publish::tune(&socket)?;
    if let Some(source) = source {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockets::come_from(&socket, source)?;
    }
    Ok(socket)
}
