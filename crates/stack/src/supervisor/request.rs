//! What commands ask of the supervisor, and when they are answered.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use container::Process;
use container::cgroup::Cgroup;
use container::cgroup::usage::MemoryEvents;
use rustix::event::PollFlags;

use super::adoption::{Change, closure};
use super::connection::Pending;
use super::hooks::Turn;
use super::unit::{Readiness, Standing, Unit};
use super::{Purpose, Supervisor, process};
use crate::control::{Command, Container, Exec, Known, Notice, State, Subject};
use crate::diagnostic;
use crate::hub::client::Exit;
use crate::plan::{Condition, Plan, Service};
use crate::remote::{Context, RemoteError};
use crate::spec;

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
            if *connection == id {
                // It may have ended in this moment.
                sys::process::pidfd_kill(pidfd.as_fd(), 9).ok();
            }
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
                    | Command::Events { .. }
                    | Command::Signal(_)
            )
        {
            return Err(RemoteError::message("the stack is being taken down"));
        }
        match command {
            Command::Up(up) => self.change(id, Change::Up(up))?,
            Command::Scale(scale) => self.change(id, Change::Scale(scale))?,
            Command::Down { volumes } => {
                self.end(volumes);
                self.wait_for(id, Pending::Down);
            }
            Command::Stop(names) => {
                let names = self.select(&names)?;
                self.stop(&names);
                self.wait_for(id, Pending::Stopped(names));
            }
            Command::Start(names) => {
                let names = self.with_dependencies(&self.select(&names)?);
                self.want(&names);
                self.wait_for(id, Pending::Up { services: names, wait: false });
            }
            Command::Restart(names) => {
                let mut names = self.select(&names)?;
                for unit in self.units.iter_mut().filter(|unit| unit.is_among(&names) && stays(unit)) {
                    // Down first; `advance` starts it again because it is pending.
                    unit.restart();
                }
                names.extend(self.restart_dependants(&names));
                self.wait_for(id, Pending::Up { services: names, wait: false });
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
                self.exec(id, &exec.service, exec.index, process, fds)?;
            }
            Command::Attempt(container) => {
                let process = |base: &Process| Process { attempts: true, terminal: false, ..base.clone() };
                self.exec(id, &container, None, process, fds)?;
            }
            Command::Run(exec) => self.run_once(id, &exec, fds)?,
            Command::Signal(signal) => self.signal(id, signal)?,
            Command::Detach => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.leash = false;
                }
                rustix::process::set_parent_process_death_signal(None)
                    .map_err(std::io::Error::from)
                    .context(|| "detach from the command".into())?;
                self.notify(id, Notice::Done);
            }
            Command::Container(service) => {
                let container = self.container(&service)?;
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
        let containers = self.units.iter().map(Unit::name);
        let near = diagnostic::nearest(name, services.iter().map(String::as_str).chain(containers));
        let near = near.map_or_else(String::new, |near| format!("did you mean `{near}`? "));
        let mut error = RemoteError::message(format!("no such service: `{name}`"))
            .or_hint(format!("{near}the stack's services are: {}", services.join(", ")));
        // Bad usage, as where the command itself finds it.
        error.exit_code = 2;
        Err(error)
    }

    /// The first container that `name` means.
    pub(super) fn unit(&self, name: &str) -> Result<&Unit, RemoteError> {
        self.known(name)?;
        let unit = self.units.iter().find(|unit| unit.answers_to(name));
        unit.ok_or_else(|| RemoteError::message(format!("service `{name}` has no container")))
    }

    fn with_dependencies(&self, names: &[String]) -> Vec<String> {
        let Some(plan) = &self.plan else { return names.to_vec() };
        let needed = self.units.iter().filter(|unit| unit.is_among(names));
        let needed = needed.flat_map(|unit| &unit.service.depends_on).map(|d| d.service.clone());
        let needed: Vec<String> = needed.collect();
        let mut all = names.to_vec();
        if !needed.is_empty() {
            all.extend(closure(plan, &needed));
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

    /// Starts, for a connection, what `process_of` makes of a running container's own process.
    fn exec(
        &mut self,
        id: u64,
        service: &str,
        index: Option<u16>,
        process_of: impl Fn(&Process) -> Process,
        fds: &[OwnedFd],
    ) -> Result<(), RemoteError> {
        self.known(service)?;
        let numbered = |unit: &&Unit| index.is_none_or(|index| unit.slot == index);
        let meant = self.units.iter().filter(|unit| unit.answers_to(service)).filter(numbered);
        let mut running = meant.filter_map(|unit| Some((unit, unit.run.as_ref()?)));
        let (unit, run) = running.next().ok_or_else(|| {
            let which = index.map_or_else(String::new, |index| format!("replica {index} of "));
            RemoteError::message(format!("{which}service `{service}` is not running"))
                .or_hint(format!("`inception-run run {service}` starts a container of its own"))
        })?;
        let (target, process) = (run.pid, process_of(&unit.process));
        let cgroup = run.cgroup.as_ref().map(AsFd::as_fd);
        let stdio = stdio(fds)?;
        let started = self.hub.exec(target, process, cgroup, stdio)?;
        let pid = process::host_pid(started.pidfd.as_fd()).unwrap_or(0);
        self.processes.insert(started.pid, Purpose::Exec { connection: id, pidfd: started.pidfd });
        self.wait_for(id, Pending::Process(started.pid));
        self.notify(id, Notice::Started { pid });
        Ok(())
    }

    fn run_once(&mut self, id: u64, exec: &Exec, fds: &[OwnedFd]) -> Result<(), RemoteError> {
        let stdio = stdio(fds)?;
        let plan = self.plan.as_ref().ok_or_else(|| RemoteError::message("there is no plan"))?;
        let unit = self.unit(&exec.service)?;
        let container = self.run_name(&unit.service.name, plan);
        let mut network = plan.network.clone();
        if unit.service.network_mode.is_own() {
            network.add_endpoint_like(&unit.service.name, &container)?;
        }
        let from = self.ingredients(unit, &container, &network);
        // Under a name of its own: the service's name stays the service's, in /etc/hosts too.
        let mut service = Service { hostname: container.clone(), ..unit.service.clone() };
        if !exec.argv.is_empty() {
            // As in the file, a command leaves the entrypoint alone.
            service.command = Some(exec.argv.clone());
        }
        let mut resolved = spec::resolve(&service, &from)?;
        let changes = Exec { argv: Vec::new(), ..exec.clone() };
        resolved.sandbox.process = spec::process_for(&resolved.sandbox.process, &changes);
        let cgroup = self.service_cgroup(&service, &container)?;
        let changed = Plan { network, ..plan.clone() };
        self.wiring.apply(&changed, &mut self.hub)?;
        self.plan = Some(changed);
        self.next_run += 1;
        let born_in = cgroup.as_ref().map(AsFd::as_fd);
        let network = service.network_mode.owner(&container).map(str::to_owned);
        let started = self.hub.start(resolved.sandbox, network, born_in, stdio, &resolved.detached);
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                self.remove_run(&container, cgroup);
                return Err(error);
            }
        };
        let pid = process::host_pid(started.pidfd.as_fd()).unwrap_or(0);
        let purpose = Purpose::Run { connection: id, pidfd: started.pidfd, container, cgroup };
        self.processes.insert(started.pid, purpose);
        self.wait_for(id, Pending::Process(started.pid));
        self.notify(id, Notice::Started { pid });
        Ok(())
    }

    /// A name for a one-off container that no service and no other one has.
    fn run_name(&self, service: &str, plan: &Plan) -> String {
        let mut names = (self.next_run..).map(|number| format!("{service}-run-{number}"));
        let taken = |name: &String| plan.network.endpoints.iter().any(|e| e.service == *name);
        let known = |name: &String| self.units.iter().any(|unit| unit.name() == name);
        names.find(|name| !taken(name) && !known(name)).unwrap_or_default()
    }

    /// A process that was started for a connection ended.
    pub(super) fn process_ended(&mut self, exit: Exit) {
        let connection = match self.processes.remove(&exit.pid) {
            Some(Purpose::Exec { connection, .. }) => connection,
            Some(Purpose::Run { connection, container, cgroup, .. }) => {
                let events = cgroup.as_ref().map(|cgroup| MemoryEvents::read(cgroup.path()));
                if matches!(events, Some(Ok(Some(events))) if events.oom_kill > 0) {
                    let text = format!("container `{container}`: processes were killed: out of memory");
                    self.notify(connection, Notice::Warning(text));
                }
                self.remove_run(&container, cgroup);
                connection
            }
            // An orphan that the hub inherited.
            None => return,
        };
        self.wait_done(connection);
        self.notify(connection, Notice::Exited { status: exit.status });
    }

    /// Takes a one-off container's files, links and cgroup away. What cannot be is left for the end of the stack.
    fn remove_run(&mut self, container: &str, cgroup: Option<Cgroup>) {
        let mut results = vec![self.hub.remove(vec![spec::container_directory(&self.stack, container)])];
        if let Some(plan) = &mut self.plan {
            plan.network.endpoints.retain(|endpoint| endpoint.service != container);
            results.push(self.wiring.apply(plan, &mut self.hub));
        }
        results.extend(cgroup.map(|cgroup| cgroup.remove().map_err(RemoteError::from)));
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!("remove the container `{container}`: {error}");
        }
    }

    fn signal(&mut self, id: u64, signal: i32) -> Result<(), RemoteError> {
        let pending = self.connections.get(&id).and_then(|c| c.pending.clone());
        let Some(Pending::Process(pid)) = pending else {
            return Err(RemoteError::message("there is no process to signal"));
        };
        if let Some(Purpose::Exec { pidfd, .. } | Purpose::Run { pidfd, .. }) = self.processes.get(&pid) {
            match sys::process::pidfd_kill(pidfd.as_fd(), signal) {
                // It has ended; the news of that is on its way.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                result => result.context(|| "signal the process".into())?,
            }
        }
        Ok(())
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
            published: self.wiring.published(&unit.service.name, &unit.service.ports),
        })
    }

    fn container(&self, service: &str) -> Result<Container, RemoteError> {
        self.container_of(self.unit(service)?)
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
            return Some(Notice::Failed(RemoteError::message("the stack is being taken down")));
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
            paths.push(format!("v/{}", self.stack));
            paths.extend(self.plan.iter().flat_map(spec::named_volumes));
        }
        self.hub.remove(paths)?;
        self.wiring.close().context(|| "end netd".into())?;
        self.hub.end().context(|| "end the stack's hub".into())?;
        if let Some(cgroup) = self.cgroup.take() {
            self.delegation.remove(cgroup)?;
        }
        Ok(true)
    }

    /// Tells the commands that wait for the end that it has come.
    pub(super) fn answer_down(&mut self) {
        for id in self.waiting(|pending| matches!(pending, Pending::Down)) {
            self.notify(id, Notice::Done);
        }
    }
}

fn stdio(fds: &[OwnedFd]) -> Result<[std::os::fd::BorrowedFd<'_>; 3], RemoteError> {
    let (stdio, _) = fds
        .split_first_chunk::<3>()
        .ok_or_else(|| RemoteError::message("the command came without standard input and output"))?;
    Ok(stdio.each_ref().map(AsFd::as_fd))
}

/// Whether a container is one that a user can start: not one that is on its way out.
fn stays(unit: &Unit) -> bool {
    !matches!(unit.standing, Standing::Retired | Standing::Replaced { .. })
}
