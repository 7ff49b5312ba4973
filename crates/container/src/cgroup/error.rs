use std::io;
use std::path::{Path, PathBuf};

use super::delegation::Reason;
use super::systemd::bus;

/// What can go wrong with a cgroup, by the file, the value or the field that it was about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error("{operation}")]
    System {
        /// What was being done, to which file, with which value.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A field of `linux.resources` or of `linux.cgroupsPath` that makes no sense.
    #[error("`{field}`: {problem}")]
    Invalid {
        /// The field as config.json has it, with the path to it.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// A field that asks for what this kernel interface does not have.
    #[error("`{field}` cannot be enforced: {reason}")]
    Unsupported {
        /// The field as config.json has it, with the path to it.
        field: String,
        /// Why.
        reason: String,
    },
    /// A limit whose controller the cgroup does not have.
    #[error("`{file}` of cgroup {} cannot be written: {reason} (controller `{controller}`)", cgroup.display())]
    Controller {
        /// The file that is not there.
        file: String,
        /// Whose file it would be.
        controller: String,
        /// The cgroup.
        cgroup: PathBuf,
        /// Where the controller is instead.
        reason: Reason,
    },
    /// No cgroup can be made for the container, and something was asked for that needs one.
    #[error("{wanted} needs a cgroup, and none can be made: {reason}")]
    Nowhere {
        /// What needs it.
        wanted: String,
        /// Why there is none.
        reason: Reason,
    },
    /// The cgroup belongs to somebody else already.
    #[error("cgroup {} holds processes already", .0.display())]
    InUse(PathBuf),
    /// Nothing that is put into the cgroup would run.
    #[error("{}: container's cgroup unexpectedly frozen", .0.display())]
    Frozen(PathBuf),
    /// Something did not happen in time.
    #[error("{0} did not happen in time")]
    Deadline(String),
    /// systemd did not do what it was asked.
    #[error("ask systemd to {operation}")]
    Systemd {
        /// What it was asked.
        operation: String,
        /// What came back.
        source: bus::Error,
    },
}

impl Error {
    pub(super) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::System { operation, source }
    }

    /// Something done with a file or directory: "write `max` to", "open".
    pub(super) fn at(operation: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let operation = format!("{operation} {}", path.display());
        move |source| Self::System { operation, source }
    }

    pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    /// The kernel's answer, where there is one.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::System { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Controller { reason, .. } | Self::Nowhere { reason, .. } => Some(reason.fix().into()),
            Self::InUse(_) | Self::Frozen(_) => Some("give the container a `cgroupsPath` of its own".into()),
            Self::Systemd { source, .. } => source.hint(),
            _ => None,
        }
    }
}
