//! Published ports: connections carried between a client on the host and a service, spliced in the kernel.
//!
//! Level-triggered: in the steady state both ends are watched for reading, a message costs one wait and two
//! splices, and the interest changes only while one end cannot take what the other sent. An idle connection
//! holds its two sockets and no pipe.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::event::{Poll, Token};
use super::slab::{Key, Slab};

/// How long a service may take to accept a connection, waiting for a socket included.
const CONNECT: Duration = Duration::from_secs(5);
/// Pipes kept for the next message.
const SPARE_PIPES: usize = 16;
/// What a busy pipe is enlarged to; the most that an ordinary user may have (`fs.pipe-max-size`).
const BIG_PIPE: usize = 1 << 20;
/// Below this a transfer is taken for a message rather than a stream, and not asked for more at once.
const MESSAGE: usize = 16 * 1024;
/// Transfers of one connection before others get their turn.
const TURNS: usize = 32;

/// How long a connection rests that could get no pipe.
const REST: Duration = Duration::from_millis(50);

/// How long the other end of a connection that was reset may take to receive what was sent before.
const LINGER: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(2);

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Client,
    Upstream,
}

#[derive(Debug)]
pub(super) struct Proxy {
    connections: Slab<Connection>,
    pipes: Vec<Pipe>,
    /// Accepted, but there was no stack-side socket at hand.
    waiting: VecDeque<Key>,
    /// When a connection must be established, oldest first.
    deadlines: VecDeque<(Instant, Key)>,
    /// Connections that could get no pipe, and when to try again.
    starved: Vec<Key>,
    retry: Option<Instant>,
    /// Sockets to be reset as soon as their peers have what was sent, or when the time is over.
    lingering: Vec<(Instant, OwnedFd)>,
    /// When to look whether they have.
    look: Option<Instant>,
}

#[derive(Debug)]
struct Connection {
    client: Side,
    upstream: Option<Side>,
    target: SocketAddrV4,
    established: bool,
    /// Client to service.
    up: Flow,
    /// Service to client.
    down: Flow,
    /// One end was reset: so will be the other, after what was in flight.
    reset: bool,
}

