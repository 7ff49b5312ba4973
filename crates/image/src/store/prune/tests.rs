use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::config::ImageConfig;
use crate::store::contents::{KeptEntry, KeptImage, KeptLayer};
use crate::store::layers::LayerRecord;

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn at(hour: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(3600 * hour)
}

/// A store of images (`NAME: LAYERS`, made in the hour of their place), of which those with a tag have their own name.
fn contents(images: &[(&str, &[&str], bool)], cache: &[(&str, Option<&str>, u64)]) -> Contents {
    let mut contents = Contents::default();
    let mut layers = BTreeMap::new();
    let mut layer = |name: &str| {
        let record = LayerRecord { diff_id: digest(name), size: name.len() as u64 };
        let kept = KeptLayer { has_directory: true, record: Some(record), files: Vec::new() };
        layers.insert(short(&digest(name)).to_owned(), kept);
    };
    for (hour, (name, own, tagged)) in images.iter().enumerate() {
        let mut config = ImageConfig::default();
        config.rootfs.diff_ids = own.iter().map(|name| digest(name)).collect();
        own.iter().for_each(|name| layer(name));
        contents.images.insert(digest(name), KeptImage { config: Some(config), since: at(hour as u64) });
        if *tagged {
            contents.tags.insert(name.parse().unwrap(), digest(name));
        }
    }
    for (key, own, hour) in cache {
        own.iter().for_each(|name| layer(name));
        contents.cache.insert(digest(key), KeptEntry { layer: own.map(digest), used: at(*hour) });
    }
    contents.layers = layers;
    contents
}

fn shorts(names: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = names.iter().map(|name| short(&digest(name)).to_owned()).collect();
    names.sort();
    names
}

fn digests(names: &[&str]) -> Vec<Digest> {
    let mut digests: Vec<Digest> = names.iter().map(|name| digest(name)).collect();
    digests.sort();
    digests
}

#[test]
fn images_without_a_name_go_and_what_others_share_stays() {
    let store = contents(&[("old", &["base", "one"], false), ("new", &["base", "three"], true)], &[]);
    let doomed = plan(&store, &[], &PrunePolicy::default());
    assert_eq!(doomed.images, digests(&["old"]));
    assert_eq!((doomed.layers, doomed.bytes), (shorts(&["one"]), 3));
    assert!(doomed.names.is_empty() && doomed.cache.is_empty());
}

#[test]
fn nothing_that_is_in_use_goes_whatever_the_policy() {
    let mut store = contents(
        &[("a", &["la"], true), ("b", &["lb"], false), ("c", &["lc"], true)],
        &[("k1", Some("built"), 0), ("k2", Some("other"), 0)],
    );
    store.holds.insert(Hold::Container { image: digest("a"), container: "s/web".to_owned() });
    store.holds.insert(Hold::Image(digest("b")));
    store.holds.insert(Hold::Layer(digest("built")));
    // It is being made: its record is there, and it is not yet.
    store.holds.insert(Hold::Layer(digest("coming")));
    store.layers.insert(short(&digest("coming")).to_owned(), KeptLayer::default());
    let doomed = plan(&store, &[], &PrunePolicy { all: true, ..PrunePolicy::default() });
    assert_eq!(doomed.images, digests(&["c"]));
    assert_eq!(doomed.names, ["c".parse().unwrap()]);
    assert_eq!(doomed.layers, shorts(&["lc", "other"]));
}

#[test]
fn the_cache_goes_by_age_and_size() {
    let store = contents(
        &[("app", &["shared"], true)],
        &[
            ("image", Some("shared"), 1),
            ("none", None, 1),
            ("old", Some("aaaa"), 2),
            ("mid", Some("bbbbb"), 3),
            ("new", Some("cccccc"), 4),
        ],
    );
    let gone = |policy: PrunePolicy| plan(&store, &[], &policy).cache;
    assert_eq!(gone(PrunePolicy::default()), digests(&["old", "mid", "new"]));
    let until = PrunePolicy { before: Some(at(3)), ..PrunePolicy::default() };
    assert_eq!(gone(until), digests(&["old"]));
    let room = |bytes| PrunePolicy { keep_cache: Some(bytes), ..PrunePolicy::default() };
    assert_eq!(gone(room(11)), digests(&["old"]));
    // Five bytes would have room, but four of an older one must not stay in their place.
    assert_eq!(gone(room(5)), digests(&["old", "mid", "new"]));
    assert_eq!(gone(room(100)), digests(&[]));
    let all = PrunePolicy { all: true, ..PrunePolicy::default() };
    assert_eq!(gone(all).len(), 5);
}

#[test]
fn cache_directories_go_like_the_cache_and_never_in_use() {
    let store = contents(&[], &[("old", Some("aaaa"), 2), ("new", Some("cccccc"), 4)]);
    let mount = |id: &str, size, hour, in_use| CacheMount {
        id: id.to_owned(),
        size,
        last_used: at(hour),
        in_use,
        name: id.to_owned(),
    };
    let mounts = [mount("apt", 10, 3, false), mount("busy", 100, 1, true), mount("pip", 1000, 5, false)];
    let gone = |policy: PrunePolicy| {
        let doomed = plan(&store, &mounts, &policy);
        let ids = doomed.cache_mounts.into_iter().map(|mount| mount.id).collect::<Vec<_>>();
        (ids.join(" "), doomed.layers, doomed.bytes)
    };
    let all = shorts(&["aaaa", "cccccc"]);
    assert_eq!(gone(PrunePolicy::default()), ("apt pip".to_owned(), all.clone(), 1020));
    let everything = PrunePolicy { all: true, ..PrunePolicy::default() };
    assert_eq!(gone(everything), ("apt pip".to_owned(), all.clone(), 1020));
    let until = PrunePolicy { before: Some(at(4)), ..PrunePolicy::default() };
    assert_eq!(gone(until), ("apt".to_owned(), shorts(&["aaaa"]), 14));
    // The one that was used last, the layer before it, and no more.
    let room = |bytes| PrunePolicy { keep_cache: Some(bytes), ..PrunePolicy::default() };
    assert_eq!(gone(room(1006)), ("apt".to_owned(), shorts(&["aaaa"]), 14));
    assert_eq!(gone(room(999)), ("apt pip".to_owned(), all, 1020));
    assert_eq!(gone(room(2000)), (String::new(), Vec::new(), 0));
}

