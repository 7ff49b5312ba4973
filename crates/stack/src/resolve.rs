//! `StackFile` to `Plan`: names are looked up, paths made absolute, addresses given, order decided.
//!
//! Nothing is changed. What is read besides the file: the files of `env_file`, and whether paths exist.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use network::plan::{AllocateError, Attachment, EndpointRequest, NetworkPlan, NetworkRequest, PublishedPort};
use sha2::{Digest, Sha256};

use crate::diagnostic::{Checked, Fault, FileError, SourceText, Span, nearest};
use crate::env_file;
use crate::file::mounts::{MountFile, MountFileKind, absolute};
use crate::file::node::Key;
use crate::file::service::{BuildFile, SecretUse, ServiceFile};
use crate::file::{Format, Located, SecretOrigin, SecretSourceFile, StackFile};
use crate::host::HostFacts;
use crate::interpolate::Variables;
use crate::load::{LoadOptions, read_text};
use crate::order::{Cycle, order};
use crate::plan::{
    BaseDockerfile, Build, Dependency, Mount, MountKind, Plan, SecretFile, SecretSource, Service, Source,
};

/// Everything that is settled before the file is looked at.
pub(crate) struct Context<'a> {
    pub(crate) options: &'a LoadOptions,
    pub(crate) host: &'a HostFacts,
    pub(crate) format: Format,
    pub(crate) source: &'a SourceText,
    /// Absolute directory of the file.
    pub(crate) directory: PathBuf,
    pub(crate) variables: &'a Variables,
}

/// The network of services that name none.
const DEFAULT_NETWORK: &str = "default";

/// Resolve a whole file.
pub(crate) fn plan(file: StackFile, context: &Context<'_>, warnings: Vec<String>) -> Result<Plan, FileError> {
    let in_file = |fault| context.source.fault(fault);
    let name = stack_name(&file, context)?;
    let bases = bases(&file, context)?;
    let order = start_order(&file).map_err(in_file)?;
    check_ports(&file, context).map_err(in_file)?;
    let network = networks(&file, context).map_err(in_file)?;

    let mut services = Vec::new();
    let mut volumes = BTreeSet::new();
    for service in &file.services {
        let environment = environment(service, context)?;
        let mut settled = Service {
            source: source(service, &name, &bases, context).map_err(in_file)?,
            environment,
            mounts: mounts(service, &file, context, &mut volumes).map_err(in_file)?,
            secrets: secrets(service, &file, context).map_err(in_file)?,
            depends_on: dependencies(service, &file),
            ports: ports(service, context),
            ..service.settled.clone()
        };
        settled.config_hash = config_hash(&settled, service, &network);
        services.push(Some(settled));
    }
    let services = order.into_iter().filter_map(|index| services[index].take()).collect();
    Ok(Plan {
        name,
        directory: context.directory.clone(),
        services,
        volumes: volumes.into_iter().collect(),
        network,
        warnings,
    })
}

/// The option, else the file's `name`, else the directory's name as compose normalises it.
fn stack_name(file: &StackFile, context: &Context<'_>) -> Result<String, FileError> {
    const HINT: &str = "use lower-case letters, digits, `-` and `_`, starting with a letter or digit";
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let good = |name: &str| {
        let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        // It becomes part of directory and image names.
        first && name.chars().all(plain) && name.len() <= 63
    };
    if let Some(name) = &context.options.project_name {
        return match good(name) {
            true => Ok(name.clone()),
            false => Err(FileError::Option {
                message: format!("`{name}` cannot be the name of a stack"),
                hint: Some(HINT.to_owned()),
            }),
        };
    }
    if let Some(name) = &file.name {
        return match good(&name.value) {
            true => Ok(name.value.clone()),
            false => {
                let message = format!("`{}` cannot be the name of a stack", name.value);
                let fault = Fault::new(&name.span, message);
                Err(context.source.fault(fault.hint(HINT)))
            }
        };
    }
    let directory = context.directory.file_name().unwrap_or_default();
    let lower = directory.to_string_lossy().to_lowercase();
    let normal: String = lower.chars().filter(|c| plain(*c)).take(63).collect();
    match normal.trim_start_matches(['-', '_']) {
        "" => Err(FileError::Option {
            message: "the directory's name gives no name for the stack".to_owned(),
            hint: Some("add `name` to the file".to_owned()),
        }),
        name => Ok(name.to_owned()),
    }
}

