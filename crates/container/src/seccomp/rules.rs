//! The rules of `linux.seccomp` as verdicts on numbers.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::Error;
use super::architecture::{self, AUDIT_X86_64, Architecture, Row, X32_BIT};
use super::program::{Case, Comparison, Condition, MAX_INSTRUCTIONS, Verdict, action};

/// Calls that our own process makes between loading the filter and handing its listener on, and on which it would
/// wait for an agent that does not have the listener yet.
const NEVER_NOTIFIED: [&str; 2] = ["write", "sendmsg"];
/// `MAX_ERRNO` of the kernel.
const MAX_ERRNO: u32 = 4095;
const ARGUMENTS: usize = 6;
/// Version in the upper half of the first argument of `ipc`; the number of the sub-call is below.
const SUB_CALL_MASK: u64 = 0xffff;

/// Verdicts of one architecture.
#[derive(Debug)]
struct Calls {
    architecture: Architecture,
    verdicts: BTreeMap<u32, Verdict>,
    /// Highest number that a rule names, whatever it says of it.
    highest: Option<u32>,
}

/// What is left when names and spellings are gone.
#[derive(Debug)]
pub(super) struct Rules {
    calls: Vec<Calls>,
    default: u32,
    pub(super) notify: bool,
}

/// Where the listener goes, checked.
pub(super) fn listener(
    seccomp: &LinuxSeccomp,
    notify: bool,
) -> Result<(Option<PathBuf>, Option<String>), Error> {
    let (path, metadata) = (seccomp.listener_path().clone(), seccomp.listener_metadata().clone());
    if notify && path.is_none() {
        return Err(Error::NoListener);
    }
    if metadata.is_some() && path.is_none() {
        return Err(Error::MetadataWithoutListener);
    }
    Ok((path, metadata))
}

impl Rules {
    /// Reads the rules as runc does (`libcontainer/seccomp/seccomp_linux.go`) on top of libseccomp (`src/db.c`):
    ///
    /// - names that no architecture knows are passed over, rules with the default action are superfluous;
    /// - the conditions of a rule hold together, but when two of them ask for the same argument, then any one of
    ///   them is enough;
    /// - a rule without conditions outweighs those with conditions, and of two such the first one counts;
    /// - of rules with conditions, the first that holds counts. (libseccomp orders them by argument and refuses some
    ///   contradictions; what it accepts and this reads differently are overlapping rules with different actions.)
    /// - numbers above the highest that is named are those of calls that came after the profile. Unless the
    ///   default lets calls pass they are answered with ENOSYS, so that programs fall back (`patchbpf`).
    ///
    /// # Errors
    /// What the rules ask for and cannot get, by name.
    pub(super) fn read(seccomp: &LinuxSeccomp) -> Result<Self, Error> {
        if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
            return Err(Error::NotifyDefault);
        }
        let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
        let mut rules = Self { calls: Vec::new(), default, notify: false };
        rules.add_architecture(Arch::ScmpArchNative)?;
        for arch in seccomp.architectures().iter().flatten() {
            rules.add_architecture(*arch)?;
        }
        for syscall in seccomp.syscalls().iter().flatten() {
            rules.add(syscall)?;
        }
        Ok(rules)
    }

    fn add_architecture(&mut self, arch: Arch) -> Result<(), Error> {
        let architecture = Architecture::new(arch)?;
        if !self.calls.iter().any(|calls| calls.architecture == architecture) {
            self.calls.push(Calls { architecture, verdicts: BTreeMap::new(), highest: None });
        }
        Ok(())
    }

    fn add(&mut self, syscall: &LinuxSyscall) -> Result<(), Error> {
        let action = action(syscall.action(), syscall.errno_ret())?;
        let conditions = syscall.args().iter().flatten().map(condition).collect::<Result<Vec<_>, _>>()?;
        for name in syscall.names() {
            if name.is_empty() {
                return Err(Error::NoName);
            }
            if action == action::NOTIFY {
                if NEVER_NOTIFIED.contains(&name.as_str()) {
                    return Err(Error::Notify(name.clone()));
                }
                self.notify = true;
            }
            let row = architecture::row(name);
            if row.is_none() && architecture::arm_private(name).is_none() {
                tracing::debug!(name, "unknown system call in the seccomp rules");
            }
            for calls in &mut self.calls {
                calls.add(name, row, &conditions, action, self.default);
            }
        }
        Ok(())
    }

    /// Where each verdict begins to hold, for each `AUDIT_ARCH_` number.
    pub(super) fn ranges(&self) -> Vec<(u32, Vec<(u32, Verdict)>)> {
        let mut blocks: Vec<(u32, Vec<(u32, Verdict)>)> = Vec::new();
        // x32 follows x86-64 in the same block, its numbers being the higher ones.
        let mut order: Vec<&Calls> = self.calls.iter().collect();
        order.sort_by_key(|calls| calls.architecture.base == X32_BIT);
        for calls in order {
            let ranges = calls.ranges(self.default);
            match blocks.iter_mut().find(|(audit, _)| *audit == calls.architecture.audit) {
                Some((_, lower)) => {
                    lower.retain(|(start, _)| *start < X32_BIT);
                    lower.extend(ranges);
                }
                None => blocks.push((calls.architecture.audit, ranges)),
            }
        }
        for (_, ranges) in &mut blocks {
            ranges.dedup_by(|next, before| next.1 == before.1);
        }
        blocks
    }
}

