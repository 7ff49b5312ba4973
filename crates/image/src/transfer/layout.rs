//! OCI image layouts (image-spec, `image-layout.md`): an index, and blobs named by their digests.

use serde::Deserialize;

use super::bundle::Bundle;
use super::load::{Blob, Wanted};
use crate::config::{Image, MAX_CONFIG};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{self, Descriptor, Document, Index, Manifest, Platform};
use crate::reference::Reference;

/// The file that makes a directory an OCI layout.
pub(super) const MARK: &str = "oci-layout";
/// What is in it.
pub(super) const MARK_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// The index that everything starts from.
pub(super) const INDEX: &str = "index.json";

/// An image's name, whole (containerd) or as the tool likes it (image-spec, `annotations.md`).
pub(super) const NAME: &str = "io.containerd.image.name";
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Largest index or manifest, bytes: the limit that the distribution specification gives.
const MAX_MANIFEST: u64 = 4 << 20;
/// Deepest nesting of indexes, and most manifests of one layout.
const MAX_NESTING: usize = 4;
const MAX_MANIFESTS: usize = 1000;

/// The path of a blob in a layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The images of a layout that can run here.
pub(super) fn images(bundle: &Bundle) -> Result<Vec<Wanted>> {
    let raw = bundle.read(INDEX, MAX_MANIFEST)?.ok_or_else(|| bundle.refuse("it holds no `index.json`"))?;
    let index: Index = parse(bundle, INDEX, &raw)?;
    let mut budget = MAX_MANIFESTS;
    let mut wanted = Vec::new();
    let mut misfit = None;
    for entry in index.manifests.iter().filter(|entry| is_image(entry)) {
        if !fits(entry) {
            misfit = Some(manifest::offered(&index.manifests));
            continue;
        }
        match follow(bundle, entry, MAX_NESTING, &mut budget)? {
            Found::Image(manifest) => wanted.push(image(bundle, *manifest, name_of(entry)?)?),
            Found::Others(offered) => misfit = Some(offered),
        }
    }
    match (wanted.is_empty(), misfit) {
        (false, _) => Ok(wanted),
        (true, None) => Err(bundle.refuse("it holds no image")),
        (true, Some(offered)) => {
            Err(bundle.refuse(format!("it holds no image for {}, but for {offered}", Platform::host())))
        }
    }
}

/// Attestations lie beside images, as manifests for a platform that there is not.
fn is_image(entry: &Descriptor) -> bool {
    let unknown = entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
    !unknown && entry.annotation("vnd.docker.reference.type").is_none()
}

/// Whether something is for this machine; what says nothing may be.
fn fits(entry: &Descriptor) -> bool {
    let silent = entry
        .platform
        .as_ref()
        .is_none_or(|platform| platform.os.is_empty() && platform.architecture.is_empty());
    silent || Platform::host().choose(std::slice::from_ref(entry)).is_some()
}

fn name_of(entry: &Descriptor) -> Result<Vec<Reference>> {
    if let Some(name) = entry.annotation(NAME) {
        return Ok(vec![name.parse()?]);
    }
    // Often only a tag, which is no name of an image.
    let name = entry.annotation(REF_NAME).filter(|name| name.contains([':', '/']));
    Ok(name.and_then(|name| name.parse().ok()).into_iter().collect())
}

/// What an entry of an index leads to.
enum Found {
    Image(Box<Manifest>),
    /// Images for other platforms than this machine's, named for people.
    Others(String),
}

/// Follows indexes to the manifest for this machine.
fn follow(bundle: &Bundle, entry: &Descriptor, nesting: usize, budget: &mut usize) -> Result<Found> {
    *budget = budget.checked_sub(1).ok_or_else(|| bundle.refuse("it holds too many manifests"))?;
    let raw = bundle.read_blob(&entry.digest, entry.size, MAX_MANIFEST)?;
    let kind = Some(entry.media_type.as_str()).filter(|kind| !kind.is_empty());
    let refuse = |problem: String| bundle.refuse(format!("{}: {problem}", blob_path(&entry.digest)));
    match Document::parse(&raw, kind).map_err(refuse)? {
        Document::Manifest(manifest) => {
            manifest.check().map_err(refuse)?;
            Ok(Found::Image(Box::new(manifest)))
        }
        Document::Index(_) if nesting == 0 => Err(bundle.refuse("its indexes are nested too deep")),
        Document::Index(entries) => {
            let images: Vec<Descriptor> = entries.into_iter().filter(is_image).collect();
            let chosen = Platform::host().choose(&images).or_else(|| images.iter().position(fits));
            match chosen {
                Some(at) => follow(bundle, &images[at], nesting - 1, budget),
                None => Ok(Found::Others(manifest::offered(&images))),
            }
        }
    }
}

fn image(bundle: &Bundle, manifest: Manifest, names: Vec<Reference>) -> Result<Wanted> {
    let config = &manifest.config;
    let raw = bundle.read_blob(&config.digest, config.size, MAX_CONFIG as u64)?;
    let image = Image::of_json(&raw)?;
    let blobs = manifest
        .layers
        .into_iter()
        .map(|layer| Blob { path: blob_path(&layer.digest), digest: Some((layer.digest, layer.size)) })
        .collect();
    Wanted::new(bundle, image, raw, blobs, names)
}

pub(super) fn parse<T: for<'de> Deserialize<'de>>(bundle: &Bundle, name: &str, raw: &[u8]) -> Result<T> {
    serde_json::from_slice(raw).map_err(|source| Error::DamagedArchive {
        archive: bundle.name().to_owned(),
        entry: Some(name.to_owned()),
        source: source.into(),
    })
}
