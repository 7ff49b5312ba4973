//! Files between two trees of which at least one is hostile: a container's, while it runs, and the user's.
//!
//! Paths are resolved by the kernel beneath the tree's root, so that no link leads out of it, and used as descriptors
//! from then on. What is copied goes through an archive, whose entries are made below the target one name at a time.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self as kernel, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::archive::{self, Limits, Promise};
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::node;
use crate::tree;

/// Links followed at the end of a path before it counts as a loop (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// What is to be copied.
#[derive(Debug)]
pub struct Found {
    /// The directory that it is in, or itself if it has no name there.
    dir: OwnedFd,
    name: Option<OsString>,
    stat: Stat,
    path: PathBuf,
}

/// Where it goes.
#[derive(Debug)]
pub struct Place {
    dir: OwnedFd,
    /// What it is called there; none where only what is in it goes there.
    name: Option<OsString>,
    fit: Fit,
    path: PathBuf,
}

/// What can go to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Anything,
    /// There is a file.
    NoDirectory,
    /// It was written with a slash at its end, and there is nothing.
    OnlyDirectory,
}

/// The name that what is at `path` has in an archive or in another directory; none for what is only the content of a
/// directory: `dir/.`, and `/`.
pub fn base(path: &Path) -> Option<OsString> {
    let bytes = path.as_os_str().as_bytes();
    let content = bytes == b"." || bytes.ends_with(b"/.");
    path.file_name().filter(|_| !content).map(OsStr::to_owned)
}

/// Whether a path, as written, means a directory.
fn means_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || base(path).is_none()
}

fn open(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match kernel::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename somewhere raced with the look-up (openat2(2)).
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}

fn open_dir(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn refuse(path: &Path, problem: &str) -> Error {
    Error::NotCopied { path: path.to_owned(), problem: problem.to_owned() }
}

/// Finds what is at `path` beneath `root`; with `follow` what a link leads to, and otherwise the link itself.
///
/// # Errors
/// When there is nothing.
pub fn find(root: impl AsFd, path: &Path, follow: bool) -> Result<Found> {
    let fail = |errno: Errno| Error::io("open", path, errno);
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (false, Some(name)) = (means_directory(&at), at.file_name().map(OsStr::to_owned)) else {
            let dir = open_dir(&root, &at).map_err(fail)?;
            let stat = kernel::fstat(&dir).map_err(fail)?;
            return Ok(Found { dir, name: None, stat, path: path.to_owned() });
        };
        let dir = open_dir(&root, parent(&at)).map_err(fail)?;
        let stat = node::stat(&dir, &name).map_err(|cause| Error::io("open", path, cause))?;
        let stat = stat.ok_or_else(|| fail(Errno::NOENT))?;
        if !follow || node::kind(&stat) != FileType::Symlink {
            return Ok(Found { dir, name: Some(name), stat, path: path.to_owned() });
        }
        let target = node::read_link(&dir, &name).map_err(|cause| Error::io("open", path, cause))?;
        // An absolute one takes the place of all of it.
        at = parent(&at).join(target);
    }
    Err(fail(Errno::LOOP))
}

impl Found {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        node::is_dir(&self.stat)
    }

    /// Writes it as an archive in which it is called `name`; without a name only what is in the directory.
    ///
    /// # Errors
    /// When something cannot be read, or is no file that can be copied; when `out` fails.
    pub fn write(&self, name: Option<&OsStr>, out: &mut dyn Write) -> Result<()> {
        let written = match (&self.name, self.is_dir()) {
            (Some(own), true) => {
                let dir =
                    node::open_dir(&self.dir, own).map_err(|cause| Error::io("open", &self.path, cause))?;
                tree::write_dir_tar(&dir, &self.path, name, out)
            }
            (None, _) => tree::write_dir_tar(&self.dir, &self.path, name, out),
            (Some(own), false) => {
                let name = name.unwrap_or(own);
                tree::write_leaf_tar(&self.dir, own, &self.stat, &self.path, name, out)
            }
        };
        written.map_err(|error| match error {
            Error::RefusedFile { path, problem } => refuse(&self.path.join(path), &problem),
            error => error,
        })
    }
}

