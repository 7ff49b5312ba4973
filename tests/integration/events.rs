//! `events`, and the faults of `net`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{DEADLINE, Stack, skipped, until};

const TWO: &str = r#"
[services.web]
command = ["sh", "-c", "touch /tmp/up; exec sleep 1000"]
restart = "always"
healthcheck = { test = ["CMD", "test", "-e", "/tmp/up"], interval = "50ms", retries = 1 }
[services.db]
command = ["sleep", "1000"]
"#;

/// `events --format json`, as it comes.
struct Watched {
    command: Child,
    lines: Receiver<Value>,
}

impl Watched {
    fn new(stack: &Stack, arguments: &[&str]) -> Self {
        let arguments = [&["events", "--format", "json"], arguments].concat();
        let mut command = stack.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(command.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines() {
                sender.send(serde_json::from_str(&line.unwrap()).unwrap()).ok();
            }
        });
        Self { command, lines }
    }

    /// Waits for an event of `container`, and returns it; those before it are skipped.
    #[track_caller]
    fn next(&self, container: impl Into<Value>, event: &str) -> Value {
        let container = container.into();
        let end = Instant::now() + DEADLINE;
        let mut others = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(row) if row["container"] == container && row["event"] == event => return row,
                Ok(row) => others.push(row),
                Err(error) => panic!("no {event} of {container}: {error}: {others:?}"),
            }
        }
    }
}

/// The last events, of these services.
fn past(stack: &Stack, arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["events", "--no-follow", "--format", "json"], arguments].concat();
    let text = stack.run(&arguments).ok();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_happens_is_told_as_it_happens_and_afterwards() {
    let stack = Stack::new(TWO);
    stack.up();
    let mut all = Watched::new(&stack, &["--recent"]);
    let mut db = Watched::new(&stack, &["db"]);
    assert_eq!(all.next("web", "started")["restarts"], 0);
    all.next("web", "healthy");
    stack.sh("web", "rm /tmp/up");
    assert!(all.next("web", "unhealthy")["output"].is_string());
    kill_process(Pid::from_raw(stack.pid("web")).unwrap(), Signal::KILL).unwrap();
    let exited = all.next("web", "exited");
    assert!(exited["status"] == 137 && exited["restarts"] == true, "{exited}");
    assert_eq!(all.next("web", "started")["restarts"], 1);
    kill_process(Pid::from_raw(stack.netd().unwrap()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(all.next(Value::Null, "netd-restarted")["reason"], "ended by signal 9");
    stack.run(&["stop", "db"]).ok();
    all.next("db", "stopping");
    assert_eq!(all.next("db", "exited")["restarts"], false);
    // Of one service, and what concerns all.
    let mut told = vec![db.next("db", "exited")];
    told.extend(db.lines.try_iter());
    assert!(told.iter().all(|row| row["container"] != "web"), "{told:?}");
    let words: Vec<Value> = past(&stack, &["db"]).into_iter().map(|row| row["event"].clone()).collect();
    assert_eq!(words, ["started", "netd-restarted", "stopping", "exited"]);
    assert!(past(&stack, &["--since", "2999-01-01T00:00:00Z"]).is_empty());
    assert!(past(&stack, &["--until", "1h"]).is_empty());
    let kinds = |arguments: &[&str]| -> Vec<Value> {
        past(&stack, arguments).into_iter().map(|row| row["event"].clone()).collect()
    };
    assert_eq!(kinds(&["--until", "0s", "--filter", "service=db", "--filter", "event=exited"]), ["exited"]);
    assert_eq!(
        kinds(&["--filter", "event=exited", "--filter", "event=started", "db"]),
        ["started", "exited"]
    );
    // It ends by itself where nothing can come any more.
    stack.run(&["events", "--until", "0s"]).ok();
    let unknown = stack.run(&["events", "--filter", "event=exitd"]);
    assert!(unknown.code == 2 && unknown.err.contains("did you mean `exited`"), "{unknown:?}");
    let text = stack.run(&["events", "--no-follow", "db"]).ok();
    assert!(text.lines().last().unwrap().contains(" db exited with status "), "{text}");
    stack.run(&["events", "nothing"]).fails(2, &["no such service: `nothing`", "web, db"]);
    // The end of the stack is the end of both.
    stack.run(&["down"]).ok();
    for watched in [&mut all, &mut db] {
        let ended = until("the end of `events`", || watched.command.try_wait().unwrap());
        assert!(ended.success(), "{ended}");
    }
    stack.run(&["events"]).fails(1, &["is not running"]);
}

#[test]
fn what_was_told_before_a_supervisor_was_killed_is_known_to_the_next() {
    let stack = Stack::new(TWO);
    stack.up();
    let kill = |pid: i32| kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    kill(stack.supervisor().unwrap());
    stack.up();
    let told = past(&stack, &[]);
    let words: Vec<&str> = told.iter().filter_map(|row| row["event"].as_str()).collect();
    let at = words.iter().position(|word| *word == "recovered").unwrap();
    assert_eq!(words.iter().filter(|word| **word == "recovered").count(), 1, "{words:?}");
    assert!(words[..at].contains(&"started") && words[at..].contains(&"started"), "{words:?}");
    // An orderly end is nothing to recover from.
    stack.run(&["down"]).ok();
    stack.up();
    assert!(past(&stack, &["--filter", "event=recovered"]).is_empty());
}

#[test]
fn a_start_that_fails_is_an_event() {
    let stack = Stack::new("[services.a]\ncommand = [\"/no/such/program\"]\n");
    stack.run(&["up", "-d"]).fails(1, &["/no/such/program"]);
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\n[services.b]\ncommand = [\"/no/such/program\"]\n",
    );
    stack.run(&["up", "-d", "a"]).ok();
    stack.run(&["create", "b"]).ok();
    stack.run(&["start", "b"]).fails(1, &["/no/such/program"]);
    let failed = past(&stack, &["b"]);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0]["error"].as_str().unwrap().contains("/no/such/program"), "{failed:?}");
}

