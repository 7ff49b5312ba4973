use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::host::Route;
use crate::plan::{Condition, MountKind, SecretSource, Source};

/// A directory with files; a path that ends in `/` is a directory.
pub(super) struct Fixture(tempfile::TempDir);

impl Fixture {
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            fixture.write(path, text);
        }
        fixture
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let full = self.0.path().join("Inception_1").join(path);
        if path.ends_with('/') {
            return std::fs::create_dir_all(full).unwrap();
        }
        std::fs::create_dir_all(full.parent().unwrap()).unwrap();
        std::fs::write(full, text).unwrap();
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.0.path().join("Inception_1")
    }

    pub(super) fn options(&self, file: &str) -> LoadOptions {
        LoadOptions { files: vec![self.directory().join(file)], ..LoadOptions::default() }
    }

    /// Without the temporary directory's name.
    pub(super) fn strip(&self, text: &str) -> String {
        let directory = self.directory();
        let directory = directory.to_str().unwrap();
        text.replace(&format!("{directory}/"), "").replace(directory, "DIRECTORY")
    }

    pub(super) fn error(&self, options: &LoadOptions) -> String {
        match load(options, &host()) {
            Ok(_) => {
                panic!("`{}` loads", options.files.first().unwrap_or(&options.current_directory).display())
            }
            Err(error) => self.strip(&error.render(false)),
        }
    }

    /// The errors of texts as a file of this name, each under its title.
    pub(super) fn errors(&self, file: &str, cases: &[(&str, impl AsRef<str>)]) -> String {
        let error = |(title, text): &(&str, _)| {
            self.write(file, AsRef::as_ref(text));
            format!("=== {title}\n{}\n", self.error(&self.options(file)))
        };
        cases.iter().map(error).collect()
    }

    /// As JSON, for snapshots; the hashes depend on the directory.
    pub(super) fn json(&self, mut plan: Plan) -> String {
        for service in &mut plan.services {
            assert_eq!(service.config_hash.len(), 64);
            service.config_hash = "HASH".to_owned();
        }
        self.strip(&serde_json::to_string_pretty(&plan).unwrap())
    }
}

