//! Wiring: bridges in the stack's network namespace, and a network namespace with its links for each service.
//!
//! Everything here changes the calling thread's network namespace for moments at a time, so it belongs in a
//! single-threaded process: the hub. Isolation between networks rests on this: nothing forwards (`ip_forward` is 0
//! in every namespace, whatever the host has; [`detour`] has the one exception). What a container sends out of its networks' subnets comes to the
//! bridge by its default route, if it has one, and either is intercepted, so that netd decides about it (see
//! [`crate::intercept`]), or ends there. The only other listeners in the stack's namespace, the name server's, are
//! each bound to one bridge.

mod check;
mod detour;
mod faults;
mod senders;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::Error;
use crate::error::Doing;
use crate::intercept::{self, Intercepted};
use crate::netlink::{LOOPBACK, Netlink, Veth};
use crate::plan::{Endpoint, Interface, Network, NetworkPlan};

use detour::Detour;
use faults::Faults;

/// Bridges and both ends of links get indices from here on, so that they need not be asked for. Fallback
/// tunnel devices, which some hosts put into every new namespace, stay far below.
const FIRST_INDEX: u32 = 1000;

/// The network namespaces of a stack's services and what was wired for them. Kept by the hub for its lifetime.
#[derive(Debug)]
pub struct Namespaces {
    /// The stack's own namespace.
    stack: OwnedFd,
    netlink: Netlink,
    applied: NetworkPlan,
    /// Somebody is at the end of default routes.
    intercepts: bool,
    /// Another program is.
    detour: Option<Detour>,
    /// Interface index of each bridge, by the network's name.
    bridges: BTreeMap<String, u32>,
    /// Interface index of each link's end on a bridge, by that end's name.
    peers: BTreeMap<String, u32>,
    next_index: u32,
    endpoints: BTreeMap<String, OwnedFd>,
    faults: Faults,
}

/// What [`Namespaces::apply`] made anew.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Networks whose bridge is new: their name server sockets must be made.
    pub networks: Vec<String>,
    /// Services whose network namespace is new: a running one is still in its old, disconnected one.
    pub endpoints: Vec<String>,
}

/// Wires a plan in a fresh network namespace and returns each service's own.
///
/// # Errors
/// As [`Namespaces::apply`].
pub fn wire(plan: &NetworkPlan) -> Result<BTreeMap<String, OwnedFd>, Error> {
    let mut namespaces = Namespaces::open()?;
    namespaces.apply(plan)?;
    Ok(namespaces.endpoints)
}

impl Namespaces {
    /// Prepares the current network namespace, a new one, to be a stack's.
    ///
    /// # Errors
    /// When a kernel setting cannot be changed or `lo` cannot be brought up.
    pub fn open() -> Result<Self, Error> {
        let stack = current()?;
        settings::of_stack()?;
        let mut netlink = Netlink::open().doing(|| "open netlink socket in the stack's network namespace")?;
        netlink.up("bring up `lo` of the stack".into(), LOOPBACK)?;
        netlink.flush()?;
        Ok(Self {
            stack,
            netlink,
            applied: NetworkPlan::default(),
            intercepts: false,
            detour: None,
            bridges: BTreeMap::new(),
            peers: BTreeMap::new(),
            next_index: FIRST_INDEX,
            endpoints: BTreeMap::new(),
            faults: Faults::default(),
        })
    }

