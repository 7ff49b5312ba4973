//! `COPY` and `ADD`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::places::{Archive, Place, bzip2, delegated, gzip, has_many_ids, list, xz};

/// Builds on the base and lists the files (not directories) of the last layer.
fn copied(place: &Place, instructions: &str) -> Vec<String> {
    let image = place.build(&format!("FROM base:1\n{instructions}\n")).image();
    let layer = place.layer(&image, 0);
    let mut files = Vec::new();
    let mut todo = vec![layer.clone()];
    while let Some(dir) = todo.pop() {
        for name in list(&dir) {
            let path = dir.join(name);
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                todo.push(path);
            } else {
                files.push(path.strip_prefix(&layer).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

fn place() -> Place {
    let place = Place::new();
    place.base();
    for name in ["a.txt", "b.txt", "c.md", "[x].txt", "dir/x", "dir/sub/y", "dir/sub/z.md"] {
        place.context(name, name);
    }
    place
}

#[test]
fn destinations_follow_dockers_rules() {
    if delegated("copies::destinations_follow_dockers_rules") {
        return;
    }
    let place = place();
    for (instructions, files) in [
        ("COPY a.txt /new", vec!["new"]),
        ("COPY a.txt /new/", vec!["new/a.txt"]),
        ("COPY a.txt /etc", vec!["etc/a.txt"]),
        ("COPY a.txt /deep/er/file", vec!["deep/er/file"]),
        ("COPY a.txt b.txt /many/", vec!["many/a.txt", "many/b.txt"]),
        ("COPY *.txt /many/", vec!["many/[x].txt", "many/a.txt", "many/b.txt"]),
        ("COPY ?.md [ab].txt .", vec!["a.txt", "b.txt", "c.md"]),
        ("COPY dir /d", vec!["d/sub/y", "d/sub/z.md", "d/x"]),
        ("COPY dir/ /d/", vec!["d/sub/y", "d/sub/z.md", "d/x"]),
        ("COPY dir/*/y /d/", vec!["d/y"]),
        ("WORKDIR /w\nCOPY a.txt rel/", vec!["w/rel/a.txt"]),
        ("COPY [\"a.txt\", \"/with space\"]", vec!["with space"]),
        ("ENV D=/var\nCOPY a.txt $D/x", vec!["var/x"]),
        // `/lib` is a link to `usr/lib`.
        ("COPY a.txt /lib/", vec!["usr/lib/a.txt"]),
        ("COPY a.txt /lib", vec!["usr/lib/a.txt"]),
        ("COPY /a.txt ./dir/../b.txt ../c.md /x/", vec!["x/a.txt", "x/b.txt", "x/c.md"]),
        ("COPY a.txt b.txt /etc", vec!["etc/a.txt", "etc/b.txt"]),
        ("COPY dir dir/sub /new", vec!["new/sub/y", "new/sub/z.md", "new/x", "new/y", "new/z.md"]),
        ("COPY a.txt nothing* /new/", vec!["new/a.txt"]),
        ("COPY ./[[]x].txt /new", vec!["new"]),
        (
            "COPY --exclude=*.md --exclude=sub/y . /e/",
            vec!["e/[x].txt", "e/a.txt", "e/b.txt", "e/dir/sub/y", "e/dir/sub/z.md", "e/dir/x"],
        ),
        (
            "COPY --exclude=**/*.md --exclude=dir/* --exclude=!dir/x . /e/",
            vec!["e/[x].txt", "e/a.txt", "e/b.txt", "e/dir/x"],
        ),
        ("COPY --exclude=sub dir /e/", vec!["e/x"]),
        ("COPY --exclude=a* *.txt /e/", vec!["e/[x].txt", "e/b.txt"]),
        ("COPY --parents dir/sub/y a.txt /p", vec!["p/a.txt", "p/dir/sub/y"]),
        ("COPY --parents ./dir/./sub /p", vec!["p/sub/y", "p/sub/z.md"]),
        ("COPY --parents d*/./*/y /p", vec!["p/sub/y"]),
        ("COPY --parents **/y **/**/*.md /p/", vec!["p/c.md", "p/dir/sub/y", "p/dir/sub/z.md"]),
        ("COPY --parents dir/** /p", vec!["p/dir/sub/y", "p/dir/sub/z.md", "p/dir/x"]),
        ("COPY --parents --exclude=**/y dir/sub/. /p", vec!["p/dir/sub/z.md"]),
        ("COPY --parents --exclude=*/x dir /p", vec!["p/dir/sub/y", "p/dir/sub/z.md"]),
        ("COPY --parents none*/x /p/q", vec![]),
    ] {
        assert_eq!(copied(&place, instructions), files, "{instructions}");
    }
    for (instructions, error) in [
        ("COPY a.txt b.txt /many", "must end with `/`"),
        ("COPY *.txt /many", "must end with `/`"),
        ("COPY a.txt /etc/passwd/", "is a file"),
        ("COPY a.txt /etc/passwd/x", "lies below a file"),
        ("COPY dir /etc/passwd", "is a file"),
        ("COPY nothing /", "is not in the build context"),
        ("COPY dir/suv/y /", "`dir/suv/y` is not in the build context"),
        ("COPY --parents dir/nothing /", "is not in the build context"),
    ] {
        let text = place.build(&format!("FROM base:1\n{instructions}")).error();
        assert!(text.contains(error), "{instructions}: {text}");
    }
}

#[test]
fn a_tree_merges_with_the_image_through_its_links() {
    if delegated("copies::a_tree_merges_with_the_image_through_its_links") {
        return;
    }
    let place = place();
    place.context("root/lib/b", "b");
    place.context("root/etc/passwd", "new");
    fs::set_permissions(place.context_dir().join("root/etc"), PermissionsExt::from_mode(0o750)).unwrap();
    let image = place.build("FROM base:1\nCOPY root/ /\n").image();
    let layer = place.layer(&image, 0);
    assert_eq!(list(&layer), ["etc", "usr"]);
    assert!(layer.join("usr/lib/b").exists());
    assert_eq!(fs::metadata(layer.join("etc")).unwrap().mode() & 0o777, 0o750);
    // A directory where the image has a file, and the other way round.
    place.context("bad/etc/passwd/x", "");
    assert!(place.build("FROM base:1\nCOPY bad/ /\n").error().contains("is a file"));
    place.context("worse/etc", "");
    assert!(place.build("FROM base:1\nCOPY worse/ /\n").error().contains("is a directory"));
}

#[test]
fn the_cache_sees_content_and_mode_but_not_time() {
    if delegated("copies::the_cache_sees_content_and_mode_but_not_time") {
        return;
    }
    let place = place();
    let text = "FROM base:1\nCOPY dir a.txt /d/\nRUN touch after\n";
    let cached = || place.build(text).cached().len();
    assert_eq!([cached(), cached()], [0, 2]);
    place.context("a.txt", "a.txt");
    assert_eq!(cached(), 2, "written again, but the same");
    place.context("a.txt", "other");
    assert_eq!([cached(), cached()], [0, 2]);
    fs::set_permissions(place.context_dir().join("dir/x"), PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(cached(), 0);
    fs::rename(place.context_dir().join("dir/x"), place.context_dir().join("dir/w")).unwrap();
    assert_eq!(cached(), 0);
    place.context("unrelated", "");
    assert_eq!(cached(), 2);
    symlink("w", place.context_dir().join("dir/link")).unwrap();
    assert_eq!(cached(), 0);
}

#[test]
fn dockerignore_leaves_files_out() {
    if delegated("copies::dockerignore_leaves_files_out") {
        return;
    }
    let place = place();
    place.context(".dockerignore", "**/*.md\n!dir/sub/z.md\ndir/x\n.dockerignore\n");
    assert_eq!(
        copied(&place, "COPY . /c/"),
        ["c/[x].txt", "c/a.txt", "c/b.txt", "c/dir/sub/y", "c/dir/sub/z.md"]
    );
    let error = place.build("FROM base:1\nCOPY c.md /").result.unwrap_err();
    assert_eq!(error.hint().as_deref(), Some("`.dockerignore` leaves it out"));
    place.context(".dockerignore", "*\n!dir/sub\n");
    assert_eq!(copied(&place, "COPY . /c/"), ["c/dir/sub/y", "c/dir/sub/z.md"]);
    // The Dockerfile's own file comes first.
    fs::write(place.temp.path().join("Dockerfile.dockerignore"), "dir\n.dockerignore").unwrap();
    assert_eq!(copied(&place, "COPY . /c/"), ["c/[x].txt", "c/a.txt", "c/b.txt", "c/c.md"]);
}

#[test]
fn links_of_the_context_stay_inside_it() {
    if delegated("copies::links_of_the_context_stay_inside_it") {
        return;
    }
    let place = place();
    fs::write(place.outside().join("secret"), "secret").unwrap();
    let context = place.context_dir();
    symlink(place.outside(), context.join("out")).unwrap();
    symlink(place.outside().join("secret"), context.join("file")).unwrap();
    symlink("../outside/secret", context.join("up")).unwrap();
    symlink("dir/x", context.join("good")).unwrap();
    for source in ["out/secret", "file", "up", "out"] {
        let error = place.build(&format!("FROM base:1\nCOPY {source} /\n")).error();
        assert!(error.contains("is not in the build context"), "{source}: {error}");
    }
    let image = place.build("FROM base:1\nCOPY good /g\nCOPY . /all/\n").image();
    assert_eq!(fs::read_to_string(place.layer(&image, 1).join("g")).unwrap(), "dir/x");
    // Inside a tree a link stays a link.
    assert_eq!(
        fs::read_link(place.layer(&image, 0).join("all/file")).unwrap(),
        place.outside().join("secret")
    );
}

#[test]
fn owners_and_modes() {
    if delegated("copies::owners_and_modes") {
        return;
    }
    let place = place();
    let image = place.build("FROM base:1\nCOPY --chmod=4711 a.txt /new/a\n").image();
    let meta = fs::metadata(place.layer(&image, 0).join("new/a")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o4711, 0, 0));
    let source = fs::metadata(place.context_dir().join("a.txt")).unwrap();
    assert_eq!(meta.mtime_nsec(), source.mtime_nsec(), "times are kept");
    fs::set_permissions(place.context_dir().join("dir/sub"), PermissionsExt::from_mode(0o700)).unwrap();
    let text =
        "FROM base:1\nENV MODE=g+w,o=\nCOPY --chmod=$MODE,+X dir /m/\nCOPY --chmod=u+x <<E /script\nE\n";
    let image = place.build(text).image();
    let mode = |at, path| fs::metadata(place.layer(&image, at).join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode(1, "m/sub"), mode(1, "m/x"), mode(0, "script")), (0o731, 0o660, 0o744));
    // A directory that is copied into is made as any other, whatever the one is whose contents come.
    let image = place.build("FROM base:1\nCOPY dir/sub /new\nCOPY --chmod=700 dir /c\n").image();
    let mode = |at, path| fs::metadata(place.layer(&image, at).join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode(1, "new"), mode(0, "c"), mode(0, "c/sub")), (0o755, 0o755, 0o700));
    for (spec, error) in [("nobody", "no user `nobody`"), ("web:nobody", "no group `nobody`")] {
        let text = place.build(&format!("FROM base:1\nCOPY --chown={spec} a.txt /\n")).error();
        assert!(text.contains(error), "{text}");
    }
    if !has_many_ids("owners_and_modes") {
        return;
    }
    for (spec, owner) in
        [("web", (33, 34)), ("web:log", (33, 50)), ("7", (7, 7)), ("7:log", (7, 50)), (":log", (0, 50))]
    {
        let image = place.build(&format!("FROM base:1\nCOPY --chown={spec} dir /var/d\n")).image();
        for name in ["var/d", "var/d/sub/y"] {
            let meta = fs::metadata(place.layer(&image, 0).join(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), owner, "{spec} {name}");
        }
    }
    let text = "FROM base:1 AS a\nCOPY --chown=web dir /d\nFROM base:1\nCOPY --from=a /d /d\nCOPY --from=a --chown=0 /d /e\n";
    let image = place.build(text).image();
    assert_eq!(fs::metadata(place.layer(&image, 1).join("d/x")).unwrap().uid(), 33);
    assert_eq!(fs::metadata(place.layer(&image, 1).join("d")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(place.layer(&image, 0).join("e/x")).unwrap().uid(), 0);
}

#[test]
fn add_unpacks_archives_and_copies_the_rest() {
    if delegated("copies::add_unpacks_archives_and_copies_the_rest") {
        return;
    }
    let place = place();
    let tar = Archive::new().dir("t/").file("t/f", b"f").hard("t/h", "t/f").file("lib/c", b"c").finish();
    let write = |name: &str, bytes: &[u8]| fs::write(place.context_dir().join(name), bytes).unwrap();
    write("t.tar", &tar);
    write("t.tar.gz", &gzip(&tar));
    write("plain.gz", &gzip(b"no archive"));
    write("t.tar.xz", &xz(&tar));
    write("t.tbz", &bzip2(&tar));
    write("plain.xz", &xz(b"no archive"));
    write("broken.xz", b"\xfd7zXZ\0and so on");
    assert_eq!(copied(&place, "ADD t.tar /opt"), ["opt/lib/c", "opt/t/f", "opt/t/h"]);
    assert_eq!(copied(&place, "ADD t.tar.gz /"), ["t/f", "t/h", "usr/lib/c"]);
    assert_eq!(copied(&place, "COPY t.tar.gz /"), ["t.tar.gz"]);
    assert_eq!(copied(&place, "ADD --unpack=false t.tar.gz /"), ["t.tar.gz"]);
    assert_eq!(copied(&place, "ADD --exclude=*.gz t.tar.gz a.txt /x/"), ["x/a.txt"]);
    assert_eq!(copied(&place, "ADD plain.gz a.txt /x/"), ["x/a.txt", "x/plain.gz"]);
    assert_eq!(copied(&place, "ADD t.tar.xz /opt"), ["opt/lib/c", "opt/t/f", "opt/t/h"]);
    assert_eq!(copied(&place, "ADD t.tbz /opt"), ["opt/lib/c", "opt/t/f", "opt/t/h"]);
    assert_eq!(copied(&place, "ADD plain.xz broken.xz /x/"), ["x/broken.xz", "x/plain.xz"]);
    let evil = Archive::new().file("../../x", b"").finish();
    write("evil.tar", &evil);
    let error = place.build("FROM base:1\nADD evil.tar /opt/\n").error();
    assert!(
        error.contains("Dockerfile:2: `ADD evil.tar /opt/` failed: archive `evil.tar`, entry `../../x`"),
        "{error}"
    );
    write("wh.tar", &Archive::new().file(".wh.etc", b"").finish());
    assert!(place.build("FROM base:1\nADD wh.tar /\n").error().contains("reserved"));
}

#[test]
fn layers_below_show_through_whiteouts() {
    if delegated("copies::layers_below_show_through_whiteouts") {
        return;
    }
    let place = place();
    // The runner has no overlay: whiteouts and opaque marks are made by hand, as the kernel makes them.
    let text = "FROM base:1 AS a\nRUN mkdir -p d/e && touch d/one d/e/two\nRUN mkdir d && mknod d/one c 0 0 && touch d/three\n\
                RUN mkdir -p d/e && touch d/e/four && python3 -c \"import os; os.setxattr('d/e','user.overlay.opaque',b'y')\"\n\
                RUN mknod etc c 0 0\n\
                FROM scratch\nCOPY --from=a /d /d\n";
    let image = place.build(text).image();
    let layer = place.layer(&image, 0);
    assert_eq!(
        (list(&layer.join("d")), list(&layer.join("d/e"))),
        (vec!["e".to_owned(), "three".to_owned()], vec!["four".to_owned()])
    );
    let text = text.replace("COPY --from=a /d /d", "COPY --from=a /etc /etc");
    assert!(place.build(&text).error().contains("`/etc` is not in the image"));
    // A directory that comes back where one was deleted hides it.
    let text = text.split("FROM scratch").next().unwrap().to_owned() + "COPY a.txt /etc/new/\n";
    let image = place.build(&text).image();
    let seen = place.store.read_file(&image.layers, "/etc/passwd", 1000).unwrap();
    assert_eq!(seen, None);
    assert!(place.store.read_file(&image.layers, "/etc/new/a.txt", 1000).unwrap().is_some());
}

#[test]
fn linked_files_depend_on_nothing_below_them() {
    if delegated("copies::linked_files_depend_on_nothing_below_them") {
        return;
    }
    let place = place();
    assert_eq!(copied(&place, "COPY --link a.txt /lib/"), ["lib/a.txt"]);
    assert_eq!(copied(&place, "COPY --link a.txt /etc"), ["etc"]);
    assert_eq!(
        copied(&place, "COPY --link --chown=7 dir /lib/new"),
        ["lib/new/sub/y", "lib/new/sub/z.md", "lib/new/x"]
    );
    // The link of the base is a directory now, and what it led to is still there.
    let linked = |below: &str| {
        let built = place.build(&format!("FROM base:1\nRUN {below}\nCOPY --link a.txt /lib/\nRUN true\n"));
        (built.steps.len(), built.image())
    };
    let (_, first) = linked("echo one > one");
    let read = |path: &str| place.store.read_file(&first.layers, path, 100).unwrap();
    assert_eq!((read("/lib/a.txt").as_deref(), read("/usr/lib/a.txt")), (Some(&b"a.txt"[..]), None));
    let made = |image: &image::Image, index: usize| image.config.history[index].created.clone();
    let (ran, second) = linked("echo two > two");
    assert_eq!((made(&first, 2), first.layers[2].clone()), (made(&second, 2), second.layers[2].clone()));
    assert_eq!(ran, 2, "what stands behind it depends on what is below");
}
