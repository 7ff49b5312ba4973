//! What a service may use of the machine: the keys that become limits of its cgroup.

use super::keys::{self, Level};
use super::mounts::bytes;
use super::node::{Key, Node, unknown_key};
use super::process::pids;
use super::service::ServiceFile;
use super::units;
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::{BlockIo, DeviceRate, DeviceWeight, Limits};

/// Keys of a service that [`read`] knows.
pub(super) const KEYS: [&str; 12] = [
    "blkio_config",
    "cpu_count",
    "cpu_period",
    "cpu_quota",
    "cpu_shares",
    "cpus",
    "cpuset",
    "mem_limit",
    "mem_reservation",
    "memswap_limit",
    "oom_kill_disable",
    "pids_limit",
];

/// Docker's `cpu_period`, in microseconds.
const DEFAULT_PERIOD: f64 = 100_000.0;

/// What the older keys for processor time say, of which `cpus` is the quotient.
#[derive(Debug, Default)]
pub(crate) struct CpuTime {
    /// Microseconds, and where they are said.
    quota: Option<(f64, Span)>,
    period: Option<f64>,
    count: Option<(f64, Span)>,
}

/// Reads one of [`KEYS`]. Zero is "none" for all of them, as with Docker.
pub(super) fn read(
    service: &mut ServiceFile,
    name: &str,
    node: &Node,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let limits = &mut service.settled.limits;
    match name {
        "cpu_count" => {
            let count = node.number(name)?;
            service.cpu_time.count = Some((count, node.span.clone())).filter(|(count, _)| *count > 0.0);
        }
        "cpu_quota" => {
            let quota = microseconds(node, name)?;
            service.cpu_time.quota = Some((quota, node.span.clone())).filter(|(quota, _)| *quota > 0.0);
        }
        "cpu_period" => {
            service.cpu_time.period = Some(microseconds(node, name)?).filter(|period| *period > 0.0)
        }
        "mem_limit" => limits.memory = Some(bytes(node, name)?).filter(|size| *size > 0),
        "mem_reservation" => limits.memory_reservation = Some(bytes(node, name)?).filter(|size| *size > 0),
        "memswap_limit" => limits.memory_swap = memory_swap(node, name)?,
        "cpus" => limits.cpus = Some(node.number(name)?).filter(|cpus| *cpus > 0.0),
        "cpu_shares" => {
            let shares = u64::try_from(node.integer(name, 0, 262_144)?).unwrap_or_default();
            limits.cpu_shares = Some(shares).filter(|shares| *shares > 0);
        }
        "cpuset" => limits.cpuset = Some(cpuset(node, name)?).filter(|list| !list.is_empty()),
        "pids_limit" => limits.pids = pids(node, name)?,
        "blkio_config" => {
            let io = block_io(node, place, warnings)?;
            limits.block_io = Some(io).filter(|io| *io != BlockIo::default());
        }
        "oom_kill_disable" if node.boolean(name)? => {
            let text = format!(
                "`oom_kill_disable` of {place} is ignored: with cgroup v2, what is out of memory is killed; raise `mem_limit`"
            );
            warnings.push((node.span.clone(), text));
        }
        _ => {}
    }
    Ok(())
}

/// Microseconds, or a duration; -1 is none.
fn microseconds(node: &Node, what: &str) -> Checked<f64> {
    let text = node.text(what)?;
    match (text.as_str(), units::duration(&text)) {
        ("-1", _) => Ok(0.0),
        (_, Some(seconds)) if seconds > 0.0 => Ok(seconds * 1e6),
        _ => node.number(what),
    }
}

/// What the keys of a service say together.
pub(super) fn settle(service: &mut ServiceFile, key: &Key) -> Checked<()> {
    let (time, limits) = (&service.cpu_time, &mut service.settled.limits);
    let quota = time.quota.as_ref();
    let quota = quota.map(|(quota, span)| (quota / time.period.unwrap_or(DEFAULT_PERIOD), span));
    for (cpus, span) in quota.into_iter().chain(time.count.as_ref().map(|(count, span)| (*count, span))) {
        if limits.cpus.is_some_and(|known| (known - cpus).abs() > 1e-9) {
            let message = format!("service `{}` says twice how much processor time it may have", key.name);
            return Err(Fault::new(span, message).hint("keep `cpus`"));
        }
        limits.cpus = Some(cpus);
    }
    check(limits, key)
}

