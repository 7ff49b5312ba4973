//! Service output: pipes into lines, lines into capped files of JSON lines.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use sys::channel::Channel;

use super::Supervisor;
use super::allowance::Allowance;
use super::capped::Capped;
use crate::control::{Line, Notice, Stream};
use crate::event::{self, What};
use crate::plan::{Excess, Logging, Service};

/// A longer line is cut into pieces.
const LINE_LIMIT: usize = 16 << 10;
/// Lines kept in memory for error reports.
const RECENT: usize = 20;
/// How often it is told at most that a service is held back.
const HELD_PERIOD: Duration = Duration::from_secs(60);
/// How long lines that are left out are counted before their number is written.
const ACCOUNT_PERIOD: Duration = Duration::from_secs(1);

/// The reading end of a service's standard output or error.
#[derive(Debug)]
pub(crate) struct Output {
    pipe: OwnedFd,
    stream: Stream,
    partial: Vec<u8>,
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Output {
    /// A pipe: our end, which does not block, and the service's, which does. It is given to `owner`, a user and
    /// group of the host: programs open `/proc/self/fd/2` again, and that asks for permission.
    pub(crate) fn pipe(stream: Stream, owner: Option<(u32, u32)>) -> io::Result<(Self, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(&write, Some(uid), Some(gid))?;
        }
        rustix::io::ioctl_fionbio(&read, true)?;
        Ok((Self { pipe: read, stream, partial: Vec::new() }, write))
    }

    /// The other end of a service's terminal.
    pub(crate) fn terminal(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self { pipe: master, stream: Stream::Stdout, partial: Vec::new() })
    }

    /// Reads what is there. The second value is false when nothing will come any more.
    pub(crate) fn read(&mut self, service: &str) -> io::Result<(Vec<Line>, bool)> {
        let mut buffer = [0u8; 16 << 10];
        let open = match rustix::io::read(&self.pipe, &mut buffer) {
            // EIO is what the end is on a terminal.
            Ok(0) | Err(Errno::IO) => false,
            Ok(length) => {
                self.partial.extend_from_slice(&buffer[..length]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => return Ok((Vec::new(), true)),
            Err(errno) => return Err(errno.into()),
        };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let mut lines = Vec::new();
        let mut rest = self.partial.as_slice();
        let line = |bytes: &[u8]| Line {
            service: service.to_owned(),
            stream: self.stream,
            time,
            text: String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned(),
        };
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            lines.push(line(&rest[..end]));
            rest = &rest[end + 1..];
        }
        while rest.len() >= LINE_LIMIT || (!open && !rest.is_empty()) {
            let (piece, more) = rest.split_at(rest.len().min(LINE_LIMIT));
            lines.push(line(piece));
            rest = more;
        }
        self.partial = rest.to_vec();
        Ok((lines, open))
    }
}

/// Standard input, output and error of a service that is about to start.
#[derive(Debug)]
pub(crate) struct Streams {
    pipes: Vec<Output>,
    console: Option<Channel>,
    /// What the service gets.
    pub(crate) theirs: [OwnedFd; 3],
}

impl Streams {
    /// Pipes, or the way to a terminal.
    pub(crate) fn open(service: &Service, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let null = || File::open("/dev/null").map(OwnedFd::from);
        if service.tty {
            let (ours, theirs) = Channel::pair()?;
            let theirs = [theirs.into(), null()?, null()?];
            return Ok(Self { pipes: Vec::new(), console: Some(ours), theirs });
        }
        let (stdout, out) = Output::pipe(Stream::Stdout, owner)?;
        let (stderr, err) = Output::pipe(Stream::Stderr, owner)?;
        let input = if service.stdin_open { endless()? } else { null()? };
        Ok(Self { pipes: vec![stdout, stderr], console: None, theirs: [input, out, err] })
    }

    /// What is to be read of the service, now that it runs.
    pub(crate) fn outputs(self) -> io::Result<Vec<Output>> {
        let Some(console) = self.console else { return Ok(self.pipes) };
        // It was sent before the service's program began.
        let message = console.recv_until(Instant::now() + Duration::from_secs(5))?;
        let master = message.and_then(|message| message.fds.into_iter().next());
        Ok(vec![Output::terminal(master.ok_or(io::ErrorKind::UnexpectedEof)?)?])
    }
}

