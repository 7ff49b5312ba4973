//! `${VARIABLE}` in the values of a stack file, and the `.env` beside it.
//!
//! The forms are those of the compose specification ("Interpolation"): `$NAME`, `${NAME}`,
//! `${NAME:-default}`, `${NAME-default}`, `${NAME:?message}`, `${NAME?message}`, `${NAME:+value}`,
//! `${NAME+value}` and `$$` for a dollar sign. Keys are never interpolated.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::diagnostic::{Checked, Fault, Span};
use crate::file::node::{Node, Value};

/// How deep a default may contain further variables.
const MAX_DEPTH: usize = 16;
/// Longest text that interpolation may produce, in bytes; the text may come from anyone.
const MAX_LENGTH: usize = 1 << 20;
/// The same for all values of a file together.
const MAX_TOTAL: usize = 32 << 20;

/// Variables: the environment's, then those of `.env`.
///
/// They hold passwords, so there is no `Debug`.
#[derive(Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// The environment wins over the file.
    pub fn new(environment: BTreeMap<String, String>, file: BTreeMap<String, String>) -> Self {
        Self(environment).or(file)
    }

    /// Value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// These, and those of `others` that are not among them.
    pub(crate) fn or(mut self, others: BTreeMap<String, String>) -> Self {
        for (name, value) in others {
            self.0.entry(name).or_insert(value);
        }
        self
    }

    /// These, with one set.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// Why a text cannot be interpolated.
#[derive(Debug, PartialEq)]
pub(crate) enum ExpandError {
    /// Not one of the forms; the byte range is within the text.
    Malformed(Range<usize>),
    /// `${NAME:?message}` and the variable is missing or empty.
    Required { name: String, message: String },
    /// A result longer than `MAX_LENGTH` or nested deeper than `MAX_DEPTH`.
    TooLarge,
}

/// A text with its variables replaced.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Expanded {
    pub(crate) text: String,
    /// Variables without value and default, in the order met; replaced by nothing.
    pub(crate) missing: Vec<String>,
}

/// Finds a variable's value.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<&'a str>;

/// Replace the variables in `text`.
pub(crate) fn expand(text: &str, lookup: Lookup<'_>) -> Result<Expanded, ExpandError> {
    let mut out = Expanded::default();
    expand_into(text, 0, lookup, MAX_DEPTH, &mut out)?;
    Ok(out)
}

fn expand_into(
    text: &str,
    base: usize,
    lookup: Lookup<'_>,
    depth: usize,
    out: &mut Expanded,
) -> Result<(), ExpandError> {
    if depth == 0 {
        return Err(ExpandError::TooLarge);
    }
    let mut rest = 0;
    while let Some(found) = text[rest..].find('$') {
        let dollar = rest + found;
        push(out, &text[rest..dollar])?;
        let after = &text[dollar + 1..];
        let end = if after.starts_with('$') {
            push(out, "$")?;
            dollar + 2
        } else if after.starts_with('{') {
            let body = dollar + 2;
            let close =
                closing_brace(text, body).ok_or(ExpandError::Malformed(base + dollar..base + text.len()))?;
            let span = base + dollar..base + close + 1;
            braced(&text[body..close], base + body, span, lookup, depth, out)?;
            close + 1
        } else {
            let length = name_length(after);
            if length == 0 {
                let next = after.chars().next().map_or(0, char::len_utf8);
                return Err(ExpandError::Malformed(base + dollar..base + dollar + 1 + next));
            }
            let name = &after[..length];
            match lookup(name) {
                Some(value) => push(out, value)?,
                None => out.missing.push(name.to_owned()),
            }
            dollar + 1 + length
        };
        rest = end;
    }
    push(out, &text[rest..])
}

