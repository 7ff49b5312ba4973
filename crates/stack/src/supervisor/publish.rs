//! Published ports of one-off containers. Those that the service's file names are lent to them while the service is down.

use std::net::SocketAddr;

use network::plan::{Mode, NetworkPlan, PublishedPort};

use super::Supervisor;
use super::unit::Unit;
use crate::control::{Run, RunPort};
use crate::file::Format;
use crate::plan::{NetworkMode, Service};
use crate::remote::RemoteError;
use crate::resolve::ports::default_host_ip;

impl Supervisor {
    /// What the one-off container of `run`, which is like `unit`, is to publish.
    ///
    /// # Errors
    /// Where it has no network of its own, or somebody else publishes one of them.
    pub(super) fn ports_of_run(
        &self,
        run: &Run,
        unit: &Unit,
        container: &str,
        network: &NetworkPlan,
    ) -> Result<Vec<PublishedPort>, RemoteError> {
        let service = &unit.service;
        let host_ip = default_host_ip(self.format());
        let named = run.ports.iter().map(|port: &RunPort| PublishedPort {
            host_ip: port.host_ip.unwrap_or(host_ip),
            host_port: port.host_port,
            container_port: port.container_port,
            protocol: port.protocol,
            mode: Mode::Proxy,
        });
        let mut ports: Vec<PublishedPort> = named.collect();
        let of_service = service.ports.iter().filter(|_| run.service_ports);
        ports.extend(of_service.filter(|port| !run.ports.iter().any(|one| same_target(one, port))));
        if ports.is_empty() {
            return Ok(ports);
        }
        let links = network.endpoints.iter().find(|endpoint| endpoint.service == container);
        let why_not = match &service.network_mode {
            NetworkMode::Host => {
                Some("it has the host's network, where its ports are open as they are".into())
            }
            NetworkMode::Service(owner) => Some(format!("it has the network of service `{owner}`")),
            NetworkMode::Own if links.is_none_or(|endpoint| endpoint.interfaces.is_empty()) => {
                Some("it is on no network".into())
            }
            NetworkMode::Own => None,
        };
        if let Some(why) = why_not {
            return Err(refused(format!("no port of container `{container}` can be published"), why));
        }
        for (at, port) in ports.iter().enumerate() {
            self.check_port(service, container, port)?;
            let again = |other: &PublishedPort| {
                port.host_port != 0 && address(other) == address(port) && other.is_udp() == port.is_udp()
            };
            if ports[..at].iter().any(again) {
                return Err(refused(
                    format!("container `{container}` is to publish port {} twice", address(port)),
                    "one port of the host leads to one port inside",
                ));
            }
        }
        Ok(ports)
    }

    /// Whether `port` may be the container's.
    fn check_port(
        &self,
        service: &Service,
        container: &str,
        port: &PublishedPort,
    ) -> Result<(), RemoteError> {
        if port.mode == Mode::Direct {
            let text =
                format!("port {} of service `{}` is in direct mode", port.container_port, service.name);
            return Err(refused(text, "a container of `run` does not accept connections by itself")
                .or_hint(format!("`--publish {}:{}`", port.host_port, port.container_port)));
        }
        if port.host_port == 0 {
            return Ok(());
        }
        if let Some(other) = self.wiring.borrower(container, port) {
            return Err(published(port, format!("container `{other}`"))
                .or_hint(format!("`inception-run kill {other}` ends it")));
        }
        let same = |other: &PublishedPort| address(other) == address(port) && other.is_udp() == port.is_udp();
        let holder = |unit: &&Unit| !unit.is_down() && unit.service.ports.iter().any(same);
        match self.units.iter().find(holder) {
            Some(unit) => Err(published(port, format!("service `{}`, which runs", unit.service.name))
                .or_hint(format!(
                    "name another port of the host, or `inception-run stop {}` first",
                    unit.service.name
                ))),
            None => Ok(()),
        }
    }

    /// A service does not start while a one-off container has one of its ports.
    pub(super) fn check_ports_are_own(&self, service: &Service) -> Result<(), RemoteError> {
        for port in &service.ports {
            if let Some(other) = self.wiring.borrower(&service.name, port) {
                return Err(published(port, format!("container `{other}`"))
                    .or_hint(format!("`inception-run kill {other}` ends it")));
            }
        }
        Ok(())
    }

    /// The notation of the stack's files: what it leaves out means something else in each. What comes from standard
    /// input is a compose file.
    fn format(&self) -> Format {
        let first = self.files.first().and_then(|path| Format::of(path).ok());
        first.unwrap_or(Format::Compose)
    }
}

fn address(port: &PublishedPort) -> SocketAddr {
    SocketAddr::new(port.host_ip, port.host_port)
}

/// Whether a port of the command line is the file's, published elsewhere.
fn same_target(named: &RunPort, port: &PublishedPort) -> bool {
    named.container_port == port.container_port
        && matches!(named.protocol, network::plan::Protocol::Udp) == port.is_udp()
}

fn published(port: &PublishedPort, by: String) -> RemoteError {
    refused(format!("port {} cannot be published", address(port)), format!("{by} publishes it"))
}

fn refused(text: String, why: impl Into<String>) -> RemoteError {
    RemoteError::message(text).caused_by(why)
}
