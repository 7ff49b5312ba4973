//! `ping` out of the stack: echo requests of containers are sent again from a socket of the host's, and the replies
//! brought back under the name of whom they asked.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use super::event::{Token, World};
use super::slab::{Key, Slab};

#[derive(Debug)]
pub(super) struct Echo {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Echo {
    pub(super) fn new() -> Self {
        Self { v4: None, v6: None }
    }
    pub(super) fn listen(&mut self, world: &World, socket: OwnedFd, v6: bool) -> rustix::io::Result<()> {
        world.poll.add(&socket, Token::EchoRequest(v6), EventFlags::IN)?;
        *(if v6 { &mut self.v6 } else { &mut self.v4 }) = Some(socket);
        Ok(())
    }
    pub(super) fn request(&mut self, _world: &mut World, v6: bool) {
        let _ = v6;
    }
    pub(super) fn reply(&mut self, _key: Key) {}
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        None
    }
    pub(super) fn expire(&mut self, _now: Instant) {}
}
