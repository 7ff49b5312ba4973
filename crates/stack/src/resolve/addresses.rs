//! Published ports, networks and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use network::plan::{AllocateError, Attachment, EndpointRequest, NetworkPlan, NetworkRequest, PublishedPort};

use super::Context;
use crate::diagnostic::{Checked, Fault, Span};
use crate::file::service::ServiceFile;
use crate::file::{Format, StackFile};

/// The network of services that name none.
const DEFAULT_NETWORK: &str = "default";

fn default_host_ip(format: Format) -> IpAddr {
    IpAddr::V4(match format {
        Format::Stack => Ipv4Addr::LOCALHOST,
        Format::Compose => Ipv4Addr::UNSPECIFIED,
    })
}

pub(super) fn ports(service: &ServiceFile, context: &Context<'_>) -> Vec<PublishedPort> {
    let ports = service.ports.iter();
    ports
        .map(|port| {
            let host_ip = port.host_ip.unwrap_or(default_host_ip(context.format));
            PublishedPort::tcp(host_ip, port.host_port, port.container_port)
        })
        .collect()
}

/// No two services on one host port, and none on a port that this user may not have.
pub(super) fn check_ports(file: &StackFile, context: &Context<'_>) -> Checked<()> {
    struct User<'a> {
        service: &'a str,
        ip: IpAddr,
        span: &'a Span,
    }
    let start = context.host.unprivileged_port_start;
    let mut users: BTreeMap<u16, Vec<User<'_>>> = BTreeMap::new();
    for service in &file.services {
        let name = service.key.name.as_str();
        for port in service.ports.iter().filter(|port| port.host_port != 0) {
            let number = port.host_port;
            if number < start && !context.host.is_root {
                let other = unprivileged(number, start);
                return Err(Fault::new(
                    &port.span,
                    format!("an ordinary user cannot publish port {number}: the lowest is {start}"),
                )
                .hint(format!(
                    "publish another port, such as `{other}:{}`, or lower the limit: `sudo sysctl net.ipv4.ip_unprivileged_port_start={number}`",
                    port.container_port
                )));
            }
            let ip = port.host_ip.unwrap_or(default_host_ip(context.format));
            let others = users.entry(number).or_default();
            let clash = others.iter().find(|other| {
                other.ip == ip
                    || (other.ip.is_ipv4() == ip.is_ipv4()
                        && (other.ip.is_unspecified() || ip.is_unspecified()))
            });
            if let Some(other) = clash {
                let message = match other.service == name {
                    true => format!("service `{name}` publishes port {number} twice"),
                    false => format!("services `{}` and `{name}` both publish port {number}", other.service),
                };
                return Err(Fault::new(&port.span, message)
                    .label(format!("port {number} again"))
                    .other(other.span, "first published here")
                    .hint("give one of them another host port"));
            }
            others.push(User { service: name, ip, span: &port.span });
        }
    }
    Ok(())
}

/// The customary replacement of a low port.
fn unprivileged(port: u16, start: u16) -> u16 {
    let customary = match port {
        80 => 8080,
        20 | 21 => port + 2100,
        _ => port + 8000,
    };
    customary.max(start)
}

pub(super) fn networks(file: &StackFile, context: &Context<'_>) -> Checked<NetworkPlan> {
    let mut endpoints = Vec::new();
    let mut used = BTreeSet::new();
    for service in &file.services {
        let mut names: Vec<String> = service.container_name.iter().cloned().collect();
        if service.has_hostname {
            names.push(service.settled.hostname.clone());
        }
        let mut endpoint =
            EndpointRequest { service: service.key.name.clone(), ..EndpointRequest::default() };
        let Some(uses) = &service.networks else {
            used.insert(DEFAULT_NETWORK);
            endpoint.attachments.push(Attachment {
                network: DEFAULT_NETWORK.to_owned(),
                aliases: names,
                ..Attachment::default()
            });
            endpoints.push(endpoint);
            continue;
        };
        for network in uses {
            let name = network.network.value.as_str();
            let declared = file.networks.iter().map(|network| network.key.name.as_str());
            if name != DEFAULT_NETWORK && !declared.clone().any(|other| other == name) {
                let example = match context.format {
                    Format::Stack => format!("declare it: `[networks.{name}]`"),
                    Format::Compose => format!("declare it: `networks: {{ {name}: {{}} }}`"),
                };
                return Err(Fault::new(&network.network.span, format!("network `{name}` is not declared"))
                    .hint(example)
                    .nearest(name, declared));
            }
            used.insert(name);
            endpoint.attachments.push(Attachment {
                network: name.to_owned(),
                address: network.address.as_ref().map(|address| address.value),
                aliases: names.iter().chain(&network.aliases).cloned().collect(),
                ..Attachment::default()
            });
        }
        endpoints.push(endpoint);
    }
    // Networks that nobody is on are not made, as with compose.
    let mut requests: Vec<NetworkRequest> = file
        .networks
        .iter()
        .filter(|network| used.contains(network.key.name.as_str()))
        .map(|network| NetworkRequest {
            name: network.key.name.clone(),
            subnet: network.subnet.as_ref().map(|subnet| subnet.value),
            gateway: network.gateway.as_ref().map(|gateway| gateway.value),
            internal: network.internal,
            ..NetworkRequest::default()
        })
        .collect();
    let has_default = requests.iter().any(|request| request.name == DEFAULT_NETWORK);
    if used.contains(DEFAULT_NETWORK) && !has_default {
        requests.push(NetworkRequest { name: DEFAULT_NETWORK.to_owned(), ..NetworkRequest::default() });
    }
    network::plan::allocate(&requests, &endpoints, &context.host.used_subnets)
        .map_err(|error| address_fault(file, &error))
}

/// Where in the file an impossible wish stands.
fn address_fault(file: &StackFile, error: &AllocateError) -> Box<Fault> {
    let network_file = |name: &str| file.networks.iter().find(|network| network.key.name == name);
    let use_of = |service: &str, network: &str| {
        let service = file.services.iter().find(|file| file.key.name == service)?;
        let mut uses = service.networks.iter().flatten();
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
    let fault = Fault::new(span.unwrap_or(&(0..0)), error.to_string());
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
