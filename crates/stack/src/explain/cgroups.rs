//! The cgroup of a container: where it is, what it may use and what it uses.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::kernel::{Fact, Kernel};
use crate::stats::Measured;

/// Files of cgroup v2 that are limits, and what they mean.
const LIMITS: [(&str, &str); 11] = [
    ("memory.max", "bytes of memory; beyond it the kernel reclaims, then kills"),
    ("memory.high", "bytes of memory beyond which it is slowed down"),
    ("memory.low", "bytes of memory that are left to it while others have more than theirs"),
    ("memory.swap.max", "bytes of swap"),
    ("cpu.max", "microseconds of processor time in each period of so many"),
    ("cpu.weight", "share among others when there is not enough processor time, 1 to 10000"),
    ("cpuset.cpus", "the processors that it may run on; empty is all"),
    ("pids.max", "processes and threads"),
    ("io.max", "bytes and operations a second of block devices"),
    ("io.weight", "share among others of busy block devices"),
    ("cgroup.freeze", "1 while it is paused"),
];

/// How a host's cgroups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Version 2 only.
    Unified,
    /// Version 2 beside version 1.
    Hybrid,
    /// Version 1 only.
    Version1,
    /// No cgroups at all.
    None,
}

/// The cgroups of a container's first process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cgroup {
    /// How the host mounts them.
    pub layout: Layout,
    /// The hierarchies, and the path in each.
    pub memberships: Fact<Vec<Membership>>,
    /// The directory of the cgroup of version 2, where it can be seen.
    pub directory: Option<PathBuf>,
    /// Whether it is the container's own, and not the one that the stack's processes are in.
    pub own: Option<bool>,
    /// Its limits.
    pub limits: Vec<Limit>,
    /// What the container uses, from the cgroup or else from its processes.
    pub usage: Option<Measured>,
    /// What it means where there is no cgroup of its own, or not of version 2.
    pub notes: Vec<String>,
}

/// A line of `/proc/PID/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Membership {
    /// Number of the hierarchy; 0 is version 2.
    pub hierarchy: u32,
    /// Controllers of a hierarchy of version 1.
    pub controllers: Vec<String>,
    /// The cgroup, below where that hierarchy is mounted.
    pub path: String,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// The file of the cgroup that says so.
    pub file: &'static str,
    /// What it says.
    pub value: String,
    /// What that means.
    pub meaning: &'static str,
}

/// The cgroup of a process beside that of the hub. `missing` is what cannot be had on this host, and why, in words.
pub(super) fn cgroup(kernel: &Kernel, first: u32, hub: u32, missing: &[String]) -> Cgroup {
    let mounted = kernel.text("self", "mountinfo");
    let mounts = mounted.known().map_or("", String::as_str);
    let memberships = |pid: u32| kernel.text(pid, "cgroup").parse("cgroup", |text| parse(&text));
    let unified = |memberships: &Fact<Vec<Membership>>| {
        memberships.known()?.iter().find(|one| one.hierarchy == 0).map(|one| one.path.clone())
    };
    let own = memberships(first);
    let path = unified(&own);
    let is_own = path.as_ref().zip(unified(&memberships(hub))).map(|(path, hub)| *path != hub);
    let directory = path.and_then(|path| directory(mounts, &path)).filter(|directory| directory.is_dir());
    let limits = directory.as_deref().filter(|_| is_own == Some(true)).map(limits).unwrap_or_default();
    let layout = layout(mounts);
    Cgroup {
        layout,
        memberships: own,
        directory,
        own: is_own,
        limits,
        usage: None,
        notes: notes(layout, is_own, missing),
    }
}

fn parse(text: &str) -> Option<Vec<Membership>> {
    let membership = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some(Membership { hierarchy: hierarchy.parse().ok()?, controllers, path: path.to_owned() })
    };
    text.lines().map(membership).collect()
}

/// (type, root, target) of the cgroup file systems.
fn hierarchies(mounts: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    mounts.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let kind = back.split(' ').next()?;
        kind.starts_with("cgroup").then_some((kind, front.next()?, front.next()?))
    })
}

fn layout(mounts: &str) -> Layout {
    let has = |wanted: &str| hierarchies(mounts).any(|(kind, ..)| kind == wanted);
    match (has("cgroup2"), has("cgroup")) {
        (true, false) => Layout::Unified,
        (true, true) => Layout::Hybrid,
        (false, true) => Layout::Version1,
        (false, false) => Layout::None,
    }
}

