//! `stats` and `top`: what services use, from cgroups where there are any, else from `/proc`.

use serde_json::Value;

use crate::harness::{Stack, until};

const BUSY: &str = r#"
[services.busy]
command = ["sh", "-c", "while :; do :; done"]
mem_limit = "512m"

[services.idle]
command = ["sh", "-c", "head -c 30000000 /dev/zero > /tmp/x; x=$$(head -c 20000000 /dev/zero | tr '\\0' a); echo ready; sleep 1000; echo $$x"]

[services.done]
command = ["true"]
"#;

fn stats(stack: &Stack, service: &str) -> Value {
    let rows: Vec<Value> =
        serde_json::from_str(&stack.run(&["stats", "--no-stream", "--format", "json"]).ok()).unwrap();
    rows.iter().find(|row| row["service"] == service).unwrap_or_else(|| panic!("{rows:?}")).clone()
}

#[test]
fn what_services_use_is_counted() {
    let stack = Stack::new(BUSY);
    stack.up();
    stack.wait_log("idle", "ready");
    stack.wait("done", "exit_code", 0);
    let used = until("the busy service uses the processor", || {
        Some(stats(&stack, "busy")).filter(|row| row["usage"]["cpu_percent"].as_f64() > Some(1.0))
    });
    let usage = &used["usage"];
    assert_eq!(usage["memory"]["limit"]["value"], 512 << 20, "{used}");
    assert!(usage["pids"].as_u64() >= Some(1) && usage["network"]["in"].is_u64(), "{used}");
    let idle = stats(&stack, "idle");
    let memory = idle["usage"]["memory"]["bytes"].as_u64().unwrap();
    assert!((20_000_000..200_000_000).contains(&memory), "{idle}");
    assert!(idle["usage"]["memory"]["limit"].is_null(), "{idle}");
    // What a process that `exec` started uses is the service's, too.
    let before = idle["usage"]["pids"].as_u64().unwrap();
    let mut inside = stack.spawn(&["exec", "idle", "sh", "-c", "echo in; sleep 1000"]);
    until("the process that was started inside is counted", || {
        (stats(&stack, "idle")["usage"]["pids"].as_u64().unwrap() > before).then_some(())
    });
    inside.kill().unwrap();
    inside.wait().unwrap();
    // One that does not run uses nothing.
    let done = stats(&stack, "done");
    assert!(done["usage"].is_null() && done["oom_killed"] == false, "{done}");
    let table = stack.run(&["stats", "--no-stream"]).ok();
    assert!(
        table.starts_with("SERVICE   CPU %") && table.contains("busy") && !table.contains("done"),
        "{table}"
    );
    assert!(stack.run(&["stats", "--no-stream", "done"]).ok().contains("done"));
    stack.run(&["stats", "--no-stream", "nobody"]).fails(2, &["nobody", "hint:"]);
}
