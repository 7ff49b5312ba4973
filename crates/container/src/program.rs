//! The program of ours that is executed inside of containers. What is inside must not be able to write to its file
//! through `/proc/PID/exe` (CVE-2019-5736).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use sys::mount::attribute;

use crate::mounts::clone_tree;

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
/// ([`init::program::NAME`]): on a read-only mount that is attached nowhere, and gone with the descriptor, so that
/// nobody can ever make it writable. It saves the copy.
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
    Ok(file)
}
