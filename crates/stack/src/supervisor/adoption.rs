//! How a plan takes effect: what stays, what goes first, what comes.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use image::{Digest, Hold, Image};
use network::plan::{Endpoint, Interface, NetworkPlan, replica_name};

use super::connection::Pending;
use super::direct;
use super::fleet::{self, Present};
use super::logs::Log;
use super::rolling::Rolling;
use super::unit::{Standing, Unit};
use super::{Purpose, Supervisor, shared};
use crate::control::{Notice, Recreate, Scale, Up, UpOptions};
use crate::origin::Origin;
use crate::plan::{NetworkMode, Plan, SecretSource, Service};
use crate::remote::{Context, RemoteError};
use crate::spec;

/// A change of the plan that waits for its turn.
#[derive(Debug)]
pub(super) enum Change {
    /// Another plan.
    Up(Box<Up>),
    /// Other numbers of replicas.
    Scale(Scale),
}

/// A plan that takes effect when what it replaces is down.
#[derive(Debug)]
pub(super) struct Next {
    /// Its network plan has an endpoint for each container that is to be there then.
    pub(super) up: Box<Up>,
    /// The connection that asked for it.
    by: u64,
    /// Containers to be made: service and slot.
    fresh: Vec<(String, u16)>,
    /// What the endpoints of services are like whose containers are replaced one by one.
    models: BTreeMap<String, Endpoint>,
}

/// What a new plan means for what is there.
#[derive(Debug, Default)]
struct Decision {
    /// For each unit.
    standings: Vec<Standing>,
    fresh: Vec<(String, u16)>,
    models: BTreeMap<String, Endpoint>,
    warnings: Vec<String>,
}

impl Supervisor {
    /// Changes the plan, now or when the changes before have been made.
    pub(super) fn change(&mut self, id: u64, change: Change) -> Result<(), RemoteError> {
        if self.next.is_some() || self.rolling.is_some() {
            let (services, wait) = match &change {
                Change::Up(up) => (concerned(up), up.wait),
                Change::Scale(scale) => (scale.counts.keys().cloned().collect(), false),
            };
            self.wait_for(id, Pending::Up { services, wait });
            self.queued.push_back((id, change));
            return Ok(());
        }
        match change {
            Change::Up(up) => self.up(id, up),
            Change::Scale(scale) => {
                let up = self.scaled(scale)?;
                self.up(id, Box::new(up))
            }
        }
    }

    /// The plan in force with other numbers of replicas.
    fn scaled(&self, Scale { counts, groups, no_deps }: Scale) -> Result<Up, RemoteError> {
        let mut plan = self.plan.clone().ok_or_else(|| RemoteError::message("there is no plan"))?;
        for (name, count) in &counts {
            self.known(name)?;
            let service = plan.services.iter_mut().find(|service| service.name == *name);
            let Some(service) = service else {
                return Err(RemoteError::message(format!("`{name}` is a container, not a service"))
                    .or_hint("the number of containers is a service's"));
            };
            service.replicas = *count;
        }
        for mut group in groups {
            let model = plan.network.endpoints.iter().find(|endpoint| endpoint.group == group.service);
            let links = model.map_or(&[][..], |model| &model.interfaces);
            // The file may have changed since.
            group.addresses.retain(|at| links.iter().any(|link| link.network == at.network));
            if plan.network.groups.iter().all(|known| known.service != group.service) {
                plan.network.groups.push(group);
            }
        }
        Ok(Up {
            plan,
            images: self.images.clone(),
            secrets: self.secrets.clone(),
            services: counts.keys().cloned().collect(),
            wait: false,
            strict: false,
            rolling: false,
            options: UpOptions { no_deps, files: self.files.clone(), ..UpOptions::default() },
        })
    }

    fn up(&mut self, id: u64, mut up: Box<Up>) -> Result<(), RemoteError> {
        // The command has provided the images of those that it is about; the others go on with what they have.
        let provided: Vec<String> = up.images.keys().cloned().collect();
        for (service, image) in &self.images {
            up.images.entry(service.clone()).or_insert_with(|| image.clone());
        }
        self.check(&up, &provided)?;
        let Decision { standings, fresh, models, warnings } = self.decide(&mut up, &provided)?;
        for warning in warnings {
            self.notify(id, Notice::Warning(warning));
        }
        let (now, timeout) = (Instant::now(), up.options.timeout);
        for (unit, standing) in self.units.iter_mut().zip(standings) {
            let was = std::mem::replace(&mut unit.standing, standing);
            match standing {
                Standing::Replaced { .. } | Standing::Retired => {
                    unit.give_up();
                    if let Some(seconds) = timeout {
                        unit.limit_stop(Duration::from_secs(seconds.into()), now);
                    }
                }
                // It was on its way out, and is needed again.
                Standing::Current if was == Standing::Retired => unit.want(),
                Standing::Current | Standing::Trial | Standing::Outdated => {}
            }
        }
        self.restart_partners_of_replaced();
        let services = concerned(&up);
        let wait = up.wait;
        self.next = Some(Next { up, by: id, fresh, models });
        self.wait_for(id, Pending::Up { services, wait });
        Ok(())
    }

