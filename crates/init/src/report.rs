//! Why a child could not become the program it was made for, as a typed message over a pipe.
//!
//! The pipe is close-on-exec: a successful `execve` closes it without a message.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::obstacle::Obstacle;

/// What was being done when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Joining or setting up a namespace.
    Namespace = 1,
    /// Mounting the root file system.
    Rootfs,
    /// Mounting something below the root.
    Mount,
    /// Changing the root.
    Pivot,
    /// Writing a sysctl.
    Sysctl,
    /// Finding the user or group in the image.
    User,
    /// Entering the working directory.
    WorkingDirectory,
    /// Setting a resource limit.
    Rlimit,
    /// Dropping capabilities or changing ids.
    Credentials,
    /// Loading the seccomp filter.
    Seccomp,
    /// Making the terminal the controlling one.
    Terminal,
    /// Finding or executing the program.
    Exec,
    /// Anything else between clone and exec.
    Setup,
    /// Asking a Linux security module for a label.
    Label,
    /// Running a hook of the container's.
    Hook,
    /// Keeping the process to its files.
    Landlock,
}

impl Stage {
    const ALL: [Self; 16] = [
        Self::Namespace,
        Self::Rootfs,
        Self::Mount,
        Self::Pivot,
        Self::Sysctl,
        Self::User,
        Self::WorkingDirectory,
        Self::Rlimit,
        Self::Credentials,
        Self::Seccomp,
        Self::Terminal,
        Self::Exec,
        Self::Setup,
        Self::Label,
        Self::Hook,
        Self::Landlock,
    ];
}

/// A failed step: what, on which object, and the kernel's answer.
#[derive(Debug)]
pub struct Failure {
    /// What was being done.
    pub stage: Stage,
    /// The object: a path, a name, a limit.
    pub detail: String,
    /// `errno`; 0 when the kernel was not the one that refused.
    pub errno: i32,
    /// What about the program is in the way, where that can be seen.
    pub obstacle: Option<Obstacle>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = &self.detail;
        match self.stage {
            Stage::Namespace => write!(f, "enter {detail}"),
            Stage::Rootfs => write!(f, "mount the root file system: {detail}"),
            Stage::Mount => write!(f, "mount {detail}"),
            Stage::Pivot => write!(f, "change the root to {detail}"),
            Stage::Sysctl => write!(f, "set sysctl {detail}"),
            Stage::User => write!(f, "find user `{detail}` in the image"),
            Stage::WorkingDirectory => write!(f, "enter working directory `{detail}`"),
            Stage::Rlimit => write!(f, "set resource limit {detail}"),
            Stage::Credentials => write!(f, "change credentials: {detail}"),
            Stage::Seccomp => write!(f, "load the seccomp filter {detail}"),
            Stage::Terminal => write!(f, "set up the terminal {detail}"),
            Stage::Exec => {
                write!(f, "execute `{detail}`")?;
                match &self.obstacle {
                    Some(Obstacle::Interpreter(name)) => {
                        let name = name.escape_debug();
                        write!(f, ": its first line names the interpreter `{name}`, which is not there")
                    }
                    Some(Obstacle::Loader(name)) => {
                        let name = name.escape_debug();
                        write!(f, ": it was linked for the loader `{name}`, which is not there")
                    }
                    Some(Obstacle::Format) => {
                        f.write_str(": it is no program, and no script that begins with `#!`")
                    }
                    Some(Obstacle::Machine) => f.write_str(": it is a program for another kind of machine"),
                    Some(Obstacle::Mode) => f.write_str(": the file has no execute bit"),
                    Some(Obstacle::Directory) => f.write_str(": it is a directory"),
                    // The words by which engines tell what is missing.
                    None if self.is_missing() && !detail.contains('/') => {
                        f.write_str(": executable file not found in $PATH")
                    }
                    None => Ok(()),
                }
            }
            Stage::Label => write!(f, "set the security label {detail}"),
            Stage::Hook => write!(f, "run {detail}"),
            Stage::Landlock => write!(f, "restrict files by Landlock{detail}"),
            Stage::Setup => write!(f, "{detail}"),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}

impl Failure {
    /// A failure of `stage` on `detail` for which the kernel gave `error`.
    pub fn new(stage: Stage, detail: impl Into<String>, error: impl Into<io::Error>) -> Self {
        let errno = error.into().raw_os_error().unwrap_or(0);
        Self { stage, detail: detail.into(), errno, obstacle: None }
    }

    /// Whether the kernel found no such file.
    pub fn is_missing(&self) -> bool {
        self.errno == rustix::io::Errno::NOENT.raw_os_error()
    }

    /// The kernel's answer as an error, when it gave one.
    pub fn os_error(&self) -> Option<io::Error> {
        (self.errno != 0).then(|| io::Error::from_raw_os_error(self.errno))
    }

    /// The exit status that shells and Docker use: 127 for a program that is not there, 126 for one that
    /// cannot be executed, 125 for everything before.
    pub fn exit_code(&self) -> i32 {
        match (self.stage, io::Error::from_raw_os_error(self.errno).kind()) {
            (Stage::Exec, io::ErrorKind::NotFound) => 127,
            (Stage::Exec, _) => 126,
            _ => 125,
        }
    }

