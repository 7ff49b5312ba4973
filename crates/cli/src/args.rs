//! Raw arguments become resolved arguments here and nowhere else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use stack::control::RunPort;

use crate::build::Build;
use crate::build_view::Form;
use crate::config;
use crate::create::{Create, Foreground, Recreation};
use crate::down::Down;
use crate::events::Events;
use crate::lab;
use crate::lifecycle;
use crate::logs::Logs;
use crate::net::{pause, percent, rate};
use crate::store;
use crate::transfer;

/// Runs a stack of services on this machine, without a daemon and without root.
#[derive(Debug, Parser)]
#[command(name = "inception-run", version, subcommand_required = true)]
#[command(override_usage = "inception-run [OPTIONS] COMMAND\n       inception-run FILE [OPTIONS OF `up`]")]
#[command(after_help = "`inception-run FILE` is short for `inception-run up -f FILE`.")]
pub(crate) struct Arguments {
    /// Stack file; several are merged, `-` is standard input [default: $COMPOSE_FILE, or the first of stack.toml,
    /// compose.yaml, docker-compose.yml found here or above]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// What the program does, on standard error: -v, -vv, -vvv (or RUST_LOG)
    #[arg(short, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// How builds are shown, as `build --progress`
    #[arg(id = "progress_of_builds", long = "progress", value_name = "FORM", hide = true)]
    pub(crate) progress: Option<Form>,
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that may stand before and after the subcommand.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Name of the stack [default: the file's `name`, or its directory's name]
    #[arg(short, long, global = true, value_name = "NAME", value_parser = stack_name)]
    pub(crate) project_name: Option<String>,
    /// Variables of the stack file; later files win [default: $COMPOSE_ENV_FILES, or `.env` beside it]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// What paths in the stack file are relative to [default: its directory]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) project_directory: Option<PathBuf>,
    /// Activate a profile, `*` for all [default: $COMPOSE_PROFILES]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) profile: Vec<String>,
    /// Form of the messages of -v and RUST_LOG
    #[arg(long, global = true, value_name = "FORMAT", default_value = "human", hide_default_value = true)]
    pub(crate) log_format: LogFormat,
    /// Warnings are errors, and so are limits that cannot be enforced here
    #[arg(long, global = true)]
    pub(crate) strict: bool,
    /// Publish ports that only root may have (below 1024) as the sum with N; the stack keeps to it while it runs
    #[arg(long, global = true, value_name = "N")]
    pub(crate) port_offset: Option<u16>,
    /// Publish another port than the file's: `--publish 443=8443`, as often as needed
    #[arg(long, global = true, value_name = "PORT=OTHER", value_parser = other_port)]
    pub(crate) publish: Vec<Publish>,
    /// Colours; NO_COLOR is honoured too
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_default_value = true)]
    #[arg(visible_alias = "ansi")]
    pub(crate) color: ColorChoice,
    /// How builds are shown: `--progress` before the command, or `--quiet-build`
    #[arg(skip)]
    pub(crate) builds: Form,
    /// What becomes of containers is not told: of those that start for the sake of another one (`run --quiet`), and by a
    /// `watch` beside an `up` that tells it
    #[arg(skip)]
    pub(crate) quiet: bool,
}

/// A value of `--publish`. Of `run` that is an option with a second meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Publish {
    /// `443=8443`: another port than the file's.
    Instead(u16, u16),
    /// `8080:80`: ports of the container that `run` makes.
    Ports(Vec<RunPort>),
}

impl Global {
    /// The ports that others stand for.
    pub(crate) fn other_ports(&self) -> impl Iterator<Item = (u16, u16)> {
        self.publish.iter().filter_map(|one| match one {
            Publish::Instead(port, other) => Some((*port, *other)),
            Publish::Ports(_) => None,
        })
    }
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines to read.
    Human,
    /// A JSON object a line.
    Json,
}