    /// Nothing is stopped for a plan that cannot be carried out.
    fn check(&self, up: &Up, provided: &[String]) -> Result<(), RemoteError> {
        let concerned = concerned(up);
        let is_meant =
            |service: &&Service| [&concerned, provided].iter().any(|names| names.contains(&service.name));
        for service in up.plan.services.iter().filter(is_meant) {
            let (image, _) = self.image(&service.name, up.images.get(&service.name))?;
            let process = spec::process(service, &image).map(drop);
            process
                .and_then(|()| spec::stop_signal(service, &image).map(drop))
                .context(|| format!("cannot start service `{}`", service.name))?;
        }
        if let Some(error) = direct::unconfined(&up.plan).filter(|_| up.strict) {
            return Err(error.or_hint("without `--strict` this is a warning"));
        }
        let on_host = up.plan.services.iter().find(|service| service.network_mode == NetworkMode::Host);
        if let Some(service) = on_host.filter(|_| !self.hub.on_host) {
            let message = format!("service `{}` is to have the host's network", service.name);
            return Err(RemoteError::message(message)
                .caused_by("the stack was started without any service that has it")
                .or_hint("`inception-run down` first, then `inception-run up`"));
        }
        let limits: Vec<_> = up.plan.services.iter().map(spec::limits).collect::<Result<_, _>>()?;
        match self.delegation.shortfall(&limits) {
            Some(shortfall) if up.strict => {
                Err(RemoteError::message(shortfall).or_hint("without `--strict` this is a warning"))
            }
            _ => Ok(()),
        }
    }

    /// Decides what becomes of each container, and makes the endpoints of `up`'s network plan those of the containers
    /// that will be there.
    fn decide(&self, up: &mut Up, provided: &[String]) -> Result<Decision, RemoteError> {
        let mut network = std::mem::take(&mut up.plan.network);
        let nothing = NetworkPlan::default();
        let running = self.plan.as_ref().map_or(&nothing, |plan| &plan.network);
        let planned = |name: &str| up.plan.services.iter().find(|service| service.name == name);
        let models: BTreeMap<String, Endpoint> = network
            .endpoints
            .iter()
            .rev()
            .map(|endpoint| (endpoint.group.clone(), endpoint.clone()))
            .collect();
        // What is there keeps its addresses, and so has to be in the plan while these are given.
        let has_own = |unit: &&Unit| planned(&unit.service.name).is_some_and(|s| s.network_mode.is_own());
        for unit in self.units.iter().filter(has_own) {
            fleet::add(&mut network, &unit.service.name, unit.name())?;
        }
        for container in self.one_off_containers() {
            let known = endpoint(&network, container).is_some();
            let there = endpoint(running, container).filter(|e| fleet::can_stay(e, running, &network));
            network.endpoints.extend(there.filter(|_| !known).cloned());
        }
        network.keep_addresses(running)?;
        let mut decision = Decision {
            standings: vec![Standing::Replaced { again: false }; self.units.len()],
            ..Decision::default()
        };
        for service in &up.plan.services {
            let is_meant = provided.contains(&service.name);
            self.decide_service(service, up, is_meant, running, &mut network, &mut decision)?;
        }
        decision.models = models;
        let names = decision.fresh.iter().map(|(service, slot)| (service, replica_name(service, *slot)));
        for (service, name) in names.filter(|(service, name)| *service != name) {
            if planned(&name).is_some() {
                let text = format!("replica {name} of service `{service}` has the name of another service");
                return Err(RemoteError::message(text).or_hint("give that service another name"));
            }
        }
        up.plan.network = network;
        Ok(decision)
    }

