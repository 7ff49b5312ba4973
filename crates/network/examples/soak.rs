//! Traffic of all kinds through a stack while its containers and its netd are killed, scaled and replaced; for
//! `scripts/soak`, which prepares the stack.
//!
//! `soak drive PROGRAM FILE PORT SECONDS WORLD`  from the host; counts what failed, and fails if something did; FTP is at
//!                                               the next port
//! `soak inside SECONDS WORLD`                   its part within a container
//!
//! A worker has one connection at a time, so each may lose one to a replica or netd that is killed, and no more: a
//! second failure of the same worker within the same incident counts, and so does everything else that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// How long anything may take that is not to count as failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a command, and what it is for, may take.
const COMMAND: Duration = Duration::from_secs(90);
/// How long replicas may take to be healthy again.
const SETTLED: Duration = Duration::from_secs(60);
/// How long one datagram's answer is waited for, and how often it is asked again.
const ANSWER: Duration = Duration::from_millis(500);
const TRIES: usize = 8;
/// How long a stream goes on, and how often it says something; draining takes longer.
const STREAM: Duration = Duration::from_secs(3);
const BEAT: Duration = Duration::from_millis(25);
/// Pause between two names that are asked for.
const PAUSE: Duration = Duration::from_millis(2);
/// The port of the service.
const PORT: u16 = 9000;
/// Pause between two incidents.
const LULL: Duration = Duration::from_secs(1);
/// What may differ at the end: descriptors of netd (pipes and sockets that are kept ready), of the others, and KiB.
const NETD_FDS: usize = 96;
const FDS: usize = 4;
const KIBIBYTES: u64 = 1536;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["inside", seconds, world] => inside(Duration::from_secs(seconds.parse()?), world.parse().ok()),
        ["drive", program, file, port, seconds, world] => {
            let stack = Stack { program: program.into(), file: file.into(), version: 1 };
            drive(stack, port.parse()?, Duration::from_secs(seconds.parse()?), world)
        }
        _ => Err("soak drive PROGRAM FILE PORT SECONDS WORLD | soak inside SECONDS WORLD".into()),
    }
}

/// Seconds since the epoch: the same clock inside and outside.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

// Workers.

/// One thing that a worker did.
#[derive(Debug)]
struct Deed {
    worker: String,
    begun: f64,
    ended: f64,
    /// Who served it last, if that is known.
    failure: Option<(Option<String>, String)>,
}

/// What a worker does once: whom it met, and whether it went well.
type Work = dyn Fn(&mut Option<String>) -> io::Result<()> + Send;

