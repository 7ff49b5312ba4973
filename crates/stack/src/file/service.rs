//! One service of the file.

use std::collections::BTreeMap;

use super::build::{self, BuildFile};
use super::confinement::{self, DeviceFile};
use super::dependencies::{self, DependencyFile};
use super::develop::{self, WatchFile};
use super::keys::{self, Level};
use super::lifecycle::{self, command};
use super::limits::{self, CpuTime};
use super::mounts::{self, MountFile, VolumesFrom, bytes};
use super::network::{self, NetworkKeys};
use super::node::{Key, Node, unknown_key};
use super::ports::PortFile;
use super::process::{
    capabilities, landlock, restart, seconds, signal, text_map, ulimits, user, working_directory,
};
use super::replicas::{self, ReplicasFile};
use super::secrets::{self, Grant};
use super::sharing::{self, SharingFile};
use super::{Format, Located, deploy, health, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::{
    Confinement, Limits, Logging, NetworkMode, PullPolicy, RestartPolicy, Service, Sharing, Source,
};

/// A service as the file has it.
#[derive(Debug)]
pub(crate) struct ServiceFile {
    pub(crate) key: Key,
    /// What the file alone decides; `resolve` fills in the rest.
    pub(crate) settled: Service,
    pub(crate) build: Option<BuildFile>,
    pub(crate) image: Option<Located<String>>,
    pub(crate) rootfs: Option<Located<String>>,
    /// Without a value: taken from the variables, if there.
    pub(crate) environment: Vec<(Key, Option<String>)>,
    pub(crate) ports: Vec<PortFile>,
    pub(crate) mounts: Vec<MountFile>,
    pub(crate) secrets: Vec<Grant>,
    pub(crate) configs: Vec<Grant>,
    pub(crate) depends_on: Vec<DependencyFile>,
    pub(crate) network: NetworkKeys,
    pub(crate) sharing: SharingFile,
    pub(crate) replicas: ReplicasFile,
    pub(crate) label_files: Vec<Located<String>>,
    pub(crate) volumes_from: Vec<VolumesFrom>,
    pub(crate) devices: Vec<DeviceFile>,
    /// The file of `security_opt: seccomp=FILE`.
    pub(crate) seccomp_profile: Option<Located<String>>,
    pub(crate) watch: Vec<WatchFile>,
    /// Where `ulimits` is.
    pub(crate) ulimits: Option<Span>,
    /// `restart`, which outweighs that of `deploy`.
    pub(super) restart: Option<RestartPolicy>,
    pub(super) deploy_restart: Option<RestartPolicy>,
    pub(super) cpu_time: CpuTime,
}

impl ServiceFile {
    fn settle_restarts(&mut self) {
        if let Some(policy) = self.restart.or(self.deploy_restart) {
            self.settled.restart = policy;
        }
    }
}

/// Keys of `stack.toml` that are called `x-NAME` in a compose file.
pub(crate) const EXTENSIONS: [&str; 3] = ["balance", "egress", "landlock"];

/// Read one service.
pub(crate) fn parse(
    key: &Key,
    node: &Node,
    format: Format,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<ServiceFile> {
    let place = format!("service `{}`", key.name);
    let mut service = ServiceFile {
        key: key.clone(),
        settled: defaults(&key.name, format),
        build: None,
        image: None,
        rootfs: None,
        environment: Vec::new(),
        ports: Vec::new(),
        mounts: Vec::new(),
        secrets: Vec::new(),
        configs: Vec::new(),
        depends_on: Vec::new(),
        network: NetworkKeys::default(),
        sharing: SharingFile::default(),
        replicas: ReplicasFile::default(),
        label_files: Vec::new(),
        volumes_from: Vec::new(),
        devices: Vec::new(),
        seccomp_profile: None,
        watch: Vec::new(),
        ulimits: None,
        restart: None,
        deploy_restart: None,
        cpu_time: CpuTime::default(),
    };
    for (key, node) in node.map(&key.name)? {
        let name = match format {
            Format::Stack => key.name.as_str(),
            Format::Compose => compose_name(key, &place)?,
        };
        // An empty key of YAML is no key.
        if !keys::SERVICE.admits(key, name, &place, warnings)? || node.is_null() {
            continue;
        }
        if network::KEYS.contains(&name) {
            network::read(&mut service, name, key, node, &place, warnings)?;
        } else {
            read_key(&mut service, name, key, node, &place, warnings)?;
        }
    }
    service.settle_restarts();
    limits::settle(&mut service, key)?;
    network::check(&mut service, warnings)?;
    sharing::check(&service, warnings)?;
    Ok(service)
}

/// The name of a key without `x-`, which is where the compose specification puts what it does not have.
fn compose_name<'a>(key: &'a Key, place: &str) -> Checked<&'a str> {
    let name = key.name.as_str();
    if let Some(name) = name.strip_prefix("x-")
        && EXTENSIONS.contains(&name)
    {
        return Ok(name);
    }
    match name {
        "replicas" => {
            let fault = unknown_key(key, place, []);
            Err(fault.hint("a compose file has `scale` and `deploy.replicas` for it"))
        }
        _ if EXTENSIONS.contains(&name) => {
            Err(unknown_key(key, place, ["x-balance", "x-egress", "x-landlock"]))
        }
        _ => Ok(name),
    }
}

