//! `up` and `scale`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use stack::RemoteError;
use stack::client::{self, Client};
use stack::control::{self, Command, Notice, State, Subject};
use stack::event::{Event, What};
use stack::plan::SecretSource;
use stack::stats;

use crate::args;
use crate::images;
use crate::lifecycle;
use crate::listing::check_services;
use crate::logs::{Printer, is_meant};
use crate::output::Failure;
use crate::patience::Patience;
use crate::session::{Loaded, Session, Wanted, supervisor_gone};
use crate::signals::Signals;

/// `up`.
pub(crate) fn up(session: &Session, arguments: &args::Up) -> Result<u8, Failure> {
    let mut loaded = session.load_for(&Wanted {
        base: arguments.base.as_deref(),
        scale: &arguments.scale,
        services: &arguments.services,
        images_only: false,
    })?;
    check_services(&loaded.plan, &arguments.services)?;
    check_services(&loaded.plan, arguments.foreground.exit_code_from.as_slice())?;
    check_services(&loaded.plan, &arguments.foreground.attach)?;
    check_services(&loaded.plan, &arguments.foreground.no_attach)?;
    if let Some(policy) = arguments.recreation.pull {
        // No part of what tells whether a service has changed.
        loaded.plan.services.iter_mut().for_each(|service| service.pull_policy = Some(policy.into()));
    }
    // Before an image gets a name that is the other one's.
    session.check_origin(&loaded.plan)?;
    let images = images::for_up(session, &loaded, arguments)?;
    let services: Vec<String> = loaded.plan.services.iter().map(|service| service.name.clone()).collect();
    let attached = arguments.foreground.attached(&loaded.plan);
    let up = control::Up {
        images,
        secrets: secrets(&loaded),
        services: arguments.services.clone(),
        wait: arguments.wait,
        strict: session.strict(),
        rolling: arguments.rolling,
        options: control::UpOptions { files: loaded.files, ..arguments.options() },
        plan: loaded.plan,
    };
    // What was found running, or not, may be otherwise a moment later.
    let deadline = Instant::now() + DOWN_DEADLINE;
    loop {
        let printer = arguments.foreground.printer(session.output, services.clone());
        if let End::Code(code) = attempt(session, arguments, &up, attached.as_deref(), printer, deadline)? {
            return Ok(code);
        }
    }
}

/// Joins the stack or starts it, and has it brought up.
fn attempt(
    session: &Session,
    arguments: &args::Up,
    up: &control::Up,
    attached: Option<&[String]>,
    printer: Printer,
    deadline: Instant,
) -> Result<End, Failure> {
    let detach = arguments.detach || arguments.wait || arguments.no_start;
    let name = up.plan.name.clone();
    let (client, joined) = match session.connect_to(&name)? {
        Some(client) => {
            arguments.steps.check_is_down(&name)?;
            (client, true)
        }
        None => {
            let first = arguments.services.first().map(String::as_str);
            (arguments.steps.start(&up.plan, first, session.output)?, false)
        }
    };
    let foreground = &arguments.foreground;
    let mut command = Run {
        session,
        client,
        name,
        joined,
        detach,
        printer,
        phase: Phase::Starting,
        abort: foreground.aborts().then(|| foreground.exit_code_from.clone()),
        only_failures: foreground.abort_on_container_failure,
        timeout: arguments.timeout,
        deadline,
        patience: Patience::new(arguments.wait_timeout),
        services: &arguments.services,
        told: BTreeSet::new(),
    };
    if let Some(attached) = attached.filter(|_| !detach) {
        command.client.send(&Command::Follow(attached.to_vec()), &[])?;
    }
    if command.abort.is_some() {
        command.client.send(&Command::Events { services: Vec::new(), since: None, follow: true }, &[])?;
    }
    command.client.send(&Command::Up(Box::new(up.clone())), &[])?;
    let result = command.run();
    if arguments.steps.is_wanted() && matches!(command.phase, Phase::Detaching | Phase::GivenUp) {
        command.client.end_trace()?;
    }
    let in_order = matches!(command.phase, Phase::Ending(_) | Phase::Refused | Phase::GivenUp);
    if result.is_err() && !joined && !in_order {
        end(session, command.client);
    }
    result
}

