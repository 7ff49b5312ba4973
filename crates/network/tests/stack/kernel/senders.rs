//! A container sends as itself only.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};

use super::*;

/// What was sent with a neighbour's address is lost: a later datagram arrives first.
pub(super) fn sources(hub: &mut Hub) {
    for v6 in [false, true].into_iter().filter(|v6| !v6 || has_ipv6()) {
        let (web, app) = (hub.address("web", "front", v6), hub.address("app", "front", v6));
        let receiver = UdpSocket::bind((gateway(hub, v6), 0)).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let to = receiver.local_addr().unwrap();
        let arrives = |word: &[u8], source: IpAddr| {
            let mut bytes = [0; 16];
            let (length, from) = receiver.recv_from(&mut bytes).unwrap();
            assert_eq!((&bytes[..length], from.ip()), (word, source));
        };
        // Neighbours know each other from then on, and nothing waits for that.
        hub.udp("web", (to.ip(), to.port())).send(b"first").unwrap();
        arrives(b"first", web);
        let spoofed = hub.within("web", || UdpSocket::from(transparent((app, 0).into(), SockType::Datagram)));
        spoofed.send_to(b"as app", to).unwrap();
        hub.udp("web", (to.ip(), to.port())).send(b"as web").unwrap();
        arrives(b"as web", web);
        // Nor does it reach the outside so.
        let outside = if v6 { OUTSIDE6 } else { OUTSIDE };
        let intercepted = if v6 { hub.sockets.udp6.as_ref().unwrap() } else { &hub.sockets.udp4 };
        spoofed.send_to(b"as app", (outside, 9)).unwrap();
        hub.udp("web", (outside, 9)).send(b"as web").unwrap();
        assert_eq!(receive(intercepted).0, b"as web");
        // That was not for want of trying: it is the neighbour's to send.
        let own = hub.within("app", || UdpSocket::from(transparent((app, 0).into(), SockType::Datagram)));
        own.send_to(b"as app", to).unwrap();
        arrives(b"as app", app);
    }
}

/// An address that a container takes is not found at its link.
pub(super) fn neighbours(hub: &mut Hub) {
    let taken = Ipv4Addr::new(10, 211, 0, 99);
    let taken6 = hub.plan.networks[0].counterpart(taken).map(IpAddr::from);
    for address in [Some(IpAddr::from(taken)), taken6].into_iter().flatten() {
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        let setting = format!("/proc/sys/net/{family}/neigh/br-front/retrans_time_ms");
        std::fs::write(setting, "50").unwrap();
        hub.within("web", || add_address(address));
        let listener = hub.within("web", || TcpListener::bind((address, 80)).unwrap());
        let error = TcpStream::connect_timeout(&(address, 80).into(), PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
        drop(listener);
        let own = hub.address("web", "front", address.is_ipv6());
        let _listener = hub.within("web", || TcpListener::bind((own, 80)).unwrap());
        TcpStream::connect_timeout(&(own, 80).into(), PATIENCE).unwrap();
    }
}

fn gateway(hub: &Hub, v6: bool) -> IpAddr {
    let network = &hub.plan.networks[0];
    if v6 { network.v6.unwrap().gateway.into() } else { network.gateway.into() }
}

/// Gives the first link of this network namespace another address.
fn add_address(address: IpAddr) {
    /// The index that the first link of every container has.
    const FIRST: u32 = 1000;
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => netlink_packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => netlink_packet_route::AddressFamily::Inet6,
    };
    message.header.index = FIRST;
    message.header.prefix_len = 24;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewAddress(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let socket = nix::sys::socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .unwrap();
    rustix::net::send(&socket, &bytes, rustix::net::SendFlags::empty()).unwrap();
    let mut buffer = vec![0; 1 << 12];
    rustix::net::recv(&socket, &mut buffer[..], rustix::net::RecvFlags::empty()).unwrap();
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buffer).unwrap().payload;
    assert!(matches!(&answer, NetlinkPayload::Error(error) if error.code.is_none()), "{answer:?}");
}
