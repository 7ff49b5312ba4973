//! A little stack with real namespaces: what its services can reach, and what published ports carry. Needs no
//! privilege but unprivileged user namespaces. `cargo test -p network --test stack -- bench` prints figures.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod bench;
mod fixture;
mod kernel;
mod names;
mod outside;
mod resolver;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fixture::{ECHO, Outcome, SINK, Stack, timed};

type Check = fn(&mut Stack);

const CHECKS: &[(&str, Check)] = &[
    ("members of a network find and reach each other", members_find_each_other),
    ("a service off the network finds and reaches nothing", strangers_stay_strangers),
    ("names of the world come from the host's resolvers", names_of_the_world),
    ("replies of resolvers are kept as long as they hold", names::kept_replies),
    ("long replies come over TCP", names::long_replies),
    ("after a resolver that fails the next is asked", names::failing_resolvers),
    ("who asks the same waits for the same reply", names::one_query_for_many),
    ("names of the stack do not leave it", names::nothing_leaks),
    ("an egress policy goes for questions", names::egress_of_questions),
    ("a name leads to the replicas that are ready", names::replicas_by_state),
    ("100 MB go through a published port and back intact", bulk_both_ways),
    ("a service that is down refuses at once", refused_at_once),
    ("200 connections at a time", many_connections),
    ("a slow reader slows the writer and loses nothing", slow_reader),
    ("a reset passes through, in both directions", resets_pass),
    ("what was sent before a reset arrives", resets_lose_nothing),
    ("ports come and go without touching open connections", reconfiguration),
    ("a changed plan changes only what differs", changed_plan),
    ("out of descriptors, connections wait and netd does not spin", out_of_descriptors),
    ("netd has small memory", memory),
    ("a flood of queries fills no memory and keeps nobody else waiting", names::flood),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    if has("--list") {
        if !has("--ignored") {
            println!("stack: test");
        }
        return;
    }
    if has("outside") {
        return outside::run();
    }
    if !has("bench") {
        kernel::run();
        outside::run();
    }
    let mut stack = Stack::up();
    if has("bench") {
        bench::run(&mut stack);
        return;
    }
    for (name, check) in CHECKS {
        timed(name, || check(&mut stack));
    }
}

fn members_find_each_other(stack: &mut Stack) {
    let app = stack.address("app", 0);
    for tcp in [false, true] {
        assert_eq!(stack.resolve("web", 0, "app", tcp), Ok((0, vec![app])));
        assert_eq!(stack.resolve("web", 0, "AppServer", tcp), Ok((0, vec![app])), "an alias");
    }
    assert_eq!(stack.connect("web", app, ECHO), Outcome::Done);
    assert_eq!(stack.connect("web", app, 81), Outcome::Refused);
    // `app` is on both networks.
    let db = stack.address("db", 0);
    assert_eq!(stack.resolve("app", 0, "db", false), Ok((0, vec![db])));
    assert_eq!(stack.connect("app", db, ECHO), Outcome::Done);
    // A port below 1024, as an ordinary user of the service could.
    assert_eq!(stack.connect("app", stack.address("web", 0), 80), Outcome::Done);
}

fn strangers_stay_strangers(stack: &mut Stack) {
    let (web, db) = (stack.address("web", 0), stack.address("db", 0));
    assert_eq!(stack.resolve("db", 0, "web", false), Ok((3, vec![])));
    assert_eq!(stack.resolve("web", 0, "db", false), Ok((3, vec![])));
    for (from, to) in [("db", web), ("web", db)] {
        let start = Instant::now();
        assert_eq!(stack.connect(from, to, ECHO), Outcome::Unreachable);
        assert!(start.elapsed() < Duration::from_secs(1), "no time-out where there is no way");
    }
    // Nor by the other network's name server.
    let foreign = stack.plan.networks[0].gateway;
    assert!(stack.ask("db", foreign, "web", false).is_err());
    // The gateways offer nothing else, and the world is not there.
    assert_eq!(stack.connect("web", stack.plan.networks[0].gateway, ECHO), Outcome::Refused);
    assert_eq!(stack.connect("web", Ipv4Addr::new(192, 0, 2, 1), 80), Outcome::Unreachable);
}

