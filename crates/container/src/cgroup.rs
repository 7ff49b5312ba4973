//! cgroup v2: where limits can be enforced, and one cgroup for each service.
//!
//! Limits are a list of files and values. Nothing is written above the cgroup that [`delegation`] found, and
//! nothing is removed but empty cgroups below a directory named after a stack of ours.
//!
//! The rules are those of the kernel's `Documentation/admin-guide/cgroup-v2.rst`: a controller is available in
//! a cgroup when its parent lists it in `cgroup.subtree_control`, and a cgroup that passes controllers on may
//! hold no processes itself unless it is the root.

pub mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, Mode, OFlags};
use serde::Serialize;

use crate::Error;

/// Directories of ours begin with this.
const PREFIX: &str = "inception-run-";
/// The leaf that the stack's own processes stand in where they must leave the delegated cgroup. No service can
/// have such a name.
const OWN_LEAF: &str = "@supervisor";
/// The leaf of the process that starts the services, where it is somebody else than us.
const HUB_LEAF: &str = "@hub";
/// How long the processes of a stack that was killed may take to leave its cgroups.
const STALE_DEADLINE: Duration = Duration::from_secs(5);
/// `cpu.max` counts in microseconds of this period, the kernel's default.
const CPU_PERIOD: f64 = 100_000.0;
/// `cpu.max` refuses a quota below a millisecond.
const CPU_QUOTA_MIN: f64 = 1_000.0;

/// What a service may use.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// CPUs; 0.5 is half of one.
    pub cpus: Option<f64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

/// A controller that a limit needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// For [`Limits::memory`].
    Memory,
    /// For [`Limits::cpus`].
    Cpu,
    /// For [`Limits::pids`].
    Pids,
}

impl Controller {
    /// All that limits need.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// The kernel's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

/// Why a controller cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// There is no cgroup v2 file system.
    NotMounted,
    /// The controller is used by a cgroup v1 hierarchy (hybrid mode).
    Version1,
    /// No cgroup at or above ours may be written to. Holds ours.
    NotDelegated(PathBuf),
    /// The cgroup may be written to but was not given this controller.
    NotGiven(PathBuf),
    /// Processes that are not ours stand in the cgroup, so it cannot pass controllers on.
    Occupied(PathBuf),
}

impl fmt::Display for Reason {
    /// Goes after the names of controllers: "memory and cpu: ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMounted => f.write_str("no cgroup v2 file system is mounted"),
            Self::Version1 => f.write_str("the controllers are on cgroup v1 here"),
            Self::NotDelegated(path) => {
                write!(f, "the cgroup {} is not delegated to this user", path.display())
            }
            Self::NotGiven(path) => write!(f, "the cgroup {} was not given the controllers", path.display()),
            Self::Occupied(path) => {
                write!(f, "other programs run in the delegated cgroup {}", path.display())
            }
        }
    }
}

impl Reason {
    /// What can be done about it, a command where there is one.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NotMounted | Self::Version1 => {
                "boot with `systemd.unified_cgroup_hierarchy=1` on the kernel command line"
            }
            Self::NotDelegated(_) | Self::Occupied(_) => {
                "start it in a scope of its own: \
                 `systemd-run --user --scope -p Delegate=yes inception-run up`"
            }
            Self::NotGiven(_) => {
                "sudo sh -c 'mkdir -p /etc/systemd/system/user@.service.d && \
                 printf \"[Service]\\nDelegate=cpu memory pids\\n\" > \
                 /etc/systemd/system/user@.service.d/delegate.conf && systemctl daemon-reload', then log in again"
            }
        }
    }
}

/// Which limits can be enforced, and below which cgroup.
#[derive(Debug, Clone, PartialEq)]
pub struct Delegation {
    /// The cgroup below which ours are made; `None` where no controller can be had.
    pub parent: Option<PathBuf>,
    /// Controllers that cannot be had.
    pub missing: BTreeMap<Controller, Reason>,
    /// Our processes must leave `parent` before it can pass controllers on.
    must_leave: bool,
}

/// Looks for the cgroup below which this process can make others with the controllers that limits need.
/// Changes nothing.
pub fn delegation() -> Delegation {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let Some(hierarchy) = Hierarchy::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")) else {
        return Delegation::nothing(&Reason::NotMounted);
    };
    let top_first = rustix::process::geteuid().is_root();
    hierarchy.search(top_first, &runs_our_program)
}

