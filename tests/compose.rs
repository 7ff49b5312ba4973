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
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

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

/// Copies of all projects.
fn copies(room: &Room) -> Vec<Project> {
    let expected = |path: &Path| Expected::read(&path.join("expect.toml"));
    all().iter().map(|(name, path)| Project::copy(room, name, path, expected(path))).collect()
}

/// The names of the projects of which `test` fails; `workers` are tested at a time.
fn failures(
    projects: &mut [Project],
    workers: usize,
    test: impl Fn(&mut Project) + Sync,
) -> BTreeSet<String> {
    let failed = Mutex::new(BTreeSet::new());
    let waiting = Mutex::new(projects.iter_mut());
    let next = || waiting.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(project) = next() {
                    if catch_unwind(AssertUnwindSafe(|| test(project))).is_err() {
                        failed.lock().unwrap().insert(project.name.clone());
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

#[test]
fn every_project_is_read_planned_and_converted() {
    let room = Room::new();
    let failed = failures(&mut copies(&room), 2, |project| {
        project.is_read();
        project.choose_ports();
        project.is_planned();
        project.is_converted();
    });
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn projects_run() {
    let room = Room::new();
    let mut projects = copies(&room);
    projects.retain(|project| match project.cannot_run() {
        Some(reason) => {
            harness::skipped(&project.name, &reason);
            false
        }
        None => true,
    });
    // What takes longest is to wait for packages.
    let mut failed = failures(&mut projects, 3, |project| {
        let started = Instant::now();
        project.builds(&room);
        println!("{}: built in {:.1?}", project.name, started.elapsed());
    });
    projects.retain(|project| !failed.contains(&project.name) && !project.expected.stand_ins);
    // Several have the same name, and so the same containers and images.
    failed.extend(failures(&mut projects, 1, |project| {
        let started = Instant::now();
        project.builds(&room);
        project.choose_ports();
        // Whatever fails in between, nothing of it may be left for the next project.
        let asked = catch_unwind(AssertUnwindSafe(|| project.runs()));
        project.ends();
        asked.unwrap_or_else(|panic| resume_unwind(panic));
        println!("{}: ran in {:.1?}", project.name, started.elapsed());
    }));
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// `command`, run to its end within the time that a build may take.
#[track_caller]
fn said(command: &mut Command) -> harness::Ended {
    use std::process::Stdio;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{:?} is needed: {error}", command.get_program()));
    harness::finish_within(project::LONGEST, child)
}
