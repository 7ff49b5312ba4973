//! What each instruction does to a stage.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::build::cache::{self, Claim};
use crate::build::{Builder, Outcome, Step, epoch};
use crate::config::{ContainerConfig, Healthcheck, History, ImageConfig};
use crate::digest::{Digest, LayerId};
use crate::dockerfile::{Command, Health, Kind, Scope, clean, platform_args};
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::scratch::Scratch;
use crate::store::check_count;
use crate::user;
use crate::view::{Node, Resolved};

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
    pub(crate) args: BTreeMap<String, String>,
    /// All `ARG`s declared so far.
    declared: BTreeSet<String>,
    /// `CMD` was set in this stage, so `ENTRYPOINT` leaves it.
    own_cmd: bool,
    /// Key of the last instruction that made a layer, or could have.
    parent: Option<Digest>,
    /// The key whose claim is held by somebody else.
    pub(crate) wanted: Option<Digest>,
    /// A claim that was waited for.
    pub(crate) claim: Option<Claim>,
    /// Variables that the present instruction used and that have no value.
    missed: RefCell<BTreeSet<String>>,
}

/// What there is of a layer that an instruction asks for.
pub(super) enum Layer {
    /// All: it was made before.
    Cached,
    /// Somebody else is making it.
    Awaited,
    /// Nothing, and the right to make it.
    Claimed(Claim),
}

/// What a layer depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum On {
    /// All that lies below it.
    Below,
    /// Nothing but its own files (`--link`).
    Nothing,
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
            wanted: None,
            claim: None,
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

    pub(super) fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => {
                let mut words = self.shell();
                words.push(line.clone());
                words
            }
        }
    }

    /// Counts an instruction for the keys of those behind it.
    fn follow(&mut self, key: &Digest, on: On) {
        self.parent = Some(match (on, &self.parent) {
            // A key that says nothing of what lies below does not speak for that.
            (On::Nothing, Some(parent)) => cache::after(Some(parent), key.clone(), None),
            _ => key.clone(),
        });
    }

    pub(super) fn remember(&mut self, step: Step<'_>, made: Option<&cache::Entry>) {
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
            Kind::Run(run) => return self.run(state, run, stage, step),
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
        // As with BuildKit; Docker's older builder left it to root.
        let owner = match state.built.config.user.as_str() {
            "" => None,
            user => Some(user::resolve_owner(&view, user)?),
        };
        let mut key = cache::key(&state.built.layers, "WORKDIR");
        key.field(path.as_bytes());
        if let Some((uid, gid)) = owner {
            key.field(format!("{uid}:{gid}").as_bytes());
        }
        self.layer(state, (key.finish(), On::Below), step, |builder, state, scratch| {
            let top = builder.store.new_layer(scratch)?;
            let lower = builder.store.layer_dirs(&state.built.layers);
            LayerWriter::open(&lower, &top)?.make_path(Path::new(&path), owner)?;
            Ok(Some(top))
        })
    }

    /// Takes the layer of an instruction from the cache, or has it made: `make` returns its directory, or
    /// none if nothing changed.
    pub(super) fn layer(
        &mut self,
        state: &mut StageState,
        (key, on): (Digest, On),
        step: Step<'_>,
        make: impl FnOnce(&mut Self, &mut StageState, &Scratch) -> Result<Option<PathBuf>>,
    ) -> Result<Outcome> {
        let claim = match self.look_up(state, (key, on), step)? {
            Layer::Cached => return Ok(Outcome::Cached),
            Layer::Awaited => return Ok(Outcome::Awaited),
            Layer::Claimed(claim) => claim,
        };
        let scratch = Scratch::new(&self.store.tmp())?;
        let made = make(self, state, &scratch)?;
        self.keep(state, step, (claim, on), made.as_deref())?;
        Ok(Outcome::Done)
    }

    /// Looks for the layer of an instruction; where there is none, claims the right to make it.
    pub(super) fn look_up(
        &mut self,
        state: &mut StageState,
        (key, on): (Digest, On),
        step: Step<'_>,
    ) -> Result<Layer> {
        let parent = state.parent.as_ref().filter(|_| on == On::Below);
        let key = cache::after(parent, key, self.request.epoch);
        if self.cached(state, (&key, on), step)? {
            return Ok(Layer::Cached);
        }
        self.begin_to_make()?;
        let held = state.claim.take().filter(|claim| *claim.key() == key);
        let Some(claim) = held.map_or_else(|| Claim::take(self.store, &key), |claim| Ok(Some(claim)))? else {
            state.wanted = Some(key);
            return Ok(Layer::Awaited);
        };
        // Who held it before may have made the layer.
        Ok(if self.cached(state, (&key, on), step)? { Layer::Cached } else { Layer::Claimed(claim) })
    }

    fn cached(&self, state: &mut StageState, (key, on): (&Digest, On), step: Step<'_>) -> Result<bool> {
        let Some(entry) = cache::get(self.store, key, self.request.fresh)? else { return Ok(false) };
        state.follow(key, on);
        state.remember(step, Some(&entry));
        Ok(true)
    }

    /// Publishes the layer that an instruction made, and remembers it.
    pub(super) fn keep(
        &mut self,
        state: &mut StageState,
        step: Step<'_>,
        (claim, on): (Claim, On),
        made: Option<&Path>,
    ) -> Result<()> {
        if let (Some(top), Some(epoch)) = (made, self.request.epoch) {
            epoch::clamp(top, epoch)?;
        }
        let layer = made.map(|top| self.store.publish(top)).transpose()?;
        let entry = cache::Entry::new(layer, self.request.epoch);
        cache::put(self.store, claim.key(), &entry)?;
        state.follow(claim.key(), on);
        state.remember(step, Some(&entry));
        check_count(&state.built.layers)
    }
}

/// The ports of `80`, `53/udp` or `8000-8010`, each with its protocol, `/tcp` where none is named.
pub(super) fn ports_of(ports: &str) -> Option<impl Iterator<Item = String>> {
    let (numbers, protocol) = ports.split_once('/').unwrap_or((ports, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (low, high) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let (low, high) = (low.parse::<u16>().ok()?, high.parse::<u16>().ok()?);
    let valid = low <= high && matches!(protocol.as_str(), "tcp" | "udp" | "sctp");
    valid.then(|| (low..=high).map(move |port| format!("{port}/{protocol}")))
}

pub(super) fn healthcheck(health: Option<&Health>) -> Healthcheck {
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
