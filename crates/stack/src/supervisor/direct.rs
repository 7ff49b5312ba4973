//! Published ports that a service accepts on by itself: its `bind` is answered with the host's socket.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use network::direct::{self, LONGEST_ADDRESS};
use network::plan::{Mode, PublishedPort};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use sys::seccomp::{self, Answer, Notification};

use crate::remote::RemoteError;

/// Whether a service with these ports is to ask about its `bind`.
pub(crate) fn is_needed(ports: &[PublishedPort]) -> bool {
    ports.iter().any(|port| port.mode == Mode::Direct)
}

/// Where the `bind` calls of a container are answered.
#[derive(Debug)]
pub(crate) struct Binds(OwnedFd);

impl AsFd for Binds {
    /// Readable when a call waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A call that waits, and what belongs to its caller. Nothing of it may be believed before the call was found to be
/// waiting still after it was read.
struct Call {
    address: Option<std::net::SocketAddr>,
    /// The caller's socket.
    socket: OwnedFd,
    number: RawFd,
    close_on_exec: bool,
}

impl Binds {
    /// Takes the listening end of a filter, if this kernel lets calls be answered with descriptors.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn new(listener: OwnedFd) -> Result<Self, RemoteError> {
        if seccomp::can_replace_descriptors(listener.as_fd()) {
            return Ok(Self(listener));
        }
        Err(RemoteError::message("a published port has `mode = \"direct\"`, which this kernel cannot do")
            .or_hint("Linux 5.9 or newer can; without `mode` the port is published in the ordinary way"))
    }

    /// Answers the one call that waits: with the socket of the published port that it is for, or as if nobody had been
    /// asked. One at a time, so that a service that does nothing but bind does not keep us from the others.
    ///
    /// # Errors
    /// What should not happen; the call has been let pass then.
    pub(crate) fn answer<'a>(
        &self,
        ports: &[PublishedPort],
        socket_of: impl Fn(&PublishedPort) -> Option<BorrowedFd<'a>>,
    ) -> Result<(), RemoteError> {
        let call = match seccomp::receive(self.as_fd()) {
            // A signal or its end interrupted the caller.
            Err(error) if is_stale(&error) => return Ok(()),
            received => received?,
        };
        let replaced = self.replace(&call, ports, socket_of);
        let answer = if matches!(replaced, Ok(true)) { Answer::Return(0) } else { Answer::Continue };
        match seccomp::answer(self.as_fd(), call.id, answer) {
            Err(error) if is_stale(&error) => return Ok(()),
            answered => answered?,
        }
        replaced.map(drop)
    }

    /// Whether the call was for a published port, whose socket is now the caller's.
    fn replace<'a>(
        &self,
        call: &Notification,
        ports: &[PublishedPort],
        socket_of: impl Fn(&PublishedPort) -> Option<BorrowedFd<'a>>,
    ) -> Result<bool, RemoteError> {
        let read = Call::read(call);
        if !seccomp::is_waiting(self.as_fd(), call.id) {
            return Ok(false);
        }
        let Some(Call { address: Some(address), socket, number, close_on_exec }) = read? else {
            return Ok(false);
        };
        let ours = |port| socket_of(port).filter(|ours| is_same(ours.as_fd(), socket.as_fd()));
        if ports.iter().any(|port| ours(port).is_some()) {
            // A signal interrupted the call after it had been answered, and it was made again.
            return Ok(true);
        }
        let Some(unbound) = direct::unbound(socket.as_fd())? else { return Ok(false) };
        if unbound.ipv4 != address.is_ipv4() {
            return Ok(false);
        }
        let port = direct::published_at(ports.iter(), address, unbound.udp);
        let Some(host) = port.and_then(socket_of) else { return Ok(false) };
        // Before the service has it: connections inherit what the socket is when they come in.
        let carried = direct::carry_over(socket.as_fd(), host);
        match seccomp::replace_descriptor(self.as_fd(), call.id, host, number, close_on_exec) {
            Err(error) if is_stale(&error) => return Ok(false),
            replaced => replaced?,
        }
        if let Err(error) = carried {
            tracing::warn!("socket of published port {}: {error}", address.port());
        }
        Ok(true)
    }
}

impl Call {
    /// `None` for what the kernel will refuse by itself, or carry out by itself.
    fn read(call: &Notification) -> io::Result<Option<Self>> {
        let [number, address, length, ..] = call.arguments;
        // Both are an `int` of the call; the rest of the registers means nothing.
        let (number, length) = (number as RawFd, (length as u32 as usize).min(LONGEST_ADDRESS));
        let thread = call.thread;
        let mut bytes = vec![0; length];
        if File::open(format!("/proc/{thread}/mem"))?.read_exact_at(&mut bytes, address).is_err() {
            return Ok(None);
        }
        let Some(process) = process_of(thread)? else { return Ok(None) };
        let process = pidfd_open(process, PidfdFlags::empty())?;
        let socket = match pidfd_getfd(process, number, PidfdGetfdFlags::empty()) {
            Err(rustix::io::Errno::BADF) => return Ok(None),
            socket => socket?,
        };
        let info = fs::read_to_string(format!("/proc/{thread}/fdinfo/{number}"))?;
        Ok(Some(Self {
            address: direct::address(&bytes),
            socket,
            number,
            close_on_exec: is_closed_on_exec(&info),
        }))
    }
}

/// The process that a thread belongs to: `/proc/THREAD/status`.
fn process_of(thread: i32) -> io::Result<Option<Pid>> {
    let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    Ok(process.and_then(|number| Pid::from_raw(number.trim().parse().ok()?)))
}

/// By the flags, in octal digits, of `/proc/PID/fdinfo/NUMBER`.
fn is_closed_on_exec(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok());
    flags.is_some_and(|flags| flags & rustix::fs::OFlags::CLOEXEC.bits() != 0)
}

fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let cookie = rustix::net::sockopt::socket_cookie;
    // What is no socket has none.
    matches!((cookie(one), cookie(other)), (Ok(one), Ok(other)) if one == other)
}

fn is_stale(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_on_exec_is_read_from_the_flags() {
        assert!(is_closed_on_exec("pos:\t0\nflags:\t02004002\nmnt_id:\t9\n"));
        assert!(!is_closed_on_exec("pos:\t0\nflags:\t04002\n"));
        assert!(!is_closed_on_exec("flags:\tx\n"));
        let own = File::open("/dev/null").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&own);
        assert!(is_closed_on_exec(&fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap()));
    }

    #[test]
    fn a_thread_is_of_its_process() {
        let thread = std::thread::spawn(|| process_of(rustix::thread::gettid().as_raw_nonzero().get()));
        assert_eq!(thread.join().unwrap().unwrap(), Some(rustix::process::getpid()));
    }
}