/// `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// `--format` of listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build what is missing, start the services in order and show their output; Ctrl-C stops them
    Up(Up),
    /// Create containers without starting them
    Create(Create),
    /// Stop all containers and remove the stack
    Down(Down),
    /// Stop services; they stay stopped until they are started
    Stop(lifecycle::Stop),
    /// Start stopped services
    Start(lifecycle::Start),
    /// Stop services and start them again
    Restart(lifecycle::Restart),
    /// Send a signal to containers, SIGKILL by default
    Kill(lifecycle::Kill),
    /// Remove stopped containers
    Rm(lifecycle::Rm),
    /// Suspend all processes of services
    Pause(Services),
    /// Resume paused services
    Unpause(Services),
    /// Wait until containers have exited, and print their exit codes
    Wait(crate::wait::Wait),
    /// Show what a service's container writes from now on, and pass signals to it, until it ends
    Attach(crate::wait::Attach),
    /// Change how many containers run a service, until the next `up`
    Scale(Scale),
    /// List the containers of the services
    Ps(crate::listing::Ps),
    /// Print where a port of a service is published
    Port(crate::port::Port),
    /// List the stacks of this user that run
    Ls(crate::stacks::Ls),
    /// List the volumes of the stack
    Volumes(crate::volumes::Volumes),
    /// Copy files between a service's container and here: SERVICE:PATH is inside, `-` is an archive
    Cp(crate::copy::Copy),
    /// Show what services use: processor, memory, network, block devices, processes, pressure
    Stats(Stats),
    /// Watch the services: a live view of what they use; q leaves it
    Top,
    /// Bring the services up and do what `develop.watch` says as files change, until Ctrl-C; the stack goes on
    Watch(crate::watch::Watch),
    /// Show the stack in a browser: a page on this machine only, as long as this command runs
    Dashboard(crate::dashboard::Dashboard),
    /// Show the logs of services
    Logs(Logs),
    /// Show events: starts, exits, health, refused connections
    Events(Events),
    /// Inject faults into the network of services, and remove them: delay, loss, rate, partition
    Net {
        #[command(subcommand)]
        net: Net,
    },
    /// Run a command in a running service
    Exec(crate::exec::Exec),
    /// Run a one-off container with a service's configuration
    Run(Box<crate::run::Run>),
    /// Build the images of the services, or the image of a directory with a Dockerfile
    Build(Box<Build>),
    /// Pull images from their registries
    Pull(crate::registry::Pull),
    /// Push images to their registries
    Push(crate::registry::Push),
    /// Log in to a registry
    Login(crate::registry::Login),
    /// Log out of a registry: delete its credentials
    Logout(crate::registry::Logout),
    /// List the images
    Images(store::Images),
    /// Tag an image with another name
    Tag(store::Tag),
    /// Remove images
    Rmi(store::Rmi),
    /// Show the history of an image
    History(store::History),
    /// Show what a container has changed about its image: A is added, C changed, D deleted
    Diff(store::Diff),
    /// Show disk usage
    Df(store::Df),
    /// Remove unused data: layers, untagged images, the build cache
    Prune(store::Prune),
    /// Check the integrity of images and layers
    Verify(store::Verify),
    /// Write images to a file, for `load` here or elsewhere
    Save(transfer::Save),
    /// Load images that `save`, Docker, Podman or another tool wrote
    Load(transfer::Load),
    /// Create an image from the archive of a root file system
    Import(transfer::Import),
    /// Write the file system of a service's container as an archive; or the stack for Kubernetes, Podman or systemd
    Export(crate::export::Arguments),
    /// Create an image from the file system of a service's container
    Commit(transfer::Commit),
    /// Show what a service runs with, or what an image is (JSON)
    Inspect(store::Inspect),
    /// Show what a running service is made of, read from the kernel, side by side with the host
    Explain(crate::explain::Explain),
    /// Show what `up` would do
    Plan {
        /// table or json
        #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
        format: Format,
        /// Plan for this base distribution
        #[arg(long, value_name = "NAME")]
        base: Option<String>,
    },
    /// Show the merged and resolved configuration of the stack, or convert it into a `stack.toml`
    #[command(visible_alias = "convert")]
    Config(config::Arguments),
    /// Print the script that completes command lines in a shell: `source <(inception-run completion bash)`
    Completion(crate::completion::Completion),
    /// Print the version of this program
    Version(crate::version::Version),
    /// Check this machine for everything that prevents stacks from running, and show the fix
    Doctor {
        /// table or json
        #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
        format: Format,
    },
    /// Learn what a container is: ten exercises; without a number they are listed
    Lab(lab::Arguments),
}

