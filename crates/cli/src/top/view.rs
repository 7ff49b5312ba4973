//! What `top` shows, as lines: a pure function of readings, keys and the terminal's size.

use stack::control::{Health, State};
use stack::stats::{Measured, Reading};

use crate::listing::state_word;
use crate::output::{age, binary_size, size, table, visible};
use crate::stats::{cpu, memory, pids, pressure, transfer};

/// Characters of the bar that shows memory.
const BAR: usize = 10;
/// Lines above and below the services: title, blank, head; blank, details, blank, keys.
const AROUND: usize = 3 + DETAILS + 3;
/// Lines about the selected service.
const DETAILS: usize = 3;

/// A key that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// q, Escape, Ctrl-C.
    Quit,
    /// Another order.
    Sort(Order),
    /// The service above.
    Up,
    /// The service below.
    Down,
}

/// What services are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As in the stack file's start order.
    Start,
    /// Processor time, most first.
    Cpu,
    /// Memory, most first.
    Memory,
    /// Bytes over the network, most first.
    Network,
}

/// The keys in what a terminal sent.
pub(crate) fn keys(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let [first, rest @ ..] = bytes {
        // Arrows come as one of two sequences, depending on the terminal's mode.
        let (key, used) = match (first, rest) {
            (0x1b, [b'[' | b'O', b'A', ..]) => (Some(Key::Up), 3),
            (0x1b, [b'[' | b'O', b'B', ..]) => (Some(Key::Down), 3),
            // Another function key: up to its last byte (ECMA-48).
            (0x1b, [b'[', more @ ..]) => {
                let last = more.iter().position(|byte| (0x40..=0x7e).contains(byte));
                (None, last.map_or(bytes.len(), |last| last + 3))
            }
            (0x1b, [b'O', _, ..]) => (None, 3),
            (0x1b, []) | (b'q' | b'Q' | 3, _) => (Some(Key::Quit), 1),
            (b'c', _) => (Some(Key::Sort(Order::Cpu)), 1),
            (b'm', _) => (Some(Key::Sort(Order::Memory)), 1),
            (b'n', _) => (Some(Key::Sort(Order::Network)), 1),
            (b's', _) => (Some(Key::Sort(Order::Start)), 1),
            (b'k', _) => (Some(Key::Up), 1),
            (b'j', _) => (Some(Key::Down), 1),
            _ => (None, 1),
        };
        keys.extend(key);
        bytes = &bytes[used.min(bytes.len())..];
    }
    keys
}

/// The state of the view.
#[derive(Debug)]
pub(crate) struct View {
    stack: String,
    host_memory: u64,
    color: bool,
    order: Order,
    /// The selected service, by name, so that it stays selected when the order changes.
    selected: Option<String>,
    readings: Vec<Reading>,
}

impl View {
    /// Of a stack on a machine with this much memory.
    pub(crate) fn new(stack: String, host_memory: u64, color: bool) -> Self {
        Self { stack, host_memory, color, order: Order::Start, selected: None, readings: Vec::new() }
    }

    /// Takes new numbers.
    pub(crate) fn update(&mut self, readings: Vec<Reading>) {
        self.readings = readings;
    }

    /// Carries out a key.
    pub(crate) fn press(&mut self, key: Key) {
        let sorted = self.sorted();
        let at = sorted.iter().position(|reading| Some(&reading.service) == self.selected.as_ref());
        let last = sorted.len().saturating_sub(1);
        let to = match key {
            Key::Up => at.map_or(0, |at| at.saturating_sub(1)),
            Key::Down => at.map_or(0, |at| (at + 1).min(last)),
            Key::Sort(order) => {
                self.order = order;
                return;
            }
            Key::Quit => return,
        };
        self.selected = sorted.get(to).map(|reading| reading.service.clone());
    }

