//! Which names led a container to which addresses.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Clients keep an answer a little longer than its TTL says, and connect a moment after they asked.
const SHORTEST: Duration = Duration::from_mins(1);
/// The longest TTL that is believed (RFC 8767, section 4).
const LONGEST: Duration = Duration::from_hours(7 * 24);
/// Addresses remembered for one container; the one that was looked up longest ago goes first.
const ADDRESSES: usize = 1024;
/// Names remembered for one address; the one that was looked up longest ago goes first.
const NAMES: usize = 8;

/// What the name server told each container, as long as it counts. What a container has learned is its own: no other
/// gets in by a name that it did not look up.
#[derive(Debug, Default)]
pub struct Learned {
    containers: HashMap<String, Answers>,
}

/// The answers to one container.
#[derive(Debug, Default)]
struct Answers {
    addresses: HashMap<IpAddr, Address>,
    /// The addresses in the order in which they were looked up last.
    order: BTreeMap<u64, IpAddr>,
    /// Number of the next answer.
    next: u64,
}

#[derive(Debug)]
struct Address {
    /// Its key in `order`.
    turn: u64,
    /// Names and when they stop counting, the last that was looked up at the end.
    names: Vec<(Arc<str>, Instant)>,
}

impl Learned {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `container` is told at `now` that `name`, as it asked for it, has these addresses. They count for the TTL of
    /// the answer, but for a minute at least.
    pub fn record(
        &mut self,
        container: &str,
        name: &str,
        addresses: impl IntoIterator<Item = IpAddr>,
        ttl: Duration,
        now: Instant,
    ) {
        let name: Arc<str> = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into();
        let until = now + ttl.clamp(SHORTEST, LONGEST);
        if !self.containers.contains_key(container) {
            self.containers.insert(container.to_owned(), Answers::default());
        }
        let Some(answers) = self.containers.get_mut(container) else { return };
        for address in addresses {
            answers.record(address.to_canonical(), &name, until, now);
        }
    }

    /// The names by which `container` has looked up `address`, lower case, without a dot at the end, the latest
    /// first.
    pub fn names<'a>(
        &'a self,
        container: &str,
        address: IpAddr,
        now: Instant,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        let answers = self.containers.get(container);
        let known = answers.and_then(|answers| answers.addresses.get(&address.to_canonical()));
        let names = known.map_or(&[][..], |address| &address.names);
        names.iter().rev().filter(move |(_, until)| now < *until).map(|(name, _)| name.as_ref())
    }

    /// The container is gone, or another one has its name now.
    pub fn forget(&mut self, container: &str) {
        self.containers.remove(container);
    }
}

impl Answers {
    fn record(&mut self, address: IpAddr, name: &Arc<str>, until: Instant, now: Instant) {
        let turn = self.next;
        self.next += 1;
        let entry = self.addresses.entry(address).or_insert(Address { turn, names: Vec::new() });
        self.order.remove(&entry.turn);
        entry.turn = turn;
        self.order.insert(turn, address);
        entry.record(name, until, now);
        if self.addresses.len() > ADDRESSES
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.addresses.remove(&oldest);
        }
    }
}

impl Address {
    fn record(&mut self, name: &Arc<str>, until: Instant, now: Instant) {
        let known = self.names.iter().position(|(known, _)| known == name).map(|at| self.names.remove(at));
        // An earlier answer with a longer TTL still holds.
        let until = known.map_or(until, |(_, before)| before.max(until));
        self.names.retain(|(_, until)| now < *until);
        if self.names.len() >= NAMES {
            self.names.remove(0);
        }
        self.names.push((Arc::clone(name), until));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(0xc000_0200 + number).into()
    }

    fn names(learned: &Learned, container: &str, number: u32, now: Instant) -> Vec<String> {
        learned.names(container, address(number), now).map(str::to_owned).collect()
    }

