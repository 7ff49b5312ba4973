//! The terminal of a container: made in its own devpts, its other end sent to who asked for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use init::report::{Failure, Stage};
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::error::Error;
use super::{Console, mounts};

/// `DEVPTS_SUPER_MAGIC` of `linux/magic.h`.
const DEVPTS: u64 = 0x1cd1;

/// Connects to who gets the other end of the terminal.
pub(super) fn connect(console: Console) -> Result<Option<OwnedFd>, Error> {
    match console {
        Console::None => Ok(None),
        Console::Connected(socket) => Ok(Some(socket)),
        Console::Socket(path) => connect_to(&path)
            .map(Some)
            .map_err(Error::system(format!("connect to the console socket {}", path.display()))),
    }
}

/// Connects to a stream socket by its path, of any length.
pub(super) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let address = match SocketAddrUnix::new(path) {
        Err(Errno::NAMETOOLONG) => {
            use std::os::fd::AsRawFd;
            let (directory, name) =
                (path.parent().ok_or(Errno::INVAL)?, path.file_name().ok_or(Errno::INVAL)?);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(directory, flags, Mode::empty())?;
            let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
            rustix::net::connect(&socket, &SocketAddrUnix::new(&short)?)?;
            return Ok(socket);
        }
        other => other?,
    };
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// What a terminal is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terminal {
    /// The user that owns it.
    pub(super) uid: u32,
    /// Rows and columns.
    pub(super) size: Option<(u16, u16)>,
}

/// Makes a terminal in the devpts beneath `root`, sends its other end over `socket`, shows it as `/dev/console`, and makes
/// it standard input, output and error and the controlling terminal of this process, which leads a session.
pub(super) fn take(root: BorrowedFd<'_>, socket: BorrowedFd<'_>, terminal: Terminal) -> Result<(), Failure> {
    let take = || -> io::Result<()> {
        // By the image's own names nothing else than the devpts that was just mounted may be reached.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let master = rustix::fs::openat2(root, "/dev/pts/ptmx", flags, Mode::empty(), resolve)?;
        if rustix::fs::fstatfs(&master)?.f_type as u64 != DEVPTS {
            return Err(Errno::NODEV.into());
        }
        rustix::pty::unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let end: OwnedFd = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        match rustix::fs::fchown(&end, Some(Uid::from_raw(terminal.uid)), None::<Gid>) {
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
        if let Some((rows, columns)) = terminal.size {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(&end, size)?;
        }
        // Where it is mounted is looked up anew and may be no link (CVE-2025-52565).
        mounts::bind_fd(root, end.as_fd(), "/dev/console")?;
        sys::channel::send_fd(socket, b"/dev/ptmx", master.as_fd())?;
        rustix::stdio::dup2_stdin(&end)?;
        rustix::stdio::dup2_stdout(&end)?;
        rustix::stdio::dup2_stderr(&end)?;
        Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
    };
    take().map_err(|error| Failure::new(Stage::Terminal, "in /dev/pts", error))
}