    /// A service's network namespace.
    #[must_use]
    pub fn get(&self, service: &str) -> Option<BorrowedFd<'_>> {
        self.endpoints.get(service).map(AsFd::as_fd)
    }

    /// Makes what `plan` has and the one before had not, and removes what is no more in it. A network or a
    /// service whose entry did not change is left alone.
    ///
    /// # Errors
    /// Each names the object. After a failure the stack is half wired and should be given up.
    pub fn apply(&mut self, plan: &NetworkPlan) -> Result<Changes, Error> {
        check::validate(plan)?;
        let changes = self.changes(plan);
        self.remove(plan, &changes)?;
        let networks = |network: &&Network| changes.networks.contains(&network.name);
        for network in plan.networks.iter().filter(networks) {
            self.create_bridge(network)?;
        }
        self.add_virtual_addresses(plan, &changes)?;
        let endpoints = |endpoint: &&Endpoint| changes.endpoints.contains(&endpoint.service);
        let fresh: Vec<&Endpoint> = plan.endpoints.iter().filter(endpoints).collect();
        let made = create_namespaces(&fresh);
        // Back home whatever happened.
        setns(&self.stack, CloneFlags::CLONE_NEWNET).doing(|| "return to the stack's network namespace")?;
        let mut made = made?;
        for (endpoint, (namespace, _)) in fresh.iter().zip(&made) {
            self.connect(endpoint, plan, namespace.as_fd())?;
        }
        self.netlink.flush()?;
        // Before anything runs at the other end of a new link.
        if !fresh.is_empty() {
            senders::bind(plan, &self.peers)?;
        }
        for (endpoint, (namespace, netlink)) in fresh.iter().zip(&mut made) {
            configure(endpoint, plan, namespace.as_fd(), netlink)?;
            if self.intercepts || self.detour.is_some() {
                add_default_routes(endpoint, plan, netlink)?;
            }
        }
        let names = fresh.iter().map(|endpoint| endpoint.service.clone());
        self.endpoints.extend(names.zip(made.into_iter().map(|(namespace, _)| namespace)));
        if let Some(detour) = &mut self.detour {
            detour.follow(&mut self.netlink, plan)?;
        }
        self.applied = plan.clone();
        self.renew_faults(&changes)?;
        Ok(changes)
    }

    /// Makes the sockets that intercepted traffic arrives at, and has it arrive there from now on; containers get
    /// default routes. Called again it makes new sockets in place of those before.
    ///
    /// # Errors
    /// [`Error::NoInterception`] where the kernel cannot do it. All else works then, without egress.
    pub fn intercept(&mut self) -> Result<Intercepted, Error> {
        self.try_intercept().map_err(|source| Error::NoInterception { source: Box::new(source) })
    }

    fn try_intercept(&mut self) -> Result<Intercepted, Error> {
        let (mut sockets, ports) = intercept::listen()?;
        let ipv6 = sockets.tcp6.is_some();
        // Where the rules are without a routing table, or without their sockets, what they match is not delivered.
        sockets.connections = intercept::install(ports)?;
        if self.intercepts {
            return Ok(sockets);
        }
        intercept::route(&mut self.netlink, ipv6)?;
        settings::answer_all(ipv6)?;
        if sockets.icmp4.is_some() {
            settings::leave_echo_requests(sockets.icmp6.is_some())?;
        }
        self.intercepts = true;
        if self.detour.is_none() {
            self.open_endpoints()?;
        }
        Ok(sockets)
    }

    /// Where [`Namespaces::intercept`] fails: has what containers send out of their networks leave by `device`, on
    /// whose network another program is `gateway` and takes it; again for a new device of that name. Containers with an
    /// egress policy have no way out, nor has IPv6, and nobody decides about addresses of the host.
    ///
    /// # Errors
    /// When there is no such device, or the kernel refuses a route, a rule or a setting.
    pub fn detour(&mut self, device: &str, gateway: Ipv4Addr) -> Result<(), Error> {
        let has_routes = self.intercepts || self.detour.is_some();
        let detour = self.detour.get_or_insert_with(|| Detour::new(device));
        // The rules say what may go where before anything goes.
        detour.follow(&mut self.netlink, &self.applied)?;
        detour.lead(&mut self.netlink, gateway)?;
        if has_routes { Ok(()) } else { self.open_endpoints() }
    }

    /// Gives containers that are wired already their default routes.
    fn open_endpoints(&self) -> Result<(), Error> {
        for endpoint in &self.applied.endpoints {
            let Some(namespace) = self.endpoints.get(&endpoint.service) else { continue };
            let mut netlink = netlink_in(namespace.as_fd(), &endpoint.service)?;
            add_default_routes(endpoint, &self.applied, &mut netlink)?;
        }
        Ok(())
    }

    fn changes(&self, plan: &NetworkPlan) -> Changes {
        let networks: Vec<String> = plan
            .networks
            .iter()
            .filter(|network| !self.applied.networks.contains(network))
            .map(|network| network.name.clone())
            .collect();
        let kept = |endpoint: &Endpoint| {
            self.applied.endpoints.iter().any(|old| same_links(old, endpoint))
                && !endpoint.interfaces.iter().any(|interface| networks.contains(&interface.network))
        };
        let endpoints = plan.endpoints.iter().filter(|endpoint| !kept(endpoint));
        Changes { endpoints: endpoints.map(|endpoint| endpoint.service.clone()).collect(), networks }
    }

    /// Removes endpoints and bridges that are gone or about to be made anew.
    fn remove(&mut self, plan: &NetworkPlan, changes: &Changes) -> Result<(), Error> {
        // Held until their links are deleted: with a namespace's last descriptor the kernel takes its links away
        // too, at a moment of its own.
        let mut namespaces = Vec::new();
        for old in &self.applied.endpoints {
            let stays = plan.endpoints.iter().any(|endpoint| endpoint.service == old.service)
                && !changes.endpoints.contains(&old.service);
            if !stays && let Some(namespace) = self.endpoints.remove(&old.service) {
                namespaces.push(namespace);
                for interface in &old.interfaces {
                    self.netlink.delete(&interface.peer)?;
                    self.peers.remove(&interface.peer);
                }
            }
        }
        for old in &self.applied.networks {
            let stays = plan.networks.iter().any(|network| network.name == old.name)
                && !changes.networks.contains(&old.name);
            if !stays && self.bridges.remove(&old.name).is_some() {
                self.netlink.delete(&old.bridge)?;
            }
        }
        for (network, address) in
            virtual_addresses(&self.applied).difference(&virtual_addresses(plan)).copied()
        {
            // Others are gone with their bridge.
            if !changes.networks.contains(network)
                && let Some(&bridge) = self.bridges.get(network)
            {
                let what = format!("take the virtual address {address} from network `{network}`");
                self.netlink.remove_address(what, bridge, address, host_prefix(address))?;
            }
        }
        self.netlink.flush()?;
        drop(namespaces);
        Ok(())
    }

    fn add_virtual_addresses(&mut self, plan: &NetworkPlan, changes: &Changes) -> Result<(), Error> {
        let there = virtual_addresses(&self.applied);
        for (network, address) in virtual_addresses(plan) {
            let stays = there.contains(&(network, address)) && !changes.networks.iter().any(|n| n == network);
            if !stays && let Some(&bridge) = self.bridges.get(network) {
                let what = format!("give network `{network}` the virtual address {address}");
                self.netlink.address(what, bridge, address, host_prefix(address))?;
            }
        }
        self.netlink.flush()
    }

    fn create_bridge(&mut self, network: &Network) -> Result<(), Error> {
        let index = self.index();
        self.bridges.insert(network.name.clone(), index);
        let [a, b, c, d] = network.gateway.octets();
        // Locally administered, unique in the stack because the address is.
        self.netlink.bridge(&network.bridge, index, [0x02, 0x42, a, b, c, d], network.mtu)?;
        let what = format!("give bridge `{}` the address {}", network.bridge, network.gateway);
        self.netlink.address(what, index, network.gateway, network.prefix)?;
        let Some(v6) = network.v6 else { return Ok(()) };
        // The setting is there when the bridge is.
        self.netlink.flush()?;
        settings::ipv6(&network.bridge, true)?;
        let what = format!("give bridge `{}` the address {}", network.bridge, v6.gateway);
        self.netlink.address(what, index, v6.gateway, v6.prefix)
    }

    /// A fresh interface index of the stack's namespace.
    fn index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index - 1
    }

    fn connect(
        &mut self,
        endpoint: &Endpoint,
        plan: &NetworkPlan,
        netns: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        for (index, interface) in endpoint.interfaces.iter().enumerate() {
            let what = format!("create link `{}` of service `{}`", interface.name, endpoint.service);
            let bridge = self.bridges.get(&interface.network).copied().unwrap_or_default();
            let peer = self.index();
            self.peers.insert(interface.peer.clone(), peer);
            let veth = Veth {
                name: &interface.peer,
                index: peer,
                bridge,
                inner: &interface.name,
                inner_index: inner_index(index),
                mac: interface.mac,
                mtu: network_of(interface, plan).and_then(|network| network.mtu),
                netns,
            };
            self.netlink.veth(what, &veth)?;
        }
        Ok(())
    }
}

