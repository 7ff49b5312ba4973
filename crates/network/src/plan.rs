//! The address plan: which networks, links, addresses and published ports a stack has. Pure data.

mod allocate;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

pub use allocate::{AllocateError, Attachment, EndpointRequest, NetworkRequest, allocate};
use allocate::{Taken, free_address};

use crate::Subnet;
use crate::balance::Balance;
use crate::egress::Policy;

/// The networks of a stack and everything attached to them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// One bridge each.
    pub networks: Vec<Network>,
    /// One network namespace each: a service has one for each of its replicas.
    pub endpoints: Vec<Endpoint>,
    /// Services with a virtual address of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

/// A network: a bridge in the stack's own network namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Name in the stack file.
    pub name: String,
    /// Interface name of the bridge, at most 15 bytes.
    pub bridge: String,
    /// First address of the subnet.
    pub subnet: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// The bridge's own address; the DNS server listens on it.
    pub gateway: Ipv4Addr,
    /// `internal: true`: no egress, ever.
    pub internal: bool,
    /// Its IPv6 side (`enable_ipv6`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Subnet6>,
    /// Maximum transmission unit of bridge and links in bytes; the kernel's 1500 otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// The IPv6 addresses of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet6 {
    /// First address; unique local ones (RFC 4193) unless the file says otherwise.
    pub subnet: Ipv6Addr,
    /// Prefix length, 96 at the most: the last 32 bits of an address are the IPv4 one.
    pub prefix: u8,
    /// The bridge's own address.
    pub gateway: Ipv6Addr,
}

impl Subnet6 {
    /// The addresses themselves.
    #[must_use]
    pub fn subnet(self) -> Subnet {
        Subnet::of(self.subnet, self.prefix)
    }
}

impl Network {
    /// Its addresses: the IPv4 subnet, and the IPv6 one where it has that.
    pub fn subnets(&self) -> impl Iterator<Item = Subnet> {
        std::iter::once(Subnet::of(self.subnet, self.prefix)).chain(self.v6.map(Subnet6::subnet))
    }

    /// The IPv6 counterpart of an address of this network: prefix, zeros, and the IPv4 address.
    #[must_use]
    pub fn counterpart(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.v6.map(|v6| Ipv6Addr::from(u128::from(v6.subnet) | u128::from(u32::from(address))))
    }
}

/// A container's network namespace; it outlives the container's restarts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The container's name: the service's, or [`replica_name`]'s.
    pub service: String,
    /// The service that it is a replica of: its own name for the first, and for one-off containers.
    pub group: String,
    /// One link for each network it is on; empty for `network_mode: none`.
    pub interfaces: Vec<Interface>,
    /// Where it may connect to outside of the stack.
    #[serde(default, skip_serializing_if = "is_default")]
    pub egress: Policy,
    /// `dns`: asked instead of the host's resolvers for names that are not the stack's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolvers: Vec<IpAddr>,
}

/// A service whose name stands for an address of no container: connections to it are balanced over the replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Service name.
    pub service: String,
    /// How connections are spread, to published ports and to the virtual addresses.
    pub balance: Balance,
    /// One for each network that the service is on; none with `endpoint_mode: dnsrr`.
    pub addresses: Vec<VirtualAddress>,
}

/// An address of the stack's own namespace that stands for a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VirtualAddress {
    /// Name of the network.
    pub network: String,
    /// Address on it.
    pub address: Ipv4Addr,
    /// Its IPv6 counterpart, where the network has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
}

/// Name of the container that is replica `number` (from 1) of `service`: the first has the service's own name.
#[must_use]
pub fn replica_name(service: &str, number: u16) -> String {
    if number <= 1 { service.to_owned() } else { format!("{service}-{number}") }
}

/// The part of a pool of passive ports that is replica `number`'s (from 1) of `of`: parts follow each other, and
/// differ by one port at the most. `None` where there is not a port for each.
#[must_use]
pub fn passive_slice(pool: (u16, u16), number: u16, of: u16) -> Option<(u16, u16)> {
    let (number, of) = (u32::from(number.max(1)), u32::from(of.max(1)));
    let size = u32::from(pool.1).checked_sub(u32::from(pool.0))? + 1;
    if size < of || number > of {
        return None;
    }
    let at = |part: u32| u16::try_from(u32::from(pool.0) + size * part / of - u32::from(part == number)).ok();
    Some((at(number - 1)?, at(number)?))
}

