//! A command's connection, as the supervisor holds it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use sys::channel::Channel;

use crate::control::{Command, Notice};
use crate::remote;

/// Notices that a slow reader may leave unread before it is dropped.
const BACKLOG: usize = 20_000;

/// A connection. Nothing here ever waits for the other side.
#[derive(Debug)]
pub(crate) struct Connection {
    channel: Channel,
    queue: VecDeque<Notice>,
    /// Its end ends the stack (it started the supervisor and has not detached).
    pub(crate) leash: bool,
    /// Services whose log lines and states it wants; empty for all.
    pub(crate) follow: Option<Vec<String>>,
    /// The command that is being carried out.
    pub(crate) pending: Option<Pending>,
}

/// What a connection waits for.
#[derive(Debug, Clone)]
pub(crate) enum Pending {
    /// These services are up; healthy too if `wait`.
    Up { services: Vec<String>, wait: bool },
    /// These services are down.
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
        Ok(Self { channel, queue: VecDeque::new(), leash, follow: None, pending: None })
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
        self.queue.push_back(notice);
        self.flush() && self.queue.len() < BACKLOG
    }

    /// Sends what the socket takes. False when the connection is of no use any more.
    pub(crate) fn flush(&mut self) -> bool {
        while let Some(notice) = self.queue.front() {
            match remote::send(&self.channel, notice, &[]) {
                Ok(()) => {
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

    /// Whether it wants to hear of `service`.
    pub(crate) fn follows(&self, service: &str) -> bool {
        self.follow.as_ref().is_some_and(|list| list.is_empty() || list.iter().any(|s| s == service))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
