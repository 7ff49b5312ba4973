//! Layers from elsewhere: every byte of their archives comes back.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use image::{Digest, LayerId, LayerSource, Limits};
use proptest::prelude::*;

use crate::places::{Archive, Place, chain, delegated, gzip, has_many_ids, list};

/// Unpacks a layer, and checks that it is what the archive's digest says and that its archive comes back.
fn comes_back(place: &Place, tar: &[u8]) -> LayerId {
    let id = place.store.unpack_layer(&gzip(tar)[..], &LayerSource::new("layer")).unwrap();
    assert_eq!(id, Digest::of(tar));
    let mut again = Vec::new();
    place.store.write_layer_tar(&id, &mut again).unwrap();
    assert!(again == tar, "{} bytes instead of {}", again.len(), tar.len());
    assert_eq!(list(&place.data().join("tmp")), Vec::<String>::new());
    id
}

fn refused(tar: &[u8]) -> String {
    let place = Place::new();
    let error = chain(&place.store.unpack_layer(tar, &LayerSource::new("layer")).unwrap_err());
    place.assert_untouched();
    assert_eq!(list(&place.data().join("layers")), Vec::<String>::new());
    error
}

#[test]
fn odd_archives_come_back_byte_for_byte() {
    if delegated("layers::odd_archives_come_back_byte_for_byte") {
        return;
    }
    let place = Place::new();
    let long = format!("long/{}", "n".repeat(140));
    let mut tar = Archive::new();
    tar.raw(
        b'g',
        b"pax_global_header",
        b"",
        b"52 comment=0123456789012345678901234567890123456789\n",
        |_| {},
    );
    tar.dir("./").raw(b'5', b"d/", b"", b"", |header| header.set_mode(0o2755));
    tar.raw(b'L', b"././@LongLink", b"", format!("{long}\0").as_bytes(), |_| {}).file("cut", b"long");
    tar.raw(b'K', b"././@LongLink", b"", &[b't'; 130], |_| {}).link("l", "t");
    tar.raw(b'0', b"d/suid", b"", b"s", |header| header.set_mode(0o6755));
    tar.pax("SCHILY.xattr.user.a", "1").file("d/x", b"x");
    tar.pax("SCHILY.xattr.trusted.overlay.opaque", "y").dir("d/not-opaque/");
    tar.pax("mtime", "-1.5").file("early", b"");
    tar.hard("d/hard", "d/x").hard("d/hard2", "./d/hard");
    tar.raw(b'3', b"dev/null", b"", b"", |_| {}).raw(b'6', b"pipe", b"", b"", |_| {});
    tar.file(".wh.gone", b"").file("d/.wh..wh..opq", b"").file("d/.wh..wh.plnk", b"with content");
    tar.raw(0, b"old/", b"", b"", |_| {}).raw(b'7', b"contiguous", b"", &[7; 1000], |_| {});
    // A name that an end mark follows with more padding than there has to be, and then something else.
    let mut bytes = tar.finish();
    bytes.resize(bytes.len() + 7 * 512, 0);
    bytes.extend_from_slice(b"rest");
    let id = comes_back(&place, &bytes);
    let layer = place.data().join(place.store.layer_path(&id));
    assert_eq!(fs::read(layer.join(&long)).unwrap(), b"long");
    assert_eq!(fs::read_link(layer.join("l")).unwrap().as_os_str().len(), 130);
    assert_eq!(fs::metadata(layer.join("d/suid")).unwrap().mode() & 0o7777, 0o6755);
    assert_eq!(fs::metadata(layer.join("d/hard2")).unwrap().nlink(), 3);
    assert_eq!(fs::metadata(layer.join("contiguous")).unwrap().len(), 1000);
}

#[test]
fn empty_layers_and_missing_end_marks() {
    if delegated("layers::empty_layers_and_missing_end_marks") {
        return;
    }
    let place = Place::new();
    comes_back(&place, &[0; 1024]);
    comes_back(&place, &[0; 10240]);
    comes_back(&place, &[0; 512]);
    let mut tar = Archive::new().file("f", b"content").finish();
    for cut in [512, 1024] {
        tar.truncate(2048 - cut);
        comes_back(&place, &tar);
    }
    // The last padding, too.
    comes_back(&place, &tar[..512 + 7]);
    assert!(refused(&tar[..512 + 6]).contains("cut short"));
    assert!(refused(&tar[..511]).contains("not a tar archive"));
    assert!(refused(b"").contains("empty"));
}

