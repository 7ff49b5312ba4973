//! From outside to a service.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use super::servers::{Mirror, Server, end, greeting};
use super::{CLIENTS, HOST, PATIENCE, Site, both, has_ipv6};

fn gateway(like: IpAddr) -> IpAddr {
    both(Ipv4Addr::new(10, 211, 0, 1)).find(|gateway| gateway.is_ipv4() == like.is_ipv4()).unwrap()
}

fn loopbacks() -> impl Iterator<Item = IpAddr> {
    let v6 = has_ipv6().then_some(Ipv6Addr::LOCALHOST.into());
    std::iter::once(Ipv4Addr::LOCALHOST.into()).chain(v6)
}

pub fn real_addresses(site: &mut Site) {
    for host in both(HOST) {
        let _server = Server::named(site, "app", site.address("app", host), 80);
        let port = site.port("app", host, false);
        for (client, fourth) in CLIENTS {
            let address = both(Ipv4Addr::new(203, 0, 113, fourth)).find(|ip| ip.is_ipv4() == host.is_ipv4());
            let mut stream = site.connect(client, port).unwrap();
            let seen = greeting(&mut stream).1;
            assert_eq!((Some(seen.ip()), seen), (address, stream.local_addr().unwrap()));
            stream.write_all(b"hello").unwrap();
            stream.read_exact(&mut [0; 5]).unwrap();
        }
        one_port(site, host);
        // The host itself is a client with an address, too.
        let mut stream = TcpStream::connect(port).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(greeting(&mut stream).1, stream.local_addr().unwrap());
    }
    for host in loopbacks() {
        let _server = Server::named(site, "app", site.address("app", host), 80);
        let mut stream = TcpStream::connect(site.port("app", host, false)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(greeting(&mut stream).1.ip(), gateway(host), "loopback appears as the gateway");
    }
    // So does everybody to a container that has no way out, through which its replies could come.
    let db = site.address("db", HOST.into());
    let _server = Server::named(site, "db", db, 80);
    let mut stream = site.connect("c1", site.port("db", HOST, false)).unwrap();
    assert_eq!(greeting(&mut stream).1.ip(), IpAddr::from([10, 211, 1, 1]));
}

/// A client that has several connections from one port, one after the other and at once.
fn one_port(site: &Site, host: IpAddr) {
    let _other = Server::named(site, "web", site.address("web", host), 80);
    let [app, web] = ["app", "web"].map(|service| site.port(service, host, false));
    let again = site.second_port("app", host);
    let client = both(Ipv4Addr::new(203, 0, 113, CLIENTS[0].1)).find(|ip| ip.is_ipv4() == host.is_ipv4());
    let client = client.unwrap();
    let connect = |from: SocketAddr, to: SocketAddr| {
        let mut stream = site.within(CLIENTS[0].0, || {
            let socket = sharing_socket(host);
            rustix::net::bind(&socket, &from).unwrap();
            rustix::net::connect(&socket, &to).unwrap();
            TcpStream::from(socket)
        });
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let seen = greeting(&mut stream).1;
        (stream, seen)
    };
    let (first, own) = connect(SocketAddr::new(client, 0), web);
    assert_eq!(own, first.local_addr().unwrap());
    end(first);
    let (second, seen) = connect(own, app);
    assert_eq!(seen, own, "a connection to another service has only just ended");
    let (third, seen) = connect(own, again);
    assert_eq!(seen.ip(), own.ip());
    assert_ne!(seen.port(), own.port(), "the service has a connection from there");
    end(third);
    end(second);
}

/// A socket that shares its port with the client's other connections.
fn sharing_socket(like: IpAddr) -> std::os::fd::OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
    let family = if like.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    socket
}

pub fn datagrams(site: &mut Site) {
    let seen = |socket: &UdpSocket, port: SocketAddr| -> SocketAddr {
        let bytes = super::super::pattern(60_000);
        for bytes in [&b"hello"[..], &bytes] {
            socket.send_to(bytes, port).unwrap();
            let mut reply = vec![0; 1 << 16];
            let (length, from) = socket.recv_from(&mut reply).unwrap();
            assert_eq!(from, port);
            assert!(reply[..length].ends_with(bytes));
            let text = String::from_utf8_lossy(&reply[..length]);
            let mut words = text.split(' ');
            assert_eq!(words.next(), Some("app"));
            if bytes.len() > 5 {
                return words.next().unwrap().parse().unwrap();
            }
        }
        unreachable!()
    };
    for host in both(HOST) {
        let mirror = Mirror::start(site, "app", site.address("app", host), 80);
        for (client, fourth) in CLIENTS {
            let address = both(Ipv4Addr::new(203, 0, 113, fourth)).find(|ip| ip.is_ipv4() == host.is_ipv4());
            let socket = site.udp(client, address.unwrap(), 0);
            assert_eq!(seen(&socket, site.port("app", host, true)), socket.local_addr().unwrap());
        }
        mirror.stop(site, "app");
    }
    for host in loopbacks() {
        let mirror = Mirror::start(site, "app", site.address("app", host), 80);
        let socket = UdpSocket::bind((host, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(seen(&socket, site.port("app", host, true)).ip(), gateway(host));
        mirror.stop(site, "app");
    }
}
