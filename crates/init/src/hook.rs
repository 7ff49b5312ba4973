//! Running a hook: its state on standard input, and no longer than it may.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

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
    let mut work = || -> io::Result<Option<ExitStatus>> {
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(state.as_bytes()) {
                // It did not want to know.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
        }
        let stderr = child.stderr.take();
        wait(&mut child, stderr, deadline, &mut said)
    };
    let status = match work() {
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

/// Reads what the hook says until it closes its standard error, and waits for its end. `None` when that takes too long.
fn wait(
    child: &mut std::process::Child,
    stderr: Option<std::process::ChildStderr>,
    deadline: Option<Instant>,
    said: &mut Vec<u8>,
) -> io::Result<Option<ExitStatus>> {
    use rustix::event::{PollFd, PollFlags, poll};
    let pidfd = rustix::process::Pid::from_raw(child.id() as i32)
        .map(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()))
        .ok_or(io::ErrorKind::InvalidInput)??;
    let mut stderr = stderr;
    loop {
        if let Some(status) = child.try_wait()? {
            // What it said last; not to its end, which a process that it left behind may hold open.
            if let Some(pipe) = &mut stderr {
                rustix::io::ioctl_fionbio(&*pipe, true)?;
                while matches!(listen(pipe, said), Ok(length) if length > 0) {}
            }
            return Ok(Some(status));
        }
        let timeout = match deadline {
            Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                Some(left) => Some(left.try_into().map_err(|_| io::ErrorKind::InvalidInput)?),
                None => return Ok(None),
            },
            None => None,
        };
        let mut polled = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if let Some(stderr) = &stderr {
            polled.push(PollFd::new(stderr, PollFlags::IN));
        }
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let readable = polled.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if readable
            && let Some(pipe) = &mut stderr
            && listen(pipe, said)? == 0
        {
            stderr = None;
        }
    }
}

/// Reads once and keeps the last of all.
fn listen(pipe: &mut std::process::ChildStderr, said: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; KEPT];
    let length = pipe.read(&mut buffer)?;
    said.extend_from_slice(&buffer[..length]);
    said.drain(..said.len().saturating_sub(KEPT));
    Ok(length)
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
    }

    #[test]
    fn why_it_failed() {
        assert_eq!(run(&shell("echo no >&2; exit 3", None), "").unwrap_err(), "exit status 3: no");
        assert_eq!(run(&shell("kill -9 $$", None), "").unwrap_err(), "killed by signal 9");
        assert_eq!(run(&shell("sleep 60", Some(1)), "").unwrap_err(), "still running after 1 seconds");
        let missing = Hook { path: "/no/such".into(), args: vec![], env: None, timeout: None };
        assert!(run(&missing, "").unwrap_err().contains("No such file"));
    }
}
