//! A tree as YAML, JSON and TOML.

use crate::file::node::{Key, Node, Value};
use crate::file::yaml;

/// In block style; what could be taken for something else is quoted.
pub(crate) fn yaml(root: &Node) -> String {
    let mut out = String::new();
    yaml_block(root, 0, &mut out);
    out
}

fn yaml_block(node: &Node, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => {
            for (key, node) in entries {
                out.push_str(&format!("{indent}{}:", yaml_text(&key.name)));
                yaml_value(node, depth, out);
            }
        }
        Value::List(items) if !items.is_empty() => {
            for item in items {
                let mut block = String::new();
                match &item.value {
                    Value::Map(entries) if !entries.is_empty() => yaml_block(item, depth + 1, &mut block),
                    Value::List(items) if !items.is_empty() => yaml_block(item, depth + 1, &mut block),
                    _ => block = format!("{indent}  {}\n", yaml_scalar(item)),
                }
                // The first line of an entry stands after its dash.
                out.push_str(&format!("{indent}- {}", &block[indent.len() + 2..]));
            }
        }
        _ => out.push_str(&format!("{indent}{}\n", yaml_scalar(node))),
    }
}

fn yaml_value(node: &Node, depth: usize, out: &mut String) {
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => {
            out.push('\n');
            yaml_block(node, depth + 1, out);
        }
        Value::List(items) if !items.is_empty() => {
            out.push('\n');
            yaml_block(node, depth + 1, out);
        }
        _ => out.push_str(&format!(" {}\n", yaml_scalar(node))),
    }
}

fn yaml_scalar(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(text) => text.clone(),
        Value::String(text) => yaml_text(text),
        Value::List(_) => "[]".to_owned(),
        Value::Map(_) => "{}".to_owned(),
    }
}

fn yaml_text(text: &str) -> String {
    // YAML 1.1, which other programs read, knows more words for true and false, and times.
    const WORDS: [&str; 14] =
        ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "Null", "True", "False", "Yes", "No"];
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || "/._".contains(c));
    let plain = |c: char| c.is_ascii_alphanumeric() || " /._-+=@%:,".contains(c);
    let unambiguous = !text.contains(": ") && !text.ends_with([' ', ':']) && !yaml::is_number(text);
    match first && text.chars().all(plain) && unambiguous && !WORDS.contains(&&*text.to_lowercase()) {
        true => text.to_owned(),
        false => quoted(text),
    }
}

/// As in JSON, which YAML and TOML read alike.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Control characters, and what some take for the end of a line.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Keys are in file order: a service's networks are.
pub(super) fn json(root: &Node) -> String {
    let mut out = String::new();
    json_value(root, 0, &mut out);
    out.push('\n');
    out
}

fn json_value(node: &Node, depth: usize, out: &mut String) {
    let lines = |ends: (char, char), lines: Vec<String>| match lines.is_empty() {
        true => format!("{}{}", ends.0, ends.1),
        false => {
            let (inner, outer) = ("  ".repeat(depth + 1), "  ".repeat(depth));
            let lines = lines.join(&format!(",\n{inner}"));
            format!("{}\n{inner}{lines}\n{outer}{}", ends.0, ends.1)
        }
    };
    let value = |node: &Node| {
        let mut value = String::new();
        json_value(node, depth + 1, &mut value);
        value
    };
    out.push_str(&match &node.value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(text) if is_integer(text) => text.clone(),
        // `0440` is octal to some and decimal to others, and `1.10` is not 1.1.
        Value::Number(text) | Value::String(text) => quoted(text),
        Value::List(items) => lines(('[', ']'), items.iter().map(value).collect()),
        Value::Map(entries) => {
            let entry = |(key, node): &(Key, Node)| format!("{}: {}", quoted(&key.name), value(node));
            lines(('{', '}'), entries.iter().map(entry).collect())
        }
    });
}

/// Whether a number is written as every notation writes it.
fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits == "0" || !digits.starts_with('0');
    plain && digits.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<i64>().is_ok()
}

/// With a header for each service, network and the like, and for the tables in them.
pub(super) fn toml(root: &Node) -> String {
    let mut out = String::new();
    let Value::Map(entries) = &root.value else { return out };
    let (tables, values): (Vec<_>, Vec<_>) =
        entries.iter().partition(|(_, node)| matches!(node.value, Value::Map(_)));
    toml_values(&values, "", &mut out);
    for (section, node) in tables {
        let Value::Map(entries) = &node.value else { continue };
        for (key, node) in entries {
            let path = format!("{}.{}", toml_key(&section.name), toml_key(&key.name));
            toml_table(&path, node, true, &mut out);
        }
    }
    out
}

