//! One direction of a connection, from socket to socket: messages through a buffer, streams through a pipe, in which the
//! kernel moves them without copying. A message costs less than half of what two splices of it do.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::world::{Poll, Token};

/// Pipes kept for the next stream.
const SPARE_PIPES: usize = 16;
/// What a busy pipe is enlarged to; the most that an ordinary user may have (`fs.pipe-max-size`).
const BIG_PIPE: usize = 1 << 20;
/// The longest message. What fills this is taken for a stream, and what is less for all that there is for now.
const MESSAGE: usize = 16 * 1024;
/// Transfers of one connection before others get their turn.
const TURNS: usize = 32;

#[derive(Debug)]
pub(super) struct Side {
    pub(super) socket: OwnedFd,
    /// What epoll watches; `None` when it is not registered.
    pub(super) interest: Option<EventFlags>,
    /// It is closed both ways: epoll would report that again and again, so it is not watched any more, and what is left
    /// to read can be read at any time.
    pub(super) hung: bool,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The end of a message that the destination has not taken.
    rest: Vec<u8>,
    pipe: Option<Pipe>,
    /// Bytes that the destination is still to take: of `rest`, or in the pipe.
    pub(super) buffered: usize,
    /// What came last was more than a message.
    streams: bool,
    /// The source has ended.
    pub(super) eof: bool,
    /// Nothing will be written any more, and the destination knows.
    pub(super) done: bool,
    /// There was no descriptor for a pipe: the source is not watched until the next try.
    pub(super) starved: bool,
}

/// What all flows use in turn.
#[derive(Debug)]
pub(super) struct Buffers {
    message: Box<[u8]>,
    pipes: Vec<Pipe>,
}

/// What is known of a flow's ends when it is run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    /// The source has sent its last byte, which may not have been read yet.
    pub(super) over: bool,
    /// The destination need not be told of the end: it is closed or reset next.
    pub(super) untold: bool,
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
        if self.hung {
            if self.interest.take().is_some() {
                poll.delete(&self.socket);
            }
            return Ok(());
        }
        if self.interest == Some(flags) {
            return Ok(());
        }
        match self.interest {
            None => poll.add(&self.socket, token, flags)?,
            Some(_) => poll.modify(&self.socket, token, flags)?,
        }
        self.interest = Some(flags);
        Ok(())
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

impl Buffers {
    pub(super) fn new() -> Self {
        Self { message: vec![0; MESSAGE].into(), pipes: Vec::new() }
    }
}

impl Flow {
    /// Carries what there is, until the source has no more for now, the destination takes no more for now, or
    /// others should get their turn.
    pub(super) fn run(
        &mut self,
        source: &Side,
        destination: &Side,
        buffers: &mut Buffers,
        ends: Ends,
    ) -> Result<(), Broken> {
        let mut turns = 0;
        let mut more = true;
        while !self.done {
            if !self.drain(destination)? {
                return Ok(());
            }
            if self.eof {
                if !ends.untold
                    && let Err(error) = rustix::net::shutdown(&destination.socket, Shutdown::Write)
                {
                    tracing::debug!(%error, "shut down");
                }
                self.finish(buffers);
                return Ok(());
            }
            if !source.hung && (!(more || ends.over) || turns == TURNS) {
                self.release(buffers);
                return Ok(());
            }
            turns += 1;
            let came = if self.streams {
                self.fill(source, buffers)
            } else {
                self.pass(source, destination, buffers)
            };
            match came? {
                Some(count) => more = count >= MESSAGE,
                None => return Ok(()),
            }
            self.streams = more;
        }
        Ok(())
    }

    /// Passes a message on; `None` when the source has none for now.
    fn pass(
        &mut self,
        source: &Side,
        destination: &Side,
        buffers: &mut Buffers,
    ) -> Result<Option<usize>, Broken> {
        let Some(count) = self.came(source, || {
            rustix::net::recv(&source.socket, &mut *buffers.message, RecvFlags::empty())
                .map(|(count, _)| count)
        })?
        else {
            return Ok(None);
        };
        let message = buffers.message.get(..count).unwrap_or_default();
        let sent = if message.is_empty() { 0 } else { send(destination, message)? };
        self.rest.clear();
        self.rest.extend_from_slice(message.get(sent..).unwrap_or_default());
        self.buffered = self.rest.len();
        Ok(Some(count))
    }

