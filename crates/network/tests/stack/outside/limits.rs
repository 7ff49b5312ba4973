//! Those who take more than they should.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use super::servers::{Server, end, greeting};
use super::{HOST, PEER, Site, until};

/// A service that takes connections and keeps them, and tells of each.
struct Keeper {
    _server: Server,
    came: mpsc::Receiver<TcpStream>,
}

impl Keeper {
    fn start(site: &Site, at: &str, address: std::net::IpAddr) -> Self {
        let (sender, came) = mpsc::channel();
        let server = Server::start(site, at, (address, 80).into(), move |stream| {
            // When the check is over nobody takes it.
            let _over = sender.send(stream);
        });
        Self { _server: server, came }
    }

    /// At least so many, however long a busy machine takes for them, and all that follow until none has come for
    /// longer than a packet that was lost twice takes to be sent again.
    fn at_least(&self, least: usize) -> Vec<TcpStream> {
        let mut streams: Vec<_> = (0..least)
            .map(|_| self.came.recv_timeout(super::PATIENCE).expect("another connection"))
            .collect();
        streams.extend(std::iter::from_fn(|| self.came.recv_timeout(Duration::from_millis(3500)).ok()));
        streams
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
        assert!(site.netd_descriptors() >= 2 * connections);
        is_served(site, "web");
        drop(open);
        until("all are closed", super::PATIENCE, || site.netd_descriptors() <= before + 64);
    };
    round(site, 100);
    let start = site.netd_private_kb();
    let after = [(); 3].map(|()| {
        round(site, CONNECTIONS);
        site.netd_private_kb()
    });
    println!("netd: {start} kB private before, {after:?} kB after {CONNECTIONS} connections each");
    // A round takes more than 1 MB; the allocator may keep that for the next one.
    assert!(after.iter().all(|after| *after <= start + 2048), "{start} kB, {after:?} kB");
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
    let before = site.netd_descriptors();
    let _web = Server::named(site, "web", site.address("web", HOST.into()), 80);
    let keeper = Keeper::start(site, "app", site.address("app", HOST.into()));
    let port = site.port("app", HOST, false);
    let mut clients: Vec<TcpStream> = (0..1500).map(|_| site.connect("c1", port).unwrap()).collect();
    let mut services = keeper.at_least(500);
    assert!(services.len() < 900, "{} connections of 1500", services.len());
    is_served(site, "web");
    // Who has waited gets a place as soon as there is one.
    clients.drain(..services.len());
    services.clear();
    let first = keeper.came.recv_timeout(super::PATIENCE).unwrap();
    drop((first, clients));
    // Those that waited come in, find their clients gone, and go: what is open counts for the service.
    until("all are closed", super::PATIENCE, || {
        keeper.came.try_iter().for_each(drop);
        site.netd_descriptors() <= before + 64
    });
}

pub fn slow_containers(site: &mut Site) {
    let _web = Server::named(site, "web", site.address("web", HOST.into()), 80);
    let before = site.netd_descriptors();
    let keeper = Keeper::start(site, "peer", PEER.into());
    let mut failures = std::collections::BTreeMap::new();
    let mut open = Vec::new();
    for _ in 0..1500 {
        // Those that are too many are refused.
        match site.connect("app", (PEER, 80)) {
            Ok(stream) => open.push(stream),
            Err(error) => *failures.entry(error.to_string()).or_insert(0) += 1,
        }
    }
    let kept = keeper.at_least(500);
    let (open_count, kept_count) = (open.len(), kept.len());
    assert!(kept_count < 900, "{open_count} open, {kept_count} arrived, {failures:?}");
    is_served(site, "web");
    // Those of another service to outside are, too.
    let stream = site.connect("web", (PEER, 80)).unwrap();
    drop(keeper.came.recv_timeout(super::PATIENCE).unwrap());
    drop((open, kept, stream));
    until("all are closed", super::PATIENCE, || site.netd_descriptors() <= before + 64);
}