    fn decide_service(
        &self,
        service: &Service,
        up: &Up,
        is_meant: bool,
        running: &NetworkPlan,
        network: &mut NetworkPlan,
        decision: &mut Decision,
    ) -> Result<(), RemoteError> {
        let name = service.name.as_str();
        let is_unchanged = |unit: &Unit| {
            service.config_hash == unit.service.config_hash
                && up.images.get(name) == Some(&unit.image_id)
                && secrets_of(service, &up.secrets) == unit.secrets
        };
        // What the command is not about stays as it is, and as many.
        let recreate = if is_meant { recreate(up, name) } else { Recreate::Never };
        let is_same = |unit: &Unit| {
            let stays = match recreate {
                Recreate::Changed => is_unchanged(unit),
                Recreate::Always => false,
                Recreate::Never => true,
            };
            // Even one that is to stay cannot, where its links go.
            stays
                && service
                    .network_mode
                    .owner(unit.name())
                    .is_none_or(|owner| links(running, owner) == links(network, owner))
                && fleet::has_its_slice(unit, service)
        };
        let is_going = |unit: &Unit| {
            let stops = unit.run.as_ref().is_none_or(|run| run.kill_at.is_some());
            unit.standing == Standing::Retired && (stops || !is_same(unit))
        };
        let (going, there): (Vec<&Unit>, Vec<&Unit>) =
            self.replicas(name).into_iter().partition(|unit| is_going(unit));
        let busy: Vec<u16> = going.iter().map(|unit| unit.slot).collect();
        let changed: Vec<&&Unit> = there.iter().filter(|unit| unit.run.is_some() && !is_same(unit)).collect();
        let alone = changed.iter().find_map(|unit| alone(unit, service, running, network));
        if let Some(why) = alone.filter(|_| up.rolling) {
            decision.warnings.push(format!(
                "service `{name}` is stopped before it is replaced: two of it cannot run, because {why}"
            ));
        }
        let rolls = up.rolling && !changed.is_empty() && alone.is_none();
        let present =
            |unit: &&Unit| Present { slot: unit.slot, same: is_same(unit), state: unit.balance_state() };
        let present: Vec<Present> = there.iter().map(present).collect();
        let wanted = match is_meant {
            true => service.replicas,
            false => present.len().try_into().unwrap_or(u16::MAX),
        };
        let slots = fleet::slots(wanted, &present, &busy, rolls);
        let mut stays = [slots.kept.as_slice(), &slots.surplus, &slots.fresh, &busy].concat();
        for (unit, standing) in self.units.iter().zip(&mut decision.standings) {
            if unit.service.name != name {
                continue;
            }
            let outdated = slots.outdated.contains(&unit.slot);
            *standing = match outdated {
                true if rolls => Standing::Outdated,
                true => Standing::Replaced { again: slots.fresh.contains(&unit.slot) },
                false if slots.kept.contains(&unit.slot) => Standing::Current,
                false => Standing::Retired,
            };
            if *standing == Standing::Outdated {
                stays.push(unit.slot);
            }
            // Those go on with what they have, as long as they are there.
            let goes_on = *standing == Standing::Outdated || busy.contains(&unit.slot);
            let old =
                endpoint(running, unit.name()).filter(|e| goes_on && fleet::can_stay(e, running, network));
            let old = old.cloned();
            let planned = network.endpoints.iter_mut().find(|endpoint| endpoint.service == unit.name());
            if let (Some(planned), Some(old)) = (planned, old) {
                *planned = old;
            }
        }
        let names: Vec<String> = stays.iter().map(|slot| replica_name(name, *slot)).collect();
        if service.network_mode.is_own() {
            fleet::place(network, name, &names)?;
        }
        decision.fresh.extend(slots.fresh.into_iter().map(|slot| (name.to_owned(), slot)));
        Ok(())
    }

    /// Names of the containers of `run`.
    pub(super) fn one_off_containers(&self) -> impl Iterator<Item = &str> {
        self.processes.values().filter_map(|purpose| match purpose {
            Purpose::Run { container, .. } => Some(container.as_str()),
            Purpose::Exec { .. } => None,
        })
    }

    /// Makes the next plan the plan, once what it replaces is down. True when something changed.
    pub(super) fn switch_plan(&mut self) -> bool {
        let is_used = |unit: &Unit| unit.run.is_some() || unit.held_by.is_some();
        let blocks = |unit: &Unit| matches!(unit.standing, Standing::Replaced { .. }) && is_used(unit);
        if self.units.iter().any(blocks) {
            return false;
        }
        let Some(next) = self.next.take() else { return false };
        if let Err(error) = self.adopt(next) {
            for unit in &mut self.units {
                // What is down is still there to be started, if somebody asks for it.
                unit.recreate |= matches!(unit.standing, Standing::Replaced { .. });
                if unit.standing != Standing::Retired {
                    unit.standing = Standing::Current;
                }
            }
            for id in self.waiting(|pending| matches!(pending, Pending::Up { .. })) {
                self.wait_done(id);
                self.notify(id, Notice::Failed(error.clone()));
            }
            // Theirs were told, too.
            self.queued.clear();
        }
        true
    }

