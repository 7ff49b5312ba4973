//! Any bytes as a layer, as an archive of images, and as the JSON in one: they are refused and leave nothing behind, or
//! the layer's archive comes back byte for byte.
#![no_main]

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::LazyLock;

use image::transfer::Incoming;
use image::{Digest, LayerSource, Limits, Store};

/// A store for the whole run, in the directory for temporary files, which scripts/fuzz has in memory.
static PLACE: LazyLock<(PathBuf, Store)> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("archive-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a directory");
    let store = Store::open(&path.join("data")).expect("a store");
    (path, store)
});

fn limits() -> Limits {
    Limits { entries: 200, bytes: 1 << 20, ..Limits::default() }
}

/// What a failed attempt may not leave, and what a good one leaves goes.
fn clear(store: &Store, expect_nothing: bool) {
    for dir in ["tmp", "l", "layers", "images", "tags"] {
        let path = store.data_dir().join(dir);
        let names: Vec<_> = fs::read_dir(&path).expect("a directory").collect();
        assert!(names.is_empty() || !(expect_nothing || dir == "tmp"), "{dir}: {names:?}");
        for name in names {
            image::remove_tree(&name.expect("an entry").path()).expect("it can be deleted");
        }
    }
}

fn layer(store: &Store, bytes: &[u8]) {
    let source = LayerSource { limits: limits(), ..LayerSource::new("layer") };
    let unpacked = store.unpack_layer(bytes, &source);
    if let Ok(id) = &unpacked {
        let mut again = Vec::new();
        store.write_layer_tar(id, &mut again).expect("a layer that was unpacked comes back");
        assert_eq!(Digest::of(&again), *id);
    }
    clear(store, unpacked.is_err());
}

fn load(path: &std::path::Path, store: &Store, archive: &[u8]) {
    let path = path.join("archive");
    fs::write(&path, archive).expect("a file");
    let file = File::open(&path).expect("the file");
    let loaded = store.load(Incoming::Archive(file), "images", &limits());
    clear(store, loaded.is_err());
}

/// An archive of one file.
fn archive_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    let mut archive = [&header[..], content].concat();
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (path, store) = &*PLACE;
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 4 {
        0 => layer(store, bytes),
        1 => load(path, store, bytes),
        2 => load(path, store, &archive_of("manifest.json", bytes)),
        _ => load(path, store, &archive_of("index.json", bytes)),
    }
});