pub(super) fn host() -> HostFacts {
    HostFacts {
        environment: [("USER", "tester"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        unprivileged_port_start: 1024,
        is_root: false,
        limits: BTreeMap::new(),
        routes: vec![Route { destination: (Ipv4Addr::new(10, 89, 0, 0), 24), interface: "eth0".to_owned() }],
        name_servers: Vec::new(),
        mtu: None,
        home: Some(PathBuf::from("/home/tester")),
        name: Some("machine".to_owned()),
        address: None,
    }
}

const STACK: &str = r#"
name = "inception"
base = ["alpine", "debian"]

[services.nginx]
build = "bundles/nginx"
ports = ["8443:443"]
networks = ["frontend"]
volumes = ["wordpress:/var/www/html:ro", "tls:/etc/nginx/tls"]
depends_on = { wordpress = "healthy" }
environment = { DOMAIN_NAME = "${DOMAIN_NAME}" }
healthcheck = { test = ["TCP", "443"], interval = "5s" }
restart = "unless-stopped"

[services.wordpress]
build = { context = "bundles/wordpress", args = { VERSION = 6.10 } }
networks = ["frontend", "backend"]
volumes = ["wordpress:/var/www/html"]
secrets = ["wp_admin_password", { source = "redis_password", uid = 33, mode = 0o400 }]
depends_on = { mariadb = "healthy", redis = { condition = "service_started" } }
environment = ["WP_TITLE=${WP_TITLE}", "DEBUG=${DEBUG:-no}", "USER"]
user = "www-data:www-data"
mem_limit = "256m"
cpus = 0.5

[services.mariadb]
build = "bundles/mariadb"
networks = { backend = { aliases = ["db"], ipv4_address = "172.28.0.10" } }
volumes = [{ type = "volume", source = "mariadb", target = "/var/lib/mysql" }]
healthcheck = { test = "mariadb-admin ping", start_period = "1m30s", retries = 10 }
stop_grace_period = "30s"
ulimits = { nofile = { soft = 1024, hard = 4096 } }

[services.redis]
build = "bundles/redis"
networks = ["backend"]
command = "redis-server --requirepass 'a b'"
tmpfs = "/tmp:size=16m,mode=700"
read_only = true
cap_drop = ["ALL"]
cap_add = ["CAP_SETUID"]
restart = "on-failure:5"

[services.ftp]
build = "bundles/ftp"
ports = ["2121:21", "21100-21102:21100-21102"]
volumes = ["wordpress:/home/ftp/site", "./logs:/var/log"]
init_verbosity = 2
stop_signal = "quit"

[networks.frontend]
[networks.backend]
internal = true
ipam = { config = [{ subnet = "172.28.0.0/24" }] }

[volumes.wordpress]
[volumes.mariadb]
[volumes.tls]

[secrets]
wp_admin_password = { environment = "WP_ADMIN_PASSWORD" }
redis_password = { file = "secrets/redis" }
"#;

const ENV: &str = "\
# written by scripts/env
export DOMAIN_NAME=tester.42.fr
WP_TITLE='My $ite'   # single quotes
WP_ADMIN_PASSWORD=\"a\\\"b\"
";

fn five_services() -> Fixture {
    let fixture = Fixture::new(&[("stack.toml", STACK), (".env", ENV), ("secrets/redis", "x")]);
    for service in ["nginx", "wordpress", "mariadb", "redis", "ftp"] {
        fixture.write(&format!("bundles/{service}/Dockerfile"), "FROM alpine:3.20");
        fixture.write(&format!("bundles/{service}/Dockerfile.debian"), "FROM debian:bookworm");
    }
    fixture
}

#[test]
fn five_services_make_a_plan() {
    let fixture = five_services();
    let plan = load(&fixture.options("stack.toml"), &host()).unwrap();
    let names: Vec<&str> = plan.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["mariadb", "redis", "wordpress", "nginx", "ftp"]);
    insta::assert_snapshot!("five_services", fixture.json(plan));
}

#[test]
fn a_compose_file_of_a_student_makes_a_plan() {
    let compose = r#"
version: "3.8"
x-common: &common
  restart: on-failure
  env_file: [.env]
services:
  web:
    <<: *common
    container_name: nginx
    build: requirements/nginx
    image: nginx:inception
    expose: ["9000"]
    ports:
      - 8443:443
      - target: 80
        published: "${HTTP_PORT:-8080}"
        host_ip: 127.0.0.1
    environment:
      VERSION: 1.10
      DEBUG: false
      NOTHING:
      FROM_ENV:
    depends_on:
      - db
    volumes:
      - site:/var/www/html
      - ~/conf:/etc/conf:ro
    tty: true
    privileged: false
  db:
    <<: *common
    restart: no
    build:
      context: ./requirements/mariadb
      dockerfile: Dockerfile.db
    volumes: [db:/var/lib/mysql]
    secrets:
      - source: root
        mode: 0440
    healthcheck:
      test: ["CMD", "mysqladmin", "ping", "-p$${MYSQL_ROOT_PASSWORD}", "$UNSET"]
    deploy:
      resources:
        limits: { cpus: "1.5", memory: 1gb, pids: 100 }
        reservations: { memory: 512mb }
networks:
  default:
    driver: bridge
volumes:
  db: {}
  site:
    driver: local
    driver_opts:
      type: none
      o: bind
      device: ./data/${USER}/site
secrets:
  root:
    file: ./secrets/root.txt
"#;
    let fixture = Fixture::new(&[
        ("docker-compose.yml", compose),
        (".env", "FROM_ENV=a value\n"),
        ("requirements/nginx/Dockerfile", "FROM alpine"),
        ("requirements/mariadb/Dockerfile.db", "FROM alpine"),
        ("secrets/root.txt", "x"),
        ("data/tester/site/", ""),
    ]);
    let mut options = fixture.options("docker-compose.yml");
    let plan = load(&options, &host()).unwrap();
    insta::assert_snapshot!("compose", fixture.json(plan));

    options.strict = true;
    insta::assert_snapshot!("compose_strict", fixture.error(&options));
}

/// What one service needs so that the rest of the file can be about something else.
const WEB: &str = "[services.web]\nimage = \"alpine:3.20\"\n";

#[test]
fn every_error_of_a_stack_file() {
    let cases: &[(&str, &str)] = &[
        ("unknown key", "[services.web]\nimagee = \"alpine\"\n"),
        ("unknown key without a near one", "[services.web]\nimage = \"alpine\"\nflavour = 1\n"),
        ("unknown key of the file", "service = {}\n"),
        ("wrong type", "[services.web]\nimage = \"alpine\"\nports = \"8443:443\"\n"),
        ("wrong type of a switch", "[services.web]\nimage = \"alpine\"\ninit = \"yes\"\n"),
        (
            "a table in several lines",
            "[services.web]\nimage = \"alpine\"\nhealthcheck = { intervall = \"5s\" }\n",
        ),
        ("swap without memory", "[services.web]\nimage = \"alpine\"\nmemswap_limit = \"1g\"\n"),
        (
            "less swap than memory",
            "[services.web]\nimage = \"alpine\"\nmem_limit = \"2g\"\nmemswap_limit = \"1g\"\n",
        ),
        ("not a list of CPUs", "[services.web]\nimage = \"alpine\"\ncpuset = \"0-1;2\"\n"),
        (
            "a rate without a device",
            "[services.web]\nimage = \"alpine\"\nblkio_config = { device_read_bps = [{ rate = \"1m\" }] }\n",
        ),
        ("not TOML", "[services.web\nimage = \"alpine\"\n"),
        ("duplicate key", "[services.web]\nimage = \"a\"\nimage = \"b\"\n"),
        ("empty", ""),
        ("no services", "[services]\n"),
        ("no source", "[services.web]\ncommand = \"true\"\n"),
        (
            "cycle",
            "[services.a]\nimage = \"i\"\ndepends_on = [\"b\"]\n[services.b]\nimage = \"i\"\ndepends_on = { c = \"healthy\" }\n[services.c]\nimage = \"i\"\ndepends_on = [\"a\"]\n",
        ),
        ("itself", "[services.a]\nimage = \"i\"\ndepends_on = [\"a\"]\n"),
        (
            "unknown dependency",
            "[services.mariadb]\nimage = \"i\"\n[services.web]\nimage = \"i\"\ndepends_on = [\"mariabd\"]\n",
        ),
        (
            "unknown dependency without a near one",
            "[services.db]\nimage = \"i\"\n[services.web]\nimage = \"i\"\ndepends_on = [\"cache\"]\n",
        ),
        (
            "bad condition",
            "[services.db]\nimage = \"i\"\n[services.web]\nimage = \"i\"\ndepends_on = { db = \"healty\" }\n",
        ),
        (
            "two services on a port",
            "[services.a]\nimage = \"i\"\nports = [\"8080:80\"]\n[services.b]\nimage = \"i\"\nports = [\"0.0.0.0:8080:81\"]\n",
        ),
        ("overlapping ranges", "[services.a]\nimage = \"i\"\nports = [\"8000-8010:80-90\", \"8005:5\"]\n"),
        ("range lengths", "[services.a]\nimage = \"i\"\nports = [\"21100-21110:21100-21109\"]\n"),
        ("low port", "[services.a]\nimage = \"i\"\nports = [\"443:443\"]\n"),
        ("not a port", "[services.a]\nimage = \"i\"\nports = [\"http:80\"]\n"),
        ("missing build directory", "[services.a]\nbuild = \"bundles/a\"\n"),
        ("missing Dockerfile", "[services.a]\nbuild = \"empty\"\n"),
        ("missing Dockerfiles of a base", "base = [\"alpine\"]\n[services.a]\nbuild = \"empty\"\n"),
        ("missing Dockerfile of a base", "base = [\"alpine\", \"debian\"]\n[services.a]\nbuild = \"one\"\n"),
        ("missing rootfs", "[services.a]\nrootfs = \"a.tar.gz\"\n"),
        (
            "missing variable",
            "[services.a]\nimage = \"i\"\nenvironment = { DOMAIN = \"https://${DOMAIN_NAME}/\" }\n",
        ),
        ("required variable", "[services.a]\nimage = \"i:${TAG:?set a tag}\"\n"),
        ("a lone dollar", "[services.a]\nimage = \"i\"\ncommand = \"costs 5$ only\"\n"),
        ("upper case image", "[services.a]\nimage = \"Alpine:3.20\"\n"),
        ("bad image", "[services.a]\nimage = \"alpine:\"\n"),
        ("bad image name", "[services.a]\nimage = \"../alpine\"\n"),
        (
            "duplicate address",
            "[services.a]\nimage = \"i\"\nnetworks = { n = { ipv4_address = \"10.1.0.5\" } }\n[services.b]\nimage = \"i\"\nnetworks = { n = { ipv4_address = \"10.1.0.5\" } }\n[networks.n]\nipam = { config = [{ subnet = \"10.1.0.0/24\" }] }\n",
        ),
        (
            "address without subnet",
            "[services.a]\nimage = \"i\"\nnetworks = { n = { ipv4_address = \"10.1.0.5\" } }\n[networks.n]\n",
        ),
        (
            "bad subnet",
            "[services.a]\nimage = \"i\"\n[networks.n]\nipam = { config = [{ subnet = \"10.1.0.1/24\" }] }\n",
        ),
        ("unknown network", "[services.a]\nimage = \"i\"\nnetworks = [\"fronted\"]\n[networks.frontend]\n"),
        ("unknown volume", "[services.a]\nimage = \"i\"\nvolumes = [\"dat:/data\"]\n[volumes.data]\n"),
        ("relative target", "[services.a]\nimage = \"i\"\nvolumes = [\"./a:data\"]\n"),
        ("escaping target", "[services.a]\nimage = \"i\"\nvolumes = [\"./a:/data/../..\"]\n"),
        ("unknown secret", "[services.a]\nimage = \"i\"\nsecrets = [\"password\"]\n"),
        (
            "missing secret variable",
            "[services.a]\nimage = \"i\"\nsecrets = [\"password\"]\n[secrets.password]\nenvironment = \"PASSWORD\"\n",
        ),
        (
            "missing secret file",
            "[services.a]\nimage = \"i\"\nsecrets = [\"password\"]\n[secrets.password]\nfile = \"password.txt\"\n",
        ),
        ("bad duration", "[services.a]\nimage = \"i\"\nstop_grace_period = 10\n"),
        ("bad size", "[services.a]\nimage = \"i\"\nmem_limit = \"64x\"\n"),
        ("bad restart", "[services.a]\nimage = \"i\"\nrestart = \"on-failur\"\n"),
        ("bad health check", "[services.a]\nimage = \"i\"\nhealthcheck = { test = [\"TCP\", \"mysql\"] }\n"),
        ("bad capability", "[services.a]\nimage = \"i\"\ncap_add = [\"NET_ADMN\"]\n"),
        ("bad landlock key", "[services.a]\nimage = \"i\"\nlandlock = { reed = [\"/\"] }\n"),
        ("relative landlock", "[services.a]\nimage = \"i\"\nlandlock = { read = [\"usr\"] }\n"),
        ("landlock without programs", "[services.a]\nimage = \"i\"\nlandlock = { write = [\"/data\"] }\n"),
        ("bad signal", "[services.a]\nimage = \"i\"\nstop_signal = \"SIGQUT\"\n"),
        ("bad limit", "[services.a]\nimage = \"i\"\nulimits = { nofiles = 5 }\n"),
        ("profiles", "[services.a]\nimage = \"i\"\nprofiles = [\"debug\"]\n"),
        ("bad service name", "[services.\"a b\"]\nimage = \"i\"\n"),
        ("bad stack name", "name = \"My Stack\"\n[services.a]\nimage = \"i\"\n"),
        ("missing env_file", "[services.a]\nimage = \"i\"\nenv_file = \"web.env\"\n"),
        ("broken env_file", "[services.a]\nimage = \"i\"\nenv_file = \"broken.env\"\n"),
        (
            "never healthy",
            "[services.a]\nimage = \"i\"\ndepends_on = { b = \"healthy\" }\n[services.b]\nimage = \"i\"\nhealthcheck = { disable = true }\n",
        ),
        ("mounted twice", "[services.a]\nimage = \"i\"\ntmpfs = [\"/tmp\", \"/tmp/\"]\n"),
    ];
    let fixture = Fixture::new(&[
        ("empty/", ""),
        ("one/Dockerfile", "FROM alpine"),
        ("broken.env", "A=1\nB='two' words\n"),
    ]);
    insta::assert_snapshot!("stack_errors", fixture.errors("stack.toml", cases));
}

#[test]
fn every_error_of_a_compose_file() {
    let cases: &[(&str, &str)] = &[
        ("unknown key", "services:\n  web:\n    imagee: alpine\n"),
        ("unknown key behind an anchor", "x-a: &a\n  imagee: alpine\nservices:\n  web:\n    <<: *a\n"),
        ("wrong type", "services:\n  web:\n    image: alpine\n    ports: 8443:443\n"),
        ("not YAML", "services:\n  web:\n  image: [alpine\n"),
        ("tab", "services:\n\tweb:\n"),
        ("a key in no column", "services:\n  web:\n    image: a\n   restart: always\n"),
        ("no colon", "services:\n  web:\n    image a\n    restart: always\n"),
        ("no blank behind a dash", "services:\n  web:\n    image: a\n    ports:\n      -\"80:80\"\n"),
        ("a service beside `services`", "services:\nweb:\n  build: .\n"),
        ("keys without a service", "services:\n  build: .\n  restart: always\n"),
        ("a misspelt build directory", "services:\n  web:\n    build: ./bundels\n"),
        (
            "a misspelt Dockerfile",
            "services:\n  web:\n    build: { context: bundles, dockerfile: Dockerfil }\n",
        ),
        ("duplicate key", "services:\n  web:\n    image: a\n    image: b\n"),
        (
            "cycle",
            "services:\n  a:\n    image: i\n    depends_on: [b]\n  b:\n    image: i\n    depends_on:\n      a: { condition: service_healthy }\n",
        ),
        ("unknown dependency", "services:\n  a: { image: i, depends_on: [bb] }\n  b: { image: i }\n"),
        ("missing build directory", "services:\n  web:\n    build: ./nope\n"),
        ("extends", "services:\n  web:\n    extends: { service: b }\n"),
        ("landlock", "services:\n  web:\n    image: i\n    landlock: { read: [/] }\n"),
        ("x-landlock", "services:\n  web:\n    image: i\n    x-landlock: { read: [/], rite: [/tmp] }\n"),
        (
            "a volume's directory that is missing",
            "services:\n  web: { image: i, volumes: [data:/data] }\nvolumes:\n  data:\n    driver_opts: { type: none, o: bind, device: ./data/site }\n",
        ),
        (
            "nfs",
            "services:\n  web: { image: i }\nvolumes:\n  data:\n    driver_opts: { type: nfs, o: addr=10.0.0.1, device: ':/data' }\n",
        ),
        ("a provider", "services:\n  web: { provider: { type: aws } }\n"),
        (
            "the IPC namespace of nobody",
            "services:\n  web: { image: i, ipc: 'service:dd' }\n  db: { image: i }\n",
        ),
        ("a device that is not there", "services:\n  web: { image: i, devices: [/dev/nowhere] }\n"),
        ("volumes of nobody", "services:\n  web: { image: i, volumes_from: [d] }\n  db: { image: i }\n"),
        ("two sources", "services:\n  web: { image: i }\nsecrets:\n  s: { content: x, environment: X }\n"),
        ("an external secret", "services:\n  web: { image: i }\nsecrets:\n  s: { external: true }\n"),
        (
            "processor time said twice",
            "services:\n  web: { image: i, cpus: 2, cpu_quota: 50000, cpu_period: 100000 }\n",
        ),
        ("no services", "version: '3'\n"),
        ("a list", "- a\n"),
        ("empty", ""),
    ];
    let fixture = Fixture::new(&[("bundles/Dockerfile", "FROM alpine")]);
    insta::assert_snapshot!("compose_errors", fixture.errors("compose.yaml", cases));
}

#[test]
fn errors_of_options_and_of_env() {
    let fixture = Fixture::new(&[("stack.toml", WEB), ("stack.ini", WEB)]);
    let mut all = String::new();
    let mut case = |title: &str, options: &LoadOptions| {
        all.push_str(&format!("=== {title}\n{}\n", fixture.error(options)));
    };
    case("no such file", &fixture.options("stak.toml"));
    case("neither TOML nor YAML", &fixture.options("stack.ini"));
    let mut options = fixture.options("stack.toml");
    options.env_files = vec![fixture.directory().join("other.env")];
    case("no such .env", &options);
    options.env_files = Vec::new();
    options.project_name = Some("My Stack".to_owned());
    case("bad stack name", &options);
    options.project_name = None;
    options.base = Some("debain".to_owned());
    fixture.write("stack.toml", &format!("base = [\"alpine\", \"debian\"]\n{WEB}"));
    case("unknown base", &options);
    options.base = None;
    for (title, text) in [
        (".env with a blank in a name", "A=1\nMY TITLE=x\n"),
        (".env with more behind quotes", "TITLE=\"My\" Site\n"),
        (".env with an open quote", "TITLE='My Site\n"),
        (".env without a name", "=x\n"),
    ] {
        fixture.write(".env", text);
        case(title, &options);
    }
    insta::assert_snapshot!("option_errors", all);
}

#[test]
fn root_may_have_low_ports() {
    let fixture = Fixture::new(&[("stack.toml", &format!("{WEB}ports = [\"443:443\"]\n"))]);
    let mut host = host();
    host.is_root = true;
    assert!(load(&fixture.options("stack.toml"), &host).is_ok());
    host.is_root = false;
    host.unprivileged_port_start = 80;
    assert!(load(&fixture.options("stack.toml"), &host).is_ok());
}

#[test]
fn one_base_is_forced() {
    let fixture = five_services();
    let mut options = fixture.options("stack.toml");
    let both = load(&options, &host()).unwrap();
    options.base = Some("debian".to_owned());
    let debian = load(&options, &host()).unwrap();
    let bases = |plan: &Plan| match &plan.services[0].source {
        Source::Build(build) => {
            let bases = build.dockerfiles.iter().map(|dockerfile| dockerfile.base.clone());
            bases.collect::<Vec<_>>()
        }
        _ => Vec::new(),
    };
    assert_eq!(bases(&both), ["alpine", "debian"]);
    assert_eq!(bases(&debian), ["debian"]);
    // The choice of a base is the image's affair.
    assert_eq!(both.services[0].config_hash, debian.services[0].config_hash);
}

#[test]
fn the_hash_follows_what_needs_a_new_container() {
    let hash = |tail: &str| {
        let fixture = Fixture::new(&[]);
        let text = format!("{WEB}{tail}\n[services.db]\nimage = \"i\"\n[networks.n]\n");
        fixture.write("stack.toml", &text);
        let plan = load(&fixture.options("stack.toml"), &host()).unwrap();
        let web = plan.services.iter().find(|service| service.name == "web").unwrap();
        web.config_hash.clone()
    };
    let plain = hash("");
    assert_eq!(plain, hash("depends_on = [\"db\"]"));
    assert_eq!(plain, hash("environment = {}"));
    for changed in [
        "environment = { A = \"b\" }",
        "ports = [\"8080:80\"]",
        "networks = [\"n\"]",
        "networks = { default = { aliases = [\"www\"] } }",
        "command = \"true\"",
        "init = false",
    ] {
        assert_ne!(plain, hash(changed), "{changed}");
    }
}

#[test]
fn details() {
    let text = r#"
[services.A]
build = "app"
entrypoint = []
networks = { default = { aliases = ["www"] } }
container_name = "boxed"
hostname = "host"
depends_on = { B = "completed", gone = { required = false } }
volumes = ["/var/cache", "./nested/..:/a/b", "named:/a/b/c"]
[services.B]
rootfs = "app"
network_mode = "none"
healthcheck = { disable = true }
[volumes.named]
"#;
    let fixture = Fixture::new(&[("stack.toml", text), ("app/Dockerfile", "FROM scratch")]);
    let plan = load(&fixture.options("stack.toml"), &host()).unwrap();
    assert_eq!(plan.name, "inception_1", "from the directory");
    let [b, a] = plan.services.as_slice() else { panic!("two services") };
    assert_eq!(b.healthcheck.as_ref().unwrap().test, None);
    assert!(b.init, "a stack file's default");
    assert!(matches!(&b.source, Source::Rootfs(path) if path.ends_with("app")));
    assert_eq!(a.entrypoint, Some(Vec::new()));
    assert_eq!(a.hostname, "host");
    assert_eq!(a.depends_on.len(), 1);
    assert_eq!(a.depends_on[0].condition, Condition::Completed);
    assert!(matches!(&a.source, Source::Build(build) if build.image == "inception_1-a:latest"));
    let targets: Vec<&str> = a.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/var/cache", "/a/b", "/a/b/c"]);
    let MountKind::Volume { name, .. } = &a.mounts[0].kind else { panic!("an anonymous volume") };
    assert!(name.starts_with("A-"), "{name}");
    assert_eq!(plan.volumes, [name.as_str(), "named"]);
    assert!(plan.network.endpoints[1].interfaces.is_empty());
    let aliases = &plan.network.endpoints[0].interfaces[0].aliases;
    assert_eq!(aliases, &["A", "boxed", "host", "www"]);
}

#[test]
fn a_name_needs_no_env() {
    let fixture =
        Fixture::new(&[("stack.toml", STACK), ("compose.yaml", "services: { a: { imagee: $NO } }")]);
    assert_eq!(name(&fixture.options("stack.toml"), &host()).unwrap(), "inception");
    assert_eq!(name(&fixture.options("compose.yaml"), &host()).unwrap(), "inception_1");
    let mut options = fixture.options("stack.toml");
    options.project_name = Some("other".to_owned());
    assert_eq!(name(&options, &host()).unwrap(), "other");
    fixture.write("stack.toml", "name = \"${USER}-${NAME:-x}\"");
    assert_eq!(name(&fixture.options("stack.toml"), &host()).unwrap(), "tester-x");
}

/// Pieces of stack files in any order: nearer to the parsers' corners than random text.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("[services.web]\n"),
        Just("image = \"alpine\"\n"),
        Just("ports = [\"80-90:80\", 7, \"[::1]:1:2/tcp\", \":::\"]\n"),
        Just("volumes = [\"a:b:c:d\", {}, \":\", \"\"]\n"),
        Just("healthcheck = { test = [] }\n"),
        Just("environment = [\"=\", \"$$\", \"${\", \"é$é\"]\n"),
        Just("networks = { default = { ipv4_address = \"0.0.0.0\" } }\n"),
        Just("services:\n  web:\n"),
        Just("    image: &a é\n"),
        Just("    ports: [*a, 1:2, -1, 0x10, .inf]\n"),
        Just("    <<: *a\n"),
        Just("    command: \"'\"\n"),
        Just("\t"),
        Just("\""),
        Just("]"),
        Just("'"),
        Just("\u{feff}"),
        Just("\r\n"),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics(text in prop_oneof!["\\PC{0,80}", pieces()], toml in any::<bool>()) {
        let fixture = Fixture::new(&[]);
        let name = if toml { "stack.toml" } else { "compose.yaml" };
        fixture.write(name, &text);
        fixture.write(".env", &text);
        let options = fixture.options(name);
        if let Err(error) = load(&options, &host()) {
            prop_assert!(error.render(true).contains("error:"));
        }
        std::fs::remove_file(fixture.directory().join(".env")).unwrap();
        if let Err(error) = load(&options, &host()) {
            prop_assert!(error.render(false).starts_with("error:"));
        }
    }
}

