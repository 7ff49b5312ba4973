//! `cp`: files between a service's container and here.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use clap::Args;
use stack::RemoteError;
use stack::control::{Command, Status, Subject};
use stack::copy::{self, Local, Options};

use crate::listing::subjects;
use crate::output::Failure;
use crate::session::Session;

/// `cp`.
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// Keep the numbers of users and groups [default: whoever gets the files owns them; inside root]
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link leads to that is named as the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Which of the service's containers, from 1 [default: the first that runs; of a copy to it, all that run]
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
            let containers = running(session, service, arguments.index)?;
            let root = root(session, &containers[0])?;
            let to = match arguments.target.as_str() {
                "-" if io::stdout().is_terminal() => {
                    let hint = "name a file or directory, or send it on: `inception-run cp web:/x - | tar t`";
                    return Err(Failure::usage("an archive is nothing for a terminal", hint));
                }
                "-" => Local::Archive(duplicate(io::stdout())?),
                path => Local::Path(PathBuf::from(path)),
            };
            copy::out_of(&session.paths, &root, path, to, with)?;
        }
        (None, Some((service, path))) => {
            let containers = running(session, service, arguments.index)?;
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
                let root = root(session, container)?;
                let from = match arguments.source.as_str() {
                    "-" => Local::Archive(duplicate(io::stdin())?),
                    path => Local::Path(PathBuf::from(path)),
                };
                copy::into(&session.paths, &root, path, from, with)?;
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

/// The containers that a service's name means, and that run; at least one.
fn running(session: &Session, service: &str, index: Option<u16>) -> Result<Vec<Status>, Failure> {
    let mut client = session.running()?;
    client.send(&Command::Subjects(vec![service.to_owned()]), &[])?;
    let all = subjects(&mut client)?.into_iter().map(|Subject { status, .. }| status);
    let running = all.filter(|row| row.pid.is_some() && index.is_none_or(|index| row.replica == index));
    let running: Vec<Status> = running.collect();
    if running.is_empty() {
        let hint = format!("`inception-run export {service} | tar x PATH` reads from one that does not run");
        return Err(RemoteError::message(format!("service `{service}` is not running")).or_hint(hint).into());
    }
    Ok(running)
}

/// The root directory of a container. That it is still the same container afterwards says that the process whose
/// number was used was its own, and not a later one's.
fn root(session: &Session, container: &Status) -> Result<OwnedFd, Failure> {
    let gone = || RemoteError::message(format!("container `{}` has ended", container.container));
    let root = copy::root_of(container.pid.ok_or_else(gone)?)?;
    let now = running(session, &container.container, Some(container.replica))?;
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
