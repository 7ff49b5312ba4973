//! A stack in a temporary directory, the program on it, and the check that nothing is left.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No wait of a test lasts longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// No command of a test takes longer.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("INCEPTION_RUN")
        .map_or_else(|| env!("CARGO_BIN_EXE_inception-run").into(), PathBuf::from)
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says, past the capture of test output, that a test did not run.
#[allow(clippy::explicit_write)]
pub(crate) fn skipped(name: &str, reason: &str) {
    writeln!(std::io::stderr(), "skipped: {name}: {reason}").unwrap();
}

/// Polls until `found` finds something.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit code, or 128 plus the number of the signal that ended it.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// The standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self.out
    }

    /// Standard error of a command that must have failed with `code` and an error in its parts, one of which has
    /// each of `words`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        assert!(self.err.lines().any(|line| line.starts_with("error: ")), "no `error:`:\n{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "no `{word}` in:\n{}", self.err);
        }
        for panic in ["panicked", "RUST_BACKTRACE"] {
            assert!(!self.err.contains(panic), "{}", self.err);
        }
        self.err
    }
}

/// Runs a command to its end, and kills it when it takes too long. That the output's readers see its end is part of
/// the test: what a command leaves running must not hold its caller's pipes.
#[track_caller]
pub(crate) fn ended(command: &mut Command) -> Ended {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    finish(child)
}

/// Waits for the end of a child whose output is piped.
#[track_caller]
pub(crate) fn finish(child: Child) -> Ended {
    finish_within(COMMAND_DEADLINE, child)
}

/// The same for what may take longer.
#[track_caller]
pub(crate) fn finish_within(deadline: Duration, mut child: Child) -> Ended {
    let (sender, receiver) = mpsc::channel();
    let pipes: [Box<dyn Read + Send>; 2] =
        [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
    for (index, mut pipe) in pipes.into_iter().enumerate() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).ok();
            sender.send((index, String::from_utf8_lossy(&bytes).into_owned())).ok();
        });
    }
    let end = Instant::now() + deadline;
    let mut texts = [String::new(), String::new()];
    for _ in 0..2 {
        let Ok((index, text)) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) else {
            child.kill().unwrap();
            panic!("a command took too long, or left its output open to others: {texts:?}");
        };
        texts[index] = text;
    }
    use std::os::unix::process::ExitStatusExt;
    let status = child.wait().unwrap();
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let [out, err] = texts;
    Ended { code, out, err }
}

/// The first of `count` ports in a row that nothing listens on: no other test's, and below those that the kernel
/// gives to clients.
pub(crate) fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 64;
    until("free ports", || {
        let at = start + NEXT.fetch_add(usize::from(count), Ordering::Relaxed);
        let first = u16::try_from(10_000 + at % 20_000).unwrap();
        (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()).then_some(first)
    })
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A stack, in directories of its own.
pub(crate) struct Stack {
    directory: tempfile::TempDir,
    pub(crate) name: String,
}

impl Stack {
    /// A stack with this file but for its `name`. A service that names nothing to run from gets a root file system
    /// of busybox; all get the variable `IT`, whose value is the stack's unique name.
    pub(crate) fn new(services: &str) -> Self {
        // Short: the path of a socket has at most 107 bytes.
        let directory = tempfile::Builder::new().prefix("it-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let name = format!("it{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let stack = Self { directory, name };
        busybox_rootfs(&stack.path("rootfs"));
        stack.write("mark.env", &format!("IT={}\n", stack.name));
        stack.rewrite(services);
        stack
    }

    /// Replaces the stack's file.
    pub(crate) fn rewrite(&self, services: &str) {
        let mut text = format!("name = \"{}\"\n", self.name);
        let services = format!("\n{services}");
        let mut sections = services.split("\n[");
        // What stands before the first table.
        text.push_str(sections.next().unwrap_or_default());
        text.push('\n');
        for section in sections {
            let (head, body) = section.split_once(']').unwrap_or((section, ""));
            text.push_str(&format!("[{head}]\n"));
            if head.split('.').count() == 2 && head.starts_with("services.") {
                text.push_str("env_file = \"mark.env\"\n");
                let from = |key: &str| body.lines().any(|line| line.starts_with(key));
                if !["rootfs =", "image =", "build ="].iter().any(|key| from(key)) {
                    text.push_str("rootfs = \"rootfs\"\n");
                }
            }
            text.push_str(body.trim_start());
            text.push('\n');
        }
        self.write("stack.toml", &text);
    }

    /// A path below the stack's directory.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// Where images, volumes and writable layers are.
    pub(crate) fn data(&self) -> PathBuf {
        self.path("d")
    }

    /// Writes a file of the stack.
    pub(crate) fn write(&self, relative: &str, content: &str) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// `program` in the stack's directory, with its environment.
    pub(crate) fn command_of(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.directory.path())
            .env("INCEPTION_DATA_DIR", self.data())
            .env("INCEPTION_RUNTIME_DIR", self.path("r"))
            .env_remove("INCEPTION_BASE_DIR")
            .env_remove("RUST_LOG")
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null());
        command
    }

