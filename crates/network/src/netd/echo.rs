//! `ping` out of the stack: echo requests of containers are sent again from a socket of the host's, and the replies
//! brought back under the name of whom they asked (RFC 792, RFC 4443).
//!
//! The kernel's own replies are switched off in the stack's namespace, so pings of the stack's addresses are answered
//! here, too.

use std::collections::{HashMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use super::datagram::address;
use super::slab::{Key, Slab};
use super::tally::Tally;
use super::topology::Way;
use super::world::{Token, World};
use crate::error::errno;

/// How long a program's requests to one address keep their socket after the last of them.
const IDLE: Duration = Duration::from_secs(30);
/// Pinging programs at a time.
const FLOWS: usize = 256;
/// Of these, what one container may have.
const FLOWS_EACH: usize = 64;
/// Messages of one socket before others get their turn.
const TURNS: usize = 64;
/// Length of an echo message's header.
const HEADER: usize = 8;
/// How much of an IPv6 message an error about it quotes, so that the error fits into the smallest MTU, 1280 bytes.
const QUOTED: usize = 1280 - 40 - 8 - 40;

/// Who asks whom, and the identifier that tells the sender's programs apart.
type Label = (IpAddr, IpAddr, [u8; 2]);

#[derive(Debug)]
struct Flow {
    label: Label,
    socket: OwnedFd,
    /// The identifier of requests by a raw socket, where the host has none for ordinary users: it gets replies with
    /// their IP header, and those that are meant for others. A socket for ordinary users has its own.
    raw: Option<[u8; 2]>,
    deadline: Instant,
}

#[derive(Debug)]
pub(super) struct Echo {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
    flows: Slab<Flow>,
    by_label: HashMap<Label, Key>,
    /// How many flows each container has.
    open: Tally<IpAddr>,
    deadlines: VecDeque<(Instant, Key)>,
    buffer: Vec<u8>,
}

impl Echo {
    pub(super) fn new() -> Self {
        Self {
            v4: None,
            v6: None,
            flows: Slab::new(),
            by_label: HashMap::new(),
            open: Tally::default(),
            deadlines: VecDeque::new(),
            // Zeroed memory that is never touched takes no room.
            buffer: vec![0; 1 << 16],
        }
    }

    /// Takes the raw socket that echo requests come to.
    pub(super) fn listen(&mut self, world: &World, socket: OwnedFd, v6: bool) -> rustix::io::Result<()> {
        if v6 {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true).map_err(errno)?;
        }
        world.poll.add(&socket, Token::EchoRequest(v6), EventFlags::IN)?;
        let old = if v6 { self.v6.replace(socket) } else { self.v4.replace(socket) };
        if let Some(old) = old {
            world.poll.delete(&old);
        }
        Ok(())
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, key)) = self.deadlines.pop_front_if(|(at, _)| *at <= now) {
            let Some(flow) = self.flows.get(key) else { continue };
            if flow.deadline <= now {
                self.close(key);
            } else {
                self.deadlines.push_back((now + IDLE, key));
            }
        }
    }

    fn close(&mut self, key: Key) {
        let Some(flow) = self.flows.remove(key) else { return };
        self.by_label.remove(&flow.label);
        self.open.take(&flow.label.0);
    }

    /// Messages have come from containers.
    pub(super) fn request(&mut self, world: &mut World, v6: bool) {
        for _ in 0..TURNS {
            let Some(socket) = (if v6 { &self.v6 } else { &self.v4 }) else { return };
            let (length, from, to) = match receive(socket, &mut self.buffer) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    tracing::debug!(%error, "receive ICMP message");
                    continue;
                }
            };
            let packet = self.buffer.get(..length).unwrap_or_default();
            let Some(request) = Request::read(packet, from, to) else { continue };
            let now = Instant::now();
            let destination = SocketAddr::new(request.to, 0);
            if world.topology.is_own(request.from, request.to) {
                let reply = request.message(false);
                answer(socket, request.to, request.from, &reply);
                continue;
            }
            let way = world.topology.way(request.from, destination, now);
            let forbidden = match way {
                Way::World(_) => false,
                Way::Service(..) | Way::Nowhere => true,
                Way::Forbidden(container, name) => {
                    world.refuse(container, destination, name, "icmp", now);
                    true
                }
            };
            let message = request.message(true);
            let label = (request.from, request.to, request.identifier());
            let sent = !forbidden && self.send(world, label, message, now);
            if !sent {
                let packet = self.buffer.get(..length).unwrap_or_default();
                let message = if v6 { prohibited6(label.0, label.1, packet) } else { prohibited(packet) };
                if let (Some(socket), Some(gateway)) =
                    (if v6 { &self.v6 } else { &self.v4 }, world.topology.gateway(label.0))
                {
                    answer(socket, gateway, label.0, &message);
                }
            }
        }
    }

    /// Sends a request on; `false` when there is no socket for it.
    fn send(&mut self, world: &World, label: Label, mut message: Vec<u8>, now: Instant) -> bool {
        let known = self.by_label.get(&label).copied();
        let Some(key) = known.or_else(|| self.open(world, label, now)) else { return false };
        let Some(flow) = self.flows.get_mut(key) else { return false };
        flow.deadline = now + IDLE;
        if let Some(own) = flow.raw {
            identify(&mut message, own);
        }
        if let Err(error) = rustix::net::send(&flow.socket, &message, SendFlags::DONTWAIT) {
            tracing::debug!(%error, to = %label.1, "send echo request");
        }
        true
    }

    fn open(&mut self, world: &World, label: Label, now: Instant) -> Option<Key> {
        let has_many = self.open.of(&label.0) >= FLOWS_EACH;
        if has_many || self.flows.len() >= FLOWS {
            let may_go = |flow: &Flow| !has_many || flow.label.0 == label.0;
            let mut keys = self.deadlines.iter().map(|(_, key)| *key);
            let oldest = keys.find(|key| self.flows.get(*key).is_some_and(may_go));
            oldest.into_iter().for_each(|key| self.close(key));
        }
        if self.deadlines.len() > 2 * FLOWS {
            // Of flows that had to leave early.
            self.deadlines.retain(|(_, key)| self.flows.get(*key).is_some());
        }
        let (socket, raw) = match outside(label.1) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(%error, "this host lets nobody ping (net.ipv4.ping_group_range)");
                return None;
            }
        };
        let key = self.flows.insert(Flow { label, socket, raw: None, deadline: now + IDLE });
        let flow = self.flows.get_mut(key)?;
        // Programs of several containers may have the same identifier, and each gets all replies.
        let own = (key.index as u16).wrapping_add(std::process::id() as u16);
        flow.raw = raw.then(|| own.to_be_bytes());
        if let Err(error) = world.poll.add(&flow.socket, Token::EchoReply(key), EventFlags::IN) {
            tracing::warn!(%error, "watch a socket for echo replies");
            self.flows.remove(key);
            return None;
        }
        self.by_label.insert(label, key);
        self.open.add(label.0);
        self.deadlines.push_back((now + IDLE, key));
        Some(key)
    }

    /// Replies have come.
    pub(super) fn reply(&mut self, key: Key) {
        for _ in 0..TURNS {
            let Some(flow) = self.flows.get(key) else { return };
            let length = match rustix::net::recv(&flow.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => length,
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    tracing::debug!(%error, to = %flow.label.1, "receive echo reply");
                    return;
                }
            };
            let (from, to, identifier) = flow.label;
            let packet = self.buffer.get(..length).unwrap_or_default();
            let Some(message) = reply_message(packet, flow.raw, to.is_ipv6(), identifier) else { continue };
            let socket = if to.is_ipv6() { &self.v6 } else { &self.v4 };
            if let Some(socket) = socket {
                answer(socket, to, from, &message);
            }
        }
    }
}

