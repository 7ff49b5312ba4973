//! Giving every network a subnet and every container its addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Endpoint, Group, Interface, Network, NetworkPlan, Subnet6, VirtualAddress, derived_mac, replica_name,
};
use crate::Subnet;
use crate::balance::Balance;
use crate::egress::Policy;

/// A network that is wanted.
#[derive(Debug, Clone, Default)]
pub struct NetworkRequest {
    /// Name in the stack file.
    pub name: String,
    /// First address and prefix length, if the file says so.
    pub subnet: Option<(Ipv4Addr, u8)>,
    /// The bridge's address, if the file says so; the subnet's first host address otherwise.
    pub gateway: Option<Ipv4Addr>,
    /// `internal: true`.
    pub internal: bool,
    /// `enable_ipv6`, or an IPv6 subnet among those that the file names.
    pub ipv6: bool,
    /// IPv6 subnet and prefix length (96 at the most), if the file says so; one is derived otherwise.
    pub subnet6: Option<(Ipv6Addr, u8)>,
    /// Maximum transmission unit in bytes.
    pub mtu: Option<u32>,
}

/// A service that is to be attached.
#[derive(Debug, Clone, Default)]
pub struct EndpointRequest {
    /// Service name.
    pub service: String,
    /// One link each, in this order.
    pub attachments: Vec<Attachment>,
    /// How many replicas; 0 counts as one. More than one cannot have static addresses.
    pub replicas: u16,
    /// The service is balanced under a name of its own, which is meant to have replicas, whatever their number is.
    pub balance: Option<Balance>,
    /// Without virtual addresses: the name stands for the addresses of the replicas (`endpoint_mode: dnsrr`).
    pub without_virtual_address: bool,
    /// `egress`.
    pub egress: Policy,
    /// `dns`.
    pub resolvers: Vec<IpAddr>,
}

/// The wish of a service to be on a network.
#[derive(Debug, Clone, Default)]
pub struct Attachment {
    /// Name of the network.
    pub network: String,
    /// `ipv4_address`.
    pub address: Option<Ipv4Addr>,
    /// Names besides the service's own.
    pub aliases: Vec<String>,
    /// `mac_address`.
    pub mac: Option<[u8; 6]>,
}

/// Why the requests cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// An attachment names no network of the requests.
    #[error("service `{service}` is on network `{network}`, which does not exist")]
    UnknownNetwork {
        /// Service name.
        service: String,
        /// Network name.
        network: String,
    },
    /// A service has two links to the same network.
    #[error("service `{service}` names network `{network}` twice")]
    AttachedTwice {
        /// Service name.
        service: String,
        /// Network name.
        network: String,
    },
    /// Two networks of the stack share addresses.
    #[error("the subnets of the networks `{first}` and `{second}` overlap")]
    SubnetsOverlap {
        /// Network that comes first in the file.
        first: String,
        /// Network that comes second.
        second: String,
    },
    /// Every subnet that could be chosen is used by the host.
    #[error("no subnet is free for network `{network}`")]
    NoFreeSubnet {
        /// Network name.
        network: String,
    },
    /// More services than addresses.
    #[error("network `{network}` has no free address for service `{service}`")]
    NoFreeAddress {
        /// Service name.
        service: String,
        /// Network name.
        network: String,
    },
    /// A gateway outside of its network.
    #[error("the gateway {address} of network `{network}` is not a host address of {subnet}/{prefix}")]
    GatewayOutside {
        /// Network name.
        network: String,
        /// Its gateway.
        address: Ipv4Addr,
        /// First address of the subnet.
        subnet: Ipv4Addr,
        /// Prefix length.
        prefix: u8,
    },
    /// A static address that is no host address of its network.
    #[error(
        "address {address} of service `{service}` is not a host address of network `{network}`, {subnet}/{prefix}"
    )]
    AddressOutside {
        /// Service name.
        service: String,
        /// Network name.
        network: String,
        /// The address asked for.
        address: Ipv4Addr,
        /// First address of the subnet.
        subnet: Ipv4Addr,
        /// Prefix length.
        prefix: u8,
    },
    /// A static address that is used already.
    #[error("address {address} of service `{service}` on network `{network}` is {holder}'s")]
    AddressTaken {
        /// Service name.
        service: String,
        /// Network name.
        network: String,
        /// The address asked for.
        address: Ipv4Addr,
        /// "the gateway" or "service `name`".
        holder: String,
    },
}

/// Longest interface name in bytes: `IFNAMSIZ` less the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

