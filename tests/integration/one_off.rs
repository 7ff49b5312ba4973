//! Published ports of one-off containers.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;

use crate::harness::{DEADLINE, Stack, finish, free_ports, until};

/// What a server says that says something to everybody.
fn said(port: u16) -> Option<String> {
    let mut text = String::new();
    TcpStream::connect(("127.0.0.1", port)).ok()?.read_to_string(&mut text).ok()?;
    Some(text).filter(|text| !text.is_empty())
}

#[track_caller]
fn says(port: u16, text: &str) {
    until(&format!("port {port} says `{text}`"), || said(port).filter(|said| said.trim() == text));
}

#[track_caller]
fn closed(port: u16) {
    until(&format!("port {port} is closed"), || {
        TcpStream::connect(("127.0.0.1", port)).is_err().then_some(())
    });
}

fn stack(port: u16) -> Stack {
    Stack::new(&format!(
        r#"
[services.web]
command = ["nc", "-ll", "-p", "80", "-e", "echo", "service"]
ports = ["{port}:80"]
[services.guest]
command = ["sleep", "1000"]
network_mode = "service:web"
[services.alone]
command = ["sleep", "1000"]
network_mode = "none"
[services.direct]
command = ["sleep", "1000"]
ports = [{{ target = 80, published = 0, mode = "direct" }}]
"#
    ))
}

#[test]
fn the_ports_of_a_service_are_lent_to_its_one_off_container() {
    let port = free_ports(1);
    let stack = stack(port);
    let server = ["web", "nc", "-ll", "-p", "80", "-e", "echo", "one-off"];
    let name = stack.run(&[&["run", "-d", "-P"], &server[..]].concat()).ok();
    let name = name.trim();
    says(port, "one-off");
    assert_eq!(stack.run(&["port", name, "80"]).ok(), format!("127.0.0.1:{port}\n"));
    assert!(stack.row("web")["ports"].as_array().is_some_and(Vec::is_empty), "{}", stack.row("web"));
    // Neither the service nor another container has it meanwhile.
    let published = format!("{port}:80");
    for command in [&["start", "web"][..], &["run", "-p", &published, "web"], &["run", "-P", "web"]] {
        stack.run(command).fails(1, &[&format!("port 127.0.0.1:{port}"), name, "kill"]);
    }
    says(port, "one-off");
    stack.run(&["kill", name]).ok();
    until("a start of the service", || (stack.run(&["start", "web"]).code == 0).then_some(()));
    says(port, "service");
    // And the other way round, which leaves the service as it is.
    for arguments in [&["run", "-P", "web", "true"][..], &["run", "-p", &published, "web", "true"]] {
        stack.run(arguments).fails(1, &[&format!("port 127.0.0.1:{port}"), "service `web`, which runs"]);
    }
    // Without being told to it publishes nothing.
    stack.run(&["run", "web", "true"]).ok();
    says(port, "service");
    stack.run(&["stop", "web"]).ok();
    // The same port of the host for another one inside.
    let other =
        ["run", "-d", "-p", &format!("{port}:81"), "web", "nc", "-ll", "-p", "81", "-e", "echo", "other"];
    stack.run(&other).ok();
    says(port, "other");
}

#[test]
fn a_one_off_container_publishes_ports_of_its_own() {
    let first = free_ports(4);
    let stack = stack(first);
    stack.up();
    let script = "for port in 81 82 83; do nc -ll -p $port -e echo $port & done; wait";
    let range = format!("{}-{}:81-82", first + 1, first + 2);
    let name = stack.run(&["run", "-d", "-p", &range, "-p", "83", "web", "sh", "-c", script]).ok();
    let name = name.trim();
    says(first + 1, "81");
    says(first + 2, "82");
    says(first, "service");
    let chosen = stack.run(&["port", name, "83"]).ok();
    let chosen: u16 = chosen.trim().strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
    says(chosen, "83");
    // Another plan leaves them alone.
    stack.run(&["up", "-d", "--force-recreate", "web"]).ok();
    says(first + 1, "81");
    stack.run(&["kill", name]).ok();
    for port in [first + 1, first + 2, chosen] {
        closed(port);
    }
    says(first, "service");
    // One that somebody else has, and it is not started for that.
    let own = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = own.local_addr().unwrap().port();
    let error = stack.run(&["run", "-p", &format!("{taken}:80"), "web", "true"]).fails(1, &["in use"]);
    assert!(error.contains(&taken.to_string()) && error.contains("container `web-run-"), "{error}");
    let two = [format!("{}:80", first + 3), format!("{}:81", first + 3)];
    stack.run(&["run", "-p", &two[0], "-p", &two[1], "web", "true"]).fails(1, &["twice"]);
    stack.run(&["run", "-p", &two[0], "web", "true"]).ok();
    closed(first + 3);
}

