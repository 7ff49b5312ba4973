//! What the keys of services, volumes and secrets become in a plan.

use super::tests::{Fixture, host};
use super::*;
use crate::plan::{
    Condition, Confinement, Excess, Logging, MountKind, PullPolicy, RestartPolicy, Scope, Seccomp,
    SecretSource, Service, Source, Tmpfs, WatchAction,
};

/// The first service of a compose file, and what was warned of.
fn service(fixture: &Fixture, text: &str) -> (Service, Vec<String>) {
    fixture.write("compose.yaml", text);
    let plan = load(&fixture.options("compose.yaml"), &host()).unwrap();
    let service = plan.services.into_iter().find(|service| service.name == "s").unwrap();
    (service, plan.warnings)
}

/// A service `s` with these keys.
fn with(keys: &str) -> (Service, Vec<String>) {
    service(&Fixture::new(&[]), &format!("services:\n  s: {{ image: i, {keys} }}\n"))
}

fn refused(keys: &str) -> String {
    let fixture = Fixture::new(&[("compose.yaml", &format!("services:\n  s: {{ image: i, {keys} }}\n"))]);
    fixture.error(&fixture.options("compose.yaml"))
}

#[test]
fn what_is_kept_of_output() {
    let logging = |keys: &str| with(&format!("logging: {keys}")).0.logging;
    assert_eq!(logging("{ driver: json-file }"), Logging::default());
    assert_eq!(
        logging("{ driver: local, options: { max-size: 1m, max-file: '5' } }"),
        Logging { max_size: 1 << 20, max_files: 5, ..Logging::default() }
    );
    assert_eq!(
        logging("{ options: { max-size: 10k } }"),
        Logging { max_size: 10 << 10, max_files: 1, ..Logging::default() }
    );
    assert_eq!(
        logging("{ options: { rate: 1m, mode: non-blocking } }"),
        Logging { rate: 1 << 20, excess: Excess::Dropped, ..Logging::default() }
    );
    assert_eq!(logging("{ options: { rate: -1, mode: blocking } }").rate, u64::MAX);
    assert_eq!(logging("{ driver: none }").max_files, 0);
    let (service, warnings) = with("logging: { driver: syslog, options: { syslog-address: 'tcp://x' } }");
    assert_eq!(service.logging, Logging::default());
    assert!(warnings[0].contains("compose.yaml:2: log driver `syslog`"), "{warnings:?}");
    assert!(warnings[1].contains("`syslog-address`"), "{warnings:?}");
    assert!(refused("logging: { options: { max-size: lots } }").contains("is not a size for a log"));
    assert!(refused("logging: { options: { rate: 0 } }").contains("is not a rate for a log"));
    assert!(refused("logging: { options: { mode: fast } }").contains("`blocking` or `non-blocking`"));
}

#[test]
fn how_much_processor_time() {
    assert_eq!(with("cpu_quota: 50000").0.limits.cpus, Some(0.5));
    assert_eq!(with("cpu_quota: 30ms, cpu_period: 20ms").0.limits.cpus, Some(1.5));
    assert_eq!(with("cpu_count: 2, cpus: 2.0").0.limits.cpus, Some(2.0));
    assert_eq!(with("cpu_quota: -1").0.limits.cpus, None);
}

#[test]
fn how_block_devices_are_shared() {
    let weight = |keys: &str| with(&format!("blkio_config: {keys}")).0.limits.block_io.map(|io| io.weight);
    assert_eq!(weight("{ weight: 300, x-why: a slow disk }"), Some(Some(300)));
    assert_eq!(weight("{ weight: 0 }"), None);
    let error = refused("blkio_config: { wieght: 300 }");
    assert!(error.contains("unknown key `wieght` in `blkio_config` of service `s`"), "{error}");
    assert!(error.contains("did you mean `weight`?"), "{error}");
}

