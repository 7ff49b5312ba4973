//! `exec`: another process in a container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use init::entry::Joining;
use oci_spec::runtime::{LinuxSeccomp, Process as Config, Spec};
use serde::{Deserialize, Serialize};
use sys::process::{Child, namespace};

use super::create::write_pid;
use super::error::Error;
use super::plan::{Listener, Program};
use super::state::{Directory, Record, Status};
use super::{Console, Runtime, console, hooks};
use crate::join::{Target, join_as};
use crate::program;

/// What a container's `config.json` says that holds for later processes, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    /// Its first process.
    pub process: Option<Config>,
    /// Its filter.
    pub seccomp: Option<LinuxSeccomp>,
}

impl Defaults {
    pub(super) fn of(spec: &Spec) -> Self {
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
        Self { process: spec.process().clone(), seccomp }
    }
}

/// What `exec` is told.
#[derive(Debug)]
pub struct Exec {
    /// The process.
    pub process: Config,
    /// Where its terminal goes, if it wants one.
    pub console: Console,
    /// File that gets its number.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 up it gets.
    pub preserve_fds: u32,
    /// Enter a paused container, to begin when it is resumed.
    pub ignore_paused: bool,
}

impl Runtime {
    /// What the first process of a container was described as: where a later one begins.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn process_defaults(&self, id: &str) -> Result<Config, Error> {
        let (record, status) = self.state(id)?;
        let process = record.and_then(|record| record.defaults.process);
        process.ok_or_else(|| Error::Status { operation: "execute a process in", id: id.to_owned(), status })
    }

    /// Starts another process in a container. It is a child of the caller, who reaps it.
    ///
    /// # Errors
    /// A container that does not run, and the step that failed; no process is left then.
    pub fn exec(&self, id: &str, exec: Exec) -> Result<Child, Error> {
        let directory = Directory::open(&self.root, id)?;
        let refused = |status| Error::Status { operation: "execute a process in", id: id.to_owned(), status };
        let record = directory.record()?.ok_or_else(|| refused(Status::Creating))?;
        match directory.status(&record)? {
            Status::Running | Status::Created => {}
            Status::Paused if exec.ignore_paused => {}
            Status::Paused => return Err(Error::Paused(id.to_owned())),
            status => return Err(refused(status)),
        }
        let mut program = Program::inside(&exec.process)?;
        if let Some(profile) = &record.defaults.seccomp {
            program.filter(profile)?;
        }
        program.process.preserve_fds = exec.preserve_fds;
        let console = console::connect(exec.console)?;
        if program.terminal.is_some() != console.is_some() {
            return Err(Error::invalid("process.terminal", "a terminal and a console socket come together"));
        }
        program.process.terminal = console.is_some();
        program.process.terminal_size = program.terminal.and_then(|terminal| terminal.size);
        let pid = rustix::process::Pid::from_raw(record.pid).ok_or_else(|| refused(Status::Stopped))?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .map_err(|e| Error::system(format!("open process {}", record.pid))(e.into()))?;
        // Only now: the number could have been another's when its file descriptor was opened.
        if super::state::start_time(record.pid) != Some(record.start_time) {
            return Err(refused(Status::Stopped));
        }
        // Who begins in a frozen cgroup waits for a `resume`, which needs the lock.
        drop(directory);
        self.join(&record, pidfd.as_fd(), &program, console.as_ref(), exec.pid_file)
    }

    fn join(
        &self,
        record: &Record,
        pidfd: BorrowedFd<'_>,
        program: &Program,
        console: Option<&OwnedFd>,
        pid_file: Option<PathBuf>,
    ) -> Result<Child, Error> {
        let init =
            program::protected(self.acts_as_init).map_err(Error::system("store inception-init in memory"))?;
        let cgroup = record.cgroup.open()?;
        let entered = record.cgroup.also_entered()?;
        let [stdin, stdout, stderr] =
            [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let target = Target {
            beside: false,
            pidfd,
            init: init.as_fd(),
            // A process with a terminal has its socket as standard input until then.
            stdio: [console.map_or(stdin, AsFd::as_fd), stdout, stderr],
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            entered: &entered,
            filters: &program.filters,
        };
        let joining = Joining {
            namespaces: record.namespaces,
            root: record.namespaces & namespace::USER != 0,
            // The container's, so that it does not reach the keys of who calls us.
            keyring: Some(format!("_ses.{}", record.id)),
            affinity: program.affinity.clone(),
            process: program.process.clone(),
        };
        join_as(&joining, &target, |pid, listener| match listener {
            Some(end) => program.listener.as_ref().map_or(Ok(()), |to| to.tell(record, pid, end.as_fd())),
            None => {
                if program.scheduling.is_needed() {
                    program.scheduling.apply(pid)?;
                }
                pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, pid))
            }
        })
    }
}

/// "The Container Process State" of the specification's `config-linux.md`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: serde_json::Value,
}

impl Listener {
    /// Sends the listening end of a filter to who wants to be asked.
    pub(super) fn tell(&self, record: &Record, pid: i32, end: BorrowedFd<'_>) -> Result<(), Error> {
        let send = || -> io::Result<()> {
            let state = ProcessState {
                oci_version: &record.oci_version,
                fds: ["seccompFd"],
                pid,
                metadata: self.metadata.as_deref(),
                state: serde_json::from_str(&hooks::state(record, Status::Creating))?,
            };
            let socket = console::connect_to(&self.path)?;
            sys::channel::send_fd(socket.as_fd(), &serde_json::to_vec(&state)?, end)
        };
        send().map_err(Error::system(format!("tell the seccomp agent at {}", self.path.display())))
    }
}
