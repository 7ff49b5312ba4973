//! Makes sure that every service's image is in the store: found, imported, or built.

mod agent;
mod base;
mod build;
mod check;
mod checkout;
mod git;
mod job;
mod mounts;
mod network;
mod pull;
mod run;
mod scratch;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use image::{Digest, Image, ImportOptions, Reference, Store};
use serde::{Deserialize, Serialize};

use self::base::Wanted;
use crate::paths::{self, Paths};
use crate::plan::{Build, Plan, Service, Source};
use crate::registry::Transfer;
use crate::remote::{Context, RemoteError};
use crate::spec;
use crate::storage::{self, Handle};

pub use build::{build, export_directory, export_tar};
pub use check::{Finding, check};
pub use checkout::repository;

/// What may be done for the images of a plan.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Services whose images are wanted; all when empty.
    pub services: Vec<String>,
    /// Build even where an image is there (`--build`, `build`).
    pub build: bool,
    /// Build nothing (`--no-build`): what is not there is an error.
    pub no_build: bool,
    /// Values of the secrets of builds that come from variables, by the variables' names.
    pub secrets: BTreeMap<String, String>,
    /// Open a shell where a command failed.
    pub debug: bool,
    /// Tell of the passing of time, for a view that shows it.
    pub tick: bool,
    /// What RUN instructions start can be watched, see [`container::launch::Surroundings::readable`].
    pub readable: bool,
}

/// How it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Progress {
    /// The base that all builds use, and why.
    Base(String),
    /// A base image is being fetched or made.
    Fetching {
        /// Image name.
        image: String,
        /// How.
        how: String,
    },
    /// Bytes of a download.
    Bytes {
        /// Image name.
        image: String,
        /// So far.
        done: u64,
        /// In all, when known.
        total: Option<u64>,
    },
    /// A transfer from or to a registry.
    Transfer {
        /// Image name.
        image: String,
        /// How it goes.
        event: Transfer,
    },
    /// An instruction begins.
    Step {
        /// Service name.
        service: String,
        /// Which step of this build, from 0.
        step: usize,
        /// The stage, where there are several.
        stage: Option<String>,
        /// From 1.
        index: usize,
        /// How many the stage has.
        total: usize,
        /// The instruction.
        text: String,
    },
    /// An instruction was found in the cache.
    Cached {
        /// Service name.
        service: String,
        /// Which step.
        step: usize,
    },
    /// An instruction was carried out.
    Ran {
        /// Service name.
        service: String,
        /// Which step.
        step: usize,
        /// How long it took.
        seconds: f64,
    },
    /// A line of a command's output.
    Output {
        /// Service name.
        service: String,
        /// Which step; none for what makes a base image.
        step: Option<usize>,
        /// The line.
        line: String,
    },
    /// Something the user should know.
    Warning(String),
    /// A shell has the terminal, or no longer has it.
    Shell {
        /// Service name.
        service: String,
        /// Exit status of the command in whose place it is; none when it has ended.
        status: Option<i32>,
    },
    /// Time has passed.
    Tick,
    /// An image is ready.
    Built {
        /// Service name.
        service: String,
        /// Image id.
        id: String,
    },
}

