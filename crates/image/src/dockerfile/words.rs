//! Words of an instruction: quoting, and variables in the way of Docker's own shell-like lexer.

use std::collections::BTreeMap;

/// Where variables get their values.
pub(crate) trait Scope {
    fn get(&self, name: &str) -> Option<String>;
}

impl Scope for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).cloned()
    }
}

/// Splits at white space outside of quotes; quotes and escapes are kept.
pub(crate) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Replaces variables and removes quotes and escapes.
pub(crate) fn expand(word: &str, scope: &dyn Scope, escape: char) -> Result<String, String> {
    let chars: Vec<char> = word.chars().collect();
    let mut expander = Expander { chars: &chars, at: 0, scope, escape, whole: word };
    expander.until(None)
}

struct Expander<'a> {
    chars: &'a [char],
    at: usize,
    scope: &'a dyn Scope,
    escape: char,
    whole: &'a str,
}

impl Expander<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.chars.get(self.at).copied();
        self.at += usize::from(c.is_some());
        c
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn problem<T>(&self, problem: &str) -> Result<T, String> {
        Err(format!("`{}`: {problem}", self.whole))
    }

    /// Reads up to an unquoted end mark, or to the end.
    fn until(&mut self, end: Option<char>) -> Result<String, String> {
        let mut out = String::new();
        loop {
            let Some(c) = self.next() else {
                return if end.is_some() { self.problem("`${` is not closed by `}`") } else { Ok(out) };
            };
            if Some(c) == end {
                return Ok(out);
            }
            match c {
                '\'' => loop {
                    match self.next() {
                        Some('\'') => break,
                        Some(c) => out.push(c),
                        None => return self.problem("a single quote is not closed"),
                    }
                },
                '"' => loop {
                    match self.next() {
                        Some('"') => break,
                        Some('$') => self.variable(&mut out)?,
                        Some(c) if c == self.escape => match self.next() {
                            Some(c) if c == '"' || c == '$' || c == self.escape => out.push(c),
                            Some(c) => out.extend([self.escape, c]),
                            None => return self.problem("a double quote is not closed"),
                        },
                        Some(c) => out.push(c),
                        None => return self.problem("a double quote is not closed"),
                    }
                },
                '$' => self.variable(&mut out)?,
                c if c == self.escape => out.extend(self.next()),
                c => out.push(c),
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            let fits = c == '_' || c.is_ascii_alphabetic() || (c.is_ascii_digit() && !name.is_empty());
            if !fits {
                break;
            }
            name.push(c);
            self.at += 1;
        }
        name
    }

    /// What follows a `$`.
    fn variable(&mut self, out: &mut String) -> Result<(), String> {
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                out.push('$');
            } else {
                out.push_str(&self.scope.get(&name).unwrap_or_default());
            }
            return Ok(());
        }
        self.at += 1;
        let name = self.name();
        if name.is_empty() {
            return self.problem("`${` is not followed by a variable's name");
        }
        let value = self.scope.get(&name);
        let Some(mut mark) = self.next() else { return self.problem("`${` is not closed by `}`") };
        if mark == '}' {
            out.push_str(&value.unwrap_or_default());
            return Ok(());
        }
        // With the colon, an empty value counts as none.
        let mut usable = value.is_some();
        if mark == ':' {
            usable = value.as_ref().is_some_and(|value| !value.is_empty());
            mark = self.next().unwrap_or(' ');
        }
        let word = self.until(Some('}'))?;
        match mark {
            '-' => out.push_str(&if usable { value.unwrap_or_default() } else { word }),
            '+' => out.push_str(if usable { &word } else { "" }),
            '?' if usable => out.push_str(&value.unwrap_or_default()),
            '?' => return self.problem(&format!("variable `{name}` is not set: {word}")),
            _ => return self.problem("only `:-`, `:+` and `:?` are known behind a variable's name"),
        }
        Ok(())
    }
}
