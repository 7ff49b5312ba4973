//! The way out and the way in: a stack, the host that it runs on, and who is outside. All of it is namespaces of the
//! test's own, so that no packet leaves it. The host is wired by the same code as a stack: a bridge with two programs'
//! namespaces, `peer` and some clients.

mod balanced;
mod egress;
mod limits;
mod pings;
mod published;
mod servers;

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use network::balance::{Algorithm, Balance, State};
use network::intercept::Intercepted;
use network::link::Namespaces;
use network::names::{NameSockets, bind_in_current_namespace};
use network::netd::{self, Client, Configuration, Descriptors, Event, Published};
use network::plan::{
    Endpoint, Group, Interface, Network, NetworkPlan, Protocol, PublishedPort, Subnet6, VirtualAddress,
};
use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use sys::channel::Channel;
use sys::process::{Child, namespace, spawn};

use super::fixture::{endpoint, map_ids, network, timed};
use super::resolver::{self, Fake};

/// No wait of a check lasts longer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The host's address to those outside.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// One who is outside, and offers things.
pub const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// The virtual address of the replicas.
pub const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 211, 0, 200);
/// Who is outside, and asks for things: the fourth bytes of their addresses.
pub const CLIENTS: [(&str, u8); 6] = [("c1", 21), ("c2", 22), ("c3", 23), ("c4", 24), ("c5", 25), ("c6", 26)];
/// The service with three replicas, and their names.
pub const REPLICAS: [&str; 3] = ["rep", "rep-2", "rep-3"];

type Check = fn(&mut Site);

const CHECKS: &[(&str, Check)] = &[
    ("UDP goes out, and replies come from who was asked", egress::datagrams),
    ("a sender's UDP flows are bounded, and its oldest go first", egress::bounded_flows),
    ("TCP goes out, and half an end is one", egress::both_ways),
    ("resets pass on the way out", egress::resets),
    ("what is not outside is not to be reached that way", egress::nowhere),
    ("a policy of addresses and names", egress::policy),
    ("an internal network has no way out", egress::internal),
    ("published ports show the service its client's own address", published::real_addresses),
    ("UDP ports do so, too", published::datagrams),
    ("connections go round the replicas", balanced::round_robin),
    ("connections go to who has fewest", balanced::least_connections),
    ("a client keeps its replica", balanced::source),
    ("nobody notices a replica that refuses", balanced::ejected),
    ("nobody is lost to a replica that is silent", balanced::silent),
    ("connections wait for a service that starts", balanced::starting),
    ("who drains keeps what it has and gets nothing new", balanced::draining),
    ("a container is at rest when its clients are answered", balanced::rest),
    ("who is down refuses", balanced::down),
    ("a virtual address leads to the replicas", balanced::virtual_address),
    ("echo requests by a raw socket", pings::privileged),
    ("7,500 connections leave nothing behind", limits::nothing_stays),
    ("a client that never reads is only its own problem", limits::never_reads),
    ("another netd takes over the sockets", restart),
    ("echo requests by a socket for ordinary users", pings::unprivileged),
    ("idle connections to one service leave others theirs", limits::slow_clients),
    ("a container's idle connections to outside leave others theirs", limits::slow_containers),
    ("flows that nobody uses end", egress::flows_end),
];

/// Before any thread exists.
pub fn run() {
    let mapped = rustix::pipe::pipe().unwrap();
    let child = spawn(namespace::USER | namespace::NETWORK, || {
        set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
        rustix::io::read(&mapped.0, &mut [0]).unwrap();
        let mut site = Site::up();
        for (name, check) in CHECKS {
            timed(name, || check(&mut site));
        }
        0
    })
    .unwrap();
    map_ids(child.pid);
    rustix::io::write(&mapped.1, &[1]).unwrap();
    let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None).unwrap();
    assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
}

