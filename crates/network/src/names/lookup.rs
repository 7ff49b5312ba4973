//! What a name stands for in a stack, as one of its containers sees it. Pure decisions.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::wire::{Query, Record, TYPE_A, TYPE_AAAA, TYPE_ANY, TYPE_PTR, TYPE_SRV, encode_name};
use crate::Subnet;
use crate::balance::State;
use crate::egress::{Policy, Target};
use crate::plan::{Endpoint, Interface, Network, NetworkPlan};

/// Names that nobody's resolver is asked for: they are for private use and may mean something of ours, or must not
/// be asked for in DNS (the root's resolution of 2024-07-29, RFC 6762 section 22.1, RFC 7686 section 2). The zones
/// of private addresses are not among them: a company's or a home's resolver knows those that are not ours.
const INSIDE: [&str; 3] = ["internal", "local", "onion"];

/// The outcome of a lookup.
pub(super) enum Lookup {
    /// The name exists; there may be no record of the type.
    Found {
        answers: Vec<Record>,
        additional: Vec<Record>,
    },
    NoSuchName,
    /// Not ours, and the asker may know it.
    Foreign,
}

impl Lookup {
    fn empty() -> Self {
        Self::found(Vec::new())
    }

    fn found(answers: Vec<Record>) -> Self {
        Self::Found { answers, additional: Vec::new() }
    }
}

/// Who looks names up, and what is known at that moment.
pub(super) struct View<'a> {
    pub(super) asker: &'a Endpoint,
    pub(super) plan: &'a NetworkPlan,
    /// Of containers; those that are not named are ready.
    pub(super) states: &'a BTreeMap<String, State>,
    /// Whose turn it is to come first.
    pub(super) turn: usize,
}

/// What a name is to the link that it leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Called {
    /// A name of the service: its virtual address if it has one.
    Service,
    /// A name of this very container, or of all of them.
    Container,
    /// The same, made of service and number: what is really called so comes first.
    Number,
}

struct Match<'a> {
    endpoint: &'a Endpoint,
    link: &'a Interface,
    called: Called,
}

impl<'a> View<'a> {
    pub(super) fn lookup(&self, query: &Query) -> Lookup {
        let (name, kind) = (query.name(), query.kind);
        if name == "localhost" || name.ends_with(".localhost") {
            let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return Lookup::found(of_type(kind, both));
        }
        if let Some(reverse) = Reverse::read(name) {
            return self.lookup_address(&reverse, kind);
        }
        let (port, name) = split_service(name);
        let matches = self.matches(name);
        if matches.is_empty() {
            // The root has no name that could be ours.
            let outside = query.name().is_empty() || !self.is_inside(name);
            let foreign = outside && self.may_leave(query.name());
            return if foreign { Lookup::Foreign } else { Lookup::NoSuchName };
        }
        match port {
            Port::None => Lookup::found(of_type(kind, self.addresses(&matches))),
            Port::Number(port) if kind == TYPE_SRV || kind == TYPE_ANY => self.servers(&matches, port),
            Port::Number(_) | Port::Other => Lookup::empty(),
        }
    }

