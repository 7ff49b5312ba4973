//! Who we are to a registry, and who learns of it.

use super::*;

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