/// Values of the secrets that come from variables. They go to the supervisor over its private socket and
/// nowhere else.
pub(crate) fn secrets(loaded: &Loaded) -> BTreeMap<String, String> {
    let secrets = loaded.plan.services.iter().flat_map(|service| &service.secrets);
    values(loaded, secrets.map(|secret| &secret.source))
}

/// The values of those secrets that are variables, by the variables' names.
pub(crate) fn values<'a>(
    loaded: &Loaded,
    sources: impl Iterator<Item = &'a SecretSource>,
) -> BTreeMap<String, String> {
    let names = sources.filter_map(|source| match source {
        SecretSource::Environment(name) => Some(name),
        SecretSource::File(_) | SecretSource::Content(_) => None,
    });
    names.filter_map(|name| Some((name.clone(), loaded.variables.get(name)?.to_owned()))).collect()
}

/// How long a stack that is being taken down may take for it, until who waits for that gives up.
pub(crate) const DOWN_DEADLINE: Duration = Duration::from_secs(120);

/// How an attempt to bring a stack up, or to run something in it, ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit code.
    Code(u8),
    /// Who was asked could not do it: another attempt has to be made.
    Again,
}

/// How far a foreground `up` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    /// The stack is being taken down, and has to be gone first.
    Refused,
    Up,
    /// It is up, and told to go on without us.
    Detaching,
    /// It is not up in time, and told to go on without us.
    GivenUp,
    /// Everything has ended by itself, by a failure or by the first Ctrl-C; with the exit code that follows.
    Ending(u8),
}

/// An `up` under way. The stack lives as long as this process, until it is detached.
struct Run<'a> {
    session: &'a Session,
    client: Client,
    /// The stack's name.
    name: String,
    /// The stack was running before: its end is not ours to decide.
    joined: bool,
    /// Leave the stack alone as soon as it is up.
    detach: bool,
    printer: Printer,
    phase: Phase,
    /// The first container that ends ends the stack, and the exit code is the named service's, or that container's.
    abort: Option<Option<String>>,
    /// One that ends well does not count.
    only_failures: bool,
    /// `--timeout`.
    timeout: Option<u32>,
    /// When a stack that is being taken down has to be gone.
    deadline: Instant,
    /// How long services may take to be ready.
    patience: Patience,
    /// The services that are named; all when empty.
    services: &'a [String],
    /// The containers that something was told of.
    told: BTreeSet<String>,
}

