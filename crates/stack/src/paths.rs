//! Where a user's files are: the data directory (images, volumes, writable layers) and the runtime directory
//! (sockets and locks).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use container::idmap::IdMap;
use image::{Lease, Store};
use rustix::fs::{Mode, OFlags};

use crate::remote::{Context, RemoteError};

/// The directories of whoever runs this.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `INCEPTION_DATA_DIR`, or `/var/lib/inception-run` for root, or `$XDG_DATA_HOME/inception-run`, or
    /// `~/.local/share/inception-run`. Belongs to root of the id map.
    pub data: PathBuf,
    /// `INCEPTION_RUNTIME_DIR`, or `/run/inception-run` for root, or `$XDG_RUNTIME_DIR/inception-run`, or
    /// `/tmp/inception-run-UID`. Nobody else may enter it.
    pub runtime: PathBuf,
    /// What this process and its workers use of the store; made when the first of it is used.
    lease: OnceLock<Arc<Lease>>,
}

impl Paths {
    /// These directories.
    pub fn new(data: PathBuf, runtime: PathBuf) -> Self {
        Self { data, runtime, lease: OnceLock::new() }
    }

    /// Finds the directories; makes nothing.
    ///
    /// # Errors
    /// When an ordinary user has no home directory.
    pub fn current() -> Result<Self, RemoteError> {
        let uid = rustix::process::geteuid();
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let data = match variable("INCEPTION_DATA_DIR") {
            Some(path) => std::path::absolute(path)?,
            None if uid.is_root() => "/var/lib/inception-run".into(),
            // The XDG specification has relative ones ignored.
            None => variable("XDG_DATA_HOME")
                .filter(|path| path.is_absolute())
                .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
                .ok_or_else(|| {
                    RemoteError::message("find the home directory").or_hint("set HOME or INCEPTION_DATA_DIR")
                })?
                .join("inception-run"),
        };
        let runtime = match variable("INCEPTION_RUNTIME_DIR") {
            Some(path) => std::path::absolute(path)?,
            None if uid.is_root() => "/run/inception-run".into(),
            None => match variable("XDG_RUNTIME_DIR").filter(|path| path.is_absolute() && path.is_dir()) {
                Some(path) => path.join("inception-run"),
                None => format!("/tmp/inception-run-{}", uid.as_raw()).into(),
            },
        };
        Ok(Self::new(data, runtime))
    }

    /// The store, for who is going to use what is in it: what it finds is not deleted until this process and its
    /// workers have ended. Who only looks takes a [`Store::reader`].
    ///
    /// # Errors
    /// When the data directory cannot be made or written to.
    pub fn store(&self) -> Result<Store, RemoteError> {
        Ok(Store::reader(&self.data).with_lease(self.lease()?))
    }

    /// This process's lease, which its forks share.
    pub(crate) fn lease(&self) -> Result<Arc<Lease>, RemoteError> {
        if let Some(lease) = self.lease.get() {
            return Ok(Arc::clone(lease));
        }
        self.open_data(&IdMap::current()?)?;
        let lease = Lease::new(&self.data)?;
        Ok(Arc::clone(self.lease.get_or_init(|| lease)))
    }

    /// Makes and opens the data directory. As root it is given to the id map's root, who works in it; so is an empty one
    /// that somebody made for it.
    ///
    /// # Errors
    /// When it cannot be made, or belongs to somebody else.
    pub(crate) fn open_data(&self, map: &IdMap) -> Result<OwnedFd, RemoteError> {
        let (uid, gid) = map.root();
        if !self.data.exists() {
            self.make_data(uid, gid)
                .context(|| format!("create data directory {}", self.data.display()))
                .map_err(|error| error.or_hint("INCEPTION_DATA_DIR chooses another directory"))?;
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let opened = rustix::fs::open(&self.data, flags, Mode::empty())
            .map_err(io::Error::from)
            .context(|| format!("open data directory {}", self.data.display()))?;
        let owner = rustix::fs::fstat(&opened).map_err(io::Error::from)?.st_uid;
        let is_own = owner == rustix::process::geteuid().as_raw();
        if owner != uid && is_own && entries(&self.data)?.is_empty() {
            give(&opened, uid, gid)
                .context(|| format!("give data directory {} to user id {uid}", self.data.display()))?;
        } else if owner != uid {
            return Err(RemoteError::message(format!(
                "data directory {} belongs to user id {owner}, not to {uid}",
                self.data.display()
            ))
            .or_hint("INCEPTION_DATA_DIR chooses another directory"));
        }
        Ok(opened)
    }

    /// Makes the data directory. It has its owner when it has its name: other commands may be looking for it.
    fn make_data(&self, uid: u32, gid: u32) -> io::Result<()> {
        let mut unnamed = self.data.clone().into_os_string();
        unnamed.push(format!(".{}", std::process::id()));
        let unnamed = PathBuf::from(unnamed);
        make_private(&unnamed)?;
        std::os::unix::fs::chown(&unnamed, Some(uid), Some(gid))?;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(rustix::fs::CWD, &unnamed, rustix::fs::CWD, &self.data, flags) {
            Err(rustix::io::Errno::EXIST) => fs::remove_dir(&unnamed),
            renamed => Ok(renamed?),
        }
    }

    /// Makes the runtime directory of a stack and returns it.
    ///
    /// # Errors
    /// When it cannot be made, or the common one is open to others: in `/tmp` somebody else may have been first.
    pub(crate) fn make_runtime(&self, stack: &str) -> Result<PathBuf, RemoteError> {
        make_private(&self.runtime).context(|| format!("create {}", self.runtime.display()))?;
        let meta = fs::symlink_metadata(&self.runtime)?;
        let own = rustix::process::geteuid().as_raw();
        if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o077 != 0 {
            return Err(RemoteError::message(format!(
                "{} is not a directory of your own that is closed to others",
                self.runtime.display()
            ))
            .or_hint("INCEPTION_RUNTIME_DIR chooses another directory"));
        }
        let directory = self.stack(stack);
        make_private(&directory).context(|| format!("create {}", directory.display()))?;
        Ok(directory)
    }

    /// Names of the stacks that have a runtime directory, sorted. Not each of them runs.
    ///
    /// # Errors
    /// When the runtime directory cannot be read.
    pub fn stacks(&self) -> Result<Vec<String>, RemoteError> {
        let directories = entries(&self.runtime)?.into_iter().filter(|path| path.is_dir());
        Ok(directories.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    /// The runtime directory of a stack, which may not exist.
    pub fn stack(&self, stack: &str) -> PathBuf {
        self.runtime.join(stack)
    }
}

/// Gives a directory to somebody who is to have it alone.
fn give(directory: &OwnedFd, uid: u32, gid: u32) -> io::Result<()> {
    rustix::fs::fchmod(directory, Mode::RWXU)?;
    std::os::unix::fs::fchown(directory, Some(uid), Some(gid))
}

fn make_private(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// What is in a directory, sorted by name; nothing in one that does not exist.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, RemoteError> {
    let fail = || format!("read {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(fail)?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.context(fail)?;
    paths.sort();
    Ok(paths)
}
