//! The processes of a sandbox, seen from the host: what there is to count without a cgroup.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::Transfer;
use crate::remote::{Context, RemoteError};

/// Microseconds of one clock tick of `/proc/PID/stat`. It is 100 a second on every architecture that Rust's Linux
/// targets have (`USER_HZ`).
const TICK: u64 = 10_000;

/// The processes of this machine that can be seen, at one moment.
#[derive(Debug, Default)]
pub(super) struct Processes {
    by_pid: HashMap<u32, Process>,
    children: HashMap<u32, Vec<u32>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Process {
    parent: u32,
    /// Clock ticks, of children that were waited for too.
    ticks: u64,
    threads: u64,
    /// Pages that are resident.
    resident: u64,
}

/// The sum over a sandbox's processes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sum {
    pub(super) cpu_usec: u64,
    /// Bytes.
    pub(super) memory: u64,
    /// Processes and threads.
    pub(super) tasks: u64,
    pub(super) block: Option<Transfer>,
}

impl Processes {
    /// Reads `/proc`.
    pub(super) fn read() -> Result<Self, RemoteError> {
        let mut processes = Self::default();
        for entry in fs::read_dir("/proc").context(|| "read /proc".into())?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // One that ended meanwhile.
            let Ok(stat) = fs::read(file(pid, "stat")) else { continue };
            if let Some(process) = parse(&String::from_utf8_lossy(&stat)) {
                processes.children.entry(process.parent).or_default().push(pid);
                processes.by_pid.insert(pid, process);
            }
        }
        Ok(processes)
    }

    /// Sums up what the sandbox whose PID 1 is `first` uses; its memory only if asked, because the kernel walks
    /// through each process's pages for that.
    pub(super) fn sum(&self, first: u32, with_memory: bool) -> Sum {
        let mut sum = Sum::default();
        for (pid, process) in self.sandbox(first) {
            sum.cpu_usec += process.ticks * TICK;
            sum.tasks += process.threads;
            if with_memory {
                let resident = process.resident.saturating_mul(rustix::param::page_size() as u64);
                sum.memory += share(pid).unwrap_or(resident);
            }
            if let Some(block) = block(pid) {
                let total = sum.block.get_or_insert_default();
                total.inward += block.inward;
                total.outward += block.outward;
            }
        }
        sum
    }

    /// The numbers of a sandbox's processes, in order.
    pub(super) fn pids(&self, first: u32) -> Vec<u32> {
        let mut pids: Vec<u32> = self.sandbox(first).into_iter().map(|(pid, _)| pid).collect();
        pids.sort_unstable();
        pids
    }

    /// The processes of a sandbox: the first one, what entered it (`exec`, health checks), and all below. What tells it
    /// from others is its cgroup namespace: its PID namespace can be another's.
    fn sandbox(&self, first: u32) -> Vec<(u32, Process)> {
        let mut open: Vec<u32> = self.by_pid.contains_key(&first).then_some(first).into_iter().collect();
        // Those who join are children of the hub, as PID 1 is.
        if let (Some(process), Ok(namespace)) = (self.by_pid.get(&first), namespace(first)) {
            let siblings = self.children.get(&process.parent).into_iter().flatten().copied();
            open.extend(siblings.filter(|pid| *pid != first && namespace_is(*pid, &namespace)));
        }
        let mut found = Vec::new();
        while let Some(pid) = open.pop() {
            if let Some(process) = self.by_pid.get(&pid) {
                found.push((pid, *process));
                open.extend(self.children.get(&pid).into_iter().flatten());
            }
        }
        found
    }
}

fn file(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn namespace(pid: u32) -> io::Result<PathBuf> {
    fs::read_link(file(pid, "ns/cgroup"))
}

fn namespace_is(pid: u32, wanted: &PathBuf) -> bool {
    namespace(pid).is_ok_and(|found| found == *wanted)
}

/// proc_pid_stat(5). The name may hold anything, so fields are counted from the last parenthesis on: the state,
/// field 3, is the first of them.
fn parse(stat: &str) -> Option<Process> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    // utime, stime, cutime, cstime.
    let ticks = (14..=17).map(number).sum::<Option<i64>>()?;
    Some(Process {
        parent: u32::try_from(number(4)?).ok()?,
        ticks: u64::try_from(ticks).unwrap_or(0),
        threads: u64::try_from(number(20)?).unwrap_or(0),
        resident: u64::try_from(number(24)?).unwrap_or(0),
    })
}

/// Bytes of a process's proportional share of memory: what it has alone, and its part of what it shares.
fn share(pid: u32) -> Option<u64> {
    pss(&fs::read_to_string(file(pid, "smaps_rollup")).ok()?)
}

fn pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Bytes that a process, with children that it waited for, read from and wrote to block devices.
fn block(pid: u32) -> Option<Transfer> {
    transfer(&fs::read_to_string(file(pid, "io")).ok()?)
}

fn transfer(text: &str) -> Option<Transfer> {
    let get = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    // What was written and deleted before it reached the device is not taken off: it is another process's loss.
    Some(Transfer { inward: get("read_bytes:")?, outward: get("write_bytes:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) b) S 7 42 42 0 -1 4194560 100 0 0 0 3 4 5 6 20 0 9 0 12345 1000000 250 \
        18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";

    #[test]
    fn a_name_with_parentheses() {
        let process = parse(STAT).unwrap();
        assert_eq!(process, Process { parent: 7, ticks: 18, threads: 9, resident: 250 });
        assert_eq!(parse("42 (cut) S 7"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_sandbox_is_its_pid_1_and_all_below() {
        let mut processes = Processes::default();
        for (pid, parent) in [(10, 1), (11, 10), (12, 11), (20, 1)] {
            let process = Process { parent, ticks: 1, threads: 2, resident: 0 };
            processes.by_pid.insert(pid, process);
            processes.children.entry(parent).or_default().push(pid);
        }
        let mut found: Vec<u32> = processes.sandbox(10).into_iter().map(|(pid, _)| pid).collect();
        found.retain(|pid| *pid != 20);
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12]);
        assert!(processes.sandbox(99).is_empty());
    }

    #[test]
    fn files_of_one_process() {
        let rollup =
            "55d0 ---p 00000000 00:00 0   [rollup]\nRss:     884 kB\nPss:     300 kB\nPss_Dirty: 4 kB\n";
        assert_eq!(pss(rollup), Some(300 << 10));
        assert_eq!(pss("Rss: 1 kB\n"), None);
        let io = "rchar: 1\nwchar: 2\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 0\n";
        assert_eq!(transfer(io), Some(Transfer { inward: 4096, outward: 8192 }));
    }

    #[test]
    fn this_process_is_there() {
        let processes = Processes::read().unwrap();
        let own = std::process::id();
        let process = processes.by_pid.get(&own).unwrap();
        assert!(process.threads >= 1 && process.resident > 0);
    }
}
