//! What the kernel is told to do, without netd: interception, addresses, and faults made on purpose. One process is
//! the hub of a stack and, by turns, stands in the containers' network namespaces.

mod faults;
mod senders;

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use network::intercept::Intercepted;
use network::link::Namespaces;
use network::plan::{Group, NetworkPlan, Subnet6, VirtualAddress};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrIn, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::event::{PollFd, PollFlags, poll};
use sys::process::{namespace, spawn};

use super::fixture::{endpoint, map_ids, network, timed};

const PATIENCE: Duration = Duration::from_secs(5);
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OUTSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// A wired stack, in whose network namespace this process is.
struct Hub {
    home: OwnedFd,
    plan: NetworkPlan,
    namespaces: Namespaces,
    sockets: Intercepted,
}

type Check = fn(&mut Hub);

const CHECKS: &[(&str, Check)] = &[
    ("TCP to elsewhere arrives with its destination", tcp_arrives),
    ("UDP to elsewhere arrives with its destination", udp_arrives),
    ("echo requests arrive, and are left to us to answer", echo_requests_arrive),
    ("the name server's queries are not intercepted", queries_pass),
    ("what is on an internal network only has no way out", internal_is_unreachable),
    ("virtual addresses come and go", virtual_addresses),
    ("a client's own address comes into the stack, and answers come back", real_addresses),
    ("an MTU is kept to by both sides", mtu),
    ("links without IPv6 have none", ipv6_only_where_planned),
    ("rules and listeners can be replaced", replaced),
    ("where interception is not to be had, the error says so", no_interception),
    ("a neighbour's address is nobody else's to send from", senders::sources),
    ("an address that a container takes is not found there", senders::neighbours),
    ("a partition cuts, and is healed", faults::partition),
    ("a rate is set on both ends, survives a new link, and is healed", faults::rate),
    ("without netem a delay is refused with a hint", faults::delay),
];

/// Before any thread exists.
pub fn run() {
    let mapped = rustix::pipe::pipe().unwrap();
    let child = spawn(namespace::USER | namespace::NETWORK, || {
        rustix::io::read(&mapped.0, &mut [0]).unwrap();
        let mut hub = Hub::up();
        for (name, check) in CHECKS {
            timed(name, || check(&mut hub));
        }
        0
    })
    .unwrap();
    map_ids(child.pid);
    rustix::io::write(&mapped.1, &[1]).unwrap();
    let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None).unwrap();
    assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
}

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// `front` has IPv6 and an MTU of its own, `back` is internal.
fn plan() -> NetworkPlan {
    let mut front = network("front", 0, false);
    front.mtu = Some(1400);
    if has_ipv6() {
        let subnet = Ipv6Addr::new(0xfd00, 211, 0, 0, 0, 0, 0, 0);
        let gateway = Ipv6Addr::new(0xfd00, 211, 0, 0, 0, 0, 0x0ad3, 1);
        front.v6 = Some(Subnet6 { subnet, prefix: 64, gateway });
    }
    let mut endpoints = vec![
        endpoint("web", &[("front", 0, 2)], &[]),
        endpoint("app", &[("back", 1, 3), ("front", 0, 3)], &[]),
        endpoint("db", &[("back", 1, 2)], &[]),
    ];
    for interface in endpoints.iter_mut().flat_map(|endpoint| &mut endpoint.interfaces) {
        if interface.network == "front" {
            interface.address6 = front.counterpart(interface.address);
        }
    }
    NetworkPlan { networks: vec![front, network("back", 1, true)], endpoints, groups: Vec::new() }
}

impl Hub {
    fn up() -> Self {
        let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap().into();
        let mut namespaces = Namespaces::open().unwrap();
        let plan = plan();
        namespaces.apply(&plan).unwrap();
        let mut sockets = namespaces.intercept().unwrap();
        // Nobody reads the queue here: closed, it lets everything pass.
        sockets.connections = None;
        Self { home, plan, namespaces, sockets }
    }

