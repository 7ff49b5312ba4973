//! Resolvers of the host, which answer by the name; queries and replies.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};

use simple_dns::rdata::{A, OPT, RData, SOA};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};

/// What a resolver was asked: the name, and whether over TCP.
type Log = Arc<Mutex<Vec<(String, bool)>>>;

pub struct Fake {
    pub address: SocketAddr,
    /// Nobody answers there.
    pub dead: SocketAddr,
    /// Answers everything with a failure.
    pub failing: SocketAddr,
    log: Log,
    _silent: UdpSocket,
}

impl Fake {
    pub fn start() -> Self {
        let (udp, tcp) = std::iter::repeat_with(|| {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            UdpSocket::bind(tcp.local_addr().unwrap()).ok().map(|udp| (udp, tcp))
        })
        .flatten()
        .next()
        .unwrap();
        let address = udp.local_addr().unwrap();
        // Bound and never read: a query there meets silence, over TCP a refusal.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let dead = silent.local_addr().unwrap();
        let refuses = UdpSocket::bind("127.0.0.1:0").unwrap();
        let failing = refuses.local_addr().unwrap();
        let log = Log::default();
        let asked = Arc::clone(&log);
        std::thread::spawn(move || {
            serve(&udp, |query| {
                let packet = Packet::parse(query).unwrap();
                asked.lock().unwrap().push((packet.questions[0].qname.to_string(), false));
                reply(packet, false)
            });
        });
        std::thread::spawn(move || {
            serve(&refuses, |query| {
                let mut reply = Packet::parse(query).unwrap().into_reply();
                *reply.rcode_mut() = RCODE::ServerFailure;
                Some(reply.build_bytes_vec().unwrap())
            });
        });
        let asked = Arc::clone(&log);
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                over_tcp(stream.unwrap(), &asked);
            }
        });
        Self { address, dead, failing, log, _silent: silent }
    }

    /// How often it was asked for a name, over UDP and over TCP.
    pub fn asked(&self, name: &str) -> (usize, usize) {
        let log = self.log.lock().unwrap();
        let count = |tcp| log.iter().filter(|asked| **asked == (name.to_owned(), tcp)).count();
        (count(false), count(true))
    }

    /// All that it was asked for.
    pub fn names(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }
}

fn serve(socket: &UdpSocket, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut query = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut query) {
        // First a forged one, with another id: to be passed over.
        let Some(mut reply) = answer(&query[..length]) else { continue };
        // Who asked may have given up.
        reply[0] ^= 1;
        let _gone = socket.send_to(&reply, from);
        reply[0] ^= 1;
        let _gone = socket.send_to(&reply, from);
    }
}

fn over_tcp(mut stream: TcpStream, log: &Log) {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut query).unwrap();
    let packet = Packet::parse(&query).unwrap();
    log.lock().unwrap().push((packet.questions[0].qname.to_string(), true));
    let Some(reply) = reply(packet, true) else { return };
    // In two pieces.
    stream.write_all(&(reply.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(&reply).unwrap();
}

/// How many addresses a name that begins with `big` has.
pub const BIG: u8 = 60;

/// `None`: stays silent.
fn reply(query: Packet<'_>, tcp: bool) -> Option<Vec<u8>> {
    let mut reply = query.into_reply();
    let name = reply.questions[0].qname.clone();
    let text = name.to_string();
    let begins = |with: &str| text.starts_with(with);
    let address = |last: u8| {
        let data = RData::A(A { address: u32::from(Ipv4Addr::new(192, 0, 2, last)) });
        ResourceRecord::new(name.clone(), CLASS::IN, 60, data)
    };
    if begins("silent") {
        return None;
    }
    if begins("nobody") {
        *reply.rcode_mut() = RCODE::NameError;
        let zone = Name::new_unchecked("test");
        let soa = SOA {
            mname: zone.clone(),
            rname: zone.clone(),
            serial: 1,
            refresh: 1,
            retry: 1,
            expire: 1,
            minimum: 60,
        };
        reply.name_servers.push(ResourceRecord::new(zone, CLASS::IN, 60, RData::SOA(soa)));
    } else if begins("big") && !tcp {
        reply.set_flags(PacketFlag::TRUNCATION);
    } else if begins("big") {
        reply.answers.extend((0..BIG).map(address));
    } else if begins("peer") {
        let data = RData::A(A { address: u32::from(super::outside::PEER) });
        reply.answers.push(ResourceRecord::new(name.clone(), CLASS::IN, 60, data));
    } else {
        reply.answers.push(address(77));
    }
    Some(reply.build_bytes_vec_compressed().unwrap())
}

pub fn query(name: &str) -> Vec<u8> {
    query_with(name, None)
}

/// Of a client that takes `payload` bytes over UDP.
pub fn query_with(name: &str, payload: Option<u16>) -> Vec<u8> {
    let mut packet = Packet::new_query(77);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new_unchecked(name);
    packet.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
    if let Some(udp_packet_size) = payload {
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
    }
    packet.build_bytes_vec().unwrap()
}

/// Code and addresses of a reply.
pub fn read(reply: &[u8]) -> (u8, Vec<Ipv4Addr>) {
    let packet = Packet::parse(reply).unwrap();
    assert_eq!(packet.id(), 77);
    let address = |record: &ResourceRecord<'_>| match &record.rdata {
        RData::A(a) => Ipv4Addr::from(a.address),
        other => panic!("{other:?}"),
    };
    (reply[3] & 15, packet.answers.iter().map(address).collect())
}

/// Whether a reply is cut.
pub fn is_cut(reply: &[u8]) -> bool {
    reply[2] & 2 != 0
}
