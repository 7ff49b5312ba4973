//! From `create` to `delete`, and `run`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::bundle::{Bundle, can_pause};
use crate::harness::{PatientPipe, ended, exit_status, finish, is_root, skipped, until};

#[test]
fn a_life_in_all_its_states() {
    let bundle = Bundle::new("echo begun; exec sleep 1000");
    bundle.configure(|config| config["annotations"] = serde_json::json!({"org.example.key": "value"}));
    let pid_file = bundle.path("pid");
    assert_eq!(bundle.create_with(&["--pid-file", pid_file.to_str().unwrap()]).code, 0);
    let state = bundle.state();
    assert_eq!(state["ociVersion"], bundle.config()["ociVersion"]);
    assert_eq!(state["id"], bundle.id.as_str());
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], bundle.path("").to_str().unwrap().trim_end_matches('/'));
    assert_eq!(state["annotations"]["org.example.key"], "value");
    let pid = state["pid"].as_i64().unwrap();
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid.to_string());
    // What waits is not yet the program.
    assert!(!fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("sleep"));
    assert_eq!(bundle.out(), "");
    bundle.fails(&["create", &bundle.id], &["already exists", &bundle.id]);
    bundle.ok("start");
    bundle.wait_out("begun");
    assert_eq!(bundle.status(), "running");
    bundle.fails(&["start", &bundle.id], &["start", "running"]);
    bundle.fails(&["delete", &bundle.id], &["delete", "running"]);
    assert_eq!(bundle.pid(), i32::try_from(pid).unwrap());
    bundle.run(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait_status("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    bundle.fails(&["start", &bundle.id], &["start", "stopped"]);
    bundle.fails(&["kill", &bundle.id, "KILL"], &["stopped"]);
    bundle.fails(&["exec", &bundle.id, "true"], &["stopped"]);
    bundle.ok("delete");
    for command in ["state", "start", "kill", "delete", "pause", "resume", "ps"] {
        bundle.fails(&[command, &bundle.id], &["does not exist"]);
    }
    // Who forces it wants it gone.
    bundle.run(&["delete", "--force", &bundle.id]).ok();
    // The name is free again; one that was never started can be deleted as it is.
    bundle.create();
    bundle.ok("delete");
    assert_eq!(bundle.status(), "gone");
}

#[test]
fn run_is_the_program() {
    let bundle = Bundle::new("echo out; echo err >&2; cat; exit 7");
    let mut command = bundle.command(&["run", &bundle.id]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"in\n").unwrap();
    let ended = finish(child);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (7, "out\nin\n", "err\n"));
    bundle.nothing_left();
    // Files, which a container does not get as such, and a signal.
    let bundle = Bundle::new("echo out; kill -9 $$");
    bundle.configure(|config| {
        // PID 1 of a PID namespace cannot kill itself.
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
        if is_root() {
            return;
        }
        // A proc needs a PID namespace of the same user namespace.
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/proc");
    });
    if is_root() {
        let file = fs::File::create(bundle.path("file")).unwrap();
        let mut command = bundle.command(&["run", &bundle.id]);
        let status = exit_status(&mut command.stdout(file).spawn().unwrap());
        assert_eq!(status.code(), Some(137));
        assert_eq!(fs::read_to_string(bundle.path("file")).unwrap(), "out\n");
    }
    bundle.nothing_left();
}

#[test]
fn run_passes_signals_on() {
    let bundle = Bundle::new("trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.01; done");
    let mut child = bundle.spawn(&["run", &bundle.id]);
    let mut out = std::io::BufReader::new(PatientPipe(child.stdout.take().unwrap()));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    bundle.wait_status("running");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    line.clear();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!((line.as_str(), exit_status(&mut child).code()), ("caught\n", Some(3)));
    bundle.nothing_left();
}

