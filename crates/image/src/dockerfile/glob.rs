//! Patterns of the shell's parameter expansion, as in `${name%.tar*}` (POSIX.1, "Shell Command Language", 2.6.2),
//! of which BuildKit takes `*` and `?`.

/// Longest pattern, so that its use takes no time worth mentioning.
const MAX_CHARS: usize = 1024;

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Glob {
    /// What stands between the `*`; at least one. None is a `?`.
    parts: Vec<Vec<Option<char>>>,
}

impl Glob {
    /// Compiles a pattern. Escaped are `*`, `?`, the escape character, and `}` and `/`, which would end the pattern.
    pub(super) fn new(text: &str, escape: char) -> Result<Self, String> {
        if text.chars().count() > MAX_CHARS {
            return Err(format!("a pattern may have {MAX_CHARS} characters"));
        }
        let mut parts = vec![Vec::new()];
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let part = parts.last_mut().expect("there is always one");
            match c {
                '*' => parts.push(Vec::new()),
                '?' => part.push(None),
                c if c == escape => match chars.next() {
                    Some(c) if matches!(c, '*' | '?' | '}' | '/') || c == escape => part.push(Some(c)),
                    Some(c) => return Err(format!("`{escape}{c}` is no escape in a pattern")),
                    None => return Err("the pattern ends in an escape character".to_owned()),
                },
                c => part.push(Some(c)),
            }
        }
        Ok(Self { parts })
    }

    /// Where a match that begins at `from` ends.
    fn end(&self, text: &[char], from: usize, longest: bool) -> Option<usize> {
        let (first, more) = self.parts.split_first()?;
        let mut at = fits(first, text, from)?;
        let Some((last, middle)) = more.split_last() else { return Some(at) };
        for part in middle {
            at = (at..=text.len()).find_map(|start| fits(part, text, start))?;
        }
        match longest {
            true => (at..=text.len()).rev().find_map(|start| fits(last, text, start)),
            false => (at..=text.len()).find_map(|start| fits(last, text, start)),
        }
    }

    /// The text without the shortest or longest beginning that matches.
    pub(super) fn strip_prefix(&self, text: &str, longest: bool) -> Option<String> {
        let chars: Vec<char> = text.chars().collect();
        let end = self.end(&chars, 0, longest)?;
        Some(chars[end..].iter().collect())
    }

    /// The text without the shortest or longest end that matches.
    pub(super) fn strip_suffix(&self, text: &str, longest: bool) -> Option<String> {
        let backwards = |part: &Vec<_>| part.iter().rev().copied().collect();
        let mirrored = Self { parts: self.parts.iter().rev().map(backwards).collect() };
        let chars: Vec<char> = text.chars().rev().collect();
        let end = mirrored.end(&chars, 0, longest)?;
        Some(chars[end..].iter().rev().collect())
    }

    /// Replaces the first match, or all; each the longest from its beginning on. None: it would be longer than
    /// `limit` bytes.
    pub(super) fn replace(&self, text: &str, replacement: &str, all: bool, limit: usize) -> Option<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut out = String::new();
        let mut at = 0;
        // An empty match right behind another one is none.
        let mut last = None;
        while at <= chars.len() {
            let end = match fits(&self.parts[0], &chars, at) {
                None => None,
                Some(_) => match self.end(&chars, at, true) {
                    // What does not follow here does not follow later on, either.
                    None => break,
                    end => end,
                },
            };
            if let Some(end) = end.filter(|end| last != Some(*end)) {
                out.push_str(replacement);
                if end == at {
                    out.extend(chars.get(at));
                    at += 1;
                } else {
                    at = end;
                    last = Some(end);
                }
                if !all {
                    break;
                }
            } else {
                out.extend(chars.get(at));
                at += 1;
            }
            if out.len() > limit {
                return None;
            }
        }
        out.extend(chars.get(at..).unwrap_or_default());
        (out.len() <= limit).then_some(out)
    }
}

/// Where a part that begins at `from` ends.
fn fits(part: &[Option<char>], text: &[char], from: usize) -> Option<usize> {
    let piece = text.get(from..from + part.len())?;
    let same = part.iter().zip(piece).all(|(wanted, found)| wanted.is_none_or(|wanted| wanted == *found));
    same.then_some(from + part.len())
}
