//! How containers are stopped: dependants first, those drained whose connections others can take, and the others when
//! they have answered what they were asked.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use network::balance;

use super::Supervisor;
use super::hooks::Turn;
use super::unit::{Parting, Standing, Unit};
use crate::control::State;
use crate::event::What;

/// How long a container that nobody takes over from may take to answer what it has been asked; who waits for a restart
/// waits as long.
const ANSWER: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Drains what has to be, and sends stop signals, dependants first.
    pub(super) fn stop_what_is_not_wanted(&mut self) -> bool {
        let now = Instant::now();
        let mut draining = Vec::new();
        let mut finishing = Vec::new();
        let mut stopping = Vec::new();
        let mut leaving = Vec::new();
        for (index, unit) in self.units.iter().enumerate() {
            let Some(run) = &unit.run else { continue };
            let stops = run.kill_at.is_some() || run.is_at(Turn::Stop);
            if unit.wanted || stops || self.has_running_dependant(&unit.service.name) {
                continue;
            }
            match unit.parting {
                None if self.is_led_to(unit) => {
                    match others_take_over(unit, &self.replicas(&unit.service.name)) {
                        true => draining.push(index),
                        false => finishing.push(index),
                    }
                }
                Some(parting) if parting.until > now && self.ending.is_none() => {}
                _ if unit.service.pre_stop.is_empty() => stopping.push(index),
                _ => leaving.push(index),
            }
        }
        for index in draining.iter().copied() {
            let unit = &mut self.units[index];
            unit.parting = Some(Parting { until: now + unit.grace(), drains: true });
            unit.state = State::Draining;
            self.tell_state(index, None);
        }
        self.let_finish(&finishing, now);
        for index in leaving.iter().copied() {
            self.drop_hooks(index);
            self.begin_farewell(index);
        }
        if draining.is_empty() && finishing.is_empty() && stopping.is_empty() {
            return !leaving.is_empty();
        }
        self.send_stop(&stopping);
        true
    }

    /// Lets containers answer what they have been asked, and leads nobody to them any more.
    fn let_finish(&mut self, finishing: &[usize], now: Instant) {
        if finishing.is_empty() {
            return;
        }
        for index in finishing {
            let unit = &mut self.units[*index];
            unit.parting = Some(Parting { until: now + unit.grace().min(ANSWER), drains: false });
        }
        // First: who comes after that has not been answered, either.
        self.tell_netd();
        for index in finishing {
            let name = self.units[*index].name();
            if let Err(error) = self.wiring.await_rest(name) {
                tracing::warn!("let service `{name}` finish: {error}");
            }
        }
    }

    /// Sends containers their stop signals, and sees to it that SIGKILL follows.
    pub(super) fn send_stop(&mut self, stopping: &[usize]) {
        let now = Instant::now();
        for index in stopping.iter().copied() {
            self.drop_hooks(index);
            let unit = &mut self.units[index];
            let kill_at = now + unit.grace();
            if let Some(run) = &mut unit.run {
                run.kill_at = Some(kill_at);
            }
            unit.state = State::Stopping;
        }
        // Before the signals: no connection is to be led to one that is about to end.
        self.tell_netd();
        for index in stopping.iter().copied() {
            let unit = &self.units[index];
            let Some(run) = &unit.run else { continue };
            if let Err(error) = sys::process::pidfd_kill(run.pidfd.as_fd(), unit.stop_signal) {
                tracing::warn!("stop service `{}`: {error}", unit.name());
            }
            // Who stands still cannot end by itself.
            if let Err(error) = self.release(index) {
                tracing::warn!("unpause service `{}`: {error}", self.units[index].name());
            }
            self.tell_state(index, None);
            self.tell_event_of(index, What::Stopping);
        }
    }

    /// netd has no connection of this container any more.
    pub(super) fn drained(&mut self, container: &str) {
        self.parted(container, true);
    }

    /// Nobody waits for an answer of this container any more.
    pub(super) fn at_rest(&mut self, container: &str) {
        self.parted(container, false);
    }

    /// News for one that parts from its clients in this way; it may be late, and the container part in the other.
    fn parted(&mut self, container: &str, drains: bool) {
        let unit = self.units.iter_mut().find(|unit| unit.name() == container);
        let parting = unit.and_then(|unit| unit.parting.as_mut());
        if let Some(parting) = parting.filter(|parting| parting.drains == drains) {
            parting.until = parting.until.min(Instant::now());
        }
    }

    /// Whether a service that is also being stopped still depends on `service`.
    fn has_running_dependant(&self, service: &str) -> bool {
        self.units.iter().any(|unit| {
            unit.run.is_some() && !unit.wanted && unit.service.depends_on.iter().any(|d| d.service == service)
        })
    }

    /// Whether connections come to a container through netd, and may have an end of their own.
    fn is_led_to(&self, unit: &Unit) -> bool {
        let name = &unit.service.name;
        let has_group = |plan: &crate::plan::Plan| plan.network.groups.iter().any(|g| g.service == *name);
        let is_led_to = !unit.service.ports.is_empty() || self.plan.as_ref().is_some_and(has_group);
        let is_paused = unit.run.as_ref().is_some_and(|run| run.pause.is_some());
        let ends = self.ending.is_some() || unit.standing == Standing::Trial || is_paused;
        is_led_to && !ends && self.wiring.netd().is_some()
    }
}

/// Whether another container of the service gets its connections when `unit` gets none any more. Who waits for a
/// restart waits less without.
fn others_take_over(unit: &Unit, replicas: &[&Unit]) -> bool {
    !unit.pending
        && replicas.iter().any(|other| {
            other.name() != unit.name() && other.wanted && other.balance_state() == balance::State::Ready
        })
}
