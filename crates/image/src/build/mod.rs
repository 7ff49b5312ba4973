//! The Dockerfile builder: one layer for each instruction that changes a file, reused while nothing that
//! it depends on has changed.

mod add_git;
mod add_url;
mod cache;
mod chmod;
mod copy;
mod item;
mod parents;
mod source;
mod stage;

use std::collections::BTreeMap;
use std::fs;
use std::mem;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use crate::build::add_git::GitSource;
pub(crate) use crate::build::stage::clean;
use crate::build::stage::{Built, StageState};
use crate::config::{Image, ImageConfig};
use crate::digest::Digest;
use crate::dockerfile::{Dockerfile, Instruction, Kind, Origin};
use crate::error::{Error, Result};
use crate::pattern::Ignore;
use crate::reference::Reference;
use crate::store::Store;
use crate::view::View;

/// Largest `.dockerignore` that is read.
const IGNORE_BYTES: u64 = 1 << 20;
/// Longest part of an instruction that an error repeats.
const SHOWN_CHARS: usize = 120;

/// Runs `RUN` instructions; this crate starts no process itself.
pub trait Runner {
    /// Runs a command in a sandbox on an overlay of the step's directories, mounted with `userxattr`, and
    /// returns its exit status (128 + number for a signal). What it writes is passed to `output` as it comes.
    fn run(
        &mut self,
        step: &RunStep,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<i32, Box<dyn std::error::Error + Send + Sync>>;

    /// Finds the commit that a repository's branch or tag means now.
    ///
    /// # Errors
    /// When the repository cannot be asked, or has no such thing.
    fn git_commit(
        &mut self,
        _source: &GitSource,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Err("git repositories cannot be fetched here".into())
    }

    /// Puts the files of a commit into an empty directory. Returns the commit's time, seconds since 1970.
    ///
    /// # Errors
    /// When the commit cannot be fetched.
    fn git_fetch(
        &mut self,
        _source: &GitSource,
        _commit: &str,
        _directory: &Path,
    ) -> Result<i64, Box<dyn std::error::Error + Send + Sync>> {
        Err("git repositories cannot be fetched here".into())
    }
}

/// What a `RUN` instruction runs, and on which overlay.
#[derive(Clone, Debug, PartialEq)]
pub struct RunStep {
    /// Layers, lowest first, relative to the data directory; at least one.
    pub layers: Vec<String>,
    /// The overlay's upper directory, relative to the data directory.
    pub upper: String,
    /// The overlay's work directory, relative to the data directory.
    pub work: String,
    /// The command line.
    pub argv: Vec<String>,
    /// The whole environment but for `HOME`; `PATH` is always set.
    pub env: Vec<(String, String)>,
    /// Absolute path inside the image.
    pub cwd: String,
    /// `USER[:GROUP]`; empty is root.
    pub user: String,
    /// Which network it asks for.
    pub network: Network,
}

/// The network of a `RUN` instruction, as its flag `--network` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// What builds have when nothing is said.
    #[default]
    Default,
    /// Its own loopback, and nothing else.
    None,
    /// The host's.
    Host,
}

/// What to build.
#[derive(Clone, Debug, Default)]
pub struct BuildRequest {
    /// Directory that `COPY` and `ADD` read from, and nothing outside of it.
    pub context: PathBuf,
    /// The Dockerfile, inside the context or elsewhere.
    pub dockerfile: PathBuf,
    /// The Dockerfile's name in messages; its path where absent.
    pub dockerfile_name: Option<String>,
    /// The new image's name.
    pub tag: Option<Reference>,
    /// Values of `ARG`s.
    pub args: BTreeMap<String, String>,
    /// The stage to build; the last where absent.
    pub target: Option<String>,
    /// Make every layer anew.
    pub no_cache: bool,
    /// Which image a name in the Dockerfile means, where that is not the store's image of this name.
    pub bases: BTreeMap<Reference, Digest>,
}

/// How a build goes on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum BuildEvent {
    /// An instruction begins.
    StepStarted {
        /// From 1.
        index: usize,
        /// Instructions in all stages that are built.
        total: usize,
        /// The instruction as written.
        text: String,
    },
    /// Its layer was made before.
    StepCached {
        /// From 1.
        index: usize,
    },
    /// It has been carried out.
    StepDone {
        /// From 1.
        index: usize,
        /// How long that took.
        seconds: f64,
    },
    /// A line that a `RUN` instruction's command wrote, without its end.
    Output(String),
    /// Something that the user should know.
    Warning(String),
}

/// How an instruction was carried out.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Done,
    Cached,
}

