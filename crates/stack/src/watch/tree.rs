//! What has changed below the directories that are watched.
//!
//! The kernel tells which names of which directories were touched (inotify(7)); what has become of them is found by
//! looking, and comparing with what was known. So it makes no difference in which order things happened, a directory that
//! is new is found with all that is in it already, and when the kernel had to leave something out, everything is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::rules::Rules;
use crate::remote::{Context, RemoteError};

/// What is to be told of a directory. That a file was written is told each time, and not when it is closed only, which a
/// log never is.
const TOLD: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW)
    .union(WatchFlags::EXCL_UNLINK);

/// How much the clock of files may lag behind: a tick of the slowest kernel.
const TICK: Duration = Duration::from_millis(10);

/// Bytes of events that are read at a time.
const BUFFER: usize = 16 << 10;

/// What is watched, as it was when it was looked at last.
#[derive(Debug)]
pub struct Tree<'a> {
    rules: &'a Rules,
    inotify: OwnedFd,
    directories: BTreeMap<PathBuf, Directory>,
    /// The directories by the kernel's numbers.
    paths: BTreeMap<i32, PathBuf>,
    /// Names that were touched since, by directory.
    touched: BTreeMap<PathBuf, BTreeSet<OsString>>,
    /// The kernel has left out what it could not keep.
    lost: bool,
}

#[derive(Debug)]
struct Directory {
    watch: i32,
    entries: BTreeMap<OsString, Entry>,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy)]
struct Entry {
    is_directory: bool,
    inode: u64,
    /// When it was changed last; of a directory, whose entries are looked at by themselves, nothing.
    changed: (i64, i64),
    /// It was looked at so soon after that another change could have the same time.
    is_fresh: bool,
}

impl Entry {
    fn is_same(&self, other: &Self) -> bool {
        let key = |entry: &Self| (entry.is_directory, entry.inode, entry.changed);
        key(self) == key(other)
    }
}

impl AsFd for Tree<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl<'a> Tree<'a> {
    /// Begins to watch what the rules name.
    ///
    /// # Errors
    /// When the kernel has no more watches for this user, or a directory cannot be read.
    pub fn watch(rules: &'a Rules) -> Result<Self, RemoteError> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(io::Error::from)
            .context(|| "open an inotify descriptor".into())
            .map_err(|error| error.or_hint("`sysctl fs.inotify.max_user_instances` limits them"))?;
        let mut tree = Self {
            rules,
            inotify,
            directories: BTreeMap::new(),
            paths: BTreeMap::new(),
            touched: BTreeMap::new(),
            lost: false,
        };
        for top in rules.tops() {
            tree.adopt(top, &mut BTreeSet::new())?;
        }
        Ok(tree)
    }

    /// All files and directories that are watched, as far as they are known.
    #[must_use]
    pub fn known(&self) -> BTreeSet<PathBuf> {
        let below = |(path, directory): (&PathBuf, &Directory)| -> Vec<PathBuf> {
            directory.entries.keys().map(|name| path.join(name)).collect()
        };
        self.directories.iter().flat_map(below).collect()
    }

