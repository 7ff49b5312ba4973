//! Where this process may make cgroups, and with which controllers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use super::directory::Cgroup;
use super::hierarchy::Hierarchy;
use super::{Error, Limits, systemd, tree};

/// Directories of ours begin with this.
const PREFIX: &str = "inception-run-";
/// The leaf that the stack's own processes stand in where they must leave the delegated cgroup. No service can
/// have such a name.
const OWN_LEAF: &str = "@supervisor";
/// The leaf of the process that starts the services, where it is somebody else than us.
const HUB_LEAF: &str = "@hub";
/// A controller that a limit needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// For [`Limits::memory`] and its kin.
    Memory,
    /// For [`Limits::cpus`] and [`Limits::cpu_shares`].
    Cpu,
    /// For [`Limits::pids`].
    Pids,
    /// For [`Limits::cpuset`].
    Cpuset,
    /// For [`Limits::block_io`].
    Io,
}

impl Controller {
    /// All that limits can need.
    pub const ALL: [Self; 5] = [Self::Memory, Self::Cpu, Self::Pids, Self::Cpuset, Self::Io];

    /// The kernel's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
            Self::Cpuset => "cpuset",
            Self::Io => "io",
        }
    }

    /// Its name in cgroup v1.
    fn version1(self) -> &'static str {
        if self == Self::Io { "blkio" } else { self.name() }
    }
}

/// Why a controller cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
                "log in through systemd, or have it keep your manager running: `sudo loginctl enable-linger $USER`; \
                 without systemd an administrator has to delegate a cgroup: \
                 `sudo mkdir -p /sys/fs/cgroup/$USER/shell && cd /sys/fs/cgroup/$USER && sudo chown $USER . \
                 cgroup.procs cgroup.subtree_control shell shell/cgroup.procs && \
                 echo '+cpu +cpuset +io +memory +pids' | sudo tee ../cgroup.subtree_control && \
                 echo $$ | sudo tee shell/cgroup.procs`"
            }
            Self::NotGiven(_) => {
                "sudo sh -c 'mkdir -p /etc/systemd/system/user@.service.d && \
                 printf \"[Service]\\nDelegate=cpu cpuset io memory pids\\n\" > \
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
    /// Why systemd did not help, where it was asked.
    refused: Option<String>,
    /// Our processes must leave `parent` before it can pass controllers on.
    must_leave: bool,
}

/// Looks for the cgroup below which this process can make others with the controllers that limits need.
/// Changes nothing.
pub fn delegation() -> Delegation {
    let Some(hierarchy) = Hierarchy::current() else {
        return Delegation::nothing(&Reason::NotMounted);
    };
    let top_first = rustix::process::geteuid().is_root();
    hierarchy.search(top_first, &runs_our_program)
}

/// As [`delegation`], for a stack that is about to start. An ordinary user whose login session is not theirs to
/// divide asks systemd for a scope of their own, and this process moves there.
pub fn delegation_for(stack: &str) -> Delegation {
    let found = delegation();
    if !found.could_ask() {
        return found;
    }
    match systemd::own_scope(&format!("{PREFIX}{stack}-{}", std::process::id())) {
        Ok(()) => delegation(),
        Err(error) => found.refused_by(&error),
    }
}

impl Delegation {
    fn could_ask(&self) -> bool {
        let closed = |reason: &Reason| matches!(reason, Reason::NotDelegated(_) | Reason::Occupied(_));
        !rustix::process::geteuid().is_root() && self.missing.values().any(closed)
    }

    fn refused_by(self, error: &Error) -> Self {
        let cause = std::error::Error::source(error).map(|source| format!(": {source}"));
        Self { refused: Some(format!("{error}{}", cause.unwrap_or_default())), ..self }
    }

    fn nothing(reason: &Reason) -> Self {
        let missing = Controller::ALL.iter().map(|c| (*c, reason.clone())).collect();
        Self { parent: None, missing, refused: None, must_leave: false }
    }

