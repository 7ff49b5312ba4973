//! `expect.toml`: what must hold of a project.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expected {
    /// `-f`, in this order; without any the program finds the file.
    pub(crate) files: Vec<String>,
    /// `--env-file`.
    pub(crate) environment_files: Vec<String>,
    /// Variables of the commands; `{home}` in them is the user's home.
    pub(crate) environment: BTreeMap<String, String>,
    /// `--profile`.
    pub(crate) profiles: Vec<String>,
    /// All services of the model, sorted.
    pub(crate) services: Vec<String>,
    /// A part of each warning that the plan brings; there are no others.
    pub(crate) warnings: Vec<String>,
    /// Why nobody can run it here. Otherwise `bases` has at least one.
    pub(crate) planned_only: Option<String>,
    /// Tarballs that its images are made from, without what follows the version: `debian-bookworm`.
    pub(crate) bases: Vec<String>,
    /// Its packages are the stand-ins of `tests/alpine`, which are installed and not run.
    pub(crate) stand_ins: bool,
    /// Directories below the user's home that are there beforehand.
    pub(crate) directories: Vec<String>,
    /// How many containers run it, where that is not one for each service.
    pub(crate) containers: Option<usize>,
    /// What clients on the host get.
    pub(crate) get: Vec<Get>,
    /// What commands in containers say.
    pub(crate) exec: Vec<Exec>,
    /// What services have written.
    pub(crate) logs: Vec<Logs>,
    /// Services that have ended.
    pub(crate) ended: Vec<End>,
    /// Files below the user's home that are there afterwards.
    pub(crate) home: Vec<Home>,
}

/// A request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Get {
    /// With the port of the compose file.
    pub(crate) url: String,
    /// A part of the answer.
    pub(crate) text: String,
    /// The `Host` to ask for.
    pub(crate) host: Option<String>,
}

/// A command of a shell in a container, which must succeed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exec {
    pub(crate) service: String,
    pub(crate) command: String,
    /// A part of its output.
    pub(crate) text: String,
}

/// A part of what a service has written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logs {
    pub(crate) service: String,
    pub(crate) text: String,
}

/// The end of a service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct End {
    pub(crate) service: String,
    pub(crate) code: i64,
}

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Home {
    pub(crate) path: String,
}

impl Expected {
    #[track_caller]
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let expected: Self =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(
            expected.planned_only.is_some() == expected.bases.is_empty(),
            "{}: either `bases` or `planned_only`",
            path.display()
        );
        expected
    }
}
