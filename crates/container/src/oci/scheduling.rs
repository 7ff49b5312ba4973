//! How the first process is scheduled, and what it may use: set from outside, where the right to it is.

use oci_spec::runtime::{
    IOPriorityClass, LinuxMemoryPolicy, LinuxSchedulerFlag as Flag, LinuxSchedulerPolicy as Policy,
    MemoryPolicyFlagType, MemoryPolicyModeType, PosixRlimit, Process, Scheduler,
};
use sys::process::SchedulingAttributes;

use super::error::Error;
use crate::rlimit;

/// Everything that is set on the new process before it begins its own work.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Scheduling {
    scheduler: Option<SchedulingAttributes>,
    io: Option<(u32, u32)>,
    pub(super) oom_score_adj: Option<i32>,
    rlimits: Vec<(u32, u64, u64)>,
    /// Mode with flags, and nodes, of `set_mempolicy(2)`.
    pub(super) memory: Option<(u32, Vec<u32>)>,
}

impl Scheduling {
    /// What the process of a container or of an `exec` asks for.
    pub(super) fn resolve(process: &Process) -> Result<Self, Error> {
        Ok(Self {
            scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
            io: process.io_priority().map(|priority| {
                let class = match priority.class() {
                    IOPriorityClass::IoprioClassRt => 1,
                    IOPriorityClass::IoprioClassBe => 2,
                    IOPriorityClass::IoprioClassIdle => 3,
                };
                (class, priority.priority() as u32)
            }),
            oom_score_adj: process.oom_score_adj(),
            rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
            memory: None,
        })
    }

    /// Sets what can be set on another process.
    pub(super) fn apply(&self, pid: i32) -> Result<(), Error> {
        if let Some(attributes) = self.scheduler {
            sys::process::set_scheduling(pid, attributes).map_err(Error::system("set process.scheduler"))?;
        }
        if let Some((class, level)) = self.io {
            sys::process::set_io_priority(pid, class, level)
                .map_err(Error::system("set process.ioPriority"))?;
        }
        // Root of a user namespace cannot raise a limit; the exact values come at the end.
        for (resource, _, hard) in &self.rlimits {
            let (soft, limit) =
                sys::process::rlimit(*resource).map_err(Error::system("read a resource limit"))?;
            if *hard > limit {
                sys::process::set_rlimit_of(pid, *resource, soft, *hard)
                    .map_err(Error::system(format!("raise resource limit {resource} to {hard}")))?;
            }
        }
        Ok(())
    }

    /// Whether [`Scheduling::apply`] has anything to do.
    pub(super) fn is_needed(&self) -> bool {
        self.scheduler.is_some() || self.io.is_some() || !self.rlimits.is_empty()
    }
}

/// Resource limits as `init` takes them.
pub(super) fn rlimits(limits: &[PosixRlimit]) -> Result<Vec<(u32, u64, u64)>, Error> {
    limits
        .iter()
        .enumerate()
        .map(|(index, limit)| {
            let name = limit.typ().to_string();
            let short = name.trim_start_matches("RLIMIT_").to_ascii_lowercase();
            let number = rlimit::number(&short).ok_or_else(|| {
                Error::invalid(format!("process.rlimits[{index}]"), format!("{name} is no limit"))
            })?;
            Ok((number, limit.soft(), limit.hard()))
        })
        .collect()
}

fn scheduler(scheduler: &Scheduler) -> Result<SchedulingAttributes, Error> {
    let policy = match scheduler.policy() {
        Policy::SchedOther => libc::SCHED_OTHER,
        Policy::SchedFifo => libc::SCHED_FIFO,
        Policy::SchedRr => libc::SCHED_RR,
        Policy::SchedBatch => libc::SCHED_BATCH,
        Policy::SchedIdle => libc::SCHED_IDLE,
        Policy::SchedDeadline => libc::SCHED_DEADLINE,
        Policy::SchedIso => {
            return Err(Error::unsupported("process.scheduler.policy", "Linux has no SCHED_ISO"));
        }
    };
    let flags = scheduler.flags().iter().flatten().map(|flag| match flag {
        Flag::SchedResetOnFork => 0x01,
        Flag::SchedFlagReclaim => 0x02,
        Flag::SchedFlagDLOverrun => 0x04,
        Flag::SchedFlagKeepPolicy => 0x08,
        Flag::SchedFlagKeepParams => 0x10,
        Flag::SchedFlagUtilClampMin => 0x20,
        Flag::SchedFlagUtilClampMax => 0x40,
    });
    let mut attributes = SchedulingAttributes::default();
    attributes.policy = policy as u32;
    attributes.flags = flags.fold(0, |all, flag| all | flag);
    attributes.nice = scheduler.nice().unwrap_or(0);
    attributes.priority = u32::try_from(scheduler.priority().unwrap_or(0))
        .map_err(|_| Error::invalid("process.scheduler.priority", "is below 0"))?;
    attributes.runtime = scheduler.runtime().unwrap_or(0);
    attributes.deadline = scheduler.deadline().unwrap_or(0);
    attributes.period = scheduler.period().unwrap_or(0);
    Ok(attributes)
}

pub(super) fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<(u32, Vec<u32>), Error> {
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().map(|flag| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    });
    let nodes = list("linux.memoryPolicy.nodes", policy.nodes().as_deref().unwrap_or(""))?;
    let nodes = nodes.into_iter().map(|node| node as u32).collect();
    Ok((flags.fold(mode, |all, flag| all | flag), nodes))
}

/// A list of numbers and ranges, "List format" of cpuset(7).
pub(super) fn list(field: &str, text: &str) -> Result<Vec<usize>, Error> {
    let mut numbers = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|number| *number < 4096);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => numbers.extend(first..=last),
            _ => return Err(Error::invalid(field, format!("`{part}` is no number or range"))),
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(list("f", "0-2, 5,7-7").unwrap(), [0, 1, 2, 5, 7]);
        assert!(list("f", "").unwrap().is_empty());
        for bad in ["a", "3-1", "-1", "1-", "0-99999999", "1 2"] {
            assert!(list("f", bad).is_err(), "{bad}");
        }
    }
}