/// `up`.
#[derive(Debug, Default, Args)]
pub(crate) struct Up {
    /// Stack file, as before the command
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub(crate) up_file: Vec<PathBuf>,
    /// Leave the stack running in the background
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Wait until all services are healthy or running; implies -d
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long that may take, in seconds; what was started goes on
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    pub(crate) wait_timeout: Option<u32>,
    /// Do what `develop.watch` says as files change
    #[arg(short, long, conflicts_with_all = ["detach", "wait", "no_start", "no_build"])]
    pub(crate) watch: bool,
    /// Build the images even if they are there
    #[arg(long, conflicts_with = "no_build")]
    pub(crate) build: bool,
    /// Fail rather than build a missing image
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Base distribution to build on, one of the file's `base`
    #[arg(long, value_name = "NAME")]
    pub(crate) base: Option<String>,
    /// How many containers run a service, instead of what the file says
    #[arg(long, value_name = "SERVICE=N", value_parser = count)]
    pub(crate) scale: Vec<(String, u16)>,
    /// Replace containers one by one: the new one first, the old one when the new one is healthy
    #[arg(long)]
    pub(crate) rolling: bool,
    /// Neither start nor wait for what these services depend on
    #[arg(long)]
    pub(crate) no_deps: bool,
    /// Create the containers without starting them
    #[arg(long, conflicts_with_all = ["detach", "wait"])]
    pub(crate) no_start: bool,
    /// Timeout of stops in seconds [default: what each service asks for]
    #[arg(short, long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    #[command(flatten)]
    pub(crate) recreation: Recreation,
    #[command(flatten)]
    pub(crate) foreground: Foreground,
    #[command(flatten)]
    pub(crate) steps: crate::steps::Trace,
    #[command(flatten)]
    pub(crate) always: Always,
    /// Only these services and what they depend on
    pub(crate) services: Vec<String>,
}

/// What compose does when it is told to, and this program always: makefiles may say it.
#[derive(Debug, Default, Args)]
pub(crate) struct Always {
    /// Services that the files no longer have do not stay
    #[arg(long = "remove-orphans", hide = true)]
    _remove_orphans: bool,
}

/// `scale`.
#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// Do not start what these services depend on
    #[arg(long)]
    pub(crate) no_deps: bool,
    /// Service and number of its containers
    #[arg(required = true, value_name = "SERVICE=N", value_parser = count)]
    pub(crate) counts: Vec<(String, u16)>,
}

/// A list of services.
#[derive(Debug, Args)]
pub(crate) struct Services {
    /// Services, or single containers such as `web-2` [default: all]
    pub(crate) services: Vec<String>,
}

/// `stats`.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Show it once, not again and again
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    pub(crate) format: Format,
    /// Services [default: all that run]
    pub(crate) services: Vec<String>,
}

/// `net`.
#[derive(Debug, Subcommand)]
pub(crate) enum Net {
    /// Delay what reaches a service and what it sends, each way
    Delay {
        /// Service
        service: String,
        /// How long: `100ms`
        #[arg(value_parser = pause)]
        time: Duration,
        /// By how much it varies, up and down
        #[arg(value_parser = pause)]
        jitter: Option<Duration>,
    },
    /// Lose packets to and from a service
    Loss {
        /// Service
        service: String,
        /// How many of a hundred: `5%`
        #[arg(value_parser = percent)]
        percent: f64,
    },
    /// Limit how much reaches a service and how much it sends
    Rate {
        /// Service
        service: String,
        /// Bits a second: `1mbit`, `500kbit`
        #[arg(value_parser = rate)]
        rate: u64,
    },
    /// Cut a service off from other services, or from everybody
    Partition {
        /// Service
        service: String,
        /// From whom [default: everybody]
        from: Vec<String>,
    },
    /// Remove all of these faults
    Heal {
        /// Services [default: all]
        services: Vec<String>,
    },
    /// Show the faults in force
    Show {
        /// table or json
        #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
        format: Format,
    },
}

