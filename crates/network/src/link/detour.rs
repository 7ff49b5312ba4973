//! The way out by another program, for kernels that cannot intercept: it has a network device in the stack's namespace,
//! and sends on what is routed there.
//!
//! Addresses are not translated, so the program has to take any source, and ask for its owner by ARP when it has an
//! answer, as slirp4netns does; the kernel answers in the containers' place. Routing rules are all that decides: each
//! container that may go everywhere has one that lets it out, and one with a policy, which nobody could enforce, has
//! none. As ever, nothing goes from one network to another.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::{settings, way_out};
use crate::egress::Policy;
use crate::error::{Doing, Error};
use crate::netlink::{Netlink, Rule};
use crate::plan::{Network, NetworkPlan};
use crate::subnet::Subnet;

/// The routing table for what goes out.
const TABLE: u8 = 101;
/// Priorities of rules: after the table `local`, before `main`.
const OURS: u32 = 200;
const CLOSED: u32 = 201;
const OUT: u32 = 202;
const ELSE: u32 = 203;
/// `RT_TABLE_MAIN` (rtnetlink(7)): where the subnets of networks are.
const MAIN: u8 = 254;

/// Where another program takes what goes out.
#[derive(Debug)]
pub(super) struct Detour {
    device: String,
    rules: BTreeSet<Rule>,
}

impl Detour {
    /// By this device, for nobody so far.
    pub(super) fn new(device: &str) -> Self {
        Self { device: device.to_owned(), rules: BTreeSet::new() }
    }

    /// Has `gateway` on the device's network be the way out. With a device the kernel forgets this.
    ///
    /// # Errors
    /// When there is no such device, or the route or a setting is refused.
    pub(super) fn lead(&self, netlink: &mut Netlink, gateway: Ipv4Addr) -> Result<(), Error> {
        let device = &self.device;
        let socket = super::any_socket().doing(|| "open a socket in the stack's network namespace")?;
        let index = rustix::net::netdevice::name_to_index(&socket, device)
            .doing(|| format!("find the device `{device}`"))?;
        netlink.route_out(format!("route by {gateway} on `{device}`"), TABLE, index, gateway)?;
        netlink.flush()?;
        settings::forward(device)
    }

    /// Lets those of `plan` out who may, and nobody else.
    pub(super) fn follow(&mut self, netlink: &mut Netlink, plan: &NetworkPlan) -> Result<(), Error> {
        let rules = rules(plan, &self.device);
        // What is refused comes first: an address may be another container's now.
        for old in self.rules.difference(&rules) {
            netlink.remove_rule(old)?;
        }
        for new in rules.difference(&self.rules) {
            netlink.add_rule(new)?;
        }
        netlink.flush()?;
        self.rules = rules;
        Ok(())
    }
}

/// Which rules say where packets go, in the order of their priorities.
fn rules(plan: &NetworkPlan, device: &str) -> BTreeSet<Rule> {
    let any = Rule { priority: 0, input: None, from: None, to: None, table: None };
    // What the stack's namespace itself sends, to containers or anybody, and answers from outside.
    let ours = ["lo", device].map(|link| Rule {
        priority: OURS,
        input: Some(link.to_owned()),
        table: Some(MAIN),
        ..any.clone()
    });
    let link_local = Subnet::of(Ipv4Addr::new(169, 254, 0, 0), 16);
    let own = plan.networks.iter().map(|network| Subnet::of(network.subnet, network.prefix));
    // That of the device is open: the kernel believes the program's questions only of whom it would answer.
    let metadata =
        sys::address::METADATA.into_iter().filter(IpAddr::is_ipv4).map(|address| Subnet::of(address, 32));
    let closed = own.chain([link_local]).chain(metadata);
    let closed = closed.map(|subnet| Rule { priority: CLOSED, to: Some(subnet), ..any.clone() });
    let open = plan.endpoints.iter().filter(|endpoint| endpoint.egress == Policy::All);
    let out = open.filter_map(|endpoint| {
        let (link, Network { bridge, .. }) = way_out(endpoint, plan)?;
        let from = Some(endpoint.interfaces.get(link)?.address);
        Some(Rule { priority: OUT, input: Some(bridge.clone()), from, table: Some(TABLE), ..any.clone() })
    });
    let out: Vec<Rule> = out.collect();
    ours.into_iter().chain(closed).chain(out).chain([Rule { priority: ELSE, ..any.clone() }]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Attachment, EndpointRequest, NetworkRequest, allocate};

    #[test]
    fn only_those_who_may_go_everywhere_are_let_out() {
        let networks = [("front", false), ("back", true)].map(|(name, internal)| NetworkRequest {
            name: name.into(),
            internal,
            ..NetworkRequest::default()
        });
        let endpoint = |service: &str, network: &str, egress| EndpointRequest {
            service: service.into(),
            attachments: vec![Attachment { network: network.into(), ..Attachment::default() }],
            egress,
            ..EndpointRequest::default()
        };
        let endpoints = [
            endpoint("web", "front", Policy::All),
            endpoint("shut", "front", Policy::None),
            endpoint("some", "front", Policy::Only(vec!["example.org".parse().unwrap()])),
            endpoint("db", "back", Policy::All),
        ];
        let plan = allocate(&networks, &endpoints, &[]).unwrap();
        let rules: Vec<Rule> = rules(&plan, "tap0").into_iter().collect();
        let out: Vec<&Rule> = rules.iter().filter(|rule| rule.table == Some(TABLE)).collect();
        let [only] = out[..] else { panic!("{out:?}") };
        assert_eq!(
            (only.from, only.input.as_deref()),
            (Some(plan.endpoints[0].interfaces[0].address), Some("br-front"))
        );
        let closed: Vec<Subnet> = rules.iter().filter_map(|rule| rule.to).collect();
        assert!(plan.networks.iter().flat_map(Network::subnets).all(|subnet| closed.contains(&subnet)));
        // The order in which the kernel looks at them.
        assert!(rules.is_sorted_by_key(|rule| rule.priority));
        assert_eq!(
            rules.last().map(|rule| (rule.table, rule.to, rule.input.as_deref())),
            Some((None, None, None))
        );
    }
}