/// Where a cgroup of version 2 is found.
fn directory(mounts: &str, path: &str) -> Option<PathBuf> {
    let (_, root, target) = hierarchies(mounts).find(|(kind, ..)| *kind == "cgroup2")?;
    let below = Path::new(path).strip_prefix(root).ok()?;
    // `..` stands for what is outside of the cgroup namespace.
    let outside = below.components().any(|part| part == std::path::Component::ParentDir);
    (!outside).then(|| Path::new(target).join(below))
}

fn limits(directory: &Path) -> Vec<Limit> {
    // What is not there is a controller that the cgroup was not given.
    let limit = |(file, meaning)| {
        let value = fs::read_to_string(directory.join(file)).ok()?.trim().replace('\n', "; ");
        Some(Limit { file, value, meaning })
    };
    LIMITS.into_iter().filter_map(limit).collect()
}

fn notes(layout: Layout, own: Option<bool>, missing: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    let layout = match layout {
        Layout::Unified => None,
        Layout::Hybrid => Some(
            "this host has cgroups of both versions: a controller is in one of the two, and those of version 1 cannot \
             be handed to an ordinary user",
        ),
        Layout::Version1 => Some(
            "this host has cgroups of version 1 only: they cannot be handed to an ordinary user, and show no pressure",
        ),
        Layout::None => Some("no cgroups are mounted here: nothing is limited or counted together"),
    };
    notes.extend(layout.map(str::to_owned));
    if own != Some(true) {
        notes.push(
            "it has no cgroup of its own: no limit holds but those of the session it was started from, memory is not \
             shared out when it is short, and use is the sum over its processes"
                .to_owned(),
        );
    }
    notes.extend(missing.iter().cloned());
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
    const V1: &str = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    fn host(mounts: &str, first: &str) -> (tempfile::TempDir, Cgroup) {
        let proc = tempfile::tempdir().unwrap();
        for (pid, cgroup) in [("self", "0::/mine\n"), ("8", "0::/hub\n"), ("9", first)] {
            fs::create_dir_all(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("cgroup"), cgroup).unwrap();
        }
        fs::write(proc.path().join("self/mountinfo"), mounts).unwrap();
        let found = cgroup(&Kernel::at(proc.path()), 9, 8, &["memory: not here".to_owned()]);
        (proc, found)
    }

    #[test]
    fn every_kind_of_host() {
        let (_, unified) = host(V2, "0::/hub/web\n");
        assert_eq!((unified.layout, unified.own), (Layout::Unified, Some(true)));
        assert_eq!(unified.notes, ["memory: not here"]);
        let (_, hybrid) = host(&format!("{V1}{V2}"), "5:memory:/a\n0::/hub\n");
        assert_eq!((hybrid.layout, hybrid.own), (Layout::Hybrid, Some(false)));
        assert_eq!(hybrid.memberships.known().unwrap()[0].controllers, ["memory"]);
        assert!(hybrid.notes[1].contains("no cgroup of its own"), "{:?}", hybrid.notes);
        let (_, old) = host(V1, "5:memory,cpu:/a\n");
        assert_eq!((old.layout, old.own, old.directory), (Layout::Version1, None, None));
        assert!(old.notes[0].contains("version 1 only"));
        let (_, none) = host("", "");
        assert_eq!(none.layout, Layout::None);
        let (_, broken) = host(V2, "nonsense\n");
        assert!(broken.memberships.known().is_none());
    }

    #[test]
    fn limits_are_files() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("memory.max"), "67108864\n").unwrap();
        fs::write(top.path().join("io.max"), "8:0 rbps=1\n8:1 rbps=2\n").unwrap();
        let found: Vec<_> = limits(top.path()).into_iter().map(|limit| (limit.file, limit.value)).collect();
        assert_eq!(
            found,
            [("memory.max", "67108864".to_owned()), ("io.max", "8:0 rbps=1; 8:1 rbps=2".to_owned())]
        );
        assert_eq!(directory(V2, "/a/b"), Some("/sys/fs/cgroup/a/b".into()));
        assert_eq!(directory(&V2.replace(" / ", " /a "), "/a/b"), Some("/sys/fs/cgroup/b".into()));
        assert_eq!(directory(&V2.replace(" / ", " /x "), "/a/b"), None);
        assert_eq!(directory(V2, "/../b"), None);
    }
}
