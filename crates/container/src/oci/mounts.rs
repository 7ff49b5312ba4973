//! Mounts of `config.json`: options to attributes, and carrying them out beneath the root.
//!
//! The options are those of the specification ("Linux mount options" of `config.md`); whatever is none of them goes to
//! the file system as it stands.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use init::report::{Failure, Stage};
use oci_spec::runtime::Mount as Config;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags};
use sys::mount::{Change, attribute, propagation};

use super::error::Error;
use super::namespaces::extents;
use crate::idmap::IdMap;
use crate::mounts::{clone_fd, clone_tree, ensure, existing, move_onto, without_links};
use crate::volume;

/// One mount.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mount {
    /// Where, as an absolute path inside.
    pub(super) target: String,
    /// What.
    pub(super) source: Source,
    /// Attributes of the mount itself.
    pub(super) change: Change,
    /// Attributes of it and all below.
    pub(super) recursive: Change,
    /// Propagation types, in order; each with whether it holds for all below.
    pub(super) propagation: Vec<(u64, bool)>,
    /// A new tmpfs begins with what was there before.
    pub(super) copy_up: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    /// A file or directory of the host.
    Bind {
        /// Its path.
        path: PathBuf,
        /// With all that is mounted below it.
        recursive: bool,
        /// The owners of its files are mapped.
        ids: Ids,
    },
    /// A new file system.
    New {
        /// Its type, filesystems(5).
        kind: String,
        /// Its device, or a name without meaning.
        name: Option<String>,
        /// Flags of the whole file system, `MS_` values.
        flags: MountFlags,
        /// Its own options, `key` or `key=value`.
        options: Vec<String>,
    },
    /// The hierarchy of cgroups, whatever this host has.
    Cgroup,
    /// Nothing new: the attributes of what is mounted there change.
    Remount,
}

/// Whether the owners of a bind mount's files are mapped (`idmap`, `ridmap`).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ids {
    /// They are not.
    Unmapped,
    /// By the container's user namespace.
    Container {
        /// All below, too.
        recursive: bool,
    },
    /// By a map of its own.
    Own {
        /// The map.
        map: IdMap,
        /// All below, too.
        recursive: bool,
    },
}

/// Options that change attributes: name without the `r` of recursive ones, bits to set, bits to clear.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", attribute::RDONLY, 0),
    ("rw", 0, attribute::RDONLY),
    ("nosuid", attribute::NOSUID, 0),
    ("suid", 0, attribute::NOSUID),
    ("nodev", attribute::NODEV, 0),
    ("dev", 0, attribute::NODEV),
    ("noexec", attribute::NOEXEC, 0),
    ("exec", 0, attribute::NOEXEC),
    ("nodiratime", attribute::NODIRATIME, 0),
    ("diratime", 0, attribute::NODIRATIME),
    ("nosymfollow", attribute::NOSYMFOLLOW, 0),
    ("symfollow", 0, attribute::NOSYMFOLLOW),
    // Access times are one field of four values: the old one is cleared (mount_setattr(2)).
    ("relatime", 0, attribute::ATIME),
    ("norelatime", attribute::STRICTATIME, attribute::ATIME),
    ("noatime", attribute::NOATIME, attribute::ATIME),
    ("atime", 0, attribute::ATIME),
    ("strictatime", attribute::STRICTATIME, attribute::ATIME),
    ("nostrictatime", 0, attribute::ATIME),
];

/// Options of whole file systems: name, flag, whether it is set or cleared.
const SUPERBLOCK: &[(&str, MountFlags, bool)] = &[
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("lazytime", MountFlags::LAZYTIME, true),
    ("nolazytime", MountFlags::LAZYTIME, false),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, true),
    ("nomand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, false),
    ("silent", MountFlags::SILENT, true),
    ("loud", MountFlags::SILENT, false),
    ("iversion", MountFlags::from_bits_retain(1 << 23), true),
    ("noiversion", MountFlags::from_bits_retain(1 << 23), false),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("private", propagation::PRIVATE),
    ("shared", propagation::SHARED),
    ("slave", propagation::SLAVE),
    ("unbindable", propagation::UNBINDABLE),
];