/// A veth pair between an endpoint and a bridge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Name of the network.
    pub network: String,
    /// Interface name inside the endpoint: `eth0`, `eth1`, …
    pub name: String,
    /// Interface name of the peer on the bridge, at most 15 bytes.
    pub peer: String,
    /// Address inside the endpoint.
    pub address: Ipv4Addr,
    /// IPv6 address inside the endpoint, where the network has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// The stack file asks for this very address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fixed: bool,
    /// MAC address, derived from the address unless the file gives one.
    pub mac: [u8; 6],
    /// Names that this network's members resolve to `address`: the service's name and its aliases.
    pub aliases: Vec<String>,
}

/// A port of the host that leads to a port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Host address to listen on.
    pub host_ip: IpAddr,
    /// Host port; 0 lets the kernel choose.
    pub host_port: u16,
    /// Port inside the service.
    pub container_port: u16,
    /// What is carried.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// Who accepts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a published port carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP connections.
    #[default]
    Tcp,
    /// UDP datagrams.
    Udp,
    /// FTP control connections over TCP (RFC 959), whose data connections go the same way.
    Ftp {
        /// First and last host port of the pool for passive mode.
        passive: (u16, u16),
        /// The address that passive mode announces; otherwise the one that the client connected to.
        announce: Option<Ipv4Addr>,
    },
}

/// Who accepts the connections of a published port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// netd does, and carries them into the stack.
    #[default]
    Proxy,
    /// The service itself, on a socket of the host's namespace.
    Direct,
}

impl PublishedPort {
    /// A TCP port that netd carries.
    #[must_use]
    pub const fn tcp(host_ip: IpAddr, host_port: u16, container_port: u16) -> Self {
        Self { host_ip, host_port, container_port, protocol: Protocol::Tcp, mode: Mode::Proxy }
    }

    /// Whether it is bound as a UDP port.
    #[must_use]
    pub const fn is_udp(&self) -> bool {
        matches!(self.protocol, Protocol::Udp)
    }
}

impl NetworkPlan {
    /// Adds an endpoint `name` on the networks of `service`, with addresses that nobody has, for a one-off
    /// container. It has a name of its own and none of the service's aliases.
    ///
    /// # Errors
    /// When a subnet has no address left.
    pub fn add_endpoint_like(&mut self, service: &str, name: &str) -> Result<(), AllocateError> {
        let mut taken = self.reserved();
        for endpoint in &self.endpoints {
            for interface in &endpoint.interfaces {
                taken.insert((interface.network.clone(), interface.address), endpoint.service.clone());
            }
        }
        let model = self.endpoints.iter().find(|endpoint| endpoint.group == service);
        let mut endpoint = model.cloned().unwrap_or_default();
        (endpoint.service, endpoint.group) = (name.to_owned(), name.to_owned());
        for interface in &mut endpoint.interfaces {
            let Some(network) = self.networks.iter().find(|n| n.name == interface.network) else { continue };
            interface.move_to(network, free_address(network, &mut taken, name)?);
            interface.fixed = false;
            interface.aliases = vec![name.to_owned()];
        }
        self.endpoints.push(endpoint);
        Ok(())
    }

    /// Adds a replica `name` of `service`, like its first one but for addresses and name.
    ///
    /// # Errors
    /// When a subnet has no address left.
    pub fn add_replica(&mut self, service: &str, name: &str) -> Result<(), AllocateError> {
        let model = self.endpoints.iter().find(|endpoint| endpoint.group == service).cloned();
        self.add_endpoint_like(service, name)?;
        let (Some(model), Some(added)) = (model, self.endpoints.last_mut()) else { return Ok(()) };
        added.group = service.to_owned();
        for (interface, like) in added.interfaces.iter_mut().zip(&model.interfaces) {
            let aliases = like.aliases.iter().filter(|alias| **alias != model.service);
            interface.aliases.extend(aliases.cloned());
        }
        Ok(())
    }

