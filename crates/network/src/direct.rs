//! Published ports that the service itself accepts on (`mode: direct`): sockets of the host's network namespace that
//! take the place of those that a service binds.
//!
//! Such a socket is a piece of the host's namespace in the hands of a container. So that it is only what was published,
//! it has a filter that cannot be taken off and that drops what a connection from it to somewhere else begins with: it
//! accepts and does not connect. Some kernels let nobody but root put one on a TCP socket ([`confinable`]). (A
//! UDP socket can send to everywhere; there is nothing to be filtered.)

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sched::{CloneFlags, setns};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::Error;
use crate::error::Doing;
use crate::plan::{Mode, PublishedPort};
use crate::publish::{BACKLOG, refusal};

/// Opens a published port: a socket that is bound, close-on-exec, and not connected to anything, and the address it got.
///
/// A TCP socket listens already, before the service does, because one that is only bound keeps nobody else off the
/// port (`SO_REUSEADDR`, without which it could not be bound again soon after). So connections wait from the
/// beginning, as they do while a service is restarted.
///
/// # Errors
/// As [`crate::publish::bind`].
pub fn bind(port: &PublishedPort) -> Result<(OwnedFd, SocketAddr), Error> {
    let address = SocketAddr::new(port.host_ip, port.host_port);
    let open = || -> io::Result<OwnedFd> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = if port.is_udp() { SocketType::DGRAM } else { SocketType::STREAM };
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        if address.is_ipv6() {
            // So that `0.0.0.0` and `[::]` can be published side by side.
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if !port.is_udp() {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            match confine(socket.as_fd()) {
                // See `confinable`, which says so.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                confined => confined?,
            }
        }
        rustix::net::bind(&socket, &address)?;
        if !port.is_udp() {
            rustix::net::listen(&socket, BACKLOG)?;
        }
        Ok(socket)
    };
    let socket = open().map_err(|error| refusal(address, error))?;
    let bound = rustix::net::getsockname(&socket).doing(|| format!("read the address of port {address}"))?;
    let bound = SocketAddr::try_from(bound).unwrap_or(address);
    Ok((socket, bound))
}

/// A socket of the network namespace `netns` that listens on all its addresses, non-blocking and close-on-exec: where
/// others reach the port by the container's address. More than one can listen on a port, for a moment in which one takes
/// over from another.
///
/// # Errors
/// When the namespace cannot be entered or left again, or the port is taken there.
pub fn listen_in(netns: BorrowedFd<'_>, port: u16) -> Result<OwnedFd, Error> {
    let home = File::open("/proc/thread-self/ns/net").doing(|| "open the current network namespace")?;
    setns(netns, CloneFlags::CLONE_NEWNET).doing(|| "enter the container's network namespace")?;
    let open = |address: SocketAddr| -> rustix::io::Result<OwnedFd> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, false)?;
        }
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    let socket = match open((Ipv6Addr::UNSPECIFIED, port).into()) {
        // A kernel without IPv6.
        Err(Errno::AFNOSUPPORT) => open((Ipv4Addr::UNSPECIFIED, port).into()),
        socket => socket,
    };
    setns(home, CloneFlags::CLONE_NEWNET).doing(|| "leave the container's network namespace")?;
    socket.doing(|| format!("listen on port {port} of the container"))
}

/// Whether two descriptors are of the same socket.
#[must_use]
pub fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let cookie = sockopt::socket_cookie;
    // What is no socket has none.
    matches!((cookie(one), cookie(other)), (Ok(one), Ok(other)) if one == other)
}

/// Where a socket that is bound to `address` is connected to from its own host.
#[must_use]
pub fn reached_at(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Whether TCP sockets can be kept from connecting to anywhere.
///
/// # Errors
/// Why not: newer kernels want CAP_NET_ADMIN in the host's namespace for a filter on a TCP socket.
pub fn confinable() -> Result<(), Error> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
    let confined = socket.map_err(io::Error::from).and_then(|socket| confine(socket.as_fd()));
    confined.doing(|| "put a filter on a TCP socket")
}

fn confine(socket: BorrowedFd<'_>) -> io::Result<()> {
    sys::socket::filter_for_good(socket, &drop_answers())
}

