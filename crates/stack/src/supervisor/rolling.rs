//! Rolling replacement (`up --rolling`): a new container shows that it is ready before an old one goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use network::plan::{Endpoint, replica_name};

use super::Supervisor;
use super::fleet;
use super::unit::{Standing, Unit};
use crate::control::{Health, Notice};
use crate::plan::Service;
use crate::remote::RemoteError;

/// How long a container without a health check has to run until it counts as ready.
const STEADY: Duration = Duration::from_secs(1);
/// How long it may take until a new container runs: what it depends on may have to come back first.
const START: Duration = Duration::from_secs(60);

/// A replacement under way. How far it is shows in the standing of the containers.
#[derive(Debug)]
pub(super) struct Rolling {
    /// The connection that asked for it.
    by: u64,
    /// What the endpoints of the new containers are like, by service.
    models: BTreeMap<String, Endpoint>,
    /// When the new container is to run at the latest.
    deadline: Instant,
}

/// What is to be done next for a service.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A new container.
    Begin,
    /// One of the old ones goes.
    Retire,
}

/// What a new container has shown.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ready,
    /// Nothing yet; without any other event, look again at this moment.
    Wait(Option<Instant>),
    Failed,
    /// It did not run in time.
    Late,
    /// Somebody stopped it.
    Stopped,
}

impl Rolling {
    /// A replacement that `by` asked for.
    pub(super) fn new(by: u64, models: BTreeMap<String, Endpoint>) -> Self {
        Self { by, models, deadline: Instant::now() }
    }
}

/// The next step for a service that is to have `wanted` containers and has `new` ones that are ready and `old` ones
/// that are outdated: there is one more than wanted at the most, and never one less than there could be.
fn step(wanted: u16, new: usize, old: usize) -> Step {
    let wanted = usize::from(wanted);
    if new < wanted && new + old <= wanted { Step::Begin } else { Step::Retire }
}

/// What a new container has shown by `now`.
fn verdict(unit: &Unit, now: Instant, deadline: Instant) -> Verdict {
    if unit.failure.is_some() || (unit.exit_code.is_some() && !unit.pending) {
        return Verdict::Failed;
    }
    if !unit.wanted {
        return Verdict::Stopped;
    }
    match (&unit.run, unit.health()) {
        (None, _) if now >= deadline => Verdict::Late,
        (None, _) => Verdict::Wait(Some(deadline)),
        (Some(_), Some(Health::Healthy)) => Verdict::Ready,
        (Some(_), Some(Health::Unhealthy)) => Verdict::Failed,
        // Its check ends with a verdict of its own.
        (Some(_), Some(Health::Starting)) => Verdict::Wait(None),
        (Some(run), None) if now >= run.started + STEADY => Verdict::Ready,
        (Some(run), None) => Verdict::Wait(Some(run.started + STEADY)),
    }
}

impl Supervisor {
    /// Takes the next step of a replacement that its state allows. True when something changed.
    pub(super) fn roll(&mut self) -> bool {
        let Some(rolling) = &self.rolling else { return false };
        if let Some(index) = self.units.iter().position(|unit| unit.standing == Standing::Trial) {
            let unit = &self.units[index];
            let error = match verdict(unit, Instant::now(), rolling.deadline) {
                Verdict::Wait(_) => return false,
                Verdict::Ready => {
                    self.units[index].standing = Standing::Current;
                    return true;
                }
                Verdict::Failed => self.why_not(unit),
                Verdict::Late => RemoteError::message(format!(
                    "service `{}` did not start within {} s: what it depends on is not there",
                    unit.name(),
                    START.as_secs()
                )),
                Verdict::Stopped => RemoteError::message(format!("service `{}` was stopped", unit.name())),
            };
            self.abandon(error);
            return true;
        }
        let outdated = self.units.iter().find(|unit| unit.standing == Standing::Outdated);
        let Some(name) = outdated.map(|unit| unit.service.name.clone()) else {
            self.rolling = None;
            return true;
        };
        let count = |standing| self.replicas(&name).iter().filter(|unit| unit.standing == standing).count();
        // One goes at a time.
        if count(Standing::Retired) > 0 {
            return false;
        }
        let planned = self.plan.iter().flat_map(|plan| &plan.services).find(|service| service.name == name);
        let service = planned.cloned();
        let wanted = service.as_ref().map_or(0, |service| service.replicas);
        match (step(wanted, count(Standing::Current), count(Standing::Outdated)), service) {
            (Step::Begin, Some(service)) => {
                if let Err(error) = self.begin_trial(&service) {
                    self.abandon(error);
                }
            }
            _ => self.retire_one(&name),
        }
        true
    }

    /// When a replacement goes on without any event.
    pub(super) fn roll_next(&self) -> Option<Instant> {
        let rolling = self.rolling.as_ref()?;
        let trial = self.units.iter().find(|unit| unit.standing == Standing::Trial)?;
        match verdict(trial, Instant::now(), rolling.deadline) {
            Verdict::Wait(at) => at,
            _ => Some(Instant::now()),
        }
    }

