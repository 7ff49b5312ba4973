//! Carrying out the list of mounts, in the new mount namespace, before the root is changed.
//!
//! Every path of the sandbox is resolved beneath its root with openat2(2) and used as a descriptor from then
//! on, so a symbolic link in the image, or one that is swapped in while we work, cannot lead out of it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use init::report::{Failure, Stage};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags};
use sys::mount::attribute;

use crate::sandbox::{Mount, MountSource, Root};
use crate::volume;

/// Where the root file system is mounted, relative to the data directory, in the new mount namespace only.
pub const ROOTFS: &str = "mnt/root";
/// Where generated files live, likewise.
pub const SCRATCH: &str = "mnt/scratch";

/// Mounts the overlay on [`ROOTFS`]; the working directory is the data directory.
pub(crate) fn root(root: &Root) -> Result<OwnedFd, Failure> {
    let fail = |what: String| move |errno: Errno| Failure::new(Stage::Rootfs, what, errno);
    let layers = lower_directories(&root.layers);
    let options =
        format!("userxattr,lowerdir={},upperdir={},workdir={}", layers.join(":"), root.upper, root.work);
    let options = std::ffi::CString::new(options).map_err(|_| fail("a layer's name".into())(Errno::INVAL))?;
    rustix::mount::mount("overlay", ROOTFS, "overlay", MountFlags::NODEV, Some(options.as_c_str()))
        .map_err(fail(format!("overlay of {} layers", layers.len())))?;
    rustix::fs::open(ROOTFS, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(fail("open it".into()))
}

/// The topmost first, as overlayfs wants them. It refuses one that comes twice, which two instructions with the same
/// effect make; the lower of the two changes nothing that the upper does not change in the same way.
fn lower_directories(layers: &[String]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    layers.iter().rev().map(String::as_str).filter(|layer| seen.insert(*layer)).collect()
}

/// Mounts the file system for generated files on [`SCRATCH`]. Some of them can be written to inside, so that it has
/// a limit.
pub(crate) fn scratch() -> Result<(), Failure> {
    rustix::mount::mount(
        "tmpfs",
        SCRATCH,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=755,size=64m"),
    )
    .map_err(|e| Failure::new(Stage::Mount, "generated files", e))
}

/// Carries out one mount below the root `root`. `detached` are the mounts that came with the launch.
pub(crate) fn one(root: BorrowedFd<'_>, mount: &Mount, detached: &[OwnedFd]) -> Result<(), Failure> {
    attach(root, mount, detached).map_err(|error| Failure::new(Stage::Mount, &mount.target, error))
}

fn attach(root: BorrowedFd<'_>, mount: &Mount, detached: &[OwnedFd]) -> io::Result<()> {
    let (fs, recursive) = match &mount.source {
        MountSource::Symlink(to) => return symlink(root, &mount.target, to),
        MountSource::Proc => (new_fs("proc", &[])?, false),
        MountSource::Sysfs => (new_fs("sysfs", &[])?, false),
        MountSource::Mqueue => (new_fs("mqueue", &[])?, false),
        MountSource::Cgroup => (new_fs("cgroup2", &[])?, false),
        MountSource::Devpts => {
            (new_fs("devpts", &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")])?, false)
        }
        MountSource::Tmpfs { size, mode, uid, gid } => {
            let mode = format!("{mode:o}");
            let (uid, gid) = (uid.to_string(), gid.to_string());
            let size = size.map(|size| size.to_string());
            let mut options = vec![("mode", mode.as_str()), ("uid", uid.as_str()), ("gid", gid.as_str())];
            options.extend(size.as_deref().map(|size| ("size", size)));
            (new_fs("tmpfs", &options)?, false)
        }
        MountSource::Device(name) => (clone_tree(CWD, Path::new("/dev").join(name), false)?, false),
        MountSource::Bind(path) => (clone_tree(CWD, path, true)?, true),
        MountSource::Descriptor(index) => {
            let fd = detached.get(*index).ok_or(Errno::BADF)?;
            (fd.try_clone()?, true)
        }
        MountSource::Volume { path, empty, subpath } => {
            volume::prepare(root, &mount.target, path, *empty)?;
            (volume::tree(path, subpath.as_deref())?, false)
        }
        MountSource::File { content, mode, uid, gid } => {
            let path = generated(&mount.target, content, *mode, *uid, *gid)?;
            (clone_tree(CWD, &path, false)?, false)
        }
    };
    if mount.fill {
        volume::fill(root, &mount.target, fs.as_fd())?;
    }
    if mount.attributes != 0 {
        sys::mount::set_attributes(fs.as_fd(), mount.attributes, recursive)?;
    }
    let directory = FileType::from_raw_mode(rustix::fs::fstat(&fs)?.st_mode) == FileType::Directory;
    let mut target = ensure(root, &mount.target, directory)?;
    if matches!(mount.source, MountSource::Proc | MountSource::Sysfs | MountSource::Devpts) {
        target = without_links(root, &mount.target)?;
    }
    move_onto(fs.as_fd(), target.as_fd())
}

/// The mount point `path`, to which no symbolic link led: a `/proc` that is one in the image would be mounted elsewhere,
/// where no cover finds it (CVE-2019-16884, CVE-2019-19921). What was opened before this may have been reached by a
/// link that is gone now.
pub(crate) fn without_links(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    loop {
        match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return Ok(other?),
        }
    }
}

/// A root and what was mounted beneath it, in order, by the mount points. What is beneath one of those is looked up from
/// it and not by the names above it: who shares the root file system could have renamed them, and a cover would miss
/// what is mounted.
#[derive(Debug)]
pub(crate) struct Mounted<'a> {
    pub(crate) root: BorrowedFd<'a>,
    pub(crate) below: Vec<(&'a str, OwnedFd)>,
}

impl Mounted<'_> {
    fn find(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        let beneath = |point: &str| path.strip_prefix(point.trim_end_matches('/'))?.strip_prefix('/');
        // A later mount may have covered an earlier one.
        match self.below.iter().rev().find_map(|(point, fs)| Some((fs, beneath(point)?))) {
            Some((fs, rest)) if rest.split('/').all(|name| !["", ".."].contains(&name)) => {
                existing(fs.as_fd(), rest)
            }
            _ => existing(self.root, path),
        }
    }
}

/// Hides `path` behind an empty directory, or behind the sandbox's own `/dev/null`. A path that is not there
/// needs no hiding.
pub(crate) fn mask(mounted: &Mounted<'_>, path: &str) -> Result<(), Failure> {
    let cover = || -> io::Result<()> {
        let Some(target) = mounted.find(path)? else { return Ok(()) };
        let cover = if FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode) == FileType::Directory {
            let empty = new_fs("tmpfs", &[("mode", "555"), ("size", "0")])?;
            sys::mount::set_attributes(empty.as_fd(), attribute::RDONLY, false)?;
            empty
        } else {
            clone_fd(null_device(mounted.root)?.as_fd())?
        };
        move_onto(cover.as_fd(), target.as_fd())
    };
    cover().map_err(|error| Failure::new(Stage::Mount, format!("a cover over {path}"), error))
}

