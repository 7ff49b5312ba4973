//! What can go wrong, each naming the operation and its object.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::reference::Reference;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the image store, the builder, or the search for a base.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a file failed.
    #[error("{operation} `{}`", path.display())]
    Io {
        /// What was tried: "create directory".
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An archive cannot be read: damaged, cut short, or not an archive.
    #[error("read archive `{archive}` {}", place(entry))]
    DamagedArchive {
        /// Its name.
        archive: String,
        /// The last entry that was read; none before the first.
        entry: Option<String>,
        /// What the reader said.
        #[source]
        source: io::Error,
    },
    /// An archive holds something that is not allowed.
    #[error("archive `{archive}`, entry `{entry}`: {problem}")]
    RefusedEntry {
        /// Its name.
        archive: String,
        /// The offending entry.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An entry of an archive could not be written.
    #[error("unpack entry `{entry}` of archive `{archive}`")]
    Unpack {
        /// Its name.
        archive: String,
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// An archive as a whole is not acceptable.
    #[error("archive `{archive}`: {problem}")]
    RefusedArchive {
        /// Its name.
        archive: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The bytes are not those that were promised.
    #[error("`{object}` has the checksum sha256:{found}, but sha256:{expected} was promised")]
    Checksum {
        /// File or address.
        object: String,
        /// Hex digits.
        expected: String,
        /// Hex digits.
        found: String,
    },
    /// Not a digest.
    #[error("`{text}` is not a sha256 digest")]
    BadDigest {
        /// What was given.
        text: String,
    },
    /// Not the name of an image.
    #[error("`{text}` is not the name of an image: {problem}")]
    BadReference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file of the store does not hold what it should.
    #[error("the store's file `{}` is damaged", path.display())]
    DamagedStore {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: serde_json::Error,
    },
    /// An image's configuration is none.
    #[error("read an image's configuration")]
    BadConfig {
        /// What the reader said.
        #[source]
        source: serde_json::Error,
    },
    /// An image that cannot be used here.
    #[error("the image cannot be used: {problem}")]
    RefusedImage {
        /// What is wrong with it.
        problem: String,
    },
    /// A layer that an image needs is not in the store.
    #[error("layer sha256:{layer} of image `{image}` is not in the store")]
    MissingLayer {
        /// Hex digits.
        layer: String,
        /// The image's id.
        image: String,
    },
    /// Others hold the store's lock and do not let go.
    #[error("`{}` has been locked by another process for a minute", path.display())]
    StoreBusy {
        /// The directory that is locked.
        path: PathBuf,
    },
    /// There is no such image.
    #[error("there is no image `{name}`")]
    UnknownImage {
        /// As it was asked for: name or id.
        name: String,
        /// The name that is most like it.
        nearest: Option<String>,
    },
    /// Several images have ids that begin like this.
    #[error("`{prefix}` could be any of the images {}", candidates.join(", "))]
    AmbiguousId {
        /// What was given.
        prefix: String,
        /// The ids, shortened.
        candidates: Vec<String>,
    },
    /// An image that several names stand for was to be removed by its id.
    #[error("image `{image}` has several names: {}", names.join(", "))]
    ManyNames {
        /// The beginning of its id.
        image: String,
        /// Its names.
        names: Vec<String>,
    },
    /// An image was to be removed that is in use.
    #[error("image `{image}` is in use by {}", users.join(", "))]
    ImageInUse {
        /// The beginning of its id.
        image: String,
        /// Who uses it.
        users: Vec<String>,
    },
    /// Two different layers share the first 24 digits.
    #[error("layer sha256:{layer} would take the place of another one with the same first digits")]
    LayerCollision {
        /// Hex digits.
        layer: String,
    },
    /// A tree holds something a layer cannot hold.
    #[error("`{}` cannot become part of a layer: {problem}", path.display())]
    RefusedFile {
        /// Path inside the tree.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file is not copied between a container and the host.
    #[error("`{}` cannot be copied: {problem}", path.display())]
    NotCopied {
        /// The path that was asked for, or one below it.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The Dockerfile says something that cannot be understood or done.
    #[error("{file}:{line}: {message}")]
    Dockerfile {
        /// Name of the Dockerfile.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong, naming the instruction.
        message: String,
        /// How to mend it.
        hint: Option<String>,
    },
    /// An instruction could not be carried out.
    #[error("{file}:{line}: `{instruction}` failed")]
    Step {
        /// Name of the Dockerfile.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The instruction as written.
        instruction: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// A command of a `RUN` instruction ended with a status other than zero.
    #[error("{file}:{line}: `{instruction}` ended with status {status}{shown}")]
    RunFailed {
        /// Name of the Dockerfile.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The instruction as written.
        instruction: String,
        /// Exit status, 128 + signal number for a signal.
        status: i32,
        /// What it wrote, and where it stands.
        shown: Box<FailedRun>,
    },
    /// The sandbox of a `RUN` instruction could not be started.
    #[error("run the command in its sandbox")]
    Runner(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A git repository could not be fetched.
    #[error("fetch the repository `{remote}`")]
    Git {
        /// Its address.
        remote: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A mount needs something that the build was not given.
    #[error("there is no {what} `{id}`")]
    NotGiven {
        /// "secret" or "SSH agent".
        what: &'static str,
        /// The id that the instruction asks for.
        id: String,
    },
    /// A build that only looks has come to something that is not there yet, or that it cannot judge.
    #[error("not everything is made yet")]
    ToBeMade,
    /// A source of `COPY` or `ADD` cannot be used.
    #[error("`{pattern}` {problem}")]
    CopySource {
        /// As written.
        pattern: String,
        /// What is wrong with it.
        problem: String,
        /// How to mend it.
        hint: Option<String>,
    },
    /// The destination of `COPY`, `ADD` or `WORKDIR` cannot be used.
    #[error("destination `{path}` {problem}")]
    CopyDestination {
        /// Path in the image.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A user or group of the image is not known.
    #[error("the image has no {kind} `{name}`")]
    UnknownUser {
        /// `user` or `group`.
        kind: &'static str,
        /// As written.
        name: String,
    },
    /// The base is not in the store.
    #[error("image `{reference}` is not in the store")]
    MissingImage {
        /// Its name.
        reference: Reference,
    },
    /// An image is not in the store.
    #[error("image {id} is not in the store")]
    MissingId {
        /// Its id.
        id: crate::digest::Digest,
    },
    /// A build has more layers than one overlay mount can name.
    #[error("the image would have more than {limit} layers")]
    TooManyLayers {
        /// The most that can be mounted.
        limit: usize,
    },
    /// A registry did not do what it was asked for.
    #[error(transparent)]
    Registry(Box<crate::registry::RegistryError>),
    /// A download failed.
    #[error("download {url}")]
    Download {
        /// From where.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// A server answered with something unexpected.
    #[error("{url}: {problem}")]
    BadAnswer {
        /// From where.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// What is shown of a command that failed.
#[derive(Debug)]
pub struct FailedRun {
    /// The last lines of what it wrote.
    pub output: Vec<String>,
    /// Lines of the Dockerfile around the instruction: number, text, whether it is part of it.
    pub source: Vec<(usize, String, bool)>,
    /// The disk is full.
    pub full: bool,
}

impl fmt::Display for FailedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.output.is_empty() {
            write!(f, "; its last lines:\n    {}", self.output.join("\n    "))?;
        }
        for (number, text, meant) in &self.source {
            let mark = if *meant { '>' } else { ' ' };
            write!(f, "\n{}", format!("  {mark} {number:>3} | {text}").trim_end())?;
        }
        Ok(())
    }
}

fn place(entry: &Option<String>) -> String {
    match entry {
        Some(entry) => format!("after entry `{entry}`"),
        None => "before its first entry".to_owned(),
    }
}

impl Error {
    /// An error of a system call.
    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.as_ref().to_owned(), source: source.into() }
    }

    const DISK_FULL: &str =
        "the disk is full: free some space, or put the data on another disk with INCEPTION_DATA_DIR";

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Self::DISK_FULL.to_owned()),
                io::ErrorKind::ReadOnlyFilesystem => {
                    Some("put the data on a disk that is writable with INCEPTION_DATA_DIR".to_owned())
                }
                _ => None,
            },
            Self::RunFailed { shown, .. } => shown.full.then(|| Self::DISK_FULL.to_owned()),
            Self::Dockerfile { hint, .. } | Self::CopySource { hint, .. } => hint.clone(),
            Self::Step { source, .. } | Self::Unpack { source, .. } => source.hint(),
            Self::DamagedArchive { source, .. } if source.kind() == io::ErrorKind::Unsupported => {
                Some("tar archives are read as they are, or compressed by gzip, zstd, xz or bzip2".to_owned())
            }
            Self::DamagedArchive { .. } | Self::Checksum { .. } => {
                Some("the file is damaged or was changed: fetch it again".to_owned())
            }
            Self::NotGiven { what: "secret", id } => Some(format!(
                "pass it with `build --secret id={id},src=FILE`, or name it in `secrets` of the service's `build`"
            )),
            Self::NotGiven { id, .. } => {
                Some(format!("pass it with `build --ssh {id}`, or name it in `ssh` of the service's `build`"))
            }
            Self::UnknownImage { nearest: Some(nearest), .. } => Some(format!("did you mean `{nearest}`?")),
            Self::UnknownImage { .. } => Some("`inception-run images` lists what there is".to_owned()),
            Self::AmbiguousId { .. } => Some("write more digits of the id".to_owned()),
            Self::ManyNames { .. } => Some("`-f` removes it with all its names".to_owned()),
            Self::ImageInUse { .. } => Some(
                "`inception-run down` removes a stack's containers; `-f` with a name takes only the name"
                    .to_owned(),
            ),
            Self::DamagedStore { .. } | Self::MissingLayer { .. } => {
                Some("`inception-run verify` lists all that is damaged".to_owned())
            }
            Self::StoreBusy { .. } => Some("`fuser` or `lsof` on it shows which one".to_owned()),
            Self::Registry(error) => error.hint(),
            Self::TooManyLayers { .. } => Some("join RUN instructions with `&&`".to_owned()),
            _ => None,
        }
    }
}

/// An error and what caused it, as one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
