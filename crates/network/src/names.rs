//! Names: what the stack's DNS server answers, and the sockets it listens on.
//!
//! A service asks the gateway address of one of its networks and sees the names on all of its networks, and no
//! others. Only the question is read of a query (RFC 1035 section 4); queries are hostile input.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::Error;
use crate::error::Doing;
use crate::link::contains;
use crate::plan::{Endpoint, Network, NetworkPlan};

/// The DNS port.
const PORT: u16 = 53;
/// Largest answer over UDP without EDNS (RFC 1035 section 2.3.4).
pub const UDP_LIMIT: usize = 512;
/// Length of a message's header.
const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

/// What to do with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this back.
    Reply(Vec<u8>),
    /// Not ours: ask the host's resolvers.
    Forward,
    /// Not a query at all.
    Drop,
}

/// Outcome in a reply's header (RFC 1035 section 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    Malformed = 1,
    ServerFailed = 2,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// The one question of a query.
struct Question {
    /// Lower case, without the last dot; `None` when a label has bytes that no name of ours can have.
    name: Option<String>,
    labels: usize,
    kind: u16,
    class: u16,
    /// Where it ends in the message.
    end: usize,
}

/// One answer record: type and data.
type Record = (u16, Vec<u8>);

/// The endpoint that a query came from, by its source address on the network whose gateway it asked.
#[must_use]
pub fn asker<'a>(plan: &'a NetworkPlan, network: &str, source: Ipv4Addr) -> Option<&'a Endpoint> {
    plan.endpoints.iter().find(|endpoint| {
        endpoint.interfaces.iter().any(|link| link.network == network && link.address == source)
    })
}

/// Answers a query of `asker`; `limit` is the longest reply in bytes ([`UDP_LIMIT`], or 65535 over TCP), a
/// longer one is cut and marked so.
#[must_use]
pub fn answer(query: &[u8], asker: &Endpoint, plan: &NetworkPlan, limit: usize) -> Answer {
    let Some(header) = query.get(..HEADER) else { return Answer::Drop };
    // A reply is never answered, or two servers could keep each other busy.
    if header[2] & 0x80 != 0 {
        return Answer::Drop;
    }
    if header[2] & 0x78 != 0 {
        return Answer::Reply(reply(query, HEADER, Code::NotImplemented, &[], limit));
    }
    let Some(question) = question(query) else {
        return Answer::Reply(reply(query, HEADER, Code::Malformed, &[], limit));
    };
    if question.class != CLASS_IN && question.class != TYPE_ANY {
        return Answer::Reply(reply(query, question.end, Code::Refused, &[], limit));
    }
    let reply = |code, records: &[Record]| Answer::Reply(reply(query, question.end, code, records, limit));
    match lookup(&question, asker, plan) {
        Lookup::Found(mut records) => {
            // Replicas behind one alias take turns.
            let count = records.len().max(1);
            records.rotate_left(usize::from(header[1]) % count);
            reply(Code::Ok, &records)
        }
        Lookup::NoSuchName => reply(Code::NoSuchName, &[]),
        Lookup::Foreign if is_internal(asker, plan) => reply(Code::NoSuchName, &[]),
        Lookup::Foreign => Answer::Forward,
    }
}

enum Lookup {
    /// The name exists; there may be no record of the type.
    Found(Vec<Record>),
    NoSuchName,
    Foreign,
}

fn lookup(question: &Question, asker: &Endpoint, plan: &NetworkPlan) -> Lookup {
    let single = question.labels <= 1;
    let unknown = || if single { Lookup::NoSuchName } else { Lookup::Foreign };
    let Some(name) = question.name.as_deref() else { return unknown() };
    if name == "localhost" || name.ends_with(".localhost") {
        return Lookup::Found(of_type(question.kind, &[Ipv4Addr::LOCALHOST], Some(Ipv6Addr::LOCALHOST)));
    }
    if let Some(address) = reverse(name) {
        return lookup_address(address, question.kind, asker, plan);
    }
    let addresses = addresses(name, asker, plan);
    if !addresses.is_empty() {
        return Lookup::Found(of_type(question.kind, &addresses, None));
    }
    // A name of a network that the asker is not on stays inside all the same.
    if exists_elsewhere(name, plan) { Lookup::NoSuchName } else { unknown() }
}

