//! Wildcard patterns of `COPY` and `.dockerignore`, matched in time proportional to pattern and path.

/// A compiled pattern: Go's `filepath.Match`, and `**` of `.dockerignore` for any number of directories.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<Token>);

#[derive(Debug)]
enum Token {
    Byte(u8),
    /// `?`: one byte but `/`.
    Any,
    /// `*`: bytes but `/`.
    Star,
    /// `**`: anything.
    DoubleStar,
    /// `**/`: directories, or nothing.
    Directories,
    Class {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

impl Pattern {
    /// Compiles a pattern; `double_star` gives `**` its meaning.
    pub(crate) fn new(text: &str, double_star: bool) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let mut tokens = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            at += 1;
            tokens.push(match byte {
                b'*' if double_star && bytes.get(at) == Some(&b'*') => {
                    while bytes.get(at) == Some(&b'*') {
                        at += 1;
                    }
                    if bytes.get(at) == Some(&b'/') {
                        at += 1;
                        Token::Directories
                    } else {
                        Token::DoubleStar
                    }
                }
                b'*' => Token::Star,
                b'?' => Token::Any,
                b'[' => {
                    let (class, next) =
                        class(bytes, at).ok_or_else(|| format!("`{text}`: `[` is not closed"))?;
                    at = next;
                    class
                }
                b'\\' if at < bytes.len() => {
                    at += 1;
                    Token::Byte(bytes[at - 1])
                }
                byte => Token::Byte(byte),
            });
        }
        Ok(Self(tokens))
    }

    /// Whether the pattern matches the whole of a path.
    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        // `reached[i]`: the tokens so far can match the first i bytes.
        let mut reached = vec![false; path.len() + 1];
        reached[0] = true;
        for token in &self.0 {
            let mut next = vec![false; path.len() + 1];
            match token {
                Token::Star | Token::DoubleStar => {
                    let mut on = false;
                    for (at, now) in reached.iter().enumerate() {
                        let blocked = matches!(token, Token::Star) && at > 0 && path[at - 1] == b'/';
                        on = *now || (on && !blocked);
                        next[at] = on;
                    }
                }
                Token::Directories => {
                    let mut on = false;
                    for (at, now) in reached.iter().enumerate() {
                        next[at] = *now || (on && path[at - 1] == b'/');
                        on |= *now;
                    }
                }
                single => {
                    for (at, byte) in path.iter().enumerate() {
                        next[at + 1] = reached[at] && single.takes(*byte);
                    }
                }
            }
            reached = next;
        }
        reached[path.len()]
    }
}

impl Token {
    fn takes(&self, byte: u8) -> bool {
        match self {
            Self::Byte(wanted) => byte == *wanted,
            Self::Any => byte != b'/',
            Self::Class { negated, ranges } => {
                byte != b'/' && ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte)) != *negated
            }
            _ => false,
        }
    }
}

fn class(bytes: &[u8], mut at: usize) -> Option<(Token, usize)> {
    let negated = bytes.get(at) == Some(&b'^');
    at += usize::from(negated);
    let mut ranges = Vec::new();
    loop {
        let low = match *bytes.get(at)? {
            b']' if !ranges.is_empty() => return Some((Token::Class { negated, ranges }, at + 1)),
            b'\\' => {
                at += 1;
                *bytes.get(at)?
            }
            byte => byte,
        };
        at += 1;
        let mut high = low;
        if bytes.get(at) == Some(&b'-') && bytes.get(at + 1).is_some_and(|next| *next != b']') {
            high = *bytes.get(at + 1)?;
            at += 2;
        }
        ranges.push((low, high));
    }
}

/// Whether a word is a pattern rather than a name.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The rules of a `.dockerignore` file.
#[derive(Debug, Default)]
pub struct Ignore {
    rules: Vec<(bool, Pattern)>,
}

impl Ignore {
    /// Parses the file.
    ///
    /// # Errors
    /// The line, from 1, and what is wrong with its pattern.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
        // A comment takes a line, so that lines are counted right.
        Self::new(lines.map(|line| if line.starts_with('#') { "" } else { line }))
    }

    /// Rules from patterns.
    ///
    /// # Errors
    /// The pattern's number, from 1, and what is wrong with it.
    pub fn new<'a>(patterns: impl Iterator<Item = &'a str>) -> Result<Self, (usize, String)> {
        let mut rules = Vec::new();
        for (index, line) in patterns.enumerate() {
            let line = line.trim();
            let (negated, rest) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            let mut parts: Vec<&str> = Vec::new();
            for part in rest.split('/').filter(|part| !part.is_empty() && *part != ".") {
                if part == ".." {
                    parts.pop();
                } else {
                    parts.push(part);
                }
            }
            if parts.is_empty() {
                continue;
            }
            let pattern = Pattern::new(&parts.join("/"), true).map_err(|problem| (index + 1, problem))?;
            rules.push((negated, pattern));
        }
        Ok(Self { rules })
    }

    /// Whether a path (relative to the context) is left out: the last rule that matches it, or a
    /// directory above it, decides.
    pub fn excludes(&self, path: &[u8]) -> bool {
        let parents: Vec<&[u8]> =
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]).collect();
        let mut excluded = false;
        for (negated, pattern) in &self.rules {
            if excluded == *negated
                && (pattern.matches(path) || parents.iter().any(|dir| pattern.matches(dir)))
            {
                excluded = !negated;
            }
        }
        excluded
    }

    /// Whether something below a directory that is left out may yet be wanted.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|(negated, _)| *negated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_paths() {
        for (pattern, path, fits) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "d/a.txt", false),
            ("**/*.txt", "a.txt", true),
            ("**/*.txt", "d/e/a.txt", true),
            ("d/**", "d/e/f", true),
            ("d/**", "d", false),
            ("**", "d/e", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "axb", false),
            ("\\*", "*", true),
        ] {
            assert_eq!(
                Pattern::new(pattern, true).unwrap().matches(path.as_bytes()),
                fits,
                "{pattern} {path}"
            );
        }
        assert!(Pattern::new("[a", true).is_err());
        let evil = Pattern::new(&"*a".repeat(200), true).unwrap();
        assert!(!evil.matches("a".repeat(199).as_bytes()));
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let ignore = Ignore::parse("# c\n*.md\n!README.md\n/build/\nsecret\n!secret/keep\n").unwrap();
        for (path, out) in [
            ("a.md", true),
            ("README.md", false),
            ("d/a.md", false),
            ("build/x/y", true),
            ("secret", true),
            ("secret/keep", false),
            ("secret/other", true),
        ] {
            assert_eq!(ignore.excludes(path.as_bytes()), out, "{path}");
        }
    }
}