#[test]
fn what_is_out_of_memory_is_killed() {
    let (service, warnings) = with("oom_kill_disable: true, mem_limit: 1g");
    assert_eq!(service.limits.memory, Some(1 << 30));
    assert!(warnings.len() == 1, "{warnings:?}");
    assert!(
        warnings[0].contains("compose.yaml:2: `oom_kill_disable` of service `s` is ignored"),
        "{warnings:?}"
    );
    assert_eq!(with("oom_kill_disable: false").1, Vec::<String>::new());
    let text = "services:\n  s: { image: i, oom_kill_disable: true }\n";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let options = LoadOptions { strict: true, ..fixture.options("compose.yaml") };
    assert!(fixture.error(&options).contains("`oom_kill_disable` of service `s` is ignored"));
}

#[test]
fn restarts_as_a_deployment_has_them() {
    let policy = |keys: &str| with(keys).0.restart;
    let deploy = |policy: &str| format!("deploy: {{ restart_policy: {policy} }}");
    assert_eq!(policy(&deploy("{ condition: none }")), RestartPolicy::No);
    assert_eq!(policy(&deploy("{}")), RestartPolicy::Always);
    assert_eq!(
        policy(&deploy("{ condition: on-failure, max_attempts: 3 }")),
        RestartPolicy::OnFailure(Some(3))
    );
    // Whatever the order in the file.
    assert_eq!(policy(&format!("restart: 'no', {}", deploy("{}"))), RestartPolicy::No);
    assert_eq!(policy(&format!("{}, restart: 'no'", deploy("{}"))), RestartPolicy::No);
    assert_eq!(with(&deploy("{ delay: 5s }")).0.restart_delay, Some(5.0));
}

#[test]
fn what_confines_a_service() {
    let confinement = |keys: &str| with(keys).0.confinement;
    assert_eq!(confinement("privileged: false"), Confinement::default());
    assert!(confinement("privileged: true").privileged);
    let options = confinement(
        "security_opt: ['no-new-privileges:false', 'seccomp=unconfined', 'systempaths=unconfined']",
    );
    assert!(options.new_privileges && options.unmasked && options.seccomp == Seccomp::Unconfined);
    assert_eq!(confinement("security_opt: ['no-new-privileges']"), Confinement::default());
    let (_, warnings) = with("security_opt: ['apparmor:unconfined', 'label=disable']");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(refused("security_opt: ['no-new-privilege']").contains("did you mean `no-new-privileges`"));
    let fixture = Fixture::new(&[("profile.json", "{}")]);
    let text = "services:\n  s: { image: i, security_opt: ['seccomp:./profile.json'] }\n";
    let Seccomp::Profile(path) = service(&fixture, text).0.confinement.seccomp else { panic!("a profile") };
    assert_eq!(path, fixture.directory().canonicalize().unwrap().join("profile.json"));
    assert!(refused("security_opt: ['seccomp:./profile.json']").contains("does not exist"));
}

#[test]
fn namespaces_are_a_containers_own() {
    for keys in ["ipc: host", "pid: host", "cgroup: host", "userns_mode: host"] {
        let (_, warnings) = with(keys);
        assert!(warnings.len() == 1 && warnings[0].contains(keys), "{warnings:?}");
    }
    for keys in ["ipc: shareable", "ipc: private", "cgroup: private", "userns_mode: ''", "uts: private"] {
        assert_eq!(with(keys).1, Vec::<String>::new(), "{keys}");
    }
    assert!(with("ipc: none").0.sharing.no_shm && with("ipc: private").0.sharing.is_none());
    assert!(refused("cgroup: 'service:x'").contains("each service's own"));
    assert!(refused("pid: 'container:x'").contains("no container of this stack is called `x`"));
    assert!(refused("ipc: 'service:'").contains("`service:` is not a value of `ipc`"));
    assert!(refused("ipc: shared").contains("`shared` is not a value of `ipc`"));
    assert_eq!(with("uts: host").0.hostname, "machine");
    assert_eq!(with("uts: host, hostname: own").0.hostname, "own");
}

#[test]
fn devices_that_anybody_can_open() {
    let (service, warnings) =
        with("devices: ['/dev/null:/dev/nothing:rw', { source: /dev/zero }, '/dev/full:r']");
    assert!(warnings.len() == 1 && warnings[0].contains("permissions `r` for `/dev/full`"), "{warnings:?}");
    let devices: Vec<_> =
        service.devices.iter().map(|d| (d.source.to_str().unwrap(), d.target.as_str())).collect();
    assert_eq!(
        devices,
        [("/dev/null", "/dev/nothing"), ("/dev/zero", "/dev/zero"), ("/dev/full", "/dev/full")]
    );
    assert!(refused("devices: ['/etc/passwd']").contains("is not a device"));
    assert!(refused("devices: ['/dev/null:/dev/x:rx']").contains("are not permissions"));
}