#[test]
fn ports_that_a_one_off_container_cannot_publish() {
    let stack = stack(free_ports(1));
    for (service, options, why) in [
        ("guest", &["-p", "80"][..], "it has the network of service `web`"),
        ("alone", &["-p", "80"], "it is on no network"),
        ("direct", &["-P"], "direct mode"),
    ] {
        let arguments = [&["run", "--no-deps"], options, &[service, "true"]].concat();
        stack.run(&arguments).fails(1, &[why]);
    }
    stack.run(&["run", "-p", "80:81-82", "web"]).fails(2, &["different lengths"]);
    stack.run(&["run", "-p", "80/sctp", "web"]).fails(2, &["sctp"]);
    stack.nothing_left();
}

#[test]
fn a_run_publishes_the_ports_of_what_it_needs_and_no_other() {
    let first = free_ports(3);
    let (web, db, other) = (first, first + 1, first + 2);
    let server = |word: &str| format!(r#"command = ["nc", "-ll", "-p", "80", "-e", "echo", "{word}"]"#);
    let stack = Stack::new(&format!(
        r#"
[services.web]
{}
depends_on = ["db"]
ports = ["{web}:80"]
[services.db]
{}
ports = ["{db}:80"]
[services.other]
{}
ports = ["{other}:80"]
"#,
        server("web"),
        server("db"),
        server("other"),
    ));
    // Somebody else has the ports that nobody is asked for.
    let taken = [web, other].map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).unwrap());
    let name = stack.run(&["run", "-d", "web", "sleep", "1000"]).ok();
    says(db, "db");
    for (service, ports) in [("web", 0), ("db", 1)] {
        let row = stack.row(service);
        assert_eq!(row["ports"].as_array().map(Vec::len), Some(ports), "{row}");
    }
    // A start asks for them, and so does an `up`.
    stack.run(&["start", "web"]).fails(1, &["publish a port of service `web`", "in use"]);
    stack.run(&["up", "-d"]).fails(1, &["in use"]);
    drop(taken);
    stack.run(&["start", "web"]).ok();
    says(web, "web");
    closed(other);
    stack.run(&["kill", name.trim()]).ok();
    stack.up();
    says(other, "other");
    // Once asked for, a port stays the stack's.
    stack.run(&["stop", "web"]).ok();
    assert!(std::net::TcpListener::bind(("127.0.0.1", web)).is_err());
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

/// A service that waits for another one to be healthy, which takes a file.
fn waiting() -> Stack {
    Stack::new(
        r#"
[volumes.data]
[services.web]
command = ["sleep", "1000"]
volumes = ["data:/data"]
depends_on = { db = "healthy" }
[services.db]
command = ["sh", "-c", "touch /ready; exec sleep 1000"]
healthcheck = { test = ["CMD", "test", "-e", "/ready"], interval = "100ms", retries = 10 }
"#,
    )
}

