//! Routing netlink (rtnetlink(7)), synchronous: requests are collected, sent in one system call, and every one
//! is answered by the kernel before that call returns, so nothing here ever waits.

pub(crate) mod attributes;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::Error;
use crate::Subnet;
use crate::error::Doing;

/// The index of `lo` in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// `TCA_OPTIONS`, which is different for each kind of queueing discipline.
const TCA_OPTIONS: u16 = 2;

/// Requests in one system call: their answers must fit the socket's receive buffer (about 200 KB, of which an
/// answer takes less than 1 KB).
const BATCH: usize = 64;

/// A netlink socket of the network namespace that was current when it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    /// Sequence number of the first pending request.
    base: u32,
    /// The requests, encoded.
    batch: Vec<u8>,
    /// What each pending request does, for the error.
    pending: Vec<String>,
}

/// One end of a veth pair on a bridge, the other in another network namespace.
pub(crate) struct Veth<'a> {
    /// Name of the end on the bridge.
    pub(crate) name: &'a str,
    /// Interface index that end gets. The kernel takes the other one's only together with this.
    pub(crate) index: u32,
    /// Interface index of the bridge.
    pub(crate) bridge: u32,
    /// Name of the end in the other namespace.
    pub(crate) inner: &'a str,
    /// Interface index that end gets.
    pub(crate) inner_index: u32,
    pub(crate) mac: [u8; 6],
    /// Maximum transmission unit of both ends in bytes.
    pub(crate) mtu: Option<u32>,
    pub(crate) netns: BorrowedFd<'a>,
}

