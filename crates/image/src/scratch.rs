//! Work in progress: directories under `tmp/` that live as long as a file lock does.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::remove::remove_tree;

/// Suffix of the file whose lock says that the directory of the same name is in use.
const LOCK: &str = ".lock";
/// Prefix of files that are renamed into place as soon as they are written.
const FILE: &str = "file-";
/// No file takes longer to be written and renamed.
const FILE_AGE: Duration = Duration::from_secs(600);

pub(crate) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    // The process id alone may repeat: a worker can have a namespace of its own.
    format!("{:x}-{:x}-{count:x}", std::process::id(), time & 0xffff_ffff_ffff)
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
        loop {
            let name = unique();
            let lock_path = tmp.join(format!("{name}{LOCK}"));
            let lock = match File::create_new(&lock_path) {
                Ok(lock) => lock,
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(cause) => return Err(Error::io("create file", lock_path, cause)),
            };
            let locked = lock.try_lock().is_ok();
            let linked =
                lock.metadata().map_err(|cause| Error::io("look up", &lock_path, cause))?.nlink() > 0;
            if !(locked && linked) {
                // A sweep came between creating and locking: it removes the file, take another name.
                continue;
            }
            let dir = tmp.join(&name);
            let scratch = Self { dir, name, lock_path, _lock: lock };
            make_private_dir(&scratch.dir)?;
            return Ok(scratch);
        }
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

/// Deletes what dead processes left in `tmp/`; returns how many directories.
pub(crate) fn sweep(tmp: &Path) -> Result<usize> {
    let fail = |cause| Error::io("read directory", tmp, cause);
    let mut swept = 0;
    for entry in fs::read_dir(tmp).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let path = entry.path();
        if name.starts_with(FILE) {
            let age =
                entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > FILE_AGE) {
                remove_tree(&path)?;
            }
        } else if let Some(stem) = name.strip_suffix(LOCK) {
            let lock = match File::open(&path) {
                Ok(lock) => lock,
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
                Err(cause) => return Err(Error::io("open", path, cause)),
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(cause)) => return Err(Error::io("lock", path, cause)),
            }
            remove_tree(&tmp.join(stem))?;
            remove_tree(&path)?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Writes a file so that readers see the whole of it or nothing; `durable` makes it survive a power cut.
pub(crate) fn write_file(tmp: &Path, path: &Path, content: &[u8], durable: bool) -> Result<()> {
    let temporary = tmp.join(format!("{FILE}{}", unique()));
    let write = || {
        let mut file = File::create_new(&temporary)?;
        file.write_all(content)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    };
    write().map_err(|cause| {
        drop(fs::remove_file(&temporary));
        Error::io("write", path, cause)
    })
}
