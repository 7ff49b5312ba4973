//! TOML to a tree.

use std::ops::Range;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::node::{Key, Node, Value};
use crate::diagnostic::{Checked, Fault, SourceText, Span};

/// Parse a text.
pub(crate) fn parse(source: &Arc<SourceText>) -> Checked<Node> {
    let parsed = DeTable::parse(&source.text).map_err(|error| {
        let words: Vec<&str> = error.message().split_whitespace().collect();
        let span = Span::new(source, error.span().unwrap_or(0..0));
        Fault::new(&span, format!("not valid TOML: {}", words.join(" ")))
    })?;
    let mut node = table(source, parsed.get_ref(), parsed.span());
    sort(&mut node);
    Ok(node)
}

fn table(source: &Arc<SourceText>, table: &DeTable<'_>, span: Range<usize>) -> Node {
    let entries = table
        .iter()
        .map(|(key, node)| {
            let name = key.get_ref().to_string();
            let span = Span::new(source, key.span());
            (Key { span, name }, value(source, node.get_ref(), node.span()))
        })
        .collect();
    Node::new(Span::new(source, span), Value::Map(entries))
}

fn value(source: &Arc<SourceText>, node: &DeValue<'_>, span: Range<usize>) -> Node {
    let value = match node {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(integer) => Value::Number(integer.to_string()),
        DeValue::Float(float) => Value::Number(float.to_string()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(list) => {
            Value::List(list.iter().map(|item| value(source, item.get_ref(), item.span())).collect())
        }
        DeValue::Table(inner) => return table(source, inner, span),
    };
    Node::new(Span::new(source, span), value)
}

/// TOML tables are kept sorted by name; file order is what counts here.
fn sort(node: &mut Node) {
    match &mut node.value {
        Value::Map(entries) => {
            entries.sort_by_key(|(key, _)| key.span.start);
            entries.iter_mut().for_each(|(_, value)| sort(value));
        }
        Value::List(items) => items.iter_mut().for_each(sort),
        _ => {}
    }
}
