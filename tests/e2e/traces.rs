//! What can be seen of a stack from outside: processes, mounts, links, listening sockets, passwords.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::stand::{NAME, Stand, run, tool, wait_for};

/// A process: id and start time, which together are used once.
type Process = (u32, u64);

/// Parent, start time and state of all processes.
fn processes() -> BTreeMap<u32, (u32, u64, char)> {
    let ids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter_map(|id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let fields: Vec<&str> = stat[stat.rfind(')')? + 2..].split(' ').collect();
        Some((id, (fields[1].parse().ok()?, fields[19].parse().ok()?, fields[0].chars().next()?)))
    })
    .collect()
}

/// What the machine had before, to be compared with what it has afterwards.
#[derive(Debug)]
pub(crate) struct Before {
    links: BTreeSet<PathBuf>,
    cgroups: BTreeSet<PathBuf>,
    listening: BTreeSet<(String, u16)>,
    /// Of the stack, as they have been seen.
    seen: BTreeSet<Process>,
}

impl Before {
    pub(crate) fn now() -> Self {
        Self { links: links(), cgroups: cgroups(), listening: listening(), seen: BTreeSet::new() }
    }

    /// Notes the processes of the running stack: the supervisor, which is known by its environment, and all
    /// below it.
    pub(crate) fn note_processes(&mut self, stand: &Stand) {
        let all = processes();
        let mark = format!("INCEPTION_RUNTIME_DIR={}", stand.runtime.display());
        let own = |id: &u32| {
            let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        };
        let mut found: BTreeSet<u32> = all.keys().filter(|id| own(id)).copied().collect();
        let pids = stand.services().into_values().filter_map(|service| u32::try_from(service.pid?).ok());
        let services: Vec<u32> = pids.collect();
        loop {
            let more: Vec<u32> = all
                .iter()
                .filter(|(id, (parent, ..))| found.contains(parent) && !found.contains(id))
                .map(|(id, _)| *id)
                .collect();
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        assert!(!found.is_empty(), "the supervisor is not found");
        for pid in services {
            assert!(found.contains(&pid), "process {pid} of a service is not below the supervisor");
        }
        self.seen.extend(found.iter().map(|id| (*id, all[id].1)));
    }

    /// What the stack listens on, on this machine.
    pub(crate) fn published(&self) -> BTreeSet<(String, u16)> {
        listening().difference(&self.listening).cloned().collect()
    }

    /// Nothing is left of a stack that is down.
    pub(crate) fn nothing_is_left(&self, stand: &Stand) {
        wait_for("end of all processes", Duration::from_secs(5), || {
            let all = processes();
            let lives = |(id, started): &&Process| {
                // PID 1 may take its time to reap.
                all.get(id).is_some_and(|(_, since, state)| since == started && !matches!(state, 'Z' | 'X'))
            };
            self.seen.iter().all(|process| !lives(&process)).then_some(())
        });
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let directory = stand.directory.to_str().unwrap();
        assert!(!mounts.contains(directory) && !mounts.contains(stand.data.to_str().unwrap()), "{mounts}");
        assert_eq!(links().difference(&self.links).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
        assert_eq!(cgroups().difference(&self.cgroups).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
        let held = self.published();
        assert!(held.iter().all(|(address, _)| *address != stand.address), "{held:?}");
        let runtime = stand.runtime.join(NAME);
        assert!(!runtime.exists(), "{} is left", runtime.display());
        for kind in ["c", "v"] {
            let left = stand.data.join(kind).join(NAME);
            let listing =
                stand.as_container_root("find", [left.as_os_str(), OsStr::new("-mindepth"), OsStr::new("1")]);
            let mut listing = listing;
            assert_eq!(run(&mut listing, &[]).text(), "", "in {}", left.display());
        }
    }
}

fn links() -> BTreeSet<PathBuf> {
    fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Cgroups of the stack.
fn cgroups() -> BTreeSet<PathBuf> {
    let name = format!("*{NAME}*");
    let found = run(&mut tool("find", ["/sys/fs/cgroup", "-type", "d", "-name", &name]), &[]);
    found.text().lines().map(PathBuf::from).collect()
}

/// IPv4 and IPv6 addresses with ports on which something of this machine listens.
fn listening() -> BTreeSet<(String, u16)> {
    let mut found = BTreeSet::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(file).unwrap_or_default().lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (address, port) = words[1].split_once(':').unwrap();
            let port = u16::from_str_radix(port, 16).unwrap();
            let address = match u32::from_str_radix(address, 16) {
                Ok(v4) => std::net::Ipv4Addr::from(u32::from_be(v4)).to_string(),
                Err(_) => address.to_owned(),
            };
            if words[3] == "0A" {
                found.insert((address, port));
            }
        }
    }
    found
}

/// Watches the command lines of all processes of this machine for words which must not be there.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    seen: JoinHandle<BTreeSet<(usize, String)>>,
}

/// A word that must be seen, or the watch cannot see anything.
const CONTROL: &str = "a-word-for-the-watch-to-see";

impl Watch {
    pub(crate) fn start(secrets: &[String]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let words: Vec<String> = std::iter::once(CONTROL.to_owned()).chain(secrets.iter().cloned()).collect();
        let seen = thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                for id in processes().into_keys() {
                    let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    let hits = words.iter().enumerate().filter(|(_, word)| line.contains(*word));
                    seen.extend(hits.map(|(index, _)| (index, line.clone())));
                }
                thread::sleep(Duration::from_millis(15));
            }
            seen
        });
        Self { stop, seen }
    }

    /// Nothing was seen, and it would have been.
    pub(crate) fn end(self) {
        run(&mut tool("sh", ["-c", "sleep 0.5; :", CONTROL]), &[]).ok();
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.seen.join().unwrap();
        assert!(seen.iter().any(|(index, _)| *index == 0), "the watch does not work");
        let leaks: Vec<_> = seen.iter().filter(|(index, _)| *index > 0).collect();
        assert!(leaks.is_empty(), "passwords on command lines: {leaks:?}");
    }
}

/// Files below `directory` that hold one of these words.
pub(crate) fn files_with(stand: &Stand, directory: &Path, words: &[String]) -> Vec<String> {
    let mut grep = stand.as_container_root(
        "grep",
        [
            "--recursive",
            "--files-with-matches",
            "--binary-files=text",
            "--fixed-strings",
            "--file=-",
            "--devices=skip",
        ],
    );
    grep.arg("--").arg(directory);
    let said = run(&mut grep, words.join("\n").as_bytes());
    assert!(said.code == Some(0) || (said.code == Some(1) && said.err.is_empty()), "{}", said.err);
    said.text().lines().map(str::to_owned).collect()
}
