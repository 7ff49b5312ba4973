//! YAML 1.2 as compose files are written, to a tree: anchors, merge keys, `!reset` and `!override`; `no` is a
//! text.

use std::collections::HashMap;
use std::sync::Arc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::node::{Key, Merge, Node, Value};
use crate::diagnostic::{Checked, Fault, SourceText, Span};

/// How deep YAML may nest. The specification needs about ten levels; what reads them recurses, and must
/// stay within a thread's 2 MiB in a debug build, too.
const MAX_DEPTH: usize = 24;

/// Parse a text into its documents; each is a layer of the model. A text without any is one empty document.
pub(crate) fn parse(source: &Arc<SourceText>) -> Checked<Vec<Node>> {
    let options = granit_parser::options! {
        emit_comments: false,
        // Depth is checked here, with a better message.
        flow_nesting_limit: 2 * MAX_DEPTH,
        block_nesting_limit: 2 * MAX_DEPTH,
    };
    let parser = Parser::new_from_str_with_options(&source.text, options);
    let mut composer = Composer { source, parser, anchors: HashMap::new(), weight: 0 };
    let mut documents = Vec::new();
    loop {
        match composer.next()? {
            (Event::StreamEnd, _) => break,
            (Event::DocumentStart(..), _) => {
                composer.anchors.clear();
                let first = composer.next()?;
                documents.push(composer.node(first, 0)?);
            }
            _ => {}
        }
    }
    if documents.is_empty() {
        documents.push(Node::new(Span::start_of(source), Value::Null));
    }
    Ok(documents)
}

struct Composer<'a> {
    source: &'a Arc<SourceText>,
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Anchored>,
    /// Of all nodes so far.
    weight: usize,
}

/// What aliases stand for.
struct Anchored {
    node: Node,
    weight: usize,
    height: usize,
}

type Next<'a> = (Event<'a>, granit_parser::Span);

