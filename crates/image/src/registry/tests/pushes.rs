//! Pushes.

use super::*;

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
