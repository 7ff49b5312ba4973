//! The program of ours that is executed inside of containers. What is inside must not be able to write to its file
//! through `/proc/PID/exe` (CVE-2019-5736).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

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
    const NAME: &std::ffi::CStr = c"inception-init";
    match embedded() {
        Ok(file) => sys::fd::sealed(NAME, file, true),
        Err(_) => sys::fd::sealed(NAME, INIT, true),
    }
}

/// The embedded program, read from the file of this one: who copies it once need not have its pages mapped ever after.
fn embedded() -> io::Result<Take<File>> {
    let mut own = File::open("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let (offset, inode) = place(&maps, INIT.as_ptr().addr(), INIT.len()).ok_or(io::ErrorKind::NotFound)?;
    if own.metadata()?.ino() != inode {
        return Err(io::ErrorKind::NotFound.into());
    }
    own.seek(SeekFrom::Start(offset))?;
    let length = u64::try_from(INIT.len()).map_err(io::Error::other)?;
    Ok(own.take(length))
}

/// Where in its file, by its inode number, something of this process's memory lies (proc_pid_maps(5)); none where it is
/// not in one mapping.
fn place(maps: &str, address: usize, length: usize) -> Option<(u64, u64)> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let [start, end] = [start, end].map(|bound| usize::from_str_radix(bound, 16));
        let (start, end) = (start.ok()?, end.ok()?);
        let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        if address < start || address.checked_add(length)? > end {
            return None;
        }
        Some((offset + u64::try_from(address - start).ok()?, inode))
    })
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
    fn what_is_embedded_is_found_in_the_own_file() {
        let mut read = Vec::new();
        embedded().unwrap().read_to_end(&mut read).unwrap();
        assert!(read == INIT, "{} bytes of {}", read.len(), INIT.len());
        let sealed = File::from(init().unwrap());
        assert_eq!(sealed.metadata().unwrap().len(), INIT.len() as u64);
    }

    #[test]
    fn a_place_in_memory_is_one_in_a_file() {
        let maps =
            "00200000-00605000 r--p 00001000 fe:00 42   /bin/x\n00605000-00700000 rw-p 00000000 00:00 0\n";
        assert_eq!(place(maps, 0x0020_0010, 0x10), Some((0x1010, 42)));
        assert_eq!(place(maps, 0x0060_4ff8, 0x10), None, "it goes on in another mapping");
        assert_eq!(place("nonsense\n", 0, 1), None);
    }

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
