//! `.env` files, and those of `env_file`, as compose reads them.
//!
//! Unlike in a shell, an unquoted value goes on to the end of its line or to ` #`, quotes count only where they
//! begin the value, and double quotes know `\n`. A name without `=` takes the value that it has outside.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::diagnostic::{Checked, Fault, SourceText, Span};
use crate::interpolate::{Variables, expand, name_length};

/// Parse a text. `visible` is what `$NAME` may refer to besides earlier lines; it wins over them.
pub(crate) fn parse(source: &Arc<SourceText>, visible: &Variables) -> Checked<BTreeMap<String, String>> {
    let mut reader = Reader { source, text: &source.text, at: 0, visible, variables: BTreeMap::new() };
    // What editors of Windows put in front.
    if reader.text.starts_with('\u{feff}') {
        reader.at = '\u{feff}'.len_utf8();
    }
    while reader.skip_to_name() {
        reader.assignment()?;
    }
    Ok(reader.variables)
}

/// Lines `NAME=VALUE`, the value as it stands: `format: raw` of `env_file`, and `label_file`.
pub(crate) fn raw(text: &str) -> BTreeMap<String, String> {
    let lines =
        text.lines().filter(|line| !line.trim_start().is_empty() && !line.trim_start().starts_with('#'));
    let pairs = lines.map(|line| line.split_once('=').unwrap_or((line, "")));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.to_owned())).collect()
}

