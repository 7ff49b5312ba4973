//! The five services of `stack.toml`, built on Debian, used by real clients: a browser (curl), lftp, openssl.
//!
//! `INCEPTION_BASE_DIR` should name a directory with a Debian base, or `mmdebstrap` makes one. With
//! `INCEPTION_DATA_DIR` the images in it are used, and kept. `INCEPTION_RUN` is the command to test,
//! `INCEPTION_REPO` the repository, `INCEPTION_TEST_DIR` a directory for what the test makes (short; /tmp).
#![allow(clippy::unwrap_used)]

mod browser;
#[path = "../integration/client.rs"]
#[allow(dead_code)]
mod client;
mod ftp;
mod ftp_replicas;
mod layers;
mod outside;
mod proxy;
mod stand;
mod traces;

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use browser::{Browser, PORT};
use stand::{Said, Stand, run, spawn, tool, wait_for};
use traces::{Before, Watch};

const SERVICES: [&str; 5] = ["ftp", "mariadb", "nginx", "redis", "wordpress"];
const POST: &str = "Written through the web";

/// The whole story, in order: most of its steps need what the ones before left.
#[test]
fn five_services() {
    let stand = Stand::of_the_five_services();
    let mut before = Before::now();
    let watch = Watch::start(&stand.secrets());
    let browser = Browser::new(&stand);
    let mut steps = Steps::default();

    steps.take("build", || drop(stand.say(["build", "--base", "debian"]).ok()));
    steps.take("up with fresh volumes, to the first page", || up(&stand, &browser));
    before.note_processes(&stand);
    steps.take("all are healthy", || all_are_healthy(&stand));
    steps.take("the title", || the_title(&stand, &browser));
    steps.take("TLS versions", || tls_versions(&stand));
    steps.take("log in and publish", || publish(&stand, &browser));
    steps.take("the object cache", || object_cache(&stand, &browser));
    steps.take("without Redis", || without_redis(&stand, &browser));
    steps.take("FTP uploads", || ftp::uploads(&stand, &browser));
    steps.take("FTP resumes", || ftp::resumes(&stand, &browser));
    steps.take("FTP in active mode", || ftp::active_mode(&stand));
    steps.take("only the published ports", || only_the_published_ports(&stand, &before));
    steps.take("MariaDB is out of nginx's reach", || out_of_reach(&stand));
    steps.take("MariaDB's users", || database_users(&stand));
    steps.take("no password is shown", || no_password_is_shown(&stand));
    steps.take("a restart of MariaDB", || restart_goes_unnoticed(&stand, &browser));
    steps.take("a second up joins", || second_up_joins(&stand));
    steps.take("another password of Redis", || changed_secret(&stand, &browser));
    before.note_processes(&stand);

    let certificate = certificate(&stand);
    steps.take("down", || drop(stand.say(["down"]).ok()));
    assert_eq!(browser.get("/").code, 0, "somebody still answers");
    steps.take("up again, to the first page", || up(&stand, &browser));
    before.note_processes(&stand);
    assert!(browser.get("/").ok().text().contains(POST), "the post is lost");
    assert!(browser.get("/photo.bin").ok().body.len() == 3_000_000, "the upload is lost");
    assert_eq!(certificate, self::certificate(&stand), "another certificate");

    steps.take("down -v", || drop(stand.say(["down", "-v"]).ok()));
    before.nothing_is_left(&stand);
    steps.take("up after down -v, to the first page", || up(&stand, &browser));
    before.note_processes(&stand);
    assert!(!browser.get("/").ok().text().contains(POST), "the post is still there");
    assert_eq!(browser.get("/photo.bin").code, 404, "the upload is still there");
    assert_ne!(certificate, self::certificate(&stand), "the same certificate");

    steps.take("down -v of it all", || drop(stand.say(["down", "-v"]).ok()));
    before.nothing_is_left(&stand);
    watch.end();
}

/// Says what is being done, and how long it took.
#[derive(Debug, Default)]
struct Steps(usize);

impl Steps {
    fn take(&mut self, what: &str, step: impl FnOnce()) {
        self.0 += 1;
        let started = Instant::now();
        step();
        println!("e2e: {:2} {what}: {:.2} s", self.0, started.elapsed().as_secs_f64());
    }
}

/// Brings the stack up, until the front page is there.
#[track_caller]
fn up(stand: &Stand, browser: &Browser) {
    stand.say(["up", "-d", "--wait", "--base", "debian"]).ok();
    browser.get("/").ok();
}

