//! `events`: what happens in a running stack, a line each.

use std::time::Instant;

use clap::Args;
use stack::control::{Command, Notice};
use stack::event::{Event, KINDS, What};

use crate::args::Format;
use crate::logs::timestamp;
use crate::moment::{Moment, moment};
use crate::output::{self, Failure, escaped, visible};
use crate::session::Session;

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Show the last events first, up to 1000
    #[arg(long)]
    pub(crate) recent: bool,
    /// Show those since then first: a time, seconds since 1970, or how long ago (`10m`)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) since: Option<Moment>,
    /// End then, or show what there is until then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) until: Option<Moment>,
    /// Only those: event=KIND, service=NAME, container=NAME; of several with one key, any
    #[arg(long, value_name = "KEY=VALUE", value_parser = filter)]
    pub(crate) filter: Vec<Filter>,
    /// Show the last events and no more
    #[arg(long)]
    pub(crate) no_follow: bool,
    /// table or json (an object a line)
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    pub(crate) format: Format,
    /// As `--format json`
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Services [default: all]
    pub(crate) services: Vec<String>,
}

/// What an event must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    /// Of this kind.
    Event(String),
    /// Of this service, or of a container of it.
    Service(String),
}

fn filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text.split_once('=').ok_or("a filter has a value: `event=exited`")?;
    match key {
        "event" if KINDS.contains(&value) => Ok(Filter::Event(value.to_owned())),
        "event" => Err(match stack::diagnostic::nearest(value, KINDS) {
            Some(near) => format!("no event is called `{value}`; did you mean `{near}`?"),
            None => format!("no event is called `{value}`; there are {}", KINDS.join(", ")),
        }),
        // A container's name is its service's, perhaps with a number.
        "service" | "container" => Ok(Filter::Service(value.to_owned())),
        other => Err(format!("`{other}` is none of event, service, container")),
    }
}

impl Events {
    /// Of which services and containers.
    fn of(&self) -> Vec<String> {
        let filtered = self.filter.iter().filter_map(|filter| match filter {
            Filter::Service(name) => Some(name),
            Filter::Event(_) => None,
        });
        self.services.iter().chain(filtered).cloned().collect()
    }

    /// Whether an event is asked for.
    fn wants(&self, event: &Event) -> bool {
        let mut kinds = self.filter.iter().filter_map(|filter| match filter {
            Filter::Event(kind) => Some(kind),
            Filter::Service(_) => None,
        });
        let any = kinds.clone().next().is_none();
        (any || kinds.any(|kind| kind == event.what.kind()))
            && self.until.is_none_or(|until| event.time <= until.0)
    }
}

/// Carries out `events`.
pub(crate) fn events(session: &Session, arguments: &Events) -> Result<u8, Failure> {
    let format = if arguments.json { Format::Json } else { arguments.format };
    let mut client = session.running()?;
    let end = arguments.until.map(Moment::instant).filter(|end| *end > Instant::now());
    let goes_on = !arguments.no_follow && (arguments.until.is_none() || end.is_some());
    let since = match &arguments.since {
        Some(since) => Some(since.0),
        // Without either there would be nothing to show.
        None if arguments.recent || !goes_on => Some(0),
        None => None,
    };
    client.send(&Command::Events { services: arguments.of(), since, follow: goes_on }, &[])?;
    loop {
        // Ends with the stack, by Ctrl-C, or with the time that is asked for.
        if !output::wait_for(&client, end)? {
            break;
        }
        let Some(notice) = client.next(None)? else { break };
        match notice {
            Notice::Event(event) if arguments.wants(&event) => {
                output::print(&line(&event, format)?)?;
            }
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
            format!("{}\n", escaped(&text))
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
    fn a_filter_has_a_key_and_a_known_value() {
        assert_eq!(filter("event=exited"), Ok(Filter::Event("exited".into())));
        assert_eq!(filter("service=web"), Ok(Filter::Service("web".into())));
        assert!(filter("event=exitd").unwrap_err().contains("`exited`"));
        assert!(filter("event=zzz").unwrap_err().contains("netd-restarted"));
        assert!(filter("image=x").unwrap_err().contains("none of event, service, container"));
        assert!(filter("exited").unwrap_err().contains("event=exited"));
    }
}
