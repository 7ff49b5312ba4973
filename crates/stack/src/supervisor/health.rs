//! Health checks: when to probe, what a result means, and the probes that are under way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrV4, SocketFlags, SocketType};

use crate::control::Health;
use crate::plan::{Healthcheck, Probe};

/// First pause of a service that is starting; doubled each time up to its interval, so that what starts fast is
/// noticed fast.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// How long a failure that would make a service unhealthy is held back: a service that has just died fails as well, and
/// the news of its end take longer. The kernel ends all other processes of a container before its first one is gone.
const DOUBT: Duration = Duration::from_millis(100);
/// Bytes of a probe's output that are kept.
const OUTPUT_LIMIT: usize = 4096;

/// A TCP socket of this network namespace, to connect with.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?)
}

/// The health of one running service.
#[derive(Debug)]
pub(crate) struct Monitor {
    check: Healthcheck,
    /// The state that users see.
    pub(crate) health: Health,
    started: Instant,
    pause: Duration,
    failures: u32,
    /// When a failure was last counted.
    counted: Instant,
    /// When the next probe is due, unless one is under way.
    due: Instant,
    /// The probe under way.
    pub(crate) active: Option<Active>,
    /// Output of the last probe that failed.
    pub(crate) output: String,
}

/// A probe under way.
#[derive(Debug)]
pub(crate) struct Active {
    deadline: Instant,
    /// What it waits on.
    pub(crate) kind: Kind,
}

/// What kind of probe is under way.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A process inside: its number with the hub, its pidfd, its output (`None` once it has been closed), and
    /// what came from there.
    Exec { pid: i32, pidfd: OwnedFd, output: Option<OwnedFd>, text: Vec<u8> },
    /// A connection that is being made; for HTTP, the request to send then.
    Connecting { socket: OwnedFd, request: Option<Vec<u8>> },
    /// An HTTP answer that is being read.
    Reading { socket: OwnedFd, answer: Vec<u8> },
    /// It has failed, and why; held back until the deadline.
    Doubted(String),
}

/// What came of looking at a probe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not finished.
    Pending,
    /// Well.
    Passed,
    /// Not well, and why.
    Failed(String),
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.max(0.0)).unwrap_or(Duration::MAX)
}

impl Monitor {
    /// A service that was started just now.
    pub(crate) fn new(check: Healthcheck, now: Instant) -> Self {
        Self {
            check,
            health: Health::Starting,
            started: now,
            pause: FIRST_PAUSE,
            failures: 0,
            counted: now,
            due: now + FIRST_PAUSE,
            active: None,
            output: String::new(),
        }
    }

    /// What to try.
    pub(crate) fn probe(&self) -> Option<&Probe> {
        self.check.test.as_ref()
    }

    /// When something is to be done without any event.
    pub(crate) fn next(&self) -> Instant {
        self.active.as_ref().map_or(self.due, |active| active.deadline)
    }

    /// Whether a probe is to be started.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.active.is_none() && self.due <= now
    }

    /// Whether the probe under way has taken too long.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.active.as_ref().is_some_and(|active| active.deadline <= now)
    }

    /// Puts a probe under way.
    pub(crate) fn begin(&mut self, kind: Kind, now: Instant) {
        self.active = Some(Active { deadline: now + seconds(self.check.timeout), kind });
    }

    /// Takes a probe's failure. One that would make the service unhealthy is held back; if it is given back, it is to be
    /// concluded.
    #[must_use]
    pub(crate) fn doubt(&mut self, output: String, now: Instant) -> Option<String> {
        let changes = self.health != Health::Unhealthy && self.failures + 1 >= self.check.retries;
        if !changes || !self.counts(now) {
            return Some(output);
        }
        self.active = Some(Active { deadline: now + DOUBT, kind: Kind::Doubted(output) });
        None
    }

    /// Whether a failure counts: while it starts it is probed more often than its interval, and only one failure an
    /// interval does.
    fn counts(&self, now: Instant) -> bool {
        let starting = now < self.started + seconds(self.check.start_period);
        let accelerated =
            self.health == Health::Starting && now < self.counted + seconds(self.check.interval);
        !starting && !accelerated
    }

    /// Takes a probe's result; true when the health changed.
    pub(crate) fn conclude(&mut self, result: Result<(), String>, now: Instant) -> bool {
        self.active = None;
        let interval = seconds(self.check.interval);
        let before = self.health;
        match result {
            Ok(()) => {
                self.health = Health::Healthy;
                self.failures = 0;
                self.output.clear();
            }
            Err(output) => {
                self.output = output;
                if self.counts(now) {
                    self.counted = now;
                    self.failures += 1;
                    if self.failures >= self.check.retries {
                        self.health = Health::Unhealthy;
                    }
                }
            }
        }
        let pause = if self.health == Health::Starting {
            self.pause = (self.pause * 2).min(interval.min(seconds(self.check.start_interval)));
            self.pause
        } else {
            interval
        };
        self.due = now + pause;
        before != self.health
    }
}

