//! Published ports of one-off containers.

use std::io::Read;
use std::net::TcpStream;

use crate::harness::{Stack, connect, free_ports, until};

/// What a server says that says something to everybody.
fn said(port: u16) -> Option<String> {
    let mut text = String::new();
    connect(port).ok()?.read_to_string(&mut text).ok()?;
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
