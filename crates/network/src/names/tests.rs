use proptest::prelude::*;

use super::wire::{Received, Reply, TYPE_A, TYPE_AAAA, TYPE_ANY, TYPE_PTR, TYPE_SRV, UDP_LIMIT, encode_name};
use super::*;
use crate::Subnet;
use crate::egress::{Policy, Rule, Target};
use crate::plan::{Group, Interface, Network, Subnet6, VirtualAddress};

const TYPE_MX: u16 = 15;

/// With IPv6 if it is not internal.
fn network(name: &str, third: u8, internal: bool) -> Network {
    let subnet6: std::net::Ipv6Addr = format!("fd89:0:{third}::").parse().unwrap();
    let gateway = (u128::from(subnet6) | u128::from(u32::from(Ipv4Addr::new(10, 89, third, 1)))).into();
    Network {
        name: name.into(),
        bridge: format!("br-{name}"),
        subnet: Ipv4Addr::new(10, 89, third, 0),
        prefix: 24,
        gateway: Ipv4Addr::new(10, 89, third, 1),
        internal,
        v6: (!internal).then_some(Subnet6 { subnet: subnet6, prefix: 64, gateway }),
        mtu: None,
    }
}

fn link(network: &Network, last: u8, aliases: &[&str]) -> Interface {
    let [a, b, c, _] = network.subnet.octets();
    let address = Ipv4Addr::new(a, b, c, last);
    Interface {
        network: network.name.clone(),
        name: "eth0".into(),
        peer: format!("v{c}{last}"),
        address,
        address6: network.counterpart(address),
        fixed: false,
        mac: [2, 66, a, b, c, last],
        aliases: aliases.iter().map(ToString::to_string).collect(),
    }
}

/// `web` on front; `app` on front and back; `db` on back only, which is internal; three replicas of `api` behind a
/// virtual address and two of `job` without one, both on front.
fn plan() -> NetworkPlan {
    let (front, back) = (network("front", 0, false), network("back", 1, true));
    let endpoint = |service: &str, group: &str, interfaces: Vec<Interface>| Endpoint {
        service: service.into(),
        group: group.into(),
        interfaces,
        ..Endpoint::default()
    };
    let group = |service: &str, addresses: Vec<VirtualAddress>| Group {
        service: service.into(),
        balance: crate::balance::Balance::default(),
        addresses,
    };
    let address = Ipv4Addr::new(10, 89, 0, 100);
    let virtual_address =
        VirtualAddress { network: "front".into(), address, address6: front.counterpart(address) };
    NetworkPlan {
        endpoints: vec![
            endpoint("web", "web", vec![link(&front, 2, &["web", "www.example.test"])]),
            endpoint("app", "app", vec![link(&front, 3, &["app", "pool"]), link(&back, 3, &["app", "App2"])]),
            endpoint("db", "db", vec![link(&back, 2, &["db", "db.test"])]),
            endpoint("api", "api", vec![link(&front, 10, &["api", "service"])]),
            endpoint("api-2", "api", vec![link(&front, 11, &["api-2", "service"])]),
            endpoint("api-3", "api", vec![link(&front, 12, &["api-3", "service"])]),
            endpoint("job", "job", vec![link(&front, 20, &["job", "pool"])]),
            endpoint("job-2", "job", vec![link(&front, 21, &["job-2", "pool"])]),
        ],
        networks: vec![front, back],
        groups: vec![group("api", vec![virtual_address]), group("job", Vec::new())],
    }
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(if name.is_empty() { vec![0] } else { encode_name(name).unwrap() });
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    query
}

/// The same from a client that takes `payload` bytes over UDP.
fn with_edns(mut query: Vec<u8>, payload: u16, version: u8) -> Vec<u8> {
    let [high, low] = payload.to_be_bytes();
    query.extend([0, 0, 41, high, low, 0, version, 0, 0, 0, 0]);
    query[11] = 1;
    query
}

const WEB: usize = 0;
const APP: usize = 1;
const DB: usize = 2;

fn ask_in(plan: &NetworkPlan, asker: usize, states: &[(&str, State)], turn: usize, query: &[u8]) -> Answer {
    let states = states.iter().map(|(name, state)| ((*name).to_owned(), *state)).collect();
    answer(query, Transport::Udp, &plan.endpoints[asker], plan, &states, turn)
}

fn ask(asker: usize, name: &str, kind: u16) -> Answer {
    ask_in(&plan(), asker, &[], 0, &query(name, kind))
}