impl Run<'_> {
    fn run(&mut self) -> Result<End, Failure> {
        // The supervisor has its own session, so a terminal's Ctrl-C reaches us only.
        let signals = Signals::block(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])?;
        let end = self.attend(&signals)?;
        if end == End::Again {
            self.client.wait_end()?;
            signals.unblock()?;
        }
        Ok(end)
    }

    fn attend(&mut self, signals: &Signals) -> Result<End, Failure> {
        loop {
            let mut polled = [
                PollFd::new(&self.client, PollFlags::IN),
                PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            ];
            let left = match self.phase {
                Phase::Refused => Some(self.deadline),
                Phase::Starting => self.patience.end(),
                _ => None,
            };
            let left = left.map(|end| end.saturating_duration_since(Instant::now()));
            match poll(&mut polled, left.and_then(|left| Timespec::try_from(left).ok()).as_ref()) {
                Ok(0) if self.phase == Phase::Refused => return Err(still_going_down()),
                Ok(0) if self.patience.is_over() => {
                    self.give_up()?;
                    continue;
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Failure::system("wait for the stack")(errno)),
            }
            let (notice, signal) = (!polled[0].revents().is_empty(), !polled[1].revents().is_empty());
            if signal
                && let Some(signal) = signals.take()?
                && let Some(code) = self.signal(signal)?
            {
                return Ok(End::Code(code));
            }
            if notice && let Some(end) = self.notice()? {
                return Ok(end);
            }
        }
    }

    /// The first Ctrl-C stops the stack, the second one kills it; who joined a stack just leaves.
    fn signal(&mut self, signal: Signal) -> Result<Option<u8>, Failure> {
        let code = 128 + signal as u8;
        if self.phase == Phase::Refused {
            return Ok(Some(code));
        }
        if self.joined {
            self.session.output.progress("left; the stack goes on (`inception-run down` stops it)");
            return Ok(Some(0));
        }
        if matches!(self.phase, Phase::Ending(_)) {
            self.session.output.progress("killed");
            // The supervisor and all below it die with us.
            return Ok(Some(code));
        }
        let hint = if signal == Signal::SIGINT { "stopping (Ctrl-C again kills)" } else { "stopping" };
        self.session.output.progress(hint);
        self.abort = None;
        self.end(if signal == Signal::SIGINT { 130 } else { code })?;
        Ok(None)
    }

    /// Leaves a stack that is not up in time as it is.
    fn give_up(&mut self) -> Result<(), Failure> {
        if self.joined {
            return Err(self.not_ready());
        }
        self.phase = Phase::GivenUp;
        self.client.send(&Command::Detach, &[])?;
        // Its answer comes after everything that was under way.
        self.client.send(&Command::Stack, &[]).map_err(Failure::from)
    }

    fn not_ready(&self) -> Failure {
        self.patience.failure(self.session, &self.name, self.services)
    }

    fn end(&mut self, code: u8) -> Result<(), Failure> {
        self.phase = Phase::Ending(code);
        let down = Command::Down { volumes: false, timeout: self.timeout };
        self.client.send(&down, &[]).map_err(Failure::from)
    }

    fn notice(&mut self) -> Result<Option<End>, Failure> {
        let Some(notice) = self.client.next(None)? else { return self.ended_without(None).map(Some) };
        match notice {
            Notice::Occupied | Notice::TakenDown => return self.ended_without(Some(notice)).map(Some),
            Notice::Ending => {
                self.session.output.progress("the stack is being taken down, and then brought up again");
                self.phase = Phase::Refused;
            }
            Notice::Stack(_) if self.phase == Phase::GivenUp => return Err(self.not_ready()),
            Notice::Done if self.phase == Phase::GivenUp => {}
            Notice::Log(line) => self.printer.print([&line])?,
            Notice::Done => return Ok(self.done()?.map(End::Code)),
            Notice::Failed(error) => {
                // Told before the services stop, which may take a while.
                if self.joined || matches!(self.phase, Phase::Ending(_)) {
                    return Err(error.into());
                }
                let failure = Failure::from(error);
                self.session.output.failure(&failure);
                self.abort = None;
                self.end(1)?;
            }
            Notice::State { service, state: State::Created, detail: Some(detail) }
                if self.phase == Phase::Up =>
            {
                self.session.output.warning(&format!("{service}: {detail}"));
            }
            ref notice @ Notice::State { state, .. } => {
                self.session.progress(notice);
                if let Notice::State { service, .. } = notice
                    && self.phase == Phase::Starting
                {
                    self.told.insert(service.clone());
                }
                if state == State::Exited && self.phase == Phase::Up {
                    self.all_ended()?;
                }
            }
            Notice::Event(Event { container: Some(container), what, .. }) => self.ended(&container, &what)?,
            notice => self.session.progress(&notice),
        }
        Ok(None)
    }

    /// The supervisor has ended, with this as its last word, without an answer to what was asked for last.
    fn ended_without(&mut self, word: Option<Notice>) -> Result<End, Failure> {
        match (self.phase, word) {
            (Phase::Ending(code), _) => Ok(End::Code(code)),
            (Phase::Refused, _) | (_, Some(Notice::Occupied)) => Ok(End::Again),
            // It was ending when it was asked, and did not hear it.
            (Phase::Starting, word) if self.joined || word.is_some() => Ok(End::Again),
            (_, Some(_)) => {
                self.client.wait_end()?;
                self.session.output.progress("the stack was taken down");
                Ok(End::Code(0))
            }
            (_, None) => Err(supervisor_gone()),
        }
    }

    /// `--abort-on-container-exit` and its like: ends the stack when a container has ended for good. The exit code that counts is
    /// that of a service's first container to end, which may come after that.
    fn ended(&mut self, container: &str, what: &What) -> Result<(), Failure> {
        let What::Exited { status, restarts: false, .. } = what else { return Ok(()) };
        if self.only_failures && *status == 0 {
            return Ok(());
        }
        let Some(from) = &mut self.abort else { return Ok(()) };
        let counts = from.as_deref().is_none_or(|service| is_meant(container, service));
        let code = counts.then(|| u8::try_from(*status).unwrap_or(1));
        if counts {
            // Its code is known; no other one counts.
            *from = Some(String::new());
        }
        match (self.phase, code) {
            (Phase::Ending(_), Some(code)) => self.phase = Phase::Ending(code),
            (Phase::Ending(_), None) => {}
            (_, code) => {
                self.session
                    .output
                    .progress(&format!("{container} has ended: stopping all (--abort-on-container-exit)"));
                self.end(code.unwrap_or(0))?;
            }
        }
        Ok(())
    }

    /// What was asked for last has been carried out.
    fn done(&mut self) -> Result<Option<u8>, Failure> {
        if self.joined && self.phase == Phase::Starting {
            self.tell_running()?;
        }
        match self.phase {
            Phase::Starting if self.detach && self.joined => return Ok(Some(0)),
            Phase::Starting if self.detach => {
                self.phase = Phase::Detaching;
                self.client.send(&Command::Detach, &[])?;
            }
            Phase::Starting => {
                self.phase = Phase::Up;
                self.all_ended()?;
            }
            Phase::Up | Phase::Refused | Phase::GivenUp => {}
            Phase::Detaching => return Ok(Some(0)),
            Phase::Ending(code) => {
                self.client.wait_end()?;
                return Ok(Some(code));
            }
        }
        Ok(None)
    }

    /// Says of what was running and still is that it runs. Nothing else has been said of it.
    fn tell_running(&self) -> Result<(), Failure> {
        // A connection of its own: on ours the answer would come between log lines.
        let Some(mut asking) = client::connect(&self.session.paths, &self.name)? else { return Ok(()) };
        for Subject { status, .. } in stats::subjects(&mut asking, self.services)? {
            if status.state == State::Running && !self.told.contains(&status.container) {
                self.session.output.progress(&format!("{}: running already", status.container));
            }
        }
        Ok(())
    }

    /// Ends a stack in which nothing runs and nothing will. As with compose the command is then at its end; its
    /// exit code tells whether a service failed.
    fn all_ended(&mut self) -> Result<(), Failure> {
        if self.joined || matches!(self.phase, Phase::Ending(_)) {
            return Ok(());
        }
        // A connection of its own: on ours the answer would come between log lines.
        let Some(mut asking) = client::connect(&self.session.paths, &self.name)? else { return Ok(()) };
        let subjects = stats::subjects(&mut asking, &[])?;
        let status = || subjects.iter().map(|subject| &subject.status);
        if status().all(|row| matches!(row.state, State::Exited | State::Created)) {
            for error in subjects.iter().filter_map(Subject::killed_for_memory) {
                self.session.output.failure(&error.into());
            }
            let failed = status().any(|row| row.exit_code.is_some_and(|code| code != 0));
            self.end(u8::from(failed))?;
        }
        Ok(())
    }
}

