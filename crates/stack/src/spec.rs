//! From a planned service and its image to a sandbox: where the two are merged, by Docker's rules.

mod names;
mod replica;
mod seccomp;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use container::sandbox::{Mount, MountSource, Root, Sandbox};
use container::{Capabilities, Process, User, capability, defaults, landlock, rlimit};
use image::Image;
use network::plan::NetworkPlan;
use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDeviceBuilder, LinuxWeightDeviceBuilder};
use sys::mount::attribute::{NODEV, NOEXEC, NOSUID, RDONLY};

use crate::control::Exec;
use crate::plan::{
    BlockIo, Device, DeviceRate, DeviceWeight, Healthcheck, Hook, MountKind, NetworkMode, Plan, Probe, Scope,
    SecretSource, Service, Source, Tmpfs,
};
use crate::remote::{Context, RemoteError};

pub(crate) use names::OWN_FILES;
pub(crate) use replica::replica;

/// What a service's sandbox is made from, beside the service.
#[derive(Debug)]
pub(crate) struct Ingredients<'a> {
    /// Name of the stack.
    pub(crate) stack: &'a str,
    /// Name of the container: the service's, or that of a one-off.
    pub(crate) container: &'a str,
    /// Which replica of the service it is; the first is 1.
    pub(crate) replica: u16,
    /// The service's image.
    pub(crate) image: &'a Image,
    /// Layers of the image, lowest first, relative to the data directory.
    pub(crate) layers: Vec<String>,
    /// Values of secrets from the environment.
    pub(crate) secrets: &'a BTreeMap<String, String>,
    /// Networks of the stack.
    pub(crate) network: &'a NetworkPlan,
    /// Maps the owners of a bind mount's files, as root; the descriptor is the user namespace.
    pub(crate) idmap: Option<&'a OwnedFd>,
}

/// A sandbox and the detached mounts that belong to it.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) sandbox: Sandbox,
    pub(crate) detached: Vec<OwnedFd>,
}

/// Directory of a container's own files, relative to the data directory.
pub(crate) fn container_directory(stack: &str, container: &str) -> String {
    format!("c/{stack}/{container}")
}

/// Directory of a stack's own volumes, relative to the data directory.
pub(crate) fn volumes_directory(stack: &str) -> String {
    format!("v/{stack}")
}

/// Directory of a named volume, likewise.
pub(crate) fn volume_directory(stack: &str, volume: &str) -> String {
    format!("{}/{volume}", volumes_directory(stack))
}

/// Directory of a volume that stacks share, likewise. No stack is called so.
pub(crate) fn shared_volume_directory(volume: &str) -> String {
    format!("v/=/{volume}")
}

/// The volumes that go with the stack though others can share them.
pub(crate) fn named_volumes(plan: &Plan) -> BTreeSet<String> {
    let mounts = plan.services.iter().flat_map(|service| &service.mounts);
    let named = mounts.filter_map(|mount| match &mount.kind {
        MountKind::Volume { name, scope: Scope::Named, .. } => Some(name.clone()),
        _ => None,
    });
    named.collect()
}

/// Merges `service` with its image.
///
/// # Errors
/// A bind mount's source that is missing, an unreadable secret, an unknown name.
pub(crate) fn resolve(service: &Service, from: &Ingredients<'_>) -> Result<Resolved, RemoteError> {
    let mut detached = Vec::new();
    let own = container_directory(from.stack, from.container);
    let is_replicated = from.network.groups.iter().any(|group| group.service == service.name);
    let service = &replica(service, from.replica, is_replicated.then_some(service.replicas));
    let network = match service.network_mode {
        NetworkMode::Host => defaults::Network::Host,
        NetworkMode::Own | NetworkMode::Service(_) => defaults::Network::Own,
    };
    let privileged = service.confinement.privileged;
    let mut mounts = defaults::mounts(network, service.shm_size);
    if privileged && network == defaults::Network::Own {
        // What of `/sys` belongs to its network is its own.
        mounts.iter_mut().filter(|m| m.target == "/sys").for_each(|m| m.attributes &= !RDONLY);
    }
    mounts.retain(|mount| mount.target != "/dev/shm" || !service.sharing.no_shm);
    mounts.extend(service.devices.iter().map(device));
    for mount in &service.mounts {
        mounts.push(mount_of(mount, from, &mut detached)?);
    }
    mounts.extend(anonymous_volumes(service, from.image, &own));
    mounts.extend(names::files(service, from.container, from.network)?);
    for secret in &service.secrets {
        let content = secret_value(&secret.source, from.secrets)
            .context(|| format!("read secret for {}", secret.target))?;
        let source = MountSource::File { content, mode: secret.mode, uid: secret.uid, gid: secret.gid };
        mounts.push(Mount::new(&secret.target, source, NOSUID | NODEV | NOEXEC | RDONLY));
    }
    let process = process(service, from.image)?;
    let unmasked = privileged || service.confinement.unmasked;
    let sandbox = Sandbox {
        hostname: service.hostname.clone(),
        root: Root { layers: from.layers.clone(), upper: format!("{own}/u"), work: format!("{own}/w") },
        read_only: service.read_only,
        mounts,
        masked_paths: if unmasked { Vec::new() } else { defaults::masked_paths() },
        readonly_paths: if unmasked { Vec::new() } else { defaults::readonly_paths() },
        sysctls: service.sysctls.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        seccomp: seccomp::filter(&service.confinement, process.capabilities.bounding())?,
        oom_score_adj: service.oom_score_adj,
        process,
        init: service.init.then_some(service.init_verbosity),
        asks_to_bind: false,
    };
    Ok(Resolved { sandbox, detached })
}

