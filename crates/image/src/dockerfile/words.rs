//! Words of an instruction: quoting, and variables in the way of BuildKit's own shell-like lexer.

use std::collections::BTreeMap;

use crate::dockerfile::glob::Glob;

/// Most bytes by which variables may make a word longer: what the kernel takes for one argument or variable
/// (`execve(2)`).
const MAX_GROWTH: usize = 128 << 10;
/// Deepest nesting of `${a:-${b:-...}}`.
const MAX_DEPTH: usize = 32;

/// Where variables get their values.
pub(crate) trait Scope {
    fn get(&self, name: &str) -> Option<String>;

    /// Learns that a variable was used which has no value, and without a word about that case.
    fn missed(&self, _name: &str) {}
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
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        if c == escape && quote != Some('\'') {
            // One at the very end escapes nothing.
            if let Some(next) = chars.next() {
                word.extend([c, next]);
            }
            continue;
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Replaces variables and removes quotes and escapes.
pub(crate) fn expand(word: &str, scope: &dyn Scope, escape: char) -> Result<String, String> {
    Expander::new(word, scope, escape, true).whole()
}

/// Replaces variables in a here-document, where quotes are text.
pub(crate) fn expand_document(text: &str, scope: &dyn Scope) -> Result<String, String> {
    Expander::new(text, scope, '\\', false).whole()
}

struct Expander<'a> {
    rest: std::str::Chars<'a>,
    word: &'a str,
    scope: &'a dyn Scope,
    escape: char,
    /// Quotes mean something.
    quotes: bool,
    depth: usize,
    /// Inside of a word that is used only if the variable has no value, or never.
    spare: usize,
}

impl<'a> Expander<'a> {
    fn new(word: &'a str, scope: &'a dyn Scope, escape: char, quotes: bool) -> Self {
        Self { rest: word.chars(), word, scope, escape, quotes, depth: 0, spare: 0 }
    }

    fn whole(mut self) -> Result<String, String> {
        self.until(None, false)
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn limit(&self) -> usize {
        self.word.len() + MAX_GROWTH
    }

    fn problem<T>(&self, problem: &str) -> Result<T, String> {
        let mut shown: String = self.word.chars().take(80).collect();
        if shown.len() < self.word.len() {
            shown.push_str("...");
        }
        Err(format!("`{shown}`: {problem}"))
    }

    fn push(&self, out: &mut String, text: &str) -> Result<(), String> {
        out.push_str(text);
        if out.len() > self.limit() {
            return self.problem("its variables make it longer than 128 KiB");
        }
        Ok(())
    }

    /// Reads up to an end mark outside of quotes, or to the end. `raw` keeps the escape characters, for patterns.
    fn until(&mut self, end: Option<char>, raw: bool) -> Result<String, String> {
        let mut out = String::new();
        loop {
            let Some(c) = self.rest.next() else {
                return match end {
                    Some(end) => self.problem(&format!("`${{` lacks its `{end}`")),
                    None => Ok(out),
                };
            };
            match c {
                c if Some(c) == end => return Ok(out),
                '\'' if self.quotes => self.single_quoted(&mut out)?,
                '"' if self.quotes => self.double_quoted(&mut out, raw)?,
                '$' => self.variable(&mut out)?,
                c if c == self.escape => {
                    if raw {
                        out.push(c);
                    }
                    out.extend(self.rest.next());
                }
                c => out.push(c),
            }
        }
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            match self.rest.next() {
                Some('\'') => return Ok(()),
                Some(c) => out.push(c),
                None => return self.problem("a single quote is not closed"),
            }
        }
    }

    fn double_quoted(&mut self, out: &mut String, raw: bool) -> Result<(), String> {
        loop {
            match self.rest.next() {
                Some('"') => return Ok(()),
                Some('$') => self.variable(out)?,
                Some(c) if c == self.escape => {
                    let escaped = self.peek().filter(|next| matches!(next, '"' | '$') || *next == c);
                    if raw || escaped.is_none() {
                        out.push(c);
                    }
                    if let Some(next) = escaped {
                        out.push(next);
                        self.rest.next();
                    }
                }
                Some(c) => out.push(c),
                None => return self.problem("a double quote is not closed"),
            }
        }
    }

    /// A variable's name, a positional parameter's number, or one of the shell's special parameters, which are
    /// never set here.
    fn name(&mut self) -> &'a str {
        let text = self.rest.as_str();
        let first = text.chars().next().unwrap_or(' ');
        let length = if first.is_ascii_digit() {
            text.find(|c: char| !c.is_ascii_digit())
        } else if matches!(first, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
            Some(1)
        } else {
            text.find(|c: char| !(c.is_alphanumeric() || c == '_'))
        };
        let (name, rest) = text.split_at(length.unwrap_or(text.len()));
        self.rest = rest.chars();
        name
    }

