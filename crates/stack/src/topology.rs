//! How the services of a stack hang together, for a picture of it: a pure function of the plan.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::plan::{Condition, NetworkMode, Plan, Service};

/// Services and the networks that join them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// The networks, as the plan has them.
    pub networks: Vec<Segment>,
    /// The services in start order: each comes after those that it depends on.
    pub services: Vec<Node>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Name in the stack file.
    pub name: String,
    /// Its addresses, as `10.89.1.0/24`; the IPv6 ones too, where it has any.
    pub subnets: Vec<String>,
    /// Nothing leaves the stack from it.
    pub internal: bool,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The networks that it is on, also those that it shares with another service.
    pub networks: Vec<String>,
    /// The service whose network namespace it has (`network_mode: service:NAME`).
    pub joins: Option<String>,
    /// It has the host's network.
    pub on_host: bool,
    /// What it waits for.
    pub needs: Vec<Need>,
}

/// A dependency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Need {
    /// The service waited for.
    pub service: String,
    /// Until when.
    pub condition: Condition,
}

impl Topology {
    /// That of a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let networks = plan.network.networks.iter().map(|network| Segment {
            name: network.name.clone(),
            subnets: network
                .subnets()
                .map(|subnet| format!("{}/{}", subnet.first(), subnet.prefix()))
                .collect(),
            internal: network.internal,
        });
        let services = plan.services.iter().map(|service| node(plan, service));
        Self { networks: networks.collect(), services: services.collect() }
    }
}

fn node(plan: &Plan, service: &Service) -> Node {
    let owner = service.network_mode.owner(&service.name);
    let endpoints = plan.network.endpoints.iter().filter(|endpoint| Some(endpoint.group.as_str()) == owner);
    let joined: BTreeSet<&str> = endpoints.flat_map(|e| &e.interfaces).map(|i| i.network.as_str()).collect();
    let needs = service.depends_on.iter();
    Node {
        name: service.name.clone(),
        networks: joined.into_iter().map(str::to_owned).collect(),
        joins: match &service.network_mode {
            NetworkMode::Service(owner) => Some(owner.clone()),
            NetworkMode::Own | NetworkMode::Host => None,
        },
        on_host: service.network_mode == NetworkMode::Host,
        needs: needs.map(|d| Need { service: d.service.clone(), condition: d.condition }).collect(),
    }
}
