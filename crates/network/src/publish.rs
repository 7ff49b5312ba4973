//! Sockets for published ports, made in the host's network namespace by the supervisor.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::Error;
use crate::error::{Doing, Holder};
use crate::plan::PublishedPort;

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
pub(crate) const BACKLOG: i32 = 4096;

/// Opens a published port: a socket that listens, or takes datagrams, non-blocking and close-on-exec, and the
/// address it got (its port differs from the asked one when that was 0). Connections accepted from it inherit no
/// delay and keep-alive.
///
/// # Errors
/// [`Error::PortTaken`], [`Error::PortReserved`], [`Error::NoSuchAddress`], or what the kernel reports.
pub fn bind(port: &PublishedPort) -> Result<(OwnedFd, SocketAddr), Error> {
    let address = SocketAddr::new(port.host_ip, port.host_port);
    let open = || -> rustix::io::Result<OwnedFd> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = if port.is_udp() { SocketType::DGRAM } else { SocketType::STREAM };
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        if !port.is_udp() {
            // Two UDP sockets with this could have the same port, and the datagrams of each other.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            tune(&socket)?;
        }
        if address.is_ipv6() {
            // So that `0.0.0.0` and `[::]` can be published side by side.
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        rustix::net::bind(&socket, &address)?;
        if !port.is_udp() {
            rustix::net::listen(&socket, BACKLOG)?;
        }
        Ok(socket)
    };
    let socket = open().map_err(|error| refusal(address, error.into()))?;
    let bound = rustix::net::getsockname(&socket).doing(|| format!("read the address of port {address}"))?;
    let bound = SocketAddr::try_from(bound).unwrap_or(address);
    Ok((socket, bound))
}

/// Sends small messages at once, and finds out within two minutes that the other end has vanished.
pub(crate) fn tune(socket: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(socket, 4)
}

pub(crate) fn refusal(address: SocketAddr, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::AddrInUse => Error::PortTaken { address, holder: holder(address.port()), source },
        io::ErrorKind::PermissionDenied => {
            let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
            let first_free = first_free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
            Error::PortReserved { address, first_free, source }
        }
        io::ErrorKind::AddrNotAvailable => Error::NoSuchAddress { address, source },
        _ => Error::system(format!("publish port {address}"), source),
    }
}

/// The program that listens on a TCP port of this network namespace, when its `/proc` entries may be read.
fn holder(port: u16) -> Option<Holder> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    let targets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    if targets.is_empty() {
        return None;
    }
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if holds(&process.path(), &targets) {
            let read = |file| std::fs::read(process.path().join(file)).unwrap_or_default();
            let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
            return Some(match stack(&read("cmdline")) {
                Some(stack) => Holder::Stack(stack),
                None => Holder::Program { name, pid },
            });
        }
    }
    None
}

/// The stack whose process has these arguments: its name says more than that of our program, which runs many.
fn stack(arguments: &[u8]) -> Option<String> {
    let mut words = arguments.split(|byte| *byte == 0).skip(1);
    let ours = words.next().is_some_and(|word| word == b"__supervise" || word == b"__netd");
    let name = words.next().filter(|name| ours && !name.is_empty())?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn holds(process: &Path, targets: &[String]) -> bool {
    // Other users' processes may not be looked into; then the holder stays unknown.
    let Ok(fds) = std::fs::read_dir(process.join("fd")) else { return false };
    fds.flatten()
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .any(|link| targets.iter().any(|target| link.as_os_str() == target.as_str()))
}

/// The socket inodes that listen on `port` in a `/proc/net/tcp` table (proc_net_tcp.rst: local address and
/// port in hexadecimal, state `0A` is LISTEN, the tenth field is the inode).
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        let at = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        (at == port && state == "0A").then(|| inode.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    fn port(host_ip: IpAddr, host_port: u16) -> PublishedPort {
        PublishedPort::tcp(host_ip, host_port, 80)
    }

    #[test]
    fn a_taken_port_names_its_holder_and_both_families_live_side_by_side() {
        let any = port(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let (_socket, bound) = bind(&any).unwrap();
        assert_ne!(bound.port(), 0);
        if Path::new("/proc/net/if_inet6").exists() {
            bind(&port(IpAddr::V6(Ipv6Addr::UNSPECIFIED), bound.port())).unwrap();
        }
        let error = bind(&port(IpAddr::V4(Ipv4Addr::LOCALHOST), bound.port())).unwrap_err();
        let Error::PortTaken { holder, .. } = &error else { panic!("{error}") };
        let ours =
            |holder: &Holder| matches!(holder, Holder::Program { pid, .. } if *pid == std::process::id());
        assert!(holder.as_ref().is_some_and(ours), "{error}");
        assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(error.hint().unwrap().contains("another host port"));
    }

    #[test]
    fn a_stack_that_has_the_port_can_be_taken_down() {
        assert_eq!(stack(b"inception-run\0__netd\0blog\0"), Some("blog".to_owned()));
        assert_eq!(stack(b"nginx\0-g\0x\0"), None);
        let (address, source) = (SocketAddr::from(([127, 0, 0, 1], 8080)), io::ErrorKind::AddrInUse.into());
        let error = Error::PortTaken { address, holder: Some(Holder::Stack("blog".to_owned())), source };
        assert_eq!(error.to_string(), "publish port 8080: taken by stack `blog`");
        assert!(error.hint().unwrap().contains("`inception-run -p blog down`"));
    }

    #[test]
    fn an_address_of_no_interface_is_named() {
        let error = bind(&port(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 0)).unwrap_err();
        assert!(matches!(error, Error::NoSuchAddress { .. }), "{error:?}");
    }

    #[test]
    fn a_reserved_port_has_both_fixes() {
        let address = SocketAddr::from(([127, 0, 0, 1], 443));
        let error = refusal(address, io::ErrorKind::PermissionDenied.into());
        let hint = error.hint().unwrap();
        assert!(hint.contains("ip_unprivileged_port_start=443") && hint.contains("8443"), "{hint}");
    }
}
