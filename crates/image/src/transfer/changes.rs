//! Single changes of the user's files carried over to a container's, which is hostile.
//!
//! As with [`super::files`], paths are resolved beneath the tree's root and used as descriptors from then on. Links below
//! a root are carried over as the links that they are, and never followed.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::files::{self, Found, Place};
use crate::error::{Error, Result};
use crate::node;
use crate::remove::remove_at;
use crate::tree;
use crate::user;
use crate::view::View;

/// A path that has changed. Whether it is there is decided when the change is carried over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The directory whose files are carried over, absolute and without links.
    pub root: PathBuf,
    /// The path below that.
    pub path: PathBuf,
    /// The same in the container, absolute.
    pub inside: PathBuf,
}

impl Change {
    /// What is there; none when nothing is.
    fn find(&self) -> Result<Option<Found>> {
        let gone = |cause: &io::Error| {
            matches!(Errno::from_io_error(cause), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
        };
        let root = match node::open_dir_path(&self.root) {
            Err(cause) if gone(&cause) => return Ok(None),
            opened => opened.map_err(|cause| Error::io("open", &self.root, cause))?,
        };
        match files::find(&root, &self.path, false) {
            Err(Error::Io { source, .. }) if gone(&source) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Whether something is there.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn is_there(&self) -> Result<bool> {
        Ok(self.find()?.is_some())
    }
}

/// Writes what of `changes` is there as an archive for [`apply`].
///
/// # Errors
/// When something cannot be read, or is no file that can be copied; when `out` fails.
pub fn write<'a>(changes: impl Iterator<Item = &'a Change>, out: &mut dyn Write) -> Result<()> {
    let nodes = changes.filter_map(|change| {
        let name = change.inside.strip_prefix("/").unwrap_or(&change.inside);
        change.find().transpose().map(|found| found?.named(name))
    });
    tree::write_nodes_tar(nodes, Path::new("/"), out)
}

/// Makes a container's files, whose root directory this is, what those of the user are: deletes `gone` and unpacks an
/// archive of [`write`], in the place of what is there. All of it belongs to `user`, as the container names its users.
///
/// # Errors
/// When the container has no such user, when something cannot be deleted or made, and for a damaged archive.
pub fn apply(root: OwnedFd, gone: &[PathBuf], archive: impl Read + Send, user: &str) -> Result<()> {
    let directory = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    let view = View::open(&[directory]).map_err(|(path, cause)| Error::io("open", path, cause))?;
    let owner = user::resolve(&view, user)?;
    for path in gone {
        remove(&root, path)?;
    }
    Place::of_root(root).unpack(archive, Some((owner.uid, owner.gid)), true)
}

/// Deletes what is at a path beneath a root, with all below it; what is not there is no error.
fn remove(root: &OwnedFd, path: &Path) -> Result<()> {
    let Some(name) = path.file_name() else { return Ok(()) };
    match files::open_dir(root, files::parent(path)) {
        Ok(dir) => remove_at(&dir, name).map_err(|cause| Error::io("delete", path, cause)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(Error::io("open", files::parent(path), errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn what_is_there_is_made_and_what_is_not_deleted() {
        let top = tempfile::tempdir().unwrap();
        let at = |path: &str| top.path().join(path);
        for path in ["host/new", "inside/etc", "inside/srv/old/deep", "outside"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        for (path, text) in [
            ("host/new/file", "file"),
            ("host/changed", "changed"),
            ("inside/srv/changed", "before"),
            ("inside/srv/old/deep/x", "x"),
            ("inside/srv/gone", "gone"),
            ("outside/secret", "secret"),
        ] {
            fs::write(at(path), text).unwrap();
        }
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        fs::write(at("inside/etc/passwd"), format!("app:x:{uid}:{gid}::/:\n")).unwrap();
        symlink("/nowhere", at("host/link")).unwrap();
        // Links of the container's lead nowhere else, whatever they say.
        symlink(at("outside"), at("inside/leads-out")).unwrap();
        symlink("srv", at("inside/app")).unwrap();
        let change = |path: &str, inside: &str| Change {
            root: at("host"),
            path: path.into(),
            inside: PathBuf::from(inside),
        };
        let changes = [
            change("new", "/app/new"),
            change("new/file", "/app/new/file"),
            change("changed", "/app/changed"),
            change("link", "/app/link"),
            change("new/none", "/app/gone"),
            change("none", "/app/old"),
            change("secret", "/leads-out/secret"),
            change("changed/none", "/srv/never/was"),
        ];
        let (there, gone): (Vec<&Change>, Vec<&Change>) =
            changes.iter().partition(|change| change.is_there().unwrap());
        assert_eq!((there.len(), gone.len()), (4, 4));
        let gone: Vec<PathBuf> = gone.into_iter().map(|change| change.inside.clone()).collect();
        let mut archive = Vec::new();
        write(there.into_iter(), &mut archive).unwrap();
        let root = || node::open_dir_path(&at("inside")).unwrap();
        apply(root(), &gone, archive.as_slice(), "app").unwrap();
        let text = |path: &str| fs::read_to_string(at(path)).unwrap();
        assert_eq!(
            (text("inside/srv/new/file"), text("inside/srv/changed")),
            ("file".into(), "changed".into())
        );
        assert_eq!(fs::read_link(at("inside/srv/link")).unwrap(), Path::new("/nowhere"));
        assert_eq!(fs::metadata(at("inside/srv/new/file")).unwrap().uid(), uid);
        assert!(!at("inside/srv/gone").exists() && !at("inside/srv/old").exists());
        assert_eq!(text("outside/secret"), "secret");
        assert!(apply(root(), &[], archive.as_slice(), "nobody-here").is_err());
    }

    #[test]
    fn no_link_of_the_users_is_followed() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("host")).unwrap();
        fs::create_dir_all(top.path().join("outside")).unwrap();
        fs::write(top.path().join("outside/secret"), "secret").unwrap();
        symlink("../outside", top.path().join("host/out")).unwrap();
        let change = |path: &str| Change {
            root: top.path().join("host"),
            path: path.into(),
            inside: PathBuf::from("/x"),
        };
        assert!(!change("out/secret").is_there().unwrap(), "it is not beneath the root");
        assert!(change("out").is_there().unwrap());
        let mut archive = Vec::new();
        write([change("out"), change("out/secret")].iter(), &mut archive).unwrap();
        assert!(!archive.windows(6).any(|bytes| bytes == b"secret"));
    }
}