struct Reader<'a> {
    source: &'a Arc<SourceText>,
    text: &'a str,
    at: usize,
    visible: &'a Variables,
    variables: BTreeMap<String, String>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn span(&self, range: Range<usize>) -> Span {
        Span::new(self.source, range)
    }

    fn line_end(&self) -> usize {
        self.rest().find('\n').map_or(self.text.len(), |length| self.at + length)
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r']).len();
    }

    /// Over empty lines, comments and `export`; whether anything is left.
    fn skip_to_name(&mut self) -> bool {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start().len();
            if !self.rest().starts_with('#') {
                break;
            }
            self.at = self.line_end();
        }
        if let Some(after) = self.rest().strip_prefix("export")
            && after.starts_with([' ', '\t'])
        {
            self.at += "export".len();
            self.skip_blanks();
        }
        !self.rest().is_empty()
    }

    fn assignment(&mut self) -> Checked<()> {
        let start = self.at;
        let line = &self.text[start..self.line_end()];
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-[]".contains(c);
        let length = line.find(|c| !plain(c)).unwrap_or(line.len());
        let name = &line[..length];
        self.at += length;
        self.skip_blanks();
        let next = self.rest().chars().next();
        if name.is_empty() || !matches!(next, None | Some('\n' | '=' | ':' | '#')) {
            return Err(Fault::new(&self.span(start..start + line.len()), "expected `NAME=value`"));
        }
        if matches!(next, Some('=' | ':')) {
            self.at += 1;
            let value = self.value(name)?;
            self.variables.insert(name.to_owned(), value);
        } else {
            self.at = self.line_end();
            if let Some(value) = self.visible.get(name) {
                self.variables.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(())
    }

    fn value(&mut self, name: &str) -> Checked<String> {
        let before = self.at;
        self.skip_blanks();
        let blank = self.at > before;
        match self.rest().chars().next() {
            Some(quote @ ('\'' | '"')) => self.quoted(name, quote),
            Some('#') if blank => {
                self.at = self.line_end();
                Ok(String::new())
            }
            _ => {
                let (start, end) = (self.at, self.line_end());
                let line = &self.text[start..end];
                let comment = line.match_indices('#').find(|(at, _)| line[..*at].ends_with([' ', '\t']));
                let value = line[..comment.map_or(line.len(), |(at, _)| at)].trim_end();
                self.at = end;
                self.expanded(value, start)
            }
        }
    }

    fn quoted(&mut self, name: &str, quote: char) -> Checked<String> {
        let start = self.at;
        let body = start + 1;
        let Some(length) = closing(&self.text[body..], quote) else {
            let message = format!("the quote in the value of `{name}` is never closed");
            return Err(Fault::new(&self.span(start..body), message));
        };
        let written = &self.text[body..body + length];
        self.at = body + length + 1;
        self.skip_blanks();
        if !self.rest().is_empty() && !self.rest().starts_with(['\n', '#']) {
            let message = format!("the value of `{name}` goes on after its quotes");
            return Err(
                Fault::new(&self.span(self.at..self.line_end()), message).hint("put quotes around all of it")
            );
        }
        self.at = self.line_end();
        match quote {
            '\'' => Ok(written.replace("\\'", "'")),
            _ => self.expanded(&unescaped(written), body),
        }
    }

    /// A value with its variables replaced; one that is not set is empty, and a dollar sign that begins none
    /// stands for itself.
    fn expanded(&self, value: &str, start: usize) -> Checked<String> {
        let lookup =
            |name: &str| self.visible.get(name).or_else(|| self.variables.get(name).map(String::as_str));
        let mut text = String::new();
        let mut rest = value;
        while let Some(dollar) = rest.find('$') {
            text.push_str(&rest[..dollar]);
            let words = &rest[dollar..];
            let length = match words.as_bytes().get(1) {
                Some(b'$') => 2,
                Some(b'{') => closing_brace(words).unwrap_or(1),
                _ => 1 + name_length(&words[1..]),
            };
            let words = &words[..length];
            if length == 1 {
                text.push('$');
            } else {
                let expanded = expand(words, &lookup).map_err(|_why| {
                    let at = start..self.line_end().max(start);
                    Fault::new(&self.span(at), "a variable of this value cannot be expanded")
                        .hint("put single quotes around a value with dollar signs")
                })?;
                text.push_str(&expanded.text);
            }
            rest = &rest[dollar + length..];
        }
        text.push_str(rest);
        Ok(text)
    }
}

/// Length of what stands before the closing quote.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

/// Length of `${…}`, which may have others within.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' if text[..at].ends_with('$') => open += 1,
            b'}' if open == 1 => return Some(at + 1),
            b'}' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Escapes of double quotes. A dollar sign that is meant as one becomes `$$`, for `expand`.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let Some(c) = after.chars().next() else {
            out.push('\\');
            return out;
        };
        let mut length = c.len_utf8();
        match c {
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'v' => out.push('\u{b}'),
            '"' | '\\' => out.push(c),
            '$' => out.push_str("$$"),
            '0' => {
                let digits =
                    after[1..].bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
                length += digits;
                let code = u8::from_str_radix(&after[..1 + digits], 8).ok();
                match code.filter(u8::is_ascii) {
                    Some(byte) => out.push(char::from(byte)),
                    None => out.push_str(&rest[at..at + 1 + length]),
                }
            }
            c => out.extend(['\\', c]),
        }
        rest = &after[length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Checked<BTreeMap<String, String>> {
        let environment = BTreeMap::from([("OUT".to_owned(), "side".to_owned())]);
        let visible = Variables::new(environment, BTreeMap::new());
        parse(&SourceText::private(Path::new(".env"), text), &visible)
    }

    #[test]
    fn values() {
        for (text, expected) in [
            ("A=plain", "plain"),
            ("A = My Site  # comment", "My Site"),
            ("A=a#b", "a#b"),
            ("A=#b", "#b"),
            ("A= # b", ""),
            ("A=", ""),
            ("A=a;b|c`d`\r", "a;b|c`d`"),
            ("export A=x", "x"),
            ("A: yaml", "yaml"),
            ("  A=x", "x"),
            ("A='a $OUT # \"b\"' # c", "a $OUT # \"b\""),
            ("A='it\\'s'", "it's"),
            ("A=\"a\\n\\\"b\\\" \\$OUT $OUT\"", "a\n\"b\" $OUT side"),
            ("A=\"two\nlines\"", "two\nlines"),
            ("A=\"\\0101\\q\"", "A\\q"),
            ("A=a\"b\"", "a\"b\""),
            ("A=$OUT/${OUT}/${NO:-d$OUT}$NO", "side/side/dside"),
            ("A=$$x$", "$x$"),
            ("A=a$/b", "a$/b"),
            ("A=a${b", "a${b"),
            ("B=b\nA=$B", "b"),
            ("OUT=in\nA=$OUT", "side"),
            ("A=1\nA=2", "2"),
        ] {
            assert_eq!(parsed(text).unwrap()["A"], expected, "{text}");
        }
        assert_eq!(
            parsed("OUT\nNOT_SET\n").unwrap(),
            BTreeMap::from([("OUT".to_owned(), "side".to_owned())])
        );
        assert_eq!(parsed("\u{feff}A=1").unwrap()["A"], "1");
        assert_eq!(parsed("a.b-c=1").unwrap()["a.b-c"], "1");
    }

    #[test]
    fn values_as_they_are() {
        let read = raw("A=$x 'y' # z\n# comment\n\n B=\r\nC\n");
        assert_eq!(read["A"], "$x 'y' # z");
        assert_eq!((&*read["B"], &*read["C"]), ("", ""));
    }

    #[test]
    fn faults() {
        for (text, message) in [
            ("A b=1", "expected `NAME=value`"),
            ("=1", "expected `NAME=value`"),
            ("A='x", "the quote in the value of `A` is never closed"),
            ("A=\"x\" y", "the value of `A` goes on after its quotes"),
            ("A=${NO:?say}", "a variable of this value cannot be expanded"),
        ] {
            assert_eq!(parsed(text).unwrap_err().message, message, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_panic(text in "([A-C]|=|:|'|\"|\\\\|[$]|[{]|[}]|0|#| |\n|é|export ){0,30}") {
            if let Err(fault) = parsed(&text) {
                prop_assert!(text.get(fault.span.start..fault.span.end).is_some());
            }
        }
    }
}
