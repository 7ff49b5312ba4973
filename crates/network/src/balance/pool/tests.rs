use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

impl Pool {
    /// The member with this name, be it only remembered.
    fn id(&self, name: &str) -> Option<MemberId> {
        let index = self.find(name)?;
        Some(MemberId { index: index as u32, generation: self.places[index].generation })
    }

    /// A member's open connections.
    fn open(&self, id: MemberId) -> u32 {
        self.get(id).map_or(0, |member| member.open)
    }
}

fn pool(policy: Algorithm, names: &[&str]) -> Pool {
    let mut pool = Pool::new(Balance { policy, retry: 0 });
    pool.set_members(names.iter().copied());
    pool
}

fn picked(pool: &mut Pool, client: IpAddr, tried: &[MemberId], now: Instant) -> MemberId {
    match pool.pick(client, tried, now) {
        Pick::Member(id) => id,
        other => panic!("{other:?}"),
    }
}

/// Name of the next member for a client that has tried nobody.
fn next(pool: &mut Pool, now: Instant) -> String {
    let id = picked(pool, CLIENT, &[], now);
    pool.name(id).unwrap().to_owned()
}

fn round(pool: &mut Pool, count: usize) -> Vec<String> {
    let now = Instant::now();
    (0..count).map(|_| next(pool, now)).collect()
}

