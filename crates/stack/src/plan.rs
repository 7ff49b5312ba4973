//! The `Plan`: everything `up` will do, with no choice left.
//!
//! A plan is a pure function of the stack file and of facts read from the host beforehand. It is what
//! `inception-run plan` prints, what the supervisor executes, and what is compared to decide which
//! services a second `up` recreates.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use container::landlock::Landlock;
use image::Reference;
use serde::{Deserialize, Serialize};

mod build;
mod files;
mod limits;
mod port_choice;
mod watch;

pub use build::{BaseDockerfile, Build, BuildContext, BuildNetwork};
pub use files::{Mount, MountKind, Scope, SecretFile, SecretSource, Tmpfs};
pub use limits::{BlockIo, DeviceRate, DeviceWeight, Limits};
pub use network::egress::Policy;
pub use network::plan::{Mode, Protocol, PublishedPort};
pub use port_choice::PortChoice;
pub use watch::{Watch, WatchAction};

/// A whole stack, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Stack name: lower-case letters, digits, `-` and `_`, as compose project names.
    pub name: String,
    /// Absolute directory of the stack file; relative paths were resolved against it.
    pub directory: PathBuf,
    /// Services in start order: a service comes after all that it depends on.
    pub services: Vec<Service>,
    /// Named volumes used by the services.
    pub volumes: Vec<String>,
    /// Networks, links and addresses.
    pub network: network::plan::NetworkPlan,
    /// Which ports are published instead of the file's, as the user chose.
    #[serde(default, skip_serializing_if = "PortChoice::is_none")]
    pub port_choice: PortChoice,
    /// Things the user should know and that are not errors (ignored keys, for example).
    pub warnings: Vec<String>,
}

impl Plan {
    /// The services that a command for `names` (all when none is named) is about: those and what they depend on, unless
    /// that is left alone (`--no-deps`).
    #[must_use]
    pub fn concerned(&self, names: &[String], no_deps: bool) -> Vec<String> {
        match no_deps && !names.is_empty() {
            true => names.to_vec(),
            false => self.with_dependencies(names),
        }
    }

    /// The named services (all when none is named) with everything they depend on.
    #[must_use]
    pub fn with_dependencies(&self, names: &[String]) -> Vec<String> {
        if names.is_empty() {
            return self.services.iter().map(|service| service.name.clone()).collect();
        }
        let mut found: Vec<String> = Vec::new();
        let mut open: Vec<&str> = names.iter().map(String::as_str).collect();
        while let Some(name) = open.pop() {
            let Some(service) = self.services.iter().find(|service| service.name == name) else { continue };
            if !found.iter().any(|known| known == name) {
                found.push(name.to_owned());
                open.extend(service.depends_on.iter().map(|d| d.service.as_str()));
            }
        }
        found
    }

    /// The named services (all when none is named) with those whose builds make the images that they need: the image
    /// that they name, and images that their own builds read from.
    #[must_use]
    pub fn with_image_sources(&self, names: &[String]) -> Vec<String> {
        let mut found = match names {
            [] => self.services.iter().map(|service| service.name.clone()).collect(),
            names => names.to_vec(),
        };
        let mut next = 0;
        while let Some(name) = found.get(next) {
            let service = self.services.iter().find(|service| service.name == *name);
            next += 1;
            let sources: Vec<&str> = match service.map(|service| &service.source) {
                Some(Source::Build(build)) => {
                    build.contexts.values().filter_map(BuildContext::service).collect()
                }
                Some(Source::Image(image)) => self.builder_of(image).into_iter().collect(),
                Some(Source::Rootfs(_)) | None => Vec::new(),
            };
            let fresh: Vec<String> = sources
                .into_iter()
                .filter(|source| !found.iter().any(|known| known == source))
                .map(str::to_owned)
                .collect();
            found.extend(fresh);
        }
        found
    }

    /// The service whose build makes the image `name`.
    #[must_use]
    pub(crate) fn builder_of(&self, name: &str) -> Option<&str> {
        let wanted = Reference::from_str(name).ok()?;
        let makes = |service: &&Service| match &service.source {
            Source::Build(build) => Reference::from_str(&build.image).is_ok_and(|made| made == wanted),
            Source::Image(_) | Source::Rootfs(_) => false,
        };
        self.services.iter().find(makes).map(|service| service.name.as_str())
    }

    /// Whether it has volumes that are no other stack's.
    #[must_use]
    pub fn has_own_volumes(&self) -> bool {
        let mut mounts = self.services.iter().flat_map(|service| &service.mounts);
        mounts.any(|mount| matches!(mount.kind, MountKind::Volume { scope: Scope::Stack, .. }))
    }
}

