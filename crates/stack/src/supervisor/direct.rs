//! Published ports that a service accepts on by itself: its `bind` is answered with the host's socket.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use network::direct::{self, LONGEST_ADDRESS};
use network::plan::{Mode, PublishedPort};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use sys::seccomp::{self, Answer, Notification};

use crate::plan::{Plan, Service};
use crate::remote::RemoteError;

/// Whether a service with these ports is to ask about its `bind`.
pub(crate) fn is_needed(ports: &[PublishedPort]) -> bool {
    ports.iter().any(|port| port.mode == Mode::Direct)
}

/// What is to be told of a plan with direct ports where this kernel does not let us keep them from connecting.
pub(super) fn unconfined(plan: &Plan) -> Option<RemoteError> {
    let direct =
        |service: &&Service| service.ports.iter().any(|port| port.mode == Mode::Direct && !port.is_udp());
    let service = plan.services.iter().find(direct)?;
    let error = direct::confinable().err()?;
    let message = format!("service `{}` has a port in direct mode", service.name);
    Some(
        RemoteError::from(error)
            .context(format!("{message} and could connect from the host's network with it")),
    )
}

/// Where the `bind` calls of a container are answered.
#[derive(Debug)]
pub(crate) struct Binds {
    listener: OwnedFd,
    /// That something went wrong is told once, so that nobody can fill a log with it.
    complained: bool,
}