/// Whether the links that were made for `old` serve for `new`; aliases are the name server's business.
fn same_links(old: &Endpoint, new: &Endpoint) -> bool {
    let wired = |a: &Interface, b: &Interface| {
        *a == Interface { fixed: a.fixed, aliases: a.aliases.clone(), ..b.clone() }
    };
    old.service == new.service
        && old.interfaces.len() == new.interfaces.len()
        && old.interfaces.iter().zip(&new.interfaces).all(|(a, b)| wired(a, b))
}

/// The virtual addresses of a plan, each with its network's name.
fn virtual_addresses(plan: &NetworkPlan) -> BTreeSet<(&String, IpAddr)> {
    let addresses = plan.groups.iter().flat_map(|group| &group.addresses);
    let both = addresses.flat_map(|at| {
        let address6 = at.address6.map(|address| (&at.network, IpAddr::from(address)));
        [(&at.network, IpAddr::from(at.address))].into_iter().chain(address6)
    });
    both.collect()
}

/// The prefix length that makes a subnet of one address.
const fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn network_of<'a>(interface: &Interface, plan: &'a NetworkPlan) -> Option<&'a Network> {
    plan.networks.iter().find(|network| network.name == interface.network)
}

/// Index of an endpoint's link number `link` (from 0) in the endpoint's namespace.
const fn inner_index(link: usize) -> u32 {
    FIRST_INDEX + link as u32
}

