//! The store: names, commits, volumes, what is left by the dead, and genuine bases.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Instant;

use image::base::{BaseSources, Found, locate};
use image::{CommitOptions, Error, ImportOptions, Store, default_config, remove_tree};

use crate::places::{Archive, Place, chain, delegated, fixtures, has_many_ids, list, reference};

#[test]
fn names_move_and_old_images_stay() {
    if delegated("stores::names_move_and_old_images_stay") {
        return;
    }
    let place = Place::new();
    let first = place.import("host:5000/a/b:1", &Archive::new().file("f", b"one").finish()).unwrap();
    let second = place.import("host:5000/a/b:1", &Archive::new().file("f", b"three").finish()).unwrap();
    place.store.tag(&reference("other"), &second.id).unwrap();
    let second_id = second.id.clone();
    let reader = Store::reader(place.data());
    assert_eq!(reader.image(&reference("host:5000/a/b:1")).unwrap(), Some(second));
    assert_eq!(reader.image(&reference("host:5000/a/b:2")).unwrap(), None);
    let images = reader.images().unwrap();
    let shown = |id| {
        let image = images.iter().find(|image| image.id == id).unwrap();
        (image.names.tags.clone(), image.size)
    };
    assert_eq!(shown(second_id), (vec![reference("host:5000/a/b:1"), reference("other")], 5));
    assert_eq!(shown(first.id.clone()), (Vec::new(), 3));
    fs::remove_dir_all(place.layer(&first, 0)).unwrap();
    assert!(matches!(reader.image_by_id(&first.id), Err(Error::MissingLayer { .. })));
    assert_eq!(Store::reader(Path::new("/nowhere")).images().unwrap().len(), 0);
    let id = reader.image(&reference("other")).unwrap().unwrap().id;
    fs::write(place.data().join(format!("images/{}.json", id.hex())), "{").unwrap();
    assert!(chain(&reader.images().unwrap_err()).contains("is damaged"));
}

#[test]
fn the_store_is_closed_to_others() {
    let place = Place::new();
    for dir in ["", "l", "images", "tmp"] {
        assert_eq!(fs::metadata(place.data().join(dir)).unwrap().mode() & 0o777, 0o700, "{dir}");
    }
}

#[test]
fn what_the_dead_left_is_swept_and_the_living_are_not_touched() {
    let place = Place::new();
    let tmp = place.data().join("tmp");
    fs::create_dir_all(tmp.join("dead/upper/deep")).unwrap();
    fs::write(tmp.join("dead.lock"), "").unwrap();
    fs::write(tmp.join("early.lock"), "").unwrap();
    fs::create_dir(tmp.join("alive")).unwrap();
    let lock = fs::File::create(tmp.join("alive.lock")).unwrap();
    lock.lock().unwrap();
    fs::write(tmp.join("dead.file"), "").unwrap();
    fs::create_dir(tmp.join("foreign")).unwrap();
    assert_eq!(place.store.sweep().unwrap(), 3);
    assert_eq!(list(&tmp), ["alive", "alive.lock", "foreign"]);
    drop(lock);
    assert_eq!(place.store.sweep().unwrap(), 1);
    assert_eq!(list(&tmp), ["foreign"]);
}

