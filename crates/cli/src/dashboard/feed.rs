//! What the supervisor has to say, and what services use: waited for by threads of their own, each with a connection
//! as any command has it, and handed over in a channel with room for so much.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use stack::RemoteError;
use stack::client::{self, Client};
use stack::control::{Command, Line, Notice};
use stack::event::Event;
use stack::paths::Paths;
use stack::stats::Reading;
use stack::topology::Topology;

use crate::logs;
use crate::output::Failure;
use crate::session::{not_running, supervisor_gone};
use crate::stats::{FIRST_INTERVAL, INTERVAL, Meter};

/// News that wait to be taken. Who brings more waits, and the supervisor, which waits for nobody, leaves lines out.
pub(super) const ROOM: usize = 1024;
/// Between two readings, however much happens.
const LEAST_INTERVAL: Duration = Duration::from_millis(250);
/// How long the supervisor may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a page waits for what it asked for. What takes longer goes on.
const ACTION: Duration = Duration::from_secs(60);

/// Something to tell the pages.
#[derive(Debug)]
pub(super) enum News {
    /// What the containers do and use.
    Readings(Vec<Reading>),
    /// The stack is another one now.
    Topology(Topology),
    /// A container wrote this.
    Line(Line),
    /// This happened.
    Event(Event),
    /// A remark of the supervisor, or why something is not known.
    Warning(String),
    /// What a page asked for was done, is still being done, or failed.
    Outcome(u64, Result<Done, RemoteError>),
    /// The stack has ended.
    End,
}

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// It is done.
    Wholly,
    /// It takes long.
    NotYet,
}

/// The threads' side.
#[derive(Debug, Clone)]
struct Teller {
    news: SyncSender<News>,
    wake: Arc<OwnedFd>,
}

impl Teller {
    /// False when nobody listens any more.
    fn tell(&self, news: News) -> bool {
        // A full counter wakes too.
        self.news.send(news).is_ok() && rustix::io::write(&self.wake, &1u64.to_ne_bytes()).is_ok()
    }
}

/// Where news come from.
#[derive(Debug)]
pub(super) struct Feed {
    paths: Paths,
    stack: String,
    news: Receiver<News>,
    teller: Teller,
    /// How many pages want to know.
    readers: Arc<AtomicUsize>,
    nudge: SyncSender<()>,
}

impl Feed {
    /// Begins to listen. `client` is used for the log.
    pub(super) fn start(paths: Paths, stack: &str, client: Client) -> Result<Self, Failure> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(wake.map_err(Failure::system("make an eventfd"))?);
        let (sender, news) = sync_channel(ROOM);
        let (nudge, nudged) = sync_channel(1);
        let teller = Teller { news: sender, wake };
        let readers = Arc::new(AtomicUsize::new(0));
        let feed = Self { paths, stack: stack.to_owned(), news, teller, readers, nudge };

        let events = feed.connect()?;
        events.send(&Command::Events { services: Vec::new(), since: Some(0), follow: true }, &[])?;
        feed.spawn("events", |teller, _, _| listen(&teller, events, |_| true))?;
        // Before the files are read, so that no line falls in between.
        client.send(&Command::Follow(Vec::new()), &[])?;
        feed.spawn("log", |teller, paths, stack| {
            let mut last = std::collections::BTreeMap::new();
            for line in logs::recent(&paths.stack(&stack)) {
                last.insert(line.service.clone(), line.time);
                if !teller.tell(News::Line(line)) {
                    return;
                }
            }
            listen(&teller, client, |line| last.get(&line.service).is_none_or(|seen| line.time > *seen));
        })?;
        let readers = Arc::clone(&feed.readers);
        feed.spawn("meter", move |teller, paths, stack| {
            let meter = MeterThread { teller, paths, stack, readers, nudged, topology: None };
            meter.run();
        })?;
        Ok(feed)
    }

    fn connect(&self) -> Result<Client, Failure> {
        client::connect(&self.paths, &self.stack)?.ok_or_else(|| not_running(&self.stack))
    }

    fn spawn(
        &self,
        name: &str,
        body: impl FnOnce(Teller, Paths, String) + Send + 'static,
    ) -> Result<(), Failure> {
        let (teller, paths, stack) = (self.teller.clone(), self.paths.clone(), self.stack.clone());
        // Nobody joins it: it ends with the process, and waits for others until then.
        let started =
            std::thread::Builder::new().name(name.to_owned()).spawn(move || body(teller, paths, stack));
        started.map(drop).map_err(Failure::system("start a thread"))
    }

    /// The next piece of news, if there is one.
    pub(super) fn next(&self) -> Option<News> {
        self.news.try_recv().ok()
    }

    /// That there may be news is known now.
    pub(super) fn hear(&self) {
        // Empty when it was heard already.
        rustix::io::read(&self.teller.wake, &mut [0u8; 8]).ok();
    }

    /// How many pages want to know. Nothing is measured while there are none.
    pub(super) fn set_readers(&self, readers: usize) {
        if self.readers.swap(readers, Ordering::Relaxed) == 0 && readers > 0 {
            self.measure_soon();
        }
    }

    /// Something has changed.
    pub(super) fn measure_soon(&self) {
        match self.nudge.try_send(()) {
            // It is about to happen, or the stack is about to end.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }

    /// Carries out a command for a page; [`News::Outcome`] says how that went.
    pub(super) fn act(&self, connection: u64, command: Command) -> Result<(), Failure> {
        self.spawn("action", move |teller, paths, stack| {
            teller.tell(News::Outcome(connection, carry_out(&paths, &stack, &command)));
        })
    }
}

impl AsFd for Feed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.teller.wake.as_fd()
    }
}

