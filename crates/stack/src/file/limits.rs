//! What a service may use of the machine: the keys that become limits of its cgroup.

use super::mounts::{bytes, ignored};
use super::node::{Key, Node, unknown_key};
use super::process::pids;
use super::service::ServiceFile;
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::{BlockIo, DeviceRate, DeviceWeight, Limits};

/// Keys of a service that [`read`] knows.
pub(super) const KEYS: [&str; 9] = [
    "blkio_config",
    "cpu_shares",
    "cpus",
    "cpuset",
    "mem_limit",
    "mem_reservation",
    "memswap_limit",
    "oom_kill_disable",
    "pids_limit",
];

/// Reads one of [`KEYS`]. Zero is "none" for all of them, as with Docker.
pub(super) fn read(limits: &mut Limits, name: &str, node: &Node) -> Checked<()> {
    match name {
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
        "blkio_config" => limits.block_io = Some(block_io(node)?).filter(|io| *io != BlockIo::default()),
        "oom_kill_disable" if node.boolean(name)? => {
            let text = "`oom_kill_disable` cannot be had with cgroup v2";
            return Err(Fault::new(&node.span, text).hint("raise `mem_limit`, or leave it out"));
        }
        _ => {}
    }
    Ok(())
}

/// What the keys of a service say together.
pub(super) fn check(limits: &Limits, key: &Key) -> Checked<()> {
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

fn block_io(node: &Node) -> Checked<BlockIo> {
    const KNOWN: [&str; 6] = [
        "device_read_bps",
        "device_read_iops",
        "device_write_bps",
        "device_write_iops",
        "weight",
        "weight_device",
    ];
    let mut io = BlockIo::default();
    for (key, node) in node.map("blkio_config")? {
        let name = key.name.as_str();
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
            _ => return Err(unknown_key(key, "`blkio_config`", KNOWN)),
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

/// Reads `deploy`, of which the resources and the replicas count.
pub(super) fn deploy(
    node: &Node,
    place: &str,
    service: &mut ServiceFile,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    const KNOWN: &[&str] = &[
        "endpoint_mode",
        "labels",
        "mode",
        "placement",
        "replicas",
        "resources",
        "restart_policy",
        "rollback_config",
        "update_config",
    ];
    let place = format!("`deploy` of {place}");
    for (key, node) in node.map("deploy")? {
        match key.name.as_str() {
            "resources" => resources(node, &place, &mut service.settled.limits, warnings)?,
            "endpoint_mode" | "mode" | "replicas" | "update_config" => {
                service.replicas.read_deploy(key, node, &place, warnings)?;
            }
            name if KNOWN.contains(&name) => warnings.push(ignored(key, &place)),
            _ => return Err(unknown_key(key, &place, KNOWN.iter().copied())),
        }
    }
    Ok(())
}

fn resources(
    node: &Node,
    place: &str,
    limits: &mut Limits,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    for (key, node) in node.map("resources")? {
        match key.name.as_str() {
            "limits" => {
                for (key, node) in node.map("limits")? {
                    match key.name.as_str() {
                        "cpus" => read(limits, "cpus", node)?,
                        "memory" => read(limits, "mem_limit", node)?,
                        "pids" => read(limits, "pids_limit", node)?,
                        _ => return Err(unknown_key(key, "`limits`", ["cpus", "memory", "pids"])),
                    }
                }
            }
            "reservations" => {
                let place = format!("`reservations` of {place}");
                for (key, node) in node.map("reservations")? {
                    match key.name.as_str() {
                        "memory" => read(limits, "mem_reservation", node)?,
                        _ => warnings.push(ignored(key, &place)),
                    }
                }
            }
            _ => return Err(unknown_key(key, "`resources`", ["limits", "reservations"])),
        }
    }
    Ok(())
}