/// Response code and the data of the answers.
fn read(answer: Answer) -> (u8, Vec<String>) {
    let Answer::Reply(bytes) = answer else { panic!("{answer:?}") };
    let packet = simple_dns::Packet::parse(&bytes).unwrap();
    let data = packet.answers.iter().chain(&packet.additional_records).map(|record| {
        assert_eq!(record.ttl, 0);
        use simple_dns::rdata::RData;
        match &record.rdata {
            RData::A(a) => Ipv4Addr::from(a.address).to_string(),
            RData::AAAA(a) => std::net::Ipv6Addr::from(a.address).to_string(),
            RData::PTR(name) => name.to_string(),
            RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
            other => panic!("{other:?}"),
        }
    });
    (bytes[3] & 15, data.collect())
}

fn found(expected: &[&str]) -> (u8, Vec<String>) {
    (0, expected.iter().map(ToString::to_string).collect())
}

fn no_such_name() -> (u8, Vec<String>) {
    (3, Vec::new())
}

fn is_forwarded(answer: &Answer) -> bool {
    matches!(answer, Answer::Forward(_))
}

#[test]
fn a_service_sees_the_names_of_all_its_networks_and_no_others() {
    assert_eq!(read(ask(WEB, "app", TYPE_A)), found(&["10.89.0.3"]));
    assert_eq!(read(ask(DB, "aPP", TYPE_A)), found(&["10.89.1.3"]));
    assert_eq!(read(ask(APP, "app", TYPE_A)).1.len(), 2);
    assert_eq!(read(ask(APP, "app.front", TYPE_A)), found(&["10.89.0.3"]));
    assert_eq!(read(ask(APP, "db", TYPE_A)), found(&["10.89.1.2"]));
    assert_eq!(read(ask(APP, "db.back", TYPE_A)), found(&["10.89.1.2"]));
    assert_eq!(read(ask(APP, "app2", TYPE_A)), found(&["10.89.1.3"]));
    assert_eq!(read(ask(WEB, "db", TYPE_A)), no_such_name());
    assert_eq!(read(ask(WEB, "db.back", TYPE_A)), no_such_name());
    assert_eq!(read(ask(WEB, "www.example.test", TYPE_A)), found(&["10.89.0.2"]));
    assert_eq!(read(ask(WEB, "www.example.test.front", TYPE_A)), found(&["10.89.0.2"]));
}

#[test]
fn both_families_have_their_records_and_other_types_none() {
    assert_eq!(read(ask(WEB, "app", TYPE_AAAA)), found(&["fd89::a59:3"]));
    assert_eq!(read(ask(WEB, "app", TYPE_ANY)), found(&["10.89.0.3", "fd89::a59:3"]));
    assert_eq!(read(ask(DB, "app", TYPE_AAAA)), found(&[]), "a network without IPv6");
    assert_eq!(read(ask(WEB, "app", TYPE_MX)), found(&[]));
    assert_eq!(read(ask(DB, "localhost", TYPE_A)), found(&["127.0.0.1"]));
    assert_eq!(read(ask(DB, "a.localhost", TYPE_AAAA)), found(&["::1"]));
}

#[test]
fn names_of_the_stack_do_not_leave_it() {
    let inner = [
        "typo",
        "db.test",
        "DB.Test",
        "typo.front",
        "a.b.back",
        "tasks.db",
        "_80._tcp.db",
        "_80._tcp.typo",
        "_x",
        "_80._tcp",
        "host.docker.internal",
        "printer.local",
        "x.onion",
        "a b.front",
        "db-1",
    ];
    for name in inner {
        for kind in [TYPE_A, TYPE_AAAA, TYPE_MX, TYPE_SRV, TYPE_PTR, TYPE_ANY] {
            assert_eq!(read(ask(WEB, name, kind)), no_such_name(), "{name}");
        }
    }
    let outer = ["example.test", "xfront", "x.front.test", "tasks.example.test", "_80._tcp.example.test", ""];
    for name in outer.iter().filter(|name| **name != "xfront") {
        assert!(is_forwarded(&ask(WEB, name, TYPE_A)), "{name}");
        assert_eq!(read(ask(DB, name, TYPE_A)), no_such_name(), "nothing leaves an internal network: {name}");
    }
}

