//! The probes of health checks: how they are started, and what becomes of their results.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::Supervisor;
use super::health::{self, Active, Kind, Monitor, Verdict};
use super::unit::Run;
use crate::control::Health;
use crate::event::What;
use crate::plan::Probe;
use crate::remote::RemoteError;

/// `PF_EXITING` of the kernel's flags of a process.
const EXITING: u32 = 4;

/// Whether a container's first process is ending or has ended: the news of it are on their way.
fn is_ending(run: &Run) -> bool {
    let now = rustix::time::Timespec::default();
    let mut polled = [PollFd::new(&run.pidfd, PollFlags::IN)];
    let has_ended = matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1));
    has_ended
        || fs::read_to_string(format!("/proc/{}/stat", run.host_pid)).is_ok_and(|stat| is_exiting(&stat))
}

/// Whether a process whose `/proc/PID/stat` this is has begun to end.
fn is_exiting(stat: &str) -> bool {
    // After the name, which may have anything in it: state, four numbers of other processes and its terminal, flags.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let flags = fields.split_whitespace().nth(6).and_then(|flags| flags.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

impl Supervisor {
    pub(super) fn probe_output(&self, index: usize, status: i32) -> String {
        let monitor = self.units[index].run.as_ref().and_then(|run| run.monitor.as_ref());
        match monitor.and_then(|m| m.active.as_ref()).map(|a| &a.kind) {
            Some(Kind::Exec { text, .. }) if !text.is_empty() => {
                String::from_utf8_lossy(text).trim().to_owned()
            }
            _ => format!("exit status {status}"),
        }
    }

    /// Takes a failure, which may be that of a service that has just died: its end is to be told first then.
    pub(super) fn probe_failed(&mut self, index: usize, why: String) {
        let monitor = self.units[index].run.as_mut().and_then(|run| run.monitor.as_mut());
        if let Some(why) = monitor.and_then(|monitor| monitor.doubt(why, Instant::now())) {
            self.conclude(index, Err(why));
        }
    }

    /// The probe of a service has taken as long as it may, or its failure has been held back for as long.
    pub(super) fn probe_overdue(&mut self, index: usize) {
        let Some(run) = &mut self.units[index].run else { return };
        let active = run.monitor.as_mut().and_then(|monitor| monitor.active.take());
        match active {
            // It may be a while until its end is told: the hub does one thing at a time.
            Some(Active { kind: Kind::Doubted(why), .. }) if is_ending(run) => self.probe_failed(index, why),
            Some(Active { kind: Kind::Doubted(why), .. }) => self.conclude(index, Err(why)),
            active => {
                self.cancel_probe(active);
                self.conclude(index, Err("it took longer than its timeout".into()));
            }
        }
    }

    pub(super) fn conclude(&mut self, index: usize, result: Result<(), String>) {
        let monitor = self.units[index].run.as_mut().and_then(|run| run.monitor.as_mut());
        let Some(monitor) = monitor else { return };
        if monitor.conclude(result, Instant::now()) {
            let (detail, what) = match monitor.health {
                Health::Unhealthy => (
                    Some(format!("unhealthy: {}", monitor.output)),
                    Some(What::Unhealthy { output: monitor.output.clone() }),
                ),
                Health::Healthy => (Some("healthy".to_owned()), Some(What::Healthy)),
                Health::Starting => (None, None),
            };
            self.tell_state(index, detail);
            if let Some(what) = what {
                self.tell_event_of(index, what);
            }
        }
    }

    pub(super) fn read_probe(&mut self, index: usize) {
        let monitor = self.units[index].run.as_mut().and_then(|run| run.monitor.as_mut());
        let Some(active) = monitor.and_then(|monitor| monitor.active.as_mut()) else { return };
        match active.advance() {
            Verdict::Pending => {}
            Verdict::Passed => self.conclude(index, Ok(())),
            Verdict::Failed(why) => self.probe_failed(index, why),
        }
    }

    pub(super) fn probe(&mut self, index: usize) -> Result<Kind, RemoteError> {
        let unit = &self.units[index];
        let run = unit.run.as_ref().ok_or_else(|| RemoteError::message("it does not run"))?;
        let probe = run.monitor.as_ref().and_then(Monitor::probe).cloned();
        match probe {
            Some(Probe::Exec(argv)) => {
                let mut process = unit.process.clone();
                process.argv = argv;
                process.terminal = false;
                let pid = run.pid;
                let cgroup = run.cgroup.as_ref().map(AsFd::as_fd);
                let null = File::open("/dev/null")?;
                let (read, write) =
                    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)?;
                rustix::io::ioctl_fionbio(&read, true).map_err(io::Error::from)?;
                let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
                let started = self.hub.exec(pid, process, cgroup, stdio)?;
                Ok(Kind::Exec {
                    pid: started.pid,
                    pidfd: started.pidfd,
                    output: Some(read),
                    text: Vec::new(),
                })
            }
            Some(Probe::Tcp(port)) => Ok(health::connect(self.socket_beside(index)?, port, None)?),
            Some(Probe::Http { port, path }) => {
                Ok(health::connect(self.socket_beside(index)?, port, Some(&path))?)
            }
            Some(Probe::Image) | None => Err(RemoteError::message("there is nothing to try")),
        }
    }

    /// A TCP socket of the network namespace that a container is in.
    fn socket_beside(&mut self, index: usize) -> Result<OwnedFd, RemoteError> {
        let unit = &self.units[index];
        match unit.service.network_mode.owner(unit.name()).map(str::to_owned) {
            Some(owner) => self.hub.socket(&owner),
            // That is where we are.
            None => Ok(health::socket()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_exiting() {
        assert!(!is_exiting(&fs::read_to_string("/proc/self/stat").unwrap()));
        // One that nobody has waited for.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let ended = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), ended).unwrap();
        assert!(is_exiting(&fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap()));
        child.wait().unwrap();
        assert!(!is_exiting("1 (a) b 4 4 4 4 4 4) S 0 1 1 0 -1 4194560 4 4"), "a name like this");
        assert!(!is_exiting(""));
    }
}
