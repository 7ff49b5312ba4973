//! How containers are stopped: dependants first, and those drained whose connections others can take.

use std::os::fd::AsFd;
use std::time::Instant;

use network::balance;

use super::Supervisor;
use super::hooks::Turn;
use super::unit::{Standing, Unit};
use crate::control::State;
use crate::event::What;

impl Supervisor {
    /// Drains what has to be, and sends stop signals, dependants first.
    pub(super) fn stop_what_is_not_wanted(&mut self) -> bool {
        let now = Instant::now();
        let mut draining = Vec::new();
        let mut stopping = Vec::new();
        let mut leaving = Vec::new();
        for (index, unit) in self.units.iter().enumerate() {
            let Some(run) = &unit.run else { continue };
            let stops = run.kill_at.is_some() || run.is_at(Turn::Stop);
            if unit.wanted || stops || self.has_running_dependant(&unit.service.name) {
                continue;
            }
            match unit.drained_by {
                None if self.is_worth_draining(unit) => draining.push(index),
                Some(at) if at > now && self.ending.is_none() => {}
                _ if unit.service.pre_stop.is_empty() => stopping.push(index),
                _ => leaving.push(index),
            }
        }
        for index in draining.iter().copied() {
            let unit = &mut self.units[index];
            unit.drained_by = Some(now + unit.grace());
            unit.state = State::Draining;
            self.tell_state(index, None);
        }
        for index in leaving.iter().copied() {
            self.drop_hooks(index);
            self.begin_farewell(index);
        }
        if draining.is_empty() && stopping.is_empty() {
            return !leaving.is_empty();
        }
        self.send_stop(&stopping);
        true
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
        let unit = self.units.iter_mut().find(|unit| unit.name() == container);
        if let Some(at) = unit.and_then(|unit| unit.drained_by.as_mut()) {
            *at = Instant::now().min(*at);
        }
    }

    /// Whether a service that is also being stopped still depends on `service`.
    fn has_running_dependant(&self, service: &str) -> bool {
        self.units.iter().any(|unit| {
            unit.run.is_some() && !unit.wanted && unit.service.depends_on.iter().any(|d| d.service == service)
        })
    }

    /// Whether connections come to a container through netd, and another one takes those to come. Who waits for a
    /// restart waits less without.
    fn is_worth_draining(&self, unit: &Unit) -> bool {
        let name = &unit.service.name;
        let has_group = |plan: &crate::plan::Plan| plan.network.groups.iter().any(|g| g.service == *name);
        let is_led_to = !unit.service.ports.is_empty() || self.plan.as_ref().is_some_and(has_group);
        let ends = self.ending.is_some() || unit.pending || unit.standing == Standing::Trial;
        is_led_to && !ends && self.wiring.netd().is_some() && others_take_over(unit, &self.replicas(name))
    }
}

/// Whether another container of the service gets its connections when `unit` gets none any more.
fn others_take_over(unit: &Unit, replicas: &[&Unit]) -> bool {
    replicas.iter().any(|other| {
        other.name() != unit.name() && other.wanted && other.balance_state() == balance::State::Ready
    })
}
