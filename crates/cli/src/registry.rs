//! `pull`, `push`, `login` and `logout`, and how transfers are shown.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use rustix::termios::{self, LocalModes, OptionalActions};
use stack::RemoteError;
use stack::plan::{Plan, Service, Source};
use stack::registry::{self, Credentials, DOCKER_HUB, Done, Kept, Transfer};

use crate::output::{self, Failure, Output, size};
use crate::session::{Session, Wanted};

/// `pull`.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Show the images' names only
    #[arg(short, long)]
    quiet: bool,
    /// Platform of the image: linux/amd64, linux/arm/v7 [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// When to ask the registry: always, or for images that are missing here
    #[arg(long, value_name = "POLICY", default_value = "always", hide_possible_values = true)]
    policy: Policy,
    /// As compose has it: what is built here is never pulled
    #[arg(long, hide = true)]
    ignore_buildable: bool,
    #[command(flatten)]
    common: Common,
    /// Services or images [default: the images of all services that are not built]
    #[arg(value_name = "SERVICE|IMAGE")]
    names: Vec<String>,
}

/// `--policy` of `pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    Always,
    Missing,
}

/// What both `pull` and `push` can be told.
#[derive(Debug, Args)]
struct Common {
    /// The images of what the services depend on, too
    #[arg(long)]
    include_deps: bool,
    /// Go on with the others when one fails
    #[arg(long, visible_aliases = ["ignore-pull-failures", "ignore-push-failures"])]
    ignore_failures: bool,
}

impl Common {
    /// What becomes of one that failed.
    fn failed(&self, session: &Session, error: RemoteError) -> Result<(), Failure> {
        match self.ignore_failures {
            true => {
                session.output.warning(&error.to_string());
                Ok(())
            }
            false => Err(error.into()),
        }
    }
}

/// `push`.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// Show the images' names only
    #[arg(short, long)]
    quiet: bool,
    /// All tags of the repositories
    #[arg(short, long, requires = "names")]
    all_tags: bool,
    #[command(flatten)]
    common: Common,
    /// Services or images [default: the images of all services that are built]
    #[arg(value_name = "SERVICE|IMAGE")]
    names: Vec<String>,
}

/// `login`.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// User name
    #[arg(short, long, value_name = "USER")]
    username: Option<String>,
    /// Read the password, or a token, from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Registry: HOST or HOST:PORT
    #[arg(value_name = "REGISTRY", default_value = DOCKER_HUB)]
    registry: String,
}

/// `logout`.
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// Registry: HOST or HOST:PORT
    #[arg(value_name = "REGISTRY", default_value = DOCKER_HUB)]
    registry: String,
}

/// `pull`.
pub(crate) fn pull(session: &Session, arguments: &Pull) -> Result<u8, Failure> {
    let names =
        images(session, &arguments.names, arguments.common.include_deps, |_, service| {
            match &service.source {
                Source::Image(name) => Some(name.clone()),
                Source::Build(_) | Source::Rootfs(_) => None,
            }
        })?;
    if names.is_empty() {
        session.output.progress("nothing to pull: no service has an `image` of a registry");
    }
    for (name, platform) in names {
        if arguments.policy == Policy::Missing && stack::store::has(&session.paths, &name)? {
            session.output.progress(&format!("[{name}] is here already"));
            continue;
        }
        let mut report = Report::new(session.output, arguments.quiet);
        let platform = arguments.platform.as_deref().or(platform.as_deref());
        let pulled = registry::pull(&session.paths, &name, platform, &mut |event| report.show(&name, event));
        report.end();
        let pulled = match pulled {
            Ok(pulled) => pulled,
            Err(failed) => {
                arguments.common.failed(session, failed.error)?;
                continue;
            }
        };
        if !arguments.quiet {
            let how = if pulled.present { "up to date" } else { "pulled" };
            session.output.progress(&format!("[{}] {how}, {}", pulled.name, pulled.digest));
        }
        output::print(&format!("{}\n", pulled.name))?;
    }
    Ok(0)
}

/// `push`.
pub(crate) fn push(session: &Session, arguments: &Push) -> Result<u8, Failure> {
    let images = images(session, &arguments.names, arguments.common.include_deps, |plan, service| {
        match &service.source {
            // A name that the file does not give is none of a registry's.
            Source::Build(build)
                if build.image != format!("{}-{}:latest", plan.name, service.name.to_lowercase()) =>
            {
                Some(build.image.clone())
            }
            _ => None,
        }
    })?;
    let mut names: Vec<String> = images.into_iter().map(|(name, _)| name).collect();
    if arguments.all_tags {
        let mut all = Vec::new();
        for name in names {
            let tags = registry::tags(&session.paths, &name)?;
            if tags.is_empty() {
                return Err(RemoteError::message(format!("there is no image `{name}` to push")).into());
            }
            all.extend(tags);
        }
        names = all;
    }
    if names.is_empty() {
        session.output.progress("nothing to push: no service has both a `build` and an `image`");
    }
    for name in names {
        let mut report = Report::new(session.output, arguments.quiet);
        let pushed = registry::push(&session.paths, &name, &mut |event| report.show(&name, event));
        report.end();
        let pushed = match pushed {
            Ok(pushed) => pushed,
            Err(error) => {
                arguments.common.failed(session, error)?;
                continue;
            }
        };
        if !arguments.quiet {
            session.output.progress(&format!("[{}] pushed, {}", pushed.name, pushed.digest));
        }
        output::print(&format!("{}\n", pushed.name))?;
    }
    Ok(0)
}

