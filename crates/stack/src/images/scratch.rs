//! A directory for what is fetched and needed for one command only.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::remote::{Context, RemoteError};

/// A directory of our own, below the one for temporary files.
pub(super) struct Scratch {
    path: PathBuf,
    /// Locked while we live: what is not locked was left by a command that was killed.
    _lock: File,
}

impl Scratch {
    const PREFIX: &str = "inception-fetch-";
    const LOCK: &str = "lock";

    /// Makes one; `purpose` tells those of one command apart.
    pub(super) fn new(purpose: &str) -> Result<Self, RemoteError> {
        Self::in_directory(&std::env::temp_dir(), purpose)
    }

    fn in_directory(top: &Path, purpose: &str) -> Result<Self, RemoteError> {
        use std::os::unix::fs::{DirBuilderExt, MetadataExt};
        Self::sweep(top).context(|| format!("remove old files from {}", top.display()))?;
        let path = top.join(format!("{}{purpose}-{}", Self::PREFIX, std::process::id()));
        let make = || -> std::io::Result<File> {
            loop {
                std::fs::DirBuilder::new().mode(0o700).create(&path)?;
                let lock = File::create_new(path.join(Self::LOCK))?;
                lock.lock()?;
                // Another command may have swept it away before it was locked.
                if lock.metadata()?.nlink() > 0 {
                    return Ok(lock);
                }
            }
        };
        let lock = make().context(|| format!("create {}", path.display()))?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what commands of this user left that were killed.
    fn sweep(top: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        for entry in std::fs::read_dir(top)? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(Self::PREFIX.as_bytes()) {
                continue;
            }
            let Ok(meta) = entry.metadata() else { continue };
            // Without its lock it is either very new or not ours to judge.
            if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
                continue;
            }
            let Ok(lock) = File::open(entry.path().join(Self::LOCK)) else { continue };
            if lock.try_lock().is_ok() {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes it away once what was in it has been used, or has not.
    pub(super) fn finish<T>(self, outcome: Result<T, RemoteError>) -> Result<T, RemoteError> {
        let removed = std::fs::remove_dir_all(&self.path);
        let value = outcome?;
        removed.context(|| format!("remove {}", self.path.display()))?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_command_makes_at_this_moment_stays() {
        let top = tempfile::tempdir().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    // What is in the way of one sweep is in nobody's way.
                    Scratch::sweep(top.path()).ok();
                }
            });
            let made = (0..100).all(|_| {
                let scratch = Scratch::in_directory(top.path(), "x").unwrap();
                let there = scratch.path.join(Scratch::LOCK).exists();
                scratch.finish(Ok(())).is_ok() && there
            });
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(made);
        });
    }

    #[test]
    fn what_a_killed_command_left_is_removed_and_nothing_else() {
        let top = tempfile::tempdir().unwrap();
        for (name, lock) in [("inception-fetch-base-0", true), ("inception-fetch-x", false), ("other", true)]
        {
            let path = top.path().join(name);
            std::fs::create_dir(&path).unwrap();
            if lock {
                std::fs::write(path.join(Scratch::LOCK), "").unwrap();
            }
        }
        let scratch = Scratch::in_directory(top.path(), "base").unwrap();
        let second = Scratch::in_directory(top.path(), "context").unwrap();
        assert!(scratch.path.is_dir() && second.path.is_dir());
        assert!(!top.path().join("inception-fetch-base-0").exists());
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 4);
        second.finish(Ok(())).unwrap();
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 3);
    }
}
