//! The event loop: one thread, level-triggered epoll, nothing that blocks.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit};
use sys::channel::{Channel, Message};

use super::proxy::{End, Proxy};
use super::resolver::Resolver;
use super::slab::{Key, Slab};
use super::{Configuration, Published, Reply, Request, SocketRequest, encode};
use crate::Error;
use crate::error::Doing;
use crate::names::NameSockets;

/// Stack-side sockets kept ready.
const POOL: usize = 32;
/// How long accepting rests when descriptors or memory have run out.
const REST: Duration = Duration::from_millis(100);
/// Connections accepted from one listener before others get their turn.
const ACCEPTS: usize = 64;

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Supervisor,
    Hub,
    Listener(Key),
    Proxy(Key, End),
    NameUdp(Key),
    NameTcp(Key),
    NameClient(Key),
    NameQuery(Key),
    Inward(Key),
}

impl Token {
    fn encode(self) -> EventData {
        let pack =
            |kind: u64, key: Key| (kind << 56) | (u64::from(key.generation) << 32) | u64::from(key.index);
        EventData::new_u64(match self {
            Self::Supervisor => 0,
            Self::Hub => 1 << 56,
            Self::Listener(key) => pack(2, key),
            Self::Proxy(key, End::Client) => pack(3, key),
            Self::Proxy(key, End::Upstream) => pack(4, key),
            Self::NameUdp(key) => pack(5, key),
            Self::NameTcp(key) => pack(6, key),
            Self::NameClient(key) => pack(7, key),
            Self::NameQuery(key) => pack(8, key),
            Self::Inward(key) => pack(9, key),
        })
    }

    fn decode(data: u64) -> Self {
        let key = Key { index: data as u32, generation: (data >> 32) as u32 & 0x00ff_ffff };
        match data >> 56 {
            0 => Self::Supervisor,
            1 => Self::Hub,
            2 => Self::Listener(key),
            3 => Self::Proxy(key, End::Client),
            4 => Self::Proxy(key, End::Upstream),
            5 => Self::NameUdp(key),
            6 => Self::NameTcp(key),
            7 => Self::NameClient(key),
            8 => Self::NameQuery(key),
            _ => Self::Inward(key),
        }
    }
}

/// The epoll instance.
#[derive(Debug)]
pub(super) struct Poll(OwnedFd);

impl Poll {
    pub(super) fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::add(&self.0, fd, token.encode(), flags)
    }

    pub(super) fn modify(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::modify(&self.0, fd, token.encode(), flags)
    }

    /// Needed where another process holds the same open file: closing alone would leave it registered.
    pub(super) fn delete(&self, fd: impl AsFd) {
        if let Err(error) = epoll::delete(&self.0, fd) {
            tracing::debug!(%error, "not in epoll");
        }
    }
}

struct Listener {
    socket: OwnedFd,
    published: Published,
}

struct Netd {
    poll: Poll,
    supervisor: Channel,
    hub: Option<Channel>,
    /// Sockets in the stack's network namespace.
    pool: Vec<OwnedFd>,
    /// A request to the hub is not answered yet.
    requested: bool,
    /// When to ask the hub again after it had none to give.
    ask_again: Option<Instant>,
    listeners: Slab<Listener>,
    /// Listening sockets of containers whose ports lead to the host.
    inward: Slab<(OwnedFd, SocketAddr)>,
    /// Listeners are not watched until then.
    resting: Option<Instant>,
    proxy: Proxy,
    resolver: Resolver,
    /// A configuration whose descriptors have not all come.
    incoming: Option<Incoming>,
}

struct Incoming {
    configuration: Configuration,
    hub: bool,
    names: Vec<String>,
    listeners: Vec<usize>,
    fds: Vec<OwnedFd>,
}

