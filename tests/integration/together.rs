//! Commands at the same time, and what they say when the stack ends under them.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::Child;

use crate::harness::{Ended, Stack, ended, finish, is_root, skipped, until};
use crate::killed::kill;

const SLEEPER: &str = "[services.a]\ncommand = [\"sleep\", \"1000\"]\n";
/// Ends by SIGKILL only, after longer than a command takes to ask for something.
const STUBBORN: &str = "[services.a]\ncommand = [\"sh\", \"-c\", \"trap '' TERM; while :; do sleep 0.02; done\"]\n\
                        stop_grace_period = \"5s\"\n";

/// Waits until a command has written a line.
fn line(child: &mut Child) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while child.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

#[track_caller]
fn kill_supervisor(stack: &Stack) {
    kill(stack.supervisor().unwrap());
}

#[test]
fn ups_at_once_bring_up_one_stack() {
    let stack = Stack::new(SLEEPER);
    for _ in 0..2 {
        let ups = [(); 8].map(|()| stack.spawn(&["up", "-d", "--wait"]));
        for up in ups {
            finish(up).ok();
        }
        assert_eq!(stack.row("a")["state"], "running");
        stack.run(&["down"]).ok();
        stack.nothing_left();
    }
}

#[test]
fn an_up_during_a_down_begins_anew() {
    let stack = Stack::new(STUBBORN);
    for command in [&["up", "-d", "--wait"][..], &["stack.toml"]] {
        stack.up();
        let before = stack.supervisor();
        let down = stack.spawn(&["down"]);
        stack.wait("a", "state", "stopping");
        let up = stack.spawn(command);
        finish(down).ok();
        until("another supervisor", || stack.supervisor().filter(|pid| Some(*pid) != before));
        until("the service", || stack.run(&["ps"]).out.contains("running").then_some(()));
        stack.run(&["down"]).ok();
        let up = finish(up);
        assert!(up.err.contains("is being taken down"), "{up:?}");
        up.ok();
        stack.nothing_left();
    }
    // At whatever moment of the end it comes.
    stack.rewrite(SLEEPER);
    for _ in 0..8 {
        stack.up();
        let down = stack.spawn(&["down"]);
        stack.run(&["up", "-d", "--wait"]).ok();
        finish(down).ok();
        let rows = stack.ps();
        assert!(rows.is_empty() || rows[0]["state"] == "running", "{rows:?}");
        // The other one may have come last.
        stack.run(&["down"]).ok();
    }
}

#[test]
fn who_waits_for_a_stack_hears_how_it_ended() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"while :; do echo tick; sleep 0.02; done\"]\n\
         [services.b]\ncommand = [\"true\"]\n",
    );
    let watchers = || {
        stack.wait("b", "state", "exited");
        let mut watchers = [&["wait", "b", "a"][..], &["attach", "a"]].map(|command| stack.spawn(command));
        for (watcher, first) in watchers.iter_mut().zip(["b exited with status 0", "tick"]) {
            assert_eq!(line(watcher), first);
        }
        watchers
    };
    let mut foreground = stack.spawn(&["stack.toml"]);
    line(&mut foreground);
    let ends = watchers();
    stack.run(&["down"]).ok();
    for end in ends {
        // The container's end comes first.
        assert_eq!(finish(end).code, 143);
    }
    let up = finish(foreground);
    assert!(up.err.contains("the stack was taken down") && !up.err.contains("error"), "{up:?}");
    up.ok();

    let mut foreground = stack.spawn(&["stack.toml"]);
    line(&mut foreground);
    let mut joined = stack.spawn(&["stack.toml"]);
    line(&mut joined);
    let ends = watchers();
    kill_supervisor(&stack);
    for end in ends.into_iter().chain([foreground, joined]) {
        finish(end).fails(1, &["the stack's supervisor has ended"]);
    }
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn what_was_done_or_was_not_is_said() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\nvolumes = [\"kept:/data\"]\n\
         [services.b]\ncommand = [\"sleep\", \"1000\"]\n[volumes.kept]\n",
    );
    stack.up();
    assert_eq!(stack.up(), "a: running already\nb: running already\n");
    stack.run(&["stop", "a"]).ok();
    assert_eq!(stack.up(), "a: running\nb: running already\n");
    let names: BTreeSet<String> = stack
        .processes()
        .into_iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    for name in ["inception-super", "inception-hub", "inception-netd"] {
        assert!(names.contains(name), "{names:?}");
    }
    let arguments = std::fs::read(format!("/proc/{}/cmdline", stack.supervisor().unwrap())).unwrap();
    assert!(arguments.starts_with(b"inception-run\0__supervise\0"), "{arguments:?}");
    stack.run(&["down"]).ok();
    let down: Ended = stack.run(&["down", "-v"]);
    assert!(down.err.contains("volume kept: removed\n"), "{down:?}");
    stack.nothing_left();
}

#[test]
fn a_supervisor_that_cannot_begin_leaves_nothing() {
    if is_root() {
        return skipped("a_supervisor_that_cannot_begin_leaves_nothing", "root maps ids without a helper");
    }
    let stack = Stack::new(SLEEPER);
    // Then there is an image, and the supervisor is the first that needs the helper.
    stack.up();
    stack.run(&["down"]).ok();
    let up = ended(stack.command(&["up", "-d"]).env("PATH", "/nowhere"));
    up.fails(1, &["run newuidmap", "No such file or directory", "package `uidmap`"]);
    stack.nothing_left();
    stack.run(&["logs", "a"]).fails(1, &["has no logs"]);
}
