//! What each instruction does to a stage.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::build::{BuildEvent, Builder, Network, Outcome, RunStep, Step, cache, shorten};
use crate::config::{self, ContainerConfig, DEFAULT_PATH, Healthcheck, History, ImageConfig};
use crate::digest::{Digest, LayerId};
use crate::dockerfile::{Command, Health, Kind, MountKind, Program, Run, Scope, Security, platform_args};
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::node;
use crate::scratch::Scratch;
use crate::store::check_count;
use crate::tree;
use crate::view::{Node, Resolved, View};

/// Lines of a failed command that its error shows.
const SHOWN_LINES: usize = 20;
/// Longer lines are cut into several.
const LINE_BYTES: usize = 16 * 1024;

/// A finished stage, or a base.
#[derive(Clone, Debug, Default)]
pub(crate) struct Built {
    pub(crate) config: ContainerConfig,
    pub(crate) author: Option<String>,
    pub(crate) created: Option<String>,
    pub(crate) layers: Vec<LayerId>,
    pub(crate) history: Vec<History>,
}

impl Built {
    pub(crate) fn from_image(image: ImageConfig) -> Self {
        Self {
            config: image.config,
            author: image.author,
            created: image.created,
            layers: image.rootfs.diff_ids,
            history: image.history,
        }
    }
}

/// A stage in the making.
pub(crate) struct StageState {
    pub(crate) built: Built,
    /// `ARG`s declared so far that have a value.
    args: BTreeMap<String, String>,
    /// All `ARG`s declared so far.
    declared: BTreeSet<String>,
    /// `CMD` was set in this stage, so `ENTRYPOINT` leaves it.
    own_cmd: bool,
    /// Key of the last instruction that made a layer, or could have.
    parent: Option<Digest>,
    /// Variables that the present instruction used and that have no value.
    missed: RefCell<BTreeSet<String>>,
}

impl Scope for StageState {
    fn get(&self, name: &str) -> Option<String> {
        self.built.config.env_value(name).map(str::to_owned).or_else(|| self.args.get(name).cloned())
    }

    fn missed(&self, name: &str) {
        // One that was declared is meant to be empty unless somebody gives it a value.
        if !self.declared.contains(name) {
            self.missed.borrow_mut().insert(name.to_owned());
        }
    }
}

impl StageState {
    pub(crate) fn new(base: Built) -> Self {
        Self {
            built: base,
            args: BTreeMap::new(),
            declared: BTreeSet::new(),
            own_cmd: false,
            parent: None,
            missed: RefCell::default(),
        }
    }

    /// The variables without a value that were used since this was asked last.
    pub(super) fn take_missed(&mut self) -> BTreeSet<String> {
        self.missed.take()
    }

    pub(crate) fn workdir(&self) -> &str {
        match self.built.config.working_dir.as_str() {
            "" => "/",
            dir => dir,
        }
    }

    fn shell(&self) -> Vec<String> {
        let default = || vec!["/bin/sh".to_owned(), "-c".to_owned()];
        self.built.config.shell.clone().unwrap_or_else(default)
    }

    fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => {
                let mut words = self.shell();
                words.push(line.clone());
                words
            }
        }
    }

    fn remember(&mut self, step: Step<'_>, made: Option<&cache::Entry>) {
        if let Some(entry) = made {
            self.built.created = Some(entry.created.clone());
        }
        let layer = made.and_then(|entry| entry.layer.clone());
        self.built.history.push(History {
            // That of the layer below, so that the same instructions give the same image.
            created: self.built.created.clone(),
            created_by: Some(step.text.clone()),
            comment: None,
            empty_layer: layer.is_none(),
        });
        self.built.layers.extend(layer);
    }
}

/// Arguments that `RUN` gets without an `ARG`, and that no key depends on (Dockerfile reference, "Predefined ARGs").
pub(crate) fn is_proxy_arg(name: &str) -> bool {
    matches!(
        name.to_ascii_uppercase().as_str(),
        "HTTP_PROXY" | "HTTPS_PROXY" | "FTP_PROXY" | "NO_PROXY" | "ALL_PROXY"
    )
}

