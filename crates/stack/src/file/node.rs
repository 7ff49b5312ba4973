//! One tree for TOML and YAML: values with their places in the text.

use crate::diagnostic::{Checked, Fault, Span};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
    pub(crate) merge: Merge,
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

/// What a value says about how it is merged over an earlier file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// By the rules for its key.
    Normal,
    /// `!reset`: the key is as if it had never been there.
    Reset,
    /// `!override`: the earlier value is replaced.
    Override,
}

impl Key {
    pub(crate) fn new(span: &Span, name: &str) -> Self {
        Self { span: span.clone(), name: name.to_owned() }
    }
}

impl Node {
    /// How much memory all nodes of a model may take together, in bytes: what few lines of aliases and `extends`
    /// stand for can be large.
    pub(crate) const MAX_WEIGHT: usize = 64 << 20;

    pub(crate) fn new(span: Span, value: Value) -> Self {
        Self { span, value, merge: Merge::Normal }
    }

    /// Memory that it takes without what is in it, roughly.
    pub(crate) fn own_weight(&self) -> usize {
        let text = match &self.value {
            Value::Number(text) | Value::String(text) => text.len(),
            Value::Map(entries) => entries.iter().map(|(key, _)| size_of::<Key>() + key.name.len()).sum(),
            _ => 0,
        };
        size_of::<Self>() + text
    }

    /// Memory that it takes, roughly.
    pub(crate) fn weight(&self) -> usize {
        let inner: usize = match &self.value {
            Value::List(items) => items.iter().map(Self::weight).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| node.weight()).sum(),
            _ => 0,
        };
        self.own_weight() + inner
    }

    /// The value of a key, if it is a table that has it.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Self> {
        let Value::Map(entries) = &mut self.value else { return None };
        entries.iter_mut().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// Take a key out.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Self> {
        let Value::Map(entries) = &mut self.value else { return None };
        let at = entries.iter().position(|(key, _)| key.name == name)?;
        Some(entries.remove(at).1)
    }

    /// Set the value of a key; an empty value becomes a table.
    pub(crate) fn put(&mut self, key: Key, node: Self) {
        if self.is_null() {
            self.value = Value::Map(Vec::new());
        }
        let Value::Map(entries) = &mut self.value else { return };
        match entries.iter_mut().find(|(other, _)| other.name == key.name) {
            Some(entry) => *entry = (key, node),
            None => entries.push((key, node)),
        }
    }

    /// Whether it says the same, wherever it is written.
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (&self.value, &other.value) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(one), Value::Bool(other)) => one == other,
            (Value::Number(one), Value::Number(other)) | (Value::String(one), Value::String(other)) => {
                one == other
            }
            (Value::List(one), Value::List(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.same(other))
            }
            (Value::Map(one), Value::Map(entries)) => {
                let same =
                    |(key, node): &(Key, Self)| other.get(&key.name).is_some_and(|other| node.same(other));
                one.len() == entries.len() && one.iter().all(same)
            }
            _ => false,
        }
    }

    /// On one line, for tests.
    #[cfg(test)]
    pub(crate) fn compact(&self) -> String {
        match &self.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) => text.clone(),
            Value::String(text) => format!("{text:?}"),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(Self::compact).collect();
                format!("[{}]", items.join(","))
            }
            Value::Map(entries) => {
                let entry = |(key, node): &(Key, Self)| format!("{:?}:{}", key.name, node.compact());
                let entries: Vec<String> = entries.iter().map(entry).collect();
                format!("{{{}}}", entries.join(","))
            }
        }
    }

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
        let fault = Fault::new(&self.span, format!("`{what}` must be {expected}, but is {}", self.kind()))
            .label(format!("expected {expected}"));
        match &self.value {
            // `-"80:80"` is a text.
            Value::String(text) if expected.contains("list") && text.starts_with('-') => {
                fault.hint("a blank belongs between the `-` of a list and what follows it")
            }
            _ => fault,
        }
    }

    /// A string, or a number as it was written.
    pub(crate) fn text(&self, what: &str) -> Checked<String> {
        match &self.value {
            Value::String(text) | Value::Number(text) => Ok(text.clone()),
            _ => Err(self.wrong(what, "a string")),
        }
    }

    /// A string that no number can stand for.
    pub(crate) fn string(&self, what: &str) -> Checked<String> {
        match &self.value {
            Value::String(text) => Ok(text.clone()),
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
