//! `RUN`: a sandbox of ours on the layers so far.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use container::defaults::{self, Network};
use container::launch::{Surroundings, launch};
use container::sandbox::{Mount, MountSource, Root, Sandbox, Seccomp};
use container::{Capabilities, Filter, Process, User, capability, seccomp};
use image::{BoxError, GitSource, RunStep, Runner, Running};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use sys::process::Child;

use super::git::{self, Keys};
use super::mounts::{self, Mounted};
use super::network::{self, Networks};
use crate::plan::BuildNetwork;
use crate::remote::{Context, RemoteError};

/// Shared memory of a `RUN`, as Docker's.
const SHM_SIZE: u64 = 64 << 20;
/// The host name of a `RUN`.
const HOSTNAME: &str = "build";

/// What instructions get and may ask for.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// The network of those which ask for none.
    pub(super) usual: BuildNetwork,
    /// `--network=host` is granted.
    pub(super) allows_host: bool,
    /// `--security=insecure` is granted.
    pub(super) allows_insecure: bool,
    /// `ADD` of a repository has the user's keys.
    pub(super) lends_keys: bool,
    /// Proxies on the host's loopback that the stack file names: variables and their values.
    pub(super) proxies: BTreeMap<String, String>,
    /// More lines of `/etc/hosts`.
    pub(super) extra_hosts: Vec<(String, IpAddr)>,
    /// Size of `/dev/shm`, bytes.
    pub(super) shm_size: Option<u64>,
    /// `RLIMIT_` number, soft, hard.
    pub(super) rlimits: Vec<(u32, u64, u64)>,
    /// A shell is opened where a command failed.
    pub(super) debug: bool,
    /// See [`Options::readable`](super::Options::readable).
    pub(super) readable: bool,
}

/// What all sandboxes of a build share.
struct Equipment {
    init: OwnedFd,
    filters: Vec<Filter>,
}

impl Equipment {
    fn new(capabilities: u64) -> Result<Self, RemoteError> {
        let init = container::program::init().context(|| "seal the init program in memory".into())?;
        Ok(Self { init, filters: seccomp::default_profile(capabilities)? })
    }
}

/// Runs the builder's commands. Lives in a storage worker, which is root of the id map.
pub(super) struct SandboxRunner<'a> {
    capabilities: u64,
    all_capabilities: u64,
    /// Made for the first command: a build that finds everything in the cache has none.
    equipment: Option<Equipment>,
    rules: Rules,
    networks: Networks<'a>,
    /// Tells the user something.
    warn: &'a dyn Fn(String),
    /// Tells that a shell has the terminal, with the status of the command before it, or no longer has it.
    shell: &'a dyn Fn(Option<i32>),
}

impl<'a> SandboxRunner<'a> {
    pub(super) fn new(
        rules: Rules,
        networks: Networks<'a>,
        warn: &'a dyn Fn(String),
        shell: &'a dyn Fn(Option<i32>),
    ) -> Result<Self, RemoteError> {
        if rules.allows_insecure {
            // As a stack's hub does.
            sys::process::new_session_keyring(None).context(|| "make a session keyring".into())?;
        }
        let capabilities = capability::set(&[], &[])?;
        let all_capabilities = capability::set(&["ALL".to_owned()], &[])?;
        Ok(Self { capabilities, all_capabilities, equipment: None, rules, networks, warn, shell })
    }

    /// Which network a step gets: what it asks for, where that is allowed and there is one.
    fn network(&mut self, step: &RunStep) -> Result<BuildNetwork, RemoteError> {
        let asked = match step.network {
            image::Network::Default => self.rules.usual,
            image::Network::None => BuildNetwork::None,
            image::Network::Host if self.rules.allows_host => BuildNetwork::Host,
            image::Network::Host => {
                let why = "it asks for the host's network, in which it reaches what listens on the host's loopback, \
                           and the stack file does not allow that: `entitlements` of `build` would have to name \
                           `network.host`";
                return Err(RemoteError::message(why));
            }
        };
        if asked != BuildNetwork::Own {
            return Ok(asked);
        }
        // What a Dockerfile or its base says of proxies opens nothing.
        let mut proxies = step.env.iter().filter(|(name, url)| self.rules.proxies.get(name) == Some(url));
        let why = match proxies.next() {
            Some((variable, _)) => format!("`{variable}` names a proxy on the host's loopback"),
            None => match self.networks.usual()? {
                Ok(_) => return Ok(BuildNetwork::Own),
                Err(error) => error.to_string(),
            },
        };
        (self.warn)(format!("RUN instructions have the host's network, its loopback included: {why}"));
        Ok(BuildNetwork::Host)
    }