/// Builds an image. What is unchanged since an earlier build is not done again; whatever happens, the store
/// holds finished layers only.
pub fn build(
    store: &Store,
    request: &BuildRequest,
    runner: &mut dyn Runner,
    progress: &mut dyn FnMut(BuildEvent),
) -> Result<Image> {
    let name = match &request.dockerfile_name {
        Some(name) => name.clone(),
        None => request.dockerfile.display().to_string(),
    };
    let read = || {
        // Not a pipe, on which reading could wait for ever.
        if !fs::metadata(&request.dockerfile)?.is_file() {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        fs::read(&request.dockerfile)
    };
    let text = read().map_err(|cause| Error::io("read", &name, cause))?;
    let text = String::from_utf8(text).map_err(|bad| Error::Dockerfile {
        file: name.clone(),
        line: bad.as_bytes()[..bad.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count()
            + 1,
        message: "this is not UTF-8 text".to_owned(),
        hint: None,
    })?;
    let dockerfile = Dockerfile::parse(&name, &text)?;
    let globals = dockerfile.global_scope(&request.args)?;
    let target = dockerfile.target(request.target.as_deref())?;
    let needed = dockerfile.needed(target, &globals)?;
    let total = needed.iter().map(|stage| 1 + dockerfile.stages[*stage].instructions.len()).sum();
    for warning in &dockerfile.warnings {
        let (line, message, rule) = (warning.line, &warning.message, warning.rule);
        progress(BuildEvent::Warning(format!("{name}:{line}: {message} ({rule})")));
    }
    warn_of_unused(&dockerfile, &needed, request, progress);
    let mut builder = Builder {
        store,
        request,
        runner,
        progress,
        dockerfile: &dockerfile,
        globals,
        built: BTreeMap::new(),
        context: None,
        total,
        index: 0,
    };
    for stage in needed {
        let built = builder.stage(stage)?;
        builder.built.insert(stage, built);
    }
    let built = builder.built.remove(&target).expect("the target is among the stages it needs");
    let image = store.put_image(&built.into_config())?;
    if let Some(tag) = &request.tag {
        store.tag(tag, &image.id)?;
    }
    Ok(image)
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
        if !declared.contains(&name.as_str()) && !stage::is_proxy_arg(name) {
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

/// The build context, opened when the first instruction needs it.
pub(crate) struct Context {
    view: View,
    ignore: Ignore,
}

struct Builder<'a> {
    store: &'a Store,
    request: &'a BuildRequest,
    runner: &'a mut dyn Runner,
    progress: &'a mut dyn FnMut(BuildEvent),
    dockerfile: &'a Dockerfile,
    globals: BTreeMap<String, String>,
    built: BTreeMap<usize, Built>,
    context: Option<Context>,
    total: usize,
    index: usize,
}

impl<'a> Builder<'a> {
    fn start(&mut self, text: &str) -> Instant {
        self.index += 1;
        let event = BuildEvent::StepStarted { index: self.index, total: self.total, text: text.to_owned() };
        (self.progress)(event);
        Instant::now()
    }

    fn done(&mut self, since: Instant, outcome: Outcome) {
        let index = self.index;
        (self.progress)(match outcome {
            Outcome::Cached => BuildEvent::StepCached { index },
            Outcome::Done => BuildEvent::StepDone { index, seconds: since.elapsed().as_secs_f64() },
        });
    }

    fn stage(&mut self, index: usize) -> Result<Built> {
        let dockerfile = self.dockerfile;
        let stage = &dockerfile.stages[index];
        let since = self.start(&stage.text);
        let mut base = match dockerfile.origin(index, &self.globals)? {
            Origin::Scratch => Built::default(),
            Origin::Stage(earlier) => self.built[&earlier].clone(),
            Origin::Image(reference) => {
                let image = self
                    .image(&reference)
                    .map_err(|error| self.step_error(stage.line, &stage.text, error))?;
                Built::from_image(image.config)
            }
        };
        self.done(since, Outcome::Done);
        let triggers = dockerfile.triggers(index, &mem::take(&mut base.config.on_build))?;
        self.total += triggers.len();
        let mut state = StageState::new(base);
        for instruction in triggers.iter().chain(&stage.instructions) {
            let since = self.start(&instruction.text);
            let outcome = self
                .instruction(&mut state, index, instruction)
                .map_err(|error| self.step_error(instruction.line, &instruction.text, error))?;
            for name in state.take_missed() {
                let place = format!("{}:{}", dockerfile.name, instruction.line);
                let message = format!("{place}: variable `{name}` has no value (UndefinedVar)");
                (self.progress)(BuildEvent::Warning(message));
            }
            self.done(since, outcome);
        }
        Ok(state.built)
    }

    /// Names the instruction that failed, where the error does not yet.
    fn step_error(&self, line: usize, text: &str, error: Error) -> Error {
        match error {
            Error::Dockerfile { .. } | Error::RunFailed { .. } => error,
            source => Error::Step {
                file: self.dockerfile.name.clone(),
                line,
                instruction: shorten(text),
                source: Box::new(source),
            },
        }
    }

    /// An image from outside.
    fn image(&self, reference: &Reference) -> Result<Image> {
        let found = match self.request.bases.get(reference) {
            Some(id) => self.store.image_by_id(id)?,
            None => self.store.image(reference)?,
        };
        found.ok_or_else(|| Error::MissingImage { reference: reference.clone() })
    }

    /// Opens the build context with its `.dockerignore`: the Dockerfile's own, else that of the context.
    fn open_context(&mut self) -> Result<&Context> {
        if self.context.is_none() {
            let path = &self.request.context;
            let view = View::open(std::slice::from_ref(path))
                .map_err(|(path, cause)| Error::io("open the build context", path, cause))?;
            let mut own = self.request.dockerfile.clone().into_os_string();
            own.push(".dockerignore");
            let own = PathBuf::from(own);
            let (file, text) = match own.is_file() {
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
            self.context = Some(Context { view, ignore });
        }
        Ok(self.context.as_ref().expect("it was opened above"))
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
