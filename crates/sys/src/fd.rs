//! File descriptors: inheritance and sealed memory.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, SealFlags};

/// Takes ownership of a descriptor that the parent process left open under a number it told us.
///
/// # Errors
/// `EBADF` when the number is not open.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer; an invalid number is reported as EBADF.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open (checked above) and by the protocol of our own processes it is handed over
    // exactly once, at start, so nothing else in this process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Marks every descriptor from `first` up close-on-exec (`close_range(2)`, Linux 5.11).
///
/// # Errors
/// What `close_range` reports.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags of descriptors change; no descriptor that Rust owns is closed before `execve`.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes that were written to a TCP socket and that its peer has not acknowledged (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// What `ioctl` reports: `EINVAL` for a listening socket.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request, which is TIOCOUTQ under another name, writes one int to where the pointer points.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(bytes).unwrap_or(0)) }
}

/// Has the disk begin with what was written to a file, without waiting for it (`sync_file_range(2)`). Nothing is promised:
/// that everything is on the disk is the business of a later `syncfs` or `fsync`, which then has less to do.
///
/// # Errors
/// What `sync_file_range` reports, the disk's own failures among it.
pub fn start_writeback(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes plain integers and touches no memory of ours; a length of 0 is the rest of the file.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An anonymous file with `content` that nobody can change any more (`memfd_create(2)`, all seals).
///
/// # Errors
/// What `memfd_create`, `write` or `fcntl` reports.
pub fn sealed(name: &CStr, mut content: impl io::Read, executable: bool) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_EXEC and MFD_NOEXEC_SEAL exist since Linux 6.3; an older kernel answers EINVAL.
    let kind = if executable { MemfdFlags::EXEC } else { MemfdFlags::NOEXEC_SEAL };
    let fd = match rustix::fs::memfd_create(name, flags | kind) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    let mut file = std::fs::File::from(fd);
    io::copy(&mut content, &mut file)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_files_are_written_back() {
        let file = rustix::fs::memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, b"content").unwrap();
        start_writeback(file.as_fd()).unwrap();
        let (_read, write) = rustix::pipe::pipe().unwrap();
        let refused = start_writeback(write.as_fd()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ESPIPE));
    }
}
