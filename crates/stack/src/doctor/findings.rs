//! From facts to findings. Pure: no file is read here.

use std::collections::BTreeMap;
use std::ops::Range;

use container::cgroup::{Controller, Reason};

use super::attempt::{Attempt, Packets};
use super::facts::{Facts, Helper, Layout, RuntimeState};
use super::{Check, Status};

/// overlayfs in a user namespace came with 5.11, `mount_setattr(2)` and idmapped mounts with 5.12.
const KERNEL: (u32, u32) = (5, 12);
/// What five services with Debian images, and building them, take.
const ROOM: u64 = 4 << 30;
/// With less than this not even a base image fits.
const ROOM_LEAST: u64 = 512 << 20;
/// Files of five Debian images, and their layers while they are built.
const INODES: u64 = 200_000;
/// Fewer than one base image has.
const INODES_LEAST: u64 = 20_000;
/// The ids that images use: `nobody` is 65534.
const IDS: u32 = 65_535;
/// The lowest port of the five services: ftp's.
const LOWEST_PORT: u64 = 21;

/// What a kernel can do from some version on, and what is lost below.
struct Feature {
    since: (u32, u32),
    name: &'static str,
    loses: &'static str,
    /// Worth a warning; the others are told of in passing.
    matters: bool,
}

/// Everything that is used where it is there and done without where it is not.
const FEATURES: [Feature; 8] = [
    Feature { since: (5, 13), name: "Landlock", loses: "`landlock` of a service is refused", matters: true },
    Feature {
        since: (5, 14),
        name: "cgroup.kill",
        loses: "the processes of a container are killed one by one",
        matters: true,
    },
    Feature {
        since: (5, 14),
        name: "cpu.max.burst",
        loses: "`inception-oci` refuses a CPU burst",
        matters: false,
    },
    Feature { since: (5, 15), name: "cpu.idle", loses: "`inception-oci` refuses CPU idle", matters: false },
    Feature {
        since: (5, 19),
        name: "memory.peak",
        loses: "the most memory that a service used is not known",
        matters: false,
    },
    Feature {
        since: (6, 2),
        name: "Landlock for truncation",
        loses: "files that `landlock` makes read-only can still be cut to nothing",
        matters: false,
    },
    Feature {
        since: (6, 3),
        name: "idmapped mounts of tmpfs",
        loses: "as root, bind mounts from a tmpfs are refused",
        matters: false,
    },
    Feature {
        since: (6, 6),
        name: "user attributes on tmpfs",
        loses: "the data directory cannot be on a tmpfs",
        matters: false,
    },
];

/// All findings, what stops everything first.
pub(super) fn all(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![kernel(facts)];
    checks.extend(features(facts));
    checks.extend(calls(facts));
    checks.extend(switches(facts));
    if !facts.root {
        checks.push(subordinate_ids(facts));
        checks.extend(facts.helpers.iter().map(helper));
    }
    checks.extend(facts.attempt.as_ref().map(attempt).unwrap_or_default());
    checks.push(seccomp(facts));
    checks.push(landlock(facts));
    checks.push(limits(facts));
    if !facts.root {
        checks.extend(session(facts));
        checks.push(low_ports(facts));
        checks.push(ping(facts));
    }
    checks.extend(data_directory(facts));
    checks.push(room(facts));
    checks.push(inodes(facts));
    checks.push(runtime_directory(facts));
    checks.push(bases(facts));
    checks
}

