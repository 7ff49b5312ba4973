//! Where things are: which container an address is, what a destination means, and who of a service's replicas gets
//! a connection. Made from the plan; changes nothing outside of itself.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sys::address;

use super::Event;
use crate::balance::{Balance, MemberId, Pick, Pool, State};
use crate::egress::Learned;
use crate::plan::{Endpoint, Interface, Network, NetworkPlan};

/// How long after a container began to take connections one that it refuses is tried again: its program may not
/// listen yet.
const SETTLING: Duration = Duration::from_secs(10);

/// A service, for as long as netd lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ServiceId(usize);

#[derive(Debug)]
struct Service {
    name: String,
    pool: Pool,
    /// When a container was last said to take connections after it had not.
    ready_since: BTreeMap<String, Instant>,
    /// Connections and flows that are open, to it and from it to outside.
    open: usize,
}

/// One of its replicas, that counts a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replica {
    pub(super) service: ServiceId,
    pub(super) member: MemberId,
}

/// How a connection comes to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entrance {
    /// By a published port.
    Host,
    /// By the virtual address on the network of this index.
    Network(usize),
}

/// What a destination that a container wants to reach means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A service's virtual address.
    Service(ServiceId, Entrance),
    /// Outside of the stack, for a container of this service.
    World(ServiceId),
    /// Nowhere: it is the stack's own and nothing is there, or not for who asks.
    Nowhere,
    /// The policy of this container does not allow it; with the name that the address was looked up by.
    Forbidden(String, Option<String>),
}

/// Where to connect to, and from which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    /// The client's own address; the gateway's otherwise.
    pub(super) source: Option<SocketAddr>,
    /// The gateway of that network: who the client appears as without an address of its own.
    pub(super) gateway: IpAddr,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    endpoint: usize,
    service: ServiceId,
    network: usize,
}

#[derive(Debug, Default)]
pub(super) struct Topology {
    pub(super) plan: NetworkPlan,
    pub(super) states: BTreeMap<String, State>,
    /// Replies to foreign addresses come back to us: clients can keep theirs.
    pub(super) intercepted: bool,
    pub(super) learned: Learned,
    places: HashMap<IpAddr, Place>,
    virtuals: HashMap<IpAddr, (ServiceId, usize)>,
    services: Vec<Service>,
}

impl Topology {
    /// Takes a new plan. Containers that have drained by that are added to `events`. Returns the addresses that are
    /// another container's now, or nobody's, or that of one that may go elsewhere than before.
    pub(super) fn configure(
        &mut self,
        plan: NetworkPlan,
        states: BTreeMap<String, State>,
        events: &mut Vec<Event>,
    ) -> Vec<IpAddr> {
        let mut members: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for endpoint in &plan.endpoints {
            members.entry(&endpoint.group).or_default().push(&endpoint.service);
        }
        let known: Vec<String> = self.services.iter().map(|service| service.name.clone()).collect();
        for name in known.iter().map(String::as_str).chain(members.keys().copied()) {
            let id = self.intern(name);
            let balance = plan.groups.iter().find(|group| group.service == name);
            let pool = &mut self.services[id.0].pool;
            pool.set_balance(balance.map_or_else(Balance::default, |group| group.balance.clone()));
            pool.set_members(members.get(name).into_iter().flatten().copied());
        }
        let places = std::mem::take(&mut self.places);
        self.virtuals = HashMap::new();
        let network_of = |name: &str| plan.networks.iter().position(|network| network.name == name);
        for (endpoint, interface) in
            plan.endpoints.iter().enumerate().flat_map(|(at, e)| e.interfaces.iter().map(move |i| (at, i)))
        {
            let Some(network) = network_of(&interface.network) else { continue };
            let service = self.intern(&plan.endpoints[endpoint].group);
            let addresses = std::iter::once(IpAddr::V4(interface.address));
            for address in addresses.chain(interface.address6.map(IpAddr::V6)) {
                self.places.insert(address, Place { endpoint, service, network });
            }
        }
        for group in &plan.groups {
            let id = self.intern(&group.service);
            for at in &group.addresses {
                let Some(network) = network_of(&at.network) else { continue };
                let addresses = std::iter::once(IpAddr::V4(at.address)).chain(at.address6.map(IpAddr::V6));
                self.virtuals.extend(addresses.map(|address| (address, (id, network))));
            }
        }
        for old in self.plan.endpoints.iter().filter(|old| !has_container(&plan, &old.service)) {
            self.learned.forget(&old.service);
        }
        self.states.retain(|name, _| has_container(&plan, name));
        let before = std::mem::replace(&mut self.plan, plan);
        self.set_states(states, Instant::now(), events);
        let who = |plan: &NetworkPlan, place: &Place| {
            plan.endpoints.get(place.endpoint).map(|one| (one.service.clone(), one.egress.clone()))
        };
        let is_same = |address: &IpAddr, place: &Place| {
            who(&before, place) == self.places.get(address).and_then(|place| who(&self.plan, place))
        };
        places
            .iter()
            .filter(|(address, place)| !is_same(address, place))
            .map(|(address, _)| *address)
            .collect()
    }

