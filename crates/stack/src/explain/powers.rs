//! What a program may do: capabilities, the filter on system calls, devices.

use std::fs::File;

use container::capability;
use container::sandbox::Seccomp;
use container::seccomp::{self, Ruling};
use nix::errno::Errno;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use serde::Serialize;

use super::kernel::{Fact, Kernel, field};
use crate::remote::RemoteError;

/// Most device files that are listed: a container can make as many as it likes.
const MOST_DEVICES: usize = 256;

/// The capabilities of a process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Capabilities {
    /// The process, by its number on the host.
    pub pid: u32,
    /// Hexadecimal, as the kernel shows it: what can be gained at the most.
    pub bounding: Fact<String>,
    /// What is in effect.
    pub effective: Fact<String>,
    /// Each that the kernel has.
    pub list: Vec<Capability>,
}

/// One capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Its name, with `CAP_`.
    pub name: String,
    /// What it allows.
    pub allows: &'static str,
    /// It is in the bounding set: a program can have it.
    pub kept: bool,
    /// It is in effect.
    pub effective: bool,
}

/// The capabilities of a process.
pub(super) fn capabilities(kernel: &Kernel, pid: u32) -> Capabilities {
    let status = kernel.text(pid, "status");
    let set = |name: &'static str| status.clone().parse(name, |text| field(&text, name).map(str::to_owned));
    let (bounding, effective) = (set("CapBnd"), set("CapEff"));
    let bits = |set: &Fact<String>| set.known().and_then(|text| u64::from_str_radix(text, 16).ok());
    let list = bits(&bounding).map(|kept| list(kept, bits(&effective).unwrap_or(0))).unwrap_or_default();
    Capabilities { pid, bounding, effective, list }
}

fn list(kept: u64, effective: u64) -> Vec<Capability> {
    let of = |(number, (name, allows)): (usize, (&&str, &&'static str))| Capability {
        name: format!("CAP_{name}"),
        allows,
        kept: kept & (1 << number) != 0,
        effective: effective & (1 << number) != 0,
    };
    capability::NAMES.iter().zip(&capability::MEANINGS).enumerate().map(of).collect()
}

/// The filter on system calls.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Filter {
    /// `none`, `strict` or `filter`.
    pub mode: Fact<&'static str>,
    /// How many programs are loaded; each call passes through all of them. Not before Linux 5.9.
    pub programs: Fact<u32>,
    /// Whether set-user-ID programs and file capabilities give nothing (`no_new_privs`).
    pub no_new_privs: Fact<bool>,
    /// Calls that fail, with what, by the profile that was loaded: the kernel shows nobody but root what a filter holds.
    pub refused: Vec<Refused>,
    /// Calls that it looks into the arguments of.
    pub depends: Vec<&'static str>,
    /// How many calls it lets pass.
    pub allowed: usize,
    /// Calls that were tried just now, inside and on the host.
    pub attempts: Fact<Vec<Attempt>>,
}

/// A call that is not let pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The call.
    pub call: &'static str,
    /// With what it fails, `EPERM` for example; or what becomes of the process.
    pub answer: String,
}

/// A call that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// The call with its arguments.
    pub call: String,
    /// What came of it in the container: `ok`, or the name of the error.
    pub inside: String,
    /// The same on the host, by this program.
    pub host: String,
}

/// The filter of a process; `attempts` come from one that was put beside it.
pub(super) fn filter(
    kernel: &Kernel,
    pid: u32,
    profile: &Seccomp,
    capabilities: u64,
    attempts: Fact<Vec<Attempt>>,
) -> Result<Filter, RemoteError> {
    let status = kernel.text(pid, "status");
    let line = |name: &'static str, since: &str| match status.known().map(|text| field(text, name)) {
        Some(None) => {
            Fact::unknown(super::Reason::Absent, format!("this kernel does not tell {name} ({since} does)"))
        }
        _ => status.clone().parse(name, |text| field(&text, name).map(str::to_owned)),
    };
    let mode = line("Seccomp", "Linux 3.8").parse("Seccomp", |text| match text.as_str() {
        "0" => Some("none"),
        "1" => Some("strict"),
        "2" => Some("filter"),
        _ => None,
    });
    let rulings = seccomp::rulings(profile, capabilities)
        .map_err(|error| RemoteError::message(error.to_string()).context("read the seccomp profile"))?;
    let refused = rulings.iter().filter_map(|(call, ruling)| {
        let answer = match ruling {
            Ruling::Refused(errno) => name_of(i32::try_from(*errno).unwrap_or(0)),
            Ruling::Ended => "the process ends".to_owned(),
            Ruling::Asked => "somebody else is asked".to_owned(),
            Ruling::Allowed | Ruling::Depends => return None,
        };
        Some(Refused { call, answer })
    });
    let with =
        |wanted: Ruling| rulings.iter().filter(move |(_, ruling)| *ruling == wanted).map(|(call, _)| *call);
    Ok(Filter {
        mode,
        programs: line("Seccomp_filters", "Linux 5.9").parse("Seccomp_filters", |text| text.parse().ok()),
        no_new_privs: line("NoNewPrivs", "Linux 4.10").parse("NoNewPrivs", |text| Some(text == "1")),
        refused: refused.collect(),
        depends: with(Ruling::Depends).collect(),
        allowed: with(Ruling::Allowed).count(),
        attempts,
    })
}