pub fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// The same address over IPv6, if there is such a thing here.
pub fn sixth(address: Ipv4Addr) -> Option<IpAddr> {
    let [first, .., third, fourth] = address.octets();
    let outer = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0xcb00, 0x7100 | u16::from(fourth));
    let inner =
        Ipv6Addr::new(0xfd00, 211, third.into(), 0, 0, 0, 0x0ad3, u16::from_be_bytes([third, fourth]));
    has_ipv6().then_some(IpAddr::V6(if first == 203 { outer } else { inner }))
}

/// An address, and the same over IPv6.
pub fn both(address: Ipv4Addr) -> impl Iterator<Item = IpAddr> {
    std::iter::once(address.into()).chain(sixth(address))
}

fn with_ipv6(mut network: Network) -> Network {
    let of = |address| match sixth(address) {
        Some(IpAddr::V6(address)) => Some(address),
        _ => None,
    };
    let subnet = of(network.gateway).map(|gateway| {
        let [a, b, c, d, ..] = gateway.segments();
        Subnet6 { subnet: Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), prefix: 64, gateway }
    });
    network.v6 = subnet;
    network
}

fn outer_plan() -> NetworkPlan {
    let subnet = Ipv4Addr::new(203, 0, 113, 0);
    let network = with_ipv6(Network { subnet, gateway: HOST, ..network("outer", 9, true) });
    let endpoint = |(name, fourth): (&str, u8)| {
        let mut endpoint = endpoint(name, &[("outer", 9, fourth)], &[]);
        let link = &mut endpoint.interfaces[0];
        link.address = Ipv4Addr::new(203, 0, 113, fourth);
        link.address6 = network.counterpart(link.address);
        endpoint
    };
    let endpoints = std::iter::once(("peer", 7)).chain(CLIENTS).map(endpoint).collect();
    NetworkPlan { networks: vec![network], endpoints, groups: Vec::new() }
}

fn plan() -> NetworkPlan {
    let networks = vec![
        with_ipv6(network("front", 0, false)),
        network("back", 1, true),
        with_ipv6(network("other", 2, false)),
    ];
    let mut endpoints = vec![
        endpoint("web", &[("front", 0, 2)], &[]),
        endpoint("app", &[("front", 0, 3)], &[]),
        endpoint("db", &[("back", 1, 2)], &[]),
        endpoint("far", &[("other", 2, 2)], &[]),
    ];
    for (name, fourth) in REPLICAS.iter().zip(11..) {
        let replica = endpoint(name, &[("front", 0, fourth)], &[]);
        endpoints.push(Endpoint { group: "rep".into(), ..replica });
    }
    for interface in endpoints.iter_mut().flat_map(|endpoint| &mut endpoint.interfaces) {
        let network = networks.iter().find(|network| network.name == interface.network).unwrap();
        interface.address6 = network.counterpart(interface.address);
    }
    let address6 = networks[0].counterpart(VIRTUAL);
    let at = VirtualAddress { network: "front".into(), address: VIRTUAL, address6 };
    let group = Group { service: "rep".into(), balance: Balance::default(), addresses: vec![at] };
    NetworkPlan { networks, endpoints, groups: vec![group] }
}

pub struct Netd {
    child: Child,
    client: Client,
    /// Its end of the channel to the hub, until it is told.
    hub: Option<OwnedFd>,
}

pub struct Site {
    home: OwnedFd,
    outer: Namespaces,
    pub configuration: Configuration,
    /// Of the stack's containers.
    containers: BTreeMap<String, OwnedFd>,
    names: Vec<NameSockets>,
    intercepted: Intercepted,
    listeners: Vec<OwnedFd>,
    /// The one that works, and others that have nothing to do yet.
    netd: VecDeque<Netd>,
    events: Vec<Event>,
    _hub: Child,
    _resolver: Fake,
}

