//! One container of a service as the supervisor knows it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use container::Process;
use container::cgroup::Cgroup;
use image::Image;
use network::balance;
use network::plan::replica_name;

use super::direct::Binds;
use super::health::Monitor;
use super::hooks::{Hooks, Turn};
use super::logs::{Log, Output};
use super::memory::{Shortage, Watch};
use super::pause::Pause;
use crate::control::{Health, State, Status};
use crate::hub::Partners;
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

/// A container of a service, wanted and actual.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) service: Service,
    /// Which of the service's replicas it is, from 1.
    pub(crate) slot: u16,
    /// Its name: the service's own for the first replica.
    pub(crate) container: String,
    /// What the plan in force has to do with it.
    pub(crate) standing: Standing,
    /// Values of those of its secrets that come from variables.
    pub(crate) secrets: BTreeMap<String, String>,
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
    /// Whose memory was used up when the last run was ended for that.
    pub(crate) shortage: Option<Shortage>,
    pub(crate) restarts: u32,
    backoff: Duration,
    /// When the restart that is waited for is due.
    pub(crate) restart_at: Option<Instant>,
    /// Why the last start did not happen.
    pub(crate) failure: Option<crate::remote::RemoteError>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) log: Log,
    /// What an earlier container of its name left is to be thrown away before the next start.
    pub(crate) recreate: bool,
    /// Set while it parts from its clients.
    pub(crate) parting: Option<Parting>,
    /// How long the stop that is under way may take, where a user said so.
    timeout: Option<Duration>,
    /// It is started without what it depends on.
    pub(crate) no_deps: bool,
    /// It was killed as one is whose PID namespace has ended, which was this first process's.
    pub(crate) bereft_of: Option<i32>,
    /// The connection that works on its files while it does not run: it does not start meanwhile.
    pub(crate) held_by: Option<u64>,
}

/// How a container that is to stop parts from its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parting {
    /// Its stop signal follows then at the latest.
    pub(crate) until: Instant,
    /// Others take over: it keeps the connections that it has until they end. Without, it only answers what it has been
    /// asked before.
    pub(crate) drains: bool,
}

/// What the plan in force has to do with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is as planned.
    Current,
    /// It is as planned, and has to show that it can take the place of an outdated one.
    Trial,
    /// It has an earlier configuration, until another one has shown that it can take its place.
    Outdated,
    /// It goes as soon as it is down. Nothing waits for that.
    Retired,
    /// It has to be down before the next plan takes effect.
    Replaced {
        /// A container of its name follows.
        again: bool,
    },
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
    /// Commands that come before it counts as started, or before its stop signal.
    pub(crate) hooks: Option<Hooks>,
    /// How its processes are kept from running, while they are.
    pub(crate) pause: Option<Pause>,
    /// The first processes of those whose PID and IPC namespaces it has, by their numbers as [`Self::pid`].
    pub(crate) partners: Partners<i32>,
}

impl Run {
    /// Whether commands of this turn are being run.
    pub(crate) fn is_at(&self, turn: Turn) -> bool {
        self.hooks.as_ref().is_some_and(|hooks| hooks.turn() == turn)
    }
}