    fn sorted(&self) -> Vec<&Reading> {
        let mut readings: Vec<&Reading> = self.readings.iter().collect();
        let usage = |reading: &Reading, of: fn(&Measured) -> f64| reading.usage.as_ref().map_or(-1.0, of);
        let by = |of: fn(&Measured) -> f64| {
            move |a: &&Reading, b: &&Reading| usage(b, of).total_cmp(&usage(a, of))
        };
        match self.order {
            Order::Start => {}
            Order::Cpu => readings.sort_by(by(|usage| usage.cpu_percent.unwrap_or(0.0))),
            Order::Memory => readings.sort_by(by(|usage| usage.memory.bytes as f64)),
            Order::Network => readings.sort_by(by(|usage| {
                usage.network_rate.map_or(0.0, |rate| (rate.inward.saturating_add(rate.outward)) as f64)
            })),
        }
        readings
    }

    /// The whole screen, no line wider and not more lines than there is room for.
    pub(crate) fn lines(&self, (columns, rows): (usize, usize)) -> Vec<String> {
        let sorted = self.sorted();
        let selected = sorted.iter().position(|reading| Some(&reading.service) == self.selected.as_ref());
        let room = rows.saturating_sub(AROUND).max(1);
        // Scrolls as little as it takes to show the selected one.
        let first = selected.map_or(0, |at| (at + 1).saturating_sub(room));
        let text = self.services(&sorted);
        let mut services = text.lines();
        let mut lines = vec![self.fit(&self.title(), columns, "1"), String::new()];
        lines.push(self.fit(&format!("  {}", services.next().unwrap_or_default()), columns, "7"));
        for (index, line) in services.enumerate().skip(first).take(room) {
            let is_selected = Some(index) == selected;
            let mark = if is_selected { '>' } else { ' ' };
            let color =
                if is_selected { "7" } else { sorted.get(index).map_or("", |reading| alarm(reading)) };
            lines.push(self.fit(&format!("{mark} {line}"), columns, color));
        }
        lines.resize(lines.len().max(rows.saturating_sub(DETAILS + 2)), String::new());
        let about = selected.and_then(|at| sorted.get(at)).map(|reading| details(reading));
        let mut about = about.unwrap_or_default();
        about.resize(DETAILS, String::new());
        lines.extend(about.iter().map(|line| self.fit(line, columns, "")));
        lines.push(String::new());
        let keys = "q quit   sort: c processor  m memory  n network  s start order   arrows select";
        lines.push(self.fit(keys, columns, "2"));
        // On a terminal with next to no rows the services matter most.
        lines.truncate(rows);
        lines
    }

    /// The same for a reader that is no terminal.
    pub(crate) fn snapshot(&mut self, readings: &[Reading]) -> String {
        self.update(readings.to_vec());
        format!("{}\n\n{}", self.title(), self.services(&self.sorted()))
    }

    fn title(&self) -> String {
        let running = || self.readings.iter().filter_map(|reading| reading.usage.as_ref());
        let cpu: f64 = running().filter_map(|usage| usage.cpu_percent).sum();
        let memory: u64 = running().map(|usage| usage.memory.bytes).sum();
        format!(
            "stack {}: {} of {} services run, processor {cpu:.1}%, memory {} of {}",
            self.stack,
            running().count(),
            self.readings.len(),
            binary_size(memory),
            binary_size(self.host_memory)
        )
    }

    fn services(&self, sorted: &[&Reading]) -> String {
        let head = |order: Order, text: &str| {
            let mark = if self.order == order { "*" } else { "" };
            format!("{text}{mark}")
        };
        let head = [
            head(Order::Start, "SERVICE"),
            "STATE".to_owned(),
            "HEALTH".to_owned(),
            head(Order::Cpu, "CPU %"),
            head(Order::Memory, "MEMORY"),
            "USAGE / LIMIT".to_owned(),
            head(Order::Network, "NET IN/S / OUT/S"),
            "PIDS".to_owned(),
            "PRESSURE".to_owned(),
        ];
        let rows: Vec<Vec<String>> = sorted.iter().map(|reading| row(reading)).collect();
        table(&head.each_ref().map(String::as_str), &rows)
    }