fn work(worker: &str, stop: &AtomicBool, deeds: &Sender<Deed>, once: &Work) {
    while !stop.load(Ordering::Relaxed) {
        let begun = now();
        let mut server = None;
        let failure = once(&mut server).err().map(|error| (server, error.to_string()));
        let deed = Deed { worker: worker.to_owned(), begun, ended: now(), failure };
        if deeds.send(deed).is_err() {
            return;
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

fn ask(stream: &mut BufReader<TcpStream>, request: &[u8]) -> io::Result<String> {
    stream.get_mut().write_all(request)?;
    let mut answer = String::new();
    match stream.read_line(&mut answer)? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer")),
        _ => Ok(answer.trim().to_owned()),
    }
}

fn request(address: SocketAddr) -> io::Result<()> {
    ask(&mut connect(address)?, b"close\n").map(drop)
}

fn stream(address: SocketAddr, server: &mut Option<String>) -> io::Result<()> {
    let mut stream = connect(address)?;
    let until = Instant::now() + STREAM;
    while Instant::now() < until {
        *server = Some(ask(&mut stream, b"ping\n")?);
        thread::sleep(BEAT);
    }
    ask(&mut stream, b"close\n").map(drop)
}

/// Fetches a file by FTP: control and data connection must meet the same server.
fn transfer(address: SocketAddr, active: bool, server: &mut Option<String>) -> io::Result<()> {
    let mut control = connect(address)?;
    let mut greeting = String::new();
    control.read_line(&mut greeting)?;
    let expect = |reply: String, code: &str| match reply.starts_with(code) {
        true => Ok(reply),
        false => Err(io::Error::other(format!("`{reply}` instead of {code}"))),
    };
    let name = expect(greeting, "220 ")?[4..].trim().to_owned();
    *server = Some(name.clone());
    expect(ask(&mut control, b"USER soak\r\n")?, "331")?;
    expect(ask(&mut control, b"PASS soak\r\n")?, "230")?;
    let mut data = if active {
        let listener = TcpListener::bind((address.ip(), 0))?;
        let command = format!("EPRT |1|{}|{}|\r\n", address.ip(), listener.local_addr()?.port());
        expect(ask(&mut control, command.as_bytes())?, "200")?;
        expect(ask(&mut control, b"RETR file\r\n")?, "150")?;
        accept(&listener, &control)?
    } else {
        let reply = expect(ask(&mut control, b"EPSV\r\n")?, "229")?;
        let port = reply.split('|').nth(3).and_then(|port| port.parse().ok());
        let data = connect((address.ip(), port.ok_or(io::ErrorKind::InvalidData)?).into())?.into_inner();
        expect(ask(&mut control, b"RETR file\r\n")?, "150")?;
        data
    };
    data.set_read_timeout(Some(PATIENCE))?;
    let mut file = String::new();
    data.read_to_string(&mut file)?;
    let mut reply = String::new();
    control.read_line(&mut reply)?;
    expect(reply, "226")?;
    expect(ask(&mut control, b"QUIT\r\n")?, "221")?;
    match file.trim() == name {
        true => Ok(()),
        false => Err(io::Error::other(format!("control by {name}, data by {file}"))),
    }
}

/// The connection that a server makes, which never comes if the server or netd is killed before.
fn accept(listener: &TcpListener, control: &BufReader<TcpStream>) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    control.get_ref().set_nonblocking(true)?;
    let until = Instant::now() + PATIENCE;
    let data = loop {
        match listener.accept() {
            Ok((data, _)) => break data,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if Instant::now() > until => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
        if matches!(control.get_ref().peek(&mut [0]), Ok(0)) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without a data connection"));
        }
        thread::sleep(Duration::from_millis(1));
    };
    control.get_ref().set_nonblocking(false)?;
    data.set_nonblocking(false)?;
    Ok(data)
}

/// A socket for datagrams to an address.
fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

/// Sends a message and waits for an answer to it, again and again as those do who use datagrams.
fn exchange(socket: &UdpSocket, message: &[u8], fits: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    let mut buffer = [0; 2048];
    for _ in 0..TRIES {
        if let Err(error) = socket.send(message) {
            last = error;
            thread::sleep(ANSWER);
            continue;
        }
        match socket.recv(&mut buffer) {
            Ok(count) if fits(&buffer[..count]) => return Ok(buffer[..count].to_vec()),
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Datagrams from one port, for as long as a stream: each new port is a flow, which is remembered for a while.
fn flow(address: SocketAddr) -> io::Result<()> {
    let socket = datagrams(address)?;
    let until = Instant::now() + STREAM;
    while Instant::now() < until {
        let message = now().to_le_bytes();
        exchange(&socket, &message, |answer| answer == message)?;
        thread::sleep(BEAT);
    }
    Ok(())
}

/// The first address that a name has (RFC 1035; the answers end with one, whose record's data is its last four bytes).
fn look_up(server: SocketAddr, name: &str) -> io::Result<Ipv4Addr> {
    thread::sleep(PAUSE);
    let id = (now().fract() * 65536.0) as u16;
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, u8::try_from(name.len()).unwrap_or(63)]);
    query.extend(name.as_bytes());
    query.extend([0, 0, 1, 0, 1]);
    let answer =
        exchange(&datagrams(server)?, &query, |answer| answer.len() > 12 && answer[..2] == query[..2])?;
    match answer[..] {
        [.., 0, 4, a, b, c, d] if answer[3] & 15 == 0 && answer[7] > 0 => Ok(Ipv4Addr::new(a, b, c, d)),
        _ => Err(io::Error::other(format!("no address for `{name}`, code {}", answer[3] & 15))),
    }
}

fn inside(time: Duration, world: Option<SocketAddr>) -> Outcome {
    let resolver = std::fs::read_to_string("/etc/resolv.conf")?;
    let resolver = resolver.lines().find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    let resolver = SocketAddr::new(resolver.ok_or("no name server")?, 53);
    let service = SocketAddr::new(IpAddr::V4(look_up(resolver, "web")?), PORT);
    let stop = AtomicBool::new(false);
    let (deeds, done) = mpsc::channel();
    let mut works: Vec<(&str, Box<Work>)> = vec![
        ("inside: request", Box::new(move |_| request(service))),
        ("inside: stream", Box::new(move |server| stream(service, server))),
        ("inside: name", Box::new(move |_| look_up(resolver, "web").map(drop))),
    ];
    if let Some(world) = world {
        works.push(("inside: egress request", Box::new(move |_| request(world))));
        works.push(("inside: egress stream", Box::new(move |server| stream(world, server))));
        works.push(("inside: egress datagrams", Box::new(move |_| flow(world))));
    }
    thread::scope(|scope| {
        for (worker, once) in works {
            let (deeds, stop) = (deeds.clone(), &stop);
            scope.spawn(move || {
                work(worker, stop, &deeds, &once);
            });
        }
        drop(deeds);
        scope.spawn(|| {
            thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
        });
        let mut out = io::stdout().lock();
        for Deed { worker, begun, ended, failure } in done {
            let (server, error) = failure.map_or((None, None), |(server, error)| (server, Some(error)));
            let row = serde_json::json!([worker, begun, ended, server, error]);
            writeln!(out, "{row}")?;
        }
        Ok(())
    })
}

/// Passes on what the workers in the container did.
fn relay(mut child: Child, deeds: &Sender<Deed>) -> Outcome {
    let out = child.stdout.take().ok_or("no output")?;
    for line in BufReader::new(out).lines() {
        let (worker, begun, ended, server, error): (_, _, _, _, Option<String>) =
            serde_json::from_str(&line?)?;
        deeds.send(Deed { worker, begun, ended, failure: error.map(|error| (server, error)) })?;
    }
    match child.wait()? {
        status if status.success() => Ok(()),
        status => Err(format!("the part inside ended with {status}").into()),
    }
}

// The stack, and what befalls it.

struct Stack {
    program: PathBuf,
    file: PathBuf,
    version: u32,
}

/// Looks again and again whether something is so; false when it is not by the deadline.
fn within(patience: Duration, mut is_so: impl FnMut() -> Outcome<bool>) -> Outcome<bool> {
    let until = Instant::now() + patience;
    while !is_so()? {
        if Instant::now() > until {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(true)
}

/// Something that connections may be lost by.
#[derive(Debug)]
struct Incident {
    /// The replica; `None` for netd.
    replica: Option<String>,
    begun: f64,
    over: f64,
}

impl Stack {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-f").arg(&self.file).args(arguments).stdin(Stdio::null());
        command
    }

    /// What a command prints. It has a deadline, and is killed at it.
    fn run(&self, arguments: &[&str]) -> Outcome<String> {
        let child = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let pid = child.id().to_string();
        let reader = thread::spawn(move || child.wait_with_output());
        if !within(COMMAND, || Ok(reader.is_finished()))? {
            Command::new("kill").args(["-9", &pid]).status()?;
            return Err(format!("{arguments:?} takes longer than {COMMAND:?}").into());
        }
        let output = reader.join().map_err(|_panic| "the reader panicked")??;
        if !output.status.success() {
            return Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The containers of the service, with the process of each that runs.
    fn replicas(&self) -> Outcome<BTreeMap<String, i64>> {
        let rows: Vec<Value> = serde_json::from_str(&self.run(&["ps", "--format", "json"])?)?;
        let running = rows.iter().filter(|row| row["service"] == "web" && row["health"] == "healthy");
        let row = |row: &Value| Some((row["container"].as_str()?.to_owned(), row["pid"].as_i64()?));
        Ok(running.filter_map(row).collect())
    }

    /// Waits until as many replicas are healthy.
    fn settle(&self, count: usize) -> Outcome {
        match within(SETTLED, || Ok(self.replicas()?.len() == count))? {
            true => Ok(()),
            false => Err(format!("there are not {count} healthy replicas: {}", self.run(&["ps"])?).into()),
        }
    }

    /// Kills the program of one of the replicas.
    fn kill_replica(&self, turn: usize) -> Outcome<Incident> {
        let replicas = self.replicas()?;
        let (name, pid) = replicas.iter().nth(turn % replicas.len().max(1)).ok_or("no replica runs")?;
        let begun = now();
        // An ordinary user may not send signals to other ids than his own; inside it can be done. The helper's own
        // end does not matter: its container may be gone before it.
        let killall = self.run(&["exec", "-T", name, "/bin/busybox", "killall", "-9", "load"]);
        if !within(COMMAND, || Ok(self.replicas()?.get(name) != Some(pid)))? {
            return Err(format!("{name} does not end; killall: {killall:?}").into());
        }
        Ok(Incident { replica: Some(name.clone()), begun, over: now() })
    }

    fn kill_netd(&self) -> Outcome<Incident> {
        let [_, netd, _] = self.processes()?;
        let begun = now();
        let status = Command::new("kill").args(["-9", &netd.to_string()]).status()?;
        if !within(COMMAND, || Ok(self.processes().is_ok_and(|[_, other, _]| other != netd)))? {
            return Err(format!("no new netd: {:?}", self.processes()).into());
        }
        let over = now();
        status.success().then_some(Incident { replica: None, begun, over }).ok_or("kill: failed".into())
    }

    fn replace(&mut self) -> Outcome {
        let old = format!("VERSION = \"{}\"", self.version);
        self.version += 1;
        let text = std::fs::read_to_string(&self.file)?;
        std::fs::write(&self.file, text.replace(&old, &format!("VERSION = \"{}\"", self.version)))?;
        self.run(&["up", "-d", "--rolling"]).map(drop)
    }

    /// Supervisor, netd, hub.
    fn processes(&self) -> Outcome<[u32; 3]> {
        let supervisor = processes()?.find(|(_, line)| line.contains("__supervise soak "));
        let (supervisor, _) = supervisor.ok_or("the supervisor is gone")?;
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
        let children: Vec<u32> =
            children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        let is_netd = |pid: &&u32| line_of(**pid).is_some_and(|line| line.contains("__netd soak "));
        let netd = children.iter().find(is_netd).ok_or("netd is not there")?;
        let hub = children.iter().find(|pid| !is_netd(pid)).ok_or("the hub is gone")?;
        Ok([supervisor, *netd, *hub])
    }
}

fn processes() -> Outcome<impl Iterator<Item = (u32, String)>> {
    let pids =
        std::fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(|pid| Some((pid, line_of(pid)?))))
}

fn line_of(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&line).replace('\0', " "))
}

/// What a process takes: KiB (proportional set size) and descriptors. `None` where this user may not look.
fn taken(pid: u32) -> Option<(u64, usize)> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let pss = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.split_ascii_whitespace().next()?.parse().ok())?;
    Some((pss, std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count()))
}

