//! Faults made on purpose: shaped links, and partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use super::{Changes, Namespaces, inner_index, netlink_in, network_of};
use crate::Error;
use crate::netlink::Netlink;
use crate::nft::{self, Chain, Expression, Family, Hook, Meta, Rule, Table, interface_name};
use crate::plan::{Interface, NetworkPlan};
use crate::shape::Shape;

/// The faults of a stack, by the names of its containers.
#[derive(Debug, Default)]
pub(super) struct Faults {
    shapes: BTreeMap<String, Shape>,
    cuts: BTreeSet<Cut>,
}

/// A container, and whom it is cut from; `None` is everybody, the gateways included.
type Cut = (String, Option<String>);

/// Name of the table that partitions are made with.
const TABLE: &str = "inception_partition";
/// The kernel's MTU of a veth link.
const DEFAULT_MTU: u32 = 1500;

impl Namespaces {
    /// Shapes the links of a container from now on, in both directions, in place of its shape before.
    ///
    /// # Errors
    /// [`Error::NoShaping`] where the kernel lacks netem, [`Error::NoContainer`], [`Error::Shape`].
    pub fn shape(&mut self, container: &str, shape: &Shape) -> Result<(), Error> {
        if let Some(why) = shape.contradiction() {
            return Err(Error::Shape { container: container.into(), why });
        }
        self.set_queues(container, Some(shape))?;
        self.faults.shapes.insert(container.to_owned(), *shape);
        Ok(())
    }

    /// Drops all packets between a container and others, or between it and everybody when none is named. Those that
    /// were cut off before stay so. What goes by the gateway (a published port, a virtual address, egress) is cut
    /// by the latter only.
    ///
    /// # Errors
    /// [`Error::NoContainer`], and what the kernel says.
    pub fn partition(&mut self, container: &str, from: &[String]) -> Result<(), Error> {
        for name in [container].into_iter().chain(from.iter().map(String::as_str)) {
            interfaces(&self.applied, name)?;
        }
        let others = from.iter().map(|other| (container.to_owned(), Some(other.clone())));
        let everybody = from.is_empty().then(|| (container.to_owned(), None));
        let mut cuts = self.faults.cuts.clone();
        cuts.extend(others.chain(everybody));
        nft::install(&table(&cuts, &self.applied))?;
        self.faults.cuts = cuts;
        Ok(())
    }

    /// Undoes the faults of a container, or all.
    ///
    /// # Errors
    /// [`Error::NoContainer`], and what the kernel says.
    pub fn heal(&mut self, container: Option<&str>) -> Result<(), Error> {
        if let Some(container) = container {
            interfaces(&self.applied, container)?;
        }
        let healed = |name: &str| container.is_none_or(|container| container == name);
        let kept = |(one, other): &Cut| !healed(one) && !other.as_deref().is_some_and(healed);
        let cuts: BTreeSet<Cut> = self.faults.cuts.iter().filter(|cut| kept(cut)).cloned().collect();
        if cuts.len() < self.faults.cuts.len() {
            if cuts.is_empty() {
                nft::remove(Family::Bridge, TABLE)?;
            } else {
                nft::install(&table(&cuts, &self.applied))?;
            }
            self.faults.cuts = cuts;
        }
        let shaped: Vec<String> = self.faults.shapes.keys().filter(|name| healed(name)).cloned().collect();
        for container in shaped {
            self.set_queues(&container, None)?;
            self.faults.shapes.remove(&container);
        }
        Ok(())
    }

    /// After a change of plan: new links get the faults of those before, and what is gone has none.
    pub(super) fn renew_faults(&mut self, changes: &Changes) -> Result<(), Error> {
        let there: BTreeSet<&String> =
            self.applied.endpoints.iter().map(|endpoint| &endpoint.service).collect();
        self.faults.shapes.retain(|container, _| there.contains(container));
        self.faults.cuts.retain(|(one, other)| {
            there.contains(one) && other.as_ref().is_none_or(|other| there.contains(other))
        });
        let shaped = self.faults.shapes.clone();
        for (container, shape) in shaped.iter().filter(|(container, _)| changes.endpoints.contains(container))
        {
            self.set_queues(container, Some(shape))?;
        }
        if self.faults.cuts.is_empty() {
            return Ok(());
        }
        nft::install(&table(&self.faults.cuts, &self.applied))
    }

    /// Gives both ends of a container's links a queueing discipline, or the one that they came with.
    fn set_queues(&mut self, container: &str, shape: Option<&Shape>) -> Result<(), Error> {
        let links = interfaces(&self.applied, container)?;
        let Some(namespace) = self.endpoints.get(container) else { return Ok(()) };
        let mut inner = netlink_in(namespace.as_fd(), container)?;
        for (link, interface) in links.iter().enumerate() {
            let Some(&peer) = self.peers.get(&interface.peer) else { continue };
            let mtu = network_of(interface, &self.applied).and_then(|network| network.mtu);
            let mtu = mtu.unwrap_or(DEFAULT_MTU);
            set_queue(&mut self.netlink, &interface.peer, peer, container, shape, mtu)?;
            set_queue(&mut inner, &interface.name, inner_index(link), container, shape, mtu)?;
        }
        Ok(())
    }
}