/// The addresses of `name` (an alias, or `alias.network`) on the networks of the asker.
fn addresses(name: &str, asker: &Endpoint, plan: &NetworkPlan) -> Vec<Ipv4Addr> {
    let common = |network: &str| asker.interfaces.iter().any(|link| link.network == network);
    let links = plan.endpoints.iter().flat_map(|endpoint| &endpoint.interfaces);
    links
        .filter(|link| common(&link.network) && is_called(name, &link.aliases, &link.network))
        .map(|link| link.address)
        .collect()
}

fn exists_elsewhere(name: &str, plan: &NetworkPlan) -> bool {
    let mut links = plan.endpoints.iter().flat_map(|endpoint| &endpoint.interfaces);
    links.any(|link| is_called(name, &link.aliases, &link.network))
}

fn is_called(name: &str, aliases: &[String], network: &str) -> bool {
    let qualified = |alias: &str| {
        let rest = name.get(alias.len()..).and_then(|rest| rest.strip_prefix('.'));
        let prefix = name.get(..alias.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(alias));
        prefix && rest.is_some_and(|rest| rest.eq_ignore_ascii_case(network))
    };
    aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name) || qualified(alias))
}

fn of_type(kind: u16, v4: &[Ipv4Addr], v6: Option<Ipv6Addr>) -> Vec<Record> {
    let mut records = Vec::new();
    if kind == TYPE_A || kind == TYPE_ANY {
        records.extend(v4.iter().map(|address| (TYPE_A, address.octets().to_vec())));
    }
    if kind == TYPE_AAAA || kind == TYPE_ANY {
        records.extend(v6.map(|address| (TYPE_AAAA, address.octets().to_vec())));
    }
    records
}

/// The address that a name below `in-addr.arpa` stands for (RFC 1035 section 3.5).
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let mut parts = name.strip_suffix(".in-addr.arpa")?.split('.').rev().map(|part| part.parse::<u8>().ok());
    let octets = [parts.next()??, parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn lookup_address(address: Ipv4Addr, kind: u16, asker: &Endpoint, plan: &NetworkPlan) -> Lookup {
    let pointer = |name: &str| match encode_name(name) {
        Some(data) if kind == TYPE_PTR || kind == TYPE_ANY => Lookup::Found(vec![(TYPE_PTR, data)]),
        _ => Lookup::Found(Vec::new()),
    };
    if address.is_loopback() {
        return pointer("localhost");
    }
    let common = |network: &str| asker.interfaces.iter().any(|link| link.network == network);
    for endpoint in &plan.endpoints {
        let mut links = endpoint.interfaces.iter();
        if let Some(link) = links.find(|link| link.address == address && common(&link.network)) {
            return pointer(&format!("{}.{}", endpoint.service, link.network));
        }
    }
    let ours = plan.networks.iter().any(|network| contains(network, address));
    if ours { Lookup::NoSuchName } else { Lookup::Foreign }
}

/// Whether the asker is on internal networks only: nothing it asks leaves the stack.
fn is_internal(asker: &Endpoint, plan: &NetworkPlan) -> bool {
    let open = |name: &str| plan.networks.iter().any(|network| network.name == name && !network.internal);
    !asker.interfaces.iter().any(|link| open(&link.network))
}

/// Reads the question; `None` unless there is exactly one, without compression.
fn question(message: &[u8]) -> Option<Question> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    let mut labels = 0;
    let mut name = Some(String::new());
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // Larger values are compression pointers; names have 255 bytes at the most (RFC 1035 section 2.3.4).
        if length > 63 || at + length - HEADER > 255 {
            return None;
        }
        let label = message.get(at..at + length)?;
        at += length;
        labels += 1;
        let plain = label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.');
        name = name.filter(|_| plain).map(|mut name| {
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
            name
        });
    }
    let number = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    Some(Question { name, labels, kind: number(at)?, class: number(at + 2)?, end: at + 4 })
}