/// One service. Values that come from the image are `None` here and filled in at start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Service name, also its DNS name.
    pub name: String,
    /// Where its root file system comes from.
    pub source: Source,
    /// `entrypoint`, overriding the image's; `Some(vec![])` clears it.
    pub entrypoint: Option<Vec<String>>,
    /// `command`, overriding the image's.
    pub command: Option<Vec<String>>,
    /// Environment, on top of the image's.
    pub environment: BTreeMap<String, String>,
    /// `working_dir`, overriding the image's.
    pub working_dir: Option<String>,
    /// `user`: `uid`, `name`, `uid:gid` or `name:group`, overriding the image's.
    pub user: Option<String>,
    /// Host name inside.
    pub hostname: String,
    /// Whether our init is PID 1 (`stack.toml` default: true; compose default: false).
    pub init: bool,
    /// How much init logs: 0 to 3 (`init_verbosity`).
    pub init_verbosity: u8,
    /// Volumes, binds and tmpfs mounts, in the order they are mounted.
    pub mounts: Vec<Mount>,
    /// Files below `/run/secrets` (or the target given).
    pub secrets: Vec<SecretFile>,
    /// `container_name`, another name of its only container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    /// Groups besides those of its user (`group_add`): names of the image, or numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_add: Vec<String>,
    /// Services this one waits for.
    pub depends_on: Vec<Dependency>,
    /// Health check, if the file gives one (the image's is used otherwise); one without a test where it has `disable: true`.
    pub healthcheck: Option<Healthcheck>,
    /// What to do when it exits.
    pub restart: RestartPolicy,
    /// Seconds until the first restart, instead of the usual (`deploy.restart_policy.delay`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_delay: Option<f64>,
    /// Commands inside that are run after each start; the service is stopped when one fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post_start: Vec<Hook>,
    /// Commands inside that are run before the stop signal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pre_stop: Vec<Hook>,
    /// `stop_signal`, overriding the image's.
    pub stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL.
    pub stop_grace_period: f64,
    /// Read-only root file system.
    pub read_only: bool,
    /// Capabilities added to the default set (names without `CAP_`, upper case, or `ALL`).
    pub cap_add: Vec<String>,
    /// Capabilities dropped from the default set (or `ALL`).
    pub cap_drop: Vec<String>,
    /// What confines it otherwise (`privileged`, `security_opt`).
    #[serde(default, skip_serializing_if = "Confinement::is_usual")]
    pub confinement: Confinement,
    /// Devices of the host that it can use, besides the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// How likely the kernel ends it when memory is short, 0 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// The files that it can reach, if not all (`landlock`, `x-landlock`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<Landlock>,
    /// Limits for cgroup v2.
    pub limits: Limits,
    /// `ulimits`: resource name as in `getrlimit(2)` without `RLIMIT_`, lower case, to (soft, hard).
    pub ulimits: BTreeMap<String, (u64, u64)>,
    /// `sysctls` of the service's own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// Published ports, ranges expanded.
    pub ports: Vec<PublishedPort>,
    /// Those of them that stand for other ones of the file: from the file's to what is published.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moved_ports: BTreeMap<u16, u16>,
    /// How many containers run it (`replicas`, `deploy.replicas`, `scale`); 0 is none.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub replicas: u16,
    /// Whose network namespace it has (`network_mode`).
    #[serde(default, skip_serializing_if = "NetworkMode::is_own")]
    pub network_mode: NetworkMode,
    /// Whose PID and IPC namespaces it has.
    #[serde(default, skip_serializing_if = "Sharing::is_none")]
    pub sharing: Sharing,
    /// Lines of `/etc/hosts` (`extra_hosts`): name and address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// `domainname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// `search` of `/etc/resolv.conf` (`dns_search`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// `options` of `/etc/resolv.conf` (`dns_opt`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_opt: Vec<String>,
    /// Whether a terminal is allocated.
    pub tty: bool,
    /// Whether standard input stays open.
    pub stdin_open: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What is kept of its output.
    #[serde(default, skip_serializing_if = "Logging::is_usual")]
    pub logging: Logging,
    /// `attach: false`: who follows all services does not see what it writes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unattached: bool,
    /// When its image is looked for in a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// The platform that its image is pulled for, where the file names one: this machine's, and maybe a variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// What is watched while one works on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watch: Vec<Watch>,
    /// SHA-256 over everything above that requires recreation when it changes (hex).
    pub config_hash: String,
}

const fn one() -> u16 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde calls.
const fn is_one(replicas: &u16) -> bool {
    *replicas == 1
}

/// Whose network namespace a service has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// One of its own, on the networks that the file names, or on none.
    #[default]
    Own,
    /// The host's.
    Host,
    /// That of another service's first replica, which is started before it.
    Service(String),
}