/// Give every network a subnet and every endpoint its addresses.
///
/// The same requests and the same `used` always give the same plan. Subnets that are not asked for are
/// /24 slices of 10.89.0.0/16 and what follows up to 10.99.0.0/16, in file order, skipping those that
/// overlap `used`: the bridge lives in the stack's own network namespace, so other stacks are in
/// nobody's way, but a service must be able to tell its network from the host's. The gateway is the
/// first host address, services follow in the order of the requests.
pub fn allocate(
    networks: &[NetworkRequest],
    endpoints: &[EndpointRequest],
    used: &[(Ipv4Addr, u8)],
) -> Result<NetworkPlan, AllocateError> {
    let mut plan = NetworkPlan { networks: subnets(networks, used)?, ..NetworkPlan::default() };
    let mut taken = static_addresses(&plan.networks, endpoints)?;
    for request in endpoints {
        let endpoint = first_replica(request, &plan, &mut taken)?;
        plan.endpoints.push(endpoint);
    }
    for request in endpoints {
        let group = group(request, &plan.networks, &mut taken)?;
        plan.groups.extend(group);
    }
    // Last, so that a change of their number moves nobody else.
    for request in endpoints {
        for number in 2..=request.replicas {
            plan.add_replica(&request.service, &replica_name(&request.service, number))?;
        }
    }
    Ok(plan)
}

fn first_replica(
    request: &EndpointRequest,
    plan: &NetworkPlan,
    taken: &mut Taken,
) -> Result<Endpoint, AllocateError> {
    let links = plan.endpoints.iter().map(|endpoint| endpoint.interfaces.len()).sum::<usize>();
    let mut endpoint = Endpoint {
        service: request.service.clone(),
        group: request.service.clone(),
        interfaces: Vec::new(),
        egress: request.egress.clone(),
        resolvers: request.resolvers.clone(),
    };
    for (link, attachment) in (links..).zip(&request.attachments) {
        let network = find(&plan.networks, request, attachment)?;
        let address = match attachment.address {
            Some(address) => address,
            None => free_address(network, taken, &request.service)?,
        };
        let peer = format!("v{link}-{}", interface_part(&request.service));
        let mut aliases = vec![request.service.clone()];
        for alias in &attachment.aliases {
            if !aliases.contains(alias) {
                aliases.push(alias.clone());
            }
        }
        endpoint.interfaces.push(Interface {
            network: network.name.clone(),
            name: format!("eth{}", endpoint.interfaces.len()),
            peer: cut(&peer, MAX_INTERFACE_NAME).to_owned(),
            address,
            address6: network.counterpart(address),
            fixed: attachment.address.is_some(),
            mac: attachment.mac.unwrap_or_else(|| derived_mac(address)),
            aliases,
        });
    }
    Ok(endpoint)
}

fn group(
    request: &EndpointRequest,
    networks: &[Network],
    taken: &mut Taken,
) -> Result<Option<Group>, AllocateError> {
    let Some(balance) = request.balance.clone() else { return Ok(None) };
    let mut group = Group { service: request.service.clone(), balance, addresses: Vec::new() };
    for attachment in request.attachments.iter().filter(|_| !request.without_virtual_address) {
        let network = find(networks, request, attachment)?;
        let address = free_address(network, taken, &request.service)?;
        group.addresses.push(VirtualAddress {
            network: network.name.clone(),
            address,
            address6: network.counterpart(address),
        });
    }
    Ok(Some(group))
}

/// The file's IPv6 subnet, or a unique local one that is derived from the IPv4 subnet, which no other has.
fn subnet6(request: &NetworkRequest, subnet: Ipv4Addr, gateway: Ipv4Addr) -> Option<Subnet6> {
    let [a, b, c, d] = subnet.octets().map(u16::from);
    let derived = (Ipv6Addr::new(0xfd89, a << 8 | b, c << 8 | d, 0, 0, 0, 0, 0), 64);
    let (subnet, prefix) = request.subnet6.or_else(|| request.ipv6.then_some(derived))?;
    let gateway = Ipv6Addr::from(u128::from(subnet) | u128::from(u32::from(gateway)));
    Some(Subnet6 { subnet, prefix, gateway })
}

fn find<'a>(
    networks: &'a [Network],
    endpoint: &EndpointRequest,
    attachment: &Attachment,
) -> Result<&'a Network, AllocateError> {
    let found = networks.iter().find(|network| network.name == attachment.network);
    found.ok_or_else(|| AllocateError::UnknownNetwork {
        service: endpoint.service.clone(),
        network: attachment.network.clone(),
    })
}

