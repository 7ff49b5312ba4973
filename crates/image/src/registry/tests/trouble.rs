//! What breaks off, and what passes.

use super::*;

/// What a test of silence waits for.
fn impatient() -> Access {
    let mut access = access(None);
    access.timing.stall = Duration::from_millis(300);
    access
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
    let (pulled, _) = place.pull(&server.name("team/app:1"), &impatient()).unwrap();
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
        let (found, _) = problem(place.pull(&name, &impatient()).unwrap_err());
        assert!(matches!(found, Problem::Broken { attempts: 3, .. }), "{found:?}");
        place.assert_empty();
    }
}
