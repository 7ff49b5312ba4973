//! Services in the PID and IPC namespace of another.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Stack, until};

#[track_caller]
fn namespace(stack: &Stack, service: &str, kind: &str) -> String {
    let pid = stack.pid(service);
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// The numbers of the processes with this command line, as `service` sees them.
#[track_caller]
fn find(stack: &Stack, service: &str, command: &str) -> Vec<String> {
    let script = format!(
        "for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' < $p/cmdline 2> /dev/null)\" = '{command} ' ] && echo $p; done; true"
    );
    stack.sh(service, &script).lines().map(|path| path["/proc/".len()..].to_owned()).collect()
}

#[track_caller]
fn count(stack: &Stack, service: &str, command: &str) -> usize {
    find(stack, service, command).len()
}

const OWNER: &str = r#"
[services.owner]
command = ["sh", "-c", "trap exit TERM; sleep 4001 & wait"]
init = true
"#;

#[test]
fn a_service_is_in_the_pid_namespace_of_another() {
    let stack = Stack::new(&format!(
        r#"{OWNER}
[services.guest]
command = ["sh", "-c", "sleep 4002 & sh -c 'sleep 4003 & exit' ; wait"]
pid = "service:owner"
init = true
stop_grace_period = "0s"
[services.bare]
command = ["sleep", "4004"]
pid = "container:owner"
init = false
[services.host]
command = ["sleep", "4005"]
pid = "service:owner"
network_mode = "host"
init = true
"#
    ));
    stack.up();
    let of = namespace(&stack, "owner", "pid");
    for guest in ["guest", "bare", "host"] {
        assert_eq!(namespace(&stack, guest, "pid"), of, "{guest}");
        for kind in ["mnt", "uts", "ipc", "cgroup"] {
            assert_ne!(namespace(&stack, guest, kind), namespace(&stack, "owner", kind), "{guest}: {kind}");
        }
        // Each sees all, by the `/proc` that it has.
        for words in ["sleep 4001", "sleep 4002", "sleep 4004", "sleep 4005"] {
            until(&format!("{guest} sees {words}"), || (count(&stack, guest, words) > 0).then_some(()));
        }
        assert!(stack.sh(guest, "cat /proc/1/cmdline").starts_with("inception-init"));
    }
    assert_ne!(stack.sh("guest", "hostname"), stack.sh("owner", "hostname"));
    // What a guest leaves behind is its own init's, and not the owner's.
    until("an orphan that was taken in", || {
        let orphan = find(&stack, "guest", "sleep 4003").pop()?;
        let parent = stack.sh("guest", &format!("cut -d ' ' -f 4 /proc/{orphan}/stat"));
        let command = stack.sh("guest", &format!("tr '\\0' ' ' < /proc/{parent}/cmdline"));
        (parent != "1" && command.starts_with("inception-init pid1")).then_some(())
    });
    // A run of its own is in there, too.
    assert_eq!(stack.run(&["run", "guest", "readlink", "/proc/self/ns/pid"]).ok().trim(), of);
    // A stop ends what is its own and nothing else, also when nothing reaps it: it ignores the signal.
    stack.run(&["exec", "-d", "guest", "sleep", "4006"]).ok();
    until("the process of exec", || (count(&stack, "bare", "sleep 4006") > 0).then_some(()));
    stack.run(&["stop", "guest"]).ok();
    for words in ["sleep 4002", "sleep 4003", "sleep 4006"] {
        assert_eq!(count(&stack, "owner", words), 0, "{words}");
    }
    for words in ["sleep 4001", "sleep 4004", "sleep 4005"] {
        assert_eq!(count(&stack, "owner", words), 1, "{words}");
    }
    stack.run(&["start", "guest"]).ok();
    until("the guest", || (count(&stack, "owner", "sleep 4003") == 1).then_some(()));
    // A pause is a container's.
    stack.run(&["pause", "bare"]).ok();
    stack.sh("guest", "true");
    stack.run(&["unpause", "bare"]).ok();
    let usage: serde_json::Value =
        serde_json::from_str(&stack.run(&["stats", "--no-stream", "--format", "json", "bare"]).ok()).unwrap();
    assert_eq!(usage[0]["usage"]["pids"], 1, "{usage}");
    // One that is killed on the host takes its own with it as well.
    kill(stack.pid("guest"));
    stack.wait("guest", "state", "exited");
    assert_eq!(count(&stack, "owner", "sleep 4002"), 0);
    assert_eq!(count(&stack, "owner", "sleep 4001"), 1);
}

#[test]
fn those_in_a_pid_namespace_go_and_come_with_its_owner() {
    let stack = Stack::new(&format!(
        r#"{OWNER}restart = "always"
[services.guest]
command = ["sleep", "4002"]
pid = "service:owner"
[services.done]
command = ["true"]
pid = "service:owner"
"#
    ));
    stack.up();
    stack.wait("done", "state", "exited");
    let (owner, guest) = (stack.pid("owner"), stack.pid("guest"));
    // Its end is theirs, and its policy brings them back with it; who had ended by itself stays as it is.
    kill(owner);
    let back = |before: i32| {
        until("both are back", || {
            let row = stack.row("guest");
            let pid = row["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())?;
            (row["state"] == "running" && pid != before).then_some(pid)
        })
    };
    let second = back(guest);
    assert_eq!(namespace(&stack, "guest", "pid"), namespace(&stack, "owner", "pid"));
    assert_ne!(stack.pid("owner"), owner);
    // A user's restart stops them in order.
    stack.run(&["restart", "owner"]).ok();
    back(second);
    assert_eq!(namespace(&stack, "guest", "pid"), namespace(&stack, "owner", "pid"));
    assert_eq!(stack.row("done")["exit_code"], 0);
    // Without it there is nothing to be in.
    stack.run(&["stop", "owner"]).ok();
    stack.wait("guest", "state", "exited");
    stack
        .run(&["run", "--no-deps", "guest", "true"])
        .fails(1, &["service `owner`", "is not running", "start owner"]);
    stack.run(&["start", "guest"]).ok();
    assert_eq!(stack.row("owner")["state"], "running");
    // Another configuration of the owner replaces both.
    let before = stack.pid("guest");
    stack.run(&["up", "-d", "--force-recreate", "owner"]).ok();
    back(before);
    assert_eq!(namespace(&stack, "guest", "pid"), namespace(&stack, "owner", "pid"));
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn services_share_memory() {
    let stack = Stack::new(&format!(
        r#"{OWNER}ipc = "shareable"
shm_size = "1m"
[services.guest]
command = ["sleep", "4002"]
ipc = "service:owner"
user = "app"
[services.without]
command = ["sleep", "4003"]
ipc = "none"
"#
    ));
    stack.up();
    assert_eq!(namespace(&stack, "guest", "ipc"), namespace(&stack, "owner", "ipc"));
    assert_ne!(namespace(&stack, "guest", "pid"), namespace(&stack, "owner", "pid"));
    stack.sh("owner", "echo hello > /dev/shm/word");
    assert_eq!(stack.sh("guest", "cat /dev/shm/word; echo back > /dev/shm/answer"), "hello");
    assert_eq!(stack.sh("owner", "cat /dev/shm/answer; stat -c %U /dev/shm/answer"), "back\napp");
    let device = |service: &str| stack.sh(service, "stat -c %d /dev/shm /dev/mqueue");
    assert_eq!(device("guest"), device("owner"));
    assert_ne!(stack.exec("without", "test -e /dev/shm").code, 0);
    assert_ne!(namespace(&stack, "without", "ipc"), namespace(&stack, "owner", "ipc"));
    // They have the new one after a restart, though the old one would have lived on with them.
    let before = stack.pid("guest");
    stack.run(&["stop", "owner"]).ok();
    assert_eq!(stack.pid("guest"), before);
    stack.run(&["start", "owner"]).ok();
    until("the new namespace", || {
        let row = stack.row("guest");
        let there = row["state"] == "running" && row["pid"].as_i64() != Some(before.into());
        (there && namespace(&stack, "guest", "ipc") == namespace(&stack, "owner", "ipc")).then_some(())
    });
    assert_eq!(stack.sh("guest", "ls /dev/shm"), "");
}

#[test]
fn nothing_in_another_ones_namespace_outlives_the_supervisor() {
    let stack = Stack::new(&format!(
        "{OWNER}[services.guest]\ncommand = [\"sleep\", \"4002\"]\npid = \"service:owner\"\n"
    ));
    stack.up();
    kill(stack.supervisor().unwrap());
    stack.gone(Duration::from_secs(5));
}
