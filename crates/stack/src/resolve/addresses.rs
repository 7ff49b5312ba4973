//! Networks and addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use network::Subnet;
use network::plan::{
    AllocateError, Attachment, EndpointRequest, Interface, NetworkPlan, NetworkRequest, Subnet6,
};

use super::{Context, replicas, shared};
use crate::diagnostic::{Checked, Fault, Span};
use crate::file::bridge::{MIN_MTU_IPV6, NetworkFile};
use crate::file::network::{ModeFile, NetworkUse};
use crate::file::service::ServiceFile;
use crate::file::{Format, StackFile};
use crate::host::HostFacts;

/// The network of services that name none.
pub(crate) const DEFAULT_NETWORK: &str = "default";

pub(super) fn networks(file: &StackFile, context: &Context<'_>) -> Checked<NetworkPlan> {
    let mut endpoints = Vec::new();
    for service in &file.services {
        if shared::network_mode(service, file).is_own() {
            endpoints.push(endpoint(service, file, context)?);
        }
    }
    let used: BTreeSet<&str> = (endpoints.iter().flat_map(|endpoint| &endpoint.attachments))
        .map(|attachment| attachment.network.as_str())
        .collect();
    // Networks that nobody is on are not made, as with compose.
    let mut requests = Vec::new();
    for network in file.networks.iter().filter(|network| used.contains(network.key.name.as_str())) {
        check_routes(network, context.host)?;
        requests.push(request(network, context.host));
    }
    let has_default = requests.iter().any(|request| request.name == DEFAULT_NETWORK);
    if used.contains(DEFAULT_NETWORK) && !has_default {
        requests.push(NetworkRequest {
            name: DEFAULT_NETWORK.to_owned(),
            mtu: context.host.mtu,
            ..NetworkRequest::default()
        });
    }
    let plan = network::plan::allocate(&requests, &endpoints, &context.host.used_subnets())
        .map_err(|error| address_fault(file, &error))?;
    check_subnets6(file, &plan)?;
    check_addresses6(file, &plan)?;
    check_macs(file, &plan)?;
    Ok(plan)
}

fn request(network: &NetworkFile, host: &HostFacts) -> NetworkRequest {
    let ipv6 = network.ipv6 || network.subnet6.is_some();
    // A network without a way out has nothing to do with the host's interfaces.
    let hosts = host.mtu.filter(|_| !network.internal);
    let hosts = hosts.map(|mtu| if ipv6 { mtu.max(MIN_MTU_IPV6) } else { mtu });
    NetworkRequest {
        name: network.key.name.clone(),
        subnet: network.subnet.as_ref().map(|subnet| subnet.value),
        gateway: network.gateway.as_ref().map(|gateway| gateway.value),
        internal: network.internal,
        ipv6,
        subnet6: network.subnet6.as_ref().map(|subnet| subnet.value),
        mtu: network.mtu.as_ref().map(|mtu| mtu.value).or(hosts),
    }
}

fn endpoint(service: &ServiceFile, file: &StackFile, context: &Context<'_>) -> Checked<EndpointRequest> {
    let keys = &service.network;
    let names = names(service, file);
    let attachments = match &keys.networks {
        None => vec![Attachment {
            network: DEFAULT_NETWORK.to_owned(),
            aliases: names,
            mac: keys.mac.as_ref().map(|mac| mac.value),
            ..Attachment::default()
        }],
        Some(uses) => {
            let attach = |network| attachment(network, &names, file, context);
            uses.iter().map(attach).collect::<Checked<_>>()?
        }
    };
    Ok(EndpointRequest {
        service: service.key.name.clone(),
        attachments,
        replicas: service.settled.replicas,
        balance: replicas::balance(service, context),
        without_virtual_address: service.replicas.without_virtual_address,
        egress: keys.egress.clone(),
        resolvers: keys.resolvers.clone(),
    })
}

/// Names besides its own that a service has on all of its networks.
fn names(service: &ServiceFile, file: &StackFile) -> Vec<String> {
    let keys = &service.network;
    let mut names: Vec<String> = keys.container_name.iter().map(|name| name.value.clone()).collect();
    let hostname = &service.settled.hostname;
    if keys.has_hostname {
        names.push(hostname.clone());
    }
    names.extend(service.settled.domainname.iter().map(|domain| format!("{hostname}.{domain}")));
    let links = file.services.iter().flat_map(|other| &other.network.links);
    names.extend(links.filter(|link| link.service.value == service.key.name).filter_map(|l| l.alias.clone()));
    let links = file.services.iter().flat_map(|other| &other.network.external_links);
    names
        .extend(links.filter(|link| is_called(service, &link.service.value)).filter_map(|l| l.alias.clone()));
    names
}

