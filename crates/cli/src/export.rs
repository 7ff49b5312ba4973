//! `export`: a container's file system, or the whole stack in the words of Kubernetes, Podman or systemd.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use stack::export::{self, Export, ExportedFile, KubernetesOptions, QuadletOptions, Stack, SystemdService};
use stack::host::HostFacts;

use crate::output::{self, Failure};
use crate::session::{Session, Wanted};
use crate::transfer;

/// `export`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
#[command(override_usage = "inception-run export [-o FILE] [--] SERVICE\n       \
                            inception-run export kubernetes|quadlet|systemd [OPTIONS]")]
#[command(
    after_help = "A service that is called like one of the commands stands after `--`: `export -- systemd`."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    form: Option<Form>,
    #[command(flatten)]
    container: Option<transfer::Export>,
}

/// What the stack is written as.
#[derive(Debug, Subcommand)]
enum Form {
    /// Write manifests for Kubernetes: `kubectl apply -f DIR`, or `podman kube play FILE`
    Kubernetes(Kubernetes),
    /// Write units for Podman's Quadlet
    Quadlet(Quadlet),
    /// Write a unit of systemd that starts the stack with the machine
    Systemd(Systemd),
}

/// Where files go.
#[derive(Debug, Args)]
struct Target {
    /// Write the files into this directory; `-` is standard output
    #[arg(short, long, value_name = "DIR", default_value = "-")]
    output: PathBuf,
}

/// `export kubernetes`.
#[derive(Debug, Args)]
struct Kubernetes {
    #[command(flatten)]
    target: Target,
    /// What stands before the names of images that are built here: `registry.example.org/team`
    #[arg(long, value_name = "PREFIX")]
    registry: Option<String>,
    /// Size that is asked for each volume
    #[arg(long, value_name = "SIZE", default_value = "1Gi")]
    volume_size: String,
    /// Class of storage of the volumes [default: the cluster's]
    #[arg(long, value_name = "NAME")]
    storage_class: Option<String>,
    /// Publish ports on the node (`hostPort`), as a cluster of one node can
    #[arg(long)]
    host_ports: bool,
    /// For `podman kube play`: Pods, which Podman finds by their names, with ports of the node; no pod waits for others
    #[arg(long, conflicts_with = "wait_image")]
    podman: bool,
    /// Image with `sh` and `nc` in which a pod waits for services that are to be healthy first
    #[arg(long, value_name = "IMAGE", default_value = "docker.io/library/busybox:1")]
    wait_image: String,
    /// No pod waits for others
    #[arg(long, conflicts_with = "wait_image")]
    no_wait: bool,
    /// Leave the Secret with its values out
    #[arg(long)]
    no_secrets: bool,
}

/// `export quadlet`.
#[derive(Debug, Args)]
struct Quadlet {
    #[command(flatten)]
    target: Target,
    /// Have Podman make the images, too: write a `.build` for each that is built, and an `.image` for each that is
    /// pulled at every start (Podman 5.2 and newer)
    #[arg(long)]
    build: bool,
    /// Base distribution that images are built on, as for `up`
    #[arg(long, value_name = "NAME", requires = "build")]
    base: Option<String>,
}

/// `export systemd`.
#[derive(Debug, Args)]
struct Systemd {
    #[command(flatten)]
    target: Target,
    /// Base distribution, as for `up`
    #[arg(long, value_name = "NAME")]
    base: Option<String>,
}

/// `export`.
pub(crate) fn export(session: &Session, arguments: &Arguments) -> Result<u8, Failure> {
    match (&arguments.form, &arguments.container) {
        (Some(Form::Kubernetes(wanted)), _) => {
            // Podman 4.3 starts a container that has waited again, as it does with all of a pod.
            let waits = !wanted.no_wait && !wanted.podman;
            let options = KubernetesOptions {
                registry: wanted.registry.clone(),
                volume_size: wanted.volume_size.clone(),
                storage_class: wanted.storage_class.clone(),
                host_ports: wanted.host_ports || wanted.podman,
                pods: wanted.podman,
                wait_image: waits.then(|| wanted.wait_image.clone()),
                secrets: !wanted.no_secrets,
            };
            let export = export::kubernetes(&read(session, None)?, &options)?;
            deliver(session, &export, &wanted.target.output, "---\n")
        }
        (Some(Form::Quadlet(wanted)), _) => {
            let options = QuadletOptions { build: wanted.build };
            let export = export::quadlet(&read(session, wanted.base.as_deref())?, &options)?;
            deliver(session, &export, &wanted.target.output, "\n")
        }
        (Some(Form::Systemd(wanted)), _) => {
            deliver(session, &export::systemd(&service(session, wanted)?), &wanted.target.output, "\n")
        }
        (None, Some(container)) => transfer::export(session, container),
        (None, None) => {
            Err(Failure::usage("export what?", "name a service, or `kubernetes`, `quadlet`, `systemd`"))
        }
    }
}

