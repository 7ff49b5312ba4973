//! Whether the kernel killed processes of a service for memory, and whose memory was used up.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use container::cgroup::Cgroup;
use container::cgroup::usage::MemoryEvents;
use serde::{Deserialize, Serialize};

use super::Supervisor;
use crate::event::What;
use crate::remote::RemoteError;

/// A service that ends with SIGKILL's status this long after a process of its was killed for memory ended for that
/// reason: its PID 1, or a shell in between, has had the time to pass the status on.
const RELATED: Duration = Duration::from_secs(5);

/// Whose memory was used up when processes were killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortage {
    /// The service reached its limit of so many bytes; `None` where that is gone already.
    Service(Option<u64>),
    /// The stack as a whole reached the limit that somebody has set for its cgroup.
    Stack(Option<u64>),
    /// Something above: the session that the stack runs in, or the machine.
    Beyond,
}

/// A limit of memory, and what came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bound {
    /// Bytes; `None` is unlimited.
    limit: Option<u64>,
    /// How often it was reached and nothing could be reclaimed.
    reached: u64,
}

/// What the kernel has counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    /// Processes of the service that were killed, whatever limit was reached.
    kills: u64,
    service: Bound,
    stack: Bound,
}

impl Counts {
    /// How many processes were killed since `before`, and for whose limit: the kernel counts a kill in the cgroup of
    /// the process, and `oom` in the one whose limit was reached (`mem_cgroup_oom` in mm/memcontrol.c).
    fn since(&self, before: &Self) -> Option<(u64, Shortage)> {
        let kills = self.kills.saturating_sub(before.kills);
        let shortage = if self.service.reached > before.service.reached {
            Shortage::Service(self.service.limit)
        } else if self.stack.reached > before.stack.reached {
            Shortage::Stack(self.stack.limit)
        } else {
            Shortage::Beyond
        };
        (kills > 0).then_some((kills, shortage))
    }
}

/// The `memory.events` of a service's cgroup. The kernel reports each change as exceptional data to `poll`.
#[derive(Debug)]
pub(crate) struct Watch {
    events: File,
    /// Where they are; the stack's cgroup is the one above.
    cgroup: PathBuf,
    /// What there was when the last kills were noticed.
    seen: Counts,
    /// When the last kills were noticed, and what there was too little of.
    last: Option<(Instant, Shortage)>,
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
        let mut watch = Self { events, cgroup: cgroup.to_owned(), seen: Counts::default(), last: None };
        watch.seen = watch.counts()?;
        Ok(Some(watch))
    }

    fn counts(&self) -> io::Result<Counts> {
        let own = MemoryEvents::of(&self.events)?;
        let stack = self.cgroup.parent().unwrap_or(&self.cgroup);
        let of_stack = MemoryEvents::read_local(stack).map_err(io::Error::other)?;
        Ok(Counts {
            kills: own.oom_kill,
            service: Bound { limit: limit(&self.cgroup), reached: own.oom },
            stack: Bound { limit: limit(stack), reached: of_stack.unwrap_or_default().oom },
        })
    }

    /// How many processes were killed since the last time this was asked, and what there was too little of.
    pub(crate) fn kills(&mut self, now: Instant) -> io::Result<Option<(u64, Shortage)>> {
        let counts = self.counts()?;
        let new = counts.since(&self.seen);
        // A limit is counted before the kill that it comes to, and may be all that is there to be seen yet.
        if let Some((_, shortage)) = new {
            self.seen = counts;
            self.last = Some((now, shortage));
        }
        Ok(new)
    }

    /// What a service that ends now with `status` was killed for, if that was memory.
    pub(crate) fn explains(&self, status: i32, now: Instant) -> Option<Shortage> {
        let (last, shortage) = self.last?;
        (status == 128 + 9 && now.duration_since(last) <= RELATED).then_some(shortage)
    }
}

