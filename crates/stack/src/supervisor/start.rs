//! How containers are started: when everything is there that they depend on, out of what the plan and the image say.

use std::os::fd::AsFd;
use std::time::Instant;

use container::cgroup::{Cgroup, Resources};
use network::plan::NetworkPlan;

use super::direct::{self, Binds};
use super::health::Monitor;
use super::logs::Streams;
use super::unit::{Run, Unit};
use super::{Supervisor, fleet, memory, process};
use crate::control::{Health, State};
use crate::event::What;
use crate::plan::Service;
use crate::remote::{Context, RemoteError};
use crate::spec;

impl Supervisor {
    pub(super) fn start_what_is_ready(&mut self) -> bool {
        if self.next.is_some() || self.ending.is_some() {
            return false;
        }
        let mut changed = false;
        for index in 0..self.units.len() {
            let unit = &self.units[index];
            if !unit.pending || unit.run.is_some() || unit.held_by.is_some() {
                continue;
            }
            match self.dependencies(index) {
                Ok(true) => {
                    if let Err(error) = self.start(index) {
                        self.fail(index, error);
                    }
                    changed = true;
                }
                Ok(false) => {}
                Err(error) => {
                    if self.units[index].postpone(Instant::now()) {
                        self.tell_state(index, Some(error.to_string()));
                        self.tell_event_of(index, What::Failed { error: error.to_string() });
                    } else {
                        self.fail(index, error);
                    }
                    changed = true;
                }
            }
        }
        changed
    }

    /// Whether all dependencies of a service are there; an error when one never will be.
    pub(super) fn dependencies(&self, index: usize) -> Result<bool, RemoteError> {
        let mut ready = self.partners(&self.units[index].service)?.is_some();
        if self.units[index].no_deps {
            return Ok(ready);
        }
        for dependency in &self.units[index].service.depends_on {
            let replicas = self.replicas(&dependency.service);
            ready &= match fleet::readiness(&replicas, dependency.condition) {
                // `required: false`: what became of it has been told.
                Err(_) if dependency.optional => true,
                other => other.map_err(|unit| self.why_not(unit))?,
            };
        }
        Ok(ready)
    }

    /// Why a service is not what others need it to be, with what it said last.
    pub(super) fn why_not(&self, unit: &Unit) -> RemoteError {
        if let Some(failure) = &unit.failure {
            return failure.clone();
        }
        let name = unit.name();
        let monitor = unit.run.as_ref().and_then(|run| run.monitor.as_ref());
        let mut error = match (monitor, unit.exit_code) {
            (Some(monitor), _) if monitor.health != Health::Healthy => {
                let output = monitor.output.trim();
                let output = if output.is_empty() { "it printed nothing" } else { output };
                RemoteError::message(format!("service `{name}` is unhealthy"))
                    .caused_by(format!("its last health check failed: {output}"))
            }
            (None, Some(code)) => match unit.shortage {
                Some(shortage) => memory::report(name, shortage),
                None => RemoteError::message(format!("service `{name}` exited with status {code}")),
            },
            _ => RemoteError::message(format!("service `{name}` is not running")),
        };
        let lines: Vec<&str> = unit.log.recent().collect();
        if !lines.is_empty() {
            error = error.caused_by(format!("its last log lines:\n    {}", lines.join("\n    ")));
        }
        error.or_hint(format!("`inception-run logs {name}` shows all that it wrote"))
    }

    pub(super) fn fail(&mut self, index: usize, error: RemoteError) {
        let unit = &mut self.units[index];
        unit.pending = false;
        unit.state = if unit.exit_code.is_some() { State::Exited } else { State::Created };
        let error = error.context(format!("cannot start service `{}`", unit.name()));
        let detail = error.to_string();
        unit.failure = Some(error);
        self.tell_state(index, Some(detail.clone()));
        self.tell_event_of(index, What::Failed { error: detail });
    }

