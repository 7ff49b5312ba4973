//! What is exported: a stack's files with everything that they refer to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::{Image, Store};

use crate::diagnostic::FileError;
use crate::file::StackFile;
use crate::file::node::Node;
use crate::host::HostFacts;
use crate::interpolate::Variables;
use crate::load::{self, LoadOptions, Whole};
use crate::paths::Paths;
use crate::plan::{Healthcheck, MountKind, Plan, SecretFile, SecretSource, Service};
use crate::remote::{Context, RemoteError};
use crate::spec;

/// A stack as an export sees it.
pub struct Stack {
    /// What would run here.
    pub plan: Plan,
    pub(super) root: Node,
    pub(super) file: StackFile,
    /// Those that are in the store, by service.
    pub(super) images: BTreeMap<String, Image>,
    /// The values of secrets and configs.
    pub(super) contents: BTreeMap<Content, Vec<u8>>,
    /// Warnings are errors.
    pub(super) strict: bool,
}

/// What the text of a file comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Content {
    File(PathBuf),
    Variable(String),
}

/// Largest file that goes into a manifest, in bytes: what the API server stores of one object.
pub(super) const MAX_CONTENT: u64 = 1 << 20;

impl Stack {
    /// Reads the files of a stack; what stands in the way of running it on this machine is no error.
    ///
    /// # Errors
    /// When the files cannot be used, or a file that they refer to cannot be read.
    pub fn read(options: &LoadOptions, host: &HostFacts, paths: &Paths) -> Result<Self, StackError> {
        let options = LoadOptions { images_only: true, ..options.clone() };
        let Whole { plan, root, file, variables } = load::load_whole(&options, host)?;
        let store = Store::reader(&paths.data);
        let image =
            |service: &Service| Some((service.name.clone(), store.find(&spec::image_name(service)).ok()?));
        let images = plan.services.iter().filter_map(image).collect();
        let contents = contents(&plan, &variables)?;
        Ok(Self { plan, root, file, images, contents, strict: options.strict })
    }

    /// Images that the store does not have: what they say about ports and health is not known.
    #[must_use]
    pub(crate) fn unknown_images(&self) -> Vec<String> {
        let unknown = self.plan.services.iter().filter(|service| !self.images.contains_key(&service.name));
        let mut names: Vec<String> = unknown.map(spec::image_name).collect();
        names.sort();
        names.dedup();
        names
    }

    pub(super) fn service(&self, name: &str) -> Option<&Service> {
        self.plan.services.iter().find(|service| service.name == name)
    }

    /// The health check in effect: the file's, else the image's, if that is known.
    pub(super) fn healthcheck(&self, service: &Service) -> Option<Healthcheck> {
        match self.images.get(&service.name) {
            Some(image) => spec::healthcheck(service, image),
            None => service.healthcheck.clone().filter(|check| check.test.is_some()),
        }
    }

    /// TCP ports that the image says it listens on.
    pub(super) fn exposed(&self, service: &Service) -> Vec<u16> {
        let image = self.images.get(&service.name);
        let ports = image.into_iter().flat_map(|image| &image.config.config.exposed_ports);
        let tcp = |port: &String| port.strip_suffix("/tcp").unwrap_or(port).parse().ok();
        ports.filter_map(tcp).collect()
    }