#[test]
fn what_a_later_entry_replaced_comes_back() {
    if delegated("layers::what_a_later_entry_replaced_comes_back") {
        return;
    }
    let place = Place::new();
    let mut tar = Archive::new();
    tar.file("a", b"first").file("a", b"second").file("b", b"kept by its link").hard("c", "b");
    tar.file("b", b"new").file("a", b"third").link("a", "c");
    tar.dir("d/")
        .file("d/e/f", b"deep")
        .file("d/e/f", b"deeper")
        .file("d/g", b"g")
        .file("d/e", b"a file now");
    tar.file("d/e", b"and again").file("d", b"all gone").dir("d/").file("d/g", b"another g");
    tar.dir("real/").link("way", "real").file("way/f", b"through a link").file("real/f", b"itself");
    tar.link("real", "/etc").file("way/f", b"x");
    tar.file("many", &vec![1; 300_000]).file("many", &vec![2; 300_000]);
    let id = comes_back(&place, &tar.finish());
    let layer = place.data().join(place.store.layer_path(&id));
    assert_eq!(fs::read_link(layer.join("a")).unwrap().to_str(), Some("c"));
    assert_eq!(fs::read(layer.join("c")).unwrap(), b"kept by its link");
    assert_eq!(list(&layer.join("d")), ["g"]);
    assert_eq!(fs::read(layer.join("d/g")).unwrap(), b"another g");
    assert_eq!(fs::read(layer.join("etc/f")).unwrap(), b"x", "the link leads to the layer's own /etc");
    assert!(!std::path::Path::new("/etc/f").exists());
}

/// GNU's old sparse header: pieces in the header, and in a block behind it where there are more than four.
fn old_sparse(archive: &mut Archive, name: &str, size: u64, pieces: &[(u64, &[u8])]) {
    let field = |to: &mut [u8], value: u64| to[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    let mut content = Vec::new();
    if pieces.len() > 4 {
        let mut block = [0; 512];
        for (index, (offset, bytes)) in pieces[4..].iter().enumerate() {
            field(&mut block[index * 24..], *offset);
            field(&mut block[index * 24 + 12..], bytes.len() as u64);
        }
        content.extend_from_slice(&block);
    }
    pieces.iter().for_each(|(_, bytes)| content.extend_from_slice(bytes));
    let held = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    archive.raw(b'S', name.as_bytes(), b"", &content, |header| {
        header.set_size(held);
        let bytes = header.as_mut_bytes();
        bytes[257..265].copy_from_slice(b"ustar  \0");
        for (index, (offset, piece)) in pieces.iter().take(4).enumerate() {
            field(&mut bytes[386 + index * 24..], *offset);
            field(&mut bytes[398 + index * 24..], piece.len() as u64);
        }
        bytes[482] = u8::from(pieces.len() > 4);
        field(&mut bytes[483..], size);
    });
}

#[test]
fn sparse_files_of_all_forms() {
    if delegated("layers::sparse_files_of_all_forms") {
        return;
    }
    let place = Place::new();
    let mut tar = Archive::new();
    old_sparse(&mut tar, "old", 10_000_000, &[(0, b"start"), (5_000_000, &[1; 700]), (9_999_999, b"e")]);
    let five: Vec<(u64, &[u8])> = (0..6).map(|at| (at * 1_000_000, &b"xyz"[..])).collect();
    old_sparse(&mut tar, "more", 6_000_000, &five);
    tar.pax("GNU.sparse.map", "512,3,1000,2").raw(b'0', b"x", b"", b"abcde", |_| {});
    let mut bytes = tar.finish();
    bytes.truncate(bytes.len() - 1024);
    // Records of one header: 0.1 with all it needs, and 1.0 with its map before the content.
    let record = |key: &str, value: &str| {
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..rest + 8).find(|length| rest + length.to_string().len() == *length).unwrap();
        format!("{length} {key}={value}\n")
    };
    let mut tar = Archive::new();
    let records = [
        record("GNU.sparse.major", "1"),
        record("GNU.sparse.minor", "0"),
        record("GNU.sparse.name", "new"),
        record("GNU.sparse.realsize", "2000000"),
    ];
    let mut content = b"2\n0\n4\n1999996\n4\n".to_vec();
    content.resize(512, 0);
    content.extend_from_slice(b"headtail");
    tar.raw(b'x', b"pax", b"", records.concat().as_bytes(), |_| {});
    tar.raw(b'0', b"GNUSparseFile.1/new", b"", &content, |_| {});
    let records = [
        record("GNU.sparse.size", "4096"),
        record("GNU.sparse.numblocks", "1"),
        record("GNU.sparse.map", "4000,5"),
        record("GNU.sparse.name", "middle"),
    ];
    tar.raw(b'x', b"pax", b"", records.concat().as_bytes(), |_| {});
    tar.raw(b'0', b"GNUSparseFile.2/middle", b"", b"fives", |_| {});
    // The one without a size is refused.
    assert!(refused(&bytes).contains("no size"));
    let mut good = Archive::new();
    old_sparse(&mut good, "old", 10_000_000, &[(0, b"start"), (5_000_000, &[1; 700]), (9_999_999, b"e")]);
    old_sparse(&mut good, "more", 6_000_000, &five);
    let mut bytes = good.finish();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(&tar.finish());
    let id = comes_back(&place, &bytes);
    let layer = place.data().join(place.store.layer_path(&id));
    let at = |name: &str, offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        fs::File::open(layer.join(name)).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    let meta = |name: &str| fs::metadata(layer.join(name)).unwrap();
    assert_eq!((at("old", 0, 6), meta("old").len()), (b"start\0".to_vec(), 10_000_000));
    assert_eq!(at("old", 9_999_998, 2), b"\0e");
    assert!(meta("old").blocks() * 512 < 1_000_000, "holes stay holes");
    assert_eq!(at("more", 5_000_000, 4), b"xyz\0");
    assert_eq!((at("new", 1_999_995, 5), meta("new").len()), (b"\0tail".to_vec(), 2_000_000));
    assert_eq!((at("middle", 3999, 7), meta("middle").len()), (b"\0fives\0".to_vec(), 4096));
    let mut bad = Archive::new();
    old_sparse(&mut bad, "bad", 4, &[(0, b"start")]);
    assert!(refused(&bad.finish()).contains("outside of it"));
}