    /// The links that `name` leads to, on the networks of the asker.
    fn matches(&self, name: &str) -> Vec<Match<'a>> {
        let mut matches: Vec<Match<'a>> = Vec::new();
        if name.is_empty() {
            return matches;
        }
        for endpoint in &self.plan.endpoints {
            for link in endpoint.interfaces.iter().filter(|link| self.is_on(&link.network)) {
                let called = called(name, endpoint, link)
                    .or_else(|| called(below(name, &link.network)?, endpoint, link));
                matches.extend(called.map(|called| Match { endpoint, link, called }));
            }
        }
        if matches.iter().any(|one| one.called != Called::Number) {
            matches.retain(|one| one.called != Called::Number);
        }
        matches
    }

    fn is_on(&self, network: &str) -> bool {
        self.asker.interfaces.iter().any(|link| link.network == network)
    }

    /// Virtual addresses, or those of the best replicas there are.
    fn addresses(&self, matches: &[Match<'_>]) -> Vec<IpAddr> {
        let mut found: Vec<(Rank, Ipv4Addr, Option<Ipv6Addr>)> = Vec::new();
        let mut shared: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
        for Match { endpoint, link, called } in matches {
            let rank = self.rank(endpoint);
            let address = match called {
                Called::Service => self.virtual_address(endpoint, link),
                Called::Container | Called::Number => None,
            };
            match address {
                // All replicas have this one, and it is as good as the best of them.
                Some((v4, v6)) => {
                    let at = *shared.entry(v4).or_insert_with(|| {
                        found.push((rank, v4, v6));
                        found.len() - 1
                    });
                    if let Some(entry) = found.get_mut(at) {
                        entry.0 = entry.0.min(rank);
                    }
                }
                None => found.push((rank, link.address, link.address6)),
            }
        }
        let best = self.best(found, |(rank, ..)| *rank);
        best.into_iter().flat_map(|(_, v4, v6)| [Some(v4.into()), v6.map(IpAddr::from)]).flatten().collect()
    }

    /// One record for each replica that takes connections, with its addresses; all have the same priority and weight
    /// (RFC 2782).
    fn servers(&self, matches: &[Match<'_>], port: u16) -> Lookup {
        let mut replicas: Vec<(Rank, &Match<'_>)> = Vec::new();
        for one in matches {
            // On one network, if it is on several of the asker's.
            let last = replicas.last().map(|(_, last)| &last.endpoint.service);
            if last != Some(&one.endpoint.service) {
                replicas.push((self.rank(one.endpoint), one));
            }
        }
        let (mut answers, mut additional) = (Vec::new(), Vec::new());
        for (_, Match { endpoint, link, .. }) in self.best(replicas, |(rank, _)| *rank) {
            let target = encode_name(&format!("{}.{}", self.name_of(endpoint), link.network));
            let Some(target) = target else { continue };
            let data = [&[0, 0, 0, 1][..], &port.to_be_bytes(), &target].concat();
            answers.push(Record { owner: None, kind: TYPE_SRV, data });
            let addresses = [Some(link.address.into()), link.address6.map(IpAddr::from)];
            let owned = |address| Record { owner: Some(target.clone()), ..Record::address(address) };
            additional.extend(addresses.into_iter().flatten().map(owned));
        }
        Lookup::Found { answers, additional }
    }

    /// Those of the best rank, another one first each time.
    fn best<T>(&self, mut all: Vec<T>, rank: impl Fn(&T) -> Rank) -> Vec<T> {
        let best = all.iter().map(&rank).min();
        all.retain(|one| Some(rank(one)) == best);
        let count = all.len().max(1);
        all.rotate_left(self.turn % count);
        all
    }

    fn rank(&self, endpoint: &Endpoint) -> Rank {
        match self.states.get(&endpoint.service).copied().unwrap_or_default() {
            State::Ready => Rank::Ready,
            State::Starting | State::Unhealthy => Rank::Doubtful,
            State::Draining | State::Down => Rank::Gone,
        }
    }

    fn virtual_address(&self, endpoint: &Endpoint, link: &Interface) -> Option<(Ipv4Addr, Option<Ipv6Addr>)> {
        let group = self.plan.groups.iter().find(|group| group.service == endpoint.group)?;
        let address = group.addresses.iter().find(|address| address.network == link.network)?;
        Some((address.address, address.address6))
    }

    /// A name that leads to this container and to no other: that of a service's first replica is the service's, too.
    fn name_of(&self, endpoint: &Endpoint) -> String {
        let first = endpoint.service == endpoint.group;
        if first && self.plan.groups.iter().any(|group| group.service == endpoint.group) {
            let numbered = format!("{}-1", endpoint.group);
            if !self.plan.endpoints.iter().any(|other| other.service == numbered) {
                return numbered;
            }
        }
        endpoint.service.clone()
    }

    /// Whether a name that the asker cannot see must not leave the stack all the same.
    fn is_inside(&self, name: &str) -> bool {
        let single = !name.contains('.');
        let private = || INSIDE.iter().any(|suffix| below(name, suffix).is_some());
        let network = || self.plan.networks.iter().any(|network| below(name, &network.name).is_some());
        let elsewhere = || {
            self.plan
                .endpoints
                .iter()
                .any(|endpoint| endpoint.interfaces.iter().any(|link| called(name, endpoint, link).is_some()))
        };
        single || private() || network() || elsewhere()
    }

    /// Whether the asker's name lookups may leave the stack: a question is a way out, too.
    fn may_leave(&self, name: &str) -> bool {
        self.has_egress() && self.asker.egress.may_resolve(name)
    }

    /// On internal networks only, nothing does.
    fn has_egress(&self) -> bool {
        let open =
            |name: &str| self.plan.networks.iter().any(|network| network.name == name && !network.internal);
        self.asker.interfaces.iter().any(|link| open(&link.network))
    }

    fn lookup_address(&self, reverse: &Reverse, kind: u16) -> Lookup {
        let Reverse { subnet, exact } = *reverse;
        let (whole, address) = (exact && subnet.is_single(), subnet.first());
        if whole && address.is_loopback() {
            return pointer("localhost", kind);
        }
        let has_all = |network: &&Network| network.subnets().any(|own| own.covers(subnet));
        if let Some(network) = self.plan.networks.iter().find(has_all) {
            // Above the addresses are names without records.
            if !whole {
                return if exact { Lookup::empty() } else { Lookup::NoSuchName };
            }
            let name = if self.is_on(&network.name) { self.name_at(network, address) } else { None };
            let name = name.map(|name| format!("{name}.{}", network.name));
            return name.map_or(Lookup::NoSuchName, |name| pointer(&name, kind));
        }
        if self.has_egress() && may_reverse(&self.asker.egress, reverse) {
            Lookup::Foreign
        } else {
            Lookup::NoSuchName
        }
    }

    /// The container or the service that has an address.
    fn name_at(&self, network: &Network, address: IpAddr) -> Option<String> {
        let is = |v4: Ipv4Addr, v6: Option<Ipv6Addr>| address == v4 || v6.is_some_and(|v6| address == v6);
        let endpoint = self.plan.endpoints.iter().find(|endpoint| {
            let mut links = endpoint.interfaces.iter();
            links.any(|link| link.network == network.name && is(link.address, link.address6))
        });
        let group = || {
            self.plan.groups.iter().find(|group| {
                let mut addresses = group.addresses.iter();
                addresses.any(|at| at.network == network.name && is(at.address, at.address6))
            })
        };
        endpoint.map(|endpoint| self.name_of(endpoint)).or_else(|| group().map(|group| group.service.clone()))
    }
}

/// How willing a container is to take connections; the best come first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Ready,
    /// Answered while there is nobody better: a client that looks a name up once, as nginx does at its start, must
    /// find it.
    Doubtful,
    /// Answered when there is nobody else: its clients are refused at once.
    Gone,
}

/// What `name` is to a link, without a network's name at its end.
fn called(name: &str, endpoint: &Endpoint, link: &Interface) -> Option<Called> {
    let is = |other: &str| other.eq_ignore_ascii_case(name);
    let of_service = |name: &str| {
        let mut aliases = link.aliases.iter().filter(|alias| **alias != endpoint.service);
        endpoint.group.eq_ignore_ascii_case(name) || aliases.any(|alias| alias.eq_ignore_ascii_case(name))
    };
    if of_service(name) {
        return Some(Called::Service);
    }
    if is(&endpoint.service) || name.strip_prefix("tasks.").is_some_and(of_service) {
        return Some(Called::Container);
    }
    let first = endpoint.service == endpoint.group;
    let numbered =
        name.strip_suffix("-1").is_some_and(|service| service.eq_ignore_ascii_case(&endpoint.group));
    (first && numbered).then_some(Called::Number)
}

/// What is left of `name` without `.parent` at its end.
fn below<'n>(name: &'n str, parent: &str) -> Option<&'n str> {
    let at = name.len().checked_sub(parent.len() + 1)?;
    let (rest, end) = name.split_at_checked(at)?;
    end.strip_prefix('.').filter(|end| end.eq_ignore_ascii_case(parent)).map(|_| rest)
}

