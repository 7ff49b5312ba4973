//! Pulls: what arrives, from where, and for which machine.

use super::*;

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
fn layers_are_unpacked_however_they_are_packed() {
    type Pack = fn(&[u8]) -> Vec<u8>;
    let packings: [(&str, Pack); 3] = [
        ("application/vnd.oci.image.layer.v1.tar+zstd", |plain| zstd::encode_all(plain, 3).unwrap()),
        // Whatever it is called: it is looked at.
        ("application/vnd.oci.image.layer.v1.tar+gzip", |plain| zstd::encode_all(plain, 3).unwrap()),
        ("application/vnd.oci.image.layer.v1.tar", <[u8]>::to_vec),
    ];
    let gzipped = sample();
    for (kind, pack) in packings {
        let sample = packed_sample([OCI_MANIFEST, OCI_CONFIG, kind], crate::architecture(), pack);
        let server = with_sample(&sample, |_| None);
        let place = Place::new();
        let (pulled, _) = place.pull(&server.name("team/app:1"), &access(None)).unwrap();
        // The layers are those of the same archives packed with gzip, and so is the image.
        assert_eq!(sample.config, gzipped.config);
        assert_eq!(pulled.image.id, Digest::of(&gzipped.config), "{kind}");
        for diff_id in &pulled.image.config.rootfs.diff_ids {
            assert!(place.store.has_layer(diff_id).unwrap());
        }
        // What it was to the registry is known: pushed back under another name, nothing is packed anew.
        let name = server.name("team/again:1");
        place.store.tag(&name.parse().unwrap(), &pulled.image.id).unwrap();
        let (pushed, _) = place.push(&name, &access(None)).unwrap();
        assert_eq!(pushed.digest, sample.digest, "{kind}");
        // The configuration only.
        assert_eq!(server.count("PUT", "/blobs/uploads/"), 1, "{kind}");
    }
}

#[test]
fn a_damaged_zstd_layer_is_no_layer() {
    let zstd = |plain: &[u8]| {
        let mut packed = zstd::encode_all(plain, 3).unwrap();
        let at = packed.len() / 2;
        packed.truncate(at);
        packed
    };
    let kind = "application/vnd.oci.image.layer.v1.tar+zstd";
    // The digest is that of the damaged blob: only what unpacks it can see it.
    let sample = packed_sample([OCI_MANIFEST, OCI_CONFIG, kind], crate::architecture(), zstd);
    let server = with_sample(&sample, |_| None);
    let place = Place::new();
    let message = text(&place.pull(&server.name("team/app:1"), &access(None)).unwrap_err());
    assert!(message.contains("layer sha256:") && message.contains("team/app"), "{message}");
    place.assert_empty();
}
