//! One tree for TOML and YAML: values with their places in the text.

use std::ops::Range;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Checked, Fault, SourceText, Span};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

/// A key and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) span: Span,
    pub(crate) name: String,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// As written, so that `1.10` stays `1.10` where a text is wanted.
    Number(String),
    String(String),
    List(Vec<Node>),
    /// In file order.
    Map(Vec<(Key, Node)>),
}

/// Parse TOML.
pub(crate) fn from_toml(source: &Arc<SourceText>) -> Checked<Node> {
    let table = DeTable::parse(&source.text).map_err(|error| {
        let span = Span::new(source, error.span().unwrap_or(0..0));
        Fault::new(&span, format!("not valid TOML: {}", one_line(error.message())))
    })?;
    let span = table.span();
    let mut node = toml_table(source, table.get_ref(), span);
    sort(&mut node);
    Ok(node)
}

fn toml_table(source: &Arc<SourceText>, table: &DeTable<'_>, span: Range<usize>) -> Node {
    let entries = table
        .iter()
        .map(|(key, value)| {
            let name = key.get_ref().to_string();
            let span = Span::new(source, key.span());
            (Key { span, name }, toml_value(source, value.get_ref(), value.span()))
        })
        .collect();
    Node { span: Span::new(source, span), value: Value::Map(entries) }
}

fn toml_value(source: &Arc<SourceText>, value: &DeValue<'_>, span: Range<usize>) -> Node {
    let value = match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(integer) => Value::Number(integer.to_string()),
        DeValue::Float(float) => Value::Number(float.to_string()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(list) => {
            let item = |item: &toml::Spanned<DeValue<'_>>| toml_value(source, item.get_ref(), item.span());
            Value::List(list.iter().map(item).collect())
        }
        DeValue::Table(table) => return toml_table(source, table, span),
    };
    Node { span: Span::new(source, span), value }
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

/// How deep YAML may nest. The specification needs about ten levels; what reads them recurses, and must
/// stay within a thread's 2 MiB in a debug build, too.
const MAX_DEPTH: usize = 24;

/// Parse YAML 1.2 as compose files are written: anchors, merge keys, and `no` is a text.
pub(crate) fn from_yaml(source: &Arc<SourceText>) -> Checked<Node> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
    };
    let parsed: YamlNode = serde_saphyr::from_str_with_options(&source.text, options).map_err(|error| {
        let span = error.location().map_or(Span::start_of(source), |place| yaml_span(source, &place));
        let message = error.without_snippet().to_string();
        // The place is shown anyway, and the library's options are of no use to a reader.
        let message = match &message {
            text if text.contains("DuplicateKeyPolicy") => "duplicate key",
            text => text.rfind(" at line ").map_or(&**text, |at| &text[..at]),
        };
        Fault::new(&span, format!("not valid YAML: {}", one_line(message)))
    })?;
    Ok(parsed.into_node(source))
}

struct YamlNode(serde_saphyr::Spanned<YamlValue>);

enum YamlValue {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    List(Vec<YamlNode>),
    Map(Vec<(serde_saphyr::Spanned<String>, YamlNode)>),
}

impl YamlNode {
    fn into_node(self, source: &Arc<SourceText>) -> Node {
        let span = yaml_span(source, &self.0.defined);
        let value = match self.0.value {
            YamlValue::Null => Value::Null,
            YamlValue::Bool(value) => Value::Bool(value),
            YamlValue::Number(parsed) => {
                // What was written beats what was parsed: `0440`, `1.10`, `1_000`.
                let written = span.text().trim();
                if written.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
                    Value::Number(written.to_owned())
                } else {
                    Value::Number(parsed)
                }
            }
            YamlValue::String(value) => Value::String(value),
            YamlValue::List(items) => {
                Value::List(items.into_iter().map(|item| item.into_node(source)).collect())
            }
            YamlValue::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let span = yaml_span(source, &key.defined);
                        let name = key.value;
                        (Key { span, name }, value.into_node(source))
                    })
                    .collect(),
            ),
        };
        Node { span, value }
    }
}

