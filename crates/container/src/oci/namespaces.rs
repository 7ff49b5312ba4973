//! Which namespaces are made, which are joined, and what is set in new ones.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType as Kind, Spec};
use rustix::fs::{Mode, OFlags};
use sys::process::namespace;

use super::error::Error;
use crate::idmap::{Extent, IdMap};

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The namespaces of a container.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Namespaces {
    /// Made anew, [`namespace`] values or-ed.
    pub(super) new: u64,
    /// Joined, by their kind; the user namespace comes first, because it owns the others.
    pub(super) joined: Vec<(u64, PathBuf)>,
    /// Ids of a new user namespace.
    pub(super) ids: Option<IdMap>,
    /// Clocks of a new time namespace, lines of `/proc/PID/timens_offsets`.
    pub(super) time_offsets: String,
}

/// The path of a namespace to join. Some engines write an empty one for a new namespace.
pub(super) fn path(namespace: &LinuxNamespace) -> Option<&Path> {
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

fn flag(kind: Kind) -> u64 {
    match kind {
        Kind::Mount => namespace::MOUNT,
        Kind::Cgroup => namespace::CGROUP,
        Kind::Uts => namespace::UTS,
        Kind::Ipc => namespace::IPC,
        Kind::User => namespace::USER,
        Kind::Pid => namespace::PID,
        Kind::Network => namespace::NETWORK,
        Kind::Time => namespace::TIME,
    }
}

/// The extents of a mapping as `config.json` has it.
pub(super) fn extents(field: &str, mappings: &[LinuxIdMapping]) -> Result<Vec<Extent>, Error> {
    let mut extents: Vec<Extent> = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let extent =
            Extent { inside: mapping.container_id(), outside: mapping.host_id(), count: mapping.size() };
        let end = |start: u32| start.checked_add(extent.count);
        let (Some(inside_end), Some(outside_end)) = (end(extent.inside), end(extent.outside)) else {
            return Err(Error::invalid(format!("{field}[{index}]"), "ends above the highest id"));
        };
        if extent.count == 0 {
            return Err(Error::invalid(format!("{field}[{index}].size"), "is 0"));
        }
        let overlaps = extents.iter().any(|other| {
            (other.inside < inside_end && extent.inside < other.inside + other.count)
                || (other.outside < outside_end && extent.outside < other.outside + other.count)
        });
        if overlaps {
            return Err(Error::invalid(format!("{field}[{index}]"), "overlaps another one"));
        }
        extents.push(extent);
    }
    Ok(extents)
}

impl Namespaces {
    /// What `spec` asks for; it has been checked.
    pub(super) fn resolve(spec: &Spec) -> Result<Self, Error> {
        let Some(linux) = spec.linux() else { return Ok(Self::default()) };
        let mut resolved = Self::default();
        for namespace in linux.namespaces().iter().flatten() {
            let flag = flag(namespace.typ());
            match path(namespace) {
                Some(path) => resolved.joined.push((flag, path.to_owned())),
                None => resolved.new |= flag,
            }
        }
        resolved.joined.sort_by_key(|(flag, _)| *flag != namespace::USER);
        if resolved.new & namespace::USER != 0 {
            let map =
                |field, mappings: &Option<Vec<_>>| extents(field, mappings.as_deref().unwrap_or_default());
            resolved.ids = Some(IdMap {
                uids: map("linux.uidMappings", linux.uid_mappings())?,
                gids: map("linux.gidMappings", linux.gid_mappings())?,
                direct: true,
            });
        }
        let offsets: BTreeMap<_, _> = linux.time_offsets().iter().flatten().collect();
        for (clock, offset) in offsets {
            let clock = match clock.as_str() {
                "monotonic" | "boottime" => clock,
                _ => return Err(Error::invalid(format!("linux.timeOffsets.{clock}"), "is no such clock")),
            };
            let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            resolved.time_offsets.push_str(&format!("{clock} {seconds} {nanoseconds}\n"));
        }
        Ok(resolved)
    }

    /// Adds the user namespace that an ordinary user needs for all others, as crun does: they are root in it, and have
    /// their subordinate ids if there are any.
    pub(super) fn for_an_ordinary_user(&mut self) {
        if self.another_user() {
            return;
        }
        self.new |= namespace::USER;
        let own = |outside| vec![Extent { inside: 0, outside, count: 1 }];
        self.ids = Some(IdMap::current().unwrap_or_else(|_| IdMap {
            uids: own(rustix::process::geteuid().as_raw()),
            gids: own(rustix::process::getegid().as_raw()),
            direct: true,
        }));
    }

    /// All kinds that are made or joined.
    pub(super) fn all(&self) -> u64 {
        self.joined.iter().fold(self.new, |all, (kind, _)| all | kind)
    }

    /// Whether the container has a namespace of this kind for itself.
    pub(super) fn makes(&self, kind: u64) -> bool {
        self.new & kind != 0
    }

    /// Whether the container stands in another user namespace than the runtime.
    pub(super) fn another_user(&self) -> bool {
        self.makes(namespace::USER) || self.joined.iter().any(|(kind, _)| *kind == namespace::USER)
    }

    /// Opens the namespaces to join.
    pub(super) fn open(&self) -> Result<Vec<(u64, OwnedFd)>, Error> {
        self.joined
            .iter()
            .map(|(kind, path)| {
                let fail = Error::system(format!("open namespace {}", path.display()));
                let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
                match fd {
                    Ok(fd)
                        if rustix::fs::fstatfs(&fd)
                            .is_ok_and(|system| system.f_type as u64 == NSFS_MAGIC) =>
                    {
                        Ok((*kind, fd))
                    }
                    Ok(_) => {
                        Err(Error::invalid("linux.namespaces", format!("{} is no namespace", path.display())))
                    }
                    Err(errno) => Err(fail(errno.into())),
                }
            })
            .collect()
    }
}

/// Writes the offsets of the time namespace that this process's children will be in.
///
/// # Errors
/// `ERANGE` for a clock that would be negative or too far ahead.
pub(super) fn write_time_offsets(lines: &str) -> io::Result<()> {
    if lines.is_empty() { Ok(()) } else { fs::write("/proc/self/timens_offsets", lines) }
}
