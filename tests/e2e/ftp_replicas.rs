//! Two FTP servers behind one port: every session, its data connections included, is with one of them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

use crate::stand::{Said, Stand, finish, is_root, run, spawn, tool, wait_for};

/// The control port; no other one that is published is at an address of the stand's own.
/// How long the other end of a connection may be silent.
const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 2121;
const LOGIN: &str = "ftpuser:word";
const BIG: usize = 4_000_000;
/// More than all buffers on the way take.
const HUGE: usize = 64_000_000;

fn file(port6: u16) -> String {
    // One pool for both families: a server is told of one.
    let pool = format!("{}-{}", port6 + 1, port6 + 63);
    format!(
        r#"name = "ftp"
[services.ftp]
build = "bundles/ftp"
replicas = 2
environment = {{ FTP_USER = "ftpuser" }}
secrets = ["ftp_password"]
ports = [
  {{ target = 21, published = {PORT}, host_ip = "127.0.0.1", protocol = "ftp", passive = "{pool}" }},
  {{ target = 21, published = {port6}, host_ip = "::1", protocol = "ftp", passive = "{pool}" }},
]
healthcheck = {{ test = ["TCP", "21"], interval = "1s", start_period = "30s", start_interval = "50ms" }}
[networks.default]
enable_ipv6 = true
[secrets]
ftp_password = {{ environment = "FTP_PASSWORD" }}
"#
    )
}

/// The first of 64 ports of `[::1]` in a row that are free, below those that clients get.
fn free_ports() -> u16 {
    let start = 20_000 + u16::try_from(std::process::id() % 180).unwrap() * 64;
    let free = |first: &u16| (*first..first + 64).all(|port| TcpListener::bind(("::1", port)).is_ok());
    (start..32_000).step_by(64).find(free).expect("free ports")
}

fn up(stand: &Stand) {
    stand.say(["up", "-d", "--wait", "--build", "--base", "debian"]).ok();
    for replica in ["1", "2"] {
        let files = "cd /var/www/html && hostname > who && touch only-$(hostname) && mkdir same \
                     && for i in $(seq 30); do seq $i 3000 > same/$i; done \
                     && yes $(hostname) | head -c 64000000 > huge && head -c 4000000 huge > big && chown -R www-data: .";
        stand.say(["exec", "--index", replica, "ftp", "sh", "-c", files]).ok();
    }
}

/// `big` or `huge` of a replica.
fn content(replica: &str, size: usize) -> Vec<u8> {
    format!("{replica}\n").bytes().cycle().take(size).collect()
}

/// One session of curl's: `who`, the directory, and `big`, which becomes `name` in the stand's directory.
fn curl(stand: &Stand, site: &str, name: &str, options: &[&str]) -> Command {
    let mut curl = tool("curl", ["--disable", "--silent", "--show-error", "--max-time", "60", "--insecure"]);
    curl.args(["--user", LOGIN]).args(options);
    for (path, output) in [("who", "-".into()), ("", "-".into()), ("big", stand.directory.join(name))] {
        curl.arg(format!("{site}/{path}")).arg("--output").arg(output);
    }
    curl
}

/// Which replica a session was with; all that it got must be of that one.
#[track_caller]
fn replica(said: &Said) -> String {
    let text = said.ok();
    let name = text.lines().next().unwrap_or_default().to_owned();
    let only: Vec<&str> = text.lines().filter(|line| line.contains("only-")).collect();
    assert!(!name.is_empty() && only.len() == 1 && only[0].ends_with(&format!("only-{name}")), "{text}");
    name
}

fn both() -> BTreeSet<String> {
    ["ftp", "ftp-2"].map(str::to_owned).into()
}

fn lftp(stand: &Stand, site: &str, settings: &str, lines: &str) -> Command {
    let mut lftp = tool("lftp", ["--norc", "-c"]);
    lftp.current_dir(&stand.directory).env("HOME", &stand.directory).env("LFTP_HOME", &stand.directory);
    let (user, password) = LOGIN.split_once(':').unwrap();
    lftp.arg(format!(
        "set cmd:fail-exit yes; set net:max-retries 1; set net:timeout 20; set ssl:verify-certificate no; \
         {settings}; open -u {user},{password} {site}; {lines}"
    ));
    lftp
}

