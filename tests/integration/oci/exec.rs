//! Further programs in a container.

use std::fs;
use std::process::Stdio;

use serde_json::json;

use super::bundle::Bundle;
use crate::harness::{exit_status, finish, is_root, until};

#[test]
fn it_is_the_program() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.start();
    let mut command =
        bundle.command(&["exec", &bundle.id, "sh", "-c", "echo out; echo err >&2; cat; exit 9"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"in\n").unwrap();
    let ended = finish(child);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (9, "out\nin\n", "err\n"));
    assert_eq!(bundle.run(&["exec", &bundle.id, "sh", "-c", "kill -TERM $$"]).code, 128 + 15);
    // Its own options are its own.
    assert_eq!(bundle.run(&["exec", &bundle.id, "echo", "-e", "--user", "a"]).ok(), "--user a\n");
    bundle.fails(&["exec", &bundle.id, "/no/such"], &["/no/such", "No such file or directory"]);
    bundle.fails(&["exec", &bundle.id], &["program"]);
    bundle.fails(&["exec", "--cgroup", "/else/where", &bundle.id, "true"], &["--cgroup"]);
    bundle.fails(&["exec", "--process", "missing", &bundle.id], &["missing"]);
    bundle.fails(&["exec", "--tty", "--detach", &bundle.id, "true"], &["terminal"]);
}

#[test]
fn it_has_what_the_container_has_but_for_what_is_named() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.configure(|config| {
        config["process"]["env"].as_array_mut().unwrap().push("FROM=config".into());
        config["process"]["cwd"] = "/home".into();
        config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]);
    });
    bundle.start();
    assert_eq!(bundle.sh("echo $FROM; pwd; ulimit -n; ulimit -Hn"), "config\n/home\n77\n88");
    let show = "echo $FROM; echo $MORE; pwd";
    let run = bundle.run(&[
        "exec",
        "-e",
        "FROM=here",
        "-e",
        "MORE=x=y",
        "--cwd",
        "/tmp",
        &bundle.id,
        "sh",
        "-c",
        show,
    ]);
    assert_eq!(run.ok(), "here\nx=y\n/tmp\n");
    // The same namespaces, the same root.
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let [own, first] = ["self", "1"].map(|pid| bundle.sh(&format!("readlink /proc/{pid}/ns/{kind}")));
        assert_eq!(own, first, "{kind}");
    }
    let status = |key: &str| bundle.sh(&format!("grep {key}: /proc/self/status; grep {key}: /proc/1/status"));
    for key in
        ["CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs", "Uid", "Gid", "Groups", "SigIgn"]
    {
        let both = status(key);
        let (own, first) = both.split_once('\n').unwrap();
        assert_eq!(own.trim(), first.trim());
    }
    assert_eq!(bundle.sh("ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3");
    let eff = |options: &[&str]| {
        let mut words = vec!["exec"];
        words.extend(options);
        words.extend([bundle.id.as_str(), "grep", "CapEff", "/proc/self/status"]);
        bundle.run(&words).ok().split_whitespace().nth(1).unwrap().to_owned()
    };
    let more = u64::from_str_radix(&eff(&["--cap", "CAP_CHOWN"]), 16).unwrap();
    assert_eq!(more, u64::from_str_radix(&eff(&[]), 16).unwrap() | 1);
    if is_root() {
        let run = bundle.run(&["exec", "-u", "12:34", "-g", "56", &bundle.id, "id"]);
        assert_eq!(run.ok(), "uid=12 gid=34 groups=56\n");
    }
}

#[test]
fn a_process_from_a_file() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.start();
    let process = json!({
        "user": {"uid": 0, "gid": 0},
        "args": ["sh", "-c", "echo $A; pwd; grep -c 'NoNewPrivs:.1' /proc/self/status"],
        "env": ["PATH=/bin", "A=b"],
        "cwd": "/etc",
        "noNewPrivileges": true,
    });
    fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    assert_eq!(bundle.run(&["exec", "-p", "process.json", &bundle.id]).ok(), "b\n/etc\n1\n");
    bundle.fails(&["exec", "-p", "process.json", &bundle.id, "ls"], &["--process"]);
    for (text, word) in [
        ("", "process.json"),
        ("[]", "process.json"),
        (r#"{"user": {"uid": -1, "gid": 0}, "cwd": "/", "args": ["true"]}"#, "process.json"),
        (r#"{"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": []}"#, "args"),
        (r#"{"user": {"uid": 0, "gid": 0}, "cwd": "etc", "args": ["true"]}"#, "cwd"),
    ] {
        fs::write(bundle.path("process.json"), text).unwrap();
        bundle.fails(&["exec", "-p", "process.json", &bundle.id], &[word]);
    }
}

#[test]
fn detached_it_stays() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.start();
    let mut exec = bundle.command(&["exec", "-d", "--pid-file", "pid", &bundle.id, "sleep", "2000"]);
    assert!(exit_status(&mut exec.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()).success());
    let pid: i32 = fs::read_to_string(bundle.path("pid")).unwrap().parse().unwrap();
    let words = || fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert_eq!(words(), "sleep\x002000\0");
    // It dies with the container.
    bundle.run(&["kill", &bundle.id, "KILL"]).ok();
    until("it is dead", || words().is_empty().then_some(()));
}
