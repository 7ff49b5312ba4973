//! One cgroup: a directory, by its descriptor.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::resources::{Absent, CURRENT, Resources, Setting};
use super::tree::{self, DIRECTORY};
use super::version1::Mirror;
use super::{Error, devices};

/// How long the processes of a cgroup may take to stop when they are frozen, and to be gone when they are killed:
/// a process in the kernel finishes what it does there first.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at something that does not wake us.
const PAUSE: Duration = Duration::from_millis(1);

/// A cgroup of ours.
#[derive(Debug)]
pub struct Cgroup {
    pub(super) path: PathBuf,
    directory: OwnedFd,
    /// Its counterparts in trees of cgroup v1, where there are such trees and it may use them.
    pub(super) version1: Option<Mirror>,
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
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(Error::at("create cgroup", &path)(io::ErrorKind::InvalidFilename.into()));
        }
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::at("create cgroup", &path)(error))
            }
            _ => Self::open(&path),
        }
    }

    /// Opens the cgroup that is at `path`.
    ///
    /// # Errors
    /// What `open(2)` reports.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let directory = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(|errno| Error::at("open cgroup", path)(errno.into()))?;
        Ok(Self { path: path.to_owned(), directory, version1: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets limits and device rules. `rootless` where this process has not the host root's rights: see
    /// [`super::is_rootless`].
    ///
    /// # Errors
    /// The first file that could not be written, with the value; [`Error::Controller`] where it is not there.
    pub fn apply(&self, resources: &Resources, rootless: bool) -> Result<(), Error> {
        self.check_usage(resources)?;
        match &self.version1 {
            None => self.apply_here(resources, rootless),
            Some(version1) => self.apply_here(&version1.apply(resources, || self.procs())?, rootless),
        }
    }

    fn apply_here(&self, resources: &Resources, rootless: bool) -> Result<(), Error> {
        let settings = resources.version2()?;
        // Some values are refused while another one stands that does not go with them, such as a quota below the
        // present burst: these get a second chance when all others are written.
        let mut refused = Vec::new();
        for setting in &settings {
            match self.set(setting) {
                Err(error) if error.kind() == Some(io::ErrorKind::InvalidInput) => refused.push(setting),
                other => other?,
            }
        }
        for setting in refused {
            self.set(setting)?;
        }
        match &resources.devices {
            Some(rules) => devices::enforce(self.directory.as_fd(), rules, rootless),
            None => Ok(()),
        }
    }

    pub(super) fn set(&self, setting: &Setting) -> Result<(), Error> {
        let Setting { file, value, absent, .. } = setting;
        let value = self.completed(value)?;
        let result = self.write_lines(file, &value);
        if !matches!(&result, Err(error) if error.kind() == Some(io::ErrorKind::NotFound)) {
            return result;
        }
        match absent {
            Absent::Skip => Ok(()),
            Absent::Instead(file, value) => {
                self.write_lines(file, value).map_err(|error| self.explain(error, setting))
            }
            Absent::Refuse => result.map_err(|error| self.explain(error, setting)),
        }
    }

    /// A limit of memory and swap together is one of memory too, which stands if it is not given.
    pub(super) fn completed_by_present(&self, resources: &Resources) -> Result<Resources, Error> {
        let mut resources = resources.clone();
        let Some(memory) = resources.spec.memory_mut().as_mut() else { return Ok(resources) };
        let unlimited = memory.limit().is_none_or(|limit| limit == 0);
        if unlimited && memory.swap().is_some_and(|swap| swap > 0) && self.version1.is_none() {
            let present = self.read("memory.max")?.and_then(|text| text.trim().parse().ok());
            memory.set_limit(present);
        }
        Ok(resources)
    }

    /// Puts the present quota where it was left open.
    fn completed(&self, value: &str) -> Result<String, Error> {
        match value.strip_prefix(CURRENT) {
            None => Ok(value.to_owned()),
            Some(rest) => {
                let now = self.read("cpu.max")?.unwrap_or_default();
                Ok(format!("{}{rest}", now.split_whitespace().next().unwrap_or("max")))
            }
        }
    }

    fn explain(&self, error: Error, setting: &Setting) -> Error {
        if error.kind() != Some(io::ErrorKind::NotFound) {
            return error;
        }
        // Cgroup v1 has no such list: the whole tree is the controller's.
        let given = self.read("cgroup.controllers").ok().flatten();
        let controller = setting.controller();
        let is_given = given.is_none_or(|given| given.split_whitespace().any(|name| name == controller));
        if controller == "cgroup" || is_given {
            // The controller is there, so it is the kernel that has no such file.
            return Error::Unsupported {
                field: setting.field.clone(),
                reason: format!("this kernel has no `{}`", setting.file),
            };
        }
        Error::Controller {
            file: setting.file.clone(),
            controller: controller.to_owned(),
            cgroup: self.path.clone(),
            reason: super::delegation::why_missing(&self.path, controller),
        }
    }

    fn write_lines(&self, file: &str, value: &str) -> Result<(), Error> {
        let lines: Vec<&str> = value.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            return self.write(file, value);
        }
        let mut opened = self.open_to_write(file).map_err(Error::at("open", &self.path.join(file)))?;
        lines.into_iter().try_for_each(|line| {
            let written = opened.write_all(line.as_bytes());
            written.map_err(|error| Error::at(&format!("write `{line}` to"), &self.path.join(file))(error))
        })
    }

    fn open_to_write(&self, file: &str) -> io::Result<fs::File> {
        // Never created: a file that is not there is a controller that is not there.
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.directory, file, flags, Mode::empty())?.into())
    }

    /// A limit that is below what is in use would make the kernel kill, unless it is asked not to.
    fn check_usage(&self, resources: &Resources) -> Result<(), Error> {
        let Some(limit) = resources.memory_to_check() else { return Ok(()) };
        let used = self.read("memory.current")?.and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(0);
        if used < limit {
            return Ok(());
        }
        let problem = format!("{limit} is below what is in use, {used}, and `checkBeforeUpdate` is set");
        Err(Error::invalid("linux.resources.memory.limit", problem))
    }

    /// Allows `owner`, a user and group of the host, to have processes born in this cgroup: the kernel asks for
    /// the right to write to `cgroup.procs` here and in the common ancestor of both cgroups.
    ///
    /// # Errors
    /// What `chown(2)` reports.
    pub fn give(&self, owner: (u32, u32)) -> Result<(), Error> {
        let path = self.path.join("cgroup.procs");
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).map_err(Error::at("give away", &path))
    }

    /// Moves a process in.
    ///
    /// # Errors
    /// What the kernel reports: `ESRCH` when there is no such process.
    pub fn admit(&self, pid: i32) -> Result<(), Error> {
        self.write("cgroup.procs", &pid.to_string())?;
        self.version1.as_ref().map_or(Ok(()), |version1| version1.admit(pid))
    }

    /// The processes in this cgroup and in those below it. Those that another PID namespace hides are not among
    /// them.
    ///
    /// # Errors
    /// When a cgroup cannot be read.
    pub fn procs(&self) -> Result<Vec<i32>, Error> {
        let mut all = Vec::new();
        self.walk(|cgroup| {
            match read_at(cgroup, "cgroup.procs") {
                // A threaded cgroup: its processes count as the parent's.
                Err(Errno::OPNOTSUPP) => {}
                // It has vanished.
                Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(errno),
                Ok(text) => {
                    all.extend(
                        text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0),
                    );
                }
            }
            Ok(())
        })
        .map_err(|errno| Error::at("list the processes of cgroup", &self.path)(errno.into()))?;
        Ok(all)
    }

    /// Sends a signal to every process. They are frozen for that moment, so that none can have a child that is
    /// missed.
    ///
    /// # Errors
    /// When they cannot be listed or signalled.
    pub fn signal_all(&self, signal: i32) -> Result<(), Error> {
        let freeze = !self.is_frozen()?;
        if freeze {
            self.freeze()?;
        }
        let signalled = self.procs().and_then(|pids| {
            pids.into_iter().try_for_each(|pid| match sys::process::kill(pid, signal) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    Err(Error::system(format!("send signal {signal} to process {pid}"))(error))
                }
                _ => Ok(()),
            })
        });
        if freeze {
            self.thaw()?;
        }
        signalled
    }

    /// Stops all processes and waits until they stand still.
    ///
    /// # Errors
    /// [`Error::Deadline`] when they do not; they go on then.
    pub fn freeze(&self) -> Result<(), Error> {
        self.write("cgroup.freeze", "1")?;
        let frozen = self.wait_event("frozen", true, Instant::now() + DEADLINE);
        if frozen.is_err() {
            self.write("cgroup.freeze", "0")?;
        }
        frozen
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// What the kernel reports, and [`Error::Deadline`].
    pub fn thaw(&self) -> Result<(), Error> {
        self.write("cgroup.freeze", "0")?;
        self.wait_event("frozen", false, Instant::now() + DEADLINE)
    }

    /// How many processes were killed because the limit of memory was reached; `None` without that controller.
    ///
    /// # Errors
    /// When the kernel's count cannot be read.
    pub fn oom_kills(&self) -> Result<Option<u64>, Error> {
        let count = |text: String| {
            let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            line.and_then(|number| number.trim().parse().ok())
        };
        match self.read("memory.events")? {
            Some(events) => Ok(count(events)),
            None => Ok(self.version1.as_ref().and_then(Mirror::memory_events).and_then(count)),
        }
    }

    /// Whether all its processes stand still.
    ///
    /// # Errors
    /// When `cgroup.events` cannot be read.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        Ok(self.event("frozen")?.unwrap_or(false))
    }

    /// Whether there is a process in it or below it. There is none in one that is gone.
    ///
    /// # Errors
    /// When `cgroup.events` cannot be read.
    pub fn is_populated(&self) -> Result<bool, Error> {
        Ok(self.event("populated")?.unwrap_or(false))
    }

    /// Kills all processes and waits until they are gone.
    ///
    /// # Errors
    /// [`Error::Deadline`] when one does not go.
    pub fn kill(&self) -> Result<(), Error> {
        let deadline = Instant::now() + DEADLINE;
        match self.write("cgroup.kill", "1") {
            Ok(()) => self.wait_event("populated", false, deadline),
            // systemd was faster to remove it.
            Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            // Before Linux 5.14.
            Err(error) if error.kind() == Some(io::ErrorKind::NotFound) => self.kill_each(deadline),
            Err(error) => Err(error),
        }
    }

    fn kill_each(&self, deadline: Instant) -> Result<(), Error> {
        while self.is_populated()? {
            // Frozen ones can be killed, and have no children meanwhile.
            self.write("cgroup.freeze", "1")?;
            for pid in self.procs()? {
                match sys::process::kill(pid, libc::SIGKILL) {
                    Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                        return Err(Error::system(format!("kill process {pid}"))(error));
                    }
                    _ => {}
                }
            }
            self.write("cgroup.freeze", "0")?;
            if Instant::now() > deadline {
                return Err(self.late("the end of all processes"));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Removes it and the cgroups below it. The last processes may be about to vanish.
    ///
    /// # Errors
    /// `EBUSY` when a process stands in one of them still after a while.
    pub fn remove(self) -> Result<(), Error> {
        self.version1.as_ref().map_or(Ok(()), |version1| version1.remove(0))?;
        tree::remove(&self.path)
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        self.open_to_write(file)
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .map_err(Error::at(&format!("write `{value}` to"), &self.path.join(file)))
    }

    /// `None` when there is no such file, or the cgroup is gone.
    pub(super) fn read(&self, file: &str) -> Result<Option<String>, Error> {
        match read_at(self.directory.as_fd(), file) {
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            other => other.map(Some).map_err(|errno| Error::at("read", &self.path.join(file))(errno.into())),
        }
    }

    fn event(&self, name: &str) -> Result<Option<bool>, Error> {
        let text = self.read("cgroup.events")?.unwrap_or_default();
        Ok(value_of(&text, name).map(|value| value != 0))
    }

    /// Waits until a line of `cgroup.events` says so; the kernel wakes whoever polls that file. In a cgroup that is
    /// gone nothing is frozen or alive.
    fn wait_event(&self, name: &str, wanted: bool, deadline: Instant) -> Result<(), Error> {
        let path = self.path.join("cgroup.events");
        let reading = || Error::at("read", &path);
        let gone = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file = match rustix::fs::openat(&self.directory, "cgroup.events", flags, Mode::empty()) {
            Err(errno) if !wanted && gone(&errno.into()) => return Ok(()),
            other => fs::File::from(other.map_err(|errno| reading()(errno.into()))?),
        };
        loop {
            let mut text = String::new();
            match io::Seek::rewind(&mut file).and_then(|()| file.read_to_string(&mut text)) {
                Err(error) if !wanted && gone(&error) => return Ok(()),
                other => other.map_err(reading())?,
            };
            if value_of(&text, name).map(|value| value != 0) == Some(wanted) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.late(&format!("`{name} {}` in cgroup.events", u8::from(wanted))));
            }
            // Not longer than a second, should a change have come between the two.
            let left = left.min(Duration::from_secs(1));
            let timeout =
                Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::system("wait for cgroup.events")(errno.into())),
            }
        }
    }

    fn late(&self, what: &str) -> Error {
        Error::Deadline(format!("{what} of cgroup {}", self.path.display()))
    }

    fn walk(
        &self,
        mut visit: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<()> {
        tree::walk(self.directory.as_fd(), &mut visit, &mut |_, _| Ok(()))
    }
}

