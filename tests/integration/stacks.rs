//! Several stacks, other ways to name one, and compose files.

use std::fs;
use std::io::Read;

use crate::harness::{DEADLINE, Stack, connect, ended, finish, free_ports, until};

#[test]
fn a_compose_file_runs_unchanged() {
    let port = free_ports(1);
    let stack = Stack::new("");
    fs::remove_file(stack.path("stack.toml")).unwrap();
    stack.write(".env", &format!("PORT={port}\nWORD='two words'\n"));
    stack.write("bound/file", "from the host");
    stack.write(
        "docker-compose.yml",
        &r#"
name: NAME
x-common: &common
  rootfs: rootfs
  env_file: mark.env
services:
  web:
    <<: *common
    command: nc -ll -p 80 -e echo "${WORD}"
    ports:
      - "${PORT}:80"
    depends_on:
      job:
        condition: service_completed_successfully
    volumes:
      - type: bind
        source: ./bound
        target: /bound
        read_only: true
      - kept:/kept
    environment:
      - A=list
      - FROM_ENV=${WORD:-default}
    healthcheck:
      test: ["CMD-SHELL", "test -e /bound/file || exit 1"]
      interval: 50ms
    restart: unless-stopped
  job:
    <<: *common
    command: ["sh", "-c", "echo done"]
    environment: { A: table, N: 5 }
    networks: [other]
volumes:
  kept:
networks:
  other:
"#
        .replace("NAME", &stack.name),
    );
    stack.run(&["up", "--wait"]).ok();
    // As compose has it the service itself is PID 1, and ports are open to all.
    assert_eq!(stack.sh("web", "cat /proc/1/comm"), "nc");
    assert_eq!(stack.sh("web", "echo $A $FROM_ENV; cat /bound/file"), "list two words\nfrom the host");
    assert_eq!(stack.row("web")["ports"][0], format!("0.0.0.0:{port}->80/tcp"));
    assert_eq!(stack.row("job")["exit_code"], 0);
    until("the page", || {
        let mut stream = connect(port).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (text == "two words\n").then_some(())
    });
    stack.run(&["down", "-v"]).ok();
    stack.nothing_left();
}

#[test]
fn stacks_of_the_same_user_are_apart() {
    let stack = Stack::new(
        "[services.web]\ncommand = [\"nc\", \"-ll\", \"-p\", \"80\", \"-e\", \"hostname\"]\nhostname = \"${WHO}\"\n\
         [services.client]\ncommand = [\"sleep\", \"1000\"]\nvolumes = [\"v:/data\"]\n[volumes.v]\n",
    );
    let names: Vec<String> = (0..4).map(|n| format!("{}-{n}", stack.name)).collect();
    // All at once, with one store that is empty.
    let ups: Vec<_> = names
        .iter()
        .map(|name| {
            let mut up = stack.command(&["-p", name, "up", "-d"]);
            up.env("WHO", name).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            up.spawn().unwrap()
        })
        .collect();
    for up in ups {
        finish(up).ok();
    }
    for name in &names {
        let exec = |script: &str| {
            let mut exec = stack.command(&["-p", name, "exec", "client", "sh", "-c", script]);
            ended(exec.env("WHO", name))
        };
        // The same name, and the same address, are another service in each.
        until("its own server", || (exec("nc -w 5 web 80 < /dev/null").out.trim() == name).then_some(()));
        assert_eq!(exec("ls /data | wc -l; touch /data/file").ok(), "0\n", "{name}");
    }
    let layers = fs::read_dir(stack.data().join("l")).unwrap().count();
    assert_eq!(layers, 1, "they share one layer");
    for name in &names {
        let mut down = stack.command(&["-p", name, "down", "-v"]);
        ended(down.env("WHO", name)).ok();
    }
    stack.gone(std::time::Duration::from_secs(2));
    for directory in ["c", "v"] {
        assert_eq!(fs::read_dir(stack.data().join(directory)).unwrap().count(), 0, "{directory}");
    }
}

