//! From `config.json` to data with no choice left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use init::entry::Hook;
use init::process::{Capabilities, Filter, Label, Process, User};
use oci_spec::runtime::{LinuxCapabilities, LinuxPersonalityDomain, LinuxSeccomp, Process as Config, Spec};

use super::console::Terminal;
use super::devices::{self, Device};
use super::error::Error;
use super::mounts::{self, Mount};
use super::namespaces::Namespaces;
use super::scheduling::{self, Scheduling};
use super::{config, hooks, netdev};
use crate::cgroup::Resources;
use crate::{capability, seccomp};

/// What a mask is when nobody says.
const UMASK: u32 = 0o022;

/// The annotation by which Podman's `--group-add keep-groups` asks for the caller's supplementary groups, which an
/// ordinary user's container cannot name because they have no number in its user namespace.
const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// A container that can be made.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) oci_version: String,
    pub(super) annotations: BTreeMap<String, String>,
    /// As `config.json` has it, below the bundle.
    pub(super) rootfs: PathBuf,
    pub(super) read_only: bool,
    /// Propagation type of the root, and whether it holds for all below.
    pub(super) propagation: Option<(u64, bool)>,
    pub(super) namespaces: Namespaces,
    pub(super) hostname: Option<String>,
    pub(super) domainname: Option<String>,
    pub(super) mounts: Vec<Mount>,
    pub(super) devices: Vec<Device>,
    /// SELinux context of new file systems.
    pub(super) mount_label: Option<String>,
    pub(super) masked_paths: Vec<String>,
    pub(super) readonly_paths: Vec<String>,
    /// Dotted names and values.
    pub(super) sysctls: Vec<(String, String)>,
    /// Name in the runtime's network namespace, and in the container's.
    pub(super) net_devices: Vec<(String, String)>,
    pub(super) cgroups_path: Option<String>,
    pub(super) resources: Resources,
    pub(super) program: Option<Program>,
    pub(super) hooks: Hooks,
}

/// The program of a container, or one that enters it.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) process: Process,
    pub(super) filters: Vec<Filter>,
    pub(super) listener: Option<Listener>,
    pub(super) scheduling: Scheduling,
    pub(super) terminal: Option<Terminal>,
    /// CPUs while it enters and afterwards, for `exec`.
    pub(super) affinity: [Option<Vec<usize>>; 2],
}

/// Who is asked about system calls.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Listener {
    /// A Unix socket.
    pub(super) path: PathBuf,
    /// What it is told.
    pub(super) metadata: Option<String>,
}

/// Hooks by when they run.
#[derive(Debug, Clone, Default)]
pub(super) struct Hooks {
    pub(super) prestart: Vec<Hook>,
    pub(super) create_runtime: Vec<Hook>,
    pub(super) create_container: Vec<Hook>,
    pub(super) start_container: Vec<Hook>,
    pub(super) poststart: Vec<Hook>,
    pub(super) poststop: Vec<Hook>,
}

