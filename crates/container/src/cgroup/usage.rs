//! What a cgroup uses: the statistics of cgroup v2 as numbers with units.
//!
//! The files are those of the kernel's `Documentation/admin-guide/cgroup-v2.rst`, section "Controllers". A file
//! that is not there is a controller that the cgroup was not given, or one that this kernel does not have yet: its
//! values are `None`. A file that cannot be understood is an error that names it.

pub mod event;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Everything that one cgroup, with those below it, has used and is using.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time; every cgroup counts it, with the controller or without.
    pub cpu: Option<Cpu>,
    /// Memory; `None` without the controller.
    pub memory: Option<Memory>,
    /// Block devices by `major:minor`; `None` without the controller.
    pub io: Option<BTreeMap<String, Io>>,
    /// Processes and threads; `None` without the controller.
    pub pids: Option<Pids>,
    /// Huge pages by their size as the kernel writes it (`2MB`, `1GB`); empty without the controller.
    pub hugetlb: BTreeMap<String, HugePages>,
    /// Pressure stall information.
    pub pressure: Pressures,
}

/// `cpu.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Microseconds of processor time, user and system.
    pub usage_usec: u64,
    /// Microseconds in user mode.
    pub user_usec: u64,
    /// Microseconds in the kernel.
    pub system_usec: u64,
    /// What `cpu.max` took away; `None` without the controller.
    pub throttling: Option<Throttling>,
}

/// What a limit of processor time has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttling {
    /// Periods in which something wanted to run.
    pub periods: u64,
    /// Those of them in which the quota was used up.
    pub throttled_periods: u64,
    /// Microseconds that runnable tasks were kept waiting.
    pub throttled_usec: u64,
}

/// `memory.*`, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All that is charged now, page cache and kernel structures too.
    pub current: u64,
    /// `memory.max`; `None` is unlimited.
    pub limit: Option<u64>,
    /// The most it ever was; `None` before Linux 5.19.
    pub peak: Option<u64>,
    /// `memory.stat` as it is: bytes by kind, then counts of events.
    pub stat: BTreeMap<String, u64>,
    /// What the limits have done.
    pub events: MemoryEvents,
    /// Swap; `None` without it.
    pub swap: Option<Swap>,
}

impl Memory {
    /// Bytes without the page cache that the kernel would give up first: what `docker stats` shows.
    pub fn working_set(&self) -> u64 {
        self.current.saturating_sub(self.stat.get("inactive_file").copied().unwrap_or(0))
    }
}

/// `memory.events`: how often something happened in the cgroup or below.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEvents {
    /// It was reclaimed from although below `memory.low`.
    pub low: u64,
    /// It went over `memory.high` and was slowed down.
    pub high: u64,
    /// It was about to go over `memory.max`.
    pub max: u64,
    /// It was at its limit and nothing could be reclaimed.
    pub oom: u64,
    /// Processes of it that an OOM killer ended.
    pub oom_kill: u64,
    /// Times that all of it was ended at once (`memory.oom.group`).
    pub oom_group_kill: u64,
}

/// `memory.swap.*`, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// Swap in use.
    pub current: u64,
    /// `memory.swap.max`; `None` is unlimited.
    pub limit: Option<u64>,
}

/// A line of `io.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
    /// Reads.
    pub rios: u64,
    /// Writes.
    pub wios: u64,
    /// Bytes discarded.
    pub dbytes: u64,
    /// Discards.
    pub dios: u64,
}

/// `pids.*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// Processes and threads now.
    pub current: u64,
    /// `pids.max`; `None` is unlimited.
    pub limit: Option<u64>,
}

/// `hugetlb.SIZE.*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePages {
    /// Bytes in use.
    pub current: u64,
    /// Most bytes that may be in use; `None` is unlimited.
    pub limit: Option<u64>,
    /// How often a page was refused because of the limit.
    pub refused: u64,
}

/// `cpu.pressure`, `memory.pressure` and `io.pressure`; `None` where the kernel does not measure it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressures {
    /// Waiting for a processor.
    pub cpu: Option<Pressure>,
    /// Waiting for memory to be freed or read back.
    pub memory: Option<Pressure>,
    /// Waiting for block devices.
    pub io: Option<Pressure>,
}

