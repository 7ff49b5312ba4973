//! What is kept of what services write, and how it is found again.

use std::io::{BufRead, BufReader};
use std::time::Instant;

use serde_json::Value;

use crate::harness::{Stack, ended, finish, until};

/// A service with small log files that has written this many lines.
fn counted(lines: u32) -> Stack {
    let stack = Stack::new(&format!(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"for i in $$(seq 1 {lines}); do echo line $$i; done; exec sleep 1000\"]\n\
         logging = {{ options = {{ max-size = \"4k\", max-file = \"50\" }} }}\n\
         [services.b]\ncommand = [\"sh\", \"-c\", \"echo line b; exec sleep 1000\"]\n"
    ));
    stack.up();
    stack.wait_log("a", &format!("line {lines}\n"));
    stack.wait_log("b", "line b");
    stack
}

#[test]
fn lines_are_found_by_time_and_by_what_they_say_across_files() {
    let stack = counted(500);
    let files = std::fs::read_dir(stack.path("r").join(&stack.name)).unwrap();
    let rotated =
        files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with("a.log."));
    assert!(rotated.count() > 3);
    let lines = |arguments: &[&str]| -> Vec<String> {
        let arguments = [&["logs", "--no-log-prefix"], arguments, &["a"]].concat();
        stack.run(&arguments).ok().lines().map(str::to_owned).collect()
    };
    assert_eq!(lines(&["--grep", "7$"]).len(), 50);
    assert_eq!(lines(&["--grep", "(?i)LINE 4\\d\\d"]).len(), 100);
    // The last ones of those that match.
    assert_eq!(lines(&["--grep", "7$", "--tail", "2"]), ["line 487", "line 497"]);
    assert_eq!(lines(&["--since", "1h"]).len(), 500);
    assert!(lines(&["--until", "1h"]).is_empty() && lines(&["--since", "2999-01-01"]).is_empty());
    let times: Vec<String> =
        lines(&["-t"]).iter().map(|line| line.split_once(' ').unwrap().0.to_owned()).collect();
    assert!(times.len() == 500 && times.is_sorted());
    // Lines that were read together have one time.
    let (from, to) =
        (times.partition_point(|time| *time < times[100]), times.partition_point(|time| *time <= times[400]));
    assert_eq!(lines(&["--since", &times[100], "--until", &times[400]]).len(), to - from);
    // It ends although it follows.
    stack.run(&["logs", "-f", "--until", "0s", "a"]).ok();
    assert_eq!(stack.run(&["logs", "--grep", "line b"]).ok(), "b  | line b\n");
    for (arguments, word) in
        [(["--grep", "("], "unclosed group"), (["--since", "yesterday"], "such as `10m`")]
    {
        let said = stack.run(&[&["logs"], &arguments[..]].concat());
        assert!(said.code == 2 && said.err.contains(word), "{said:?}");
    }
}

#[test]
fn what_is_followed_is_filtered_too() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"echo old; until [ -e /tmp/go ]; do sleep 0.02; done; echo drop; echo new; exec sleep 1000\"]\n",
    );
    stack.up();
    stack.wait_log("a", "old");
    let follower = stack.spawn(&["logs", "-f", "--no-log-prefix", "--grep", "old|new", "a"]);
    stack.sh("a", "touch /tmp/go");
    stack.wait_log("a", "new");
    stack.run(&["down"]).ok();
    assert_eq!(finish(follower).ok(), "old\nnew\n");
}

/// Bytes of text in a service's log.
fn written(stack: &Stack, service: &str) -> u64 {
    stack.logs(service).len() as u64
}

