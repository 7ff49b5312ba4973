//! The commands and options that people know from compose: what they do to a stack, and how they fail.

use serde_json::Value;

use crate::build::{self, with_base};
use crate::harness::{Links, Stack, ended, finish, until};

/// A service that does not end when it is asked to, with more patience than any test has.
const STUBBORN: &str = r#"
[services.web]
command = ["sh", "-c", "trap '' TERM; echo ready; touch /dev/shm/ready; while :; do sleep 0.1; done"]
stop_grace_period = "1000s"
"#;

#[test]
fn a_timeout_cuts_a_stop_short() {
    let stack = Stack::new(STUBBORN);
    stack.up();
    stack.wait_log("web", "ready");
    let before = stack.pid("web");
    stack.run(&["restart", "-t", "0"]).ok();
    assert_ne!(stack.pid("web"), before);
    // Before that it would end as it is asked to.
    until("the trap", || {
        stack.run(&["exec", "-T", "web", "test", "-e", "/dev/shm/ready"]).code.eq(&0).then_some(())
    });
    stack.run(&["stop", "--timeout", "0", "web"]).ok();
    assert_eq!(stack.row("web")["exit_code"], 137);
    // One that changes is stopped, too.
    stack.run(&["start"]).ok();
    stack.rewrite(&STUBBORN.replace("ready", "again"));
    stack.run(&["up", "-d", "-t", "0"]).ok();
    stack.wait_log("web", "again");
    // A stop that is under way is cut short by another one.
    let slow = stack.spawn(&["stop"]);
    stack.wait("web", "state", "stopping");
    stack.run(&["stop", "-t", "0"]).ok();
    finish(slow).ok();
    stack.run(&["start"]).ok();
    stack.run(&["down", "-t", "0"]).ok();
    stack.nothing_left();
}

#[test]
fn down_removes_images_if_it_is_asked_to() {
    let stack = with_base(
        "[services.built]\nbuild = \"web\"\n[services.named]\nbuild = \"web\"\nimage = \"named:1\"\n\
         [services.plain]\nimage = \"plain:1\"\ncommand = [\"sleep\", \"1000\"]\n\
         [services.root]\ncommand = [\"sleep\", \"1000\"]\n",
    );
    stack.write("web/Dockerfile", "FROM alpine:3.99\nCMD [\"sleep\", \"1000\"]\n");
    let names = || build::run(&stack, &["images", "--format", "json"]).ok();
    build::build(&stack);
    build::run(&stack, &["tag", "named:1", "plain:1"]).ok();
    let own = format!("{}-built", stack.name);
    // What is built on the way is shown, unless it is not wanted.
    let shown = |options: &[&str]| {
        let ended = build::run(&stack, options);
        assert_eq!(ended.code, 0, "{}", ended.err);
        ended.err.contains("FROM alpine:3.99")
    };
    assert!(
        !shown(&["create", "--build", "--quiet-build"]) && !shown(&["up", "-d", "--build", "--quiet-build"])
    );
    assert!(!shown(&["--progress", "quiet", "up", "-d", "--build"]));
    assert!(shown(&["--progress", "plain", "up", "-d", "--build"]));
    build::run(&stack, &["down", "--rmi", "local"]).ok();
    let left = names();
    assert!(!left.contains(&own) && left.contains("named") && left.contains("plain"), "{left}");
    build::run(&stack, &["up", "-d"]).ok();
    build::run(&stack, &["down", "--rmi", "all"]).ok();
    let left = names();
    assert!(![own.as_str(), "named", "plain"].iter().any(|name| left.contains(name)), "{left}");
    // What is made of a root file system has no name of anybody's.
    assert!(!left.contains("rootfs-"), "{left}");
    build::run(&stack, &["down", "--rmi", "some"]).fails(2, &["all", "local"]);
}

const TWO: &str = "[services.web]\ncommand = [\"sleep\", \"1000\"]\ndepends_on = [\"db\"]\n\
                   [services.db]\ncommand = [\"sleep\", \"1000\"]\n";