    #[test]
    fn what_one_container_learned_is_unknown_to_others() {
        let mut learned = Learned::new();
        let now = Instant::now();
        learned.record("web", "Example.org.", [address(1), address(2)], SECOND, now);
        learned.record("web", "example.net", [address(2)], SECOND, now);
        assert_eq!(names(&learned, "web", 1, now), ["example.org"]);
        assert_eq!(names(&learned, "web", 2, now), ["example.net", "example.org"]);
        assert!(names(&learned, "web-2", 1, now).is_empty());
        assert!(names(&learned, "web", 3, now).is_empty());
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().into();
        assert_eq!(learned.names("web", mapped, now).next(), Some("example.org"));
        learned.forget("web");
        assert!(names(&learned, "web", 1, now).is_empty());
    }

    #[test]
    fn answers_count_for_their_ttl_but_for_a_minute_at_least() {
        let mut learned = Learned::new();
        let now = Instant::now();
        learned.record("web", "short.test", [address(1)], Duration::ZERO, now);
        learned.record("web", "long.test", [address(2)], 90 * SECOND, now);
        learned.record("web", "longest.test", [address(3)], Duration::MAX, now);
        let left = |at: Duration| (1..4).filter(|n| !names(&learned, "web", *n, now + at).is_empty()).count();
        assert_eq!([59, 60, 89, 90].map(|seconds| left(seconds * SECOND)), [3, 2, 2, 1]);
        assert_eq!((left(LONGEST - SECOND), left(LONGEST)), (1, 0));
    }

    #[test]
    fn a_new_answer_extends_and_never_shortens() {
        let mut learned = Learned::new();
        let now = Instant::now();
        learned.record("web", "a.test", [address(1)], 300 * SECOND, now);
        learned.record("web", "a.test", [address(1)], SECOND, now + SECOND);
        assert_eq!(names(&learned, "web", 1, now + 299 * SECOND), ["a.test"]);
        learned.record("web", "a.test", [address(1)], SECOND, now + 299 * SECOND);
        assert_eq!(names(&learned, "web", 1, now + 358 * SECOND), ["a.test"]);
        assert!(names(&learned, "web", 1, now + 359 * SECOND).is_empty());
    }

    #[test]
    fn what_was_looked_up_longest_ago_makes_room() {
        let mut learned = Learned::new();
        let now = Instant::now();
        learned.record("web", "kept.test", [address(0)], SECOND, now);
        for number in 1..ADDRESSES as u32 {
            learned.record("web", "many.test", [address(number)], SECOND, now);
        }
        learned.record("web", "kept.test", [address(0)], SECOND, now);
        learned.record("web", "one.more.test", [address(5000)], SECOND, now);
        assert_eq!(names(&learned, "web", 0, now), ["kept.test"]);
        assert!(names(&learned, "web", 1, now).is_empty());
        assert_eq!(names(&learned, "web", 2, now), ["many.test"]);
        for number in 0..NAMES {
            learned.record("web", &format!("{number}.test"), [address(0)], SECOND, now);
        }
        let kept = names(&learned, "web", 0, now);
        assert_eq!((kept.len(), kept[0].as_str(), kept[NAMES - 1].as_str()), (NAMES, "7.test", "0.test"));
        let later = now + SHORTEST;
        learned.record("web", "later.test", [address(0)], SECOND, later);
        assert_eq!(learned.containers["web"].addresses[&address(0)].names.len(), 1, "expired ones go first");
    }

    proptest! {
        /// The last answer is always there, and memory is bounded.
        #[test]
        fn a_flood_changes_nothing_for_the_last_answer(
            answers in proptest::collection::vec((0u32..3000, 0u8..20, 0u64..120), 1..3000),
        ) {
            let mut learned = Learned::new();
            let mut now = Instant::now();
            for (number, name, seconds) in answers {
                let name = format!("n{name}.test");
                learned.record("web", &name, [address(number), address(number + 1)], SECOND, now);
                prop_assert_eq!(learned.names("web", address(number), now).next(), Some(name.as_str()));
                now += Duration::from_secs(seconds / 100);
            }
            let answers = &learned.containers["web"];
            prop_assert!(answers.addresses.len() <= ADDRESSES);
            prop_assert_eq!(answers.order.len(), answers.addresses.len());
            for (turn, address) in &answers.order {
                prop_assert_eq!(answers.addresses[address].turn, *turn);
            }
            prop_assert!(answers.addresses.values().all(|address| address.names.len() <= NAMES));
        }
    }
}
