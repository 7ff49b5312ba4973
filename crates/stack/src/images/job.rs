//! One image to build, with everything resolved that a storage worker cannot see.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::str::FromStr;
use std::time::SystemTime;

use container::rlimit;
use image::{BuildRequest, Digest, NamedContext, Secret, Store};

use super::network::{self, Networks};
use super::run::{Rules, SandboxRunner};
use super::{Options, Progress, based_name, reference};
use crate::plan::{BaseDockerfile, Build, BuildContext, SecretSource};
use crate::remote::{Context, RemoteError};
use crate::storage::Handles;

/// A variable and a build argument (reproducible-builds.org).
const EPOCH: &str = "SOURCE_DATE_EPOCH";
/// Largest secret, bytes; as BuildKit's.
const SECRET_BYTES: u64 = 500 * 1024;

pub(super) struct Job {
    request: BuildRequest,
    rules: Rules,
    /// There is no other base, which would be the first thing to try when a command fails.
    only_base: bool,
}

impl Job {
    /// `begun` is when the command began, `ids` are the images that it has built so far.
    pub(super) fn new(
        build: &Build,
        dockerfile: &BaseDockerfile,
        options: &Options,
        begun: SystemTime,
        ids: &BTreeMap<String, String>,
    ) -> Result<Self, RemoteError> {
        let mut tags = Vec::new();
        for tag in [&build.image].into_iter().filter(|name| !name.is_empty()).chain(&build.tags) {
            tags.push(reference(tag)?);
        }
        // A second name: that of the base it was built on.
        if !dockerfile.base.is_empty() {
            tags.push(based_name(build, &dockerfile.base)?);
        }
        let mut args = build.args.clone();
        if let (false, Ok(epoch)) = (args.contains_key(EPOCH), std::env::var(EPOCH)) {
            args.insert(EPOCH.to_owned(), epoch);
        }
        let mut contexts = BTreeMap::new();
        for (name, context) in &build.contexts {
            contexts.insert(name.clone(), named(context, ids)?);
        }
        let mut secrets = BTreeMap::new();
        for (id, source) in &build.secrets {
            let secret = secret(source, &options.secrets);
            secrets.insert(id.clone(), secret.context(|| format!("read the secret `{id}`"))?);
        }
        let request = BuildRequest {
            context: build.context.clone(),
            dockerfile: dockerfile.path.clone(),
            dockerfile_name: Some(dockerfile.path.display().to_string()),
            dockerfile_text: build.inline.clone(),
            tags,
            epoch: args.get(EPOCH).map(|text| epoch(text)).transpose()?,
            args,
            target: build.target.clone(),
            fresh: build.no_cache.then_some(begun),
            labels: build.labels.clone(),
            contexts,
            secrets,
            agents: build.ssh.keys().cloned().collect(),
            reaches_host: build.allows_host_network,
            bases: BTreeMap::new(),
        };
        let mut rlimits = Vec::new();
        for (name, (soft, hard)) in &build.ulimits {
            let number = rlimit::number(name)
                .ok_or_else(|| RemoteError::message(format!("unknown resource limit `{name}`")))?;
            rlimits.push((number, *soft, *hard));
        }
        let rules = Rules {
            usual: build.network,
            allows_host: build.allows_host_network,
            allows_insecure: build.allows_insecure,
            lends_keys: !build.ssh.is_empty(),
            proxies: network::loopback_proxies(&build.args),
            extra_hosts: build.extra_hosts.clone(),
            shm_size: build.shm_size,
            rlimits,
            debug: options.debug,
            readable: options.readable,
        };
        Ok(Self { request, rules, only_base: build.dockerfiles.len() == 1 })
    }

    /// The image's id, and what there is to tell of its build, if nothing of it has to be made. Runs in the command.
    pub(super) fn recall(&self, store: &Store, service: &str) -> Option<(String, Vec<Progress>)> {
        // A worker sees another path in place of one outside of the context, and may look beside it.
        self.inner_dockerfile()?;
        let (image, events) = image::recall(store, &self.request)?;
        let told = events.into_iter().filter_map(|event| translate(service, event)).collect();
        Some((image.id.to_string(), told))
    }

    /// The Dockerfile's path inside of the context, if it is there.
    fn inner_dockerfile(&self) -> Option<&Path> {
        let relative = self.request.dockerfile.strip_prefix(&self.request.context).ok()?;
        // What leads out of the context leads out of its mount, too.
        (!relative.components().any(|part| part == Component::ParentDir)).then_some(relative)
    }

