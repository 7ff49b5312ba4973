//! Services with several containers: their numbers, their names, and how they are replaced one by one.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::harness::{self, Stack, finish, free_ports, until};

/// Names of all containers, in the order of `ps`.
fn names(stack: &Stack) -> Vec<String> {
    stack.ps().iter().map(|row| row["container"].as_str().unwrap().to_owned()).collect()
}

/// Process ids of these containers, which must run.
fn pids(stack: &Stack, names: &[&str]) -> Vec<i32> {
    names.iter().map(|name| stack.pid(name)).collect()
}

/// What a shell script in a replica prints.
fn sh(stack: &Stack, service: &str, index: &str, script: &str) -> String {
    stack.run(&["exec", "--index", index, service, "sh", "-c", script]).ok().trim().to_owned()
}

const TWO_SERVICES: &str = r#"
[services.web]
command = ["sh", "-c", "echo hello; exec sleep 1000"]
[services.db]
command = ["sleep", "1000"]
"#;

#[test]
fn a_change_of_the_number_leaves_the_others_alone() {
    let stack = Stack::new(TWO_SERVICES);
    stack.run(&["up", "-d", "--scale", "web=2"]).ok();
    assert_eq!(names(&stack), ["web", "web-2", "db"]);
    let second = stack.row("web-2");
    assert!(second["service"] == "web" && second["replica"] == 2 && second["state"] == "running", "{second}");
    let before = pids(&stack, &["web", "web-2", "db"]);
    stack.run(&["scale", "web=4"]).ok();
    assert_eq!(names(&stack), ["web", "web-2", "web-3", "web-4", "db"]);
    assert_eq!(pids(&stack, &["web", "web-2", "db"]), before);
    // They see each other by their names, and each has a file system of its own.
    stack.sh("web-4", "nslookup web-3 && nslookup db && touch /mine");
    assert_eq!(stack.exec("web-3", "test -e /mine").code, 1);
}

#[test]
fn those_with_the_highest_numbers_go_first() {
    let stack = Stack::new(TWO_SERVICES);
    stack.run(&["up", "-d", "--scale", "web=4"]).ok();
    let before = pids(&stack, &["web", "web-3", "db"]);
    // One that does not work goes before one that does.
    stack.run(&["stop", "web-2"]).ok();
    stack.run(&["scale", "web=2"]).ok();
    assert_eq!(names(&stack), ["web", "web-3", "db"]);
    assert_eq!(pids(&stack, &["web", "web-3", "db"]), before);
    let containers = stack.data().join("c").join(&stack.name);
    assert!(containers.join("web-3").exists() && !containers.join("web-4").exists());
    // The lowest number that is free comes next.
    stack.run(&["scale", "web=3"]).ok();
    assert_eq!(names(&stack), ["web", "web-2", "web-3", "db"]);
    // None at all, and what the file says again.
    stack.run(&["scale", "web=0"]).ok();
    assert_eq!(names(&stack), ["db"]);
    stack.run(&["exec", "web", "true"]).fails(1, &["`web` is not running"]);
    stack.up();
    assert_eq!(names(&stack), ["web", "db"]);
    assert_eq!(stack.pid("db"), before[2]);
    stack.run(&["scale", "nobody=2"]).fails(2, &["no such service: `nobody`"]);
}

#[test]
fn one_replica_and_all_of_them() {
    let stack = Stack::new(TWO_SERVICES);
    stack.run(&["up", "-d", "--scale", "web=2"]).ok();
    stack.sh("web-2", "touch /second");
    assert_eq!(sh(&stack, "web", "2", "ls /second"), "/second");
    assert_ne!(stack.exec("web", "ls /second").code, 0);
    stack.run(&["exec", "--index", "9", "web", "true"]).fails(1, &["replica 9 of service `web`"]);
    // The first one under its number.
    stack.run(&["stop", "web-1"]).ok();
    assert!(stack.row("web")["state"] == "exited" && stack.row("web-2")["state"] == "running");
    assert_eq!(stack.sh("web", "ls /second"), "/second", "the first one that runs");
    stack.run(&["start", "web"]).ok();
    let before = pids(&stack, &["web", "web-2"]);
    stack.run(&["restart", "web-2"]).ok();
    let after = pids(&stack, &["web", "web-2"]);
    assert!(after[0] == before[0] && after[1] != before[1]);
    stack.run(&["restart", "web"]).ok();
    assert_ne!(stack.pid("web"), before[0]);
    stack.run(&["stop", "web"]).ok();
    assert!(stack.ps().iter().all(|row| (row["state"] == "exited") == (row["service"] == "web")));
}