/// The program that a service runs.
///
/// # Errors
/// When nobody names a command, or a name is unknown.
pub(crate) fn process(service: &Service, image: &Image) -> Result<Process, RemoteError> {
    let config = &image.config.config;
    // A new entrypoint takes the image's command away with the image's entrypoint.
    let entrypoint = service.entrypoint.clone().or_else(|| config.entrypoint.clone()).unwrap_or_default();
    let command = match (&service.command, &service.entrypoint) {
        (Some(command), _) => command.clone(),
        (None, Some(_)) => Vec::new(),
        (None, None) => config.cmd.clone().unwrap_or_default(),
    };
    let argv: Vec<String> = entrypoint.into_iter().chain(command).collect();
    if argv.is_empty() {
        return Err(RemoteError::message("neither the image nor the file names a command")
            .or_hint("add `command = [\"program\", \"argument\"]` to the service"));
    }
    if service.landlock.is_some() {
        landlock::available()?;
    }
    let rlimits = service
        .ulimits
        .iter()
        .map(|(name, (soft, hard))| {
            let number = rlimit::number(name)
                .ok_or_else(|| RemoteError::message(format!("unknown resource limit `{name}`")))?;
            Ok((number, *soft, *hard))
        })
        .collect::<Result<_, RemoteError>>()?;
    Ok(Process {
        argv,
        env: environment(service, image),
        cwd: service.working_dir.clone().unwrap_or_else(|| config.working_dir.clone()),
        user: User::Named(service.user.clone().unwrap_or_else(|| config.user.clone())),
        groups: service.group_add.clone(),
        capabilities: Capabilities::Bounding(capabilities(service)?),
        no_new_privileges: !service.confinement.new_privileges,
        landlock: service.landlock.clone(),
        rlimits,
        terminal: service.tty,
        ..Process::default()
    })
}

fn capabilities(service: &Service) -> Result<u64, RemoteError> {
    let all = ["ALL".to_owned()];
    let added = if service.confinement.privileged { &all[..] } else { &service.cap_add };
    Ok(capability::set(added, &service.cap_drop)?)
}

/// What every container has, then the image's, then the file's; the later wins.
fn environment(service: &Service, image: &Image) -> Vec<(String, String)> {
    let mut env = vec![
        ("PATH".to_owned(), image::DEFAULT_PATH.to_owned()),
        ("HOSTNAME".to_owned(), service.hostname.clone()),
    ];
    if service.tty {
        env.push(terminal_kind());
    }
    extend(&mut env, image.config.config.env_pairs());
    extend(&mut env, service.environment.iter().map(|(k, v)| (k.clone(), v.clone())));
    env
}

fn terminal_kind() -> (String, String) {
    ("TERM".to_owned(), "xterm".to_owned())
}

/// Sets variables, replacing those of the same name.
fn extend(env: &mut Vec<(String, String)>, more: impl IntoIterator<Item = (String, String)>) {
    for (key, value) in more {
        match env.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = value,
            None => env.push((key, value)),
        }
    }
}

/// The service's process changed as `exec` or `run` asks.
pub(crate) fn process_for(base: &Process, exec: &Exec) -> Process {
    let mut process = base.clone();
    if !exec.argv.is_empty() {
        process.argv.clone_from(&exec.argv);
    }
    if exec.tty && !process.env.iter().any(|(key, _)| key == "TERM") {
        process.env.push(terminal_kind());
    }
    extend(&mut process.env, exec.env.iter().cloned());
    if let Some(cwd) = &exec.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some(user) = &exec.user {
        process.user = User::Named(user.clone());
    }
    if exec.privileged {
        process.capabilities = Capabilities::Bounding(u64::MAX);
    }
    process.terminal = exec.tty;
    process
}

