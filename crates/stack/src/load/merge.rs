//! Two trees become one by the rules of the compose specification ("Merge and override").
//!
//! Tables merge key by key, lists are appended, anything else is replaced; what is an exception to that, is in
//! `RULES`.

use std::collections::HashMap;

use crate::diagnostic::Checked;
use crate::file::node::{Key, Merge, Node, Value};

/// How two values of one key become one.
#[derive(Clone, Copy)]
enum Rule {
    /// The later one it is.
    Replace,
    /// Tables, and lists of `NAME=VALUE`: both become a table.
    Pairs,
    /// One value or a list of them: all of them, each once.
    Values,
    /// A list of names, or a table by name: both become a table, in which a mere name has this value.
    Names(fn(&Node) -> Value),
    /// A list whose entries are known by something; a later one takes the place of an earlier.
    Keyed(fn(&Node) -> Option<String>),
    /// The same, but the two become one entry.
    MergeKeyed(fn(&Node) -> Option<String>),
    /// A table, or one value that stands for a table with this key.
    Short(&'static str),
    /// Options belong to their driver.
    Logging,
    /// Merged if both are tables.
    Limit,
}

/// Where which rule applies; `*` is any key.
const RULES: &[(&[&str], Rule)] = &[
    (&["services", "*", "annotations"], Rule::Pairs),
    (&["services", "*", "build"], Rule::Short("context")),
    (&["services", "*", "build", "additional_contexts"], Rule::Pairs),
    (&["services", "*", "build", "args"], Rule::Pairs),
    (&["services", "*", "build", "extra_hosts"], Rule::Values),
    (&["services", "*", "build", "labels"], Rule::Pairs),
    (&["services", "*", "build", "platforms"], Rule::Values),
    (&["services", "*", "build", "secrets"], Rule::Keyed(secret)),
    (&["services", "*", "build", "tags"], Rule::Values),
    (&["services", "*", "cap_add"], Rule::Values),
    (&["services", "*", "cap_drop"], Rule::Values),
    (&["services", "*", "command"], Rule::Replace),
    (&["services", "*", "configs"], Rule::Keyed(config)),
    (&["services", "*", "depends_on"], Rule::Names(dependency)),
    (&["services", "*", "deploy", "labels"], Rule::Pairs),
    (&["services", "*", "devices"], Rule::Keyed(mount)),
    (&["services", "*", "dns"], Rule::Values),
    (&["services", "*", "dns_opt"], Rule::Values),
    (&["services", "*", "dns_search"], Rule::Values),
    (&["services", "*", "entrypoint"], Rule::Replace),
    (&["services", "*", "env_file"], Rule::Keyed(path)),
    (&["services", "*", "environment"], Rule::Pairs),
    (&["services", "*", "expose"], Rule::Values),
    (&["services", "*", "extra_hosts"], Rule::Values),
    (&["services", "*", "group_add"], Rule::Values),
    (&["services", "*", "healthcheck", "test"], Rule::Replace),
    (&["services", "*", "label_file"], Rule::Values),
    (&["services", "*", "labels"], Rule::Pairs),
    (&["services", "*", "links"], Rule::Values),
    (&["services", "*", "logging"], Rule::Logging),
    (&["services", "*", "networks"], Rule::Names(nothing)),
    (&["services", "*", "networks", "*", "aliases"], Rule::Values),
    (&["services", "*", "networks", "*", "link_local_ips"], Rule::Values),
    (&["services", "*", "ports"], Rule::Keyed(port)),
    (&["services", "*", "profiles"], Rule::Values),
    (&["services", "*", "secrets"], Rule::Keyed(secret)),
    (&["services", "*", "security_opt"], Rule::Values),
    (&["services", "*", "sysctls"], Rule::Pairs),
    (&["services", "*", "tmpfs"], Rule::Values),
    (&["services", "*", "ulimits", "*"], Rule::Limit),
    (&["services", "*", "volumes"], Rule::Keyed(mount)),
    (&["networks", "*", "ipam", "config"], Rule::MergeKeyed(subnet)),
    (&["networks", "*", "labels"], Rule::Pairs),
    (&["volumes", "*", "labels"], Rule::Pairs),
    (&["secrets", "*", "labels"], Rule::Pairs),
    (&["configs", "*", "labels"], Rule::Pairs),
];

/// Merge a file's tree over another's. What `!reset` and `!override` say is done, and forgotten.
pub(super) fn files(base: Node, over: Node) -> Checked<Node> {
    let mut merged = merge(base, over, &mut Vec::new())?;
    settle(&mut merged);
    Ok(merged)
}

/// Merge a service over the one that it extends. Its `!reset` and `!override` still count for what it is merged
/// over next.
pub(super) fn services(mut base: Node, over: Node) -> Checked<Node> {
    settle(&mut base);
    merge(base, over, &mut vec!["services".to_owned(), "*".to_owned()])
}

/// Take away what `!reset` takes away.
pub(super) fn settle(node: &mut Node) {
    node.merge = Merge::Normal;
    match &mut node.value {
        Value::Map(entries) => {
            entries.retain(|(_, node)| node.merge != Merge::Reset);
            entries.iter_mut().for_each(|(_, node)| settle(node));
        }
        Value::List(items) => {
            items.retain(|node| node.merge != Merge::Reset);
            items.iter_mut().for_each(settle);
        }
        _ => {}
    }
}

/// Of entries of a list that are known by the same, keep the last: within one file, compose does as between two.
pub(super) fn unify(root: &mut Node) -> Checked<()> {
    unify_below(root, &mut Vec::new())
}

fn unify_below(node: &mut Node, path: &mut Vec<String>) -> Checked<()> {
    match (rule(path), &mut node.value) {
        (Some(Rule::Values), Value::List(_)) => unify_list(node, value, path)?,
        (Some(Rule::Keyed(key)), Value::List(_)) => unify_list(node, key, path)?,
        (_, Value::Map(entries)) => {
            for (key, node) in entries {
                path.push(key.name.clone());
                unify_below(node, path)?;
                path.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

fn unify_list(node: &mut Node, key: fn(&Node) -> Option<String>, path: &mut Vec<String>) -> Checked<()> {
    let none = Node::new(node.span.clone(), Value::List(Vec::new()));
    let merge = node.merge;
    let list = std::mem::replace(node, none.clone());
    *node = keyed(none, list, key, false, path)?;
    node.merge = merge;
    Ok(())
}

/// Write what has two forms as tables.
pub(super) fn normalize(root: &mut Node) {
    descend(root, &mut Vec::new());
}

fn descend(node: &mut Node, path: &mut Vec<String>) {
    if !node.is_null() {
        let plain = std::mem::replace(node, Node::new(node.span.clone(), Value::Null));
        *node = match rule(path) {
            // What is no list of texts is refused where it is read.
            Some(Rule::Pairs) => pairs(plain.clone(), path).unwrap_or(plain),
            Some(Rule::Names(value)) => names(plain, value),
            Some(Rule::Short(key)) => long(plain, key),
            _ => plain,
        };
    }
    if let Value::Map(entries) = &mut node.value {
        for (key, node) in entries {
            path.push(key.name.clone());
            descend(node, path);
            path.pop();
        }
    }
}

fn rule(path: &[String]) -> Option<Rule> {
    let fits = |pattern: &[&str]| {
        pattern.len() == path.len() && pattern.iter().zip(path).all(|(one, name)| *one == "*" || one == name)
    };
    RULES.iter().find(|(pattern, _)| fits(pattern)).map(|(_, rule)| *rule)
}

fn merge(base: Node, over: Node, path: &mut Vec<String>) -> Checked<Node> {
    if over.merge != Merge::Normal {
        return Ok(over);
    }
    let rule = rule(path);
    if matches!(rule, Some(Rule::Replace)) || base.is_null() {
        return Ok(over);
    }
    // An empty key of YAML says nothing.
    if over.is_null() {
        return Ok(base);
    }
    match rule {
        None | Some(Rule::Replace) => by_kind(base, over, path),
        Some(Rule::Pairs) => by_kind(pairs(base, path)?, pairs(over, path)?, path),
        Some(Rule::Names(value)) => by_kind(names(base, value), names(over, value), path),
        Some(Rule::Short(key)) => by_kind(long(base, key), long(over, key), path),
        Some(Rule::Values) => keyed(list(base), list(over), value, false, path),
        Some(Rule::Keyed(key)) => keyed(list(base), list(over), key, false, path),
        Some(Rule::MergeKeyed(key)) => keyed(list(base), list(over), key, true, path),
        Some(Rule::Logging) => {
            let drivers = (base.get("driver").and_then(value), over.get("driver").and_then(value));
            match drivers {
                (Some(one), Some(other)) if one != other => Ok(over),
                _ => by_kind(base, over, path),
            }
        }
        Some(Rule::Limit) => match (&base.value, &over.value) {
            (Value::Map(_), Value::Map(_)) => by_kind(base, over, path),
            _ => Ok(over),
        },
    }
}

/// Without any rule of its own.
fn by_kind(base: Node, over: Node, path: &mut Vec<String>) -> Checked<Node> {
    match (base.value, over.value) {
        (Value::Map(entries), Value::Map(others)) => {
            let value = Value::Map(tables(entries, others, path)?);
            Ok(Node { span: over.span, value, merge: over.merge })
        }
        (Value::List(mut items), Value::List(others)) => {
            items.extend(others);
            Ok(Node { span: over.span, value: Value::List(items), merge: over.merge })
        }
        (value @ (Value::Map(_) | Value::List(_)), other) => {
            let kind = if matches!(value, Value::Map(_)) { "a table" } else { "a list" };
            let key = path.last().map_or("the file", String::as_str);
            let over = Node::new(over.span, other);
            Err(over.wrong(key, kind).other(&base.span, "to be merged with this"))
        }
        (_, value) => Ok(Node { span: over.span, value, merge: over.merge }),
    }
}

fn tables(
    mut entries: Vec<(Key, Node)>,
    others: Vec<(Key, Node)>,
    path: &mut Vec<String>,
) -> Checked<Vec<(Key, Node)>> {
    // Tables can be large; each key is looked for once.
    let mut places: HashMap<String, usize> =
        entries.iter().enumerate().map(|(at, (key, _))| (key.name.clone(), at)).collect();
    for (key, other) in others {
        let Some(at) = places.get(&key.name).copied() else {
            places.insert(key.name.clone(), entries.len());
            entries.push((key, other));
            continue;
        };
        let node = &mut entries[at].1;
        // What an extension means is known to nobody here.
        if key.name.starts_with("x-") {
            *node = other;
            continue;
        }
        let base = std::mem::replace(node, Node::new(key.span.clone(), Value::Null));
        path.push(key.name.clone());
        let merged = merge(base, other, path)?;
        path.pop();
        entries[at] = (key, merged);
    }
    Ok(entries)
}

fn keyed(
    base: Node,
    over: Node,
    key: fn(&Node) -> Option<String>,
    merge: bool,
    path: &mut Vec<String>,
) -> Checked<Node> {
    let (Value::List(mut items), Value::List(others)) = (base.value, over.value) else {
        return Ok(Node::new(over.span, Value::Null));
    };
    let mut places: HashMap<String, usize> =
        items.iter().enumerate().filter_map(|(at, item)| Some((key(item)?, at))).collect();
    for other in others {
        // What has no key is refused later, where it is read.
        let Some(name) = key(&other) else {
            items.push(other);
            continue;
        };
        match places.get(&name) {
            Some(at) if merge => {
                let base = std::mem::replace(&mut items[*at], Node::new(over.span.clone(), Value::Null));
                path.push(name);
                items[*at] = by_kind(base, other, path)?;
                path.pop();
            }
            Some(at) => items[*at] = other,
            None => {
                places.insert(name, items.len());
                items.push(other);
            }
        }
    }
    Ok(Node { span: over.span, value: Value::List(items), merge: over.merge })
}

/// `NAME=VALUE` as an entry of a table.
fn pairs(node: Node, path: &[String]) -> Checked<Node> {
    let Value::List(items) = node.value else { return Ok(node) };
    let what = path.last().map_or("", String::as_str);
    let mut entries: Vec<(Key, Node)> = Vec::new();
    for item in items {
        let text = item.text(what)?;
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Value::String(value.to_owned())),
            None => (text, Value::Null),
        };
        let entry =
            (Key { span: item.span.clone(), name }, Node { span: item.span, value, merge: item.merge });
        // As it would be read: the last one counts.
        match entries.iter().position(|(key, _)| key.name == entry.0.name) {
            Some(at) => entries[at] = entry,
            None => entries.push(entry),
        }
    }
    Ok(Node { span: node.span, value: Value::Map(entries), merge: node.merge })
}

fn names(node: Node, value: fn(&Node) -> Value) -> Node {
    let Value::List(items) = node.value else { return node };
    let entry = |item: Node| {
        let name = self::value(&item)?;
        let value = value(&item);
        Some((Key { span: item.span.clone(), name }, Node { span: item.span, value, merge: item.merge }))
    };
    let entries = items.into_iter().filter_map(entry).collect();
    Node { span: node.span, value: Value::Map(entries), merge: node.merge }
}

/// What `depends_on: [NAME]` stands for.
fn dependency(node: &Node) -> Value {
    let key = Key { span: node.span.clone(), name: "condition".to_owned() };
    let condition = Node::new(node.span.clone(), Value::String("service_started".to_owned()));
    Value::Map(vec![(key, condition)])
}

fn nothing(_: &Node) -> Value {
    Value::Null
}

fn long(node: Node, key: &str) -> Node {
    match node.value {
        Value::Map(_) | Value::List(_) => node,
        _ => {
            let key = Key { span: node.span.clone(), name: key.to_owned() };
            let (span, merge) = (node.span.clone(), node.merge);
            Node { span, value: Value::Map(vec![(key, node)]), merge }
        }
    }
}

/// `extra_hosts` as a table is a list, too.
fn list(node: Node) -> Node {
    let value = match node.value {
        Value::List(_) => return node,
        Value::Map(entries) => {
            let item = |(key, node): (Key, Node)| {
                let text = format!("{}={}", key.name, value(&node).unwrap_or_default());
                Node::new(node.span, Value::String(text))
            };
            Value::List(entries.into_iter().map(item).collect())
        }
        value => Value::List(vec![Node::new(node.span.clone(), value)]),
    };
    Node { span: node.span, value, merge: node.merge }
}

/// A single value as a text.
fn value(node: &Node) -> Option<String> {
    node.loose_text("").ok().filter(|_| !node.is_null())
}

fn field(node: &Node, name: &str) -> Option<String> {
    node.get(name).and_then(value)
}

fn path(node: &Node) -> Option<String> {
    value(node).or_else(|| field(node, "path"))
}

fn subnet(node: &Node) -> Option<String> {
    field(node, "subnet")
}

/// The path inside, of volumes and devices: `[SOURCE:]TARGET[:OPTIONS]`.
fn mount(node: &Node) -> Option<String> {
    let Some(text) = value(node) else { return field(node, "target") };
    let mut parts = text.split(':');
    let first = parts.next()?;
    let target = parts.next().filter(|part| part.starts_with('/')).unwrap_or(first);
    Some(target.trim_end_matches('/').to_owned())
}

fn secret(node: &Node) -> Option<String> {
    granted(node, "/run/secrets/")
}

fn config(node: &Node) -> Option<String> {
    granted(node, "/")
}

/// The path inside of what is granted by its name.
fn granted(node: &Node, parent: &str) -> Option<String> {
    let target = value(node).or_else(|| field(node, "target")).or_else(|| field(node, "source"))?;
    Some(if target.starts_with('/') { target } else { format!("{parent}{target}") })
}

/// Address, published port, port inside and protocol.
fn port(node: &Node) -> Option<String> {
    let Some(text) = value(node) else {
        let or = |name: &str, default: &str| field(node, name).unwrap_or_else(|| default.to_owned());
        let target = field(node, "target")?;
        let (address, published) = (or("host_ip", ""), or("published", ""));
        return Some(format!("{address}:{published}:{target}/{}", or("protocol", "tcp")));
    };
    let (ports, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    let (rest, target) = ports.rsplit_once(':').unwrap_or(("", ports));
    let (address, published) = rest.rsplit_once(':').unwrap_or(("", rest));
    let address = address.trim_start_matches('[').trim_end_matches(']');
    Some(format!("{address}:{published}:{target}/{protocol}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::diagnostic::SourceText;
    use crate::file::yaml;

    fn parsed(text: &str) -> Node {
        yaml::parse(&SourceText::new(Path::new("a.yaml"), text)).unwrap().remove(0)
    }

    /// Two versions of one service.
    fn service(base: &str, over: &str) -> Checked<String> {
        let file = |text: &str| parsed(&format!("services: {{ a: {{ {text} }} }}"));
        let merged = files(file(base), file(over))?;
        let service = merged.get("services").and_then(|node| node.get("a")).unwrap();
        Ok(service.compact())
    }

    #[test]
    fn keys_of_services() {
        for (base, over, expected) in [
            // Values are replaced, tables merged, lists appended.
            ("image: x", "image: y", r#"{"image":"y"}"#),
            ("image: x", "user: u", r#"{"image":"x","user":"u"}"#),
            ("image: x", "image: ", r#"{"image":"x"}"#),
            (
                "deploy: {replicas: 1, mode: m}",
                "deploy: {replicas: 2}",
                r#"{"deploy":{"replicas":2,"mode":"m"}}"#,
            ),
            (
                "post_start: [{command: a}]",
                "post_start: [{command: a}]",
                r#"{"post_start":[{"command":"a"},{"command":"a"}]}"#,
            ),
            // Replaced as a whole.
            ("command: [a, b]", "command: c", r#"{"command":"c"}"#),
            ("entrypoint: [a]", "entrypoint: []", r#"{"entrypoint":[]}"#),
            ("command: [a]", "command: null", r#"{"command":null}"#),
            (
                "healthcheck: {test: [CMD, a], retries: 3}",
                "healthcheck: {test: [CMD, b]}",
                r#"{"healthcheck":{"test":["CMD","b"],"retries":3}}"#,
            ),
            // Tables and lists of pairs.
            (
                "environment: [A=1, B=2, A=3]",
                "environment: {B: 4, C: 5}",
                r#"{"environment":{"A":"3","B":4,"C":5}}"#,
            ),
            ("environment: {A: 1}", "environment: [A, B=x=y]", r#"{"environment":{"A":1,"B":"x=y"}}"#),
            ("labels: {a: 1}", "labels: [a=2, b]", r#"{"labels":{"a":"2","b":null}}"#),
            ("build: ./a", "build: {args: [X=1]}", r#"{"build":{"context":"./a","args":["X=1"]}}"#),
            (
                "build: {context: a, args: {X: 1}}",
                "build: {args: [X=2, Y]}",
                r#"{"build":{"context":"a","args":{"X":"2","Y":null}}}"#,
            ),
            ("build: {context: a, target: t}", "build: b", r#"{"build":{"context":"b","target":"t"}}"#),
            // Each value once.
            ("dns: 1.1.1.1", "dns: [8.8.8.8, 1.1.1.1]", r#"{"dns":["1.1.1.1","8.8.8.8"]}"#),
            ("cap_add: [A, B]", "cap_add: [B, C]", r#"{"cap_add":["A","B","C"]}"#),
            (
                "env_file: a.env",
                "env_file: [{path: a.env, required: false}, b.env]",
                r#"{"env_file":[{"path":"a.env","required":false},"b.env"]}"#,
            ),
            (
                "extra_hosts: {a: 1.1.1.1}",
                "extra_hosts: ['b:2.2.2.2']",
                r#"{"extra_hosts":["a=1.1.1.1","b:2.2.2.2"]}"#,
            ),
            ("profiles: [a]", "profiles: [a, b]", r#"{"profiles":["a","b"]}"#),
            // Known by something.
            (
                "ports: ['80:80', '81:81']",
                "ports: ['80:80/tcp', '80:80/udp', '127.0.0.1:81:81']",
                r#"{"ports":["80:80/tcp","81:81","80:80/udp","127.0.0.1:81:81"]}"#,
            ),
            ("ports: [{target: 80, published: '8080'}]", "ports: ['8080:80']", r#"{"ports":["8080:80"]}"#),
            ("ports: [80]", "ports: ['[::1]:80:80']", r#"{"ports":[80,"[::1]:80:80"]}"#),
            (
                "volumes: ['a:/x', './b:/y:ro']",
                "volumes: ['c:/x/', {type: tmpfs, target: /y}, /z]",
                r#"{"volumes":["c:/x/",{"type":"tmpfs","target":"/y"},"/z"]}"#,
            ),
            (
                "secrets: [a, b]",
                "secrets: [{source: c, target: a}, {source: b, mode: 0400}]",
                r#"{"secrets":[{"source":"c","target":"a"},{"source":"b","mode":0400}]}"#,
            ),
            (
                "configs: [a]",
                "configs: [{source: b, target: /a}]",
                r#"{"configs":[{"source":"b","target":"/a"}]}"#,
            ),
            // Lists of names and tables by name.
            (
                "depends_on: [a]",
                "depends_on: {b: {condition: service_healthy}}",
                r#"{"depends_on":{"a":{"condition":"service_started"},"b":{"condition":"service_healthy"}}}"#,
            ),
            (
                "networks: {a: {aliases: [x]}}",
                "networks: [a, b]",
                r#"{"networks":{"a":{"aliases":["x"]},"b":null}}"#,
            ),
            (
                "networks: {a: {aliases: [x]}}",
                "networks: {a: {aliases: [x, y]}}",
                r#"{"networks":{"a":{"aliases":["x","y"]}}}"#,
            ),
            // The rest.
            (
                "ulimits: {nofile: 1}",
                "ulimits: {nofile: {soft: 1, hard: 2}}",
                r#"{"ulimits":{"nofile":{"soft":1,"hard":2}}}"#,
            ),
            ("ulimits: {nofile: {soft: 1, hard: 2}}", "ulimits: {nofile: 1}", r#"{"ulimits":{"nofile":1}}"#),
            (
                "logging: {driver: a, options: {x: 1}}",
                "logging: {driver: b}",
                r#"{"logging":{"driver":"b"}}"#,
            ),
            (
                "logging: {options: {x: 1}}",
                "logging: {driver: b, options: {y: 1}}",
                r#"{"logging":{"options":{"x":1,"y":1},"driver":"b"}}"#,
            ),
            ("x-a: {b: 1}", "x-a: {c: 1}", r#"{"x-a":{"c":1}}"#),
            // Tags.
            ("ports: ['1:1'], user: u", "ports: !reset [], user: !reset null", "{}"),
            ("ports: ['1:1']", "ports: !override ['2:2']", r#"{"ports":["2:2"]}"#),
            ("environment: {A: 1, B: 2}", "environment: {A: !reset null}", r#"{"environment":{"B":2}}"#),
            ("deploy: {a: {b: 1, c: 2}}", "deploy: {a: !override {c: 3}}", r#"{"deploy":{"a":{"c":3}}}"#),
        ] {
            assert_eq!(service(base, over).unwrap(), expected, "{base} <- {over}");
        }
    }

    #[test]
    fn whole_files() {
        for (base, over, expected) in [
            (
                "services: {a: {image: x}}",
                "services: {a: !reset null, b: {image: y}}",
                r#"{"services":{"b":{"image":"y"}}}"#,
            ),
            (
                "services: {a: {image: x}}",
                "services: {a: !override {build: .}}",
                r#"{"services":{"a":{"build":"."}}}"#,
            ),
            ("networks: {n: }", "networks: {n: {internal: true}}", r#"{"networks":{"n":{"internal":true}}}"#),
            (
                "volumes: {v: {labels: [a=1]}}",
                "volumes: {v: {labels: {b: 2}}}",
                r#"{"volumes":{"v":{"labels":{"a":"1","b":2}}}}"#,
            ),
            (
                "networks: {n: {ipam: {config: [{subnet: 10.1.0.0/16}]}}}",
                "networks: {n: {ipam: {config: [{subnet: 10.1.0.0/16, gateway: 10.1.0.1}, {subnet: fd00::/64}]}}}",
                r#"{"networks":{"n":{"ipam":{"config":[{"subnet":"10.1.0.0/16","gateway":"10.1.0.1"},{"subnet":"fd00::/64"}]}}}}"#,
            ),
            ("name: a", "name: b", r#"{"name":"b"}"#),
            ("", "name: b", r#"{"name":"b"}"#),
            ("name: b", "", r#"{"name":"b"}"#),
        ] {
            assert_eq!(files(parsed(base), parsed(over)).unwrap().compact(), expected, "{base} <- {over}");
        }
    }

    #[test]
    fn what_does_not_fit() {
        let fault = files(parsed("services: {a: {deploy: {x: 1}}}"), parsed("services: {a: {deploy: 1}}"));
        assert_eq!(fault.unwrap_err().message, "`deploy` must be a table, but is a number");
        assert!(service("ports: ['1:1']", "ports: {a: 1}").is_ok());
        assert!(service("environment: [A=1]", "environment: [[]]").is_err());
    }

    #[test]
    fn tags_outlive_extends() {
        let (base, over) = (parsed("{ports: ['1:1'], user: u}"), parsed("{ports: !reset [], image: x}"));
        let extended = services(base, over).unwrap();
        let main = parsed("services: {a: {ports: ['3:3'], user: v}}");
        let key = Key { span: extended.span.clone(), name: "a".to_owned() };
        let span = extended.span.clone();
        let table = Node::new(span.clone(), Value::Map(vec![(key, extended)]));
        let key = Key { span: span.clone(), name: "services".to_owned() };
        let file = Node::new(span, Value::Map(vec![(key, table)]));
        let merged = files(main, file).unwrap();
        assert_eq!(merged.compact(), r#"{"services":{"a":{"user":"u","image":"x"}}}"#);
    }
}