impl Delegation {
    fn nothing(reason: &Reason) -> Self {
        let missing = Controller::ALL.iter().map(|c| (*c, reason.clone())).collect();
        Self { parent: None, missing, must_leave: false }
    }

    /// One sentence about the limits among these that cannot be enforced; `None` when all can.
    pub fn shortfall<'a>(&self, limits: impl IntoIterator<Item = &'a Limits>) -> Option<String> {
        let mut asked = [false; 3];
        for limit in limits {
            asked[0] |= limit.memory.is_some();
            asked[1] |= limit.cpus.is_some();
            asked[2] |= limit.pids.is_some();
        }
        let mut by_reason: BTreeMap<&Reason, Vec<&str>> = BTreeMap::new();
        let words = ["memory", "cpus", "pids"];
        for ((controller, word), asked) in Controller::ALL.iter().zip(words).zip(asked) {
            if let Some(reason) = self.missing.get(controller).filter(|_| asked) {
                by_reason.entry(reason).or_default().push(word);
            }
        }
        if by_reason.is_empty() {
            return None;
        }
        let parts: Vec<String> =
            by_reason.iter().map(|(reason, words)| format!("{} ({reason})", list(words))).collect();
        Some(format!("limits are not enforced: {}", parts.join("; ")))
    }

    /// Makes the cgroup of a stack, below which its services get theirs. `None` where no controller can be had.
    /// Moves this process, and the others of this program that stand in [`Self::parent`], into a leaf where
    /// the kernel's rules ask for it.
    ///
    /// # Errors
    /// The file that could not be written, and the value.
    pub fn stack(&self, name: &str) -> Result<Option<Cgroup>, Error> {
        let Some(parent) = &self.parent else { return Ok(None) };
        let stack = Cgroup::create(parent, &format!("{PREFIX}{name}"))?;
        if self.must_leave {
            let leaf = Cgroup::create(&stack.path, OWN_LEAF)?;
            for pid in processes(parent).iter().filter(|pid| runs_our_program(**pid)) {
                write(&leaf.path.join("cgroup.procs"), &pid.to_string())?;
            }
        }
        let controllers: Vec<Controller> =
            Controller::ALL.into_iter().filter(|c| !self.missing.contains_key(c)).collect();
        pass_on(parent, &controllers)?;
        pass_on(&stack.path, &controllers)?;
        Ok(Some(stack))
    }

    /// Removes the empty cgroups that an earlier run of stack `name` left. The last of its processes may be about
    /// to vanish.
    ///
    /// # Errors
    /// When one is in use or cannot be removed.
    pub fn remove_stale(&self, name: &str) -> Result<(), Error> {
        let Some(parent) = &self.parent else { return Ok(()) };
        let path = parent.join(format!("{PREFIX}{name}"));
        let deadline = Instant::now() + STALE_DEADLINE;
        loop {
            match stale(&path) {
                Err(Error::System { source, .. })
                    if source.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(2));
                }
                result => return result,
            }
        }
    }

    /// Removes the cgroup that [`Self::stack`] made, but for the leaf that this process itself stands in: that one
    /// is empty, and goes, with the next command.
    ///
    /// # Errors
    /// `EBUSY` while another process stands in one of them.
    pub fn remove(&self, stack: Cgroup) -> Result<(), Error> {
        match self.must_leave {
            true => below(&stack.path, |entry| entry.file_name() != OWN_LEAF),
            false => stack.remove(),
        }
    }
}

