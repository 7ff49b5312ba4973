//! `-v` and `RUST_LOG`.
//!
//! The supervisor and its children find in the environment what was asked of the command; they write to
//! `supervisor.log` in the stack's runtime directory.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::args::LogFormat;
use crate::output::Failure;

/// What to show, as with every program that uses `tracing`.
const FILTER: &str = "RUST_LOG";
/// `--log-format` for the processes that have no options; set together with [`FILTER`].
const FORMAT: &str = "INCEPTION_LOG_FORMAT";

/// Turns messages on as asked. `RUST_LOG` says more than `-v` can, so it wins. To set a variable for the processes
/// that it starts, this one executes itself once more: changing the environment of a running process is not
/// safe, and few runs ask for this.
///
/// # Errors
/// When our own binary cannot be executed again.
pub(crate) fn init(
    verbose: u8,
    format: LogFormat,
    color: bool,
    arguments: &[OsString],
) -> Result<(), Failure> {
    let level = match verbose {
        0 => None,
        1 => Some("info"),
        2 => Some("debug"),
        _ => Some("trace"),
    };
    let filtered = std::env::var_os(FILTER).is_some_and(|filter| !filter.is_empty());
    let Some(level) = level.or(filtered.then_some("")) else { return Ok(()) };
    let word = match format {
        LogFormat::Human => "human",
        LogFormat::Json => "json",
    };
    if filtered && std::env::var_os(FORMAT).is_some_and(|value| value == word) {
        init_from_environment(color);
        return Ok(());
    }
    let mut again = Command::new("/proc/self/exe");
    again.args(arguments.iter().skip(1)).env(FORMAT, word);
    if let Some(name) = arguments.first() {
        again.arg0(name);
    }
    if !filtered {
        again.env(FILTER, level);
    }
    Err(Failure::system("execute this program again with its messages turned on")(again.exec()))
}

/// Turns messages on as the environment says.
pub(crate) fn init_from_environment(color: bool) {
    let Some(filter) = std::env::var(FILTER).ok().filter(|filter| !filter.is_empty()) else { return };
    // What cannot be written is let go. By default that is said on standard error, by a macro that panics if it cannot:
    // a full disk would end the supervisor.
    let subscriber = fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(color)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    // A second subscriber cannot be; there is no first.
    if std::env::var_os(FORMAT).is_some_and(|value| value == "json") {
        subscriber.json().try_init().ok();
    } else {
        subscriber.try_init().ok();
    }
}
