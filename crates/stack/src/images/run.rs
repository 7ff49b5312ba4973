//! `RUN`: a sandbox of ours on the layers so far, with the host's network.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use container::defaults::{self, Network};
use container::launch::{Surroundings, launch};
use container::sandbox::{Mount, MountSource, Root, Sandbox};
use container::{Capabilities, Filter, Process, User, capability, seccomp};
use image::{RunStep, Runner};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::remote::{Context, RemoteError};

/// Shared memory of a `RUN`, as Docker's.
const SHM_SIZE: u64 = 64 << 20;

/// Runs the builder's commands. Lives in a storage worker, which is root of the id map.
pub(super) struct SandboxRunner {
    init: OwnedFd,
    capabilities: u64,
    filters: Vec<Filter>,
}

impl SandboxRunner {
    pub(super) fn new() -> Result<Self, RemoteError> {
        let capabilities = capability::set(&[], &[])?;
        let init = container::program::init().context(|| "seal the init program in memory".into())?;
        Ok(Self { init, capabilities, filters: seccomp::default_profile(capabilities)? })
    }

    fn sandbox(&self, step: &RunStep) -> Sandbox {
        let mut mounts = defaults::mounts(Network::Host, SHM_SIZE);
        for target in ["/etc/resolv.conf", "/etc/hosts"] {
            // A host without the file has nothing that the command could be shown.
            if let Ok(content) = std::fs::read(target) {
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

impl Runner for SandboxRunner {
    fn run(
        &mut self,
        step: &RunStep,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<i32, Box<dyn std::error::Error + Send + Sync>> {
        let null = File::open("/dev/null")?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let around = Surroundings {
            init: self.init.as_fd(),
            network: None,
            cgroup: None,
            stdio: [null.as_fd(), write.as_fd(), write.as_fd()],
            detached: &[],
            filters: &self.filters,
            beside: false,
        };
        let child = match launch(&self.sandbox(step), &around) {
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
}
