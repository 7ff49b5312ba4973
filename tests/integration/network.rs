//! Names, isolation, published ports.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

use crate::harness::{Stack, connect, free_ports, until};

fn address(stack: &Stack, service: &str, network: &str) -> String {
    let inspect: serde_json::Value = serde_json::from_str(&stack.run(&["inspect", service]).ok()).unwrap();
    inspect["addresses"][network].as_str().unwrap_or_else(|| panic!("{inspect}")).to_owned()
}

/// Sends everything, and returns what comes back until the end.
fn talk(port: u16, sent: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(port)?;
    let mut writer = stream.try_clone()?;
    let bytes = sent.to_vec();
    let writing = std::thread::spawn(move || {
        writer.write_all(&bytes)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received)?;
    // One who sends without listening has no one to write to.
    writing.join().unwrap().ok();
    Ok(received)
}

#[test]
fn names_and_aliases_resolve_and_networks_do_not_meet() {
    let stack = Stack::new(
        r#"
[services.web]
command = ["nc", "-ll", "-p", "80", "-e", "echo", "web"]
networks = { front = { aliases = ["www", "site"] } }
[services.db]
command = ["nc", "-ll", "-p", "80", "-e", "echo", "db"]
networks = ["back"]
[services.both]
command = ["sleep", "1000"]
networks = ["front", "back"]
[services.alone]
command = ["sleep", "1000"]
network_mode = "none"
[networks.front]
[networks.back]
"#,
    );
    stack.up();
    let fetch = |from: &str, to: &str| stack.exec(from, &format!("nc -w 1 {to} 80 < /dev/null"));
    until("the servers", || {
        (fetch("both", "web").out == "web\n" && fetch("both", "db").out == "db\n").then_some(())
    });
    for name in ["www", "site"] {
        assert_eq!(fetch("both", name).out, "web\n", "{name}");
    }
    // The service's own name, too.
    stack.sh("web", "nslookup web");
    // Of another network neither the name nor the address is known.
    let (web, db) = (address(&stack, "web", "front"), address(&stack, "db", "back"));
    for (from, name, address) in [("web", "db", &db), ("db", "web", &web), ("db", "www", &web)] {
        let start = Instant::now();
        let lookup = stack.exec(from, &format!("nslookup {name}"));
        assert!(lookup.code != 0, "{from} finds {name}: {lookup:?}");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_ne!(fetch(from, address).code, 0, "{from} reaches {address}");
    }
    // Without a network there is loopback only.
    assert_eq!(stack.sh("alone", "ls /sys/class/net | xargs"), "lo");
    assert_eq!(stack.sh("both", "ls /sys/class/net | wc -l"), "3");
    // No service reaches the host, or the world: that comes with egress.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway = stack.sh("web", "awk '/nameserver/ {print $2}' /etc/resolv.conf");
    for host in ["127.0.0.1", &gateway] {
        assert_ne!(stack.exec("web", &format!("nc -w 1 {host} {port} < /dev/null")).code, 0, "{host}");
    }
}

#[test]
fn two_hundred_networks_come_up_at_once() {
    let names: Vec<String> = (0..200).map(|number| format!("n{number}")).collect();
    let declared: String = names.iter().map(|name| format!("[networks.{name}]\n")).collect();
    let service =
        |name: &str| format!("[services.{name}]\ncommand = [\"sleep\", \"1000\"]\nnetworks = {names:?}\n");
    let stack = Stack::new(&[service("one"), service("other"), declared].concat());
    stack.up();
    // Each has its name server: so has the last one.
    let own = address(&stack, "other", "n199");
    let gateway = format!("{}.1", own.rsplit_once('.').unwrap().0);
    let answer = stack.sh("one", &format!("nslookup other.n199 {gateway}"));
    assert!(answer.contains(&own), "{answer}");
}

#[test]
fn an_unknown_name_is_unknown_at_once() {
    let stack = Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\n");
    stack.up();
    let start = Instant::now();
    let lookup = stack.exec("a", "nslookup no-such-service");
    assert!(lookup.code != 0, "{lookup:?}");
    let told = format!("{}{}", lookup.out, lookup.err);
    assert!(told.contains("NXDOMAIN"), "{told}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn published_ports_reach_the_service() {
    let port = free_ports(1);
    let range = free_ports(3);
    let stack = Stack::new(&format!(
        r#"
[services.echo]
command = ["nc", "-ll", "-p", "7", "-e", "cat"]
ports = ["127.0.0.1:{port}:7"]
[services.range]
command = ["sh", "-c", "for p in 8000 8001 8002; do nc -ll -p $$p -e echo $$p & done; wait"]
ports = ["{range}-{}:8000-8002"]
"#,
        range + 2
    ));
    stack.up();
    until("the echo", || talk(port, b"hello").ok().filter(|answer| answer == b"hello"));
    // Much, both ways at once, and several clients.
    let clients: Vec<_> = (0..4_u8)
        .map(|index| {
            std::thread::spawn(move || {
                let sent: Vec<u8> = (0..4 << 20).map(|at: u32| (at / 7) as u8 ^ index).collect();
                assert!(talk(port, &sent).unwrap() == sent, "client {index}");
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    for offset in 0..3 {
        let answer = || talk(range + offset, b"").ok().filter(|answer| !answer.is_empty());
        assert_eq!(until("the range", answer), format!("{}\n", 8000 + offset).into_bytes());
    }
    let ports = stack.row("range")["ports"].to_string();
    assert!(ports.contains(&format!("{range}-{}", range + 2)) && ports.contains("8000-8002"), "{ports}");
    // While the service is down clients are not left waiting; afterwards it answers again.
    stack.run(&["stop", "echo"]).ok();
    let start = Instant::now();
    let answer = talk(port, b"x");
    assert!(answer.as_ref().map_or(true, Vec::is_empty), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    stack.run(&["start", "echo"]).ok();
    until("the echo", || talk(port, b"again").ok().filter(|answer| answer == b"again"));
    stack.run(&["down"]).ok();
    TcpListener::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let stack = Stack::new(&format!(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\nports = [\"127.0.0.1:{port}:80\"]\n\
         [services.b]\ncommand = [\"sleep\", \"1000\"]\n"
    ));
    // By which program: by this one.
    let program = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let program = &program[..program.len().min(15)];
    let parts = [&*port.to_string(), "in use", "hint:", program];
    stack.run(&["up", "-d"]).fails(1, &parts);
    stack.nothing_left();
    stack.run(&["stack.toml"]).fails(1, &parts);
    stack.nothing_left();
    drop(taken);
    stack.up();
}

#[test]
fn a_low_port_is_explained_to_an_ordinary_user() {
    let first: u16 = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    if crate::harness::is_root() || first <= 443 {
        return crate::harness::skipped(
            "a_low_port_is_explained_to_an_ordinary_user",
            "low ports are allowed here",
        );
    }
    let stack =
        Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\nports = [\"127.0.0.1:443:443\"]\n");
    stack.run(&["up", "-d"]).fails(2, &["443", "ip_unprivileged_port_start", "hint:"]);
    stack.nothing_left();
}
