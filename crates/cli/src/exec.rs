//! `exec` and `run`: a process inside, with our standard input and output.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use clap::Args;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use stack::client::Client;
use stack::control::{self, Command, Notice, RunPort};
use stack::plan::{Mount, MountKind, Plan, Scope};
use stack::stats;

use crate::args::{Always, Publish, published, stack_name, variable};
use crate::listing::check_services;
use crate::output::{self, Failure};
use crate::session::{Session, Wanted, answer, supervisor_gone, taken_down};
use crate::signals::Signals;
use crate::steps::Trace;
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
    detach: bool,
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
    /// Service, or one container of it such as `web-2`
    service: String,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) argv: Vec<String>,
}

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Remove the container when it ends (it always is removed)
    #[arg(long)]
    rm: bool,
    /// Name of the container [default: SERVICE-run-N]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Entrypoint instead of the service's, which takes its command away too; words as in a shell, empty for none
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Mount a directory of this machine or a volume: `./here:/inside`, `/here:/inside:ro`, `volume:/inside`
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]", value_parser = mount)]
    volume: Vec<Mount>,
    /// Publish a port of the container: `8080:80`, `127.0.0.1:8080:80`, `80` where the kernel chooses, `53:53/udp`; also
    /// as before the command: `443=8443`
    #[arg(id = "publish", short = 'p', long = "publish", value_name = "[IP:][PORT:]INSIDE", value_parser = published)]
    publish: Vec<Publish>,
    /// Publish the ports that the file names for the service, which must not run
    #[arg(short = 'P', long)]
    service_ports: bool,
    /// Name of the stack: `-p` is another option here
    #[arg(id = "project_name", long = "project-name", value_name = "NAME", value_parser = stack_name)]
    project_name: Option<String>,
    /// Do not start what the service depends on, in a stack that does not run
    #[arg(long)]
    no_deps: bool,
    /// Build the service's image first, in a stack that does not run
    #[arg(long)]
    build: bool,
    /// Without effect: what is fetched is shown on a terminal only
    #[arg(long, hide = true)]
    quiet_pull: bool,
    #[command(flatten)]
    inside: Inside,
    #[command(flatten)]
    steps: Trace,
    #[command(flatten)]
    always: Always,
    /// Service
    service: String,
    /// Command and its arguments [default: the service's own]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

impl Run {
    /// The ports of the container that are published.
    pub(crate) fn ports(&self) -> Vec<RunPort> {
        let ports = self.publish.iter().map(|one| match one {
            Publish::Ports(ports) => ports.as_slice(),
            Publish::Instead(..) => &[],
        });
        ports.flatten().copied().collect()
    }
}

/// `SOURCE:TARGET[:OPTIONS]` as compose's short form of `volumes`.
fn mount(text: &str) -> Result<Mount, String> {
    let wrong = || "write `./here:/inside`, `/here:/inside:ro` or `volume:/inside`".to_owned();
    let mut parts = text.split(':');
    let (source, target) = parts.next().zip(parts.next()).ok_or_else(wrong)?;
    let options: Vec<&str> = parts.next().map(|options| options.split(',').collect()).unwrap_or_default();
    let known = ["ro", "rw", "z", "Z"];
    if source.is_empty() || !target.starts_with('/') || parts.next().is_some() {
        return Err(wrong());
    }
    if let Some(other) = options.iter().find(|option| !known.contains(option)) {
        return Err(format!("`{other}` is none of ro, rw, z, Z"));
    }
    let kind = match source.starts_with(['/', '.', '~']) {
        true => MountKind::Bind { source: absolute(source)?, create: true, fill: false },
        false if source.contains('/') => return Err(wrong()),
        false => {
            MountKind::Volume { name: source.to_owned(), scope: Scope::Stack, nocopy: false, subpath: None }
        }
    };
    Ok(Mount { target: target.to_owned(), read_only: options.contains(&"ro"), kind })
}

