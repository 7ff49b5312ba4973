//! Deleting what nobody uses: decided from the store's contents as data, carried out under its lock.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::build::CacheMount;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::scratch::{self, Scratch};
use crate::store::Store;
use crate::store::contents::{Contents, KeptEntry};
use crate::store::layers::short;
use crate::store::lease::Hold;
use crate::store::lock::Lock;
use crate::store::names::Names;

/// What may be deleted. What is in use never is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PrunePolicy {
    /// Images that have a name, too, and the whole build cache. Directories of `RUN --mount=type=cache` are of it.
    pub all: bool,
    /// Only what has not come or been used since then.
    pub before: Option<SystemTime>,
    /// So many bytes of the build cache stay: those that were used last.
    pub keep_cache: Option<u64>,
}

/// What is deleted, or would be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// Names.
    pub names: Vec<Reference>,
    /// Images.
    pub images: Vec<Digest>,
    /// Entries of the build cache.
    pub cache: Vec<Digest>,
    /// Directories of `RUN --mount=type=cache`.
    pub cache_mounts: Vec<CacheMount>,
    /// Layers, by the digits that name them.
    pub layers: Vec<String>,
    /// Size of the layers and of the cache directories, bytes.
    pub bytes: u64,
}

/// What the removal of an image by one of its names or its id did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Removed {
    /// The names that are gone.
    pub untagged: Vec<Reference>,
    /// The image, if it is gone too.
    pub image: Option<Digest>,
    /// Layers that no other image, cache entry or container had, by the digits that name them.
    pub layers: Vec<String>,
    /// Size of the layers, bytes.
    pub bytes: u64,
}

impl Store {
    /// Deletes what the policy says and nobody uses. Only says what that is if `dry_run`.
    pub fn prune(&self, policy: &PrunePolicy, dry_run: bool) -> Result<Pruned> {
        let scratch = Scratch::new(&self.tmp())?;
        // Measured before anybody has to wait. They have locks of their own.
        let mounts = self.cache_mounts()?;
        let lock = Lock::exclusive(self.data_dir())?;
        let contents = Contents::read(self)?;
        let mut doomed = plan(&contents, &mounts, policy);
        if !dry_run {
            self.take_away(&contents, &doomed, &scratch)?;
        }
        // Nobody has to wait while files are deleted.
        drop(lock);
        if !dry_run {
            self.take_away_mounts(&mut doomed, &scratch)?;
        }
        Ok(doomed)
    }

    /// Takes away the cache directories that are doomed, but for those that a command has begun to use.
    fn take_away_mounts(&self, doomed: &mut Pruned, scratch: &Scratch) -> Result<()> {
        for mount in std::mem::take(&mut doomed.cache_mounts) {
            if self.take_cache_mount(&mount, scratch)? {
                doomed.cache_mounts.push(mount);
            } else {
                doomed.bytes -= mount.size;
            }
        }
        Ok(())
    }

    /// Takes away a name, and with the last one the image; an id takes all. `force` takes several names, and a name
    /// even of what is in use.
    pub fn remove_image(&self, text: &str, force: bool) -> Result<Removed> {
        let scratch = Scratch::new(&self.tmp())?;
        let lock = Lock::exclusive(self.data_dir())?;
        let contents = Contents::read(self)?;
        let removed = removal(&contents, text, force)?;
        let doomed = Pruned {
            names: removed.untagged.clone(),
            images: removed.image.clone().into_iter().collect(),
            layers: removed.layers.clone(),
            bytes: removed.bytes,
            ..Pruned::default()
        };
        self.take_away(&contents, &doomed, &scratch)?;
        drop(lock);
        Ok(removed)
    }

    /// Takes away what is doomed; the caller has the lock for itself. What refers goes before what is referred to, and
    /// is gone on disk before that.
    fn take_away(&self, contents: &Contents, doomed: &Pruned, scratch: &Scratch) -> Result<()> {
        for name in &doomed.names {
            scratch::remove_file(&self.tag_path(name))?;
        }
        self.sync_after(&doomed.names, "tags")?;
        for id in &doomed.images {
            let path = self.image_path(id);
            // With the manifest that a registry had it by.
            scratch::remove_file(&path.with_extension("manifest"))?;
            scratch::remove_file(&path)?;
        }
        self.sync_after(&doomed.images, "images")?;
        for key in &doomed.cache {
            scratch::remove_file(&self.data_dir().join("cache").join(format!("{}.json", key.hex())))?;
        }
        self.sync_after(&doomed.cache, "cache")?;
        for name in &doomed.layers {
            let Some(layer) = contents.layers.get(name) else { continue };
            if layer.has_directory {
                let path = self.data_dir().join("l").join(name);
                rustix::fs::rename(&path, scratch.path().join(name))
                    .map_err(|errno| Error::io("move away layer", path, errno))?;
            }
            // After the layer: one that is seen has its record.
            layer.files.iter().try_for_each(|path| scratch::remove_file(path))?;
        }
        Ok(())
    }

    fn sync_after<T>(&self, removed: &[T], dir: &str) -> Result<()> {
        if removed.is_empty() { Ok(()) } else { scratch::sync_dir(&self.data_dir().join(dir)) }
    }
}

/// Something of the build cache.
enum Cached<'a> {
    Entry(&'a Digest, &'a KeptEntry),
    Mount(&'a CacheMount),
}

impl Cached<'_> {
    fn used(&self) -> SystemTime {
        match self {
            Self::Entry(_, entry) => entry.used,
            Self::Mount(mount) => mount.last_used,
        }
    }
}

