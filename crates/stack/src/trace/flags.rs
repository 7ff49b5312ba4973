//! Numbers of the kernel's and their names.

use libc::c_int;

/// Namespaces of `clone(2)`, `unshare(2)` and `setns(2)`: flag, its name, the option of `unshare(1)` and `nsenter(1)`.
pub(super) const NAMESPACES: [(u64, &str, &str); 8] = [
    (libc::CLONE_NEWUSER as u64, "CLONE_NEWUSER", "--user"),
    (libc::CLONE_NEWNS as u64, "CLONE_NEWNS", "--mount"),
    (libc::CLONE_NEWPID as u64, "CLONE_NEWPID", "--pid"),
    (libc::CLONE_NEWNET as u64, "CLONE_NEWNET", "--net"),
    (libc::CLONE_NEWUTS as u64, "CLONE_NEWUTS", "--uts"),
    (libc::CLONE_NEWIPC as u64, "CLONE_NEWIPC", "--ipc"),
    (libc::CLONE_NEWCGROUP as u64, "CLONE_NEWCGROUP", "--cgroup"),
    (0x80, "CLONE_NEWTIME", "--time"),
];

/// Flags of `clone3(2)` besides [`NAMESPACES`].
const CLONE: [(u64, &str); 8] = [
    (libc::CLONE_VM as u64, "CLONE_VM"),
    (libc::CLONE_FS as u64, "CLONE_FS"),
    (libc::CLONE_FILES as u64, "CLONE_FILES"),
    (libc::CLONE_VFORK as u64, "CLONE_VFORK"),
    (libc::CLONE_PARENT as u64, "CLONE_PARENT"),
    (libc::CLONE_PIDFD as u64, "CLONE_PIDFD"),
    (0x1_0000_0000, "CLONE_CLEAR_SIGHAND"),
    (CLONE_INTO_CGROUP, "CLONE_INTO_CGROUP"),
];

/// `libc` has this one in a type that is too small for it.
pub(super) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// All namespaces that a call can make.
pub(super) const ANY_NAMESPACE: u64 = {
    let mut all = 0;
    let mut index = 0;
    while index < NAMESPACES.len() {
        all |= NAMESPACES[index].0;
        index += 1;
    }
    all
};

/// Flags of `mount(2)`: flag, its name, the option of `mount(8)`.
const MOUNT: [(u64, &str, &str); 15] = [
    (libc::MS_RDONLY, "MS_RDONLY", "ro"),
    (libc::MS_NOSUID, "MS_NOSUID", "nosuid"),
    (libc::MS_NODEV, "MS_NODEV", "nodev"),
    (libc::MS_NOEXEC, "MS_NOEXEC", "noexec"),
    (libc::MS_REMOUNT, "MS_REMOUNT", "remount"),
    (libc::MS_NOATIME, "MS_NOATIME", "noatime"),
    (libc::MS_NODIRATIME, "MS_NODIRATIME", "nodiratime"),
    (libc::MS_BIND, "MS_BIND", "bind"),
    (libc::MS_MOVE, "MS_MOVE", "move"),
    (libc::MS_REC, "MS_REC", "rec"),
    (libc::MS_UNBINDABLE, "MS_UNBINDABLE", "unbindable"),
    (libc::MS_PRIVATE, "MS_PRIVATE", "private"),
    (libc::MS_SLAVE, "MS_SLAVE", "slave"),
    (libc::MS_SHARED, "MS_SHARED", "shared"),
    (libc::MS_RELATIME, "MS_RELATIME", "relatime"),
];

/// Attributes of `mount_setattr(2)` and `fsmount(2)`: attribute, its name, the option of `mount(8)`.
const ATTRIBUTES: [(u64, &str, &str); 9] = [
    (libc::MOUNT_ATTR_RDONLY, "MOUNT_ATTR_RDONLY", "ro"),
    (libc::MOUNT_ATTR_NOSUID, "MOUNT_ATTR_NOSUID", "nosuid"),
    (libc::MOUNT_ATTR_NODEV, "MOUNT_ATTR_NODEV", "nodev"),
    (libc::MOUNT_ATTR_NOEXEC, "MOUNT_ATTR_NOEXEC", "noexec"),
    (libc::MOUNT_ATTR_NOATIME, "MOUNT_ATTR_NOATIME", "noatime"),
    (libc::MOUNT_ATTR_STRICTATIME, "MOUNT_ATTR_STRICTATIME", "strictatime"),
    (libc::MOUNT_ATTR_NODIRATIME, "MOUNT_ATTR_NODIRATIME", "nodiratime"),
    (libc::MOUNT_ATTR_IDMAP, "MOUNT_ATTR_IDMAP", "X-mount.idmap"),
    (libc::MOUNT_ATTR_NOSYMFOLLOW, "MOUNT_ATTR_NOSYMFOLLOW", "nosymfollow"),
];

/// Flags of `open_tree(2)`, `mount_setattr(2)` and other calls that take `AT_` flags.
const AT: [(u64, &str); 5] = [
    (1, "OPEN_TREE_CLONE"),
    (libc::O_CLOEXEC as u64, "OPEN_TREE_CLOEXEC"),
    (libc::AT_RECURSIVE as u64, "AT_RECURSIVE"),
    (libc::AT_EMPTY_PATH as u64, "AT_EMPTY_PATH"),
    (libc::AT_SYMLINK_NOFOLLOW as u64, "AT_SYMLINK_NOFOLLOW"),
];

/// Flags of `seccomp(2)`.
const SECCOMP: [(u64, &str); 4] = [
    (1, "SECCOMP_FILTER_FLAG_TSYNC"),
    (2, "SECCOMP_FILTER_FLAG_LOG"),
    (4, "SECCOMP_FILTER_FLAG_SPEC_ALLOW"),
    (8, "SECCOMP_FILTER_FLAG_NEW_LISTENER"),
];

