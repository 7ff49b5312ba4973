//! What is asked of the kernel over netlink sockets (netlink(7), rtnetlink(7)).

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};

/// `NETLINK_ROUTE` and `NETLINK_NETFILTER` of netlink(7).
pub(super) const ROUTE: i32 = libc::NETLINK_ROUTE;
/// Likewise.
pub(super) const NETFILTER: i32 = libc::NETLINK_NETFILTER;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A link is made or changed.
    Link {
        /// Its name.
        name: String,
        /// What it is, where it is new: `bridge`, `veth`.
        kind: Option<String>,
        /// The other end.
        peer: Option<Peer>,
        /// The bridge that it becomes a port of.
        controller: Option<String>,
        /// It is brought up.
        up: bool,
        /// Its hardware address.
        mac: Option<String>,
        /// Its largest packet.
        mtu: Option<u32>,
    },
    /// A link is deleted.
    DeleteLink {
        /// Its name.
        name: String,
    },
    /// A link gets an address, or loses it.
    Address {
        /// The link.
        link: String,
        /// The address and the length of its network's prefix.
        address: String,
        /// It is taken away.
        delete: bool,
    },
    /// A route.
    Route {
        /// Where to: `default`, or a subnet.
        to: String,
        /// By which neighbour.
        via: Option<IpAddr>,
        /// Over which link.
        link: Option<String>,
        /// In this table, if not the main one.
        table: Option<u32>,
        /// What is sent there is for this host.
        local: bool,
        /// It is taken away.
        delete: bool,
    },
    /// A routing rule, in the words of `ip rule add`.
    Rule {
        /// The words.
        words: String,
        /// It is taken away.
        delete: bool,
    },
    /// A transaction of nftables: how many of which requests.
    Nftables(Vec<(&'static str, usize)>),
    /// A queue of packets is opened or set up.
    Queue,
    /// Something else, by its number.
    Other(u16),
}

/// The other end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// The network namespace that it is put into.
    pub namespace: Option<String>,
    /// Its hardware address.
    pub mac: Option<String>,
}

/// Which names links have, by network namespace and index.
#[derive(Debug, Default)]
pub(super) struct Links(HashMap<(String, u32), String>);

impl Links {
    fn name(&self, namespace: &str, index: u32) -> String {
        match self.0.get(&(namespace.to_owned(), index)) {
            Some(name) => name.clone(),
            None if index == 1 => "lo".to_owned(),
            None => format!("if{index}"),
        }
    }
}

/// Decodes the messages of one call on a socket of `namespace`. `descriptor` tells what a descriptor of the process is.
pub(super) fn decode(
    bytes: &[u8],
    protocol: i32,
    namespace: &str,
    links: &mut Links,
    descriptor: &dyn Fn(i32) -> Option<String>,
) -> Vec<Request> {
    let messages = split(bytes);
    if protocol == NETFILTER {
        return nftables(&messages);
    }
    let mut requests = Vec::new();
    for message in messages {
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let Ok(decoded) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
            requests.push(Request::Other(kind));
            continue;
        };
        let netlink_packet_core::NetlinkPayload::InnerMessage(decoded) = decoded.payload else { continue };
        requests.push(match decoded {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::SetLink(link) => {
                change_link(&link, namespace, links, descriptor)
            }
            RouteNetlinkMessage::DelLink(link) => {
                Request::DeleteLink { name: name_of(&link, namespace, links) }
            }
            RouteNetlinkMessage::NewAddress(address) => change_address(&address, false, namespace, links),
            RouteNetlinkMessage::DelAddress(address) => change_address(&address, true, namespace, links),
            RouteNetlinkMessage::NewRoute(route) => change_route(&route, false, namespace, links),
            RouteNetlinkMessage::DelRoute(route) => change_route(&route, true, namespace, links),
            RouteNetlinkMessage::NewRule(rule) => Request::Rule { words: rule_words(&rule), delete: false },
            RouteNetlinkMessage::DelRule(rule) => Request::Rule { words: rule_words(&rule), delete: true },
            _ => Request::Other(kind),
        });
    }
    requests
}

/// The messages in a buffer, each with its header.
fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(message) = bytes.get(..length).filter(|_| length >= HEADER) else { break };
        messages.push(message);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn name_of(link: &LinkMessage, namespace: &str, links: &Links) -> String {
    let named = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    named.unwrap_or_else(|| links.name(namespace, link.header.index))
}

fn mac_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => {
            let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(bytes.join(":"))
        }
        _ => None,
    })
}

fn change_link(
    link: &LinkMessage,
    namespace: &str,
    links: &mut Links,
    descriptor: &dyn Fn(i32) -> Option<String>,
) -> Request {
    let name = name_of(link, namespace, links);
    let (mut kind, mut peer, mut controller, mut mtu) = (None, None, None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Controller(index) => controller = Some(links.name(namespace, *index)),
            LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(name) => kind = Some(name.to_string()),
                        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))) => {
                            peer = Some(other_end(other, namespace, links, descriptor));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if link.header.index != 0 {
        links.0.insert((namespace.to_owned(), link.header.index), name.clone());
    }
    let up = link.header.flags.contains(LinkFlags::Up) && link.header.change_mask.contains(LinkFlags::Up);
    Request::Link { name, kind, peer, controller, up, mac: mac_of(link), mtu }
}

