//! cgroup v2: what a container may use, and its processes as a whole.
//!
//! [`Resources`] are limits and device rules as data, from config.json or from a service's [`Limits`]. A [`Cgroup`]
//! is a directory to which they are applied, with the files that freeze, kill and list its processes. A
//! [`Placement`] says which directory a container of the OCI runtime gets: one of our own making or a systemd
//! scope. [`delegation()`] finds where the cgroups of a stack can be made. [`usage`] reads statistics.
//!
//! The rules are those of the kernel's `Documentation/admin-guide/cgroup-v2.rst`: a controller is available in
//! a cgroup when its parent lists it in `cgroup.subtree_control`, and a cgroup that passes controllers on may
//! hold no processes itself unless it is the root. Where controllers are still on cgroup v1 beside it (hybrid
//! mode), a container has counterparts of its cgroup there, for the limits only.

mod delegation;
mod devices;
mod directory;
mod error;
mod hierarchy;
mod placement;
mod resources;
mod systemd;
mod tree;
pub mod usage;
mod version1;

use oci_spec::runtime::LinuxBlockIo;

pub use delegation::{Controller, Delegation, Reason, delegation, delegation_for};
pub use directory::Cgroup;
pub use error::Error;
pub use placement::{Placement, is_rootless};
pub use resources::Resources;
pub(crate) use version1::thaw_the_dying;

/// What a service may use. `None` is unlimited, or the kernel's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory that are not reclaimed while others have more than theirs.
    pub memory_reservation: Option<u64>,
    /// Bytes of memory and swap together; -1 is unlimited swap.
    pub memory_swap: Option<i64>,
    /// CPUs; 0.5 is half of one.
    pub cpus: Option<f64>,
    /// Weight among others when there is not enough processor time, 2 to 262144, usually 1024.
    pub cpu_shares: Option<u64>,
    /// The CPUs that may be used: `0-2,5`.
    pub cpuset: Option<String>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// Weights and limits of block devices.
    pub block_io: Option<LinuxBlockIo>,
}

impl Limits {
    /// The controllers that these limits need, with the name that a user knows each by.
    fn needs(&self) -> impl Iterator<Item = (Controller, &'static str)> {
        let memory = self.memory.is_some() || self.memory_reservation.is_some() || self.memory_swap.is_some();
        [
            (memory, Controller::Memory, "memory"),
            (self.cpus.is_some(), Controller::Cpu, "cpus"),
            (self.cpu_shares.is_some(), Controller::Cpu, "cpu_shares"),
            (self.pids.is_some(), Controller::Pids, "pids"),
            (self.cpuset.is_some(), Controller::Cpuset, "cpuset"),
            (self.block_io.is_some(), Controller::Io, "blkio_config"),
        ]
        .into_iter()
        .filter(|(asked, ..)| *asked)
        .map(|(_, controller, word)| (controller, word))
    }
}
