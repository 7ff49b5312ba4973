//! Messages: one line each, on standard error and in the file that `--log` names, in the forms of runc, which engines
//! parse.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

use super::args::{Level, Log, LogFormat};
use crate::logs::timestamp;
use crate::output::{Failure, visible};

/// A failure in one line: what was done, and its causes, outermost first.
pub(super) fn line(failure: &Failure) -> String {
    let text = match failure {
        Failure::Other(error) => match &error.hint {
            Some(hint) => format!("{error} ({hint})"),
            None => error.to_string(),
        },
        Failure::File(error) => error.to_string(),
        Failure::Unread => "write to standard output: Broken pipe".to_owned(),
    };
    visible(&text).replace(['\n', '\t'], " ")
}

/// Says why the command failed.
pub(super) fn failure(log: &Log, failure: &Failure) {
    say(log, Level::Error, &line(failure));
}

/// Says what does not make the command fail.
pub(super) fn warning(log: &Log, text: &str) {
    say(log, Level::Warning, &visible(text).replace('\n', " "));
}

fn say(log: &Log, level: Level, text: &str) {
    let name = level_name(level);
    let mut on_stderr = format!("{name}: {text}\n");
    if let Some(path) = &log.log {
        let entry = entry(log.log_format, name, &in_words_of_engines(text), now());
        let written = open(path).and_then(|mut file| file.write_all(entry.as_bytes()));
        if let Err(error) = written {
            let _ignored = writeln!(on_stderr, "warning: write {}: {error}", path.display());
        }
    }
    // Nowhere left to say that it could not be said.
    io::stderr().write_all(on_stderr.as_bytes()).ok();
}

/// Docker's command tells a program that is not there (exit code 127) and one that may not be executed (126) from all
/// else by the words that Go has for these errors, which begin with a small letter.
fn in_words_of_engines(text: &str) -> String {
    text.replace("No such file or directory (os error 2)", "no such file or directory")
        .replace("Permission denied (os error 13)", "permission denied")
}

/// The words of runc.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// A line of the log.
fn entry(format: LogFormat, level: &str, text: &str, time: u64) -> String {
    // Whole seconds: 20 characters of RFC 3339 and `Z`.
    let time = format!("{}Z", &timestamp(time)[..19]);
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    match format {
        LogFormat::Json => {
            format!("{{\"level\":\"{level}\",\"msg\":{},\"time\":\"{time}\"}}\n", quoted(text))
        }
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={}\n", quoted(text)),
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o644).open(path)
}

/// Turns the messages of the crates below on, if they are wanted.
///
/// # Errors
/// When the log cannot be opened.
pub(super) fn trace(log: &Log) -> Result<(), Failure> {
    let level = if log.debug { Level::Debug } else { log.log_level.unwrap_or(Level::Warning) };
    let most = match level {
        // Without being asked we are silent: engines take what is on standard error for the program's.
        _ if log.log_level.is_none() && !log.debug => return Ok(()),
        Level::Error => tracing::Level::ERROR,
        Level::Warning => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
        Level::Trace => tracing::Level::TRACE,
    };
    let target: Box<dyn Write + Send> = match &log.log {
        Some(path) => {
            Box::new(open(path).map_err(Failure::system(&format!("open the log {}", path.display())))?)
        }
        None => Box::new(io::stderr()),
    };
    let messages = Messages { most, format: log.log_format, target: Mutex::new(target) };
    // There is no other subscriber yet.
    tracing::subscriber::set_global_default(messages).ok();
    Ok(())
}

/// Events of the crates below as lines of the log; spans are not shown.
struct Messages {
    most: tracing::Level,
    format: LogFormat,
    target: Mutex<Box<dyn Write + Send>>,
}

impl Subscriber for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.most
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warning",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "trace",
        };
        let text = format!("{}{}", text.message, text.fields);
        let entry = entry(self.format, level, &visible(&text).replace('\n', " "), now());
        if let Ok(mut target) = self.target.lock() {
            // A full disk must not stop a container.
            target.write_all(entry.as_bytes()).ok();
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ignored = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stack::RemoteError;

    #[test]
    fn a_failure_is_one_line() {
        let error =
            RemoteError::message("No such file\nor directory \x1b[2J").context("open `a`").or_hint("make it");
        assert_eq!(line(&Failure::Other(error)), "open `a`: No such file or directory ^[[2J (make it)");
    }

    #[test]
    fn engines_know_the_words() {
        let missing = format!("execute `/a`: {}", io::Error::from_raw_os_error(2));
        assert_eq!(in_words_of_engines(&missing), "execute `/a`: no such file or directory");
        let forbidden = format!("execute `/a`: {}", io::Error::from_raw_os_error(13));
        assert_eq!(in_words_of_engines(&forbidden), "execute `/a`: permission denied");
    }

    #[test]
    fn lines_of_the_log() {
        let entry = |format| entry(format, "error", "a \"b\"\\", 951_782_400_000_000_007);
        assert_eq!(
            entry(LogFormat::Json),
            "{\"level\":\"error\",\"msg\":\"a \\\"b\\\"\\\\\",\"time\":\"2000-02-29T00:00:00Z\"}\n"
        );
        assert_eq!(
            entry(LogFormat::Text),
            "time=\"2000-02-29T00:00:00Z\" level=error msg=\"a \\\"b\\\"\\\\\"\n"
        );
    }
}