/// Every option that is understood here, for `features`.
pub fn options() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().flat_map(|(name, _, _)| [(*name).to_owned(), format!("r{name}")]);
    let superblock = SUPERBLOCK.iter().map(|(name, _, _)| (*name).to_owned());
    let propagation = PROPAGATION.iter().flat_map(|(name, _)| [(*name).to_owned(), format!("r{name}")]);
    let others = ["bind", "rbind", "defaults", "remount", "tmpcopyup", "idmap", "ridmap"].map(str::to_owned);
    let mut all: Vec<String> = attributes.chain(superblock).chain(propagation).chain(others).collect();
    all.sort();
    all
}

/// The propagation type that a word names, and whether it holds for all below.
pub(super) fn propagation_of(word: &str) -> Option<(u64, bool)> {
    PROPAGATION.iter().find_map(|(name, kind)| {
        if word == *name {
            return Some((*kind, false));
        }
        (word.strip_prefix('r') == Some(name)).then_some((*kind, true))
    })
}

impl Mount {
    /// What `config`, the mount of this index, asks for.
    pub(super) fn resolve(index: usize, config: &Config, bundle: &Path) -> Result<Self, Error> {
        let field = |name: &str| format!("mounts[{index}].{name}");
        let mut target = text(config.destination(), || field("destination"))?;
        if !target.starts_with('/') {
            // Allowed by older versions of the specification.
            target.insert(0, '/');
        }
        let mut mount = Self {
            target,
            source: Source::Remount,
            change: Change::default(),
            recursive: Change::default(),
            propagation: Vec::new(),
            copy_up: false,
        };
        let (mut bind, mut remount, mut idmap, mut flags, mut rest) =
            (None, false, None, MountFlags::empty(), Vec::new());
        for option in config.options().iter().flatten() {
            if mount.attribute(option) {
                continue;
            }
            match option.as_str() {
                "bind" => bind = bind.or(Some(false)),
                "rbind" => bind = Some(true),
                "remount" => remount = true,
                "defaults" => {}
                "tmpcopyup" => mount.copy_up = true,
                "idmap" => idmap = Some(false),
                "ridmap" => idmap = Some(true),
                other => match SUPERBLOCK.iter().find(|(name, _, _)| *name == other) {
                    Some((_, flag, true)) => flags |= *flag,
                    Some((_, flag, false)) => flags -= *flag,
                    None => rest.push(option.clone()),
                },
            }
        }
        let kind = config.typ().as_deref().unwrap_or("");
        if kind == "bind" && bind.is_none() {
            bind = Some(false);
        }
        let own = match (config.uid_mappings(), config.gid_mappings()) {
            (Some(uids), Some(gids)) if !uids.is_empty() => Some(IdMap {
                uids: extents(&field("uidMappings"), uids)?,
                gids: extents(&field("gidMappings"), gids)?,
                direct: true,
            }),
            _ => None,
        };
        let ids = match (own, idmap) {
            (Some(map), recursive) => Ids::Own { map, recursive: recursive == Some(true) },
            (None, Some(recursive)) => Ids::Container { recursive },
            (None, None) => Ids::Unmapped,
        };
        if bind.is_none() && ids != Ids::Unmapped {
            return Err(Error::unsupported(field("uidMappings"), "only bind mounts can be mapped"));
        }
        mount.source = match bind {
            _ if remount => {
                if let Some(option) = rest.first() {
                    return Err(Error::unsupported(
                        field("options"),
                        format!("`{option}` cannot change in a remount"),
                    ));
                }
                Source::Remount
            }
            Some(recursive) => {
                let source = config.source().as_ref().filter(|source| !source.as_os_str().is_empty());
                let source = source.ok_or_else(|| Error::invalid(field("source"), "is missing"))?;
                // What is mounted already has no options but these; engines pass those of a file system on.
                Source::Bind { path: bundle.join(source), recursive, ids }
            }
            None if kind.is_empty() => return Err(Error::invalid(field("type"), "is missing")),
            None if kind == "cgroup" || kind == "cgroup2" => Source::Cgroup,
            None => {
                let name =
                    config.source().as_ref().map(|source| text(source, || field("source"))).transpose()?;
                Source::New { kind: kind.to_owned(), name, flags, options: rest }
            }
        };
        if mount.copy_up && !matches!(&mount.source, Source::New { kind, .. } if kind == "tmpfs") {
            return Err(Error::invalid(field("options"), "tmpcopyup is for a tmpfs"));
        }
        Ok(mount)
    }

