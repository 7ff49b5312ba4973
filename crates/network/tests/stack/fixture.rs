//! The stack under test: a hub in its own user and network namespace, netd beside us, and in each service's
//! namespace a process that does what it is told.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use network::balance::State;
use network::link::Namespaces;
use network::names::{NameSockets, bind_in_current_namespace};
use network::netd::{self, Client, Configuration, Descriptors, Published};
use network::plan::{Endpoint, Interface, Network, NetworkPlan, PublishedPort};
use nix::unistd::alarm;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use sys::channel::Channel;
use sys::process::{Child, namespace, spawn};

/// Longest that one check may take, in seconds.
const LONGEST: u32 = 120;

/// Runs a check, whose name is said before: SIGALRM ends this process when it takes too long.
pub fn timed(name: &str, check: impl FnOnce()) {
    print!("test {name} ... ");
    std::io::stdout().flush().unwrap();
    alarm::set(LONGEST);
    let start = Instant::now();
    check();
    alarm::cancel();
    println!("ok ({:?})", start.elapsed());
}

/// Ports that every service listens on: what comes is sent back; what comes is counted; see [`resets`].
pub const ECHO: u16 = 7;
pub const SINK: u16 = 9;
pub const RESETS: u16 = 10;

pub fn network(name: &str, third: u8, internal: bool) -> Network {
    Network {
        name: name.into(),
        bridge: format!("br-{name}"),
        subnet: Ipv4Addr::new(10, 211, third, 0),
        prefix: 24,
        gateway: Ipv4Addr::new(10, 211, third, 1),
        internal,
        v6: None,
        mtu: None,
    }
}

/// `links`: network, and third and fourth byte of the address.
pub fn endpoint(service: &str, links: &[(&str, u8, u8)], aliases: &[&str]) -> Endpoint {
    let link = |(index, (network, third, fourth)): (usize, &(&str, u8, u8))| Interface {
        network: (*network).into(),
        name: format!("eth{index}"),
        peer: format!("v{third}-{fourth}"),
        address: Ipv4Addr::new(10, 211, *third, *fourth),
        address6: None,
        fixed: false,
        mac: [2, 66, 10, 211, *third, *fourth],
        aliases: aliases.iter().chain(&[service]).map(ToString::to_string).collect(),
    };
    Endpoint {
        service: service.into(),
        group: service.into(),
        interfaces: links.iter().enumerate().map(link).collect(),
        ..Endpoint::default()
    }
}

fn plan() -> NetworkPlan {
    NetworkPlan {
        networks: vec![network("front", 0, false), network("back", 1, true)],
        endpoints: vec![
            endpoint("web", &[("front", 0, 2)], &[]),
            endpoint("app", &[("front", 0, 3), ("back", 1, 3)], &["appserver"]),
            endpoint("db", &[("back", 1, 2)], &[]),
        ],
        groups: Vec::new(),
    }
}

/// What a service is told to do.
#[derive(Debug, Serialize, Deserialize)]
enum Command {
    Connect(SocketAddrV4),
    Query { server: Ipv4Addr, query: Vec<u8>, tcp: bool },
    Flood { server: Ipv4Addr, count: usize },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    Refused,
    Unreachable,
    Silent,
    Reply(Vec<u8>),
}

pub struct Stack {
    pub plan: NetworkPlan,
    pub configuration: Configuration,
    hub: Channel,
    services: Vec<Channel>,
    netd: Child,
    client: Client,
    _hub: Child,
    pub resolver: super::resolver::Fake,
}