/// Bases in the order of preference; none when the file names none.
fn bases(file: &StackFile, context: &Context<'_>) -> Result<Vec<String>, FileError> {
    let named: Vec<&str> = file.base.iter().map(|base| base.value.as_str()).collect();
    match &context.options.base {
        None => Ok(named.into_iter().map(str::to_owned).collect()),
        Some(forced) if named.is_empty() || named.contains(&forced.as_str()) => Ok(vec![forced.clone()]),
        Some(forced) => Err(FileError::Option {
            message: format!(
                "base `{forced}` is none of those that `{}` names: {}",
                context.source.path.display(),
                named.join(", ")
            ),
            hint: nearest(forced, named).map(|found| format!("did you mean `{found}`?")),
        }),
    }
}

fn service_names(file: &StackFile) -> impl Iterator<Item = &str> + Clone {
    file.services.iter().map(|service| service.key.name.as_str())
}

fn start_order(file: &StackFile) -> Checked<Vec<usize>> {
    let mut graph = Vec::new();
    for service in &file.services {
        let mut needed = Vec::new();
        for dependency in &service.depends_on {
            let name = &dependency.service.value;
            match service_names(file).position(|other| other == name) {
                Some(index) => needed.push(index),
                None if !dependency.required => {}
                None => {
                    return Err(Fault::new(
                        &dependency.service.span,
                        format!("service `{}` depends on `{name}`, which does not exist", service.key.name),
                    )
                    .label("no such service")
                    .hint(format!("the services are: {}", service_names(file).collect::<Vec<_>>().join(", ")))
                    .nearest(name, service_names(file)));
                }
            }
        }
        graph.push(needed);
    }
    order(&graph).map_err(|Cycle(path)| {
        let names: Vec<&str> = path.iter().map(|index| file.services[*index].key.name.as_str()).collect();
        let next = names[1];
        let first = &file.services[path[0]];
        let span = first
            .depends_on
            .iter()
            .find(|dependency| dependency.service.value == next)
            .map_or(&first.key.span, |dependency| &dependency.service.span);
        Fault::new(span, format!("the services depend on each other: {}", names.join(" -> ")))
            .hint("remove one of these dependencies")
    })
}

fn dependencies(service: &ServiceFile, file: &StackFile) -> Vec<Dependency> {
    service
        .depends_on
        .iter()
        // One that is not required may be absent.
        .filter(|dependency| service_names(file).any(|name| name == dependency.service.value))
        .map(|dependency| Dependency {
            service: dependency.service.value.clone(),
            condition: dependency.condition,
        })
        .collect()
}

