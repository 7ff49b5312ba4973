//! Echo requests of containers.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use network::egress::Policy;
use network::netd::Event;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvmsg,
    setsockopt, sockopt,
};

use super::{PEER, Site, VIRTUAL, both};

fn socket(site: &Site, from: &str, to: IpAddr) -> UdpSocket {
    socket_with(site, from, to, None)
}

/// One whose identifier is the port of `own`.
fn socket_with(site: &Site, from: &str, to: IpAddr, own: Option<SocketAddr>) -> UdpSocket {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = site.within(from, || {
        nix::sys::socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol).unwrap()
    });
    if let Some(own) = own {
        rustix::net::bind(&socket, &own).unwrap();
    }
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(super::PATIENCE)).unwrap();
    socket.connect((to, 0)).unwrap();
    socket
}

/// An echo request with its number.
fn send(socket: &UdpSocket, to: IpAddr, number: u8) {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    socket.send(&[kind, 0, 0, 0, 0, 0, 0, number, b'?']).unwrap();
}

/// Whether a request is answered: the reply has its number and data.
fn is_answered(site: &Site, from: &str, to: IpAddr) {
    let socket = socket(site, from, to);
    for number in 1..4 {
        send(&socket, to, number);
        let mut reply = [0; 64];
        let length = socket.recv(&mut reply).unwrap();
        let kind = if to.is_ipv4() { 0 } else { 129 };
        assert_eq!((reply[0], length, reply[7], reply[8]), (kind, 9, number, b'?'), "{from} {to}");
    }
}

/// Whether a request is answered with "communication administratively prohibited".
fn is_prohibited(site: &Site, from: &str, to: IpAddr) {
    let socket = socket(site, from, to);
    match to {
        IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap(),
        IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap(),
    }
    send(&socket, to, 1);
    let error = socket.recv(&mut [0; 64]).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::PermissionDenied),
        "{from} {to}: {error}"
    );
    let mut control = nix::cmsg_space!([u8; 64]);
    let flags = MsgFlags::MSG_ERRQUEUE;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut [], Some(&mut control), flags).unwrap();
    let told = message.cmsgs().unwrap().find_map(|one| match one {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            Some((error.ee_type, error.ee_code))
        }
        _ => None,
    });
    let expected = if to.is_ipv4() { (3, 13) } else { (1, 1) };
    assert_eq!(told, Some(expected), "{from} {to}");
}

fn pings(site: &mut Site) {
    for (from, to) in [("web", PEER), ("app", PEER), ("web", VIRTUAL), ("web", Ipv4Addr::new(10, 211, 0, 1))]
    {
        both(to).for_each(|to| is_answered(site, from, to));
    }
    // Another network's gateway and virtual address.
    for to in [Ipv4Addr::new(10, 211, 2, 1), Ipv4Addr::new(10, 211, 2, 99)] {
        both(to).for_each(|to| is_prohibited(site, "web", to));
    }
    both(VIRTUAL).for_each(|to| is_prohibited(site, "far", to));
    site.endpoint("web").egress = Policy::None;
    site.configure();
    for to in both(PEER) {
        is_prohibited(site, "web", to);
        let refused = |event: &Event| {
            matches!(event, Event::Refused { container, destination, protocol, .. }
                if container == "web" && destination.ip() == to && protocol == "icmp")
        };
        site.event("a refusal", refused);
        is_answered(site, "app", to);
    }
    site.endpoint("web").egress = Policy::All;
    site.configure();
}

pub fn privileged(site: &mut Site) {
    pings(site);
    // Programs with the same identifier, in two containers: to each its own replies, and no other's.
    let same = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 77));
    let sockets = ["web", "app"].map(|from| socket_with(site, from, PEER.into(), Some(same)));
    for (socket, number) in sockets.iter().zip(1..) {
        send(socket, PEER.into(), number);
    }
    // Whatever came before this has come.
    is_answered(site, "web", PEER.into());
    for (socket, number) in sockets.iter().zip(1..) {
        let mut reply = [0; 64];
        socket.recv(&mut reply).unwrap();
        assert_eq!(reply[7], number);
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut reply).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

pub fn unprivileged(site: &mut Site) {
    // By default nobody may, and it is said.
    both(PEER).for_each(|to| is_prohibited(site, "web", to));
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
    pings(site);
}
