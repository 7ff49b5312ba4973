//! From `up` to `down`: order, health, restarts, recreation, what is kept and what is forgotten.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{PatientPipe, Stack, ended, exit_status, finish, until};

fn signal(child: &std::process::Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Whether the lines of a file stand in this order.
#[track_caller]
fn in_order(text: &str, words: &[&str]) {
    let places: Vec<_> = words.iter().map(|word| text.lines().position(|line| line == *word)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{words:?} in:\n{text}");
}

#[test]
fn services_start_after_what_they_depend_on_and_stop_before_it() {
    let stack = Stack::new(
        r#"
[services.last]
command = ["sh", "-c", "trap 'echo last-stopped >> /log/log; exit' TERM; echo last >> /log/log; while :; do sleep 0.02; done"]
volumes = ["./log:/log"]
depends_on = { healthy = { condition = "service_healthy" }, job = { condition = "service_completed_successfully" }, plain = { condition = "service_started" } }
[services.healthy]
command = ["sh", "-c", "trap 'echo healthy-stopped >> /log/log; exit' TERM; until [ -e /log/job ]; do sleep 0.02; done; echo healthy >> /log/log; touch /tmp/ok; while :; do sleep 0.02; done"]
volumes = ["./log:/log"]
healthcheck = { test = ["CMD", "test", "-e", "/tmp/ok"], interval = "20ms", retries = 5000 }
[services.job]
command = ["sh", "-c", "until [ -e /log/go ]; do sleep 0.02; done; echo job >> /log/log; touch /log/job"]
volumes = ["./log:/log"]
depends_on = ["plain"]
[services.plain]
command = ["sleep", "1000"]
"#,
    );
    stack.write("log/log", "");
    std::fs::set_permissions(stack.path("log/log"), std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .unwrap();
    std::fs::set_permissions(stack.path("log"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let up = stack.spawn(&["up", "--wait"]);
    let log = || std::fs::read_to_string(stack.path("log/log")).unwrap();
    // All that can run does, and waits for us.
    let runs =
        |service: &str| stack.ps().iter().any(|row| row["container"] == service && row["state"] == "running");
    until("what the last one needs", || {
        ["plain", "job", "healthy"].iter().all(|name| runs(name)).then_some(())
    });
    assert_eq!(log(), "");
    stack.write("log/go", "");
    finish(up).ok();
    until("the last service", || log().contains("last").then_some(()));
    in_order(&log(), &["job", "healthy", "last"]);
    assert_eq!(stack.row("healthy")["health"], "healthy");
    let job = stack.row("job");
    assert!(job["state"] == "exited" && job["exit_code"] == 0, "{job}");
    stack.run(&["down"]).ok();
    in_order(&log(), &["last-stopped", "healthy-stopped"]);
    stack.nothing_left();
}

#[test]
fn an_unhealthy_dependency_is_explained() {
    let stack = Stack::new(
        r#"
[services.web]
command = ["sleep", "1000"]
depends_on = { db = { condition = "service_healthy" } }
[services.db]
command = ["sh", "-c", "echo my last words; exec sleep 1000"]
healthcheck = { test = ["CMD-SHELL", "echo the probe says no; exit 1"], interval = "20ms", retries = 2 }
"#,
    );
    let ended = stack.run(&["up", "-d"]);
    let parts = ["`web`", "`db` is unhealthy", "the probe says no", "my last words", "caused by:", "hint:"];
    ended.fails(1, &parts);
    stack.nothing_left();
    stack.run(&["up", "--wait"]).fails(1, &parts);
    stack.nothing_left();
}

#[test]
fn a_failed_job_and_a_missing_program_are_explained() {
    let stack = Stack::new(
        r#"
[services.web]
command = ["sleep", "1000"]
depends_on = { job = { condition = "service_completed_successfully" } }
[services.job]
command = ["sh", "-c", "echo cannot migrate; exit 3"]
"#,
    );
    stack.run(&["up", "-d"]).fails(1, &["`web`", "`job` exited with status 3", "cannot migrate"]);
    stack.nothing_left();
    for (command, words) in [
        ("[\"no-such-program\"]", ["no-such-program", "No such file"]),
        ("[\"/etc/passwd\"]", ["/etc/passwd", "Permission denied"]),
    ] {
        for init in [true, false] {
            stack.rewrite(&format!("[services.web]\ncommand = {command}\ninit = {init}\n"));
            stack.run(&["up", "-d"]).fails(1, &["`web`", words[0], words[1]]);
            stack.nothing_left();
        }
    }
}

#[test]
fn every_kind_of_health_check() {
    let stack = Stack::new(
        r#"
[services.tcp]
command = ["nc", "-ll", "-p", "80", "-e", "cat"]
healthcheck = { test = ["TCP", "80"], interval = "20ms" }
[services.http]
command = ["httpd", "-f", "-p", "80", "-h", "/data"]
healthcheck = { test = ["HTTP", "80/index.html"], interval = "20ms" }
[services.shell]
command = ["sleep", "1000"]
healthcheck = { test = "test $(cat /etc/hostname) = shell", interval = "20ms" }
[services.hangs]
command = ["sleep", "1000"]
healthcheck = { test = ["CMD", "sleep", "1000"], interval = "20ms", timeout = "100ms", retries = 2 }
[services.broken]
command = ["httpd", "-f", "-p", "80", "-h", "/data"]
healthcheck = { test = ["HTTP", "80/missing"], interval = "20ms", retries = 2 }
"#
        .replace("$(", "$$(")
        .as_str(),
    );
    stack.write("rootfs/data/index.html", "hello");
    stack.run(&["up", "--wait", "tcp", "http", "shell"]).ok();
    stack.up();
    for service in ["tcp", "http", "shell"] {
        assert_eq!(stack.row(service)["health"], "healthy", "{service}");
    }
    for service in ["hangs", "broken"] {
        stack.wait(service, "health", "unhealthy");
    }
    // A probe that hangs is ended, with all that it started.
    let pid_count = until("the probes' end", || {
        let count = stack.sh("hangs", "ls /proc | grep -c '^[0-9]'").parse::<u32>().unwrap();
        (count <= 7).then_some(count)
    });
    assert!(pid_count >= 2);
}

#[test]
fn restart_policies() {
    let stack = Stack::new(
        r#"
[services.failing]
command = ["sh", "-c", "echo run; exit 4"]
restart = "on-failure:2"
[services.succeeding]
command = ["sh", "-c", "echo run; exit 0"]
restart = "on-failure:2"
[services.no]
command = ["sh", "-c", "echo run; exit 4"]
[services.always]
command = ["sh", "-c", "echo run; exit 0"]
restart = "always"
[services.until]
command = ["sleep", "1000"]
restart = "unless-stopped"
"#,
    );
    stack.up();
    stack.wait("failing", "restarts", 2);
    let row = stack.wait("failing", "state", "exited");
    assert!(row["exit_code"] == 4 && row["restarts"] == 2, "{row}");
    assert_eq!(stack.logs("failing"), "run\nrun\nrun\n");
    until("two restarts", || (stack.row("always")["restarts"].as_u64()? >= 2).then_some(()));
    // What servers do that go into the background.
    assert_eq!(stack.logs("always").matches("has to stay in the foreground").count(), 1);
    for service in ["no", "succeeding"] {
        let row = stack.row(service);
        assert!(row["state"] == "exited" && row["restarts"] == 0, "{row}");
        assert_eq!(stack.logs(service), "run\n");
    }
    // Killed: again. Stopped: not until it is started.
    let first = stack.pid("until");
    stack.sh("until", "kill -9 $(pidof sleep)");
    let second = until("a restart", || {
        let pid = stack.row("until")["pid"].as_i64()?;
        (pid != i64::from(first)).then_some(pid)
    });
    stack.run(&["stop", "until", "always"]).ok();
    for service in ["until", "always"] {
        assert_eq!(stack.row(service)["state"], "exited", "{service}");
    }
    stack.run(&["start", "until"]).ok();
    assert_ne!(i64::from(stack.pid("until")), second);
    assert_eq!(stack.row("always")["state"], "exited");
}

#[test]
fn up_again_recreates_what_changed_and_nothing_else() {
    let file = |b: &str, more: &str| {
        format!(
            "[services.a]\ncommand = [\"sleep\", \"1000\"]\n\
             [services.b]\ncommand = [\"sleep\", \"1000\"]\nenvironment = {{ B = \"{b}\" }}\n{more}"
        )
    };
    let stack = Stack::new(&file("1", "[services.c]\ncommand = [\"sleep\", \"1000\"]\n"));
    stack.up();
    stack.sh("b", "touch /kept");
    let (a, b) = (stack.pid("a"), stack.pid("b"));
    stack.up();
    assert_eq!((stack.pid("a"), stack.pid("b")), (a, b), "nothing changed");
    stack.rewrite(&file("2", "[services.d]\ncommand = [\"sleep\", \"1000\"]\n"));
    stack.up();
    assert_eq!(stack.pid("a"), a);
    assert_ne!(stack.pid("b"), b);
    assert_eq!(stack.sh("b", "echo $B; ls /kept 2>/dev/null || echo forgotten"), "2\nforgotten");
    let services: Vec<String> =
        stack.ps().iter().map(|row| row["service"].as_str().unwrap().to_owned()).collect();
    assert_eq!(services, ["a", "b", "d"]);
    // They see each other, old and new.
    stack.sh("a", "nslookup d && nslookup b");
    // A new content of the image changes it too.
    stack.write("rootfs/new", "");
    stack.up();
    assert_ne!(stack.pid("a"), a);
    assert_eq!(stack.sh("a", "ls /new"), "/new");
}

#[test]
fn a_second_up_joins_the_first() {
    let stack = Stack::new("[services.a]\ncommand = [\"sh\", \"-c\", \"echo hello; exec sleep 1000\"]\n");
    let first = stack.spawn(&["stack.toml"]);
    until("the first", || stack.run(&["ps", "--format", "json"]).out.contains("running").then_some(()));
    let pid = stack.pid("a");
    stack.up();
    assert_eq!(stack.pid("a"), pid);
    // One that joined in the foreground leaves alone.
    let mut second = stack.spawn(&["up"]);
    let mut said = [0; "a: running already\n".len()];
    PatientPipe(second.stderr.as_mut().unwrap()).read_exact(&mut said).unwrap();
    assert_eq!(&said, b"a: running already\n");
    signal(&second, Signal::INT);
    finish(second).ok();
    assert_eq!(stack.pid("a"), pid);
    signal(&first, Signal::INT);
    let ended = finish(first);
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.out.contains("hello"), "{ended:?}");
    stack.nothing_left();
}

#[test]
fn many_commands_at_the_same_time() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\n[services.b]\ncommand = [\"sleep\", \"1000\"]\n",
    );
    let ups: Vec<_> = (0..6).map(|_| stack.spawn(&["up", "-d"])).collect();
    for up in ups {
        finish(up).ok();
    }
    assert_eq!(stack.row("a")["state"], "running");
    let execs: Vec<_> =
        (0..10).map(|index| stack.spawn(&["exec", "a", "echo", &index.to_string()])).collect();
    for (index, exec) in execs.into_iter().enumerate() {
        assert_eq!(finish(exec).ok(), format!("{index}\n"));
    }
}

#[test]
fn what_is_kept_and_what_is_forgotten() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sleep", "1000"]
volumes = ["named:/data", "/anonymous"]
[volumes.named]
"#,
    );
    stack.write("rootfs/data/seed", "from the image");
    stack.up();
    // The first use of a volume copies what the image has there.
    assert_eq!(stack.sh("a", "cat /data/seed"), "from the image");
    stack.sh("a", "echo changed > /data/seed; echo x > /layer; echo x > /anonymous/file");
    stack.run(&["stop"]).ok();
    stack.run(&["start"]).ok();
    assert_eq!(stack.sh("a", "cat /data/seed /layer /anonymous/file"), "changed\nx\nx");
    stack.run(&["restart", "a"]).ok();
    assert_eq!(stack.sh("a", "cat /data/seed /layer"), "changed\nx");
    stack.run(&["down"]).ok();
    stack.up();
    assert_eq!(
        stack.sh("a", "cat /data/seed; ls /layer 2> /dev/null || echo forgotten"),
        "changed\nforgotten"
    );
    stack.run(&["down", "-v"]).ok();
    stack.nothing_left();
    stack.up();
    assert_eq!(stack.sh("a", "cat /data/seed"), "from the image");
}

#[test]
fn commit_makes_an_image() {
    let stack = Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\n");
    stack.up();
    stack.sh(
        "a",
        "echo made > /made; rm /etc/group; chown 1000:2000 /data; chmod 750 /data; echo x > /data/x",
    );
    let id = stack.run(&["commit", "a", "mine:1"]).ok();
    assert!(id.trim().starts_with("sha256:"), "{id}");
    let images = stack.run(&["images", "--format", "json"]).ok();
    assert!(images.contains("mine:1"), "{images}");
    stack.rewrite("[services.b]\nimage = \"mine:1\"\ncommand = [\"sleep\", \"1000\"]\nvolumes = [\"v:/data\"]\n[volumes.v]\n");
    stack.up();
    assert_eq!(stack.sh("b", "cat /made; ls /etc/group 2> /dev/null || echo removed"), "made\nremoved");
    // A volume begins with the owner and mode of the directory in the image.
    assert_eq!(stack.sh("b", "stat -c '%u %g %a' /data; cat /data/x"), "1000 2000 750\nx");
}

#[test]
fn a_restarted_service_keeps_its_place_in_the_network() {
    let stack = Stack::new(
        r#"
[services.web]
command = ["nc", "-ll", "-p", "80", "-e", "echo", "hello"]
[services.client]
command = ["sleep", "1000"]
"#,
    );
    stack.up();
    let place =
        || stack.sh("web", "readlink /proc/self/ns/net; ip -4 -o addr show; ip link show | grep ether");
    let fetch = || stack.exec("client", "nc -w 5 web 80 < /dev/null");
    until("the server", || (fetch().out == "hello\n").then_some(()));
    let before = place();
    stack.run(&["stop", "web"]).ok();
    // Refused, rather than left waiting.
    let start = Instant::now();
    let refused = fetch();
    assert!(
        refused.code != 0 && start.elapsed() < Duration::from_secs(2),
        "{refused:?} {:?}",
        start.elapsed()
    );
    assert!(refused.err.contains("refused"), "{refused:?}");
    stack.run(&["start", "web"]).ok();
    assert_eq!(place(), before);
    until("the server", || (fetch().out == "hello\n").then_some(()));
    stack.run(&["restart", "web"]).ok();
    assert_eq!(place(), before);
}

#[test]
fn logs_are_kept_and_followed() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sh", "-c", "for i in 1 2 3 4 5; do echo out $$i; echo err $$i >&2; done; printf 'no end'; while :; do [ -e /tmp/go ] && echo went && rm /tmp/go; sleep 0.02; done"]
[services.b]
command = ["sh", "-c", "echo from b; exec sleep 1000"]
"#,
    );
    stack.up();
    let log = stack.wait_log("a", "err 5");
    assert_eq!(log.lines().filter(|line| line.starts_with("out")).count(), 5, "{log}");
    stack.wait_log("b", "from b");
    let all = stack.run(&["logs"]).ok();
    assert!(all.contains("a  | out 1\n") && all.contains("b  | from b\n"), "{all}");
    let tail = stack.run(&["logs", "--tail", "2", "a"]).ok();
    assert!(tail.lines().count() <= 3 && !tail.contains("out 1"), "{tail}");
    let times = stack.run(&["logs", "-t", "b"]).ok();
    assert!(times.contains(" | 20") && times.contains("T"), "{times}");
    stack.run(&["logs", "nobody"]).fails(2, &["nobody"]);
    // A follower sees what comes, and the end.
    let mut follower = stack.spawn(&["logs", "-f", "--tail", "0", "a"]);
    let mut output = PatientPipe(follower.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        text
    });
    until("the follower", || {
        stack.sh("a", "touch /tmp/go");
        (stack.logs("a").matches("went").count() > 3).then_some(())
    });
    stack.run(&["down"]).ok();
    assert!(reader.join().unwrap().contains("went"));
    assert!(exit_status(&mut follower).success());
}