/// netd's body: carries published ports and answers names until the supervisor's end of the channel is closed.
/// The process must have one thread and nothing else to do.
///
/// # Errors
/// Only what makes going on impossible: epoll or the supervisor's channel failing.
pub fn run(supervisor: Channel) -> Result<(), Error> {
    // Each connection takes two descriptors, up to six while it is busy.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "keep the limit of open files");
    }
    // splice(2) has no MSG_NOSIGNAL, and a forked process may have the signal's default action.
    let mut pipe = nix::sys::signal::SigSet::empty();
    pipe.add(nix::sys::signal::Signal::SIGPIPE);
    pipe.thread_block().doing(|| "block SIGPIPE")?;
    rustix::io::ioctl_fionbio(&supervisor, true).doing(|| "set the supervisor's channel non-blocking")?;
    let poll = Poll(epoll::create(epoll::CreateFlags::CLOEXEC).doing(|| "create epoll instance")?);
    poll.add(&supervisor, Token::Supervisor, EventFlags::IN).doing(|| "watch the supervisor's channel")?;
    let mut netd = Netd {
        poll,
        supervisor,
        hub: None,
        pool: Vec::new(),
        requested: false,
        ask_again: None,
        listeners: Slab::new(),
        inward: Slab::new(),
        resting: None,
        proxy: Proxy::new(),
        resolver: Resolver::new(),
        incoming: None,
    };
    netd.serve()
}

