//! Transfers with a registry that fails, lies, and wants to know who we are.

mod accounts;
mod lies;
mod proxies;
mod pulls;
mod pushes;
mod server;
mod trouble;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use super::*;
use crate::manifest::{
    DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST,
};
use crate::{Digest, Error, Reference, Store};
use server::{Fault, Reply, Request, Server, ranged};

/// Short pauses, and long waits: on a machine that has much to do a server's thread may not have its turn for seconds.
fn access(credentials: Option<(&str, Credentials)>) -> Access {
    let timing = Timing {
        connect: Duration::from_secs(30),
        stall: Duration::from_secs(30),
        answer: Duration::from_secs(30),
        pause: Duration::from_millis(1),
        longest_pause: Duration::from_secs(1),
        attempts: 3,
        ..Timing::default()
    };
    let mut access = Access { timing, ..Access::default() };
    if let Some((host, credentials)) = credentials {
        access.registries.entry(host.to_owned()).or_default().credentials = Some(credentials);
    }
    access
}

fn password(user: &str, password: &str) -> Credentials {
    Credentials::Password { user: user.to_owned(), password: password.to_owned() }
}

/// A store of the test's own.
struct Place {
    _directory: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("data")).unwrap();
        Self { _directory: directory, store }
    }

    fn pull(&self, name: &str, access: &Access) -> Result<(Pulled, Vec<TransferEvent>), Error> {
        self.pull_for(name, access, None)
    }

    fn pull_for(
        &self,
        name: &str,
        access: &Access,
        platform: Option<&str>,
    ) -> Result<(Pulled, Vec<TransferEvent>), Error> {
        let mut events = Vec::new();
        let options = PullOptions { platform: platform.map(|platform| platform.parse().unwrap()) };
        let pulled =
            pull(&self.store, access, &name.parse().unwrap(), &options, &mut |event| events.push(event));
        Ok((pulled?, events))
    }

    fn push(&self, name: &str, access: &Access) -> Result<(Pushed, Vec<TransferEvent>), Error> {
        let mut events = Vec::new();
        let pushed = push(&self.store, access, &name.parse().unwrap(), &mut |event| events.push(event))?;
        Ok((pushed, events))
    }

    /// Nothing of a failed pull is visible, and nothing is left of it.
    fn assert_empty(&self) {
        assert_eq!(self.store.images().unwrap().len(), 0);
        assert_eq!(std::fs::read_dir(self.store.data_dir().join("tmp")).unwrap().count(), 0);
    }
}

/// The archive of a layer of one file.
fn archive(name: &str, size: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    // Does not become small when it is packed.
    let mut state = 0x2545_f491_u32;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(size)
    .collect();
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    archive.append_data(&mut header, name, &content[..]).unwrap();
    archive.into_inner().unwrap()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(plain).unwrap();
    packed.finish().unwrap()
}

/// An image of two layers, as it lies on a registry.
struct Sample {
    config: Vec<u8>,
    manifest: Vec<u8>,
    digest: Digest,
    blobs: Vec<Vec<u8>>,
}

impl Sample {
    fn blob(&self, at: usize) -> String {
        Digest::of(&self.blobs[at]).to_string()
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> serde_json::Value {
    json!({ "mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len() })
}

fn sample_of(docker: bool, architecture: &str) -> Sample {
    match docker {
        true => packed_sample([DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER], architecture, gzip),
        false => packed_sample([OCI_MANIFEST, OCI_CONFIG, OCI_LAYER], architecture, gzip),
    }
}

/// A sample by the media types of its manifest, its configuration and its layers, and how these are packed.
fn packed_sample(
    [kind, config_kind, layer_kind]: [&str; 3],
    architecture: &str,
    pack: fn(&[u8]) -> Vec<u8>,
) -> Sample {
    let layers = [archive("one", 60_000), archive("two", 300)];
    let diff_ids: Vec<Digest> = layers.iter().map(|plain| Digest::of(plain)).collect();
    // A key that we do not know, and an order that is not ours.
    let config = json!({
        "os": "linux", "architecture": architecture, "x.unknown": 1, "config": { "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = serde_json::to_vec_pretty(&config).unwrap();
    let blobs: Vec<Vec<u8>> = layers.iter().map(|plain| pack(plain)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "config": descriptor(config_kind, &config),
        "layers": blobs.iter().map(|blob| descriptor(layer_kind, blob)).collect::<Vec<_>>(),
        "annotations": { "kept": "as it is" },
    });
    let manifest = serde_json::to_vec_pretty(&manifest).unwrap();
    let digest = Digest::of(&manifest);
    Sample { config, manifest, digest, blobs }
}

fn sample() -> Sample {
    sample_of(false, crate::architecture())
}

impl Server {
    fn put(&self, repository: &str, tag: &str, sample: &Sample) {
        for blob in sample.blobs.iter().chain([&sample.config]) {
            self.put_blob(repository, blob);
        }
        let kind: serde_json::Value = serde_json::from_slice(&sample.manifest).unwrap();
        self.put_manifest(repository, tag, kind["mediaType"].as_str().unwrap(), &sample.manifest);
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }
}

/// A server that has the sample as `team/app:1`.
fn with_sample(sample: &Sample, hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let server = Server::start(hook);
    server.put("team/app", "1", sample);
    server
}

fn problem(error: Error) -> (Problem, String) {
    match error {
        Error::Registry(error) => {
            let hint = error.hint().unwrap_or_default();
            (error.problem, hint)
        }
        other => panic!("{other:?}"),
    }
}

/// What an error says, with its causes.
fn text(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| (*error).source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