    /// Takes what has become of containers.
    pub(super) fn set_states(
        &mut self,
        states: BTreeMap<String, State>,
        now: Instant,
        events: &mut Vec<Event>,
    ) {
        for (name, state) in states {
            let before = self.states.insert(name.clone(), state);
            let Some(endpoint) = self.plan.endpoints.iter().find(|endpoint| endpoint.service == name) else {
                continue;
            };
            let group = endpoint.group.clone();
            let id = self.intern(&group);
            let service = &mut self.services[id.0];
            if state == State::Ready && before.is_some_and(|before| before != State::Ready) {
                service.ready_since.insert(name.clone(), now);
            }
            let drained = service.pool.set_state(&name, state);
            events.extend(drained.map(|container| Event::Drained { container }));
        }
    }

    pub(super) fn intern(&mut self, name: &str) -> ServiceId {
        if let Some(at) = self.services.iter().position(|service| service.name == name) {
            return ServiceId(at);
        }
        self.services.push(Service {
            name: name.to_owned(),
            pool: Pool::new(Balance::default()),
            ready_since: BTreeMap::new(),
            open: 0,
        });
        ServiceId(self.services.len() - 1)
    }

    pub(super) fn name(&self, service: ServiceId) -> &str {
        &self.services[service.0].name
    }

    /// How many connections a service has open.
    pub(super) fn open(&self, service: ServiceId) -> usize {
        self.services[service.0].open
    }

    /// A container of the service has a connection to outside.
    pub(super) fn went_out(&mut self, service: ServiceId) {
        self.services[service.0].open += 1;
    }

    /// It has ended.
    pub(super) fn came_back(&mut self, service: ServiceId) {
        let open = &mut self.services[service.0].open;
        *open = open.saturating_sub(1);
    }

    /// How many replicas may be tried after the first.
    pub(super) fn retries(&self, service: ServiceId) -> usize {
        self.services[service.0].pool.balance().retry as usize
    }

    /// Chooses a replica. Whoever gets one owes a [`Self::closed`].
    pub(super) fn pick(
        &mut self,
        service: ServiceId,
        client: IpAddr,
        tried: &[MemberId],
        now: Instant,
    ) -> Pick {
        let entry = &mut self.services[service.0];
        let pick = entry.pool.pick(client, tried, now);
        if let Pick::Member(member) = pick {
            entry.pool.opened(member);
            entry.open += 1;
        }
        pick
    }

    /// A connection to a replica has ended, or has not come about.
    pub(super) fn closed(&mut self, replica: Replica) -> Option<Event> {
        let entry = &mut self.services[replica.service.0];
        entry.open = entry.open.saturating_sub(1);
        entry.pool.closed(replica.member).map(|container| Event::Drained { container })
    }

    /// A replica could not be connected to.
    pub(super) fn failed(&mut self, replica: Replica, now: Instant) -> Option<Event> {
        let pool = &mut self.services[replica.service.0].pool;
        let container = pool.name(replica.member)?.to_owned();
        pool.failed(replica.member, now).then_some(Event::Ejected { container })
    }

    /// It could.
    pub(super) fn succeeded(&mut self, replica: Replica) -> Option<Event> {
        let pool = &mut self.services[replica.service.0].pool;
        if !pool.succeeded(replica.member) {
            return None;
        }
        pool.name(replica.member).map(|container| Event::Restored { container: container.to_owned() })
    }

    /// Whether a replica that refuses may only not listen yet.
    pub(super) fn is_settling(&self, replica: Replica, now: Instant) -> bool {
        let service = &self.services[replica.service.0];
        let Some(name) = service.pool.name(replica.member) else { return false };
        let since = service.ready_since.get(name);
        self.states.get(name) == Some(&State::Starting) || since.is_some_and(|at| now < *at + SETTLING)
    }

    /// Whether a replica has this address, and takes what comes there or has not ended yet.
    pub(super) fn serves(&self, replica: Replica, address: IpAddr) -> bool {
        self.container(replica).is_some_and(|endpoint| {
            let has = |link: &Interface| {
                address == IpAddr::V4(link.address)
                    || link.address6.is_some_and(|own| address == IpAddr::V6(own))
            };
            let state = self.states.get(&endpoint.service).copied().unwrap_or_default();
            endpoint.interfaces.iter().any(has) && !matches!(state, State::Starting | State::Down)
        })
    }

