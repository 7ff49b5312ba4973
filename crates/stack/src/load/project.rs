//! Which files make a stack, where its directory is and which variables it has: options, `COMPOSE_*`, `.env`,
//! default names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::layers::ONE_NOTATION;
use super::{LoadOptions, read_private, read_text};
use crate::diagnostic::{FileError, SourceText};
use crate::env_file;
use crate::file::node::Node;
use crate::file::{self, Format};
use crate::interpolate::Variables;

/// The names looked for in a directory, in this order.
const NAMES: [&str; 5] =
    ["stack.toml", "compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// What is merged over a compose file of a default name.
const OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];
/// Stands for standard input.
const STANDARD_INPUT: &str = "-";
/// The script that writes `.env` in our own repository and in what copies its layout.
const ENV_WRITER: &str = "scripts/env";

/// What the options and the environment come to.
pub(crate) struct Project {
    /// As they are shown; one at least.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) format: Format,
    /// Absolute; relative paths start here.
    pub(crate) directory: PathBuf,
    pub(crate) variables: Variables,
    pub(crate) profiles: Vec<String>,
    /// A script beside the file that writes `.env`.
    pub(crate) env_writer: Option<&'static str>,
    pub(crate) warnings: Vec<String>,
}

/// Files of default names.
#[derive(Default)]
struct Found {
    files: Vec<PathBuf>,
    warnings: Vec<String>,
}

impl Project {
    pub(crate) fn find(
        options: &LoadOptions,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, FileError> {
        let first = options.files.iter().find(|file| **file != Path::new(STANDARD_INPUT));
        // Where the first `.env` is, which can say where the files are.
        let start = match (&options.project_directory, first) {
            (Some(directory), _) => directory.clone(),
            (None, Some(file)) => parent(file),
            (None, None) => options.current_directory.clone(),
        };
        let found = match options.files.is_empty() {
            true => search(&start),
            false => Found::default(),
        };
        let own = Variables::new(environment.clone(), BTreeMap::new());
        let explicit = explicit_env_files(options, &own);
        let env_files = match &explicit {
            Some(files) => files.clone(),
            None => default_env_file(&start, &own),
        };
        let mut variables = own.clone().or(self::env_files(&env_files, &own)?);

        let mut warnings = Vec::new();
        let files = if !options.files.is_empty() {
            options.files.clone()
        } else if let Some(files) = named_files(&variables, &options.current_directory) {
            files
        } else {
            warnings = found.warnings;
            found.files
        };
        let Some(first) = files.first() else {
            return Err(FileError::Option {
                message: format!("there is no stack file in {} or above", absolute(&start)?.display()),
                hint: Some(match below(&start) {
                    Some(file) => format!("name the one below: `-f {}`", file.display()),
                    None => {
                        "make a `stack.toml` (or `compose.yaml`, `docker-compose.yml`), or name one with `-f FILE`"
                            .to_owned()
                    }
                }),
            });
        };
        let format = format_of(first)?;
        for file in &files {
            if format_of(file)? != format {
                return Err(FileError::Option {
                    message: format!(
                        "`{}` and `{}` are of different notations",
                        first.display(),
                        file.display()
                    ),
                    hint: Some(ONE_NOTATION.to_owned()),
                });
            }
        }
        let real = files.iter().find(|file| **file != Path::new(STANDARD_INPUT));
        // Rather than of its directory.
        if let Some(path) = real {
            std::fs::metadata(path).map_err(|source| FileError::Read { path: path.clone(), source })?;
        }
        let directory = match (&options.project_directory, real) {
            (Some(directory), _) => directory.clone(),
            (None, Some(file)) => parent(file),
            (None, None) => start.clone(),
        };
        let (directory, start) = (absolute(&directory)?, absolute(&start)?);
        // The directory may have turned out to be another one.
        if explicit.is_none() && directory != start {
            let more = self::env_files(&default_env_file(&directory, &own), &variables)?;
            variables = variables.or(more);
        }
        let profiles = match options.profiles.is_empty() {
            false => options.profiles.clone(),
            true => list(variables.get("COMPOSE_PROFILES").unwrap_or_default(), ","),
        };
        let env_writer = directory.join(ENV_WRITER).is_file().then_some(ENV_WRITER);
        Ok(Self { files, format, directory, variables, profiles, env_writer, warnings })
    }

    /// Without standard input.
    pub(crate) fn absolute_files(&self) -> Vec<PathBuf> {
        let named = self.files.iter().filter(|file| file.as_path() != Path::new(STANDARD_INPUT));
        // A path that cannot be made absolute is still the best that there is to tell.
        named.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.clone())).collect()
    }

    /// The files' trees, the first one first.
    pub(crate) fn documents(&self, options: &LoadOptions) -> Result<Vec<Node>, FileError> {
        let mut documents = Vec::new();
        for file in &self.files {
            let source = match (file.as_path() == Path::new(STANDARD_INPUT), &options.standard_input) {
                (true, Some(text)) => SourceText::new(Path::new("(standard input)"), text.as_str()),
                _ => read_text(file)?,
            };
            documents.extend(file::documents(self.format, &source)?);
        }
        Ok(documents)
    }

    /// The name that is given beside the files.
    pub(crate) fn name<'a>(&'a self, options: &'a LoadOptions) -> Option<&'a str> {
        let variable = || self.variables.get("COMPOSE_PROJECT_NAME").filter(|name| !name.is_empty());
        options.project_name.as_deref().or_else(variable)
    }
}