/// Waits until a stack that is being taken down is gone.
pub(crate) fn wait_until_down(mut client: Client, deadline: Instant) -> Result<(), Failure> {
    loop {
        match client.next(Some(deadline)) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(client.wait_end()?),
            Err(_) if deadline <= Instant::now() => return Err(still_going_down()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn still_going_down() -> Failure {
    RemoteError::message(format!("the stack is still being taken down after {} s", DOWN_DEADLINE.as_secs()))
        .or_hint("`inception-run ps` shows what does not stop; `inception-run down -t 0` kills it")
        .into()
}

/// `scale`.
pub(crate) fn scale(session: &Session, arguments: &args::Scale) -> Result<u8, Failure> {
    // What the file says about these services decides whether they can have that many.
    let services: Vec<String> = arguments.counts.iter().map(|(service, _)| service.clone()).collect();
    let wanted = Wanted { scale: &arguments.counts, services: &services, ..Wanted::default() };
    let plan = session.load_for(&wanted)?.plan;
    let counts: BTreeMap<String, u16> = arguments.counts.iter().cloned().collect();
    let mut groups = plan.network.groups;
    groups.retain(|group| counts.contains_key(&group.service));
    lifecycle::change(session, &Command::Scale(control::Scale { counts, groups, no_deps: arguments.no_deps }))
}

/// Ends the stack of a supervisor that this process started, after a failure. If that fails too, the end of this process
/// takes the stack with it, and the next command what is left of its files.
fn end(session: &Session, mut client: Client) {
    let ended = session.carry_out(&mut client, &Command::Down { volumes: false, timeout: None });
    match ended.and_then(|()| client.wait_end().map_err(Failure::from)) {
        Ok(()) | Err(_) => {}
    }
}
