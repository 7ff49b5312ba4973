//! A command's side of the control socket, and how a supervisor comes to be.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sys::channel::Channel;

use crate::control::{Command, Notice};
use crate::paths::Paths;
use crate::plan::{Limits, NetworkMode, Plan};
use crate::remote::{self, Context, RemoteError};
use crate::{supervisor, trace};

/// What our own processes are called in their command lines (argv\[0\]), which would be `/proc/self/exe` else.
pub(crate) const PROGRAM: &str = "inception-run";

/// How long a supervisor may take to be gone after its last word.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// How long a supervisor, which does nothing that takes long, may be busy with something else.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    /// The supervisor, or the process that watches it, when this process started it.
    process: Option<std::process::Child>,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// Connects to the supervisor of a stack; `None` when there is none.
///
/// # Errors
/// When the socket cannot be reached for another reason, or the supervisor does not answer in time.
pub fn connect(paths: &Paths, stack: &str) -> Result<Option<Client>, RemoteError> {
    let path = paths.stack(stack).join("control.sock");
    let context = || format!("connect to the supervisor of stack `{stack}`");
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(io::Error::from)
            .context(context)?;
    let address = SocketAddrUnix::new(&path).map_err(io::Error::from).context(context).map_err(|error| {
        error.or_hint(
            "the path of a socket has at most 107 bytes: INCEPTION_RUNTIME_DIR chooses a shorter one",
        )
    })?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {
            let mut client = Client { channel: Channel::from(socket), process: None };
            Ok(client.is_answered().context(context)?.then_some(client))
        }
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)).context(context),
    }
}

/// Starts a supervisor for `plan`, tied to this process until [`Command::Detach`]. It does nothing until it is
/// sent [`Command::Up`].
///
/// # Errors
/// When our own binary cannot be executed again.
pub fn start(plan: &Plan) -> Result<Client, RemoteError> {
    execute(&[&[supervisor::ARGUMENT], &arguments(plan, "private")[..]].concat(), None)
}

/// As [`start`], watched by a process in between, which is our binary executed again with [`trace::ARGUMENT`], `words`,
/// and the supervisor's arguments. It writes to `output`, or to our standard output.
///
/// # Errors
/// As [`start`].
pub fn start_traced(plan: &Plan, words: &[&str], output: Option<File>) -> Result<Client, RemoteError> {
    // Root may read the memory of everybody.
    let memory = if rustix::process::geteuid().is_root() { "private" } else { "readable" };
    let output = output.map_or_else(Stdio::inherit, Stdio::from);
    execute(&[&[trace::ARGUMENT], words, &arguments(plan, memory)[..]].concat(), Some(output))
}

/// The supervisor's arguments but for the first.
fn arguments<'a>(plan: &'a Plan, memory: &'a str) -> [&'a str; 5] {
    let netd = if plan.network.networks.is_empty() { "alone" } else { "netd" };
    let limited = plan.services.iter().any(|service| service.limits != Limits::default());
    let limits = if limited { "limits" } else { "unlimited" };
    let on_host = plan.services.iter().any(|service| service.network_mode == NetworkMode::Host);
    let network = if on_host { "host" } else { "own" };
    [&plan.name, netd, limits, network, memory]
}

/// Executes our binary again with one end of a channel as its standard input.
fn execute(arguments: &[&str], output: Option<Stdio>) -> Result<Client, RemoteError> {
    let (ours, theirs) = Channel::pair()?;
    let process = Process::new("/proc/self/exe")
        .arg0(PROGRAM)
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(output.unwrap_or_else(Stdio::null))
        .spawn()
        .context(|| "start the stack's supervisor".into())?;
    Ok(Client { channel: ours, process: Some(process) })
}

impl Client {
    /// Whether the supervisor answers. One that was killed and is not quite gone still has its socket, and would
    /// take a command with it.
    fn is_answered(&mut self) -> Result<bool, RemoteError> {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        match remote::send(&self.channel, &Command::Status, &[]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
            sent => sent?,
        }
        while let Some(message) = self.channel.recv_until(deadline)? {
            match remote::decode::<Notice>(message)?.0 {
                Notice::Done => return Ok(true),
                // Its last words: it is ending, which is all that can go wrong with this question.
                Notice::Failed(error) => {
                    tracing::info!("the supervisor is ending: {error}");
                    return Ok(false);
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// Sends a command. To a supervisor that is gone too: [`Client::next`] has what it said last, and the end.
    ///
    /// # Errors
    /// When the message cannot be sent for another reason.
    pub fn send(&self, command: &Command, fds: &[BorrowedFd<'_>]) -> Result<(), RemoteError> {
        match remote::send(&self.channel, command, fds) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.context(|| "ask the stack's supervisor".into()),
        }
    }

    /// The next notice; `None` when the supervisor has closed the connection.
    ///
    /// # Errors
    /// A time-out at `deadline`, or a broken connection.
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<Option<Notice>, RemoteError> {
        let received = match deadline {
            Some(deadline) => self.channel.recv_until(deadline),
            None => self.channel.recv(),
        };
        match received.context(|| "wait for the stack's supervisor".into())? {
            Some(message) => Ok(Some(remote::decode(message)?.0)),
            None => Ok(None),
        }
    }

    /// Ends the watching of a stack that was started with [`start_traced`] and goes on without us.
    ///
    /// # Errors
    /// When the process that watches cannot be told, or waited for.
    pub fn end_trace(&mut self) -> Result<(), RemoteError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let doing = || "end the trace".into();
        let pid = i32::try_from(process.id()).map_err(io::Error::other).context(doing)?;
        // Not reaped yet: the number is its own.
        sys::process::kill(pid, libc::SIGTERM).context(doing)?;
        reap(process, Instant::now() + END_DEADLINE).context(doing)
    }

    /// Waits until the supervisor, which has been told to end, is gone.
    ///
    /// # Errors
    /// A time-out.
    pub fn wait_end(&mut self) -> Result<(), RemoteError> {
        let deadline = Instant::now() + END_DEADLINE;
        while self.next(Some(deadline))?.is_some() {}
        if let Some(process) = &mut self.process {
            reap(process, deadline).context(|| "wait for the stack's supervisor".into())?;
        }
        Ok(())
    }
}

/// Waits for the end of a process that has been told to end.
fn reap(process: &mut std::process::Child, deadline: Instant) -> io::Result<()> {
    sys::process::wait_until(process, deadline)?.map(drop).ok_or_else(|| io::ErrorKind::TimedOut.into())
}

/// Takes the lock of a stack that has no supervisor, for one that begins or a command that works on what a stack left.
/// `None` when a supervisor holds it.
///
/// # Errors
/// As [`crate::lock::take`].
pub(crate) fn lock(paths: &Paths, stack: &str) -> Result<Option<File>, RemoteError> {
    // One that listens lives; one that does not is still starting, or dying.
    crate::lock::take(paths, stack, || Ok(connect(paths, stack)?.is_some()))
}
