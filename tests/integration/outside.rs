//! The way out of a stack and the way in, with real programs. Those tests that need an outside have a network namespace
//! for the host and one for a client there, which only root can make for programs that are to have all that they have
//! otherwise.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use crate::client::{CLIENT, CLIENT6, Client, HOST, HOST6, ip};
use crate::harness::{DEADLINE, Ended, Stack, ended, free_ports, skipped, until};

/// For a test that needs a client outside: `None`, and a note, for who may not make one.
fn client(test: &str) -> Option<Client> {
    let client = Client::with_host();
    if client.is_none() {
        skipped(test, "an ordinary user has no network namespace to run it all in");
    }
    client
}

/// What a server says until the end, after it was told `word`.
fn ask(to: SocketAddr, word: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(word.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn an_access_log_shows_the_client() {
    let Some(client) = client("an_access_log_shows_the_client") else { return };
    let stack = Stack::new(&format!(
        r#"
[services.web]
command = ["httpd", "-f", "-vv", "-p", "80", "-h", "/data"]
ports = ["{HOST}:8080:80", "[{HOST6}]:8080:80", "127.0.0.1:8080:80"]
networks = ["front"]
[networks.front]
enable_ipv6 = true
"#
    ));
    stack.up();
    let get = |at: &str| {
        let answer = ask(format!("{at}:8080").parse().unwrap(), "GET / HTTP/1.0\r\n\r\n");
        answer.ok().filter(|answer| answer.starts_with("HTTP/1"))
    };
    until("a page", || get("127.0.0.1"));
    let gateway = stack.sh("web", "ip route | awk '/default/ {print $3}'");
    stack.wait_log("web", &format!("{gateway}]"));
    for (host, seen) in [(HOST, CLIENT), (&format!("[{HOST6}]"), CLIENT6)] {
        client.within(|| get(host)).unwrap();
        stack.wait_log("web", &format!("{seen}]"));
    }
}

/// Whether a program in a service gets an answer from the client's server.
fn reaches(stack: &Stack, service: &str, to: &str, port: u16) -> Ended {
    stack.exec(service, &format!("echo ping | nc -w 3 {to} {port} | grep pong"))
}

/// Has the client answer what [`reaches`] sends.
fn serve(client: &Client, port: u16) {
    let listener = client.within(|| std::net::TcpListener::bind((CLIENT, port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Who was cut off does not read it.
            stream.read(&mut [0; 64]).and_then(|_| stream.write_all(b"pong\n")).ok();
        }
    });
}

#[test]
fn services_go_out_as_far_as_they_may() {
    let Some(client) = client("services_go_out_as_far_as_they_may") else { return };
    let stack = Stack::new(&format!(
        r#"
[services.open]
command = ["sleep", "1000"]
[services.some]
command = ["sleep", "1000"]
egress = ["{CLIENT}:80"]
[services.none]
command = ["sleep", "1000"]
egress = "none"
[services.inside]
command = ["sleep", "1000"]
networks = ["back"]
[services.alone]
command = ["sleep", "1000"]
network_mode = "none"
[networks.back]
internal = true
"#
    ));
    serve(&client, 80);
    serve(&client, 81);
    stack.up();
    for (service, port, allowed) in [
        ("open", 80, true),
        ("open", 81, true),
        ("some", 80, true),
        ("some", 81, false),
        ("none", 80, false),
        ("inside", 80, false),
        ("alone", 80, false),
    ] {
        let got = reaches(&stack, service, CLIENT, port);
        assert_eq!(got.out.trim() == "pong", allowed, "{service} {port}: {got:?}");
    }
    // And what was refused is told, in both places.
    for (service, port) in [("some", 81), ("none", 80)] {
        let refusal = format!("egress refused: tcp {CLIENT}:{port}");
        stack.wait_log(service, &refusal);
        until("an event", || {
            let events = stack.run(&["events", "--no-follow", "--format", "json"]).ok();
            let rows = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let is = |row: Value| row["container"] == service && row.to_string().contains(CLIENT);
            rows.into_iter().any(is).then_some(())
        });
    }
    assert!(!stack.logs("open").contains("refused"));
    // The same with ping.
    stack.sh("open", &format!("ping -c 1 -W 5 {CLIENT}"));
    assert_ne!(stack.exec("none", &format!("ping -c 1 -W 5 {CLIENT}")).code, 0);
}

#[test]
fn slirp4netns_is_the_way_out_where_the_kernel_cannot_intercept() {
    const NAME: &str = "slirp4netns_is_the_way_out_where_the_kernel_cannot_intercept";
    let Some(client) = client(NAME) else { return };
    let installed = std::process::Command::new("slirp4netns").arg("--version").output().is_ok();
    if !installed || std::fs::File::open("/dev/net/tun").is_err() {
        return skipped(NAME, "it needs slirp4netns and /dev/net/tun");
    }
    let service = |name: &str, more: &str| {
        format!(
            "[services.{name}]\ncommand = [\"nc\", \"-ll\", \"-p\", \"80\", \"-e\", \"echo\", \"pong\"]\n{more}\n"
        )
    };
    let services = [
        service("open", &format!("networks = [\"front\"]\nports = [\"{HOST}:8080:80\"]")),
        service("none", "networks = [\"front\"]\negress = \"none\""),
        service("other", "networks = [\"other\"]"),
        service("inside", "networks = [\"back\"]"),
        "[networks.front]\n[networks.other]\n[networks.back]\ninternal = true\n".to_owned(),
    ];
    let stack = Stack::new(&services.concat());
    serve(&client, 81);
    let forced = |arguments: &[&str]| {
        let mut command = stack.command(arguments);
        ended(command.env("INCEPTION_TEST_NO_INTERCEPTION", "1"))
    };
    forced(&["up", "-d", "--strict"]).fails(1, &["no way out"]);
    let up = forced(&["up", "-d"]);
    assert!(up.err.contains("slirp4netns") && up.err.contains("`none` can reach nothing"), "{}", up.err);
    up.ok();
    for (service, allowed) in [("open", true), ("none", false), ("other", true), ("inside", false)] {
        let got = reaches(&stack, service, CLIENT, 81);
        assert_eq!(got.out.trim() == "pong", allowed, "{service}: {got:?}");
    }
    // Networks stay apart, and what comes in does.
    let address =
        |service: &str| stack.sh(service, "ip -4 -o addr show eth0 | sed 's,.*inet \\([0-9.]*\\).*,\\1,'");
    for (from, to, allowed) in [("open", "none", true), ("open", "other", false), ("inside", "open", false)] {
        let got = reaches(&stack, from, &address(to), 80);
        assert_eq!(got.out.trim() == "pong", allowed, "{from} to {to}: {got:?}");
    }
    assert_eq!(client.within(|| ask(format!("{HOST}:8080").parse().unwrap(), "")).unwrap(), "pong\n");
    // When it dies the next `up` starts it again. A container that comes later has it, too.
    let is_slirp = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "slirp4netns")
    };
    crate::killed::kill(stack.processes().into_iter().find(is_slirp).unwrap());
    until("slirp4netns's end", || (!stack.processes().iter().any(is_slirp)).then_some(()));
    assert_ne!(reaches(&stack, "open", CLIENT, 81).out.trim(), "pong");
    stack.rewrite(&(services.concat() + &service("late", "networks = [\"front\"]")));
    forced(&["up", "-d"]).ok();
    assert_eq!(reaches(&stack, "late", CLIENT, 81).out.trim(), "pong");
    assert_eq!(reaches(&stack, "open", CLIENT, 81).out.trim(), "pong");
    // It ends with the supervisor, however that ends.
    crate::killed::kill(stack.supervisor().unwrap());
    stack.gone(DEADLINE);
}

