//! What a host is like, as far as it matters to a stack. Reading it changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use container::cgroup::{self, Controller, Reason};
use container::idmap::IdMap;
use rustix::fs::{ResolveFlags, StatVfsMountFlags};

use super::attempt::{self, Attempt, Found};
use crate::paths::Paths;

/// Everything that findings are made of.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) root: bool,
    /// The user's name, or number where nobody knows it.
    pub(super) user: String,
    /// Our own program.
    pub(super) binary: PathBuf,
    /// The kernel's release.
    pub(super) kernel: String,
    pub(super) switches: Switches,
    pub(super) ids: Result<Ids, Refusal>,
    /// `newuidmap` and `newgidmap`.
    pub(super) helpers: [Helper; 2],
    /// What was tried; `None` where a switch says already that it cannot work.
    pub(super) attempt: Option<Attempt>,
    pub(super) calls: Calls,
    pub(super) cgroup: Cgroups,
    pub(super) session: Session,
    /// `net.ipv4.ip_unprivileged_port_start`.
    pub(super) first_port: u64,
    /// The user may send echo requests.
    pub(super) may_ping: bool,
    pub(super) data: DataDirectory,
    pub(super) runtime: RuntimeDirectory,
    /// Where the program is that makes Debian base images.
    pub(super) mmdebstrap: Option<PathBuf>,
}

/// The switches that kernels and distributions have for user namespaces; `None` where there is no such switch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Switches {
    /// `user.max_user_namespaces`.
    pub(super) most: Option<u64>,
    /// `kernel.unprivileged_userns_clone` (Debian).
    pub(super) unprivileged: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu 23.10 and newer).
    pub(super) apparmor: Option<u64>,
    /// A profile of AppArmor's confines this process, which may allow what is restricted.
    pub(super) has_profile: bool,
}

/// Ids of the host that containers can have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids {
    /// How many, beside the user's own.
    pub(super) count: u32,
    /// The first of them.
    pub(super) first: u32,
}

/// An error, in words.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) hint: String,
}

/// A program that hands out subordinate ids.
#[derive(Debug, Clone)]
pub(super) struct Helper {
    pub(super) name: &'static str,
    /// The capability that it needs.
    pub(super) capability: &'static str,
    pub(super) installed: Option<Installed>,
}

/// An installed program.
#[derive(Debug, Clone)]
pub(super) struct Installed {
    pub(super) path: PathBuf,
    /// Set-user-ID root.
    pub(super) setuid: bool,
    /// It has the capability as a file capability.
    pub(super) capable: bool,
    /// Its file system ignores both.
    pub(super) nosuid: bool,
}

/// System calls, called without effect.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    pub(super) clone3: bool,
    pub(super) pidfd: Result<(), String>,
    pub(super) openat2: Result<(), String>,
    /// The actions that seccomp filters may take, as the kernel lists them; empty without seccomp.
    pub(super) seccomp: String,
    /// The version of Landlock.
    pub(super) landlock: Result<u32, String>,
}

/// How cgroups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Version 2 only.
    Unified,
    /// Version 2 beside version 1.
    Hybrid,
    /// Version 1 only.
    Version1,
    /// No cgroups at all.
    None,
}

/// cgroups.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    pub(super) layout: Layout,
    /// The cgroup below which ours are made, where there is one.
    pub(super) parent: Option<PathBuf>,
    /// Its controllers.
    pub(super) controllers: Vec<String>,
    /// Controllers that cannot be had.
    pub(super) missing: BTreeMap<Controller, Reason>,
    /// Whether systemd gives this user a scope, where one was asked for.
    pub(super) scope: Option<Result<(), String>>,
    /// Our own cgroup, as `/proc/self/cgroup` has it.
    pub(super) own: Option<String>,
}

/// The user's session.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// systemd is PID 1.
    pub(super) systemd: bool,
    /// `XDG_RUNTIME_DIR`, where it is set and there.
    pub(super) runtime: Option<PathBuf>,
    /// The user's manager can be talked to.
    pub(super) bus: bool,
    /// The user's manager outlives the last session.
    pub(super) linger: bool,
}

/// Where images and volumes are.
#[derive(Debug, Clone)]
pub(super) struct DataDirectory {
    pub(super) path: PathBuf,
    /// It, or the nearest directory above that exists.
    pub(super) existing: PathBuf,
    /// The file system's magic number (statfs(2)).
    pub(super) file_system: Result<u64, String>,
    pub(super) writable: bool,
    /// Bytes that are free for this user.
    pub(super) free: u64,
    /// Inodes that are free for this user; `None` where the file system makes them as it goes.
    pub(super) free_inodes: Option<u64>,
}

