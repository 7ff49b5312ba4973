//! `.env` files, and those of `env_file`.
//!
//! Beside a `stack.toml` they have the part of the shell's syntax that needs no shell: what is read here means the
//! same to `set -a; . ./.env` in a POSIX shell. There are comments, `export`, quotes, backslashes and `$NAME` of
//! variables set before; command substitution, several commands on a line and the like are refused. Beside a
//! compose file they are what compose takes them for.

mod compose;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::diagnostic::{Checked, Fault, SourceText, Span};
use crate::file::Format;
use crate::interpolate::{Variables, expand, name_length};

/// Parse the text of a file. `visible` is what `$NAME` may refer to besides earlier lines; it wins over them,
/// as it does everywhere else.
pub(crate) fn parse(
    source: &Arc<SourceText>,
    visible: &Variables,
    format: Format,
) -> Checked<BTreeMap<String, String>> {
    match format {
        Format::Stack => shell(source, visible),
        Format::Compose => compose::parse(source, visible),
    }
}

/// Lines `NAME=VALUE`, the value as it stands: `format: raw` of `env_file`, and `label_file`.
pub(crate) fn raw(text: &str) -> BTreeMap<String, String> {
    let lines =
        text.lines().filter(|line| !line.trim_start().is_empty() && !line.trim_start().starts_with('#'));
    let pairs = lines.map(|line| line.split_once('=').unwrap_or((line, "")));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.to_owned())).collect()
}

fn shell(source: &Arc<SourceText>, environment: &Variables) -> Checked<BTreeMap<String, String>> {
    let mut reader = Reader { source, text: &source.text, at: 0 };
    let mut variables = BTreeMap::new();
    while reader.skip_to_assignment() {
        let start = reader.at;
        let name = reader.name()?;
        let Some(name) = name else {
            let line = reader.rest_of_line(start);
            return Err(Fault::new(&line, "expected `NAME=value`"));
        };
        let value = reader.value(&name, environment, &variables)?;
        variables.insert(name, value);
    }
    Ok(variables)
}

