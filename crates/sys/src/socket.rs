//! Options of sockets that `rustix` has no call for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::seccomp::INSTRUCTION_SIZE;

/// Bytes of an option's value at the most; the longest of those that are copied is a congestion control's name.
const LONGEST: usize = 64;

/// The value of a socket option, as the kernel has it (`getsockopt(2)`).
///
/// # Errors
/// What `getsockopt` reports: `ENOPROTOOPT` for an option of another kind of socket.
pub fn option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; LONGEST];
    let mut length = LONGEST as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which has as many, and the length it wrote.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(length as usize);
    Ok(value)
}

/// Sets a socket option to what [`option`] gave.
///
/// # Errors
/// What `setsockopt(2)` reports.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the slice has.
    let result = unsafe {
        let length = value.len() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length)
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the classic BPF program, its instructions in memory order, decide about each packet that comes in: how many of its
/// bytes are kept, 0 for a packet that is dropped. It begins at the transport header. Nobody can change or remove it
/// again, and connections that are accepted have it, too (`SO_ATTACH_FILTER` and `SO_LOCK_FILTER` of socket(7)).
///
/// # Errors
/// `EINVAL` for a program that the kernel does not accept, or no whole number of instructions; `EPERM` where ordinary users
/// may not do this to a TCP socket.
pub fn filter_for_good(socket: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    let (chunks, rest) = program.as_chunks::<INSTRUCTION_SIZE>();
    let length = u16::try_from(chunks.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    if !rest.is_empty() || length == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut filter: Vec<libc::sock_filter> = chunks.iter().map(crate::seccomp::instruction).collect();
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points at `length` initialised instructions; the kernel copies them during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    set_option(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1i32.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn options_are_what_they_were_set_to_and_a_filter_stays() {
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = datagrams.as_fd();
        let (level, name) = (libc::SOL_SOCKET, libc::SO_KEEPALIVE);
        assert_eq!(option(socket, level, name).unwrap(), 0i32.to_ne_bytes());
        set_option(socket, level, name, &1i32.to_ne_bytes()).unwrap();
        assert_eq!(option(socket, level, name).unwrap(), 1i32.to_ne_bytes());
        assert!(option(socket, libc::IPPROTO_TCP, 1).is_err());
        // `ret #0`: nobody gets through.
        let nothing = [6, 0, 0, 0, 0, 0, 0, 0];
        filter_for_good(socket, &nothing).unwrap();
        assert_eq!(filter_for_good(socket, &nothing).unwrap_err().raw_os_error(), Some(libc::EPERM));
        let none = set_option(socket, level, libc::SO_DETACH_FILTER, &0i32.to_ne_bytes());
        assert_eq!(none.unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(filter_for_good(socket, &nothing[1..]).is_err());
    }
}
