//! Images into the store: all that an archive or a directory holds, or none of it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};

use super::bundle::{Bundle, Incoming};
use super::{docker, layout};
use crate::archive::Limits;
use crate::config::Image;
use crate::digest::{Digest, LayerId};
use crate::error::Result;
use crate::layer::{LayerSource, StagedLayer};
use crate::reference::Reference;
use crate::store::Store;

/// Layers that are unpacked at the same time, at most: each has three threads.
const MOST_AT_ONCE: usize = 4;

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// The image's id.
    pub id: Digest,
    /// The names that it has got.
    pub names: Vec<Reference>,
}

/// An image of a bundle, with where its layers are.
pub(super) struct Wanted {
    image: Image,
    raw: Vec<u8>,
    names: Vec<Reference>,
    blobs: Vec<(LayerId, Blob)>,
}

/// A layer of a bundle.
pub(super) struct Blob {
    pub(super) path: String,
    /// Digest and size, as it lies there, if they are known.
    pub(super) digest: Option<(Digest, u64)>,
}

impl Wanted {
    pub(super) fn new(
        bundle: &Bundle,
        image: Image,
        raw: Vec<u8>,
        blobs: Vec<Blob>,
        names: Vec<Reference>,
    ) -> Result<Self> {
        let diff_ids = &image.config.rootfs.diff_ids;
        if diff_ids.len() != blobs.len() {
            let problem =
                format!("an image has {} layers, but names {} of them", blobs.len(), diff_ids.len());
            return Err(bundle.refuse(problem));
        }
        let blobs = diff_ids.iter().cloned().zip(blobs).collect();
        Ok(Self { image, raw, names, blobs })
    }
}

impl Store {
    /// Loads the images of an OCI layout or of what `docker save` wrote. `name` is what messages call it.
    ///
    /// # Errors
    /// When it is neither, when anything in it is not what its digest says, and the store's own. Then no image has
    /// been added and no name has moved.
    pub fn load(&self, incoming: Incoming, name: &str, limits: &Limits) -> Result<Vec<Loaded>> {
        let bundle = Bundle::open(incoming, name, &self.tmp(), limits)?;
        let wanted = if bundle.has(docker::MANIFEST)? {
            docker::images(&bundle)?
        } else if bundle.has(layout::INDEX)? {
            layout::images(&bundle)?
        } else {
            let problem = match bundle.has("repositories")? {
                true => "it was written by a Docker before 1.10, whose images have no digests",
                false => {
                    "it holds neither `manifest.json` nor `index.json`; `import` makes an image of a root file \
                     system"
                }
            };
            return Err(bundle.refuse(problem));
        };
        self.publish_layers(self.stage_all(&bundle, &wanted)?)?;
        let mut loaded = Vec::new();
        for wanted in &wanted {
            self.put_image_json(&wanted.raw)?;
        }
        for wanted in wanted {
            wanted.names.iter().try_for_each(|name| self.tag(name, &wanted.image.id))?;
            loaded.push(Loaded { id: wanted.image.id, names: wanted.names });
        }
        Ok(loaded)
    }

    /// Unpacks the layers that the store does not have, several at a time, each once.
    fn stage_all(&self, bundle: &Bundle, wanted: &[Wanted]) -> Result<Vec<StagedLayer>> {
        let mut missing = BTreeMap::new();
        for (id, blob) in wanted.iter().flat_map(|wanted| &wanted.blobs) {
            if !self.has_layer(id)? {
                missing.insert(id, blob);
            }
        }
        let missing: Vec<_> = missing.into_iter().collect();
        let next = AtomicUsize::new(0);
        let staged = Mutex::new(Ok(Vec::new()));
        let work = || {
            while let Some((id, blob)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let layer = self.stage(bundle, id, blob);
                let mut staged = staged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match (&mut *staged, layer) {
                    (Ok(all), Ok(layer)) => all.push(layer),
                    // The first error is the one that is told; nothing more is begun.
                    (Ok(_), Err(error)) => {
                        *staged = Err(error);
                        next.store(missing.len(), Ordering::Relaxed);
                    }
                    (Err(_), _) => {}
                }
            }
        };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 1..missing.len().min(cores).min(MOST_AT_ONCE) {
                scope.spawn(work);
            }
            work();
        });
        staged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn stage(&self, bundle: &Bundle, id: &LayerId, blob: &Blob) -> Result<StagedLayer> {
        let (reader, length) = bundle.open_file(&blob.path)?.ok_or_else(|| bundle.missing(&blob.path))?;
        let name = format!("{}, {}", bundle.name(), blob.path);
        let digest = blob.digest.as_ref().map(|(digest, _)| digest);
        if let Some((_, size)) = blob.digest {
            bundle.check_size(&blob.path, size, length)?;
        }
        let limits = bundle.limits().clone();
        self.stage_layer(
            reader,
            &LayerSource { blob: digest, diff_id: Some(id), limits, ..LayerSource::new(&name) },
        )
    }
}