impl Stack {
    /// Before any thread exists.
    pub fn up() -> Self {
        let plan = plan();
        let (hub, hub_end) = Channel::pair().unwrap();
        let (netd_hub, hub_netd) = Channel::pair().unwrap();
        let (services, service_ends): (Vec<_>, Vec<_>) =
            plan.endpoints.iter().map(|_| Channel::pair().unwrap()).unzip();
        let mapped = rustix::pipe::pipe().unwrap();
        let child = spawn(namespace::USER | namespace::NETWORK, || {
            set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
            rustix::io::read(&mapped.0, &mut [0]).unwrap();
            hub_process(&plan, &hub_end, &hub_netd, &service_ends);
            0
        })
        .unwrap();
        map_ids(child.pid);
        rustix::io::write(&mapped.1, &[1]).unwrap();
        drop((hub_end, hub_netd, service_ends));
        let message = hub.recv_until(Instant::now() + Duration::from_secs(10)).unwrap().unwrap();
        println!("{}", String::from_utf8_lossy(&message.bytes));
        let names = take_names(&plan, message.fds);

        let (supervisor, netd_end) = Channel::pair().unwrap();
        let netd = spawn(0, || {
            set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
            if std::env::var_os("RUST_LOG").is_some() {
                tracing_subscriber::fmt()
                    .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                    .init();
            }
            netd::run(netd_end).map_or_else(|error| panic!("{error:?}"), |()| 0)
        })
        .unwrap();
        let resolver = super::resolver::Fake::start();
        let mut published = Vec::new();
        let mut listeners = Vec::new();
        let ports = [("app", ECHO), ("app", SINK), ("app", RESETS), ("web", 81), ("web", 80), ("db", ECHO)];
        for (service, container_port) in ports {
            let asked = PublishedPort::tcp(Ipv4Addr::LOCALHOST.into(), 0, container_port);
            let (listener, bound) = network::publish::bind(&asked).unwrap();
            let port = PublishedPort { host_port: bound.port(), ..asked };
            published.push(Published { service: service.into(), port, ftp_data: false });
            listeners.push(listener);
        }
        // The first resolver is dead: nothing listens there.
        let resolvers = vec![resolver.dead, resolver.address];
        let configuration =
            Configuration { plan: plan.clone(), published, resolvers, ..Configuration::default() };
        let mut client = Client::new(supervisor);
        let listeners: Vec<_> = listeners.iter().map(AsFd::as_fd).enumerate().collect();
        let with = Descriptors {
            hub: Some(netd_hub.as_fd()),
            names: &names,
            listeners: &listeners,
            ..Descriptors::default()
        };
        client.configure(&configuration, &with).unwrap();
        client.confirmed(Instant::now() + Duration::from_secs(5)).unwrap();
        Self { plan, configuration, hub, services, netd, client, _hub: child, resolver }
    }

    pub fn configure(&mut self, listeners: &[(usize, OwnedFd)]) -> Result<(), network::Error> {
        let listeners: Vec<_> = listeners.iter().map(|(index, fd)| (*index, fd.as_fd())).collect();
        let with = Descriptors { listeners: &listeners, ..Descriptors::default() };
        self.client.configure(&self.configuration, &with)?;
        self.client.confirmed(Instant::now() + Duration::from_secs(5))
    }

    /// Has the hub apply a plan; networks and services that it made.
    pub fn apply(&mut self, plan: &NetworkPlan) -> (Vec<String>, Vec<String>) {
        self.hub.send(&serde_json::to_vec(plan).unwrap(), &[]).unwrap();
        let reply = self.hub.recv_until(Instant::now() + Duration::from_secs(5)).unwrap().unwrap();
        serde_json::from_slice(&reply.bytes).unwrap()
    }

    pub fn port(&self, service: &str, container_port: u16) -> SocketAddr {
        let mut published = self.configuration.published.iter();
        let port = published.find(|one| one.service == service && one.port.container_port == container_port);
        let port = &port.unwrap().port;
        SocketAddr::new(port.host_ip, port.host_port)
    }

    fn endpoint(&self, service: &str) -> (usize, &Endpoint) {
        self.plan.endpoints.iter().enumerate().find(|(_, endpoint)| endpoint.service == service).unwrap()
    }

    pub fn address(&self, service: &str, link: usize) -> Ipv4Addr {
        self.endpoint(service).1.interfaces[link].address
    }

    fn tell(&self, service: &str, command: &Command) -> Outcome {
        self.start(service, command);
        self.outcome(service)
    }

    fn start(&self, service: &str, command: &Command) {
        let channel = &self.services[self.endpoint(service).0];
        channel.send(&serde_json::to_vec(command).unwrap(), &[]).unwrap();
    }

    /// Of what `service` was told to start.
    pub fn outcome(&self, service: &str) -> Outcome {
        let channel = &self.services[self.endpoint(service).0];
        let reply = channel.recv_until(Instant::now() + Duration::from_secs(60)).unwrap().unwrap();
        serde_json::from_slice(&reply.bytes).unwrap()
    }

    /// Has `service` connect.
    pub fn connect(&self, service: &str, address: Ipv4Addr, port: u16) -> Outcome {
        self.tell(service, &Command::Connect(SocketAddrV4::new(address, port)))
    }