impl Site {
    fn up() -> Self {
        let home: OwnedFd = std::fs::File::open("/proc/thread-self/ns/net").unwrap().into();
        let mut outer = Namespaces::open().unwrap();
        outer.apply(&outer_plan()).unwrap();
        let nofile = raise_descriptors();
        let plan = plan();
        // The first has what root has; the last so few descriptors that connections use them up.
        let kinds = [(true, nofile), (false, nofile), (false, 4096.min(nofile))];
        let mut netd = VecDeque::new();
        let mut hub_ends = Vec::new();
        for (privileged, descriptors) in kinds {
            let (one, hub_end) = start_netd(privileged, descriptors);
            netd.push_back(one);
            hub_ends.push(hub_end);
        }
        let (hub, hub_end) = Channel::pair().unwrap();
        let mapped = rustix::pipe::pipe().unwrap();
        let child = spawn(namespace::USER | namespace::NETWORK, || {
            set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
            rustix::io::read(&mapped.0, &mut [0]).unwrap();
            hub_process(&plan, &hub_end, hub_ends);
            0
        })
        .unwrap();
        map_ids(child.pid);
        rustix::io::write(&mapped.1, &[1]).unwrap();
        drop(hub_end);
        let message = hub.recv_until(Instant::now() + PATIENCE).unwrap().unwrap();
        let present: Vec<bool> = serde_json::from_slice(&message.bytes).unwrap();
        let mut fds = message.fds.into_iter();
        let mut next = || fds.next().unwrap();
        let names = plan.networks.iter().map(|network| NameSockets {
            network: network.name.clone(),
            udp: next(),
            tcp: next(),
        });
        let names = names.collect();
        let containers = plan.endpoints.iter().map(|endpoint| (endpoint.service.clone(), next())).collect();
        let (tcp4, udp4) = (next(), next());
        let mut optional = present.into_iter().map(|is| is.then(&mut next));
        let mut optional = || optional.next().unwrap();
        let intercepted = Intercepted {
            tcp4,
            udp4,
            icmp4: optional(),
            tcp6: optional(),
            udp6: optional(),
            icmp6: optional(),
            connections: optional(),
        };
        let resolver = Fake::start();
        let resolvers = vec![resolver.address];
        let configuration = Configuration { plan, resolvers, ..Configuration::default() };
        let mut site = Self {
            home,
            outer,
            configuration,
            containers,
            names,
            intercepted,
            listeners: Vec::new(),
            netd,
            events: Vec::new(),
            _hub: child,
            _resolver: resolver,
        };
        for address in both(HOST).chain([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]) {
            if address == Ipv6Addr::LOCALHOST && !has_ipv6() {
                continue;
            }
            for service in ["app", "web", "rep", "db", "app"] {
                site.publish(service, address, Protocol::Tcp);
            }
            for service in ["app", "rep"] {
                site.publish(service, address, Protocol::Udp);
            }
        }
        site.introduce();
        site
    }

    fn publish(&mut self, service: &str, address: IpAddr, protocol: Protocol) {
        let asked = PublishedPort { protocol, ..PublishedPort::tcp(address, 0, 80) };
        let (listener, bound) = network::publish::bind(&asked).unwrap();
        let port = PublishedPort { host_port: bound.port(), ..asked };
        self.configuration.published.push(Published { service: service.into(), port, ftp_data: false });
        self.listeners.push(listener);
    }

    /// Tells a new netd everything.
    fn introduce(&mut self) {
        let listeners: Vec<_> = self.listeners.iter().map(AsFd::as_fd).enumerate().collect();
        let netd = &mut self.netd[0];
        // With it goes the last but netd's own, so that the hub sees netd's end.
        let hub = netd.hub.take();
        let with = Descriptors {
            hub: hub.as_ref().map(AsFd::as_fd),
            names: &self.names,
            listeners: &listeners,
            intercepted: Some(&self.intercepted),
            ..Descriptors::default()
        };
        netd.client.configure(&self.configuration, &with).unwrap();
        netd.client.confirmed(Instant::now() + PATIENCE).unwrap();
    }

    /// Has netd take the configuration as it is now.
    pub fn configure(&mut self) {
        let client = &mut self.netd[0].client;
        client.configure(&self.configuration, &Descriptors::default()).unwrap();
        client.confirmed(Instant::now() + PATIENCE).unwrap();
    }

