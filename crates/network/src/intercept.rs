//! Interception: what a container sends to somewhere outside of its networks, and what it sends to an address of the
//! stack's own namespace, ends at sockets of that namespace which take any destination for theirs.
//!
//! They are made there and held by netd, which learns the destination from `getsockname` (TCP) or from
//! `IP_RECVORIGDSTADDR` (UDP) and decides. Rules and routes are the same whatever the plan is. Of the kernel it needs
//! `nf_tables` with `tproxy`, `socket` and `fib`, and routing by mark.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt as option};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, sockopt};

use crate::Error;
use crate::error::{Doing, errno};
use crate::netlink::{LOOPBACK, Netlink};
use crate::nft::{self, Chain, Expression, Family, Header, Hook, Meta, Queueing, Rejection, Rule, Table};
use crate::queue::{self, FIRST_FLAGS, MARK_AGAIN, MARK_RESET, MARK_UNREACHABLE, QUEUE, RST, SYN};

/// Mark of packets that are delivered here whatever their destination is.
pub(crate) const MARK: u32 = 0x696e;
/// The routing table for them.
pub(crate) const TABLE: u8 = 100;
/// Priority of the routing rule that leads there: after the table `local`, before `main`.
pub(crate) const RULE_PRIORITY: u32 = 100;
/// A port at which no transparent socket listens, so that only an established one is found.
const NOBODY: u16 = 1;
/// Of the chain: `mangle` (nft(8)), where a packet's mark still counts for its route.
const CHAIN_PRIORITY: i32 = -150;
/// Connections that wait to be accepted; `net.core.somaxconn` caps it at as much.
const BACKLOG: i32 = 4096;

/// The sockets that intercepted traffic arrives at: non-blocking, close-on-exec, and transparent, which means that
/// they may also send from any address.
#[derive(Debug)]
pub struct Intercepted {
    /// Listens; an accepted socket's own address is the destination that the container asked for.
    pub tcp4: OwnedFd,
    /// Tells the destination of each datagram in a control message, `IP_ORIGDSTADDR`.
    pub udp4: OwnedFd,
    /// Gets all ICMP messages for this namespace, with IP header; those of interest are echo requests. `None`
    /// without the privilege (`CAP_NET_RAW`): the kernel then answers for the stack's own addresses.
    pub icmp4: Option<OwnedFd>,
    /// As `tcp4`; `None` when the kernel has no IPv6.
    pub tcp6: Option<OwnedFd>,
    /// As `udp4`, with `IPV6_ORIGDSTADDR`.
    pub udp6: Option<OwnedFd>,
    /// As `icmp4`, but without IP header; may send from any address that `IPV6_PKTINFO` says.
    pub icmp6: Option<OwnedFd>,
    /// The queue in which the first packets of connections wait (a netlink socket); `None` where the kernel has
    /// none: connections are then accepted before it is known whether the other end is there.
    pub connections: Option<OwnedFd>,
}

impl Intercepted {
    /// The sockets in an order of their own, and which of the optional ones are among them: what it takes to pass
    /// them to another process.
    #[must_use]
    pub fn into_parts(self) -> (Vec<OwnedFd>, [bool; 5]) {
        let optional = [self.icmp4, self.tcp6, self.udp6, self.icmp6, self.connections];
        let there = optional.each_ref().map(Option::is_some);
        ([self.tcp4, self.udp4].into_iter().chain(optional.into_iter().flatten()).collect(), there)
    }

    /// The other way round; `None` when there are too few.
    #[must_use]
    pub fn from_parts(sockets: impl IntoIterator<Item = OwnedFd>, there: [bool; 5]) -> Option<Self> {
        let mut sockets = sockets.into_iter();
        let (tcp4, udp4) = sockets.next().zip(sockets.next())?;
        let [icmp4, tcp6, udp6, icmp6, connections] =
            there.map(|there| if there { sockets.next() } else { None });
        Some(Self { tcp4, udp4, icmp4, tcp6, udp6, icmp6, connections })
    }
}

/// Ports of the transparent listeners; IPv4 and IPv6 have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interception {
    pub(crate) tcp: u16,
    pub(crate) udp: u16,
}

