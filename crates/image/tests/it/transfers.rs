//! Images as files: what is saved is loaded as the same image, and what lies about itself leaves nothing behind.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::Path;

use image::transfer::{ArchiveFormat, Compression, Incoming, SavedImage, unpack_layout};
use image::{Digest, Image, Limits, Store};

use crate::places::{Archive, Place, chain, delegated, gzip, list, reference};

const FORMATS: [ArchiveFormat; 4] = [
    ArchiveFormat::Docker,
    ArchiveFormat::Oci(Compression::None),
    ArchiveFormat::Oci(Compression::Gzip),
    ArchiveFormat::Oci(Compression::Zstd),
];

fn write(path: &Path, content: &[u8]) -> File {
    fs::write(path, content).unwrap();
    File::open(path).unwrap()
}

fn load(place: &Place, archive: &[u8]) -> Result<Vec<image::transfer::Loaded>, String> {
    let file = write(&place.temp.path().join("archive"), archive);
    let loaded = place.store.load(Incoming::Archive(file), "images.tar", &Limits::default());
    assert_eq!(list(&place.data().join("tmp")), Vec::<String>::new());
    loaded.map_err(|error| chain(&error))
}

fn saved(store: &Store, image: &Image, names: &[&str], format: ArchiveFormat) -> Vec<u8> {
    let names = names.iter().map(|name| reference(name)).collect();
    let mut archive = Vec::new();
    store.save(&[SavedImage { image: image.clone(), names }], format, &mut archive).unwrap();
    archive
}

/// An image of three layers: one of ours, one from elsewhere, and one of these again.
fn image(place: &Place) -> Image {
    let base = place.base();
    let tar = Archive::new().file("twice", b"1").file("twice", b"2").finish();
    let foreign = place.store.unpack_layer(&tar[..], &image::LayerSource::new("layer")).unwrap();
    let json = format!(
        r#"{{"os":"linux","architecture":"amd64","strange":true,"config":{{"Cmd":["/bin/sh"]}},
        "rootfs":{{"type":"layers","diff_ids":["{}","{foreign}","{}"]}}}}"#,
        base.layers[0], base.layers[0]
    );
    place.store.put_image_json(json.as_bytes()).unwrap()
}

#[test]
fn what_is_saved_is_loaded_as_the_same_image() {
    if delegated("transfers::what_is_saved_is_loaded_as_the_same_image") {
        return;
    }
    let place = Place::new();
    let image = image(&place);
    assert_eq!(image.layers.len(), 2, "no layer is mounted twice");
    for format in FORMATS {
        let names = ["one:1", "registry.example:5000/team/two:2"];
        let archive = saved(&place.store, &image, &names, format);
        assert_eq!(archive, saved(&place.store, &image, &names, format), "the same bytes each time");
        for packed in [archive.clone(), gzip(&archive), zstd::encode_all(&archive[..], 1).unwrap()] {
            let other = Place::new();
            let loaded = load(&other, &packed).unwrap();
            assert!(loaded.iter().all(|loaded| loaded.id == image.id), "{format:?}");
            for name in names {
                assert_eq!(other.store.image(&reference(name)).unwrap().unwrap(), image);
            }
            // The layers come out again as they were, and so does the whole archive.
            let again = other.store.image_by_id(&image.id).unwrap().unwrap();
            assert_eq!(saved(&other.store, &again, &names, format), archive);
        }
        // Through a pipe, and as a directory.
        let other = Place::new();
        let (read, mut to) = std::io::pipe().unwrap();
        let writer = std::thread::spawn({
            let archive = archive.clone();
            move || to.write_all(&archive).unwrap()
        });
        let file = File::from(std::os::fd::OwnedFd::from(read));
        other.store.load(Incoming::Archive(file), "-", &Limits::default()).unwrap();
        writer.join().unwrap();
        let other = Place::new();
        let layout = other.temp.path().join("layout");
        unpack_layout(BufReader::new(&archive[..]), &layout).unwrap();
        let loaded = other.store.load(Incoming::Directory(layout), "layout", &Limits::default()).unwrap();
        assert_eq!(loaded[0].id, image.id);
    }
}

#[test]
fn blobs_are_reproducible_and_say_what_they_are() {
    if delegated("transfers::blobs_are_reproducible_and_say_what_they_are") {
        return;
    }
    let place = Place::new();
    let image = place.base();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut blob = Vec::new();
        let info = place.store.write_layer_blob(&image.layers[0], compression, &mut blob).unwrap();
        assert_eq!((info.digest, info.size), (Digest::of(&blob), blob.len() as u64));
        let mut again = Vec::new();
        place.store.write_layer_blob(&image.layers[0], compression, &mut again).unwrap();
        assert_eq!(blob, again);
        if compression == Compression::Gzip {
            assert_eq!(&blob[4..8], [0; 4], "no time");
        }
        let other = Place::new();
        let id = other.store.unpack_layer(&blob[..], &image::LayerSource::new("blob")).unwrap();
        assert_eq!(id, image.layers[0]);
    }
}

