//! `watch`, and what `up --watch` has beside it: files that change are carried over to containers, images are built anew,
//! services restarted, as `develop.watch` says.

mod hook;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use clap::{ArgAction, Args};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use stack::client::Client;
use stack::control::{self, Command, Notice};
use stack::copy::Carried;
use stack::plan::Plan;
use stack::store;
use stack::watch::{Rules, Tree, Work};

use crate::args::Up;
use crate::listing::check_services;
use crate::output::{Failure, Output};
use crate::session::{Session, Wanted, supervisor_gone};
use crate::signals::Signals;
use crate::{copy, lifecycle, up};

/// How long nothing has to change until what has changed is looked at: an editor writes a file in several steps.
const QUIET: Duration = Duration::from_millis(100);

/// How long changes wait for others at the most.
const LONGEST: Duration = Duration::from_secs(2);

/// `watch`.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Neither build nor start anything first: the stack runs
    #[arg(long)]
    no_up: bool,
    /// Remove the images that rebuilds leave behind; `--prune=false` keeps them
    #[arg(long, action = ArgAction::Set, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(
        default_value = "true",
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    prune: bool,
    /// Do not show builds
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Beside an `up` that has started it, and ends with that
    #[arg(long, hide = true)]
    pub(crate) beside: bool,
    /// Only these services and what they depend on
    services: Vec<String>,
}

/// `watch`.
pub(crate) fn watch(session: &Session, arguments: &Watch) -> Result<u8, Failure> {
    if arguments.beside {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(Failure::system("be tied to `up`"))?;
    }
    let services = &arguments.services;
    let wanted = Wanted { services, watched: true, ..Wanted::default() };
    let loaded = if arguments.beside { session.load_again(&wanted) } else { session.load_for(&wanted) }?;
    check_services(&loaded.plan, services)?;
    let rules = Rules::read(&loaded.plan, services)?;
    for warning in &rules.warnings {
        session.output.warning(warning);
    }
    // Before anything is built: what changes meanwhile counts.
    let tree = Tree::watch(&rules)?;
    if !arguments.no_up {
        let wanted = Up { build: true, detach: true, services: services.clone(), ..Up::default() };
        let code = up::bring_up(session, &wanted, loaded)?;
        if code != 0 {
            return Ok(code);
        }
        store::let_go(&session.paths)?;
    }
    let client = session.running()?;
    // Nothing of what it writes; the end of the stack is told to all.
    client.send(&Command::Follow(vec![String::new()]), &[])?;
    Watching { session, arguments, rules: &rules, tree, client }.run()
}

/// What ends the waiting for something to do.
enum Next {
    Changed(BTreeSet<PathBuf>),
    /// Ctrl-C, or the end of the stack.
    End(&'static str),
}

/// A `watch` under way.
struct Watching<'a> {
    session: &'a Session,
    arguments: &'a Watch,
    rules: &'a Rules,
    tree: Tree<'a>,
    client: Client,
}