/// Parses the arguments of the process; the first is the program's name.
///
/// # Errors
/// clap's, which knows how to print itself.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(with_up(without_compose(arguments)))
}

/// `docker compose ...` of Makefiles is `inception-run ...`, where `docker` is a link to this program.
fn without_compose(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.len() > 2 && arguments[1] == "compose" {
        arguments.remove(1);
    }
    arguments
}

/// Options before the subcommand that take a value in the next argument.
const WITH_VALUE: [&str; 13] = [
    "-f",
    "--file",
    "-p",
    "--project-name",
    "--env-file",
    "--project-directory",
    "--profile",
    "--port-offset",
    "--publish",
    "--log-format",
    "--color",
    "--ansi",
    "--progress",
];

/// `inception-run FILE ...` becomes `inception-run up -f FILE ...`, and what `--publish` says before `run` goes behind
/// it: there the option is one of its own, whose values would stand for these.
fn with_up(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let mut at = 1;
    let mut published = Vec::new();
    while let Some(argument) = arguments.get(at).map(|argument| argument.to_string_lossy()) {
        if argument == "--publish" {
            published.extend(at..arguments.len().min(at + 2));
            at += 2;
        } else if argument.starts_with("--publish=") {
            published.push(at);
            at += 1;
        } else if WITH_VALUE.contains(&&*argument) {
            at += 2;
        } else if argument.starts_with('-') {
            at += 1;
        } else if argument == "run" {
            // Each goes behind the word, which moves one to the front by that.
            for (moved, from) in published.iter().enumerate() {
                arguments[from - moved..=at].rotate_left(1);
            }
            break;
        } else {
            // The names alone: to define the whole command line for them would take as long as to parse it.
            let is_command = argument == "help" || Command::has_subcommand(&argument);
            if !is_command && names_a_file(&arguments[at]) {
                arguments.splice(at..at, ["up".into(), "-f".into()]);
            }
            break;
        }
    }
    arguments
}

/// Whether a word is meant as a stack file. A word without an extension that names nothing is more likely a
/// misspelt subcommand, for which clap has the better message.
fn names_a_file(word: &OsString) -> bool {
    let path = Path::new(word);
    let stack_file = path.extension().is_some_and(|e| e == "toml" || e == "yaml" || e == "yml");
    stack_file || path.components().count() > 1 || path.is_file()
}

/// `PORT=OTHER` of `--publish`.
fn other_port(text: &str) -> Result<Publish, String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let ports =
        text.split_once('=').and_then(|(port_of_file, other)| Some((port(port_of_file)?, port(other)?)));
    let (port, other) =
        ports.ok_or_else(|| "write the file's port and the one to publish: `443=8443`".to_owned())?;
    Ok(Publish::Instead(port, other))
}

/// `--publish` of `run`: a port in a file's short form, or what the option means elsewhere.
pub(crate) fn published(text: &str) -> Result<Publish, String> {
    if text.contains('=') { other_port(text) } else { RunPort::read(text).map(Publish::Ports) }
}

pub(crate) fn count(text: &str) -> Result<(String, u16), String> {
    let pair = text.split_once('=').filter(|(service, _)| !service.is_empty());
    let (service, number) = pair.ok_or("a service and a number: `web=3`")?;
    let number =
        number.parse().map_err(|_| format!("`{number}` is not a number of containers: 0 to {}", u16::MAX))?;
    Ok((service.to_owned(), number))
}

pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the name is empty".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(_) => Err(format!("`{text}` is not set here, so there is nothing to pass on")),
        },
    }
}

