//! Images and root file systems as files: `save`, `load`, `import`, `export` and `commit`, in storage workers.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use image::transfer::{Incoming, SavedImage, unpack_layout};
use image::{CommitOptions, ContainerConfig, Digest, Image, Limits, Reference, Store};

use crate::paths::Paths;
use crate::remote::{Context, RemoteError};
use crate::storage::{self, Handle};

pub use image::transfer::{ArchiveFormat, Compression, Loaded};

/// Where images come from.
#[derive(Debug)]
pub enum Source {
    /// An open file or pipe.
    File(File),
    /// The directory of an OCI layout.
    Directory(PathBuf),
}

/// Where images go.
#[derive(Debug)]
pub enum Target {
    /// An open file or pipe.
    File(File),
    /// The directory of an OCI layout, which is there and empty.
    Directory(PathBuf),
}

/// Loads all images of an archive or an OCI layout; `name` is what messages call it.
///
/// # Errors
/// When it is neither, or anything in it is not what it should be; the store's own.
pub fn load(paths: &Paths, source: Source, name: &str) -> Result<Vec<Loaded>, RemoteError> {
    let handle = match &source {
        Source::Directory(path) => {
            Some(Handle::open(&path.canonicalize().context(|| format!("open {name}"))?)?)
        }
        Source::File(_) => None,
    };
    storage::run(paths, |store| {
        let incoming = match (source, &handle) {
            (Source::File(file), _) => Incoming::Archive(file),
            (Source::Directory(_), Some(handle)) => Incoming::Directory(handle.path().to_owned()),
            (Source::Directory(path), None) => Incoming::Directory(path),
        };
        Ok(store.load(incoming, name, &Limits::default())?)
    })
}

/// Writes images, each named by a name, an id, or the beginning of one.
///
/// # Errors
/// When there is no such image, or the target cannot be written.
pub fn save(
    paths: &Paths,
    images: &[String],
    format: ArchiveFormat,
    target: Target,
) -> Result<(), RemoteError> {
    let reader = Store::reader(&paths.data);
    let mut saved: Vec<SavedImage> = Vec::new();
    for text in images {
        let image = reader.find(text)?;
        // One that was named by its id goes without a name.
        let name = Reference::from_str(text).ok().filter(|name| name.digest().is_none());
        let name =
            name.filter(|name| reader.image(name).ok().flatten().is_some_and(|named| named.id == image.id));
        match saved.iter_mut().find(|saved| saved.image.id == image.id) {
            Some(known) => known.names.extend(name),
            None => saved.push(SavedImage { image, names: name.into_iter().collect() }),
        }
    }
    match target {
        Target::File(mut file) => {
            storage::run(paths, |store| store.save(&saved, format, &mut file).map_err(of_target))
        }
        // The worker cannot write where only the user can: it sends the archive, and we make files of it.
        Target::Directory(path) => {
            let (read, write) = io::pipe()?;
            let mut write = Some(File::from(OwnedFd::from(write)));
            let worker = storage::start(paths, |store, _: &mut dyn FnMut(())| {
                let mut out = write.take().ok_or_else(|| RemoteError::message("the pipe is gone"))?;
                Ok(store.save(&saved, format, &mut out)?)
            })?;
            drop(write);
            let unpacked = unpack_layout(BufReader::with_capacity(1 << 18, read), &path);
            // What the worker says of itself is the reason for what we have seen.
            worker.finish::<(), ()>(|()| {})?;
            Ok(unpacked?)
        }
    }
}

/// Makes an image of a root file system's archive, with the configuration that `changes` (instructions of a
/// Dockerfile) say. Returns its id.
///
/// # Errors
/// When a change or the name is none; when the archive is none.
pub fn import(
    paths: &Paths,
    archive: File,
    name: &str,
    reference: Option<&str>,
    changes: &[String],
    message: Option<&str>,
) -> Result<String, RemoteError> {
    let reference = reference.map(Reference::from_str).transpose()?;
    let config = ContainerConfig::default().changed(changes)?;
    let message = message.map_or_else(|| format!("Imported from {name}"), str::to_owned);
    storage::run(paths, |store| {
        let image = store.import_rootfs(&archive, name, config, &message, reference.as_ref())?;
        Ok(image.id.to_string())
    })
}

/// A container of a stack, and the image that it runs.
#[derive(Clone, Debug)]
pub struct Container<'a> {
    /// The stack.
    pub stack: &'a str,
    /// The container: a service's name, or `NAME-2` for a further one.
    pub name: &'a str,
    /// Its image's id.
    pub image: &'a str,
}

impl Container<'_> {
    /// Its image, and the directory of what it has changed.
    fn files(&self, store: &Store) -> Result<(Image, PathBuf), RemoteError> {
        let id = Digest::from_str(self.image)?;
        let gone = || RemoteError::message("the container's image is gone");
        let image = store.image_by_id(&id)?.ok_or_else(gone)?;
        let upper = format!("{}/u", crate::spec::container_directory(self.stack, self.name));
        if !Path::new(&upper).is_dir() {
            let text = format!("container `{}` has not been started yet", self.name);
            return Err(RemoteError::message(text).or_hint("`inception-run up -d` starts it"));
        }
        Ok((image, upper.into()))
    }
}

/// Exit code of a command whose output nobody reads any more, as of a program that SIGPIPE ended.
pub const UNREAD: i32 = 141;

/// An error of writing an archive. Its target is the caller's: the disk that is full is not the data directory's.
fn of_target(error: image::Error) -> RemoteError {
    let written = match &error {
        image::Error::Io { operation, source, .. } if operation.starts_with("write") => Some(source.kind()),
        _ => None,
    };
    let mut told = RemoteError::from(error);
    match written {
        Some(io::ErrorKind::BrokenPipe) => told.exit_code = UNREAD,
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            told.hint = Some("there is no room left where the archive is written to".to_owned());
        }
        _ => {}
    }
    told
}

/// Writes the file system of a container, whether it runs or not, as one archive without volumes.
///
/// # Errors
/// When it has not been started yet, or the target cannot be written.
pub fn export(paths: &Paths, container: &Container<'_>, mut to: File) -> Result<(), RemoteError> {
    storage::run(paths, |store| {
        let (image, upper) = container.files(store)?;
        store.write_rootfs(&image.layers, Some(&upper), &mut to).map_err(of_target)
    })
}

/// What `commit` writes into the new image.
#[derive(Clone, Debug, Default)]
pub struct Commit<'a> {
    /// The new image's name.
    pub name: &'a str,
    /// Who made it.
    pub author: Option<String>,
    /// A remark.
    pub message: Option<String>,
    /// Instructions of a Dockerfile.
    pub changes: &'a [String],
}

/// Makes an image of what a container has changed so far. Returns its id.
///
/// # Errors
/// When a change or the name is none, or the copy fails.
pub fn commit(paths: &Paths, container: &Container<'_>, commit: &Commit<'_>) -> Result<String, RemoteError> {
    let reference = Reference::from_str(commit.name)?;
    storage::run(paths, |store| {
        let (base, upper) = container.files(store)?;
        let comment = commit.message.clone();
        let options = CommitOptions {
            reference: Some(reference),
            author: commit.author.clone(),
            comment: comment.unwrap_or_else(|| format!("commit of `{}`", container.name)),
            config: Some(base.config.config.changed(commit.changes)?),
        };
        Ok(store.commit(&base, &upper, &options)?.id.to_string())
    })
}