enum Port {
    /// The name is no service name.
    None,
    Number(u16),
    /// A service name without a port number, or half of one.
    Other,
}

/// Takes `_80._tcp` off the front of a name (RFC 2782): ports have no names here.
fn split_service(name: &str) -> (Port, &str) {
    if !name.starts_with('_') {
        return (Port::None, name);
    }
    let mut base = name;
    while base.starts_with('_') {
        base = base.split_once('.').map_or("", |(_, rest)| rest);
    }
    let mut labels = name.strip_suffix(base).unwrap_or_default().split_terminator('.');
    let number = labels.next().and_then(|port| port.strip_prefix('_')?.parse::<u16>().ok());
    let carried = matches!(labels.next(), Some("_tcp" | "_udp"));
    match number.filter(|port| *port > 0 && carried && labels.next().is_none()) {
        Some(port) => (Port::Number(port), base),
        None => (Port::Other, base),
    }
}

fn of_type(kind: u16, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Record> {
    let wanted = |address: &IpAddr| match kind {
        TYPE_ANY => true,
        TYPE_A => address.is_ipv4(),
        TYPE_AAAA => address.is_ipv6(),
        _ => false,
    };
    addresses.into_iter().filter(wanted).map(Record::address).collect()
}

fn pointer(name: &str, kind: u16) -> Lookup {
    match encode_name(name) {
        Some(data) if kind == TYPE_PTR || kind == TYPE_ANY => {
            Lookup::found(vec![Record { owner: None, kind: TYPE_PTR, data }])
        }
        _ => Lookup::empty(),
    }
}

/// What a name below `in-addr.arpa` or `ip6.arpa` stands for (RFC 1035 section 3.5, RFC 3596 section 2.5).
struct Reverse {
    /// The address, or all those that begin like this.
    subnet: Subnet,
    /// The name says nothing more.
    exact: bool,
}

impl Reverse {
    fn read(name: &str) -> Option<Self> {
        if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
            let mut octets = [0u8; 4];
            let (count, exact) = fill(labels, &mut octets, |label| {
                label.parse().ok().filter(|octet: &u8| octet.to_string() == label)
            });
            return Some(Self { subnet: Subnet::of(octets, 8 * count), exact });
        }
        let mut nibbles = [0u8; 32];
        let (count, exact) = fill(name.strip_suffix(".ip6.arpa")?, &mut nibbles, |label| {
            (label.len() == 1).then(|| u8::from_str_radix(label, 16).ok()).flatten()
        });
        let address = nibbles.iter().fold(0u128, |address, nibble| address << 4 | u128::from(*nibble));
        Some(Self { subnet: Subnet::of(Ipv6Addr::from(address), 4 * count), exact })
    }
}

/// Reads labels from the last on; how many there were, and whether they were all.
fn fill(labels: &str, parts: &mut [u8], read: impl Fn(&str) -> Option<u8>) -> (u8, bool) {
    let mut count = 0;
    let mut labels = labels.rsplit('.');
    for part in parts {
        let Some(label) = labels.next() else { return (count, true) };
        let Some(value) = read(label) else { return (count, false) };
        *part = value;
        count += 1;
    }
    (count, labels.next().is_none())
}

/// Whether a rule could allow the addresses that a reverse name stands for, and it says nothing but these.
fn may_reverse(policy: &Policy, reverse: &Reverse) -> bool {
    let allows = |target: &Target| match target {
        Target::Subnet(subnet) => reverse.exact && subnet.covers(reverse.subnet),
        Target::Name(_) | Target::Below(_) => false,
    };
    match policy {
        Policy::All => true,
        Policy::None => false,
        Policy::Only(rules) => rules.iter().any(|rule| allows(&rule.target)),
    }
}
