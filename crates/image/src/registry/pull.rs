//! From a registry into the store.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use ureq::http::{Method, header};

use super::blob::{self, BlobReader};
use super::client::{Call, Client, LARGEST_ANSWER};
use super::error::{Problem, RegistryError};
use super::settings::{Access, Endpoint};
use super::{Outcome, TransferEvent, in_parallel, records};
use crate::config::{Image, ImageConfig};
use crate::digest::{Digest, LayerId};
use crate::error::{Error, Result, with_causes};
use crate::layer::{LayerSource, StagedLayer};
use crate::manifest::{self, Descriptor, Document, Manifest, Platform};
use crate::reference::Reference;
use crate::store::{self, Store};

/// Deepest index within an index.
const MAX_DEPTH: usize = 3;
/// Bytes between two reports of one blob's progress.
const REPORT: u64 = 256 << 10;

/// What is wanted of a pull.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// The platform; this machine's where none is given.
    pub platform: Option<Platform>,
}

/// A pulled image.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// The digest of its manifest, or of the index that it was chosen from.
    pub digest: Digest,
    /// It was in the store before.
    pub present: bool,
}

/// Brings an image into the store, under its name and under its digest.
///
/// Mirrors are asked first. Nothing is visible before the image is whole.
///
/// # Errors
/// The registry's last one; those of mirrors are told as events.
pub fn pull(
    store: &Store,
    access: &Access,
    reference: &Reference,
    options: &PullOptions,
    events: &mut dyn FnMut(TransferEvent),
) -> Result<Pulled> {
    let mut sources = access.sources(reference.registry());
    let registry = sources.pop().unwrap_or_else(|| access.registry(reference.registry()));
    for mirror in &sources {
        match pull_from(mirror, store, access, reference, options, events) {
            Err(Error::Registry(error)) => {
                events(TransferEvent::Note(format!("mirror: {}", with_causes(&*error))));
            }
            other => return other,
        }
    }
    pull_from(&registry, store, access, reference, options, events)
}

/// A manifest as it came.
struct Fetched {
    bytes: Vec<u8>,
    digest: Digest,
    document: Document,
}

/// A layer that is wanted.
struct Wanted {
    blob: Descriptor,
    diff_id: LayerId,
}

fn pull_from(
    endpoint: &Endpoint,
    store: &Store,
    access: &Access,
    reference: &Reference,
    options: &PullOptions,
    events: &mut dyn FnMut(TransferEvent),
) -> Result<Pulled> {
    let repository = endpoint.prefix.clone() + &reference.repository();
    let client = Client::connect(endpoint, Some(&repository), &access.timing)?;
    let source = Source { client: &client, scope: format!("repository:{repository}:pull"), repository };
    let top = source.manifest(reference)?;
    events(TransferEvent::Manifest(top.digest.clone()));
    let digest = top.digest.clone();
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let (manifest, bytes) = source.choose(top, &platform)?;
    manifest.check().map_err(|problem| client.fail(Problem::Refused { problem }))?;
    let raw = blob::fetch(&client, &source.repository, &source.scope, &manifest.config)?;
    let config = source.configuration(&manifest, &raw)?;
    source.check_platform(&config, &platform, options.platform.is_some(), events)?;
    store::check_count(&config.rootfs.diff_ids)?;
    let mut missing = Vec::new();
    let mut seen = BTreeSet::new();
    let place = records::place(reference.registry(), &reference.repository());
    for (blob, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        if !seen.insert(diff_id) {
            continue;
        }
        if store.has_layer(diff_id)? {
            records::remember_blob(store, diff_id, blob, Some(place.clone()))?;
            events(TransferEvent::Ended { blob: blob.digest.short().to_owned(), outcome: Outcome::Present });
        } else {
            missing.push(Wanted { blob: blob.clone(), diff_id: diff_id.clone() });
        }
    }
    let present = missing.is_empty() && store.image_by_id(&manifest.config.digest)?.is_some();
    let staged = Mutex::new(Vec::new());
    let fetched = in_parallel(&missing, &client, events, |layer, tell| {
        let arrived = source.layer(store, layer, tell)?;
        staged.lock().unwrap_or_else(PoisonError::into_inner).push(arrived);
        records::remember_blob(store, &layer.diff_id, &layer.blob, Some(place.clone()))
    });
    // Those that arrived need not be fetched again, whatever became of the others.
    store.publish_layers(staged.into_inner().unwrap_or_else(PoisonError::into_inner))?;
    fetched?;
    let image = store.put_image_json(&raw)?;
    records::keep_manifest(store, &image.id, &bytes)?;
    store.tag(&reference.pinned(&digest), &image.id)?;
    if reference.digest().is_none() {
        store.tag(reference, &image.id)?;
    }
    Ok(Pulled { image, digest, present })
}

/// A repository that is pulled from.
struct Source<'a> {
    client: &'a Client,
    repository: String,
    scope: String,
}