/// The first file of a default name in a directory below, such as `srcs/docker-compose.yml`.
fn below(start: &Path) -> Option<PathBuf> {
    let readable = if start.as_os_str().is_empty() { Path::new(".") } else { start };
    let entries = std::fs::read_dir(readable).ok()?.flatten();
    let mut directories: Vec<_> = entries.map(|entry| start.join(entry.file_name())).collect();
    directories.sort();
    directories.iter().find_map(|directory| present(directory, &NAMES).into_iter().next())
}

/// The first default name of a directory or the nearest one above it, and what is merged over it.
fn search(start: &Path) -> Found {
    // Relative, as the user would write it.
    let mut directory = start.to_owned();
    loop {
        let mut files = present(&directory, &NAMES);
        if let Some(first) = files.first().cloned() {
            let mut warnings = Vec::new();
            if files.len() > 1 {
                warnings.push(several(&files));
            }
            files.truncate(1);
            if first.extension().is_some_and(|extension| extension != "toml") {
                let overrides = present(&directory, &OVERRIDES);
                if overrides.len() > 1 {
                    warnings.push(several(&overrides));
                }
                files.extend(overrides.into_iter().next());
            }
            return Found { files, warnings };
        }
        match absolute(&directory) {
            Ok(path) if path.parent().is_some() => directory.push(".."),
            _ => return Found::default(),
        }
    }
}

fn present(directory: &Path, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| directory.join(name)).filter(|path| path.is_file()).collect()
}

fn several(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|file| format!("`{}`", file.display())).collect();
    format!("there are {}; {} is used", names.join(", "), names[0])
}

/// `COMPOSE_FILE`.
fn named_files(variables: &Variables, directory: &Path) -> Option<Vec<PathBuf>> {
    let named = variables.get("COMPOSE_FILE").filter(|value| !value.is_empty())?;
    let separator = variables.get("COMPOSE_PATH_SEPARATOR").filter(|value| !value.is_empty()).unwrap_or(":");
    Some(list(named, separator).into_iter().map(|file| directory.join(file)).collect())
}

/// `--env-file`, or `COMPOSE_ENV_FILES`.
fn explicit_env_files(options: &LoadOptions, own: &Variables) -> Option<Vec<PathBuf>> {
    if !options.env_files.is_empty() {
        return Some(options.env_files.clone());
    }
    let named = own.get("COMPOSE_ENV_FILES").filter(|value| !value.is_empty())?;
    Some(list(named, ",").into_iter().map(|file| options.current_directory.join(file)).collect())
}

fn default_env_file(directory: &Path, own: &Variables) -> Vec<PathBuf> {
    let disabled = own.get("COMPOSE_DISABLE_ENV_FILE").unwrap_or_default().to_lowercase();
    let path = directory.join(".env");
    match matches!(disabled.as_str(), "1" | "t" | "true") || !path.is_file() {
        true => Vec::new(),
        false => vec![path],
    }
}

/// The variables of files; those of later ones win. `outer` wins over them all.
pub(super) fn env_files(files: &[PathBuf], outer: &Variables) -> Result<BTreeMap<String, String>, FileError> {
    let mut variables = BTreeMap::new();
    for file in files {
        let source = read_private(file)?;
        let visible = outer.clone().or(variables.clone());
        variables.extend(env_file::parse(&source, &visible)?);
    }
    Ok(variables)
}

fn list(text: &str, separator: &str) -> Vec<String> {
    text.split(separator).map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
}

fn format_of(file: &Path) -> Result<Format, FileError> {
    match file == Path::new(STANDARD_INPUT) {
        true => Ok(Format::Compose),
        false => Format::of(file),
    }
}

fn parent(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).to_owned()
}

/// An existing directory.
fn absolute(directory: &Path) -> Result<PathBuf, FileError> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    directory.canonicalize().map_err(|source| FileError::Read { path: directory.to_owned(), source })
}
