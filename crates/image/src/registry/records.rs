//! What the store knows of registries: which blobs a layer was or became there, and the manifests that images had.
//!
//! ```text
//! layers/<24 hex>.blobs       a layer's blobs, and the repositories that have them
//! images/<64 hex>.manifest    the manifest that an image came with or was pushed with, byte for byte
//! ```
//!
//! All of it only spares work: what is missing, damaged or out of date is found out anew.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, LayerId};
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Manifest};
use crate::scratch;
use crate::store::Store;

/// Most blobs of one layer, and most repositories of one blob, that are remembered.
const MOST: usize = 8;

/// A blob that some registry has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KnownBlob {
    pub(super) blob: Descriptor,
    /// `REGISTRY/REPOSITORY`, the newest last.
    pub(super) places: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct BlobRecord {
    diff_id: LayerId,
    blobs: Vec<KnownBlob>,
}

/// How a repository is called in the records.
pub(super) fn place(registry: &str, repository: &str) -> String {
    format!("{registry}/{repository}")
}

/// The repositories of `registry` among the places.
pub(super) fn repositories_of<'a>(places: &'a [String], registry: &str) -> impl Iterator<Item = &'a str> {
    let prefix = format!("{registry}/");
    places.iter().rev().filter_map(move |place| place.strip_prefix(&prefix))
}

fn blobs_path(store: &Store, layer: &LayerId) -> PathBuf {
    store.data_dir().join("layers").join(format!("{}.blobs", &layer.hex()[..24]))
}

fn manifest_path(store: &Store, image: &Digest) -> PathBuf {
    store.data_dir().join("images").join(format!("{}.manifest", image.hex()))
}

/// The blobs that a layer is known as, the newest last.
pub(super) fn blobs(store: &Store, layer: &LayerId) -> Vec<KnownBlob> {
    match store.read_json::<BlobRecord>(&blobs_path(store, layer)) {
        Ok(Some(record)) if record.diff_id == *layer => record.blobs,
        Ok(_) => Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "what is known of a layer's blobs cannot be read");
            Vec::new()
        }
    }
}

/// Remembers that a layer is this blob, and who has it.
pub(super) fn remember_blob(
    store: &Store,
    layer: &LayerId,
    blob: &Descriptor,
    place: Option<String>,
) -> Result<()> {
    let mut blobs = blobs(store, layer);
    let mut known = match blobs.iter().position(|known| known.blob.digest == blob.digest) {
        Some(at) => blobs.remove(at),
        None => KnownBlob {
            blob: Descriptor { platform: None, annotations: None, ..blob.clone() },
            places: Vec::new(),
        },
    };
    if let Some(place) = place {
        known.places.retain(|old| *old != place);
        known.places.push(place);
        let surplus = known.places.len().saturating_sub(MOST);
        known.places.drain(..surplus);
    }
    blobs.push(known);
    let surplus = blobs.len().saturating_sub(MOST);
    blobs.drain(..surplus);
    let record = BlobRecord { diff_id: layer.clone(), blobs };
    let json = serde_json::to_vec(&record).expect("a record of blobs has string keys only");
    scratch::write_file(&store.tmp(), &blobs_path(store, layer), &json, false)
}

/// The manifest that an image is known with, and its bytes.
pub(super) fn manifest(store: &Store, image: &Digest) -> Option<(Manifest, Vec<u8>)> {
    let bytes = std::fs::read(manifest_path(store, image)).ok()?;
    let manifest: Manifest = serde_json::from_slice(&bytes).ok()?;
    (manifest.config.digest == *image).then_some((manifest, bytes))
}

/// When an image was pulled or pushed last, if ever.
///
/// # Errors
/// When the store cannot be read.
pub fn pulled_at(store: &Store, image: &Digest) -> Result<Option<SystemTime>> {
    let path = manifest_path(store, image);
    match std::fs::metadata(&path).and_then(|meta| meta.modified()) {
        Ok(time) => Ok(Some(time)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("look up", path, cause)),
    }
}

/// Keeps an image's manifest.
pub(super) fn keep_manifest(store: &Store, image: &Digest, bytes: &[u8]) -> Result<()> {
    scratch::write_file(&store.tmp(), &manifest_path(store, image), bytes, false)
}