/// Where something that is called `base` goes when it is copied to `path` beneath `root`: into the directory that is
/// there, or in the place of the file that is there, or to a new name. Without `base` it is the content of a directory.
///
/// # Errors
/// When the directory that it would be in is not there, or what is there is neither file nor directory.
pub fn place(root: impl AsFd, path: &Path, base: Option<OsString>) -> Result<Place> {
    let fail = |errno: Errno| Error::io("open", path, errno);
    match open_dir(&root, path) {
        Ok(dir) => return Ok(Place { dir, name: base, fit: Fit::Anything, path: path.to_owned() }),
        Err(Errno::NOENT) => {}
        Err(Errno::NOTDIR) if !means_directory(path) => {
            let there = find(&root, path, true)?;
            if node::kind(&there.stat) != FileType::RegularFile {
                return Err(refuse(path, "what is there is no regular file"));
            }
            return Ok(Place {
                dir: there.dir,
                name: there.name,
                fit: Fit::NoDirectory,
                path: path.to_owned(),
            });
        }
        Err(errno) => return Err(fail(errno)),
    }
    let name = path.file_name().ok_or_else(|| fail(Errno::NOENT))?.to_owned();
    let dir = open_dir(&root, parent(path)).map_err(fail)?;
    if node::stat(&dir, &name).map_err(|cause| Error::io("open", path, cause))?.is_some() {
        return Err(refuse(path, "the link that is there leads nowhere"));
    }
    let fit = if means_directory(path) { Fit::OnlyDirectory } else { Fit::Anything };
    Ok(Place { dir, name: Some(name), fit, path: path.to_owned() })
}

impl Place {
    /// What it is called there; none where only the content of a directory goes there.
    pub fn name(&self) -> Option<&OsStr> {
        self.name.as_deref()
    }

    /// Whether it is a directory that is there.
    pub fn is_directory(&self) -> bool {
        self.name.is_none()
    }

    /// Refuses what cannot go there.
    ///
    /// # Errors
    /// A directory where a file is; a file where a directory is meant that is not there.
    pub fn accept(&self, is_dir: bool) -> Result<()> {
        match (self.fit, is_dir) {
            (Fit::NoDirectory, true) => {
                Err(refuse(&self.path, "a directory cannot take the place of a file"))
            }
            (Fit::OnlyDirectory, false) => Err(refuse(&self.path, "there is no such directory")),
            _ => Ok(()),
        }
    }

    /// Unpacks an archive that [`Found::write`] wrote with this place's name, or somebody else for a directory. All
    /// files get `owner`, if there is one. With `powers`, programs keep the bits and capabilities by which others have their
    /// owner's rights: a container's are nothing that the user should hand to everybody.
    ///
    /// # Errors
    /// A damaged archive, or one with what cannot be made here.
    pub fn unpack(&self, archive: impl Read + Send, owner: Option<(u32, u32)>, powers: bool) -> Result<()> {
        let directory = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        let writer = LayerWriter::open(&[], &directory)?;
        let (name, limits) = ("the archive", Limits::default());
        let options = archive::Unpack {
            archive: name,
            limits: &limits,
            whiteouts: false,
            below: Path::new(""),
            sha256: None,
            owner,
            powers,
        };
        let promise = Promise { name, packed: None, unpacked: None, hash: false };
        // An empty directory has no entries, which is no mistake here.
        archive::through(archive, &promise, &limits, |tar| archive::entries(tar, &options, &writer, None))
            .map(drop)
    }
}

