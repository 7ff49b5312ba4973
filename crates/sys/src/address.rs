//! Addresses that mean this machine and its cloud to whoever asks from here, and nobody outside. A program of the host
//! that asks on behalf of a container, or of a file from elsewhere, must not ask these.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds tell a machine its keys, besides link-local addresses: AWS, Google Cloud, Alibaba Cloud.
pub const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// Whether an address is of the link that it is used on (RFC 3927, RFC 4291 section 2.5.6).
#[must_use]
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Whether an address is for this machine and its cloud: loopback, unspecified (the host itself to `connect(2)`),
/// link-local, a metadata service's. An IPv4 address within an IPv6 one is that IPv4 address, as to a socket (ipv6(7)).
#[must_use]
pub fn is_hosts_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified() || is_link_local(address) || METADATA.contains(&address)
}

/// The host in `[SCHEME://][USER@]HOST[:PORT][/PATH]`, or in `USER@HOST:PATH` as git has it. Without the brackets of an
/// IPv6 address.
#[must_use]
pub fn host_of(place: &str) -> &str {
    let rest = place.split_once("://").map_or(place, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    match place.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => place.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_and_others() {
        for own in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "100.100.100.200",
            "::",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            assert!(is_hosts_own(own.parse().unwrap()), "{own}");
        }
        for other in
            ["10.0.0.1", "192.0.2.1", "100.100.100.201", "2001:db8::1", "fd00::1", "::ffff:192.0.2.1"]
        {
            assert!(!is_hosts_own(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn hosts_of_urls_and_of_git() {
        for (place, host) in [
            ("http://user:a@b@example.org:1/a@c", "example.org"),
            ("example.org:8080", "example.org"),
            ("http://[::1]:80/a", "::1"),
            ("http://example.org?a#b", "example.org"),
            ("git@10.0.0.1:a/b.git", "10.0.0.1"),
            ("", ""),
        ] {
            assert_eq!(host_of(place), host, "{place}");
        }
    }
}