/// Provides the images of the wanted services of `plan` and returns the image id of each.
///
/// # Errors
/// The first image that cannot be had, after the builds that were under way have ended.
pub fn provide(
    paths: &Paths,
    plan: &Plan,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<BTreeMap<String, String>, RemoteError> {
    let store = paths.store()?;
    let wanted_services = plan.with_image_sources(&options.services);
    let mut ids = BTreeMap::new();
    let mut builds = Vec::new();
    // What a build of this plan makes is no registry's.
    let mut built = Vec::new();
    for service in plan.services.iter().filter(|service| wanted_services.contains(&service.name)) {
        match &service.source {
            Source::Build(build) => {
                let present = existing(&store, build)?;
                let image = match options.build {
                    true => None,
                    false => {
                        let wanted = wanted(&build.image, service)?;
                        pull::before_build(paths, &store, &wanted, present, service.pull_policy, progress)?
                    }
                };
                match image {
                    None if options.no_build => {
                        let text = format!(
                            "the image of service `{}` is missing, and `--no-build` forbids to build it",
                            service.name
                        );
                        return Err(RemoteError::message(text)
                            .or_hint(format!("`inception-run build {}` builds it", service.name)));
                    }
                    Some(image) => drop(ids.insert(service.name.clone(), image.id.to_string())),
                    None => builds.push((service.name.as_str(), &**build)),
                }
            }
            Source::Image(name) => match plan.builder_of(name) {
                Some(builder) => built.push((service.name.as_str(), builder)),
                None => {
                    let wanted = wanted(name, service)?;
                    let image = pull::named(paths, &store, &wanted, service.pull_policy, progress)
                        .context(|| format!("provide the image of service `{}`", service.name))?;
                    ids.insert(service.name.clone(), image.id.to_string());
                }
            },
            Source::Rootfs(path) => {
                let image = rootfs(paths, &store, path)
                    .context(|| format!("provide the root file system of service `{}`", service.name))?;
                ids.insert(service.name.clone(), image.id.to_string());
            }
        }
    }
    if !builds.is_empty() {
        ids.extend(build(paths, &plan.name, &builds, options, progress)?);
    }
    for (service, builder) in built {
        if let Some(id) = ids.get(builder).cloned() {
            ids.insert(service.to_owned(), id);
        }
    }
    Ok(ids)
}

/// The image id of a service, if its image is in the store.
///
/// # Errors
/// When the store cannot be read.
pub fn present(paths: &Paths, service: &Service) -> Result<Option<String>, RemoteError> {
    let store = paths.store()?;
    let image = match &service.source {
        Source::Build(build) => existing(&store, build)?,
        Source::Image(name) => store.image(&reference(name)?)?,
        Source::Rootfs(path) => store.image(&rootfs_reference(path)?)?,
    };
    Ok(image.map(|image| image.id.to_string()))
}

/// The name of the image that is made of a root file system in the state in which it is now.
///
/// # Errors
/// When it cannot be looked at.
pub fn of_rootfs(path: &Path) -> Result<String, RemoteError> {
    Ok(rootfs_reference(path)?.to_string())
}

/// Deletes what a stack without a supervisor left, and its volumes if asked to; returns the names of those.
///
/// # Errors
/// When a supervisor is there after all, or something cannot be deleted.
pub fn clean(paths: &Paths, stack: &str, volumes: bool) -> Result<Vec<String>, RemoteError> {
    let Some(_lock) = crate::client::lock(paths, stack)? else {
        return Err(RemoteError::message(format!(
            "stack `{stack}` was started by another command meanwhile"
        )));
    };
    let mut doomed = vec![format!("c/{stack}")];
    if volumes {
        doomed.push(spec::volumes_directory(stack));
    }
    doomed.retain(|path| paths.data.join(path).exists());
    let mut removed = Vec::new();
    if !doomed.is_empty() {
        removed = storage::run(paths, |_| {
            let names = if volumes { own_volumes(stack)? } else { Vec::new() };
            for path in &doomed {
                image::remove_tree(Path::new(path))?;
            }
            Ok(names)
        })?;
    }
    crate::lock::remove_runtime(&paths.stack(stack))
        .context(|| "remove the stack's runtime directory".into())?;
    Ok(removed)
}

/// Names of a stack's own volumes; the working directory is the data directory.
fn own_volumes(stack: &str) -> Result<Vec<String>, RemoteError> {
    let volumes = paths::entries(Path::new(&spec::volumes_directory(stack)))?;
    let volumes = volumes.iter().filter(|path| path.is_dir()).filter_map(|path| path.file_name());
    Ok(volumes.map(|name| name.to_string_lossy().into_owned()).collect())
}

fn reference(name: &str) -> Result<Reference, RemoteError> {
    Ok(Reference::from_str(name)?)
}

/// A service's image, as its registry is asked for it.
fn wanted<'a>(name: &str, service: &'a Service) -> Result<Wanted<'a>, RemoteError> {
    Ok(Wanted { reference: reference(name)?, platform: service.platform.as_deref() })
}

/// The image of an earlier build: the forced base's own where there is one, else the one used last.
fn existing(store: &Store, build: &Build) -> Result<Option<Image>, RemoteError> {
    let name = match &build.dockerfiles[..] {
        [only] if !only.base.is_empty() => based_name(build, &only.base)?,
        _ => reference(&build.image)?,
    };
    Ok(store.image(&name)?)
}

/// `stack-service:BASE`, beside `stack-service:latest`.
fn based_name(build: &Build, base: &str) -> Result<Reference, RemoteError> {
    let plain = reference(&build.image)?;
    reference(&format!("{}:{base}", plain.name()))
}

/// A tarball or directory is imported once for each state it is seen in.
fn rootfs(paths: &Paths, store: &Store, path: &Path) -> Result<Image, RemoteError> {
    let name = rootfs_reference(path)?;
    if let Some(image) = store.image(&name)? {
        return Ok(image);
    }
    import(paths, &name, path, None)
}

/// Makes an image of a root file system, an archive or a directory; `sha256` is what the archive must have.
fn import(
    paths: &Paths,
    reference: &Reference,
    path: &Path,
    sha256: Option<String>,
) -> Result<Image, RemoteError> {
    let handle = Handle::open(path)?;
    let options = ImportOptions {
        source: path.display().to_string(),
        sha256,
        config: image::default_config(),
        ..ImportOptions::default()
    };
    let is_directory = path.is_dir();
    let id = storage::run(paths, |store| {
        let image = if is_directory {
            store.import_directory(reference, handle.path(), &options)?
        } else {
            let file = std::fs::File::open(handle.path()).context(|| format!("open {}", path.display()))?;
            store.import_tarball(reference, file, &options)?
        };
        Ok(image.id.to_string())
    })?;
    let image = paths.store()?.image_by_id(&Digest::from_str(&id)?)?;
    image.ok_or_else(|| RemoteError::message("the imported image is gone"))
}

/// A name made from the path and from when and how it was changed last.
fn rootfs_reference(path: &Path) -> Result<Reference, RemoteError> {
    use std::fmt::Write;
    use std::os::unix::fs::MetadataExt;
    let mut facts = String::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let meta = std::fs::symlink_metadata(&path).context(|| format!("look at {}", path.display()))?;
        writeln!(
            facts,
            "{} {} {} {} {}.{}",
            path.display(),
            meta.ino(),
            meta.mode(),
            meta.size(),
            meta.ctime(),
            meta.ctime_nsec()
        )
        .map_err(io::Error::other)?;
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).context(|| format!("read {}", path.display()))?;
            let mut entries = entries.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<PathBuf>>>()?;
            entries.sort();
            open.extend(entries);
        }
    }
    reference(&format!("rootfs-{}", &Digest::of(facts.as_bytes()).hex()[..24]))
}
