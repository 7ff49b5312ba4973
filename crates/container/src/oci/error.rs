use std::io;
use std::path::PathBuf;

use super::state::Status;
use crate::cgroup;

/// What can go wrong with a container of the runtime specification.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `config.json` is no JSON, or a field has the wrong type.
    #[error("read {path}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and field.
        source: serde_json::Error,
    },
    /// A field of `config.json` contradicts the specification or itself.
    #[error("config.json: {field}: {reason}")]
    Invalid {
        /// Path of the field, as in `linux.namespaces[2].path`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `config.json` asks for what this runtime or this host cannot do.
    #[error("config.json: {field} is not supported: {reason}")]
    Unsupported {
        /// Path of the field.
        field: String,
        /// Why.
        reason: String,
    },
    /// No container id.
    #[error("invalid container id `{0}`: letters, digits and `_+-.` are allowed")]
    Id(String),
    /// The id is taken.
    #[error("container with id `{0}` already exists")]
    Exists(String),
    /// There is no such container.
    #[error("container `{0}` does not exist")]
    NotFound(String),
    /// Another command works on it for too long.
    #[error("container `{0}` is busy: another command holds its lock")]
    Busy(String),
    /// A process would not run.
    #[error("cannot exec in a paused container: `{0}`")]
    Paused(String),
    /// The operation is not allowed in this status.
    #[error("cannot {operation} container `{id}`: it is {}", .status.name())]
    Status {
        /// What was asked for.
        operation: &'static str,
        /// The container.
        id: String,
        /// Its status.
        status: Status,
    },
    /// The state file is broken.
    #[error("read {path}: it is not a container's state")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A hook failed.
    #[error("{kind} hook {path}: {reason}")]
    Hook {
        /// Which list it is in.
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// How it ended, with the last of what it wrote to standard error.
        reason: String,
    },
    /// A cgroup operation failed.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// A step of the new process, or of the crate below.
    #[error(transparent)]
    Container(#[from] crate::Error),
    /// A system call failed.
    #[error("{operation}")]
    System {
        /// What was being done, and to what.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::System { operation, source }
    }

    pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    pub(super) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), reason: reason.into() }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Container(error) => error.hint(),
            _ => None,
        }
    }
}
