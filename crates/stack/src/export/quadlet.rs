//! Units for Quadlet, the generator of Podman: a `.container` for each service, a `.network` and a `.volume` each, and
//! where that is asked for units that make the images ([`image`]).
//!
//! Keys are those of Podman 4.4, the first with Quadlet; what came later is said with `PodmanArgs=`, which all have.
//! Secrets and configs are secrets of Podman, which `secrets.sh` makes.

mod image;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use network::plan::Protocol;

use super::told::Told;
use super::unit::{Unit, literal, word};
use super::words::Side;
use super::{ALL_PORTS, Export, ExportedFile, Stack, is_password};
use crate::diagnostic::{Fault, FileError};
use crate::file::network::NetworkUse;
use crate::plan::{
    Condition, MountKind, NetworkMode, Probe, PullPolicy, RestartPolicy, Scope, Seccomp, Service, Source,
    Tmpfs,
};
use crate::spec;
use crate::words::quote;

/// Longest start of a container whose image is fetched with it, in seconds, in the place of systemd's 90.
const FETCH: u32 = 900;

/// What the units are to do.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Podman makes the images: units build them, and fetch those that are fetched at every start. Podman 5.2 can.
    pub build: bool,
}

struct Writer<'a> {
    stack: &'a Stack,
    options: &'a Options,
    told: Told<'a>,
    /// Secrets of Podman that `secrets.sh` makes.
    secrets: BTreeMap<String, Vec<u8>>,
}

/// Writes the units of a stack.
///
/// # Errors
/// What cannot be said at all, and with `--strict` what there is to warn of.
pub fn quadlet(stack: &Stack, options: &Options) -> Result<Export, FileError> {
    let told = Told::new(&stack.root, Side::Quadlet);
    let mut writer = Writer { stack, options, told, secrets: BTreeMap::new() };
    let mut files = writer.networks();
    files.extend(stack.plan.volumes.iter().map(|name| {
        let mut unit = Unit::default();
        unit.section("Volume");
        ExportedFile::new(format!("{}.volume", writer.name(name)), unit.text())
    }));
    for service in &stack.plan.services {
        files.extend(writer.image(service)?);
        let unit = writer.container(service)?;
        files.push(ExportedFile::new(format!("{}.container", writer.name(&service.name)), unit.text()));
    }
    if !writer.secrets.is_empty() {
        files.push(ExportedFile {
            name: "secrets.sh".to_owned(),
            text: script(&writer.secrets),
            private: true,
        });
    }
    let mut notes = Vec::new();
    notes.extend(about_images(stack, options));
    if !writer.secrets.is_empty() {
        notes.push("secrets for Podman: sh secrets.sh".to_owned());
    }
    notes.push(
        "units belong into ~/.config/containers/systemd (root's into /etc/containers/systemd); then \
         `systemctl --user daemon-reload`, and `loginctl enable-linger` to have them start with the machine"
            .to_owned(),
    );
    let warnings = writer.told.settle(stack.strict)?;
    Ok(Export { files, warnings, notes })
}

/// How Podman gets the images that are built.
fn about_images(stack: &Stack, options: &Options) -> Option<String> {
    let built = |service: &&Service| matches!(service.source, Source::Build(_));
    let built: Vec<&Service> = stack.plan.services.iter().filter(built).collect();
    let first = built.first()?;
    if options.build {
        let unit = format!("{}-{}-build", stack.plan.name, first.name);
        let on_base = |service: &&Service| match &service.source {
            Source::Build(build) if build.dockerfiles.len() > 1 => {
                Some(build.dockerfiles.first()?.base.clone())
            }
            _ => None,
        };
        let base = built.iter().find_map(on_base);
        let base = base.map(|base| format!(", on the base {base} (`--base` names another one)"));
        return Some(format!(
            "images are built with the first start of who needs them, by Podman 5.2 or newer{}; `systemctl --user restart \
             {unit}` builds one anew",
            base.unwrap_or_default()
        ));
    }
    let images: Vec<String> = built.into_iter().map(spec::image_name).collect();
    Some(format!("images for Podman: inception-run save {} | podman load", images.join(" ")))
}

