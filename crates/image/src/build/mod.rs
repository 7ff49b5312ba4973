//! The Dockerfile builder: one layer for each instruction that changes a file, reused while nothing that
//! it depends on has changed.

mod add_git;
mod add_url;
mod cache;
mod cache_dir;
mod changes;
mod chmod;
mod copy;
mod epoch;
mod files;
mod item;
mod mount;
mod parents;
mod reach;
mod recall;
mod run;
mod schedule;
mod source;
mod stage;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use crate::build::add_git::{GitSource, Repository, is_repository};
pub use crate::build::cache_dir::CacheMount;
pub use crate::build::files::unpack_files;
use crate::build::recall::Allowance;
pub use crate::build::recall::recall;
use crate::build::run::Underway;
use crate::build::stage::Built;
pub use crate::build::step::{BoxError, RunMount, RunSource, RunStep, Runner, Running, Secret};
use crate::config::{Image, ImageConfig};
use crate::digest::{Digest, LayerId};
pub use crate::dockerfile::Network;
use crate::dockerfile::{Dockerfile, Instruction, Kind, Origin, RULES_ARGUMENT};
use crate::error::{Error, Result};
use crate::pattern::Ignore;
use crate::reference::Reference;
use crate::store::Store;
use crate::view::View;

/// Largest `.dockerignore` that is read.
const IGNORE_BYTES: u64 = 1 << 20;
/// Longest part of an instruction that an error repeats.
const SHOWN_CHARS: usize = 120;

/// What to build.
#[derive(Clone, Debug, Default)]
pub struct BuildRequest {
    /// Directory that `COPY` and `ADD` read from, and nothing outside of it.
    pub context: PathBuf,
    /// The Dockerfile, inside the context or elsewhere.
    pub dockerfile: PathBuf,
    /// Its text, where it is no file.
    pub dockerfile_text: Option<String>,
    /// The Dockerfile's name in messages; its path where absent.
    pub dockerfile_name: Option<String>,
    /// The new image's names.
    pub tags: Vec<Reference>,
    /// Values of `ARG`s.
    pub args: BTreeMap<String, String>,
    /// The stage to build; the last where absent.
    pub target: Option<String>,
    /// Layers made before this time are made anew.
    pub fresh: Option<SystemTime>,
    /// No date in the image is later than this, seconds since 1970 (`SOURCE_DATE_EPOCH`).
    pub epoch: Option<u64>,
    /// Labels that the image gets beside those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// What names in the Dockerfile mean, before its stages and images.
    pub contexts: BTreeMap<String, NamedContext>,
    /// What `RUN --mount=type=secret` can ask for, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// The agents that `RUN --mount=type=ssh` can ask for, by id: the runner has their sockets.
    pub agents: BTreeSet<String>,
    /// `ADD` may fetch from servers that only the host itself reaches: on its loopback, and at link-local addresses.
    pub reaches_host: bool,
    /// Which image a name in the Dockerfile means, where that is not the store's image of this name.
    pub bases: BTreeMap<Reference, Digest>,
}

impl BuildRequest {
    /// An image from outside.
    fn image(&self, store: &Store, reference: &Reference) -> Result<Image> {
        let found = match self.bases.get(reference) {
            Some(id) => store.image_by_id(id)?,
            None => store.image(reference)?,
        };
        found.ok_or_else(|| Error::MissingImage { reference: reference.clone() })
    }

    /// The image that files come from; none where that is a directory, a stage, or nothing.
    fn image_of(&self, store: &Store, origin: &Origin) -> Result<Option<Image>> {
        match origin {
            Origin::Image(reference) => self.image(store, reference).map(Some),
            Origin::Named(name) => self.named_image(store, name),
            Origin::Scratch | Origin::Stage(_) => Ok(None),
        }
    }

    /// The image that a name means; none where it means a directory.
    fn named_image(&self, store: &Store, name: &str) -> Result<Option<Image>> {
        match self.contexts.get(name) {
            Some(NamedContext::Image(reference)) => self.image(store, reference).map(Some),
            Some(NamedContext::Id(id)) => {
                let found = store.image_by_id(id)?;
                found.map(Some).ok_or_else(|| Error::MissingId { id: id.clone() })
            }
            Some(NamedContext::Directory(_)) | None => Ok(None),
        }
    }