    /// Has `service` look a name up at the gateway of its network number `link`: code and addresses.
    pub fn resolve(
        &self,
        service: &str,
        link: usize,
        name: &str,
        tcp: bool,
    ) -> Result<(u8, Vec<Ipv4Addr>), Outcome> {
        let network = &self.endpoint(service).1.interfaces[link].network;
        let network = self.plan.networks.iter().find(|one| one.name == *network).unwrap();
        self.ask(service, network.gateway, name, tcp)
    }

    pub fn ask(
        &self,
        service: &str,
        server: Ipv4Addr,
        name: &str,
        tcp: bool,
    ) -> Result<(u8, Vec<Ipv4Addr>), Outcome> {
        let query = super::resolver::query(name);
        match self.tell(service, &Command::Query { server, query, tcp }) {
            Outcome::Reply(reply) => Ok(super::resolver::read(&reply)),
            other => Err(other),
        }
    }

    /// Has `service` send a query to the name server of its first network: the reply.
    pub fn exchange(&self, service: &str, query: Vec<u8>, tcp: bool) -> Vec<u8> {
        let network = &self.endpoint(service).1.interfaces[0].network;
        let server = self.plan.networks.iter().find(|one| one.name == *network).unwrap().gateway;
        match self.tell(service, &Command::Query { server, query, tcp }) {
            Outcome::Reply(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    pub fn start_query(&self, service: &str, server: Ipv4Addr, query: Vec<u8>) {
        self.start(service, &Command::Query { server, query, tcp: false });
    }

    /// Has `service` ask `count` questions without waiting for replies.
    pub fn start_flood(&self, service: &str, server: Ipv4Addr, count: usize) {
        self.start(service, &Command::Flood { server, count });
    }

    /// Tells netd what has become of a container.
    pub fn tell_state(&self, container: &str, state: State) {
        self.client.states(&[(container.to_owned(), state)].into()).unwrap();
    }

    /// Processor time that netd has used.
    pub fn netd_cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.netd.pid)).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_ascii_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Sets netd's limit of open files; the one before.
    pub fn limit_netd_descriptors(&self, count: u64) -> u64 {
        let pid = rustix::process::Pid::from_raw(self.netd.pid);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let new = rustix::process::Rlimit { current: Some(count), maximum: limit.maximum };
        let old = rustix::process::prlimit(pid, rustix::process::Resource::Nofile, new).unwrap();
        old.current.unwrap_or(u64::MAX)
    }

    pub fn netd_private_kb(&self) -> u64 {
        private_kb(self.netd.pid)
    }
}

/// Memory that a process shares with no other.
pub fn private_kb(pid: i32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = smaps.lines().filter(|line| line.starts_with("Private_"));
    private.map(|line| line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

pub fn map_ids(pid: i32) {
    let write = |file: &str, text: String| std::fs::write(format!("/proc/{pid}/{file}"), text).unwrap();
    write("uid_map", format!("0 {} 1", rustix::process::getuid().as_raw()));
    write("setgroups", "deny".into());
    write("gid_map", format!("0 {} 1", rustix::process::getgid().as_raw()));
}

fn take_names(plan: &NetworkPlan, fds: Vec<OwnedFd>) -> Vec<NameSockets> {
    let mut fds = fds.into_iter();
    let sockets = |network: &Network| NameSockets {
        network: network.name.clone(),
        udp: fds.next().unwrap(),
        tcp: fds.next().unwrap(),
    };
    plan.networks.iter().map(sockets).collect()
}

fn hub_process(plan: &NetworkPlan, supervisor: &Channel, netd: &Channel, services: &[Channel]) {
    let start = Instant::now();
    let mut namespaces = Namespaces::open().unwrap();
    namespaces.apply(plan).unwrap();
    let wired = start.elapsed();
    let names = bind_in_current_namespace(&plan.networks).unwrap();
    let mut children = Vec::new();
    for (endpoint, channel) in plan.endpoints.iter().zip(services) {
        let netns = namespaces.get(&endpoint.service).unwrap();
        let probe = network::link::socket_in(netns).unwrap();
        drop(probe);
        children.push(
            spawn(0, || {
                set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
                nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                service_process(channel);
                0
            })
            .unwrap(),
        );
    }
    let fds: Vec<_> = names.iter().flat_map(|one| [one.udp.as_fd(), one.tcp.as_fd()]).collect();
    supervisor.send(format!("wired {} services in {wired:?}", services.len()).as_bytes(), &fds).unwrap();
    drop(names);
    loop {
        let mut fds = [PollFd::new(netd, PollFlags::IN), PollFd::new(supervisor, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        let (asked, told) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if asked && !netd::serve_sockets(netd).unwrap() {
            return;
        }
        if told {
            let Some(message) = supervisor.recv().unwrap() else { return };
            let changes = namespaces.apply(&serde_json::from_slice(&message.bytes).unwrap()).unwrap();
            let reply = serde_json::to_vec(&(changes.networks, changes.endpoints)).unwrap();
            supervisor.send(&reply, &[]).unwrap();
        }
    }
}

fn service_process(channel: &Channel) {
    serve(ECHO, echo);
    serve(80, echo);
    serve(SINK, sink);
    serve(RESETS, resets);
    while let Ok(Some(message)) = channel.recv() {
        let outcome = match serde_json::from_slice(&message.bytes).unwrap() {
            Command::Connect(address) => connect(address),
            Command::Query { server, query, tcp } => ask(server, &query, tcp),
            Command::Flood { server, count } => flood(server, count),
        };
        channel.send(&serde_json::to_vec(&outcome).unwrap(), &[]).unwrap();
    }
}

fn serve(port: u16, handler: fn(TcpStream)) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let thread = std::thread::Builder::new().stack_size(96 * 1024);
            thread.spawn(move || handler(stream)).unwrap();
        }
    });
}

pub fn echo(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 65536];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    let _ended = stream.shutdown(Shutdown::Write);
}