#[test]
fn groups_and_memory_scores() {
    assert_eq!(with("group_add: [audio, 44]").0.group_add, ["audio", "44"]);
    assert!(refused("group_add: ['a b']").contains("is not a group"));
    assert_eq!(with("oom_score_adj: 500").0.oom_score_adj, Some(500));
    let (service, warnings) = with("oom_score_adj: -500");
    assert!(service.oom_score_adj.is_none() && warnings.len() == 1);
}

#[test]
fn hooks() {
    let (service, _) = with(
        "post_start: [{ command: echo 'a b', user: root, environment: [A=1] }], pre_stop: [{ command: [sync] }]",
    );
    assert_eq!(service.post_start[0].command, ["echo", "a b"]);
    assert_eq!(service.post_start[0].user.as_deref(), Some("root"));
    assert_eq!(service.post_start[0].environment["A"], "1");
    assert_eq!(service.pre_stop[0].command, ["sync"]);
    assert!(refused("pre_stop: [{ user: root }]").contains("needs `command`"));
}

#[test]
fn what_is_watched() {
    let entry = |keys: &str| format!("develop: {{ watch: [{{ path: ./src/, {keys} }}] }}");
    let (service, warnings) = with(&entry(
        "action: sync+exec, target: /srv/, include: '*.go', ignore: [a, b], exec: { command: app reload }",
    ));
    let [watch] = &service.watch[..] else { panic!("{:?}", service.watch) };
    assert!(watch.path.is_absolute() && watch.path.ends_with("src") && warnings.is_empty());
    assert_eq!((watch.action, watch.target.as_deref()), (WatchAction::SyncExec, Some("/srv/")));
    assert_eq!((&watch.include[..], watch.ignore.len()), (&["*.go".to_owned()][..], 2));
    assert_eq!(watch.exec.as_ref().unwrap().command, ["app", "reload"]);
    assert!(!watch.initial_sync);
    assert_eq!(service.config_hash, with("init: false").0.config_hash, "no container is replaced for it");
    assert!(refused(&entry("action: syn, target: /x")).contains("did you mean `sync`?"));
    assert!(refused(&entry("action: sync, target: srv")).contains("not an absolute path"));
    assert!(refused(&entry("action: sync, target: /a/../b")).contains("not an absolute path"));
    assert!(refused(&entry("action: restart, exec: { user: root }")).contains("needs `command`"));
}

#[test]
fn where_images_come_from() {
    let policy = |text: &str| with(&format!("pull_policy: {text}")).0.pull_policy;
    assert_eq!(policy("if_not_present"), Some(PullPolicy::Missing));
    assert_eq!(policy("weekly"), Some(PullPolicy::Every(604_800.0)));
    assert_eq!(policy("every_1d12h"), Some(PullPolicy::Every(129_600.0)));
    assert!(refused("pull_policy: allways").contains("did you mean `always`"));
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let platform = |text: &str| with(&format!("platform: {text}")).0.platform;
    assert_eq!(platform(&format!("linux/{machine}/v2")), Some(format!("linux/{machine}/v2")));
    assert_eq!((platform(machine), platform("linux")), (Some(machine.to_owned()), None));
    let error = refused("platform: linux/s390x");
    assert!(error.contains(&format!("this machine is `linux/{machine}`")), "{error}");
    assert!(refused("platform: windows/amd64").contains("this is Linux"));
}

#[test]
fn dependencies_in_full() {
    let text = "services:\n  s: { image: i, depends_on: { db: { condition: service_healthy, restart: true, required: false }, gone: { condition: service_started, required: false } } }\n  db: { image: i }\n";
    let (service, _) = service(&Fixture::new(&[]), text);
    let [db] = service.depends_on.as_slice() else { panic!("{:?}", service.depends_on) };
    assert!(db.condition == Condition::Healthy && db.restart && db.optional);
}

