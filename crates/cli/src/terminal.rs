//! The three streams of a process inside: pipes or a pseudoterminal between it and our own.
//!
//! A container never gets our terminal or a file of ours as such: through `/proc/self/fd` it could open the
//! file anew for writing, and change the modes of the terminal. What is a pipe, a socket or `/dev/null` already
//! is passed on directly.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::{OptionalActions, Termios};
use stack::channel::Channel;

use crate::output::Failure;

/// Bytes in one piece.
const PIECE: usize = 64 << 10;
/// What the end of input is on a terminal: Ctrl-D.
const END_OF_INPUT: u8 = 4;

/// The modes of the terminal before raw mode, for whoever has to restore them.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Our side of the streams.
#[derive(Debug)]
pub(crate) struct Streams {
    /// From our standard input to the process.
    input: Option<Flow>,
    /// From the process to our standard output and error.
    outputs: Vec<(OwnedFd, Target)>,
    /// Where the other end of the process's terminal will come from, if it gets one.
    console: Option<Channel>,
    /// The other end of the process's terminal, once it runs.
    pty: Option<OwnedFd>,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Out,
    Error,
}

#[derive(Debug)]
struct Flow {
    to: OwnedFd,
    /// Read and not yet written.
    buffer: Vec<u8>,
    ended: bool,
}

/// Whether a person sits at both ends.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

impl Streams {
    /// Our side, and the descriptors for the process.
    ///
    /// # Errors
    /// When no pipe or pseudoterminal can be had.
    pub(crate) fn open(tty: bool) -> Result<(Self, [OwnedFd; 3]), Failure> {
        match tty {
            true => Self::console().map_err(Failure::system("open a way to the process's terminal")),
            false => Self::pipes().map_err(Failure::system("open pipes to the process")),
        }
    }

    /// The terminal is made inside, in the container's own `/dev/pts`; its other end comes over a channel that is
    /// the process's standard input until then.
    fn console() -> io::Result<(Self, [OwnedFd; 3])> {
        let null = || std::fs::File::open("/dev/null").map(OwnedFd::from);
        let (ours, theirs) = Channel::pair()?;
        let streams = Self { input: None, outputs: Vec::new(), console: Some(ours), pty: None };
        Ok((streams, [theirs.into(), null()?, null()?]))
    }

    /// The process runs: takes the other end of its terminal, if it has one, and gives it every key.
    ///
    /// # Errors
    /// When the terminal does not come, or ours refuses.
    pub(crate) fn attach(&mut self) -> Result<(), Failure> {
        if let Some(console) = self.console.take() {
            self.take_terminal(&console).map_err(Failure::system("take the process's terminal"))?;
        }
        self.enter_raw_mode()
    }

    fn take_terminal(&mut self, console: &Channel) -> io::Result<()> {
        let message = console.recv_until(Instant::now() + Duration::from_secs(5))?;
        let master = message.and_then(|message| message.fds.into_iter().next());
        self.use_terminal(master.ok_or(io::ErrorKind::UnexpectedEof)?)
    }

    /// Our side of a process that has the other end of this terminal. It gets every key from here on.
    ///
    /// # Errors
    /// When one of the two terminals refuses.
    pub(crate) fn on_terminal(master: OwnedFd) -> Result<Self, Failure> {
        let mut streams = Self { input: None, outputs: Vec::new(), console: None, pty: None };
        streams.use_terminal(master).map_err(Failure::system("take the process's terminal"))?;
        streams.enter_raw_mode()?;
        Ok(streams)
    }

