//! Which proxy leads to which server: the usual variables, with the rules that Go's programs (Docker, Podman) have for
//! them.

use std::fmt;
use std::net::IpAddr;

use super::settings::is_loopback;

/// The proxies of the environment: plain data, read by the command.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<String>,
    https: Option<String>,
    /// `NO_PROXY`.
    except: String,
}

/// Without the addresses, which may hold passwords.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (http, https) = (self.http.is_some(), self.https.is_some());
        write!(f, "Proxies(http: {http}, https: {https}, except: {:?})", self.except)
    }
}

impl Proxies {
    /// What `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or the same in small letters, say.
    pub fn from_environment() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    /// The same from variables.
    pub fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let find = |name: &str| {
            let either = variable(name).filter(|value| !value.is_empty());
            either.or_else(|| variable(&name.to_lowercase())).filter(|value| !value.is_empty())
        };
        Self {
            http: find("HTTP_PROXY").or_else(|| find("ALL_PROXY")),
            https: find("HTTPS_PROXY").or_else(|| find("ALL_PROXY")),
            except: find("NO_PROXY").unwrap_or_default(),
        }
    }

    /// The proxy for an address, if one is to be used.
    pub(super) fn of(&self, url: &str) -> Option<&str> {
        let (scheme, rest) = url.split_once("://")?;
        let proxy = if scheme == "https" { &self.https } else { &self.http };
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        // A proxy is of no use for this machine itself.
        let direct = is_loopback(authority) || self.excepts(scheme, authority);
        proxy.as_deref().filter(|_| !direct)
    }

    fn excepts(&self, scheme: &str, authority: &str) -> bool {
        let (host, port) = parted(authority);
        let port = port.unwrap_or(if scheme == "https" { "443" } else { "80" });
        self.except
            .split(',')
            .map(str::trim)
            .filter(|rule| !rule.is_empty())
            .any(|rule| matches(rule, host, port))
    }
}

/// A host without brackets, and its port.
fn parted(authority: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match authority.split_once(':') {
        // More than one: an IPv6 address.
        Some((_, port)) if port.contains(':') => (authority, None),
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    }
}

/// Whether an entry of `NO_PROXY` means a host: `*`, an address, a network, or a name, which stands for all below it, too;
/// with a port for that one alone.
fn matches(rule: &str, host: &str, port: &str) -> bool {
    if rule == "*" {
        return true;
    }
    let address = host.parse::<IpAddr>().ok();
    if let Some((network, length)) = rule.split_once('/') {
        let network = network.parse::<IpAddr>().ok().zip(length.parse::<u32>().ok());
        return network
            .zip(address)
            .is_some_and(|((network, length), address)| is_in(address, network, length));
    }
    let (name, only) = parted(rule);
    if only.is_some_and(|only| only != port) {
        return false;
    }
    if let Ok(one) = name.parse::<IpAddr>() {
        return address == Some(one);
    }
    let (name, host) = (name.to_ascii_lowercase(), host.to_ascii_lowercase());
    let below = name.strip_prefix('*').unwrap_or(&name);
    match below.strip_prefix('.') {
        // With a dot in front only what is below it.
        Some(below) => host.strip_suffix(below).is_some_and(|rest| rest.ends_with('.')),
        None => host == below || host.strip_suffix(below).is_some_and(|rest| rest.ends_with('.')),
    }
}

fn is_in(address: IpAddr, network: IpAddr, length: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) if length <= 32 => {
            (u32::from(address) ^ u32::from(network)).checked_shr(32 - length).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if length <= 128 => {
            (u128::from(address) ^ u128::from(network)).checked_shr(128 - length).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Proxies::new(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn each_scheme_has_its_own() {
        let both = proxies(&[("HTTP_PROXY", "http://plain"), ("https_proxy", "http://tls")]);
        assert_eq!(both.of("http://e.org/v2/"), Some("http://plain"));
        assert_eq!(both.of("https://e.org/v2/"), Some("http://tls"));
        let one = proxies(&[("HTTP_PROXY", "http://plain"), ("HTTPS_PROXY", "")]);
        assert_eq!(one.of("https://e.org/"), None);
        let all = proxies(&[("ALL_PROXY", "http://all"), ("HTTPS_PROXY", "http://tls")]);
        assert_eq!(
            (all.of("http://e.org"), all.of("https://e.org")),
            (Some("http://all"), Some("http://tls"))
        );
        for url in ["http://localhost:5000/v2/", "http://127.0.0.1/", "https://[::1]:5000/"] {
            assert_eq!(both.of(url), None, "{url}");
        }
        let secret = proxies(&[("HTTP_PROXY", "http://ann:secret@p")]);
        assert!(!format!("{secret:?}").contains("secret"));
    }

    #[test]
    fn exceptions() {
        for (rules, url, direct) in [
            ("*", "https://e.org", true),
            ("e.org", "https://e.org/v2/", true),
            ("E.org", "https://a.e.ORG/v2/", true),
            ("e.org", "https://the.org/", false),
            ("e.org", "https://thee.org/", false),
            (".e.org", "https://e.org/", false),
            (".e.org", "https://a.e.org/", true),
            ("*.e.org", "https://a.e.org/", true),
            ("a, e.org:443", "https://e.org/", true),
            ("e.org:5000", "https://e.org/", false),
            ("e.org:5000", "https://e.org:5000/", true),
            ("e.org:80", "http://e.org/", true),
            ("10.0.0.0/8", "https://10.1.2.3:5000/", true),
            ("10.0.0.0/8", "https://11.1.2.3:5000/", false),
            ("10.0.0.0/8", "https://e.org/", false),
            ("0.0.0.0/0", "https://11.1.2.3/", true),
            ("10.1.2.3", "https://10.1.2.3/", true),
            ("fd00::/8", "https://[fd00::1]:5000/", true),
            ("fd00::1", "https://[fd00::2]/", false),
            ("10.0.0.0/99,/,:,[", "https://10.0.0.1/", false),
            ("", "https://e.org/", false),
        ] {
            let proxies = proxies(&[("ALL_PROXY", "http://p"), ("NO_PROXY", rules)]);
            assert_eq!(proxies.of(url).is_none(), direct, "{rules} {url}");
        }
    }
}