    /// Makes a container of `service` as planned, beside those that are there.
    fn begin_trial(&mut self, service: &Service) -> Result<(), RemoteError> {
        let taken: Vec<u16> = self.replicas(&service.name).iter().map(|unit| unit.slot).collect();
        // The name of another service is no name for it.
        let is_free = |slot: &u16| {
            let name = replica_name(&service.name, *slot);
            name == service.name || self.replicas(&name).is_empty()
        };
        let slot = fleet::free_slots(&taken).find(is_free);
        let slot = slot.ok_or_else(|| RemoteError::message("there are too many containers"))?;
        let mut unit = self.new_unit(service, slot, &self.images, &self.secrets)?;
        unit.standing = Standing::Trial;
        unit.want();
        let mut plan = self.plan.clone().ok_or_else(|| RemoteError::message("there is no plan"))?;
        let rolling = self.rolling.as_mut();
        if let Some(rolling) = rolling {
            rolling.deadline = Instant::now() + START;
            if let Some(model) = rolling.models.get(&service.name) {
                fleet::add_like(&mut plan.network, model, unit.name())?;
            }
        }
        let made = vec![unit];
        self.wire(&plan, &made)?;
        self.plan = Some(plan);
        self.take_in(made);
        Ok(())
    }

    /// Lets go of the outdated container whose loss is the smallest.
    fn retire_one(&mut self, service: &str) {
        let outdated = self
            .units
            .iter_mut()
            .filter(|unit| unit.standing == Standing::Outdated && unit.service.name == service);
        if let Some(unit) =
            outdated.min_by_key(|unit| (u8::MAX - fleet::rank(unit.balance_state()), unit.slot))
        {
            unit.standing = Standing::Retired;
            unit.give_up();
        }
    }

    /// The new container is not what it should be: it goes, and the old ones stay, as if nothing else had been
    /// planned.
    fn abandon(&mut self, error: RemoteError) {
        let Some(rolling) = self.rolling.take() else { return };
        for unit in self.units.iter_mut().filter(|unit| unit.standing == Standing::Trial) {
            unit.standing = Standing::Retired;
            unit.give_up();
        }
        let outdated = self.units.iter_mut().filter(|unit| unit.standing == Standing::Outdated);
        let mut names: Vec<String> = Vec::new();
        for unit in outdated {
            unit.standing = Standing::Current;
            let service = &unit.service;
            let planned = self.plan.iter_mut().flat_map(|plan| &mut plan.services);
            if let Some(planned) = planned.into_iter().find(|planned| planned.name == service.name) {
                planned.clone_from(service);
            }
            self.images.insert(service.name.clone(), unit.image_id.clone());
            self.secrets.extend(unit.secrets.clone());
            if !names.contains(&service.name) {
                names.push(service.name.clone());
            }
        }
        let error =
            error.context(format!("cannot replace service `{}`: kept the old one", names.join("`, `")));
        tracing::warn!("{error}");
        self.wait_done(rolling.by);
        self.notify(rolling.by, Notice::Failed(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::health::Monitor;
    use crate::supervisor::unit::Run;
    use crate::supervisor::unit::tests::{run, unit};

    /// Plays the steps to their end; each is the numbers of new and old containers after it.
    fn played(wanted: u16, old: usize) -> Vec<(usize, usize)> {
        let (mut new, mut old) = (0, old);
        let mut states = Vec::new();
        while old > 0 {
            match step(wanted, new, old) {
                Step::Begin => new += 1,
                Step::Retire => old -= 1,
            }
            states.push((new, old));
        }
        states
    }

    #[test]
    fn a_new_one_comes_before_an_old_one_goes() {
        assert_eq!(played(1, 1), [(1, 1), (1, 0)]);
        assert_eq!(played(2, 2), [(1, 2), (1, 1), (2, 1), (2, 0)]);
        // More than before: all are gated. Fewer: those that are too many go first.
        assert_eq!(played(3, 1), [(1, 1), (2, 1), (3, 1), (3, 0)]);
        assert_eq!(played(1, 3), [(0, 2), (0, 1), (1, 1), (1, 0)]);
        assert_eq!(played(0, 2), [(0, 1), (0, 0)]);
    }

    #[test]
    fn what_a_new_one_has_to_show() {
        let top = tempfile::tempdir().unwrap();
        let mut unit = unit(top.path(), "restart = \"always\"");
        let now = Instant::now();
        let deadline = now + START;
        unit.want();
        assert_eq!(verdict(&unit, now, deadline), Verdict::Wait(Some(deadline)));
        assert_eq!(verdict(&unit, deadline, deadline), Verdict::Late);
        unit.started(run(now));
        assert_eq!(verdict(&unit, now, deadline), Verdict::Wait(Some(now + STEADY)));
        assert_eq!(verdict(&unit, now + STEADY, deadline), Verdict::Ready);
        unit.ended(1, now);
        assert_eq!(verdict(&unit, now, deadline), Verdict::Failed, "its policy gives it no second chance");
        unit.exit_code = None;
        let check = serde_json::json!({
            "test": { "tcp": 80 }, "interval": 1.0, "timeout": 1.0, "retries": 1, "start_period": 0.0, "start_interval": 1.0
        });
        let monitor = Monitor::new(serde_json::from_value(check).unwrap(), now);
        unit.started(Run { monitor: Some(monitor), ..run(now) });
        let shown = [
            (Health::Starting, Verdict::Wait(None)),
            (Health::Healthy, Verdict::Ready),
            (Health::Unhealthy, Verdict::Failed),
        ];
        for (health, expected) in shown {
            unit.run.as_mut().unwrap().monitor.as_mut().unwrap().health = health;
            assert_eq!(verdict(&unit, now + 2 * START, deadline), expected);
        }
        unit.give_up();
        assert_eq!(verdict(&unit, now, deadline), Verdict::Stopped);
    }
}