/// A routing rule of IPv4: where packets go that all of it is true of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    /// The lowest is looked at first.
    pub(crate) priority: u32,
    /// They come in by this link; `lo` for those that are sent here.
    pub(crate) input: Option<String>,
    pub(crate) from: Option<Ipv4Addr>,
    pub(crate) to: Option<Subnet>,
    /// Routed by this table; refused without.
    pub(crate) table: Option<u8>,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.table = self.table.unwrap_or_default();
        message.header.action = self.table.map_or(RuleAction::Prohibit, |_| RuleAction::ToTable);
        message.header.src_len = if self.from.is_some() { 32 } else { 0 };
        message.header.dst_len = self.to.map_or(0, Subnet::prefix);
        message.attributes = vec![RuleAttribute::Priority(self.priority)];
        message.attributes.extend(self.input.clone().map(RuleAttribute::Iifname));
        message.attributes.extend(self.from.map(|address| RuleAttribute::Source(address.into())));
        message.attributes.extend(self.to.map(|subnet| RuleAttribute::Destination(subnet.first())));
        message
    }
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self { socket, base: 1, batch: Vec::new(), pending: Vec::new() })
    }

    /// Brings an existing interface up.
    pub(crate) fn up(&mut self, what: String, index: u32) -> Result<(), Error> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.push(what, 0, RouteNetlinkMessage::SetLink(link))
    }

    /// Creates a bridge that is up, forwards at once and does not look into multicast.
    pub(crate) fn bridge(
        &mut self,
        name: &str,
        index: u32,
        mac: [u8; 6],
        mtu: Option<u32>,
    ) -> Result<(), Error> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            // Without an address of its own a bridge takes the lowest of its ports', which changes as
            // services come and go, and neighbours would keep talking to the old one.
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::StpState(BridgeStpState::Disabled),
                    InfoBridge::MulticastSnooping(false),
                ])),
            ]),
        ];
        link.attributes.extend(mtu.map(LinkAttribute::Mtu));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.push(format!("create bridge `{name}`"), flags, RouteNetlinkMessage::NewLink(link))
    }

    /// Creates a veth pair with its outer end up; the inner one cannot be before it knows its peer.
    pub(crate) fn veth(&mut self, what: String, veth: &Veth<'_>) -> Result<(), Error> {
        let mut inner = LinkMessage::default();
        inner.header.index = veth.inner_index;
        inner.attributes = vec![
            LinkAttribute::IfName(veth.inner.to_owned()),
            LinkAttribute::Address(veth.mac.to_vec()),
            LinkAttribute::NetNsFd(veth.netns.as_raw_fd()),
        ];
        inner.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
        let mut link = LinkMessage::default();
        link.header.index = veth.index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![
            LinkAttribute::IfName(veth.name.to_owned()),
            LinkAttribute::Controller(veth.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inner))),
            ]),
        ];
        link.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
        self.push(what, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(link))
    }

    /// Deletes an interface by name.
    pub(crate) fn delete(&mut self, name: &str) -> Result<(), Error> {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.push(format!("delete link `{name}`"), 0, RouteNetlinkMessage::DelLink(link))
    }

    /// Gives an interface an address and with it the route to its subnet. An IPv6 address is not probed for
    /// duplicates, which takes a second, and there are none.
    pub(crate) fn address(
        &mut self,
        what: String,
        index: u32,
        address: impl Into<IpAddr>,
        prefix: u8,
    ) -> Result<(), Error> {
        let address = address.into();
        let mut message = address_message(index, address, prefix);
        match address {
            IpAddr::V4(address) if prefix < 31 => {
                let broadcast = u32::from(address) | u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                message.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::from(broadcast)));
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(_) => {
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                if prefix == 128 {
                    // One of several of its kind that connections come to: none that they come from, or it would
                    // be preferred to the gateway's (RFC 6724, section 5, rule 3).
                    let mut deprecated = CacheInfo::default();
                    (deprecated.ifa_preferred, deprecated.ifa_valid) = (0, u32::MAX);
                    message.attributes.push(AddressAttribute::CacheInfo(deprecated));
                }
            }
        }
        self.push(what, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewAddress(message))
    }

    /// Takes an address from an interface.
    pub(crate) fn remove_address(
        &mut self,
        what: String,
        index: u32,
        address: impl Into<IpAddr>,
        prefix: u8,
    ) -> Result<(), Error> {
        let message = address_message(index, address.into(), prefix);
        self.push(what, 0, RouteNetlinkMessage::DelAddress(message))
    }

    /// The route to everywhere, by a gateway.
    pub(crate) fn default_route(&mut self, what: String, index: u32, gateway: IpAddr) -> Result<(), Error> {
        let address = match gateway {
            IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
            IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
        };
        let mut message = route_message(family(gateway), RouteHeader::RT_TABLE_MAIN, RouteType::Unicast);
        message.header.scope = RouteScope::Universe;
        message.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Gateway(address)];
        self.push(what, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewRoute(message))
    }

    /// Delivers packets with `mark` to this namespace's own sockets whatever their destination is, by the routing
    /// table `table`.
    pub(crate) fn deliver_marked(
        &mut self,
        family: AddressFamily,
        mark: u32,
        table: u8,
        priority: u32,
    ) -> Result<(), Error> {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.table = table;
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::FwMark(mark)];
        let what = format!("add routing rule for mark {mark:#x} ({family:?})");
        self.push(what, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewRule(rule))?;
        let mut route = route_message(family, table, RouteType::Local);
        route.header.scope = RouteScope::Host;
        route.attributes = vec![RouteAttribute::Oif(LOOPBACK)];
        let what = format!("add local default route to table {table} ({family:?})");
        self.push(what, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewRoute(route))
    }

    /// The route to everywhere of the routing table `table`, by a gateway.
    pub(crate) fn route_out(
        &mut self,
        what: String,
        table: u8,
        index: u32,
        gateway: Ipv4Addr,
    ) -> Result<(), Error> {
        let mut message = route_message(AddressFamily::Inet, table, RouteType::Unicast);
        message.header.scope = RouteScope::Universe;
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(gateway));
        message.attributes = vec![RouteAttribute::Oif(index), gateway];
        self.push(what, NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewRoute(message))
    }

    /// Adds a routing rule.
    pub(crate) fn add_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRule(rule.message());
        self.push(format!("add {rule:?}"), NLM_F_CREATE | NLM_F_EXCL, message)
    }

    /// Removes one.
    pub(crate) fn remove_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        self.push(format!("remove {rule:?}"), 0, RouteNetlinkMessage::DelRule(rule.message()))
    }

    /// Gives an interface a queueing discipline of this kind, in place of the one it has; `options` is the value of
    /// `TCA_OPTIONS`.
    pub(crate) fn set_queue(
        &mut self,
        what: String,
        index: u32,
        kind: &str,
        options: Vec<u8>,
    ) -> Result<(), Error> {
        let mut message = queue_message(index);
        message.attributes = vec![
            TcAttribute::Kind(kind.to_owned()),
            TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)),
        ];
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.push(what, flags, RouteNetlinkMessage::NewQueueDiscipline(message))
    }

    /// Gives an interface the queueing discipline that it came with.
    pub(crate) fn remove_queue(&mut self, what: String, index: u32) -> Result<(), Error> {
        self.push(what, 0, RouteNetlinkMessage::DelQueueDiscipline(queue_message(index)))
    }

    fn push(&mut self, what: String, flags: u16, message: RouteNetlinkMessage) -> Result<(), Error> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = self.base.wrapping_add(self.pending.len() as u32);
        message.finalize();
        let start = self.batch.len();
        // Messages are aligned to four bytes (netlink(7)).
        self.batch.resize((start + message.buffer_len()).next_multiple_of(4), 0);
        message.serialize(self.batch.get_mut(start..).unwrap_or_default());
        self.pending.push(what);
        if self.pending.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Sends what is pending and collects the answers; the first failure, in the order of the requests, is the
    /// one reported.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        let pending = std::mem::take(&mut self.pending);
        let batch = std::mem::take(&mut self.batch);
        let base = self.base;
        self.base = base.wrapping_add(pending.len() as u32);
        if pending.is_empty() {
            return Ok(());
        }
        exchange(&self.socket, &batch, base, &pending, pending.len())
    }
}