fn absolute(source: &str) -> Result<PathBuf, String> {
    let path = match source.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let home = std::env::var("HOME").map_err(|_| "HOME is not set, so there is no `~`".to_owned())?;
            PathBuf::from(home + rest)
        }
        _ => PathBuf::from(source),
    };
    std::path::absolute(path).map_err(|error| error.to_string())
}

/// `exec`.
pub(crate) fn exec(session: &Session, arguments: &Exec) -> Result<u8, Failure> {
    let mut client = session.running()?;
    let tty = wants_tty(&arguments.inside);
    let exec = describe(&arguments.service, &arguments.argv, &arguments.inside, tty);
    let exec = control::Exec { index: arguments.index, ..exec };
    if !arguments.inside.detach {
        return relay(session, &mut client, &Command::Exec(exec), tty);
    }
    let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null().map_err(Failure::system("open /dev/null"))?;
    client.send(&Command::Exec(exec), &[null.as_fd(), null.as_fd(), null.as_fd()])?;
    while !matches!(answer(&mut client)?, Notice::Done) {}
    Ok(0)
}

/// `run`.
pub(crate) fn run(session: &Session, arguments: &Run) -> Result<u8, Failure> {
    let Run { ref service, build, no_deps, .. } = *arguments;
    let load = || {
        let services = std::slice::from_ref(service);
        let loaded = session.load_for(&Wanted { services, ..Wanted::default() })?;
        check_services(&loaded.plan, services).map(|()| loaded)
    };
    let (mut client, ours) = match session.connect()? {
        (stack, Some(mut client)) => {
            arguments.steps.check_is_down(&stack)?;
            // One that nobody has started, or whose profile is not active.
            let there = stats::subjects(&mut client, &[])?;
            let is_there = there.iter().any(|subject| subject.status.service == *service);
            if !is_there && session.has_stack_file() {
                up::join_for_run(session, &mut client, load()?, service, build, no_deps)?;
            }
            (client, false)
        }
        (_, None) => {
            // The first one-off container of a stack has this name.
            let container = arguments.name.clone().unwrap_or(format!("{service}-run-1"));
            let start = |plan: &Plan| arguments.steps.start(plan, Some(&container), session.output);
            (up::start_for_run(session, load()?, service, build, no_deps, start)?, true)
        }
    };
    let tty = wants_tty(&arguments.inside);
    let entrypoint = arguments.entrypoint.as_deref().map(words).transpose()?;
    let run = control::Run {
        exec: describe(&arguments.service, &arguments.argv, &arguments.inside, tty),
        name: arguments.name.clone(),
        entrypoint,
        mounts: arguments.volume.clone(),
        ports: arguments.ports(),
        service_ports: arguments.service_ports,
    };
    let result = match arguments.inside.detach {
        true => run_detached(session, &mut client, run, ours).and_then(|status| {
            if arguments.steps.is_wanted() {
                client.end_trace()?;
            }
            Ok(status)
        }),
        false => relay(session, &mut client, &Command::Run(run), tty),
    };
    if ours && (result.is_err() || !arguments.inside.detach) {
        up::end(session, client);
    }
    result
}

/// Starts a one-off container, prints its name and leaves it, and the stack if it was started for that.
fn run_detached(
    session: &Session,
    client: &mut Client,
    run: control::Run,
    ours: bool,
) -> Result<u8, Failure> {
    client.send(&Command::Run(run), &[])?;
    loop {
        match answer(client)? {
            Notice::Name(name) => output::print(&format!("{name}\n"))?,
            Notice::Done => break,
            notice => session.progress(&notice),
        }
    }
    if ours {
        session.carry_out(client, &Command::Detach)?;
    }
    Ok(0)
}

fn words(text: &str) -> Result<Vec<String>, Failure> {
    stack::words::split(text).ok_or_else(|| {
        Failure::usage(format!("a quote is not closed in `{text}`"), "words are separated as in a shell")
    })
}

fn wants_tty(inside: &Inside) -> bool {
    inside.tty || (!inside.no_tty && !inside.detach && terminal::is_interactive())
}

fn describe(service: &str, argv: &[String], inside: &Inside, tty: bool) -> control::Exec {
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