#[test]
fn a_service_with_a_virtual_address_has_that_and_its_replicas_have_their_own() {
    for name in ["api", "API", "service", "api.front"] {
        assert_eq!(read(ask(WEB, name, TYPE_A)), found(&["10.89.0.100"]), "{name}");
    }
    assert_eq!(read(ask(WEB, "api", TYPE_AAAA)), found(&["fd89::a59:64"]));
    for (name, address) in [("api-1", "10.89.0.10"), ("api-2", "10.89.0.11"), ("api-3.front", "10.89.0.12")] {
        assert_eq!(read(ask(WEB, name, TYPE_A)), found(&[address]));
    }
    assert_eq!(read(ask(WEB, "api-4", TYPE_A)), no_such_name());
    let all = found(&["10.89.0.10", "10.89.0.11", "10.89.0.12"]);
    for name in ["tasks.api", "tasks.api.front", "tasks.service"] {
        assert_eq!(read(ask(WEB, name, TYPE_A)), all, "{name}");
    }
    assert_eq!(read(ask(WEB, "web-1", TYPE_A)), found(&["10.89.0.2"]));
}

#[test]
fn what_is_really_called_so_comes_before_service_and_number() {
    let mut plan = plan();
    let front = plan.networks[0].clone();
    plan.endpoints.push(Endpoint {
        service: "job-1".into(),
        group: "job-1".into(),
        interfaces: vec![link(&front, 99, &["job-1"])],
        ..Endpoint::default()
    });
    assert_eq!(read(ask_in(&plan, WEB, &[], 0, &query("job-1", TYPE_A))), found(&["10.89.0.99"]));
    assert_eq!(read(ask_in(&plan, WEB, &[], 0, &query("job-1.front", TYPE_A))), found(&["10.89.0.99"]));
    // The name in its replica's PTR record would lead elsewhere.
    let pointer = ask_in(&plan, WEB, &[], 0, &query("20.0.89.10.in-addr.arpa", TYPE_PTR));
    assert_eq!(read(pointer), found(&["job.front"]));
}

#[test]
fn names_lead_to_the_best_replicas_there_are() {
    let plan = plan();
    let job = |first, second| {
        let states = [("job", first), ("job-2", second)];
        read(ask_in(&plan, WEB, &states, 0, &query("job", TYPE_A))).1
    };
    let (first, second) = (["10.89.0.20"], ["10.89.0.21"]);
    assert_eq!(job(State::Ready, State::Ready), [first, second].concat());
    for worse in [State::Starting, State::Unhealthy, State::Draining, State::Down] {
        assert_eq!(job(State::Ready, worse), first);
        assert_eq!(job(worse, State::Ready), second);
    }
    assert_eq!(job(State::Starting, State::Unhealthy), [first, second].concat());
    assert_eq!(job(State::Starting, State::Down), first);
    assert_eq!(
        job(State::Down, State::Draining),
        [first, second].concat(),
        "its clients are refused at once"
    );
    // `pool` is an alias of `app`, too.
    let states = [("app", State::Down), ("job", State::Unhealthy)];
    assert_eq!(read(ask_in(&plan, WEB, &states, 0, &query("pool", TYPE_A))), found(&second));
    let states = [("job-2", State::Down)];
    assert_eq!(
        read(ask_in(&plan, WEB, &states, 0, &query("job-2", TYPE_A))),
        found(&second),
        "a name of its own"
    );
    let states = [("api", State::Down), ("api-2", State::Down), ("api-3", State::Down)];
    assert_eq!(read(ask_in(&plan, WEB, &states, 0, &query("api", TYPE_A))), found(&["10.89.0.100"]));
}

#[test]
fn each_turn_another_replica_comes_first() {
    let plan = plan();
    let first = |turn| read(ask_in(&plan, WEB, &[], turn, &query("tasks.api", TYPE_A))).1.swap_remove(0);
    let firsts: Vec<String> = (0..3).map(first).collect();
    assert_eq!(firsts, ["10.89.0.10", "10.89.0.11", "10.89.0.12"]);
    assert_eq!(first(usize::MAX), first(usize::MAX % 3));
}

