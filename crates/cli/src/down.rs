//! `down`: the end of a stack, with its volumes and images if asked for.

use clap::{Args, ValueEnum};
use stack::RemoteError;
use stack::client::Client;
use stack::control::{Command, Notice};
use stack::plan::{Plan, Source};

use crate::args::Always;
use crate::images;
use crate::lifecycle;
use crate::output::Failure;
use crate::session::Session;

/// `down`.
#[derive(Debug, Default, Args)]
pub(crate) struct Down {
    /// Remove its named volumes too
    #[arg(short, long)]
    pub(crate) volumes: bool,
    /// Remove its images too: `all`, or those that were made here and that the files give no name (`local`)
    #[arg(long, value_name = "WHICH", hide_possible_values = true)]
    rmi: Option<Rmi>,
    /// Seconds from the stop signal to SIGKILL [default: what each service asks for]
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<u32>,
    #[command(flatten)]
    always: Always,
    /// Only stop these services, and remove their containers; the stack stays [default: everything]
    #[arg(conflicts_with_all = ["volumes", "rmi"])]
    services: Vec<String>,
}

impl Down {
    /// With the volumes, and nothing else asked for.
    pub(crate) fn with_volumes() -> Self {
        Self { volumes: true, ..Self::default() }
    }
}

/// `--rmi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rmi {
    All,
    Local,
}

/// `down`.
pub(crate) fn down(session: &Session, arguments: &Down) -> Result<u8, Failure> {
    if !arguments.services.is_empty() {
        return lifecycle::stop_and_remove(session, &arguments.services, arguments.timeout);
    }
    // Before anything goes: a file that cannot be read says so now.
    let doomed = match arguments.rmi {
        Some(which) => images_of(&session.load(None)?.plan, which)?,
        None => Vec::new(),
    };
    end(session, arguments)?;
    for name in doomed {
        remove_image(session, &name)?;
    }
    Ok(0)
}

fn end(session: &Session, arguments: &Down) -> Result<(), Failure> {
    let (name, client) = session.connect()?;
    if arguments.volumes {
        session.check_volumes(&name)?;
    }
    let Some(mut client) = client else {
        // What a killed supervisor left goes, and the volumes if asked for.
        images::clean(session, &name, arguments.volumes)?;
        session.output.progress(&format!("stack `{name}` is not running"));
        return Ok(());
    };
    if let Err(failure) = end_and_wait(session, &mut client, arguments) {
        // A supervisor that was ending by itself, because its hub died for example: what it did not come to do is
        // done as for one that was killed. One that goes on has a reason to refuse.
        if client.wait_end().is_err() || session.connect()?.1.is_some() {
            return Err(failure);
        }
        images::clean(session, &name, arguments.volumes)?;
    }
    Ok(())
}

fn end_and_wait(session: &Session, client: &mut Client, arguments: &Down) -> Result<(), Failure> {
    client.send(&Command::Down { volumes: arguments.volumes, timeout: arguments.timeout }, &[])?;
    loop {
        match client.next(None)? {
            Some(Notice::Failed(error)) => return Err(error.into()),
            Some(Notice::Done) => break,
            Some(notice) => session.progress(&notice),
            // Another `down` was faster.
            None => return Ok(()),
        }
    }
    Ok(client.wait_end()?)
}

/// Names of the images that go with a stack.
fn images_of(plan: &Plan, which: Rmi) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = Vec::new();
    for service in &plan.services {
        let of_service: Vec<String> = match (&service.source, which) {
            (Source::Build(build), _) => {
                let own = format!("{}-{}:latest", plan.name, service.name.to_lowercase());
                if which == Rmi::Local && build.image != own {
                    continue;
                }
                // Beside the image of the build that was last, there is one for each base.
                let plain = build.image.rsplit_once(':').map_or(build.image.as_str(), |(plain, _)| plain);
                let bases = build.dockerfiles.iter().filter(|dockerfile| !dockerfile.base.is_empty());
                let based = bases.map(|dockerfile| format!("{plain}:{}", dockerfile.base));
                std::iter::once(build.image.clone()).chain(based).chain(build.tags.clone()).collect()
            }
            (Source::Image(image), Rmi::All) => vec![image.clone()],
            (Source::Image(_), Rmi::Local) => Vec::new(),
            (Source::Rootfs(path), _) => vec![stack::images::of_rootfs(path)?],
        };
        names.extend(of_service);
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Removes an image, if it is there. One that another stack uses stays, which is a warning: the stack is down.
fn remove_image(session: &Session, name: &str) -> Result<(), Failure> {
    let is_there = stack::store::has(&session.paths, name)?;
    if !is_there {
        return Ok(());
    }
    match stack::store::remove(&session.paths, name, false) {
        Ok(_) => session.output.progress(&format!("image {name}: removed")),
        Err(error) => session.output.warning(&kept(name, &error)),
    }
    Ok(())
}

fn kept(name: &str, error: &RemoteError) -> String {
    format!("image `{name}` stays: {error}")
}
