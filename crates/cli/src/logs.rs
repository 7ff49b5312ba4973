//! What services wrote: `logs`, and the stream of a foreground `up`.

mod kept;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use clap::Args;
use regex::Regex;
use stack::client::Client;
use stack::control::{Command, Line, Notice};

use crate::moment::{Moment, moment};
use crate::output::{self, Failure, Output, visible};
use crate::session::Session;

/// Colours of the services, in turn (SGR).
const COLORS: [&str; 10] = ["36", "33", "32", "35", "34", "36;1", "33;1", "32;1", "35;1", "34;1"];

/// How many lines are read before they are printed.
const BATCH: usize = 1000;

/// Prints lines as compose does: `service  | text`.
#[derive(Debug)]
pub(crate) struct Printer {
    output: Output,
    /// Service names in the order of their colours.
    services: Vec<String>,
    prefix: bool,
    timestamps: bool,
}

impl Printer {
    pub(crate) fn new(output: Output, services: Vec<String>) -> Self {
        Self { output, services, prefix: true, timestamps: false }
    }

    /// Whether lines begin with the service's name.
    pub(crate) fn with_prefix(self, prefix: bool) -> Self {
        Self { prefix, ..self }
    }

    /// Whether lines show when they were written.
    pub(crate) fn with_timestamps(self, timestamps: bool) -> Self {
        Self { timestamps, ..self }
    }

    /// Prints lines in one write.
    pub(crate) fn print<'a>(&mut self, lines: impl IntoIterator<Item = &'a Line>) -> Result<(), Failure> {
        let mut text = String::new();
        for line in lines {
            self.format(line, &mut text);
        }
        output::print(&text)
    }

    fn format(&mut self, line: &Line, out: &mut String) {
        if self.prefix {
            let index = match self.services.iter().position(|name| *name == line.service) {
                Some(index) => index,
                None => {
                    self.services.push(line.service.clone());
                    self.services.len() - 1
                }
            };
            let width = self.services.iter().map(String::len).max().unwrap_or(0);
            let prefix = format!("{:width$}  |", line.service);
            out.push_str(&self.output.paint(COLORS[index % COLORS.len()], &prefix));
            out.push(' ');
        }
        if self.timestamps {
            out.push_str(&timestamp(line.time));
            out.push(' ');
        }
        match self.output.terminal {
            // A service that forgets to reset its colours must not colour the next one's lines.
            true if line.text.contains('\x1b') => {
                out.push_str(&visible(&line.text));
                out.push_str("\x1b[0m");
            }
            true => out.push_str(&visible(&line.text)),
            false => out.push_str(&line.text),
        }
        out.push('\n');
    }
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on with what they write from now on
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines of each service, of those that the other options leave
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = tail, hide_default_value = true)]
    pub(crate) tail: Tail,
    /// Only lines since then: a time, seconds since 1970, or how long ago (`10m`)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) since: Option<Moment>,
    /// Only lines until then; with -f it ends then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) until: Option<Moment>,
    /// Only lines that a regular expression matches
    #[arg(long, value_name = "REGEX")]
    pub(crate) grep: Option<Regex>,
    /// Show when each line was written
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Leave out the services' names
    #[arg(long)]
    pub(crate) no_log_prefix: bool,
    /// No colours, as with `--color never`
    #[arg(long)]
    pub(crate) no_color: bool,
    /// Which of a service's containers, from 1 [default: all]
    #[arg(long, value_name = "N", requires = "services", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) index: Option<u16>,
    /// Services, or single containers such as `web-2` [default: all]
    pub(crate) services: Vec<String>,
}

impl Logs {
    /// Names of the services and containers whose logs are shown.
    fn names(&self) -> Vec<String> {
        let numbered = |name: &String| match self.index {
            Some(index) => format!("{name}-{index}"),
            None => name.clone(),
        };
        self.services.iter().map(numbered).collect()
    }

    /// Whether a line is asked for.
    fn wants(&self, line: &Line) -> bool {
        self.since.is_none_or(|since| line.time >= since.0)
            && self.until.is_none_or(|until| line.time <= until.0)
            && self.grep.as_ref().is_none_or(|grep| grep.is_match(&line.text))
    }
}