    /// Does something in a container's network namespace.
    fn within<T>(&self, container: &str, body: impl FnOnce() -> T) -> T {
        setns(self.namespaces.get(container).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let result = body();
        setns(&self.home, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    fn connect(&self, container: &str, to: (IpAddr, u16)) -> std::io::Result<TcpStream> {
        self.within(container, || TcpStream::connect_timeout(&to.into(), PATIENCE))
    }

    fn udp(&self, container: &str, to: (IpAddr, u16)) -> UdpSocket {
        self.within(container, || {
            let any: IpAddr =
                if to.0.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(to).unwrap();
            socket
        })
    }

    fn address(&self, container: &str, network: &str, v6: bool) -> IpAddr {
        let endpoint = self.plan.endpoints.iter().find(|one| one.service == container).unwrap();
        let link = endpoint.interfaces.iter().find(|one| one.network == network).unwrap();
        if v6 { link.address6.unwrap().into() } else { link.address.into() }
    }
}

/// Whether there is something to read within the patience of a test.
fn ready(socket: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    poll(&mut polled, Some(&timeout)).unwrap() == 1
}

/// The next connection of a listener that is left open.
fn accept(listener: &OwnedFd) -> TcpStream {
    assert!(ready(listener), "no connection");
    let stream = TcpStream::from(rustix::net::accept(listener).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A datagram, its destination and its source.
fn receive(socket: &OwnedFd) -> (Vec<u8>, SocketAddr, SocketAddr) {
    assert!(ready(socket), "no datagram");
    let mut buffer = [0; 2048];
    let mut control = nix::cmsg_space!(nix::libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())
            .unwrap();
    let destination = message.cmsgs().unwrap().find_map(|one| match one {
        ControlMessageOwned::Ipv4OrigDstAddr(to) => {
            let to = SockaddrIn::from(to);
            Some(SocketAddr::from((to.ip(), to.port())))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(to) => {
            let to = nix::sys::socket::SockaddrIn6::from(to);
            Some(SocketAddr::from((to.ip(), to.port())))
        }
        _ => None,
    });
    let source = message.address.map(|from| match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
        (Some(from), _) => SocketAddr::from((from.ip(), from.port())),
        (_, Some(from)) => SocketAddr::from((from.ip(), from.port())),
        _ => panic!("{from:?}"),
    });
    let (length, source) = (message.bytes, source.unwrap());
    (buffer[..length].to_vec(), destination.unwrap(), source)
}

fn tcp_arrives(hub: &mut Hub) {
    arrives_over_tcp(hub, "web", OUTSIDE, &hub.sockets.tcp4);
    // Also from a container whose first network is internal, and for an address of the stack that is nobody's port.
    arrives_over_tcp(hub, "app", OUTSIDE, &hub.sockets.tcp4);
    arrives_over_tcp(hub, "web", hub.plan.networks[0].gateway.into(), &hub.sockets.tcp4);
    if let Some(tcp6) = &hub.sockets.tcp6 {
        arrives_over_tcp(hub, "web", OUTSIDE6, tcp6);
        arrives_over_tcp(hub, "app", OUTSIDE6, tcp6);
    }
}

fn arrives_over_tcp(hub: &Hub, from: &str, to: IpAddr, listener: &OwnedFd) {
    let mut client = hub.connect(from, (to, 80)).unwrap();
    let mut stream = accept(listener);
    assert_eq!(stream.local_addr().unwrap(), SocketAddr::from((to, 80)));
    assert_eq!(stream.peer_addr().unwrap(), client.local_addr().unwrap());
    client.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    stream.write_all(b"pong").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
}

fn udp_arrives(hub: &mut Hub) {
    arrives_over_udp(hub, OUTSIDE, &hub.sockets.udp4);
    if let Some(udp6) = &hub.sockets.udp6 {
        arrives_over_udp(hub, OUTSIDE6, udp6);
    }
}

fn arrives_over_udp(hub: &Hub, to: IpAddr, socket: &OwnedFd) {
    let client = hub.udp("web", (to, 123));
    client.send(b"time?").unwrap();
    let (bytes, destination, source) = receive(socket);
    assert_eq!((&bytes[..], destination), (&b"time?"[..], SocketAddr::from((to, 123))));
    assert_eq!(source, client.local_addr().unwrap());
    // The answer comes from where the question went.
    let answerer = transparent(destination, SockType::Datagram);
    rustix::net::sendto(&answerer, b"late", rustix::net::SendFlags::empty(), &source).unwrap();
    let mut answer = [0; 4];
    client.recv(&mut answer).unwrap();
    assert_eq!(&answer, b"late");
}

/// A socket of the stack's namespace that has somebody else's address.
fn transparent(address: SocketAddr, kind: SockType) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = nix::sys::socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::IpTransparent, &true).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0)).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    socket
}

fn echo_requests_arrive(hub: &mut Hub) {
    let raw = hub.sockets.icmp4.as_ref().unwrap();
    for to in [Ipv4Addr::new(192, 0, 2, 1), hub.plan.networks[0].gateway] {
        let ping = ping_socket(hub, AddressFamily::Inet, SockProtocol::Icmp, to.into());
        // Type, code, checksum, identifier, number, data. Checksum and identifier are the kernel's business.
        ping.send(&[8, 0, 0, 0, 0, 0, 0, 1, b'?']).unwrap();
        let request = next_raw(raw, |bytes| bytes[20] == 8);
        assert_eq!(request[16..20], to.octets());
        // If the kernel had answered, that answer would be the first to be read.
        let mut reply = vec![0, 0, 0, 0, request[24], request[25], 0, 1, b'!'];
        let sum = checksum(&reply);
        reply[2..4].copy_from_slice(&sum);
        let from = nix::libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: nix::libc::in_addr { s_addr: u32::from(to).to_be() },
            ipi_addr: nix::libc::in_addr { s_addr: 0 },
        };
        let client = SockaddrIn::new(request[12], request[13], request[14], request[15], 0);
        let parts = [std::io::IoSlice::new(&reply)];
        let control = [ControlMessage::Ipv4PacketInfo(&from)];
        sendmsg(raw.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&client)).unwrap();
        let mut answer = [0; 64];
        let length = ping.recv(&mut answer).unwrap();
        assert_eq!(answer[length - 1], b'!', "{:?}", &answer[..length]);
    }
    let Some(raw) = &hub.sockets.icmp6 else { return };
    let Some(gateway) = hub.plan.networks[0].v6.map(|v6| v6.gateway) else { return };
    for to in [OUTSIDE6, gateway.into()] {
        let ping = ping_socket(hub, AddressFamily::Inet6, SockProtocol::IcmpV6, to);
        ping.send(&[128, 0, 0, 0, 0, 0, 0, 1, b'?']).unwrap();
        assert_eq!(next_raw(raw, |bytes| bytes[0] == 128)[8], b'?');
        // A raw socket gets its copy before the kernel would answer, within the same call.
        ping.set_nonblocking(true).unwrap();
        assert_eq!(ping.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

fn ping_socket(hub: &Hub, family: AddressFamily, protocol: SockProtocol, to: IpAddr) -> UdpSocket {
    let socket = hub.within("web", || {
        nix::sys::socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol).unwrap()
    });
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect((to, 0)).unwrap();
    socket
}

/// The next message of interest; neighbours' solicitations come to a raw socket too.
fn next_raw(socket: &OwnedFd, is: fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        assert!(ready(socket), "no echo request");
        let mut bytes = [0; 2048];
        let (_, length) = rustix::net::recv(socket, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
        if is(&bytes[..length]) {
            return bytes[..length].to_vec();
        }
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

fn queries_pass(hub: &mut Hub) {
    let sockets = network::names::bind_in_current_namespace(&hub.plan.networks).unwrap();
    let front = &sockets[0];
    let gateway: IpAddr = hub.plan.networks[0].gateway.into();
    let client = hub.udp("web", (gateway, 53));
    client.send(b"name?").unwrap();
    assert!(ready(&front.udp), "the name server got no query");
    let mut bytes = [0; 16];
    let (_, length, from) =
        rustix::net::recvfrom(&front.udp, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
    assert_eq!(&bytes[..length], b"name?");
    rustix::net::sendto(&front.udp, b"answer", rustix::net::SendFlags::empty(), &from.unwrap()).unwrap();
    client.recv(&mut bytes).unwrap();
    let mut client = hub.connect("web", (gateway, 53)).unwrap();
    let mut stream = accept(&front.tcp);
    client.write_all(b"name?").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    // Another network's name server is none of ours; somebody else's is intercepted.
    hub.udp("web", (hub.plan.networks[1].gateway.into(), 53)).send(b"back?").unwrap();
    assert_eq!(receive(&hub.sockets.udp4).0, b"back?");
    hub.udp("web", (OUTSIDE, 53)).send(b"out?").unwrap();
    assert_eq!(receive(&hub.sockets.udp4).0, b"out?");
}

fn internal_is_unreachable(hub: &mut Hub) {
    for to in [OUTSIDE, hub.address("web", "front", false)] {
        let error = hub.connect("db", (to, 80)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
    }
}

fn virtual_addresses(hub: &mut Hub) {
    let before = hub.plan.clone();
    let address = Ipv4Addr::new(10, 211, 0, 200);
    let address6 = hub.plan.networks[0].counterpart(address);
    let at = VirtualAddress { network: "front".into(), address, address6 };
    let group = Group { service: "web".into(), balance: Default::default(), addresses: vec![at] };
    hub.plan.groups = vec![group];
    // Whose link is not touched keeps its connections.
    let open = hub.connect("web", (OUTSIDE, 80)).unwrap();
    let stream = accept(&hub.sockets.tcp4);
    assert_eq!(hub.namespaces.apply(&hub.plan).unwrap(), Default::default());
    for (to, listener) in [
        (Some(address.into()), Some(&hub.sockets.tcp4)),
        (address6.map(IpAddr::from), hub.sockets.tcp6.as_ref()),
    ] {
        let (Some(to), Some(listener)) = (to, listener) else { continue };
        arrives_over_tcp(hub, "web", to, listener);
        UdpSocket::bind((to, 5353)).unwrap();
    }
    // A name server of the stack's own is balanced like anything else.
    hub.udp("web", (address.into(), 53)).send(b"name?").unwrap();
    assert_eq!(receive(&hub.sockets.udp4).1, SocketAddr::from((address, 53)));
    hub.plan = before;
    assert_eq!(hub.namespaces.apply(&hub.plan).unwrap(), Default::default());
    for gone in [Some(address.into()), address6.map(IpAddr::from)].into_iter().flatten() {
        let error = UdpSocket::bind((gone, 5353)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }
    (&open).write_all(b"x").unwrap();
    (&stream).read_exact(&mut [0]).unwrap();
    // And a contradiction is found.
    let mut plan = hub.plan.clone();
    let taken = plan.endpoints[0].interfaces[0].address;
    let at = VirtualAddress { network: "front".into(), address: taken, address6: None };
    plan.groups = vec![Group { service: "app".into(), balance: Default::default(), addresses: vec![at] }];
    assert!(hub.namespaces.apply(&plan).is_err());
}

fn real_addresses(hub: &mut Hub) {
    let client4 = (IpAddr::from([203, 0, 113, 7]), false);
    let client6 = (IpAddr::from([0x2001, 0xdb8, 7, 0, 0, 0, 0, 7]), true);
    for (client, v6) in [client4, client6].into_iter().filter(|(_, v6)| !v6 || has_ipv6()) {
        let web = hub.address("web", "front", v6);
        let client = SocketAddr::from((client, 4242));
        let listener = hub.within("web", || TcpListener::bind((web, 8080)).unwrap());
        let socket = transparent(client, SockType::Stream);
        rustix::net::connect(&socket, &SocketAddr::from((web, 8080))).unwrap();
        let (mut inner, peer) = listener.accept().unwrap();
        assert_eq!(peer, client);
        let mut outer = TcpStream::from(socket);
        inner.write_all(b"hello").unwrap();
        outer.read_exact(&mut [0; 5]).unwrap();
        // As the gateway, too: an ordinary socket.
        let _outer = TcpStream::connect_timeout(&(web, 8080).into(), PATIENCE).unwrap();
        let _inner = listener.accept().unwrap();

        let service = hub.within("web", || UdpSocket::bind((web, 9)).unwrap());
        service.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = UdpSocket::from(transparent(client, SockType::Datagram));
        socket.connect((web, 9)).unwrap();
        socket.send(b"question").unwrap();
        let (length, from) = service.recv_from(&mut [0; 64]).unwrap();
        assert_eq!((length, from), (8, client));
        service.send_to(b"answer", from).unwrap();
        socket.recv(&mut [0; 64]).unwrap();
        // A port where nobody is says so.
        drop(service);
        socket.send(b"question").unwrap();
        assert_eq!(socket.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

fn mtu(hub: &mut Hub) {
    let web = hub.address("web", "front", false);
    let outer = UdpSocket::bind("0.0.0.0:0").unwrap();
    outer.connect((web, 9)).unwrap();
    let inner = hub.udp("web", (OUTSIDE, 9));
    for socket in [outer, inner] {
        assert_eq!(nix::sys::socket::getsockopt(&socket, sockopt::IpMtu).unwrap(), 1400);
    }
    let default = hub.udp("db", (hub.plan.networks[1].gateway.into(), 9));
    assert_eq!(nix::sys::socket::getsockopt(&default, sockopt::IpMtu).unwrap(), 1500);
    let mut plan = hub.plan.clone();
    plan.networks[1].mtu = Some(1450);
    let changes = hub.namespaces.apply(&plan).unwrap();
    assert_eq!((changes.networks, changes.endpoints), (vec!["back".into()], vec!["app".into(), "db".into()]));
    hub.plan = plan;
}

fn ipv6_only_where_planned(hub: &mut Hub) {
    if !has_ipv6() {
        return;
    }
    let links = |container: &str| {
        let text =
            hub.within(container, || std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
        let mut links: Vec<String> =
            text.lines().map(|line| line.split_ascii_whitespace().last().unwrap().to_owned()).collect();
        links.sort();
        links.dedup();
        links
    };
    assert_eq!(links("web"), ["eth0", "lo"]);
    assert_eq!(links("app"), ["eth1", "lo"]);
    assert!(!links("db").contains(&"eth0".to_owned()));
    let here = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    assert!(here.contains("br-front") && !here.contains("br-back"), "{here}");
}

fn replaced(hub: &mut Hub) {
    let mut new = hub.namespaces.intercept().unwrap();
    new.connections = None;
    let old = std::mem::replace(&mut hub.sockets, new);
    tcp_arrives(hub);
    udp_arrives(hub);
    assert_eq!(rustix::net::accept(&old.tcp4).unwrap_err(), rustix::io::Errno::AGAIN);
}

fn no_interception(hub: &mut Hub) {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let all = capabilities(None).unwrap();
    let mut fewer = all;
    fewer.effective.remove(CapabilitySet::NET_ADMIN);
    set_capabilities(None, fewer).unwrap();
    let error = hub.namespaces.intercept().unwrap_err();
    set_capabilities(None, all).unwrap();
    assert!(matches!(error, network::Error::NoInterception { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("nft_tproxy"));
    // What was there still is.
    tcp_arrives(hub);
}
