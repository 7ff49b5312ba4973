//! Where cgroups are mounted, and where this process stands in them.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The cgroup trees as this process sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where cgroup v2 is mounted.
    pub(super) mount: PathBuf,
    /// Our own cgroup, at or below `mount`.
    pub(super) own: PathBuf,
    /// Trees of version 1 beside it (hybrid mode).
    pub(super) version1: Vec<Version1>,
}

/// One cgroup v1 tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version1 {
    pub(super) controllers: Vec<String>,
    pub(super) mount: PathBuf,
}

impl Hierarchy {
    /// Reads what `/proc` tells; `None` where no cgroup v2 file system can be seen.
    pub(super) fn current() -> Option<Self> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    /// Reads `/proc/self/mountinfo` (proc(5)) and `/proc/self/cgroup` (cgroups(7)).
    pub(super) fn parse(mountinfo: &str, cgroup: &str) -> Option<Self> {
        let mut unified = None;
        let mut version1 = Vec::new();
        for line in mountinfo.lines() {
            let Some((mount, system)) = line.split_once(" - ") else { continue };
            let mut system = system.split(' ');
            let mut fields = mount.split(' ').skip(3);
            match system.next() {
                Some("cgroup2") if unified.is_none() => unified = fields.next().zip(fields.next()),
                Some("cgroup") => {
                    let options = system.nth(1).unwrap_or_default().split(',');
                    let controllers: Vec<String> =
                        options.filter(|word| CONTROLLERS_1.contains(word)).map(str::to_owned).collect();
                    if let Some(mount) = fields.nth(1).filter(|_| !controllers.is_empty()) {
                        version1.push(Version1 { controllers, mount: unescape(mount).into() });
                    }
                }
                _ => {}
            }
        }
        let (root, mount) = unified?;
        let mount = PathBuf::from(unescape(mount));
        let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
        // Outside of what is mounted (`/..`): no cgroup at or above ours can be seen.
        let below = Path::new(own).strip_prefix(unescape(root)).ok()?;
        let outside = below.components().any(|c| matches!(c, Component::ParentDir));
        (!outside).then(|| Self { own: mount.join(below), mount, version1 })
    }

    /// The cgroup v1 tree that has a controller.
    pub(super) fn version1_of(&self, controller: &str) -> Option<&Version1> {
        self.version1.iter().find(|tree| tree.controllers.iter().any(|name| name == controller))
    }

    /// Where a process stands in the v2 tree.
    pub(super) fn of_process(&self, pid: i32) -> std::io::Result<Option<PathBuf>> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self::parse(&mountinfo, &text).map(|hierarchy| hierarchy.own))
    }
}

/// The controllers of cgroup v1; other words among a mount's options are no controllers.
const CONTROLLERS_1: [&str; 13] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// Undoes the octal escapes of proc(5).
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_mount_of_a_part_and_odd_names() {
        let line = "41 31 0:38 /docker/1 /mnt/c\\040g rw - cgroup2 cgroup2 rw\n";
        let hierarchy = Hierarchy::parse(line, "0::/docker/1/leaf\n").unwrap();
        assert_eq!(hierarchy.own, Path::new("/mnt/c g/leaf"));
        assert_eq!(Hierarchy::parse(line, "0::/../elsewhere\n"), None);
        assert_eq!(Hierarchy::parse("", "0::/\n"), None);
    }

    #[test]
    fn trees_of_version_1_beside_it() {
        let hierarchy = Hierarchy::parse(HYBRID, "4:memory:/x\n0::/a/b\n").unwrap();
        assert_eq!(hierarchy.own, Path::new("/sys/fs/cgroup/unified/a/b"));
        assert_eq!(hierarchy.version1.len(), 3);
        assert_eq!(hierarchy.version1_of("cpu").unwrap().mount, Path::new("/sys/fs/cgroup/cpu"));
        assert_eq!(hierarchy.version1_of("io"), None);
    }
}
