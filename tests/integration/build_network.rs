//! The network of `RUN`: what it reaches, and what it does not.

use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use crate::build::{build, command, run, with_base};
use crate::harness::{ended, free_ports, is_root, skipped, until};

const SERVICE: &str = "[services.web]\nbuild = \"web\"\n";

/// Answers each query for an address with 192.0.2.1, and others with nothing.
const NAME_SERVER: &str = r#"
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("192.0.2.1", 53))
while True:
    query, client = server.recvfrom(512)
    end = query.index(b"\0", 12) + 5
    question = query[12:end]
    is_address = question[-4:] == b"\0\1\0\1"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1" if is_address else b""
    server.sendto(query[:2] + b"\x81\x80\0\1\0" + bytes([is_address]) + b"\0\0\0\0" + question + answer, client)
"#;

/// A port on the host's loopback that says `reached` to everybody.
fn listener() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.and_then(|mut stream| stream.write_all(b"reached\n")).ok();
        }
    });
    port
}

/// Shows what that port says.
fn attempt(port: u16) -> String {
    format!("nc -w 2 127.0.0.1 {port} < /dev/null || echo out of reach")
}

#[test]
fn the_hosts_loopback_is_out_of_reach() {
    let stack = with_base(SERVICE);
    let port = listener();
    let name = format!("{}-abstract", stack.name);
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let script = format!("{}; grep -c {name} /proc/net/unix; ls /sys/class/net | xargs", attempt(port));
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nRUN {script}\n"));
    let progress = build(&stack);
    for line in ["] out of reach", "] 0", "] eth0 lo"] {
        assert!(progress.contains(line), "no `{line}` in {progress}");
    }
    assert!(!progress.contains("warning"), "{progress}");
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nRUN --network=none {script}\n"));
    let progress = build(&stack);
    for line in ["] out of reach", "] 0", "] lo"] {
        assert!(progress.contains(line), "no `{line}` in {progress}");
    }
    stack.gone(Duration::from_secs(2));
}

#[test]
fn the_hosts_network_is_for_the_stack_file_to_grant() {
    let stack = with_base(SERVICE);
    let port = listener();
    let (usual, host) = (
        format!("FROM alpine:3.99\nRUN {}\n", attempt(port)),
        format!("FROM alpine:3.99\nRUN --network=host {}\n", attempt(port)),
    );
    stack.write("web/Dockerfile", &host);
    run(&stack, &["build"]).fails(1, &["Dockerfile:2", "loopback", "network.host"]);
    let granted = |key: &str, dockerfile: &str| {
        stack.write("stack.toml", &format!("[services.web]\nbuild = {{ context = \"web\", {key} }}\n"));
        stack.write("web/Dockerfile", dockerfile);
        let ended = run(&stack, &["build", "--no-cache"]);
        let progress = ended.err.clone();
        ended.ok();
        progress.contains("] reached")
    };
    assert!(granted("entitlements = [\"network.host\"]", &host));
    assert!(!granted("entitlements = [\"network.host\"]", &usual));
    assert!(granted("network = \"host\"", &usual));
    assert!(granted("network = \"host\"", &host));
    assert!(!granted("network = \"none\"", &usual));
    stack.write("stack.toml", "[services.web]\nbuild = { context = \"web\", network = \"bridge\" }\n");
    run(&stack, &["build"]).fails(2, &["`bridge`", "host"]);
    // What was granted is not found in the cache by those to whom it is not.
    stack.write("stack.toml", SERVICE);
    stack.write("web/Dockerfile", &usual);
    assert!(!run(&stack, &["build", "--no-cache"]).err.contains("] reached"));
}

#[test]
fn a_proxy_on_the_hosts_loopback_stays_within_reach() {
    let port = listener();
    let services = |proxy: &str| {
        format!(
            "[services.web]\nbuild = {{ context = \"web\", args = {{ http_proxy = \"http://{proxy}:3128\" }} }}\n"
        )
    };
    let stack = with_base(&services("localhost"));
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nRUN {0}\nRUN {0} # again\n", attempt(port)));
    let progress = build(&stack);
    assert!(progress.contains("] reached"), "{progress}");
    assert_eq!(progress.matches("`http_proxy` names a proxy").count(), 1, "{progress}");
    // What the Dockerfile says opens nothing: whoever wrote it would have the host's network by asking for it.
    stack.write("stack.toml", SERVICE);
    for word in ["ENV", "ARG"] {
        let text =
            format!("FROM alpine:3.99\n{word} http_proxy=http://localhost:3128\nRUN {}\n", attempt(port));
        stack.write("web/Dockerfile", &text);
        let progress = run(&stack, &["build", "--no-cache"]).err;
        assert!(
            progress.contains("] out of reach") && !progress.contains("names a proxy"),
            "{word}: {progress}"
        );
    }
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nRUN {}\n", attempt(port)));
    stack.write("stack.toml", &services("192.0.2.1"));
    let progress = run(&stack, &["build", "--no-cache"]).err;
    assert!(progress.contains("] out of reach") && !progress.contains("names a proxy"), "{progress}");
}

#[test]
fn names_and_the_world_are_within_reach() {
    if !is_root() {
        return skipped("names_and_the_world_are_within_reach", "it takes a network namespace of its own");
    }
    let stack = with_base(SERVICE);
    stack.write(
        "web/Dockerfile",
        "FROM alpine:3.99\nRUN nc -w 5 server.test 80 < /dev/null\nRUN nc -w 5 192.0.2.1 80 < /dev/null\n\
         RUN nc -w 2 127.0.0.1 80 < /dev/null || echo not on its own loopback\n\
         RUN grep -q 'search example.test' /etc/resolv.conf && ! grep 192.0.2 /etc/resolv.conf\n",
    );
    stack.write("server.py", NAME_SERVER);
    stack.write("resolv.conf", "nameserver 192.0.2.1\nsearch example.test\n");
    // The world is a namespace with one address, which has a name server and a greeting.
    let world = "busybox ip link set lo up && busybox ip address add 192.0.2.1/24 dev lo && \
                 mount --bind resolv.conf /etc/resolv.conf && { \
                 python3 server.py & \
                 busybox nc -ll -p 80 -e echo hello from outside & \
                 until busybox nslookup server.test 192.0.2.1 && busybox nc 192.0.2.1 80; do sleep 0.05; done; \
                 \"$@\"; } < /dev/null";
    let build = command(&stack, &["build"]);
    let mut unshare = stack.command_of("unshare");
    unshare.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        world,
        "sh",
    ]);
    unshare.arg(build.get_program()).args(build.get_args());
    unshare.env("INCEPTION_BASE_DIR", stack.path("bases"));
    let ended = ended(&mut unshare);
    let progress = ended.err.clone();
    ended.ok();
    assert_eq!(progress.matches("] hello from outside").count(), 2, "{progress}");
    assert!(progress.contains("] not on its own loopback"), "{progress}");
}

#[test]
fn a_killed_build_takes_its_network_along() {
    let stack = with_base(SERVICE);
    let port = free_ports(1);
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nRUN echo begun; nc -l -p {port}\n"));
    let mut child = command(&stack, &["build"]).spawn().unwrap();
    let is_netd = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).nth(1) == Some(b"__netd")
    };
    until("netd", || stack.processes().into_iter().find(is_netd));
    child.kill().unwrap();
    child.wait().unwrap();
    stack.gone(Duration::from_secs(2));
}
