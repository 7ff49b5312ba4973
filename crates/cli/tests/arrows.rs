//! The shape of the workspace, as ARCHITECTURE.md promises it: dependencies between our crates point down only,
//! and all `unsafe` is in `sys`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Every crate of the workspace, and which others it may depend on, tests and build scripts included.
const ARROWS: &[(&str, &[&str])] = &[
    ("inception-run", &["cli"]),
    ("cli", &["container", "stack", "sys"]),
    ("stack", &["container", "image", "network", "sys"]),
    ("container", &["init", "sys"]),
    ("image", &["sys"]),
    ("network", &["sys"]),
    ("init", &["sys"]),
    ("sys", &[]),
];

/// The packages of the workspace, as cargo knows them.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(manifest)
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn arrows_point_down_only() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(name, below)| (*name, below.iter().copied().collect())).collect();
    // A crate may only be above those that come after it, so no list of arrows can close a circle.
    for (index, (name, below)) in ARROWS.iter().enumerate() {
        for other in *below {
            let at = ARROWS.iter().position(|(known, _)| known == other);
            assert!(at.is_some_and(|at| at > index), "`{name}` is not above `{other}`");
        }
    }
    let packages = packages();
    let found: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    assert_eq!(found, allowed.keys().copied().collect(), "a crate has no place in the layering");
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            // Ours are the ones with a path; a crate of the registry may share a name.
            if dependency["path"].is_string() {
                assert!(allowed[name].contains(other), "`{name}` must not depend on `{other}`");
            }
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_only() {
    for package in packages().iter().filter(|package| package["name"] != "sys") {
        for target in package["targets"].as_array().unwrap() {
            let kinds: Vec<&str> =
                target["kind"].as_array().unwrap().iter().map(|kind| kind.as_str().unwrap()).collect();
            let path = Path::new(target["src_path"].as_str().unwrap());
            let text = fs::read_to_string(path).unwrap();
            let forbids = text.lines().any(|line| line == "#![forbid(unsafe_code)]");
            // Those are what users run; tests and examples are looked at below.
            assert!(
                forbids || !kinds.iter().any(|kind| *kind == "lib" || *kind == "bin"),
                "{} does not forbid unsafe_code",
                path.display()
            );
        }
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let directory = manifest.parent().unwrap();
        for file in ["src", "tests", "examples", "benches"].iter().flat_map(|d| sources(&directory.join(d))) {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                // `unsafe-inline` is a word of browsers.
                let mut words = code.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '"' | '-')));
                assert!(!words.any(|word| word == "unsafe"), "{}:{}: unsafe", file.display(), number + 1);
            }
        }
    }
}

/// All Rust files at and below a directory, which may not exist. Links are not followed.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.unwrap();
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