fn subnets(requests: &[NetworkRequest], used: &[(Ipv4Addr, u8)]) -> Result<Vec<Network>, AllocateError> {
    let fixed: Vec<(&str, (Ipv4Addr, u8))> =
        requests.iter().filter_map(|request| Some((request.name.as_str(), request.subnet?))).collect();
    for (at, (first, one)) in fixed.iter().enumerate() {
        for (second, other) in &fixed[at + 1..] {
            if overlap(*one, *other) {
                return Err(AllocateError::SubnetsOverlap {
                    first: (*first).to_owned(),
                    second: (*second).to_owned(),
                });
            }
        }
    }
    let is_free = |candidate: &(Ipv4Addr, u8)| {
        let taken = used.iter().chain(fixed.iter().map(|(_, subnet)| subnet));
        // A default route covers everything and says nothing.
        let mut real = taken.filter(|(_, prefix)| *prefix > 0);
        !real.any(|other| overlap(*candidate, *other))
    };
    let mut candidates = (89..100u8)
        .flat_map(|second| (0..=255u8).map(move |third| (Ipv4Addr::new(10, second, third, 0), 24)))
        .filter(is_free);
    let mut bridges = BTreeSet::new();
    let mut networks = Vec::new();
    for request in requests {
        let (subnet, prefix) = match request.subnet {
            Some(subnet) => subnet,
            None => candidates
                .next()
                .ok_or_else(|| AllocateError::NoFreeSubnet { network: request.name.clone() })?,
        };
        let gateway = request.gateway.unwrap_or(nth(subnet, 1));
        if !is_host(gateway, subnet, prefix) {
            return Err(AllocateError::GatewayOutside {
                network: request.name.clone(),
                address: gateway,
                subnet,
                prefix,
            });
        }
        networks.push(Network {
            name: request.name.clone(),
            bridge: bridge_name(&request.name, &mut bridges),
            subnet,
            prefix,
            gateway,
            internal: request.internal,
            v6: subnet6(request, subnet, gateway),
            mtu: request.mtu,
        });
    }
    Ok(networks)
}

/// Addresses in use, with their holders.
pub(super) type Taken = BTreeMap<(String, Ipv4Addr), String>;

/// Gateways and static addresses come first, so that no automatic address takes a static one.
fn static_addresses(networks: &[Network], endpoints: &[EndpointRequest]) -> Result<Taken, AllocateError> {
    let mut taken: Taken = networks
        .iter()
        .map(|network| {
            let holder = "the gateway".to_owned();
            ((network.name.clone(), network.gateway), holder)
        })
        .collect();
    for endpoint in endpoints {
        let mut seen = BTreeSet::new();
        for attachment in &endpoint.attachments {
            let network = find(networks, endpoint, attachment)?;
            if !seen.insert(&attachment.network) {
                return Err(AllocateError::AttachedTwice {
                    service: endpoint.service.clone(),
                    network: network.name.clone(),
                });
            }
            let Some(address) = attachment.address else {
                continue;
            };
            if !is_host(address, network.subnet, network.prefix) {
                return Err(AllocateError::AddressOutside {
                    service: endpoint.service.clone(),
                    network: network.name.clone(),
                    address,
                    subnet: network.subnet,
                    prefix: network.prefix,
                });
            }
            let holder = format!("service `{}`", endpoint.service);
            let key = (network.name.clone(), address);
            if let Some(holder) = taken.get(&key) {
                return Err(AllocateError::AddressTaken {
                    service: endpoint.service.clone(),
                    network: network.name.clone(),
                    address,
                    holder: holder.clone(),
                });
            }
            taken.insert(key, holder);
        }
    }
    Ok(taken)
}

pub(super) fn free_address(
    network: &Network,
    taken: &mut Taken,
    service: &str,
) -> Result<Ipv4Addr, AllocateError> {
    let is_host = |address: &Ipv4Addr| is_host(*address, network.subnet, network.prefix);
    let mut hosts = (2..).map(|host| nth(network.subnet, host)).take_while(is_host);
    let free = hosts.find(|address| !taken.contains_key(&(network.name.clone(), *address)));
    if let Some(address) = free {
        taken.insert((network.name.clone(), address), format!("service `{service}`"));
        return Ok(address);
    }
    Err(AllocateError::NoFreeAddress { service: service.to_owned(), network: network.name.clone() })
}

fn nth(subnet: Ipv4Addr, host: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet).wrapping_add(host))
}