/// The limit of a cgroup in bytes; `None` where there is none, or where it cannot be read any more: it is only told.
fn limit(cgroup: &Path) -> Option<u64> {
    fs::read_to_string(cgroup.join("memory.max")).ok()?.trim().parse().ok()
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
        match run.memory.as_mut().map_or(Ok(None), |watch| watch.kills(now)) {
            Ok(None) => {}
            Ok(Some((kills, shortage))) => {
                let text = line(kills, shortage);
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
pub(crate) fn line(kills: u64, shortage: Shortage) -> String {
    let processes = if kills == 1 { "a process".to_owned() } else { format!("{kills} processes") };
    let why = match shortage {
        Shortage::Service(Some(limit)) => format!("the limit is {}", bytes(limit)),
        Shortage::Service(None) => "it was at its limit".to_owned(),
        Shortage::Stack(Some(limit)) => format!("the limit of the whole stack is {}", bytes(limit)),
        Shortage::Stack(None) => "the whole stack was at its limit".to_owned(),
        Shortage::Beyond => "there was no memory left".to_owned(),
    };
    format!("the kernel killed {processes} of this service: out of memory ({why})")
}

/// Why a service that was killed for memory ended.
pub(crate) fn reason(shortage: Shortage) -> String {
    match shortage {
        Shortage::Service(Some(limit)) => format!("killed: out of memory, its limit is {}", bytes(limit)),
        Shortage::Stack(Some(limit)) => {
            format!("killed: out of memory, the limit of the whole stack is {}", bytes(limit))
        }
        Shortage::Stack(None) => "killed: out of memory, the whole stack was at its limit".to_owned(),
        Shortage::Service(None) | Shortage::Beyond => "killed: out of memory".to_owned(),
    }
}

/// The same as an error, with what the user can do about it.
pub(crate) fn report(service: &str, shortage: Shortage) -> RemoteError {
    let hint = match shortage {
        Shortage::Service(_) => {
            "`mem_limit` in the stack file raises it; `inception-run stats` shows what a service uses"
        }
        Shortage::Stack(_) => {
            "`memory.max` of the stack's cgroup is the limit, and no `mem_limit` raises it; `inception-run stats` \
             shows what each service uses"
        }
        Shortage::Beyond => "the machine, or the session that the stack runs in, has no memory left",
    };
    RemoteError::message(format!("service `{service}` was {}", reason(shortage))).or_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack's cgroup with a service's in it, as the kernel shows them.
    struct Cgroups(tempfile::TempDir);

    impl Cgroups {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            fs::create_dir(top.path().join("web")).unwrap();
            Self(top)
        }

        fn service(&self) -> PathBuf {
            self.0.path().join("web")
        }

        fn write(&self, kills: u64, service: u64, stack: u64) {
            let text = |oom, kills| format!("low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {kills}\n");
            fs::write(self.service().join("memory.events"), text(service, kills)).unwrap();
            fs::write(self.0.path().join("memory.events.local"), text(stack, 0)).unwrap();
            fs::write(self.service().join("memory.max"), "67108864\n").unwrap();
            fs::write(self.0.path().join("memory.max"), "max\n").unwrap();
        }
    }

    #[test]
    fn a_service_is_killed_for_memory_when_a_kill_comes_just_before_its_end() {
        let cgroups = Cgroups::new();
        assert!(Watch::open(&cgroups.service()).unwrap().is_none(), "there is no memory controller");
        // Kills of an earlier run, whose cgroup could not be removed.
        cgroups.write(2, 2, 1);
        let mut watch = Watch::open(&cgroups.service()).unwrap().unwrap();
        let now = Instant::now();
        assert_eq!(watch.kills(now).unwrap(), None);
        assert_eq!(watch.explains(137, now), None, "nothing was killed in this run");
        cgroups.write(2, 3, 1);
        assert_eq!(watch.kills(now).unwrap(), None, "the kernel has yet to kill");
        cgroups.write(3, 3, 1);
        let own = Shortage::Service(Some(64 << 20));
        assert_eq!(watch.kills(now).unwrap(), Some((1, own)));
        assert_eq!(watch.kills(now).unwrap(), None, "it is told once");
        assert_eq!(watch.explains(137, now), Some(own));
        assert_eq!(
            watch.explains(1, now),
            None,
            "the service outlived the process and failed in its own way"
        );
        let later = now + RELATED * 2;
        assert_eq!(watch.explains(137, later), None, "that kill was long ago: somebody else's SIGKILL");
        cgroups.write(4, 3, 2);
        assert_eq!(watch.kills(later).unwrap(), Some((1, Shortage::Stack(None))));
        // A kernel that does not say what happened to the stack alone.
        fs::remove_file(cgroups.0.path().join("memory.events.local")).unwrap();
        let mut watch = Watch::open(&cgroups.service()).unwrap().unwrap();
        assert_eq!(watch.kills(now).unwrap(), None);
    }

    #[test]
    fn the_limit_that_was_reached_is_the_one_to_blame() {
        let bound = |limit, reached| Bound { limit: Some(limit), reached };
        let before = Counts { kills: 1, service: bound(10, 1), stack: bound(20, 5) };
        for (kills, service, stack, expected) in [
            (1, 1, 5, None),
            // It was at its limit, and nothing was killed for it.
            (1, 2, 6, None),
            (2, 2, 5, Some((1, Shortage::Service(Some(10))))),
            (3, 1, 6, Some((2, Shortage::Stack(Some(20))))),
            // Both: raising the outer one alone would not have helped.
            (3, 2, 6, Some((2, Shortage::Service(Some(10))))),
            (2, 1, 5, Some((1, Shortage::Beyond))),
        ] {
            let now = Counts { kills, service: bound(10, service), stack: bound(20, stack) };
            assert_eq!(now.since(&before), expected, "{now:?}");
        }
    }

    #[test]
    fn what_the_user_reads() {
        assert_eq!(
            line(1, Shortage::Service(Some(64 << 20))),
            "the kernel killed a process of this service: out of memory (the limit is 64 MiB)"
        );
        assert!(line(3, Shortage::Beyond).contains("killed 3 processes"));
        assert!(line(1, Shortage::Stack(Some(1 << 30))).contains("(the limit of the whole stack is 1 GiB)"));
        let own = Shortage::Service(Some(3 << 29));
        assert_eq!(reason(own), "killed: out of memory, its limit is 1.5 GiB");
        let hint = |shortage| report("web", shortage).hint.unwrap();
        assert!(hint(own).contains("`mem_limit` in the stack file"));
        assert!(hint(Shortage::Stack(None)).contains("`memory.max` of the stack's cgroup"));
        assert!(hint(Shortage::Beyond).contains("the machine"));
        assert_eq!(bytes(512), "512 bytes");
    }
}