/// A stack's name becomes a directory's.
pub(crate) fn stack_name(text: &str) -> Result<String, String> {
    let first = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let rest = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
    if first && rest && text.len() <= 63 {
        Ok(text.to_owned())
    } else {
        Err("at most 63 lower-case letters, digits, `-` and `_`, beginning with a letter or a digit"
            .to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        let words = std::iter::once("inception-run").chain(line.split_whitespace());
        parse(words.map(OsString::from).collect())
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_file_stands_for_up() {
        for line in ["stack.toml -d", "up -f stack.toml -d", "-v --color never dir/stack -d"] {
            let arguments = parsed(line).unwrap();
            let Command::Up(up) = arguments.command else { panic!("{line}") };
            assert!(up.detach && up.up_file.len() == 1, "{line}");
        }
        // The file before the command, and two meanings of -f.
        let arguments = parsed("-f a.toml -p x logs -f web").unwrap();
        assert_eq!(arguments.file, [Path::new("a.toml")]);
        let Command::Logs(logs) = arguments.command else { panic!() };
        assert!(logs.follow && logs.services == ["web"]);
        let arguments = parsed("-f a.yaml -f - --profile p --env-file x --env-file y ps").unwrap();
        assert_eq!((arguments.file.len(), arguments.global.env_file.len()), (2, 2));
        // Two meanings of -v.
        let arguments = parsed("-vv down -v").unwrap();
        assert!(
            arguments.verbose == 2 && matches!(arguments.command, Command::Down(Down { volumes: true, .. }))
        );
        for line in ["down -v --remove-orphans", "up -d --build --remove-orphans", "ps -a"] {
            assert!(parsed(line).is_ok(), "{line}");
        }
        // As Makefiles have it.
        let arguments = parsed("compose -f srcs/docker-compose.yml up -d --build").unwrap();
        assert_eq!(arguments.file, [Path::new("srcs/docker-compose.yml")]);
        assert!(matches!(arguments.command, Command::Up(up) if up.detach));
        // Not a file: a misspelt command.
        assert!(parsed("statr").is_err());
        assert!(parsed("-p ../x ps").is_err());
    }

    #[test]
    fn run_publishes_ports_of_its_container() {
        let run = |line: &str| {
            let arguments = parsed(line).unwrap();
            let Command::Run(run) = arguments.command else { panic!("{line}") };
            (run, arguments.global)
        };
        let (arguments, global) = run("-p x run -p 8080:80 --publish 53/udp --publish 443=8443 web sh -p x");
        assert_eq!(global.project_name.as_deref(), Some("x"));
        assert_eq!(arguments.ports().len(), 2);
        assert_eq!((arguments.ports()[0].host_port, arguments.ports()[0].container_port), (8080, 80));
        assert_eq!(global.other_ports().collect::<Vec<_>>(), [(443, 8443)]);
        // Before the word it means what it means before all of them.
        let (arguments, global) =
            run("--publish 443=8443 -v --publish=80=8080 run --project-name y -P -p 1:2 web");
        assert_eq!(global.other_ports().collect::<Vec<_>>(), [(443, 8443), (80, 8080)]);
        assert_eq!(global.project_name.as_deref(), Some("y"));
        assert_eq!(arguments.ports().len(), 1);
        for line in ["run -p x web", "run -p 8080:80-81 web", "up --publish 8080:80", "--publish 8080:80 ps"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn numbers_of_containers() {
        let Command::Scale(scale) = parsed("scale web=3 db=0").unwrap().command else { panic!() };
        assert_eq!(scale.counts, [("web".to_owned(), 3), ("db".to_owned(), 0)]);
        let Command::Up(up) = parsed("up --rolling --scale web=2 web").unwrap().command else { panic!() };
        assert!(up.rolling && up.scale == [("web".to_owned(), 2)] && up.services == ["web"]);
        for line in ["scale", "scale web", "scale =2", "scale web=x", "scale web=-1", "scale web=65536"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn faults_are_read() {
        let arguments = parsed("net delay web 100ms 10ms").unwrap();
        let Command::Net { net: Net::Delay { service, time, jitter } } = arguments.command else { panic!() };
        assert_eq!((service.as_str(), time.as_millis()), ("web", 100));
        assert_eq!(jitter, Some(Duration::from_millis(10)));
        for line in
            ["net delay web", "net delay web soon", "net loss web 101", "net rate web fast", "net cut web"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_command_of_exec_keeps_its_own_options() {
        let arguments = parsed("exec -it -e A=b=c -u 1 web ls -la --color").unwrap();
        let Command::Exec(exec) = arguments.command else { panic!() };
        assert_eq!(exec.argv, ["ls", "-la", "--color"]);
        assert_eq!(exec.inside.env, [("A".to_owned(), "b=c".to_owned())]);
        assert!(exec.inside.tty && parsed("exec web").is_err());
    }
}