/// The service's process changed as a hook has it.
pub(crate) fn process_of_hook(base: &Process, hook: &Hook) -> Process {
    let exec = Exec {
        argv: hook.command.clone(),
        env: hook.environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        cwd: hook.working_dir.clone(),
        user: hook.user.clone(),
        privileged: hook.privileged,
        ..Exec::default()
    };
    process_for(base, &exec)
}

fn mount_of(
    mount: &crate::plan::Mount,
    from: &Ingredients<'_>,
    detached: &mut Vec<OwnedFd>,
) -> Result<Mount, RemoteError> {
    let read_only = if mount.read_only { RDONLY } else { 0 };
    let (source, attributes) = match &mount.kind {
        MountKind::Volume { name, scope, nocopy, subpath } => {
            let path = match scope {
                Scope::Stack => volume_directory(from.stack, name),
                Scope::Named | Scope::External => shared_volume_directory(name),
            };
            (MountSource::Volume { path, empty: *nocopy, subpath: subpath.clone() }, NOSUID | NODEV)
        }
        MountKind::Tmpfs(Tmpfs { size, mode, uid, gid, exec }) => {
            let noexec = if *exec { 0 } else { NOEXEC };
            (MountSource::Tmpfs { size: *size, mode: *mode, uid: *uid, gid: *gid }, NOSUID | NODEV | noexec)
        }
        MountKind::Bind { source, create, .. } => {
            if *create && !source.exists() {
                std::fs::create_dir_all(source).context(|| format!("create {}", source.display()))?;
            }
            (bind(source, from.idmap, detached)?, NOSUID | NODEV)
        }
    };
    let mut result = Mount::new(&mount.target, source, attributes | read_only);
    result.fill = matches!(mount.kind, MountKind::Bind { fill: true, .. });
    Ok(result)
}

/// A device is what it is on the host, and belongs to whom it belongs there.
fn device(device: &Device) -> Mount {
    Mount::new(&device.target, MountSource::Bind(device.source.clone()), NOSUID | NOEXEC)
}

/// As root, a host's file belongs to the same number inside; that needs an idmapped mount, which only the
/// supervisor may make. An ordinary user's own files belong to root inside through the id map.
fn bind(
    source: &Path,
    idmap: Option<&OwnedFd>,
    detached: &mut Vec<OwnedFd>,
) -> Result<MountSource, RemoteError> {
    let Some(user_namespace) = idmap else {
        std::fs::metadata(source).context(|| format!("bind {}", source.display()))?;
        return Ok(MountSource::Bind(source.to_owned()));
    };
    let mount = sys::mount::idmapped_tree(source, user_namespace)
        .context(|| format!("bind {} with mapped ids", source.display()))
        .map_err(|error| match source.exists() {
            true => {
                error.or_hint("the file system there, or one mounted below it, must support idmapped mounts")
            }
            false => error,
        })?;
    detached.push(mount);
    Ok(MountSource::Descriptor(detached.len() - 1))
}

/// `VOLUME` of the image where the file mounts nothing: a volume that goes with the container.
fn anonymous_volumes(service: &Service, image: &Image, own: &str) -> Vec<Mount> {
    let mounted = |path: &str| service.mounts.iter().any(|m| m.target.trim_end_matches('/') == path);
    let volumes = image.config.config.volumes.iter().map(|path| path.trim_end_matches('/'));
    volumes
        .filter(|path| path.starts_with('/') && !mounted(path))
        .enumerate()
        .map(|(index, path)| {
            let source = MountSource::Volume { path: format!("{own}/v{index}"), empty: false, subpath: None };
            Mount::new(path, source, NOSUID | NODEV)
        })
        .collect()
}

fn secret_value(source: &SecretSource, values: &BTreeMap<String, String>) -> Result<Vec<u8>, RemoteError> {
    match source {
        SecretSource::File(path) => std::fs::read(path).context(|| format!("read {}", path.display())),
        SecretSource::Content(content) => Ok(content.clone().into_bytes()),
        SecretSource::Environment(name) => {
            values.get(name).map(|v| v.clone().into_bytes()).ok_or_else(|| {
                RemoteError::message(format!("variable `{name}` is not set"))
                    .or_hint("set it in the environment or in `.env`")
            })
        }
    }
}

