//! `build`: the images of a stack's services, or that of one directory.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use stack::RemoteError;
use stack::images::{self, Options};
use stack::plan::{BaseDockerfile, Build as Plan, BuildContext, BuildNetwork, SecretSource, Source};

use crate::build_check;
use crate::build_output::{Destination, fields};
use crate::build_view::{Form, View};
use crate::listing::check_services;
use crate::output::{self, Failure};
use crate::session::{Loaded, Session, Wanted};
use crate::steps;

/// `build`.
#[derive(Debug, Args)]
#[command(
    after_help = "An argument that names a directory (`.`, or with a `/` in it) or a git repository is built by itself, as with \
    `docker build`; all others are services of the stack file."
)]
pub(crate) struct Build {
    /// Run every instruction again
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Fetch the images that the Dockerfiles begin with again
    #[arg(long)]
    pub(crate) pull: bool,
    /// Base distribution, one of the file's `base`
    #[arg(long, value_name = "NAME")]
    pub(crate) base: Option<String>,
    /// Stage to build
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Value of an `ARG`; without `=VALUE`, that of the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) build_arg: Vec<String>,
    /// A secret for `RUN --mount=type=secret`
    #[arg(long, value_name = "id=ID,src=FILE|env=NAME")]
    pub(crate) secret: Vec<String>,
    /// An SSH agent for `RUN --mount=type=ssh`
    #[arg(long, value_name = "default|ID[=SOCKET]", num_args = 0..=1, default_missing_value = "default")]
    pub(crate) ssh: Vec<String>,
    /// What a name in the Dockerfile means: a directory, a git repository, or `docker-image://IMAGE`
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) build_context: Vec<String>,
    /// A label for the image
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,
    /// Network of RUN instructions that ask for none
    #[arg(long, value_name = "MODE")]
    pub(crate) network: Option<NetworkMode>,
    /// A line of `/etc/hosts` for RUN instructions
    #[arg(long, value_name = "NAME=ADDRESS")]
    pub(crate) add_host: Vec<String>,
    /// What RUN instructions may ask for: network.host, security.insecure
    #[arg(long, value_name = "ENTITLEMENT")]
    pub(crate) allow: Vec<Entitlement>,
    /// A name for the image
    #[arg(short, long, value_name = "NAME")]
    pub(crate) tag: Vec<String>,
    /// Dockerfile of a directory [default: its `Dockerfile`]
    #[arg(short = 'f', long = "dockerfile", value_name = "FILE")]
    pub(crate) dockerfile: Option<PathBuf>,
    /// Write the image's files, too (type=local, tar), or the image itself (type=oci, docker), to dest=PATH
    #[arg(short, long, value_name = "TYPE,DEST")]
    pub(crate) output: Option<String>,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,
    /// How it is shown
    #[arg(long, value_name = "FORM", default_value = "auto", hide_default_value = true)]
    pub(crate) progress: Form,
    /// Show nothing but the image's id
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Build what the services depend on, too
    #[arg(long)]
    pub(crate) with_dependencies: bool,
    /// Check the Dockerfiles for mistakes without building
    #[arg(long)]
    pub(crate) check: bool,
    /// Open a shell where a RUN failed
    #[arg(long)]
    pub(crate) debug_on_failure: bool,
    #[command(flatten)]
    pub(crate) steps: steps::Trace,
    /// Services [default: all that are built], or a directory, or a git repository
    #[arg(value_name = "SERVICE|DIRECTORY|REPOSITORY")]
    pub(crate) what: Vec<String>,
}

/// `--network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkMode {
    /// One of their own, with a way out.
    Default,
    /// One of their own, without.
    None,
    /// The host's.
    Host,
}

/// `--allow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Entitlement {
    /// `RUN --network=host`.
    #[value(name = "network.host")]
    NetworkHost,
    /// `RUN --security=insecure`.
    #[value(name = "security.insecure")]
    SecurityInsecure,
}

