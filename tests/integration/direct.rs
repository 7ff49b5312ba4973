//! Published ports that a service accepts on by itself (`mode = "direct"`).

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;

use crate::harness::{Stack, connect, free_ports, until};

/// What an HTTP server answers, and the client's own address.
fn fetch(port: u16) -> std::io::Result<(String, SocketAddr)> {
    let mut stream = connect(port)?;
    stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((answer, stream.local_addr()?))
}

/// Whether a TCP port of the test's own network namespace has somebody listening.
fn is_listened_on(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[3] == "0A"
    })
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_service_accepts_by_itself_and_the_port_outlives_it() {
    let port = free_ports(1);
    let stack = Stack::new(&format!(
        r#"
[services.web]
command = ["sh", "-c", "echo hello > /tmp/hello; exec httpd -f -v -p 80 -h /tmp"]
restart = "always"
ports = [{{ target = 80, published = {port}, host_ip = "127.0.0.1", mode = "direct" }}]
[services.other]
command = ["sleep", "1000"]
"#
    ));
    stack.up();
    let (answer, client) = fetch(port).unwrap();
    assert!(answer.contains("200 OK") && answer.ends_with("hello\n"), "{answer}");
    // Nobody stands between: its peer is the client itself.
    stack.wait_log("web", &format!("127.0.0.1:{}", client.port()));
    let row = stack.row("web");
    assert!(row.to_string().contains(&format!("127.0.0.1:{port}->80/tcp")), "{row}");
    // Others reach it by its name, and it reaches itself.
    for (from, host) in [("other", "web"), ("web", "web"), ("web", "127.0.0.1")] {
        assert_eq!(stack.sh(from, &format!("wget -q -O - http://{host}/hello")), "hello", "{from} to {host}");
    }
    // While it is away, after a crash or for a restart, who connects waits.
    let before = stack.row("web")["restarts"].as_u64();
    let pid = stack.pid("web");
    kill(pid);
    // With its first process all of it is gone.
    until("the end of the service", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    assert!(fetch(port).unwrap().0.contains("200 OK"));
    assert_ne!(stack.row("web")["restarts"].as_u64(), before);
    stack.run(&["stop", "web"]).ok();
    assert!(is_listened_on(port));
    let waiting = std::thread::spawn(move || fetch(port).unwrap().0);
    stack.run(&["start", "web"]).ok();
    assert!(waiting.join().unwrap().contains("200 OK"));
    stack.run(&["down"]).ok();
    assert!(!is_listened_on(port));
}

#[test]
fn what_is_not_published_is_bound_inside() {
    let port = free_ports(2);
    let stack = Stack::new(&format!(
        r#"
[services.web]
command = ["sh", "-c", "nc -ll -p 81 -e echo inside & nc -ll -p 80 -e echo outside & sleep 1000"]
ports = [{{ target = 80, published = {port}, host_ip = "127.0.0.1", mode = "direct" }},
    {{ target = 81, published = {}, host_ip = "127.0.0.1" }}]
"#,
        port + 1
    ));
    stack.up();
    let read = |port: u16| {
        let mut text = String::new();
        connect(port).unwrap().read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    };
    assert_eq!(until("the direct port", || read(port)), "outside\n");
    assert_eq!(until("the other port", || read(port + 1)), "inside\n");
    let listening = stack.sh("web", "netstat -ltn | awk '/:81 / {print $6}'");
    assert_eq!(listening, "LISTEN");
    // A process of `exec` is not asked about, and what netd accepts on is taken.
    assert_ne!(stack.exec("web", "nc -l -p 80").code, 0);
}

#[test]
fn a_taken_port_is_known_before_anything_starts() {
    let port = free_ports(1);
    let file = format!(
        r#"
[services.web]
command = ["sleep", "1000"]
ports = [{{ target = 80, published = {port}, host_ip = "127.0.0.1", mode = "direct" }}]
"#
    );
    let first = Stack::new(&file);
    first.up();
    let second = Stack::new(&file);
    let holder = format!("taken by stack `{}`", first.name);
    let hint = format!("`inception-run -p {} down`", first.name);
    second.run(&["up", "-d"]).fails(1, &[&format!("port {port}"), &holder, &hint]);
}

#[test]
fn a_service_accepts_on_one_socket_a_port() {
    let stack = Stack::new(
        r#"
[services.web]
command = ["sleep", "1000"]
ports = [{ target = 80, published = 8080, mode = "direct" }, { target = 80, published = 8081, mode = "direct" }]
"#,
    );
    stack.run(&["plan"]).fails(2, &["port 80 of a service is published twice", "stack.toml:"]);
}
