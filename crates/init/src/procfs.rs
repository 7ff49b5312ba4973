//! Writing to procfs where somebody hostile may have had a hand in what is at `/proc`.

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// `PROC_SUPER_MAGIC` of `linux/magic.h`.
pub const MAGIC: u64 = 0x9fa0;

/// Writes `text` to the file `path` of `/proc`: procfs itself, with no mount and no link on the way (CVE-2025-52881).
///
/// # Errors
/// `EINVAL` when `/proc` is something else, and what opening and writing report.
pub fn write(path: &str, text: &str) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
    if rustix::fs::fstatfs(&proc)?.f_type as u64 != MAGIC {
        return Err(Errno::INVAL);
    }
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let file = rustix::fs::openat2(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    rustix::io::write(&file, text.as_bytes()).map(drop)
}
