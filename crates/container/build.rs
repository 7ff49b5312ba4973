//! Builds `inception-init` as a static binary, to be embedded.
//!
//! It cannot be an ordinary dependency: it is a program, and it is linked statically whatever the rest of the
//! build does, because it runs inside any root file system. `INCEPTION_INIT` names a file to embed
//! instead, which is how a cross build brings one for its target.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let crates = manifest.parent().expect("the crate is in crates/");
    for path in ["init/src", "init/Cargo.toml", "sys/src", "sys/Cargo.toml", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", crates.join(path).display());
    }
    println!("cargo::rerun-if-env-changed=INCEPTION_INIT");
    let binary = env::var_os("INCEPTION_INIT").map_or_else(|| build(crates, &out), PathBuf::from);
    std::fs::copy(&binary, out.join("inception-init")).expect("copy inception-init");
}

/// Static, and without the paths that the outer build leaves out of its programs.
fn flags() -> String {
    let outer = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let remapped = outer.split('\u{1f}').filter(|flag| flag.starts_with("--remap-path-prefix="));
    ["-Ctarget-feature=+crt-static", "-Crelocation-model=static"]
        .into_iter()
        .chain(remapped)
        .collect::<Vec<_>>()
        .join("\u{1f}")
}

fn build(crates: &Path, out: &Path) -> PathBuf {
    let target = env::var("TARGET").expect("set by cargo");
    let directory = out.join("init-target");
    let status = Command::new(env::var_os("CARGO").expect("set by cargo"))
        .args(["build", "--quiet", "--profile", "init", "--bin", "inception-init", "--target", &target])
        .arg("--manifest-path")
        .arg(crates.join("init/Cargo.toml"))
        .arg("--target-dir")
        .arg(&directory)
        .env("CARGO_ENCODED_RUSTFLAGS", flags())
        // What the outer cargo or clippy set for itself must not reach the inner build.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .status()
        .expect("run cargo for inception-init");
    assert!(status.success(), "building inception-init failed: {status}");
    directory.join(target).join("init/inception-init")
}