impl Watching<'_> {
    fn run(&mut self) -> Result<u8, Failure> {
        let known = self.tree.known();
        self.carry_out(self.rules.initial(known.iter().map(PathBuf::as_path)));
        let services: Vec<&str> = self.rules.services().into_iter().collect();
        self.session.output.progress(&format!("watching the files of {}", services.join(", ")));
        loop {
            match self.next()? {
                Next::Changed(paths) => {
                    self.carry_out(self.rules.work(paths.iter().map(PathBuf::as_path)));
                }
                Next::End(why) => {
                    if !self.arguments.beside {
                        self.session.output.progress(why);
                    }
                    return Ok(0);
                }
            }
        }
    }

    fn next(&mut self) -> Result<Next, Failure> {
        // Only as long as it waits: workers that build would inherit that, and not end with Ctrl-C.
        let signals = Signals::block(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])?;
        let next = self.wait(&signals);
        signals.unblock()?;
        next
    }

    fn wait(&mut self, signals: &Signals) -> Result<Next, Failure> {
        // When the first change was heard of, and when changes are looked at.
        let mut pending: Option<(Instant, Instant)> = None;
        loop {
            let left = pending.map(|(_, due)| due.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                pending = None;
                let changed = self.tree.changes()?;
                if !changed.is_empty() {
                    return Ok(Next::Changed(changed));
                }
                continue;
            }
            let mut polled = [
                PollFd::new(&self.client, PollFlags::IN),
                PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
                PollFd::new(&self.tree, PollFlags::IN),
            ];
            match poll(&mut polled, left.and_then(|left| Timespec::try_from(left).ok()).as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Failure::system("wait for changes")(errno)),
            }
            let [notice, signal, files] = polled.map(|polled| !polled.revents().is_empty());
            if signal && signals.take()?.is_some() {
                return Ok(Next::End("left; the stack goes on (`inception-run down` stops it)"));
            }
            if notice {
                match self.client.next(None)? {
                    Some(Notice::TakenDown) => return Ok(Next::End("the stack was taken down")),
                    Some(_) => {}
                    None => return Err(supervisor_gone()),
                }
            }
            if files && self.tree.hear()? {
                let now = Instant::now();
                let first = pending.map_or(now, |(first, _)| first);
                pending = Some((first, (now + QUIET).min(first + LONGEST)));
            }
        }
    }

    /// Does what changes mean. What fails is told, and nothing more is done for that service: the next change may mend it.
    fn carry_out(&self, work: Work) {
        let (session, output) = (self.session, self.session.output);
        let mut failed = Failed { output, services: BTreeSet::new() };
        if !work.rebuild.is_empty() {
            let services: Vec<String> = work.rebuild.into_iter().collect();
            output.progress(&format!("{}: rebuilding", services.join(", ")));
            failed.note(&services, up::rebuild(session, &services, self.arguments.prune));
        }
        for (service, changes) in work.sync {
            if failed.services.contains(&service) {
                continue;
            }
            match copy::carry(session, &service, &changes) {
                Ok(carried) => output.progress(&format!("{service}: {}", told(carried))),
                Err(failure) => failed.note(&[service], Err(failure)),
            }
        }
        let services: Vec<String> = work.restart.difference(&failed.services).cloned().collect();
        if !services.is_empty() {
            let stop = control::Stop { services: services.clone(), timeout: None };
            let restarted = lifecycle::change(session, &Command::Restart { stop, no_deps: false });
            failed.note(&services, restarted.map(drop));
        }
        for (service, hook) in work.exec {
            if !failed.services.contains(&service) {
                failed.note(std::slice::from_ref(&service), hook::run(session, &service, &hook));
            }
        }
    }
}

/// Services for which something failed, which was told.
struct Failed {
    output: Output,
    services: BTreeSet<String>,
}

impl Failed {
    fn note(&mut self, services: &[String], result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.output.failure(&failure);
            self.services.extend(services.iter().cloned());
        }
    }
}

fn told(carried: Carried) -> String {
    match carried {
        Carried { made, deleted: 0 } => format!("{made} synchronised"),
        Carried { made: 0, deleted } => format!("{deleted} deleted"),
        Carried { made, deleted } => format!("{made} synchronised, {deleted} deleted"),
    }
}

/// A `watch` beside an `up` in the foreground, which ends with it. It is a process of its own, because a build takes time
/// in which `up` shows what services write, and forks, which a process with threads must not.
#[derive(Debug)]
pub(crate) struct Beside(Child);

impl Beside {
    /// Whether there is something to watch, and a way to do it.
    ///
    /// # Errors
    /// When there is not.
    pub(crate) fn check(session: &Session, plan: &Plan, services: &[String]) -> Result<(), Failure> {
        session.words()?;
        Ok(Rules::read(plan, services).map(drop)?)
    }

    /// Starts it, for a stack that runs.
    ///
    /// # Errors
    /// When our own binary cannot be executed again.
    pub(crate) fn start(session: &Session, services: &[String]) -> Result<Self, Failure> {
        let mut process = Process::new("/proc/self/exe");
        process.arg0("inception-run").args(session.words()?).args(["watch", "--no-up", "--beside"]);
        if session.builds() == crate::build_view::Form::Quiet {
            process.arg("--quiet");
        }
        let process = process.arg("--").args(services).stdin(Stdio::null());
        Ok(Self(process.spawn().map_err(Failure::system("start what watches"))?))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It may have ended already, having said why.
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}