impl<'a> Composer<'a> {
    fn next(&mut self) -> Checked<Next<'a>> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Ok((Event::StreamEnd, granit_parser::Span::default())),
        }
    }

    fn syntax(&self, error: &ScanError) -> Box<Fault> {
        let at = error.marker().byte_offset().unwrap_or(0).min(self.source.text.len());
        let info = error.info();
        let words: Vec<&str> = info.split_whitespace().collect();
        let fault =
            Fault::new(&Span::new(self.source, at..at), format!("not valid YAML: {}", words.join(" ")));
        match likely_mistake(error.kind()) {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }

    fn span(&self, span: &granit_parser::Span) -> Span {
        Span::new(self.source, span.byte_range().unwrap_or(0..0))
    }

    /// The node that begins with an event.
    fn node(&mut self, (event, place): Next<'a>, depth: usize) -> Checked<Node> {
        let span = self.span(&place);
        if depth > MAX_DEPTH {
            return Err(too_deep(&span));
        }
        let (mut node, anchor, tag) = match event {
            Event::Alias(id) => return self.alias(id, &span, depth),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let value = scalar(&text, plain, tag.as_deref());
                (Node::new(span, value), anchor, tag)
            }
            Event::SequenceStart(_, anchor, tag) => (self.sequence(span, depth)?, anchor, tag),
            Event::MappingStart(_, anchor, tag) => (self.mapping(span, depth)?, anchor, tag),
            _ => return Err(Fault::new(&span, "not valid YAML: a value is missing")),
        };
        if let Some(tag) = tag {
            let place = place.tag_span().map_or_else(|| node.span.clone(), |place| self.span(&place));
            node.merge = merge(&tag, &place)?;
        }
        self.weigh(node.own_weight(), &node.span)?;
        if anchor != 0 {
            let (weight, height) = (node.weight(), height(&node));
            self.anchors.insert(anchor, Anchored { node: node.clone(), weight, height });
        }
        Ok(node)
    }

    /// Texts come from anyone, and a line of aliases can stand for millions of nodes.
    fn weigh(&mut self, weight: usize, span: &Span) -> Checked<()> {
        self.weight = self.weight.saturating_add(weight);
        match self.weight <= Node::MAX_WEIGHT {
            true => Ok(()),
            false => Err(Fault::new(span, "the file is too large once its aliases are replaced")),
        }
    }

    fn alias(&mut self, id: usize, span: &Span, depth: usize) -> Checked<Node> {
        let Some(anchored) = self.anchors.get(&id) else {
            return Err(Fault::new(span, "not valid YAML: the alias stands for what it is a part of"));
        };
        if depth + anchored.height > MAX_DEPTH {
            return Err(too_deep(span));
        }
        let (node, weight) = (anchored.node.clone(), anchored.weight);
        self.weigh(weight, span)?;
        Ok(node)
    }

    fn sequence(&mut self, mut span: Span, depth: usize) -> Checked<Node> {
        let mut items = Vec::new();
        loop {
            let next = self.next()?;
            if next.0 == Event::SequenceEnd {
                span.end = self.span(&next.1).end.max(span.start);
                return Ok(Node::new(span, Value::List(items)));
            }
            items.push(self.node(next, depth + 1)?);
        }
    }

    fn mapping(&mut self, mut span: Span, depth: usize) -> Checked<Node> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut places: HashMap<String, Span> = HashMap::new();
        let mut merged: Vec<(Key, Node)> = Vec::new();
        loop {
            let next = self.next()?;
            if next.0 == Event::MappingEnd {
                span.end = self.span(&next.1).end.max(span.start);
                break;
            }
            let is_merge =
                matches!(&next.0, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let key = self.key(next, depth)?;
            let next = self.next()?;
            let mut value = self.node(next, depth + 1)?;
            if is_merge {
                for entry in merge_key(value)? {
                    // Of several, the first wins.
                    if !merged.iter().any(|(key, _)| key.name == entry.0.name) {
                        merged.push(entry);
                    }
                }
                continue;
            }
            if let Some(first) = places.insert(key.name.clone(), key.span.clone()) {
                return Err(Fault::new(&key.span, format!("not valid YAML: duplicate key `{}`", key.name))
                    .other(&first, "first written here"));
            }
            // A value that is not there has no place of its own.
            if value.is_null() && value.span.start == value.span.end {
                value.span = key.span.clone();
            }
            entries.push((key, value));
        }
        // A table's own keys win over merged ones.
        entries.extend(merged.into_iter().filter(|(key, _)| !places.contains_key(&key.name)));
        Ok(Node::new(span, Value::Map(entries)))
    }

    fn key(&mut self, next: Next<'a>, depth: usize) -> Checked<Key> {
        if let (Event::Scalar(text, ..), place) = &next {
            let key = Key { span: self.span(place), name: text.to_string() };
            self.weigh(key.name.len(), &key.span)?;
            // Also for its anchor.
            self.node(next, depth + 1)?;
            return Ok(key);
        }
        let span = self.span(&next.1);
        match self.node(next, depth + 1)?.value {
            Value::String(name) | Value::Number(name) => Ok(Key { span, name }),
            _ => Err(Fault::new(&span, "not valid YAML here: a key must be a text")),
        }
    }
}

/// What most likely led to an error, which the parser tells in the words of the grammar.
fn likely_mistake(kind: &ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart => Some("YAML is indented with blanks, not with tabs"),
        ErrorKind::ExpectedBlockMappingKey | ErrorKind::ExpectedBlockSequenceEntry => Some(
            "this line begins in the column of nothing above it: keys of one table, and the `-` of one list, stand below each other",
        ),
        ErrorKind::MappingValueNotAllowed => Some(
            "does the line above lack a `:`, or this one quotes around a text with `: ` in it? Or it is indented too far",
        ),
        _ => None,
    }
}

fn too_deep(span: &Span) -> Box<Fault> {
    Fault::new(span, format!("nested deeper than {MAX_DEPTH} levels"))
}