#[derive(Debug)]
struct Side {
    socket: OwnedFd,
    /// What epoll watches; `None` when it is not registered.
    interest: Option<EventFlags>,
    /// It is closed both ways: epoll would report that again and again, so it is not registered any more, and
    /// what is left to read can be read at any time.
    hung: bool,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Flow {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    buffered: usize,
    /// The source has ended.
    eof: bool,
    /// Nothing will be written any more, and the destination knows.
    done: bool,
    /// There was no descriptor for a pipe: the source is not watched until the next try.
    starved: bool,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

/// How a transfer failed.
enum Broken {
    /// The source was reset: the whole connection is.
    Source,
    /// The destination takes no more.
    Destination,
}

impl Side {
    fn new(socket: OwnedFd) -> Self {
        Self { socket, interest: None, hung: false }
    }

    fn watch(&mut self, poll: &Poll, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        if self.hung || self.interest == Some(flags) {
            return Ok(());
        }
        match self.interest {
            None => poll.add(&self.socket, token, flags)?,
            Some(_) => poll.modify(&self.socket, token, flags)?,
        }
        self.interest = Some(flags);
        Ok(())
    }
}

impl Proxy {
    pub(super) const fn new() -> Self {
        Self {
            connections: Slab::new(),
            pipes: Vec::new(),
            waiting: VecDeque::new(),
            deadlines: VecDeque::new(),
            starved: Vec::new(),
            retry: None,
            lingering: Vec::new(),
            look: None,
        }
    }

    /// How many connections wait for a stack-side socket.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(at, _)| *at).into_iter().chain(self.retry).chain(self.look).min()
    }

    /// Takes a new connection to `target`, with a stack-side socket if there is one.
    pub(super) fn accepted(
        &mut self,
        poll: &Poll,
        client: OwnedFd,
        target: SocketAddrV4,
        socket: Option<OwnedFd>,
    ) {
        let key = self.connections.insert(Connection {
            client: Side::new(client),
            upstream: None,
            target,
            established: false,
            up: Flow::default(),
            down: Flow::default(),
            reset: false,
        });
        match socket {
            Some(socket) => self.connect(poll, key, socket),
            None => self.waiting.push_back(key),
        }
        if self.connections.get(key).is_some_and(|connection| !connection.established) {
            self.deadlines.push_back((Instant::now() + CONNECT, key));
        }
    }

    /// Hands a stack-side socket to the connection that waits longest.
    pub(super) fn supply(&mut self, poll: &Poll, socket: OwnedFd) {
        while let Some(key) = self.waiting.pop_front() {
            if self.connections.get(key).is_some() {
                self.connect(poll, key, socket);
                return;
            }
        }
    }

    /// Ends the connections that wait for a socket: none will come.
    pub(super) fn give_up_waiting(&mut self) {
        for key in std::mem::take(&mut self.waiting) {
            self.abort(key);
        }
    }

    pub(super) fn expire(&mut self, poll: &Poll, now: Instant) {
        if self.look.is_some_and(|at| at <= now) {
            self.lingering.retain(|(until, socket)| {
                let waits = *until > now && holds_unsent(socket);
                if !waits {
                    reset_on_close(socket);
                }
                waits
            });
            self.look = (!self.lingering.is_empty()).then_some(now + LOOK);
        }
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            for key in std::mem::take(&mut self.starved) {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.up.starved = false;
                    connection.down.starved = false;
                }
                self.ready(poll, key, End::Client, EventFlags::IN);
                self.ready(poll, key, End::Upstream, EventFlags::IN);
            }
        }
        while let Some((_, key)) = self.deadlines.pop_front_if(|(at, _)| *at <= now) {
            if self.connections.get(key).is_some_and(|connection| !connection.established) {
                self.abort(key);
            }
        }
    }

    fn connect(&mut self, poll: &Poll, key: Key, socket: OwnedFd) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let result = rustix::net::connect(&socket, &connection.target);
        let mut upstream = Side::new(socket);
        let result = match result {
            // The handshake with a service on this machine is usually over by now.
            Ok(()) | Err(Errno::INPROGRESS) if rustix::net::getpeername(&upstream.socket).is_ok() => {
                connection.upstream = Some(upstream);
                return self.establish(poll, key);
            }
            Ok(()) | Err(Errno::INPROGRESS) => {
                upstream.watch(poll, Token::Proxy(key, End::Upstream), EventFlags::OUT)
            }
            Err(error) => Err(error),
        };
        connection.upstream = Some(upstream);
        if let Err(error) = result {
            tracing::debug!(%error, target = %connection.target, "connect");
            self.abort(key);
        }
    }

    fn establish(&mut self, poll: &Poll, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.established = true;
        if connection.watch(poll, key).is_err() {
            self.abort(key);
        }
        // Deadlines that have been met leave from the front.
        let open = |key: Key| self.connections.get(key).is_some_and(|connection| !connection.established);
        while self.deadlines.pop_front_if(|(_, key)| !open(*key)).is_some() {}
    }

    /// One end of a connection is ready for what it is watched for, or broken.
    pub(super) fn ready(&mut self, poll: &Poll, key: Key, end: End, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.established {
            let upstream = connection.upstream.as_ref().map(|side| sockopt::socket_error(&side.socket));
            match upstream {
                Some(Ok(Ok(()))) if !flags.intersects(EventFlags::HUP | EventFlags::ERR) => {
                    self.establish(poll, key);
                }
                error => {
                    tracing::debug!(?error, target = %connection.target, "connect");
                    self.abort(key);
                }
            }
            return;
        }
        connection.transfer(poll, &mut self.pipes, end, flags);
        if connection.up.done && connection.down.done {
            if connection.reset {
                self.reset(poll, key);
            } else {
                self.close(key);
            }
            return;
        }
        if connection.up.starved || connection.down.starved {
            self.starved.push(key);
            self.retry.get_or_insert_with(|| Instant::now() + REST);
        }
        if connection.watch(poll, key).is_err() {
            self.abort(key);
        }
    }

    /// Ends a connection with a reset to both ends, after what was sent before has arrived: a client that closes
    /// with something unread resets the connection (TLS 1.3 has messages that an uploader never reads), and
    /// without us its service would have had all that came before the reset.
    fn reset(&mut self, poll: &Poll, key: Key) {
        let Some(connection) = self.connections.remove(key) else { return };
        let until = Instant::now() + LINGER;
        for side in std::iter::once(connection.client).chain(connection.upstream) {
            if side.hung || !holds_unsent(&side.socket) {
                reset_on_close(&side.socket);
                continue;
            }
            if side.interest.is_some() {
                poll.delete(&side.socket);
            }
            self.lingering.push((until, side.socket));
            self.look.get_or_insert_with(|| Instant::now() + LOOK);
        }
        for mut flow in [connection.up, connection.down] {
            flow.release(&mut self.pipes);
        }
    }

    /// Ends a connection with a reset to both ends, at once.
    fn abort(&mut self, key: Key) {
        if let Some(connection) = self.connections.get(key) {
            let sides = std::iter::once(&connection.client).chain(&connection.upstream);
            sides.for_each(|side| reset_on_close(&side.socket));
        }
        self.close(key);
    }

    fn close(&mut self, key: Key) {
        let Some(connection) = self.connections.remove(key) else { return };
        for mut flow in [connection.up, connection.down] {
            flow.release(&mut self.pipes);
        }
    }
}

