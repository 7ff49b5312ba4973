//! Whether the kernel killed processes of a service for memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use container::cgroup::Cgroup;
use container::cgroup::usage::MemoryEvents;

use super::Supervisor;
use crate::event::What;
use crate::remote::RemoteError;

/// A service that ends with SIGKILL's status this long after a process of its was killed for memory ended for that
/// reason: its PID 1, or a shell in between, has had the time to pass the status on.
const RELATED: Duration = Duration::from_secs(5);

/// The `memory.events` of a service's cgroup. The kernel reports each change as exceptional data to `poll`.
#[derive(Debug)]
pub(crate) struct Watch {
    events: File,
    /// Kills that are known already.
    seen: u64,
    /// When the last ones were noticed.
    last: Option<Instant>,
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Watch {
    /// Watches a cgroup from now on; `None` without the memory controller.
    pub(crate) fn open(cgroup: &Path) -> io::Result<Option<Self>> {
        let events = match File::open(cgroup.join("memory.events")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let seen = MemoryEvents::of(&events)?.oom_kill;
        Ok(Some(Self { events, seen, last: None }))
    }

    /// How many processes were killed since the last time this was asked.
    pub(crate) fn kills(&mut self, now: Instant) -> io::Result<u64> {
        let killed = MemoryEvents::of(&self.events)?.oom_kill;
        let new = killed.saturating_sub(self.seen);
        if new > 0 {
            self.seen = killed;
            self.last = Some(now);
        }
        Ok(new)
    }

    /// Whether a service that ends now with `status` was killed for memory.
    pub(crate) fn explains(&self, status: i32, now: Instant) -> bool {
        status == 128 + 9 && self.last.is_some_and(|last| now.duration_since(last) <= RELATED)
    }
}

/// Watches the cgroup of a service that is about to start.
pub(crate) fn watch(cgroup: &Cgroup, service: &str) -> Option<Watch> {
    Watch::open(cgroup.path()).unwrap_or_else(|error| {
        tracing::warn!("watch the memory events of service `{service}`: {error}");
        None
    })
}

impl Supervisor {
    /// Says in a service's log that processes of it were killed for memory, if any were.
    pub(super) fn tell_kills(&mut self, index: usize, now: Instant) {
        let unit = &mut self.units[index];
        let Some(run) = &mut unit.run else { return };
        match run.memory.as_mut().map_or(Ok(0), |watch| watch.kills(now)) {
            Ok(0) => {}
            Ok(kills) => {
                let text = line(kills, unit.service.limits.memory);
                let service = unit.name().to_owned();
                self.tell_event(Some(&service), What::Oom { processes: kills });
                self.note(index, &text);
            }
            Err(error) => {
                tracing::warn!("read the memory events of service `{}`: {error}", unit.container);
                // It would go on being ready.
                run.memory = None;
            }
        }
    }
}

/// Bytes as a stack file writes them: `64 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

/// What the log of a service says when processes of it were killed.
pub(crate) fn line(kills: u64, limit: Option<u64>) -> String {
    let processes = if kills == 1 { "a process".to_owned() } else { format!("{kills} processes") };
    let why = limit.map_or_else(
        || "there was no memory left".to_owned(),
        |limit| format!("the limit is {}", bytes(limit)),
    );
    format!("the kernel killed {processes} of this service: out of memory ({why})")
}

/// Why a service that was killed for memory ended.
pub(crate) fn reason(limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!("killed: out of memory, its limit is {}", bytes(limit)),
        None => "killed: out of memory".to_owned(),
    }
}

/// The same as an error, with what the user can do about it.
pub(crate) fn report(service: &str, limit: Option<u64>) -> RemoteError {
    let hint = match limit {
        Some(_) => "`mem_limit` in the stack file raises it; `inception-run stats` shows what a service uses",
        None => "the machine, or the session that the stack runs in, has no memory left",
    };
    RemoteError::message(format!("service `{service}` was {}", reason(limit))).or_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, kills: u64) {
        let text = format!("low 0\nhigh 0\nmax 9\noom {kills}\noom_kill {kills}\n");
        std::fs::write(directory.join("memory.events"), text).unwrap();
    }

    #[test]
    fn a_service_is_killed_for_memory_when_a_kill_comes_just_before_its_end() {
        let top = tempfile::tempdir().unwrap();
        assert!(Watch::open(top.path()).unwrap().is_none(), "there is no memory controller");
        // Kills of an earlier run, whose cgroup could not be removed.
        write(top.path(), 2);
        let mut watch = Watch::open(top.path()).unwrap().unwrap();
        let now = Instant::now();
        assert_eq!(watch.kills(now).unwrap(), 0);
        assert!(!watch.explains(137, now), "nothing was killed in this run");
        write(top.path(), 3);
        assert_eq!(watch.kills(now).unwrap(), 1);
        assert_eq!(watch.kills(now).unwrap(), 0, "it is told once");
        assert!(watch.explains(137, now));
        assert!(!watch.explains(1, now), "the service outlived the process and failed in its own way");
        assert!(!watch.explains(137, now + RELATED * 2), "that kill was long ago: somebody else's SIGKILL");
    }

    #[test]
    fn what_the_user_reads() {
        assert_eq!(
            line(1, Some(64 << 20)),
            "the kernel killed a process of this service: out of memory (the limit is 64 MiB)"
        );
        assert!(line(3, None).contains("killed 3 processes"));
        assert_eq!(reason(Some(3 << 29)), "killed: out of memory, its limit is 1.5 GiB");
        assert_eq!(bytes(512), "512 bytes");
    }
}
