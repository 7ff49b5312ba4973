//! `net`: faults on the network of services.

use std::time::Duration;

use stack::control::{Command, Notice};
use stack::fault::{Change, Faulty, Shape};

use crate::args::{Format, Net};
use crate::output::{self, Failure};
use crate::session::{Session, answer};

/// No delay is longer: more than that is a partition.
const LONGEST: Duration = Duration::from_secs(60);
/// No rate is lower: a full packet would take a quarter of a minute.
const SLOWEST: u64 = 1000;

/// `net`.
pub(crate) fn net(session: &Session, net: Net) -> Result<u8, Failure> {
    let (services, change) = match net {
        Net::Show { format } => return show(session, format),
        Net::Heal { services } => (services, Change::Heal),
        Net::Delay { service, time, jitter } => {
            if jitter > Some(time) {
                return Err(Failure::usage(
                    format!("a delay of {time:?} cannot vary by {:?}", jitter.unwrap_or_default()),
                    "the second time is how much the first one varies, up and down",
                ));
            }
            (vec![service], Change::Shape(Shape { delay: Some(time), jitter, ..Shape::default() }))
        }
        Net::Loss { service, percent } => {
            (vec![service], Change::Shape(Shape { loss: Some(percent), ..Shape::default() }))
        }
        Net::Rate { service, rate } => {
            (vec![service], Change::Shape(Shape { rate: Some(rate), ..Shape::default() }))
        }
        Net::Partition { service, from } => (vec![service], Change::Partition(from)),
    };
    for faulty in faults(session, &Command::Net { services, change })? {
        session.output.progress(&format!("{}: {}", faulty.container, faulty.fault));
    }
    Ok(0)
}

fn show(session: &Session, format: Format) -> Result<u8, Failure> {
    let faults = faults(session, &Command::Faults)?;
    match format {
        Format::Json => output::json(&faults.iter().map(Row::new).collect::<Vec<_>>())?,
        Format::Table => {
            let row = |faulty: &Faulty| vec![faulty.container.clone(), faulty.fault.to_string()];
            let rows: Vec<Vec<String>> = faults.iter().map(row).collect();
            output::print(&output::table(&["CONTAINER", "FAULT"], &rows))?;
        }
    }
    Ok(0)
}

/// A container with its fault, for programs.
#[derive(serde::Serialize)]
struct Row<'a> {
    container: &'a str,
    delay_milliseconds: Option<f64>,
    jitter_milliseconds: Option<f64>,
    loss_percent: Option<f64>,
    rate_bits: Option<u64>,
    /// Whom it is cut off from; nobody in particular but everybody when it is empty.
    partition: Option<&'a [String]>,
}

impl<'a> Row<'a> {
    fn new(faulty: &'a Faulty) -> Self {
        let Shape { delay, jitter, loss, rate } = faulty.fault.shape;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Self {
            container: &faulty.container,
            delay_milliseconds: delay.map(milliseconds),
            jitter_milliseconds: jitter.map(milliseconds),
            loss_percent: loss,
            rate_bits: rate,
            partition: faulty.fault.partition.as_deref(),
        }
    }
}

/// Sends a command that is answered with faults.
fn faults(session: &Session, command: &Command) -> Result<Vec<Faulty>, Failure> {
    let mut client = session.running()?;
    client.send(command, &[])?;
    let mut faults = Vec::new();
    loop {
        match answer(&mut client)? {
            Notice::Faults(told) => faults = told,
            Notice::Done => return Ok(faults),
            notice => session.progress(&notice),
        }
    }
}

/// Reads a time that packets can be delayed by.
///
/// # Errors
/// What is expected instead.
pub(crate) fn pause(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("more than nothing; `net heal` ends a delay".to_owned()),
        Ok(time) if time <= LONGEST => Ok(time),
        Ok(_) => Err(format!("at most {}s", LONGEST.as_secs())),
        Err(_) => Err("a time such as `100ms` or `1s`".to_owned()),
    }
}

/// Reads how many of a hundred packets are lost.
///
/// # Errors
/// What is expected instead.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').unwrap_or(text).parse();
    percent
        .ok()
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .ok_or_else(|| "a number above 0 and up to 100, such as `5%`; `net heal` ends a loss".to_owned())
}

/// Reads bits a second, as `tc` writes them.
///
/// # Errors
/// What is expected instead.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let factor = match unit {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        // A number alone could be bits, bytes or packets.
        _ => return Err("a number with `bit`, `kbit`, `mbit` or `gbit`, such as `1mbit`".to_owned()),
    };
    let bits = number.parse::<f64>().map_err(|_| format!("`{number}` is not a number"))? * factor;
    // More than any link has: `tc` counts bytes in 64 bits, and this cannot overflow.
    if bits > 1e12 {
        return Err("at most 1000gbit".to_owned());
    }
    match bits as u64 {
        bits if bits < SLOWEST => Err("at least 1kbit; `net partition` lets nothing through".to_owned()),
        bits => Ok(bits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_shares_and_rates_are_read() {
        assert_eq!(pause("100ms"), Ok(Duration::from_millis(100)));
        assert!(
            pause("0ms").is_err() && pause("100").is_err() && pause("2m").is_err() && pause("-1s").is_err()
        );
        assert_eq!(percent("5%"), Ok(5.0));
        assert_eq!(percent("0.25"), Ok(0.25));
        for wrong in ["101", "0", "-1", "NaN", "inf", "%", "many"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
        assert_eq!(rate("1mbit"), Ok(1_000_000));
        assert_eq!(rate("1.5Mbit"), Ok(1_500_000));
        assert_eq!(rate("500kbit"), Ok(500_000));
        for wrong in ["1", "mbit", "0mbit", "1mb", "1..5mbit", "99999gbit", "-1mbit", ""] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
