//! A command's connection, as the supervisor holds it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use sys::channel::Channel;

use super::unit::Unit;
use crate::control::{Command, Notice};
use crate::event::Event;
use crate::remote;

/// Bytes of news that a slow reader may leave unread. What comes then is skipped, and the reader told so: a
/// terminal that is paused must not end the stack that depends on it.
const BACKLOG: usize = 8 << 20;
/// What a notice takes beside its text.
const OVERHEAD: usize = 256;

/// A connection. Nothing here ever waits for the other side.
#[derive(Debug)]
pub(crate) struct Connection {
    channel: Channel,
    queue: VecDeque<Notice>,
    /// Bytes of news in the queue.
    backlog: usize,
    /// News that were skipped since the last one that was queued.
    skipped: u64,
    /// Its end ends the stack (it started the supervisor and has not detached).
    pub(crate) leash: bool,
    /// It brings something up, or runs something: no stack is without a use meanwhile.
    pub(crate) uses: bool,
    /// Services and containers whose log lines and states it wants; empty for all.
    pub(crate) follow: Option<Vec<String>>,
    /// Whose events it wants.
    pub(crate) events: Option<Audience>,
    /// The command that is being carried out.
    pub(crate) pending: Option<Pending>,
}

/// The containers whose events are wanted; all when empty.
#[derive(Debug, Clone)]
pub(crate) struct Audience(pub(crate) Vec<String>);

impl Audience {
    /// Whether this event is wanted. What concerns the whole stack always is.
    pub(crate) fn wants(&self, event: &Event) -> bool {
        let Some(container) = &event.container else { return true };
        let replica_of = |name: &str| {
            let number = container.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        self.0.is_empty() || self.0.iter().any(|name| name == container || replica_of(name))
    }
}

/// What a connection waits for.
#[derive(Debug, Clone)]
pub(crate) enum Pending {
    /// These services and containers are up; healthy too if `wait`.
    Up { services: Vec<String>, wait: bool },
    /// These services and containers are down.
    Stopped(Vec<String>),
    /// All is down.
    Down,
    /// The process with this number in the hub's PID namespace ends.
    Process(i32),
}

impl Connection {
    pub(crate) fn new(fd: OwnedFd, leash: bool) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let channel = Channel::from(fd);
        let queue = VecDeque::new();
        Ok(Self {
            channel,
            queue,
            backlog: 0,
            skipped: 0,
            leash,
            uses: false,
            follow: None,
            events: None,
            pending: None,
        })
    }

    /// The next command; `Ok(None)` when there is none at the moment, `Err` at the end.
    pub(crate) fn receive(&self) -> io::Result<Option<(Command, Vec<OwnedFd>)>> {
        match self.channel.recv() {
            Ok(Some(message)) => remote::decode(message).map(Some),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Queues a notice and sends what the socket takes. False when the connection is of no use any more.
    pub(crate) fn notify(&mut self, notice: Notice) -> bool {
        let size = news_size(&notice);
        if size > 0 && self.backlog + size > BACKLOG {
            self.skipped += 1;
            return self.flush();
        }
        if self.skipped > 0 {
            let text =
                format!("{} lines were left out here: they came faster than they were read", self.skipped);
            self.queue.push_back(Notice::Warning(text));
            self.skipped = 0;
        }
        self.backlog += size;
        self.queue.push_back(notice);
        self.flush()
    }

    /// Sends what the socket takes. False when the connection is of no use any more.
    pub(crate) fn flush(&mut self) -> bool {
        while let Some(notice) = self.queue.front() {
            match remote::send(&self.channel, notice, &[]) {
                Ok(()) => {
                    self.backlog -= news_size(notice);
                    self.queue.pop_front();
                }
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// What to poll for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.queue.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Whether it wants to hear of a container.
    pub(crate) fn follows(&self, unit: &Unit) -> bool {
        self.follow.as_ref().is_some_and(|list| list.is_empty() || unit.is_among(list))
    }
}

/// What a notice counts in the backlog; nothing for an answer, which is never skipped.
fn news_size(notice: &Notice) -> usize {
    match notice {
        Notice::Log(line) => OVERHEAD + line.text.len(),
        Notice::State { detail, .. } => OVERHEAD + detail.as_ref().map_or(0, String::len),
        Notice::Event(_) => OVERHEAD,
        _ => 0,
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Line, Stream};

    #[test]
    fn a_reader_that_pauses_misses_lines_but_no_answer() {
        let (ours, theirs) = Channel::pair().unwrap();
        let mut connection = Connection::new(ours.into(), true).unwrap();
        let text = "x".repeat(16 << 10);
        let line = Line { service: "s".into(), stream: Stream::Stdout, time: 0, text };
        for _ in 0..2 * BACKLOG / line.text.len() {
            assert!(connection.notify(Notice::Log(line.clone())));
        }
        assert!(connection.backlog <= BACKLOG && connection.skipped > 0);
        assert!(connection.notify(Notice::Done));
        let mut warned = false;
        loop {
            connection.flush();
            let notice: Notice = remote::decode(theirs.recv().unwrap().unwrap()).unwrap().0;
            match notice {
                Notice::Warning(_) => warned = true,
                Notice::Done => break,
                _ => {}
            }
        }
        assert!(warned && connection.backlog == 0);
    }
}
