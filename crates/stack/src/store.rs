//! The store as commands see it: what takes up room, what may go, whether it is whole. Beside images these are the
//! writable layers and volumes of stacks, whose locks only this crate knows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use image::{Change, Image, Store};
use serde::{Deserialize, Serialize};

use crate::paths::{self, Paths};
use crate::remote::{Context, RemoteError};
use crate::storage;

pub use image::{
    CacheMount, CacheRoom, ChangeKind, Digest, Finding, HistoryLine, ImageRoom, ImageSummary, NameLine,
    PrunePolicy, Pruned, Reference, Removed, Room, Usage, Verification,
};

/// Files of a stack: the writable layer of a container, or a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Stack and container, or stack and volume: `shop/web-2`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// The stack runs.
    pub active: bool,
}

/// What takes up room.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Images and the build cache.
    pub store: Usage,
    /// Directories of `RUN --mount=type=cache`.
    pub cache_mounts: Vec<CacheMount>,
    /// Writable layers of containers.
    pub containers: Vec<Files>,
    /// Named volumes.
    pub volumes: Vec<Files>,
}

/// What to delete.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PruneOptions {
    /// Of the store.
    pub policy: PrunePolicy,
    /// The volumes of stacks that do not run, too.
    pub volumes: bool,
    /// Say what would go, and delete nothing.
    pub dry_run: bool,
}

/// What was deleted, or would be.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PruneReport {
    /// Of the store.
    pub store: Pruned,
    /// What stacks left that were killed.
    pub containers: Vec<Files>,
    /// Volumes.
    pub volumes: Vec<Files>,
}

impl PruneReport {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        let files = self.containers.iter().chain(&self.volumes);
        self.store.bytes + files.map(|files| files.size).sum::<u64>()
    }
}

/// The image that `text` means: a name, an id, or the beginning of one id only.
///
/// # Errors
/// When there is none, or more than one.
pub fn find(paths: &Paths, text: &str) -> Result<Image, RemoteError> {
    Ok(Store::reader(&paths.data).find(text)?)
}

/// Whether an image has this name.
///
/// # Errors
/// When the text is no name, or the store cannot be read.
pub fn has(paths: &Paths, name: &str) -> Result<bool, RemoteError> {
    let name = Reference::from_str(name)?;
    Ok(Store::reader(&paths.data).image(&name)?.is_some())
}

/// Says that this process uses nothing any more of what it has found and made: whose containers run on it says so itself.
///
/// # Errors
/// When that cannot be written down.
pub fn let_go(paths: &Paths) -> Result<(), RemoteError> {
    Ok(paths.store()?.use_only(BTreeSet::new())?)
}

/// All images, sorted by id.
///
/// # Errors
/// When the store cannot be read.
pub fn images(paths: &Paths) -> Result<Vec<ImageSummary>, RemoteError> {
    Ok(Store::reader(&paths.data).images()?)
}

/// How an image came to be, the newest instruction first.
///
/// # Errors
/// When the store cannot be read.
pub fn history(paths: &Paths, image: &Image) -> Result<Vec<HistoryLine>, RemoteError> {
    Ok(Store::reader(&paths.data).history(image)?)
}

/// What images and the build cache take, and who uses them; quick, and without the sizes of containers.
///
/// # Errors
/// When the store cannot be read.
pub fn usage(paths: &Paths) -> Result<Usage, RemoteError> {
    Ok(Store::reader(&paths.data).usage()?)
}

/// Gives an image another name.
///
/// # Errors
/// When there is no such image, or the name is none.
pub fn tag(paths: &Paths, source: &str, target: &str) -> Result<(), RemoteError> {
    let target = Reference::from_str(target)?;
    storage::run(paths, |store| {
        let image = store.find(source)?;
        Ok(store.tag(&target, &image.id)?)
    })
}

/// Takes away a name of an image, and the image with the last one.
///
/// # Errors
/// When there is no such image, or it is in use.
pub fn remove(paths: &Paths, text: &str, force: bool) -> Result<Removed, RemoteError> {
    storage::run(paths, |store| Ok(store.remove_image(text, force)?))
}

/// What a container has changed about its image.
///
/// # Errors
/// When there is no such container.
pub fn changes(paths: &Paths, stack: &str, container: &str) -> Result<Vec<Change>, RemoteError> {
    let upper = format!("{}/u", crate::spec::container_directory(stack, container));
    let image = Store::reader(&paths.data).image_of(&format!("{stack}/{container}"))?;
    let image = image.ok_or_else(|| {
        RemoteError::message(format!("stack `{stack}` has no container `{container}`"))
            .or_hint("`inception-run ps` lists those that there are")
    })?;
    storage::run(paths, |store| {
        let gone = || RemoteError::message("the container's image is gone");
        let image = store.image_by_id(&image)?.ok_or_else(gone)?;
        if !Path::new(&upper).is_dir() {
            return Err(RemoteError::message(format!("container `{container}` has not been started yet")));
        }
        Ok(store.changes(&image.layers, Path::new(&upper), &crate::spec::OWN_FILES)?)
    })
}

