//! The stack's links to the outside: netd, the name server's sockets, and the published ports.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use network::netd::{Client, Configuration, Descriptors, Inward, Published};
use network::plan::{Mode, NetworkPlan, PublishedPort};
use sys::channel::Channel;
use sys::process::Child;

use crate::hub::client::Hub;
use crate::plan::Plan;
use crate::remote::{Context, RemoteError};

/// How long netd may take to confirm a configuration.
const DEADLINE: Duration = Duration::from_secs(10);

/// netd and what was given to it.
#[derive(Debug, Default)]
pub(crate) struct Wiring {
    netd: Option<Client>,
    process: Option<Child>,
    /// Whether the hub has its end of netd's channel.
    connected: bool,
    /// Listening sockets, kept so that a port stays bound whatever becomes of netd.
    listeners: BTreeMap<PublishedPort, (OwnedFd, SocketAddr)>,
    /// What listens inside for direct ports, and the plan of the network that it was made for.
    inward: (NetworkPlan, BTreeMap<(String, u16), OwnedFd>),
}

impl Wiring {
    /// With a netd that runs, or without one for a stack that needs none.
    pub(crate) fn new(netd: Option<(Child, Channel)>) -> Self {
        let (process, channel) = netd.unzip();
        Self { netd: channel.map(Client::new), process, ..Self::default() }
    }

    /// Readable when netd is gone.
    pub(crate) fn netd(&self) -> Option<BorrowedFd<'_>> {
        self.netd.as_ref().map(AsFd::as_fd)
    }

    /// Binds the ports of `plan`, wires its networks, and has netd serve both. Ports come first: a port that is
    /// taken is the likeliest failure, and nothing has changed then.
    pub(crate) fn apply(&mut self, plan: &Plan, hub: &mut Hub) -> Result<(), RemoteError> {
        let wanted: Vec<(&str, &PublishedPort)> =
            plan.services.iter().flat_map(|s| s.ports.iter().map(|p| (s.name.as_str(), p))).collect();
        let mut bound = BTreeMap::new();
        for (service, port) in &wanted {
            if !self.listeners.contains_key(port) {
                let bind = match port.mode {
                    Mode::Proxy => network::publish::bind,
                    Mode::Direct => network::direct::bind,
                };
                let socket = bind(port).context(|| format!("publish a port of service `{service}`"))?;
                bound.insert(**port, socket);
            }
        }
        let names = hub.wire(&plan.network)?;
        self.listeners.retain(|port, _| wanted.iter().any(|(_, w)| *w == port));
        self.listeners.extend(bound);
        if self.netd.is_none() {
            return Ok(());
        }
        let inward = self.listen_inside(plan, hub)?;
        let Some(netd) = &mut self.netd else { return Ok(()) };
        let mut ours = None;
        if !self.connected {
            let (hub_end, netd_end) = Channel::pair()?;
            hub.netd(hub_end.as_fd())?;
            ours = Some(netd_end);
            self.connected = true;
        }
        let mut published = Vec::new();
        let mut listeners = Vec::new();
        for (service, port) in wanted {
            let Some((listener, at)) = self.listeners.get(port) else { continue };
            if port.mode == Mode::Direct {
                continue;
            }
            listeners.push((published.len(), listener.as_fd()));
            let port = PublishedPort { host_port: at.port(), ..*port };
            published.push(Published { service: service.to_owned(), port });
        }
        let configuration =
            Configuration { plan: plan.network.clone(), published, inward, ..Configuration::default() };
        let inside: Vec<BorrowedFd<'_>> = configuration
            .inward
            .iter()
            .filter_map(|inward| self.inward.1.get(&(inward.container.clone(), inward.port)))
            .map(AsFd::as_fd)
            .collect();
        let with = Descriptors {
            hub: ours.as_ref().map(AsFd::as_fd),
            names: &names,
            listeners: &listeners,
            inward: &inside,
        };
        netd.configure(&configuration, &with)?;
        Ok(netd.confirmed(Instant::now() + DEADLINE)?)
    }

    /// Has something listen on direct ports inside, where their containers do not: others of the stack connect to the
    /// container's address.
    fn listen_inside(&mut self, plan: &Plan, hub: &mut Hub) -> Result<Vec<Inward>, RemoteError> {
        let mut wanted: BTreeMap<(String, u16), SocketAddr> = BTreeMap::new();
        for service in &plan.services {
            let containers = || plan.network.endpoints.iter().filter(|e| e.group == service.name);
            for port in service.ports.iter().filter(|p| p.mode == Mode::Direct && !p.is_udp()) {
                let Some((_, at)) = self.listeners.get(port) else { continue };
                let at = network::direct::reached_at(*at);
                wanted.extend(containers().map(|e| ((e.service.clone(), port.container_port), at)));
            }
        }
        let (made_for, listening) = &mut self.inward;
        // Namespaces may be others now.
        if *made_for != plan.network {
            listening.clear();
        }
        listening.retain(|key, _| wanted.contains_key(key));
        for (container, port) in wanted.keys() {
            let key = (container.clone(), *port);
            if let Entry::Vacant(entry) = listening.entry(key) {
                entry.insert(hub.listen(container, *port)?);
            }
        }
        made_for.clone_from(&plan.network);
        let inward = |((container, port), target)| Inward { container, port, target };
        Ok(wanted.into_iter().map(inward).collect())
    }

    /// The socket of a published port.
    pub(crate) fn socket_of(&self, port: &PublishedPort) -> Option<BorrowedFd<'_>> {
        self.listeners.get(port).map(|(socket, _)| socket.as_fd())
    }

    /// Closes the published ports and ends netd; nobody is let in any more.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.listeners.clear();
        self.netd = None;
        match self.process.take() {
            Some(process) => container::userns::end(&process),
            None => Ok(()),
        }
    }

    /// A service's published ports for `ps`: `127.0.0.1:8443->443/tcp`, ranges folded.
    pub(crate) fn describe(&self, ports: &[PublishedPort]) -> Vec<String> {
        let real = |port: &PublishedPort| {
            self.listeners.get(port).map_or(port.host_port, |(_, address)| address.port())
        };
        fold(ports.iter().map(|port| PublishedPort { host_port: real(port), ..*port }))
    }
}

fn fold(ports: impl Iterator<Item = PublishedPort>) -> Vec<String> {
    let mut runs: Vec<(PublishedPort, u16)> = Vec::new();
    for port in ports {
        if let Some((first, length)) = runs.last_mut()
            && first.host_ip == port.host_ip
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
        format!("{host}{}->{}/tcp", range(first.host_port, *length), range(first.container_port, *length))
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