/// A reply to `query` (its header is complete), which is repeated up to `end`.
fn reply(query: &[u8], end: usize, code: Code, records: &[Record], limit: usize) -> Vec<u8> {
    let mut reply = query.get(..end).unwrap_or(query).to_vec();
    let questions = u8::from(end > HEADER);
    let mut count = 0u16;
    let mut cut = false;
    for (kind, data) in records {
        if reply.len() + 12 + data.len() > limit {
            cut = true;
            break;
        }
        // The name is a pointer to the question's.
        reply.extend([0xc0, HEADER as u8]);
        reply.extend(kind.to_be_bytes());
        reply.extend(CLASS_IN.to_be_bytes());
        // Time to live 0: addresses change when the stack does.
        reply.extend([0; 4]);
        reply.extend((data.len() as u16).to_be_bytes());
        reply.extend(data);
        count += 1;
    }
    let desired = query.get(2).copied().unwrap_or(0) & 0x79;
    let [high, low] = count.to_be_bytes();
    // Reply, authoritative, recursion available.
    let flags = [0x84 | desired | (u8::from(cut) << 1), 0x80 | code as u8];
    for (byte, value) in
        reply.iter_mut().skip(2).zip([flags[0], flags[1], 0, questions, high, low, 0, 0, 0, 0])
    {
        *byte = value;
    }
    reply
}

/// The reply to a query that could not be answered; `None` for what is no query.
pub(crate) fn failure(query: &[u8], code: Code) -> Option<Vec<u8>> {
    query.get(..HEADER)?;
    let end = question(query).map_or(HEADER, |question| question.end);
    Some(reply(query, end, code, &[], UDP_LIMIT))
}

/// Whether `message` is a reply to `query` (its id must have been set to the one that was sent).
pub(crate) fn is_reply_to(message: &[u8], query: &[u8]) -> bool {
    let Some(header) = message.get(..HEADER) else { return false };
    let same_id = query.get(..2) == Some(&header[..2]);
    let (Some(asked), Some(answered)) = (question(query), question(message)) else { return false };
    let bytes = |message: &[u8], end: usize| message.get(HEADER..end).map(<[u8]>::to_ascii_lowercase);
    same_id && header[2] & 0x80 != 0 && bytes(query, asked.end) == bytes(message, answered.end)
}

/// A name on the wire; `None` when a label is empty or too long.
fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        out.push(length);
        out.extend(label.as_bytes());
    }
    out.push(0);
    (out.len() <= 255).then_some(out)
}

