//! From the store into a registry.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use ureq::http::{Method, header};

use super::address::join;
use super::client::{Answer, Call, Client, Payload};
use super::error::Problem;
use super::settings::Access;
use super::{Outcome, TransferEvent, in_parallel, records};
use crate::config::Image;
use crate::digest::{Digest, LayerId};
use crate::error::{Error, Result};
use crate::manifest::{self, Descriptor, Manifest};
use crate::reference::Reference;
use crate::scratch::Scratch;
use crate::store::Store;
use crate::transfer::Compression;

/// A pushed image.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The digest of its manifest.
    pub digest: Digest,
    /// The manifest's size, bytes.
    pub size: u64,
}

/// Sends an image to the registry that its name names, with whatever of it is not there yet.
///
/// An image that came from a registry goes out with the manifest that it came with, where the target has or can take
/// the very same blobs; otherwise with a new one of the same kind, Docker's or OCI's. Images made here are OCI's.
///
/// # Errors
/// The store's and the registry's.
pub fn push(
    store: &Store,
    access: &Access,
    reference: &Reference,
    events: &mut dyn FnMut(TransferEvent),
) -> Result<Pushed> {
    let missing = || Error::MissingImage { reference: reference.clone() };
    let image = store.image(reference)?.ok_or_else(missing)?;
    let raw = store.image_json(&image.id)?.ok_or_else(missing)?;
    let repository = reference.repository();
    let client = Client::connect(&access.registry(reference.registry()), Some(&repository), &access.timing)?;
    if reference.digest().is_some() {
        let problem = "an image is pushed under a tag, not under a digest".to_owned();
        return Err(client.fail(Problem::Refused { problem }));
    }
    let kept =
        records::manifest(store, &image.id).filter(|(kept, _)| kept.layers.len() == image.layers.len());
    let registry = reference.registry();
    let target = Target { client: &client, store, registry, repository, part: access.part.max(1) };
    let layers = target.layers(&image, kept.as_ref().map(|(kept, _)| kept), events)?;
    let (manifest, bytes) = match kept {
        Some((kept, bytes)) if same_blobs(&kept.layers, &layers) => (kept, bytes),
        kept => {
            let docker = kept.as_ref().is_some_and(|(kept, _)| kept.is_docker());
            let manifest = compose(docker, &image.id, raw.len() as u64, layers);
            let bytes = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
            (manifest, bytes)
        }
    };
    target.configuration(&manifest.config.digest, &raw)?;
    let pushed = target.manifest(reference, &manifest, &bytes)?;
    events(TransferEvent::Manifest(pushed.digest.clone()));
    records::keep_manifest(store, &image.id, &bytes)?;
    store.tag(&reference.pinned(&pushed.digest), &image.id)?;
    Ok(pushed)
}

fn same_blobs(one: &[Descriptor], other: &[Descriptor]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.digest == other.digest)
}

/// A manifest of our own.
fn compose(docker: bool, config: &Digest, size: u64, layers: Vec<Descriptor>) -> Manifest {
    // Docker's kind knows no zstd that others would read.
    let docker = docker && !layers.iter().any(|layer| layer.media_type.ends_with("zstd"));
    let layer = |layer: Descriptor| {
        let packing = ["zstd", "gzip"].into_iter().find(|packing| layer.media_type.ends_with(packing));
        let media_type = match (docker, packing) {
            (true, Some(_)) => manifest::DOCKER_LAYER.to_owned(),
            (true, None) => manifest::DOCKER_LAYER.trim_end_matches(".gzip").to_owned(),
            (false, Some("gzip")) => manifest::OCI_LAYER.to_owned(),
            (false, Some(packing)) => manifest::OCI_LAYER.replace("gzip", packing),
            (false, None) => manifest::OCI_LAYER.trim_end_matches("+gzip").to_owned(),
        };
        Descriptor { media_type, ..layer }
    };
    let (kind, config_kind) = match docker {
        true => (manifest::DOCKER_MANIFEST, manifest::DOCKER_CONFIG),
        false => (manifest::OCI_MANIFEST, manifest::OCI_CONFIG),
    };
    Manifest {
        schema_version: 2,
        media_type: Some(kind.to_owned()),
        config: Descriptor {
            media_type: config_kind.to_owned(),
            digest: config.clone(),
            size,
            platform: None,
            annotations: None,
        },
        layers: layers.into_iter().map(layer).collect(),
    }
}