    /// Why systemd did not help, where it was asked.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// One sentence about the limits among these that cannot be enforced; `None` when all can.
    pub fn shortfall<'a>(&self, limits: impl IntoIterator<Item = &'a Limits>) -> Option<String> {
        let mut by_reason: BTreeMap<&Reason, Vec<&str>> = BTreeMap::new();
        let asked: BTreeSet<(Controller, &str)> = limits.into_iter().flat_map(Limits::needs).collect();
        for (controller, word) in asked {
            if let Some(reason) = self.missing.get(&controller) {
                by_reason.entry(reason).or_default().push(word);
            }
        }
        if by_reason.is_empty() {
            return None;
        }
        let parts: Vec<String> =
            by_reason.iter().map(|(reason, words)| format!("{} ({reason})", list(words))).collect();
        let refused = self.refused.iter().map(|refused| format!("; could not {refused}")).collect::<String>();
        Some(format!("limits are not enforced: {}{refused}", parts.join("; ")))
    }

    /// Those of the limits that can be enforced. [`Self::shortfall`] tells of the others.
    pub fn enforceable(&self, limits: &Limits) -> Limits {
        let has = |controller| !self.missing.contains_key(&controller);
        let (memory, cpu) = (has(Controller::Memory), has(Controller::Cpu));
        Limits {
            memory: limits.memory.filter(|_| memory),
            memory_reservation: limits.memory_reservation.filter(|_| memory),
            memory_swap: limits.memory_swap.filter(|_| memory),
            cpus: limits.cpus.filter(|_| cpu),
            cpu_shares: limits.cpu_shares.filter(|_| cpu),
            cpuset: limits.cpuset.clone().filter(|_| has(Controller::Cpuset)),
            pids: limits.pids.filter(|_| has(Controller::Pids)),
            block_io: limits.block_io.clone().filter(|_| has(Controller::Io)),
        }
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
                leaf.admit(*pid)?;
            }
        }
        let controllers: Vec<Controller> =
            Controller::ALL.into_iter().filter(|c| !self.missing.contains_key(c)).collect();
        pass_on(&Cgroup::open(parent)?, &controllers)?;
        pass_on(&stack, &controllers)?;
        Ok(Some(stack))
    }

    /// Moves the process that starts the services into a leaf of the stack's cgroup, and gives its owner the
    /// right to have processes born in `stack`.
    ///
    /// # Errors
    /// When the leaf cannot be made or entered.
    pub fn admit_hub(stack: &Cgroup, pid: i32, owner: (u32, u32)) -> Result<(), Error> {
        Cgroup::create(&stack.path, HUB_LEAF)?.admit(pid)?;
        stack.give(owner)
    }

    /// Removes the empty cgroups that an earlier run of stack `name` left. The last of its processes may be about
    /// to vanish.
    ///
    /// # Errors
    /// When one is in use or cannot be removed.
    pub fn remove_stale(&self, name: &str) -> Result<(), Error> {
        let Some(parent) = &self.parent else { return Ok(()) };
        tree::remove(&parent.join(format!("{PREFIX}{name}")))
    }

    /// Removes the cgroup that [`Self::stack`] made, but for the leaf that this process itself stands in: that one
    /// is empty, and goes, with the next command.
    ///
    /// # Errors
    /// `EBUSY` while another process stands in one of them.
    pub fn remove(&self, stack: Cgroup) -> Result<(), Error> {
        match self.must_leave {
            true => tree::remove_below(&stack.path, |name| name != OWN_LEAF),
            false => stack.remove(),
        }
    }
}

fn pass_on(cgroup: &Cgroup, controllers: &[Controller]) -> Result<(), Error> {
    let on = words(&cgroup.path.join(SUBTREE));
    // One at a time: a refusal then names its controller.
    for controller in controllers.iter().filter(|c| !on.iter().any(|word| word == c.name())) {
        cgroup.write(SUBTREE, &format!("+{}", controller.name()))?;
    }
    Ok(())
}

const SUBTREE: &str = "cgroup.subtree_control";

/// Passes on to `leaf`, a cgroup at or below `top`, whatever controllers there are at `top`, level by level. One
/// that is refused on the way is not an error yet: it may not be needed, and whoever needs it asks
/// [`why_missing`].
pub(super) fn pass_all_on(top: &Path, leaf: &Path) {
    let mut levels: Vec<&Path> = leaf.ancestors().skip(1).take_while(|path| path.starts_with(top)).collect();
    levels.reverse();
    for level in levels {
        let given = words(&level.join("cgroup.controllers"));
        let on = words(&level.join(SUBTREE));
        let missing: Vec<String> =
            given.iter().filter(|name| !on.contains(name)).map(|name| format!("+{name}")).collect();
        let Some(cgroup) = Some(level).filter(|_| !missing.is_empty()).and_then(|l| Cgroup::open(l).ok())
        else {
            continue;
        };
        if cgroup.write(SUBTREE, &missing.join(" ")).is_err() {
            for controller in &missing {
                // What is missing then is said by who sets a limit that needs it.
                cgroup.write(SUBTREE, controller).ok();
            }
        }
    }
}