    /// A line cut to the width, in a colour (SGR) if there are colours.
    fn fit(&self, line: &str, columns: usize, color: &str) -> String {
        let mut line: String = line.chars().take(columns).collect();
        if !self.color || color.is_empty() {
            return line;
        }
        if color == "7" {
            // A bar over the whole width.
            line = format!("{line:columns$}");
        }
        format!("\x1b[{color}m{line}\x1b[0m")
    }
}

fn row(reading: &Reading) -> Vec<String> {
    let health = match reading.health {
        None => "-",
        Some(Health::Starting) => "starting",
        Some(Health::Healthy) => "healthy",
        Some(Health::Unhealthy) => "unhealthy",
    };
    let mut row = vec![reading.service.clone(), state(reading), health.to_owned()];
    match &reading.usage {
        Some(usage) => row.extend([
            cpu(usage),
            bar(usage.memory.percent),
            memory(usage),
            transfer(usage.network_rate),
            pids(usage),
            pressure(usage),
        ]),
        None => row.resize(9, "--".to_owned()),
    }
    row
}

fn state(reading: &Reading) -> String {
    match (reading.state, reading.exit_code) {
        (State::Exited | State::Restarting, Some(code)) => {
            let why = if reading.oom_killed { ", out of memory" } else { "" };
            format!("{} ({code}{why})", state_word(reading.state))
        }
        (state, _) => state_word(state).to_owned(),
    }
}

/// A share as a bar: `[###-------]`.
fn bar(percent: f64) -> String {
    let filled = ((percent / 100.0 * BAR as f64).round().max(0.0) as usize).min(BAR);
    format!("[{}{}]", "#".repeat(filled), "-".repeat(BAR - filled))
}

/// The colour of a service that needs somebody to look at it.
fn alarm(reading: &Reading) -> &'static str {
    let limited =
        reading.usage.as_ref().filter(|usage| usage.memory.limit.is_some_and(|limit| limit.enforced));
    let failed = reading.exit_code.is_some_and(|code| code != 0);
    match limited.map(|usage| usage.memory.percent) {
        _ if failed || reading.health == Some(Health::Unhealthy) => "31",
        Some(percent) if percent >= 90.0 => "31",
        Some(percent) if percent >= 75.0 => "33",
        _ if reading.usage.is_none() => "2",
        _ => "",
    }
}

