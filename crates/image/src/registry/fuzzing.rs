//! What registries send, read as transfers read it and without one: for `fuzz/`, which sees public items only.

use std::time::SystemTime;

use super::address::{join, origin};
use super::auth::Challenge;
use super::headers;
use crate::manifest::{Document, Platform, offered};

/// A manifest or an index with its `Content-Type`.
pub fn document(bytes: &[u8], content_type: Option<&str>) {
    match Document::parse(bytes, content_type) {
        Ok(Document::Manifest(manifest)) => {
            let json = serde_json::to_vec(&manifest).expect("it was JSON");
            let Ok(Document::Manifest(again)) = Document::parse(&json, None) else {
                panic!("a manifest that was read is none when it is written")
            };
            assert_eq!(again, manifest);
            if let Err(problem) = manifest.check() {
                assert!(!problem.is_empty());
            }
        }
        Ok(Document::Index(manifests)) => {
            if let Some(at) = Platform::host().choose(&manifests) {
                let chosen = manifests[at].platform.as_ref().expect("it was chosen by its platform");
                assert_eq!(chosen.os, "linux");
            }
            let text = offered(&manifests);
            assert!(!text.is_empty() && !text.contains(char::is_control));
        }
        Err(problem) => assert!(!problem.is_empty()),
    }
}

/// `WWW-Authenticate`, several of them.
pub fn challenge(values: &[&str]) {
    if let Some(Challenge::Bearer { realm, service }) = Challenge::parse(values.iter().copied()) {
        let longest = values.iter().map(|value| value.len()).max().unwrap_or(0);
        assert!(realm.len() <= longest && service.is_none_or(|service| service.len() <= longest));
    }
}

/// `Location`, of an answer of the server at `base`.
pub fn location(base: &str, value: &str) {
    let url = join(base, value);
    assert!(url.starts_with(origin(&url)));
    // A way that names no other server stays with this one.
    if !value.contains("//") {
        assert_eq!(origin(&url), origin(base), "{value}");
    }
}

/// `Retry-After` with a `Date`, and `Content-Range`.
pub fn numbers(value: &str, date: Option<&str>) {
    let now = SystemTime::UNIX_EPOCH;
    let wait = headers::retry_after(value, date, now);
    assert!(wait.is_none() || value.contains(|c: char| c.is_ascii_digit()));
    let start = headers::range_start(value);
    assert!(start.is_none() || value.contains('-') || value.trim().starts_with("bytes"));
}
