//! `kill -9` at any moment: the kernel takes everything away, and the next command works.

use std::io::Read;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{DEADLINE, Stack, connect, finish, free_ports, until};

const ROUNDS: u32 = 50;

fn tiny(port: u16) -> Stack {
    Stack::new(&format!(
        r#"
[services.data]
command = ["sh", "-c", "date >> /data/times; exec sleep 1000"]
volumes = ["kept:/data"]
[services.web]
command = ["nc", "-ll", "-p", "80", "-e", "echo", "hello"]
depends_on = ["data"]
ports = ["127.0.0.1:{port}:80"]
stop_grace_period = "200ms"
[volumes.kept]
"#
    ))
}

/// Random numbers that are the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

pub(crate) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself.
        kill_process(pid, Signal::KILL).ok();
    }
}

fn wait_for_supervisor(stack: &Stack, child: &mut std::process::Child) -> Option<i32> {
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        if let Some(pid) = stack.supervisor() {
            return Some(pid);
        }
        if child.try_wait().unwrap().is_some() {
            return stack.supervisor();
        }
    }
    panic!("there is no supervisor");
}

#[test]
fn a_killed_supervisor_leaves_nothing() {
    let stack = tiny(free_ports(1));
    // The image: what is killed below is the start of a stack, not an import.
    stack.up();
    stack.run(&["down"]).ok();
    stack.gone(Duration::from_secs(2));
    let mut random = Random(0x1234_5678_9abc_def1);
    for round in 0..ROUNDS {
        let arguments: &[&str] = if round % 2 == 0 { &["up", "-d"] } else { &["stack.toml"] };
        let mut child = stack.spawn(arguments);
        let supervisor = wait_for_supervisor(&stack, &mut child);
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        let Some(supervisor) = supervisor else { panic!("round {round}: {:?}", finish(child)) };
        kill(supervisor);
        stack.gone_but(child.id(), Duration::from_secs(2));
        let ended = finish(child);
        // Killed before the command was done with it: that is an error in its parts.
        if ended.code != 0 {
            ended.fails(1, &[]);
        }
    }
    stack.up();
    let times = stack.sh("data", "wc -l < /data/times");
    assert!(times.parse::<u32>().unwrap() >= 2, "the volume was kept: {times}");
}

#[test]
fn a_killed_command_in_the_foreground_takes_all_with_it() {
    let stack = tiny(free_ports(1));
    let mut random = Random(0xfeed_beef_1234_5671);
    for round in 0..ROUNDS {
        let child = stack.spawn(&["stack.toml"]);
        // Also while images are imported and before there is a supervisor.
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        kill(i32::try_from(child.id()).unwrap());
        assert_eq!(finish(child).code, 137, "round {round}");
        stack.gone(Duration::from_secs(2));
    }
    stack.up();
    assert_eq!(stack.row("web")["state"], "running");
}

#[test]
fn a_killed_detached_command_leaves_all_or_nothing() {
    let stack = tiny(free_ports(1));
    let mut random = Random(0xabcd_ef01_2345_6789);
    for round in 0..ROUNDS / 5 {
        let child = stack.spawn(&["up", "-d"]);
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        kill(i32::try_from(child.id()).unwrap());
        let code = finish(child).code;
        if code == 137 && round % 2 == 0 {
            // Whatever state that was, `up` completes it.
            stack.up();
            assert_eq!(stack.row("web")["state"], "running");
        }
        stack.run(&["down"]).ok();
        stack.gone(Duration::from_secs(2));
    }
}