/// Drops segments with both SYN and ACK, with which a connection is answered that was begun from here (RFC 9293,
/// section 3.5), and keeps all others.
fn drop_answers() -> Vec<u8> {
    // Codes of `<linux/bpf_common.h>`: load a byte, and, jump if equal, return.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// Offset of the flags in a TCP header.
    const FLAGS: u32 = 13;
    const SYN_AND_ACK: u32 = 0x12;
    let program: [(u16, u8, u8, u32); 5] = [
        (LOAD_BYTE, 0, 0, FLAGS),
        (AND, 0, 0, SYN_AND_ACK),
        (JUMP_IF_EQUAL, 0, 1, SYN_AND_ACK),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, u32::MAX),
    ];
    let bytes = program.iter().flat_map(|(code, if_true, if_false, operand)| {
        let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), operand.to_ne_bytes());
        [a, b, *if_true, *if_false, c, d, e, f]
    });
    bytes.collect()
}

/// Bytes of the longest address that [`address`] reads.
pub const LONGEST_ADDRESS: usize = size_of::<libc::sockaddr_in6>();

/// What a `struct sockaddr` of this content means to `bind(2)`, if it is an address of IPv4 or IPv6. The bytes are a
/// service's.
#[must_use]
pub fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    let family = u16::from_ne_bytes(*family);
    if family == AddressFamily::INET.as_raw() {
        // Eight bytes of padding follow, which have to be there.
        let (address, _) = rest.get(..12)?.split_first_chunk::<4>()?;
        return Some((Ipv4Addr::from(*address), port).into());
    }
    if family == AddressFamily::INET6.as_raw() {
        // The scope at the end may be missing (RFC 2133).
        let (address, _) = rest.get(4..)?.split_first_chunk::<16>()?;
        return Some((Ipv6Addr::from(*address), port).into());
    }
    None
}

/// Which of a service's ports a socket that it binds to `address` stands for: a direct one with that port inside, and of
/// those the one of the same family, if there is one. The rest of the address does not matter: the addresses in there
/// are not the host's.
#[must_use]
pub fn published_at<'a>(
    mut ports: impl Iterator<Item = &'a PublishedPort> + Clone,
    address: SocketAddr,
    udp: bool,
) -> Option<&'a PublishedPort> {
    let meant = |port: &&PublishedPort| {
        port.mode == Mode::Direct && port.container_port == address.port() && port.is_udp() == udp
    };
    let of_family = |port: &&PublishedPort| meant(port) && port.host_ip.is_ipv4() == address.is_ipv4();
    ports.clone().find(of_family).or_else(|| ports.find(meant))
}

/// A socket that a service is about to bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unbound {
    /// Whether it is one for datagrams.
    pub udp: bool,
    /// Whether it is one of IPv4.
    pub ipv4: bool,
}

/// Looks at a service's file; `None` for what is no socket, or one of another protocol than TCP and UDP, and for a
/// socket that has a port already.
#[must_use]
pub fn unbound(socket: BorrowedFd<'_>) -> Option<Unbound> {
    /// `IPPROTO_MPTCP`, which languages use for listeners on their own accord; without a partner it is TCP.
    const MPTCP: u32 = 262;
    let ipv4 = match sockopt::socket_domain(socket).ok()? {
        AddressFamily::INET => true,
        AddressFamily::INET6 => false,
        _ => return None,
    };
    let protocol = sockopt::socket_protocol(socket).ok()?.map(|protocol| protocol.as_raw().get());
    let udp = match sockopt::socket_type(socket).ok()? {
        SocketType::STREAM if matches!(protocol, Some(6 | MPTCP)) => false,
        SocketType::DGRAM if protocol == Some(17) => true,
        _ => return None,
    };
    let here = SocketAddr::try_from(rustix::net::getsockname(socket).ok()?).ok()?;
    (here.port() == 0).then_some(Unbound { udp, ipv4 })
}

/// Options that become what the service set them to: level and name. Not among them are `SO_REUSEADDR`, which must stay on
/// so that the port can be bound soon after the stack ended; `SO_REUSEPORT` and `IPV6_V6ONLY`, which mean something
/// before `bind` only; and what takes a right in the host's namespace.
const CARRIED: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
];