fn names_of_the_world(stack: &mut Stack) {
    for tcp in [false, true] {
        let start = Instant::now();
        let expected = Ok((0, vec![Ipv4Addr::new(192, 0, 2, 77)]));
        assert_eq!(stack.resolve("web", 0, "www.example.test", tcp), expected, "the second resolver answers");
        assert!(start.elapsed() < Duration::from_secs(4));
    }
    assert_eq!(stack.resolve("db", 0, "www.example.test", false), Ok((3, vec![])), "an internal network");
}

/// Bytes that show a loss, a repetition or a swap.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(length).collect()
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Writes `bytes`, ends the writing half, and returns all that came back.
fn exchange(port: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        read_all(&mut stream)
    })
}

fn bulk_both_ways(stack: &mut Stack) {
    let bytes = pattern(100 << 20);
    assert!(exchange(stack.port("app", ECHO), &bytes) == bytes, "the echo differs");
    // The sink answers only after the end of what it reads: the count proves that half-close arrived.
    assert_eq!(exchange(stack.port("app", SINK), &bytes), bytes.len().to_string().into_bytes());
    assert_eq!(exchange(stack.port("db", ECHO), b"x"), b"x", "an internal network can have published ports");
}

fn refused_at_once(stack: &mut Stack) {
    let start = Instant::now();
    let mut stream = TcpStream::connect(stack.port("web", 81)).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "a reset, not an end of file");
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
}

fn many_connections(stack: &mut Stack) {
    let port = stack.port("app", ECHO);
    let mut streams: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(port).unwrap()).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(format!("{number:04}").as_bytes()).unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, format!("{number:04}").as_bytes());
    }
    let bytes = pattern(300_000);
    std::thread::scope(|scope| {
        for _ in 0..200 {
            let bytes = &bytes;
            std::thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn_scoped(scope, move || assert!(exchange(port, bytes) == *bytes))
                .unwrap();
        }
    });
}

