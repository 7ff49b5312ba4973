//! The `inception-oci` command: what engines drive. An error is one line on standard error, and one in the file that
//! `--log` names.
//!
//! `create` and `run` are the hot path: until the crate `container` has the arguments, nothing is done here but
//! parsing them.

mod args;
mod events;
mod features;
mod foreground;
mod listing;
mod process;
mod report;
mod resources;
mod spec;

use std::path::PathBuf;
use std::process::ExitCode;

use container::oci::{Console, Create, Exec, Runtime};

use crate::output::{Failure, print};
use args::{CgroupManager, Command, Global, Parsed};
use foreground::Foreground;

/// The whole program. The exit code is the container's own for `run` and `exec`, 1 for every failure; but a failure of
/// `exec` is 255 as runc's is, which few programs end with.
pub fn main() -> ExitCode {
    if let Some(code) = container::oci::act_as_init() {
        return ExitCode::from(code);
    }
    sys::process::survive_file_size_limit();
    let mut failed = 1;
    let done = match args::parse(std::env::args_os().collect()) {
        Ok(Parsed::Version) => print(&version()).map(|()| 0),
        Ok(Parsed::Help(text)) => print(&text).map(|()| 0),
        Ok(Parsed::Do(global, mut command)) => {
            if matches!(*command, Command::Exec(_)) {
                failed = 255;
            }
            let done = command
                .preserved()
                .map_or(Ok(()), only_open)
                .and_then(|()| report::trace(&global.log))
                .and_then(|()| carry_out(&global, *command));
            if let Err(failure) = &done {
                report::failure(&global.log, failure);
            }
            done
        }
        Err((mistake, log)) => {
            let failure = Failure::usage(mistake, "`inception-oci --help` shows the usage");
            report::failure(&log, &failure);
            Err(failure)
        }
    };
    ExitCode::from(done.unwrap_or(failed))
}

/// The definition of the command line, for manual pages.
pub fn command() -> clap::Command {
    <args::Arguments as clap::CommandFactory>::command()
}

/// As runc prints it, and engines read it.
fn version() -> String {
    let (ours, spec) = (env!("CARGO_PKG_VERSION"), container::oci::SPEC_VERSION);
    format!("inception-oci version {ours}\nspec: {spec}\n")
}

fn carry_out(global: &Global, command: Command) -> Result<u8, Failure> {
    let systemd = global.systemd_cgroup || global.cgroup_manager == Some(CgroupManager::Systemd);
    let runtime =
        Runtime::new(global.root.clone().unwrap_or_else(Runtime::default_root), systemd).acting_as_init();
    match command {
        Command::Create(args::Create { make }) => {
            let console = console(make.console_socket.as_ref());
            runtime.create(describe(make, console))?;
        }
        Command::Start { id } => runtime.start(&id)?,
        Command::State { id } => listing::state(&runtime, &id)?,
        Command::Kill { all, id, signal } => {
            // 0 only asks whether it could be sent, kill(2).
            let number = if signal == "0" { Some(0) } else { container::signal::number(&signal) };
            let number =
                number.ok_or_else(|| Failure::usage(format!("unknown signal `{signal}`"), SIGNALS))?;
            runtime.kill(&id, number, all)?;
        }
        Command::Delete { force, regex: true, id } => delete_matching(&runtime, &id, force)?,
        Command::Delete { force, id, .. } => delete(&runtime, &id, force)?,
        Command::Run(arguments) => return run(&runtime, arguments),
        Command::Exec(arguments) => return exec(&runtime, arguments),
        Command::List { format, quiet } => listing::list(&runtime, format, quiet, &global.log)?,
        Command::Ps { format, words } => return listing::ps(&runtime, format, &words),
        Command::Pause { id } => runtime.pause(&id)?,
        Command::Resume { id } => runtime.resume(&id)?,
        Command::Update(arguments) => {
            runtime.update(
                &arguments.id,
                &resources::described(arguments.resources.as_deref(), &arguments.flags)?,
            )?;
        }
        Command::Events { stats: true, id, .. } => events::stats(&runtime, &id)?,
        Command::Events { interval, id, .. } => events::follow(&runtime, &id, interval)?,
        Command::Spec { bundle, rootless } => spec::write(&bundle, rootless)?,
        Command::Features => features::show()?,
    }
    Ok(0)
}

/// Takes off `count` what is not open at the end of the range: later we open something there ourselves. Engines ask for
/// more than they have.
fn only_open(count: &mut u32) -> Result<(), Failure> {
    let number = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    if *count == 0 {
        return Ok(());
    }
    let listed = std::fs::read_dir("/proc/self/fd").map_err(Failure::system("list the open descriptors"))?;
    let listed: Vec<u32> = listed.filter_map(number).collect();
    // The one of the list itself is closed by now.
    let open = |number: &u32| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    let wanted = 3..count.saturating_add(3);
    let last = listed.into_iter().filter(|number| wanted.contains(number)).filter(open).max();
    *count = last.map_or(0, |last| last - 2);
    match (3..*count + 3).find(|number| !open(number)) {
        Some(gap) => Err(Failure::usage(
            format!("--preserve-fds: descriptor {gap} is not open, but later ones are"),
            PRESERVED,
        )),
        None => Ok(()),
    }
}