    /// Begins the change that has waited the longest, once those before have been made. True when something changed.
    pub(super) fn next_change(&mut self) -> bool {
        if self.next.is_some() || self.rolling.is_some() {
            return false;
        }
        let Some((id, change)) = self.queued.pop_front() else { return false };
        if let Err(error) = self.change(id, change) {
            self.wait_done(id);
            self.notify(id, Notice::Failed(error));
        }
        true
    }

    fn adopt(&mut self, next: Next) -> Result<(), RemoteError> {
        let Next { up, by, fresh, models } = next;
        let limits: Vec<_> = up.plan.services.iter().map(spec::limits).collect::<Result<_, _>>()?;
        if let Some(shortfall) = self.delegation.shortfall(&limits) {
            for id in self.waiting(|pending| matches!(pending, Pending::Up { .. })) {
                self.notify(id, Notice::Warning(shortfall.clone()));
            }
        }
        // What may fail comes before anything of the present state is given up.
        let mut made = Vec::new();
        for service in &up.plan.services {
            for (_, slot) in fresh.iter().filter(|(name, _)| *name == service.name) {
                made.push(self.new_unit(service, *slot, &up.images, &up.secrets)?);
            }
        }
        let services = concerned(&up);
        let starts = !up.options.no_start;
        for unit in made.iter_mut().filter(|unit| starts && unit.is_among(&services)) {
            unit.want();
        }
        let replaced = |unit: &Unit| matches!(unit.standing, Standing::Replaced { .. });
        let renewed = self.units.iter().filter(|unit| unit.standing == Standing::Replaced { again: true });
        let renewed: Vec<String> = renewed.map(|unit| unit.service.name.clone()).collect();
        if let Some(error) = direct::unconfined(&up.plan) {
            for id in self.waiting(|pending| matches!(pending, Pending::Up { .. })) {
                self.notify(id, Notice::Warning(error.to_string()));
            }
        }
        self.open_way_out(&up.plan.network, up.strict)?;
        self.tell_states_with(&up.plan, &made);
        self.wiring.open(&services, &up.plan, &mut self.hub)?;
        let gone: Vec<String> = self
            .units
            .iter()
            .filter(|unit| replaced(unit) && made.iter().all(|other| other.name() != unit.name()))
            .map(|unit| spec::container_directory(&self.stack, unit.name()))
            .collect();
        if !gone.is_empty() {
            self.hub.remove(gone)?;
        }
        self.units.retain(|unit| !replaced(unit));
        for unit in self.units.iter_mut().filter(|unit| unit.standing == Standing::Current) {
            let planned = up.plan.services.iter().find(|service| service.name == unit.service.name);
            // Another configuration is not that of a container which was to stay all the same.
            if let Some(service) = planned.filter(|s| s.config_hash == unit.service.config_hash) {
                unit.service.clone_from(service);
            }
        }
        let rolls = self.units.iter().any(|unit| unit.standing == Standing::Outdated);
        self.rolling = rolls.then(|| Rolling::new(by, models));
        self.faults.retain(|name, _| endpoint(&up.plan.network, name).is_some());
        if let Err(error) = up.plan.port_choice.keep(&self.runtime) {
            tracing::warn!("write down the choice of ports: {error}");
        }
        self.files = up.options.files;
        self.stays |= !up.options.one_off;
        if let Err(error) = self.keep_origin(&up.plan) {
            tracing::warn!("write down where the stack comes from: {error}");
        }
        if let Err(error) = shared::keep(&self.runtime, &up.plan) {
            tracing::warn!("{error}");
        }
        (self.images, self.secrets, self.plan) = (up.images, up.secrets, Some(up.plan));
        self.take_in(made);
        self.keep_images()?;
        for unit in self.units.iter_mut().filter(|unit| unit.is_among(&services)) {
            unit.no_deps = up.options.no_deps;
        }
        if starts {
            self.want(&services);
            self.restart_dependants(&renewed);
        }
        Ok(())
    }

    /// Writes down which project the stack is of, and with it its volumes, for commands of other projects.
    fn keep_origin(&mut self, plan: &Plan) -> Result<(), RemoteError> {
        let origin = Origin { directory: plan.directory.clone(), files: self.files.clone() };
        origin.keep(&self.runtime)?;
        if plan.has_own_volumes() {
            let (path, content) = origin.beside_volumes(&self.stack)?;
            self.hub.write(path, content)?;
        }
        Ok(())
    }

