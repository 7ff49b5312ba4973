//! One connection of a browser. Nothing here ever waits for the other side.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::page;
use super::request::{MAX_REQUEST, Refusal, Request, TOO_SLOW};
use crate::output::Failure;

/// How long a request may take to arrive.
const ASK: Duration = Duration::from_secs(10);
/// How long an answer, or anything of a feed, may lie unread.
const UNREAD: Duration = Duration::from_secs(30);
/// How long we wait for the other side to close too. Closing while there is something unread of it would take our
/// answer away with it (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_millis(500);
/// Bytes of a feed that may lie unread. What comes then is left out, and the reader told so.
const BACKLOG: usize = 2 << 20;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: TcpStream,
    phase: Phase,
    /// What is to be sent. Messages to many are there once.
    queue: VecDeque<Rc<[u8]>>,
    /// Bytes of the first of them that are sent.
    sent: usize,
    /// Bytes in the queue.
    backlog: usize,
    /// Lines and events that were left out since the last message.
    missed: u64,
    deadline: Instant,
}

/// What a connection is about.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// Its request is coming: this much is here.
    Asking(Vec<u8>),
    /// What it asked for is being done.
    Waiting,
    /// It is told what happens.
    Feeding,
    /// It has its answer, or will when the queue is empty.
    Answered,
    /// We have said all; the other side may still.
    Lingering,
}

/// What a connection has to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing yet.
    Nothing,
    /// This.
    Request(Request),
    /// Something that is no request.
    Refused(Refusal),
    /// It is over.
    End,
}

