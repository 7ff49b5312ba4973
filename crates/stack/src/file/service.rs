//! One service of the file.

use std::collections::BTreeMap;

use super::build::{self, BuildFile};
use super::limits::{self, deploy};
use super::mounts::{self, MountFile, bytes, ignored};
use super::network::{self, NetworkKeys};
use super::node::{Key, Node, Value, unknown_key};
use super::ports::PortFile;
use super::process::{
    capabilities, landlock, restart, seconds, signal, text_map, ulimits, user, working_directory,
};
use super::replicas::{self, ReplicasFile};
use super::{Format, Located, health, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::{Condition, Limits, NetworkMode, RestartPolicy, Service, Source};
use crate::words;

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
    pub(crate) secrets: Vec<SecretUse>,
    pub(crate) configs: Vec<SecretUse>,
    pub(crate) depends_on: Vec<DependencyFile>,
    pub(crate) network: NetworkKeys,
    pub(crate) replicas: ReplicasFile,
}

/// One entry of `secrets` or `configs`.
#[derive(Debug)]
pub(crate) struct SecretUse {
    pub(crate) source: Located<String>,
    pub(crate) target: Option<String>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

/// One entry of `depends_on`.
#[derive(Debug)]
pub(crate) struct DependencyFile {
    pub(crate) service: Located<String>,
    pub(crate) condition: Condition,
    pub(crate) required: bool,
}

const KNOWN: &[&str] = &[
    "build",
    "cap_add",
    "cap_drop",
    "command",
    "configs",
    "depends_on",
    "deploy",
    "entrypoint",
    "env_file",
    "environment",
    "extends",
    "healthcheck",
    "image",
    "init",
    "init_verbosity",
    "labels",
    "landlock",
    "profiles",
    "read_only",
    "restart",
    "rootfs",
    "secrets",
    "shm_size",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "sysctls",
    "tmpfs",
    "tty",
    "ulimits",
    "user",
    "volumes",
    "working_dir",
];

/// Keys of `stack.toml` that are called `x-NAME` in a compose file.
pub(crate) const EXTENSIONS: [&str; 3] = ["balance", "egress", "landlock"];

/// Keys of the compose specification that change nothing here but a warning.
const IGNORED: &[&str] = &[
    "annotations",
    "attach",
    "cgroup",
    "cgroup_parent",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "credential_spec",
    "develop",
    "device_cgroup_rules",
    "devices",
    "external_links",
    "gpus",
    "group_add",
    "ipc",
    "isolation",
    "label_file",
    "logging",
    "mem_swappiness",
    "models",
    "oom_score_adj",
    "pid",
    "platform",
    "post_start",
    "pre_stop",
    "privileged",
    "pull_policy",
    "runtime",
    "security_opt",
    "storage_opt",
    "use_api_socket",
    "userns_mode",
    "uts",
];

/// Keys whose absence would make it another service.
const REFUSED: &[(&str, &str)] = &[
    ("provider", "run the provider outside the stack"),
    ("volumes_from", "name the volumes in both services"),
];

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
        replicas: ReplicasFile::default(),
    };
    for (key, node) in node.map(&key.name)? {
        let name = match format {
            Format::Stack => key.name.as_str(),
            Format::Compose => compose_name(key, &place)?,
        };
        if name.starts_with("x-") {
            continue;
        }
        if IGNORED.contains(&name) {
            warnings.push(ignored(key, &place));
            continue;
        }
        if let Some((_, hint)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            return Err(
                Fault::new(&key.span, format!("`{name}` of {place} is not supported yet")).hint(*hint)
            );
        }
        let known = KNOWN.iter().chain(&limits::KEYS).chain(&network::KEYS).chain(&replicas::KEYS);
        if !known.clone().any(|known| *known == name) {
            return Err(unknown_key(key, &place, known.chain(IGNORED).copied()));
        }
        // An empty key of YAML is no key.
        if node.is_null() {
            continue;
        }
        if network::KEYS.contains(&name) {
            network::read(&mut service, name, key, node, &place, warnings)?;
        } else {
            read_key(&mut service, name, node, &place, warnings)?;
        }
    }
    limits::check(&service.settled.limits, key)?;
    network::check(&mut service, warnings)?;
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
        depends_on: Vec::new(),
        healthcheck: None,
        restart: RestartPolicy::No,
        stop_signal: None,
        stop_grace_period: 10.0,
        read_only: false,
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        landlock: None,
        limits: Limits::default(),
        ulimits: BTreeMap::new(),
        sysctls: BTreeMap::new(),
        shm_size: 64 << 20,
        replicas: 1,
        network_mode: NetworkMode::Own,
        extra_hosts: Vec::new(),
        domainname: None,
        dns_search: Vec::new(),
        dns_opt: Vec::new(),
        ports: Vec::new(),
        tty: false,
        stdin_open: false,
        labels: BTreeMap::new(),
        config_hash: String::new(),
    }
}