impl Calls {
    fn add(&mut self, name: &str, row: Option<&Row>, conditions: &[Condition], action: u32, default: u32) {
        if let Some(number) = self.architecture.number_in(row, name) {
            self.highest = self.highest.max(Some(number));
            let repeated = (1..conditions.len())
                .any(|n| conditions[..n].iter().any(|before| before.argument == conditions[n].argument));
            if repeated {
                for condition in conditions {
                    self.decide(number, vec![*condition], action, default);
                }
            } else {
                self.decide(number, conditions.to_vec(), action, default);
            }
        }
        // The arguments of a sub-call are in memory, which a filter cannot read: only rules without conditions
        // can be carried over to it.
        if conditions.is_empty()
            && let Some((multiplexer, call)) = self.architecture.multiplexed(name)
        {
            self.highest = self.highest.max(Some(multiplexer));
            let condition =
                Condition { argument: 0, mask: SUB_CALL_MASK, comparison: Comparison::Equal, value: call };
            self.decide(multiplexer, vec![condition], action, default);
        }
    }

    fn decide(&mut self, number: u32, conditions: Vec<Condition>, action: u32, default: u32) {
        if action == default {
            return;
        }
        let verdict = match self.verdicts.entry(number) {
            Entry::Occupied(entry) if entry.get().cases.is_empty() => return,
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Verdict::always(default)),
        };
        if conditions.is_empty() {
            *verdict = Verdict::always(action);
        } else if verdict.cases.len() <= MAX_INSTRUCTIONS
            && !verdict.cases.iter().any(|case| case.conditions == conditions)
        {
            // Beyond that it is too long in any case.
            verdict.cases.push(Case { conditions, action });
        }
    }

    /// Where each verdict begins to hold, in order, from the first number of this architecture on.
    fn ranges(&self, default: u32) -> Vec<(u32, Verdict)> {
        let first = if self.architecture.base == X32_BIT { X32_BIT } else { 0 };
        let default = Verdict::always(default);
        let mut ranges = vec![(first, default.clone())];
        let mut push = |start: u32, verdict: Verdict| {
            // It takes the place of the gap that began here when its predecessor ended.
            if ranges.last().is_some_and(|(last, _)| *last == start) {
                ranges.pop();
            }
            ranges.push((start, verdict));
        };
        for (number, verdict) in &self.verdicts {
            push(*number, verdict.clone());
            push(number + 1, default.clone());
        }
        if let Some(highest) = self.highest
            && !lets_pass(default.otherwise)
        {
            push(highest + 1, Verdict::always(action::ERRNO | libc::ENOSYS as u32));
        }
        if self.architecture.audit == AUDIT_X86_64 {
            if first == 0 {
                push(X32_BIT, Verdict::always(action::KILL_PROCESS));
            }
            // How a tracer says that there is no call.
            push(u32::MAX, default);
        }
        ranges
    }
}

/// A tracer is expected to know what it lets pass, as runc has it.
fn lets_pass(action: u32) -> bool {
    matches!(action & action::KIND, action::ALLOW | action::LOG | action::TRACE)
}

fn action(kind: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    let plain = match kind {
        LinuxSeccompAction::ScmpActErrno => {
            let errno = errno.unwrap_or(libc::EPERM as u32);
            return if errno <= MAX_ERRNO { Ok(action::ERRNO | errno) } else { Err(Error::Errno(errno)) };
        }
        LinuxSeccompAction::ScmpActTrace => {
            let data = errno.unwrap_or(libc::EPERM as u32);
            return if data & action::KIND == 0 { Ok(action::TRACE | data) } else { Err(Error::Errno(data)) };
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => action::KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => action::KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => action::TRAP,
        LinuxSeccompAction::ScmpActNotify => action::NOTIFY,
        LinuxSeccompAction::ScmpActLog => action::LOG,
        LinuxSeccompAction::ScmpActAllow => action::ALLOW,
    };
    // The specification: "When the action doesn't support an errno, the runtime MUST print an error and fail."
    if errno.is_some() { Err(Error::ErrnoUnused(kind.to_string())) } else { Ok(plain) }
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition, Error> {
    let index = argument.index();
    if index >= ARGUMENTS {
        return Err(Error::Argument(index));
    }
    let comparison = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => Comparison::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => Comparison::Less,
        LinuxSeccompOperator::ScmpCmpLe => Comparison::AtMost,
        LinuxSeccompOperator::ScmpCmpEq | LinuxSeccompOperator::ScmpCmpMaskedEq => Comparison::Equal,
        LinuxSeccompOperator::ScmpCmpGe => Comparison::AtLeast,
        LinuxSeccompOperator::ScmpCmpGt => Comparison::Greater,
    };
    let (mask, value) = if argument.op() == LinuxSeccompOperator::ScmpCmpMaskedEq {
        (argument.value(), argument.value_two().unwrap_or(0))
    } else {
        (u64::MAX, argument.value())
    };
    Ok(Condition { argument: index as u8, mask, comparison, value })
}
