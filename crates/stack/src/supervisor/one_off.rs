//! Processes that commands ask for: `exec` in a container that runs, and `run` in one of its own.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use container::Process;
use container::cgroup::Cgroup;
use container::cgroup::usage::MemoryEvents;
use rustix::event::{PollFd, PollFlags};

use super::connection::Pending;
use super::logs::{Log, Output};
use super::unit::Unit;
use super::{Purpose, Supervisor, fleet, process};
use crate::control::{Exec, Line, Needs, Notice, Run, Stream};
use crate::hub::client::Exit;
use crate::plan::{Plan, Service};
use crate::remote::{Context, RemoteError};
use crate::spec;

/// Reads after the end of a one-off container: what outlives it may go on writing.
const LAST_READS: usize = 4096;

/// The output of a one-off container that nobody waits for.
#[derive(Debug)]
pub(super) struct Kept {
    outputs: Vec<Output>,
    log: Log,
}

impl Kept {
    /// Opens a log, and the pipes that lead to it; the container gets the other ends.
    fn open(
        runtime: &Path,
        container: &str,
        service: &Service,
        owner: Option<(u32, u32)>,
    ) -> Result<(Self, [OwnedFd; 3]), RemoteError> {
        let context = || format!("open the log of container `{container}`");
        let log = Log::open(runtime, container, &service.logging).context(context)?;
        let (out, theirs_out) = Output::pipe(Stream::Stdout, owner).context(context)?;
        let (err, theirs_err) = Output::pipe(Stream::Stderr, owner).context(context)?;
        let input = File::open("/dev/null").context(|| "open /dev/null".into())?;
        Ok((Self { outputs: vec![out, err], log }, [input.into(), theirs_out, theirs_err]))
    }

    /// What is to be read now.
    pub(super) fn outputs(&self, now: Instant) -> impl Iterator<Item = BorrowedFd<'_>> {
        let held = self.log.held_until(now).is_some();
        self.outputs.iter().filter(move |_| !held).map(AsFd::as_fd)
    }

    /// When there is something to do without any event.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let held = self.log.held_until(now).filter(|_| !self.outputs.is_empty());
        held.into_iter().chain(self.log.next()).min()
    }

    /// Reads one of the outputs into the log.
    fn read(&mut self, container: &str, stream: usize) -> Vec<Line> {
        let Some(output) = self.outputs.get_mut(stream) else { return Vec::new() };
        let (lines, open) = output.read(container).unwrap_or_else(|error| {
            tracing::warn!("read the output of container `{container}`: {error}");
            (Vec::new(), false)
        });
        if !open {
            self.outputs.remove(stream);
        }
        let now = Instant::now();
        let lines = self.log.admit(lines, now);
        self.log.write(&lines, now);
        lines
    }

    /// An output that can be read without waiting.
    fn readable(&self) -> Option<usize> {
        self.outputs.iter().position(|output| {
            let mut poll = [PollFd::new(output, PollFlags::IN)];
            let none = rustix::time::Timespec::default();
            matches!(rustix::event::poll(&mut poll, Some(&none)), Ok(1))
        })
    }
}

impl Purpose {
    /// Output that is to be kept.
    pub(super) fn kept(&self) -> Option<&Kept> {
        match self {
            Self::Run { kept, .. } => kept.as_deref(),
            Self::Exec { .. } => None,
        }
    }
}

impl Supervisor {
    /// Reads what a one-off container that nobody waits for has written.
    pub(super) fn read_kept(&mut self, pid: i32, stream: usize) {
        let Some(Purpose::Run { container, kept: Some(kept), .. }) = self.processes.get_mut(&pid) else {
            return;
        };
        let (container, lines) = (container.clone(), kept.read(container, stream));
        self.tell_lines(&container, lines);
    }

    /// Tells how many lines are not in the logs of one-off containers, where that is due.
    pub(super) fn account_kept(&mut self, now: Instant) {
        let account = |purpose: &mut Purpose| match purpose {
            Purpose::Run { container, kept: Some(kept), .. } => {
                Some((container.clone(), kept.log.account(now)?.0))
            }
            Purpose::Run { .. } | Purpose::Exec { .. } => None,
        };
        let accounts: Vec<(String, Line)> = self.processes.values_mut().filter_map(account).collect();
        for (container, line) in accounts {
            self.tell_lines(&container, vec![line]);
        }
    }