fn set_queue(
    netlink: &mut Netlink,
    link: &str,
    index: u32,
    container: &str,
    shape: Option<&Shape>,
    mtu: u32,
) -> Result<(), Error> {
    let Some(shape) = shape else {
        netlink.remove_queue(format!("remove the queue of link `{link}` of service `{container}`"), index)?;
        return netlink.flush();
    };
    let mut result = Ok(());
    for (kind, options) in shape.disciplines(mtu) {
        let what = format!("give link `{link}` of service `{container}` a queue of kind `{kind}`");
        netlink.set_queue(what, index, kind, options)?;
        result = netlink.flush();
        if !result.as_ref().is_err_and(is_unknown) {
            return result;
        }
    }
    result.map_err(|source| Error::NoShaping { container: container.into(), source: Box::new(source) })
}

/// The kernel does not know this kind of queue.
fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::System { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}

fn interfaces<'a>(plan: &'a NetworkPlan, container: &str) -> Result<&'a [Interface], Error> {
    let mut endpoints = plan.endpoints.iter();
    let endpoint = endpoints.find(|endpoint| endpoint.service == container);
    Ok(&endpoint.ok_or_else(|| Error::NoContainer(container.into()))?.interfaces)
}

/// The rules that make `cuts`. A container's packets are known by the link that they come from or go to.
fn table(cuts: &BTreeSet<Cut>, plan: &NetworkPlan) -> Table {
    use Expression::{Drop, Equal, Load};
    let from = |link: &str| [Load(Meta::InputName), Equal(interface_name(link))];
    let to = |link: &str| [Load(Meta::OutputName), Equal(interface_name(link))];
    let links = |container: &str| interfaces(plan, container).unwrap_or_default();
    let (mut input, mut forward, mut output) = (Vec::new(), Vec::new(), Vec::new());
    for (container, other) in cuts {
        for link in links(container) {
            let Some(other) = other else {
                let received: Rule = from(&link.peer).into_iter().chain([Drop]).collect();
                let sent: Rule = to(&link.peer).into_iter().chain([Drop]).collect();
                forward.extend([received.clone(), sent.clone()]);
                input.push(received);
                output.push(sent);
                continue;
            };
            for other in links(other).iter().filter(|other| other.network == link.network) {
                for (a, b) in [(link, other), (other, link)] {
                    forward.push(from(&a.peer).into_iter().chain(to(&b.peer)).chain([Drop]).collect());
                }
            }
        }
    }
    let chain = |name, hook, rules| Chain { name, hook, priority: 0, rules };
    let chains = vec![
        chain("input", Hook::Input, input),
        chain("forward", Hook::Forward, forward),
        chain("output", Hook::Output, output),
    ];
    Table { family: Family::Bridge, name: TABLE, sets: Vec::new(), chains }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Endpoint;

    fn endpoint(service: &str, links: &[(&str, &str)]) -> Endpoint {
        let link = |(network, peer): &(&str, &str)| Interface {
            network: (*network).into(),
            name: "eth0".into(),
            peer: (*peer).into(),
            address: [10, 0, 0, 2].into(),
            address6: None,
            fixed: false,
            mac: [0; 6],
            aliases: Vec::new(),
        };
        let interfaces = links.iter().map(link).collect();
        Endpoint { service: service.into(), interfaces, ..Endpoint::default() }
    }

    #[test]
    fn a_cut_is_made_on_common_networks() {
        let endpoints = vec![
            endpoint("a", &[("front", "a-front"), ("back", "a-back")]),
            endpoint("b", &[("back", "b-back"), ("other", "b-other")]),
        ];
        let plan = NetworkPlan { endpoints, ..NetworkPlan::default() };
        let rules = |other: Option<&str>| {
            let cuts = BTreeSet::from([("a".to_owned(), other.map(str::to_owned))]);
            table(&cuts, &plan).chains.into_iter().map(|chain| chain.rules).collect::<Vec<_>>()
        };
        let name = |meta, link| [Expression::Load(meta), Expression::Equal(interface_name(link))];
        let from = |link| name(Meta::InputName, link);
        let to = |link| name(Meta::OutputName, link);
        let drop = || vec![Expression::Drop];
        let there = [from("a-back").to_vec(), to("b-back").to_vec(), drop()].concat();
        let back = [from("b-back").to_vec(), to("a-back").to_vec(), drop()].concat();
        assert_eq!(rules(Some("b")), [vec![], vec![there, back], vec![]]);
        let received = |link| [from(link).to_vec(), drop()].concat();
        let sent = |link| [to(link).to_vec(), drop()].concat();
        let forward = ["a-front", "a-back"].into_iter().flat_map(|link| [received(link), sent(link)]);
        let input = vec![received("a-front"), received("a-back")];
        assert_eq!(rules(None), [input, forward.collect(), vec![sent("a-front"), sent("a-back")]]);
    }
}
