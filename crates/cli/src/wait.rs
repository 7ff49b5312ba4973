//! `wait` and `attach`: until containers have ended.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use clap::Args;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use stack::RemoteError;
use stack::client::Client;
use stack::control::{Command, Notice, State, Status, Subject};
use stack::event::{Event, What};

use crate::listing::subjects;
use crate::logs::Printer;
use crate::output::{self, Failure};
use crate::session::{Session, supervisor_gone, taken_down};
use crate::signals::Signals;

/// `wait`.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Take the stack down when the first of them has ended
    #[arg(long)]
    down_project: bool,
    /// Services, or single containers such as `web-2`
    #[arg(required = true)]
    services: Vec<String>,
}

/// `attach`.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Which of the service's containers, from 1
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    index: u16,
    /// Do not pass on signals: Ctrl-C leaves the container alone
    #[arg(long)]
    no_sig_proxy: bool,
    /// As compose has it: `--sig-proxy=false`
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value = "true", hide = true, action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Without effect: standard input is never attached (`exec` starts a process with one)
    #[arg(long)]
    no_stdin: bool,
    /// Service, or one container of it such as `web-2`
    service: String,
}

/// `wait`. The exit code is that of the container that ended last.
pub(crate) fn wait(session: &Session, arguments: &Wait) -> Result<u8, Failure> {
    let (mut client, containers) = follow(session, &arguments.services)?;
    let mut open: BTreeSet<String> = BTreeSet::new();
    let mut last = 0;
    let mut told = |container: &str, code: i32| {
        last = u8::try_from(code).unwrap_or(1);
        output::print(&format!("{container} exited with status {code}\n"))
    };
    for Status { container, state, exit_code, .. } in &containers {
        match (state, exit_code) {
            (State::Exited, Some(code)) => told(container, *code)?,
            _ => drop(open.insert(container.clone())),
        }
    }
    let first = |open: &BTreeSet<String>| arguments.down_project && open.len() < containers.len();
    while !open.is_empty() && !first(&open) {
        match client.next(None)? {
            Some(Notice::Event(Event { container: Some(name), what, .. })) => {
                if let What::Exited { status, restarts: false, .. } = what
                    && open.remove(&name)
                {
                    told(&name, status)?;
                }
            }
            Some(Notice::Failed(error)) => return Err(error.into()),
            // And the containers with it.
            Some(Notice::TakenDown) => return Err(taken_down()),
            Some(_) => {}
            None => return Err(supervisor_gone()),
        }
    }
    if arguments.down_project {
        session.carry_out(&mut session.running()?, &Command::Down { volumes: false, timeout: None })?;
    }
    Ok(last)
}

/// `attach`. The exit code is the container's.
pub(crate) fn attach(session: &Session, arguments: &Attach) -> Result<u8, Failure> {
    let (mut client, containers) = follow(session, std::slice::from_ref(&arguments.service))?;
    let numbered = |row: &&Status| containers.len() == 1 || row.replica == arguments.index;
    let container = containers.iter().find(numbered).filter(|row| row.pid.is_some());
    let Some(container) = container.map(|row| row.container.clone()) else {
        return Err(RemoteError::message(format!("service `{}` is not running", arguments.service))
            .or_hint(format!("`inception-run start {}` starts it", arguments.service))
            .into());
    };
    let proxied = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
    let signals = Signals::block(match arguments.sig_proxy && !arguments.no_sig_proxy {
        true => &proxied,
        false => &[],
    })?;
    client.send(&Command::Follow(vec![container.clone()]), &[])?;
    let mut printer = Printer::new(session.output, vec![container.clone()]).with_prefix(false);
    let stdout = std::io::stdout();
    loop {
        let mut polled = [
            PollFd::new(&client, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            // Nobody may be there to read what comes.
            PollFd::new(&stdout, PollFlags::empty()),
        ];
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Failure::system("wait for the container")(errno)),
        }
        let [notice, signal, unread] = polled.each_ref().map(|one| !one.revents().is_empty());
        if unread && !notice && !signal {
            return Err(Failure::Unread);
        }
        if signal && let Some(signal) = signals.take()? {
            let kill = Command::Kill { services: vec![container.clone()], signal: signal.to_string() };
            // On a connection of its own: on this one the answer would come between lines.
            session.running()?.send(&kill, &[])?;
        }
        if !notice {
            continue;
        }
        match client.next(None)? {
            Some(Notice::Log(line)) => printer.print([&line])?,
            Some(Notice::Event(Event { container: Some(name), what, .. })) if name == container => {
                if let What::Exited { status, .. } = what {
                    return Ok(u8::try_from(status).unwrap_or(1));
                }
            }
            Some(Notice::Failed(error)) => return Err(error.into()),
            Some(Notice::TakenDown) => return Err(taken_down()),
            Some(_) => {}
            None => return Err(supervisor_gone()),
        }
    }
}

/// A connection that hears of the ends of these containers from now on, and what they are now.
fn follow(session: &Session, services: &[String]) -> Result<(Client, Vec<Status>), Failure> {
    let mut client = session.running()?;
    client.send(&Command::Subjects(services.to_vec()), &[])?;
    subjects(&mut client)?;
    client.send(&Command::Events { services: Vec::new(), since: None, follow: true }, &[])?;
    // What they are is asked after that, so that no end falls in between.
    let mut asking = session.running()?;
    asking.send(&Command::Subjects(services.to_vec()), &[])?;
    let subjects = subjects(&mut asking)?;
    Ok((client, subjects.into_iter().map(|Subject { status, .. }| status).collect()))
}
