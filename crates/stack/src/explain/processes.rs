//! Namespaces, process ids and owners.

use serde::Serialize;

use super::kernel::{Fact, Kernel, field};

/// Kinds of namespaces by their names in `/proc/PID/ns`, in the order in which they are best told, and what each
/// isolates (namespaces(7)).
const KINDS: [(&str, &str); 8] = [
    ("user", "user and group ids, and what capabilities count for"),
    ("pid", "process ids: what is outside cannot be seen"),
    ("mnt", "the table of mounts, and with it the files"),
    ("net", "interfaces, addresses, routes, ports, packet filters"),
    ("uts", "host name and domain name"),
    ("ipc", "System V IPC and POSIX message queues"),
    ("cgroup", "which cgroup looks like the root"),
    ("time", "offsets of the monotonic and boot clocks"),
];

/// One kind of namespace, as it is on the host, in the stack, and in the container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Namespace {
    /// Its name in `/proc/PID/ns`.
    pub kind: &'static str,
    /// What it isolates.
    pub isolates: &'static str,
    /// Inode of the one that `explain` itself is in, which is the host's.
    pub host: Fact<u64>,
    /// Inode of the one that the stack's hub is in.
    pub stack: Fact<u64>,
    /// Inode of the one that the container is in.
    pub container: Fact<u64>,
    /// Whether the container's is another one than the host's; `None` where one of them is not known.
    pub differs: Option<bool>,
}

/// The namespaces of a container's first process, of the hub, and of this process.
pub(super) fn namespaces(kernel: &Kernel, hub: u32, first: u32) -> Vec<Namespace> {
    let kind = |(kind, isolates): (&'static str, &'static str)| {
        let inode = |pid: String| {
            let link = format!("ns/{kind}");
            kernel.link(pid, &link).parse(&link, |target| inode(&target))
        };
        let (host, stack, container) =
            (inode("self".into()), inode(hub.to_string()), inode(first.to_string()));
        let differs = host.known().zip(container.known()).map(|(host, container)| host != container);
        Namespace { kind, isolates, host, stack, container, differs }
    };
    KINDS.into_iter().map(kind).collect()
}

/// The number in `net:[4026531840]`.
fn inode(target: &str) -> Option<u64> {
    target.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// A process of the container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Process {
    /// Its number on the host.
    pub pid: u32,
    /// Its number at each level of PID namespaces, the host's first and its own last.
    pub levels: Fact<Vec<u32>>,
    /// Its name (`comm`).
    pub name: Fact<String>,
    /// Its command line, words separated by blanks.
    pub command: Fact<String>,
    /// Its effective user id on the host.
    pub uid: Fact<u32>,
    /// The same inside.
    pub uid_inside: Option<u32>,
    /// Effective capabilities, as the kernel writes them: hexadecimal.
    pub capabilities: Fact<String>,
    /// Threads.
    pub threads: Fact<u32>,
}

/// One process.
pub(super) fn process(kernel: &Kernel, pid: u32, uids: &IdMap) -> Process {
    let status = kernel.text(pid, "status");
    let line = |name: &'static str| status.clone().parse(name, |text| field(&text, name).map(str::to_owned));
    let levels = match status.known().map(|text| field(text, "NSpid")) {
        // Not before Linux 4.1.
        Some(None) => {
            Fact::unknown(super::Reason::Absent, "this kernel does not tell NSpid (Linux 4.1 does)")
        }
        _ => line("NSpid").parse("NSpid", |text| numbers(&text)),
    };
    let uid = line("Uid").parse("Uid", |text| numbers(&text)?.get(1).copied());
    let command = kernel.text(pid, "cmdline");
    Process {
        pid,
        levels,
        name: line("Name"),
        command: command.parse("cmdline", |text| Some(text.trim_end_matches('\0').replace('\0', " "))),
        uid_inside: uid.known().and_then(|uid| uids.inside(*uid)),
        uid,
        capabilities: line("CapEff"),
        threads: line("Threads").parse("Threads", |text| text.parse().ok()),
    }
}

fn numbers(text: &str) -> Option<Vec<u32>> {
    text.split_whitespace().map(|word| word.parse().ok()).collect()
}

/// A map of ids, and what it means for some.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct IdMap {
    /// Its lines.
    pub extents: Vec<Extent>,
    /// Ids inside, and whose they are outside, computed from those lines.
    pub examples: Vec<Example>,
}

/// A line: `count` ids from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// First id inside.
    pub inside: u32,
    /// First id of the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// An id inside, and what it is on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    /// The id inside.
    pub inside: u32,
    /// The host's; `None` is one that cannot be had inside.
    pub outside: Option<u32>,
    /// Its name on the host, where `/etc/passwd` or `/etc/group` has one.
    pub name: Option<String>,
}

