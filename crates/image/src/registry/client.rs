//! One registry, or a mirror of it, over HTTP: deadlines, tries, credentials, redirects.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ureq::http::{HeaderMap, Method, Request, Response, header};
use ureq::{Agent, Body, Proxy, SendBody};

use super::address::{join, origin, same_origin};
use super::agent as connections;
use super::auth::{Challenge, Token, TokenAnswer};
use super::credentials::Credentials;
use super::error::{LOG_IN, Problem, RegistryError, is_distrust};
use super::headers;
use super::proxies::Proxies;
use super::settings::{Access, Endpoint, Timing, is_loopback};
use crate::error::{Error, Result};

/// Largest answer that is read into memory whole: manifests and configurations have a few kilobytes. Registries
/// themselves stop at four megabytes (distribution-spec, "Pushing manifests").
pub(super) const LARGEST_ANSWER: u64 = 8 << 20;
/// How much of an answer that tells of an error is read.
const ERROR_ANSWER: u64 = 16 << 10;
/// Longest chain of redirects.
const REDIRECTS: usize = 5;
/// What goes with a request.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// A part of a file.
    Part {
        file: &'a Path,
        start: u64,
        length: u64,
    },
}

/// One request. It is sent again where that may help, so it must be one that can be repeated.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Path below the registry (`/v2/...`), or a whole address that the registry gave us.
    pub(super) target: String,
    /// What a token must allow: `repository:NAME:pull`.
    pub(super) scope: &'a str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) payload: Payload<'a>,
    /// For messages: "get the manifest of tag `1.2`".
    pub(super) operation: String,
    /// Broken connections and answers that tell of a passing trouble are tried again.
    pub(super) again: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, target: String, scope: &'a str, operation: String) -> Self {
        Self { method, target, scope, headers: Vec::new(), payload: Payload::None, operation, again: true }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn payload(mut self, payload: Payload<'a>) -> Self {
        self.payload = payload;
        self
    }

    pub(super) fn once(mut self) -> Self {
        self.again = false;
        self
    }
}

/// An answer, and where it came from after all redirects.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    pub(super) url: String,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

/// A registry that was reached.
pub(super) struct Client {
    agent: Agent,
    /// For the others that it sends us to: it does not say who we are.
    elsewhere: Agent,
    timing: Timing,
    /// What comes before `/v2/`.
    base: String,
    plain_http: bool,
    proxies: Proxies,
    name: String,
    /// For messages.
    repository: Option<String>,
    credentials: Option<Credentials>,
    challenge: Mutex<Challenge>,
    tokens: Mutex<BTreeMap<String, Token>>,
    stop: Stop,
}