#[test]
fn the_logs_of_all_replicas() {
    let stack = Stack::new(TWO_SERVICES);
    stack.run(&["up", "-d", "--scale", "web=2"]).ok();
    let both = until("both logs", || {
        let mut lines: Vec<String> = stack.run(&["logs", "web"]).ok().lines().map(str::to_owned).collect();
        lines.sort();
        (lines.len() == 2).then_some(lines)
    });
    assert_eq!(both, ["web    | hello", "web-2  | hello"]);
    assert_eq!(stack.run(&["logs", "web-2"]).ok(), "web-2  | hello\n");
    // Those who follow a service follow all of it.
    let followed = stack.spawn(&["logs", "--follow", "--tail", "0", "web"]);
    stack.run(&["restart", "web-2"]).ok();
    until("the second line", || (stack.logs("web-2").lines().count() == 2).then_some(()));
    stack.run(&["down"]).ok();
    assert!(finish(followed).out.contains("web-2  | hello"));
}

#[test]
fn who_depends_on_a_service_waits_for_all_of_it() {
    let stack = Stack::new(
        r#"
[services.app]
command = ["sleep", "1000"]
depends_on = { db = { condition = "service_healthy" } }
[services.db]
command = ["sleep", "1000"]
healthcheck = { test = ["CMD", "test", "-e", "/tmp/ok"], interval = "20ms", retries = 10000 }
"#,
    );
    let up = stack.spawn(&["up", "-d", "--scale", "db=2"]);
    until("the replicas", || stack.run(&["exec", "db-2", "true"]).code.eq(&0).then_some(()));
    stack.sh("db", "touch /tmp/ok");
    stack.wait("db", "health", "healthy");
    assert_eq!(stack.row("app")["state"], "waiting");
    stack.sh("db-2", "touch /tmp/ok");
    finish(up).ok();
    assert_eq!(stack.row("app")["state"], "running");
}

/// A service that is healthy once somebody says so, and one that depends on it.
fn checked(version: &str) -> String {
    format!(
        r#"
[services.web]
command = ["sleep", "1000"]
environment = {{ VERSION = "{version}" }}
healthcheck = {{ test = ["CMD", "test", "-e", "/tmp/ok"], interval = "20ms", retries = 10000 }}
[services.app]
command = ["sleep", "1000"]
depends_on = ["web"]
"#
    )
}

#[test]
fn a_new_one_is_healthy_before_the_old_one_goes() {
    let stack = Stack::new(&checked("1"));
    stack.up();
    stack.sh("web", "touch /tmp/ok");
    stack.wait("web", "health", "healthy");
    let before = pids(&stack, &["web", "app"]);
    stack.rewrite(&checked("2"));
    let up = stack.spawn(&["up", "-d", "--rolling"]);
    until("the new one", || stack.run(&["exec", "web-2", "true"]).code.eq(&0).then_some(()));
    assert_eq!(pids(&stack, &["web", "app"]), before, "the old one stays meanwhile");
    assert_eq!(stack.sh("web-2", "echo $VERSION"), "2");
    stack.sh("web-2", "touch /tmp/ok");
    let ended = finish(up);
    let place = |text: &str| ended.err.lines().position(|line| line == text);
    let order = [place("web-2: running"), place("web-2: running (healthy)"), place("web: stopping")];
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{}", ended.err);
    ended.ok();
    assert_eq!(names(&stack), ["web-2", "app"]);
    assert_eq!(stack.pid("app"), before[1]);
    assert_eq!(stack.sh("web", "echo $VERSION"), "2");
    // What was replaced is as planned: another `up` has nothing to do.
    let after = stack.pid("web-2");
    stack.up();
    assert_eq!((names(&stack).len(), stack.pid("web-2")), (2, after));
}

