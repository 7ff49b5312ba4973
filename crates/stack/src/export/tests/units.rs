//! Units of Quadlet that make images.

use super::*;

/// What podman-systemd.unit(5) of Podman 5.2 lists for the sections of units that make images. The generator refuses a
/// unit with any other key.
const KEYS: [(&str, &[&str]); 2] = [
    (
        "Build",
        &[
            "Annotation",
            "Arch",
            "AuthFile",
            "ContainersConfModule",
            "DNS",
            "DNSOption",
            "DNSSearch",
            "Environment",
            "File",
            "ForceRM",
            "GlobalArgs",
            "GroupAdd",
            "ImageTag",
            "Label",
            "Network",
            "PodmanArgs",
            "Pull",
            "Secret",
            "SetWorkingDirectory",
            "Target",
            "TLSVerify",
            "Variant",
            "Volume",
        ],
    ),
    (
        "Image",
        &[
            "AllTags",
            "Arch",
            "AuthFile",
            "CertDir",
            "ContainersConfModule",
            "Creds",
            "DecryptionKey",
            "GlobalArgs",
            "Image",
            "ImageTag",
            "OS",
            "PodmanArgs",
            "TLSVerify",
            "Variant",
        ],
    ),
];

const ALL: &str = "
services:
  web:
    build:
      context: .
      dockerfile: Dockerfile.web
      target: last
      args: { VERSION: 'one two', DB_PASSWORD: '5%$$' }
      additional_contexts: { lib: 'service:lib', files: ., base: 'docker-image://example.org/base:1' }
      labels: { about: all of it }
      tags: [example.org/web:1]
      network: none
      extra_hosts: ['gate=192.0.2.7']
      shm_size: 1m
      ulimits: { nofile: 100 }
      secrets: [key, word, variable]
      ssh: ['default=/run/agent']
      entitlements: [security.insecure]
      no_cache: true
      pull: true
  lib:
    image: example.org/lib:2
    pull_policy: build
    build: { dockerfile_inline: \"FROM scratch\\nLABEL a=b\\n\" }
  again: { image: 'example.org/lib:2', pull_policy: always }
  tagged: { image: 'example.org/web:1' }
  fresh: { image: 'example.org/fresh:1', pull_policy: daily }
  other: { image: 'example.org/other:1' }
  loaded: { image: 'example.org/loaded:1', pull_policy: never }
secrets:
  key: { file: ./key }
  word: { content: hush }
  variable: { environment: REDIS_PASSWORD }
";

fn all() -> Stack {
    compose(ALL, &[("Dockerfile.web", "FROM scratch\n"), ("key", "")])
}

fn built(stack: &Stack) -> Export {
    quadlet(stack, &QuadletOptions { build: true }).unwrap()
}

fn unit<'a>(export: &'a Export, name: &str) -> &'a ExportedFile {
    let ends = |file: &&ExportedFile| file.name.ends_with(&format!("-{name}"));
    export.files.iter().find(ends).unwrap_or_else(|| panic!("no {name}"))
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|other| other == line)
}

#[test]
fn an_image_is_built_by_a_unit_of_its_own() {
    let stack = all();
    let export = built(&stack);
    let Some(crate::plan::Source::Build(build)) = stack.service("web").map(|service| &service.source) else {
        panic!("web is built");
    };
    let context = build.context.display().to_string();
    let (web, name) = (unit(&export, "web.build"), &stack.plan.name);
    for line in [
        format!("ImageTag={name}-web:latest").as_str(),
        "PodmanArgs=--tag=example.org/web:1",
        format!("SetWorkingDirectory={context}").as_str(),
        format!("File={context}/Dockerfile.web").as_str(),
        "Target=last",
        "PodmanArgs=\"--build-arg=VERSION=one two\"",
        "PodmanArgs=--build-arg=DB_PASSWORD=5%%$$",
        "PodmanArgs=--build-context=lib=docker-image://example.org/lib:2",
        format!("PodmanArgs=--build-context=files={context}").as_str(),
        "PodmanArgs=--build-context=base=docker-image://example.org/base:1",
        format!("Requires={name}-lib-build.service").as_str(),
        "Label=\"about=all of it\"",
        "Network=none",
        "PodmanArgs=--add-host=gate:192.0.2.7",
        "PodmanArgs=--shm-size=1048576b",
        "PodmanArgs=--ulimit=nofile=100:100",
        format!("Secret=id=key,src={context}/key").as_str(),
        "Secret=id=variable,type=env,env=REDIS_PASSWORD",
        "PodmanArgs=--ssh=default=/run/agent",
        "PodmanArgs=--no-cache",
        "PodmanArgs=--pull=always",
    ] {
        assert!(has(&web.text, line), "{line} in\n{}", web.text);
    }
    assert!(web.private, "the value of DB_PASSWORD is in it");
    assert!(!text(&export).contains("hush") && !web.text.contains("id=word"), "{}", web.text);
    let lib = unit(&export, "lib.build");
    let inline = "StandardInputData=RlJPTSBzY3JhdGNoCkxBQkVMIGE9Ygo=";
    for line in ["ImageTag=example.org/lib:2", "File=-", "StandardInput=data", inline] {
        assert!(has(&lib.text, line), "{line} in\n{}", lib.text);
    }
    assert!(!lib.private);
    let warnings = export.warnings.join("\n");
    for (line, words) in [
        (16, "`word` of service `web`"),
        (16, "`REDIS_PASSWORD` of systemd"),
        (17, "/run/agent"),
        (18, "insecure"),
    ] {
        let place = format!("compose.yaml:{line}: ");
        let found = warnings.lines().any(|warning| warning.contains(&place) && warning.contains(words));
        assert!(found, "{line}: {words} in\n{warnings}");
    }
    let notes = export.notes.join("\n");
    assert!(notes.contains("Podman 5.2") && !notes.contains("podman load"), "{notes}");
}