#[test]
fn who_writes_too_much_waits_and_it_is_told() {
    const RATE: u64 = 65536;
    let stack = Stack::new(
        "[services.a]\ncommand = [\"yes\"]\nlogging = { options = { rate = \"64k\", max-size = \"-1\" } }\n\
         [services.b]\ncommand = [\"sh\", \"-c\", \"while :; do echo b; sleep 0.1; done\"]\n",
    );
    let start = Instant::now();
    stack.up();
    until("the event", || {
        let events = stack.run(&["events", "--no-follow", "--filter", "event=log-held", "a"]).ok();
        events.contains("more than 65536 bytes a second").then_some(())
    });
    let size = until("three seconds' worth", || Some(written(&stack, "a")).filter(|size| *size > 3 * RATE));
    // What was allowed, a second's worth at once, and what is read at a time.
    let allowed = start.elapsed().as_secs_f64() * RATE as f64 + RATE as f64 + 32768.0;
    assert!((size as f64) < allowed, "{size} bytes, {allowed} were allowed");
    // Others are not slowed, and the one that waits can be stopped.
    let before = stack.logs("b").len();
    until("the other one", || (stack.logs("b").len() > before).then_some(()));
    stack.run(&["stop", "a"]).ok();
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn what_is_dropped_is_counted() {
    const LINES: u64 = 200_000;
    let stack = Stack::new(&format!(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"for i in $$(seq 1 {LINES}); do echo line $$i; done; exec sleep 1000\"]\n\
         logging = {{ options = {{ mode = \"non-blocking\", rate = \"100k\", max-size = \"-1\" }} }}\n",
    ));
    stack.up();
    until("an account of every line", || {
        let log = stack.logs("a");
        let kept = log.lines().filter(|line| line.starts_with("line ")).count() as u64;
        let said = log
            .lines()
            .filter_map(|line| line.strip_prefix("inception-run: ")?.split_once(" lines were left out"));
        let counted: u64 = said.map(|(number, _)| number.parse::<u64>().unwrap()).sum();
        assert!(kept + counted <= LINES, "{kept} lines and {counted}");
        (counted > 0 && kept + counted == LINES).then_some(())
    });
    let events =
        stack.run(&["events", "--no-follow", "--format", "json", "--filter", "event=log-left-out"]).ok();
    let left_out =
        events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["lines"].as_u64().unwrap());
    assert!(left_out.sum::<u64>() > 0, "{events}");
}

/// As root: an ordinary user mounts nothing.
#[test]
fn a_full_disk_ends_nothing_and_is_told() {
    if !crate::harness::is_root() {
        return crate::harness::skipped(
            "a_full_disk_ends_nothing_and_is_told",
            "only root mounts one to fill it",
        );
    }
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"while :; do echo a line of some length; sleep 0.001; done\"]\n",
    );
    let disk = stack.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let script = format!(
        r#"
        mount -t tmpfs -o size=1m,mode=0700 tmpfs {disk}
        export INCEPTION_RUNTIME_DIR={disk}
        ir="{program} -f {file}"
        RUST_LOG=info $ir up -d
        dd if=/dev/zero of={disk}/filler bs=4096 2> /dev/null || true
        # As long as that takes: more lines than the last page has room for.
        for i in $(seq 300); do
            [ -z "$($ir events --no-follow --filter event=log-left-out)" ] || break
            [ $i != 20 ] || rm {disk}/filler
            sleep 0.1
        done
        $ir events --no-follow --filter event=log-left-out
        $ir logs --grep 'lines were left out here: No space left'
        $ir ps --format json
        # The mount goes with its namespace.
        $ir down
        "#,
        disk = disk.display(),
        program = crate::harness::binary().display(),
        file = stack.path("stack.toml").display(),
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-euc", &script]).env("INCEPTION_DATA_DIR", stack.data());
    let said = ended(&mut command).ok();
    assert!(said.contains("log incomplete: ") && said.contains("left out here: No space left"), "{said}");
    assert!(said.contains("\"restarts\": 0") && said.contains("\"state\": \"running\""), "{said}");
}

#[test]
fn who_follows_notices_that_nobody_reads() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"echo once; exec sleep 1000\"]\nstop_grace_period = \"0s\"\n",
    );
    stack.up();
    stack.wait_log("a", "once");
    for arguments in [&["logs", "-f"][..], &["events", "--recent"]] {
        let mut child = stack.spawn(arguments);
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert!(line.contains("once") || line.contains("started"), "{line}");
        // Nothing more is written.
        drop(reader);
        let status = until(&format!("{arguments:?} ends"), || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(141), "{arguments:?}");
    }
}
