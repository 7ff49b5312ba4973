//! What the hub starts processes with.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use container::join::{self, Target};
use container::launch::{self, Launched, Surroundings};
use container::sandbox::{Sandbox, Seccomp};
use container::{Filter, Process};
use sys::process::{Child, namespace};

use super::Partners;
use crate::remote::{Context, RemoteError};

/// Starts sandboxes and processes inside them.
#[derive(Debug)]
pub(super) struct Launcher {
    init: OwnedFd,
    /// Compiled seccomp programs by capability set.
    filters: HashMap<u64, Vec<Filter>>,
    /// What is started becomes a child of this process's parent, and stands in this process's network namespace.
    beside: bool,
    /// See [`Surroundings::readable`].
    readable: bool,
}

impl Launcher {
    pub(super) fn new(readable: bool) -> Result<Self, RemoteError> {
        let init = container::program::init().context(|| "seal the init program in memory".into())?;
        Ok(Self { init, filters: HashMap::new(), beside: false, readable })
    }

    /// The launcher of a child of this process, which starts what this process reaps.
    pub(super) fn of_child(&self) -> Result<Self, RemoteError> {
        let init = self.init.try_clone().context(|| "share the init program".into())?;
        Ok(Self { init, filters: HashMap::new(), beside: true, readable: self.readable })
    }

    /// Starts a sandbox. Descriptors: standard input, output, error, then the detached mounts, then the cgroup
    /// directory if there is one.
    pub(super) fn start(
        &mut self,
        sandbox: &Sandbox,
        network: Option<BorrowedFd<'_>>,
        partners: Partners<BorrowedFd<'_>>,
        cgroup: bool,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Launched, RemoteError> {
        for directory in [&sandbox.root.upper, &sandbox.root.work] {
            std::fs::create_dir_all(directory).context(|| format!("create {directory}"))?;
        }
        let cgroup = if cgroup { fds.pop() } else { None };
        let (stdio, detached) = split_stdio(&fds)?;
        let filters = self.filters(&sandbox.seccomp, sandbox.process.capabilities.bounding())?;
        let with_asking;
        let filters = if sandbox.asks_to_bind {
            with_asking = [&[container::seccomp::asking_to_bind()?], filters.as_slice()].concat();
            with_asking.as_slice()
        } else {
            filters.as_slice()
        };
        let around = Surroundings {
            init: self.init.as_fd(),
            network,
            pid: partners.pid,
            ipc: partners.ipc,
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            stdio,
            detached,
            filters,
            beside: self.beside,
            readable: self.readable,
        };
        Ok(launch::launch(sandbox, &around)?)
    }

    /// Starts a process in the sandbox whose PID 1 is `target`. Descriptors: as with [`Launcher::start`].
    pub(super) fn exec(
        &mut self,
        target: BorrowedFd<'_>,
        process: &Process,
        seccomp: &Seccomp,
        cgroup: bool,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Child, RemoteError> {
        let cgroup = if cgroup { fds.pop() } else { None };
        let (stdio, _) = split_stdio(&fds)?;
        let filters = self.filters(seccomp, process.capabilities.bounding())?;
        let target = Target {
            entered: &[],
            pidfd: target,
            init: self.init.as_fd(),
            stdio,
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            filters: &filters,
            beside: self.beside,
        };
        let namespaces = if self.beside { join::SANDBOX & !namespace::NETWORK } else { join::SANDBOX };
        Ok(join::join(process, namespaces, &target)?)
    }

    /// The programs of a filter. Those of the default profile are kept.
    fn filters(&mut self, seccomp: &Seccomp, capabilities: u64) -> Result<Vec<Filter>, RemoteError> {
        match seccomp {
            Seccomp::Unconfined => Ok(Vec::new()),
            Seccomp::Profile(rules) => Ok(vec![container::seccomp::custom_profile(rules)?]),
            Seccomp::Default => match self.filters.entry(capabilities) {
                Entry::Occupied(known) => Ok(known.get().clone()),
                Entry::Vacant(new) => {
                    Ok(new.insert(container::seccomp::default_profile(capabilities)?).clone())
                }
            },
        }
    }
}

fn split_stdio(fds: &[OwnedFd]) -> Result<([BorrowedFd<'_>; 3], &[OwnedFd]), RemoteError> {
    let (stdio, rest) = fds
        .split_first_chunk::<3>()
        .ok_or_else(|| RemoteError::message("a start came without standard input and output"))?;
    Ok((stdio.each_ref().map(AsFd::as_fd), rest))
}