/// What the option means.
const PRESERVED: &str = "all of them from 3 up are passed on";
/// Where to find the names.
const SIGNALS: &str = "write a name or number of signal(7), such as KILL";

fn console(socket: Option<&PathBuf>) -> Console {
    socket.map_or(Console::None, |path| Console::Socket(path.clone()))
}

fn describe(make: args::Make, console: Console) -> Create {
    Create {
        id: make.id,
        bundle: make.bundle,
        config: make.config,
        console,
        pid_file: make.pid_file,
        preserve_fds: make.preserve_fds,
        no_pivot: make.no_pivot,
        no_new_keyring: make.no_new_keyring,
    }
}

/// Who forces a deletion wants the container gone, and it is.
fn delete(runtime: &Runtime, id: &str, force: bool) -> Result<(), Failure> {
    match runtime.delete(id, force) {
        Err(container::oci::Error::NotFound(_)) if force => Ok(()),
        other => Ok(other?),
    }
}

/// Deletes all that a pattern matches, as crun does.
fn delete_matching(runtime: &Runtime, pattern: &str, force: bool) -> Result<(), Failure> {
    let pattern =
        regex::Regex::new(pattern).map_err(|error| Failure::usage(error.to_string(), "see --regex"))?;
    for id in runtime.ids()?.iter().filter(|id| pattern.is_match(id)) {
        delete(runtime, id, force)?;
    }
    Ok(())
}

/// `run`. Without `--detach` the container ends before we do, and is deleted.
fn run(runtime: &Runtime, arguments: args::Run) -> Result<u8, Failure> {
    let args::Run { detach, keep, make } = arguments;
    let id = make.id.clone();
    if detach {
        let console = console(make.console_socket.as_ref());
        runtime.create(describe(make, console))?;
        return match runtime.start(&id) {
            Ok(()) => Ok(0),
            Err(error) => Err(give_up(runtime, &id, error.into())),
        };
    }
    if make.console_socket.is_some() {
        return Err(Failure::usage(
            "--console-socket without --detach",
            "the terminal is ours in the foreground",
        ));
    }
    let tty =
        process::wants_terminal(&make.config.clone().unwrap_or_else(|| make.bundle.join("config.json")));
    let mut foreground = Foreground::open(tty, !make.no_subreaper)?;
    let pid = foreground.lend(|console| runtime.create(describe(make, console)))?;
    let ended = foreground
        .watch(pid)
        .and_then(|()| Ok(runtime.start(&id)?))
        .and_then(|()| foreground.carry_until_end());
    match ended {
        Ok(status) if keep => Ok(status),
        Ok(status) => delete(runtime, &id, true).map(|()| status),
        Err(failure) => {
            // The message must not meet a terminal in raw mode.
            drop(foreground);
            Err(give_up(runtime, &id, failure))
        }
    }
}

/// What `run` made and nobody else knows of goes away again.
fn give_up(runtime: &Runtime, id: &str, failure: Failure) -> Failure {
    match (delete(runtime, id, true), failure) {
        (Ok(()), failure) | (Err(_), failure @ (Failure::File(_) | Failure::Unread)) => failure,
        (Err(second), Failure::Other(error)) => Failure::Other(
            error.or_hint(format!("the container could not be deleted: {}", report::line(&second))),
        ),
    }
}

/// `exec`.
fn exec(runtime: &Runtime, arguments: args::Exec) -> Result<u8, Failure> {
    let (id, mut process) = process::described(runtime, &arguments)?;
    let tty = process.terminal().unwrap_or(false);
    if tty && !arguments.detach && arguments.console_socket.is_none() {
        process::size_as_ours(&mut process);
    }
    let exec = |console| Exec {
        process,
        console,
        pid_file: arguments.pid_file,
        preserve_fds: arguments.preserve_fds,
        ignore_paused: arguments.ignore_paused,
    };
    if arguments.detach || arguments.console_socket.is_some() {
        let child = runtime.exec(&id, exec(console(arguments.console_socket.as_ref())))?;
        if arguments.detach {
            return Ok(0);
        }
        let mut foreground = Foreground::elsewhere(!arguments.no_subreaper)?;
        foreground.adopt(child.pidfd)?;
        return foreground.carry_until_end();
    }
    let mut foreground = Foreground::open(tty, !arguments.no_subreaper)?;
    let child = foreground.lend(|console| runtime.exec(&id, exec(console)))?;
    foreground.adopt(child.pidfd)?;
    foreground.carry_until_end()
}

impl From<container::oci::Error> for Failure {
    fn from(error: container::oci::Error) -> Self {
        Self::Other(stack::RemoteError::new(&error, error.hint(), 1))
    }
}
