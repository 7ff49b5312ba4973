//! The OCI image configuration (image-spec, `config.md`), with Docker's health check.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, LayerId};
use crate::error::{Error, Result};
use crate::store::{Store, check_count};

/// An OCI image configuration; its JSON form names the image (the digest of these bytes is the id).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the newest layer was made, RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it (`MAINTAINER`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Architecture as Go names it (`amd64`, `arm64`).
    pub architecture: String,
    /// Variant of the architecture (`v7` of `arm`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Always `linux` for images that can run here.
    pub os: String,
    /// How a container of the image runs.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: ContainerConfig,
    /// The layers, lowest first.
    pub rootfs: RootFs,
    /// One entry for each instruction that made the image, oldest first.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

impl ImageConfig {
    /// As it is kept: its digest is the image's id.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an image configuration has string keys only")
    }
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            created: None,
            author: None,
            architecture: architecture().to_owned(),
            variant: None,
            os: "linux".to_owned(),
            config: ContainerConfig::default(),
            rootfs: RootFs::default(),
            history: Vec::new(),
        }
    }
}

/// What a container of an image runs, and as whom (image-spec `config`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// `USER[:GROUP]`, names or numbers; empty is root.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports that the image says it listens on: `80/tcp`.
    #[serde(with = "set_of_objects", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// Environment as `NAME=value`, in the order it was written.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// First words of the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Words after the entrypoint, or the whole command line where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Paths that hold data of the container rather than of the image.
    #[serde(with = "set_of_objects", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// Where commands start; empty is `/`.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the service to stop: `SIGQUIT` or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// How to find out whether the service is well (Docker's extension).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions that a build begins with whose base this image is (`ONBUILD`, Docker's extension).
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// The shell of the shell form (Docker's extension); `/bin/sh -c` where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

impl ContainerConfig {
    /// The value of an environment variable of the image.
    pub(crate) fn env_value(&self, name: &str) -> Option<&str> {
        self.env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// The environment as pairs.
    pub fn env_pairs(&self) -> Vec<(String, String)> {
        self.env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    /// Sets an environment variable where it stands, or at the end.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        let pair = format!("{name}={value}");
        match self.env.iter_mut().find(|old| old.split_once('=').is_some_and(|(key, _)| key == name)) {
            Some(old) => *old = pair,
            None => self.env.push(pair),
        }
    }
}

/// Docker's health check. Times are nanoseconds, 0 stands for Docker's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", ...]` or `["CMD-SHELL", line]`.
    #[serde(deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Time between two probes, nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: u64,
    /// How long one probe may take, nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: u64,
    /// Failures within this time after the start do not count, nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: u64,
    /// Time between two probes during the start period, nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: u64,
    /// Failures in a row that make the service unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u64,
}

/// The layers of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// DiffIDs, lowest layer first.
    pub diff_ids: Vec<LayerId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// How one layer (or one change of configuration) came to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// A remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// The instruction changed no file.
    #[serde(skip_serializing_if = "is_false")]
    pub empty_layer: bool,
}

/// An image of the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Digest of the configuration's JSON.
    pub id: Digest,
    /// The configuration.
    pub config: ImageConfig,
    /// The layers to mount, lowest first: those of `config.rootfs.diff_ids`, each once.
    pub layers: Vec<LayerId>,
}

/// Largest image configuration, bytes: containerd's limit for what it reads whole.
pub const MAX_CONFIG: usize = 8 << 20;

impl Image {
    /// The image that a configuration's JSON describes.
    ///
    /// # Errors
    /// When it is no configuration of an image that can run here.
    pub(crate) fn of_json(raw: &[u8]) -> Result<Self> {
        let refused = |problem: String| Error::RefusedImage { problem };
        if raw.len() > MAX_CONFIG {
            return Err(refused(format!("its configuration has more than {MAX_CONFIG} bytes")));
        }
        let config: ImageConfig =
            serde_json::from_slice(raw).map_err(|source| Error::BadConfig { source })?;
        if config.os != "linux" {
            return Err(refused(format!("it is for {}, and only linux can run here", config.os)));
        }
        if config.rootfs.kind != "layers" {
            return Err(refused(format!(
                "its root file system is no list of layers but `{}`",
                config.rootfs.kind
            )));
        }
        check_count(&config.rootfs.diff_ids)?;
        let layers = mounted(&config.rootfs.diff_ids);
        Ok(Self { id: Digest::of(raw), config, layers })
    }
}

/// The layers to mount: each once, because overlayfs takes no directory twice. What a layer brings is there if it
/// lies where it comes last, whatever lies between.
pub(crate) fn mounted(diff_ids: &[LayerId]) -> Vec<LayerId> {
    let last = |(at, layer): (usize, &LayerId)| (!diff_ids[at + 1..].contains(layer)).then(|| layer.clone());
    diff_ids.iter().enumerate().filter_map(last).collect()
}

impl Store {
    /// Keeps an image's configuration byte for byte, so that its id is the same as elsewhere; its layers must be in
    /// the store.
    ///
    /// # Errors
    /// When it is no configuration of an image that can run here, or when a layer is missing.
    pub fn put_image_json(&self, raw: &[u8]) -> Result<Image> {
        let image = Image::of_json(raw)?;
        for layer in &image.layers {
            if !self.has_layer(layer)? {
                let image = image.id.to_string();
                return Err(Error::MissingLayer { layer: layer.hex().to_owned(), image });
            }
        }
        self.keep_config(&image.id, raw)?;
        Ok(image)
    }

    /// An image's configuration, byte for byte; none if the store has no such image.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn image_json(&self, id: &Digest) -> Result<Option<Vec<u8>>> {
        let path = self.image_path(id);
        match std::fs::read(&path) {
            Ok(raw) => Ok(Some(raw)),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(Error::io("read", path, cause)),
        }
    }
}

/// This machine's architecture as OCI (Go, Debian) names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The `PATH` of a container whose image sets none, the same as Docker's.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// Docker writes `null` for what is empty.
fn null_as_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Sets are written as objects whose values are empty objects (image-spec, "Go `map[string]struct{}`").
mod set_of_objects {
    use super::{BTreeMap, BTreeSet, Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Empty {}

    pub(super) fn serialize<S: Serializer>(set: &BTreeSet<String>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(set.iter().map(|key| (key, Empty {})))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, Empty>>::deserialize(from)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

/// The present time, RFC 3339, UTC, whole seconds.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_json_is_read_and_written() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"User":"","ExposedPorts":{"80/tcp":{}},
            "Env":["PATH=/bin"],"Entrypoint":null,"Cmd":["sh"],"Volumes":null,"Labels":null,
            "Healthcheck":{"Test":["CMD","true"],"Interval":5000000000}},
            "rootfs":{"type":"layers","diff_ids":[]},"history":null}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.config.exposed_ports.iter().collect::<Vec<_>>(), ["80/tcp"]);
        assert_eq!(config.config.healthcheck.as_ref().unwrap().interval, 5_000_000_000);
        let again: ImageConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }
}
