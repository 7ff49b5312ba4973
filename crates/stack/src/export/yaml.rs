//! Objects as YAML.

use std::path::Path;

use serde_json::Value;

use crate::diagnostic::{SourceText, Span};
use crate::file::node::{self, Key, Node};
use crate::load::yaml;

/// One document, without the line that begins it. Keys without a value (`null`, empty lists, tables of nothing else)
/// are left out; a table that was made without keys says something: an empty `podSelector` selects all.
pub(super) fn document(object: &Value) -> String {
    let nowhere = Span::start_of(&SourceText::new(Path::new(""), ""));
    yaml(&tree(object, &nowhere))
}

fn tree(value: &Value, nowhere: &Span) -> Node {
    let value = match value {
        Value::Null => node::Value::Null,
        Value::Bool(value) => node::Value::Bool(*value),
        Value::Number(number) => node::Value::Number(number.to_string()),
        Value::String(text) => node::Value::String(text.clone()),
        Value::Array(items) => node::Value::List(items.iter().map(|item| tree(item, nowhere)).collect()),
        Value::Object(entries) => {
            let said = entries.iter().filter(|(_, value)| says_something(value));
            let entry = |(name, value): (&String, &Value)| (Key::new(nowhere, name), tree(value, nowhere));
            node::Value::Map(said.map(entry).collect())
        }
    };
    Node::new(nowhere.clone(), value)
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => entries.is_empty() || entries.values().any(says_something),
        _ => true,
    }
}
