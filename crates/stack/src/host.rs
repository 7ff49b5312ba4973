//! What a plan depends on besides the file: facts of the host, read beforehand.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
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
    /// Hard limits of this process, by the names of `ulimits`; none where there is no limit. Nothing in a user namespace
    /// can raise them.
    pub limits: BTreeMap<&'static str, u64>,
    /// Where the host has routes to.
    pub routes: Vec<Route>,
    /// The host's name servers.
    pub name_servers: Vec<Ipv4Addr>,
    /// Maximum transmission unit of the interface of the default route, where it is not the usual 1500.
    pub mtu: Option<u32>,
    /// The user's home directory, for `~` in paths.
    pub home: Option<PathBuf>,
    /// The host's name.
    pub name: Option<String>,
    /// The address that the host itself would connect from, by which services on it can be reached.
    pub address: Option<Ipv4Addr>,
}

/// A route of the host's that is not a default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// First address and prefix length.
    pub destination: (Ipv4Addr, u8),
    /// Name of the interface; `*` for a route that leads nowhere.
    pub interface: String,
}

const PORT_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
const NAME: &str = "/proc/sys/kernel/hostname";
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
        let table = read(ROUTES)?.unwrap_or_default();
        let mtu = match default_interface(&table) {
            Some(interface) => read(&format!("/sys/class/net/{interface}/mtu"))?,
            None => None,
        };
        Ok(Self {
            environment,
            unprivileged_port_start: port_start,
            is_root: rustix::process::geteuid().is_root(),
            limits: limits(),
            routes: routes(&table),
            name_servers: resolvers(&read(RESOLVERS)?.unwrap_or_default()),
            mtu: mtu.and_then(|text| text.trim().parse().ok()).filter(|mtu| is_unusual(*mtu)),
            home,
            address: own_address(),
            name: read(NAME)?.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()),
        })
    }

    /// Subnets that a network of a stack keeps clear of: address and prefix length.
    #[must_use]
    pub(crate) fn used_subnets(&self) -> Vec<(Ipv4Addr, u8)> {
        let routes = self.routes.iter().map(|route| route.destination);
        routes.chain(self.name_servers.iter().map(|address| (*address, 32))).collect()
    }
}

fn limits() -> BTreeMap<&'static str, u64> {
    use rustix::process::{Resource, getrlimit};
    let resources = [
        ("as", Resource::As),
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("locks", Resource::Locks),
        ("memlock", Resource::Memlock),
        ("msgqueue", Resource::Msgqueue),
        ("nice", Resource::Nice),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("rss", Resource::Rss),
        ("rtprio", Resource::Rtprio),
        ("rttime", Resource::Rttime),
        ("sigpending", Resource::Sigpending),
        ("stack", Resource::Stack),
    ];
    resources.into_iter().filter_map(|(name, resource)| Some((name, getrlimit(resource).maximum?))).collect()
}

/// The address of the interface of the default route, as the kernel chooses it for a socket; nothing is sent.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // RFC 5737: an address for documentation, which is nobody's.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Some(address),
        _ => None,
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

/// Whether an MTU says something, and a bridge can have it.
fn is_unusual(mtu: u32) -> bool {
    mtu != 1500 && (576..=u16::MAX.into()).contains(&mtu)
}

/// One line of `/proc/net/route`: interface, destination and metric.
fn route(line: &str) -> Option<(&str, (Ipv4Addr, u8), u32)> {
    // Addresses are the memory of a `__be32`, printed in hexadecimal.
    let address = |field: &str| Some(Ipv4Addr::from(u32::from_str_radix(field, 16).ok()?.to_ne_bytes()));
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [interface, destination, _, _, _, _, metric, mask, ..] = fields.as_slice() else { return None };
    let prefix = u8::try_from(u32::from(address(mask)?).leading_ones()).ok()?;
    Some((interface, (address(destination)?, prefix), metric.parse().ok()?))
}

fn routes(table: &str) -> Vec<Route> {
    let routes = table.lines().skip(1).filter_map(route);
    routes
        // The default route covers everything; so do its two halves, with which a VPN outweighs it.
        .filter(|(_, (_, prefix), _)| *prefix > 1)
        .map(|(interface, destination, _)| Route { destination, interface: interface.to_owned() })
        .collect()
}

/// The interface of the default route that counts: the one with the lowest metric.
fn default_interface(table: &str) -> Option<&str> {
    let routes = table.lines().skip(1).filter_map(route);
    let defaults = routes.filter(|(_, (_, prefix), _)| *prefix == 0);
    defaults.min_by_key(|(_, _, metric)| *metric).map(|(interface, ..)| interface)
}

/// Name servers of resolv.conf(5).
fn resolvers(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_name_servers() {
        let field = |address: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(address));
        let line = |interface, destination, metric, mask| {
            let (destination, gateway, mask) = (field(destination), field([0; 4]), field(mask));
            format!("{interface}\t{destination}\t{gateway}\t0001\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let table = [
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n".to_owned(),
            line("wlan0", [0; 4], 600, [0; 4]),
            line("eth0", [0; 4], 100, [0; 4]),
            line("tun0", [128, 0, 0, 0], 0, [128, 0, 0, 0]),
            line("eth0", [10, 89, 4, 0], 0, [255, 255, 254, 0]),
            "broken\n".to_owned(),
        ]
        .concat();
        let destination = (Ipv4Addr::new(10, 89, 4, 0), 23);
        assert_eq!(routes(&table), [Route { destination, interface: "eth0".into() }]);
        assert_eq!(default_interface(&table), Some("eth0"));
        assert_eq!(default_interface("Iface\n"), None);
        let text = "# a comment\nnameserver 10.89.0.53\nnameserver fe80::1\nsearch example\n";
        assert_eq!(resolvers(text), [Ipv4Addr::new(10, 89, 0, 53)]);
        assert!(is_unusual(1420) && is_unusual(9000) && !is_unusual(1500) && !is_unusual(65536));
    }
}
