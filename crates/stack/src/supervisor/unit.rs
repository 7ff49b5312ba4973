//! One service as the supervisor knows it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use container::Process;
use container::cgroup::Cgroup;
use image::Image;

use super::direct::Binds;
use super::health::Monitor;
use super::logs::{Log, Output};
use super::memory::Watch;
use crate::control::{Health, State, Status};
use crate::plan::{Condition, Healthcheck, RestartPolicy, Service};

/// First pause before a restart; doubled each time, as Docker does.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause before a restart.
const LAST_BACKOFF: Duration = Duration::from_secs(60);
/// A service whose pause has grown beyond this, which takes nine failures in a row and most of a minute, is not
/// waited for any more.
const PATIENCE: Duration = Duration::from_secs(30);
/// A service that ran this long starts anew with the shortest pause.
const STEADY: Duration = Duration::from_secs(10);

/// A service, wanted and actual.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) service: Service,
    pub(crate) image: Image,
    /// Image id, by which a newer one is recognised.
    pub(crate) image_id: String,
    /// The process that it runs, for `exec`.
    pub(crate) process: Process,
    pub(crate) stop_signal: i32,
    pub(crate) check: Option<Healthcheck>,
    /// Whether it should run.
    pub(crate) wanted: bool,
    /// Whether a start is due as soon as its dependencies are there.
    pub(crate) pending: bool,
    pub(crate) state: State,
    pub(crate) run: Option<Run>,
    pub(crate) exit_code: Option<i32>,
    /// Whether the last run was ended for memory.
    pub(crate) oom_killed: bool,
    pub(crate) restarts: u32,
    backoff: Duration,
    /// When the restart that is waited for is due.
    pub(crate) restart_at: Option<Instant>,
    /// Why the last start did not happen.
    pub(crate) failure: Option<crate::remote::RemoteError>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) log: Log,
    /// Its writable layer and its links are to be thrown away before the next start.
    pub(crate) recreate: bool,
}

/// A running service.
#[derive(Debug)]
pub(crate) struct Run {
    /// PID 1's number in the hub's PID namespace.
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// The same process's number on the host.
    pub(crate) host_pid: u32,
    pub(crate) started: Instant,
    pub(crate) monitor: Option<Monitor>,
    /// Its cgroup, where limits can be enforced.
    pub(crate) cgroup: Option<Cgroup>,
    /// Tells of processes that are killed for memory.
    pub(crate) memory: Option<Watch>,
    /// Where its `bind` calls are answered, if it has a port that it accepts on by itself.
    pub(crate) binds: Option<Binds>,
    /// When SIGKILL follows the stop signal.
    pub(crate) kill_at: Option<Instant>,
}

/// Whether a dependency is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    NotYet,
    /// It will not be without somebody doing something.
    Never,
}

