//! A bundle in a temporary directory, the runtime on it, and the check that nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::{
    DEADLINE, Ended, busybox_rootfs, ended, exit_status, exit_status_within, is_root, until,
};

/// The runtime under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("INCEPTION_OCI")
        .map_or_else(|| env!("CARGO_BIN_EXE_inception-oci").into(), PathBuf::from)
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// One container's bundle.
pub(crate) struct Bundle {
    directory: tempfile::TempDir,
    /// The container's name, no other test's.
    pub(crate) id: String,
}

impl Bundle {
    /// What `spec` writes, without a terminal, with a writable root of busybox and this shell script as its process.
    pub(crate) fn new(script: &str) -> Self {
        Self::of(&["sh", "-c", script])
    }

    /// The same with these words as its process.
    pub(crate) fn of(words: &[&str]) -> Self {
        // Short: the path of a socket has at most 107 bytes.
        let directory = tempfile::Builder::new().prefix("io-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let id = format!("io{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let bundle = Self { directory, id };
        busybox_rootfs(&bundle.path("rootfs"));
        let bundle_path = bundle.path("");
        let mut spec = vec!["spec", "-b", bundle_path.to_str().unwrap()];
        if !is_root() {
            spec.push("--rootless");
        }
        bundle.run(&spec).ok();
        bundle.configure(|config| {
            config["process"]["terminal"] = false.into();
            config["process"]["args"] = words.into();
            config["root"]["readonly"] = false.into();
            let mark = format!("IO={}", bundle.id);
            config["process"]["env"].as_array_mut().unwrap().push(mark.into());
        });
        bundle
    }

    /// A path below the bundle.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// The state directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.path("s")
    }

    /// The configuration.
    pub(crate) fn config(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("config.json")).unwrap()).unwrap()
    }

    /// Changes the configuration.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value)) {
        let mut config = self.config();
        change(&mut config);
        fs::write(self.path("config.json"), serde_json::to_string_pretty(&config).unwrap()).unwrap();
    }

    /// `inception-oci` in the bundle, with a state directory and a log of its own.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .current_dir(self.directory.path())
            .arg("--root")
            .arg(self.root())
            .arg("--log")
            .arg(self.path("log"))
            .args(["--log-format", "json"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        ended(&mut self.command(arguments))
    }

    /// Starts it, output piped.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// `create`, which must succeed. What the container writes goes to the file `out` beside `config.json`, as an engine's
    /// monitor would have it.
    #[track_caller]
    pub(crate) fn create(&self) {
        self.create_with(&[]).ok();
    }

    /// `create` with further options.
    #[track_caller]
    pub(crate) fn create_with(&self, options: &[&str]) -> Ended {
        let file = |name| fs::File::create(self.path(name)).unwrap();
        let mut command = self.command(&["create"]);
        // No pipe: nobody would read what the container writes there later.
        command.args(options).arg(&self.id).stdout(file("out")).stderr(file("err"));
        let status = exit_status(&mut command.spawn().unwrap());
        let code = status.code().unwrap_or(-1);
        let err = if code == 0 { String::new() } else { fs::read_to_string(self.path("err")).unwrap() };
        Ended { code, out: String::new(), err }
    }

    /// `create` and `start`, which must succeed.
    #[track_caller]
    pub(crate) fn start(&self) {
        self.create();
        self.ok("start");
    }

    /// A command with the container's name only, which must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, command: &str) -> String {
        self.run(&[command, &self.id]).ok()
    }

    /// What the container wrote so far.
    pub(crate) fn out(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap()
    }

    /// Waits until the container has written `text`.
    #[track_caller]
    pub(crate) fn wait_out(&self, text: &str) -> String {
        until(&format!("the container writes `{text}`"), || Some(self.out()).filter(|out| out.contains(text)))
    }

    /// `state`.
    #[track_caller]
    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&self.ok("state")).unwrap()
    }

    /// The status, or `gone`.
    #[track_caller]
    pub(crate) fn status(&self) -> String {
        let ended = self.run(&["state", &self.id]);
        if ended.code != 0 {
            assert!(ended.err.contains("does not exist"), "{ended:?}");
            return "gone".to_owned();
        }
        let state: Value = serde_json::from_str(&ended.out).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    /// Waits for a status.
    #[track_caller]
    pub(crate) fn wait_status(&self, status: &str) {
        until(&format!("it is {status}"), || (self.status() == status).then_some(()));
    }

    /// Number of the first process.
    #[track_caller]
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().unwrap()).unwrap()
    }

    /// Runs a shell script in the container; its output without surrounding white space.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        self.run(&["exec", &self.id, "sh", "-c", script]).ok().trim().to_owned()
    }

    /// A command that must fail with exit code 1 (`exec`: 255), one line on standard error and one in the log, both with each of
    /// `words`.
    #[track_caller]
    pub(crate) fn fails(&self, arguments: &[&str], words: &[&str]) {
        let log = self.path("log");
        fs::remove_file(&log).ok();
        let ended = self.run(arguments);
        let code = if arguments[0] == "exec" { 255 } else { 1 };
        if let Some(wrong) = self.misses(&ended, code, words) {
            panic!("{wrong}");
        }
    }

    /// The check of [`Bundle::fails`] on a command that has ended.
    #[track_caller]
    pub(crate) fn failed(&self, ended: &Ended, words: &[&str]) {
        if let Some(wrong) = self.misses(ended, 1, words) {
            panic!("{wrong}");
        }
    }

    /// What the end of a command lacks that [`Bundle::fails`] wants.
    pub(crate) fn misses(&self, ended: &Ended, code: i32, words: &[&str]) -> Option<String> {
        if ended.code != code || !ended.err.starts_with("error: ") || ended.err.lines().count() != 1 {
            return Some(format!("it is no failure in one line: {ended:?}"));
        }
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let Ok(line) = serde_json::from_str::<Value>(&log) else {
            return Some(format!("it is no line of JSON: {log}"));
        };
        if line["level"] != "error" || !line["time"].as_str().is_some_and(|time| time.ends_with('Z')) {
            return Some(format!("it is no line of a log: {log}"));
        }
        // There the words for system errors are those that engines look for.
        let logged = line["msg"].as_str().unwrap_or("").to_lowercase();
        let said = |word: &&&str| ended.err.contains(**word) && logged.contains(&word.to_lowercase());
        let missing = words.iter().find(|word| !said(word))?;
        Some(format!("no `{missing}` in: {}{log}", ended.err))
    }

    /// `create` of this configuration must fail in one line with each of `words`, and leave nothing.
    #[track_caller]
    pub(crate) fn refuses(&self, words: &[&str]) {
        fs::remove_file(self.path("log")).ok();
        let ended = self.create_with(&[]);
        self.failed(&ended, words);
        self.nothing_left();
    }

    /// Processes with the variable `IO` of this bundle, and ours with its state directory among their arguments.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mark = format!("IO={}", self.id);
        let root = self.root();
        let has = |pid: i32, file: &str, word: &[u8]| {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            text.split(|byte| *byte == 0).any(|other| other == word)
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| {
            has(*pid, "environ", mark.as_bytes()) || has(*pid, "cmdline", root.to_str().unwrap().as_bytes())
        })
        .collect()
    }

    /// Checks that nothing is left: no process, state, mount or cgroup.
    #[track_caller]
    pub(crate) fn nothing_left(&self) {
        until("no process is left", || self.processes().is_empty().then_some(()));
        let left: Vec<_> = fs::read_dir(self.root())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert!(left.is_empty(), "left in the state directory: {left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "left mounted:\n{mounts}");
        for cgroup in cgroups(Path::new("/sys/fs/cgroup")) {
            assert!(
                !cgroup.to_str().is_some_and(|path| path.contains(&self.id)),
                "left: {}",
                cgroup.display()
            );
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let mut delete = self.command(&["delete", "--force", &self.id]);
        if !std::thread::panicking() {
            ended(&mut delete).ok();
            self.nothing_left();
        } else {
            let delete = delete.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            delete.ok().and_then(|mut delete| exit_status_within(DEADLINE, &mut delete));
            for pid in self.processes().into_iter().filter_map(rustix::process::Pid::from_raw) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }
}

/// All cgroups at and below this one.
fn cgroups(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(cgroups(&entry.path()));
        }
    }
    found
}

/// Whether this user can freeze a container here: a cgroup of its own is needed.
pub(crate) fn can_pause() -> bool {
    static CAN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *CAN.get_or_init(|| {
        let bundle = Bundle::new("exec sleep 1000");
        bundle.start();
        let paused = bundle.run(&["pause", &bundle.id]).code == 0;
        if paused {
            bundle.ok("resume");
        }
        paused
    })
}

/// A namespace of this kind, to be added to `linux.namespaces`.
pub(crate) fn namespace(kind: &str) -> Value {
    json!({"type": kind})
}