/// `--tail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail(usize);

fn tail(text: &str) -> Result<Tail, String> {
    if text == "all" {
        return Ok(Tail(usize::MAX));
    }
    text.parse().map(Tail).map_err(|_| "a number of lines, or `all`".to_owned())
}

/// Carries out `logs`.
pub(crate) fn logs(session: &Session, arguments: &Logs) -> Result<u8, Failure> {
    let names = arguments.names();
    let (name, client) = session.connect()?;
    let end = arguments.until.map(Moment::instant);
    let goes_on = arguments.follow && end.is_none_or(|end| end > Instant::now());
    // Before the files are read, so that no line falls in between.
    let client = match client.filter(|_| goes_on) {
        Some(client) => {
            client.send(&Command::Follow(names.clone()), &[])?;
            Some(client)
        }
        None => None,
    };
    let directory = session.paths.stack(&name);
    if !directory.exists() && client.is_none() {
        return Err(stack::RemoteError::message(format!("stack `{name}` has no logs"))
            .or_hint("logs are kept while a stack is up; `inception-run up -d` starts it")
            .into());
    }
    let logged = kept::logged(&directory)?;
    let names: Vec<String> = names.iter().map(|name| own_name(session, &logged, name)).collect();
    let services = asked_for(&names, logged)?;
    let output = Output { color_out: session.output.color_out && !arguments.no_color, ..session.output };
    let mut printer = Printer::new(output, services.clone())
        .with_prefix(!arguments.no_log_prefix)
        .with_timestamps(arguments.timestamps);
    // When the last line was written that was read of each.
    let seen: BTreeMap<String, Cell<u64>> = services.into_iter().map(|name| (name, Cell::new(0))).collect();
    print_kept(&mut printer, &directory, arguments, &seen)?;
    match client {
        Some(client) => follow(&mut printer, client, arguments, &seen, end),
        None => Ok(0),
    }
}

/// A name as the logs have it: a `container_name` is another one.
fn own_name(session: &Session, logged: &[String], name: &str) -> String {
    match logged.iter().any(|log| is_meant(log, name)) {
        true => name.to_owned(),
        false => session.container_called(name).unwrap_or_else(|| name.to_owned()),
    }
}

/// The containers that `names` mean, of those that have a log; all when there are none.
fn asked_for(names: &[String], known: Vec<String>) -> Result<Vec<String>, Failure> {
    let means_one = |name: &&String| known.iter().any(|log| is_meant(log, name));
    if let Some(unknown) = names.iter().find(|name| !means_one(name)) {
        let nearest = stack::diagnostic::nearest(unknown, known.iter().map(String::as_str));
        let known = known.join(", ");
        let mut error = stack::RemoteError::message(format!("there is no log of a service `{unknown}`"))
            .or_hint(match nearest {
                Some(nearest) => format!("did you mean `{nearest}`? There are logs of: {known}"),
                None if known.is_empty() => "there are no logs yet".to_owned(),
                None => format!("there are logs of: {known}"),
            });
        error.exit_code = 2;
        return Err(error.into());
    }
    let is_asked_for = |log: &String| names.is_empty() || names.iter().any(|name| is_meant(log, name));
    Ok(known.into_iter().filter(is_asked_for).collect())
}

/// Prints what is in the files.
fn print_kept(
    printer: &mut Printer,
    directory: &Path,
    arguments: &Logs,
    seen: &BTreeMap<String, Cell<u64>>,
) -> Result<(), Failure> {
    let mut logs: Vec<Box<dyn Iterator<Item = Result<Line, Failure>>>> = Vec::new();
    for (service, seen) in seen {
        let lines = kept::Lines::open(directory, service)?
            .inspect(|line| seen.set(line.as_ref().map_or(0, |line| line.time)))
            .filter(|line| line.as_ref().map_or(true, |line| arguments.wants(line)));
        match arguments.tail.0 {
            usize::MAX => logs.push(Box::new(lines)),
            count => logs.push(Box::new(kept::last(count, lines)?.into_iter().map(Ok))),
        }
    }
    let mut lines = kept::Merged::new(logs);
    loop {
        let some = lines.by_ref().take(BATCH).collect::<Result<Vec<Line>, Failure>>()?;
        if some.is_empty() {
            return Ok(());
        }
        printer.print(&some)?;
    }
}

