//! Faults that are put on the network of services on purpose: what `net` asks for.

use std::fmt;

pub use network::shape::Shape;
use serde::{Deserialize, Serialize};

/// A change that `net` makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Shape links like this; what it does not mention stays as it is.
    Shape(Shape),
    /// Pass nothing from and to these containers, or to anybody when there is none.
    Partition(Vec<String>),
    /// Take all faults away.
    Heal,
}

/// What is wrong with the network of one container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// What happens to its packets.
    pub shape: Shape,
    /// Whom it is cut off from; from everybody when the list is empty.
    pub partition: Option<Vec<String>>,
}

/// A container with its fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Faulty {
    /// Name of the container.
    pub container: String,
    /// What is wrong with it; nothing when it was healed.
    pub fault: Fault,
}

impl Fault {
    /// This fault after `change`: delay, loss, rate and partitions add up.
    #[must_use]
    pub fn after(self, change: &Change) -> Self {
        match change {
            Change::Shape(new) => {
                let old = self.shape;
                // A delay without jitter is one that does not vary any more.
                let jitter = if new.delay.is_some() { new.jitter } else { old.jitter };
                let shape = Shape {
                    delay: new.delay.or(old.delay),
                    jitter,
                    loss: new.loss.or(old.loss),
                    rate: new.rate.or(old.rate),
                };
                Self { shape, ..self }
            }
            Change::Partition(from) => {
                let everybody = from.is_empty() || self.partition.as_ref().is_some_and(Vec::is_empty);
                let mut all = self.partition.unwrap_or_default();
                all.extend(from.iter().cloned());
                all.sort();
                all.dedup();
                Self { partition: Some(if everybody { Vec::new() } else { all }), ..self }
            }
            Change::Heal => Self::default(),
        }
    }

    /// This fault after `container`, another one, was healed: nobody is cut off from it.
    #[must_use]
    pub fn without(mut self, container: &str) -> Self {
        self.partition = self.partition.and_then(|mut from| {
            let everybody = from.is_empty();
            from.retain(|name| name != container);
            (everybody || !from.is_empty()).then_some(from)
        });
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
        let Shape { delay, jitter, loss, rate } = self.shape;
        let mut parts = Vec::new();
        if let Some(delay) = delay {
            let jitter = jitter.map(|jitter| format!(" ± {jitter:?}")).unwrap_or_default();
            parts.push(format!("delay {delay:?}{jitter}"));
        }
        parts.extend(loss.map(|loss| format!("loss {loss}%")));
        parts.extend(rate.map(|rate| format!("rate {}", rate_text(rate))));
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn faults_add_up_and_heal() {
        let millis = |millis| Some(Duration::from_millis(millis));
        let shape = |delay, jitter, loss, rate| Change::Shape(Shape { delay, jitter, loss, rate });
        let mut fault = Fault::default();
        for change in [
            shape(millis(100), millis(10), None, None),
            shape(None, None, Some(2.5), None),
            shape(None, None, None, Some(1_500_000)),
            shape(None, None, None, Some(500_000)),
            Change::Partition(vec!["db".into()]),
            Change::Partition(vec!["cache".into(), "db".into()]),
        ] {
            fault = fault.after(&change);
        }
        assert_eq!(fault.to_string(), "delay 100ms ± 10ms, loss 2.5%, rate 500kbit, cut off from cache, db");
        fault = fault.after(&shape(millis(200), None, None, None));
        assert_eq!(fault.shape.jitter, None);
        fault = fault.after(&Change::Heal);
        assert!(fault.is_none() && fault.to_string() == "healed");
        let rates: Vec<String> = [1_000_000_000, 1_500_000, 999].into_iter().map(rate_text).collect();
        assert_eq!(rates, ["1gbit", "1500kbit", "999bit"]);
    }

    #[test]
    fn a_partition_has_two_ends() {
        let cut = |from: &[&str]| {
            Fault::default().after(&Change::Partition(from.iter().map(|name| (*name).to_owned()).collect()))
        };
        assert_eq!(cut(&["db", "cache"]).without("db"), cut(&["cache"]));
        assert!(cut(&["db"]).without("db").is_none(), "that is nobody, and not everybody");
        assert_eq!(cut(&[]).without("db"), cut(&[]));
        assert_eq!(cut(&[]).after(&Change::Partition(vec!["db".into()])), cut(&[]), "everybody is more");
    }
}
