//! `stats` and `top`: what services use, from cgroups where there are any, else from `/proc`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, openpt};
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

#[test]
fn top_takes_a_terminal_and_gives_it_back() {
    let stack = Stack::new("[services.web]\ncommand = [\"sleep\", \"1000\"]\n");
    stack.run(&["top"]).fails(1, &["is not running", "hint:"]);
    stack.up();
    // No terminal: one look.
    let once = stack.run(&["top"]).ok();
    assert!(once.contains("1 of 1 services run") && !once.contains('\x1b'), "{once}");
    for (end, code) in [("key", 0), ("signal", 143)] {
        let (ours, theirs) = terminal();
        let before = rustix::termios::tcgetattr(&theirs).unwrap();
        let stdio = || Stdio::from(theirs.try_clone().unwrap());
        let mut command = stack.command(&["top"]);
        let mut top = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let mut ours = File::from(ours);
        let mut seen = String::new();
        let mut read_until = |ours: &mut File, text: &str| {
            until(text, || {
                let mut bytes = [0u8; 4096];
                // Nothing yet.
                let length = ours.read(&mut bytes).unwrap_or(0);
                seen.push_str(&String::from_utf8_lossy(&bytes[..length]));
                seen.contains(text).then_some(())
            });
        };
        read_until(&mut ours, "web");
        ours.write_all(b"\x1b[Bm").unwrap();
        read_until(&mut ours, "MEMORY*");
        read_until(&mut ours, "web: image");
        match end {
            "key" => ours.write_all(b"q").unwrap(),
            _ => {
                let pid = rustix::process::Pid::from_child(&top);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            }
        }
        // The cursor and the first screen are back, and so are the modes.
        read_until(&mut ours, "\x1b[?25h\x1b[?1049l");
        assert_eq!(top.wait().unwrap().code(), Some(code));
        let after = rustix::termios::tcgetattr(&theirs).unwrap();
        assert_eq!(after.local_modes, before.local_modes);
        assert_eq!(after.output_modes, before.output_modes);
    }
}

/// A pseudoterminal of 24 lines and 100 columns: our end and the program's.
pub(crate) fn terminal() -> (OwnedFd, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    rustix::pty::grantpt(&ours).unwrap();
    rustix::pty::unlockpt(&ours).unwrap();
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let size = rustix::termios::Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&theirs, size).unwrap();
    rustix::io::ioctl_fionbio(&ours, true).unwrap();
    (ours, theirs)
}

#[test]
fn doctor_says_what_it_costs_and_how_to_fix_it() {
    let stack = Stack::new("");
    let ended = stack.run(&["doctor", "--format", "json"]);
    let checks: Vec<Value> = serde_json::from_str(&ended.out).unwrap();
    let stops = checks.iter().any(|check| check["status"] == "error");
    assert_eq!(ended.code, i32::from(stops), "{checks:?}");
    assert!(!stops, "the other tests run here, so a stack can: {checks:?}");
    for check in &checks {
        let told = check["cost"].is_string() && check["fix"].is_string();
        assert!(check["status"] == "ok" || told, "{check}");
    }
    for name in
        ["kernel", "user namespaces", "overlayfs", "networks", "nftables", "limits (cgroup v2)", "inodes"]
    {
        assert!(checks.iter().any(|check| check["name"] == name), "no `{name}` in {checks:?}");
    }
    assert!(stack.run(&["doctor"]).ok().contains("overlayfs"));
    // A directory that nothing can be written to stops every stack.
    let mut command = stack.command(&["doctor"]);
    let ended = crate::harness::ended(command.env("INCEPTION_DATA_DIR", "/proc/inception"));
    assert!(ended.code == 1 && ended.out.contains("fix: export INCEPTION_DATA_DIR="), "{ended:?}");
}
