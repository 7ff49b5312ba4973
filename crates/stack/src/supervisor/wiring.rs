//! The stack's links to the outside: netd, the name server's sockets, and the published ports.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use network::balance::State;
use network::intercept::Intercepted;
use network::names::NameSockets;
use network::netd::{Configuration, Descriptors, Event, Inward, Published};
use network::plan::{Mode, NetworkPlan, Protocol, PublishedPort};
use sys::channel::Channel;

use super::Supervisor;
use super::connection::Pending;
use super::detour::{self, Detour};
use super::netd::{Deaths, Presence, Revival};
use crate::control::Notice;
use crate::hub::client::Hub;
use crate::netd::{Netd, Starter};
use crate::plan::Plan;
use crate::remote::{Context, RemoteError};
use crate::report::report;

/// How long netd may take to confirm a configuration.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a published port takes on the host. Where the kernel chooses the number, it is a port's of its own: two services
/// that leave it to that have two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    address: SocketAddr,
    udp: bool,
    mode: Mode,
    chosen_for: Option<(String, u16)>,
}

fn place(owner: &str, port: &PublishedPort) -> Place {
    Place {
        address: SocketAddr::new(port.host_ip, port.host_port),
        udp: port.is_udp(),
        mode: port.mode,
        chosen_for: (port.host_port == 0).then(|| (owner.to_owned(), port.container_port)),
    }
}

/// netd, and all that it works with. What is kept here outlives it: a port stays bound, and a name server's socket
/// open, whatever becomes of netd, and the next one gets them.
#[derive(Debug)]
pub(crate) struct Wiring {
    starter: Starter,
    netd: Presence,
    deaths: Deaths,
    listeners: BTreeMap<Place, (OwnedFd, SocketAddr)>,
    /// The name server's sockets.
    names: Vec<NameSockets>,
    /// What takes everything that containers send out of their networks.
    intercepted: Option<Intercepted>,
    /// The program by which it leaves where the kernel cannot intercept.
    detour: Option<Detour>,
    /// What netd serves, or will when it is there.
    plan: NetworkPlan,
    /// The ports that are published.
    published: Vec<Published>,
    /// Services that somebody has asked for. The ports of the others are nobody's business yet, and stay free.
    open: BTreeSet<String>,
    /// What one-off containers publish, by container. A service has no port that one of these has.
    lent: BTreeMap<String, Vec<PublishedPort>>,
    /// Ports of containers that lead to the host, with what listens there.
    inward: Vec<(Inward, OwnedFd)>,
    /// What became of containers.
    states: BTreeMap<String, State>,
}

impl Wiring {
    /// With a netd that runs, or without one for a stack that needs none yet.
    pub(crate) fn new(starter: Starter, netd: Option<Netd>) -> Self {
        Self {
            starter,
            netd: netd.map_or(Presence::Unneeded, Presence::Running),
            deaths: Deaths::default(),
            listeners: BTreeMap::new(),
            names: Vec::new(),
            intercepted: None,
            detour: None,
            plan: NetworkPlan::default(),
            published: Vec::new(),
            open: BTreeSet::new(),
            lent: BTreeMap::new(),
            inward: Vec::new(),
            states: BTreeMap::new(),
        }
    }

