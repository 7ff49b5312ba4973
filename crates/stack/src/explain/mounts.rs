//! The table of mounts, and the layers of the root.

use serde::Serialize;

use super::kernel::{Fact, Kernel};
use crate::store::HistoryLine;

/// Everything that is mounted in a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mounts {
    /// The root, where it is an overlay.
    pub root: Option<Overlay>,
    /// All lines of the table, in its order.
    pub table: Vec<Mount>,
}

/// A line of `/proc/PID/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where it is, inside.
    pub target: String,
    /// Type of its file system.
    pub kind: String,
    /// What was mounted; for a bind mount, the part of that file system that shows.
    pub source: String,
    /// The part of the file system that is its root, `/` for all of it.
    pub part: String,
    /// Its options, without those of the file system.
    pub options: String,
    /// What it is for.
    pub purpose: &'static str,
}

/// The root of a container: layers over each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overlay {
    /// The writable layer, below the data directory.
    pub upper: Option<String>,
    /// Bytes in it.
    pub size: Fact<u64>,
    /// The read-only layers, the highest first.
    pub layers: Vec<Layer>,
}

/// A read-only layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Layer {
    /// Its directory as the kernel has it, below the data directory.
    pub directory: String,
    /// Digest of its archive; `None` where the image does not have this layer.
    pub digest: Option<String>,
    /// The instruction that made it.
    pub instruction: Option<String>,
    /// When, RFC 3339.
    pub created: Option<String>,
    /// Bytes of its files.
    pub size: Option<u64>,
}

/// What the kernel says is mounted in a process's mount namespace. The writable layer's size is not its business.
pub(super) fn mounts(kernel: &Kernel, pid: u32, lines: &[HistoryLine]) -> Fact<Mounts> {
    kernel.text(pid, "mountinfo").parse("mountinfo", |text| table(&text, lines))
}

fn table(text: &str, lines: &[HistoryLine]) -> Option<Mounts> {
    let mut mounts = Mounts { root: None, table: Vec::new() };
    for line in text.lines() {
        let (mount, options) = mount(line)?;
        // A later mount on the root covers an earlier one.
        if mount.target == "/" {
            mounts.root = (mount.kind == "overlay").then(|| overlay(&options, lines));
        }
        mounts.table.push(mount);
    }
    Some(mounts)
}

/// A line and its file system's options: proc_pid_mountinfo(5).
fn mount(line: &str) -> Option<(Mount, String)> {
    let (front, back) = line.split_once(" - ")?;
    let front: Vec<&str> = front.split(' ').collect();
    let mut back = back.splitn(3, ' ');
    let (kind, source, options) = (back.next()?, back.next()?, back.next().unwrap_or_default());
    let (part, target) = (unescape(front.get(3)?), unescape(front.get(4)?));
    let purpose = purpose(kind, &part, &target);
    let mount = Mount {
        target,
        kind: kind.to_owned(),
        source: unescape(source),
        part,
        options: (*front.get(5)?).to_owned(),
        purpose,
    };
    Some((mount, options.to_owned()))
}

/// Blanks, tabs, line ends and backslashes are written as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(|d| matches!(d, b'0'..=b'7')));
        match digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn purpose(kind: &str, part: &str, target: &str) -> &'static str {
    let below = |directory: &str| target.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
    match kind {
        "overlay" if target == "/" => "the image's layers, and a writable one above",
        "proc" if target == "/proc" => "the processes of its PID namespace",
        "proc" => "a part of /proc that is made read-only",
        "sysfs" => "devices of the kernel; of interfaces only its own",
        "devpts" => "terminals of its own",
        "mqueue" => "message queues of its IPC namespace",
        "cgroup2" => "cgroups from its own on down",
        "cgroup" => "cgroups of version 1",
        "tmpfs" | "devtmpfs" if below("/proc") || below("/sys") => "covers what is not for containers",
        "devtmpfs" => "one device of the host's",
        "tmpfs" if target == "/dev" => "its own /dev",
        "tmpfs" if target == "/dev/shm" => "shared memory",
        "tmpfs" if below("/dev") => "one device of the host's",
        "tmpfs" if target.starts_with("/etc/") => "a file that was made for it",
        "tmpfs" if part != "/" => "a file that was made for it, or a part of a host's tmpfs",
        "tmpfs" => "memory that ends with the container",
        _ if part.contains("/v/") => "a volume, which outlives the container",
        _ if ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"].contains(&target) => {
            "a file that was made for it"
        }
        _ => "a file or directory of the host",
    }
}