/// An echo request of a container.
struct Request<'a> {
    from: IpAddr,
    to: IpAddr,
    /// From the header's fifth byte on: identifier, sequence number, data.
    rest: &'a [u8],
}

impl<'a> Request<'a> {
    fn read(packet: &'a [u8], from: IpAddr, to: Option<IpAddr>) -> Option<Self> {
        let (message, to, kind) = match to {
            // A raw IPv6 socket tells the destination, and leaves the header out.
            Some(to) => (packet, to, 128),
            None => {
                let length = usize::from(packet.first()? & 0x0f) * 4;
                let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                (packet.get(length..)?, IpAddr::from(to), 8)
            }
        };
        if message.len() < HEADER || message.first() != Some(&kind) || message.get(1) != Some(&0) {
            return None;
        }
        Some(Self { from, to, rest: message.get(4..)? })
    }

    fn identifier(&self) -> [u8; 2] {
        self.rest.first_chunk().copied().unwrap_or_default()
    }

    /// The request again, or the reply to it.
    fn message(&self, request: bool) -> Vec<u8> {
        let kind = match (self.to, request) {
            (IpAddr::V4(_), true) => 8,
            (IpAddr::V4(_), false) => 0,
            (IpAddr::V6(_), true) => 128,
            (IpAddr::V6(_), false) => 129,
        };
        with_checksum([&[kind, 0, 0, 0], self.rest].concat())
    }
}

