//! The loop that serves the pages. It waits for nothing but `poll`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;
use stack::RemoteError;
use stack::control::Line;

use super::connection::{Connection, Heard};
use super::feed::{self, Done, Feed, News};
use super::page::{self, Page};
use super::recent::{Happening, Recent};
use super::request::{Ask, BUSY, CROWDED, Gate, Request};
use crate::output::Failure;
use crate::signals::Signals;

/// Pages that are told what happens. A browser has a connection for each of them.
const FEEDS: usize = 48;
/// Connections that are served: those, and a few that ask for something.
const SERVED: usize = FEEDS + 16;
/// Connections that there are: those, and many that are told to come back later.
const CONNECTIONS: usize = SERVED + 192;
/// Things that are done at the same time.
const ACTIONS: usize = 8;
/// News that are told in one go; then the connections are looked at again. All that were there when the wake-up was
/// heard have to be among them: what comes later wakes again.
const BATCH: usize = feed::ROOM;
/// Until connections are accepted again after that was not possible.
const RETRY: Duration = Duration::from_millis(200);
/// How long pages may take to hear that the stack has ended.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why it is over.
#[derive(Debug)]
pub(super) enum End {
    /// The stack has ended.
    Stack,
    /// The user wants it.
    Signal(Signal),
}

/// Everything that is served.
#[derive(Debug)]
pub(super) struct Server {
    listener: TcpListener,
    gate: Gate,
    page: Page,
    feed: Feed,
    recent: Recent,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// Things that are being done.
    actions: usize,
    /// When connections are accepted again.
    deaf_until: Option<Instant>,
}

/// Who has something to say.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Feed,
    Connection(u64),
}

impl Server {
    pub(super) fn new(listener: TcpListener, gate: Gate, page: Page, feed: Feed) -> Self {
        let connections = BTreeMap::new();
        let recent = Recent::default();
        Self { listener, gate, page, feed, recent, connections, next: 0, actions: 0, deaf_until: None }
    }

    /// Serves until the end.
    pub(super) fn run(mut self, signals: &Signals) -> Result<End, Failure> {
        loop {
            for (source, flags) in self.wait(signals)? {
                match source {
                    Source::Signals => {
                        if let Some(signal) = signals.take()? {
                            return Ok(End::Signal(signal));
                        }
                    }
                    Source::Listener => self.accept(),
                    Source::Feed => {
                        if self.tell_news()? {
                            return self.say_goodbye(signals);
                        }
                    }
                    Source::Connection(id) => self.serve(id, flags)?,
                }
            }
            self.expire();
            self.count_readers();
        }
    }

