//! The log files of a stack's runtime directory, read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::iter::Peekable;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use stack::control::Line;

use crate::output::Failure;

/// Names of the containers that have a log.
pub(super) fn logged(directory: &Path) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = names(directory)?
        .into_iter()
        .filter_map(|name| name.strip_suffix(".log").map(str::to_owned))
        // The supervisor's own log and the events have no lines of a service.
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

fn names(directory: &Path) -> Result<Vec<String>, Failure> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Failure::system("read the stack's runtime directory"))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The lines of one log, the oldest first, out of all its files. A line that is being written at this moment, or is
/// none of ours, is left out.
#[derive(Debug)]
pub(super) struct Lines(VecDeque<(String, BufReader<File>)>);

impl Lines {
    /// Opens the files that there are.
    ///
    /// The newest is opened first. While that happens it may be renamed and another one begun: then it is met again
    /// under its new name, and is the same file.
    pub(super) fn open(directory: &Path, service: &str) -> Result<Self, Failure> {
        let mut files: VecDeque<(String, BufReader<File>)> = VecDeque::new();
        let mut met = Vec::new();
        for name in rotated(directory, service)? {
            let file = match File::open(directory.join(&name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other.map_err(Failure::system(&format!("open {name}")))?,
            };
            let inode = file.metadata().map_err(Failure::system(&format!("look at {name}")))?.ino();
            if !met.contains(&inode) {
                met.push(inode);
                files.push_front((name, BufReader::new(file)));
            }
        }
        Ok(Self(files))
    }
}

impl Iterator for Lines {
    type Item = Result<Line, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        loop {
            let (name, file) = self.0.front_mut()?;
            bytes.clear();
            match file.read_until(b'\n', &mut bytes) {
                Ok(0) => drop(self.0.pop_front()),
                Ok(_) => match serde_json::from_slice(&bytes) {
                    Ok(line) => return Some(Ok(line)),
                    Err(_) => continue,
                },
                Err(error) => {
                    let failure = Failure::system(&format!("read {name}"))(error);
                    self.0.clear();
                    return Some(Err(failure));
                }
            }
        }
    }
}

/// The files of a service's log, the newest first: the one without a number.
fn rotated(directory: &Path, service: &str) -> Result<Vec<String>, Failure> {
    let number = |name: &str| match name.strip_prefix(service)?.strip_prefix(".log")? {
        "" => Some(0),
        rest => rest.strip_prefix('.')?.parse::<u32>().ok(),
    };
    let names = names(directory)?.into_iter();
    let mut names: Vec<(u32, String)> = names.filter_map(|name| Some((number(&name)?, name))).collect();
    names.sort();
    Ok(names.into_iter().map(|(_, name)| name).collect())
}

/// The last of them.
pub(super) fn last(
    count: usize,
    lines: impl Iterator<Item = Result<Line, Failure>>,
) -> Result<VecDeque<Line>, Failure> {
    let mut kept = VecDeque::new();
    for line in lines {
        kept.push_back(line?);
        if kept.len() > count {
            kept.pop_front();
        }
    }
    Ok(kept)
}

/// The lines of several logs by their time. Those of one log stay in their order, also where its clock was set back.
pub(super) struct Merged<I: Iterator>(Vec<Peekable<I>>);

impl<I: Iterator> Merged<I> {
    pub(super) fn new(logs: Vec<I>) -> Self {
        Self(logs.into_iter().map(Iterator::peekable).collect())
    }
}

impl<I: Iterator<Item = Result<Line, Failure>>> Iterator for Merged<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        let time = |log: &mut Peekable<I>| log.peek().map(|line| line.as_ref().map_or(0, |line| line.time));
        let times = self.0.iter_mut().enumerate().filter_map(|(index, log)| Some((time(log)?, index)));
        let (_, first) = times.min()?;
        self.0[first].next()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::*;

    fn texts(lines: impl Iterator<Item = Result<Line, Failure>>) -> Vec<String> {
        lines.map(|line| line.unwrap().text).collect()
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
        let open = || Lines::open(directory.path(), "a").unwrap();
        assert_eq!(texts(open()), ["oldest", "old", "new"]);
        let two = last(2, open()).unwrap();
        assert!(two.iter().map(|line| &line.text).eq(["old", "new"]));
        assert_eq!(last(0, open()).unwrap().len(), 0);
        // A file that is met twice, because it was renamed meanwhile.
        std::fs::hard_link(path("a.log"), path("a.log.0")).unwrap();
        assert_eq!(texts(open()), ["oldest", "old", "new"]);
    }

    #[test]
    fn logs_are_merged_by_time_and_each_stays_in_its_order() {
        let log = |service: &str, times: &[u64]| {
            let lines = times.iter().map(|time| Ok(line(service, *time, &format!("{service}{time}"))));
            lines.collect::<Vec<_>>().into_iter()
        };
        // The clock of `b` was set back.
        let merged = Merged::new(vec![log("a", &[1, 4, 6]), log("b", &[2, 5, 3, 7]), log("c", &[])]);
        assert_eq!(texts(merged), ["a1", "b2", "a4", "b5", "b3", "a6", "b7"]);
    }
}
