//! `doctor`.

use stack::doctor::{self, Status};

use crate::args::Format;
use crate::output::{self, Failure};
use crate::session::Session;

/// Prints what stands in the way; exit code 1 when something must be fixed.
pub(crate) fn doctor(session: &Session, format: Format) -> Result<u8, Failure> {
    let checks = doctor::run(&session.paths);
    match format {
        Format::Json => output::json(&checks)?,
        Format::Table => {
            let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
            let mut text = String::new();
            for check in &checks {
                let (word, color) = match check.status {
                    Status::Ok => ("ok     ", "32"),
                    Status::Warning => ("warning", "1;33"),
                    Status::Error => ("error  ", "1;31"),
                };
                let word = session.output.paint(color, word);
                text.push_str(&format!("{word}  {:width$}  {}\n", check.name, check.found));
                for (word, more) in [("costs", &check.cost), ("fix", &check.fix)] {
                    if let Some(more) = more {
                        text.push_str(&format!("         {:width$}  {word}: {more}\n", ""));
                    }
                }
            }
            output::print(&text)?;
        }
    }
    Ok(u8::from(checks.iter().any(|check| check.status == Status::Error)))
}