#[test]
fn capabilities_belong_to_this_user_namespace() {
    let name = "layers::capabilities_belong_to_this_user_namespace";
    if delegated(name) || !has_many_ids(name) {
        return;
    }
    let place = Place::new();
    let version2 = |first: u8| {
        let mut value = vec![1, 0, 0, first];
        value.extend_from_slice(&[0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        value
    };
    let pax = |tar: &mut Archive, file: &str, value: &[u8]| {
        let key = "SCHILY.xattr.security.capability";
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..rest + 8).find(|length| rest + length.to_string().len() == *length).unwrap();
        let record = [format!("{length} {key}=").as_bytes(), value, b"\n"].concat();
        tar.raw(b'x', b"pax", b"", &record, |_| {}).file(file, b"x");
    };
    let mut tar = Archive::new();
    pax(&mut tar, "two", &version2(2));
    pax(&mut tar, "own", &[version2(3), vec![0; 4]].concat());
    pax(&mut tar, "foreign", &[version2(3), vec![0xa0, 0x86, 1, 0]].concat());
    pax(&mut tar, "broken", b"abc");
    let id = comes_back(&place, &tar.finish());
    let layer = place.data().join(place.store.layer_path(&id));
    let capability = |file: &str| {
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(layer.join(file), "security.capability", &mut value[..]).ok()?;
        Some(value[..length].to_vec())
    };
    assert_eq!(capability("two").as_deref(), Some(&version2(2)[..]));
    assert_eq!(capability("own").as_deref(), Some(&version2(2)[..]));
    assert_eq!((capability("foreign"), capability("broken")), (None, None));
}

#[test]
fn blobs_are_what_was_promised_or_nothing_is_left() {
    if delegated("layers::blobs_are_what_was_promised_or_nothing_is_left") {
        return;
    }
    let tar = Archive::new().file("f", b"content").finish();
    let packed = gzip(&tar);
    let (blob, diff_id, other) = (Digest::of(&packed), Digest::of(&tar), Digest::of(b"other"));
    let place = Place::new();
    let unpack = |blob: Option<&Digest>, diff_id: Option<&Digest>, bytes: &[u8]| {
        let source = LayerSource { blob, diff_id, ..LayerSource::new("layer") };
        place.store.unpack_layer(bytes, &source).map_err(|error| chain(&error))
    };
    assert!(unpack(Some(&other), Some(&diff_id), &packed).unwrap_err().contains("was promised"));
    assert!(unpack(Some(&blob), Some(&other), &packed).unwrap_err().contains("was promised"));
    assert!(unpack(Some(&blob), None, &[&packed[..], b"behind"].concat()).is_err());
    assert!(unpack(Some(&blob), None, &[&tar[..], &[0; 512]].concat()).unwrap_err().contains("promised"));
    for cut in [1, packed.len() / 2, packed.len() - 1] {
        assert!(unpack(None, Some(&diff_id), &packed[..cut]).is_err(), "{cut}");
    }
    let mut changed = packed.clone();
    changed[packed.len() / 2] ^= 0x10;
    assert!(unpack(None, None, &changed).is_err());
    place.assert_untouched();
    assert_eq!(unpack(Some(&blob), Some(&diff_id), &packed).unwrap(), diff_id);
    // Twice is as good as once.
    assert_eq!(unpack(Some(&blob), Some(&diff_id), &packed).unwrap(), diff_id);
    let ratio = Limits { ratio: 1, ..Limits::default() };
    let source = LayerSource { limits: ratio, ..LayerSource::new("layer") };
    place.store.unpack_layer(&packed[..], &source).unwrap();
}

#[test]
fn a_changed_layer_is_noticed_when_it_leaves() {
    if delegated("layers::a_changed_layer_is_noticed_when_it_leaves") {
        return;
    }
    let place = Place::new();
    let id = comes_back(&place, &Archive::new().file("f", b"content").finish());
    fs::write(place.data().join(place.store.layer_path(&id)).join("f"), b"changed").unwrap();
    let error = chain(&place.store.write_layer_tar(&id, &mut Vec::new()).unwrap_err());
    assert!(error.contains("checksum"), "{error}");
}

#[test]
fn configurations_are_kept_byte_for_byte() {
    if delegated("layers::configurations_are_kept_byte_for_byte") {
        return;
    }
    let place = Place::new();
    let id = comes_back(&place, &Archive::new().file("f", b"content").finish());
    let json = format!(
        r#"{{ "os": "linux", "architecture":"amd64", "unknown": [1, 2.50],
        "rootfs": {{"diff_ids": ["{id}"], "type": "layers"}} }}"#
    );
    let image = place.store.put_image_json(json.as_bytes()).unwrap();
    assert_eq!(image.id, Digest::of(json.as_bytes()));
    assert_eq!(place.store.image_json(&image.id).unwrap().unwrap(), json.as_bytes());
    assert_eq!(place.store.image_by_id(&image.id).unwrap().unwrap(), image);
    let missing = json.replace(id.hex(), Digest::of(b"none").hex());
    assert!(chain(&place.store.put_image_json(missing.as_bytes()).unwrap_err()).contains("not in the store"));
    let other = json.replace("linux", "windows");
    assert!(chain(&place.store.put_image_json(other.as_bytes()).unwrap_err()).contains("windows"));
    assert!(place.store.put_image_json(b"[]").is_err());
}

