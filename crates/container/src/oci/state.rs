//! What is kept of a container between commands: a directory with a record, a lock, and a socket that is there until the
//! container was started.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use init::entry::Hook;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::cgroup::Placement;

/// The record's file.
const RECORD: &str = "state.json";
/// The socket on which a created container waits for `start`.
pub(super) const START: &str = "start";
/// Where the cgroup is going to be, from before it is made.
const PLACE: &str = "cgroup.json";
/// How long what a killed `create` started may take to be gone: it dies with its maker.
const ABANDONED_DEADLINE: Duration = Duration::from_secs(5);
/// How often the name of a new container may turn out to be another command's leftover.
const CREATE_ATTEMPTS: u32 = 8;
/// How long a command waits for another one that works on the same container.
const LOCK_DEADLINE: Duration = Duration::from_secs(60);

/// Status of a container ("State" in the specification's `runtime.md`; `paused` is an addition that every runtime has).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` has not finished.
    Creating,
    /// The program waits for `start`.
    Created,
    /// The program runs.
    Running,
    /// All processes are frozen.
    Paused,
    /// The program has ended.
    Stopped,
}

impl Status {
    /// The word of the specification.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// What `create` leaves for the commands after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of the specification that `config.json` named.
    pub oci_version: String,
    /// Name of the container.
    pub id: String,
    /// Its first process, in this PID namespace.
    pub pid: i32,
    /// When that process began, in clock ticks since boot: a process with another start time is not it (proc(5), `stat`).
    pub start_time: u64,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339 in UTC.
    pub created: String,
    /// User id of who created it.
    pub owner: u32,
    /// The annotations of `config.json`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Its cgroup.
    pub cgroup: Placement,
    /// The kinds of namespaces it was given, made or joined: [`sys::process::namespace`] values or-ed.
    pub namespaces: u64,
    /// Whether it has a PID namespace of its own, which dies with its first process.
    pub own_pids: bool,
    /// Hooks for after the start.
    #[serde(default)]
    pub poststart: Vec<Hook>,
    /// Hooks for after the deletion.
    #[serde(default)]
    pub poststop: Vec<Hook>,
    /// What a later process inside gets where its own description says nothing.
    pub defaults: super::exec::Defaults,
}

/// The locked directory of one container.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Holds the lock.
    fd: OwnedFd,
}

/// Container ids as runc allows them: they become names of files and cgroups.
pub(super) fn check_id(id: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > 1024 || id == "." || id == ".." || !id.chars().all(allowed) {
        return Err(Error::Id(id.to_owned()));
    }
    Ok(())
}

impl Directory {
    /// Makes the directory of a new container.
    pub(super) fn create(root: &Path, id: &str) -> Result<Self, Error> {
        check_id(id)?;
        let fail = |path: &Path| Error::system(format!("create state directory {}", path.display()));
        let path = root.join(id);
        let mut private = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
        private.recursive(true).create(root).map_err(fail(root))?;
        private.recursive(false);
        for _ in 0..CREATE_ATTEMPTS {
            // Between its making and its locking a directory looks as if it had been left behind: whoever makes or judges
            // one holds the lock of the directory above.
            let above = fs::File::open(root).map_err(fail(root))?;
            wait_for_lock(&above, id)?;
            match private.create(&path) {
                Ok(()) => {
                    match Self::lock(path.clone(), id) {
                        Ok(directory) if directory.is_current() && !path.join(RECORD).exists() => {
                            return Ok(directory);
                        }
                        // A `delete` came in between.
                        Ok(_) | Err(Error::NotFound(_)) => continue,
                        Err(error) => return Err(error),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(fail(&path)(error)),
            }
            // A `create` that was killed left a directory without a record, and nobody holds its lock.
            let left = Self::try_lock(&path)?.filter(|left| left.is_current() && !path.join(RECORD).exists());
            drop(above);
            match left {
                Some(left) => left.abandon()?,
                None if path.exists() => break,
                // Deleted meanwhile.
                None => {}
            }
        }
        Err(Error::Exists(id.to_owned()))
    }

    /// The directory of an existing container, locked.
    pub(super) fn open(root: &Path, id: &str) -> Result<Self, Error> {
        check_id(id)?;
        let directory = Self::lock(root.join(id), id)?;
        // Deleted while we waited for the lock.
        if directory.is_current() { Ok(directory) } else { Err(Error::NotFound(id.to_owned())) }
    }

    fn open_fd(path: &Path) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
    }

    fn lock(path: PathBuf, id: &str) -> Result<Self, Error> {
        let fd = Self::open_fd(&path).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => Error::NotFound(id.to_owned()),
            errno => Error::system(format!("lock container `{id}`"))(errno.into()),
        })?;
        wait_for_lock(&fd, id)?;
        Ok(Self { path, fd })
    }

    fn try_lock(path: &Path) -> Result<Option<Self>, Error> {
        let Ok(fd) = Self::open_fd(path) else { return Ok(None) };
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path: path.to_owned(), fd })),
            Err(_) => Ok(None),
        }
    }

    /// Whether the path still leads to the directory whose lock we hold.
    fn is_current(&self) -> bool {
        let (Ok(held), Ok(named)) = (rustix::fs::fstat(&self.fd), rustix::fs::lstat(&self.path)) else {
            return false;
        };
        (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
    }

    /// A short path of `name` in it, for socket addresses, which end at 107 bytes.
    pub(super) fn short_path(&self, name: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// Stores the record whole or not at all.
    pub(super) fn store(&self, record: &Record) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            self.write("state.new", &serde_json::to_vec(record)?)?;
            Ok(rustix::fs::renameat(&self.fd, "state.new", &self.fd, RECORD)?)
        };
        write().map_err(Error::system(format!("store the state of container `{}`", record.id)))
    }

    /// Remembers where the cgroup is going to be, for who cleans up when we are killed before there is a record.
    pub(super) fn store_place(&self, placement: &Placement) -> Result<(), Error> {
        if placement.path().is_none() {
            return Ok(());
        }
        let write = || self.write(PLACE, &serde_json::to_vec(placement)?);
        write().map_err(Error::system("store where the cgroup will be"))
    }

    fn write(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))?;
        fs::File::from(file).write_all(text)
    }

    /// Deletes what a `create` left that was killed before it had a record. Its process died with it.
    pub(super) fn abandon(self) -> Result<(), Error> {
        let text = fs::read(self.path.join(PLACE)).unwrap_or_default();
        // Half a file was written before anything was made.
        let Ok(placement) = serde_json::from_slice::<Placement>(&text) else { return self.remove() };
        let deadline = Instant::now() + ABANDONED_DEADLINE;
        while let Some(cgroup) = placement.open()? {
            if !cgroup.is_populated()? {
                placement.remove()?;
                break;
            }
            if Instant::now() > deadline {
                // It was another container's, and `create` would have said so.
                tracing::warn!("cgroup {} is in use and stays", cgroup.path().display());
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.remove()
    }

    /// The record; `None` when `create` has not come so far.
    pub(super) fn record(&self) -> Result<Option<Record>, Error> {
        read_record(&self.path)
    }

    /// The status of the container with this record.
    pub(super) fn status(&self, record: &Record) -> Result<Status, Error> {
        status(&self.path, record)
    }

    /// Takes the socket away: the container was started.
    pub(super) fn started(&self) -> Result<(), Error> {
        match rustix::fs::unlinkat(&self.fd, START, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::system("remove the start socket")(errno.into())),
        }
    }

    /// Deletes the directory; the id is free afterwards.
    pub(super) fn remove(self) -> Result<(), Error> {
        let fail = || Error::system(format!("remove {}", self.path.display()));
        // The record last: without it the directory counts as left behind by `create`.
        for name in [START, PLACE, "state.new", RECORD] {
            match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(fail()(errno.into())),
            }
        }
        fs::remove_dir(&self.path).map_err(fail())
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Takes the lock of an open directory, for container `id`.
fn wait_for_lock(fd: impl AsFd, id: &str) -> Result<(), Error> {
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Err(Errno::AGAIN) => return Err(Error::Busy(id.to_owned())),
            Err(errno) => return Err(Error::system(format!("lock container `{id}`"))(errno.into())),
        }
    }
}