/// A cgroup of ours.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl AsFd for Cgroup {
    /// Its directory, for `CLONE_INTO_CGROUP`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Cgroup {
    /// Makes the cgroup `name` below `parent`, or opens it when it is there.
    ///
    /// # Errors
    /// When it cannot be made or opened; `name` must be a single path component.
    pub fn create(parent: &Path, name: &str) -> Result<Self, Error> {
        let path = parent.join(name);
        let operation = format!("create cgroup {}", path.display());
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(Error::system(operation)(io::ErrorKind::InvalidFilename.into()));
        }
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::system(operation)(error));
            }
            _ => {}
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let directory = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|e| Error::system(format!("open cgroup {}", path.display()))(e.into()))?;
        Ok(Self { path, directory })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Allows `owner`, a user and group of the host, to have processes born in this cgroup: the kernel asks for
    /// the right to write to `cgroup.procs` here and in the common ancestor of both cgroups.
    ///
    /// # Errors
    /// What `chown(2)` reports.
    pub fn give(&self, owner: (u32, u32)) -> Result<(), Error> {
        let path = self.path.join("cgroup.procs");
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1))
            .map_err(Error::system(format!("give {} to the containers' root", path.display())))
    }

    /// Moves the process that starts the services into a leaf of this cgroup, which is given to it.
    ///
    /// # Errors
    /// When the leaf cannot be made or entered.
    pub fn admit_hub(&self, pid: i32, owner: (u32, u32)) -> Result<(), Error> {
        let leaf = Self::create(&self.path, HUB_LEAF)?;
        write(&leaf.path.join("cgroup.procs"), &pid.to_string())?;
        self.give(owner)
    }

    /// Sets the limits; those that are `None` become unlimited where a file for them exists.
    ///
    /// # Errors
    /// The first file that could not be written, and the value.
    pub fn apply(&self, limits: &Limits) -> Result<(), Error> {
        for (file, value, wanted) in settings(limits) {
            let path = self.path.join(file);
            if wanted || path.exists() {
                write(&path, &value)?;
            }
        }
        Ok(())
    }

    /// Removes it and the empty cgroups below it.
    ///
    /// # Errors
    /// `EBUSY` while a process stands in one of them.
    pub fn remove(self) -> Result<(), Error> {
        stale(&self.path)
    }
}

/// Removes `path` and the cgroups below it, which must hold no processes; a missing one is fine.
///
/// # Errors
/// What `rmdir(2)` reports for the first that is in use.
pub fn stale(path: &Path) -> Result<(), Error> {
    below(path, |_| true)?;
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::system(format!("remove cgroup {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Removes those cgroups directly below `path` that `doomed` picks, with all below them.
fn below(path: &Path, doomed: impl Fn(&fs::DirEntry) -> bool) -> Result<(), Error> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::system(format!("read cgroup {}", path.display())))?,
    };
    for entry in entries.flatten() {
        // The files of a cgroup go with its directory.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && doomed(&entry) {
            stale(&entry.path())?;
        }
    }
    Ok(())
}

