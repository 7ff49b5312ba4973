//! What tells the replicas of a service apart.

use std::net::IpAddr;

use network::plan::{Protocol, PublishedPort, passive_slice, replica_name};

use crate::plan::Service;

/// The service as its replica `number` (from 1) runs it: with a host name and variables of its own. `of` is the
/// number of replicas where the service is meant to have them. What the file says outweighs the variables.
pub(crate) fn replica(service: &Service, number: u16, of: Option<u16>) -> Service {
    let mut replica = service.clone();
    if service.hostname == service.name {
        replica.hostname = replica_name(&service.name, number);
    }
    for (name, value) in replica_environment(service, number, of) {
        replica.environment.entry(name).or_insert(value);
    }
    replica
}

/// Variables that replica `number` (from 1) of a service gets: which one it is, if there can be others, and what
/// an FTP server has to tell its clients about passive mode when it does so by itself.
pub(crate) fn replica_environment(service: &Service, number: u16, of: Option<u16>) -> Vec<(String, String)> {
    let mut environment = Vec::new();
    if of.is_some() {
        environment.push(("INCEPTION_REPLICA".to_owned(), number.to_string()));
    }
    // A port may be published once for each family; only IPv4 has an address to announce.
    let is_ftp = |port: &&PublishedPort| matches!(port.protocol, Protocol::Ftp { .. });
    let port = service.ports.iter().filter(is_ftp).min_by_key(|port| port.host_ip.is_ipv6());
    if let Some((port, Protocol::Ftp { passive, announce })) = port.map(|port| (port, port.protocol)) {
        if let Some((first, last)) = passive_slice(passive, number, of.unwrap_or(1)) {
            environment.push(("INCEPTION_FTP_PASSIVE".to_owned(), format!("{first}-{last}")));
        }
        let specific = match port.host_ip {
            IpAddr::V4(address) if !address.is_unspecified() => Some(address),
            _ => None,
        };
        let address = announce.or(specific).unwrap_or(std::net::Ipv4Addr::LOCALHOST);
        environment.push(("INCEPTION_FTP_ADDRESS".to_owned(), address.to_string()));
    }
    environment
}
