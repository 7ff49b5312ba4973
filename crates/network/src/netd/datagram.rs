//! UDP: published ports into the stack, virtual addresses within it, egress out of it.
//!
//! What one address sends to another is a flow, with a socket on the far side that is connected to the destination,
//! so that only its replies come back, and they come back to whom they are for. A flow ends when nothing has passed
//! for a while.

use std::collections::{HashMap, VecDeque};
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType};

use super::Kind;
use super::connection::End;
use super::slab::{Key, Slab};
use super::sockets::{self, Waiter};
use super::topology::{Entrance, Replica, ServiceId, Way};
use super::world::{Token, World};
use crate::balance::Pick;
use crate::error::errno;

/// How long a flow without a reply is kept: what the kernel's connection tracking keeps it for
/// (`nf_conntrack_udp_timeout`).
const UNREPLIED: Duration = Duration::from_secs(30);
/// How long one with replies is (`nf_conntrack_udp_timeout_stream`).
const REPLIED: Duration = Duration::from_secs(120);
/// Flows at a time.
const FLOWS: usize = 16 * 1024;
/// Of these, what one sender's address may have; its oldest go first.
const FLOWS_EACH: usize = 1024;
/// Datagrams that wait for a flow's socket.
const PENDING: usize = 16;
/// Bytes in all of them.
const WAITING: usize = 4 << 20;
/// Datagrams of one socket before others get their turn.
const TURNS: usize = 64;

/// Where datagrams come from.
#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    purpose: Purpose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A published port: to this port of the service.
    Published(ServiceId, u16),
    /// Everything that containers send out of their networks.
    Intercepted,
}

/// Which flow a datagram belongs to: where it came in, from whom, and what for.
type Label = (Key, SocketAddr, Option<SocketAddr>);

#[derive(Debug)]
struct Flow {
    label: Label,
    /// Towards the sender. `None`: the listener itself.
    near: Option<OwnedFd>,
    /// Towards the destination.
    far: Option<OwnedFd>,
    /// The destination, and the address to have there.
    destination: SocketAddr,
    source: Option<SocketAddr>,
    /// What waits for the sockets.
    pending: VecDeque<Vec<u8>>,
    replica: Option<Replica>,
    deadline: Instant,
    replied: bool,
}

#[derive(Debug)]
pub(super) struct Datagrams {
    listeners: Slab<Listener>,
    flows: Slab<Flow>,
    by_label: HashMap<Label, Key>,
    /// Of each sender, oldest first.
    senders: HashMap<IpAddr, VecDeque<Key>>,
    deadlines: VecDeque<(Instant, Key)>,
    /// Bytes that wait for flows' sockets.
    waiting: usize,
    buffer: Vec<u8>,
}

impl Datagrams {
    pub(super) fn new() -> Self {
        Self {
            listeners: Slab::new(),
            flows: Slab::new(),
            by_label: HashMap::new(),
            senders: HashMap::new(),
            deadlines: VecDeque::new(),
            waiting: 0,
            // Zeroed memory that is never touched takes no room.
            buffer: vec![0; 1 << 16],
        }
    }

    /// Takes datagrams from a socket.
    pub(super) fn listen(
        &mut self,
        world: &World,
        socket: OwnedFd,
        purpose: Purpose,
    ) -> rustix::io::Result<Key> {
        let key = self.listeners.insert(Listener { socket, purpose });
        match self.listeners.get(key) {
            Some(listener) => {
                world.poll.add(&listener.socket, Token::DatagramListener(key), EventFlags::IN)?;
                Ok(key)
            }
            None => Err(Errno::BADF),
        }
    }

    /// The socket of a listener.
    pub(super) fn socket(&self, listener: Key) -> Option<&OwnedFd> {
        self.listeners.get(listener).map(|listener| &listener.socket)
    }