impl Active {
    /// The descriptor to wait on.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.kind {
            Kind::Exec { output, .. } => output.as_ref().map(|output| (output.as_fd(), PollFlags::IN)),
            Kind::Connecting { socket, .. } => Some((socket.as_fd(), PollFlags::OUT)),
            Kind::Reading { socket, .. } => Some((socket.as_fd(), PollFlags::IN)),
            Kind::Doubted(_) => None,
        }
    }

    /// Looks at what the descriptor has. The end of an `Exec` is learnt from the hub instead.
    pub(crate) fn advance(&mut self) -> Verdict {
        match self.step() {
            Ok(verdict) => verdict,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Verdict::Pending
            }
            Err(error) => Verdict::Failed(error.to_string()),
        }
    }

    fn step(&mut self) -> io::Result<Verdict> {
        let mut buffer = [0u8; OUTPUT_LIMIT];
        match &mut self.kind {
            Kind::Exec { output, text, .. } => {
                let Some(pipe) = output.as_ref() else { return Ok(Verdict::Pending) };
                let length = rustix::io::read(pipe, &mut buffer)?;
                text.extend_from_slice(&buffer[..length]);
                text.truncate(OUTPUT_LIMIT);
                if length == 0 {
                    // A pipe without a writer would be readable for ever.
                    *output = None;
                }
                Ok(Verdict::Pending)
            }
            Kind::Connecting { socket, request } => {
                rustix::net::sockopt::socket_error(&*socket)??;
                let Some(request) = request.take() else { return Ok(Verdict::Passed) };
                rustix::net::send(&*socket, &request, SendFlags::NOSIGNAL)?;
                let socket = socket.try_clone()?;
                self.kind = Kind::Reading { socket, answer: Vec::new() };
                Ok(Verdict::Pending)
            }
            Kind::Reading { socket, answer } => {
                let length = rustix::io::read(socket, &mut buffer)?;
                answer.extend_from_slice(&buffer[..length]);
                let line = answer.split(|b| *b == b'\n').next().unwrap_or_default();
                if line.len() == answer.len() && length != 0 && answer.len() < OUTPUT_LIMIT {
                    return Ok(Verdict::Pending);
                }
                Ok(http_verdict(&String::from_utf8_lossy(line)))
            }
            Kind::Doubted(_) => Ok(Verdict::Pending),
        }
    }
}

fn http_verdict(status_line: &str) -> Verdict {
    let code =
        status_line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|c| c.parse().ok());
    match code {
        Some(200..=399) => Verdict::Passed,
        _ => Verdict::Failed(format!("answered `{}`", status_line.trim())),
    }
}

/// Begins a connection to `port` of the loopback address that `socket`, which does not block, belongs to.
pub(crate) fn connect(socket: OwnedFd, port: u16, path: Option<&str>) -> io::Result<Kind> {
    let address = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port);
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let request = path.map(|path| {
        format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nUser-Agent: inception-run\r\n\r\n").into_bytes()
    });
    Ok(Kind::Connecting { socket, request })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(now: Instant) -> Monitor {
        let check = Healthcheck {
            test: Some(Probe::Tcp(1)),
            interval: 10.0,
            timeout: 1.0,
            retries: 2,
            start_period: 0.0,
            start_interval: 5.0,
        };
        Monitor::new(check, now)
    }

    #[test]
    fn failures_of_a_starting_service_count_once_an_interval() {
        let start = Instant::now();
        let mut monitor = monitor(start);
        let failed = || Err("no".to_owned());
        for tenth in 0..50 {
            monitor.conclude(failed(), start + Duration::from_millis(100 * tenth));
        }
        assert_eq!((monitor.failures, monitor.health), (0, Health::Starting));
        assert!(!monitor.conclude(failed(), start + Duration::from_secs(10)));
        assert!(monitor.conclude(failed(), start + Duration::from_secs(20)));
        assert_eq!(monitor.health, Health::Unhealthy);
        assert!(monitor.conclude(Ok(()), start + Duration::from_secs(30)));
        assert_eq!(monitor.next(), start + Duration::from_secs(40));
    }

    #[test]
    fn only_what_would_make_a_service_unhealthy_is_held_back() {
        let start = Instant::now();
        let mut monitor = monitor(start);
        let failed = || "no".to_owned();
        assert_eq!(monitor.doubt(failed(), start), Some(failed()), "it is starting");
        monitor.conclude(Ok(()), start);
        assert_eq!(monitor.doubt(failed(), start), Some(failed()), "it may fail once");
        monitor.conclude(Err(failed()), start);
        assert_eq!(monitor.doubt(failed(), start), None);
        assert!(!monitor.is_due(start + DOUBT) && monitor.is_overdue(start + DOUBT));
        assert_eq!((monitor.next(), monitor.health), (start + DOUBT, Health::Healthy));
        assert!(monitor.conclude(Err(failed()), start + DOUBT));
        assert_eq!(monitor.doubt(failed(), start), Some(failed()), "it is unhealthy already");
    }

    #[test]
    fn http_status_lines() {
        assert_eq!(http_verdict("HTTP/1.1 204 No Content\r"), Verdict::Passed);
        assert!(matches!(http_verdict("HTTP/1.1 502 Bad Gateway"), Verdict::Failed(_)));
        assert!(matches!(http_verdict("garbage"), Verdict::Failed(_)));
    }
}
