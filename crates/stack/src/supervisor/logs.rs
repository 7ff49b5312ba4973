//! Service output: pipes into lines, lines into capped files of JSON lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use sys::channel::Channel;

use crate::control::{Line, Stream};
use crate::plan::{Logging, Service};

/// A longer line is cut into pieces.
const LINE_LIMIT: usize = 16 << 10;
/// Lines kept in memory for error reports.
const RECENT: usize = 20;

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

/// The log of one service.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    /// What is kept.
    limits: Logging,
    recent: std::collections::VecDeque<String>,
}

impl Log {
    /// Opens `SERVICE.log` in `directory` for appending.
    pub(crate) fn open(directory: &Path, service: &str, limits: &Logging) -> io::Result<Self> {
        let path = directory.join(format!("{service}.log"));
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, limits: limits.clone(), recent: std::collections::VecDeque::new() })
    }

    /// Appends lines.
    pub(crate) fn write(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in lines {
            let mut one = serde_json::to_vec(line)?;
            one.push(b'\n');
            let written = self.size + bytes.len() as u64;
            if written > 0 && written + one.len() as u64 > self.limits.max_size {
                self.append(&std::mem::take(&mut bytes))?;
                self.rotate()?;
            }
            bytes.append(&mut one);
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(line.text.clone());
        }
        self.append(&bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.limits.max_files > 0 {
            self.file.write_all(bytes)?;
            self.size += bytes.len() as u64;
        }
        Ok(())
    }

    /// Begins a new file; the one before becomes `.log.1`, that one `.log.2`, and the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        if self.limits.max_files == 0 {
            return Ok(());
        }
        let older = |number: u32| match number {
            0 => self.path.clone(),
            number => self.path.with_extension(format!("log.{number}")),
        };
        for number in (1..self.limits.max_files).rev() {
            match fs::rename(older(number - 1), older(number)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        if self.limits.max_files == 1 {
            fs::remove_file(&self.path)?;
        }
        self.file = append(&self.path)?;
        self.size = 0;
        Ok(())
    }

    /// The last lines, oldest first.
    pub(crate) fn recent(&self) -> impl Iterator<Item = &str> {
        self.recent.iter().map(String::as_str)
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_log_is_capped() {
        let directory = tempfile::tempdir().unwrap();
        let text = "x".repeat(1000);
        let line = |number: u64| Line {
            service: "s".into(),
            stream: Stream::Stdout,
            time: number,
            text: text.clone(),
        };
        let limits = |max_files| Logging { max_size: 10_000, max_files };
        let files = || {
            let mut names: Vec<_> =
                fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for (max_files, expected) in
            [(3, &["s.log", "s.log.1", "s.log.2"][..]), (1, &["s.log"]), (0, &["s.log"])]
        {
            files().iter().for_each(|name| fs::remove_file(directory.path().join(name)).unwrap());
            let mut log = Log::open(directory.path(), "s", &limits(max_files)).unwrap();
            for numbers in [0..10, 10..50, 50..51] {
                log.write(&numbers.map(line).collect::<Vec<_>>()).unwrap();
            }
            assert_eq!(files(), expected);
            let size = |name| fs::metadata(directory.path().join(name)).unwrap().len();
            assert!(files().into_iter().all(|name| size(name) <= 10_000));
            assert_eq!(log.recent().count(), RECENT);
            let written = fs::read_to_string(directory.path().join("s.log")).unwrap();
            assert_eq!(written.is_empty(), max_files == 0);
        }
    }
}
