//! `ls`: the stacks of this user that run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use stack::client::{self, Client};
use stack::control::{Command, Notice, State, Status};

use crate::args::Format;
use crate::listing::{state_word, status};
use crate::output::{self, Failure};
use crate::session::{Session, answer};

/// `ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
    /// Without effect: of a stack that does not run there is nothing to list
    #[arg(short, long)]
    all: bool,
    /// Only those with name=TEXT in their name
    #[arg(long, value_name = "name=TEXT", value_parser = filter)]
    filter: Vec<String>,
}

fn filter(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("name", part)) => Ok(part.to_owned()),
        _ => Err("write `name=TEXT`".to_owned()),
    }
}

/// A stack that runs.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// As compose has it: `running(2), exited(1)`.
    status: String,
    files: Vec<PathBuf>,
}

/// `ls`.
pub(crate) fn ls(session: &Session, arguments: &Ls) -> Result<u8, Failure> {
    let mut rows = Vec::new();
    let is_meant = |name: &String| {
        arguments.filter.is_empty() || arguments.filter.iter().any(|part| name.contains(part))
    };
    for name in session.paths.stacks()?.into_iter().filter(is_meant) {
        // One that is going, or that was killed, is none.
        let Some(mut client) = client::connect(&session.paths, &name)? else { continue };
        rows.extend(row(name, &mut client).ok());
    }
    match (arguments.quiet, arguments.format) {
        (true, _) => output::print(&rows.iter().map(|row| format!("{}\n", row.name)).collect::<String>())?,
        (false, Format::Json) => output::json(&rows)?,
        (false, Format::Table) => {
            let cells = |row: &Row| {
                let files: Vec<String> = row.files.iter().map(|file| file.display().to_string()).collect();
                vec![row.name.clone(), row.status.clone(), files.join(",")]
            };
            let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
            output::print(&output::table(&["NAME", "STATUS", "FILES"], &cells))?;
        }
    }
    Ok(0)
}

fn row(name: String, client: &mut Client) -> Result<Row, Failure> {
    client.send(&Command::Status, &[])?;
    let status = counts(&status(client)?);
    client.send(&Command::Stack, &[])?;
    loop {
        if let Notice::Stack(stack) = answer(client)? {
            return Ok(Row { name, status, files: stack.files });
        }
    }
}

/// How many containers there are in each state.
fn counts(rows: &[Status]) -> String {
    let order = |state: State| usize::from(state != State::Running);
    let mut counts: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    for row in rows {
        *counts.entry((order(row.state), state_word(row.state))).or_default() += 1;
    }
    let texts: Vec<String> = counts.iter().map(|((_, word), count)| format!("{word}({count})")).collect();
    texts.join(", ")
}
