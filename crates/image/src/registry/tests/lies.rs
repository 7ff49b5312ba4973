//! What is said, and is not so.

use super::*;

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
            // The host is what stands behind the `@`.
            "has no TLS",
            Box::new(|r| {
                let to = "http://127.0.0.1:1@192.0.2.1/x";
                r.is("GET", "/manifests/").then(|| Reply::new(307).header("Location", to))
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
        let error = place.pull(&server.name("team/app:1"), &access(None)).unwrap_err();
        let message = text(&error);
        assert!(message.contains(said), "{message}");
        assert!(message.contains(&server.host) && message.contains("team/app"), "{message}");
        place.assert_empty();
    }
}

#[test]
fn a_configuration_that_lies_about_its_layers_makes_no_image() {
    for lie in ["other layer", "too few"] {
        let mut sample = sample();
        let diff_ids = match lie {
            "too few" => vec![Digest::of(&archive("one", 60_000))],
            _ => vec![Digest::of(&archive("one", 60_000)), Digest::of(b"something else")],
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
fn a_registry_elsewhere_leads_to_nothing_of_this_machine() {
    // An address of this machine that is not its loopback is a registry elsewhere. Nothing is sent.
    let outward = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let Ok(outward) = outward else {
        println!(
            "skipped: a_registry_elsewhere_leads_to_nothing_of_this_machine: no address but the loopback's"
        );
        return;
    };
    let here = Server::start(|_| Some(Reply::new(200).body("{\"token\":\"x\"}")));
    let (to, realm) =
        (format!("http://{}/x", here.host), format!("Bearer realm=\"http://{}/token\"", here.host));
    let led: [Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>; 2] = [
        Box::new(move |r| r.is("GET", "/manifests/").then(|| Reply::new(307).header("Location", to.clone()))),
        Box::new(move |_| Some(Reply::new(401).header("WWW-Authenticate", realm.clone()))),
    ];
    for led in led {
        let server = Server::start_at(&outward.ip().to_string(), led);
        let mut access = access(Some((&server.host, password("ann", "secret"))));
        access.registries.get_mut(&server.host).unwrap().plain_http = true;
        let error = Place::new().pull(&server.name("team/app:1"), &access).unwrap_err();
        assert!(text(&error).contains("which has no TLS"), "{}", text(&error));
    }
    assert_eq!(here.content.lock().unwrap().log.len(), 0);
}
