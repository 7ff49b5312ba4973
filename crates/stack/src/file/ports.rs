//! `ports`: short and long syntax, ranges expanded.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::node::{Key, Node, Value, unknown_key};
use crate::diagnostic::{Checked, Fault, Span};

/// One published port.
#[derive(Debug, Clone)]
pub(crate) struct PortFile {
    pub(crate) span: Span,
    /// `None`: the format's default.
    pub(crate) host_ip: Option<IpAddr>,
    /// 0: the kernel chooses.
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
}

const LONG: &[&str] = &["target", "published", "host_ip", "protocol", "mode", "name", "app_protocol"];

/// Read a whole `ports` list.
pub(crate) fn parse(node: &Node) -> Checked<Vec<PortFile>> {
    let mut ports = Vec::new();
    for item in node.list("ports")? {
        match &item.value {
            Value::Map(entries) => long(item, entries, &mut ports)?,
            _ => short(item, &mut ports)?,
        }
    }
    Ok(ports)
}

/// `[IP:][HOST[-END]:]CONTAINER[-END][/PROTOCOL]`.
fn short(node: &Node, ports: &mut Vec<PortFile>) -> Checked<()> {
    let text = node.text("ports")?;
    let (addresses, protocol) = match text.split_once('/') {
        Some((addresses, protocol)) => (addresses, protocol),
        None => (text.as_str(), "tcp"),
    };
    check_protocol(&node.span, protocol)?;
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
    publish(&node.span, host_ip, published, container, ports)
}

fn long(node: &Node, entries: &[(Key, Node)], ports: &mut Vec<PortFile>) -> Checked<()> {
    let mut target = None;
    let mut published = None;
    let mut host_ip = None;
    for (key, value) in entries {
        match key.name.as_str() {
            "target" => target = Some(value.port("target")?),
            "published" => {
                let text = value.text("published")?;
                let bad = || Fault::new(&value.span, format!("`{text}` is not a port"));
                published = Some(range(&text).ok_or_else(bad)?);
            }
            "host_ip" => host_ip = Some(address(&value.span, &value.text("host_ip")?)?),
            "protocol" => check_protocol(&value.span, &value.text("protocol")?)?,
            "mode" | "name" | "app_protocol" => {}
            _ => return Err(unknown_key(key, "a port", LONG.iter().copied())),
        }
    }
    let Some(target) = target else {
        return Err(Fault::new(&node.span, "a port needs `target`, the port inside"));
    };
    publish(&node.span, host_ip, published, target..=target, ports)
}

fn check_protocol(span: &Span, protocol: &str) -> Checked<()> {
    match protocol {
        "tcp" => Ok(()),
        "udp" | "sctp" => Err(Fault::new(span, format!("{protocol} ports cannot be published yet"))
            .hint("publish TCP ports only; services reach each other's UDP ports as they are")),
        other => Err(Fault::new(span, format!("`{other}` is not a protocol")).hint("use `tcp`")),
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

fn publish(
    span: &Span,
    host_ip: Option<IpAddr>,
    published: Option<RangeInclusive<u16>>,
    container: RangeInclusive<u16>,
    ports: &mut Vec<PortFile>,
) -> Checked<()> {
    if *container.start() == 0 {
        return Err(Fault::new(span, "port 0 of a service cannot be published"));
    }
    let host: Box<dyn Iterator<Item = u16>> = match published {
        None => Box::new(std::iter::repeat(0)),
        Some(range) if *range.start() == 0 && range.len() == 1 => Box::new(std::iter::repeat(0)),
        Some(range) => {
            if range.len() != container.len() {
                return Err(Fault::new(
                    span,
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
        span: span.clone(),
        host_ip,
        host_port,
        container_port,
    }));
    Ok(())
}
