//! Temporary.
use std::os::fd::OwnedFd;
/// Sockets.
#[derive(Debug)]
pub struct Intercepted {
    /// Listens; an accepted socket's own address is the destination that the container asked for.
    pub tcp4: OwnedFd,
    /// Tells the destination of each datagram in a control message, `IP_ORIGDSTADDR`.
    pub udp4: OwnedFd,
    /// Gets all ICMP messages for this namespace, with IP header; those of interest are echo requests. `None`
    /// without the privilege (`CAP_NET_RAW`): the kernel then answers for the stack's own addresses.
    pub icmp4: Option<OwnedFd>,
    /// As `tcp4`; `None` when the kernel has no IPv6.
    pub tcp6: Option<OwnedFd>,
    /// As `udp4`, with `IPV6_ORIGDSTADDR`.
    pub udp6: Option<OwnedFd>,
    /// As `icmp4`, but without IP header; may send from any address that `IPV6_PKTINFO` says.
    pub icmp6: Option<OwnedFd>,
}
