//! The flags between an instruction's keyword and its arguments.

use crate::dockerfile::parse::{Parsed, Problem, nearest};

/// `--name=value` and `--name`, which an instruction takes out one by one.
#[derive(Debug)]
pub(super) struct Flags {
    given: Vec<(String, Option<String>)>,
    asked: Vec<&'static str>,
}

impl Flags {
    /// Splits the flags from what follows them. Quotes around values are removed, variables stay.
    pub(super) fn split(text: &str) -> (Self, &str) {
        let mut flags = Self { given: Vec::new(), asked: Vec::new() };
        let mut rest = text.trim_start();
        while rest.starts_with("--") {
            let (word, after) = word(rest);
            rest = after.trim_start();
            if word == "--" {
                break;
            }
            flags.given.push(match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            });
        }
        (flags, rest.trim_end())
    }

    fn take(&mut self, name: &'static str) -> impl Iterator<Item = Option<String>> {
        self.asked.push(name);
        let taken: Vec<_> = self.given.extract_if(.., |(other, _)| other == name).collect();
        taken.into_iter().map(|(_, value)| value)
    }

    /// The values of a flag that may stand there several times.
    pub(super) fn all(&mut self, name: &'static str) -> Parsed<Vec<String>> {
        self.take(name)
            .map(|value| value.ok_or_else(|| format!("flag `{name}` needs a value").into()))
            .collect()
    }

    /// The value of a flag.
    pub(super) fn value(&mut self, name: &'static str) -> Parsed<Option<String>> {
        let mut values = self.all(name)?;
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => Err(format!("flag `{name}` is given more than once").into()),
        }
    }

    /// A flag that is on or off.
    pub(super) fn switch(&mut self, name: &'static str) -> Parsed<Option<bool>> {
        let values: Vec<_> = self.take(name).collect();
        match &values[..] {
            [] => Ok(None),
            [None] => Ok(Some(true)),
            [Some(value)] if value.eq_ignore_ascii_case("true") => Ok(Some(true)),
            [Some(value)] if value.eq_ignore_ascii_case("false") => Ok(Some(false)),
            [Some(value)] => Err(format!("`{name}={value}`: it is true or false").into()),
            _ => Err(format!("flag `{name}` is given more than once").into()),
        }
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(self) -> Parsed<()> {
        let Some((name, _)) = self.given.first() else { return Ok(()) };
        let hint = match nearest(name, &self.asked) {
            Some(known) => Some(format!("did you mean `{known}`?")),
            None if self.asked.is_empty() => None,
            None => Some(format!("its flags are {}", self.asked.join(", "))),
        };
        Err(Problem { message: format!("unknown flag `{name}`"), hint })
    }
}

/// The first word without its quotes and escapes, and what follows it.
fn word(text: &str) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, &text[at..]),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            // Whatever the file's escape character: as BuildKit does it.
            _ if c == '\\' => word.extend(chars.next().map(|(_, next)| next)),
            _ => word.push(c),
        }
    }
    (word, "")
}