    /// Gateways and virtual addresses: no container gets them.
    fn reserved(&self) -> Taken {
        let gateways = self
            .networks
            .iter()
            .map(|network| ((network.name.clone(), network.gateway), "the gateway".to_owned()));
        let virtual_addresses = self.groups.iter().flat_map(|group| {
            group.addresses.iter().map(|at| ((at.network.clone(), at.address), group.service.clone()))
        });
        gateways.chain(virtual_addresses).collect()
    }

    /// Changes automatic addresses of this plan so that what is on the same network in `running` keeps its link:
    /// a service that was put into the middle of a file is no reason to move those behind it.
    ///
    /// # Errors
    /// When a subnet has no address left.
    pub fn keep_addresses(&mut self, running: &Self) -> Result<(), AllocateError> {
        let same_subnet = |network: &Network| {
            running.networks.iter().any(|old| {
                (&old.name, old.subnet, old.prefix) == (&network.name, network.subnet, network.prefix)
            })
        };
        let kept: Vec<String> =
            self.networks.iter().filter(|n| same_subnet(n)).map(|n| n.name.clone()).collect();
        self.keep_virtual_addresses(running, &kept)?;
        let mut taken = self.reserved();
        let mut peers = BTreeSet::new();
        let mut moved = Vec::new();
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            for (link, interface) in endpoint.interfaces.iter_mut().enumerate() {
                match running.link_to_keep(&endpoint.service, interface, &kept) {
                    Some(old) => {
                        let aliases = std::mem::take(&mut interface.aliases);
                        *interface = Interface { aliases, ..old.clone() };
                    }
                    _ if interface.fixed => {}
                    _ => {
                        moved.push((at, link));
                        continue;
                    }
                }
                taken.insert((interface.network.clone(), interface.address), endpoint.service.clone());
                peers.insert(interface.peer.clone());
            }
        }
        for (at, link) in moved {
            let endpoint = &mut self.endpoints[at];
            let interface = &mut endpoint.interfaces[link];
            let free = !taken.contains_key(&(interface.network.clone(), interface.address));
            if free && !peers.contains(&interface.peer) {
                taken.insert((interface.network.clone(), interface.address), endpoint.service.clone());
                continue;
            }
            if let Some(network) = self.networks.iter().find(|n| n.name == interface.network) {
                interface.move_to(network, free_address(network, &mut taken, &endpoint.service)?);
            }
        }
        Ok(())
    }

    /// The same for virtual addresses, which containers that stay where they are may be in the way of.
    fn keep_virtual_addresses(&mut self, running: &Self, kept: &[String]) -> Result<(), AllocateError> {
        let gateway = |network: &Network| ((network.name.clone(), network.gateway), "the gateway".to_owned());
        let mut taken: Taken = self.networks.iter().map(gateway).collect();
        for endpoint in &self.endpoints {
            for interface in &endpoint.interfaces {
                let stays = running.link_to_keep(&endpoint.service, interface, kept);
                if let Some(there) = stays.or(Some(interface).filter(|interface| interface.fixed)) {
                    taken.insert((there.network.clone(), there.address), endpoint.service.clone());
                }
            }
        }
        let mut moved = Vec::new();
        for (at, group) in self.groups.iter_mut().enumerate() {
            let old = running.groups.iter().find(|old| old.service == group.service);
            for (link, address) in group.addresses.iter_mut().enumerate() {
                let mut old = old.iter().flat_map(|old| &old.addresses);
                let old = old.find(|old| old.network == address.network && kept.contains(&old.network));
                match old {
                    Some(old) if !taken.contains_key(&(old.network.clone(), old.address)) => {
                        address.clone_from(old);
                        taken.insert((old.network.clone(), old.address), group.service.clone());
                    }
                    _ => moved.push((at, link)),
                }
            }
        }
        for (at, link) in moved {
            let group = &mut self.groups[at];
            let wanted = &mut group.addresses[link];
            if taken.contains_key(&(wanted.network.clone(), wanted.address))
                && let Some(network) = self.networks.iter().find(|network| network.name == wanted.network)
            {
                wanted.address = free_address(network, &mut taken, &group.service)?;
                wanted.address6 = network.counterpart(wanted.address);
            }
            taken.insert((wanted.network.clone(), wanted.address), group.service.clone());
        }
        Ok(())
    }

    /// The link of this running plan that `interface`, of container `name` in the next one, goes on with.
    fn link_to_keep(&self, name: &str, interface: &Interface, kept: &[String]) -> Option<&Interface> {
        let endpoint = self.endpoints.iter().find(|endpoint| endpoint.service == name)?;
        let same = |old: &&Interface| {
            old.network == interface.network && old.name == interface.name && !old.fixed && !interface.fixed
        };
        endpoint.interfaces.iter().filter(same).find(|old| kept.contains(&old.network))
    }
}

