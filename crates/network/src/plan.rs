//! The address plan: which networks, links, addresses and published ports a stack has. Pure data.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// The networks of a stack and everything attached to them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// One bridge each.
    pub networks: Vec<Network>,
    /// One network namespace each.
    pub endpoints: Vec<Endpoint>,
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
}

/// A service's network namespace; it outlives the service's restarts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Service name.
    pub service: String,
    /// One link for each network it is on; empty for `network_mode: none`.
    pub interfaces: Vec<Interface>,
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
    /// MAC address, derived from the address.
    pub mac: [u8; 6],
    /// Names that this network's members resolve to `address`: the service's name and its aliases.
    pub aliases: Vec<String>,
}

/// A TCP port of the host that leads to a port of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Host address to listen on.
    pub host_ip: IpAddr,
    /// Host port; 0 lets the kernel choose.
    pub host_port: u16,
    /// Port inside the service.
    pub container_port: u16,
}
