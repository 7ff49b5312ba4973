//! Archives: what is kept, what is refused, and that nothing leads out of the layer.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use image::{Digest, ImportOptions, Limits};
use proptest::prelude::*;

use crate::places::{Archive, Place, bzip2, chain, delegated, gzip, has_many_ids, list, xz};

fn refused(make: impl FnOnce(&mut Archive) -> &mut Archive) -> String {
    let place = Place::new();
    let mut tar = Archive::new();
    make(&mut tar);
    let error = chain(&place.import("x:1", &tar.finish()).unwrap_err());
    place.assert_untouched();
    assert!(error.contains("test.tar"), "{error}");
    error
}

#[test]
fn everything_an_image_needs_is_kept() {
    if delegated("archives::everything_an_image_needs_is_kept") {
        return;
    }
    let place = Place::new();
    let mut tar = Archive::new();
    tar.raw(b'5', b"./", b"", b"", |header| header.set_mode(0o711));
    tar.dir("d/");
    tar.pax("SCHILY.xattr.user.kept", "yes").file("d/f", b"content");
    tar.pax("SCHILY.xattr.user.overlay.opaque", "y").dir("d/e/");
    tar.pax("mtime", "12.5").raw(b'0', b"d/suid", b"", b"x", |header| header.set_mode(0o4755));
    tar.hard("d/h", "d/f").hard("d/h2", "/d/f");
    tar.link("d/l", "../nowhere/../../x").raw(b'6', b"d/p", b"", b"", |_| {});
    tar.raw(b'3', b"dev/null", b"", b"", |_| {});
    tar.file("/absolute", b"a");
    tar.file("implied/parent/f", b"");
    let image = place.import("x:1", &gzip(&tar.finish())).unwrap();
    let layer = place.layer(&image, 0);
    let meta = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap();
    assert_eq!(meta("").mode() & 0o7777, 0o711);
    assert_eq!(fs::read(layer.join("d/f")).unwrap(), b"content");
    assert_eq!((meta("d/f").ino(), meta("d/f").nlink()), (meta("d/h").ino(), 3));
    assert_eq!(meta("d/suid").mode() & 0o7777, 0o4755);
    assert_eq!((meta("d/suid").mtime(), meta("d/suid").mtime_nsec()), (12, 500_000_000));
    assert_eq!(meta("d").mtime(), 1_000_000_000, "set after its content was written");
    assert_eq!(fs::read_link(layer.join("d/l")).unwrap().to_str(), Some("../nowhere/../../x"));
    assert!(meta("d/p").file_type().is_fifo());
    assert!(!layer.join("dev/null").exists());
    assert_eq!(fs::read(layer.join("absolute")).unwrap(), b"a");
    assert!(layer.join("implied/parent/f").exists());
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(layer.join("d/f"), "user.kept", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"yes");
    assert!(rustix::fs::getxattr(layer.join("d/e"), "user.overlay.opaque", &mut value[..]).is_err());
}

