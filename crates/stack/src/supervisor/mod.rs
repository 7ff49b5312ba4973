//! The supervisor: one process a stack, in the host's network namespace with the user's own id. A
//! single-threaded loop over descriptors; every decision is taken in [`Supervisor::advance`] from the
//! state that the events left.

mod adoption;
mod allowance;
mod capped;
mod connection;
mod detour;
mod direct;
mod events;
mod faults;
mod fleet;
mod health;
mod hooks;
mod logs;
pub(crate) mod memory;
mod netd;
mod one_off;
mod partners;
mod pause;
mod probe;
mod process;
mod publish;
mod request;
mod rolling;
mod shared;
mod start;
mod stop;
mod unit;
mod wiring;

pub use process::{ARGUMENT, main};

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use container::cgroup::{Cgroup, Delegation};
use image::Store;
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags};

use crate::control::{Notice, State};
use crate::event::What;
use crate::fault::Fault;
use crate::hub::client::{Exit, Hub};
use crate::plan::Plan;
use crate::remote::{Context, RemoteError};
use crate::report;
use adoption::{Change, Next};
use connection::{Connection, Pending};
use events::History;
use health::{Active, Kind};
use one_off::Kept;
use rolling::Rolling;
use unit::{Run, Unit};
use wiring::Wiring;

/// For who wonders why a service is started again and again.
const FOREGROUND: &str = "it ended with status 0 and is started again; a container ends when its program does, so a server has \
                          to stay in the foreground";

/// A process that was started on behalf of a connection or a probe.
#[derive(Debug)]
enum Purpose {
    /// `exec` of this connection; of none, when nobody waits for it.
    Exec { connection: Option<u64>, pidfd: OwnedFd },
    /// One-off container of this connection, with its name; of none, when nobody waits for it.
    Run {
        connection: Option<u64>,
        pidfd: OwnedFd,
        container: String,
        cgroup: Option<Cgroup>,
        kept: Option<Box<Kept>>,
    },
}

struct Supervisor {
    stack: String,
    /// The stack's runtime directory: socket, lock, logs.
    runtime: PathBuf,
    store: Store,
    hub: Hub,
    wiring: Wiring,
    history: History,
    /// What is wrong with networks because somebody asked for it, by container.
    faults: BTreeMap<String, Fault>,
    signals: SignalFd,
    listener: UnixListener,
    /// Held for life, and by everything that dies with us: free means that nothing of the stack is left.
    _lock: File,
    delegation: Delegation,
    /// The stack's cgroup, where it has limits that can be enforced.
    cgroup: Option<Cgroup>,
    /// The user namespace for idmapped mounts, as root.
    idmap: Option<OwnedFd>,
    /// Root inside, as a user and group of the host, where that is not us.
    owner: Option<(u32, u32)>,
    plan: Option<Plan>,
    /// The stack's files.
    files: Vec<PathBuf>,
    /// Image id of each service of the plan.
    images: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
    /// One for each container of each service, in the order of the plan.
    units: Vec<Unit>,
    /// A plan that takes effect when what it replaces is down.
    next: Option<Next>,
    /// The replacement of containers one by one that is under way.
    rolling: Option<Rolling>,
    /// Changes that came while another one was being made, with their connections.
    queued: VecDeque<(u64, Change)>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    processes: HashMap<i32, Purpose>,
    next_run: u32,
    /// Somebody wants the stack to be there; else it ends when nobody uses it any more.
    stays: bool,
    /// Set when the stack is to end; whether the volumes go too.
    ending: Option<bool>,
}

/// Who a polled descriptor belongs to.
#[derive(Debug, Clone, Copy)]
enum Token {
    Hub,
    HubProcess,
    Netd,
    Detour,
    Signals,
    Listener,
    Connection(u64),
    Output(usize, usize),
    /// Of the one-off container whose process has this number.
    Kept(i32, usize),
    Probe(usize),
    Memory(usize),
    Binds(usize),
}

