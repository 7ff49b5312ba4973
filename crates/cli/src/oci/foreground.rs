//! A process of a container with our standard input and output: `run` and `exec` without `--detach`.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use container::oci::Console;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use crate::output::Failure;
use crate::signals::Signals;
use crate::terminal::{Streams, is_passable};

/// Passed on to the process: all that somebody may send us and that we can catch, but what the kernel tells us about
/// ourselves. SIGWINCH is for us when there is a terminal.
const SIGNALS: [Signal; 16] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGWINCH,
];
/// How long the other end of a terminal may take to come, once the process is there.
const TERMINAL_DEADLINE: Duration = Duration::from_secs(10);

/// Our side of a process in the foreground.
#[derive(Debug)]
pub(super) struct Foreground {
    streams: Option<Streams>,
    /// What the process gets in place of our standard streams.
    lent: Option<[OwnedFd; 3]>,
    /// Where the other end of its terminal will come from.
    console: Option<OwnedFd>,
    /// The process wants a terminal.
    tty: bool,
    process: Option<(OwnedFd, Signals)>,
}

impl Foreground {
    /// Our side of a process with our streams, or a terminal between them.
    ///
    /// # Errors
    /// When no pipe can be had.
    pub(super) fn open(tty: bool, subreaper: bool) -> Result<Self, Failure> {
        let mut foreground = Self::elsewhere(subreaper)?;
        foreground.tty = tty;
        let ours = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let mut passable = true;
        for fd in ours {
            passable &= is_passable(fd).map_err(Failure::system("look at our standard streams"))?;
        }
        if !tty && !passable {
            let (streams, lent) = Streams::open(false)?;
            (foreground.streams, foreground.lent) = (Some(streams), Some(lent));
        }
        Ok(foreground)
    }

    /// Our side of a process whose terminal is with somebody else.
    ///
    /// # Errors
    /// When the kernel refuses to make us the parent of orphans.
    pub(super) fn elsewhere(subreaper: bool) -> Result<Self, Failure> {
        if subreaper {
            // Without a PID namespace of its own, what the container leaves behind would be nobody's.
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
                .map_err(Failure::system("become the parent of the container's orphans"))?;
        }
        Ok(Self { streams: None, lent: None, console: None, tty: false, process: None })
    }

    /// Makes the process, which inherits our standard streams: with others in their place, if it is not to have ours.
    pub(super) fn lend<T>(
        &mut self,
        make: impl FnOnce(Console) -> Result<T, container::oci::Error>,
    ) -> Result<T, Failure> {
        if self.tty {
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                    .map_err(Failure::system("open a way to the process's terminal"))?;
            self.console = Some(ours);
            return Ok(make(Console::Connected(theirs))?);
        }
        let Some(lent) = self.lent.take() else { return Ok(make(Console::None)?) };
        let save = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let replace = |[first, second, third]: [BorrowedFd<'_>; 3]| {
            rustix::stdio::dup2_stdin(first)?;
            rustix::stdio::dup2_stdout(second)?;
            rustix::stdio::dup2_stderr(third)
        };
        let operation = "put the process's standard streams in place of ours";
        let ours = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()].map(save);
        let [Ok(first), Ok(second), Ok(third)] = ours else {
            return Err(Failure::system(operation)(io::Error::last_os_error()));
        };
        replace(lent.each_ref().map(AsFd::as_fd)).map_err(Failure::system(operation))?;
        let made = make(Console::None);
        replace([first.as_fd(), second.as_fd(), third.as_fd()]).map_err(Failure::system(operation))?;
        Ok(made?)
    }

    /// Watches the child with this number.
    ///
    /// # Errors
    /// As [`Foreground::adopt`].
    pub(super) fn watch(&mut self, pid: i32) -> Result<(), Failure> {
        let operation = "open the container's first process";
        let pid =
            Pid::from_raw(pid).ok_or_else(|| Failure::system(operation)(io::ErrorKind::InvalidInput))?;
        // Not reaped by anybody, so the number is still its own.
        self.adopt(rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(Failure::system(operation))?)
    }

    /// From here on signals that are sent to us are this process's, and so is our terminal.
    ///
    /// # Errors
    /// When its terminal does not come, or ours refuses.
    pub(super) fn adopt(&mut self, pidfd: OwnedFd) -> Result<(), Failure> {
        self.process = Some((pidfd, Signals::block(&SIGNALS)?));
        if let Some(console) = self.console.take() {
            let master = receive(console.as_fd()).map_err(Failure::system("take the process's terminal"))?;
            self.streams = Some(Streams::on_terminal(master)?);
        }
        Ok(())
    }

    /// Carries bytes and signals until the process ends. Its exit code, or 128 plus the number of the signal that
    /// ended it.
    ///
    /// # Errors
    /// When nobody reads our output, or the kernel refuses.
    pub(super) fn carry_until_end(&mut self) -> Result<u8, Failure> {
        let Some((pidfd, signals)) = &self.process else { return Ok(1) };
        loop {
            let interest = self.streams.as_ref().map(Streams::interest).unwrap_or_default();
            let mut polled = vec![PollFd::new(pidfd, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            polled.extend(interest.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
            match poll(&mut polled, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Failure::system("wait for the process")(errno)),
            }
            let (ended, signalled) = (!polled[0].revents().is_empty(), !polled[1].revents().is_empty());
            drop(polled);
            if signalled && let Some(signal) = signals.take()? {
                match &self.streams {
                    Some(streams) if signal == Signal::SIGWINCH && self.tty => streams.resize()?,
                    _ => pass_on(pidfd.as_fd(), signal)?,
                }
            }
            if let Some(streams) = &mut self.streams {
                streams.carry()?;
                if ended {
                    streams.drain()?;
                }
            }
            if ended {
                return status(pidfd.as_fd());
            }
        }
    }
}

fn pass_on(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), Failure> {
    match sys::process::pidfd_kill(pidfd, signal as i32) {
        // It has ended, which the next turn sees.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        other => other.map_err(Failure::system("pass a signal on")),
    }
}

/// How a child ended.
fn status(pidfd: BorrowedFd<'_>) -> Result<u8, Failure> {
    let operation = "learn how the process ended";
    let status = rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)
        .map_err(Failure::system(operation))?;
    let code = status.and_then(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(code),
        (None, Some(signal)) => Some(128 + signal),
        (None, None) => None,
    });
    code.and_then(|code| u8::try_from(code & 0xff).ok())
        .ok_or_else(|| Failure::system(operation)(io::ErrorKind::InvalidData))
}

/// The descriptor that comes over a console socket.
fn receive(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    sys::channel::wait_readable(socket, Instant::now() + TERMINAL_DEADLINE)?;
    // With it comes the name of the terminal inside.
    let mut name = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut received = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    received.next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
