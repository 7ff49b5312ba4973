//! Which layer an instruction made, by all that it depends on.

use std::fs::File;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher, LayerId};
use crate::error::{Error, Result};
use crate::scratch;
use crate::store::Store;

/// Raised whenever equal keys would no longer mean equal layers.
const VERSION: &[u8] = b"2";

/// What an instruction made.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// None: it changed no file.
    pub(crate) layer: Option<LayerId>,
    /// When, RFC 3339: a reused layer keeps its date, so that an unchanged image keeps its id.
    pub(crate) created: String,
}

/// Begins the key of an instruction on top of these layers.
pub(crate) fn key(layers: &[LayerId], instruction: &str) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.field(VERSION);
    for layer in layers {
        hasher.field(layer.hex().as_bytes());
    }
    hasher.field(b"");
    hasher.field(instruction.as_bytes());
    hasher
}

/// The key of an instruction that follows the one with the key `parent`. The layers below are not enough: an
/// instruction that changed no file, or changed the same ones in another way, counts for those after it too.
pub(crate) fn after(parent: Option<&Digest>, key: Digest) -> Digest {
    let Some(parent) = parent else { return key };
    let mut hasher = Hasher::new();
    hasher.field(parent.hex().as_bytes());
    hasher.field(key.hex().as_bytes());
    hasher.finish()
}

fn path(store: &Store, key: &Digest) -> std::path::PathBuf {
    store.data_dir().join("cache").join(format!("{}.json", key.hex()))
}

/// What was made for this key, if it is all still there.
pub(crate) fn get(store: &Store, key: &Digest) -> Result<Option<Entry>> {
    let entry = match store.read_json::<Entry>(&path(store, key)) {
        Ok(Some(entry)) => entry,
        Ok(None) => return Ok(None),
        // Entries are not flushed to disk one by one: a power cut may tear one.
        Err(Error::DamagedStore { path, source }) => {
            tracing::warn!(path = %path.display(), %source, "build cache entry is damaged and is made anew");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    match &entry.layer {
        Some(layer) if !store.has_layer(layer)? => Ok(None),
        _ => {
            // What is used stays longest when room is made. Not worth a failed build.
            File::open(path(store, key)).and_then(|file| file.set_modified(SystemTime::now())).ok();
            Ok(Some(entry))
        }
    }
}

/// Remembers what was made, and returns what counts: where another build made the same at the same time,
/// the entry that was there first, so that both go on from one layer and find it again next time.
/// `replace` makes the new one count.
pub(crate) fn put(store: &Store, key: &Digest, entry: Entry, replace: bool) -> Result<Entry> {
    let json = serde_json::to_vec(&entry).expect("a cache entry has string keys only");
    let path = path(store, key);
    if !replace {
        if scratch::write_new_file(&store.tmp(), &path, &json)? {
            return Ok(entry);
        }
        if let Some(first) = get(store, key)? {
            return Ok(first);
        }
        // Its layer is gone, or it is damaged.
    }
    scratch::write_file(&store.tmp(), &path, &json, false)?;
    Ok(entry)
}
