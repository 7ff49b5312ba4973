//! The stand: a copy of the repository's stack with settings, data and runtime directories of its own, and the
//! command under test.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// For one command of the product or of a client. A cold build downloads the packages of five images.
const LONGEST: Duration = Duration::from_secs(600);

/// The settings that the test depends on. The title has what goes wrong when something quotes it badly.
const TITLE: &str = r#"Zoë's "Inception" & Söhne"#;

/// The stack's name: not that of one which the user may have in the same data directory.
pub(crate) const NAME: &str = "inception-e2e";

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// Exit code; nothing when it was killed by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
    pub(crate) took: Duration,
}

impl Said {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).trim_end().to_owned()
    }

    /// Its standard output; it must have succeeded.
    #[track_caller]
    pub(crate) fn ok(&self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.text(), self.err);
        self.text()
    }

    /// Both outputs; it must have failed.
    #[track_caller]
    pub(crate) fn fails(&self) -> String {
        assert_ne!(self.code, Some(0), "should have failed: {}\n{}", self.text(), self.err);
        format!("{}\n{}", self.text(), self.err)
    }
}

/// Runs a command to its end, with `input` as standard input.
#[track_caller]
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Said {
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A command may end without having read it all.
    thread::spawn(move || stdin.write_all(&input).ok());
    finish(&format!("{command:?}"), child)
}

/// Waits for the end of what [`spawn`] has started.
#[track_caller]
pub(crate) fn finish(command: &str, mut child: Child) -> Said {
    let started = Instant::now();
    drop(child.stdin.take());
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > LONGEST {
            child.kill().unwrap();
            panic!("{command} did not end within {LONGEST:?}");
        }
        thread::sleep(Duration::from_millis(2));
    };
    let took = started.elapsed();
    let rest = |output: Receiver<Vec<u8>>| {
        output.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| {
            panic!("{command} left something behind that keeps its output open");
        })
    };
    let (out, err) = (rest(out), rest(err));
    Said { code: status.code(), out, err: String::from_utf8_lossy(&err).into_owned(), took }
}

#[track_caller]
pub(crate) fn spawn(command: &mut Command) -> Child {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().unwrap_or_else(|error| panic!("{:?} is needed: {error}", command.get_program()))
}

fn reader(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    let mut stream = stream.unwrap();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok();
        sender.send(bytes).ok();
    });
    receiver
}

/// A command of this machine.
pub(crate) fn tool<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(name);
    command.args(arguments);
    command
}

/// Polls until `done` gives something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, longest: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(started.elapsed() < longest, "no {what} within {longest:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// One row of `ps`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Service {
    pub(crate) state: String,
    pub(crate) health: String,
    pub(crate) ports: Vec<String>,
    pub(crate) pid: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Stand {
    binary: PathBuf,
    /// The copy of the stack, and all else that the test makes.
    pub(crate) directory: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) runtime: PathBuf,
    /// The data directory was given by `INCEPTION_DATA_DIR`, to be kept.
    keep_data: bool,
    /// Where the ports are published. Not 127.0.0.1, where a stack of the user's may have them.
    pub(crate) address: String,
    /// What the command under test is started by, where it shall run elsewhere.
    pub(crate) within: Vec<String>,
    /// What `.env` says.
    pub(crate) settings: BTreeMap<String, String>,
}

impl Stand {
    /// The repository's own stack, with settings of its own.
    pub(crate) fn of_the_five_services() -> Self {
        let mut stand = Self::empty("e2e");
        let (repository, directory) = (repository(), &stand.directory);
        let bundles = [repository.join("bundles"), directory.join("bundles")];
        run(tool("cp", ["-r", "--"]).args(bundles), &[]).ok();
        stand.adapt(&repository.join("stack.toml"));

        let file = directory.join(".env");
        run(&mut tool("sh", [&repository.join("scripts/env"), &file]), &[]).ok();
        let text = fs::read_to_string(&file).unwrap();
        let quoted = TITLE.replace('"', "\\\"");
        let ours = format!("WP_TITLE=\"{quoted}\"\nPASV_ADDRESS={}\n", stand.address);
        fs::write(&file, text.replace("WP_TITLE=Inception\n", &ours)).unwrap();
        stand.settings = sourced(&file);
        stand.share_images();
        stand
    }

    /// A copy of one of the repository's examples.
    pub(crate) fn of_example(name: &str) -> Self {
        let stand = Self::empty(name);
        let example = repository().join("examples").join(name);
        run(tool("cp", ["-r", "--"]).args([&example.join("."), &stand.directory]), &[]).ok();
        stand.adapt(&example.join("stack.toml"));
        stand
    }

    /// A stack of a test's own, with the repository's bundles.
    pub(crate) fn of_stack(name: &str, text: &str) -> Self {
        let stand = Self::empty(name);
        let bundles = [repository().join("bundles"), stand.directory.join("bundles")];
        run(tool("cp", ["-r", "--"]).args(bundles), &[]).ok();
        let file = stand.directory.join("stack.toml");
        fs::write(&file, text).unwrap();
        stand.adapt(&file);
        stand
    }