fn first_backoff(service: &Service) -> Duration {
    let delay = service.restart_delay.and_then(|delay| Duration::try_from_secs_f64(delay).ok());
    delay.unwrap_or(FIRST_BACKOFF)
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
        slot: u16,
        image: Image,
        image_id: String,
        log: Log,
    ) -> Result<Self, crate::RemoteError> {
        let process = crate::spec::process(&service, &image)?;
        let stop_signal = crate::spec::stop_signal(&service, &image)?;
        let check = crate::spec::healthcheck(&service, &image);
        let backoff = first_backoff(&service);
        Ok(Self {
            container: replica_name(&service.name, slot),
            service,
            slot,
            standing: Standing::Current,
            secrets: BTreeMap::new(),
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
            shortage: None,
            restarts: 0,
            backoff,
            restart_at: None,
            failure: None,
            outputs: Vec::new(),
            log,
            recreate: true,
            parting: None,
            timeout: None,
            no_deps: false,
            bereft_of: None,
            held_by: None,
        })
    }

    /// The container's name.
    pub(crate) fn name(&self) -> &str {
        &self.container
    }

    /// Whether a user who says `name` means this container: all of a service by its name, one by its own, the
    /// first also by its number.
    pub(crate) fn answers_to(&self, name: &str) -> bool {
        let numbered = || {
            let number = name.strip_prefix(self.service.name.as_str())?.strip_prefix('-')?;
            Some(!number.starts_with('0') && number.parse() == Ok(self.slot))
        };
        let called = || self.service.container_name.as_deref() == Some(name);
        name == self.service.name || name == self.container || called() || numbered() == Some(true)
    }

    /// Whether one of these names means it.
    pub(crate) fn is_among(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.answers_to(name))
    }

    /// What netd is to make of it.
    pub(crate) fn balance_state(&self) -> balance::State {
        let comes_back = self.pending || self.standing == Standing::Replaced { again: true };
        let leaves = self.parting.is_some() || self.run.as_ref().is_some_and(|run| run.kill_at.is_some());
        match (&self.run, self.health()) {
            // It goes on with the connections it has; nobody waits for it.
            (Some(_), _) if self.parting.is_some_and(|parting| parting.drains) => balance::State::Draining,
            // Who has nobody else to go to waits for it.
            (Some(run), _) if run.pause.is_some() => balance::State::Starting,
            (Some(_), _) if leaves && !comes_back => balance::State::Down,
            (Some(_), _) if leaves => balance::State::Starting,
            (Some(_), None | Some(Health::Healthy)) => balance::State::Ready,
            (Some(_), Some(Health::Starting)) => balance::State::Starting,
            (Some(_), Some(Health::Unhealthy)) => balance::State::Unhealthy,
            (None, _) if comes_back || self.restart_at.is_some() => balance::State::Starting,
            (None, _) => balance::State::Down,
        }
    }

    pub(crate) fn health(&self) -> Option<Health> {
        Some(self.run.as_ref()?.monitor.as_ref()?.health)
    }

    /// Asks for a start, by a user.
    pub(crate) fn want(&mut self) {
        if self.pending {
            // A stop comes first if a restart asked for it, which wants it then.
            return;
        }
        self.wanted = true;
        match &self.run {
            None => self.state = State::Waiting,
            // It is being stopped: it starts again when it has.
            Some(run) if run.kill_at.is_some() || run.is_at(Turn::Stop) => {}
            Some(_) => {
                if self.parting.take().is_some() {
                    self.state = State::Running;
                }
                return;
            }
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
        self.backoff = first_backoff(&self.service);
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
        // A pause of the file's may be longer.
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF.max(first_backoff(&self.service)));
    }

    /// Takes a start back.
    pub(crate) fn give_up(&mut self) {
        self.wanted = false;
        self.pending = false;
        self.restart_at = None;
        self.bereft_of = None;
        if self.run.is_none() {
            self.state = if self.exit_code.is_some() { State::Exited } else { State::Created };
        }
    }

    /// How long it keeps the connections that it has before its stop signal comes, and after that its program.
    pub(crate) fn grace(&self) -> Duration {
        let own = || Duration::try_from_secs_f64(self.service.stop_grace_period).unwrap_or(Duration::ZERO);
        self.timeout.unwrap_or_else(own)
    }

    /// Sets how long its stop may take, this time only. One that is being stopped gets no more time by it.
    pub(crate) fn limit_stop(&mut self, timeout: Duration, now: Instant) {
        let latest = now + timeout;
        self.timeout = Some(timeout);
        if let Some(parting) = &mut self.parting {
            parting.until = parting.until.min(latest);
        }
        if let Some(run) = &mut self.run {
            run.kill_at = run.kill_at.map(|at| at.min(latest));
        }
    }

    /// Whether nothing of it runs, and nothing is about to.
    pub(crate) fn is_down(&self) -> bool {
        self.run.is_none() && !self.pending && self.restart_at.is_none()
    }

    /// Forgets its last run: its next start begins with the files of its image.
    pub(crate) fn forget(&mut self) {
        self.recreate = true;
        (self.exit_code, self.shortage, self.failure, self.restarts) = (None, None, None, 0);
        self.state = State::Created;
    }

    /// Whether one who depends on this container under `condition` may start.
    pub(crate) fn readiness(&self, condition: Condition) -> Readiness {
        if self.failure.is_some() {
            return Readiness::Never;
        }
        // It is about to be started, perhaps once it is down.
        if self.pending || self.run.as_ref().is_some_and(|run| run.is_at(Turn::Start)) {
            return Readiness::NotYet;
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
        self.bereft_of = None;
        self.wanted = true;
        self.pending = false;
        self.failure = None;
        (self.parting, self.timeout) = (None, None);
        self.state = State::Running;
    }

    /// It ended; decides by its policy whether and when it starts again.
    pub(crate) fn ended(&mut self, status: i32, now: Instant) {
        let run = self.run.take();
        self.parting = None;
        // Who was being stopped had SIGKILL from us.
        let watch = run.as_ref().filter(|run| run.kill_at.is_none()).and_then(|run| run.memory.as_ref());
        self.shortage = watch.and_then(|watch| watch.explains(status, now));
        let ran = run.as_ref().map_or(Duration::ZERO, |run| now.duration_since(run.started));
        if let Some(Err(error)) = run.and_then(|run| run.cgroup).map(Cgroup::remove) {
            // The next command removes what is left.
            tracing::warn!("remove the cgroup of service `{}`: {error}", self.container);
        }
        self.exit_code = Some(status);
        self.state = State::Exited;
        if ran >= STEADY {
            self.backoff = first_backoff(&self.service);
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

    /// Whether its first run, which has just ended, was what a server does that goes into the background: success, soon,
    /// and its policy starts it again. `ran` is how long that was.
    pub(crate) fn left_the_foreground(&self, ran: Duration) -> bool {
        self.state == State::Restarting && self.exit_code == Some(0) && self.restarts == 0 && ran < STEADY
    }

    /// The next moment at which something is to be done without any event.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let run = self.run.as_ref();
        let health = run
            .filter(|run| run.kill_at.is_none() && run.pause.is_none())
            .and_then(|run| run.monitor.as_ref())
            .map(Monitor::next);
        let stop = run.and_then(|run| run.kill_at.or(self.parting.map(|parting| parting.until)));
        let hooks = run.and_then(|run| run.hooks.as_ref()).map(|hooks| hooks.deadline);
        let held = self.log.held_until(now).filter(|_| !self.outputs.is_empty());
        [self.restart_at, stop, health, hooks, held, self.log.next()].into_iter().flatten().min()
    }

    pub(crate) fn status(&self, now: Instant, ports: Vec<String>) -> Status {
        Status {
            container: self.container.clone(),
            service: self.service.name.clone(),
            replica: self.slot,
            state: self.state,
            health: self.health(),
            ports,
            moved_ports: self.service.moved_ports.clone(),
            image: crate::spec::image_name(&self.service),
            pid: self.run.as_ref().map(|run| run.host_pid),
            exit_code: if self.run.is_some() { None } else { self.exit_code },
            oom_killed: self.run.is_none() && self.shortage.is_some(),
            restarts: self.restarts,
            uptime: self.run.as_ref().map(|run| now.duration_since(run.started).as_secs_f64()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::HostFacts;
    use crate::load::{LoadOptions, load};

    pub(crate) fn unit(directory: &std::path::Path, keys: &str) -> Unit {
        let file = directory.join("stack.toml");
        let text = format!("name = \"t\"\n[services.s]\nimage = \"x\"\ncommand = [\"true\"]\n{keys}\n");
        std::fs::write(&file, text).unwrap();
        let plan = load(&LoadOptions { files: vec![file], ..LoadOptions::default() }, &HostFacts::default())
            .unwrap();
        let id = image::Digest::of(b"");
        let image = Image { id, config: image::ImageConfig::default(), layers: Vec::new() };
        let log = Log::open(directory, "s", &crate::plan::Logging::default()).unwrap();
        Unit::new(plan.services[0].clone(), 1, image, String::new(), log).unwrap()
    }

    pub(crate) fn run(started: Instant) -> Run {
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
            hooks: None,
            pause: None,
            partners: Partners::default(),
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
            now = unit.next(now).unwrap();
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
    fn a_program_that_leaves_the_foreground_is_told_from_one_that_fails() {
        let top = tempfile::tempdir().unwrap();
        let mut unit = unit(top.path(), "restart = \"always\"");
        let now = Instant::now();
        let mut left = |status, ran, restarts| {
            unit.want();
            unit.started(run(now));
            unit.ended(status, now + ran);
            unit.restarts = restarts;
            unit.left_the_foreground(ran)
        };
        assert!(left(0, Duration::from_millis(200), 0));
        assert!(!left(1, Duration::from_millis(200), 0));
        assert!(!left(0, Duration::from_millis(200), 1), "it is said once");
        assert!(!left(0, STEADY, 0));
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

    #[test]
    fn names_mean_a_service_or_one_container() {
        let top = tempfile::tempdir().unwrap();
        let mut second = unit(top.path(), "");
        let first = unit(top.path(), "");
        (second.slot, second.container) = (2, replica_name("s", 2));
        for (name, means_first, means_second) in [
            ("s", true, true),
            ("s-1", true, false),
            ("s-2", false, true),
            ("s-02", false, false),
            ("x", false, false),
        ] {
            assert_eq!(
                (first.answers_to(name), second.answers_to(name)),
                (means_first, means_second),
                "{name}"
            );
        }
    }

    #[test]
    fn what_netd_is_told() {
        use balance::State::{Down, Draining, Ready, Starting, Unhealthy};
        let top = tempfile::tempdir().unwrap();
        let mut unit = unit(top.path(), "restart = \"always\"\nhealthcheck = { test = [\"CMD\", \"true\"] }");
        let now = Instant::now();
        assert_eq!(unit.balance_state(), Down, "nobody wants it");
        unit.want();
        assert_eq!(unit.balance_state(), Starting, "it waits for others");
        let check = unit.check.clone().unwrap();
        unit.started(Run { monitor: Some(Monitor::new(check, now)), ..run(now) });
        assert_eq!(unit.balance_state(), Starting, "its check has not passed");
        for (health, state) in [(Health::Healthy, Ready), (Health::Unhealthy, Unhealthy)] {
            unit.run.as_mut().unwrap().monitor.as_mut().unwrap().health = health;
            assert_eq!(unit.balance_state(), state);
        }
        unit.ended(1, now);
        assert_eq!(unit.balance_state(), Starting, "its policy starts it again");
        unit.started(run(now));
        assert_eq!(unit.balance_state(), Ready, "without a check it is ready at once");
        unit.restart();
        assert_eq!(unit.balance_state(), Ready, "others that depend on it stop first");
        unit.run.as_mut().unwrap().kill_at = Some(now);
        assert_eq!(unit.balance_state(), Starting, "a restart stops and starts it");
        unit.give_up();
        assert_eq!(unit.balance_state(), Down, "a user stops it");
        unit.standing = Standing::Replaced { again: true };
        assert_eq!(unit.balance_state(), Starting, "another one follows");
        unit.run.as_mut().unwrap().kill_at = None;
        unit.parting = Some(Parting { until: now, drains: false });
        assert_eq!(
            unit.balance_state(),
            Starting,
            "it answers what it has been asked, and another one follows"
        );
        unit.standing = Standing::Retired;
        assert_eq!(unit.balance_state(), Down, "none follows");
        unit.parting = Some(Parting { until: now, drains: true });
        assert_eq!(unit.balance_state(), Draining, "what it has goes on until its end");
        unit.ended(0, now);
        assert_eq!(unit.balance_state(), Down);
    }

    #[test]
    fn a_start_takes_no_restart_back() {
        let top = tempfile::tempdir().unwrap();
        let mut unit = unit(top.path(), "");
        unit.started(run(Instant::now()));
        unit.restart();
        unit.want();
        assert!(unit.pending && !unit.wanted, "it is still to be stopped first");
    }

    #[test]
    fn a_start_takes_a_drain_back() {
        let top = tempfile::tempdir().unwrap();
        let mut unit = unit(top.path(), "");
        let now = Instant::now();
        unit.started(run(now));
        unit.give_up();
        (unit.parting, unit.state) = (Some(Parting { until: now, drains: true }), State::Draining);
        unit.want();
        assert!(unit.wanted && unit.parting.is_none() && unit.state == State::Running && !unit.pending);
    }
}
