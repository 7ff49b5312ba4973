use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const NAME: &str = "www.example.test";

/// As a client sends it: id 0x0707.
fn query(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(encode_name(name).unwrap());
    query.extend([kind.to_be_bytes(), [0, 1]].concat());
    if let Some(payload) = edns {
        let [high, low] = payload.to_be_bytes();
        query.extend([0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
        query[11] = 1;
    }
    query
}

fn read_query(name: &str, kind: u16, edns: Option<u16>) -> Query {
    Query::read(&query(name, kind, edns), Transport::Udp).unwrap()
}

/// What is sent to the resolver: id 0x0909.
fn asked(kind: u16) -> Vec<u8> {
    read_query(NAME, kind, None).onward([9, 9])
}

fn record(owner: &[u8], kind: u16, time: u32, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    [owner, &kind.to_be_bytes(), &[0, 1], &time.to_be_bytes(), &length, data].concat()
}

/// A pointer to the question's name.
const SAME: [u8; 2] = [0xc0, 12];

fn soa(time: u32, minimum: u32) -> Vec<u8> {
    record(&[0], TYPE_SOA, time, &[&[0, 0][..], &[0; 16], &minimum.to_be_bytes()].concat())
}

const TYPE_SOA: u16 = 6;

/// A resolver's reply to `asked` with records in its three sections.
fn reply_to(asked: &[u8], code: u8, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let mut message = asked.to_vec();
    message[2] |= 0x80;
    message[3] = 0x80 | code;
    for (section, records) in sections.into_iter().enumerate() {
        message[7 + 2 * section] = records.len() as u8;
        message.extend(records.concat());
    }
    message
}

fn whole(message: &[u8], asked: &[u8]) -> Reply {
    match Reply::read(message, asked) {
        Received::Whole(reply) => reply,
        other => panic!("{other:?}"),
    }
}

/// Times to live of the records, and whether the reply is cut.
fn times(reply: &[u8]) -> (Vec<u32>, bool) {
    let packet = simple_dns::Packet::parse(reply).unwrap();
    let sections = packet.answers.iter().chain(&packet.name_servers).chain(&packet.additional_records);
    (sections.map(|record| record.ttl).collect(), reply[2] & 2 != 0)
}

fn seconds(reply: &Reply) -> Option<u64> {
    reply.lifetime().map(|lifetime| lifetime.as_secs())
}

#[test]
fn only_the_question_goes_to_the_resolver() {
    let mut message = query("WWW.example.test", TYPE_A, Some(4000));
    // An option, which could carry anything, and what is behind the end.
    let option = [&[0xfd, 0xe9, 0, 6][..], b"secret"].concat();
    *message.last_mut().unwrap() = option.len() as u8;
    message.extend(&option);
    message.extend(b"secret");
    message[3] = 0x4f;
    let onward = Query::read(&message, Transport::Udp).unwrap().onward([1, 2]);
    assert!(!onward.windows(6).any(|bytes| bytes == b"secret"));
    assert_eq!(onward[..12], [1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!(onward.len(), 12 + 18 + 4 + 11);
}

#[test]
fn a_reply_must_repeat_id_and_question() {
    let asked = asked(TYPE_A);
    let good = reply_to(&asked, 0, [&[record(&SAME, TYPE_A, 60, &[192, 0, 2, 1])], &[], &[]]);
    assert!(matches!(Reply::read(&good, &asked), Received::Whole(_)));
    assert_eq!(Reply::read(&asked, &asked), Received::Foreign, "a query is no reply");
    for (at, what) in [(1, "id"), (5, "count of questions"), (13, "name"), (31, "type"), (33, "class")] {
        let mut other = good.clone();
        other[at] ^= 1;
        assert_eq!(Reply::read(&other, &asked), Received::Foreign, "{what}");
    }
    let mut spelled = good.clone();
    spelled[13..16].copy_from_slice(b"WwW");
    assert!(matches!(Reply::read(&spelled, &asked), Received::Whole(_)));
}

#[test]
fn a_failure_is_no_reply_and_what_is_cut_is_fetched_again() {
    let asked = asked(TYPE_A);
    for (code, expected) in [(2, true), (5, true), (3, false), (1, false), (4, false)] {
        let failed = Reply::read(&reply_to(&asked, code, [&[], &[], &[]]), &asked) == Received::Failure;
        assert_eq!(failed, expected, "{code}");
    }
    let mut cut = reply_to(&asked, 0, [&[], &[], &[]]);
    cut[2] |= 2;
    cut[7] = 9;
    assert_eq!(Reply::read(&cut, &asked), Received::Cut);
    let passed_on = Reply::cut(&asked).deliver(&read_query(NAME, TYPE_A, None), Duration::ZERO);
    assert_eq!((passed_on.len(), times(&passed_on)), (asked.len(), (vec![], true)));
    assert_eq!(passed_on[..2], [7, 7]);
}

#[test]
fn aliases_lead_to_addresses() {
    let asked = asked(TYPE_A);
    let alias = |owner: &str, target: &str| {
        record(&encode_name(owner).unwrap(), TYPE_CNAME, 30, &encode_name(target).unwrap())
    };
    let at = |owner: &str, last| record(&encode_name(owner).unwrap(), TYPE_A, 60, &[192, 0, 2, last]);
    let answers = [
        at("c.test", 1),
        alias("b.test", "C.test"),
        alias(NAME, "b.test"),
        at("c.test", 2),
        at("elsewhere.test", 3),
        record(&encode_name("b.test").unwrap(), TYPE_AAAA, 60, &[1; 16]),
    ];
    let reply = whole(&reply_to(&asked, 0, [&answers, &[at(NAME, 4)], &[at(NAME, 5)]]), &asked);
    let expected: [IpAddr; 3] =
        ["192.0.2.1", "192.0.2.2", "101:101:101:101:101:101:101:101"].map(|address| address.parse().unwrap());
    assert_eq!(reply.addresses(), expected);
    let circle = [alias(NAME, "b.test"), alias("b.test", NAME), at("d.test", 1)];
    assert!(whole(&reply_to(&asked, 0, [&circle, &[], &[]]), &asked).addresses().is_empty());
}

#[test]
fn a_reply_is_kept_as_long_as_its_shortest_record() {
    let asked = asked(TYPE_A);
    let a = |time| record(&SAME, TYPE_A, time, &[192, 0, 2, 1]);
    let lifetime = |answers: &[Vec<u8>], authority: &[Vec<u8>], code| {
        seconds(&whole(&reply_to(&asked, code, [answers, authority, &[]]), &asked))
    };
    assert_eq!(lifetime(&[a(60), a(20), a(40)], &[], 0), Some(20));
    assert_eq!(lifetime(&[a(60)], &[soa(10, 5)], 0), Some(10), "not a negative one");
    assert_eq!(lifetime(&[a(86400)], &[], 0), Some(3600));
    assert_eq!(lifetime(&[a(0)], &[], 0), None);
    assert_eq!(lifetime(&[a(0x8000_0001)], &[], 0), None, "more than 31 bits are none");
    // RFC 2308: no such name, and a name without such records.
    for code in [0, 3] {
        assert_eq!(lifetime(&[], &[soa(100, 50)], code), Some(50));
        assert_eq!(lifetime(&[], &[soa(40, 50)], code), Some(40));
        assert_eq!(lifetime(&[], &[soa(86400, 86400)], code), Some(300));
        assert_eq!(lifetime(&[], &[], code), None);
        let alias = record(&SAME, TYPE_CNAME, 30, &encode_name("b.test").unwrap());
        assert_eq!(lifetime(&[alias], &[soa(100, 50)], code), Some(30));
    }
    assert_eq!(lifetime(&[], &[soa(100, 50)], 1), None, "a failure");
}

#[test]
fn what_is_passed_on_fits_the_client_and_its_times_are_what_is_left() {
    let asked = asked(TYPE_A);
    let a = |time| record(&SAME, TYPE_A, time, &[192, 0, 2, 1]);
    let opt = vec![0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0];
    let additional = [a(40), opt.clone(), a(10)];
    let reply = whole(&reply_to(&asked, 0, [&[a(7200), a(60)], &[], &additional]), &asked);
    let spelled = query("WWW.Example.Test", TYPE_A, None);
    let delivered = reply.deliver(&Query::read(&spelled, Transport::Udp).unwrap(), Duration::from_secs(15));
    // The resolver's EDNS, and what was behind it, is not the client's.
    assert_eq!(times(&delivered), (vec![25, 25, 25], false));
    assert_eq!(delivered[..2], [7, 7]);
    assert_eq!(delivered[12..spelled.len()], spelled[12..]);
    let late = reply.deliver(&read_query(NAME, TYPE_A, None), Duration::from_secs(1 << 40));
    assert_eq!(times(&late).0, [0, 0, 0]);
    let with_edns = reply.deliver(&read_query(NAME, TYPE_A, Some(1000)), Duration::ZERO);
    assert_eq!(with_edns.len(), delivered.len() + 11);
    assert!(simple_dns::Packet::parse(&with_edns).unwrap().opt().is_some());

    let many: Vec<_> = (0..60).map(|_| a(60)).collect();
    let reply = whole(&reply_to(&asked, 0, [&many, &[], &[]]), &asked);
    let length = asked.len() + 60 * 16;
    for (payload, cut) in [(None, true), (Some(600), true), (Some(1200), false), (Some(65535), false)] {
        let delivered = reply.deliver(&read_query(NAME, TYPE_A, payload), Duration::ZERO);
        let opt = if payload.is_some() { 11 } else { 0 };
        assert_eq!(delivered.len(), if cut { asked.len() } else { length } + opt);
        assert_eq!(delivered[2] & 2 != 0, cut);
    }
    let tcp = Query::read(&query(NAME, TYPE_A, None), Transport::Tcp).unwrap();
    assert_eq!(reply.deliver(&tcp, Duration::ZERO).len(), length);
}

#[test]
fn hostile_replies_are_failures() {
    let asked = asked(TYPE_A);
    let end = asked.len() as u8;
    let fails = |records: &[Vec<u8>]| {
        let reply = reply_to(&asked, 0, [records, &[], &[]]);
        assert_eq!(Reply::read(&reply, &asked), Received::Failure, "{records:?}");
    };
    fails(&[record(&[0xc0, end], TYPE_A, 1, &[1, 2, 3, 4])]);
    fails(&[record(&[0xc0, end + 2], TYPE_A, 1, &[1, 2, 3, 4])]);
    fails(&[record(&[0xc0, 0], TYPE_A, 1, &[1, 2, 3, 4])]);
    fails(&[record(&[0x80, 12], TYPE_A, 1, &[1, 2, 3, 4])]);
    fails(&[record(&SAME, TYPE_A, 1, &[1, 2, 3])]);
    fails(&[record(&SAME, TYPE_AAAA, 1, &[1; 17])]);
    fails(&[record(&SAME, TYPE_CNAME, 1, &[0xc0, end + 12])]);
    fails(&[record(&SAME, TYPE_CNAME, 1, &[0, 0])]);
    // From the question's last byte, 1, on, over the record that the pointer is in.
    let through = [record(&SAME, TYPE_CNAME, 1, &[0xc0, end - 1]), vec![0; 64]].concat();
    fails(&[through]);
    fails(&[record(&SAME, TYPE_A, 1, &[1, 2, 3, 4])[..15].to_vec()]);
    fails(&[vec![0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]]);
    // A name of more than 255 bytes, made of pointers.
    let long = [&[63; 64][..], &[0xc0, end]].concat();
    let first = record(&[&[63; 64][..], &SAME].concat(), 16, 1, &[]);
    fails(&[
        first,
        record(&[&long[..64], &long[..64], &long[..64], &[0xc0, end][..]].concat(), TYPE_A, 1, &[1; 4]),
    ]);
}

proptest! {
    #[test]
    fn damaged_replies_harm_nobody(
        damage in proptest::collection::vec((12usize..200, any::<u8>()), 0..6),
        length in 0usize..200,
        age in any::<u64>(),
    ) {
        let asked = asked(TYPE_A);
        let alias = record(&SAME, TYPE_CNAME, 30, &[1, b'a', 0xc0, 16]);
        let a = record(&[0xc0, asked.len() as u8 + 12], TYPE_A, 60, &[192, 0, 2, 1]);
        let mut message = reply_to(&asked, 0, [&[alias, a], &[soa(9, 9)], &[]]);
        for (at, byte) in damage {
            if let Some(place) = message.get_mut(at) {
                *place = byte;
            }
        }
        message.truncate(message.len().min(length.max(100)));
        if let Received::Whole(reply) = Reply::read(&message, &asked) {
            let delivered = reply.deliver(&read_query(NAME, TYPE_A, Some(512)), Duration::from_secs(age));
            prop_assert!(delivered.len() <= 512);
        }
    }
}
