//! The way from a client to a process: published ports, netd, bridges, veth pairs, addresses, listening sockets; and
//! who answers questions about names.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use network::plan::{Mode, Protocol, PublishedPort};
use serde::Serialize;

use super::kernel::{Fact, Kernel};
use crate::control::Known;
use crate::plan::NetworkMode;

/// The network of a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Network {
    /// Whose network namespace it is in: `own`, `host`, or another service.
    pub mode: String,
    /// Its interfaces but for loopback.
    pub interfaces: Vec<Interface>,
    /// Its routes.
    pub routes: Fact<Vec<Route>>,
    /// Published ports, and who accepts there.
    pub published: Vec<Published>,
    /// The sockets on which its processes listen.
    pub listening: Fact<Vec<Listener>>,
    /// Names.
    pub dns: Dns,
}

/// An interface, and what is at its other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name inside.
    pub name: String,
    /// Its addresses, as the kernel has them.
    pub addresses: Vec<IpAddr>,
    /// Name of the stack's network.
    pub network: Option<String>,
    /// The other end of the veth pair, in the stack's namespace.
    pub peer: Option<Seen>,
    /// The bridge that the other end is a port of.
    pub bridge: Option<Seen>,
    /// The bridge's own address: the gateway, and the name server.
    pub gateway: Option<Ipv4Addr>,
}

/// A name that the supervisor gave, and whether the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// The name.
    pub name: String,
    /// The kernel has an interface of this name there.
    pub seen: bool,
}

/// A line of the table of routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Network, `default` for all that no other line is for.
    pub to: String,
    /// By which host.
    pub via: Option<Ipv4Addr>,
    /// By which interface.
    pub interface: String,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Address and port of the host.
    pub host: SocketAddr,
    /// Port inside.
    pub port: u16,
    /// `tcp`, `udp` or `ftp`.
    pub protocol: &'static str,
    /// Who is to accept: `netd`, or the service itself (`direct`).
    pub accepts: &'static str,
    /// The kernel has a socket there.
    pub bound: bool,
    /// The process that has it, where that can be seen.
    pub pid: Option<u32>,
}

/// A listening TCP socket or a bound UDP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// The process of the container that has it, by its number on the host.
    pub pid: Option<u32>,
}

/// Who answers questions about names.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dns {
    /// Lines of the container's `/etc/resolv.conf`.
    pub resolv_conf: Fact<Vec<String>>,
    /// The name servers in it.
    pub servers: Vec<IpAddr>,
    /// Whether a socket in the stack's namespace is bound to port 53 of the first one.
    pub bound: Option<bool>,
    /// The names that lead to this container.
    pub names: Vec<String>,
}

/// The network of a container whose processes are `pids`, the first one its PID 1.
pub(super) fn network(
    kernel: &Kernel,
    first: u32,
    pids: &[u32],
    known: &Known,
    resolv: Fact<String>,
) -> Network {
    let mode = match &known.container.service.network_mode {
        NetworkMode::Own => "own".to_owned(),
        NetworkMode::Host => "host".to_owned(),
        NetworkMode::Service(owner) => owner.clone(),
    };
    let routes = kernel.text(first, "net/route").parse("net/route", |text| routes(&text));
    let netd: Vec<u32> = known.netd.into_iter().collect();
    let host = sockets(kernel, "self", &[&netd[..], pids].concat());
    let listening = match kernel.text(first, "net/tcp") {
        Fact::Known(_) => Fact::Known(sockets(kernel, &first.to_string(), pids)),
        Fact::Unknown { unknown, because } => Fact::Unknown { unknown, because },
    };
    Network {
        interfaces: if mode == "host" { Vec::new() } else { interfaces(kernel, first, known) },
        mode,
        routes,
        published: known.published.iter().map(|port| published(port, &host)).collect(),
        listening,
        dns: dns(kernel, known, resolv),
    }
}