/// What a process inside wrote about its attempts, beside what comes of the same calls here.
pub(super) fn attempts(written: &str) -> Option<Vec<Attempt>> {
    let mut lines = written.lines();
    let attempt = |here: sys::probe::Attempt| {
        let (name, errno) = lines.next()?.split_once(' ')?;
        (name == here.name).then_some(())?;
        Some(Attempt {
            call: format!("{}({})", here.name, here.arguments),
            inside: name_of(errno.parse().ok()?),
            host: name_of(here.errno),
        })
    };
    sys::probe::attempts().into_iter().map(attempt).collect()
}

fn name_of(errno: i32) -> String {
    match errno {
        0 => "ok".to_owned(),
        errno => match Errno::from_raw(errno) {
            Errno::UnknownErrno => format!("errno {errno}"),
            known => format!("{known:?}"),
        },
    }
}

/// A device file of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its path.
    pub path: String,
    /// `character` or `block`.
    pub kind: &'static str,
    /// Number of its driver.
    pub major: u32,
    /// Which of the driver's devices it is.
    pub minor: u32,
    /// Permissions, octal.
    pub mode: String,
}

/// The device files in a container's `/dev`, and the directories there.
pub(super) fn devices(kernel: &Kernel, pid: u32) -> Fact<Vec<Device>> {
    let path = kernel.path(&format!("{pid}/root"));
    let mut devices = Vec::new();
    match File::open(&path).and_then(|root| Ok(list_devices(&root, "dev", 2, &mut devices)?)) {
        Ok(()) => {
            devices.sort_by(|a, b| a.path.cmp(&b.path));
            Fact::Known(devices)
        }
        Err(error) => kernel.unread(&pid.to_string(), &path, &error),
    }
}

/// Paths are resolved inside of the container's root: links there are its own to set.
fn list_devices(root: &File, directory: &str, depth: u32, found: &mut Vec<Device>) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(root, directory, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let mut entries = Dir::read_from(&opened)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if found.len() >= MOST_DEVICES {
            break;
        }
        if name == b"." || name == b".." {
            continue;
        }
        // One that vanished meanwhile.
        let Ok(stat) = rustix::fs::statat(&opened, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let path = format!("{directory}/{}", String::from_utf8_lossy(name));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice => "character",
            FileType::BlockDevice => "block",
            FileType::Directory if depth > 1 => {
                // One that vanished, or that nobody may read, has no devices to show.
                list_devices(root, &path, depth - 1, found).ok();
                continue;
            }
            _ => continue,
        };
        found.push(Device {
            path: format!("/{path}"),
            kind,
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
            mode: format!("{:04o}", stat.st_mode & 0o7777),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn capabilities_by_the_kernels_mask() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("9")).unwrap();
        let status = "CapEff:\t0000000000000001\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n";
        fs::write(proc.path().join("9/status"), status).unwrap();
        let kernel = Kernel::at(proc.path());
        let found = capabilities(&kernel, 9);
        assert_eq!(found.list.iter().filter(|one| one.kept).count(), 14);
        let effective: Vec<_> =
            found.list.iter().filter(|one| one.effective).map(|one| one.name.as_str()).collect();
        assert_eq!(effective, ["CAP_CHOWN"]);
        assert!(capabilities(&kernel, 10).list.is_empty());
        // A kernel before 5.9 does not count programs.
        let none = Fact::unknown(crate::explain::Reason::Gone, "gone");
        let filter = filter(&kernel, 9, &Seccomp::Default, 0, none).unwrap();
        assert_eq!((filter.mode.known(), filter.programs.known()), (Some(&"filter"), None));
        assert!(filter.refused.iter().any(|refused| refused.call == "clone3" && refused.answer == "ENOSYS"));
        assert!(filter.allowed > 250 && filter.depends.contains(&"socket"));
    }

    #[test]
    fn attempts_are_told_beside_the_hosts() {
        let written: String =
            sys::probe::attempts().iter().map(|attempt| format!("{} 1\n", attempt.name)).collect();
        let found = attempts(&written).unwrap();
        assert!(found.iter().all(|attempt| attempt.inside == "EPERM"));
        assert_eq!(attempts("unshare 1\n"), None);
        assert_eq!(attempts(""), None);
    }

    #[test]
    fn a_dev_that_leads_out_of_the_container_stays_inside() {
        let proc = tempfile::tempdir().unwrap();
        let root = proc.path().join("9/root");
        fs::create_dir_all(root.join("etc")).unwrap();
        symlink("/dev", root.join("etc/dev")).unwrap();
        symlink("/etc/dev", root.join("dev")).unwrap();
        let kernel = Kernel::at(proc.path());
        // The host has devices in /dev; the link is a loop inside.
        assert!(devices(&kernel, 9).known().is_none());
        assert!(matches!(devices(&kernel, 10), Fact::Unknown { unknown: super::super::Reason::Gone, .. }));
    }
}