#[test]
fn a_commit_is_a_layer_on_top() {
    if delegated("stores::a_commit_is_a_layer_on_top") {
        return;
    }
    let place = Place::new();
    let base = place.base();
    let upper = place.temp.path().join("upper");
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/new"), "x").unwrap();
    fs::hard_link(upper.join("etc/new"), upper.join("etc/again")).unwrap();
    symlink("/etc/new", upper.join("link")).unwrap();
    std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("tmp"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
    rustix::fs::setxattr(&upper, "user.overlay.impure", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    let options = CommitOptions {
        reference: Some(reference("saved:1")),
        comment: "mine".to_owned(),
        ..Default::default()
    };
    let image = place.store.commit(&base, &upper, &options).unwrap();
    assert_eq!(image.layers[..1], base.layers[..]);
    let layer = place.layer(&image, 0);
    assert_eq!(list(&layer), ["etc", "link", "tmp"]);
    assert_eq!(fs::metadata(layer.join("etc/new")).unwrap().nlink(), 2);
    assert_eq!(place.store.read_file(&image.layers, "link", 100).unwrap().as_deref(), Some(&b"x"[..]));
    assert_eq!(place.store.image(&reference("saved:1")).unwrap().unwrap().id, image.id);
    assert!(upper.join("socket").exists(), "the container's own files are not touched");
    assert_eq!(list(&place.data().join("tmp")), Vec::<String>::new());
}

#[test]
fn a_directory_becomes_an_image_and_a_volume_its_content() {
    if delegated("stores::a_directory_becomes_an_image_and_a_volume_its_content") {
        return;
    }
    let place = Place::new();
    place.context("data/sub/f", "x");
    place.context("data/g", "y");
    let options = ImportOptions { source: "dir".to_owned(), config: default_config(), ..Default::default() };
    let image = place.store.import_directory(&reference("dir:1"), &place.context_dir(), &options).unwrap();
    let volume = place.outside();
    assert!(place.store.copy_out(&image.layers, "/data", &volume).unwrap());
    assert_eq!(
        (list(&volume), list(&volume.join("sub"))),
        (vec!["g".to_owned(), "sub".to_owned()], vec!["f".to_owned()])
    );
    assert!(!place.store.copy_out(&image.layers, "/data/g", &volume).unwrap());
    assert!(!place.store.copy_out(&image.layers, "/none", &volume).unwrap());
}

#[test]
fn users_come_from_the_images_own_files() {
    if delegated("stores::users_come_from_the_images_own_files") {
        return;
    }
    let place = Place::new();
    let image = place.base();
    let user = |spec: &str| place.store.resolve_user(&image.layers, spec);
    let web = user("web").unwrap();
    assert_eq!((web.uid, web.gid, &web.groups[..], web.home.as_str()), (33, 34, &[50][..], "/srv"));
    assert_eq!(user("33").unwrap(), web);
    let other = user("1000:log").unwrap();
    assert_eq!((other.uid, other.gid, other.groups.len(), other.home.as_str()), (1000, 50, 0, "/"));
    assert_eq!(user("").unwrap().home, "/root");
    assert_eq!(user("nobody").unwrap_err().to_string(), "the image has no user `nobody`");
    // A link to the host's file is a link inside the image.
    let evil = place.import("evil:1", &Archive::new().link("etc", "/proc/self/root/etc").finish()).unwrap();
    assert!(place.store.resolve_user(&evil.layers, "daemon").is_err());
}

#[test]
fn a_full_disk_is_named_and_nothing_is_left() {
    // In a mount namespace of its own, whoever runs the test.
    if std::env::var_os("IN_SMALL_DISK").is_none() {
        let script = "mount -t tmpfs -o size=2m none \"$0\" && TMPDIR=\"$0\" IN_SMALL_DISK=1 exec \"$1\" --exact stores::a_full_disk_is_named_and_nothing_is_left --nocapture";
        let dir = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
            .arg(dir.path())
            .arg(std::env::current_exe().unwrap())
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let place = Place::new();
    let tar = Archive::new().file("small", b"x").file("big", &vec![1; 3 << 20]).finish();
    let error = place.import("x:1", &tar).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("`big`") && text.contains("write `") && text.contains("No space left"), "{text}");
    assert!(error.hint().unwrap().contains("free some space"));
    place.assert_untouched();
}

#[test]
fn genuine_bases_are_found_checked_and_imported() {
    let name = "stores::genuine_bases_are_found_checked_and_imported";
    let Some(dir) = fixtures("genuine_bases_are_found_checked_and_imported") else { return };
    if delegated(name) || !has_many_ids("genuine_bases_are_found_checked_and_imported") {
        return;
    }
    let place = Place::new();
    let paths = [dir];
    let sources = BaseSources { store: Some(&place.store), paths: &paths, offline: true };
    for version in ["3.20", "3.14"] {
        let reference = reference(&format!("alpine:{version}"));
        let Some(Found::Tarball { path, sha256: Some(sha256) }) = locate(&reference, &sources).unwrap()
        else {
            panic!()
        };
        let options = ImportOptions {
            source: path.display().to_string(),
            sha256: Some(sha256),
            config: default_config(),
            ..Default::default()
        };
        let start = Instant::now();
        let image = place.store.import_tarball(&reference, fs::File::open(&path).unwrap(), &options).unwrap();
        eprintln!("imported {reference} in {:?}", start.elapsed());
        let release = place.store.read_file(&image.layers, "/etc/alpine-release", 100).unwrap().unwrap();
        assert!(String::from_utf8(release).unwrap().starts_with(version));
        assert_eq!(place.store.resolve_user(&image.layers, "nobody").unwrap().uid, 65534);
        assert!(matches!(locate(&reference, &sources).unwrap(), Some(Found::InStore(_))));
        // The canonical stream, unpacked again, is the same layer.
        let mut archive = Vec::new();
        place.store.write_layer_tar(&image.layers[0], &mut archive).unwrap();
        let other = Place::new();
        assert_eq!(other.import("again:1", &archive).unwrap().layers, image.layers);
        // One changed byte is noticed.
        let mut bytes = Vec::new();
        fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert!(other.store.import_tarball(&reference, &bytes[..], &options).is_err());
        assert_eq!(other.store.images().unwrap().len(), 1);
    }
    remove_tree(place.data()).unwrap();
    assert!(!place.data().exists());
}

/// Imports and builds until it is killed; started by the test below.
fn work_until_killed(data: &Path) -> ! {
    let store = Store::open(data).unwrap();
    let options =
        ImportOptions { source: "test.tar".to_owned(), config: default_config(), ..Default::default() };
    for round in 0_u64.. {
        let mut tar = Archive::new();
        for file in 0..20 {
            tar.file(&format!("d{}/f{file}", file % 3), &vec![file as u8 ^ round as u8; 20_000]);
        }
        tar.file("round", &round.to_le_bytes());
        let name = reference(&format!("x:{}", round % 3));
        store.import_tarball(&name, &tar.finish()[..], &options).unwrap();
    }
    unreachable!()
}

#[test]
fn a_kill_at_any_moment_leaves_the_store_whole() {
    let name = "stores::a_kill_at_any_moment_leaves_the_store_whole";
    if let Some(data) = std::env::var_os("KILLED_STORE") {
        work_until_killed(Path::new(&data));
    }
    if delegated(name) {
        return;
    }
    let place = Place::new();
    let mut finished = 0;
    for round in 0..20 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("KILLED_STORE", place.data())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20 + 7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        place.store.sweep().unwrap();
        assert_eq!(list(&place.data().join("tmp")), Vec::<String>::new());
        let images = place.store.images().unwrap();
        assert!(images.len() >= finished, "a finished image was lost");
        finished = images.len();
        for summary in images {
            let image = place.store.image_by_id(&summary.id).unwrap().unwrap();
            for layer in &image.layers {
                let mut archive = Vec::new();
                place.store.write_layer_tar(layer, &mut archive).unwrap();
                assert_eq!(image::Digest::of(&archive), *layer, "a torn layer is visible");
            }
        }
    }
    assert!(finished > 0, "no import was ever finished: the test shows nothing");
}

#[test]
fn an_unchanged_rebuild_takes_milliseconds() {
    if delegated("stores::an_unchanged_rebuild_takes_milliseconds") {
        return;
    }
    let place = Place::new();
    place.base();
    for file in 0..50 {
        place.context(&format!("src/f{file}"), &"x".repeat(4000));
    }
    let lines: String = (0..8).map(|n| format!("RUN echo {n} > {n}\n")).collect();
    let text = format!("FROM base:1\n{lines}COPY src /src/\nCMD x\n");
    place.build(&text).image();
    let start = Instant::now();
    let again = place.build(&text);
    let took = start.elapsed();
    eprintln!("unchanged rebuild of 9 layers: {took:?}");
    assert_eq!((again.steps.len(), again.cached().len()), (0, 9));
    assert!(took.as_millis() < 200, "{took:?}");
}