    /// Whose keys `ADD` has.
    fn keys(&self) -> Keys {
        if self.rules.lends_keys { Keys::Users } else { Keys::None }
    }

    /// Starts a step's sandbox; within the result, that its program cannot be executed.
    fn launch(
        &mut self,
        step: &RunStep,
        network: BuildNetwork,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<Result<Child, container::Error>, BoxError> {
        let Mounted { mounts, detached } = mounts::of(step, self.networks.command())?;
        let sandbox = self.sandbox(step, network, mounts);
        let namespace = self.namespace(network).map_err(|error| error.to_string())?;
        let namespace = namespace.map(|it| it.try_clone_to_owned()).transpose()?;
        let equipment = match self.equipment.take() {
            Some(equipment) => equipment,
            None => Equipment::new(self.capabilities).map_err(|error| error.to_string())?,
        };
        let equipment = self.equipment.insert(equipment);
        let around = Surroundings {
            init: equipment.init.as_fd(),
            network: namespace.as_ref().map(AsFd::as_fd),
            pid: None,
            ipc: None,
            cgroup: None,
            stdio,
            detached: &detached,
            filters: if step.insecure { &[] } else { &equipment.filters },
            beside: false,
            readable: self.rules.readable,
        };
        match launch(&sandbox, &around) {
            Ok(launched) => Ok(Ok(launched.child)),
            Err(error) if matches!(error.exit_code(), 126 | 127) => Ok(Err(error)),
            Err(error) => Err(error.into()),
        }
    }

    fn namespace(&mut self, network: BuildNetwork) -> Result<Option<BorrowedFd<'_>>, RemoteError> {
        match network {
            BuildNetwork::Own => self.networks.usual()?.map(Some).map_err(Clone::clone),
            BuildNetwork::None => self.networks.unconnected().map(Some),
            BuildNetwork::Host => Ok(None),
        }
    }

    fn sandbox(&self, step: &RunStep, network: BuildNetwork, asked: Vec<Mount>) -> Sandbox {
        let mut mounts = defaults::mounts(
            if network == BuildNetwork::Host { Network::Host } else { Network::Own },
            self.rules.shm_size.unwrap_or(SHM_SIZE),
        );
        for target in ["/etc/resolv.conf", "/etc/hosts"] {
            // A host without the file has nothing that the command could be shown.
            let host = std::fs::read(target);
            let resolv = |server| {
                let host = String::from_utf8_lossy(host.as_deref().unwrap_or_default());
                Ok(network::resolv(&host, server).into_bytes())
            };
            let content = match (target, network) {
                ("/etc/resolv.conf", BuildNetwork::Own) => resolv(self.networks.name_server()),
                ("/etc/resolv.conf", BuildNetwork::None) => resolv(None),
                ("/etc/hosts", _) => Ok(hosts(host.as_deref().unwrap_or_default(), &self.rules.extra_hosts)),
                _ => host,
            };
            if let Ok(content) = content {
                let source = MountSource::File { content, mode: 0o644, uid: 0, gid: 0 };
                mounts.push(Mount::new(target, source, 0));
            }
        }
        mounts.extend(asked);
        let secrets = step.secret_env.iter();
        let secrets =
            secrets.map(|(name, value)| (name.clone(), String::from_utf8_lossy(&value.0).into_owned()));
        let capabilities = if step.insecure { self.all_capabilities } else { self.capabilities };
        Sandbox {
            hostname: HOSTNAME.into(),
            root: Root { layers: step.layers.clone(), upper: step.upper.clone(), work: step.work.clone() },
            read_only: false,
            mounts,
            masked_paths: defaults::masked_paths(),
            readonly_paths: defaults::readonly_paths(),
            sysctls: Vec::new(),
            process: Process {
                argv: step.argv.clone(),
                env: step.env.iter().cloned().chain(secrets).collect(),
                cwd: step.cwd.clone(),
                user: User::Named(step.user.clone()),
                capabilities: Capabilities::Bounding(capabilities),
                no_new_privileges: !step.insecure,
                rlimits: self.rules.rlimits.clone(),
                ..Process::default()
            },
            init: Some(0),
            asks_to_bind: false,
            seccomp: Seccomp::Default,
            oom_score_adj: None,
        }
    }
}

