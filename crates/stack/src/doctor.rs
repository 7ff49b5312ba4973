//! `doctor`: everything on a host that can stand in the way, each with the exact fix.
//!
//! Nothing is changed. The two checks that only an attempt can answer (user namespaces, overlayfs inside one)
//! are made in a short-lived child, in its own namespaces.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use container::cgroup;
use container::idmap::IdMap;
use rustix::fs::StatVfs;
use rustix::mount::MountFlags;
use serde::Serialize;
use sys::process::namespace;

use crate::paths::Paths;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something will not work, or not as well.
    Warning,
    /// No stack can run.
    Error,
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do, a command where there is one.
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), fix: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn error(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Error, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// overlayfs in a user namespace came with 5.11, `mount_setattr(2)` and idmapped mounts with 5.12.
const KERNEL: (u32, u32) = (5, 12);
/// How long the attempt in a child may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// What five services with Debian images, and building them, take.
const ROOM: u64 = 4 << 30;
/// With less than this not even a base image fits.
const ROOM_LEAST: u64 = 512 << 20;

/// Looks at everything.
pub fn run(paths: &Paths) -> Vec<Check> {
    let root = rustix::process::geteuid().is_root();
    let mut checks = vec![kernel()];
    checks.extend(switches(root));
    if !root {
        checks.extend(helpers());
    }
    // Once a switch is known to be off the attempt can say nothing new.
    if checks.iter().all(|check| check.status != Status::Error) {
        checks.extend(attempt(paths));
    }
    checks.push(seccomp());
    checks.push(limits());
    if !root {
        checks.push(low_ports());
    }
    checks.extend(data_directory(paths));
    checks.push(runtime_directory(paths));
    checks.push(bases());
    checks
}

/// A file of the kernel's with one number.
fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn kernel() -> Check {
    let name = "kernel";
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    match version(&release) {
        Some(found) if found < KERNEL => Check::error(
            name,
            format!("Linux {release}; mounts in a user namespace need {}.{}", KERNEL.0, KERNEL.1),
            "install a newer kernel (Debian 12 and Ubuntu 22.04 have one)",
        ),
        _ => Check::ok(name, format!("Linux {release}")),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The switches that distributions have for user namespaces.
fn switches(root: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    let persistent = |setting: &str| {
        format!("echo '{setting}' | sudo tee /etc/sysctl.d/60-inception-run.conf && sudo sysctl --system")
    };
    match number("/proc/sys/user/max_user_namespaces") {
        Some(0) => checks.push(Check::error(
            "user namespaces",
            "user.max_user_namespaces is 0",
            persistent("user.max_user_namespaces = 15000"),
        )),
        None => checks.push(Check::error(
            "user namespaces",
            "the kernel was built without them (CONFIG_USER_NS)",
            "install your distribution's standard kernel",
        )),
        Some(_) => {}
    }
    if root {
        return checks;
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        checks.push(Check::error(
            "user namespaces",
            "kernel.unprivileged_userns_clone is 0: only root may make them",
            persistent("kernel.unprivileged_userns_clone = 1"),
        ));
    }
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) && !has_profile() {
        checks.push(Check::error(
            "AppArmor",
            "kernel.apparmor_restrict_unprivileged_userns is 1: programs need a profile to make user namespaces",
            apparmor_fix(),
        ));
    }
    checks
}

/// Whether AppArmor confines this process by a profile of its own, which may allow user namespaces.
fn has_profile() -> bool {
    let current = fs::read_to_string("/proc/self/attr/apparmor/current")
        .or_else(|_| fs::read_to_string("/proc/self/attr/current"))
        .unwrap_or_default();
    let current = current.trim();
    !current.is_empty() && current != "unconfined"
}

/// A profile for our binary alone: the restriction stays on for everything else.
fn apparmor_fix() -> String {
    let binary = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/local/bin/inception-run"));
    format!(
        "printf 'abi <abi/4.0>,\\nprofile inception-run {} flags=(unconfined) {{\\n  userns,\\n}}\\n' | \
         sudo tee /etc/apparmor.d/inception-run && sudo apparmor_parser -r /etc/apparmor.d/inception-run",
        binary.display()
    )
}

/// Subordinate ids, and the two programs that may hand them out.
fn helpers() -> Vec<Check> {
    let name = "subordinate ids";
    let mut checks = vec![match IdMap::current() {
        Ok(map) => {
            let counts = [&map.uids, &map.gids].map(|extents| extents.last().map_or(0, |e| e.count));
            let least = counts[0].min(counts[1]);
            if least < 65_535 {
                Check::warning(
                    name,
                    format!("only {least}; images use ids up to 65535 (`nobody` is 65534)"),
                    "give the user a range of 65536 ids in /etc/subuid and /etc/subgid",
                )
            } else {
                Check::ok(name, format!("{least} from {}", map.uids.last().map_or(0, |e| e.outside)))
            }
        }
        Err(error) => Check::error(name, error.to_string(), error.hint().unwrap_or_default()),
    }];
    for program in ["newuidmap", "newgidmap"] {
        checks.push(helper(program));
    }
    checks
}

fn helper(program: &'static str) -> Check {
    use std::os::unix::fs::MetadataExt;
    let install = "sudo apt-get install uidmap    # Fedora: dnf install shadow-utils; Arch: pacman -S shadow";
    let Some(path) = find(program) else {
        return Check::error(program, "not installed", install);
    };
    let shown = path.display();
    let setuid = fs::metadata(&path).is_ok_and(|meta| meta.mode() & 0o4000 != 0 && meta.uid() == 0);
    let mut buffer = [0u8; 64];
    let capable = rustix::fs::getxattr(&path, c"security.capability", &mut buffer[..]).is_ok_and(|n| n > 0);
    if !setuid && !capable {
        return Check::error(
            program,
            format!("{shown} is neither set-user-ID root nor has file capabilities"),
            format!("sudo chmod u+s {shown}"),
        );
    }
    // A mount with nosuid (a home on NFS, a container) makes both of them useless.
    if rustix::fs::statvfs(&path).is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID)) {
        return Check::error(
            program,
            format!("{shown} lies on a file system mounted with nosuid"),
            "mount that file system without nosuid",
        );
    }
    let how = if setuid { "set-user-ID root" } else { "file capabilities" };
    Check::ok(program, format!("{shown}, {how}"))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// Makes a user namespace with the id map, as a stack's would be, and an overlay in it.
fn attempt(paths: &Paths) -> Vec<Check> {
    let Ok(map) = IdMap::current() else { return Vec::new() };
    // The nearest directory there is: the data directory may not have been made yet, and nothing is made here.
    let here = match fs::File::open(existing(&paths.data)).or_else(|_| fs::File::open("/")) {
        Ok(here) => here,
        Err(error) => return vec![Check::error("user namespaces", error.to_string(), "look at / itself")],
    };
    let spawned =
        container::userns::spawn(&map, namespace::MOUNT | namespace::PID, here.as_fd(), |channel| {
            let text = match overlay() {
                Ok(()) => String::new(),
                Err((step, error)) => format!("{step}: {error}"),
            };
            channel.send(text.as_bytes(), &[]).map_or(1, |()| 0)
        });
    let (child, channel) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            return vec![Check::error(
                "user namespaces",
                format!("{error}{cause}"),
                "see the other findings; a container or a hardened kernel may forbid them altogether",
            )];
        }
    };
    let mut checks = vec![Check::ok("user namespaces", "can be made, with the id map")];
    let answer = channel.recv_until(Instant::now() + DEADLINE);
    drop(channel);
    let ended = container::userns::end(&child);
    checks.push(match (answer, ended) {
        (Ok(Some(message)), Ok(())) if message.bytes.is_empty() => {
            Check::ok("overlayfs", "can be mounted in a user namespace")
        }
        (Ok(Some(message)), _) => Check::error(
            "overlayfs",
            format!("cannot be used in a user namespace: {}", String::from_utf8_lossy(&message.bytes)),
            "sudo modprobe overlay    # and Linux 5.12 or newer",
        ),
        (Err(error), _) => Check::error("overlayfs", error.to_string(), "try again"),
        (Ok(None), _) => Check::error("overlayfs", "the attempt was killed", "look into `dmesg`"),
    });
    checks
}