/// What stands between the braces of `${…}`.
fn braced(
    body: &str,
    base: usize,
    span: Range<usize>,
    lookup: Lookup<'_>,
    depth: usize,
    out: &mut Expanded,
) -> Result<(), ExpandError> {
    let length = name_length(body);
    if length == 0 {
        return Err(ExpandError::Malformed(span));
    }
    let (name, operator) = body.split_at(length);
    let value = lookup(name);
    if operator.is_empty() {
        match value {
            Some(value) => push(out, value)?,
            None => out.missing.push(name.to_owned()),
        }
        return Ok(());
    }
    // With a colon an empty value counts as none.
    let colon = operator.starts_with(':');
    let operator = operator.strip_prefix(':').unwrap_or(operator);
    let present = value.filter(|value| !(colon && value.is_empty()));
    let mut rest = operator.chars();
    let kind = rest.next();
    let word = rest.as_str();
    let word_base = base + body.len() - word.len();
    match (kind, present) {
        (Some('-' | '?'), Some(value)) => push(out, value),
        (Some('+'), None) => Ok(()),
        (Some('-'), None) | (Some('+'), Some(_)) => expand_into(word, word_base, lookup, depth - 1, out),
        (Some('?'), None) => {
            let mut message = Expanded::default();
            expand_into(word, word_base, lookup, depth - 1, &mut message)?;
            Err(ExpandError::Required { name: name.to_owned(), message: message.text })
        }
        _ => Err(ExpandError::Malformed(span)),
    }
}

fn push(out: &mut Expanded, text: &str) -> Result<(), ExpandError> {
    if out.text.len() + text.len() > MAX_LENGTH {
        return Err(ExpandError::TooLarge);
    }
    out.text.push_str(text);
    Ok(())
}

/// Offset of the `}` that closes the brace before `start`.
fn closing_brace(text: &str, start: usize) -> Option<usize> {
    let mut open = 0usize;
    let bytes = text.as_bytes();
    let mut at = start;
    while at < bytes.len() {
        match bytes[at] {
            b'$' if bytes.get(at + 1) == Some(&b'$') => at += 1,
            b'$' if bytes.get(at + 1) == Some(&b'{') => {
                open += 1;
                at += 1;
            }
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Length of the variable name that `text` starts with.
pub(crate) fn name_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    match bytes.first() {
        Some(first) if first.is_ascii_alphabetic() || *first == b'_' => {
            bytes.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count()
        }
        _ => 0,
    }
}

/// What happens with a variable that has neither value nor default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// An error: `stack.toml`.
    Refuse,
    /// Empty, with a warning: compose files, as there.
    Empty,
}

/// Replaces the variables in trees.
pub(crate) struct Interpolation<'a> {
    variables: &'a Variables,
    missing: Missing,
    /// A script that writes `.env`.
    writer: Option<&'a str>,
    warnings: &'a mut Vec<(Span, String)>,
    /// Bytes that variables gave.
    length: usize,
}

impl<'a> Interpolation<'a> {
    pub(crate) fn new(
        variables: &'a Variables,
        missing: Missing,
        writer: Option<&'a str>,
        warnings: &'a mut Vec<(Span, String)>,
    ) -> Self {
        Self { variables, missing, writer, warnings, length: 0 }
    }

    /// Replace the variables in a file.
    pub(crate) fn file(&mut self, root: &mut Node) -> Checked<()> {
        let Value::Map(entries) = &mut root.value else { return Ok(()) };
        // Extension fields are nobody's business: what refers to them by an anchor has a copy.
        let mut entries = entries.iter_mut().filter(|(key, _)| !key.name.starts_with("x-"));
        entries.try_for_each(|(_, node)| self.node(node))
    }

    /// Replace the variables in a value.
    pub(crate) fn node(&mut self, node: &mut Node) -> Checked<()> {
        match &mut node.value {
            Value::String(text) if text.contains('$') => {
                *text = self.text(text, &node.span)?;
                self.length = self.length.saturating_add(text.len());
                if self.length > MAX_TOTAL {
                    return Err(too_large(&node.span));
                }
                Ok(())
            }
            Value::List(items) => items.iter_mut().try_for_each(|item| self.node(item)),
            Value::Map(entries) => entries.iter_mut().try_for_each(|(_, item)| self.node(item)),
            _ => Ok(()),
        }
    }

    fn text(&mut self, text: &str, span: &Span) -> Checked<String> {
        let expanded = expand(text, &|name| self.variables.get(name)).map_err(|error| match error {
            ExpandError::Malformed(range) => {
                let words = text.get(range).unwrap_or_default();
                Fault::new(&locate(span, words), format!("`{words}` is not a variable"))
                    .hint("write `${NAME}` for a variable and `$$` for a dollar sign")
            }
            ExpandError::Required { name, message } => {
                let message = match message.as_str() {
                    "" => format!("variable `{name}` is required, but it is not set"),
                    message => format!("variable `{name}` is required: {message}"),
                };
                Fault::new(&variable(span, &name), message).hint(missing_hint(&name, self.writer))
            }
            ExpandError::TooLarge => too_large(span),
        })?;
        for name in &expanded.missing {
            let span = variable(span, name);
            let message = format!("variable `{name}` is not set");
            match self.missing {
                Missing::Refuse => {
                    return Err(Fault::new(&span, message)
                        .label("no value and no default")
                        .hint(missing_hint(name, self.writer)));
                }
                Missing::Empty => self.warnings.push((span, format!("{message}; it is left empty"))),
            }
        }
        Ok(expanded.text)
    }
}

