//! What services wrote: `logs`, and the stream of a foreground `up`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use stack::control::{Command, Line, Notice};

use crate::args::Logs;
use crate::output::{self, Failure, Output, visible};
use crate::session::Session;

/// Colours of the services, in turn (SGR).
const COLORS: [&str; 10] = ["36", "33", "32", "35", "34", "36;1", "33;1", "32;1", "35;1", "34;1"];

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
pub(crate) fn logs(session: &Session, arguments: &Logs) -> Result<u8, Failure> {
    let (name, client) = session.connect()?;
    // Before the files are read, so that no line falls in between.
    let client = match client.filter(|_| arguments.follow) {
        Some(client) => {
            client.send(&Command::Follow(arguments.services.clone()), &[])?;
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
    let known = logged(&directory)?;
    let means_one = |name: &&String| known.iter().any(|log| is_meant(log, name));
    if let Some(unknown) = arguments.services.iter().find(|name| !means_one(name)) {
        let nearest = stack::diagnostic::nearest(unknown, known.iter().map(String::as_str));
        let known = known.join(", ");
        let mut error = stack::RemoteError::message(format!("there is no log of a service `{unknown}`"))
            .or_hint(match nearest {
                Some(nearest) => format!("did you mean `{nearest}`? There are logs of: {known}"),
                None => format!("there are logs of: {known}"),
            });
        error.exit_code = 2;
        return Err(error.into());
    }
    let is_asked_for = |log: &String| arguments.services.iter().any(|name| is_meant(log, name));
    let all = arguments.services.is_empty();
    let services: Vec<String> = known.into_iter().filter(|log| all || is_asked_for(log)).collect();
    let mut lines = Vec::new();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for service in &services {
        let mut read = read(&directory, service)?;
        if let Some(line) = read.last() {
            last.insert(service.clone(), line.time);
        }
        lines.extend(read.split_off(read.len().saturating_sub(arguments.tail.0)));
    }
    lines.sort_by_key(|line| line.time);
    let output = Output { color_out: session.output.color_out && !arguments.no_color, ..session.output };
    let mut printer = Printer::new(output, services)
        .with_prefix(!arguments.no_log_prefix)
        .with_timestamps(arguments.timestamps);
    printer.print(&lines)?;
    drop(lines);

    let Some(mut client) = client else { return Ok(0) };
    // Ends with the stack, or by Ctrl-C.
    while let Some(notice) = client.next(None)? {
        match notice {
            Notice::Log(line) if last.get(&line.service).is_none_or(|seen| line.time > *seen) => {
                printer.print([&line])?;
            }
            Notice::Failed(error) => return Err(error.into()),
            Notice::Warning(text) => session.output.warning(&text),
            _ => {}
        }
    }
    Ok(0)
}

/// Whether `name` means the container `log`: by its own name, its service's, or as the first of its service. Those
/// that are gone are meant too, so there is nobody to ask which service a container is of.
pub(crate) fn is_meant(log: &str, name: &str) -> bool {
    let number = |of: &str, name: &str| name.strip_prefix(of)?.strip_prefix('-')?.parse::<u16>().ok();
    log == name || number(name, log).is_some_and(|slot| slot > 1) || number(log, name) == Some(1)
}

/// Names of the containers that have a log.
fn logged(directory: &Path) -> Result<Vec<String>, Failure> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Failure::system("read the stack's runtime directory"))?,
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log").map(str::to_owned))
        // The supervisor's own log has no lines of a service.
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

/// The lines of a service, the rotated ones first. A line that is being written at this moment, or is none of
/// ours, is left out.
fn read(directory: &Path, service: &str) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    for name in rotated(directory, service)? {
        let file = match File::open(directory.join(&name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(Failure::system(&format!("open {name}")))?,
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(Failure::system(&format!("read {name}")))?;
            lines.extend(serde_json::from_slice::<Line>(&line).ok());
        }
    }
    Ok(lines)
}

/// Bytes of each log that `recent` looks at.
const RECENT: u64 = 64 << 10;

/// The last lines of all containers' logs. What cannot be read is left out: they are what one sees before anything new
/// comes.
pub(crate) fn recent(directory: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    for name in logged(directory).unwrap_or_default() {
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

/// The files of a service's log, the oldest first: those with the highest numbers.
fn rotated(directory: &Path, service: &str) -> Result<Vec<String>, Failure> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Failure::system("read the stack's runtime directory"))?,
    };
    let number = |name: &str| match name.strip_prefix(service)?.strip_prefix(".log")? {
        "" => Some(0),
        rest => rest.strip_prefix('.')?.parse::<u32>().ok(),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<(u32, String)> = names.filter_map(|name| Some((number(&name)?, name))).collect();
    names.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(names.into_iter().map(|(_, name)| name).collect())
}

/// Nanoseconds since 1970 as RFC 3339 in UTC.
pub(crate) fn timestamp(nanoseconds: u64) -> String {
    humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(nanoseconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stack::control::Stream;

    fn line(service: &str, time: u64, text: &str) -> Line {
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

    #[test]
    fn rotated_lines_come_first_and_half_a_line_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let json = |l: &Line| serde_json::to_string(l).unwrap();
        let path = |name| directory.path().join(name);
        std::fs::write(path("a.log.10"), format!("{}\n", json(&line("a", 0, "oldest")))).unwrap();
        std::fs::write(path("a.log.1"), format!("{}\n", json(&line("a", 1, "old")))).unwrap();
        std::fs::write(path("a.log"), format!("{}\n{{\"serv", json(&line("a", 2, "new")))).unwrap();
        std::fs::write(path(".supervisor.log"), "error: x\n").unwrap();
        assert_eq!(logged(directory.path()).unwrap(), ["a"]);
        let texts: Vec<String> = read(directory.path(), "a").unwrap().into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["oldest", "old", "new"]);
    }
}
