//! What the name server asks of the host's resolvers, what it keeps, and what it keeps to itself.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use network::balance::State;
use network::egress::{Policy, Rule, Target};

use super::fixture::{self, Outcome, Stack};
use super::resolver::{BIG, is_cut, query_with, read};

const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// Has netd ask `resolvers` for the time of `check`.
fn with_resolvers(stack: &mut Stack, resolvers: Vec<SocketAddr>, check: impl FnOnce(&mut Stack)) {
    let before = std::mem::replace(&mut stack.configuration.resolvers, resolvers);
    stack.configure(&[]).unwrap();
    check(stack);
    stack.configuration.resolvers = before;
    stack.configure(&[]).unwrap();
}

pub fn kept_replies(stack: &mut Stack) {
    with_resolvers(stack, vec![stack.resolver.address], |stack| {
        for (service, tcp) in [("web", false), ("web", true), ("app", false), ("app", true)] {
            assert_eq!(stack.resolve(service, 0, "kept.example.test", tcp), Ok((0, vec![WORLD])));
            assert_eq!(stack.resolve(service, 0, "nobody.example.test", tcp), Ok((3, vec![])));
        }
        for name in ["kept.example.test", "nobody.example.test"] {
            assert_eq!(stack.resolver.asked(name), (1, 0), "asked once, for all");
        }
    });
    // What one resolver says is not what another one says.
    with_resolvers(stack, vec![stack.resolver.failing], |stack| {
        assert_eq!(stack.resolve("web", 0, "kept.example.test", false), Ok((2, vec![])));
    });
}

pub fn long_replies(stack: &mut Stack) {
    with_resolvers(stack, vec![stack.resolver.address], |stack| {
        let ask = |name: &str, payload| stack.exchange("web", query_with(name, payload), false);
        // Its next query comes over TCP.
        let reply = ask("big1.example.test", None);
        assert!(is_cut(&reply) && read(&reply) == (0, vec![]));
        assert_eq!(stack.resolver.asked("big1.example.test"), (1, 0));
        let whole = stack.resolve("web", 0, "big1.example.test", true).unwrap();
        assert_eq!(whole.1.len(), usize::from(BIG));
        // And this one takes so much over UDP.
        let reply = ask("big2.example.test", Some(4096));
        assert!(!is_cut(&reply) && read(&reply).1.len() == usize::from(BIG));
        assert_eq!(stack.resolver.asked("big2.example.test"), (1, 1));
        // Kept, but still too long for some.
        let reply = ask("big2.example.test", Some(600));
        assert!(is_cut(&reply) && reply.len() <= 600);
        assert_eq!(stack.resolver.asked("big2.example.test"), (1, 1));
    });
}

pub fn failing_resolvers(stack: &mut Stack) {
    let (good, failing) = (stack.resolver.address, stack.resolver.failing);
    with_resolvers(stack, vec![failing, good], |stack| {
        let start = Instant::now();
        assert_eq!(stack.resolve("web", 0, "failing.example.test", false), Ok((0, vec![WORLD])));
        assert!(start.elapsed() < Duration::from_secs(1), "nobody was waited for");
    });
    with_resolvers(stack, vec![failing, failing], |stack| {
        assert_eq!(stack.resolve("web", 0, "failed.example.test", false), Ok((2, vec![])));
    });
    // A failure is not kept.
    with_resolvers(stack, vec![good], |stack| {
        assert_eq!(stack.resolve("web", 0, "failed.example.test", false), Ok((0, vec![WORLD])));
    });
    // We are asked ourselves.
    let gateway = SocketAddr::new(stack.plan.networks[0].gateway.into(), 53);
    with_resolvers(stack, vec![gateway], |stack| {
        assert_eq!(stack.resolve("web", 0, "loop.example.test", false), Ok((2, vec![])));
    });
}

pub fn one_query_for_many(stack: &mut Stack) {
    with_resolvers(stack, vec![stack.resolver.address], |stack| {
        let name = "silent-for-two.example.test";
        let gateway = stack.plan.networks[0].gateway;
        let ask = |service| stack.start_query(service, gateway, query_with(name, None));
        ask("web");
        ask("app");
        for service in ["web", "app"] {
            let Outcome::Reply(reply) = stack.outcome(service) else { panic!() };
            assert_eq!(read(&reply), (2, vec![]));
        }
        // Once for both, and a second time because nobody answered.
        assert_eq!(stack.resolver.asked(name), (2, 0));
    });
}

