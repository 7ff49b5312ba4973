//! The description of a sandbox. Data only: building one has no effect, launching one makes no choice.

use std::path::PathBuf;

use init::process::Process;
use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

/// Everything about one sandbox. Serialisable, because it travels from the supervisor to the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Host name of its UTS namespace.
    pub hostname: String,
    /// Its root file system.
    pub root: Root,
    /// Whether the root is made read-only once everything is mounted.
    pub read_only: bool,
    /// Mounts below the root, in order.
    pub mounts: Vec<Mount>,
    /// Paths hidden behind an empty file or directory; missing ones are skipped.
    pub masked_paths: Vec<String>,
    /// Paths made read-only; missing ones are skipped.
    pub readonly_paths: Vec<String>,
    /// Sysctls of its own namespaces, dotted name to value.
    pub sysctls: Vec<(String, String)>,
    /// The program.
    pub process: Process,
    /// Which system calls it may make.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// How likely the kernel ends it when memory is short (`/proc/PID/oom_score_adj`), unless as likely as us.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// Our init is PID 1, with this verbosity; `None` makes the program PID 1.
    pub init: Option<u8>,
    /// Somebody else answers each `bind` of what is started with it: [`crate::launch::Launched::listener`].
    #[serde(default)]
    pub asks_to_bind: bool,
}

/// Which system calls a sandbox may make.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// Those of the default profile for its capabilities.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// Those that these rules allow.
    Profile(Box<LinuxSeccomp>),
}

/// An overlay of read-only layers below one writable directory. Paths are relative to the data directory and
/// short: all of them together must fit in one page for `mount(2)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Root {
    /// Layers, the lowest first.
    pub layers: Vec<String>,
    /// The writable layer.
    pub upper: String,
    /// overlayfs's work directory, on the same file system as `upper`.
    pub work: String,
}

/// One thing below the root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside; symbolic links in it are resolved inside the root.
    pub target: String,
    /// What appears there.
    pub source: MountSource,
    /// Attributes, [`sys::mount::attribute`] values or-ed.
    pub attributes: u64,
    /// If it is an empty directory, it gets what the image has at the target first, as a volume does.
    #[serde(default)]
    pub fill: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// procfs of the sandbox's PID namespace.
    Proc,
    /// sysfs of the sandbox's network namespace, which the stack must own.
    Sysfs,
    /// A private devpts instance.
    Devpts,
    /// POSIX message queues of the sandbox's IPC namespace.
    Mqueue,
    /// The cgroup v2 hierarchy as seen from the sandbox's cgroup namespace.
    Cgroup,
    /// An empty tmpfs.
    Tmpfs {
        /// Bytes; `None` leaves the kernel's default of half the memory.
        size: Option<u64>,
        /// Mode bits of its root.
        mode: u32,
        /// User that its root belongs to.
        #[serde(default)]
        uid: u32,
        /// Group that its root belongs to.
        #[serde(default)]
        gid: u32,
    },
    /// A device of the host's `/dev`, by name.
    Device(String),
    /// Not a mount: a symbolic link with this content.
    Symlink(String),
    /// A file or directory of the host with all that is mounted below it.
    Bind(PathBuf),
    /// The descriptor of a detached mount that comes with the launch, by index.
    Descriptor(usize),
    /// A volume's directory, relative to the data directory.
    Volume {
        /// Directory; made when it is missing, then filled with what the image has at the target.
        path: String,
        /// Do not fill it.
        #[serde(default)]
        empty: bool,
        /// The directory or file of it that appears, a relative path that must exist; all of it if none.
        #[serde(default)]
        subpath: Option<String>,
    },
    /// A small file with this content.
    File {
        /// Content.
        content: Vec<u8>,
        /// Mode bits.
        mode: u32,
        /// Owner inside.
        uid: u32,
        /// Group inside.
        gid: u32,
    },
}

impl Mount {
    /// A mount with these attributes.
    pub fn new(target: impl Into<String>, source: MountSource, attributes: u64) -> Self {
        Self { target: target.into(), source, attributes, fill: false }
    }
}