/// Resource limits by number (getrlimit(2)): the name, and the option of `prlimit(1)`.
const LIMITS: [(&str, &str); 16] = [
    ("RLIMIT_CPU", "--cpu"),
    ("RLIMIT_FSIZE", "--fsize"),
    ("RLIMIT_DATA", "--data"),
    ("RLIMIT_STACK", "--stack"),
    ("RLIMIT_CORE", "--core"),
    ("RLIMIT_RSS", "--rss"),
    ("RLIMIT_NPROC", "--nproc"),
    ("RLIMIT_NOFILE", "--nofile"),
    ("RLIMIT_MEMLOCK", "--memlock"),
    ("RLIMIT_AS", "--as"),
    ("RLIMIT_LOCKS", "--locks"),
    ("RLIMIT_SIGPENDING", "--sigpending"),
    ("RLIMIT_MSGQUEUE", "--msgqueue"),
    ("RLIMIT_NICE", "--nice"),
    ("RLIMIT_RTPRIO", "--rtprio"),
    ("RLIMIT_RTTIME", "--rttime"),
];

/// Flags by name, or-ed as they are written in C; what has no name as a number.
fn or(flags: u64, names: impl Iterator<Item = (u64, &'static str)>) -> String {
    let mut left = flags;
    let mut words: Vec<String> = Vec::new();
    for (flag, name) in names {
        if left & flag == flag {
            left &= !flag;
            words.push(name.to_owned());
        }
    }
    if left != 0 || words.is_empty() {
        words.push(if left == 0 { "0".to_owned() } else { format!("{left:#x}") });
    }
    words.join("|")
}

/// Flags of a clone without the exit signal.
pub(super) fn clone(flags: u64) -> String {
    or(flags, NAMESPACES.iter().map(|(flag, name, _)| (*flag, *name)).chain(CLONE))
}

/// Options of `unshare(1)` for the new namespaces in `flags`.
pub(super) fn namespace_options(flags: u64) -> String {
    let options: Vec<&str> =
        NAMESPACES.iter().filter(|(flag, _, _)| flags & flag != 0).map(|(_, _, option)| *option).collect();
    options.join(" ")
}

/// Flags of `mount(2)`.
pub(super) fn mount(flags: u64) -> String {
    or(flags, MOUNT.iter().map(|(flag, name, _)| (*flag, *name)))
}

/// Options of `mount(8)` for flags of `mount(2)`.
pub(super) fn mount_options(flags: u64) -> Vec<&'static str> {
    MOUNT.iter().filter(|(flag, _, _)| flags & flag != 0).map(|(_, _, option)| *option).collect()
}

/// Attributes of a mount.
pub(super) fn attributes(attributes: u64) -> String {
    or(attributes, ATTRIBUTES.iter().map(|(flag, name, _)| (*flag, *name)))
}

/// Options of `mount(8)` for attributes of a mount.
pub(super) fn attribute_options(attributes: u64) -> Vec<&'static str> {
    ATTRIBUTES
        .iter()
        .filter(|(flag, _, _)| *flag != libc::MOUNT_ATTR_IDMAP && attributes & flag != 0)
        .map(|(_, _, option)| *option)
        .collect()
}

/// `AT_` and `OPEN_TREE_` flags.
pub(super) fn at(flags: u64) -> String {
    or(flags, AT.into_iter())
}

/// Flags of `seccomp(2)`.
pub(super) fn seccomp(flags: u64) -> String {
    or(flags, SECCOMP.into_iter())
}

/// Flags of `umount2(2)`.
pub(super) fn umount(flags: u64) -> String {
    let names = [
        (libc::MNT_FORCE as u64, "MNT_FORCE"),
        (libc::MNT_DETACH as u64, "MNT_DETACH"),
        (libc::MNT_EXPIRE as u64, "MNT_EXPIRE"),
        (libc::UMOUNT_NOFOLLOW as u64, "UMOUNT_NOFOLLOW"),
    ];
    or(flags, names.into_iter())
}

/// A capability in lower case without its prefix, as `setpriv(1)` has it.
pub(super) fn capability(number: u32) -> String {
    match container::capability::NAMES.get(number as usize) {
        Some(name) => name.trim_start_matches("CAP_").to_lowercase(),
        None => format!("cap_{number}"),
    }
}

/// The capabilities of a set.
pub(super) fn capabilities(set: u64) -> Vec<String> {
    (0..64).filter(|number| set & (1 << number) != 0).map(capability).collect()
}

/// A resource limit's name, and its option of `prlimit(1)`.
pub(super) fn limit(resource: u32) -> (String, Option<&'static str>) {
    match LIMITS.get(resource as usize) {
        Some((name, option)) => ((*name).to_owned(), Some(option)),
        None => (resource.to_string(), None),
    }
}

/// A signal's name.
pub(super) fn signal(number: c_int) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => number.to_string(),
    }
}

/// An error's name: `EPERM`.
pub(super) fn error(number: c_int) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_as_in_c() {
        let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_PIDFD) as u64;
        assert_eq!(clone(flags), "CLONE_NEWUSER|CLONE_NEWNS|CLONE_PIDFD");
        assert_eq!(namespace_options(flags), "--user --mount");
        assert_eq!(mount(0), "0");
        assert_eq!(mount(libc::MS_BIND | 1 << 40), "MS_BIND|0x10000000000");
        assert_eq!(attribute_options(libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_IDMAP), ["ro"]);
        assert_eq!(capabilities(1 << 21 | 1), ["chown", "sys_admin"]);
        assert_eq!(error(libc::EPERM), "EPERM");
        assert_eq!(signal(libc::SIGKILL), "SIGKILL");
    }
}
