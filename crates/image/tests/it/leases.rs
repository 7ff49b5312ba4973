//! Leases: what is in use stays while others delete.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use image::{Change, Hold, Lease, PrunePolicy, Store};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::places::{Archive, Place, delegated, list, reference};

fn everything() -> PrunePolicy {
    PrunePolicy { all: true, ..PrunePolicy::default() }
}

#[test]
fn what_was_found_or_made_stays_for_as_long_as_the_lease() {
    if delegated("leases::what_was_found_or_made_stays_for_as_long_as_the_lease") {
        return;
    }
    let place = Place::new();
    let made = place.base();
    let other = Store::open(place.data()).unwrap();
    assert_eq!(other.prune(&everything(), false).unwrap(), image::Pruned::default(), "its maker holds it");
    // Who only looks holds nothing, and who looks with a lease does.
    assert!(Store::reader(place.data()).image(&reference("base:1")).unwrap().is_some());
    let lease = Lease::new(place.data()).unwrap();
    let user = Store::reader(place.data()).with_lease(lease);
    assert_eq!(user.image(&reference("base:1")).unwrap().unwrap().id, made.id);
    let Place { temp, store } = place;
    drop(store);
    assert!(other.prune(&everything(), false).unwrap().images.is_empty(), "its user holds it");
    user.use_only([Hold::Container { image: made.id.clone(), container: "shop/web".to_owned() }].into())
        .unwrap();
    assert_eq!(other.image_of("shop/web").unwrap(), Some(made.id.clone()));
    let error = other.remove_image("base:1", false).unwrap_err();
    assert!(error.to_string().contains("container `shop/web`"), "{error}");
    user.use_only([].into()).unwrap();
    assert_eq!(other.prune(&everything(), true).unwrap().images, std::slice::from_ref(&made.id), "a dry run");
    let gone = other.prune(&everything(), false).unwrap();
    assert_eq!((gone.images, gone.names), (vec![made.id], vec![reference("base:1")]));
    for dir in ["l", "layers", "images", "tags", "tmp"] {
        assert_eq!(list(&temp.path().join("data").join(dir)), Vec::<String>::new(), "{dir}");
    }
}

#[test]
fn a_line_that_a_full_disk_cut_short_hides_no_other() {
    if delegated("leases::a_line_that_a_full_disk_cut_short_hides_no_other") {
        return;
    }
    let place = Place::new();
    let [lease] = &list(&place.data().join("leases"))[..] else { panic!("one store, one lease") };
    let path = place.data().join("leases").join(lease);
    fs::write(&path, "{\"image\":\"sha256:01").unwrap();
    let made = place.base();
    let other = Store::open(place.data()).unwrap();
    assert!(other.prune(&everything(), false).unwrap().images.is_empty());
    assert!(other.image_by_id(&made.id).unwrap().is_some());
}

#[test]
fn makers_keep_what_they_made_whoever_prunes() {
    if delegated("leases::makers_keep_what_they_made_whoever_prunes") {
        return;
    }
    let place = Place::new();
    let done = AtomicBool::new(false);
    let data = place.data();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let store = Store::open(data).unwrap();
                while !done.load(Ordering::Relaxed) {
                    store.prune(&everything(), false).unwrap();
                }
            });
        }
        let makers: Vec<_> = (0..3_u8)
            .map(|maker| {
                scope.spawn(move || {
                    for round in 0..40_u8 {
                        // One of the two layers is everybody's.
                        let store = Store::open(data).unwrap();
                        let content = if round % 2 == 0 { [0, round] } else { [maker + 1, round] };
                        let mut tar = Archive::new();
                        tar.file("f", &content);
                        let options = image::ImportOptions { source: "x".to_owned(), ..Default::default() };
                        let name = reference(&format!("x{maker}"));
                        let image = store.import_tarball(&name, &tar.finish()[..], &options).unwrap();
                        let found = store.image_by_id(&image.id).unwrap().expect("it was made a moment ago");
                        let file = store.read_file(&found.layers, "f", 100).unwrap();
                        assert_eq!(file.as_deref(), Some(&content[..]));
                    }
                })
            })
            .collect();
        let ended: Vec<_> = makers.into_iter().map(|maker| maker.join()).collect();
        done.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    let found = place.store.verify(false, &mut |_| {}).unwrap();
    assert_eq!(found.findings, []);
}

#[test]
fn an_upper_directory_is_read_as_overlayfs_reads_it() {
    if delegated("leases::an_upper_directory_is_read_as_overlayfs_reads_it") {
        return;
    }
    let place = Place::new();
    let base = place.base();
    let upper = place.temp.path().join("upper");
    for dir in ["etc", "usr/lib", "new/inner"] {
        fs::create_dir_all(upper.join(dir)).unwrap();
    }
    let whiteout = |name: &str| {
        rustix::fs::mknodat(CWD, upper.join(name), FileType::CharacterDevice, Mode::empty(), 0).unwrap()
    };
    // A directory that only was copied up, one that hides what was below it, a deleted one, and new ones.
    rustix::fs::setxattr(upper.join("etc"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    fs::write(upper.join("etc/passwd"), "mine").unwrap();
    fs::write(upper.join("etc/hosts"), "").unwrap();
    fs::write(upper.join("etc/hostname"), "written to").unwrap();
    whiteout("tmp");
    whiteout("never-was");
    let changes = place.store.changes(&base.layers, &upper, &["/etc/hosts", "/etc/hostname"]).unwrap();
    let shown: Vec<String> =
        changes.iter().map(|Change { path, kind }| format!("{kind:?} {}", path.display())).collect();
    assert_eq!(
        shown,
        [
            "Changed /etc",
            "Deleted /etc/group",
            "Added /etc/hostname",
            "Changed /etc/passwd",
            "Added /new",
            "Added /new/inner",
            "Deleted /tmp"
        ]
    );
}
