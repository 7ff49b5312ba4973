//! Faults that are put on the network of services on purpose: what `net` asks for.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A change that `net` makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Delay packets; no time is the end of that.
    Delay {
        /// How long, each way.
        time: Duration,
        /// By how much it varies.
        jitter: Duration,
    },
    /// Lose that many of a hundred packets; none is the end of that.
    Loss(f64),
    /// Pass that many bits a second, each way.
    Rate(u64),
    /// Pass nothing from and to these services, or to anybody when there is none.
    Partition(Vec<String>),
    /// Take all faults away.
    Heal,
}

/// What is wrong with the network of one container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// How long packets are delayed, each way.
    pub delay: Duration,
    /// By how much that varies.
    pub jitter: Duration,
    /// How many of a hundred packets are lost.
    pub loss: f64,
    /// Bits a second, each way.
    pub rate: Option<u64>,
    /// Whom it is cut off from; from everybody when the list is empty.
    pub partition: Option<Vec<String>>,
}

/// A container with its fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Faulty {
    /// Name of the container.
    pub container: String,
    /// What is wrong with it; nothing when it was healed.
    #[serde(flatten)]
    pub fault: Fault,
}

impl Fault {
    /// This fault after `change`. Delay, loss, rate and partitions add up; each alone replaces what it was before.
    #[must_use]
    pub fn after(mut self, change: &Change) -> Self {
        match change {
            Change::Delay { time, jitter } => (self.delay, self.jitter) = (*time, *jitter),
            Change::Loss(percent) => self.loss = *percent,
            Change::Rate(bits) => self.rate = Some(*bits),
            Change::Partition(from) => {
                let before = self.partition.take();
                let everybody = from.is_empty() || before.as_ref().is_some_and(Vec::is_empty);
                let mut all = before.unwrap_or_default();
                all.extend(from.iter().cloned());
                all.sort();
                all.dedup();
                self.partition = Some(if everybody { Vec::new() } else { all });
            }
            Change::Heal => self = Self::default(),
        }
        self
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match (self.delay.is_zero(), self.jitter.is_zero()) {
            (true, true) => {}
            (_, true) => parts.push(format!("delay {:?}", self.delay)),
            (_, false) => parts.push(format!("delay {:?} ± {:?}", self.delay, self.jitter)),
        }
        if self.loss > 0.0 {
            parts.push(format!("loss {}%", self.loss));
        }
        parts.extend(self.rate.map(|rate| format!("rate {}", rate_text(rate))));
        match self.partition.as_deref() {
            None => {}
            Some([]) => parts.push("cut off from everybody".to_owned()),
            Some(from) => parts.push(format!("cut off from {}", from.join(", "))),
        }
        if parts.is_empty() { f.write_str("healed") } else { f.write_str(&parts.join(", ")) }
    }
}

/// Bits a second as `tc` writes them.
fn rate_text(rate: u64) -> String {
    let units = [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1000, "kbit")];
    match units.into_iter().find(|(unit, _)| rate.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", rate / unit),
        None => format!("{rate}bit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_add_up_and_heal() {
        let millis = Duration::from_millis;
        let mut fault = Fault::default();
        for change in [
            Change::Delay { time: millis(100), jitter: millis(10) },
            Change::Loss(2.5),
            Change::Rate(1_500_000),
            Change::Rate(500_000),
            Change::Partition(vec!["db".into()]),
            Change::Partition(vec!["cache".into(), "db".into()]),
        ] {
            fault = fault.after(&change);
        }
        assert_eq!(fault.to_string(), "delay 100ms ± 10ms, loss 2.5%, rate 500kbit, cut off from cache, db");
        fault = fault.after(&Change::Partition(Vec::new())).after(&Change::Partition(vec!["db".into()]));
        assert_eq!(fault.partition, Some(Vec::new()), "everybody is more than one");
        let gone = fault.clone().after(&Change::Delay { time: millis(0), jitter: millis(0) });
        assert_eq!(gone.to_string(), "loss 2.5%, rate 500kbit, cut off from everybody");
        fault = fault.after(&Change::Heal);
        assert!(fault.is_none() && fault.to_string() == "healed");
        let rates: Vec<String> = [1_000_000_000, 1_500_000, 999].into_iter().map(rate_text).collect();
        assert_eq!(rates, ["1gbit", "1500kbit", "999bit"]);
    }
}
