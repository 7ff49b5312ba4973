//! Signals as a descriptor, so that one loop waits for everything.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::output::Failure;

/// Signals that this process takes from a descriptor instead of being interrupted.
#[derive(Debug)]
pub(crate) struct Signals {
    set: SigSet,
    fd: SignalFd,
}

impl Signals {
    /// Blocks them until [`Signals::unblock`]. Children inherit the mask, so none may be started before that.
    pub(crate) fn block(signals: &[Signal]) -> Result<Self, Failure> {
        let set: SigSet = signals.iter().copied().collect();
        let open = || {
            set.thread_block()?;
            SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        };
        let fd = open().map_err(Failure::system("open a signalfd"))?;
        Ok(Self { set, fd })
    }

    /// Lets them interrupt this process again.
    pub(crate) fn unblock(self) -> Result<(), Failure> {
        self.set.thread_unblock().map_err(Failure::system("unblock signals"))
    }

    /// The next signal, if one is there.
    pub(crate) fn take(&self) -> Result<Option<Signal>, Failure> {
        let info = self.fd.read_signal().map_err(Failure::system("read a signal"))?;
        Ok(info.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok()))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
