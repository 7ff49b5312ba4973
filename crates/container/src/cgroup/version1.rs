//! Counterparts of a cgroup in trees of cgroup v1, on hosts whose controllers are there (hybrid mode).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hierarchy::Hierarchy;
use super::resources::{Resources, Setting};
use super::{Error, directory};

/// The counterparts of one cgroup; none on hosts with cgroup v2 alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mirror {
    directories: Vec<Counterpart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Counterpart {
    controllers: Vec<String>,
    path: PathBuf,
}

impl Mirror {
    pub(super) fn is_empty(&self) -> bool {
        self.directories.is_empty()
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.directories.iter().any(|d| d.controllers.iter().any(|name| name == controller))
    }

    pub(super) fn of(_hierarchy: &Hierarchy, _below: &Path) -> Self {
        Self::default()
    }

    pub(super) fn make(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Returns what is left for the cgroup of version 2.
    pub(super) fn apply(&self, resources: &Resources) -> Result<Vec<Setting>, Error> {
        resources.version2()
    }

    pub(super) fn admit(&self, _pid: i32) -> Result<(), Error> {
        Ok(())
    }

    pub(super) fn remove(&self) -> Result<(), Error> {
        self.directories.iter().try_for_each(|counterpart| directory::remove(&counterpart.path))
    }
}