#[test]
fn many_services_start() {
    let services: String = (0..30)
        .map(|n| {
            let after = if n > 0 { format!("depends_on = [\"s{}\"]\n", n - 1) } else { String::new() };
            format!("[services.s{n}]\ncommand = [\"sleep\", \"1000\"]\n{after}")
        })
        .collect();
    let stack = Stack::new(&services);
    let start = std::time::Instant::now();
    stack.up();
    let took = start.elapsed();
    assert!(took < DEADLINE, "{took:?}");
    assert!(stack.ps().iter().all(|row| row["state"] == "running"));
    assert_eq!(stack.sh("s0", "nslookup s29 > /dev/null && echo found"), "found");
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn only_the_services_asked_for() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\ndepends_on = [\"b\"]\n\
         [services.b]\ncommand = [\"sleep\", \"1000\"]\n[services.c]\ncommand = [\"sleep\", \"1000\"]\n",
    );
    stack.run(&["up", "-d", "a"]).ok();
    let states = || -> Vec<String> {
        stack.ps().iter().map(|row| format!("{} {}", row["service"], row["state"]).replace('"', "")).collect()
    };
    assert_eq!(states(), ["b running", "a running"].map(str::to_owned).to_vec());
    assert_eq!(stack.run(&["ps", "-q"]).ok().split_whitespace().count(), 2);
    stack.run(&["up", "-d", "c"]).ok();
    assert_eq!(stack.row("c")["state"], "running");
    // A dependency is stopped with those that need it, unless it alone is meant.
    stack.run(&["stop", "a"]).ok();
    assert_eq!(stack.row("b")["state"], "running");
    stack.run(&["start", "a"]).ok();
    assert_eq!(stack.row("a")["state"], "running");
}

#[test]
fn who_was_started_by_name_stays_without_its_profile() {
    let stack = Stack::new(
        "[services.web]\ncommand = [\"sleep\", \"1000\"]\n\
         [services.db]\ncommand = [\"sleep\", \"1000\"]\nprofiles = [\"tools\"]\n\
         [services.tool]\ncommand = [\"sh\", \"-c\", \"echo used\"]\nprofiles = [\"tools\"]\n",
    );
    stack.run(&["up", "-d", "db"]).ok();
    let db = stack.pid("db");
    stack.run(&["up", "-d"]).ok();
    assert_eq!(stack.pid("db"), db);
    let names =
        || stack.ps().iter().map(|row| row["service"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(), ["web", "db"]);
    // A service that the running stack has not heard of.
    assert_eq!(stack.run(&["run", "--rm", "-T", "tool"]).ok(), "used\n");
    assert_eq!(stack.pid("db"), db);
    stack.run(&["stop", "db"]).ok();
    stack.run(&["up", "-d"]).ok();
    assert_eq!(names(), ["web"]);
}

#[test]
fn an_empty_data_directory_that_was_made_before_is_taken() {
    if !rustix::process::geteuid().is_root() {
        println!(
            "skipped: an_empty_data_directory_that_was_made_before_is_taken: only root's becomes another one's"
        );
        return;
    }
    let stack = Stack::new("[services.web]\ncommand = [\"true\"]\n");
    let data = stack.path("other");
    fs::create_dir(&data).unwrap();
    ended(stack.command(&["run", "--rm", "-T", "web"]).env("INCEPTION_DATA_DIR", &data)).ok();
    // One that is not empty is somebody's.
    let used = stack.path("used");
    fs::create_dir(&used).unwrap();
    fs::write(used.join("file"), "").unwrap();
    let refused = ended(stack.command(&["run", "--rm", "-T", "web"]).env("INCEPTION_DATA_DIR", &used));
    refused.fails(1, &["belongs to user id 0", "INCEPTION_DATA_DIR"]);
}