    /// Readable when netd has something to tell, or is gone.
    pub(crate) fn netd(&self) -> Option<BorrowedFd<'_>> {
        self.netd.running().map(|netd| netd.client.as_fd())
    }

    /// Binds the ports of `plan`, wires its networks, and has netd serve both. Ports come first: a port that is
    /// taken is the likeliest failure, and nothing has changed then.
    pub(crate) fn apply(&mut self, plan: &Plan, hub: &mut Hub) -> Result<(), RemoteError> {
        let wanted = self.wanted(plan);
        let mut bound = BTreeMap::new();
        for Published { service, port, .. } in &wanted {
            let place = place(service, port);
            if !self.listeners.contains_key(&place) {
                let bind = match port.mode {
                    Mode::Proxy => network::publish::bind,
                    Mode::Direct => network::direct::bind,
                };
                let whose = if self.lent.contains_key(service) { "container" } else { "service" };
                let socket = bind(port).context(|| format!("publish a port of {whose} `{service}`"))?;
                bound.insert(place, socket);
            }
        }
        let names = hub.wire(&plan.network)?;
        let places: BTreeSet<Place> = wanted.iter().map(|one| place(&one.service, &one.port)).collect();
        self.listeners.retain(|place, _| places.contains(place));
        self.listeners.extend(bound);
        self.published = wanted;
        self.listen_inside(plan, hub)?;
        self.names.retain(|old| {
            let stays = plan.network.networks.iter().any(|network| network.name == old.network);
            stays && names.iter().all(|fresh| fresh.network != old.network)
        });
        let fresh = self.names.len();
        self.names.extend(names);
        self.plan = plan.network.clone();
        self.states.retain(|name, _| plan.network.endpoints.iter().any(|e| e.service == *name));
        if matches!(self.netd, Presence::Unneeded) && !plan.network.networks.is_empty() {
            self.netd = Presence::Running(self.starter.start()?);
        }
        // One that died gets all of it when it is started again; that it dies of it the loop notices.
        self.configure(fresh, hub).map(drop)
    }

    /// The same, with the ports of `services` among those that are bound, from now on.
    pub(super) fn open(
        &mut self,
        services: &[String],
        plan: &Plan,
        hub: &mut Hub,
    ) -> Result<(), RemoteError> {
        let before = self.open.clone();
        self.open.extend(services.iter().cloned());
        let applied = self.apply(plan, hub);
        match &applied {
            Ok(()) => self.open.retain(|name| plan.services.iter().any(|service| service.name == *name)),
            Err(_) => self.open = before,
        }
        applied
    }

    /// Whether a service's ports are bound, as far as nobody has borrowed them.
    pub(super) fn is_open(&self, service: &str) -> bool {
        self.open.contains(service)
    }

    /// Everything that is to be published: by one-off containers, and by services what is left.
    fn wanted(&self, plan: &Plan) -> Vec<Published> {
        let expand = |owner: &String, ports: &[PublishedPort]| -> Vec<Published> {
            ports.iter().flat_map(|port| Published::expand(owner, *port)).collect()
        };
        let mut wanted: Vec<Published> =
            self.lent.iter().flat_map(|(owner, ports)| expand(owner, ports)).collect();
        let open = plan.services.iter().filter(|service| self.is_open(&service.name));
        let of_services = open.flat_map(|service| expand(&service.name, &service.ports));
        wanted.extend(of_services.filter(|one| self.borrower(&one.service, &one.port).is_none()));
        wanted
    }

    /// From the next [`Self::apply`] on, the one-off container `container` publishes `ports`; none is its end.
    pub(super) fn lend(&mut self, container: &str, ports: Vec<PublishedPort>) {
        self.lent.remove(container);
        if !ports.is_empty() {
            self.lent.insert(container.to_owned(), ports);
        }
    }

    /// What a one-off container publishes.
    pub(super) fn lent(&self, container: &str) -> &[PublishedPort] {
        self.lent.get(container).map_or(&[], Vec::as_slice)
    }

    /// The one-off container that has what `port` of `owner` takes on the host.
    pub(super) fn borrower(&self, owner: &str, port: &PublishedPort) -> Option<&str> {
        let wanted = place(owner, port);
        let has = |(container, ports): &(&String, &Vec<PublishedPort>)| {
            let places = ports.iter().flat_map(|port| Published::expand(container, *port));
            places.into_iter().any(|one| place(container, &one.port) == wanted)
        };
        self.lent.iter().find(has).map(|(container, _)| container.as_str())
    }

    /// Has what containers send out of the networks of `plan` end at sockets that netd gets, once it is asked for.
    pub(super) fn open_way_out(&mut self, plan: &NetworkPlan, hub: &mut Hub) -> Result<(), RemoteError> {
        let needed = !plan.groups.is_empty() || plan.networks.iter().any(|network| !network.internal);
        if needed && self.intercepted.is_none() {
            detour::hook()?;
            self.intercepted = Some(hub.intercept()?);
            self.detour = None;
        }
        Ok(())
    }

    /// Has another program be the way out of `plan`; false where none is installed.
    fn open_detour(&mut self, plan: &NetworkPlan, hub: &mut Hub) -> Result<bool, RemoteError> {
        if self.detour.is_none() && plan.networks.iter().any(|network| !network.internal) {
            self.detour = Detour::open(plan, hub)?;
        }
        Ok(self.detour.is_some())
    }

    /// That program, while it runs.
    pub(super) fn detour(&self) -> Option<BorrowedFd<'_>> {
        self.detour.as_ref().map(AsFd::as_fd)
    }

    /// It has ended.
    pub(super) fn lose_detour(&mut self) {
        self.detour = None;
    }

    /// Hands netd what it works with, of the name server's sockets only those from `fresh` on if it has the others,
    /// and waits until it does. False when it is not there, or has died of it.
    fn configure(&mut self, fresh: usize, hub: &mut Hub) -> Result<bool, RemoteError> {
        let Some(netd) = self.netd.running_mut() else { return Ok(false) };
        let mut published = Vec::new();
        let mut listeners = Vec::new();
        for one in &self.published {
            let Some((listener, at)) = self.listeners.get(&place(&one.service, &one.port)) else { continue };
            if one.port.mode == Mode::Direct {
                continue;
            }
            listeners.push((published.len(), listener.as_fd()));
            let port = PublishedPort { host_port: at.port(), ..one.port };
            published.push(Published { port, ..one.clone() });
        }
        let configuration = Configuration {
            plan: self.plan.clone(),
            published,
            inward: self.inward.iter().map(|(inward, _)| inward.clone()).collect(),
            states: self.states.clone(),
            ..Configuration::default()
        };
        let mut channel = None;
        if !netd.configured {
            let (hub_end, netd_end) = Channel::pair()?;
            hub.netd(hub_end.as_fd())?;
            channel = Some(netd_end);
        }
        let known = if netd.configured { fresh } else { 0 };
        netd.configured = true;
        let inward: Vec<BorrowedFd<'_>> = self.inward.iter().map(|(_, listener)| listener.as_fd()).collect();
        let with = Descriptors {
            hub: channel.as_ref().map(AsFd::as_fd),
            names: self.names.get(known..).unwrap_or_default(),
            listeners: &listeners,
            intercepted: self.intercepted.as_ref().filter(|_| !netd.intercepts),
            inward: &inward,
        };
        netd.intercepts = self.intercepted.is_some();
        let sent = netd.client.configure(&configuration, &with);
        let confirmed = sent.and_then(|()| netd.client.confirmed(Instant::now() + DEADLINE));
        netd.did(confirmed)
    }

    /// Has something listen on direct ports inside, where their containers do not: others of the stack connect to the
    /// container's address.
    fn listen_inside(&mut self, plan: &Plan, hub: &mut Hub) -> Result<(), RemoteError> {
        let mut wanted: BTreeMap<(String, u16), SocketAddr> = BTreeMap::new();
        for Published { service, port, .. } in
            self.published.iter().filter(|one| one.port.mode == Mode::Direct && !one.port.is_udp())
        {
            let Some((_, at)) = self.listeners.get(&place(service, port)) else { continue };
            let containers = plan.network.endpoints.iter().filter(|endpoint| endpoint.group == *service);
            let at = network::direct::reached_at(*at);
            // Of both families, the one that was named first.
            for container in containers {
                wanted.entry((container.service.clone(), port.container_port)).or_insert(at);
            }
        }
        // With another plan, namespaces may be others.
        let mut kept = std::mem::take(&mut self.inward);
        if self.plan != plan.network {
            kept.clear();
        }
        for ((container, port), target) in wanted {
            let same = |(one, _): &(Inward, OwnedFd)| one.container == container && one.port == port;
            let listener = match kept.iter().position(same) {
                Some(at) => kept.swap_remove(at).1,
                None => hub.listen(&container, port)?,
            };
            self.inward.push((Inward { container, port, target }, listener));
        }
        Ok(())
    }

    /// The socket of a service's published port.
    pub(crate) fn socket_of(&self, service: &str, port: &PublishedPort) -> Option<BorrowedFd<'_>> {
        self.listeners.get(&place(service, port)).map(|(socket, _)| socket.as_fd())
    }

    /// Tells netd what has changed in the states of all containers; the next netd hears of all of them.
    pub(crate) fn tell_states(&mut self, states: BTreeMap<String, State>) -> Result<(), RemoteError> {
        let is_news = |(name, state): &(&String, &State)| self.states.get(*name) != Some(*state);
        let news = states.iter().filter(is_news).map(|(name, state)| (name.clone(), *state));
        let news: BTreeMap<String, State> = news.collect();
        self.states = states;
        let Some(netd) = self.netd.running_mut().filter(|_| !news.is_empty()) else { return Ok(()) };
        let told = netd.client.states(&news);
        netd.did(told).map(drop)
    }

    /// Asks netd to tell when no client of this container waits for an answer any more.
    pub(super) fn await_rest(&mut self, container: &str) -> Result<(), RemoteError> {
        let Some(netd) = self.netd.running_mut() else { return Ok(()) };
        let asked = netd.client.await_rest(container);
        netd.did(asked).map(drop)
    }

    /// The next thing that netd tells, if there is one by now; an error when netd is gone.
    pub(super) fn event(&mut self) -> Result<Option<Event>, network::Error> {
        self.netd.running_mut().map_or(Ok(None), |netd| netd.client.event())
    }

    /// The next one of those that were learnt of while an answer was waited for.
    pub(super) fn known_event(&mut self) -> Option<Event> {
        self.netd.running_mut()?.client.known_event()
    }

    /// Buries a netd that is gone, and decides when there is to be another one. Returns how it ended, in words.
    ///
    /// # Errors
    /// When it died too often.
    pub(super) fn lose_netd(&mut self, now: Instant) -> Result<String, RemoteError> {
        let why = match std::mem::take(&mut self.netd) {
            Presence::Running(netd) => netd.end().context(|| "wait for netd".into())?,
            Presence::Unneeded | Presence::Due { .. } => "could not be started".to_owned(),
        };
        let pause = self.deaths.count(now).ok_or_else(|| {
            RemoteError::message(format!("it {why}, again and again"))
                .or_hint("`.supervisor.log` in the stack's runtime directory has what it said")
        })?;
        self.netd = Presence::Due { at: now + pause, why: why.clone() };
        Ok(why)
    }

    /// When netd is to be started again, if it is.
    pub(super) fn next(&self) -> Option<Instant> {
        match self.netd {
            Presence::Due { at, .. } => Some(at),
            Presence::Unneeded | Presence::Running(_) => None,
        }
    }

    /// Starts netd again if that is due, with everything that the one before had.
    ///
    /// # Errors
    /// When it refuses that, or the hub cannot be reached.
    pub(super) fn revive(&mut self, now: Instant, hub: &mut Hub) -> Result<Revival, RemoteError> {
        let after = match &self.netd {
            Presence::Due { at, why } if *at <= now => why.clone(),
            _ => return Ok(Revival::NotDue),
        };
        match self.starter.start() {
            Ok(netd) => self.netd = Presence::Running(netd),
            Err(error) => {
                report(format_args!("warning: {error}"));
                return Ok(Revival::Failed);
            }
        }
        Ok(if self.configure(0, hub)? { Revival::Serves { after } } else { Revival::Failed })
    }

    /// Closes the published ports and ends netd; nobody is let in any more.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.listeners.clear();
        self.names.clear();
        self.inward.clear();
        self.detour = None;
        match std::mem::take(&mut self.netd) {
            Presence::Running(netd) => netd.end().map(drop),
            Presence::Unneeded | Presence::Due { .. } => Ok(()),
        }
    }

    /// A service's published ports for `ps`: `127.0.0.1:8443->443/tcp`, ranges folded.
    pub(crate) fn describe(&self, service: &str, ports: &[PublishedPort]) -> Vec<String> {
        fold(self.published(service, ports))
    }

    /// A service's or one-off container's published ports, with those that the kernel chose. What another container has
    /// meanwhile is not among them, nor what nobody has asked for yet.
    pub(crate) fn published<'a>(
        &'a self,
        service: &'a str,
        ports: &'a [PublishedPort],
    ) -> impl Iterator<Item = PublishedPort> + 'a {
        let real = |port: &PublishedPort| {
            self.listeners.get(&place(service, port)).map_or(port.host_port, |(_, address)| address.port())
        };
        let bound = self.is_open(service) || self.lent.contains_key(service);
        let is_own =
            move |port: &&PublishedPort| bound && self.borrower(service, port).is_none_or(|it| it == service);
        ports.iter().filter(is_own).map(move |port| PublishedPort { host_port: real(port), ..*port })
    }

    /// Process id of netd, while it runs.
    pub(super) fn netd_pid(&self) -> Option<u32> {
        self.netd.running().map(Netd::pid)
    }
}

