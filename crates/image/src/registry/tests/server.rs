//! A registry of the tests' own: HTTP over a plain socket, with faults on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::Digest;

/// What a client asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    /// With the query.
    pub(super) target: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
    /// How many requests with this method and target came before it.
    pub(super) before: usize,
}

impl Request {
    pub(super) fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.target.contains(part)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) fault: Fault,
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    None,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing more comes after so many bytes of the body, for so long.
    Stall(usize, Duration),
    /// The length is said to be another one.
    Length(usize),
    /// The body has no length and no end.
    Endless,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), fault: Fault::None }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(super) fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }
}

type Hook = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// What the registry has.
#[derive(Default)]
pub(super) struct Content {
    /// By repository and digest.
    pub(super) blobs: BTreeMap<(String, String), Vec<u8>>,
    /// By repository and tag or digest: media type and bytes.
    pub(super) manifests: BTreeMap<(String, String), (String, Vec<u8>)>,
    uploads: BTreeMap<String, Vec<u8>>,
    /// All requests so far.
    pub(super) log: Vec<Request>,
}

/// A server that runs until the test's process ends.
#[derive(Clone)]
pub(super) struct Server {
    /// `127.0.0.1:PORT`.
    pub(super) host: String,
    pub(super) content: Arc<Mutex<Content>>,
}

impl Server {
    pub(super) fn start(hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1", hook)
    }

    pub(super) fn start_at(
        address: &str,
        hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let server = Self { host, content: Arc::default() };
        let (hook, inside): (Arc<Hook>, _) = (Arc::new(hook), server.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, hook, server) = (stream.unwrap(), Arc::clone(&hook), inside.clone());
                std::thread::spawn(move || server.serve(stream, &*hook));
            }
        });
        server
    }

    /// How many requests there were with this method and this part in their target.
    pub(super) fn count(&self, method: &str, part: &str) -> usize {
        self.content.lock().unwrap().log.iter().filter(|request| request.is(method, part)).count()
    }

    pub(super) fn put_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let key = (repository.to_owned(), digest.to_string());
        self.content.lock().unwrap().blobs.insert(key, bytes.to_vec());
        digest
    }

    /// Under its digest and under a tag.
    pub(super) fn put_manifest(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        for name in [tag.to_owned(), digest.to_string()] {
            let value = (kind.to_owned(), bytes.to_vec());
            self.content.lock().unwrap().manifests.insert((repository.to_owned(), name), value);
        }
        digest
    }

    fn serve(&self, stream: TcpStream, hook: &Hook) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        // A client that speaks TLS is one that tries: a record of a handshake (RFC 8446, 5.1), which may have no end of
        // a line.
        if reader.fill_buf().ok().and_then(|bytes| bytes.first().copied()) == Some(0x16) {
            return;
        }
        while let Some(mut request) = read(&mut reader) {
            {
                let mut content = self.content.lock().unwrap();
                let same = |r: &&Request| r.method == request.method && r.target == request.target;
                request.before = content.log.iter().filter(same).count();
                content.log.push(request.clone());
            }
            let reply = hook(&request).unwrap_or_else(|| self.answer(&request));
            if !write(&mut writer, &request, &reply) {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> Reply {
        let path = request.target.split('?').next().unwrap();
        let query = request.target.split_once('?').map_or("", |(_, query)| query);
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        let mut content = self.content.lock().unwrap();
        if path == "/v2/" {
            return Reply::new(200);
        }
        let rest = path.strip_prefix("/v2/").unwrap();
        if let Some((repository, _)) = rest.split_once("/blobs/uploads/") {
            if request.method == "POST" {
                if let (Some(digest), Some(from)) = (parameter("mount"), parameter("from"))
                    && let Some(bytes) = content.blobs.get(&(from, digest.clone())).cloned()
                {
                    content.blobs.insert((repository.to_owned(), digest), bytes);
                    return Reply::new(201);
                }
                let location = format!("/v2/{repository}/blobs/uploads/{}", content.uploads.len());
                content.uploads.insert(location.clone(), Vec::new());
                return Reply::new(202).header("Location", location + "?state=x");
            }
            let Some(upload) = content.uploads.get_mut(path) else { return Reply::new(404) };
            match &*request.method {
                "PATCH" => {
                    let start =
                        request.header("content-range").and_then(|r| r.split('-').next()?.parse().ok());
                    if start != Some(upload.len()) {
                        return Reply::new(416);
                    }
                    upload.extend(&request.body);
                    return Reply::new(202).header("Location", request.target.clone());
                }
                "GET" => {
                    let range = format!("0-{}", upload.len().saturating_sub(1));
                    return Reply::new(204).header("Range", range).header("Location", request.target.clone());
                }
                "PUT" => {
                    upload.extend(&request.body);
                    let (bytes, digest) = (upload.clone(), parameter("digest").unwrap());
                    if Digest::of(&bytes).to_string() != digest {
                        return Reply::new(400);
                    }
                    content.uploads.remove(path);
                    content.blobs.insert((repository.to_owned(), digest), bytes);
                    return Reply::new(201);
                }
                _ => return Reply::new(405),
            }
        }
        if let Some((repository, digest)) = rest.split_once("/blobs/") {
            let Some(bytes) = content.blobs.get(&(repository.to_owned(), digest.to_owned())) else {
                return unknown("BLOB_UNKNOWN");
            };
            return ranged(request, bytes);
        }
        let (repository, name) = rest.split_once("/manifests/").unwrap();
        let key = (repository.to_owned(), name.to_owned());
        if request.method == "PUT" {
            let kind = request.header("content-type").unwrap().to_owned();
            let digest = Digest::of(&request.body).to_string();
            content
                .manifests
                .insert((repository.to_owned(), digest.clone()), (kind.clone(), request.body.clone()));
            content.manifests.insert(key, (kind, request.body.clone()));
            return Reply::new(201).header("Docker-Content-Digest", digest);
        }
        match content.manifests.get(&key) {
            Some((kind, bytes)) => {
                Reply::new(200).header("Content-Type", kind.as_str()).body(bytes.as_slice())
            }
            None => unknown("MANIFEST_UNKNOWN"),
        }
    }
}

fn unknown(code: &str) -> Reply {
    Reply::new(404).body(format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"no such thing\"}}]}}"))
}

