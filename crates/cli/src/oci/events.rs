//! `events`: what a container uses, and kills for memory, an object a line.

use std::path::Path;
use std::time::{Duration, Instant};

use container::cgroup::Cgroup;
use container::cgroup::usage::Usage;
use container::cgroup::usage::event::Event;
use container::oci::{Runtime, Status};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags};

use crate::output::{Failure, print};

/// How often to look for a kill where nobody tells.
const LOOK: Duration = Duration::from_millis(500);

/// Reports once.
///
/// # Errors
/// When the container does not run, or has no cgroup.
pub(super) fn stats(runtime: &Runtime, id: &str) -> Result<(), Failure> {
    report(id, cgroup(runtime, id)?.path())
}

/// Reports every `interval`, and kills for memory as they happen, until the container ends.
///
/// # Errors
/// When the container does not run, or has no cgroup.
pub(super) fn follow(runtime: &Runtime, id: &str, interval: Duration) -> Result<(), Failure> {
    let cgroup = cgroup(runtime, id)?;
    let path = cgroup.path();
    let operation = "watch the container";
    let (record, _) = runtime.state(id)?;
    let pid = record.and_then(|record| Pid::from_raw(record.pid)).ok_or_else(|| stopped(id))?;
    let process =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(Failure::system(operation))?;
    // The number may have become another process's before we opened it.
    if runtime.state(id)?.1 == Status::Stopped {
        return Err(stopped(id));
    }
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(Failure::system(operation))?;
    let file = path.join("memory.events");
    // Without the memory controller nothing is killed for a limit.
    let mut kills = kills(&cgroup)?;
    let mut often = Duration::MAX;
    match inotify::add_watch(&changes, &file, inotify::WatchFlags::MODIFY) {
        Ok(_) => {}
        // The controller is on cgroup v1, whose file does not tell when it changes.
        Err(rustix::io::Errno::NOENT) if kills.is_some() => often = LOOK,
        Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(Failure::system(operation)(errno)),
    }
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now()).min(often);
        let timeout = rustix::time::Timespec::try_from(left)
            .map_err(|_| Failure::system(operation)(std::io::ErrorKind::InvalidInput))?;
        let mut polled = [PollFd::new(&process, PollFlags::IN), PollFd::new(&changes, PollFlags::IN)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Failure::system(operation)(errno)),
        }
        let ended = !polled[0].revents().is_empty();
        if !polled[1].revents().is_empty() {
            // What changed is read below; the notes themselves say nothing.
            rustix::io::read(&changes, &mut [0u8; 4096]).map_err(Failure::system(operation))?;
        }
        let now = self::kills(&cgroup)?;
        for _ in kills.unwrap_or(0)..now.unwrap_or(0) {
            line(&Event::oom(id))?;
        }
        kills = now.max(kills);
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            report(id, path)?;
            next = Instant::now() + interval;
        }
    }
}

fn cgroup(runtime: &Runtime, id: &str) -> Result<Cgroup, Failure> {
    if runtime.state(id)?.1 == Status::Stopped {
        return Err(stopped(id));
    }
    let none = || Failure::usage(format!("container `{id}` has no cgroup"), "this host gives this user none");
    runtime.cgroup(id)?.ok_or_else(none)
}

fn stopped(id: &str) -> Failure {
    Failure::Other(stack::RemoteError::message(format!("container `{id}` is not running")))
}

fn kills(cgroup: &Cgroup) -> Result<Option<u64>, Failure> {
    Ok(cgroup.oom_kills().map_err(stack::RemoteError::from)?)
}

fn report(id: &str, path: &Path) -> Result<(), Failure> {
    let usage = Usage::read(path).map_err(stack::RemoteError::from)?;
    line(&Event::stats(id, &usage))
}

fn line(event: &Event<'_>) -> Result<(), Failure> {
    let text = serde_json::to_string(event).map_err(Failure::system("write JSON"))?;
    print(&format!("{text}\n"))
}
