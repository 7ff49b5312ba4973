//! `cp`: files between a service's container and here.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use stack::RemoteError;
use stack::client::Client;
use stack::control::{Command, Notice, Status, Subject};
use stack::copy::{self, Carried, Container, Local, Options};
use stack::watch::Change;

use crate::listing::subjects;
use crate::output::Failure;
use crate::session::{Session, answer};

/// `cp`.
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// Keep the numbers of users and groups [default: whoever gets the files owns them; inside root]
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link leads to that is named as the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Which of the service's containers, from 1 [default: the first that runs; of a copy to it, all that run; where none
    /// runs, the first, or all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    index: Option<u16>,
    /// What to copy: SERVICE:PATH, a path here, or `-` for an archive on standard input
    source: String,
    /// Where to: SERVICE:PATH, a path here, or `-` for an archive on standard output
    target: String,
}

/// `cp`.
pub(crate) fn copy(session: &Session, arguments: &Copy) -> Result<u8, Failure> {
    let with = Options { follow: arguments.follow_link, archive: arguments.archive };
    match (inside(&arguments.source), inside(&arguments.target)) {
        (Some((service, path)), None) => {
            let containers = meant(session, service, arguments.index)?;
            let opened = open(session, &containers[0])?;
            let to = match arguments.target.as_str() {
                "-" if io::stdout().is_terminal() => {
                    let hint = "name a file or directory, or send it on: `inception-run cp web:/x - | tar t`";
                    return Err(Failure::usage("an archive is nothing for a terminal", hint));
                }
                "-" => Local::Archive(duplicate(io::stdout())?),
                path => Local::Path(PathBuf::from(path)),
            };
            copy::out_of(&session.paths, &opened.container, path, to, with)?;
        }
        (None, Some((service, path))) => {
            let containers = meant(session, service, arguments.index)?;
            let several = containers.len() > 1;
            if several && arguments.source == "-" {
                return Err(Failure::usage(
                    format!(
                        "service `{service}` has {} containers, and one archive is read once",
                        containers.len()
                    ),
                    "`--index N` chooses one of them",
                ));
            }
            for container in &containers {
                let opened = open(session, container)?;
                let from = match arguments.source.as_str() {
                    "-" => Local::Archive(duplicate(io::stdin())?),
                    path => Local::Path(PathBuf::from(path)),
                };
                copy::into(&session.paths, &opened.container, path, from, with)?;
            }
        }
        (None, None) => {
            return Err(Failure::usage(
                "neither side is a service's",
                "write SERVICE:PATH for what is inside",
            ));
        }
        (Some(_), Some(_)) => {
            let hint = "`inception-run cp A:/x - | inception-run cp - B:/y`";
            return Err(Failure::usage("copying from service to service is not supported", hint));
        }
    }
    Ok(0)
}

/// `SERVICE:PATH`. A colon behind a slash or a dot at the beginning is part of a path here, as with `docker cp`.
fn inside(text: &str) -> Option<(&str, &Path)> {
    let (service, path) = text.split_once(':')?;
    let is_here = service.is_empty() || service.starts_with('.') || service.contains('/');
    let path = if path.is_empty() { "/" } else { path };
    (!is_here).then(|| (service, Path::new(path)))
}

/// The containers that a service's name means, those that run if there are any; at least one.
fn meant(session: &Session, service: &str, index: Option<u16>) -> Result<Vec<Status>, Failure> {
    let mut client = session.running()?;
    client.send(&Command::Subjects(vec![service.to_owned()]), &[])?;
    let all = subjects(&mut client)?.into_iter().map(|Subject { status, .. }| status);
    let all = all.filter(|row| index.is_none_or(|index| row.replica == index));
    let (running, others): (Vec<Status>, Vec<Status>) = all.partition(|row| row.pid.is_some());
    if running.is_empty() && others.is_empty() {
        let which = index.map_or_else(String::new, |index| format!(" {index}"));
        return Err(RemoteError::message(format!("service `{service}` has no container{which}")).into());
    }
    Ok(if running.is_empty() { others } else { running })
}

/// Carries changes of files here over to the containers of a service (`watch`), as their user.
pub(crate) fn carry(
    session: &Session,
    service: &str,
    changes: &BTreeSet<Change>,
) -> Result<Carried, Failure> {
    let mut carried = Carried::default();
    for container in meant(session, service, None)? {
        let user = user(session, &container.container)?;
        let opened = open(session, &container)?;
        carried = copy::carry(&session.paths, &opened.container, changes, &user)?;
    }
    Ok(carried)
}

/// Whom a container's process runs as.
fn user(session: &Session, container: &str) -> Result<String, Failure> {
    let mut client = session.running()?;
    client.send(&Command::Container(container.to_owned()), &[])?;
    loop {
        if let Notice::Container(container) = answer(&mut client)? {
            return Ok(container.user());
        }
    }
}

/// A container whose files can be copied.
struct Opened {
    container: Container,
    /// Keeps one that does not run from starting.
    _hold: Option<Client>,
}

fn open(session: &Session, row: &Status) -> Result<Opened, Failure> {
    if row.pid.is_some() {
        return Ok(Opened { container: root(session, row)?, _hold: None });
    }
    let mut client = session.running()?;
    client.send(&Command::Hold(row.container.clone()), &[])?;
    let mut held = None;
    loop {
        match answer(&mut client)? {
            Notice::Container(container) => held = Some(*container),
            Notice::Done => break,
            _ => {}
        }
    }
    let held = held.ok_or_else(|| RemoteError::message("the supervisor told nothing of the container"))?;
    Ok(Opened { container: Container::at_rest(held)?, _hold: Some(client) })
}

/// The root directory of a container. That it is still the same container afterwards says that the process whose
/// number was used was its own, and not a later one's.
fn root(session: &Session, container: &Status) -> Result<Container, Failure> {
    let gone = || RemoteError::message(format!("container `{}` has ended", container.container));
    let root = Container::of_process(container.pid.ok_or_else(gone)?)?;
    let now = meant(session, &container.container, Some(container.replica))?;
    match now.iter().any(|row| row.pid == container.pid && row.restarts == container.restarts) {
        true => Ok(root),
        false => Err(gone().into()),
    }
}

fn duplicate(stream: impl AsFd) -> Result<File, Failure> {
    let own = stream.as_fd().try_clone_to_owned().map_err(Failure::system("open the archive"))?;
    Ok(own.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_begins_with_a_service() {
        assert_eq!(inside("web:/etc"), Some(("web", Path::new("/etc"))));
        assert_eq!(inside("web-2:x:y"), Some(("web-2", Path::new("x:y"))));
        assert_eq!(inside("web:"), Some(("web", Path::new("/"))));
        for here in ["file", "./a:b", "/a:b", "-", ":x", "a/b:c"] {
            assert_eq!(inside(here), None, "{here}");
        }
    }
}
