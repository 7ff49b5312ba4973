//! From files to a `Plan`: find them, make one tree of them, read the model out of it, resolve.

mod canonical;
mod config;
mod emit;
mod environment;
mod extends;
mod include;
mod layers;
mod merge;
mod model;
mod name;
mod paths;
mod profiles;
mod project;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::diagnostic::{Fault, FileError, SourceText, Span};
use crate::file::node::Node;
use crate::file::{self, StackFile};
use crate::host::HostFacts;
use crate::interpolate::Variables;
use crate::origin::Origin;
use crate::plan::{Plan, PortChoice};
use crate::resolve::{self, Context};
pub use config::{Config, config};
pub(crate) use emit::yaml;
use model::Model;
use project::Project;

/// What is loaded, and how. Paths are relative to the current directory.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The files, each merged over those before it; `-` is standard input. Without any it is those of
    /// `COMPOSE_FILE`, or what has a default name here or in a directory above.
    pub files: Vec<PathBuf>,
    /// What was read from standard input.
    pub standard_input: Option<String>,
    /// Where default names are looked for, instead of the current directory.
    pub current_directory: PathBuf,
    /// What relative paths in the files are relative to, instead of the first file's directory.
    pub project_directory: Option<PathBuf>,
    /// Stack name, instead of `COMPOSE_PROJECT_NAME`, the file's or the directory's.
    pub project_name: Option<String>,
    /// Instead of `COMPOSE_ENV_FILES` or `.env` in the stack's directory.
    pub env_files: Vec<PathBuf>,
    /// Active profiles, instead of those of `COMPOSE_PROFILES`.
    pub profiles: Vec<String>,
    /// Services that are named on the command line: their profiles are active, too.
    pub services: Vec<String>,
    /// Force this base distribution.
    pub base: Option<String>,
    /// Warnings are errors.
    pub strict: bool,
    /// Numbers of replicas that outweigh the file's, by service.
    pub scale: BTreeMap<String, u16>,
    /// Only the images of the plan are of interest: what stands in the way of running it is no error.
    pub images_only: bool,
    /// Which ports are published instead of the file's.
    pub ports: PortChoice,
}

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Read the files of a stack and resolve them.
///
/// Besides the files, what they include and extend, `.env` and the files of `env_file` are read, and build
/// directories, Dockerfiles and other paths are looked at; nothing is changed.
pub fn load(options: &LoadOptions, host: &HostFacts) -> Result<Plan, FileError> {
    Ok(load_keeping(options, host, |_, _| Running::default())?.plan)
}

/// A plan, and what is to be known of the files that it was made of.
pub struct Loaded {
    /// The plan.
    pub plan: Plan,
    /// The files, absolute, without those that they include; none for standard input.
    pub files: Vec<PathBuf>,
    /// In which the value of a `SecretSource::Environment` is found: the environment's, then those of `.env`, then
    /// those of the `.env` of an included file for its own secrets.
    pub variables: Variables,
}

/// What a stack that runs keeps to; nothing, when it does not run.
#[derive(Debug, Default)]
pub struct Running {
    /// Where the options choose no ports, this choice.
    pub ports: Option<PortChoice>,
    /// Services that are there although none of their profiles is active.
    pub services: Vec<String>,
}

/// The same, with more than the plan; `running` says what the stack of this name keeps to, and which services of it are
/// there only where it is told that there are profiles.
pub fn load_keeping(
    options: &LoadOptions,
    host: &HostFacts,
    running: impl FnOnce(&str, bool) -> Running,
) -> Result<Loaded, FileError> {
    let model = Model::read(options, host, true, running)?;
    let (files, variables) = (model.project.absolute_files(), model.secret_variables());
    Ok(Loaded { plan: resolved(model, options, host)?, files, variables })
}

/// A stack's files, and what they come to.
pub(crate) struct Whole {
    pub(crate) plan: Plan,
    /// The tree that the plan was made of: where everything is said.
    pub(crate) root: Node,
    /// The model that was read out of it.
    pub(crate) file: StackFile,
    /// In which the values of secrets are found.
    pub(crate) variables: Variables,
}