    /// With an SELinux context for its files, where the file system has none of its own for them (mount(8), "context").
    pub(super) fn labelled(mut self, label: Option<&str>) -> Self {
        if let (Some(label), Source::New { kind, options, .. }) = (label, &mut self.source)
            && !matches!(kind.as_str(), "proc" | "sysfs")
        {
            options.push(format!("context={label}"));
        }
        self
    }

    /// Takes an option that is an attribute or a propagation type.
    fn attribute(&mut self, option: &str) -> bool {
        let find = |name: &str| ATTRIBUTES.iter().find(|(known, _, _)| *known == name);
        if let Some((_, set, clear)) = find(option) {
            self.change.apply(*set, *clear);
        } else if let Some((_, set, clear)) = option.strip_prefix('r').and_then(find) {
            self.recursive.apply(*set, *clear);
        } else if let Some(propagation) = propagation_of(option) {
            self.propagation.push(propagation);
        } else {
            return false;
        }
        true
    }

    /// Whether it is one of the file systems whose place decides what is covered and what is not.
    fn is_special(&self) -> bool {
        matches!(&self.source, Source::New { kind, .. } if kind == "proc" || kind == "sysfs")
    }
}

fn text(path: &Path, field: impl FnOnce() -> String) -> Result<String, Error> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::invalid(field(), "is not UTF-8"))
}

/// What a mount is carried out with.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    /// The root file system of the container, before the root is changed.
    pub(super) root: BorrowedFd<'a>,
    /// Bind mounts that the parent has opened, by their place in the list.
    pub(super) opened: &'a [Option<OwnedFd>],
    /// The container has a user namespace of its own.
    pub(super) another_user: bool,
    /// The container has a cgroup namespace of its own.
    pub(super) own_cgroups: bool,
}

/// Carries out the mount of this index; what is mounted there then.
pub(super) fn carry_out(index: usize, mount: &Mount, around: &Surroundings<'_>) -> Result<OwnedFd, Failure> {
    attach(index, mount, around).map_err(|error| {
        let link = mount.is_special() && error.raw_os_error() == Some(libc::ELOOP);
        let what = match &mount.source {
            Source::New { kind, .. } if link => {
                format!("{kind} on {}, a link: it must be mounted on ordinary directory", mount.target)
            }
            Source::Bind { path, .. } => format!("{} on {}", path.display(), mount.target),
            Source::New { kind, .. } => format!("{kind} on {}", mount.target),
            Source::Cgroup => format!("cgroup on {}", mount.target),
            Source::Remount => format!("{} again", mount.target),
        };
        Failure::new(Stage::Mount, what, error)
    })
}