impl Interception {
    /// The rules, for every packet that comes into the stack's namespace.
    pub(crate) fn table(self, queueing: Option<Queueing>) -> Table {
        use Expression::*;
        let mark = || [Constant(MARK.to_ne_bytes().to_vec()), SetMark, Accept];
        let transport =
            |protocol: Protocol| [Load(Meta::Transport), Equal(vec![protocol.as_raw().get() as u8])];
        let echo = |protocol, kind: u8| -> Rule {
            let kind = [Bytes { of: Header::Transport, offset: 0, length: 1, at: 0 }, Equal(vec![kind])];
            transport(protocol).into_iter().chain(kind).chain(mark()).collect()
        };
        let flags = |mask: u8, value: u8| {
            let load = Bytes { of: Header::Transport, offset: 13, length: 1, at: 0 };
            [load, Masked(vec![mask]), Equal(vec![value])]
        };
        let proxy = |protocol, port: u16| -> Rule {
            let to = [Constant(port.to_be_bytes().to_vec()), TransparentProxy];
            transport(protocol).into_iter().chain(to).chain(mark()).collect()
        };
        let passed_over = || {
            [
                vec![Load(Meta::InputInterface), Equal(LOOPBACK.to_ne_bytes().to_vec()), Accept],
                // What a bridge floods, broadcasts and multicasts.
                vec![Load(Meta::PacketType), Differs(vec![PACKET_HOST]), Accept],
            ]
        };
        let refusal =
            |mark: u32, how| vec![Load(Meta::Mark), Equal(mark.to_ne_bytes().to_vec()), Reject(how)];
        let rules = passed_over().into_iter().chain([
            refusal(MARK_RESET, Rejection::Reset),
            refusal(MARK_UNREACHABLE, Rejection::HostUnreachable),
            // IPv4 has `rp_filter` for this: a source of another network is not believed.
            vec![Load(Meta::Protocol), Equal(vec![NFPROTO_IPV6]), ReversePath, Equal(vec![0; 4]), Drop],
            // What an ordinary socket waits for: the name server's, and netd's to published ports.
            vec![SocketTransparent, Equal(vec![0]), Accept],
            echo(ipproto::ICMP, ICMP_ECHO),
            echo(ipproto::ICMPV6, ICMPV6_ECHO_REQUEST),
        ]);
        // Within a connection a socket that listens is none to be found: see the notes of `queue`.
        let within = queueing.map(|queueing| {
            let once = [Load(Meta::Mark), Differs(MARK_AGAIN.to_ne_bytes().to_vec())];
            let later = || flags(SYN | RST, 0).into_iter();
            let known = later().chain(proxy(ipproto::TCP, NOBODY)).collect();
            let unknown = transport(ipproto::TCP).into_iter().chain(later()).chain(once);
            [known, unknown.chain([Queue(queueing, QUEUE)]).collect()]
        });
        let rules = rules.chain(within.into_iter().flatten()).chain([
            proxy(ipproto::TCP, self.tcp),
            proxy(ipproto::UDP, self.udp),
            // Neither TCP nor UDP, and yet for such a socket: an ICMP error about what it sent.
            [SocketTransparent, Equal(vec![1])].into_iter().chain(mark()).collect(),
        ]);
        let rules = rules.collect();
        let hook = Hook::Prerouting;
        let chain = Chain { name: "prerouting", hook, priority: CHAIN_PRIORITY, rules };
        let queue = queueing.map(|queueing| {
            let new = transport(ipproto::TCP).into_iter().chain(flags(FIRST_FLAGS, SYN));
            let own = vec![SocketTransparent, Equal(vec![0]), Accept];
            let queued = new.chain([Queue(queueing, QUEUE)]).collect();
            let rules = passed_over().into_iter().chain([own, queued]).collect();
            Chain { name: "connections", hook, priority: CHAIN_PRIORITY - 1, rules }
        });
        let chains = queue.into_iter().chain([chain]).collect();
        Table { family: Family::Inet, name: "inception", sets: Vec::new(), chains }
    }
}

const PACKET_HOST: u8 = 0;
const NFPROTO_IPV6: u8 = 10;
/// Types of echo requests: RFC 792, RFC 4443.
const ICMP_ECHO: u8 = 8;
const ICMPV6_ECHO_REQUEST: u8 = 128;