fn check(limits: &Limits, key: &Key) -> Checked<()> {
    let Some(swap) = limits.memory_swap.filter(|swap| *swap > 0) else { return Ok(()) };
    let problem = match limits.memory {
        None => "needs `mem_limit`",
        Some(memory) if i64::try_from(memory).is_ok_and(|memory| memory > swap) => "is less than `mem_limit`",
        Some(_) => return Ok(()),
    };
    Err(Fault::new(&key.span, format!("`memswap_limit` of service `{}` {problem}", key.name)).hint(
        "it counts memory and swap together; the same as `mem_limit` is no swap, -1 is as much as there is",
    ))
}

fn memory_swap(node: &Node, what: &str) -> Checked<Option<i64>> {
    if node.text(what)? == "-1" {
        return Ok(Some(-1));
    }
    let size = i64::try_from(bytes(node, what)?).unwrap_or(i64::MAX);
    Ok(Some(size).filter(|size| *size > 0))
}

fn cpuset(node: &Node, what: &str) -> Checked<String> {
    let list = node.text(what)?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        number(first.trim()) && number(last.trim())
    };
    if !list.is_empty() && !list.split(',').all(range) {
        return Err(Fault::new(&node.span, format!("`{}` is not a list of CPUs", list.escape_debug()))
            .hint("write numbers and ranges: `0-2,5`"));
    }
    Ok(list)
}

fn block_io(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<BlockIo> {
    let place = format!("`blkio_config` of {place}");
    let mut io = BlockIo::default();
    for (key, node) in node.map("blkio_config")? {
        let name = key.name.as_str();
        if !keys::BLOCK_IO.admits(key, name, &place, warnings)? {
            continue;
        }
        match name {
            "weight" => io.weight = weight(node)?,
            "weight_device" => {
                for entry in node.list(name)? {
                    let (path, node) = device(entry, name, "weight")?;
                    io.weight_device.extend(weight(node)?.map(|weight| DeviceWeight { path, weight }));
                }
            }
            "device_read_bps" => io.read_bps = rates(node, name)?,
            "device_write_bps" => io.write_bps = rates(node, name)?,
            "device_read_iops" => io.read_iops = rates(node, name)?,
            "device_write_iops" => io.write_iops = rates(node, name)?,
            _ => return Err(Level::unread(key, &place)),
        }
    }
    Ok(io)
}

/// Zero is the default.
fn weight(node: &Node) -> Checked<Option<u16>> {
    let weight = u16::try_from(node.integer("weight", 0, 1000)?).unwrap_or_default();
    match weight {
        0 => Ok(None),
        10.. => Ok(Some(weight)),
        _ => Err(Fault::new(&node.span, "`weight` must be between 10 and 1000")),
    }
}

fn rates(node: &Node, what: &str) -> Checked<Vec<DeviceRate>> {
    let entries = node.list(what)?.iter();
    entries
        .map(|entry| {
            let (path, node) = device(entry, what, "rate")?;
            Ok(DeviceRate { path, rate: bytes(node, "rate")? })
        })
        .collect()
}

/// The path of a device, and what is said about it under `key`.
fn device<'a>(entry: &'a Node, what: &str, key: &'static str) -> Checked<(String, &'a Node)> {
    let place = format!("an entry of `{what}`");
    let (mut path, mut value) = (None, None);
    for (name, node) in entry.map(what)? {
        match name.name.as_str() {
            "path" => path = Some(super::mounts::absolute(&node.span, &node.text("path")?)?),
            name if name == key => value = Some(node),
            _ => return Err(unknown_key(name, &place, ["path", key])),
        }
    }
    let missing = |key| Fault::new(&entry.span, format!("{place} needs `{key}`"));
    Ok((path.ok_or_else(|| missing("path"))?, value.ok_or_else(|| missing(key))?))
}
