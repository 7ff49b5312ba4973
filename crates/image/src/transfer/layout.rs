//! OCI image layouts (image-spec, `image-layout.md`): an index, and blobs named by their digests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bundle::Bundle;
use super::load::{Blob, Wanted};
use crate::config::{Image, MAX_CONFIG, architecture};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;

/// The file that makes a directory an OCI layout.
pub(super) const MARK: &str = "oci-layout";
/// What is in it.
pub(super) const MARK_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// The index that everything starts from.
pub(super) const INDEX: &str = "index.json";

pub(super) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// An image's name, whole (containerd) or as the tool likes it (image-spec, `annotations.md`).
pub(super) const NAME: &str = "io.containerd.image.name";
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Largest index or manifest, bytes: the limit that the distribution specification gives.
const MAX_MANIFEST: u64 = 4 << 20;
/// Deepest nesting of indexes, and most manifests of one layout.
const MAX_NESTING: usize = 4;
const MAX_MANIFESTS: usize = 1000;

/// What something is, how large, and its digest (image-spec, `descriptor.md`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

impl Descriptor {
    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether it is for this machine; one that says nothing may be.
    fn fits(&self) -> bool {
        let Some(platform) = &self.platform else { return true };
        let architecture_fits = match platform.architecture.as_str() {
            "" => true,
            "x86_64" => architecture() == "amd64",
            "aarch64" => architecture() == "arm64",
            other => other == architecture(),
        };
        architecture_fits && matches!(platform.os.as_str(), "" | "linux")
    }

    /// Attestations lie beside images, as manifests for a platform that there is not.
    fn is_image(&self) -> bool {
        let unknown = self.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
        !unknown && self.annotation("vnd.docker.reference.type").is_none()
    }
}

/// The path of a blob in a layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The images of a layout that can run here. Of several for one name the first that fits is taken.
pub(super) fn images(bundle: &Bundle) -> Result<Vec<Wanted>> {
    let raw = bundle.read(INDEX, MAX_MANIFEST)?.ok_or_else(|| bundle.refuse("it holds no `index.json`"))?;
    let index: Index = parse(bundle, INDEX, &raw)?;
    let mut budget = MAX_MANIFESTS;
    let mut wanted = Vec::new();
    let mut misfits = false;
    for entry in index.manifests.iter().filter(|entry| entry.is_image()) {
        match choose(bundle, entry, MAX_NESTING, &mut budget)? {
            Some((config, layers)) => wanted.push(image(bundle, &config, layers, name_of(entry)?)?),
            None => misfits = true,
        }
    }
    if wanted.is_empty() {
        return Err(bundle.refuse(match misfits {
            true => format!("it holds no image for linux/{}", architecture()),
            false => "it holds no image".to_owned(),
        }));
    }
    Ok(wanted)
}

fn name_of(entry: &Descriptor) -> Result<Vec<Reference>> {
    if let Some(name) = entry.annotation(NAME) {
        return Ok(vec![name.parse()?]);
    }
    // Often only a tag, which is no name of an image.
    let name = entry.annotation(REF_NAME).filter(|name| name.contains([':', '/']));
    Ok(name.and_then(|name| name.parse().ok()).into_iter().collect())
}

/// Follows indexes to the configuration and the layers of the first image that fits.
fn choose(
    bundle: &Bundle,
    entry: &Descriptor,
    nesting: usize,
    budget: &mut usize,
) -> Result<Option<(Descriptor, Vec<Descriptor>)>> {
    if !entry.fits() {
        return Ok(None);
    }
    *budget = budget.checked_sub(1).ok_or_else(|| bundle.refuse("it holds too many manifests"))?;
    let name = blob_path(&entry.digest);
    let raw = bundle.read_blob(&entry.digest, entry.size, MAX_MANIFEST)?;
    if matches!(entry.media_type.as_str(), INDEX_TYPE | DOCKER_LIST_TYPE) {
        if nesting == 0 {
            return Err(bundle.refuse("its indexes are nested too deep"));
        }
        let index: Index = parse(bundle, &name, &raw)?;
        for entry in index.manifests.iter().filter(|entry| entry.is_image()) {
            if let Some(found) = choose(bundle, entry, nesting - 1, budget)? {
                return Ok(Some(found));
            }
        }
        return Ok(None);
    }
    if !matches!(entry.media_type.as_str(), "" | MANIFEST_TYPE | DOCKER_MANIFEST_TYPE) {
        return Err(
            bundle.refuse(format!("`{}` is no kind of manifest that is known here", entry.media_type))
        );
    }
    let manifest: Manifest = parse(bundle, &name, &raw)?;
    Ok(Some((manifest.config, manifest.layers)))
}

fn image(
    bundle: &Bundle,
    config: &Descriptor,
    layers: Vec<Descriptor>,
    names: Vec<Reference>,
) -> Result<Wanted> {
    let raw = bundle.read_blob(&config.digest, config.size, MAX_CONFIG as u64)?;
    let image = Image::of_json(&raw)?;
    let blobs = layers
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
