//! What happened of late, for pages that come later.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;
use stack::control::Line;
use stack::event::{Event, What};
use stack::stats::Reading;
use stack::topology::Topology;

/// Lines that are kept of each container.
const LINES: usize = 200;
/// Bytes of text that are kept of each container.
const BYTES: usize = 64 << 10;
/// Bytes of text that a new page is sent of all of them.
const PAGE: usize = 512 << 10;
/// Events that are kept.
const EVENTS: usize = 200;
/// Bytes of a line that are shown.
const LINE: usize = 8 << 10;

/// What is known of the stack.
#[derive(Debug, Default)]
pub(super) struct Recent {
    pub(super) topology: Option<Topology>,
    pub(super) readings: Option<Vec<Reading>>,
    logs: BTreeMap<String, Log>,
    events: VecDeque<Happening>,
    /// Containers that were told to stop.
    stopping: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Log {
    lines: VecDeque<Line>,
    bytes: usize,
}

/// An event, as the page shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Happening {
    /// Nanoseconds since 1970.
    time: u64,
    container: Option<String>,
    text: String,
    /// Somebody should look at it.
    alarming: bool,
    /// It is the end of a container's process.
    is_end: bool,
}

impl Happening {
    /// `stopping`: its container was told to stop, so its end is none to worry about.
    fn new(event: Event, stopping: bool) -> Self {
        let alarming = match &event.what {
            What::Exited { status, oom_killed, .. } => *oom_killed || (*status != 0 && !stopping),
            What::Failed { .. }
            | What::Unhealthy { .. }
            | What::Oom { .. }
            | What::EgressRefused { .. }
            | What::EgressRefusals { .. }
            | What::Ejected
            | What::FtpViolation { .. }
            | What::NetdRestarted { .. } => true,
            What::Started { .. }
            | What::Stopping
            | What::Paused
            | What::Unpaused
            | What::Healthy
            | What::Drained
            | What::Restored
            | What::Network { .. } => false,
        };
        let is_end = matches!(event.what, What::Exited { .. });
        let text = clipped(event.what.to_string());
        Self { time: event.time, container: event.container, text, alarming, is_end }
    }
}

impl Recent {
    /// Remembers a line, and returns what of it is shown.
    pub(super) fn line(&mut self, mut line: Line) -> Line {
        line.text = clipped(line.text);
        let log = self.logs.entry(line.service.clone()).or_default();
        log.bytes += line.text.len();
        log.lines.push_back(line.clone());
        while log.lines.len() > LINES || log.bytes > BYTES {
            log.bytes -= log.lines.pop_front().map_or(0, |line| line.text.len());
        }
        line
    }

    /// Remembers an event, and returns what of it is shown.
    pub(super) fn event(&mut self, event: Event) -> Happening {
        let stopping = event.container.as_ref().is_some_and(|name| self.stopping.contains(name));
        match (&event.container, &event.what) {
            (Some(name), What::Stopping) => drop(self.stopping.insert(name.clone())),
            (Some(name), What::Exited { .. } | What::Started { .. }) => drop(self.stopping.remove(name)),
            _ => {}
        }
        let happening = Happening::new(event, stopping);
        self.events.push_back(happening.clone());
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
        happening
    }

    /// Remembers the readings, and forgets the logs of containers that are gone.
    pub(super) fn readings(&mut self, readings: Vec<Reading>) {
        self.logs.retain(|name, _| readings.iter().any(|reading| reading.service == *name));
        self.readings = Some(readings);
    }

    /// The newest lines, as they came.
    pub(super) fn lines(&self) -> Vec<&Line> {
        let mut lines: Vec<&Line> = self.logs.values().flat_map(|log| &log.lines).collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.time));
        let mut room = PAGE;
        let fits = |line: &&Line| {
            let left = room.checked_sub(line.text.len());
            room = left.unwrap_or(0);
            left.is_some()
        };
        let mut lines: Vec<&Line> = lines.into_iter().take_while(fits).collect();
        lines.reverse();
        lines
    }

    /// The newest events, as they came.
    pub(super) fn events(&self) -> &VecDeque<Happening> {
        &self.events
    }
}

/// What is shown of a text.
fn clipped(mut text: String) -> String {
    if text.len() > LINE {
        text.truncate(text.floor_char_boundary(LINE));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use stack::control::Stream;

    fn line(service: &str, time: u64, text: &str) -> Line {
        Line { service: service.into(), stream: Stream::Stdout, time, text: text.into() }
    }

    #[test]
    fn a_noisy_container_does_not_push_out_another_ones_lines() {
        let mut recent = Recent::default();
        recent.line(line("quiet", 1, "hello"));
        for time in 2..1000 {
            recent.line(line("noisy", time, "x"));
        }
        let lines = recent.lines();
        assert_eq!((lines.len(), lines[0].text.as_str()), (LINES + 1, "hello"));
        assert!(lines.is_sorted_by_key(|line| line.time));
        let shown = recent.line(line("noisy", 1000, &"é".repeat(LINE)));
        assert!(shown.text.len() <= LINE + 3 && shown.text.ends_with('…'));
        for time in 0..100 {
            recent.line(line("noisy", 2000 + time, &"x".repeat(LINE)));
        }
        assert!(recent.logs["noisy"].bytes <= BYTES);
        // What many containers wrote is too much for a page.
        for number in 0..100 {
            recent.line(line(&format!("c{number}"), 3000, &"x".repeat(LINE)));
        }
        assert!(recent.lines().iter().map(|line| line.text.len()).sum::<usize>() <= PAGE);
        recent.readings(Vec::new());
        assert!(recent.lines().is_empty());
    }

    #[test]
    fn events_that_somebody_should_look_at() {
        let mut recent = Recent::default();
        let mut event = |what| recent.event(Event { time: 1, container: Some("web".into()), what });
        let exited =
            |status| What::Exited { status, how: "it ended".into(), oom_killed: false, restarts: false };
        assert!(!event(exited(0)).alarming && event(exited(1)).alarming);
        assert!(!event(What::Stopping).alarming);
        let stopped = event(exited(143));
        assert!(stopped.is_end && !stopped.alarming);
        assert!(event(exited(143)).alarming);
        assert!(event(What::Unhealthy { output: "x".repeat(100_000) }).text.len() < LINE + 10);
        for _ in 0..2 * EVENTS {
            recent.event(Event { time: 1, container: None, what: What::Drained });
        }
        assert_eq!(recent.events().len(), EVENTS);
    }
}
