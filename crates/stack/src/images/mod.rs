//! Makes sure that every service's image is in the store: found, imported, or built.

mod base;
mod git;
mod network;
mod pull;
mod run;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use image::{BuildRequest, CommitOptions, Digest, Image, ImportOptions, Reference, Store};
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use crate::host::HostFacts;
use crate::netd::Starter;
use crate::paths::Paths;
use crate::plan::{BaseDockerfile, Build, Plan, Service, Source};
use crate::registry::Transfer;
use crate::remote::{Context, RemoteError};
use crate::storage::{self, Handle, Word, Worker};
use network::{Networks, WayOut};
use run::{NetworkRules, SandboxRunner};

/// What may be done for the images of a plan.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Services to look after; all when empty.
    pub services: Vec<String>,
    /// Build even where an image is there (`--build`, `build`).
    pub build: bool,
    /// Use no cached layer.
    pub no_cache: bool,
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
        /// From 1.
        index: usize,
        /// How many there are.
        total: usize,
        /// The instruction.
        text: String,
    },
    /// An instruction was found in the cache.
    Cached {
        /// Service name.
        service: String,
        /// From 1.
        index: usize,
    },
    /// An instruction was carried out.
    Ran {
        /// Service name.
        service: String,
        /// From 1.
        index: usize,
        /// How long it took.
        seconds: f64,
    },
    /// A line of a command's output.
    Output {
        /// Service name.
        service: String,
        /// The line.
        line: String,
    },
    /// Something the user should know.
    Warning(String),
    /// An image is ready.
    Built {
        /// Service name.
        service: String,
        /// Image id.
        id: String,
    },
}

/// Provides the images of `plan` and returns the image id of each service.
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
    let mut ids = BTreeMap::new();
    let mut builds = Vec::new();
    for service in plan.services.iter() {
        let wanted = options.services.is_empty() || options.services.contains(&service.name);
        match &service.source {
            Source::Build(build) => {
                let present = existing(&store, build)?;
                let policy = service.pull_policy.filter(|_| wanted);
                let image = match options.build && wanted {
                    true => None,
                    false => {
                        let name = reference(&build.image)?;
                        pull::before_build(paths, &store, &name, present, policy, progress)?
                    }
                };
                match image {
                    Some(image) => drop(ids.insert(service.name.clone(), image.id.to_string())),
                    None => builds.push((service, build)),
                }
            }
            Source::Image(name) => {
                let policy = service.pull_policy.filter(|_| wanted);
                let image = pull::named(paths, &store, &reference(name)?, policy, progress)
                    .context(|| format!("provide the image of service `{}`", service.name))?;
                ids.insert(service.name.clone(), image.id.to_string());
            }
            Source::Rootfs(path) => {
                let image = rootfs(paths, &store, path)
                    .context(|| format!("provide the root file system of service `{}`", service.name))?;
                ids.insert(service.name.clone(), image.id.to_string());
            }
        }
    }
    if !builds.is_empty() {
        ids.extend(build_all(paths, &store, &plan.name, &builds, options, progress)?);
    }
    Ok(ids)
}

/// The image ids of a plan whose images are all there; `None` when one is missing.
///
/// # Errors
/// When the store cannot be read.
pub fn present(paths: &Paths, plan: &Plan) -> Result<Option<BTreeMap<String, String>>, RemoteError> {
    let store = paths.store()?;
    let mut ids = BTreeMap::new();
    for service in &plan.services {
        let image = match &service.source {
            Source::Build(build) => existing(&store, build)?,
            Source::Image(name) => store.image(&reference(name)?)?,
            Source::Rootfs(path) => store.image(&rootfs_reference(path)?)?,
        };
        let Some(image) = image else { return Ok(None) };
        ids.insert(service.name.clone(), image.id.to_string());
    }
    Ok(Some(ids))
}