fn interfaces(kernel: &Kernel, first: u32, known: &Known) -> Vec<Interface> {
    let names = |pid: u32| {
        let text = kernel.text(pid, "net/dev");
        text.known().map(|text| devices(text)).unwrap_or_default()
    };
    let outer = names(known.hub);
    let seen = |name: &str| Seen { name: name.to_owned(), seen: outer.iter().any(|known| known == name) };
    let addresses = addresses(kernel, first);
    let interface = |name: String| {
        let planned = known.interfaces.iter().find(|planned| planned.name == name);
        let network = planned.and_then(|planned| known.networks.iter().find(|n| n.name == planned.network));
        Interface {
            addresses: addresses.get(&name).cloned().unwrap_or_default(),
            network: network.map(|network| network.name.clone()),
            peer: planned.map(|planned| seen(&planned.peer)),
            bridge: network.map(|network| seen(&network.bridge)),
            gateway: network.map(|network| network.gateway),
            name,
        }
    };
    // Some hosts put devices of tunnels into every namespace, which stay without an address.
    let matters =
        |name: &String| known.interfaces.iter().any(|one| one.name == *name) || addresses.contains_key(name);
    names(first).into_iter().filter(|name| name != "lo").filter(matters).map(interface).collect()
}

/// Names of the interfaces in `/proc/PID/net/dev`.
fn devices(text: &str) -> Vec<String> {
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// Addresses by interface: those of IPv4 stand in the routing trie, without the interface, which the route of their
/// network tells.
fn addresses(kernel: &Kernel, pid: u32) -> BTreeMap<String, Vec<IpAddr>> {
    let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    let (trie, route) = (kernel.text(pid, "net/fib_trie"), kernel.text(pid, "net/route"));
    let networks = route.known().map(|text| route_lines(text)).unwrap_or_default();
    for address in trie.known().map(|text| local_addresses(text)).unwrap_or_default() {
        let on = |line: &&RouteLine| line.mask != 0 && u32::from(address) & line.mask == line.destination;
        if let Some(line) = networks.iter().find(on) {
            found.entry(line.interface.clone()).or_default().push(address.into());
        }
    }
    if let Some(text) = kernel.text(pid, "net/if_inet6").known() {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let address =
                words.next().and_then(|word| u128::from_str_radix(word, 16).ok()).map(Ipv6Addr::from);
            // Behind index, length of the prefix, scope and flags.
            if let (Some(address), Some(name)) = (address, words.nth(4)) {
                found.entry(name.to_owned()).or_default().push(address.into());
            }
        }
    }
    found
}

/// Addresses of the host in `/proc/PID/net/fib_trie`, but for loopback: a leaf with the address, and below it
/// `/32 host LOCAL`.
fn local_addresses(text: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf = None;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = leaf.filter(|address| !address.is_loopback())
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

struct RouteLine {
    interface: String,
    destination: u32,
    gateway: u32,
    mask: u32,
}

/// `/proc/PID/net/route`: addresses are in the machine's byte order, as hexadecimal numbers.
fn route_lines(text: &str) -> Vec<RouteLine> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let address = |at: usize| Some(u32::from_be(u32::from_str_radix(words.get(at)?, 16).ok()?));
        let (destination, gateway, mask) = (address(1)?, address(2)?, address(7)?);
        Some(RouteLine { interface: (*words.first()?).to_owned(), destination, gateway, mask })
    };
    text.lines().skip(1).filter_map(line).collect()
}

fn routes(text: &str) -> Option<Vec<Route>> {
    let lines = route_lines(text);
    let expected = text.lines().skip(1).filter(|line| !line.trim().is_empty()).count();
    let route = |line: RouteLine| Route {
        to: match line.mask {
            0 => "default".to_owned(),
            mask => format!("{}/{}", Ipv4Addr::from(line.destination), mask.count_ones()),
        },
        via: (line.gateway != 0).then(|| Ipv4Addr::from(line.gateway)),
        interface: line.interface,
    };
    (lines.len() == expected).then(|| lines.into_iter().map(route).collect())
}

/// Listening sockets of the network namespace that `of` is in, and which of these processes have them.
fn sockets(kernel: &Kernel, of: &str, pids: &[u32]) -> Vec<Listener> {
    let owners = owners(kernel, pids);
    let mut found = Vec::new();
    for (file, protocol) in [("net/tcp", "tcp"), ("net/tcp6", "tcp"), ("net/udp", "udp"), ("net/udp6", "udp")]
    {
        // Without IPv6 there are no such files.
        let text = kernel.text(of, file);
        for (address, inode) in text.known().map(|text| listeners(text, protocol)).unwrap_or_default() {
            found.push(Listener { protocol, address, pid: owners.get(&inode).copied() });
        }
    }
    found
}

/// Processes by the inodes of their sockets.
fn owners(kernel: &Kernel, pids: &[u32]) -> BTreeMap<u64, u32> {
    let mut owners = BTreeMap::new();
    for pid in pids {
        // One that ended meanwhile, or that this user may not look into.
        let Ok(entries) = fs::read_dir(kernel.path(&format!("{pid}/fd"))) else { continue };
        for entry in entries.flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                owners.entry(inode).or_insert(*pid);
            }
        }
    }
    owners
}