fn defaults(name: &str, format: Format) -> Service {
    Service {
        name: name.to_owned(),
        source: Source::Image(String::new()),
        entrypoint: None,
        command: None,
        environment: BTreeMap::new(),
        working_dir: None,
        user: None,
        hostname: name.to_owned(),
        init: format == Format::Stack,
        init_verbosity: 0,
        mounts: Vec::new(),
        secrets: Vec::new(),
        container_name: None,
        group_add: Vec::new(),
        depends_on: Vec::new(),
        healthcheck: None,
        restart: RestartPolicy::No,
        restart_delay: None,
        post_start: Vec::new(),
        pre_stop: Vec::new(),
        stop_signal: None,
        stop_grace_period: 10.0,
        read_only: false,
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        confinement: Confinement::default(),
        devices: Vec::new(),
        oom_score_adj: None,
        landlock: None,
        limits: Limits::default(),
        ulimits: BTreeMap::new(),
        sysctls: BTreeMap::new(),
        shm_size: 64 << 20,
        replicas: 1,
        network_mode: NetworkMode::Own,
        sharing: Sharing::default(),
        extra_hosts: Vec::new(),
        domainname: None,
        dns_search: Vec::new(),
        dns_opt: Vec::new(),
        ports: Vec::new(),
        moved_ports: BTreeMap::new(),
        tty: false,
        stdin_open: false,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        logging: Logging::default(),
        unattached: false,
        pull_policy: None,
        platform: None,
        watch: Vec::new(),
        config_hash: String::new(),
    }
}