    /// Takes no more from it; its flows end.
    pub(super) fn close_listener(&mut self, world: &mut World, key: Key) {
        if let Some(listener) = self.listeners.remove(key) {
            world.poll.delete(&listener.socket);
        }
        let flows = self.flows.iter().filter(|(_, flow)| flow.label.0 == key);
        let gone: Vec<Key> = flows.map(|(key, _)| key).collect();
        gone.into_iter().for_each(|key| self.close(world, key));
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    pub(super) fn expire(&mut self, world: &mut World, now: Instant) {
        while let Some((_, key)) = self.deadlines.pop_front_if(|(at, _)| *at <= now) {
            let Some(flow) = self.flows.get(key) else { continue };
            if flow.deadline <= now {
                self.close(world, key);
            } else {
                // Looked at again by then, so that the queue stays in order.
                self.deadlines.push_back((now + UNREPLIED, key));
            }
        }
    }

    /// Datagrams have come to a listener.
    pub(super) fn arrive(&mut self, world: &mut World, key: Key) {
        for _ in 0..TURNS {
            let Some(listener) = self.listeners.get(key) else { return };
            let purpose = listener.purpose;
            let received = receive(&listener.socket, &mut self.buffer);
            let (length, from, original) = match received {
                Ok(received) => received,
                Err(Errno::AGAIN) => return,
                // An error that an earlier datagram came back with.
                Err(error) => {
                    tracing::debug!(%error, "receive datagram");
                    continue;
                }
            };
            let label = (key, from, original);
            let now = Instant::now();
            let flow = match self.by_label.get(&label) {
                Some(flow) => Some(*flow),
                None => self.open(world, label, purpose, now),
            };
            if let Some(flow) = flow {
                self.forward(flow, length, now);
            }
        }
    }

    /// Makes a flow for a sender's first datagram.
    fn open(&mut self, world: &mut World, label: Label, purpose: Purpose, now: Instant) -> Option<Key> {
        let (_, from, original) = label;
        let mut replica = None;
        let mut to_service = |world: &mut World, service, port, entrance| {
            let Pick::Member(member) = world.topology.pick(service, from.ip(), &[], now) else { return None };
            let chosen = Replica { service, member };
            replica = Some(chosen);
            let target = world.topology.target(chosen, port, from, entrance);
            target.map(|target| (target.address, target.source, true))
        };
        let destination = match (purpose, original) {
            (Purpose::Published(service, port), _) => to_service(world, service, port, Entrance::Host),
            (Purpose::Intercepted, None) => None,
            (Purpose::Intercepted, Some(to)) => match world.topology.way(from.ip(), to, now) {
                Way::Service(service, entrance) => to_service(world, service, to.port(), entrance),
                Way::World(_) => Some((to, None, false)),
                Way::Nowhere => None,
                Way::Forbidden(container, name) => {
                    world.refuse(container, to, name, "udp", now);
                    None
                }
            },
        };
        let Some((destination, source, inside)) = destination else {
            world.events.extend(replica.and_then(|replica| world.topology.closed(replica)));
            return None;
        };
        self.make_room(world, from.ip());
        if self.deadlines.len() > 2 * FLOWS {
            // Of many flows that had to leave early.
            self.deadlines.retain(|(_, key)| self.flows.get(*key).is_some());
        }
        let deadline = now + UNREPLIED;
        let flow = self.flows.insert(Flow {
            label,
            near: None,
            far: None,
            destination,
            source,
            pending: VecDeque::new(),
            replica,
            deadline,
            replied: false,
        });
        self.by_label.insert(label, flow);
        self.senders.entry(from.ip()).or_default().push_back(flow);
        self.deadlines.push_back((deadline, flow));
        if !inside {
            match outside(destination) {
                Ok(socket) => self.set_far(world, flow, socket),
                Err(error) => {
                    tracing::debug!(%error, %destination, "make a socket");
                    self.close(world, flow);
                    return None;
                }
            }
        }
        // The one towards the service, or the one that replies from where the container sent to, or both.
        for _ in 0..usize::from(inside) + usize::from(original.is_some()) {
            let kind = if from.is_ipv4() && destination.is_ipv4() { Kind::Udp4 } else { Kind::Udp6 };
            let kind = match (inside, destination) {
                (true, SocketAddr::V4(_)) => Kind::Udp4,
                _ => kind,
            };
            if let Some(socket) = world.sockets.take(kind, Waiter::Datagrams(flow)) {
                self.supply(world, flow, socket);
            }
        }
        Some(flow)
    }

    fn make_room(&mut self, world: &mut World, sender: IpAddr) {
        let most = FLOWS.min(world.most);
        let own = self.senders.get(&sender).filter(|flows| flows.len() >= FLOWS_EACH.min(most / 4));
        let oldest = own.and_then(|flows| flows.front().copied());
        let any = || self.deadlines.iter().map(|(_, key)| *key).find(|key| self.flows.get(*key).is_some());
        let leaves = oldest.or_else(|| (self.flows.len() >= most).then(any).flatten());
        if let Some(key) = leaves {
            self.close(world, key);
        }
    }

    /// A socket of the stack's namespace has come for a flow.
    pub(super) fn supply(&mut self, world: &mut World, key: Key, socket: OwnedFd) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let (_, from, original) = flow.label;
        let inside = flow.far.is_none();
        match (original, inside) {
            // The far side first: it needs no more than this.
            (_, true) => {
                if let Some(source) = flow.source {
                    sockets::keep_address(&socket, source);
                }
                if let Err(error) = rustix::net::connect(&socket, &flow.destination) {
                    tracing::debug!(%error, to = %flow.destination, "connect");
                    return self.close(world, key);
                }
                self.set_far(world, key, socket);
            }
            (Some(original), false) => {
                let ready = rustix::net::sockopt::set_socket_reuseaddr(&socket, true)
                    .and_then(|()| rustix::net::bind(&socket, &original))
                    .and_then(|()| rustix::net::connect(&socket, &from))
                    .and_then(|()| {
                        world.poll.add(&socket, Token::Datagram(key, End::Client), EventFlags::IN)
                    });
                if let Err(error) = ready {
                    tracing::debug!(%error, %original, "reply from there");
                    return self.close(world, key);
                }
                flow.near = Some(socket);
                self.watch_far(world, key);
            }
            (None, false) => {}
        }
    }