fn other_end(
    link: &LinkMessage,
    namespace: &str,
    links: &mut Links,
    descriptor: &dyn Fn(i32) -> Option<String>,
) -> Peer {
    let elsewhere = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::NetNsFd(fd) => descriptor(*fd),
        _ => None,
    });
    let name = name_of(link, namespace, links);
    if link.header.index != 0 {
        let namespace = elsewhere.as_deref().unwrap_or(namespace);
        links.0.insert((namespace.to_owned(), link.header.index), name.clone());
    }
    Peer { name, namespace: elsewhere, mac: mac_of(link) }
}

fn change_address(message: &AddressMessage, delete: bool, namespace: &str, links: &Links) -> Request {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(address.to_string()),
        _ => None,
    });
    Request::Address {
        link: links.name(namespace, message.header.index),
        address: format!("{}/{}", address.unwrap_or_default(), message.header.prefix_len),
        delete,
    }
}

fn change_route(message: &RouteMessage, delete: bool, namespace: &str, links: &Links) -> Request {
    let (mut to, mut via, mut link) = (None, None, None);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => link = Some(links.name(namespace, *index)),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    let length = message.header.destination_prefix_length;
    let to = to.map_or_else(|| "default".to_owned(), |to| format!("{to}/{length}"));
    let table = (table != u32::from(RouteHeader::RT_TABLE_MAIN) && table != 0).then_some(table);
    Request::Route { to, via, link, table, local: message.header.kind == RouteType::Local, delete }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn rule_words(rule: &RuleMessage) -> String {
    let mut words = Vec::new();
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => words.push(format!("priority {priority}")),
            RuleAttribute::FwMark(mark) => words.push(format!("fwmark {mark:#x}")),
            RuleAttribute::Iifname(name) => words.push(format!("iif {name}")),
            RuleAttribute::Source(address) => words.push(format!("from {address}/{}", rule.header.src_len)),
            RuleAttribute::Destination(address) => {
                words.push(format!("to {address}/{}", rule.header.dst_len))
            }
            _ => {}
        }
    }
    match rule.header.table {
        0 => words.push("prohibit".to_owned()),
        table => words.push(format!("table {table}")),
    }
    words.join(" ")
}

/// Requests of `linux/netfilter/nf_tables.h` by their numbers, in the words of `nft(8)`.
const NFTABLES: [(u8, &str); 8] = [
    (0, "add table"),
    (2, "delete table"),
    (3, "add chain"),
    (5, "delete chain"),
    (6, "add rule"),
    (9, "add set"),
    (12, "add element"),
    (18, "add object"),
];

