//! Connections that containers begin, before they are: the first packet of each waits in a queue of the kernel's
//! (`linux/netfilter/nfnetlink_queue.h`) until netd knows whether the other end can be reached, so that `connect`
//! succeeds where it would have without us in between, and fails in the same way.
//!
//! Later packets come by here only if the kernel finds no socket for them. It may look in the moment in which a
//! connection's handshake has been completed on another processor, and its socket is in no table: the first one has
//! been taken out (`inet_ehash_insert`), the second is not in yet. Once more, and it is found; without that, the
//! connection would be reset.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::Error;
use crate::error::Doing;
use crate::netlink::attributes::{Attributes, netfilter_request};
use crate::netlink::exchange;

/// The queue's number; they are counted in each network namespace.
pub(crate) const QUEUE: u16 = 0;
/// Packets that may wait; what comes then goes on as if there were no queue.
const LENGTH: u32 = 4096;
/// What of a packet is copied: its headers, options included.
const COPIED: u32 = 128;

/// `NFNL_SUBSYS_QUEUE`.
const SUBSYSTEM: u16 = 3;
const PACKET: u16 = SUBSYSTEM << 8;
const VERDICT: u16 = SUBSYSTEM << 8 | 1;
const VERDICT_BATCH: u16 = SUBSYSTEM << 8 | 3;
const CONFIG: u16 = SUBSYSTEM << 8 | 2;
const ACK: u16 = netlink_packet_core::NLM_F_ACK;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const FAIL_OPEN: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NF_REPEAT: u32 = 4;
const TCP: u8 = 6;

/// Flags of a TCP header (RFC 9293 section 3.1).
pub(crate) const FIN: u8 = 1;
/// As [`FIN`].
pub(crate) const SYN: u8 = 2;
/// As [`FIN`].
pub(crate) const RST: u8 = 4;
const TCP_ACK: u8 = 16;
/// Those of which the first packet of a connection has [`SYN`] only.
pub(crate) const FIRST_FLAGS: u8 = FIN | SYN | RST | TCP_ACK;

/// What the rules make of the packet that was let go with this mark.
pub(crate) const MARK_RESET: u32 = 0x696f;
/// As [`MARK_RESET`], with an ICMP error: no such host.
pub(crate) const MARK_UNREACHABLE: u32 = 0x6970;

/// Of a packet that is looked at for the second time.
pub(crate) const MARK_AGAIN: u32 = 0x6971;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It arrives at the transparent listener.
    Arrives,
    /// "Connection refused": by the other end, or because it is not allowed. That could be told by an ICMP error,
    /// but the kernel forgets one that comes while `connect` has not let go of the socket yet.
    Refused,
    /// "No route to host".
    Unreachable,
    /// It is forgotten; the sender will try again.
    Forgotten,
    /// The rules begin from the start.
    Again,
}

/// A packet in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) packet: u32,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// It is the first one of a connection.
    pub(crate) begins: bool,
}

/// Opens the queue of the current network namespace.
///
/// # Errors
/// When the kernel has none, or without the privilege.
pub(crate) fn open() -> Result<OwnedFd, Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))
            .doing(|| "open a netlink socket for the queue of new connections")?;
    let bind = Attributes::new().bytes(1, &[BIND, 0, 0, 0]);
    let copied = [&COPIED.to_be_bytes()[..], &[COPY_PACKET]].concat();
    let settings = Attributes::new().bytes(2, &copied).be32(3, LENGTH).be32(4, FAIL_OPEN).be32(5, FAIL_OPEN);
    let requests = ["bind the queue of new connections", "set up the queue of new connections"];
    let batch = [message(CONFIG, ACK, 0, &bind), message(CONFIG, ACK, 1, &settings)].concat();
    exchange(&socket, &batch, 0, &requests.map(str::to_owned), requests.len())?;
    Ok(socket)
}