/// Time lost to one resource (the kernel's `Documentation/accounting/psi.rst`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks that could have run waited; `None` where the kernel does not say.
    pub full: Option<Stall>,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Per cent of the last 10 seconds.
    pub avg10: f64,
    /// Per cent of the last minute.
    pub avg60: f64,
    /// Per cent of the last five minutes.
    pub avg300: f64,
    /// Microseconds since the cgroup was made.
    pub total: u64,
}

impl Usage {
    /// Reads the statistics of the cgroup at `path`.
    ///
    /// # Errors
    /// A file that is there and cannot be read or understood.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let directory = Directory(path);
        Ok(Self {
            cpu: directory.read("cpu.stat", cpu)?,
            memory: directory.memory()?,
            io: directory.read("io.stat", io_stat)?,
            pids: directory.pids()?,
            hugetlb: directory.hugetlb()?,
            pressure: Pressures {
                cpu: directory.read("cpu.pressure", pressure)?,
                memory: directory.read("memory.pressure", pressure)?,
                io: directory.read("io.pressure", pressure)?,
            },
        })
    }
}

impl MemoryEvents {
    /// Reads `memory.events` of the cgroup at `path`; `None` without the memory controller, and when the cgroup is
    /// gone.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        Directory(path).read("memory.events", memory_events)
    }

    /// Reads what happened in the cgroup at `path` itself and not in those below it (`memory.events.local`); `None`
    /// without the controller, and before Linux 5.2.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read_local(path: &Path) -> Result<Option<Self>, Error> {
        Directory(path).read("memory.events.local", memory_events)
    }

    /// Reads an open `memory.events` from its beginning. Whoever polls the file for changes has to, to be told of
    /// the next one.
    ///
    /// # Errors
    /// When it cannot be read, because its cgroup is gone for example, or not understood.
    pub fn of(file: &fs::File) -> io::Result<Self> {
        let mut buffer = [0u8; 1024];
        let length = file.read_at(&mut buffer, 0)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        memory_events(&text).map_err(|line| io::Error::new(io::ErrorKind::InvalidData, line))
    }
}

/// A cgroup's directory.
struct Directory<'a>(&'a Path);

impl Directory<'_> {
    /// What `parse` makes of a file; `None` when there is no such file.
    fn read<T>(&self, file: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Error> {
        let path = self.0.join(file);
        let operation = || format!("read {}", path.display());
        match fs::read_to_string(&path) {
            Ok(text) => parse(&text).map(Some).map_err(|line| malformed(&path, &line)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::system(operation())(error)),
        }
    }

    fn memory(&self) -> Result<Option<Memory>, Error> {
        let Some(current) = self.read("memory.current", number)? else { return Ok(None) };
        let swap = match self.read("memory.swap.current", number)? {
            Some(current) => Some(Swap { current, limit: self.read("memory.swap.max", limit)?.flatten() }),
            None => None,
        };
        Ok(Some(Memory {
            current,
            limit: self.read("memory.max", limit)?.flatten(),
            peak: self.read("memory.peak", number)?,
            stat: self.read("memory.stat", flat)?.unwrap_or_default(),
            events: self.read("memory.events", memory_events)?.unwrap_or_default(),
            swap,
        }))
    }

    fn pids(&self) -> Result<Option<Pids>, Error> {
        let Some(current) = self.read("pids.current", number)? else { return Ok(None) };
        Ok(Some(Pids { current, limit: self.read("pids.max", limit)?.flatten() }))
    }

    fn hugetlb(&self) -> Result<BTreeMap<String, HugePages>, Error> {
        let mut pages = BTreeMap::new();
        let entries = match fs::read_dir(self.0) {
            Err(error) if is_absent(&error) => return Ok(pages),
            other => other.map_err(Error::system(format!("read cgroup {}", self.0.display())))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::system(format!("read cgroup {}", self.0.display())))?;
            let name = entry.file_name();
            let size = name.to_str().and_then(|name| name.strip_prefix("hugetlb.")?.strip_suffix(".current"));
            // `hugetlb.2MB.rsvd.current` counts reservations.
            let Some(size) = size.filter(|size| !size.contains('.')) else { continue };
            let file = |what: &str| format!("hugetlb.{size}.{what}");
            let events = self.read(&file("events"), flat)?.unwrap_or_default();
            let used = HugePages {
                current: self.read(&file("current"), number)?.unwrap_or(0),
                limit: self.read(&file("max"), limit)?.flatten(),
                refused: events.get("max").copied().unwrap_or(0),
            };
            pages.insert(size.to_owned(), used);
        }
        Ok(pages)
    }
}

