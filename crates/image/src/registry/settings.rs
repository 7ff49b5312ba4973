//! How registries are reached, as the user wants it: plain data, read by the command.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::credentials::Credentials;
use super::proxies::Proxies;
use crate::reference::DOCKER_HUB;

/// Everything that a transfer has to know beforehand.
#[derive(Clone, Debug)]
pub struct Access {
    /// By the registry's name as image names spell it, or a mirror's host and port.
    pub registries: BTreeMap<String, Registry>,
    /// What stands between us and them.
    pub proxies: Proxies,
    /// How long to wait.
    pub timing: Timing,
    /// Blobs up to this size (bytes) are sent at once, larger ones in parts of it: what breaks off costs no more than
    /// one part, and many a proxy in front of a registry takes no more at once.
    pub part: u64,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            proxies: Proxies::default(),
            timing: Timing::default(),
            part: 32 << 20,
        }
    }
}

/// One registry.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// Asked first, in this order, for pulls.
    pub mirrors: Vec<Mirror>,
    /// Plain HTTP is taken where it does not speak TLS. Always so for loopback addresses.
    pub plain_http: bool,
    /// Certificates (PEM) of authorities that vouch for it, beside the system's.
    pub authorities: Vec<String>,
    /// Who we are there, where TLS is to say so.
    pub certificate: Option<ClientCertificate>,
    /// Who we are there.
    pub credentials: Option<Credentials>,
}

/// A certificate, and the key that proves that it is ours; both as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those of the authorities between it and one that the registry knows.
    pub chain: String,
    /// The key.
    pub key: String,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientCertificate({} bytes)", self.chain.len())
    }
}

/// A registry that has what another one has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// `https://host[:port][/path]`, or `http://` where plain HTTP is meant.
    pub url: String,
    /// What its repositories have in front of the registry's names, with a slash at the end: `hub/` where it has
    /// `hub/library/alpine`.
    pub prefix: String,
}

impl Mirror {
    /// A mirror by its address; none for what is no such address. A path goes before `/v2/`, as where it is one of
    /// several services of a server. What stands behind `/v2/` in it goes before the names of repositories, as
    /// projects that stand for other registries have it.
    pub fn parse(text: &str) -> Option<Self> {
        let url = text.trim_end_matches('/');
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
        let host = rest.split('/').next().filter(|host| !host.is_empty())?;
        let clean =
            url.bytes().all(|b| b.is_ascii_graphic()) && !host.contains('@') && !url.contains(['?', '#']);
        let (url, prefix) = match url.split_once("/v2/") {
            Some((url, prefix)) => (url, format!("{}/", prefix.trim_matches('/'))),
            None => (url.strip_suffix("/v2").unwrap_or(url), String::new()),
        };
        clean.then(|| Self { url: url.trim_end_matches('/').to_owned(), prefix })
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        let rest = self.url.split_once("://").map_or(&*self.url, |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }
}

/// How long things may take.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Looking up a name; connecting, TLS included.
    pub connect: Duration,
    /// Nothing arrives, or nothing can be sent.
    pub stall: Duration,
    /// The head of an answer.
    pub answer: Duration,
    /// A transfer that brings less than [`Timing::SLOWEST`] bytes in this time has stalled, too.
    pub crawl: Duration,
    /// The first pause before something is tried again; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause that a registry can ask for (`Retry-After`).
    pub longest_pause: Duration,
    /// How often something is tried in all.
    pub attempts: u32,
}

impl Timing {
    /// Bytes that must arrive within [`Timing::crawl`].
    pub const SLOWEST: u64 = 16 * 1024;
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            crawl: Duration::from_secs(60),
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
            attempts: 5,
        }
    }
}

/// Where a registry, or a mirror of it, is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// As messages name it: the registry's name, or the mirror's host.
    pub(super) name: String,
    /// What comes before `/v2/`; both are tried in this order.
    pub(super) urls: Vec<String>,
    /// The user allows it to send us to others without TLS.
    pub(super) plain_http: bool,
    /// What its repositories have in front of the registry's names.
    pub(super) prefix: String,
    pub(super) proxies: Proxies,
    pub(super) authorities: Vec<String>,
    pub(super) certificate: Option<ClientCertificate>,
    pub(super) credentials: Option<Credentials>,
}

impl Access {
    /// The registry itself.
    pub(super) fn registry(&self, name: &str) -> Endpoint {
        let host = if name == DOCKER_HUB { "registry-1.docker.io" } else { name };
        let settings = self.registries.get(name).cloned().unwrap_or_default();
        let Registry { authorities, certificate, credentials, plain_http, .. } = settings;
        let mut urls = vec![format!("https://{host}")];
        if plain_http || is_loopback(host) {
            urls.push(format!("http://{host}"));
        }
        let (name, prefix) = (name.to_owned(), String::new());
        let proxies = self.proxies.clone();
        Endpoint { name, urls, plain_http, prefix, proxies, authorities, certificate, credentials }
    }

    /// Where to pull from: the mirrors, then the registry itself.
    pub(super) fn sources(&self, name: &str) -> Vec<Endpoint> {
        let mirrors = self.registries.get(name).map(|registry| &registry.mirrors[..]).unwrap_or_default();
        let mirror = |mirror: &Mirror| {
            let Registry { authorities, certificate, credentials, .. } =
                self.registries.get(mirror.host()).cloned().unwrap_or_default();
            Endpoint {
                name: mirror.host().to_owned(),
                urls: vec![mirror.url.clone()],
                plain_http: mirror.url.starts_with("http://"),
                prefix: mirror.prefix.clone(),
                proxies: self.proxies.clone(),
                authorities,
                certificate,
                credentials,
            }
        };
        mirrors.iter().map(mirror).chain([self.registry(name)]).collect()
    }
}

/// Whether a host (with or without a port) is this machine itself.
pub fn is_loopback(host: &str) -> bool {
    // What stands before an `@` is a user, whatever it looks like.
    if host.contains('@') {
        return false;
    }
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    };
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