#[test]
fn whatever_is_cut_or_changed_leaves_nothing_behind() {
    if delegated("transfers::whatever_is_cut_or_changed_leaves_nothing_behind") {
        return;
    }
    let place = Place::new();
    let image = image(&place);
    for format in FORMATS {
        let archive = saved(&place.store, &image, &["one:1"], format);
        let other = Place::new();
        for cut in [0, 1, 511, 512, 700, archive.len() / 3, archive.len() / 2, archive.len() - 1600] {
            assert!(load(&other, &archive[..cut]).is_err(), "{format:?} {cut}");
        }
        for at in (0..archive.len() - 1024).step_by(509) {
            let mut changed = archive.clone();
            changed[at] ^= 0x40;
            // Padding may be anything; whatever was accepted is the same image.
            match load(&other, &changed) {
                Ok(loaded) => {
                    assert_eq!(loaded[0].id, image.id, "{format:?} {at}");
                    assert_eq!(saved(&other.store, &image, &["one:1"], format), archive);
                    for dir in ["l", "layers", "images", "tags", "leases"] {
                        image::remove_tree(&other.data().join(dir)).unwrap();
                        fs::create_dir(other.data().join(dir)).unwrap();
                    }
                }
                Err(_) => {
                    for dir in ["tmp", "l", "images", "tags", "layers"] {
                        assert_eq!(
                            list(&other.data().join(dir)),
                            Vec::<String>::new(),
                            "{format:?} {at} {dir}"
                        );
                    }
                }
            }
        }
    }
}

fn json_archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Archive::new();
    files.iter().for_each(|(name, content)| {
        tar.file(name, content);
    });
    tar.finish()
}

/// An image of one layer as the blobs of a layout: the layer, the configuration, the manifest.
struct Layout {
    files: Vec<(String, Vec<u8>)>,
    manifest: Digest,
    size: usize,
    id: Digest,
}

fn layout(content: &str, media_type: &str, pack: impl Fn(&[u8]) -> Vec<u8>) -> Layout {
    let tar = Archive::new().file("f", content.as_bytes()).finish();
    let blob = pack(&tar);
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&tar)
    );
    let id = Digest::of(config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{id}",
        "size":{}}},"layers":[{{"mediaType":"{media_type}","digest":"{}","size":{}}}]}}"#,
        config.len(),
        Digest::of(&blob),
        blob.len()
    );
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let digest = Digest::of(manifest.as_bytes());
    let size = manifest.len();
    let files = vec![
        (path(&blob), blob),
        (path(config.as_bytes()), config.into_bytes()),
        (path(manifest.as_bytes()), manifest.into_bytes()),
    ];
    Layout { files, manifest: digest, size, id }
}

