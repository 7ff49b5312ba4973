//! What a step is for, in one sentence, and how it is done in a shell.

use super::call::{Call, Control, Object, Origin, amount};
use super::flags::{self, ANY_NAMESPACE};
use super::netlink::Request;
use super::script::words::{file_option, printf};
use super::step::{Role, Step};
use crate::words::quote;

/// What there is to say of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What it is for.
    pub purpose: String,
    /// Where to read on: pages of the manual.
    pub manual: &'static str,
    /// The nearest command of a shell; none where there is no such thing.
    pub shell: Option<String>,
}

/// Explains a step. A pure function of it.
pub fn explain(step: &Step) -> Explanation {
    let (purpose, manual, shell) = match &step.call {
        Call::Clone { flags, .. } => clone(step.who.role, *flags),
        Call::Unshare { flags } => unshare(*flags),
        Call::Setns { to, flags } => setns(step.who.role, to.as_deref(), *flags),
        Call::Mount { .. }
        | Call::Umount { .. }
        | Call::OpenTree { .. }
        | Call::FsOpen { .. }
        | Call::FsConfig { .. }
        | Call::FsMount { .. }
        | Call::MoveMount { .. }
        | Call::MountSetattr { .. }
        | Call::PivotRoot { .. }
        | Call::Chroot { .. }
        | Call::Mknod { .. }
        | Call::Mkdir { .. }
        | Call::Symlink { .. } => files(step),
        Call::Sethostname { name } => (
            "gives the UTS namespace its host name, which the host does not see".to_owned(),
            "sethostname(2), uts_namespaces(7)",
            name.as_ref().map(|name| format!("hostname {}", quote(name))),
        ),
        Call::Execve { .. } => execve(step),
        Call::Write { path, text, .. } => write(path, text.as_deref()),
        Call::Netlink { requests, .. } => netlink(requests),
        _ => identity(&step.call),
    };
    Explanation { purpose, manual, shell }
}