fn slow_reader(stack: &mut Stack) {
    let bytes = pattern(30 << 20);
    let mut stream = TcpStream::connect(stack.port("app", ECHO)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let echoed = std::thread::scope(|scope| {
        let bytes = &bytes;
        scope.spawn(move || {
            writer.write_all(bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        std::thread::sleep(Duration::from_millis(300));
        let before = stack.netd_cpu();
        std::thread::sleep(Duration::from_millis(500));
        let used = stack.netd_cpu() - before;
        assert!(used <= Duration::from_millis(30), "waits without spinning, used {used:?}");
        read_all(&mut stream)
    });
    assert!(echoed == bytes);
}

fn resets_pass(stack: &mut Stack) {
    // The service sees the client's reset: its handler ends, and says so on the next connection.
    let client = TcpStream::connect(stack.port("app", fixture::RESETS)).unwrap();
    (&client).write_all(b"x").unwrap();
    (&client).read_exact(&mut [0]).unwrap();
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let mut next = TcpStream::connect(stack.port("app", fixture::RESETS)).unwrap();
        next.write_all(b"?").unwrap();
        next.shutdown(Shutdown::Write).unwrap();
        if read_all(&mut next) == b"1" {
            break;
        }
        assert!(Instant::now() < deadline, "the service saw no reset");
        std::thread::sleep(Duration::from_millis(10));
    }
    // And the client the service's.
    let mut client = TcpStream::connect(stack.port("app", fixture::RESETS)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client.write_all(b"!").unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// A client that closes with something unread resets the connection; what it had sent arrives all the same.
fn resets_lose_nothing(stack: &mut Stack) {
    let port = stack.port("app", fixture::RESETS);
    let mut client = TcpStream::connect(port).unwrap();
    client.write_all(b"w").unwrap();
    // More than the service's kernel takes before the service reads.
    client.write_all(&pattern(1 << 20)).unwrap();
    while sys::fd::unacknowledged(client.as_fd()).unwrap() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // It is there, and stays unread.
    assert_eq!(client.peek(&mut [0]).unwrap(), 1);
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut arrived = String::new();
    while arrived != (1 << 20).to_string() {
        assert!(Instant::now() < deadline, "{arrived} bytes arrived");
        arrived = String::from_utf8(exchange(port, b"=")).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn reconfiguration(stack: &mut Stack) {
    let port = stack.port("app", ECHO);
    let mut open = TcpStream::connect(port).unwrap();
    let round = |stream: &mut TcpStream| {
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    };
    round(&mut open);
    let before = stack.configuration.clone();
    stack.configuration.published.retain(|published| stack_port(published) != port);
    stack.configure(&[]).unwrap();
    assert!(TcpStream::connect(port).is_err(), "not published any more");
    round(&mut open);
    // Without a listening socket the configuration is refused, and the one before stays.
    let without = std::mem::replace(&mut stack.configuration, before);
    let refusal = stack.configure(&[]).unwrap_err();
    assert!(refusal.to_string().contains("app"), "{refusal}");
    assert_eq!(exchange(stack.port("db", ECHO), b"x"), b"x");
    let index = stack.configuration.published.iter().position(|one| stack_port(one) == port).unwrap();
    let (listener, _) = network::publish::bind(&stack.configuration.published[index].port).unwrap();
    stack.configure(&[(index, listener)]).unwrap();
    assert_eq!(exchange(port, b"again"), b"again");
    round(&mut open);
    drop(without);
}

fn stack_port(published: &network::netd::Published) -> SocketAddr {
    SocketAddr::new(published.port.host_ip, published.port.host_port)
}

fn changed_plan(stack: &mut Stack) {
    let mut plan = stack.plan.clone();
    assert_eq!(stack.apply(&plan), (vec![], vec![]));
    plan.endpoints[0].interfaces[0].aliases.push("fresh".into());
    assert_eq!(stack.apply(&plan), (vec![], vec![]), "names need no wiring");
    plan.networks.push(fixture::network("extra", 2, false));
    plan.endpoints.push(fixture::endpoint("extra", &[("extra", 2, 2)], &[]));
    assert_eq!(stack.apply(&plan), (vec!["extra".into()], vec!["extra".into()]));
    plan.networks[2].gateway = Ipv4Addr::new(10, 211, 2, 9);
    assert_eq!(stack.apply(&plan), (vec!["extra".into()], vec!["extra".into()]), "made anew");
    plan = stack.plan.clone();
    assert_eq!(stack.apply(&plan), (vec![], vec![]));
    assert_eq!(stack.connect("web", stack.address("app", 0), ECHO), Outcome::Done);
}

fn out_of_descriptors(stack: &mut Stack) {
    let port = stack.port("app", ECHO);
    let mut first = TcpStream::connect(port).unwrap();
    let before = stack.limit_netd_descriptors(80);
    let streams: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(port).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(200));
    let cpu = stack.netd_cpu();
    std::thread::sleep(Duration::from_millis(500));
    let used = stack.netd_cpu() - cpu;
    assert!(used <= Duration::from_millis(30), "used {used:?} to wait");
    // Those that hold on to their descriptors are not harmed, and when they are gone the others come in.
    first.write_all(b"ping").unwrap();
    first.read_exact(&mut [0; 4]).unwrap();
    for mut stream in streams {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
    stack.limit_netd_descriptors(before);
}

fn memory(stack: &mut Stack) {
    let private = stack.netd_private_kb();
    println!("netd: {private} kB private");
    // Of a debug build after the work above; a page of ours that the parent wrote to since the fork counts too.
    assert!(private < 4096, "{private} kB");
}
