//! What is told about containers and about the runtime.

use std::fs;

use serde_json::Value;

use super::bundle::{Bundle, binary};
use crate::harness::{ended, is_root};

#[test]
fn list_shows_all_that_can_be_read() {
    let bundle = Bundle::new("exec sleep 1000");
    assert_eq!(bundle.run(&["list", "-q"]).ok(), "");
    bundle.start();
    // Left by somebody else, or by a crash.
    let root = bundle.root();
    fs::create_dir(root.join("broken")).unwrap();
    fs::write(root.join("broken/state.json"), "{\"id\": ").unwrap();
    fs::create_dir(root.join("half")).unwrap();
    fs::write(root.join("file"), "").unwrap();
    fs::create_dir(root.join("no name")).unwrap();
    let table = bundle.run(&["list"]);
    assert_eq!(table.code, 0, "{table:?}");
    let words: Vec<&str> = table.out.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(words, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let row = table.out.lines().find(|line| line.starts_with(&bundle.id)).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[1..3], [bundle.pid().to_string().as_str(), "running"]);
    assert_eq!(cells[3], bundle.path("").to_str().unwrap().trim_end_matches('/'));
    if is_root() {
        assert_eq!(cells[5], "root");
    }
    assert!(table.err.contains("`broken`"), "{table:?}");
    let json: Value = serde_json::from_str(&bundle.run(&["list", "--format", "json"]).ok()).unwrap();
    let entry = json.as_array().unwrap().iter().find(|entry| entry["id"] == bundle.id.as_str()).unwrap();
    assert_eq!((&entry["status"], &entry["pid"]), (&"running".into(), &bundle.pid().into()));
    assert!(bundle.run(&["list", "-q"]).ok().lines().any(|line| line == bundle.id));
    // Such entries can be deleted.
    for name in ["broken", "half"] {
        bundle.run(&["delete", "--force", name]).ok();
        assert!(!root.join(name).exists(), "{name}");
    }
    fs::remove_file(root.join("file")).unwrap();
    fs::remove_dir(root.join("no name")).unwrap();
    let odd: Value =
        serde_json::from_str(&bundle.run(&["--root", "/no/such/directory", "list", "-f", "json"]).ok())
            .unwrap();
    assert_eq!(odd, serde_json::json!([]));
}

#[test]
fn ps_shows_the_containers_processes() {
    let bundle = Bundle::new("sleep 1000 & exec sleep 1000");
    bundle.start();
    // Others of this user are not its own.
    let other = Bundle::new("exec sleep 1000");
    other.start();
    let pids: Vec<i32> = crate::harness::until("two processes", || {
        let json = bundle.run(&["ps", "--format", "json", &bundle.id]).ok();
        serde_json::from_str(&json).ok().filter(|pids: &Vec<i32>| pids.len() == 2)
    });
    assert!(pids.contains(&bundle.pid()));
    let table = bundle.ok("ps");
    assert_eq!(table.lines().count(), 3, "{table}");
    let table = bundle.run(&["ps", &bundle.id, "-o", "pid,comm"]).ok();
    assert!(table.lines().skip(1).all(|line| line.ends_with("sleep")), "{table}");
    bundle.fails(&["ps", &bundle.id, "-o", "comm"], &["PID"]);
}

#[test]
fn spec_is_a_bundle_to_begin_with() {
    let bundle = Bundle::new("true");
    let config = bundle.config();
    assert_eq!(config["root"]["path"], "rootfs");
    bundle.fails(&["spec"], &["config.json", "File exists"]);
    bundle.fails(&["spec", "--bundle", "nowhere"], &["nowhere/config.json"]);
    fs::create_dir(bundle.path("b")).unwrap();
    bundle.run(&["spec", "--rootless", "-b", "b"]).ok();
    let rootless: Value = serde_json::from_slice(&fs::read(bundle.path("b/config.json")).unwrap()).unwrap();
    assert_eq!(rootless["linux"]["uidMappings"][0]["hostID"], rustix::process::geteuid().as_raw());
}

#[test]
fn the_runtime_says_what_it_is() {
    let bundle = Bundle::new("true");
    let version = bundle.run(&["--version"]).ok();
    assert!(version.starts_with("inception-oci version ") && version.contains("\nspec: 1."), "{version}");
    let version = ended(std::process::Command::new(binary()).arg("-v")).ok();
    assert!(version.starts_with("inception-oci version "), "{version}");
    let features: Value = serde_json::from_str(&bundle.run(&["features"]).ok()).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert!(features["hooks"].as_array().unwrap().contains(&"createRuntime".into()));
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
}

#[test]
fn messages_have_the_asked_form() {
    let bundle = Bundle::new("true");
    bundle.fails(&["state", "nobody"], &["`nobody` does not exist"]);
    bundle.fails(&["frobnicate"], &["frobnicate"]);
    bundle.fails(&["create", "--frobnicate", "x"], &["--frobnicate"]);
    let log = bundle.path("text");
    let text = |more: &[&str]| {
        let mut command = std::process::Command::new(binary());
        command.arg("--root").arg(bundle.root()).arg("--log").arg(&log).args(more);
        assert_eq!(ended(&mut command).code, 1);
        let text = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        text
    };
    let line = text(&["state", "nobody"]);
    assert!(
        line.starts_with("time=\"20") && line.contains("\" level=error msg=\"") && line.ends_with("\"\n"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
    let line = text(&["--log-format", "json", "state", "nobody"]);
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["level"], "error");
    // A log that cannot be written does not hide the message.
    let run = bundle.run(&["--log", "/no/such/directory/log", "state", "nobody"]);
    assert!(run.code == 1 && run.err.contains("nobody"), "{run:?}");
}
