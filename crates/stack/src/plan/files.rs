//! What a service has below its root besides the image: volumes, directories of the host, secrets.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One mount of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// What is mounted.
    pub kind: MountKind,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A named volume; its first use copies the image's content and ownership.
    Volume {
        /// Volume name.
        name: String,
        /// Whose it is.
        #[serde(default, skip_serializing_if = "Scope::is_stack")]
        scope: Scope,
        /// It begins empty, whatever the image has at the target.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        nocopy: bool,
        /// The directory of it that is shown, a relative path without `..`; all of it if none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subpath: Option<String>,
    },
    /// A host file or directory, absolute.
    Bind {
        /// Host path.
        source: PathBuf,
        /// Create a missing source directory (the short compose syntax does).
        create: bool,
        /// It stands for a volume: an empty directory takes over what the image has at the target.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        fill: bool,
    },
    /// A tmpfs.
    Tmpfs(Tmpfs),
}

/// Whose a volume is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The stack's.
    #[default]
    Stack,
    /// That of all stacks that name it (`name`); the stack that is taken down with its volumes removes it.
    Named,
    /// The same, but no stack removes it (`external`).
    External,
}

impl Scope {
    fn is_stack(&self) -> bool {
        *self == Self::Stack
    }
}

/// A tmpfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Size in bytes; `None` is the kernel's default.
    pub size: Option<u64>,
    /// Mode bits; 0o1777 by default.
    pub mode: u32,
    /// User that its root belongs to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// Group that its root belongs to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// Programs on it can be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exec: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde calls.
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A secret shown as a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecretFile {
    /// Absolute path inside, `/run/secrets/NAME` by default.
    pub target: String,
    /// Where the value comes from. The value itself is never part of a plan.
    pub source: SecretSource,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// Mode bits, 0o444 by default as in compose.
    pub mode: u32,
}

/// Where a secret's value comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// A host file, absolute.
    File(PathBuf),
    /// A variable of the environment or of `.env`.
    Environment(String),
    /// The text itself, which the stack file has.
    Content(String),
}
