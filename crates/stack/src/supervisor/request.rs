//! What commands ask of the supervisor, and when they are answered.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use container::Process;
use rustix::event::PollFlags;

use super::adoption::Change;
use super::connection::Pending;
use super::hooks::Turn;
use super::unit::{Readiness, Standing, Unit};
use super::{Purpose, Supervisor};
use crate::control::{
    Command, Container, Known, Notice, Stack, Start, State, Stop, Subject, being_taken_down,
};
use crate::diagnostic::no_such_service;
use crate::plan::Condition;
use crate::remote::{Context, RemoteError};
use crate::spec;
use crate::topology::Topology;

impl Supervisor {
    pub(super) fn serve(&mut self, id: u64, flags: PollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if flags.contains(PollFlags::OUT) && !connection.flush() {
            return self.disconnect(id);
        }
        loop {
            let Some(connection) = self.connections.get(&id) else { return };
            match connection.receive() {
                Ok(Some((command, fds))) => {
                    if let Err(error) = self.carry_out(id, command, &fds) {
                        self.notify(id, Notice::Failed(error));
                    }
                }
                Ok(None) => return,
                Err(_) => return self.disconnect(id),
            }
        }
    }

    /// The other side is gone: what ran on its behalf goes too.
    pub(super) fn disconnect(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else { return };
        for purpose in self.processes.values() {
            let (Purpose::Exec { connection, pidfd } | Purpose::Run { connection, pidfd, .. }) = purpose;
            if *connection == Some(id) {
                // It may have ended in this moment.
                sys::process::pidfd_kill(pidfd.as_fd(), 9).ok();
            }
        }
        for unit in self.units.iter_mut().filter(|unit| unit.held_by == Some(id)) {
            unit.held_by = None;
        }
        if connection.leash {
            self.end(false);
        }
    }

