//! Hooks: when, where and with what they are called.

use std::fs;

use serde_json::{Value, json};

use super::bundle::Bundle;

/// A shell script as a hook.
fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin", "HOOK=set"]})
}

#[test]
fn all_are_called_in_order_with_the_state() {
    let bundle = Bundle::new("echo process");
    let calls = bundle.path("calls");
    fs::create_dir(bundle.path("rootfs/hooks")).unwrap();
    fs::set_permissions(bundle.path("rootfs/hooks"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    bundle.configure(|config| {
        // Those before the root is changed see the host's files, startContainer sees the container's.
        let outside = |name: &str| {
            hook(&format!("printf '{name} %s ' $HOOK >>{0}; cat >>{0}; echo >>{0}", calls.display()))
        };
        let inside = hook("printf 'startContainer %s ' $HOOK >/hooks/inside; cat >>/hooks/inside");
        config["hooks"] = json!({
            "prestart": [outside("prestart")],
            "createRuntime": [outside("createRuntime"), outside("createRuntime2")],
            "createContainer": [outside("createContainer")],
            "startContainer": [inside],
            "poststart": [outside("poststart")],
            "poststop": [outside("poststop")],
        });
    });
    let names = || {
        let text = fs::read_to_string(&calls).unwrap_or_default();
        text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    bundle.create();
    assert_eq!(names(), ["prestart", "createRuntime", "createRuntime2", "createContainer"]);
    assert!(!bundle.path("rootfs/hooks/inside").exists());
    let pid = bundle.pid();
    bundle.ok("start");
    bundle.wait_out("process");
    assert!(bundle.path("rootfs/hooks/inside").exists());
    assert_eq!(names()[4..], ["poststart"]);
    bundle.wait_status("stopped");
    bundle.ok("delete");
    assert_eq!(names()[5..], ["poststop"]);
    let inside = fs::read_to_string(bundle.path("rootfs/hooks/inside")).unwrap();
    for line in fs::read_to_string(&calls).unwrap().lines().chain(inside.lines()) {
        let mut parts = line.splitn(3, ' ');
        let (name, set) = (parts.next().unwrap(), parts.next().unwrap());
        assert_eq!(set, "set", "{line}");
        let state: Value = serde_json::from_str(parts.next().unwrap()).unwrap();
        assert_eq!(state["id"], bundle.id.as_str(), "{line}");
        assert_eq!(state["ociVersion"], bundle.config()["ociVersion"], "{line}");
        assert_eq!(state["bundle"], bundle.path("").to_str().unwrap().trim_end_matches('/'), "{line}");
        let statuses: &[&str] = match name {
            "startContainer" => &["created"],
            "poststart" => &["running"],
            "poststop" => &["stopped"],
            _ => &["creating", "created"],
        };
        assert!(statuses.contains(&state["status"].as_str().unwrap()), "{line}");
        if !matches!(name, "poststop" | "startContainer" | "createContainer") {
            assert_eq!(state["pid"], pid, "{line}");
        }
    }
}

#[test]
fn one_that_fails_before_the_start_ends_it() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = Bundle::new("exec sleep 1000");
        bundle.configure(|config| config["hooks"] = json!({kind: [hook("echo its reason >&2; exit 3")]}));
        bundle.refuses(&[kind, "/bin/sh", "3"]);
        bundle.fails(&["run", &bundle.id], &[kind]);
        bundle.nothing_left();
    }
    let bundle = Bundle::new("exec sleep 1000");
    bundle.configure(|config| config["hooks"] = json!({"startContainer": [hook("exit 3")]}));
    bundle.create();
    bundle.fails(&["start", &bundle.id], &["startContainer"]);
    bundle.wait_status("stopped");
    bundle.fails(&["run", &format!("{}b", bundle.id)], &["startContainer"]);
}

#[test]
fn one_that_fails_after_the_start_stops_it() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.configure(|config| {
        config["hooks"] = json!({"poststart": [hook("exit 3")], "poststop": [hook("exit 3")]});
    });
    bundle.create();
    bundle.fails(&["start", &bundle.id], &["poststart", "3"]);
    bundle.wait_status("stopped");
    // Nothing can be stopped any more then: the deletion goes on.
    bundle.ok("delete");
    assert_eq!(bundle.status(), "gone");
}

#[test]
fn none_waits_for_ever() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.configure(|config| {
        let mut slow = hook("exec sleep 1000");
        slow["timeout"] = 1.into();
        config["hooks"] = json!({"createRuntime": [slow]});
    });
    bundle.refuses(&["createRuntime", "/bin/sh"]);
}
