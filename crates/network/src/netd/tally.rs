//! How much of something each of several has, so that nobody takes all of it.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Counts by owner; who has nothing takes no room.
#[derive(Debug)]
pub(super) struct Tally<K>(HashMap<K, usize>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Tally<K> {
    /// How much `owner` has.
    pub(super) fn of<Q: Eq + Hash + ?Sized>(&self, owner: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.0.get(owner).copied().unwrap_or_default()
    }

    /// It has one more.
    pub(super) fn add(&mut self, owner: K) {
        *self.0.entry(owner).or_default() += 1;
    }

    /// It has one less.
    pub(super) fn take<Q: Eq + Hash + ?Sized>(&mut self, owner: &Q)
    where
        K: Borrow<Q>,
    {
        if let Some(count) = self.0.get_mut(owner) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_nothing_takes_no_room() {
        let mut tally = Tally::<String>::default();
        tally.take("web");
        tally.add("web".into());
        tally.add("web".into());
        tally.add("db".into());
        assert_eq!((tally.of("web"), tally.of("db"), tally.of("cache")), (2, 1, 0));
        tally.take("web");
        tally.take("web");
        tally.take("web");
        assert_eq!((tally.of("web"), tally.0.len()), (0, 1));
    }
}
