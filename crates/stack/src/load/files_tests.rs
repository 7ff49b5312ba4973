//! Several files, `extends`, `include`, profiles, variables: what is read, and from where.

use super::tests::{Fixture, host};
use super::*;
use crate::plan::{MountKind, Service, Source};

fn here(fixture: &Fixture) -> LoadOptions {
    LoadOptions { current_directory: fixture.directory(), ..LoadOptions::default() }
}

fn loaded(fixture: &Fixture, options: &LoadOptions) -> Plan {
    load(options, &host()).unwrap_or_else(|error| panic!("{}", fixture.strip(&error.render(false))))
}

fn service<'a>(plan: &'a Plan, name: &str) -> &'a Service {
    plan.services.iter().find(|service| service.name == name).unwrap()
}

fn names(plan: &Plan) -> Vec<&str> {
    let mut names: Vec<&str> = plan.services.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    names
}

fn image(plan: &Plan, name: &str) -> String {
    match &service(plan, name).source {
        Source::Image(image) => image.clone(),
        other => panic!("{other:?}"),
    }
}

fn web(image: &str) -> String {
    format!("services: {{ web: {{ image: '{image}' }} }}\n")
}

/// A host with more variables.
fn host_with(variables: &[(&str, &str)]) -> HostFacts {
    let mut host = host();
    host.environment.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    host
}

#[test]
fn default_names() {
    let fixture = Fixture::new(&[("sub/deeper/x", "")]);
    let mut options = here(&fixture);
    options.current_directory = fixture.directory().join("sub/deeper");
    let error = load(&options, &host()).unwrap_err();
    assert!(error.to_string().starts_with("there is no stack file in "), "{error}");
    fixture.write("sub/deeper/srcs/compose.yml", "services: { a: { image: a } }");
    let error = load(&options, &host()).unwrap_err().render(false);
    assert!(error.contains("name the one below: `-f ") && error.contains("srcs/compose.yml`"), "{error}");
    // Each beats those before it; a file in a directory above counts, and its directory is the stack's.
    for (file, expected) in [
        ("docker-compose.yaml", "a"),
        ("docker-compose.yml", "b"),
        ("compose.yml", "c"),
        ("compose.yaml", "d"),
        ("sub/docker-compose.yaml", "e"),
    ] {
        fixture.write(file, &web(expected));
        assert_eq!(image(&loaded(&fixture, &options), "web"), expected, "{file}");
    }
    let plan = loaded(&fixture, &options);
    assert_eq!((plan.name.as_str(), &plan.directory), ("sub", &fixture.directory().join("sub")));
    options.current_directory = fixture.directory();
    let plan = loaded(&fixture, &options);
    assert!(plan.warnings[0].contains("is used"), "{:?}", plan.warnings);
    fixture.write("stack.toml", "[services.web]\nimage = \"s\"\n");
    assert_eq!(image(&loaded(&fixture, &options), "web"), "s");
}

#[test]
fn overrides() {
    let fixture = Fixture::new(&[
        ("compose.yaml", "services: { web: { image: a, user: u } }"),
        ("docker-compose.override.yaml", &web("b")),
        ("third.yml", &web("c")),
    ]);
    let mut options = here(&fixture);
    assert_eq!(image(&loaded(&fixture, &options), "web"), "b");
    fixture.write("compose.override.yml", &web("o"));
    assert_eq!(image(&loaded(&fixture, &options), "web"), "o");
    // Named files are those and no others.
    options.files = vec![fixture.directory().join("compose.yaml")];
    assert_eq!(image(&loaded(&fixture, &options), "web"), "a");
    options.files.push(fixture.directory().join("third.yml"));
    let plan = loaded(&fixture, &options);
    assert_eq!((image(&plan, "web").as_str(), service(&plan, "web").user.as_deref()), ("c", Some("u")));
    options.files.push(fixture.directory().join("stack.toml"));
    let error = load(&options, &host()).unwrap_err();
    assert!(error.to_string().contains("different notations"), "{error}");
}

#[test]
fn several_stack_files() {
    let fixture = Fixture::new(&[
        ("stack.toml", "[services.web]\nimage = \"a\"\nenvironment = [\"A=1\"]\n"),
        (
            "more.toml",
            "[services.web.environment]\nB = 2\n[services.db]\nextends = \"base\"\n[services.base]\nimage = \"d\"\n",
        ),
    ]);
    let mut options = fixture.options("stack.toml");
    options.files.push(fixture.directory().join("more.toml"));
    let plan = loaded(&fixture, &options);
    assert_eq!(service(&plan, "web").environment.len(), 2);
    assert_eq!(image(&plan, "db"), "d");
}

