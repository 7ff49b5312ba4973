//! Keys of the compose specification whose effect is seen inside of a container, or in what becomes of it.

use serde_json::Value;

use crate::harness::{Stack, is_root, patient, skipped, until};

fn status(text: &str, key: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).trim().to_owned()
}

#[test]
fn groups_score_and_names() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sleep", "1000"]
user = "app"
group_add = ["extra", "4242"]
oom_score_adj = 700
container_name = "the-a"
uts = "host"
annotations = { "org.example" = "1" }
[services.b]
command = ["sleep", "1000"]
external_links = ["the-a:far"]
"#,
    );
    stack.up();
    let groups = stack.sh("a", "id -G");
    let mut groups: Vec<&str> = groups.split_whitespace().collect();
    groups.sort_unstable();
    assert_eq!(groups, ["1000", "2000", "4242"]);
    assert_eq!(stack.sh("a", "cat /proc/1/oom_score_adj"), "700");
    assert_eq!(
        stack.sh("b", "cat /proc/1/oom_score_adj"),
        std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim()
    );
    // As the service, as the container, and across the network.
    assert_eq!(
        stack.sh("the-a", "hostname"),
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim()
    );
    stack.sh("b", "ping -c 1 -W 5 far && ping -c 1 -W 5 the-a");
    let inspected: Value = serde_json::from_str(&stack.run(&["inspect", "a"]).ok()).unwrap();
    assert_eq!(inspected["service"]["annotations"]["org.example"], "1");
}

#[test]
fn a_group_that_the_image_lacks_is_named() {
    let stack = Stack::new("[services.a]\ncommand = [\"true\"]\ngroup_add = [\"nobodys\"]\n");
    stack.run(&["up", "-d"]).fails(1, &["nobodys"]);
}