fn attach(index: usize, mount: &Mount, around: &Surroundings<'_>) -> io::Result<OwnedFd> {
    let fs = match &mount.source {
        Source::Remount => {
            let target = existing(around.root, &mount.target)?.ok_or(Errno::NOENT)?;
            finish(mount, target.as_fd())?;
            return Ok(target);
        }
        Source::Bind { path, recursive, .. } => match around.opened.get(index) {
            Some(Some(fd)) => fd.try_clone()?,
            _ => clone_tree(CWD, path, *recursive)?,
        },
        Source::New { kind, name, flags, options } => {
            match new_file_system(kind, name.as_deref(), *flags, options, around.another_user) {
                // Where the network namespace is the host's, a user namespace has no right to a new one (as crun does).
                Err(error) if kind == "sysfs" && error.raw_os_error() == Some(libc::EPERM) => {
                    let tree = clone_tree(CWD, "/sys", true)?;
                    // What a new one would not have below it is no more open than the rest.
                    let strict = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
                    sys::mount::set_attributes(tree.as_fd(), mount.change.set & strict, true)?;
                    tree
                }
                other => other?,
            }
        }
        Source::Cgroup => return cgroups(mount, around),
    };
    let directory = FileType::from_raw_mode(rustix::fs::fstat(&fs)?.st_mode) == FileType::Directory;
    let mut target = ensure(around.root, &mount.target, directory)?;
    if mount.is_special() {
        target = without_links(around.root, &mount.target)?;
    }
    if mount.copy_up {
        copy_up(target.as_fd(), fs.as_fd())?;
    }
    before(mount, fs.as_fd())?;
    move_onto(fs.as_fd(), target.as_fd())?;
    after(mount, fs.as_fd())?;
    Ok(fs)
}

fn finish(mount: &Mount, fs: BorrowedFd<'_>) -> io::Result<()> {
    before(mount, fs)?;
    after(mount, fs)
}

/// Attributes hold from the first moment that the mount can be seen.
fn before(mount: &Mount, fs: BorrowedFd<'_>) -> io::Result<()> {
    mount.change.carry_out(fs, false)?;
    mount.recursive.carry_out(fs, true)
}

/// Sets the attributes of a mount that was made without some of them.
pub(super) fn change_again(root: BorrowedFd<'_>, mount: &Mount) -> Result<(), Failure> {
    let change = || -> io::Result<()> {
        let there = existing(root, &mount.target)?.ok_or(Errno::NOENT)?;
        mount.change.carry_out(there.as_fd(), false)
    };
    change().map_err(|error| Failure::new(Stage::Mount, format!("{} again", mount.target), error))
}

fn after(mount: &Mount, fs: BorrowedFd<'_>) -> io::Result<()> {
    for (kind, recursive) in &mount.propagation {
        sys::mount::set_propagation(fs, *kind, *recursive)?;
    }
    Ok(())
}

fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let path = |fd: BorrowedFd<'_>| PathBuf::from(format!("/proc/self/fd/{}/.", fd.as_raw_fd()));
    volume::copy_into(&path(from), &path(to))
}

fn new_file_system(
    kind: &str,
    name: Option<&str>,
    flags: MountFlags,
    options: &[String],
    another_user: bool,
) -> io::Result<OwnedFd> {
    match configured(kind, name, flags, options) {
        // The group of terminals may have no number in the user namespace.
        Err(error) if another_user && kind == "devpts" && error.raw_os_error() == Some(libc::EINVAL) => {
            let without: Vec<String> = options.iter().filter(|o| !o.starts_with("gid=")).cloned().collect();
            configured(kind, name, flags, &without)
        }
        other => other,
    }
}