fn yaml_span(source: &Arc<SourceText>, location: &serde_saphyr::Location) -> Span {
    let text = &source.text;
    let span = location.span();
    if let (Some(offset), Some(len)) = (span.byte_offset(), span.byte_len()) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        return Span::new(source, start..start.saturating_add(len).min(text.len()));
    }
    // Only line and column: the line from there on.
    let line = usize::try_from(location.line()).unwrap_or(1).max(1);
    let start: usize = text.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let column = usize::try_from(location.column()).unwrap_or(1).max(1);
    let start = text[start..].char_indices().nth(column - 1).map_or(text.len(), |(at, _)| start + at);
    Span::new(source, start..start)
}

impl<'de> Deserialize<'de> for YamlNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_saphyr::Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for YamlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = YamlValue;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<YamlValue, E> {
        Ok(YamlValue::Null)
    }

    fn visit_none<E>(self) -> Result<YamlValue, E> {
        Ok(YamlValue::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<YamlValue, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<YamlValue, E> {
        Ok(YamlValue::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<YamlValue, E> {
        Ok(YamlValue::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<YamlValue, E> {
        Ok(YamlValue::Number(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<YamlValue, E> {
        Ok(YamlValue::Number(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<YamlValue, E> {
        Ok(YamlValue::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<YamlValue, E> {
        Ok(YamlValue::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<YamlValue, E> {
        Ok(YamlValue::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<YamlValue, E> {
        Ok(YamlValue::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<YamlValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(YamlValue::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<YamlValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(YamlValue::Map(entries))
    }
}

fn one_line(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ")
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "empty",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a table",
        }
    }

    /// The fault of a value of the wrong type.
    pub(crate) fn wrong(&self, what: &str, expected: &str) -> Box<Fault> {
        Fault::new(&self.span, format!("`{what}` must be {expected}, but is {}", self.kind()))
            .label(format!("expected {expected}"))
    }

    /// A string, or a number as it was written.
    pub(crate) fn text(&self, what: &str) -> Checked<String> {
        match &self.value {
            Value::String(text) | Value::Number(text) => Ok(text.clone()),
            _ => Err(self.wrong(what, "a string")),
        }
    }

    /// As `text`, and `true`, `false` and nothing as compose writes them into an environment.
    pub(crate) fn loose_text(&self, what: &str) -> Checked<String> {
        match &self.value {
            Value::Bool(value) => Ok(value.to_string()),
            Value::Null => Ok(String::new()),
            _ => self.text(what),
        }
    }

    pub(crate) fn boolean(&self, what: &str) -> Checked<bool> {
        match &self.value {
            Value::Bool(value) => Ok(*value),
            // An interpolated value is a string.
            Value::String(text) if text == "true" => Ok(true),
            Value::String(text) if text == "false" => Ok(false),
            _ => Err(self.wrong(what, "true or false")),
        }
    }

    /// A number, or a string that is one (interpolation gives strings).
    fn digits(&self, what: &str, expected: &str) -> Checked<String> {
        match &self.value {
            Value::Number(text) | Value::String(text) => Ok(text.replace('_', "")),
            _ => Err(self.wrong(what, expected)),
        }
    }

    /// A whole number between `low` and `high`.
    pub(crate) fn integer(&self, what: &str, low: i64, high: i64) -> Checked<i64> {
        const EXPECTED: &str = "a whole number";
        let digits = self.digits(what, EXPECTED)?;
        let parsed = if let Some(hex) = digits.strip_prefix("0x") {
            i64::from_str_radix(hex, 16)
        } else if let Some(octal) = digits.strip_prefix("0o") {
            i64::from_str_radix(octal, 8)
        } else {
            digits.parse()
        };
        match parsed {
            Ok(value) if (low..=high).contains(&value) => Ok(value),
            Ok(_) if high == i64::MAX => {
                Err(Fault::new(&self.span, format!("`{what}` must be at least {low}")))
            }
            Ok(_) => Err(Fault::new(&self.span, format!("`{what}` must be between {low} and {high}"))),
            Err(_) if matches!(self.value, Value::String(_)) => Err(self.wrong(what, EXPECTED)),
            Err(_) => Err(Fault::new(&self.span, format!("`{what}` must be {EXPECTED}"))),
        }
    }

    pub(crate) fn port(&self, what: &str) -> Checked<u16> {
        let port = self.integer(what, 1, i64::from(u16::MAX))?;
        Ok(u16::try_from(port).unwrap_or(u16::MAX))
    }

    pub(crate) fn id(&self, what: &str) -> Checked<u32> {
        let id = self.integer(what, 0, i64::from(u32::MAX - 1))?;
        Ok(u32::try_from(id).unwrap_or(u32::MAX))
    }

    /// File mode bits: octal, however it is written (`0440`, `0o440`, `"0440"`, `"440"`).
    pub(crate) fn mode(&self, what: &str) -> Checked<u32> {
        let digits = self.digits(what, "an octal mode")?;
        let (octal, number) = match digits.strip_prefix("0o") {
            Some(rest) => (rest, matches!(self.value, Value::Number(_))),
            None => (digits.as_str(), false),
        };
        // A bare decimal such as 288 (0o440) is taken as a number, as compose does.
        let decimal = !number && matches!(self.value, Value::Number(_)) && !octal.starts_with('0');
        let radix = if decimal { 10 } else { 8 };
        match u32::from_str_radix(octal, radix) {
            Ok(mode) if mode <= 0o7777 => Ok(mode),
            _ => Err(Fault::new(&self.span, format!("`{what}` must be an octal mode such as \"0440\""))),
        }
    }

    pub(crate) fn number(&self, what: &str) -> Checked<f64> {
        let digits = self.digits(what, "a number")?;
        match digits.parse::<f64>() {
            Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
            _ => Err(Fault::new(&self.span, format!("`{what}` must be a number, zero or more"))),
        }
    }

    pub(crate) fn list(&self, what: &str) -> Checked<&[Node]> {
        match &self.value {
            Value::List(items) => Ok(items),
            _ => Err(self.wrong(what, "a list")),
        }
    }

    /// The items of a list, or the value itself where there may be one or several.
    pub(crate) fn one_or_more(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => std::slice::from_ref(self),
        }
    }

    pub(crate) fn map(&self, what: &str) -> Checked<&[(Key, Node)]> {
        match &self.value {
            Value::Map(entries) => Ok(entries),
            // `volumes: { data: }` in YAML: a table with nothing in it.
            Value::Null => Ok(&[]),
            _ => Err(self.wrong(what, "a table")),
        }
    }

    /// A list of strings.
    pub(crate) fn texts(&self, what: &str) -> Checked<Vec<String>> {
        self.list(what)?.iter().map(|item| item.text(what)).collect()
    }

    /// `KEY=VALUE` items, or a table; `None` is a key without a value.
    pub(crate) fn pairs(&self, what: &str) -> Checked<Vec<(Key, Option<String>)>> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| {
                    let value = match node.value {
                        Value::Null => None,
                        _ => Some(node.loose_text(what)?),
                    };
                    Ok((key.clone(), value))
                })
                .collect(),
            Value::List(items) => items
                .iter()
                .map(|item| {
                    let text = item.text(what)?;
                    let (name, value) = match text.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (text.as_str(), None),
                    };
                    let name = name.to_owned();
                    let span = item.span.clone();
                    Ok((Key { span, name }, value))
                })
                .collect(),
            Value::Null => Ok(Vec::new()),
            _ => Err(self.wrong(what, "a table or a list of `NAME=VALUE`")),
        }
    }
}

/// The fault of a key that does not exist.
pub(crate) fn unknown_key<'a>(
    key: &Key,
    place: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Box<Fault> {
    Fault::new(&key.span, format!("unknown key `{}` in {place}", key.name))
        .label("unknown key")
        .nearest(&key.name, known)
}
