//! Manifests: what an image is made of (OCI image-spec, and Docker's image manifest version 2, schema 2).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::architecture;
use crate::digest::Digest;

/// An OCI manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI index: manifests for several platforms.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image configuration.
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A gzipped OCI layer.
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Docker's manifest.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's index.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's configuration.
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker's gzipped layer.
pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker's manifests of 2015 and before, without and with a signature.
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// All that we read, for the `Accept` header.
pub(crate) fn accepted() -> String {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ")
}

/// What something is, how large, and its digest (image-spec, `descriptor.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<PlatformRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// One without a platform and annotations.
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None }
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// An OCI index: manifests for several platforms, or several images.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    pub(crate) manifests: Vec<Descriptor>,
}

/// What a registry has under a tag or a digest.
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

impl Document {
    /// Reads a document. What it says of itself counts more than the header that it came with, but both must not
    /// contradict each other (image-spec, "`mediaType` property"): nobody shall read it as something else than we do.
    pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            schema_version: Option<u32>,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let broken = |cause: serde_json::Error| format!("it is no manifest: {cause}");
        let head: Head = serde_json::from_slice(bytes).map_err(broken)?;
        let header = content_type.map(|text| text.split(';').next().unwrap_or(text).trim());
        let kind = head.media_type.as_deref().or(header).unwrap_or_default();
        if head.schema_version == Some(1) || SCHEMA_1.contains(&kind) {
            return Err("it is a manifest of schema 1, which Docker gave up in 2017 and nobody can verify: the image \
                        has to be pushed again with a newer tool"
                .to_owned());
        }
        if head.schema_version != Some(2) {
            return Err("it is no manifest: it has no `schemaVersion` 2".to_owned());
        }
        match (head.manifests.is_some(), head.layers.is_some()) {
            (true, true) => Err("it is a manifest and an index at once".to_owned()),
            (true, false) if matches!(kind, OCI_MANIFEST | DOCKER_MANIFEST) => {
                Err(format!("it is an index, but says that it is `{kind}`"))
            }
            (false, true) if matches!(kind, OCI_INDEX | DOCKER_LIST) => {
                Err(format!("it is no index, but says that it is `{kind}`"))
            }
            (true, false) => {
                serde_json::from_slice(bytes).map(|index: Index| Self::Index(index.manifests)).map_err(broken)
            }
            (false, true) => serde_json::from_slice(bytes).map(Self::Manifest).map_err(broken),
            (false, false) => Err("it is no manifest: it has neither `layers` nor `manifests`".to_owned()),
        }
    }
}