/// `build`.
pub(crate) fn build(session: &Session, arguments: &Build) -> Result<u8, Failure> {
    if let Some(code) = arguments.steps.watch_this_command(session.output)? {
        return Ok(code);
    }
    // Root may read the memory of everybody.
    let readable = steps::is_watched() && !rustix::process::geteuid().is_root();
    let debug = arguments.debug_on_failure;
    let mut options = Options { build: true, debug, readable, ..Options::default() };
    let (stack, mut builds) = match directory(&arguments.what, session.has_stack_file())? {
        Some(named) => (String::new(), vec![(String::new(), alone(&named, arguments)?)]),
        None => {
            let services = arguments.what.as_slice();
            let base = arguments.base.as_deref();
            let wanted = Wanted { base, services, images_only: true, ..Wanted::default() };
            let loaded = session.load_for(&wanted)?;
            options.secrets = secrets(&loaded);
            (loaded.plan.name.clone(), of_services(&loaded, arguments)?)
        }
    };
    if builds.is_empty() {
        session.output.progress("nothing to build: no service has a `build`");
        return Ok(0);
    }
    if arguments.debug_on_failure && !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Failure::usage(
            "`--debug-on-failure` opens a shell, and there is no terminal",
            "leave it out",
        ));
    }
    let destination = arguments.output.as_deref().map(Destination::parse).transpose()?;
    if builds.len() > 1 && (destination.is_some() || arguments.iidfile.is_some() || !arguments.tag.is_empty())
    {
        return Err(Failure::usage(
            "`--output`, `--iidfile` and `--tag` are for one image, and several are built",
            "name one service",
        ));
    }
    for (_, build) in &mut builds {
        apply(arguments, build)?;
    }
    if arguments.check {
        return build_check::check(session.output, &builds);
    }
    let form = if arguments.quiet { Form::Quiet } else { arguments.progress };
    let mut view = View::new(session.output, form);
    options.tick = view.is_live();
    let builds: Vec<(&str, &Plan)> = builds.iter().map(|(name, build)| (name.as_str(), build)).collect();
    let built = images::build(&session.paths, &stack, &builds, &options, &mut |progress| view.show(progress));
    view.finish();
    let ids = built?;
    for (service, id) in &ids {
        if arguments.quiet {
            output::print(&format!("{id}\n"))?;
        }
        if let Some(file) = &arguments.iidfile {
            std::fs::write(file, id).map_err(Failure::system(&format!("write {}", file.display())))?;
        }
        if let Some(destination) = &destination {
            let build = builds.iter().find(|(name, _)| name == service).map(|(_, build)| *build);
            destination.write(session, id, &build.map(names).unwrap_or_default())?;
        }
    }
    Ok(0)
}

/// The names of a built image.
fn names(build: &Plan) -> Vec<String> {
    [&build.image].into_iter().filter(|name| !name.is_empty()).chain(&build.tags).cloned().collect()
}

/// The directory that is to be built by itself, if one is named.
fn directory(what: &[String], has_stack_file: bool) -> Result<Option<PathBuf>, Failure> {
    let names_one = |word: &String| {
        !has_stack_file
            || word.contains('/')
            || matches!(word.as_str(), "." | "..")
            || matches!(images::repository(word), Ok(Some(_)))
    };
    match what {
        [] if !has_stack_file => Err(Failure::usage(
            "there is no stack file here whose services could be built",
            "name one (`inception-run -f FILE build`), or the directory of a Dockerfile (`inception-run build .`)",
        )),
        [word] if names_one(word) => Ok(Some(PathBuf::from(word))),
        several if several.iter().any(names_one) => Err(Failure::usage(
            "a directory is built by itself",
            "name one directory, or services of the stack file",
        )),
        _ => Ok(None),
    }
}