/// An input from which nothing ever comes, not even its end: a pipe that is its own writer.
fn endless() -> io::Result<OwnedFd> {
    let (read, _write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", read.as_raw_fd());
    Ok(OpenOptions::new().read(true).write(true).open(path)?.into())
}

/// The log of one service: what it wrote, as far as its rate and the disk allow.
#[derive(Debug)]
pub(crate) struct Log {
    service: String,
    file: Capped,
    excess: Excess,
    allowance: Allowance,
    left_out: Option<LeftOut>,
    /// When it was told that the service is held back.
    told_held: Option<Instant>,
    recent: VecDeque<String>,
}

/// Lines that are not in the log, and of which that has not been said yet.
#[derive(Debug)]
struct LeftOut {
    lines: u64,
    why: String,
    /// When it is to be said.
    due: Instant,
}

impl Log {
    /// Opens `SERVICE.log` in `directory` for appending.
    pub(crate) fn open(directory: &Path, service: &str, limits: &Logging) -> io::Result<Self> {
        let path = directory.join(format!("{service}.log"));
        Ok(Self {
            service: service.to_owned(),
            file: Capped::open(path, limits.max_size, limits.max_files)?,
            excess: limits.excess,
            allowance: Allowance::new(limits.rate, Instant::now()),
            left_out: None,
            told_held: None,
            recent: VecDeque::new(),
        })
    }

    /// What of these lines is within the rate. Where the others wait that is all of them: a service that has written
    /// too much is not read for a while ([`Log::held_until`]).
    pub(crate) fn admit(&mut self, mut lines: Vec<Line>, now: Instant) -> Vec<Line> {
        lines.retain(|line| {
            let admitted = self.excess == Excess::Waits || self.allowance.overdrawn(now).is_none();
            match admitted {
                true => self.allowance.spend(line.text.len() + 1, now),
                false => self.leave_out(1, || "they came faster than `rate` allows".to_owned(), now),
            }
            admitted
        });
        lines
    }

    fn leave_out(&mut self, lines: u64, why: impl FnOnce() -> String, now: Instant) {
        let left_out =
            self.left_out.get_or_insert_with(|| LeftOut { lines: 0, why: why(), due: now + ACCOUNT_PERIOD });
        left_out.lines += lines;
    }

    /// Until when its service is not read, because it has written more than its rate allows.
    pub(crate) fn held_until(&self, now: Instant) -> Option<Instant> {
        self.allowance.overdrawn(now).filter(|_| self.excess == Excess::Waits)
    }

    /// Whether it is to be told that the service is held back: it is, and that was not told lately.
    pub(crate) fn is_held_anew(&mut self, now: Instant) -> bool {
        let lately = self.told_held.is_some_and(|told| now.duration_since(told) < HELD_PERIOD);
        let anew = self.held_until(now).is_some() && !lately;
        if anew {
            self.told_held = Some(now);
        }
        anew
    }

    /// When there is something to do without any event.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.left_out.as_ref().map(|left_out| left_out.due)
    }

    /// Writes how many lines were left out, when that is due and can be written. Returns the line, the number and the
    /// reason.
    pub(crate) fn account(&mut self, now: Instant) -> Option<(Line, u64, String)> {
        let left_out = self.left_out.take_if(|left_out| left_out.due <= now)?;
        let text = format!("inception-run: {} lines were left out here: {}", left_out.lines, left_out.why);
        let line = Line { service: self.service.clone(), stream: Stream::Stderr, time: event::now(), text };
        match self.append(std::slice::from_ref(&line)) {
            Ok(()) => Some((line, left_out.lines, left_out.why)),
            Err(_) => {
                self.left_out = Some(LeftOut { due: now + ACCOUNT_PERIOD, ..left_out });
                None
            }
        }
    }

    /// Appends lines. Those that cannot be written are counted, and that is said as soon as it can be.
    pub(crate) fn write(&mut self, lines: &[Line], now: Instant) {
        for line in lines {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(line.text.clone());
        }
        if let Err(error) = self.append(lines) {
            self.leave_out(lines.len() as u64, || error.to_string(), now);
        }
    }

    fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        let encode = |line| {
            let mut bytes = serde_json::to_vec(line)?;
            bytes.push(b'\n');
            io::Result::Ok(bytes)
        };
        let encoded = lines.iter().map(encode).collect::<io::Result<Vec<_>>>()?;
        self.file.write(encoded.iter().map(Vec::as_slice))
    }

    /// The last lines, oldest first.
    pub(crate) fn recent(&self) -> impl Iterator<Item = &str> {
        self.recent.iter().map(String::as_str)
    }
}

impl Supervisor {
    pub(super) fn read_output(&mut self, index: usize, stream: usize) {
        let unit = &mut self.units[index];
        let Some(output) = unit.outputs.get_mut(stream) else { return };
        let (lines, open) = output.read(&unit.container).unwrap_or_else(|error| {
            tracing::warn!("read the output of service `{}`: {error}", unit.container);
            (Vec::new(), false)
        });
        if !open {
            unit.outputs.remove(stream);
        }
        let now = Instant::now();
        let lines = unit.log.admit(lines, now);
        if unit.log.is_held_anew(now) {
            let rate = unit.service.logging.rate;
            self.tell_event_of(index, What::LogHeld { rate });
        }
        self.keep_lines(index, lines);
    }