    fn wait(&self, signals: &Signals) -> Result<Vec<(Source, PollFlags)>, Failure> {
        let now = Instant::now();
        let mut sources: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (Source::Signals, signals.as_fd(), PollFlags::IN),
            (Source::Feed, self.feed.as_fd(), PollFlags::IN),
        ];
        // What comes beyond that waits in the kernel.
        let is_deaf = self.deaf_until.is_some_and(|until| now < until);
        if !is_deaf && self.connections.len() < CONNECTIONS {
            sources.push((Source::Listener, self.listener.as_fd(), PollFlags::IN));
        }
        for (id, connection) in &self.connections {
            sources.push((Source::Connection(*id), connection.as_fd(), connection.interest()));
        }
        let deadlines = self.connections.values().filter_map(Connection::deadline);
        let next = deadlines.chain(self.deaf_until.filter(|_| is_deaf)).min();
        // Rounded up, so that what is due at a moment is due when the wait for it ends.
        let left = next.map(|at| at.saturating_duration_since(now) + Duration::from_micros(999));
        let left = left.and_then(|left| rustix::time::Timespec::try_from(left).ok());
        let mut polled: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut polled, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::system("wait for browsers")(errno)),
        }
        let fired = sources.iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty());
        Ok(fired.map(|((source, ..), polled)| (*source, polled.revents())).collect())
    }

    fn accept(&mut self) {
        let now = Instant::now();
        while self.connections.len() < CONNECTIONS {
            let accepted = self.listener.accept().and_then(|(socket, _)| Connection::new(socket, now));
            match accepted {
                Ok(mut connection) => {
                    if !self.has_room(now) {
                        connection.answer(page::refused(CROWDED), now);
                    }
                    self.connections.insert(self.next, connection);
                    self.next += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => {
                    // No descriptors, or no memory, at the moment.
                    tracing::warn!("accept a browser's connection: {error}");
                    self.deaf_until = Some(now + RETRY);
                    return;
                }
            }
        }
    }

    /// Whether one more connection is served. Of those that have not asked for anything the oldest gives way: a browser
    /// asks at once, and who knows no token must not keep out who does.
    fn has_room(&mut self, now: Instant) -> bool {
        let served = self.connections.values().filter(|connection| !connection.is_answered()).count();
        if served < SERVED {
            return true;
        }
        let silent = self.connections.iter_mut().find(|(_, connection)| connection.is_asking());
        let Some((&id, connection)) = silent else { return false };
        connection.answer(page::refused(CROWDED), now);
        self.flush(id, now);
        true
    }

    fn serve(&mut self, id: u64, flags: PollFlags) -> Result<(), Failure> {
        let now = Instant::now();
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            match connection.read() {
                Heard::Nothing => {}
                Heard::Request(request) => self.answer(id, &request, now)?,
                Heard::Refused(refusal) => connection.answer(page::refused(refusal), now),
                Heard::End => {
                    self.connections.remove(&id);
                    return Ok(());
                }
            }
        }
        self.flush(id, now);
        Ok(())
    }

    fn flush(&mut self, id: u64, now: Instant) {
        if self.connections.get_mut(&id).is_some_and(|connection| !connection.flush(now)) {
            self.connections.remove(&id);
        }
    }

    /// Gives what is asked for, or begins with it.
    fn answer(&mut self, id: u64, request: &Request, now: Instant) -> Result<(), Failure> {
        let answer = match self.gate.admit(request) {
            Ok(Ask::Page) => self.page.answer()?,
            Ok(Ask::Feed) if self.feeds() < FEEDS => {
                let beginning = self.beginning()?;
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.feed(beginning, now);
                }
                return Ok(());
            }
            Ok(Ask::Act(verb, name)) if self.actions < ACTIONS => {
                self.actions += 1;
                return self.feed.act(id, verb.command(name));
            }
            Ok(Ask::Feed) => page::refused(CROWDED),
            Ok(Ask::Act(..)) => page::refused(BUSY),
            Err(refusal) => page::refused(refusal),
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.answer(answer, now);
        }
        Ok(())
    }

    fn feeds(&self) -> usize {
        self.connections.values().filter(|connection| connection.is_feed()).count()
    }

    fn count_readers(&self) {
        self.feed.set_readers(self.feeds());
    }

    /// What a page that comes now has to know.
    fn beginning(&self) -> Result<Vec<u8>, Failure> {
        let mut text = page::head(200, page::FEED);
        text.extend(page::message("hello", &Hello { host_memory: stack::stats::host_memory() })?);
        // First, because a state means another thing after a stop that was wanted.
        text.extend(page::message("events", self.recent.events())?);
        if let Some(topology) = &self.recent.topology {
            text.extend(page::message("topology", topology)?);
        }
        if let Some(readings) = &self.recent.readings {
            text.extend(page::message("readings", readings)?);
        }
        text.extend(page::message("lines", &self.recent.lines())?);
        Ok(text)
    }

    /// Tells the pages what there is to tell. True when the stack has ended.
    fn tell_news(&mut self) -> Result<bool, Failure> {
        self.feed.hear();
        let (mut lines, mut events): (Vec<Line>, Vec<Happening>) = (Vec::new(), Vec::new());
        for _ in 0..BATCH {
            let Some(news) = self.feed.next() else { break };
            match news {
                News::Line(line) => lines.push(self.recent.line(line)),
                News::Event(event) => {
                    events.push(self.recent.event(event));
                    self.feed.measure_soon();
                }
                News::Readings(readings) => {
                    self.tell("readings", &readings, 0)?;
                    self.recent.readings(readings);
                }
                News::Topology(topology) => {
                    self.tell("topology", &topology, 0)?;
                    self.recent.topology = Some(topology);
                }
                News::Warning(text) => self.tell("warning", &text, 1)?,
                News::Outcome(id, outcome) => self.outcome(id, &outcome)?,
                News::End => {
                    self.tell_all(&lines, &events)?;
                    return Ok(true);
                }
            }
        }
        self.tell_all(&lines, &events)?;
        Ok(false)
    }

    fn tell_all(&mut self, lines: &[Line], events: &[Happening]) -> Result<(), Failure> {
        if !lines.is_empty() {
            self.tell("lines", &lines, lines.len() as u64)?;
        }
        if !events.is_empty() {
            self.tell("events", &events, events.len() as u64)?;
        }
        Ok(())
    }

    fn tell(&mut self, name: &str, value: &impl Serialize, lines: u64) -> Result<(), Failure> {
        if self.feeds() == 0 {
            return Ok(());
        }
        let now = Instant::now();
        let message: Rc<[u8]> = page::message(name, value)?.into();
        for connection in self.connections.values_mut().filter(|connection| connection.is_feed()) {
            connection.tell(&message, lines, now)?;
        }
        self.connections.retain(|_, connection| !connection.is_feed() || connection.flush(now));
        Ok(())
    }

    /// Answers the page that asked for it, if it is still there.
    fn outcome(&mut self, id: u64, outcome: &Result<Done, RemoteError>) -> Result<(), Failure> {
        self.actions -= 1;
        let now = Instant::now();
        let (status, answer) = match outcome {
            Ok(Done::Wholly) => (200, Answer::default()),
            Ok(Done::NotYet) => (202, Answer::default()),
            Err(error) => (409, Answer { error: Some(error.to_string()), hint: error.hint.clone() }),
        };
        let body = serde_json::to_vec(&answer).map_err(Failure::system("write JSON"))?;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.answer(page::answer(status, "Content-Type: application/json\r\n", &body), now);
        }
        self.flush(id, now);
        Ok(())
    }

    /// Ends what has taken too long.
    fn expire(&mut self) {
        let now = Instant::now();
        let is_late = |connection: &Connection| connection.deadline().is_some_and(|deadline| deadline <= now);
        self.connections.retain(|_, connection| !is_late(connection) || connection.expire(now));
        self.deaf_until = self.deaf_until.filter(|until| now < *until);
    }

    /// Tells the pages that the stack has ended, as far as they listen.
    fn say_goodbye(mut self, signals: &Signals) -> Result<End, Failure> {
        let now = Instant::now();
        let message: Rc<[u8]> = page::message("end", &())?.into();
        self.connections.retain(|_, connection| connection.is_feed());
        for connection in self.connections.values_mut() {
            connection.finish(&message, now);
        }
        self.connections.retain(|_, connection| connection.flush(now));
        // They close when they have read it.
        while !self.connections.is_empty() && now.elapsed() < GOODBYE {
            for (source, flags) in self.wait(signals)? {
                match source {
                    Source::Signals => return Ok(End::Stack),
                    Source::Listener => self.deaf_until = Some(now + GOODBYE),
                    Source::Feed => self.feed.hear(),
                    Source::Connection(id) => self.serve(id, flags)?,
                }
            }
            self.expire();
        }
        Ok(End::Stack)
    }
}

/// The first message of a feed.
#[derive(Serialize)]
struct Hello {
    /// Bytes of memory that this machine has.
    host_memory: u64,
}

/// How an action went.
#[derive(Default, Serialize)]
struct Answer {
    error: Option<String>,
    hint: Option<String>,
}
