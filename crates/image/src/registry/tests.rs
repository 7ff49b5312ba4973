//! Transfers with a registry that fails, lies, and wants to know who we are.

mod server;

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

/// Short waits: the tests' faults are quick.
fn access(credentials: Option<(&str, Credentials)>) -> Access {
    let timing = Timing {
        connect: Duration::from_secs(2),
        stall: Duration::from_millis(300),
        answer: Duration::from_secs(2),
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

/// A layer of one file: the archive, and the blob that it is packed into.
fn layer(name: &str, size: usize) -> (Vec<u8>, Vec<u8>) {
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
    let plain = archive.into_inner().unwrap();
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&plain).unwrap();
    (plain, packed.finish().unwrap())
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
    let layers = [layer("one", 60_000), layer("two", 300)];
    let diff_ids: Vec<Digest> = layers.iter().map(|(plain, _)| Digest::of(plain)).collect();
    // A key that we do not know, and an order that is not ours.
    let config = json!({
        "os": "linux", "architecture": architecture, "x.unknown": 1, "config": { "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = serde_json::to_vec_pretty(&config).unwrap();
    let blobs: Vec<Vec<u8>> = layers.into_iter().map(|(_, packed)| packed).collect();
    let (kind, config_kind, layer_kind) = match docker {
        true => (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER),
        false => (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER),
    };
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

#[test]
fn an_image_is_pulled_as_it_is_and_only_once() {
    let sample = sample();
    let server = with_sample(&sample, |_| None);
    let place = Place::new();
    let name = server.name("team/app:1");
    let (pulled, _) = place.pull(&name, &access(None)).unwrap();
    assert_eq!(pulled.image.id, Digest::of(&sample.config));
    assert_eq!((&pulled.digest, pulled.present), (&sample.digest, false));
    assert_eq!(place.store.image_json(&pulled.image.id).unwrap().unwrap(), sample.config);
    for name in [name.clone(), server.name(&format!("team/app@{}", sample.digest))] {
        let found = place.store.image(&name.parse().unwrap()).unwrap().unwrap();
        assert_eq!(found.id, pulled.image.id, "{name}");
    }
    let (again, events) = place.pull(&name, &access(None)).unwrap();
    assert!(again.present);
    assert!(events.iter().all(|event| !matches!(event, TransferEvent::Begun { .. })), "{events:?}");
    for at in 0..2 {
        assert_eq!(server.count("GET", &sample.blob(at)), 1);
    }
}

#[test]
fn tokens_are_fetched_and_renewed() {
    let sample = sample();
    let (tokens, at_token) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let slow = sample.blob(0);
    let counted = (Arc::clone(&tokens), Arc::clone(&at_token));
    let server = with_sample(&sample, move |request| {
        let (tokens, refused) = &counted;
        if request.target.starts_with("/token") {
            assert!(request.target.contains("service=here"), "{}", request.target);
            assert!(request.target.contains("scope=repository%3Ateam%2Fapp%3Apull"), "{}", request.target);
            assert_eq!(request.header("authorization"), Some("Basic YW5uOnNlY3JldA=="));
            let number = tokens.fetch_add(1, Ordering::SeqCst);
            return Some(Reply::new(200).body(format!("{{\"token\":\"t{number}\",\"expires_in\":300}}")));
        }
        // The first token ends before its time: in the middle of the pull.
        let newest = format!("Bearer t{}", tokens.load(Ordering::SeqCst).wrapping_sub(1));
        let good = request.header("authorization") == Some(&newest);
        let ended = request.target.contains(&slow) && newest == "Bearer t0";
        if good && !ended {
            return None;
        }
        refused.fetch_add(1, Ordering::SeqCst);
        let host = request.header("host").unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"here\",scope=\"x\"");
        Some(Reply::new(401).header("WWW-Authenticate", challenge))
    });
    let access = access(Some((&server.host, password("ann", "secret"))));
    Place::new().pull(&server.name("team/app:1"), &access).unwrap();
    assert_eq!(tokens.load(Ordering::SeqCst), 2);
    // The first request, and the first token's end; perhaps seen by both layers.
    assert!((2..=3).contains(&at_token.load(Ordering::SeqCst)));
}

#[test]
fn an_identity_token_is_exchanged() {
    let sample = sample();
    let server = with_sample(&sample, |request| {
        if request.is("POST", "/token") {
            let body = String::from_utf8(request.body.clone()).unwrap();
            assert!(body.contains("grant_type=refresh_token") && body.contains("refresh_token=id"), "{body}");
            return Some(Reply::new(200).body("{\"access_token\":\"t\"}"));
        }
        let host = request.header("host").unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\"");
        (request.header("authorization") != Some("Bearer t"))
            .then(|| Reply::new(401).header("WWW-Authenticate", challenge))
    });
    let access = access(Some((&server.host, Credentials::IdentityToken("id".to_owned()))));
    Place::new().pull(&server.name("team/app:1"), &access).unwrap();
}

#[test]
fn who_is_not_let_in_is_told_what_to_do() {
    let sample = sample();
    let server = with_sample(&sample, |request| {
        (request.header("authorization") != Some("Basic YW5uOnNlY3JldA==")).then(|| {
            let body = "{\"errors\":[{\"code\":\"UNAUTHORIZED\",\"message\":\"who\\nare you\"}]}";
            Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\"").body(body)
        })
    });
    let name = server.name("team/app:1");
    let place = Place::new();
    let (denied, hint) = problem(place.pull(&name, &access(None)).unwrap_err());
    assert!(matches!(denied, Problem::Denied { logged_in: false, .. }), "{denied:?}");
    assert!(denied.to_string().contains("who are you"), "{denied}");
    assert!(hint.contains(&format!("inception-run login {}", server.host)), "{hint}");
    let wrong = access(Some((&server.host, password("ann", "wrong"))));
    let (denied, _) = problem(place.pull(&name, &wrong).unwrap_err());
    assert!(matches!(denied, Problem::Denied { logged_in: true, .. }), "{denied:?}");
    assert!(check_login(&wrong, &server.host).is_err());
    place.assert_empty();
    let right = access(Some((&server.host, password("ann", "secret"))));
    check_login(&right, &server.host).unwrap();
    place.pull(&name, &right).unwrap();
}

#[test]
fn passing_trouble_is_waited_out() {
    let sample = sample();
    let blob = sample.blob(0);
    let server = with_sample(&sample, move |request| {
        let trouble = match request.before {
            0 if request.is("GET", "/manifests/1") => Reply::new(429).header("Retry-After", "0"),
            1 if request.is("GET", "/manifests/1") => Reply::new(503),
            0 if request.is("GET", &blob) => Reply::new(500),
            _ => return None,
        };
        Some(trouble)
    });
    Place::new().pull(&server.name("team/app:1"), &access(None)).unwrap();
    assert_eq!(server.count("GET", "/manifests/1"), 3);
}

#[test]
fn a_long_wait_is_the_users_to_decide() {
    let sample = sample();
    let server = with_sample(&sample, |request| {
        request.is("GET", "/manifests/").then(|| Reply::new(429).header("Retry-After", "3600"))
    });
    let (found, hint) = problem(Place::new().pull(&server.name("team/app:1"), &access(None)).unwrap_err());
    assert!(found.to_string().contains("3600 seconds") && hint.contains("login"), "{found} {hint}");
    assert_eq!(server.count("GET", "/manifests/"), 1);
}

#[test]
fn what_breaks_off_is_resumed() {
    let sample = sample();
    let (blob, bytes) = (sample.blob(0), sample.blobs[0].clone());
    let server = with_sample(&sample, move |request| {
        if !request.is("GET", &blob) {
            return None;
        }
        Some(match request.before {
            0 => ranged(request, &bytes).fault(Fault::Cut(20_000)),
            1 => {
                assert_eq!(request.header("range"), Some("bytes=20000-"));
                ranged(request, &bytes).fault(Fault::Stall(20_000, Duration::from_secs(5)))
            }
            // A server that cannot begin in the middle.
            _ => Reply::new(200).body(&*bytes),
        })
    });
    let place = Place::new();
    let (pulled, _) = place.pull(&server.name("team/app:1"), &access(None)).unwrap();
    assert_eq!(pulled.image.id, Digest::of(&sample.config));
    assert_eq!(server.count("GET", &sample.blob(0)), 3);
}

#[test]
fn what_breaks_off_always_is_given_up() {
    let sample = sample();
    for fault in [Fault::Cut(10), Fault::Stall(10, Duration::from_secs(3))] {
        let (blob, bytes) = (sample.blob(0), sample.blobs[0].clone());
        let server = with_sample(&sample, move |request| {
            request.is("GET", &blob).then(|| Reply::new(200).body(&*bytes).fault(fault))
        });
        let place = Place::new();
        let name = server.name("team/app:1");
        let (found, _) = problem(place.pull(&name, &access(None)).unwrap_err());
        assert!(matches!(found, Problem::Broken { attempts: 3, .. }), "{found:?}");
        place.assert_empty();
    }
}

#[test]
fn lies_are_found_out() {
    let sample = sample();
    let (first, second) = (sample.blob(0), sample.blob(1));
    let other = sample.blobs[1].clone();
    let mut flipped = sample.blobs[0].clone();
    flipped[30_000] ^= 1;
    let longer = [&sample.blobs[0][..], b"more"].concat();
    type Lie = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;
    let (a, b, c, d) = (first.clone(), first.clone(), first, second);
    let lies: Vec<(&str, Lie)> = vec![
        (
            "what arrived is sha256:",
            Box::new(move |r| r.is("GET", &a).then(|| Reply::new(200).body(&*flipped))),
        ),
        ("the manifest says", Box::new(move |r| r.is("GET", &b).then(|| Reply::new(200).body(&*longer)))),
        (
            "what arrived is sha256:",
            Box::new(move |r| r.is("GET", &c).then(|| Reply::new(200).fault(Fault::Endless))),
        ),
        (
            "the manifest says",
            Box::new(move |r| r.is("GET", &d).then(|| Reply::new(200).body(&*other).fault(Fault::Length(1)))),
        ),
        (
            "larger than",
            Box::new(|r| r.is("GET", "/manifests/").then(|| Reply::new(200).fault(Fault::Endless))),
        ),
        ("is no manifest", Box::new(|r| r.is("GET", "/manifests/").then(|| Reply::new(200).body("<html>")))),
        (
            "but it says",
            Box::new(|r| {
                let said = format!("sha256:{}", "0".repeat(64));
                r.is("GET", "/manifests/")
                    .then(|| Reply::new(200).header("Docker-Content-Digest", said).body("{}"))
            }),
        ),
        ("without saying where to", Box::new(|r| r.is("GET", "/manifests/").then(|| Reply::new(307)))),
        (
            "redirects us more than",
            Box::new(|r| {
                r.is("GET", "/manifests/").then(|| Reply::new(307).header("Location", r.target.clone()))
            }),
        ),
        (
            "has no TLS",
            Box::new(|r| {
                r.is("GET", "/manifests/").then(|| Reply::new(307).header("Location", "http://192.0.2.1/x"))
            }),
        ),
        (
            "no token",
            Box::new(|r| {
                let realm = format!("Bearer realm=\"http://{}/token\"", r.header("host").unwrap());
                match r.target.starts_with("/token") {
                    true => Some(Reply::new(200).body("{\"token\":\"a\\r\\nX: y\"}")),
                    false => Some(Reply::new(401).header("WWW-Authenticate", realm)),
                }
            }),
        ),
    ];
    for (said, lie) in lies {
        // Over plain HTTP only what is on this machine is trusted: that is part of one lie.
        let server = with_sample(&sample, lie);
        let place = Place::new();
        let begun = Instant::now();
        let error = place.pull(&server.name("team/app:1"), &access(None)).unwrap_err();
        let message = text(&error);
        assert!(message.contains(said), "{message}");
        assert!(message.contains(&server.host) && message.contains("team/app"), "{message}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{message}");
        place.assert_empty();
    }
}

#[test]
fn a_configuration_that_lies_about_its_layers_makes_no_image() {
    for lie in ["other layer", "too few"] {
        let mut sample = sample();
        let diff_ids = match lie {
            "too few" => vec![Digest::of(&layer("one", 60_000).0)],
            _ => vec![Digest::of(&layer("one", 60_000).0), Digest::of(b"something else")],
        };
        let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
        let config = json!({ "os": "linux", "architecture": crate::architecture(), "rootfs": rootfs });
        sample.config = serde_json::to_vec(&config).unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&sample.manifest).unwrap();
        manifest["config"] = descriptor(OCI_CONFIG, &sample.config);
        sample.manifest = serde_json::to_vec(&manifest).unwrap();
        let server = with_sample(&sample, |_| None);
        let place = Place::new();
        let message = text(&place.pull(&server.name("team/app:1"), &access(None)).unwrap_err());
        let said = if lie == "too few" { "it names 1 layers" } else { "the configuration says" };
        assert!(message.contains(said), "{message}");
        place.assert_empty();
    }
}

#[test]
fn nobody_but_the_registry_gets_the_credentials() {
    let sample = sample();
    let bytes: Vec<Vec<u8>> = sample.blobs.iter().chain([&sample.config]).cloned().collect();
    let elsewhere = Server::start(move |request| {
        let found = bytes.iter().find(|blob| request.target.contains(Digest::of(blob).hex()));
        found.map(|blob| ranged(request, blob))
    });
    let (to, basic) = (elsewhere.host.clone(), "Basic YW5uOnNlY3JldA==");
    let server = with_sample(&sample, move |request| {
        if request.header("authorization") != Some(basic) {
            return Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=x"));
        }
        let blob = request.is("GET", "/blobs/").then(|| request.target.rsplit(':').next().unwrap());
        blob.map(|hex| Reply::new(307).header("Location", format!("http://{to}/cdn/{hex}?signed=1")))
    });
    let access = access(Some((&server.host, password("ann", "secret"))));
    Place::new().pull(&server.name("team/app:1"), &access).unwrap();
    let content = elsewhere.content.lock().unwrap();
    assert_eq!(content.log.len(), 3);
    assert!(content.log.iter().all(|request| request.header("authorization").is_none()), "{:?}", content.log);
}

#[test]
fn a_pinned_digest_is_what_counts() {
    let sample = sample();
    let server = with_sample(&sample, |_| None);
    let place = Place::new();
    // The tag beside a digest means nothing.
    let name = server.name(&format!("team/app:other@{}", sample.digest));
    let (pulled, _) = place.pull(&name, &access(None)).unwrap();
    assert_eq!(pulled.digest, sample.digest);
    assert!(place.store.image(&server.name("team/app:1").parse().unwrap()).unwrap().is_none());
    // A registry that has something else under it.
    let wanted = Digest::of(b"wanted");
    server.put_manifest("team/app", &wanted.to_string(), OCI_MANIFEST, &sample.manifest);
    let other = Place::new();
    let message = text(&other.pull(&server.name(&format!("team/app@{wanted}")), &access(None)).unwrap_err());
    assert!(message.contains(&format!("what arrived is {}", sample.digest)), "{message}");
    other.assert_empty();
}

#[test]
fn an_index_has_one_for_us() {
    let server = Server::start(|_| None);
    let (ours, theirs) = (sample(), sample_of(false, "s390x"));
    let entry = |sample: &Sample, architecture: &str| {
        let mut entry = descriptor(OCI_MANIFEST, &sample.manifest);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    for sample in [&ours, &theirs] {
        server.put("team/app", "unused", sample);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry(&theirs, "s390x"), entry(&ours, crate::architecture())] });
    let index = serde_json::to_vec(&index).unwrap();
    let digest = server.put_manifest("team/app", "1", OCI_INDEX, &index);
    let place = Place::new();
    let name = server.name("team/app:1");
    let (pulled, _) = place.pull(&name, &access(None)).unwrap();
    assert_eq!((pulled.image.id, pulled.digest), (Digest::of(&ours.config), digest));
    let (pulled, _) = place.pull_for(&name, &access(None), Some("linux/s390x")).unwrap();
    assert_eq!(pulled.image.id, Digest::of(&theirs.config));
    let (found, _) = problem(place.pull_for(&name, &access(None), Some("linux/mips")).unwrap_err());
    assert!(found.to_string().contains("linux/s390x"), "{found}");
    // A manifest for others alone: said where it was not asked for, refused where another one was.
    server.put("team/app", "2", &theirs);
    let name = server.name("team/app:2");
    let (_, events) = place.pull(&name, &access(None)).unwrap();
    assert!(events.iter().any(|event| matches!(event, TransferEvent::Note(text) if text.contains("s390x"))));
    assert!(place.pull_for(&name, &access(None), Some(crate::architecture())).is_err());
}

