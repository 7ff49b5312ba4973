//! What `events --stats` of an OCI runtime prints: the object that runc prints, in its units (nanoseconds, bytes),
//! because programs that drive runtimes parse it.
//!
//! runc's names come from cgroup v1. Where v2 counts otherwise, the nearest meaning is kept: a limit that is not
//! there is the largest number, swap is counted together with memory, `failcnt` is how often the limit was hit.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Memory, Pressure, Stall, Usage};

/// One line of `events`.
#[derive(Debug, Clone, Serialize)]
pub struct Event<'a> {
    /// `stats` or `oom`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The container.
    pub id: &'a str,
    /// The statistics; absent for `oom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Stats>,
}

impl<'a> Event<'a> {
    /// The statistics of container `id`.
    pub fn stats(id: &'a str, usage: &Usage) -> Self {
        Self { kind: "stats", id, data: Some(Stats::from(usage)) }
    }

    /// A process of container `id` was killed for memory.
    pub fn oom(id: &'a str) -> Self {
        Self { kind: "oom", id, data: None }
    }
}

/// Statistics as runc's `types.Stats`.
#[derive(Debug, Clone, Serialize)]
pub struct Stats {
    cpu: Cpu,
    memory: MemoryStats,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<String, HugePages>,
}

#[derive(Debug, Clone, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, Clone, Serialize)]
struct CpuUsage {
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    periods: u64,
    throttled_periods: u64,
    throttled_time: u64,
}

#[derive(Debug, Clone, Serialize)]
struct MemoryStats {
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, Clone, Default, Serialize)]
struct MemoryEntry {
    limit: u64,
    usage: u64,
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
struct Pids {
    current: u64,
    /// 0 is unlimited.
    limit: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Blkio {
    io_service_bytes_recursive: Vec<BlkioEntry>,
    io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, Clone, Serialize)]
struct BlkioEntry {
    major: u32,
    minor: u32,
    op: &'static str,
    value: u64,
}

#[derive(Debug, Clone, Serialize)]
struct HugePages {
    usage: u64,
    failcnt: u64,
}

#[derive(Debug, Clone, Serialize)]
struct Psi {
    some: Stall,
    full: Stall,
}

impl From<&Pressure> for Psi {
    fn from(pressure: &Pressure) -> Self {
        Self { some: pressure.some, full: pressure.full.unwrap_or_default() }
    }
}

impl From<&Usage> for Stats {
    fn from(usage: &Usage) -> Self {
        let cpu = usage.cpu.unwrap_or_default();
        let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
        let throttling = cpu.throttling.map_or_else(Throttling::default, |throttling| Throttling {
            periods: throttling.periods,
            throttled_periods: throttling.throttled_periods,
            throttled_time: nanoseconds(throttling.throttled_usec),
        });
        let pages = |pages: &super::HugePages| HugePages { usage: pages.current, failcnt: pages.refused };
        Self {
            cpu: Cpu {
                usage: CpuUsage {
                    total: nanoseconds(cpu.usage_usec),
                    kernel: nanoseconds(cpu.system_usec),
                    user: nanoseconds(cpu.user_usec),
                },
                throttling,
                psi: usage.pressure.cpu.as_ref().map(Psi::from),
            },
            memory: memory(
                usage.memory.as_ref().unwrap_or(&Memory::default()),
                usage.pressure.memory.as_ref(),
            ),
            pids: usage.pids.map_or_else(Pids::default, |pids| Pids {
                current: pids.current,
                limit: pids.limit.unwrap_or(0),
            }),
            blkio: blkio(usage),
            hugetlb: usage.hugetlb.iter().map(|(size, used)| (size.clone(), pages(used))).collect(),
        }
    }
}

fn memory(memory: &Memory, pressure: Option<&Pressure>) -> MemoryStats {
    let stat = |name: &str| memory.stat.get(name).copied().unwrap_or(0);
    let swap = memory.swap.unwrap_or_default();
    let limits = memory.limit.zip(swap.limit);
    MemoryStats {
        cache: stat("file"),
        usage: MemoryEntry {
            limit: memory.limit.unwrap_or(u64::MAX),
            usage: memory.current,
            max: memory.peak.unwrap_or(0),
            failcnt: memory.events.max,
        },
        swap: MemoryEntry {
            limit: limits.map_or(u64::MAX, |(memory, swap)| memory.saturating_add(swap)),
            usage: memory.current.saturating_add(swap.current),
            ..MemoryEntry::default()
        },
        raw: memory.stat.clone(),
        psi: pressure.map(Psi::from),
    }
}

fn blkio(usage: &Usage) -> Blkio {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for (device, io) in usage.io.iter().flatten() {
        let Some((major, minor)) =
            device.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))
        else {
            continue;
        };
        let entry = |op, value| BlkioEntry { major, minor, op, value };
        bytes.extend([entry("Read", io.rbytes), entry("Write", io.wbytes), entry("Discard", io.dbytes)]);
        operations.extend([entry("Read", io.rios), entry("Write", io.wios), entry("Discard", io.dios)]);
    }
    Blkio {
        io_service_bytes_recursive: bytes,
        io_serviced_recursive: operations,
        psi: usage.pressure.io.as_ref().map(Psi::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_and_units_of_runc() {
        let top = tempfile::tempdir().unwrap();
        super::super::tests::whole(top.path());
        let usage = Usage::read(top.path()).unwrap();
        let json = serde_json::to_value(Event::stats("box", &usage)).unwrap();
        assert_eq!((json["type"].as_str(), json["id"].as_str()), (Some("stats"), Some("box")));
        let data = &json["data"];
        assert_eq!(data["cpu"]["usage"]["total"], 1_500_000);
        assert_eq!(data["cpu"]["throttling"]["throttledTime"], 77_000);
        assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
        assert_eq!(data["memory"]["usage"]["failcnt"], 12);
        assert_eq!(data["memory"]["swap"]["usage"], 1_048_576 + 4096);
        assert_eq!(data["memory"]["swap"]["limit"], u64::MAX);
        assert_eq!(data["memory"]["psi"]["some"]["avg10"], 1.25);
        assert_eq!(data["blkio"]["ioServiceBytesRecursive"][3]["op"], "Read");
        assert_eq!(data["blkio"]["ioServiceBytesRecursive"][3]["value"], 4096);
        assert_eq!(data["hugetlb"]["2MB"]["failcnt"], 5);
        assert_eq!(data["pids"]["limit"], 100);
        let oom = serde_json::to_string(&Event::oom("box")).unwrap();
        assert_eq!(oom, r#"{"type":"oom","id":"box"}"#);
    }
}
