//! From a container to outside.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use network::Subnet;
use network::egress::{Policy, Rule, Target};
use network::netd::Event;

use super::servers::{Mirror, Server, greeting};
use super::{HOST, PATIENCE, PEER, Site, both, is_refused, sixth, until};

/// Flows that one sender may have.
const FLOWS: usize = 1024;

fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// A connection of `web`'s, and its other end at `peer`.
fn pair(site: &Site, at: IpAddr) -> (TcpStream, TcpStream) {
    let listener = site.within("peer", || TcpListener::bind((at, 80)).unwrap());
    let inner = site.connect("web", (at, 80)).unwrap();
    let (outer, from) = listener.accept().unwrap();
    let host = both(HOST).find(|host| host.is_ipv4() == at.is_ipv4()).unwrap();
    assert_eq!(from.ip(), host, "it comes from the host");
    outer.set_read_timeout(Some(PATIENCE)).unwrap();
    (inner, outer)
}

pub fn both_ways(site: &mut Site) {
    for at in both(PEER) {
        let (inner, outer) = pair(site, at);
        let bytes = &super::super::pattern(4 << 20);
        for (mut writer, mut reader) in [(&inner, &outer), (&outer, &inner)] {
            let mut received = Vec::new();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    writer.write_all(bytes).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                // To the end, which the other direction does not share.
                reader.read_to_end(&mut received).unwrap();
            });
            assert!(received == *bytes);
        }
    }
}

