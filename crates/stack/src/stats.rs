//! What the services of a stack use: counters that the command reads by itself, and rates between two readings.
//!
//! The numbers come from the service's cgroup. What the cgroup does not count, because the host's controllers are
//! elsewhere or the stack has none, comes from `/proc`: the sum over the service's processes. Each reading says
//! which of the two it is.

mod processes;

use std::path::Path;
use std::time::{Duration, Instant};

use container::cgroup::usage::{Pressures, Usage};
use serde::Serialize;

use crate::client::Client;
use crate::control::{Command, Health, Notice, State, Subject};
use crate::remote::RemoteError;
use processes::Processes;

/// The processes of the sandbox whose PID 1 has the number `first` on the host.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn processes(first: u32) -> Result<Vec<u32>, RemoteError> {
    Ok(Processes::read()?.pids(first))
}

/// How long the supervisor may be busy with something else.
const DEADLINE: Duration = Duration::from_secs(10);

/// Asks the supervisor for these services (all when empty).
///
/// # Errors
/// An unknown service, or a supervisor that is gone or does not answer.
pub fn subjects(client: &mut Client, services: &[String]) -> Result<Vec<Subject>, RemoteError> {
    client.send(&Command::Subjects(services.to_vec()), &[])?;
    let deadline = Some(Instant::now() + DEADLINE);
    let mut subjects = Vec::new();
    loop {
        match client.next(deadline)? {
            Some(Notice::Subjects(found)) => subjects = found,
            Some(Notice::Done) => return Ok(subjects),
            Some(Notice::Failed(error)) => return Err(error),
            Some(_) => {}
            None => return Err(RemoteError::message("the stack's supervisor has ended")),
        }
    }
}

/// Where a number was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// From the service's cgroup, which counts everything.
    Cgroup,
    /// From `/proc`: the sum over the service's processes. Memory is each process's proportional share (PSS), or
    /// what is resident (RSS) where the kernel does not tell it.
    Processes,
}

/// The counters of a service at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    subject: Subject,
    at: Instant,
    counters: Option<Counters>,
}

#[derive(Debug, Clone, PartialEq)]
struct Counters {
    cpu_usec: u64,
    cpu_origin: Origin,
    memory: u64,
    memory_origin: Origin,
    /// The limit that the kernel enforces.
    memory_limit: Option<u64>,
    network: Option<Transfer>,
    block: Option<Transfer>,
    pids: u64,
    pids_limit: Option<u64>,
    pressure: Pressures,
    oom_kills: Option<u64>,
    throttled_usec: Option<u64>,
}

/// Bytes in and out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Transfer {
    /// Received, or read.
    #[serde(rename = "in")]
    pub inward: u64,
    /// Sent, or written.
    #[serde(rename = "out")]
    pub outward: u64,
}

/// Reads the counters of services, now.
///
/// # Errors
/// Files of the kernel that cannot be read or understood; a service that ends meanwhile just has no counters.
pub fn sample(subjects: Vec<Subject>) -> Result<Vec<Sample>, RemoteError> {
    let processes = Processes::read()?;
    let mut samples = Vec::new();
    for subject in subjects {
        let counters = counters(&subject, &processes)?;
        samples.push(Sample { subject, at: Instant::now(), counters });
    }
    Ok(samples)
}

fn counters(subject: &Subject, processes: &Processes) -> Result<Option<Counters>, RemoteError> {
    let Some(pid) = subject.status.pid else { return Ok(None) };
    let usage = subject.cgroup.as_deref().map(Usage::read).transpose()?.unwrap_or_default();
    let sum = processes.sum(pid, usage.memory.is_none());
    // Gone between the answer and now.
    if sum.tasks == 0 && usage == Usage::default() {
        return Ok(None);
    }
    let memory = usage.memory.as_ref();
    let blocks = usage.io.as_ref().map(|devices| {
        let total = |of: fn(&container::cgroup::usage::Io) -> u64| devices.values().map(of).sum();
        Transfer { inward: total(|io| io.rbytes), outward: total(|io| io.wbytes) }
    });
    Ok(Some(Counters {
        cpu_usec: usage.cpu.map_or(sum.cpu_usec, |cpu| cpu.usage_usec),
        cpu_origin: if usage.cpu.is_some() { Origin::Cgroup } else { Origin::Processes },
        memory: memory.map_or(sum.memory, |memory| memory.working_set()),
        memory_origin: if memory.is_some() { Origin::Cgroup } else { Origin::Processes },
        memory_limit: memory.and_then(|memory| memory.limit),
        network: network(pid),
        block: blocks.or(sum.block),
        pids: usage.pids.map_or(sum.tasks, |pids| pids.current),
        pids_limit: usage.pids.and_then(|pids| pids.limit),
        pressure: usage.pressure,
        oom_kills: memory.map(|memory| memory.events.oom_kill),
        throttled_usec: usage.cpu.and_then(|cpu| cpu.throttling).map(|throttling| throttling.throttled_usec),
    }))
}

/// Bytes over all interfaces of a process's network namespace but loopback.
fn network(pid: u32) -> Option<Transfer> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net/dev")).ok()?;
    Some(interfaces(&text))
}

