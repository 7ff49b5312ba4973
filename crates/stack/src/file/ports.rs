//! `ports`: short and long syntax, ranges expanded.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use network::plan::{Mode, Protocol};

use super::bridge::ipv4;
use super::keys::{self, Level};
use super::node::{Key, Node, Value};
use crate::diagnostic::{Checked, Fault, SourceText, Span};

/// One published port.
#[derive(Debug, Clone)]
pub(crate) struct PortFile {
    pub(crate) span: Span,
    /// `None`: the format's default.
    pub(crate) host_ip: Option<IpAddr>,
    /// 0: the kernel chooses.
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) mode: Mode,
}

/// Read a whole `ports` list.
pub(crate) fn parse(node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<PortFile>> {
    let mut ports = Vec::new();
    for item in node.list("ports")? {
        match &item.value {
            Value::Map(entries) => long(item, entries, &mut ports, warnings)?,
            _ => short(item, &mut ports)?,
        }
    }
    Ok(ports)
}

/// The ports of a word of the command line, which is in the short form.
pub(crate) fn of_word(word: &str) -> Checked<Vec<PortFile>> {
    let source = SourceText::new(Path::new("the command line"), word);
    let node = Node::new(Span::new(&source, 0..word.len()), Value::String(word.to_owned()));
    let mut ports = Vec::new();
    short(&node, &mut ports)?;
    Ok(ports)
}

/// `[IP:][HOST[-END]:]CONTAINER[-END][/PROTOCOL]`.
fn short(node: &Node, ports: &mut Vec<PortFile>) -> Checked<()> {
    let text = node.text("ports")?;
    let (addresses, protocol) = match text.split_once('/') {
        Some((addresses, protocol)) => (addresses, protocol),
        None => (text.as_str(), "tcp"),
    };
    let protocol = match word(&node.span, protocol)? {
        Word::Tcp => Protocol::Tcp,
        Word::Udp => Protocol::Udp,
        Word::Ftp => {
            return Err(Fault::new(&node.span, format!("`{text}` does not name the ports of passive mode"))
                .hint("write `{ target = 21, published = 2121, protocol = \"ftp\", passive = \"21100-21110\" }`"));
        }
    };
    let bad = || {
        Fault::new(&node.span, format!("`{text}` is not a port"))
            .hint("write `HOST:CONTAINER`, such as `8443:443`, or `IP:HOST:CONTAINER`")
    };
    let (host, container) = match addresses.rsplit_once(':') {
        Some((host, container)) => (Some(host), container),
        None => (None, addresses),
    };
    let (host_ip, published) = match host {
        None => (None, None),
        Some(host) => match host.rsplit_once(':') {
            Some((ip, published)) => {
                let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
                (Some(ip), Some(published).filter(|text| !text.is_empty()))
            }
            None => (None, Some(host)),
        },
    };
    let host_ip = host_ip.map(|ip| address(&node.span, ip)).transpose()?;
    let container = range(container).ok_or_else(bad)?;
    let published = published.map(|text| range(text).ok_or_else(bad)).transpose()?;
    let like = PortFile {
        span: node.span.clone(),
        host_ip,
        host_port: 0,
        container_port: 0,
        protocol,
        mode: Mode::Proxy,
    };
    publish(&like, published, container, ports)
}

fn long(
    node: &Node,
    entries: &[(Key, Node)],
    ports: &mut Vec<PortFile>,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let mut target = None;
    let mut published = None;
    let mut protocol = Word::Tcp;
    // Their keys are kept for what is wrong without the right protocol.
    let (mut passive, mut announce, mut direct) = (None, None, None);
    let mut host_ip = None;
    for (key, value) in entries {
        if !keys::PORT.admits(key, &key.name, "a port", warnings)? || value.is_null() {
            continue;
        }
        match key.name.as_str() {
            "target" => target = Some(value.port("target")?),
            "published" => published = Some(range_of(value, "published")?),
            "host_ip" => host_ip = Some(address(&value.span, &value.text("host_ip")?)?),
            "protocol" => protocol = word(&value.span, &value.text("protocol")?)?,
            "passive" => passive = Some((key, pool(value)?)),
            // So that a variable may decide.
            "announce" if value.text("announce")?.is_empty() => {}
            "announce" => announce = Some((key, ipv4(value, "announce")?)),
            "mode" if mode(value)? == Mode::Direct => direct = Some(value),
            "mode" => {}
            _ => return Err(Level::unread(key, "a port")),
        }
    }
    let Some(target) = target else {
        return Err(Fault::new(&node.span, "a port needs `target`, the port inside"));
    };
    let stray = passive.as_ref().map(|(key, _)| key).or(announce.as_ref().map(|(key, _)| key));
    let protocol = match (protocol, stray, passive.as_ref(), direct) {
        (Word::Ftp, _, _, Some(direct)) => {
            return Err(Fault::new(&direct.span, "a port cannot be both `direct` and `ftp`").hint(
                "leave `mode` out: the service's own connections are rewritten, so they go through us",
            ));
        }
        (Word::Ftp, _, Some((_, passive)), _) => {
            Protocol::Ftp { passive: *passive, announce: announce.map(|(_, address)| address) }
        }
        (Word::Ftp, _, None, _) => {
            return Err(Fault::new(&node.span, "an `ftp` port needs `passive`")
                .hint("name the host ports of its passive mode, such as `passive = \"21100-21110\"`"));
        }
        (_, Some(key), ..) => {
            return Err(Fault::new(&key.span, format!("`{}` is for `ftp` ports only", key.name))
                .hint("add `protocol = \"ftp\"`"));
        }
        (Word::Tcp, ..) => Protocol::Tcp,
        (Word::Udp, ..) => Protocol::Udp,
    };
    let mode = if direct.is_some() { Mode::Direct } else { Mode::Proxy };
    let span = direct.map_or(&node.span, |mode| &mode.span).clone();
    let like = PortFile { span, host_ip, host_port: 0, container_port: 0, protocol, mode };
    publish(&like, published, target..=target, ports)
}

/// A protocol's name.
#[derive(Clone, Copy)]
enum Word {
    Tcp,
    Udp,
    Ftp,
}

fn word(span: &Span, protocol: &str) -> Checked<Word> {
    match protocol {
        "tcp" => Ok(Word::Tcp),
        "udp" => Ok(Word::Udp),
        "ftp" => Ok(Word::Ftp),
        "sctp" => Err(Fault::new(span, "sctp ports cannot be published").hint("use `tcp` or `udp`")),
        other => Err(Fault::new(span, format!("`{other}` is not a protocol"))
            .hint("use `tcp`, `udp` or `ftp`")
            .nearest(other, ["tcp", "udp", "ftp"])),
    }
}

/// `host` and `ingress` tell apart what one machine has no two of.
fn mode(node: &Node) -> Checked<Mode> {
    let text = node.text("mode")?;
    match text.as_str() {
        "host" | "ingress" => Ok(Mode::Proxy),
        "direct" => Ok(Mode::Direct),
        _ => Err(Fault::new(&node.span, format!("`{text}` is not a mode of a port"))
            .hint("leave it out, or use `direct`: the service listens on the host's port itself")
            .nearest(&text, ["direct", "host", "ingress"])),
    }
}

fn address(span: &Span, text: &str) -> Checked<IpAddr> {
    text.parse().map_err(|_why| {
        Fault::new(span, format!("`{text}` is not an IP address"))
            .hint("use `127.0.0.1` for this machine only, `0.0.0.0` for every interface")
    })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        // `parse` would take a sign.
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok())?
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

fn range_of(node: &Node, what: &str) -> Checked<RangeInclusive<u16>> {
    let text = node.text(what)?;
    range(&text).ok_or_else(|| Fault::new(&node.span, format!("`{text}` is not a port")))
}

/// First and last port of `passive`.
fn pool(node: &Node) -> Checked<(u16, u16)> {
    let text = node.text("passive")?;
    let pool = range(&text).filter(|range| *range.start() > 0);
    pool.map(RangeInclusive::into_inner).ok_or_else(|| {
        Fault::new(&node.span, format!("`{text}` is not a range of ports"))
            .hint("write the first and the last, such as `21100-21110`")
    })
}

/// One port like `like` for each port of the ranges.
fn publish(
    like: &PortFile,
    published: Option<RangeInclusive<u16>>,
    container: RangeInclusive<u16>,
    ports: &mut Vec<PortFile>,
) -> Checked<()> {
    if *container.start() == 0 {
        return Err(Fault::new(&like.span, "port 0 of a service cannot be published"));
    }
    let host: Box<dyn Iterator<Item = u16>> = match published {
        None => Box::new(std::iter::repeat(0)),
        Some(range) if *range.start() == 0 && range.len() == 1 => Box::new(std::iter::repeat(0)),
        Some(range) => {
            if range.len() != container.len() {
                return Err(Fault::new(
                    &like.span,
                    format!(
                        "port ranges of different lengths: {} on the host, {} in the service",
                        range.len(),
                        container.len()
                    ),
                )
                .hint("give both ranges the same length, such as `21100-21110:21100-21110`"));
            }
            Box::new(range)
        }
    };
    ports.extend(host.zip(container).map(|(host_port, container_port)| PortFile {
        host_port,
        container_port,
        ..like.clone()
    }));
    Ok(())
}