/// Sends `requests`, which are encoded in `batch` and numbered from `base` on, and collects the answers, of which
/// there are `answers` when all goes well; the first failure, in the order of the requests, is the one reported.
pub(crate) fn exchange(
    socket: &OwnedFd,
    batch: &[u8],
    base: u32,
    requests: &[String],
    answers: usize,
) -> Result<(), Error> {
    rustix::net::send(socket, batch, SendFlags::empty()).doing(|| "send netlink requests")?;
    let mut first: Option<(usize, i32)> = None;
    let mut buffer = [0u8; 4096];
    for number in 0.. {
        let length = match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((_, length)) => length,
            Err(Errno::AGAIN) if number >= answers || first.is_some() => break,
            Err(errno) => return Err(Error::system("receive netlink answers", errno)),
        };
        let (sequence, error) = acknowledgement(buffer.get(..length).unwrap_or_default())
            .ok_or(io::Error::from(io::ErrorKind::InvalidData))
            .doing(|| "read netlink answer")?;
        let index = sequence.wrapping_sub(base) as usize;
        if error != 0 && first.is_none_or(|(earlier, _)| index < earlier) {
            first = Some((index, error));
        }
    }
    match first {
        None => Ok(()),
        Some((index, error)) => {
            let what = requests.get(index).cloned().unwrap_or_default();
            Err(Error::system(what, io::Error::from_raw_os_error(-error)))
        }
    }
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

fn queue_message(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index as i32);
    message.header.parent = TcHandle::ROOT;
    message
}

fn route_message(family: AddressFamily, table: u8, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = table;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = kind;
    message
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Sequence number and (negative or zero) error of an `NLMSG_ERROR` message.
fn acknowledgement(message: &[u8]) -> Option<(u32, i32)> {
    let word = |at: usize| message.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    if kind != netlink_packet_core::NLMSG_ERROR {
        return None;
    }
    Some((u32::from_ne_bytes(word(8)?), i32::from_ne_bytes(word(16)?)))
}
