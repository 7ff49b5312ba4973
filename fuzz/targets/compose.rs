//! Any text as a compose file: through tree, `extends`, merging (each document is a layer), interpolation, model and
//! plan it ends in a plan or an error that can be shown, and what `config` makes of it means the same again.
#![no_main]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use stack::host::HostFacts;
use stack::load::{LoadOptions, config, load};

/// An empty directory, in which there is nothing to include.
fn directory() -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY
        .get_or_init(|| {
            let path = std::env::temp_dir().join(format!("fuzz-compose-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a directory for nothing");
            path
        })
        .clone()
}

fn options(text: &str) -> LoadOptions {
    LoadOptions {
        files: vec![PathBuf::from("-")],
        standard_input: Some(text.to_owned()),
        project_directory: Some(directory()),
        profiles: vec!["a".to_owned()],
        ..LoadOptions::default()
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let variables = [("A", "a"), ("EMPTY", ""), ("USER", "x: $y")];
    let environment: BTreeMap<String, String> =
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let host = HostFacts { environment, ..HostFacts::default() };
    if let Err(error) = load(&options(text), &host) {
        assert!(error.render(true).contains("error:"));
    }
    if let Ok(as_written) = config(&options(text), &host, false) {
        as_written.toml();
    }
    let Ok(first) = config(&options(text), &host, true) else { return };
    let yaml = first.yaml();
    match config(&options(&yaml), &host, true) {
        Ok(second) => assert_eq!(second.yaml(), yaml),
        Err(error) => panic!("{}\n{yaml}", error.render(false)),
    }
});