#[test]
fn up_replaces_what_it_is_told_to() {
    let stack = Stack::new(TWO);
    stack.up();
    let pids = || (stack.pid("web"), stack.pid("db"));
    let first = pids();
    stack.run(&["up", "-d", "--remove-orphans", "--quiet-pull", "-V"]).ok();
    assert_eq!(pids(), first);
    stack.run(&["up", "-d", "--force-recreate", "web"]).ok();
    let second = pids();
    assert!(second.0 != first.0 && second.1 == first.1, "{first:?} {second:?}");
    stack.rewrite(&TWO.replace("1000", "2000"));
    stack.run(&["up", "-d", "--no-recreate"]).ok();
    assert_eq!(pids(), second);
    // They are as they were, and so are still to be replaced.
    stack.run(&["up", "-d", "--no-deps", "web"]).ok();
    let third = pids();
    assert!(third.0 != second.0 && third.1 == second.1, "{second:?} {third:?}");
    stack.run(&["up", "-d"]).ok();
    assert!(pids().0 == third.0 && pids().1 != third.1);
    stack.run(&["up", "-d", "--force-recreate", "--no-recreate"]).fails(2, &["--no-recreate"]);
}

#[test]
fn what_a_service_depends_on_can_be_left_alone() {
    let stack = Stack::new(TWO);
    stack.run(&["up", "-d", "--no-deps", "web"]).ok();
    assert_eq!(stack.row("web")["state"], "running");
    assert_eq!(stack.ps().len(), 1, "{:?}", stack.ps());
    stack.run(&["up", "-d", "wbe"]).fails(2, &["wbe", "did you mean `web`?"]);
    stack.run(&["stop", "dbb"]).fails(2, &["dbb", "did you mean `db`?"]);
}

#[test]
fn containers_are_made_and_started_later() {
    for create in [&["create"][..], &["up", "--no-start"]] {
        let stack = Stack::new(TWO);
        stack.run(create).ok();
        assert!(stack.ps().iter().all(|row| row["state"] == "created"), "{:?}", stack.ps());
        stack.run(&["start", "web"]).ok();
        assert!(stack.ps().iter().all(|row| row["state"] == "running"), "{:?}", stack.ps());
    }
}

#[test]
fn an_image_that_may_not_be_fetched_is_missed() {
    let stack = Stack::new("[services.web]\nimage = \"registry.invalid/web:1\"\ncommand = [\"true\"]\n");
    stack.run(&["up", "-d", "--pull", "never"]).fails(1, &["registry.invalid/web:1", "`web`"]);
    stack.run(&["up", "-d", "--pull", "sometimes"]).fails(2, &["sometimes", "missing"]);
    stack.nothing_left();
}

#[test]
fn the_first_container_that_ends_ends_the_stack() {
    let services = "[services.web]\ncommand = [\"sh\", \"-c\", \"trap 'exit 5' TERM; while :; do sleep 0.02; done\"]\n\
                    [services.test]\ncommand = [\"sh\", \"-c\", \"echo testing; exit 3\"]\ndepends_on = [\"web\"]\n\
                    [services.again]\ncommand = [\"false\"]\nrestart = \"always\"\n";
    let stack = Stack::new(services);
    let first = stack.run(&["up", "--abort-on-container-exit", "--no-log-prefix", "--no-color"]);
    assert_eq!(first.code, 3, "{}", first.err);
    assert!(first.out.lines().any(|line| line == "testing"), "{}", first.out);
    stack.nothing_left();
    let chosen = stack.run(&["up", "--exit-code-from", "web"]);
    assert_eq!(chosen.code, 5, "{}", chosen.err);
    stack.nothing_left();
    stack.run(&["up", "--exit-code-from", "tets"]).fails(2, &["did you mean `test`?"]);
    stack.run(&["up", "-d", "--abort-on-container-exit"]).fails(2, &["--detach"]);
}

