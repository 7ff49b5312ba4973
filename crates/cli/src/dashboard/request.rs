//! What a browser asks for, and whether it may: pure functions of the bytes that came.

use std::net::SocketAddr;

use stack::control::{Command, Start, Stop};

use super::address::Token;

/// Bytes that a request may have. A browser's has less than a tenth of it.
pub(super) const MAX_REQUEST: usize = 16 << 10;
/// Header fields that a request may have.
const MAX_FIELDS: usize = 64;

/// A request, as far as anything of it matters. There is none with a body.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Request {
    method: String,
    path: String,
    host: Option<String>,
    origin: Option<String>,
    /// `Sec-Fetch-Site`: who began it, as the browser saw it.
    site: Option<String>,
    /// `Sec-Fetch-Dest`: `document` where it is for a tab.
    destination: Option<String>,
    /// `X-Inception-Token`.
    token: Option<String>,
    has_body: bool,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// The page.
    Page,
    /// Everything that happens from now on.
    Feed,
    /// To start, stop or restart a service or a container.
    Act(Verb, String),
}

/// What can be done with a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// Start it, with what it depends on.
    Start,
    /// Stop it.
    Stop,
    /// Both.
    Restart,
}

impl Verb {
    /// What the supervisor is asked.
    pub(super) fn command(self, name: String) -> Command {
        let services = vec![name];
        match self {
            Self::Start => Command::Start(Start { services, wait: false }),
            Self::Stop => Command::Stop(Stop { services, timeout: None }),
            Self::Restart => Command::Restart { stop: Stop { services, timeout: None }, no_deps: false },
        }
    }
}

/// Why nothing is given: an HTTP status (RFC 9110) and a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) reason: &'static str,
}

const fn refusal(status: u16, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

pub(super) const MALFORMED: Refusal = refusal(400, "this is no request that is understood here");
pub(super) const TOO_LARGE: Refusal = refusal(431, "the request is too large");
pub(super) const TOO_SLOW: Refusal = refusal(408, "the request did not come in time");
pub(super) const CROWDED: Refusal = refusal(503, "too many pages are open at the same time; close one");
pub(super) const BUSY: Refusal = refusal(503, "too much is being done at the same time; try again");
const OTHER_HOST: Refusal = refusal(403, "this page is at another address");
const OTHER_ORIGIN: Refusal = refusal(403, "another page may not use this one");
const NO_TOKEN: Refusal =
    refusal(403, "the address has to have the token that `inception-run dashboard` printed");
const NOT_FOUND: Refusal = refusal(404, "there is nothing here");
const METHOD: Refusal = refusal(405, "this is not asked for in that way");
const BODY: Refusal = refusal(413, "a request has no body here");

impl Request {
    /// Reads the head of a request; `None` while there is more to come.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, Refusal> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut fields);
        match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) if bytes.len() < MAX_REQUEST => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(TOO_LARGE),
            Err(_) => return Err(MALFORMED),
        }
        let mut request = Self {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: parsed.path.unwrap_or_default().to_owned(),
            ..Self::default()
        };
        for field in parsed.headers {
            let value = || std::str::from_utf8(field.value).map(str::to_owned).map_err(|_| MALFORMED);
            let slot = match field.name.to_ascii_lowercase().as_str() {
                "host" => &mut request.host,
                "origin" => &mut request.origin,
                "sec-fetch-site" => &mut request.site,
                "sec-fetch-dest" => &mut request.destination,
                "x-inception-token" => &mut request.token,
                "content-length" => {
                    request.has_body |= value()?.trim() != "0";
                    continue;
                }
                "transfer-encoding" => {
                    request.has_body = true;
                    continue;
                }
                _ => continue,
            };
            // Of two, the one that is looked at could be the wrong one.
            if slot.replace(value()?).is_some() {
                return Err(MALFORMED);
            }
        }
        Ok(Some(request))
    }
}

