//! Work in progress: directories and files under `tmp/`, each of which lives as long as a file lock does.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::remove::remove_tree;

/// Suffix of the file whose lock says that the directory of the same name is in use.
const LOCK: &str = ".lock";
/// Suffix of files that are renamed into place as soon as they are written.
const FILE: &str = ".file";

pub(crate) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    // The process id alone may repeat: a worker can have a namespace of its own.
    format!("{:x}-{:x}-{count:x}", std::process::id(), time & 0xffff_ffff_ffff)
}

/// Makes a file under a name of its own and locks it: while the lock is held, its maker lives.
pub(crate) fn locked_file(dir: &Path, suffix: &str) -> Result<(File, PathBuf)> {
    loop {
        let path = dir.join(format!("{}{suffix}", unique()));
        let file = match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(cause) => return Err(Error::io("create file", path, cause)),
        };
        let locked = file.try_lock().is_ok();
        let linked = file.metadata().map_err(|cause| Error::io("look up", &path, cause))?.nlink() > 0;
        if locked && linked {
            return Ok((file, path));
        }
        // A sweep came between creating and locking: it removes the file, take another name.
    }
}

/// Locks a file whose maker has died; none if it lives, or the file is gone.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::io("open", path, cause)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(cause)) => Err(Error::io("lock", path, cause)),
    }
}

/// A directory of our own; it goes with this value, or is swept up after the process has died.
pub(crate) struct Scratch {
    dir: PathBuf,
    name: String,
    lock_path: PathBuf,
    _lock: File,
}

impl Scratch {
    pub(crate) fn new(tmp: &Path) -> Result<Self> {
        let (lock, lock_path) = locked_file(tmp, LOCK)?;
        let dir = lock_path.with_extension("");
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let scratch = Self { dir, name, lock_path, _lock: lock };
        make_private_dir(&scratch.dir)?;
        Ok(scratch)
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Its name within `tmp/`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes a directory in it.
    pub(crate) fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        make_private_dir(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match remove_tree(&self.dir) {
            Ok(()) => drop(fs::remove_file(&self.lock_path)),
            // The lock file stays, so that a sweep tries again.
            Err(error) => tracing::warn!(path = %self.dir.display(), %error, "cannot delete work directory"),
        }
    }
}

/// Makes a directory that only its owner may enter.
pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io("create directory", path, cause))
        }
        _ => Ok(()),
    }
}

/// Deletes what dead processes left in `tmp/`; returns how many directories and files.
pub(crate) fn sweep(tmp: &Path) -> Result<usize> {
    let fail = |cause| Error::io("read directory", tmp, cause);
    let mut swept = 0;
    for entry in fs::read_dir(tmp).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.strip_suffix(LOCK);
        if stem.is_none() && !name.ends_with(FILE) {
            continue;
        }
        let Some(_lock) = try_lock(&path)? else { continue };
        if let Some(stem) = stem {
            remove_tree(&tmp.join(stem))?;
        }
        remove_file(&path)?;
        swept += 1;
    }
    Ok(swept)
}

/// What is in a directory, sorted by name; nothing in one that does not exist.
pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let fail = |cause| Error::io("read directory", dir, cause);
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>().map_err(fail)?;
    paths.sort();
    Ok(paths)
}

/// Removes a file; one that is not there is no error.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::io("delete", path, cause)),
        _ => Ok(()),
    }
}

/// Makes the names of a directory survive a power cut.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|cause| Error::io("write to disk", path, cause))
}

/// A file that is written and has no name yet that anybody looks for.
pub(crate) struct Pending {
    path: PathBuf,
    file: File,
}

impl Pending {
    pub(crate) fn write(tmp: &Path, content: &[u8]) -> Result<Self> {
        let (file, path) = locked_file(tmp, FILE)?;
        let mut pending = Self { path, file };
        pending.file.write_all(content).map_err(|cause| Error::io("write", &pending.path, cause))?;
        Ok(pending)
    }

    /// Makes its content survive a power cut.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|cause| Error::io("write to disk", &self.path, cause))
    }

    /// Gives it its name, in place of what had it before.
    pub(crate) fn rename(self, path: &Path) -> Result<()> {
        fs::rename(&self.path, path).map_err(|cause| Error::io("write", path, cause))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Renamed, or a sweep takes it.
        fs::remove_file(&self.path).ok();
    }
}

/// Writes a file so that readers see the whole of it or nothing; `durable` makes it survive a power cut.
pub(crate) fn write_file(tmp: &Path, path: &Path, content: &[u8], durable: bool) -> Result<()> {
    let pending = Pending::write(tmp, content)?;
    if !durable {
        return pending.rename(path);
    }
    pending.sync()?;
    pending.rename(path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}
