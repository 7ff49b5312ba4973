//! Any bytes as what a registry answers (manifests, indexes, headers) and as the names that lead to it: they are read or
//! refused, and what was read is the same when it is written and read again.
#![no_main]

use image::Reference;
use image::registry::fuzzing::{challenge, document, location, numbers};
use image::registry::{Mirror, Platform};

/// Answers of these are redirected: a registry, a mirror below a path, an upload that is under way.
const BASES: [&str; 3] =
    ["https://h:5000", "https://h/hub", "https://h:5000/v2/a/blobs/uploads/1?_state=x"];
const KINDS: [Option<&str>; 3] = [
    None,
    Some("application/vnd.oci.image.index.v1+json"),
    Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"),
];

fn names(text: &str) {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().ok(), Some(reference));
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>(), Ok(platform));
    }
    if let Some(mirror) = Mirror::parse(text) {
        assert!(!mirror.host().is_empty() && !mirror.url.ends_with('/'));
        assert!(mirror.prefix.is_empty() || mirror.prefix.ends_with('/'));
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&kind, bytes)) = input.split_first() else { return };
    if kind % 8 < 3 {
        return document(bytes, KINDS[usize::from(kind % 8)]);
    }
    // A header with anything else is none.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let lines: Vec<&str> = text.split('\n').collect();
    match kind % 8 {
        3 => challenge(&lines),
        4 | 5 => location(BASES[lines.len() % BASES.len()], lines[0]),
        6 => numbers(lines[0], lines.get(1).copied()),
        _ => names(text),
    }
});
