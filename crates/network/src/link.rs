//! Wiring: bridges in the stack's network namespace, and a network namespace with its links for each service.
//!
//! Everything here changes the calling thread's network namespace for moments at a time, so it belongs in a
//! single-threaded process: the hub. Isolation between networks rests on three things: nothing forwards
//! (`ip_forward` is 0 in every namespace, whatever the host has), services have no route out of their own
//! subnets, and the only listeners in the stack's namespace, the name server's, are each bound to one bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::Error;
use crate::error::Doing;
use crate::netlink::{Netlink, Veth};
use crate::plan::{Endpoint, Network, NetworkPlan};

/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
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
    /// Interface index of each bridge, by the network's name.
    bridges: BTreeMap<String, u32>,
    next_index: u32,
    endpoints: BTreeMap<String, OwnedFd>,
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
        // A new namespace inherits the host's value, which is 1 where Docker runs.
        sysctl("net/ipv4/ip_forward", "0")?;
        // Strict: an address of another network is not believed.
        sysctl("net/ipv4/conf/all/rp_filter", "1")?;
        // Connections to one port of a service, one after another: netd closes first, and without these the
        // kernel is slow to find a free source port after 14000 of them in a minute.
        sysctl_if_present("net/ipv4/tcp_tw_reuse", "1")?;
        sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        // No link-local IPv6 between services: the plan knows IPv4 only, and detection of duplicates takes time.
        sysctl_if_present("net/ipv6/conf/default/disable_ipv6", "1")?;
        for table in ["iptables", "ip6tables", "arptables"] {
            sysctl_if_present(&format!("net/bridge/bridge-nf-call-{table}"), "0")?;
        }
        let mut netlink = Netlink::open().doing(|| "open netlink socket in the stack's network namespace")?;
        netlink.up("bring up `lo` of the stack".into(), LOOPBACK)?;
        netlink.flush()?;
        Ok(Self {
            stack,
            netlink,
            applied: NetworkPlan::default(),
            bridges: BTreeMap::new(),
            next_index: FIRST_INDEX,
            endpoints: BTreeMap::new(),
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
        validate(plan)?;
        let changes = self.changes(plan);
        self.remove(plan, &changes)?;
        let networks = |network: &&Network| changes.networks.contains(&network.name);
        for network in plan.networks.iter().filter(networks) {
            self.create_bridge(network)?;
        }
        self.netlink.flush()?;
        let endpoints = |endpoint: &&Endpoint| changes.endpoints.contains(&endpoint.service);
        let fresh: Vec<&Endpoint> = plan.endpoints.iter().filter(endpoints).collect();
        let made = create_namespaces(&fresh);
        // Back home whatever happened.
        setns(&self.stack, CloneFlags::CLONE_NEWNET).doing(|| "return to the stack's network namespace")?;
        let mut made = made?;
        for (endpoint, (namespace, _)) in fresh.iter().zip(&made) {
            self.connect(endpoint, namespace.as_fd())?;
        }
        self.netlink.flush()?;
        for (endpoint, (_, netlink)) in fresh.iter().zip(&mut made) {
            configure(endpoint, plan, netlink)?;
        }
        let names = fresh.iter().map(|endpoint| endpoint.service.clone());
        self.endpoints.extend(names.zip(made.into_iter().map(|(namespace, _)| namespace)));
        self.applied = plan.clone();
        Ok(changes)
    }

    fn changes(&self, plan: &NetworkPlan) -> Changes {
        let networks: Vec<String> = plan
            .networks
            .iter()
            .filter(|network| !self.applied.networks.iter().any(|old| same_bridge(old, network)))
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
        self.netlink.flush()?;
        drop(namespaces);
        Ok(())
    }

    fn create_bridge(&mut self, network: &Network) -> Result<(), Error> {
        let index = self.index();
        self.bridges.insert(network.name.clone(), index);
        let [a, b, c, d] = network.gateway.octets();
        // Locally administered, unique in the stack because the address is.
        self.netlink.bridge(&network.bridge, index, [0x02, 0x42, a, b, c, d])?;
        let what = format!("give bridge `{}` the address {}", network.bridge, network.gateway);
        self.netlink.address(what, index, network.gateway, network.prefix)
    }

    /// A fresh interface index of the stack's namespace.
    fn index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index - 1
    }

    fn connect(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), Error> {
        for (index, interface) in endpoint.interfaces.iter().enumerate() {
            let what = format!("create link `{}` of service `{}`", interface.name, endpoint.service);
            let bridge = self.bridges.get(&interface.network).copied().unwrap_or_default();
            let veth = Veth {
                name: &interface.peer,
                index: self.index(),
                bridge,
                inner: &interface.name,
                inner_index: FIRST_INDEX + index as u32,
                mac: interface.mac,
                netns,
            };
            self.netlink.veth(what, &veth)?;
        }
        Ok(())
    }
}

/// Whether the bridge that was made for `old` serves for `new`.
fn same_bridge(old: &Network, new: &Network) -> bool {
    (&old.name, &old.bridge, old.gateway, old.prefix) == (&new.name, &new.bridge, new.gateway, new.prefix)
}

/// Whether the links that were made for `old` serve for `new`; aliases are the name server's business.
fn same_links(old: &Endpoint, new: &Endpoint) -> bool {
    old.service == new.service
        && old.interfaces.len() == new.interfaces.len()
        && old.interfaces.iter().zip(&new.interfaces).all(|(a, b)| {
            (&a.network, &a.name, &a.peer, a.address, a.mac)
                == (&b.network, &b.name, &b.peer, b.address, b.mac)
        })
}