fn tls(on: bool) -> String {
    format!("set ftp:ssl-allow {on}; set ftp:ssl-force {on}; set ftp:ssl-protect-data {on}")
}

#[test]
fn two_ftp_servers() {
    let port6 = free_ports();
    let mut stand = Stand::of_stack("ftp", &file(port6));
    fs::write(stand.directory.join(".env"), "FTP_PASSWORD=word\n").unwrap();
    stand.share_images();
    up(&stand);
    let (v4, v6) = (format!("ftp://{}:{PORT}", stand.address), format!("ftp://[::1]:{port6}"));

    every_mode_stays_with_one_replica(&stand, &[&v4, &v6]);
    many_sessions_of_one_client(&stand, &v4);
    misbehaviour_ends_no_more_than_a_session(&stand);
    what_is_said_at_last_is_heard(&stand);
    an_interrupted_transfer_leaves_a_usable_session(&stand);
    one_that_dies_takes_its_own_sessions_only(&stand, &v4);
    stand.say(["down", "-v"]).ok();
}

/// From this machine's loopback, so that servers see the gateway.
fn every_mode_stays_with_one_replica(stand: &Stand, sites: &[&str]) {
    let encrypted = ["--ssl-reqd"];
    let modes: [&[&str]; 4] =
        [&["--ftp-pasv"], &["--disable-epsv"], &["--ftp-port", "-"], &["--ftp-port", "-", "--disable-eprt"]];
    for site in sites {
        for mode in modes {
            let active = mode.contains(&"-");
            if mode.contains(&"--disable-eprt") && site.contains('[') {
                continue;
            }
            for secured in [&[][..], &encrypted] {
                // Encrypted, a server is told the client's own loopback, which it does not see it come from.
                if active && !secured.is_empty() {
                    continue;
                }
                let options = [mode, secured].concat();
                let seen: BTreeSet<String> = (0..2)
                    .map(|_| {
                        let name = replica(&run(&mut curl(stand, site, "big", &options), &[]));
                        assert!(fs::read(stand.directory.join("big")).unwrap() == content(&name, BIG));
                        name
                    })
                    .collect();
                assert_eq!(seen, both(), "{site} {options:?}");
            }
        }
        if !site.contains('[') {
            let options = ["--ssl-reqd", "--disable-epsv", "--verbose"];
            let said = run(&mut curl(stand, site, "big", &options), &[]);
            let announced = format!("227 Entering Passive Mode ({},", stand.address.replace('.', ","));
            assert!(said.err.contains(&announced), "no `{announced}` in {}", said.err);
        }
        for (passive, secured) in [(true, false), (true, true), (false, false)] {
            let settings = format!("set ftp:passive-mode {passive}; {}", tls(secured));
            let seen: BTreeSet<String> = (0..2)
                .map(|_| replica(&run(&mut lftp(stand, site, &settings, "cat who; cls -1"), &[])))
                .collect();
            assert_eq!(seen, both(), "{site} {settings}");
        }
    }
}

fn many_sessions_of_one_client(stand: &Stand, site: &str) {
    for options in [&["--disable-epsv"][..], &["--ssl-reqd"], &["--ftp-port", "-"]] {
        let start = |at| spawn(&mut curl(stand, site, &format!("big-{at}"), options));
        let sessions: Vec<Child> = (0..20).map(start).collect();
        let mut seen = BTreeSet::new();
        for (at, session) in sessions.into_iter().enumerate() {
            let name = replica(&finish("curl", session));
            assert!(
                fs::read(stand.directory.join(format!("big-{at}"))).unwrap() == content(&name, BIG),
                "{name}"
            );
            seen.insert(name);
        }
        assert_eq!(seen, both(), "{options:?}");
    }
    for (secured, passive) in [(false, true), (true, true), (false, false)] {
        let settings = format!("set ftp:passive-mode {passive}; {}", tls(secured));
        run(&mut lftp(stand, site, &settings, "mirror --parallel=8 same mirrored"), &[]).ok();
        let mirrored = stand.directory.join("mirrored");
        for at in 1..=30 {
            let wanted: String = (at..=3000).map(|line| format!("{line}\n")).collect();
            assert!(fs::read_to_string(mirrored.join(at.to_string())).unwrap() == wanted, "same/{at}");
        }
        fs::remove_dir_all(mirrored).unwrap();
    }
}