/// Makes the sockets in the current network namespace, and says which ports they got.
pub(crate) fn listen() -> Result<(Intercepted, Interception), Error> {
    let any4 = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let any6 = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let doing = || "open the socket that intercepted connections arrive at";
    let tcp4 = transparent(any4(0), SocketType::STREAM).doing(doing)?;
    let tcp = port(&tcp4).doing(doing)?;
    let tcp6 = where_there_is_ipv6(transparent(any6(tcp), SocketType::STREAM)).doing(doing)?;
    let doing = || "open the socket that intercepted datagrams arrive at";
    let udp4 = transparent(any4(0), SocketType::DGRAM).doing(doing)?;
    let udp = port(&udp4).doing(doing)?;
    let udp6 = where_there_is_ipv6(transparent(any6(udp), SocketType::DGRAM)).doing(doing)?;
    let doing = || "open the socket that intercepted echo requests arrive at";
    let icmp4 = where_privileged(icmp4()).doing(doing)?;
    let icmp6 = if tcp6.is_some() { where_privileged(icmp6()).doing(doing)? } else { None };
    let connections = None;
    Ok((Intercepted { tcp4, udp4, icmp4, tcp6, udp6, icmp6, connections }, Interception { tcp, udp }))
}

/// Installs the rules, with a queue for new connections where the kernel has one; and opens that queue.
///
/// # Errors
/// When the rules are not to be had even without a queue.
pub(crate) fn install(ports: Interception) -> Result<Option<OwnedFd>, Error> {
    let queue = match queue::open() {
        Ok(queue) => queue,
        Err(error) => {
            tracing::debug!(%error, "no queue for new connections");
            return nft::install(&ports.table(None)).map(|()| None);
        }
    };
    for queueing in [Queueing::Native, Queueing::Target] {
        match nft::install(&ports.table(Some(queueing))) {
            Ok(()) => return Ok(Some(queue)),
            Err(error) => tracing::debug!(%error, ?queueing, "no queue for new connections"),
        }
    }
    nft::install(&ports.table(None)).map(|()| None)
}

/// Delivers marked packets to this namespace's sockets.
pub(crate) fn route(netlink: &mut Netlink, ipv6: bool) -> Result<(), Error> {
    use netlink_packet_route::AddressFamily::{Inet, Inet6};
    for family in if ipv6 { &[Inet, Inet6][..] } else { &[Inet] } {
        netlink.deliver_marked(*family, MARK, TABLE, RULE_PRIORITY)?;
    }
    netlink.flush()
}

fn transparent(address: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = open(family, kind, None)?;
    // The same flag as IPV6_TRANSPARENT, but of a raw socket.
    setsockopt(&socket, option::IpTransparent, &true).map_err(errno)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::DGRAM {
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, option::Ipv4OrigDstAddr, &true),
            SocketAddr::V6(_) => setsockopt(&socket, option::Ipv6OrigDstAddr, &true),
        }
        .map_err(errno)?;
    }
    rustix::net::bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn icmp4() -> rustix::io::Result<OwnedFd> {
    let socket = open(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    setsockopt(&socket, option::IpTransparent, &true).map_err(errno)?;
    Ok(socket)
}

fn icmp6() -> rustix::io::Result<OwnedFd> {
    let socket = open(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
    // What transparency would allow a raw socket.
    sockopt::set_ipv6_freebind(&socket, true)?;
    Ok(socket)
}

fn open(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol)
}

/// The port that the kernel chose.
fn port(socket: &OwnedFd) -> rustix::io::Result<u16> {
    let address = SocketAddr::try_from(rustix::net::getsockname(socket)?)?;
    Ok(address.port())
}

fn where_there_is_ipv6(socket: rustix::io::Result<OwnedFd>) -> rustix::io::Result<Option<OwnedFd>> {
    absent_if(socket, Errno::AFNOSUPPORT)
}

fn where_privileged(socket: rustix::io::Result<OwnedFd>) -> rustix::io::Result<Option<OwnedFd>> {
    absent_if(socket, Errno::PERM)
}

fn absent_if(socket: rustix::io::Result<OwnedFd>, reason: Errno) -> rustix::io::Result<Option<OwnedFd>> {
    match socket {
        Err(errno) if errno == reason => Ok(None),
        other => other.map(Some),
    }
}
