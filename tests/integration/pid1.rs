//! PID 1: orphans, signals, exit statuses, the ways to stop.

use std::time::{Duration, Instant};

use crate::harness::{Stack, until};

/// A service that leaves an orphan behind, which ends after a moment.
const ORPHAN: &str = "sh -c '(sleep 0.1; exit 3) & exit 0'; exec sleep 1000";
/// How many in a container are in state Z, and how many sleep for 0.1 s.
const STATES: &str = "cat /proc/[0-9]*/stat 2> /dev/null | awk '{print $3}' | grep -c Z; \
                      ps -o args | grep -c '^sleep 0.1$'; true";

#[test]
fn orphans_are_reaped() {
    let stack = Stack::new(&format!(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"{ORPHAN}\"]\ninit_verbosity = 3\n\
         [services.bare]\ncommand = [\"sh\", \"-c\", \"{ORPHAN}\"]\ninit = false\nstop_grace_period = \"0s\"\n"
    ));
    stack.up();
    // A PID 1 that is not made for it keeps its dead: so the check can fail.
    until("a zombie without init", || (stack.sh("bare", STATES) == "1\n0").then_some(()));
    assert_eq!(stack.sh("bare", "cat /proc/1/comm"), "sleep");
    until("the orphan's end", || (stack.sh("a", STATES) == "0\n0").then_some(()));
    let log = stack.wait_log("a", "reaped orphan");
    assert!(log.contains("exited with status 3"), "{log}");
    // Many at a time.
    stack.sh("a", "for i in $(seq 100); do sh -c 'sleep 0.1 &'; done");
    until("the orphans' end", || (stack.sh("a", STATES) == "0\n0").then_some(()));
    assert!(stack.logs("a").matches("reaped orphan").count() > 100);
}

#[test]
fn signals_are_passed_on() {
    let traps = "for s in USR1 USR2 HUP 37; do trap \\\"echo got $$s\\\" $$s; done; trap 'echo got TERM; exit 9' TERM; \
                 echo ready; while :; do sleep 0.02; done";
    let stack = Stack::new(&format!(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"{traps}\"]\ninit_verbosity = 1\n\
         [services.bare]\ncommand = [\"sh\", \"-c\", \"{traps}\"]\ninit = false\n"
    ));
    stack.up();
    for service in ["a", "bare"] {
        stack.wait_log(service, "ready");
        // The last is a real-time signal.
        for signal in ["USR1", "USR2", "HUP", "37"] {
            stack.sh(service, &format!("kill -{signal} 1"));
            stack.wait_log(service, &format!("got {signal}"));
        }
    }
    let log = stack.logs("a");
    assert!(log.contains("received SIGUSR1 from pid") && log.contains("forwarding to pid"), "{log}");
    stack.run(&["stop"]).ok();
    for service in ["a", "bare"] {
        assert!(stack.logs(service).contains("got TERM"));
        let row = stack.row(service);
        assert!(row["state"] == "exited" && row["exit_code"] == 9 && row["pid"].is_null(), "{row}");
    }
}

#[test]
fn exit_statuses_are_the_programs_own() {
    let stack = Stack::new(
        r#"
[services.five]
command = ["sh", "-c", "exit 5"]
[services.killed]
command = ["sh", "-c", "kill -9 $$$$"]
[services.bare]
command = ["sh", "-c", "exit 6"]
init = false
[services.stays]
command = ["sleep", "1000"]
"#,
    );
    stack.up();
    for (service, code) in [("five", 5), ("killed", 137), ("bare", 6)] {
        stack.wait(service, "exit_code", code);
        assert_eq!(stack.row(service)["state"], "exited");
    }
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(stack.run(&["run", "--rm", "stays", "sh", "-c", script]).code, code, "run: {script}");
        assert_eq!(stack.exec("stays", script).code, code, "exec: {script}");
    }
}

#[test]
fn who_does_not_stop_is_killed_after_the_grace_period() {
    let stack = Stack::new(
        r#"
[services.deaf]
command = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.02; done"]
stop_grace_period = "300ms"
[services.other]
command = ["sh", "-c", "trap 'exit 4' QUIT; trap '' TERM; echo ready; while :; do sleep 0.02; done"]
stop_signal = "SIGQUIT"
stop_grace_period = "20s"
"#,
    );
    stack.up();
    for service in ["deaf", "other"] {
        stack.wait_log(service, "ready");
    }
    let start = Instant::now();
    stack.run(&["stop", "deaf"]).ok();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(stack.row("deaf")["exit_code"], 137);
    stack.run(&["stop", "other"]).ok();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(stack.row("other")["exit_code"], 4);
}