/// Bytes that a container has written over its image's files.
///
/// # Errors
/// When they cannot be looked at.
pub(crate) fn written_by(paths: &Paths, stack: &str, container: &str) -> Result<u64, RemoteError> {
    let upper = format!("{}/u", crate::spec::container_directory(stack, container));
    storage::run(paths, |_store| Ok(image::tree_size(Path::new(&upper))?))
}

/// The image that a container runs on, and how that came to be, the newest instruction first; `None` where the store
/// does not have it any more.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn image_of(
    paths: &Paths,
    stack: &str,
    container: &str,
) -> Result<Option<(Image, Vec<HistoryLine>)>, RemoteError> {
    let store = Store::reader(&paths.data);
    let Some(id) = store.image_of(&format!("{stack}/{container}"))? else { return Ok(None) };
    let Some(image) = store.image_by_id(&id)? else { return Ok(None) };
    let lines = store.history(&image)?;
    Ok(Some((image, lines)))
}

/// Looks whether the store is whole; `progress` hears of each layer that is read.
///
/// # Errors
/// When it cannot be looked at.
pub fn verify(
    paths: &Paths,
    quick: bool,
    progress: &mut dyn FnMut(String),
) -> Result<Verification, RemoteError> {
    let worker = storage::start(paths, |store, tell: &mut dyn FnMut(String)| {
        Ok(store.verify(quick, &mut |layer| tell(layer.to_owned()))?)
    })?;
    worker.finish(progress)
}

/// What takes up room.
///
/// # Errors
/// When it cannot be looked at.
pub fn report(paths: &Paths) -> Result<Report, RemoteError> {
    let running = running(paths)?;
    storage::run(paths, |store| {
        let files = |kind: &str| files(kind, |stack| Some(running.contains(stack)));
        Ok(Report {
            store: store.usage()?,
            cache_mounts: store.cache_mounts()?,
            containers: files("c")?,
            volumes: files("v")?,
        })
    })
}

/// Deletes what nobody uses.
///
/// # Errors
/// When it cannot be deleted.
pub fn prune(paths: &Paths, options: &PruneOptions) -> Result<PruneReport, RemoteError> {
    let mut locked = Vec::new();
    for stack in stacks(paths)? {
        // No supervisor comes to be while we have its lock.
        if let Some(lock) = crate::client::lock(paths, &stack)? {
            locked.push((stack, lock));
        }
    }
    let idle = |stack: &str| locked.iter().any(|(name, _)| name == stack).then_some(false);
    let report = storage::run(paths, |store| {
        let containers = files("c", idle)?;
        let volumes = if options.volumes { files("v", idle)? } else { Vec::new() };
        if !options.dry_run {
            for (stack, _lock) in &locked {
                image::remove_tree(&Path::new("c").join(stack))?;
                if options.volumes {
                    image::remove_tree(&Path::new("v").join(stack))?;
                }
            }
        }
        Ok(PruneReport { store: store.prune(&options.policy, options.dry_run)?, containers, volumes })
    })?;
    for (stack, _lock) in locked {
        let removed = crate::lock::remove_runtime(&paths.stack(&stack));
        removed.context(|| format!("remove the runtime directory of stack `{stack}`"))?;
    }
    Ok(report)
}

/// Names of the stacks that have files.
fn stacks(paths: &Paths) -> Result<BTreeSet<String>, RemoteError> {
    let mut stacks = BTreeSet::new();
    for kind in ["c", "v"] {
        stacks.extend(names(&paths.data.join(kind))?);
    }
    Ok(stacks)
}

/// Names of the stacks that have a supervisor.
fn running(paths: &Paths) -> Result<BTreeSet<String>, RemoteError> {
    let mut running = BTreeSet::new();
    for stack in stacks(paths)? {
        if crate::client::connect(paths, &stack)?.is_some() {
            running.insert(stack);
        }
    }
    Ok(running)
}

/// The directories of `c` or `v`, for stacks of which `active` says something.
fn files(kind: &str, active: impl Fn(&str) -> Option<bool>) -> Result<Vec<Files>, RemoteError> {
    let mut list = Vec::new();
    for stack in names(Path::new(kind))? {
        let Some(active) = active(&stack) else { continue };
        for name in names(&Path::new(kind).join(&stack))? {
            let name = format!("{stack}/{name}");
            let path = Path::new(kind).join(&name);
            // Of a container, overlayfs' work directory is nothing that anybody wrote.
            let size = match kind {
                "c" => names(&path)?
                    .iter()
                    .filter(|part| *part != "w")
                    .map(|part| image::tree_size(&path.join(part)))
                    .sum::<Result<u64, _>>()?,
                _ => image::tree_size(&path)?,
            };
            list.push(Files { name, size, active });
        }
    }
    Ok(list)
}

/// Names of the directories there; beside a stack's volumes lies a file that is none.
fn names(directory: &Path) -> Result<Vec<String>, RemoteError> {
    let is_directory = |path: &&PathBuf| path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(paths::entries(directory)?.iter().filter(is_directory).map(name).collect())
}