// The whole.

fn drive(mut stack: Stack, port: u16, time: Duration, world: &str) -> Outcome {
    stack.settle(3)?;
    // Everything once, so that what is made at the first use is there.
    let mut all = Account::default();
    all.add(episode(&mut stack, port, Duration::from_secs(8), world)?);
    stack.settle(3)?;
    let before = stack.measure()?;
    all.add(episode(&mut stack, port, time, world)?);
    stack.settle(3)?;
    let after = stack.measure()?;
    all.print();
    let mut grown = false;
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let (Some(before), Some(after)) = (before, after) else {
            println!("skipped: memory and descriptors of {name}: this user may not look");
            continue;
        };
        let bound = if *name == "netd" { NETD_FDS } else { FDS };
        let grew = after.0 > before.0 + KIBIBYTES || after.1 > before.1 + bound;
        let verdict = if grew { "  GREW" } else { "" };
        println!(
            "{name:<12} {} -> {} KiB, {} -> {} descriptors{verdict}",
            before.0, after.0, before.1, after.1
        );
        grown |= grew;
    }
    match (all.failures.len(), grown) {
        (0, false) => Ok(()),
        (failures, _) => {
            Err(format!("{failures} failed for no reason{}", if grown { ", and something grew" } else { "" })
                .into())
        }
    }
}

