//! A copy of a project with a home of its own, and the program on it.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::expected::{Expected, Get};
use crate::harness::{self, Ended};
use crate::said;

/// For one command: a build downloads the packages of several images.
pub(crate) const LONGEST: Duration = Duration::from_secs(900);
/// Until a service that runs answers as it should.
const ANSWERS: Duration = Duration::from_secs(60);

/// Where projects are copied to. They share the store, so that what several install is installed once.
pub(crate) struct Room {
    directory: tempfile::TempDir,
    /// Taken while the stand-ins are made.
    stand_ins: std::sync::Mutex<()>,
}

impl Room {
    pub(crate) fn new() -> Self {
        let parent = env::var_os("INCEPTION_TEST_DIR").map_or_else(|| "/tmp".into(), PathBuf::from);
        let directory = tempfile::Builder::new().prefix("c-").tempdir_in(parent).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory, stand_ins: std::sync::Mutex::default() }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// The directory of an Alpine base that has a repository of stand-ins for the packages.
    #[track_caller]
    fn with_stand_ins(&self, bases: &[PathBuf]) -> PathBuf {
        let _made_once = self.stand_ins.lock().unwrap();
        let directory = self.path("alpine");
        if !directory.exists() {
            let files = bases.iter().flat_map(|directory| fs::read_dir(directory).unwrap());
            let is_base = |path: &PathBuf| {
                path.file_name().unwrap().to_string_lossy().starts_with("alpine-minirootfs-3.20")
            };
            let base = files.map(|file| file.unwrap().path()).find(is_base).unwrap();
            let make = crate::repository().join("tests/alpine/make-repository");
            said(Command::new(make).arg(&directory).arg(base)).ok();
        }
        directory.join("base")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Layers belong to subordinate ids, which only their owner's namespace may delete.
        if !harness::is_root() {
            let remove = ["--user", "--map-root-user", "--map-auto", "rm", "-rf"];
            Command::new("unshare").args(remove).arg(self.directory.path()).output().ok();
        }
    }
}

/// A project.
pub(crate) struct Project {
    pub(crate) name: String,
    pub(crate) expected: Expected,
    directory: PathBuf,
    home: PathBuf,
    data: PathBuf,
    runtime: PathBuf,
    bases: Vec<PathBuf>,
    /// Published ports of the files, and those that stand for them here.
    ports: BTreeMap<u16, u16>,
}

impl Project {
    /// A copy, so that what a project writes beside its files harms nobody.
    pub(crate) fn copy(room: &Room, name: &str, from: &Path, expected: Expected) -> Self {
        let directory = room.path(name);
        let home = room.path(&format!("home-{name}"));
        said(Command::new("cp").arg("-a").arg(from).arg(&directory)).ok();
        fs::remove_file(directory.join("expect.toml")).unwrap();
        fs::create_dir(&home).unwrap();
        for below in &expected.directories {
            fs::create_dir_all(home.join(below)).unwrap();
        }
        let variable = |name| env::var_os(name).map(|paths| env::split_paths(&paths).collect::<Vec<_>>());
        let named = ["INCEPTION_BASE_DIR", "INCEPTION_FIXTURES"].into_iter().filter_map(variable);
        let data = room.path(if expected.stand_ins { "s" } else { "d" });
        Self {
            name: name.to_owned(),
            expected,
            directory,
            home,
            data,
            runtime: room.path("r"),
            bases: named.flatten().collect(),
            ports: BTreeMap::new(),
        }
    }

