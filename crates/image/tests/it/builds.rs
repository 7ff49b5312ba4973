//! The builder: layers, cache, stages, and what it says when something is wrong.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use image::base::{BaseSources, Found, locate};
use image::{
    BoxError, BuildEvent, Error, ImportOptions, NamedContext, RunStep, Runner, Running, Store, default_config,
};

use crate::places::{Archive, Place, Process, Shell, delegated, fixtures, has_many_ids, list, reference};

/// The example of the documentation: each `RUN` is a layer of its own, and a change rebuilds from there on.
#[test]
fn a_change_rebuilds_from_the_changed_layer_on() {
    if delegated("builds::a_change_rebuilds_from_the_changed_layer_on") {
        return;
    }
    let place = Place::new();
    place.base();
    let text = |second: &str| {
        format!(
            "FROM base:1\nRUN echo one > 1\nRUN echo {second} > 2\nRUN echo three > 3\nENTRYPOINT [\"/bin/sh\"]\n"
        )
    };
    let first = place.build(&text("two"));
    assert_eq!(first.steps.len(), 3);
    assert_eq!(first.steps[0].argv, ["/bin/sh", "-c", "echo one > 1"]);
    assert_eq!(first.steps[2].layers.len(), 3);
    assert_eq!(first.steps[2].layers[2].len(), "l/".len() + 24);
    let first = first.image();
    assert_eq!(list(&place.layer(&first, 1)), ["2"]);
    assert_eq!(first.config.config.cmd, None, "an entrypoint drops the base's command");

    let same = place.build(&text("two"));
    assert_eq!(
        (same.steps.len(), same.cached()),
        (0, vec!["RUN echo one > 1".to_owned(), "RUN echo two > 2".into(), "RUN echo three > 3".into()])
    );
    let id = same.image().id;
    assert_eq!(id, first.id, "an unchanged image keeps its id");

    let changed = place.build(&text("zwei"));
    assert_eq!((changed.steps.len(), changed.cached()), (2, vec!["RUN echo one > 1".to_owned()]));
    let changed = changed.image();
    assert_eq!(changed.layers[..2], first.layers[..2]);
    assert_eq!(fs::read_to_string(place.layer(&changed, 1).join("2")).unwrap(), "zwei\n");

    // A layer that is gone is made again.
    fs::remove_dir_all(place.layer(&first, 0)).unwrap();
    assert_eq!(place.build(&text("two")).steps.len(), 1);

    let anew = place.build_with(&text("zwei"), |request| request.fresh = Some(SystemTime::now()));
    assert_eq!(anew.steps.len(), 3);
}

/// Where nothing has changed, a look is enough; where it is not, it says nothing. That it says what the build does is
/// asserted of every build of these tests.
#[test]
fn what_a_look_finds_is_what_nothing_has_changed_of() {
    if delegated("builds::what_a_look_finds_is_what_nothing_has_changed_of") {
        return;
    }
    let place = Place::new();
    place.base();
    place.context("src/a", "a");
    place.context("ignored", "1");
    place.context(".dockerignore", "ignored\n");
    let text =
        "FROM base:1\nWORKDIR /srv\nCOPY src src/\nRUN --mount=type=bind,target=/m echo one > 1\nCMD x\n";
    let named = |request: &mut image::BuildRequest| request.tags = vec![reference("it:1")];
    let recalls = |text: &str| place.build_with(text, named).recalled.is_some();
    assert!(!recalls(text), "nothing was ever built");
    assert!(recalls(text));

    place.context("ignored", "2");
    assert!(recalls(text), "a file that is left out has no say");
    place.context("src/a", "b");
    assert!(!recalls(text), "another content");
    assert!(recalls(text));
    place.context("src/a", "a");
    assert!(!recalls(text), "all is there, but the name means another image");
    assert!(recalls(text));
    let fresh = |request: &mut image::BuildRequest| request.fresh = Some(SystemTime::now());
    assert!(place.build_with(text, fresh).recalled.is_none(), "everything anew");

    // Owners in an image cannot be read outside of the id map.
    let stages = "FROM base:1 AS one\nRUN echo > 1\nFROM base:1\nCOPY --from=one 1 /\n";
    assert!(!recalls(stages) && !recalls(stages));
    // Much would be read twice where it does not help.
    place.context("large", &"x".repeat(3 << 20));
    let large = "FROM base:1\nCOPY large /\n";
    assert!(!recalls(large) && !recalls(large));

    let image = place.build_with(text, named).image();
    fs::remove_dir_all(place.layer(&image, 0)).unwrap();
    assert!(!recalls(text), "a layer is gone");
}