#[test]
fn manifests_of_schema_1_and_other_artifacts_are_refused() {
    let server = Server::start(|_| None);
    server.put_manifest(
        "old",
        "1",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        b"{\"schemaVersion\":1}",
    );
    let message = text(&Place::new().pull(&server.name("old:1"), &access(None)).unwrap_err());
    assert!(message.contains("schema 1"), "{message}");
    let chart = json!({ "schemaVersion": 2, "config": descriptor("application/vnd.cncf.helm.config.v1+json", b"{}"),
        "layers": [] });
    server.put_manifest("chart", "1", OCI_MANIFEST, chart.to_string().as_bytes());
    let message = text(&Place::new().pull(&server.name("chart:1"), &access(None)).unwrap_err());
    assert!(message.contains("no image of a container"), "{message}");
    let message = text(&Place::new().pull(&server.name("chart:2"), &access(None)).unwrap_err());
    assert!(message.contains("there is no tag `2` here (no such thing)"), "{message}");
}

#[test]
fn mirrors_come_first_and_may_fail() {
    let sample = sample();
    let broken = Server::start(|request| request.is("GET", "/manifests/").then(|| Reply::new(404)));
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mirror = Server::start(|_| None);
    // It stands for several registries.
    mirror.put("hub/library/app", "1", &sample);
    let mut access = access(None);
    let urls = [
        format!("http://{gone}"),
        format!("http://{}", broken.host),
        format!("http://{}/v2/hub/", mirror.host),
    ];
    access.registries.insert(
        DOCKER_HUB.to_owned(),
        Registry {
            mirrors: urls.iter().map(|url| Mirror::parse(url).unwrap()).collect(),
            ..Registry::default()
        },
    );
    let place = Place::new();
    let (pulled, events) = place.pull("app:1", &access).unwrap();
    assert_eq!(pulled.digest, sample.digest);
    let notes: Vec<_> = events.iter().filter(|event| matches!(event, TransferEvent::Note(_))).collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(place.store.image(&"docker.io/library/app:1".parse().unwrap()).unwrap().is_some());
}