#[test]
fn subnets_keep_out_of_the_hosts_way() {
    let Some(_client) = client("subnets_keep_out_of_the_hosts_way") else { return };
    let services = "[services.a]\ncommand = [\"sleep\", \"1000\"]\n";
    let stack = Stack::new(services);
    let network = |stack: &Stack| stack.sh("a", "ip route | awk '/src/ {print $1}'");
    stack.up();
    let first = network(&stack);
    stack.run(&["down"]).ok();
    ip(&format!("route add {first} dev eth0"));
    stack.up();
    assert_ne!(network(&stack), first, "the host has a route there");
    stack.run(&["down"]).ok();
    stack.rewrite(&format!(
        "{services}networks = [\"n\"]\n[networks.n]\nipam = {{ config = [{{ subnet = \"{first}\" }}] }}\n"
    ));
    stack.run(&["up", "-d"]).fails(2, &[&first, "overlaps", "eth0"]);
}

#[test]
fn ports_of_every_kind() {
    let range = free_ports(1000);
    let fixed = free_ports(1);
    let stack = Stack::new(&format!(
        r#"
[services.chosen]
command = ["nc", "-ll", "-p", "80", "-e", "echo", "chosen"]
ports = ["127.0.0.1::80"]
[services.six]
command = ["nc", "-ll", "-p", "80", "-e", "echo", "six"]
ports = ["[::1]:{fixed}:80", "127.0.0.1:{fixed}:80/udp"]
[services.range]
command = ["sh", "-c", "for p in 20000 20999; do nc -ll -p $$p -e echo $$p & done; wait"]
ports = ["127.0.0.1:{range}-{}:20000-20999"]
"#,
        range + 999
    ));
    stack.up();
    let answers = |ip: IpAddr, port: u16, expected: &str| {
        let answer = || ask((ip, port).into(), "").ok().filter(|answer| answer.trim() == expected);
        until(expected, answer);
    };
    let local = IpAddr::from([127, 0, 0, 1]);
    let ports = stack.row("chosen")["ports"].to_string();
    let chosen = ports.split("->").next().and_then(|host| host.rsplit(':').next());
    answers(local, chosen.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{ports}")), "chosen");
    if std::path::Path::new("/proc/net/if_inet6").exists() {
        answers(Ipv6Addr::LOCALHOST.into(), fixed, "six");
    }
    let ports = stack.row("six")["ports"].to_string();
    assert!(ports.contains(&format!("[::1]:{fixed}")) && ports.contains("/udp"), "{ports}");
    answers(local, range, "20000");
    answers(local, range + 999, "20999");
    // A thousand of them, and one process that has them.
    assert!(stack.processes().len() < 20, "{:?}", stack.processes());
}

#[test]
fn a_port_stays_open_over_a_restart() {
    let port = free_ports(1);
    let stack = Stack::new(&format!(
        r#"
[services.web]
command = ["nc", "-ll", "-p", "80", "-e", "cat"]
ports = ["127.0.0.1:{port}:80"]
stop_signal = "SIGKILL"
"#
    ));
    stack.up();
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    until("the service", || ask(to, "first").ok().filter(|answer| answer == "first"));
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                // A service that is killed takes its open connections with it, but refuses none: what comes to
                // nothing was one of those, and there is one at a time.
                match ask(to, "word") {
                    Ok(answer) => assert!(answer == "word" || answer.is_empty(), "{answer}"),
                    Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::ConnectionRefused),
                }
                served.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut lost = 0;
        for _ in 0..3 {
            stack.run(&["restart", "web"]).ok();
            // At once: it waits for the service.
            lost += usize::from(ask(to, "after").ok().as_deref() != Some("after"));
            let before = served.load(Ordering::SeqCst);
            until("more", || (served.load(Ordering::SeqCst) > before + 20).then_some(()));
        }
        over.store(true, Ordering::SeqCst);
        assert_eq!(lost, 0);
    });
}

#[test]
fn services_find_each_other_over_ipv6() {
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        return skipped("services_find_each_other_over_ipv6", "no IPv6 here");
    }
    let stack = Stack::new(
        r#"
[services.web]
command = ["nc", "-ll", "-p", "80", "-e", "echo", "web"]
networks = ["six", "four"]
[services.client]
command = ["sleep", "1000"]
networks = ["six"]
[services.old]
command = ["sleep", "1000"]
networks = ["four"]
[networks.six]
enable_ipv6 = true
[networks.four]
"#,
    );
    stack.up();
    let lookup =
        |from: &str| stack.exec(from, "nslookup -type=aaaa web | awk '/^Address/ && !/:53$/ {print $2}'").out;
    let address = lookup("client").trim().to_owned();
    assert!(address.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_unique_local()), "{address}");
    until("the server", || {
        let fetched = stack.exec("client", &format!("nc -w 1 {address} 80 < /dev/null"));
        (fetched.out == "web\n").then_some(())
    });
    stack.sh("client", "ping6 -c 1 -W 5 web");
    assert_eq!(lookup("old"), "", "its network has none");
}
