//! Names, published ports, and who may reach whom.

use std::net::IpAddr;

use network::egress::{Policy, Rule, Target};
use network::plan::Protocol;
use serde_json::{Value, json};

use super::{Writer, names, owner};
use crate::plan::{NetworkMode, PublishedPort, Service};

/// The label of a pod that is on a network.
pub(super) fn label(network: &str) -> String {
    format!("network.inception-run/{network}")
}

impl Writer<'_> {
    /// A headless `Service` for each name of a service: the name is the address of its pods, with all their ports.
    pub(super) fn names_of(&mut self, service: &Service) -> Vec<Value> {
        if service.network_mode == NetworkMode::Host || self.stack.networks(&service.name).is_empty() {
            return Vec::new();
        }
        let stack = self.stack;
        let mut names = vec![self.names.service(&service.name).to_owned()];
        for alias in stack.aliases(&service.name) {
            if !names::is_service_label(alias) {
                let keys = ["networks.*.aliases", "container_name", "hostname", "domainname"];
                let message =
                    format!("`{alias}` cannot be a name of service `{}` in a cluster", service.name);
                self.told.service(&service.name, &keys, message);
            } else if self.names.is_service(alias) {
                let message = format!(
                    "`{alias}` is another service's name in the cluster, where all names are known to all: it is none of service `{}`",
                    service.name
                );
                self.told.service(&service.name, &["networks.*.aliases", "container_name"], message);
            } else {
                names.push(alias.to_owned());
            }
        }
        let ports: Vec<Value> =
            self.stack.exposed(service).into_iter().map(|port| named_port(port, port, "TCP")).collect();
        let content = json!({ "spec": {
            "clusterIP": "None",
            "selector": self.selector(&service.name),
            "ports": ports,
        } });
        names.iter().map(|name| self.object("v1", "Service", name, content.clone())).collect()
    }

    /// A `Service` for what is published.
    pub(super) fn published(&mut self, service: &Service) -> Vec<Value> {
        if self.options.host_ports || service.ports.is_empty() {
            self.tell_of_ftp(service);
            return Vec::new();
        }
        self.tell_of_ftp(service);
        // What is published on this machine's loopback address is not for the world.
        let (inside, outside): (Vec<&PublishedPort>, Vec<_>) =
            service.ports.iter().partition(|port| port.host_ip.is_loopback());
        let mut objects = Vec::new();
        if !outside.is_empty() {
            objects.push(self.entrance(service, "published", "LoadBalancer", &outside));
        }
        if let Some(first) = inside.first() {
            let name = format!("{}-local", self.names.service(&service.name));
            let message = format!(
                "service `{}` is published on {} only, which a cluster does not have: reach it with `kubectl port-forward service/{name} {}:{}`",
                service.name, first.host_ip, first.host_port, first.host_port
            );
            self.told.service(&service.name, &["ports"], message);
            objects.push(self.entrance(service, "local", "ClusterIP", &inside));
        }
        objects
    }

    fn entrance(&self, service: &Service, suffix: &str, kind: &str, ports: &[&PublishedPort]) -> Value {
        let mut all: Vec<Value> = Vec::new();
        for (outer, inner, protocol) in ports.iter().flat_map(|port| ports_of(port)) {
            let port = named_port(outer, inner, protocol);
            // The same port on several addresses of this machine is one there.
            if all.iter().all(|other| other["name"] != port["name"]) {
                all.push(port);
            }
        }
        let content =
            json!({ "spec": { "type": kind, "selector": self.selector(&service.name), "ports": all } });
        self.object("v1", "Service", &format!("{}-{suffix}", self.names.service(&service.name)), content)
    }

    fn tell_of_ftp(&mut self, service: &Service) {
        if service.ports.iter().any(|port| matches!(port.protocol, Protocol::Ftp { .. })) {
            let message = format!(
                "Kubernetes has no word for `protocol: ftp` of service `{}`: nobody there replaces the addresses of passive mode, so the server itself must announce one that clients reach, and use the ports that are published",
                service.name
            );
            self.told.service(&service.name, &["ports"], message);
        }
    }

    /// The labels of a service's pods: what selects them, and the networks that they are on.
    pub(super) fn pod_labels(&self, service: &Service) -> Value {
        let mut labels = self.selector(&service.name);
        for network in self.stack.networks(&service.name) {
            labels[label(network)] = json!("true");
        }
        labels
    }

    /// Who may reach whom. What one policy allows is allowed; what is selected by one may do nothing else.
    pub(super) fn policies(&mut self) -> Vec<Value> {
        let stack = self.stack;
        let networks = stack.plan.network.networks.iter();
        let mut policies: Vec<Value> = networks.map(|network| self.network_policy(&network.name)).collect();
        for service in stack.plan.services.iter().filter(|service| owner(service).is_none()) {
            if service.network_mode == NetworkMode::Host {
                let message = format!(
                    "service `{}` has the node's network, and no policy says what it may reach or who may reach it",
                    service.name
                );
                self.told.service(&service.name, &["network_mode"], message);
                continue;
            }
            if stack.networks(&service.name).is_empty() {
                policies.push(self.policy(
                    service,
                    "isolated",
                    json!({ "policyTypes": ["Ingress", "Egress"] }),
                ));
                continue;
            }
            policies.extend(self.ingress(service));
            policies.extend(self.egress(service));
        }
        policies
    }

    /// The members of a network reach each other.
    fn network_policy(&self, network: &str) -> Value {
        let members = members(network);
        let content = json!({ "spec": {
            "podSelector": members,
            "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "podSelector": members }] }],
        } });
        self.object(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            &format!("network-{}", names::label(network)),
            content,
        )
    }

    fn policy(&self, service: &Service, suffix: &str, mut spec: Value) -> Value {
        spec["podSelector"] = json!({ "matchLabels": self.selector(&service.name) });
        let name = format!("{}-{suffix}", self.names.service(&service.name));
        self.object("networking.k8s.io/v1", "NetworkPolicy", &name, json!({ "spec": spec }))
    }

    /// Everybody reaches published ports.
    fn ingress(&self, service: &Service) -> Option<Value> {
        let mut ports: Vec<Value> = Vec::new();
        for (_, inner, protocol) in service.ports.iter().flat_map(ports_of) {
            let port = json!({ "port": inner, "protocol": protocol });
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        let spec = json!({ "policyTypes": ["Ingress"], "ingress": [{ "ports": ports }] });
        (!ports.is_empty()).then(|| self.policy(service, "published", spec))
    }

    /// Where a service may connect to, if not everywhere.
    fn egress(&mut self, service: &Service) -> Option<Value> {
        let stack = self.stack;
        let networks = stack.networks(&service.name);
        let endpoint = stack.plan.network.endpoints.iter().find(|endpoint| endpoint.group == service.name)?;
        let is_internal =
            |name: &&str| stack.plan.network.networks.iter().any(|n| n.name == **name && n.internal);
        let rules: &[Rule] = match &endpoint.egress {
            _ if networks.iter().all(is_internal) => &[],
            Policy::All => return None,
            Policy::None => &[],
            Policy::Only(rules) => rules,
        };
        let mut allowed = vec![
            json!({ "to": networks.iter().map(|name| json!({ "podSelector": members(name) })).collect::<Vec<_>>() }),
            // Without it no name is found, not even of the stack itself.
            json!({
                "to": [{
                    "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "kube-system" } },
                    "podSelector": { "matchLabels": { "k8s-app": "kube-dns" } },
                }],
                "ports": [{ "port": 53, "protocol": "UDP" }, { "port": 53, "protocol": "TCP" }],
            }),
        ];
        for (index, rule) in rules.iter().enumerate() {
            match &rule.target {
                Target::Subnet(subnet) => {
                    let cidr = format!("{}/{}", subnet.first(), subnet.prefix());
                    let ports = rule.ports.map(|(first, last)| {
                        let last = (last > first).then_some(last);
                        let port = |protocol| json!({ "port": first, "endPort": last, "protocol": protocol });
                        [port("TCP"), port("UDP")]
                    });
                    allowed.push(json!({ "to": [{ "ipBlock": { "cidr": cidr } }], "ports": ports }));
                }
                Target::Name(_) | Target::Below(_) => {
                    let message = format!(
                        "Kubernetes has no word for `{rule}` of `egress` of service `{}`: a NetworkPolicy has addresses and no names, so this is not allowed there",
                        service.name
                    );
                    self.told.item(&service.name, "egress", index, message);
                }
            }
        }
        Some(self.policy(service, "egress", json!({ "policyTypes": ["Egress"], "egress": allowed })))
    }

    /// The ports of a container: what is published, what the image says.
    pub(super) fn container_ports(&self, service: &Service) -> Vec<Value> {
        let mut ports: Vec<Value> = Vec::new();
        for published in &service.ports {
            for (outer, inner, protocol) in ports_of(published) {
                let host = self.options.host_ports.then_some(outer);
                let ip = host.and(address(published.host_ip));
                ports.push(
                    json!({ "containerPort": inner, "protocol": protocol, "hostPort": host, "hostIP": ip }),
                );
            }
        }
        for port in self.stack.exposed(service) {
            if ports.iter().all(|other| other["containerPort"] != json!(port)) {
                ports.push(json!({ "containerPort": port, "protocol": "TCP" }));
            }
        }
        ports
    }
}

fn members(network: &str) -> Value {
    json!({ "matchLabels": { (label(network)): "true" } })
}

/// All addresses are what is there without one.
fn address(address: IpAddr) -> Option<String> {
    (!address.is_unspecified()).then(|| address.to_string())
}

fn named_port(outer: u16, inner: u16, protocol: &str) -> Value {
    let name = format!("{}-{outer}", protocol.to_lowercase());
    json!({ "name": name, "port": outer, "targetPort": inner, "protocol": protocol })
}

/// Outer port, inner port and protocol; those of passive mode are the same on both sides.
fn ports_of(port: &PublishedPort) -> Vec<(u16, u16, &'static str)> {
    // 0 is any port of the machine.
    let outer = if port.host_port == 0 { port.container_port } else { port.host_port };
    match port.protocol {
        Protocol::Tcp => vec![(outer, port.container_port, "TCP")],
        Protocol::Udp => vec![(outer, port.container_port, "UDP")],
        Protocol::Ftp { passive: (first, last), .. } => {
            let control = (outer, port.container_port, "TCP");
            std::iter::once(control).chain((first..=last).map(|port| (port, port, "TCP"))).collect()
        }
    }
}
