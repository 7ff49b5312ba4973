//! Rules as stack files write them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::{Rule, Target};
use crate::Subnet;

/// Longest name in text form, without a dot at the end (RFC 1035, section 3.1: 255 bytes on the wire).
const NAME: usize = 253;
/// Longest label (RFC 1035, section 3.1).
const LABEL: usize = 63;

/// A text that is no egress rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("egress rule `{rule}`: {problem}")]
pub struct RuleError {
    /// The whole text.
    pub rule: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a text that was to be an egress rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// Spaces, tabs or line ends.
    #[error("it has white space in it")]
    WhiteSpace,
    /// A name with other letters than those of ASCII.
    #[error("it has characters that are not ASCII")]
    NotAscii,
    /// A URL.
    #[error("it is a URL")]
    Url {
        /// What stands before `://`.
        scheme: String,
        /// The host and port in it.
        host: String,
    },
    /// A port that is no number from 1 to 65535.
    #[error("`{0}` is no port")]
    Port(String),
    /// The last port is below the first.
    #[error("the port range {0}-{1} is empty")]
    PortRange(u16, u16),
    /// What should be an address and is none.
    #[error("`{0}` is no IP address")]
    Address(String),
    /// `[` without `]`, something other than an IPv6 address between, or something odd after.
    #[error("the brackets are not around an IPv6 address")]
    Brackets,
    /// An IPv6 subnet without brackets, and with something after its prefix length.
    #[error("an IPv6 address with a port has no brackets")]
    NoBrackets {
        /// How it is written.
        instead: String,
    },
    /// A prefix length that is no number, or is too long.
    #[error("`{prefix}` is no prefix length of {address}")]
    Prefix {
        /// What stands after `/`.
        prefix: String,
        /// What stands before.
        address: IpAddr,
    },
    /// An address inside of a subnet instead of its first.
    #[error("{address} is not the first address of a /{prefix}")]
    HostBits {
        /// The address.
        address: IpAddr,
        /// The prefix length.
        prefix: u8,
        /// The first address of that subnet.
        subnet: IpAddr,
    },
    /// Two dots in a row, or one at the start.
    #[error("the name has an empty label")]
    EmptyLabel,
    /// A label of more than 63 characters.
    #[error("the label `{0}` is longer than 63 characters")]
    LongLabel(String),
    /// A name of more than 253 characters.
    #[error("the name is longer than 253 characters")]
    LongName,
    /// A name without a dot.
    #[error("`{0}` is a name of one label, which never leads out of the stack")]
    OneLabel(String),
    /// A character that no name has.
    #[error("`{0}` cannot be part of a name")]
    Character(char),
    /// A star elsewhere than in front.
    #[error("`*` does not stand for a whole name in front of `.`")]
    Star,
}

