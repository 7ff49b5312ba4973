//! The first use of a volume: it gets what the image has at the mount point, with owners and modes, as
//! Docker does.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

use crate::mounts::existing;

/// Makes the volume directory `path` (relative to the working directory, which is the data directory) if it
/// is missing, filled from `target` beneath `root`. It appears whole or not at all.
pub(crate) fn prepare(root: BorrowedFd<'_>, target: &str, path: &str) -> io::Result<()> {
    if fs::exists(path)? {
        return Ok(());
    }
    let partial = format!("{path}.partial");
    // What an interrupted first use left; nobody has seen it.
    if fs::exists(&partial)? {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(Path::new(path).parent().unwrap_or(Path::new(".")))?;
    match existing(root, target)? {
        Some(source)
            if FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode) == FileType::Directory =>
        {
            // Through the descriptor, because the image's own symbolic links led to it.
            let source = format!("/proc/self/fd/{}/.", source.as_raw_fd());
            copy_directory(Path::new(&source), Path::new(&partial))?;
        }
        _ => fs::create_dir(&partial)?,
    }
    fs::rename(&partial, path)
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