/// The images that are meant, with the platforms that services want: those named, by their service or by themselves, or
/// all that `of` picks from a plan.
fn images(
    session: &Session,
    names: &[String],
    include_deps: bool,
    of: impl Fn(&Plan, &Service) -> Option<String>,
) -> Result<Vec<(String, Option<String>)>, Failure> {
    let mut images = Vec::new();
    let mut add = |image: (String, Option<String>)| {
        if !images.contains(&image) {
            images.push(image);
        }
    };
    let of_images = Wanted { images_only: true, ..Wanted::default() };
    let of = |plan: &Plan, service: &Service| Some((of(plan, service)?, service.platform.clone()));
    if names.is_empty() {
        let plan = session.load_for(&of_images)?.plan;
        plan.services.iter().filter_map(|service| of(&plan, service)).for_each(&mut add);
        return Ok(images);
    }
    // What looks like an image is one, and needs no stack file.
    let certain = |name: &str| name.contains(['/', ':', '@']);
    let plan: Option<Plan> = match names.iter().all(|name| certain(name)) {
        true => None,
        // Nor does any other name where there is no file.
        false => session.load_for(&of_images).ok().map(|loaded| loaded.plan),
    };
    for name in names {
        let known = plan.as_ref().filter(|_| !certain(name));
        let service = known.and_then(|plan| Some((plan, plan.services.iter().find(|s| s.name == *name)?)));
        match service {
            None => add((name.clone(), None)),
            Some((_, Service { source: Source::Image(image), platform, .. })) => {
                add((image.clone(), platform.clone()));
            }
            Some((plan, service)) => add(of(plan, service).ok_or_else(|| {
                RemoteError::message(format!("service `{name}` has no image of a registry"))
                    .or_hint("give it an `image`: the name under which its registry is to have it")
            })?),
        }
    }
    let Some(plan) = plan.filter(|_| include_deps) else { return Ok(images) };
    // Of those that were not named, who has no such image is none of this command's.
    let services: Vec<String> = names.iter().filter(|name| !certain(name)).cloned().collect();
    let needed = if services.is_empty() { Vec::new() } else { plan.with_dependencies(&services) };
    let needed = plan.services.iter().filter(|service| needed.contains(&service.name));
    for image in needed.filter_map(|service| of(&plan, service)) {
        if !images.contains(&image) {
            images.push(image);
        }
    }
    Ok(images)
}

/// `login`.
pub(crate) fn login(session: &Session, arguments: &Login) -> Result<u8, Failure> {
    let registry = registry_name(&arguments.registry)?;
    let user = match &arguments.username {
        Some(user) => user.clone(),
        None if arguments.password_stdin => {
            return Err(Failure::usage("`--password-stdin` needs `--username`", "add `--username NAME`"));
        }
        None => ask("User name: ", true)?,
    };
    let password = match arguments.password_stdin {
        true => {
            let mut text = String::new();
            io::stdin().lock().read_line(&mut text).map_err(Failure::system("read the password"))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        false => ask("Password or token: ", false)?,
    };
    if user.is_empty() || password.is_empty() {
        return Err(Failure::usage("the user name or the password is empty", "give both"));
    }
    let kept = registry::log_in(&registry, &Credentials::Password { user, password })?;
    match kept {
        Kept::File(path) => session.output.progress(&format!(
            "logged in to {registry}; the password is kept, readable for you alone, in {}",
            path.display()
        )),
        Kept::Helper(name) => {
            session
                .output
                .progress(&format!("logged in to {registry}; docker-credential-{name} keeps the password"));
        }
    }
    Ok(0)
}

/// `logout`.
pub(crate) fn logout(session: &Session, arguments: &Logout) -> Result<u8, Failure> {
    let registry = registry_name(&arguments.registry)?;
    let gone = registry::log_out(&registry)?;
    if gone.is_empty() {
        session.output.progress(&format!("not logged in to {registry}"));
    }
    for kept in gone {
        let place = match kept {
            Kept::File(path) => path.display().to_string(),
            Kept::Helper(name) => format!("docker-credential-{name}"),
        };
        session.output.progress(&format!("logged out of {registry}: removed from {place}"));
    }
    Ok(0)
}

/// A registry as image names spell it; people type addresses, too.
fn registry_name(text: &str) -> Result<String, Failure> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let host = host.trim_end_matches('/');
    let host = match host.split_once('/') {
        Some((host, "v1" | "v2")) => host,
        Some(_) => {
            return Err(Failure::usage(
                format!("`{text}` is no registry"),
                "a registry is HOST or HOST:PORT, without a repository",
            ));
        }
        None => host,
    };
    Ok(match host {
        "index.docker.io" | "registry-1.docker.io" | "hub.docker.com" => DOCKER_HUB.to_owned(),
        other => other.to_owned(),
    })
}

