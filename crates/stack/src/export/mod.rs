//! A stack in the words of others: Kubernetes manifests, Quadlet units of Podman, a unit of systemd.
//!
//! Each export is a pure function of the stack's files, of what the store says about its images, and of the values of
//! its secrets. What the other side has no word for is told with its place, never left out in silence: [`words`] has
//! a line for every key that the files can have.

mod kubernetes;
mod quadlet;
mod stack;
mod systemd;
mod told;
mod unit;
mod words;
mod yaml;

pub use kubernetes::{Options as KubernetesOptions, kubernetes};
pub use quadlet::{Options as QuadletOptions, quadlet};
pub use stack::{Stack, StackError};
pub use systemd::{Service as SystemdService, systemd};

/// What an export comes to.
#[derive(Debug, Default)]
pub struct Export {
    /// The files, in the order in which they are to be read.
    pub files: Vec<ExportedFile>,
    /// What the other side has no word for, each with its place.
    pub warnings: Vec<String>,
    /// What is to be done with the files, a paragraph each.
    pub notes: Vec<String>,
}

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedFile {
    /// Its name, without a directory.
    pub name: String,
    /// Its text.
    pub text: String,
    /// It holds secrets: nobody but its owner is to read it.
    pub private: bool,
}

impl ExportedFile {
    fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), private: false }
    }
}

/// Lets programs without rights have ports below 1024, as they can here and with Docker (ip(7)).
const ALL_PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");

/// Whether the value of a variable is better not read by everybody who may read units and manifests.
fn is_password(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let parts = ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "APIKEY", "API_KEY", "PRIVATE_KEY", "CREDENTIALS"];
    // The name of a file that holds one is none.
    parts.iter().any(|part| name.contains(part)) && !name.ends_with("_FILE")
}

#[cfg(test)]
mod tests;
