//! `dashboard`, asked by a client that minds no manners; what a browser makes of it is in `browser`.

mod browser;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{DEADLINE, PatientPipe, Stack, exit_status, patient, until};

const TWO: &str = r#"
[services.web]
command = ["sh", "-c", "touch /tmp/up; exec sleep 1000"]
restart = "always"
depends_on = ["db"]
healthcheck = { test = ["CMD", "test", "-e", "/tmp/up"], interval = "50ms", retries = 1 }
stop_grace_period = "100ms"
[services.db]
command = ["sleep", "1000"]
stop_grace_period = "100ms"
"#;

/// `dashboard`, until it is dropped.
struct Dashboard {
    command: Child,
    address: SocketAddr,
    token: String,
}

impl Dashboard {
    #[track_caller]
    fn of(stack: &Stack) -> Self {
        Self::from(&mut stack.command(&["dashboard"]))
    }

    #[track_caller]
    fn from(command: &mut Command) -> Self {
        let mut command = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(PatientPipe(command.stdout.as_mut().unwrap())).read_line(&mut line).unwrap();
        let rest = line.strip_prefix("http://").unwrap_or_else(|| panic!("no address: `{line}`"));
        let (address, token) = rest.trim().split_once('/').unwrap();
        Self { address: address.parse().unwrap(), token: token.trim_end_matches('/').to_owned(), command }
    }

    fn connect(&self) -> TcpStream {
        patient(TcpStream::connect(self.address).unwrap())
    }

    /// Status and body of the answer to a request with these fields.
    #[track_caller]
    fn ask(&self, method: &str, path: &str, fields: &str) -> (u16, String) {
        let mut socket = self.connect();
        write!(socket, "{method} {path} HTTP/1.1\r\n{fields}\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let status = text.get(9..12).and_then(|status| status.parse().ok());
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status.unwrap_or_else(|| panic!("no answer: `{text}`")), body.unwrap_or_default())
    }

    /// What the page's buttons ask for.
    #[track_caller]
    fn act(&self, what: &str) -> (u16, String) {
        let fields = format!(
            "Host: {0}\r\nOrigin: http://{0}\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 0\r\nX-Inception-Token: {1}\r\n",
            self.address, self.token
        );
        self.ask("POST", &format!("/{}/{what}", self.token), &fields)
    }

    /// Asks for the feed. The status comes first.
    #[track_caller]
    fn feed(&self) -> (u16, Feed) {
        let mut socket = self.connect();
        write!(socket, "GET /{}/feed HTTP/1.1\r\nHost: {}\r\n\r\n", self.token, self.address).unwrap();
        let mut lines = BufReader::new(socket);
        let mut head = String::new();
        lines.read_line(&mut head).unwrap();
        (head[9..12].parse().unwrap(), Feed(lines))
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.command.kill().ok();
        self.command.wait().ok();
    }
}

/// The messages of a feed.
struct Feed(BufReader<TcpStream>);

impl Feed {
    /// The next message.
    #[track_caller]
    fn message(&mut self) -> (String, Value) {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the feed has ended");
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.trim().to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return (name, serde_json::from_str(data).unwrap());
            }
        }
    }

    /// The next message of this name in whose list something has what is wanted; that.
    #[track_caller]
    fn until(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        let mut others = BTreeMap::<String, usize>::new();
        while Instant::now() < end {
            let (told, value) = self.message();
            let list = if value.is_array() { value.as_array().unwrap().clone() } else { vec![value] };
            if let Some(found) = list.into_iter().find(|value| told == name && wanted(value)) {
                return found;
            }
            *others.entry(told).or_default() += 1;
        }
        panic!("no such `{name}` among {others:?}");
    }
}

fn is(service: &str, state: &str) -> impl Fn(&Value) -> bool {
    move |row| row["service"] == service && row["state"] == state
}

