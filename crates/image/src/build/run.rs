//! `RUN`: what its command is given, and what becomes of what it wrote.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::build::cache::{self, Claim};
use crate::build::mount::{Mounts, Prepared};
use crate::build::stage::{Layer, On, StageState, is_proxy_arg};
use crate::build::{Builder, Network, Outcome, RunMount, RunSource, RunStep, Running, Secret, Step, shorten};
use crate::config::DEFAULT_PATH;
use crate::dockerfile::{Program, Run, Security};
use crate::error::{Error, FailedRun, Result};
use crate::layer::LayerWriter;
use crate::node;
use crate::scratch::Scratch;
use crate::tree;
use crate::view::View;

/// Lines of a failed command that its error shows.
const SHOWN_LINES: usize = 20;
/// Lines of the Dockerfile that it shows: of the instruction at most, and before it.
const SOURCE_LINES: usize = 12;
const SOURCE_BEFORE: usize = 2;
/// Longer lines are cut into several.
const LINE_BYTES: usize = 16 * 1024;
/// Where scripts that are here-documents are, as with BuildKit: below `/dev`, which no layer has a share in.
const SCRIPTS: &str = "/dev/pipes";
/// A disk with less room than this is full, bytes.
const FULL: u64 = 1 << 20;
/// How much of a command's output is read at a time, bytes.
const READ_BYTES: usize = 64 * 1024;

/// The command of a `RUN` that is being carried out. Whatever becomes of it, first the command goes, then its files.
pub(crate) struct Underway {
    pub(super) running: Box<dyn Running>,
    run: RunStep,
    lines: Lines,
    claim: Claim,
    mounts: Prepared,
    upper: PathBuf,
    _scratch: Scratch,
}

/// How many commands of a build run at the same time.
fn most_commands() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2))
}

impl Builder<'_> {
    pub(super) fn run(
        &mut self,
        state: &mut StageState,
        run: &Run,
        stage: usize,
        step: Step<'_>,
    ) -> Result<Outcome> {
        let (argv, script) = match run.program() {
            Program::Command(command) => (state.argv(&command), None),
            Program::Script { name, content } => {
                let path = format!("{SCRIPTS}/{name}");
                (vec![path.clone()], Some((path, content)))
            }
        };
        let config = &state.built.config;
        let mut env = config.env_pairs();
        for (name, value) in &state.args {
            if config.env_value(name).is_none() {
                env.push((name.clone(), value.clone()));
            }
        }
        if !env.iter().any(|(name, _)| name == "PATH") {
            env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
        }
        let (cwd, user) = (state.workdir().to_owned(), config.user.clone());
        let mut key = cache::key(&state.built.layers, "RUN");
        for word in &argv {
            key.field(word.as_bytes());
        }
        if let Some((_, content)) = &script {
            key.field(content.as_bytes());
        }
        key.field(b"");
        for (name, value) in &env {
            key.field(name.as_bytes());
            key.field(value.as_bytes());
        }
        key.field(b"");
        key.field(cwd.as_bytes());
        key.field(user.as_bytes());
        // The default has the same keys as before there was a choice.
        match run.network {
            Network::Default => {}
            Network::None => key.field(b"network none"),
            Network::Host => key.field(b"network host"),
        }
        let insecure = run.security == Security::Insecure;
        if insecure {
            key.field(b"security insecure");
        }
        let mounts = self.mounts(state, &run.mounts, stage, step)?;
        mounts.key(&mut key);
        let claim = match self.look_up(state, (key.finish(), On::Below), step)? {
            Layer::Cached => return Ok(Outcome::Cached),
            Layer::Awaited => return Ok(Outcome::Awaited),
            Layer::Claimed(claim) if self.running < most_commands() => claim,
            Layer::Claimed(_) => return Ok(Outcome::Queued),
        };
        for (name, value) in &self.request.args {
            if is_proxy_arg(name) && !env.iter().any(|(other, _)| other == name) {
                env.push((name.clone(), value.clone()));
            }
        }
        let run = RunStep {
            layers: Vec::new(),
            upper: String::new(),
            work: String::new(),
            argv,
            env,
            cwd,
            user,
            network: run.network,
            insecure,
            mounts: script.into_iter().map(|(path, content)| script_mount(path, content)).collect(),
            secret_env: Vec::new(),
        };
        self.start(state, run, &mounts, claim)
    }

    fn start(
        &mut self,
        state: &mut StageState,
        mut run: RunStep,
        mounts: &Mounts,
        claim: Claim,
    ) -> Result<Outcome> {
        let Some(caches) = mounts.caches(self.store)? else {
            // One that somebody else has to himself.
            state.wanted = Some(claim.key().clone());
            return Ok(Outcome::Awaited);
        };
        let scratch = Scratch::new(&self.store.tmp())?;
        if state.built.layers.is_empty() {
            // An overlay needs something below: `FROM scratch` gets an empty layer.
            let empty = self.store.new_layer(&scratch)?;
            state.built.layers.push(self.store.publish(&empty)?);
        }
        let upper = scratch.make_dir("upper")?;
        scratch.make_dir("work")?;
        let lower = self.store.layer_dirs(&state.built.layers);
        // The upper directory is the image's `/`: it gets the attributes of the one below.
        drop(LayerWriter::open(&lower, &upper)?);
        run.layers = self.store.layer_paths(&state.built.layers);
        run.upper = format!("tmp/{}/upper", scratch.name());
        run.work = format!("tmp/{}/work", scratch.name());
        let mounts = self.prepare_mounts(state, mounts, caches, &scratch, &mut run)?;
        let running = self.runner.start(&run).map_err(Error::Runner)?;
        let lines = Lines::default();
        Ok(Outcome::Running(Box::new(Underway {
            running,
            run,
            lines,
            claim,
            mounts,
            upper,
            _scratch: scratch,
        })))
    }

    /// Makes the layer of what an ended command wrote.
    pub(super) fn finish_run(
        &mut self,
        state: &mut StageState,
        mut underway: Underway,
        step: Step<'_>,
        line: &mut dyn FnMut(&mut Self, String),
    ) -> Result<()> {
        let status = underway.running.wait().map_err(Error::Runner)?;
        if let Some(last) = underway.lines.rest() {
            line(self, last);
        }
        if status != 0 {
            self.runner.failed(&underway.run, status).map_err(Error::Runner)?;
            let output: Vec<String> = underway.lines.last.into();
            // Not every program says why it could not write.
            let full = output.iter().any(|line| line.contains("No space left on device"))
                || rustix::fs::statvfs(&underway.upper)
                    .is_ok_and(|disk| disk.f_bavail * disk.f_frsize < FULL);
            return Err(Error::RunFailed {
                file: self.dockerfile.name.clone(),
                line: step.line,
                instruction: shorten(&step.text),
                status,
                shown: Box::new(FailedRun { output, source: self.source_lines(step), full }),
            });
        }
        let upper = &underway.upper;
        let fail = |cause: std::io::Error| Error::io("open directory", upper, cause);
        let dir = node::open_dir_path(upper).map_err(fail)?;
        let lower = self.store.layer_dirs(&state.built.layers);
        underway.mounts.remove_stubs(&dir, &lower)?;
        let changed = tree::clean_upper(&dir, upper)? || !same_root(&dir, &lower)?;
        self.keep(state, step, (underway.claim, On::Below), changed.then_some(upper.as_path()))
    }
}