/// The host's `/etc/hosts`, the sandbox's own name (which `sudo` and others look up), and more.
fn hosts(host: &[u8], more: &[(String, IpAddr)]) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(host).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("127.0.0.1\t{HOSTNAME}\n"));
    for (name, address) in more {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text.into_bytes()
}

/// Where the image has no such file, an empty one was made to mount on; it is no part of the layer.
fn remove_stub(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() == 0 => std::fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A `RUN` that runs.
struct Command {
    /// None once it has been reaped.
    child: Option<Child>,
    output: OwnedFd,
    upper: PathBuf,
}

impl Running for Command {
    fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    fn wait(&mut self) -> Result<i32, BoxError> {
        let child = self.child.take().ok_or("the command has been waited for")?;
        let ended = waitpid(Pid::from_raw(child.pid), None)?;
        for name in ["etc/resolv.conf", "etc/hosts"] {
            remove_stub(&self.upper.join(name))?;
        }
        match ended {
            WaitStatus::Exited(_, code) => Ok(code),
            WaitStatus::Signaled(_, signal, _) => Ok(128 + signal as i32),
            other => Err(format!("wait for the command: {other:?}").into()),
        }
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        // With its init ends all of it.
        if let Some(child) = self.child.take() {
            drop(container::userns::end(&child));
        }
    }
}

/// A program that could not be executed, whose message is its only output.
struct Refused {
    output: OwnedFd,
    status: i32,
}

impl Running for Refused {
    fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    fn wait(&mut self) -> Result<i32, BoxError> {
        Ok(self.status)
    }
}

impl Runner for SandboxRunner<'_> {
    fn start(&mut self, step: &RunStep) -> Result<Box<dyn Running>, BoxError> {
        if step.insecure && !self.rules.allows_insecure {
            return Err(
                "it asks for all capabilities (`--security=insecure`), and the stack file does not allow \
                        that: `entitlements` of `build` would have to name `security.insecure`"
                    .into(),
            );
        }
        let null = File::open("/dev/null")?;
        // Before the pipe: the process that keeps a new network would have its other end open.
        let network = self.network(step).map_err(|error| error.to_string())?;
        self.namespace(network).map_err(|error| error.to_string())?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        match self.launch(step, network, [null.as_fd(), write.as_fd(), write.as_fd()])? {
            Ok(child) => {
                Ok(Box::new(Command { child: Some(child), output: read, upper: step.upper.clone().into() }))
            }
            Err(error) => {
                // A program that is not there is the command's failure, as a shell would report it.
                let status = error.exit_code();
                let said = RemoteError::from(error).chain.join(": ");
                rustix::io::write(&write, format!("{said}\n").as_bytes())?;
                Ok(Box::new(Refused { output: read, status }))
            }
        }
    }

    fn failed(&mut self, step: &RunStep, status: i32) -> Result<(), BoxError> {
        if !self.rules.debug {
            return Ok(());
        }
        let network = self.network(step).map_err(|error| error.to_string())?;
        let shell = RunStep { argv: vec!["/bin/sh".to_owned()], ..step.clone() };
        (self.shell)(Some(status));
        let (input, output) = (std::io::stdin(), std::io::stderr());
        let launched = self.launch(&shell, network, [input.as_fd(), output.as_fd(), output.as_fd()])?;
        let ended = launched.map(|child| waitpid(Pid::from_raw(child.pid), None));
        (self.shell)(None);
        ended.map_err(|error| format!("open a shell where the command failed: {error}"))??;
        Ok(())
    }

    fn git_commit(&mut self, source: &GitSource) -> Result<String, BoxError> {
        git::commit(source, self.keys()).map_err(|error| error.to_string().into())
    }

    fn git_fetch(&mut self, source: &GitSource, commit: &str, directory: &Path) -> Result<i64, BoxError> {
        git::fetch(source, commit, directory, self.keys()).map_err(|error| error.to_string().into())
    }
}
