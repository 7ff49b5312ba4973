//! The `inception-run` command: arguments, output, error report. How anything works is the business of the
//! crates below.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod build;
mod build_check;
mod build_output;
mod build_view;
mod completion;
mod config;
mod copy;
mod create;
mod dashboard;
mod diagnosis;
#[cfg(test)]
mod documents;
mod down;
mod events;
mod exec;
mod explain;
mod export;
mod images;
mod lab;
mod lifecycle;
mod listing;
mod logs;
mod moment;
mod net;
pub mod oci;
mod output;
mod patience;
mod port;
mod registry;
mod run;
mod session;
mod signals;
mod stacks;
mod stats;
mod steps;
mod store;
mod terminal;
mod top;
mod trace;
mod transfer;
mod up;
mod version;
mod volumes;
mod wait;
mod watch;

use std::process::ExitCode;

use stack::control::Command as Request;

use args::{Arguments, Command};
use build_view::Form;
use output::{Failure, Output};
use session::Session;

/// Exit code of a failure.
const FAILURE: u8 = 1;
/// Exit code of bad usage.
const USAGE: u8 = 2;

/// The whole program. The exit code is the command's own for `exec` and `run`, 1 for a failure, 2 for bad usage
/// or a bad file.
pub fn main() -> ExitCode {
    sys::process::survive_file_size_limit();
    let arguments: Vec<_> = std::env::args_os().collect();
    // The supervisor and netd are this binary too, and need nothing of what a command needs.
    let process: Option<fn() -> i32> = match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some(stack::supervisor::ARGUMENT) => Some(stack::supervisor::main),
        Some(stack::netd::ARGUMENT) => Some(stack::netd::main),
        Some(stack::trace::ARGUMENT) => Some(steps::main),
        _ => None,
    };
    if let Some(process) = process {
        // Its standard error is a file, or becomes one.
        trace::init_from_environment(false);
        return code(u8::try_from(process()).unwrap_or(1));
    }
    let words = arguments.clone();
    let arguments = match args::parse(arguments) {
        Ok(arguments) => arguments,
        // `--help` and `--version` come this way too, with exit code 0.
        Err(error) => {
            return match error.print() {
                _ if error.use_stderr() => code(USAGE),
                Ok(()) => ExitCode::SUCCESS,
                Err(cause) => code(Failure::system("write to standard output")(cause).exit_code()),
            };
        }
    };
    let output = Output::new(arguments.global.color);
    let runs = matches!(arguments.command, Command::Exec(_) | Command::Run(_));
    let ready = trace::init(arguments.verbose, arguments.global.log_format, output.color_err, &words);
    match ready.and_then(|()| carry_out(arguments, output)) {
        Ok(status) => code(status),
        Err(failure) => {
            output.failure(&failure);
            match failure.exit_code() {
                // 125 to 127 are for who runs a command and wants to know whether it ran at all.
                125..=127 if !runs => code(FAILURE),
                status => code(status),
            }
        }
    }
}

/// The definition of the command line, for manual pages.
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

fn carry_out(arguments: Arguments, output: Output) -> Result<u8, Failure> {
    let Arguments { file, mut global, progress, mut command, .. } = arguments;
    let mut files = file;
    if let Command::Up(up) = &mut command {
        files.append(&mut up.up_file);
    }
    if let (Command::Build(build), Some(form)) = (&mut command, progress) {
        build.progress = form;
    }
    let is_quiet = match &command {
        Command::Up(up) => up.recreation.quiet_build,
        Command::Create(create) => create.recreation.quiet_build,
        Command::Run(run) => run.quiet || run.quiet_build,
        Command::Watch(watch) => watch.quiet,
        _ => false,
    };
    global.builds = if is_quiet { Form::Quiet } else { progress.unwrap_or_default() };
    global.quiet = match &command {
        Command::Run(run) => run.quiet,
        Command::Watch(watch) => watch.beside,
        _ => false,
    };
    let session = Session::new(files, global, output)?;
    match command {
        Command::Up(arguments) => up::up(&session, &arguments),
        Command::Create(arguments) => create::create(&session, arguments),
        Command::Down(arguments) => down::down(&session, &arguments),
        Command::Stop(arguments) => lifecycle::stop(&session, &arguments),
        Command::Start(arguments) => lifecycle::start(&session, &arguments),
        Command::Restart(arguments) => lifecycle::restart(&session, &arguments),
        Command::Kill(arguments) => lifecycle::kill(&session, &arguments),
        Command::Rm(arguments) => lifecycle::rm(&session, &arguments),
        Command::Pause(which) => lifecycle::change(&session, &Request::Pause(which.services)),
        Command::Unpause(which) => lifecycle::change(&session, &Request::Unpause(which.services)),
        Command::Wait(arguments) => wait::wait(&session, &arguments),
        Command::Attach(arguments) => wait::attach(&session, &arguments),
        Command::Port(arguments) => port::port(&session, &arguments),
        Command::Ls(arguments) => stacks::ls(&session, &arguments),
        Command::Volumes(arguments) => volumes::volumes(&session, &arguments),
        Command::Cp(arguments) => copy::copy(&session, &arguments),
        Command::Version(arguments) => version::version(&arguments),
        Command::Scale(arguments) => up::scale(&session, &arguments),
        Command::Ps(arguments) => listing::ps(&session, &arguments),
        Command::Stats(arguments) => stats::stats(&session, &arguments),
        Command::Top => top::top(&session),
        Command::Watch(arguments) => watch::watch(&session, &arguments),
        Command::Dashboard(arguments) => dashboard::dashboard(&session, &arguments),
        Command::Logs(arguments) => logs::logs(&session, &arguments),
        Command::Events(arguments) => events::events(&session, &arguments),
        Command::Net { net } => net::net(&session, net),
        Command::Exec(arguments) => exec::exec(&session, &arguments),
        Command::Run(arguments) => run::run(&session, &arguments),
        Command::Build(arguments) => build::build(&session, &arguments),
        Command::Images(arguments) => store::images(&session, &arguments),
        Command::Tag(arguments) => store::tag(&session, &arguments),
        Command::Rmi(arguments) => store::rmi(&session, &arguments),
        Command::History(arguments) => store::history(&session, &arguments),
        Command::Diff(arguments) => store::diff(&session, &arguments),
        Command::Df(arguments) => store::df(&session, &arguments),
        Command::Prune(arguments) => store::prune(&session, &arguments),
        Command::Verify(arguments) => store::verify(&session, &arguments),
        Command::Pull(arguments) => registry::pull(&session, &arguments),
        Command::Push(arguments) => registry::push(&session, &arguments),
        Command::Login(arguments) => registry::login(&session, &arguments),
        Command::Logout(arguments) => registry::logout(&session, &arguments),
        Command::Save(arguments) => transfer::save(&session, &arguments),
        Command::Load(arguments) => transfer::load(&session, &arguments),
        Command::Import(arguments) => transfer::import(&session, &arguments),
        Command::Export(arguments) => export::export(&session, &arguments),
        Command::Commit(arguments) => transfer::commit(&session, &arguments),
        Command::Inspect(arguments) => store::inspect(&session, &arguments),
        Command::Explain(arguments) => explain::explain(&session, &arguments),
        Command::Plan { format, base } => listing::plan(&session, format, base.as_deref()),
        Command::Config(arguments) => config::config(&session, &arguments),
        Command::Completion(arguments) => completion::completion(&arguments),
        Command::Doctor { format } => diagnosis::doctor(&session, format),
        Command::Lab(arguments) => lab::lab(&session, &arguments),
    }
}

fn code(code: u8) -> ExitCode {
    ExitCode::from(code)
}