/// A process of ours, and what it takes.
type Measured = (&'static str, Option<(u64, usize)>);

impl Stack {
    fn measure(&self) -> Outcome<Vec<Measured>> {
        // What was closed last is still being put away.
        thread::sleep(Duration::from_secs(2));
        let names = ["supervisor", "netd", "hub"];
        Ok(names.into_iter().zip(self.processes()?.map(taken)).collect())
    }
}

/// Traffic and incidents for some time.
fn episode(stack: &mut Stack, port: u16, time: Duration, world: &str) -> Outcome<Account> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stop = AtomicBool::new(false);
    let (deeds, done) = mpsc::channel();
    let seconds = time.as_secs().to_string();
    let exec = ["exec", "-T", "client", "/bin/soak", "inside", &seconds, world];
    let child = stack.command(&exec).stdout(Stdio::piped()).spawn()?;
    let ftp = SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1));
    let works: [(&str, Box<Work>); 10] = [
        ("request 1", Box::new(move |_| request(address))),
        ("request 2", Box::new(move |_| request(address))),
        ("stream 1", Box::new(move |server| stream(address, server))),
        ("stream 2", Box::new(move |server| stream(address, server))),
        ("stream 3", Box::new(move |server| stream(address, server))),
        ("stream 4", Box::new(move |server| stream(address, server))),
        ("datagrams 1", Box::new(move |_| flow(address))),
        ("datagrams 2", Box::new(move |_| flow(address))),
        ("ftp, passive", Box::new(move |server| transfer(ftp, false, server))),
        ("ftp, active", Box::new(move |server| transfer(ftp, true, server))),
    ];
    thread::scope(|scope| {
        let account = scope.spawn(move || Account::of(done));
        for (worker, once) in works {
            let (deeds, stop) = (deeds.clone(), &stop);
            scope.spawn(move || work(worker, stop, &deeds, &once));
        }
        let inside = scope.spawn(move || relay(child, &deeds));
        let incidents = befall(stack, time);
        stop.store(true, Ordering::Relaxed);
        let inside = inside.join().map_err(|_panic| "the relay panicked")?;
        let mut account = account.join().map_err(|_panic| "the account panicked")?;
        inside?;
        account.excuse(incidents?);
        Ok(account)
    })
}

