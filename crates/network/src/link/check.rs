//! Contradictions in a plan, found before anything is made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Error;
use crate::plan::{Interface, Network, NetworkPlan, Subnet6};

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

/// # Errors
/// [`Error::Plan`].
pub(super) fn validate(plan: &NetworkPlan) -> Result<(), Error> {
    let mut taken = Taken::default();
    let mut networks = BTreeMap::new();
    for network in &plan.networks {
        taken.link(&network.bridge)?;
        taken.address(network.gateway)?;
        let Network { name, subnet, prefix, .. } = network;
        if network.prefix > 30 || !contains(network, network.gateway) {
            return Err(Error::Plan(format!("network `{name}` does not fit {subnet}/{prefix}")));
        }
        if let Some(v6) = network.v6 {
            taken.address(v6.gateway)?;
            if v6.prefix > 96 || !contains6(v6, v6.gateway) {
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
        let network = networks.get(name).filter(|network| contains(network, address));
        let outside = |address: IpAddr| {
            Error::Plan(format!("service `{service}`: address {address} is not in network `{name}`"))
        };
        let network = network.ok_or_else(|| outside(address.into()))?;
        match address6 {
            Some(address) if !network.v6.is_some_and(|v6| contains6(v6, address)) => {
                Err(outside(address.into()))
            }
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

/// Whether `address` is in the network's subnet.
pub(crate) fn contains(network: &Network, address: Ipv4Addr) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix.min(32))).unwrap_or(0);
    u32::from(network.subnet) & mask == u32::from(address) & mask
}

fn contains6(subnet: Subnet6, address: Ipv6Addr) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(subnet.prefix.min(128))).unwrap_or(0);
    u128::from(subnet.subnet) & mask == u128::from(address) & mask
}
