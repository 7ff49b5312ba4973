//! Addresses of data connections as commands and replies spell them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What a client says where it listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Address(SocketAddr),
    /// It is well-formed, and neither IPv4 nor IPv6.
    OtherFamily,
    Malformed,
}

/// The argument of `PORT`: `h1,h2,h3,h4,p1,p2`.
pub(super) fn port_argument(argument: &[u8]) -> Named {
    match host_and_port(argument) {
        Some((address, [])) => Named::Address(address),
        _ => Named::Malformed,
    }
}

/// The argument of `EPRT` (RFC 2428, section 2): `|1|192.0.2.1|6275|`, with any delimiter.
pub(super) fn extended_argument(argument: &[u8]) -> Named {
    let parse = || {
        let argument = str::from_utf8(argument).ok()?;
        let delimiter = argument.chars().next().filter(char::is_ascii_graphic)?;
        let mut fields = argument.split(delimiter).skip(1);
        let (family, host, port) = (fields.next()?, fields.next()?, fields.next()?);
        if (fields.next(), fields.next()) != (Some(""), None) {
            return None;
        }
        let ip = match decimal(family.as_bytes())? {
            1 => IpAddr::V4(host.parse().ok()?),
            2 => IpAddr::V6(host.parse().ok()?),
            _ => return Some(Named::OtherFamily),
        };
        Some(Named::Address(SocketAddr::new(ip, decimal(port.as_bytes())?)))
    };
    parse().unwrap_or(Named::Malformed)
}

/// The port in a line of a 227 or 229 reply, wherever in its text it stands: RFC 1123 (4.1.2.6) tells clients to look
/// for digits. Port 0 is none.
pub(super) fn passive_port(code: [u8; 3], line: &[u8]) -> Option<u16> {
    let found = |at: usize| {
        let text = &line[at..];
        if code == *b"227" {
            let starts = at == 0 || !line[at - 1].is_ascii_digit();
            starts.then(|| host_and_port(text)).flatten().map(|(address, _)| address.port())
        } else {
            extended_port(text)
        }
    };
    (0..line.len()).find_map(found).filter(|port| *port != 0)
}

/// `|||6446|` at the beginning of `text`, with any delimiter (RFC 2428, section 3).
fn extended_port(text: &[u8]) -> Option<u16> {
    let [delimiter, second, third, rest @ ..] = text else { return None };
    let same = delimiter == second && delimiter == third;
    if !same || !delimiter.is_ascii_graphic() || delimiter.is_ascii_digit() {
        return None;
    }
    let (port, rest) = leading_digits(rest);
    (rest.first() == Some(delimiter)).then(|| decimal(port)).flatten()
}

/// Six numbers of a byte each at the beginning of `text`, and what follows them.
fn host_and_port(text: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let mut bytes = [0; 6];
    let mut rest = text;
    for (at, byte) in bytes.iter_mut().enumerate() {
        if at > 0 {
            rest = rest.strip_prefix(b",")?;
        }
        let digits;
        (digits, rest) = leading_digits(rest);
        *byte = u8::try_from(decimal(digits)?).ok()?;
    }
    let [a, b, c, d, high, low] = bytes;
    let address = SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])));
    Some((address, rest))
}

fn leading_digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().take_while(|byte| byte.is_ascii_digit()).count())
}

/// Digits and nothing else: `parse` takes a sign, too.
fn decimal(digits: &[u8]) -> Option<u16> {
    let digits = str::from_utf8(digits).ok()?;
    let plain = (1..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// As `PORT` and 227 have it.
pub(super) fn numbers(address: Ipv4Addr, port: u16) -> String {
    let [a, b, c, d] = address.octets();
    let [high, low] = port.to_be_bytes();
    format!("{a},{b},{c},{d},{high},{low}")
}

/// Whether an address means nothing outside of the client's own network or machine.
pub(super) fn is_unroutable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            // 100.64.0.0/10 is between a provider and its customers (RFC 6598).
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || a == 0
                || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified() || ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
    }
}
