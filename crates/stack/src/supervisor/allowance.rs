//! How fast a service may write.

use std::time::{Duration, Instant};

/// What a service that was silent may write at once: as much as in this time.
const BURST: Duration = Duration::from_secs(1);

/// So many bytes a second.
#[derive(Debug)]
pub(crate) struct Allowance {
    rate: u64,
    /// What has been written is what this rate allows until then.
    paid_until: Instant,
}

impl Allowance {
    /// A new one, of which nothing has been used.
    pub(crate) fn new(rate: u64, now: Instant) -> Self {
        Self { rate, paid_until: now.checked_sub(BURST).unwrap_or(now) }
    }

    /// Uses so much of it. There may be less: then it is overdrawn.
    pub(crate) fn spend(&mut self, bytes: usize, now: Instant) {
        let from = now.checked_sub(BURST).map_or(self.paid_until, |burst| self.paid_until.max(burst));
        self.paid_until = from + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
    }

    /// Until when it is overdrawn, if it is.
    pub(crate) fn overdrawn(&self, now: Instant) -> Option<Instant> {
        (self.paid_until > now).then_some(self.paid_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_at_once_and_then_the_rate() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut allowance = Allowance::new(1000, start);
        allowance.spend(1000, start);
        assert_eq!(allowance.overdrawn(start), None);
        allowance.spend(500, start);
        let until = allowance.overdrawn(start).unwrap();
        assert_eq!((until - start).as_millis(), 500);
        assert_eq!(allowance.overdrawn(until), None);
        // A long pause earns no more than a second's worth.
        let later = until + Duration::from_secs(1000);
        allowance.spend(1001, later);
        assert!(allowance.overdrawn(later).is_some());
        // Without a limit nothing is ever too much.
        let mut endless = Allowance::new(u64::MAX, start);
        endless.spend(1 << 40, start);
        assert_eq!(endless.overdrawn(start), None);
    }
}
