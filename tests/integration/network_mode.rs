//! Services in the network namespace of the host, or of another service.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::{Stack, connect, free_ports, until};

fn namespace_of(pid: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().to_str().unwrap().to_owned()
}

/// Parent of a process, and whether it has ended without being reaped (proc_pid_stat(5)).
fn parent(pid: i32) -> Option<(i32, bool)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ended = fields.next()? == "Z";
    Some((fields.next()?.parse().ok()?, ended))
}

fn zombies_of(parent_of_them: i32) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent(*pid) == Some((parent_of_them, true))).count()
}

fn read(port: u16) -> Option<String> {
    let mut text = String::new();
    let mut stream = connect(port).ok()?;
    stream.write_all(b"\n").ok()?;
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn a_service_has_the_hosts_network() {
    let port = free_ports(1);
    let stack = Stack::new(&format!(
        r#"
[services.host]
command = ["sh", "-c", "nc -ll -p {port} -e echo here & read line < /proc/self/stat; wait"]
network_mode = "host"
restart = "always"
healthcheck = {{ test = ["TCP", "{port}"], interval = "100ms" }}
[services.own]
command = ["sleep", "1000"]
"#
    ));
    stack.run(&["up", "-d", "--wait"]).ok();
    let own = namespace_of("self");
    assert_eq!(namespace_of(&stack.pid("host").to_string()), own);
    assert_ne!(namespace_of(&stack.pid("own").to_string()), own);
    assert_eq!(until("the server", || read(port)), "here\n");
    // So has what is started in it later, and a container of its own. Everything else is apart.
    assert_eq!(stack.sh("host", "readlink /proc/self/ns/net"), own);
    let run = stack.run(&["run", "host", "readlink", "/proc/self/ns/net"]);
    assert_eq!(run.ok().trim(), own);
    assert!(stack.sh("host", "cat /proc/1/cmdline").starts_with("inception-init"));
    let interfaces = stack.sh("host", "ls /sys/class/net | xargs");
    let mut here: Vec<String> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
        .collect();
    here.sort();
    assert_eq!(interfaces, here.join(" "));
    assert_ne!(stack.exec("host", "mkdir /sys/fs/cgroup/x || ip link set lo mtu 1400").code, 0);
    // What it starts is reaped, its end is noticed, and it starts again.
    let (pid, restarts) = (stack.pid("host"), stack.row("host")["restarts"].as_u64());
    let number = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
    until("another start", || {
        let row = stack.row("host");
        (row["restarts"].as_u64() != restarts && row["state"] == "running").then_some(())
    });
    until("the server", || read(port));
    stack.run(&["restart", "host"]).ok();
    until("the server", || read(port));
    stack.run(&["stop", "host"]).ok();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn nothing_on_the_hosts_network_outlives_the_supervisor() {
    let port = free_ports(1);
    let stack = Stack::new(&format!(
        r#"
[services.host]
command = ["nc", "-ll", "-p", "{port}", "-e", "echo", "here"]
network_mode = "host"
"#
    ));
    stack.up();
    until("the server", || read(port));
    let supervisor = rustix::process::Pid::from_raw(stack.supervisor().unwrap()).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    stack.gone(Duration::from_secs(5));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_program_that_is_not_there_is_told_on_the_hosts_network_too() {
    let stack = Stack::new(
        r#"
[services.host]
command = ["sleep", "1000"]
network_mode = "host"
"#,
    );
    stack.up();
    for command in ["run", "exec"] {
        stack.run(&[command, "host", "no-such-program"]).fails(127, &["execute `no-such-program`"]);
    }
    // All are children of the stack's first process, which reaps them.
    let (hub, _) = parent(stack.pid("host")).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{hub}/status")).unwrap();
    let number = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    assert!(number.ends_with("\t1"), "{number}");
    until("an end of what failed", || (zombies_of(hub) == 0).then_some(()));
    assert_eq!(stack.row("host")["state"], "running");
}

#[test]
fn the_hosts_network_is_for_a_stack_that_was_started_with_it() {
    let own = "[services.own]\ncommand = [\"sleep\", \"1000\"]\n";
    let stack = Stack::new(own);
    stack.up();
    stack.rewrite(&format!(
        "{own}[services.host]\ncommand = [\"sleep\", \"1000\"]\nnetwork_mode = \"host\"\n"
    ));
    stack.run(&["up", "-d"]).fails(1, &["service `host` is to have the host's network", "down"]);
    assert_eq!(stack.row("own")["state"], "running");
    stack.run(&["down"]).ok();
    stack.up();
    assert_eq!(namespace_of(&stack.pid("host").to_string()), namespace_of("self"));
}

#[test]
fn a_service_has_another_ones_network() {
    let stack = Stack::new(
        r#"
[services.owner]
command = ["sh", "-c", "echo owner > /tmp/it; exec httpd -f -p 127.0.0.1:7 -h /tmp"]
[services.guest]
command = ["nc", "-ll", "-p", "8", "-e", "echo", "guest"]
network_mode = "service:owner"
healthcheck = { test = ["TCP", "8"], interval = "100ms" }
[services.other]
command = ["sleep", "1000"]
"#,
    );
    stack.run(&["up", "-d", "--wait"]).ok();
    let of = |service: &str| namespace_of(&stack.pid(service).to_string());
    assert_eq!(of("guest"), of("owner"));
    assert_ne!(of("guest"), of("other"));
    // By loopback, both ways, and by the owner's name.
    let fetch = "wget -q -O - http://127.0.0.1:7/it";
    assert_eq!(stack.sh("guest", fetch), "owner");
    assert_eq!(stack.sh("owner", "nc 127.0.0.1 8 < /dev/null"), "guest");
    assert_eq!(stack.sh("other", "nc owner 8 < /dev/null"), "guest");
    // It is the namespace, and not its first user, that is shared.
    stack.run(&["restart", "owner"]).ok();
    assert_eq!(of("guest"), of("owner"));
    until("the owner", || (stack.exec("guest", fetch).out == "owner\n").then_some(()));
    assert_eq!(stack.run(&["run", "guest", "readlink", "/proc/self/ns/net"]).ok().trim(), of("owner"));
}