#[test]
fn replicas_are_replaced_one_at_a_time() {
    let file = |version: &str| {
        format!(
            "[services.web]\ncommand = [\"sleep\", \"1000\"]\nenvironment = {{ VERSION = \"{version}\" }}\n\
             [services.db]\ncommand = [\"sleep\", \"1000\"]\n"
        )
    };
    let stack = Stack::new(&file("1"));
    stack.run(&["up", "-d", "--scale", "web=2"]).ok();
    let db = stack.pid("db");
    stack.rewrite(&file("2"));
    let err = {
        let ended = stack.run(&["up", "-d", "--rolling", "--scale", "web=2"]);
        let err = ended.err.clone();
        ended.ok();
        err
    };
    let steps: Vec<&str> =
        err.lines().filter(|line| line.ends_with(": running") || line.ends_with(": stopping")).collect();
    assert_eq!(steps, ["web-3: running", "web: stopping", "web: running", "web-2: stopping"], "{err}");
    assert_eq!(names(&stack), ["web", "web-3", "db"]);
    for name in ["web", "web-3"] {
        assert_eq!(stack.sh(name, "echo $VERSION"), "2");
    }
    assert_eq!(stack.pid("db"), db);
}

#[test]
fn a_broken_version_replaces_nothing() {
    let file = |version: &str, more: &str| {
        format!("[services.web]\nenvironment = {{ VERSION = \"{version}\" }}\n{more}\n")
    };
    let works = "command = [\"sleep\", \"1000\"]";
    let stack = Stack::new(&file("1", works));
    stack.up();
    let old = stack.pid("web");
    for (broken, reason) in [
        ("command = [\"sh\", \"-c\", \"echo my last words; exit 3\"]", "my last words"),
        ("command = [\"sh\", \"-c\", \"exit 3\"]\nrestart = \"always\"", "exited with status 3"),
        ("command = [\"no-such-program\"]", "no-such-program"),
        (
            "command = [\"sleep\", \"1000\"]\nhealthcheck = { test = \"echo not well; exit 1\", interval = \"20ms\", retries = 2 }",
            "not well",
        ),
    ] {
        stack.rewrite(&file("2", broken));
        stack.run(&["up", "-d", "--rolling"]).fails(1, &["`web`: kept the old one", "`web-2`", reason]);
        until("the end of the new one", || (names(&stack) == ["web"]).then_some(()));
        assert_eq!(stack.pid("web"), old);
    }
    // What is scaled is what runs.
    stack.run(&["scale", "web=2"]).ok();
    assert_eq!((stack.pid("web"), stack.sh("web-2", "echo $VERSION")), (old, "1".to_owned()));
    stack.rewrite(&file("3", works));
    stack.run(&["up", "-d", "--rolling"]).ok();
    let versions: Vec<String> = names(&stack).iter().map(|name| stack.sh(name, "echo $VERSION")).collect();
    assert_eq!(versions, ["3"]);
}

#[test]
fn what_cannot_run_twice_is_stopped_first() {
    let file = |version: &str| {
        format!(
            r#"
[services.web]
command = ["sleep", "1000"]
environment = {{ VERSION = "{version}" }}
networks = {{ net = {{ ipv4_address = "10.77.0.9" }} }}
[networks.net]
ipam.config = [{{ subnet = "10.77.0.0/24" }}]
"#
        )
    };
    let stack = Stack::new(&file("1"));
    stack.up();
    stack.rewrite(&file("2"));
    let ended = stack.run(&["up", "-d", "--rolling"]);
    assert!(ended.err.contains("warning: service `web` is stopped before it is replaced"), "{}", ended.err);
    ended.ok();
    let rows: Vec<Value> = stack.ps();
    assert!(rows.len() == 1 && rows[0]["container"] == "web", "{rows:?}");
    assert_eq!(stack.sh("web", "echo $VERSION; ip -4 -o addr show eth0 | grep -c 10.77.0.9"), "2\n1");
}

