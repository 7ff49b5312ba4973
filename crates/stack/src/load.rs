//! From a path to a `Plan`: read, interpolate, parse, resolve.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::diagnostic::{FileError, SourceText, Span};
use crate::env_file;
use crate::file::{self, Format};
use crate::host::HostFacts;
use crate::interpolate::{Missing, Variables, interpolate};
use crate::plan::{Plan, PortChoice};
use crate::resolve::{self, Context};

/// What is loaded, and how.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The stack file.
    pub file: PathBuf,
    /// Stack name, instead of the file's or the directory's.
    pub project_name: Option<String>,
    /// Instead of `.env` beside the file.
    pub env_file: Option<PathBuf>,
    /// Force this base distribution.
    pub base: Option<String>,
    /// Warnings are errors.
    pub strict: bool,
    /// Numbers of replicas that outweigh the file's, by service.
    pub scale: BTreeMap<String, u16>,
    /// Which ports are published instead of the file's.
    pub ports: PortChoice,
}

/// The names looked for in a directory, in this order.
const DEFAULT_NAMES: [&str; 5] =
    ["stack.toml", "compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];
/// The script that writes `.env` in our own repository and in what copies its layout.
const ENV_WRITER: &str = "scripts/env";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The stack file of a directory, if there is one.
pub fn default_file(directory: &Path) -> Option<PathBuf> {
    DEFAULT_NAMES.iter().map(|name| directory.join(name)).find(|path| path.is_file())
}

/// Read a stack file and resolve it.
///
/// Besides the file, its `.env` and the files of `env_file` are read, and build directories,
/// Dockerfiles and other paths of the file are looked at; nothing is changed.
pub fn load(options: &LoadOptions, host: &HostFacts) -> Result<Plan, FileError> {
    let format = Format::of(&options.file)?;
    let source = read_text(&options.file)?;
    let directory = directory(&options.file)?;
    let variables = variables(options, host)?;

    let mut root = file::tree(format, &source)?;
    let mut warnings: Vec<(Span, String)> = Vec::new();
    let missing = match format {
        Format::Stack => Missing::Refuse,
        Format::Compose => Missing::Empty,
    };
    let env_writer = directory.join(ENV_WRITER).is_file().then_some(ENV_WRITER);
    interpolate(&mut root, &variables, missing, env_writer, &mut warnings)?;
    let file = file::model(&root, format, &mut warnings)?;
    warnings.sort_by_key(|(span, _)| span.start);
    if options.strict
        && let Some((span, message)) = warnings.first()
    {
        let fault = crate::diagnostic::Fault::new(span, message.clone());
        return Err(fault.hint("`--strict` makes warnings errors").into());
    }
    let warnings = warnings.iter().map(|(span, message)| format!("{}: {message}", span.place())).collect();
    let context = Context { options, host, format, directory, variables: &variables, env_writer };
    resolve::plan(file, &context, warnings)
}

/// Only the name of a stack: what is needed to find a running one, so that it can be stopped while its
/// file or `.env` is broken elsewhere.
pub fn name(options: &LoadOptions, host: &HostFacts) -> Result<String, FileError> {
    let format = Format::of(&options.file)?;
    let source = read_text(&options.file)?;
    let directory = directory(&options.file)?;
    if options.project_name.is_some() {
        return resolve::stack_name(None, options, &directory);
    }
    let root = file::tree(format, &source)?;
    let Some(mut node) = file::name_node(&root)? else {
        return resolve::stack_name(None, options, &directory);
    };
    // Nothing else needs `.env`.
    if node.text("name").is_ok_and(|text| text.contains('$')) {
        let variables = variables(options, host)?;
        interpolate(&mut node, &variables, Missing::Refuse, None, &mut Vec::new())?;
    }
    let named = file::located(&node, node.text("name")?);
    resolve::stack_name(Some(&named), options, &directory)
}

/// The variables that a stack file may refer to: the environment's, then those of `.env`. The value of
/// a `SecretSource::Environment` is found here.
pub fn variables(options: &LoadOptions, host: &HostFacts) -> Result<Variables, FileError> {
    let path = match &options.env_file {
        Some(path) => path.clone(),
        None => options.file.with_file_name(".env"),
    };
    let lenient = Format::of(&options.file)? == Format::Compose;
    let file = match read_private(&path) {
        Ok(source) => env_file::parse(&source, &host.environment, lenient)?,
        Err(FileError::Read { source, .. })
            if options.env_file.is_none() && source.kind() == std::io::ErrorKind::NotFound =>
        {
            BTreeMap::new()
        }
        Err(error) => return Err(error),
    };
    Ok(Variables::new(host.environment.clone(), file))
}

/// Read a text file of the user's.
pub(crate) fn read_text(path: &Path) -> Result<Arc<SourceText>, FileError> {
    Ok(SourceText::new(path, read(path)?))
}

/// Read one that may hold passwords.
pub(crate) fn read_private(path: &Path) -> Result<Arc<SourceText>, FileError> {
    Ok(SourceText::private(path, read(path)?))
}

fn read(path: &Path) -> Result<String, FileError> {
    let read = || {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(FileError::TooLarge { path: path.to_owned(), limit: MAX_FILE });
    }
    String::from_utf8(bytes).map_err(|error| FileError::Read {
        path: path.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
    })
}

/// The absolute directory of a file.
fn directory(file: &Path) -> Result<PathBuf, FileError> {
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    parent.canonicalize().map_err(|source| FileError::Read { path: parent.to_owned(), source })
}

#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod tests;