#[test]
fn a_service_that_writes_much_is_not_lost_or_in_the_way() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"seq 1 100000; echo end; exec sleep 1000\"]\n\
         [services.b]\ncommand = [\"yes\"]\n",
    );
    stack.up();
    let log = stack.wait_log("a", "end");
    assert_eq!(log.lines().count(), 100_001);
    // `yes` writes as fast as it can; commands still work.
    let start = Instant::now();
    stack.sh("a", "true");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn exec_is_transparent() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sleep", "1000"]
environment = { A = "of the service", B = "b" }
working_dir = "/data"
user = "app"
[services.stopped]
command = ["true"]
"#,
    );
    stack.up();
    let run = |arguments: &[&str]| stack.run(&[&["exec"], arguments].concat());
    assert_eq!(run(&["a", "true"]).code, 0);
    assert_eq!(run(&["a", "sh", "-c", "exit 3"]).code, 3);
    assert_eq!(run(&["a", "/etc/passwd"]).code, 126);
    assert_eq!(run(&["a", "no-such-program"]).code, 127);
    assert_eq!(run(&["a", "sh", "-c", "echo $A $B; pwd; id -un"]).ok(), "of the service b\n/data\napp\n");
    let changed =
        run(&["-e", "A=mine", "-u", "root", "-w", "/tmp", "a", "sh", "-c", "echo $A $B; pwd; id -un"]);
    assert_eq!(changed.ok(), "mine b\n/tmp\nroot\n");
    let both = run(&["a", "sh", "-c", "echo out; echo err >&2"]);
    assert!(both.out == "out\n" && both.err == "err\n", "{both:?}");
    run(&["stopped", "true"]).fails(1, &["`stopped` is not running", "hint:"]);
    run(&["nobody", "true"]).fails(2, &["nobody"]);
    // Standard input, more than a pipe holds; and its end.
    let mut child = stack
        .command(&["exec", "-i", "a", "sh", "-c", "md5sum | cut -c 1-32; echo done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(&vec![b'x'; 3 << 20]));
    let sum = finish(child).ok();
    writer.join().unwrap().unwrap();
    let mut host = stack.command_of("sh");
    host.args(["-c", "head -c 3145728 /dev/zero | tr '\\0' x | md5sum | cut -c 1-32; echo done"]);
    assert_eq!(sum, ended(&mut host).ok());
    // A signal for the command is a signal for the process; the end of the command is its end.
    let child = stack.spawn(&[
        "exec",
        "a",
        "sh",
        "-c",
        "trap 'exit 9' TERM; echo ready > /tmp/r; while :; do sleep 0.02; done",
    ]);
    until("the trap", || (stack.exec("a", "cat /tmp/r").out == "ready\n").then_some(()));
    signal(&child, Signal::TERM);
    assert_eq!(finish(child).code, 9);
    let child = stack.spawn(&["exec", "a", "sleep", "777"]);
    let sleeps = || stack.sh("a", "ps -o args | grep -c '^sleep 777$' || true") == "1";
    until("the sleeper", || sleeps().then_some(()));
    signal(&child, Signal::KILL);
    finish(child);
    until("the sleeper's end", || (!sleeps()).then_some(()));
}

#[test]
fn run_makes_a_container_of_its_own() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sh", "-c", "echo of the service; exit 6"]
environment = { A = "a" }
depends_on = ["b"]
[services.b]
command = ["sleep", "1000"]
"#,
    );
    let containers = || std::fs::read_dir(stack.data().join("c").join(&stack.name)).unwrap().count();
    // Of a stack that does not run: what it depends on comes and goes with it.
    let run =
        stack.run(&["run", "--rm", "a", "sh", "-c", "echo $A; nslookup b > /dev/null && echo found; exit 5"]);
    assert_eq!((run.code, run.out.as_str()), (5, "a\nfound\n"), "{run:?}");
    stack.nothing_left();
    let run = stack.run(&["run", "--rm", "a"]);
    assert_eq!((run.code, run.out.as_str()), (6, "of the service\n"), "{run:?}");
    stack.nothing_left();
    stack.up();
    stack.wait("a", "state", "exited");
    let before = containers();
    let run =
        stack.run(&["run", "--rm", "b", "sh", "-c", "touch /x; hostname; nslookup b > /dev/null; exit 3"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert_eq!(containers(), before);
    assert_eq!(stack.sh("b", "ls /x 2> /dev/null || echo not here"), "not here");
    // Killed: nothing stays.
    let child = stack.spawn(&["run", "--rm", "b", "sleep", "777"]);
    until("the container", || (containers() > before).then_some(()));
    signal(&child, Signal::KILL);
    finish(child);
    until("the container's end", || (containers() == before).then_some(()));
}

#[test]
fn the_foreground_ends_as_one_would_expect() {
    let stack = Stack::new("[services.a]\ncommand = [\"sh\", \"-c\", \"echo hello; exec sleep 1000\"]\n");
    for (sent, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let child = stack.spawn(&["stack.toml"]);
        until("the service", || stack.run(&["ps"]).out.contains("running").then_some(()));
        signal(&child, sent);
        let ended = finish(child);
        assert_eq!(ended.code, code, "{ended:?}");
        stack.nothing_left();
    }
    // The second Ctrl-C does not wait.
    stack.rewrite("[services.a]\ncommand = [\"sh\", \"-c\", \"trap '' TERM; echo ready; while :; do sleep 0.02; done\"]\nstop_grace_period = \"50s\"\n");
    let child = stack.spawn(&["stack.toml"]);
    until("the service", || stack.run(&["logs"]).out.contains("ready").then_some(()));
    signal(&child, Signal::INT);
    stack.wait("a", "state", "stopping");
    signal(&child, Signal::INT);
    let start = Instant::now();
    finish(child);
    assert!(start.elapsed() < Duration::from_secs(5));
    stack.gone(Duration::from_secs(2));
    // Services that end by themselves end it, with a status that tells.
    for (status, code) in [(0, 0), (3, 1)] {
        stack.rewrite(&format!("[services.a]\ncommand = [\"sh\", \"-c\", \"echo bye; exit {status}\"]\n"));
        let ended = stack.run(&["stack.toml"]);
        assert_eq!(ended.code, code, "{ended:?}");
        assert!(ended.out.contains("bye"), "{ended:?}");
        stack.nothing_left();
    }
}

#[test]
fn a_start_waits_until_services_are_ready() {
    let stack = Stack::new(
        r#"
[volumes.data]
[services.web]
command = ["sleep", "1000"]
volumes = ["data:/data"]
healthcheck = { test = ["CMD", "test", "-e", "/data/ready"], interval = "50ms", retries = 100000 }
stop_grace_period = "0s"
"#,
    );
    let words = &["not all services are ready after 1 s", "`web` runs, and is not healthy"];
    stack.run(&["up", "--wait", "--wait-timeout", "1"]).fails(1, words);
    // It goes on.
    assert_eq!(stack.row("web")["health"], "starting");
    stack.run(&["up", "--wait", "--wait-timeout", "1"]).fails(1, words);
    stack.run(&["stop"]).ok();
    stack.run(&["start", "--wait", "--wait-timeout", "1"]).fails(1, words);
    stack.run(&["stop"]).ok();
    let start = stack.spawn(&["start", "--wait"]);
    stack.wait("web", "state", "running");
    stack.sh("web", "touch /data/ready");
    finish(start).ok();
    assert_eq!(stack.row("web")["health"], "healthy");
    stack.run(&["up", "--wait", "--wait-timeout", "60"]).ok();
}
