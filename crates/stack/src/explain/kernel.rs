//! Reading `/proc`, where anything can be gone from one file to the next.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;

/// Largest file of `/proc` that is read, in bytes. A table of mounts or sockets can be long.
const LIMIT: u64 = 8 << 20;

/// Something that was read, or why it was not.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Fact<T> {
    /// What was read.
    Known(T),
    /// It could not be.
    Unknown {
        /// The kind of reason.
        unknown: Reason,
        /// The reason, for people.
        because: String,
    },
}

/// Why something is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// What was to be read has ended or gone meanwhile.
    Gone,
    /// This kernel does not have it, or it is switched off.
    Absent,
    /// This user may not read it.
    Denied,
    /// It was read, and is not what the kernel documents.
    Malformed,
    /// Reading it failed in another way.
    Failed,
}

impl<T> Fact<T> {
    /// An unknown one.
    pub fn unknown(reason: Reason, because: impl Into<String>) -> Self {
        Self::Unknown { unknown: reason, because: because.into() }
    }

    /// What was read, if it was.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown { .. } => None,
        }
    }

    /// What `f` makes of what was read; its `None` is text that is not of the documented form.
    pub(super) fn parse<U>(self, what: &str, f: impl FnOnce(T) -> Option<U>) -> Fact<U> {
        match self {
            Self::Known(value) => f(value).map_or_else(
                || {
                    Fact::unknown(
                        Reason::Malformed,
                        format!("{what} is not of the form that the kernel documents"),
                    )
                },
                Fact::Known,
            ),
            Self::Unknown { unknown, because } => Fact::Unknown { unknown, because },
        }
    }
}

/// The `/proc` of a host.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    root: PathBuf,
}

impl Kernel {
    /// That of this machine.
    pub(super) fn here() -> Self {
        Self::at(Path::new("/proc"))
    }

    /// A directory that looks like one.
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// A file's path.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// The content of a file of a process, `self` or a number.
    pub(super) fn text(&self, pid: impl ToString, file: &str) -> Fact<String> {
        let pid = pid.to_string();
        let path = self.root.join(&pid).join(file);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|opened| opened.take(LIMIT).read_to_end(&mut bytes)) {
            Ok(_) => Fact::Known(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => self.unread(&pid, &path, &error),
        }
    }

    /// What a link of a process points to.
    pub(super) fn link(&self, pid: impl ToString, file: &str) -> Fact<String> {
        let pid = pid.to_string();
        let path = self.root.join(&pid).join(file);
        match fs::read_link(&path) {
            Ok(target) => Fact::Known(target.to_string_lossy().into_owned()),
            Err(error) => self.unread(&pid, &path, &error),
        }
    }

    /// Why `path`, a file of a process, was not read.
    pub(super) fn unread<T>(&self, pid: &str, path: &Path, error: &io::Error) -> Fact<T> {
        let shown = path.display();
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::SRCH) => Fact::unknown(Reason::Gone, format!("process {pid} has ended")),
            Some(Errno::NOENT) if !self.root.join(pid).exists() => {
                Fact::unknown(Reason::Gone, format!("process {pid} has ended"))
            }
            Some(Errno::NOENT) => Fact::unknown(Reason::Absent, format!("this kernel has no {shown}")),
            Some(Errno::ACCESS | Errno::PERM) => {
                Fact::unknown(Reason::Denied, format!("this user may not read {shown}"))
            }
            _ => Fact::unknown(Reason::Failed, format!("{shown}: {error}")),
        }
    }

    /// When a process began, in clock ticks since boot: with its number, what tells it from any other
    /// (proc_pid_stat(5), field 22).
    pub(super) fn began(&self, pid: u32) -> Option<u64> {
        let stat = self.text(pid, "stat");
        // The name may hold anything: fields are counted from its end on.
        stat.known()?.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
    }
}

/// The value of `name:` in a file of such lines (`/proc/PID/status`).
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_told_from_what_is_missing() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("7")).unwrap();
        fs::write(
            proc.path().join("7/stat"),
            "7 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1234 0\n",
        )
        .unwrap();
        let kernel = Kernel::at(proc.path());
        let reason = |fact: Fact<String>| match fact {
            Fact::Unknown { unknown, .. } => unknown,
            Fact::Known(text) => panic!("{text}"),
        };
        assert_eq!(reason(kernel.text(7, "cgroup")), Reason::Absent);
        assert_eq!(reason(kernel.text(8, "cgroup")), Reason::Gone);
        assert_eq!(reason(kernel.link(8, "ns/net")), Reason::Gone);
        assert_eq!(reason(kernel.text(7, "")), Reason::Failed);
        assert_eq!((kernel.began(7), kernel.began(8)), (Some(1234), None));
    }

    #[test]
    fn a_fact_is_its_value_in_json() {
        let known = serde_json::to_value(Fact::Known(3)).unwrap();
        assert_eq!(known, serde_json::json!(3));
        let unknown: Fact<u32> = Fact::unknown(Reason::Gone, "process 7 has ended");
        let json = serde_json::to_value(&unknown).unwrap();
        assert_eq!(json, serde_json::json!({"unknown": "gone", "because": "process 7 has ended"}));
        assert_eq!(field("Name:\tx\nNSpid:\t7 3\t1\n", "NSpid"), Some("7 3\t1"));
    }
}
