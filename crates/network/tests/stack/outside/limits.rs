//! Those who take more than they should.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use super::servers::{Server, end, greeting};
use super::{HOST, PEER, Site, until};

/// A service that takes connections and keeps them, and tells of each.
struct Keeper {
    server: Server,
    came: mpsc::Receiver<TcpStream>,
}

impl Keeper {
    fn start(site: &Site, at: &str, address: std::net::IpAddr) -> Self {
        let (sender, came) = mpsc::channel();
        let server = Server::start(site, at, (address, 80).into(), move |stream| {
            // When the check is over nobody takes it.
            let _over = sender.send(stream);
        });
        Self { server, came }
    }
}

fn is_served(site: &Site, service: &str) {
    let mut stream = site.connect("c2", site.port(service, HOST, false)).unwrap();
    assert_eq!(greeting(&mut stream).0, service);
    end(stream);
}

pub fn nothing_stays(site: &mut Site) {
    const CONNECTIONS: usize = 2_500;
    let _web = Server::named(site, "web", site.address("web", HOST.into()), 80);
    let keeper = Keeper::start(site, "app", site.address("app", HOST.into()));
    let port = site.port("app", HOST, false);
    let round = |site: &Site, connections: usize| {
        let before = site.netd_descriptors();
        let mut open = Vec::new();
        for _ in 0..connections {
            let outer = site.connect("c1", port).unwrap();
            let inner = keeper.came.recv_timeout(super::PATIENCE).unwrap();
            (&outer).write_all(b"x").unwrap();
            (&inner).read_exact(&mut [0]).unwrap();
            open.push((outer, inner));
        }
        // But for what it had in store.
        assert!(site.netd_descriptors() + 64 >= before + 2 * connections);
        is_served(site, "web");
        drop(open);
        until("all are closed", super::PATIENCE, || site.netd_descriptors() <= before + 64);
    };
    round(site, 100);
    let start = site.netd_private_kb();
    round(site, CONNECTIONS);
    let after = site.netd_private_kb();
    println!("netd: {start} kB private before {CONNECTIONS} connections, {after} kB after");
    round(site, CONNECTIONS);
    let again = site.netd_private_kb();
    println!("netd: {again} kB after as many again");
    assert!(after <= start + 512 && again <= after + 64, "{start} kB, {after} kB, {again} kB");
    drop(keeper.server);
}

pub fn never_reads(site: &mut Site) {
    let _web = Server::named(site, "web", site.address("web", HOST.into()), 80);
    let keeper = Keeper::start(site, "app", site.address("app", HOST.into()));
    let mut clients = Vec::new();
    for _ in 0..5 {
        let client = site.connect("c1", site.port("app", HOST, false)).unwrap();
        let mut service = keeper.came.recv_timeout(super::PATIENCE).unwrap();
        service.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        // Until everything between is full.
        let chunk = vec![0; 1 << 20];
        let error = loop {
            match service.write_all(&chunk) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        clients.push((client, service));
        is_served(site, "web");
    }
    let private = site.netd_private_kb();
    assert!(private < 8192, "{private} kB: what is under way is the kernel's");
}

/// netd has 4096 descriptors, which is enough for 896 connections, and 672 of one service.
pub fn slow_clients(site: &mut Site) {
    site.replace_netd();
    let _web = Server::named(site, "web", site.address("web", HOST.into()), 80);
    let keeper = Keeper::start(site, "app", site.address("app", HOST.into()));
    let port = site.port("app", HOST, false);
    let mut clients: Vec<TcpStream> = (0..1500).map(|_| site.connect("c1", port).unwrap()).collect();
    let mut services = Vec::new();
    while let Ok(service) = keeper.came.recv_timeout(Duration::from_millis(1500)) {
        services.push(service);
    }
    assert!((500..900).contains(&services.len()), "{} connections of 1500", services.len());
    is_served(site, "web");
    // Who has waited gets a place as soon as there is one.
    clients.drain(..services.len());
    services.clear();
    let first = keeper.came.recv_timeout(super::PATIENCE).unwrap();
    drop((first, clients));
}

pub fn slow_containers(site: &mut Site) {
    let _web = Server::named(site, "web", site.address("web", HOST.into()), 80);
    let listener = site.within("peer", || TcpListener::bind((PEER, 80)).unwrap());
    std::thread::scope(|scope| {
        let (sender, came) = mpsc::channel();
        scope.spawn(move || {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                kept.push(stream);
                if sender.send(()).is_err() {
                    return;
                }
            }
        });
        let open: Vec<TcpStream> = (0..1500).map_while(|_| site.connect("app", (PEER, 80)).ok()).collect();
        assert!(came.recv_timeout(super::PATIENCE).is_ok());
        is_served(site, "web");
        drop((open, came));
        // The listener's thread ends with the next connection.
        until("the end", super::PATIENCE, || site.connect("web", (PEER, 80)).is_err());
    });
}
