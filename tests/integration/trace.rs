//! `up --trace`, `run --trace`, `build --trace`: what is told against what the kernel has, and the script against the sandbox
//! that it is of.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::build;
use crate::harness::{Stack, finish, is_root, skipped, until};

const SERVICE: &str = "[services.a]\ncommand = [\"sleep\", \"1000\"]\nhostname = \"box\"\n\
                       volumes = [\"data:/srv\"]\nworking_dir = \"/srv\"\n[volumes.data]\n";

/// The steps that `up -d --trace=json` tells of.
fn traced(stack: &Stack) -> Vec<Value> {
    stack.run(&["up", "-d", "--trace=json", "--trace-file", "steps"]).ok();
    steps_in(stack, "steps")
}

fn steps_in(stack: &Stack, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(stack.path(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn read(pid: i32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

fn namespace(pid: i32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

/// Value of a line of `/proc/PID/status`.
fn status(pid: i32, key: &str) -> String {
    let text = read(pid, "status");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Where something is mounted in a process's mount namespace: mount points with options, type, and the part of the file
/// system that is seen, but for what of it is a directory of the stack's or the test's.
fn mounts(pid: i32) -> BTreeSet<String> {
    read(pid, "mountinfo")
        .lines()
        .map(|line| {
            let (mount, system) = line.split_once(" - ").unwrap();
            let fields: Vec<&str> = mount.split(' ').collect();
            let kind = system.split(' ').next().unwrap();
            let (root, target, options) = (fields[3], fields[4], fields[5]);
            let root = if kind == "proc" || kind == "sysfs" || kind.starts_with("dev") { root } else { "" };
            format!("{target} {options} {kind} {root}")
        })
        .collect()
}

#[test]
fn steps_are_those_that_the_kernel_took() {
    let stack = Stack::new(SERVICE);
    let steps = traced(&stack);
    let pid = stack.pid("a");
    let find = |call: &str, matches: &dyn Fn(&Value) -> bool| {
        steps
            .iter()
            .find(|step| step["call"] == call && step["error"].is_null() && matches(step))
            .unwrap_or_else(|| panic!("no step {call} in {steps:#?}"))
    };
    // Every step has what it is for, and where to read on; a program that is not the stack's is let go unseen.
    for step in &steps {
        for key in ["purpose", "manual", "role"] {
            assert!(step[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {step}");
        }
        let text = step["arguments"].to_string();
        assert!(!text.contains("(unreadable)"), "{step}");
    }
    let of_child = |step: &Value| step["pid"] == pid;
    find("clone3", &|step| step["made"] == pid && step["role"] == "hub");
    let hub = find("clone3", &|step| step["arguments"]["flags"].to_string().contains("CLONE_NEWUSER"));
    assert_eq!(hub["role"], "supervisor");
    let hub = i32::try_from(hub["made"].as_i64().unwrap()).unwrap();
    assert_eq!(
        Some(hub),
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| { stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok() })
    );
    let map = status_map(hub);
    let helper = if is_root() { "uid_map" } else { "newuidmap" };
    let written = steps.iter().map(|step| step["arguments"].to_string()).find(|text| text.contains(helper));
    let written = written.unwrap();
    for number in map {
        assert!(written.contains(&number), "{number} in {written}");
    }
    // Namespaces, names, privileges.
    let entered = find("setns", &|step| of_child(step));
    assert_eq!(entered["arguments"]["fd"], Value::from(namespace(pid, "net")));
    assert_eq!(find("sethostname", &of_child)["arguments"]["name"], "\"box\"");
    let kept = u64::from_str_radix(&status(pid, "CapEff"), 16).unwrap();
    assert_eq!(find("capset", &of_child)["arguments"]["effective"], format!("{kept:#x}"));
    find("seccomp", &of_child);
    // Whatever is mounted in there was attached by a step, or is the root.
    let attached: Vec<String> = steps
        .iter()
        .filter(|step| step["call"] == "move_mount" && of_child(step))
        .map(|step| step["arguments"]["to_fd"].as_str().unwrap().trim_matches('"').to_owned())
        .collect();
    for mount in read(pid, "mountinfo").lines() {
        let point = mount.split(' ').nth(4).unwrap();
        let told = attached.iter().any(|to| to.ends_with(&format!("/mnt/root{point}")));
        assert!(told || point == "/", "{point} in {attached:?}");
    }
    // The address that the container has was given to it.
    let address = stack.sh("a", "ip -4 -o addr show scope global | awk '{print $4}'");
    find("sendto", &|step| {
        step["shell"]
            .as_str()
            .is_some_and(|shell| shell.contains(&format!("ip address add {address} dev eth0")))
    });
    // Nobody watches any more.
    for process in [stack.supervisor().unwrap(), stack.netd().unwrap(), hub, pid] {
        assert_eq!(status(process, "TracerPid"), "0");
    }
    stack.run(&["up", "-d", "--trace"]).fails(2, &["runs already"]);
    stack.run(&["down", "-v"]).ok();
    stack.nothing_left();
}

/// The numbers of a process's map of user ids, the last line's.
fn status_map(pid: i32) -> Vec<String> {
    read(pid, "uid_map").lines().last().unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_watched_stack_ends_with_its_command() {
    for signal in [Signal::TERM, Signal::KILL] {
        let stack = Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\nrestart = \"always\"\n");
        let command = stack.spawn(&["up", "--trace", "--trace-file", "steps"]);
        let pid = until("the service runs", || {
            stack.supervisor()?;
            let ps = stack.run(&["ps", "--format", "json"]);
            let rows: Vec<Value> = serde_json::from_str(&ps.out).ok()?;
            i32::try_from(rows.first()?["pid"].as_i64()?).ok()
        });
        // What comes later is told of, too.
        let told = fs::read_to_string(stack.path("steps")).unwrap().len();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        until("the second start is told of", || {
            let text = fs::read_to_string(stack.path("steps")).unwrap();
            text.get(told..)?.contains("pivot_root").then_some(())
        });
        kill_process(Pid::from_child(&command), signal).unwrap();
        finish(command);
        stack.gone(Duration::from_secs(5));
        stack.run(&["down", "-v"]);
        stack.nothing_left();
    }
}

#[test]
fn a_stack_goes_on_when_its_steps_cannot_be_told() {
    let stack = Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\n");
    let command = stack.spawn(&["up", "--trace", "--trace-file", "/dev/full"]);
    let pid = until("the service runs", || {
        let rows: Vec<Value> = serde_json::from_str(&stack.run(&["ps", "--format", "json"]).out).ok()?;
        i32::try_from(rows.first()?["pid"].as_i64()?).ok()
    });
    for process in [stack.supervisor().unwrap(), pid] {
        assert_eq!(status(process, "TracerPid"), "0");
    }
    kill_process(Pid::from_child(&command), Signal::TERM).unwrap();
    let ended = finish(command);
    assert!(ended.err.contains("not told any more: No space left"), "{}", ended.err);
    stack.gone(Duration::from_secs(5));
    stack.nothing_left();
}

#[test]
fn the_script_builds_the_same_sandbox() {
    const NAME: &str = "the_script_builds_the_same_sandbox";
    for tool in ["unshare", "nsenter", "setpriv", "ip", "pivot_root", "hostname", "ldd"] {
        let look = format!("PATH=$PATH:/usr/sbin:/sbin; command -v {tool}");
        let found = Command::new("sh").args(["-c", &look]).stdout(Stdio::null()).status();
        if !found.unwrap().success() {
            return skipped(NAME, &format!("no {tool}"));
        }
    }
    let stack = Stack::new(SERVICE);
    stack.run(&["up", "-d", "--trace=script", "--trace-file", "sandbox.sh"]).ok();
    let pid = stack.pid("a");
    let expected = Sandbox::of(pid);
    stack.run(&["down"]).ok();
    stack.nothing_left_but_volumes();

    let mut script = stack.command_of("sh");
    // As an ordinary user of Debian has it.
    script.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    script.args(["sandbox.sh", "sleep", "777"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut script = script.spawn().unwrap();
    let built = until("the script runs its program", || {
        if let Some(status) = script.try_wait().unwrap() {
            let mut errors = String::new();
            std::io::Read::read_to_string(&mut script.stderr.take().unwrap(), &mut errors).unwrap();
            panic!("the script ended: {status}\n{errors}");
        }
        stack.processes().into_iter().find(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x00777\x00")
        })
    });
    let found = Sandbox::of(built);
    assert_eq!(found, expected);
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        assert_ne!(
            namespace(built, kind),
            fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap()
        );
    }
    // Nothing of the host's is left open but what this test's caller may have left open.
    let open = |pid: &str| -> BTreeSet<_> {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        all.filter_map(|fd| Some((fd.file_name(), fs::read_link(fd.path()).ok()?))).collect()
    };
    let (ours, theirs) = (open("self"), open(&built.to_string()));
    let more: Vec<_> =
        theirs.difference(&ours).filter(|(fd, _)| !["0", "1", "2"].iter().any(|own| fd == own)).collect();
    assert!(more.is_empty(), "{more:?}");
    kill_process(Pid::from_raw(built).unwrap(), Signal::KILL).unwrap();
    finish(script);
    stack.gone(Duration::from_secs(5));
    stack.run(&["down", "-v"]).ok();
    stack.nothing_left();
}

/// What a one-off container tells of itself.
const TELL: &str = "hostname; pwd; cat /proc/self/uid_map; grep -e Cap -e NoNewPrivs /proc/self/status; \
                    awk '{ print $5, $6 }' /proc/self/mountinfo | sort";

#[test]
fn a_one_off_container_is_told_of_with_what_it_depends_on() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\n\
         [services.b]\ncommand = [\"sleep\", \"1000\"]\ndepends_on = [\"a\"]\nworking_dir = \"/tmp\"\n",
    );
    let line = "readlink /proc/self/ns/net; exit 7";
    let ended = stack.run(&["run", "--trace=json", "--trace-file", "steps", "b", "sh", "-c", line]);
    assert_eq!(ended.code, 7, "{}", ended.err);
    let steps = steps_in(&stack, "steps");
    let containers: BTreeSet<_> = steps.iter().filter_map(|step| step["container"].as_str()).collect();
    assert_eq!(containers, BTreeSet::from(["a", "b-run-1"]));
    let network = ended.out.trim();
    let entered = |step: &Value| step["call"] == "setns" && step["arguments"]["fd"] == network;
    assert!(steps.iter().any(entered), "nobody enters {network}: {steps:#?}");
    let program = steps.iter().rfind(|step| step["role"] == "program").unwrap();
    assert!(program["arguments"]["argv"].to_string().contains("exit 7"), "{program}");
    stack.nothing_left();

    // What the script builds tells the same of itself.
    let told = stack.run(&["run", "--trace=script", "--trace-file", "b.sh", "b", "sh", "-c", TELL]).ok();
    let built = crate::harness::ended(stack.command_of("sh").args(["b.sh", "sh", "-c", TELL])).ok();
    assert_eq!(built, told);

    // One that stays is not watched any more, and in a stack that runs nothing can be.
    stack.run(&["run", "-d", "--trace", "--trace-file", "steps", "b"]).ok();
    assert_eq!(status(stack.supervisor().unwrap(), "TracerPid"), "0");
    let ended = stack.run(&["run", "--trace", "b", "true"]);
    ended.fails(2, &["runs already", "inception-run down"]);
    stack.run(&["down", "-v"]).ok();
    stack.nothing_left();
}

const IMAGE: &str = "[services.web]\nbuild = \"web\"\ncommand = [\"true\"]\n";

#[test]
fn the_steps_of_a_build_are_told() {
    let stack = build::with_base(IMAGE);
    let instruction = "RUN readlink /proc/self/ns/net; grep CapEff /proc/self/status; echo $NUMBER";
    let dockerfile = |numbers: [&str; 2]| {
        let run = numbers.map(|number| instruction.replace("$NUMBER", number)).join("\n");
        stack.write("web/Dockerfile", &format!("FROM alpine:3.99\n{run}\n"));
    };
    dockerfile(["one", "two"]);
    let ended = build::run(&stack, &["build", "--trace=json", "--trace-file", "steps"]);
    let steps = steps_in(&stack, "steps");
    for step in &steps {
        for key in ["purpose", "manual", "role"] {
            assert!(step[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {step}");
        }
        assert!(!step.to_string().contains("(unreadable)"), "{step}");
    }
    let roles: BTreeSet<_> = steps.iter().filter_map(|step| step["role"].as_str()).collect();
    let expected = ["child", "command", "helper", "init", "program", "worker"];
    assert_eq!(roles, BTreeSet::from(expected), "{}", ended.err);
    // Each instruction was started by the worker, and told in its output what it is in.
    let words = |prefix: &str| -> Vec<String> {
        let of_line = |line: &str| Some(line.split_once("] ")?.1.strip_prefix(prefix)?.trim().to_owned());
        ended.err.lines().filter_map(of_line).collect()
    };
    let (networks, capabilities) = (words("net:"), words("CapEff:"));
    assert_eq!((networks.len(), capabilities.len()), (2, 2), "{}", ended.err);
    let made = |step: &&Value| {
        step["role"] == "worker" && step["arguments"]["flags"].to_string().contains("CLONE_NEWPID")
    };
    let children: Vec<&Value> = steps.iter().filter(made).map(|step| &step["made"]).collect();
    assert_eq!(children.len(), 2, "{steps:#?}");
    for (child, (network, capabilities)) in children.into_iter().zip(networks.iter().zip(&capabilities)) {
        let find = |call: &str, key: &str| {
            let of_child = |step: &&Value| step["pid"] == *child && step["call"] == call;
            let step = steps.iter().find(of_child).unwrap_or_else(|| panic!("no {call} in {steps:#?}"));
            step["arguments"][key].as_str().unwrap().to_owned()
        };
        assert_eq!(find("setns", "fd"), format!("net:{network}"));
        let kept = u64::from_str_radix(capabilities, 16).unwrap();
        assert_eq!(find("capset", "effective"), format!("{kept:#x}"));
        find("pivot_root", "new_root");
    }
    ended.ok();

    // Where there is nothing to make, there is no worker; where nothing runs, no sandbox; where it fails, the exit code is
    // that of the build.
    let told = build::run(&stack, &["build", "--trace"]).ok();
    assert!(told.contains("execve") && !told.contains("storage worker"), "{told}");
    stack.write("web/Dockerfile", "FROM alpine:3.99\nENV A=b\n");
    let told = build::run(&stack, &["build", "--trace"]).ok();
    assert!(told.contains("storage worker") && !told.contains("pivot_root"), "{told}");
    dockerfile(["one", "two; exit 3"]);
    let failed = build::run(&stack, &["build", "--trace"]);
    assert!(failed.out.contains("pivot_root"), "{}", failed.out);
    failed.fails(1, &["Dockerfile:3", "exit"]);
    build::run(&stack, &["build", "--trace=script"]).fails(2, &["many sandboxes"]);
}

#[test]
fn a_watched_build_ends_with_its_command() {
    let stack = build::with_base(IMAGE);
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nENV IT={}\nRUN sleep 1000\n", stack.name));
    for signal in [Signal::TERM, Signal::KILL] {
        let mut command = build::command(&stack, &["build", "--trace", "--trace-file", "steps"]);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the instruction runs", || {
            let runs = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            stack.processes().into_iter().find(|pid| runs(*pid) == b"sleep\x001000\x00")
        });
        kill_process(Pid::from_child(&command), signal).unwrap();
        assert_ne!(finish(command).code, 0);
        stack.gone(Duration::from_secs(5));
    }
}

/// What a process is in, as the kernel tells.
#[derive(Debug, PartialEq)]
struct Sandbox {
    mounts: BTreeSet<String>,
    uid_map: String,
    gid_map: String,
    hostname: String,
    directory: String,
    limits: String,
    privileges: Vec<String>,
    /// Levels of PID namespaces, counted from the host's.
    levels: usize,
}

impl Sandbox {
    fn of(pid: i32) -> Self {
        let spaced = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut hostname = Command::new("nsenter");
        hostname.args([
            "--target",
            &pid.to_string(),
            "--user",
            "--uts",
            "--preserve-credentials",
            "hostname",
        ]);
        let keys = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Uid", "Gid", "Groups"];
        Self {
            mounts: mounts(pid),
            uid_map: spaced(read(pid, "uid_map")),
            gid_map: spaced(read(pid, "gid_map")),
            hostname: String::from_utf8(hostname.output().unwrap().stdout).unwrap(),
            directory: fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str().unwrap().to_owned(),
            limits: read(pid, "limits"),
            privileges: keys.map(|key| format!("{key} {}", status(pid, key))).to_vec(),
            levels: status(pid, "NSpid").split(' ').count(),
        }
    }
}