fn read_key(
    service: &mut ServiceFile,
    name: &str,
    key: &Key,
    node: &Node,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let settled = &mut service.settled;
    match name {
        "build" => service.build = Some(build::parse(node, place, warnings)?),
        "image" => service.image = Some(located(node, node.string(name)?)),
        "rootfs" => service.rootfs = Some(located(node, node.text(name)?)),
        "platform" => settled.platform = lifecycle::platform(node, place)?,
        "pull_policy" => settled.pull_policy = Some(lifecycle::pull_policy(node)?),
        "pull_refresh_after" => settled.pull_policy = Some(PullPolicy::Every(seconds(node, name)?)),
        "entrypoint" => settled.entrypoint = Some(command(node, name)?),
        "command" => settled.command = Some(command(node, name)?),
        "environment" => {
            service.environment = node.pairs(name)?;
            check_variables(&service.environment)?;
        }
        // `load` has settled them.
        "env_file" | "extends" | "profiles" => {}
        "volumes" => service.mounts.extend(mounts::volumes(node, warnings)?),
        "volumes_from" => service.volumes_from = mounts::volumes_from(node)?,
        "tmpfs" => service.mounts.extend(mounts::tmpfs(node)?),
        "secrets" => service.secrets = secrets::grants(node, name, warnings)?,
        "configs" => service.configs = secrets::grants(node, name, warnings)?,
        "depends_on" => service.depends_on = dependencies::parse(node, warnings)?,
        "healthcheck" => settled.healthcheck = Some(health::parse(node, place, warnings)?),
        "restart" => service.restart = Some(restart(node)?),
        "init" => settled.init = node.boolean(name)?,
        "init_verbosity" => {
            let level = node.integer(name, 0, 3)?;
            settled.init_verbosity = u8::try_from(level).unwrap_or(3);
        }
        "user" => settled.user = user(node)?,
        "group_add" => settled.group_add = confinement::groups(node)?,
        "working_dir" => settled.working_dir = Some(working_directory(node)?),
        "labels" => settled.labels = text_map(node, name)?,
        "label_file" => service.label_files = one_or_more(node, |item| Ok(located(item, item.text(name)?)))?,
        "annotations" => settled.annotations = text_map(node, name)?,
        "logging" => settled.logging = lifecycle::logging(node, place, warnings)?,
        "attach" => settled.unattached = !node.boolean(name)?,
        "post_start" => settled.post_start = lifecycle::hooks(node, name, warnings)?,
        "pre_stop" => settled.pre_stop = lifecycle::hooks(node, name, warnings)?,
        "ulimits" => {
            settled.ulimits = ulimits(node)?;
            service.ulimits = Some(key.span.clone());
        }
        "sysctls" => settled.sysctls = text_map(node, name)?,
        "cap_add" => settled.cap_add = capabilities(node, name)?,
        "cap_drop" => settled.cap_drop = capabilities(node, name)?,
        "landlock" => settled.landlock = Some(landlock(node, place)?),
        "read_only" => settled.read_only = node.boolean(name)?,
        "shm_size" => {
            settled.shm_size = bytes(node, name)?;
            service.sharing.shm_size = Some(node.span.clone());
        }
        "stop_signal" => settled.stop_signal = Some(signal(node)?),
        "stop_grace_period" => settled.stop_grace_period = seconds(node, name)?,
        "stdin_open" => settled.stdin_open = node.boolean(name)?,
        "tty" => settled.tty = node.boolean(name)?,
        "deploy" => deploy::parse(node, place, service, warnings)?,
        "develop" => service.watch = develop::parse(node, place, warnings)?,
        "isolation" => lifecycle::isolation(node, place, warnings)?,
        name if confinement::KEYS.contains(&name) => confinement::read(service, name, node, place, warnings)?,
        name if replicas::KEYS.contains(&name) => service.replicas.read(name, node, place)?,
        name if limits::KEYS.contains(&name) => limits::read(service, name, node, place, warnings)?,
        _ => return Err(Level::unread(key, place)),
    }
    Ok(())
}

pub(super) fn check_variables(pairs: &[(Key, Option<String>)]) -> Checked<()> {
    for (key, value) in pairs {
        let null = value.as_ref().is_some_and(|value| value.contains('\0'));
        if key.name.is_empty() || key.name.contains(['=', '\0']) || null {
            return Err(Fault::new(
                &key.span,
                format!("`{}` is not an environment variable", key.name.escape_debug()),
            ));
        }
    }
    Ok(())
}

/// Reads a value that may be one item or a list of them.
pub(super) fn one_or_more<T>(node: &Node, read: impl Fn(&Node) -> Checked<T>) -> Checked<Vec<T>> {
    node.one_or_more().iter().map(read).collect()
}