impl RuleError {
    /// How it could be written.
    #[must_use]
    pub fn hint(&self) -> String {
        match &self.problem {
            Problem::Empty | Problem::Address(_) | Problem::Character(_) => {
                "a rule is `example.org:443`, `*.example.org`, `10.0.0.0/8:5432` or `[2001:db8::]/32:443`".into()
            }
            Problem::WhiteSpace => "write one rule for each destination, without spaces".into(),
            Problem::NotAscii => "write an internationalized name in its ASCII form, which starts with `xn--`".into(),
            Problem::Url { scheme, host } => {
                let port = match scheme.as_str() {
                    _ if host.contains(':') => "",
                    "http" | "ws" => ":80",
                    "https" | "wss" => ":443",
                    _ => ":PORT",
                };
                format!("a rule has no scheme and no path: write `{host}{port}`")
            }
            Problem::Port(_) => "ports are 1 to 65535, or a range such as `80-443`; without one, all are allowed".into(),
            Problem::PortRange(first, last) => format!("write `{last}-{first}`"),
            Problem::Brackets => "write `[2001:db8::1]:443` or `[2001:db8::]/32:443`".into(),
            Problem::NoBrackets { instead } => format!("write `{instead}`"),
            Problem::Prefix { address, .. } => {
                format!("it is a number from 0 to {}", if address.is_ipv4() { 32 } else { 128 })
            }
            Problem::HostBits { address, prefix, subnet } => {
                let (subnet, address) = (written(*subnet), written(*address));
                format!("write `{subnet}/{prefix}` for the subnet, or `{address}` for the one address")
            }
            Problem::EmptyLabel => "names are labels with single dots between them".into(),
            Problem::LongLabel(_) | Problem::LongName => "no such name can exist".into(),
            Problem::OneLabel(name) => match name.as_str() {
                "all" | "none" => format!("write `egress = \"{name}\"`, not in a list"),
                _ => "services of the stack are reached without a rule; names of the world have a dot".into(),
            },
            Problem::Star => {
                "write `*.example.org` for all names below `example.org`, or `0.0.0.0/0` and `[::]/0` for all addresses"
                    .into()
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Name(name) => f.write_str(name)?,
            Target::Below(name) => write!(f, "*.{name}")?,
            Target::Subnet(subnet) => {
                f.write_str(&written(subnet.first()))?;
                if !subnet.is_single() {
                    write!(f, "/{}", subnet.prefix())?;
                }
            }
        }
        match self.ports {
            None => Ok(()),
            Some((first, last)) if first == last => write!(f, ":{first}"),
            Some((first, last)) => write!(f, ":{first}-{last}"),
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        rule(text).map_err(|problem| RuleError { rule: text.to_owned(), problem })
    }
}

fn rule(text: &str) -> Result<Rule, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.contains(char::is_whitespace) {
        return Err(Problem::WhiteSpace);
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        return Err(Problem::Url { scheme: scheme.to_ascii_lowercase(), host: host.to_owned() });
    }
    if !text.is_ascii() {
        return Err(Problem::NotAscii);
    }
    if let Some(rest) = text.strip_prefix('[') {
        return bracketed(rest);
    }
    if let Some((address, rest)) = text.split_once('/') {
        let address: IpAddr = address.parse().map_err(|_| Problem::Address(address.to_owned()))?;
        return match (address, split_ports(rest)) {
            (IpAddr::V6(address), (prefix, Some(ports))) => {
                Err(Problem::NoBrackets { instead: format!("[{address}]/{prefix}:{ports}") })
            }
            (_, (prefix, ports)) => Ok(Rule { target: subnet(address, Some(prefix))?, ports: range(ports)? }),
        };
    }
    // More than one colon is an IPv6 address as a whole: where a port would start in it, nobody can tell.
    if text.matches(':').count() > 1 {
        let address: Ipv6Addr = text.parse().map_err(|_| Problem::Address(text.to_owned()))?;
        return Ok(Rule { target: subnet(address.into(), None)?, ports: None });
    }
    let (host, ports) = split_ports(text);
    Ok(Rule { target: host_target(host)?, ports: range(ports)? })
}

/// `ADDRESS][/PREFIX][:PORTS]`.
fn bracketed(text: &str) -> Result<Rule, Problem> {
    let (address, rest) = text.split_once(']').ok_or(Problem::Brackets)?;
    let address: Ipv6Addr = address.parse().map_err(|_| Problem::Brackets)?;
    let (prefix, ports) = split_ports(rest);
    let prefix = match prefix.strip_prefix('/') {
        None if prefix.is_empty() => None,
        None => return Err(Problem::Brackets),
        prefix => prefix,
    };
    Ok(Rule { target: subnet(address.into(), prefix)?, ports: range(ports)? })
}

fn split_ports(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(before, ports)| (before, Some(ports)))
}

/// `PORT` or `FIRST-LAST`.
fn range(text: Option<&str>) -> Result<Option<(u16, u16)>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let port =
        |text: &str| number(text).filter(|port| *port > 0).ok_or_else(|| Problem::Port(text.to_owned()));
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(Problem::PortRange(first, last));
    }
    Ok(Some((first, last)))
}

/// Digits only, where [`str::parse`] takes a sign as well.
fn number<T: FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn subnet(address: IpAddr, prefix: Option<&str>) -> Result<Target, Problem> {
    let whole = Subnet::one(address).prefix();
    let prefix = match prefix {
        None => whole,
        Some(text) => number(text)
            .filter(|prefix| *prefix <= whole)
            .ok_or_else(|| Problem::Prefix { prefix: text.to_owned(), address })?,
    };
    let subnet = Subnet::of(address, prefix);
    if subnet.first() != address {
        return Err(Problem::HostBits { address, prefix, subnet: subnet.first() });
    }
    // Destinations are compared as IPv4 where they are, and so is what allows them.
    match address.to_canonical() {
        canonical @ IpAddr::V4(_) if address.is_ipv6() && prefix >= 96 => {
            Ok(Target::Subnet(Subnet::of(canonical, prefix - 96)))
        }
        _ => Ok(Target::Subnet(subnet)),
    }
}