#[test]
fn young_images_are_left_alone() {
    let store = contents(&[("a", &["la"], false), ("b", &["lb"], false)], &[]);
    let doomed = plan(&store, &[], &PrunePolicy { before: Some(at(1)), ..PrunePolicy::default() });
    assert_eq!((doomed.images, doomed.layers), (digests(&["a"]), shorts(&["la"])));
}

#[test]
fn a_name_goes_before_its_image_and_an_id_takes_all() {
    let mut store =
        contents(&[("a", &["base", "la"], true), ("b", &["base"], true)], &[("k", Some("la"), 0)]);
    store.tags.insert("again:1".parse().unwrap(), digest("a"));
    let named = removal(&store, "again:1", false).unwrap();
    assert_eq!(named, Removed { untagged: vec!["again:1".parse().unwrap()], ..Removed::default() });
    let id = digest("a").short().to_owned();
    assert!(matches!(removal(&store, &id, false), Err(Error::ManyNames { .. })));
    let forced = removal(&store, &id, true).unwrap();
    assert_eq!((forced.untagged.len(), forced.image), (2, Some(digest("a"))));
    // The base is another image's, and the other layer the build cache's.
    assert_eq!(forced.layers, Vec::<String>::new());
    store.cache.clear();
    assert_eq!(removal(&store, &id, true).unwrap().layers, shorts(&["la"]));
}

#[test]
fn a_digest_keeps_no_image_and_goes_with_the_last_tag_beside_it() {
    let mut store = contents(&[("a", &["la"], true), ("old", &["lo"], false)], &[]);
    let pinned = |name: &str| name.parse::<Reference>().unwrap().pinned(&digest("manifest"));
    store.tags.insert(pinned("old"), digest("old"));
    store.tags.insert(pinned("a"), digest("a"));
    store.tags.insert("host:5000/a:1".parse().unwrap(), digest("a"));
    let doomed = plan(&store, &[], &PrunePolicy::default());
    assert_eq!((doomed.images, doomed.names), (digests(&["old"]), vec![pinned("old")]));
    let first = removal(&store, "a", false).unwrap();
    assert_eq!((first.untagged, first.image), (vec!["a".parse().unwrap(), pinned("a")], None));
    let other = removal(&store, "host:5000/a:1", false).unwrap();
    assert_eq!(other.untagged, ["host:5000/a:1".parse().unwrap()]);
    store.tags.remove(&"host:5000/a:1".parse().unwrap());
    let last = removal(&store, "a", false).unwrap();
    assert_eq!((last.untagged.len(), last.image), (2, Some(digest("a"))));
    let by_digest = removal(&store, &pinned("a").to_string(), false).unwrap();
    assert_eq!((by_digest.untagged, by_digest.image), (vec![pinned("a")], None));
    let by_id = removal(&store, digest("a").short(), false).unwrap();
    assert_eq!((by_id.untagged.len(), by_id.image), (2, Some(digest("a"))));
}

#[test]
fn an_image_in_use_stays_and_its_user_is_named() {
    let mut store = contents(&[("a", &["la"], true)], &[]);
    store.holds.insert(Hold::Container { image: digest("a"), container: "shop/web".to_owned() });
    store.holds.insert(Hold::Image(digest("a")));
    let error = removal(&store, "a", false).unwrap_err().to_string();
    assert!(error.ends_with("is in use by container `shop/web`"), "{error}");
    let by_name = removal(&store, "a", true).unwrap();
    assert_eq!((by_name.untagged.len(), by_name.image), (1, None));
    assert!(matches!(removal(&store, digest("a").hex(), true), Err(Error::ImageInUse { .. })));
}

#[test]
fn names_ids_and_beginnings_of_ids_are_found() {
    let store = contents(&[("alpine", &[], true), ("team/app:2", &[], true)], &[]);
    let id = digest("alpine");
    for text in
        ["alpine", "alpine:latest", &id.to_string(), id.hex(), id.short(), &format!("sha256:{}", id.short())]
    {
        assert_eq!(store.find(text).unwrap().0, id, "{text}");
    }
    let hint = |text: &str| store.find(text).unwrap_err().hint().unwrap();
    assert_eq!(hint("alpin"), "did you mean `alpine:latest`?");
    assert_eq!(hint("team/app"), "did you mean `team/app:2`?");
    assert!(hint("0123456789").contains("images"));
    let mut many = Contents::default();
    for number in 0..20 {
        let image = KeptImage { config: None, since: at(0) };
        many.images.insert(digest(&number.to_string()), image);
    }
    let first = many.images.keys().next().unwrap().hex()[..1].to_owned();
    let alike = many.images.keys().filter(|id| id.hex().starts_with(&first)).count();
    assert!(alike == 1 || matches!(many.find(&first), Err(Error::AmbiguousId { .. })));
}