fn all_are_healthy(stand: &Stand) {
    let services = stand.services();
    assert_eq!(services.keys().map(String::as_str).collect::<Vec<_>>(), SERVICES);
    for (name, service) in &services {
        assert!(service.state == "running" && service.health == "healthy", "{name}: {service:?}");
        assert!(service.pid.is_some(), "{name}: {service:?}");
    }
    let ports: Vec<_> = services.values().map(|service| service.ports.len()).collect();
    assert_eq!(ports, [1, 0, 1, 0, 0], "{services:?}");
}

fn the_title(stand: &Stand, browser: &Browser) {
    let front = browser.get("/").ok();
    let title = &stand.settings["WP_TITLE"];
    assert!(front.title().starts_with(&**title), "`{}` does not begin with `{title}`", front.title());
    assert_eq!(browser.get("/wp-config.php").code, 403);
    // A static file, which nginx serves itself.
    assert!(browser.get("/wp-includes/js/wp-emoji.js").ok().took < Duration::from_secs(1));
}

/// A TLS handshake of one version by a client which would take any, at security level 0.
fn handshake(server: &str, version: &str) -> Said {
    let mut client = tool("openssl", ["s_client", "-connect", server, "-brief", version]);
    run(client.args(["-cipher", "ALL:@SECLEVEL=0"]), &[])
}

fn tls_versions(stand: &Stand) {
    let nginx = format!("{}:{PORT}", stand.address);
    for (option, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let said = handshake(&nginx, option);
        said.ok();
        assert!(said.err.contains(name), "{}", said.err);
    }
    for option in ["-tls1", "-tls1_1"] {
        let said = handshake(&nginx, option).fails();
        assert!(said.contains("alert protocol version"), "refused for another reason: {said}");
    }

    // The same client does speak TLS 1.1, to a server which does.
    let (key, certificate) = (stand.directory.join("key.pem"), stand.directory.join("cert.pem"));
    let mut made =
        tool("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=old", "-days", "2"]);
    run(made.arg("-keyout").arg(&key).arg("-out").arg(&certificate), &[]).ok();
    let old = format!("{}:9443", stand.address);
    let mut server = tool("openssl", ["s_server", "-accept", &old, "-cipher", "ALL:@SECLEVEL=0", "-quiet"]);
    let mut server = spawn(server.arg("-key").arg(&key).arg("-cert").arg(&certificate));
    wait_for("old server", Duration::from_secs(5), || TcpStream::connect(&old).ok());
    let said = handshake(&old, "-tls1_1");
    server.kill().unwrap();
    server.wait().unwrap();
    said.ok();
    assert!(said.err.contains("TLSv1.1"), "{}", said.err);
}

/// Logs in as a browser does, and gets what the site's editor needs to write.
fn log_in(browser: &Browser, user: &str, password: &str) -> Option<String> {
    browser.forget();
    browser.get("/wp-login.php").ok();
    let fields = [("log", user), ("pwd", password), ("testcookie", "1"), ("wp-submit", "Log In")];
    let answer = browser.submit("/wp-login.php", &fields);
    (answer.code == 302 && answer.redirect.ends_with("/wp-admin/"))
        .then(|| browser.get("/wp-admin/admin-ajax.php?action=rest-nonce").ok().text())
}

fn publish(stand: &Stand, browser: &Browser) {
    let setting = |name: &str| stand.settings[name].as_str();
    assert_eq!(browser.get("/wp-admin/").code, 302, "without logging in");
    assert!(log_in(browser, setting("WP_ADMIN_USER"), "wrong").is_none());
    let nonce = log_in(browser, setting("WP_ADMIN_USER"), setting("WP_ADMIN_PASSWORD")).expect("log in");
    let dashboard = browser.get("/wp-admin/").ok();
    assert!(dashboard.title().contains(setting("WP_TITLE")), "{}", dashboard.title());

    let post = json!({ "title": POST, "content": "by a test", "status": "publish" });
    let made = browser.call("/wp-json/wp/v2/posts", &nonce, Some(&post));
    assert_eq!(made.code, 201, "{}", made.text());
    let link =
        serde_json::from_slice::<serde_json::Value>(&made.body).unwrap()["link"].as_str().unwrap().to_owned();

    let users = browser.call("/wp-json/wp/v2/users?context=edit", &nonce, None).json();
    let roles: BTreeSet<_> = users
        .as_array()
        .unwrap()
        .iter()
        .map(|u| (u["username"].to_string(), u["roles"][0].to_string()))
        .collect();
    let expected = [("WP_ADMIN_USER", "administrator"), ("WP_USER", "author")];
    assert_eq!(
        roles,
        expected.map(|(name, role)| (json!(setting(name)).to_string(), json!(role).to_string())).into()
    );
    assert!(!setting("WP_ADMIN_USER").to_lowercase().contains("admin"));

    // Everybody sees it, under the address that the site gave.
    browser.forget();
    assert!(browser.get("/").ok().text().contains(POST), "not on the front page");
    assert!(browser.get(&link).ok().title().contains(POST), "not at {link}");
    let author = log_in(browser, setting("WP_USER"), setting("WP_USER_PASSWORD"));
    assert!(author.is_some(), "the author cannot log in");
    browser.forget();
}

