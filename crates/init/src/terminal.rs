//! The terminal of a container's process: made in the container's own devpts, its other end handed out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use sys::channel::Channel;

use crate::account::Account;

/// `DEVPTS_SUPER_MAGIC` of `linux/magic.h`.
const DEVPTS: u64 = 0x1cd1;
/// Group `tty`, which devpts is mounted with.
const TTY: u32 = 5;

/// Makes a terminal for `account` in `/dev/pts`, with this number of rows and columns if it is given, and sends the other end over the [`Channel`] that is standard
/// input; afterwards the terminal is standard input, output and error, and the controlling one.
///
/// # Errors
/// What the kernel reports; `InvalidInput` when `/dev/pts/ptmx` is not devpts's.
pub(crate) fn take(account: &Account, size: Option<(u16, u16)>) -> io::Result<()> {
    let console = Channel::from(rustix::stdio::stdin().try_clone_to_owned()?);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
    // In a container that was running before us somebody else may have been at /dev.
    if rustix::fs::fstatfs(&master)?.f_type as u64 != DEVPTS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal: OwnedFd = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(TTY));
    match rustix::fs::fchown(&terminal, Some(uid), Some(gid)) {
        // Without CAP_CHOWN, or without a group 5: it works all the same, for this user.
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    if let Some((ws_row, ws_col)) = size {
        let size = rustix::termios::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&terminal, size)?;
    }
    console.send(b"terminal", &[master.as_fd()])?;
    rustix::stdio::dup2_stdin(&terminal)?;
    rustix::stdio::dup2_stdout(&terminal)?;
    rustix::stdio::dup2_stderr(&terminal)?;
    rustix::process::setsid()?;
    Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
}
