//! Which cgroup a container of the OCI runtime gets.

use std::cell::OnceCell;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::delegation::{self, Reason};
use super::directory::Cgroup;
use super::hierarchy::Hierarchy;
use super::systemd::Scope;
use super::version1::Mirror;
use super::{Error, Resources, tree};

/// The cgroup of a container: from [`Placement::for_container`] on, through its state file, until
/// [`Placement::remove`].
///
/// ```text
/// let mut placement = Placement::for_container(path, id, systemd)?;      // nothing is changed yet
/// let born_in = placement.prepare(&resources)?;                          // made, limits written
/// let child = spawn_with(SpawnArgs { cgroup: born_in, .. })?;            // and it waits
/// placement.admit(child.pid, &resources)?;                               // before anything is done in it
/// state.cgroup = placement;                                              // Serialize, Deserialize
/// ...
/// placement.open()?.kill()?; placement.remove()?;                        // from any process
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    place: Place,
    /// Where cgroups are mounted, looked up once in each process.
    #[serde(skip)]
    hierarchy: OnceCell<Option<Hierarchy>>,
    /// Whether this user's rights are those of the host's root.
    rootless: bool,
}

impl PartialEq for Placement {
    fn eq(&self, other: &Self) -> bool {
        (&self.place, self.rootless) == (&other.place, other.rootless)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Place {
    /// A directory of our own making.
    Directory {
        path: PathBuf,
        /// The topmost directory on the way to it that was not there before.
        made: Option<PathBuf>,
        /// Its path in the trees of cgroup v1, where this user may use them.
        version1: Option<PathBuf>,
    },
    /// systemd makes it when it gets its first process.
    Scope(Scope),
    /// An ordinary user has nowhere to make one.
    Nowhere(Reason),
}

impl Placement {
    /// Decides where the cgroup of container `id` is to be. Changes nothing.
    ///
    /// Without `systemd`, an absolute or relative `cgroups_path` is taken from where cgroup v2 is mounted for us
    /// (from the delegated cgroup for an ordinary user, where the place itself is not theirs); without one the
    /// id is the path. With `systemd` it is `slice:prefix:name`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a path that makes no sense, [`Error::Nowhere`] where no cgroup v2 is mounted.
    pub fn for_container(cgroups_path: Option<&str>, id: &str, systemd: bool) -> Result<Self, Error> {
        let rootless = is_rootless();
        let given = cgroups_path.filter(|path| !path.is_empty());
        if systemd {
            let place = Place::Scope(Scope::named(given, id, rootless)?);
            return Ok(Self::new(place, rootless));
        }
        let below = below(given, id)?;
        let Some(hierarchy) = Hierarchy::current() else {
            if rootless {
                return Ok(Self::new(Place::Nowhere(Reason::NotMounted), rootless));
            }
            let reason = Reason::NotMounted;
            return Err(Error::Nowhere { wanted: format!("container `{id}`"), reason });
        };
        let mut path = hierarchy.mount.join(&below);
        if rootless && !may_make(&path) {
            let parent = delegation::delegation().parent.or_else(|| delegation::nearest_writable(&hierarchy));
            let Some(parent) = parent else {
                return Ok(Self::new(Place::Nowhere(Reason::NotDelegated(hierarchy.own)), rootless));
            };
            path = parent.join(&below);
        }
        let version1 = (!rootless && !hierarchy.version1.is_empty()).then_some(below);
        let placement = Self::new(Place::Directory { path, made: None, version1 }, rootless);
        placement.hierarchy.get_or_init(|| Some(hierarchy));
        Ok(placement)
    }

    fn new(place: Place, rootless: bool) -> Self {
        Self { place, hierarchy: OnceCell::new(), rootless }
    }

    fn hierarchy(&self) -> Option<&Hierarchy> {
        self.hierarchy.get_or_init(Hierarchy::current).as_ref()
    }

    fn version1(&self) -> Option<Mirror> {
        match &self.place {
            Place::Directory { version1: Some(below), .. } => Some(Mirror::of(self.hierarchy()?, below)),
            _ => None,
        }
    }

    /// Where the cgroup of version 2 is; `None` before [`Self::admit`] for a scope, and where there is none.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Directory { path, .. } => Some(path),
            Place::Scope(scope) => scope.path.as_deref(),
            Place::Nowhere(_) => None,
        }
    }

