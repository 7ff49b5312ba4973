use std::path::Path;

use super::*;
use crate::load::load;
use crate::load::tests::{Fixture, host};

const COMPOSE: &str = r#"
x-common: &common { restart: unless-stopped, labels: [a=$$x] }
version: "3.8"
name: demo
services:
  web:
    <<: *common
    build: { context: ./app, args: [VERSION=1.10, USER] }
    command: ["nginx", "-g", "daemon off; $$HOME"]
    environment: [A=1, USER, "B=x: 'y' \"z\"", C=$$5]
    env_file: web.env
    ports: ["8080:80", "127.0.0.1:8443:443/tcp", "53", "9000-9002:9000-9002/udp", {target: 81, published: "8081"}]
    volumes: ["./site:/site:ro", "data:/data", "/anonymous", {type: tmpfs, target: /tmp, tmpfs: {size: 1m}}]
    depends_on: [db]
    networks: [front, back]
    secrets: [password, {source: token, target: t, mode: 0440}]
    configs: [{source: site, target: /etc/site}]
    healthcheck: { test: ["CMD", "true"], interval: 5s }
    deploy: { resources: { limits: { cpus: "0.50", memory: 64M } } }
    x-egress: ["example.org:443"]
  db:
    image: db:1
    init: true
    user: 1000:1000
    networks: { back: { aliases: [database], ipv4_address: 172.28.0.5 } }
    ulimits: { nofile: { soft: 1024, hard: 2048 } }
    profiles: []
  debug: { image: debug, profiles: [debug, all] }
networks:
  front:
  back: { internal: true, ipam: { config: [{ subnet: 172.28.0.0/24 }] } }
volumes:
  data:
  bound: { driver: local, driver_opts: { type: none, o: bind, device: ./site } }
secrets:
  password: { environment: USER }
  token: { file: ./token }
configs:
  site: { file: ./site.conf }
"#;

fn fixture() -> Fixture {
    Fixture::new(&[
        ("compose.yaml", COMPOSE),
        ("web.env", "FROM_FILE=yes $A\n"),
        ("app/Dockerfile", "FROM scratch"),
        ("token", "very secret"),
        ("site.conf", ""),
    ])
}

fn read(fixture: &Fixture) -> Config {
    let options = fixture.options("compose.yaml");
    config(&options, &host(), true).unwrap_or_else(|error| panic!("{}", error.render(false)))
}

#[test]
fn as_yaml() {
    let fixture = fixture();
    insta::assert_snapshot!("config_yaml", fixture.strip(&read(&fixture).yaml()));
}

#[test]
fn as_toml() {
    let fixture = fixture();
    insta::assert_snapshot!("config_toml", fixture.strip(&read(&fixture).toml()));
}

#[test]
fn lists() {
    let config = read(&fixture());
    assert_eq!(config.names("services"), ["web", "db"]);
    assert_eq!(config.names("volumes"), ["data", "bound"]);
    assert_eq!(config.names("networks"), ["front", "back"]);
    assert_eq!(config.images(), ["db:1", "demo-web"]);
    assert_eq!(config.profiles().iter().collect::<Vec<_>>(), ["all", "debug"]);
    let json: serde_json::Value = serde_json::from_str(&config.json()).unwrap();
    assert_eq!(json["services"]["web"]["ports"][0]["published"], "8080");
    assert_eq!(json["services"]["web"]["environment"]["FROM_FILE"], "yes 1");
}

/// Whatever it is written as, it is the same stack.
#[test]
fn every_notation_gives_the_same_plan() {
    let fixture = fixture();
    let config = read(&fixture);
    let plan = load(&fixture.options("compose.yaml"), &host()).unwrap();
    for (name, text) in
        [("stack.toml", config.toml()), ("again.yaml", config.yaml()), ("again.yml", config.json())]
    {
        fixture.write(name, &text);
        let again = load(&fixture.options(name), &host())
            .unwrap_or_else(|error| panic!("{}\n{text}", error.render(false)));
        let mut expected = serde_json::to_value(&plan).unwrap();
        let mut found = serde_json::to_value(&again).unwrap();
        for plan in [&mut expected, &mut found] {
            // Other places in other files.
            plan["warnings"] = serde_json::Value::Null;
        }
        assert_eq!(found, expected, "{name}\n{text}");
    }
}

#[test]
fn as_it_is_written() {
    let fixture = Fixture::new(&[(
        "compose.yaml",
        "name: $NAME\nservices: { a: { image: 'i:${TAG:?which}', env_file: missing.env, environment: [A=$$1] } }",
    )]);
    let options = fixture.options("compose.yaml");
    assert!(config(&options, &host(), true).is_err());
    let yaml = config(&options, &host(), false).unwrap().yaml();
    assert!(
        yaml.contains("${TAG:?which}") && yaml.contains("\"$$1\"") && yaml.contains("missing.env"),
        "{yaml}"
    );
}

