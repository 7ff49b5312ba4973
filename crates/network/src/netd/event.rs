//! The event loop: one thread, level-triggered epoll, nothing that blocks.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Resource, Rlimit};
use sys::channel::{Channel, Message};

use super::connection::Dial;
use super::datagram::{Datagrams, Purpose};
use super::echo::Echo;
use super::ftp::Gate;
use super::knock::Knocks;
use super::proxy::Proxy;
use super::resolver::{Learned, Resolver};
use super::slab::{Key, Slab};
use super::sockets::Waiter;
use super::topology::{Entrance, ServiceId, Way};
use super::world::{Token, World};
use super::{Configuration, Descriptor, Event, Intercept, Published, Reply, Request, encode};
use crate::Error;
use crate::error::Doing;
use crate::names::NameSockets;
use crate::plan::Protocol;

/// How long accepting rests when descriptors or memory have run out.
const REST: Duration = Duration::from_millis(100);
/// Connections accepted from one listener before others get their turn.
const ACCEPTS: usize = 64;

/// Messages that wait for the supervisor; of refusals, further ones are dropped.
const EVENTS: usize = 1024;
/// Descriptors that are not for connections.
const RESERVED: u64 = 512;

struct Listener {
    socket: OwnedFd,
    kind: ListenerKind,
    /// It is not watched, until the next rest is over.
    rests: bool,
}

enum ListenerKind {
    Published(Published),
    Intercepted,
    /// A container's, of which connections go to the host.
    Inward(SocketAddr),
}

struct Netd {
    world: World,
    supervisor: Channel,
    listeners: Slab<Listener>,
    /// Published UDP ports, by what takes their datagrams.
    udp: Vec<(Key, Published)>,
    /// What takes intercepted datagrams.
    intercepted_udp: Vec<Key>,
    /// Listeners that rest are watched again then.
    resting: Option<Instant>,
    proxy: Proxy,
    datagrams: Datagrams,
    echo: Echo,
    knocks: Knocks,
    resolver: Resolver,
    /// A configuration whose descriptors have not all come.
    incoming: Option<Incoming>,
    /// What the supervisor has not taken yet.
    outgoing: VecDeque<Reply>,
}

struct Incoming {
    configuration: Box<Configuration>,
    descriptors: Vec<Descriptor>,
    fds: Vec<OwnedFd>,
}

/// netd's body: carries what passes between the host and the stack, and answers names, until the supervisor's end of
/// the channel is closed, or the hub's: without sockets of the stack's it is of no use, and another one that gets a new
/// channel may be. The process must have one thread and nothing else to do.
///
/// # Errors
/// When the kernel takes away what the loop itself needs, or the supervisor's channel breaks.
pub fn run(supervisor: Channel) -> Result<(), Error> {
    // Two descriptors a connection, four while it is busy.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "keep the limit of open files");
    }
    let descriptors = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = usize::try_from(descriptors.saturating_sub(RESERVED) / 4).unwrap_or(usize::MAX);
    // splice(2) has no MSG_NOSIGNAL, and a forked process may have the signal's default action.
    let mut pipe = nix::sys::signal::SigSet::empty();
    pipe.add(nix::sys::signal::Signal::SIGPIPE);
    pipe.thread_block().doing(|| "block SIGPIPE")?;
    rustix::io::ioctl_fionbio(&supervisor, true).doing(|| "set the supervisor's channel non-blocking")?;
    let world = World::new(connections).doing(|| "create epoll instance")?;
    let watched = world.poll.add(&supervisor, Token::Supervisor, EventFlags::IN);
    watched.doing(|| "watch the supervisor's channel")?;
    let mut netd = Netd {
        world,
        supervisor,
        listeners: Slab::new(),
        udp: Vec::new(),
        intercepted_udp: Vec::new(),
        resting: None,
        proxy: Proxy::new(),
        datagrams: Datagrams::new(),
        echo: Echo::new(),
        knocks: Knocks::default(),
        resolver: Resolver::new(),
        incoming: None,
        outgoing: VecDeque::new(),
    };
    netd.serve()
}

impl Netd {
    fn serve(&mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(256);
        loop {
            self.world.poll.wait(&mut events, self.next_deadline()).doing(|| "wait for events")?;
            // With nothing else to do, another wait tells sooner whether there are more than a vain `accept` does.
            let accepts = if events.len() == 1 { 1 } else { ACCEPTS };
            for event in &events {
                let (data, flags) = (event.data, event.flags);
                if !self.handle(Token::decode(data.u64()), flags, accepts)? {
                    return Ok(());
                }
                // Who has been told an address may connect there while other events are handled.
                self.learn();
            }
            if self.next_deadline().is_some() {
                self.expire(Instant::now());
                self.learn();
            }
            self.tell();
        }
    }