/// Where sockets and logs are.
#[derive(Debug, Clone)]
pub(super) struct RuntimeDirectory {
    pub(super) path: PathBuf,
    pub(super) state: RuntimeState,
}

/// What the runtime directory is like.
#[derive(Debug, Clone)]
pub(super) enum RuntimeState {
    /// It is made when it is needed.
    Missing,
    /// The user's own, closed to others.
    Private,
    /// Somebody else's, or open to others.
    Open,
    Unreadable(String),
}

impl Facts {
    /// Reads all but the attempt.
    pub(super) fn gather(paths: &Paths) -> Self {
        let uid = rustix::process::geteuid();
        let user = user_name(uid.as_raw());
        Self {
            root: uid.is_root(),
            binary: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/local/bin/inception-run")),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            switches: switches(),
            ids: ids(),
            helpers: [helper("newuidmap", "cap_setuid", 7), helper("newgidmap", "cap_setgid", 6)],
            attempt: None,
            calls: calls(),
            cgroup: cgroups(uid.is_root()),
            session: session(&user),
            user,
            // ip(7): the kernel's default where the file is absent.
            first_port: number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024),
            may_ping: may_ping(&text("/proc/sys/net/ipv4/ping_group_range"), &groups()),
            data: data_directory(&paths.data),
            runtime: runtime_directory(&paths.runtime, uid.as_raw()),
            mmdebstrap: find("mmdebstrap"),
        }
    }
}

/// A file of the kernel's with one number.
fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Content of a file; empty where there is none, or none for us.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn user_name(uid: u32) -> String {
    let named = text("/etc/passwd").lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.or_else(|| std::env::var("USER").ok().filter(|name| !name.is_empty())).unwrap_or(uid.to_string())
}

fn switches() -> Switches {
    let profile = fs::read_to_string("/proc/self/attr/apparmor/current")
        .or_else(|_| fs::read_to_string("/proc/self/attr/current"))
        .unwrap_or_default();
    let profile = profile.trim();
    Switches {
        most: number("/proc/sys/user/max_user_namespaces"),
        unprivileged: number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        has_profile: !profile.is_empty() && profile != "unconfined",
    }
}

fn ids() -> Result<Ids, Refusal> {
    let map = IdMap::current()
        .map_err(|error| Refusal { message: error.to_string(), hint: error.hint().unwrap_or_default() })?;
    let counts = [&map.uids, &map.gids].map(|extents| extents.last().map_or(0, |extent| extent.count));
    Ok(Ids { count: counts[0].min(counts[1]), first: map.uids.last().map_or(0, |extent| extent.outside) })
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
}

fn helper(name: &'static str, capability: &'static str, bit: u32) -> Helper {
    let installed = find(name).map(|path| {
        let setuid = fs::metadata(&path).is_ok_and(|meta| meta.mode() & 0o4000 != 0 && meta.uid() == 0);
        let mut buffer = [0u8; 64];
        let length = rustix::fs::getxattr(&path, c"security.capability", &mut buffer[..]).unwrap_or(0);
        let capable = permits(&buffer[..length], bit);
        let nosuid =
            rustix::fs::statvfs(&path).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::NOSUID));
        Installed { path, setuid, capable, nosuid }
    });
    Helper { name, capability, installed }
}

/// Whether file capabilities permit the capability with number `bit`, below 32: in `struct vfs_cap_data` the first
/// word of the permitted set comes after the word with the version.
fn permits(attribute: &[u8], bit: u32) -> bool {
    let permitted = attribute.get(4..8).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    permitted.is_some_and(|permitted| permitted & (1 << bit) != 0)
}

fn calls() -> Calls {
    let words = |error: rustix::io::Errno| io::Error::from(error).to_string();
    let own = rustix::process::getpid();
    let how = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let mode = rustix::fs::Mode::empty();
    Calls {
        clone3: sys::probe::has_clone3(),
        pidfd: rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty())
            .map(drop)
            .map_err(words),
        openat2: rustix::fs::openat2(rustix::fs::CWD, "/", how, mode, ResolveFlags::IN_ROOT)
            .map(drop)
            .map_err(words),
        seccomp: text("/proc/sys/kernel/seccomp/actions_avail"),
        landlock: sys::landlock::version().map_err(|error| error.to_string()),
    }
}

