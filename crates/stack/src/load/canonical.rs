//! Short forms as the long ones, and the notation of compose as that of `stack.toml`.

use super::merge;
use crate::file::node::{Key, Node, Value};
use crate::file::service::EXTENSIONS;

/// Write short forms as tables, as far as they are plain. What is not, is left for the one who reads it.
pub(super) fn long(root: &mut Node) {
    merge::normalize(root);
    for service in services(root) {
        split_ranges(service);
        each(service, "ports", port);
        each(service, "volumes", volume);
        each(service, "secrets", granted);
        each(service, "configs", granted);
    }
}

/// Say what the two notations take for granted differently.
pub(super) fn stack(root: &mut Node) {
    if let Value::Map(entries) = &mut root.value {
        entries.retain(|(key, _)| !key.name.starts_with("x-"));
    }
    for service in services(root) {
        let span = service.span.clone();
        if let Value::Map(entries) = &mut service.value {
            for (key, _) in entries.iter_mut() {
                let name = key.name.strip_prefix("x-").filter(|name| EXTENSIONS.contains(name));
                if let Some(name) = name {
                    key.name = name.to_owned();
                }
            }
            entries.retain(|(key, _)| !key.name.starts_with("x-"));
        }
        if service.get("init").is_none_or(Node::is_null) {
            service.put(Key::new(&span, "init"), Node::new(span.clone(), Value::Bool(false)));
        }
        each(service, "ports", everywhere);
        // TOML has no null, and a label without a value is empty.
        for key in ["annotations", "labels"] {
            if let Some(Node { value: Value::Map(entries), .. }) = service.get_mut(key) {
                let entries = entries.iter_mut().filter(|(_, node)| node.is_null());
                entries.for_each(|(_, node)| node.value = string(""));
            }
        }
    }
}

fn services(root: &mut Node) -> impl Iterator<Item = &mut Node> {
    let entries = match root.get_mut("services") {
        Some(Node { value: Value::Map(entries), .. }) => entries.as_mut_slice(),
        _ => &mut [],
    };
    entries.iter_mut().map(|(_, node)| node)
}

fn each(service: &mut Node, key: &str, change: fn(&mut Node)) {
    if let Some(Node { value: Value::List(items), .. }) = service.get_mut(key) {
        items.iter_mut().for_each(change);
    }
}

fn text(node: &Node) -> Option<String> {
    node.text("").ok()
}

fn string(text: impl Into<String>) -> Value {
    Value::String(text.into())
}

fn table<const N: usize>(node: &mut Node, entries: [(&str, Option<Value>); N]) {
    let span = node.span.clone();
    let entry =
        |(name, value): (&str, Option<Value>)| Some((Key::new(&span, name), Node::new(span.clone(), value?)));
    node.value = Value::Map(entries.into_iter().filter_map(entry).collect());
}

/// `[ADDRESS:][PUBLISHED:]TARGET[/PROTOCOL]`, taken apart.
struct Port {
    address: Option<String>,
    published: Option<String>,
    target: String,
    protocol: Option<String>,
}

impl Port {
    fn of(text: &str) -> Self {
        // A colon of `${PORT:-80}` parts nothing.
        let mask = masked(text);
        let end = mask.find('/').unwrap_or(text.len());
        let protocol = text.get(end + 1..).map(str::to_owned);
        let target = mask[..end].rfind(':').map_or(0, |at| at + 1);
        let rest = target.checked_sub(1);
        let (address, published) = match rest.map(|end| (end, mask[..end].rfind(':'))) {
            None => (None, None),
            Some((end, None)) => (None, Some(&text[..end])),
            Some((end, Some(at))) => (Some(text[..at].to_owned()), Some(&text[at + 1..end])),
        };
        let target = &text[target..end];
        let published = published.filter(|text| !text.is_empty()).map(str::to_owned);
        Self { address, published, target: target.to_owned(), protocol }
    }
}