/// Makes the host's socket what the service made its own: options, sizes of buffers where it chose them, and whether calls
/// wait. What is the same already is not touched. An option that one of the two does not have, because they are of
/// different families, is passed over.
///
/// # Errors
/// The first that could not be set; the others are set all the same.
pub fn carry_over(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Error> {
    let mut result = Ok(());
    let mut keep = |tried: io::Result<()>, what: &dyn Fn() -> String| {
        if let (Ok(()), Err(error)) = (&result, tried) {
            result = Err(Error::system(what(), error));
        }
    };
    for (level, name) in CARRIED {
        let values = (sys::socket::option(from, *level, *name), sys::socket::option(to, *level, *name));
        if let (Ok(wanted), Ok(present)) = values
            && wanted != present
        {
            let set = sys::socket::set_option(to, *level, *name, &wanted);
            keep(set, &|| format!("carry over option {name} of level {level}"));
        }
    }
    // Which of the sizes was chosen and not left to the kernel: SOCK_SNDBUF_LOCK 1 and SOCK_RCVBUF_LOCK 2. Linux 5.14.
    let chosen = sys::socket::option(from, libc::SOL_SOCKET, libc::SO_BUF_LOCK).unwrap_or_default();
    let chosen = chosen.first_chunk().map_or(0, |chosen| i32::from_ne_bytes(*chosen));
    // The kernel doubles what is asked for, and tells the double (socket(7)).
    if chosen & 1 != 0 {
        let set = sockopt::socket_send_buffer_size(from)
            .and_then(|size| sockopt::set_socket_send_buffer_size(to, size / 2));
        keep(set.map_err(io::Error::from), &|| "carry over the size of the send buffer".into());
    }
    if chosen & 2 != 0 {
        let set = sockopt::socket_recv_buffer_size(from)
            .and_then(|size| sockopt::set_socket_recv_buffer_size(to, size / 2));
        keep(set.map_err(io::Error::from), &|| "carry over the size of the receive buffer".into());
    }
    let flags = rustix::fs::fcntl_getfl(from).and_then(|flags| rustix::fs::fcntl_setfl(to, flags));
    keep(flags.map_err(io::Error::from), &|| "carry over the flags of the socket".into());
    result
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use proptest::prelude::*;

    use super::*;
    use crate::plan::Protocol;

    fn direct(host_ip: &str, container_port: u16) -> PublishedPort {
        let port = PublishedPort::tcp(host_ip.parse().unwrap(), 0, container_port);
        PublishedPort { mode: Mode::Direct, ..port }
    }

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let mut v4 = AddressFamily::INET.as_raw().to_ne_bytes().to_vec();
        v4.extend([0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(address(&v4), Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(address(&v4[..15]), None);
        let mut v6 = AddressFamily::INET6.as_raw().to_ne_bytes().to_vec();
        v6.extend([1, 187, 9, 9, 9, 9]);
        v6.extend([0; 15]);
        v6.extend([1, 0, 0, 0, 0]);
        assert_eq!(v6.len(), LONGEST_ADDRESS);
        assert_eq!(address(&v6), Some("[::1]:443".parse().unwrap()));
        assert_eq!(address(&v6[..24]), address(&v6));
        assert_eq!(address(&v6[..23]), None);
        let mut unix = AddressFamily::UNIX.as_raw().to_ne_bytes().to_vec();
        unix.extend([0; 100]);
        assert_eq!(address(&unix), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_address_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(address) = address(&bytes) {
                prop_assert_eq!(address.port().to_be_bytes().to_vec(), &bytes[2..4]);
            }
        }
    }

    #[test]
    fn a_port_is_found_by_number_protocol_and_family() {
        let udp = PublishedPort { protocol: Protocol::Udp, ..direct("127.0.0.1", 53) };
        let proxied = PublishedPort { mode: Mode::Proxy, ..direct("127.0.0.1", 90) };
        let ports = [direct("0.0.0.0", 80), direct("::", 80), direct("::", 81), udp, proxied];
        let at = |address: &str, udp| published_at(ports.iter(), address.parse().unwrap(), udp);
        assert_eq!(at("0.0.0.0:80", false), Some(&ports[0]));
        assert_eq!(at("[::]:80", false), Some(&ports[1]));
        assert_eq!(at("10.0.0.1:81", false), Some(&ports[2]));
        assert_eq!(at("0.0.0.0:53", true), Some(&ports[3]));
        assert_eq!(at("0.0.0.0:53", false), None);
        assert_eq!(at("0.0.0.0:90", false), None);
        assert_eq!(at("0.0.0.0:0", false), None);
    }

    #[test]
    fn sockets_are_known_by_what_they_are() {
        let of = |family, kind| unbound(rustix::net::socket(family, kind, None).unwrap().as_fd());
        let (inet, inet6) = (AddressFamily::INET, AddressFamily::INET6);
        assert_eq!(of(inet, SocketType::STREAM), Some(Unbound { udp: false, ipv4: true }));
        assert_eq!(of(inet6, SocketType::DGRAM), Some(Unbound { udp: true, ipv4: false }));
        assert_eq!(of(AddressFamily::UNIX, SocketType::STREAM), None);
        let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(unbound(bound.as_fd()), None);
        assert_eq!(unbound(File::open("/dev/null").unwrap().as_fd()), None);
    }

    #[test]
    fn a_port_accepts_and_does_not_connect() {
        let (socket, at) = bind(&direct("127.0.0.1", 80)).unwrap();
        assert!(matches!(
            bind(&PublishedPort { host_port: at.port(), ..direct("127.0.0.1", 80) }),
            Err(Error::PortTaken { .. })
        ));
        let client = TcpStream::connect(at).unwrap();
        let (accepted, from) = TcpListener::from(socket.try_clone().unwrap()).accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        drop(client);
        assert_eq!((&accepted).read(&mut [0; 1]).unwrap(), 0);
        // Neither it nor what it accepted can be made one that connects.
        if confinable().is_err() {
            return;
        }
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        for socket in [socket, accepted.into()] {
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Read).unwrap();
            rustix::net::connect_unspec(&socket).unwrap();
            rustix::io::ioctl_fionbio(&socket, true).unwrap();
            let there = elsewhere.local_addr().unwrap();
            assert_eq!(rustix::net::connect(&socket, &there), Err(Errno::INPROGRESS));
            let connected = rustix::event::PollFd::new(&socket, rustix::event::PollFlags::OUT);
            // The answer of the loopback interface has been there before `connect` returned.
            let at_once = rustix::time::Timespec::default();
            assert_eq!(rustix::event::poll(&mut [connected], Some(&at_once)), Ok(0));
        }
    }

    #[test]
    fn options_come_along() {
        let of_service = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_tcp_nodelay(&of_service, true).unwrap();
        sockopt::set_socket_keepalive(&of_service, true).unwrap();
        sockopt::set_tcp_keepcnt(&of_service, 3).unwrap();
        sockopt::set_socket_recv_buffer_size(&of_service, 20_000).unwrap();
        sockopt::set_socket_linger(&of_service, Some(std::time::Duration::from_secs(2))).unwrap();
        rustix::io::ioctl_fionbio(&of_service, true).unwrap();
        let (socket, at) = bind(&direct("127.0.0.1", 80)).unwrap();
        let untouched = sockopt::socket_send_buffer_size(&socket).unwrap();
        carry_over(of_service.as_fd(), socket.as_fd()).unwrap();
        assert_eq!(sockopt::socket_recv_buffer_size(&socket).unwrap(), 40_000);
        assert_eq!(sockopt::socket_send_buffer_size(&socket).unwrap(), untouched);
        assert_eq!(sockopt::socket_linger(&socket).unwrap(), Some(std::time::Duration::from_secs(2)));
        assert!(rustix::fs::fcntl_getfl(&socket).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
        assert!(sockopt::socket_reuseaddr(&socket).unwrap());
        let _client = TcpStream::connect(at).unwrap();
        let (accepted, _) = TcpListener::from(socket).accept().unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap());
        assert_eq!(sockopt::tcp_keepcnt(&accepted).unwrap(), 3);
    }
}
