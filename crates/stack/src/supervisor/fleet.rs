//! Replicas: which containers a service is to have, and what they are together.

use std::collections::BTreeMap;

use network::balance;
use network::plan::{AllocateError, Endpoint, NetworkPlan, Protocol};

use super::Supervisor;
use super::unit::{Readiness, Standing, Unit};
use crate::plan::{Condition, NetworkMode, Plan, Service};
use crate::spec;

/// A container that is there, as the decision about replicas sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Present {
    pub(crate) slot: u16,
    /// Its configuration and image are those that are wanted now.
    pub(crate) same: bool,
    pub(crate) state: balance::State,
}

/// Which containers a service is to have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots {
    /// They stay as they are.
    pub(crate) kept: Vec<u16>,
    /// They are as wanted, and too many.
    pub(crate) surplus: Vec<u16>,
    /// Their configuration or image has changed.
    pub(crate) outdated: Vec<u16>,
    /// They are to be made.
    pub(crate) fresh: Vec<u16>,
}

/// Decides which containers stay, go and come, so that `wanted` are there. Those that work stay before those that
/// do not, then those with the lowest slots. New ones get the lowest slots that are free: not `busy`, and with
/// `rolling` not an outdated one's either; the successors of those are no matter of this decision.
pub(crate) fn slots(wanted: u16, present: &[Present], busy: &[u16], rolling: bool) -> Slots {
    let (mut same, outdated): (Vec<Present>, Vec<Present>) = present.iter().partition(|one| one.same);
    same.sort_by_key(|one| (rank(one.state), one.slot));
    let surplus = same.split_off(same.len().min(usize::from(wanted)));
    let numbers = |list: &[Present]| {
        let mut numbers: Vec<u16> = list.iter().map(|one| one.slot).collect();
        numbers.sort_unstable();
        numbers
    };
    let (kept, surplus, outdated) = (numbers(&same), numbers(&surplus), numbers(&outdated));
    let fresh = match rolling && !outdated.is_empty() {
        true => Vec::new(),
        false => {
            let taken = [&kept, &surplus, busy].concat();
            free_slots(&taken).take(usize::from(wanted) - kept.len()).collect()
        }
    };
    Slots { kept, surplus, outdated, fresh }
}

/// Slots that nobody has, the lowest first.
pub(crate) fn free_slots(taken: &[u16]) -> impl Iterator<Item = u16> {
    (1..=u16::MAX).filter(|slot| !taken.contains(slot))
}

/// How little would be lost with a container.
pub(crate) fn rank(state: balance::State) -> u8 {
    match state {
        balance::State::Ready => 0,
        balance::State::Starting => 1,
        balance::State::Unhealthy | balance::State::Draining | balance::State::Down => 2,
    }
}

/// How far the replicas of a service are for one who depends on it under `condition`: all that are to run count.
///
/// # Errors
/// The one that never will be.
pub(crate) fn readiness<'a>(replicas: &[&'a Unit], condition: Condition) -> Result<bool, &'a Unit> {
    let stays = |unit: &&&Unit| !matches!(unit.standing, Standing::Trial | Standing::Retired);
    let to_run = |unit: &&&Unit| unit.wanted || unit.pending;
    let nobody_runs = !replicas.iter().filter(stays).any(|unit| to_run(&unit));
    let mut ready = true;
    for unit in replicas.iter().filter(stays).filter(|unit| nobody_runs || to_run(unit)) {
        match unit.readiness(condition) {
            Readiness::Ready => {}
            Readiness::NotYet => ready = false,
            Readiness::Never => return Err(unit),
        }
    }
    Ok(ready)
}

/// Gives `plan` an endpoint `name` of `service` if it has none.
pub(crate) fn add(plan: &mut NetworkPlan, service: &str, name: &str) -> Result<(), AllocateError> {
    if plan.endpoints.iter().any(|endpoint| endpoint.service == name) {
        return Ok(());
    }
    plan.add_replica(service, name)
}

/// Gives `plan` an endpoint `name` that is like `model`, whatever others of its group are like.
pub(crate) fn add_like(plan: &mut NetworkPlan, model: &Endpoint, name: &str) -> Result<(), AllocateError> {
    plan.endpoints.insert(0, model.clone());
    let added = plan.add_replica(&model.group, name);
    plan.endpoints.remove(0);
    added
}

/// Makes the endpoints of `service` those with these names. The last one stays: it is what others are made like.
pub(crate) fn place(plan: &mut NetworkPlan, service: &str, names: &[String]) -> Result<(), AllocateError> {
    for name in names {
        add(plan, service, name)?;
    }
    let first = plan.endpoints.iter().find(|e| e.group == service).map(|e| e.service.clone());
    let stays =
        |name: &String| if names.is_empty() { first.as_ref() == Some(name) } else { names.contains(name) };
    plan.endpoints.retain(|endpoint| endpoint.group != service || stays(&endpoint.service));
    Ok(())
}