#[test]
fn up_shows_whose_output_is_wanted_until_something_fails() {
    let says = |who: &str| {
        format!(
            "[services.{who}]\ncommand = [\"sh\", \"-c\", \"echo from {who}; touch /said; exec sleep 1000\"]\n\
             healthcheck = {{ test = [\"CMD\", \"test\", \"-e\", \"/said\"], interval = \"50ms\" }}\n\
             stop_grace_period = \"0s\"\n"
        )
    };
    let stack = Stack::new(&format!(
        "{}depends_on = {{ db = \"healthy\" }}\n{}[services.well]\ncommand = [\"true\"]\n\
         [services.bad]\ncommand = [\"sh\", \"-c\", \"echo from bad; exit 3\"]\n\
         depends_on = {{ web = \"healthy\", well = \"completed\" }}\n",
        says("web"),
        says("db")
    ));
    for (options, shown) in [
        (&[][..], &["bad", "db", "web"][..]),
        (&["--attach", "web"], &["web"]),
        (&["--attach", "web", "--attach-dependencies"], &["db", "web"]),
        (&["--no-attach", "web", "--no-attach", "well"], &["bad", "db"]),
    ] {
        let up = ["up", "--no-log-prefix", "--abort-on-container-failure"];
        let ended = stack.run(&[&up[..], options].concat());
        assert_eq!(ended.code, 3, "{}", ended.err);
        let mut lines: Vec<&str> = ended.out.lines().filter_map(|line| line.strip_prefix("from ")).collect();
        lines.sort_unstable();
        assert_eq!(lines, shown, "{options:?}");
    }
    stack.run(&["up", "--attach", "wbe"]).fails(2, &["did you mean `web`?"]);
    stack.run(&["up", "-d", "--no-attach", "web"]).fails(2, &["--detach"]);
    stack.nothing_left();
}

const SLEEPER: &str = "[services.web]\ncommand = [\"sleep\", \"1000\"]\n";