/// Mounts an overlay on a tmpfs, in the child's own mount namespace, and writes through it.
fn overlay() -> Result<(), (&'static str, io::Error)> {
    let step = |step: &'static str| move |error: rustix::io::Errno| (step, io::Error::from(error));
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(step("make mounts private"))?;
    let none: Option<&CStr> = None;
    rustix::mount::mount("tmpfs", "/tmp", "tmpfs", MountFlags::empty(), none)
        .map_err(step("mount a tmpfs"))?;
    for directory in ["l", "u", "w", "m"] {
        fs::create_dir(Path::new("/tmp").join(directory)).map_err(|e| ("create a directory", e))?;
    }
    let options = c"lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w,userxattr";
    rustix::mount::mount("overlay", "/tmp/m", "overlay", MountFlags::empty(), options)
        .map_err(step("mount an overlay"))?;
    fs::write("/tmp/m/file", "x").map_err(|e| ("write through an overlay", e))
}

fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn seccomp() -> Check {
    let name = "seccomp";
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        return Check::ok(name, "filters are available");
    }
    Check::error(
        name,
        "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)",
        "install your distribution's standard kernel",
    )
}

fn limits() -> Check {
    let name = "limits (cgroup v2)";
    let delegation = cgroup::delegation();
    let all = cgroup::Limits { memory: Some(1), cpus: Some(1.0), pids: Some(1), ..Default::default() };
    match (delegation.shortfall([&all]), delegation.missing.values().next()) {
        (Some(detail), Some(reason)) => Check::warning(name, detail, reason.fix()),
        _ => {
            let at = delegation.parent.map(|path| format!(", at {}", path.display())).unwrap_or_default();
            Check::ok(name, format!("memory, cpus and pids can be enforced{at}"))
        }
    }
}