/// A file that this cgroup does not have, whose cgroup was removed while it was read, or whose numbers are switched
/// off (`psi=0` on the kernel's command line).
fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::NOENT, Errno::NODEV, Errno::OPNOTSUPP].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| absent.contains(&errno))
}

fn malformed(path: &Path, line: &str) -> Error {
    let what = format!("this line is not of the form that the kernel documents: `{line}`");
    Error::system(format!("read {}", path.display()))(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// One number.
fn number(text: &str) -> Result<u64, String> {
    let text = text.trim();
    text.parse().map_err(|_| text.to_owned())
}

/// One number, or `max`.
fn limit(text: &str) -> Result<Option<u64>, String> {
    match text.trim() {
        "max" => Ok(None),
        text => number(text).map(Some),
    }
}

/// Lines of a name and a number. Values are unsigned but for a few that a kernel may briefly show below zero, which
/// are zero then.
fn flat(text: &str) -> Result<BTreeMap<String, u64>, String> {
    let line = |line: &str| {
        let (name, value) = line.split_once(' ').ok_or_else(|| line.to_owned())?;
        let value: i128 = value.trim().parse().map_err(|_| line.to_owned())?;
        let value = u64::try_from(value.max(0)).map_err(|_| line.to_owned())?;
        Ok((name.to_owned(), value))
    };
    text.lines().map(line).collect()
}

fn cpu(text: &str) -> Result<Cpu, String> {
    let values = flat(text)?;
    let get = |name: &str| values.get(name).copied();
    let throttling = get("nr_periods").map(|periods| Throttling {
        periods,
        throttled_periods: get("nr_throttled").unwrap_or(0),
        throttled_usec: get("throttled_usec").unwrap_or(0),
    });
    Ok(Cpu {
        usage_usec: get("usage_usec").ok_or_else(|| "usage_usec (missing)".to_owned())?,
        user_usec: get("user_usec").unwrap_or(0),
        system_usec: get("system_usec").unwrap_or(0),
        throttling,
    })
}

fn memory_events(text: &str) -> Result<MemoryEvents, String> {
    let values = flat(text)?;
    let get = |name: &str| values.get(name).copied().unwrap_or(0);
    Ok(MemoryEvents {
        low: get("low"),
        high: get("high"),
        max: get("max"),
        oom: get("oom"),
        oom_kill: get("oom_kill"),
        oom_group_kill: get("oom_group_kill"),
    })
}

fn io_stat(text: &str) -> Result<BTreeMap<String, Io>, String> {
    let mut devices = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        // A device that is gone has no number any more.
        let Some(device) = words.next().filter(|device| *device != "(unknown)") else { continue };
        if device.split_once(':').is_none_or(|(a, b)| a.parse::<u32>().is_err() || b.parse::<u32>().is_err())
        {
            return Err(line.to_owned());
        }
        let mut io = Io::default();
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let field = match name {
                "rbytes" => &mut io.rbytes,
                "wbytes" => &mut io.wbytes,
                "rios" => &mut io.rios,
                "wios" => &mut io.wios,
                "dbytes" => &mut io.dbytes,
                "dios" => &mut io.dios,
                // Cost models add names of their own.
                _ => continue,
            };
            *field = value.parse().map_err(|_| line.to_owned())?;
        }
        devices.insert(device.to_owned(), io);
    }
    Ok(devices)
}

