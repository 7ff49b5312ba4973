//! `version`.

use clap::Args;
use serde_json::json;

use crate::args::Format;
use crate::output::{self, Failure};

/// `version`.
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
    /// The number only
    #[arg(long)]
    short: bool,
}

/// `version`.
pub(crate) fn version(arguments: &Version) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match (arguments.short, arguments.format) {
        (true, _) => output::print(&format!("{version}\n"))?,
        (false, Format::Json) => output::json(&json!({ "version": version }))?,
        (false, Format::Table) => output::print(&format!("inception-run {version}\n"))?,
    }
    Ok(0)
}