fn configured(kind: &str, name: Option<&str>, flags: MountFlags, options: &[String]) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fs = context.as_fd();
    if let Some(name) = name {
        rustix::mount::fsconfig_set_string(fs, "source", name)?;
    }
    for (flag, option) in [
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
        (MountFlags::LAZYTIME, "lazytime"),
        (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, "mand"),
    ] {
        if flags.contains(flag) {
            rustix::mount::fsconfig_set_flag(fs, option)?;
        }
    }
    for option in options {
        match option.split_once('=') {
            // The new interface takes no longer values (fsconfig(2)).
            Some((_, value)) if value.len() > 255 => return mounted_aside(kind, name, flags, options),
            Some((key, value)) => rustix::mount::fsconfig_set_string(fs, key, value)?,
            None => rustix::mount::fsconfig_set_flag(fs, option.as_str())?,
        }
    }
    rustix::mount::fsconfig_create(fs)?;
    Ok(rustix::mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// A file system mounted by mount(2), whose options may be a page long, and taken off its place again.
fn mounted_aside(
    kind: &str,
    name: Option<&str>,
    flags: MountFlags,
    options: &[String],
) -> io::Result<OwnedFd> {
    let data = CString::new(options.join(","))?;
    // A place that nobody else sees: the root of this mount namespace, which is left soon.
    rustix::mount::mount(name.unwrap_or(kind), "/proc", kind, flags, Some(data.as_c_str()))?;
    let copy = clone_tree(CWD, "/proc", false);
    rustix::mount::unmount("/proc", rustix::mount::UnmountFlags::DETACH)?;
    copy
}

/// The cgroup v2 hierarchy as the container's cgroup namespace shows it. A host that still has version 1 shows each of
/// its hierarchies in a directory of a tmpfs, as those hosts do.
fn cgroups(mount: &Mount, around: &Surroundings<'_>) -> io::Result<OwnedFd> {
    ensure(around.root, &mount.target, true)?;
    let target = without_links(around.root, &mount.target)?;
    let hierarchies = std::fs::read_to_string("/proc/self/cgroup")?;
    let first: Vec<(&str, &str)> = hierarchies
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .filter(|(controllers, _)| !controllers.is_empty())
        .collect();
    if first.is_empty() {
        let fs = match configured("cgroup2", Some("cgroup2"), MountFlags::empty(), &[]) {
            Ok(fs) => fs,
            // Without a cgroup namespace of one's own, or below a user namespace that may not.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EBUSY)) => {
                clone_tree(CWD, "/sys/fs/cgroup", true)?
            }
            Err(error) => return Err(error),
        };
        before(mount, fs.as_fd())?;
        move_onto(fs.as_fd(), target.as_fd())?;
        after(mount, fs.as_fd())?;
        return Ok(fs);
    }
    let top = configured("tmpfs", Some("tmpfs"), MountFlags::empty(), &["mode=755".to_owned()])?;
    move_onto(top.as_fd(), target.as_fd())?;
    for (controllers, own) in first {
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let place = ensure(top.as_fd(), &format!("/{name}"), true)?;
        let below = if around.own_cgroups { "" } else { own.trim_start_matches('/') };
        let tree = if around.own_cgroups {
            let options: Vec<String> = if controllers == name {
                controllers.split(',').map(str::to_owned).collect()
            } else {
                vec![format!("name={name}"), "none".to_owned()]
            };
            configured("cgroup", Some("cgroup"), MountFlags::empty(), &options)
        } else {
            clone_tree(CWD, Path::new("/sys/fs/cgroup").join(name).join(below), false)
        };
        match tree {
            Ok(tree) => {
                before(mount, tree.as_fd())?;
                move_onto(tree.as_fd(), place.as_fd())?;
            }
            // Not every hierarchy is mounted, or may be seen.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EPERM | libc::ENOENT | libc::EINVAL | libc::EBUSY)
                ) => {}
            Err(error) => return Err(error),
        }
    }
    before(mount, top.as_fd())?;
    after(mount, top.as_fd())?;
    Ok(top)
}