/// A body, or the part of it that was asked for.
pub(super) fn ranged(request: &Request, bytes: &[u8]) -> Reply {
    let start = request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        None => Reply::new(200).body(bytes),
        Some(start) if start < bytes.len() => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206).header("Content-Range", range).body(&bytes[start..])
        }
        Some(_) => Reply::new(416),
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = Vec::new();
    reader.by_ref().take(8192).read_until(b'\n', &mut line).ok().filter(|length| *length > 0)?;
    let line = String::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut request = Request { method, target, ..Request::default() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

/// False where the connection is to end.
fn write(stream: &mut TcpStream, request: &Request, reply: &Reply) -> bool {
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    match reply.fault {
        Fault::Endless => {}
        Fault::Length(length) => head += &format!("Content-Length: {length}\r\n"),
        _ if reply.status == 204 => {}
        _ => head += &format!("Content-Length: {}\r\n", reply.body.len()),
    }
    let mut send = |bytes: &[u8]| stream.write_all(bytes).is_ok();
    if !send(format!("{head}\r\n").as_bytes()) {
        return false;
    }
    if request.method == "HEAD" {
        return true;
    }
    match reply.fault {
        Fault::None => send(&reply.body),
        Fault::Cut(length) => {
            send(&reply.body[..length]);
            false
        }
        Fault::Length(_) => {
            send(&reply.body);
            false
        }
        Fault::Stall(length, time) => {
            send(&reply.body[..length]);
            std::thread::sleep(time);
            false
        }
        Fault::Endless => {
            while send(&[7; 4096]) {}
            false
        }
    }
}