    /// Wires the networks of `plan`. netd hears of the containers that are about to be there first.
    pub(super) fn wire(&mut self, plan: &Plan, made: &[Unit]) -> Result<(), RemoteError> {
        self.tell_states_with(plan, made);
        self.wiring.apply(plan, &mut self.hub)
    }

    /// Tells netd of all containers, those that are about to be there too.
    fn tell_states_with(&mut self, plan: &Plan, made: &[Unit]) {
        let states = fleet::states(self.units.iter().chain(made), Some(plan));
        if let Err(error) = self.wiring.tell_states(states) {
            tracing::warn!("{error}");
        }
    }

    /// Adds containers, in the order of the plan.
    pub(super) fn take_in(&mut self, made: Vec<Unit>) {
        self.units.extend(made);
        let Some(plan) = &self.plan else { return };
        self.units.sort_by_key(|unit| {
            (plan.services.iter().position(|service| service.name == unit.service.name), unit.slot)
        });
    }

    /// A container that does not run yet.
    pub(super) fn new_unit(
        &self,
        service: &Service,
        slot: u16,
        images: &BTreeMap<String, String>,
        secrets: &BTreeMap<String, String>,
    ) -> Result<Unit, RemoteError> {
        let (image, image_id) = self.image(&service.name, images.get(&service.name))?;
        let name = replica_name(&service.name, slot);
        let log = Log::open(&self.runtime, &name, &service.logging)
            .context(|| format!("open the log of service `{name}`"))?;
        let mut unit = Unit::new(service.clone(), slot, image, image_id, log)
            .context(|| format!("cannot start service `{name}`"))?;
        unit.secrets = secrets_of(service, secrets);
        Ok(unit)
    }

    /// Says to the store which images are in use, so that nobody deletes them: those of the containers, of the plan
    /// and of the plan that comes next.
    pub(super) fn keep_images(&self) -> Result<(), RemoteError> {
        let planned = self.images.values().chain(self.next.iter().flat_map(|next| next.up.images.values()));
        let planned = planned.map(|id| Ok(Hold::Image(Digest::from_str(id)?)));
        let containers = self.units.iter().map(|unit| {
            let container = format!("{}/{}", self.stack, unit.name());
            Ok(Hold::Container { image: unit.image.id.clone(), container })
        });
        Ok(self.store.use_only(planned.chain(containers).collect::<Result<_, image::Error>>()?)?)
    }

    fn image(&self, service: &str, id: Option<&String>) -> Result<(Image, String), RemoteError> {
        let missing =
            || RemoteError::message(format!("the image of service `{service}` is not in the store"));
        let id = id.ok_or_else(missing)?;
        let digest = Digest::from_str(id)?;
        let image = self.store.image_by_id(&digest)?.ok_or_else(missing)?;
        Ok((image, id.clone()))
    }
}

/// Why `unit`, which runs, and one with the configuration `service` cannot run at the same time, if so.
fn alone(unit: &Unit, service: &Service, running: &NetworkPlan, plan: &NetworkPlan) -> Option<&'static str> {
    let (old, new) = (endpoint(running, unit.name())?, endpoint(plan, unit.name())?);
    if !fleet::can_stay(old, running, plan) {
        return Some("its networks change");
    }
    fleet::obstacle(&unit.service, service, [old, new])
}

fn endpoint<'a>(plan: &'a NetworkPlan, container: &str) -> Option<&'a Endpoint> {
    plan.endpoints.iter().find(|endpoint| endpoint.service == container)
}

/// What of an endpoint cannot change while its container runs.
fn links<'a>(plan: &'a NetworkPlan, container: &str) -> Option<&'a [Interface]> {
    endpoint(plan, container).map(|endpoint| endpoint.interfaces.as_slice())
}

/// Values of the secrets of a service that come from variables. They are in no plan, and so in no hash of one.
fn secrets_of(service: &Service, values: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let names = service.secrets.iter().filter_map(|secret| match &secret.source {
        SecretSource::Environment(name) => Some(name),
        SecretSource::File(_) | SecretSource::Content(_) => None,
    });
    names.filter_map(|name| Some((name.clone(), values.get(name)?.clone()))).collect()
}

/// The services that an `up` is about.
fn concerned(up: &Up) -> Vec<String> {
    up.plan.concerned(&up.services, up.options.no_deps)
}

/// Which containers of a service an `up` replaces.
fn recreate(up: &Up, service: &str) -> Recreate {
    let is_named = up.services.is_empty() || up.services.iter().any(|name| name == service);
    match up.options.recreate {
        Recreate::Changed | Recreate::Always if up.options.no_deps && !is_named => Recreate::Never,
        Recreate::Always if !is_named => Recreate::Changed,
        recreate => recreate,
    }
}
