//! Containers that have the PID or the IPC namespace of another: they start in that of one that runs, and with it again.

use super::Supervisor;
use super::unit::{Standing, Unit};
use crate::hub::Partners;
use crate::plan::Service;
use crate::remote::RemoteError;

impl Supervisor {
    /// The containers whose namespaces one of `service` is to have; `None` while one of them is about to start.
    ///
    /// # Errors
    /// When one does not run, and nobody is about to start it.
    pub(super) fn partners(&self, service: &Service) -> Result<Option<Partners<i32>>, RemoteError> {
        let sharing = &service.sharing;
        let mut found = Partners::default();
        for (owner, place) in [(&sharing.pid, &mut found.pid), (&sharing.ipc, &mut found.ipc)] {
            let Some(owner) = owner else { continue };
            *place = self.first_process(owner);
            if place.is_some() {
                continue;
            }
            if self.replicas(owner).into_iter().any(is_coming) {
                return Ok(None);
            }
            let text = format!("service `{owner}`, whose namespace it has, is not running");
            return Err(
                RemoteError::message(text).or_hint(format!("`inception-run start {owner}` starts it"))
            );
        }
        Ok(Some(found))
    }

    /// That of the first container of a service that runs and is not about to end.
    fn first_process(&self, service: &str) -> Option<i32> {
        let runs = |unit: &&Unit| unit.standing != Standing::Retired && unit.wanted;
        let runs = self.replicas(service).into_iter().filter(runs).filter_map(|unit| unit.run.as_ref());
        runs.filter(|run| run.kill_at.is_none()).map(|run| run.pid).next()
    }

    /// Has those that share a namespace with a container that is about to be replaced end before it, and start again with
    /// the one that follows.
    pub(super) fn restart_partners_of_replaced(&mut self) {
        let goes = |unit: &&Unit| matches!(unit.standing, Standing::Replaced { .. }) && unit.run.is_some();
        let going: Vec<String> =
            self.units.iter().filter(goes).map(|unit| unit.service.name.clone()).collect();
        let shares =
            |unit: &Unit| unit.service.sharing.owners().any(|owner| going.iter().any(|name| name == owner));
        for unit in &mut self.units {
            if unit.standing == Standing::Current && unit.run.is_some() && unit.wanted && shares(unit) {
                unit.restart();
            }
        }
    }

    /// Restarts those whose partner has ended and is there again, or is about to be. True when something changed.
    pub(super) fn follow_partners(&mut self) -> bool {
        let follows = |unit: &Unit| {
            let lost = match &unit.run {
                Some(run) => run.kill_at.is_none() && run.partners.iter().any(|pid| !self.runs(*pid)),
                None => unit.bereft_of.is_some_and(|pid| !self.runs(pid)),
            };
            let comes = |owner: &str| {
                self.first_process(owner).is_some() || self.replicas(owner).into_iter().any(is_coming)
            };
            unit.wanted && !unit.pending && lost && unit.service.sharing.owners().all(comes)
        };
        let found: Vec<usize> = (0..self.units.len()).filter(|at| follows(&self.units[*at])).collect();
        for index in &found {
            let unit = &mut self.units[*index];
            match unit.run {
                Some(_) => unit.restart(),
                None => unit.want(),
            }
        }
        !found.is_empty()
    }

    fn runs(&self, pid: i32) -> bool {
        self.units.iter().any(|unit| unit.run.as_ref().is_some_and(|run| run.pid == pid))
    }
}

/// Whether a container is about to be started.
fn is_coming(unit: &Unit) -> bool {
    unit.pending || unit.restart_at.is_some()
}