impl AsFd for Binds {
    /// Readable when a call waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
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
            return Ok(Self { listener, complained: false });
        }
        Err(RemoteError::message("a published port has `mode = \"direct\"`, which this kernel cannot do")
            .or_hint("Linux 5.9 or newer can; without `mode` the port is published in the ordinary way"))
    }

    /// Answers the one call that waits: with the socket of the published port that it is for, or as if nobody had been
    /// asked. One at a time, so that a service that does nothing but bind does not keep us from the others.
    pub(crate) fn answer<'a>(
        &mut self,
        ports: &[PublishedPort],
        socket_of: impl Fn(&PublishedPort) -> Option<BorrowedFd<'a>>,
    ) {
        match self.try_answer(ports, socket_of) {
            // A signal, or its end, interrupted the caller.
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            Err(error) => self.complain(&error),
            Ok(()) => {}
        }
    }

    fn try_answer<'a>(
        &mut self,
        ports: &[PublishedPort],
        socket_of: impl Fn(&PublishedPort) -> Option<BorrowedFd<'a>>,
    ) -> io::Result<()> {
        let call = seccomp::receive(self.as_fd())?;
        let replaced = self.replace(&call, ports, socket_of);
        // Whatever happened, the caller is not left waiting.
        let answer = if matches!(replaced, Ok(true)) { Answer::Return(0) } else { Answer::Continue };
        seccomp::answer(self.as_fd(), call.id, answer)?;
        replaced.map(drop)
    }

    fn complain(&mut self, why: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!("answer `bind` of a service: {why}");
        }
    }

    /// Whether the call was for a published port, whose socket is now the caller's.
    fn replace<'a>(
        &mut self,
        call: &Notification,
        ports: &[PublishedPort],
        socket_of: impl Fn(&PublishedPort) -> Option<BorrowedFd<'a>>,
    ) -> io::Result<bool> {
        let read = Call::read(call);
        if !seccomp::is_waiting(self.as_fd(), call.id) {
            return Ok(false);
        }
        let Some(Call { address: Some(address), socket, number, close_on_exec }) = read? else {
            return Ok(false);
        };
        let ours = |port| socket_of(port).filter(|ours| direct::is_same(ours.as_fd(), socket.as_fd()));
        if ports.iter().any(|port| ours(port).is_some()) {
            // A signal interrupted the call after it had been answered, and it was made again.
            return Ok(true);
        }
        let Some(unbound) = direct::unbound(socket.as_fd()) else { return Ok(false) };
        if unbound.ipv4 != address.is_ipv4() {
            return Ok(false);
        }
        let port = direct::published_at(ports.iter(), address, unbound.udp);
        let Some(host) = port.and_then(socket_of) else { return Ok(false) };
        // Before the service has it: connections inherit what the socket is when they come in.
        if let Err(error) = direct::carry_over(socket.as_fd(), host) {
            self.complain(&RemoteError::from(error));
        }
        seccomp::replace_descriptor(self.as_fd(), call.id, host, number, close_on_exec)?;
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
            Err(Errno::BADF) => return Ok(None),
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use network::plan::Protocol;

    use super::*;

    #[test]
    fn close_on_exec_is_read_from_the_flags() {
        assert!(is_closed_on_exec("pos:\t0\nflags:\t02004002\nmnt_id:\t9\n"));
        assert!(!is_closed_on_exec("pos:\t0\nflags:\t04002\n"));
        assert!(!is_closed_on_exec("flags:\tx\n"));
        let own = File::open("/dev/null").unwrap();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", own.as_raw_fd())).unwrap();
        assert!(is_closed_on_exec(&info));
    }

    /// Does `work` in a thread that asks before it binds, and gives out the sockets of `ports`.
    fn asking<T: Send + 'static>(
        ports: &[(PublishedPort, OwnedFd)],
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (sender, receiver) = mpsc::channel();
        let worker = thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let filter = container::seccomp::asking_to_bind().unwrap();
            let listener = seccomp::load(&filter.program, filter.flags).unwrap().unwrap();
            sender.send(listener).unwrap();
            work()
        });
        let mut binds = Binds::new(receiver.recv().unwrap()).unwrap();
        let published: Vec<_> = ports.iter().map(|(port, _)| *port).collect();
        let socket_of = |port: &PublishedPort| {
            ports.iter().find(|(other, _)| other == port).map(|(_, socket)| socket.as_fd())
        };
        let end = Instant::now() + Duration::from_secs(20);
        while !worker.is_finished() {
            assert!(Instant::now() < end, "the thread waits for an answer");
            let mut poll = [rustix::event::PollFd::new(&binds, rustix::event::PollFlags::IN)];
            let moment = rustix::time::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            rustix::event::poll(&mut poll, Some(&moment)).unwrap();
            if poll[0].revents().contains(rustix::event::PollFlags::IN) {
                binds.answer(&published, socket_of);
                assert!(!binds.complained);
            }
        }
        worker.join().unwrap()
    }

    fn direct(container_port: u16, protocol: Protocol) -> (PublishedPort, OwnedFd, u16) {
        let port = PublishedPort::tcp(Ipv4Addr::LOCALHOST.into(), 0, container_port);
        let port = PublishedPort { protocol, mode: Mode::Direct, ..port };
        let (socket, at) = direct::bind(&port).unwrap();
        (port, socket, at.port())
    }

    #[test]
    fn who_binds_a_published_port_gets_the_hosts_socket() {
        let (tcp, tcp_socket, tcp_at) = direct(4080, Protocol::Tcp);
        let (udp, udp_socket, udp_at) = direct(4080, Protocol::Udp);
        let ports = [(tcp, tcp_socket), (udp, udp_socket)];
        let (first, second, third, datagrams, other) = asking(&ports, || {
            let first = TcpListener::bind("0.0.0.0:4080").unwrap();
            // As a second process would, or the same after a crash.
            let second = TcpListener::bind("[::]:4080").unwrap();
            let third = TcpListener::bind("127.0.0.1:4080").unwrap();
            let other = TcpListener::bind("127.0.0.1:0").unwrap();
            (first, second, third, UdpSocket::bind("0.0.0.0:4080").unwrap(), other)
        });
        for listener in [first, second, third] {
            assert_eq!(listener.local_addr().unwrap().port(), tcp_at);
            assert!(rustix::io::fcntl_getfd(&listener).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            let client = TcpStream::connect(("127.0.0.1", tcp_at)).unwrap();
            assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        }
        assert_eq!(datagrams.local_addr().unwrap().port(), udp_at);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"hello", ("127.0.0.1", udp_at)).unwrap();
        let mut buffer = [0; 8];
        let (length, from) = datagrams.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"hello"[..], client.local_addr().unwrap()));
        let other = other.local_addr().unwrap().port();
        assert!(other != tcp_at && other != 0, "{other}");
    }

    #[test]
    fn what_makes_no_sense_is_left_to_the_kernel() {
        use rustix::net::{AddressFamily, SocketType, bind, socket};
        let (port, own, _) = direct(4080, Protocol::Tcp);
        let answers = asking(&[(port, own)], || {
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], 4080));
            let null = File::open("/dev/null").unwrap();
            let ipv6 = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
            let unix = std::os::unix::net::UnixDatagram::unbound().unwrap();
            let bound = TcpListener::bind("127.0.0.1:0").unwrap();
            [bind(&null, &address), bind(&ipv6, &address), bind(&unix, &address), bind(&bound, &address)]
        });
        let expected = [Errno::NOTSOCK, Errno::INVAL, Errno::INVAL, Errno::INVAL].map(Err);
        assert_eq!(answers, expected);
    }
}