#[test]
fn labels_of_files_come_first() {
    let fixture = Fixture::new(&[("a.labels", "# one\ncom.example.a=1\ncom.example.b = 2\n")]);
    let text = "services:\n  s: { image: i, label_file: a.labels, labels: { com.example.a: mine }, annotations: [x=y], attach: false }\n";
    let (service, _) = service(&fixture, text);
    assert_eq!(service.labels["com.example.a"], "mine");
    assert_eq!(service.labels["com.example.b"], " 2");
    assert!(service.annotations["x"] == "y" && service.unattached);
    assert!(refused("label_file: [b.labels]").contains("the file of labels `b.labels` does not exist"));
}

#[test]
fn raw_environment_files() {
    let fixture = Fixture::new(&[("raw.env", "A='$B' # all of it\n\n#C=1\n")]);
    let text = "services:\n  s: { image: i, env_file: [{ path: raw.env, format: raw }] }\n";
    let (service, _) = service(&fixture, text);
    assert_eq!(service.environment["A"], "'$B' # all of it");
    assert_eq!(service.environment.len(), 1);
}

#[test]
fn secrets_with_their_text() {
    let text = "services:\n  s: { image: i, secrets: [t], configs: [{ source: c, target: /etc/c, uid: '33', gid: '33', mode: 0440 }] }\nsecrets: { t: { content: hush } }\nconfigs: { c: { content: \"a=${USER}\\n\" } }\n";
    let (service, _) = service(&Fixture::new(&[]), text);
    let [secret, config] = service.secrets.as_slice() else { panic!("{:?}", service.secrets) };
    assert_eq!(secret.source, SecretSource::Content("hush".into()));
    assert_eq!(config.source, SecretSource::Content("a=tester\n".into()));
    assert_eq!((config.uid, config.gid, config.mode, config.target.as_str()), (33, 33, 0o440, "/etc/c"));
}

#[test]
fn volumes_in_all_forms() {
    let fixture = Fixture::new(&[("data/", "")]);
    let text = "services:
  s:
    image: i
    volumes:
      - plain:/a:nocopy,Z
      - { type: volume, source: shared, target: /b, volume: { nocopy: true, subpath: ./x/y } }
      - outside:/c:ro
      - directory:/d
      - memory:/e
      - { type: bind, source: ./data, target: /f, bind: { recursive: disabled, create_host_path: false, selinux: z } }
      - { type: tmpfs, target: /g, tmpfs: { size: 64m, mode: 0700 } }
    tmpfs: [/h, '/i:size=1m,uid=33,gid=44,exec,ro']
volumes:
  plain:
  shared: { name: everybodys }
  outside: { external: true, name: given }
  directory: { driver_opts: { type: none, o: 'bind,ro', device: ./data } }
  memory: { driver_opts: { type: tmpfs, device: tmpfs, o: 'size=2m,mode=0750' } }
";
    let (service, warnings) = service(&fixture, text);
    assert!(warnings.len() == 1 && warnings[0].contains("`recursive: disabled`"), "{warnings:?}");
    let data = fixture.directory().canonicalize().unwrap().join("data");
    let volume = |name: &str, scope, nocopy, subpath: Option<&str>| MountKind::Volume {
        name: name.into(),
        scope,
        nocopy,
        subpath: subpath.map(str::to_owned),
    };
    let bind = |fill| MountKind::Bind { source: data.clone(), create: false, fill };
    let tmpfs = |size, mode| Tmpfs { size, mode, uid: 0, gid: 0, exec: false };
    let expected = [
        ("/a", false, volume("plain", Scope::Stack, true, None)),
        ("/b", false, volume("everybodys", Scope::Named, true, Some("x/y"))),
        ("/c", true, volume("given", Scope::External, false, None)),
        ("/d", true, bind(true)),
        ("/e", false, MountKind::Tmpfs(tmpfs(Some(2 << 20), 0o750))),
        ("/f", false, bind(false)),
        ("/g", false, MountKind::Tmpfs(tmpfs(Some(64 << 20), 0o700))),
        ("/h", false, MountKind::Tmpfs(tmpfs(None, 0o1777))),
        (
            "/i",
            true,
            MountKind::Tmpfs(Tmpfs { uid: 33, gid: 44, exec: true, ..tmpfs(Some(1 << 20), 0o1777) }),
        ),
    ];
    let mounts: Vec<_> =
        service.mounts.iter().map(|m| (m.target.as_str(), m.read_only, m.kind.clone())).collect();
    assert_eq!(mounts, expected);
}

