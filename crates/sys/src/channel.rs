//! Messages with file descriptors between our own processes.
//!
//! A channel is a `SOCK_SEQPACKET` pair: message boundaries are kept, and the death of one end is seen as
//! the end of the stream by the other. A message larger than [`INLINE`] travels in a memfd.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Bytes that travel in the packet itself.
pub const INLINE: usize = 32 * 1024;
/// Descriptors in one message at the most (the kernel's limit is 253, one is ours for the memfd).
pub const MAX_FDS: usize = 250;

/// What one `recv` returned.
#[derive(Debug, Default)]
pub struct Message {
    /// The body.
    pub bytes: Vec<u8>,
    /// Descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// One end of a channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    /// Takes a descriptor that the other process got from [`Channel::pair`].
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

impl Channel {
    /// Two connected ends, close-on-exec.
    ///
    /// # Errors
    /// What `socketpair(2)` reports.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// Sends one message; waits while the socket's buffer is full.
    ///
    /// # Errors
    /// `EPIPE` when the other end is gone, `EINVAL` for more than [`MAX_FDS`] descriptors, and what
    /// `sendmsg(2)` reports.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if fds.len() > MAX_FDS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if bytes.len() <= INLINE {
            return self.send_packet(0, bytes, fds);
        }
        let body = rustix::fs::memfd_create(c"message", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut body = std::fs::File::from(body);
        body.write_all(bytes)?;
        let mut all = vec![body.as_fd()];
        all.extend_from_slice(fds);
        self.send_packet(1, &[], &all)
    }

    fn send_packet(&self, tag: u8, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(fds).size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let parts = [IoSlice::new(std::slice::from_ref(&tag)), IoSlice::new(bytes)];
        loop {
            match rustix::net::sendmsg(&self.0, &parts, &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                // The latter is told once, as to `recv`; then comes EPIPE.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives one message; `None` when the other end is gone. Blocks as the descriptor's mode says.
    ///
    /// # Errors
    /// `EAGAIN` on an empty non-blocking channel, `InvalidData` for a message that is not ours, and what
    /// `recvmsg(2)` reports.
    pub fn recv(&self) -> io::Result<Option<Message>> {
        let mut buffer = vec![0u8; INLINE + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            match rustix::net::recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => break received,
                // The latter is told once, when the other process ended with messages of ours in its queue. What it
                // had to say before that is still in ours; then comes the end.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        buffer.truncate(received.bytes);
        match buffer.remove(0) {
            0 => Ok(Some(Message { bytes: buffer, fds })),
            1 if !fds.is_empty() => {
                let body = std::fs::File::from(fds.remove(0));
                let mut bytes = vec![0; usize::try_from(body.metadata()?.len()).unwrap_or(0)];
                body.read_exact_at(&mut bytes, 0)?;
                Ok(Some(Message { bytes, fds }))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Waits for a message until `deadline`; `None` when the other end is gone.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, else as [`Channel::recv`].
    pub fn recv_until(&self, deadline: Instant) -> io::Result<Option<Message>> {
        wait_readable(self.as_fd(), deadline)?;
        self.recv()
    }
}

/// Waits until `fd` is readable (or its other end is gone).
///
/// # Errors
/// `TimedOut` at `deadline`, and what `poll(2)` reports.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends `bytes` and one descriptor over any connected Unix socket.
///
/// # Errors
/// What `sendmsg(2)` reports.
pub fn send_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message of up to `limit` bytes and the descriptors with it over any connected Unix socket; empty when the
/// other end is gone.
///
/// # Errors
/// What `recvmsg(2)` reports.
pub fn recv_fds(socket: BorrowedFd<'_>, limit: usize) -> io::Result<Message> {
    let mut bytes = vec![0u8; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            // See Channel::recv: the latter is told once, before what the other process had to say.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    };
    bytes.truncate(received.bytes);
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(Message { bytes, fds })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_keep_their_boundaries_and_their_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let big = vec![7u8; INLINE * 3];
        let file = std::fs::File::open("/dev/null").unwrap();
        a.send(b"small", &[]).unwrap();
        a.send(&big, &[file.as_fd(), file.as_fd()]).unwrap();
        assert_eq!(b.recv().unwrap().unwrap().bytes, b"small");
        let message = b.recv().unwrap().unwrap();
        assert_eq!((message.bytes.len(), message.fds.len()), (big.len(), 2));
        drop(a);
        assert!(b.recv().unwrap().is_none());
    }

    /// What the other end leaves unread makes the kernel answer the next call with another error, once.
    #[test]
    fn a_peer_that_ends_without_reading_is_gone_and_nothing_else() {
        let (a, b) = Channel::pair().unwrap();
        a.send(b"unread", &[]).unwrap();
        drop(b);
        assert_eq!(a.send(b"more", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(a.recv().unwrap().is_none());
    }

    #[test]
    fn a_silent_peer_is_a_timeout_and_not_a_hang() {
        let (_a, b) = Channel::pair().unwrap();
        let error = b.recv_until(Instant::now() + Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
