//! What is watched on the host while one works on a service, and what a change is for (`develop.watch`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Hook;

/// One entry of `develop.watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The file or directory that is watched, absolute.
    pub path: PathBuf,
    /// What a change is for.
    pub action: WatchAction,
    /// What `path` is in the container, absolute; always there where files are synchronised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Paths below `path` that do not count, as in a `.dockerignore`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    /// The only paths below `path` that count; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// What is there is synchronised when the watch begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub initial_sync: bool,
    /// What is run inside after that, with [`WatchAction::SyncExec`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<Hook>,
}

/// What a change of a watched path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchAction {
    /// The service's image is built anew, and its containers are replaced if it has changed.
    #[serde(rename = "rebuild")]
    Rebuild,
    /// The service is restarted.
    #[serde(rename = "restart")]
    Restart,
    /// What has changed is made the same in the service's containers.
    #[serde(rename = "sync")]
    Sync,
    /// And then a command is run in them.
    #[serde(rename = "sync+exec")]
    SyncExec,
    /// And then the service is restarted.
    #[serde(rename = "sync+restart")]
    SyncRestart,
}

impl WatchAction {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Rebuild, Self::Restart, Self::Sync, Self::SyncExec, Self::SyncRestart];

    /// As it is written in a file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild",
            Self::Restart => "restart",
            Self::Sync => "sync",
            Self::SyncExec => "sync+exec",
            Self::SyncRestart => "sync+restart",
        }
    }

    /// Whether files are synchronised.
    #[must_use]
    pub fn syncs(self) -> bool {
        matches!(self, Self::Sync | Self::SyncExec | Self::SyncRestart)
    }
}