    /// Takes what the kernel has to tell; whether there is anything to look at.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn hear(&mut self) -> Result<bool, RemoteError> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = Reader::new(self.inotify.as_fd(), &mut buffer);
        loop {
            let event = match events.next() {
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                event => event.map_err(io::Error::from).context(|| "read what has changed".into())?,
            };
            self.lost |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            let (Some(directory), Some(name)) = (self.paths.get(&event.wd()), event.file_name()) else {
                continue;
            };
            let name = OsStr::from_bytes(name.to_bytes());
            if self.rules.want(&directory.join(name)) {
                self.touched.entry(directory.clone()).or_default().insert(name.to_owned());
            }
        }
        Ok(self.lost || !self.touched.is_empty())
    }

    /// What has changed since it was asked last, of what [`Tree::hear`] has heard of: files, links and directories that
    /// are new, otherwise, or gone. What came and went between is nothing.
    ///
    /// # Errors
    /// As [`Tree::watch`].
    pub fn changes(&mut self) -> Result<BTreeSet<PathBuf>, RemoteError> {
        let mut changed = BTreeSet::new();
        let touched = mem::take(&mut self.touched);
        if !mem::take(&mut self.lost) {
            for (directory, names) in touched {
                self.compare(&directory, names, &mut changed)?;
            }
            return Ok(changed);
        }
        for top in self.rules.tops() {
            self.adopt(top, &mut changed)?;
        }
        let all: Vec<PathBuf> = self.directories.keys().cloned().collect();
        for path in all {
            let Some(directory) = self.directories.get(&path) else { continue };
            let mut names: BTreeSet<OsString> = directory.entries.keys().cloned().collect();
            names.extend(self.names(&path)?);
            self.compare(&path, names, &mut changed)?;
        }
        Ok(changed)
    }

    /// Looks at names of a directory.
    fn compare(
        &mut self,
        directory: &Path,
        names: BTreeSet<OsString>,
        changed: &mut BTreeSet<PathBuf>,
    ) -> Result<(), RemoteError> {
        for name in names {
            let path = directory.join(&name);
            // It may have gone with a directory that was looked at before.
            let Some(known) = self.directories.get_mut(directory) else { return Ok(()) };
            let now = look(&path)?;
            let before = match now {
                Some(now) => known.entries.insert(name, now),
                None => known.entries.remove(&name),
            };
            let was_directory = before.is_some_and(|before| before.is_directory);
            match (before, now) {
                (None, None) => continue,
                (Some(before), Some(now)) if before.is_same(&now) && !before.is_fresh => continue,
                (Some(before), Some(now)) if before.is_same(&now) && now.is_directory => continue,
                _ => {}
            }
            if was_directory {
                self.forget(&path, changed);
            }
            if now.is_some_and(|now| now.is_directory) {
                self.adopt(&path, changed)?;
            }
            changed.insert(path);
        }
        Ok(())
    }

    /// Watches a directory that is new, with all below it.
    fn adopt(&mut self, top: &Path, changed: &mut BTreeSet<PathBuf>) -> Result<(), RemoteError> {
        let mut open = vec![top.to_owned()];
        while let Some(path) = open.pop() {
            if self.directories.contains_key(&path) {
                continue;
            }
            // Before it is read: what comes meanwhile is told.
            let watch = match inotify::add_watch(&self.inotify, &path, TOLD) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => continue,
                watch => watch.map_err(|errno| no_watch(&path, errno))?,
            };
            self.paths.insert(watch, path.clone());
            let mut entries = BTreeMap::new();
            for name in self.names(&path)? {
                let child = path.join(&name);
                let Some(entry) = look(&child)? else { continue };
                entries.insert(name, entry);
                if entry.is_directory {
                    open.push(child.clone());
                }
                changed.insert(child);
            }
            self.directories.insert(path, Directory { watch, entries });
        }
        Ok(())
    }

    /// Forgets a directory that is gone, with all below it.
    fn forget(&mut self, top: &Path, changed: &mut BTreeSet<PathBuf>) {
        let gone: Vec<PathBuf> = (self.directories.range(top.to_owned()..))
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(top))
            .cloned()
            .collect();
        for path in gone {
            let Some(directory) = self.directories.remove(&path) else { continue };
            changed.extend(directory.entries.keys().map(|name| path.join(name)));
            // One that was renamed keeps its number, and may be known by its new path already.
            if self.paths.get(&directory.watch) == Some(&path) {
                self.paths.remove(&directory.watch);
                // With one that was deleted the kernel has done so.
                inotify::remove_watch(&self.inotify, directory.watch).ok();
            }
        }
    }

    /// The names in a directory that are wanted.
    fn names(&self, directory: &Path) -> Result<Vec<OsString>, RemoteError> {
        let reading = || format!("read the directory {}", directory.display());
        let entries = match fs::read_dir(directory) {
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            entries => entries.context(reading)?,
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>();
        let mut names = names.context(reading)?;
        names.retain(|name| self.rules.want(&directory.join(name)));
        Ok(names)
    }
}

/// What is at a path, links not followed.
fn look(path: &Path) -> Result<Option<Entry>, RemoteError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if is_gone(&error) => return Ok(None),
        metadata => metadata.context(|| format!("look at {}", path.display()))?,
    };
    let is_directory = metadata.is_dir();
    let seconds = Duration::new(
        u64::try_from(metadata.ctime()).unwrap_or(0),
        u32::try_from(metadata.ctime_nsec()).unwrap_or(0),
    );
    let is_fresh =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + seconds).is_ok_and(|age| age < TICK);
    let changed = if is_directory { (0, 0) } else { (metadata.ctime(), metadata.ctime_nsec()) };
    Ok(Some(Entry { is_directory, inode: metadata.ino(), changed, is_fresh }))
}

/// Whether there is nothing, or nothing for us: a container's data can lie beside what one works on.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS))
}

