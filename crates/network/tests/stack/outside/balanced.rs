//! Which replica gets a connection.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use network::balance::{Algorithm, State};
use network::netd::Event;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::servers::{Mirror, Server, end, greeting};
use super::{CLIENTS, HOST, REPLICAS, Site, VIRTUAL, both, is_refused};

fn servers(site: &Site) -> BTreeMap<&'static str, Server> {
    let server = |name| (name, Server::named(site, name, site.address(name, HOST.into()), 80));
    REPLICAS.into_iter().map(server).collect()
}

/// A connection of this client's, and who got it.
#[track_caller]
fn connect(site: &Site, client: &str) -> (String, TcpStream) {
    let mut stream = site.connect(client, site.port("rep", HOST, false)).unwrap();
    let name = greeting(&mut stream).0;
    (name, stream)
}

/// How many of some connections each got, one after another.
#[track_caller]
fn counts(site: &Site, connections: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..connections {
        let (name, stream) = connect(site, "c1");
        *counts.entry(name).or_default() += 1;
        end(stream);
    }
    counts
}

fn equal(replicas: &[&str], each: usize) -> BTreeMap<String, usize> {
    replicas.iter().map(|name| ((*name).to_owned(), each)).collect()
}

fn about(name: &'static str) -> impl Fn(&Event) -> bool {
    move |event| {
        let (Event::Ejected { container } | Event::Restored { container } | Event::Drained { container }) =
            event
        else {
            return false;
        };
        container == name
    }
}

pub fn round_robin(site: &mut Site) {
    let _servers = servers(site);
    assert_eq!(counts(site, 30), equal(&REPLICAS, 10));
}

pub fn least_connections(site: &mut Site) {
    site.balance(Algorithm::LeastConn, 0);
    let _servers = servers(site);
    let mut open: Vec<(String, TcpStream)> = (0..9).map(|_| connect(site, "c1")).collect();
    let who = |open: &[(String, TcpStream)]| {
        let mut counts = BTreeMap::new();
        open.iter().for_each(|(name, _)| *counts.entry(name.clone()).or_insert(0) += 1);
        counts
    };
    assert_eq!(who(&open), equal(&REPLICAS, 3));
    for name in REPLICAS {
        let (leave, stay) = open.into_iter().partition(|(of, _)| of == name);
        open = stay;
        leave.into_iter().for_each(|(_, stream)| end(stream));
        // It has none, the others three each.
        let fresh: Vec<_> = (0..3).map(|_| connect(site, "c2")).collect();
        assert_eq!(who(&fresh), equal(&[name], 3));
        open.extend(fresh);
    }
    open.into_iter().for_each(|(_, stream)| end(stream));
}

pub fn source(site: &mut Site) {
    site.balance(Algorithm::Source, 0);
    let mut servers = servers(site);
    let chosen = |site: &Site| -> BTreeMap<&str, String> {
        let of = |(client, _): (&'static str, u8)| {
            let (name, stream) = connect(site, client);
            end(stream);
            (client, name)
        };
        CLIENTS.into_iter().map(of).collect()
    };
    let first = chosen(site);
    for _ in 0..5 {
        assert_eq!(chosen(site), first);
    }
    assert!(first.values().any(|name| *name != first["c1"]), "not all to one: {first:?}");
    // When one leaves, only its clients move.
    let gone = first["c1"].clone();
    site.states(&[&gone], State::Down);
    servers.remove(gone.as_str());
    let second = chosen(site);
    for (client, name) in &first {
        assert_eq!(second[client] == *name, *name != gone, "{client}: {first:?} {second:?}");
    }
    site.states(&[&gone], State::Ready);
    site.balance(Algorithm::RoundRobin, 0);
}

