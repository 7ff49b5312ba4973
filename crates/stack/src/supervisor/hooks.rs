//! `post_start` and `pre_stop`: commands inside of a container, one after the other, at the turns of its life.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::Supervisor;
use super::logs::Output;
use crate::control::{State, Stream};
use crate::plan::Hook;
use crate::remote::{Context, RemoteError};
use crate::spec;

/// How long the commands after a start may take together.
const START_DEADLINE: Duration = Duration::from_secs(300);

/// The commands of one turn that are left to be run.
#[derive(Debug)]
pub(crate) struct Hooks {
    turn: Turn,
    left: VecDeque<Hook>,
    active: Option<Active>,
    /// When they have taken too long.
    pub(super) deadline: Instant,
}

/// When commands are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The container has started, and counts as started when they are through.
    Start,
    /// It is to stop, and gets its stop signal when they are through.
    Stop,
}

#[derive(Debug)]
struct Active {
    /// Its number with the hub.
    pid: i32,
    pidfd: OwnedFd,
    name: String,
}

impl Hooks {
    /// Which turn they are for.
    pub(crate) fn turn(&self) -> Turn {
        self.turn
    }

    /// Whether this process of the hub's is one of them.
    pub(crate) fn runs(&self, pid: i32) -> bool {
        self.active.as_ref().is_some_and(|active| active.pid == pid)
    }
}

impl Supervisor {
    /// Begins what a container that has just started has to do first.
    pub(super) fn begin_welcome(&mut self, index: usize) {
        let hooks = self.units[index].service.post_start.clone();
        self.begin_hooks(index, Turn::Start, hooks, START_DEADLINE);
    }

    /// Begins what a container has to do before its stop signal. Its grace period is theirs, too.
    pub(super) fn begin_farewell(&mut self, index: usize) {
        let unit = &mut self.units[index];
        unit.state = State::Stopping;
        let hooks = unit.service.pre_stop.clone();
        let grace = unit.grace();
        self.tell_state(index, None);
        self.begin_hooks(index, Turn::Stop, hooks, grace);
    }

    fn begin_hooks(&mut self, index: usize, turn: Turn, hooks: Vec<Hook>, limit: Duration) {
        let Some(run) = &mut self.units[index].run else { return };
        if hooks.is_empty() {
            return;
        }
        run.hooks = Some(Hooks { turn, left: hooks.into(), active: None, deadline: Instant::now() + limit });
        self.next_hook(index);
    }

    /// Runs the next command, or goes on with what they were for.
    fn next_hook(&mut self, index: usize) {
        let Some(hooks) = self.units[index].run.as_mut().and_then(|run| run.hooks.as_mut()) else { return };
        let Some(hook) = hooks.left.pop_front() else { return self.end_hooks(index, Ok(())) };
        match self.run_hook(index, &hook) {
            Ok(active) => {
                if let Some(hooks) = self.units[index].run.as_mut().and_then(|run| run.hooks.as_mut()) {
                    hooks.active = Some(active);
                }
            }
            Err(error) => self.end_hooks(index, Err(error)),
        }
    }

    /// Starts one. What it writes is in the log of its container.
    fn run_hook(&mut self, index: usize, hook: &Hook) -> Result<Active, RemoteError> {
        let (out, stdout) = Output::pipe(Stream::Stdout, self.owner)?;
        let (err, stderr) = Output::pipe(Stream::Stderr, self.owner)?;
        let null = File::open("/dev/null")?;
        let unit = &self.units[index];
        let run = unit.run.as_ref().ok_or_else(|| RemoteError::message("it does not run"))?;
        let process = spec::process_of_hook(&unit.process, hook);
        let cgroup = run.cgroup.as_ref().map(AsFd::as_fd);
        let stdio = [null.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let name = hook.command.join(" ");
        let started =
            self.hub.exec(run.pid, process, cgroup, stdio).context(|| format!("run `{name}` in it"))?;
        self.units[index].outputs.extend([out, err]);
        Ok(Active { pid: started.pid, pidfd: started.pidfd, name })
    }

    /// One of them has ended.
    pub(super) fn hook_ended(&mut self, index: usize, status: i32) {
        self.drain(index);
        let Some(hooks) = self.units[index].run.as_mut().and_then(|run| run.hooks.as_mut()) else { return };
        let name = hooks.active.take().map(|active| active.name).unwrap_or_default();
        match status {
            0 => self.next_hook(index),
            status => {
                let error = RemoteError::message(format!("`{name}` ended with status {status}"));
                self.end_hooks(index, Err(error));
            }
        }
    }

    /// They have taken too long.
    pub(super) fn cut_hooks_short(&mut self, index: usize) {
        let hooks = self.units[index].run.as_mut().and_then(|run| run.hooks.as_mut());
        let name = hooks.and_then(|hooks| hooks.active.as_ref()).map(|active| active.name.clone());
        let error = format!("`{}` took too long", name.unwrap_or_default());
        self.end_hooks(index, Err(RemoteError::message(error)));
    }

    /// Ends the turn. A container whose start is not complete is stopped; one that is to stop is stopped in any case.
    fn end_hooks(&mut self, index: usize, result: Result<(), RemoteError>) {
        let Some(hooks) = self.drop_hooks(index) else { return };
        let name = self.units[index].name().to_owned();
        match (hooks.turn, result) {
            (Turn::Start, Ok(())) => {}
            (Turn::Start, Err(error)) => {
                let error = error.context(format!("service `{name}` was stopped: its `post_start` failed"));
                self.tell_state(index, Some(error.to_string()));
                let unit = &mut self.units[index];
                unit.failure = Some(error);
                unit.give_up();
            }
            (Turn::Stop, result) => {
                if let Err(error) = result {
                    self.tell_state(index, Some(format!("`pre_stop` failed: {error}")));
                }
                self.send_stop(&[index]);
            }
        }
    }

    /// Forgets what is left of a turn, and ends what is under way.
    pub(super) fn drop_hooks(&mut self, index: usize) -> Option<Hooks> {
        let hooks = self.units[index].run.as_mut()?.hooks.take()?;
        if let Some(active) = &hooks.active {
            // It may have ended in this moment.
            sys::process::pidfd_kill(active.pidfd.as_fd(), 9).ok();
        }
        Some(hooks)
    }
}