/// An absolute path of a path in the file.
fn path(text: &str, context: &Context<'_>) -> PathBuf {
    let expanded = match (text.strip_prefix('~'), &context.host.home) {
        (Some(""), Some(home)) => home.clone(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(text),
    };
    // `.` only; `..` means what the kernel makes of it, symbolic links included.
    context.directory.join(expanded).components().collect()
}

/// The path for a message: relative to the file's directory where it is below it.
fn shown<'a>(path: &'a Path, context: &Context<'_>) -> std::path::Display<'a> {
    match path.strip_prefix(&context.directory) {
        Ok(relative) if !relative.as_os_str().is_empty() => relative.display(),
        _ => path.display(),
    }
}

fn source(service: &ServiceFile, stack: &str, bases: &[String], context: &Context<'_>) -> Checked<Source> {
    let name = &service.key.name;
    if let Some(image) = &service.image {
        check_image(image)?;
    }
    match (&service.build, &service.image, &service.rootfs) {
        (Some(build), image, None) => {
            let image = match image {
                Some(image) => image.value.clone(),
                // An image's name is lower case, a service's need not be.
                None => format!("{stack}-{}:latest", name.to_lowercase()),
            };
            Ok(Source::Build(self::build(build, image, bases, context)?))
        }
        (None, Some(image), None) => Ok(Source::Image(image.value.clone())),
        (None, None, Some(rootfs)) => {
            let path = path(&rootfs.value, context);
            if !path.exists() {
                let message = format!("rootfs `{}` does not exist", shown(&path, context));
                return Err(Fault::new(&rootfs.span, message));
            }
            Ok(Source::Rootfs(path))
        }
        (_, _, Some(rootfs)) => Err(Fault::new(
            &rootfs.span,
            format!("service `{name}` has a `rootfs` besides an `image` or `build`"),
        )
        .hint("keep one of them")),
        (None, None, None) => Err(Fault::new(
            &service.key.span,
            format!("service `{name}` has no `image`, `build` or `rootfs`"),
        )
        .hint("add `build` with the directory of its Dockerfile, or `image`")),
    }
}

/// The grammar of image references: `[DOMAIN[:PORT]/]NAME[/NAME…][:TAG][@DIGEST]`
/// (distribution/reference).
fn check_image(image: &Located<String>) -> Checked<()> {
    let bad = |message: String| Fault::new(&image.span, message);
    let text = image.value.as_str();
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|byte| b"0123456789abcdef".contains(&byte)) {
            return Err(bad(format!("`{text}` has a bad digest"))
                .hint("a digest is `sha256:` and 64 hexadecimal digits"));
        }
    }
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !tag.bytes().all(plain) {
            return Err(bad(format!("`{text}` has a bad tag"))
                .hint("a tag has letters, digits, `_`, `.` and `-`, such as `alpine:3.20`"));
        }
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    let is_domain = parts[0].contains(['.', ':']) || parts[0] == "localhost";
    if parts.len() > 1 && is_domain {
        let domain = parts.remove(0);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
        if !domain.bytes().all(plain) {
            return Err(bad(format!("`{text}` has a bad host name")));
        }
    }
    let good = |part: &&str| {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(letter)
            && part.ends_with(letter)
            && part.chars().all(|c| letter(c) || "._-".contains(c))
    };
    if parts.iter().all(good) && name.len() <= 255 {
        return Ok(());
    }
    let fault = bad(format!("`{text}` is not the name of an image"));
    let lower = text.to_lowercase();
    if lower != text {
        return Err(fault.hint(format!("names of images are lower case: `{lower}`")));
    }
    Err(fault.hint("write `NAME:TAG`, such as `alpine:3.20`"))
}

fn build(build: &BuildFile, image: String, bases: &[String], context: &Context<'_>) -> Checked<Build> {
    let directory = path(&build.context.value, context);
    if !directory.is_dir() {
        let message = match directory.exists() {
            true => format!("`{}` is not a directory", shown(&directory, context)),
            false => format!("the build directory `{}` does not exist", shown(&directory, context)),
        };
        return Err(Fault::new(&build.context.span, message)
            .hint("`build` is the directory of the Dockerfile, relative to this file"));
    }
    let missing = |span: &Span, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        Fault::new(span, format!("`{}` has no {}", shown(&directory, context), names.join(" or ")))
    };
    let span = &build.context.span;
    let mut dockerfiles = Vec::new();
    if let Some(dockerfile) = &build.dockerfile {
        let path: PathBuf = directory.join(&dockerfile.value).components().collect();
        if !path.is_file() {
            return Err(missing(&dockerfile.span, &[&dockerfile.value]));
        }
        let base = String::new();
        dockerfiles.push(BaseDockerfile { base, path });
    } else if bases.is_empty() {
        let path = directory.join("Dockerfile");
        if !path.is_file() {
            return Err(missing(span, &["Dockerfile"]).hint("name it with `dockerfile`"));
        }
        let base = String::new();
        dockerfiles.push(BaseDockerfile { base, path });
    }
    for base in bases.iter().filter(|_| build.dockerfile.is_none()) {
        let own = format!("Dockerfile.{base}");
        let names: &[&str] = match base.as_str() {
            "alpine" => &[&own, "Dockerfile"],
            _ => &[&own],
        };
        let path = names.iter().map(|name| directory.join(name)).find(|path| path.is_file());
        let path = path.ok_or_else(|| {
            missing(span, names).hint(format!("base `{base}` needs a Dockerfile in every build directory"))
        })?;
        let base = base.clone();
        dockerfiles.push(BaseDockerfile { base, path });
    }
    Ok(Build {
        image,
        context: directory.clone(),
        dockerfiles,
        args: fill(&build.args, context),
        target: build.target.clone(),
    })
}

