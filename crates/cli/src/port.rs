//! `port`: where a port of a service is published.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use stack::RemoteError;
use stack::control::{Command, Notice};
use stack::plan::PublishedPort;

use crate::output::{self, Failure};
use crate::session::{Session, answer};

/// `port`.
#[derive(Debug, Args)]
pub(crate) struct Port {
    /// tcp or udp
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp", hide_possible_values = true)]
    protocol: Transport,
    /// Without effect: a published port is that of all of a service's containers
    #[arg(long, value_name = "N")]
    index: Option<u16>,
    /// Service
    service: String,
    /// Its port, inside
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

/// `--protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
}

/// `port`.
pub(crate) fn port(session: &Session, arguments: &Port) -> Result<u8, Failure> {
    let mut client = session.running()?;
    client.send(&Command::Ports(arguments.service.clone()), &[])?;
    let ports = loop {
        if let Notice::Ports(ports) = answer(&mut client)? {
            break ports;
        }
    };
    let wanted = |port: &&PublishedPort| {
        port.container_port == arguments.port && port.is_udp() == (arguments.protocol == Transport::Udp)
    };
    let found: Vec<String> = ports
        .iter()
        .filter(wanted)
        .map(|port| format!("{}\n", SocketAddr::new(port.host_ip, port.host_port)))
        .collect();
    if found.is_empty() {
        let protocol = if arguments.protocol == Transport::Udp { "udp" } else { "tcp" };
        let text =
            format!("port {}/{protocol} of service `{}` is not published", arguments.port, arguments.service);
        let inside: Vec<String> = ports.iter().map(|port| port.container_port.to_string()).collect();
        let hint = match inside.is_empty() {
            true => "no port of this service is".to_owned(),
            false => format!("those that are: {}", inside.join(", ")),
        };
        return Err(RemoteError::message(text).or_hint(hint).into());
    }
    output::print(&found.concat())?;
    Ok(0)
}