    /// The container that is a replica.
    pub(super) fn container(&self, replica: Replica) -> Option<&Endpoint> {
        let name = self.services[replica.service.0].pool.name(replica.member)?;
        self.plan.endpoints.iter().find(|endpoint| endpoint.service == name)
    }

    /// Where a connection of `client` to `port` of a replica goes.
    pub(super) fn target(
        &self,
        replica: Replica,
        port: u16,
        client: SocketAddr,
        by: Entrance,
    ) -> Option<Target> {
        let endpoint = self.container(replica)?;
        let (interface, network) = match by {
            Entrance::Host => self.outward(endpoint)?,
            Entrance::Network(at) => {
                let network = self.plan.networks.get(at)?;
                (endpoint.interfaces.iter().find(|link| link.network == network.name)?, network)
            }
        };
        let address = match (client, interface.address6) {
            (SocketAddr::V6(_), Some(address)) => IpAddr::V6(address),
            _ => IpAddr::V4(interface.address),
        };
        let keeps = self.intercepted
            && by == Entrance::Host
            && !network.internal
            && client.is_ipv4() == address.is_ipv4()
            && !client.ip().is_loopback()
            && !address::is_link_local(client.ip())
            && !self.is_ours(client.ip());
        let gateway = match (address, network.v6) {
            (IpAddr::V6(_), Some(v6)) => IpAddr::V6(v6.gateway),
            _ => IpAddr::V4(network.gateway),
        };
        Some(Target { address: SocketAddr::new(address, port), source: keeps.then_some(client), gateway })
    }

    /// The link that a container's default route leads over, or its first.
    fn outward<'a>(&'a self, endpoint: &'a Endpoint) -> Option<(&'a Interface, &'a Network)> {
        let mut links =
            endpoint.interfaces.iter().filter_map(|link| Some((link, self.network(&link.network)?)));
        let first = links.clone().next();
        links.find(|(_, network)| !network.internal).or(first)
    }

    fn network(&self, name: &str) -> Option<&Network> {
        self.plan.networks.iter().find(|network| network.name == name)
    }

    /// Whether an address lies in a subnet of the stack.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        self.plan.networks.iter().flat_map(Network::subnets).any(|subnet| subnet.contains(address))
    }

    /// Whether `address` is one of the stack's namespace itself that `source` may talk to: a gateway or a virtual
    /// address of its network.
    pub(super) fn is_own(&self, source: IpAddr, address: IpAddr) -> bool {
        let Some(place) = self.places.get(&source) else { return false };
        let gateway = self.plan.networks.get(place.network).is_some_and(|network| {
            address == IpAddr::V4(network.gateway)
                || network.v6.is_some_and(|v6| address == IpAddr::V6(v6.gateway))
        });
        gateway || self.virtuals.get(&address).is_some_and(|(_, network)| *network == place.network)
    }

    /// The gateway of the network that a container has this address on.
    pub(super) fn gateway(&self, source: IpAddr) -> Option<IpAddr> {
        let network = self.plan.networks.get(self.places.get(&source)?.network)?;
        match source {
            IpAddr::V4(_) => Some(IpAddr::V4(network.gateway)),
            IpAddr::V6(_) => network.v6.map(|v6| IpAddr::V6(v6.gateway)),
        }
    }

    /// What it means that `source`, an address on a bridge, wants to reach `destination`.
    pub(super) fn way(&self, source: IpAddr, destination: SocketAddr, now: Instant) -> Way {
        let Some(place) = self.places.get(&source).copied() else { return Way::Nowhere };
        if let Some((service, network)) = self.virtuals.get(&destination.ip()).copied() {
            // Another network's is none of its business.
            return match network == place.network {
                true => Way::Service(service, Entrance::Network(network)),
                false => Way::Nowhere,
            };
        }
        let (Some(endpoint), Some(network)) =
            (self.plan.endpoints.get(place.endpoint), self.plan.networks.get(place.network))
        else {
            return Way::Nowhere;
        };
        if self.is_ours(destination.ip()) || network.internal || is_unreachable(destination.ip()) {
            return Way::Nowhere;
        }
        let container = endpoint.service.clone();
        let names = || self.learned.names(&container, destination.ip(), now);
        if endpoint.egress.allows(destination, names()) {
            return Way::World(place.service);
        }
        let name = names().next().map(str::to_owned);
        Way::Forbidden(container, name)
    }
}

fn has_container(plan: &NetworkPlan, name: &str) -> bool {
    plan.endpoints.iter().any(|endpoint| endpoint.service == name)
}