/// Prints what comes, until the end of the stack, Ctrl-C, or the end of the time that is asked for.
fn follow(
    printer: &mut Printer,
    mut client: Client,
    arguments: &Logs,
    seen: &BTreeMap<String, Cell<u64>>,
    end: Option<Instant>,
) -> Result<u8, Failure> {
    // Lines that come before its answer may be in the files too, and what was read of those is not shown again. Later
    // ones are new, whatever time they bear: the clock may have been set back.
    client.send(&Command::Status, &[])?;
    let mut anew = false;
    loop {
        if !output::wait_for(&client, end)? {
            return Ok(0);
        }
        let Some(notice) = client.next(None)? else { return Ok(0) };
        match notice {
            Notice::Log(line) => {
                let is_new = anew || seen.get(&line.service).is_none_or(|seen| line.time > seen.get());
                if is_new && arguments.wants(&line) {
                    printer.print([&line])?;
                }
            }
            Notice::Status(_) => anew = true,
            Notice::Failed(error) => return Err(error.into()),
            Notice::Warning(text) => printer.output.warning(&text),
            _ => {}
        }
    }
}

/// Whether `name` means the container `log`: by its own name, its service's, or as the first of its service. Those
/// that are gone are meant too, so there is nobody to ask which service a container is of.
pub(crate) fn is_meant(log: &str, name: &str) -> bool {
    let number = |of: &str, name: &str| name.strip_prefix(of)?.strip_prefix('-')?.parse::<u16>().ok();
    log == name || number(name, log).is_some_and(|slot| slot > 1) || number(log, name) == Some(1)
}

/// Bytes of each log that `recent` looks at.
const RECENT: u64 = 64 << 10;

/// The last lines of all containers' logs. What cannot be read is left out: they are what one sees before anything new
/// comes.
pub(crate) fn recent(directory: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    for name in kept::logged(directory).unwrap_or_default() {
        let Ok(mut file) = File::open(directory.join(format!("{name}.log"))) else { continue };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if file.seek(SeekFrom::Start(length.saturating_sub(RECENT))).is_err() {
            continue;
        }
        // The first may be half a line, which is none.
        let read = BufReader::new(file.take(RECENT)).split(b'\n').map_while(Result::ok);
        lines.extend(read.filter_map(|line| serde_json::from_slice::<Line>(&line).ok()));
    }
    lines.sort_by_key(|line| line.time);
    lines
}

/// Nanoseconds since 1970 as RFC 3339 in UTC.
pub(crate) fn timestamp(nanoseconds: u64) -> String {
    humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(nanoseconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stack::control::Stream;

    pub(super) fn line(service: &str, time: u64, text: &str) -> Line {
        Line { service: service.into(), stream: Stream::Stdout, time, text: text.into() }
    }

    #[test]
    fn lines_are_prefixed_and_aligned() {
        let output = Output { color_out: false, color_err: false, terminal: true };
        let mut printer = Printer::new(output, vec!["nginx".into(), "db".into()]);
        let mut text = String::new();
        printer.format(&line("nginx", 0, "hello"), &mut text);
        printer.format(&line("db", 0, "a\x1b[2Jb"), &mut text);
        assert_eq!(text, "nginx  | hello\ndb     | a^[[2Jb\x1b[0m\n");
    }

    #[test]
    fn a_service_s_name_means_all_of_its_containers() {
        let meant = |name| {
            ["web", "web-2", "web-10", "web-x", "webby", "db"]
                .into_iter()
                .filter(move |log| is_meant(log, name))
        };
        assert!(meant("web").eq(["web", "web-2", "web-10"]));
        assert!(meant("web-2").eq(["web-2"]) && meant("web-1").eq(["web"]));
        assert_eq!(meant("web/../db").count() + meant("we").count(), 0);
    }
}