/// The stack of this repository, with the `.env` that its own script writes.
#[test]
fn the_repositorys_own_stack_makes_a_plan() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = tempfile::tempdir().unwrap();
    let env_file = directory.path().join(".env");
    let status =
        std::process::Command::new("sh").arg(root.join("scripts/env")).arg(&env_file).status().unwrap();
    assert!(status.success());
    let mut options = LoadOptions {
        files: vec![root.join("stack.toml")],
        env_files: vec![env_file],
        strict: true,
        ..Default::default()
    };
    for base in [Some("debian")] {
        options.base = base.map(str::to_owned);
        let loaded = load_keeping(&options, &host(), |_, _| Running::default());
        let Loaded { plan, variables, .. } = loaded.unwrap_or_else(|error| panic!("{}", error.render(false)));
        let names: Vec<&str> = plan.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["mariadb", "redis", "wordpress", "nginx", "ftp"]);
        let secrets = plan.services.iter().flat_map(|service| &service.secrets);
        for secret in secrets {
            let SecretSource::Environment(name) = &secret.source else { panic!("{secret:?}") };
            let value = variables.get(name).unwrap();
            assert!(!serde_json::to_string(&plan).unwrap().contains(value), "{name} is in the plan");
        }
    }
}

#[test]
fn which_services_run_is_asked_only_where_there_are_profiles() {
    let fixture = Fixture::new(&[]);
    for (name, text, expected) in [
        ("plain.toml", WEB.to_owned(), false),
        ("some.toml", format!("{WEB}[services.extra]\nimage = \"x\"\nprofiles = [\"p\"]\n"), true),
    ] {
        fixture.write(name, &text);
        let mut asked = None;
        let running = |_: &str, profiles| {
            asked = Some(profiles);
            Running::default()
        };
        load_keeping(&fixture.options(name), &host(), running).map(drop).unwrap();
        assert_eq!(asked, Some(expected), "{name}");
    }
}

