//! `pause` and `unpause`: the processes of a container stand still, and go on.

use std::collections::BTreeSet;

use container::cgroup::Cgroup;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Supervisor;
use super::unit::Unit;
use crate::control::{Notice, State};
use crate::event::What;
use crate::remote::{Context, RemoteError};
use crate::stats;

/// How often the processes of a container are looked for while they are stopped: each round catches the children that
/// those of the round before had in that moment.
const ROUNDS: usize = 100;

/// How the processes of a container are kept from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// By the freezer of their cgroup, of which they notice nothing.
    Frozen,
    /// By SIGSTOP, because they have no cgroup of their own.
    Stopped,
}

impl Supervisor {
    /// Pauses what runs.
    pub(super) fn pause(&mut self, id: u64, names: &[String]) -> Result<(), RemoteError> {
        let runs =
            |unit: &Unit| unit.run.as_ref().is_some_and(|run| run.kill_at.is_none() && run.pause.is_none());
        let meant = self.meant(names, runs, "is not running, or is paused already")?;
        let mut stopped = false;
        for index in meant {
            let unit = &mut self.units[index];
            let Some(run) = &mut unit.run else { continue };
            let how = hold(run.cgroup.as_ref(), run.host_pid)
                .context(|| format!("pause service `{}`", unit.container))?;
            stopped |= how == Pause::Stopped;
            run.pause = Some(how);
            // A probe would stand still with the others, and count as failed.
            let active = run.monitor.as_mut().and_then(|monitor| monitor.active.take());
            unit.state = State::Paused;
            self.cancel_probe(active);
            self.tell_state(index, None);
            self.tell_event_of(index, What::Paused);
        }
        if stopped {
            let text =
                "there is no cgroup to freeze: the processes got SIGSTOP, which their parents can notice";
            self.notify(id, Notice::Warning(text.into()));
        }
        self.notify(id, Notice::Done);
        Ok(())
    }

    /// Has what is paused go on.
    pub(super) fn unpause(&mut self, id: u64, names: &[String]) -> Result<(), RemoteError> {
        let paused = |unit: &Unit| unit.run.as_ref().is_some_and(|run| run.pause.is_some());
        for index in self.meant(names, paused, "is not paused")? {
            self.release(index).context(|| format!("unpause service `{}`", self.units[index].name()))?;
            self.units[index].state = State::Running;
            self.tell_state(index, None);
            self.tell_event_of(index, What::Unpaused);
        }
        self.notify(id, Notice::Done);
        Ok(())
    }

    /// Takes a pause away, if there is one.
    pub(super) fn release(&mut self, index: usize) -> Result<(), RemoteError> {
        let Some(run) = &mut self.units[index].run else { return Ok(()) };
        match (run.pause.take(), &run.cgroup) {
            (Some(Pause::Frozen), Some(cgroup)) => Ok(cgroup.thaw()?),
            (Some(_), _) => signal_all(run.host_pid, Signal::CONT),
            (None, _) => Ok(()),
        }
    }

    /// The containers that `names` mean and that are `fit`: all such when none is named, and each that is named.
    fn meant(
        &self,
        names: &[String],
        fit: impl Fn(&Unit) -> bool,
        otherwise: &str,
    ) -> Result<Vec<usize>, RemoteError> {
        let fits = |name: Option<&String>| {
            let meant = self
                .units
                .iter()
                .enumerate()
                .filter(move |(_, unit)| name.is_none_or(|name| unit.answers_to(name)));
            meant.filter(|(_, unit)| fit(unit)).map(|(index, _)| index).collect::<Vec<usize>>()
        };
        if names.is_empty() {
            return Ok(fits(None));
        }
        let mut found = BTreeSet::new();
        for name in names {
            self.known(name)?;
            let meant = fits(Some(name));
            if meant.is_empty() {
                return Err(RemoteError::message(format!("service `{name}` {otherwise}")));
            }
            found.extend(meant);
        }
        Ok(found.into_iter().collect())
    }
}

fn hold(cgroup: Option<&Cgroup>, first: u32) -> Result<Pause, RemoteError> {
    // Version 1 has a freezer in a tree of its own, to which containers of a stack are not moved.
    if let Some(cgroup) = cgroup.filter(|cgroup| cgroup.path().join("cgroup.freeze").exists()) {
        cgroup.freeze()?;
        return Ok(Pause::Frozen);
    }
    match signal_all(first, Signal::STOP) {
        Ok(()) => Ok(Pause::Stopped),
        Err(error) => {
            // Half of it is worse than nothing; the reason is told.
            signal_all(first, Signal::CONT).ok();
            Err(error)
        }
    }
}

/// Sends a signal to every process of the sandbox whose PID 1 is `first`, until none is left that did not get it.
fn signal_all(first: u32, signal: Signal) -> Result<(), RemoteError> {
    let mut reached = BTreeSet::new();
    for _ in 0..ROUNDS {
        let mut held = Vec::new();
        for pid in stats::processes(first)?.into_iter().filter(|pid| !reached.contains(pid)) {
            let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // One that has ended meanwhile.
            if let Some(pidfd) = number.and_then(|number| pidfd_open(number, PidfdFlags::empty()).ok()) {
                held.push((pid, pidfd));
            }
        }
        if held.is_empty() {
            return Ok(());
        }
        // Those that still belong to it: a number may have become another process's before it was held.
        let there = stats::processes(first)?;
        for (pid, pidfd) in held.into_iter().filter(|(pid, _)| there.contains(pid)) {
            match pidfd_send_signal(&pidfd, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => reached.insert(pid),
                Err(errno) => {
                    return Err(std::io::Error::from(errno)).context(|| format!("signal process {pid}"));
                }
            };
        }
    }
    Err(RemoteError::message("its processes multiply faster than they can be signalled"))
}