#[test]
fn run_keeps_or_detaches_when_told() {
    let bundle = Bundle::new("exit 5");
    assert_eq!(bundle.run(&["run", "--keep", &bundle.id]).code, 5);
    assert_eq!(bundle.status(), "stopped");
    bundle.ok("delete");
    let bundle = Bundle::new("exec sleep 1000");
    let mut run = bundle.command(&["run", "-d", "--pid-file", "pid", &bundle.id]);
    let status = exit_status(&mut run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    assert!(status.success());
    assert_eq!(fs::read_to_string(bundle.path("pid")).unwrap(), bundle.pid().to_string());
    assert_eq!(bundle.status(), "running");
    bundle.run(&["delete", "--force", &bundle.id]).ok();
    assert_eq!(bundle.status(), "gone");
}

#[test]
fn a_program_that_is_not_there() {
    let bundle = Bundle::of(&["/no/such/program"]);
    bundle.fails(&["run", &bundle.id], &["/no/such/program", "No such file or directory"]);
    bundle.nothing_left();
    let bundle = Bundle::of(&["no-such-program"]);
    bundle.fails(&["run", &bundle.id], &["no-such-program"]);
    bundle.nothing_left();
    let bundle = Bundle::of(&["/etc/passwd"]);
    bundle.fails(&["run", &bundle.id], &["/etc/passwd", "Permission denied"]);
    bundle.nothing_left();
}

#[test]
fn kill_reaches_one_or_all() {
    let bundle = Bundle::new(
        "trap 'echo first' USR1; sh -c 'trap \"echo second\" USR1; echo b; while :; do sleep 0.01; done' & \
         while :; do sleep 0.01; done",
    );
    bundle.start();
    bundle.wait_out("b\n");
    bundle.run(&["kill", &bundle.id, "USR1"]).ok();
    bundle.wait_out("first");
    assert!(!bundle.out().contains("second"));
    for signal in ["NONSENSE", "65", "-1"] {
        bundle.fails(&["kill", &bundle.id, "--", signal], &[signal]);
    }
    bundle.run(&["kill", "--all", &bundle.id, "SIGUSR1"]).ok();
    bundle.wait_out("second");
    bundle.run(&["kill", &bundle.id, "9"]).ok();
    bundle.wait_status("stopped");
    until("all are dead", || bundle.processes().is_empty().then_some(()));
}

#[test]
fn pause_and_resume() {
    if !can_pause() {
        return skipped("pause_and_resume", "there is no cgroup for this user here");
    }
    let bundle = Bundle::new("while :; do echo x; sleep 0.001; done");
    bundle.start();
    bundle.wait_out("x");
    bundle.ok("pause");
    assert_eq!(bundle.status(), "paused");
    let before = bundle.out().len();
    bundle.fails(&["exec", &bundle.id, "true"], &["paused"]);
    bundle.fails(&["pause", &bundle.id], &["paused"]);
    assert_eq!(bundle.out().len(), before);
    bundle.ok("resume");
    assert_eq!(bundle.status(), "running");
    until("it goes on", || (bundle.out().len() > before).then_some(()));
    bundle.fails(&["resume", &bundle.id], &["running"]);
    // One that is frozen can be deleted.
    bundle.ok("pause");
    bundle.run(&["delete", "--force", &bundle.id]).ok();
    bundle.nothing_left();
}

#[test]
fn descriptors_are_passed_when_asked_for() {
    let bundle = Bundle::new("cat <&4; ls /proc/self/fd");
    let shell = |preserve: &str| {
        let mut runtime = bundle.command(&["run", "--preserve-fds", preserve, &bundle.id]);
        let words: Vec<String> = std::iter::once(runtime.get_program())
            .chain(runtime.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        runtime = std::process::Command::new("sh");
        let script = format!("exec {} 3</dev/null 4<config.json 5</dev/null", words.join(" "));
        runtime.args(["-c", &script]).current_dir(bundle.path("")).stdin(Stdio::null());
        ended(&mut runtime)
    };
    let passed = shell("2").ok();
    assert!(passed.starts_with('{'), "{passed}");
    // The last is the directory that ls reads.
    assert!(passed.ends_with("}0\n1\n2\n3\n4\n5\n"), "{passed}");
    // More than there are: what we open ourselves must not be taken for them.
    bundle.configure(|config| config["process"]["args"] = serde_json::json!(["ls", "/proc/self/fd"]));
    assert_eq!(bundle.run(&["run", "--preserve-fds", "1", &bundle.id]).ok(), "0\n1\n2\n3\n");
}

#[test]
fn two_commands_on_one_name() {
    let bundle = Bundle::new("exec sleep 1000");
    let race = |arguments: &[&[&str]]| -> Vec<i32> {
        let spawn = |arguments: &&[&str]| {
            let mut command = bundle.command(arguments);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let children: Vec<_> = arguments.iter().map(spawn).collect();
        children.into_iter().map(|mut child| exit_status(&mut child).code().unwrap()).collect()
    };
    let id = bundle.id.as_str();
    for _ in 0..5 {
        let codes = race(&[&["create", id][..]; 4]);
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "create: {codes:?}");
        assert_eq!(bundle.status(), "created");
        let codes = race(&[&["start", id][..]; 3]);
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "start: {codes:?}");
        let codes = race(&[&["delete", "--force", id], &["kill", id, "KILL"], &["delete", "--force", id]]);
        assert_eq!((codes[0], codes[2]), (0, 0), "delete: {codes:?}");
        bundle.nothing_left();
        // Whoever comes first: it is there and whole, or gone.
        race(&[&["create", id], &["delete", "--force", id]]);
        let status = bundle.status();
        assert!(status == "created" || status == "gone", "{status}");
        race(&[&["delete", "--force", id]]);
        bundle.nothing_left();
    }
}

#[test]
fn a_killed_create_leaves_nothing_in_the_way() {
    let bundle = Bundle::new("exec sleep 1000");
    for milliseconds in [0, 1, 2, 4, 8] {
        let mut child = bundle.command(&["create", &bundle.id]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        // It was too quick, or what it left does not keep anybody from the name.
        bundle.run(&["delete", "--force", &bundle.id]).ok();
        bundle.nothing_left();
        bundle.create();
        bundle.run(&["delete", "--force", &bundle.id]).ok();
    }
}

#[test]
fn names_are_names() {
    let bundle = Bundle::new("true");
    for name in ["", ".", "..", "a/b", "../x", "a b", "ü", "a\nb"] {
        bundle.fails(&["create", "--", name], &["id"]);
        bundle.fails(&["delete", "--", name], &["id"]);
    }
    bundle.fails(&["create", &"a".repeat(5000)], &["id"]);
}

#[test]
fn the_state_is_nobody_elses() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    let mode = fs::metadata(bundle.root().join(&bundle.id)).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}