#[test]
fn a_process_inside_goes_on_without_its_command() {
    let stack = Stack::new(SLEEPER);
    stack.up();
    let script = "echo $$ > /tmp/pid; exec sleep 1000";
    assert_eq!(stack.run(&["exec", "-d", "-T", "web", "sh", "-c", script]).ok(), "");
    let pid = until("the process", || {
        Some(stack.sh("web", "cat /tmp/pid 2> /dev/null")).filter(|pid| !pid.is_empty())
    });
    stack.sh("web", &format!("kill -0 {pid}"));
    stack.run(&["exec", "-T", "--index", "1", "web", "true"]).ok();
    stack.run(&["exec", "--index", "2", "web", "true"]).fails(1, &["replica 2"]);
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn a_one_off_container_is_what_it_is_told_to_be() {
    let stack = Stack::new(
        "[services.web]\nentrypoint = [\"echo\", \"entry\"]\ncommand = [\"own\"]\ndepends_on = [\"db\"]\n\
         [services.db]\ncommand = [\"sleep\", \"1000\"]\n",
    );
    stack.write("here/file", "from here");
    let out =
        stack.run(&["run", "--rm", "--no-deps", "--entrypoint", "sh -c 'echo \"$0 $1\"'", "web", "a", "b"]);
    assert_eq!(out.ok(), "a b\n");
    let mounted = ["run", "-v", "./here:/mnt:ro", "--name", "mine", "--entrypoint", "sh", "web", "-c"];
    let out = stack.run(&[&mounted[..], &["cat /mnt/file; touch /mnt/x; hostname"]].concat());
    let text = out.out;
    assert!(text.starts_with("from here") && text.ends_with("mine\n"), "{text} {}", out.err);
    assert!(out.err.contains("Read-only"), "{}", out.err);
    stack.run(&["run", "-v", "x", "web"]).fails(2, &["./here:/inside"]);
    // In the background, of a stack that was not running: what it needs stays with it.
    let name = stack.run(&["run", "-d", "--entrypoint", "sh -c 'echo hello; exec sleep 1000'", "web"]).ok();
    let name = name.trim();
    assert_eq!(name, "web-run-1");
    assert_eq!(stack.row("db")["state"], "running");
    stack.wait_log(name, "hello");
    stack.run(&["run", "--name", name, "--entrypoint", "true", "web"]).fails(2, &[name, "already"]);
    stack.run(&["run", "--name", "../x", "--entrypoint", "true", "web"]).fails(2, &["../x"]);
    stack.run(&["kill", name]).ok();
    // Its name is free again when it is gone.
    until("its end", || {
        (stack.run(&["run", "--name", name, "--entrypoint", "true", "web"]).code == 0).then_some(())
    });
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn killed_containers_stay_down_and_signals_arrive() {
    let stack = Stack::new(
        "[services.web]\ncommand = [\"sh\", \"-c\", \"trap 'echo got it' USR1; echo ready; while :; do sleep 0.02; done\"]\n\
         restart = \"always\"\n",
    );
    stack.up();
    stack.wait_log("web", "ready");
    stack.run(&["kill", "-s", "USR1", "web"]).ok();
    stack.wait_log("web", "got it");
    assert_eq!(stack.row("web")["state"], "running");
    stack.run(&["kill"]).ok();
    let row = stack.row("web");
    assert!(row["state"] == "exited" && row["exit_code"] == 137, "{row}");
    stack.run(&["kill", "-s", "NONE", "web"]).fails(2, &["NONE", "kill -l"]);
    for command in ["kill", "logs", "pause", "exec", "run", "rm", "restart"] {
        stack
            .run(&[command, "wbe", "x"][..if command == "exec" { 3 } else { 2 }])
            .fails(2, &["did you mean `web`?"]);
    }
}

#[test]
fn removed_containers_begin_anew() {
    let stack = Stack::new(SLEEPER);
    stack.up();
    stack.sh("web", "touch /mark");
    assert!(stack.run(&["rm", "-f"]).ok().is_empty());
    assert_eq!(stack.row("web")["state"], "running", "what runs is left alone");
    stack.run(&["rm", "-s"]).fails(1, &["nothing was removed", "-f"]);
    assert_eq!(stack.row("web")["state"], "exited");
    stack.run(&["start"]).ok();
    stack.sh("web", "test -e /mark");
    stack.run(&["rm", "-sfv", "web"]).ok();
    assert_eq!(stack.row("web")["state"], "created");
    assert!(!stack.data().join("c").join(&stack.name).join("web").exists());
    stack.run(&["start"]).ok();
    stack.sh("web", "test ! -e /mark");
}

#[test]
fn a_paused_service_stands_still() {
    let stack = Stack::new(
        "[services.web]\ncommand = [\"sh\", \"-c\", \"while :; do echo x >> /count; sleep 0.01; done\"]\n\
         volumes = [\"./out:/out\"]\nhealthcheck = { test = \"true\", interval = \"20ms\" }\nstop_grace_period = \"30s\"\n",
    );
    stack.run(&["up", "--wait"]).ok();
    stack.run(&["exec", "-d", "web", "sh", "-c", "while :; do echo x >> /out/count; sleep 0.01; done"]).ok();
    let count = || std::fs::metadata(stack.path("out/count")).map_or(0, |file| file.len());
    until("it counts", || (count() > 0).then_some(()));
    let paused = stack.run(&["pause", "web"]);
    let frozen = !paused.err.contains("SIGSTOP");
    paused.ok();
    let state = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.trim().chars().next().unwrap()
    };
    let row = stack.row("web");
    assert_eq!(row["state"], "paused");
    if !frozen {
        assert_eq!(state(stack.pid("web")), 'T', "PID 1 is stopped");
    }
    // What stands still has written all that it will.
    let before = count();
    stack.run(&["ps"]).ok();
    stack.run(&["exec", "web", "true"]).fails(1, &["paused", "unpause"]);
    stack.run(&["pause", "web"]).fails(1, &["paused already"]);
    assert_eq!((count(), stack.row("web")["health"].as_str()), (before, Some("healthy")));
    stack.run(&["unpause"]).ok();
    until("it counts on", || (count() > before).then_some(()));
    assert_eq!(stack.row("web")["state"], "running");
    stack.run(&["unpause", "web"]).fails(1, &["not paused"]);
    // A stop has it go on, or it could not end.
    stack.run(&["pause"]).ok();
    stack.run(&["stop"]).ok();
    assert_eq!(stack.row("web")["exit_code"], 143);
    stack.run(&["start"]).ok();
    stack.run(&["pause"]).ok();
    stack.run(&["kill"]).ok();
    assert_eq!(stack.row("web")["exit_code"], 137);
    stack.run(&["start"]).ok();
    stack.run(&["pause"]).ok();
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn an_image_is_made_of_what_stands_still() {
    let stack = Stack::new(SLEEPER);
    stack.up();
    stack.sh("web", "touch /mark");
    stack.run(&["commit", "--pause", "web", "mark:1"]).ok();
    assert_eq!(stack.row("web")["state"], "running");
    assert!(stack.run(&["images"]).ok().contains("mark"));
}

#[test]
fn published_ports_stacks_and_the_version_are_told() {
    let port = crate::harness::free_ports(1);
    let stack = Stack::new(&format!(
        "[services.web]\ncommand = [\"sleep\", \"1000\"]\nports = [\"127.0.0.1:{port}:80\", \"127.0.0.1::81\"]\n"
    ));
    assert_eq!(stack.run(&["ls", "-q"]).ok(), "");
    stack.up();
    assert_eq!(stack.run(&["port", "web", "80"]).ok(), format!("127.0.0.1:{port}\n"));
    let chosen = stack.run(&["port", "web", "81"]).ok();
    let chosen: std::net::SocketAddr = chosen.trim().parse().unwrap();
    assert!(chosen.port() != 0 && std::net::TcpStream::connect(chosen).is_ok());
    stack.run(&["port", "--protocol", "udp", "web", "80"]).fails(1, &["80/udp", "not published", "80, 81"]);
    stack.run(&["port", "wbe", "80"]).fails(2, &["did you mean `web`?"]);
    let rows: Value = serde_json::from_str(&stack.run(&["ls", "--format", "json"]).ok()).unwrap();
    let file = stack.path("stack.toml").display().to_string();
    assert_eq!(rows, serde_json::json!([{ "name": stack.name, "status": "running(1)", "files": [file] }]));
    assert!(stack.run(&["ls", "-a"]).ok().contains(&file));
    let named = |name: &str| stack.run(&["ls", "-q", "--filter", &format!("name={name}")]).ok();
    assert_eq!((named(&stack.name), named("no-such-name")), (format!("{}\n", stack.name), String::new()));
    let short = stack.run(&["version", "--short"]).ok();
    let json: Value = serde_json::from_str(&stack.run(&["version", "--format", "json"]).ok()).unwrap();
    assert_eq!(json["version"], short.trim());
    assert_eq!(stack.run(&["version"]).ok(), format!("inception-run {short}"));
}

#[test]
fn containers_are_waited_for() {
    let stack = Stack::new(
        "[services.web]\ncommand = [\"sh\", \"-c\", \"trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.02; done\"]\n\
         [services.job]\ncommand = [\"sh\", \"-c\", \"exit 3\"]\n",
    );
    stack.up();
    stack.wait("job", "state", "exited");
    let ended = stack.run(&["wait", "job"]);
    assert_eq!((ended.code, ended.out.as_str()), (3, "job exited with status 3\n"), "{}", ended.err);
    stack.wait_log("web", "ready");
    let attached = stack.spawn(&["attach", "web"]);
    let waiting = stack.spawn(&["wait", "job", "web"]);
    // Signals are passed on as soon as it is attached; until then they end the command itself.
    let pid = rustix::process::Pid::from_child(&attached);
    let blocked = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", attached.id())).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() & (1 << 14) != 0
    };
    until("the signals are blocked", || blocked().then_some(()));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let attached = finish(attached);
    assert_eq!((attached.code, attached.out.as_str()), (4, "bye\n"), "{}", attached.err);
    let waited = finish(waiting);
    assert_eq!(waited.code, 4, "{}", waited.err);
    assert!(waited.out.contains("web exited with status 4"), "{}", waited.out);
    stack.run(&["attach", "web"]).fails(1, &["not running"]);
    stack.run(&["wait", "wbe"]).fails(2, &["did you mean `web`?"]);
    assert_eq!(stack.run(&["wait", "--down-project", "job"]).code, 3);
    stack.nothing_left();
}

#[test]
fn files_are_copied_in_and_out() {
    let stack = Stack::new(
        "[services.web]\ncommand = [\"sleep\", \"1000\"]\nvolumes = [\"data:/data\"]\n[volumes.data]\n",
    );
    stack.up();
    stack.write("up/file", "hello");
    stack.write("up/sub/two", "two");
    let read = |path: &str| std::fs::read_to_string(stack.path(path)).unwrap();
    // In: to a volume, as root's; a tree; the content of one.
    stack.run(&["cp", "up/file", "web:/data/named"]).ok();
    stack.run(&["cp", "up", "web:/data"]).ok();
    stack.run(&["cp", "up/.", "web:/data/sub/"]).ok();
    assert_eq!(stack.sh("web", "cat /data/named /data/up/sub/two /data/sub/file"), "hellotwohello");
    assert_eq!(stack.sh("web", "stat -c %u:%g /data/named /data/up/sub"), "0:0\n0:0");
    // Out: what only another user of the container may read.
    stack.sh("web", "echo secret > /data/private; chown 1000:1000 /data/private; chmod 600 /data/private");
    stack.run(&["cp", "web:/data/private", "got"]).ok();
    stack.run(&["cp", "web:data/up", "tree"]).ok();
    assert_eq!((read("got"), read("tree/sub/two")), ("secret\n".to_owned(), "two".to_owned()));
    let own = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(stack.path("got")).unwrap());
    assert_eq!(own, rustix::process::geteuid().as_raw());
    // What is root's in there is the user's here, and is no program that gives everybody the user's rights.
    stack.sh(
        "web",
        "mkdir /data/su; chmod 3777 /data/su; cp /bin/busybox /data/su/su; chmod 6755 /data/su/su",
    );
    stack.run(&["cp", "web:/data/su", "su"]).ok();
    let mode =
        |path: &str| std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(stack.path(path)).unwrap());
    assert_eq!((mode("su") & 0o7777, mode("su/su") & 0o7777), (0o1777, 0o755));
    // As archives, from one to the other.
    let mut out = stack.command(&["cp", "web:/data/up", "-"]);
    let mut tar = out.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut into = stack.command(&["cp", "-", "web:/home"]);
    ended(into.stdin(tar.stdout.take().unwrap())).ok();
    assert!(tar.wait().unwrap().success());
    assert_eq!(stack.sh("web", "cat /home/up/sub/two"), "two");
    for (from, to, words) in [
        ("web:/none", "x", &["/none", "No such file"][..]),
        ("up", "web:/none/x", &["/none/x", "No such file"]),
        ("up/file", "web:/none/", &["/none/", "no such directory"]),
        ("web:/data", "got", &["got", "place of a file"]),
        ("web:/dev/null", "x", &["/dev/null", "device"]),
    ] {
        stack.run(&["cp", from, to]).fails(1, words);
    }
    stack.run(&["cp", "up", "x"]).fails(2, &["SERVICE:PATH"]);
    stack.run(&["cp", "wbe:/x", "x"]).fails(2, &["did you mean `web`?"]);
    assert!(!stack.path("x").exists());
    stack.run(&["cp", "--index", "2", "web:/data", "x"]).fails(1, &["has no container 2"]);
}