    /// Makes the cgroup and applies `resources`. The container's first process is to be born in it. `None` when
    /// there is none (yet). After an error nothing is left.
    ///
    /// # Errors
    /// [`Error::InUse`] when there are processes in it already; the limit that cannot be enforced.
    pub fn prepare(&mut self, resources: &Resources) -> Result<Option<Cgroup>, Error> {
        match &self.place {
            Place::Nowhere(reason) => {
                if resources.needs_cgroup()? {
                    let (wanted, reason) = ("a limit of `linux.resources`".into(), reason.clone());
                    return Err(Error::Nowhere { wanted, reason });
                }
                Ok(None)
            }
            Place::Scope(_) => resources.check().map(|()| None),
            Place::Directory { path, .. } => {
                match self.version1() {
                    Some(version1) => version1.rest(resources).check()?,
                    None => resources.check()?,
                }
                self.check_free(path)?;
                let topmost = make(path)?;
                if let Place::Directory { made, .. } = &mut self.place {
                    *made = topmost;
                }
                let filled = self.fill(resources);
                if filled.is_err() {
                    // The first error is the one to tell.
                    self.remove().ok();
                }
                filled
            }
        }
    }

    /// That it is not another container's: whoever deleted one of the two would kill the other. And that what is put
    /// there runs.
    fn check_free(&self, path: &Path) -> Result<(), Error> {
        if path.exists() {
            let cgroup = Cgroup::open(path)?;
            if cgroup.is_populated()? {
                return Err(Error::InUse(path.to_owned()));
            }
            if cgroup.is_frozen()? {
                return Err(Error::Frozen(path.to_owned()));
            }
        }
        let Some(version1) = self.version1() else { return Ok(()) };
        match (version1.in_use(), version1.frozen()) {
            (Some(path), _) => Err(Error::InUse(path)),
            (None, Some(path)) => Err(Error::Frozen(path)),
            (None, None) => Ok(()),
        }
    }

    fn fill(&self, resources: &Resources) -> Result<Option<Cgroup>, Error> {
        let Some(cgroup) = self.open()? else { return Ok(None) };
        if let Some(hierarchy) = self.hierarchy() {
            delegation::pass_all_on(&hierarchy.mount, cgroup.path());
        }
        cgroup.apply(resources, self.rootless)?;
        Ok(Some(cgroup))
    }

    /// Completes what [`Self::prepare`] could not do without a process: `pid`, the container's first one, is moved
    /// into a scope of systemd's with the limits, or into the counterparts in cgroup v1.
    ///
    /// # Errors
    /// What systemd or the kernel refused; the process is to be killed then.
    pub fn admit(&mut self, pid: i32, resources: &Resources) -> Result<(), Error> {
        match &mut self.place {
            Place::Nowhere(_) => Ok(()),
            Place::Directory { .. } => self.version1().map_or(Ok(()), |version1| version1.admit(pid)),
            Place::Scope(scope) => {
                scope.start(pid, resources)?;
                match self.open()? {
                    Some(cgroup) => cgroup.apply(resources, self.rootless),
                    None => Ok(()),
                }
            }
        }
    }

    /// Where another process of the container enters by itself, by writing `0`: `cgroup.procs` of the cgroup's
    /// counterparts in cgroup v1, which nothing can be born in.
    ///
    /// # Errors
    /// What `open(2)` reports.
    pub(crate) fn also_entered(&self) -> Result<Vec<OwnedFd>, Error> {
        self.version1().map_or(Ok(Vec::new()), |version1| version1.procs())
    }