fn read(session: &Session, base: Option<&str>) -> Result<Stack, Failure> {
    let options = session.options(&Wanted { base, ..Wanted::default() });
    let stack = Stack::read(&options, &HostFacts::gather()?, &session.paths)?;
    for warning in &stack.plan.warnings {
        session.output.warning(warning);
    }
    Ok(stack)
}

/// What a unit must say so that it runs the same stack as this command would.
fn service(session: &Session, wanted: &Systemd) -> Result<SystemdService, Failure> {
    let loaded = session.load(wanted.base.as_deref())?;
    let stop = loaded.plan.services.iter().map(|service| service.stop_grace_period).fold(0.0, f64::max);
    let program = std::env::current_exe().map_err(Failure::system("find this program"))?;
    // What the program and compose files heed, besides what the stack's own file refers to.
    let heeded = |name: &str| name.starts_with("INCEPTION_") || name.starts_with("COMPOSE_");
    let environment = loaded.host.environment.iter().filter(|(name, _)| heeded(name));
    let directory = std::env::current_dir().map_err(Failure::system("find the current directory"))?;
    // What stood behind a line end in its name would be keys of the unit.
    if directory.to_string_lossy().contains(char::is_control) {
        let message = format!("the name of the directory {directory:?} cannot stand in a unit");
        return Err(Failure::usage(message, "give it one without line ends and control characters"));
    }
    Ok(SystemdService {
        program,
        options: session.words()?,
        up: wanted.base.iter().flat_map(|base| ["--base".to_owned(), base.clone()]).collect(),
        environment: environment.map(|(name, value)| (name.clone(), value.clone())).collect(),
        directory,
        is_root: loaded.host.is_root,
        lingers: stack::doctor::lingers(),
        stop,
        stack: loaded.plan.name,
    })
}

/// Says what there is to warn of, writes the files, and says what to do with them.
fn deliver(session: &Session, export: &Export, target: &Path, between: &str) -> Result<u8, Failure> {
    for warning in &export.warnings {
        session.output.warning(warning);
    }
    if target == Path::new("-") {
        let files = export.files.iter();
        // Where there are several, each says what it is called.
        let named = |file: &ExportedFile| match export.files.len() {
            1 => file.text.clone(),
            _ => format!("# {}\n{}", file.name, file.text),
        };
        output::print(&files.map(named).collect::<Vec<_>>().join(between))?;
    } else {
        fs::create_dir_all(target)
            .map_err(Failure::system(&format!("create directory {}", target.display())))?;
        for file in &export.files {
            write(&target.join(&file.name), file)?;
            session.output.progress(&format!("wrote {}", target.join(&file.name).display()));
        }
    }
    for note in &export.notes {
        session.output.progress(note);
    }
    Ok(0)
}

/// Nobody but its owner ever reads a private file, not even one that was there before.
fn write(path: &Path, file: &ExportedFile) -> Result<(), Failure> {
    let failed = format!("write {}", path.display());
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.part", std::process::id()));
    let mode = if file.private { 0o600 } else { 0o644 };
    let write = || {
        let mut new = OpenOptions::new().write(true).create_new(true).mode(mode).open(&partial)?;
        new.write_all(file.text.as_bytes())?;
        fs::rename(&partial, path)
    };
    write().map_err(|error| {
        // The reason is told; what is left of it is of no use.
        fs::remove_file(&partial).ok();
        Failure::system(&failed)(error)
    })
}