/// Images of BuildKit's have one and the same empty layer for each `WORKDIR`; overlayfs takes no directory twice.
#[test]
fn a_layer_that_an_image_has_twice_is_mounted_once() {
    if delegated("builds::a_layer_that_an_image_has_twice_is_mounted_once") {
        return;
    }
    let place = Place::new();
    place.base();
    let base = place.build("FROM base:1\nRUN echo one > 1\n").image();
    let mut config = serde_json::to_value(&base.config).unwrap();
    let ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    let lowest = ids[0].clone();
    ids.push(lowest);
    let twice = place.store.put_image_json(config.to_string().as_bytes()).unwrap();
    place.store.tag(&reference("twice:1"), &twice.id).unwrap();
    let built = place.build("FROM twice:1\nRUN echo two > 2\n");
    assert_eq!(built.steps[0].layers.len(), 2);
    assert_eq!(built.image().config.rootfs.diff_ids.len(), 4);
}

#[test]
fn instructions_end_up_in_the_configuration() {
    if delegated("builds::instructions_end_up_in_the_configuration") {
        return;
    }
    let place = Place::new();
    place.base();
    let built = place.build_with(
        "ARG TAG=1\nFROM base:$TAG\nARG V=1\nARG TAG\nENV A=$V B=\"x y\"\nENV A=2 C=$A\nENV old form  of it\n\
         LABEL \"l.m\"=\"$B!\" n=o\nWORKDIR /srv\nWORKDIR sub\nUSER web:log\nEXPOSE 80 53/udp 1-3\nVOLUME [\"/data\"]\nVOLUME /v1 rel\n\
         SHELL [\"/bin/ash\", \"-ec\"]\nCMD serve --tag=$TAG\nSTOPSIGNAL SIGQUIT\nHEALTHCHECK --interval=5s CMD probe it\n\
         MAINTAINER me\nRUN true",
        |request| {
            request.args.insert("V".to_owned(), "7".to_owned());
            request.args.insert("http_proxy".to_owned(), "p".to_owned());
            request.args.insert("TYPO".to_owned(), "x".to_owned());
        },
    );
    let step = built.steps[0].clone();
    let warned = built
        .events
        .contains(&BuildEvent::Warning("Dockerfile: no ARG asks for the build argument `TYPO`".to_owned()));
    assert!(warned, "{:?}", built.events);
    let image = built.image();
    let config = &image.config.config;
    assert_eq!(config.env[1..], ["A=2", "B=x y", "C=7", "old=form  of it"]);
    assert_eq!(config.labels["l.m"], "x y!");
    assert_eq!((config.working_dir.as_str(), config.user.as_str()), ("/srv/sub", "web:log"));
    assert_eq!(
        config.exposed_ports.iter().collect::<Vec<_>>(),
        ["1/tcp", "2/tcp", "3/tcp", "53/udp", "80/tcp"]
    );
    assert_eq!(config.volumes.iter().collect::<Vec<_>>(), ["/data", "/srv/sub/rel", "/v1"]);
    assert_eq!(config.cmd.as_deref().unwrap(), ["/bin/ash", "-ec", "serve --tag=$TAG"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
    let health = config.healthcheck.as_ref().unwrap();
    assert_eq!((health.test.join("|").as_str(), health.interval), ("CMD-SHELL|probe it", 5_000_000_000));
    assert_eq!(image.config.author.as_deref(), Some("me"));

    assert_eq!((step.cwd.as_str(), step.user.as_str()), ("/srv/sub", "web:log"));
    let value = |name: &str| step.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!(
        (value("A"), value("V"), value("TAG"), value("http_proxy")),
        (Some("2"), Some("7"), Some("1"), Some("p"))
    );
    assert!(value("PATH").unwrap().contains("/usr/bin"));
    // `WORKDIR` makes its directories, each once; the commands that changed nothing made no layer.
    assert_eq!(image.layers.len(), 3);
    assert!(place.layer(&image, 0).join("srv/sub").is_dir());
    assert_eq!(image.config.history.len(), 1 + 18);
    assert_eq!(image.config.history.iter().filter(|entry| !entry.empty_layer).count(), image.layers.len());
}

#[test]
fn a_run_depends_on_its_variables_but_not_on_proxies() {
    if delegated("builds::a_run_depends_on_its_variables_but_not_on_proxies") {
        return;
    }
    let place = Place::new();
    place.base();
    let steps = |text: &str, name: &str, value: &str| {
        let built =
            place.build_with(text, |request| drop(request.args.insert(name.to_owned(), value.to_owned())));
        built.steps.len()
    };
    let text = "FROM base:1\nARG A\nRUN echo $A > f\n";
    assert_eq!([steps(text, "A", "1"), steps(text, "A", "1"), steps(text, "A", "2")], [1, 0, 1]);
    assert_eq!(
        steps("FROM base:1\nLABEL x=y\nARG A\nRUN echo $A > f\n", "A", "2"),
        0,
        "labels change no file"
    );
    let text = "FROM base:1\nRUN touch g";
    assert_eq!([steps(text, "HTTP_PROXY", "1"), steps(text, "HTTP_PROXY", "2")], [1, 0]);
}

#[test]
fn only_needed_stages_are_built() {
    if delegated("builds::only_needed_stages_are_built") {
        return;
    }
    let place = Place::new();
    place.base();
    let text = "FROM base:1 AS first\nRUN mkdir out; echo x > out/f; ln -s f out/l\n\
                FROM base:1 AS unused\nRUN false\n\
                FROM scratch\nCOPY --from=first /out /here/\nCOPY --from=0 /lib/a /lib/a\nCOPY --from=base:1 /etc/passwd /\nRUN touch last\n";
    let built = place.build(text);
    assert_eq!(built.steps.len(), 2);
    let image = built.image();
    assert_eq!(image.layers.len(), 4);
    assert_eq!(list(&place.layer(&image, 3).join("here")), ["f", "l"]);
    assert!(fs::symlink_metadata(place.layer(&image, 3).join("here/l")).unwrap().is_symlink());
    // `/lib` of the stage is a link to `/usr/lib`; in this image it is a new directory.
    assert_eq!(fs::read_to_string(place.layer(&image, 2).join("lib/a")).unwrap(), "a");
    let target = place.build_with(text, |request| request.target = Some("first".to_owned()));
    assert_eq!(target.image().layers.len(), 2);
    let missing = place.build("FROM nowhere:1\n").error();
    assert!(
        missing.contains("Dockerfile:1") && missing.contains("`nowhere:1` is not in the store"),
        "{missing}"
    );
}

#[test]
fn a_failing_command_is_shown_with_its_last_lines() {
    if delegated("builds::a_failing_command_is_shown_with_its_last_lines") {
        return;
    }
    let place = Place::new();
    place.base();
    let built = place.build("FROM base:1\n\nRUN for i in $(seq 30); do echo \"line $i\"; done; \\\n  printf '\\033[31mred'; exit 3\n");
    let Err(Error::RunFailed { line: 3, status: 3, shown, .. }) = &built.result else {
        panic!("{:?}", built.result)
    };
    assert_eq!(
        (shown.output.len(), shown.output[0].as_str(), shown.output[19].as_str()),
        (20, "line 12", "[31mred")
    );
    let lines = built.events.iter().filter(|event| matches!(event, BuildEvent::Output { .. })).count();
    assert_eq!(lines, 31);
    let error = built.error();
    assert!(
        error.starts_with("Dockerfile:3: `RUN for i") && error.contains("ended with status 3"),
        "{error}"
    );
    assert_eq!(place.store.images().unwrap().len(), 1, "the base and nothing else");
}

#[test]
fn heredocs_are_scripts_and_input() {
    if delegated("builds::heredocs_are_scripts_and_input") {
        return;
    }
    let place = Place::new();
    place.base();
    let built = place.build("FROM base:1\nENV W=world\nRUN <<EOF\necho a > a\necho b > b\nEOF\nRUN cat <<X > c && touch d\nhello $W\nX\nCOPY <<E <<'F' /docs/\nfrom $W\nE\n$W\nF\n");
    let image = built.image();
    assert_eq!(list(&place.layer(&image, 2)), ["a", "b"]);
    assert_eq!(fs::read_to_string(place.layer(&image, 1).join("c")).unwrap(), "hello world\n");
    let docs = place.layer(&image, 0).join("docs");
    assert_eq!(fs::read_to_string(docs.join("E")).unwrap(), "from world\n");
    assert_eq!(fs::read_to_string(docs.join("F")).unwrap(), "$W\n");
}

#[test]
fn the_upper_directory_is_cleaned_before_it_becomes_a_layer() {
    if delegated("builds::the_upper_directory_is_cleaned_before_it_becomes_a_layer") {
        return;
    }
    let place = Place::new();
    place.base();
    let sockets = "import socket,os\ns=socket.socket(socket.AF_UNIX)\ns.bind('sock')\nos.setxattr('.','user.overlay.impure',b'y')\nos.mkdir('d')\nos.setxattr('d','user.overlay.opaque',b'y')\nopen('f','w')\nos.setxattr('f','user.overlay.origin',b'z')";
    let image =
        place.build(&format!("FROM base:1\nRUN python3 -c \"{}\"\n", sockets.replace('\n', ";"))).image();
    let layer = place.layer(&image, 0);
    assert_eq!(list(&layer), ["d", "f"]);
    let mut value = [0; 8];
    assert!(rustix::fs::getxattr(&layer, "user.overlay.impure", &mut value[..]).is_err());
    assert!(rustix::fs::getxattr(layer.join("f"), "user.overlay.origin", &mut value[..]).is_err());
    assert!(rustix::fs::getxattr(layer.join("d"), "user.overlay.opaque", &mut value[..]).is_ok());
    let refused = place.build("FROM base:1\nRUN touch .wh.x\n").error();
    assert!(refused.contains("reserved for deleted files"), "{refused}");
    // A command that changes `/` itself and nothing in it.
    let image = place.build("FROM base:1\nRUN chmod 700 .\nRUN true\n").image();
    assert_eq!(
        (image.layers.len(), fs::metadata(place.layer(&image, 0)).unwrap().mode() & 0o777),
        (2, 0o700)
    );
}

struct Broken;

impl Runner for Broken {
    fn start(&mut self, _: &RunStep) -> Result<Box<dyn Running>, BoxError> {
        Err("no user namespaces".into())
    }
}

#[test]
fn mistakes_name_file_line_and_instruction() {
    if delegated("builds::mistakes_name_file_line_and_instruction") {
        return;
    }
    let place = Place::new();
    place.base();
    for (text, wanted) in [
        ("FROM base:1\nCPOY a b", "Dockerfile:2: unknown instruction `CPOY`"),
        (
            "FROM base:1\nCOPY none /",
            "Dockerfile:2: `COPY none /` failed: `none` is not in the build context",
        ),
        ("FROM base:1\nCOPY ../x /", "`../x` is not in the build context"),
        ("FROM base:1\nADD --checksum=sha256:0 x /", "--checksum is for one source that is an address"),
        ("FROM base:1\nUSER $", "none"),
        ("FROM base:1\nEXPOSE http", "Dockerfile:2: EXPOSE: `http` is no port"),
        ("FROM base:1\nWORKDIR /etc/passwd", "is a file"),
        ("FROM base:1\nENV A=${B:?unset}", "Dockerfile:2: `${B:?unset}`: variable `B` is not set"),
        ("FROM ${NONE}", "the name is empty"),
        ("FROM scratch AS a\nFROM base:1\nCOPY --from=a / /x/", "`/` is not in the image"),
        ("FROM scratch\nCOPY --chown=web none /", "the image has no user `web`"),
        ("FROM BAD:1", "is not the name of an image"),
        ("FROM base:1\nRUN --mount=type=secret,id=x,required=true true", "there is no secret `x`"),
    ] {
        if wanted == "none" {
            assert!(place.build(text).result.is_ok(), "{text}");
            continue;
        }
        let error = place.build(text).error();
        assert!(error.contains(wanted), "{text}: {error}");
    }
    let request =
        image::BuildRequest { dockerfile: Path::new("/nowhere/Dockerfile").to_owned(), ..Default::default() };
    let error = image::build(&place.store, &request, &mut Broken, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("/nowhere/Dockerfile"));
    let dockerfile = place.temp.path().join("broken");
    fs::write(&dockerfile, "FROM base:1\nRUN x").unwrap();
    let request = image::BuildRequest { dockerfile, context: place.context_dir(), ..Default::default() };
    let error = image::build(&place.store, &request, &mut Broken, &mut |_| {}).unwrap_err();
    let error = crate::places::chain(&error);
    assert!(error.ends_with("`RUN x` failed: run the command in its sandbox: no user namespaces"), "{error}");
}

#[test]
fn too_many_layers_are_refused_before_a_mount_fails() {
    if delegated("builds::too_many_layers_are_refused_before_a_mount_fails") {
        return;
    }
    let place = Place::new();
    place.base();
    let lines: String = (0..130).map(|n| format!("WORKDIR /d{n}\n")).collect();
    let error = place.build(&format!("FROM base:1\n{lines}")).error();
    assert!(error.contains("more than 127 layers"), "{error}");
}

#[test]
fn two_builds_at_once_make_the_same_image() {
    if delegated("builds::two_builds_at_once_make_the_same_image") {
        return;
    }
    let place = Place::new();
    place.base();
    place.context("a", "a");
    let dockerfile = place.temp.path().join("both");
    fs::write(&dockerfile, "FROM base:1\nCOPY a /x/\nADD a /y/\n").unwrap();
    let request = image::BuildRequest {
        context: place.context_dir(),
        dockerfile,
        tags: vec![reference("both:1")],
        ..Default::default()
    };
    let images: Vec<_> = std::thread::scope(|scope| {
        let build = || image::build(&place.store, &request, &mut Broken, &mut |_| {}).unwrap();
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(build)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for image in images {
        assert!(place.layer(&image, 0).join("y/a").exists());
        assert!(place.layer(&image, 1).join("x/a").exists());
    }
    assert_eq!(list(&place.data().join("tmp")), Vec::<String>::new());
    assert!(place.store.image(&reference("both:1")).unwrap().is_some());
}

#[test]
fn builds_that_share_an_instruction_agree_on_its_layer() {
    if delegated("builds::builds_that_share_an_instruction_agree_on_its_layer") {
        return;
    }
    let place = Place::new();
    place.base();
    let request = |n: usize| {
        let dockerfile = place.temp.path().join(format!("shared{n}"));
        fs::write(&dockerfile, format!("FROM base:1\nRUN date +%N > random\nRUN echo {n} > own\n")).unwrap();
        image::BuildRequest { dockerfile, context: place.context_dir(), ..Default::default() }
    };
    let build = |n: usize| {
        let mut runner = Shell::new(place.data());
        let image = image::build(&place.store, &request(n), &mut runner, &mut |_| {}).unwrap();
        (image, runner.steps.len())
    };
    let layers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|n| scope.spawn(move || build(n).0.layers[1].clone())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(layers.iter().all(|layer| *layer == layers[0]), "{layers:?}");
    for n in 0..6 {
        assert_eq!(build(n).1, 0, "an unchanged rebuild runs nothing");
    }
}

#[test]
fn a_mount_of_the_layers_shows_what_the_builder_means() {
    if delegated("builds::a_mount_of_the_layers_shows_what_the_builder_means") {
        return;
    }
    // The kernel's own word: the layers of an image, mounted, in a namespace that goes with the command.
    let place = Place::new();
    let lower = place
        .import("x:1", &Archive::new().file("d/old", b"").file("e/old", b"").file("f", b"").finish())
        .unwrap();
    let upper = Archive::new()
        .file(".wh.f", b"")
        .dir("d/")
        .file("d/.wh..wh..opq", b"")
        .file("d/new", b"")
        .file("e/new", b"")
        .finish();
    let upper = place.import("x:2", &upper).unwrap();
    let options = format!(
        "lowerdir={}:{},userxattr",
        place.store.layer_path(&upper.layers[0]),
        place.store.layer_path(&lower.layers[0])
    );
    let script = format!(
        "mkdir {0}/m && cd {0}/data && mount -t overlay -o {options} none {0}/m && ls {0}/m {0}/m/d {0}/m/e",
        place.temp.path().display()
    );
    let shown = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    let names: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.contains(':')).collect();
    assert_eq!(names, ["d", "e", "new", "new", "old"], "{}", String::from_utf8_lossy(&shown.stderr));
}

/// Runs commands in a real overlay, in a mount namespace that goes with the command.
struct Overlay(Store);

impl Runner for Overlay {
    fn start(&mut self, step: &RunStep) -> Result<Box<dyn Running>, BoxError> {
        let layers: Vec<&str> = step.layers.iter().rev().map(String::as_str).collect();
        let mount = format!(
            "cd {} && mkdir -p tmp/m && mount -t overlay -o lowerdir={},upperdir={},workdir={},userxattr none tmp/m && \
             shift && exec chroot --userspec=$0 tmp/m /bin/sh -c 'cd \"$0\" && exec \"$@\"' {} \"$@\"",
            self.0.data_dir().display(),
            layers.join(":"),
            step.upper,
            step.work,
            step.cwd
        );
        let user = self.0.run_user(step)?;
        let mut command = std::process::Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &mount, &format!("{}:{}", user.uid, user.gid), "-"])
            .args(&step.argv)
            .env_clear()
            .envs(step.env.iter().map(|(name, value)| (name, value)));
        Process::start(command)
    }
}

#[test]
fn a_genuine_base_is_built_upon_with_the_kernels_overlay() {
    let name = "builds::a_genuine_base_is_built_upon_with_the_kernels_overlay";
    let Some(dir) = fixtures("a_genuine_base_is_built_upon_with_the_kernels_overlay") else { return };
    if delegated(name) || !has_many_ids("a_genuine_base_is_built_upon_with_the_kernels_overlay") {
        return;
    }
    let place = Place::new();
    let alpine = reference("alpine:3.14");
    let paths = [dir];
    let found = locate(&alpine, &BaseSources { store: None, paths: &paths, offline: true }).unwrap();
    let Some(Found::Tarball { path, sha256 }) = found else { panic!("{found:?}") };
    let options =
        ImportOptions { source: "alpine".to_owned(), sha256, config: default_config(), ..Default::default() };
    place.store.import_tarball(&alpine, fs::File::open(&path).unwrap(), &options).unwrap();
    place.context("motd", "hello");
    let dockerfile = place.temp.path().join("Dockerfile");
    let text = "FROM alpine:3.14\n\
        RUN echo one > /1 && adduser -D -u 1234 web\n\
        RUN rm -r /etc/apk && mkdir /etc/apk && echo new > /etc/apk/new && rm /etc/motd /1\n\
        COPY --chown=web motd /etc/\n\
        WORKDIR /home/web/deep\n\
        RUN test \"$(ls /etc/apk)\" = new && test ! -e /1 && test \"$(cat /etc/motd)\" = hello && stat -c %U /etc/motd | grep -x web\n\
        USER web\n\
        RUN id -un && cd .. && pwd && touch mine && ! touch /etc/no\n\
        RUN exit 7\n";
    fs::write(&dockerfile, text).unwrap();
    let request = image::BuildRequest { dockerfile, context: place.context_dir(), ..Default::default() };
    let mut lines = Vec::new();
    let mut runner = Overlay(place.store.clone());
    let mut progress = |event| {
        if let BuildEvent::Output { line, .. } = event {
            lines.push(line);
        }
    };
    let result = image::build(&place.store, &request, &mut runner, &mut progress);
    let Err(Error::RunFailed { line: 9, status: 7, .. }) = result else { panic!("{result:?} {lines:?}") };
    fs::write(&request.dockerfile, text.replace("RUN exit 7", "CMD x")).unwrap();
    let image = image::build(&place.store, &request, &mut runner, &mut |_| {}).unwrap();
    let top = place.layer(&image, 0);
    assert_eq!(fs::metadata(top.join("home/web/mine")).unwrap().uid(), 1234);
    let second = place.layer(&image, 4);
    assert_eq!(fs::symlink_metadata(second.join("1")).unwrap().rdev(), 0);
    assert_eq!(
        place.store.read_file(&image.layers, "/etc/apk/new", 10).unwrap().as_deref(),
        Some(&b"new\n"[..])
    );
    assert_eq!(place.store.read_file(&image.layers, "/etc/apk/world", 10).unwrap(), None);
    assert_eq!(place.store.read_file(&image.layers, "/1", 10).unwrap(), None);
}

#[test]
fn a_working_directory_is_made_for_the_user() {
    if delegated("builds::a_working_directory_is_made_for_the_user")
        || !has_many_ids("a_working_directory_is_made_for_the_user")
    {
        return;
    }
    let place = Place::new();
    place.base();
    let image =
        place.build("FROM base:1\nUSER web:log\nWORKDIR /srv/deep\nUSER root\nWORKDIR /opt/x\n").image();
    let owner = |at, path: &str| {
        let meta = fs::metadata(place.layer(&image, at).join(path)).unwrap();
        (meta.uid(), meta.gid())
    };
    assert_eq!([owner(1, "srv"), owner(1, "srv/deep"), owner(0, "opt/x")], [(33, 50), (33, 50), (0, 0)]);
    let error = place.build("FROM base:1\nUSER nobody\nWORKDIR /srv\n").error();
    assert!(error.contains("no user `nobody`"), "{error}");
}

#[test]
fn triggers_run_in_the_builds_of_children() {
    if delegated("builds::triggers_run_in_the_builds_of_children") {
        return;
    }
    let place = Place::new();
    place.base();
    place.context("app", "app");
    let text = "FROM base:1\nARG V=1\nONBUILD ARG V=2\nONBUILD RUN echo $V > ran\nONBUILD COPY <<E /f\nx$V\nE\nRUN true\n";
    let parent = place.build_with(text, |request| request.tags = vec![reference("parent:1")]);
    assert_eq!(parent.steps.len(), 1, "they do not run in the build of the image itself");
    let config = parent.image().config.config;
    assert_eq!(config.on_build, ["ARG V=2", "RUN echo $V > ran", "COPY <<E /f\nx$V\nE"]);

    let child =
        place.build_with("FROM parent:1\nCOPY app /\n", |request| request.tags = vec![reference("child:1")]);
    assert_eq!(child.steps.len(), 1);
    let child = child.image();
    assert_eq!(child.config.config.on_build, Vec::<String>::new());
    let read = |path: &str| place.store.read_file(&child.layers, path, 100).unwrap().unwrap();
    assert_eq!((read("/f"), read("/app")), (b"x2\n".to_vec(), b"app".to_vec()));
    assert_eq!(place.build("FROM child:1\n").steps.len(), 0, "nor in those of grandchildren");

    // A stage is a base, too.
    let stages = "FROM base:1 AS a\nRUN echo a > a\nFROM base:1 AS b\nONBUILD COPY --from=a /etc/passwd /p\nFROM b\nRUN true\n";
    let image = place.build(stages).image();
    assert!(place.layer(&image, 0).join("p").exists());
    // Stages and images that only a trigger names are built and found.
    let copying = "FROM base:1\nONBUILD COPY --from=a /a /a\nONBUILD COPY --from=child:1 /app /from-child\n";
    place.build_with(copying, |request| request.tags = vec![reference("copying:1")]).image();
    let image = place.build("FROM base:1 AS a\nRUN echo a > a\nFROM copying:1\n").image();
    assert!(place.layer(&image, 0).join("from-child").exists() && place.layer(&image, 1).join("a").exists());
    let other = "FROM base:1\nONBUILD COPY --from=missing:1 /x /y\n";
    place.build_with(other, |request| request.tags = vec![reference("other:1")]).image();
    let error = place.build("FROM other:1\n").error();
    assert!(error.starts_with("Dockerfile:1: `COPY --from=missing:1 /x /y` failed"), "{error}");
}

#[test]
fn mistakes_are_warned_of_while_building() {
    if delegated("builds::mistakes_are_warned_of_while_building") {
        return;
    }
    let place = Place::new();
    place.base();
    let text = "FROM base:1\nARG EMPTY\nENV A=$EMPTY$TYPO B=${NONE:-}\nCOPY nothing* /\nCMD x\n";
    let built = place.build(text);
    let warnings: Vec<&str> = built
        .events
        .iter()
        .filter_map(|event| if let BuildEvent::Warning(text) = event { Some(text.as_str()) } else { None })
        .collect();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].starts_with("Dockerfile:5: ") && warnings[0].ends_with("(JSONArgsRecommended)"));
    assert_eq!(warnings[1], "Dockerfile:3: variable `TYPO` has no value (UndefinedVar)");
    assert_eq!(warnings[2], "Dockerfile:4: no file matches `nothing*`");
}

#[test]
fn contexts_with_names_are_bases() {
    if delegated("builds::contexts_with_names_are_bases") {
        return;
    }
    let place = Place::new();
    place.base();
    place.build_with("FROM base:1\nONBUILD RUN echo left > left\n", |request| {
        request.tags = vec![reference("left:1")];
    });
    let root = place.context_dir().join("root");
    for (file, content) in [("root/etc/mine", "mine"), ("root/skip", ""), ("root/.dockerignore", "skip\n")] {
        place.context(file, content);
    }
    let named = |request: &mut image::BuildRequest| {
        request.contexts = BTreeMap::from([
            ("files".to_owned(), NamedContext::Directory(root.clone())),
            ("alpine".to_owned(), NamedContext::Image(reference("left:1"))),
        ]);
    };
    let image = place.build_with("FROM files\nENV A=b\n", named).image();
    assert_eq!((image.layers.len(), image.config.config.env.clone()), (1, vec!["A=b".to_owned()]));
    assert_eq!(list(&place.layer(&image, 0)), [".dockerignore", "etc"]);
    let image = place.build_with("FROM alpine\n", named).image();
    assert_eq!(place.store.read_file(&image.layers, "/left", 10).unwrap().as_deref(), Some(&b"left\n"[..]));
}