#[test]
fn indexes_are_followed_to_the_image_for_this_machine() {
    if delegated("transfers::indexes_are_followed_to_the_image_for_this_machine") {
        return;
    }
    let other = if image::architecture() == "amd64" { "arm64" } else { "amd64" };
    let wrong = layout("wrong", "application/vnd.oci.image.layer.v1.tar", <[u8]>::to_vec);
    let right = layout("right", "application/vnd.oci.image.layer.v1.tar+zstd", |tar| {
        zstd::encode_all(tar, 1).unwrap()
    });
    let entry = |layout: &Layout, platform: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":{},"platform":
            {{"os":"linux","architecture":"{platform}"}}}}"#,
            layout.manifest, layout.size
        )
    };
    let attestation = entry(&wrong, "unknown").replace("\"linux\"", "\"unknown\"");
    let nested = format!(
        r#"{{"schemaVersion":2,"manifests":[{attestation},{},{}]}}"#,
        entry(&wrong, other),
        entry(&right, image::architecture())
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{}",
        "size":{},"annotations":{{"org.opencontainers.image.ref.name":"team/app:3"}}}}]}}"#,
        Digest::of(nested.as_bytes()),
        nested.len()
    );
    let nested_path = format!("blobs/sha256/{}", Digest::of(nested.as_bytes()).hex());
    let mut files: Vec<(&str, &[u8])> =
        vec![("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#), (&nested_path, nested.as_bytes())];
    for (path, content) in wrong.files.iter().chain(&right.files) {
        files.push((path, content));
    }
    files.push(("index.json", index.as_bytes()));
    let place = Place::new();
    let loaded = load(&place, &json_archive(&files)).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!((&loaded[0].id, &loaded[0].names[..]), (&right.id, &[reference("team/app:3")][..]));
    let only_wrong =
        index.replace(&format!("{}", Digest::of(nested.as_bytes())), &format!("{}", Digest::of(b"missing")));
    *files.last_mut().unwrap() = ("index.json", only_wrong.as_bytes());
    assert!(load(&place, &json_archive(&files)).unwrap_err().contains("is missing"));
}

#[test]
fn older_archives_link_to_layers_they_share() {
    if delegated("transfers::older_archives_link_to_layers_they_share") {
        return;
    }
    let layer = Archive::new().file("f", b"x").finish();
    let config = |cmd: &str| {
        format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{"Cmd":["{cmd}"]}},
            "rootfs":{{"type":"layers","diff_ids":["{0}"]}}}}"#,
            Digest::of(&layer)
        )
    };
    let (one, two) = (config("one"), config("two"));
    let name = |config: &str| format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = format!(
        r#"[{{"Config":"{}","RepoTags":["a:1","a:latest"],"Layers":["1/layer.tar"]}},
        {{"Config":"{}","RepoTags":null,"Layers":["2/layer.tar"]}}]"#,
        name(&one),
        name(&two)
    );
    let mut tar = Archive::new();
    tar.dir("1/")
        .file("1/VERSION", b"1.0")
        .file("1/layer.tar", &layer)
        .dir("2/")
        .link("2/layer.tar", "../1/layer.tar");
    tar.file(&name(&one), one.as_bytes())
        .file(&name(&two), two.as_bytes())
        .file("manifest.json", manifest.as_bytes());
    let place = Place::new();
    let loaded = load(&place, &tar.finish()).unwrap();
    assert_eq!(loaded.len(), 2);
    assert_eq!(loaded[0].names, [reference("a:1"), reference("a:latest")]);
    assert_eq!(loaded[1].id, Digest::of(two.as_bytes()));
    // A configuration under another's digest, a link in a circle, and what is no archive of images.
    let place = Place::new();
    let wrong = manifest.replace(&name(&one), &name(&two)).replacen(&name(&two), &"0".repeat(64), 1);
    let named = format!("{}.json", "0".repeat(64));
    let files = [(&*named, one.as_bytes()), ("manifest.json", wrong.as_bytes())];
    assert!(load(&place, &json_archive(&files)).unwrap_err().contains("is missing"));
    let wrong = wrong.replace(&"0".repeat(64), &named);
    let files = [(&*named, one.as_bytes()), ("manifest.json", wrong.as_bytes())];
    assert!(load(&place, &json_archive(&files)).unwrap_err().contains("was promised"));
    let circle = Archive::new().link("manifest.json", "x").link("x", "manifest.json").finish();
    assert!(load(&place, &circle).unwrap_err().contains("leads nowhere"));
    assert!(load(&place, &layer).unwrap_err().contains("`import`"));
    for bad in [&b"{}"[..], b"[]", b"[{}]", b"nul", b"[[[[", b"[{\"Config\":\"../x\"}]"] {
        assert!(load(&place, &json_archive(&[("manifest.json", bad)])).is_err());
    }
    for bad in
        [&b"[]"[..], b"{\"schemaVersion\":2,\"manifests\":[]}", b"{\"manifests\":[{\"digest\":\"md5:1\"}]}"]
    {
        assert!(load(&place, &json_archive(&[("index.json", bad)])).is_err());
    }
    place.assert_untouched();
}

#[test]
fn a_root_file_system_leaves_as_one_archive() {
    if delegated("transfers::a_root_file_system_leaves_as_one_archive") {
        return;
    }
    let place = Place::new();
    let base = place.base();
    let upper = place.temp.path().join("upper");
    fs::create_dir_all(upper.join("usr/lib")).unwrap();
    fs::write(upper.join("usr/lib/new"), b"new").unwrap();
    let whiteout = rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("usr/lib/a"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    );
    whiteout.unwrap();
    let mut archive = Vec::new();
    place.store.write_rootfs(&base.layers, Some(&upper), &mut archive).unwrap();
    let other = Place::new();
    let image = other.import("flat:1", &archive).unwrap();
    let root = other.layer(&image, 0);
    assert_eq!(list(&root), ["etc", "lib", "tmp", "usr"]);
    assert_eq!(list(&root.join("usr/lib")), ["new"]);
    let mut again = Vec::new();
    place.store.write_rootfs(&base.layers, Some(&upper), &mut again).unwrap();
    assert!(archive == again);
}