impl Writer<'_> {
    fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.stack.plan.name)
    }

    fn networks(&self) -> Vec<ExportedFile> {
        let networks = self.stack.plan.network.networks.iter();
        let file = |network: &network::plan::Network| {
            let mut unit = Unit::default();
            unit.section("Network");
            let said = self.stack.file.networks.iter().find(|file| file.key.name == network.name);
            if said.is_some_and(|file| file.subnet.is_some()) {
                unit.line("Subnet", format!("{}/{}", network.subnet, network.prefix));
                unit.line("Gateway", network.gateway);
            }
            if network.internal {
                unit.line("Internal", "true");
            }
            if network.v6.is_some() {
                unit.line("IPv6", "true");
            }
            if let Some(mtu) = said.and_then(|file| file.mtu.as_ref()) {
                unit.line("Options", format!("mtu={}", mtu.value));
            }
            ExportedFile::new(format!("{}.network", self.name(&network.name)), unit.text())
        };
        networks.map(file).collect()
    }

    fn container(&mut self, service: &Service) -> Result<Unit, FileError> {
        if matches!(service.source, Source::Rootfs(_)) {
            let place = self.told.place("services", &service.name);
            let message = format!("service `{}` has a root file system and no image", service.name);
            let hint = "make an image of it with `inception-run import`, and name that with `image`";
            return Err(Fault::new(&place, message).hint(hint).into());
        }
        let mut unit = Unit::default();
        unit.section("Unit");
        unit.line("Description", literal(&format!("{} of the stack {}", service.name, self.stack.plan.name)));
        self.dependencies(service, &mut unit);
        unit.section("Container");
        unit.line("ContainerName", self.name(&service.name));
        unit.line("Image", self.maker(service).unwrap_or_else(|| spec::image_name(service)));
        self.program(service, &mut unit);
        self.network(service, &mut unit);
        self.environment(service, &mut unit);
        self.mounts(service, &mut unit);
        self.health(service, &mut unit);
        self.confinement(service, &mut unit);
        limits(service, &mut unit);
        self.life(service, &mut unit);
        if service.replicas > 0 {
            unit.section("Install");
            unit.line("WantedBy", "default.target");
        }
        if let Some(key) = unit.broken_line() {
            let place = self.told.place("services", &service.name);
            let message = format!(
                "service `{}` has a value with a line end or another control character, which `{key}=` of a unit cannot have",
                service.name
            );
            return Err(Fault::new(&place, message).into());
        }
        Ok(unit)
    }

    fn dependencies(&mut self, service: &Service, unit: &mut Unit) {
        let mut after = Vec::new();
        for dependency in &service.depends_on {
            let other = format!("{}.service", self.name(&dependency.service));
            unit.line(if dependency.optional { "Wants" } else { "Requires" }, &other);
            after.push(other);
            if dependency.condition == Condition::Healthy {
                let (name, other) = (&service.name, &dependency.service);
                let message = format!(
                    "Podman has no word for the health that `{name}` waits for: it starts when `{other}` has started, and must bear that `{other}` is not ready yet, or end, and is started again"
                );
                let key = format!("depends_on.{other}");
                self.told.service(name, &[&key, "depends_on"], message);
            }
        }
        let of_network = match &service.network_mode {
            NetworkMode::Service(owner) => Some(owner.as_str()),
            NetworkMode::Own | NetworkMode::Host => None,
        };
        for owner in of_network.into_iter().chain(service.sharing.owners()) {
            let owner = format!("{}.service", self.name(owner));
            if !after.contains(&owner) {
                unit.line("Requires", &owner);
                after.push(owner);
            }
        }
        if !after.is_empty() {
            unit.line("After", after.join(" "));
        }
    }

    fn program(&self, service: &Service, unit: &mut Unit) {
        let (entrypoint, command) = match (&service.entrypoint, &service.command) {
            (Some(entrypoint), command) if entrypoint.is_empty() => (Some("[]".to_owned()), command.as_ref()),
            (Some(entrypoint), command) => (serde_json::to_string(entrypoint).ok(), command.as_ref()),
            (None, command) => (None, command.as_ref()),
        };
        if let Some(entrypoint) = entrypoint {
            unit.option("--entrypoint", &entrypoint);
        }
        if let Some(command) = command.filter(|command| !command.is_empty()) {
            unit.line("Exec", command.iter().map(|part| word(part)).collect::<Vec<_>>().join(" "));
        }
        unit.option("--hostname", &service.hostname);
        if service.init {
            unit.line("RunInit", "true");
        }
        for (condition, option) in [(service.tty, "--tty"), (service.stdin_open, "--interactive")] {
            if condition {
                unit.flag(option);
            }
        }
        if let Some(directory) = &service.working_dir {
            unit.option("--workdir", directory);
        }
        if let Some(platform) = &service.platform {
            unit.option("--platform", platform);
        }
        match service.pull_policy {
            // Whoever makes it sees to that.
            _ if self.maker(service).is_some() => {}
            Some(PullPolicy::Always | PullPolicy::Every(_)) => unit.option("--pull", "always"),
            Some(PullPolicy::Never) => unit.option("--pull", "never"),
            Some(PullPolicy::Missing | PullPolicy::Build) | None => {}
        }
        for (name, value) in &service.labels {
            unit.line("Label", word(&format!("{name}={value}")));
        }
        for (name, value) in &service.annotations {
            unit.line("Annotation", word(&format!("{name}={value}")));
        }
    }

    fn network(&mut self, service: &Service, unit: &mut Unit) {
        let stack = self.stack;
        let endpoint = stack.plan.network.endpoints.iter().find(|endpoint| endpoint.group == service.name);
        match &service.network_mode {
            NetworkMode::Host => unit.line("Network", "host"),
            NetworkMode::Service(owner) => unit.line("Network", format!("container:{}", self.name(owner))),
            NetworkMode::Own if stack.networks(&service.name).is_empty() => unit.line("Network", "none"),
            NetworkMode::Own => {}
        }
        for (option, owner) in [("--pid", &service.sharing.pid), ("--ipc", &service.sharing.ipc)] {
            if let Some(owner) = owner {
                unit.option(option, &format!("container:{}", self.name(owner)));
            }
        }
        if service.sharing.no_shm && service.sharing.ipc.is_none() {
            unit.option("--ipc", "none");
        }
        let file = stack.file.services.iter().find(|file| file.key.name == service.name);
        let uses: &[NetworkUse] = file.and_then(|file| file.network.networks.as_deref()).unwrap_or_default();
        for interface in endpoint.into_iter().flat_map(|endpoint| &endpoint.interfaces) {
            let mut options: Vec<String> =
                interface.aliases.iter().map(|alias| format!("alias={alias}")).collect();
            if interface.fixed {
                options.push(format!("ip={}", interface.address));
            }
            let said = uses.iter().find(|said| said.network.value == interface.network);
            if let Some(address) = said.and_then(|said| said.address6.as_ref()) {
                options.push(format!("ip={}", address.value));
            }
            if said.is_some_and(|said| said.mac.is_some()) {
                let mac: Vec<String> = interface.mac.iter().map(|byte| format!("{byte:02x}")).collect();
                options.push(format!("mac={}", mac.join(":")));
            }
            unit.line("Network", format!("{}.network:{}", self.name(&interface.network), options.join(",")));
        }
        for address in endpoint.into_iter().flat_map(|endpoint| &endpoint.resolvers) {
            unit.option("--dns", &address.to_string());
        }
        for domain in &service.dns_search {
            unit.option("--dns-search", domain);
        }
        for option in &service.dns_opt {
            unit.option("--dns-option", option);
        }
        for host in file.into_iter().flat_map(|file| &file.network.extra_hosts) {
            let address =
                host.address.map_or_else(|| "host-gateway".to_owned(), |address| address.to_string());
            unit.option("--add-host", &format!("{}:{address}", host.name));
        }
        self.ports(service, unit);
    }

    fn ports(&mut self, service: &Service, unit: &mut Unit) {
        for port in &service.ports {
            let address = match port.host_ip {
                address if address.is_unspecified() => String::new(),
                IpAddr::V4(address) => format!("{address}:"),
                IpAddr::V6(address) => format!("[{address}]:"),
            };
            let outer = if port.host_port == 0 { String::new() } else { port.host_port.to_string() };
            let protocol = if port.is_udp() { "/udp" } else { "" };
            unit.line("PublishPort", format!("{address}{outer}:{}{protocol}", port.container_port));
            if let Protocol::Ftp { passive: (first, last), .. } = port.protocol {
                unit.line("PublishPort", format!("{address}{first}-{last}:{first}-{last}"));
                let message = format!(
                    "Podman has no word for `protocol: ftp` of service `{}`: nobody there replaces the addresses of passive mode, so the server itself must announce one that clients reach, and use the ports that are published",
                    service.name
                );
                self.told.service(&service.name, &["ports"], message);
            }
        }
    }

    fn environment(&mut self, service: &Service, unit: &mut Unit) {
        for (name, value) in &service.environment {
            if is_password(name) && !value.is_empty() {
                let secret = format!("{}-{name}", self.name(&service.name));
                unit.option("--secret", &format!("{secret},type=env,target={name}"));
                self.secrets.insert(secret, value.as_bytes().to_vec());
            } else {
                unit.line("Environment", word(&format!("{name}={value}")));
            }
        }
        let stack = self.stack;
        for (name, file) in stack.secrets(service).into_iter().chain(stack.configs(service)) {
            let secret = self.name(name);
            let (target, uid, gid, mode) = (&file.target, file.uid, file.gid, file.mode);
            unit.option(
                "--secret",
                &format!("{secret},type=mount,target={target},uid={uid},gid={gid},mode=0{mode:o}"),
            );
            self.secrets.insert(secret, stack.value(&file.source).unwrap_or_default().to_vec());
        }
    }

    fn mounts(&mut self, service: &Service, unit: &mut Unit) {
        for mount in &service.mounts {
            let target = &mount.target;
            let mut options = Vec::new();
            if mount.read_only {
                options.push("ro");
            }
            let source = match &mount.kind {
                MountKind::Volume { name, scope, nocopy, subpath } => {
                    if *nocopy {
                        options.push("nocopy");
                    }
                    if subpath.is_some() {
                        let message = format!(
                            "Podman 4.4 has no word for `subpath` of a volume: all of `{name}` is at {target}"
                        );
                        self.told.service(&service.name, &["volumes.volume.subpath", "volumes"], message);
                    }
                    match scope {
                        Scope::Stack => format!("{}.volume", self.name(name)),
                        Scope::Named | Scope::External => name.clone(),
                    }
                }
                MountKind::Bind { source, .. } => source.display().to_string(),
                MountKind::Tmpfs(tmpfs) => {
                    self.tmpfs(service, target, tmpfs, mount.read_only, unit);
                    continue;
                }
            };
            let options = if options.is_empty() { String::new() } else { format!(":{}", options.join(",")) };
            unit.line("Volume", literal(&format!("{source}:{target}{options}")));
        }
        if service.shm_size != 64 << 20 {
            unit.option("--shm-size", &format!("{}b", service.shm_size));
        }
        for device in &service.devices {
            unit.line("AddDevice", literal(&format!("{}:{}", device.source.display(), device.target)));
        }
    }

    fn tmpfs(&mut self, service: &Service, target: &str, tmpfs: &Tmpfs, read_only: bool, unit: &mut Unit) {
        let mut options = format!("{target}:mode={:04o}", tmpfs.mode);
        if let Some(size) = tmpfs.size {
            // Writing to a string does not fail.
            write!(options, ",size={size}").ok();
        }
        if tmpfs.exec {
            options.push_str(",exec");
        }
        if read_only {
            options.push_str(",ro");
        }
        if (tmpfs.uid, tmpfs.gid) != (0, 0) {
            let message = format!(
                "Podman has no word for the owner {}:{} of the tmpfs at {target}: it is root's",
                tmpfs.uid, tmpfs.gid
            );
            self.told.service(&service.name, &["tmpfs", "volumes"], message);
        }
        unit.option("--tmpfs", &options);
    }

    fn health(&mut self, service: &Service, unit: &mut Unit) {
        let Some(check) = &service.healthcheck else { return };
        match &check.test {
            None => return unit.flag("--no-healthcheck"),
            Some(Probe::Exec(command)) => {
                // A list has no text that is not JSON.
                unit.option("--health-cmd", &serde_json::to_string(command).unwrap_or_default());
            }
            Some(Probe::Image) => {}
            Some(Probe::Tcp(_) | Probe::Http { .. }) => {
                let message = format!(
                    "Podman has no word for a health check by `HTTP` or `TCP`: service `{}` has its image's own, if that has one",
                    service.name
                );
                return self.told.service(&service.name, &["healthcheck.test", "healthcheck"], message);
            }
        }
        unit.option("--health-interval", &format!("{}s", check.interval));
        unit.option("--health-timeout", &format!("{}s", check.timeout));
        unit.option("--health-retries", &check.retries.to_string());
        unit.option("--health-start-period", &format!("{}s", check.start_period));
    }

    fn confinement(&mut self, service: &Service, unit: &mut Unit) {
        if let Some(user) = &service.user {
            unit.option("--user", user);
        }
        for group in &service.group_add {
            unit.option("--group-add", group);
        }
        for name in &service.cap_drop {
            unit.line("DropCapability", capability(name));
        }
        for name in &service.cap_add {
            unit.line("AddCapability", capability(name));
        }
        let confinement = &service.confinement;
        if confinement.privileged {
            unit.flag("--privileged");
        }
        if !confinement.new_privileges && !confinement.privileged {
            unit.line("NoNewPrivileges", "true");
        }
        if confinement.unmasked {
            unit.option("--security-opt", "unmask=ALL");
        }
        match &confinement.seccomp {
            Seccomp::Default => {}
            Seccomp::Unconfined => unit.line("SeccompProfile", "unconfined"),
            Seccomp::Profile(path) => unit.line("SeccompProfile", literal(&path.display().to_string())),
        }
        if service.read_only {
            unit.line("ReadOnly", "true");
            unit.option("--read-only-tmpfs", "false");
        }
        let usual = service.network_mode.is_own() && !service.sysctls.contains_key(ALL_PORTS.0);
        let said = service.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in usual.then_some(ALL_PORTS).into_iter().chain(said) {
            unit.option("--sysctl", &format!("{name}={value}"));
        }
    }

    /// Whether its start may have to fetch its image.
    fn fetches(&self, service: &Service) -> bool {
        let from_registry = matches!(service.source, Source::Image(_)) && self.maker(service).is_none();
        from_registry && service.pull_policy != Some(PullPolicy::Never)
    }

    /// Restarts and the end.
    fn life(&mut self, service: &Service, unit: &mut Unit) {
        if let Some(signal) = &service.stop_signal {
            unit.option("--stop-signal", signal);
        }
        let grace = service.stop_grace_period.ceil();
        unit.option("--stop-timeout", &format!("{grace}"));
        if self.told.has(&service.name, "logging") {
            match service.logging.max_files {
                0 => unit.option("--log-driver", "none"),
                _ => {
                    unit.option("--log-driver", "k8s-file");
                    unit.option("--log-opt", &format!("max-size={}b", service.logging.max_size));
                }
            }
        }
        if let RestartPolicy::OnFailure(Some(limit)) = service.restart {
            unit.section("Unit");
            unit.line("StartLimitBurst", limit);
        }
        unit.section("Service");
        let awaited =
            |d: &crate::plan::Dependency| d.service == service.name && d.condition == Condition::Completed;
        if self.stack.plan.services.iter().flat_map(|other| &other.depends_on).any(awaited) {
            unit.line("Type", "oneshot");
            unit.line("RemainAfterExit", "yes");
        } else if self.fetches(service) {
            unit.line("TimeoutStartSec", FETCH);
        }
        match service.restart {
            RestartPolicy::No => {}
            RestartPolicy::OnFailure(_) => unit.line("Restart", "on-failure"),
            RestartPolicy::Always | RestartPolicy::UnlessStopped => unit.line("Restart", "always"),
        }
        if let Some(delay) = service.restart_delay {
            unit.line("RestartSec", delay);
        }
        // Podman needs a moment after the program's end.
        unit.line("TimeoutStopSec", grace + 10.0);
        for (key, hooks) in [("ExecStartPost", &service.post_start), ("ExecStop", &service.pre_stop)] {
            for hook in hooks {
                let mut words = vec!["podman".to_owned(), "exec".to_owned()];
                words.extend(hook.user.iter().map(|user| format!("--user={user}")));
                words.extend(hook.privileged.then(|| "--privileged".to_owned()));
                words.extend(hook.working_dir.iter().map(|directory| format!("--workdir={directory}")));
                words.extend(hook.environment.iter().map(|(name, value)| format!("--env={name}={value}")));
                words.push(self.name(&service.name));
                words.extend(hook.command.iter().cloned());
                unit.line(key, words.iter().map(|part| word(part)).collect::<Vec<_>>().join(" "));
            }
        }
    }
}

