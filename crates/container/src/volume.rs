//! The first use of a volume: it gets what the image has at the mount point, with owners and modes, as
//! Docker does.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::mounts::{clone_fd, clone_tree, existing};

/// Makes the volume directory `path` (relative to the working directory, which is the data directory) if it
/// is missing, filled from `target` beneath `root` unless it is to be `empty`. It appears whole or not at all.
pub(crate) fn prepare(root: BorrowedFd<'_>, target: &str, path: &str, empty: bool) -> io::Result<()> {
    if fs::exists(path)? {
        return Ok(());
    }
    let partial = format!("{path}.partial");
    // What an interrupted first use left; nobody has seen it.
    if fs::exists(&partial)? {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(Path::new(path).parent().unwrap_or(Path::new(".")))?;
    match directory(root, target)?.filter(|_| !empty) {
        Some(source) => copy_directory(&through(source.as_fd()), Path::new(&partial))?,
        None => fs::create_dir(&partial)?,
    }
    match fs::rename(&partial, path) {
        // Another stack that shares the volume was faster.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(&partial),
        other => other,
    }
}

/// Fills the root of the mount `volume`, if it is an empty directory, from `target` beneath `root`.
pub(crate) fn fill(root: BorrowedFd<'_>, target: &str, volume: BorrowedFd<'_>) -> io::Result<()> {
    let volume = through(volume);
    if !fs::metadata(&volume)?.is_dir() || fs::read_dir(&volume)?.next().is_some() {
        return Ok(());
    }
    match directory(root, target)? {
        Some(source) => copy_into(&through(source.as_fd()), &volume),
        None => Ok(()),
    }
}

/// A detached mount of the volume `path`, or of what is at `subpath` beneath it.
pub(crate) fn tree(path: &str, subpath: Option<&str>) -> io::Result<OwnedFd> {
    let Some(subpath) = subpath else { return clone_tree(CWD, path, false) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let volume = rustix::fs::open(path, flags, Mode::empty())?;
    let found = existing(volume.as_fd(), subpath)?.ok_or(Errno::NOENT)?;
    clone_fd(found.as_fd())
}

/// The directory at `target` beneath `root`, if it is one.
fn directory(root: BorrowedFd<'_>, target: &str) -> io::Result<Option<OwnedFd>> {
    let Some(found) = existing(root, target)? else { return Ok(None) };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    Ok(Some(found).filter(|_| kind == FileType::Directory))
}

/// A path to what is open as `fd`, whatever names led to it.
fn through(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}/.", fd.as_raw_fd()).into()
}

/// Copies what is in the directory `from` into the directory `to`, which takes on its owner and mode, too.
pub(crate) fn copy_into(from: &Path, to: &Path) -> io::Result<()> {
    copy_entries(from, to)?;
    settle(to, &fs::metadata(from)?)
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    copy_into(from, to)
}

fn copy_entries(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        let meta = fs::symlink_metadata(&from)?;
        if kind.is_dir() {
            copy_directory(&from, &to)?;
            continue;
        }
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            lchown(&to, Some(meta.uid()), Some(meta.gid()))?;
        } else if kind.is_file() {
            fs::copy(&from, &to)?;
            settle(&to, &meta)?;
        } else {
            // Sockets and fifos; a device cannot be made here and is no content anyway.
            let mode = Mode::from_raw_mode(meta.mode());
            rustix::fs::mknodat(CWD, &to, FileType::from_raw_mode(meta.mode()), mode, 0)?;
            settle(&to, &meta)?;
        }
    }
    Ok(())
}

/// Owner, mode (after the owner, whose change clears set-id bits) and times.
fn settle(to: &Path, meta: &fs::Metadata) -> io::Result<()> {
    chown(to, Some(meta.uid()), Some(meta.gid()))?;
    rustix::fs::chmod(to, Mode::from_raw_mode(meta.mode()))?;
    let time = |seconds, nanoseconds: i64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::empty())?)
}