impl Builder<'_> {
    /// The lines of the Dockerfile around an instruction.
    fn source_lines(&self, step: Step<'_>) -> Vec<(usize, String, bool)> {
        let stages = self.dockerfile.stages.iter();
        let begins = stages.flat_map(|stage| {
            stage.instructions.iter().map(|instruction| instruction.line).chain([stage.line])
        });
        let after = begins.filter(|line| *line > step.line).min().unwrap_or(usize::MAX);
        let last = after.min(step.line + SOURCE_LINES);
        let shown = self.text.lines().enumerate().map(|(index, text)| (index + 1, text));
        let mut shown: Vec<(usize, String, bool)> = shown
            .filter(|(number, _)| *number + SOURCE_BEFORE >= step.line && *number < last)
            .map(|(number, text)| (number, text.trim_end().to_owned(), number >= step.line))
            .collect();
        // What stands between it and the next one is empty, or a comment on that.
        while shown.last().is_some_and(|(_, text, _)| text.is_empty() || text.starts_with('#')) {
            shown.pop();
        }
        shown
    }
}

impl Underway {
    /// Reads what the command wrote, once; false when it has ended.
    pub(super) fn read(&mut self, line: &mut dyn FnMut(String)) -> Result<bool> {
        let mut buffer = [0; READ_BYTES];
        match rustix::io::read(self.running.output(), &mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.lines.take(&buffer[..length], line);
                Ok(true)
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(true),
            Err(errno) => Err(Error::Runner(Box::new(std::io::Error::from(errno)))),
        }
    }
}

/// Whether the command left `/` itself as it was.
fn same_root(upper: &std::os::fd::OwnedFd, lower: &[PathBuf]) -> Result<bool> {
    let below = View::open(lower).map_err(|(path, cause)| Error::io("open layer", path, cause))?;
    let fail = |errno: Errno| Error::io("look up", Path::new("/"), errno);
    let old = rustix::fs::fstat(below.root().fd()).map_err(fail)?;
    let new = rustix::fs::fstat(upper).map_err(fail)?;
    Ok((old.st_mode, old.st_uid, old.st_gid) == (new.st_mode, new.st_uid, new.st_gid))
}

/// A here-document that is run as it is, in a file that is no part of the image.
fn script_mount(target: String, content: String) -> RunMount {
    let content = Secret(content.into_bytes());
    RunMount { target, read_only: true, source: RunSource::File { content, mode: 0o755, uid: 0, gid: 0 } }
}

/// Output cut into lines: passed on, and the last ones kept for the error.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    last: VecDeque<String>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], pass_on: &mut dyn FnMut(String)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.len() > LINE_BYTES || piece.ends_with(b"\n") {
                pass_on(self.flush());
            }
        }
    }

    /// A last line without an end.
    fn rest(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.flush())
    }

    fn flush(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.partial);
        let line = line.trim_end_matches(['\n', '\r']).to_owned();
        self.partial.clear();
        if self.last.len() == SHOWN_LINES {
            self.last.pop_front();
        }
        // Colours and cursor movements have no place in an error.
        self.last.push_back(line.chars().filter(|c| *c == '\t' || !c.is_control()).collect());
        line
    }
}
