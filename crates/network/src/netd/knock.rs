//! Connections that containers want to make to outside of the stack: they are made there first, and let in when they
//! have been. So a container's `connect` fails as it would without us, and at once where its policy does not allow it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::proxy::{FAR_PATIENCE, outside};
use super::slab::{Key, Slab};
use super::tally::Tally;
use super::topology::{ServiceId, Way};
use super::world::{Token, World};
use crate::queue::{self, Verdict, Waiting};

/// Connections under way and not claimed yet; what comes then is tried again by its sender a second later.
const OPEN: usize = 4096;
/// Of these, what one container may have.
const OPEN_EACH: usize = 1024;
/// How long one that has been made waits for the container's to arrive: a moment, unless the container is gone.
const CLAIMED: Duration = Duration::from_secs(5);
/// Packets before others get their turn.
const TURNS: usize = 64;

/// Who wants to reach whom.
type Pair = (SocketAddr, SocketAddr);

#[derive(Debug)]
struct Knock {
    pair: Pair,
    packet: u32,
    socket: OwnedFd,
    service: ServiceId,
}

#[derive(Debug)]
struct Made {
    socket: OwnedFd,
    service: ServiceId,
    /// Until when it is kept.
    until: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Knocks {
    queue: Option<OwnedFd>,
    under_way: Slab<Knock>,
    by_pair: HashMap<Pair, Key>,
    /// Made, and not claimed yet.
    made: HashMap<Pair, Made>,
    /// How many of both each container has.
    open: Tally<IpAddr>,
    deadlines: VecDeque<(Instant, Key)>,
    claims: VecDeque<(Instant, Pair)>,
}

impl Knocks {
    /// Takes the queue in which new connections wait.
    pub(super) fn listen(&mut self, world: &World, queue: OwnedFd) -> rustix::io::Result<()> {
        world.poll.add(&queue, Token::Knock, EventFlags::IN)?;
        // Of a netd that was there before: what it has read nobody else would ever decide about.
        queue::forget(&queue)?;
        if let Some(old) = self.queue.replace(queue) {
            world.poll.delete(&old);
        }
        Ok(())
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let first = self.deadlines.front().map(|(at, _)| *at);
        first.into_iter().chain(self.claims.front().map(|(at, _)| *at)).min()
    }

    pub(super) fn expire(&mut self, world: &mut World, now: Instant) {
        while let Some((_, key)) = self.deadlines.pop_front_if(|(at, _)| *at <= now) {
            self.conclude(world, key, Verdict::Unreachable);
        }
        while let Some((_, pair)) = self.claims.pop_front_if(|(at, _)| *at <= now) {
            // The same two may have a newer one.
            if self.made.get(&pair).is_some_and(|made| made.until <= now) {
                self.claim(world, pair.0, pair.1);
            }
        }
    }

    /// The connection that was made for this one, and whose it is.
    pub(super) fn claim(
        &mut self,
        world: &mut World,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<(OwnedFd, ServiceId)> {
        let Made { socket, service, .. } = self.made.remove(&(from, to))?;
        self.open.take(&from.ip());
        world.topology.came_back(service);
        let made = &self.made;
        while self.claims.pop_front_if(|(_, pair)| !made.contains_key(pair)).is_some() {}
        Some((socket, service))
    }

    /// Whether there is room for one more of a container.
    fn has_room(&self, world: &World, container: IpAddr) -> bool {
        let most = OPEN.min(world.most / 2);
        self.under_way.len() + self.made.len() < most && self.open.of(&container) < OPEN_EACH.min(most / 4)
    }

    /// Containers want to connect.
    pub(super) fn arrive(&mut self, world: &mut World) {
        for _ in 0..TURNS {
            let Some(queue) = &self.queue else { return };
            match queue::next(queue) {
                Ok(Some(waiting)) => self.knock(world, waiting),
                Ok(None) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    tracing::warn!(%error, "read the queue of new connections");
                    return;
                }
            }
        }
    }

