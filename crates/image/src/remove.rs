//! Deleting trees that a container made: any mode, any depth, never through a link.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self as kernel, AtFlags, Mode};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::node;

/// Depth from which a directory is first moved up to the top of the tree.
const DEEP: usize = 64;

/// Deletes a file or a whole directory; what is not there is no error.
///
/// Must run inside the id map that owns the tree. Links are deleted, never followed; directories are
/// made accessible first; nesting may be of any depth.
pub fn remove_tree(path: &Path) -> Result<()> {
    let fail = |cause: io::Error| Error::io("delete", path, cause);
    let Some(name) = path.file_name() else {
        return Err(fail(io::Error::from(io::ErrorKind::InvalidInput)));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = match node::open_dir_path(parent) {
        Ok(parent) => parent,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(fail(cause)),
    };
    remove_at(&parent, name).map_err(fail)
}

/// Size of the files in a tree, bytes; what has several names is counted once, and what is not there is nothing. Must
/// run inside the id map that owns the tree; links are not followed.
pub fn tree_size(path: &Path) -> Result<u64> {
    let fail = |cause: io::Error| Error::io("measure", path, cause);
    let top = match node::open_dir_path(path) {
        Ok(top) => top,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(cause) => return Err(fail(cause)),
    };
    let mut seen = HashSet::new();
    size_of(&top, 0, &mut seen).map_err(fail)
}

fn size_of(dir: &OwnedFd, depth: usize, seen: &mut HashSet<u64>) -> io::Result<u64> {
    // A running container may delete what we have just seen, and nest as deep as it likes.
    let gone = |errno: &Errno| matches!(*errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP);
    let mut size = 0;
    for name in node::names(dir)? {
        let Some(stat) = node::stat(dir, &name)? else { continue };
        if node::is_dir(&stat) {
            let child = match node::open_dir(dir, &name) {
                Err(cause) if Errno::from_io_error(&cause).as_ref().is_some_and(gone) => continue,
                opened => opened?,
            };
            if depth < node::MAX_DEPTH {
                size += size_of(&child, depth + 1, seen)?;
            }
        } else if stat.st_nlink < 2 || seen.insert(stat.st_ino) {
            size += u64::try_from(stat.st_size).unwrap_or(0);
        }
    }
    Ok(size)
}

/// Deletes one name of a directory with all below it; what is not there is no error.
pub(crate) fn remove_at(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    if unlink(parent, name)? {
        return Ok(());
    }
    let top = open_for_removal(parent, name)?;
    let mut moved = 0;
    // What lay too deep was moved to the top, and is found by another pass.
    while remove_content(&top, &top, 0, &mut moved)? {}
    drop(top);
    Ok(kernel::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Deletes all a directory holds; true if something was moved to the top instead.
fn remove_content(top: &OwnedFd, dir: &OwnedFd, depth: usize, moved: &mut u64) -> io::Result<bool> {
    let mut again = false;
    for name in node::names(dir)? {
        if unlink(dir, &name)? {
            continue;
        }
        if depth == DEEP {
            loop {
                *moved += 1;
                let target = OsString::from(format!(".deep-{moved}"));
                match kernel::renameat_with(dir, &*name, top, &*target, kernel::RenameFlags::NOREPLACE) {
                    Ok(()) => break,
                    Err(Errno::EXIST) => continue,
                    Err(errno) => return Err(errno.into()),
                }
            }
            again = true;
            continue;
        }
        let child = open_for_removal(dir, &name)?;
        again |= remove_content(top, &child, depth + 1, moved)?;
        drop(child);
        match kernel::unlinkat(dir, &*name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(again)
}

/// Deletes what is no directory; false for a directory.
fn unlink(dir: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    match kernel::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        // A directory one may not delete from looks the same as a directory (EPERM on some file systems).
        Err(Errno::ISDIR | Errno::PERM) => match node::stat(dir, name)? {
            Some(stat) if node::is_dir(&stat) => Ok(false),
            Some(_) => Err(Errno::PERM.into()),
            None => Ok(true),
        },
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a directory to empty it, giving its owner the right to first.
fn open_for_removal(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let full = |mode: u32| mode & 0o700 == 0o700;
    let stat = kernel::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if !full(stat.st_mode) && node::is_dir(&stat) {
        // Best effort: root needs no mode, and without the right to change it opening says why.
        kernel::chmodat(parent, name, Mode::RWXU, AtFlags::empty()).ok();
    }
    node::open_dir(parent, name)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn closed_and_deep_trees_go_and_links_are_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let kept = temp.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let tree = temp.path().join("tree");
        fs::create_dir(&tree).unwrap();
        symlink(&kept, tree.join("link")).unwrap();
        fs::create_dir(tree.join("closed")).unwrap();
        fs::write(tree.join("closed/file"), "x").unwrap();
        fs::set_permissions(tree.join("closed"), PermissionsExt::from_mode(0o000)).unwrap();
        let mut dir = node::open_dir_path(&tree).unwrap();
        for _ in 0..1500 {
            dir = node::make_dir(&dir, OsStr::new("some-rather-long-name")).unwrap();
        }
        drop(dir);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
        remove_tree(&tree).unwrap();
        remove_tree(&temp.path().join("none/at/all")).unwrap();
    }
}