impl Netd {
    fn serve(&mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(256);
        loop {
            events.clear();
            let timeout = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            // Rounded up to epoll's milliseconds, so that the last wait is no busy loop.
            let timeout = timeout.map(|left| left.saturating_add(Duration::from_micros(999)));
            let timeout = timeout.and_then(|left| rustix::time::Timespec::try_from(left).ok());
            match epoll::wait(&self.poll.0, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::system("wait for events", error)),
            }
            for event in &events {
                let (data, flags) = (event.data, event.flags);
                if !self.handle(Token::decode(data.u64()), flags)? {
                    return Ok(());
                }
            }
            if self.next_deadline().is_some() {
                self.expire(Instant::now());
            }
        }
    }

    /// `false` when the supervisor is gone.
    fn handle(&mut self, token: Token, flags: EventFlags) -> Result<bool, Error> {
        match token {
            Token::Supervisor => return self.supervised(),
            Token::Hub => self.refill(),
            Token::Listener(key) => self.accept(key),
            Token::Proxy(key, end) => self.proxy.ready(&self.poll, key, end, flags),
            Token::NameUdp(key) => self.resolver.datagrams(&self.poll, key),
            Token::NameTcp(key) => self.resolver.accept(&self.poll, key),
            Token::NameClient(key) => self.resolver.client_ready(&self.poll, key, flags),
            Token::NameQuery(key) => self.resolver.reply_ready(&self.poll, key, flags),
            Token::Inward(key) => self.accept_inward(key),
        }
        Ok(true)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines =
            [self.proxy.next_deadline(), self.resolver.next_deadline(), self.resting, self.ask_again];
        deadlines.into_iter().flatten().min()
    }

    fn expire(&mut self, now: Instant) {
        self.proxy.expire(&self.poll, now);
        self.resolver.expire(&self.poll, now);
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
            self.watch_listeners(EventFlags::IN);
        }
        if self.ask_again.is_some_and(|at| at <= now) {
            self.ask_again = None;
            self.ask_for_sockets();
        }
    }

    fn watch_listeners(&self, flags: EventFlags) {
        for (key, listener) in self.listeners.iter() {
            if let Err(error) = self.poll.modify(&listener.socket, Token::Listener(key), flags) {
                tracing::warn!(%error, port = listener.published.port.host_port, "watch published port");
            }
        }
    }

    fn accept(&mut self, key: Key) {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.listeners.get(key) else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let client = match rustix::net::accept_with(&listener.socket, flags) {
                Ok(client) => client,
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    tracing::warn!("out of descriptors or memory: connections wait");
                    self.watch_listeners(EventFlags::empty());
                    self.resting = Some(Instant::now() + REST);
                    return;
                }
                // The connection itself failed before it was accepted (accept(2)); others may wait behind it.
                Err(error) => {
                    tracing::debug!(%error, "accept");
                    continue;
                }
            };
            let Some(address) = self.resolver.address_of(&listener.published.service) else { continue };
            let target = SocketAddrV4::new(address, listener.published.port.container_port);
            let socket = self.pool.pop();
            self.proxy.accepted(&self.poll, client, target, socket);
            if self.pool.len() < POOL / 2 {
                self.ask_for_sockets();
            }
        }
    }

    /// From inside to the host. Done with one connection at a time: it is the way of names, and not that of clients.
    fn accept_inward(&mut self, key: Key) {
        let Some((listener, target)) = self.inward.get(key) else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(client) = rustix::net::accept_with(listener, flags) else { return };
        // Those of IPv6 come with IPv6.
        let SocketAddr::V4(target) = *target else { return };
        match rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None) {
            Ok(socket) => self.proxy.accepted(&self.poll, client, target, Some(socket)),
            Err(error) => tracing::warn!(%error, "a socket of the host"),
        }
    }

    fn ask_for_sockets(&mut self) {
        let wanted = (POOL + self.proxy.waiting()).saturating_sub(self.pool.len()).min(sys::channel::MAX_FDS);
        if self.requested || self.ask_again.is_some() || wanted == 0 {
            return;
        }
        let Some(hub) = &self.hub else {
            self.proxy.give_up_waiting();
            return;
        };
        match encode(&SocketRequest { sockets: wanted }).and_then(|request| hub.send(&request, &[])) {
            Ok(()) => self.requested = true,
            Err(error) => {
                tracing::warn!(%error, "ask the hub for sockets");
                self.ask_again = Some(Instant::now() + REST);
            }
        }
    }

    /// Takes the sockets that the hub sent.
    fn refill(&mut self) {
        let Some(hub) = &self.hub else { return };
        let message = match hub.recv() {
            Ok(Some(message)) => message,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            gone => {
                tracing::debug!(?gone, "the hub's channel has ended");
                self.poll.delete(hub);
                self.hub = None;
                self.pool.clear();
                self.proxy.give_up_waiting();
                return;
            }
        };
        self.requested = false;
        if message.fds.is_empty() {
            self.ask_again = Some(Instant::now() + REST);
            return;
        }
        self.pool.extend(message.fds);
        while self.proxy.waiting() > 0 {
            let Some(socket) = self.pool.pop() else { break };
            self.proxy.supply(&self.poll, socket);
        }
        if self.pool.len() < POOL / 2 {
            self.ask_for_sockets();
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
            Request::Configure { configuration, hub, names, listeners } => {
                self.incoming = Some(Incoming { configuration, hub, names, listeners, fds: message.fds });
            }
            // Nothing depends on them yet.
            Request::States(_) => {}
            Request::More => {
                if let Some(incoming) = &mut self.incoming {
                    incoming.fds.extend(message.fds);
                }
            }
        }
        let complete = |incoming: &mut Incoming| {
            let expected = usize::from(incoming.hub) + 2 * incoming.names.len() + incoming.listeners.len();
            let expected = expected + incoming.configuration.inward.len();
            incoming.fds.len() >= expected
        };
        let Some(incoming) = self.incoming.take_if(complete) else { return Ok(()) };
        let reply = match self.configure(incoming) {
            Ok(()) => Reply::Configured,
            Err(reason) => Reply::Refused(reason),
        };
        let reply = encode(&reply).doing(|| "encode reply")?;
        self.supervisor.send(&reply, &[]).doing(|| "answer the supervisor")
    }

    /// Checks everything first, then changes over; on refusal the old configuration stays in force.
    fn configure(&mut self, incoming: Incoming) -> Result<(), String> {
        let Incoming { configuration, hub, names, listeners, fds } = incoming;
        let mut fds = fds.into_iter();
        let hub = if hub { fds.next() } else { None };
        let names: Vec<NameSockets> = names
            .into_iter()
            .filter_map(|network| Some(NameSockets { network, udp: fds.next()?, tcp: fds.next()? }))
            .collect();
        let fresh: Vec<(usize, OwnedFd)> = listeners.into_iter().zip(fds.by_ref()).collect();
        let kept: Vec<Option<Key>> =
            configuration.published.iter().map(|published| self.listener_of(published)).collect();
        for (index, published) in configuration.published.iter().enumerate() {
            let supplied = fresh.iter().any(|(at, _)| *at == index);
            if !supplied && kept.get(index).is_none_or(Option::is_none) {
                let port = published.port.host_port;
                return Err(format!(
                    "no listening socket for port {port} of service `{}`",
                    published.service
                ));
            }
        }
        if let Some(hub) = hub {
            self.join_hub(hub.into())?;
        }
        self.change_listeners(&configuration, kept, fresh)?;
        self.change_inward(configuration.inward.iter().map(|inward| inward.target).zip(fds))?;
        self.resolver.configure(&self.poll, configuration.plan, configuration.resolvers, names)
    }

    fn change_inward(
        &mut self,
        listeners: impl Iterator<Item = (SocketAddr, OwnedFd)>,
    ) -> Result<(), String> {
        let old: Vec<Key> = self.inward.iter().map(|(key, _)| key).collect();
        for (listener, _) in old.into_iter().filter_map(|key| self.inward.remove(key)).collect::<Vec<_>>() {
            self.poll.delete(&listener);
        }
        for (target, listener) in listeners {
            let key = self.inward.insert((listener, target));
            if let Some((listener, _)) = self.inward.get(key) {
                let watched = self.poll.add(listener, Token::Inward(key), EventFlags::IN);
                watched.map_err(|error| format!("watch a container's port to {target}: {error}"))?;
            }
        }
        Ok(())
    }

    fn listener_of(&self, published: &Published) -> Option<Key> {
        let same = |listener: &Listener| {
            let port = &listener.published.port;
            (port.host_ip, port.host_port) == (published.port.host_ip, published.port.host_port)
        };
        self.listeners.iter().find(|(_, listener)| same(listener)).map(|(key, _)| key)
    }

    fn join_hub(&mut self, hub: Channel) -> Result<(), String> {
        if let Some(old) = self.hub.take() {
            self.poll.delete(old);
            self.pool.clear();
        }
        let watched = rustix::io::ioctl_fionbio(&hub, true)
            .and_then(|()| self.poll.add(&hub, Token::Hub, EventFlags::IN));
        watched.map_err(|error| format!("watch the hub's channel: {error}"))?;
        self.hub = Some(hub);
        self.requested = false;
        self.ask_again = None;
        self.ask_for_sockets();
        Ok(())
    }

    fn change_listeners(
        &mut self,
        configuration: &Configuration,
        kept: Vec<Option<Key>>,
        fresh: Vec<(usize, OwnedFd)>,
    ) -> Result<(), String> {
        let replaced: BTreeSet<usize> = fresh.iter().map(|(index, _)| *index).collect();
        let stay: Vec<(Key, &Published)> = kept
            .into_iter()
            .zip(&configuration.published)
            .enumerate()
            .filter(|(index, _)| !replaced.contains(index))
            .filter_map(|(_, (key, published))| Some((key?, published)))
            .collect();
        let leave = |key: &Key| !stay.iter().any(|(stays, _)| stays == key);
        let gone: Vec<Key> = self.listeners.iter().map(|(key, _)| key).filter(leave).collect();
        for key in gone {
            if let Some(listener) = self.listeners.remove(key) {
                self.poll.delete(&listener.socket);
            }
        }
        for (key, published) in stay {
            if let Some(listener) = self.listeners.get_mut(key) {
                listener.published = published.clone();
            }
        }
        let flags = if self.resting.is_some() { EventFlags::empty() } else { EventFlags::IN };
        for (index, socket) in fresh {
            let Some(published) = configuration.published.get(index) else { continue };
            let key = self.listeners.insert(Listener { socket, published: published.clone() });
            if let Some(listener) = self.listeners.get(key) {
                self.poll
                    .add(&listener.socket, Token::Listener(key), flags)
                    .map_err(|error| format!("watch port {}: {error}", published.port.host_port))?;
            }
        }
        Ok(())
    }
}