#[test]
fn a_layer_is_named_by_its_archive_and_comes_back_from_it() {
    if delegated("archives::a_layer_is_named_by_its_archive_and_comes_back_from_it") {
        return;
    }
    let place = Place::new();
    let long = "n".repeat(90);
    let mut tar = Archive::new();
    tar.dir("./").dir("d/").file("d/f", b"x").hard("d/h", "d/f").link("d/l", "f");
    tar.pax("path", &format!("d/{long}/{long}")).file("short", b"deep");
    tar.pax("SCHILY.xattr.user.a", "1").file("a", b"");
    tar.file(".wh.gone", b"").file("d/.wh..wh..opq", b"").file("d/.wh..wh.plnk", b"");
    let image = place.import("x:1", &tar.finish()).unwrap();
    let layer = place.layer(&image, 0);
    assert_eq!(list(&layer), ["a", "d", "gone"]);
    let gone = fs::symlink_metadata(layer.join("gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(layer.join("d"), "user.overlay.opaque", &mut value[..]), Ok(1));

    let mut archive = Vec::new();
    place.store.write_layer_tar(&image.layers[0], &mut archive).unwrap();
    assert_eq!(Digest::of(&archive), image.layers[0]);
    let other = Place::new();
    let again = other.import("y:1", &archive).unwrap();
    assert_eq!(again.layers, image.layers);
}

#[test]
fn whiteouts_and_files_of_one_layer_do_not_depend_on_their_order() {
    if delegated("archives::whiteouts_and_files_of_one_layer_do_not_depend_on_their_order") {
        return;
    }
    let place = Place::new();
    let first =
        place.import("x:1", &Archive::new().file("d/.wh.e", b"").file("d/e/f", b"").finish()).unwrap();
    let later =
        place.import("x:2", &Archive::new().file("d/e/f", b"").file("d/.wh.e", b"").finish()).unwrap();
    for image in [first, later] {
        let layer = place.layer(&image, 0);
        let mut value = [0; 8];
        assert_eq!(rustix::fs::getxattr(layer.join("d/e"), "user.overlay.opaque", &mut value[..]), Ok(1));
        assert!(layer.join("d/e/f").exists());
    }
}

#[test]
fn nothing_leads_out_of_the_layer() {
    if delegated("archives::nothing_leads_out_of_the_layer") {
        return;
    }
    for name in ["../x", "a/../../x", "..", "/..", "a/.."] {
        assert!(refused(|tar| tar.file(name, b"x")).contains("`..`"), "{name}");
    }
    assert!(refused(|tar| tar.pax("path", "../x").file("ok", b"x")).contains("`..`"));
    assert!(refused(|tar| tar.hard("h", "../../etc/passwd")).contains("`..`"));
    assert!(refused(|tar| tar.hard("h", "/etc/passwd")).contains("no file of the image"));
    assert!(refused(|tar| tar.link("e", "/etc").hard("h", "e/passwd")).contains("no file of the image"));
    assert!(refused(|tar| tar.dir("d").hard("h", "d")).contains("no file of the image"));
    assert!(refused(|tar| tar.link("a", "b").link("b", "a").file("a/x", b"")).contains("Too many levels"));
    assert!(refused(|tar| tar.file("f", b"").file("f/x", b"")).contains("f"));

    // Through links the paths stay inside: absolute, climbing, and swapped under a later entry.
    let place = Place::new();
    let outside = place.outside();
    let outside = outside.to_str().unwrap();
    let mut tar = Archive::new();
    tar.link("abs", outside).file("abs/one", b"1");
    tar.link("up", "../../../../../../../..").file(&format!("up{outside}/two"), b"2");
    tar.dir("swap").file("swap/before", b"").link("swap", outside).file("swap/three", b"3");
    tar.link("file", &format!("{outside}/four")).file("file", b"4");
    tar.link("dir", outside).dir("dir").file("dir/five", b"5");
    let image = place.import("x:1", &tar.finish()).unwrap();
    assert_eq!(list(&place.outside()), Vec::<String>::new());
    let layer = place.layer(&image, 0);
    let inside = layer.join(outside.trim_start_matches('/'));
    assert_eq!(list(&inside), ["one", "three", "two"]);
    assert!(layer.join("swap").is_symlink());
    assert!(fs::symlink_metadata(layer.join("file")).unwrap().is_file());
    assert!(fs::symlink_metadata(layer.join("dir/five")).unwrap().is_file());
}

#[test]
fn what_no_image_may_hold_is_refused() {
    if delegated("archives::what_no_image_may_hold_is_refused") {
        return;
    }
    for kind in [b'3', b'4'] {
        assert!(refused(|tar| tar.raw(kind, b"sda", b"", b"", |_| {})).contains("device node"));
        assert!(refused(|tar| tar.raw(kind, b"device/x", b"", b"", |_| {})).contains("device node"));
    }
    assert!(refused(|tar| tar.raw(b'Z', b"z", b"", b"", |_| {})).contains("type 'Z'"));
    assert!(refused(|tar| tar.link("l", "")).contains("without a target"));
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.x/y"] {
        assert!(refused(|tar| tar.file(name, b"")).contains(name), "{name}");
    }
    let deep = "d/".repeat(400);
    assert!(refused(|tar| tar.pax("path", &deep).dir("x")).contains("deep"));
    assert!(
        refused(|tar| tar.raw(b'0', b"f", b"", b"", |header| header.set_uid(u64::from(u32::MAX) + 7)))
            .contains("owner")
    );
    assert!(refused(|tar| tar.pax("uid", "4294967295").file("f", b"")).contains("id"));
    assert!(
        refused(|tar| tar.file("a\u{1b}[31mred", b"").raw(b'Z', b"\x1b[0m", b"", b"", |_| {}))
            .contains("\\u{1b}")
    );
}

#[test]
fn damaged_archives_name_the_place() {
    if delegated("archives::damaged_archives_name_the_place") {
        return;
    }
    let place = Place::new();
    let good = Archive::new().file("one", &[1; 4000]).file("two", &[2; 4000]).finish();
    let packed = gzip(&good);
    let import = |bytes: &[u8]| chain(&place.import("x:1", bytes).unwrap_err());
    assert!(import(b"").contains("empty"));
    assert!(import(&[0; 4096]).contains("no entries"));
    assert!(import(&[b'x'; 4096]).contains("before its first entry"));
    assert!(import(&good[..6000]).contains("`two`"));
    assert!(import(&packed[..packed.len() - 20]).contains("test.tar"));
    let mut flipped = packed.clone();
    let at = flipped.len() - 6;
    flipped[at] ^= 0xff;
    assert!(import(&flipped).contains("test.tar"), "the checksum of the gzip stream is verified");
    let mut broken = good.clone();
    broken[4608 + 100] ^= 1;
    assert!(import(&broken).contains("after entry `one`"));
    for (name, packed) in [("xz", xz(&good)), ("bzip2", bzip2(&good))] {
        assert!(import(&packed[..packed.len() - 20]).contains("test.tar"), "{name}, cut");
        let mut flipped = packed.clone();
        let at = flipped.len() / 2;
        flipped[at] ^= 0xff;
        assert!(import(&flipped).contains("test.tar"), "{name}, changed");
    }
    assert!(import(b"\xfd7zXZ\0 and so on").contains("test.tar"));
    place.assert_untouched();

    let options =
        ImportOptions { source: "test.tar".into(), sha256: Some("0".repeat(64)), ..Default::default() };
    let error = place.store.import_tarball(&"x:1".parse().unwrap(), &packed[..], &options).unwrap_err();
    assert!(chain(&error).contains("was promised"), "{error}");
    place.assert_untouched();
    let sum = Digest::of(&packed).hex().to_uppercase();
    let options = ImportOptions { sha256: Some(sum), ..options };
    place.store.import_tarball(&"x:1".parse().unwrap(), &packed[..], &options).unwrap();
}

#[test]
fn an_added_archive_may_turn_a_link_of_the_base() {
    if delegated("archives::an_added_archive_may_turn_a_link_of_the_base") {
        return;
    }
    let place = Place::new();
    place.base();
    let tar = Archive::new().file("lib/x", b"x").link("lib", "tmp").file("lib/y", b"y").finish();
    fs::write(place.context_dir().join("a.tar"), tar).unwrap();
    let image = place.build("FROM base:1\nADD a.tar /\n").image();
    let layer = place.layer(&image, 0);
    assert!(layer.join("usr/lib/x").exists() && layer.join("tmp/y").exists());
    assert!(!layer.join("usr/lib/y").exists());
}

#[test]
fn every_packing_gives_the_same_layer() {
    if delegated("archives::every_packing_gives_the_same_layer") {
        return;
    }
    let tar = Archive::new().dir("a").file("a/zeros", &vec![0; 1 << 20]).file("b", b"b").finish();
    let (half, rest) = tar.split_at(tar.len() / 2);
    for (name, packed) in [
        ("plain", tar.clone()),
        ("gzip", gzip(&tar)),
        ("zstd", zstd::encode_all(&tar[..], 1).unwrap()),
        ("xz", xz(&tar)),
        ("bzip2", bzip2(&tar)),
        // As several programs at once write them.
        ("gzip in parts", [gzip(half), gzip(rest)].concat()),
        ("xz in parts", [xz(half), xz(rest)].concat()),
        ("bzip2 in parts", [bzip2(half), bzip2(rest)].concat()),
    ] {
        let place = Place::new();
        let sum = Digest::of(&packed).hex().to_owned();
        let options = ImportOptions { source: name.into(), sha256: Some(sum), ..Default::default() };
        let image = place.store.import_tarball(&"x:1".parse().unwrap(), &packed[..], &options);
        let image = image.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        assert_eq!(image.config.rootfs.diff_ids, [Digest::of(&tar)], "{name}");
        assert_eq!(list(&place.layer(&image, 0)), ["a", "b"], "{name}");
    }
}

/// An archive whose only block asks for 3 GiB of memory. (The format is that of xz-file-format.txt, 2.1 and 3.1.)
fn hungry_xz() -> Vec<u8> {
    let mut packed = xz(&Archive::new().file("f", b"f").finish());
    let header = 12..12 + (usize::from(packed[12]) + 1) * 4 - 4;
    let filter = packed[header.clone()].windows(2).position(|pair| pair == [0x21, 1]).unwrap();
    packed[header.start + filter + 2] = 39;
    let mut sum = !0_u32;
    for byte in &packed[header.clone()] {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    packed[header.end..header.end + 4].copy_from_slice(&(!sum).to_le_bytes());
    packed
}

#[test]
fn bombs_are_stopped() {
    if delegated("archives::bombs_are_stopped") {
        return;
    }
    let place = Place::new();
    let import = |bytes: &[u8], limits: Limits| {
        let options = ImportOptions { source: "test.tar".into(), limits, ..Default::default() };
        chain(&place.store.import_tarball(&"x:1".parse().unwrap(), bytes, &options).unwrap_err())
    };
    let big = gzip(&Archive::new().file("zeros", &vec![0; 3 << 20]).finish());
    assert!(import(&big, Limits { bytes: 1 << 20, ..Limits::default() }).contains("more than 1048576 bytes"));
    for packed in [xz(&[0; 3 << 20]), bzip2(&[0; 3 << 20])] {
        let limits = Limits { bytes: 1 << 20, ..Limits::default() };
        assert!(!import(&packed, limits).is_empty());
    }
    assert!(import(&hungry_xz(), Limits::default()).contains("memory"));
    // What is never unpacked counts too.
    let device = gzip(&Archive::new().raw(b'3', b"dev/x", b"", &vec![0; 3 << 20], |_| {}).finish());
    assert!(
        import(&device, Limits { bytes: 1 << 20, ..Limits::default() }).contains("more than 1048576 bytes")
    );
    let many = Archive::new().dir("a").dir("b").dir("c").finish();
    assert!(import(&many, Limits { entries: 2, ..Limits::default() }).contains("more than 2 entries"));
    // A header of any size would be kept in memory by the reader.
    for kind in [b'x', b'L', b'K'] {
        let name =
            gzip(&Archive::new().raw(kind, b"x", b"", &vec![b'a'; 8 << 20], |_| {}).file("f", b"").finish());
        assert!(import(&name, Limits::default()).contains("too much data for one header"));
    }
    place.assert_untouched();
}

#[test]
fn owners_are_container_ids() {
    if delegated("archives::owners_are_container_ids") || !has_many_ids("owners_are_container_ids") {
        return;
    }
    let place = Place::new();
    let mut tar = Archive::new();
    for (name, uid, gid) in [("f", 33, 34), ("s", 1000, 1001)] {
        let kind = if name == "f" { b'0' } else { b'2' };
        tar.raw(kind, name.as_bytes(), b"t", b"", |header| {
            header.set_uid(uid);
            header.set_gid(gid);
            header.set_mode(0o6755);
        });
    }
    let image = place.import("x:1", &tar.finish()).unwrap();
    let layer = place.layer(&image, 0);
    let owner =
        |name: &str| fs::symlink_metadata(layer.join(name)).map(|meta| (meta.uid(), meta.gid())).unwrap();
    assert_eq!((owner("f"), owner("s")), ((33, 34), (1000, 1001)));
    assert_eq!(
        fs::metadata(layer.join("f")).unwrap().mode() & 0o7777,
        0o6755,
        "set-id bits survive the chown"
    );
}

#[derive(Clone, Debug)]
enum Entry {
    File(String),
    Dir(String),
    Link(String, String),
    Hard(String, String),
    Whiteout(String),
}

fn path(outside: &'static str) -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", ".", "/", outside]);
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn entry() -> impl Strategy<Value = Entry> {
    let name = || path("OUT");
    prop_oneof![
        name().prop_map(Entry::File),
        name().prop_map(Entry::Dir),
        (name(), name()).prop_map(|(name, target)| Entry::Link(name, target)),
        (name(), name()).prop_map(|(name, target)| Entry::Hard(name, target)),
        name().prop_map(Entry::Whiteout),
    ]
}

#[test]
fn random_archives_never_touch_anything_outside() {
    if delegated("archives::random_archives_never_touch_anything_outside") {
        return;
    }
    let place = Place::new();
    let outside = place.outside();
    fs::write(outside.join("a"), "precious").unwrap();
    fs::create_dir(outside.join("b")).unwrap();
    let before = fs::metadata(outside.join("a")).unwrap();
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(entries in prop::collection::vec(entry(), 1..12))| {
        let mut tar = Archive::new();
        let real = |path: &str| path.replace("OUT", outside.to_str().unwrap());
        for entry in &entries {
            match entry {
                Entry::File(name) => tar.file(&real(name), b"evil"),
                Entry::Dir(name) => tar.dir(&real(name)),
                Entry::Link(name, target) => tar.link(&real(name), &real(target)),
                Entry::Hard(name, target) => tar.hard(&real(name), &real(target)),
                Entry::Whiteout(name) => tar.file(&format!("{}/.wh.a", real(name)), b""),
            };
        }
        // Whether it is refused or unpacked does not matter here.
        place.import("x:1", &tar.finish()).ok();
        prop_assert_eq!(list(&outside), ["a", "b"]);
        prop_assert_eq!(list(&outside.join("b")), Vec::<String>::new());
        prop_assert_eq!(list(&place.data().join("tmp")), Vec::<String>::new());
    });
    let after = fs::metadata(outside.join("a")).unwrap();
    assert_eq!(
        (before.ino(), before.nlink(), before.ctime_nsec()),
        (after.ino(), after.nlink(), after.ctime_nsec())
    );
}