#[test]
fn one_that_is_killed_was_not_unhealthy_before() {
    // The second probe is under way when its container is killed, and goes first.
    let probe = "test -e /tmp/probed && exec sleep 1000; touch /tmp/probed";
    let stack = Stack::new(&format!(
        r#"
[services.web]
command = ["sleep", "1000"]
healthcheck = {{ test = ["CMD", "sh", "-c", "{probe}"], interval = "20ms", timeout = "10m", retries = 1 }}
"#
    ));
    stack.run(&["up", "--wait"]).ok();
    until("the second probe", || (stack.exec("web", "pidof sleep | wc -w").out.trim() == "2").then_some(()));
    kill_process(Pid::from_raw(stack.pid("web")).unwrap(), Signal::KILL).unwrap();
    stack.wait("web", "state", "exited");
    let told: Vec<Value> = past(&stack, &["web"]).into_iter().map(|row| row["event"].clone()).collect();
    assert_eq!(told, ["started", "healthy", "exited"]);
}

#[test]
fn what_egress_refuses_is_told_and_a_flood_of_it_counted() {
    let stack = Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\negress = \"none\"\n");
    stack.up();
    // Also what is refused before it listens.
    let watched = Watched::new(&stack, &["--recent", "a"]);
    // An address for documentation (RFC 5737): nobody is there, and nobody is asked.
    assert_ne!(stack.exec("a", "echo x | nc -w 2 192.0.2.1 443").out, "x\n");
    let refused = watched.next("a", "egress-refused");
    assert!(refused["protocol"] == "tcp" && refused["destination"] == "192.0.2.1:443", "{refused}");
    stack.wait_log("a", "egress refused: tcp 192.0.2.1:443");
    stack.exec("a", "for i in $(seq 40); do nc -w 1 192.0.2.1 $i < /dev/null; done");
    // However slow this machine is: each was told, or counted.
    let mut seen = 0;
    while seen < 40 {
        let row = watched.lines.recv_timeout(DEADLINE).unwrap();
        seen += match row["event"].as_str() {
            Some("egress-refused") => 1,
            Some("egress-refusals") => row["left_out"].as_u64().unwrap(),
            _ => 0,
        };
    }
    assert_eq!(seen, 40);
}

/// A server that sends a megabyte to whoever connects, and one who can ask it.
const SERVED: &str = r#"
[services.web]
command = ["nc", "-ll", "-p", "80", "-e", "sh", "-c", "head -c 1000000 /dev/zero"]
[services.db]
command = ["nc", "-ll", "-p", "80", "-e", "echo", "db"]
[services.client]
command = ["sleep", "1000"]
"#;

