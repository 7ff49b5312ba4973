//! Which ports of the host are published, as the user chose, and the file by which a running stack keeps to it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// In the stack's runtime directory, as long as it runs.
const KEPT: &str = "ports.json";

/// Ports of the host that stand for others (`--port-offset`, `--publish`). The stack keeps to it while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortChoice {
    /// Added to the ports that this user may not listen on.
    pub offset: Option<u16>,
    /// Single ports, which outweigh that.
    pub publish: BTreeMap<u16, u16>,
    /// It is that of the running stack, and not of this command.
    #[serde(skip)]
    pub kept: bool,
}

impl PortChoice {
    /// Whether nothing was chosen.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.offset.is_none() && self.publish.is_empty()
    }

    /// What the running stack was started with, where it was with any. `runtime` is its runtime directory.
    #[must_use]
    pub fn kept(runtime: &Path) -> Option<Self> {
        let text = std::fs::read(runtime.join(KEPT)).ok()?;
        let choice: Self = serde_json::from_slice(&text).ok()?;
        Some(Self { kept: true, ..choice })
    }

    /// Writes it down for [`PortChoice::kept`], or that nothing was chosen.
    ///
    /// # Errors
    /// When the file cannot be written or removed.
    pub(crate) fn keep(&self, runtime: &Path) -> io::Result<()> {
        let path = runtime.join(KEPT);
        if !self.is_none() {
            return std::fs::write(path, serde_json::to_vec(self)?);
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