impl Manifest {
    /// Refuses what is no image for us: other artifacts, and layers that would have to come from elsewhere.
    pub(crate) fn check(&self) -> Result<(), String> {
        const CONFIGS: [&str; 3] = [OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream"];
        let config = &*self.config.media_type;
        if !CONFIGS.contains(&config) {
            return Err(format!("it is no image of a container, but `{config}`"));
        }
        for layer in &self.layers {
            let kind = &*layer.media_type;
            if kind.contains("nondistributable") || kind.contains(".foreign.") {
                return Err(format!(
                    "layer {} is one that its owner keeps on other servers (`{kind}`); only layers of the registry \
                     itself are fetched",
                    layer.digest.short()
                ));
            }
            // How it is packed is found out by looking at it.
            let known = kind.starts_with("application/vnd.oci.image.layer.v1.tar")
                || kind.starts_with("application/vnd.docker.image.rootfs.diff.tar");
            if !known || kind.ends_with("+encrypted") {
                return Err(format!(
                    "layer {} is of a kind that is not known here: `{kind}`",
                    layer.digest.short()
                ));
            }
        }
        Ok(())
    }

    /// Whether it is one of Docker's own kind.
    pub(crate) fn is_docker(&self) -> bool {
        self.config.media_type == DOCKER_CONFIG && self.media_type.as_deref() != Some(OCI_MANIFEST)
    }
}

/// A platform as documents write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlatformRecord {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// What an image is for: `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Always `linux` for images that run here.
    pub os: String,
    /// As Go names it: `amd64`.
    pub architecture: String,
    /// Of the architecture: `v7`.
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        Self { os: "linux".to_owned(), architecture: architecture().to_owned(), variant: None }
    }

    /// The variants that will do, the best first; none is an image that names none.
    fn variants(&self) -> Vec<Option<&str>> {
        match (&*self.architecture, self.variant.as_deref()) {
            // A newer processor runs what an older one does, never the other way round.
            ("arm", asked) => {
                let newest = asked.unwrap_or("v7");
                let all = ["v8", "v7", "v6", "v5"];
                let mut fit: Vec<Option<&str>> =
                    all.into_iter().skip_while(|variant| *variant != newest).map(Some).collect();
                if fit.is_empty() {
                    fit.push(Some(newest));
                }
                fit.push(None);
                fit
            }
            ("arm64", None | Some("v8")) => vec![Some("v8"), None],
            ("amd64", None | Some("v1")) => vec![None, Some("v1")],
            (_, Some(asked)) => vec![Some(asked)],
            (_, None) => vec![None],
        }
    }

    /// The best of an index's manifests: its place.
    pub(crate) fn choose(&self, manifests: &[Descriptor]) -> Option<usize> {
        self.variants().into_iter().find_map(|variant| {
            manifests.iter().position(|manifest| {
                manifest.platform.as_ref().is_some_and(|platform| {
                    platform.os == self.os
                        && normal(&platform.architecture) == self.architecture
                        && platform.variant.as_deref().filter(|v| !v.is_empty()) == variant
                })
            })
        })
    }
}

fn normal(architecture: &str) -> &str {
    match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "i386" => "386",
        other => other,
    }
}

impl FromStr for Platform {
    type Err = String;

    /// `[OS/]ARCHITECTURE[/VARIANT]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let fine = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let (os, architecture, variant) = match &parts[..] {
            [architecture] => ("linux", *architecture, None),
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some(*variant)),
            _ => ("", "", None),
        };
        if !parts.iter().all(fine) || architecture.is_empty() {
            return Err(format!("`{text}` is no platform: one looks like `linux/amd64` or `linux/arm/v7`"));
        }
        if os != "linux" {
            return Err(format!("images for `{os}` do not run here: `linux/{architecture}`?"));
        }
        let (architecture, variant) = match (architecture, variant) {
            ("armhf", None) => ("arm", Some("v7")),
            ("armel", None) => ("arm", Some("v6")),
            (other, variant) => (normal(other), variant),
        };
        let (os, architecture) = (os.to_owned(), architecture.to_owned());
        Ok(Self { os, architecture, variant: variant.map(str::to_owned) })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// The platforms of an index for people; what is no image (attestations) is left out.