/// Variables; one without a value is taken from ours, or left out.
fn fill(pairs: &[(Key, Option<String>)], context: &Context<'_>) -> BTreeMap<String, String> {
    pairs
        .iter()
        .filter_map(|(key, value)| {
            let value = match value {
                Some(value) => value.clone(),
                None => context.variables.get(&key.name)?.to_owned(),
            };
            Some((key.name.clone(), value))
        })
        .collect()
}

fn environment(service: &ServiceFile, context: &Context<'_>) -> Result<BTreeMap<String, String>, FileError> {
    let mut environment = BTreeMap::new();
    for file in &service.env_files {
        let path = path(&file.path.value, context);
        if !file.required && !path.exists() {
            continue;
        }
        if !path.is_file() {
            let message = format!("the environment file `{}` does not exist", shown(&path, context));
            return Err(context.source.fault(Fault::new(&file.path.span, message)));
        }
        let source = read_text(&path)?;
        let lenient = context.format == Format::Compose;
        let variables = env_file::parse(&source.text, &context.host.environment, lenient)
            .map_err(|fault| source.fault(fault))?;
        environment.extend(variables);
    }
    environment.extend(fill(&service.environment, context));
    Ok(environment)
}

fn mounts(
    service: &ServiceFile,
    file: &StackFile,
    context: &Context<'_>,
    volumes: &mut BTreeSet<String>,
) -> Checked<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in &service.mounts {
        if mounts.iter().any(|other| other.target == mount.target) {
            return Err(Fault::new(
                &mount.span,
                format!("`{}` is mounted twice in service `{}`", mount.target, service.key.name),
            ));
        }
        let kind = mount_kind(service, mount, file, context)?;
        if let MountKind::Volume { name } = &kind {
            volumes.insert(name.clone());
        }
        mounts.push(Mount { target: mount.target.clone(), read_only: mount.read_only, kind });
    }
    // What is mounted later covers what is below it.
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    Ok(mounts)
}

fn mount_kind(
    service: &ServiceFile,
    mount: &MountFile,
    file: &StackFile,
    context: &Context<'_>,
) -> Checked<MountKind> {
    let bind = |text: &str, create: bool, span: &Span| {
        let source = path(text, context);
        if !create && !source.exists() {
            return Err(Fault::new(span, format!("`{}` does not exist", shown(&source, context)))
                .hint("create it, or set `create_host_path`"));
        }
        Ok(MountKind::Bind { source, create })
    };
    match &mount.kind {
        MountFileKind::Bind { source, create } => bind(source, *create, &mount.span),
        MountFileKind::Tmpfs { size, mode } => Ok(MountKind::Tmpfs { size: *size, mode: *mode }),
        MountFileKind::Volume(None) => {
            // Anonymous: the same service and target find it again.
            let digest = hex(&Sha256::digest(mount.target.as_bytes()));
            let name = format!("{}-{}", service.key.name, &digest[..12]);
            Ok(MountKind::Volume { name })
        }
        MountFileKind::Volume(Some(name)) => {
            let declared = file.volumes.iter().map(|volume| volume.key.name.as_str());
            let Some(volume) = file.volumes.iter().find(|volume| volume.key.name == *name) else {
                let example = match context.format {
                    Format::Stack => format!("declare it: `[volumes.{name}]`"),
                    Format::Compose => format!("declare it: `volumes: {{ {name}: {{}} }}`"),
                };
                return Err(Fault::new(&mount.span, format!("volume `{name}` is not declared"))
                    .hint(format!("{example}, or write `./{name}` for a directory"))
                    .nearest(name, declared));
            };
            match &volume.device {
                Some(device) => bind(&device.value, true, &device.span),
                None => Ok(MountKind::Volume { name: name.clone() }),
            }
        }
    }
}

