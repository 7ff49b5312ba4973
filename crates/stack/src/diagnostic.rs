//! Errors of stack files: what is wrong, where, and what to do about it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};

use crate::remote::RemoteError;

/// A place: a byte range in a source text. Several files can make one model, so it knows which one.
#[derive(Clone)]
pub(crate) struct Span {
    pub(crate) source: Arc<SourceText>,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) fn new(source: &Arc<SourceText>, range: Range<usize>) -> Self {
        Self { source: Arc::clone(source), start: range.start, end: range.end }
    }

    /// For what is wrong with a file as a whole.
    pub(crate) fn start_of(source: &Arc<SourceText>) -> Self {
        Self::new(source, 0..0)
    }

    /// The words that stand there.
    pub(crate) fn text(&self) -> &str {
        self.source.text.get(self.start..self.end).unwrap_or_default()
    }

    /// A part of it; `range` counts from its start.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        Self::new(&self.source, self.start + range.start..self.start + range.end)
    }

    /// Of its file, as it is shown.
    pub(crate) fn path(&self) -> &Path {
        &self.source.path
    }

    /// `stack.toml:12`, for one-line messages.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.source.path.display(), self.line())
    }

    /// One-based.
    fn line(&self) -> usize {
        self.source.line(self.start)
    }

    /// As it can be underlined: on character boundaries, not empty, not past its first line when it covers a
    /// whole table.
    fn shown(&self) -> Range<usize> {
        let text = &*self.source.text;
        let mut start = self.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let mut end = self.end.min(line_end).max(start);
        if end == start || self.end > line_end {
            end = start + text[start..line_end].trim_end().len();
        }
        while !text.is_char_boundary(end) {
            end += 1;
        }
        start..end
    }
}

/// Without the text, which may hold passwords.
impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}..{}", self.source.path.display(), self.start, self.end)
    }
}

/// Something wrong at a place of the text that is being read.
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
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The error for a name on the command line that is no service's, with the service that was most likely meant.
pub fn no_such_service(name: &str, services: &[impl AsRef<str>]) -> RemoteError {
    let names: Vec<&str> = services.iter().map(AsRef::as_ref).collect();
    let hint = match nearest(name, names.iter().copied()) {
        Some(found) => format!("did you mean `{found}`? The stack's services are: {}", names.join(", ")),
        None => format!("the stack's services are: {}", names.join(", ")),
    };
    let mut error = RemoteError::message(format!("no such service: `{name}`")).or_hint(hint);
    // Bad usage.
    error.exit_code = 2;
    error
}

impl FileError {
    /// [`no_such_service`] for a name that an option brings to the files.
    pub(crate) fn no_such_service(name: &str, services: &[impl AsRef<str>]) -> Self {
        let RemoteError { chain, hint, .. } = no_such_service(name, services);
        Self::Option { message: chain.join(": "), hint }
    }
}

/// A text with the name it is shown under.
pub(crate) struct SourceText {
    /// As the user wrote it, or relative to the current directory.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    /// The text holds passwords and is never shown.
    pub(crate) private: bool,
}

impl SourceText {
    pub(crate) fn new(path: &Path, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { path: path.to_owned(), text: text.into(), private: false })
    }

    /// A text that is never to be shown.
    pub(crate) fn private(path: &Path, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { path: path.to_owned(), text: text.into(), private: true })
    }

    fn snippet(&self) -> Snippet<'_, Annotation<'_>> {
        Snippet::source(self.text.as_str()).path(self.path.display().to_string())
    }

    /// One-based line of a byte offset.
    pub(crate) fn line(&self, offset: usize) -> usize {
        let bytes = self.text.as_bytes();
        let end = offset.min(bytes.len());
        bytes[..end].iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// A fault of a file, as it is shown.
///
/// `Display` is the message without its place; the snippet has the place.
#[derive(Debug)]
pub struct Diagnostic(Box<Fault>);

impl Diagnostic {
    /// Path of the file, as it is shown.
    pub fn path(&self) -> &Path {
        &self.0.span.source.path
    }

    /// One-based line.
    pub fn line(&self) -> usize {
        self.0.span.line()
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The offending lines with the words underlined, ending in a newline. Of a file with passwords
    /// only the place is shown.
    pub fn snippet(&self, color: bool) -> String {
        let Fault { span, label, other, .. } = &*self.0;
        if span.source.private {
            return format!(" --> {}\n", span.place());
        }
        let annotation = AnnotationKind::Primary.span(span.shown()).label(label.as_deref());
        let mut primary = span.source.snippet().annotation(annotation);
        let mut secondary = None;
        if let Some((place, label)) = other {
            let annotation = AnnotationKind::Context.span(place.shown()).label(label.as_str());
            match Arc::ptr_eq(&place.source, &span.source) {
                true => primary = primary.annotation(annotation),
                false if place.source.private => {}
                false => secondary = Some(place.source.snippet().annotation(annotation)),
            }
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut group = Group::with_level(Level::ERROR).element(primary);
        if let Some(secondary) = secondary {
            group = group.element(secondary);
        }
        let report = [group];
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
        write!(f, "line {}: {}", self.line(), self.message())
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
    Invalid(#[source] Diagnostic),
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

impl From<Box<Fault>> for FileError {
    fn from(fault: Box<Fault>) -> Self {
        Self::Invalid(Diagnostic(fault))
    }
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
            Self::Invalid(diagnostic) => diagnostic.0.hint.clone(),
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
                Self::Invalid(diagnostic) => diagnostic.message().to_owned(),
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