type Parts = (String, &'static str, Option<String>);

fn clone(maker: Role, new: u64) -> Parts {
    let namespaces = new & ANY_NAMESPACE;
    if new & libc::CLONE_NEWUSER as u64 != 0 {
        let purpose = match maker {
            Role::Command => {
                "makes a storage worker: root of a user namespace of its own, who alone writes layers; when it dies the \
                 kernel ends everything in it"
            }
            _ => {
                "makes the stack's hub: root of a user namespace of its own, which owns all other namespaces here, and \
                 PID 1 of the stack; when it dies the kernel ends everything in it"
            }
        };
        return (
            purpose.to_owned(),
            "clone(2), user_namespaces(7), pid_namespaces(7)",
            Some(format!("unshare {} --fork --kill-child sh", flags::namespace_options(namespaces))),
        );
    }
    if namespaces != 0 {
        let purpose = match (maker, namespaces & libc::CLONE_NEWPID as u64) {
            (Role::Worker, 0) => {
                "makes the keeper, in a network namespace in which it wires the network of RUN instructions"
            }
            (Role::Worker, _) => {
                "makes the first process of a RUN instruction in namespaces of its own; the user namespace is the worker's"
            }
            _ => {
                "makes the first process of a container in namespaces of its own; the user namespace is the hub's"
            }
        };
        return (
            purpose.to_owned(),
            "clone(2), namespaces(7)",
            Some(format!("unshare {} --fork sh", flags::namespace_options(namespaces))),
        );
    }
    let purpose = match maker {
        Role::Init => {
            "makes the process that becomes the program; PID 1 stays, to reap orphans and pass signals on"
        }
        Role::Joiner => "makes the process that becomes the program in the container, as the hub's child",
        _ => "makes a process for one task",
    };
    (purpose.to_owned(), "clone(2)", Some("( ... ) &".to_owned()))
}

fn unshare(namespaces: u64) -> Parts {
    let purpose = match namespaces as i32 {
        libc::CLONE_NEWNET => "makes a network namespace: nothing in it but a loopback device that is down",
        libc::CLONE_NEWCGROUP => {
            "makes a cgroup namespace: its own cgroup is the root of what it sees of the hierarchy"
        }
        libc::CLONE_NEWNS => "makes a mount namespace: a copy of the mount table that others do not see",
        _ => "leaves namespaces behind for new ones",
    };
    let shell = format!("unshare {} sh", flags::namespace_options(namespaces));
    (purpose.to_owned(), "unshare(2), namespaces(7)", Some(shell))
}

fn setns(role: Role, to: Option<&str>, kinds: u64) -> Parts {
    let namespace = to.unwrap_or("?");
    let (pid, ipc) = (libc::CLONE_NEWPID as u64, libc::CLONE_NEWIPC as u64);
    let purpose = match role {
        Role::Hub if kinds == pid => {
            format!("has the children that follow be born in the PID namespace of {namespace}")
        }
        Role::Child if kinds == ipc => {
            format!("enters the IPC namespace of {namespace}, which another service has made")
        }
        Role::Hub => format!("goes to the network namespace {namespace} to work there"),
        Role::Child => {
            format!(
                "enters {namespace}, the container's network namespace, which has been made and wired for it"
            )
        }
        _ => format!("enters the namespaces of a process that runs in the container ({namespace})"),
    };
    let options = flags::namespace_options(if kinds == 0 { ANY_NAMESPACE } else { kinds });
    (purpose, "setns(2), namespaces(7)", Some(format!("nsenter --target PID {options} sh")))
}

fn files(step: &Step) -> Parts {
    let hub = step.who.role == Role::Hub;
    match &step.call {
        Call::Mount { source, target, kind, flags: bits, data } => mount(source, target, kind, *bits, data),
        Call::Umount { target, flags } => {
            let lazy = if flags & libc::MNT_DETACH as u64 != 0 { "-l " } else { "" };
            (
                "takes the old root away: nothing of the host's files can be reached from here on".to_owned(),
                "umount(2), pivot_root(2)",
                target.as_ref().map(|target| format!("umount {lazy}{}", quote(target))),
            )
        }
        Call::OpenTree { path, flags } => {
            let below = if flags & libc::AT_RECURSIVE as u64 != 0 { ", with all below it" } else { "" };
            let path = path.as_deref().unwrap_or("?");
            let purpose = format!("takes a copy of what is at {path}{below}, not attached anywhere yet");
            (purpose, "open_tree(2)", None)
        }
        Call::FsOpen { kind } => {
            let kind = kind.as_deref().unwrap_or("?");
            (format!("begins a new file system of the type {kind}"), "fsopen(2), filesystems(5)", None)
        }
        Call::FsConfig { key: Some(key), .. } => {
            (format!("sets its option `{key}`"), "fsconfig(2), mount(8)", None)
        }
        Call::FsConfig { key: None, .. } => ("has the kernel make it with these options".to_owned(), "fsconfig(2)", None),
        Call::FsMount { .. } => {
            ("makes a mount of it, not attached anywhere yet".to_owned(), "fsmount(2)", None)
        }
        Call::MoveMount { from, to } => attach(from.as_ref(), to.as_deref()),
        Call::MountSetattr { set, namespace, propagation, .. } => set_attributes(*set, namespace.is_some(), *propagation),
        Call::PivotRoot { new, .. } => (
            "makes the image the root of this mount namespace; the host's root lies on top of it for a moment".to_owned(),
            "pivot_root(2)",
            new.as_ref().map(|new| format!("cd {} && pivot_root . .", quote(new))),
        ),
        Call::Chroot { path } => (
            "changes the directory that `/` means to this process".to_owned(),
            "chroot(2)",
            path.as_ref().map(|path| format!("chroot {} sh", quote(path))),
        ),
        Call::Mknod { path, mode } if mode & libc::S_IFMT == libc::S_IFREG || mode & libc::S_IFMT == 0 => (
            "makes an empty file in the writable layer, for a file to be mounted on".to_owned(),
            "mknod(2)",
            path.as_ref().map(|path| format!("touch {}", quote(path))),
        ),
        Call::Mknod { path, .. } => (
            "makes a device file".to_owned(),
            "mknod(2)",
            path.as_ref().map(|path| format!("mknod {} ...", quote(path))),
        ),
        Call::Mkdir { path, .. } => {
            let path = path.as_deref().unwrap_or("?");
            let purpose = match (super::decode::is_cgroup(path), hub) {
                (true, _) => "makes a cgroup: a group of processes that limits are set for",
                (false, true) => "makes a directory of the container's writable layer or of the store",
                (false, false) => "makes a directory in the writable layer, for something to be mounted on",
            };
            (purpose.to_owned(), "mkdir(2), cgroups(7)", Some(format!("mkdir {}", quote(path))))
        }
        Call::Symlink { to, path } => (
            "makes a symbolic link that programs expect".to_owned(),
            "symlink(2)",
            to.as_ref().zip(path.as_ref()).map(|(to, path)| format!("ln -s {} {}", quote(to), quote(path))),
        ),
        _ => (String::new(), "", None),
    }
}

fn mount(
    source: &Option<String>,
    target: &Option<String>,
    kind: &Option<String>,
    bits: u64,
    data: &Option<String>,
) -> Parts {
    let (source, target) = (source.as_deref().unwrap_or("?"), target.as_deref().unwrap_or("?"));
    let has = |flag: u64| bits & flag != 0;
    if has(libc::MS_PRIVATE | libc::MS_SLAVE) {
        let word = if has(libc::MS_PRIVATE) { "private" } else { "slave" };
        let option = if has(libc::MS_REC) { format!("--make-r{word}") } else { format!("--make-{word}") };
        return (
            "cuts the ties of this mount table to the host's: what is mounted here is seen nowhere else"
                .to_owned(),
            "mount(2), mount_namespaces(7)",
            Some(format!("mount {option} {}", quote(target))),
        );
    }
    if has(libc::MS_BIND) {
        return (
            format!("shows {source} at {target}, too"),
            "mount(2)",
            Some(format!("mount --bind {} {}", quote(source), quote(target))),
        );
    }
    let kind = kind.as_deref().unwrap_or("?");
    let mut options: Vec<String> = flags::mount_options(bits).into_iter().map(str::to_owned).collect();
    options.extend(data.clone().filter(|data| !data.is_empty()));
    let shell = format!("mount -t {kind}{} {} {}", file_option(&options), quote(source), quote(target));
    match kind {
        "overlay" => (
            "lays the image's read-only layers and one writable directory over each other: the container's root".to_owned(),
            "mount(2); overlayfs in the kernel's documentation",
            Some(shell),
        ),
        "tmpfs" => (
            "makes a file system in memory for files that are generated for this container".to_owned(),
            "mount(2), tmpfs(5)",
            Some(shell),
        ),
        _ => (format!("mounts a file system of the type {kind}"), "mount(2), filesystems(5)", Some(shell)),
    }
}

fn attach(object: Option<&Object>, to: Option<&str>) -> Parts {
    let to = to.unwrap_or("?");
    let Some(object) = object else { return (format!("attaches a mount at {to}"), "move_mount(2)", None) };
    let purpose = match &object.origin {
        Origin::New { kind, .. } => match kind.as_str() {
            "proc" => "shows the processes of its own PID namespace, and no others".to_owned(),
            "sysfs" => "shows the devices of its own network namespace".to_owned(),
            "devpts" => "gives the container terminals of its own".to_owned(),
            "mqueue" => "shows the message queues of its own IPC namespace".to_owned(),
            "cgroup2" => "shows its own cgroup".to_owned(),
            "tmpfs" if is_empty_cover(object) => "hides what is there behind an empty directory".to_owned(),
            _ => "attaches the new file system".to_owned(),
        },
        Origin::Copy { path, .. } if path == to => "puts the changed copy over the original".to_owned(),
        Origin::Copy { path, .. } if path.ends_with("/dev/null") && !to.ends_with("/dev/null") => {
            "hides what is there behind /dev/null".to_owned()
        }
        Origin::Copy { path, .. } => format!("shows {path} there"),
    };
    let shell = super::script::words::mount(object, to).join(" && ");
    (purpose, "move_mount(2), mount(8)", Some(shell))
}

/// A file system with nothing in it that nothing can be put into.
fn is_empty_cover(object: &Object) -> bool {
    let Origin::New { options, .. } = &object.origin else { return false };
    options.iter().any(|(key, value)| key == "size" && value.as_deref() == Some("0"))
}

fn set_attributes(set: u64, mapped: bool, propagation: u64) -> Parts {
    let purpose = if mapped {
        "maps the owners of its files: what belongs to id N on the host belongs to id N in the container"
    } else if propagation != 0 {
        "decides whether mounts below it reach others"
    } else if set & libc::MOUNT_ATTR_RDONLY != 0 {
        "makes it read-only, and more, for everybody who sees it by this mount"
    } else {
        "takes away what nothing needs there: device files, set-user-id programs, or programs at all"
    };
    let options = flags::attribute_options(set);
    let shell = (!options.is_empty()).then(|| format!("mount -o remount,bind,{} ...", options.join(",")));
    (purpose.to_owned(), "mount_setattr(2), mount(8)", shell)
}

fn identity(call: &Call) -> Parts {
    match call {
        Call::SetIds { call, ids } => {
            let kind = if *call == "setresuid" { "user" } else { "group" };
            let manual = "setresuid(2), user_namespaces(7)";
            let option = if *call == "setresuid" { "--reuid" } else { "--regid" };
            (
                format!("takes on the {kind} id {} of this user namespace", ids[1]),
                manual,
                Some(format!("setpriv {option}={} ...", ids[1])),
            )
        }
        Call::Setgroups { groups } => {
            let groups: Option<Vec<String>> =
                groups.as_ref().map(|groups| groups.iter().map(u32::to_string).collect());
            let option = match groups {
                Some(groups) if groups.is_empty() => "--clear-groups".to_owned(),
                Some(groups) => format!("--groups={}", groups.join(",")),
                None => "--groups=...".to_owned(),
            };
            (
                "sets the supplementary groups: none that it had before stay".to_owned(),
                "setgroups(2)",
                Some(format!("setpriv {option} ...")),
            )
        }
        Call::Capset { sets } => {
            let kept = sets.map(|sets| flags::capabilities(sets.permitted));
            let purpose = match kept {
                Some(kept) if kept.is_empty() => "gives up all capabilities".to_owned(),
                Some(kept) => format!("keeps these {} capabilities only: {}", kept.len(), kept.join(", ")),
                None => "gives up capabilities".to_owned(),
            };
            (purpose, "capset(2), capabilities(7)", Some("capsh --caps=... -- -c ...".to_owned()))
        }
        Call::DropBounding { capabilities } => {
            let names: Vec<String> =
                capabilities.iter().map(|number| format!("-{}", flags::capability(*number))).collect();
            (
                format!(
                    "bars {} capabilities for good, whatever program is executed later",
                    capabilities.len()
                ),
                "prctl(2), capabilities(7)",
                Some(format!("setpriv --bounding-set={} ...", names.join(","))),
            )
        }
        Call::Prctl { option, argument } => control(*option, *argument),
        Call::Seccomp { .. } => (
            "loads a filter that the kernel asks about every system call from here on".to_owned(),
            "seccomp(2)",
            None,
        ),
        Call::Landlock => {
            ("gives up access to files that the service is not to reach".to_owned(), "landlock(7)", None)
        }
        Call::Prlimit { resource, limits } => {
            let (name, option) = flags::limit(*resource);
            let shell = option.zip(limits.as_ref()).map(|(option, (soft, hard))| {
                format!("prlimit --pid $$ {option}={}:{}", amount(*soft), amount(*hard))
            });
            (format!("limits what a single process may use ({name})"), "getrlimit(2), prlimit(1)", shell)
        }
        _ => (String::new(), "", None),
    }
}

fn control(option: Control, argument: u64) -> Parts {
    let (purpose, shell) = match option {
        Control::NoNewPrivileges => (
            "no program that is executed from here on gets more rights than this one: set-user-id does nothing",
            Some("setpriv --no-new-privs ..."),
        ),
        Control::Dumpable if argument == 0 => {
            ("hides its memory, which is a copy of the hub's, from everybody but the host's root", None)
        }
        Control::Dumpable => ("lets itself be looked at again, to write to its own files in /proc", None),
        Control::ParentDeathSignal if argument == 0 => ("goes on when its parent ends", None),
        Control::ParentDeathSignal => (
            "ties its life to its parent's: the kernel kills it when that ends",
            Some("setpriv --pdeathsig=KILL ..."),
        ),
        Control::KeepCapabilities if argument == 0 => ("capabilities go with the user id again", None),
        Control::KeepCapabilities => {
            ("keeps its capabilities over the change of the user id, to cut them to size after it", None)
        }
        Control::Ambient => (
            "sets which capabilities survive the execution of a program",
            Some("setpriv --ambient-caps=-all ..."),
        ),
    };
    (purpose.to_owned(), "prctl(2)", shell.map(str::to_owned))
}

fn execve(step: &Step) -> Parts {
    let Call::Execve { path, argv, .. } = &step.call else { return (String::new(), "", None) };
    let words: Vec<&str> = argv.iter().flatten().map(String::as_str).collect();
    let program = path.as_deref().unwrap_or("?");
    let name = program.rsplit('/').next().unwrap_or(program);
    let purpose = match (step.who.role, words.get(..2)) {
        (Role::Command, _) => "becomes the command that builds: our own program, executed again".to_owned(),
        (_, Some([_, crate::supervisor::ARGUMENT])) => "becomes the stack's supervisor: our own program, executed again".to_owned(),
        (_, Some([_, crate::netd::ARGUMENT])) => {
            "becomes netd, which carries what goes into the stack and out of it; not watched from here on".to_owned()
        }
        (Role::Helper, Some([container::program::NAME, _])) => {
            "executes our init from a sealed file in memory, to enter the container with none of our memory".to_owned()
        }
        (_, Some([container::program::NAME, _])) => {
            "becomes the container's PID 1: our init, a static program in a sealed file in memory".to_owned()
        }
        (Role::Helper, _) if matches!(name, "newuidmap" | "newgidmap") => {
            "has the map of ids written by a program that may; it is not watched, or its file's rights would not count"
                .to_owned()
        }
        (Role::Helper, _) => format!("becomes {name}, which is not watched"),
        _ => "becomes the container's program; what it does is its own business and is not watched".to_owned(),
    };
    let shell = match name {
        "newuidmap" | "newgidmap" => words.join(" "),
        _ => format!("exec {}", words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")),
    };
    let manual = if name.starts_with("newuid") || name.starts_with("newgid") {
        "newuidmap(1), subuid(5), user_namespaces(7)"
    } else {
        "execve(2)"
    };
    (purpose, manual, Some(shell).filter(|shell| !shell.contains("memfd") && shell != "exec "))
}

fn write(path: &str, text: Option<&str>) -> Parts {
    let name = path.rsplit('/').next().unwrap_or(path);
    let shell = text.map(|text| format!("{} > {}", printf(text), quote(path)));
    let (purpose, manual) = match name {
        "uid_map" | "gid_map" => (
            "says which ids of the host the ids in the new user namespace are".to_owned(),
            "user_namespaces(7)",
        ),
        "setgroups" => {
            ("allows or forbids changes of groups in the user namespace".to_owned(), "user_namespaces(7)")
        }
        "oom_score_adj" => (
            "says how likely the kernel ends it when memory is short".to_owned(),
            "proc_pid_oom_score_adj(5)",
        ),
        "cgroup.procs" => ("moves a process into the cgroup".to_owned(), "cgroups(7)"),
        "cgroup.subtree_control" => {
            ("lets cgroups below this one use these controllers".to_owned(), "cgroups(7)")
        }
        _ if super::decode::is_cgroup(path) => (format!("sets `{name}` of the cgroup"), "cgroups(7)"),
        _ if path.starts_with("/proc/sys/") => (
            format!("sets `{}` in the namespace that it belongs to", path.trim_start_matches("/proc/sys/")),
            "sysctl(8), proc(5)",
        ),
        _ => {
            let target = name.replace("%2F", "/").replace("%25", "%");
            let purpose =
                format!("writes the container's /{target} (its content may be secret and is not shown)");
            return (purpose, "write(2)", Some(format!("cat > {}", quote(path))));
        }
    };
    (purpose, manual, shell)
}

fn netlink(requests: &[Request]) -> Parts {
    let mut purposes: Vec<&str> = Vec::new();
    for request in requests {
        let purpose = match request {
            Request::Link { kind: Some(kind), .. } if kind == "bridge" => {
                "makes a bridge, the switch of a network"
            }
            Request::Link { kind: Some(kind), .. } if kind == "veth" => {
                "makes a pair of links, one end a port of the bridge, the other in the container's network namespace"
            }
            Request::Link { .. } => "changes a link",
            Request::DeleteLink { .. } => "deletes a link",
            Request::Address { .. } => "gives a link its address",
            Request::Route { local: true, .. } => "has marked packets delivered to our own sockets",
            Request::Route { .. } => "says where packets go",
            Request::Rule { .. } => "says which routing table is asked",
            Request::Nftables(_) => {
                "has the kernel filter packets, and lead those that leave the network to netd"
            }
            Request::Queue => "opens a queue that the kernel puts first packets into, for netd to decide on",
            Request::Other(_) => "changes the network namespace",
        };
        if !purposes.contains(&purpose) {
            purposes.push(purpose);
        }
    }
    let commands: Vec<String> =
        requests.iter().flat_map(|request| request.commands(&|namespace| format!("'{namespace}'"))).collect();
    let nft = requests.iter().any(|request| matches!(request, Request::Nftables(_)));
    let queue = requests.iter().any(|request| matches!(request, Request::Queue));
    let shell = match (commands.is_empty(), nft) {
        (false, _) => Some(commands.join(" && ")),
        (true, true) => Some("nft -f ...".to_owned()),
        (true, false) => None,
    };
    let manual = match (nft, queue) {
        (true, _) => "netlink(7), nft(8)",
        (false, true) => "netlink(7)",
        (false, false) => "rtnetlink(7), ip(8)",
    };
    (purposes.join("; "), manual, shell)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::step::{Outcome, Who};
    use super::*;

    fn explained(role: Role, call: Call) -> (String, Option<String>) {
        let who = Who { pid: 7, role, container: None };
        let step =
            Step { time: SystemTime::UNIX_EPOCH, who, call, outcome: Outcome::Returned(0), made: None };
        let Explanation { purpose, manual, shell } = explain(&step);
        assert!(!purpose.is_empty() && manual.contains('('), "{step:?}");
        (purpose, shell)
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_clone_by_who_makes_it() {
        let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNET) as u64;
        let (purpose, shell) =
            explained(Role::Supervisor, Call::Clone { call: "clone3", flags, cgroup: None });
        assert!(purpose.contains("hub"), "{purpose}");
        assert_eq!(shell, some("unshare --user --pid --net --fork --kill-child sh"));
        let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
        let (_, shell) = explained(Role::Hub, Call::Clone { call: "clone3", flags, cgroup: None });
        assert_eq!(shell, some("unshare --mount --pid --fork sh"));
    }

    #[test]
    fn a_mount_as_mount_has_it() {
        let call = Call::Mount {
            source: some("overlay"),
            target: some("mnt/root"),
            kind: some("overlay"),
            flags: libc::MS_NODEV,
            data: some("userxattr,lowerdir=l/a"),
        };
        let (_, shell) = explained(Role::Child, call);
        assert_eq!(shell, some("mount -t overlay -o nodev,userxattr,lowerdir=l/a overlay mnt/root"));
        let object = Object {
            origin: Origin::New { kind: "tmpfs".into(), options: vec![("size".into(), some("0"))] },
            attributes: libc::MOUNT_ATTR_RDONLY,
        };
        let (purpose, shell) =
            explained(Role::Child, Call::MoveMount { from: Some(object), to: some("/r/proc/acpi") });
        assert!(purpose.contains("hides"), "{purpose}");
        assert_eq!(
            shell,
            some("mount -t tmpfs -o size=0 tmpfs /r/proc/acpi && mount -o remount,bind,ro /r/proc/acpi")
        );
    }

    #[test]
    fn files_of_the_kernel_as_echo_has_them() {
        let write = |path: &str, text: &str| Call::Write { path: path.into(), text: some(text), length: 1 };
        let (_, shell) = explained(Role::Supervisor, write("/proc/7/uid_map", "0 1 2\n"));
        assert_eq!(shell, some(r"printf '0 1 2\n' > /proc/7/uid_map"));
        let (purpose, _) = explained(Role::Supervisor, write("/sys/fs/cgroup/a/memory.max", "1"));
        assert!(purpose.contains("`memory.max` of the cgroup"), "{purpose}");
        let secret = Call::Write { path: "/d/mnt/scratch/run%2Fsecrets%2Fx".into(), text: None, length: 9 };
        let (purpose, _) = explained(Role::Child, secret);
        assert!(purpose.contains("/run/secrets/x") && purpose.contains("not shown"), "{purpose}");
    }

    #[test]
    fn identity_as_setpriv_has_it() {
        let (_, shell) = explained(Role::Child, Call::SetIds { call: "setresuid", ids: [33; 3] });
        assert_eq!(shell, some("setpriv --reuid=33 ..."));
        let (_, shell) = explained(Role::Child, Call::DropBounding { capabilities: vec![21, 12] });
        assert_eq!(shell, some("setpriv --bounding-set=-sys_admin,-net_admin ..."));
        let sets = super::super::call::CapabilitySets { effective: 1, permitted: 1, inheritable: 0 };
        let (purpose, _) = explained(Role::Child, Call::Capset { sets: Some(sets) });
        assert!(purpose.ends_with("chown"), "{purpose}");
    }

    #[test]
    fn a_helper_is_told_of_before_it_is_let_go() {
        let call = Call::Execve {
            call: "execve",
            path: some("/usr/bin/newuidmap"),
            argv: Some(["newuidmap", "7", "0", "1000", "1"].map(str::to_owned).to_vec()),
            environment: None,
            directory: None,
        };
        let (purpose, shell) = explained(Role::Helper, call);
        assert!(purpose.contains("not watched"), "{purpose}");
        assert_eq!(shell, some("newuidmap 7 0 1000 1"));
    }
}