    /// `inception-run` in the project, with its files.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare();
        let expected = &self.expected;
        command.args(expected.files.iter().flat_map(|file| ["-f", file]));
        command.args(expected.environment_files.iter().flat_map(|file| ["--env-file", file]));
        command.args(expected.profiles.iter().flat_map(|profile| ["--profile", profile]));
        command.args(arguments);
        command
    }

    /// `inception-run` in the project.
    fn bare(&self) -> Command {
        let mut command = Command::new(harness::binary());
        command.current_dir(&self.directory);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("COMPOSE_")) {
                command.env_remove(name);
            }
        }
        command.env_remove("RUST_LOG").env_remove("XDG_RUNTIME_DIR").env_remove("PWD");
        command.env("HOME", &self.home).env("USER", "student");
        command.env("INCEPTION_DATA_DIR", &self.data).env("INCEPTION_RUNTIME_DIR", &self.runtime);
        command.env("INCEPTION_BASE_DIR", env::join_paths(&self.bases).unwrap());
        let home = self.home.to_str().unwrap();
        let variables = &self.expected.environment;
        command.envs(variables.iter().map(|(name, value)| (name, value.replace("{home}", home))));
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ended {
        said(&mut self.command(arguments))
    }

    /// `config -q` accepts it, and `config --services` names its services.
    #[track_caller]
    pub(crate) fn is_read(&self) {
        let ended = self.run(&["config", "-q"]);
        assert_eq!(ended.ok(), "", "{}: `config -q` prints", self.name);
        let services = self.run(&["config", "--services"]).ok();
        let mut services: Vec<_> = services.lines().collect();
        services.sort_unstable();
        assert_eq!(services, self.expected.services, "{}", self.name);
    }

    /// The plan, with the ports that are free here.
    #[track_caller]
    fn plan(&self, command: &mut Command) -> Value {
        let ended = said(command.args(self.published()).args(["plan", "--format", "json"]));
        serde_json::from_str(&ended.ok()).unwrap()
    }

    /// Options that publish ports which this user may have and nobody else has.
    fn published(&self) -> Vec<String> {
        self.ports.iter().map(|(port, other)| format!("--publish={port}={other}")).collect()
    }

    /// `plan` accepts it, with the warnings that are expected.
    #[track_caller]
    pub(crate) fn is_planned(&self) {
        let ended = said(self.command(&["plan"]).args(self.published()));
        let err = ended.err.clone();
        ended.ok();
        let warnings: Vec<_> =
            err.lines().filter(|line| line.starts_with("warning: ")).map(str::to_owned).collect();
        let mut left = warnings.clone();
        for expected in &self.expected.warnings {
            let at = left.iter().position(|warning| warning.contains(expected));
            let at =
                at.unwrap_or_else(|| panic!("{}: no warning has `{expected}`: {warnings:#?}", self.name));
            left.remove(at);
        }
        assert!(left.is_empty(), "{}: more warnings than expected: {left:#?}", self.name);
    }

    /// A free port in place of each that the files publish. Those of a range stay, each of which has a neighbour: they are
    /// what passive FTP and the like tell their clients.
    #[track_caller]
    pub(crate) fn choose_ports(&mut self) {
        let model: Value = serde_json::from_str(&self.run(&["config", "--format", "json"]).ok()).unwrap();
        let services = model["services"].as_object().unwrap().values();
        let published = |service: &Value| -> BTreeSet<u16> {
            let ports = service["ports"].as_array().into_iter().flatten();
            ports.filter_map(|port| port["published"].as_str()?.parse().ok()).collect()
        };
        let alone = |ports: BTreeSet<u16>| -> Vec<u16> {
            let in_range =
                |port: u16| port >= 1024 && [port - 1, port + 1].iter().any(|near| ports.contains(near));
            ports.iter().copied().filter(|port| !in_range(*port)).collect()
        };
        self.ports = services
            .flat_map(|service| alone(published(service)))
            .map(|port| (port, harness::free_ports(1)))
            .collect();
    }

    /// What `config` prints is a compose file, and a `stack.toml`, with the same plan.
    #[track_caller]
    pub(crate) fn is_converted(&self) {
        let plan = without_place(self.plan(&mut self.command(&[])));
        for (format, file) in [("yaml", "converted.yaml"), ("toml", "converted.toml")] {
            // Paths in a stack.toml are relative to what those of the compose file are relative to.
            let first = self.expected.files.first().map(Path::new);
            let below = first.and_then(Path::parent).unwrap_or(Path::new("")).join(file);
            self.run(&["config", "--format", format, "-o", below.to_str().unwrap()]).ok();
            let mut command = self.bare();
            // Variables are replaced already.
            command.env("COMPOSE_DISABLE_ENV_FILE", "1");
            command.arg("-f").arg(&below);
            command.args(self.expected.profiles.iter().flat_map(|profile| ["--profile", profile]));
            let converted = without_place(self.plan(&mut command));
            let text = fs::read_to_string(self.directory.join(&below)).unwrap();
            assert!(
                plan == converted,
                "{}: another plan:\n{}\n{text}",
                self.name,
                difference("", &plan, &converted).join("\n")
            );
            fs::remove_file(self.directory.join(below)).unwrap();
        }
    }

    /// Why it cannot be run here, if it cannot.
    pub(crate) fn cannot_run(&self) -> Option<String> {
        if let Some(reason) = &self.expected.planned_only {
            return Some(format!("only planned: {reason}"));
        }
        let files = self.bases.iter().filter_map(|directory| fs::read_dir(directory).ok());
        let files: Vec<_> =
            files.flatten().map(|file| file.unwrap().file_name().to_string_lossy().into_owned()).collect();
        let missing = self.expected.bases.iter().find(|base| {
            !files
                .iter()
                .any(|file| file.strip_prefix(&***base).is_some_and(|rest| rest.starts_with(['.', '-'])))
        });
        missing.map(|base| format!("no tarball {base} in INCEPTION_BASE_DIR or INCEPTION_FIXTURES"))
    }

    /// Its images can be made.
    #[track_caller]
    pub(crate) fn builds(&self, room: &Room) {
        let mut build = self.command(&["build"]);
        if self.expected.stand_ins {
            build.env("INCEPTION_BASE_DIR", room.with_stand_ins(&self.bases));
        }
        said(&mut build).ok();
    }

    /// Brings it up and looks at everything that is expected.
    #[track_caller]
    pub(crate) fn runs(&self) {
        let mut up = self.command(&["up", "-d", "--wait"]);
        said(up.args(self.published())).ok();

        let expected = &self.expected;
        for get in &expected.get {
            let mut curl = self.curl(get);
            self.eventually(&get.url, &get.text, || said(&mut curl));
        }
        for exec in &expected.exec {
            let arguments = ["exec", "-T", &exec.service, "sh", "-c", &exec.command];
            self.eventually(&exec.command, &exec.text, || self.run(&arguments));
        }
        for logs in &expected.logs {
            let what = format!("logs of {}", logs.service);
            self.eventually(&what, &logs.text, || self.run(&["logs", "--no-log-prefix", &logs.service]));
        }
        for home in &expected.home {
            assert!(self.home.join(&home.path).exists(), "{}: no {}", self.name, home.path);
        }
        self.states();
    }

    /// All containers run, but those that are to end.
    #[track_caller]
    fn states(&self) {
        let is_to_end = |row: &Value| self.expected.ended.iter().any(|end| row["service"] == *end.service);
        // Who has said its last word may need a moment for its end.
        let rows = harness::until("the ends of those that are to end", || {
            let rows = self.run(&["ps", "--format", "json"]).ok();
            let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
            rows.iter().all(|row| !is_to_end(row) || !row["exit_code"].is_null()).then_some(rows)
        });
        let count = self.expected.containers.unwrap_or(self.expected.services.len());
        assert_eq!(rows.len(), count, "{}: {rows:#?}", self.name);
        for row in rows {
            let end = self.expected.ended.iter().find(|end| row["service"] == *end.service);
            match end {
                Some(end) => assert!(row["exit_code"] == end.code, "{}: {row:#}", self.name),
                None => assert!(row["state"] == "running", "{}: {row:#}", self.name),
            }
        }
    }

    /// Takes it down, with all that belongs to it.
    #[track_caller]
    pub(crate) fn ends(&self) {
        self.run(&["down", "-v"]).ok();
        let rows = self.run(&["ps", "--format", "json"]).ok();
        assert_eq!(rows.trim(), "[]", "{}", self.name);
    }

    fn curl(&self, get: &Get) -> Command {
        let mut url = get.url.clone();
        for (port, other) in &self.ports {
            url = url.replace(&format!(":{port}/"), &format!(":{other}/"));
        }
        let mut curl = Command::new("curl");
        curl.args(["-sSk", "--fail", "--max-time", "10"]);
        if let Some(host) = &get.host {
            curl.args(["-H", &format!("Host: {host}")]);
        }
        curl.arg(url);
        curl
    }

    /// Asks until the answer has `text`.
    #[track_caller]
    fn eventually(&self, what: &str, text: &str, mut ask: impl FnMut() -> Ended) {
        let end = Instant::now() + ANSWERS;
        loop {
            let ended = ask();
            if ended.code == 0 && ended.out.contains(text) {
                return;
            }
            if Instant::now() > end {
                let logs = self.run(&["logs"]).out;
                panic!("{}: `{what}` does not say `{text}`: {ended:#?}\n{logs}", self.name);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A plan without what names the files that it is from.
fn without_place(mut plan: Value) -> Value {
    plan.as_object_mut().unwrap().remove("warnings");
    plan
}

/// Where two values differ.
fn difference(path: &str, one: &Value, other: &Value) -> Vec<String> {
    let at = |key: &str| format!("{path}.{key}");
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
            let value =
                |map: &serde_json::Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or_default();
            keys.into_iter()
                .flat_map(|key| difference(&at(key), &value(one, key), &value(other, key)))
                .collect()
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            let pairs = one.iter().zip(other).enumerate();
            pairs.flat_map(|(index, (one, other))| difference(&at(&index.to_string()), one, other)).collect()
        }
        _ if one == other => Vec::new(),
        _ => vec![format!("{path}: {one} != {other}")],
    }
}
