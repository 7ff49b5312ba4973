//! Compose projects as people write them for Docker (`tests/compose`), each with what must hold of it in its
//! `expect.toml`: every one is read, planned and converted, and those whose images can be made here are built, brought
//! up, asked, and taken down.
//!
//! `INCEPTION_BASE_DIR` and `INCEPTION_FIXTURES` name the directories of base tarballs; what needs another is skipped.
//! `INCEPTION_RUN` is the command to test, `INCEPTION_REPO` the repository, `INCEPTION_TEST_DIR` a directory for what
//! the test makes (short; /tmp). `INCEPTION_PROJECTS` names the projects to test, with blanks between them.
#![allow(clippy::unwrap_used)]

#[path = "compose/expected.rs"]
mod expected;
#[path = "integration/harness.rs"]
#[allow(dead_code)]
mod harness;
#[path = "compose/project.rs"]
mod project;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use expected::Expected;
use project::{Project, Room};

/// The repository's files.
fn repository() -> PathBuf {
    std::env::var_os("INCEPTION_REPO").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The directories of `tests/compose`.
fn all() -> Vec<(String, PathBuf)> {
    let wanted = std::env::var("INCEPTION_PROJECTS").ok();
    let is_wanted =
        |name: &str| wanted.as_ref().is_none_or(|wanted| wanted.split_whitespace().any(|word| word == name));
    let entries =
        fs::read_dir(repository().join("tests/compose")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries
        .filter(|path| path.join("expect.toml").is_file())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| is_wanted(name))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no project");
    found
}

/// Tests each project, and says of all that fail.
fn each(test: impl Fn(&Room, &Project)) {
    let room = Room::new();
    let mut failed = BTreeSet::new();
    for (name, path) in all() {
        let project = Project::copy(&room, &name, &path, Expected::read(&path.join("expect.toml")));
        let test = std::panic::AssertUnwindSafe(|| test(&room, &project));
        if std::panic::catch_unwind(test).is_err() {
            failed.insert(name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn every_project_is_read_planned_and_converted() {
    each(|_, project| {
        project.is_read();
        project.choose_ports();
        project.is_planned();
        project.is_converted();
    });
}

#[test]
fn projects_run() {
    each(|room, project| {
        if let Some(reason) = project.cannot_run() {
            return harness::skipped(&project.name, &reason);
        }
        project.choose_ports();
        let started = std::time::Instant::now();
        project.builds(room);
        let built = started.elapsed();
        if !project.expected.stand_ins {
            // Whatever fails in between, nothing of it may be left for the next project.
            let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| project.runs()));
            project.ends();
            asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        println!("{}: built in {:.1?}, all in {:.1?}", project.name, built, started.elapsed());
    });
}

/// `command`, run to its end within the time that a build may take.
#[track_caller]
fn said(command: &mut Command) -> harness::Ended {
    use std::process::Stdio;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{:?} is needed: {error}", command.get_program()));
    harness::finish_within(project::LONGEST, child)
}