fn height(node: &Node) -> usize {
    match &node.value {
        Value::List(items) => 1 + items.iter().map(height).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|(_, node)| height(node)).max().unwrap_or(0),
        _ => 0,
    }
}

/// The entries that `<<` brings in: those of a table, or of several.
fn merge_key(value: Node) -> Checked<Vec<(Key, Node)>> {
    match value.value {
        Value::Map(entries) => Ok(entries),
        Value::List(items) => {
            let mut merged = Vec::new();
            for item in items {
                match item.value {
                    Value::Map(entries) => merged.extend(entries),
                    _ => return Err(item.wrong("<<", "a table, or a list of tables")),
                }
            }
            Ok(merged)
        }
        _ => Err(value.wrong("<<", "a table, or a list of tables")),
    }
}

/// The core schema of YAML 1.2, section 10.3.2, with numbers as they are written.
fn scalar(text: &str, plain: bool, tag: Option<&Tag>) -> Value {
    if !plain || tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str")) {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::String(text.to_owned()),
    }
}

/// Whether a plain scalar is a number: as in YAML 1.2, and with the `_` of YAML 1.1, which people write.
pub(crate) fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let all = |text: &str, good: fn(&u8) -> bool| {
        text.bytes().any(|byte| byte != b'_') && text.bytes().all(|byte| byte == b'_' || good(&byte))
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    if let Some(hex) = digits.strip_prefix("0x") {
        return all(hex, u8::is_ascii_hexdigit);
    }
    if let Some(octal) = digits.strip_prefix("0o") {
        return all(octal, |byte| (b'0'..=b'7').contains(byte));
    }
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (digits, None),
    };
    let exponent = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let some = |text: &str| text.is_empty() || all(text, u8::is_ascii_digit);
    let nothing = whole.is_empty() && fraction.is_empty();
    !nothing
        && !whole.starts_with('_')
        && some(whole)
        && some(fraction)
        && exponent.is_none_or(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What a tag says about merging.
fn merge(tag: &Tag, span: &Span) -> Checked<Merge> {
    const KNOWN: [&str; 2] = ["!reset", "!override"];
    if tag.is_yaml_core_schema() || tag.original() == "!" {
        return Ok(Merge::Normal);
    }
    match tag.original().as_str() {
        "!reset" => Ok(Merge::Reset),
        "!override" => Ok(Merge::Override),
        other => Err(Fault::new(span, format!("unknown tag `{other}`"))
            .hint("compose files have `!reset` and `!override`")
            .nearest(other, KNOWN)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Checked<Node> {
        let mut documents = parse(&SourceText::new(Path::new("compose.yaml"), text))?;
        assert_eq!(documents.len(), 1);
        Ok(documents.remove(0))
    }

    #[test]
    fn scalars() {
        for (text, expected) in [
            ("", "null"),
            ("~", "null"),
            ("null", "null"),
            ("True", "true"),
            ("no", "\"no\""),
            ("on", "\"on\""),
            ("0440", "0440"),
            ("1.10", "1.10"),
            ("1_000", "1_000"),
            ("0x1F", "0x1F"),
            ("-.5e3", "-.5e3"),
            ("22:22", "\"22:22\""),
            ("1e", "\"1e\""),
            ("_1", "\"_1\""),
            ("1.2.3", "\"1.2.3\""),
            (".", "\".\""),
            ("'1'", "\"1\""),
            ("!!str 1", "\"1\""),
            ("! 1", "1"),
            ("\"a\\nb\"", "\"a\\nb\""),
            ("|\n  a\n  b\n", "\"a\\nb\\n\""),
            (">-\n  a\n  b\n", "\"a b\""),
        ] {
            let node = parsed(text).unwrap();
            assert_eq!(node.compact(), expected, "{text}");
        }
    }

    #[test]
    fn anchors_and_merge_keys() {
        for (text, expected) in [
            ("a: &a [1]\nb: *a", r#"{"a":[1],"b":[1]}"#),
            ("a: &a {x: 1, y: 1}\nb: {y: 2, <<: *a}", r#"{"a":{"x":1,"y":1},"b":{"y":2,"x":1}}"#),
            (
                "a: &a {x: 1}\nb: &b {x: 2, z: 2}\nc: {<<: [*a, *b]}",
                r#"{"a":{"x":1},"b":{"x":2,"z":2},"c":{"x":1,"z":2}}"#,
            ),
            ("a: {<<: {x: 1}, <<: {y: 2}}", r#"{"a":{"x":1,"y":2}}"#),
            (
                "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b}",
                r#"{"a":{"x":1},"b":{"y":2,"x":1},"c":{"y":2,"x":1}}"#,
            ),
            ("&k a: 1\nb: *k", r#"{"a":1,"b":"a"}"#),
            ("'<<': 1", r#"{"<<":1}"#),
        ] {
            assert_eq!(parsed(text).unwrap().compact(), expected, "{text}");
        }
    }

    #[test]
    fn documents() {
        let documents = parse(&SourceText::new(Path::new("a.yaml"), "a: &a 1\n---\nb: 2\n")).unwrap();
        assert_eq!(documents.iter().map(Node::compact).collect::<Vec<_>>(), [r#"{"a":1}"#, r#"{"b":2}"#]);
        assert_eq!(parsed("# nothing\n").unwrap().compact(), "null");
    }

    #[test]
    fn faults() {
        for (text, words, expected) in [
            ("a: 1\nb: 2\na: 3\n", "a", "not valid YAML: duplicate key `a`"),
            ("a: &a [*a]", "*a", "not valid YAML: the alias stands for what it is a part of"),
            ("a: !overide 1", "!overide", "unknown tag `!overide`"),
            ("a: {<<: [1]}", "1", "`<<` must be a table, or a list of tables, but is a number"),
            ("[a]: 1", "", "not valid YAML here: a key must be a text"),
        ] {
            let fault = parsed(text).unwrap_err();
            assert_eq!(fault.message, expected, "{text}");
            if !words.is_empty() {
                assert_eq!(fault.span.text(), words, "{text}");
            }
        }
        assert!(parsed("a: [").unwrap_err().message.starts_with("not valid YAML: "));
        assert!(parsed("a: *b").unwrap_err().message.starts_with("not valid YAML: "));
    }

    #[test]
    fn tags_of_merging() {
        let node = parsed("a: !reset null\nb: !override [1]\nc: [!reset x]").unwrap();
        let Value::Map(entries) = node.value else { panic!() };
        let tags: Vec<Merge> = entries.iter().map(|(_, node)| node.merge).collect();
        assert_eq!(tags, [Merge::Reset, Merge::Override, Merge::Normal]);
    }

    #[test]
    fn bombs() {
        let mut text = "a0: &a0 [x]\n".to_owned();
        for n in 1..20 {
            let uses = vec![format!("*a{}", n - 1); 10].join(", ");
            text.push_str(&format!("a{n}: &a{n} [{uses}]\n"));
        }
        assert!(parsed(&text).is_err());
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 1000].join(", "));
        assert!(parsed(&long).unwrap_err().message.contains("too large"));
        assert!(
            parsed(&format!("{}{}", "[".repeat(30), "]".repeat(30)))
                .unwrap_err()
                .message
                .contains("nested deeper")
        );
        let mut chain = "a0: &a0 [x]\n".to_owned();
        for n in 1..100 {
            chain.push_str(&format!("a{n}: &a{n} [*a{}]\n", n - 1));
        }
        assert!(parsed(&chain).unwrap_err().message.contains("nested deeper"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_panic_and_places_within(text in "([a-c]|: |\n| |- |&a |[*]a|<<: |!reset |\\[|\\]|[{]|[}]|,|'|\"|é|#|[|]\n|---\n){0,40}") {
            let source = SourceText::new(Path::new("a.yaml"), text.clone());
            if let Err(fault) = parse(&source) {
                prop_assert!(text.get(fault.span.start..fault.span.end).is_some(), "{:?}", fault.span);
            }
        }
    }
}