impl Supervisor {
    /// Runs until the stack has ended.
    fn run(&mut self) -> Result<(), RemoteError> {
        loop {
            self.advance()?;
            if self.finished()? {
                return Ok(());
            }
            for (token, flags) in self.wait().context(|| "wait for events".into())? {
                self.handle(token, flags)?;
            }
            self.timers()?;
        }
    }

    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut tokens = Vec::new();
        let mut polled = Vec::new();
        for (token, fd, flags) in self.sources() {
            tokens.push(token);
            polled.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let others = [self.wiring.next(), self.history.next(), self.roll_next()].into_iter().flatten();
        let now = Instant::now();
        let units = self.units.iter().filter_map(|unit| unit.next(now));
        let kept = self.processes.values().filter_map(|purpose| purpose.kept()?.next(now));
        let timeout = units.chain(kept).chain(others).min().map(|at| {
            // Rounded up, so that what is due at a moment is due when the wait for it ends.
            at.saturating_duration_since(Instant::now()) + Duration::from_micros(999)
        });
        let timeout = timeout.and_then(|left| rustix::time::Timespec::try_from(left).ok());
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let fired = tokens.into_iter().zip(&polled).filter(|(_, p)| !p.revents().is_empty());
        Ok(fired.map(|(token, p)| (token, p.revents())).collect())
    }

    fn sources(&self) -> Vec<(Token, BorrowedFd<'_>, PollFlags)> {
        let mut sources = vec![
            (Token::Hub, self.hub.as_fd(), PollFlags::IN),
            (Token::HubProcess, self.hub.process.pidfd.as_fd(), PollFlags::IN),
            (Token::Signals, self.signals.as_fd(), PollFlags::IN),
            (Token::Listener, self.listener.as_fd(), PollFlags::IN),
        ];
        sources.extend(self.wiring.netd().map(|netd| (Token::Netd, netd, PollFlags::IN)));
        sources.extend(self.wiring.detour().map(|process| (Token::Detour, process, PollFlags::IN)));
        for (id, connection) in &self.connections {
            sources.push((Token::Connection(*id), connection.as_fd(), connection.interest()));
        }
        let now = Instant::now();
        for (pid, purpose) in &self.processes {
            let outputs = purpose.kept().into_iter().flat_map(|kept| kept.outputs(now)).enumerate();
            sources
                .extend(outputs.map(|(stream, output)| (Token::Kept(*pid, stream), output, PollFlags::IN)));
        }
        for (index, unit) in self.units.iter().enumerate() {
            // Who writes too much waits, and nobody else because of it.
            let held = unit.log.held_until(now).is_some();
            for (stream, output) in unit.outputs.iter().enumerate().filter(|_| !held) {
                sources.push((Token::Output(index, stream), output.as_fd(), PollFlags::IN));
            }
            let memory = unit.run.as_ref().and_then(|run| run.memory.as_ref());
            sources.extend(memory.map(|watch| (Token::Memory(index), watch.as_fd(), PollFlags::PRI)));
            let binds = unit.run.as_ref().and_then(|run| run.binds.as_ref());
            sources.extend(binds.map(|binds| (Token::Binds(index), binds.as_fd(), PollFlags::IN)));
            let monitor = unit.run.as_ref().and_then(|run| run.monitor.as_ref());
            let active = monitor.and_then(|monitor| monitor.active.as_ref());
            if let Some((fd, flags)) = active.and_then(Active::interest) {
                sources.push((Token::Probe(index), fd, flags));
            }
        }
        sources
    }