/// The next packet; `None` when there is none, or what came is none of ours.
pub(crate) fn next(queue: impl AsFd) -> rustix::io::Result<Option<Waiting>> {
    let mut buffer = [0u8; 1024];
    match rustix::net::recv(queue, &mut buffer[..], RecvFlags::DONTWAIT) {
        Ok((_, length)) => Ok(read(buffer.get(..length).unwrap_or_default())),
        // Some did not fit: their senders try again.
        Err(Errno::NOBUFS | Errno::INTR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets a packet go.
pub(crate) fn decide(queue: impl AsFd, packet: u32, verdict: Verdict) -> rustix::io::Result<()> {
    let (code, mark) = match verdict {
        Verdict::Arrives => (NF_ACCEPT, 0),
        Verdict::Refused => (NF_ACCEPT, MARK_RESET),
        Verdict::Unreachable => (NF_ACCEPT, MARK_UNREACHABLE),
        Verdict::Forgotten => (NF_DROP, 0),
        Verdict::Again => (NF_REPEAT, MARK_AGAIN),
    };
    let header = [code.to_be_bytes(), packet.to_be_bytes()].concat();
    let attributes = Attributes::new().bytes(2, &header).be32(3, mark);
    rustix::net::send(queue, &message(VERDICT, 0, 0, &attributes), SendFlags::empty()).map(drop)
}

/// Forgets all packets that wait: whoever read of them before has not decided. The senders will try again.
pub(crate) fn forget(queue: impl AsFd) -> rustix::io::Result<()> {
    // All up to this number, which is as far from the first one's as numbers can be.
    let header = [NF_DROP.to_be_bytes(), (u32::MAX / 2).to_be_bytes()].concat();
    let attributes = Attributes::new().bytes(2, &header);
    rustix::net::send(queue, &message(VERDICT_BATCH, 0, 0, &attributes), SendFlags::empty()).map(drop)
}

fn message(kind: u16, flags: u16, sequence: u32, attributes: &Attributes) -> Vec<u8> {
    // The resource is the queue.
    netfilter_request(kind, flags, sequence, (0, QUEUE), attributes)
}

/// The packet of a `NFQNL_MSG_PACKET`.
fn read(message: &[u8]) -> Option<Waiting> {
    if message.get(4..6)? != PACKET.to_ne_bytes() {
        return None;
    }
    let mut rest = message.get(20..)?;
    let (mut packet, mut payload) = (None, None);
    while let Some((header, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = rest.get(4..length)?;
        match kind {
            1 => packet = value.first_chunk::<4>().map(|number| u32::from_be_bytes(*number)),
            10 => payload = Some(value),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let (from, to, begins) = heading(payload?)?;
    Some(Waiting { packet: packet?, from, to, begins })
}

/// Source and destination of a TCP packet, and whether it begins a connection. What has extension headers in between is none that a `connect` sends.
fn heading(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, bool)> {
    let (from, to, protocol, tcp) = match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet.first()? & 0x0f) * 4;
            let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (IpAddr::from(from), IpAddr::from(to), *packet.get(9)?, packet.get(length..)?)
        }
        6 => {
            let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (IpAddr::from(from), IpAddr::from(to), *packet.get(6)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let begins = tcp.get(13)? & FIRST_FLAGS == SYN;
    (protocol == TCP).then_some((SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?), begins))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_and_hostile_ones_are_not() {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 89, 0, 2, 192, 0, 2, 1];
        packet.extend([0x82, 0x35, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
        let header = [&7u32.to_be_bytes()[..], &[8, 0, 1]].concat();
        let attributes = Attributes::new().bytes(1, &header).bytes(10, &packet);
        let whole = message(PACKET, 0, 0, &attributes);
        let expected = Waiting {
            packet: 7,
            from: "10.89.0.2:33333".parse().unwrap(),
            to: "192.0.2.1:443".parse().unwrap(),
            begins: true,
        };
        assert_eq!(read(&whole), Some(expected));
        let flags = whole.len() - 7;
        let mut later = whole.clone();
        later[flags] = TCP_ACK;
        assert_eq!(read(&later), Some(Waiting { begins: false, ..expected }));
        for cut in 0..whole.len() - 16 {
            assert_eq!(read(&whole[..cut]), None, "{cut}");
        }
        let mut endless = whole.clone();
        endless[20..22].copy_from_slice(&0u16.to_ne_bytes());
        assert_eq!(read(&endless), None, "an attribute without a length");
    }
}
