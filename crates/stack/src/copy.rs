//! `cp`: files between a container and the user, in a storage worker, which may read and write what belongs to
//! subordinate ids. The container's side is its root as its processes see it, with all that is mounted there. Of one that
//! does not run, the worker mounts that itself.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use container::sandbox::{Mount, MountSource, Sandbox};
use image::transfer::files::{self, Place};
use rustix::fs::{Mode, OFlags};

use crate::control;
use crate::paths::Paths;
use crate::plan::MountKind;
use crate::remote::{Context, RemoteError};
use crate::storage::{self, Word};

/// The user's side.
#[derive(Debug)]
pub enum Local {
    /// An archive, read or written.
    Archive(File),
    /// A path as it was written, relative to the current directory.
    Path(PathBuf),
}

/// How files are copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// A link that is named is followed.
    pub follow: bool,
    /// Numbers of users and groups stay what they are, instead of those of whoever gets the files.
    pub archive: bool,
}

/// The container's side.
#[derive(Debug)]
pub enum Container {
    /// The root directory of one that runs.
    Running(OwnedFd),
    /// One that does not, and will not meanwhile ([`crate::control::Command::Hold`]).
    AtRest(Box<AtRest>),
}

/// What is to be mounted of a container that does not run: its root, volumes and directories of the host.
#[derive(Debug)]
pub struct AtRest {
    sandbox: Sandbox,
    detached: Vec<OwnedFd>,
}

impl Container {
    /// That of a process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn of_process(pid: u32) -> Result<Self, RemoteError> {
        let path = format!("/proc/{pid}/root");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty()).map_err(io::Error::from);
        root.map(Self::Running).context(|| "open the container's root directory".into())
    }

    /// One that does not run.
    ///
    /// # Errors
    /// When a directory of the host that is mounted in it cannot be opened.
    pub fn at_rest(held: control::Container) -> Result<Self, RemoteError> {
        let control::Container { service, mut sandbox, .. } = held;
        let mut detached = Vec::new();
        let mut mounts = Vec::new();
        for mount in sandbox.mounts {
            let of_host = service.mounts.iter().find_map(|known| match &known.kind {
                MountKind::Bind { source, .. } if known.target == mount.target => Some(source),
                _ => None,
            });
            match (&mount.source, of_host) {
                (MountSource::Volume { .. }, _) | (MountSource::Bind(_), Some(_)) => mounts.push(mount),
                (MountSource::Descriptor(_), Some(source)) => {
                    if let Some(tree) = storage::Handle::open(source)?.into_mount() {
                        mounts.push(Mount { source: MountSource::Descriptor(detached.len()), ..mount });
                        detached.push(tree);
                    }
                }
                // What the kernel or this program shows in one that runs.
                _ => {}
            }
        }
        sandbox.mounts = mounts;
        Ok(Self::AtRest(Box::new(AtRest { sandbox, detached })))
    }

    /// Its root directory, in a worker.
    fn root(&self) -> Result<OwnedFd, RemoteError> {
        match self {
            Self::Running(root) => root.try_clone().context(|| "open the container's root directory".into()),
            Self::AtRest(it) => Ok(container::launch::mount_at_rest(&it.sandbox, &it.detached)?),
        }
    }
}

/// Copies what is at `path` out of a container.
///
/// # Errors
/// When it is not there, or cannot go where it should.
pub fn out_of(
    paths: &Paths,
    container: &Container,
    path: &Path,
    to: Local,
    with: Options,
) -> Result<(), RemoteError> {
    let base = files::base(path);
    let to = match to {
        Local::Path(to) => absolute(&to)?,
        Local::Archive(mut archive) => {
            return storage::run(paths, |_| {
                let found = files::find(&container.root()?, path, with.follow)?;
                Ok(found.write(base.as_deref(), &mut archive)?)
            });
        }
    };
    let place = files::place(files::own_root()?, &to, base)?;
    let mut ends = Some(pipe()?);
    let worker = storage::start(paths, |_, tell: &mut dyn FnMut(bool)| {
        let (read, mut write) = ends.take().ok_or_else(no_pipe)?;
        drop(read);
        let found = files::find(&container.root()?, path, with.follow)?;
        tell(found.is_dir());
        match found.write(place.name(), &mut write) {
            // Who reads has a reason to stop, and tells it.
            Err(image::Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => Ok(written?),
        }
    })?;
    let (read, write) = ends.ok_or_else(no_pipe)?;
    drop(write);
    let unpacked = match worker.next::<bool, ()>()? {
        Word::Last(failed) => return failed,
        Word::Event(is_dir) => place.accept(is_dir).and_then(|()| place.unpack(read, owner(with), false)),
    };
    // What the worker says of itself is the reason for what we have seen.
    worker.finish::<bool, ()>(drop)?;
    Ok(unpacked?)
}

/// Copies what the user has to `path` of a container.
///
/// # Errors
/// When it is not there, or cannot go where it should.
pub fn into(
    paths: &Paths,
    container: &Container,
    path: &Path,
    from: Local,
    with: Options,
) -> Result<(), RemoteError> {
    let root = if with.archive { None } else { Some((0, 0)) };
    let from = match from {
        Local::Path(from) => from,
        Local::Archive(archive) => {
            return storage::run(paths, |_| {
                let place = files::place(&container.root()?, path, None)?;
                if !place.is_directory() {
                    return Err(RemoteError::message(format!("`{}` is no directory", path.display()))
                        .or_hint("an archive is unpacked into a directory that is there"));
                }
                Ok(place.unpack(archive, root, true)?)
            });
        }
    };
    let found = files::find(files::own_root()?, &absolute(&from)?, with.follow)?;
    let (base, is_dir) = (files::base(&from), found.is_dir());
    let mut ends = Some(pipe()?);
    let worker = storage::start(paths, |_, tell: &mut dyn FnMut(Option<Vec<u8>>)| {
        let (read, write) = ends.take().ok_or_else(no_pipe)?;
        drop(write);
        let place: Place = files::place(&container.root()?, path, base.clone())?;
        place.accept(is_dir)?;
        tell(place.name().map(|name| name.as_bytes().to_vec()));
        Ok(place.unpack(read, root, true)?)
    })?;
    let (read, mut write) = ends.ok_or_else(no_pipe)?;
    drop(read);
    let name = match worker.next::<Option<Vec<u8>>, ()>()? {
        Word::Last(failed) => return failed,
        Word::Event(name) => name.map(OsString::from_vec),
    };
    let written = found.write(name.as_deref().map(OsStr::new), &mut write);
    drop(write);
    // That our archive was cut short is the worker's news, and our reason.
    match (worker.finish::<Option<Vec<u8>>, ()>(drop), written) {
        (Err(error), Err(image::Error::Io { source, .. })) if source.kind() == io::ErrorKind::BrokenPipe => {
            Err(error)
        }
        (_, Err(error)) => Err(error.into()),
        (finished, Ok(())) => finished,
    }
}

/// Whom files of the user's side get.
fn owner(with: Options) -> Option<(u32, u32)> {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    (!with.archive).then_some(own)
}

/// A path that keeps its end, which says whether a directory is meant.
fn absolute(path: &Path) -> Result<PathBuf, RemoteError> {
    Ok(std::env::current_dir().context(|| "find the current directory".into())?.join(path))
}

fn pipe() -> Result<(File, File), RemoteError> {
    let (read, write) = io::pipe().context(|| "open a pipe".into())?;
    Ok((OwnedFd::from(read).into(), OwnedFd::from(write).into()))
}

fn no_pipe() -> RemoteError {
    RemoteError::message("the pipe is gone")
}