#[test]
fn what_confines_a_service_can_be_chosen() {
    let stack = Stack::new(
        r#"
[services.usual]
command = ["sleep", "1000"]
[services.privileged]
command = ["sleep", "1000"]
privileged = true
[services.chosen]
command = ["sleep", "1000"]
security_opt = ["no-new-privileges:false", "seccomp=unconfined", "systempaths=unconfined"]
[services.profile]
command = ["sleep", "1000"]
security_opt = ["seccomp=./profile.json"]
"#,
    );
    stack.write(
        "profile.json",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["sethostname", "chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#,
    );
    stack.up();
    let facts = |service: &str| {
        let text = stack.sh(service, "cat /proc/self/status");
        ["NoNewPrivs", "Seccomp", "CapEff"].map(|key| status(&text, key))
    };
    assert_eq!(facts("usual"), ["1", "2", "00000000a80425fb"]);
    let [_, filter, capabilities] = facts("privileged");
    assert_eq!(filter, "0");
    assert!(
        u64::from_str_radix(&capabilities, 16).unwrap() & (1 << 21) != 0,
        "CAP_SYS_ADMIN in {capabilities}"
    );
    assert_eq!(facts("chosen")[..2], ["0", "0"]);
    assert_eq!(facts("profile")[1], "2");
    // PID 1 of a container is not treated otherwise than what is started in it later.
    assert_eq!(status(&stack.sh("chosen", "cat /proc/1/status"), "NoNewPrivs"), "0");
    // With its capabilities it mounts, and writes to what is read-only otherwise.
    stack.sh("privileged", "mount -t tmpfs none /data && echo 1 > /proc/sys/net/ipv4/ip_forward");
    assert_ne!(stack.exec("usual", "echo 1 > /proc/sys/net/ipv4/ip_forward").code, 0);
    assert_eq!(
        stack.sh(
            "chosen",
            "wc -c < /proc/timer_list > /dev/null; grep -c ' /proc/sys ' /proc/self/mountinfo || true"
        ),
        "0"
    );
    // The profile's own error number.
    let refused = stack.exec("profile", "touch /tmp/x && chmod 600 /tmp/x");
    assert!(refused.err.contains("not supported"), "{refused:?}");
    stack.sh("usual", "touch /tmp/x && chmod 600 /tmp/x");
}

#[test]
fn devices_are_bound() {
    let stack =
        Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\ndevices = [\"/dev/zero:/dev/nothing\"]\n");
    stack.up();
    assert_eq!(stack.sh("a", "head -c 3 /dev/nothing | od -An -tx1"), "00 00 00");
}

#[test]
fn hooks_run_inside_at_the_turns() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sh", "-c", "trap 'echo ended >> /log/log; exit' TERM; echo begun >> /log/log; while :; do sleep 0.02; done"]
volumes = ["./log:/log"]
environment = { WHO = "service" }
post_start = [
    { command = ["sh", "-c", "until grep -q begun /log/log; do sleep 0.02; done; echo one $$WHO $$(id -u) >> /log/log; echo seen"] },
    { command = ["sh", "-c", "echo two $$WHO $$(pwd) $$(id -u) >> /log/log"], environment = { WHO = "hook" }, working_dir = "/tmp", user = "app" },
]
pre_stop = [{ command = ["sh", "-c", "sleep 0.1; echo farewell >> /log/log"] }]
[services.after]
command = ["sh", "-c", "echo after >> /log/log; sleep 1000"]
volumes = ["./log:/log"]
depends_on = ["a"]
"#,
    );
    stack.write("log/log", "");
    std::fs::set_permissions(stack.path("log/log"), std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .unwrap();
    stack.up();
    let log = || std::fs::read_to_string(stack.path("log/log")).unwrap();
    until("the service that depends on it", || log().contains("after").then_some(()));
    assert_eq!(log(), "begun\none service 0\ntwo hook /tmp 1000\nafter\n");
    // What they write is their container's.
    stack.wait_log("a", "seen");
    stack.run(&["stop", "a"]).ok();
    assert_eq!(log().lines().rev().take(2).collect::<Vec<_>>(), ["ended", "farewell"]);
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn a_service_whose_hook_fails_is_stopped() {
    let file = |hook: &str| {
        let other = "[services.other]\ncommand = [\"sleep\", \"1000\"]\nstop_signal = \"SIGKILL\"\n";
        format!("{other}[services.a]\ncommand = [\"sleep\", \"1000\"]\nstop_signal = \"SIGKILL\"\n{hook}\n")
    };
    let stack = Stack::new(&file("pre_stop = [{ command = [\"no-such-program\"] }]"));
    stack.up();
    // Nothing keeps a container from its end.
    stack.run(&["stop", "a"]).ok();
    assert_eq!(stack.row("a")["state"], "exited");
    stack.rewrite(&file("post_start = [{ command = [\"sh\", \"-c\", \"echo broken >&2; exit 3\"] }]"));
    stack.run(&["up", "-d"]).fails(1, &["`post_start` failed", "ended with status 3"]);
    stack.wait("a", "state", "exited");
    stack.wait_log("a", "broken");
    assert_eq!(stack.row("other")["state"], "running");
}

#[test]
fn as_much_of_the_output_is_kept_as_the_file_says() {
    let stack = Stack::new(
        r#"
[services.little]
command = ["sh", "-c", "for i in $$(seq 1 2000); do echo line-$${i}-of-many; done; echo last"]
logging = { options = { max-size = "10k", max-file = "3" } }
[services.nothing]
command = ["sh", "-c", "echo unheard; sleep 1000"]
logging = { driver = "none" }
"#,
    );
    stack.up();
    let little = stack.wait_log("little", "last");
    let lines = little.lines().count();
    assert!((50..1000).contains(&lines), "{lines} lines");
    assert!(little.contains("line-2000-of-many") && !little.contains("line-1-of-many"), "{little}");
    let log = stack.path("r").join(&stack.name).join("little.log.2");
    assert!(log.exists() && !log.with_extension("3").exists());
    stack.wait("nothing", "state", "running");
    assert_eq!(stack.logs("nothing"), "");
}

#[test]
fn dependencies_that_are_not_required_and_those_that_take_others_along() {
    let text = |seconds: &str| {
        r#"
[services.broken]
command = ["false"]
[services.a]
command = ["sleep", "1000"]
depends_on = { broken = { condition = "service_completed_successfully", required = false }, db = { condition = "service_started", restart = true } }
[services.b]
command = ["sleep", "1000"]
depends_on = ["db"]
[services.db]
command = ["sleep", "SECONDS"]
"#
        .replace("SECONDS", seconds)
    };
    let stack = Stack::new(&text("1000"));
    stack.run(&["up", "-d"]).ok();
    let pids = || ["a", "b", "db"].map(|service| stack.pid(service));
    let before = pids();
    stack.run(&["restart", "db"]).ok();
    let after = pids();
    assert_eq!(before.map(|pid| after.contains(&pid)), [false, true, false], "{before:?} {after:?}");
    // Likewise when another configuration replaces it.
    stack.rewrite(&text("1001"));
    stack.run(&["up", "-d"]).ok();
    let last = pids();
    assert_eq!(after.map(|pid| last.contains(&pid)), [false, true, false], "{after:?} {last:?}");
}

#[test]
fn a_service_that_is_not_attached_is_not_shown() {
    let stack = Stack::new(
        r#"
[services.loud]
command = ["sh", "-c", "until [ -e /go/quiet ]; do sleep 0.02; done; echo loud-line"]
volumes = ["./go:/go"]
# It ends last, and the command with it.
[services.quiet]
command = ["sh", "-c", "echo quiet-line; touch /go/quiet; sleep 0.5"]
volumes = ["./go:/go"]
attach = false
"#,
    );
    stack.write("go/.keep", "");
    std::fs::set_permissions(stack.path("go"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let shown = stack.run(&["up"]);
    assert!(shown.out.contains("loud-line") && !shown.out.contains("quiet-line"), "{shown:?}");
}

#[test]
fn secrets_and_configurations_of_the_file() {
    let stack = Stack::new(
        r#"
secrets = { password = { content = "hush" } }
configs = { site = { content = "listen 80;\n" } }
[services.a]
command = ["sleep", "1000"]
user = "app"
secrets = [{ source = "password", uid = "1000", gid = "2000", mode = "0440" }]
configs = [{ source = "site", target = "/etc/site.conf" }]
"#,
    );
    stack.up();
    assert_eq!(stack.sh("a", "cat /run/secrets/password"), "hush");
    assert_eq!(stack.sh("a", "stat -c '%u %g %a' /run/secrets/password"), "1000 2000 440");
    assert_eq!(stack.sh("a", "cat /etc/site.conf"), "listen 80;");
    // No plan that a program prints has it in its log of changes; what the file has is in the plan.
    stack.run(&["plan"]).ok();
}

#[test]
fn what_listens_on_the_host_is_reached_by_the_name_for_it() {
    let own = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    if !own.is_ok_and(|own| !own.ip().is_loopback()) {
        return skipped("what_listens_on_the_host_is_reached_by_the_name_for_it", "the host has no address");
    }
    let listener = patient(std::net::TcpListener::bind("0.0.0.0:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    let answer = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut client, b"from the host\n").unwrap();
    });
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\nextra_hosts = [\"host.docker.internal:host-gateway\"]\n",
    );
    stack.up();
    assert_eq!(stack.sh("a", &format!("nc -w 5 host.docker.internal {port} < /dev/null")), "from the host");
    answer.join().unwrap();
}

#[test]
fn low_ports_are_moved_and_the_stack_keeps_to_it() {
    let first: u16 = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    if is_root() || first <= 443 {
        return skipped("low_ports_are_moved_and_the_stack_keeps_to_it", "low ports are allowed here");
    }
    let offset = crate::harness::free_ports(1) - 443;
    let moved = (443 + offset).to_string();
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"while :; do echo hello | nc -l -p 443; done\"]\nports = [\"443:443\"]\n",
    );
    let offset = offset.to_string();
    let told = stack.run(&["up", "-d", "--port-offset", &offset]);
    assert!(told.err.contains(&format!("port 443 of a is published as {moved}")), "{told:?}");
    told.ok();
    // Without the option from now on.
    let row = stack.row("a");
    assert!(row["ports"][0].as_str().unwrap().contains(&format!("{moved}->443")), "{row}");
    let pid = stack.pid("a");
    stack.run(&["up", "-d"]).ok();
    assert_eq!(stack.pid("a"), pid);
    assert!(stack.run(&["ps"]).ok().contains(&format!("port 443 of a is published as {moved}")));
    stack.run(&["down"]).ok();
    stack.nothing_left();
    stack.run(&["up", "-d"]).fails(2, &["--port-offset 8000", "--publish 443=8443"]);
}

/// What `sudo` and `su` in a container need.
#[test]
fn set_user_id_programs_are_for_the_stack_file_to_grant() {
    let services = |name: &str, more: &str| {
        format!(
            "[services.{name}]\nbuild = \"web\"\nuser = \"app\"\ncommand = [\"sleep\", \"1000\"]\n{more}\n"
        )
    };
    let granted = services("granted", "security_opt = [\"no-new-privileges:false\"]");
    let stack = crate::build::with_base(&(services("usual", "") + &granted));
    stack.write(
        "web/Dockerfile",
        "FROM alpine:3.99\nRUN rm /bin/su && cp /bin/busybox /bin/su && chmod 4755 /bin/su\n",
    );
    crate::build::run(&stack, &["up", "-d"]).ok();
    // By its path: the shell has a `su` of its own. It comes as far as passwords only where it has the rights of root.
    let said = |service: &str| stack.sh(service, "id -u; /bin/su root -c true 2>&1 < /dev/null | tail -n 1");
    assert_eq!(said("granted"), "1000\nsu: incorrect password");
    assert_eq!(said("usual"), "1000\nsu: must be suid to work properly");
}