/// Says to all threads of a transfer that it has failed.
#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a thread that panicked left is still whole: nothing is changed in several steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Reaches a registry and asks it who may come in. One attempt decides: a host without a network must not
    /// keep anybody waiting.
    pub(super) fn connect(endpoint: &Endpoint, repository: Option<&str>, timing: &Timing) -> Result<Self> {
        let fail = |problem| {
            let (registry, repository) = (endpoint.name.clone(), repository.map(str::to_owned));
            Error::from(RegistryError { registry, repository, problem })
        };
        let certificate = endpoint.certificate.as_ref();
        let agent = connections::agent(endpoint, certificate, timing)?;
        let mut unreachable = None;
        for base in &endpoint.urls {
            let ping = Request::get(format!("{base}/v2/")).body(());
            let ping = ping.map_err(|cause| fail(Problem::Unreachable(Box::new(cause.into()))))?;
            let proxy = endpoint.proxies.of(base).and_then(|address| Proxy::new(address).ok());
            let response = match agent.run(agent.configure_request(ping).proxy(proxy).build()) {
                Ok(response) => response,
                Err(cause) => {
                    // A certificate that is not trusted is no reason to do without one.
                    let distrusted = is_distrust(&cause);
                    unreachable.get_or_insert(cause);
                    if distrusted {
                        break;
                    }
                    continue;
                }
            };
            let status = response.status().as_u16();
            let challenge = match status {
                401 => challenge(response.headers()),
                // Some that need no credentials to look have no such page at all.
                200..=299 | 404 => Some(Challenge::None),
                // In the way of nothing: the next request is tried again, or says the same.
                429 | 500..=599 => Some(Challenge::None),
                _ => None,
            };
            let Some(challenge) = challenge else {
                let problem = format!("it is no registry, or not one that we can talk to: status {status}");
                return Err(fail(Problem::Wrong { object: format!("{base}/v2/"), problem }));
            };
            return Ok(Self {
                agent,
                elsewhere: connections::agent(endpoint, None, timing)?,
                timing: timing.clone(),
                base: base.clone(),
                plain_http: endpoint.plain_http,
                proxies: endpoint.proxies.clone(),
                name: endpoint.name.clone(),
                repository: repository.map(str::to_owned),
                credentials: endpoint.credentials.clone(),
                challenge: Mutex::new(challenge),
                tokens: Mutex::default(),
                stop: Stop::default(),
            });
        }
        let cause = unreachable.unwrap_or(ureq::Error::ConnectionFailed);
        Err(fail(Problem::Unreachable(Box::new(cause))))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.timing
    }

    pub(super) fn fail(&self, problem: Problem) -> Error {
        let (registry, repository) = (self.name.clone(), self.repository.clone());
        RegistryError { registry, repository, problem }.into()
    }

    pub(super) fn wrong(&self, object: impl Into<String>, problem: impl Into<String>) -> Error {
        self.fail(Problem::Wrong { object: object.into(), problem: problem.into() })
    }

    /// Makes all threads give up, also those that wait for the registry.
    pub(super) fn stop(&self) {
        *lock(&self.stop.stopped) = true;
        self.stop.changed.notify_all();
        for agent in [&self.agent, &self.elsewhere] {
            agent.clone().shutdown();
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        *lock(&self.stop.stopped)
    }

    /// Waits, unless told to stop.
    pub(super) fn pause(&self, time: Duration) -> Result<()> {
        let stopped = lock(&self.stop.stopped);
        let waited = self.stop.changed.wait_timeout_while(stopped, time, |stopped| !*stopped);
        let (stopped, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *stopped { Err(self.fail(Problem::Stopped)) } else { Ok(()) }
    }

    /// The pause before a further attempt: twice as long each time, and never the same for two clients.
    pub(super) fn backoff(&self, attempt: u32) -> Duration {
        let full = self.timing.pause * 2_u32.saturating_pow(attempt.min(5));
        full / 2
            + full.mul_f64(f64::from(RandomState::new().build_hasher().finish() as u32) / f64::from(u32::MAX))
                / 2
    }

    /// Sends a request until there is an answer that another attempt would not change: a success, or an error of
    /// ours. Follows redirects of requests that only read.
    pub(super) fn send(&self, call: &Call<'_>) -> Result<Answer> {
        let attempts = if call.again { self.timing.attempts } else { 1 };
        let mut attempt = 0;
        loop {
            attempt += 1;
            if self.is_stopped() {
                return Err(self.fail(Problem::Stopped));
            }
            let last = attempt >= attempts;
            let pause = match self.send_authorized(call)? {
                Ok(answer) => match answer.status() {
                    429 => {
                        let wait = retry_after(&answer);
                        let longer = wait.is_some_and(|wait| wait > self.timing.longest_pause);
                        if last || longer {
                            return Err(
                                self.fail(Problem::TooMany { operation: call.operation.clone(), wait })
                            );
                        }
                        wait.unwrap_or_default().max(self.backoff(attempt))
                    }
                    500 | 502 | 503 | 504 | 408 if !last => {
                        let wait = retry_after(&answer).unwrap_or_default().min(self.timing.longest_pause);
                        wait.max(self.backoff(attempt))
                    }
                    _ => return Ok(answer),
                },
                Err(_) if self.is_stopped() => return Err(self.fail(Problem::Stopped)),
                Err(cause) if last => return Err(self.broken(call, attempt, cause)),
                Err(cause) => {
                    tracing::debug!(registry = self.name, operation = call.operation, %cause, "try again");
                    self.backoff(attempt)
                }
            };
            self.pause(pause)?;
        }
    }

    fn broken(&self, call: &Call<'_>, attempts: u32, cause: ureq::Error) -> Error {
        let operation = call.operation.clone();
        match cause {
            cause if matches!(cause, ureq::Error::HostNotFound) || is_distrust(&cause) => {
                self.fail(Problem::Unreachable(Box::new(cause)))
            }
            cause => self.fail(Problem::Broken { operation, attempts, source: cause.into_io() }),
        }
    }

    /// Sends a request with credentials; with new ones where those we had are not good any more.
    fn send_authorized(&self, call: &Call<'_>) -> Result<Result<Answer, ureq::Error>> {
        let mut authorization = self.authorization(call.scope, &call.operation)?;
        let mut renewed = false;
        loop {
            let answer = match self.follow(call, authorization.as_deref())? {
                Ok(answer) => answer,
                Err(cause) => return Ok(Err(cause)),
            };
            let status = answer.status();
            let elsewhere = !same_origin(&answer.url, &self.base);
            if status == 401 && !renewed && !elsewhere {
                renewed = true;
                if let Some(challenge) = challenge(answer.response.headers()) {
                    *lock(&self.challenge) = challenge;
                    self.forget_token(call.scope, authorization.as_deref());
                    authorization = self.authorization(call.scope, &call.operation)?;
                    if authorization.is_some() {
                        continue;
                    }
                }
            }
            if matches!(status, 401 | 403) {
                return Err(self.denied(&call.operation, answer.response));
            }
            return Ok(Ok(answer));
        }
    }

    fn denied(&self, operation: &str, response: Response<Body>) -> Error {
        let (operation, logged_in) = (operation.to_owned(), self.credentials.is_some());
        self.fail(Problem::Denied { operation, said: said(response), logged_in })
    }

    /// Sends a request once, and on to where it is redirected. Nobody but the registry gets our credentials.
    fn follow(&self, call: &Call<'_>, authorization: Option<&str>) -> Result<Result<Answer, ureq::Error>> {
        let mut url = join(&self.base, &call.target);
        for _ in 0..=REDIRECTS {
            self.check_scheme(&url, &call.operation)?;
            let mut request = Request::builder().method(call.method.clone()).uri(&url);
            for (name, value) in &call.headers {
                request = request.header(*name, value);
            }
            if let Some(authorization) = authorization.filter(|_| same_origin(&url, &self.base)) {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let response = match run(self.agent(&url), self.proxy(&url), request, &call.payload) {
                Ok(response) => response,
                Err(cause) => return Ok(Err(cause)),
            };
            let reads = matches!(call.method, Method::GET | Method::HEAD);
            let moved = reads && matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !moved {
                return Ok(Ok(Answer { response, url }));
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let Some(location) = location else {
                return Err(self.wrong(&call.operation, "it redirects us without saying where to"));
            };
            url = join(&url, location);
        }
        Err(self.wrong(&call.operation, format!("it redirects us more than {REDIRECTS} times")))
    }

    /// No way leads from TLS to plain HTTP that the user has not allowed, and none from a registry elsewhere to what
    /// listens on this machine.
    fn check_scheme(&self, url: &str, operation: &str) -> Result<()> {
        let allowed = if is_here(url) { is_here(&self.base) } else { self.plain_http };
        let problem = match url.split_once("://") {
            Some(("https", _)) => return Ok(()),
            Some(("http", _)) if allowed => return Ok(()),
            Some(("http", _)) => "has no TLS",
            _ => "is no address",
        };
        Err(self.wrong(operation, format!("it sends us to {}, which {problem}", shown(url))))
    }

    fn agent(&self, url: &str) -> &Agent {
        if same_origin(url, &self.base) { &self.agent } else { &self.elsewhere }
    }

    /// What leads to an address. One that cannot be read leads nowhere, and is left out, as ureq has it.
    fn proxy(&self, url: &str) -> Option<Proxy> {
        self.proxies.of(url).and_then(|address| Proxy::new(address).ok())
    }

    /// Drops the token that was refused; not the new one that another thread may have got meanwhile.
    fn forget_token(&self, scope: &str, refused: Option<&str>) {
        let mut tokens = lock(&self.tokens);
        if tokens.get(scope).is_some_and(|token| refused == Some(&token.header())) {
            tokens.remove(scope);
        }
    }

    /// The header that says who we are, for requests that need `scope`.
    fn authorization(&self, scope: &str, operation: &str) -> Result<Option<String>> {
        let challenge = lock(&self.challenge).clone();
        match challenge {
            Challenge::None => Ok(None),
            Challenge::Basic => Ok(self.credentials.as_ref().and_then(Credentials::basic)),
            Challenge::Bearer { realm, service } => {
                // Held while a token is fetched: the other threads need the same one.
                let mut tokens = lock(&self.tokens);
                let token = match tokens.get(scope).filter(|token| token.is_fresh()) {
                    Some(token) => token.clone(),
                    None => {
                        let token = self.fetch_token(&realm, service.as_deref(), scope, operation)?;
                        tokens.insert(scope.to_owned(), token.clone());
                        token
                    }
                };
                Ok(Some(token.header()))
            }
        }
    }

    /// Gets a token: by the password, in exchange for an identity token, or as nobody.
    fn fetch_token(&self, realm: &str, service: Option<&str>, scope: &str, operation: &str) -> Result<Token> {
        self.check_scheme(realm, operation)?;
        let mut query: Vec<(&str, &str)> = Vec::new();
        query.extend(service.map(|service| ("service", service)));
        let mut attempt = 0;
        loop {
            attempt += 1;
            let asked = Instant::now();
            let sent = match &self.credentials {
                Some(Credentials::IdentityToken(token)) => {
                    let mut form = query.clone();
                    form.extend([("grant_type", "refresh_token"), ("refresh_token", token.as_str())]);
                    form.extend([("client_id", "inception-run"), ("scope", scope)]);
                    self.agent(realm).post(realm).config().proxy(self.proxy(realm)).build().send_form(form)
                }
                credentials => {
                    let request = self.agent(realm).get(realm).config().proxy(self.proxy(realm)).build();
                    let mut request = request.query_pairs(query.clone());
                    request =
                        request.query_pairs(scope.split(' ').filter(|s| !s.is_empty()).map(|s| ("scope", s)));
                    if let Some(Credentials::Password { user, .. }) = credentials {
                        request = request.query("account", user);
                    }
                    if let Some(basic) = credentials.as_ref().and_then(Credentials::basic) {
                        request = request.header(header::AUTHORIZATION, basic);
                    }
                    request.call()
                }
            };
            let last = attempt >= self.timing.attempts;
            match sent {
                Ok(mut response) => match response.status().as_u16() {
                    200..=299 => {
                        let token = read_limited(&mut response, LARGEST_ANSWER)
                            .ok()
                            .and_then(|text| serde_json::from_slice::<TokenAnswer>(&text).ok())
                            .and_then(|answer| answer.into_token(asked));
                        return token.ok_or_else(|| self.wrong(shown(realm), "its answer holds no token"));
                    }
                    400 | 401 | 403 => return Err(self.denied(operation, response)),
                    429 | 500..=599 if !last => {}
                    status => {
                        let operation = format!("get a token from {}", shown(realm));
                        return Err(self.fail(Problem::Status { operation, status, said: said(response) }));
                    }
                },
                Err(_) if self.is_stopped() => return Err(self.fail(Problem::Stopped)),
                Err(cause) if last || matches!(cause, ureq::Error::HostNotFound) => {
                    return Err(self.fail(Problem::Unreachable(Box::new(cause))));
                }
                Err(_) => {}
            }
            self.pause(self.backoff(attempt))?;
        }
    }

    /// An error for an answer that is none of those that were hoped for.
    pub(super) fn unexpected(&self, operation: &str, answer: Answer) -> Error {
        let status = answer.status();
        let operation = operation.to_owned();
        self.fail(Problem::Status { operation, status, said: said(answer.response) })
    }

    /// The same where 404 says that there is no such thing.
    pub(super) fn missing_or(&self, object: String, operation: &str, answer: Answer) -> Error {
        match answer.status() {
            404 => self.fail(Problem::Unknown { object, said: said(answer.response) }),
            _ => self.unexpected(operation, answer),
        }
    }

    /// The whole of a small answer.
    pub(super) fn read(&self, object: &str, answer: &mut Answer, limit: u64) -> Result<Vec<u8>> {
        read_limited(&mut answer.response, limit).map_err(|cause| {
            let problem = match cause {
                ureq::Error::BodyExceedsLimit(_) => format!("it is larger than {limit} bytes"),
                other => format!("it did not arrive: {other}"),
            };
            self.wrong(object, problem)
        })
    }
}

/// Whether somebody may log in: the registry is asked whether it takes these credentials.
///
/// # Errors
/// When it cannot be reached, or does not take them.
pub fn check_login(access: &Access, registry: &str) -> Result<()> {
    let client = Client::connect(&access.registry(registry), None, &access.timing)?;
    let answer = client.send(&Call::new(Method::GET, "/v2/".to_owned(), "", LOG_IN.to_owned()))?;
    match answer.status() {
        200..=299 => Ok(()),
        _ => Err(client.unexpected(LOG_IN, answer)),
    }
}

fn run(
    agent: &Agent,
    proxy: Option<Proxy>,
    request: ureq::http::request::Builder,
    payload: &Payload<'_>,
) -> Result<Response<Body>, ureq::Error> {
    match payload {
        Payload::None => agent.run(agent.configure_request(request.body(())?).proxy(proxy).build()),
        Payload::Bytes(bytes) => {
            agent.run(agent.configure_request(request.body(*bytes)?).proxy(proxy).build())
        }
        Payload::Part { file, start, length } => {
            let mut file = File::open(file)?;
            file.seek(SeekFrom::Start(*start))?;
            let mut part = file.take(*length);
            let request = request.header(header::CONTENT_LENGTH, *length);
            let request = request.body(SendBody::from_reader(&mut part))?;
            agent.run(agent.configure_request(request).proxy(proxy).build())
        }
    }
}

/// Whether an address is of a server on this machine.
fn is_here(url: &str) -> bool {
    let origin = origin(url);
    is_loopback(origin.split_once("://").map_or(origin, |(_, authority)| authority))
}

fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    Challenge::parse(headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()))
}

/// How long the server wants us to wait.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let value = answer.header(header::RETRY_AFTER)?;
    headers::retry_after(value, answer.header(header::DATE), SystemTime::now())
}