/// Addresses and inodes of listening sockets in `/proc/PID/net/tcp` and its like. The state is 0A for one that
/// listens; a UDP socket that is not connected has 07.
fn listeners(text: &str, protocol: &str) -> Vec<(SocketAddr, u64)> {
    let wanted = if protocol == "tcp" { "0A" } else { "07" };
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let state = words.get(3)?;
        Some((socket_address(words.get(1)?)?, words.get(9)?.parse().ok()?)).filter(|_| *state == wanted)
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// `0100007F:1F90`: words of 32 bits in the machine's byte order, then the port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words: Option<Vec<u32>> = (0..address.len() / 8)
        .map(|at| Some(u32::from_be(u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?)))
        .collect();
    let ip = match words?[..] {
        [word] => IpAddr::V4(Ipv4Addr::from(word)),
        [a, b, c, d] => {
            let join = |high: u32, low: u32| u128::from(high) << 32 | u128::from(low);
            IpAddr::V6(Ipv6Addr::from(join(a, b) << 64 | join(c, d)))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

fn published(port: &PublishedPort, sockets: &[Listener]) -> Published {
    let host = SocketAddr::new(port.host_ip, port.host_port);
    let (protocol, kind) = match port.protocol {
        Protocol::Tcp => ("tcp", "tcp"),
        Protocol::Udp => ("udp", "udp"),
        Protocol::Ftp { .. } => ("ftp", "tcp"),
    };
    let socket = sockets.iter().find(|socket| socket.protocol == kind && socket.address == host);
    Published {
        host,
        port: port.container_port,
        protocol,
        accepts: if port.mode == Mode::Proxy { "netd" } else { "direct" },
        bound: socket.is_some(),
        pid: socket.and_then(|socket| socket.pid),
    }
}

fn dns(kernel: &Kernel, known: &Known, resolv: Fact<String>) -> Dns {
    let lines = resolv.parse("resolv.conf", |text| {
        Some(
            text.lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    });
    let server = |line: &String| line.strip_prefix("nameserver")?.trim().parse().ok();
    let servers: Vec<IpAddr> = lines.known().into_iter().flatten().filter_map(server).collect();
    let udp = kernel.text(known.hub, "net/udp");
    let bound = servers.first().zip(udp.known()).map(|(server, text)| {
        let wanted = SocketAddr::new(*server, 53);
        listeners(text, "udp").iter().any(|(address, _)| *address == wanted)
    });
    let mut names: Vec<String> =
        known.interfaces.iter().flat_map(|interface| interface.aliases.clone()).collect();
    names.sort();
    names.dedup();
    Dns { resolv_conf: lines, servers, bound, names }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn sockets_as_the_kernel_writes_them() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                    \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 x\n\
                    \x20  1: 0100007F:1F90 0100007F:9000 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 x\n";
        assert_eq!(listeners(text, "tcp"), [("127.0.0.1:8080".parse().unwrap(), 4711)]);
        let v6 = socket_address("00000000000000000000000001000000:0050");
        assert_eq!(v6, Some("[::1]:80".parse().unwrap()));
        assert_eq!(
            (socket_address("0100007F"), socket_address("01:50"), socket_address("é00007F:50")),
            (None, None, None)
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_by_the_route_of_their_network() {
        let proc = tempfile::tempdir().unwrap();
        let net = proc.path().join("9/net");
        fs::create_dir_all(&net).unwrap();
        let route = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0100590A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t0000590A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        fs::write(net.join("route"), route).unwrap();
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.89.0.2\n        /32 host LOCAL\n\
                    \x20    |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.89.0.255\n        /32 link BROADCAST\n";
        fs::write(net.join("fib_trie"), trie).unwrap();
        fs::write(net.join("if_inet6"), "fd000000000000000000000000000002 3e9 40 00 80     eth0\nshort\n")
            .unwrap();
        let found = addresses(&Kernel::at(proc.path()), 9);
        assert_eq!(found["eth0"], ["10.89.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        let routes = routes(route).unwrap();
        assert_eq!(
            (routes[0].to.as_str(), routes[0].via, routes[1].to.as_str()),
            ("default", Some("10.89.0.1".parse().unwrap()), "10.89.0.0/24")
        );
        assert_eq!(super::routes("head\nnonsense\n"), None);
    }
}
