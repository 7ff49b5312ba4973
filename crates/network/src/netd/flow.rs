//! One direction of a connection, spliced in the kernel from socket to pipe to socket.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::world::{Poll, Token};

/// Pipes kept for the next message.
const SPARE_PIPES: usize = 16;
/// What a busy pipe is enlarged to; the most that an ordinary user may have (`fs.pipe-max-size`).
const BIG_PIPE: usize = 1 << 20;
/// Below this a transfer is taken for a message rather than a stream, and not asked for more at once.
const MESSAGE: usize = 16 * 1024;
/// Transfers of one connection before others get their turn.
const TURNS: usize = 32;

#[derive(Debug)]
pub(super) struct Side {
    pub(super) socket: OwnedFd,
    /// What epoll watches; `None` when it is not registered.
    pub(super) interest: Option<EventFlags>,
    /// It is closed both ways: epoll would report that again and again, so it is not registered any more, and
    /// what is left to read can be read at any time.
    pub(super) hung: bool,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Flow {
    pub(super) pipe: Option<Pipe>,
    /// Bytes in the pipe.
    pub(super) buffered: usize,
    /// The source has ended.
    pub(super) eof: bool,
    /// Nothing will be written any more, and the destination knows.
    pub(super) done: bool,
    /// There was no descriptor for a pipe: the source is not watched until the next try.
    pub(super) starved: bool,
}

#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

/// How a transfer failed.
pub(super) enum Broken {
    /// The source was reset: the whole connection is.
    Source,
    /// The destination takes no more.
    Destination,
}

impl Side {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, interest: None, hung: false }
    }

    pub(super) fn watch(&mut self, poll: &Poll, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        if self.hung || self.interest == Some(flags) {
            return Ok(());
        }
        match self.interest {
            None => poll.add(&self.socket, token, flags)?,
            Some(_) => poll.modify(&self.socket, token, flags)?,
        }
        self.interest = Some(flags);
        Ok(())
    }

    /// It is closed both ways.
    pub(super) fn hang_up(&mut self, poll: &Poll) {
        if self.interest.take().is_some() {
            poll.delete(&self.socket);
        }
        self.hung = true;
    }
}

/// Makes the end of a socket a reset of its connection.
pub(super) fn reset_on_close(socket: &OwnedFd) {
    if let Err(error) = sockopt::set_socket_linger(socket, Some(Duration::ZERO)) {
        tracing::debug!(%error, "reset connection");
    }
}

/// Whether the peer has not received all that was sent; a reset would throw the rest away.
pub(super) fn holds_unsent(socket: &OwnedFd) -> bool {
    sys::fd::unacknowledged(socket.as_fd()).is_ok_and(|bytes| bytes > 0)
}

impl Flow {
    /// Carries what there is, until the source has no more for now, the destination takes no more for now, or
    /// others should get their turn.
    pub(super) fn run(
        &mut self,
        source: &Side,
        destination: &Side,
        pipes: &mut Vec<Pipe>,
        reset: bool,
    ) -> Result<(), Broken> {
        let mut turns = 0;
        let mut last = usize::MAX;
        while !self.done {
            if !self.drain(destination)? {
                return Ok(());
            }
            if self.eof {
                // An end that was reset must not look like one that was closed in order.
                if !reset && let Err(error) = rustix::net::shutdown(&destination.socket, Shutdown::Write) {
                    tracing::debug!(%error, "shut down");
                }
                self.finish(pipes);
                return Ok(());
            }
            if !source.hung && (last < MESSAGE || turns == TURNS) {
                self.release(pipes);
                return Ok(());
            }
            turns += 1;
            match self.fill(source, pipes)? {
                Some(count) => last = count,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Empties the pipe; `false` when the destination takes no more for now.
    fn drain(&mut self, destination: &Side) -> Result<bool, Broken> {
        let Some(pipe) = &self.pipe else { return Ok(true) };
        while self.buffered > 0 {
            let flags = SpliceFlags::NONBLOCK;
            match rustix::pipe::splice(&pipe.read, None, &destination.socket, None, self.buffered, flags) {
                Ok(0) => return Err(Broken::Destination),
                Ok(count) => self.buffered = self.buffered.saturating_sub(count),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "write");
                    return Err(Broken::Destination);
                }
            }
        }
        Ok(true)
    }

    /// Fills the empty pipe; `None` when the source has nothing for now.
    fn fill(&mut self, source: &Side, pipes: &mut Vec<Pipe>) -> Result<Option<usize>, Broken> {
        if self.pipe.is_none() {
            match pipes.pop().map_or_else(Pipe::new, Ok) {
                Ok(pipe) => self.pipe = Some(pipe),
                Err(error) => {
                    tracing::warn!(%error, "no pipe: a connection waits");
                    self.starved = true;
                }
            }
        }
        let Some(pipe) = &mut self.pipe else { return Ok(None) };
        loop {
            // The pipe is empty, so that "try again" can only mean that the source is.
            let flags = SpliceFlags::NONBLOCK;
            match rustix::pipe::splice(&source.socket, None, &pipe.write, None, BIG_PIPE, flags) {
                Ok(0) => {
                    self.eof = true;
                    return Ok(Some(0));
                }
                Ok(count) => {
                    self.buffered = count;
                    if count >= pipe.size / 2 {
                        pipe.enlarge();
                    }
                    return Ok(Some(count));
                }
                Err(Errno::AGAIN) if source.hung => {
                    self.eof = true;
                    return Ok(Some(0));
                }
                Err(Errno::AGAIN) => {
                    self.release(pipes);
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "read");
                    return Err(Broken::Source);
                }
            }
        }
    }

    /// Nothing more will be carried.
    pub(super) fn finish(&mut self, pipes: &mut Vec<Pipe>) {
        self.done = true;
        self.release(pipes);
        self.buffered = 0;
    }

    /// Gives the pipe back; one with bytes in it is closed.
    pub(super) fn release(&mut self, pipes: &mut Vec<Pipe>) {
        if let Some(pipe) = self.pipe.take()
            && self.buffered == 0
            && pipes.len() < SPARE_PIPES
        {
            pipes.push(pipe);
        }
    }
}

impl Pipe {
    fn new() -> rustix::io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { read, write, size: 64 * 1024 })
    }

    /// Makes room for a stream; whether the kernel allows it depends on how much the user's pipes have already
    /// (`fs.pipe-user-pages-soft`), and a smaller one does too.
    fn enlarge(&mut self) {
        if self.size < BIG_PIPE {
            match rustix::pipe::fcntl_setpipe_size(&self.write, BIG_PIPE) {
                Ok(size) => self.size = size.max(BIG_PIPE),
                Err(error) => {
                    tracing::debug!(%error, "enlarge pipe");
                    self.size = BIG_PIPE;
                }
            }
        }
    }
}