impl Connection {
    /// One that has just come.
    pub(super) fn new(socket: TcpStream, now: Instant) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        let phase = Phase::Asking(Vec::new());
        Ok(Self {
            socket,
            phase,
            queue: VecDeque::new(),
            sent: 0,
            backlog: 0,
            missed: 0,
            deadline: now + ASK,
        })
    }

    /// Whether its request is not here yet.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Asking(_))
    }

    /// Whether it is told what happens.
    pub(super) fn is_feed(&self) -> bool {
        self.phase == Phase::Feeding
    }

    /// Whether it has been answered, and is only here until it has read that.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.phase, Phase::Answered | Phase::Lingering)
    }

    /// What to poll for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.queue.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// When it has to have gone on.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // A feed may be silent, and what is asked for has a deadline of its own.
        let idle = self.queue.is_empty() && matches!(self.phase, Phase::Feeding | Phase::Waiting);
        (!idle).then_some(self.deadline)
    }

    /// Reads what came.
    pub(super) fn read(&mut self) -> Heard {
        let mut bytes = [0u8; 4096];
        // Whoever sends without end is heard again when the others have been.
        for _ in 0..MAX_REQUEST / bytes.len() {
            let length = match self.socket.read(&mut bytes) {
                Ok(0) => return Heard::End,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Nothing,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // Whatever it was, the other side is gone.
                Err(_) => return Heard::End,
            };
            // More than one request is none of a browser that was told `Connection: close`.
            let Phase::Asking(request) = &mut self.phase else { continue };
            request.extend_from_slice(&bytes[..length.min(MAX_REQUEST.saturating_sub(request.len()))]);
            match Request::parse(request) {
                Ok(None) => {}
                Ok(Some(request)) => {
                    self.phase = Phase::Waiting;
                    return Heard::Request(request);
                }
                Err(refusal) => return Heard::Refused(refusal),
            }
        }
        Heard::Nothing
    }

    /// Sends an answer, and no more.
    pub(super) fn answer(&mut self, answer: Vec<u8>, now: Instant) {
        self.phase = Phase::Answered;
        self.enqueue(answer.into(), now);
    }

    /// Begins to tell what happens, with these messages.
    pub(super) fn feed(&mut self, beginning: Vec<u8>, now: Instant) {
        self.phase = Phase::Feeding;
        self.enqueue(beginning.into(), now);
    }

    /// Tells what happened: a message with this many lines or events, or one that the next of its kind replaces (0).
    ///
    /// # Errors
    /// What [`page::message`] cannot write.
    pub(super) fn tell(&mut self, message: &Rc<[u8]>, lines: u64, now: Instant) -> Result<(), Failure> {
        if !self.queue.is_empty() && self.backlog + message.len() > BACKLOG {
            self.missed += lines;
            return Ok(());
        }
        if self.missed > 0 {
            self.enqueue(page::message("missed", &self.missed)?.into(), now);
            self.missed = 0;
        }
        self.enqueue(Rc::clone(message), now);
        Ok(())
    }

    /// The last message of a feed.
    pub(super) fn finish(&mut self, message: &Rc<[u8]>, now: Instant) {
        self.phase = Phase::Answered;
        self.enqueue(Rc::clone(message), now);
    }

    fn enqueue(&mut self, bytes: Rc<[u8]>, now: Instant) {
        if self.queue.is_empty() {
            self.deadline = now + UNREAD;
        }
        self.backlog += bytes.len();
        self.queue.push_back(bytes);
    }

    /// Sends what the socket takes. False when the connection is of no use any more.
    pub(super) fn flush(&mut self, now: Instant) -> bool {
        while let Some(first) = self.queue.front() {
            match self.socket.write(&first[self.sent..]) {
                Ok(length) => {
                    self.sent += length;
                    self.deadline = now + UNREAD;
                    if self.sent == first.len() {
                        self.backlog -= self.sent;
                        self.sent = 0;
                        self.queue.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        if self.phase == Phase::Answered {
            self.phase = Phase::Lingering;
            self.deadline = now + LINGER;
            return self.socket.shutdown(Shutdown::Write).is_ok();
        }
        true
    }

    /// Its time is over. False when it is of no use any more.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        if !self.is_asking() {
            return false;
        }
        self.answer(page::refused(TOO_SLOW), now);
        self.flush(now)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A connection, and the browser's end of it.
    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let browser = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Connection::new(listener.accept().unwrap().0, Instant::now()).unwrap(), browser)
    }

    #[test]
    fn a_reader_that_pauses_misses_lines_and_learns_how_many() {
        let (mut connection, mut browser) = pair();
        let now = Instant::now();
        connection.feed(b"begin\n".to_vec(), now);
        let message: Rc<[u8]> = vec![b'x'; 64 << 10].into();
        let mut told = 0;
        while connection.missed == 0 {
            connection.tell(&message, 3, now).unwrap();
            assert!(connection.flush(now));
            told += 1;
        }
        connection.tell(&message, 4, now).unwrap();
        assert_eq!(connection.missed, 7);
        assert!(connection.backlog <= BACKLOG);
        assert_eq!(connection.deadline(), Some(now + UNREAD));
        // What lies unread for too long is not waited for.
        assert!(!connection.expire(now + UNREAD));
        let mut rest = vec![0u8; 6 + (told - 1) * message.len()];
        browser.set_nonblocking(true).unwrap();
        let mut read = 0;
        while read < rest.len() {
            assert!(connection.flush(now));
            read += browser.read(&mut rest[read..]).unwrap_or(0);
        }
        assert!(connection.queue.is_empty() && connection.deadline().is_none());
        connection.tell(&message, 1, now).unwrap();
        assert_eq!(&*connection.queue[0], b"event: missed\ndata: 7\n\n");
        assert_eq!(connection.missed, 0);
    }

    #[test]
    fn a_request_comes_in_pieces_or_too_late() {
        let (mut connection, mut browser) = pair();
        assert_eq!(connection.read(), Heard::Nothing);
        let mut hear = |text: &[u8]| {
            browser.write_all(text).unwrap();
            loop {
                match connection.read() {
                    Heard::Nothing if text.ends_with(b"\n\r\n") => {}
                    heard => return heard,
                }
            }
        };
        assert_eq!(hear(b"GET / HT"), Heard::Nothing);
        assert!(matches!(hear(b"TP/1.1\r\n\r\n"), Heard::Request(_)));
        let (mut late, mut browser) = pair();
        let deadline = late.deadline().unwrap();
        assert!(late.expire(deadline) && late.is_answered());
        let mut answer = String::new();
        browser.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        // It had time enough to read that, and to say goodbye.
        assert!(!late.expire(deadline + LINGER));
        drop(browser);
    }
}