/// Makes an image of what a service's container has changed so far.
///
/// # Errors
/// When the image id or the name is none, or the copy fails.
pub fn commit(
    paths: &Paths,
    stack: &str,
    service: &Service,
    id: &str,
    name: &str,
) -> Result<String, RemoteError> {
    let name = reference(name)?;
    let id = Digest::from_str(id)?;
    let upper = format!("{}/u", crate::spec::container_directory(stack, &service.name));
    storage::run(paths, |store| {
        let base =
            store.image_by_id(&id)?.ok_or_else(|| RemoteError::message("the service's image is gone"))?;
        let comment = format!("commit of service `{}`", service.name);
        let options = CommitOptions { reference: Some(name), comment, config: None };
        Ok(store.commit(&base, Path::new(&upper), &options)?.id.to_string())
    })
}

/// Deletes what a stack without a supervisor left, and its volumes if asked to.
///
/// # Errors
/// When a supervisor is there after all, or something cannot be deleted.
pub fn clean(paths: &Paths, stack: &str, volumes: bool) -> Result<(), RemoteError> {
    let Some(_lock) = crate::client::lock(paths, stack)? else {
        return Err(RemoteError::message(format!(
            "stack `{stack}` was started by another command meanwhile"
        )));
    };
    let mut doomed = vec![format!("c/{stack}")];
    if volumes {
        doomed.push(format!("v/{stack}"));
    }
    doomed.retain(|path| paths.data.join(path).exists());
    if !doomed.is_empty() {
        storage::run(paths, |_| {
            for path in &doomed {
                image::remove_tree(Path::new(path))?;
            }
            Ok(())
        })?;
    }
    crate::lock::remove_runtime(&paths.stack(stack)).context(|| "remove the stack's runtime directory".into())
}

fn reference(name: &str) -> Result<Reference, RemoteError> {
    Ok(Reference::from_str(name)?)
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
    let handle = Handle::open(path)?;
    let options = ImportOptions {
        source: path.display().to_string(),
        config: image::default_config(),
        ..ImportOptions::default()
    };
    let directory = path.is_dir();
    let id = storage::run(paths, |store| {
        let image = if directory {
            store.import_directory(&name, handle.path(), &options)?
        } else {
            let file = std::fs::File::open(handle.path()).context(|| format!("open {}", path.display()))?;
            store.import_tarball(&name, file, &options)?
        };
        Ok(image.id.to_string())
    })?;
    store
        .image_by_id(&Digest::from_str(&id)?)?
        .ok_or_else(|| RemoteError::message("the imported image is gone"))
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

/// An image that is being built.
struct Building<'a> {
    service: &'a Service,
    worker: Worker,
    way_out: WayOut,
}

