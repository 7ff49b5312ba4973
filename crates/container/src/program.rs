//! The program of ours that is executed inside of containers. What is inside must not be able to write to its file
//! through `/proc/PID/exe` (CVE-2019-5736).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use sys::mount::attribute;

use crate::mounts::clone_tree;

/// Name by which the program is told what it is; the first of its arguments.
pub use init::program::NAME;

static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inception-init"));

/// A sealed copy of the embedded `inception-init` in memory. One serves any number of containers.
///
/// # Errors
/// What `memfd_create(2)` and writing report.
pub fn init() -> io::Result<OwnedFd> {
    sys::fd::sealed(c"inception-init", INIT, true)
}

/// What is executed: this process's own program, if it `acts` as `inception-init` and can be protected, or the embedded
/// one.
///
/// # Errors
/// As [`init`].
pub(crate) fn protected(acts: bool) -> io::Result<OwnedFd> {
    let own = if acts { own().ok() } else { None };
    own.map_or_else(init, Ok)
}

/// This process's own program, for one that acts as `inception-init` when it is executed by that name
/// ([`init::program::NAME`]): on a read-only mount that is attached nowhere and that nobody can change any more.
/// It saves the copy.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN over this mount namespace.
fn own() -> io::Result<OwnedFd> {
    const OWN: &str = "/proc/self/exe";
    // In a new mount namespace the link itself leads into the old one, where nothing can be cloned from here.
    let file = clone_tree(rustix::fs::CWD, std::fs::read_link(OWN)?, false)?;
    let (found, running) = (rustix::fs::fstat(&file)?, rustix::fs::stat(OWN)?);
    if (found.st_dev, found.st_ino) != (running.st_dev, running.st_ino) {
        return Err(rustix::io::Errno::NOENT.into());
    }
    sys::mount::set_attributes(
        file.as_fd(),
        attribute::RDONLY | attribute::NOSUID | attribute::NODEV,
        false,
    )?;
    // As long as the descriptor that the mount was made with is open, who may mount in a container could take the
    // attribute away again through /proc/PID/exe (mount_setattr(2)); from another one's mount nobody can any more.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_makes_our_own_program_writable() {
        let Ok(program) = own() else {
            return eprintln!(
                "skipped: nobody_makes_our_own_program_writable: this user may not clone mounts"
            );
        };
        assert!(sys::mount::set_attributes(program.as_fd(), attribute::NOEXEC, false).is_err());
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let written = rustix::fs::open(path, OFlags::WRONLY, Mode::empty());
        assert!(matches!(written, Err(rustix::io::Errno::ROFS | rustix::io::Errno::TXTBSY)), "{written:?}");
    }
}