fn received(stack: &Stack, from: &str) -> String {
    stack.exec("client", &format!("nc -w 1 {from} 80 < /dev/null | wc -c")).out.trim().to_owned()
}

#[test]
fn a_partition_cuts_and_heals() {
    let stack = Stack::new(SERVED);
    stack.up();
    let reaches = |from: &str| received(&stack, from) != "0";
    until("the servers", || (reaches("web") && reaches("db")).then_some(()));
    let said = stack.run(&["net", "partition", "client", "db"]);
    assert!(said.err.contains("client: cut off from db"), "{said:?}");
    said.ok();
    assert!(!reaches("db") && reaches("web"));
    // It stays so when the service is restarted.
    stack.run(&["restart", "client"]).ok();
    assert!(!reaches("db") && reaches("web"));
    stack.run(&["net", "partition", "client"]).ok();
    assert!(!reaches("db") && !reaches("web"));
    let shown: Value = serde_json::from_str(&stack.run(&["net", "show", "--format", "json"]).ok()).unwrap();
    assert_eq!(shown[0]["container"], "client");
    assert_eq!(shown[0]["partition"], serde_json::json!([]));
    stack.run(&["net", "heal"]).ok();
    assert!(reaches("db") && reaches("web"));
    let changes: Vec<Value> = past(&stack, &["client"])
        .into_iter()
        .filter(|row| row["event"] == "network")
        .map(|row| row["change"].clone())
        .collect();
    assert_eq!(changes, ["cut off from db", "cut off from everybody", "healed"]);
    // Healed from the other end.
    stack.run(&["net", "partition", "client", "db"]).ok();
    stack.run(&["net", "heal", "db"]).ok();
    assert!(reaches("db"));
    assert_eq!(stack.run(&["net", "show", "--format", "json"]).ok().trim(), "[]");
    for (arguments, words) in [
        (&["net", "partition", "client", "nobody"][..], &["no such service: `nobody`"][..]),
        (&["net", "partition", "client", "client"], &["from itself"]),
        (&["net", "rate", "nobody", "1mbit"], &["no such service: `nobody`"]),
    ] {
        stack.run(arguments).fails(2, words);
    }
    for arguments in
        [&["net", "rate", "web", "fast"][..], &["net", "delay", "web", "5"], &["net", "loss", "web", "101"]]
    {
        let ended = stack.run(arguments);
        assert!(ended.code == 2 && ended.err.contains("such as"), "{ended:?}");
    }
}

/// How long a megabyte takes, at least: a limit makes it slow, not a busy machine fast.
#[test]
fn a_rate_is_kept() {
    let stack = Stack::new(SERVED);
    stack.up();
    until("the server", || (received(&stack, "web") == "1000000").then_some(()));
    stack.run(&["net", "rate", "web", "4mbit"]).ok();
    let start = Instant::now();
    stack.sh("client", "test $(nc web 80 < /dev/null | wc -c) = 1000000");
    // Two seconds, but for what the bucket holds at first.
    assert!(start.elapsed().as_secs_f64() > 1.0, "{:?}", start.elapsed());
    stack.run(&["net", "heal", "web"]).ok();
    assert_eq!(received(&stack, "web"), "1000000");
}

#[test]
fn a_delay_and_a_loss_are_made_or_explained() {
    let stack = Stack::new(SERVED);
    stack.up();
    until("the server", || (received(&stack, "db") == "3").then_some(()));
    let delay = stack.run(&["net", "delay", "db", "300ms"]);
    if delay.code != 0 {
        let told = delay.fails(1, &["netem", "modprobe sch_netem"]);
        assert_eq!(stack.run(&["net", "show", "--format", "json"]).ok().trim(), "[]", "{told}");
        return skipped("a_delay_and_a_loss_are_made_or_explained", "the kernel has no netem");
    }
    let start = Instant::now();
    stack.sh("client", "nc db 80 < /dev/null");
    assert!(start.elapsed().as_secs_f64() > 0.6, "{:?}", start.elapsed());
    stack.run(&["net", "heal", "db"]).ok();
    stack.run(&["net", "loss", "db", "100%"]).ok();
    assert_eq!(received(&stack, "db"), "0");
    stack.run(&["net", "heal", "db"]).ok();
    assert_eq!(received(&stack, "db"), "3");
}
