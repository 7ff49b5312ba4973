//! `run`: a one-off container with a service's configuration, in the stack that runs, or in one of its own.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use stack::client::Client;
use stack::control::{self, Command, Needs, Notice, Recreate, RunPort, Start};
use stack::host::HostFacts;
use stack::images::Options;
use stack::load;
use stack::plan::{Mount, MountKind, Scope};

use crate::args::{Always, Publish, published, stack_name};
use crate::create::Pull;
use crate::exec::{Inside, describe, relay, wants_tty};
use crate::images;
use crate::listing::check_services;
use crate::output::{self, Failure};
use crate::session::{Session, Wanted, supervisor_gone};
use crate::steps::Trace;
use crate::up::{self, End};

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
    /// Neither start nor wait for what the service depends on
    #[arg(long)]
    no_deps: bool,
    /// Build the service's image first, where the stack has no container of it
    #[arg(long)]
    build: bool,
    /// When its image is looked for in its registry: always, missing, never, build [default: the file's policy]
    #[arg(long, value_name = "POLICY", hide_possible_values = true)]
    pull: Option<Pull>,
    /// Do not tell what is done before the command runs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Do not show builds
    #[arg(long)]
    pub(crate) quiet_build: bool,
    /// Without effect: what is fetched is shown on a terminal only
    #[arg(long, hide = true)]
    quiet_pull: bool,
    /// Set the variables of a file; those of `--env` count more
    #[arg(long, value_name = "FILE")]
    env_from_file: Vec<PathBuf>,
    /// Give it a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Take a capability from it
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Without effect: nothing reads the labels of such a container
    #[arg(short, long, hide = true)]
    label: Vec<String>,
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

    /// What the supervisor is asked for.
    fn container(&self, tty: bool) -> Result<control::Run, Failure> {
        let mut exec = describe(&self.service, &self.argv, &self.inside, tty);
        if !self.env_from_file.is_empty() {
            let host = HostFacts::gather()?;
            let files = self.env_from_file.iter().map(|file| load::variables_of(file, &host));
            let files: Vec<_> = files.collect::<Result<_, _>>()?;
            exec.env.splice(0..0, files.into_iter().flatten());
        }
        Ok(control::Run {
            exec,
            name: self.name.clone(),
            entrypoint: self.entrypoint.as_deref().map(words).transpose()?,
            mounts: self.volume.clone(),
            ports: self.ports(),
            service_ports: self.service_ports,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
        })
    }

    /// What has a supervisor know the service and run no more than it depends on.
    fn preparation(&self, session: &Session) -> Result<control::Up, Failure> {
        let services = std::slice::from_ref(&self.service);
        let mut loaded = session.load_for(&Wanted { services, ..Wanted::default() })?;
        check_services(&loaded.plan, services)?;
        let wanted = loaded.plan.services.iter_mut().find(|service| service.name == self.service);
        let mut needed = Vec::new();
        if let Some(service) = wanted {
            if let Some(policy) = self.pull {
                service.pull_policy = Some(policy.into());
            }
            if !self.no_deps {
                needed.extend(service.depends_on.iter().map(|dependency| dependency.service.clone()));
            }
        }
        if needed.is_empty() {
            // No list would mean all of them; a name that no service can have means none.
            needed.push(String::new());
        }
        let options = Options {
            services: loaded.plan.concerned(services, self.no_deps),
            build: self.build,
            secrets: crate::build::secrets(&loaded),
            ..Options::default()
        };
        session.check_origin(&loaded.plan)?;
        Ok(control::Up {
            images: images::provide(session, &loaded.plan, options)?,
            secrets: up::secrets(&loaded),
            services: needed,
            wait: true,
            strict: session.strict(),
            rolling: false,
            options: control::UpOptions {
                files: loaded.files,
                one_off: true,
                // Nobody has asked for that.
                recreate: Recreate::Never,
                ..control::UpOptions::default()
            },
            plan: loaded.plan,
        })
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

fn words(text: &str) -> Result<Vec<String>, Failure> {
    stack::words::split(text).ok_or_else(|| {
        Failure::usage(format!("a quote is not closed in `{text}`"), "words are separated as in a shell")
    })
}

/// `run`.
pub(crate) fn run(session: &Session, arguments: &Run) -> Result<u8, Failure> {
    let tty = wants_tty(&arguments.inside);
    let container = arguments.container(tty)?;
    // What was found running, or not, may be otherwise a moment later.
    let deadline = Instant::now() + up::DOWN_DEADLINE;
    loop {
        if let End::Code(code) = attempt(session, arguments, &container, deadline)? {
            return Ok(code);
        }
    }
}

/// Joins the stack or starts it, and has it run the container.
fn attempt(
    session: &Session,
    arguments: &Run,
    container: &control::Run,
    deadline: Instant,
) -> Result<End, Failure> {
    let (mut client, before, ours) = match session.connect()? {
        (stack, Some(mut client)) => {
            arguments.steps.check_is_down(&stack)?;
            match needs(&mut client, &arguments.service)? {
                Some(needs) => (client, before_joining(session, needs, arguments)?, false),
                None => return up::wait_until_down(client, deadline).map(|()| End::Again),
            }
        }
        (_, None) => {
            let up = arguments.preparation(session)?;
            // The first one-off container of a stack has this name.
            let name = arguments.name.clone().unwrap_or(format!("{}-run-1", arguments.service));
            let client = arguments.steps.start(&up.plan, Some(&name), session.output)?;
            (client, Some(Command::Up(Box::new(up))), true)
        }
    };
    let prepared = before.map_or(Ok(true), |command| prepare(session, &mut client, &command, ours));
    let result = prepared.and_then(|is_prepared| match (is_prepared, arguments.inside.detach) {
        (false, _) => Ok(End::Again),
        (true, true) => run_detached(session, &mut client, container, arguments, ours),
        (true, false) => relay(session, &mut client, &Command::Run(container.clone()), container.exec.tty),
    });
    match result {
        Ok(End::Again) => up::wait_until_down(client, deadline).map(|()| End::Again),
        result => {
            if ours && (result.is_err() || !arguments.inside.detach) {
                leave(session, client, arguments);
            }
            result
        }
    }
}

/// Asks a stack that runs what has to be there first; `None` when it ends.
fn needs(client: &mut Client, service: &str) -> Result<Option<Needs>, Failure> {
    client.send(&Command::Needs(service.to_owned()), &[])?;
    let mut needs = Needs::Container;
    loop {
        match client.next(None)? {
            Some(Notice::Needs(told)) => needs = told,
            Some(Notice::Done) => return Ok(Some(needs)),
            Some(Notice::Ending | Notice::TakenDown) | None => return Ok(None),
            Some(Notice::Failed(error)) => return Err(error.into()),
            Some(_) => {}
        }
    }
}

/// What is asked of a stack that runs before the container, in which it has these needs.
fn before_joining(session: &Session, needs: Needs, arguments: &Run) -> Result<Option<Command>, Failure> {
    let missing = match needs {
        Needs::Container if session.has_stack_file() => {
            return Ok(Some(Command::Up(Box::new(arguments.preparation(session)?))));
        }
        // Its name is wrong, or the files are elsewhere: the supervisor says so.
        Needs::Container => Vec::new(),
        Needs::Services(missing) => missing,
    };
    if arguments.build || arguments.pull.is_some() {
        session.output.warning(&format!(
            "the container has the image that service `{}` has in the stack, which runs; `inception-run up` changes that one",
            arguments.service
        ));
    }
    let starts = !arguments.no_deps && !missing.is_empty();
    Ok(starts.then_some(Command::Start(Start { services: missing, wait: true })))
}

/// Has a command carried out; false where the stack ends, or another command's takes its place.
fn prepare(session: &Session, client: &mut Client, command: &Command, ours: bool) -> Result<bool, Failure> {
    client.send(command, &[])?;
    loop {
        match client.next(None)? {
            Some(Notice::Done) => return Ok(true),
            Some(Notice::Occupied | Notice::Ending | Notice::TakenDown) => return Ok(false),
            Some(Notice::Failed(error)) => return Err(error.into()),
            Some(notice) => session.progress(&notice),
            None if ours => return Err(supervisor_gone()),
            None => return Ok(false),
        }
    }
}

/// Starts a one-off container, prints its name and leaves it, and the stack if it was started for that.
fn run_detached(
    session: &Session,
    client: &mut Client,
    container: &control::Run,
    arguments: &Run,
    ours: bool,
) -> Result<End, Failure> {
    client.send(&Command::Run(container.clone()), &[])?;
    loop {
        match client.next(None)? {
            Some(Notice::Name(name)) => output::print(&format!("{name}\n"))?,
            Some(Notice::Done) => break,
            Some(Notice::Ending | Notice::TakenDown) => return Ok(End::Again),
            Some(Notice::Failed(error)) => return Err(error.into()),
            Some(notice) => session.progress(&notice),
            None => return Err(supervisor_gone()),
        }
    }
    if ours {
        session.carry_out(client, &Command::Detach)?;
    }
    if arguments.steps.is_wanted() {
        client.end_trace()?;
    }
    Ok(End::Code(0))
}

/// Ends the stack that was started for a container, unless others use it by now. If that fails, the end of this process
/// takes the stack with it, and the next command what is left of its files.
fn leave(session: &Session, mut client: Client, arguments: &Run) {
    let mut left = || -> Result<(), Failure> {
        client.send(&Command::Leave, &[])?;
        loop {
            match client.next(None)? {
                // It goes on without us.
                Some(Notice::Done) if arguments.steps.is_wanted() => return Ok(client.end_trace()?),
                Some(Notice::Done) => return Ok(()),
                Some(Notice::TakenDown) | None => return Ok(client.wait_end()?),
                Some(Notice::Failed(error)) => return Err(error.into()),
                Some(notice) => session.progress(&notice),
            }
        }
    };
    match left() {
        Ok(()) | Err(_) => {}
    }
}