/// An absolute path without `.`, `..` and doubled slashes.
pub(crate) fn clean(base: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

impl Builder<'_> {
    fn expand(&self, state: &StageState, word: &str, step: Step<'_>) -> Result<String> {
        self.dockerfile.expand(word, state, step.line)
    }

    fn expand_all(&self, state: &StageState, words: &[String], step: Step<'_>) -> Result<Vec<String>> {
        words.iter().map(|word| self.expand(state, word, step)).collect()
    }

    fn expand_pairs(
        &self,
        state: &StageState,
        pairs: &[(String, String)],
        step: Step<'_>,
    ) -> Result<Vec<(String, String)>> {
        let expand = |word: &String| self.expand(state, word, step);
        pairs.iter().map(|(key, value)| Ok((expand(key)?, expand(value)?))).collect()
    }

    /// Carries out one instruction.
    pub(super) fn instruction(
        &mut self,
        state: &mut StageState,
        stage: usize,
        step: Step<'_>,
    ) -> Result<Outcome> {
        match &step.kind {
            Kind::Run(run) => {
                self.check_mounts(state, run, step)?;
                let Program::Command(command) = run.program() else {
                    let message = "RUN: a here-document with an interpreter of its own is not supported";
                    return Err(self.dockerfile.error(step.line, message));
                };
                return self.run(state, &command, run.network, step);
            }
            Kind::Copy(copy) => return self.copy(state, copy, stage, step),
            Kind::Workdir(path) => return self.workdir(state, path, step),
            Kind::Arg(list) => self.arg(state, list, step)?,
            Kind::Env(pairs) => {
                // All of one line see the values from before it.
                for (key, value) in self.expand_pairs(state, pairs, step)? {
                    state.built.config.set_env(&key, &value);
                }
            }
            Kind::Label(pairs) => {
                let pairs = self.expand_pairs(state, pairs, step)?;
                state.built.config.labels.extend(pairs);
            }
            Kind::User(user) => state.built.config.user = self.expand(state, user, step)?,
            Kind::Expose(ports) => {
                for port in self.expand_all(state, ports, step)? {
                    for port in port.split_ascii_whitespace() {
                        let ports = ports_of(port).ok_or_else(|| {
                            self.dockerfile.error(step.line, format!("EXPOSE: `{port}` is no port"))
                        })?;
                        state.built.config.exposed_ports.extend(ports);
                    }
                }
            }
            Kind::Volume(paths) => {
                for path in self.expand_all(state, paths, step)? {
                    let path = clean(state.workdir(), &path);
                    state.built.config.volumes.insert(path);
                }
            }
            Kind::Entrypoint(command) => {
                state.built.config.entrypoint = Some(state.argv(command));
                // The base's command was meant for the base's entrypoint.
                if !state.own_cmd {
                    state.built.config.cmd = None;
                }
            }
            Kind::Cmd(command) => {
                state.built.config.cmd = Some(state.argv(command));
                state.own_cmd = true;
            }
            Kind::StopSignal(signal) => {
                let signal = self.expand(state, signal, step)?;
                state.built.config.stop_signal = Some(signal);
            }
            Kind::Shell(shell) => state.built.config.shell = Some(shell.clone()),
            Kind::Healthcheck(health) => state.built.config.healthcheck = Some(healthcheck(health.as_ref())),
            Kind::Maintainer(author) => state.built.author = Some(author.clone()),
            Kind::OnBuild { text, .. } => state.built.config.on_build.push(text.clone()),
        }
        state.remember(step, None);
        Ok(Outcome::Done)
    }

    fn arg(&self, state: &mut StageState, list: &[(String, Option<String>)], step: Step<'_>) -> Result<()> {
        for (name, default) in list {
            let value = match (self.request.args.get(name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(state, default, step)?),
                (None, None) => self.globals.get(name).cloned().or_else(|| platform_args().remove(name)),
            };
            state.declared.insert(name.clone());
            if let Some(value) = value {
                state.args.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    fn workdir(&mut self, state: &mut StageState, path: &str, step: Step<'_>) -> Result<Outcome> {
        let path = clean(state.workdir(), &self.expand(state, path, step)?);
        state.built.config.working_dir = path.clone();
        let view = self.store.view(&state.built.layers)?;
        let refuse =
            |problem: &str| Error::CopyDestination { path: path.clone(), problem: problem.to_owned() };
        if !state.built.layers.is_empty() {
            match view.resolve(Path::new(&path), true) {
                Ok(Resolved::Found(Node::Dir(_))) => {
                    state.remember(step, None);
                    return Ok(Outcome::Done);
                }
                Ok(Resolved::Found(Node::Leaf(_))) => return Err(refuse("is a file")),
                Ok(Resolved::Missing { .. }) => {}
                Err(cause) => return Err(Error::io("look up in the image", &path, cause)),
            }
        }
        let mut key = cache::key(&state.built.layers, "WORKDIR");
        key.field(path.as_bytes());
        self.layer(state, key.finish(), step, |builder, state, scratch| {
            let top = builder.store.new_layer(scratch)?;
            let lower = builder.store.layer_dirs(&state.built.layers);
            LayerWriter::open(&lower, &top)?.make_path(Path::new(&path), None)?;
            Ok(Some(top))
        })
    }

    /// Takes the layer of an instruction from the cache, or has it made: `make` returns its directory, or
    /// none if nothing changed.
    pub(super) fn layer(
        &mut self,
        state: &mut StageState,
        key: Digest,
        step: Step<'_>,
        make: impl FnOnce(&mut Self, &mut StageState, &Scratch) -> Result<Option<PathBuf>>,
    ) -> Result<Outcome> {
        let key = cache::after(state.parent.as_ref(), key);
        state.parent = Some(key.clone());
        if !self.request.no_cache
            && let Some(entry) = cache::get(self.store, &key)?
        {
            state.remember(step, Some(&entry));
            return Ok(Outcome::Cached);
        }
        let scratch = Scratch::new(&self.store.tmp())?;
        let made = make(self, state, &scratch)?;
        let other = if self.request.no_cache { None } else { cache::get(self.store, &key)? };
        let entry = match other {
            // Another build did the same meanwhile.
            Some(entry) => entry,
            None => {
                let layer = made.map(|top| self.store.publish(&top)).transpose()?;
                let entry = cache::Entry { layer, created: config::now() };
                cache::put(self.store, &key, entry, self.request.no_cache)?
            }
        };
        state.remember(step, Some(&entry));
        check_count(&state.built.layers)?;
        Ok(Outcome::Done)
    }

    /// What of a `RUN` cannot be carried out is said: an error, or a warning where the command works without it.
    fn check_mounts(&mut self, state: &StageState, run: &Run, step: Step<'_>) -> Result<()> {
        if run.security == Security::Insecure {
            return Err(self.dockerfile.error(step.line, "RUN: `--security=insecure` is not supported"));
        }
        for flag in &run.mounts {
            let mount = self.dockerfile.mount(flag, state, state.workdir(), step.line)?;
            let MountKind::Cache { from: None, .. } = mount.kind else {
                return Err(self.dockerfile.error(step.line, "RUN: this type of `--mount` is not supported"));
            };
            let place = format!("{}:{}", self.dockerfile.name, step.line);
            let message = format!("{place}: RUN: there are no cache mounts yet, the directory starts empty");
            (self.progress)(BuildEvent::Warning(message));
        }
        Ok(())
    }

    fn run(
        &mut self,
        state: &mut StageState,
        command: &Command,
        network: Network,
        step: Step<'_>,
    ) -> Result<Outcome> {
        let argv = state.argv(command);
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
        key.field(b"");
        for (name, value) in &env {
            key.field(name.as_bytes());
            key.field(value.as_bytes());
        }
        key.field(b"");
        key.field(cwd.as_bytes());
        key.field(user.as_bytes());
        // The default has the same keys as before there was a choice.
        match network {
            Network::Default => {}
            Network::None => key.field(b"network none"),
            Network::Host => key.field(b"network host"),
        }
        for (name, value) in &self.request.args {
            if is_proxy_arg(name) && !env.iter().any(|(other, _)| other == name) {
                env.push((name.clone(), value.clone()));
            }
        }
        self.layer(state, key.finish(), step, |builder, state, scratch| {
            builder.run_step(
                state,
                scratch,
                step,
                RunStep {
                    layers: Vec::new(),
                    upper: String::new(),
                    work: String::new(),
                    argv,
                    env,
                    cwd,
                    user,
                    network,
                },
            )
        })
    }

    fn run_step(
        &mut self,
        state: &mut StageState,
        scratch: &Scratch,
        step: Step<'_>,
        mut run: RunStep,
    ) -> Result<Option<PathBuf>> {
        if state.built.layers.is_empty() {
            // An overlay needs something below: `FROM scratch` gets an empty layer.
            let empty = self.store.new_layer(scratch)?;
            state.built.layers.push(self.store.publish(&empty)?);
        }
        let upper = scratch.make_dir("upper")?;
        scratch.make_dir("work")?;
        let lower = self.store.layer_dirs(&state.built.layers);
        // The upper directory is the image's `/`: it gets the attributes of the one below.
        drop(LayerWriter::open(&lower, &upper)?);
        run.layers = state.built.layers.iter().map(|layer| self.store.layer_path(layer)).collect();
        run.upper = format!("tmp/{}/upper", scratch.name());
        run.work = format!("tmp/{}/work", scratch.name());
        let mut lines = Lines::new(self.progress);
        let status = self.runner.run(&run, &mut |bytes| lines.take(bytes)).map_err(Error::Runner)?;
        let output = lines.finish();
        if status != 0 {
            return Err(Error::RunFailed {
                file: self.dockerfile.name.clone(),
                line: step.line,
                instruction: shorten(&step.text),
                status,
                output,
            });
        }
        let fail = |cause: std::io::Error| Error::io("open directory", &upper, cause);
        let dir = node::open_dir_path(&upper).map_err(fail)?;
        let changed = tree::clean_upper(&dir, &upper)?;
        Ok((changed || !same_root(&dir, &lower)?).then_some(upper))
    }
}

/// Whether the command left `/` itself as it was.
fn same_root(upper: &std::os::fd::OwnedFd, lower: &[PathBuf]) -> Result<bool> {
    let below = View::open(lower).map_err(|(path, cause)| Error::io("open layer", path, cause))?;
    let fail = |errno: rustix::io::Errno| Error::io("look up", "/", errno);
    let old = rustix::fs::fstat(below.root().fd()).map_err(fail)?;
    let new = rustix::fs::fstat(upper).map_err(fail)?;
    Ok((old.st_mode, old.st_uid, old.st_gid) == (new.st_mode, new.st_uid, new.st_gid))
}

/// The ports of `80`, `53/udp` or `8000-8010`, each with its protocol, `/tcp` where none is named.
fn ports_of(ports: &str) -> Option<impl Iterator<Item = String>> {
    let (numbers, protocol) = ports.split_once('/').unwrap_or((ports, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (low, high) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let (low, high) = (low.parse::<u16>().ok()?, high.parse::<u16>().ok()?);
    let valid = low <= high && matches!(protocol.as_str(), "tcp" | "udp" | "sctp");
    valid.then(|| (low..=high).map(move |port| format!("{port}/{protocol}")))
}

fn healthcheck(health: Option<&Health>) -> Healthcheck {
    let Some(health) = health else {
        return Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() };
    };
    let test = match &health.command {
        Command::Exec(words) => [&["CMD".to_owned()], &words[..]].concat(),
        Command::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
    };
    Healthcheck {
        test,
        interval: health.interval,
        timeout: health.timeout,
        start_period: health.start_period,
        start_interval: health.start_interval,
        retries: health.retries,
    }
}

/// Output cut into lines: passed on, and the last ones kept for the error.
struct Lines<'a> {
    progress: &'a mut dyn FnMut(BuildEvent),
    partial: Vec<u8>,
    last: std::collections::VecDeque<String>,
}

impl<'a> Lines<'a> {
    fn new(progress: &'a mut dyn FnMut(BuildEvent)) -> Self {
        Self { progress, partial: Vec::new(), last: std::collections::VecDeque::new() }
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.len() > LINE_BYTES || piece.ends_with(b"\n") {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let line = String::from_utf8_lossy(&self.partial);
        let line = line.trim_end_matches(['\n', '\r']);
        if self.last.len() == SHOWN_LINES {
            self.last.pop_front();
        }
        // Colours and cursor movements have no place in an error.
        self.last.push_back(line.chars().filter(|c| *c == '\t' || !c.is_control()).collect());
        (self.progress)(BuildEvent::Output(line.to_owned()));
        self.partial.clear();
    }

    fn finish(mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.flush();
        }
        self.last.into()
    }
}
