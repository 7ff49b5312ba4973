//! What happened lately, and who is told of what happens.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::connection::Audience;
use super::{Purpose, Supervisor};
use crate::control::{Line, Notice, Stream};
use crate::event::{self, Event, What};
use crate::remote::RemoteError;

/// How many events are kept for those who ask later.
const KEPT: usize = 1000;
/// How many refusals of one container are told in a [`PERIOD`]; the others are counted.
const REFUSALS: u32 = 10;
/// The time in which they are counted.
const PERIOD: Duration = Duration::from_secs(1);

/// The last events, and how much of what comes in masses has been told.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Oldest first.
    kept: VecDeque<Event>,
    /// Of each container's refusals.
    refusals: BTreeMap<String, Throttle>,
}

impl History {
    fn keep(&mut self, event: Event) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(event);
    }

    /// When something is due that no event will cause.
    pub(super) fn next(&self) -> Option<Instant> {
        self.refusals.values().filter_map(Throttle::due).min()
    }
}

/// Lets a few through in each period, and counts the others.
#[derive(Debug)]
struct Throttle {
    since: Instant,
    told: u32,
    left_out: u64,
}

impl Throttle {
    fn new(now: Instant) -> Self {
        Self { since: now, told: 0, left_out: 0 }
    }

    /// Whether one more may be told.
    fn admits(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= PERIOD && self.left_out == 0 {
            *self = Self::new(now);
        }
        let admitted = self.told < REFUSALS;
        if admitted {
            self.told += 1;
        } else {
            self.left_out += 1;
        }
        admitted
    }

    /// When the number of those that were left out is to be told, if any were.
    fn due(&self) -> Option<Instant> {
        (self.left_out > 0).then(|| self.since + PERIOD)
    }

    /// That number, when it is due. Then the next period begins.
    fn take(&mut self, now: Instant) -> Option<u64> {
        self.due().filter(|due| *due <= now)?;
        let left_out = self.left_out;
        *self = Self::new(now);
        Some(left_out)
    }
}

impl Supervisor {
    /// Keeps an event of this moment, and sends it to those who want to hear of it.
    pub(super) fn tell_event(&mut self, container: Option<&str>, what: What) {
        let event = Event::now(container, what);
        let listeners: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.events.as_ref().is_some_and(|audience| self.is_for(&event, audience)))
            .map(|(id, _)| *id)
            .collect();
        for id in listeners {
            self.notify(id, Notice::Event(event.clone()));
        }
        self.history.keep(event);
    }

    fn is_for(&self, event: &Event, audience: &Audience) -> bool {
        let unit = self.units.iter().find(|unit| event.container.as_deref() == Some(unit.name()));
        audience.wants(event) || unit.is_some_and(|unit| unit.is_among(&audience.0))
    }

    /// The same for a unit.
    pub(super) fn tell_event_of(&mut self, index: usize, what: What) {
        let container = self.units[index].name().to_owned();
        self.tell_event(Some(&container), what);
    }

    /// Tells what the egress policy of a container refused, in its log too, unless it has been a lot lately.
    pub(super) fn tell_refusal(&mut self, container: &str, what: What, now: Instant) {
        self.tell_left_out(now);
        let throttle =
            self.history.refusals.entry(container.to_owned()).or_insert_with(|| Throttle::new(now));
        if throttle.admits(now) {
            self.tell_refusal_now(container, what);
        }
    }

    /// Tells how many refusals were not told, where it is time to.
    pub(super) fn tell_left_out(&mut self, now: Instant) {
        let due = |(container, throttle): (&String, &mut Throttle)| {
            throttle.take(now).map(|left_out| (container.clone(), left_out))
        };
        let due: Vec<(String, u64)> = self.history.refusals.iter_mut().filter_map(due).collect();
        for (container, left_out) in due {
            self.tell_refusal_now(&container, What::EgressRefusals { left_out });
        }
        // Containers come and go; only what is under way is to be remembered.
        let recent =
            |throttle: &Throttle| throttle.left_out > 0 || now.duration_since(throttle.since) < PERIOD;
        self.history.refusals.retain(|_, throttle| recent(throttle));
    }

    fn tell_refusal_now(&mut self, container: &str, what: What) {
        let text = format!("inception-run: {what}");
        if let Some(index) = self.units.iter().position(|unit| unit.name() == container) {
            let service = container.to_owned();
            self.keep_lines(index, vec![Line { service, stream: Stream::Stderr, time: event::now(), text }]);
        }
        let of_run = |purpose: &Purpose| match purpose {
            Purpose::Run { connection, container: name, .. } if name == container => *connection,
            _ => None,
        };
        if let Some(connection) = self.processes.values().find_map(of_run) {
            self.notify(connection, Notice::Warning(format!("container `{container}`: {what}")));
        }
        self.tell_event(Some(container), what);
    }

    /// Carries out `events`: what has happened since then first, then what happens until the connection closes,
    /// if that is wanted.
    pub(super) fn events(
        &mut self,
        id: u64,
        services: &[String],
        since: Option<u64>,
        follow: bool,
    ) -> Result<(), RemoteError> {
        for name in services {
            self.known(name)?;
        }
        let audience = Audience(services.to_vec());
        let past: Vec<Event> = match since {
            Some(since) => {
                let wanted = |event: &&Event| event.time >= since && self.is_for(event, &audience);
                self.history.kept.iter().filter(wanted).cloned().collect()
            }
            None => Vec::new(),
        };
        for event in past {
            self.notify(id, Notice::Event(event));
        }
        match self.connections.get_mut(&id) {
            Some(connection) if follow => connection.events = Some(audience),
            _ => self.notify(id, Notice::Done),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_kept() {
        let mut history = History::default();
        for time in 0..KEPT as u64 + 5 {
            history.keep(Event { time, container: None, what: What::Stopping });
        }
        assert_eq!(history.kept.len(), KEPT);
        assert_eq!(history.kept.front().unwrap().time, 5);
    }

    #[test]
    fn a_flood_of_refusals_becomes_a_number() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        let told = (0..1000).filter(|_| throttle.admits(start)).count();
        assert_eq!(told, REFUSALS as usize);
        assert_eq!(throttle.take(start), None, "it is not time yet");
        let due = throttle.due().unwrap();
        assert_eq!(throttle.take(due), Some(1000 - u64::from(REFUSALS)));
        assert_eq!(throttle.due(), None, "it was told once");
        assert!(throttle.admits(due));
        // Few and far between, each is told.
        for second in 2..100 {
            assert!(throttle.admits(start + PERIOD * second));
        }
        assert_eq!(throttle.due(), None);
    }
}