/// `/proc/PID/net/dev`: two lines of heading, then an interface a line; bytes received are the first number, bytes
/// sent the ninth.
fn interfaces(text: &str) -> Transfer {
    let mut total = Transfer::default();
    for line in text.lines().skip(2) {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        total.inward += numbers.first().copied().unwrap_or(0);
        total.outward += numbers.get(8).copied().unwrap_or(0);
    }
    total
}

/// What a service uses: one row of `stats` and `top`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reading {
    /// Name of the container, which is the service's for its first replica.
    pub service: String,
    /// The service that it is a replica of.
    pub group: String,
    /// State.
    pub state: State,
    /// Health, when it has a health check and runs.
    pub health: Option<Health>,
    /// Exit status of the last run, when it does not run.
    pub exit_code: Option<i32>,
    /// The last run ended because a process was killed for memory.
    pub oom_killed: bool,
    /// Host process id of its PID 1.
    pub pid: Option<u32>,
    /// Image name.
    pub image: String,
    /// Published ports as `127.0.0.1:8443->443/tcp`, ranges folded.
    pub ports: Vec<String>,
    /// How often it was restarted by its policy.
    pub restarts: u32,
    /// Seconds since its start.
    pub uptime: Option<f64>,
    /// What it uses, while it runs.
    pub usage: Option<Measured>,
}

/// What a running service uses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Processor time between two readings; 100 is one processor. `None` at the first reading.
    pub cpu_percent: Option<f64>,
    /// Microseconds of processor time in all.
    pub cpu_usec: u64,
    /// Where processor time was read.
    pub cpu_origin: Origin,
    /// Processors that it may use, as the stack file says.
    pub cpu_limit: Option<f64>,
    /// Microseconds that the limit kept it waiting.
    pub throttled_usec: Option<u64>,
    /// Memory.
    pub memory: MemoryUse,
    /// Bytes over its networks.
    pub network: Option<Transfer>,
    /// Bytes a second over its networks.
    pub network_rate: Option<Transfer>,
    /// Bytes from and to block devices.
    pub block: Option<Transfer>,
    /// Bytes a second from and to block devices.
    pub block_rate: Option<Transfer>,
    /// Processes and threads.
    pub pids: u64,
    /// How many there may be.
    pub pids_limit: Option<Bound<u64>>,
    /// Time lost to waiting for resources.
    pub pressure: Pressures,
}

/// Memory of a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryUse {
    /// Bytes, without page cache that could be given up at once.
    pub bytes: u64,
    /// Where they were read.
    pub origin: Origin,
    /// How many there may be.
    pub limit: Option<Bound<u64>>,
    /// Share of the limit, or of the machine's memory where there is none.
    pub percent: f64,
    /// Processes that were killed because there was not enough; `None` where nobody counts.
    pub oom_kills: Option<u64>,
}

/// A limit, and whether it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bound<T> {
    /// The limit.
    pub value: T,
    /// Whether the kernel enforces it; if not, it is only what the stack file asks for.
    pub enforced: bool,
}

/// The processes of the sandbox whose PID 1 is `first`, those that joined it too, by their numbers on the host.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn processes_of(first: u32) -> Result<Vec<u32>, RemoteError> {
    Ok(Processes::read()?.pids(first))
}

/// Bytes of memory that this machine has.
pub fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// What a service uses now, with the rates since `before`, a sample of the same run of the same service.
pub fn reading(before: Option<&Sample>, now: &Sample, host_memory: u64) -> Reading {
    let status = &now.subject.status;
    let before = before.filter(|before| before.subject.status.pid == status.pid);
    let usage = now.counters.as_ref().map(|counters| {
        let earlier = before.and_then(|before| {
            let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
            before.counters.as_ref().filter(|_| seconds > 0.0).map(|counters| (counters, seconds))
        });
        measured(counters, earlier, &now.subject.limits, host_memory)
    });
    Reading {
        service: status.container.clone(),
        group: status.service.clone(),
        state: status.state,
        health: status.health,
        exit_code: status.exit_code,
        oom_killed: status.oom_killed,
        pid: status.pid,
        image: status.image.clone(),
        ports: status.ports.clone(),
        restarts: status.restarts,
        uptime: status.uptime,
        usage,
    }
}

/// The readings of all samples.
pub fn readings(before: &[Sample], now: &[Sample], host_memory: u64) -> Vec<Reading> {
    let name = |sample: &Sample| sample.subject.status.container.clone();
    now.iter()
        .map(|sample| {
            reading(before.iter().find(|earlier| name(earlier) == name(sample)), sample, host_memory)
        })
        .collect()
}

