//! One connection: its two ends, what is known of it, and what passes between them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::net::sockopt;

use super::flow::{Broken, Buffers, Ends, Flow, Side};
use super::ftp::{Control, Gate};
use super::slab::Key;
use super::topology::{Entrance, Replica, ServiceId, Target};
use super::world::{Poll, Token};
use crate::balance::MemberId;

/// How long a connection has carried nothing that is at rest: more of an answer may follow, or a first request.
const PAUSED: Duration = Duration::from_millis(50);

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Client,
    Upstream,
}

/// Whom a connection is for.
#[derive(Debug)]
pub(super) enum Dial {
    /// A port of a service: one of its replicas.
    Service(ServiceId, u16, Entrance),
    /// A place in the stack, and other places in case that it refuses.
    Stack(Target, Vec<Target>),
    /// A place in the host's network, and the address to come from if that matters.
    Host(SocketAddr, Option<SocketAddr>),
    /// A place outside, for a container of this service.
    World(SocketAddr, ServiceId),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Side,
    pub(super) upstream: Option<Side>,
    pub(super) attempt: Attempt,
    pub(super) established: bool,
    /// Client to service.
    pub(super) up: Flow,
    /// Service to client.
    pub(super) down: Flow,
    /// An FTP control connection as long as it is read, and the port that it came in by.
    pub(super) control: Option<Box<Control>>,
    pub(super) gate: Option<Gate>,
    /// One end was reset: so will be the other, after what was in flight.
    pub(super) reset: bool,
    /// Sweeps since it last carried something.
    pub(super) quiet: u8,
    /// What it carried last came from the client, who may wait for an answer.
    pub(super) asked: bool,
    /// When it last carried something, or was established.
    pub(super) carried: Instant,
}

/// What has been tried to connect the upstream end.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) dial: Dial,
    /// The client's address.
    pub(super) client: SocketAddr,
    /// Who got it; counted until the connection ends.
    pub(super) replica: Option<Replica>,
    /// Who could not be connected to.
    pub(super) tried: Vec<MemberId>,
    /// Where a socket that is waited for is to be connected to.
    pub(super) target: Option<Target>,
    /// How many attempts there were before.
    pub(super) number: u32,
    pub(super) begun: Instant,
    pub(super) until: Instant,
}

impl Connection {
    /// Whether nobody misses anything if the service ends now: the client has been answered, and has sent nothing
    /// since.
    pub(super) fn is_at_rest(&self, now: Instant) -> bool {
        self.down.done || (self.established && !self.asked && now >= self.carried + PAUSED)
    }

    pub(super) fn transfer(&mut self, buffers: &mut Buffers, end: End, flags: EventFlags) {
        let Some(upstream) = &mut self.upstream else { return };
        let (this, other, from, to) = match end {
            End::Client => (&mut self.client, upstream, &mut self.up, &mut self.down),
            End::Upstream => (upstream, &mut self.client, &mut self.down, &mut self.up),
        };
        let broken = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        if broken {
            let failed =
                flags.contains(EventFlags::ERR) && !matches!(sockopt::socket_error(&this.socket), Ok(Ok(())));
            if failed || flags.contains(EventFlags::HUP) {
                this.hung = true;
                // Nothing can be written to it any more; unless we had ended that ourselves, it was reset.
                self.reset |= failed || !to.done;
                to.finish(buffers);
            }
        }
        let mut outcomes = [Ok(()), Ok(())];
        // What an end had sent before it was lost still goes to the other.
        if broken || flags.contains(EventFlags::IN) {
            let over = flags.contains(EventFlags::RDHUP);
            // An end that was reset must not look like one that was closed in order.
            let ends = Ends { over, untold: self.reset || to.done };
            outcomes[0] = from.run(this, other, buffers, ends);
        }
        if flags.contains(EventFlags::OUT) {
            let ends = Ends { over: false, untold: self.reset || from.done };
            outcomes[1] = to.run(other, this, buffers, ends);
        }
        let [from_outcome, to_outcome] = outcomes;
        for (outcome, flow) in [(&from_outcome, from), (&to_outcome, to)] {
            if outcome.is_err() {
                flow.finish(buffers);
                self.reset = true;
            }
        }
        if matches!(from_outcome, Err(Broken::Source)) || matches!(to_outcome, Err(Broken::Source)) {
            self.up.finish(buffers);
            self.down.finish(buffers);
        }
    }

    /// Watches both ends for what their flows wait for.
    pub(super) fn watch(&mut self, poll: &Poll, key: Key) -> rustix::io::Result<()> {
        if let (Some(control), Some(upstream)) = (&self.control, &mut self.upstream) {
            return control.watch(poll, key, &mut self.client, upstream);
        }
        let interest = |from: &Flow, to: &Flow| {
            let mut flags = EventFlags::empty();
            flags.set(
                EventFlags::IN | EventFlags::RDHUP,
                from.buffered == 0 && !from.eof && !from.done && !from.starved,
            );
            flags.set(EventFlags::OUT, to.buffered > 0);
            flags
        };
        self.client.watch(poll, Token::Proxy(key, End::Client), interest(&self.up, &self.down))?;
        let Some(upstream) = &mut self.upstream else { return Ok(()) };
        upstream.watch(poll, Token::Proxy(key, End::Upstream), interest(&self.down, &self.up))
    }
}