#[test]
fn no_link_of_a_container_leads_out_of_it() {
    let stack = Stack::new(SLEEPER);
    stack.up();
    let links = Links::plant(&stack, "web");
    links.lead_nowhere();
    stack.sh("web", "ln -s /proc/1/root /root-link");
    let outside = links.outside.display();
    stack.run(&["cp", &format!("web:/root-link{outside}/secret"), "got"]).fails(1, &["/root-link"]);
    // Copied as what it is, it is not written through by the next copy either.
    stack.run(&["cp", "web:/absolute", "here"]).ok();
    assert_eq!(std::fs::read_link(stack.path("here")).unwrap(), links.outside);
    stack.sh("web", "rm /absolute; mkdir /absolute; echo evil > /absolute/secret");
    stack.write("dir/x", "");
    std::fs::rename(stack.path("here"), stack.path("dir/absolute")).unwrap();
    let _either = stack.run(&["cp", "web:/absolute", "dir"]);
    assert_eq!(std::fs::read_to_string(stack.path("outside/secret")).unwrap(), "secret");
}

/// A service with two containers, and one whose container has a name of its own.
const NAMED: &str = r#"
[services.web]
command = ["sleep", "1000"]
replicas = 2
[services.db]
command = ["sh", "-c", "touch /mark; echo here; exec sleep 1000"]
container_name = "the-db"
"#;

