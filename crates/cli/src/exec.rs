//! `exec` and `run`: a process inside, with our standard input and output.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use stack::client::Client;
use stack::control::{self, Command, Notice};

use crate::args;
use crate::listing::check_services;
use crate::output::Failure;
use crate::session::{Session, Wanted, supervisor_gone};
use crate::signals::Signals;
use crate::terminal::{self, Streams};
use crate::up;

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

/// `exec`.
pub(crate) fn exec(session: &Session, arguments: &args::Exec) -> Result<u8, Failure> {
    let mut client = session.running()?;
    let tty = wants_tty(&arguments.inside);
    let exec = describe(&arguments.service, &arguments.argv, &arguments.inside, tty);
    let exec = control::Exec { index: arguments.index, ..exec };
    relay(session, &mut client, &Command::Exec(exec), tty)
}

/// `run`.
pub(crate) fn run(session: &Session, arguments: &args::Run) -> Result<u8, Failure> {
    let (mut client, ours) = match session.connect()?.1 {
        Some(client) => (client, false),
        None => {
            let services = std::slice::from_ref(&arguments.service);
            let loaded = session.load_for(&Wanted { services, ..Wanted::default() })?;
            check_services(&loaded.plan, services)?;
            (up::start_for_run(session, loaded, &arguments.service)?, true)
        }
    };
    let tty = wants_tty(&arguments.inside);
    let exec = describe(&arguments.service, &arguments.argv, &arguments.inside, tty);
    let result = relay(session, &mut client, &Command::Run(exec), tty);
    if ours {
        up::end(session, client);
    }
    result
}

fn wants_tty(inside: &args::Inside) -> bool {
    inside.tty || (!inside.no_tty && terminal::is_interactive())
}

fn describe(service: &str, argv: &[String], inside: &args::Inside, tty: bool) -> control::Exec {
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
        tty,
    }
}

/// Sends the command and carries bytes and signals until the process ends. The exit code is its own.
fn relay(session: &Session, client: &mut Client, command: &Command, tty: bool) -> Result<u8, Failure> {
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
                Signal::SIGHUP => return Ok(128 + Signal::SIGHUP as u8),
                // Not yet there to be signalled.
                signal if !started => return Ok(128 + signal as u8),
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
                return Ok(u8::try_from(status).unwrap_or(1));
            }
            Some(Notice::Failed(error)) => {
                streams.leave_raw_mode();
                return Err(error.into());
            }
            Some(notice @ Notice::Warning(_)) => session.progress(&notice),
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