    /// `inception-run` with these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command_of(binary());
        command.args(arguments);
        command
    }

    /// Runs `inception-run` with these arguments to its end.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        ended(&mut self.command(arguments))
    }

    /// Starts it, output piped.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// `up -d`, which must succeed.
    #[track_caller]
    pub(crate) fn up(&self) -> String {
        let ended = self.run(&["up", "-d"]);
        let err = ended.err.clone();
        ended.ok();
        err
    }

    /// Runs a shell script in a service.
    #[track_caller]
    pub(crate) fn exec(&self, service: &str, script: &str) -> Ended {
        self.run(&["exec", service, "sh", "-c", script])
    }

    /// The output, without surrounding white space, of a shell script in a service that must succeed.
    #[track_caller]
    pub(crate) fn sh(&self, service: &str, script: &str) -> String {
        self.exec(service, script).ok().trim().to_owned()
    }

    /// `ps --format json`.
    #[track_caller]
    pub(crate) fn ps(&self) -> Vec<Value> {
        serde_json::from_str(&self.run(&["ps", "--format", "json"]).ok()).unwrap()
    }

    /// The row of one container; a service's name is its first one's.
    #[track_caller]
    pub(crate) fn row(&self, service: &str) -> Value {
        let rows = self.ps();
        let row = rows.iter().find(|row| row["container"] == service);
        row.unwrap_or_else(|| panic!("no service {service} in {rows:?}")).clone()
    }

    /// Host process id of a running service's PID 1.
    #[track_caller]
    pub(crate) fn pid(&self, service: &str) -> i32 {
        let row = self.row(service);
        i32::try_from(row["pid"].as_i64().unwrap_or_else(|| panic!("{row}"))).unwrap()
    }

    /// Waits until the service's row has this value of `key`.
    #[track_caller]
    pub(crate) fn wait(&self, service: &str, key: &str, value: impl Into<Value>) -> Value {
        let value = value.into();
        until(&format!("{service}: {key} = {value}"), || {
            Some(self.row(service)).filter(|row| row[key] == value)
        })
    }

    /// What a service wrote, without names.
    #[track_caller]
    pub(crate) fn logs(&self, service: &str) -> String {
        self.run(&["logs", "--no-log-prefix", service]).ok()
    }

    /// Waits until a service has written `text`.
    #[track_caller]
    pub(crate) fn wait_log(&self, service: &str, text: &str) -> String {
        until(&format!("{service} writes `{text}`"), || {
            Some(self.logs(service)).filter(|logs| logs.contains(text))
        })
    }

    /// The stack's processes: those of ours by their arguments, those of services by the variable `IT`.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mark = format!("IT={}", self.name);
        let runtime = format!("INCEPTION_RUNTIME_DIR={}", self.path("r").display());
        let belongs = |pid: i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = arguments.split(|byte| *byte == 0);
            if words.any(|word| word == self.name.as_bytes()) {
                return true;
            }
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|pair| pair == mark.as_bytes() || pair == runtime.as_bytes())
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| belongs(*pid)).collect()
    }

    /// Process id of the supervisor: of the processes with its arguments the one that is no child of another.
    pub(crate) fn supervisor(&self) -> Option<i32> {
        let supervises = |pid: i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = arguments.split(|byte| *byte == 0).collect();
            words.get(1..3) == Some(&[b"__supervise".as_slice(), self.name.as_bytes()])
        };
        let ours: Vec<i32> = self.processes().into_iter().filter(|pid| supervises(*pid)).collect();
        ours.iter().copied().find(|pid| parent(*pid).is_some_and(|parent| !ours.contains(&parent)))
    }

    /// Process id of netd, if it runs.
    pub(crate) fn netd(&self) -> Option<i32> {
        let is_netd = |pid: &i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = arguments.split(|byte| *byte == 0).collect();
            words.get(1..3) == Some(&[b"__netd".as_slice(), self.name.as_bytes()])
        };
        let supervisor = self.supervisor();
        self.processes().into_iter().filter(is_netd).find(|pid| parent(*pid) == supervisor)
    }

    /// Waits until no process of the stack is left.
    #[track_caller]
    pub(crate) fn gone(&self, within: Duration) {
        self.gone_but(0, within);
    }

    /// Waits until no process of the stack is left but this one.
    #[track_caller]
    pub(crate) fn gone_but(&self, own: u32, within: Duration) {
        let start = Instant::now();
        loop {
            let mut left = self.processes();
            left.retain(|pid| u32::try_from(*pid) != Ok(own));
            if left.is_empty() {
                return;
            }
            if start.elapsed() > within {
                let describe = |pid: &i32| {
                    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
                    format!("{pid}: {} {}", read("stat").trim(), read("cmdline").replace('\0', " "))
                };
                let left: Vec<String> = left.iter().map(describe).collect();
                panic!("left after {within:?}:\n{}", left.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Checks that nothing of a stack that is down is left: no process, mount, socket, lock or container.
    #[track_caller]
    pub(crate) fn nothing_left(&self) {
        self.nothing_left_but_volumes();
        let volumes = self.data().join("v").join(&self.name);
        assert!(!volumes.exists(), "left: {}", volumes.display());
    }

    /// The same after a `down` that keeps the volumes.
    #[track_caller]
    pub(crate) fn nothing_left_but_volumes(&self) {
        self.gone(Duration::from_secs(2));
        let path = self.directory.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(path), "left mounted:\n{mounts}");
        assert!(!self.path("r").join(&self.name).exists(), "left: the runtime directory");
        let containers = self.data().join("c").join(&self.name);
        assert!(!containers.exists(), "left: {}", containers.display());
    }
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

impl Drop for Stack {
    fn drop(&mut self) {
        let down = self.command(&["-p", &self.name, "down", "-v"]).output();
        if !std::thread::panicking() {
            let down = down.unwrap();
            assert!(down.status.success(), "down -v: {}", String::from_utf8_lossy(&down.stderr));
            self.nothing_left();
        } else {
            for pid in self.processes().into_iter().filter_map(rustix::process::Pid::from_raw) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
        // Files of subordinate ids are not an ordinary user's to delete.
        if fs::remove_dir_all(self.data()).is_err() && self.data().exists() {
            let remove = Command::new("unshare")
                .args(["--user", "--map-root-user", "--map-auto", "rm", "-rf"])
                .arg(self.data())
                .status();
            assert!(std::thread::panicking() || remove.unwrap().success(), "remove the data directory");
        }
    }
}

/// Links of a container's that point at a file of the host's, beside the stack.
pub(crate) struct Links<'a> {
    stack: &'a Stack,
    service: &'a str,
    /// The directory of the host's.
    pub(crate) outside: PathBuf,
    /// More steps up than there are.
    pub(crate) up: String,
}

impl<'a> Links<'a> {
    const NAMES: [&'static str; 2] = ["/absolute", "/climbs"];

    /// Makes them in a service that runs.
    #[track_caller]
    pub(crate) fn plant(stack: &'a Stack, service: &'a str) -> Self {
        stack.write("outside/secret", "secret");
        let (outside, up) = (stack.path("outside"), "../".repeat(20));
        let target = outside.display();
        stack.sh(service, &format!("ln -s {target} /absolute; ln -s {up}{target} /climbs"));
        Self { stack, service, outside, up }
    }

    /// `cp` follows none of them to the host.
    #[track_caller]
    pub(crate) fn lead_nowhere(&self) {
        self.stack.write("theirs", "theirs");
        for link in Self::NAMES.map(|link| format!("{}:{link}", self.service)) {
            self.stack.run(&["cp", &format!("{link}/secret"), "got"]).fails(1, &["No such file"]);
            self.stack.run(&["cp", "-L", &link, "got"]).fails(1, &["No such file"]);
            self.stack.run(&["cp", "theirs", &format!("{link}/new")]).fails(1, &["No such file"]);
        }
        assert!(!self.outside.join("new").exists());
    }
}

/// A root file system of busybox and a few accounts.
pub(crate) fn busybox_rootfs(path: &Path) {
    for directory in ["bin", "etc", "tmp", "data", "home/app"] {
        fs::create_dir_all(path.join(directory)).unwrap();
    }
    let busybox = busybox();
    fs::copy(&busybox, path.join("bin/busybox")).unwrap();
    let applets = Command::new(&busybox).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", path.join("bin").join(applet)).unwrap();
    }
    fs::set_permissions(path.join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    let accounts = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n";
    fs::write(path.join("etc/passwd"), accounts).unwrap();
    fs::write(path.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").unwrap();
}

/// The static busybox of the package `busybox-static`.
fn busybox() -> PathBuf {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    places.into_iter().find(|path| path.is_file()).expect("busybox; the package busybox-static has it")
}