pub(crate) fn offered(manifests: &[Descriptor]) -> String {
    let mut names: Vec<String> = Vec::new();
    for platform in manifests.iter().filter_map(|manifest| manifest.platform.as_ref()) {
        if platform.os == "unknown" {
            continue;
        }
        let PlatformRecord { os, architecture, variant } = platform.clone();
        let name = crate::registry::shown(&Platform { os, architecture, variant }.to_string());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match &names[..] {
        [] => "nothing that is named".to_owned(),
        few if few.len() <= 12 => few.join(", "),
        many => format!("{} and {} more", many[..12].join(", "), many.len() - 12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let descriptor = |text: &&str| {
            let mut parts = text.split('/').map(str::to_owned);
            let platform = PlatformRecord {
                os: parts.next().unwrap(),
                architecture: parts.next().unwrap(),
                variant: parts.next(),
            };
            Descriptor {
                media_type: OCI_MANIFEST.to_owned(),
                digest: Digest::of(text.as_bytes()),
                size: 1,
                platform: Some(platform),
                annotations: None,
            }
        };
        platforms.iter().map(descriptor).collect()
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let all = index(&[
            "unknown/unknown",
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/arm64/v8",
            "windows/amd64",
            "linux/amd64/v3",
            "linux/amd64",
            "linux/386",
        ]);
        let chosen = |text: &str| text.parse::<Platform>().unwrap().choose(&all);
        assert_eq!(chosen("linux/amd64"), Some(6));
        assert_eq!(chosen("x86_64"), Some(6));
        assert_eq!(chosen("linux/amd64/v3"), Some(5));
        assert_eq!(chosen("linux/arm"), Some(2));
        assert_eq!(chosen("linux/arm/v6"), Some(1));
        assert_eq!(chosen("armhf"), Some(2));
        assert_eq!(chosen("arm64"), Some(3));
        assert_eq!(chosen("linux/riscv64"), None);
        assert!(offered(&all).starts_with("linux/arm/v5, linux/arm/v7"), "{}", offered(&all));
        for bad in ["", "windows/amd64", "linux/", "a/b/c/d", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn documents_say_what_they_are() {
        let blob = format!("{{\"mediaType\":\"x\",\"digest\":\"{}\",\"size\":1}}", Digest::of(b"x"));
        let manifest = format!("{{\"schemaVersion\":2,\"config\":{blob},\"layers\":[{blob}]}}");
        let index = format!("{{\"schemaVersion\":2,\"manifests\":[{blob}]}}");
        let parse = |text: &str, kind: Option<&str>| Document::parse(text.as_bytes(), kind);
        assert!(matches!(parse(&manifest, Some(OCI_MANIFEST)), Ok(Document::Manifest(_))));
        assert!(matches!(parse(&manifest, None), Ok(Document::Manifest(_))));
        assert!(matches!(
            parse(&index, Some("application/vnd.oci.image.index.v1+json; charset=utf-8")),
            Ok(Document::Index(_))
        ));
        for (text, kind, problem) in [
            (&*manifest, Some(OCI_INDEX), "no index"),
            (&*index, Some(DOCKER_MANIFEST), "is an index"),
            (r#"{"schemaVersion":1,"name":"x"}"#, None, "schema 1"),
            (r#"{"schemaVersion":2}"#, None, "neither"),
            (r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#, None, "at once"),
            (r#"{"schemaVersion":2,"config":{},"layers":[]}"#, None, "no manifest"),
            ("<html>", None, "no manifest"),
        ] {
            let Err(said) = parse(text, kind) else { panic!("{text}") };
            assert!(said.contains(problem), "{said}");
        }
        // A size that is negative, or a digest of another kind.
        for bad in [r#""size":-1"#, r#""size":1e30"#] {
            assert!(parse(&manifest.replace(r#""size":1"#, bad), None).is_err());
        }
        assert!(parse(&manifest.replace("sha256:", "sha512:"), None).is_err());
    }

    #[test]
    fn other_artifacts_and_layers_elsewhere_are_refused() {
        let descriptor = |kind: &str| Descriptor {
            media_type: kind.to_owned(),
            digest: Digest::of(kind.as_bytes()),
            size: 1,
            platform: None,
            annotations: None,
        };
        let check = |config: &str, layer: &str| {
            let (config, layers) = (descriptor(config), vec![descriptor(layer)]);
            Manifest { schema_version: 2, media_type: None, config, layers }.check()
        };
        assert!(check(OCI_CONFIG, OCI_LAYER).is_ok() && check(DOCKER_CONFIG, DOCKER_LAYER).is_ok());
        assert!(check("application/vnd.cncf.helm.config.v1+json", OCI_LAYER).is_err());
        for layer in [
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/x",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        ] {
            assert!(check(OCI_CONFIG, layer).is_err(), "{layer}");
        }
    }
}
