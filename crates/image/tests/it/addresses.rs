//! `ADD` of files from a server of the test's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::{Arc, Mutex};

use image::Digest;

use crate::places::{Archive, Place, delegated, gzip, list};

/// What the server has, and what it was asked: the status of each answer.
#[derive(Default)]
struct Files {
    files: BTreeMap<String, (Vec<u8>, String)>,
    answers: Vec<String>,
}

struct Server {
    address: String,
    files: Arc<Mutex<Files>>,
}

impl Server {
    fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files = Arc::new(Mutex::new(Files::default()));
        let shared = Arc::clone(&files);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &mut shared.lock().unwrap());
            }
        });
        Self { address, files }
    }

    fn put(&self, name: &str, body: &[u8], headers: &str) {
        self.files.lock().unwrap().files.insert(name.to_owned(), (body.to_vec(), headers.to_owned()));
    }

    fn redirect(&self, name: &str, to: &str) {
        self.put(name, b"", &format!("Location: {to}\r\n"));
    }

    fn answers(&self) -> Vec<String> {
        std::mem::take(&mut self.files.lock().unwrap().answers)
    }
}

fn answer(mut stream: TcpStream, files: &mut Files) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    let request = lines.next().unwrap();
    let asked: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let name = request.split(['/', ' ']).nth(2).unwrap_or_default();
    let (status, headers, body) = match files.files.get(name) {
        None => ("404 Not Found", String::new(), Vec::new()),
        Some((body, headers)) => {
            let same = asked.iter().any(|line| {
                let value = line.to_ascii_lowercase();
                let value =
                    value.strip_prefix("if-none-match: ").or(value.strip_prefix("if-modified-since: "));
                value.is_some_and(|value| headers.to_ascii_lowercase().contains(value))
            });
            if headers.starts_with("Location") {
                ("302 Found", headers.clone(), Vec::new())
            } else if same {
                ("304 Not Modified", String::new(), Vec::new())
            } else {
                ("200 OK", headers.clone(), body.clone())
            }
        }
    };
    files.answers.push(format!("{name} {status}"));
    let head =
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).ok();
}

#[test]
fn a_file_of_a_server_is_added() {
    if delegated("addresses::a_file_of_a_server_is_added") {
        return;
    }
    let (place, server) = (Place::new(), Server::start());
    place.base();
    let tar = gzip(&Archive::new().file("inside", b"x").finish());
    server.put("a%20file.tar.gz", &tar, "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
    let url = format!("{}/a%20file.tar.gz?query#part", server.address);
    server.put("a%20file.tar.gz?query", &tar, "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
    let add = |flags: &str, to: &str| {
        place.build(&format!("FROM base:1\nENV U={url}\nADD {flags} $U {to}\n")).image()
    };
    let image = add("", "/d/");
    let file = place.layer(&image, 0).join("d/a file.tar.gz");
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.uid()), (0o600, 784_111_777, 0));
    assert_eq!(fs::read(&file).unwrap(), tar);
    let image = add("--chmod=g+r", "/to/name");
    assert_eq!(fs::metadata(place.layer(&image, 0).join("to/name")).unwrap().mode() & 0o7777, 0o640);
    let image = add("--unpack", "/d");
    assert_eq!(fs::read(place.layer(&image, 0).join("d/inside")).unwrap(), b"x");
}

#[test]
fn what_a_server_sent_is_asked_for_once() {
    if delegated("addresses::what_a_server_sent_is_asked_for_once") {
        return;
    }
    let (place, server) = (Place::new(), Server::start());
    place.base();
    let url = format!("{}/f", server.address);
    server.put("f", b"one", "ETag: \"1\"\r\n");
    let build = |text: &str| place.build(&format!("FROM base:1\n{text} {url} /f\n"));
    let first = build("ADD").image();
    assert_eq!(server.answers(), ["f 200 OK"]);
    assert_eq!(build("ADD").image().id, first.id);
    assert_eq!(server.answers(), ["f 304 Not Modified"]);
    // The file is not kept: another layer asks again.
    build("ADD --chmod=644").image();
    assert_eq!(server.answers(), ["f 304 Not Modified", "f 200 OK"]);
    server.put("f", b"two", "ETag: \"2\"\r\n");
    let second = build("ADD").image();
    assert_eq!(fs::read(place.layer(&second, 0).join("f")).unwrap(), b"two");
    assert_eq!(server.answers(), ["f 200 OK"]);
    // With a checksum, nobody has to be asked.
    let checksum = format!("ADD --checksum={}", Digest::of(b"two"));
    assert_eq!(build(&checksum).image().layers, second.layers);
    assert_eq!(server.answers(), Vec::<String>::new());
    // What is known of an address goes with the rest of the build cache.
    let policy = image::PrunePolicy { all: true, ..image::PrunePolicy::default() };
    place.store.prune(&policy, false).unwrap();
    assert_eq!(list(&place.data().join("cache")), Vec::<String>::new());
}

