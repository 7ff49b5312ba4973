//! `update` and `events`, where this machine has a controller for the numbers of processes. What all controllers do is
//! tested in the virtual machine.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use super::bundle::{Bundle, can_pause};
use crate::harness::{PatientPipe, exit_status, finish, skipped};

/// The file with the limit of a container's processes, in whichever tree has the controller.
fn pids_max(bundle: &Bundle) -> Option<PathBuf> {
    let trees = ["/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"];
    trees
        .map(|tree| PathBuf::from(tree).join(&bundle.id).join("pids.max"))
        .into_iter()
        .find(|path| path.exists())
}

#[test]
fn limits_can_be_changed() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.start();
    bundle.fails(&["update", &bundle.id], &["nothing to update"]);
    bundle.fails(&["update", "-r", "nowhere", &bundle.id], &["nowhere", "No such file or directory"]);
    fs::write(bundle.path("bad"), "{\"pids\": {\"limit\": \"many\"}}").unwrap();
    bundle.fails(&["update", "-r", "bad", &bundle.id], &["bad", "line 1"]);
    let ended = bundle.run(&["update", "--pids-limit", "50", &bundle.id]);
    // On a host with both versions of cgroups the place is made with its first limit.
    let Some(file) = pids_max(&bundle) else {
        assert_eq!(ended.code, 1, "{ended:?}");
        return skipped("limits_can_be_changed", "this user has no cgroup with a pids controller here");
    };
    ended.ok();
    let limit = || fs::read_to_string(&file).unwrap().trim().to_owned();
    assert_eq!(limit(), "50");
    let mut command = bundle.command(&["update", "--resources", "-", &bundle.id]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(json!({"pids": {"limit": 33}}).to_string().as_bytes()).unwrap();
    finish(child).ok();
    assert_eq!(limit(), "33");
    // What is refused changes nothing.
    bundle.fails(&["update", "--pids-limit", "44", "--kernel-memory", "5", &bundle.id], &["kernel"]);
    assert_eq!(limit(), "33");
    bundle.run(&["update", "--pids-limit", "-1", &bundle.id]).ok();
    assert_eq!(limit(), "max");
}

#[test]
fn events_are_lines_of_json() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.fails(&["events", "--stats", &bundle.id], &["does not exist"]);
    bundle.start();
    if !can_pause() {
        bundle.fails(&["events", "--stats", &bundle.id], &["has no cgroup"]);
        return skipped("events_are_lines_of_json", "there is no cgroup for this user here");
    }
    let check = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&event["type"], &event["id"]), (&"stats".into(), &bundle.id.as_str().into()));
        assert!(event["data"]["cpu"]["usage"]["total"].is_u64(), "{line}");
    };
    check(&bundle.run(&["events", "--stats", &bundle.id]).ok());
    let mut child = bundle.spawn(&["events", "--interval", "10ms", &bundle.id]);
    let mut lines = BufReader::new(PatientPipe(child.stdout.take().unwrap())).lines();
    for _ in 0..3 {
        check(&lines.next().unwrap().unwrap());
    }
    // It ends with the container.
    bundle.run(&["kill", &bundle.id, "KILL"]).ok();
    lines.for_each(|line| check(&line.unwrap()));
    assert!(exit_status(&mut child).success());
    bundle.wait_status("stopped");
    bundle.fails(&["events", "--stats", &bundle.id], &["not running"]);
}
