//! The one tree that a stack's files come to.

use std::collections::{BTreeMap, BTreeSet};

use super::layers::{Layers, Scope};
use super::project::Project;
use super::{LoadOptions, Running, environment, name, profiles};
use crate::diagnostic::{FileError, Span};
use crate::file::node::Node;
use crate::host::HostFacts;
use crate::interpolate::Variables;
use crate::plan::PortChoice;

/// A stack's files as one.
pub(super) struct Model {
    /// Merged and interpolated, with nothing left of `include`, `extends`, `env_file` and inactive services.
    pub(super) root: Node,
    pub(super) project: Project,
    /// The stack's.
    pub(super) name: String,
    /// The profiles that services have, active or not.
    pub(super) profiles: BTreeSet<String>,
    pub(super) warnings: Vec<(Span, String)>,
    /// Variables that only secrets of included files have.
    pub(super) included: BTreeMap<String, String>,
    /// The choice of ports of the stack, when it runs.
    pub(super) kept_ports: Option<PortChoice>,
}

impl Model {
    /// Read it. Without `interpolate` variables are left as they are written.
    pub(super) fn read(
        options: &LoadOptions,
        host: &HostFacts,
        interpolate: bool,
        running: impl FnOnce(&str, bool) -> Running,
    ) -> Result<Self, FileError> {
        let mut project = Project::find(options, &host.environment)?;
        let documents = project.documents(options)?;
        let name = match project.name(options) {
            Some(name) => name::given(name)?,
            None => name::of(&documents, &project, interpolate)?,
        };
        project.variables = project.variables.with("COMPOSE_PROJECT_NAME", &name);

        let scope = Scope { directory: project.directory.clone(), variables: project.variables.clone() };
        let mut layers = Layers::new(project.format, interpolate, project.env_writer);
        let mut root = layers.model(documents, &scope, &[])?;
        let Layers { mut warnings, included, .. } = layers;
        let known = profiles::known(&root)?;
        let Running { ports: kept_ports, services: running } = running(&name, !known.is_empty());
        profiles::select(&mut root, &project.profiles, &options.services, &running)?;
        if interpolate {
            environment::read_files(&mut root, &scope, host.home.as_deref(), &mut warnings)?;
            environment::inherit(&mut root, &scope.variables)?;
        }
        Ok(Self { root, project, name, profiles: known, warnings, included, kept_ports })
    }

    /// In which the values of secrets are found.
    pub(super) fn secret_variables(&self) -> Variables {
        self.project.variables.clone().or(self.included.clone())
    }
}
