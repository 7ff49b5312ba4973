//! `start`, `kill`, `delete` and everything else that is done to a container that exists.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use init::report::Outcome;
use oci_spec::runtime::LinuxResources;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::Error;
use super::plan::Program;
use super::state::{self, Directory, Record, START, Status};
use super::{Runtime, hooks};
use crate::cgroup::{Cgroup, Resources, thaw_the_dying};
use crate::launch;

/// How long a killed process may take to be gone.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);

impl Runtime {
    /// Record and status of a container; no record while it is being created.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn state(&self, id: &str) -> Result<(Option<Record>, Status), Error> {
        state::look(&self.root, id)
    }

    /// The names of all containers, sorted.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub fn ids(&self) -> Result<Vec<String>, Error> {
        state::ids(&self.root)
    }

    /// Has a created container execute its program, and runs the hooks for after that.
    ///
    /// # Errors
    /// A container in another status, a program or hook that failed: the container is stopped then.
    pub fn start(&self, id: &str) -> Result<(), Error> {
        let (directory, record) = self.open("start", id, |status| status == Status::Created)?;
        if record.defaults.process.is_none() {
            return Err(Error::invalid("process", "is missing: there is nothing to start"));
        }
        let executed = execute(&directory, &record);
        directory.started()?;
        executed?;
        // Hooks may call us.
        drop(directory);
        let state = hooks::state(&record, Status::Running);
        hooks::run("poststart", &record.poststart, &state).inspect_err(|_| {
            if let Err(error) = end(&record) {
                tracing::warn!("end container `{id}` after a failed hook: {error}");
            }
        })
    }

    /// Sends a signal to the first process, or to all.
    ///
    /// # Errors
    /// A container that is not there any more.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        let alive = |status| matches!(status, Status::Created | Status::Running | Status::Paused);
        // To all that a stopped container has left, too.
        let (directory, record) =
            self.open("kill", id, |status| alive(status) || (all && status == Status::Stopped))?;
        let cgroup = record.cgroup.open()?;
        match cgroup {
            Some(cgroup) if all => cgroup.signal_all(signal)?,
            None if all => {
                for pid in namespace_members(&record)? {
                    signal_member(&record, pid, signal)?;
                }
            }
            _ if alive(directory.status(&record)?) => signal_first(&record, signal)?,
            _ => {}
        }
        Ok(())
    }

    /// Removes a container that has stopped or was never started; with `force` it is killed first, and one that does
    /// not exist is no error.
    ///
    /// # Errors
    /// A container that runs.
    pub fn delete(&self, id: &str, force: bool) -> Result<(), Error> {
        let directory = match Directory::open(&self.root, id) {
            Err(Error::NotFound(_)) if force => return Ok(()),
            other => other?,
        };
        let record = match directory.record() {
            // What cannot be read does not keep anybody from getting rid of it.
            Err(Error::Record { .. }) if force => None,
            other => other?,
        };
        let Some(record) = record else { return directory.abandon() };
        match directory.status(&record)? {
            Status::Stopped => {}
            Status::Created => end(&record)?,
            _ if force => end(&record)?,
            status => return Err(Error::Status { operation: "delete", id: id.to_owned(), status }),
        }
        if let Some(cgroup) = record.cgroup.open()? {
            // Without a PID namespace of its own others can be left.
            cgroup.kill()?;
        }
        record.cgroup.remove()?;
        directory.remove()?;
        let state = hooks::state(&record, Status::Stopped);
        for hook in &record.poststop {
            if let Err(error) = hooks::run("poststop", std::slice::from_ref(hook), &state) {
                tracing::warn!("{error}");
            }
        }
        Ok(())
    }

    /// The numbers of all processes, in this PID namespace. A container that has stopped has none, unless it shares
    /// the PID namespace of others.
    ///
    /// # Errors
    /// A container that is being created.
    pub fn processes(&self, id: &str) -> Result<Vec<i32>, Error> {
        let (_, record) = self.open("list the processes of", id, |status| status != Status::Creating)?;
        match record.cgroup.open()? {
            Some(cgroup) => Ok(cgroup.procs()?),
            None => namespace_members(&record),
        }
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// A container that does not run or has no cgroup.
    pub fn pause(&self, id: &str) -> Result<(), Error> {
        let running = |status| matches!(status, Status::Running | Status::Created);
        let (_, record) = self.open("pause", id, running)?;
        Ok(cgroup_of(&record, "pause")?.freeze()?)
    }

    /// Lets all processes go on.
    ///
    /// # Errors
    /// A container that is not paused.
    pub fn resume(&self, id: &str) -> Result<(), Error> {
        let (_, record) = self.open("resume", id, |status| status == Status::Paused)?;
        Ok(cgroup_of(&record, "resume")?.thaw()?)
    }

    /// Changes limits; what `resources` does not name stays.
    ///
    /// # Errors
    /// A container that has stopped, and limits that this host does not have.
    pub fn update(&self, id: &str, resources: &LinuxResources) -> Result<(), Error> {
        let alive = |status| matches!(status, Status::Created | Status::Running | Status::Paused);
        let (_, record) = self.open("update", id, alive)?;
        record.cgroup.update(&Resources::from_spec(resources)?)?;
        Ok(())
    }

    /// The cgroup of a container.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn cgroup(&self, id: &str) -> Result<Option<Cgroup>, Error> {
        let (record, _) = self.state(id)?;
        record.map_or(Ok(None), |record| Ok(record.cgroup.open()?))
    }

    /// The locked directory and the record of a container in a status that `allowed` accepts.
    fn open(
        &self,
        operation: &'static str,
        id: &str,
        allowed: impl Fn(Status) -> bool,
    ) -> Result<(Directory, Record), Error> {
        let directory = Directory::open(&self.root, id)?;
        let refused = |status| Error::Status { operation, id: id.to_owned(), status };
        let record = directory.record()?.ok_or_else(|| refused(Status::Creating))?;
        let status = directory.status(&record)?;
        if allowed(status) { Ok((directory, record)) } else { Err(refused(status)) }
    }
}