#[test]
fn standard_input() {
    let fixture = Fixture::new(&[("a.yaml", &web("a"))]);
    let mut options = here(&fixture);
    options.files = vec![PathBuf::from("-")];
    options.standard_input = Some(web("i"));
    assert_eq!(image(&loaded(&fixture, &options), "web"), "i");
    options.files.push(fixture.directory().join("a.yaml"));
    let plan = loaded(&fixture, &options);
    assert_eq!((image(&plan, "web").as_str(), &plan.directory), ("a", &fixture.directory()));
    options.standard_input = Some("services: { web: { imag: x } }".to_owned());
    let error = fixture.strip(&load(&options, &host()).unwrap_err().render(false));
    assert!(error.contains("--> (standard input):1") && error.contains("did you mean `image`?"), "{error}");
}

#[test]
fn variables_of_compose() {
    let fixture = Fixture::new(&[
        ("compose.yaml", &web("a")),
        ("b.yaml", &web("b-${X:-n}")),
        ("c/c.yaml", &web("c-$X-${Y:-n}")),
        ("c/.env", "X=sub\nY=sub\n"),
        (".env", "COMPOSE_FILE=b.yaml:c/c.yaml\nX=top\n"),
        ("other.env", "X=other\nZ=$X\nCOMPOSE_PROJECT_NAME=fromfile\n"),
        ("last.env", "X=last\n"),
    ]);
    let mut options = here(&fixture);
    // The first `.env` is that of the current directory, and says which files there are.
    let plan = loaded(&fixture, &options);
    assert_eq!((image(&plan, "web").as_str(), plan.name.as_str()), ("c-top-n", "inception_1"));
    let separator = host_with(&[("COMPOSE_FILE", "c/c.yaml"), ("COMPOSE_PROJECT_NAME", "p")]);
    let plan = load(&options, &separator).unwrap();
    assert_eq!((image(&plan, "web").as_str(), plan.name.as_str()), ("c-top-sub", "p"));
    let separator = host_with(&[("COMPOSE_FILE", "b.yaml;compose.yaml"), ("COMPOSE_PATH_SEPARATOR", ";")]);
    assert_eq!(image(&load(&options, &separator).unwrap(), "web"), "a");
    options.files = vec![fixture.directory().join("b.yaml")];
    let files = host_with(&[("COMPOSE_ENV_FILES", "other.env,last.env")]);
    let plan = load(&options, &files).unwrap();
    assert_eq!((image(&plan, "web").as_str(), plan.name.as_str()), ("b-last", "fromfile"));
    options.env_files = vec![fixture.directory().join("last.env"), fixture.directory().join("other.env")];
    assert_eq!(image(&load(&options, &files).unwrap(), "web"), "b-other");
    // The environment wins, and options win over that.
    let set = host_with(&[("X", "env"), ("COMPOSE_PROJECT_NAME", "env")]);
    assert_eq!(image(&load(&options, &set).unwrap(), "web"), "b-env");
    options.project_name = Some("option".to_owned());
    assert_eq!(load(&options, &set).unwrap().name, "option");
    options.env_files = Vec::new();
    let none = host_with(&[("COMPOSE_DISABLE_ENV_FILE", "true")]);
    assert_eq!(image(&load(&options, &none).unwrap(), "web"), "b-n");
    fixture.write("b.yaml", &web("${COMPOSE_PROJECT_NAME}"));
    assert_eq!(image(&load(&options, &none).unwrap(), "web"), "option");
}

#[test]
fn a_directory_elsewhere() {
    let fixture = Fixture::new(&[
        ("deploy/compose.yaml", "services: { web: { build: app, env_file: web.env } }"),
        ("src/app/Dockerfile", "FROM scratch"),
        ("src/web.env", "A=1"),
        ("src/.env", ""),
    ]);
    let mut options = fixture.options("deploy/compose.yaml");
    assert!(load(&options, &host()).is_err());
    options.project_directory = Some(fixture.directory().join("src"));
    let plan = loaded(&fixture, &options);
    assert_eq!((plan.name.as_str(), &*service(&plan, "web").environment["A"]), ("src", "1"));
}