/// A published service that says who it is and then repeats what it hears.
fn published(port: u16, keys: &str) -> String {
    format!(
        r#"
[services.web]
command = ["nc", "-ll", "-p", "80", "-e", "sh", "-c", "hostname; cat"]
ports = ["{port}:80"]
healthcheck = {{ test = ["TCP", "80"], interval = "20ms" }}
{keys}
"#
    )
}

/// A connection, with the name of the container that answered.
fn connect(port: u16) -> std::io::Result<(BufReader<TcpStream>, String)> {
    let mut reader = BufReader::new(harness::connect(port)?);
    let mut name = String::new();
    reader.read_line(&mut name)?;
    match name.trim() {
        "" => Err(std::io::ErrorKind::UnexpectedEof.into()),
        name => Ok((reader, name.to_owned())),
    }
}

/// Whether what is sent comes back.
fn echoes(connection: &mut BufReader<TcpStream>) -> bool {
    let mut line = String::new();
    connection.get_mut().write_all(b"hello\n").is_ok()
        && connection.read_line(&mut line).is_ok()
        && line == "hello\n"
}

#[test]
fn open_connections_outlive_the_decision_to_stop() {
    let port = free_ports(1);
    let stack = Stack::new(&published(port, "replicas = 2"));
    stack.run(&["up", "--wait"]).ok();
    let mut second = until("a connection to the second", || {
        let (connection, name) = connect(port).ok()?;
        (name == "web-2").then_some(connection)
    });
    let scale = stack.spawn(&["scale", "web=1"]);
    stack.wait("web-2", "state", "draining");
    for _ in 0..10 {
        assert_eq!(connect(port).unwrap().1, "web", "new ones go elsewhere");
    }
    assert!(echoes(&mut second));
    assert_eq!(stack.row("web-2")["state"], "draining", "it is not stopped while it is connected");
    drop(second);
    finish(scale).ok();
    assert_eq!(names(&stack), ["web"]);
}

#[test]
fn who_has_asked_is_answered_before_a_restart() {
    let port = free_ports(1);
    // Without us it answers nobody any more once it has got its stop signal.
    let serve = "hostname; while read -r line; do touch /tmp/asked; sleep 0.2; echo $$line; done";
    let stack = Stack::new(&published(port, "").replace("hostname; cat", serve));
    stack.run(&["up", "--wait"]).ok();
    for stop in [&["restart", "web"][..], &["stop", "web"]] {
        // It may rest as long as it likes.
        let (_idle, _) = connect(port).unwrap();
        let (mut asking, _) = connect(port).unwrap();
        stack.sh("web", "rm -f /tmp/asked");
        asking.get_mut().write_all(b"hello\n").unwrap();
        until("the question", || (stack.exec("web", "test -e /tmp/asked").code == 0).then_some(()));
        let stopping = stack.spawn(stop);
        let mut line = String::new();
        asking.read_line(&mut line).unwrap();
        assert_eq!(line, "hello\n", "{stop:?}");
        finish(stopping).ok();
    }
}

#[test]
fn no_client_notices_a_replacement() {
    let port = free_ports(1);
    let version = |version: &str| published(port, &format!("environment = {{ VERSION = \"{version}\" }}"));
    let stack = Stack::new(&version("1"));
    stack.run(&["up", "--wait"]).ok();
    let done = AtomicBool::new(false);
    let (served, failed) = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut served, mut failed) = (0, Vec::new());
            while !done.load(Ordering::Relaxed) {
                match connect(port).map(|(mut connection, _)| echoes(&mut connection)) {
                    Ok(true) => served += 1,
                    Ok(false) => failed.push("no echo".to_owned()),
                    Err(error) => failed.push(error.to_string()),
                }
            }
            (served, failed)
        });
        for next in ["2", "3"] {
            stack.rewrite(&version(next));
            stack.run(&["up", "-d", "--rolling"]).ok();
        }
        done.store(true, Ordering::Relaxed);
        client.join().unwrap()
    });
    assert!(served > 0 && failed.is_empty(), "{served} served, {failed:?}");
    assert_eq!(stack.sh("web", "echo $VERSION"), "3");
}