/// Makes all choices. Nothing on this host is looked at or changed.
///
/// # Errors
/// [`Error::Invalid`] and [`Error::Unsupported`] with the field.
pub fn resolve(spec: &Spec, bundle: &Path) -> Result<Plan, Error> {
    let root = spec.root().as_ref().ok_or_else(|| Error::invalid("root", "is missing"))?;
    let linux = spec.linux().as_ref();
    let mounts = spec.mounts().iter().flatten().enumerate();
    let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let words =
        |list: Option<&Option<Vec<String>>>| list.and_then(Option::as_ref).cloned().unwrap_or_default();
    let mut sysctls: Vec<(String, String)> = linux
        .and_then(|linux| linux.sysctl().as_ref())
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    sysctls.sort();
    let mut net_devices: Vec<(String, String)> = linux
        .and_then(|linux| linux.net_devices().as_ref())
        .into_iter()
        .flatten()
        .map(|(name, device)| (name.clone(), device.name().clone().unwrap_or_else(|| name.clone())))
        .collect();
    net_devices.sort();
    netdev::check(&net_devices)?;
    let cgroups_path = linux.and_then(|linux| linux.cgroups_path().as_ref()).map(|path| {
        path.to_str().map(str::to_owned).ok_or_else(|| Error::invalid("linux.cgroupsPath", "is not UTF-8"))
    });
    let propagation = linux.and_then(|linux| named(linux.rootfs_propagation())).map(|word| {
        mounts::propagation_of(&word).ok_or_else(|| {
            Error::invalid("linux.rootfsPropagation", format!("`{word}` is no propagation type"))
        })
    });
    let mount_label = linux.and_then(|linux| named(linux.mount_label()));
    Ok(Plan {
        oci_version: spec.version().clone(),
        annotations: spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        rootfs: bundle.join(root.path()),
        read_only: root.readonly().unwrap_or(false),
        propagation: propagation.transpose()?,
        namespaces: Namespaces::resolve(spec)?,
        hostname: named(spec.hostname()),
        domainname: named(spec.domainname()),
        mounts: mounts
            .map(|(index, mount)| Mount::resolve(index, mount, bundle))
            .map(|mount| mount.map(|mount| mount.labelled(mount_label.as_deref())))
            .collect::<Result<_, _>>()?,
        devices: devices::resolve(linux.and_then(|l| l.devices().as_deref()).unwrap_or_default())?,
        mount_label,
        masked_paths: words(linux.map(|linux| linux.masked_paths())),
        readonly_paths: words(linux.map(|linux| linux.readonly_paths())),
        sysctls,
        net_devices,
        cgroups_path: cgroups_path.transpose()?,
        resources: Resources::for_container(linux.and_then(|linux| linux.resources().as_ref()))?,
        program: spec.process().as_ref().map(|process| Program::resolve(process, spec)).transpose()?,
        hooks: Hooks::resolve(spec),
    })
}

impl Plan {
    /// Whether the container's `/dev` is what it is elsewhere, so that nothing is made in it.
    pub(super) fn foreign_dev(&self) -> bool {
        let dev = |mount: &&Mount| mount.target.trim_end_matches('/') == "/dev";
        self.mounts.iter().filter(dev).any(|mount| matches!(mount.source, mounts::Source::Bind { .. }))
    }
}

