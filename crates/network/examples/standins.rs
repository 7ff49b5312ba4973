//! Three small services that lose nothing, for `scripts/chaos`: one static program that runs in any tree.
//!
//! `standins db ADDRESS DIR`           a store: what it has said `ok` to is on the disk
//! `standins web ADDRESS DB`           posts by HTTP, kept in the store: 201 is said when the store has said `ok`
//! `standins ftp ADDRESS DIR`          files by FTP: 226 is said when they are on the disk
//!
//! The store is a file of lines, `KEY VALUE` in hexadecimal. A request is a line, too: `set KEY VALUE`, `get KEY`. The
//! web has `PUT` and `GET` of `/posts/KEY`, and `GET /resolve/NAME`, which says the addresses that a name has.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, Question, TYPE};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// How long anybody is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// A file or a post is no larger.
const LARGEST: u64 = 16 << 20;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["db", address, directory] => {
            let store = Arc::new(Mutex::new(Store::open(Path::new(directory))?));
            serve(address, move |stream| database(&stream, &store))
        }
        ["web", address, db] => {
            let db = db.to_owned();
            serve(address, move |stream| web(&stream, &db))
        }
        ["ftp", address, directory] => {
            let directory = PathBuf::from(directory);
            // What was not finished was not acknowledged.
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "part") {
                    fs::remove_file(path)?;
                }
            }
            serve(address, move |stream| files(&stream, &directory))
        }
        _ => Err("standins db ADDRESS DIR | web ADDRESS DB | ftp ADDRESS DIR".into()),
    }
}

/// A thread for each connection. What goes wrong on one is a line on standard output, if that takes it.
fn serve(address: &str, each: impl Fn(TcpStream) -> Outcome + Send + Sync + 'static) -> Outcome {
    let listener = TcpListener::bind(address)?;
    let each = Arc::new(each);
    loop {
        let (stream, from) = listener.accept()?;
        let each = Arc::clone(&each);
        thread::spawn(move || {
            let outcome =
                stream.set_read_timeout(Some(PATIENCE)).map_err(Into::into).and_then(|()| each(stream));
            if let Err(error) = outcome {
                say(&format!("{from}: {error}"));
            }
        });
    }
}

fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).ok();
}

struct Store {
    file: File,
    size: u64,
    values: HashMap<String, String>,
}

impl Store {
    fn open(directory: &Path) -> Outcome<Self> {
        let path = directory.join("log");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let text = fs::read_to_string(directory.join("log"))?;
        // A line without its end was not acknowledged.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        let pairs = text[..whole].lines().filter_map(|line| line.split_once(' '));
        let values = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        File::open(directory)?.sync_all()?;
        Ok(Self { file, size: whole as u64, values })
    }

    fn set(&mut self, key: &str, value: &str) -> std::io::Result<()> {
        let line = format!("{key} {value}\n");
        let written = self.file.write_all_at(line.as_bytes(), self.size).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.size += line.len() as u64;
        self.values.insert(key.to_owned(), value.to_owned());
        Ok(())
    }
}

fn database(mut stream: &TcpStream, store: &Mutex<Store>) -> Outcome {
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match line.split(' ').collect::<Vec<_>>()[..] {
            ["set", key, value] => match store.set(key, value) {
                Ok(()) => "ok".to_owned(),
                Err(error) => format!("error {error}"),
            },
            ["get", key] => store.values.get(key).map_or("none".to_owned(), |value| format!("value {value}")),
            _ => "error no such request".to_owned(),
        };
        drop(store);
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}

/// One request; the connection is closed after it.
fn web(mut stream: &TcpStream, db: &str) -> Outcome {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let method = method.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<u64>()?;
        }
    }
    let mut body = Vec::new();
    reader.take(length.min(LARGEST)).read_to_end(&mut body)?;
    let (status, body) = match answer(&method, &path, &body, db) {
        Ok(answer) => answer,
        Err(error) => (503, error.to_string().into_bytes()),
    };
    say(&format!("{method} {path} {status}"));
    let head = format!("HTTP/1.0 {status} .\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat())?;
    Ok(())
}

