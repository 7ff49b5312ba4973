//! The limits that `update` is told.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::args::Limits;
use crate::output::Failure;

/// More is no description of limits.
const MAX_SIZE: u64 = 1 << 20;

/// The limits of a file in the form of `linux.resources`, or else those of the options.
///
/// # Errors
/// When the file cannot be read, or is none; when nothing is to be changed.
pub(super) fn described(file: Option<&Path>, flags: &Limits) -> Result<LinuxResources, Failure> {
    match file {
        Some(path) => {
            let operation = format!("read the limits from {}", path.display());
            let mut text = Vec::new();
            let read = if path == Path::new("-") {
                std::io::stdin().take(MAX_SIZE).read_to_end(&mut text)
            } else {
                std::fs::File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text))
            };
            read.map_err(Failure::system(&operation))?;
            serde_json::from_slice(&text).map_err(Failure::system(&operation))
        }
        None => of_flags(flags).ok_or_else(|| {
            Failure::usage("nothing to update", "`inception-oci update --help` shows the limits")
        }),
    }
}

/// The limits of the options; `None` without any.
fn of_flags(flags: &Limits) -> Option<LinuxResources> {
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(flags.memory)
        .set_reservation(flags.memory_reservation)
        .set_swap(flags.memory_swap)
        .set_kernel(flags.kernel_memory)
        .set_kernel_tcp(flags.kernel_memory_tcp);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(flags.cpu_share)
        .set_quota(flags.cpu_quota)
        .set_period(flags.cpu_period)
        .set_burst(flags.cpu_burst)
        .set_idle(flags.cpu_idle)
        .set_realtime_period(flags.cpu_rt_period)
        .set_realtime_runtime(flags.cpu_rt_runtime)
        .set_cpus(flags.cpuset_cpus.clone())
        .set_mems(flags.cpuset_mems.clone());
    let mut block_io = LinuxBlockIo::default();
    block_io.set_weight(flags.blkio_weight);
    let pids = flags.pids_limit.map(|limit| {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        pids
    });
    let mut resources = LinuxResources::default();
    resources
        .set_memory(Some(memory).filter(|memory| *memory != LinuxMemory::default()))
        .set_cpu(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
        .set_pids(pids)
        .set_block_io(Some(block_io).filter(|block_io| *block_io != LinuxBlockIo::default()))
        .set_devices(None);
    let mut nothing = LinuxResources::default();
    nothing.set_devices(None);
    (resources != nothing).then_some(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_changed() {
        let flags =
            Limits { memory: Some(-1), cpu_quota: Some(5000), pids_limit: Some(7), ..Limits::default() };
        let resources = serde_json::to_value(of_flags(&flags).unwrap()).unwrap();
        let expected =
            serde_json::json!({"memory": {"limit": -1}, "cpu": {"quota": 5000}, "pids": {"limit": 7}});
        assert_eq!(resources, expected);
        assert!(of_flags(&Limits::default()).is_none());
    }
}