    /// Opens the cgroup; `None` when there is none, or when it is gone.
    ///
    /// # Errors
    /// What `open(2)` reports.
    pub fn open(&self) -> Result<Option<Cgroup>, Error> {
        let Some(path) = self.path() else { return Ok(None) };
        match Cgroup::open(path) {
            Err(error) if error.kind() == Some(io::ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
            Ok(mut cgroup) => {
                cgroup.version1 = self.version1();
                Ok(Some(cgroup))
            }
        }
    }

    /// Changes limits of a container that exists.
    ///
    /// # Errors
    /// The limit that cannot be enforced, [`Error::Nowhere`] without a cgroup.
    pub fn update(&self, resources: &Resources) -> Result<(), Error> {
        let Some(cgroup) = self.open()? else {
            let reason = match &self.place {
                Place::Nowhere(reason) => reason.clone(),
                _ => Reason::NotMounted,
            };
            return Err(Error::Nowhere { wanted: "a limit of `linux.resources`".into(), reason });
        };
        let resources = cgroup.completed_by_present(resources)?;
        if let Place::Scope(scope) = &self.place {
            scope.set(&resources)?;
        }
        cgroup.apply(&resources, self.rootless)
    }

    /// Removes the cgroup, with what is below it, and the directories above it that were made for it and are empty
    /// now. Its processes must be dead. What is gone already is fine.
    ///
    /// # Errors
    /// `EBUSY` when a process stands in it.
    pub fn remove(&self) -> Result<(), Error> {
        match &self.place {
            Place::Nowhere(_) => Ok(()),
            Place::Scope(scope) => {
                scope.stop()?;
                scope.path.as_deref().map_or(Ok(()), tree::remove)
            }
            Place::Directory { path, made, .. } => {
                let ours = |parent: &&Path| made.as_deref().is_some_and(|made| parent.starts_with(made));
                let parents: Vec<&Path> = path.ancestors().skip(1).take_while(ours).collect();
                if let Some(version1) = self.version1() {
                    version1.remove(parents.len())?;
                }
                tree::remove(path)?;
                for parent in parents {
                    // In use by another container by now.
                    if tree::remove_empty(parent).is_err() {
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Whether this process has less than the rights of the host's root: it is another user, or root of a user
/// namespace.
pub fn is_rootless() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !rustix::process::geteuid().is_root() || !maps_everything(&map)
}

fn maps_everything(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The path of a container's cgroup below wherever cgroups can be made.
fn below(cgroups_path: Option<&str>, id: &str) -> Result<PathBuf, Error> {
    let text = cgroups_path.unwrap_or(id);
    let invalid = |problem: &str| Err(Error::invalid("linux.cgroupsPath", problem));
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => return invalid("must not contain `..`"),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if text.contains(['\0', '\n']) {
        return invalid("contains a character that no cgroup's name can have");
    }
    if path.as_os_str().is_empty() {
        return invalid("the root cgroup cannot be a container's");
    }
    Ok(path)
}

/// Whether the nearest directory at or above `path` may be written to.
fn may_make(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.exists());
    there.is_some_and(|path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok())
}

/// Makes a directory and those above it; returns the topmost that was not there.
fn make(path: &Path) -> Result<Option<PathBuf>, Error> {
    for _ in 0..RETRIES {
        match make_once(path) {
            // A container that ended took the parent away, which was made for it.
            Err(error) if error.kind() == Some(io::ErrorKind::NotFound) => {}
            result => return result,
        }
    }
    make_once(path)
}

/// How often others may come between.
const RETRIES: usize = 16;

fn make_once(path: &Path) -> Result<Option<PathBuf>, Error> {
    let mut made: Vec<&Path> = Vec::new();
    let mut missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    while let Some(next) = missing.pop() {
        match fs::create_dir(next) {
            Ok(()) => made.push(next),
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                // Somebody else's may be in them by now; then they stay.
                made.iter().rev().for_each(|made| drop(tree::remove_empty(made)));
                return Err(Error::at("create cgroup", next)(error));
            }
        }
    }
    Ok(made.first().map(|path| path.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_and_are_never_the_root() {
        let path = |text| below(Some(text), "id").map(|path| path.display().to_string());
        assert_eq!(path("/a/b").unwrap(), "a/b");
        assert_eq!(path("./a//b/").unwrap(), "a/b");
        assert_eq!(below(None, "id").unwrap(), Path::new("id"));
        for text in ["/", ".", "a/../b", "../a", "a\nb", "a\0"] {
            assert!(path(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn directories_made_for_it_are_remembered_and_removed() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("a/b/c");
        let made = make(&path).unwrap();
        assert_eq!(made, Some(top.path().join("a")));
        assert_eq!(make(&path).unwrap(), None);
        let placement = Placement::new(Place::Directory { path, made, version1: None }, true);
        let stored = serde_json::to_string(&placement).unwrap();
        let placement: Placement = serde_json::from_str(&stored).unwrap();
        fs::create_dir(top.path().join("a/beside")).unwrap();
        placement.remove().unwrap();
        assert!(top.path().join("a/beside").exists() && !top.path().join("a/b").exists());
        placement.remove().unwrap();
    }

    #[test]
    fn a_user_namespace_is_rootless() {
        assert!(maps_everything("         0          0 4294967295\n"));
        assert!(!maps_everything("         0       1000          1\n"));
        assert!(!maps_everything("0 1000 1\n1 100000 65536\n"));
    }
}