/// One entry of an archive: its kind, and small numbers for names.
fn entry() -> impl Strategy<Value = (u8, u8, u8, Vec<u8>)> {
    (0_u8..9, 0_u8..8, 0_u8..8, proptest::collection::vec(any::<u8>(), 0..1200))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_order_of_entries_comes_back(entries in proptest::collection::vec(entry(), 0..14)) {
        if rustix::process::geteuid().is_root() {
            let names = ["a", "b", "d", "d/a", "d/b", "d/d", "d/d/a", "./d/d"];
            let mut tar = Archive::new();
            for (kind, name, target, content) in entries {
                let (name, target) = (names[usize::from(name)], names[usize::from(target)]);
                match kind {
                    0..4 => tar.file(name, &content),
                    4 => tar.dir(name),
                    5 => tar.link(name, target),
                    6 => tar.hard(name, target),
                    7 => tar.file(&format!("d/.wh.{}", &name[name.len() - 1..]), b""),
                    _ => tar.file("d/.wh..wh..opq", &content),
                };
            }
            let bytes = tar.finish();
            let place = Place::new();
            // Links may lead nowhere, or through a file.
            if let Ok(id) = place.store.unpack_layer(&bytes[..], &LayerSource::new("layer")) {
                prop_assert_eq!(&id, &Digest::of(&bytes));
                let mut again = Vec::new();
                place.store.write_layer_tar(&id, &mut again).unwrap();
                prop_assert!(again == bytes);
            } else {
                place.assert_untouched();
            }
        }
    }
}
