use std::io;

use init::obstacle::Obstacle;
use init::report::{Failure, Stage};

/// What can go wrong between a description and a running process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call of the parent failed.
    #[error("{operation}")]
    System {
        /// What was being done, and to what.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The child could not become its program.
    #[error("{failure}")]
    Child {
        /// The step, as the child reported it.
        failure: Failure,
        /// The kernel's answer.
        source: Option<io::Error>,
    },
    /// The child died without a word.
    #[error("the new process ended before it could start its program")]
    Silent,
    /// The sandbox whose namespace was to be shared is gone.
    #[error("the container whose namespace it shares has ended")]
    PartnerEnded,
    /// An ordinary user has no range of subordinate ids.
    #[error("no subordinate {kind} range for `{user}` in {file}")]
    NoSubordinateIds {
        /// `uid` or `gid`.
        kind: &'static str,
        /// The user's name.
        user: String,
        /// `/etc/subuid` or `/etc/subgid`.
        file: &'static str,
    },
    /// Root of a user namespace that has too few ids.
    #[error("this user namespace has no ids for containers: {file} lacks {first} to {last}")]
    UnmappedIds {
        /// `/proc/self/uid_map` or `/proc/self/gid_map`.
        file: &'static str,
        /// The first id that would be used.
        first: u32,
        /// The last one.
        last: u32,
    },
    /// `newuidmap` or `newgidmap` failed.
    #[error("{program} refused the id map: {output}")]
    MapHelper {
        /// Which of the two.
        program: &'static str,
        /// What it printed.
        output: String,
    },
    /// `newuidmap` or `newgidmap` could not be executed.
    #[error("run {program}")]
    NoMapHelper {
        /// Which of the two.
        program: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something about a cgroup.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    /// A name that is no capability.
    #[error("unknown capability `{0}`")]
    UnknownCapability(String),
    /// The seccomp rules cannot be enforced.
    #[error("make the seccomp filter")]
    Seccomp(#[source] crate::seccomp::Error),
}

impl Error {
    pub(crate) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::System { operation, source }
    }

    pub(crate) fn child(failure: Failure) -> Self {
        let source = failure.os_error();
        Self::Child { failure, source }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Cgroup(error) => error.hint(),
            Self::NoSubordinateIds { user, .. } => Some(format!(
                "give the user a range: `sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` \
                 (any 65536 ids that no other entry of /etc/subuid and /etc/subgid covers)"
            )),
            Self::UnmappedIds { .. } => Some(
                "run it as an ordinary user, or as root outside of this user namespace; `inception-run doctor` shows \
                 what there is"
                    .to_owned(),
            ),
            Self::MapHelper { program, .. } | Self::NoMapHelper { program, .. } => Some(format!(
                "{program} comes with the package `uidmap` (Debian, Ubuntu) or `shadow` and must be \
                 set-user-ID root or have file capabilities; `inception-run doctor` shows what is missing"
            )),
            Self::System { operation, source }
                if operation == "create user namespace"
                    && matches!(source.raw_os_error(), Some(libc::EPERM | libc::ENOSPC | libc::EACCES)) =>
            {
                Some("unprivileged user namespaces are disabled here; `inception-run doctor` shows the fix".into())
            }
            Self::Child { failure, .. } if failure.stage == Stage::Rootfs => Some(
                "overlayfs in a user namespace needs Linux 5.12 or newer and a data directory on a file system \
                 that it accepts (ext4, xfs, btrfs, tmpfs; not overlayfs itself); INCEPTION_DATA_DIR chooses another"
                    .into(),
            ),
            Self::Child { failure, .. } if failure.stage == Stage::Exec => execution_hint(failure),
            Self::Child { failure, .. } if failure.stage == Stage::Landlock => match failure.errno {
                libc::ENOSYS | libc::EOPNOTSUPP | 0 => Some(
                    "Landlock as it is needed here came with Linux 6.2; where the kernel has it and it is off, add \
                     `landlock` to its parameter `lsm=`"
                        .into(),
                ),
                _ => None,
            },
            _ => None,
        }
    }

    /// The exit status for a command that failed like this: 127, 126 or 125, as with Docker.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Child { failure, .. } => failure.exit_code(),
            _ => 125,
        }
    }
}

/// What to do about a program that cannot be executed.
fn execution_hint(failure: &Failure) -> Option<String> {
    let program = &failure.detail;
    match &failure.obstacle {
        Some(Obstacle::Interpreter(name)) if name.ends_with('\r') => Some(format!(
            "the lines of the script end as on Windows; `sed -i 's/\\r$//' {program}` in a `RUN` converts it, or the same on the \
             file that is copied or mounted"
        )),
        Some(Obstacle::Interpreter(name)) => Some(format!(
            "install what `{name}` belongs to, or let the script begin with an interpreter that the image has, such as \
             `#!/bin/sh`"
        )),
        Some(Obstacle::Loader(_)) => Some(
            "a program runs where its C library is: build it in the image that it is for (Alpine has musl, Debian \
             glibc), or statically"
                .into(),
        ),
        Some(Obstacle::Format) => Some(format!(
            "let `#!/bin/sh` be the first that is in the file, without an empty line before it, or name the shell: \
             `[\"sh\", \"{program}\"]`"
        )),
        Some(Obstacle::Machine) => Some("it has to be built for the processor of this machine".into()),
        Some(Obstacle::Mode) => Some(format!(
            "`RUN chmod +x {program}` or `COPY --chmod=755` in the Dockerfile; `chmod +x` on the file where it is mounted"
        )),
        Some(Obstacle::Directory) => None,
        None if !failure.is_missing() => None,
        None if program.contains(char::is_whitespace) => {
            Some("in a list, each argument is an item of its own: `[\"nginx\", \"-g\", \"daemon off;\"]`".into())
        }
        None if program.contains('/') => {
            Some("look whether the image has it there, and whether a volume is mounted over its directory".into())
        }
        None => Some("look how its name is written, and whether the image has the package that it is in".into()),
    }
}