fn of_services(loaded: &Loaded, arguments: &Build) -> Result<Vec<(String, Plan)>, Failure> {
    check_services(&loaded.plan, &arguments.what)?;
    if arguments.dockerfile.is_some() {
        return Err(Failure::usage(
            "`build -f` names the Dockerfile of a directory, and none is named",
            "the stack file stands before the command: `inception-run -f FILE build`",
        ));
    }
    // With a service come those whose images it reads from.
    let named = match arguments.with_dependencies && !arguments.what.is_empty() {
        true => loaded.plan.with_dependencies(&arguments.what),
        false => arguments.what.clone(),
    };
    let chosen = loaded.plan.with_image_sources(&named);
    Ok(loaded
        .plan
        .services
        .iter()
        .filter(|service| chosen.contains(&service.name))
        .filter_map(|service| match &service.source {
            Source::Build(build) => Some((service.name.clone(), (**build).clone())),
            _ => None,
        })
        .collect())
}

/// A build that no stack file describes: of a directory, or of a repository.
fn alone(named: &Path, arguments: &Build) -> Result<Plan, Failure> {
    match repository(&named.to_string_lossy())? {
        Some(address) => {
            let path = arguments.dockerfile.clone().unwrap_or_else(|| PathBuf::from("Dockerfile"));
            let dockerfiles = vec![BaseDockerfile { base: String::new(), path }];
            Ok(Plan { repository: Some(address), dockerfiles, ..Plan::default() })
        }
        None => of_directory(named, arguments),
    }
}

/// The git repository that a build context is, if it is one.
fn repository(text: &str) -> Result<Option<String>, Failure> {
    images::repository(text).map_err(|problem| {
        Failure::usage(
            format!("`{text}` {problem}"),
            "a build context is a directory of this machine, or a git repository: `https://HOST/PATH.git#REF:DIRECTORY`",
        )
    })
}

fn of_directory(directory: &Path, arguments: &Build) -> Result<Plan, Failure> {
    let failed = |error| Failure::system(&format!("open {}", directory.display()))(error);
    let context: PathBuf = std::path::absolute(directory).map_err(failed)?.components().collect();
    if !context.is_dir() {
        return Err(RemoteError::message(format!("`{}` is not a directory", directory.display()))
            .or_hint("name the directory that COPY reads from; `-f` names its Dockerfile")
            .into());
    }
    let path = match &arguments.dockerfile {
        Some(file) => std::path::absolute(file).map_err(failed)?.components().collect(),
        None => context.join("Dockerfile"),
    };
    if !path.is_file() {
        return Err(RemoteError::message(format!("there is no `{}`", path.display()))
            .or_hint("`-f` names the Dockerfile")
            .into());
    }
    let dockerfiles = vec![BaseDockerfile { base: String::new(), path }];
    Ok(Plan { context, dockerfiles, ..Plan::default() })
}

/// Changes a build as the options say.
fn apply(arguments: &Build, build: &mut Plan) -> Result<(), Failure> {
    build.no_cache |= arguments.no_cache;
    build.pull |= arguments.pull;
    if let Some(target) = &arguments.target {
        build.target = Some(target.clone());
    }
    for word in &arguments.build_arg {
        match word.split_once('=') {
            Some((name, value)) => drop(build.args.insert(name.to_owned(), value.to_owned())),
            None => build.args.extend(std::env::var(word).ok().map(|value| (word.clone(), value))),
        }
    }
    for word in &arguments.label {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        build.labels.insert(name.to_owned(), value.to_owned());
    }
    for word in &arguments.secret {
        let (id, source) = secret(word)?;
        build.secrets.insert(id, source);
    }
    for word in &arguments.ssh {
        let (id, socket) = agent(word)?;
        build.ssh.insert(id, socket);
    }
    for word in &arguments.build_context {
        let (name, context) = context(word)?;
        build.contexts.insert(name, context);
    }
    for word in &arguments.add_host {
        build.extra_hosts.push(host(word)?);
    }
    for entitlement in &arguments.allow {
        match entitlement {
            Entitlement::NetworkHost => build.allows_host_network = true,
            Entitlement::SecurityInsecure => build.allows_insecure = true,
        }
    }
    match arguments.network {
        None => {}
        Some(NetworkMode::Default) => build.network = BuildNetwork::Own,
        Some(NetworkMode::None) => build.network = BuildNetwork::None,
        Some(NetworkMode::Host) => {
            build.network = BuildNetwork::Host;
            build.allows_host_network = true;
        }
    }
    let mut tags = arguments.tag.iter();
    if build.image.is_empty() {
        build.image = tags.next().cloned().unwrap_or_default();
    }
    build.tags.extend(tags.cloned());
    Ok(())
}