impl Interface {
    /// Gives the link another address, and the names that follow from it.
    fn move_to(&mut self, network: &Network, address: Ipv4Addr) {
        let [a, b, c, d] = address.octets();
        self.address = address;
        self.address6 = network.counterpart(address);
        self.mac = derived_mac(address);
        self.peer = format!("r{a:02x}{b:02x}{c:02x}{d:02x}");
    }
}

/// Locally administered, and unique in the stack because the address is.
pub(crate) fn derived_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn virtual_addresses_stay_and_make_way_for_containers() {
        let requests = |services: &[(&str, u16)]| -> NetworkPlan {
            let endpoint = |(service, replicas): &(&str, u16)| EndpointRequest {
                service: (*service).to_owned(),
                attachments: vec![Attachment { network: "n".into(), ..Attachment::default() }],
                replicas: *replicas,
                balance: (*replicas > 1).then(Balance::default),
                ..EndpointRequest::default()
            };
            let endpoints: Vec<EndpointRequest> = services.iter().map(endpoint).collect();
            let network = NetworkRequest { name: "n".into(), ..NetworkRequest::default() };
            allocate(&[network], &endpoints, &[]).unwrap()
        };
        let unique = |plan: &NetworkPlan| {
            let containers = plan.endpoints.iter().map(|endpoint| endpoint.interfaces[0].address);
            let mut all: Vec<Ipv4Addr> =
                containers.chain(plan.groups.iter().map(|g| g.addresses[0].address)).collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            all.len() == count
        };
        let running = requests(&[("a", 2), ("b", 1)]);
        let mut next = requests(&[("new", 1), ("a", 3), ("b", 2)]);
        next.keep_addresses(&running).unwrap();
        assert_eq!(next.groups[0], running.groups[0]);
        assert!(unique(&next), "{next:?}");
        // A replica has the address that the plan has for the group.
        let mut running = requests(&[("a", 1)]);
        running.add_replica("a", "a-2").unwrap();
        let mut next = requests(&[("a", 2)]);
        let replica = running.endpoints[1].interfaces[0].address;
        assert_eq!(next.groups[0].addresses[0].address, replica);
        next.keep_addresses(&running).unwrap();
        assert_eq!(next.endpoints[1].interfaces[0].address, replica);
        assert!(unique(&next), "{next:?}");
    }

    #[test]
    fn passive_slices() {
        assert_eq!(passive_slice((21100, 21109), 1, 1), Some((21100, 21109)));
        assert_eq!(passive_slice((21100, 21109), 1, 3), Some((21100, 21102)));
        assert_eq!(passive_slice((21100, 21109), 3, 3), Some((21106, 21109)));
        assert_eq!(passive_slice((1, u16::MAX), 2, 2), Some((32768, 65535)));
        assert_eq!(passive_slice((5, 6), 1, 3), None);
        assert_eq!(passive_slice((5, 6), 3, 2), None);
        assert_eq!(passive_slice((6, 5), 1, 1), None);
    }

    proptest! {
        #[test]
        fn slices_make_up_the_pool(first in 1u16.., size in 1u16.., of in 1u16..50) {
            let pool = (first, first.saturating_add(size - 1));
            let count = u32::from(pool.1 - pool.0) + 1;
            prop_assume!(count >= u32::from(of));
            let mut next = u32::from(first);
            for number in 1..=of {
                let (from, to) = passive_slice(pool, number, of).unwrap();
                prop_assert_eq!(u32::from(from), next);
                let length = u32::from(to - from) + 1;
                prop_assert!((count / u32::from(of)..=count.div_ceil(u32::from(of))).contains(&length));
                next = u32::from(to) + 1;
            }
            prop_assert_eq!(next, u32::from(pool.1) + 1);
        }
    }
}
