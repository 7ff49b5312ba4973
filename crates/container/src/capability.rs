//! Capabilities by name (capabilities(7)) and Docker's default set.

use crate::Error;

/// Names in the order of their numbers, without `CAP_`.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What each of [`NAMES`] allows, in a line, after capabilities(7).
pub const MEANINGS: [&str; 41] = [
    "give files to any owner and group",
    "read, write and enter what file permissions forbid",
    "read files and search directories that permissions forbid",
    "change modes, times and attributes of files of other owners",
    "keep set-user-ID and set-group-ID bits when a file is changed",
    "signal processes of other users",
    "become any group, and choose the supplementary groups",
    "become any user",
    "drop capabilities from the bounding set, and hand own ones to children",
    "set the immutable and append-only flags of files",
    "listen on ports below 1024",
    "send broadcasts, listen to multicasts (no kernel code asks for it)",
    "configure interfaces, routes and packet filters of its network namespace",
    "use raw and packet sockets: ping, packet captures, forged packets",
    "lock any amount of memory",
    "use System V IPC objects that permissions forbid",
    "load and unload kernel modules",
    "reach I/O ports and physical memory",
    "call chroot, and enter mount namespaces",
    "trace processes, and read and write their memory",
    "switch process accounting on and off",
    "mount, unmount, make namespaces, and much else: nearly root",
    "reboot, and load another kernel",
    "raise priorities, choose schedulers and processors, for others too",
    "exceed quotas, reserved space and resource limits",
    "set the clock",
    "hang up and configure terminals",
    "make device nodes",
    "take leases on files of others",
    "write records to the audit log",
    "configure auditing",
    "give files capabilities",
    "override mandatory access control (Smack)",
    "configure mandatory access control (Smack)",
    "read and clear the kernel's log, see kernel addresses",
    "set timers that wake the machine up",
    "keep the machine from being suspended",
    "read the audit log",
    "monitor performance beyond own processes",
    "load BPF programs that need privileges",
    "checkpoint and restore processes, choose process ids",
];

/// Docker's default set.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SYS_CHROOT",
    "MKNOD",
    "AUDIT_WRITE",
    "SETFCAP",
];

/// The bit of a capability, given with or without `CAP_`, in any case.
///
/// # Errors
/// When there is no such capability.
pub fn bit(name: &str) -> Result<u64, Error> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES
        .iter()
        .position(|known| *known == short)
        .map(|number| 1 << number)
        .ok_or_else(|| Error::UnknownCapability(name.to_owned()))
}

/// Docker's default set changed by `add` and `drop`, as Docker does: `ALL` on either side stands for all,
/// single names on the other side are exceptions from it.
///
/// # Errors
/// When a name is no capability.
pub fn set(add: &[String], drop: &[String]) -> Result<u64, Error> {
    let all = (1u64 << NAMES.len()) - 1;
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut set = DEFAULT.iter().try_fold(0, |set, name| bit(name).map(|b| set | b))?;
    if drop.iter().any(is_all) {
        set = 0;
    }
    if add.iter().any(is_all) {
        set = all;
    }
    for name in add.iter().filter(|n| !is_all(n)) {
        set |= bit(name)?;
    }
    for name in drop.iter().filter(|n| !is_all(n)) {
        set &= !bit(name)?;
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_semantics() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(set(&[], &[]).unwrap(), 0xa804_25fb, "Docker's well-known mask");
        assert_eq!(set(&names(&["cap_chown"]), &names(&["ALL"])).unwrap(), 1);
        assert_eq!(set(&names(&["ALL"]), &names(&["CHOWN"])).unwrap(), (1 << 41) - 2);
        assert!(set(&names(&["CHWON"]), &[]).is_err());
    }
}