#[test]
fn several_runs_at_once_share_a_stack_that_ends_with_the_last() {
    let stack = waiting();
    let script = "echo $HOSTNAME runs; until [ -e /data/go ]; do sleep 0.02; done";
    let mut runs: Vec<_> = (0..3).map(|_| stack.spawn(&["run", "web", "sh", "-c", script])).collect();
    let mut names = Vec::new();
    for run in &mut runs {
        let mut line = String::new();
        BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        names.push(line.strip_suffix(" runs\n").unwrap_or_else(|| panic!("{line}")).to_owned());
    }
    assert_eq!(stack.row("db")["health"], "healthy");
    // Whoever of them started the stack takes it from nobody.
    stack.run(&["kill", &names[0], &names[1]]).ok();
    for run in runs.drain(..2) {
        assert_eq!(finish(run).code, 137);
    }
    stack.run(&["run", "web", "touch", "/data/go"]).ok();
    let last = finish(runs.remove(0));
    assert_eq!(last.code, 0, "{}", last.err);
    stack.gone(DEADLINE);
    // An `up` meanwhile keeps it.
    let mut run = stack.spawn(&["run", "web", "sh", "-c", "echo runs; exec sleep 1000"]);
    BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    stack.up();
    stack.run(&["kill", "web-run-1"]).ok();
    assert_eq!(finish(run).code, 137);
    assert_eq!(stack.row("web")["state"], "running");
    // What it depends on is started, where somebody has stopped it.
    stack.run(&["stop", "db"]).ok();
    stack.run(&["run", "--no-deps", "web", "true"]).ok();
    assert_eq!(stack.row("db")["state"], "exited");
    stack.run(&["run", "web", "true"]).ok();
    assert_eq!(stack.row("db")["health"], "healthy");
}

#[test]
fn a_run_says_as_much_as_is_wanted() {
    let stack = waiting();
    let told = |arguments: &[&str]| {
        let ended = stack.run(&[arguments, &["web", "echo", "said"]].concat());
        assert_eq!((ended.code, ended.out.as_str()), (0, "said\n"), "{}", ended.err);
        ended.err
    };
    assert!(told(&["run"]).contains("db: running"));
    assert_eq!(told(&["run", "--quiet"]), "");
    stack.up();
    assert!(told(&["run", "--build"]).contains("warning: the container has the image"));
    stack.run(&["down"]).ok();
    stack.rewrite("[services.web]\nimage = \"none.such:1\"\ncommand = [\"true\"]\n");
    stack.run(&["run", "--pull", "never", "web"]).fails(1, &["none.such:1"]);
}

#[test]
fn a_one_off_container_has_variables_and_capabilities_of_its_own() {
    let stack =
        Stack::new("[services.web]\ncommand = [\"true\"]\nenvironment = { A = \"file\", C = \"file\" }\n");
    stack.write("extra.env", "A=extra\nB='of a file'\nHERE\n");
    let script = "echo $A-$B-$C-$HERE; sed -n 's/CapEff:\\t//p' /proc/self/status";
    let options = ["run", "--env-from-file", "extra.env", "-e", "B=own", "--cap-drop", "ALL"];
    let run = |more: &[&str]| {
        let arguments = [&options[..], more, &["-l", "a=b", "web", "sh", "-c", script]].concat();
        crate::harness::ended(stack.command(&arguments).env("HERE", "here"))
    };
    assert_eq!(run(&[]).ok(), "extra-own-file-here\n0000000000000000\n");
    assert_eq!(run(&["--cap-add", "NET_BIND_SERVICE"]).ok(), "extra-own-file-here\n0000000000000400\n");
    run(&["--cap-add", "NET_BIND"]).fails(125, &["NET_BIND"]);
    // And so has a process in a container that runs.
    stack.rewrite("[services.web]\ncommand = [\"sleep\", \"1000\"]\ncap_drop = [\"ALL\"]\nuser = \"app\"\n");
    stack.up();
    let script = ["web", "sed", "-n", "s/CapEff:\t//p", "/proc/self/status"];
    let own = stack.run(&[&["exec", "-u", "root"], &script[..]].concat()).ok();
    let more = stack.run(&[&["exec", "-u", "root", "--privileged"], &script[..]].concat()).ok();
    let number = |text: &str| u64::from_str_radix(text.trim(), 16).unwrap();
    assert_eq!(number(&own), 0);
    assert!(number(&more) & 1 << 21 != 0, "CAP_SYS_ADMIN is not in {more}");
    run(&["--env-from-file", "none.env"]).fails(2, &["none.env"]);
}