fn carry_out(paths: &Paths, stack: &str, command: &Command) -> Result<Done, RemoteError> {
    let gone = || RemoteError::message("the stack's supervisor has ended");
    let mut client = client::connect(paths, stack)?.ok_or_else(gone)?;
    client.send(command, &[])?;
    let deadline = Instant::now() + ACTION;
    loop {
        match client.next(Some(deadline)) {
            Ok(Some(Notice::Done)) => return Ok(Done::Wholly),
            Ok(Some(Notice::Failed(error))) => return Err(error),
            Ok(Some(_)) => {}
            Ok(None) => return Err(gone()),
            Err(_) if Instant::now() >= deadline => return Ok(Done::NotYet),
            Err(error) => return Err(error),
        }
    }
}

/// Tells what a connection has to say, of its log lines those that are wanted, until its end, which is the stack's.
fn listen(teller: &Teller, mut client: Client, wanted: impl Fn(&Line) -> bool) {
    loop {
        let news = match client.next(None) {
            Ok(Some(Notice::Log(line))) if wanted(&line) => News::Line(line),
            Ok(Some(Notice::Event(event))) => News::Event(event),
            Ok(Some(Notice::Warning(text))) => News::Warning(text),
            Ok(Some(Notice::Failed(error))) => News::Warning(error.to_string()),
            Ok(Some(_)) => continue,
            Ok(None) => News::End,
            Err(error) => {
                teller.tell(News::Warning(error.to_string()));
                News::End
            }
        };
        let is_end = matches!(news, News::End);
        if !teller.tell(news) || is_end {
            return;
        }
    }
}

/// Who reads what the containers do and use.
struct MeterThread {
    teller: Teller,
    paths: Paths,
    stack: String,
    readers: Arc<AtomicUsize>,
    nudged: Receiver<()>,
    /// The last one that was told.
    topology: Option<Topology>,
}

impl MeterThread {
    fn run(mut self) {
        loop {
            // Until somebody wants to know.
            while self.readers.load(Ordering::Relaxed) == 0 {
                if self.nudged.recv().is_err() {
                    return;
                }
            }
            match self.watch() {
                Ok(true) => {}
                // The end is told by those that listen.
                Ok(false) => return,
                Err(failure) => {
                    let text = match failure {
                        Failure::Other(error) => error.to_string(),
                        Failure::File(_) | Failure::Unread => "the containers cannot be looked at".to_owned(),
                    };
                    if !self.teller.tell(News::Warning(text)) {
                        return;
                    }
                    std::thread::sleep(INTERVAL);
                }
            }
        }
    }

    /// Reads and tells, as long as anybody wants to know. False when there is nobody left to ask or to tell.
    fn watch(&mut self) -> Result<bool, Failure> {
        let connect = || client::connect(&self.paths, &self.stack);
        let (Some(client), Some(mut other)) = (connect()?, connect()?) else { return Ok(false) };
        let mut meter = Meter::new(client, Vec::new())?;
        let mut pause = FIRST_INTERVAL;
        while self.readers.load(Ordering::Relaxed) > 0 {
            match self.nudged.recv_timeout(pause) {
                Ok(()) => std::thread::sleep(LEAST_INTERVAL.min(pause)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
            }
            let topology = topology(&mut other)?;
            if self.topology.as_ref() != Some(&topology) {
                self.topology = Some(topology.clone());
                if !self.teller.tell(News::Topology(topology)) {
                    return Ok(false);
                }
            }
            if !self.teller.tell(News::Readings(meter.read()?)) {
                return Ok(false);
            }
            pause = INTERVAL;
        }
        Ok(true)
    }
}

fn topology(client: &mut Client) -> Result<Topology, Failure> {
    client.send(&Command::Topology, &[])?;
    let deadline = Some(Instant::now() + ANSWER);
    let mut topology = Topology::default();
    loop {
        match client.next(deadline)? {
            Some(Notice::Topology(found)) => topology = found,
            Some(Notice::Done) => return Ok(topology),
            Some(Notice::Failed(error)) => return Err(error.into()),
            Some(_) => {}
            None => return Err(supervisor_gone()),
        }
    }
}