#[test]
fn srv_records_lead_to_each_replica_that_takes_connections() {
    let plan = plan();
    let ask = |name: &str| read(ask_in(&plan, WEB, &[("api-3", State::Down)], 0, &query(name, TYPE_SRV)));
    let two = found(&[
        "0 1 80 api-1.front",
        "0 1 80 api-2.front",
        "10.89.0.10",
        "fd89::a59:a",
        "10.89.0.11",
        "fd89::a59:b",
    ]);
    assert_eq!(ask("_80._tcp.api"), two);
    assert_eq!(ask("_80._UDP.service.front"), two);
    assert_eq!(ask("_53._udp.web"), found(&["0 1 53 web.front", "10.89.0.2", "fd89::a59:2"]));
    for name in
        ["_http._tcp.api", "_0._tcp.api", "_65536._tcp.api", "_80._sctp.api", "_tcp.api", "_1._80._tcp.api"]
    {
        assert_eq!(ask(name), found(&[]), "{name}");
    }
    assert_eq!(ask("api"), found(&[]));
    assert_eq!(read(ask_in(&plan, WEB, &[], 0, &query("_80._tcp.api", TYPE_A))), found(&[]));
}

#[test]
fn addresses_have_names_on_common_networks_only() {
    let pointer = |asker, name: &str| read(ask(asker, name, TYPE_PTR));
    assert_eq!(pointer(WEB, "3.0.89.10.in-addr.arpa"), found(&["app.front"]));
    assert_eq!(pointer(WEB, "10.0.89.10.IN-ADDR.arpa"), found(&["api-1.front"]));
    assert_eq!(pointer(WEB, "11.0.89.10.in-addr.arpa"), found(&["api-2.front"]));
    assert_eq!(pointer(WEB, "100.0.89.10.in-addr.arpa"), found(&["api.front"]), "a virtual address");
    assert_eq!(pointer(WEB, "1.0.0.127.in-addr.arpa"), found(&["localhost"]));
    let v6 = "3.0.0.0.9.5.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.8.D.F.ip6.arpa";
    assert_eq!(pointer(WEB, v6), found(&["app.front"]));
    assert_eq!(read(ask(WEB, "3.0.89.10.in-addr.arpa", TYPE_A)), found(&[]));
    let nobody = [
        "2.1.89.10.in-addr.arpa",
        "77.0.89.10.in-addr.arpa",
        "x.3.0.89.10.in-addr.arpa",
        &v6.replace('3', "f"),
    ];
    for name in nobody {
        assert_eq!(pointer(WEB, name), no_such_name(), "{name}");
    }
    assert_eq!(pointer(WEB, "0.89.10.in-addr.arpa"), found(&[]), "our own zone");
    for name in [
        "1.2.0.192.in-addr.arpa",
        "1.1.168.192.in-addr.arpa",
        "89.10.in-addr.arpa",
        "8.b.d.0.1.0.0.2.ip6.arpa",
    ] {
        assert!(is_forwarded(&ask(WEB, name, TYPE_PTR)), "{name}");
        assert_eq!(pointer(DB, name), no_such_name());
    }
}

#[test]
fn an_egress_policy_goes_for_questions_too() {
    let mut plan = plan();
    let rule = |target| Rule { target, ports: Some((443, 443)) };
    plan.endpoints[WEB].egress = Policy::Only(vec![
        rule(Target::Name("example.org".into())),
        rule(Target::Below("wordpress.test".into())),
        rule(Target::Subnet(Subnet::of(Ipv4Addr::new(192, 0, 2, 0), 24))),
    ]);
    plan.endpoints[APP].egress = Policy::None;
    let ask = |asker, name: &str| ask_in(&plan, asker, &[], 0, &query(name, TYPE_A));
    for name in
        ["example.org", "EXAMPLE.org", "a.b.wordpress.test", "9.2.0.192.in-addr.arpa", "2.0.192.in-addr.arpa"]
    {
        assert!(is_forwarded(&ask(WEB, name)), "{name}");
        assert_eq!(read(ask(APP, name)), no_such_name());
    }
    let others = [
        "secret.example.org",
        "xexample.org",
        "wordpress.test",
        "xwordpress.test",
        "example.com",
        "",
        "a.example.org.test",
        "1.3.0.192.in-addr.arpa",
        "0.192.in-addr.arpa",
        "secret.9.2.0.192.in-addr.arpa",
        "1.ip6.arpa",
    ];
    for name in others {
        assert_eq!(read(ask(WEB, name)), no_such_name(), "{name}");
    }
    assert_eq!(read(ask(APP, "web")), found(&["10.89.0.2"]));
}

#[test]
fn only_an_address_of_the_asked_network_is_an_asker() {
    let plan = plan();
    assert_eq!(asker(&plan, "front", [10, 89, 0, 3].into()).unwrap().service, "app");
    assert!(asker(&plan, "front", [10, 89, 1, 3].into()).is_none());
}