    fn carry_out(&mut self, id: u64, command: Command, fds: &[OwnedFd]) -> Result<(), RemoteError> {
        if self.ending.is_some()
            && !matches!(
                command,
                Command::Down { .. }
                    | Command::Status
                    | Command::Subjects(_)
                    | Command::Follow(_)
                    | Command::Events { .. }
                    | Command::Signal(_)
                    | Command::Leave
            )
        {
            if !starts(&command) {
                return Err(being_taken_down());
            }
            self.notify(id, Notice::Ending);
            return Ok(());
        }
        if starts(&command)
            && let Some(connection) = self.connections.get_mut(&id)
        {
            connection.uses = true;
        }
        match command {
            Command::Up(up) => self.change(id, Change::Up(up))?,
            Command::Scale(scale) => self.change(id, Change::Scale(scale))?,
            Command::Down { volumes, timeout } => {
                self.limit_stop(&self.services(), timeout);
                self.end(volumes);
                self.wait_for(id, Pending::Down);
            }
            Command::Stop(Stop { services, timeout }) => {
                let names = self.select(&services)?;
                self.stop(&names);
                self.limit_stop(&names, timeout);
                self.wait_for(id, Pending::Stopped(names));
            }
            Command::Start(Start { services, wait }) => {
                self.made(&services)?;
                let names = self.with_dependencies(&self.select(&services)?);
                for unit in self.units.iter_mut().filter(|unit| unit.is_among(&names)) {
                    unit.no_deps = false;
                }
                self.want(&names);
                self.wait_for(id, Pending::Up { services: names, wait });
            }
            Command::Restart { stop: Stop { services, timeout }, no_deps } => {
                self.made(&services)?;
                let mut names = self.select(&services)?;
                for unit in self.units.iter_mut().filter(|unit| unit.is_among(&names) && stays(unit)) {
                    // Down first; `advance` starts it again because it is pending.
                    unit.restart();
                }
                if !no_deps {
                    names.extend(self.restart_dependants(&names));
                }
                self.limit_stop(&names, timeout);
                self.wait_for(id, Pending::Up { services: names, wait: false });
            }
            Command::Kill { services, signal } => self.kill(id, &services, &signal)?,
            Command::Remove(names) => {
                self.forget(&self.select(&names)?)?;
                self.notify(id, Notice::Done);
            }
            Command::Pause(names) => self.pause(id, &names)?,
            Command::Unpause(names) => self.unpause(id, &names)?,
            Command::Ports(name) => {
                let ports = match self.one_off_containers().any(|container| container == name) {
                    true => self.wiring.published(&name, self.wiring.lent(&name)).collect(),
                    false => {
                        let service = &self.unit(&name)?.service;
                        self.wiring.published(&service.name, &service.ports).collect()
                    }
                };
                self.notify(id, Notice::Ports(ports));
                self.notify(id, Notice::Done);
            }
            Command::Stack => {
                self.notify(id, Notice::Stack(Stack { files: self.files.clone() }));
                self.notify(id, Notice::Done);
            }
            Command::Status => {
                let status = self.units.iter().map(|unit| self.status(unit)).collect();
                self.notify(id, Notice::Status(status));
                self.notify(id, Notice::Done);
            }
            Command::Subjects(names) => {
                let names = self.select(&names)?;
                let asked = self.units.iter().filter(|unit| unit.is_among(&names));
                let subjects = asked.map(|unit| self.subject(unit)).collect();
                self.notify(id, Notice::Subjects(subjects));
                self.notify(id, Notice::Done);
            }
            Command::Topology => {
                let topology = self.plan.as_ref().map(Topology::of).unwrap_or_default();
                self.notify(id, Notice::Topology(topology));
                self.notify(id, Notice::Done);
            }
            Command::Follow(services) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.follow = Some(services);
                }
            }
            Command::Events { services, since, follow } => self.events(id, &services, since, follow)?,
            Command::Net { services, change } => self.change_faults(id, &services, &change)?,
            Command::Faults => self.show_faults(id),
            Command::Exec(exec) => {
                let process = |base: &Process| spec::process_for(base, &exec);
                self.exec(id, (&exec.service, exec.index), exec.detach, process, fds)?;
            }
            Command::Attempt(container) => {
                let process = |base: &Process| Process { attempts: true, terminal: false, ..base.clone() };
                self.exec(id, (&container, None), false, process, fds)?;
            }
            Command::Run(run) => self.run_once(id, &run, fds)?,
            Command::Signal(signal) => self.signal(id, signal)?,
            Command::Needs(service) => {
                let needs = self.needs(&service);
                self.notify(id, Notice::Needs(needs));
                self.notify(id, Notice::Done);
            }
            Command::Detach => {
                self.stays = true;
                self.let_go(id)?;
                self.notify(id, Notice::Done);
            }
            Command::Leave if self.ending.is_some() => {}
            Command::Leave => {
                self.let_go(id)?;
                if !self.end_if_abandoned() {
                    self.notify(id, Notice::Done);
                }
            }
            Command::Container(service) => {
                let container = self.container(&service)?;
                self.notify(id, Notice::Container(Box::new(container)));
                self.notify(id, Notice::Done);
            }
            Command::Hold(name) => {
                let container = self.hold(id, &name)?;
                self.notify(id, Notice::Container(Box::new(container)));
                self.notify(id, Notice::Done);
            }
            Command::Known(name) => {
                let known = self.known_of(&name)?;
                self.notify(id, Notice::Known(Box::new(known)));
                self.notify(id, Notice::Done);
            }
        }
        Ok(())
    }

    pub(super) fn wait_for(&mut self, id: u64, pending: Pending) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.pending = Some(pending);
        }
    }

    /// The connections that wait for something of this kind.
    pub(super) fn waiting(&self, kind: impl Fn(&Pending) -> bool) -> Vec<u64> {
        self.connections
            .iter()
            .filter(|(_, c)| c.pending.as_ref().is_some_and(&kind))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The named services and containers, or all services.
    fn select(&self, names: &[String]) -> Result<Vec<String>, RemoteError> {
        if names.is_empty() {
            return Ok(self.services());
        }
        names.iter().try_for_each(|name| self.known(name))?;
        Ok(names.to_vec())
    }

    /// Names of all services, those that have no container at the moment too.
    fn services(&self) -> Vec<String> {
        let planned = self.plan.iter().flat_map(|plan| &plan.services).map(|service| service.name.clone());
        let mut names: Vec<String> = planned.collect();
        for unit in &self.units {
            if !names.contains(&unit.service.name) {
                names.push(unit.service.name.clone());
            }
        }
        names
    }

    /// Checks that a name is a service's or a container's.
    pub(super) fn known(&self, name: &str) -> Result<(), RemoteError> {
        let services = self.services();
        if services.iter().any(|service| service == name) || self.units.iter().any(|u| u.answers_to(name)) {
            return Ok(());
        }
        Err(no_such_service(name, &services))
    }

    /// The first container that `name` means.
    pub(super) fn unit(&self, name: &str) -> Result<&Unit, RemoteError> {
        self.known(name)?;
        let unit = self.units.iter().find(|unit| unit.answers_to(name));
        unit.ok_or_else(|| {
            RemoteError::message(format!("service `{name}` has no container"))
                .or_hint(format!("`inception-run up -d {name}` makes and starts it"))
        })
    }

    /// That each of `names` has a container: `up` of other services made none for it.
    fn made(&self, names: &[String]) -> Result<(), RemoteError> {
        names.iter().try_for_each(|name| self.unit(name).map(drop))
    }

    fn with_dependencies(&self, names: &[String]) -> Vec<String> {
        let Some(plan) = &self.plan else { return names.to_vec() };
        let needed = self.units.iter().filter(|unit| unit.is_among(names));
        let needed = needed.flat_map(|unit| &unit.service.depends_on).map(|d| d.service.clone());
        let needed: Vec<String> = needed.collect();
        let mut all = names.to_vec();
        if !needed.is_empty() {
            all.extend(plan.with_dependencies(&needed));
        }
        all
    }

    pub(super) fn want(&mut self, names: &[String]) {
        for unit in self.units.iter_mut().filter(|unit| unit.is_among(names) && stays(unit)) {
            unit.want();
        }
    }

    /// Restarts what runs and asked to be restarted with one of `names` (`depends_on` with `restart`); returns their names.
    pub(super) fn restart_dependants(&mut self, names: &[String]) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        loop {
            let is_restarted = |name: &String| {
                found.contains(name)
                    || self.units.iter().any(|u| u.service.name == *name && u.is_among(names))
            };
            let follows =
                |unit: &&Unit| unit.service.depends_on.iter().any(|d| d.restart && is_restarted(&d.service));
            let next = self.units.iter().filter(follows).map(|unit| unit.service.name.clone());
            let next: Vec<String> = next.filter(|name| !is_restarted(name)).collect();
            if next.is_empty() {
                break;
            }
            found.extend(next);
        }
        for unit in self.units.iter_mut().filter(|unit| found.contains(&unit.service.name) && stays(unit)) {
            if unit.run.is_some() {
                unit.restart();
            }
        }
        found
    }

    fn stop(&mut self, names: &[String]) {
        for unit in self.units.iter_mut().filter(|unit| unit.is_among(names)) {
            unit.give_up();
        }
    }

    /// Gives those that are to stop this many seconds for it, where a user said how many.
    pub(super) fn limit_stop(&mut self, names: &[String], timeout: Option<u32>) {
        let Some(timeout) = timeout.map(|seconds| Duration::from_secs(seconds.into())) else { return };
        let now = Instant::now();
        for unit in self.units.iter_mut().filter(|unit| unit.is_among(names)) {
            unit.limit_stop(timeout, now);
        }
    }

    /// Sends signals. One that ends a container is a user's stop: its policy does not start it again.
    fn kill(&mut self, id: u64, names: &[String], signal: &str) -> Result<(), RemoteError> {
        let number = container::signal::number(signal).ok_or_else(|| {
            let mut error = RemoteError::message(format!("unknown signal `{signal}`"));
            error.exit_code = 2;
            error.or_hint("signals are called as in `kill -l`: TERM, SIGTERM or 15")
        })?;
        let (one_off, names): (Vec<String>, Vec<String>) =
            names.iter().cloned().partition(|name| self.one_off_containers().any(|known| known == name));
        for container in &one_off {
            self.kill_one_off(container, number)?;
        }
        let names = match one_off.is_empty() {
            true => self.select(&names)?,
            false => names,
        };
        names.iter().try_for_each(|name| self.known(name))?;
        let now = Instant::now();
        for index in 0..self.units.len() {
            let unit = &mut self.units[index];
            if unit.run.is_none() || !unit.is_among(&names) {
                continue;
            }
            let ends = number == 9 || number == unit.stop_signal;
            if ends {
                unit.give_up();
                unit.state = State::Stopping;
            }
            let grace = unit.grace();
            let Some(run) = &mut unit.run else { continue };
            if ends {
                run.kill_at = Some(run.kill_at.unwrap_or(now + grace));
            }
            match sys::process::pidfd_kill(run.pidfd.as_fd(), number) {
                // It has ended; the news of that is on its way.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                result => result.context(|| format!("signal service `{}`", unit.container))?,
            }
            if ends {
                self.drop_hooks(index);
                self.release(index)?;
            }
        }
        self.wait_for(id, Pending::Stopped(names));
        Ok(())
    }

    /// Forgets what is left of containers that do not run.
    fn forget(&mut self, names: &[String]) -> Result<(), RemoteError> {
        let down: Vec<usize> = (0..self.units.len())
            .filter(|index| self.units[*index].is_down() && self.units[*index].is_among(names))
            .collect();
        if let Some(index) = down.iter().find(|index| self.units[**index].held_by.is_some()) {
            return Err(busy(self.units[*index].name()));
        }
        let directories =
            down.iter().map(|index| spec::container_directory(&self.stack, self.units[*index].name()));
        self.hub.remove(directories.collect())?;
        for index in down {
            self.units[index].forget();
        }
        Ok(())
    }

    /// Everything is to end.
    pub(super) fn end(&mut self, volumes: bool) {
        self.ending = Some(volumes || self.ending.unwrap_or(false));
        (self.next, self.rolling) = (None, None);
        self.queued.clear();
        for unit in &mut self.units {
            unit.give_up();
        }
        for purpose in self.processes.values() {
            let (Purpose::Exec { pidfd, .. } | Purpose::Run { pidfd, .. }) = purpose;
            sys::process::pidfd_kill(pidfd.as_fd(), 9).ok();
        }
    }

    fn status(&self, unit: &Unit) -> crate::control::Status {
        unit.status(Instant::now(), self.wiring.describe(&unit.service.name, &unit.service.ports))
    }

    fn subject(&self, unit: &Unit) -> Subject {
        let cgroup = unit.run.as_ref().and_then(|run| run.cgroup.as_ref());
        Subject {
            status: self.status(unit),
            cgroup: cgroup.map(|cgroup| cgroup.path().to_owned()),
            limits: unit.service.limits.clone(),
            shortage: unit.shortage,
        }
    }

    /// What `explain` cannot read from the kernel, of the first container that runs of those that `name` means.
    fn known_of(&self, name: &str) -> Result<Known, RemoteError> {
        let running = self.units.iter().find(|unit| unit.answers_to(name) && unit.run.is_some());
        let unit = running.map_or_else(|| self.unit(name), Ok)?;
        let endpoint = unit.service.network_mode.owner(unit.name());
        let plan = self.plan.as_ref().map(|plan| &plan.network);
        let endpoints = plan.map_or(&[][..], |plan| &plan.endpoints);
        let endpoint = endpoints.iter().find(|known| Some(known.service.as_str()) == endpoint);
        let interfaces = endpoint.map(|endpoint| endpoint.interfaces.clone()).unwrap_or_default();
        let is_on =
            |network: &&network::plan::Network| interfaces.iter().any(|at| at.network == network.name);
        let networks = plan.map_or(&[][..], |plan| &plan.networks).iter().filter(is_on).cloned().collect();
        Ok(Known {
            container: self.container_of(unit)?,
            cgroup: unit
                .run
                .as_ref()
                .and_then(|run| run.cgroup.as_ref())
                .map(|cgroup| cgroup.path().to_owned()),
            supervisor: std::process::id(),
            // Of the same PID namespace as this process.
            hub: self.hub.process.pid.unsigned_abs(),
            netd: self.wiring.netd_pid(),
            interfaces,
            networks,
            published: self.wiring.published(&unit.service.name, &unit.service.ports).collect(),
        })
    }

    fn container(&self, service: &str) -> Result<Container, RemoteError> {
        self.container_of(self.unit(service)?)
    }

    /// Keeps a container that does not run from starting, as long as the connection is open. What an earlier one of its
    /// name left is gone then, as it would be at its start.
    fn hold(&mut self, id: u64, name: &str) -> Result<Container, RemoteError> {
        self.known(name)?;
        let at = self.units.iter().position(|unit| unit.answers_to(name));
        let at = at.ok_or_else(|| RemoteError::message(format!("service `{name}` has no container")))?;
        let unit = &self.units[at];
        if unit.run.is_some() {
            return Err(RemoteError::message(format!("container `{}` runs by now", unit.name())));
        }
        if unit.held_by.is_some() {
            return Err(busy(unit.name()));
        }
        if unit.recreate {
            self.hub.remove(vec![spec::container_directory(&self.stack, unit.name())])?;
            self.units[at].recreate = false;
        }
        let container = self.container_of(&self.units[at])?;
        self.units[at].held_by = Some(id);
        Ok(container)
    }

    fn container_of(&self, unit: &Unit) -> Result<Container, RemoteError> {
        let plan = self.plan.as_ref().ok_or_else(|| RemoteError::message("there is no plan"))?;
        let from = self.ingredients(unit, unit.name(), &plan.network);
        let mut sandbox = spec::resolve(&unit.service, &from)?.sandbox;
        for mount in &mut sandbox.mounts {
            if let container::sandbox::MountSource::File { content, .. } = &mut mount.source {
                content.clear();
            }
        }
        let endpoint = plan.network.endpoints.iter().find(|endpoint| endpoint.service == unit.name());
        let addresses = endpoint
            .map(|e| e.interfaces.iter().map(|i| (i.network.clone(), i.address)).collect())
            .unwrap_or_default();
        Ok(Container { status: self.status(unit), service: unit.service.clone(), sandbox, addresses })
    }

    pub(super) fn wait_done(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.pending = None;
        }
    }

    /// Answers the commands whose end has come.
    pub(super) fn answer_connections(&mut self) {
        let waiting: Vec<(u64, Pending)> =
            self.connections.iter().filter_map(|(id, c)| Some((*id, c.pending.clone()?))).collect();
        for (id, pending) in waiting {
            let answer = match pending {
                Pending::Up { services, wait } => self.up_answer(&services, wait),
                Pending::Stopped(services) => {
                    // One that somebody else has asked for since is no concern of this command's any more.
                    let stopping = |unit: &Unit| unit.run.is_some() && !unit.wanted && !unit.pending;
                    let named = |unit: &&Unit| unit.is_among(&services);
                    let wait = self.units.iter().filter(named).any(stopping);
                    (!wait).then_some(Notice::Done)
                }
                Pending::Down | Pending::Process(_) => None,
            };
            if let Some(notice) = answer {
                self.wait_done(id);
                self.notify(id, notice);
            }
        }
    }

    fn up_answer(&self, services: &[String], wait: bool) -> Option<Notice> {
        if self.ending.is_some() {
            return Some(Notice::Failed(being_taken_down()));
        }
        if self.next.is_some() || self.rolling.is_some() {
            return None;
        }
        let units = || self.units.iter().filter(|unit| unit.is_among(services));
        let begins = |unit: &Unit| unit.run.as_ref().is_some_and(|run| run.is_at(Turn::Start));
        if units().any(|unit| unit.pending || begins(unit) || unit.standing == Standing::Retired) {
            return None;
        }
        if let Some(unit) = units().find(|unit| unit.failure.is_some()) {
            return Some(Notice::Failed(unit.failure.clone()?));
        }
        if !wait {
            return Some(Notice::Done);
        }
        for unit in units() {
            // A one-shot that ended well is up as far as it will ever be.
            if unit.state == State::Exited && unit.exit_code == Some(0) {
                continue;
            }
            match unit.readiness(Condition::Healthy) {
                Readiness::Ready => {}
                Readiness::NotYet => return None,
                Readiness::Never => return Some(Notice::Failed(self.why_not(unit))),
            }
        }
        Some(Notice::Done)
    }

    /// Whether everything has ended; then nothing of the stack is left but this process.
    pub(super) fn finished(&mut self) -> Result<bool, RemoteError> {
        let Some(volumes) = self.ending else { return Ok(false) };
        if self.units.iter().any(|unit| unit.run.is_some()) || !self.processes.is_empty() {
            return Ok(false);
        }
        let mut paths = vec![format!("c/{}", self.stack)];
        if volumes {
            paths.push(spec::volumes_directory(&self.stack));
            self.remove_named_volumes()?;
        }
        self.hub.remove(paths)?;
        self.wiring.close().context(|| "end netd".into())?;
        self.hub.end().context(|| "end the stack's hub".into())?;
        if let Some(cgroup) = self.cgroup.take() {
            self.delegation.remove(cgroup)?;
        }
        Ok(true)
    }

    /// Tells everybody that the end has come: the commands that wait for it, and those that lose what they had.
    pub(super) fn tell_end(&mut self) {
        let asked = self.waiting(|pending| matches!(pending, Pending::Down));
        let everybody: Vec<u64> = self.connections.keys().copied().collect();
        for id in everybody {
            let asked = asked.contains(&id);
            self.notify(id, if asked { Notice::Done } else { Notice::TakenDown });
        }
    }
}

fn busy(container: &str) -> RemoteError {
    RemoteError::message(format!("files of container `{container}` are being copied"))
        .or_hint("try again when `cp` has ended")
}

/// Whether a command is for something that is to run: it can be asked again when the stack is down.
fn starts(command: &Command) -> bool {
    matches!(command, Command::Up(_) | Command::Start(_) | Command::Needs(_) | Command::Run(_))
}

/// Whether a container is one that a user can start: not one that is on its way out.
fn stays(unit: &Unit) -> bool {
    !matches!(unit.standing, Standing::Retired | Standing::Replaced { .. })
}
