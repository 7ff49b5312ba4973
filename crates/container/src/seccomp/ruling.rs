//! What a profile says of each system call of this architecture, for people.

use super::architecture::Architecture;
use super::numbers::TABLE;
use super::program::{Verdict, action};
use super::{Error, Rules, docker_profile, native};
use crate::sandbox::Seccomp;

/// How a filter answers a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// It lets it pass, whether or not it is noted in a log.
    Allowed,
    /// The call fails with this error number.
    Refused(u32),
    /// What becomes of it depends on its arguments.
    Depends,
    /// The thread or process ends, or is sent SIGSYS.
    Ended,
    /// Somebody else is asked.
    Asked,
}

/// The ruling on each call that this architecture has, by name; of a sandbox whose programs may have `capabilities`.
/// Empty where there is no filter.
///
/// # Errors
/// When this architecture is not known, or the rules cannot be understood.
pub fn rulings(seccomp: &Seccomp, capabilities: u64) -> Result<Vec<(&'static str, Ruling)>, Error> {
    let profile = match seccomp {
        Seccomp::Unconfined => return Ok(Vec::new()),
        Seccomp::Default => {
            let mut profile = docker_profile(capabilities)?;
            // As `default_profile` has it: alone.
            profile.set_architectures(Some(vec![native()?]));
            profile
        }
        Seccomp::Profile(profile) => (**profile).clone(),
    };
    let here = Architecture::native()?;
    let blocks = Rules::read(&profile)?.ranges();
    let own = blocks.into_iter().find(|(audit, _)| *audit == here.audit);
    let ranges = own.map(|(_, ranges)| ranges).unwrap_or_default();
    let ruling = |(name, _): &(&'static str, _)| {
        let number = here.number(name)?;
        let (_, verdict) = ranges.iter().rev().find(|(start, _)| *start <= number)?;
        Some((*name, of(verdict)))
    };
    Ok(TABLE.iter().filter_map(ruling).collect())
}

fn of(verdict: &Verdict) -> Ruling {
    if !verdict.cases.is_empty() {
        return Ruling::Depends;
    }
    match verdict.otherwise & action::KIND {
        action::ALLOW | action::LOG => Ruling::Allowed,
        action::ERRNO => Ruling::Refused(verdict.otherwise & !action::KIND),
        action::NOTIFY | action::TRACE => Ruling::Asked,
        _ => Ruling::Ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rulings_of_the_default_profile() {
        let of = |capabilities: u64, call: &str| {
            let all = rulings(&Seccomp::Default, capabilities).unwrap();
            all.into_iter().find(|(name, _)| *name == call).map(|(_, ruling)| ruling)
        };
        assert_eq!(of(0, "read"), Some(Ruling::Allowed));
        assert_eq!(of(0, "mount"), Some(Ruling::Refused(libc::EPERM as u32)));
        assert_eq!(of(0, "clone3"), Some(Ruling::Refused(libc::ENOSYS as u32)));
        assert_eq!(of(0, "socket"), Some(Ruling::Depends));
        let all = (1 << crate::capability::NAMES.len()) - 1;
        assert_eq!(of(all, "mount"), Some(Ruling::Allowed));
        assert!(rulings(&Seccomp::Unconfined, 0).unwrap().is_empty());
    }
}
