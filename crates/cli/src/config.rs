//! `config`: the stack's files as one model.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use stack::host::HostFacts;
use stack::load::{self, Config};

use crate::listing::check_services;
use crate::output::{self, Failure};
use crate::session::{Session, Wanted};

/// `config`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// yaml, json, or toml: a `stack.toml` that makes the same stack
    #[arg(long, value_name = "FORMAT", default_value = "yaml", hide_possible_values = true)]
    format: Notation,
    /// Only check the files
    #[arg(short, long)]
    quiet: bool,
    /// Only the names of the services
    #[arg(long, group = "list")]
    services: bool,
    /// Only the names of the volumes
    #[arg(long, group = "list")]
    volumes: bool,
    /// Only the names of the networks
    #[arg(long, group = "list")]
    networks: bool,
    /// Only the names of the images
    #[arg(long, group = "list")]
    images: bool,
    /// Only the names of the profiles, active or not
    #[arg(long, group = "list")]
    profiles: bool,
    /// Only the hash of a service's configuration, `*` for all: `up` replaces containers where it changes
    #[arg(long, value_name = "SERVICE", group = "list", value_delimiter = ',')]
    hash: Vec<String>,
    /// Leave variables as they are written
    #[arg(long)]
    no_interpolate: bool,
    /// Write it to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Services, with those that they need [default: all]
    #[arg(value_name = "SERVICE")]
    what: Vec<String>,
}

/// `--format` of `config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Notation {
    /// A compose file.
    Yaml,
    /// The same in JSON.
    Json,
    /// A stack file.
    Toml,
}

/// `config`.
pub(crate) fn config(session: &Session, arguments: &Arguments) -> Result<u8, Failure> {
    if !arguments.hash.is_empty() {
        return hashes(session, &arguments.hash);
    }
    let options = session.options(&Wanted { services: &arguments.what, ..Wanted::default() });
    let config = load::config(&options, &HostFacts::gather()?, !arguments.no_interpolate)?;
    for warning in config.warnings() {
        session.output.warning(warning);
    }
    if arguments.quiet {
        return Ok(0);
    }
    let text = text(&config, arguments);
    match &arguments.output {
        Some(path) => {
            std::fs::write(path, text).map_err(Failure::system(&format!("write `{}`", path.display())))?
        }
        None => output::print(&text)?,
    }
    Ok(0)
}

/// `config --hash`.
fn hashes(session: &Session, services: &[String]) -> Result<u8, Failure> {
    let plan = session.load(None)?.plan;
    let all = services == ["*"];
    if !all {
        check_services(&plan, services)?;
    }
    let meant = plan.services.iter().filter(|service| all || services.contains(&service.name));
    let lines = meant.map(|service| format!("{} {}\n", service.name, service.config_hash));
    output::print(&lines.collect::<String>()).map(|()| 0)
}

fn text(config: &Config, arguments: &Arguments) -> String {
    let lines = |names: Vec<String>| names.iter().map(|name| format!("{name}\n")).collect();
    if arguments.services {
        lines(config.names("services"))
    } else if arguments.volumes {
        lines(config.names("volumes"))
    } else if arguments.networks {
        lines(config.networks())
    } else if arguments.images {
        lines(config.images())
    } else if arguments.profiles {
        lines(config.profiles().iter().cloned().collect())
    } else {
        match arguments.format {
            Notation::Yaml => config.yaml(),
            Notation::Json => config.json(),
            Notation::Toml => config.toml(),
        }
    }
}
