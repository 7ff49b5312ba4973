//! What a `RUN` instruction asks of who runs its command.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::build::add_git::GitSource;
use crate::dockerfile::Network;

/// An error of a runner's.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Runs `RUN` instructions; this crate starts no process itself.
pub trait Runner {
    /// Starts a command in a sandbox on an overlay of the step's directories, mounted with `userxattr`.
    ///
    /// # Errors
    /// When there can be no sandbox. That there is no such program is the command's failure.
    fn start(&mut self, step: &RunStep) -> Result<Box<dyn Running>, BoxError>;

    /// Is told of a command that failed, while its files are still there.
    ///
    /// # Errors
    /// When what it does then fails.
    fn failed(&mut self, _step: &RunStep, _status: i32) -> Result<(), BoxError> {
        Ok(())
    }

    /// Finds the commit that a git repository's branch or tag means now.
    ///
    /// # Errors
    /// When the repository cannot be asked, or has no such thing.
    fn git_commit(&mut self, _source: &GitSource) -> Result<String, BoxError> {
        Err("git repositories cannot be fetched here".into())
    }

    /// Puts the files of a commit into an empty directory. Returns the commit's time, seconds since 1970.
    ///
    /// # Errors
    /// When the commit cannot be fetched.
    fn git_fetch(&mut self, _source: &GitSource, _commit: &str, _directory: &Path) -> Result<i64, BoxError> {
        Err("git repositories cannot be fetched here".into())
    }
}

/// A command that a [`Runner`] started. Dropping it ends the command.
pub trait Running {
    /// Where what it writes is read; at its end the command has ended.
    fn output(&self) -> BorrowedFd<'_>;

    /// Its exit status, or 128 and the number of the signal that ended it. Waits for its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    fn wait(&mut self) -> Result<i32, BoxError>;
}

/// What a `RUN` instruction runs, and on which overlay.
#[derive(Clone, Debug, PartialEq)]
pub struct RunStep {
    /// Layers, lowest first, relative to the data directory; at least one.
    pub layers: Vec<String>,
    /// The overlay's upper directory, relative to the data directory.
    pub upper: String,
    /// The overlay's work directory, relative to the data directory.
    pub work: String,
    /// The command line.
    pub argv: Vec<String>,
    /// The whole environment but for `HOME` and `secret_env`; `PATH` is always set.
    pub env: Vec<(String, String)>,
    /// Absolute path inside the image.
    pub cwd: String,
    /// `USER[:GROUP]`; empty is root.
    pub user: String,
    /// Which network it asks for.
    pub network: Network,
    /// It asks for all capabilities, and for no filter of system calls.
    pub insecure: bool,
    /// In order.
    pub mounts: Vec<RunMount>,
    /// Variables whose values are secrets.
    pub secret_env: Vec<(String, Secret)>,
}

/// A mount of a `RUN` instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct RunMount {
    /// Absolute path inside.
    pub target: String,
    /// Nothing can be written to it.
    pub read_only: bool,
    /// What it shows.
    pub source: RunSource,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq)]
pub enum RunSource {
    /// A directory or a file, relative to the data directory and free of links.
    Directory(String),
    /// What lies at a path in an image.
    Layers {
        /// Lowest first, relative to the data directory.
        layers: Vec<String>,
        /// The path, which links of the image may be part of.
        source: String,
        /// An empty upper directory, relative to the data directory.
        upper: String,
        /// A work directory for it.
        work: String,
        /// An empty directory to mount all of it on.
        merged: String,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; the kernel's default where absent.
        size: Option<u64>,
    },
    /// A file in memory only.
    File {
        /// Its content.
        content: Secret,
        /// Mode bits.
        mode: u32,
        /// Owner inside.
        uid: u32,
        /// Group inside.
        gid: u32,
    },
    /// The socket of an SSH agent.
    Agent {
        /// Which one.
        id: String,
        /// Where the runner makes it, relative to the data directory.
        path: String,
        /// Mode bits.
        mode: u32,
        /// Owner inside.
        uid: u32,
        /// Group inside.
        gid: u32,
    },
}

/// What must not be seen in a log or a message.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
