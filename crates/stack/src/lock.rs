//! A stack's lock: a file in its runtime directory, held by the supervisor and by everything that dies with it, or
//! by a command that works on what a dead supervisor left.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::paths::Paths;
use crate::remote::{Context, RemoteError};

/// The file, in the stack's runtime directory.
pub(crate) const NAME: &str = "lock";
/// How long a dead supervisor's processes may take to vanish.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(2);

/// Takes the lock, for which it may have to wait: it is held for a moment by the processes of a supervisor that was
/// killed. `None` when `give_up` says that its holder is there to stay.
///
/// # Errors
/// When the runtime directory cannot be made, and after the deadline.
pub(crate) fn take(
    paths: &Paths,
    stack: &str,
    mut give_up: impl FnMut() -> Result<bool, RemoteError>,
) -> Result<Option<File>, RemoteError> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        // Each time: the one who held the lock may have removed the directory.
        let path = paths.make_runtime(stack)?.join(NAME);
        let open = || fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < deadline => continue,
            opened => opened.context(|| format!("open {}", path.display()))?,
        };
        match file.try_lock() {
            Ok(()) => {
                // It may have been unlinked between our open and our lock.
                let same = fs::metadata(&path)
                    .is_ok_and(|there| file.metadata().is_ok_and(|m| m.ino() == there.ino()));
                if same {
                    return Ok(Some(file));
                }
            }
            Err(TryLockError::WouldBlock) if give_up()? => return Ok(None),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(RemoteError::message("another command is working on this stack")
                    .caused_by(format!("{} is locked", path.display())));
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context(|| format!("lock {}", path.display()));
            }
        }
    }
}

/// Takes a stack's runtime directory away; the caller holds the lock. Its file goes last but the directory itself:
/// from then on somebody else may have the lock, and nothing of theirs may be touched.
pub(crate) fn remove_runtime(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() != NAME {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_file(directory.join(NAME))?;
    match fs::remove_dir(directory) {
        Err(error) if !matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_the_lock_gets_a_directory_of_its_own() {
        let top = tempfile::tempdir().unwrap();
        let paths = Paths::new(top.path().into(), top.path().join("run"));
        let held = take(&paths, "s", || Ok(true)).unwrap().unwrap();
        fs::write(paths.stack("s").join("web.log"), "x").unwrap();
        assert!(take(&paths, "s", || Ok(true)).unwrap().is_none());
        let waiting = {
            let paths = paths.clone();
            std::thread::spawn(move || take(&paths, "s", || Ok(false)))
        };
        std::thread::sleep(Duration::from_millis(20));
        remove_runtime(&paths.stack("s")).unwrap();
        drop(held);
        let now_held = waiting.join().unwrap().unwrap().unwrap();
        let there = fs::metadata(paths.stack("s").join(NAME)).unwrap();
        assert_eq!(now_held.metadata().unwrap().ino(), there.ino());
    }
}
