//! Trees of cgroups: visiting and removing what is below one, however deep whoever is inside has nested it.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Error;

/// How long the last processes of a cgroup that is removed may take to vanish.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(1);

/// How a cgroup is opened.
pub(super) const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Visits a cgroup and all below it, each before its children; `leave` is called with the parent and the name
/// when all below a child has been visited. Whoever is inside may have nested cgroups deeper than a path can say
/// and than descriptors suffice, so this holds two at a time and goes back by `..`.
pub(super) fn walk(
    top: BorrowedFd<'_>,
    visit: &mut dyn FnMut(BorrowedFd<'_>) -> rustix::io::Result<()>,
    leave: &mut dyn FnMut(BorrowedFd<'_>, &CStr) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    visit(top)?;
    let mut here = rustix::fs::openat(top, ".", DIRECTORY, Mode::empty())?;
    let mut pending = vec![children(here.as_fd())?];
    let mut names: Vec<CString> = Vec::new();
    while let Some(level) = pending.last_mut() {
        let Some(name) = level.pop() else {
            pending.pop();
            if let Some(name) = names.pop() {
                here = rustix::fs::openat(&here, "..", DIRECTORY, Mode::empty())?;
                leave(here.as_fd(), &name)?;
            }
            continue;
        };
        match rustix::fs::openat(&here, &name, DIRECTORY, Mode::empty()) {
            // It has vanished meanwhile.
            Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => return Err(errno),
            Ok(child) => {
                visit(child.as_fd())?;
                pending.push(children(child.as_fd())?);
                names.push(name);
                here = child;
            }
        }
    }
    Ok(())
}

/// The names of the cgroups directly below one; a cgroup's own files go with it.
fn children(cgroup: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(cgroup)? {
        let entry = entry?;
        if entry.file_type() == FileType::Directory && !entry.file_name().to_bytes().starts_with(b".") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Removes the cgroup at `path` and all below it; a missing one is fine. Waits for the last processes.
///
/// # Errors
/// What `rmdir(2)` reports for the first that is still in use at the end.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match remove_below(path, |_| true).and_then(|()| remove_empty(path)) {
            Err(error) if error.kind() == Some(io::ErrorKind::ResourceBusy) && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// Removes an empty cgroup; a missing one is fine.
pub(super) fn remove_empty(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound) => {
            Err(Error::at("remove cgroup", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes those cgroups directly below `path` that `doomed` picks by name, with all below them; does not wait.
pub(super) fn remove_below(path: &Path, doomed: impl Fn(&OsStr) -> bool) -> Result<(), Error> {
    let failed = |errno: Errno| Error::at("remove what is below cgroup", path)(errno.into());
    let top = match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(failed)?,
    };
    let unlink =
        |parent: BorrowedFd<'_>, name: &CStr| match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        };
    for name in children(top.as_fd()).map_err(failed)? {
        if !doomed(OsStr::from_bytes(name.to_bytes())) {
            continue;
        }
        match rustix::fs::openat(&top, &name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT | Errno::NODEV) => continue,
            Err(errno) => return Err(failed(errno)),
            Ok(child) => walk(child.as_fd(), &mut |_| Ok(()), &mut { unlink }).map_err(failed)?,
        }
        unlink(top.as_fd(), &name).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_that_are_nested_deeper_than_a_path_can_say_are_removed() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("c");
        fs::create_dir(&path).unwrap();
        let name = "x".repeat(200);
        let mut here = rustix::fs::open(&path, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..50 {
            rustix::fs::mkdirat(&here, &*name, Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, &*name, DIRECTORY, Mode::empty()).unwrap();
        }
        fs::create_dir(path.join("beside")).unwrap();
        let mut visited = 0;
        let top_of_tree = rustix::fs::open(&path, DIRECTORY, Mode::empty()).unwrap();
        let mut visit = |_: BorrowedFd<'_>| {
            visited += 1;
            Ok(())
        };
        walk(top_of_tree.as_fd(), &mut visit, &mut |_, _| Ok(())).unwrap();
        assert_eq!(visited, 52);
        remove(&path).unwrap();
        assert!(!path.exists());
    }
}