fn read_at(directory: BorrowedFd<'_>, file: &str) -> rustix::io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(directory, file, flags, Mode::empty())?;
    let mut text = String::new();
    match fs::File::from(fd).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)),
    }
}

/// The number behind `name` in lines of names and numbers.
fn value_of(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_and_a_missing_file_is_named() {
        let top = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::create(top.path(), "web").unwrap();
        for file in ["memory.max", "cpu.max", "cgroup.controllers"] {
            fs::write(cgroup.path().join(file), "50000 100000").unwrap();
        }
        let resources = |json: &str| Resources::from_spec(&serde_json::from_str(json).unwrap()).unwrap();
        cgroup.apply(&resources(r#"{"memory": {"limit": 64}, "cpu": {"period": 7}}"#), true).unwrap();
        let read = |file| fs::read_to_string(cgroup.path().join(file)).unwrap();
        assert_eq!(&read("memory.max")[..2], "64");
        assert!(read("cpu.max").starts_with("50000 7"));
        let error = cgroup.apply(&resources(r#"{"pids": {"limit": 7}}"#), true).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("`pids.max` of cgroup ") && text.ends_with("(controller `pids`)"), "{text}");
        assert!(error.hint().is_some());
        assert!(Cgroup::create(top.path(), "../x").is_err());
    }

    #[test]
    fn a_limit_below_what_is_used_is_refused_where_that_is_asked_for() {
        let top = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::create(top.path(), "web").unwrap();
        fs::write(cgroup.path().join("memory.current"), "100\n").unwrap();
        fs::write(cgroup.path().join("memory.max"), "").unwrap();
        let resources = |limit: u32| {
            let spec = serde_json::json!({"memory": {"limit": limit, "checkBeforeUpdate": true}});
            Resources::from_spec(&serde_json::from_value(spec).unwrap()).unwrap()
        };
        assert!(cgroup.apply(&resources(99), true).unwrap_err().to_string().contains("in use, 100"));
        cgroup.apply(&resources(101), true).unwrap();
    }

    #[test]
    fn numbers_behind_names() {
        let text = "low 0\noom 3\noom_kill 2\n";
        assert_eq!(value_of(text, "oom"), Some(3));
        assert_eq!(value_of(text, "oom_kill"), Some(2));
        assert_eq!(value_of(text, "max"), None);
    }
}