pub fn nothing_leaks(stack: &mut Stack) {
    let inner =
        ["db", "typo", "db.back", "typo.front", "tasks.db", "app-1", "_80._tcp.db", "x.internal", "x.local"];
    let reverse = ["2.0.211.10.in-addr.arpa", "99.1.211.10.in-addr.arpa"];
    with_resolvers(stack, vec![stack.resolver.address], |stack| {
        for name in inner.iter().chain(&reverse) {
            for (service, link) in [("web", 0), ("app", 0), ("app", 1), ("db", 0)] {
                let (code, _) = stack.resolve(service, link, name, false).unwrap();
                assert!(code == 0 || code == 3, "{name}: {code}");
            }
        }
        for name in ["from-db.example.test", "9.2.0.192.in-addr.arpa"] {
            assert_eq!(stack.resolve("db", 0, name, false), Ok((3, vec![])), "an internal network");
        }
        assert_eq!(stack.resolve("web", 0, "after.example.test", false), Ok((0, vec![WORLD])));
        let asked = stack.resolver.names();
        assert!(asked.contains(&"after.example.test".to_owned()));
        let theirs = |name: &String| !name.contains("example.test") || name.starts_with("from-db");
        assert!(!asked.iter().any(theirs), "{asked:?}");
    });
}

pub fn egress_of_questions(stack: &mut Stack) {
    let before = stack.configuration.plan.clone();
    let rule = |name: &str| Rule { target: Target::Name(name.into()), ports: None };
    stack.configuration.plan.endpoints[0].egress = Policy::Only(vec![rule("allowed.example.test")]);
    stack.configuration.plan.endpoints[1].egress = Policy::None;
    with_resolvers(stack, vec![stack.resolver.address], |stack| {
        assert_eq!(stack.resolve("web", 0, "allowed.example.test", false), Ok((0, vec![WORLD])));
        assert_eq!(stack.resolve("web", 0, "secret.example.test", false), Ok((3, vec![])));
        assert_eq!(stack.resolve("app", 0, "allowed.example.test", false), Ok((3, vec![])));
        assert_eq!(stack.resolve("web", 0, "app", false).unwrap().0, 0);
        assert_eq!(stack.resolver.asked("allowed.example.test"), (1, 0));
        assert_eq!(stack.resolver.asked("secret.example.test"), (0, 0));
        stack.configuration.plan = before;
    });
}

pub fn replicas_by_state(stack: &mut Stack) {
    let before = stack.configuration.plan.clone();
    let mut second = fixture::endpoint("app-2", &[("front", 0, 33)], &[]);
    second.group = "app".into();
    stack.configuration.plan.endpoints.push(second);
    stack.configure(&[]).unwrap();
    let both = [stack.address("app", 0), Ipv4Addr::new(10, 211, 0, 33)];
    // Each comes first at times: that it does not in a hundred queries has a chance of 2^-99.
    let firsts: BTreeSet<Ipv4Addr> =
        (0..100).map(|_| stack.resolve("web", 0, "app", false).unwrap().1[0]).collect();
    assert_eq!(firsts, BTreeSet::from(both));
    assert_eq!(stack.resolve("web", 0, "app-1", false), Ok((0, vec![both[0]])));
    for (state, expected) in [(State::Draining, vec![both[1]]), (State::Ready, both.to_vec())] {
        stack.tell_state("app", state);
        let deadline = Instant::now() + Duration::from_secs(5);
        let found = || {
            let mut found = stack.resolve("web", 0, "app", false).unwrap().1;
            found.sort();
            found
        };
        while found() != expected {
            assert!(Instant::now() < deadline, "{state:?}: {:?}", found());
        }
    }
    stack.configuration.plan = before;
    stack.configure(&[]).unwrap();
}

/// A container asks without end, for names of the stack, of the world, and of nobody who answers.
pub fn flood(stack: &mut Stack) {
    with_resolvers(stack, vec![stack.resolver.address], |stack| {
        let gateway = stack.plan.networks[0].gateway;
        stack.start_flood("web", gateway, 1_000_000);
        // On other networks others are served meanwhile; on its own the kernel drops what comes too fast, and who
        // asked asks again.
        for _ in 0..100 {
            assert_eq!(stack.resolve("db", 0, "app", false).unwrap().0, 0);
        }
        assert_eq!(stack.outcome("web"), Outcome::Done);
        let deadline = Instant::now() + Duration::from_secs(20);
        while stack.resolve("web", 0, "after-flood.example.test", false) != Ok((0, vec![WORLD])) {
            assert!(Instant::now() < deadline);
        }
        let private = stack.netd_private_kb();
        assert!(private < 6144, "{private} kB after a flood");
    });
}