/// A control connection by hand.
struct Control(BufReader<TcpStream>);

impl Control {
    fn open(stand: &Stand) -> Self {
        let stream = TcpStream::connect((&*stand.address, PORT)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut control = Self(BufReader::new(stream));
        assert!(control.line().starts_with("220"));
        control
    }

    fn logged_in(stand: &Stand) -> Self {
        let mut control = Self::open(stand);
        let (user, password) = LOGIN.split_once(':').unwrap();
        control.ask(&format!("USER {user}"), "331");
        control.ask(&format!("PASS {password}"), "230");
        control
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// A line, without its end; empty at the end of the connection.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).ok();
        line.trim_end().to_owned()
    }

    #[track_caller]
    fn ask(&mut self, command: &str, code: &str) -> String {
        self.send(format!("{command}\r\n"));
        let line = self.line();
        assert!(line.starts_with(code), "{command}: {line}");
        line
    }

    /// The data connection of passive mode.
    fn passive(&mut self) -> TcpStream {
        let reply = self.ask("PASV", "227");
        let numbers: Vec<&str> =
            reply.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()).collect();
        let number = |at: usize| numbers[at].parse::<u16>().unwrap();
        let host = numbers[1..5].join(".");
        let stream = TcpStream::connect((&*host, number(5) * 256 + number(6))).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn misbehaviour_ends_no_more_than_a_session(stand: &Stand) {
    let mut witness = Control::logged_in(stand);
    let mut bounce = Control::logged_in(stand);
    bounce.ask("PORT 192,0,2,1,200,1", "500");
    bounce.ask(&format!("PORT {},0,25", stand.address.replace('.', ",")), "500");
    bounce.ask("EPRT |1|192.0.2.1|51201|", "500");
    bounce.ask("PORT 1,2,3", "501");
    for nonsense in ["\u{1}\u{2}", " PORT 192,0,2,1,200,1", "NOOP\rPORT 192,0,2,1,200,1", ""] {
        bounce.ask(nonsense, "500");
    }
    bounce.ask("NOOP", "200");
    wait_for("the bounces in the events", Duration::from_secs(5), || {
        let events = stand.say(["events", "--no-follow"]).ok();
        let told = events.matches("asked for a data connection to 192.0.2.1:51201").count();
        (told == 2).then_some(())
    });
    let mut long = Control::logged_in(stand);
    long.send("x".repeat(6000));
    assert_eq!((&*long.line(), &*long.line()), ("500 Line too long.", ""));
    let mut insertion = Control::open(stand);
    insertion.ask("AUTH TLS", "234");
    insertion.send("NOOP\r\n");
    assert_eq!(insertion.line(), "");
    for mut other in [witness, bounce] {
        other.ask("NOOP", "200");
    }
    witness = Control::logged_in(stand);
    witness.ask("QUIT", "221");
    assert_eq!(witness.line(), "");
}

/// Commands in one piece, and the end of the client's side right behind them.
fn what_is_said_at_last_is_heard(stand: &Stand) {
    for _ in 0..20 {
        let mut control = Control::open(stand);
        let (user, password) = LOGIN.split_once(':').unwrap();
        control.send(format!("USER {user}\r\nPASS {password}\r\nPASV\r\nNOOP\r\nQUIT\r\n"));
        control.0.get_mut().shutdown(Shutdown::Write).unwrap();
        let mut all = String::new();
        control.0.read_to_string(&mut all).unwrap();
        let codes: Vec<&str> = all.lines().filter_map(|line| line.get(..3)).collect();
        assert_eq!(codes, ["331", "230", "227", "200", "221"], "{all}");
    }
}

fn an_interrupted_transfer_leaves_a_usable_session(stand: &Stand) {
    let mut control = Control::logged_in(stand);
    let mut data = control.passive();
    control.ask("RETR big", "150");
    data.read_exact(&mut [0; 1000]).unwrap();
    // As lftp does: telnet's signals, and no more data.
    control.send(b"\xff\xf4\xff\xf2ABOR\r\n");
    drop(data);
    let first = control.line();
    assert!(first.starts_with("426") || first.starts_with("226"), "{first}");
    assert!(control.line().starts_with("225"));
    let mut data = control.passive();
    control.ask("RETR who", "150");
    let mut who = String::new();
    data.read_to_string(&mut who).unwrap();
    assert!(both().contains(who.trim()), "{who}");
    assert!(control.line().starts_with("226"));
}

fn one_that_dies_takes_its_own_sessions_only(stand: &Stand, site: &str) {
    // Slowly, in one session each: `who` tells with whom.
    let start = |at: usize| {
        let mut curl = tool("curl", ["--disable", "--silent", "--limit-rate", "8M", "--user", LOGIN]);
        for file in ["who", "huge"] {
            let to = stand.directory.join(format!("dying-{file}-{at}"));
            fs::remove_file(&to).ok();
            curl.arg(format!("{site}/{file}")).arg("--output").arg(to);
        }
        spawn(&mut curl)
    };
    let sessions: Vec<Child> = (0..4).map(start).collect();
    let path = |file: &str, at: usize| stand.directory.join(format!("dying-{file}-{at}"));
    let with: Vec<String> = (0..4)
        .map(|at| {
            wait_for("a transfer", Duration::from_secs(20), || {
                let begun = fs::metadata(path("huge", at)).is_ok_and(|file| file.len() > 0);
                begun.then(|| fs::read_to_string(path("who", at)).unwrap().trim().to_owned())
            })
        })
        .collect();
    assert_eq!(with.iter().cloned().collect::<BTreeSet<_>>(), both());
    // Not by way of PID 1, which would have time to say goodbye.
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(&stand.say(["ps", "--format", "json"]).ok()).unwrap();
    let dying = rows.iter().find(|row| row["container"] == "ftp-2").unwrap();
    run(&mut tool("kill", ["-KILL", &dying["pid"].to_string()]), &[]).ok();
    for (at, (session, with)) in sessions.into_iter().zip(with).enumerate() {
        let ended = finish("curl", session);
        let whole = fs::read(path("huge", at)).unwrap() == content(&with, HUGE);
        assert_eq!(
            (ended.code == Some(0), whole),
            (with == "ftp", with == "ftp"),
            "session {at} with {with}"
        );
    }
    for _ in 0..4 {
        assert_eq!(replica(&run(&mut curl(stand, site, "big", &["--ftp-pasv"]), &[])), "ftp");
    }
    stand.say(["start", "ftp-2"]).ok();
    wait_for("both", Duration::from_secs(20), || {
        let said = run(&mut tool("curl", ["--disable", "-sS", "--user", LOGIN, &format!("{site}/who")]), &[]);
        (said.text() == "ftp-2").then_some(())
    });
}

/// Clients on another machine: servers see them under their own addresses.
#[test]
fn two_ftp_servers_and_a_client_elsewhere() {
    // A namespace of an ordinary user's has no other ids to give to the stack's containers.
    if !is_root() {
        println!("skipped: two_ftp_servers_and_a_client_elsewhere: it needs root");
        return;
    }
    // The stack runs in one network namespace, the client is in another one.
    let elsewhere = Elsewhere::new();
    let mut stand = Stand::of_stack("ftp-far", &file(21_000).replace("\"::1\"", "\"::\""));
    fs::write(stand.directory.join(".env"), "FTP_PASSWORD=word\n").unwrap();
    stand.share_images();
    let text = fs::read_to_string(stand.directory.join("stack.toml")).unwrap();
    fs::write(stand.directory.join("stack.toml"), text.replace(&stand.address, "0.0.0.0")).unwrap();
    // The packages come from where the test was started; in there is nobody but the client.
    stand.say(["build", "--base", "debian"]).ok();
    stand.within = elsewhere.stack_side();
    up(&stand);
    for (site, client) in
        [("ftp://198.51.100.1:2121", " 198.51.100.9 "), ("ftp://[2001:db8::1]:21000", " 2001:db8::9 ")]
    {
        for (passive, secured) in [(true, false), (true, true), (false, false), (false, true)] {
            let settings = format!("set ftp:passive-mode {passive}; {}", tls(secured));
            let session = || elsewhere.run(&lftp(&stand, site, &settings, "cat who; cls -1"));
            let seen: BTreeSet<String> = (0..2).map(|_| replica(&session())).collect();
            assert_eq!(seen, both(), "{site} {settings}");
        }
        let log = stand.say(["logs", "ftp-2"]).ok();
        assert!(log.contains(client), "no {client} in {log}");
    }
    // What comes from port 20 with a server on 21 comes from 2120 here, and from 20999.
    for (at, port, wanted) in
        [("198.51.100.1", 2121, "198.51.100.1:2120"), ("2001:db8::1", 21000, "[2001:db8::1]:20999")]
    {
        let said = elsewhere.run(&tool("perl", ["-e", ACTIVE, at, &port.to_string()]));
        assert_eq!(said.ok(), [wanted; 3].join("\n"));
    }
    stand.say(["down", "-v"]).ok();
}

/// A client for active mode: three downloads to one port, of which it prints where they come from.
const ACTIVE: &str = r#"
use strict; use warnings; use IO::Socket::IP;
my ($host, $port) = @ARGV;
my $control = IO::Socket::IP->new(PeerHost => $host, PeerPort => $port) or die "connect: $@";
sub answer { while (my $line = <$control>) { return $line if $line =~ /^\d{3} / } die "closed" }
sub ask { my ($line, $code) = @_; print $control "$line\r\n"; my $got = answer(); $got =~ /^$code/ or die "$line: $got" }
answer();
ask('USER ftpuser', 331); ask('PASS word', 230);
my $own = $control->sockhost;
my $data = IO::Socket::IP->new(Listen => 1, LocalHost => $own, Timeout => 10) or die "listen: $@";
for (1 .. 3) {
    ask('EPRT |' . ($own =~ /:/ ? 2 : 1) . "|$own|" . $data->sockport . '|', 200);
    ask('RETR who', 150);
    my $connection = $data->accept or die "nobody connects: $@";
    my ($from, $at) = ($connection->peerport, $connection->peerhost);
    my $who = join '', <$connection>;
    $who =~ /^ftp/ or die "got `$who'";
    close $connection;
    answer() =~ /^226/ or die 'not complete';
    print $at =~ /:/ ? "[$at]:$from\n" : "$at:$from\n";
}
"#;

/// Two network namespaces with a link between them.
struct Elsewhere {
    stack: Child,
    client: Child,
}

impl Elsewhere {
    fn new() -> Self {
        let namespace = || {
            let mut holder = spawn(&mut tool("unshare", ["--net", "sh", "-c", "echo; exec cat"]));
            // By then it has its namespace.
            holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            holder
        };
        let pair = Self { stack: namespace(), client: namespace() };
        let address = |last: u8| {
            format!(
                "ip link set lo up; ip addr add 198.51.100.{last}/24 dev far; \
                 ip addr add 2001:db8::{last}/64 dev far nodad; ip link set far up"
            )
        };
        let link =
            format!("ip link add far type veth peer name far netns {}; {}", pair.client.id(), address(1));
        run(&mut enter(&pair.stack, &tool("sh", ["-e", "-c", &link])), &[]).ok();
        run(&mut enter(&pair.client, &tool("sh", ["-e", "-c", &address(9)])), &[]).ok();
        pair
    }

    /// What a command of the stack is to be prefixed with.
    fn stack_side(&self) -> Vec<String> {
        ["nsenter", "--net", "--target", &self.stack.id().to_string(), "--"].map(str::to_owned).into()
    }

    fn run(&self, command: &Command) -> Said {
        run(&mut enter(&self.client, command), &[])
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        for holder in [&mut self.stack, &mut self.client] {
            holder.kill().ok();
            holder.wait().ok();
        }
    }
}

/// The same command in the network namespace of a process.
fn enter(holder: &Child, command: &Command) -> Command {
    let mut entered = tool("nsenter", ["--net", "--target", &holder.id().to_string(), "--"]);
    entered.arg(command.get_program()).args(command.get_args());
    entered.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(directory) = command.get_current_dir() {
        entered.current_dir(directory);
    }
    entered
}
