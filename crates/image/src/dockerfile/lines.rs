//! Physical lines to instructions: directives, comments, continuations, here-documents.

use crate::error::{Error, Result};

/// A here-document of a `RUN`, `COPY` or `ADD` instruction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Heredoc {
    /// The word that ends it; a file's name for `COPY`.
    pub(crate) word: String,
    /// The word was not quoted: variables in the content are replaced (by `COPY`; by the shell for `RUN`).
    pub(crate) expand: bool,
    /// The lines, each with its end.
    pub(crate) content: String,
    /// The lines with the end mark, as written, for the shell.
    pub(crate) raw: String,
}

/// One instruction before it is understood.
#[derive(Debug)]
pub(crate) struct Logical {
    pub(crate) line: usize,
    pub(crate) keyword: String,
    pub(crate) rest: String,
    pub(crate) heredocs: Vec<Heredoc>,
}

impl Logical {
    pub(crate) fn text(&self) -> String {
        format!("{} {}", self.keyword, self.rest)
    }
}

/// The escape character, and the instructions.
pub(crate) fn split(file: &str, text: &str) -> Result<(char, Vec<Logical>)> {
    let fail =
        |line: usize, message: String| Error::Dockerfile { file: file.to_owned(), line, message, hint: None };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.lines().collect();
    let escape = escape_directive(&lines).map_err(|(line, message)| fail(line, message))?;
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let first = at;
        let start = lines[at].trim_start();
        at += 1;
        if start.is_empty() || start.starts_with('#') {
            continue;
        }
        let (mut joined, mut continues) = strip_continuation(start, escape);
        while continues && at < lines.len() {
            let next = lines[at];
            at += 1;
            let bare = next.trim_start();
            if bare.is_empty() || bare.starts_with('#') {
                continue;
            }
            let (part, more) = strip_continuation(next, escape);
            joined.push_str(&part);
            continues = more;
        }
        let joined = joined.trim();
        let (keyword, rest) = joined.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((joined, ""));
        let keyword = keyword.to_ascii_uppercase();
        let rest = rest.trim().to_owned();
        let mut heredocs = Vec::new();
        if matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") {
            for (word, strip_tabs, expand) in heredoc_marks(&rest) {
                let mut document = Heredoc { word, expand, content: String::new(), raw: String::new() };
                loop {
                    let Some(line) = lines.get(at) else {
                        let message =
                            format!("{keyword}: the here-document is not ended by `{}`", document.word);
                        return Err(fail(first + 1, message));
                    };
                    at += 1;
                    document.raw.push_str(line);
                    document.raw.push('\n');
                    let line = if strip_tabs { line.trim_start_matches('\t') } else { line };
                    if line == document.word {
                        break;
                    }
                    document.content.push_str(line);
                    document.content.push('\n');
                }
                heredocs.push(document);
            }
        }
        found.push(Logical { line: first + 1, keyword, rest, heredocs });
    }
    Ok((escape, found))
}

/// `# escape=` among the directives, which end at the first line that is none.
fn escape_directive(lines: &[&str]) -> Result<char, (usize, String)> {
    for (index, line) in lines.iter().enumerate() {
        let Some((key, value)) = line.trim().strip_prefix('#').and_then(|comment| comment.split_once('='))
        else {
            break;
        };
        let key = key.trim().to_ascii_lowercase();
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            break;
        }
        if key == "escape" {
            return match value.trim() {
                "\\" => Ok('\\'),
                "`" => Ok('`'),
                other => Err((
                    index + 1,
                    format!("`# escape={other}`: the escape character is `\\` or a backtick"),
                )),
            };
        }
    }
    Ok('\\')
}

/// The line without a continuation mark at its end, and whether there was one.
fn strip_continuation(line: &str, escape: char) -> (String, bool) {
    let trimmed = line.trim_end();
    match trimmed.strip_suffix(escape) {
        Some(rest) => (rest.to_owned(), true),
        None => (line.to_owned(), false),
    }
}

/// The here-documents that a command line announces: words of the form `<<WORD`, `<<-WORD`, `3<<"WORD"`
/// outside of quotes.
fn heredoc_marks(command: &str) -> Vec<(String, bool, bool)> {
    let mut marks = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    for c in command.chars().chain(Some(' ')) {
        match quote {
            None if c.is_ascii_whitespace() => {
                marks.extend(heredoc_mark(&word));
                word.clear();
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
    }
    marks
}

fn heredoc_mark(word: &str) -> Option<(String, bool, bool)> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, strip_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let quoted = ['\'', '"'].into_iter().find_map(|quote| rest.strip_prefix(quote)?.strip_suffix(quote));
    let name = quoted.unwrap_or(rest);
    let ok = !name.is_empty() && !name.contains(['<', '\'', '"', '(', ')', '$', '`']);
    // `cat <<EOF;` or `<<EOF|sh`: the word ends where the shell says.
    let name = name.split([';', '|', '&', '>']).next().unwrap_or(name);
    (ok && !name.is_empty()).then(|| (name.to_owned(), strip_tabs, quoted.is_none()))
}