fn client(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

/// Which member each of a thousand clients gets.
fn mapping(pool: &mut Pool) -> Vec<String> {
    let now = Instant::now();
    let name = |number| {
        let id = picked(pool, client(number), &[], now);
        pool.name(id).unwrap().to_owned()
    };
    (0..1000).map(name).collect()
}

#[test]
fn round_robin_gives_each_their_turn_and_keeps_it_when_members_change() {
    let mut pool = pool(Algorithm::RoundRobin, &["web", "web-2", "web-3"]);
    assert_eq!(round(&mut pool, 4), ["web", "web-2", "web-3", "web"]);
    pool.set_state("web-2", State::Draining);
    assert_eq!(round(&mut pool, 3), ["web-3", "web", "web-3"]);
    pool.set_members(["web", "web-4"]);
    assert_eq!(round(&mut pool, 3), ["web", "web-4", "web"]);
}

#[test]
fn least_conn_takes_the_least_busy_and_turns_among_equals() {
    let mut pool = pool(Algorithm::LeastConn, &["a", "b", "c"]);
    let now = Instant::now();
    let open = |pool: &mut Pool| {
        let id = picked(pool, CLIENT, &[], now);
        pool.opened(id);
        id
    };
    let (a, b, c) = (open(&mut pool), open(&mut pool), open(&mut pool));
    assert_eq!([a, b, c].map(|id| pool.name(id).unwrap().to_owned()), ["a", "b", "c"]);
    pool.closed(b);
    assert_eq!(open(&mut pool), b);
    assert_eq!(open(&mut pool), c, "all have one, and after b it is c's turn");
}

#[test]
fn source_keeps_clients_where_they_are() {
    let names = ["web", "web-2", "web-3", "web-4"];
    let mut all = pool(Algorithm::Source, &names);
    let before = mapping(&mut all);
    assert_eq!(mapping(&mut all), before);
    let reversed: Vec<&str> = names.iter().rev().copied().collect();
    assert_eq!(mapping(&mut pool(Algorithm::Source, &reversed)), before, "order and restarts do not matter");
    for name in names {
        let share = before.iter().filter(|chosen| *chosen == name).count();
        assert!((200..300).contains(&share), "{name} has {share} of 1000");
    }
    all.set_members(["web", "web-2", "web-4"]);
    for (old, new) in before.iter().zip(mapping(&mut all)) {
        assert!(new != "web-3" && (*old == new || old == "web-3"), "{old} -> {new}");
    }
    all.set_members(names);
    assert_eq!(mapping(&mut all), before, "and they come back");
}

#[test]
fn source_is_the_same_for_ever() {
    let mut pool = pool(Algorithm::Source, &["web", "web-2", "web-3"]);
    let chosen: Vec<String> = mapping(&mut pool).into_iter().take(8).collect();
    assert_eq!(chosen, ["web-3", "web-2", "web", "web", "web-3", "web-3", "web", "web-2"]);
    let now = Instant::now();
    let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped();
    assert_eq!(picked(&mut pool, mapped.into(), &[], now), picked(&mut pool, client(1), &[], now));
    let neighbours = (0..100).map(|n| picked(&mut pool, Ipv6Addr::from((0xfd << 120) | n).into(), &[], now));
    assert_eq!(neighbours.collect::<std::collections::HashSet<_>>().len(), 3);
}

#[test]
fn the_unhealthy_serve_when_nobody_else_does_and_the_starting_are_waited_for() {
    let mut pool = pool(Algorithm::RoundRobin, &["a", "b", "c"]);
    let now = Instant::now();
    pool.set_state("a", State::Unhealthy);
    pool.set_state("b", State::Starting);
    assert_eq!(round(&mut pool, 2), ["c", "c"]);
    let (a, c) = (pool.id("a").unwrap(), pool.id("c").unwrap());
    assert_eq!(pool.pick(CLIENT, &[c], now), Pick::Member(a));
    assert_eq!(pool.pick(CLIENT, &[c, a], now), Pick::Wait);
    pool.set_state("c", State::Draining);
    assert_eq!(pool.pick(CLIENT, &[], now), Pick::Member(a));
    pool.set_state("a", State::Down);
    assert_eq!(pool.pick(CLIENT, &[], now), Pick::Wait);
    pool.set_state("b", State::Down);
    assert_eq!(pool.pick(CLIENT, &[], now), Pick::Nobody);
    pool.set_members([]);
    assert_eq!(pool.pick(CLIENT, &[], now), Pick::Nobody);
}

#[test]
fn who_fails_is_left_alone_longer_each_time_and_tried_by_one_connection() {
    let mut pool = pool(Algorithm::RoundRobin, &["a", "b"]);
    let mut now = Instant::now();
    let (a, b) = (pool.id("a").unwrap(), pool.id("b").unwrap());
    assert!(pool.failed(a, now));
    assert!(!pool.failed(a, now), "one that was under way");
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        now += Duration::from_secs(seconds) - Duration::from_millis(1);
        assert!((0..3).all(|_| next(&mut pool, now) == "b"), "after {seconds} s");
        now += Duration::from_millis(1);
        let picks: Vec<MemberId> = (0..4).map(|_| picked(&mut pool, CLIENT, &[], now)).collect();
        assert_eq!(picks.iter().filter(|id| **id == a).count(), 1, "after {seconds} s");
        assert!(!pool.failed(a, now), "it was ejected before");
    }
    now += Duration::from_secs(60);
    assert!((0..2).any(|_| next(&mut pool, now) == "a"));
    assert!(pool.succeeded(a) && !pool.succeeded(a));
    assert_eq!((0..4).filter(|_| next(&mut pool, now) == "a").count(), 2);
    assert!(pool.failed(a, now));
    assert_eq!(pool.pick(CLIENT, &[], now + BACKOFF - Duration::from_millis(1)), Pick::Member(b));
}

#[test]
fn a_trial_that_nobody_finished_is_followed_by_another() {
    let mut pool = pool(Algorithm::LeastConn, &["a", "b"]);
    let now = Instant::now();
    let (a, b) = (pool.id("a").unwrap(), pool.id("b").unwrap());
    pool.opened(b);
    pool.failed(a, now);
    assert_eq!(pool.pick(CLIENT, &[], now + BACKOFF), Pick::Member(a));
    assert_eq!(pool.pick(CLIENT, &[], now + BACKOFF), Pick::Member(b));
    assert_eq!(pool.pick(CLIENT, &[], now + BACKOFF + TRIAL), Pick::Member(a));
}