/// The name servers of a `resolv.conf` (resolv.conf(5)), three at the most as there.
#[must_use]
pub fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let address = (fields.next() == Some("nameserver")).then(|| fields.next()).flatten()?;
        Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, PORT))
    };
    text.lines().filter_map(server).take(3).collect()
}

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::Interface;

    fn network(name: &str, third: u8, internal: bool) -> Network {
        Network {
            name: name.into(),
            bridge: format!("br-{name}"),
            subnet: Ipv4Addr::new(10, 89, third, 0),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 89, third, 1),
            internal,
            v6: None,
            mtu: None,
        }
    }

    fn link(network: &str, address: [u8; 4], aliases: &[&str]) -> Interface {
        Interface {
            network: network.into(),
            name: "eth0".into(),
            peer: format!("v{}{}", address[2], address[3]),
            address: address.into(),
            address6: None,
            fixed: false,
            mac: [2, 66, address[0], address[1], address[2], address[3]],
            aliases: aliases.iter().map(ToString::to_string).collect(),
        }
    }

    /// `web` on front; `app` on front and back; `db` on back only, which is internal.
    fn plan() -> NetworkPlan {
        let endpoint = |service: &str, interfaces: Vec<Interface>| Endpoint {
            service: service.into(),
            group: service.into(),
            interfaces,
            ..Endpoint::default()
        };
        NetworkPlan {
            networks: vec![network("front", 0, false), network("back", 1, true)],
            endpoints: vec![
                endpoint("web", vec![link("front", [10, 89, 0, 2], &["web", "www.example.test"])]),
                endpoint(
                    "app",
                    vec![
                        link("front", [10, 89, 0, 3], &["app", "pool"]),
                        link("back", [10, 89, 1, 3], &["app", "App2"]),
                    ],
                ),
                endpoint("db", vec![link("back", [10, 89, 1, 2], &["db", "db.local"])]),
            ],
            groups: Vec::new(),
        }
    }

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend(encode_name(name).unwrap());
        query.extend(kind.to_be_bytes());
        query.extend([0, 1]);
        query
    }

    fn ask(service: usize, name: &str, kind: u16) -> Answer {
        let plan = plan();
        answer(&query(name, kind), &plan.endpoints[service], &plan, UDP_LIMIT)
    }

    /// Response code and the data of the answers.
    fn read(answer: Answer) -> (u8, Vec<Vec<u8>>) {
        let Answer::Reply(bytes) = answer else { panic!("{answer:?}") };
        let packet = simple_dns::Packet::parse(&bytes).unwrap();
        let data = packet.answers.iter().map(|record| {
            assert_eq!(record.ttl, 0);
            match &record.rdata {
                simple_dns::rdata::RData::A(a) => a.address.to_be_bytes().to_vec(),
                simple_dns::rdata::RData::AAAA(a) => a.address.to_be_bytes().to_vec(),
                simple_dns::rdata::RData::PTR(name) => name.to_string().into_bytes(),
                other => panic!("{other:?}"),
            }
        });
        (bytes[3] & 15, data.collect())
    }

    const WEB: usize = 0;
    const APP: usize = 1;
    const DB: usize = 2;

    #[test]
    fn a_service_sees_the_names_of_all_its_networks_and_no_others() {
        assert_eq!(read(ask(WEB, "app", TYPE_A)), (0, vec![vec![10, 89, 0, 3]]));
        assert_eq!(read(ask(DB, "aPP", TYPE_A)), (0, vec![vec![10, 89, 1, 3]]));
        assert_eq!(read(ask(APP, "app", TYPE_A)).1.len(), 2);
        assert_eq!(read(ask(APP, "db", TYPE_A)), (0, vec![vec![10, 89, 1, 2]]));
        assert_eq!(read(ask(APP, "db.back", TYPE_A)), (0, vec![vec![10, 89, 1, 2]]));
        assert_eq!(read(ask(APP, "app2", TYPE_A)), (0, vec![vec![10, 89, 1, 3]]));
        assert_eq!(read(ask(WEB, "db", TYPE_A)), (3, vec![]));
        assert_eq!(read(ask(WEB, "db.local", TYPE_A)), (3, vec![]), "an inner name does not leave the stack");
        assert_eq!(read(ask(WEB, "db.back", TYPE_A)), (3, vec![]));
        assert_eq!(read(ask(WEB, "app", TYPE_AAAA)), (0, vec![]));
        assert_eq!(read(ask(WEB, "www.example.test", TYPE_A)), (0, vec![vec![10, 89, 0, 2]]));
    }

    #[test]
    fn what_is_not_ours_is_forwarded_unless_the_asker_is_internal() {
        assert_eq!(ask(WEB, "example.test", TYPE_A), Answer::Forward);
        assert_eq!(read(ask(WEB, "typo", TYPE_A)), (3, vec![]));
        assert_eq!(read(ask(DB, "example.test", TYPE_A)), (3, vec![]));
        assert_eq!(read(ask(DB, "localhost", TYPE_A)), (0, vec![vec![127, 0, 0, 1]]));
    }

    #[test]
    fn addresses_have_names_on_common_networks_only() {
        assert_eq!(read(ask(WEB, "3.0.89.10.in-addr.arpa", TYPE_PTR)), (0, vec![b"app.front".to_vec()]));
        assert_eq!(read(ask(WEB, "2.1.89.10.in-addr.arpa", TYPE_PTR)), (3, vec![]));
        assert_eq!(read(ask(WEB, "1.0.0.127.in-addr.arpa", TYPE_PTR)), (0, vec![b"localhost".to_vec()]));
        assert_eq!(ask(WEB, "1.2.0.192.in-addr.arpa", TYPE_PTR), Answer::Forward);
    }

    #[test]
    fn only_an_address_of_the_asked_network_is_an_asker() {
        let plan = plan();
        assert_eq!(asker(&plan, "front", [10, 89, 0, 3].into()).unwrap().service, "app");
        assert!(asker(&plan, "front", [10, 89, 1, 3].into()).is_none());
    }

    #[test]
    fn many_replicas_are_cut_over_udp_and_whole_over_tcp() {
        let mut plan = plan();
        for n in 0..60 {
            let interfaces = vec![link("front", [10, 89, 0, 100 + n], &["many"])];
            plan.endpoints.push(Endpoint {
                service: format!("r{n}"),
                group: format!("r{n}"),
                interfaces,
                ..Endpoint::default()
            });
        }
        let ask = |limit| answer(&query("many", TYPE_A), &plan.endpoints[0], &plan, limit);
        let Answer::Reply(short) = ask(UDP_LIMIT) else { panic!() };
        assert!(short.len() <= UDP_LIMIT && short[2] & 2 != 0);
        assert_eq!(read(ask(65535)).1.len(), 60);
    }

    #[test]
    fn odd_messages_get_the_code_they_deserve() {
        let plan = plan();
        let ask = |query: &[u8]| answer(query, &plan.endpoints[0], &plan, UDP_LIMIT);
        let good = query("app", TYPE_A);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        assert_eq!(ask(&good[..11]), Answer::Drop);
        assert_eq!(ask(&with(2, 0x80)), Answer::Drop);
        let code = |answer| if let Answer::Reply(bytes) = answer { bytes[3] & 15 } else { panic!() };
        assert_eq!(code(ask(&with(2, 0x28))), 4, "an update");
        assert_eq!(code(ask(&with(5, 2))), 1, "two questions");
        assert_eq!(code(ask(&with(12, 0xc0))), 1, "a compressed question");
        assert_eq!(code(ask(&with(good.len() - 1, 3))), 5, "another class");
    }

    #[test]
    fn a_reply_must_repeat_id_and_question() {
        let asked = query("example.test", TYPE_A);
        let good = reply(&asked, asked.len(), Code::Ok, &[(TYPE_A, vec![1, 2, 3, 4])], UDP_LIMIT);
        assert!(is_reply_to(&good, &asked));
        assert!(!is_reply_to(&asked, &asked), "a query is no reply");
        let mut other = good.clone();
        other[1] ^= 1;
        assert!(!is_reply_to(&other, &asked));
        assert!(!is_reply_to(&good, &query("example.text", TYPE_A)));
        assert!(!is_reply_to(&good, &query("example.test", TYPE_AAAA)));
    }

    #[test]
    fn resolvers_are_read_as_the_c_library_does() {
        let text =
            "# comment\nsearch lan\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n";
        let expected: Vec<SocketAddr> =
            vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(parse_resolvers(text), expected);
    }

    proptest! {
        #[test]
        fn no_packet_panics_and_no_reply_is_too_long(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
            shaped in any::<bool>(),
        ) {
            if shaped && bytes.len() > 13 {
                bytes[2] = 1;
                bytes[4..6].copy_from_slice(&[0, 1]);
                bytes[12] %= 70;
            }
            let plan = plan();
            for asker in &plan.endpoints {
                if let Answer::Reply(reply) = answer(&bytes, asker, &plan, UDP_LIMIT) {
                    prop_assert!(reply.len() <= UDP_LIMIT);
                }
            }
            let _ = (failure(&bytes, Code::ServerFailed), is_reply_to(&bytes, &bytes));
        }
    }
}