impl Supervisor {
    /// Publishes the ports of a container's service, if it is the first that anybody wants of it.
    pub(super) fn open_ports(&mut self, index: usize) -> Result<(), RemoteError> {
        let service = &self.units[index].service;
        match &self.plan {
            Some(plan) if !self.wiring.is_open(&service.name) => {
                self.wiring.open(std::slice::from_ref(&service.name), plan, &mut self.hub)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Opens the way out of the stack, or says why there is none, or not all of it.
    pub(super) fn open_way_out(&mut self, plan: &NetworkPlan, strict: bool) -> Result<(), RemoteError> {
        let Err(error) = self.wiring.open_way_out(plan, &mut self.hub) else { return Ok(()) };
        let what =
            "services have no way out of the stack, and clients of published ports appear as its gateway";
        if strict {
            return Err(error.context(what));
        }
        let what = match self.wiring.open_detour(plan, &mut self.hub) {
            Ok(true) => detour::what_is_lost(plan),
            Ok(false) => what.to_owned(),
            Err(error) => format!("{what} ({error})"),
        };
        let hint = error.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
        let text = format!("{what}: {error}{hint}");
        for id in self.waiting(|pending| matches!(pending, Pending::Up { .. })) {
            self.notify(id, Notice::Warning(text.clone()));
        }
        Ok(())
    }
}

fn fold(ports: impl Iterator<Item = PublishedPort>) -> Vec<String> {
    let mut runs: Vec<(PublishedPort, u16)> = Vec::new();
    for port in ports {
        if let Some((first, length)) = runs.last_mut()
            && (first.host_ip, first.protocol, first.mode) == (port.host_ip, port.protocol, port.mode)
            && first.host_port.checked_add(*length) == Some(port.host_port)
            && first.container_port.checked_add(*length) == Some(port.container_port)
        {
            *length += 1;
        } else {
            runs.push((port, 1));
        }
    }
    let range = |first: u16, length: u16| match length {
        1 => first.to_string(),
        _ => format!("{first}-{}", first + (length - 1)),
    };
    let text = |(first, length): &(PublishedPort, u16)| {
        let host = SocketAddr::new(first.host_ip, 0).to_string();
        let host = host.trim_end_matches('0');
        let protocol = match first.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Ftp { .. } => "ftp",
        };
        let (outside, inside) = (range(first.host_port, *length), range(first.container_port, *length));
        format!("{host}{outside}->{inside}/{protocol}")
    };
    runs.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_folded() {
        let port = |host_port, container_port| {
            PublishedPort::tcp(std::net::Ipv4Addr::LOCALHOST.into(), host_port, container_port)
        };
        let ports = [port(2121, 21), port(21100, 21100), port(21101, 21101), port(21102, 21102)];
        assert_eq!(
            fold(ports.into_iter()),
            ["127.0.0.1:2121->21/tcp", "127.0.0.1:21100-21102->21100-21102/tcp"]
        );
    }
}