    fn use_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        self.input = Some(Flow { to: master.try_clone()?, buffer: Vec::new(), ended: false });
        self.outputs = vec![(master.try_clone()?, Target::Out)];
        self.pty = Some(master);
        self.copy_size()
    }

    fn pipes() -> io::Result<(Self, [OwnedFd; 3])> {
        let mut streams = Self { input: None, outputs: Vec::new(), console: None, pty: None };
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let first = if is_passable(stdin.as_fd())? {
            stdin.as_fd().try_clone_to_owned()?
        } else {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&write, true)?;
            streams.input = Some(Flow { to: write, buffer: Vec::new(), ended: false });
            read
        };
        let mut output = |ours: BorrowedFd<'_>, target| {
            if is_passable(ours)? {
                return ours.try_clone_to_owned();
            }
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&read, true)?;
            streams.outputs.push((read, target));
            Ok(write)
        };
        let second = output(stdout.as_fd(), Target::Out)?;
        let third = output(stderr.as_fd(), Target::Error)?;
        Ok((streams, [first, second, third]))
    }

    /// What to poll for besides the supervisor.
    pub(crate) fn interest(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut interest: Vec<_> = self.outputs.iter().map(|(fd, _)| (fd.as_fd(), PollFlags::IN)).collect();
        match &self.input {
            Some(flow) if !flow.buffer.is_empty() => interest.push((flow.to.as_fd(), PollFlags::OUT)),
            Some(flow) if !flow.ended => interest.push((rustix::stdio::stdin(), PollFlags::IN)),
            _ => {}
        }
        interest
    }

    /// Carries what there is, in both directions.
    ///
    /// # Errors
    /// [`Failure::Unread`] when nobody reads our output.
    pub(crate) fn carry(&mut self) -> Result<(), Failure> {
        self.carry_input().map_err(Failure::system("pass standard input on"))?;
        self.carry_outputs()
    }

    fn carry_input(&mut self) -> io::Result<()> {
        let on_pty = self.pty.is_some();
        let Some(flow) = &mut self.input else { return Ok(()) };
        if flow.buffer.is_empty() && !flow.ended && readable(rustix::stdio::stdin())? {
            let mut piece = vec![0u8; PIECE];
            match rustix::io::read(rustix::stdio::stdin(), &mut piece) {
                Ok(0) => {
                    flow.ended = true;
                    if on_pty {
                        flow.buffer.push(END_OF_INPUT);
                    }
                }
                Ok(length) => flow.buffer.extend_from_slice(&piece[..length]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                // A terminal that hung up.
                Err(Errno::IO) => flow.ended = true,
                Err(errno) => return Err(errno.into()),
            }
        }
        while !flow.buffer.is_empty() {
            match rustix::io::write(&flow.to, &flow.buffer) {
                Ok(written) => drop(flow.buffer.drain(..written)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                // The process does not read any more; that is its right.
                Err(Errno::PIPE | Errno::IO) => {
                    flow.buffer.clear();
                    flow.ended = true;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        if flow.ended {
            // Closing our end is the end of the process's input.
            self.input = None;
        }
        Ok(())
    }

    /// One piece of each output; a process that writes without end must not keep signals waiting.
    fn carry_outputs(&mut self) -> Result<(), Failure> {
        let mut index = 0;
        while let Some((fd, target)) = self.outputs.get(index) {
            match piece(fd.as_fd(), *target)? {
                Piece::End => drop(self.outputs.swap_remove(index)),
                Piece::Carried | Piece::Nothing => index += 1,
            }
        }
        Ok(())
    }

    /// The process has ended: what it wrote is still in the pipes. Does not wait for others that hold them.
    ///
    /// # Errors
    /// [`Failure::Unread`] when nobody reads our output.
    pub(crate) fn drain(&mut self) -> Result<(), Failure> {
        for (fd, target) in &self.outputs {
            while matches!(piece(fd.as_fd(), *target)?, Piece::Carried) {}
        }
        Ok(())
    }

    /// Gives the pseudoterminal the size of ours.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn resize(&self) -> Result<(), Failure> {
        self.copy_size().map_err(Failure::system("set the size of the pseudoterminal"))
    }

    fn copy_size(&self) -> io::Result<()> {
        let Some(pty) = &self.pty else { return Ok(()) };
        match rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
            Ok(size) => Ok(rustix::termios::tcsetwinsize(pty, size)?),
            // Ours is no terminal, or has no size.
            Err(_) => Ok(()),
        }
    }

    /// From here on the process gets every key. Undone when this is dropped, and by a panic.
    ///
    /// # Errors
    /// When the terminal refuses.
    fn enter_raw_mode(&self) -> Result<(), Failure> {
        let stdin = rustix::stdio::stdin();
        if self.pty.is_none() || !stdin.is_terminal() {
            return Ok(());
        }
        raw_mode().map_err(Failure::system("set the terminal to raw mode"))
    }

    /// Before a message of ours.
    pub(crate) fn leave_raw_mode(&self) {
        restore();
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        restore();
    }
}

/// The terminal hands every key on as it is. Undone by [`restore`], which a panic calls too.
pub(crate) fn raw_mode() -> io::Result<()> {
    let stdin = rustix::stdio::stdin();
    let before = rustix::termios::tcgetattr(stdin)?;
    let mut raw = before.clone();
    raw.make_raw();
    if let Ok(mut saved) = SAVED.lock() {
        saved.get_or_insert(before);
    }
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        previous(info);
    }));
    rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)?;
    Ok(())
}

/// Gives the terminal the modes back that it had before [`raw_mode`].
pub(crate) fn restore() {
    let saved = SAVED.try_lock().ok().and_then(|mut saved| saved.take());
    if let Some(before) = saved {
        // A terminal that is gone needs no restoring.
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before).ok();
    }
}

enum Piece {
    Carried,
    Nothing,
    End,
}

fn piece(from: BorrowedFd<'_>, target: Target) -> Result<Piece, Failure> {
    use std::io::Write;
    let mut piece = [0u8; 16 << 10];
    let length = match rustix::io::read(from, &mut piece) {
        // EIO is what the end is on a pseudoterminal.
        Ok(0) | Err(Errno::IO) => return Ok(Piece::End),
        Ok(length) => length,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Piece::Nothing),
        Err(errno) => return Err(Failure::system("read the process's output")(errno)),
    };
    let bytes = &piece[..length];
    let written = match target {
        Target::Out => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
        Target::Error => io::stderr().write_all(bytes),
    };
    written.map_err(Failure::system("write the process's output"))?;
    Ok(Piece::Carried)
}

/// Whether a descriptor gives a container nothing but a stream.
pub(crate) fn is_passable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo | FileType::Socket => true,
        // /dev/null.
        FileType::CharacterDevice => {
            (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3)
        }
        _ => false,
    })
}

fn readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = rustix::time::Timespec::default();
    match rustix::event::poll(&mut polled, Some(&now)) {
        Ok(_) => Ok(!polled[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