/// Options of an overlay. Directories are separated by colons, which and backslashes are escaped by a backslash; the
/// highest is first. Newer kernels can write an option for each.
fn overlay(options: &str, lines: &[HistoryLine]) -> Overlay {
    let mut upper = None;
    let mut layers = Vec::new();
    for option in split(options, b',') {
        match option.split_once('=') {
            Some(("lowerdir", directories)) => {
                layers.extend(split(&unescape(directories), b':').into_iter().filter(|one| !one.is_empty()));
            }
            Some(("lowerdir+", directory)) => layers.push(unescape(directory)),
            Some(("upperdir", directory)) => upper = Some(unescape(directory)),
            _ => {}
        }
    }
    let layers = layers.into_iter().map(|directory| layer(directory, lines)).collect();
    Overlay { upper, size: Fact::unknown(super::Reason::Absent, "there is no writable layer"), layers }
}

/// Splits where `at` is not behind a backslash.
fn split(text: &str, at: u8) -> Vec<String> {
    let mut parts = vec![Vec::new()];
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let next = if byte == at { None } else { Some(byte) };
        match (next, parts.last_mut()) {
            (Some(byte), Some(part)) => {
                part.push(byte);
                if byte == b'\\' {
                    part.extend(bytes.next());
                }
            }
            _ => parts.push(Vec::new()),
        }
    }
    parts.into_iter().map(|part| String::from_utf8_lossy(&part).into_owned()).collect()
}

fn layer(directory: String, lines: &[HistoryLine]) -> Layer {
    let name = directory.rsplit('/').next().unwrap_or_default();
    // Directories have the first 24 digits of their digests as names.
    let made = |line: &&HistoryLine| line.layer.as_ref().is_some_and(|layer| layer.hex().starts_with(name));
    match lines.iter().filter(|_| name.len() >= 12).find(made) {
        None => Layer { directory, ..Layer::default() },
        Some(line) => Layer {
            digest: line.layer.as_ref().map(ToString::to_string),
            instruction: Some(line.created_by.clone()).filter(|text| !text.is_empty()),
            created: line.created.clone(),
            size: Some(line.size),
            directory,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_by_the_options_of_the_mount() {
        let digest: image::Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        let line = HistoryLine {
            created: None,
            created_by: "RUN make".to_owned(),
            size: 7,
            comment: String::new(),
            layer: Some(digest),
        };
        let text = "1 2 0:5 / / rw - overlay overlay rw,lowerdir=l/abababababababababababab:l/00112233445566778899aabb,\
                    upperdir=c/s/w/u,workdir=c/s/w/w,userxattr\n\
                    3 1 0:6 /a\\040b /mnt\\134x ro,nosuid master:1 - ext4 /dev/sda1 rw\n";
        let mounts = table(text, &[line]).unwrap();
        let root = mounts.root.unwrap();
        assert_eq!(root.upper.as_deref(), Some("c/s/w/u"));
        let made: Vec<_> = root.layers.iter().map(|layer| layer.instruction.as_deref()).collect();
        assert_eq!(made, [Some("RUN make"), None]);
        assert_eq!((mounts.table[1].part.as_str(), mounts.table[1].target.as_str()), ("/a b", "/mnt\\x"));
        assert_eq!(table("what is this\n", &[]), None);
    }

    #[test]
    fn the_ways_to_write_layers() {
        let directories = |options: &str| -> Vec<String> {
            overlay(options, &[]).layers.into_iter().map(|layer| layer.directory).collect()
        };
        assert_eq!(directories("ro,lowerdir=/a\\:b:/c::/d"), ["/a\\:b", "/c", "/d"]);
        assert_eq!(directories("ro,lowerdir+=/a,lowerdir+=/b,c=d"), ["/a", "/b"]);
        assert!(directories("ro").is_empty());
    }
}