fn no_watch(path: &Path, errno: Errno) -> RemoteError {
    let error = RemoteError::from(io::Error::from(errno)).context(format!("watch {}", path.display()));
    match errno {
        Errno::NOSPC => error.or_hint(
            "this user watches as many directories as fs.inotify.max_user_watches allows: `ignore` those that do not matter, such as node_modules",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Instant;

    use super::super::rules::tests::rules;
    use super::*;

    /// What has changed, relative to the directory that is watched; waits until the kernel has told something.
    fn changes(tree: &mut Tree<'_>, top: &Path) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(10);
        while !tree.hear().unwrap() {
            assert!(Instant::now() < end, "nothing was told");
            std::thread::sleep(Duration::from_millis(1));
        }
        let changed = tree.changes().unwrap();
        changed.iter().map(|path| path.strip_prefix(top).unwrap().display().to_string()).collect()
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap().join("src");
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/c"), "c").unwrap();
        (directory, top)
    }

    #[test]
    fn changes_are_found_wherever_they_are() {
        let (_directory, top) = directory();
        let rules = rules(&top, &["left-out"]);
        let mut tree = Tree::watch(&rules).unwrap();
        assert_eq!(tree.known().len(), 4, "{:?}", tree.known());
        assert!(!tree.hear().unwrap());
        fs::write(top.join("a/b/c"), "d").unwrap();
        assert_eq!(changes(&mut tree, &top), ["a/b/c"]);
        // A directory that is new is watched with all that is in it.
        fs::create_dir_all(top.join("x/y")).unwrap();
        fs::write(top.join("x/y/z"), "z").unwrap();
        assert_eq!(changes(&mut tree, &top), ["x", "x/y", "x/y/z"]);
        fs::write(top.join("x/y/z"), "other").unwrap();
        fs::write(top.join("x/y/new"), "new").unwrap();
        symlink("/etc", top.join("x/link")).unwrap();
        assert_eq!(changes(&mut tree, &top), ["x/link", "x/y/new", "x/y/z"]);
        assert!(tree.known().iter().all(|path| !path.starts_with(top.join("x/link/passwd"))));
        // One that is renamed is gone with all that was in it, and is watched where it is then.
        fs::rename(top.join("x"), top.join("a/x")).unwrap();
        let moved = ["x", "x/link", "x/y", "x/y/new", "x/y/z"];
        let both: Vec<String> =
            moved.iter().map(|path| format!("a/{path}")).chain(moved.map(str::to_owned)).collect();
        assert_eq!(changes(&mut tree, &top), both);
        fs::write(top.join("a/x/y/z"), "again").unwrap();
        assert_eq!(changes(&mut tree, &top), ["a/x/y/z"]);
        fs::remove_dir_all(top.join("a")).unwrap();
        assert_eq!(changes(&mut tree, &top).len(), 8);
        assert_eq!(tree.directories.len(), 2, "the top and its parent");
    }

    #[test]
    fn what_does_not_count_is_not_told() {
        let (_directory, top) = directory();
        fs::create_dir_all(top.join("left-out/deep")).unwrap();
        let rules = rules(&top, &["left-out"]);
        let mut tree = Tree::watch(&rules).unwrap();
        fs::write(top.join("left-out/deep/file"), "x").unwrap();
        fs::write(top.join("left-out/file"), "x").unwrap();
        fs::write(top.with_file_name("beside"), "x").unwrap();
        fs::write(top.join("a/.file.swp"), "x").unwrap();
        // What came and went is nothing either, as a file that is written aside and renamed.
        fs::write(top.join("a/aside"), "x").unwrap();
        fs::rename(top.join("a/aside"), top.join("a/file")).unwrap();
        assert_eq!(changes(&mut tree, &top), ["a/file"]);
    }

    #[test]
    fn what_the_kernel_left_out_is_found() {
        let (_directory, top) = directory();
        let rules = rules(&top, &[]);
        let mut tree = Tree::watch(&rules).unwrap();
        fs::write(top.join("a/b/c"), "other").unwrap();
        fs::create_dir_all(top.join("a/new/deep")).unwrap();
        fs::write(top.join("a/new/deep/file"), "x").unwrap();
        assert!(tree.hear().unwrap());
        tree.touched.clear();
        tree.lost = true;
        assert_eq!(changes(&mut tree, &top), ["a/b/c", "a/new", "a/new/deep", "a/new/deep/file"]);
        fs::remove_dir_all(&top).unwrap();
        assert!(tree.hear().unwrap());
        tree.touched.clear();
        tree.lost = true;
        let gone = changes(&mut tree, &top);
        assert_eq!(gone.len(), 7, "{gone:?}");
    }

    #[test]
    fn the_path_itself_may_go_and_come_back() {
        let (_directory, top) = directory();
        let rules = rules(&top, &[]);
        let mut tree = Tree::watch(&rules).unwrap();
        fs::remove_dir_all(&top).unwrap();
        assert_eq!(changes(&mut tree, &top), ["", "a", "a/b", "a/b/c"]);
        fs::create_dir(&top).unwrap();
        fs::write(top.join("file"), "x").unwrap();
        assert_eq!(changes(&mut tree, &top), ["", "file"]);
    }
}
