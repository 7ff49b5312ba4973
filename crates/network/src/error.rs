//! What can go wrong, each named by operation and object.

use std::io;
use std::net::SocketAddr;

/// Who has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A stack of ours.
    Stack(String),
    /// Another program.
    Program {
        /// As the kernel knows it, `comm`.
        name: String,
        /// Process id.
        pid: u32,
    },
}

impl Holder {
    fn shown(holder: Option<&Self>) -> String {
        match holder {
            Some(Self::Stack(name)) => format!("stack `{name}`"),
            Some(Self::Program { name, pid }) => format!("`{name}` (pid {pid})"),
            None => "another program".to_owned(),
        }
    }
}

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{operation}")]
    System {
        /// What was done to which object: "create bridge `br0`".
        operation: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The plan contradicts itself; a bug of whoever made it.
    #[error("network plan: {0}")]
    Plan(String),
    /// A host port that is in use.
    #[error("publish port {}: taken by {}", address.port(), Holder::shown(holder.as_ref()))]
    PortTaken {
        /// What was asked for.
        address: SocketAddr,
        /// Who has it, when that can be known.
        holder: Option<Holder>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A host port below the first one that an ordinary user may open.
    #[error("publish port {}", address.port())]
    PortReserved {
        /// What was asked for.
        address: SocketAddr,
        /// `net.ipv4.ip_unprivileged_port_start` of the host.
        first_free: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A host address that no interface has.
    #[error("publish port {} on {}", address.port(), address.ip())]
    NoSuchAddress {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel does not let us intercept what containers send: without, there is no egress.
    #[error("intercept what leaves the stack's networks")]
    NoInterception {
        /// What failed, and what the kernel said.
        #[source]
        source: Box<Error>,
    },
    /// The kernel cannot delay or lose packets.
    #[error("shape the links of `{container}`")]
    NoShaping {
        /// Name of the container.
        container: String,
        /// What failed, and what the kernel said.
        #[source]
        source: Box<Error>,
    },
    /// A shape that no link can have.
    #[error("shape the links of `{container}`: {why}")]
    Shape {
        /// Name of the container.
        container: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name that no container of the stack has.
    #[error("no container is called `{0}`")]
    NoContainer(String),
    /// netd did not do as told.
    #[error("netd refused its configuration: {0}")]
    Refused(String),
    /// netd is gone.
    #[error("netd has exited")]
    Gone,
}

impl Error {
    pub(crate) fn system(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { operation: operation.into(), source: source.into() }
    }

    /// Whether netd could not be told something, or did not answer, because it is gone.
    #[must_use]
    pub fn is_netd_gone(&self) -> bool {
        match self {
            Self::Gone => true,
            Self::System { source, .. } => source.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }

    /// Whether netd took nothing, or did not answer, for too long.
    #[must_use]
    pub fn is_netd_silent(&self) -> bool {
        let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        matches!(self, Self::System { source, .. } if kinds.contains(&source.kind()))
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::PortTaken { address, holder: Some(Holder::Stack(name)), .. } => Some(format!(
                "`inception-run -p {name} down` ends that stack; or publish another host port than {}",
                address.port()
            )),
            Self::PortTaken { address, .. } => {
                Some(format!("stop that program, or publish another host port than {}", address.port()))
            }
            Self::PortReserved { address, first_free, .. } => {
                let port = address.port();
                let instead = if port < 1000 { 8000 + port } else { port.max(*first_free) };
                Some(format!(
                    "ordinary users may not open port {port} here; allow it with `sudo sysctl -w \
                     net.ipv4.ip_unprivileged_port_start={port}`, or publish a port from {first_free} up, such \
                     as {instead}"
                ))
            }
            Self::NoSuchAddress { address, .. } => Some(format!(
                "no interface of this host has the address {}; `ip address` lists those there are",
                address.ip()
            )),
            Self::NoInterception { .. } => Some(
                "the kernel must have nftables with transparent proxying; load the modules once as root: `modprobe -a \
                 nf_tables nft_tproxy nft_socket nft_fib_inet nft_reject_inet`"
                    .into(),
            ),
            Self::NoShaping { .. } => Some(
                "the kernel must have the queueing discipline `netem`; load it once as root: `modprobe sch_netem`"
                    .into(),
            ),
            Self::System { source, .. } if source.raw_os_error() == Some(95) => Some(
                "the kernel lacks the `bridge` or `veth` driver; load it once as root: `modprobe bridge veth`".into(),
            ),
            _ => None,
        }
    }
}

/// Adds the operation to an I/O error.
pub(crate) trait Doing<T> {
    /// `operation` is only evaluated on failure.
    fn doing<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|source| Error::system(operation(), source))
    }
}

/// What the kernel said, as the other of the two libraries that ask it names that.
pub(crate) fn errno(error: nix::errno::Errno) -> rustix::io::Errno {
    rustix::io::Errno::from_raw_os_error(error as i32)
}