#[test]
fn nobody_there_is_known_at_once() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = Instant::now();
    match Place::new().pull(&format!("{gone}/app:1"), &access(None)).unwrap_err() {
        Error::Registry(error) => assert!(error.is_unreachable(), "{error:?}"),
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_was_pulled_is_pushed_as_it_was() {
    for docker in [false, true] {
        let sample = sample_of(docker, crate::architecture());
        let server = with_sample(&sample, |_| None);
        let place = Place::new();
        let (pulled, _) = place.pull(&server.name("team/app:1"), &access(None)).unwrap();
        let copy: Reference = server.name("team/copy:2").parse().unwrap();
        place.store.tag(&copy, &pulled.image.id).unwrap();
        let (pushed, events) = place.push(&copy.to_string(), &access(None)).unwrap();
        // The layers are taken from where they are, so the manifest is the same.
        assert_eq!(pushed.digest, sample.digest);
        let mounted =
            |event: &&TransferEvent| matches!(event, TransferEvent::Ended { outcome: Outcome::Mounted, .. });
        assert_eq!(events.iter().filter(mounted).count(), 2, "{events:?}");
        // To a registry that has nothing: packed anew, and of the same kind.
        let other = Server::start(|_| None);
        let away: Reference = other.name("app:1").parse().unwrap();
        place.store.tag(&away, &pulled.image.id).unwrap();
        place.push(&away.to_string(), &access(None)).unwrap();
        let kind = other.content.lock().unwrap().manifests[&("app".to_owned(), "1".to_owned())].0.clone();
        assert_eq!(kind, if docker { DOCKER_MANIFEST } else { OCI_MANIFEST });
        let back = Place::new();
        let (again, _) = back.pull(&away.to_string(), &access(None)).unwrap();
        assert_eq!(again.image.id, pulled.image.id);
    }
}

#[test]
fn a_second_push_sends_nothing() {
    let sample = sample();
    let source = with_sample(&sample, |_| None);
    let place = Place::new();
    let (pulled, _) = place.pull(&source.name("team/app:1"), &access(None)).unwrap();
    let server = Server::start(|_| None);
    let name = server.name("team/app:1");
    place.store.tag(&name.parse().unwrap(), &pulled.image.id).unwrap();
    let (first, _) = place.push(&name, &access(None)).unwrap();
    assert_eq!(server.count("POST", "/uploads/"), 3);
    let (second, events) = place.push(&name, &access(None)).unwrap();
    assert_eq!((server.count("POST", "/uploads/"), first.digest.clone()), (3, second.digest));
    assert!(events.iter().all(|event| !matches!(event, TransferEvent::Begun { .. })), "{events:?}");
    let pinned = name.parse::<Reference>().unwrap().pinned(&first.digest);
    assert!(place.store.image(&pinned).unwrap().is_some());
}

#[test]
fn a_push_that_breaks_goes_on() {
    let sample = sample();
    let source = with_sample(&sample, |_| None);
    let place = Place::new();
    let (pulled, _) = place.pull(&source.name("team/app:1"), &access(None)).unwrap();
    for part in [1 << 20, 10_000] {
        let failures = AtomicUsize::new(0);
        let server = Server::start(move |request| {
            // One part, or one whole blob, is lost on its way.
            let lost = match request.header("content-range") {
                Some(range) => range.starts_with("10000-"),
                None => request.is("PUT", "/uploads/") && part > 10_000,
            };
            let first = lost && failures.fetch_add(1, Ordering::SeqCst) == 0;
            first.then(|| Reply::new(502).fault(Fault::Length(9)))
        });
        let name = server.name("app:1");
        place.store.tag(&name.parse().unwrap(), &pulled.image.id).unwrap();
        let access = Access { part, ..access(None) };
        place.push(&name, &access).unwrap();
        let (again, _) = Place::new().pull(&name, &access).unwrap();
        assert_eq!(again.image.id, pulled.image.id);
        if part == 10_000 {
            assert_eq!(server.count("GET", "/uploads/"), 1);
        }
    }
}

proptest::proptest! {
    /// Whatever a registry says, it is read or refused.
    #[test]
    fn nothing_that_is_read_is_trusted(bytes: Vec<u8>, text: String, kind in "[a-z/.+;=\"\\\\, ]{0,40}") {
        drop(crate::manifest::Document::parse(&bytes, Some(&kind)));
        drop(crate::manifest::Document::parse(text.as_bytes(), None));
        drop(auth::Challenge::parse([&*text, &*format!("Bearer {kind}={text}")].into_iter()));
        drop(address::join("https://h/v2/a", &text));
        if let Ok(reference) = text.parse::<Reference>() {
            proptest::prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
        if let Some(mirror) = Mirror::parse(&text) {
            proptest::prop_assert!(!mirror.host().is_empty());
        }
    }
}

#[test]
fn pushes_that_are_not_allowed_say_so() {
    let sample = sample();
    let server = with_sample(&sample, |request| {
        let body = "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"read only\"}]}";
        request.is("POST", "/uploads/").then(|| Reply::new(403).body(body))
    });
    let place = Place::new();
    let (pulled, _) = place.pull(&server.name("team/app:1"), &access(None)).unwrap();
    let name = server.name("team/other:1");
    place.store.tag(&name.parse().unwrap(), &pulled.image.id).unwrap();
    let (denied, _) = problem(place.push(&name, &access(None)).unwrap_err());
    assert!(denied.to_string().contains("read only"), "{denied}");
    assert!(place.push(&server.name("team/none:1"), &access(None)).is_err());
}
