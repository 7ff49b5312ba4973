//! Containers of a running stack are stopped, started, killed, paused and removed.

use std::io::{self, BufRead};

use clap::Args;
use stack::client::Client;
use stack::control::{self, Command, Notice, State};

use crate::args::Always;
use crate::listing;
use crate::output::Failure;
use crate::patience::Patience;
use crate::session::{self, Session};

/// `start`.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Wait until they are healthy or running
    #[arg(long)]
    wait: bool,
    /// How long that may take, in seconds; what was started goes on
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    wait_timeout: Option<u32>,
    /// Services, or single containers such as `web-2` [default: all]
    services: Vec<String>,
}

/// `stop`.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Seconds from the stop signal to SIGKILL [default: what each service asks for]
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Services, or single containers such as `web-2` [default: all]
    services: Vec<String>,
}

/// `restart`.
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    stop: Stop,
    /// Leave those alone that ask to be restarted with one of them (`depends_on`: `restart`)
    #[arg(long)]
    no_deps: bool,
}

/// `kill`.
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "SIGKILL")]
    signal: String,
    #[command(flatten)]
    always: Always,
    /// Services, or single containers such as `web-2` or those of `run` [default: all services]
    services: Vec<String>,
}

/// `rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Stop them first
    #[arg(short, long)]
    stop: bool,
    /// Without effect: volumes without a name always go with their container
    #[arg(short, long)]
    volumes: bool,
    /// Services, or single containers such as `web-2` [default: all]
    services: Vec<String>,
}

impl Stop {
    fn wanted(&self) -> control::Stop {
        control::Stop { services: self.services.clone(), timeout: self.timeout }
    }
}

/// `start`.
pub(crate) fn start(session: &Session, arguments: &Start) -> Result<u8, Failure> {
    let Start { wait, wait_timeout, ref services } = *arguments;
    let (stack, client) = session.connect()?;
    let mut client = client.ok_or_else(|| session::not_running(&stack))?;
    client.send(&Command::Follow(vec![String::new()]), &[])?;
    let patience = Patience::new(wait_timeout);
    client.send(&Command::Start(control::Start { services: services.clone(), wait }), &[])?;
    loop {
        match client.next(patience.end()) {
            Err(_) if patience.is_over() => {
                return Err(patience.failure(session, &stack, services));
            }
            next => match session::expected(next?)? {
                Notice::Done => return Ok(0),
                notice => session.progress(&notice),
            },
        }
    }
}

/// `stop`.
pub(crate) fn stop(session: &Session, arguments: &Stop) -> Result<u8, Failure> {
    change(session, &Command::Stop(arguments.wanted()))
}

/// `restart`.
pub(crate) fn restart(session: &Session, arguments: &Restart) -> Result<u8, Failure> {
    change(session, &Command::Restart { stop: arguments.stop.wanted(), no_deps: arguments.no_deps })
}

/// `kill`.
pub(crate) fn kill(session: &Session, arguments: &Kill) -> Result<u8, Failure> {
    let (services, signal) = (arguments.services.clone(), arguments.signal.clone());
    change(session, &Command::Kill { services, signal })
}

/// `rm`. A container is the stack's as long as the stack runs; what goes is what its last run has left, so that its
/// next start is like its first.
pub(crate) fn rm(session: &Session, arguments: &Rm) -> Result<u8, Failure> {
    let mut client = session.running()?;
    if arguments.stop {
        let stop = control::Stop { services: arguments.services.clone(), timeout: None };
        session.carry_out(&mut client, &Command::Stop(stop))?;
    }
    let stopped = stopped(&mut client, &arguments.services)?;
    if stopped.is_empty() {
        session.output.progress("no stopped containers");
        return Ok(0);
    }
    if !arguments.force {
        confirm(session, &stopped)?;
    }
    session.carry_out(&mut client, &Command::Remove(stopped))?;
    Ok(0)
}

/// `down SERVICE`: the same for services that run, without a question.
pub(crate) fn stop_and_remove(
    session: &Session,
    services: &[String],
    timeout: Option<u32>,
) -> Result<u8, Failure> {
    let mut client = session.running()?;
    let stop = control::Stop { services: services.to_vec(), timeout };
    session.carry_out(&mut client, &Command::Stop(stop))?;
    let stopped = stopped(&mut client, services)?;
    session.carry_out(&mut client, &Command::Remove(stopped))?;
    Ok(0)
}

/// The containers of these services that do not run.
fn stopped(client: &mut Client, services: &[String]) -> Result<Vec<String>, Failure> {
    client.send(&Command::Subjects(services.to_vec()), &[])?;
    let subjects = listing::subjects(client)?.into_iter();
    Ok(subjects
        .filter(|subject| matches!(subject.status.state, State::Exited | State::Created))
        .map(|subject| subject.status.container)
        .collect())
}

/// Asks on standard input, as compose does. No answer is a no.
fn confirm(session: &Session, containers: &[String]) -> Result<(), Failure> {
    session.output.progress(&format!("going to remove {}; are you sure? [yN]", containers.join(", ")));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Failure::system("read the answer"))?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(stack::RemoteError::message("nothing was removed")
            .or_hint("`inception-run rm -f` does not ask")
            .into()),
    }
}

/// Has a command carried out on a running stack, and shows what becomes of its containers.
pub(crate) fn change(session: &Session, command: &Command) -> Result<u8, Failure> {
    let mut client = session.running()?;
    client.send(&Command::Follow(vec![String::new()]), &[])?;
    session.carry_out(&mut client, command)?;
    Ok(0)
}