#[test]
fn all_that_is_missing_is_told_at_once() {
    let text = "services:
  s: { image: i, volumes: ['one:/one', { type: bind, source: ./two, target: /two, bind: { create_host_path: false } }] }
  t: { image: i, volumes: ['three:/three', 'one:/one', './made:/made'] }
volumes:
  one: { driver_opts: { type: none, o: bind, device: ./data/one } }
  three: { driver_opts: { type: none, o: bind, device: ./data/three } }
";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let options = fixture.options("compose.yaml");
    let error = fixture.error(&options);
    for words in [
        "3 paths do not exist: `data/one` (volume `one`, compose.yaml:5), `two` (compose.yaml:2), `data/three` (volume \
         `three`, compose.yaml:6)",
        "make them: `mkdir -p data/one two data/three`",
    ] {
        assert!(error.contains(words), "no {words} in {error}");
    }
    fixture.write("data/one/", "");
    fixture.write("two", "");
    let error = fixture.error(&options);
    assert!(error.contains("the directory of volume `three` does not exist: `data/three`"), "{error}");
    fixture.write("data/three/", "");
    assert!(load(&options, &host()).is_ok());
}

#[test]
fn volumes_of_another_service() {
    let text = "services:
  s: { image: i, volumes_from: ['b:ro'], volumes: ['own:/both'] }
  b: { image: i, container_name: bee, volumes: ['theirs:/both', 'theirs:/data'], tmpfs: /tmp, volumes_from: ['container:sea'] }
  c: { image: i, container_name: sea, volumes: ['deep:/deep:ro'] }
volumes: { own: , theirs: , deep: }
";
    let (service, _) = service(&Fixture::new(&[]), text);
    let mounts: Vec<_> = service
        .mounts
        .iter()
        .map(|mount| match &mount.kind {
            MountKind::Volume { name, .. } => (mount.target.as_str(), name.as_str(), mount.read_only),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(mounts, [("/both", "own", false), ("/data", "theirs", true), ("/deep", "deep", true)]);
    assert_eq!(service.depends_on[0].service, "b");
}

#[test]
fn a_socket_of_docker_is_missed_aloud() {
    let socket = Path::new("/var/run/docker.sock");
    let (service, warnings) = with("volumes: ['/var/run/docker.sock:/var/run/docker.sock:ro']");
    assert_eq!(service.mounts.is_empty(), !socket.exists());
    let told = warnings.iter().any(|text| text.contains("there is no Docker daemon here"));
    assert_eq!(told, !socket.exists(), "{warnings:?}");
}

#[test]
fn ports_that_are_too_low_are_moved() {
    let text =
        "services:\n  s: { image: i, ports: ['443:443', '8080:80', '127.0.0.1:80:80', '53:53/udp'] }\n";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let mut options = fixture.options("compose.yaml");
    let error = fixture.error(&options);
    for word in [
        "`--port-offset 8000` publishes it as 8443",
        "`--publish 443=8443`",
        "ip_unprivileged_port_start=443",
    ] {
        assert!(error.contains(word), "no {word} in {error}");
    }
    options.ports.offset = Some(9000);
    let ports = |options: &LoadOptions, host: &HostFacts| -> Vec<u16> {
        load(options, host).unwrap().services[0].ports.iter().map(|port| port.host_port).collect()
    };
    assert_eq!(ports(&options, &host()), [9443, 8080, 9080, 9053]);
    let moved = load(&options, &host()).unwrap().services[0].moved_ports.clone();
    assert_eq!(moved.into_iter().collect::<Vec<_>>(), [(53, 9053), (80, 9080), (443, 9443)]);
    // Who may have them gets them.
    assert_eq!(ports(&options, &HostFacts { is_root: true, ..host() }), [443, 8080, 80, 53]);
    options.ports.publish = [(8080, 8888), (443, 4443)].into();
    assert_eq!(ports(&options, &host()), [4443, 8888, 9080, 9053]);
    options.ports.publish = [(80, 8888), (8080, 8888)].into();
    assert!(fixture.error(&options).contains("publishes port 8888 twice"));
    options.ports.publish = [(444, 4444)].into();
    assert!(fixture.error(&options).contains("no service publishes port 444"));
    options.ports.kept = true;
    assert_eq!(ports(&options, &host())[0], 9443);
    options.ports.offset = Some(100);
    assert!(fixture.error(&options).contains("an ordinary user cannot publish port 543"));
}

#[test]
fn the_host_is_reached_by_its_own_address() {
    let text = "services:\n  s: { image: i, extra_hosts: ['host.docker.internal:host-gateway'] }\n";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let address =
        |host: &HostFacts| load(&fixture.options("compose.yaml"), host).unwrap().services[0].extra_hosts[0].1;
    let own = std::net::Ipv4Addr::new(203, 0, 113, 7);
    assert_eq!(address(&HostFacts { address: Some(own), ..host() }), own);
    // A host without a network has a gateway in the stack all the same.
    assert_ne!(address(&host()), own);
}

#[test]
fn the_choice_of_ports_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let choice = PortChoice { offset: Some(8000), publish: [(443, 4443)].into(), kept: false };
    assert_eq!(PortChoice::kept(directory.path()), None);
    choice.keep(directory.path()).unwrap();
    assert_eq!(PortChoice::kept(directory.path()), Some(PortChoice { kept: true, ..choice }));
    PortChoice::default().keep(directory.path()).unwrap();
    assert_eq!(PortChoice::kept(directory.path()), None);
}

#[test]
fn external_networks_and_links() {
    let text = "services:\n  s: { image: i, networks: [n], external_links: ['bee:honey', 'far:away'] }\n  b: { image: i, container_name: bee, networks: [n] }\nnetworks: { n: { external: true, name: shared } }\n";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let plan = load(&fixture.options("compose.yaml"), &host()).unwrap();
    let endpoint = plan.network.endpoints.iter().find(|endpoint| endpoint.service == "b").unwrap();
    assert!(endpoint.interfaces[0].aliases.contains(&"honey".to_owned()), "{endpoint:?}");
    assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
    assert!(plan.warnings[0].contains("network `n` is external"), "{:?}", plan.warnings);
    assert!(plan.warnings[1].contains("`far` of `external_links`"), "{:?}", plan.warnings);
}

#[test]
fn images_can_be_made_where_the_stack_could_not_run() {
    let text = "services:\n  s: { image: i, ports: ['443:443'], volumes: ['v:/v'] }\nvolumes: { v: { driver_opts: { type: none, o: bind, device: ./absent } } }\n";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let mut options = fixture.options("compose.yaml");
    assert!(fixture.error(&options).contains("cannot publish port 443"));
    options.ports.offset = Some(8000);
    assert!(fixture.error(&options).contains("the directory of volume `v` does not exist"));
    options.images_only = true;
    let plan = load(&options, &host()).unwrap();
    assert!(plan.services[0].moved_ports.is_empty(), "ports are of no interest");
}

#[test]
fn limits_are_those_that_can_be_had() {
    let text = "services:\n  s:\n    image: i\n    ulimits: { memlock: -1, nofile: { soft: 10, hard: 300 }, core: 0 }\n";
    let fixture = Fixture::new(&[("compose.yaml", text)]);
    let limits = [("memlock", 100), ("nofile", 200), ("core", 5)].into();
    let plan = load(&fixture.options("compose.yaml"), &HostFacts { limits, ..host() }).unwrap();
    let expected = [("core", (0, 0)), ("memlock", (100, 100)), ("nofile", (10, 200))];
    let expected = expected.map(|(name, pair)| (name.to_owned(), pair));
    assert_eq!(plan.services[0].ulimits, expected.into());
    assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
    assert!(
        plan.warnings[0]
            .contains("compose.yaml:4: `memlock` of `ulimits` of service `s` is 100 instead of unlimited")
    );
    // Where there is no limit nothing is lowered.
    assert!(load(&fixture.options("compose.yaml"), &host()).unwrap().warnings.is_empty());
}

#[test]
fn users_whose_variables_are_not_set() {
    for (text, expected) in [
        ("${NO_UID}:${NO_GID}", Some("0")),
        ("1000:${NO_GID}", Some("1000")),
        ("${NO_UID}:50", Some("0:50")),
        ("${NO_UID}", None),
        ("www-data:adm", Some("www-data:adm")),
    ] {
        let (service, warnings) = with(&format!("user: '{text}'"));
        assert_eq!(service.user.as_deref(), expected, "{text}");
        assert_eq!(warnings.len(), text.matches("NO_").count(), "{warnings:?}");
    }
    assert!(refused("user: 'a:b:c'").contains("`a:b:c` is not a user"));
}

#[test]
fn what_no_build_uses_need_not_be_there() {
    let text = "services:
  s: { build: { context: ., secrets: [used] }, secrets: [unused], configs: [conf] }
secrets: { used: { file: ./used }, unused: { file: ./unused }, }
configs: { conf: { environment: NOT_SET } }
";
    let fixture = Fixture::new(&[("compose.yaml", text), ("Dockerfile", "FROM i\n"), ("used", "x")]);
    let options = LoadOptions { images_only: true, ..fixture.options("compose.yaml") };
    let plan = load(&options, &host()).unwrap();
    let Source::Build(build) = &plan.services[0].source else { panic!("a build") };
    assert_eq!(build.secrets.keys().collect::<Vec<_>>(), ["used"]);
    assert!(
        fixture
            .error(&fixture.options("compose.yaml"))
            .contains("the file of secret `unused` does not exist")
    );
    std::fs::remove_file(fixture.directory().join("used")).unwrap();
    assert!(fixture.error(&options).contains("the file of secret `used` does not exist"));
}

#[test]
fn limits_of_a_build_are_lowered() {
    let text = "services:\n  s: { build: { context: ., ulimits: { nofile: 99, memlock: -1 } } }\n";
    let fixture = Fixture::new(&[("compose.yaml", text), ("Dockerfile", "FROM i\n")]);
    let mut host = host();
    host.limits.insert("memlock", 100);
    let plan = load(&fixture.options("compose.yaml"), &host).unwrap();
    let Source::Build(build) = &plan.services[0].source else { panic!("a build") };
    assert_eq!(build.ulimits["nofile"], (99, 99));
    assert_eq!(build.ulimits["memlock"], (100, 100));
    let told = "`memlock` of `ulimits` of the build is 100 instead of unlimited";
    assert!(plan.warnings.iter().any(|warning| warning.contains(told)), "{:?}", plan.warnings);
}

#[test]
fn a_context_in_a_repository_is_taken_as_it_is() {
    let build = |context: &str| {
        let text = format!("services:\n  s: {{ build: {{ context: '{context}', dockerfile: d/F }} }}\n");
        let fixture = Fixture::new(&[("compose.yaml", &text)]);
        let plan = load(&fixture.options("compose.yaml"), &host());
        plan.map(|plan| match &plan.services[0].source {
            Source::Build(build) => build.clone(),
            other => panic!("{other:?}"),
        })
    };
    for (context, address) in [
        ("https://e.org/a.git#v1:sub", "https://e.org/a.git#v1:sub"),
        ("git@e.org:a", "git@e.org:a"),
        ("github.com/a/b#main", "https://github.com/a/b#main"),
    ] {
        let build = build(context).unwrap();
        assert_eq!(build.repository.as_deref(), Some(address));
        assert_eq!((build.context, &build.dockerfiles[0].path), (PathBuf::new(), &PathBuf::from("d/F")));
    }
    for (context, problem) in [
        ("https://e.org/a.tar.gz", "is not the address of a git repository"),
        ("git://e.org/a#--x", "which is no branch, tag or commit"),
    ] {
        let error = build(context).unwrap_err().render(false);
        assert!(error.contains(problem) && error.contains("compose.yaml:2"), "{error}");
    }
}