#[test]
fn a_container_names_the_unit_that_makes_its_image() {
    let stack = all();
    let export = built(&stack);
    let name = &stack.plan.name;
    for (service, image) in [
        ("web", format!("{name}-web.build")),
        ("lib", format!("{name}-lib.build")),
        // An image that another service builds is never pulled.
        ("again", format!("{name}-lib.build")),
        ("tagged", format!("{name}-web.build")),
        ("fresh", format!("{name}-fresh.image")),
        ("other", "example.org/other:1".to_owned()),
    ] {
        let container = unit(&export, &format!("{service}.container"));
        assert!(has(&container.text, &format!("Image={image}")), "{image} in\n{}", container.text);
        assert!(!container.text.contains("--pull"), "{}", container.text);
        // Nobody but the container itself waits for what it fetches.
        assert_eq!(has(&container.text, "TimeoutStartSec=900"), service == "other", "{service}");
    }
    assert!(has(&unit(&export, "fresh.image").text, "Image=example.org/fresh:1"));
    let makers = export.files.iter().filter(|file| !file.name.ends_with(".container"));
    let makers: Vec<&str> = makers.filter_map(|file| file.name.strip_prefix(&format!("{name}-"))).collect();
    assert_eq!(makers.iter().filter(|maker| maker.ends_with(".build")).count(), 2, "{makers:?}");
    assert_eq!(makers.iter().filter(|maker| maker.ends_with(".image")).count(), 1, "{makers:?}");
}

#[test]
fn images_are_named_where_nobody_asks_for_units_of_theirs() {
    let export = units(&all());
    assert!(!export.files.iter().any(|file| file.name.ends_with(".build") || file.name.ends_with(".image")));
    let container = |name: &str| &unit(&export, &format!("{name}.container")).text;
    assert!(has(container("lib"), "Image=example.org/lib:2"));
    assert!(
        has(container("fresh"), "PodmanArgs=--pull=always") && has(container("fresh"), "TimeoutStartSec=900")
    );
    assert!(!container("loaded").contains("TimeoutStartSec"));
    assert!(export.notes[0].contains("podman load"), "{:?}", export.notes);
}

#[test]
fn units_of_images_have_keys_that_podman_knows() {
    let export = built(&all());
    let mut seen = Vec::new();
    for file in &export.files {
        let mut section = "";
        for line in file.text.lines().filter(|line| !line.is_empty()) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name;
            } else if let Some((name, keys)) = KEYS.iter().find(|(name, _)| *name == section) {
                let (key, _) = line.split_once('=').unwrap();
                assert!(keys.contains(&key), "{key} of [{name}] in {}", file.name);
                seen.push(*name);
            }
        }
    }
    assert!(seen.contains(&"Build") && seen.contains(&"Image"));
}

#[test]
fn a_repository_is_a_context_where_quadlet_takes_it_for_one() {
    let of = |context: &str| {
        let text = format!(
            "services:\n  web:\n    build:\n      context: {context}\n      dockerfile: web/Dockerfile\n"
        );
        quadlet(&compose(&text, &[]), &QuadletOptions { build: true })
    };
    let address = "https://example.org/web.git#main:src";
    let export = of(&format!("'{address}'")).unwrap();
    let web = &unit(&export, "web.build").text;
    assert!(has(web, &format!("SetWorkingDirectory={address}")) && has(web, "File=web/Dockerfile"), "{web}");
    let error = of("git@example.org:web.git").unwrap_err().render(false);
    assert!(error.contains("compose.yaml:4:") && error.contains("for a directory"), "{error}");
}

#[test]
fn the_base_that_units_build_on_is_said() {
    let export = built(&read(&repository().join("stack.toml"), false));
    let notes = export.notes.join("\n");
    assert!(notes.contains("(`--base` names another one)"), "{notes}");
    let nginx = &unit(&export, "nginx.build").text;
    assert!(nginx.lines().any(|line| line.starts_with("File=/") && line.contains("/Dockerfile")), "{nginx}");
}