fn pressure(text: &str) -> Result<Pressure, String> {
    let mut found = [None, None];
    for line in text.lines() {
        let (kind, values) = line.split_once(' ').ok_or_else(|| line.to_owned())?;
        let slot = match kind {
            "some" => &mut found[0],
            "full" => &mut found[1],
            _ => return Err(line.to_owned()),
        };
        *slot = Some(stall(values).ok_or_else(|| line.to_owned())?);
    }
    let [some, full] = found;
    Ok(Pressure { some: some.ok_or_else(|| "some (missing)".to_owned())?, full })
}

fn stall(values: &str) -> Option<Stall> {
    let get = |name: &str| {
        let mut pairs = values.split(' ').filter_map(|word| word.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let average = |name| get(name)?.parse().ok();
    Some(Stall {
        avg10: average("avg10")?,
        avg60: average("avg60")?,
        avg300: average("avg300")?,
        total: get("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a cgroup with all controllers shows on Linux 6.1.
    pub(super) fn whole(directory: &Path) {
        let files = [
            (
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 3\nthrottled_usec 77\n",
            ),
            ("memory.current", "1048576\n"),
            ("memory.max", "67108864\n"),
            ("memory.peak", "2097152\n"),
            ("memory.stat", "anon 40960\nfile 8192\ninactive_file 48576\nworkingset_refault_file -1\n"),
            ("memory.events", "low 0\nhigh 1\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("memory.swap.current", "4096\n"),
            ("memory.swap.max", "max\n"),
            (
                "io.stat",
                "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0 cost.usage=3\n253:1 \n(unknown) rbytes=1\n",
            ),
            ("pids.current", "7\n"),
            ("pids.max", "100\n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 5\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            (
                "memory.pressure",
                "some avg10=1.25 avg60=0.50 avg300=0.10 total=1234\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=99\n",
            ),
            ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"),
        ];
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
    }

    #[test]
    fn all_that_a_cgroup_tells() {
        let top = tempfile::tempdir().unwrap();
        whole(top.path());
        let usage = Usage::read(top.path()).unwrap();
        let cpu = usage.cpu.unwrap();
        assert_eq!((cpu.usage_usec, cpu.throttling.unwrap().throttled_usec), (1500, 77));
        let memory = usage.memory.unwrap();
        assert_eq!((memory.limit, memory.peak), (Some(64 << 20), Some(2 << 20)));
        assert_eq!(memory.working_set(), 1_000_000);
        assert_eq!(memory.stat["workingset_refault_file"], 0);
        assert_eq!((memory.events.oom_kill, memory.swap.unwrap().limit), (1, None));
        let io = usage.io.unwrap();
        assert_eq!((io["8:0"].wbytes, io["253:1"].rios, io.len()), (8192, 0, 2));
        assert_eq!(usage.pids.unwrap(), Pids { current: 7, limit: Some(100) });
        assert_eq!(usage.hugetlb.len(), 1);
        assert_eq!(usage.hugetlb["2MB"].refused, 5);
        let pressure = usage.pressure;
        assert_eq!(pressure.memory.unwrap().full.unwrap().total, 99);
        assert!(pressure.cpu.unwrap().full.is_none() && pressure.io.is_none());
    }

    #[test]
    fn what_is_missing_is_none_and_what_is_broken_is_named() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(Usage::read(top.path()).unwrap(), Usage::default());
        assert_eq!(Usage::read(&top.path().join("gone")).unwrap(), Usage::default());
        assert_eq!(MemoryEvents::read(top.path()).unwrap(), None);
        for (file, text) in [
            ("cpu.stat", "usage_usec many\n"),
            ("cpu.stat", "user_usec 1\n"),
            ("memory.current", ""),
            ("pids.current", "-1\n"),
            ("io.stat", "sda rbytes=1\n"),
            ("io.stat", "8:0 rbytes=x\n"),
            ("io.pressure", "some avg10=0.00\n"),
            ("io.pressure", "none avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"),
        ] {
            fs::write(top.path().join(file), text).unwrap();
            let error = Usage::read(top.path()).unwrap_err();
            assert!(error.to_string().ends_with(file), "{error}");
            fs::remove_file(top.path().join(file)).unwrap();
        }
    }
}
