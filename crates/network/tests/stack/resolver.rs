//! A resolver of the host, with one name; queries and replies.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, ResourceRecord, TYPE};

pub struct Fake {
    pub address: SocketAddr,
    /// Nobody answers there.
    pub dead: SocketAddr,
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
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut query) {
                // First a forged one, with another id: to be passed over.
                let Some(mut reply) = reply(&query[..length]) else { continue };
                reply[0] ^= 1;
                udp.send_to(&reply, from).unwrap();
                reply[0] ^= 1;
                udp.send_to(&reply, from).unwrap();
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut query).unwrap();
                let Some(reply) = reply(&query) else { continue };
                // In two pieces.
                stream.write_all(&(reply.len() as u16).to_be_bytes()).unwrap();
                stream.write_all(&reply).unwrap();
            }
        });
        Self { address, dead, _silent: silent }
    }
}

/// `None`: stays silent.
fn reply(query: &[u8]) -> Option<Vec<u8>> {
    let query = Packet::parse(query).unwrap();
    let mut reply = query.into_reply();
    let name = reply.questions[0].qname.clone();
    if name.to_string().starts_with("silent") {
        return None;
    }
    let data = RData::A(A { address: u32::from(Ipv4Addr::new(192, 0, 2, 77)) });
    reply.answers.push(ResourceRecord::new(name, CLASS::IN, 60, data));
    Some(reply.build_bytes_vec().unwrap())
}

pub fn query(name: &str) -> Vec<u8> {
    let mut packet = Packet::new_query(77);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new_unchecked(name);
    packet.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
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
