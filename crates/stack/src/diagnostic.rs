//! Errors of stack files: what is wrong, where, and what to do about it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Byte range in a source text.
pub(crate) type Span = Range<usize>;

/// Something wrong at a place of the text that is being read; the text itself is attached later.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) label: Option<String>,
    /// A second place that belongs to the story, such as the first user of a port.
    pub(crate) other: Option<(Span, String)>,
    pub(crate) hint: Option<String>,
}

pub(crate) type Checked<T> = Result<T, Box<Fault>>;

impl Fault {
    pub(crate) fn new(span: &Span, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { span: span.clone(), message: message.into(), label: None, other: None, hint: None })
    }

    pub(crate) fn label(mut self: Box<Self>, label: impl Into<String>) -> Box<Self> {
        self.label = Some(label.into());
        self
    }

    pub(crate) fn other(mut self: Box<Self>, span: &Span, label: impl Into<String>) -> Box<Self> {
        self.other = Some((span.clone(), label.into()));
        self
    }

    pub(crate) fn hint(mut self: Box<Self>, hint: impl Into<String>) -> Box<Self> {
        self.hint = Some(hint.into());
        self
    }

    /// Hint with the candidate nearest to `word`, or keep the hint there is.
    pub(crate) fn nearest<'a>(
        mut self: Box<Self>,
        word: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Box<Self> {
        if let Some(found) = nearest(word, candidates) {
            self.hint = Some(format!("did you mean `{found}`?"));
        }
        self
    }
}

/// The candidate that `word` most likely was meant to be.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A text with the name it is shown under.
#[derive(Debug, Clone)]
pub(crate) struct SourceText {
    /// As the user wrote it, or relative to the current directory.
    pub(crate) path: PathBuf,
    pub(crate) text: Arc<str>,
    /// The text holds passwords and is never shown.
    pub(crate) private: bool,
}

impl SourceText {
    pub(crate) fn new(path: &Path, text: impl Into<Arc<str>>) -> Self {
        Self { path: path.to_owned(), text: text.into(), private: false }
    }

    /// The same text, never to be shown.
    pub(crate) fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// One-based line of a byte offset.
    pub(crate) fn line(&self, offset: usize) -> usize {
        let bytes = self.text.as_bytes();
        let end = offset.min(bytes.len());
        bytes[..end].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// `stack.toml:12`, for one-line messages.
    pub(crate) fn place(&self, span: &Span) -> String {
        format!("{}:{}", self.path.display(), self.line(span.start))
    }

    // Boxed as `Checked` has it, so that callers write `map_err(|fault| source.fault(fault))`.
    #[allow(clippy::boxed_local)]
    pub(crate) fn fault(&self, fault: Box<Fault>) -> FileError {
        let Fault { span, message, label, other, hint } = *fault;
        FileError::Invalid(Box::new(Diagnostic {
            span: self.shown(&span),
            other: other.map(|(span, label)| (self.shown(&span), label)),
            source: self.clone(),
            message,
            label,
            hint,
        }))
    }

    /// A span that can be underlined: on character boundaries, not empty, not past its first line
    /// when it covers a whole table.
    fn shown(&self, span: &Span) -> Span {
        let text = &*self.text;
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let mut end = span.end.min(line_end).max(start);
        if end == start || span.end > line_end {
            end = start + text[start..line_end].trim_end().len();
        }
        while !text.is_char_boundary(end) {
            end += 1;
        }
        start..end
    }
}

/// A fault together with the text it is about.
///
/// `Display` is the message without its place; the snippet has the place.
#[derive(Debug)]
pub struct Diagnostic {
    source: SourceText,
    span: Span,
    message: String,
    label: Option<String>,
    other: Option<(Span, String)>,
    hint: Option<String>,
}

impl Diagnostic {
    /// Path of the file, as it is shown.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// One-based line.
    pub fn line(&self) -> usize {
        self.source.line(self.span.start)
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The offending lines with the words underlined, ending in a newline. Of a file with passwords
    /// only the place is shown.
    pub fn snippet(&self, color: bool) -> String {
        if self.source.private {
            return format!(" --> {}\n", self.source.place(&self.span));
        }
        let primary = AnnotationKind::Primary.span(self.span.clone()).label(self.label.as_deref());
        let mut snippet = Snippet::source(&*self.source.text)
            .path(self.source.path.display().to_string())
            .annotation(primary);
        if let Some((span, label)) = &self.other {
            snippet = snippet.annotation(AnnotationKind::Context.span(span.clone()).label(label.as_str()));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let report = [Group::with_level(Level::ERROR).element(snippet)];
        let mut text: String =
            renderer.render(&report).lines().map(|line| format!("{}\n", line.trim_end())).collect();
        if text.ends_with("\n\n") {
            text.pop();
        }
        text
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line(), self.message)
    }
}

impl std::error::Error for Diagnostic {}

fn is_format(extension: &std::ffi::OsStr) -> bool {
    ["toml", "yaml", "yml"].iter().any(|known| extension == *known)
}

/// A stack file (or its `.env`) cannot be used. The command's exit code for it is 2.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is far larger than a stack file can be.
    #[error("`{}` is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Largest size that is read, in bytes.
        limit: u64,
    },
    /// The file's name ends in none of `.toml`, `.yaml`, `.yml`.
    #[error("`{}` is neither TOML nor YAML by its name", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The file's content is wrong.
    #[error("cannot use `{}`", .0.path().display())]
    Invalid(#[source] Box<Diagnostic>),
    /// A fault of an option rather than of the file.
    #[error("{message}")]
    Option {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A fact about the host cannot be read.
    #[error("read `{what}`")]
    Host {
        /// Which fact.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            // Only a stack file has such a name; `.env` files come here, too.
            Self::Read { path, source }
                if source.kind() == io::ErrorKind::NotFound && path.extension().is_some_and(is_format) =>
            {
                Some("name the file with `-f FILE`".to_owned())
            }
            Self::Read { .. } | Self::TooLarge { .. } | Self::Host { .. } => None,
            Self::Format { .. } => {
                Some("end its name in `.toml` (stack file) or `.yaml` (compose file)".to_owned())
            }
            Self::Invalid(diagnostic) => diagnostic.hint.clone(),
            Self::Option { hint, .. } => hint.clone(),
        }
    }

    /// The offending lines, if the error is about a file's content.
    pub fn snippet(&self, color: bool) -> Option<String> {
        match self {
            Self::Invalid(diagnostic) => Some(diagnostic.snippet(color)),
            _ => None,
        }
    }

    /// The whole message: error, cause, offending lines, hint; ends in a newline.
    pub fn render(&self, color: bool) -> String {
        let paint = |code: &str, word: &str| {
            if color { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
        };
        let mut text = format!("{} {self}\n", paint("1;31", "error:"));
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let line = match self {
                // The snippet below has the line.
                Self::Invalid(diagnostic) => diagnostic.message.clone(),
                _ => error.to_string(),
            };
            text.push_str(&format!("  caused by: {line}\n"));
            cause = error.source();
        }
        if let Some(snippet) = self.snippet(color) {
            text.push_str(&snippet);
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!("{} {hint}\n", paint("1;36", "hint:")));
        }
        text
    }
}