fn befall(stack: &mut Stack, time: Duration) -> Outcome<Vec<Incident>> {
    let until = Instant::now() + time;
    let mut incidents = Vec::new();
    for turn in 0.. {
        thread::sleep(LULL.min(until.saturating_duration_since(Instant::now())));
        if Instant::now() >= until {
            break;
        }
        match turn % 6 {
            0 | 3 => {
                incidents.push(stack.kill_replica(turn / 3)?);
                thread::sleep(LULL);
            }
            1 => drop(stack.run(&["scale", "web=5"])?),
            2 => stack.replace()?,
            4 => drop(stack.run(&["scale", "web=3"])?),
            _ => incidents.push(stack.kill_netd()?),
        }
    }
    stack.run(&["scale", "web=3"])?;
    Ok(incidents)
}

/// What was done, and what failed.
#[derive(Debug, Default)]
struct Account {
    done: BTreeMap<String, u64>,
    failures: Vec<Deed>,
    excused: usize,
    incidents: Vec<Incident>,
}

impl Account {
    fn of(deeds: mpsc::Receiver<Deed>) -> Self {
        let mut account = Self::default();
        for deed in deeds {
            *account.done.entry(deed.worker.clone()).or_default() += 1;
            if deed.failure.is_some() {
                account.failures.push(deed);
            }
        }
        account
    }

    /// Takes those out of the failures that an incident explains.
    fn excuse(&mut self, incidents: Vec<Incident>) {
        let mut lost = BTreeSet::new();
        self.failures.retain(|deed| {
            let server = deed.failure.as_ref().and_then(|(server, _)| server.as_ref());
            let explains = |incident: &Incident| {
                let meets = deed.begun <= incident.over && deed.ended >= incident.begun;
                meets
                    && (incident.replica.is_none() || server.is_none() || server == incident.replica.as_ref())
            };
            let mut explaining = (0..incidents.len()).filter(|at| explains(&incidents[*at]));
            !explaining.any(|at| lost.insert((deed.worker.clone(), at)))
        });
        self.excused += lost.len();
        self.incidents.extend(incidents);
    }

    fn add(&mut self, other: Self) {
        for (worker, count) in other.done {
            *self.done.entry(worker).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.excused += other.excused;
        self.incidents.extend(other.incidents);
    }

    fn print(&self) {
        for (worker, count) in &self.done {
            let failed = self.failures.iter().filter(|deed| deed.worker == *worker).count();
            println!("{worker:<28} {count:>8} done, {failed} failed");
        }
        println!("{} killed, {} connections lost with them", self.incidents.len(), self.excused);
        for deed in self.failures.iter().take(20) {
            println!("failed: {deed:?}");
            // The last one before, for whoever looks for a reason.
            let before = self.incidents.iter().rev().find(|incident| incident.begun <= deed.ended);
            println!("    after {before:?}");
        }
    }
}