/// What came from outside, as a reply to the container's program; `None` when it is none.
fn reply_message(packet: &[u8], raw: Option<[u8; 2]>, v6: bool, identifier: [u8; 2]) -> Option<Vec<u8>> {
    let message = match raw.is_some() && !v6 {
        true => packet.get(usize::from(packet.first()? & 0x0f) * 4..)?,
        false => packet,
    };
    let kind = if v6 { 129 } else { 0 };
    if message.len() < HEADER || message.first() != Some(&kind) {
        return None;
    }
    // An ordinary user's socket has an identifier of its own, and gets its own replies only.
    if raw.is_some_and(|own| message.get(4..6) != Some(&own[..])) {
        return None;
    }
    let rest = message.get(6..)?;
    Some(with_checksum([&[kind, 0, 0, 0], &identifier[..], rest].concat()))
}

/// "Communication administratively prohibited" (RFC 1812 section 5.2.7.1) about a packet.
fn prohibited(packet: &[u8]) -> Vec<u8> {
    let header = usize::from(packet.first().copied().unwrap_or(0) & 0x0f) * 4;
    let quoted = packet.get(..header + 8).unwrap_or(packet);
    with_checksum([&[3, 13, 0, 0, 0, 0, 0, 0], quoted].concat())
}

/// The same over IPv6 (RFC 4443 section 3.1), about a message whose header has to be made again.
fn prohibited6(from: IpAddr, to: IpAddr, message: &[u8]) -> Vec<u8> {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) else { return Vec::new() };
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
    // Version 6, the length, the next header (ICMPv6), hops, and the two addresses.
    let header = [&[0x60, 0, 0, 0], &length[..], &[58, 64], &from.octets(), &to.octets()].concat();
    let quoted = message.get(..QUOTED).unwrap_or(message);
    with_checksum([&[1, 1, 0, 0, 0, 0, 0, 0], &header[..], quoted].concat())
}

/// Replaces the identifier of a message.
fn identify(message: &mut Vec<u8>, identifier: [u8; 2]) {
    let rest = message.get(6..).unwrap_or_default();
    let kind = message.first().copied().unwrap_or_default();
    *message = with_checksum([&[kind, 0, 0, 0], &identifier[..], rest].concat());
}