    /// The secrets of a service with their names.
    pub(super) fn secrets<'a>(&'a self, service: &'a Service) -> Vec<(&'a str, &'a SecretFile)> {
        self.granted(service)
            .into_iter()
            .filter(|(is_secret, ..)| *is_secret)
            .map(|(_, n, file)| (n, file))
            .collect()
    }

    /// The configs of a service with their names.
    pub(super) fn configs<'a>(&'a self, service: &'a Service) -> Vec<(&'a str, &'a SecretFile)> {
        self.granted(service)
            .into_iter()
            .filter(|(is_secret, ..)| !is_secret)
            .map(|(_, n, file)| (n, file))
            .collect()
    }

    /// A plan has secrets first and then configs, in the order of the file.
    fn granted<'a>(&'a self, service: &'a Service) -> Vec<(bool, &'a str, &'a SecretFile)> {
        let Some(file) = self.file.services.iter().find(|file| file.key.name == service.name) else {
            return Vec::new();
        };
        let secrets = file.secrets.iter().map(|grant| (true, grant.source.value.as_str()));
        let configs = file.configs.iter().map(|grant| (false, grant.source.value.as_str()));
        let names = secrets.chain(configs);
        names.zip(&service.secrets).map(|((is_secret, name), file)| (is_secret, name, file)).collect()
    }

    /// The value of a secret or config.
    pub(super) fn value<'a>(&'a self, source: &'a SecretSource) -> Option<&'a [u8]> {
        match source {
            SecretSource::Content(text) => Some(text.as_bytes()),
            SecretSource::File(path) => self.contents.get(&Content::File(path.clone())).map(Vec::as_slice),
            SecretSource::Environment(name) => {
                self.contents.get(&Content::Variable(name.clone())).map(Vec::as_slice)
            }
        }
    }

    /// The text of a file of the host that a service mounts.
    pub(super) fn mounted(&self, path: &Path) -> Option<&[u8]> {
        self.contents.get(&Content::File(path.to_owned())).map(Vec::as_slice)
    }

    /// The networks that a service is on, in the order of its interfaces.
    pub(super) fn networks(&self, service: &str) -> Vec<&str> {
        let endpoint = self.plan.network.endpoints.iter().find(|endpoint| endpoint.group == service);
        let interfaces = endpoint.into_iter().flat_map(|endpoint| &endpoint.interfaces);
        interfaces.map(|interface| interface.network.as_str()).collect()
    }

    /// The names besides its own under which others find a service, on any network.
    pub(super) fn aliases(&self, service: &str) -> Vec<&str> {
        let endpoint = self.plan.network.endpoints.iter().find(|endpoint| endpoint.group == service);
        let interfaces = endpoint.into_iter().flat_map(|endpoint| &endpoint.interfaces);
        let mut names: Vec<&str> =
            interfaces.flat_map(|interface| &interface.aliases).map(String::as_str).collect();
        names.retain(|name| *name != service);
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Why a stack cannot be exported.
#[derive(Debug)]
pub enum StackError {
    /// The files cannot be used.
    File(FileError),
    /// A file that they refer to cannot be read.
    Content(RemoteError),
}

impl From<FileError> for StackError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<RemoteError> for StackError {
    fn from(error: RemoteError) -> Self {
        Self::Content(error)
    }
}

/// Reads the values of secrets and configs, and the single files that are mounted from the host.
fn contents(plan: &Plan, variables: &Variables) -> Result<BTreeMap<Content, Vec<u8>>, RemoteError> {
    let mut contents = BTreeMap::new();
    for secret in plan.services.iter().flat_map(|service| &service.secrets) {
        match &secret.source {
            SecretSource::Content(_) => {}
            SecretSource::Environment(name) => {
                let value = variables.get(name).unwrap_or_default();
                contents.insert(Content::Variable(name.clone()), value.as_bytes().to_vec());
            }
            SecretSource::File(path) => {
                contents.insert(Content::File(path.clone()), read(path)?);
            }
        }
    }
    for mount in plan.services.iter().flat_map(|service| &service.mounts) {
        let MountKind::Bind { source, .. } = &mount.kind else { continue };
        let fits = std::fs::metadata(source).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_CONTENT);
        if fits {
            contents.insert(Content::File(source.clone()), read(source)?);
        }
    }
    Ok(contents)
}

fn read(path: &Path) -> Result<Vec<u8>, RemoteError> {
    let failed = || format!("read {}", path.display());
    let length = std::fs::metadata(path).context(failed)?.len();
    if length > MAX_CONTENT {
        let message = format!("{} is too large for a secret or a config: {length} bytes", path.display());
        return Err(RemoteError::message(message).or_hint("1 MiB is what a cluster stores of one object"));
    }
    std::fs::read(path).context(failed)
}