/// Makes one network namespace per endpoint, with its settings and a netlink socket in it. Leaves the caller in
/// the last one.
fn create_namespaces(endpoints: &[&Endpoint]) -> Result<Vec<(OwnedFd, Netlink)>, Error> {
    let mut made = Vec::with_capacity(endpoints.len());
    let groups = settings::ping_groups();
    for endpoint in endpoints {
        let service = &endpoint.service;
        unshare(CloneFlags::CLONE_NEWNET).doing(|| format!("create network namespace of `{service}`"))?;
        let namespace = current()?;
        settings::of_container(&groups, has_ipv6(endpoint))?;
        let netlink =
            Netlink::open().doing(|| format!("open netlink socket in the namespace of `{service}`"))?;
        made.push((namespace, netlink));
    }
    Ok(made)
}

fn has_ipv6(endpoint: &Endpoint) -> bool {
    endpoint.interfaces.iter().any(|interface| interface.address6.is_some())
}

/// Brings up `lo` and gives the links their addresses.
fn configure(
    endpoint: &Endpoint,
    plan: &NetworkPlan,
    namespace: BorrowedFd<'_>,
    netlink: &mut Netlink,
) -> Result<(), Error> {
    let service = &endpoint.service;
    let without_ipv6: Vec<&Interface> =
        endpoint.interfaces.iter().filter(|interface| interface.address6.is_none()).collect();
    if has_ipv6(endpoint) && !without_ipv6.is_empty() {
        let switch_off = || without_ipv6.iter().try_for_each(|link| settings::ipv6(&link.name, false));
        inside(namespace, service, switch_off)??;
    }
    netlink.up(format!("bring up `lo` of service `{service}`"), LOOPBACK)?;
    for (link, interface) in endpoint.interfaces.iter().enumerate() {
        let Interface { name, address, .. } = interface;
        let network = network_of(interface, plan);
        let prefix = network.map_or(32, |network| network.prefix);
        let what = format!("give link `{name}` of service `{service}` the address {address}");
        netlink.address(what, inner_index(link), *address, prefix)?;
        netlink.up(format!("bring up link `{name}` of service `{service}`"), inner_index(link))?;
        if let Some(address) = interface.address6 {
            let prefix = network.and_then(|network| network.v6).map_or(128, |v6| v6.prefix);
            let what = format!("give link `{name}` of service `{service}` the address {address}");
            netlink.address(what, inner_index(link), address, prefix)?;
        }
    }
    netlink.flush()
}

