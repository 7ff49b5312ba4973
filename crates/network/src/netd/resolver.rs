//! The name server: answers what is the stack's, and asks the host's resolvers for the rest.
//!
//! Nothing here grows with the number of queries: those who ask the same wait for one reply, a container that asks
//! too much at a time is told so, and the cache has a size.

mod client;
mod hearing;
mod upstream;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::Event;
use super::slab::{Key, Slab};
use super::tally::Tally;
use super::world::{Poll, Token};
use crate::balance::State;
use crate::egress::Policy;
use crate::names::cache::{Asked, Cache};
use crate::names::wire::{self, Code, Reply, Transport};
use crate::names::{self, Answer, NameSockets};
use crate::plan::{Endpoint, NetworkPlan};
use client::{Next, TcpClient};
use hearing::Hearing;
use upstream::{Forwarded, Host, Origin, Progress, Waiter};

/// How long one resolver may take before the next is asked.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Forwarded queries at a time; more are answered with a failure.
const QUERIES: usize = 256;
/// Queries that one container may wait for at a time: a busy one does not keep the others from asking.
const QUERIES_EACH: usize = 64;
/// TCP clients at a time.
const CLIENTS: usize = 64;
/// Of these, what one service may have.
const CLIENTS_EACH: usize = 16;
/// How long accepting rests when descriptors have run out.
const REST: Duration = Duration::from_millis(100);
/// Datagrams answered before others get their turn.
const TURNS: usize = 64;

#[derive(Debug)]
pub(super) struct Resolver {
    /// Shared with whatever is looked up in it at the moment.
    plan: Rc<NetworkPlan>,
    states: BTreeMap<String, State>,
    servers: Slab<NameSockets>,
    clients: Slab<TcpClient>,
    queries: Slab<Forwarded>,
    /// Where each question is among the queries.
    in_flight: HashMap<Asked, Key>,
    /// How many queries each container waits for.
    waiting: Tally<String>,
    /// When the resolver that a query was sent to has taken too long; the number makes them different.
    deadlines: BTreeMap<(Instant, u64), Key>,
    host: Host,
    cache: Cache,
    learned: Vec<Learned>,
    hearing: Hearing,
    /// What the supervisor is to be told.
    news: Vec<Event>,
    /// TCP clients are not accepted until then.
    resting: Option<Instant>,
    buffer: Vec<u8>,
    random: RandomState,
    /// Numbers handed out so far.
    count: u64,
}

/// What a container has been told about a name of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Learned {
    /// Name of the container.
    pub(super) container: String,
    /// What it asked for, lower case.
    pub(super) name: String,
    /// Where that leads to, aliases followed.
    pub(super) addresses: Vec<IpAddr>,
    /// How long it holds.
    pub(super) lifetime: Duration,
}

