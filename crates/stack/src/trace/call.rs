//! System calls that make a container, with their arguments as values.

use std::fmt::Write as _;

use super::flags;
use super::netlink::Request;

/// A system call. What is an `Option` is `None` where it was in memory that could not be read.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// `clone3(2)`, `clone(2)`, `fork(2)`, `vfork(2)`.
    Clone {
        /// Which of them.
        call: &'static str,
        /// `CLONE_` flags.
        flags: u64,
        /// The cgroup that the new process is born in.
        cgroup: Option<String>,
    },
    /// `unshare(2)`.
    Unshare {
        /// `CLONE_NEW` flags.
        flags: u64,
    },
    /// `setns(2)`.
    Setns {
        /// What the descriptor is: `net:[4026532281]`, or a pidfd.
        to: Option<String>,
        /// Kinds of namespaces.
        flags: u64,
    },
    /// `mount(2)`.
    Mount {
        /// What is mounted.
        source: Option<String>,
        /// Where.
        target: Option<String>,
        /// File system.
        kind: Option<String>,
        /// `MS_` flags.
        flags: u64,
        /// Options of the file system.
        data: Option<String>,
    },
    /// `umount2(2)`.
    Umount {
        /// Where.
        target: Option<String>,
        /// `MNT_` flags.
        flags: u64,
    },
    /// `open_tree(2)` with `OPEN_TREE_CLONE`.
    OpenTree {
        /// What is copied, resolved.
        path: Option<String>,
        /// `OPEN_TREE_` and `AT_` flags.
        flags: u64,
    },
    /// `fsopen(2)`.
    FsOpen {
        /// File system.
        kind: Option<String>,
    },
    /// `fsconfig(2)`: a string or flag, or the creation.
    FsConfig {
        /// File system.
        kind: Option<String>,
        /// The option's name; `None` creates the file system.
        key: Option<String>,
        /// Its value; `None` for flags.
        value: Option<String>,
    },
    /// `fsmount(2)`.
    FsMount {
        /// File system.
        kind: Option<String>,
        /// `MOUNT_ATTR_` attributes.
        attributes: u64,
    },
    /// `move_mount(2)`.
    MoveMount {
        /// What is attached.
        from: Option<Object>,
        /// Where, as a path of the mount namespace.
        to: Option<String>,
    },
    /// `mount_setattr(2)`.
    MountSetattr {
        /// On which mount.
        mount: Option<Object>,
        /// `AT_` flags.
        flags: u64,
        /// Attributes that are set.
        set: u64,
        /// Attributes that are cleared.
        clear: u64,
        /// Type of propagation, 0 for the same as before.
        propagation: u64,
        /// The user namespace that owners are mapped by.
        namespace: Option<String>,
    },
    /// `pivot_root(2)`.
    PivotRoot {
        /// The new root, resolved.
        new: Option<String>,
        /// Where the old one goes.
        old: Option<String>,
    },
    /// `chroot(2)`.
    Chroot {
        /// The new root.
        path: Option<String>,
    },
    /// `sethostname(2)`.
    Sethostname {
        /// The name.
        name: Option<String>,
    },
    /// `setresuid(2)`, `setresgid(2)`.
    SetIds {
        /// Which of them.
        call: &'static str,
        /// Real, effective, saved.
        ids: [u32; 3],
    },
    /// `setgroups(2)`.
    Setgroups {
        /// The supplementary groups.
        groups: Option<Vec<u32>>,
    },
    /// `capset(2)`.
    Capset {
        /// The sets.
        sets: Option<CapabilitySets>,
    },
    /// `prctl(2)` with `PR_CAPBSET_DROP`, several in a row.
    DropBounding {
        /// Numbers of capabilities.
        capabilities: Vec<u32>,
    },
    /// `prctl(2)` with another option.
    Prctl {
        /// The option.
        option: Control,
        /// Its argument.
        argument: u64,
    },
    /// `seccomp(2)` with `SECCOMP_SET_MODE_FILTER`.
    Seccomp {
        /// `SECCOMP_FILTER_FLAG_` flags.
        flags: u64,
        /// How many instructions the filter has.
        instructions: Option<u16>,
    },
    /// `landlock_restrict_self(2)`.
    Landlock,
    /// `execve(2)`, `execveat(2)`.
    Execve {
        /// Which of them.
        call: &'static str,
        /// The program.
        path: Option<String>,
        /// Its arguments.
        argv: Option<Vec<String>>,
        /// Its environment.
        environment: Option<Vec<String>>,
        /// The working directory.
        directory: Option<String>,
    },
    /// `mknod(2)`, `mknodat(2)`.
    Mknod {
        /// What is made, resolved.
        path: Option<String>,
        /// Type and mode bits.
        mode: u32,
    },
    /// `mkdir(2)`, `mkdirat(2)` of a cgroup, or of a mount point.
    Mkdir {
        /// What is made, resolved.
        path: Option<String>,
        /// Mode bits.
        mode: u32,
    },
    /// `symlinkat(2)`.
    Symlink {
        /// What it leads to.
        to: Option<String>,
        /// What is made, resolved.
        path: Option<String>,
    },
    /// `write(2)` to a file of the kernel's, or to one that the container sees.
    Write {
        /// The file.
        path: String,
        /// What is written; the content of a container's file is told by its length only where it may be secret.
        text: Option<String>,
        /// Bytes.
        length: u64,
    },
    /// `prlimit64(2)`.
    Prlimit {
        /// `RLIMIT_` number.
        resource: u32,
        /// Soft and hard limit.
        limits: Option<(u64, u64)>,
    },
    /// `sendto(2)`, `sendmsg(2)` on a netlink socket.
    Netlink {
        /// Which of them.
        call: &'static str,
        /// The network namespace of the socket.
        namespace: Option<String>,
        /// What is asked for.
        requests: Vec<Request>,
    },
}

