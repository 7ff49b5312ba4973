//! A client that asks over TCP: queries come one after another, each preceded by its length (RFC 1035 section 4.2.2).

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::netd::slab::Key;
use crate::netd::world::{Poll, Token};

/// How long a client may keep its connection without an answered query.
const IDLE: Duration = Duration::from_secs(10);
/// The longest query taken; a real one has a few hundred bytes at the most.
const LONGEST: usize = 4096;

#[derive(Debug)]
pub(super) struct TcpClient {
    pub(super) socket: OwnedFd,
    pub(super) network: String,
    pub(super) address: Ipv4Addr,
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
    /// A forwarded query; the next one is read when it has been answered.
    pub(super) busy: bool,
    pub(super) eof: bool,
    pub(super) interest: EventFlags,
    pub(super) deadline: Instant,
}

/// What a client's connection has to be done with.
pub(super) enum Next {
    Query(Vec<u8>),
    Wait,
    Close,
}

impl TcpClient {
    pub(super) fn new(socket: OwnedFd, network: String, address: Ipv4Addr) -> Self {
        Self {
            socket,
            network,
            address,
            input: Vec::new(),
            output: Vec::new(),
            busy: false,
            eof: false,
            interest: EventFlags::IN,
            deadline: Instant::now() + IDLE,
        }
    }

    /// Reads what has come; `false` when it is gone.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> bool {
        let room = buffer.len().min(LONGEST);
        match rustix::net::recv(&self.socket, &mut buffer[..room], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => self.eof = true,
            Ok((_, length)) => self.input.extend(buffer.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return false,
        }
        true
    }

    /// Puts a reply behind what is to be written.
    pub(super) fn answer(&mut self, reply: &[u8]) {
        self.output.extend(u16::try_from(reply.len()).unwrap_or_default().to_be_bytes());
        self.output.extend(reply);
        self.busy = false;
        self.deadline = Instant::now() + IDLE;
    }

    /// Writes what it takes; `false` when it is gone.
    pub(super) fn write(&mut self) -> bool {
        while !self.output.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, &self.output, flags) {
                Ok(sent) => drop(self.output.drain(..sent.min(self.output.len()))),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// The next query, each preceded by its length (RFC 1035 section 4.2.2).
    pub(super) fn next_query(&mut self) -> Next {
        if self.busy || !self.output.is_empty() {
            return Next::Wait;
        }
        let length = self.input.first_chunk::<2>().map(|length| usize::from(u16::from_be_bytes(*length)));
        match length {
            Some(length) if length > LONGEST => Next::Close,
            Some(length) if self.input.len() >= 2 + length => {
                let query = self.input.get(2..2 + length).unwrap_or_default().to_vec();
                self.input.drain(..2 + length);
                Next::Query(query)
            }
            _ if self.eof => Next::Close,
            _ => Next::Wait,
        }
    }

    pub(super) fn watch(&mut self, poll: &Poll, key: Key) -> rustix::io::Result<()> {
        let mut flags = EventFlags::empty();
        let waits = self.busy || !self.output.is_empty();
        flags.set(EventFlags::IN, !self.eof && !waits && self.input.len() < LONGEST + 2);
        flags.set(EventFlags::OUT, !self.output.is_empty());
        if flags != self.interest {
            poll.modify(&self.socket, Token::NameClient(key), flags)?;
            self.interest = flags;
        }
        Ok(())
    }
}
