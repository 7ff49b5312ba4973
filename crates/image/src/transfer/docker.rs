//! What `docker save` writes: `manifest.json`, configurations, and layers as plain archives.
//!
//! Since Docker 25 such an archive is an OCI layout as well; what `manifest.json` says of it is the same.

use serde::{Deserialize, Serialize};

use super::bundle::Bundle;
use super::layout::parse;
use super::load::{Blob, Wanted};
use crate::config::{Image, MAX_CONFIG};
use crate::digest::Digest;
use crate::error::Result;

/// The file that lists the images.
pub(super) const MANIFEST: &str = "manifest.json";
/// Largest list of images, bytes.
const MAX_MANIFEST: u64 = 16 << 20;

/// One image of `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Option<Vec<String>>,
}

/// The images of an archive.
pub(super) fn images(bundle: &Bundle) -> Result<Vec<Wanted>> {
    let raw =
        bundle.read(MANIFEST, MAX_MANIFEST)?.ok_or_else(|| bundle.refuse("it holds no `manifest.json`"))?;
    let entries: Vec<Entry> = parse(bundle, MANIFEST, &raw)?;
    if entries.is_empty() {
        return Err(bundle.refuse("it holds no image"));
    }
    entries.into_iter().map(|entry| image(bundle, entry)).collect()
}

fn image(bundle: &Bundle, entry: Entry) -> Result<Wanted> {
    let raw = bundle.read(&entry.config, MAX_CONFIG as u64)?;
    let raw = raw.ok_or_else(|| bundle.missing(&entry.config))?;
    let image = Image::of_json(&raw)?;
    // The file is named by its digest, with or without an ending.
    let name = entry.config.rsplit('/').next().unwrap_or_default();
    if let Ok(expected) = name.strip_suffix(".json").unwrap_or(name).parse::<Digest>() {
        bundle.check(&entry.config, &expected, &image.id)?;
    }
    // Layers are held by what they unpack to, which the configuration says.
    let layers = entry.layers.unwrap_or_default();
    let blobs = layers.into_iter().map(|path| Blob { path, digest: None }).collect();
    let names = entry.repo_tags.unwrap_or_default();
    let names = names.iter().map(|name| name.parse()).collect::<Result<_>>()?;
    Wanted::new(bundle, image, raw, blobs, names)
}
