//! What there is: `state`, `list` and `ps`.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use container::oci::{Error, Record, Runtime, Status};
use serde::Serialize;

use super::args::Log;
use super::report;
use crate::args::Format;
use crate::output::{Failure, json, print, table};

/// A container's state as the specification has it ("State" in `runtime.md`), and what runc adds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    oci_version: String,
    id: String,
    /// 0 without a process.
    pid: i32,
    status: &'static str,
    bundle: String,
    rootfs: String,
    created: String,
    /// The name of who created it, or its number.
    owner: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl State {
    fn of(id: &str, record: Option<Record>, status: Status) -> Self {
        let Some(record) = record else {
            // Between its name and its process there is nothing to tell.
            return Self {
                oci_version: container::oci::SPEC_VERSION.to_owned(),
                id: id.to_owned(),
                pid: 0,
                status: status.name(),
                bundle: String::new(),
                rootfs: String::new(),
                created: String::new(),
                owner: String::new(),
                annotations: BTreeMap::new(),
            };
        };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Self {
            oci_version: record.oci_version,
            id: record.id,
            pid: if status == Status::Stopped { 0 } else { record.pid },
            status: status.name(),
            bundle: text(&record.bundle),
            rootfs: text(&record.rootfs),
            created: record.created,
            owner: user_name(record.owner),
            annotations: record.annotations,
        }
    }
}

/// The name of a user of the host. Read from the file, for a static binary cannot ask anything else.
fn user_name(uid: u32) -> String {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let number = uid.to_string();
    let name = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    });
    name.unwrap_or(number)
}

/// `state`.
///
/// # Errors
/// When there is no such container, or its state cannot be read.
pub(super) fn state(runtime: &Runtime, id: &str) -> Result<(), Failure> {
    let (record, status) = runtime.state(id)?;
    json(&State::of(id, record, status))
}

/// `list`. An entry that cannot be read costs a warning and not the others.
///
/// # Errors
/// When the directory cannot be read.
pub(super) fn list(runtime: &Runtime, format: Format, quiet: bool, log: &Log) -> Result<(), Failure> {
    let ids = runtime.ids()?;
    if quiet {
        return print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>());
    }
    let mut states = Vec::new();
    for id in &ids {
        match runtime.state(id) {
            Ok((record, status)) => states.push(State::of(id, record, status)),
            // Deleted since.
            Err(Error::NotFound(_)) => {}
            Err(error) => report::warning(log, &format!("container `{id}`: {}", report::line(&error.into()))),
        }
    }
    match format {
        // A line each time, as runc has it: there are programs that read it so.
        Format::Json => line(&states),
        Format::Table => {
            let row = |state: State| {
                vec![
                    state.id,
                    state.pid.to_string(),
                    state.status.to_owned(),
                    state.bundle,
                    state.created,
                    state.owner,
                ]
            };
            let rows: Vec<_> = states.into_iter().map(row).collect();
            print(&table(&["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], &rows))
        }
    }
}

/// `ps`. Its table is what ps(1) prints, as its options are that program's.
///
/// # Errors
/// When there is no such container, no ps(1), or its table has no column with the numbers of processes.
pub(super) fn ps(runtime: &Runtime, format: Format, words: &[String]) -> Result<u8, Failure> {
    let (id, options) = words.split_first().ok_or_else(|| Failure::usage("no container", "ps ID"))?;
    let pids = runtime.processes(id)?;
    if format == Format::Json {
        line(&pids)?;
        return Ok(0);
    }
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let output = Command::new("ps")
        .args(options)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(Failure::system("run ps(1)"))?;
    if !output.status.success() {
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal));
        return Err(Failure::usage(
            format!("ps(1) failed with {}", code.unwrap_or(1)),
            "`--format json` needs no ps(1)",
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let kept = rows_of(&text, &pids)
        .ok_or_else(|| Failure::usage("no column PID in what ps(1) prints", "add `pid` to its options"))?;
    print(&kept)?;
    Ok(0)
}

fn line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(Failure::system("write JSON"))?;
    print(&format!("{text}\n"))
}

/// The head of a table of ps(1) and the rows of these processes; `None` without a column `PID`.
fn rows_of(text: &str, pids: &[i32]) -> Option<String> {
    let mut lines = text.lines();
    let head = lines.next()?;
    let column = head.split_whitespace().position(|word| word == "PID")?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Some(std::iter::once(head).chain(lines.filter(ours)).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_of_the_container_are_kept() {
        let text = "USER   PID  CMD\nroot     1  init\na       17  x 18\nb       18  y\n";
        assert_eq!(rows_of(text, &[17, 4]).unwrap(), "USER   PID  CMD\na       17  x 18\n");
        assert!(rows_of("CMD\nx\n", &[17]).is_none());
        assert_eq!((user_name(0).as_str(), user_name(4_000_000_000).as_str()), ("root", "4000000000"));
    }
}