const REDIS: &str = "REDISCLI_AUTH=$(cat /run/secrets/redis_password) redis-cli";

fn keys(stand: &Stand) -> u64 {
    stand.exec("redis", &format!("{REDIS} dbsize")).ok().parse().unwrap()
}

fn object_cache(stand: &Stand, browser: &Browser) {
    assert!(keys(stand) > 0, "nothing is cached");
    stand.exec("redis", &format!("{REDIS} flushall")).ok();
    let empty = keys(stand);
    browser.get("/").ok();
    let one = keys(stand);
    assert!(one > empty, "a page load added no keys: {empty}, then {one}");
    browser.get("/?s=something+never+looked+for").ok();
    assert!(keys(stand) > one, "a second page added no keys");
    let open = stand.exec("redis", "redis-cli dbsize").text();
    assert!(open.contains("NOAUTH"), "no password is needed: {open}");
}

fn without_redis(stand: &Stand, browser: &Browser) {
    stand.say(["stop", "redis"]).ok();
    assert_eq!(stand.services()["redis"].state, "exited");
    for _ in 0..3 {
        let page = browser.get("/").ok();
        assert!(page.text().contains(POST));
        assert!(page.took < Duration::from_secs(3), "it waits for Redis: {:?}", page.took);
    }
    stand.say(["start", "redis"]).ok();
    stand.wait_for_health("redis");
    // What the pages without it changed may be stale in it: it starts empty and fills again.
    wait_for("use of Redis", Duration::from_secs(20), || {
        browser.get("/").ok();
        (keys(stand) > 0).then_some(())
    });
}

/// Tries to connect from this machine.
fn connects(address: &str, port: u16) -> bool {
    let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok()
}

fn only_the_published_ports(stand: &Stand, before: &Before) {
    let published = before.published();
    let ours: BTreeSet<u16> =
        published.iter().filter(|(address, _)| *address == stand.address).map(|(_, port)| *port).collect();
    assert_eq!(ours, [2121, PORT].into_iter().chain(21100..=21110).collect());
    for port in [3306, 6379, 9000] {
        assert!(!published.iter().any(|(_, new)| *new == port), "{port} is open: {published:?}");
        assert!(!connects(&stand.address, port), "{port} is open");
    }
    assert!(connects(&stand.address, PORT) && connects(&stand.address, 2121));
}

/// The address of a service on its only network.
fn address(stand: &Stand, service: &str) -> String {
    let container: serde_json::Value = serde_json::from_str(&stand.say(["inspect", service]).ok()).unwrap();
    let addresses = container["addresses"].as_object().unwrap();
    assert_eq!(addresses.len(), 1, "{addresses:?}");
    addresses.values().next().unwrap().as_str().unwrap().to_owned()
}

/// Whether MariaDB answers there. It speaks first; somebody else's network may take any connection.
fn greets(address: &str) -> bool {
    let address: SocketAddr = format!("{address}:3306").parse().unwrap();
    let patience = Duration::from_secs(2);
    let Ok(mut stream) = TcpStream::connect_timeout(&address, patience) else { return false };
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut greeting = [0; 64];
    let length = stream.read(&mut greeting).unwrap_or(0);
    String::from_utf8_lossy(&greeting[..length]).contains("MariaDB")
}

fn out_of_reach(stand: &Stand) {
    let mariadb = address(stand, "mariadb");
    // That somebody takes the connection means nothing: MariaDB speaks first.
    let knock = |service: &str, host: &str| {
        let greeting = format!("head -c 5 < /dev/tcp/{host}/3306 | wc -c");
        stand.exec(service, &format!("test \"$(timeout 3 bash -c '{greeting}')\" = 5"))
    };
    // By those who may, to show that it would work.
    knock("wordpress", "mariadb").ok();
    knock("wordpress", &mariadb).ok();
    for service in ["nginx", "ftp"] {
        knock(service, &mariadb).fails();
        stand.exec(service, "getent hosts mariadb").fails();
        stand.exec(service, "getent hosts redis").fails();
    }
    stand.exec("nginx", "getent hosts wordpress").ok();
    assert!(!greets(&mariadb), "this machine can reach it");
}