/// What goes by a policy.
fn plan(contents: &Contents, mounts: &[CacheMount], policy: &PrunePolicy) -> Pruned {
    let is_old = |time: SystemTime| policy.before.is_none_or(|before| time < before);
    let mut used = contents.held_images();
    if !policy.all {
        used.extend(contents.tagged_images());
    }
    let (gone, kept): (Vec<_>, Vec<_>) =
        contents.images.iter().partition(|(id, image)| !used.contains(id) && is_old(image.since));
    let images: BTreeSet<&Digest> = gone.into_iter().map(|(id, _)| id).collect();
    // With names that stand for nothing.
    let goes = |id: &Digest| images.contains(id) || !contents.images.contains_key(id);
    let names = contents.tags.iter().filter(|(_, id)| goes(id)).map(|(name, _)| name.clone()).collect();

    let mut needed = contents.layers_of(kept.into_iter().map(|(id, _)| id));
    needed.extend(contents.held_layers());
    let entries = contents.cache.iter().map(|(key, entry)| Cached::Entry(key, entry));
    let idle = mounts.iter().filter(|mount| !mount.in_use).map(Cached::Mount);
    let mut cache: Vec<Cached> = entries.chain(idle).collect();
    cache.sort_by_key(|cached| std::cmp::Reverse(cached.used()));
    let mut room = policy.keep_cache;
    let mut has_room = |size: u64| match &mut room {
        Some(room) if size <= *room => {
            *room -= size;
            true
        }
        // Older ones do not take the place of a large one.
        Some(room) => {
            *room = 0;
            false
        }
        None => false,
    };
    let mut doomed = Pruned { names, images: images.into_iter().cloned().collect(), ..Pruned::default() };
    let mut cached = BTreeSet::new();
    for item in cache {
        let is_young = !is_old(item.used());
        match item {
            Cached::Entry(key, entry) => {
                let layer = entry.layer.as_ref().map(short);
                let costs = layer.filter(|layer| !needed.contains(layer) && !cached.contains(layer));
                // What images have anyway costs nothing to keep.
                let is_free = costs.is_none() && !policy.all && policy.keep_cache.is_none();
                if is_young || is_free || has_room(contents.size_of(costs)) {
                    cached.extend(layer);
                } else {
                    doomed.cache.push(key.clone());
                }
            }
            Cached::Mount(mount) if is_young || has_room(mount.size) => {}
            Cached::Mount(mount) => doomed.cache_mounts.push(mount.clone()),
        }
    }
    needed.extend(cached);
    doomed.layers =
        contents.layers.keys().filter(|layer| !needed.contains(layer.as_str())).cloned().collect();
    doomed.bytes = contents.size_of(doomed.layers.iter().map(String::as_str))
        + doomed.cache_mounts.iter().map(|mount| mount.size).sum::<u64>();
    doomed.cache.sort();
    doomed.cache_mounts.sort_by(|a, b| (&a.id, &a.name).cmp(&(&b.id, &b.name)));
    doomed
}

/// What goes when an image is removed, by Docker's rules.
fn removal(contents: &Contents, text: &str, force: bool) -> Result<Removed> {
    let (id, name) = contents.find(text)?;
    let names = contents.names_of(&id);
    let untagged = |names: &Names| names.all().cloned().collect();
    match name.map(|name| names.going_with(&name)) {
        Some(going) if going.len() < names.len() => {
            return Ok(Removed { untagged: untagged(&going), ..Removed::default() });
        }
        Some(_) => {}
        None if names.tags.len() > 1 && !force => {
            let names = names.tags.iter().map(ToString::to_string).collect();
            return Err(Error::ManyNames { image: id.short().to_owned(), names });
        }
        // Without a name nobody could ask for it any more: that takes a name to be said.
        None => in_use(contents, &id).map_or(Ok(()), Err)?,
    }
    let untagged = untagged(&names);
    match in_use(contents, &id) {
        // The image stays without a name until nobody uses it.
        Some(_) if force => return Ok(Removed { untagged, ..Removed::default() }),
        Some(error) => return Err(error),
        None => {}
    }
    let mut needed = contents.layers_of(contents.images.keys().filter(|other| **other != id));
    needed.extend(contents.held_layers());
    needed.extend(contents.cache.values().filter_map(|entry| entry.layer.as_ref().map(short)));
    let own = contents.layers_of([&id]);
    let free =
        own.into_iter().filter(|layer| !needed.contains(layer) && contents.layers.contains_key(*layer));
    let layers: Vec<String> = free.map(str::to_owned).collect();
    let bytes = contents.size_of(layers.iter().map(String::as_str));
    Ok(Removed { untagged, image: Some(id), layers, bytes })
}

/// The error for an image that somebody uses, and who that is.
fn in_use(contents: &Contents, id: &Digest) -> Option<Error> {
    let mut users = BTreeSet::new();
    for hold in contents.holds.iter().filter(|hold| hold.image() == Some(id)) {
        users.insert(match hold {
            Hold::Container { container, .. } => format!("container `{container}`"),
            _ => "a build or a stack that runs".to_owned(),
        });
    }
    // Whose container it is says more.
    if users.len() > 1 {
        users.remove("a build or a stack that runs");
    }
    let users: Vec<String> = users.into_iter().collect();
    (!users.is_empty()).then(|| Error::ImageInUse { image: id.short().to_owned(), users })
}

#[cfg(test)]
mod tests;