#[test]
fn replies_are_as_long_as_the_client_takes() {
    let mut plan = plan();
    let front = plan.networks[0].clone();
    for n in 0..100 {
        plan.endpoints.push(Endpoint {
            service: format!("r{n}"),
            group: format!("r{n}"),
            interfaces: vec![link(&front, 101 + n, &["many"])],
            ..Endpoint::default()
        });
    }
    let states = BTreeMap::new();
    let ask = |query: &[u8], transport| {
        let answer = answer(query, transport, &plan.endpoints[0], &plan, &states, 0);
        let Answer::Reply(reply) = &answer else { panic!() };
        let (length, cut) = (reply.len(), reply[2] & 2 != 0);
        (length, cut, read(answer).1.len())
    };
    let plain = query("many", TYPE_A);
    let (length, cut, count) = ask(&plain, Transport::Udp);
    assert!(length <= UDP_LIMIT && cut && count < 100);
    // What a client says is a limit, too, but for less than everybody takes and more than is reasonable.
    for (payload, limit) in [(0, UDP_LIMIT), (700, 700)] {
        let (length, cut, _) = ask(&with_edns(plain.clone(), payload, 0), Transport::Udp);
        assert!(length <= limit && length > limit - 30 && cut, "{payload}");
    }
    let (_, cut, count) = ask(&with_edns(plain.clone(), 4096, 0), Transport::Udp);
    assert!(!cut && count == 100);
    assert_eq!(ask(&plain, Transport::Tcp), (12 + 10 + 100 * 16, false, 100));
    // Additional records are left out silently.
    let (length, cut, count) = ask(&query("_80._tcp.tasks.api", TYPE_SRV), Transport::Udp);
    assert!(length < UDP_LIMIT && !cut && count == 9);
}

#[test]
fn odd_messages_get_the_code_they_deserve() {
    let plan = plan();
    let ask = |query: &[u8]| ask_in(&plan, WEB, &[], 0, query);
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
    assert_eq!(code(ask(&with(11, 1))), 1, "a record that is not there");
    assert_eq!(code(ask(&with(12, 0xc0))), 1, "a compressed question");
    assert_eq!(code(ask(&good[..good.len() - 1])), 1, "a short question");
    assert_eq!(code(ask(&with(good.len() - 1, 3))), 5, "another class");
    assert_eq!(code(ask(&query("example.test", 252))), 5, "a zone transfer");
    let twice = with_edns(with_edns(good.clone(), 600, 0), 600, 0);
    let twice =
        twice.iter().enumerate().map(|(at, byte)| if at == 11 { 2 } else { *byte }).collect::<Vec<u8>>();
    assert_eq!(code(ask(&twice)), 1, "two OPT records");
    // The rest of code 16 is in the OPT record.
    let Answer::Reply(version) = ask(&with_edns(good, 600, 1)) else { panic!() };
    assert_eq!((version[3] & 15, version[version.len() - 6]), (0, 1));
}

#[test]
fn resolvers_are_read_as_the_c_library_does() {
    let text = "# comment\nsearch lan\nnameserver 192.0.2.1\nnameserver nonsense\nnameserver 2001:db8::1\n\
                nameserver fe80::1%nowhere\nnameserver fe80::1%eth0\nnameserver 192.0.2.2\n";
    let expected: Vec<SocketAddr> = vec![
        "192.0.2.1:53".parse().unwrap(),
        "[2001:db8::1]:53".parse().unwrap(),
        SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 9).into(),
    ];
    assert_eq!(parse_resolvers(text, |name| (name == "eth0").then_some(9)), expected);
}

proptest! {
    #[test]
    fn no_packet_panics_and_no_reply_is_too_long(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
        shaped in any::<bool>(),
        turn in any::<usize>(),
    ) {
        if shaped && bytes.len() > 13 {
            bytes[2] = 1;
            bytes[4..6].copy_from_slice(&[0, 1]);
            bytes[12] %= 70;
        }
        let plan = plan();
        for asker in 0..plan.endpoints.len() {
            if let Answer::Reply(reply) = ask_in(&plan, asker, &[], turn, &bytes) {
                prop_assert!(reply.len() <= 4096);
            }
        }
        prop_assert!(!matches!(Reply::read(&bytes, &query("a", TYPE_A)), Received::Whole(_)));
    }
}