/// A name, `*.` and a name, or an IPv4 address.
fn host_target(text: &str) -> Result<Target, Problem> {
    if let Some(parent) = text.strip_prefix("*.") {
        return Ok(Target::Below(name(parent)?));
    }
    let last = text.strip_suffix('.').unwrap_or(text).rsplit('.').next().unwrap_or(text);
    // No name ends in a number (RFC 3696, section 2): this is an address, or was to be one.
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        let address: IpAddr = text.parse().map_err(|_| Problem::Address(text.to_owned()))?;
        return subnet(address, None);
    }
    let name = name(text)?;
    if name.contains('.') { Ok(Target::Name(name)) } else { Err(Problem::OneLabel(name)) }
}

/// The name in lower case, without a dot at the end.
fn name(text: &str) -> Result<String, Problem> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.contains('*') {
        return Err(Problem::Star);
    }
    // An underscore is in no host name, but in names of services that are looked up all the same.
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(odd) = name.chars().find(|c| !allowed(*c)) {
        return Err(Problem::Character(odd));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(Problem::EmptyLabel);
        }
        if label.len() > LABEL {
            return Err(Problem::LongLabel(label.to_owned()));
        }
    }
    if name.len() > NAME { Err(Problem::LongName) } else { Ok(name) }
}

/// As it stands in a rule.
fn written(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Rule {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn every_form_is_read_and_written() {
        let name = |name: &str| Target::Name(name.to_owned());
        let below = |name: &str| Target::Below(name.to_owned());
        let subnet =
            |address: &str, prefix| Target::Subnet(Subnet::of(address.parse::<IpAddr>().unwrap(), prefix));
        for (text, target, ports, shown) in [
            ("example.org:443", name("example.org"), Some((443, 443)), None),
            ("example.org", name("example.org"), None, None),
            ("Example.ORG.", name("example.org"), None, Some("example.org")),
            (
                "_ldap._tcp.xn--bcher-kva.example:1-65535",
                name("_ldap._tcp.xn--bcher-kva.example"),
                Some((1, 65535)),
                None,
            ),
            ("*.wordpress.org", below("wordpress.org"), None, None),
            ("*.wordpress.org:80-443", below("wordpress.org"), Some((80, 443)), None),
            ("*.org", below("org"), None, None),
            ("10.0.0.0/8:5432", subnet("10.0.0.0", 8), Some((5432, 5432)), None),
            ("10.0.0.7", subnet("10.0.0.7", 32), None, None),
            ("10.0.0.7/32:53", subnet("10.0.0.7", 32), Some((53, 53)), Some("10.0.0.7:53")),
            ("192.0.2.0/24", subnet("192.0.2.0", 24), None, None),
            ("0.0.0.0/0", subnet("0.0.0.0", 0), None, None),
            ("[2001:db8::]/32:443", subnet("2001:db8::", 32), Some((443, 443)), None),
            ("[2001:db8::1]:443", subnet("2001:db8::1", 128), Some((443, 443)), None),
            ("[2001:db8::1]", subnet("2001:db8::1", 128), None, None),
            ("2001:db8::/32", subnet("2001:db8::", 32), None, Some("[2001:db8::]/32")),
            ("2001:db8::1", subnet("2001:db8::1", 128), None, Some("[2001:db8::1]")),
            ("[::]/0:80", subnet("::", 0), Some((80, 80)), None),
            ("[::ffff:10.0.0.0]/104:80", subnet("10.0.0.0", 8), Some((80, 80)), Some("10.0.0.0/8:80")),
            ("::ffff:10.0.0.7", subnet("10.0.0.7", 32), None, Some("10.0.0.7")),
        ] {
            let rule = parse(text);
            assert_eq!(rule, Rule { target, ports }, "{text}");
            assert_eq!(rule.to_string(), shown.unwrap_or(text));
        }
    }

    #[test]
    fn errors_say_what_is_wrong_and_what_to_write() {
        let long = format!("{}.org", "a".repeat(64));
        let longer = format!("{}org", "a.".repeat(126));
        for (text, message, hint) in [
            ("", "it is empty", "a rule is `example.org:443`"),
            ("example.org: 443", "it has white space in it", "without spaces"),
            ("example.org\n", "it has white space in it", "without spaces"),
            ("bücher.example", "it has characters that are not ASCII", "`xn--`"),
            ("https://example.org/path", "it is a URL", "write `example.org:443`"),
            ("HTTP://example.org", "it is a URL", "write `example.org:80`"),
            ("redis://example.org:6379", "it is a URL", "write `example.org:6379`"),
            ("tcp://example.org", "it is a URL", "write `example.org:PORT`"),
            ("example.org:0", "`0` is no port", "1 to 65535"),
            ("example.org:", "`` is no port", "1 to 65535"),
            ("example.org:+1", "`+1` is no port", "1 to 65535"),
            ("example.org:65536", "`65536` is no port", "1 to 65535"),
            ("example.org:443/tcp", "`example.org:443` is no IP address", "a rule is"),
            ("10.0.0.7:1-", "`` is no port", "1 to 65535"),
            ("example.org:443-80", "the port range 443-80 is empty", "write `80-443`"),
            ("10.0.0.256", "`10.0.0.256` is no IP address", "a rule is"),
            ("1.2.3.123456789012345678901", "`1.2.3.123456789012345678901` is no IP address", "a rule is"),
            ("example.org/24", "`example.org` is no IP address", "a rule is"),
            ("10.0.0.0/33", "`33` is no prefix length of 10.0.0.0", "from 0 to 32"),
            ("10.0.0.0/+8", "`+8` is no prefix length of 10.0.0.0", "from 0 to 32"),
            ("[2001:db8::]/129", "`129` is no prefix length of 2001:db8::", "from 0 to 128"),
            (
                "10.0.0.7/8",
                "10.0.0.7 is not the first address of a /8",
                "write `10.0.0.0/8` for the subnet, or `10.0.0.7`",
            ),
            (
                "[2001:db8::1]/32:1",
                "2001:db8::1 is not the first address of a /32",
                "write `[2001:db8::]/32`",
            ),
            ("[10.0.0.1]:80", "the brackets are not around an IPv6 address", "write `[2001:db8::1]:443`"),
            ("[2001:db8::1", "the brackets are not around an IPv6 address", "write"),
            ("[2001:db8::1]443", "the brackets are not around an IPv6 address", "write"),
            (
                "2001:db8::/32:443",
                "an IPv6 address with a port has no brackets",
                "write `[2001:db8::]/32:443`",
            ),
            ("example.org:80:443", "`example.org:80:443` is no IP address", "a rule is"),
            ("fe80::1%eth0", "`fe80::1%eth0` is no IP address", "a rule is"),
            ("example..org", "the name has an empty label", "single dots"),
            (".example.org", "the name has an empty label", "single dots"),
            (":443", "the name has an empty label", "single dots"),
            ("*.", "the name has an empty label", "single dots"),
            ("user@example.org", "`@` cannot be part of a name", "a rule is"),
            (&long, "is longer than 63 characters", "no such name"),
            (&longer, "the name is longer than 253 characters", "no such name"),
            ("web", "`web` is a name of one label", "without a rule"),
            ("None", "`none` is a name of one label", "write `egress = \"none\"`"),
            ("*", "`*` does not stand for a whole name", "`0.0.0.0/0`"),
            ("*:443", "`*` does not stand for a whole name", "`0.0.0.0/0`"),
            ("www.*.org", "`*` does not stand for a whole name", "`*.example.org`"),
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(error.to_string().contains(message), "{text}: {error}");
            assert!(error.hint().contains(hint), "{text}: {}", error.hint());
        }
    }

    fn target() -> impl Strategy<Value = Target> {
        let name = "[a-z0-9_-]{1,20}(\\.[a-z0-9_-]{1,20}){0,3}\\.[a-z]{2,10}";
        prop_oneof![
            name.prop_map(Target::Name),
            name.prop_map(Target::Below),
            (any::<u32>(), 0u8..=32).prop_map(|(bits, prefix)| Target::Subnet(Subnet::of(
                std::net::Ipv4Addr::from(bits),
                prefix
            ))),
            (any::<u128>(), 0u8..=128)
                .prop_map(|(bits, prefix)| Target::Subnet(Subnet::of(Ipv6Addr::from(bits), prefix))),
        ]
    }

    fn ports() -> impl Strategy<Value = Option<(u16, u16)>> {
        proptest::option::of((1u16.., 1u16..).prop_map(|(a, b)| (a.min(b), a.max(b))))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(target in target(), ports in ports()) {
            let rule = Rule { target, ports };
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn no_text_panics_and_what_is_read_is_written_and_read_again(
            text in prop_oneof![".{0,40}", "[a-z0-9.*:/\\[\\]-]{0,24}", "[0-9a-f:]{2,12}(/[0-9]{1,3})?(:[0-9]{1,5})?"],
        ) {
            match text.parse::<Rule>() {
                Ok(rule) => prop_assert_eq!(rule.to_string().parse(), Ok(rule)),
                Err(error) => prop_assert!(!error.hint().is_empty()),
            }
        }
    }
}