fn too_large(span: &Span) -> Box<Fault> {
    Fault::new(span, "the value is too large after interpolation")
}

/// Where words stand in a value, if its text shows them as they are; else the whole value.
fn locate(span: &Span, words: &str) -> Span {
    match span.text().find(words) {
        Some(at) if !words.is_empty() => span.part(at..at + words.len()),
        _ => span.clone(),
    }
}

/// Where a variable's name stands in a value.
fn variable(span: &Span, name: &str) -> Span {
    for before in ["${", "$"] {
        if let Some(at) = span.text().find(&format!("{before}{name}")) {
            let start = at + before.len();
            return span.part(start..start + name.len());
        }
    }
    span.clone()
}

fn missing_hint(name: &str, writer: Option<&str>) -> String {
    let set = set_hint(name, writer);
    match writer {
        Some(_) => set,
        None => format!("{set}, or give a default: `${{{name}:-value}}`"),
    }
}

/// How to set a variable; `writer` is a script that does it.
pub(crate) fn set_hint(name: &str, writer: Option<&str>) -> String {
    let set = format!("set `{name}` in `.env` beside the file or in the environment");
    match writer {
        Some(script) => format!("{set}; `{script}` writes a `.env` with fresh values"),
        None => set,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variables() -> Variables {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        Variables::new(
            map(&[("A", "a"), ("EMPTY", ""), ("BOTH", "environment")]),
            map(&[("BOTH", "file"), ("F", "f")]),
        )
    }

    #[test]
    fn forms() {
        let variables = variables();
        for (text, expected) in [
            ("plain", "plain"),
            ("$A-${A}$F", "a-af"),
            ("${BOTH}", "environment"),
            ("$$A $${A} $$$A", "$A ${A} $a"),
            ("${NO:-d}${NO-d}${EMPTY:-d}[${EMPTY-d}]", "ddd[]"),
            ("${A:+x}[${EMPTY:+x}]${EMPTY+x}[${NO+x}]", "x[]x[]"),
            ("${A:?m}${EMPTY?m}", "a"),
            ("${NO:-${ALSO:-${A}}}!", "a!"),
            ("${NO:-a}b}", "ab}"),
            ("é${A}é", "éaé"),
        ] {
            let expanded = expand(text, &|name| variables.get(name)).unwrap();
            assert_eq!(expanded.text, expected, "{text}");
            assert!(expanded.missing.is_empty(), "{text}");
        }
        let expanded = expand("x$NO${NONE}y", &|name| variables.get(name)).unwrap();
        assert_eq!((expanded.text.as_str(), expanded.missing.len()), ("xy", 2));
        assert_eq!(
            expand("${EMPTY:?say $A}", &|name| variables.get(name)),
            Err(ExpandError::Required { name: "EMPTY".to_owned(), message: "say a".to_owned() })
        );
        for (text, range) in [
            ("a $", 2..3),
            ("$é", 0..3),
            ("x ${A", 2..5),
            ("${}", 0..3),
            ("${A!b}", 0..6),
            ("${NO:-$5}", 6..8),
        ] {
            assert_eq!(
                expand(text, &|name| variables.get(name)),
                Err(ExpandError::Malformed(range)),
                "{text}"
            );
        }
        let deep = format!("{}{}", "${NO:-".repeat(40), "}".repeat(40));
        assert_eq!(expand(&deep, &|name| variables.get(name)), Err(ExpandError::TooLarge));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_panic_and_ranges_within(text in "([$]|[{]|[}]|:-|[?+]|A|NO|é| ){0,24}") {
            let variables = variables();
            if let Err(ExpandError::Malformed(range)) = expand(&text, &|name| variables.get(name)) {
                prop_assert!(text.get(range).is_some());
            }
        }

        #[test]
        fn without_dollars_nothing_changes(text in "[^$]{0,40}") {
            let variables = variables();
            prop_assert_eq!(expand(&text, &|name| variables.get(name)).unwrap().text, text);
        }
    }
}