    /// What an image from outside left for the stages that begin with it.
    fn triggers(&self, store: &Store, origin: &Origin) -> Result<Vec<String>> {
        match self.image_of(store, origin) {
            Ok(image) => Ok(image.map(|image| image.config.config.on_build).unwrap_or_default()),
            // The stage itself says so, with its place.
            Err(Error::MissingImage { .. } | Error::MissingId { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// What a name in a Dockerfile means.
#[derive(Clone, Debug)]
pub enum NamedContext {
    /// A directory; like the build context it can have a `.dockerignore`.
    Directory(PathBuf),
    /// An image of the store, by its name.
    Image(Reference),
    /// An image of the store, by its id.
    Id(Digest),
}

/// How a build goes on. Stages without need of each other are built at the same time, so events of several steps come
/// in any order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum BuildEvent {
    /// An instruction begins that can change files.
    StepStarted {
        /// Which step, from 0; each has a number of its own in the build.
        step: usize,
        /// The stage's name, or its number; none where there is one stage.
        stage: Option<String>,
        /// From 1.
        index: usize,
        /// Steps of this stage.
        total: usize,
        /// The instruction as written.
        text: String,
    },
    /// Its layer was made before.
    StepCached {
        /// Which step.
        step: usize,
    },
    /// It has been carried out.
    StepDone {
        /// Which step.
        step: usize,
        /// How long that took.
        seconds: f64,
    },
    /// A line that a `RUN` instruction's command wrote, without its end.
    Output {
        /// Which step.
        step: usize,
        /// The line.
        line: String,
    },
    /// Something that the user should know.
    Warning(String),
}

/// How an instruction was carried out.
pub(crate) enum Outcome {
    Done,
    Cached,
    /// Not yet: somebody else makes its layer, or has a cache to himself.
    Awaited,
    /// Not yet: there are enough commands already.
    Queued,
    /// Its command runs.
    Running(Box<Underway>),
}

/// Builds an image. What is unchanged since an earlier build is not done again; whatever happens, the store
/// holds finished layers only.
pub fn build(
    store: &Store,
    request: &BuildRequest,
    runner: &mut dyn Runner,
    progress: &mut dyn FnMut(BuildEvent),
) -> Result<Image> {
    let image = store.put_image(&configuration(store, request, runner, None, progress)?)?;
    for tag in &request.tags {
        store.tag(tag, &image.id)?;
    }
    Ok(image)
}

/// Carries out all instructions that the target needs; with an allowance, none whose layer is still to be made. The
/// configuration of the image that they make is the result.
fn configuration(
    store: &Store,
    request: &BuildRequest,
    runner: &mut dyn Runner,
    allowance: Option<Allowance>,
    progress: &mut dyn FnMut(BuildEvent),
) -> Result<ImageConfig> {
    let name = match &request.dockerfile_name {
        Some(name) => name.clone(),
        None => request.dockerfile.display().to_string(),
    };
    let text = match &request.dockerfile_text {
        Some(text) => text.clone(),
        None => read(&request.dockerfile, &name)?,
    };
    let mut dockerfile = Dockerfile::parse(&name, &text)?;
    dockerfile.named.extend(request.contexts.keys().cloned());
    dockerfile.apply_rules_of(&request.args)?;
    let globals = dockerfile.global_scope(&request.args)?;
    let target = dockerfile.target(request.target.as_deref())?;
    let needed = dockerfile.needed(target, &globals, &|origin| request.triggers(store, origin))?;
    let needed: Vec<usize> = needed.into_keys().collect();
    dockerfile.tolerate_all()?;
    for warning in dockerfile.wanted(&dockerfile.warnings) {
        progress(BuildEvent::Warning(format!("{name}:{}: {warning}", warning.line)));
    }
    warn_of_unused(&dockerfile, &needed, request, progress);
    let mut builder = Builder {
        store,
        request,
        runner,
        allowance,
        progress,
        dockerfile: &dockerfile,
        text: &text,
        globals,
        built: BTreeMap::new(),
        contexts: BTreeMap::new(),
        needed,
        steps: 0,
        running: 0,
    };
    builder.stages()?;
    let mut built = builder.built.remove(&target).expect("the target is among the stages it needs");
    built.config.labels.extend(request.labels.clone());
    if let Some(epoch) = request.epoch {
        epoch::clamp_dates(&mut built, epoch);
    }
    Ok(built.into_config())
}

/// The text of a Dockerfile.
fn read(path: &Path, name: &str) -> Result<String> {
    let read = || {
        // Not a pipe, on which reading could wait for ever.
        if !fs::metadata(path)?.is_file() {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        fs::read(path)
    };
    let text = read().map_err(|cause| Error::io("read", name, cause))?;
    String::from_utf8(text).map_err(|bad| Error::Dockerfile {
        file: name.to_owned(),
        line: bad.as_bytes()[..bad.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count()
            + 1,
        message: "this is not UTF-8 text".to_owned(),
        hint: None,
    })
}

/// Names the values that no `ARG` asks for: mostly a slip of the pen.
fn warn_of_unused(
    dockerfile: &Dockerfile,
    needed: &[usize],
    request: &BuildRequest,
    progress: &mut dyn FnMut(BuildEvent),
) {
    let stages = needed.iter().flat_map(|stage| &dockerfile.stages[*stage].instructions);
    let declared: Vec<&str> = dockerfile
        .global_args
        .iter()
        .chain(stages)
        .filter_map(|instruction| match &instruction.kind {
            Kind::Arg(list) => Some(list.iter().map(|(name, _)| name.as_str())),
            _ => None,
        })
        .flatten()
        .collect();
    for name in request.args.keys() {
        let known = stage::is_proxy_arg(name) || [epoch::NAME, RULES_ARGUMENT].contains(&name.as_str());
        if !known && !declared.contains(&name.as_str()) {
            let message = format!("{}: no ARG asks for the build argument `{name}`", dockerfile.name);
            progress(BuildEvent::Warning(message));
        }
    }
}

/// The beginning of an instruction, for errors.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Where files come from.
pub(crate) enum Files {
    /// A directory of the host's: the build context, or the one of this name.
    Context(Option<String>),
    /// A stage or an image.
    Layers(Vec<LayerId>),
}

/// A build context, opened when the first instruction needs it.
pub(crate) struct Context {
    view: View,
    ignore: Ignore,
}

struct Builder<'a> {
    store: &'a Store,
    request: &'a BuildRequest,
    runner: &'a mut dyn Runner,
    /// What may be read where nothing may be made.
    allowance: Option<Allowance>,
    progress: &'a mut dyn FnMut(BuildEvent),
    dockerfile: &'a Dockerfile,
    /// Its text.
    text: &'a str,
    globals: BTreeMap<String, String>,
    built: BTreeMap<usize, Built>,
    /// Those that were needed so far; the build context is the one without a name.
    contexts: BTreeMap<Option<String>, Context>,
    /// The stages that are built.
    needed: Vec<usize>,
    /// How many steps have begun.
    steps: usize,
    /// How many commands run now.
    running: usize,
}

impl<'a> Builder<'a> {
    /// Goes on to something that is more than a look at what is there, if that is allowed.
    pub(crate) fn begin_to_make(&self) -> Result<()> {
        self.allowance.as_ref().map_or(Ok(()), |_| Err(Error::ToBeMade))
    }

    /// Where the files come from that `--from` or `from=` names; without it, from the build context.
    pub(crate) fn files(&self, from: Option<&str>, stage: usize, line: usize) -> Result<Files> {
        let Some(from) = from else { return Ok(Files::Context(None)) };
        Ok(match self.dockerfile.copy_origin(from, stage, line)? {
            Origin::Stage(earlier) => {
                // A trigger of the base may name a stage that nothing else in the file needs.
                let message = || format!("--from={from}: this stage is not built before this one");
                let built = self.built.get(&earlier).ok_or_else(|| self.dockerfile.error(line, message()))?;
                Files::Layers(built.layers.clone())
            }
            Origin::Image(reference) => Files::Layers(self.request.image(self.store, &reference)?.layers),
            Origin::Scratch => Files::Layers(Vec::new()),
            Origin::Named(name) => match self.request.named_image(self.store, &name)? {
                Some(image) => Files::Layers(image.layers),
                None => Files::Context(Some(name)),
            },
        })
    }

    /// Opens a context with its `.dockerignore`: of the build context, the Dockerfile's own comes first.
    pub(crate) fn open_context(&mut self, name: &Option<String>) -> Result<&Context> {
        if !self.contexts.contains_key(name) {
            let path = match name.as_ref().and_then(|name| self.request.contexts.get(name)) {
                Some(NamedContext::Directory(path)) => path,
                _ => &self.request.context,
            };
            let view = View::open(std::slice::from_ref(path))
                .map_err(|(path, cause)| Error::io("open the build context", path, cause))?;
            let mut own = self.request.dockerfile.clone().into_os_string();
            own.push(".dockerignore");
            let own = PathBuf::from(own);
            let (file, text) = match name.is_none() && own.is_file() {
                true => (own.clone(), Some(fs::read(&own).map_err(|cause| Error::io("read", &own, cause))?)),
                // Through the view: a link of the context leads nowhere else.
                false => {
                    let text = view.read_file(Path::new(".dockerignore"), IGNORE_BYTES);
                    let file = PathBuf::from(".dockerignore");
                    (
                        file.clone(),
                        text.map_err(|cause| Error::io("read from the build context", file, cause))?,
                    )
                }
            };
            let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
            let ignore = Ignore::parse(&text).map_err(|(line, message)| Error::Dockerfile {
                file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                line,
                message,
                hint: None,
            })?;
            self.contexts.insert(name.clone(), Context { view, ignore });
        }
        Ok(&self.contexts[name])
    }
}

impl Built {
    fn into_config(self) -> ImageConfig {
        let mut config = ImageConfig {
            created: self.created,
            author: self.author,
            config: self.config,
            history: self.history,
            ..ImageConfig::default()
        };
        config.rootfs.diff_ids = self.layers;
        config
    }
}

/// A step of a stage: its text and line are needed for errors and for the history.
pub(crate) type Step<'a> = &'a Instruction;