#[test]
fn what_a_server_should_not_have_sent_is_refused() {
    if delegated("addresses::what_a_server_should_not_have_sent_is_refused") {
        return;
    }
    let (place, server) = (Place::new(), Server::start());
    place.base();
    server.put("f", b"evil", "");
    let sum = Digest::of(b"good");
    for (add, problem) in [
        (format!("--checksum={sum} {{}}/f /"), "was promised"),
        ("--checksum=md5:00 {}/f /".to_owned(), "only `sha256:` is known"),
        (format!("--checksum={} {{}}/f /", sum.hex()), "it begins with `sha256:`"),
        ("--checksum=sha256:0 {}/f /".to_owned(), "no SHA-256 digest"),
        (format!("--checksum={sum} {{}}/f {{}}/f /"), "for one source"),
        ("{}/none /".to_owned(), "404"),
        ("{}/ /d/".to_owned(), "names no file"),
        ("{}/f {}/f /file".to_owned(), "must end with `/`"),
    ] {
        server.put("", b"", "");
        let text = format!("FROM base:1\nADD {}\n", add.replace("{}", &server.address));
        let error = place.build(&text).error();
        assert!(error.contains(problem) && error.starts_with("Dockerfile:2:"), "{add}: {error}");
    }
    let error = place.build(&format!("FROM base:1\nCOPY {}/f /\n", server.address)).error();
    assert!(error.contains("COPY takes no address"), "{error}");
}

#[test]
fn a_repository_is_fetched_when_its_commit_is_new() {
    if delegated("addresses::a_repository_is_fetched_when_its_commit_is_new") {
        return;
    }
    let place = Place::new();
    place.base();
    let write = |path: &str, text: &str, mode: u32| {
        let path = place.outside().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    };
    write("main/file", "one", 0o600);
    write("main/dir/run", "x", 0o700);
    write("v1/file", "old", 0o644);
    let build = |add: &str| place.build(&format!("FROM base:1\n{add}\n"));
    let first = build("ADD https://example.org/a/b.git /src");
    assert_eq!(first.fetched.len(), 1);
    let image = first.image();
    let meta = |path: &str| fs::metadata(place.layer(&image, 0).join(path)).unwrap();
    let attributes = |path: &str| (meta(path).mode() & 0o7777, meta(path).mtime());
    assert_eq!(attributes("src/file"), (0o644, 784_111_777));
    assert_eq!(attributes("src/dir/run"), (0o755, 784_111_777));
    let again = build("ADD https://example.org/a/b.git /src");
    assert_eq!((again.fetched.len(), again.image().id), (0, image.id.clone()));

    let image = build("ADD --exclude=dir git@example.org:b#v1 https://example.org/b.git#:dir /d").image();
    let layer = place.layer(&image, 0);
    assert_eq!(
        (list(&layer.join("d")), fs::read(layer.join("d/file")).unwrap()),
        (vec!["file".to_owned(), "run".to_owned()], b"old".to_vec(),)
    );
    let commit = Digest::of(b"one");
    build(&format!("ADD --checksum={} https://example.org/b.git /c", &commit.hex()[..8])).image();
    for (add, problem) in [
        ("ADD --checksum=00000000 https://example.org/b.git /c", "but 00000000 was promised"),
        ("ADD https://example.org/b.git#none /c", "No such file"),
        ("ADD https://example.org/b.git#:none /c", "`none` is not in the build context"),
        ("COPY https://example.org/b.git /c", "COPY takes no address"),
    ] {
        let error = build(add).error();
        assert!(error.contains(problem), "{add}: {error}");
    }
    write("main/file", "two", 0o644);
    assert_eq!(build("ADD https://example.org/a/b.git /src").fetched.len(), 1);
}

#[test]
fn the_hosts_own_servers_are_for_the_stack_file_to_grant() {
    if delegated("addresses::the_hosts_own_servers_are_for_the_stack_file_to_grant") {
        return;
    }
    let (place, server) = (Place::new(), Server::start());
    place.base();
    server.put("f", b"of the host's alone", "");
    let build = |url: &str| {
        let dockerfile = format!("FROM base:1\nADD {url} /f\n");
        place.build_with(&dockerfile, |request| request.reaches_host = false).error()
    };
    let port = server.address.rsplit_once(':').unwrap().1;
    for host in ["127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]", "user:x@127.0.0.1"] {
        let error = build(&format!("http://{host}:{port}/f"));
        assert!(error.contains("is the host's own"), "{host}: {error}");
    }
    for repository in [format!("http://127.0.0.1:{port}/a.git"), "ssh://git@localhost/a".to_owned()] {
        let error = build(&repository);
        assert!(error.contains("is the host's own"), "{repository}: {error}");
    }
    // Nor is anybody else to lead there. An address of this machine that is not its loopback is a server outside.
    let outward = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        // Nothing is sent.
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let Ok(outward) = outward else {
        println!(
            "skipped: the_hosts_own_servers_are_for_the_stack_file_to_grant: no address but the loopback's"
        );
        return;
    };
    let elsewhere = Server::start_at(&outward.ip().to_string());
    elsewhere.redirect("to", &format!("{}/f", server.address));
    let error = build(&format!("{}/to", elsewhere.address));
    assert!(error.contains("only the host itself reaches"), "{error}");
    assert_eq!(elsewhere.answers(), ["to 302 Found"]);
    assert_eq!(server.answers(), Vec::<String>::new());
}