    /// Adds lines to a service's log, and shows them to those who follow it.
    pub(super) fn keep_lines(&mut self, index: usize, lines: Vec<Line>) {
        let unit = &mut self.units[index];
        if lines.is_empty() {
            return;
        }
        unit.log.write(&lines, Instant::now());
        for line in lines {
            self.tell_followers(index, &Notice::Log(line));
        }
    }

    /// Writes a line of ours into a service's log.
    pub(super) fn note(&mut self, index: usize, text: &str) {
        let (service, time) = (self.units[index].name().to_owned(), event::now());
        let text = format!("inception-run: {text}");
        self.keep_lines(index, vec![Line { service, stream: Stream::Stderr, time, text }]);
    }

    /// Tells how many lines are not in a service's log, where that is due.
    pub(super) fn account(&mut self, index: usize, now: Instant) {
        if let Some((line, lines, reason)) = self.units[index].log.account(now) {
            self.tell_followers(index, &Notice::Log(line));
            self.tell_event_of(index, What::LogLeftOut { lines, reason });
        }
    }

    /// Reads what a service that just ended has written; what outlives it keeps its pipe.
    pub(super) fn drain(&mut self, index: usize) {
        let polled = |output: &Output| {
            let mut poll = [PollFd::new(output, PollFlags::IN)];
            let none = rustix::time::Timespec::default();
            matches!(rustix::event::poll(&mut poll, Some(&none)), Ok(1))
        };
        // Bounded: a process that outlives its service may go on writing.
        for _ in 0..4096 {
            let Some(stream) = self.units[index].outputs.iter().position(polled) else { return };
            self.read_output(index, stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_kept_whole_across_reads() {
        let (mut output, write) = Output::pipe(Stream::Stdout, None).unwrap();
        let mut write = File::from(write);
        let mut texts = Vec::new();
        let mut open = true;
        for part in ["one\ntw", "o\r\nthr", "ee"] {
            write.write_all(part.as_bytes()).unwrap();
            texts.extend(output.read("s").unwrap().0.into_iter().map(|l| l.text));
        }
        drop(write);
        while open {
            let (lines, more) = output.read("s").unwrap();
            texts.extend(lines.into_iter().map(|l| l.text));
            open = more;
        }
        assert_eq!(texts, ["one", "two", "three"]);
    }

    fn lines(texts: &[&str]) -> Vec<Line> {
        let line = |text: &&str| Line {
            service: "s".into(),
            stream: Stream::Stdout,
            time: 1,
            text: (*text).to_owned(),
        };
        texts.iter().map(line).collect()
    }

    #[test]
    fn what_is_too_fast_waits_or_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let open = |excess| {
            let limits = Logging { rate: 10, excess, ..Logging::default() };
            Log::open(directory.path(), "s", &limits).unwrap()
        };
        let flood = ["123456789", "123456789", "123456789"];
        let (mut waits, mut dropped) = (open(Excess::Waits), open(Excess::Dropped));
        let now = Instant::now();
        assert_eq!(waits.admit(lines(&flood), now).len(), 3);
        assert!(waits.held_until(now).is_some() && waits.is_held_anew(now) && !waits.is_held_anew(now));
        assert_eq!(waits.held_until(now + Duration::from_secs(4)), None);
        // A second's worth, and the line that overdraws it.
        assert_eq!(dropped.admit(lines(&flood), now).len(), 2);
        assert_eq!(dropped.held_until(now), None);
        assert!(dropped.account(now).is_none());
        let (line, count, _why) = dropped.account(dropped.next().unwrap()).unwrap();
        assert!(count == 1 && line.text.contains("1 lines were left out"), "{line:?}");
        assert_eq!(dropped.next(), None);
        let written = std::fs::read_to_string(directory.path().join("s.log")).unwrap();
        assert!(written.contains("left out"), "{written}");
    }

    #[test]
    fn what_the_disk_does_not_take_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let full = directory.path().join("s.log");
        std::os::unix::fs::symlink("/dev/full", &full).unwrap();
        let now = Instant::now();
        let mut log = Log::open(directory.path(), "s", &Logging::default()).unwrap();
        log.write(&lines(&["a", "b"]), now);
        log.write(&lines(&["c"]), now);
        let due = log.next().unwrap();
        assert!(log.account(due).is_none(), "it cannot be written");
        assert!(log.next().unwrap() > due);
        assert!(log.recent().eq(["a", "b", "c"]));
        // Another disk, so to speak.
        std::fs::remove_file(&full).unwrap();
        log.file = Capped::open(full, 1000, 2).unwrap();
        let (_line, count, _why) = log.account(log.next().unwrap()).unwrap();
        assert_eq!(count, 3);
    }
}