fn database_users(stand: &Stand) {
    let sql = |secret: &str, options: &str, sql: &str| {
        let client = format!("mariadb --no-defaults -N {options} -e \"{sql}\"");
        stand.exec("mariadb", &format!("export MYSQL_PWD=$(cat /run/secrets/{secret}); {client}"))
    };
    let (root, ordinary) = ("mysql_root_password", "mysql_password");
    let socket = "--socket=/run/mysqld/mysqld.sock";
    assert_eq!(sql(root, socket, "select current_user()").ok(), "root@localhost");
    let refused = sql(root, "-h 127.0.0.1 --protocol=tcp -u root", "select 1").fails();
    assert!(refused.contains("ERROR 1045") || refused.contains("ERROR 1130"), "{refused}");
    let user = "-h 127.0.0.1 --protocol=tcp -u \"$MYSQL_USER\"";
    let databases = sql(ordinary, user, "show databases").ok();
    let own = stand.settings["MYSQL_DATABASE"].as_str();
    assert_eq!(databases.lines().collect::<BTreeSet<_>>(), ["information_schema", own].into());
    sql(ordinary, user, "select * from mysql.global_priv").fails();
    let from_elsewhere = "select user from mysql.global_priv where host <> 'localhost' and user <> 'PUBLIC'";
    assert_eq!(sql(root, socket, from_elsewhere).ok(), stand.settings["MYSQL_USER"]);
}

fn no_password_is_shown(stand: &Stand) {
    let secrets = stand.secrets();
    assert_eq!(secrets.len(), 6);
    let hides = |what: &str, said: Said| {
        said.ok();
        let text = format!("{}{}", said.text(), said.err);
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{what} shows a password");
    };
    hides("ps", stand.say(["ps", "--format", "json"]));
    hides("plan", stand.say(["plan", "--format", "json"]));
    hides("plan", stand.say(["plan"]));
    hides("logs", stand.say(["logs"]));
    for service in SERVICES {
        hides("inspect", stand.say(["inspect", service]));
        // The service's own processes: what it was started with.
        hides("environ", stand.exec(service, "cat /proc/1/environ /proc/1/cmdline; env"));
    }
    for kind in ["l", "layers", "images", "tags", "cache"] {
        let found = traces::files_with(stand, &stand.data.join(kind), &secrets);
        assert!(found.is_empty(), "{found:?}");
    }
    // The search would find them.
    assert!(!traces::files_with(stand, &stand.data.join("l"), &["becomes mariadbd".to_owned()]).is_empty());
    // For `run` and the like nothing is written where others could read it.
    let readable = run(Command::new("find").arg(&stand.runtime).args(["-perm", "/077", "-type", "f"]), &[]);
    assert_eq!(readable.text(), "");
}

fn restart_goes_unnoticed(stand: &Stand, browser: &Browser) {
    let pids = |stand: &Stand| stand.services().into_iter().map(|(name, service)| (name, service.pid));
    let before: Vec<_> = pids(stand).collect();
    stand.say(["restart", "mariadb"]).ok();
    let back = Instant::now();
    wait_for("page after the restart", Duration::from_secs(1), || {
        let page = browser.get("/");
        (page.code == 200 && page.text().contains(POST)).then_some(())
    });
    println!("e2e:    first page {:.2} s after the restart", back.elapsed().as_secs_f64());
    for ((name, new), (_, old)) in pids(stand).zip(before) {
        assert_eq!(new != old, name == "mariadb", "{name}: {old:?}, then {new:?}");
    }
    stand.wait_for_health("mariadb");
}

fn second_up_joins(stand: &Stand) {
    let before = stand.services();
    stand.say(["up", "-d", "--wait", "--base", "debian"]).ok();
    assert_eq!(stand.services(), before);
}

/// A secret that changed replaces the services that have it, and no others.
fn changed_secret(stand: &Stand, browser: &Browser) {
    let file = stand.directory.join(".env");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("REDIS_PASSWORD=", "REDIS_PASSWORD=another-")).unwrap();
    let before = stand.services();
    stand.say(["up", "-d", "--wait", "--base", "debian"]).ok();
    let after = stand.services();
    let replaced = after.keys().filter(|name| after[*name].pid != before[*name].pid);
    assert_eq!(replaced.map(String::as_str).collect::<Vec<_>>(), ["redis", "wordpress"]);
    stand.exec("redis", &format!("{REDIS} flushall")).ok();
    browser.get("/").ok();
    assert!(keys(stand) > 0, "the object cache is not in use");
}

/// The certificate that nginx shows.
fn certificate(stand: &Stand) -> String {
    let server = format!("{}:{PORT}", stand.address);
    let shown = run(&mut tool("openssl", ["s_client", "-connect", &server]), &[]).ok();
    run(&mut tool("openssl", ["x509", "-noout", "-fingerprint", "-sha256"]), shown.as_bytes()).ok()
}