pub fn ejected(site: &mut Site) {
    site.balance(Algorithm::RoundRobin, 1);
    let mut servers = servers(site);
    servers.remove("rep-2");
    let counts_without = counts(site, 30);
    assert_eq!(counts_without.values().sum::<usize>(), 30);
    assert!(!counts_without.contains_key("rep-2"));
    let event = site.event("an ejection", about("rep-2"));
    assert!(matches!(event, Event::Ejected { .. }), "{event:?}");
    servers.insert("rep-2", Server::named(site, "rep-2", site.address("rep-2", HOST.into()), 80));
    super::until("rep-2 is back", Duration::from_secs(30), || {
        let (name, stream) = connect(site, "c1");
        end(stream);
        name == "rep-2"
    });
    let event = site.event("its return", about("rep-2"));
    assert!(matches!(event, Event::Restored { .. }), "{event:?}");
    assert_eq!(counts(site, 30), equal(&REPLICAS, 10));
}

/// A listener that takes no more connections: their packets are dropped.
fn full_listener(site: &Site, at: &str) -> (OwnedFd, Vec<TcpStream>) {
    let address = (site.address(at, HOST.into()), 80).into();
    site.within(at, || {
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let fill = || TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok();
        let waiting = std::iter::from_fn(fill).collect();
        (socket, waiting)
    })
}

pub fn silent(site: &mut Site) {
    site.balance(Algorithm::RoundRobin, 1);
    let mut servers = servers(site);
    servers.remove("rep-3");
    let full = full_listener(site, "rep-3");
    let silent = counts(site, 9);
    assert_eq!(silent.values().sum::<usize>(), 9);
    assert!(!silent.contains_key("rep-3"));
    let event = site.event("an ejection", about("rep-3"));
    assert!(matches!(event, Event::Ejected { .. }), "{event:?}");
    drop(full);
    servers.insert("rep-3", Server::named(site, "rep-3", site.address("rep-3", HOST.into()), 80));
    site.states(&["rep-3"], State::Down);
    // The supervisor knows better than the failures before.
    site.states(&["rep-3"], State::Ready);
    assert_eq!(counts(site, 9), equal(&REPLICAS, 3));
    site.balance(Algorithm::RoundRobin, 0);
    site.take_events().clear();
}

pub fn starting(site: &mut Site) {
    site.states(&REPLICAS, State::Starting);
    let mut waiting: Vec<TcpStream> = CLIENTS
        .iter()
        .map(|(client, _)| site.connect(client, site.port("rep", HOST, false)).unwrap())
        .collect();
    for stream in &mut waiting {
        stream.write_all(b"early").unwrap();
        // Longer than what is waited for anybody.
        stream.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
    }
    let _servers = servers(site);
    site.states(&["rep-2"], State::Ready);
    for mut stream in waiting {
        assert_eq!(greeting(&mut stream).0, "rep-2");
        stream.read_exact(&mut [0; 5]).unwrap();
        end(stream);
    }
    site.states(&REPLICAS, State::Ready);
}

pub fn draining(site: &mut Site) {
    let _servers = servers(site);
    let mut open: Vec<(String, TcpStream)> = (0..3).map(|_| connect(site, "c1")).collect();
    let at = open.iter().position(|(name, _)| name == "rep").unwrap();
    let (_, mut kept) = open.swap_remove(at);
    site.states(&["rep"], State::Draining);
    assert_eq!(counts(site, 20), equal(&["rep-2", "rep-3"], 10));
    kept.write_all(b"still").unwrap();
    kept.read_exact(&mut [0; 5]).unwrap();
    assert!(!site.take_events().iter().any(about("rep")), "it has an open connection");
    end(kept);
    let event = site.event("the end of draining", about("rep"));
    assert!(matches!(event, Event::Drained { .. }), "{event:?}");
    site.states(&["rep"], State::Ready);
    // Without any it is drained at once.
    site.states(&["rep"], State::Draining);
    site.event("the end of draining", about("rep"));
    site.states(&["rep"], State::Ready);
}

