//! `exec`: a process inside, with our standard input and output.

use std::os::fd::{AsFd, BorrowedFd};

use clap::Args;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use stack::client::Client;
use stack::control::{self, Command, Notice};

use crate::args::variable;
use crate::output::Failure;
use crate::session::{Session, answer, supervisor_gone, taken_down};
use crate::signals::Signals;
use crate::terminal::{self, Streams};
use crate::up::End;

/// Passed on to the process; SIGWINCH is for us.
const SIGNALS: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// How a process is run inside.
#[derive(Debug, Args)]
pub(crate) struct Inside {
    /// Keep standard input open (it always is)
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a terminal even where there is none
    #[arg(short, long, conflicts_with = "no_tty")]
    pub(crate) tty: bool,
    /// Allocate no terminal [default: one where standard input and output are terminals]
    #[arg(short = 'T', long = "no-tty", visible_alias = "no-TTY")]
    no_tty: bool,
    /// Leave it running in the background
    #[arg(short, long, conflicts_with = "tty")]
    pub(crate) detach: bool,
    /// User, or USER:GROUP
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Set a variable, or pass on our own by its name
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
}

/// `exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) inside: Inside,
    /// Which of the service's containers, from 1 [default: the first that runs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    index: Option<u16>,
    /// With all capabilities over what is the stack's own
    #[arg(long)]
    privileged: bool,
    /// Service, or one container of it such as `web-2`
    service: String,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) argv: Vec<String>,
}

/// `exec`.
pub(crate) fn exec(session: &Session, arguments: &Exec) -> Result<u8, Failure> {
    let mut client = session.running()?;
    let tty = wants_tty(&arguments.inside);
    let exec = describe(&arguments.service, &arguments.argv, &arguments.inside, tty);
    let exec = control::Exec { index: arguments.index, privileged: arguments.privileged, ..exec };
    if !arguments.inside.detach {
        return match relay(session, &mut client, &Command::Exec(exec), tty)? {
            End::Code(code) => Ok(code),
            End::Again => Err(taken_down()),
        };
    }
    let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null().map_err(Failure::system("open /dev/null"))?;
    client.send(&Command::Exec(exec), &[null.as_fd(), null.as_fd(), null.as_fd()])?;
    while !matches!(answer(&mut client)?, Notice::Done) {}
    Ok(0)
}

pub(crate) fn wants_tty(inside: &Inside) -> bool {
    inside.tty || (!inside.no_tty && !inside.detach && terminal::is_interactive())
}

pub(crate) fn describe(service: &str, argv: &[String], inside: &Inside, tty: bool) -> control::Exec {
    let mut env = inside.env.clone();
    if tty && env.iter().all(|(name, _)| name != "TERM") {
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        env.push(("TERM".to_owned(), term));
    }
    control::Exec {
        service: service.to_owned(),
        index: None,
        argv: argv.to_vec(),
        env,
        cwd: inside.workdir.clone(),
        user: inside.user.clone(),
        privileged: false,
        tty,
        detach: inside.detach,
    }
}

/// Sends the command and carries bytes and signals until the process ends. The exit code is its own. Where the stack ends
/// before there is a process, another attempt can be made.
pub(crate) fn relay(
    session: &Session,
    client: &mut Client,
    command: &Command,
    tty: bool,
) -> Result<End, Failure> {
    let signals = Signals::block(&SIGNALS)?;
    let (mut streams, theirs) = Streams::open(tty)?;
    client.send(command, &theirs.each_ref().map(AsFd::as_fd))?;
    // Our copies: as long as they are open, the end of the process's output would not be seen.
    drop(theirs);
    let mut started = false;
    loop {
        let ready = wait(client, &signals, &streams)?;
        // What was told before the signal came decides what the signal means.
        if ready.signal
            && (started || !ready.notice)
            && let Some(signal) = signals.take()?
        {
            match signal {
                Signal::SIGWINCH => streams.resize()?,
                // The terminal is gone, and the supervisor ends what we ran when we are.
                Signal::SIGHUP => return Ok(End::Code(128 + Signal::SIGHUP as u8)),
                // Not yet there to be signalled.
                signal if !started => return Ok(End::Code(128 + signal as u8)),
                signal => client.send(&Command::Signal(signal as i32), &[])?,
            }
        }
        streams.carry()?;
        if !ready.notice {
            continue;
        }
        match client.next(None)? {
            Some(Notice::Started { .. }) => {
                started = true;
                streams.attach()?;
            }
            Some(Notice::Exited { status }) => {
                streams.drain()?;
                return Ok(End::Code(u8::try_from(status).unwrap_or(1)));
            }
            Some(Notice::Failed(error)) => {
                streams.leave_raw_mode();
                return Err(error.into());
            }
            Some(notice @ Notice::Warning(_)) => session.progress(&notice),
            Some(Notice::Ending | Notice::TakenDown) if !started => {
                signals.unblock()?;
                return Ok(End::Again);
            }
            Some(Notice::TakenDown) => return Err(taken_down()),
            Some(_) => {}
            None => return Err(supervisor_gone()),
        }
    }
}

struct Ready {
    notice: bool,
    signal: bool,
}

fn wait(client: &Client, signals: &Signals, streams: &Streams) -> Result<Ready, Failure> {
    let mut polled = vec![PollFd::new(client, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    let interest: Vec<(BorrowedFd<'_>, PollFlags)> = streams.interest();
    polled.extend(interest.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
    match poll(&mut polled, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(Failure::system("wait for the process")(errno)),
    }
    Ok(Ready { notice: !polled[0].revents().is_empty(), signal: !polled[1].revents().is_empty() })
}