fn low_ports() -> Check {
    let name = "low ports";
    // ip(7): the kernel's default where the file is absent.
    let start = number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024);
    if start <= 21 {
        return Check::ok(name, format!("an ordinary user may publish ports from {start} on"));
    }
    Check::warning(
        name,
        format!("an ordinary user may publish ports from {start} on only; not 21, 80 or 443"),
        "publish higher ones (8443:443), or: \
         echo 'net.ipv4.ip_unprivileged_port_start = 21' | sudo tee /etc/sysctl.d/60-inception-run.conf && \
         sudo sysctl --system",
    )
}

/// File systems that cannot hold an overlay's writable directory, by the magic number of `statfs(2)`.
const UNFIT: [(u64, &str); 7] = [
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x794c_7630, "overlayfs"),
    (0x0102_1997, "9p"),
    (0x4d44, "vfat"),
    (0xf15f, "ecryptfs"),
];

fn data_directory(paths: &Paths) -> Vec<Check> {
    let name = "data directory";
    let there = existing(&paths.data);
    let shown = paths.data.display();
    let elsewhere = "export INCEPTION_DATA_DIR=/path/on/a/local/disk    # ext4, xfs, btrfs or tmpfs";
    let mut checks = Vec::new();
    let magic = rustix::fs::statfs(there).map(|stat| stat.f_type as u64 & 0xffff_ffff);
    match magic.map(|magic| UNFIT.iter().find(|(unfit, _)| *unfit == magic)) {
        Ok(Some((_, kind))) => checks.push(Check::error(
            name,
            format!("{shown} is on {kind}, which overlayfs does not accept for its writable directory"),
            elsewhere,
        )),
        Ok(None) => checks.push(Check::ok(name, shown.to_string())),
        Err(error) => checks.push(Check::error(name, format!("{shown}: {error}"), elsewhere)),
    }
    if rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_err() {
        checks.push(Check::error(name, format!("{} is not writable", there.display()), elsewhere));
    }
    if let Ok(stat) = rustix::fs::statvfs(there) {
        checks.push(room(&stat, &paths.data));
    }
    checks
}

fn room(stat: &StatVfs, path: &Path) -> Check {
    let name = "free disk space";
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let detail = format!("{:.1} GB at {}", free as f64 / 1e9, path.display());
    let fix = "free some, or export INCEPTION_DATA_DIR=/path/on/a/larger/disk";
    match free {
        0..ROOM_LEAST => Check::error(name, detail, fix),
        ROOM_LEAST..ROOM => Check::warning(name, format!("{detail}; five services take about 3 GB"), fix),
        _ if stat.f_favail < 50_000 && stat.f_files > 0 => {
            Check::warning(name, format!("only {} inodes are free", stat.f_favail), fix)
        }
        _ => Check::ok(name, detail),
    }
}

fn runtime_directory(paths: &Paths) -> Check {
    use std::os::unix::fs::MetadataExt;
    let name = "runtime directory";
    let shown = paths.runtime.display();
    match fs::symlink_metadata(&paths.runtime) {
        Ok(meta) => {
            let own = rustix::process::geteuid().as_raw();
            if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o077 != 0 {
                return Check::error(
                    name,
                    format!("{shown} is not a directory of your own that is closed to others"),
                    "export INCEPTION_RUNTIME_DIR=/path/to/another",
                );
            }
            Check::ok(name, shown.to_string())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::ok(name, format!("{shown} (not made yet)"))
        }
        Err(error) => {
            Check::error(name, format!("{shown}: {error}"), "export INCEPTION_RUNTIME_DIR=/path/to/another")
        }
    }
}

/// Where base images can come from.
fn bases() -> Check {
    let name = "Debian base images";
    match find("mmdebstrap") {
        Some(path) => Check::ok(name, format!("made with {}", path.display())),
        None => Check::warning(
            name,
            "mmdebstrap is not installed, so `FROM debian:...` needs a tarball in INCEPTION_BASE_DIR",
            "sudo apt-get install mmdebstrap",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_as_numbers() {
        assert_eq!(version("6.1.0-38-cloud-amd64"), Some((6, 1)));
        assert!(version("5.9.16").unwrap() < KERNEL && version("5.12.0").unwrap() >= KERNEL);
        assert_eq!(version("odd"), None);
    }

    #[test]
    fn the_nearest_directory_that_exists() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(existing(&directory.path().join("a/b/c")), directory.path());
    }
}