/// Makes the end of a socket a reset of its connection.
fn reset_on_close(socket: &OwnedFd) {
    if let Err(error) = sockopt::set_socket_linger(socket, Some(Duration::ZERO)) {
        tracing::debug!(%error, "reset connection");
    }
}

/// Whether the peer has not received all that was sent; a reset would throw the rest away.
fn holds_unsent(socket: &OwnedFd) -> bool {
    sys::fd::unacknowledged(socket.as_fd()).is_ok_and(|bytes| bytes > 0)
}

impl Connection {
    fn transfer(&mut self, poll: &Poll, pipes: &mut Vec<Pipe>, end: End, flags: EventFlags) {
        let Some(upstream) = &mut self.upstream else { return };
        let (this, other, from, to) = match end {
            End::Client => (&mut self.client, upstream, &mut self.up, &mut self.down),
            End::Upstream => (upstream, &mut self.client, &mut self.down, &mut self.up),
        };
        let broken = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        if broken {
            let failed = !matches!(sockopt::socket_error(&this.socket), Ok(Ok(())));
            if failed || flags.contains(EventFlags::HUP) {
                poll.delete(&this.socket);
                this.interest = None;
                this.hung = true;
                // Nothing can be written to it any more; unless we had ended that ourselves, it was reset.
                self.reset |= failed || !to.done;
                to.finish(pipes);
            }
        }
        let mut outcomes = [Ok(()), Ok(())];
        // What an end had sent before it was lost still goes to the other.
        if broken || flags.contains(EventFlags::IN) {
            outcomes[0] = from.run(this, other, pipes, self.reset);
        }
        if flags.contains(EventFlags::OUT) {
            outcomes[1] = to.run(other, this, pipes, self.reset);
        }
        let [from_outcome, to_outcome] = outcomes;
        for (outcome, flow) in [(&from_outcome, from), (&to_outcome, to)] {
            if outcome.is_err() {
                flow.finish(pipes);
                self.reset = true;
            }
        }
        if matches!(from_outcome, Err(Broken::Source)) || matches!(to_outcome, Err(Broken::Source)) {
            self.up.finish(pipes);
            self.down.finish(pipes);
        }
    }

    /// Watches both ends for what their flows wait for.
    fn watch(&mut self, poll: &Poll, key: Key) -> rustix::io::Result<()> {
        let interest = |from: &Flow, to: &Flow| {
            let mut flags = EventFlags::empty();
            flags.set(EventFlags::IN, from.buffered == 0 && !from.eof && !from.done && !from.starved);
            flags.set(EventFlags::OUT, to.buffered > 0);
            flags
        };
        self.client.watch(poll, Token::Proxy(key, End::Client), interest(&self.up, &self.down))?;
        let Some(upstream) = &mut self.upstream else { return Ok(()) };
        upstream.watch(poll, Token::Proxy(key, End::Upstream), interest(&self.down, &self.up))
    }
}