    /// The value of a variable that should have one.
    fn value(&self, name: &str) -> String {
        self.scope.get(name).unwrap_or_else(|| {
            if self.spare == 0 {
                self.scope.missed(name);
            }
            String::new()
        })
    }

    /// What follows a `$`.
    fn variable(&mut self, out: &mut String) -> Result<(), String> {
        if self.peek() == Some('{') {
            self.rest.next();
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return self.problem("its variables are nested too deep");
            }
            let value = self.braced()?;
            self.depth -= 1;
            return self.push(out, &value);
        }
        let name = self.name();
        match name {
            "" => out.push('$'),
            name => self.push(out, &self.value(name))?,
        }
        Ok(())
    }

    /// What follows a `${`.
    fn braced(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Some('{' | '}' | ':')) {
            return self.problem("`${` is not followed by a variable's name");
        }
        let name = self.name();
        if name.is_empty() {
            return self.problem("`${` is not followed by a variable's name");
        }
        let Some(mut mark) = self.rest.next() else { return self.problem("`${` lacks its `}`") };
        // With the colon, an empty value counts as none.
        let colon = mark == ':';
        if colon {
            mark = self.rest.next().unwrap_or(' ');
        }
        match mark {
            '}' if !colon => Ok(self.value(name)),
            '-' | '+' | '?' => {
                let value = self.scope.get(name).filter(|value| !(colon && value.is_empty()));
                // The word that is not used may name what is not set.
                let unused = usize::from(value.is_some() != (mark == '+'));
                self.spare += unused;
                let word = self.until(Some('}'), false)?;
                self.spare -= unused;
                match (mark, value) {
                    ('-', None) => Ok(word),
                    ('+', None) => Ok(String::new()),
                    ('+', Some(_)) => Ok(word),
                    (_, Some(value)) => Ok(value),
                    (_, None) => {
                        let why = if colon { "is not set, or empty" } else { "is not set" };
                        let separator = if word.is_empty() { "" } else { ": " };
                        self.problem(&format!("variable `{name}` {why}{separator}{word}"))
                    }
                }
            }
            '#' | '%' => {
                let longest = self.peek() == Some(mark);
                if longest {
                    self.rest.next();
                }
                let pattern = self.until(Some('}'), true)?;
                let pattern = self.glob(&pattern)?;
                let value = self.value(name);
                let left = if mark == '#' {
                    pattern.strip_prefix(&value, longest)
                } else {
                    pattern.strip_suffix(&value, longest)
                };
                Ok(left.unwrap_or(value))
            }
            '/' if !colon => {
                let all = self.peek() == Some('/');
                if all {
                    self.rest.next();
                }
                let pattern = self.until(Some('/'), true)?;
                let pattern = self.glob(&pattern)?;
                let replacement = self.until(Some('}'), true)?;
                match pattern.replace(&self.value(name), &replacement, all, self.limit()) {
                    Some(replaced) => Ok(replaced),
                    None => self.problem("its variables make it longer than 128 KiB"),
                }
            }
            _ => {
                let known = "`:-`, `:+`, `:?`, `-`, `+`, `?`, `#`, `##`, `%`, `%%`, `/` and `//`";
                self.problem(&format!("only {known} are known behind the name of a variable"))
            }
        }
    }

    fn glob(&self, pattern: &str) -> Result<Glob, String> {
        Glob::new(pattern, self.escape).or_else(|problem| self.problem(&problem))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    fn scope(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn variables_are_expanded_as_buildkit_does() {
        let scope = scope(&[("x", "1"), ("empty", ""), ("_u2", "u"), ("ünï", "code")]);
        for (word, value) in [
            ("$x", "1"),
            ("${x}y", "1y"),
            ("$xy", ""),
            ("a$_u2-", "au-"),
            ("$ünï", "code"),
            ("$none.", "."),
            ("${none:-a$x}", "a1"),
            ("${none:-'}'}", "}"),
            ("${none:-\"a b\"}", "a b"),
            ("${none:-${other:-deep}}", "deep"),
            ("${empty:-d}", "d"),
            ("${empty-d}", ""),
            ("${x:+s}", "s"),
            ("${empty+s}", "s"),
            ("${empty:+s}", ""),
            ("${none:+s}", ""),
            ("${x:?needed}", "1"),
            ("${empty?needed}", ""),
            ("'$x'", "$x"),
            ("'a\\'", "a\\"),
            ("\"a $x\"", "a 1"),
            ("\"\\a\\\"\\\\\\$\"", "\\a\"\\$"),
            ("\\$x", "$x"),
            ("a\\ b", "a b"),
            ("a\\nb", "anb"),
            ("a\\", "a"),
            ("$", "$"),
            ("$.", "$."),
            ("$9$?", ""),
        ] {
            assert_eq!(expand(word, &scope, '\\').as_deref(), Ok(value), "{word}");
        }
        for word in [
            "${x",
            "${",
            "'a",
            "\"a",
            "${none:?needed}",
            "${empty:?}",
            "${none?}",
            "${}",
            "${{x}}",
            "${:-x}",
            "${x=y}",
            "${x^}",
            "${x:}",
            "${x/a}",
            "${x/a/b",
        ] {
            assert!(expand(word, &scope, '\\').is_err(), "{word}");
        }
        assert_eq!(expand("`$x\\", &scope, '`').as_deref(), Ok("$x\\"));
        let error = expand("${none:?which $x}", &scope, '\\').unwrap_err();
        assert!(error.contains("variable `none` is not set, or empty: which 1"), "{error}");
    }

    #[test]
    fn patterns_cut_and_replace() {
        let scope = scope(&[
            ("f", "xxyy"),
            ("stars", "a***yy*"),
            ("q", "???y"),
            ("path", "/tmp/tmp/bar.txt"),
            ("needle", "/tmp"),
            ("empty", ""),
        ]);
        for (word, value) in [
            ("${f#x}", "xyy"),
            ("${f:#x}", "xyy"),
            ("${f#*x*y}", "y"),
            ("${f#*}", "xxyy"),
            ("${f##*}", ""),
            ("${f##*x}", "yy"),
            ("${f#}", "xxyy"),
            ("${f#$empty}", "xxyy"),
            ("${f%y}", "xxy"),
            ("${f%y*}", "xxy"),
            ("${f%%y*}", "xx"),
            ("${f%x}", "xxyy"),
            ("${q#?\\?}", "?y"),
            ("${stars%%\\**\\*}", "a"),
            ("${path##*/}", "bar.txt"),
            ("${path%/*}", "/tmp/tmp"),
            ("${path/$needle/}", "/tmp/bar.txt"),
            ("${path//$needle/}", "/bar.txt"),
            ("${path//\\//\\/}", "\\/tmp\\/tmp\\/bar.txt"),
            ("${path/t?p/x}", "/x/tmp/bar.txt"),
            ("${f/$empty/w}", "wxxyy"),
            ("${f//\\}/w}", "xxyy"),
            ("${none//a/b}", ""),
        ] {
            assert_eq!(expand(word, &scope, '\\').as_deref(), Ok(value), "{word}");
        }
        assert!(expand("${f#\\x}", &scope, '\\').unwrap_err().contains("escape"));
    }

    #[test]
    fn quotes_in_here_documents_are_text() {
        let scope = scope(&[("x", "1")]);
        let text = "it's \"$x\" \\$x \\\\ ${x:-'}\n";
        assert_eq!(expand_document(text, &scope).as_deref(), Ok("it's \"1\" $x \\ 1\n"));
    }

    #[test]
    fn only_variables_that_should_have_a_value_are_missed() {
        struct Watched(RefCell<Vec<String>>);
        impl Scope for Watched {
            fn get(&self, name: &str) -> Option<String> {
                (name == "x").then(String::new)
            }
            fn missed(&self, name: &str) {
                self.0.borrow_mut().push(name.to_owned());
            }
        }
        let watched = Watched(RefCell::default());
        expand("$x $a ${b} ${c:-$d} ${x-$e} ${f:+$g} ${x+$h} ${i#a}", &watched, '\\').unwrap();
        assert_eq!(*watched.0.borrow(), ["a", "b", "d", "h", "i"]);
    }

    #[test]
    fn nothing_grows_without_bound() {
        let deep = "${a:-".repeat(100_000);
        assert!(expand(&deep, &scope(&[]), '\\').unwrap_err().contains("nested too deep"));
        let big = scope(&[("big", &"ab".repeat(40_000))]);
        assert!(expand("$big$big", &big, '\\').unwrap_err().contains("128 KiB"));
        assert!(expand("${big//a/0123456789}", &big, '\\').unwrap_err().contains("128 KiB"));
    }

    proptest! {
        #[test]
        fn words_keep_all_but_white_space(text in "[ a-c'\"\\\\$]{0,24}") {
            let joined: String = split(&text, '\\').concat();
            let bare = |text: &str| text.replace([' ', '\\'], "");
            prop_assert_eq!(bare(&joined), bare(&text));
        }

        #[test]
        fn expansion_never_panics(word in "[$x{}:/#%?+'\"\\\\*-]{0,24}") {
            drop(expand(&word, &scope(&[("x", "a/b*c")]), '\\'));
        }
    }
}