/// The sandbox's `/dev/null`, if that is what is there: a link to another file would put that file over what is to be
/// hidden, with the right to write to it (CVE-2025-31133).
fn null_device(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let null = existing(root, "/dev/null")?.ok_or(Errno::NOENT)?;
    let stat = rustix::fs::fstat(&null)?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if device && stat.st_rdev == rustix::fs::makedev(1, 3) { Ok(null) } else { Err(Errno::NODEV.into()) }
}

/// Makes what is at `path` read-only, in a mount of its own.
pub(crate) fn make_readonly(mounted: &Mounted<'_>, path: &str) -> Result<(), Failure> {
    let cover = || -> io::Result<()> {
        let Some(target) = mounted.find(path)? else { return Ok(()) };
        let copy = clone_fd(target.as_fd())?;
        sys::mount::set_attributes(copy.as_fd(), attribute::RDONLY, true)?;
        move_onto(copy.as_fd(), target.as_fd())
    };
    cover().map_err(|error| Failure::new(Stage::Mount, format!("{path} read-only"), error))
}

fn new_fs(kind: &str, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::empty();
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

pub(crate) fn clone_tree(
    directory: BorrowedFd<'_>,
    path: impl AsRef<Path>,
    recursive: bool,
) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(directory, path.as_ref(), flags)?)
}