impl Program {
    /// The program that `process` describes, in a container of `spec`.
    pub(super) fn resolve(process: &Config, spec: &Spec) -> Result<Self, Error> {
        let linux = spec.linux().as_ref();
        let mut program = Self::inside(process)?;
        if spec
            .annotations()
            .as_ref()
            .is_some_and(|all| all.get(KEEP_GROUPS).is_some_and(|value| value != "0"))
            && let User::Ids { groups, .. } = &mut program.process.user
        {
            *groups = None;
        }
        program.scheduling.memory = linux
            .and_then(|linux| linux.memory_policy().as_ref())
            .map(scheduling::memory_policy)
            .transpose()?;
        program.process.personality = linux
            .and_then(|linux| linux.personality().as_ref())
            .map(|personality| {
                if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
                    return Err(Error::unsupported("linux.personality.flags", "no flag is defined"));
                }
                Ok(match personality.domain() {
                    LinuxPersonalityDomain::PerLinux => 0,
                    LinuxPersonalityDomain::PerLinux32 => 8,
                })
            })
            .transpose()?;
        if let Some(profile) = linux.and_then(|linux| linux.seccomp().as_ref()) {
            program.filter(profile)?;
        }
        Ok(program)
    }

    /// Puts the program behind a filter.
    pub(super) fn filter(&mut self, profile: &LinuxSeccomp) -> Result<(), Error> {
        let filter =
            seccomp::compile(profile).map_err(|error| Error::invalid("linux.seccomp", error.to_string()))?;
        self.listener = filter
            .listener_path
            .filter(|_| filter.notify)
            .map(|path| Listener { path, metadata: filter.listener_metadata });
        self.filters = vec![Filter { program: filter.program, flags: filter.flags }];
        Ok(())
    }

    /// No program at all.
    pub(super) fn none() -> Self {
        Self {
            process: Process::default(),
            filters: Vec::new(),
            listener: None,
            scheduling: Scheduling::default(),
            terminal: None,
            affinity: [None, None],
        }
    }

    /// What `process` says by itself.
    pub(super) fn inside(process: &Config) -> Result<Self, Error> {
        config::check_process(process)?;
        let user = process.user();
        let label = match (process.apparmor_profile(), process.selinux_label()) {
            (Some(profile), _) if !profile.is_empty() => Some(Label::AppArmor(profile.clone())),
            (_, Some(context)) if !context.is_empty() => Some(Label::SeLinux(context.clone())),
            _ => None,
        };
        let cwd = process.cwd().to_str().ok_or_else(|| Error::invalid("process.cwd", "is not UTF-8"))?;
        let env = process.env().iter().flatten().map(|variable| {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            (name.to_owned(), value.to_owned())
        });
        let cpus = |name: &str, list: &Option<String>| {
            list.as_deref()
                .filter(|list| !list.is_empty())
                .map(|list| scheduling::list(&format!("process.execCPUAffinity.{name}"), list))
                .transpose()
        };
        let affinity = match process.exec_cpu_affinity() {
            Some(cpu) => [cpus("initial", cpu.initial())?, cpus("final", cpu.cpu_affinity_final())?],
            None => [None, None],
        };
        Ok(Self {
            process: Process {
                groups: Vec::new(),
                argv: process.args().clone().unwrap_or_default(),
                env: env.collect(),
                cwd: cwd.to_owned(),
                user: User::Ids {
                    uid: user.uid(),
                    gid: user.gid(),
                    groups: Some(user.additional_gids().clone().unwrap_or_default()),
                    umask: user.umask().unwrap_or(UMASK) & 0o777,
                },
                capabilities: capabilities(process.capabilities().as_ref())?,
                no_new_privileges: process.no_new_privileges().unwrap_or(false),
                rlimits: scheduling::rlimits(process.rlimits().as_deref().unwrap_or_default())?,
                terminal: false,
                terminal_size: None,
                personality: None,
                label,
                preserve_fds: 0,
                landlock: None,
                attempts: false,
            },
            filters: Vec::new(),
            listener: None,
            scheduling: Scheduling::resolve(process)?,
            terminal: process.terminal().unwrap_or(false).then(|| Terminal {
                uid: user.uid(),
                // Checked to be no more than 16 bits.
                size: process.console_size().map(|size| (size.height() as u16, size.width() as u16)),
            }),
            affinity,
        })
    }
}

fn capabilities(config: Option<&LinuxCapabilities>) -> Result<Capabilities, Error> {
    let Some(config) = config else {
        return Ok(Capabilities::Sets {
            bounding: 0,
            effective: 0,
            permitted: 0,
            inheritable: 0,
            ambient: 0,
        });
    };
    let set = |names: &Option<oci_spec::runtime::Capabilities>| -> Result<u64, Error> {
        names.iter().flatten().try_fold(0, |set, name| Ok(set | capability::bit(&name.to_string())?))
    };
    let (effective, permitted) = (set(config.effective())?, set(config.permitted())?);
    let (inheritable, ambient) = (set(config.inheritable())?, set(config.ambient())?);
    if effective & !permitted != 0 {
        return Err(Error::invalid("process.capabilities.effective", "holds what is not permitted"));
    }
    // What `runc spec` and `crun spec` write: ambient ones that are not inheritable, which the kernel does not raise
    // (capabilities(7)) and which no runtime takes for an error.
    let raised = ambient & permitted & inheritable;
    if raised != ambient {
        tracing::warn!("process.capabilities.ambient: what is not permitted and inheritable is left out");
    }
    Ok(Capabilities::Sets {
        bounding: set(config.bounding())?,
        effective,
        permitted,
        inheritable,
        ambient: raised,
    })
}

impl Hooks {
    fn resolve(spec: &Spec) -> Self {
        let Some(config) = spec.hooks() else { return Self::default() };
        #[allow(deprecated)]
        let prestart = config.prestart();
        Self {
            prestart: hooks::resolve(prestart),
            create_runtime: hooks::resolve(config.create_runtime()),
            create_container: hooks::resolve(config.create_container()),
            start_container: hooks::resolve(config.start_container()),
            poststart: hooks::resolve(config.poststart()),
            poststop: hooks::resolve(config.poststop()),
        }
    }
}