impl NetworkMode {
    /// Whether it is the service's own.
    #[must_use]
    pub fn is_own(&self) -> bool {
        *self == Self::Own
    }

    /// The container whose network namespace `container` is in; `None` is the host's.
    #[must_use]
    pub fn owner<'a>(&'a self, container: &'a str) -> Option<&'a str> {
        match self {
            Self::Own => Some(container),
            Self::Service(owner) => Some(owner),
            Self::Host => None,
        }
    }
}

/// Whose PID and IPC namespaces a service has, if not its own: those of these services' first replicas, which are started
/// before it and which it is restarted with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// `pid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<String>,
    /// `ipc`, with `/dev/shm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipc: Option<String>,
    /// `ipc: none`: there is no `/dev/shm`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_shm: bool,
}

impl Sharing {
    /// Whether all is as usual.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The services whose namespaces it has.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.pid.iter().chain(&self.ipc).map(String::as_str)
    }
}

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An image of the local store.
    Image(String),
    /// An image that is built from a Dockerfile when it is missing.
    Build(Box<Build>),
    /// A rootfs tarball or a directory, used as a single read-only layer.
    Rootfs(PathBuf),
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path on the host, or that of a directory of devices.
    pub source: PathBuf,
    /// Its path inside.
    pub target: String,
}

/// What confines a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// All capabilities of the stack's user namespace, no filter of system calls, nothing masked or read-only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// Programs may gain what their files grant (`no-new-privileges:false`): set-id bits work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_privileges: bool,
    /// Nothing of `/proc` and `/sys` is masked or read-only (`systempaths=unconfined`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmasked: bool,
    /// Which system calls it may make.
    #[serde(default)]
    pub seccomp: Seccomp,
}

impl Confinement {
    /// Whether nothing was said about it.
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Which system calls a service may make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// Those of the default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// Those of a profile, in the notation of Docker's or of the runtime specification. An absolute path.
    Profile(PathBuf),
}

/// A command that is run inside at a turn of the service's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Program and arguments.
    pub command: Vec<String>,
    /// As whom, if not as the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// With all capabilities.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// Where, if not where the service begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Variables on top of the service's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

/// What is kept of a service's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logging {
    /// Bytes of one file.
    pub max_size: u64,
    /// How many files, the one that is written to among them; 0 keeps nothing.
    pub max_files: u32,
    /// How many bytes a second are taken from it.
    pub rate: u64,
    /// What becomes of more than that.
    pub excess: Excess,
}

/// What becomes of output that comes faster than it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Excess {
    /// It stays where it is, so that who writes it waits in the end.
    Waits,
    /// It is left out, and counted.
    Dropped,
}

impl Default for Logging {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 2, rate: 16 << 20, excess: Excess::Waits }
    }
}

impl Logging {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// When an image is looked for in a registry (`pull_policy`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// At every `up`.
    Always,
    /// Never.
    Never,
    /// When it is not in the store.
    Missing,
    /// It is built instead, each time.
    Build,
    /// When it was last looked for so many seconds ago.
    Every(f64),
}

/// One entry of `depends_on`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dependency {
    /// The service waited for.
    pub service: String,
    /// Until when.
    pub condition: Condition,
    /// Its failure is no obstacle.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
    /// A command that restarts or replaces it restarts this one too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart: bool,
}

/// What a dependant waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Its process was started.
    Started,
    /// Its health check passed.
    Healthy,
    /// It exited with status 0.
    Completed,
}

/// A health check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// What is tried; `None` disables the image's check.
    pub test: Option<Probe>,
    /// Seconds between probes (30 by default).
    pub interval: f64,
    /// Seconds until a probe counts as failed (30 by default).
    pub timeout: f64,
    /// Consecutive failures until unhealthy (3 by default).
    pub retries: u32,
    /// Seconds after the start in which failures do not count (0 by default).
    pub start_period: f64,
    /// Seconds between probes during the start period (5 by default).
    pub start_interval: f64,
}

/// What a health check tries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// What the image's own check tries.
    Image,
    /// A command inside the service; exit status 0 is healthy.
    Exec(Vec<String>),
    /// A TCP connection to this port on the service's own loopback.
    Tcp(u16),
    /// An HTTP GET on the service's own loopback; 200 to 399 is healthy.
    Http {
        /// Port.
        port: u16,
        /// Path with a leading slash.
        path: String,
    },
}

/// What happens when a service exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Nothing.
    No,
    /// Start again after a failure, at most this often (`None`: without end).
    OnFailure(Option<u32>),
    /// Start again always.
    Always,
    /// Start again unless the user stopped it.
    UnlessStopped,
}