/// Files that are made to exhaust the reader.
#[test]
fn hostile_files_are_refused() {
    let bomb = |levels: usize| {
        let mut text = "x-0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..levels {
            let below = format!("*a{}, ", level - 1).repeat(10);
            text.push_str(&format!("x-{level}: &a{level} [{below}]\n"));
        }
        text
    };
    let chain = |levels: usize| {
        let mut text = "x-0: &a0 [x]\n".to_owned();
        for level in 1..levels {
            text.push_str(&format!("x-{level}: &a{level} [*a{}]\n", level - 1));
        }
        text
    };
    let wide = "A=$A$A\n".repeat(64);
    let fixture = Fixture::new(&[]);
    for (name, text) in [
        ("compose.yaml", "[".repeat(100_000)),
        ("compose.yaml", "- ".repeat(100_000)),
        ("compose.yaml", bomb(12)),
        ("compose.yaml", chain(10_000)),
        ("compose.yaml", "a: &a [*a]\n".to_owned()),
        ("stack.toml", format!("a = {}", "[".repeat(100_000))),
        ("stack.toml", format!("{}a = 1", "a.".repeat(100_000))),
        ("stack.toml", format!("a = \"{}\"", "${A:-".repeat(100_000))),
        ("stack.toml", format!("{WEB}command = \"{}\"", "x".repeat(5 << 20))),
    ] {
        fixture.write(name, &text);
        let start = std::time::Instant::now();
        assert!(load(&fixture.options(name), &host()).is_err(), "{name}");
        assert!(start.elapsed().as_secs() < 10, "{name} took {:?}", start.elapsed());
    }
    fixture.write("stack.toml", WEB);
    fixture.write(".env", &format!("A=xxxxxxxx\n{wide}"));
    assert!(load(&fixture.options("stack.toml"), &host()).is_err());
}
