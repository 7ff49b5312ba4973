//! `volumes`: the volumes of the stack, whether it runs or not.

use clap::Args;
use serde::Serialize;
use stack::store;

use crate::args::Format;
use crate::output::{self, Failure};
use crate::session::Session;

/// `volumes`.
#[derive(Debug, Args)]
pub(crate) struct Volumes {
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
}

/// A volume.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// As compose has it; there is no other one.
    driver: &'static str,
    size: u64,
}

/// Carries out `volumes`. Volumes that stacks share are none of this one's.
pub(crate) fn volumes(session: &Session, arguments: &Volumes) -> Result<u8, Failure> {
    let prefix = format!("{}/", session.stack_name()?);
    let volumes = store::report(&session.paths)?.volumes;
    let own = |files: store::Files| {
        let name = files.name.strip_prefix(&prefix)?.to_owned();
        Some(Row { name, driver: "local", size: files.size })
    };
    let rows: Vec<Row> = volumes.into_iter().filter_map(own).collect();
    match (arguments.quiet, arguments.format) {
        (true, _) => output::print(&rows.iter().map(|row| format!("{}\n", row.name)).collect::<String>())?,
        (false, Format::Json) => output::json(&rows)?,
        (false, Format::Table) => {
            let cells = |row: &Row| vec![row.name.clone(), row.driver.to_owned(), output::size(row.size)];
            let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
            output::print(&output::table(&["VOLUME", "DRIVER", "SIZE"], &cells))?;
        }
    }
    Ok(0)
}