/// Fills in the checksum (RFC 1071). For IPv6 the kernel does that again, with the addresses.
fn with_checksum(mut message: Vec<u8>) -> Vec<u8> {
    let words = message
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.fold(0, |sum, word| {
        let sum: u32 = sum + word;
        (sum & 0xffff) + (sum >> 16)
    });
    sum = (sum & 0xffff) + (sum >> 16);
    let checksum = (!(sum as u16)).to_be_bytes();
    for (byte, value) in message.iter_mut().skip(2).zip(checksum) {
        *byte = value;
    }
    message
}

/// A socket of the host's for echo requests to `to`: one for ordinary users (icmp(7)), where the host has them, or a
/// raw one; and whether it is raw.
fn outside(to: IpAddr) -> rustix::io::Result<(OwnedFd, bool)> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let open = |kind| rustix::net::socket_with(family, kind, flags, Some(protocol));
    let (socket, raw) = match open(SocketType::DGRAM) {
        Ok(socket) => (socket, false),
        Err(Errno::ACCESS | Errno::PERM) => (open(SocketType::RAW)?, true),
        Err(error) => return Err(error),
    };
    rustix::net::connect(&socket, &SocketAddr::new(to, 0))?;
    Ok((socket, raw))
}

/// Sends an ICMP message to a container, from any address.
fn answer(socket: &OwnedFd, source: IpAddr, to: IpAddr, message: &[u8]) {
    let part = [IoSlice::new(message)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let sent = match (source, to) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            let source = in_addr { s_addr: u32::from(source).to_be() };
            let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: source };
            let to = SockaddrStorage::from(SocketAddrV4::new(to, 0));
            sendmsg(socket.as_raw_fd(), &part, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&to))
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            let info = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 };
            let to = SockaddrStorage::from(SocketAddrV6::new(to, 0, 0, 0));
            sendmsg(socket.as_raw_fd(), &part, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&to))
        }
        _ => return,
    };
    if let Err(error) = sent {
        tracing::debug!(%error, %source, %to, "send ICMP message");
    }
}

/// A message's length, sender, and, over IPv6, destination.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<(usize, IpAddr, Option<IpAddr>)> {
    let mut control = nix::cmsg_space!(in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let received = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
    let received = received.map_err(errno)?;
    let from = received.address.as_ref().and_then(address).ok_or(Errno::INVAL)?.ip();
    let mut to = None;
    for message in received.cmsgs().map_err(|_cut| Errno::INVAL)? {
        if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
            to = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
        }
    }
    Ok((received.bytes, from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_become_replies() {
        let header = [0x45, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0, 10, 89, 0, 2, 192, 0, 2, 1];
        let packet = [&header[..], &[8, 0, 0, 0, 0x12, 0x34, 0, 1], b"abcdefg"].concat();
        let from = IpAddr::from([10, 89, 0, 2]);
        let request = Request::read(&packet, from, None).unwrap();
        assert_eq!((request.to, request.identifier()), (IpAddr::from([192, 0, 2, 1]), [0x12, 0x34]));
        let reply = request.message(false);
        assert_eq!(reply[0], 0);
        let sum: u32 =
            reply.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "a right checksum makes all ones");

        let answered = [&[0, 0, 9, 9, 0xaa, 0xbb, 0, 1], &b"abcdefg"[..]].concat();
        let own = Some([0xaa, 0xbb]);
        assert_eq!(reply_message(&answered, None, false, [0x12, 0x34]).as_ref(), Some(&reply));
        let with_header = [&header[..], &answered].concat();
        assert_eq!(reply_message(&with_header, own, false, [0x12, 0x34]), Some(reply));
        let other = Some([0xaa, 0xbc]);
        assert_eq!(reply_message(&with_header, other, false, [0x12, 0x34]), None, "another program's");
        for cut in 0..packet.len() {
            assert!(Request::read(&packet[..cut], from, None).is_none_or(|r| r.rest.len() >= 4));
        }
        assert_eq!(prohibited(&packet).len(), 8 + 20 + 8);
    }
}
