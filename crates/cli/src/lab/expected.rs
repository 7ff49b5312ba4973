//! What a reader must see, compared with what is there.
//!
//! An `expect` block is output as it was, but for what is different each time:
//!
//! - `<pid 1>` and other words in angle brackets stand for a number or a name. The same words mean the same value
//!   through all of a lab; words that differ in their number only mean different values.
//! - `...` stands for anything within a line, and a line of `...` alone for any lines.
//! - Blanks count, how many does not; neither do blank lines.

use std::collections::BTreeMap;

/// What the words in angle brackets stood for so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Values(BTreeMap<String, String>);

/// A piece of a line that is expected.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Literal(String),
    Value(&'a str),
    Anything,
}

/// Compares; the first line that was expected in vain is the error.
pub(super) fn compare(expected: &str, found: &str, values: &mut Values) -> Result<(), String> {
    let expected: Vec<&str> = lines(expected);
    let found: Vec<&str> = lines(found);
    let mut deepest = 0;
    match all(&expected, &found, values, &mut deepest, expected.len()) {
        Some(bound) => {
            *values = bound;
            Ok(())
        }
        None => {
            Err(expected.get(deepest).map_or_else(|| "(the end)".to_owned(), |line| line.trim().to_owned()))
        }
    }
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().is_empty()).collect()
}

/// `deepest` is how many of the `total` lines could be found, for the error.
fn all(
    expected: &[&str],
    found: &[&str],
    values: &Values,
    deepest: &mut usize,
    total: usize,
) -> Option<Values> {
    *deepest = (*deepest).max(total - expected.len());
    let Some((first, rest)) = expected.split_first() else {
        return found.is_empty().then(|| values.clone());
    };
    if first.trim() == "..." {
        return (0..=found.len()).find_map(|skip| all(rest, &found[skip..], values, deepest, total));
    }
    let (line, others) = found.split_first()?;
    let line = single_blanks(line);
    one(&pieces(first), &line, values).find_map(|bound| all(rest, others, &bound, deepest, total))
}

fn single_blanks(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn pieces(line: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = line.trim();
    while let Some(first) = rest.chars().next() {
        let value =
            rest.strip_prefix('<').and_then(|inner| inner.split_once('>')).filter(|(name, _)| is_name(name));
        let (piece, after) = match (value, rest.strip_prefix("...")) {
            (Some((name, after)), _) => (Piece::Value(name), after),
            (None, Some(after)) => (Piece::Anything, after),
            (None, None) => {
                literal.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        if !literal.is_empty() {
            pieces.push(Piece::Literal(single_blanks_within(&std::mem::take(&mut literal))));
        }
        pieces.push(piece);
        rest = after;
    }
    if !literal.is_empty() {
        pieces.push(Piece::Literal(single_blanks_within(&literal)));
    }
    pieces
}

/// Blanks at the ends of a piece of a line count, too.
fn single_blanks_within(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_whitespace() {
            true if out.ends_with(' ') => {}
            true => out.push(' '),
            false => out.push(c),
        }
    }
    out
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == ' ')
}

/// All ways in which a line is what was expected.
fn one<'a>(pieces: &'a [Piece<'a>], line: &'a str, values: &Values) -> Box<dyn Iterator<Item = Values> + 'a> {
    let Some((first, rest)) = pieces.split_first() else {
        return Box::new(line.is_empty().then(|| values.clone()).into_iter());
    };
    match first {
        Piece::Literal(text) => match line.strip_prefix(text.as_str()) {
            Some(after) => one(rest, after, values),
            None => Box::new(std::iter::empty()),
        },
        Piece::Anything => {
            let values = values.clone();
            let ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
            Box::new(ends.flat_map(move |end| one(rest, &line[end..], &values)))
        }
        Piece::Value(name) => {
            let longest = line.find(|c: char| !is_of_value(c)).unwrap_or(line.len());
            let values = values.clone();
            // The longest first: what is behind it begins with something else, as a rule.
            let ends = (1..=longest).rev().filter(|end| line.is_char_boundary(*end));
            let bound =
                ends.filter_map(move |end| values.with(name, &line[..end]).map(|values| (end, values)));
            Box::new(bound.flat_map(move |(end, values)| one(rest, &line[end..], &values)))
        }
    }
}

/// Of numbers, addresses, names and identifiers.
fn is_of_value(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '-' | '_')
}

impl Values {
    /// With one more, unless it contradicts what is known.
    fn with(&self, name: &str, value: &str) -> Option<Self> {
        if let Some(known) = self.0.get(name) {
            return (known == value).then(|| self.clone());
        }
        let stem = stem(name);
        let taken = |other: (&String, &String)| other.1 == value && self::stem(other.0) == stem;
        if stem.len() < name.len() && self.0.iter().any(taken) {
            return None;
        }
        let mut values = self.clone();
        values.0.insert(name.to_owned(), value.to_owned());
        Some(values)
    }
}

/// The words without a number behind them.
fn stem(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(expected: &str, found: &str) -> Result<(), String> {
        compare(expected, found, &mut Values::default())
    }

    #[test]
    fn the_same_word_is_the_same_value() {
        assert_eq!(compared("pid <pid 1> of <pid 1>\n", "pid 7 of 7\n"), Ok(()));
        assert_eq!(
            compared("pid <pid 1> of <pid 1>\n", "pid 7 of 8\n"),
            Err("pid <pid 1> of <pid 1>".into())
        );
        assert_eq!(compared("<pid 1> <pid 2>", "7 8"), Ok(()));
        assert!(compared("<pid 1> <pid 2>", "7 7").is_err());
        assert_eq!(compared("<a> <b>", "7 7"), Ok(()));
        let mut values = Values::default();
        assert_eq!(compare("net:[<net 1>]", "net:[402]", &mut values), Ok(()));
        assert!(compare("net:[<net 2>]", "net:[402]", &mut values).is_err());
        assert_eq!(compare("net:[<net 1>]", "net:[402]", &mut values), Ok(()));
    }

    #[test]
    fn three_dots_are_anything() {
        assert_eq!(compared("a ... z", "a b c z"), Ok(()));
        assert!(compared("a ... z", "a b c").is_err());
        assert_eq!(compared("...\nb\n...\n", "a\nb\nc\nd\n"), Ok(()));
        assert_eq!(compared("...\nb\n", "b\n"), Ok(()));
        assert_eq!(compared("a\n...\nx\n", "a\nb\nc\n"), Err("x".into()));
        assert!(compared("a\n", "a\nb\n").is_err());
    }

    #[test]
    fn how_many_blanks_does_not_count() {
        assert_eq!(compared("PID   NAME\n\n1 a", "PID\tNAME\n  1    a  \n"), Ok(()));
        assert!(compared("ab", "a b").is_err());
        assert!(compared("a <b>", "a").is_err());
        assert_eq!(compared("if (a < b) c > d", "if (a < b) c > d"), Ok(()));
    }
}