#[test]
fn extending() {
    let fixture = Fixture::new(&[
        (
            "compose.yaml",
            "services:
  base: { image: 'i:$USER', environment: [A=1, B=1], ports: ['1'] }
  web: { extends: base, environment: { B: 2 }, ports: ['2'] }
  deep: { extends: { service: web }, ports: !override ['3'] }
  other: { extends: { file: sub/common.yaml, service: app }, user: u }
",
        ),
        (
            "sub/common.yaml",
            "services:
  app: { extends: { file: more.yaml, service: root }, volumes: ['./data:/data'] }
",
        ),
        ("sub/more.yaml", "services: { root: { build: ./app, env_file: x.env, working_dir: '/$USER' } }"),
        ("sub/x.env", "X=1"),
        ("sub/app/Dockerfile", "FROM scratch"),
    ]);
    let plan = loaded(&fixture, &fixture.options("compose.yaml"));
    let web = service(&plan, "web");
    assert_eq!(image(&plan, "web"), "i:tester");
    assert_eq!((&*web.environment["A"], &*web.environment["B"], web.ports.len()), ("1", "2", 2));
    assert_eq!(service(&plan, "deep").ports.len(), 1);
    let other = service(&plan, "other");
    assert_eq!((other.working_dir.as_deref(), &*other.environment["X"]), (Some("/tester"), "1"));
    let Source::Build(build) = &other.source else { panic!() };
    assert_eq!(build.context, fixture.directory().join("sub/app"));
    let MountKind::Bind { source, .. } = &other.mounts[0].kind else { panic!() };
    assert_eq!(*source, fixture.directory().join("sub/data"));
}

#[test]
fn including() {
    let fixture = Fixture::new(&[
        (
            "compose.yaml",
            "include:
  - db/compose.yaml
  - path: [cache/compose.yaml, cache.override.yaml]
    project_directory: cache
    env_file: cache.env
services:
  web: { image: web, depends_on: [db, cache] }
volumes: { data: }
",
        ),
        (
            "db/compose.yaml",
            "include: [../log.yaml]\nservices: { db: { image: 'db:$V', build: ., environment: [V], volumes: ['data:/d', './x:/x'] } }\nvolumes: { data: }\n",
        ),
        ("db/.env", "V=1"),
        ("db/Dockerfile", "FROM scratch"),
        ("log.yaml", "services: { log: { image: 'log:$V' } }"),
        (".env", "USER=nobody\n"),
        ("cache/compose.yaml", "services: { cache: { image: 'cache:$V', user: u, env_file: e.env } }"),
        ("cache/e.env", "E=1"),
        ("cache.override.yaml", "services: { cache: { user: '$USER' } }"),
        ("cache.env", "V=2\n"),
    ]);
    let plan = loaded(&fixture, &fixture.options("compose.yaml"));
    assert_eq!(names(&plan), ["cache", "db", "log", "web"]);
    assert_eq!(image(&plan, "cache"), "cache:2");
    // Included by what was included: with its variables.
    assert_eq!(image(&plan, "log"), "log:1");
    assert_eq!(service(&plan, "cache").user.as_deref(), Some("tester"));
    assert_eq!(service(&plan, "cache").environment["E"], "1");
    let db = service(&plan, "db");
    assert_eq!(db.environment["V"], "1");
    let Source::Build(build) = &db.source else { panic!() };
    assert_eq!(build.context, fixture.directory().join("db"));
}