    fn set_far(&mut self, world: &mut World, key: Key, socket: OwnedFd) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        for datagram in std::mem::take(&mut flow.pending) {
            self.waiting = self.waiting.saturating_sub(datagram.len());
            send(&socket, &datagram);
        }
        flow.far = Some(socket);
        // Replies wait in it for the socket that they are to come from.
        if flow.label.2.is_none() {
            self.watch_far(world, key);
        }
    }

    fn watch_far(&mut self, world: &mut World, key: Key) {
        let Some(far) = self.flows.get(key).and_then(|flow| flow.far.as_ref()) else { return };
        if let Err(error) = world.poll.add(far, Token::Datagram(key, End::Upstream), EventFlags::IN) {
            tracing::warn!(%error, "watch a flow");
            self.close(world, key);
        }
    }

    /// Sends what is in the buffer to the flow's destination.
    fn forward(&mut self, key: Key, length: usize, now: Instant) {
        let datagram = self.buffer.get(..length).unwrap_or_default();
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.deadline = now + if flow.replied { REPLIED } else { UNREPLIED };
        match &flow.far {
            Some(far) => send(far, datagram),
            None if flow.pending.len() < PENDING && self.waiting + length <= WAITING => {
                self.waiting += length;
                flow.pending.push_back(datagram.to_vec());
            }
            None => {}
        }
    }

    /// One side of a flow has something.
    pub(super) fn ready(&mut self, key: Key, end: End) {
        for _ in 0..TURNS {
            let Some(flow) = self.flows.get_mut(key) else { return };
            let socket = match end {
                End::Client => &flow.near,
                End::Upstream => &flow.far,
            };
            let Some(socket) = socket else { return };
            let received = rustix::net::recvfrom(socket, &mut self.buffer[..], RecvFlags::DONTWAIT);
            let (length, sender) = match received {
                Ok((_, length, sender)) => {
                    (length, sender.and_then(|sender| SocketAddr::try_from(sender).ok()))
                }
                Err(Errno::AGAIN) => return,
                // What was sent has come back: nobody listens there. The sender will notice in its own way.
                Err(error) => {
                    tracing::debug!(%error, to = %flow.destination, "datagram");
                    return;
                }
            };
            let now = Instant::now();
            if end == End::Client {
                // Between its being bound and connected the socket may have got what others sent there.
                if sender == Some(flow.label.1) {
                    self.forward(key, length, now);
                }
                continue;
            }
            flow.replied = true;
            flow.deadline = now + REPLIED;
            let datagram = self.buffer.get(..length).unwrap_or_default();
            let (listener, from, _) = flow.label;
            match (&flow.near, self.listeners.get(listener)) {
                (Some(near), _) => send(near, datagram),
                (None, Some(listener)) if flow.label.2.is_none() => {
                    if let Err(error) =
                        rustix::net::sendto(&listener.socket, datagram, SendFlags::DONTWAIT, &from)
                    {
                        tracing::debug!(%error, %from, "send datagram");
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn close(&mut self, world: &mut World, key: Key) {
        let Some(flow) = self.flows.remove(key) else { return };
        self.by_label.remove(&flow.label);
        self.waiting = self.waiting.saturating_sub(flow.pending.iter().map(Vec::len).sum());
        let sender = flow.label.1.ip();
        if let Some(flows) = self.senders.get_mut(&sender) {
            flows.retain(|other| *other != key);
            if flows.is_empty() {
                self.senders.remove(&sender);
            }
        }
        world.events.extend(flow.replica.and_then(|replica| world.topology.closed(replica)));
        let flows = &self.flows;
        while self.deadlines.pop_front_if(|(_, key)| flows.get(*key).is_none()).is_some() {}
    }

    /// Ends the flows to replicas that take no datagrams any more: what comes next goes to another.
    pub(super) fn leave_replicas(&mut self, world: &mut World) {
        let is_left = |flow: &Flow| {
            flow.replica.is_some_and(|replica| !world.topology.serves(replica, flow.destination.ip()))
        };
        let flows = self.flows.iter().filter(|(_, flow)| is_left(flow));
        let keys: Vec<Key> = flows.map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.close(world, key));
    }

    /// Ends the flows that were begun from these addresses.
    pub(super) fn leave_senders(&mut self, world: &mut World, senders: &[IpAddr]) {
        for sender in senders {
            for key in self.senders.get(sender).cloned().into_iter().flatten() {
                self.close(world, key);
            }
        }
    }
}

/// Datagrams may be lost: one that cannot be sent now is.
fn send(socket: &OwnedFd, datagram: &[u8]) {
    if let Err(error) = rustix::net::send(socket, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        tracing::debug!(%error, "send datagram");
    }
}

/// A socket of the host's namespace that is connected to `address`.
fn outside(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = sockets::outside(address, SocketType::DGRAM)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// A datagram's length, sender, and, from a socket that is told, its original destination.
fn receive(
    socket: &OwnedFd,
    buffer: &mut [u8],
) -> rustix::io::Result<(usize, SocketAddr, Option<SocketAddr>)> {
    let mut control = nix::cmsg_space!(nix::libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )
    .map_err(errno)?;
    let from = received.address.as_ref().and_then(address).ok_or(Errno::INVAL)?;
    let mut original = None;
    for message in received.cmsgs().map_err(|_cut| Errno::INVAL)? {
        original = match message {
            ControlMessageOwned::Ipv4OrigDstAddr(to) => {
                let ip = u32::from_be(to.sin_addr.s_addr);
                Some(SocketAddr::new(IpAddr::V4(ip.into()), u16::from_be(to.sin_port)))
            }
            ControlMessageOwned::Ipv6OrigDstAddr(to) => {
                let ip = to.sin6_addr.s6_addr;
                Some(SocketAddr::new(IpAddr::V6(ip.into()), u16::from_be(to.sin6_port)))
            }
            _ => original,
        };
    }
    Ok((received.bytes, from, original))
}

pub(super) fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
