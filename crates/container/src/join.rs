//! Starting another process inside a running sandbox (`exec`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use init::process::Process;
use init::report::{Failure, Outcome, Stage};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::pipe::PipeFlags;
use sys::process::Child;

use crate::Error;
use crate::launch::{receive, refused, stdio};
use crate::userns;

/// What a join is given beside the process.
#[derive(Debug)]
pub struct Target<'a> {
    /// PID 1 of the sandbox.
    pub pidfd: BorrowedFd<'a>,
    /// The program of [`crate::program::init`].
    pub init: BorrowedFd<'a>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// The cgroup v2 directory of the sandbox.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Seccomp programs.
    pub filters: &'a [Vec<u8>],
}

/// Starts `process` in the namespaces of the sandbox. It becomes a child of the caller, who must be root of the
/// user namespace that owns the sandbox.
///
/// # Errors
/// The step that failed; no process is left then.
pub fn join(process: &Process, target: &Target<'_>) -> Result<Child, Error> {
    let encoded = serde_json::to_vec(process).map_err(|e| Error::system("encode the process")(e.into()))?;
    let sealed = |name, bytes: &[u8]| {
        sys::fd::sealed(name, bytes, false).map_err(Error::system("store the process in memory"))
    };
    let description = sealed(c"process", &encoded)?;
    let filters = sealed(c"filters", &encode_filters(target.filters))?;
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT)
        .map_err(|e| Error::system("create a pipe")(e.into()))?;
    let spawn = sys::process::SpawnArgs { cgroup: target.cgroup, ..Default::default() };
    let joiner = sys::process::spawn_with(spawn, || {
        let inherited = [target.pidfd, description.as_fd(), filters.as_fd(), write.as_fd()];
        let failure = become_joiner(target, &inherited);
        failure.send(&write);
        failure.exit_code()
    })
    .map_err(Error::system("create a process"))?;
    drop(write);
    let started = match receive(read.as_fd()) {
        Ok(Outcome::Started(pid)) => pid,
        outcome => {
            userns::end(&joiner).map_err(Error::system("reap the joiner"))?;
            return Err(refused(outcome, "process"));
        }
    };
    // The joiner ends by itself after its message.
    waitpid(Pid::from_raw(joiner.pid), None).map_err(|e| Error::system("wait for the joiner")(e.into()))?;
    // Its child is ours: nobody else reaps it, so the number is still its own.
    let pid = rustix::process::Pid::from_raw(started).ok_or(Error::Silent)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|e| Error::system("open the new process")(e.into()))?;
    let child = Child { pid: started, pidfd };
    match receive(read.as_fd()) {
        Ok(Outcome::Executed) => Ok(child),
        outcome => {
            userns::end(&child).map_err(Error::system("reap the new process"))?;
            Err(refused(outcome, "process"))
        }
    }
}

fn become_joiner(target: &Target<'_>, inherited: &[BorrowedFd<'_>]) -> Failure {
    let prepare = || -> Result<(), Failure> {
        sys::process::reset_signals().map_err(|e| Failure::new(Stage::Setup, "reset signals", e))?;
        stdio(target.stdio)?;
        sys::fd::close_on_exec_from(3).map_err(|e| Failure::new(Stage::Setup, "close descriptors", e))?;
        for fd in inherited {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
                .map_err(|e| Failure::new(Stage::Setup, "keep a descriptor", e))?;
        }
        Ok(())
    };
    if let Err(failure) = prepare() {
        return failure;
    }
    let numbers: Vec<_> =
        inherited.iter().filter_map(|fd| std::ffi::CString::new(fd.as_raw_fd().to_string()).ok()).collect();
    let mut argv = vec![c"inception-init".to_owned(), c"join".to_owned()];
    argv.extend(numbers);
    let environment: [&std::ffi::CStr; 0] = [];
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    let Err(errno) = nix::unistd::execveat(target.init, c"", &argv, &environment, flags);
    Failure::new(Stage::Exec, "inception-init", std::io::Error::from(errno))
}

/// As `inception-init join` reads them: each behind its length (u32, little endian).
fn encode_filters(filters: &[Vec<u8>]) -> Vec<u8> {
    filters.iter().flat_map(|f| (f.len() as u32).to_le_bytes().into_iter().chain(f.iter().copied())).collect()
}