    /// Makes all that it reads of the host reachable for workers.
    pub(super) fn hand_over(&mut self, handles: &mut Handles) -> Result<(), RemoteError> {
        let context = handles.open(&self.request.context)?;
        self.request.dockerfile = match self.inner_dockerfile() {
            Some(relative) => context.join(relative),
            None if self.request.dockerfile_text.is_some() => context.clone(),
            None => handles.open(&self.request.dockerfile)?,
        };
        self.request.context = context;
        for named in self.request.contexts.values_mut() {
            if let NamedContext::Directory(path) = named {
                *path = handles.open(path)?;
            }
        }
        Ok(())
    }

    /// Builds it. Runs in a storage worker.
    pub(super) fn carry_out(
        &self,
        store: &Store,
        service: &str,
        networks: Networks<'_>,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<String, RemoteError> {
        // The builder and its runner both have things to tell, never at the same time.
        let tell = RefCell::new(tell);
        let warn = |text| tell.borrow_mut()(Progress::Warning(text));
        let shell = |status| tell.borrow_mut()(Progress::Shell { service: service.to_owned(), status });
        let mut runner = SandboxRunner::new(self.rules.clone(), networks, &warn, &shell)?;
        let image = image::build(store, &self.request, &mut runner, &mut |event| {
            if let Some(event) = translate(service, event) {
                tell.borrow_mut()(event);
            }
        });
        match image {
            Ok(image) => Ok(image.id.to_string()),
            Err(error) => {
                let status = match &error {
                    image::Error::RunFailed { status, .. } => Some(*status),
                    _ => None,
                };
                let error = RemoteError::from(error);
                Err(match status {
                    Some(status) if self.only_base && !self.rules.debug => error.or_hint(failed_run(status)),
                    _ => error,
                })
            }
        }
    }
}

/// What to do about a `RUN` that ended with `status`. A shell tells with 126 and 127 that it could not execute something,
/// and says nothing of why a script that is there was not found.
fn failed_run(status: i32) -> String {
    let shell = "`inception-run build --debug-on-failure` opens a shell where it failed";
    match status {
        126 => format!("a script needs `chmod +x`, or `COPY --chmod=755`; {shell}"),
        127 => format!(
            "the image lacks the program, or the interpreter of a script's first line (with the line ends of Windows that is \
             `/bin/sh\\r`); {shell}"
        ),
        _ => shell.to_owned(),
    }
}

fn named(context: &BuildContext, ids: &BTreeMap<String, String>) -> Result<NamedContext, RemoteError> {
    Ok(match context {
        BuildContext::Directory(path) => NamedContext::Directory(path.clone()),
        BuildContext::Repository(address) => {
            return Err(RemoteError::message(format!("`{address}` was not fetched")));
        }
        BuildContext::Image(name) => NamedContext::Image(reference(name)?),
        BuildContext::Service(name) => match ids.get(name) {
            Some(id) => NamedContext::Id(Digest::from_str(id)?),
            None => return Err(RemoteError::message(format!("the image of service `{name}` is not built"))),
        },
    })
}

fn secret(source: &SecretSource, values: &BTreeMap<String, String>) -> Result<Secret, RemoteError> {
    match source {
        SecretSource::File(path) => {
            let read = || -> std::io::Result<Vec<u8>> {
                let length = std::fs::metadata(path)?.len();
                if length > SECRET_BYTES {
                    return Err(std::io::ErrorKind::FileTooLarge.into());
                }
                std::fs::read(path)
            };
            Ok(Secret(read().context(|| format!("read {}", path.display()))?))
        }
        SecretSource::Content(text) => Ok(Secret(text.clone().into_bytes())),
        SecretSource::Environment(name) => {
            let value = values.get(name).cloned().or_else(|| std::env::var(name).ok());
            value.map(|value| Secret(value.into_bytes())).ok_or_else(|| {
                RemoteError::message(format!("variable `{name}` is not set"))
                    .or_hint("set it in the environment or in `.env`")
            })
        }
    }
}

fn epoch(text: &str) -> Result<u64, RemoteError> {
    text.parse().map_err(|_| {
        RemoteError::message(format!("`{EPOCH}={text}` is not a number of seconds since 1970"))
            .or_hint(format!("`{EPOCH}=$(git log -1 --pretty=%ct)` is the time of the last commit"))
    })
}

fn translate(service: &str, event: image::BuildEvent) -> Option<Progress> {
    let service = service.to_owned();
    Some(match event {
        image::BuildEvent::StepStarted { step, stage, index, total, text } => {
            Progress::Step { service, step, stage, index, total, text }
        }
        image::BuildEvent::StepCached { step } => Progress::Cached { service, step },
        image::BuildEvent::StepDone { step, seconds } => Progress::Ran { service, step, seconds },
        image::BuildEvent::Output { step, line } => Progress::Output { service, step: Some(step), line },
        // A directory that is built by itself is no service.
        image::BuildEvent::Warning(text) if service.is_empty() => Progress::Warning(text),
        image::BuildEvent::Warning(text) => Progress::Warning(format!("{service}: {text}")),
        _ => return None,
    })
}