pub(crate) fn clone_fd(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(fd, "", flags)?)
}

pub(crate) fn move_onto(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// What is at `path` beneath `root`, symbolic links resolved as if `root` were `/`.
pub(crate) fn existing(root: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        let opened = rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
        match opened {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::NOENT) => return Ok(None),
            // A rename somewhere raced with the look-up (openat2(2)).
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How many links that lead nowhere are followed on the way to a mount point, each of no more than 255 bytes.
const DANGLING: u8 = 8;

/// The mount point `path` beneath `root`, made with all its parents when it is missing. Where a link leads nowhere,
/// what it names is made: images have such links, `/etc/resolv.conf` for one.
pub(crate) fn ensure(root: BorrowedFd<'_>, path: &str, directory: bool) -> io::Result<OwnedFd> {
    ensure_through(root, path, directory, DANGLING)
}

fn ensure_through(root: BorrowedFd<'_>, path: &str, directory: bool, links: u8) -> io::Result<OwnedFd> {
    if let Some(found) = existing(root, path)? {
        return Ok(found);
    }
    let (above, name) = split(path)?;
    let parent = ensure_through(root, above, true, links)?;
    let made = if directory {
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
    } else {
        rustix::fs::mknodat(&parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
    };
    if !matches!(made, Ok(()) | Err(Errno::EXIST)) {
        made?;
    }
    let there = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = rustix::fs::openat(&parent, name, there, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&there)?.st_mode) != FileType::Symlink {
        return Ok(there);
    }
    // The text of procfs's own links is a description, and no path in here.
    if rustix::fs::fstatfs(&there)?.f_type as u64 == init::procfs::MAGIC {
        return Err(Errno::LOOP.into());
    }
    let to = rustix::fs::readlinkat(&there, "", Vec::new())?;
    let to = to.to_str().ok().filter(|to| to.len() <= 255).ok_or(Errno::NAMETOOLONG)?;
    let links = links.checked_sub(1).ok_or(Errno::LOOP)?;
    ensure_through(root, &joined(above, to), directory, links)
}

/// What the link target `to` means in the directory `above`; above the root is the root.
fn joined(above: &str, to: &str) -> String {
    let mut names: Vec<&str> = if to.starts_with('/') { Vec::new() } else { above.split('/').collect() };
    for name in to.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.retain(|name| !name.is_empty());
    format!("/{}", names.join("/"))
}

fn symlink(root: BorrowedFd<'_>, path: &str, to: &str) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let parent = ensure(root, parent, true)?;
    Ok(rustix::fs::symlinkat(to, &parent, name)?)
}

pub(crate) fn split(path: &str) -> io::Result<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
    if name.is_empty() || name == ".." || name == "." {
        return Err(Errno::INVAL.into());
    }
    Ok((if parent.is_empty() { "/" } else { parent }, name))
}

/// Writes a generated file and returns its path, relative to the data directory.
fn generated(target: &str, content: &[u8], mode: u32, uid: u32, gid: u32) -> io::Result<String> {
    let path =
        format!("{SCRATCH}/{}", target.trim_start_matches('/').replace('%', "%25").replace('/', "%2F"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))?;
    io::Write::write_all(&mut std::fs::File::from(file.try_clone()?), content)?;
    let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::chownat(&file, "", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    Ok(path)
}

/// Makes the directory `path` beneath `root` with its parents, if it is missing.
pub(crate) fn ensure_directory(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    if path.is_empty() || path == "/" { Ok(()) } else { ensure(root, path, true).map(drop) }
}

#[cfg(test)]
mod tests {
    use super::{joined, lower_directories};

    #[test]
    fn a_layer_is_mounted_once() {
        let layers = ["l/a", "l/b", "l/c", "l/b"].map(str::to_owned);
        assert_eq!(lower_directories(&layers), ["l/b", "l/c", "l/a"]);
    }

    #[test]
    fn links_end_beneath_the_root() {
        assert_eq!(joined("/etc", "../run/resolve/stub.conf"), "/run/resolve/stub.conf");
        assert_eq!(joined("/etc", "/run/./x//y/"), "/run/x/y");
        assert_eq!(joined("/", "../../.."), "/");
        assert_eq!(joined("/a/b", "c"), "/a/b/c");
    }
}