fn secrets(service: &ServiceFile, file: &StackFile, context: &Context<'_>) -> Checked<Vec<SecretFile>> {
    let mut files: Vec<SecretFile> = Vec::new();
    let groups = [
        ("secret", "/run/secrets/", &service.secrets, &file.secrets),
        ("config", "/", &service.configs, &file.configs),
    ];
    for (what, parent, uses, sources) in groups {
        for secret in uses {
            let found = secret_file(what, parent, secret, sources, context)?;
            if files.iter().any(|other| other.target == found.target) {
                let message = format!("two files for `{}`", found.target);
                return Err(Fault::new(&secret.source.span, message));
            }
            files.push(found);
        }
    }
    Ok(files)
}

fn secret_file(
    what: &str,
    parent: &str,
    secret: &SecretUse,
    sources: &[SecretSourceFile],
    context: &Context<'_>,
) -> Checked<SecretFile> {
    let name = &secret.source.value;
    let names = sources.iter().map(|source| source.key.name.as_str());
    let Some(declared) = sources.iter().find(|source| source.key.name == *name) else {
        let example = match context.format {
            Format::Stack => format!("declare it: `[{what}s.{name}]`"),
            Format::Compose => format!("declare it below `{what}s:`"),
        };
        return Err(Fault::new(&secret.source.span, format!("{what} `{name}` is not declared"))
            .hint(format!("{example} with `file` or `environment`"))
            .nearest(name, names));
    };
    let source = match &declared.source {
        SecretOrigin::File(file) => {
            let path = path(&file.value, context);
            if !path.is_file() {
                let message =
                    format!("the file of {what} `{name}` does not exist: `{}`", shown(&path, context));
                return Err(Fault::new(&file.span, message));
            }
            SecretSource::File(path)
        }
        SecretOrigin::Environment(variable) => {
            if context.variables.get(&variable.value).is_none() {
                let variable_name = &variable.value;
                let writer = context.directory.join("scripts/env").is_file();
                let more = match writer {
                    true => "; `scripts/env` writes a `.env` with fresh values",
                    false => "",
                };
                return Err(Fault::new(
                    &variable.span,
                    format!("variable `{variable_name}` of {what} `{name}` is not set"),
                )
                .hint(format!(
                    "set `{variable_name}` in `.env` beside the file or in the environment{more}"
                )));
            }
            SecretSource::Environment(variable.value.clone())
        }
    };
    let target = secret.target.as_deref().unwrap_or(name);
    let target = match target.starts_with('/') {
        true => target.to_owned(),
        false => format!("{parent}{target}"),
    };
    Ok(SecretFile {
        target: absolute(&secret.source.span, &target)?,
        source,
        uid: secret.uid,
        gid: secret.gid,
        mode: secret.mode,
    })
}

fn default_host_ip(format: Format) -> IpAddr {
    IpAddr::V4(match format {
        Format::Stack => Ipv4Addr::LOCALHOST,
        Format::Compose => Ipv4Addr::UNSPECIFIED,
    })
}

fn ports(service: &ServiceFile, context: &Context<'_>) -> Vec<PublishedPort> {
    let ports = service.ports.iter();
    ports
        .map(|port| PublishedPort {
            host_ip: port.host_ip.unwrap_or(default_host_ip(context.format)),
            host_port: port.host_port,
            container_port: port.container_port,
        })
        .collect()
}