/// Who decides what is let in.
#[derive(Debug)]
pub(super) struct Gate {
    /// What `Host` may be. A name that an attacker makes an address of this machine (DNS rebinding) is not among it.
    hosts: Vec<String>,
    token: Token,
}

impl Gate {
    /// That of the page at this address.
    pub(super) fn new(address: SocketAddr, token: Token) -> Self {
        let mut hosts = vec![address.to_string(), format!("localhost:{}", address.port())];
        if address.port() == 80 {
            // The port that goes without saying.
            hosts.extend(hosts.clone().iter().filter_map(|host| host.strip_suffix(":80").map(str::to_owned)));
        }
        Self { hosts, token }
    }

    /// What is asked for, if whoever asks may.
    pub(super) fn admit(&self, request: &Request) -> Result<Ask, Refusal> {
        let host = request.host.as_ref().filter(|host| self.hosts.contains(host)).ok_or(OTHER_HOST)?;
        if request.origin.as_ref().is_some_and(|origin| origin.strip_prefix("http://") != Some(host)) {
            return Err(OTHER_ORIGIN);
        }
        // A link that somebody follows, in the page of a mail program for example, comes from another site too. It makes
        // a tab of its own, of which that site sees nothing.
        let is_link = request.method == "GET" && request.destination.as_deref() == Some("document");
        if !is_link && request.site.as_ref().is_some_and(|site| site != "same-origin" && site != "none") {
            return Err(OTHER_ORIGIN);
        }
        let (token, rest) =
            request.path.strip_prefix('/').and_then(|path| path.split_once('/')).ok_or(NO_TOKEN)?;
        if !self.token.is(token) {
            return Err(NO_TOKEN);
        }
        if request.has_body {
            return Err(BODY);
        }
        let ask = route(rest).ok_or(NOT_FOUND)?;
        match (&ask, request.method.as_str()) {
            // A field that no form and no link can set.
            (Ask::Act(..), "POST") if request.token.as_ref().is_some_and(|token| self.token.is(token)) => {
                Ok(ask)
            }
            (Ask::Act(..), "POST") => Err(NO_TOKEN),
            (Ask::Page | Ask::Feed, "GET") => Ok(ask),
            _ => Err(METHOD),
        }
    }
}

