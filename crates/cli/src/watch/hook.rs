//! What `sync+exec` runs: a command in each container of a service, without input, whose output is ours to show.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use stack::RemoteError;
use stack::control::{self, Command, Notice};
use stack::plan::Hook;
use stack::stats;

use crate::output::Failure;
use crate::session::{Session, answer};

/// Runs it in each container that runs.
///
/// # Errors
/// When it cannot be started, or does not end with status 0.
pub(super) fn run(session: &Session, service: &str, hook: &Hook) -> Result<(), Failure> {
    let mut client = session.running()?;
    let subjects = stats::subjects(&mut client, &[service.to_owned()])?;
    for status in subjects.into_iter().map(|subject| subject.status).filter(|status| status.pid.is_some()) {
        let status_of_hook = in_container(session, &status.container, hook)?;
        if status_of_hook != 0 {
            let text = format!(
                "`{}` in `{}` ended with status {status_of_hook}",
                hook.command.join(" "),
                status.container
            );
            return Err(RemoteError::message(text).into());
        }
    }
    Ok(())
}

/// Runs it in a container; its exit status.
fn in_container(session: &Session, container: &str, hook: &Hook) -> Result<i32, Failure> {
    let (read, write) = io::pipe().map_err(Failure::system("open a pipe"))?;
    let (read, write) = (File::from(OwnedFd::from(read)), OwnedFd::from(write));
    rustix::io::ioctl_fionbio(&read, true).map_err(Failure::system("open a pipe"))?;
    let null = File::open("/dev/null").map_err(Failure::system("open /dev/null"))?;
    let exec = control::Exec {
        service: container.to_owned(),
        argv: hook.command.clone(),
        env: hook.environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        cwd: hook.working_dir.clone(),
        user: hook.user.clone(),
        privileged: hook.privileged,
        ..control::Exec::default()
    };
    let mut client = session.running()?;
    client.send(&Command::Exec(exec), &[null.as_fd(), write.as_fd(), write.as_fd()])?;
    // Ours would keep the end of its output from being seen.
    drop(write);
    let mut lines = Lines { session, container, read: Some(read), rest: Vec::new() };
    loop {
        let mut polled = vec![PollFd::new(&client, PollFlags::IN)];
        polled.extend(lines.read.as_ref().map(|read| PollFd::new(read, PollFlags::IN)));
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Failure::system("wait for the process")(errno)),
        }
        let told = !polled[0].revents().is_empty();
        lines.show()?;
        if told && let Notice::Exited { status } = answer(&mut client)? {
            // What it has left running may go on writing, and nobody waits for that.
            lines.show()?;
            lines.end();
            return Ok(status);
        }
    }
}

/// What the command writes, line by line.
struct Lines<'a> {
    session: &'a Session,
    container: &'a str,
    read: Option<File>,
    /// The beginning of a line.
    rest: Vec<u8>,
}

impl Lines<'_> {
    /// Longest line that is kept together, bytes.
    const LONGEST: usize = 64 << 10;

    /// Shows what is there.
    fn show(&mut self) -> Result<(), Failure> {
        let mut piece = [0; 4096];
        while let Some(read) = &mut self.read {
            match read.read(&mut piece) {
                Ok(0) => self.read = None,
                Ok(length) => {
                    for byte in &piece[..length] {
                        match byte {
                            b'\n' => self.end(),
                            byte => self.rest.push(*byte),
                        }
                        if self.rest.len() >= Self::LONGEST {
                            self.end();
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::system("read what the command writes")(error)),
            }
        }
        Ok(())
    }

    /// Shows a line.
    fn end(&mut self) {
        let line = std::mem::take(&mut self.rest);
        if !line.is_empty() {
            self.session.output.progress(&format!("{}: {}", self.container, String::from_utf8_lossy(&line)));
        }
    }
}