/// Why a cgroup does not have a controller.
pub(super) fn why_missing(cgroup: &Path, controller: &str) -> Reason {
    let Some(hierarchy) = Hierarchy::current() else { return Reason::NotMounted };
    let name1 = if controller == "io" { "blkio" } else { controller };
    if hierarchy.version1_of(name1).is_some() {
        return Reason::Version1;
    }
    // The topmost cgroup that has it and does not pass it on is the one to blame.
    let ancestors = cgroup.ancestors().skip(1).take_while(|path| path.starts_with(&hierarchy.mount));
    let has = |path: &Path| words(&path.join("cgroup.controllers")).iter().any(|name| name == controller);
    match ancestors.into_iter().find(|path| has(path)) {
        None => Reason::NotGiven(hierarchy.mount),
        Some(path) if !writable(path) => Reason::NotGiven(path.to_owned()),
        Some(path) if path.join("cgroup.type").exists() && !processes(path).is_empty() => {
            Reason::Occupied(path.to_owned())
        }
        Some(path) => Reason::NotGiven(path.to_owned()),
    }
}

/// The nearest cgroup at or above ours that may be written to: where cgroups without limits can be made.
pub(super) fn nearest_writable(hierarchy: &Hierarchy) -> Option<PathBuf> {
    let mut candidates = hierarchy.own.ancestors().take_while(|path| path.starts_with(&hierarchy.mount));
    candidates.find(|path| writable(path)).map(Path::to_owned)
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

impl Hierarchy {
    /// The cgroup at or above ours that offers most; the nearest among equals, or the topmost.
    fn search(&self, top_first: bool, ours: &dyn Fn(i32) -> bool) -> Delegation {
        let candidates = self.candidates(top_first, is_delegated(&self.own));
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
        self.blame_version1(&mut best);
        best
    }

    /// Our cgroup and those above it in the order in which they are asked. Who may write to all of them (`top_first`)
    /// has no business in those that systemd manages, unless it has left ours to us.
    fn candidates(&self, top_first: bool, is_delegated: bool) -> Vec<&Path> {
        let mut candidates: Vec<&Path> =
            self.own.ancestors().take_while(|path| path.starts_with(&self.mount)).collect();
        if top_first {
            candidates.reverse();
        }
        if is_delegated {
            candidates.sort_by_key(|path| *path != self.own);
        }
        candidates
    }

    fn blame_version1(&self, found: &mut Delegation) {
        for (controller, reason) in &mut found.missing {
            if self.version1_of(controller.version1()).is_some() {
                *reason = Reason::Version1;
            }
        }
    }
}

/// Whether systemd leaves a cgroup and what is below it to those who run in it: the mark of a unit with `Delegate=`,
/// of which an ordinary user sees the second only (systemd 251).
fn is_delegated(cgroup: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].into_iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::getxattr(cgroup, name, &mut value[..]) == Ok(1) && value == *b"1"
    })
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
        refused: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::hierarchy::tests::HYBRID;

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
    fn a_desktop_session_passes_controllers_on_from_the_slice() {
        let top = tempfile::tempdir().unwrap();
        let slice = top.path().join("app.slice");
        let own = slice.join("terminal.scope");
        stand_in(&slice, "cpu cpuset io memory pids\n", "memory pids\n", "", false);
        stand_in(&own, "cpuset io memory pids\n", "", "1\n2\n", false);
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
    fn root_begins_at_the_top_unless_its_own_cgroup_was_left_to_it() {
        let paths = ["/c", "/c/system.slice", "/c/system.slice/stack.service"];
        let [top, slice, own] = paths.map(Path::new);
        let hierarchy = Hierarchy { mount: top.into(), own: own.into(), version1: Vec::new() };
        assert_eq!(hierarchy.candidates(true, false), [top, slice, own]);
        assert_eq!(hierarchy.candidates(true, true), [own, top, slice]);
        for is_delegated in [false, true] {
            assert_eq!(hierarchy.candidates(false, is_delegated), [own, slice, top], "an ordinary user");
        }
    }

    #[test]
    fn only_cgroups_of_the_stack_are_removed() {
        let top = tempfile::tempdir().unwrap();
        for name in ["inception-run-a/web", "inception-run-ab", "other"] {
            fs::create_dir_all(top.path().join(name)).unwrap();
        }
        let found = Delegation {
            parent: Some(top.path().into()),
            missing: BTreeMap::new(),
            refused: None,
            must_leave: false,
        };
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
