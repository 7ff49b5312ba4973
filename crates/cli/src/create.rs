//! `create`, and the options of `up` that say what becomes of containers and who sees their output.

use clap::{Args, ValueEnum};
use stack::control::{Recreate, UpOptions};
use stack::plan::{Plan, PullPolicy, Service};

use crate::args::{Always, Up};
use crate::logs::Printer;
use crate::output::{Failure, Output};
use crate::session::Session;
use crate::up;

/// `create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Build the images even if they are there
    #[arg(long, conflicts_with = "no_build")]
    build: bool,
    /// Fail rather than build a missing image
    #[arg(long)]
    no_build: bool,
    /// How many containers run a service, instead of what the file says
    #[arg(long, value_name = "SERVICE=N", value_parser = crate::args::count)]
    scale: Vec<(String, u16)>,
    #[command(flatten)]
    pub(crate) recreation: Recreation,
    #[command(flatten)]
    always: Always,
    /// Only these services and what they depend on
    services: Vec<String>,
}

/// Which containers are replaced, and by which images.
#[derive(Debug, Default, Args)]
pub(crate) struct Recreation {
    /// Replace the containers of these services even if nothing has changed
    #[arg(long, conflicts_with = "no_recreate")]
    force_recreate: bool,
    /// Leave containers as they are, whatever has changed
    #[arg(long)]
    no_recreate: bool,
    /// When images are looked for in their registries: always, missing, never, build [default: the file's policies]
    #[arg(long, value_name = "POLICY", hide_possible_values = true)]
    pub(crate) pull: Option<Pull>,
    /// Without effect: what is fetched is shown on a terminal only
    #[arg(long, hide = true)]
    quiet_pull: bool,
    /// Do not show builds
    #[arg(long)]
    pub(crate) quiet_build: bool,
    /// Without effect: there are no questions to answer
    #[arg(short = 'y', long, hide = true)]
    yes: bool,
    /// Without effect: a container that is replaced never hands on volumes without a name
    #[arg(short = 'V', long)]
    renew_anon_volumes: bool,
}

/// `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    Always,
    #[value(alias = "if_not_present")]
    Missing,
    Never,
    Build,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Always => Self::Always,
            Pull::Missing => Self::Missing,
            Pull::Never => Self::Never,
            Pull::Build => Self::Build,
        }
    }
}

/// What an `up` in the foreground shows, and what ends it.
#[derive(Debug, Default, Args)]
pub(crate) struct Foreground {
    /// Stop everything when the first container ends; the exit code is that container's
    #[arg(long, conflicts_with_all = ["detach", "wait", "no_start"])]
    abort_on_container_exit: bool,
    /// The same, but only for one that fails
    #[arg(long, conflicts_with_all = ["abort_on_container_exit", "detach", "wait", "no_start"])]
    pub(crate) abort_on_container_failure: bool,
    /// As `--abort-on-container-exit`, but the exit code is this service's
    #[arg(
        long,
        value_name = "SERVICE",
        conflicts_with_all = ["abort_on_container_failure", "detach", "wait", "no_start"]
    )]
    pub(crate) exit_code_from: Option<String>,
    /// Show the output of this service and of no other, as often as needed
    #[arg(long, value_name = "SERVICE", conflicts_with_all = ["detach", "wait", "no_start"])]
    pub(crate) attach: Vec<String>,
    /// Show the output of what these services depend on, too
    #[arg(long, requires = "attach")]
    pub(crate) attach_dependencies: bool,
    /// Do not show the output of this service, as often as needed
    #[arg(long, value_name = "SERVICE", conflicts_with_all = ["detach", "wait", "no_start"])]
    pub(crate) no_attach: Vec<String>,
    /// Leave out the services' names
    #[arg(long)]
    no_log_prefix: bool,
    /// No colours in what services write
    #[arg(long)]
    no_color: bool,
    /// Show when each line was written
    #[arg(long)]
    timestamps: bool,
}

impl Foreground {
    /// Whether the first container that ends ends the stack.
    pub(crate) fn aborts(&self) -> bool {
        self.abort_on_container_exit || self.abort_on_container_failure || self.exit_code_from.is_some()
    }

    /// Whose output of the services of `plan` is shown: empty for all, `None` for none.
    pub(crate) fn attached(&self, plan: &Plan) -> Option<Vec<String>> {
        let named = match self.attach_dependencies {
            true => plan.with_dependencies(&self.attach),
            false => self.attach.clone(),
        };
        let is_shown = |service: &&Service| {
            let is_meant = if named.is_empty() { !service.unattached } else { named.contains(&service.name) };
            is_meant && !self.no_attach.contains(&service.name)
        };
        let (shown, hidden): (Vec<&Service>, Vec<&Service>) = plan.services.iter().partition(is_shown);
        match (hidden.is_empty(), shown.is_empty()) {
            (true, _) => Some(Vec::new()),
            (false, true) => None,
            (false, false) => Some(shown.into_iter().map(|service| service.name.clone()).collect()),
        }
    }

    /// Prints what services write.
    pub(crate) fn printer(&self, output: Output, services: Vec<String>) -> Printer {
        let output = Output { color_out: output.color_out && !self.no_color, ..output };
        Printer::new(output, services).with_prefix(!self.no_log_prefix).with_timestamps(self.timestamps)
    }
}

impl Up {
    /// What the supervisor is to do otherwise than usual.
    pub(crate) fn options(&self) -> UpOptions {
        UpOptions {
            recreate: match (self.recreation.force_recreate, self.recreation.no_recreate) {
                (true, _) => Recreate::Always,
                (false, true) => Recreate::Never,
                (false, false) => Recreate::Changed,
            },
            no_deps: self.no_deps,
            no_start: self.no_start,
            timeout: self.timeout,
            ..UpOptions::default()
        }
    }
}

/// `create`.
pub(crate) fn create(session: &Session, arguments: Create) -> Result<u8, Failure> {
    let Create { build, no_build, scale, recreation, always, services } = arguments;
    let up = Up { build, no_build, scale, recreation, always, services, no_start: true, ..Up::default() };
    up::up(session, &up)
}