/// No two services on one host port, and none on a port that this user may not have.
fn check_ports(file: &StackFile, context: &Context<'_>) -> Checked<()> {
    struct User<'a> {
        service: &'a str,
        ip: IpAddr,
        span: &'a Span,
    }
    let start = context.host.unprivileged_port_start;
    let mut users: BTreeMap<u16, Vec<User<'_>>> = BTreeMap::new();
    for service in &file.services {
        let name = service.key.name.as_str();
        for port in service.ports.iter().filter(|port| port.host_port != 0) {
            let number = port.host_port;
            if number < start && !context.host.is_root {
                let other = unprivileged(number, start);
                return Err(Fault::new(
                    &port.span,
                    format!("an ordinary user cannot publish port {number}: the lowest is {start}"),
                )
                .hint(format!(
                    "publish another port, such as `{other}:{}`, or lower the limit: `sudo sysctl net.ipv4.ip_unprivileged_port_start={number}`",
                    port.container_port
                )));
            }
            let ip = port.host_ip.unwrap_or(default_host_ip(context.format));
            let others = users.entry(number).or_default();
            let clash = others.iter().find(|other| {
                other.ip == ip
                    || (other.ip.is_ipv4() == ip.is_ipv4()
                        && (other.ip.is_unspecified() || ip.is_unspecified()))
            });
            if let Some(other) = clash {
                let message = match other.service == name {
                    true => format!("service `{name}` publishes port {number} twice"),
                    false => format!("services `{}` and `{name}` both publish port {number}", other.service),
                };
                return Err(Fault::new(&port.span, message)
                    .label(format!("port {number} again"))
                    .other(other.span, "first published here")
                    .hint("give one of them another host port"));
            }
            others.push(User { service: name, ip, span: &port.span });
        }
    }
    Ok(())
}

/// The customary replacement of a low port.
fn unprivileged(port: u16, start: u16) -> u16 {
    let customary = match port {
        80 => 8080,
        20 | 21 => port + 2100,
        _ => port + 8000,
    };
    customary.max(start)
}

fn networks(file: &StackFile, context: &Context<'_>) -> Checked<NetworkPlan> {
    let mut endpoints = Vec::new();
    let mut used = BTreeSet::new();
    for service in &file.services {
        let mut names: Vec<String> = service.container_name.iter().cloned().collect();
        if service.has_hostname {
            names.push(service.settled.hostname.clone());
        }
        let mut endpoint = EndpointRequest { service: service.key.name.clone(), attachments: Vec::new() };
        let Some(uses) = &service.networks else {
            used.insert(DEFAULT_NETWORK);
            endpoint.attachments.push(Attachment {
                network: DEFAULT_NETWORK.to_owned(),
                address: None,
                aliases: names,
            });
            endpoints.push(endpoint);
            continue;
        };
        for network in uses {
            let name = network.network.value.as_str();
            let declared = file.networks.iter().map(|network| network.key.name.as_str());
            if name != DEFAULT_NETWORK && !declared.clone().any(|other| other == name) {
                let example = match context.format {
                    Format::Stack => format!("declare it: `[networks.{name}]`"),
                    Format::Compose => format!("declare it: `networks: {{ {name}: {{}} }}`"),
                };
                return Err(Fault::new(&network.network.span, format!("network `{name}` is not declared"))
                    .hint(example)
                    .nearest(name, declared));
            }
            used.insert(name);
            endpoint.attachments.push(Attachment {
                network: name.to_owned(),
                address: network.address.as_ref().map(|address| address.value),
                aliases: names.iter().chain(&network.aliases).cloned().collect(),
            });
        }
        endpoints.push(endpoint);
    }
    // Networks that nobody is on are not made, as with compose.
    let mut requests: Vec<NetworkRequest> = file
        .networks
        .iter()
        .filter(|network| used.contains(network.key.name.as_str()))
        .map(|network| NetworkRequest {
            name: network.key.name.clone(),
            subnet: network.subnet.as_ref().map(|subnet| subnet.value),
            gateway: network.gateway.as_ref().map(|gateway| gateway.value),
            internal: network.internal,
        })
        .collect();
    let has_default = requests.iter().any(|request| request.name == DEFAULT_NETWORK);
    if used.contains(DEFAULT_NETWORK) && !has_default {
        requests.push(NetworkRequest { name: DEFAULT_NETWORK.to_owned(), ..NetworkRequest::default() });
    }
    network::plan::allocate(&requests, &endpoints, &context.host.used_subnets)
        .map_err(|error| address_fault(file, &error))
}