fn sink(mut stream: TcpStream) {
    let mut buffer = vec![0; 65536];
    let mut count = 0;
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        count += length;
    }
    let _ended = stream.write_all(count.to_string().as_bytes());
}

/// Counts connections that were reset by the client (`x`), tells the count (`?`), or resets (`!`). Reads late what
/// comes before a reset (`w`), and tells how much that was (`=`).
fn resets(mut stream: TcpStream) {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    static READ: AtomicUsize = AtomicUsize::new(0);
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    match byte[0] {
        b'?' => stream.write_all(SEEN.load(Ordering::SeqCst).to_string().as_bytes()).unwrap(),
        b'=' => stream.write_all(READ.load(Ordering::SeqCst).to_string().as_bytes()).unwrap(),
        b'w' => {
            stream.write_all(&byte).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            let mut buffer = vec![0; 65536];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                READ.fetch_add(length, Ordering::SeqCst);
            }
        }
        b'!' => rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap(),
        _ => {
            stream.write_all(&byte).unwrap();
            if stream.read(&mut byte).is_err() {
                SEEN.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

fn connect(address: SocketAddrV4) -> Outcome {
    match TcpStream::connect_timeout(&address.into(), Duration::from_secs(2)) {
        Ok(_) => Outcome::Done,
        Err(error) => failure(&error),
    }
}

fn failure(error: &std::io::Error) -> Outcome {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Outcome::Refused,
        std::io::ErrorKind::NetworkUnreachable | std::io::ErrorKind::HostUnreachable => Outcome::Unreachable,
        _ => Outcome::Silent,
    }
}

fn ask(server: Ipv4Addr, query: &[u8], tcp: bool) -> Outcome {
    let patience = Some(Duration::from_secs(12));
    let exchange = || -> std::io::Result<Vec<u8>> {
        if tcp {
            let mut stream = TcpStream::connect((server, 53))?;
            stream.set_read_timeout(patience)?;
            stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], query].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut reply)?;
            return Ok(reply);
        }
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(patience)?;
        socket.connect((server, 53))?;
        socket.send(query)?;
        let mut reply = vec![0; 4096];
        let length = socket.recv(&mut reply)?;
        reply.truncate(length);
        Ok(reply)
    };
    exchange().map_or_else(|error| failure(&error), Outcome::Reply)
}

fn flood(server: Ipv4Addr, count: usize) -> Outcome {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((server, 53)).unwrap();
    for number in 0..count {
        let name = match number % 8 {
            0 => "app".to_owned(),
            1 => format!("silent-flood{number}.example.test"),
            _ => format!("flood{number}.example.test"),
        };
        socket.send(&super::resolver::query(&name)).unwrap();
    }
    Outcome::Done
}