/// What does not fit into the row of a service.
fn details(reading: &Reading) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut lines = vec![format!(
        "{}: image {}, process {}, up {}, {} restarts",
        reading.service,
        visible(&reading.image),
        or_dash(reading.pid.map(|pid| pid.to_string())),
        or_dash(reading.uptime.map(age)),
        reading.restarts
    )];
    let Some(usage) = &reading.usage else { return lines };
    let throttled = usage.throttled_usec.filter(|usec| *usec > 0);
    lines.push(format!(
        "processor time {:.1}s{}{}, network {}, block devices {}",
        usage.cpu_usec as f64 / 1e6,
        usage.cpu_limit.map_or_else(String::new, |cpus| format!(" (limit {cpus})")),
        throttled.map_or_else(String::new, |usec| format!(", throttled {:.1}s", usec as f64 / 1e6)),
        transfer(usage.network),
        transfer(usage.block),
    ));
    let killed = usage.memory.oom_kills.filter(|kills| *kills > 0);
    let full = [("memory", usage.pressure.memory), ("block devices", usage.pressure.io)];
    let full = full.iter().filter_map(|(name, pressure)| Some((name, pressure.as_ref()?.full?.avg10)));
    let mut notes: Vec<String> =
        full.map(|(name, share)| format!("stood still for {name} {share:.1}% of 10s")).collect();
    notes.extend(killed.map(|kills| format!("{kills} processes killed: out of memory")));
    notes.extend(
        usage
            .block_rate
            .map(|rate| format!("block devices {}/s in, {}/s out", size(rate.inward), size(rate.outward))),
    );
    lines.push(notes.join(", "));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::tests::reading;

    fn view() -> View {
        let mut view = View::new("shop".into(), 1 << 30, false);
        let dead = Reading {
            usage: None,
            state: State::Exited,
            exit_code: Some(137),
            oom_killed: true,
            ..reading("db", 0.0, 0)
        };
        view.update(vec![reading("web", 1.0, 60 << 20), dead, reading("cache", 50.0, 16 << 20)]);
        view
    }

    fn order(view: &View) -> Vec<&str> {
        view.sorted().iter().map(|reading| reading.service.as_str()).collect()
    }

    #[test]
    fn keys_of_a_terminal() {
        use Order::{Cpu, Memory};
        let pressed = keys(b"\x1b[A\x1bOBc\x1b[15~m\x1b[1;5Cq");
        assert_eq!(pressed, [Key::Up, Key::Down, Key::Sort(Cpu), Key::Sort(Memory), Key::Quit]);
        assert_eq!(keys(b"\x1b"), [Key::Quit]);
        assert_eq!(keys(b"\x03"), [Key::Quit]);
        assert_eq!(keys("xé\x1b[".as_bytes()), []);
    }

    #[test]
    fn the_selection_stays_with_its_service() {
        let mut view = view();
        assert_eq!(order(&view), ["web", "db", "cache"]);
        view.press(Key::Down);
        view.press(Key::Down);
        assert_eq!(view.selected.as_deref(), Some("db"));
        view.press(Key::Sort(Order::Cpu));
        assert_eq!(order(&view), ["cache", "web", "db"]);
        assert_eq!(view.selected.as_deref(), Some("db"));
        view.press(Key::Down);
        assert_eq!(view.selected.as_deref(), Some("db"), "it is the last");
        view.press(Key::Sort(Order::Network));
        assert_eq!(order(&view), ["web", "cache", "db"]);
    }

    #[test]
    fn every_size_of_terminal() {
        for color in [false, true] {
            let mut view = View { color, ..view() };
            view.press(Key::Down);
            view.press(Key::Down);
            for columns in [1, 20, 80, 300] {
                for rows in [1, 4, 11, 24, 60] {
                    let lines = view.lines((columns, rows));
                    assert!(lines.len() <= rows, "{columns} x {rows}: {lines:?}");
                    for line in &lines {
                        let plain = line.replace("\x1b[0m", "");
                        let plain = plain.split_once('m').filter(|_| plain.starts_with('\x1b'));
                        let width = plain.map_or(line.chars().count(), |(_, text)| text.chars().count());
                        assert!(width <= columns, "{columns} x {rows}: {line}");
                    }
                }
            }
            let screen = view.lines((120, 24)).join("\n");
            assert!(
                screen.contains("exited (137, out of memory)") && screen.contains("[#########-]"),
                "{screen}"
            );
            assert!(screen.contains("> db") && screen.contains("db: image x"), "{screen}");
            assert_eq!(screen.contains('\x1b'), color);
        }
        // One row of services: the selected one is scrolled into it.
        let mut view = view();
        view.press(Key::Up);
        view.press(Key::Down);
        let lines = view.lines((80, AROUND + 1));
        assert!(lines.iter().any(|line| line.starts_with("> db")), "{lines:?}");
        assert_eq!(lines.len(), AROUND + 1);
    }

    #[test]
    fn a_snapshot_has_all_services() {
        let mut view = view();
        let readings = view.readings.clone();
        let text = view.snapshot(&readings);
        assert!(text.starts_with(
            "stack shop: 2 of 3 services run, processor 51.0%, memory 76MiB of 1GiB\n\nSERVICE*"
        ));
        assert_eq!(text.lines().count(), 6);
    }
}
