//! Objects named by small keys that fit into an epoll event and are never mistaken for a later tenant's.

/// Names an entry for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) index: u32,
    /// 24 bits: how many tenants there were before, wherever.
    pub(super) generation: u32,
}

#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    /// Of the next tenant; of all places, because those at the end go when they are not needed.
    generation: u32,
    /// With how few tenants to look whether places can go.
    few: usize,
}

/// Places that always stay.
const STAY: usize = 64;

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), generation: 0, few: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        let generation = self.generation;
        self.generation = (generation + 1) & 0x00ff_ffff;
        if let Some(index) = self.free.pop()
            && let Some(place) = self.entries.get_mut(index as usize)
        {
            *place = (generation, Some(value));
            return Key { index, generation };
        }
        let index = self.entries.len() as u32;
        self.entries.push((generation, Some(value)));
        self.few = self.entries.len() / 4;
        Key { index, generation }
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (generation, value) = self.entries.get(key.index as usize)?;
        value.as_ref().filter(|_| *generation == key.generation)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, value) = self.entries.get_mut(key.index as usize)?;
        value.as_mut().filter(|_| *generation == key.generation)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, value) = self.entries.get_mut(key.index as usize)?;
        let value = if *generation == key.generation { value.take() } else { None };
        if value.is_some() {
            self.free.push(key.index);
            if self.len() <= self.few && self.entries.len() > STAY {
                self.shrink();
            }
        }
        value
    }

    /// Gives the places at the end back that have no tenant.
    fn shrink(&mut self) {
        let used = self.entries.iter().rposition(|(_, value)| value.is_some()).map_or(0, |last| last + 1);
        self.entries.truncate(used);
        self.entries.shrink_to(STAY);
        self.free.retain(|index| (*index as usize) < used);
        self.free.shrink_to(STAY);
        // One who stays at the end keeps all before it: not looked for again with each that goes.
        self.few = self.len() / 2;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, (generation, value))| {
            let key = Key { index: index as u32, generation: *generation };
            value.as_ref().map(|value| (key, value))
        })
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.entries.iter_mut().enumerate().filter_map(|(index, (generation, value))| {
            let key = Key { index: index as u32, generation: *generation };
            value.as_mut().map(|value| (key, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_outlive_places() {
        let mut slab = Slab::new();
        let keys: Vec<Key> = (0..1000).map(|number| slab.insert(number)).collect();
        let (last, others) = keys.split_last().unwrap();
        for key in others {
            assert_eq!(slab.remove(*key), Some(key.index));
        }
        assert_eq!((slab.len(), slab.get(*last)), (1, Some(&999)));
        slab.remove(*last);
        assert!(slab.entries.capacity() <= STAY, "{}", slab.entries.capacity());
        let again: Vec<Key> = (0..1000).map(|number| slab.insert(number)).collect();
        assert!(keys.iter().all(|key| slab.get(*key).is_none() && slab.remove(*key).is_none()));
        assert!(again.iter().all(|key| slab.get(*key) == Some(&key.index)));
        assert_eq!(slab.len(), 1000);
    }
}
