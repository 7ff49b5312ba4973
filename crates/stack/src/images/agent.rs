//! `--ssh`: a process of the user's that passes connections on to the SSH agent, which talks to nobody else.
//!
//! The agent looks at who connects (ssh-agent(1)): a storage worker and a command inside have other ids.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, set_parent_process_death_signal};
use sys::process::Child;

use crate::remote::{Context, RemoteError};

/// Connections at the same time; more wait.
const CONNECTIONS: usize = 16;
/// How much is passed on at a time, bytes. A message of the protocol has at most 256 KiB (draft-miller-ssh-agent).
const PIECE: usize = 64 * 1024;

/// A process that passes connections on.
#[derive(Debug)]
pub(super) struct Relay(Child);

impl Relay {
    /// Starts one that accepts connections of `listener` and passes them on to the socket `agent`.
    ///
    /// # Errors
    /// When the agent cannot be reached, or there can be no process.
    pub(super) fn start(listener: OwnedFd, agent: &Path) -> Result<Self, RemoteError> {
        // That it is not there is said at once.
        UnixStream::connect(agent).context(|| format!("connect to {}", agent.display()))?;
        let listener = UnixListener::from(listener);
        let child = sys::process::spawn(0, || match pass_on(&listener, agent) {
            Ok(()) => 0,
            Err(_) => 1,
        })?;
        Ok(Self(child))
    }

    pub(super) fn end(self) -> io::Result<()> {
        container::userns::end(&self.0)
    }
}

fn pass_on(listener: &UnixListener, agent: &Path) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut pairs: Vec<[UnixStream; 2]> = Vec::new();
    loop {
        let mut polled: Vec<PollFd<'_>> =
            pairs.iter().flatten().map(|end| PollFd::new(end, PollFlags::IN)).collect();
        if pairs.len() < CONNECTIONS {
            polled.push(PollFd::new(listener, PollFlags::IN));
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        let mut ends = ready.chunks_exact(2);
        let before = pairs.len();
        // One that fails is closed on both sides.
        pairs.retain_mut(|pair| {
            let [a, b] = pair;
            let Some([from_a, from_b]) = ends.next() else { return true };
            (!from_a || forward(a, b).unwrap_or(false)) && (!from_b || forward(b, a).unwrap_or(false))
        });
        if ready.get(2 * before) == Some(&true) {
            let (client, _) = listener.accept()?;
            pairs.extend(UnixStream::connect(agent).ok().map(|agent| [client, agent]));
        }
    }
}

/// Passes on what has come; false at the end.
fn forward(from: &mut UnixStream, to: &mut UnixStream) -> io::Result<bool> {
    let mut buffer = vec![0; PIECE];
    let length = from.read(&mut buffer)?;
    to.write_all(&buffer[..length])?;
    Ok(length > 0)
}