    /// Kills netd, and has the next one take its place.
    pub fn replace_netd(&mut self) {
        let old = self.netd.pop_front().unwrap();
        sys::process::kill(old.child.pid, Signal::KILL.as_raw()).unwrap();
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(old.child.pid), None).unwrap();
        self.introduce();
    }

    pub fn endpoint(&mut self, container: &str) -> &mut Endpoint {
        self.configuration.plan.endpoints.iter_mut().find(|endpoint| endpoint.service == container).unwrap()
    }

    pub fn balance(&mut self, policy: Algorithm, retry: u32) {
        self.configuration.plan.groups[0].balance = Balance { policy, retry };
        self.configure();
    }

    /// Tells netd what has become of containers. What is done later meets it.
    pub fn states(&mut self, containers: &[&str], state: State) {
        let states = containers.iter().map(|name| ((*name).to_owned(), state));
        self.configuration.states.extend(states.clone());
        self.netd[0].client.states(&states.collect()).unwrap();
        // Messages are taken in order.
        self.configure();
    }

    /// Asks netd to tell when nobody waits for an answer of a container.
    pub fn await_rest(&mut self, container: &str) {
        self.netd[0].client.await_rest(container).unwrap();
        // Messages are taken in order.
        self.configure();
    }

    /// Waits for an event of this kind; others stay.
    #[track_caller]
    pub fn event(&mut self, what: &str, is: impl Fn(&Event) -> bool) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.take_events();
            if let Some(at) = self.events.iter().position(&is) {
                return self.events.remove(at);
            }
            assert!(Instant::now() < deadline, "no event: {what}; {:?}", self.events);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The events that there are by now.
    pub fn take_events(&mut self) -> &mut Vec<Event> {
        while let Some(event) = self.netd[0].client.event().unwrap() {
            self.events.push(event);
        }
        &mut self.events
    }

    /// Does something in the network namespace of a container, of a client, or of `peer`.
    pub fn within<T>(&self, name: &str, body: impl FnOnce() -> T) -> T {
        let namespace = self.containers.get(name).map(AsFd::as_fd).or_else(|| self.outer.get(name)).unwrap();
        let enter = |namespace: BorrowedFd<'_>| setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        enter(namespace);
        let result = body();
        enter(self.home.as_fd());
        result
    }

    pub fn connect(&self, from: &str, to: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
        let to = to.into();
        let stream = self.within(from, || TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(stream)
    }

    /// An address of a container, of IPv4 or IPv6 as another one.
    pub fn address(&self, container: &str, like: IpAddr) -> IpAddr {
        let endpoint = self.configuration.plan.endpoints.iter().find(|one| one.service == container).unwrap();
        let Interface { address, address6, .. } = endpoint.interfaces[0];
        if like.is_ipv4() { address.into() } else { address6.unwrap().into() }
    }

    pub fn udp(&self, at: &str, address: IpAddr, port: u16) -> UdpSocket {
        let socket = self.within(at, || UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Where a service is published at an address of the host.
    pub fn port(&self, service: &str, at: impl Into<IpAddr>, udp: bool) -> SocketAddr {
        let at = at.into();
        let mut all = self.configuration.published.iter();
        let is =
            |one: &&Published| one.service == service && one.port.host_ip == at && one.port.is_udp() == udp;
        SocketAddr::new(at, all.find(is).unwrap().port.host_port)
    }

    /// The other TCP port by which a service is published at an address of the host.
    pub fn second_port(&self, service: &str, at: IpAddr) -> SocketAddr {
        let all = self.configuration.published.iter();
        let is = |one: &&Published| one.service == service && one.port.host_ip == at && !one.port.is_udp();
        SocketAddr::new(at, all.filter(is).nth(1).unwrap().port.host_port)
    }

    /// Has a container look a name up.
    pub fn resolve(&self, container: &str, name: &str) -> (u8, Vec<Ipv4Addr>) {
        let plan = &self.configuration.plan;
        let endpoint = plan.endpoints.iter().find(|one| one.service == container).unwrap();
        let network = plan.networks.iter().find(|one| one.name == endpoint.interfaces[0].network).unwrap();
        let socket = self.udp(container, Ipv4Addr::UNSPECIFIED.into(), 0);
        socket.send_to(&resolver::query(name), (network.gateway, 53)).unwrap();
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply).unwrap();
        resolver::read(&reply[..length])
    }

    pub fn netd_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.netd[0].child.pid)).unwrap().count()
    }

    pub fn netd_private_kb(&self) -> u64 {
        super::fixture::private_kb(self.netd[0].child.pid)
    }
}