/// Read the files of a stack, and keep what they say and where.
pub(crate) fn load_whole(options: &LoadOptions, host: &HostFacts) -> Result<Whole, FileError> {
    let model = Model::read(options, host, true, |_, _| Running::default())?;
    let root = model.root.clone();
    let variables = model.secret_variables();
    // What there is to warn of is told with the plan.
    let file = file::model(&root, model.project.format, &mut Vec::new())?;
    Ok(Whole { plan: resolved(model, options, host)?, root, file, variables })
}

fn resolved(model: Model, options: &LoadOptions, host: &HostFacts) -> Result<Plan, FileError> {
    let Model { root, project, name, mut warnings, included, kept_ports, .. } = model;
    let file = file::model(&root, project.format, &mut warnings)?;
    let of_files = settled(warnings, options.strict)?;
    let warnings = project.warnings.iter().cloned().chain(of_files).collect();
    let ports = match options.ports.is_none() {
        true => kept_ports.unwrap_or_default(),
        false => options.ports.clone(),
    };
    let context = Context {
        options,
        ports,
        host,
        name,
        format: project.format,
        directory: project.directory,
        variables: &project.variables,
        included: &included,
        env_writer: project.env_writer,
    };
    resolve::plan(file, &context, warnings)
}

/// Warnings as they are told: in the order of their places, each once, the first as an error with `strict`.
pub(crate) fn settled(mut warnings: Vec<(Span, String)>, strict: bool) -> Result<Vec<String>, FileError> {
    warnings.sort_by(|(one, _), (other, _)| (one.path(), one.start).cmp(&(other.path(), other.start)));
    // A service that two others extend says everything twice.
    warnings.dedup_by(|(one, text), (other, before)| {
        one.path() == other.path() && one.start == other.start && text == before
    });
    if strict && let Some((span, message)) = warnings.first() {
        let fault = Fault::new(span, message.clone());
        return Err(fault.hint("`--strict` makes warnings errors").into());
    }
    Ok(warnings.iter().map(|(span, message)| format!("{}: {message}", span.place())).collect())
}

/// Only the name of a stack: what is needed to find a running one, so that it can be stopped while its
/// files are broken elsewhere.
pub fn name(options: &LoadOptions, host: &HostFacts) -> Result<String, FileError> {
    let read = |options: &LoadOptions, environment: &BTreeMap<String, String>| {
        let project = Project::find(options, environment)?;
        match project.name(options) {
            Some(name) => name::given(name),
            None => name::of(&project.documents(options)?, &project, true),
        }
    };
    read(options, &host.environment).or_else(|error| {
        // Few names need a variable.
        let options = LoadOptions { env_files: Vec::new(), ..options.clone() };
        let mut environment = host.environment.clone();
        environment.insert("COMPOSE_DISABLE_ENV_FILE".to_owned(), "1".to_owned());
        environment.remove("COMPOSE_ENV_FILES");
        read(&options, &environment).map_err(|_same| error)
    })
}

/// The variables of a file as `env_file` has it; a name without a value has the one that it has here.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn variables_of(file: &Path, host: &HostFacts) -> Result<BTreeMap<String, String>, FileError> {
    let visible = Variables::new(host.environment.clone(), BTreeMap::new());
    Ok(crate::env_file::parse(&read_private(file)?, &visible)?)
}

/// Whether there are files to load, be they good or not.
pub fn has_files(options: &LoadOptions, host: &HostFacts) -> bool {
    !matches!(Project::find(options, &host.environment), Err(FileError::Option { .. }))
}

/// Where the stack comes from: its files without those that they include.
///
/// # Errors
/// When there is none, or the current directory is gone.
pub fn origin(options: &LoadOptions, host: &HostFacts) -> Result<Origin, FileError> {
    let project = Project::find(options, &host.environment)?;
    let files = project.absolute_files();
    Ok(Origin { directory: project.directory, files })
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

#[cfg(test)]
mod files_tests;
#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod sharing_tests;
#[cfg(test)]
mod tests;