/// The link, by its number, that an endpoint's default routes lead over: to the first network that is not internal.
/// A client from elsewhere can be shown to the container with its own address on this link only: the answers leave
/// by it.
pub(crate) fn way_out<'a>(endpoint: &Endpoint, plan: &'a NetworkPlan) -> Option<(usize, &'a Network)> {
    endpoint.interfaces.iter().enumerate().find_map(|(link, interface)| {
        network_of(interface, plan).filter(|network| !network.internal).map(|network| (link, network))
    })
}

/// Where there is no way out, an attempt to reach the outside fails at once instead of timing out.
fn add_default_routes(endpoint: &Endpoint, plan: &NetworkPlan, netlink: &mut Netlink) -> Result<(), Error> {
    let Some((link, network)) = way_out(endpoint, plan) else { return Ok(()) };
    let has_ipv6 = endpoint.interfaces.get(link).is_some_and(|interface| interface.address6.is_some());
    let v6 = network.v6.filter(|_| has_ipv6).map(|v6| IpAddr::from(v6.gateway));
    for gateway in [IpAddr::from(network.gateway)].into_iter().chain(v6) {
        let what = format!("give service `{}` a default route by {gateway}", endpoint.service);
        netlink.default_route(what, inner_index(link), gateway)?;
    }
    netlink.flush()
}

/// Does something in a service's network namespace, and comes back.
pub(crate) fn inside<T>(
    namespace: BorrowedFd<'_>,
    service: &str,
    body: impl FnOnce() -> T,
) -> Result<T, Error> {
    let home = current()?;
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .doing(|| format!("enter the network namespace of `{service}`"))?;
    let result = body();
    setns(home, CloneFlags::CLONE_NEWNET).doing(|| format!("leave the network namespace of `{service}`"))?;
    Ok(result)
}

/// A netlink socket that belongs to a service's namespace.
pub(crate) fn netlink_in(namespace: BorrowedFd<'_>, service: &str) -> Result<Netlink, Error> {
    inside(namespace, service, Netlink::open)?
        .doing(|| format!("open netlink socket in the namespace of `{service}`"))
}

/// A TCP socket that belongs to `netns`, close-on-exec and non-blocking; for health probes.
///
/// # Errors
/// When the namespace cannot be entered or left again.
pub fn socket_in(netns: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let home = current()?;
    setns(netns, CloneFlags::CLONE_NEWNET).doing(|| "enter the service's network namespace")?;
    let socket = any_socket();
    setns(home, CloneFlags::CLONE_NEWNET).doing(|| "leave the service's network namespace")?;
    socket.doing(|| "create socket in the service's network namespace")
}

/// A TCP socket of the current network namespace.
fn any_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
}

fn current() -> Result<OwnedFd, Error> {
    let file = File::open("/proc/thread-self/ns/net").doing(|| "open the current network namespace")?;
    Ok(file.into())
}