/// A repository that is pushed to.
struct Target<'a> {
    client: &'a Client,
    store: &'a Store,
    registry: &'a str,
    repository: String,
    part: u64,
}

/// A layer on its way, and what became of it.
struct Outgoing<'a> {
    layer: &'a LayerId,
    /// What it was in the manifest that the image came with.
    before: Option<&'a Descriptor>,
    sent: std::sync::OnceLock<Descriptor>,
}

impl Target<'_> {
    fn scope(&self) -> String {
        format!("repository:{}:pull,push", self.repository)
    }

    /// Brings all layers there; returns what they are there, in the image's order.
    fn layers(
        &self,
        image: &Image,
        kept: Option<&Manifest>,
        events: &mut dyn FnMut(TransferEvent),
    ) -> Result<Vec<Descriptor>> {
        let mut outgoing: Vec<Outgoing<'_>> = Vec::new();
        for (at, layer) in image.layers.iter().enumerate() {
            if !outgoing.iter().any(|known| known.layer == layer) {
                let before = kept.map(|kept| &kept.layers[at]);
                outgoing.push(Outgoing { layer, before, sent: std::sync::OnceLock::new() });
            }
        }
        in_parallel(&outgoing, self.client, events, |layer, tell| {
            let (descriptor, outcome) = self.layer(layer, tell)?;
            let place = records::place(self.registry, &self.repository);
            records::remember_blob(self.store, layer.layer, &descriptor, Some(place))?;
            tell(TransferEvent::Ended { blob: descriptor.digest.short().to_owned(), outcome });
            layer.sent.get_or_init(|| descriptor);
            Ok(())
        })?;
        let sent = |layer: &LayerId| {
            outgoing.iter().find(|known| known.layer == layer).and_then(|known| known.sent.get().cloned())
        };
        let all: Option<Vec<Descriptor>> = image.layers.iter().map(sent).collect();
        all.ok_or_else(|| self.client.fail(Problem::Stopped))
    }

    /// Brings one layer there: it is there already, in another repository, or has to be sent.
    fn layer(
        &self,
        outgoing: &Outgoing<'_>,
        tell: &(dyn Fn(TransferEvent) + Sync),
    ) -> Result<(Descriptor, Outcome)> {
        let known = records::blobs(self.store, outgoing.layer);
        let before = outgoing.before.cloned().into_iter();
        let newest_first = known.iter().rev().map(|known| known.blob.clone());
        let mut candidates: Vec<Descriptor> = Vec::new();
        for candidate in before.chain(newest_first) {
            if !candidates.iter().any(|other| other.digest == candidate.digest) {
                candidates.push(candidate);
            }
        }
        for candidate in candidates {
            if self.has(&candidate)? {
                return Ok((candidate, Outcome::Present));
            }
            let places = known
                .iter()
                .find(|known| known.blob.digest == candidate.digest)
                .map(|known| &known.places[..]);
            for from in records::repositories_of(places.unwrap_or_default(), self.registry) {
                if from != self.repository && self.mount(&candidate, from)? {
                    return Ok((candidate, Outcome::Mounted));
                }
            }
        }
        let scratch = Scratch::new(&self.store.tmp())?;
        let file = scratch.make_dir("blob")?.join("layer.tar.gz");
        let descriptor = self.pack(outgoing.layer, &file)?;
        // So that the next push does not pack it again, whatever comes of this one.
        records::remember_blob(self.store, outgoing.layer, &descriptor, None)?;
        if self.has(&descriptor)? {
            return Ok((descriptor, Outcome::Present));
        }
        let blob = descriptor.digest.short().to_owned();
        tell(TransferEvent::Begun { blob: blob.clone(), size: descriptor.size });
        let content = Content::File(&file);
        self.upload(&descriptor.digest, descriptor.size, content, &|done| {
            tell(TransferEvent::Bytes { blob: blob.clone(), done, size: descriptor.size });
        })?;
        Ok((descriptor, Outcome::Pushed))
    }

    /// Packs a layer into a file. The same layer always becomes the same bytes.
    fn pack(&self, layer: &LayerId, path: &Path) -> Result<Descriptor> {
        let fail = |cause: io::Error| Error::io("write", path, cause);
        let file = File::create_new(path).map_err(fail)?;
        let mut out = io::BufWriter::new(file);
        let blob = self.store.write_layer_blob(layer, Compression::Gzip, &mut out)?;
        out.flush().map_err(fail)?;
        let media_type = manifest::OCI_LAYER.to_owned();
        Ok(Descriptor { media_type, digest: blob.digest, size: blob.size, platform: None, annotations: None })
    }

    fn configuration(&self, digest: &Digest, raw: &[u8]) -> Result<()> {
        let size = raw.len() as u64;
        let blob = Descriptor {
            media_type: manifest::OCI_CONFIG.to_owned(),
            digest: digest.clone(),
            size,
            platform: None,
            annotations: None,
        };
        if self.has(&blob)? {
            return Ok(());
        }
        self.upload(digest, size, Content::Bytes(raw), &|_| {})
    }

    fn manifest(&self, reference: &Reference, manifest: &Manifest, bytes: &[u8]) -> Result<Pushed> {
        let scope = self.scope();
        let operation = format!("push the manifest of tag `{}`", reference.tag());
        let path = format!("/v2/{}/manifests/{}", self.repository, reference.tag());
        let kind = manifest.media_type.clone().unwrap_or_else(|| manifest::OCI_MANIFEST.to_owned());
        let call = Call::new(Method::PUT, path, &scope, operation.clone());
        let call = call.header("content-type", kind).payload(Payload::Bytes(bytes));
        let answer = self.client.send(&call)?;
        if !matches!(answer.status(), 200..=202) {
            return Err(self.client.unexpected(&operation, answer));
        }
        let digest = Digest::of(bytes);
        let said = answer.header("docker-content-digest").and_then(|text| text.trim().parse::<Digest>().ok());
        match said.filter(|said| *said != digest) {
            Some(said) => {
                let problem = format!("it has taken {digest} for {said}");
                Err(self.client.wrong(operation, problem))
            }
            None => Ok(Pushed { digest, size: bytes.len() as u64 }),
        }
    }

    /// Whether the repository has a blob.
    fn has(&self, blob: &Descriptor) -> Result<bool> {
        let scope = self.scope();
        let operation = format!("look for blob {}", blob.digest.short());
        let path = format!("/v2/{}/blobs/{}", self.repository, blob.digest);
        let answer = self.client.send(&Call::new(Method::HEAD, path, &scope, operation.clone()))?;
        match answer.status() {
            200 => {
                let length = answer.header(header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
                // Of a blob with another length nobody could make a layer again: it is sent once more.
                Ok(length.is_none_or(|length| length == blob.size))
            }
            404 => Ok(false),
            _ => Err(self.client.unexpected(&operation, answer)),
        }
    }

    /// Asks the registry to take a blob from another of its repositories.
    fn mount(&self, blob: &Descriptor, from: &str) -> Result<bool> {
        let scope = format!("{} repository:{from}:pull", self.scope());
        let operation = format!("mount blob {} from {from}", blob.digest.short());
        let path = format!("/v2/{}/blobs/uploads/?mount={}&from={from}", self.repository, blob.digest);
        let call = Call::new(Method::POST, path, &scope, operation).payload(Payload::Bytes(&[]));
        match self.client.send(&call) {
            Ok(answer) if answer.status() == 201 => Ok(true),
            // It has begun an upload instead; another answer is as good as a no. What cannot be had this way is sent.
            Ok(answer) => {
                if let (202, Ok(location)) = (answer.status(), self.location(&answer, "")) {
                    let call = Call::new(Method::DELETE, location, &scope, "cancel an upload".to_owned());
                    drop(self.client.send(&call.once()));
                }
                Ok(false)
            }
            // Not everybody who may push here may pull there.
            Err(Error::Registry(error)) if matches!(error.problem, Problem::Denied { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where an upload goes on.
    fn location(&self, answer: &Answer, operation: &str) -> Result<String> {
        let location = answer.header(header::LOCATION);
        location
            .map(|location| join(&answer.url, location))
            .ok_or_else(|| self.client.wrong(operation, "it does not say where the upload goes on"))
    }

    /// Sends a blob, beginning anew or going on where it broke off.
    fn upload(&self, digest: &Digest, size: u64, content: Content<'_>, progress: &dyn Fn(u64)) -> Result<()> {
        let operation = format!("push blob {}", digest.short());
        let upload =
            Upload { target: self, digest, size, content, operation: &operation, scope: self.scope() };
        let mut session = None;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let error = match upload.attempt(&mut session, progress) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let timing = self.client.timing();
            let pause = passing(&error).filter(|pause| *pause <= timing.longest_pause);
            let Some(pause) = pause.filter(|_| attempt < timing.attempts) else { return Err(error) };
            tracing::debug!(registry = self.client.name(), operation, %error, "upload again");
            self.client.pause(pause.max(self.client.backoff(attempt)))?;
            session = session.and_then(|session| upload.resume(session));
        }
    }
}

/// How long to wait at least before an upload is tried again; none where that would not help.
fn passing(error: &Error) -> Option<Duration> {
    let Error::Registry(error) = error else { return None };
    match &error.problem {
        Problem::Broken { .. } => Some(Duration::ZERO),
        Problem::TooMany { wait, .. } => Some(wait.unwrap_or_default()),
        // The registry has lost the upload, or never got all of a part.
        Problem::Status { status: 400 | 404 | 408 | 416 | 500..=599, .. } => Some(Duration::ZERO),
        _ => None,
    }
}

/// What is sent.
#[derive(Clone, Copy)]
enum Content<'a> {
    Bytes(&'a [u8]),
    File(&'a Path),
}

impl<'a> Content<'a> {
    fn part(self, start: u64, length: u64) -> Payload<'a> {
        match self {
            // Only small things are in memory, and those are sent at once.
            Content::Bytes(bytes) => Payload::Bytes(bytes),
            Content::File(file) => Payload::Part { file, start, length },
        }
    }
}

/// A blob that is sent.
struct Upload<'a> {
    target: &'a Target<'a>,
    digest: &'a Digest,
    size: u64,
    content: Content<'a>,
    operation: &'a str,
    scope: String,
}

/// How far the registry is with an upload.
struct Session {
    location: String,
    offset: u64,
}

impl Upload<'_> {
    fn client(&self) -> &Client {
        self.target.client
    }

    fn call(&self, method: Method, target: String) -> Call<'_> {
        Call::new(method, target, &self.scope, self.operation.to_owned())
    }

    /// Begins or goes on, up to the end; `session` says afterwards how far it came.
    fn attempt(&self, session: &mut Option<Session>, progress: &dyn Fn(u64)) -> Result<()> {
        let mut here = match session.take() {
            Some(session) => session,
            None => self.begin()?,
        };
        let at_once = here.offset == 0 && self.size <= self.target.part;
        while !at_once && here.offset < self.size {
            let length = self.target.part.min(self.size - here.offset);
            let call = self.call(Method::PATCH, here.location.clone()).once();
            let call = call
                .header("content-type", "application/octet-stream")
                .header("content-range", format!("{}-{}", here.offset, here.offset + length - 1))
                .payload(self.content.part(here.offset, length));
            let sent = self.client().send(&call).and_then(|answer| match answer.status() {
                202 => self.target.location(&answer, self.operation),
                _ => Err(self.client().unexpected(self.operation, answer)),
            });
            match sent {
                Ok(location) => here = Session { location, offset: here.offset + length },
                Err(error) => {
                    *session = Some(here);
                    return Err(error);
                }
            }
            progress(here.offset);
        }
        let join = if here.location.contains('?') { '&' } else { '?' };
        let call = self.call(Method::PUT, format!("{}{join}digest={}", here.location, self.digest)).once();
        let payload = if at_once { self.content.part(0, self.size) } else { Payload::Bytes(&[]) };
        let answer =
            self.client().send(&call.header("content-type", "application/octet-stream").payload(payload))?;
        match answer.status() {
            200 | 201 | 204 => {
                progress(self.size);
                Ok(())
            }
            _ => Err(self.client().unexpected(self.operation, answer)),
        }
    }

    fn begin(&self) -> Result<Session> {
        let path = format!("/v2/{}/blobs/uploads/", self.target.repository);
        let answer = self.client().send(&self.call(Method::POST, path).payload(Payload::Bytes(&[])))?;
        match answer.status() {
            202 => Ok(Session { location: self.target.location(&answer, self.operation)?, offset: 0 }),
            _ => Err(self.client().unexpected(self.operation, answer)),
        }
    }

    /// Asks how much has arrived of what broke off; none where it has to begin anew.
    fn resume(&self, session: Session) -> Option<Session> {
        let answer = self.client().send(&self.call(Method::GET, session.location.clone()).once()).ok()?;
        if answer.status() != 204 {
            return None;
        }
        let last: u64 =
            answer.header(header::RANGE)?.trim_start_matches("bytes=").split_once('-')?.1.parse().ok()?;
        let offset = if last == 0 { 0 } else { last + 1 };
        let location = self.target.location(&answer, self.operation).unwrap_or(session.location);
        (offset <= self.size && offset > 0).then_some(Session { location, offset })
    }
}
