//! Moments as users write them: `--since` and `--until`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    /// The same on the clock that nobody sets; now, if it has passed.
    pub(crate) fn instant(self) -> Instant {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Instant::now() + Duration::from_nanos(self.0).saturating_sub(now)
    }
}

/// Reads a moment: RFC 3339, a day, seconds since 1970, or how long ago it was.
///
/// # Errors
/// What is expected instead.
pub(crate) fn moment(text: &str) -> Result<Moment, String> {
    let whole = humantime::parse_rfc3339_weak(text).or_else(|_| with_zone(text));
    if let Ok(time) = whole {
        return Ok(since_epoch(time));
    }
    if let Some(time) = unix(text) {
        return Ok(Moment(time));
    }
    humantime::parse_duration(text)
        .ok()
        .and_then(|ago| SystemTime::now().checked_sub(ago))
        .map(since_epoch)
        .ok_or_else(|| {
            "a time such as `2026-01-31T12:00:00Z`, seconds since 1970, or how long ago, such as `10m`"
                .to_owned()
        })
}

/// A day, which begins at midnight, or a time whose zone is not UTC: `2026-01-31T12:00:00+09:00`.
fn with_zone(text: &str) -> Result<SystemTime, humantime::TimestampError> {
    if text.len() == "2026-01-31".len() {
        return humantime::parse_rfc3339_weak(&format!("{text}T00:00:00"));
    }
    let Some((time, sign, zone)) = text
        .len()
        .checked_sub("+09:00".len())
        .filter(|at| text.is_char_boundary(*at))
        .map(|at| text.split_at(at))
        .and_then(|(time, zone)| zone.split_at_checked(1).map(|(sign, zone)| (time, sign, zone)))
    else {
        return Err(humantime::TimestampError::InvalidFormat);
    };
    let number = |text: &str| text.parse::<u64>().ok();
    let offset = zone.split_once(':').and_then(|(h, m)| Some(number(h)? * 3600 + number(m)? * 60));
    let utc = humantime::parse_rfc3339_weak(time)?;
    let offset = offset.map(Duration::from_secs).ok_or(humantime::TimestampError::InvalidFormat)?;
    let moved = match sign {
        "+" => utc.checked_sub(offset),
        "-" => utc.checked_add(offset),
        _ => None,
    };
    moved.ok_or(humantime::TimestampError::OutOfRange)
}

/// `1769860800`, also with a fraction.
fn unix(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !digits(seconds) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanoseconds: u64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

fn since_epoch(time: SystemTime) -> Moment {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_an_age() {
        for text in
            ["1970-01-02T00:00:02Z", "1970-01-02T09:00:02+09:00", "1970-01-01T23:00:02-01:00", "86402"]
        {
            assert_eq!(moment(text), Ok(Moment(86_402_000_000_000)), "{text}");
        }
        assert_eq!(moment("1970-01-02"), Ok(Moment(86_400_000_000_000)));
        assert_eq!(moment("1.5"), Ok(Moment(1_500_000_000)));
        assert_eq!(moment("1.000000001"), Ok(Moment(1_000_000_001)));
        let now = moment("0s").unwrap();
        let ago = moment("1h10m").unwrap();
        assert!(ago.0 <= now.0 - 4_200_000_000_000 + 1_000_000_000);
        for bad in ["", "yesterday", "10x", "-5", "2026-13-01", "+09:00", "é:00:00"] {
            assert!(moment(bad).unwrap_err().contains("10m"), "{bad}");
        }
    }
}