    /// These files: names and texts.
    pub(crate) fn of_files(name: &str, files: &[(&str, &str)]) -> Self {
        let stand = Self::empty(name);
        for (name, text) in files {
            let file = stand.directory.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        stand
    }

    /// Copies a stack file, with another name than the user may have used in the same data directory, and with
    /// an address of its own.
    fn adapt(&self, file: &Path) {
        let stack = fs::read_to_string(file).unwrap().replace("${PUBLISH_ADDRESS:-127.0.0.1}", "127.0.0.1");
        let name = stack.lines().find(|line| line.starts_with("name = ")).unwrap();
        let ours = format!("{}-e2e\"", name.strip_suffix('"').unwrap());
        let address = format!("\"{}:", self.address);
        assert_eq!(stack.contains("ports = "), stack.contains("\"127.0.0.1"), "the published addresses");
        let stack = stack.replace(name, &ours).replace("\"127.0.0.1:", &address);
        let stack = stack.replace("host_ip = \"127.0.0.1\"", &format!("host_ip = \"{}\"", self.address));
        fs::write(self.directory.join("stack.toml"), stack).unwrap();
    }

    /// Uses the data directory that the caller has named, if any, and keeps it.
    pub(crate) fn share_images(&mut self) {
        if let Some(data) = variable("INCEPTION_DATA_DIR") {
            (self.data, self.keep_data) = (data, true);
            // What a test left that was killed.
            self.say(["down", "-v"]).ok();
        }
    }

    fn empty(name: &str) -> Self {
        static NETWORK: AtomicU32 = AtomicU32::new(83);
        // Tests of one process run side by side.
        let network = NETWORK.fetch_add(1, Ordering::Relaxed);
        let id = std::process::id();
        // Short: a socket's path ends at 107 bytes.
        let top = variable("INCEPTION_TEST_DIR").unwrap_or_else(|| "/tmp".into());
        let directory = top.join(format!("{name}-{id}"));
        fs::create_dir_all(&directory).unwrap();
        Self {
            binary: variable("INCEPTION_RUN").unwrap_or_else(|| env!("CARGO_BIN_EXE_inception-run").into()),
            runtime: directory.join("run"),
            data: directory.join("data"),
            keep_data: false,
            address: format!("127.{network}.{}.{}", id >> 8 & 0xff, 1 + id % 254),
            within: Vec::new(),
            settings: BTreeMap::new(),
            directory,
        }
    }

    /// `inception-run` with these arguments.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let words = self.within.iter().map(String::as_str).chain(self.binary.to_str());
        let words: Vec<&str> = words.collect();
        let mut command = tool(words[0], &words[1..]);
        command.args(arguments);
        command.current_dir(&self.directory);
        command.env("INCEPTION_DATA_DIR", &self.data).env("INCEPTION_RUNTIME_DIR", &self.runtime);
        // What the caller has set must not get into the stack by way of its variables.
        for name in self.settings.keys().map(String::as_str).chain(["HTTPS_PORT", "XDG_RUNTIME_DIR"]) {
            command.env_remove(name);
        }
        command
    }

    #[track_caller]
    pub(crate) fn say<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Said {
        run(&mut self.command(arguments), &[])
    }

    /// Runs a line of shell in a running service.
    #[track_caller]
    pub(crate) fn exec(&self, service: &str, line: &str) -> Said {
        self.say(["exec", service, "sh", "-c", line])
    }

    /// `ps`.
    #[track_caller]
    pub(crate) fn services(&self) -> BTreeMap<String, Service> {
        let rows: Vec<Value> = serde_json::from_str(&self.say(["ps", "--format", "json"]).ok()).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = |row: &Value| Service {
            state: text(&row["state"]),
            health: text(&row["health"]),
            ports: row["ports"].as_array().unwrap().iter().map(text).collect(),
            pid: row["pid"].as_u64(),
        };
        rows.iter().map(|row| (text(&row["service"]), service(row))).collect()
    }

    #[track_caller]
    pub(crate) fn wait_for_health(&self, service: &str) {
        wait_for("good health", Duration::from_secs(10), || {
            (self.services()[service].health == "healthy").then_some(())
        });
    }

    pub(crate) fn secrets(&self) -> Vec<String> {
        let named = self.settings.iter().filter(|(name, _)| name.ends_with("PASSWORD"));
        named.map(|(_, value)| value.clone()).collect()
    }

    /// A command that can read and delete what belongs to subordinate ids.
    pub(crate) fn as_container_root<S: AsRef<OsStr>>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        if is_root() {
            return tool(name, arguments);
        }
        let mut command = tool("unshare", ["--map-root-user", "--map-auto", "--", name]);
        command.args(arguments);
        command
    }
}

impl Drop for Stand {
    /// Leaves nothing running and no files, when the test failed too.
    fn drop(&mut self) {
        if thread::panicking() {
            let said = self.say(["logs", "--tail", "20"]);
            eprintln!("{}\n{}", said.text(), said.err);
            self.say(["down", "-v"]);
        }
        if !self.keep_data {
            run(&mut self.as_container_root("rm", [OsStr::new("-rf"), self.data.as_os_str()]), &[]);
        }
        fs::remove_dir_all(&self.directory).ok();
    }
}

pub(crate) fn is_root() -> bool {
    run(&mut tool("id", ["-u"]), &[]).ok() == "0"
}

/// What a shell makes of a `.env`.
fn sourced(file: &Path) -> BTreeMap<String, String> {
    let script = "env -i sh -c 'set -a; . \"$1\"; unset PWD OLDPWD SHLVL _; env -0' sh \"$1\"";
    let said =
        run(&mut tool("sh", [OsStr::new("-c"), OsStr::new(script), OsStr::new("sh"), file.as_os_str()]), &[]);
    let text = said.ok();
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.to_owned())).collect()
}

fn repository() -> PathBuf {
    variable("INCEPTION_REPO").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into())
}

/// The folder with tarballs of Alpine; none (and a note) where there is none.
pub(crate) fn fixtures(test: &str) -> Option<PathBuf> {
    let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
    let directory = variable("INCEPTION_FIXTURES").unwrap_or_else(usual);
    if directory.is_dir() {
        return Some(directory);
    }
    println!("skipped: {test}: no fixtures in {} (set INCEPTION_FIXTURES)", directory.display());
    None
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(|value| std::path::absolute(value).unwrap())
}