fn nftables(messages: &[&[u8]]) -> Vec<Request> {
    /// `NFNL_SUBSYS_NFTABLES`.
    const SUBSYSTEM: u8 = 10;
    /// `NFNL_SUBSYS_QUEUE`.
    const QUEUE: u8 = 3;
    let mut counts: Vec<(&'static str, usize)> = Vec::new();
    let mut others = Vec::new();
    for message in messages {
        let [number, subsystem] = u16::from_ne_bytes([message[4], message[5]]).to_le_bytes();
        if subsystem != SUBSYSTEM {
            // The beginning and the end of a transaction are no requests.
            if subsystem == QUEUE {
                others.push(Request::Queue);
            } else if subsystem != 0 {
                others.push(Request::Other(u16::from_le_bytes([number, subsystem])));
            }
            continue;
        }
        let name = NFTABLES.iter().find(|(known, _)| *known == number).map_or("other", |(_, name)| name);
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    if !counts.is_empty() {
        others.insert(0, Request::Nftables(counts));
    }
    others
}

impl Request {
    /// As `ip(8)` has it; one line for each command.
    pub(super) fn commands(&self, namespace_of_peer: &dyn Fn(&str) -> String) -> Vec<String> {
        let verb = |delete: &bool| if *delete { "delete" } else { "add" };
        match self {
            Self::Link { name, kind, peer, controller, up, mac, mtu } => {
                let mut commands = Vec::new();
                let address = |mac: &Option<String>| {
                    mac.as_ref().map_or(String::new(), |mac| format!(" address {mac}"))
                };
                let mtu = mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
                if let Some(kind) = kind {
                    let mut command = format!("ip link add {name}{}{mtu} type {kind}", address(mac));
                    if let Some(peer) = peer {
                        command.push_str(&format!(" peer name {}{}{mtu}", peer.name, address(&peer.mac)));
                        if let Some(namespace) = &peer.namespace {
                            command.push_str(&format!(" netns {}", namespace_of_peer(namespace)));
                        }
                    }
                    commands.push(command);
                }
                if let Some(bridge) = controller {
                    commands.push(format!("ip link set {name} master {bridge}"));
                }
                if *up {
                    commands.push(format!("ip link set {name} up"));
                }
                commands
            }
            Self::DeleteLink { name } => vec![format!("ip link delete {name}")],
            Self::Address { link, address, delete } => {
                vec![format!("ip address {} {address} dev {link}", verb(delete))]
            }
            Self::Route { to, via, link, table, local, delete } => {
                let mut command = format!("ip route {}", verb(delete));
                if *local {
                    command.push_str(" local");
                }
                command.push_str(&format!(" {to}"));
                for (word, value) in [
                    ("via", via.map(|via| via.to_string())),
                    ("dev", link.clone()),
                    ("table", table.map(|table| table.to_string())),
                ] {
                    if let Some(value) = value {
                        command.push_str(&format!(" {word} {value}"));
                    }
                }
                vec![command]
            }
            Self::Rule { words, delete } => vec![format!("ip rule {} {words}", verb(delete))],
            Self::Nftables(_) | Self::Queue | Self::Other(_) => Vec::new(),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { name, kind, peer, controller, up, .. } => {
                let request = if kind.is_some() { "RTM_NEWLINK" } else { "RTM_SETLINK" };
                write!(f, "{request} {name}")?;
                if let Some(kind) = kind {
                    write!(f, " {kind}")?;
                }
                if let Some(peer) = peer {
                    write!(f, " peer {}", peer.name)?;
                    if let Some(namespace) = &peer.namespace {
                        write!(f, " in {namespace}")?;
                    }
                }
                if let Some(bridge) = controller {
                    write!(f, " master {bridge}")?;
                }
                if *up { f.write_str(" up") } else { Ok(()) }
            }
            Self::DeleteLink { name } => write!(f, "RTM_DELLINK {name}"),
            Self::Address { link, address, delete } => {
                write!(f, "RTM_{}ADDR {link} {address}", if *delete { "DEL" } else { "NEW" })
            }
            Self::Route { to, via, link, table, delete, .. } => {
                write!(f, "RTM_{}ROUTE {to}", if *delete { "DEL" } else { "NEW" })?;
                if let Some(via) = via {
                    write!(f, " via {via}")?;
                }
                if let Some(link) = link {
                    write!(f, " dev {link}")?;
                }
                table.map_or(Ok(()), |table| write!(f, " table {table}"))
            }
            Self::Rule { words, delete } => {
                write!(f, "RTM_{}RULE {words}", if *delete { "DEL" } else { "NEW" })
            }
            Self::Nftables(counts) => {
                let counts: Vec<String> =
                    counts.iter().map(|(name, count)| format!("{name} x{count}")).collect();
                write!(f, "nftables {}", counts.join(", "))
            }
            Self::Queue => f.write_str("nfnetlink_queue NFQNL_MSG_CONFIG"),
            Self::Other(kind) => write!(f, "request {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel has it: header, then the body.
    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER as u32 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn links_are_known_by_name_afterwards() {
        // struct ifinfomsg: family, type, index 7, flags and mask IFF_UP.
        let mut link = vec![0, 0, 0, 0];
        link.extend(7u32.to_ne_bytes());
        link.extend(1u32.to_ne_bytes());
        link.extend(1u32.to_ne_bytes());
        link.extend(attribute(3, b"br0\0"));
        link.extend(attribute(18, &attribute(1, b"bridge")));
        // struct ifaddrmsg: AF_INET, /24, index 7.
        let mut address = vec![2, 24, 0, 0];
        address.extend(7u32.to_ne_bytes());
        address.extend(attribute(2, &[10, 0, 0, 1]));
        let bytes = [message(16, &link), message(20, &address)].concat();
        let mut links = Links::default();
        let requests = decode(&bytes, ROUTE, "net:[1]", &mut links, &|_| None);
        let words: Vec<String> = requests.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["RTM_NEWLINK br0 bridge up", "RTM_NEWADDR br0 10.0.0.1/24"]);
        let commands: Vec<String> =
            requests.iter().flat_map(|request| request.commands(&|_| String::new())).collect();
        assert_eq!(
            commands,
            ["ip link add br0 type bridge", "ip link set br0 up", "ip address add 10.0.0.1/24 dev br0"]
        );
    }

    #[test]
    fn a_transaction_is_told_by_counts() {
        let parts = [
            message(16, &[0; 4]),
            message(0x0a00, &[0; 4]),
            message(0x0a06, &[0; 4]),
            message(0x0a06, &[0; 4]),
        ];
        let requests = decode(&parts.concat(), NETFILTER, "", &mut Links::default(), &|_| None);
        assert_eq!(requests, [Request::Nftables(vec![("add table", 1), ("add rule", 2)])]);
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        let bytes = message(16, &[0; 20]);
        for length in 0..bytes.len() {
            assert!(split(&bytes[..length]).is_empty());
        }
    }
}