pub fn resets(site: &mut Site) {
    for at in both(PEER) {
        for inner_resets in [true, false] {
            let (inner, outer) = pair(site, at);
            let (resets, mut other) = if inner_resets { (inner, outer) } else { (outer, inner) };
            rustix::net::sockopt::set_socket_linger(&resets, Some(Duration::ZERO)).unwrap();
            drop(resets);
            assert_eq!(other.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        // Nobody listens there.
        assert!(is_refused(site.connect("web", (at, 81))));
    }
}

pub fn datagrams(site: &mut Site) {
    for at in both(PEER) {
        let mirrors = [(at, 90), (at, 91)].map(|(at, port)| Mirror::start(site, "peer", at, port));
        let mut senders = BTreeSet::new();
        for container in ["web", "app", "web"] {
            let socket = site.udp(container, any(at), 0);
            for length in [5, 60_000] {
                for port in [90, 91] {
                    let bytes = super::super::pattern(length);
                    socket.send_to(&bytes, (at, port)).unwrap();
                    let mut reply = vec![0; 1 << 16];
                    let (length, from) = socket.recv_from(&mut reply).unwrap();
                    assert_eq!(from, SocketAddr::from((at, port)), "who was asked replies");
                    assert!(reply[..length].ends_with(&bytes));
                    let reply = String::from_utf8_lossy(&reply[..length]);
                    let sender = reply.split(' ').nth(1).unwrap().parse::<SocketAddr>().unwrap();
                    assert!(both(HOST).any(|host| host == sender.ip()), "{sender}");
                    senders.insert((sender, port));
                }
            }
        }
        assert_eq!(senders.len(), 6, "a flow for each sender and destination: {senders:?}");
        mirrors.into_iter().for_each(|mirror| mirror.stop(site, "peer"));
    }
}

/// How many flows there are to a port of `peer`: sockets of the host (proc_net_udp.rst).
fn flows(port: u16) -> usize {
    let to = format!("{:08X}:{port:04X}", u32::from_ne_bytes(PEER.octets()));
    let table = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
    table.lines().filter(|line| line.split_ascii_whitespace().nth(2) == Some(&to)).count()
}

pub fn bounded_flows(site: &mut Site) {
    let peer = site.udp("peer", PEER.into(), 92);
    let mut sockets: Vec<UdpSocket> = Vec::new();
    let mut addresses = Vec::new();
    let mut bytes = [0; 16];
    for number in 0..FLOWS + 200 {
        let socket = site.udp("web", Ipv4Addr::UNSPECIFIED.into(), 0);
        socket.send_to(format!("{number}").as_bytes(), (PEER, 92)).unwrap();
        let (length, from) = peer.recv_from(&mut bytes).unwrap();
        assert_eq!(bytes[..length], *format!("{number}").as_bytes());
        addresses.push(from);
        sockets.push(socket);
    }
    assert_eq!(flows(92), FLOWS);
    // The newest is still there, the oldest is not, and comes again by another way.
    peer.send_to(b"reply", addresses.last().unwrap()).unwrap();
    assert_eq!(sockets.last().unwrap().recv(&mut bytes).unwrap(), 5);
    peer.send_to(b"lost", addresses[0]).unwrap();
    sockets[0].send_to(b"again", (PEER, 92)).unwrap();
    let (_, from) = peer.recv_from(&mut bytes).unwrap();
    peer.send_to(b"found", from).unwrap();
    let length = sockets[0].recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"found");
    // Another sender is not touched by that.
    let other = site.udp("app", Ipv4Addr::UNSPECIFIED.into(), 0);
    other.send_to(b"other", (PEER, 92)).unwrap();
    let (_, from) = peer.recv_from(&mut bytes).unwrap();
    peer.send_to(b"reply", from).unwrap();
    assert_eq!(other.recv(&mut bytes).unwrap(), 5);
}

pub fn flows_end(site: &mut Site) {
    let peer = site.udp("peer", PEER.into(), 92);
    let sockets: Vec<UdpSocket> =
        (0..100).map(|_| site.udp("web", Ipv4Addr::UNSPECIFIED.into(), 0)).collect();
    for socket in &sockets {
        socket.send_to(b"x", (PEER, 92)).unwrap();
        peer.recv(&mut [0]).unwrap();
    }
    assert!(flows(92) >= 100);
    // Thirty seconds without a reply.
    until("the flows' end", Duration::from_secs(50), || flows(92) == 0);
}

pub fn nowhere(site: &mut Site) {
    // Other networks of the stack, gateways, this host by its loopback, and what is no one's.
    let far = site.address("far", HOST.into());
    let _far = Server::named(site, "far", far, 80);
    let on_host = TcpListener::bind("127.0.0.1:0").unwrap();
    let host_port = on_host.local_addr().unwrap().port();
    on_host.set_nonblocking(true).unwrap();
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let every_port = everywhere.local_addr().unwrap().port();
    everywhere.set_nonblocking(true).unwrap();
    let v4 = |a, b, c, d| IpAddr::from([a, b, c, d]);
    let mut destinations = vec![
        (far, 80),
        (v4(10, 211, 1, 2), 80),
        (v4(10, 211, 0, 1), 80),
        (v4(10, 211, 0, 1), every_port),
        (v4(10, 211, 2, 1), 80),
        (v4(10, 211, 0, 99), 80),
        (v4(169, 254, 169, 254), every_port),
    ];
    // The ports that interception itself uses.
    for socket in [Some(&site.intercepted.tcp4), site.intercepted.tcp6.as_ref()].into_iter().flatten() {
        let own = SocketAddr::try_from(rustix::net::getsockname(socket).unwrap()).unwrap();
        destinations.extend(both(Ipv4Addr::new(10, 211, 0, 1)).map(|gateway| (gateway, own.port())));
        destinations.extend(both(PEER).map(|peer| (peer, own.port())));
    }
    destinations.extend(sixth(Ipv4Addr::new(10, 211, 2, 2)).map(|far| (far, 80)));
    destinations.extend(sixth(Ipv4Addr::new(10, 211, 0, 1)).map(|gateway| (gateway, 80)));
    for to in destinations {
        match site.connect("web", to) {
            // An address of its own network that nobody has.
            Err(error) if error.kind() == ErrorKind::HostUnreachable => {}
            other => assert!(is_refused(other), "{to:?}"),
        }
    }
    // Those that a kernel does not send out of itself: as somebody who forges packets may.
    for to in [(v4(127, 0, 0, 1), host_port), (v4(0, 0, 0, 0), host_port), (v4(127, 0, 0, 1), every_port)] {
        assert!(site.connect("web", to).is_err(), "{to:?}");
    }
    let datagrams = [v4(127, 0, 0, 1), v4(169, 254, 1, 1), v4(224, 0, 0, 251), v4(255, 255, 255, 255), far];
    let receivers = [site.udp("far", far, 93), UdpSocket::bind("127.0.0.1:93").unwrap()];
    let socket = site.udp("web", Ipv4Addr::UNSPECIFIED.into(), 0);
    socket.set_broadcast(true).unwrap();
    for to in datagrams {
        // Some of them the kernel refuses itself.
        let _refused = socket.send_to(b"x", (to, 93));
    }
    // What went before them would have arrived before this.
    let peer = site.udp("peer", PEER.into(), 93);
    socket.send_to(b"x", (PEER, 93)).unwrap();
    peer.recv(&mut [0]).unwrap();
    for receiver in receivers {
        receiver.set_nonblocking(true).unwrap();
        assert_eq!(receiver.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    for listener in [on_host, everywhere] {
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// Waits for the event that a container was refused, and returns the name in it. A packet that was sent again is
/// refused again.
fn refusal(site: &mut Site, from: &str, to: SocketAddr, protocol: &str) -> Option<String> {
    let event = site.event("a refusal", |event| {
        matches!(event, Event::Refused { container, destination, protocol: with, .. }
            if container == from && *destination == to && with == protocol)
    });
    let Event::Refused { name, .. } = event else { unreachable!() };
    name
}

pub fn policy(site: &mut Site) {
    let before = site.configuration.plan.clone();
    let servers: Vec<Server> = both(PEER)
        .flat_map(|at| [(at, 80), (at, 81)])
        .map(|(at, port)| Server::named(site, "peer", at, port))
        .collect();
    let peer = site.udp("peer", PEER.into(), 80);
    let reaches = |site: &Site, from: &str, to: (IpAddr, u16)| {
        let mut stream = site.connect(from, to).unwrap();
        assert_eq!(greeting(&mut stream).0, "peer");
    };
    // By address, for one port; the other container has none.
    let rule = |target, ports| Rule { target, ports };
    let subnet = Target::Subnet(Subnet::one(PEER));
    site.endpoint("web").egress = Policy::Only(vec![rule(subnet, Some((80, 80)))]);
    site.endpoint("app").egress = Policy::None;
    site.configure();
    reaches(site, "web", (PEER.into(), 80));
    for (from, to) in [("web", (PEER.into(), 81)), ("app", (PEER.into(), 80))]
        .into_iter()
        .chain(sixth(PEER).map(|peer| ("web", (peer, 80))))
    {
        assert!(is_refused(site.connect(from, to)), "{from} {to:?}");
        assert_eq!(refusal(site, from, to.into(), "tcp"), None);
    }
    let socket = site.udp("app", Ipv4Addr::UNSPECIFIED.into(), 0);
    socket.send_to(b"forbidden", (PEER, 80)).unwrap();
    assert_eq!(refusal(site, "app", (PEER, 80).into(), "udp"), None);
    let socket = site.udp("web", Ipv4Addr::UNSPECIFIED.into(), 0);
    socket.send_to(b"allowed", (PEER, 80)).unwrap();
    let mut bytes = [0; 16];
    let length = peer.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"allowed", "and nothing before it");

    // By name: who has looked it up, and only who has.
    let named = |name: &str, port| rule(Target::Name(name.into()), Some((port, port)));
    let rules = vec![named("peer.example.test", 80), named("peer-other.example.test", 443)];
    site.endpoint("web").egress = Policy::Only(rules.clone());
    site.endpoint("app").egress = Policy::Only(rules);
    site.configure();
    assert!(is_refused(site.connect("web", (PEER, 80))), "by the address alone");
    assert_eq!(refusal(site, "web", (PEER, 80).into(), "tcp"), None);
    assert_eq!(site.resolve("web", "peer.example.test"), (0, vec![PEER]));
    reaches(site, "web", (PEER.into(), 80));
    assert!(is_refused(site.connect("app", (PEER, 80))), "that was another's question");
    assert_eq!(refusal(site, "app", (PEER, 80).into(), "tcp"), None);
    assert!(is_refused(site.connect("web", (PEER, 81))), "another port");
    let name = Some("peer.example.test".to_owned());
    assert_eq!(refusal(site, "web", (PEER, 81).into(), "tcp"), name);
    assert_eq!(site.resolve("web", "peer-unnamed.example.test"), (3, vec![]));
    // What was open stays open; nobody else is touched.
    site.configuration.plan = before;
    site.configure();
    reaches(site, "app", (PEER.into(), 81));
    drop(servers);
}

pub fn internal(site: &mut Site) {
    let _server = Server::named(site, "peer", PEER.into(), 80);
    let error = site.connect("db", (PEER, 80)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
}