#[test]
fn who_does_not_come_from_the_page_gets_nothing() {
    let stack = Stack::new(TWO);
    stack.run(&["dashboard"]).fails(1, &["is not running"]);
    stack.up();
    stack.run(&["dashboard", "--listen", "0.0.0.0:0"]).fails(2, &["ssh -L"]);
    stack.run(&["dashboard", "--listen", "localhost"]).fails(2, &["127.0.0.1:8000"]);
    let dashboard = Dashboard::of(&stack);
    let taken = dashboard.address.to_string();
    stack.run(&["dashboard", "--listen", &taken]).fails(1, &["listen on", &taken, "in use"]);
    let (token, host) = (&dashboard.token, format!("Host: {}\r\n", dashboard.address));
    let page = format!("/{token}/");
    let (status, body) = dashboard.ask("GET", &page, &host);
    assert!(status == 200 && body.contains(&format!("<h1>{}</h1>", stack.name)), "{status} {body}");
    let from = |field: &str| dashboard.ask("GET", &page, &format!("{host}{field}\r\n")).0;
    assert_eq!(from("Origin: http://evil.example"), 403);
    assert_eq!(from("Sec-Fetch-Site: cross-site"), 403);
    assert_eq!(dashboard.ask("GET", &page, "").0, 403);
    assert_eq!(dashboard.ask("GET", &page, "Host: evil.example\r\n").0, 403);
    assert_eq!(dashboard.ask("GET", "/", &host).0, 403);
    let wrong = format!("/{}0/", &token[..token.len() - 1]);
    let other = if wrong == page { format!("/{}1/", &token[..token.len() - 1]) } else { wrong };
    assert_eq!(dashboard.ask("GET", &other, &host).0, 403);
    assert_eq!(dashboard.ask("GET", &format!("{other}feed"), &host).0, 403);
    // A form of another page could send this much, if it knew the address.
    assert_eq!(dashboard.ask("POST", &format!("{page}stop/db"), &host).0, 403);
    assert_eq!(dashboard.ask("GET", &format!("{page}stop/db"), &host).0, 405);
    assert_eq!(dashboard.ask("GET", &format!("{page}favicon.ico"), &host).0, 404);
    assert_eq!(
        dashboard.ask("POST", &format!("{page}stop/db"), &format!("{host}Content-Length: 5\r\n")).0,
        413
    );
    assert_eq!(dashboard.ask("GET", &format!("/{}", "x".repeat(20 << 10)), &host).0, 431);
    assert_eq!(dashboard.ask("\x16\x03\x01", "\0", &host).0, 400);
    assert_eq!(stack.row("db")["state"], "running");
}