/// What comes of a query.
enum Outcome {
    Reply(Vec<u8>),
    /// A resolver has been asked.
    Later,
    /// It was none.
    Drop,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self {
            plan: Rc::default(),
            states: BTreeMap::new(),
            servers: Slab::new(),
            clients: Slab::new(),
            queries: Slab::new(),
            in_flight: HashMap::new(),
            waiting: Tally::default(),
            deadlines: BTreeMap::new(),
            host: Host::new(&[]),
            cache: Cache::default(),
            learned: Vec::new(),
            hearing: Hearing::default(),
            news: Vec::new(),
            resting: None,
            // Zeroed memory that is never touched takes no room.
            buffer: vec![0; 1 << 16],
            random: RandomState::new(),
            count: 0,
        }
    }

    /// Replaces plan and resolvers; sockets of networks that are gone are closed, `names` are added or replace.
    pub(super) fn configure(
        &mut self,
        poll: &Poll,
        plan: NetworkPlan,
        resolvers: Vec<SocketAddr>,
        names: Vec<NameSockets>,
    ) -> Result<(), String> {
        let leaves = |server: &NameSockets| {
            !plan.networks.iter().any(|network| network.name == server.network)
                || names.iter().any(|fresh| fresh.network == server.network)
        };
        let gone: Vec<Key> =
            self.servers.iter().filter(|(_, server)| leaves(server)).map(|(key, _)| key).collect();
        for server in gone.into_iter().filter_map(|key| self.servers.remove(key)) {
            poll.delete(&server.udp);
            poll.delete(&server.tcp);
        }
        for server in names {
            let network = server.network.clone();
            let key = self.servers.insert(server);
            let Some(server) = self.servers.get(key) else { continue };
            poll.add(&server.udp, Token::NameUdp(key), EventFlags::IN)
                .and_then(|()| poll.add(&server.tcp, Token::NameTcp(key), EventFlags::IN))
                .map_err(|error| format!("watch the name server of network `{network}`: {error}"))?;
        }
        self.plan = Rc::new(plan);
        self.host = Host::new(&resolvers);
        Ok(())
    }

    /// Replaces what is known of containers; those that are not named are ready.
    pub(super) fn set_states(&mut self, states: BTreeMap<String, State>) {
        self.states = states;
    }

    /// Containers that are not named stay as they are.
    pub(super) fn change_states(&mut self, states: BTreeMap<String, State>) {
        self.states.extend(states);
    }

    /// What containers with an egress policy that goes by names have been told since the last call. To be called before
    /// any of them can connect to where its answer leads.
    pub(super) fn take_learned(&mut self) -> Vec<Learned> {
        std::mem::take(&mut self.learned)
    }

    pub(super) fn take_news(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.news)
    }

    /// Notes whether one of these resolvers has answered a query that was sent then.
    fn note(&mut self, resolvers: &Rc<[SocketAddr]>, sent: Instant, answer: bool) {
        let is_news = match answer {
            true => self.hearing.answered(resolvers, Instant::now()),
            false => self.hearing.unanswered(resolvers, sent),
        };
        if is_news {
            self.news.push(Event::Resolvers { resolvers: resolvers.to_vec(), answer });
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let query = self.deadlines.first_key_value().map(|((at, _), _)| *at);
        // There are few of them.
        let client = self.clients.iter().map(|(_, client)| client.deadline).min();
        [query, client, self.resting].into_iter().flatten().min()
    }

    pub(super) fn expire(&mut self, poll: &Poll, now: Instant) {
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
            self.watch_listeners(poll, EventFlags::IN);
        }
        while let Some(entry) = self.deadlines.first_entry().filter(|entry| entry.key().0 <= now) {
            let key = entry.remove();
            if let Some(query) = self.queries.get_mut(key) {
                query.deadline = None;
                query.was_silent();
                self.go_on(poll, key);
            }
        }
        let idle = |(key, client): (Key, &TcpClient)| (client.deadline <= now).then_some(key);
        let idle: Vec<Key> = self.clients.iter().filter_map(idle).collect();
        for key in idle {
            self.clients.remove(key);
        }
    }

    /// Not to be guessed from earlier ones: SipHash under a key that the kernel's random numbers gave.
    fn random(&mut self) -> u64 {
        self.count += 1;
        self.random.hash_one(self.count)
    }

    /// Answers the datagrams that have come.
    pub(super) fn datagrams(&mut self, poll: &Poll, key: Key) {
        for _ in 0..TURNS {
            let Some(server) = self.servers.get(key) else { return };
            let received = rustix::net::recvfrom(&server.udp, &mut self.buffer[..], RecvFlags::DONTWAIT);
            let (length, from) = match received {
                Ok((_, length, Some(from))) => (length, from),
                Err(Errno::AGAIN) => return,
                other => {
                    tracing::debug!(?other, "receive query");
                    continue;
                }
            };
            let Ok(from) = SocketAddr::try_from(from) else { continue };
            let IpAddr::V4(address) = from.ip() else { continue };
            let plan = Rc::clone(&self.plan);
            let Some(asker) = names::asker(&plan, &server.network, address) else { continue };
            let query = self.buffer.get(..length).unwrap_or_default().to_vec();
            let origin = Origin::Udp(key, from);
            if let Outcome::Reply(reply) = self.query(poll, origin, asker, &query) {
                self.answer(poll, origin, &reply);
            }
        }
    }

    fn query(&mut self, poll: &Poll, origin: Origin, asker: &Endpoint, query: &[u8]) -> Outcome {
        let transport = match origin {
            Origin::Udp(..) => Transport::Udp,
            Origin::Tcp(_) => Transport::Tcp,
        };
        // By chance: a counter would give those who ask for A and AAAA in turn the same address each time.
        let turn = self.random() as usize;
        match names::answer(query, transport, asker, &self.plan, &self.states, turn) {
            Answer::Reply(reply) => Outcome::Reply(reply),
            Answer::Forward(query) => self.forward(poll, origin, asker, query),
            Answer::Drop => Outcome::Drop,
        }
    }

    fn answer(&mut self, poll: &Poll, origin: Origin, reply: &[u8]) {
        match origin {
            Origin::Udp(key, to) => {
                let Some(server) = self.servers.get(key) else { return };
                // A client that is gone or slow asks again.
                if let Err(error) = rustix::net::sendto(&server.udp, reply, SendFlags::DONTWAIT, &to) {
                    tracing::debug!(%error, %to, "answer query");
                }
            }
            Origin::Tcp(key) => {
                if let Some(client) = self.clients.get_mut(key) {
                    client.answer(reply);
                }
                self.advance(poll, key);
            }
        }
    }

    // Forwarding.

    fn forward(&mut self, poll: &Poll, origin: Origin, asker: &Endpoint, query: wire::Query) -> Outcome {
        let resolvers = self.host.resolvers_of(asker, &self.plan);
        let asked = Asked { question: query.sameness(), resolvers };
        let learns = matches!(asker.egress, Policy::Only(_));
        let waiter = Waiter { origin, container: asker.service.clone(), query, learns };
        if let Some((reply, age)) = self.cache.get(&asked, Instant::now()) {
            return Outcome::Reply(self.deliver(&waiter, &reply, age));
        }
        let failure = waiter.query.reply(Code::ServerFailed, &[], &[]);
        if self.waiting.of(&waiter.container) >= QUERIES_EACH {
            return Outcome::Reply(failure);
        }
        let container = waiter.container.clone();
        let same = self.in_flight.get(&asked).and_then(|key| self.queries.get_mut(*key));
        if let Some(same) = same {
            same.waiters.push(waiter);
        } else {
            if self.queries.len() >= QUERIES {
                return Outcome::Reply(failure);
            }
            let [high, low, ..] = self.random().to_be_bytes();
            let query = Forwarded::new(asked.clone(), waiter, [high, low]);
            let key = self.queries.insert(query);
            if !self.ask_next(poll, key) {
                self.queries.remove(key);
                self.note(&asked.resolvers, Instant::now(), false);
                return Outcome::Reply(failure);
            }
            self.in_flight.insert(asked, key);
        }
        self.waiting.add(container);
        Outcome::Later
    }

    /// Sends a query to the resolver whose turn it is; `false` when all have had theirs.
    fn ask_next(&mut self, poll: &Poll, key: Key) -> bool {
        let asked = self.queries.get_mut(key).is_some_and(|query| query.ask_next(poll, key));
        if asked {
            self.renew_deadline(key);
        }
        asked
    }

    fn renew_deadline(&mut self, key: Key) {
        self.count += 1;
        let deadline = (Instant::now() + TIMEOUT, self.count);
        if let Some(query) = self.queries.get_mut(key) {
            if let Some(old) = query.deadline.replace(deadline) {
                self.deadlines.remove(&old);
            }
            self.deadlines.insert(deadline, key);
        }
    }

    /// A resolver has answered, or refuses.
    pub(super) fn reply_ready(&mut self, poll: &Poll, key: Key, flags: EventFlags) {
        let Some(query) = self.queries.get_mut(key) else { return };
        match query.ready(poll, key, flags, &mut self.buffer) {
            Progress::Waits => {}
            Progress::Anew => self.renew_deadline(key),
            Progress::Failed => self.go_on(poll, key),
            Progress::Done(reply) => self.finish(poll, key, Some(reply)),
        }
    }

    /// Asks the next resolver, or gives up.
    fn go_on(&mut self, poll: &Poll, key: Key) {
        if !self.ask_next(poll, key) {
            self.finish(poll, key, None);
        }
    }

    fn finish(&mut self, poll: &Poll, key: Key, reply: Option<Reply>) {
        let Some(Forwarded { asked, waiters, deadline, sent_at, heard, .. }) = self.queries.remove(key)
        else {
            return;
        };
        self.note(&asked.resolvers, sent_at, heard);
        self.in_flight.remove(&asked);
        if let Some(deadline) = deadline {
            self.deadlines.remove(&deadline);
        }
        let reply = reply.map(Rc::new);
        if let Some(reply) = &reply {
            self.cache.insert(asked, reply, Instant::now());
        }
        for waiter in waiters {
            self.waiting.take(&waiter.container);
            let reply = match &reply {
                Some(reply) => self.deliver(&waiter, reply, Duration::ZERO),
                None => waiter.query.reply(Code::ServerFailed, &[], &[]),
            };
            self.answer(poll, waiter.origin, &reply);
        }
    }

    /// The message for one of those who asked, `age` after the reply came.
    fn deliver(&mut self, waiter: &Waiter, reply: &Reply, age: Duration) -> Vec<u8> {
        if waiter.learns && !reply.addresses().is_empty() {
            self.learned.push(Learned {
                container: waiter.container.clone(),
                name: waiter.query.name().to_owned(),
                addresses: reply.addresses().to_vec(),
                lifetime: reply.lifetime().unwrap_or_default().saturating_sub(age),
            });
        }
        reply.deliver(&waiter.query, age)
    }

    // Queries over TCP.

    pub(super) fn accept(&mut self, poll: &Poll, key: Key) {
        let Some(server) = self.servers.get(key) else { return };
        let accepted =
            rustix::net::acceptfrom_with(&server.tcp, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        let (socket, from) = match accepted {
            Ok((socket, Some(from))) => (socket, SocketAddr::try_from(from)),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                tracing::warn!("out of descriptors or memory: name queries over TCP wait");
                self.watch_listeners(poll, EventFlags::empty());
                self.resting = Some(Instant::now() + REST);
                return;
            }
            other => {
                tracing::debug!(?other, "accept");
                return;
            }
        };
        let network = server.network.clone();
        let Ok(SocketAddr::V4(from)) = from else { return };
        let known = names::asker(&self.plan, &network, *from.ip()).is_some();
        let count = self.clients.iter().filter(|(_, client)| client.address == *from.ip()).count();
        if !known || self.clients.len() >= CLIENTS || count >= CLIENTS_EACH {
            return;
        }
        let key = self.clients.insert(TcpClient::new(socket, network, *from.ip()));
        let watched = self
            .clients
            .get(key)
            .map(|client| poll.add(&client.socket, Token::NameClient(key), EventFlags::IN));
        if !matches!(watched, Some(Ok(()))) {
            self.clients.remove(key);
        }
    }

    fn watch_listeners(&self, poll: &Poll, flags: EventFlags) {
        for (key, server) in self.servers.iter() {
            if let Err(error) = poll.modify(&server.tcp, Token::NameTcp(key), flags) {
                tracing::warn!(%error, network = server.network, "watch name server");
            }
        }
    }

    pub(super) fn client_ready(&mut self, poll: &Poll, key: Key, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            self.clients.remove(key);
            return;
        }
        if flags.contains(EventFlags::IN) && !client.read(&mut self.buffer) {
            self.clients.remove(key);
            return;
        }
        self.advance(poll, key);
    }

    /// Does what can be done for a TCP client: write, then take the next query.
    fn advance(&mut self, poll: &Poll, key: Key) {
        let plan = Rc::clone(&self.plan);
        loop {
            let Some(client) = self.clients.get_mut(key) else { return };
            if !client.write() {
                self.clients.remove(key);
                return;
            }
            let query = match client.next_query() {
                Next::Query(query) => query,
                Next::Wait => break,
                Next::Close => {
                    self.clients.remove(key);
                    return;
                }
            };
            let asker = names::asker(&plan, &client.network, client.address);
            let outcome = asker.map(|asker| self.query(poll, Origin::Tcp(key), asker, &query));
            let Some(client) = self.clients.get_mut(key) else { return };
            match outcome {
                Some(Outcome::Reply(reply)) => client.answer(&reply),
                Some(Outcome::Later) => client.busy = true,
                Some(Outcome::Drop) | None => {
                    self.clients.remove(key);
                    return;
                }
            }
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.watch(poll, key).is_err() {
            self.clients.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::wire::Received;

    #[test]
    fn what_a_container_with_rules_is_told_is_learned() {
        let message =
            [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x03wWw\x04test\0", &[0, 1, 0, 1]].concat();
        let query = wire::Query::read(&message, Transport::Udp).unwrap();
        let sent = query.onward([1, 1]);
        let mut reply = sent.clone();
        (reply[2], reply[7]) = (0x81, 1);
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        let Received::Whole(reply) = Reply::read(&reply, &sent) else { panic!() };
        let mut resolver = Resolver::new();
        for learns in [false, true] {
            let origin = Origin::Tcp(Key { index: 0, generation: 0 });
            let waiter = Waiter { origin, container: "web".into(), query: query.clone(), learns };
            let delivered = resolver.deliver(&waiter, &reply, Duration::from_secs(20));
            assert_eq!(delivered[..message.len()][12..], message[12..]);
        }
        let learned = Learned {
            container: "web".into(),
            name: "www.test".into(),
            addresses: vec![[192, 0, 2, 1].into()],
            lifetime: Duration::from_secs(40),
        };
        assert_eq!(resolver.take_learned(), [learned]);
        assert_eq!(resolver.take_learned(), []);
    }
}