fn is_called(service: &ServiceFile, name: &str) -> bool {
    service.key.name == name || service.settled.container_name.as_deref() == Some(name)
}

/// The links of `external_links` that lead to no container of this stack, as warnings.
pub(super) fn dead_links(file: &StackFile) -> Vec<(Span, String)> {
    let links = file.services.iter().flat_map(|service| &service.network.external_links);
    let dead =
        links.filter(|link| !file.services.iter().any(|service| is_called(service, &link.service.value)));
    dead.map(|link| {
        let name = &link.service.value;
        let text = format!("`{name}` of `external_links` is no container of this stack, and those of others cannot be reached: use a port that it publishes");
        (link.service.span.clone(), text)
    })
    .collect()
}

fn attachment(
    used: &NetworkUse,
    names: &[String],
    file: &StackFile,
    context: &Context<'_>,
) -> Checked<Attachment> {
    check_declared(used, file, context.format)?;
    Ok(Attachment {
        network: used.network.value.clone(),
        address: used.address.as_ref().map(|address| address.value),
        aliases: names.iter().chain(&used.aliases).cloned().collect(),
        mac: used.mac.as_ref().map(|mac| mac.value),
    })
}

/// Refuses a network that the file does not have.
pub(super) fn check_declared(used: &NetworkUse, file: &StackFile, format: Format) -> Checked<()> {
    let name = used.network.value.as_str();
    let declared = file.networks.iter().map(|network| network.key.name.as_str());
    if name != DEFAULT_NETWORK && !declared.clone().any(|other| other == name) {
        let example = match format {
            Format::Stack => format!("declare it: `[networks.{name}]`"),
            Format::Compose => format!("declare it: `networks: {{ {name}: {{}} }}`"),
        };
        return Err(Fault::new(&used.network.span, format!("network `{name}` is not declared"))
            .hint(example)
            .nearest(name, declared));
    }
    Ok(())
}

/// `extra_hosts`, with the address by which the host is reached where `host-gateway` asks for it. That is its own: what
/// connects to the gateway stays in the stack.
pub(super) fn extra_hosts(
    service: &ServiceFile,
    plan: &NetworkPlan,
    host: &HostFacts,
) -> Checked<Vec<(String, IpAddr)>> {
    let interfaces = plan.endpoints.iter().find(|endpoint| endpoint.service == service.key.name);
    let first = interfaces.and_then(|endpoint| endpoint.interfaces.first());
    let network = first.and_then(|first| plan.networks.iter().find(|n| n.name == first.network));
    let gateway = match service.network.mode.as_ref().map(|mode| &mode.value) {
        Some(ModeFile::Host) => Some(Ipv4Addr::LOCALHOST),
        _ => network.map(|network| host.address.unwrap_or(network.gateway)),
    };
    let hosts = service.network.extra_hosts.iter();
    hosts
        .map(|host| {
            let address = host.address.or(gateway.map(IpAddr::V4)).ok_or_else(|| {
                let message =
                    format!("`host-gateway` of service `{}`, which is on no network", service.key.name);
                Fault::new(&host.span, message).hint("write an address")
            })?;
            Ok((host.name.clone(), address))
        })
        .collect()
}

/// A subnet of the file that the host has a route to would take that part of the world from the services.
fn check_routes(network: &NetworkFile, host: &HostFacts) -> Checked<()> {
    let Some(subnet) = &network.subnet else { return Ok(()) };
    let (first, prefix) = subnet.value;
    let Some(route) = host.routes.iter().find(|route| overlap(route.destination, (first, prefix))) else {
        return Ok(());
    };
    let (destination, length) = route.destination;
    let name = &network.key.name;
    let message = format!(
        "{first}/{prefix} of network `{name}` overlaps the host's route to {destination}/{length} on `{}`",
        route.interface
    );
    Err(Fault::new(&subnet.span, message)
        .hint("name another subnet, or leave `ipam` out: one that is free is chosen then"))
}

fn overlap(one: (Ipv4Addr, u8), other: (Ipv4Addr, u8)) -> bool {
    Subnet::of(one.0, one.1).overlaps(Subnet::of(other.0, other.1))
}

fn check_subnets6(file: &StackFile, plan: &NetworkPlan) -> Checked<()> {
    for network in &file.networks {
        let name = &network.key.name;
        let Some(v6) = plan.networks.iter().find(|n| n.name == *name).and_then(|n| n.v6) else { continue };
        if let Some(gateway) = network.gateway6.as_ref().filter(|gateway| gateway.value != v6.gateway) {
            let message = format!("{} cannot be the IPv6 gateway of network `{name}`", gateway.value);
            return Err(Fault::new(&gateway.span, message).hint(format!(
                "leave it out: it is {}, the subnet's first address and the IPv4 gateway in the last 32 bits",
                v6.gateway
            )));
        }
        let Some(subnet) = &network.subnet6 else { continue };
        let same = |other: Subnet6| v6.subnet().overlaps(other.subnet());
        let other = plan.networks.iter().find(|n| n.name != *name && n.v6.is_some_and(same));
        if let Some(other) = other {
            let message = format!("the IPv6 subnets of the networks `{name}` and `{}` overlap", other.name);
            return Err(Fault::new(&subnet.span, message).hint("give one of them another subnet"));
        }
    }
    Ok(())
}

