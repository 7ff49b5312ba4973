//! The store's lock: the directory of layers, locked with `flock(2)`.
//!
//! Shared by who begins to use something or puts something in its place, for that moment only; exclusive for who
//! decides what nobody uses and moves it away. A dead process's lock is free.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::node;

/// How long others may hold the lock against us; they do for milliseconds, or have been stopped.
const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(1);

/// The lock, held until this is dropped.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

impl Lock {
    pub(crate) fn shared(data_dir: &Path) -> Result<Self> {
        Self::take(data_dir.join("l"), FlockOperation::NonBlockingLockShared)
    }

    pub(crate) fn exclusive(data_dir: &Path) -> Result<Self> {
        Self::take(data_dir.join("l"), FlockOperation::NonBlockingLockExclusive)
    }

    fn take(path: PathBuf, operation: FlockOperation) -> Result<Self> {
        let dir = node::open_dir_path(&path).map_err(|cause| Error::io("open directory", &path, cause))?;
        let end = Instant::now() + DEADLINE;
        loop {
            match rustix::fs::flock(&dir, operation) {
                Ok(()) => return Ok(Self(dir)),
                Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => return Err(Error::StoreBusy { path }),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("lock", path, errno)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Not by closing alone: a fork that was made meanwhile has the descriptor, too. It cannot fail on a lock.
        rustix::fs::flock(&self.0, FlockOperation::Unlock).ok();
    }
}
