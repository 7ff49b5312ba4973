//! What the exports of real stacks look like, and what is told of what they cannot say.

use std::path::{Path, PathBuf};

use serde_json::Value;

mod units;

use super::*;
use crate::host::HostFacts;
use crate::load::LoadOptions;
use crate::paths::Paths;

/// The variables that the files of the repository ask for.
const VARIABLES: [&str; 15] = [
    "DOMAIN_NAME",
    "WP_TITLE",
    "WP_ADMIN_USER",
    "WP_ADMIN_PASSWORD",
    "WP_USER",
    "WP_USER_PASSWORD",
    "MYSQL_DATABASE",
    "MYSQL_USER",
    "MYSQL_PASSWORD",
    "MYSQL_ROOT_PASSWORD",
    "REDIS_PASSWORD",
    "FTP_USER",
    "FTP_PASSWORD",
    "ADMIN_USER",
    "ADMIN_PASSWORD",
];

fn read(file: &Path, strict: bool) -> Stack {
    let host = HostFacts {
        environment: VARIABLES.map(|name| (name.to_owned(), name.to_lowercase())).into(),
        unprivileged_port_start: 1024,
        ..HostFacts::default()
    };
    let directory = tempfile::tempdir().unwrap();
    let paths = Paths::new(directory.path().join("d"), directory.path().join("r"));
    let options = LoadOptions { files: vec![file.to_owned()], strict, ..LoadOptions::default() };
    // Without the `.env` of whoever works here.
    let options = LoadOptions { env_files: vec!["/dev/null".into()], ..options };
    match Stack::read(&options, &host, &paths) {
        Ok(stack) => stack,
        Err(StackError::File(error)) => panic!("{}", error.render(false)),
        Err(StackError::Content(error)) => panic!("{error:?}"),
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A compose file of its own, with files beside it.
fn compose(text: &str, files: &[(&str, &str)]) -> Stack {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("compose.yaml");
    std::fs::write(&file, text).unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    read(&file, false)
}

/// Everything of an export as one text, without this machine's directories.
fn text(export: &Export) -> String {
    let repository = repository().display().to_string();
    let files = export.files.iter().map(|file| format!("=== {}\n{}", file.name, file.text));
    let warnings = export.warnings.iter().map(|warning| format!("{warning}\n"));
    let all = format!("{}=== warnings\n{}", files.collect::<String>(), warnings.collect::<String>());
    all.replace(&repository, "REPOSITORY")
}

fn manifests(stack: &Stack) -> Export {
    kubernetes(stack, &KubernetesOptions::default()).unwrap()
}

fn units(stack: &Stack) -> Export {
    quadlet(stack, &QuadletOptions::default()).unwrap()
}

#[test]
fn the_five_services_for_kubernetes() {
    insta::assert_snapshot!(text(&manifests(&read(&repository().join("stack.toml"), false))));
}

#[test]
fn the_five_services_for_podman() {
    let stack = read(&repository().join("stack.toml"), false);
    let options = KubernetesOptions { pods: true, host_ports: true, ..KubernetesOptions::default() };
    let export = kubernetes(&stack, &options).unwrap();
    let service = export.files.iter().find(|file| file.name == "service-nginx.yaml").unwrap();
    assert!(
        service.text.contains("kind: Pod") && service.text.contains("hostPort: 8443"),
        "{}",
        service.text
    );
    assert!(!text(&export).contains("kind: Service"));
}

#[test]
fn the_five_services_for_quadlet() {
    insta::assert_snapshot!(text(&units(&read(&repository().join("stack.toml"), false))));
}

#[test]
fn a_compose_project_for_kubernetes() {
    let file = repository().join("tests/compose/proxy/docker-compose.yml");
    insta::assert_snapshot!(text(&manifests(&read(&file, false))));
}

#[test]
fn warnings_are_errors_where_that_is_wanted() {
    let stack = read(&repository().join("stack.toml"), true);
    let error = kubernetes(&stack, &KubernetesOptions::default()).unwrap_err().render(false);
    assert!(error.contains("--strict") && error.contains("stack.toml:"), "{error}");
    assert!(quadlet(&stack, &QuadletOptions::default()).is_err());
}

#[test]
fn what_has_no_word_is_told_with_its_line() {
    let stack = compose(
        "services:
  web:
    image: example.org/web:1
    x-egress: ['10.0.0.0/8:5432', 'example.org:443']
    cpuset: '0'
    deploy:
      resources:
        limits: { pids: 10 }
    restart: on-failure
    user: www-data
    extra_hosts: ['gate=host-gateway', 'a=192.0.2.7']
    ulimits: { nofile: 100 }
    stop_signal: QUIT
  Upper_case:
    image: example.org/other:1
    depends_on: { web: { condition: service_completed_successfully } }
",
        &[],
    );
    let warnings = manifests(&stack).warnings.join("\n");
    for (line, text) in [
        (4, "`example.org:443` of `egress`"),
        (5, "`cpuset` of service `web`"),
        (8, "`deploy.resources.limits.pids` of service `web`"),
        (10, "`www-data` of service `web`"),
        (11, "`gate` of service `web`"),
        (12, "`ulimits` of service `web`"),
        (13, "`stop_signal` of service `web`"),
        (14, "`Upper_case` is called `upper-case`"),
        (16, "`Upper_case` does not wait for `web`"),
    ] {
        let place = format!("compose.yaml:{line}: ");
        let found = warnings.lines().any(|warning| warning.contains(&place) && warning.contains(text));
        assert!(found, "{line}: {text} in\n{warnings}");
    }
    // A service whose end is waited for is a Job, which starts again as the file says.
    assert!(!warnings.contains("`restart: on-failure`"), "{warnings}");
    let podman = units(&stack).warnings.join("\n");
    assert!(podman.contains("`x-egress` of service `web`") && !podman.contains("cpuset"), "{podman}");
}

/// The objects of an export.
fn objects(export: &Export) -> Vec<String> {
    let files = export.files.iter().flat_map(|file| file.text.split("---\n"));
    files.map(str::to_owned).collect()
}

#[test]
fn passwords_are_in_the_secret_only() {
    let stack = compose(
        "services:
  web:
    image: a
    environment: { DB_PASSWORD: topsecret, DB_PASSWORD_FILE: /run/secrets/x, PRICE: '$$(5)' }
    secrets: [x]
secrets: { x: { file: ./x } }
",
        &[("x", "also\n")],
    );
    let export = manifests(&stack);
    // topsecret, and what the file holds.
    let (password, file) = ("dG9wc2VjcmV0", "YWxzbwo=");
    for part in &export.files {
        assert_eq!(part.private, part.name == "secrets.yaml");
        let has = part.text.contains(password) && part.text.contains(file);
        assert_eq!(has, part.private, "{}", part.text);
        assert!(!part.text.contains("topsecret"), "{}", part.text);
    }
    // Nothing is replaced in a value.
    assert!(export.files.iter().any(|file| file.text.contains("value: \"$$(5)\"")), "{}", text(&export));
    let without = KubernetesOptions { secrets: false, ..KubernetesOptions::default() };
    let export = kubernetes(&stack, &without).unwrap();
    assert!(!text(&export).contains(password) && export.notes.iter().any(|note| note.contains("Secret")));
    let units = units(&stack);
    assert!(units.files.iter().all(|file| file.private == file.text.contains(password)));
}

#[test]
fn who_shares_no_network_shares_no_label() {
    let stack = compose(
        "services:
  a: { image: a, networks: [one] }
  b: { image: b, networks: [one, two] }
  c: { image: c, networks: [two] }
  d: { image: d, network_mode: none }
networks: { one: {}, two: { internal: true } }
",
        &[],
    );
    let objects = objects(&manifests(&stack));
    let deployment = |name: &str| {
        let wanted = format!("\n  name: {name}\n");
        objects.iter().find(|object| object.contains("kind: Deployment") && object.contains(&wanted)).unwrap()
    };
    for (service, one, two) in
        [("a", true, false), ("b", true, true), ("c", false, true), ("d", false, false)]
    {
        let has = |network: &str| {
            deployment(service).contains(&format!("network.inception-run/{network}: \"true\""))
        };
        assert_eq!((has("one"), has("two")), (one, two), "{service}");
    }
    let policies: Vec<&String> =
        objects.iter().filter(|object| object.contains("kind: NetworkPolicy")).collect();
    // One for each network, the one that has none, and the one that has internal ones only.
    let names =
        |name: &&&String| name.lines().find_map(|line| line.strip_prefix("  name: ")).map(str::to_owned);
    let names: Vec<String> = policies.iter().filter_map(|policy| names(&policy)).collect();
    assert_eq!(names, ["network-one", "network-two", "c-egress", "d-isolated"]);
}

#[test]
fn a_name_that_two_services_would_have_is_refused() {
    let stack = compose("services:\n  a_b: { image: a }\n  a.b: { image: b }\n", &[]);
    let error = kubernetes(&stack, &KubernetesOptions::default()).unwrap_err().render(false);
    assert!(error.contains("`a-b`") && error.contains("compose.yaml:"), "{error}");
}

#[test]
fn a_service_in_the_network_of_another_is_in_its_pod() {
    let stack = compose(
        "services:
  web: { image: web, ports: ['80:80'] }
  side: { image: side, network_mode: 'service:web' }
",
        &[],
    );
    let export = manifests(&stack);
    let names: Vec<&str> = export.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["service-web.yaml", "networks.yaml"]);
    assert!(export.files[0].text.contains("name: side"), "{}", export.files[0].text);
}

#[test]
fn namespaces_that_services_share() {
    let stack = compose(
        "services:
  web: { image: web }
  side: { image: side, network_mode: 'service:web', pid: 'service:web' }
  apart: { image: apart, pid: 'service:web', ipc: 'service:web' }
",
        &[],
    );
    let export = manifests(&stack);
    let pod = &export.files.iter().find(|file| file.name == "service-web.yaml").unwrap().text;
    assert!(pod.contains("shareProcessNamespace: true"), "{pod}");
    let told = |of: &str| export.warnings.iter().filter(|warning| warning.contains(of)).count();
    assert_eq!(
        (told("`apart` and `web` share no namespace"), told("`side` and")),
        (2, 0),
        "{:?}",
        export.warnings
    );
    let export = units(&stack);
    let unit = &export.files.iter().find(|file| file.name.ends_with("-apart.container")).unwrap().text;
    for option in ["--pid=container:", "--ipc=container:", "Requires="] {
        assert!(unit.contains(option), "{unit}");
    }
}

#[test]
fn what_says_nothing_is_not_written() {
    let object: Value =
        serde_json::json!({ "a": null, "b": [], "c": { "d": null }, "e": {}, "f": [{ "g": 1 }] });
    assert_eq!(yaml::document(&object), "e: {}\nf:\n  - g: 1\n");
}

#[test]
fn nothing_of_a_file_becomes_a_command_of_the_host() {
    let stack = compose(
        "services:\n  web:\n    image: a\n    environment: { \"A_PASSWORD;touch /tmp/x\": b, \"TOKEN\\nreboot\": c }\n",
        &[],
    );
    let export = quadlet(&stack).unwrap();
    let script = &export.files.iter().find(|file| file.name == "secrets.sh").unwrap().text;
    let name = stack.plan.name.clone();
    for name in [format!("{name}-web-A_PASSWORD;touch /tmp/x"), format!("{name}-web-TOKEN\nreboot")] {
        assert!(script.contains(&format!("podman secret rm '{name}' >")), "{script}");
        assert!(script.contains(&format!("podman secret create '{name}' -")), "{script}");
    }
    for (key, text) in [
        (
            "Volume",
            "volumes: [{ type: bind, source: /tmp, target: \"/x\\n[Service]\\nExecStartPre=reboot\" }]",
        ),
        ("AddDevice", "devices: [\"/dev/null:/dev/x\\nRestart=always\"]"),
    ] {
        let stack = compose(&format!("services:\n  web:\n    image: a\n    {text}\n"), &[]);
        let error = quadlet(&stack).unwrap_err().render(false);
        assert!(error.contains("compose.yaml:2:") && error.contains(&format!("`{key}=`")), "{error}");
    }
}
