//! Physical lines to instructions: directives, comments, continuations, here-documents.

use crate::dockerfile::parse::{Parsed, Problem};
use crate::dockerfile::rules::Rules;
use crate::dockerfile::{Warning, words};

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
pub(super) struct Logical {
    pub(super) line: usize,
    /// In capitals.
    pub(super) keyword: String,
    pub(super) rest: String,
    pub(super) heredocs: Vec<Heredoc>,
}

impl Logical {
    pub(super) fn text(&self) -> String {
        format!("{} {}", self.keyword, self.rest).trim_end().to_owned()
    }
}

/// What the comments at the top of the file say.
#[derive(Debug)]
pub(super) struct Directives {
    pub(super) escape: char,
    pub(super) rules: Rules,
}

/// What is wrong, on which line.
pub(super) type Fault = (usize, Problem);

/// The directives, and the instructions.
pub(super) fn split(text: &str, warnings: &mut Vec<Warning>) -> Result<(Directives, Vec<Logical>), Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let directives = directives(&lines)?;
    let escape = directives.escape;
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let first = at;
        let start = lines[at].trim();
        at += 1;
        if start.is_empty() || start.starts_with('#') {
            continue;
        }
        let (joined, mut continues) = strip_continuation(lines[first].trim_start(), escape);
        let mut joined = joined.to_owned();
        let mut has_empty = false;
        while continues && at < lines.len() {
            let next = lines[at];
            at += 1;
            let bare = next.trim();
            has_empty |= bare.is_empty();
            if bare.is_empty() || bare.starts_with('#') {
                continue;
            }
            let (part, more) = strip_continuation(next, escape);
            joined.push_str(part);
            continues = more;
        }
        if has_empty {
            let message = "an instruction goes on behind an empty line".to_owned();
            warnings.push(Warning { line: first + 1, rule: "NoEmptyContinuation", message });
        }
        let (keyword, rest) = first_word(joined.trim());
        let keyword = keyword.to_ascii_uppercase();
        let rest = rest.to_owned();
        let mut heredocs = Vec::new();
        for mark in heredoc_marks(&keyword, &rest) {
            heredocs.push(mark.read(&lines, &mut at).ok_or_else(|| {
                let message = format!("{keyword}: the here-document is not ended by `{}`", mark.word);
                (first + 1, Problem::from(message))
            })?);
        }
        found.push(Logical { line: first + 1, keyword, rest, heredocs });
    }
    Ok((directives, found))
}

/// A text's first word, and the rest.
pub(super) fn first_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim())
}

/// Reads the directives, which end at the first line that is none. Each stands there once.
fn directives(lines: &[&str]) -> Result<Directives, Fault> {
    let mut directives = Directives { escape: '\\', rules: Rules::default() };
    let mut seen = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((key, value)) = line.trim().strip_prefix('#').and_then(|comment| comment.split_once('='))
        else {
            break;
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        if !matches!(key.as_str(), "syntax" | "escape" | "check") || value.is_empty() {
            break;
        }
        let fault = |problem: Problem| (index + 1, problem);
        if seen.contains(&key) {
            return Err(fault(format!("there is more than one directive `# {key}=`").into()));
        }
        match key.as_str() {
            "escape" => {
                directives.escape = match value {
                    "\\" => '\\',
                    "`" => '`',
                    other => {
                        let message =
                            format!("`# escape={other}`: the escape character is `\\` or a backtick");
                        return Err(fault(message.into()));
                    }
                };
            }
            "check" => directives.rules = Rules::parse(value).map_err(fault)?,
            _ => syntax(value).map_err(fault)?,
        }
        seen.push(key);
    }
    Ok(directives)
}

/// Refuses a language that is not the Dockerfile's: its frontend is an image whose program translates the file, and
/// nothing of the kind is run here.
fn syntax(value: &str) -> Parsed<()> {
    let image = value.split_whitespace().next().unwrap_or_default();
    let name = image.strip_prefix("docker.io/").unwrap_or(image);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let (name, tag) = name.split_once(':').unwrap_or((name, ""));
    let official = matches!(name, "docker/dockerfile" | "docker/dockerfile-upstream");
    let numbered = tag.starts_with(|c: char| c.is_ascii_digit());
    let major = tag.split(['.', '-']).next().unwrap_or_default();
    if official && (!numbered || major == "1") {
        return Ok(());
    }
    Err(Problem {
        message: format!("`# syntax={image}`: this frontend is not built in, and frontends are not fetched"),
        hint: Some("version 1 of the Dockerfile's syntax, `docker/dockerfile:1`, is built in".to_owned()),
    })
}

/// The line without a continuation mark at its end, and whether there was one. Two marks are none: the first
/// escapes the second.
fn strip_continuation(line: &str, escape: char) -> (&str, bool) {
    let line = line.trim_end_matches(['\r', '\n']);
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

/// What announces a here-document: `<<WORD`, `<<-WORD`, `3<<"WORD"`.
struct Mark {
    word: String,
    strip_tabs: bool,
    expand: bool,
}

impl Mark {
    fn parse(word: &str) -> Option<Self> {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
        let (rest, strip_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
        if rest.contains(['<', '(', ')', '$', '`']) {
            return None;
        }
        // `cat <<EOF;` or `<<EOF|sh`: the word ends where the shell says.
        let rest = rest.split([';', '|', '&', '>']).next().unwrap_or(rest);
        let word = rest.replace(['\'', '"', '\\'], "");
        let expand = !rest.contains(['\'', '"']);
        (!word.is_empty()).then_some(Self { word, strip_tabs, expand })
    }

    /// Reads the lines up to the end mark; none if there is no end.
    fn read(&self, lines: &[&str], at: &mut usize) -> Option<Heredoc> {
        let (word, expand) = (self.word.clone(), self.expand);
        let mut document = Heredoc { word, expand, content: String::new(), raw: String::new() };
        loop {
            let line = *lines.get(*at)?;
            *at += 1;
            document.raw.push_str(line);
            let line = if self.strip_tabs { line.trim_start_matches('\t') } else { line };
            if line.trim_end_matches(['\r', '\n']) == self.word {
                return Some(document);
            }
            document.content.push_str(line);
        }
    }
}

/// The here-documents that an instruction announces.
fn heredoc_marks(keyword: &str, rest: &str) -> Vec<Mark> {
    let (keyword, rest) = match keyword {
        "ONBUILD" => first_word(rest),
        keyword => (keyword, rest),
    };
    if !["RUN", "COPY", "ADD"].iter().any(|takes| keyword.eq_ignore_ascii_case(takes)) {
        return Vec::new();
    }
    words::split(rest, '\\').iter().filter_map(|word| Mark::parse(word)).collect()
}

/// Whether a word announces a here-document.
pub(super) fn is_heredoc(word: &str) -> bool {
    Mark::parse(word).is_some()
}