pub fn rest(site: &mut Site) {
    let is_rest = |event: &Event| matches!(event, Event::AtRest { container } if container == "rep");
    site.states(&["rep-2", "rep-3"], State::Down);
    let (asked, questions) = channel();
    let (answer, answers) = channel::<()>();
    let answers = Arc::new(Mutex::new(answers));
    let address = (site.address("rep", HOST.into()), 80).into();
    let server = Server::start(site, "rep", address, move |mut stream| {
        let peer = stream.peer_addr().unwrap();
        writeln!(stream, "rep {peer}").unwrap();
        while stream.read(&mut [0]).is_ok_and(|count| count > 0) {
            asked.send(()).unwrap();
            answers.lock().unwrap().recv().unwrap();
            stream.write_all(b"!").unwrap();
        }
    });
    let (_, idle) = connect(site, "c1");
    let (_, mut asking) = connect(site, "c1");
    asking.write_all(b"?").unwrap();
    questions.recv_timeout(super::PATIENCE).unwrap();
    // As it is when it is about to be stopped.
    site.states(&["rep"], State::Starting);
    site.await_rest("rep");
    assert!(!site.take_events().iter().any(is_rest), "somebody waits for an answer");
    answer.send(()).unwrap();
    asking.read_exact(&mut [0]).unwrap();
    site.event("the rest after an answer", is_rest);
    site.await_rest("rep");
    site.event("the rest of connections that are open", is_rest);
    site.await_rest("rep-2");
    let nobody = |event: &Event| matches!(event, Event::AtRest { container } if container == "rep-2");
    site.event("the rest of who has no connection", nobody);
    drop(server);
    end(idle);
    end(asking);
    site.states(&REPLICAS, State::Ready);
}

pub fn down(site: &mut Site) {
    let _servers = servers(site);
    site.states(&REPLICAS, State::Down);
    assert!(is_refused(site.connect("c1", site.port("rep", HOST, false))));
    for address in both(VIRTUAL) {
        assert!(is_refused(site.connect("web", (address, 80))));
    }
    site.states(&REPLICAS, State::Ready);
}

pub fn virtual_address(site: &mut Site) {
    for address in both(VIRTUAL) {
        let servers: Vec<Server> =
            REPLICAS.iter().map(|name| Server::named(site, name, site.address(name, address), 80)).collect();
        let gateway =
            both(Ipv4Addr::new(10, 211, 0, 1)).find(|ip| ip.is_ipv4() == address.is_ipv4()).unwrap();
        let mut counts = BTreeMap::new();
        // A replica among them: it may get itself.
        for from in ["web", "app", "rep"].iter().cycle().take(30) {
            let mut stream = site.connect(from, (address, 80)).unwrap();
            let (name, client) = greeting(&mut stream);
            assert_eq!(client.ip(), gateway);
            *counts.entry(name).or_default() += 1;
            end(stream);
        }
        assert_eq!(counts, equal(&REPLICAS, 10));
        drop(servers);
        let mirrors = REPLICAS.map(|name| (name, Mirror::start(site, name, site.address(name, address), 80)));
        let mut counts = BTreeMap::new();
        for _ in 0..9 {
            let any: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = site.udp("web", any, 0);
            let mut replica = None;
            for _ in 0..3 {
                socket.send_to(b"who", (address, 80)).unwrap();
                let mut reply = [0; 128];
                let (length, from) = socket.recv_from(&mut reply).unwrap();
                assert_eq!(from, (address, 80).into());
                let reply = String::from_utf8_lossy(&reply[..length]).into_owned();
                let name = reply.split(' ').next().unwrap().to_owned();
                assert_eq!(*replica.get_or_insert(name.clone()), name, "a flow stays where it is");
            }
            *counts.entry(replica.unwrap()).or_default() += 1;
        }
        assert_eq!(counts, equal(&REPLICAS, 3));
        for (name, mirror) in mirrors {
            mirror.stop(site, name);
        }
        // Not from another network.
        assert!(is_refused(site.connect("far", (address, 80))));
    }
    assert_eq!(site.resolve("web", "rep"), (0, vec![VIRTUAL]));
}