/// The trees of bind mounts, opened by who may reach them: a user namespace's root need not have the right to walk
/// there, and only somebody above it may map owners.
pub(super) fn open_binds(
    mounts: &[Mount],
    open_all: bool,
    map: impl Fn(&Ids) -> Result<Option<OwnedFd>, Error>,
) -> Result<Vec<Option<OwnedFd>>, Error> {
    let mut opened = Vec::new();
    for mount in mounts {
        let Source::Bind { path, recursive, ids } = &mount.source else {
            opened.push(None);
            continue;
        };
        if !open_all && *ids == Ids::Unmapped {
            opened.push(None);
            continue;
        }
        let fail = |what: &str| Error::system(format!("{what} {} for {}", path.display(), mount.target));
        let tree = clone_tree(CWD, path, *recursive).map_err(fail("open"))?;
        sys::mount::set_propagation(tree.as_fd(), propagation::SLAVE, true).map_err(fail("separate"))?;
        if let Some(namespace) = map(ids)? {
            let all = matches!(ids, Ids::Container { recursive: true } | Ids::Own { recursive: true, .. });
            sys::mount::set_idmap(tree.as_fd(), namespace.as_fd(), all).map_err(fail("map the owners of"))?;
        }
        opened.push(Some(tree));
    }
    Ok(opened)
}

/// The root of the container as a detached mount.
pub(super) fn open_root(rootfs: &Path) -> io::Result<OwnedFd> {
    let tree = clone_tree(CWD, rootfs, true)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode) != FileType::Directory {
        return Err(Errno::NOTDIR.into());
    }
    Ok(tree)
}

/// Puts the detached root over the root of this mount namespace, from where it is changed to.
pub(super) fn place_root(tree: BorrowedFd<'_>) -> io::Result<()> {
    let top = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    move_onto(tree, top.as_fd())
}

/// Binds what is open as `fd` to `target` beneath the root; a missing file is made.
pub(super) fn bind_fd(root: BorrowedFd<'_>, fd: BorrowedFd<'_>, target: &str) -> io::Result<()> {
    let tree = clone_fd(fd)?;
    ensure(root, target, false)?;
    // Not what a link leads to that the image has there.
    let place = without_links(root, target)?;
    move_onto(tree.as_fd(), place.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(options: &[&str], kind: &str) -> Result<Mount, Error> {
        let config: Config = serde_json::from_value(serde_json::json!({
            "destination": "/a", "source": "b", "type": kind, "options": options,
        }))
        .unwrap();
        Mount::resolve(0, &config, Path::new("/bundle"))
    }

    #[test]
    fn the_later_option_wins() {
        let mount = resolved(&["ro", "rw", "noatime", "relatime", "rnosuid", "rsuid"], "tmpfs").unwrap();
        assert_eq!(mount.change, Change { set: 0, clear: attribute::RDONLY | attribute::ATIME });
        assert_eq!(mount.recursive, Change { set: 0, clear: attribute::NOSUID });
        let mount = resolved(&["rw", "ro", "relatime", "noatime"], "tmpfs").unwrap();
        let expected = Change { set: attribute::RDONLY | attribute::NOATIME, clear: attribute::ATIME };
        assert_eq!(mount.change, expected);
    }

    #[test]
    fn what_is_no_option_of_ours_goes_to_the_file_system() {
        let mount = resolved(&["nosuid", "size=64k", "mode=1777", "sync"], "tmpfs").unwrap();
        let Source::New { options, flags, .. } = mount.source else { panic!() };
        assert_eq!(options, ["size=64k", "mode=1777"]);
        assert_eq!(flags, MountFlags::SYNCHRONOUS);
    }

    #[test]
    fn binds_are_relative_to_the_bundle() {
        let mount = resolved(&["rbind", "rslave", "private"], "none").unwrap();
        let path = PathBuf::from("/bundle/b");
        assert_eq!(mount.source, Source::Bind { path, recursive: true, ids: Ids::Unmapped });
        assert_eq!(mount.propagation, [(propagation::SLAVE, true), (propagation::PRIVATE, false)]);
        assert!(resolved(&["idmap"], "tmpfs").is_err());
        assert!(resolved(&["remount", "size=1"], "tmpfs").is_err());
        assert!(resolved(&[], "").is_err());
    }
}