/// The limits that cgroup v2 is to enforce.
///
/// # Errors
/// When a block device is not there.
pub(crate) fn limits(service: &Service) -> Result<container::cgroup::Limits, RemoteError> {
    let limits = &service.limits;
    let block_io = limits.block_io.as_ref().map(block_io).transpose();
    Ok(container::cgroup::Limits {
        memory: limits.memory,
        memory_reservation: limits.memory_reservation,
        memory_swap: limits.memory_swap,
        cpus: limits.cpus,
        cpu_shares: limits.cpu_shares,
        cpuset: limits.cpuset.clone(),
        pids: limits.pids,
        block_io: block_io.context(|| format!("limit the block devices of service `{}`", service.name))?,
    })
}

/// Devices have paths in the file, and numbers for the kernel.
fn block_io(io: &BlockIo) -> Result<LinuxBlockIo, RemoteError> {
    let number = |path: &str| {
        let meta = std::fs::metadata(path).context(|| format!("look at {path}"))?;
        if !meta.file_type().is_block_device() {
            return Err(RemoteError::message(format!("{path} is no block device")));
        }
        Ok((i64::from(rustix::fs::major(meta.rdev())), i64::from(rustix::fs::minor(meta.rdev()))))
    };
    let described = |error: oci_spec::OciSpecError| RemoteError::message(error.to_string());
    let rates = |rates: &[DeviceRate]| {
        let rate = |limit: &DeviceRate| {
            let (major, minor) = number(&limit.path)?;
            let throttle = LinuxThrottleDeviceBuilder::default().major(major).minor(minor).rate(limit.rate);
            throttle.build().map_err(described)
        };
        rates.iter().map(rate).collect::<Result<Vec<_>, RemoteError>>().map(Some)
    };
    let weight = |device: &DeviceWeight| {
        let (major, minor) = number(&device.path)?;
        let weight = LinuxWeightDeviceBuilder::default().major(major).minor(minor).weight(device.weight);
        weight.build().map_err(described)
    };
    let weights: Result<Vec<_>, RemoteError> = io.weight_device.iter().map(weight).collect();
    let mut block_io = LinuxBlockIo::default();
    block_io
        .set_weight(io.weight)
        .set_weight_device(Some(weights?))
        .set_throttle_read_bps_device(rates(&io.read_bps)?)
        .set_throttle_write_bps_device(rates(&io.write_bps)?)
        .set_throttle_read_iops_device(rates(&io.read_iops)?)
        .set_throttle_write_iops_device(rates(&io.write_iops)?);
    Ok(block_io)
}

/// The name of a service's image, as users write it.
pub(crate) fn image_name(service: &Service) -> String {
    match &service.source {
        Source::Image(name) => name.clone(),
        Source::Build(build) => build.image.clone(),
        Source::Rootfs(path) => path.display().to_string(),
    }
}

/// The number of the signal that asks a service to stop.
///
/// # Errors
/// A name that is no signal.
pub(crate) fn stop_signal(service: &Service, image: &Image) -> Result<i32, RemoteError> {
    let name = service.stop_signal.as_ref().or(image.config.config.stop_signal.as_ref());
    let Some(name) = name else { return Ok(nix::sys::signal::Signal::SIGTERM as i32) };
    container::signal::number(name).ok_or_else(|| RemoteError::message(format!("unknown signal `{name}`")))
}

/// The health check in effect: the file's, else the image's.
pub(crate) fn healthcheck(service: &Service, image: &Image) -> Option<Healthcheck> {
    let images = image.config.config.healthcheck.as_ref();
    match &service.healthcheck {
        None => image_check(images?, image),
        Some(check) => match check.test.as_ref()? {
            // The image's, at the file's times.
            Probe::Image => Some(Healthcheck { test: image_check(images?, image)?.test, ..check.clone() }),
            _ => Some(check.clone()),
        },
    }
}

fn image_check(check: &image::Healthcheck, image: &Image) -> Option<Healthcheck> {
    let shell = || {
        let shell = image.config.config.shell.clone();
        shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()])
    };
    let argv = match check.test.split_first() {
        Some((kind, rest)) if kind == "CMD" => rest.to_vec(),
        Some((kind, rest)) if kind == "CMD-SHELL" => {
            shell().into_iter().chain(rest.iter().cloned()).collect()
        }
        _ => return None,
    };
    let seconds = |nanoseconds: u64, default: f64| {
        if nanoseconds == 0 { default } else { nanoseconds as f64 / 1e9 }
    };
    Some(Healthcheck {
        test: Some(Probe::Exec(argv)),
        interval: seconds(check.interval, 30.0),
        timeout: seconds(check.timeout, 30.0),
        retries: if check.retries == 0 { 3 } else { check.retries as u32 },
        start_period: seconds(check.start_period, 0.0),
        start_interval: seconds(check.start_interval, 5.0),
    })
}

#[cfg(test)]
mod tests;