/// Whether a connection was refused. Where the kernel has no queue for new ones a container's is established first,
/// and then reset.
#[track_caller]
pub fn is_refused(connection: std::io::Result<TcpStream>) -> bool {
    let refused = |error: std::io::Error| {
        let kinds = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::HostUnreachable];
        assert!(kinds.contains(&error.kind()) || error.kind() == ErrorKind::PermissionDenied, "{error}");
        true
    };
    match connection {
        Ok(mut stream) => stream.read(&mut [0]).map_or_else(refused, |_| false),
        Err(error) => refused(error),
    }
}

/// Polls until something holds.
#[track_caller]
pub fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As many descriptors as this process may have.
fn raise_descriptors() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(65536).min(65536);
    let raised = Rlimit { current: Some(most), maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).unwrap();
    most
}

fn start_netd(privileged: bool, descriptors: u64) -> (Netd, Channel) {
    let (supervisor, netd_end) = Channel::pair().unwrap();
    let (netd_hub, hub_netd) = Channel::pair().unwrap();
    let child = spawn(0, || {
        set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
        let limit = Rlimit { current: Some(descriptors), maximum: Some(descriptors) };
        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
        if !privileged {
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
                .unwrap();
        }
        if std::env::var_os("RUST_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            tracing_subscriber::fmt().with_env_filter(filter).init();
        }
        netd::run(netd_end).map_or_else(|error| panic!("{error:?}"), |()| 0)
    })
    .unwrap();
    (Netd { child, client: Client::new(supervisor), hub: Some(netd_hub.into()) }, hub_netd)
}

fn hub_process(plan: &NetworkPlan, site: &Channel, mut netds: Vec<Channel>) {
    let mut namespaces = Namespaces::open().unwrap();
    namespaces.apply(plan).unwrap();
    let intercepted = namespaces.intercept().unwrap();
    let names = bind_in_current_namespace(&plan.networks).unwrap();
    let Intercepted { icmp4, tcp6, udp6, icmp6, connections, .. } = &intercepted;
    let optional = [icmp4, tcp6, udp6, icmp6, connections];
    let present: Vec<bool> = optional.iter().map(|socket| socket.is_some()).collect();
    let fds: Vec<BorrowedFd<'_>> = (names.iter().flat_map(|one| [one.udp.as_fd(), one.tcp.as_fd()]))
        .chain(plan.endpoints.iter().map(|endpoint| namespaces.get(&endpoint.service).unwrap()))
        .chain([intercepted.tcp4.as_fd(), intercepted.udp4.as_fd()])
        .chain(optional.into_iter().flatten().map(AsFd::as_fd))
        .collect();
    site.send(&serde_json::to_vec(&present).unwrap(), &fds).unwrap();
    drop((intercepted, names));
    loop {
        let mut fds: Vec<PollFd<'_>> = netds.iter().map(|netd| PollFd::new(netd, PollFlags::IN)).collect();
        fds.push(PollFd::new(site, PollFlags::IN));
        poll(&mut fds, None).unwrap();
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[netds.len()] {
            return;
        }
        let mut ready = ready.into_iter();
        netds.retain(|netd| !ready.next().unwrap() || netd::serve_sockets(netd).unwrap());
    }
}

fn restart(site: &mut Site) {
    site.replace_netd();
    egress::both_ways(site);
    egress::datagrams(site);
    published::real_addresses(site);
    published::datagrams(site);
    balanced::virtual_address(site);
    assert_eq!(site.resolve("web", "peer.example.test"), (0, vec![PEER]));
}
