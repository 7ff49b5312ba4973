//! What the headers of answers say. Whatever they hold, it is a value or none.

use std::time::{Duration, SystemTime};

/// How long a `Retry-After` header wants us to wait: seconds, or a time. That is compared with the answer's own `Date`,
/// because our clock may differ; with `now` where it has none.
pub(super) fn retry_after(value: &str, date: Option<&str>, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if value.bytes().all(|b| b.is_ascii_digit()) {
        return value.parse().ok().map(Duration::from_secs);
    }
    let sent = date.and_then(http_date).unwrap_or(now);
    // What is over is no reason to wait.
    http_date(value).map(|time| time.duration_since(sent).unwrap_or_default())
}

/// A time in the form that servers have to write: `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let [_, day, month, year, time, "GMT"] = text.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
        return None;
    };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

/// Where the part begins that a `Content-Range` header names: `bytes 5-9/10`.
pub(super) fn range_start(text: &str) -> Option<u64> {
    text.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
        assert_eq!(range_start("items 5-9/10"), None);
    }

    #[test]
    fn waits_are_seconds_or_end_at_a_time_of_the_servers_clock() {
        let now = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 784_111_777);
        let wait = |value: &str, date: Option<&str>| retry_after(value, date, now).map(|wait| wait.as_secs());
        assert_eq!(wait(" 120 ", None), Some(120));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:07 GMT", None), Some(30));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:00 GMT", None), Some(0));
        let date = Some("Tue, 01 Dec 2026 23:59:50 GMT");
        assert_eq!(wait("Wed, 02 Dec 2026 00:00:20 GMT", date), Some(30));
        for wrong in
            ["", "soon", "-5", "99999999999999999999", "Sun, 31 Foo 1994 08:49:37 GMT", "Sun, 6 Nov 1994"]
        {
            assert_eq!(wait(wrong, None), None, "{wrong}");
        }
    }
}