/// File, value, and whether it is a limit that was asked for.
fn settings(limits: &Limits) -> [(&'static str, String, bool); 3] {
    let max = || "max".to_owned();
    let cpu = limits.cpus.map_or_else(max, |cpus| format!("{:.0}", (cpus * CPU_PERIOD).max(CPU_QUOTA_MIN)));
    [
        ("memory.max", limits.memory.map_or_else(max, |bytes| bytes.to_string()), limits.memory.is_some()),
        ("cpu.max", format!("{cpu} {CPU_PERIOD:.0}"), limits.cpus.is_some()),
        ("pids.max", limits.pids.map_or_else(max, |count| count.to_string()), limits.pids.is_some()),
    ]
}

fn pass_on(cgroup: &Path, controllers: &[Controller]) -> Result<(), Error> {
    let file = cgroup.join("cgroup.subtree_control");
    let on = words(&file);
    // One at a time: a refusal then names its controller.
    for controller in controllers.iter().filter(|c| !on.iter().any(|word| word == c.name())) {
        write(&file, &format!("+{}", controller.name()))?;
    }
    Ok(())
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    // Never created: a file that is not there is a controller that is not there.
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(Error::system(format!("write `{value}` to {}", path.display())))
}

fn words(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn processes(cgroup: &Path) -> Vec<i32> {
    words(&cgroup.join("cgroup.procs")).iter().filter_map(|word| word.parse().ok()).collect()
}

/// Whether a process runs the same file as this one: the command and its supervisor.
fn runs_our_program(pid: i32) -> bool {
    let identity = |path: String| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let own = identity("/proc/self/exe".to_owned());
    own.is_some() && identity(format!("/proc/{pid}/exe")) == own
}

fn list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The cgroup v2 tree as this process sees it.
#[derive(Debug, PartialEq)]
struct Hierarchy {
    /// Where it is mounted.
    mount: PathBuf,
    /// Our own cgroup, at or below `mount`.
    own: PathBuf,
    /// Controllers that are mounted as version 1.
    version1: Vec<String>,
}

impl Hierarchy {
    /// Reads `/proc/self/mountinfo` (proc(5)) and `/proc/self/cgroup` (cgroups(7)).
    fn parse(mountinfo: &str, cgroup: &str) -> Option<Self> {
        let mut unified = None;
        let mut version1 = Vec::new();
        for line in mountinfo.lines() {
            let Some((mount, system)) = line.split_once(" - ") else { continue };
            let mut system = system.split(' ');
            match system.next() {
                Some("cgroup2") if unified.is_none() => {
                    let mut fields = mount.split(' ').skip(3);
                    unified = fields.next().zip(fields.next());
                }
                Some("cgroup") => {
                    let options = system.nth(1).unwrap_or_default();
                    version1.extend(options.split(',').map(str::to_owned));
                }
                _ => {}
            }
        }
        let (root, mount) = unified?;
        let mount = PathBuf::from(unescape(mount));
        let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
        // Outside of what is mounted (`/..`): no cgroup at or above ours can be seen.
        let below = Path::new(own).strip_prefix(unescape(root)).ok()?;
        let outside = below.components().any(|c| matches!(c, std::path::Component::ParentDir));
        (!outside).then(|| Self { own: mount.join(below), mount, version1 })
    }

    /// The cgroup at or above ours that offers most; the nearest among equals, or the topmost.
    fn search(&self, top_first: bool, ours: &dyn Fn(i32) -> bool) -> Delegation {
        let mut candidates: Vec<&Path> =
            self.own.ancestors().take_while(|path| path.starts_with(&self.mount)).collect();
        if top_first {
            candidates.reverse();
        }
        let mut best = Delegation::nothing(&Reason::NotDelegated(self.own.clone()));
        for candidate in candidates.into_iter().filter(|path| writable(path)) {
            let found = offers(candidate, ours);
            if found.parent.is_some() && found.missing.len() < best.missing.len() {
                best = found;
            } else if best.parent.is_none()
                && best.missing.values().all(|reason| matches!(reason, Reason::NotDelegated(_)))
            {
                // Nothing to be had here either, but a better reason.
                best = found;
            }
        }
        for (controller, reason) in &mut best.missing {
            if self.version1.iter().any(|name| name == controller.name()) {
                *reason = Reason::Version1;
            }
        }
        best
    }
}

fn writable(cgroup: &Path) -> bool {
    let may = |path: &Path, access| rustix::fs::access(path, access).is_ok();
    may(cgroup, Access::WRITE_OK | Access::EXEC_OK) && may(&cgroup.join("cgroup.procs"), Access::WRITE_OK)
}

/// What could be passed on by this cgroup.
fn offers(cgroup: &Path, ours: &dyn Fn(i32) -> bool) -> Delegation {
    let given = words(&cgroup.join("cgroup.controllers"));
    let passed_on = words(&cgroup.join("cgroup.subtree_control"));
    // The root alone has no type, and it alone may hold processes beside children.
    let is_root = !cgroup.join("cgroup.type").exists();
    let inside = processes(cgroup);
    let occupied = !is_root && !inside.iter().all(|pid| ours(*pid));
    let mut found = Delegation {
        parent: None,
        missing: BTreeMap::new(),
        must_leave: !is_root && !inside.is_empty() && passed_on.is_empty(),
    };
    for controller in Controller::ALL {
        let has = |list: &[String]| list.iter().any(|word| word == controller.name());
        if has(&passed_on) || has(&given) && !occupied {
            found.parent = Some(cgroup.to_owned());
        } else if has(&given) {
            found.missing.insert(controller, Reason::Occupied(cgroup.to_owned()));
        } else {
            found.missing.insert(controller, Reason::NotGiven(cgroup.to_owned()));
        }
    }
    found
}

/// Undoes the octal escapes of proc(5).
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    /// A directory standing in for a cgroup: what the kernel would show in it.
    fn stand_in(path: &Path, controllers: &str, subtree: &str, procs: &str, root: bool) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.controllers"), controllers).unwrap();
        fs::write(path.join("cgroup.subtree_control"), subtree).unwrap();
        fs::write(path.join("cgroup.procs"), procs).unwrap();
        if !root {
            fs::write(path.join("cgroup.type"), "domain\n").unwrap();
        }
    }

    #[test]
    fn hybrid_mode_is_named() {
        let hierarchy = Hierarchy::parse(HYBRID, "4:memory:/x\n0::/a/b\n").unwrap();
        assert_eq!(hierarchy.own, Path::new("/sys/fs/cgroup/unified/a/b"));
        let top = tempfile::tempdir().unwrap();
        stand_in(top.path(), "hugetlb\n", "", "1\n", true);
        let own = top.path().to_owned();
        let found = Hierarchy { mount: own.clone(), own, ..hierarchy }.search(true, &|_| false);
        assert_eq!(found.parent, None);
        let limits = Limits { memory: Some(1), pids: Some(1), ..Limits::default() };
        assert_eq!(
            found.shortfall([&Limits::default(), &limits]).unwrap(),
            "limits are not enforced: memory and pids (the controllers are on cgroup v1 here)"
        );
        assert_eq!(found.shortfall([&Limits::default()]), None);
        assert!(found.stack("x").unwrap().is_none());
    }

    #[test]
    fn a_mount_of_a_part_and_odd_names() {
        let line = "41 31 0:38 /docker/1 /mnt/c\\040g rw - cgroup2 cgroup2 rw\n";
        let hierarchy = Hierarchy::parse(line, "0::/docker/1/leaf\n").unwrap();
        assert_eq!(hierarchy.own, Path::new("/mnt/c g/leaf"));
        assert_eq!(Hierarchy::parse(line, "0::/../elsewhere\n"), None);
        assert_eq!(Hierarchy::parse("", "0::/\n"), None);
    }

    #[test]
    fn a_desktop_session_passes_controllers_on_from_the_slice() {
        let top = tempfile::tempdir().unwrap();
        let slice = top.path().join("app.slice");
        let own = slice.join("terminal.scope");
        stand_in(&slice, "cpu memory pids\n", "memory pids\n", "", false);
        stand_in(&own, "memory pids\n", "", "1\n2\n", false);
        let hierarchy = Hierarchy { mount: slice.clone(), own: own.clone(), version1: Vec::new() };
        let found = hierarchy.search(false, &|_| false);
        assert_eq!((found.parent.as_deref(), found.missing.len()), (Some(slice.as_path()), 0));
        // Only we are in the scope, and it has all that is to be had there.
        let found = Hierarchy { mount: own.clone(), own: own.clone(), version1: Vec::new() }
            .search(false, &|pid| pid < 3);
        assert_eq!(found.parent.as_deref(), Some(own.as_path()));
        assert_eq!(found.missing, BTreeMap::from([(Controller::Cpu, Reason::NotGiven(own))]));
        assert!(found.must_leave);
    }

    #[test]
    fn limits_are_written_and_a_missing_controller_is_named() {
        let top = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::create(top.path(), "web").unwrap();
        for file in ["memory.max", "cpu.max"] {
            fs::write(cgroup.path().join(file), "").unwrap();
        }
        cgroup.apply(&Limits { memory: Some(64 << 20), cpus: Some(0.25), pids: None }).unwrap();
        let read = |file| fs::read_to_string(cgroup.path().join(file)).unwrap();
        assert_eq!((read("memory.max"), read("cpu.max")), ("67108864".into(), "25000 100000".into()));
        let error = cgroup.apply(&Limits { pids: Some(7), ..Limits::default() }).unwrap_err().to_string();
        assert!(error.starts_with("write `7` to ") && error.ends_with("web/pids.max"), "{error}");
        assert!(Cgroup::create(top.path(), "../x").is_err());
    }

    #[test]
    fn only_cgroups_of_the_stack_are_removed() {
        let top = tempfile::tempdir().unwrap();
        for name in ["inception-run-a/web", "inception-run-ab", "other"] {
            fs::create_dir_all(top.path().join(name)).unwrap();
        }
        let found =
            Delegation { parent: Some(top.path().into()), missing: BTreeMap::new(), must_leave: false };
        found.remove_stale("a").unwrap();
        found.remove_stale("none").unwrap();
        let leaving = Delegation { must_leave: true, ..found.clone() };
        let stack = Cgroup::create(top.path(), "inception-run-c").unwrap();
        for name in [OWN_LEAF, HUB_LEAF, "web"] {
            fs::create_dir(stack.path().join(name)).unwrap();
        }
        leaving.remove(stack).unwrap();
        assert_eq!(fs::read_dir(top.path().join("inception-run-c")).unwrap().count(), 1);
        found.remove_stale("c").unwrap();
        let mut left: Vec<_> = fs::read_dir(top.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["inception-run-ab", "other"]);
    }
}
