//! Seccomp filters: the rules of `linux.seccomp` (runtime specification, `config-linux.md`) as a BPF program, and the
//! default profile.
//!
//! The program finds the call's number by bisection. The kernel runs a new filter once for every number there is
//! (to remember which it always allows, `seccomp_cache_prepare`), so that a list that is searched from its
//! beginning costs 0.6 ms at every start, this 0.05.

use std::path::PathBuf;

use init::process;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use architecture::native;
use rules::Rules;

mod architecture;
mod numbers;
mod profile;
mod program;
mod rules;
mod ruling;

pub use profile::docker_profile;
pub use ruling::{Ruling, rulings};

/// Names that the specification has and that are not supported here, or values that say nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The numbers of this architecture are not known.
    #[error("system calls of architecture `{0}` are not known")]
    Architecture(String),
    /// A rule without a name.
    #[error("a seccomp rule has an empty system call name")]
    NoName,
    /// System calls have six arguments.
    #[error("a seccomp rule asks for argument {0} of a system call; the last is 5")]
    Argument(usize),
    /// More than `MAX_ERRNO` (4095), or than the 16 bits of a tracer's message.
    #[error("seccomp `errnoRet` {0} is out of range")]
    Errno(u32),
    /// An error number for an action that returns none.
    #[error("seccomp action `{0}` takes no `errnoRet`")]
    ErrnoUnused(String),
    /// The default cannot be to ask an agent: the process could not even begin.
    #[error("`SCMP_ACT_NOTIFY` cannot be the default action")]
    NotifyDefault,
    /// Our own process makes this call before the agent has the listener.
    #[error("`SCMP_ACT_NOTIFY` cannot be used for `{0}`, which handing the listener to the agent takes")]
    Notify(String),
    /// Somebody must answer.
    #[error("`SCMP_ACT_NOTIFY` needs `listenerPath`")]
    NoListener,
    /// Metadata for nobody.
    #[error("`listenerMetadata` needs `listenerPath`")]
    MetadataWithoutListener,
    /// The kernel takes 4096 instructions.
    #[error("the seccomp rules make a program of {0} instructions; the kernel takes 4096")]
    TooLong(usize),
}

/// A compiled filter and how to load it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Instructions (`struct sock_filter`) in memory order.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_` bits for [`sys::seccomp::load`].
    pub flags: u32,
    /// There are calls that an agent decides: loading gives a listener, which goes to `listener_path`.
    pub notify: bool,
    /// Socket of the agent. There is one whenever `notify`.
    pub listener_path: Option<PathBuf>,
    /// What the agent is told beside the container's state.
    pub listener_metadata: Option<String>,
}

/// Translates the rules, see [`docker_profile`] for an example.
///
/// The native architecture is always among them. A call by the numbers of an architecture that is not listed ends the
/// process; so does one by x32's numbers where x32 is not listed.
///
/// # Errors
/// What the rules ask for and cannot get, by name. Names of unknown system calls are none of it: profiles are
/// written for newer kernels, too.
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Filter, Error> {
    let rules = Rules::read(seccomp)?;
    let notify = rules.notify;
    let (listener_path, listener_metadata) = rules::listener(seccomp, notify)?;
    Ok(Filter {
        program: assemble(&rules)?,
        flags: flags(seccomp, notify),
        notify,
        listener_path,
        listener_metadata,
    })
}

fn assemble(rules: &Rules) -> Result<Vec<u8>, Error> {
    let program = program::assemble(&rules.ranges())?;
    Ok(program.iter().flat_map(program::Instruction::bytes).collect())
}

fn flags(seccomp: &LinuxSeccomp, notify: bool) -> u32 {
    use sys::seccomp::{LOG, NEW_LISTENER, SPEC_ALLOW, TSYNC, TSYNC_ESRCH, WAIT_KILLABLE_RECV};
    let mut flags = if notify { NEW_LISTENER } else { 0 };
    for flag in seccomp.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
            // Without the other, the result could be a descriptor or a thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync if notify => TSYNC | TSYNC_ESRCH,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notify => WAIT_KILLABLE_RECV,
            // Nothing waits for an agent that does not exist, and the kernel refuses the flag then.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    flags
}

/// Names of the architectures whose system calls are known, in order.
pub fn architectures() -> Vec<String> {
    architecture::KNOWN.iter().map(ToString::to_string).collect()
}

/// The programs to load, in this order, for a process that may have `capabilities`: [`docker_profile`] for this
/// architecture alone.
///
/// Programs of its 32-bit relatives are ended, which Docker lets run: their `socketcall` would open all that the
/// profile keeps from `socket`, and each start would pay for a second table.
///
/// # Errors
/// When this architecture is not known.
pub fn default_profile(capabilities: u64) -> Result<Vec<process::Filter>, crate::Error> {
    let compiled = docker_profile(capabilities).and_then(|mut profile| {
        profile.set_architectures(Some(vec![native()?]));
        compile(&profile)
    });
    let Filter { program, flags, .. } = compiled.map_err(crate::Error::Seccomp)?;
    Ok(vec![process::Filter { program, flags }])
}

/// The program of rules that somebody else wrote.
///
/// # Errors
/// As [`compile`]; and there is nobody who would be asked about calls.
pub fn custom_profile(rules: &LinuxSeccomp) -> Result<process::Filter, crate::Error> {
    let compiled = compile(rules).map_err(crate::Error::Seccomp)?;
    match compiled {
        Filter { notify: true, .. } => Err(crate::Error::Seccomp(Error::NoListener)),
        Filter { program, flags, .. } => Ok(process::Filter { program, flags }),
    }
}

/// A program to load beside those of [`default_profile`], which has somebody asked about every `bind` of an address as
/// long as one of IPv4 or longer. Who answers is whoever has the listener; other calls are let pass.
///
/// A process has one such program: one of its own is refused with EBUSY.
///
/// # Errors
/// When this architecture is not known.
pub fn asking_to_bind() -> Result<process::Filter, crate::Error> {
    let compiled = profile::asking_to_bind().and_then(|profile| assemble(&Rules::read(&profile)?));
    let program = compiled.map_err(crate::Error::Seccomp)?;
    Ok(process::Filter { program, flags: sys::seccomp::NEW_LISTENER })
}

#[cfg(test)]
mod tests;