fn measured(
    now: &Counters,
    before: Option<(&Counters, f64)>,
    asked: &crate::plan::Limits,
    host_memory: u64,
) -> Measured {
    let limit = bound(now.memory_limit, asked.memory);
    let whole = limit.filter(|limit| limit.enforced).map_or(host_memory, |limit| limit.value);
    // A counter may go back: what processes used that ended, and that nobody inherited, is lost to /proc.
    let rate = |of: fn(&Counters) -> Option<Transfer>| {
        let (before, seconds) = before?;
        let (before, now) = (of(before)?, of(now)?);
        let per_second = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
        Some(Transfer {
            inward: per_second(now.inward, before.inward),
            outward: per_second(now.outward, before.outward),
        })
    };
    Measured {
        cpu_percent: before.map(|(before, seconds)| {
            now.cpu_usec.saturating_sub(before.cpu_usec) as f64 / 1e6 / seconds * 100.0
        }),
        cpu_usec: now.cpu_usec,
        cpu_origin: now.cpu_origin,
        cpu_limit: asked.cpus,
        throttled_usec: now.throttled_usec,
        memory: MemoryUse {
            bytes: now.memory,
            origin: now.memory_origin,
            limit,
            percent: if whole == 0 { 0.0 } else { now.memory as f64 / whole as f64 * 100.0 },
            oom_kills: now.oom_kills,
        },
        network: now.network,
        network_rate: rate(|counters| counters.network),
        block: now.block,
        block_rate: rate(|counters| counters.block),
        pids: now.pids,
        pids_limit: bound(now.pids_limit, asked.pids),
        pressure: now.pressure,
    }
}

/// The limit that the kernel has, or else the one that was asked for.
fn bound(enforced: Option<u64>, asked: Option<u64>) -> Option<Bound<u64>> {
    let real = enforced.map(|value| Bound { value, enforced: true });
    real.or(asked.map(|value| Bound { value, enforced: false }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Status;

    fn counters(cpu_usec: u64, received: u64) -> Counters {
        Counters {
            cpu_usec,
            cpu_origin: Origin::Cgroup,
            memory: 32 << 20,
            memory_origin: Origin::Cgroup,
            memory_limit: Some(64 << 20),
            network: Some(Transfer { inward: received, outward: 7 }),
            block: None,
            pids: 3,
            pids_limit: None,
            pressure: Pressures::default(),
            oom_kills: Some(0),
            throttled_usec: None,
        }
    }

    fn sample_at(at: Instant, pid: u32, counters: Counters) -> Sample {
        let status = Status {
            container: "web".into(),
            service: "web".into(),
            replica: 1,
            state: State::Running,
            health: None,
            ports: Vec::new(),
            moved_ports: std::collections::BTreeMap::new(),
            image: "web:latest".into(),
            pid: Some(pid),
            exit_code: None,
            oom_killed: false,
            restarts: 0,
            uptime: Some(1.0),
        };
        let limits = crate::plan::Limits { pids: Some(10), ..crate::plan::Limits::default() };
        Sample {
            subject: Subject { status, cgroup: None, limits, shortage: None },
            at,
            counters: Some(counters),
        }
    }

    #[test]
    fn rates_are_between_two_readings_of_one_run() {
        let start = Instant::now();
        let before = sample_at(start, 10, counters(1_000_000, 1000));
        let now = sample_at(start + Duration::from_secs(2), 10, counters(2_000_000, 5000));
        let usage = reading(Some(&before), &now, 1 << 30).usage.unwrap();
        assert_eq!(usage.cpu_percent, Some(50.0));
        assert_eq!(usage.network_rate, Some(Transfer { inward: 2000, outward: 0 }));
        assert_eq!(usage.block_rate, None);
        assert_eq!(usage.memory.percent, 50.0);
        assert_eq!(usage.pids_limit, Some(Bound { value: 10, enforced: false }));
        // It was restarted in between: its counters begin anew.
        let again = sample_at(start + Duration::from_secs(3), 11, counters(5, 0));
        assert_eq!(reading(Some(&now), &again, 1 << 30).usage.unwrap().cpu_percent, None);
        // Counters that went back are no use of anything.
        let back = sample_at(start + Duration::from_secs(3), 10, counters(0, 0));
        let usage = reading(Some(&now), &back, 1 << 30).usage.unwrap();
        assert_eq!((usage.cpu_percent, usage.network_rate.unwrap().inward), (Some(0.0), 0));
    }

    #[test]
    fn without_a_limit_memory_is_a_share_of_the_machine() {
        let counters = Counters { memory_limit: None, ..counters(0, 0) };
        let asked = crate::plan::Limits { memory: Some(1 << 20), ..crate::plan::Limits::default() };
        let usage = measured(&counters, None, &asked, 64 << 20);
        assert_eq!(usage.memory.percent, 50.0);
        assert_eq!(usage.memory.limit, Some(Bound { value: 1 << 20, enforced: false }));
        assert_eq!(usage.cpu_percent, None);
        assert!(host_memory() > 0);
    }

    #[test]
    fn interfaces_without_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:    9000      90    0    0    0     0          0         0     9000      90    0    0    0     0       0          0\n  \
            eth0:     100       1    0    0    0     0          0         0      200       2    0    0    0     0       0          0\n  \
            eth1:1       1    0    0    0     0          0         0      2       2    0    0    0     0       0          0\n";
        assert_eq!(interfaces(text), Transfer { inward: 101, outward: 202 });
    }
}
