//! Slow and lossy links on purpose, for teaching and tests: what is wanted, and how queueing disciplines of the
//! kernel (tc-netem(8), tc-tbf(8)) are told so. Pure; [`crate::link::Namespaces::shape`] has the effect.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::netlink::attributes::Attributes;

/// What happens to packets on a container's links, in each direction: a round trip has the delay twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Every packet is late by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// By how much the delay varies, up and down; it then reorders packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Duration>,
    /// How many packets vanish, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// The kind of a queueing discipline, and its options, the value of `TCA_OPTIONS`.
pub(crate) type Discipline = (&'static str, Vec<u8>);

/// Packets that netem holds at most. `tc` has 1000, which a delay of 10 ms fills at 1 Gbit/s.
const NETEM_LIMIT: u32 = 10_000;
/// `TCA_NETEM_*`.
const NETEM_RATE: u16 = 6;
const NETEM_RATE64: u16 = 8;
const NETEM_LATENCY64: u16 = 10;
const NETEM_JITTER64: u16 = 11;
/// `TCA_TBF_*`.
const TBF_PARAMETERS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel then computes times by itself instead of looking them up in a table of ours.
const LINK_LAYER_ETHERNET: u8 = 1;

impl Shape {
    /// Why this cannot be.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        if *self == Self::default() {
            Some("no delay, loss or rate is given")
        } else if self.jitter.is_some() && self.delay.is_none() {
            Some("jitter needs a delay that it varies")
        } else if self.jitter > self.delay {
            Some("the jitter is longer than the delay")
        } else if self.loss.is_some_and(|loss| !(0.0..=100.0).contains(&loss)) {
            Some("the loss is not between 0 and 100 percent")
        } else if self.rate.is_some_and(|rate| rate < 8) {
            Some("the rate is less than a byte per second")
        } else {
            None
        }
    }

    /// The disciplines that can do it on a link with an MTU of `mtu` bytes, the better one first.
    pub(crate) fn disciplines(&self, mtu: u32) -> Vec<Discipline> {
        let netem = ("netem", self.netem());
        match *self {
            Self { delay: None, jitter: None, loss: None, rate: Some(rate) } => {
                vec![netem, ("tbf", token_bucket(rate, mtu))]
            }
            _ => vec![netem],
        }
    }

    /// `struct tc_netem_qopt`, then attributes.
    fn netem(&self) -> Vec<u8> {
        let loss = self.loss.map_or(0, |percent| (percent / 100.0 * f64::from(u32::MAX)).round() as u32);
        // Latency, limit, loss, gap, duplicate, jitter; the two times are in the attributes, in nanoseconds.
        let options = [0, NETEM_LIMIT, loss, 0, 0, 0];
        let mut attributes = Attributes::new();
        for (kind, time) in [(NETEM_LATENCY64, self.delay), (NETEM_JITTER64, self.jitter)] {
            if let Some(time) = time {
                let nanoseconds = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
                attributes = attributes.bytes(kind, &nanoseconds.to_ne_bytes());
            }
        }
        if let Some(rate) = self.rate {
            let bytes = rate / 8;
            // Rate, overhead of a packet, cell size, overhead of a cell.
            let rate = [saturated(bytes), 0, 0, 0];
            attributes =
                attributes.bytes(NETEM_RATE, &words(&rate)).bytes(NETEM_RATE64, &bytes.to_ne_bytes());
        }
        [words(&options), attributes.as_bytes().to_vec()].concat()
    }
}

fn token_bucket(rate: u64, mtu: u32) -> Vec<u8> {
    let bytes = rate / 8;
    // What may pass at once: 10 ms' worth, and a packet with its Ethernet header at the least, which would never
    // pass otherwise. What may wait: 100 ms more, and some packets.
    let packet = mtu.saturating_add(14);
    let burst = saturated(bytes / 100).max(packet);
    let limit = saturated(bytes / 10).max(packet.saturating_mul(10)).saturating_add(burst);
    // `struct tc_tbf_qopt`: two `struct tc_ratespec` (rate, peak rate), limit, buffer, MTU.
    let mut parameters = vec![0, LINK_LAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(saturated(bytes).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(words(&[limit, 0, 0]));
    let attributes =
        Attributes::new().bytes(TBF_PARAMETERS, &parameters).bytes(TBF_RATE64, &bytes.to_ne_bytes());
    attributes.bytes(TBF_BURST, &burst.to_ne_bytes()).as_bytes().to_vec()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        delay: Some(Duration::from_millis(100)),
        jitter: Some(Duration::from_millis(10)),
        loss: Some(1.0),
        rate: Some(1_000_000),
    };

    #[test]
    fn contradictions() {
        assert_eq!(SHAPE.contradiction(), None);
        let wrong = [
            Shape::default(),
            Shape { delay: None, ..SHAPE },
            Shape { jitter: Some(Duration::from_millis(101)), ..SHAPE },
            Shape { loss: Some(-1.0), ..SHAPE },
            Shape { loss: Some(f64::NAN), ..SHAPE },
            Shape { rate: Some(0), ..SHAPE },
        ];
        for shape in wrong {
            assert!(shape.contradiction().is_some(), "{shape:?}");
        }
    }

    #[test]
    fn only_a_rate_can_be_had_without_netem() {
        let kinds = |shape: Shape| shape.disciplines(1500).into_iter().map(|one| one.0).collect::<Vec<_>>();
        assert_eq!(kinds(SHAPE), ["netem"]);
        assert_eq!(kinds(Shape { rate: Some(8), ..Shape::default() }), ["netem", "tbf"]);
    }

    /// Loss and rate as `tc qdisc replace dev LINK root netem limit 10000 loss 1% rate 1mbit` encodes them.
    #[test]
    #[cfg(target_endian = "little")]
    fn netem_as_tc_encodes_it() {
        let expected = [
            &[0, 0, 0, 0, 0x10, 0x27, 0, 0, 0x29, 0x5c, 0x8f, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[12, 0, 10, 0, 0, 0xe1, 0xf5, 0x05, 0, 0, 0, 0, 12, 0, 11, 0, 0x80, 0x96, 0x98, 0, 0, 0, 0, 0],
            &[20, 0, 6, 0, 0x48, 0xe8, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[12, 0, 8, 0, 0x48, 0xe8, 0x01, 0, 0, 0, 0, 0],
        ];
        assert_eq!(SHAPE.netem(), expected.concat());
    }

    /// As `tc qdisc replace dev LINK root tbf rate 8mbit`, but for the rate's table.
    #[test]
    #[cfg(target_endian = "little")]
    fn token_bucket_as_tc_encodes_it() {
        let expected = [
            &[40, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x40, 0x42, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &(100_000u32 + 10_000).to_le_bytes(),
            &[0; 8],
            &[12, 0, 4, 0, 0x40, 0x42, 0x0f, 0, 0, 0, 0, 0, 8, 0, 6, 0, 0x10, 0x27, 0, 0],
        ];
        assert_eq!(token_bucket(8_000_000, 1500), expected.concat());
        // A slow link carries whole packets all the same.
        let slow = token_bucket(8, 9000);
        assert_eq!(slow[slow.len() - 4..], 9014u32.to_le_bytes());
    }
}