/// What a detached mount is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Where it comes from.
    pub origin: Origin,
    /// `MOUNT_ATTR_` attributes that it got since.
    pub attributes: u64,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A new file system.
    New {
        /// Its type.
        kind: String,
        /// Its options.
        options: Vec<(String, Option<String>)>,
    },
    /// A copy of what is mounted at a path.
    Copy {
        /// The path.
        path: String,
        /// With all that is mounted below it.
        recursive: bool,
    },
}

/// Sets of capabilities, as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What is in effect.
    pub effective: u64,
    /// What can be put into effect.
    pub permitted: u64,
    /// What survives execve(2) with the file's own set.
    pub inheritable: u64,
}

/// Options of `prctl(2)` that are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges,
    /// `PR_SET_DUMPABLE`.
    Dumpable,
    /// `PR_SET_PDEATHSIG`.
    ParentDeathSignal,
    /// `PR_SET_KEEPCAPS`.
    KeepCapabilities,
    /// `PR_CAP_AMBIENT`.
    Ambient,
}

/// An argument of a call: its name in the manual page, and its value as it is written in C.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Name.
    pub name: &'static str,
    /// Value.
    pub value: String,
}

/// What stands where an argument could not be read.
const UNREADABLE: &str = "(unreadable)";

impl Call {
    /// The system call's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Clone { call, .. }
            | Self::SetIds { call, .. }
            | Self::Execve { call, .. }
            | Self::Netlink { call, .. } => call,
            Self::Unshare { .. } => "unshare",
            Self::Setns { .. } => "setns",
            Self::Mount { .. } => "mount",
            Self::Umount { .. } => "umount2",
            Self::OpenTree { .. } => "open_tree",
            Self::FsOpen { .. } => "fsopen",
            Self::FsConfig { .. } => "fsconfig",
            Self::FsMount { .. } => "fsmount",
            Self::MoveMount { .. } => "move_mount",
            Self::MountSetattr { .. } => "mount_setattr",
            Self::PivotRoot { .. } => "pivot_root",
            Self::Chroot { .. } => "chroot",
            Self::Sethostname { .. } => "sethostname",
            Self::Setgroups { .. } => "setgroups",
            Self::Capset { .. } => "capset",
            Self::DropBounding { .. } | Self::Prctl { .. } => "prctl",
            Self::Seccomp { .. } => "seccomp",
            Self::Landlock => "landlock_restrict_self",
            Self::Mknod { .. } => "mknodat",
            Self::Mkdir { .. } => "mkdirat",
            Self::Symlink { .. } => "symlinkat",
            Self::Write { .. } => "write",
            Self::Prlimit { .. } => "prlimit64",
        }
    }

    /// The arguments that mean something.
    pub fn arguments(&self) -> Vec<Argument> {
        let mut all = Vec::new();
        let mut add = |name, value: String| all.push(Argument { name, value });
        match self {
            Self::Clone { flags, cgroup, .. } => {
                add("flags", flags::clone(*flags));
                if let Some(cgroup) = cgroup {
                    add("cgroup", quoted(cgroup));
                }
            }
            Self::Unshare { flags } => add("flags", flags::clone(*flags)),
            Self::Setns { to, flags } => {
                add("fd", resolved(to));
                add("nstype", flags::clone(*flags));
            }
            Self::Mount { source, target, kind, flags, data } => {
                add("source", text(source));
                add("target", text(target));
                add("filesystemtype", text(kind));
                add("mountflags", flags::mount(*flags));
                add("data", text(data));
            }
            Self::Umount { target, flags } => {
                add("target", text(target));
                add("flags", flags::umount(*flags));
            }
            Self::OpenTree { path, flags } => {
                add("path", text(path));
                add("flags", flags::at(*flags));
            }
            Self::FsOpen { kind } => add("fsname", text(kind)),
            Self::FsConfig { kind, key, value } => {
                add("fd", resolved(kind));
                match (key, value) {
                    (None, _) => add("cmd", "FSCONFIG_CMD_CREATE".to_owned()),
                    (Some(key), None) => {
                        add("cmd", "FSCONFIG_SET_FLAG".to_owned());
                        add("key", quoted(key));
                    }
                    (Some(key), Some(value)) => {
                        add("cmd", "FSCONFIG_SET_STRING".to_owned());
                        add("key", quoted(key));
                        add("value", quoted(value));
                    }
                }
            }
            Self::FsMount { kind, attributes } => {
                add("fd", resolved(kind));
                add("attr_flags", flags::attributes(*attributes));
            }
            Self::MoveMount { from, to } => {
                add("from_fd", object(from));
                add("to_fd", text(to));
            }
            Self::MountSetattr { mount, flags, set, clear, propagation, namespace } => {
                add("fd", object(mount));
                add("flags", flags::at(*flags));
                if *set != 0 {
                    add("attr_set", flags::attributes(*set));
                }
                if *clear != 0 {
                    add("attr_clr", flags::attributes(*clear));
                }
                if *propagation != 0 {
                    add("propagation", flags::mount(*propagation));
                }
                if let Some(namespace) = namespace {
                    add("userns_fd", namespace.clone());
                }
            }
            Self::PivotRoot { new, old } => {
                add("new_root", text(new));
                add("put_old", text(old));
            }
            Self::Chroot { path } => add("path", text(path)),
            Self::Sethostname { name } => add("name", text(name)),
            Self::SetIds { ids, .. } => {
                for (name, id) in ["real", "effective", "saved"].into_iter().zip(ids) {
                    add(name, if *id == u32::MAX { "-1".to_owned() } else { id.to_string() });
                }
            }
            Self::Setgroups { groups } => {
                add("list", groups.as_ref().map_or_else(|| UNREADABLE.into(), |groups| format!("{groups:?}")))
            }
            Self::Capset { sets: None } => add("data", UNREADABLE.to_owned()),
            Self::Capset { sets: Some(sets) } => {
                add("effective", format!("{:#x}", sets.effective));
                add("permitted", format!("{:#x}", sets.permitted));
                add("inheritable", format!("{:#x}", sets.inheritable));
            }
            Self::DropBounding { capabilities } => {
                add("option", "PR_CAPBSET_DROP".to_owned());
                let names: Vec<String> = capabilities
                    .iter()
                    .map(|number| format!("CAP_{}", flags::capability(*number).to_uppercase()))
                    .collect();
                add("capability", names.join("; "));
            }
            Self::Prctl { option, argument } => {
                let (name, value) = option.words(*argument);
                add("option", name.to_owned());
                add("argument", value);
            }
            Self::Seccomp { flags, instructions } => {
                add("operation", "SECCOMP_SET_MODE_FILTER".to_owned());
                add("flags", flags::seccomp(*flags));
                let filter = |count: &u16| format!("{{{count} instructions}}");
                add("filter", instructions.as_ref().map_or_else(|| UNREADABLE.into(), filter));
            }
            Self::Landlock => {}
            Self::Execve { path, argv, environment, .. } => {
                add("path", text(path));
                add("argv", argv.as_ref().map_or_else(|| UNREADABLE.into(), |argv| list(argv)));
                let variables = |all: &Vec<String>| format!("{{{} variables}}", all.len());
                add("envp", environment.as_ref().map_or_else(|| UNREADABLE.into(), variables));
            }
            Self::Mknod { path, mode } => {
                add("path", text(path));
                add("mode", file_type(*mode));
            }
            Self::Mkdir { path, mode } => {
                add("path", text(path));
                add("mode", format!("0{mode:o}"));
            }
            Self::Symlink { to, path } => {
                add("target", text(to));
                add("linkpath", text(path));
            }
            Self::Write { path, text: content, length } => {
                add("fd", quoted(path));
                add("buf", content.as_ref().map_or_else(|| "...".to_owned(), |text| quoted(text)));
                add("count", length.to_string());
            }
            Self::Prlimit { resource, limits } => {
                add("resource", flags::limit(*resource).0);
                let pair = |(soft, hard): &(u64, u64)| format!("{{{}, {}}}", amount(*soft), amount(*hard));
                add("new_limit", limits.as_ref().map_or_else(|| UNREADABLE.into(), pair));
            }
            Self::Netlink { namespace, requests, .. } => {
                add("fd", format!("netlink socket of {}", resolved(namespace)));
                let all: Vec<String> = requests.iter().map(ToString::to_string).collect();
                add("buf", all.join("; "));
            }
        }
        all
    }

    /// As it is written in C, without the result.
    pub fn line(&self) -> String {
        let arguments: Vec<String> = self.arguments().into_iter().map(|argument| argument.value).collect();
        format!("{}({})", self.name(), arguments.join(", "))
    }
}