    /// Hands the destination what it has not taken yet; `false` when it takes no more for now.
    fn drain(&mut self, destination: &Side) -> Result<bool, Broken> {
        while self.buffered > 0 {
            let rest = self.rest.get(self.rest.len().saturating_sub(self.buffered)..).unwrap_or_default();
            let taken = match &self.pipe {
                Some(pipe) if rest.is_empty() => splice(pipe, destination, self.buffered)?,
                _ => send(destination, rest)?,
            };
            if taken == 0 {
                return Ok(false);
            }
            self.buffered = self.buffered.saturating_sub(taken);
        }
        // Memory for messages that nobody takes is for as long as that lasts.
        self.rest = Vec::new();
        Ok(true)
    }

    /// Fills the empty pipe; `None` when the source has nothing for now.
    fn fill(&mut self, source: &Side, buffers: &mut Buffers) -> Result<Option<usize>, Broken> {
        if self.pipe.is_none() {
            match buffers.pipes.pop().map_or_else(Pipe::new, Ok) {
                Ok(pipe) => self.pipe = Some(pipe),
                Err(error) => {
                    tracing::warn!(%error, "no pipe: a connection waits");
                    self.starved = true;
                }
            }
        }
        let Some(mut pipe) = self.pipe.take() else { return Ok(None) };
        let came = self.came(source, || {
            // The pipe is empty, so that "try again" can only mean that the source is.
            let flags = SpliceFlags::NONBLOCK;
            rustix::pipe::splice(&source.socket, None, &pipe.write, None, BIG_PIPE, flags)
        });
        if let Ok(Some(count)) = came {
            self.buffered = count;
            if count >= pipe.size / 2 {
                pipe.enlarge();
            }
        }
        self.pipe = Some(pipe);
        if let Ok(None) = came {
            self.release(buffers);
        }
        came
    }

    /// How much has come from the source, 0 at its end; `None` when there is nothing for now.
    fn came(
        &mut self,
        source: &Side,
        mut receive: impl FnMut() -> rustix::io::Result<usize>,
    ) -> Result<Option<usize>, Broken> {
        loop {
            match receive() {
                Ok(0) => {
                    self.eof = true;
                    return Ok(Some(0));
                }
                Ok(count) => return Ok(Some(count)),
                Err(Errno::AGAIN) if source.hung => {
                    self.eof = true;
                    return Ok(Some(0));
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "read");
                    return Err(Broken::Source);
                }
            }
        }
    }

    /// Nothing more will be carried.
    pub(super) fn finish(&mut self, buffers: &mut Buffers) {
        self.done = true;
        self.release(buffers);
        self.rest = Vec::new();
        self.buffered = 0;
    }

    /// Gives the pipe back; one with bytes in it is closed.
    pub(super) fn release(&mut self, buffers: &mut Buffers) {
        if let Some(pipe) = self.pipe.take()
            && self.buffered == 0
            && buffers.pipes.len() < SPARE_PIPES
        {
            buffers.pipes.push(pipe);
        }
    }
}

/// How much of a message the destination took; 0 when it takes nothing for now.
fn send(destination: &Side, message: &[u8]) -> Result<usize, Broken> {
    taken(|| rustix::net::send(&destination.socket, message, SendFlags::NOSIGNAL))
}

/// The same, from a pipe.
fn splice(pipe: &Pipe, destination: &Side, count: usize) -> Result<usize, Broken> {
    let flags = SpliceFlags::NONBLOCK;
    taken(|| match rustix::pipe::splice(&pipe.read, None, &destination.socket, None, count, flags) {
        // The pipe does have that much.
        Ok(0) => Err(Errno::PIPE),
        other => other,
    })
}

fn taken(mut give: impl FnMut() -> rustix::io::Result<usize>) -> Result<usize, Broken> {
    loop {
        match give() {
            Ok(count) => return Ok(count),
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::debug!(%error, "write");
                return Err(Broken::Destination);
            }
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