fn read_key(
    service: &mut ServiceFile,
    name: &str,
    node: &Node,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let settled = &mut service.settled;
    match name {
        "build" => service.build = Some(build::parse(node, place, warnings)?),
        "image" => service.image = Some(located(node, node.text(name)?)),
        "rootfs" => service.rootfs = Some(located(node, node.text(name)?)),
        "entrypoint" => settled.entrypoint = Some(command(node, name)?),
        "command" => settled.command = Some(command(node, name)?),
        "environment" => {
            service.environment = node.pairs(name)?;
            check_variables(&service.environment)?;
        }
        // `load` has settled them.
        "env_file" | "extends" | "profiles" => {}
        "volumes" => service.mounts.extend(mounts::volumes(node, warnings)?),
        "tmpfs" => service.mounts.extend(mounts::tmpfs(node)?),
        "secrets" => service.secrets = secret_uses(node, name)?,
        "configs" => service.configs = secret_uses(node, name)?,
        "depends_on" => service.depends_on = depends_on(node, warnings)?,
        "healthcheck" => settled.healthcheck = Some(health::parse(node, place)?),
        "restart" => settled.restart = restart(node)?,
        "init" => settled.init = node.boolean(name)?,
        "init_verbosity" => {
            let level = node.integer(name, 0, 3)?;
            settled.init_verbosity = u8::try_from(level).unwrap_or(3);
        }
        "user" => settled.user = Some(user(node)?),
        "working_dir" => settled.working_dir = Some(working_directory(node)?),
        "labels" => settled.labels = text_map(node, name)?,
        "ulimits" => settled.ulimits = ulimits(node)?,
        "sysctls" => settled.sysctls = text_map(node, name)?,
        "cap_add" => settled.cap_add = capabilities(node, name)?,
        "cap_drop" => settled.cap_drop = capabilities(node, name)?,
        "landlock" => settled.landlock = Some(landlock(node, place)?),
        "read_only" => settled.read_only = node.boolean(name)?,
        "shm_size" => settled.shm_size = bytes(node, name)?,
        "stop_signal" => settled.stop_signal = Some(signal(node)?),
        "stop_grace_period" => settled.stop_grace_period = seconds(node, name)?,
        "stdin_open" => settled.stdin_open = node.boolean(name)?,
        "tty" => settled.tty = node.boolean(name)?,
        "deploy" => deploy(node, place, service, warnings)?,
        name if replicas::KEYS.contains(&name) => service.replicas.read(name, node, place)?,
        _ => limits::read(&mut settled.limits, name, node)?,
    }
    Ok(())
}

fn command(node: &Node, what: &str) -> Checked<Vec<String>> {
    match &node.value {
        Value::List(_) => node.texts(what),
        Value::String(line) => words::split(line)
            .ok_or_else(|| Fault::new(&node.span, format!("a quote in `{what}` is never closed"))),
        _ => Err(node.wrong(what, "a string or a list of strings")),
    }
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

fn secret_uses(node: &Node, what: &str) -> Checked<Vec<SecretUse>> {
    const KNOWN: &[&str] = &["source", "target", "uid", "gid", "mode"];
    let place = format!("an entry of `{what}`");
    node.list(what)?
        .iter()
        .map(|item| {
            let mut secret =
                SecretUse { source: located(item, String::new()), target: None, uid: 0, gid: 0, mode: 0o444 };
            let Value::Map(entries) = &item.value else {
                secret.source.value = item.text(what)?;
                return Ok(secret);
            };
            for (key, node) in entries {
                match key.name.as_str() {
                    "source" => secret.source = located(node, node.text("source")?),
                    "target" => secret.target = Some(node.text("target")?),
                    "uid" => secret.uid = node.id("uid")?,
                    "gid" => secret.gid = node.id("gid")?,
                    "mode" => secret.mode = node.mode("mode")?,
                    _ => return Err(unknown_key(key, &place, KNOWN.iter().copied())),
                }
            }
            if secret.source.value.is_empty() {
                return Err(Fault::new(&item.span, format!("{place} needs `source`")));
            }
            Ok(secret)
        })
        .collect()
}

fn depends_on(node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<DependencyFile>> {
    const KNOWN: &[&str] = &["condition", "required", "restart"];
    if let Value::List(items) = &node.value {
        return items
            .iter()
            .map(|item| {
                Ok(DependencyFile {
                    service: located(item, item.text("depends_on")?),
                    condition: Condition::Started,
                    required: true,
                })
            })
            .collect();
    }
    let Value::Map(entries) = &node.value else {
        return Err(node.wrong("depends_on", "a list or a table of services"));
    };
    let mut dependencies = Vec::new();
    for (key, node) in entries {
        let mut dependency = DependencyFile {
            service: Located { span: key.span.clone(), value: key.name.clone() },
            condition: Condition::Started,
            required: true,
        };
        match &node.value {
            Value::Map(entries) => {
                for (key, node) in entries {
                    match key.name.as_str() {
                        "condition" => dependency.condition = condition(node)?,
                        "required" => dependency.required = node.boolean("required")?,
                        "restart" if !node.boolean("restart")? => {}
                        "restart" => warnings.push(ignored(key, "`depends_on`")),
                        _ => return Err(unknown_key(key, "`depends_on`", KNOWN.iter().copied())),
                    }
                }
            }
            Value::Null => {}
            _ => dependency.condition = condition(node)?,
        }
        dependencies.push(dependency);
    }
    Ok(dependencies)
}

fn condition(node: &Node) -> Checked<Condition> {
    let text = node.text("condition")?;
    match text.as_str() {
        "service_started" | "started" => Ok(Condition::Started),
        "service_healthy" | "healthy" => Ok(Condition::Healthy),
        "service_completed_successfully" | "completed" => Ok(Condition::Completed),
        _ => {
            let long = ["service_started", "service_healthy", "service_completed_successfully"];
            let short = ["started", "healthy", "completed"];
            Err(Fault::new(&node.span, format!("`{text}` is not a condition"))
                .hint("use `started`, `healthy` or `completed`")
                .nearest(&text, short.into_iter().chain(long)))
        }
    }
}