#[test]
fn the_list_has_what_is_asked_for() {
    let stack = Stack::new(NAMED);
    let ps = |options: &[&str]| {
        let listed = stack.run(&[&["ps"], options].concat()).ok();
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert!(ps(&["-q", "web"]).is_empty());
    stack.up();
    assert_eq!(ps(&["-q", "web"]), ["web", "web-2"]);
    assert_eq!(ps(&["-q", "the-db"]), ["db"]);
    assert_eq!(ps(&["--services"]), ["db", "web"]);
    assert_eq!(ps(&["web-2"]).len(), 2, "a head and a row");
    stack.run(&["stop", "-t", "0", "web-2", "db"]).ok();
    assert_eq!(ps(&["-q", "web"]), ["web"]);
    assert_eq!(ps(&["-aq"]), ["db", "web", "web-2"]);
    assert_eq!(ps(&["-q", "--status", "exited"]), ["db", "web-2"]);
    assert_eq!(ps(&["--services", "--filter", "status=running"]), ["web"]);
    assert!(ps(&["-q", "--status", "dead"]).is_empty());
    stack.run(&["ps", "webb"]).fails(2, &["`webb`", "did you mean `web`?"]);
    stack.run(&["ps", "--status", "exitd"]).fails(2, &["did you mean `exited`?"]);
    stack.run(&["ps", "--filter", "name=web"]).fails(2, &["status=STATE"]);
}

#[test]
fn a_container_s_other_names_are_taken_everywhere() {
    let stack = Stack::new(NAMED);
    stack.up();
    stack.wait_log("db", "here");
    // While it runs the stack itself knows them, then its files.
    for _ in 0..2 {
        assert!(stack.run(&["diff", "the-db"]).ok().contains("A /mark"));
        stack.run(&["commit", "the-db", "mark:1"]).ok();
        for name in ["the-db", "db-1", "web-1"] {
            let archive = stack.path(&format!("{name}.tar"));
            stack.run(&["export", "-o", archive.to_str().unwrap(), name]).ok();
            std::fs::remove_file(archive).unwrap();
        }
        assert!(stack.run(&["logs", "the-db"]).ok().contains("here"));
        stack.run(&["stop", "-t", "0", "db"]).ok();
    }
    stack.run(&["logs", "a-db"]).fails(2, &["a-db"]);
    // A reader that goes is no error of ours, and a target that is full is not the data directory.
    let mut unread = stack.spawn(&["export", "db"]);
    drop(unread.stdout.take());
    let unread = unread.wait_with_output().unwrap();
    assert_eq!((unread.status.code(), unread.stderr.as_slice()), (Some(141), &b""[..]));
    let full = stack.run(&["export", "-o", "/dev/full", "db"]).fails(1, &["No space left on device"]);
    assert!(!full.contains("INCEPTION_DATA_DIR"), "{full}");
}

#[test]
fn help_is_there_in_all_its_forms() {
    let stack = Stack::new("");
    let help = stack.run(&["help", "ps"]).ok();
    assert_eq!(help, stack.run(&["ps", "--help"]).ok());
    // A command's own options first.
    let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("no {text} in {help}"));
    assert!(at("--quiet") < at("Global options:") && at("Global options:") < at("--project-name"));
    stack.run(&["help", "pss"]).fails(2, &["pss"]);
    let mut unread = stack.spawn(&["--help"]);
    drop(unread.stdout.take());
    // Who was quick has written it all.
    let code = unread.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 141)), "{code:?}");
}

