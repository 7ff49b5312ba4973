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