/// Asks at the terminal; a secret is not shown.
fn ask(question: &str, shown: bool) -> Result<String, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(
            "there is no terminal to ask at",
            "use `--username NAME --password-stdin` and give the password on standard input",
        ));
    }
    let fail = || Failure::system::<io::Error>("ask at the terminal");
    eprint!("{question}");
    io::stderr().flush().map_err(fail())?;
    let before = termios::tcgetattr(&stdin).map_err(Failure::system("ask at the terminal"))?;
    if !shown {
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(&stdin, OptionalActions::Flush, &quiet)
            .map_err(Failure::system("ask at the terminal"))?;
    }
    let mut text = String::new();
    let read = stdin.lock().read_line(&mut text);
    if !shown {
        termios::tcsetattr(&stdin, OptionalActions::Now, &before)
            .map_err(Failure::system("ask at the terminal"))?;
        eprintln!();
    }
    read.map_err(fail())?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Time between two pictures of a terminal.
const PICTURE: Duration = Duration::from_millis(100);
/// Most blobs that a picture shows.
const MOST_LINES: usize = 8;

/// Shows transfers: on a terminal a line for each blob under way, otherwise one for each that has ended.
pub(crate) struct Report {
    output: Output,
    quiet: bool,
    terminal: bool,
    /// Bytes and bytes in all of the blobs under way.
    under_way: BTreeMap<String, (u64, u64)>,
    /// Lines of the last picture.
    lines: usize,
    drawn: Option<Instant>,
}

impl Report {
    pub(crate) fn new(output: Output, quiet: bool) -> Self {
        let terminal =
            io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { output, quiet, terminal, under_way: BTreeMap::new(), lines: 0, drawn: None }
    }

    /// Shows what happens to an image.
    pub(crate) fn show(&mut self, image: &str, event: Transfer) {
        match event {
            Transfer::Note(text) => self.line(&format!("[{image}] {text}")),
            _ if self.quiet => {}
            Transfer::Begun(blob, total) => {
                self.under_way.insert(blob, (0, total));
                self.draw(false);
            }
            Transfer::Bytes(blob, done, total) => {
                self.under_way.insert(blob, (done, total));
                self.draw(false);
            }
            Transfer::Ended(blob, done) => {
                let total = self.under_way.remove(&blob).map(|(_, total)| format!(", {}", size(total)));
                let how = match done {
                    Done::Present => "there already",
                    Done::Pulled => "pulled",
                    Done::Pushed => "pushed",
                    Done::Mounted => "taken from another repository",
                };
                self.line(&format!("[{image}] layer {blob}: {how}{}", total.unwrap_or_default()));
            }
        }
    }

    /// Takes the picture away.
    pub(crate) fn end(&mut self) {
        self.under_way.clear();
        self.draw(true);
    }

    /// A line that stays, above the picture.
    fn line(&mut self, text: &str) {
        self.erase();
        self.output.progress(text);
        self.draw(true);
    }

    fn erase(&mut self) {
        if self.lines > 0 {
            self.write(&format!("\x1b[{}A\x1b[J", self.lines));
            self.lines = 0;
        }
    }

    fn draw(&mut self, now: bool) {
        if !self.terminal || !now && self.drawn.is_some_and(|drawn| drawn.elapsed() < PICTURE) {
            return;
        }
        self.erase();
        let lines: Vec<String> =
            self.under_way.iter().take(MOST_LINES).map(|(blob, at)| bar(blob, *at)).collect();
        self.lines = lines.len();
        self.write(&lines.concat());
        self.drawn = Some(Instant::now());
    }

    fn write(&self, text: &str) {
        // A terminal that is gone sees nothing, and needs nothing.
        match io::stderr().write_all(text.as_bytes()) {
            Ok(()) | Err(_) => {}
        }
    }
}

/// `  4abcf2066143 [=====>    ]  1.2 MB of 3.4 MB`
fn bar(blob: &str, (done, total): (u64, u64)) -> String {
    const WIDTH: u64 = 24;
    let full = done.min(total).saturating_mul(WIDTH).checked_div(total).unwrap_or(WIDTH);
    let bar: String = (0..WIDTH).map(|at| if at < full { '=' } else { ' ' }).collect();
    format!("  {blob} [{bar}] {} of {}\n", size(done), size(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_hosts() {
        let name = |text: &str| registry_name(text).ok();
        assert_eq!(name("https://index.docker.io/v1/").as_deref(), Some(DOCKER_HUB));
        assert_eq!(name("h:5000").as_deref(), Some("h:5000"));
        assert_eq!(name("https://h.example/").as_deref(), Some("h.example"));
        assert_eq!(name("h.example/team/app"), None);
    }

    #[test]
    fn bars_are_never_too_long() {
        for at in [(0, 0), (5, 10), (20, 10), (u64::MAX, u64::MAX)] {
            assert!(bar("4abcf2066143", at).len() < 79, "{}", bar("4abcf2066143", at));
        }
    }
}