/// The text with what is between `${` and `}` made plain.
fn masked(text: &str) -> String {
    let mut open = 0usize;
    let mut before = b' ';
    let mask = text.bytes().map(|byte| {
        match byte {
            b'{' if before == b'$' => open += 1,
            b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        before = byte;
        if open > 0 || !byte.is_ascii() { '_' } else { char::from(byte) }
    });
    mask.collect()
}

/// Most ports that a range is written out for.
const MOST_PORTS: u16 = 1024;

/// Write ranges of ports as single ones, as compose does.
fn split_ranges(service: &mut Node) {
    let Some(Node { value: Value::List(items), .. }) = service.get_mut("ports") else { return };
    let single = |item: &Node| -> Vec<Node> {
        let Some(ports) = text(item).and_then(|text| single_ports(&text)) else { return vec![item.clone()] };
        ports.into_iter().map(|port| Node::new(item.span.clone(), string(port))).collect()
    };
    *items = items.iter().flat_map(single).collect();
}

fn single_ports(text: &str) -> Option<Vec<String>> {
    let range = |text: &str| -> Option<(u16, u16)> {
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        (first <= last && last - first < MOST_PORTS).then_some((first, last))
    };
    let port = Port::of(text);
    let (first, last) = range(&port.target)?;
    let published = match &port.published {
        None => None,
        // Another number of them is a mistake, which is told of elsewhere.
        Some(published) => Some(range(published).filter(|(from, to)| to - from == last - first)?.0),
    };
    let address = port.address.map_or_else(String::new, |address| format!("{address}:"));
    let protocol = port.protocol.map_or_else(String::new, |protocol| format!("/{protocol}"));
    let one = |target: u16| {
        let published = published.map_or_else(String::new, |from| (from + (target - first)).to_string());
        match (published.is_empty(), address.is_empty()) {
            (true, true) => format!("{target}{protocol}"),
            _ => format!("{address}{published}:{target}{protocol}"),
        }
    };
    Some((first..=last).map(one).collect())
}

fn port(node: &mut Node) {
    let Some(text) = text(node) else { return };
    let port = Port::of(&text);
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A range is one entry for a thousand ports.
    if !plain(&port.target) || port.published.as_deref().is_some_and(|published| !plain(published)) {
        return;
    }
    let address = port.address.map(|address| {
        let inner = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
        string(inner.unwrap_or(&address))
    });
    table(
        node,
        [
            ("mode", Some(string("ingress"))),
            ("host_ip", address),
            ("target", Some(Value::Number(port.target))),
            ("published", port.published.map(string)),
            ("protocol", Some(string(port.protocol.unwrap_or_else(|| "tcp".to_owned())))),
        ],
    );
}

/// Without an address, a compose file publishes on every interface.
fn everywhere(node: &mut Node) {
    const ADDRESS: &str = "0.0.0.0";
    let span = node.span.clone();
    let Some(text) = text(node) else {
        if node.get("host_ip").is_none_or(Node::is_null) {
            node.put(Key::new(&span, "host_ip"), Node::new(span.clone(), string(ADDRESS)));
        }
        return;
    };
    let port = Port::of(&text);
    if port.address.is_none() {
        let protocol = port.protocol.map_or_else(String::new, |protocol| format!("/{protocol}"));
        let published = port.published.unwrap_or_default();
        node.value = string(format!("{ADDRESS}:{published}:{}{protocol}", port.target));
    }
}

fn volume(node: &mut Node) {
    let Some(text) = text(node).filter(|text| !text.contains('$')) else { return };
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts.as_slice() {
        [target] => (None, *target, false),
        [source, target] | [source, target, "rw"] => (Some(*source), *target, false),
        [source, target, "ro"] => (Some(*source), *target, true),
        _ => return,
    };
    let bind = source.is_some_and(|source| source.starts_with(['.', '/', '~']));
    table(
        node,
        [
            ("type", Some(string(if bind { "bind" } else { "volume" }))),
            ("source", source.map(string)),
            ("target", Some(string(target))),
            ("read_only", read_only.then_some(Value::Bool(true))),
        ],
    );
    if bind {
        let span = node.span.clone();
        let mut options = Node::new(span.clone(), Value::Null);
        options.put(Key::new(&span, "create_host_path"), Node::new(span.clone(), Value::Bool(true)));
        node.put(Key::new(&span, "bind"), options);
    }
}

fn granted(node: &mut Node) {
    if let Some(name) = text(node) {
        table(node, [("source", Some(string(name)))]);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn ranges_are_written_out() {
        for (text, expected) in [
            ("7-8", Some(vec!["7", "8"])),
            ("1-2:3-4", Some(vec!["1:3", "2:4"])),
            ("127.0.0.1:1-2:3-4/udp", Some(vec!["127.0.0.1:1:3/udp", "127.0.0.1:2:4/udp"])),
            ("[::1]::3-4", Some(vec!["[::1]::3", "[::1]::4"])),
            ("65534-65535:65534-65535", Some(vec!["65534:65534", "65535:65535"])),
            ("80", None),
            ("1-2:3", None),
            ("1-3:3-4", None),
            ("4-3", None),
            ("0-65535", None),
            ("${A:-1-2}:3", None),
        ] {
            let expected = expected.map(|ports| ports.into_iter().map(str::to_owned).collect());
            assert_eq!(single_ports(text), expected, "{text}");
        }
    }
    use crate::diagnostic::SourceText;
    use crate::file::yaml;

    #[test]
    fn ports() {
        for (text, expected, everywhere) in [
            ("'80'", r#"{"mode":"ingress","target":80,"protocol":"tcp"}"#, r#""0.0.0.0::80""#),
            (
                "'1:80/udp'",
                r#"{"mode":"ingress","target":80,"published":"1","protocol":"udp"}"#,
                r#""0.0.0.0:1:80/udp""#,
            ),
            (
                "'[::1]:1:80'",
                r#"{"mode":"ingress","host_ip":"::1","target":80,"published":"1","protocol":"tcp"}"#,
                r#""[::1]:1:80""#,
            ),
            ("'1-2:3-4'", r#""1-2:3-4""#, r#""0.0.0.0:1-2:3-4""#),
            (
                "'${P:-1}:${Q:-2}/${R:-tcp}'",
                r#""${P:-1}:${Q:-2}/${R:-tcp}""#,
                r#""0.0.0.0:${P:-1}:${Q:-2}/${R:-tcp}""#,
            ),
            ("'é:/'", r#""é:/""#, r#""0.0.0.0:é:/""#),
        ] {
            let parse = || yaml::parse(&SourceText::new(Path::new("a.yaml"), text)).unwrap().remove(0);
            let (mut one, mut other) = (parse(), parse());
            port(&mut one);
            super::everywhere(&mut other);
            assert_eq!((one.compact().as_str(), other.compact().as_str()), (expected, everywhere), "{text}");
        }
    }
}