#[test]
fn when_all_are_ejected_the_first_to_return_is_tried() {
    let mut pool = pool(Algorithm::RoundRobin, &["a", "b"]);
    let now = Instant::now();
    let (a, b) = (pool.id("a").unwrap(), pool.id("b").unwrap());
    pool.failed(b, now);
    pool.failed(a, now + Duration::from_millis(10));
    let later = now + Duration::from_millis(20);
    assert_eq!(pool.pick(CLIENT, &[], later), Pick::Member(b));
    assert_eq!(pool.pick(CLIENT, &[], later), Pick::Member(b));
    assert_eq!(pool.pick(CLIENT, &[b], later), Pick::Member(a));
    assert_eq!(pool.pick(CLIENT, &[a, b], later), Pick::Nobody);
    pool.set_state("b", State::Down);
    assert_eq!(pool.pick(CLIENT, &[], later), Pick::Member(a));
}

#[test]
fn a_container_that_was_started_again_is_not_ejected() {
    let mut pool = pool(Algorithm::RoundRobin, &["a"]);
    let now = Instant::now();
    let a = pool.id("a").unwrap();
    assert!(pool.failed(a, now));
    pool.set_state("a", State::Ready);
    assert!(!pool.failed(a, now), "saying ready again says nothing new");
    pool.set_state("a", State::Starting);
    assert_eq!(pool.pick(CLIENT, &[], now), Pick::Wait);
    pool.set_state("a", State::Ready);
    assert!(pool.failed(a, now));
}

#[test]
fn who_drains_is_reported_when_the_last_connection_ends() {
    let mut pool = pool(Algorithm::RoundRobin, &["a", "b"]);
    assert_eq!(pool.set_state("b", State::Draining), Some("b".to_owned()));
    let a = pool.id("a").unwrap();
    pool.opened(a);
    pool.opened(a);
    assert_eq!(pool.set_state("a", State::Draining), None);
    assert_eq!(pool.closed(a), None);
    pool.set_members([]);
    assert_eq!(pool.name(a), Some("a"), "remembered for its connection");
    assert_eq!(pool.closed(a), Some("a".to_owned()));
    assert_eq!(pool.name(a), None);
    assert_eq!(pool.closed(a), None);
}

#[test]
fn an_id_is_never_mistaken_for_a_later_member() {
    let mut pool = pool(Algorithm::RoundRobin, &["a"]);
    let now = Instant::now();
    let a = pool.id("a").unwrap();
    pool.set_members(["b"]);
    let b = pool.id("b").unwrap();
    assert!(a != b && pool.name(a).is_none());
    pool.opened(a);
    assert!(!pool.failed(a, now) && !pool.succeeded(a));
    assert_eq!((pool.closed(a), pool.open(b)), (None, 0));
    assert_eq!(pool.pick(CLIENT, &[a], now), Pick::Member(b));
}

#[test]
fn a_name_that_returns_while_its_connections_are_open_is_the_same_member() {
    let mut pool = pool(Algorithm::RoundRobin, &["a", "a"]);
    let now = Instant::now();
    let a = pool.id("a").unwrap();
    pool.opened(a);
    pool.failed(a, now);
    pool.set_state("a", State::Down);
    pool.set_members([]);
    assert_eq!(pool.pick(CLIENT, &[], now), Pick::Nobody);
    pool.set_members(["a"]);
    assert_eq!((pool.pick(CLIENT, &[], now), pool.open(a)), (Pick::Member(a), 1));
    assert!(pool.failed(a, now));
}

/// Something that happens to a pool of up to four members.
#[derive(Debug, Clone)]
enum Step {
    Members(Vec<usize>),
    State(usize, State),
    Connect { client: u8, succeeds: bool, retries: usize },
    Close(usize),
    Pass(u64),
}

const NAMES: [&str; 4] = ["web", "web-2", "web-3", "web-4"];