/// Whether the address is within the subnet, and neither its first nor its last address.
fn is_host(address: Ipv4Addr, subnet: Ipv4Addr, prefix: u8) -> bool {
    let subnet = Subnet::of(subnet, prefix);
    subnet.contains(address.into()) && address != subnet.first() && address != subnet.last()
}

fn overlap(one: (Ipv4Addr, u8), other: (Ipv4Addr, u8)) -> bool {
    Subnet::of(one.0, one.1).overlaps(Subnet::of(other.0, other.1))
}

/// `br-NAME`, cut to what the kernel takes and made unique by a number.
fn bridge_name(network: &str, used: &mut BTreeSet<String>) -> String {
    let full = format!("br-{}", interface_part(network));
    let mut name = cut(&full, MAX_INTERFACE_NAME).to_owned();
    let mut number = 2;
    while !used.insert(name.clone()) {
        let suffix = format!("~{number}");
        name = format!("{}{suffix}", cut(&full, MAX_INTERFACE_NAME - suffix.len()));
        number += 1;
    }
    name
}

/// What of a name the kernel takes in an interface name (`dev_valid_name`): no `/`, `:` or blanks.
fn interface_part(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    name.chars().filter(|c| plain(*c)).collect()
}

fn cut(text: &str, length: usize) -> &str {
    // Interface names are ASCII by construction.
    &text[..text.len().min(length)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(name: &str) -> NetworkRequest {
        NetworkRequest { name: name.to_owned(), ..NetworkRequest::default() }
    }

    fn endpoint(service: &str, networks: &[&str]) -> EndpointRequest {
        EndpointRequest {
            service: service.to_owned(),
            attachments: networks
                .iter()
                .map(|network| Attachment { network: (*network).to_owned(), ..Attachment::default() })
                .collect(),
            ..EndpointRequest::default()
        }
    }

    #[test]
    fn a_service_in_the_middle_moves_nobody() {
        let of = |services: &[&str]| {
            let endpoints: Vec<_> = services.iter().map(|s| endpoint(s, &["n"])).collect();
            allocate(&[network("n")], &endpoints, &[]).unwrap()
        };
        let running = of(&["first", "second"]);
        let mut plan = of(&["first", "new", "second"]);
        plan.keep_addresses(&running).unwrap();
        let at = |plan: &NetworkPlan, service: &str| {
            plan.endpoints.iter().find(|e| e.service == service).unwrap().interfaces[0].clone()
        };
        assert_eq!(at(&plan, "first"), at(&running, "first"));
        assert_eq!(at(&plan, "second"), at(&running, "second"));
        assert_eq!(at(&plan, "new").address, Ipv4Addr::new(10, 89, 0, 4));
        assert_ne!(at(&plan, "new").peer, at(&plan, "second").peer);
    }

    #[test]
    fn file_order_decides() {
        let plan = allocate(
            &[network("frontend"), network("backend")],
            &[
                endpoint("nginx", &["frontend"]),
                endpoint("wordpress", &["frontend", "backend"]),
                endpoint("loner", &[]),
            ],
            &[(Ipv4Addr::new(10, 89, 0, 0), 24), (Ipv4Addr::UNSPECIFIED, 0)],
        )
        .unwrap();
        let [frontend, backend] = plan.networks.as_slice() else { panic!("two networks") };
        assert_eq!(frontend.subnet, Ipv4Addr::new(10, 89, 1, 0), "10.89.0.0/24 is the host's");
        assert_eq!(backend.gateway, Ipv4Addr::new(10, 89, 2, 1));
        assert_eq!(frontend.bridge, "br-frontend");
        let wordpress = &plan.endpoints[1].interfaces;
        assert_eq!(wordpress[0].address, Ipv4Addr::new(10, 89, 1, 3));
        assert_eq!(wordpress[0].mac, [2, 0x42, 10, 89, 1, 3]);
        assert_eq!(wordpress[0].peer, "v1-wordpress");
        assert_eq!(wordpress[1].name, "eth1");
        assert_eq!(wordpress[1].address, Ipv4Addr::new(10, 89, 2, 2));
        assert!(plan.endpoints[2].interfaces.is_empty());
    }

    #[test]
    fn static_addresses_are_kept_free() {
        let mut second = endpoint("second", &["n"]);
        second.attachments[0].address = Some(Ipv4Addr::new(10, 1, 0, 2));
        let mut net = network("n");
        net.subnet = Some((Ipv4Addr::new(10, 1, 0, 0), 29));
        let first = endpoint("first", &["n"]);
        let plan = allocate(std::slice::from_ref(&net), &[first, second.clone()], &[]).unwrap();
        assert_eq!(plan.endpoints[0].interfaces[0].address, Ipv4Addr::new(10, 1, 0, 3));

        let mut third = second.clone();
        third.service = "third".to_owned();
        let error = allocate(std::slice::from_ref(&net), &[second.clone(), third], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "address 10.1.0.2 of service `third` on network `n` is service `second`'s"
        );
        for (wrong, text) in [
            ([10, 1, 0, 1], "is the gateway's"),
            ([10, 1, 0, 7], "is not a host address of network `n`, 10.1.0.0/29"),
            ([10, 2, 0, 2], "is not a host address of network `n`, 10.1.0.0/29"),
        ] {
            second.attachments[0].address = Some(Ipv4Addr::from(wrong));
            let error = allocate(std::slice::from_ref(&net), std::slice::from_ref(&second), &[]);
            let error = error.unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }

        let many: Vec<_> = (0..6).map(|n| endpoint(&format!("s{n}"), &["n"])).collect();
        let error = allocate(&[net], &many, &[]).unwrap_err();
        assert_eq!(error.to_string(), "network `n` has no free address for service `s5`");
    }

    #[test]
    fn subnets_of_a_stack_do_not_overlap() {
        let mut one = network("one");
        one.subnet = Some((Ipv4Addr::new(10, 89, 0, 0), 16));
        let mut two = network("two");
        two.subnet = Some((Ipv4Addr::new(10, 89, 4, 0), 24));
        let error = allocate(&[one.clone(), two], &[], &[]).unwrap_err();
        assert!(matches!(error, AllocateError::SubnetsOverlap { .. }));
        let plan = allocate(&[one, network("auto")], &[], &[]).unwrap();
        assert_eq!(plan.networks[1].subnet, Ipv4Addr::new(10, 90, 0, 0));
    }

    #[test]
    fn replicas_come_last_and_share_a_virtual_address() {
        let mut web = endpoint("web", &["n"]);
        web.attachments[0].aliases = vec!["www".into()];
        (web.replicas, web.balance) = (3, Some(Balance::default()));
        let mut net = network("n");
        net.ipv6 = true;
        let plan = allocate(&[net], &[web, endpoint("db", &["n"])], &[]).unwrap();
        let names: Vec<(&str, &str, u8)> = plan
            .endpoints
            .iter()
            .map(|e| (e.service.as_str(), e.group.as_str(), e.interfaces[0].address.octets()[3]))
            .collect();
        assert_eq!(names, [("web", "web", 2), ("db", "db", 3), ("web-2", "web", 5), ("web-3", "web", 6)]);
        assert_eq!(plan.groups[0].addresses[0].address, Ipv4Addr::new(10, 89, 0, 4));
        assert_eq!(plan.endpoints[2].interfaces[0].aliases, ["web-2", "www"]);
        assert_eq!(plan.networks[0].v6.unwrap().gateway, "fd89:a59::a59:1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(plan.endpoints[3].interfaces[0].address6, Some("fd89:a59::a59:6".parse().unwrap()));
        // Those of a running stack stay where they are.
        let mut next = plan.clone();
        next.keep_addresses(&plan).unwrap();
        assert_eq!(next, plan);
    }

    proptest! {
        #[test]
        fn everything_is_unique(names in proptest::collection::btree_set("[a-zA-Z0-9._-]{1,30}", 1..12)) {
            let networks: Vec<_> = names.iter().map(|name| network(name)).collect();
            let all: Vec<&str> = names.iter().map(String::as_str).collect();
            let endpoints: Vec<_> = names.iter().map(|name| endpoint(name, &all)).collect();
            let plan = allocate(&networks, &endpoints, &[]).unwrap();
            let mut interfaces = BTreeSet::new();
            let mut addresses = BTreeSet::new();
            for network in &plan.networks {
                prop_assert!(network.bridge.len() <= MAX_INTERFACE_NAME);
                prop_assert!(interfaces.insert(network.bridge.clone()));
                prop_assert!(addresses.insert(network.gateway));
            }
            for interface in plan.endpoints.iter().flat_map(|endpoint| &endpoint.interfaces) {
                prop_assert!(interface.peer.len() <= MAX_INTERFACE_NAME);
                prop_assert!(interfaces.insert(interface.peer.clone()));
                prop_assert!(addresses.insert(interface.address));
            }
        }
    }
}
