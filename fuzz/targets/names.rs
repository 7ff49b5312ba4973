//! Any bytes as a query to the name server, and as the reply of a resolver: they are answered, forwarded or dropped,
//! and what is sent is a message that is no longer than whoever gets it takes.
#![no_main]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::time::Duration;

use network::Subnet;
use network::balance::{Balance, State};
use network::egress::{Policy, Rule, Target};
use network::names::wire::{Query, Received, Reply, Transport};
use network::names::{Answer, answer};
use network::plan::{Attachment, EndpointRequest, NetworkPlan, NetworkRequest, allocate};

/// On two networks, one of them internal: services with and without virtual addresses, and with rules for egress.
static PLAN: LazyLock<NetworkPlan> = LazyLock::new(|| {
    let network = |name: &str, internal| NetworkRequest {
        name: name.into(),
        internal,
        ipv6: !internal,
        ..NetworkRequest::default()
    };
    let service = |name: &str, networks: &[&str]| EndpointRequest {
        service: name.into(),
        attachments: networks
            .iter()
            .map(|network| Attachment {
                network: (*network).into(),
                aliases: vec!["pool".into(), format!("{name}.test")],
                ..Attachment::default()
            })
            .collect(),
        ..EndpointRequest::default()
    };
    let rules = [
        Target::Name("example.org".into()),
        Target::Below("example.com".into()),
        Target::Subnet(Subnet::of(Ipv4Addr::new(192, 0, 2, 0), 24)),
    ];
    let only = rules.map(|target| Rule { target, ports: None });
    let requests = [
        service("web", &["front"]),
        EndpointRequest {
            replicas: 3,
            balance: Some(Balance::default()),
            ..service("api", &["front", "back"])
        },
        EndpointRequest {
            replicas: 40,
            balance: Some(Balance::default()),
            without_virtual_address: true,
            ..service("job", &["front"])
        },
        EndpointRequest { egress: Policy::Only(only.into()), ..service("kept", &["front"]) },
        service("db", &["back"]),
    ];
    allocate(&[network("front", false), network("back", true)], &requests, &[]).expect("a plan")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let states = BTreeMap::from([("api".into(), State::Starting), ("job-2".into(), State::Down)]);
    let turn = data.iter().map(|byte| usize::from(*byte)).sum();
    for asker in PLAN.endpoints.iter().filter(|endpoint| endpoint.service == endpoint.group) {
        for (transport, limit) in [(Transport::Udp, 4096), (Transport::Tcp, 65535)] {
            match answer(data, transport, asker, &PLAN, &states, turn) {
                Answer::Reply(reply) => {
                    assert!(reply.len() >= 12 && reply.len() <= limit);
                    assert!(reply[2] & 0x80 != 0 && reply[..2] == data[..2]);
                }
                Answer::Forward(query) => forward(&query, data, limit),
                Answer::Drop => assert!(data.len() < 12 || data[2] & 0x80 != 0),
            }
        }
    }
    // A reply to the question that it has itself.
    let mut asked = data.to_vec();
    if let Some(flags) = asked.get_mut(2) {
        *flags &= 0x7f;
    }
    let _any = Reply::read(data, &asked);
});

/// What follows the question becomes the records of a reply to it.
fn forward(query: &Query, data: &[u8], limit: usize) {
    let asked = query.onward([data[0], data[1]]);
    let end = 12 + query.question().len();
    let (head, rest) = asked.split_at(end);
    let mut message = head.to_vec();
    message[2] |= 0x80;
    message[6..12].copy_from_slice(&data[6..12]);
    message.extend(&data[end.min(data.len())..]);
    if let Received::Whole(reply) = Reply::read(&message, &asked) {
        assert!(reply.lifetime().is_none_or(|lifetime| lifetime <= Duration::from_secs(3600)));
        for age in [0, 1, u64::MAX] {
            let delivered = reply.deliver(query, Duration::from_secs(age));
            assert!(delivered.len() <= limit && delivered[12..end] == data[12..end]);
            // It need not be a good one: a name of a hostile reply can be where a time to live has changed.
            assert!(!matches!(Reply::read(&delivered, &asked), Received::Foreign));
        }
    }
    assert!(rest.is_empty() || rest.len() == 11);
}