fn cgroup_of(record: &Record, operation: &'static str) -> Result<Cgroup, Error> {
    let missing = || Error::unsupported(operation, "this container has no cgroup");
    record.cgroup.open()?.ok_or_else(missing)
}

/// Connects to the waiting process, and waits until it has executed its program.
fn execute(directory: &Directory, record: &Record) -> Result<(), Error> {
    let fail = |e: rustix::io::Errno| {
        Error::system(format!("reach the waiting process of `{}`", record.id))(e.into())
    };
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(fail)?;
    let address = SocketAddrUnix::new(directory.short_path(START)).map_err(fail)?;
    match rustix::net::connect(&socket, &address) {
        // Nobody waits there any more: another `start` was killed after it had done its work.
        Err(rustix::io::Errno::CONNREFUSED) => {
            let (operation, id) = ("start", record.id.clone());
            return Err(Error::Status { operation, id, status: Status::Running });
        }
        other => other.map_err(fail)?,
    }
    loop {
        match launch::receive_with(socket.as_fd()) {
            Ok((Outcome::Executed, _)) => return Ok(()),
            Ok((Outcome::Listener, Some(end))) => {
                let mut program = Program::none();
                if let Some(profile) = &record.defaults.seccomp {
                    program.filter(profile)?;
                }
                if let Some(listener) = &program.listener {
                    listener.tell(record, record.pid, end.as_fd())?;
                }
            }
            Ok((outcome, _)) => return Err(launch::refused(Ok(outcome), "container").into()),
            Err(error) => return Err(launch::refused(Err(error), "container").into()),
        }
    }
}

fn signal_first(record: &Record, signal: i32) -> Result<(), Error> {
    let fail = || Error::system(format!("send signal {signal} to process {}", record.pid));
    let Some(pid) = Pid::from_raw(record.pid) else { return Ok(()) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.map_err(|e| fail()(e.into()))?,
    };
    // The descriptor stands for one process for ever: if it is the right one now, it stays it.
    if state::start_time(record.pid) != Some(record.start_time) {
        return Ok(());
    }
    match sys::process::pidfd_kill(pidfd.as_fd(), signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map_err(fail()),
    }
}

/// Without a cgroup: the processes in the container's own PID namespace, or else the first one, as nothing tells the
/// others from the host's.
fn namespace_members(record: &Record) -> Result<Vec<i32>, Error> {
    let own = pid_namespace(record.pid).filter(|_| record.own_pids);
    // The number may be another's by now. Those in a PID namespace die with the first.
    if state::start_time(record.pid) != Some(record.start_time) {
        return Ok(Vec::new());
    }
    let Some(own) = own else { return Ok(vec![record.pid]) };
    let processes = std::fs::read_dir("/proc").map_err(Error::system("read /proc"))?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| pid_namespace(*pid) == Some(own)).collect())
}

/// Device and inode of a process's PID namespace; `None` for one that is gone or not ours to look at.
fn pid_namespace(pid: i32) -> Option<(u64, u64)> {
    let stat = rustix::fs::stat(format!("/proc/{pid}/ns/pid")).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// Signals one of [`namespace_members`], if it still is one.
fn signal_member(record: &Record, pid: i32, signal: i32) -> Result<(), Error> {
    if pid == record.pid {
        return signal_first(record, signal);
    }
    let Some(number) = Pid::from_raw(pid) else { return Ok(()) };
    let fail = || Error::system(format!("send signal {signal} to process {pid}"));
    let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.map_err(|e| fail()(e.into()))?,
    };
    if pid_namespace(pid) != pid_namespace(record.pid) {
        return Ok(());
    }
    match sys::process::pidfd_kill(pidfd.as_fd(), signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map_err(fail()),
    }
}

/// Kills everything and waits until the first process is gone.
fn end(record: &Record) -> Result<(), Error> {
    signal_first(record, libc::SIGKILL)?;
    if state::start_time(record.pid) == Some(record.start_time) {
        thaw_the_dying(record.pid)?;
    }
    if let Some(cgroup) = record.cgroup.open()? {
        cgroup.kill()?;
    }
    let deadline = Instant::now() + DEATH_DEADLINE;
    while state::start_time(record.pid) == Some(record.start_time) {
        if Instant::now() > deadline {
            let error = std::io::ErrorKind::TimedOut.into();
            return Err(Error::system(format!("wait for the death of process {}", record.pid))(error));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