    fn start(&mut self, index: usize) -> Result<(), RemoteError> {
        self.open_ports(index)?;
        let plan = self.plan.as_ref().ok_or_else(|| RemoteError::message("there is no plan"))?;
        let unit = &self.units[index];
        self.check_ports_are_own(&unit.service)?;
        let partners = self.partners(&unit.service)?.unwrap_or_default();
        let from = self.ingredients(unit, unit.name(), &plan.network);
        let mut resolved = spec::resolve(&unit.service, &from)?;
        resolved.sandbox.asks_to_bind = direct::is_needed(&unit.service.ports);
        if unit.recreate {
            self.hub.remove(vec![spec::container_directory(&self.stack, unit.name())])?;
        }
        let streams = Streams::open(&unit.service, self.owner).context(|| "open its output".into())?;
        let stdio = streams.theirs.each_ref().map(AsFd::as_fd);
        let network = unit.service.network_mode.owner(unit.name()).map(str::to_owned);
        let unit = &self.units[index];
        let cgroup = self.service_cgroup(&unit.service, unit.name())?;
        let memory = cgroup.as_ref().and_then(|cgroup| memory::watch(cgroup, unit.name()));
        let born_in = cgroup.as_ref().map(AsFd::as_fd);
        // What `exec` and health checks are like: each replica has variables of its own.
        let process = resolved.sandbox.process.clone();
        let started =
            self.hub.start(resolved.sandbox, network, partners, born_in, stdio, &resolved.detached)?;
        let binds = match started.asks.map(Binds::new).transpose() {
            Ok(binds) => binds,
            Err(error) => {
                sys::process::pidfd_kill(started.pidfd.as_fd(), 9)?;
                return Err(error);
            }
        };
        // It may have ended and been reaped already; the news of that is on its way.
        let host_pid = process::host_pid(started.pidfd.as_fd()).unwrap_or(0);
        let now = Instant::now();
        let unit = &mut self.units[index];
        unit.recreate = false;
        unit.process = process;
        unit.outputs.extend(streams.outputs().context(|| "take its terminal".into())?);
        let monitor = unit.check.clone().map(|check| Monitor::new(check, now));
        let (pid, pidfd) = (started.pid, started.pidfd);
        unit.started(Run {
            pid,
            pidfd,
            host_pid,
            started: now,
            monitor,
            cgroup,
            memory,
            binds,
            kill_at: None,
            hooks: None,
            pause: None,
            partners,
        });
        let restarts = unit.restarts;
        self.tell_state(index, None);
        self.tell_event_of(index, What::Started { restarts });
        self.begin_welcome(index);
        Ok(())
    }

    pub(super) fn ingredients<'a>(
        &'a self,
        unit: &'a Unit,
        container: &'a str,
        network: &'a NetworkPlan,
    ) -> spec::Ingredients<'a> {
        spec::Ingredients {
            stack: &self.stack,
            container,
            replica: unit.slot,
            image: &unit.image,
            layers: unit.image.layers.iter().map(|layer| self.store.layer_path(layer)).collect(),
            secrets: &unit.secrets,
            network,
            idmap: self.idmap.as_ref(),
        }
    }

    /// A cgroup for `container` with the service's limits, where the stack has one. A service without limits has one
    /// too: it is where what it uses is counted, and where it shows that it was killed for memory.
    pub(super) fn service_cgroup(
        &self,
        service: &Service,
        container: &str,
    ) -> Result<Option<Cgroup>, RemoteError> {
        let limits = self.delegation.enforceable(&spec::limits(service)?);
        let Some(parent) = &self.cgroup else { return Ok(None) };
        let cgroup = Cgroup::create(parent.path(), container)?;
        cgroup.apply(&Resources::from(&limits), true)?;
        if let Some(owner) = self.owner {
            cgroup.give(owner)?;
        }
        Ok(Some(cgroup))
    }
}