impl Source<'_> {
    /// What the registry has under a name.
    fn manifest(&self, reference: &Reference) -> Result<Fetched> {
        match reference.digest() {
            Some(digest) => self.fetch_manifest(&digest.to_string(), Some((digest, None))),
            None => self.fetch_manifest(reference.tag(), None),
        }
    }

    fn fetch_manifest(&self, name: &str, expected: Option<(&Digest, Option<u64>)>) -> Result<Fetched> {
        let object = match expected {
            Some(_) => format!("manifest {name}"),
            None => format!("tag `{name}`"),
        };
        let operation = format!("get the manifest of {object}");
        let path = format!("/v2/{}/manifests/{name}", self.repository);
        let call = Call::new(Method::GET, path, &self.scope, operation.clone());
        let mut answer = self.client.send(&call.header("accept", manifest::accepted()))?;
        if answer.status() != 200 {
            return Err(self.client.missing_or(object, &operation, answer));
        }
        let content_type = answer.header(header::CONTENT_TYPE).map(str::to_owned);
        let said = answer.header("docker-content-digest").and_then(|text| text.trim().parse::<Digest>().ok());
        let bytes = self.client.read(&object, &mut answer, LARGEST_ANSWER)?;
        let digest = Digest::of(&bytes);
        if let Some((wanted, size)) = expected {
            if digest != *wanted {
                return Err(self.client.wrong(object, format!("what arrived is {digest}")));
            }
            if let Some(size) = size.filter(|size| *size != bytes.len() as u64) {
                let problem = format!("it has {} bytes, but the index says {size}", bytes.len());
                return Err(self.client.wrong(object, problem));
            }
        }
        if let Some(said) = said.filter(|said| *said != digest) {
            return Err(self.client.wrong(object, format!("what arrived is {digest}, but it says {said}")));
        }
        let document = Document::parse(&bytes, content_type.as_deref())
            .map_err(|problem| self.client.wrong(object, problem))?;
        Ok(Fetched { bytes, digest, document })
    }

    /// The manifest for a platform, by way of indexes.
    fn choose(&self, top: Fetched, platform: &Platform) -> Result<(Manifest, Vec<u8>)> {
        let mut here = top;
        for _ in 0..MAX_DEPTH {
            let manifests = match here.document {
                Document::Manifest(manifest) => return Ok((manifest, here.bytes)),
                Document::Index(manifests) => manifests,
            };
            // An index of one that names no platform is that one.
            let only = (manifests.len() == 1 && manifests[0].platform.is_none()).then_some(0);
            let Some(at) = platform.choose(&manifests).or(only) else {
                let offered = manifest::offered(&manifests);
                return Err(self.client.fail(Problem::OtherPlatform { wanted: platform.clone(), offered }));
            };
            let chosen = &manifests[at];
            let expected = Some((&chosen.digest, Some(chosen.size)));
            here = self.fetch_manifest(&chosen.digest.to_string(), expected)?;
        }
        let problem = format!("indexes within indexes, more than {MAX_DEPTH} deep");
        Err(self.client.fail(Problem::Refused { problem }))
    }

    fn configuration(&self, manifest: &Manifest, raw: &[u8]) -> Result<ImageConfig> {
        let object = format!("configuration {}", manifest.config.digest);
        let config: ImageConfig = serde_json::from_slice(raw)
            .map_err(|cause| self.client.wrong(&object, format!("it cannot be read: {cause}")))?;
        let (layers, ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != ids {
            let problem = format!("it names {ids} layers, but the manifest has {layers}");
            return Err(self.client.wrong(object, problem));
        }
        Ok(config)
    }

    /// Refuses what cannot run here, and what was not asked for.
    fn check_platform(
        &self,
        config: &ImageConfig,
        wanted: &Platform,
        explicit: bool,
        events: &mut dyn FnMut(TransferEvent),
    ) -> Result<()> {
        if config.os == wanted.os && config.architecture == wanted.architecture {
            return Ok(());
        }
        let offered = super::client::shown(&format!("{}/{}", config.os, config.architecture));
        if explicit || config.os != wanted.os {
            return Err(self.client.fail(Problem::OtherPlatform { wanted: wanted.clone(), offered }));
        }
        events(TransferEvent::Note(format!("the image is for {offered}, but this machine is {wanted}")));
        Ok(())
    }

    /// Fetches and unpacks one layer.
    fn layer(
        &self,
        store: &Store,
        layer: &Wanted,
        tell: &(dyn Fn(TransferEvent) + Sync),
    ) -> Result<StagedLayer> {
        use std::sync::atomic::{AtomicU64, Ordering};
        let (blob, size) = (layer.blob.digest.short().to_owned(), layer.blob.size);
        tell(TransferEvent::Begun { blob: blob.clone(), size });
        let told = AtomicU64::new(0);
        let progress = |done: u64| {
            if done >= told.load(Ordering::Relaxed) + REPORT || done == size {
                told.store(done, Ordering::Relaxed);
                tell(TransferEvent::Bytes { blob: blob.clone(), done, size });
            }
        };
        let mut reader = BlobReader::new(self.client, &self.repository, &self.scope, &layer.blob, &progress);
        let name = format!("layer {} of {}", layer.blob.digest, self.repository);
        // The reader checks the blob's digest itself.
        let source = LayerSource { diff_id: Some(&layer.diff_id), ..LayerSource::new(&name) };
        let unpacked = store.stage_layer(&mut reader, &source);
        // The registry's fault is the better message than what the reader of the archive made of it.
        if let Some(error) = reader.take_failure() {
            return Err(error);
        }
        if matches!(unpacked, Ok(_) | Err(Error::DamagedArchive { .. } | Error::Checksum { .. })) {
            reader.drain()?;
        }
        let staged = unpacked.map_err(|error| self.blame(error))?;
        tell(TransferEvent::Ended { blob, outcome: Outcome::Pulled });
        Ok(staged)
    }

    /// An error of unpacking, with the registry that the layer came from.
    fn blame(&self, error: Error) -> Error {
        match error {
            Error::Checksum { object, expected, found } => {
                let problem =
                    format!("unpacked, it is sha256:{found}, but the configuration says sha256:{expected}");
                self.client.wrong(object, problem)
            }
            other => other,
        }
    }
}

impl From<RegistryError> for Error {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}