/// What the path behind the token means.
fn route(path: &str) -> Option<Ask> {
    if path.is_empty() {
        return Some(Ask::Page);
    }
    if path == "feed" {
        return Some(Ask::Feed);
    }
    let (verb, name) = path.split_once('/')?;
    let verb = match verb {
        "start" => Verb::Start,
        "stop" => Verb::Stop,
        "restart" => Verb::Restart,
        _ => return None,
    };
    // Names of services need no percent-encoding.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_plain)).then(|| Ask::Act(verb, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> (Gate, String) {
        let token = Token::random().unwrap();
        let text = token.text().to_owned();
        (Gate::new("127.0.0.1:8000".parse().unwrap(), token), text)
    }

    /// A request with these lines behind the first.
    fn ask(gate: &Gate, first: &str, fields: &str) -> Result<Ask, Refusal> {
        let text = format!("{first} HTTP/1.1\r\n{}\r\n", fields.replace('\n', "\r\n"));
        gate.admit(&Request::parse(text.as_bytes())?.unwrap())
    }

    #[test]
    fn what_is_asked_for() {
        let (gate, token) = gate();
        let get = |path: &str| ask(&gate, &format!("GET /{token}/{path}"), "Host: 127.0.0.1:8000\n");
        assert_eq!(get(""), Ok(Ask::Page));
        assert_eq!(get("feed"), Ok(Ask::Feed));
        for path in ["x", "feed/", "stop", "stop/", "stop/a/b", "stop/%61", "stop/a?b", "../", "remove/a"] {
            assert_eq!(get(path), Err(NOT_FOUND), "{path}");
        }
        assert_eq!(get("stop/web"), Err(METHOD));
        let post = |path: &str, token_field: &str| {
            let fields =
                format!("Host: localhost:8000\nContent-Length: 0\nX-Inception-Token: {token_field}\n");
            ask(&gate, &format!("POST /{token}/{path}"), &fields)
        };
        assert_eq!(post("stop/web-2", &token), Ok(Ask::Act(Verb::Stop, "web-2".into())));
        assert_eq!(post("restart/a_b.c", &token), Ok(Ask::Act(Verb::Restart, "a_b.c".into())));
        assert_eq!(post("start/web", "wrong"), Err(NO_TOKEN));
        assert_eq!(post("feed", &token), Err(METHOD));
        let without = ask(&gate, &format!("POST /{token}/stop/web"), "Host: localhost:8000\n");
        assert_eq!(without, Err(NO_TOKEN));
    }

    #[test]
    fn who_is_refused() {
        let (gate, token) = gate();
        let get = |fields: &str| ask(&gate, &format!("GET /{token}/"), fields);
        for host in
            ["127.0.0.1", "127.0.0.1:8001", "evil.example:8000", "localhost", "LOCALHOST:8000.", "[::1]:8000"]
        {
            assert_eq!(get(&format!("Host: {host}\n")), Err(OTHER_HOST), "{host}");
        }
        assert_eq!(get(""), Err(OTHER_HOST));
        let from = |fields: &str| get(&format!("Host: 127.0.0.1:8000\n{fields}"));
        assert_eq!(from("Origin: http://127.0.0.1:8000\nSec-Fetch-Site: same-origin\n"), Ok(Ask::Page));
        for origin in ["null", "http://127.0.0.1:8001", "https://127.0.0.1:8000", "http://localhost:8000", ""]
        {
            assert_eq!(from(&format!("Origin: {origin}\n")), Err(OTHER_ORIGIN), "{origin}");
        }
        for site in ["cross-site", "same-site", "", "Same-Origin"] {
            assert_eq!(from(&format!("Sec-Fetch-Site: {site}\n")), Err(OTHER_ORIGIN), "{site}");
            let framed = format!("Sec-Fetch-Site: {site}\nSec-Fetch-Dest: iframe\n");
            assert_eq!(from(&framed), Err(OTHER_ORIGIN), "{site}");
        }
        assert_eq!(from("Sec-Fetch-Site: none\n"), Ok(Ask::Page));
        assert_eq!(from("Sec-Fetch-Site: cross-site\nSec-Fetch-Dest: document\n"), Ok(Ask::Page));
        let form = "Host: 127.0.0.1:8000\nSec-Fetch-Site: cross-site\nSec-Fetch-Dest: document\n";
        assert_eq!(ask(&gate, &format!("POST /{token}/stop/web"), form), Err(OTHER_ORIGIN));
        for path in ["/", "", "/x", "/x/", "/feed", "//", "*"] {
            let got = ask(&gate, &format!("GET {path}"), "Host: 127.0.0.1:8000\n");
            assert!(got == Err(NO_TOKEN) || got == Err(MALFORMED), "{path}: {got:?}");
        }
        assert_eq!(from("Content-Length: 1\n"), Err(BODY));
        assert_eq!(from("Transfer-Encoding: chunked\n"), Err(BODY));
    }

    #[test]
    fn requests_that_are_none() {
        assert_eq!(Request::parse(b"GET / HTTP/1.1\r\nHost: x\r\n"), Ok(None));
        assert_eq!(Request::parse(b"\x16\x03\x01\x02\x00"), Err(MALFORMED));
        assert_eq!(Request::parse(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), Err(MALFORMED));
        assert_eq!(Request::parse(b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n"), Err(MALFORMED));
        let endless = format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_REQUEST));
        assert_eq!(Request::parse(endless.as_bytes()), Err(TOO_LARGE));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(Request::parse(many.as_bytes()), Err(TOO_LARGE));
    }

    #[test]
    fn port_80_goes_without_saying() {
        let gate = Gate::new("[::1]:80".parse().unwrap(), Token::random().unwrap());
        assert_eq!(gate.hosts, ["[::1]:80", "localhost:80", "[::1]", "localhost"]);
    }
}
