//! The supervisor's netd: listened to, and started again when it dies.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Supervisor;
use crate::event::{self, What};
use crate::netd::Netd;
use crate::remote::RemoteError;
use crate::report::report;

/// Pause before it is started again, doubled for each death of the last [`WINDOW`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// That many deaths within [`WINDOW`] are the end of the stack.
const DEATHS: usize = 5;
/// How long a death counts.
const WINDOW: Duration = Duration::from_secs(10);
/// What is read of it in one turn of the loop, which has others to serve.
const EVENTS: usize = 256;

/// Whether netd is there.
#[derive(Debug, Default)]
pub(super) enum Presence {
    /// The stack has had no network so far.
    #[default]
    Unneeded,
    /// It runs.
    Running(Netd),
    /// It died, `why` says how, and it is to be started again at this moment.
    Due { at: Instant, why: String },
}

impl Presence {
    pub(super) fn running(&self) -> Option<&Netd> {
        match self {
            Self::Running(netd) => Some(netd),
            Self::Unneeded | Self::Due { .. } => None,
        }
    }

    pub(super) fn running_mut(&mut self) -> Option<&mut Netd> {
        match self {
            Self::Running(netd) => Some(netd),
            Self::Unneeded | Self::Due { .. } => None,
        }
    }
}

/// When netd died lately.
#[derive(Debug, Default)]
pub(crate) struct Deaths(VecDeque<Instant>);

impl Deaths {
    /// Counts one, and says how long to wait before the next start; `None` when that makes no sense any more.
    pub(super) fn count(&mut self, now: Instant) -> Option<Duration> {
        self.0.retain(|at| now.duration_since(*at) < WINDOW);
        self.0.push_back(now);
        let pause = FIRST_PAUSE * 2_u32.pow(u32::try_from(self.0.len()).ok()?.checked_sub(1)?);
        (self.0.len() < DEATHS).then_some(pause)
    }
}

/// What has become of an attempt to start netd again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Revival {
    /// There is no need, or it is not time.
    NotDue,
    /// It did not start, or died at once.
    Failed,
    /// It serves everything, after the one before had ended like this.
    Serves { after: String },
}

impl Supervisor {
    /// Reads what netd has to tell. If it is gone it is started again later; an error when it dies too often.
    pub(super) fn hear_netd(&mut self) -> Result<(), RemoteError> {
        for _ in 0..EVENTS {
            match self.wiring.event() {
                Ok(Some(event)) => self.told_by_netd(event),
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::info!("netd: {error}");
                    return self.lose_netd(Instant::now());
                }
            }
        }
        Ok(())
    }

    /// What came while netd's answer was waited for: its channel is not readable on that account.
    pub(super) fn take_known_events(&mut self) {
        while let Some(event) = self.wiring.known_event() {
            self.told_by_netd(event);
        }
    }

    fn told_by_netd(&mut self, told: network::netd::Event) {
        if let network::netd::Event::AtRest { container } = &told {
            self.at_rest(container);
        }
        let Some((container, what)) = event::from_netd(told) else { return };
        match (container.as_deref(), what) {
            (Some(container), what @ What::EgressRefused { .. }) => {
                self.tell_refusal(container, what, Instant::now());
            }
            (Some(container), What::Drained) => {
                self.drained(container);
                self.tell_event(Some(container), What::Drained);
            }
            (container, what) => self.tell_event(container, what),
        }
    }

    fn lose_netd(&mut self, now: Instant) -> Result<(), RemoteError> {
        let how = self.wiring.lose_netd(now).map_err(|error| error.context("the stack's netd ended"))?;
        report(format_args!(
            "warning: netd {how}; it is started again, and published ports stay open meanwhile"
        ));
        Ok(())
    }

    /// Starts netd again when that is due.
    pub(super) fn revive_netd(&mut self, now: Instant) -> Result<(), RemoteError> {
        match self.wiring.revive(now, &mut self.hub)? {
            Revival::NotDue => Ok(()),
            Revival::Failed => self.lose_netd(now),
            Revival::Serves { after } => {
                report("netd serves again");
                self.tell_event(None, What::NetdRestarted { reason: after });
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netd_is_started_again_but_not_for_ever() {
        let mut deaths = Deaths::default();
        let mut now = Instant::now();
        for pause in [100, 200, 400, 800] {
            assert_eq!(deaths.count(now), Some(Duration::from_millis(pause)));
            now += Duration::from_secs(1);
        }
        assert_eq!(deaths.count(now), None);
        // What dies seldom is started again each time.
        let mut deaths = Deaths::default();
        for _ in 0..100 {
            assert!(deaths.count(now).is_some());
            now += WINDOW / 4 + Duration::from_millis(1);
        }
        assert_eq!(deaths.count(now + WINDOW), Some(FIRST_PAUSE));
    }
}
