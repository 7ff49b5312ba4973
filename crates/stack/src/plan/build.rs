//! How an image is built, resolved.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SecretSource;

/// How an image is built.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Build {
    /// Name the image gets, `STACK-SERVICE:latest` unless the file says otherwise.
    pub image: String,
    /// The git repository that the build context is fetched from, as it was written; `context` and the Dockerfiles
    /// are paths in what that means then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Absolute path of the build context.
    pub context: PathBuf,
    /// One Dockerfile per base in the order of preference; a single entry with base "" when the file names no bases.
    pub dockerfiles: Vec<BaseDockerfile>,
    /// The text of a Dockerfile that stands in the stack file; the path of the only entry above is its name then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Stage to stop at.
    pub target: Option<String>,
    /// The network of `RUN` instructions that ask for none.
    #[serde(default, skip_serializing_if = "BuildNetwork::is_own")]
    pub network: BuildNetwork,
    /// `RUN --network=host` gets what it asks for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allows_host_network: bool,
    /// `RUN --security=insecure` gets what it asks for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allows_insecure: bool,
    /// What names in the Dockerfile mean beside its stages and images.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, BuildContext>,
    /// What `RUN --mount=type=secret` can ask for, by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretSource>,
    /// The sockets of SSH agents, by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ssh: BTreeMap<String, PathBuf>,
    /// Labels that the image gets beside those of the Dockerfile.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// More names for the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Names and addresses that `RUN` instructions find in `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// Shared memory of `RUN` instructions, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Resource limits of `RUN` instructions: soft, hard.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, (u64, u64)>,
    /// Carry out every instruction again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
    /// Fetch the images that it begins with again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pull: bool,
}

/// What a name in a Dockerfile means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildContext {
    /// A directory of the host, absolute.
    Directory(PathBuf),
    /// A git repository, as it was written.
    Repository(String),
    /// An image.
    Image(String),
    /// The image of a service, which is built first.
    Service(String),
}

impl BuildContext {
    /// The service whose image it is.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        match self {
            Self::Service(name) => Some(name),
            _ => None,
        }
    }
}

/// The network of `RUN` instructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildNetwork {
    /// A namespace of their own, with a way out.
    #[default]
    Own,
    /// A namespace of their own, without.
    None,
    /// The host's.
    Host,
}

impl BuildNetwork {
    fn is_own(&self) -> bool {
        *self == Self::Own
    }
}

/// The Dockerfile for one base distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseDockerfile {
    /// `alpine`, `debian`, or empty.
    pub base: String,
    /// Absolute path.
    pub path: PathBuf,
}