impl Flow {
    /// Carries what there is, until the source has no more for now, the destination takes no more for now, or
    /// others should get their turn.
    fn run(
        &mut self,
        source: &Side,
        destination: &Side,
        pipes: &mut Vec<Pipe>,
        reset: bool,
    ) -> Result<(), Broken> {
        let mut turns = 0;
        let mut last = usize::MAX;
        while !self.done {
            if !self.drain(destination)? {
                return Ok(());
            }
            if self.eof {
                // An end that was reset must not look like one that was closed in order.
                if !reset && let Err(error) = rustix::net::shutdown(&destination.socket, Shutdown::Write) {
                    tracing::debug!(%error, "shut down");
                }
                self.finish(pipes);
                return Ok(());
            }
            if !source.hung && (last < MESSAGE || turns == TURNS) {
                self.release(pipes);
                return Ok(());
            }
            turns += 1;
            match self.fill(source, pipes)? {
                Some(count) => last = count,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Empties the pipe; `false` when the destination takes no more for now.
    fn drain(&mut self, destination: &Side) -> Result<bool, Broken> {
        let Some(pipe) = &self.pipe else { return Ok(true) };
        while self.buffered > 0 {
            let flags = SpliceFlags::NONBLOCK;
            match rustix::pipe::splice(&pipe.read, None, &destination.socket, None, self.buffered, flags) {
                Ok(0) => return Err(Broken::Destination),
                Ok(count) => self.buffered = self.buffered.saturating_sub(count),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "write");
                    return Err(Broken::Destination);
                }
            }
        }
        Ok(true)
    }

    /// Fills the empty pipe; `None` when the source has nothing for now.
    fn fill(&mut self, source: &Side, pipes: &mut Vec<Pipe>) -> Result<Option<usize>, Broken> {
        if self.pipe.is_none() {
            match pipes.pop().map_or_else(Pipe::new, Ok) {
                Ok(pipe) => self.pipe = Some(pipe),
                Err(error) => {
                    tracing::warn!(%error, "no pipe: a connection waits");
                    self.starved = true;
                }
            }
        }
        let Some(pipe) = &mut self.pipe else { return Ok(None) };
        loop {
            // The pipe is empty, so that "try again" can only mean that the source is.
            let flags = SpliceFlags::NONBLOCK;
            match rustix::pipe::splice(&source.socket, None, &pipe.write, None, BIG_PIPE, flags) {
                Ok(0) => {
                    self.eof = true;
                    return Ok(Some(0));
                }
                Ok(count) => {
                    self.buffered = count;
                    if count >= pipe.size / 2 {
                        pipe.enlarge();
                    }
                    return Ok(Some(count));
                }
                Err(Errno::AGAIN) if source.hung => {
                    self.eof = true;
                    return Ok(Some(0));
                }
                Err(Errno::AGAIN) => {
                    self.release(pipes);
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "read");
                    return Err(Broken::Source);
                }
            }
        }
    }

    /// Nothing more will be carried.
    fn finish(&mut self, pipes: &mut Vec<Pipe>) {
        self.done = true;
        self.release(pipes);
        self.buffered = 0;
    }

    /// Gives the pipe back; one with bytes in it is closed.
    fn release(&mut self, pipes: &mut Vec<Pipe>) {
        if let Some(pipe) = self.pipe.take()
            && self.buffered == 0
            && pipes.len() < SPARE_PIPES
        {
            pipes.push(pipe);
        }
    }
}

impl Pipe {
    fn new() -> rustix::io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { read, write, size: 64 * 1024 })
    }

    /// Makes room for a stream; whether the kernel allows it depends on how much the user's pipes have already
    /// (`fs.pipe-user-pages-soft`), and a smaller one does too.
    fn enlarge(&mut self) {
        if self.size < BIG_PIPE {
            match rustix::pipe::fcntl_setpipe_size(&self.write, BIG_PIPE) {
                Ok(size) => self.size = size.max(BIG_PIPE),
                Err(error) => {
                    tracing::debug!(%error, "enlarge pipe");
                    self.size = BIG_PIPE;
                }
            }
        }
    }
}