/// Makes one network namespace per endpoint, with its settings and a netlink socket in it. Leaves the caller in
/// the last one.
fn create_namespaces(endpoints: &[&Endpoint]) -> Result<Vec<(OwnedFd, Netlink)>, Error> {
    let mut made = Vec::with_capacity(endpoints.len());
    let groups = ping_groups();
    for endpoint in endpoints {
        let service = &endpoint.service;
        unshare(CloneFlags::CLONE_NEWNET).doing(|| format!("create network namespace of `{service}`"))?;
        let namespace = current()?;
        // A service on two networks must not join them.
        sysctl("net/ipv4/ip_forward", "0")?;
        sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
        sysctl("net/ipv4/ping_group_range", &groups)?;
        sysctl_if_present("net/ipv6/conf/default/disable_ipv6", "1")?;
        let netlink =
            Netlink::open().doing(|| format!("open netlink socket in the namespace of `{service}`"))?;
        made.push((namespace, netlink));
    }
    Ok(made)
}

/// Brings up `lo` and gives the links their addresses. There is no default route: until services have egress,
/// an attempt to reach the outside then fails at once instead of timing out.
fn configure(endpoint: &Endpoint, plan: &NetworkPlan, netlink: &mut Netlink) -> Result<(), Error> {
    netlink.up(format!("bring up `lo` of service `{}`", endpoint.service), LOOPBACK)?;
    for (index, interface) in endpoint.interfaces.iter().enumerate() {
        let what = format!(
            "give link `{}` of service `{}` the address {}",
            interface.name, endpoint.service, interface.address
        );
        let prefix = plan.networks.iter().find(|network| network.name == interface.network);
        let prefix = prefix.map_or(32, |network| network.prefix);
        netlink.address(what, FIRST_INDEX + index as u32, interface.address, prefix)?;
        let what = format!("bring up link `{}` of service `{}`", interface.name, endpoint.service);
        netlink.up(what, FIRST_INDEX + index as u32)?;
    }
    netlink.flush()
}

/// A TCP socket that belongs to `netns`, close-on-exec and non-blocking; for health probes.
///
/// # Errors
/// When the namespace cannot be entered or left again.
pub fn socket_in(netns: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let home = current()?;
    setns(netns, CloneFlags::CLONE_NEWNET).doing(|| "enter the service's network namespace")?;
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    );
    setns(home, CloneFlags::CLONE_NEWNET).doing(|| "leave the service's network namespace")?;
    socket.doing(|| "create socket in the service's network namespace")
}

fn current() -> Result<OwnedFd, Error> {
    let file = File::open("/proc/thread-self/ns/net").doing(|| "open the current network namespace")?;
    Ok(file.into())
}

/// All groups that exist in this user namespace, as `ping_group_range` wants them: both ends must be mapped.
fn ping_groups() -> String {
    let map = std::fs::read_to_string("/proc/thread-self/gid_map").unwrap_or_default();
    let last = map.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
        let (inside, count) = (fields.next()??, fields.nth(1)??);
        (inside + count).checked_sub(1)
    });
    format!("0 {}", last.max().unwrap_or(0).min(i32::MAX as u64))
}

/// Writes a file below `/proc/sys`; those below `net` are the calling thread's namespace's own.
fn sysctl(name: &str, value: &str) -> Result<(), Error> {
    write_sysctl(name, value).doing(|| format!("set sysctl `{}` to {value}", name.replace('/', ".")))
}

fn sysctl_if_present(name: &str, value: &str) -> Result<(), Error> {
    match write_sysctl(name, value) {
        // The part of the kernel that it governs is not loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.doing(|| format!("set sysctl `{}` to {value}", name.replace('/', "."))),
    }
}

fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    File::options().write(true).open(format!("/proc/sys/{name}"))?.write_all(value.as_bytes())
}

/// Finds contradictions before anything is made.
fn validate(plan: &NetworkPlan) -> Result<(), Error> {
    let mut links = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut link = |name: &str| {
        let fits = (1..16).contains(&name.len()) && !name.contains(['/', ' ', '\0', '%', ':']);
        if !fits {
            return Err(Error::Plan(format!("`{name}` cannot be an interface name")));
        }
        if links.insert(name.to_owned()) { Ok(()) } else { Err(Error::Plan(format!("two links `{name}`"))) }
    };
    let mut address = |address: Ipv4Addr| {
        let fresh = addresses.insert(address);
        if fresh { Ok(()) } else { Err(Error::Plan(format!("two users of address {address}"))) }
    };
    let mut networks = BTreeMap::new();
    for network in &plan.networks {
        link(&network.bridge)?;
        address(network.gateway)?;
        if network.prefix > 30 || !contains(network, network.gateway) {
            let Network { name, subnet, prefix, .. } = network;
            return Err(Error::Plan(format!("network `{name}` does not fit {subnet}/{prefix}")));
        }
        if networks.insert(network.name.as_str(), network).is_some() {
            return Err(Error::Plan(format!("two networks `{}`", network.name)));
        }
    }
    let mut services = BTreeSet::new();
    for endpoint in &plan.endpoints {
        if !services.insert(&endpoint.service) {
            return Err(Error::Plan(format!("two endpoints of service `{}`", endpoint.service)));
        }
        for interface in &endpoint.interfaces {
            link(&interface.peer)?;
            address(interface.address)?;
            let network = networks.get(interface.network.as_str());
            if !network.is_some_and(|network| contains(network, interface.address)) {
                return Err(Error::Plan(format!(
                    "service `{}`: address {} is not in network `{}`",
                    endpoint.service, interface.address, interface.network
                )));
            }
        }
    }
    Ok(())
}

/// Whether `address` is in the network's subnet.
pub(crate) fn contains(network: &Network, address: Ipv4Addr) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix.min(32))).unwrap_or(0);
    u32::from(network.subnet) & mask == u32::from(address) & mask
}
