//! `lab`: ten exercises about what a container is. Their texts are the pages of `docs/labs`, and everything that is
//! run, expected or checked is read from there.

mod catalogue;
mod expected;
mod place;
mod rehearsal;
mod shell;
mod text;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use stack::RemoteError;

use crate::args::Format;
use crate::output::{self, Failure};
use crate::session::Session;
use catalogue::{LABS, Lab};
use place::Place;
use text::{Block, Language};

/// `lab`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Number of the lab [default: all are listed]
    number: Option<u8>,
    /// What to do
    #[arg(default_value = "start")]
    step: Step,
    /// Language of the text [default: that of $LC_ALL, $LC_MESSAGES or $LANG]
    #[arg(long, value_name = "LANGUAGE")]
    lang: Option<Language>,
    /// Show the answers and solutions too
    #[arg(long)]
    answers: bool,
    /// Form of the list: table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
}

/// What to do with a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Make `lab-N` with the files of the lab, unless it is there, and show the text
    Start,
    /// Look at what you have done
    Check,
    /// Take the lab's stack down and delete its directory
    Clean,
    /// Run every command of the text in a temporary directory, and compare what is seen with the text
    Rehearse,
}

/// `lab`. The exit code of `check` and `rehearse` is 1 when something is not as it should be.
pub(crate) fn lab(session: &Session, arguments: &Arguments) -> Result<u8, Failure> {
    let language = arguments.lang.unwrap_or_else(Language::of_environment);
    let Some(number) = arguments.number else { return list(language, arguments.format) };
    let lab = LABS.iter().find(|lab| lab.number == number).ok_or_else(|| {
        Failure::usage(format!("there is no lab {number}"), format!("the labs are 1 to {}", LABS.len()))
    })?;
    match arguments.step {
        Step::Start => start(session, lab, language, arguments.answers),
        Step::Check => check(lab, language),
        Step::Clean => clean(session, lab),
        Step::Rehearse => rehearsal::rehearse(session, lab),
    }
}

fn list(language: Language, format: Format) -> Result<u8, Failure> {
    #[derive(serde::Serialize)]
    struct Row {
        number: u8,
        title: &'static str,
        directory: Option<PathBuf>,
    }
    let row = |lab: &Lab| {
        let directory = Place::find(lab).map(|place| place.directory);
        Row { number: lab.number, title: text::title(lab.page(language)), directory }
    };
    let rows: Vec<Row> = LABS.iter().map(row).collect();
    match format {
        Format::Json => output::json(&rows)?,
        Format::Table => {
            let cells = |row: &Row| {
                let directory = row.directory.as_ref().map(|path| path.display().to_string());
                vec![
                    row.number.to_string(),
                    // Its number stands beside it.
                    row.title.split_once(": ").map_or(row.title, |(_, title)| title).to_owned(),
                    directory.unwrap_or_else(|| "-".to_owned()),
                ]
            };
            let rows: Vec<_> = rows.iter().map(cells).collect();
            output::print(&output::table(&["LAB", "TITLE", "PREPARED IN"], &rows))?;
        }
    }
    Ok(0)
}

fn start(session: &Session, lab: &Lab, language: Language, answers: bool) -> Result<u8, Failure> {
    let (place, made) = match Place::find(lab) {
        Some(place) => (place, false),
        None => (Place::make(lab)?, true),
    };
    output::print(&text::readable(lab.page(language), answers))?;
    if is_root() {
        session.output.warning("the labs are for an ordinary user: root will see other ids and less refused");
    }
    let word = if made { "prepared" } else { "already prepared" };
    session.output.progress(&format!("lab {}: {word} in {}", lab.number, place.directory.display()));
    Ok(0)
}

/// Runs the commands of the page's `check` block, each with the sentence above it.
fn check(lab: &Lab, language: Language) -> Result<u8, Failure> {
    let place = found(lab)?;
    let blocks = text::blocks(lab.page(language));
    let mut failed = false;
    for check in blocks.iter().filter_map(Block::checks).flatten() {
        let passed = shell::succeeds(&check.commands, &place.directory)?;
        failed |= !passed;
        output::print(&format!("{}  {}\n", if passed { "ok     " } else { "not yet" }, check.sentence))?;
    }
    Ok(u8::from(failed))
}

fn clean(session: &Session, lab: &Lab) -> Result<u8, Failure> {
    let place = found(lab)?;
    place.take_down(session, lab)?;
    place.delete()?;
    session.output.progress(&format!("lab {}: {} is gone", lab.number, place.directory.display()));
    Ok(0)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The directory in which the lab was prepared.
fn found(lab: &Lab) -> Result<Place, Failure> {
    Place::find(lab).ok_or_else(|| {
        RemoteError::message(format!("lab {} is not prepared here", lab.number))
            .or_hint(format!(
                "`inception-run lab {}` prepares it; then come back to this directory",
                lab.number
            ))
            .into()
    })
}
