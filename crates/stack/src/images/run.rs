//! `RUN`: a sandbox of ours on the layers so far.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use container::defaults::{self, Network};
use container::launch::{Surroundings, launch};
use container::sandbox::{Mount, MountSource, Root, Sandbox, Seccomp};
use container::{Capabilities, Filter, Process, User, capability, seccomp};
use image::{GitSource, RunStep, Runner};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::git;
use super::network::{self, Networks};
use crate::plan::BuildNetwork;
use crate::remote::{Context, RemoteError};

/// Shared memory of a `RUN`, as Docker's.
const SHM_SIZE: u64 = 64 << 20;

/// Which network instructions get.
#[derive(Debug, Clone, Copy)]
pub(super) struct NetworkRules {
    /// That of those which ask for none.
    pub(super) usual: BuildNetwork,
    /// `--network=host` is granted.
    pub(super) allows_host: bool,
}

/// Runs the builder's commands. Lives in a storage worker, which is root of the id map.
pub(super) struct SandboxRunner<'a> {
    init: OwnedFd,
    capabilities: u64,
    filters: Vec<Filter>,
    rules: NetworkRules,
    networks: Networks<'a>,
    /// Tells the user something.
    warn: &'a dyn Fn(String),
}

impl<'a> SandboxRunner<'a> {
    pub(super) fn new(
        rules: NetworkRules,
        networks: Networks<'a>,
        warn: &'a dyn Fn(String),
    ) -> Result<Self, RemoteError> {
        let capabilities = capability::set(&[], &[])?;
        let init = container::program::init().context(|| "seal the init program in memory".into())?;
        let filters = seccomp::default_profile(capabilities)?;
        Ok(Self { init, capabilities, filters, rules, networks, warn })
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
        let why = match network::loopback_proxy(&step.env) {
            Some(variable) => format!("`{variable}` names a proxy on the host's loopback"),
            None => match self.networks.usual()? {
                Ok(_) => return Ok(BuildNetwork::Own),
                Err(error) => error.to_string(),
            },
        };
        (self.warn)(format!("RUN instructions have the host's network, its loopback included: {why}"));
        Ok(BuildNetwork::Host)
    }

    fn namespace(&mut self, network: BuildNetwork) -> Result<Option<BorrowedFd<'_>>, RemoteError> {
        match network {
            BuildNetwork::Own => self.networks.usual()?.map(Some).map_err(Clone::clone),
            BuildNetwork::None => self.networks.unconnected().map(Some),
            BuildNetwork::Host => Ok(None),
        }
    }

    fn sandbox(&self, step: &RunStep, network: BuildNetwork) -> Sandbox {
        let mut mounts = defaults::mounts(
            if network == BuildNetwork::Host { Network::Host } else { Network::Own },
            SHM_SIZE,
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
                _ => host,
            };
            if let Ok(content) = content {
                let source = MountSource::File { content, mode: 0o644, uid: 0, gid: 0 };
                mounts.push(Mount::new(target, source, 0));
            }
        }
        Sandbox {
            hostname: "build".into(),
            root: Root { layers: step.layers.clone(), upper: step.upper.clone(), work: step.work.clone() },
            read_only: false,
            mounts,
            masked_paths: defaults::masked_paths(),
            readonly_paths: defaults::readonly_paths(),
            sysctls: Vec::new(),
            process: Process {
                argv: step.argv.clone(),
                env: step.env.clone(),
                cwd: step.cwd.clone(),
                user: User::Named(step.user.clone()),
                capabilities: Capabilities::Bounding(self.capabilities),
                no_new_privileges: true,
                ..Process::default()
            },
            init: Some(0),
            asks_to_bind: false,
            seccomp: Seccomp::Default,
            oom_score_adj: None,
        }
    }
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

impl Runner for SandboxRunner<'_> {
    fn run(
        &mut self,
        step: &RunStep,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<i32, Box<dyn std::error::Error + Send + Sync>> {
        // Before the pipe: the process that keeps a new network would have its other end open.
        let network = self.network(step).map_err(|error| error.to_string())?;
        let sandbox = self.sandbox(step, network);
        let namespace = self.namespace(network).map_err(|error| error.to_string())?;
        let namespace = namespace.map(|it| it.try_clone_to_owned()).transpose()?;
        let null = File::open("/dev/null")?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let around = Surroundings {
            init: self.init.as_fd(),
            network: namespace.as_ref().map(AsFd::as_fd),
            cgroup: None,
            stdio: [null.as_fd(), write.as_fd(), write.as_fd()],
            detached: &[],
            filters: &self.filters,
            beside: false,
        };
        let child = match launch(&sandbox, &around) {
            Ok(launched) => launched.child,
            Err(error) if matches!(error.exit_code(), 126 | 127) => {
                // A program that is not there is the command's failure, as a shell would report it.
                output(format!("{error}\n").as_bytes());
                return Ok(error.exit_code());
            }
            Err(error) => return Err(error.into()),
        };
        drop(write);
        let mut read = File::from(read);
        let mut buffer = [0u8; 8192];
        loop {
            match read.read(&mut buffer)? {
                0 => break,
                length => output(&buffer[..length]),
            }
        }
        let ended = waitpid(Pid::from_raw(child.pid), None)?;
        for name in ["etc/resolv.conf", "etc/hosts"] {
            remove_stub(&Path::new(&step.upper).join(name))?;
        }
        match ended {
            WaitStatus::Exited(_, code) => Ok(code),
            WaitStatus::Signaled(_, signal, _) => Ok(128 + signal as i32),
            other => Err(format!("wait for the command: {other:?}").into()),
        }
    }

    fn git_commit(&mut self, source: &GitSource) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        git::commit(source).map_err(|error| error.to_string().into())
    }

    fn git_fetch(
        &mut self,
        source: &GitSource,
        commit: &str,
        directory: &Path,
    ) -> Result<i64, Box<dyn std::error::Error + Send + Sync>> {
        git::fetch(source, commit, directory).map_err(|error| error.to_string().into())
    }
}
