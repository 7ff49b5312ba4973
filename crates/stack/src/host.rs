//! What a plan depends on besides the file: facts of the host, read beforehand.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::diagnostic::FileError;

/// Facts of the host. The environment may hold passwords, so there is no `Debug`.
#[derive(Clone, Default)]
pub struct HostFacts {
    /// The environment; entries that are not UTF-8 are left out.
    pub environment: BTreeMap<String, String>,
    /// `net.ipv4.ip_unprivileged_port_start`: the lowest port an ordinary user may listen on.
    pub unprivileged_port_start: u16,
    /// Whether we may listen on every port.
    pub is_root: bool,
    /// Subnets that the host has routes to, and its name servers: address and prefix length.
    pub used_subnets: Vec<(Ipv4Addr, u8)>,
    /// The user's home directory, for `~` in paths.
    pub home: Option<PathBuf>,
}

const PORT_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
const ROUTES: &str = "/proc/net/route";
const RESOLVERS: &str = "/etc/resolv.conf";
/// ip(7): the kernel's default where the file is absent.
const DEFAULT_PORT_START: u16 = 1024;

impl HostFacts {
    /// Read the facts of this machine and user.
    pub fn gather() -> Result<Self, FileError> {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let home = environment.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let port_start =
            read(PORT_START)?.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT_PORT_START);
        let mut used_subnets = routes(&read(ROUTES)?.unwrap_or_default());
        used_subnets.extend(resolvers(&read(RESOLVERS)?.unwrap_or_default()));
        Ok(Self {
            environment,
            unprivileged_port_start: port_start,
            is_root: rustix::process::geteuid().is_root(),
            used_subnets,
            home,
        })
    }
}

/// Content of a file, `None` where the kernel or the system has none.
fn read(path: &str) -> Result<Option<String>, FileError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Host { what: path.to_owned(), source }),
    }
}

/// Destinations of `/proc/net/route`: addresses as the memory of a `__be32` printed in hexadecimal.
fn routes(text: &str) -> Vec<(Ipv4Addr, u8)> {
    let address = |field: &str| {
        let raw = u32::from_str_radix(field, 16).ok()?;
        Some(Ipv4Addr::from(raw.to_ne_bytes()))
    };
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let destination = address(fields.nth(1)?)?;
            let mask = address(fields.nth(5)?)?;
            let prefix = u32::from(mask).leading_ones();
            Some((destination, u8::try_from(prefix).ok()?))
        })
        // The default route covers everything.
        .filter(|(_, prefix)| *prefix > 0)
        .collect()
}

/// Name servers of resolv.conf(5).
fn resolvers(text: &str) -> Vec<(Ipv4Addr, u8)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse().ok())?
        })
        .map(|address| (address, 32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_subnets() {
        let route = |address: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(address));
        let line = |destination, mask| {
            format!(
                "eth0\t{}\t{}\t0001\t0\t0\t0\t{}\t0\t0\t0\n",
                route(destination),
                route([0; 4]),
                route(mask)
            )
        };
        let text = format!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n{}{}broken\n",
            line([0; 4], [0; 4]),
            line([10, 89, 4, 0], [255, 255, 254, 0])
        );
        assert_eq!(routes(&text), [(Ipv4Addr::new(10, 89, 4, 0), 23)]);
        let text = "# a comment\nnameserver 10.89.0.53\nnameserver fe80::1\nsearch example\n";
        assert_eq!(resolvers(text), [(Ipv4Addr::new(10, 89, 0, 53), 32)]);
    }
}