fn answer(method: &str, path: &str, body: &[u8], db: &str) -> Outcome<(u16, Vec<u8>)> {
    let to_text = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if let Some(name) = path.strip_prefix("/resolve/") {
        let addresses = resolve(name)?;
        return Ok((if addresses.is_empty() { 404 } else { 200 }, addresses.join("\n").into_bytes()));
    }
    let Some(key) = path.strip_prefix("/posts/").filter(|key| !key.contains(' ')) else {
        return Ok((404, Vec::new()));
    };
    let request = match method {
        "PUT" => format!("set {key} {}\n", to_text(body)),
        "GET" => format!("get {key}\n"),
        _ => return Ok((405, Vec::new())),
    };
    let (name, port) = db.split_once(':').ok_or("no port")?;
    let address = resolve(name)?.into_iter().next().ok_or("the store has no address")?;
    let address: SocketAddr = format!("{address}:{port}").parse()?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut reply = String::new();
    BufReader::new(&stream).read_line(&mut reply)?;
    Ok(match reply.trim_end_matches('\n').split_once(' ') {
        None if reply == "ok\n" => (201, Vec::new()),
        None if reply == "none\n" => (404, Vec::new()),
        Some(("value", value)) => {
            let digits = |at: usize| u8::from_str_radix(value.get(at..at + 2).unwrap_or_default(), 16);
            (200, (0..value.len()).step_by(2).map(digits).collect::<Result<_, _>>()?)
        }
        _ => (507, reply.into_bytes()),
    })
}

/// The addresses of a name, from the name server of `/etc/resolv.conf`.
fn resolve(name: &str) -> Outcome<Vec<String>> {
    let settings = fs::read_to_string("/etc/resolv.conf")?;
    let server =
        settings.lines().find_map(|line| line.strip_prefix("nameserver ")).ok_or("no name server")?;
    let server = (server.trim(), 53).to_socket_addrs()?.next().ok_or("no name server")?;
    let mut query = Packet::new_query(7);
    query.set_flags(simple_dns::PacketFlag::RECURSION_DESIRED);
    query.questions.push(Question::new(Name::new(name)?, TYPE::A.into(), CLASS::IN.into(), false));
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(server)?;
    let mut buffer = [0; 4096];
    for _ in 0..3 {
        socket.send(&query.build_bytes_vec()?)?;
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let reply = Packet::parse(&buffer[..length])?;
        return Ok(reply
            .answers
            .iter()
            .filter_map(|answer| match &answer.rdata {
                RData::A(address) => Some(std::net::Ipv4Addr::from(address.address).to_string()),
                _ => None,
            })
            .collect());
    }
    Err(format!("no answer about `{name}`").into())
}

/// A session of FTP, extended passive mode only.
fn files(mut control: &TcpStream, directory: &Path) -> Outcome {
    let mut listener = None;
    control.write_all(b"220 stand-in\r\n")?;
    for line in BufReader::new(control).lines() {
        let line = line?;
        let (verb, argument) = line.split_once(' ').unwrap_or((&line, ""));
        // Names have no way out of the directory.
        let path = directory.join(argument.replace('/', "_"));
        let reply = match verb {
            "USER" => "331 Any password".to_owned(),
            "PASS" => "230 Welcome".to_owned(),
            "TYPE" => "200 As ever".to_owned(),
            "EPSV" => {
                let data = TcpListener::bind((control.local_addr()?.ip(), 0))?;
                set_socket_timeout(&data, Timeout::Recv, Some(PATIENCE))?;
                let port = data.local_addr()?.port();
                listener = Some(data);
                format!("229 Entering Extended Passive Mode (|||{port}|)")
            }
            "STOR" | "RETR" => {
                control.write_all(b"150 Go on\r\n")?;
                let (mut data, _) = listener.take().ok_or("no data connection")?.accept()?;
                data.set_read_timeout(Some(PATIENCE))?;
                let done = match verb {
                    "STOR" => store(&mut data, directory, &path),
                    _ => File::open(&path).and_then(|mut file| std::io::copy(&mut file, &mut data)),
                };
                say(&format!("{verb} {argument} {done:?}"));
                match done {
                    Ok(length) => format!("226 {length} bytes"),
                    Err(error) => format!("552 {error}"),
                }
            }
            "QUIT" => return Ok(control.write_all(b"221 Bye\r\n")?),
            _ => "502 Not here".to_owned(),
        };
        control.write_all(format!("{reply}\r\n").as_bytes())?;
    }
    Ok(())
}

/// Writes a file as a whole or not at all.
fn store(data: &mut TcpStream, directory: &Path, path: &Path) -> std::io::Result<u64> {
    let part = path.with_extension("part");
    let mut write = || {
        let mut file = File::create(&part)?;
        let length = std::io::copy(&mut data.take(LARGEST), &mut file)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        File::open(directory)?.sync_all()?;
        Ok(length)
    };
    let written = write();
    if written.is_err() {
        // It may not have come into being.
        fs::remove_file(&part).ok();
    }
    written
}