fn cgroups(root: bool) -> Cgroups {
    let delegation = cgroup::delegation();
    let closed = |reason: &Reason| matches!(reason, Reason::NotDelegated(_) | Reason::Occupied(_));
    // A stack with limits would ask systemd for a scope.
    let scope = match !root && delegation.missing.values().any(closed) {
        true => Some(attempt::scope()),
        false => None,
    };
    let (found, scope) = match scope {
        None => (Found::from(&delegation), None),
        Some(Ok(found)) => match &found.refused {
            None => (found, Some(Ok(()))),
            Some(refused) => (Found::from(&delegation), Some(Err(refused.clone()))),
        },
        Some(Err(error)) => (Found::from(&delegation), Some(Err(error.to_string()))),
    };
    Cgroups {
        layout: layout(&text("/proc/self/mountinfo")),
        missing: found.missing(),
        parent: found.parent,
        controllers: found.controllers,
        scope,
        own: text("/proc/self/cgroup").lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned),
    }
}

/// How cgroups are mounted, by the types in `/proc/self/mountinfo` (proc(5)).
fn layout(mountinfo: &str) -> Layout {
    let is_mounted = |kind: &str| {
        let mut systems = mountinfo.lines().filter_map(|line| line.split_once(" - "));
        systems.any(|(_, system)| system.split(' ').next() == Some(kind))
    };
    match (is_mounted("cgroup2"), is_mounted("cgroup")) {
        (true, false) => Layout::Unified,
        (true, true) => Layout::Hybrid,
        (false, true) => Layout::Version1,
        (false, false) => Layout::None,
    }
}

fn session(user: &str) -> Session {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    let bus = std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some()
        || runtime.as_ref().is_some_and(|runtime| runtime.join("bus").exists());
    Session {
        // sd_booted(3).
        systemd: Path::new("/run/systemd/system").is_dir(),
        runtime,
        bus,
        linger: lingers(user),
    }
}

/// Whether a user's manager runs without a session: what `loginctl enable-linger` makes.
fn lingers(user: &str) -> bool {
    Path::new("/var/lib/systemd/linger").join(user).exists()
}

/// Whether this user's does.
pub(super) fn lingers_here() -> bool {
    lingers(&user_name(rustix::process::geteuid().as_raw()))
}

fn groups() -> Vec<u32> {
    let mut groups = rustix::process::getgroups().unwrap_or_default();
    groups.push(rustix::process::getegid());
    groups.into_iter().map(rustix::process::Gid::as_raw).collect()
}

/// Whether one of the groups is in `net.ipv4.ping_group_range`: the first and the last group (icmp(7)).
fn may_ping(range: &str, groups: &[u32]) -> bool {
    let mut ends = range.split_whitespace().map(str::parse::<u32>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else { return false };
    groups.iter().any(|group| (first..=last).contains(group))
}

/// The nearest directory that is there: the data directory may not have been made yet.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn data_directory(path: &Path) -> DataDirectory {
    let there = existing(path);
    let room = rustix::fs::statvfs(there).ok();
    DataDirectory {
        path: path.to_owned(),
        existing: there.to_owned(),
        file_system: rustix::fs::statfs(there)
            .map(|stat| stat.f_type as u64 & 0xffff_ffff)
            .map_err(|error| io::Error::from(error).to_string()),
        writable: rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok(),
        free: room.as_ref().map_or(0, |room| room.f_bavail.saturating_mul(room.f_frsize)),
        free_inodes: room.filter(|room| room.f_files > 0).map(|room| room.f_favail),
    }
}

fn runtime_directory(path: &Path, uid: u32) -> RuntimeDirectory {
    let state = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0 => RuntimeState::Private,
        Ok(_) => RuntimeState::Open,
        Err(error) if error.kind() == io::ErrorKind::NotFound => RuntimeState::Missing,
        Err(error) => RuntimeState::Unreadable(error.to_string()),
    };
    RuntimeDirectory { path: path.to_owned(), state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_directory_that_exists() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(existing(&directory.path().join("a/b/c")), directory.path());
    }

    #[test]
    fn who_may_ping() {
        assert!(may_ping("0\t2147483647\n", &[1000]));
        assert!(may_ping("27\t27\n", &[1000, 27]));
        // The kernel's default: nobody.
        assert!(!may_ping("1\t0\n", &[0, 1]));
        assert!(!may_ping("", &[0]));
    }

    #[test]
    fn file_capabilities() {
        // As `setcap cap_setuid=ep` writes them: version 2 with the effective bit, permitted 1 << 7.
        let attribute = [1, 0, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(permits(&attribute, 7) && !permits(&attribute, 6));
        assert!(!permits(&[], 7));
    }

    #[test]
    fn how_cgroups_are_mounted() {
        let v1 = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let v2 = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(layout(v2), Layout::Unified);
        assert_eq!(layout(v1), Layout::Version1);
        assert_eq!(layout(&format!("{v1}{v2}")), Layout::Hybrid);
        assert_eq!(layout("23 1 8:1 / / rw - ext4 /dev/sda1 rw\n"), Layout::None);
    }
}