fn read_limited(response: &mut Response<Body>, limit: u64) -> Result<Vec<u8>, ureq::Error> {
    response.body_mut().with_config().limit(limit).read_to_vec()
}

/// What an answer says about an error (distribution-spec, "Error codes"), on one line and of a bearable length.
fn said(mut response: Response<Body>) -> String {
    let Ok(body) = read_limited(&mut response, ERROR_ANSWER) else { return String::new() };
    let text = match serde_json::from_slice::<serde_json::Value>(&body) {
        Ok(json) => {
            let text = |value: &serde_json::Value, key: &str| {
                value.get(key).and_then(|text| text.as_str()).unwrap_or_default().to_owned()
            };
            let first = json.pointer("/errors/0").unwrap_or(&json);
            let said = [text(first, "message"), text(first, "code"), text(first, "details")];
            said.into_iter().find(|said| !said.is_empty()).unwrap_or_default()
        }
        // A page for browsers says nothing to anybody here.
        Err(_) => match String::from_utf8(body) {
            Ok(text) if !text.trim_start().starts_with('<') => text,
            _ => String::new(),
        },
    };
    shown(text.trim())
}

/// Foreign text for messages: no control characters, no end of the world.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    if clean.len() < text.len() && text.chars().count() > LONGEST { clean + "..." } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_bounded() {
        assert_eq!(shown("a\x1b[1m\nb"), "a [1m b");
        assert!(shown(&"é".repeat(10_000)).chars().count() < 300);
    }
}
