//! What resolvers have said, for as long as they said it holds. Pure data: the caller knows what time it is.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::wire::{Reply, Sameness};

/// Replies kept.
const ENTRIES: usize = 4096;
/// Memory that they may take, about.
const BYTES: usize = 1 << 20;
/// The largest reply that is kept.
const LARGEST: usize = 8 << 10;
/// Of an entry's place in the tables.
const OVERHEAD: usize = 192;

/// Who asks the same resolvers the same question gets the same reply.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    pub(crate) question: Sameness,
    pub(crate) resolvers: Rc<[SocketAddr]>,
}

/// Replies by what was asked; when there is no room, the oldest goes.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Rc<Asked>, Entry>,
    /// In the order in which they came.
    order: BTreeMap<u64, Rc<Asked>>,
    next: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    reply: Rc<Reply>,
    came: Instant,
    lifetime: Duration,
    number: u64,
    size: usize,
}

impl Cache {
    /// The reply to a question, and its age.
    pub(crate) fn get(&mut self, asked: &Asked, now: Instant) -> Option<(Rc<Reply>, Duration)> {
        let entry = self.entries.get(asked)?;
        let age = now.saturating_duration_since(entry.came);
        if age < entry.lifetime {
            return Some((Rc::clone(&entry.reply), age));
        }
        self.remove(asked);
        None
    }

    /// Keeps a reply, if it may be kept.
    pub(crate) fn insert(&mut self, asked: Asked, reply: &Rc<Reply>, now: Instant) {
        let size = reply.size() + asked.question.size() + OVERHEAD;
        let Some(lifetime) = reply.lifetime().filter(|_| size <= LARGEST) else { return };
        self.remove(&asked);
        let asked = Rc::new(asked);
        let entry = Entry { reply: Rc::clone(reply), came: now, lifetime, number: self.next, size };
        self.order.insert(self.next, Rc::clone(&asked));
        self.entries.insert(asked, entry);
        self.next += 1;
        self.bytes += size;
        while self.entries.len() > ENTRIES || self.bytes > BYTES {
            let Some(oldest) = self.order.first_key_value().map(|(_, asked)| Rc::clone(asked)) else {
                return;
            };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, asked: &Asked) {
        if let Some(entry) = self.entries.remove(asked) {
            self.order.remove(&entry.number);
            self.bytes -= entry.size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::wire::{Query, Received, Transport};

    fn query(name: &str) -> Query {
        let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(crate::names::wire::encode_name(name).unwrap());
        message.extend([0, 1, 0, 1]);
        Query::read(&message, Transport::Udp).unwrap()
    }

    fn asked(name: &str, resolver: &str) -> Asked {
        Asked { question: query(name).sameness(), resolvers: [resolver.parse().unwrap()].into() }
    }

    /// With `seconds` to live, and text of `length` bytes.
    fn reply(name: &str, seconds: u8, length: u16) -> Rc<Reply> {
        let sent = query(name).onward([1, 1]);
        let mut message = sent.clone();
        (message[2], message[7]) = (0x81, 2);
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, seconds, 0, 4, 192, 0, 2, 1]);
        message.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, seconds]);
        message.extend(length.to_be_bytes());
        message.resize(message.len() + usize::from(length), 0);
        let Received::Whole(reply) = Reply::read(&message, &sent) else { panic!() };
        Rc::new(reply)
    }

    const ONE: &str = "192.0.2.1:53";

    #[test]
    fn replies_live_as_long_as_they_say() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        let second = Duration::from_secs(1);
        let good = reply("a.test", 10, 0);
        cache.insert(asked("a.test", ONE), &good, start);
        assert_eq!(cache.get(&asked("A.TEST", ONE), start + 9 * second), Some((good, 9 * second)));
        assert_eq!(
            cache.get(&asked("a.test", "192.0.2.2:53"), start),
            None,
            "another resolver may say otherwise"
        );
        assert_eq!(cache.get(&asked("b.test", ONE), start), None);
        assert_eq!(cache.get(&asked("a.test", ONE), start + 10 * second), None);
        assert_eq!((cache.entries.len(), cache.order.len(), cache.bytes), (0, 0, 0));
        cache.insert(asked("a.test", ONE), &reply("a.test", 0, 0), start);
        cache.insert(asked("a.test", ONE), &reply("a.test", 9, 9000), start);
        assert_eq!(cache.entries.len(), 0, "nothing that is over at once, and nothing huge");
    }

    #[test]
    fn the_oldest_makes_room() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        // One that comes again and again leaves nothing behind.
        for _ in 0..10_000 {
            cache.insert(asked("again.test", ONE), &reply("again.test", 9, 0), now);
        }
        assert_eq!((cache.entries.len(), cache.order.len()), (1, 1));
        for (length, most) in [(0, ENTRIES), (4000, BYTES / 4000)] {
            for number in 0..5000 {
                let name = format!("n{number}.test");
                cache.insert(asked(&name, ONE), &reply(&name, 9, length), now);
            }
            assert!(cache.entries.len() <= most && cache.bytes <= BYTES);
            assert_eq!(cache.entries.len(), cache.order.len());
            assert!(cache.get(&asked("n4999.test", ONE), now).is_some());
            assert!(cache.get(&asked("n0.test", ONE), now).is_none());
        }
        let sizes: usize = cache.entries.values().map(|entry| entry.size).sum();
        assert_eq!(cache.bytes, sizes);
    }
}