    /// Reads the last of it.
    fn drain_kept(&mut self, container: &str, kept: &mut Kept) {
        for _ in 0..LAST_READS {
            let Some(stream) = kept.readable() else { return };
            let lines = kept.read(container, stream);
            self.tell_lines(container, lines);
        }
    }

    /// Shows lines of a one-off container to those who follow it, or everything.
    fn tell_lines(&mut self, container: &str, lines: Vec<Line>) {
        let follows = |names: &Vec<String>| names.is_empty() || names.iter().any(|name| name == container);
        let followers = self.connections.iter().filter(|(_, c)| c.follow.as_ref().is_some_and(follows));
        let followers: Vec<u64> = followers.map(|(id, _)| *id).collect();
        for line in lines {
            for id in &followers {
                self.notify(*id, Notice::Log(line.clone()));
            }
        }
    }

    /// Sends a one-off container a signal.
    pub(super) fn kill_one_off(&self, name: &str, signal: i32) -> Result<(), RemoteError> {
        for purpose in self.processes.values() {
            match purpose {
                Purpose::Run { container, pidfd, .. } if container == name => deliver(pidfd, signal)?,
                Purpose::Run { .. } | Purpose::Exec { .. } => {}
            }
        }
        Ok(())
    }

    /// Starts, for a connection, what `process_of` makes of a running container's own process. With `detach` the connection
    /// does not wait for its end.
    pub(super) fn exec(
        &mut self,
        id: u64,
        (service, index): (&str, Option<u16>),
        detach: bool,
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
                .or_hint(format!("`inception-run start {service}` starts it"))
        })?;
        if run.pause.is_some() {
            return Err(RemoteError::message(format!("service `{}` is paused", unit.name()))
                .or_hint(format!("`inception-run unpause {}` has it go on", unit.name())));
        }
        let (target, process) = (run.pid, process_of(&unit.process));
        let cgroup = run.cgroup.as_ref().map(AsFd::as_fd);
        let stdio = stdio(fds)?;
        let started = self.hub.exec(target, process, cgroup, stdio)?;
        let pid = process::host_pid(started.pidfd.as_fd()).unwrap_or(0);
        let connection = (!detach).then_some(id);
        self.processes.insert(started.pid, Purpose::Exec { connection, pidfd: started.pidfd });
        self.accompany(id, started.pid, pid, detach);
        Ok(())
    }

    /// Tells a command that its process runs, and when it has ended, if it waits for that.
    fn accompany(&mut self, id: u64, inside: i32, pid: u32, detach: bool) {
        self.notify(id, Notice::Started { pid });
        match detach {
            true => self.notify(id, Notice::Done),
            false => self.wait_for(id, Pending::Process(inside)),
        }
    }

    pub(super) fn run_once(&mut self, id: u64, run: &Run, fds: &[OwnedFd]) -> Result<(), RemoteError> {
        let exec = &run.exec;
        let plan = self.plan.as_ref().ok_or_else(|| RemoteError::message("there is no plan"))?;
        let unit = self.unit(&exec.service)?;
        let container = match &run.name {
            Some(name) => self.free_name(name, plan)?,
            None => self.run_name(&unit.service.name, plan),
        };
        let mut network = plan.network.clone();
        if unit.service.network_mode.is_own() {
            network.add_endpoint_like(&unit.service.name, &container)?;
        }
        let ports = self.ports_of_run(run, unit, &container, &network)?;
        let partners = self.partners(&unit.service)?.ok_or_else(|| {
            let owners: Vec<&str> = unit.service.sharing.owners().collect();
            RemoteError::message(format!("service `{}` is about to start", owners.join("`, `")))
                .or_hint("try again when it runs: the container is to have a namespace of it")
        })?;
        let from = self.ingredients(unit, &container, &network);
        // Under a name of its own: the service's name stays the service's, in /etc/hosts too.
        let mut service = Service { hostname: container.clone(), ..unit.service.clone() };
        if let Some(entrypoint) = &run.entrypoint {
            service.entrypoint = Some(entrypoint.clone());
            service.command = None;
        }
        service.mounts.retain(|mount| run.mounts.iter().all(|other| other.target != mount.target));
        service.mounts.extend(run.mounts.iter().cloned());
        service.cap_add.retain(|name| !run.cap_drop.contains(name));
        service.cap_add.extend(run.cap_add.iter().cloned());
        service.cap_drop.extend(run.cap_drop.iter().cloned());
        if !exec.argv.is_empty() {
            // As in the file, a command leaves the entrypoint alone.
            service.command = Some(exec.argv.clone());
        }
        let mut resolved = spec::resolve(&service, &from)?;
        let changes = Exec { argv: Vec::new(), ..exec.clone() };
        resolved.sandbox.process = spec::process_for(&resolved.sandbox.process, &changes);
        let (kept, theirs) = match exec.detach {
            true => {
                let (kept, theirs) = Kept::open(&self.runtime, &container, &service, self.owner)?;
                (Some(Box::new(kept)), Some(theirs))
            }
            false => (None, None),
        };
        let stdio = match &theirs {
            Some(theirs) => theirs.each_ref().map(AsFd::as_fd),
            None => stdio(fds)?,
        };
        let cgroup = self.service_cgroup(&service, &container)?;
        let changed = Plan { network, ..plan.clone() };
        self.wiring.lend(&container, ports);
        if let Err(error) = self.wiring.apply(&changed, &mut self.hub) {
            self.wiring.lend(&container, Vec::new());
            return Err(error);
        }
        self.plan = Some(changed);
        self.next_run += 1;
        let born_in = cgroup.as_ref().map(AsFd::as_fd);
        let network = service.network_mode.owner(&container).map(str::to_owned);
        let started = self.hub.start(resolved.sandbox, network, partners, born_in, stdio, &resolved.detached);
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                self.remove_run(&container, cgroup);
                return Err(error);
            }
        };
        let pid = process::host_pid(started.pidfd.as_fd()).unwrap_or(0);
        let connection = (!exec.detach).then_some(id);
        let name = Notice::Name(container.clone());
        let purpose = Purpose::Run { connection, pidfd: started.pidfd, container, cgroup, kept };
        // Before anything is told: a connection that is gone takes with it what is known to be its own.
        self.processes.insert(started.pid, purpose);
        self.notify(id, name);
        self.accompany(id, started.pid, pid, exec.detach);
        Ok(())
    }

    /// Takes the leash off.
    pub(super) fn let_go(&mut self, id: u64) -> Result<(), RemoteError> {
        if let Some(connection) = self.connections.get_mut(&id) {
            (connection.leash, connection.uses) = (false, false);
        }
        rustix::process::set_parent_process_death_signal(None)
            .map_err(std::io::Error::from)
            .context(|| "detach from the command".into())
    }

    /// Ends a stack that is there for one-off containers, when the last of them has ended and nobody is about to run
    /// another one. True when it ends for that.
    pub(super) fn end_if_abandoned(&mut self) -> bool {
        let is_used = self.stays
            || !self.processes.is_empty()
            || self.connections.values().any(|connection| connection.leash || connection.uses);
        if is_used || self.ending.is_some() {
            return false;
        }
        self.end(false);
        true
    }

    /// What a one-off container of this service would have to wait for.
    pub(super) fn needs(&self, service: &str) -> Needs {
        let Some(unit) = self.units.iter().find(|unit| unit.service.name == service) else {
            return Needs::Container;
        };
        let mut missing = Vec::new();
        for dependency in &unit.service.depends_on {
            let replicas = self.replicas(&dependency.service);
            match fleet::readiness(&replicas, dependency.condition) {
                _ if replicas.is_empty() && dependency.optional => {}
                _ if replicas.is_empty() => return Needs::Container,
                Ok(true) => {}
                Ok(false) | Err(_) => missing.push(dependency.service.clone()),
            }
        }
        Needs::Services(missing)
    }

    /// A name for a one-off container that no service and no other one has.
    fn run_name(&self, service: &str, plan: &Plan) -> String {
        let mut names = (self.next_run..).map(|number| format!("{service}-run-{number}"));
        names.find(|name| !self.is_taken(name, plan)).unwrap_or_default()
    }

    /// The name that a user chose. It becomes a directory's and a host's.
    fn free_name(&self, name: &str, plan: &Plan) -> Result<String, RemoteError> {
        let refused = |text: String, hint: &str| {
            let mut error = RemoteError::message(text).or_hint(hint);
            error.exit_code = 2;
            Err(error)
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !name.chars().all(allowed)
            || name.len() > 63
        {
            return refused(
                format!("`{name}` cannot be the name of a container"),
                "letters, digits, `-`, `_` and `.`, beginning with a letter or a digit",
            );
        }
        if self.is_taken(name, plan) {
            return refused(format!("there is a container `{name}` already"), "choose another name");
        }
        Ok(name.to_owned())
    }

    fn is_taken(&self, name: &str, plan: &Plan) -> bool {
        plan.network.endpoints.iter().any(|endpoint| endpoint.service == name)
            || plan.services.iter().any(|service| service.name == name)
            || self.units.iter().any(|unit| unit.answers_to(name))
            || self.one_off_containers().any(|container| container == name)
    }

    /// A process that was started for a connection ended.
    pub(super) fn process_ended(&mut self, exit: Exit) {
        let connection = match self.processes.remove(&exit.pid) {
            Some(Purpose::Exec { connection, .. }) => connection,
            Some(Purpose::Run { connection, container, cgroup, kept, .. }) => {
                if let Some(mut kept) = kept {
                    self.drain_kept(&container, &mut kept);
                }
                let events = cgroup.as_ref().map(|cgroup| MemoryEvents::read(cgroup.path()));
                if matches!(events, Some(Ok(Some(events))) if events.oom_kill > 0) {
                    let text = format!("container `{container}`: processes were killed: out of memory");
                    match connection {
                        Some(id) => self.notify(id, Notice::Warning(text)),
                        None => tracing::warn!("{text}"),
                    }
                }
                self.remove_run(&container, cgroup);
                connection
            }
            // An orphan that the hub inherited.
            None => return,
        };
        if let Some(id) = connection {
            self.wait_done(id);
            self.notify(id, Notice::Exited { status: exit.status });
        }
    }

    /// Takes a one-off container's files, links and cgroup away. What cannot be is left for the end of the stack.
    fn remove_run(&mut self, container: &str, cgroup: Option<Cgroup>) {
        let mut results = vec![self.hub.remove(vec![spec::container_directory(&self.stack, container)])];
        if let Some(plan) = &mut self.plan {
            plan.network.endpoints.retain(|endpoint| endpoint.service != container);
            self.wiring.lend(container, Vec::new());
            results.push(self.wiring.apply(plan, &mut self.hub));
        }
        results.extend(cgroup.map(|cgroup| cgroup.remove().map_err(RemoteError::from)));
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!("remove the container `{container}`: {error}");
        }
    }

    pub(super) fn signal(&mut self, id: u64, signal: i32) -> Result<(), RemoteError> {
        let pending = self.connections.get(&id).and_then(|c| c.pending.clone());
        let Some(Pending::Process(pid)) = pending else {
            return Err(RemoteError::message("there is no process to signal"));
        };
        if let Some(Purpose::Exec { pidfd, .. } | Purpose::Run { pidfd, .. }) = self.processes.get(&pid) {
            deliver(pidfd, signal)?;
        }
        Ok(())
    }
}

fn deliver(pidfd: &OwnedFd, signal: i32) -> Result<(), RemoteError> {
    match sys::process::pidfd_kill(pidfd.as_fd(), signal) {
        // It has ended; the news of that is on its way.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(()),
        result => result.context(|| "signal the process".into()),
    }
}

fn stdio(fds: &[OwnedFd]) -> Result<[BorrowedFd<'_>; 3], RemoteError> {
    let (stdio, _) = fds
        .split_first_chunk::<3>()
        .ok_or_else(|| RemoteError::message("the command came without standard input and output"))?;
    Ok(stdio.each_ref().map(AsFd::as_fd))
}