/// Whether an attempt can tell anything new: not when a switch is known to be off.
pub(super) fn may_attempt(facts: &Facts) -> bool {
    let ids = if facts.root { Vec::new() } else { facts.helpers.iter().map(helper).collect() };
    let known = switches(facts).into_iter().chain(ids);
    (facts.root || facts.ids.is_ok()) && known.into_iter().all(|check| check.status != Status::Error)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Check {
    let release = &facts.kernel;
    match version(release) {
        Some(found) if found < KERNEL => Check::error(
            "kernel",
            format!("Linux {release}; mounts in a user namespace need {}.{}", KERNEL.0, KERNEL.1),
            "install a newer kernel (Debian 12 and Ubuntu 22.04 have one)",
        ),
        _ => Check::ok("kernel", format!("Linux {release}")),
    }
}

/// What this kernel is too old for.
fn features(facts: &Facts) -> Option<Check> {
    let name = "kernel features";
    let found = version(&facts.kernel).filter(|found| *found >= KERNEL)?;
    let (missing, there): (Vec<&Feature>, Vec<&Feature>) =
        FEATURES.iter().partition(|feature| found < feature.since);
    let list = |features: &[&Feature]| {
        let names = features.iter().map(|f| format!("{} ({}.{})", f.name, f.since.0, f.since.1));
        names.collect::<Vec<_>>().join(", ")
    };
    if missing.is_empty() {
        return Some(Check::ok(name, list(&there)));
    }
    let cost: Vec<&str> = missing.iter().map(|feature| feature.loses).collect();
    let status = if missing.iter().any(|f| f.matters) { Status::Warning } else { Status::Ok };
    Some(Check {
        name,
        status,
        found: format!("this kernel is too old for {}", list(&missing)),
        cost: Some(cost.join("; ")),
        fix: Some("a newer kernel, for example your distribution's backport".to_owned()),
    })
}

/// Calls that a kernel of this version has, unless somebody is in between.
fn calls(facts: &Facts) -> Vec<Check> {
    let name = "system calls";
    let around = "a container or a sandbox around this shell blocks it: allow it there, or run outside";
    let mut checks = Vec::new();
    for (call, result) in [("pidfd_open", &facts.calls.pidfd), ("openat2", &facts.calls.openat2)] {
        if let Err(error) = result {
            checks.push(Check::error(name, format!("{call}: {error}"), around));
        }
    }
    if !facts.calls.clone3 {
        checks.push(Check::warning(
            name,
            "clone3 is blocked",
            "services with limits cannot start, because nothing is born in its cgroup without it",
            around,
        ));
    }
    if checks.is_empty() {
        checks.push(Check::ok(name, "clone3, pidfd_open and openat2 can be called"));
    }
    checks
}

/// Keeps a kernel setting over a reboot, and sets it now.
fn persistent(setting: &str) -> String {
    format!("echo '{setting}' | sudo tee -a /etc/sysctl.d/60-inception-run.conf && sudo sysctl --system")
}

/// The switches that distributions have for user namespaces.
fn switches(facts: &Facts) -> Vec<Check> {
    let name = "user namespaces";
    let switches = &facts.switches;
    let mut checks = Vec::new();
    match switches.most {
        Some(0) => checks.push(Check::error(
            name,
            "user.max_user_namespaces is 0",
            persistent("user.max_user_namespaces = 15000"),
        )),
        None => checks.push(Check::error(
            name,
            "the kernel was built without them (CONFIG_USER_NS)",
            "install your distribution's standard kernel",
        )),
        Some(_) => {}
    }
    if facts.root {
        return checks;
    }
    if switches.unprivileged == Some(0) {
        checks.push(Check::error(
            name,
            "kernel.unprivileged_userns_clone is 0: only root may make them",
            persistent("kernel.unprivileged_userns_clone = 1"),
        ));
    }
    if switches.apparmor == Some(1) && !switches.has_profile {
        checks.push(Check::error(
            "AppArmor",
            "kernel.apparmor_restrict_unprivileged_userns is 1: programs need a profile to use user namespaces",
            apparmor_profile(facts),
        ));
    }
    checks
}

/// A profile for our binary alone: the restriction stays on for everything else.
fn apparmor_profile(facts: &Facts) -> String {
    format!(
        "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile inception-run {} flags=(unconfined) {{\\n  \
         userns,\\n}}\\n' | sudo tee /etc/apparmor.d/inception-run && \
         sudo apparmor_parser -r /etc/apparmor.d/inception-run",
        facts.binary.display()
    )
}

fn subordinate_ids(facts: &Facts) -> Check {
    let name = "subordinate ids";
    match &facts.ids {
        Ok(ids) if ids.count < IDS => Check::warning(
            name,
            format!("only {}; images use ids up to {IDS} (`nobody` is 65534)", ids.count),
            "images with higher ids cannot be unpacked, and programs that change to one fail",
            format!(
                "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}    \
                 # any 65536 ids that no other entry of /etc/subuid and /etc/subgid covers",
                facts.user
            ),
        ),
        Ok(ids) => Check::ok(name, format!("{} from {}", ids.count, ids.first)),
        Err(refusal) => Check::error(name, refusal.message.clone(), refusal.hint.clone()),
    }
}

fn helper(helper: &Helper) -> Check {
    let Helper { name, capability, installed } = helper;
    let Some(installed) = installed else {
        return Check::error(
            name,
            "not installed",
            "sudo apt-get install uidmap    # Fedora: dnf install shadow-utils; Arch: pacman -S shadow",
        );
    };
    let shown = installed.path.display();
    if !installed.setuid && !installed.capable {
        return Check::error(
            name,
            format!("{shown} is neither set-user-ID root nor has {capability}"),
            format!("sudo setcap {capability}=ep {shown}    # or: sudo chmod u+s {shown}"),
        );
    }
    // A home on NFS, or a container.
    if installed.nosuid {
        return Check::error(
            name,
            format!("{shown} lies on a file system mounted with nosuid, so it has no more rights than you"),
            "mount that file system without nosuid",
        );
    }
    let how = if installed.setuid { "set-user-ID root" } else { capability };
    Check::ok(name, format!("{shown}, {how}"))
}

/// What was tried.
fn attempt(attempt: &Attempt) -> Vec<Check> {
    let name = "user namespaces";
    let trials = match attempt {
        Attempt::Made(trials) => trials,
        Attempt::Refused(why) => {
            return vec![Check::error(
                name,
                why.clone(),
                "see the other findings; a container or a hardened kernel may forbid them altogether",
            )];
        }
        Attempt::Lost(why) => return vec![Check::error(name, why.clone(), "look into `dmesg`")],
    };
    let mut checks = vec![Check::ok(name, "can be made, with the id map")];
    checks.push(match &trials.overlay {
        Ok(()) => Check::ok("overlayfs", "can be mounted in a user namespace"),
        Err(error) => Check::error(
            "overlayfs",
            format!("cannot be used in a user namespace: {error}"),
            "sudo modprobe overlay    # and Linux 5.12 or newer",
        ),
    });
    checks.push(match &trials.links {
        Ok(()) => Check::ok("networks", "bridges and links can be made in a network namespace"),
        Err(error) => Check::warning(
            "networks",
            format!("cannot be made: {error}"),
            "only services with `network_mode: none` can run",
            modules(&["bridge", "veth"]),
        ),
    });
    checks.extend(trials.packets.as_ref().map(packets).unwrap_or_default());
    checks.extend(trials.idmap.as_ref().map(|idmap| match idmap {
        Ok(()) => Check::ok("idmapped mounts", "the file system of this directory has them"),
        Err(error) => Check::warning(
            "idmapped mounts",
            format!("cannot be made of this directory: {error}"),
            "as root, stacks in it can neither bind mount nor build from it",
            "put the stack on ext4, xfs, btrfs or another file system that has them, or run as an ordinary user",
        ),
    }));
    checks
}

/// What a stack's networks need beside links.
fn packets(packets: &Packets) -> Vec<Check> {
    let Packets { nftables, queue, partition, netem } = packets;
    let name = "nftables";
    let mut checks = Vec::new();
    checks.push(match nftables {
        Ok(()) => Check::ok(name, "transparent proxies can be made in a network namespace (tproxy, socket, fib)"),
        Err(error) => Check::warning(
            name,
            format!("no transparent proxies can be made in a network namespace: {error}"),
            "services reach nothing outside of their networks (those without an egress policy do by slirp4netns, \
             if it is installed), and addresses that replicas share do not answer; \
             published ports and services among each other do without",
            modules(&["nf_tables", "nft_tproxy", "nft_socket", "nft_fib_inet", "nft_reject_inet"]),
        ),
    });
    if nftables.is_ok() && !queue {
        checks.push(Check::warning(
            "nftables queue",
            "new connections cannot be made to wait in a queue",
            "what a service connects to outside accepts at once, and is closed again if nobody is there",
            modules(&["nfnetlink_queue", "nft_queue"]),
        ));
    }
    if let Err(error) = partition {
        checks.push(Check::warning(
            "nftables of bridges",
            format!("no rules can be made: {error}"),
            "`net partition` is refused",
            modules(&["nf_tables"]),
        ));
    }
    checks.push(match netem {
        Ok(()) => Check::ok("netem", "links can be slow and lossy on purpose"),
        Err(error) => Check::warning(
            "netem",
            format!("links cannot be made slow and lossy: {error}"),
            "`net delay` and `net loss` are refused",
            modules(&["sch_netem"]),
        ),
    });
    checks
}

/// Loads modules of the kernel, now and when it starts.
fn modules(names: &[&str]) -> String {
    let names = names.join(" ");
    format!(
        "sudo modprobe -a {names} && echo {names} | tr ' ' '\\n' | sudo tee -a \
         /etc/modules-load.d/inception-run.conf"
    )
}

fn seccomp(facts: &Facts) -> Check {
    let has = |wanted: &str| facts.calls.seccomp.split_whitespace().any(|action| action == wanted);
    if !has("errno") {
        return Check::error(
            "seccomp",
            "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)",
            "install your distribution's standard kernel",
        );
    }
    if !has("user_notif") {
        return Check::warning(
            "seccomp",
            "filters are available, but cannot notify another process",
            "`inception-oci` refuses SCMP_ACT_NOTIFY",
            "install your distribution's standard kernel",
        );
    }
    Check::ok("seccomp", "filters are available")
}

fn landlock(facts: &Facts) -> Check {
    match &facts.calls.landlock {
        Ok(version) => Check::ok("Landlock", format!("version {version} of its interface")),
        Err(error) => Check::warning(
            "Landlock",
            error.clone(),
            "`landlock` of a service is refused",
            "add `landlock` to the list in /sys/kernel/security/lsm with `lsm=...` on the kernel command line",
        ),
    }
}

fn limits(facts: &Facts) -> Check {
    let name = "limits (cgroup v2)";
    let cgroup = &facts.cgroup;
    let layout = match cgroup.layout {
        Layout::Unified => "cgroup v2",
        Layout::Hybrid => "cgroup v2 beside v1 (hybrid)",
        Layout::Version1 => "cgroup v1 only",
        Layout::None => "no cgroups are mounted",
    };
    // Which controllers cannot be had, by the reason: usually there is one.
    let mut reasons: BTreeMap<&Reason, Vec<&str>> = BTreeMap::new();
    for (controller, reason) in &cgroup.missing {
        reasons.entry(reason).or_default().push(controller.name());
    }
    let needed = [Controller::Memory, Controller::Cpu, Controller::Pids];
    let why = needed.iter().find_map(|controller| cgroup.missing.get(controller));
    let missing: Vec<String> =
        reasons.iter().map(|(reason, names)| format!("not {} ({reason})", names.join(", "))).collect();
    let Some(reason) = why else {
        let at = cgroup.parent.as_ref().map(|path| format!(" below {}", path.display())).unwrap_or_default();
        let scope = if cgroup.scope.is_some() { " in a scope that systemd makes," } else { "" };
        let mut found =
            format!("{layout}: limits can be enforced{scope}{at} by {}", cgroup.controllers.join(", "));
        if !missing.is_empty() {
            found.push_str(&format!("; {}", missing.join("; ")));
        }
        return Check::ok(name, found);
    };
    let own = cgroup.own.as_deref().map(|own| format!(" (this shell is in {own})")).unwrap_or_default();
    let refused = match &cgroup.scope {
        Some(Err(error)) => format!("; systemd gives no scope: {error}"),
        _ => String::new(),
    };
    Check::warning(
        name,
        format!("{layout}{own}: {}{refused}", missing.join("; ")),
        "`mem_limit`, `cpus`, `pids_limit` and others are told as not enforced (an error with `--strict`); a \
         service that is killed for memory cannot be told from others; `stats` sums up processes",
        reason.fix(),
    )
}

/// How an ordinary user is logged in: what systemd does for one, it does for a session.
fn session(facts: &Facts) -> Vec<Check> {
    let session = &facts.session;
    let name = "session";
    if !session.systemd {
        return vec![Check::ok(name, "no systemd here: limits need a cgroup that was delegated by hand")];
    }
    let user = &facts.user;
    let mut checks = Vec::new();
    checks.push(match (&session.runtime, session.bus) {
        (None, _) => Check::warning(
            name,
            "XDG_RUNTIME_DIR is not set: this shell is no login session (`su` and `sudo -u` make none)",
            "systemd's user manager cannot be asked for a cgroup, so limits are not enforced",
            format!("log in at the console or by ssh, or: sudo machinectl shell {user}@"),
        ),
        (Some(_), false) => Check::warning(
            name,
            "the session has no message bus",
            "systemd's user manager cannot be asked for a cgroup, so limits are not enforced",
            "sudo apt-get install dbus-user-session, then log in again",
        ),
        (Some(runtime), true) => {
            let own = facts.cgroup.own.as_deref().unwrap_or("an unknown cgroup");
            Check::ok(name, format!("{}, in {own}", runtime.display()))
        }
    });
    checks.push(if session.linger {
        Check::ok("linger", "on: a stack in the background outlives the last logout")
    } else {
        Check::warning(
            "linger",
            format!("off for {user}"),
            "after the last logout systemd ends the user's manager and removes XDG_RUNTIME_DIR, and with that a \
             stack that runs in the background (`up -d`)",
            format!("sudo loginctl enable-linger {user}"),
        )
    });
    checks
}

fn low_ports(facts: &Facts) -> Check {
    let name = "low ports";
    let start = facts.first_port;
    if start <= LOWEST_PORT {
        return Check::ok(name, format!("an ordinary user may publish ports from {start} on"));
    }
    Check::warning(
        name,
        format!("net.ipv4.ip_unprivileged_port_start is {start}"),
        format!("an ordinary user may publish ports from {start} on only; not 21, 80 or 443"),
        format!(
            "publish higher ones (8443:443), or: {}",
            persistent(&format!("net.ipv4.ip_unprivileged_port_start = {LOWEST_PORT}"))
        ),
    )
}

fn ping(facts: &Facts) -> Check {
    let name = "ping";
    if facts.may_ping {
        return Check::ok(name, "an ordinary user may send echo requests");
    }
    Check::warning(
        name,
        "none of your groups is in net.ipv4.ping_group_range",
        "a `ping` from a service to the outside is not answered",
        persistent("net.ipv4.ping_group_range = 0 2147483647"),
    )
}

/// File systems that cannot hold an overlay's writable directory, by the magic number of `statfs(2)`.
const UNFIT: [(u64, &str); 8] = [
    (0x9fa0, "proc"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x794c_7630, "overlayfs"),
    (0x0102_1997, "9p"),
    (0x4d44, "vfat"),
    (0xf15f, "ecryptfs"),
];
/// The same for a tmpfs, which can from Linux 6.6 on.
const TMPFS: u64 = 0x0102_1994;

fn data_directory(facts: &Facts) -> Vec<Check> {
    let name = "data directory";
    let data = &facts.data;
    let shown = data.path.display();
    let elsewhere = "export INCEPTION_DATA_DIR=/path/on/a/local/disk    # ext4, xfs or btrfs";
    let mut checks = Vec::new();
    let unfit = |magic: u64| {
        let known = UNFIT.iter().find(|(unfit, _)| *unfit == magic).map(|(_, kind)| *kind);
        let old = version(&facts.kernel).is_some_and(|version| version < (6, 6));
        known.or((magic == TMPFS && old).then_some("a tmpfs, and this kernel is older than 6.6"))
    };
    match &data.file_system {
        Err(error) => checks.push(Check::error(name, format!("{shown}: {error}"), elsewhere)),
        Ok(magic) => checks.push(match unfit(*magic) {
            Some(kind) => Check::error(
                name,
                format!("{shown} is on {kind}, which overlayfs does not accept for its writable directory"),
                elsewhere,
            ),
            None if !data.writable => {
                Check::error(name, format!("{} is not writable", data.existing.display()), elsewhere)
            }
            None => Check::ok(name, shown.to_string()),
        }),
    }
    checks
}

const LARGER: &str = "free some, or: export INCEPTION_DATA_DIR=/path/on/a/larger/disk";

fn room(facts: &Facts) -> Check {
    let name = "disk space";
    let found = format!("{:.1} GB free at {}", facts.data.free as f64 / 1e9, facts.data.path.display());
    let little = "five services with Debian images take about 3 GB";
    enough(name, found, facts.data.free, ROOM_LEAST..ROOM, little)
}

fn inodes(facts: &Facts) -> Check {
    let name = "inodes";
    let Some(free) = facts.data.free_inodes else {
        return Check::ok(name, "the file system makes them as they are needed");
    };
    let found = format!("{free} free at {}", facts.data.path.display());
    let little = "images may not fit although there is room on the disk";
    enough(name, found, free, INODES_LEAST..INODES, little)
}

/// Whether there is enough on the disk: below this range is an error, within it a warning that says why.
fn enough(name: &'static str, found: String, free: u64, few: Range<u64>, little: &str) -> Check {
    match free {
        _ if free < few.start => Check::error(name, found, LARGER),
        _ if free < few.end => Check::warning(name, found, little, LARGER),
        _ => Check::ok(name, found),
    }
}

fn runtime_directory(facts: &Facts) -> Check {
    let name = "runtime directory";
    let shown = facts.runtime.path.display();
    let another = "export INCEPTION_RUNTIME_DIR=/path/to/another";
    match &facts.runtime.state {
        RuntimeState::Private => Check::ok(name, shown.to_string()),
        RuntimeState::Missing => Check::ok(name, format!("{shown} (not made yet)")),
        RuntimeState::Open => Check::error(
            name,
            format!("{shown} is not a directory of your own that is closed to others"),
            another,
        ),
        RuntimeState::Unreadable(error) => Check::error(name, format!("{shown}: {error}"), another),
    }
}

/// Where base images can come from.
fn bases(facts: &Facts) -> Check {
    let name = "Debian base images";
    match &facts.mmdebstrap {
        Some(path) => Check::ok(name, format!("made with {}", path.display())),
        None => Check::warning(
            name,
            "mmdebstrap is not installed",
            "`FROM debian:...` needs a tarball in INCEPTION_BASE_DIR",
            "sudo apt-get install mmdebstrap",
        ),
    }
}

#[cfg(test)]
mod tests;
