//! The runtime of the OCI runtime specification: a bundle's `config.json` to a container that other commands find
//! again by its id.
//!
//! [`Runtime`] is the face: one directory of state, and the operations of the specification's "Runtime and
//! Lifecycle". [`config`] reads and refuses, [`plan`] turns what was read into data with no choice left,
//! [`create`] and [`child`] carry it out.

mod child;
mod config;
mod console;
mod create;
mod devices;
mod error;
mod exec;
mod hooks;
mod lifecycle;
mod mounts;
mod namespaces;
mod netdev;
mod plan;
mod scheduling;
mod state;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use config::{SPEC_VERSION, load, parse, parse_process};
pub use error::Error;
pub use exec::Exec;
pub use mounts::options as mount_options;
pub use plan::resolve;
pub use state::{Record, Status};

/// All containers of one state directory.
#[derive(Debug, Clone)]
pub struct Runtime {
    root: PathBuf,
    systemd: bool,
    /// This program acts as `inception-init` when it is executed by that name.
    acts_as_init: bool,
}

/// Where a process's terminal goes.
#[derive(Debug, Default)]
pub enum Console {
    /// It has none: standard input, output and error are the caller's.
    #[default]
    None,
    /// The other end is sent to whoever listens on this Unix socket, as containerd and Podman want it.
    Socket(PathBuf),
    /// The other end is sent over this connected Unix socket.
    Connected(OwnedFd),
}

/// What `create` is told beside the bundle's `config.json`.
#[derive(Debug, Default)]
pub struct Create {
    /// Name of the container, unique in the state directory.
    pub id: String,
    /// Directory with `config.json`.
    pub bundle: PathBuf,
    /// Another file than the bundle's `config.json`.
    pub config: Option<PathBuf>,
    /// Where the terminal goes, if the process wants one.
    pub console: Console,
    /// File that gets the number of the container's first process.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 up the process gets.
    pub preserve_fds: u32,
    /// Change the root with `MS_MOVE` and `chroot`, for roots that `pivot_root(2)` refuses (an initramfs).
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
}

/// What a program that calls [`Runtime::acting_as_init`] does before anything else. Returns an exit code if it was
/// executed to act as `inception-init`.
pub fn act_as_init() -> Option<u8> {
    let mut args = std::env::args_os();
    if args.next()? != init::program::NAME {
        return None;
    }
    let args: Vec<String> = std::env::args().collect();
    Some(u8::try_from(init::program::run(&args)).unwrap_or(u8::MAX))
}

impl Runtime {
    /// The containers below `root`; their cgroups are made by systemd when `systemd`.
    pub fn new(root: PathBuf, systemd: bool) -> Self {
        Self { root, systemd, acts_as_init: false }
    }

    /// For a program that begins with [`act_as_init`]: it is executed in containers itself, and nothing has to be
    /// copied.
    #[must_use]
    pub fn acting_as_init(mut self) -> Self {
        // Another would need a loader and libraries that no container has.
        self.acts_as_init = cfg!(target_feature = "crt-static");
        self
    }

    /// Where state is kept when nobody says otherwise: `/run/inception-oci` for root,
    /// `$XDG_RUNTIME_DIR/inception-oci` for others, among them root of a user namespace, as which an ordinary
    /// user's Podman starts us.
    pub fn default_root() -> PathBuf {
        let rootless = crate::cgroup::is_rootless();
        match std::env::var_os("XDG_RUNTIME_DIR").filter(|_| rootless) {
            Some(directory) => PathBuf::from(directory).join("inception-oci"),
            None if !rootless => PathBuf::from("/run/inception-oci"),
            None => PathBuf::from(format!("/tmp/inception-oci-{}", rustix::process::geteuid().as_raw())),
        }
    }
}