fn read_record(directory: &Path) -> Result<Option<Record>, Error> {
    let path = directory.join(RECORD);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::system(format!("read {}", path.display())))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|source| Error::Record { path, source })
}

fn status(directory: &Path, record: &Record) -> Result<Status, Error> {
    if start_time(record.pid) != Some(record.start_time) {
        return Ok(Status::Stopped);
    }
    let frozen = record.cgroup.open()?.is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false));
    Ok(match directory.join(START).exists() {
        _ if frozen => Status::Paused,
        true => Status::Created,
        false => Status::Running,
    })
}

/// The record and status of a container, without waiting for its lock.
pub(super) fn look(root: &Path, id: &str) -> Result<(Option<Record>, Status), Error> {
    check_id(id)?;
    let path = root.join(id);
    match read_record(&path)? {
        Some(record) => {
            let status = status(&path, &record)?;
            Ok((Some(record), status))
        }
        None if path.is_dir() => Ok((None, Status::Creating)),
        None => Err(Error::NotFound(id.to_owned())),
    }
}

/// The names of all containers below `root`, sorted.
pub(super) fn ids(root: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::system(format!("read {}", root.display())))?,
    };
    let mut ids: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| check_id(name).is_ok() && root.join(name).is_dir())
        .collect();
    ids.sort();
    Ok(ids)
}

/// When process `pid` began, in clock ticks since boot; `None` when it is gone or has ended and only waits to be reaped.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat)
}

/// Fields 3 (state) and 22 (start time) of `/proc/PID/stat`, proc(5); the second field is a name that may hold anything.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X" | "x")).then(|| fields.nth(18)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names() {
        for good in ["a", "web_1", "a.b+c-d", "0123456789abcdef"] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ü", "a\n", "a\0"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_hostile_name_does_not_hide_the_fields() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(&format!("7 (a) Z 1 (b) {fields}")), Some(4711));
        assert_eq!(parse_stat("7 (x) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711"), None);
        assert_eq!(parse_stat("7 (x"), None);
    }

    #[test]
    fn one_id_is_created_once() {
        let root = tempfile::tempdir().unwrap();
        let first = Directory::create(root.path(), "a").unwrap();
        assert!(matches!(Directory::create(root.path(), "a"), Err(Error::Exists(_))));
        assert_eq!(look(root.path(), "a").unwrap().1, Status::Creating);
        drop(first);
        // Its maker died before there was a record.
        let second = Directory::create(root.path(), "a").unwrap();
        second.remove().unwrap();
        assert!(matches!(Directory::open(root.path(), "a"), Err(Error::NotFound(_))));
        assert!(ids(root.path()).unwrap().is_empty());
    }
}
