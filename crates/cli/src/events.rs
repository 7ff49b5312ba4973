//! `events`: what happens in a running stack, a line each.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use stack::control::{Command, Notice};
use stack::event::{Event, What};

use crate::args::{Events, Format};
use crate::logs::timestamp;
use crate::output::{self, Failure, visible};
use crate::session::Session;

/// `events`.
pub(crate) fn events(session: &Session, arguments: &Events) -> Result<u8, Failure> {
    let mut client = session.running()?;
    let since = match &arguments.since {
        Some(since) => Some(since.0),
        // Without either there would be nothing to show.
        None if arguments.recent || arguments.no_follow => Some(0),
        None => None,
    };
    let services = arguments.services.clone();
    client.send(&Command::Events { services, since, follow: !arguments.no_follow }, &[])?;
    // Ends with the stack, or by Ctrl-C.
    while let Some(notice) = client.next(None)? {
        match notice {
            Notice::Event(event) => output::print(&line(&event, arguments.format)?)?,
            Notice::Warning(text) => session.output.warning(&text),
            Notice::Failed(error) => return Err(error.into()),
            Notice::Done => break,
            _ => {}
        }
    }
    Ok(0)
}

fn line(event: &Event, format: Format) -> Result<String, Failure> {
    let time = timestamp(event.time);
    Ok(match format {
        Format::Table => {
            // A health check's output has lines; an event is one.
            let text = visible(&event.what.to_string()).replace('\n', "\\n");
            // Who it concerns, or nobody in particular.
            format!("{time} {} {text}\n", event.container.as_deref().unwrap_or("-"))
        }
        Format::Json => {
            let row = Row { time, container: event.container.as_deref(), what: &event.what };
            let text = serde_json::to_string(&row).map_err(Failure::system("write JSON"))?;
            format!("{text}\n")
        }
    })
}

/// One event for programs: a flat object.
#[derive(serde::Serialize)]
struct Row<'a> {
    time: String,
    container: Option<&'a str>,
    #[serde(flatten)]
    what: &'a What,
}

/// `--since`: a moment, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Since(u64);

/// Reads a moment (RFC 3339) or how long ago it was.
///
/// # Errors
/// What is expected instead.
pub(crate) fn since(text: &str) -> Result<Since, String> {
    let moment = match humantime::parse_rfc3339_weak(text) {
        Ok(moment) => moment,
        Err(_) => humantime::parse_duration(text)
            .ok()
            .and_then(|ago| SystemTime::now().checked_sub(ago))
            .ok_or("a time such as `2026-01-31T12:00:00Z`, or how long ago, such as `10m`")?,
    };
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Ok(Since(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let what = What::EgressRefused {
            protocol: "tcp".into(),
            destination: "192.0.2.1:443".parse().unwrap(),
            name: Some("example.org".into()),
        };
        let event = Event { time: 1_500_000_000, container: Some("web".into()), what };
        assert_eq!(
            line(&event, Format::Table).unwrap(),
            "1970-01-01T00:00:01.500000000Z web egress refused: tcp 192.0.2.1:443 (example.org)\n"
        );
        assert_eq!(
            line(&event, Format::Json).unwrap(),
            "{\"time\":\"1970-01-01T00:00:01.500000000Z\",\"container\":\"web\",\"event\":\"egress-refused\",\
             \"protocol\":\"tcp\",\"destination\":\"192.0.2.1:443\",\"name\":\"example.org\"}\n"
        );
        let what = What::Unhealthy { output: "no\x1b[2J\nyes\n".into() };
        let event = Event { time: 0, container: None, what };
        assert_eq!(
            line(&event, Format::Table).unwrap(),
            "1970-01-01T00:00:00.000000000Z - unhealthy: no^[[2J\\nyes\n"
        );
    }

    #[test]
    fn a_moment_is_a_time_or_an_age() {
        assert_eq!(since("1970-01-01T00:00:02Z"), Ok(Since(2_000_000_000)));
        let now = since("0s").unwrap();
        assert!(since("10m").unwrap().0 <= now.0 - 600_000_000_000 + 1_000_000_000);
        assert!(since("yesterday").unwrap_err().contains("10m"));
    }
}
