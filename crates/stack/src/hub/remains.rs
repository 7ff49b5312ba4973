//! What is left of a container when its first process has ended: nothing, where that was PID 1 of a namespace of its own.
//! In the namespace of another container the others go on, and are ended here.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, open, statat};
use rustix::process::Signal;

/// How long the kernel may take until those that were killed have left the namespace.
const DEADLINE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);

/// Kills every process that has this cgroup namespace, which each container has of its own, until there is none.
///
/// # Errors
/// `TimedOut`, and what the kernel reports.
pub(super) fn end(namespace: BorrowedFd<'_>) -> io::Result<()> {
    let wanted = fstat(namespace)?;
    let deadline = Instant::now() + DEADLINE;
    while kill_all(&wanted)? {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its processes do not end"));
        }
        sleep(PAUSE);
    }
    Ok(())
}

/// Whether there was one.
fn kill_all(wanted: &Stat) -> io::Result<bool> {
    let mut found = false;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // The directory stands for this process and no later one with its number, and is as good as a pidfd.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(process) = open(entry.path(), flags, Mode::empty()) else { continue };
        // Of what has ended, or is not of this stack, it cannot be read.
        let Ok(own) = statat(&process, "ns/cgroup", AtFlags::empty()) else { continue };
        if (own.st_dev, own.st_ino) == (wanted.st_dev, wanted.st_ino) {
            found = true;
            match sys::process::pidfd_kill(process.as_fd(), Signal::KILL.as_raw()) {
                Err(error) if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                    return Err(error);
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(found)
}