    fn knock(&mut self, world: &mut World, waiting: Waiting) {
        let Waiting { packet, from, to, begins } = waiting;
        if !begins {
            return self.decide(packet, Verdict::Again);
        }
        let pair = (from, to);
        if let Some(knock) = self.by_pair.get(&pair).and_then(|key| self.under_way.get_mut(*key)) {
            // Sent again, because we take our time: the latest is the one that is answered.
            let old = std::mem::replace(&mut knock.packet, packet);
            return self.decide(old, Verdict::Forgotten);
        }
        if self.made.contains_key(&pair) {
            // Sent again, because our answer was lost.
            return self.decide(packet, Verdict::Arrives);
        }
        let now = Instant::now();
        if world.ftp.is_expected(from.ip(), to) {
            return self.decide(packet, Verdict::Arrives);
        }
        match world.topology.way(from.ip(), to, now) {
            Way::Service(..) => self.decide(packet, Verdict::Arrives),
            Way::Nowhere => self.decide(packet, Verdict::Refused),
            Way::Forbidden(container, name) => {
                world.refuse(container, to, name, "tcp", now);
                self.decide(packet, Verdict::Refused);
            }
            Way::World(service) if world.topology.open(service) >= world.most_each => {
                tracing::debug!(service = world.topology.name(service), "has too many connections");
                self.decide(packet, Verdict::Refused);
            }
            Way::World(service) if self.has_room(world, from.ip()) => self.call(world, waiting, service, now),
            Way::World(_) => self.decide(packet, Verdict::Forgotten),
        }
    }

    /// Begins to make the connection.
    fn call(&mut self, world: &mut World, waiting: Waiting, service: ServiceId, now: Instant) {
        let Waiting { packet, from, to, .. } = waiting;
        let socket = match outside(to, None) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, %to, "make a socket");
                return self.decide(packet, Verdict::Forgotten);
            }
        };
        let begun = match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(()),
            Err(error) => Err(error),
        };
        let key = self.under_way.insert(Knock { pair: (from, to), packet, socket, service });
        self.by_pair.insert((from, to), key);
        self.open.add(from.ip());
        world.topology.went_out(service);
        let Some(knock) = self.under_way.get(key) else { return };
        match begun.and_then(|()| world.poll.add(&knock.socket, Token::Called(key), EventFlags::OUT)) {
            Ok(()) => self.deadlines.push_back((now + FAR_PATIENCE, key)),
            Err(error) => self.conclude(world, key, verdict(error)),
        }
    }

    /// A connection has been made, or not.
    pub(super) fn called(&mut self, world: &mut World, key: Key) {
        let Some(knock) = self.under_way.get(key) else { return };
        match sockopt::socket_error(&knock.socket) {
            Ok(Ok(())) => {
                world.poll.delete(&knock.socket);
                self.conclude(world, key, Verdict::Arrives);
            }
            Ok(Err(error)) | Err(error) => self.conclude(world, key, verdict(error)),
        }
        let under_way = &self.under_way;
        while self.deadlines.pop_front_if(|(_, key)| under_way.get(*key).is_none()).is_some() {}
    }

    fn conclude(&mut self, world: &mut World, key: Key, verdict: Verdict) {
        let Some(Knock { pair, packet, socket, service }) = self.under_way.remove(key) else { return };
        self.by_pair.remove(&pair);
        if verdict == Verdict::Arrives {
            let until = Instant::now() + CLAIMED;
            self.made.insert(pair, Made { socket, service, until });
            self.claims.push_back((until, pair));
        } else {
            self.open.take(&pair.0.ip());
            world.topology.came_back(service);
        }
        self.decide(packet, verdict);
    }

    fn decide(&self, packet: u32, verdict: Verdict) {
        let Some(queue) = &self.queue else { return };
        if let Err(error) = queue::decide(queue, packet, verdict) {
            tracing::warn!(%error, ?verdict, "answer a new connection");
        }
    }
}

fn verdict(error: Errno) -> Verdict {
    match error {
        Errno::CONNREFUSED => Verdict::Refused,
        _ => Verdict::Unreachable,
    }
}
