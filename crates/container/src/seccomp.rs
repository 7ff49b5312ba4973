//! The default seccomp profile: an allow-list that blocks what Docker's blocks.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::{Error, capability};

mod allowed;

/// `clone(2)` flags that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// `AF_VSOCK`: reaches the hypervisor past every network namespace.
const AF_VSOCK: u64 = 40;

/// The programs to load, in this order, for a process that may have `capabilities`. What is not allowed fails
/// with EPERM; `clone3` fails with ENOSYS, because its flags are behind a pointer that a filter
/// cannot read and the C libraries fall back to `clone` then.
///
/// # Errors
/// When a program cannot be compiled for this architecture.
pub fn default_profile(capabilities: u64) -> Result<Vec<Vec<u8>>, Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed::ALWAYS.iter().chain(allowed::LEGACY).map(|number| (*number, Vec::new())).collect();
    for (name, numbers) in allowed::WITH_CAPABILITY {
        if capabilities & capability::bit(name)? != 0 {
            rules.extend(numbers.iter().map(|number| (*number, Vec::new())));
        }
    }
    if capabilities & capability::bit("SYS_ADMIN")? == 0 {
        let plain = Op::MaskedEq(NAMESPACE_FLAGS);
        rules.insert(libc::SYS_clone, vec![rule(0, Len::Qword, plain, 0)?]);
    }
    rules.insert(libc::SYS_socket, vec![rule(0, Len::Dword, Op::Ne, AF_VSOCK)?]);
    let personalities = [0x0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];
    let personality =
        personalities.iter().map(|p| rule(0, Len::Dword, Op::Eq, *p)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_personality, personality);
    let allow = compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?;
    // Of two filters that both refuse, the one loaded last gives the number.
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let clone3 = compile(no_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?;
    Ok(vec![allow, clone3])
}

fn rule(argument: u8, length: Len, operator: Op, value: u64) -> Result<SeccompRule, Error> {
    SeccompCondition::new(argument, length, operator, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(Error::Seccomp)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<Vec<u8>, Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(Error::Seccomp)?;
    let program: BpfProgram = SeccompFilter::new(rules, otherwise, matched, arch)
        .and_then(BpfProgram::try_from)
        .map_err(Error::Seccomp)?;
    Ok(program
        .iter()
        .flat_map(|i| {
            let [a, b] = i.code.to_ne_bytes();
            let [c, d, e, f] = i.k.to_ne_bytes();
            [a, b, i.jt, i.jf, c, d, e, f]
        })
        .collect())
}