#[test]
fn profiles() {
    let fixture = Fixture::new(&[(
        "compose.yaml",
        "services:
  web: { image: w }
  debug: { image: d, profiles: [debug, all] }
  tool: { image: t, profiles: [tools], depends_on: [helper] }
  helper: { image: h, profiles: [tools] }
",
    )]);
    let mut options = fixture.options("compose.yaml");
    let with = |options: &LoadOptions, host: &HostFacts| {
        names(&load(options, host).unwrap()).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(with(&options, &host()), ["web"]);
    assert_eq!(with(&options, &host_with(&[("COMPOSE_PROFILES", "debug, tools")])).len(), 4);
    options.profiles = vec!["all".to_owned()];
    assert_eq!(with(&options, &host_with(&[("COMPOSE_PROFILES", "tools")])), ["debug", "web"]);
    options.profiles = vec!["*".to_owned()];
    assert_eq!(with(&options, &host()).len(), 4);
    options.profiles = Vec::new();
    options.services = vec!["tool".to_owned()];
    assert_eq!(with(&options, &host()), ["helper", "tool", "web"]);
}

#[test]
fn files_of_variables() {
    let fixture = Fixture::new(&[
        (
            "srcs/compose.yaml",
            "services:
  web:
    image: i
    environment: { OWN: own, SET: , UNSET: , BOTH: own }
    env_file:
      - ../up.env
      - path: raw.env
        format: raw
      - { path: missing.env, required: false }
  plain: { image: i, env_file: ../up.env }
",
        ),
        ("up.env", "UP=up\nBOTH=file\nFROM=$PROJECT-$OWN-$UP\nUNSET=file\n"),
        ("srcs/raw.env", "RAW=$x 'y'\nUP=again\n"),
        ("srcs/.env", "PROJECT=p\nSET=set\n"),
    ]);
    let plan = loaded(&fixture, &fixture.options("srcs/compose.yaml"));
    let environment = &service(&plan, "web").environment;
    for (name, value) in [
        ("OWN", "own"),
        ("BOTH", "own"),
        ("SET", "set"),
        ("UNSET", "file"),
        ("FROM", "p-own-up"),
        ("RAW", "$x 'y'"),
        ("UP", "again"),
    ] {
        assert_eq!(environment.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(service(&plan, "plain").environment["FROM"], "p--up");
}

/// Every message with the right file's lines.
#[test]
fn errors_of_several_files() {
    let mut all = String::new();
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("no such include", &[("compose.yaml", "include:\n  - db.yaml\nservices: { a: { image: i } }\n")]),
        (
            "includes each other",
            &[
                ("compose.yaml", "include: [a.yaml]\n"),
                ("a.yaml", "include: [b.yaml]\n"),
                ("b.yaml", "include:\n  - a.yaml\n"),
            ],
        ),
        (
            "conflict",
            &[
                ("compose.yaml", "include: [a.yaml]\nservices:\n  a: { image: i }\n"),
                ("a.yaml", "services:\n  a: { image: j }\n"),
            ],
        ),
        ("include of a misspelt key", &[("compose.yaml", "include:\n  - pth: a.yaml\n")]),
        (
            "misspelt key in an included file",
            &[("compose.yaml", "include: [a.yaml]\n"), ("a.yaml", "services:\n  a:\n    imag: j\n")],
        ),
        (
            "missing env_file of an include",
            &[("compose.yaml", "include:\n  - path: a.yaml\n    env_file: x.env\n"), ("a.yaml", "")],
        ),
        (
            "no such service to extend",
            &[("compose.yaml", "services:\n  web: { extends: bse }\n  base: { image: i }\n")],
        ),
        (
            "extends each other",
            &[("compose.yaml", "services:\n  a: { extends: b }\n  b:\n    extends: { service: a }\n")],
        ),
        (
            "extends each other over files",
            &[
                ("compose.yaml", "services:\n  a: { extends: { file: b.yaml, service: b } }\n"),
                ("b.yaml", "services:\n  b: { extends: { file: ./b.yaml, service: b } }\n"),
            ],
        ),
        (
            "no such extended file",
            &[("compose.yaml", "services:\n  a:\n    extends:\n      file: x.yaml\n      service: a\n")],
        ),
        (
            "extended file without the service",
            &[
                ("compose.yaml", "services: { a: { extends: { file: x.yaml, service: a } } }\n"),
                ("x.yaml", "services: { b: {} }\n"),
            ],
        ),
        (
            "bad value in an extended file",
            &[
                ("compose.yaml", "services: { a: { extends: { file: x.yaml, service: a } } }\n"),
                ("x.yaml", "services:\n  a:\n    image: i\n    restart: sometimes\n"),
            ],
        ),
        (
            "broken interpolation in an override",
            &[
                ("compose.yaml", "services: { a: { image: i } }\n"),
                ("compose.override.yaml", "services:\n  a:\n    user: ${U!}\n"),
            ],
        ),
        ("required variable", &[("compose.yaml", "services:\n  a:\n    image: i:${V:?say which}\n")]),
        (
            "does not merge",
            &[
                ("compose.yaml", "services:\n  a:\n    deploy: { replicas: 1 }\n"),
                ("compose.override.yaml", "services:\n  a:\n    deploy: 1\n"),
            ],
        ),
        ("unknown tag", &[("compose.yaml", "services:\n  a:\n    image: !overide i\n")]),
        (
            "depends on an inactive service",
            &[(
                "compose.yaml",
                "services:\n  a: { image: i, depends_on: [b] }\n  b: { image: i, profiles: [p] }\n",
            )],
        ),
        ("no active profile", &[("compose.yaml", "services:\n  b: { image: i, profiles: [p, q] }\n")]),
        ("bad profile", &[("compose.yaml", "services:\n  b: { image: i, profiles: ['a b'] }\n")]),
        ("no such env_file", &[("compose.yaml", "services:\n  b:\n    image: i\n    env_file: [x.env]\n")]),
        (
            "bad format of env_file",
            &[(
                "compose.yaml",
                "services:\n  b:\n    image: i\n    env_file: { path: compose.yaml, format: rw }\n",
            )],
        ),
        (
            "broken env_file shows no values",
            &[
                ("compose.yaml", "services:\n  b: { image: i, env_file: x.env }\n"),
                ("x.env", "A=1\nPASSWORD 'secret\n"),
            ],
        ),
        ("other notation", &[("compose.yaml", "include: [a.toml]\n")]),
    ];
    for (title, files) in cases {
        let fixture = Fixture::new(files);
        all.push_str(&format!("=== {title}\n{}\n", fixture.error(&here(&fixture))));
    }
    insta::assert_snapshot!("files_errors", all);
}

#[test]
fn an_included_files_secrets_have_its_variables() {
    let of = |directory: &str, more: &str| {
        let secret = format!("{{ environment: KEY_{directory} }}");
        (
            format!("{directory}/compose.yaml"),
            format!(
                "{more}services: {{ {directory}: {{ image: i, secrets: [{directory}], environment: [KEY_{directory}] }} }}\n\
                 secrets: {{ {directory}: {secret} }}\n"
            ),
        )
    };
    let (one, one_text) = of("one", "include: [../two/compose.yaml]\n");
    let (two, two_text) = of("two", "");
    let fixture = Fixture::new(&[
        (
            "compose.yaml",
            "include: [one/compose.yaml]\nservices: { web: { image: i, environment: [KEY_one] } }\n",
        ),
        (&one, &one_text),
        (&two, &two_text),
        ("one/.env", "KEY_one=first\n"),
        ("two/.env", "KEY_two=second\n"),
    ]);
    let options = here(&fixture);
    let plan = loaded(&fixture, &options);
    assert_eq!(service(&plan, "web").environment.get("KEY_one"), None);
    assert_eq!(service(&plan, "one").environment["KEY_one"], "first");
    let values = load_keeping(&options, &host(), |_, _| Running::default()).unwrap().variables;
    assert_eq!((values.get("KEY_one"), values.get("KEY_two")), (Some("first"), Some("second")));
    // That of the whole comes first.
    let values = load_keeping(&options, &host_with(&[("KEY_two", "outer")]), |_, _| Running::default())
        .unwrap()
        .variables;
    assert_eq!(values.get("KEY_two"), Some("outer"));
    // One name cannot mean two things.
    fixture.write("two/compose.yaml", &two_text.replace("KEY_two", "KEY_one"));
    fixture.write("two/.env", "KEY_one=other\n");
    fixture.write("compose.yaml", "include: [two/compose.yaml, one/compose.yaml]\n");
    fixture.write("one/compose.yaml", &one_text.replace("include: [../two/compose.yaml]\n", ""));
    let error = load(&options, &host()).unwrap_err().render(false);
    assert!(
        error.contains("variable `KEY_one` of secrets has another value in another `include`"),
        "{error}"
    );
}

#[test]
fn of_entries_of_one_file_the_last_counts_in_compose() {
    let text = "services:\n  web:\n    image: i\n    ports: ['8080:80', '8080:80']\n    cap_add: [SYS_TIME, SYS_TIME]\n    \
                volumes: ['./a:/x', './b:/y', './c:/x']\n";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let plan = loaded(&fixture, &here(&fixture));
    let web = service(&plan, "web");
    assert_eq!(web.ports.len(), 1);
    let sources: Vec<String> = web
        .mounts
        .iter()
        .map(|mount| match &mount.kind {
            MountKind::Bind { source, .. } => source.file_name().unwrap().to_string_lossy().into_owned(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sources, ["c", "b"]);
}