fn toml_table(path: &str, node: &Node, outer: bool, out: &mut String) {
    let none = Vec::new();
    let entries = match &node.value {
        Value::Map(entries) => entries,
        _ => &none,
    };
    let is_table = |node: &Node| outer && matches!(&node.value, Value::Map(inner) if !inner.is_empty());
    let (tables, values): (Vec<_>, Vec<_>) = entries.iter().partition(|(_, node)| is_table(node));
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(&format!("[{path}]\n"));
    toml_values(&values, path, out);
    for (key, node) in tables {
        toml_table(&format!("{path}.{}", toml_key(&key.name)), node, false, out);
    }
}

fn toml_values(entries: &[&(Key, Node)], path: &str, out: &mut String) {
    for (key, node) in entries {
        if let Some(value) = toml_value(node, of_names(path)) {
            out.push_str(&format!("{} = {value}\n", toml_key(&key.name)));
        }
    }
}

/// Tables in which a name says something by being there.
fn of_names(path: &str) -> bool {
    path.starts_with("services.") && path.ends_with(".networks")
}

/// TOML has no null: a name without anything is an empty table, and any other key is not there.
fn toml_value(node: &Node, of_names: bool) -> Option<String> {
    Some(match &node.value {
        Value::Null if of_names => "{}".to_owned(),
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::Number(text) if is_integer(text) => text.clone(),
        // `1.10` is not 1.1.
        Value::Number(text) | Value::String(text) => quoted(text),
        Value::List(items) => {
            let items: Vec<String> = items.iter().filter_map(|item| toml_value(item, false)).collect();
            match items.iter().map(String::len).sum::<usize>() > 80 {
                true => format!("[\n  {},\n]", items.join(",\n  ")),
                false => format!("[{}]", items.join(", ")),
            }
        }
        Value::Map(entries) if entries.is_empty() => "{}".to_owned(),
        Value::Map(entries) => {
            let entry = |(key, node): &(Key, Node)| {
                Some(format!("{} = {}", toml_key(&key.name), toml_value(node, false)?))
            };
            format!("{{ {} }}", entries.iter().filter_map(entry).collect::<Vec<_>>().join(", "))
        }
    })
}

fn toml_key(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !name.is_empty() && name.chars().all(plain) {
        true => name.to_owned(),
        false => quoted(name),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::diagnostic::{SourceText, Span};
    use crate::file::{Format, documents, yaml::parse};

    fn tree() -> impl Strategy<Value = Node> {
        let nowhere = Span::start_of(&SourceText::new(Path::new("a.yaml"), ""));
        let node = move |value| Node::new(nowhere.clone(), value);
        let text =
            prop_oneof!["\\PC{0,12}", "[ -~\n\t\u{85}]{0,8}", "(y|no|0x1|1e3|~|- |# |: |<<|=)[a-z]{0,1}"];
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            "(-?[0-9]{1,4}|0[0-7]{3}|[0-9]\\.[0-9]{1,2}|0x[0-9A-F])".prop_map(Value::Number),
            text.clone().prop_map(Value::String),
        ];
        let leaf = {
            let node = node.clone();
            scalar.prop_map(node)
        };
        leaf.prop_recursive(4, 24, 4, move |inner| {
            let (list, map) = (node.clone(), node.clone());
            let key = node.clone();
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(move |items| list(Value::List(items))),
                prop::collection::btree_map(text.clone(), inner, 0..4).prop_map(move |entries| {
                    let span = key(Value::Null).span;
                    let entries = entries.into_iter().map(|(name, node)| (Key::new(&span, &name), node));
                    map(Value::Map(entries.collect()))
                }),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn yaml_is_read_as_it_was(tree in tree()) {
            let text = yaml(&tree);
            let mut read = parse(&SourceText::new(Path::new("a.yaml"), text.clone()))
                .map_err(|fault| TestCaseError::fail(format!("{}\n{text}", fault.message)))?;
            prop_assert!(read.remove(0).same(&tree), "{}", text);
        }

        #[test]
        fn json_is_json(tree in tree()) {
            let text = json(&tree);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        }

        #[test]
        fn toml_is_toml(tree in tree()) {
            let mut file = Node::new(tree.span.clone(), Value::Null);
            let mut section = Node::new(tree.span.clone(), Value::Null);
            section.put(Key::new(&tree.span, "a b"), tree.clone());
            file.put(Key::new(&tree.span, "services"), section);
            let text = toml(&file);
            let read = documents(Format::Stack, &SourceText::new(Path::new("a.toml"), text.clone()));
            prop_assert!(read.is_ok(), "{}", text);
        }
    }
}