impl Control {
    fn words(self, argument: u64) -> (&'static str, String) {
        let signal = i32::try_from(argument).unwrap_or_default();
        match self {
            Self::NoNewPrivileges => ("PR_SET_NO_NEW_PRIVS", argument.to_string()),
            Self::Dumpable => ("PR_SET_DUMPABLE", argument.to_string()),
            Self::KeepCapabilities => ("PR_SET_KEEPCAPS", argument.to_string()),
            Self::ParentDeathSignal if signal == 0 => ("PR_SET_PDEATHSIG", "0".to_owned()),
            Self::ParentDeathSignal => ("PR_SET_PDEATHSIG", flags::signal(signal)),
            Self::Ambient => {
                let names = ["0", "IS_SET", "RAISE", "LOWER", "CLEAR_ALL"];
                let name = names.get(argument as usize).copied().unwrap_or("0");
                ("PR_CAP_AMBIENT", format!("PR_CAP_AMBIENT_{name}"))
            }
        }
    }
}

/// A limit; the highest number is none.
pub(super) fn amount(value: u64) -> String {
    if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }
}

fn text(value: &Option<String>) -> String {
    value.as_ref().map_or_else(|| UNREADABLE.to_owned(), |value| quoted(value))
}

fn resolved(value: &Option<String>) -> String {
    value.clone().unwrap_or_else(|| UNREADABLE.to_owned())
}

/// In quotes, with everything escaped that would control a terminal.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

fn list(all: &[String]) -> String {
    let all: Vec<String> = all.iter().map(|text| quoted(text)).collect();
    format!("[{}]", all.join(", "))
}

fn object(object: &Option<Object>) -> String {
    let Some(object) = object else { return UNREADABLE.to_owned() };
    let mut text = String::new();
    // Writing to a string does not fail.
    match &object.origin {
        Origin::New { kind, options } => {
            write!(text, "new {kind}").ok();
            for (key, value) in options {
                match value {
                    Some(value) => write!(text, " {key}={value}").ok(),
                    None => write!(text, " {key}").ok(),
                };
            }
        }
        Origin::Copy { path, recursive } => {
            let below = if *recursive { " and all below" } else { "" };
            write!(text, "copy of {}{below}", quoted(path)).ok();
        }
    }
    text
}

fn file_type(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => "S_IFREG",
        libc::S_IFCHR => "S_IFCHR",
        libc::S_IFBLK => "S_IFBLK",
        libc::S_IFIFO => "S_IFIFO",
        _ => "S_IFSOCK",
    };
    format!("{kind}|0{:o}", mode & !libc::S_IFMT)
}
