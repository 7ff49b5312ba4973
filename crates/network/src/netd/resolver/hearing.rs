//! Whether the resolvers that are asked for names of the world answer, which is told when it changes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

/// What was heard last, by the resolvers that are asked together.
#[derive(Debug, Default)]
pub(super) struct Hearing(HashMap<Rc<[SocketAddr]>, Heard>);

#[derive(Debug)]
enum Heard {
    /// An answer, then.
    Answer(Instant),
    /// Nothing, and that was told.
    Silence,
}

impl Hearing {
    /// One of them has answered. Returns whether that is news.
    pub(super) fn answered(&mut self, resolvers: &Rc<[SocketAddr]>, now: Instant) -> bool {
        let before = self.0.insert(Rc::clone(resolvers), Heard::Answer(now));
        matches!(before, Some(Heard::Silence))
    }

    /// None of them has answered a query that was sent then. Returns whether that is news: if another one has been
    /// answered since, it is that query's fault.
    pub(super) fn unanswered(&mut self, resolvers: &Rc<[SocketAddr]>, sent: Instant) -> bool {
        let known = match self.0.get(resolvers) {
            Some(Heard::Answer(at)) => *at >= sent,
            Some(Heard::Silence) => true,
            // There is nobody who could answer.
            None => resolvers.is_empty(),
        };
        if !known {
            self.0.insert(Rc::clone(resolvers), Heard::Silence);
        }
        !known
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn silence_and_its_end_are_told_once() {
        let resolvers: Rc<[SocketAddr]> = ["192.0.2.1:53".parse().unwrap()].into();
        let mut hearing = Hearing::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!hearing.answered(&resolvers, at(1)));
        assert!(!hearing.unanswered(&resolvers, at(0)), "others were answered meanwhile");
        assert!(hearing.unanswered(&resolvers, at(2)));
        assert!(!hearing.unanswered(&resolvers, at(3)));
        assert!(hearing.answered(&resolvers, at(4)));
        assert!(!hearing.answered(&resolvers, at(5)));
        assert!(!hearing.unanswered(&[].into(), at(6)), "there is nobody to be silent");
    }
}
