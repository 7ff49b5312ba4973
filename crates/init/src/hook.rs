//! Running a hook: its state on standard input, and no longer than it may.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::entry::Hook;

/// Bytes of a failed hook's standard error that are kept.
const KEPT: usize = 1024;

/// Runs `hook` with `state` on its standard input and waits for its end. Output is thrown away but for the last of
/// standard error, which tells why it failed.
///
/// # Errors
/// Why it did not succeed, as text.
pub fn run(hook: &Hook, state: &str) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    if let Some(env) = &hook.env {
        command.env_clear().envs(env);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let deadline = hook.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut said = Vec::new();
    let status = match accompany(&mut child, state.as_bytes(), deadline, &mut said) {
        Ok(Some(status)) => status,
        result => {
            let reason = match result {
                Err(error) => error.to_string(),
                _ => format!("still running after {} seconds", hook.timeout.unwrap_or(0)),
            };
            return match child.kill().and_then(|()| child.wait()) {
                Ok(_) => Err(reason),
                Err(error) => Err(format!("{reason}; kill it: {error}")),
            };
        }
    };
    if status.success() {
        return Ok(());
    }
    let ending = match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or(-1)),
    };
    let said = String::from_utf8_lossy(&said);
    Err(if said.trim().is_empty() {
        ending
    } else {
        format!("{ending}: {}", said.trim().replace('\n', " | "))
    })
}

/// Writes the state, reads what the hook says, and waits for its end. `None` when that takes too long.
fn accompany(
    child: &mut Child,
    state: &[u8],
    deadline: Option<Instant>,
    said: &mut Vec<u8>,
) -> io::Result<Option<ExitStatus>> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let (mut stdin, mut stderr) = (child.stdin.take(), child.stderr.take());
    // A hook need not read its state, and may leave a process behind that holds its standard error: neither is waited for.
    for pipe in [stdin.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
        rustix::io::ioctl_fionbio(pipe, true)?;
    }
    let mut unwritten = state;
    loop {
        let status = child.try_wait()?;
        if stdin.as_mut().is_some_and(|pipe| !tell(pipe, &mut unwritten)) {
            stdin = None;
        }
        if let Some(pipe) = &mut stderr
            && !listen(pipe, said)?
        {
            stderr = None;
        }
        if status.is_some() {
            return Ok(status);
        }
        let timeout = match deadline.map(|deadline| deadline.checked_duration_since(Instant::now())) {
            Some(None) => return Ok(None),
            Some(Some(left)) => Some(left.try_into().map_err(|_| io::ErrorKind::InvalidInput)?),
            None => None,
        };
        let mut polled = vec![PollFd::new(&pidfd, PollFlags::IN)];
        polled.extend(stdin.iter().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        polled.extend(stderr.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Writes what the pipe takes. False when there is no more to write, or nobody who reads it.
fn tell(pipe: &mut ChildStdin, unwritten: &mut &[u8]) -> bool {
    while !unwritten.is_empty() {
        match pipe.write(unwritten) {
            Ok(length) => *unwritten = &unwritten[length..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    false
}

/// Reads what is there, and keeps the last of all. False at its end.
fn listen(pipe: &mut ChildStderr, said: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; KEPT];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => {
                said.extend_from_slice(&buffer[..length]);
                said.drain(..said.len().saturating_sub(KEPT));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Option<u64>) -> Hook {
        let args = vec!["sh".into(), "-c".into(), script.into()];
        Hook { path: "/bin/sh".into(), args, env: Some([("A".to_owned(), "b".to_owned())].into()), timeout }
    }

    #[test]
    fn the_state_is_read_and_the_environment_is_its_own() {
        run(&shell("test \"$(cat)\" = '{}' && test \"$A\" = b && test -z \"$HOME\"", Some(20)), "{}")
            .unwrap();
        // More than a pipe takes at once.
        run(&shell("test $(wc -c) = 1048576", Some(20)), &" ".repeat(1 << 20)).unwrap();
    }

    #[test]
    fn why_it_failed() {
        assert_eq!(run(&shell("echo no >&2; exit 3", None), "").unwrap_err(), "exit status 3: no");
        assert_eq!(run(&shell("kill -9 $$", None), "").unwrap_err(), "killed by signal 9");
        assert_eq!(run(&shell("sleep 60", Some(1)), "").unwrap_err(), "still running after 1 seconds");
        // More than a pipe takes, and nobody who reads it.
        let state = " ".repeat(1 << 20);
        assert_eq!(run(&shell("sleep 60", Some(1)), &state).unwrap_err(), "still running after 1 seconds");
        run(&shell("exit 0", Some(20)), &state).unwrap();
        let missing = Hook { path: "/no/such".into(), args: vec![], env: None, timeout: None };
        assert!(run(&missing, "").unwrap_err().contains("No such file"));
    }
}
