//! netd as a child of ours: our binary executed again.
//!
//! It is executed rather than forked, so that it shares no memory with a supervisor or a command that knows secrets,
//! and can be started at any time.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use network::netd::Client;
use sys::channel::Channel;

use crate::remote::{Context, RemoteError};
use crate::report::report;

/// The first argument that makes our binary a netd.
pub const ARGUMENT: &str = "__netd";

/// Body of the netd process: `__netd STACK`, with the channel to its parent, a supervisor or a build, as standard input. Returns the
/// exit status. The stack's name is there for those who list processes.
pub fn main() -> i32 {
    rustix::thread::set_name(c"inception-netd").ok();
    match serve() {
        Ok(()) => 0,
        Err(error) => {
            report(format_args!("error: netd: {error}"));
            1
        }
    }
}

fn serve() -> Result<(), RemoteError> {
    // Standard input stays what it is, so that the parent sees the channel's end at this process's end and not
    // before the error is written.
    let channel = io::stdin().as_fd().try_clone_to_owned().context(|| "take the channel".into())?;
    let channel = Channel::from(channel);
    // No change of ids follows.
    if !container::userns::tie_to_parent(channel.as_fd())? {
        return Ok(());
    }
    // The stack's lock, if it serves a stack. Held for life: it is free only when nothing has the stack's ports any
    // more.
    let Some(_lock) = channel.recv().context(|| "receive the stack's lock".into())? else { return Ok(()) };
    Ok(network::netd::run(channel)?)
}

/// What it takes to start a netd.
#[derive(Debug)]
pub(crate) struct Starter {
    /// The stack's name.
    pub(crate) stack: String,
    /// The stack's lock; a build has none.
    pub(crate) lock: Option<File>,
}

impl Starter {
    /// Executes a netd, which serves nothing until it is configured. It inherits its channel, and standard error for
    /// its messages. Must be called by the thread that lives as long as netd is to.
    pub(crate) fn start(&self) -> Result<Netd, RemoteError> {
        let (ours, theirs) = Channel::pair()?;
        let process = Command::new("/proc/self/exe")
            .arg0(crate::client::PROGRAM)
            .args([ARGUMENT, &self.stack])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .context(|| "start netd".into())?;
        let lock: Vec<BorrowedFd<'_>> = self.lock.iter().map(AsFd::as_fd).collect();
        ours.send(b"lock", &lock).context(|| "give netd the stack's lock".into())?;
        Ok(Netd { process, client: Client::new(ours), configured: false, intercepts: false })
    }
}

/// A netd that runs.
#[derive(Debug)]
pub(crate) struct Netd {
    process: Child,
    pub(crate) client: Client,
    /// It has been handed something to serve.
    pub(crate) configured: bool,
    /// It has been handed the sockets that intercept what containers send.
    pub(crate) intercepts: bool,
}

impl Netd {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it did as it was told. One that is gone did not; nor did one that is silent, which is ended. The loop
    /// notices either, and the next one hears of everything.
    pub(crate) fn did(&mut self, result: Result<(), network::Error>) -> Result<bool, RemoteError> {
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.is_netd_gone() => Ok(false),
            Err(error) if error.is_netd_silent() => {
                report(format_args!("warning: netd does not answer and is ended: {error}"));
                self.process.kill().context(|| "end netd".into())?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it and reaps it, also when it has ended already; returns how it ended, in words.
    pub(crate) fn end(mut self) -> io::Result<String> {
        self.process.kill()?;
        let status = self.process.wait()?;
        Ok(match status.signal() {
            Some(signal) => format!("ended by signal {signal}"),
            None => format!("exited with status {}", status.code().unwrap_or_default()),
        })
    }
}