impl Unit {
    pub(crate) fn new(
        service: Service,
        image: Image,
        image_id: String,
        log: Log,
    ) -> Result<Self, crate::RemoteError> {
        let process = crate::spec::process(&service, &image)?;
        let stop_signal = crate::spec::stop_signal(&service, &image)?;
        let check = crate::spec::healthcheck(&service, &image);
        Ok(Self {
            service,
            image,
            image_id,
            process,
            stop_signal,
            check,
            wanted: false,
            pending: false,
            state: State::Created,
            run: None,
            exit_code: None,
            oom_killed: false,
            restarts: 0,
            backoff: FIRST_BACKOFF,
            restart_at: None,
            failure: None,
            outputs: Vec::new(),
            log,
            recreate: false,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.service.name
    }

    pub(crate) fn health(&self) -> Option<Health> {
        Some(self.run.as_ref()?.monitor.as_ref()?.health)
    }

    /// Asks for a start, by a user.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
        if self.pending {
            return;
        }
        match &self.run {
            None => self.state = State::Waiting,
            // It is being stopped: it starts again when it has.
            Some(run) if run.kill_at.is_some() => {}
            Some(_) => return,
        }
        self.begin_anew();
    }

    /// Asks for a stop and a start.
    pub(crate) fn restart(&mut self) {
        self.give_up();
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        self.pending = true;
        self.failure = None;
        self.restart_at = None;
        self.restarts = 0;
        self.backoff = FIRST_BACKOFF;
    }

    /// Puts off a start that its policy asked for; false when it was a user who did, and is to be told.
    pub(crate) fn postpone(&mut self, now: Instant) -> bool {
        if self.restarts == 0 {
            return false;
        }
        self.restarts -= 1;
        self.pending = false;
        self.restart_later(now);
        true
    }

    fn restart_later(&mut self, now: Instant) {
        self.state = State::Restarting;
        self.restart_at = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
    }

    /// Takes a start back.
    pub(crate) fn give_up(&mut self) {
        self.wanted = false;
        self.pending = false;
        self.restart_at = None;
        if self.run.is_none() {
            self.state = if self.exit_code.is_some() { State::Exited } else { State::Created };
        }
    }

    /// Whether one who depends on this service under `condition` may start.
    pub(crate) fn readiness(&self, condition: Condition) -> Readiness {
        if self.failure.is_some() {
            return Readiness::Never;
        }
        let ended = self.state == State::Exited && !self.pending;
        match condition {
            Condition::Started if self.run.is_some() || self.exit_code.is_some() => Readiness::Ready,
            Condition::Completed if ended && self.exit_code == Some(0) => Readiness::Ready,
            Condition::Completed if ended => Readiness::Never,
            _ if self.state == State::Restarting && self.backoff > PATIENCE => Readiness::Never,
            Condition::Healthy => match (&self.run, self.health()) {
                (Some(_), Some(Health::Healthy)) => Readiness::Ready,
                // Without a check there is nothing to wait for but the start.
                (Some(_), None) => Readiness::Ready,
                (Some(_), Some(Health::Unhealthy)) => Readiness::Never,
                (None, _) if ended => Readiness::Never,
                _ => Readiness::NotYet,
            },
            _ if !self.wanted && !self.pending && self.run.is_none() => Readiness::Never,
            _ => Readiness::NotYet,
        }
    }

    /// It runs.
    pub(crate) fn started(&mut self, run: Run) {
        self.run = Some(run);
        self.wanted = true;
        self.pending = false;
        self.failure = None;
        self.state = State::Running;
    }

    /// It ended; decides by its policy whether and when it starts again.
    pub(crate) fn ended(&mut self, status: i32, now: Instant) {
        let run = self.run.take();
        // Who was being stopped had SIGKILL from us.
        self.oom_killed = run.as_ref().is_some_and(|run| {
            run.kill_at.is_none() && run.memory.as_ref().is_some_and(|watch| watch.explains(status, now))
        });
        let ran = run.as_ref().map_or(Duration::ZERO, |run| now.duration_since(run.started));
        if let Some(Err(error)) = run.and_then(|run| run.cgroup).map(Cgroup::remove) {
            // The next command removes what is left.
            tracing::warn!("remove the cgroup of service `{}`: {error}", self.service.name);
        }
        self.exit_code = Some(status);
        self.state = State::Exited;
        if ran >= STEADY {
            self.backoff = FIRST_BACKOFF;
        }
        let again = match self.service.restart {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure(limit) => status != 0 && limit.is_none_or(|n| self.restarts < n),
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        };
        if again && self.wanted && !self.pending {
            self.restart_later(now);
        }
    }

    /// The next moment at which something is to be done without any event.
    pub(crate) fn next(&self) -> Option<Instant> {
        let run = self.run.as_ref();
        let health =
            run.filter(|run| run.kill_at.is_none()).and_then(|run| run.monitor.as_ref()).map(Monitor::next);
        [self.restart_at, run.and_then(|run| run.kill_at), health].into_iter().flatten().min()
    }

    pub(crate) fn status(&self, now: Instant, ports: Vec<String>) -> Status {
        Status {
            service: self.service.name.clone(),
            state: self.state,
            health: self.health(),
            ports,
            image: crate::spec::image_name(&self.service),
            pid: self.run.as_ref().map(|run| run.host_pid),
            exit_code: if self.run.is_some() { None } else { self.exit_code },
            oom_killed: self.run.is_none() && self.oom_killed,
            restarts: self.restarts,
            uptime: self.run.as_ref().map(|run| now.duration_since(run.started).as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostFacts;
    use crate::load::{LoadOptions, load};

    fn unit(directory: &std::path::Path, keys: &str) -> Unit {
        let file = directory.join("stack.toml");
        let text = format!("name = \"t\"\n[services.s]\nimage = \"x\"\ncommand = [\"true\"]\n{keys}\n");
        std::fs::write(&file, text).unwrap();
        let plan = load(&LoadOptions { file, ..LoadOptions::default() }, &HostFacts::default()).unwrap();
        let id = image::Digest::of(b"");
        let image = Image { id, config: image::ImageConfig::default(), layers: Vec::new() };
        let log = Log::open(directory, "s").unwrap();
        Unit::new(plan.services[0].clone(), image, String::new(), log).unwrap()
    }

    fn run(started: Instant) -> Run {
        let pidfd =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
                .unwrap();
        Run {
            pid: 1,
            pidfd,
            host_pid: 1,
            started,
            monitor: None,
            cgroup: None,
            memory: None,
            binds: None,
            kill_at: None,
        }
    }

    #[test]
    fn who_waits_for_a_service_that_keeps_failing_is_told_in_the_end() {
        let top = tempfile::tempdir().unwrap();
        let mut unit = unit(top.path(), "restart = \"always\"");
        let mut now = Instant::now();
        let start = now;
        unit.want();
        while unit.readiness(Condition::Healthy) != Readiness::Never {
            unit.started(run(now));
            assert_eq!(unit.readiness(Condition::Healthy), Readiness::Ready);
            unit.ended(1, now);
            now = unit.next().unwrap();
            assert!(now < start + Duration::from_secs(120), "it is still waited for");
        }
        assert!(now > start + Duration::from_secs(30), "it was given up early");
        assert_eq!(unit.state, State::Restarting, "its policy goes on all the same");
        // A run that lasts begins the count anew.
        unit.started(run(now));
        unit.ended(1, now + STEADY);
        assert_eq!(unit.readiness(Condition::Healthy), Readiness::NotYet);
    }

    #[test]
    fn a_start_during_a_stop_is_remembered() {
        let top = tempfile::tempdir().unwrap();
        let mut unit = unit(top.path(), "");
        let now = Instant::now();
        unit.want();
        unit.started(run(now));
        unit.want();
        assert!(!unit.pending, "it runs already");
        unit.give_up();
        unit.run.as_mut().unwrap().kill_at = Some(now);
        unit.want();
        unit.ended(0, now);
        assert!(unit.wanted && unit.pending && unit.restart_at.is_none());
    }

    #[test]
    fn a_restart_forgets_an_earlier_failure() {
        let top = tempfile::tempdir().unwrap();
        let mut unit = unit(top.path(), "");
        unit.failure = Some(crate::RemoteError::message("no"));
        assert_eq!(unit.readiness(Condition::Started), Readiness::Never);
        unit.restart();
        unit.started(run(Instant::now()));
        assert_eq!(unit.readiness(Condition::Started), Readiness::Ready);
    }

    #[test]
    fn only_a_start_by_policy_is_put_off() {
        let top = tempfile::tempdir().unwrap();
        let mut unit = unit(top.path(), "restart = \"on-failure:2\"");
        let now = Instant::now();
        unit.want();
        assert!(!unit.postpone(now));
        unit.started(run(now));
        unit.ended(1, now);
        // As the timer does.
        (unit.restart_at, unit.restarts, unit.pending) = (None, 1, true);
        assert!(unit.postpone(now) && unit.restart_at.is_some() && unit.restarts == 0);
    }
}