fn step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![
        3 => Just(State::Ready),
        1 => Just(State::Starting),
        1 => Just(State::Unhealthy),
        1 => Just(State::Draining),
        1 => Just(State::Down),
    ];
    prop_oneof![
        1 => proptest::sample::subsequence((0..4).collect::<Vec<_>>(), 0..=4).prop_map(Step::Members),
        2 => (0usize..4, state).prop_map(|(member, state)| Step::State(member, state)),
        6 => (any::<u8>(), any::<bool>(), 0usize..4)
            .prop_map(|(client, succeeds, retries)| Step::Connect { client, succeeds, retries }),
        3 => (0usize..64).prop_map(Step::Close),
        2 => (0u64..90_000).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Against a plain account of who is a member, in which state, and which connections are open.
    #[test]
    fn nobody_gets_what_they_should_not_and_every_connection_is_accounted_for(
        policy in proptest::sample::select(Algorithm::ALL.to_vec()),
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut pool = pool(policy, &NAMES);
        let mut now = Instant::now();
        let mut states: BTreeMap<&str, State> = NAMES.iter().map(|name| (*name, State::Ready)).collect();
        // Those that have left drain as they did.
        let mut draining: BTreeMap<&str, bool> = BTreeMap::new();
        let mut open: Vec<(MemberId, &str)> = Vec::new();
        for step in steps {
            match step {
                Step::Members(members) => {
                    let members: Vec<&str> = members.into_iter().map(|member| NAMES[member]).collect();
                    pool.set_members(members.iter().copied());
                    for name in NAMES {
                        if !members.contains(&name) {
                            if let Some(state) = states.remove(name) {
                                draining.insert(name, state == State::Draining);
                            }
                        } else {
                            states.entry(name).or_insert(State::Ready);
                            draining.remove(name);
                        }
                    }
                }
                Step::State(member, state) => {
                    let name = NAMES[member];
                    if let Some(old) = states.get_mut(name) {
                        *old = state;
                        let idle = open.iter().all(|(_, of)| *of != name);
                        let drained = pool.set_state(name, state);
                        prop_assert_eq!(drained.is_some(), state == State::Draining && idle);
                    }
                }
                Step::Connect { client: number, succeeds, retries } => {
                    let mut tried = Vec::new();
                    for _ in 0..=retries {
                        let usable = |state: &State| matches!(state, State::Ready | State::Unhealthy);
                        let candidates = states.values().filter(|state| usable(state)).count();
                        let id = match pool.pick(client(number.into()), &tried, now) {
                            Pick::Member(id) => id,
                            other => {
                                prop_assert_eq!(candidates, tried.len(), "somebody could have been tried");
                                let starting = states.values().any(|state| *state == State::Starting);
                                prop_assert_eq!(other == Pick::Wait, starting);
                                break;
                            }
                        };
                        prop_assert!(!tried.contains(&id));
                        let name = pool.name(id).unwrap().to_owned();
                        let (name, state) = states.get_key_value(name.as_str()).unwrap();
                        prop_assert!(usable(state), "{name} is {state:?}");
                        pool.opened(id);
                        if succeeds {
                            pool.succeeded(id);
                            open.push((id, name));
                            break;
                        }
                        pool.failed(id, now);
                        prop_assert_eq!(pool.closed(id), None);
                        tried.push(id);
                    }
                }
                Step::Close(which) if !open.is_empty() => {
                    let (id, name) = open.swap_remove(which % open.len());
                    let drains = states.get(name).map_or_else(
                        || draining.get(name).copied().unwrap_or_default(),
                        |state| *state == State::Draining,
                    );
                    let last = open.iter().all(|(_, of)| *of != name);
                    prop_assert_eq!(pool.closed(id).is_some(), drains && last);
                }
                Step::Close(_) => {}
                Step::Pass(milliseconds) => now += Duration::from_millis(milliseconds),
            }
            for (id, name) in &open {
                prop_assert_eq!(pool.name(*id), Some(*name));
                prop_assert_eq!(pool.open(*id) as usize, open.iter().filter(|(_, of)| of == name).count());
            }
            prop_assert!(pool.places.len() <= NAMES.len(), "places are used again");
        }
    }
}
