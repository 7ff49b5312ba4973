//! The sockets that the name server listens on.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::PORT;
use crate::Error;
use crate::error::Doing;
use crate::plan::Network;

/// The name server's sockets on one network.
#[derive(Debug)]
pub struct NameSockets {
    /// Name of the network.
    pub network: String,
    /// Receives queries over UDP.
    pub udp: OwnedFd,
    /// Listens for queries over TCP.
    pub tcp: OwnedFd,
}

/// Opens the sockets for the name server of each network, on its gateway address, in the current network
/// namespace (the stack's). Each accepts only what arrives on that network's bridge.
///
/// # Errors
/// When a socket cannot be made or bound, naming the network.
pub fn bind_in_current_namespace<'a>(
    networks: impl IntoIterator<Item = &'a Network>,
) -> Result<Vec<NameSockets>, Error> {
    let open = |network: &Network, kind: SocketType| -> std::io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        let device = std::ffi::OsString::from(&network.bridge);
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &device)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(network.gateway, PORT))?;
        if kind == SocketType::STREAM {
            rustix::net::listen(&socket, 64)?;
        }
        Ok(socket)
    };
    let sockets = |network: &'a Network| {
        let what = || format!("open the name server's sockets of network `{}`", network.name);
        Ok(NameSockets {
            network: network.name.clone(),
            udp: open(network, SocketType::DGRAM).doing(what)?,
            tcp: open(network, SocketType::STREAM).doing(what)?,
        })
    };
    networks.into_iter().map(sockets).collect()
}