#[test]
fn a_killed_part_takes_the_rest_with_it() {
    let stack = tiny(free_ports(1));
    stack.up();
    let others = |stack: &Stack| {
        let supervisor = stack.supervisor().unwrap();
        let mut pids = stack.processes();
        // netd is the one that is replaced.
        let netd = stack.netd();
        pids.retain(|pid| *pid != supervisor && Some(*pid) != netd);
        pids
    };
    // Each of them once: hub, the inits and what they run.
    let count = others(&stack).len();
    assert!(count >= 5, "{count} processes");
    for index in 0..count {
        stack.up();
        let pids = others(&stack);
        let Some(pid) = pids.get(index) else { break };
        kill(*pid);
        // Either the service is gone, and the stack knows it; or the stack is. Never something between.
        let end = Instant::now() + DEADLINE;
        loop {
            let rows = stack.ps();
            let all_run = rows.len() == 2 && rows.iter().all(|row| row["state"] == "running");
            if !all_run {
                break;
            }
            assert!(Instant::now() < end, "process {index} of {count} was killed, and nothing happened");
        }
        if stack.supervisor().is_none() {
            stack.gone(Duration::from_secs(2));
        }
        stack.run(&["down"]).ok();
        stack.nothing_left_but_volumes();
    }
}

#[test]
fn a_killed_netd_is_replaced_and_ports_stay_bound() {
    let port = free_ports(1);
    let stack = tiny(port);
    stack.up();
    let ask = || {
        let mut stream = connect(port)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    until("the service answers", || ask().ok().filter(|answer| answer == "hello\n"));
    for round in 0..10 {
        let killed = stack.netd().unwrap();
        let at = Instant::now();
        kill(killed);
        // Nobody is turned away while it is gone: this connection waits.
        assert_eq!(ask().unwrap(), "hello\n", "round {round}");
        let netd = until("another netd", || stack.netd().filter(|pid| *pid != killed));
        assert_eq!(stack.sh("data", "nslookup web > /dev/null && echo found"), "found", "round {round}");
        assert_eq!(stack.netd(), Some(netd), "round {round}: it was left alone");
        // Five deaths within ten seconds would be the end of the stack, and are what the next test is about.
        std::thread::sleep(Duration::from_millis(2600).saturating_sub(at.elapsed()));
    }
    let log = std::fs::read_to_string(stack.path("r").join(&stack.name).join(".supervisor.log")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("ended by signal 9")).count(), 10, "{log}");
    assert_eq!(log.lines().filter(|line| line.contains("serves again")).count(), 10, "{log}");
    for service in ["data", "web"] {
        let row = stack.row(service);
        assert!(row["state"] == "running" && row["restarts"] == 0, "{row}");
    }
}

#[test]
fn a_netd_that_keeps_dying_ends_the_stack() {
    let stack = tiny(free_ports(1));
    stack.up();
    let end = Instant::now() + DEADLINE;
    while stack.supervisor().is_some() {
        assert!(Instant::now() < end, "it is started again for ever");
        if let Some(netd) = stack.netd() {
            kill(netd);
        }
    }
    stack.gone(Duration::from_secs(2));
    let log = std::fs::read_to_string(stack.path("r").join(&stack.name).join(".supervisor.log")).unwrap();
    assert!(log.contains("error: the stack's netd ended"), "{log}");
}

#[test]
fn a_kill_during_an_end_leaves_nothing() {
    let stack = tiny(free_ports(1));
    stack.up();
    let mut random = Random(0x0bad_cafe_0123_4567);
    for round in 0..ROUNDS / 5 {
        stack.up();
        let supervisor = stack.supervisor().unwrap();
        let child = stack.spawn(if round % 2 == 0 { &["down", "-v"] } else { &["restart"] });
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        kill(supervisor);
        stack.gone_but(child.id(), Duration::from_secs(2));
        let ended = finish(child);
        if ended.code != 0 {
            ended.fails(1, &[]);
        }
        stack.run(&["down", "-v"]).ok();
        stack.nothing_left();
    }
}

#[test]
fn a_supervisor_ends_in_order_when_it_is_asked_to() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sh\", \"-c\", \"trap 'echo bye > /log/log; exit' TERM; echo ready; while :; do sleep 0.02; done\"]\n\
         volumes = [\"./log:/log\"]\n",
    );
    std::fs::create_dir(stack.path("log")).unwrap();
    stack.up();
    stack.wait_log("a", "ready");
    kill_process(Pid::from_raw(stack.supervisor().unwrap()).unwrap(), Signal::TERM).unwrap();
    stack.gone(DEADLINE);
    assert_eq!(std::fs::read_to_string(stack.path("log/log")).unwrap(), "bye\n");
    stack.nothing_left();
}
