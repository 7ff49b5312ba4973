//! Files to one tree: each is interpolated, its `extends` and `include` are followed, and it is merged over the
//! files before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{extends, include, merge};
use crate::diagnostic::{Checked, Fault, FileError, SourceText, Span};
use crate::file::node::Node;
use crate::file::{self, Format};
use crate::interpolate::{Interpolation, Missing, Variables};

/// How many files one model may be made of.
const MAX_FILES: usize = 256;

/// What the names in a file mean: that of the command line, or of an `include`.
pub(super) struct Scope {
    /// Absolute; relative paths start here.
    pub(super) directory: PathBuf,
    pub(super) variables: Variables,
}

/// Reads files.
pub(super) struct Layers<'a> {
    pub(super) format: Format,
    /// Whether variables are replaced.
    pub(super) interpolate: bool,
    /// A script beside the file that writes `.env`.
    pub(super) env_writer: Option<&'a str>,
    pub(super) warnings: Vec<(Span, String)>,
    /// Variables that only secrets of included files have.
    pub(super) included: BTreeMap<String, String>,
    files: usize,
    weight: usize,
}

impl<'a> Layers<'a> {
    pub(super) fn new(format: Format, interpolate: bool, env_writer: Option<&'a str>) -> Self {
        Self {
            format,
            interpolate,
            env_writer,
            warnings: Vec::new(),
            included: BTreeMap::new(),
            files: 0,
            weight: 0,
        }
    }

    /// Merge files, the first one first. `trail` is the files whose `include` led here.
    pub(super) fn model(
        &mut self,
        documents: Vec<Node>,
        scope: &Scope,
        trail: &[PathBuf],
    ) -> Result<Node, FileError> {
        let mut model: Option<Node> = None;
        for document in documents {
            let layer = self.layer(document, scope, trail)?;
            model = Some(match model {
                Some(model) => merge::files(model, layer)?,
                None => {
                    let mut first = layer;
                    merge::settle(&mut first);
                    first
                }
            });
        }
        // There always is a document.
        model.ok_or_else(|| FileError::Option { message: "there is no stack file".to_owned(), hint: None })
    }

    fn layer(&mut self, mut root: Node, scope: &Scope, trail: &[PathBuf]) -> Result<Node, FileError> {
        self.replace_variables(&mut root, scope)?;
        extends::follow(&mut root, self, scope)?;
        include::follow(&mut root, self, scope, trail)?;
        if self.format == Format::Compose {
            merge::unify(&mut root)?;
        }
        Ok(root)
    }

    /// Replace the variables in a file.
    pub(super) fn replace_variables(&mut self, root: &mut Node, scope: &Scope) -> Checked<()> {
        if !self.interpolate {
            return Ok(());
        }
        let missing = match self.format {
            Format::Stack => Missing::Refuse,
            Format::Compose => Missing::Empty,
        };
        Interpolation::new(&scope.variables, missing, self.env_writer, &mut self.warnings).file(root)
    }

    /// Read a file that another one names.
    pub(super) fn named(&mut self, path: &Path, span: &Span, what: &str) -> Result<Vec<Node>, FileError> {
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(Fault::new(span, format!("the stack has more than {MAX_FILES} files")).into());
        }
        // A name that tells nothing is as good as any.
        let format = Format::of(path).unwrap_or(self.format);
        if format != self.format {
            let message = format!("the {what} file is of the other notation");
            return Err(Fault::new(span, message).hint(ONE_NOTATION).into());
        }
        let source = read(path, span, what)?;
        Ok(file::documents(format, &source)?)
    }

    /// Copies add up: a chain of services that extend each other can be larger than any file.
    pub(super) fn weigh(&mut self, node: &Node) -> Checked<()> {
        self.weight = self.weight.saturating_add(node.weight());
        match self.weight <= Node::MAX_WEIGHT {
            true => Ok(()),
            false => Err(Fault::new(&node.span, "the stack is too large once its `extends` are followed")),
        }
    }
}

/// TOML and YAML have different defaults.
pub(super) const ONE_NOTATION: &str =
    "a stack is written in TOML or in YAML; `config --format toml` converts";

fn read(path: &Path, span: &Span, what: &str) -> Result<Arc<SourceText>, FileError> {
    // What another file names is no pipe that is waited for.
    if path.exists() && !path.is_file() {
        let message = format!("the {what} file `{}` is not a file", shown(path).display());
        return Err(Fault::new(span, message).into());
    }
    super::read_text(&shown(path)).map_err(|error| match error {
        FileError::Read { path, source } => {
            let message = match source.kind() {
                std::io::ErrorKind::NotFound => {
                    format!("the {what} file `{}` does not exist", path.display())
                }
                _ => format!("cannot read the {what} file `{}`: {source}", path.display()),
            };
            Fault::new(span, message).into()
        }
        error => error,
    })
}

/// A path as the user would write it: relative to the current directory where it is below that.
pub(super) fn shown(path: &Path) -> PathBuf {
    let here = std::env::current_dir().ok();
    match here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned)) {
        Some(relative) if !relative.as_os_str().is_empty() => relative,
        _ => path.to_owned(),
    }
}