#[test]
fn what_happens_arrives_and_buttons_take_effect() {
    let stack = Stack::new(TWO);
    stack.up();
    let mut dashboard = Dashboard::of(&stack);
    let (status, mut feed) = dashboard.feed();
    assert_eq!(status, 200);
    assert!(feed.message().1["host_memory"].as_u64() > Some(0));
    let topology = feed.until("topology", |_| true);
    let web = topology["services"].as_array().unwrap().iter().find(|node| node["name"] == "web").unwrap();
    assert!(web["needs"][0]["service"] == "db" && web["networks"][0] == "default", "{topology}");
    let reading = feed.until("readings", |row| row["service"] == "web" && row["health"] == "healthy");
    assert!(reading["usage"]["memory"]["bytes"].as_u64() > Some(0), "{reading}");

    assert_eq!(dashboard.act("stop/db"), (200, r#"{"error":null,"hint":null}"#.to_owned()));
    assert_eq!(stack.row("db")["state"], "exited");
    feed.until("readings", is("db", "exited"));
    assert_eq!(dashboard.act("start/db").0, 200);
    feed.until("readings", is("db", "running"));
    let pid = stack.pid("web");
    assert_eq!(dashboard.act("restart/web").0, 200);
    assert_ne!(stack.pid("web"), pid);
    let (status, body) = dashboard.act("stop/nothing");
    assert!(status == 409 && body.contains("no such service: `nothing`"), "{status} {body}");

    stack.wait("web", "health", "healthy");
    kill_process(Pid::from_raw(stack.pid("web")).unwrap(), Signal::KILL).unwrap();
    let ended = feed.until("events", |event| event["is_end"] == true && event["alarming"] == true);
    assert!(ended["container"] == "web" && ended["text"].as_str().unwrap().contains("signal 9"), "{ended}");
    stack.wait("web", "health", "healthy");
    stack.sh("web", "echo '<b>hello</b>' > /proc/1/fd/1");
    feed.until("lines", |line| line["text"] == "<b>hello</b>" && line["service"] == "web");
    // A page that comes later knows it too.
    let (_, mut later) = dashboard.feed();
    later.until("events", |event| *event == ended);
    later.until("lines", |line| line["text"] == "<b>hello</b>");

    stack.run(&["down"]).ok();
    feed.until("end", |_| true);
    let status = until("the end of `dashboard`", || dashboard.command.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn a_signal_ends_it_and_nothing_else() {
    let stack = Stack::new(TWO);
    stack.up();
    let mut dashboard = Dashboard::of(&stack);
    let (_, mut feed) = dashboard.feed();
    feed.until("readings", is("db", "running"));
    kill_process(Pid::from_child(&dashboard.command), Signal::INT).unwrap();
    let status = until("the end of `dashboard`", || dashboard.command.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));
    assert_eq!(stack.row("db")["state"], "running");
}

#[test]
fn the_browser_is_given_a_file_that_nobody_else_can_read() {
    let stack = Stack::new(TWO);
    stack.up();
    stack.write("bin/xdg-open", "#!/bin/sh\n[ $# = 1 ] && ln -s \"$1\" opened.new && mv opened.new opened\n");
    std::fs::set_permissions(stack.path("bin/xdg-open"), PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", stack.path("bin").display(), std::env::var("PATH").unwrap());
    let mut dashboard = Dashboard::from(stack.command(&["dashboard", "--open"]).env("PATH", path));
    let file = until("the browser", || std::fs::read_link(stack.path("opened")).ok());
    let link = format!("http://{}/{}/", dashboard.address, dashboard.token);
    assert!(std::fs::read_to_string(&file).unwrap().contains(&format!("url={link}\"")));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // A link that is followed comes from another site.
    let fields =
        format!("Host: {}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Dest: document\r\n", dashboard.address);
    assert_eq!(dashboard.ask("GET", &format!("/{}/", dashboard.token), &fields).0, 200);
    kill_process(Pid::from_child(&dashboard.command), Signal::TERM).unwrap();
    exit_status(&mut dashboard.command);
    assert!(!file.exists());
}

#[test]
fn a_slow_reader_holds_up_nobody_and_learns_what_it_missed() {
    let stack = Stack::new(TWO);
    stack.up();
    let dashboard = Dashboard::of(&stack);
    let (_, mut slow) = dashboard.feed();
    let (_, mut quick) = dashboard.feed();
    quick.until("readings", is("db", "running"));
    let quick = std::thread::spawn(move || {
        // Others go on, whatever the slow one does.
        quick.until("lines", |line| line["text"] == "the end");
        quick.until("readings", is("db", "running"));
    });
    // More than its socket, ours, and what is kept for it can hold: sockets on loopback grow to 10 MB together.
    let flood = "x=$(head -c 7000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 4000 ]; do echo $x; i=$((i + 1)); done";
    stack.sh("db", &format!("({flood}) > /proc/1/fd/1"));
    until("the end of the flood", || {
        stack.sh("db", "echo the end > /proc/1/fd/1");
        quick.is_finished().then_some(())
    });
    quick.join().unwrap();
    assert_eq!(dashboard.act("restart/web").0, 200);
    let missed = slow.until("missed", |_| true);
    assert!(missed.as_u64() > Some(0), "{missed}");
    // And it is told what happens from then on.
    slow.until("readings", is("db", "running"));
}

#[test]
fn a_thousand_tabs_and_silent_clients_leave_room() {
    let stack = Stack::new(TWO);
    stack.up();
    let dashboard = Dashboard::of(&stack);
    let (_, mut first) = dashboard.feed();
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..1000 {
        match dashboard.feed() {
            (200, feed) => open.push(feed),
            (503, _) => refused += 1,
            (status, _) => panic!("{status}"),
        }
    }
    assert!(open.len() >= 40 && refused >= 900, "{} open, {refused} refused", open.len());
    // Who does not know the token has nothing to ask for.
    let silent: Vec<TcpStream> = (0..200).map(|_| dashboard.connect()).collect();
    let host = format!("Host: {}\r\n", dashboard.address);
    assert_eq!(dashboard.ask("GET", &format!("/{}/", dashboard.token), &host).0, 200);
    assert_eq!(dashboard.act("restart/web").0, 200);
    first.until("events", |event| event["container"] == "web" && event["text"] == "stopping");
    open.pop().unwrap().until("readings", is("db", "running"));
    drop((silent, open));
    // Room is there again, as soon as it is known that they are gone.
    until("room", || Some(dashboard.feed()).filter(|(status, _)| *status == 200));
    kill_process(Pid::from_child(&dashboard.command), Signal::TERM).unwrap();
}
