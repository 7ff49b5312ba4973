//! `-v` and `RUST_LOG`.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::args::LogFormat;

/// Turns messages on as asked. `RUST_LOG` says more than `-v` can, so it wins.
pub(crate) fn init(verbose: u8, format: LogFormat) {
    let level = match verbose {
        0 => None,
        1 => Some("info"),
        2 => Some("debug"),
        _ => Some("trace"),
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::new(text),
        _ => match level {
            Some(level) => EnvFilter::new(level),
            // Most runs: nothing is set up that would cost time.
            None => return,
        },
    };
    let subscriber = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second subscriber cannot be; there is no first.
    match format {
        LogFormat::Human => subscriber.try_init().ok(),
        LogFormat::Json => subscriber.json().try_init().ok(),
    };
}

/// For our other processes, which have no options.
pub(crate) fn init_from_environment() {
    init(0, LogFormat::Human);
}