/// An absolute path.
fn absolute(path: &str) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(Failure::system(&format!("find {path}")))
}

/// `id=ID[,src=FILE|,env=NAME]`.
fn secret(text: &str) -> Result<(String, SecretSource), Failure> {
    let wrong = |message: String| {
        Failure::usage(message, "write `--secret id=ID,src=FILE` or `--secret id=ID,env=NAME`")
    };
    let fields = fields(text);
    let known = ["id", "src", "source", "env", "type"];
    if let Some(unknown) = fields.keys().find(|key| !known.contains(key)) {
        return Err(wrong(format!("`{unknown}` of `--secret {text}` is not known")));
    }
    let id = fields.get("id").filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| wrong(format!("`--secret {text}` has no id")))?;
    let file = fields.get("src").or(fields.get("source"));
    let source = match (file, fields.get("env")) {
        (Some(_), Some(_)) => return Err(wrong(format!("`--secret {text}` names a file and a variable"))),
        (Some(name), None) if fields.get("type") == Some(&"env") => {
            SecretSource::Environment((*name).to_owned())
        }
        (Some(file), None) => SecretSource::File(absolute(file)?),
        (None, Some(name)) => SecretSource::Environment((*name).to_owned()),
        // As BuildKit's client: the variable of this name, or the file.
        (None, None) if std::env::var_os(id).is_some() => SecretSource::Environment((*id).to_owned()),
        (None, None) => SecretSource::File(absolute(id)?),
    };
    Ok(((*id).to_owned(), source))
}

/// `ID[=SOCKET]`.
fn agent(text: &str) -> Result<(String, PathBuf), Failure> {
    match text.split_once('=') {
        Some((id, socket)) => Ok((id.to_owned(), absolute(socket)?)),
        None => match std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()) {
            Some(socket) => Ok((text.to_owned(), socket.into())),
            None => Err(Failure::usage(
                "`--ssh` without a socket needs an agent, and SSH_AUTH_SOCK is not set",
                "start one: `eval $(ssh-agent) && ssh-add`",
            )),
        },
    }
}

/// `NAME=DIRECTORY`, `NAME=REPOSITORY` or `NAME=docker-image://IMAGE`.
fn context(text: &str) -> Result<(String, BuildContext), Failure> {
    let wrong = || {
        Failure::usage(
            format!("`--build-context {text}` has no name and value"),
            "write `NAME=DIRECTORY` or `NAME=docker-image://IMAGE`",
        )
    };
    let (name, value) = text
        .split_once('=')
        .filter(|(name, value)| !name.is_empty() && !value.is_empty())
        .ok_or_else(wrong)?;
    Ok(match value.strip_prefix("docker-image://") {
        Some(image) => (name.to_owned(), BuildContext::Image(image.to_owned())),
        None => match repository(value)? {
            Some(address) => (name.to_owned(), BuildContext::Repository(address)),
            None => (name.to_owned(), BuildContext::Directory(absolute(value)?)),
        },
    })
}

/// `NAME=ADDRESS` or `NAME:ADDRESS`.
fn host(text: &str) -> Result<(String, IpAddr), Failure> {
    let parsed = text.split_once(['=', ':']).and_then(|(name, address)| {
        let plain = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        Some((name.to_owned(), IpAddr::from_str(plain).ok()?))
    });
    parsed.filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
        Failure::usage(format!("`--add-host {text}` is not a name and an address"), "write `NAME=ADDRESS`")
    })
}

/// Values of the secrets of builds that come from variables.
pub(crate) fn secrets(loaded: &Loaded) -> BTreeMap<String, String> {
    let builds = loaded.plan.services.iter().filter_map(|service| match &service.source {
        Source::Build(build) => Some(build),
        _ => None,
    });
    crate::up::values(loaded, builds.flat_map(|build| build.secrets.values()))
}