/// Whether an endpoint of `running` can stay as it is beside those of `plan`.
pub(crate) fn can_stay(endpoint: &Endpoint, running: &NetworkPlan, plan: &NetworkPlan) -> bool {
    let network = |of: &NetworkPlan, name: &str| of.networks.iter().find(|n| n.name == name).cloned();
    endpoint.interfaces.iter().all(|interface| {
        let old = network(running, &interface.network);
        old.is_some() && old == network(plan, &interface.network)
    })
}

/// Why two containers of a service, one of each configuration, cannot run at the same time.
pub(crate) fn obstacle(old: &Service, new: &Service, endpoints: [&Endpoint; 2]) -> Option<&'static str> {
    let direct = |service: &Service| service.ports.iter().any(|p| p.mode == network::plan::Mode::Direct);
    if endpoints.iter().any(|endpoint| endpoint.interfaces.iter().any(|interface| interface.fixed)) {
        return Some("it has a static address");
    }
    if [old, new].iter().any(|service| service.network_mode != NetworkMode::Own) {
        return Some("its network is another's");
    }
    if [old, new].iter().any(|service| divides_ports(service)) {
        return Some("its passive ports are divided among its replicas");
    }
    [old, new].iter().any(|service| direct(service)).then_some("it accepts connections to a port by itself")
}

/// Whether each replica of a service is told which ports are its own.
fn divides_ports(service: &Service) -> bool {
    service.ports.iter().any(|port| matches!(port.protocol, Protocol::Ftp { .. }))
}

/// Whether the ports that a container was told to be its own are those that it has by the plan for `service`.
pub(crate) fn has_its_slice(unit: &Unit, service: &Service) -> bool {
    let same_number = unit.service.replicas.max(1) == service.replicas.max(1);
    !divides_ports(service) || (same_number && unit.slot <= service.replicas)
}

/// What netd is to make of each container.
pub(crate) fn states<'a>(
    units: impl Iterator<Item = &'a Unit>,
    plan: Option<&Plan>,
) -> BTreeMap<String, balance::State> {
    // A service without any container has an endpoint all the same.
    let services = plan.into_iter().flat_map(|plan| &plan.services);
    let mut states: BTreeMap<String, balance::State> =
        services.map(|service| (service.name.clone(), balance::State::Down)).collect();
    states.extend(units.map(|unit| (unit.name().to_owned(), unit.balance_state())));
    states
}

impl Supervisor {
    /// The containers of a service.
    pub(super) fn replicas(&self, service: &str) -> Vec<&Unit> {
        self.units.iter().filter(|unit| unit.service.name == service).collect()
    }

    /// Tells netd what has become of containers, if anything has.
    pub(super) fn tell_netd(&mut self) {
        let states = states(self.units.iter(), self.plan.as_ref());
        if let Err(error) = self.wiring.tell_states(states) {
            tracing::warn!("{error}");
        }
    }

