//! Contradictions in a plan, found before anything is made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Error;
use crate::plan::{Interface, Network, NetworkPlan};

/// Below this there is no IPv6 (RFC 8200, section 5), in bytes.
const MIN_MTU_V6: u32 = 1280;

/// Names and addresses that are given out once.
#[derive(Default)]
struct Taken<'a> {
    links: BTreeSet<&'a str>,
    addresses: BTreeSet<IpAddr>,
}

impl<'a> Taken<'a> {
    fn link(&mut self, name: &'a str) -> Result<(), Error> {
        let fits = (1..16).contains(&name.len()) && !name.contains(['/', ' ', '\0', '%', ':']);
        if !fits {
            return Err(Error::Plan(format!("`{name}` cannot be an interface name")));
        }
        if self.links.insert(name) { Ok(()) } else { Err(Error::Plan(format!("two links `{name}`"))) }
    }

    fn address(&mut self, address: impl Into<IpAddr>) -> Result<(), Error> {
        let address = address.into();
        let fresh = self.addresses.insert(address);
        if fresh { Ok(()) } else { Err(Error::Plan(format!("two users of address {address}"))) }
    }
}

fn contains(network: &Network, address: IpAddr) -> bool {
    network.subnets().any(|subnet| subnet.contains(address))
}

/// # Errors
/// [`Error::Plan`].
pub(super) fn validate(plan: &NetworkPlan) -> Result<(), Error> {
    let mut taken = Taken::default();
    let mut networks = BTreeMap::new();
    for network in &plan.networks {
        taken.link(&network.bridge)?;
        taken.address(network.gateway)?;
        let Network { name, subnet, prefix, .. } = network;
        if network.prefix > 30 || !contains(network, network.gateway.into()) {
            return Err(Error::Plan(format!("network `{name}` does not fit {subnet}/{prefix}")));
        }
        if let Some(v6) = network.v6 {
            taken.address(v6.gateway)?;
            if v6.prefix > 96 || !contains(network, v6.gateway.into()) {
                return Err(Error::Plan(format!(
                    "network `{name}` does not fit {}/{}",
                    v6.subnet, v6.prefix
                )));
            }
            if let Some(mtu) = network.mtu.filter(|mtu| *mtu < MIN_MTU_V6) {
                return Err(Error::Plan(format!("network `{name}`: no IPv6 with an MTU of {mtu}")));
            }
        }
        if networks.insert(network.name.as_str(), network).is_some() {
            return Err(Error::Plan(format!("two networks `{}`", network.name)));
        }
    }
    let member = |service: &str, name: &str, address: Ipv4Addr, address6: Option<Ipv6Addr>| {
        let network = networks.get(name).filter(|network| contains(network, address.into()));
        let outside = |address: IpAddr| {
            Error::Plan(format!("service `{service}`: address {address} is not in network `{name}`"))
        };
        let network = network.ok_or_else(|| outside(address.into()))?;
        match address6 {
            Some(address) if !contains(network, address.into()) => Err(outside(address.into())),
            _ => Ok(()),
        }
    };
    let mut services = BTreeSet::new();
    for endpoint in &plan.endpoints {
        if !services.insert(&endpoint.service) {
            return Err(Error::Plan(format!("two endpoints of service `{}`", endpoint.service)));
        }
        for Interface { network, peer, address, address6, .. } in &endpoint.interfaces {
            taken.link(peer)?;
            taken.address(*address)?;
            address6.map_or(Ok(()), |address| taken.address(address))?;
            member(&endpoint.service, network, *address, *address6)?;
        }
    }
    for group in &plan.groups {
        for at in &group.addresses {
            taken.address(at.address)?;
            at.address6.map_or(Ok(()), |address| taken.address(address))?;
            member(&group.service, &at.network, at.address, at.address6)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Balance;
    use crate::plan::{Endpoint, Group, Subnet6, VirtualAddress};

    fn plan() -> NetworkPlan {
        let front = Network {
            name: "front".into(),
            bridge: "br-front".into(),
            subnet: [10, 1, 0, 0].into(),
            prefix: 24,
            gateway: [10, 1, 0, 1].into(),
            internal: false,
            v6: Some(Subnet6 {
                subnet: "fd00:1::".parse().unwrap(),
                prefix: 64,
                gateway: "fd00:1::1".parse().unwrap(),
            }),
            mtu: Some(1280),
        };
        let web = Interface {
            network: "front".into(),
            name: "eth0".into(),
            peer: "web0".into(),
            address: [10, 1, 0, 2].into(),
            address6: Some("fd00:1::2".parse().unwrap()),
            fixed: false,
            mac: [0; 6],
            aliases: Vec::new(),
        };
        let at = VirtualAddress {
            network: "front".into(),
            address: [10, 1, 0, 200].into(),
            address6: Some("fd00:1::200".parse().unwrap()),
        };
        NetworkPlan {
            networks: vec![front],
            endpoints: vec![Endpoint { service: "web".into(), interfaces: vec![web], ..Endpoint::default() }],
            groups: vec![Group { service: "web".into(), balance: Balance::default(), addresses: vec![at] }],
        }
    }

    #[test]
    fn contradictions_are_found() {
        validate(&plan()).unwrap();
        let spoil: &[fn(&mut NetworkPlan)] = &[
            |plan| plan.networks.push(plan.networks[0].clone()),
            |plan| plan.networks[0].gateway = [10, 2, 0, 1].into(),
            |plan| plan.networks[0].v6.as_mut().unwrap().gateway = "fd00:2::1".parse().unwrap(),
            |plan| plan.networks[0].v6 = None,
            |plan| plan.networks[0].mtu = Some(1279),
            |plan| plan.endpoints.push(plan.endpoints[0].clone()),
            |plan| plan.endpoints[0].interfaces[0].peer = "br-front".into(),
            |plan| plan.endpoints[0].interfaces[0].peer = "sixteen-bytes-xx".into(),
            |plan| plan.endpoints[0].interfaces[0].network = "back".into(),
            |plan| plan.endpoints[0].interfaces[0].address = [10, 1, 0, 1].into(),
            |plan| plan.endpoints[0].interfaces[0].address6 = Some("fd00:1::1".parse().unwrap()),
            |plan| plan.endpoints[0].interfaces[0].address6 = Some("fd00:2::2".parse().unwrap()),
            |plan| plan.groups[0].addresses[0].address = [10, 1, 0, 2].into(),
            |plan| plan.groups[0].addresses[0].address = [10, 1, 1, 2].into(),
            |plan| plan.groups[0].addresses[0].address6 = Some("fd00:1::2".parse().unwrap()),
            |plan| plan.groups[0].addresses[0].network = "back".into(),
        ];
        for (number, spoil) in spoil.iter().enumerate() {
            let mut plan = plan();
            spoil(&mut plan);
            assert!(matches!(validate(&plan), Err(Error::Plan(_))), "number {number}");
        }
    }
}
