//! The examples of `docs/stack-toml.md`: each is a file that can be used, and together they have every key with an effect.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use super::{Fate, LEVELS, Level};
use crate::host::HostFacts;
use crate::load::{self, LoadOptions};

thread_local! {
    static MET: RefCell<BTreeSet<(&'static str, String)>> = const { RefCell::new(BTreeSet::new()) };
}

/// Notes a key that a parser of this thread has met.
pub(super) fn met(level: &Level, name: &str) {
    MET.with_borrow_mut(|met| met.insert((level.title, name.to_owned())));
}

/// What the examples refer to, beside them. A path that ends in `/` is a directory.
const BESIDE: &[(&str, &str)] = &[
    ("web/Dockerfile", "FROM scratch\n"),
    ("web/Dockerfile.debian", "FROM scratch\n"),
    ("web/Dockerfile.production", "FROM scratch\n"),
    ("monitoring/stack.toml", "[services.probe]\nimage = \"probe:1\"\n"),
    ("common.toml", "[services.base]\nimage = \"base:1\"\n"),
    ("app.env", "LEVEL=info\n"),
    ("app.labels", "org.example.tier=front\n"),
    ("secrets/api_key", "k"),
    ("secrets/npm_token", "k"),
    ("secrets/password", "k"),
    ("secrets/key", "k"),
    ("conf/settings", "a = b\n"),
    ("profile.json", r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#),
    ("photos/", ""),
    ("assets/", ""),
    ("site/", ""),
    ("rootfs.tar.gz", ""),
];

/// Keys that no file that can be used has.
const NEVER: &[(&str, &str)] = &[("Secrets and configs", "external")];

/// Keys that have been replaced by what they mean when the parsers get the file.
const ELSEWHERE: &[(&str, &str)] =
    &[("The file", "include"), ("Services", "env_file"), ("Services", "extends")];

/// The first line of each example, and its text.
fn examples(page: &str) -> Vec<(usize, &str)> {
    let mut examples = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once("```toml\n") {
        let (example, behind) = after.split_once("```").expect("the end of an example");
        let line = page[..page.len() - after.len()].lines().count() + 1;
        examples.push((line, example));
        rest = behind;
    }
    examples
}

#[test]
fn every_key_has_an_example_that_can_be_used() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/stack-toml.md");
    let page = std::fs::read_to_string(page).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in BESIDE {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            std::fs::create_dir_all(path).unwrap();
        } else {
            std::fs::write(path, text).unwrap();
        }
    }
    let host = HostFacts {
        environment: [("SESSION_KEY", "k"), ("SSH_AUTH_SOCK", "/run/agent")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        unprivileged_port_start: 1024,
        ..HostFacts::default()
    };
    let examples = examples(&page);
    assert!(examples.len() > 8, "the examples are not found");
    let file = directory.path().join("stack.toml");
    let mut faults = Vec::new();
    for &(line, example) in &examples {
        // Images are built for this machine only.
        let own = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
        std::fs::write(&file, example.replace("linux/amd64", own)).unwrap();
        let options = LoadOptions {
            files: vec![file.clone()],
            profiles: vec!["*".to_owned()],
            ..LoadOptions::default()
        };
        if let Err(error) = load::load(&options, &host) {
            faults.push(format!("the example in line {line} of docs/stack-toml.md: {}", error.render(false)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let met = MET.with_borrow(Clone::clone);
    let mut missing = Vec::new();
    for level in LEVELS {
        for entry in level.keys {
            let with_effect = matches!(entry.fate, Fate::Honoured(_) | Fate::Own(_));
            let known = match ELSEWHERE.contains(&(level.title, entry.name)) {
                true => examples.iter().any(|(_, text)| text.contains(&format!("{} = ", entry.name))),
                false => met.contains(&(level.title, entry.name.to_owned())),
            };
            if with_effect && !known && !NEVER.contains(&(level.title, entry.name)) {
                missing.push(format!("`{}` of {}", entry.name, level.title));
            }
        }
    }
    assert!(missing.is_empty(), "keys without an example in docs/stack-toml.md: {missing:#?}");
}