/// `ALL` has no prefix.
fn capability(name: &str) -> String {
    if name == "ALL" { "all".to_owned() } else { format!("CAP_{name}") }
}

fn limits(service: &Service, unit: &mut Unit) {
    let limits = &service.limits;
    let numbers = [
        ("--memory", limits.memory.map(|bytes| format!("{bytes}b"))),
        ("--memory-reservation", limits.memory_reservation.map(|bytes| format!("{bytes}b"))),
        (
            "--memory-swap",
            limits.memory_swap.map(|bytes| if bytes < 0 { "-1".to_owned() } else { format!("{bytes}b") }),
        ),
        ("--cpus", limits.cpus.map(|cpus| cpus.to_string())),
        ("--cpu-shares", limits.cpu_shares.map(|shares| shares.to_string())),
        ("--cpuset-cpus", limits.cpuset.clone()),
        ("--pids-limit", limits.pids.map(|pids| pids.to_string())),
        ("--oom-score-adj", service.oom_score_adj.map(|score| score.to_string())),
    ];
    for (option, value) in numbers {
        if let Some(value) = value {
            unit.option(option, &value);
        }
    }
    for (name, (soft, hard)) in &service.ulimits {
        unit.option("--ulimit", &format!("{name}={}:{}", bound(*soft), bound(*hard)));
    }
}

/// One end of a `ulimit`.
fn bound(limit: u64) -> String {
    if limit == u64::MAX { "-1".to_owned() } else { limit.to_string() }
}

/// A script that makes secrets of Podman, or makes them anew.
fn script(secrets: &BTreeMap<String, Vec<u8>>) -> String {
    use base64::Engine;
    let mut text =
        "#!/bin/sh\n# Makes the secrets that the units name. Whoever reads this file knows them.\nset -eu\n"
            .to_owned();
    for (name, value) in secrets {
        // A variable of the file may be called anything.
        let (name, value) = (quote(name), base64::engine::general_purpose::STANDARD.encode(value));
        // Writing to a string does not fail.
        writeln!(text, "podman secret rm {name} >/dev/null 2>&1 || true\necho {value} | base64 -d | podman secret create {name} - >/dev/null").ok();
    }
    text
}