/// Where in the file an impossible wish stands.
fn address_fault(file: &StackFile, error: &AllocateError) -> Box<Fault> {
    let network_file = |name: &str| file.networks.iter().find(|network| network.key.name == name);
    let use_of = |service: &str, network: &str| {
        let service = file.services.iter().find(|file| file.key.name == service)?;
        let mut uses = service.networks.iter().flatten();
        uses.rfind(|used| used.network.value == network)
    };
    let span = match error {
        AllocateError::UnknownNetwork { service, network }
        | AllocateError::AttachedTwice { service, network } => {
            use_of(service, network).map(|used| &used.network.span)
        }
        AllocateError::AddressOutside { service, network, .. }
        | AllocateError::AddressTaken { service, network, .. } => {
            use_of(service, network).and_then(|used| Some(&used.address.as_ref()?.span))
        }
        AllocateError::SubnetsOverlap { second: network, .. }
        | AllocateError::NoFreeSubnet { network }
        | AllocateError::NoFreeAddress { network, .. } => network_file(network).map(|network| {
            let subnet = network.subnet.as_ref();
            subnet.map_or(&network.key.span, |subnet| &subnet.span)
        }),
        AllocateError::GatewayOutside { network, .. } => {
            network_file(network).and_then(|network| Some(&network.gateway.as_ref()?.span))
        }
    };
    let fault = Fault::new(span.unwrap_or(&(0..0)), error.to_string());
    match error {
        AllocateError::AddressOutside { network, .. }
            if network_file(network).is_none_or(|network| network.subnet.is_none()) =>
        {
            fault.hint(format!(
                "a static address needs a subnet: `ipam.config = [{{ subnet = \"172.28.0.0/24\" }}]` of network `{network}`"
            ))
        }
        AllocateError::AddressTaken { .. } => fault.hint("give one of them another address"),
        AllocateError::NoFreeSubnet { .. } => fault.hint("name a subnet with `ipam`"),
        AllocateError::NoFreeAddress { .. } => fault.hint("name a larger subnet with `ipam`"),
        _ => fault,
    }
}

/// What of a service's configuration needs a new container when it changes.
///
/// Left out are what it waits for (the order of a start that is over) and how its image is built (a
/// changed image is noticed by its own identity). Addresses that the file does not name are left out
/// too: a service that is added in front of others shifts theirs, and nobody may rely on them.
/// Published ports are in, though they live outside of the container: compose recreates for them, too.
fn config_hash(service: &Service, file: &ServiceFile, network: &NetworkPlan) -> String {
    let mut relevant = service.clone();
    relevant.config_hash = String::new();
    relevant.depends_on = Vec::new();
    if let Source::Build(build) = &relevant.source {
        relevant.source = Source::Image(build.image.clone());
    }
    let endpoint = network.endpoints.iter().find(|endpoint| endpoint.service == service.name);
    let links: Vec<(&str, &[String])> = endpoint
        .into_iter()
        .flat_map(|endpoint| &endpoint.interfaces)
        .map(|interface| (interface.network.as_str(), interface.aliases.as_slice()))
        .collect();
    let fixed: Vec<Ipv4Addr> = (file.networks.iter().flatten())
        .filter_map(|network| Some(network.address.as_ref()?.value))
        .collect();
    // Maps are ordered and fields come in the order of their declaration: the same value is always the
    // same text.
    let text = match serde_json::to_string(&(&relevant, &links, &fixed)) {
        Ok(text) => text,
        // Only a float that is not finite could fail, and none is let into a plan.
        Err(error) => error.to_string(),
    };
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