/// An IPv6 address follows from the IPv4 one; the file may say it, but not say another.
fn check_addresses6(file: &StackFile, plan: &NetworkPlan) -> Checked<()> {
    for service in &file.services {
        let name = &service.key.name;
        for used in service.network.networks.iter().flatten() {
            let Some(wanted) = &used.address6 else { continue };
            let endpoint = plan.endpoints.iter().find(|endpoint| endpoint.service == *name);
            let mut interfaces = endpoint.iter().flat_map(|endpoint| &endpoint.interfaces);
            let Some(interface) = interfaces.find(|i| i.network == used.network.value) else { continue };
            if interface.address6 == Some(wanted.value) {
                continue;
            }
            let network = &used.network.value;
            let message =
                format!("{} cannot be the address of `{name}` on network `{network}`", wanted.value);
            return Err(Fault::new(&wanted.span, message).hint(match interface.address6 {
                Some(address) => format!(
                    "leave it out: it is {address}, the network's IPv6 subnet with the IPv4 address {} at its end",
                    interface.address
                ),
                None => format!("give network `{network}` IPv6 addresses with `enable_ipv6`"),
            }));
        }
    }
    Ok(())
}

/// A bridge cannot tell two ports with one address apart.
fn check_macs(file: &StackFile, plan: &NetworkPlan) -> Checked<()> {
    for service in &file.services {
        let keys = &service.network;
        let uses = keys.networks.iter().flatten();
        let of_uses = uses.filter_map(|used| Some((used.network.value.as_str(), used.mac.as_ref()?)));
        let of_service = keys.mac.iter().map(|mac| (DEFAULT_NETWORK, mac));
        for (network, mac) in of_service.filter(|_| keys.networks.is_none()).chain(of_uses) {
            let has = |interface: &Interface| interface.network == network && interface.mac == mac.value;
            let others = plan.endpoints.iter().filter(|endpoint| endpoint.service != service.key.name);
            let other = others.clone().find(|endpoint| endpoint.interfaces.iter().any(has));
            if let Some(other) = other {
                let message =
                    format!("service `{}` has the same MAC address on network `{network}`", other.service);
                return Err(Fault::new(&mac.span, message).hint("give one of them another"));
            }
        }
    }
    Ok(())
}

/// Where in the file an impossible wish stands.
fn address_fault(file: &StackFile, error: &AllocateError) -> Box<Fault> {
    let network_file = |name: &str| file.networks.iter().find(|network| network.key.name == name);
    let use_of = |service: &str, network: &str| {
        let service = file.services.iter().find(|file| file.key.name == service)?;
        let mut uses = service.network.networks.iter().flatten();
        uses.rfind(|used| used.network.value == network)
    };
    let span = match error {
        AllocateError::UnknownNetwork { service, network }
        | AllocateError::AttachedTwice { service, network } => {
            use_of(service, network).map(|used| &used.network.span)
        }
        AllocateError::AddressOutside { service, network, .. }
        | AllocateError::AddressTaken { service, network, .. } => {
            use_of(service, network).and_then(|used| Some(&used.address.as_ref()?.span))
        }
        AllocateError::SubnetsOverlap { second: network, .. }
        | AllocateError::NoFreeSubnet { network }
        | AllocateError::NoFreeAddress { network, .. } => network_file(network).map(|network| {
            let subnet = network.subnet.as_ref();
            subnet.map_or(&network.key.span, |subnet| &subnet.span)
        }),
        AllocateError::GatewayOutside { network, .. } => {
            network_file(network).and_then(|network| Some(&network.gateway.as_ref()?.span))
        }
    };
    let fault = Fault::new(span.unwrap_or(&file.span), error.to_string());
    match error {
        AllocateError::AddressOutside { network, .. }
            if network_file(network).is_none_or(|network| network.subnet.is_none()) =>
        {
            fault.hint(format!(
                "a static address needs a subnet: `ipam.config = [{{ subnet = \"172.28.0.0/24\" }}]` of network `{network}`"
            ))
        }
        AllocateError::AddressTaken { .. } => fault.hint("give one of them another address"),
        AllocateError::NoFreeSubnet { .. } => fault.hint("name a subnet with `ipam`"),
        AllocateError::NoFreeAddress { .. } => fault.hint("name a larger subnet with `ipam`"),
        _ => fault,
    }
}