    /// Remembers which names led containers to which addresses, for their egress policies.
    fn learn(&mut self) {
        self.world.events.extend(self.resolver.take_news());
        for Learned { container, name, addresses, lifetime } in self.resolver.take_learned() {
            self.world.topology.learned.record(&container, &name, addresses, lifetime, Instant::now());
        }
    }

    /// `false` when the supervisor or the hub is gone.
    fn handle(&mut self, token: Token, flags: EventFlags, accepts: usize) -> Result<bool, Error> {
        let world = &mut self.world;
        match token {
            Token::Supervisor => return self.supervised(),
            Token::Hub => return Ok(self.refill()),
            Token::Listener(key) => self.accept(key, accepts),
            Token::Proxy(key, end) => self.proxy.ready(world, key, end, flags),
            Token::DatagramListener(key) => self.datagrams.arrive(world, key),
            Token::Datagram(key, end) => self.datagrams.ready(key, end),
            Token::EchoRequest(v6) => self.echo.request(world, v6),
            Token::EchoReply(key) => self.echo.reply(key),
            Token::Knock => self.knocks.arrive(world),
            Token::Called(key) => self.knocks.called(world, key),
            Token::NameUdp(key) => self.resolver.datagrams(&world.poll, key),
            Token::NameTcp(key) => self.resolver.accept(&world.poll, key),
            Token::NameClient(key) => self.resolver.client_ready(&world.poll, key, flags),
            Token::NameQuery(key) => self.resolver.reply_ready(&world.poll, key, flags),
        }
        Ok(true)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.proxy.next_deadline(),
            self.datagrams.next_deadline(),
            self.echo.next_deadline(),
            self.knocks.next_deadline(),
            self.resolver.next_deadline(),
            self.world.sockets.next_deadline(),
            self.resting,
        ];
        deadlines.into_iter().flatten().min()
    }

    fn expire(&mut self, now: Instant) {
        self.proxy.expire(&mut self.world, now);
        self.datagrams.expire(&mut self.world, now);
        self.echo.expire(now);
        self.knocks.expire(&mut self.world, now);
        self.resolver.expire(&self.world.poll, now);
        self.world.sockets.expire(now);
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
            self.wake_listeners();
        }
    }

    // Listeners.

    /// Stops watching a listener for a moment: clients wait in its backlog.
    fn rest(&mut self, key: Key) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        listener.rests = true;
        if let Err(error) =
            self.world.poll.modify(&listener.socket, Token::Listener(key), EventFlags::empty())
        {
            tracing::warn!(%error, "leave a listener alone");
        }
        self.resting.get_or_insert_with(|| Instant::now() + REST);
    }

    fn wake_listeners(&mut self) {
        for (key, listener) in self.listeners.iter_mut().filter(|(_, listener)| listener.rests) {
            listener.rests = false;
            if let Err(error) = self.world.poll.modify(&listener.socket, Token::Listener(key), EventFlags::IN)
            {
                tracing::warn!(%error, "watch a listener");
            }
        }
    }

    fn accept(&mut self, key: Key, most: usize) {
        for _ in 0..most {
            let Some(listener) = self.listeners.get(key) else { return };
            let service = match &listener.kind {
                ListenerKind::Published(published) => Some(self.world.topology.intern(&published.service)),
                ListenerKind::Intercepted | ListenerKind::Inward(_) => None,
            };
            let open = service.map_or(0, |service| self.world.topology.open(service));
            let full = self.proxy.len() >= self.world.most || open >= self.world.most_each;
            if full || self.world.sockets.is_short() {
                return self.rest(key);
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (client, address) = match rustix::net::acceptfrom_with(&listener.socket, flags) {
                Ok((client, Some(address))) => (client, SocketAddr::try_from(address)),
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    tracing::warn!("out of descriptors or memory: connections wait");
                    return self.rest(key);
                }
                // The connection itself failed before it was accepted (accept(2)); others may wait behind it.
                other => {
                    tracing::debug!(?other, "accept");
                    continue;
                }
            };
            let Ok(address) = address else { continue };
            match (service, &listener.kind) {
                (Some(service), ListenerKind::Published(published)) => {
                    let (pool, port) = (published.ftp_data, published.port);
                    if pool {
                        self.passive_data(client, address, service, port.host_port);
                        continue;
                    }
                    let gate = match port.protocol {
                        Protocol::Ftp { passive, announce } => {
                            Some(Gate { service, passive, announce: announce.map(IpAddr::V4) })
                        }
                        Protocol::Tcp | Protocol::Udp => None,
                    };
                    let dial = Dial::Service(service, port.container_port, Entrance::Host);
                    self.proxy.accepted(&mut self.world, client, address, dial, gate);
                }
                (_, ListenerKind::Inward(target)) => {
                    let dial = Dial::Host(*target, None);
                    self.proxy.accepted(&mut self.world, client, address, dial, None);
                }
                _ => self.intercepted(client, address),
            }
        }
    }

    /// A container has connected to something that is not in its network.
    fn intercepted(&mut self, client: OwnedFd, source: SocketAddr) {
        let now = Instant::now();
        // The address that it connected to is the accepted socket's own (`TPROXY`).
        let destination = rustix::net::getsockname(&client).ok().and_then(|at| SocketAddr::try_from(at).ok());
        let Some(destination) = destination else { return };
        if let Some((socket, service)) = self.knocks.claim(&mut self.world, source, destination) {
            let dial = Dial::World(destination, service);
            return self.proxy.joined(&mut self.world, client, source, socket, dial);
        }
        if let Some((client_address, from)) = self.world.ftp.active(source.ip(), destination) {
            let dial = Dial::Host(client_address, Some(from));
            return self.proxy.accepted(&mut self.world, client, source, dial, None);
        }
        let dial = match self.world.topology.way(source.ip(), destination, now) {
            Way::Service(service, entrance) => Dial::Service(service, destination.port(), entrance),
            Way::World(service) => Dial::World(destination, service),
            Way::Nowhere => return super::flow::reset_on_close(&client),
            Way::Forbidden(container, name) => {
                self.world.refuse(container, destination, name, "tcp", now);
                return super::flow::reset_on_close(&client);
            }
        };
        if let Dial::Service(service, ..) | Dial::World(_, service) = dial
            && self.world.topology.open(service) >= self.world.most_each
        {
            // All containers share this listener: who has enough may not keep it from others by having to wait.
            tracing::debug!(service = self.world.topology.name(service), "has too many connections");
            return super::flow::reset_on_close(&client);
        }
        self.proxy.accepted(&mut self.world, client, source, dial, None);
    }

    /// A client has connected to a port of an FTP service's pool.
    fn passive_data(&mut self, client: OwnedFd, address: SocketAddr, service: ServiceId, port: u16) {
        let mut targets = self.world.ftp.passive(service, port, address);
        match targets.pop() {
            Some(first) => {
                let dial = Dial::Stack(first, targets);
                self.proxy.accepted(&mut self.world, client, address, dial, None);
            }
            None => super::flow::reset_on_close(&client),
        }
    }

    // The hub.

    /// Takes the sockets that the hub sent; `false` when it will send no more.
    fn refill(&mut self) -> bool {
        let Some(supplied) = self.world.sockets.refill() else {
            tracing::info!("the hub's channel has ended");
            return false;
        };
        for (waiter, socket) in supplied {
            match waiter {
                Waiter::Connection(key) => self.proxy.supply(&mut self.world, key, socket),
                Waiter::Datagrams(key) => self.datagrams.supply(&mut self.world, key, socket),
            }
        }
        if self.resting.is_some() && !self.world.sockets.is_short() {
            self.wake_listeners();
        }
        true
    }

    // The supervisor.

    /// Passes on what has happened, as far as the supervisor takes it.
    fn tell(&mut self) {
        for event in self.world.events.drain(..) {
            let expendable = matches!(event, Event::Refused { .. } | Event::Ftp { .. });
            if self.outgoing.len() < EVENTS || !expendable {
                self.outgoing.push_back(Reply::Event(event));
            }
        }
        while let Some(reply) = self.outgoing.front() {
            match encode(reply).and_then(|message| self.supervisor.send(&message, &[])) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.resting.get_or_insert_with(|| Instant::now() + REST);
                    return;
                }
                // If it is gone, the next event says so.
                Err(error) => {
                    tracing::debug!(%error, "tell the supervisor");
                    return;
                }
            }
        }
    }

    fn supervised(&mut self) -> Result<bool, Error> {
        match self.supervisor.recv() {
            Ok(Some(message)) => self.request(message)?,
            Ok(None) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Error::system("receive from the supervisor", error)),
        }
        Ok(true)
    }

    fn request(&mut self, message: Message) -> Result<(), Error> {
        let request = serde_json::from_slice(&message.bytes).map_err(std::io::Error::from);
        match request.doing(|| "read the supervisor's request")? {
            Request::Configure { configuration, descriptors } => {
                self.incoming = Some(Incoming { configuration, descriptors, fds: message.fds });
            }
            Request::More => {
                if let Some(incoming) = &mut self.incoming {
                    incoming.fds.extend(message.fds);
                }
            }
            Request::States(states) => {
                self.resolver.change_states(states.clone());
                self.world.topology.set_states(states, Instant::now(), &mut self.world.events);
                self.datagrams.leave_replicas(&mut self.world);
                self.proxy.retry_held(&mut self.world);
                return Ok(());
            }
            Request::AwaitRest(container) => {
                self.proxy.await_rest(container, Instant::now());
                return Ok(());
            }
        }
        let complete = |incoming: &mut Incoming| incoming.fds.len() >= incoming.descriptors.len();
        let Some(incoming) = self.incoming.take_if(complete) else { return Ok(()) };
        let reply = match self.configure(incoming) {
            Ok(()) => Reply::Configured,
            Err(reason) => Reply::Refused(reason),
        };
        // A supervisor that was busy for a while may have no room for it now: it waits in line.
        self.outgoing.push_back(reply);
        Ok(())
    }

    /// Checks everything first, then changes over; on refusal the old configuration stays in force.
    fn configure(&mut self, incoming: Incoming) -> Result<(), String> {
        let Incoming { configuration, descriptors, fds } = incoming;
        let mut hub = None;
        let mut names: Vec<NameSockets> = Vec::new();
        let mut fresh = Vec::new();
        let mut intercepted = Vec::new();
        let mut inward = Vec::new();
        let mut udp = None;
        for (descriptor, fd) in descriptors.into_iter().zip(fds) {
            match descriptor {
                Descriptor::Hub => hub = Some(fd),
                Descriptor::NameUdp(network) => udp = Some((network, fd)),
                Descriptor::NameTcp => {
                    names.extend(udp.take().map(|(network, udp)| NameSockets { network, udp, tcp: fd }))
                }
                Descriptor::Listener(index) => fresh.push((index, fd)),
                Descriptor::Intercepted(what) => intercepted.push((what, fd)),
                Descriptor::Inward => inward.push(fd),
            }
        }
        let missing = (configuration.published.iter().enumerate())
            .find(|(index, published)| !fresh.iter().any(|(at, _)| at == index) && !self.listens(published));
        if let Some((_, published)) = missing {
            let (port, service) = (published.port.host_port, &published.service);
            return Err(format!("no listening socket for port {port} of service `{service}`"));
        }
        if let Some(hub) = hub {
            self.world.sockets.join(&self.world.poll, hub.into())?;
        }
        let Configuration { plan, published, inward: inward_to, resolvers, states } = *configuration;
        self.resolver.set_states(states.clone());
        let changed = self.world.topology.configure(plan.clone(), states, &mut self.world.events);
        self.change_listeners(&published, fresh)?;
        if !intercepted.is_empty() {
            self.intercept(intercepted).map_err(|error| format!("watch what is intercepted: {error}"))?;
        }
        self.listen_inside(inward.into_iter().zip(inward_to.iter().map(|one| one.target)))
            .map_err(|error| format!("watch a container's port: {error}"))?;
        let world = &mut self.world;
        self.datagrams.leave_senders(world, &changed);
        self.datagrams.leave_replicas(world);
        self.resolver.configure(&world.poll, plan, resolvers, names)?;
        self.proxy.retry_held(world);
        Ok(())
    }

    /// Whether a published port has its socket.
    fn listens(&self, published: &Published) -> bool {
        let mut tcp = self.listeners.iter().filter_map(|(_, listener)| match &listener.kind {
            ListenerKind::Published(other) => Some(other),
            ListenerKind::Intercepted | ListenerKind::Inward(_) => None,
        });
        tcp.any(|other| same_port(other, published))
            || self.udp.iter().any(|(_, one)| same_port(one, published))
    }

    /// Whether a published port has this very socket.
    fn listens_with(&self, published: &Published, socket: &OwnedFd) -> bool {
        let tcp = self.listeners.iter().filter_map(|(_, listener)| match &listener.kind {
            ListenerKind::Published(other) => Some((other, &listener.socket)),
            ListenerKind::Intercepted | ListenerKind::Inward(_) => None,
        });
        let udp = self.udp.iter().filter_map(|(key, one)| Some((one, self.datagrams.socket(*key)?)));
        let mut own = tcp.chain(udp).filter(|(one, _)| same_port(one, published));
        own.any(|(_, own)| crate::direct::is_same(own.as_fd(), socket.as_fd()))
    }

    fn change_listeners(
        &mut self,
        published: &[Published],
        mut fresh: Vec<(usize, OwnedFd)>,
    ) -> Result<(), String> {
        // Those that are there already stay, with their flows.
        fresh.retain(|(index, socket)| {
            !published.get(*index).is_some_and(|one| self.listens_with(one, socket))
        });
        let replaced: BTreeSet<usize> = fresh.iter().map(|(index, _)| *index).collect();
        let stays = |other: &Published| {
            let mut kept = published.iter().enumerate().filter(|(index, _)| !replaced.contains(index));
            kept.find(|(_, one)| same_port(one, other)).map(|(_, one)| one.clone())
        };
        let mut gone = Vec::new();
        for (key, listener) in self.listeners.iter_mut() {
            let ListenerKind::Published(other) = &mut listener.kind else { continue };
            match stays(other) {
                Some(one) => *other = one,
                None => gone.push(key),
            }
        }
        for listener in gone.into_iter().filter_map(|key| self.listeners.remove(key)) {
            self.world.poll.delete(&listener.socket);
        }
        let udp = std::mem::take(&mut self.udp);
        for (key, other) in udp {
            // Datagrams of a port that leads elsewhere now are another flow.
            match stays(&other).filter(|one| *one == other) {
                Some(one) => self.udp.push((key, one)),
                None => self.datagrams.close_listener(&mut self.world, key),
            }
        }
        for (index, socket) in fresh {
            let Some(published) = published.get(index) else { continue };
            self.listen(socket, published.clone())
                .map_err(|error| format!("watch port {}: {error}", published.port.host_port))?;
        }
        Ok(())
    }

    fn listen(&mut self, socket: OwnedFd, published: Published) -> rustix::io::Result<()> {
        if published.port.is_udp() {
            let service = self.world.topology.intern(&published.service);
            let purpose = Purpose::Published(service, published.port.container_port);
            let key = self.datagrams.listen(&self.world, socket, purpose)?;
            self.udp.push((key, published));
            return Ok(());
        }
        self.watch(Listener { socket, kind: ListenerKind::Published(published), rests: false })
    }

    fn watch(&mut self, listener: Listener) -> rustix::io::Result<()> {
        let key = self.listeners.insert(listener);
        let Some(listener) = self.listeners.get(key) else { return Ok(()) };
        self.world.poll.add(&listener.socket, Token::Listener(key), EventFlags::IN)
    }

    /// Takes new sockets of containers whose ports lead to the host, in place of those before.
    fn listen_inside(
        &mut self,
        sockets: impl Iterator<Item = (OwnedFd, SocketAddr)>,
    ) -> rustix::io::Result<()> {
        let old = self.listeners.iter().filter(|(_, one)| matches!(one.kind, ListenerKind::Inward(_)));
        let old: Vec<Key> = old.map(|(key, _)| key).collect();
        for listener in old.into_iter().filter_map(|key| self.listeners.remove(key)) {
            self.world.poll.delete(&listener.socket);
        }
        for (socket, target) in sockets {
            self.watch(Listener { socket, kind: ListenerKind::Inward(target), rests: false })?;
        }
        Ok(())
    }

    /// Takes new sockets for what containers send out of their networks, in place of those before.
    fn intercept(&mut self, sockets: Vec<(Intercept, OwnedFd)>) -> rustix::io::Result<()> {
        let old = self.listeners.iter().filter(|(_, one)| matches!(one.kind, ListenerKind::Intercepted));
        let old: Vec<Key> = old.map(|(key, _)| key).collect();
        for listener in old.into_iter().filter_map(|key| self.listeners.remove(key)) {
            self.world.poll.delete(&listener.socket);
        }
        for key in std::mem::take(&mut self.intercepted_udp) {
            self.datagrams.close_listener(&mut self.world, key);
        }
        for (what, socket) in sockets {
            match what {
                Intercept::Tcp => {
                    // What is accepted inherits it.
                    crate::publish::tune(&socket)?;
                    self.watch(Listener { socket, kind: ListenerKind::Intercepted, rests: false })?;
                }
                Intercept::Udp4 | Intercept::Udp6 => {
                    let key = self.datagrams.listen(&self.world, socket, Purpose::Intercepted)?;
                    self.intercepted_udp.push(key);
                }
                Intercept::Connections => self.knocks.listen(&self.world, socket)?,
                Intercept::Icmp4 => self.echo.listen(&self.world, socket, false)?,
                Intercept::Icmp6 => self.echo.listen(&self.world, socket, true)?,
            }
        }
        self.world.topology.intercepted = true;
        Ok(())
    }
}

fn same_port(one: &Published, other: &Published) -> bool {
    let key =
        |published: &Published| (published.port.host_ip, published.port.host_port, published.port.is_udp());
    key(one) == key(other)
}