/// The root of this process.
///
/// # Errors
/// When it cannot be opened.
pub fn own_root() -> Result<OwnedFd> {
    File::open("/").map(OwnedFd::from).map_err(|cause| Error::io("open", "/", cause))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn copy(from: (&OwnedFd, &str), to: (&OwnedFd, &str), follow: bool) -> Result<()> {
        let found = find(from.0, Path::new(from.1), follow)?;
        let place = place(to.0, Path::new(to.1), base(Path::new(from.1)))?;
        place.accept(found.is_dir())?;
        let mut archive = Vec::new();
        found.write(place.name(), &mut archive)?;
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        place.unpack(archive.as_slice(), Some(own), true)
    }

    #[test]
    fn a_copy_goes_where_docker_puts_it() {
        let top = tempfile::tempdir().unwrap();
        let at = |path: &str| top.path().join(path);
        fs::create_dir_all(at("a/dir/sub")).unwrap();
        fs::create_dir_all(at("b/old")).unwrap();
        for (path, text) in
            [("a/file", "file"), ("a/dir/one", "one"), ("a/dir/sub/two", "two"), ("b/there", "old")]
        {
            fs::write(at(path), text).unwrap();
        }
        let (a, b) = (node::open_dir_path(&at("a")).unwrap(), node::open_dir_path(&at("b")).unwrap());
        for (from, to, made, text) in [
            ("/file", "/", "file", "file"),
            ("file", "new", "new", "file"),
            ("/file", "/there", "there", "file"),
            ("/file", "/old", "old/file", "file"),
            ("/dir", "/old/", "old/dir/sub/two", "two"),
            ("/dir", "/fresh", "fresh/one", "one"),
            ("/dir", "/slash/", "slash/one", "one"),
            ("/dir/.", "/old", "old/one", "one"),
            ("/dir/sub/", "/", "sub/two", "two"),
        ] {
            copy((&a, from), (&b, to), false).unwrap();
            assert_eq!(fs::read_to_string(at("b").join(made)).unwrap(), text, "{from} to {to}");
        }
        for (from, to, why) in [
            ("/file", "/none/", "no such directory"),
            ("/file", "/none/x", "No such file"),
            ("/dir", "/there", "place of a file"),
            ("/none", "/", "No such file"),
        ] {
            let error = copy((&a, from), (&b, to), false).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let text = format!("{error} {source}");
            assert!(text.contains(why), "{from} to {to}: {text}");
        }
    }

    #[test]
    fn no_link_leads_out_of_either_tree() {
        let top = tempfile::tempdir().unwrap();
        let at = |path: &str| top.path().join(path);
        for path in ["a/inside", "b", "outside"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::write(at("outside/secret"), "secret").unwrap();
        fs::write(at("a/inside/file"), "file").unwrap();
        let out = at("outside");
        symlink(&out, at("a/absolute")).unwrap();
        symlink("../outside", at("a/relative")).unwrap();
        symlink("../../../../inside/file", at("a/climbs")).unwrap();
        symlink(out.join("secret"), at("a/inside/leaf")).unwrap();
        let (a, b) = (node::open_dir_path(&at("a")).unwrap(), node::open_dir_path(&at("b")).unwrap());
        for path in ["/absolute/secret", "/relative/secret", "/../outside/secret", "/inside/leaf"] {
            assert!(copy((&a, path), (&b, "/"), true).is_err(), "{path}");
        }
        // A link that climbs stays inside, and one that is not followed is copied as it is.
        copy((&a, "/climbs"), (&b, "/followed"), true).unwrap();
        assert_eq!(fs::read_to_string(at("b/followed")).unwrap(), "file");
        copy((&a, "/inside/leaf"), (&b, "/leaf"), false).unwrap();
        assert_eq!(fs::read_link(at("b/leaf")).unwrap(), out.join("secret"));
        // Nothing is written through a link of the target's.
        assert!(copy((&b, "/followed"), (&a, "/absolute/new"), false).is_err());
        assert!(copy((&b, "/followed"), (&a, "/relative/new"), false).is_err());
        assert!(copy((&b, "/followed"), (&a, "/inside/leaf"), false).is_err());
        fs::create_dir(at("b/absolute")).unwrap();
        fs::write(at("b/absolute/new"), "new").unwrap();
        let _either = copy((&b, "/absolute"), (&a, "/"), false);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "what is outside is as it was");
        assert_eq!(fs::read_to_string(out.join("secret")).unwrap(), "secret");
    }
}