struct Reader<'a> {
    source: &'a Arc<SourceText>,
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t')) {
            self.at += 1;
        }
    }

    fn span(&self, range: Range<usize>) -> Span {
        Span::new(self.source, range)
    }

    fn line_end(&self, from: usize) -> usize {
        self.text[from..].find('\n').map_or(self.text.len(), |length| from + length)
    }

    fn rest_of_line(&self, from: usize) -> Span {
        self.span(from..self.line_end(from))
    }

    /// Over empty lines and comments; whether anything is left.
    fn skip_to_assignment(&mut self) -> bool {
        loop {
            match self.peek() {
                None => return false,
                Some('#') => self.at = self.line_end(self.at),
                Some(c) if c.is_whitespace() => self.at += c.len_utf8(),
                Some(_) => break,
            }
        }
        let rest = &self.text[self.at..];
        if let Some(after) = rest.strip_prefix("export")
            && after.starts_with([' ', '\t'])
        {
            self.at += "export".len();
            self.skip_blanks();
        }
        true
    }

    /// `NAME=`, consumed.
    fn name(&mut self) -> Checked<Option<String>> {
        let start = self.at;
        let length = name_length(&self.text[start..]);
        if length == 0 {
            return Ok(None);
        }
        let name = self.text[start..start + length].to_owned();
        self.at += length;
        let blank = matches!(self.peek(), Some(' ' | '\t'));
        if self.peek() != Some('=') {
            let rest = &self.text[self.at..];
            if blank && rest.trim_start_matches([' ', '\t']).starts_with('=') {
                return Err(Fault::new(&self.rest_of_line(start), "blank before `=`")
                    .hint(format!("write `{name}=value`, as a shell wants it")));
            }
            return Ok(None);
        }
        self.at += 1;
        Ok(Some(name))
    }

    fn value(
        &mut self,
        name: &str,
        environment: &Variables,
        earlier: &BTreeMap<String, String>,
    ) -> Checked<String> {
        let mut value = String::new();
        loop {
            let start = self.at;
            match self.peek() {
                None | Some('\n') => break,
                Some('\r') if self.text[self.at..].starts_with("\r\n") => break,
                Some(' ' | '\t') => {
                    self.skip_blanks();
                    match self.peek() {
                        None | Some('\n' | '\r') => break,
                        Some('#') => {
                            self.at = self.line_end(self.at);
                            break;
                        }
                        Some(_) => {
                            return Err(Fault::new(
                                &self.rest_of_line(self.at),
                                format!("the value of `{name}` has a blank, but no quotes"),
                            )
                            .hint(format!("write `{name}=\"…\"`")));
                        }
                    }
                }
                Some('\'') => {
                    self.at += 1;
                    let body = self.at;
                    let Some(length) = self.text[body..].find('\'') else {
                        return Err(self.unclosed(start, name));
                    };
                    value.push_str(&self.text[body..body + length]);
                    self.at = body + length + 1;
                }
                Some('"') => {
                    self.at += 1;
                    self.double_quoted(start, name, environment, earlier, &mut value)?;
                }
                Some('\\') => {
                    self.at += 1;
                    match self.next() {
                        Some('\n') | None => {}
                        Some(c) => value.push(c),
                    }
                }
                Some('$') => self.variable(environment, earlier, &mut value)?,
                Some('`') => return Err(self.substitution(start, name)),
                Some(c @ (';' | '&' | '|' | '<' | '>' | '(' | ')')) => {
                    return Err(Fault::new(
                        &self.span(start..start + 1),
                        format!("the value of `{name}` has `{c}`, but no quotes"),
                    )
                    .hint(format!("write `{name}='…'`")));
                }
                Some(c) => {
                    value.push(c);
                    self.at += c.len_utf8();
                }
            }
        }
        Ok(value)
    }

    fn double_quoted(
        &mut self,
        start: usize,
        name: &str,
        environment: &Variables,
        earlier: &BTreeMap<String, String>,
        value: &mut String,
    ) -> Checked<()> {
        loop {
            let at = self.at;
            match self.peek() {
                None => return Err(self.unclosed(start, name)),
                Some('"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some('\\') => {
                    self.at += 1;
                    match self.next() {
                        Some(c @ ('"' | '\\' | '$' | '`')) => value.push(c),
                        Some('\n') => {}
                        Some(c) => value.extend(['\\', c]),
                        None => return Err(self.unclosed(start, name)),
                    }
                }
                Some('`') => return Err(self.substitution(at, name)),
                Some('$') => self.variable(environment, earlier, value)?,
                Some(c) => {
                    value.push(c);
                    self.at += c.len_utf8();
                }
            }
        }
    }

    /// `$NAME` or `${NAME…}`; a lone dollar sign stands for itself, as in a shell.
    fn variable(
        &mut self,
        environment: &Variables,
        earlier: &BTreeMap<String, String>,
        value: &mut String,
    ) -> Checked<()> {
        let start = self.at;
        let rest = &self.text[start + 1..];
        let line_end = self.line_end(start);
        let length = match rest.as_bytes().first() {
            Some(b'(' | b'$') => {
                return Err(Fault::new(
                    &self.span(start..start + 2),
                    format!("`{}` needs a shell", &self.text[start..start + 2]),
                )
                .hint("put single quotes around a value with dollar signs"));
            }
            Some(b'{') => match self.text[start..line_end].find('}') {
                Some(close) => close + 1,
                None => return Err(Fault::new(&self.span(start..line_end), "`${` without `}`")),
            },
            _ => 1 + name_length(rest),
        };
        let words = &self.text[start..start + length];
        self.at += length;
        if length == 1 {
            value.push('$');
            return Ok(());
        }
        let lookup = |name: &str| environment.get(name).or_else(|| earlier.get(name).map(String::as_str));
        // A variable that is not set is empty, as in a shell.
        let expanded = expand(words, &lookup).map_err(|_why| {
            Fault::new(&self.span(start..start + length), format!("`{words}` cannot be expanded"))
        })?;
        value.push_str(&expanded.text);
        Ok(())
    }

    fn substitution(&self, start: usize, name: &str) -> Box<Fault> {
        Fault::new(&self.span(start..start + 1), format!("the value of `{name}` runs a command"))
            .hint("write the value itself; nothing is executed here")
    }

    fn unclosed(&self, start: usize, name: &str) -> Box<Fault> {
        let message = format!("the quote in the value of `{name}` is never closed");
        Fault::new(&self.span(start..start + 1), message)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn source(text: &str) -> Arc<SourceText> {
        SourceText::private(Path::new(".env"), text)
    }

    /// What a shell makes of the same file.
    fn as_sh(text: &str) -> BTreeMap<String, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env");
        std::fs::write(&path, text).unwrap();
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", "set -a; . \"$1\"; exec env -0", "sh"])
            .arg(&path)
            .env_clear()
            .env("FROM", "environment")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .split_terminator('\0')
            .filter_map(|pair| pair.split_once('='))
            .filter(|(name, _)| !["FROM", "PWD", "OLDPWD", "_", "SHLVL"].contains(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn as_a_shell_reads_it() {
        let text = r#"# comment
A=plain
export B="double \"quoted\" $A \$A \\ \n"  # comment
C='single $A "x" # no comment'
  D=a#b
E=
F="two
lines"
G=${A}/${NO:-d}$NO/x
H=a"b"'c'\ d\$
I="$FROM"
J=a\
b
K=a$/b
"#;
        let environment = BTreeMap::from([("FROM".to_owned(), "environment".to_owned())]);
        let visible = Variables::new(environment, BTreeMap::new());
        let ours = parse(&source(text), &visible, Format::Stack).unwrap();
        assert_eq!(ours, as_sh(text));
        assert_eq!(ours["H"], "abc d$");
    }

    #[test]
    fn values_as_they_are() {
        let read = raw("A=$x 'y' # z\n# comment\n\n B=\r\nC\n");
        assert_eq!(read["A"], "$x 'y' # z");
        assert_eq!((&*read["B"], &*read["C"]), ("", ""));
    }
}
