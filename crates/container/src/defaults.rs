//! What every sandbox gets unless told otherwise: the set of the OCI runtime specification
//! ("Default Filesystems", "Default Devices") with Docker's masked and read-only paths.

use sys::mount::attribute::{NODEV, NOEXEC, NOSUID, RDONLY};

use crate::sandbox::{Mount, MountSource};

/// Devices that the runtime specification promises.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Whether a sandbox has its own network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It has; sysfs can be mounted.
    Own,
    /// It stands in the host's; the host's sysfs is bound instead.
    Host,
}

/// `/proc`, `/dev` with its devices, `/dev/pts`, `/dev/shm` of `shm_size` bytes, `/dev/mqueue` and `/sys`.
pub fn mounts(network: Network, shm_size: u64) -> Vec<Mount> {
    let hardened = NOSUID | NODEV | NOEXEC;
    let tmpfs = |size, mode| MountSource::Tmpfs { size, mode, uid: 0, gid: 0 };
    let mut mounts = vec![
        Mount::new("/proc", MountSource::Proc, hardened),
        Mount::new("/dev", tmpfs(Some(64 << 10), 0o755), NOSUID | NOEXEC),
        Mount::new("/dev/pts", MountSource::Devpts, NOSUID | NOEXEC),
        Mount::new("/dev/shm", tmpfs(Some(shm_size), 0o1777), hardened),
        Mount::new("/dev/mqueue", MountSource::Mqueue, hardened),
    ];
    let device = |name: &&str| {
        Mount::new(format!("/dev/{name}"), MountSource::Device((*name).to_owned()), NOSUID | NOEXEC)
    };
    mounts.extend(DEVICES.iter().map(device));
    let links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ];
    mounts.extend(links.map(|(path, to)| Mount::new(path, MountSource::Symlink(to.to_owned()), 0)));
    let sysfs = match network {
        Network::Own => MountSource::Sysfs,
        Network::Host => MountSource::Bind("/sys".into()),
    };
    mounts.push(Mount::new("/sys", sysfs, hardened | RDONLY));
    mounts
}

/// Docker's masked paths.
pub fn masked_paths() -> Vec<String> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Docker's read-only paths.
pub fn readonly_paths() -> Vec<String> {
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).to_vec()
}