/// What nobody outside can be reached at. The host's loopback is the host's own. An IPv4 address within an IPv6 one
/// never is in an honest packet (RFC 4291 section 2.5.5.2), but to a socket of the host it is that IPv4 address
/// (ipv6(7)), and could be of the stack, link-local, or 0.0.0.0, which is the host itself.
fn is_unreachable(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.to_ipv4_mapped().is_some(),
    };
    special || address.is_multicast() || address::is_hosts_own(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Attachment, EndpointRequest, NetworkRequest, allocate};

    #[test]
    fn what_is_the_hosts_own_or_the_stacks_is_nowhere() {
        let network = NetworkRequest { name: "n".into(), ipv6: true, ..NetworkRequest::default() };
        let attachments = vec![Attachment { network: "n".into(), ..Attachment::default() }];
        let endpoint = EndpointRequest { service: "web".into(), attachments, ..EndpointRequest::default() };
        let plan = allocate(&[network], &[endpoint], &[]).unwrap();
        let mut topology = Topology::default();
        topology.configure(plan.clone(), BTreeMap::new(), &mut Vec::new());
        let link = &plan.endpoints[0].interfaces[0];
        let now = Instant::now();
        let outside = Way::World(topology.intern("web"));
        let way = |source: IpAddr, to: &str| topology.way(source, to.parse().unwrap(), now);
        let (v4, v6) = (IpAddr::V4(link.address), IpAddr::V6(link.address6.unwrap()));
        assert_eq!(
            (way(v4, "192.0.2.1:80"), way(v6, "[2001:db8::1]:80")),
            (outside, way(v4, "192.0.2.1:80"))
        );
        for to in ["127.0.0.1:80", "0.0.0.0:80", "255.255.255.255:80", "224.0.0.1:80", "169.254.169.254:80"] {
            assert_eq!(way(v4, to), Way::Nowhere, "{to}");
            assert_eq!(way(v6, &format!("[::ffff:{}]:80", to.trim_end_matches(":80"))), Way::Nowhere, "{to}");
        }
        assert_eq!(way(v4, "100.100.100.200:80"), Way::Nowhere);
        for to in ["[fd00:ec2::254]:80", "[fd20:ce::254]:80"] {
            assert_eq!(way(v6, to), Way::Nowhere, "{to}");
        }
        for to in ["[::]:80", "[::1]:80", "[fe80::1]:80", "[ff02::1]:80", "[::ffff:192.0.2.1]:80"] {
            assert_eq!(way(v6, to), Way::Nowhere, "{to}");
        }
        let mapped = link.address.to_ipv6_mapped();
        for to in [v4, v6, plan.networks[0].gateway.into(), mapped.into()] {
            assert_eq!(way(v6, &SocketAddr::new(to, 80).to_string()), Way::Nowhere, "{to}");
        }
        assert_eq!(way("192.0.2.9".parse().unwrap(), "192.0.2.1:80"), Way::Nowhere, "who is that?");
    }
    #[test]
    fn what_is_another_containers_now_is_told_and_a_replica_serves_at_its_address() {
        let network = NetworkRequest { name: "n".into(), ..NetworkRequest::default() };
        let attachments = vec![Attachment { network: "n".into(), ..Attachment::default() }];
        let endpoint = |service: &str| EndpointRequest {
            service: service.into(),
            attachments: attachments.clone(),
            ..EndpointRequest::default()
        };
        let plan = allocate(&[network], &[endpoint("web"), endpoint("db")], &[]).unwrap();
        let mut topology = Topology::default();
        let configure = |topology: &mut Topology, plan: &NetworkPlan| {
            let mut changed = topology.configure(plan.clone(), BTreeMap::new(), &mut Vec::new());
            changed.sort_unstable();
            changed
        };
        let [web, db] = [0, 1].map(|at: usize| IpAddr::V4(plan.endpoints[at].interfaces[0].address));
        assert!(configure(&mut topology, &plan).is_empty(), "nobody was there");
        assert!(configure(&mut topology, &plan).is_empty());
        let service = topology.intern("web");
        let Pick::Member(member) = topology.pick(service, db, &[], Instant::now()) else { panic!() };
        let replica = Replica { service, member };
        assert!(topology.serves(replica, web) && !topology.serves(replica, db));
        for (state, serves) in [(State::Down, false), (State::Draining, true), (State::Starting, false)] {
            let states = BTreeMap::from([("web".to_owned(), state)]);
            topology.set_states(states, Instant::now(), &mut Vec::new());
            assert_eq!(topology.serves(replica, web), serves, "{state:?}");
        }
        let mut other = plan.clone();
        other.endpoints[0].egress = crate::egress::Policy::None;
        assert_eq!(configure(&mut topology, &other), [web], "it may go elsewhere");
        other.endpoints.swap(0, 1);
        assert!(configure(&mut topology, &other).is_empty());
        other.endpoints.truncate(1);
        assert_eq!(configure(&mut topology, &other), [web], "it is gone");
        assert!(!topology.serves(replica, web));
        other.endpoints[0].service = "cache".into();
        assert_eq!(configure(&mut topology, &other), [db], "it is another's");
    }
}