    /// Takes those away that were to go as soon as they are down. What cannot be is left for the end of the stack.
    pub(super) fn sweep(&mut self) -> bool {
        let is_used = |unit: &Unit| unit.run.is_some() || unit.held_by.is_some();
        let goes = |unit: &Unit| unit.standing == Standing::Retired && !is_used(unit);
        let gone: Vec<String> =
            self.units.iter().filter(|unit| goes(unit)).map(|unit| unit.name().to_owned()).collect();
        if gone.is_empty() || self.ending.is_some() {
            return false;
        }
        self.units.retain(|unit| !goes(unit));
        let directories = gone.iter().map(|name| spec::container_directory(&self.stack, name)).collect();
        let mut results = vec![self.hub.remove(directories), self.keep_images()];
        let remove = |plan: &mut Plan| {
            for name in &gone {
                let group = |endpoint: &&Endpoint| endpoint.service == *name;
                let Some(group) = plan.network.endpoints.iter().find(group).map(|e| e.group.clone()) else {
                    continue;
                };
                let others = plan.network.endpoints.iter().filter(|e| e.group == group && e.service != *name);
                // The last one of a service is what others are made like.
                if others.count() > 0 || plan.services.iter().all(|service| service.name != group) {
                    plan.network.endpoints.retain(|endpoint| endpoint.service != *name);
                }
            }
        };
        if let Some(next) = &mut self.next {
            remove(&mut next.up.plan);
        }
        if let Some(plan) = &mut self.plan {
            remove(plan);
            results.push(self.wiring.apply(plan, &mut self.hub));
        }
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!("remove the containers {}: {error}", gone.join(", "));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use network::plan::{Attachment, EndpointRequest, NetworkRequest, allocate};

    use super::*;
    use crate::supervisor::unit::tests::{run, unit};

    /// Containers with these slots, all as wanted.
    fn there(states: &[(u16, balance::State)]) -> Vec<Present> {
        states.iter().map(|(slot, state)| Present { slot: *slot, same: true, state: *state }).collect()
    }

    #[test]
    fn the_lowest_slots_are_taken_and_the_highest_given_up() {
        use balance::State::Ready;
        let three = there(&[(1, Ready), (2, Ready), (4, Ready)]);
        let fewer = slots(2, &three, &[], false);
        assert_eq!((fewer.kept, fewer.surplus, fewer.fresh), (vec![1, 2], vec![4], vec![]));
        let more = slots(5, &three, &[3], false);
        assert_eq!((more.kept, more.surplus, more.fresh), (vec![1, 2, 4], vec![], vec![5, 6]));
        assert_eq!(slots(2, &[], &[], false).fresh, [1, 2]);
        assert_eq!(slots(0, &three, &[], false).surplus, [1, 2, 4]);
    }

    #[test]
    fn those_that_do_not_work_go_first() {
        use balance::State::{Down, Ready, Starting, Unhealthy};
        let present = there(&[(1, Unhealthy), (2, Starting), (3, Ready), (4, Down)]);
        for (wanted, kept) in [(1, vec![3]), (2, vec![2, 3]), (3, vec![1, 2, 3]), (4, vec![1, 2, 3, 4])] {
            assert_eq!(slots(wanted, &present, &[], false).kept, kept);
        }
    }

    #[test]
    fn outdated_ones_make_room_or_wait_for_their_successors() {
        let mut present = there(&[(1, balance::State::Ready), (2, balance::State::Ready)]);
        present[0].same = false;
        let decided = slots(2, &present, &[], false);
        assert_eq!((decided.outdated, decided.fresh), (vec![1], vec![1]), "its slot is free when it is down");
        let decided = slots(3, &present, &[], true);
        assert_eq!((decided.outdated, decided.kept, decided.fresh), (vec![1], vec![2], vec![]));
    }

    fn planned(services: &[&str]) -> NetworkPlan {
        let endpoint = |name: &&str| EndpointRequest {
            service: (*name).to_owned(),
            attachments: vec![Attachment {
                network: "n".into(),
                aliases: vec!["alias".into()],
                ..Attachment::default()
            }],
            ..EndpointRequest::default()
        };
        let endpoints: Vec<EndpointRequest> = services.iter().map(endpoint).collect();
        let network = NetworkRequest { name: "n".into(), ..NetworkRequest::default() };
        allocate(&[network], &endpoints, &[]).unwrap()
    }

    fn names(plan: &NetworkPlan) -> Vec<&str> {
        plan.endpoints.iter().map(|endpoint| endpoint.service.as_str()).collect()
    }

    #[test]
    fn endpoints_follow_the_slots() {
        let mut plan = planned(&["web", "db"]);
        let web = plan.endpoints[0].clone();
        place(&mut plan, "web", &["web".into(), "web-3".into()]).unwrap();
        assert_eq!(names(&plan), ["web", "db", "web-3"]);
        assert_eq!(plan.endpoints[0], web, "who stays is not moved");
        place(&mut plan, "web", &["web-3".into()]).unwrap();
        assert_eq!(names(&plan), ["db", "web-3"]);
        assert_eq!(plan.endpoints[1].interfaces[0].aliases, ["web-3", "alias"]);
        place(&mut plan, "web", &[]).unwrap();
        assert_eq!(names(&plan), ["db", "web-3"], "what later ones are made like");
        // By a model that none of those that are there is like.
        let mut model = web.clone();
        model.interfaces[0].aliases = vec!["web".into(), "new".into()];
        add_like(&mut plan, &model, "web-4").unwrap();
        let added = plan.endpoints.last().unwrap();
        assert!(added.group == "web" && added.interfaces[0].aliases == ["web-4", "new"], "{added:?}");
        let addresses: std::collections::BTreeSet<Ipv4Addr> =
            plan.endpoints.iter().map(|endpoint| endpoint.interfaces[0].address).collect();
        assert_eq!(addresses.len(), 3, "each has its own");
    }

    #[test]
    fn an_endpoint_stays_as_long_as_its_networks_do() {
        let running = planned(&["web"]);
        let mut plan = planned(&["web", "db"]);
        assert!(can_stay(&running.endpoints[0], &running, &plan));
        plan.networks[0].mtu = Some(1400);
        assert!(!can_stay(&running.endpoints[0], &running, &plan));
        plan.networks.clear();
        assert!(!can_stay(&running.endpoints[0], &running, &plan));
    }

    #[test]
    fn a_service_is_ready_when_all_of_it_is() {
        let top = tempfile::tempdir().unwrap();
        let mut first = unit(top.path(), "");
        let mut second = unit(top.path(), "");
        let now = Instant::now();
        let ready = |first: &Unit, second: &Unit| {
            readiness(&[first, second], Condition::Started).map_err(|unit| unit.failure.is_some())
        };
        assert_eq!(readiness(&[], Condition::Started).ok(), Some(true), "nobody is waited for");
        assert_eq!(ready(&first, &second), Err(false), "nobody wants them");
        first.want();
        second.want();
        first.started(run(now));
        assert_eq!(ready(&first, &second), Ok(false));
        second.standing = Standing::Trial;
        assert_eq!(ready(&first, &second), Ok(true), "one that has yet to show what it is does not count");
        second.standing = Standing::Current;
        second.failure = Some(crate::RemoteError::message("no"));
        assert_eq!(ready(&first, &second), Err(true));
        second.give_up();
        assert_eq!(ready(&first, &second), Ok(true), "one that was stopped does not count");
    }
}