#[test]
fn faults_are_found() {
    let with = |keys: &str| format!("services: {{ a: {{ {keys} }}, b: {{ image: j }} }}");
    for (text, problem) in [
        (with("image: i, imag: j"), "unknown key `imag`"),
        (with("init: true"), "service `a` has no `image`, `build` or `rootfs`"),
        (with("image: I"), "`I` is not the name of an image"),
        (with("image: i, depends_on: [c]"), "depends on `c`, which does not exist"),
        (with("image: i, network_mode: 'service:c'"), "shares the network of `c`"),
        (with("image: i, networks: [n]"), "network `n` is not declared"),
        (with("image: i, volumes: ['v:/v']"), "volume `v` is not declared"),
        (with("image: i, secrets: [s]"), "secret `s` is not declared"),
        (with("image: i, configs: [s]"), "config `s` is not declared"),
        (with("build: { context: ., secrets: [s] }"), "secret `s` is not declared"),
        (with("build: { additional_contexts: { x: 'service:c' } }"), "there is no service `c`"),
    ] {
        let fixture = Fixture::new(&[("compose.yaml", &text)]);
        let error = config(&fixture.options("compose.yaml"), &host(), true).err();
        let error = error.unwrap_or_else(|| panic!("no error: {text}")).render(false);
        assert!(error.contains(problem), "{text}: {error}");
    }
    // What the machine has is another matter.
    let fixture = Fixture::new(&[("compose.yaml", &with("build: ./missing, volumes: ['/missing:/m']"))]);
    assert!(config(&fixture.options("compose.yaml"), &host(), true).is_ok());
}

#[test]
fn some_services_come_with_what_they_need() {
    let text = "services:\n  a: { image: i, depends_on: { b: { condition: service_started, required: false } } }\n  \
                b: { build: { context: ., additional_contexts: { x: 'service:c' } }, network_mode: none }\n  \
                c: { image: k, networks: [n] }\n  d: { image: l, profiles: [p] }\nnetworks: { n: }\n";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let read = |services: &[&str]| {
        let services = services.iter().map(|name| (*name).to_owned()).collect();
        config(&LoadOptions { services, ..fixture.options("compose.yaml") }, &host(), true)
    };
    let names = |services: &[&str]| read(services).unwrap().names("services");
    assert_eq!(names(&[]), ["a", "b", "c"]);
    assert_eq!(names(&["a"]), ["a", "b", "c"]);
    assert_eq!(names(&["c"]), ["c"]);
    assert_eq!(names(&["d", "c"]), ["c", "d"]);
    assert_eq!(read(&["a"]).unwrap().networks(), ["n", "default"]);
    assert_eq!(read(&["b"]).unwrap().networks(), ["n"]);
    let error = read(&["e"]).err().unwrap().to_string();
    assert_eq!(error, "no such service: `e`");
}

/// What is written is read as the same again, for all that the fuzzer begins with.
#[test]
fn the_corpus_is_read_again() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/compose");
    let fixture = Fixture::new(&[("empty/", "")]);
    let options = |text: &str| LoadOptions {
        files: vec!["-".into()],
        standard_input: Some(text.to_owned()),
        project_directory: Some(fixture.directory().join("empty")),
        profiles: vec!["a".to_owned()],
        ..LoadOptions::default()
    };
    let mut host = host();
    host.environment.insert("A".to_owned(), "a $b".to_owned());
    let mut good = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let Ok(first) = config(&options(&text), &host, true) else { continue };
        let yaml = first.yaml();
        let second = config(&options(&yaml), &host, true)
            .unwrap_or_else(|error| panic!("{}: {}\n{yaml}", path.display(), error.render(false)));
        assert_eq!(second.yaml(), yaml, "{}", path.display());
        good += 1;
    }
    assert!(good >= 3, "{good}");
}

/// What stands in `.env` means the same to the file that is made.
#[test]
fn the_other_notation_reads_the_same_variables() {
    let text =
        "services:\n  s: { image: 'i:${TAG}', environment: { TITLE: '${TITLE}' }, env_file: own.env }\n";
    let variables = "TAG = 1.2  # which\nTITLE='My $$ite'\n";
    let fixture = Fixture::new(&[
        ("compose.yaml", text),
        (".env", variables),
        ("own.env", "A = two words\nB: \"x\\ty\"\nC=a;b\n"),
    ]);
    for interpolate in [true, false] {
        let made = config(&fixture.options("compose.yaml"), &host(), interpolate).unwrap().toml();
        fixture.write("stack.toml", &made);
        let of = |file: &str| load(&fixture.options(file), &host()).unwrap().services.remove(0);
        let (ours, theirs) = (of("stack.toml"), of("compose.yaml"));
        assert_eq!((&ours.source, &ours.environment), (&theirs.source, &theirs.environment), "{made}");
        assert_eq!(ours.environment["TITLE"], "My $$ite");
        assert_eq!((&*ours.environment["A"], &*ours.environment["B"]), ("two words", "x\ty"));
    }
}

#[test]
fn ranges_of_ports_are_single_ports() {
    let text = "services:\n  s:\n    image: i\n    ports: ['21100-21102:21100-21102', '9000-9001/udp']\n";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let read = |file: &str| config(&fixture.options(file), &host(), true).unwrap();
    let json: serde_json::Value = serde_json::from_str(&read("compose.yaml").json()).unwrap();
    let ports: Vec<String> = json["services"]["s"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| match port.as_str() {
            Some(text) => text.to_owned(),
            None => format!(
                "{}:{}/{}",
                port["published"].as_str().unwrap_or(""),
                port["target"],
                port["protocol"]
            ),
        })
        .collect();
    let expected = [
        "21100:21100/\"tcp\"",
        "21101:21101/\"tcp\"",
        "21102:21102/\"tcp\"",
        ":9000/\"udp\"",
        ":9001/\"udp\"",
    ];
    assert_eq!(ports, expected);
    // In TOML a range is a range.
    assert!(read("compose.yaml").toml().contains("21100-21102:21100-21102"));
}