#[test]
fn files_are_taken_for_what_they_are() {
    let stack = Stack::new("");
    for content in ["neither\n".to_owned(), "x".repeat(4096)] {
        stack.write("other", &content);
        let path = stack.path("other");
        let path = path.to_str().unwrap();
        stack.run(&["load", "-i", path]).fails(1, &["not a tar archive", "gzip"]);
        stack.run(&["import", path, "other:1"]).fails(1, &["not a tar archive", "gzip"]);
    }
    // A name without an ending is a compose file's.
    stack.write("plain", "services: { a: { image: i } }\n");
    let path = stack.path("plain");
    assert_eq!(stack.run(&["-f", path.to_str().unwrap(), "config", "--services"]).ok(), "a\n");
}

#[test]
fn options_of_compose_are_understood() {
    let stack = Stack::new(&format!("{NAMED}volumes = [\"data:/data\"]\n[volumes.data]\n"));
    stack.run(&["--ansi", "never", "--progress", "plain", "up", "-d", "-y"]).ok();
    stack.wait_log("db", "here");
    assert!(stack.run(&["logs", "--index", "1", "db"]).ok().contains("here"));
    stack.run(&["logs", "--index", "2", "db"]).fails(2, &["`db-2`"]);
    stack.run(&["logs", "--index", "1"]).fails(2, &["SERVICES"]);
    let events = stack.run(&["events", "--json", "--no-follow"]).ok();
    assert!(events.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{events}");
    assert_eq!(stack.run(&["volumes", "-q"]).ok(), "data\n");
    let volumes: Value = serde_json::from_str(&stack.run(&["volumes", "--format", "json"]).ok()).unwrap();
    assert_eq!((&volumes[0]["name"], &volumes[0]["driver"]), (&"data".into(), &"local".into()));
    assert!(stack.run(&["df", "-v"]).ok().contains("/data"));
    stack.run(&["down", "-t", "0", "web"]).ok();
    assert_eq!(stack.row("web")["state"], "created");
    assert_eq!(stack.row("db")["state"], "running");
    stack.run(&["down", "-v", "web"]).fails(2, &["--volumes"]);
    stack.run(&["pull", "--ignore-buildable", "--policy", "missing"]).ok();
    stack.run(&["down", "-v", "-t", "0"]).ok();
    assert_eq!(stack.run(&["volumes", "-q"]).ok(), "");
}

#[test]
fn what_is_unknown_is_told_in_the_same_words() {
    let stack = Stack::new(NAMED);
    let unknown: [&[&str]; 4] =
        [&["scale", "webb=2"], &["config", "webb"], &["diff", "webb"], &["up", "-d", "--scale", "webb=2"]];
    for command in unknown {
        stack.run(command).fails(2, &["no such service: `webb`", "did you mean `web`?"]);
    }
    stack.run(&["diff", "web"]).fails(1, &["`inception-run up -d`"]);
    stack.run(&["create"]).ok();
    stack.run(&["exec", "web", "true"]).fails(1, &["not running", "`inception-run start web`"]);
    stack.run(&["diff", "webb"]).fails(2, &["no such service: `webb`"]);
    stack.run(&["-p", &"x".repeat(64), "ps"]).fails(2, &["at most 63"]);
    stack.run(&["explain"]).fails(2, &["<SERVICE>"]);
    let page = stack.run(&["explain", "--html", "-", "web"]);
    assert_eq!(page.out.is_empty(), page.code != 0, "{}", page.err);
    assert!(!stack.path("-").exists());
}