    /// Writes the message; the reader may be gone, and then nobody is left to be told.
    pub fn send(&self, pipe: impl AsFd) {
        let mut message = vec![self.stage as u8];
        message.extend_from_slice(&self.errno.to_le_bytes());
        message.push(self.obstacle.as_ref().map_or(0, Obstacle::number));
        // No name of a file holds the byte that separates them.
        message
            .extend_from_slice(self.obstacle.as_ref().and_then(Obstacle::missing).unwrap_or("").as_bytes());
        message.push(0);
        message.extend_from_slice(self.detail.as_bytes());
        message.truncate(LONGEST);
        match rustix::io::write(pipe, &message) {
            Ok(_) | Err(_) => {}
        }
    }

    fn decode(message: &[u8]) -> Option<Self> {
        let (&stage, rest) = message.split_first()?;
        let (errno, rest) = rest.split_first_chunk()?;
        let (&obstacle, rest) = rest.split_first()?;
        let (missing, detail) = rest.split_at(rest.iter().position(|byte| *byte == 0)?);
        Some(Self {
            stage: Stage::ALL.into_iter().find(|s| *s as u8 == stage)?,
            detail: String::from_utf8_lossy(&detail[1..]).into_owned(),
            errno: i32::from_le_bytes(*errno),
            obstacle: Obstacle::decode(obstacle, String::from_utf8_lossy(missing).into_owned()),
        })
    }
}

/// What a child said before its end of the pipe closed.
#[derive(Debug)]
pub enum Outcome {
    /// It executed its program.
    Executed,
    /// It is a [`crate::process`] joiner and made this process (a number of its PID namespace).
    Started(i32),
    /// It is ready and waits to be told to execute its program.
    Waiting,
    /// This message brings the listening end of its seccomp filter.
    Listener,
    /// This message brings the container's cgroup namespace.
    CgroupNamespace,
    /// It could not.
    Failed(Failure),
}

/// Bytes of a message at the most.
pub const LONGEST: usize = 4096;

const STARTED: u8 = 0;
const WAITING: u8 = u8::MAX;

/// Tells the reader that the process is ready, and waits.
///
/// # Errors
/// What `write(2)` reports.
pub fn send_waiting(pipe: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::write(pipe, &[WAITING])?;
    Ok(())
}

/// Tells the reader that `pid` was made on its behalf.
///
/// # Errors
/// What `write(2)` reports.
pub fn send_started(pipe: BorrowedFd<'_>, pid: i32) -> io::Result<()> {
    let mut message = [STARTED; 5];
    message[1..].copy_from_slice(&pid.to_le_bytes());
    rustix::io::write(pipe, &message)?;
    Ok(())
}

/// Reads one message; the pipe is a packet pipe or socket, so that messages do not run together.
///
/// # Errors
/// What `read(2)` reports; `InvalidData` for a message that is not ours.
pub fn receive(pipe: BorrowedFd<'_>) -> io::Result<Outcome> {
    let mut buffer = [0u8; LONGEST];
    let length = loop {
        match rustix::io::read(pipe, &mut buffer) {
            // The latter is told once by a socket whose other process ended without reading all that we sent; what it
            // had to say itself is still to come.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            other => break other?,
        }
    };
    decode(&buffer[..length])
}

/// What a message says; the end of the stream is an empty one.
///
/// # Errors
/// `InvalidData` for a message that is not ours.
pub fn decode(message: &[u8]) -> io::Result<Outcome> {
    match message {
        [] => Ok(Outcome::Executed),
        [WAITING] => Ok(Outcome::Waiting),
        [crate::process::LISTENER] => Ok(Outcome::Listener),
        [crate::process::CGROUP_NAMESPACE] => Ok(Outcome::CgroupNamespace),
        [STARTED, pid @ ..] => {
            let pid = pid.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
            Ok(Outcome::Started(i32::from_le_bytes(pid)))
        }
        message => Failure::decode(message).map(Outcome::Failed).ok_or(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_pipe() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let error = io::Error::from_raw_os_error(2);
        Failure::new(Stage::Exec, "/bin/nothing", error).send(&write);
        let Outcome::Failed(failure) = receive(read.as_fd()).unwrap() else { panic!("no failure") };
        assert_eq!((failure.stage, failure.errno, failure.detail.as_str()), (Stage::Exec, 2, "/bin/nothing"));
        assert_eq!((failure.exit_code(), failure.obstacle), (127, None));
        for obstacle in
            [Obstacle::Interpreter("/bin/sh\r".into()), Obstacle::Loader("/l".into()), Obstacle::Mode]
        {
            let error = io::Error::from_raw_os_error(2);
            Failure { obstacle: Some(obstacle.clone()), ..Failure::new(Stage::Exec, "x", error) }
                .send(&write);
            let Outcome::Failed(failure) = receive(read.as_fd()).unwrap() else { panic!("no failure") };
            assert_eq!((failure.detail.as_str(), failure.obstacle), ("x", Some(obstacle)));
        }
        drop(write);
        assert!(matches!(receive(read.as_fd()).unwrap(), Outcome::Executed));
    }
}