    fn handle(&mut self, token: Token, flags: PollFlags) -> Result<(), RemoteError> {
        match token {
            Token::Hub => {
                while let Some(exit) = self.hub.next_exit()? {
                    self.exited(exit);
                }
            }
            Token::HubProcess => return Err(RemoteError::message("the stack's hub ended")),
            Token::Netd => self.hear_netd()?,
            Token::Detour => self.lose_detour(),
            Token::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {
                    self.end(false);
                }
            }
            Token::Listener => match self.listener.accept() {
                Ok((stream, _)) => drop(self.connect(stream.into(), false)?),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => tracing::warn!("accept a command's connection: {error}"),
            },
            Token::Connection(id) => self.serve(id, flags),
            Token::Output(unit, stream) => self.read_output(unit, stream),
            Token::Kept(pid, stream) => self.read_kept(pid, stream),
            Token::Probe(unit) => self.read_probe(unit),
            Token::Memory(unit) => self.tell_kills(unit, Instant::now()),
            Token::Binds(unit) => self.answer_bind(unit, flags),
        }
        Ok(())
    }

    fn connect(&mut self, fd: OwnedFd, leash: bool) -> Result<u64, RemoteError> {
        let id = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(id, Connection::new(fd, leash)?);
        Ok(id)
    }

    /// Takes every step that the present state allows: stops, starts, answers.
    fn advance(&mut self) -> Result<(), RemoteError> {
        loop {
            self.take_known_events();
            let ended = self.take_known_exits();
            let abandoned = self.end_if_abandoned();
            let stopped = self.stop_what_is_not_wanted();
            let started = self.start_what_is_ready();
            let switched = self.switch_plan();
            let rolled = self.roll();
            let followed = self.follow_partners();
            let swept = self.sweep();
            let changed = ended
                || abandoned
                || stopped
                || started
                || switched
                || rolled
                || followed
                || swept
                || self.next_change();
            self.tell_netd();
            if !changed {
                break;
            }
        }
        self.answer_connections();
        Ok(())
    }

    /// Processes that ended while the hub was asked for something.
    fn take_known_exits(&mut self) -> bool {
        let mut changed = false;
        while let Some(exit) = self.hub.known_exit() {
            self.exited(exit);
            changed = true;
        }
        changed
    }

    /// A process of the hub's ended.
    fn exited(&mut self, exit: Exit) {
        let now = Instant::now();
        if let Some(index) = self.unit_of(|run| run.pid == exit.pid) {
            self.drain(index);
            self.tell_kills(index, now);
            let unit = &mut self.units[index];
            let killed = exit.signal == Some(rustix::process::Signal::KILL.as_raw());
            let namespace = unit.run.as_ref().and_then(|run| run.partners.pid).filter(|_| killed);
            let ran = unit.run.as_ref().map_or(Duration::ZERO, |run| now.duration_since(run.started));
            unit.ended(exit.status, now);
            unit.bereft_of = namespace;
            let left_the_foreground = unit.left_the_foreground(ran);
            let how = match (unit.shortage, exit.signal) {
                (Some(shortage), _) => memory::reason(shortage),
                (None, Some(signal)) => format!("ended by signal {signal}"),
                (None, None) => format!("exited with status {}", exit.status),
            };
            let what = What::Exited {
                status: exit.status,
                how: how.clone(),
                oom_killed: unit.shortage.is_some(),
                restarts: unit.state == State::Restarting,
            };
            self.tell_state(index, Some(how));
            self.tell_event_of(index, what);
            if left_the_foreground {
                self.note(index, FOREGROUND);
            }
            return;
        }
        let probed = |run: &Run| {
            let active = run.monitor.as_ref().and_then(|monitor| monitor.active.as_ref());
            matches!(active.map(|a| &a.kind), Some(Kind::Exec { pid, .. }) if *pid == exit.pid)
        };
        if let Some(index) = self.unit_of(probed) {
            self.read_probe(index);
            match exit.status {
                0 => self.conclude(index, Ok(())),
                status => self.probe_failed(index, self.probe_output(index, status)),
            }
            return;
        }
        let is_hook = |run: &Run| run.hooks.as_ref().is_some_and(|hooks| hooks.runs(exit.pid));
        if let Some(index) = self.unit_of(is_hook) {
            return self.hook_ended(index, exit.status);
        }
        self.process_ended(exit);
    }

    fn unit_of(&self, mut found: impl FnMut(&Run) -> bool) -> Option<usize> {
        self.units.iter().position(|unit| unit.run.as_ref().is_some_and(&mut found))
    }

    /// Everything that is due by the clock.
    fn timers(&mut self) -> Result<(), RemoteError> {
        let now = Instant::now();
        if let Err(error) = report::cap(&self.runtime) {
            tracing::warn!("begin the supervisor's log anew: {error}");
        }
        self.revive_netd(now)?;
        self.tell_left_out(now);
        self.account_kept(now);
        for index in 0..self.units.len() {
            self.account(index, now);
            let unit = &mut self.units[index];
            if unit.restart_at.is_some_and(|at| at <= now) {
                unit.restart_at = None;
                unit.restarts += 1;
                unit.pending = true;
            }
            let Some(run) = &mut unit.run else { continue };
            if run.kill_at.is_some_and(|at| at <= now) {
                if let Err(error) = sys::process::pidfd_kill(run.pidfd.as_fd(), 9) {
                    tracing::warn!("kill service `{}`: {error}", unit.container);
                }
                run.kill_at = Some(now + Duration::from_secs(10));
            }
            if run.kill_at.is_some() || run.pause.is_some() {
                continue;
            }
            if run.hooks.as_ref().is_some_and(|hooks| hooks.deadline <= now) {
                self.cut_hooks_short(index);
                continue;
            }
            let Some(monitor) = &mut run.monitor else { continue };
            if monitor.is_overdue(now) {
                self.probe_overdue(index);
            } else if monitor.is_due(now) {
                match self.probe(index) {
                    Ok(kind) => {
                        let run = self.units[index].run.as_mut();
                        if let Some(monitor) = run.and_then(|run| run.monitor.as_mut()) {
                            monitor.begin(kind, now);
                        }
                    }
                    Err(error) => self.probe_failed(index, error.to_string()),
                }
            }
        }
        Ok(())
    }

    fn cancel_probe(&self, active: Option<Active>) {
        if let Some(Kind::Exec { pidfd, .. }) = active.map(|active| active.kind) {
            // It may have ended in this moment.
            sys::process::pidfd_kill(pidfd.as_fd(), 9).ok();
        }
    }

    fn answer_bind(&mut self, index: usize, flags: PollFlags) {
        let Some(unit) = self.units.get_mut(index) else { return };
        let Some(run) = &mut unit.run else { return };
        if !flags.contains(PollFlags::IN) {
            // Nobody is left who could ask.
            run.binds = None;
            return;
        }
        if let Some(binds) = &mut run.binds {
            binds.answer(&unit.service.ports, |port| self.wiring.socket_of(&unit.service.name, port));
        }
    }

    fn tell_state(&mut self, index: usize, detail: Option<String>) {
        let unit = &self.units[index];
        tracing::info!(service = unit.name(), state = ?unit.state, detail, "state");
        let (service, state) = (unit.name().to_owned(), unit.state);
        let notice = Notice::State { service: service.clone(), state, detail };
        let interested: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| {
                // Who holds the leash ends the stack when nothing runs any more, whatever it follows.
                c.leash
                    || c.follows(unit)
                    || matches!(c.pending, Some(ref p) if !matches!(p, Pending::Process(_)))
            })
            .map(|(id, _)| *id)
            .collect();
        for id in interested {
            self.notify(id, notice.clone());
        }
    }

    fn tell_followers(&mut self, index: usize, notice: &Notice) {
        let unit = &self.units[index];
        let ids: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.follows(unit)).map(|(id, _)| *id).collect();
        for id in ids {
            self.notify(id, notice.clone());
        }
    }

    fn notify(&mut self, id: u64, notice: Notice) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.notify(notice)
        {
            self.disconnect(id);
        }
    }
}