fn build_all(
    paths: &Paths,
    store: &Store,
    stack: &str,
    builds: &[(&Service, &Build)],
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<BTreeMap<String, String>, RemoteError> {
    let choice = base::choose(paths, store, builds, progress)?;
    let host = HostFacts::gather().map_err(|error| RemoteError::new(&error, None, 1))?;
    let network = network::plan(&host, network::has_ipv6())?;
    let starter = Starter { stack: stack.to_owned(), lock: None };
    let mut running: Vec<Building<'_>> = Vec::new();
    // The handles outlive the workers, which inherit their descriptors.
    let mut handles = Vec::new();
    for (service, build) in builds {
        let dockerfile = choice.of(build)?;
        let job = Job::new(build, dockerfile, options, &mut handles)
            .context(|| format!("build the image of service `{}`", service.name))?;
        let name = service.name.clone();
        let (way_out, command) = WayOut::pair()?;
        let worker = storage::start(paths, |store, tell: &mut dyn FnMut(Progress)| {
            job.carry_out(store, &name, Networks::new(&network, &command), tell)
        })?;
        running.push(Building { service, worker, way_out });
    }
    let mut ids = BTreeMap::new();
    let mut failed = None;
    // What holds for all builds is said once.
    let mut warned = BTreeSet::new();
    while !running.is_empty() {
        let ready = ready(&running)?;
        for index in ready.asking {
            running[index].way_out.answer(&starter, &network).context(|| "answer a storage worker".into())?;
        }
        for index in ready.telling.into_iter().rev() {
            let Building { service, worker, .. } = &running[index];
            let last = match worker.next::<Progress, String>() {
                Ok(Word::Event(Progress::Warning(text))) if !warned.insert(text.clone()) => continue,
                Ok(Word::Event(event)) => {
                    progress(event);
                    continue;
                }
                Ok(Word::Last(last)) => last,
                Err(error) => Err(error),
            };
            match last {
                Ok(id) => {
                    progress(Progress::Built { service: service.name.clone(), id: id.clone() });
                    ids.insert(service.name.clone(), id);
                }
                Err(error) => {
                    failed.get_or_insert(choice.failed(&service.name, error));
                }
            }
            running.swap_remove(index).way_out.close().context(|| "end the build's netd".into())?;
        }
    }
    failed.map_or(Ok(ids), Err)
}

/// Which workers have something to say, by their index.
struct Ready {
    telling: Vec<usize>,
    /// These ask for a way out.
    asking: Vec<usize>,
}

fn ready(running: &[Building<'_>]) -> io::Result<Ready> {
    let workers = running.iter().map(|building| PollFd::new(&building.worker, PollFlags::IN));
    let ways_out = running.iter().map(|building| PollFd::new(&building.way_out, PollFlags::IN));
    let mut polled: Vec<PollFd<'_>> = workers.chain(ways_out).collect();
    match rustix::event::poll(&mut polled, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let (workers, ways_out) = polled.split_at(running.len());
    let with = |polled: &[PollFd<'_>], flag: Option<PollFlags>| -> Vec<usize> {
        let fired = |at: &usize| {
            let events = polled[*at].revents();
            flag.map_or(!events.is_empty(), |flag| events.contains(flag))
        };
        (0..polled.len()).filter(fired).collect()
    };
    // The end of a worker is told by its other channel.
    Ok(Ready { telling: with(workers, None), asking: with(ways_out, Some(PollFlags::IN)) })
}

/// One image to build, with everything resolved that a worker cannot.
struct Job {
    request: BuildRequest,
    rules: NetworkRules,
    /// A second name: that of the base it was built on.
    also: Option<Reference>,
}

impl Job {
    fn new(
        build: &Build,
        dockerfile: &BaseDockerfile,
        options: &Options,
        handles: &mut Vec<Handle>,
    ) -> Result<Self, RemoteError> {
        let context = Handle::open(&build.context)?;
        let context_path = context.path().to_owned();
        handles.push(context);
        let inside = match dockerfile.path.strip_prefix(&build.context) {
            Ok(relative) => context_path.join(relative),
            Err(_) => {
                let handle = Handle::open(&dockerfile.path)?;
                let path = handle.path().to_owned();
                handles.push(handle);
                path
            }
        };
        let also = if dockerfile.base.is_empty() { None } else { Some(based_name(build, &dockerfile.base)?) };
        let request = BuildRequest {
            context: context_path,
            dockerfile: inside,
            dockerfile_name: Some(dockerfile.path.display().to_string()),
            tag: Some(reference(&build.image)?),
            args: build.args.clone(),
            target: build.target.clone(),
            no_cache: options.no_cache,
            bases: BTreeMap::new(),
        };
        let rules = NetworkRules { usual: build.network, allows_host: build.allows_host_network };
        Ok(Self { request, rules, also })
    }

    fn carry_out(
        &self,
        store: &Store,
        service: &str,
        networks: Networks<'_>,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<String, RemoteError> {
        // The builder and its runner both have things to tell, never at the same time.
        let tell = RefCell::new(tell);
        let warn = |text| tell.borrow_mut()(Progress::Warning(text));
        let mut runner = SandboxRunner::new(self.rules, networks, &warn)?;
        let image = image::build(store, &self.request, &mut runner, &mut |event| {
            if let Some(event) = translate(service, event) {
                tell.borrow_mut()(event);
            }
        })?;
        if let Some(name) = &self.also {
            store.tag(name, &image.id)?;
        }
        Ok(image.id.to_string())
    }
}

fn translate(service: &str, event: image::BuildEvent) -> Option<Progress> {
    let service = service.to_owned();
    Some(match event {
        image::BuildEvent::StepStarted { index, total, text } => {
            Progress::Step { service, index, total, text }
        }
        image::BuildEvent::StepCached { index } => Progress::Cached { service, index },
        image::BuildEvent::StepDone { index, seconds } => Progress::Ran { service, index, seconds },
        image::BuildEvent::Output(line) => Progress::Output { service, line },
        image::BuildEvent::Warning(text) => Progress::Warning(format!("{service}: {text}")),
        _ => return None,
    })
}
