//! The porter: a child of the hub that stays in the host's network namespace, for services with `network_mode: host`.
//!
//! The hub has a network namespace of its own and cannot enter the host's, of whose user namespace it is no root. What the
//! porter starts is born there. It becomes the hub's child all the same, which reaps it as it reaps what it started itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use container::Process;
use container::sandbox::{Sandbox, Seccomp};
use serde::{Deserialize, Serialize};
use sys::channel::Channel;

use super::launcher::Launcher;
use super::{Event, Partners, Reply, launched, started};
use crate::remote::{self, Context, RemoteError};
use crate::report::report;

/// How long a start may take: the first use of a volume copies data.
const DEADLINE: Duration = Duration::from_secs(320);

/// What the hub asks of the porter.
#[derive(Debug, Serialize, Deserialize)]
enum Task {
    /// As [`super::Request::Start`]; the pidfds of the partners that there are come first.
    Start { sandbox: Box<Sandbox>, partners: Partners<bool>, cgroup: bool },
    /// As [`super::Request::Exec`]; the target's pidfd is the last descriptor.
    Exec { process: Box<Process>, seccomp: Seccomp, cgroup: bool },
}

/// The hub's side.
#[derive(Debug)]
pub(super) struct Porter(Channel);

impl Porter {
    /// Leaves a porter behind in the present network namespace. It is not tied to its parent: that is the first process of
    /// this PID namespace, with which all others end.
    pub(super) fn spawn(launcher: Launcher) -> Result<Self, RemoteError> {
        let (ours, theirs) = Channel::pair()?;
        let mut parts = Some((ours, launcher));
        let mut body = || {
            let Some((ours, launcher)) = parts.take() else { return 125 };
            drop(ours);
            serve(&theirs, launcher)
        };
        sys::process::spawn(0, &mut body).context(|| "start the stack's porter".into())?;
        // Still there: only the child's copy of this variable was emptied.
        let (ours, _) = parts.ok_or_else(|| RemoteError::message("start the stack's porter"))?;
        Ok(Self(ours))
    }

    /// Starts a sandbox in the host's network namespace.
    pub(super) fn start(
        &self,
        sandbox: Box<Sandbox>,
        partners: Partners<BorrowedFd<'_>>,
        cgroup: bool,
        fds: &[OwnedFd],
    ) -> Result<Reply, RemoteError> {
        let task = Task::Start { sandbox, partners: partners.map(|_| true), cgroup };
        self.ask(&task, partners.iter().copied().chain(fds.iter().map(AsFd::as_fd)).collect())
    }

    /// Starts a process in the sandbox of such a one.
    pub(super) fn exec(
        &self,
        target: BorrowedFd<'_>,
        process: Box<Process>,
        seccomp: Seccomp,
        cgroup: bool,
        fds: &[OwnedFd],
    ) -> Result<Reply, RemoteError> {
        let fds = fds.iter().map(AsFd::as_fd).chain([target]).collect();
        self.ask(&Task::Exec { process, seccomp, cgroup }, fds)
    }

    fn ask(&self, task: &Task, fds: Vec<BorrowedFd<'_>>) -> Result<Reply, RemoteError> {
        let doing = || "ask the stack's porter".into();
        remote::send(&self.0, task, &fds).context(doing)?;
        let answer = self.0.recv_until(Instant::now() + DEADLINE).context(doing)?;
        let answer = answer.ok_or_else(|| RemoteError::message("the stack's porter is gone"))?;
        match remote::decode(answer)? {
            (Event::Failed(error), _) => Err(error),
            answer => Ok(answer),
        }
    }
}

/// The porter's life.
fn serve(hub: &Channel, mut launcher: Launcher) -> i32 {
    let mut one = || -> std::io::Result<bool> {
        let Some(message) = hub.recv()? else { return Ok(false) };
        let (task, fds) = remote::decode(message)?;
        let (event, fds) =
            carry_out(&mut launcher, task, fds).unwrap_or_else(|error| (Event::Failed(error), Vec::new()));
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        remote::send(hub, &event, &fds)?;
        Ok(true)
    };
    loop {
        match one() {
            Ok(true) => {}
            Ok(false) => return 0,
            Err(error) => {
                report(format_args!("error: the stack's porter stops: {error}"));
                return 1;
            }
        }
    }
}

fn carry_out(launcher: &mut Launcher, task: Task, mut fds: Vec<OwnedFd>) -> Result<Reply, RemoteError> {
    match task {
        Task::Start { sandbox, partners, cgroup } => {
            let count = partners.iter().count().min(fds.len());
            let pidfds: Vec<OwnedFd> = fds.drain(..count).collect();
            let mut pidfds = pidfds.iter();
            let partners = partners.map(|_| pidfds.next().map(AsFd::as_fd));
            let partners = Partners { pid: partners.pid.flatten(), ipc: partners.ipc.flatten() };
            Ok(launched(launcher.start(&sandbox, None, partners, cgroup, fds)?))
        }
        Task::Exec { process, seccomp, cgroup } => {
            let target = fds.pop().ok_or_else(|| RemoteError::message("a task came without its target"))?;
            Ok(started(launcher.exec(target.as_fd(), &process, &seccomp, cgroup, fds)?))
        }
    }
}