impl IdMap {
    /// Reads `uid_map` or `gid_map`. The examples are root, an ordinary id, and the first that is not mapped.
    pub(super) fn read(kernel: &Kernel, pid: u32, file: &str, names: &str) -> Fact<Self> {
        kernel.text(pid, file).parse(file, |text| Some(Self::with_examples(extents(&text)?, names)))
    }

    fn with_examples(extents: Vec<Extent>, names: &str) -> Self {
        let mut map = Self { extents, examples: Vec::new() };
        let end = |extent: &Extent| extent.inside.saturating_add(extent.count);
        let unmapped = map.extents.iter().map(end).max().filter(|end| *end < u32::MAX);
        let example = |inside: u32| {
            let outside = map.outside(inside);
            Example { inside, outside, name: outside.and_then(|id| name(names, id)) }
        };
        map.examples = [Some(0), Some(1000), unmapped].into_iter().flatten().map(example).collect();
        map.examples.dedup();
        map
    }

    /// Whose on the host an id inside is.
    pub fn outside(&self, inside: u32) -> Option<u32> {
        let translate = |extent: &Extent| {
            let offset = inside.checked_sub(extent.inside).filter(|offset| *offset < extent.count)?;
            extent.outside.checked_add(offset)
        };
        self.extents.iter().find_map(translate)
    }

    /// What an id of the host is inside; the kernel shows 65534 for one that is nothing there.
    pub fn inside(&self, outside: u32) -> Option<u32> {
        let translate = |extent: &Extent| {
            let offset = outside.checked_sub(extent.outside).filter(|offset| *offset < extent.count)?;
            extent.inside.checked_add(offset)
        };
        self.extents.iter().find_map(translate)
    }
}

fn extents(text: &str) -> Option<Vec<Extent>> {
    let extent = |line: &str| match numbers(line)?[..] {
        [inside, outside, count] => Some(Extent { inside, outside, count }),
        _ => None,
    };
    text.lines().map(extent).collect()
}

/// The name that a file such as `/etc/passwd` has for a number.
fn name(names: &str, id: u32) -> Option<String> {
    names.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(id)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::explain::Reason;

    #[test]
    fn ids_by_the_map_that_was_read() {
        let passwd = "root:x:0:0::/:/bin/sh\nme:x:1000:1000::/:/bin/sh\n";
        let map = IdMap::with_examples(extents("0 1000 1\n1 100000 65535\n").unwrap(), passwd);
        let shown: Vec<_> = map.examples.iter().map(|e| (e.inside, e.outside, e.name.as_deref())).collect();
        assert_eq!(shown, [(0, Some(1000), Some("me")), (1000, Some(100_999), None), (65536, None, None)]);
        assert_eq!((map.inside(1000), map.inside(100_999), map.inside(0)), (Some(0), Some(1000), None));
        // The host's own map has no end.
        let host = IdMap::with_examples(extents("0 0 4294967295\n").unwrap(), passwd);
        assert_eq!(host.examples.len(), 2);
        assert_eq!(extents("0 1000\n"), None);
    }

    #[test]
    fn an_old_kernel_and_a_process_that_is_gone() {
        let proc = tempfile::tempdir().unwrap();
        let own = proc.path().join("self/ns");
        let theirs = proc.path().join("9/ns");
        for directory in [&own, &theirs] {
            fs::create_dir_all(directory).unwrap();
        }
        symlink("net:[1]", own.join("net")).unwrap();
        symlink("net:[2]", theirs.join("net")).unwrap();
        symlink("uts:[x]", theirs.join("uts")).unwrap();
        fs::write(proc.path().join("9/status"), "Name:\tsh\nUid:\t5 5 5 5\nThreads:\t1\nCapEff:\t0\n")
            .unwrap();
        let kernel = Kernel::at(proc.path());
        let found = namespaces(&kernel, 8, 9);
        let of = |kind: &str| found.iter().find(|namespace| namespace.kind == kind).unwrap();
        assert_eq!((of("net").differs, of("net").container.known()), (Some(true), Some(&2)));
        let reason = |fact: &Fact<u64>| match fact {
            Fact::Unknown { unknown, .. } => *unknown,
            Fact::Known(inode) => panic!("{inode}"),
        };
        assert_eq!(reason(&of("net").stack), Reason::Gone);
        assert_eq!(reason(&of("time").container), Reason::Absent);
        assert_eq!(reason(&of("uts").container), Reason::Malformed);
        let old = process(&kernel, 9, &IdMap::default());
        assert_eq!((old.name.known().map(String::as_str), old.uid.known()), (Some("sh"), Some(&5)));
        assert!(matches!(old.levels, Fact::Unknown { unknown: Reason::Absent, .. }));
        let gone = process(&kernel, 10, &IdMap::default());
        assert!(matches!(gone.levels, Fact::Unknown { unknown: Reason::Gone, .. }));
        assert!(matches!(gone.command, Fact::Unknown { unknown: Reason::Gone, .. }));
    }
}
