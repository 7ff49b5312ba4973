//! From registers and memory to a [`Call`]. Reads, and decides nothing.

use super::call::{Call, CapabilitySets, Control, Object};
use super::flags::{ANY_NAMESPACE, CLONE_INTO_CGROUP};
use super::netlink;

/// What can be read of a process that stopped at a call.
pub(super) trait Process {
    /// Bytes of its memory; fewer where less is mapped, `None` where nothing can be read.
    fn memory(&self, address: u64, length: usize) -> Option<Vec<u8>>;
    /// What a descriptor is, as `/proc/PID/fd` tells.
    fn descriptor(&self, fd: i32) -> Option<String>;
    /// Its working directory.
    fn directory(&self) -> Option<String>;
    /// The detached mount that a descriptor is.
    fn object(&self, fd: i32) -> Option<Object>;
    /// The file system that a descriptor of `fsopen(2)` makes.
    fn context(&self, fd: i32) -> Option<String>;
    /// The requests in a message, if the descriptor is a netlink socket: with the socket's network namespace.
    fn netlink(&self, fd: i32, message: &[u8]) -> Option<(Option<String>, Vec<netlink::Request>)>;
}

/// Longest string that is read: the options of a mount fill a page.
const LONGEST: usize = 4096;
/// Most arguments and variables of a program that are read.
const MOST: usize = 512;
/// Longest message of a netlink socket that is read.
const LONGEST_MESSAGE: usize = 1 << 18;

/// The call that the registers describe, if it is one that is told of.
pub(super) fn decode(number: i64, arguments: &[u64; 6], process: &dyn Process) -> Option<Call> {
    let reader = Reader(process);
    let [first, second, third, fourth, fifth, _] = *arguments;
    Some(match number {
        libc::SYS_clone3 => {
            let read = process.memory(first, size_of::<u64>() * 11);
            let field =
                |index: usize| read.as_deref().and_then(|bytes| word(bytes, index)).unwrap_or_default();
            let flags = field(0);
            let cgroup = (flags & CLONE_INTO_CGROUP != 0).then(|| reader.descriptor(field(10))).flatten();
            Call::Clone { call: "clone3", flags, cgroup }
        }
        // The lowest byte is the signal of its end.
        libc::SYS_clone => Call::Clone { call: "clone", flags: first & !0xff, cgroup: None },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork => Call::Clone { call: "fork", flags: 0, cgroup: None },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork => Call::Clone { call: "vfork", flags: 0, cgroup: None },
        // Without a namespace it is our question how many threads there are.
        libc::SYS_unshare => Call::Unshare { flags: Some(first).filter(|flags| flags & ANY_NAMESPACE != 0)? },
        libc::SYS_setns => Call::Setns { to: reader.descriptor(first), flags: second },
        libc::SYS_mount => Call::Mount {
            source: reader.string(first),
            target: reader.string(second),
            kind: reader.string(third),
            flags: fourth,
            data: reader.string(fifth),
        },
        libc::SYS_umount2 => Call::Umount { target: reader.string(first), flags: second },
        libc::SYS_open_tree => {
            // Without this flag it is a look-up.
            Some(third).filter(|flags| flags & 1 != 0)?;
            Call::OpenTree { path: reader.path(first, second), flags: third }
        }
        libc::SYS_fsopen => Call::FsOpen { kind: reader.string(first) },
        libc::SYS_fsconfig => {
            /// Commands of fsconfig(2).
            const SET_FLAG: u64 = 0;
            const SET_STRING: u64 = 1;
            const CREATE: u64 = 6;
            let kind = process.context(first as i32);
            match second {
                SET_FLAG => Call::FsConfig { kind, key: reader.string(third), value: None },
                SET_STRING => {
                    Call::FsConfig { kind, key: reader.string(third), value: reader.string(fourth) }
                }
                CREATE => Call::FsConfig { kind, key: None, value: None },
                _ => return None,
            }
        }
        libc::SYS_fsmount => Call::FsMount { kind: process.context(first as i32), attributes: third },
        libc::SYS_move_mount => {
            Call::MoveMount { from: process.object(first as i32), to: reader.path(third, fourth) }
        }
        libc::SYS_mount_setattr => {
            let read = process.memory(fourth, size_of::<libc::mount_attr>());
            let field =
                |index: usize| read.as_deref().and_then(|bytes| word(bytes, index)).unwrap_or_default();
            let namespace =
                (field(0) & libc::MOUNT_ATTR_IDMAP != 0).then(|| reader.descriptor(field(3))).flatten();
            Call::MountSetattr {
                mount: process.object(first as i32),
                flags: third,
                set: field(0),
                clear: field(1),
                propagation: field(2),
                namespace,
            }
        }
        libc::SYS_pivot_root => Call::PivotRoot {
            new: reader.path(libc::AT_FDCWD as u64, first),
            old: reader.path(libc::AT_FDCWD as u64, second),
        },
        libc::SYS_chroot => Call::Chroot { path: reader.string(first) },
        libc::SYS_sethostname => {
            let name = process.memory(first, (second as usize).min(LONGEST));
            Call::Sethostname { name: name.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) }
        }
        libc::SYS_setresuid => {
            Call::SetIds { call: "setresuid", ids: [first, second, third].map(|id| id as u32) }
        }
        libc::SYS_setresgid => {
            Call::SetIds { call: "setresgid", ids: [first, second, third].map(|id| id as u32) }
        }
        libc::SYS_setgroups => {
            let count = (first as usize).min(MOST);
            let read = if count == 0 { Some(Vec::new()) } else { process.memory(second, count * 4) };
            let groups = read.map(|bytes| {
                let (groups, _) = bytes.as_chunks::<4>();
                groups.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect()
            });
            Call::Setgroups { groups }
        }
        libc::SYS_capset => {
            Call::Capset { sets: process.memory(second, 24).as_deref().and_then(capability_sets) }
        }
        libc::SYS_prctl => control(first, second)?,
        libc::SYS_seccomp => {
            /// `SECCOMP_SET_MODE_FILTER`.
            const FILTER: u64 = 1;
            Some(first).filter(|operation| *operation == FILTER)?;
            let program = process.memory(third, 2);
            let instructions = program.and_then(|bytes| Some(u16::from_ne_bytes(*bytes.first_chunk()?)));
            Call::Seccomp { flags: second, instructions }
        }
        libc::SYS_landlock_restrict_self => Call::Landlock,
        libc::SYS_execve => Call::Execve {
            call: "execve",
            path: reader.string(first),
            argv: reader.strings(second),
            environment: reader.strings(third),
            directory: process.directory(),
        },
        libc::SYS_execveat => Call::Execve {
            call: "execveat",
            path: reader.path(first, second),
            argv: reader.strings(third),
            environment: reader.strings(fourth),
            directory: process.directory(),
        },
        libc::SYS_mknodat => Call::Mknod { path: reader.path(first, second), mode: third as u32 },
        libc::SYS_mkdirat => Call::Mkdir { path: reader.path(first, second), mode: third as u32 },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mkdir => {
            Call::Mkdir { path: reader.path(libc::AT_FDCWD as u64, first), mode: second as u32 }
        }
        libc::SYS_symlinkat => Call::Symlink { to: reader.string(first), path: reader.path(second, third) },
        libc::SYS_write => {
            let path = reader.descriptor(first)?;
            let place = Place::of(&path)?;
            let text = match place {
                Place::Secret => None,
                Place::Open => process.memory(second, (third as usize).min(LONGEST)),
            };
            let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            Call::Write { path, text, length: third }
        }
        libc::SYS_prlimit64 => {
            // Without a new limit it is a question.
            Some(third).filter(|new| *new != 0)?;
            let read = process.memory(third, 16);
            let limits = read.as_deref().and_then(|bytes| Some((word(bytes, 0)?, word(bytes, 1)?)));
            Call::Prlimit { resource: second as u32, limits }
        }
        libc::SYS_sendto => {
            let message = process.memory(second, (third as usize).min(LONGEST_MESSAGE));
            netlink_call("sendto", process, first, message)?
        }
        libc::SYS_sendmsg => netlink_call("sendmsg", process, first, reader.message(second))?,
        _ => return None,
    })
}

/// Whether a call may be one that is told of, from the number alone: nothing else is looked at.
pub(super) fn is_of_interest(number: i64) -> bool {
    matches!(
        number,
        libc::SYS_clone3
            | libc::SYS_clone
            | libc::SYS_unshare
            | libc::SYS_setns
            | libc::SYS_mount
            | libc::SYS_umount2
            | libc::SYS_open_tree
            | libc::SYS_fsopen
            | libc::SYS_fsconfig
            | libc::SYS_fsmount
            | libc::SYS_move_mount
            | libc::SYS_mount_setattr
            | libc::SYS_pivot_root
            | libc::SYS_chroot
            | libc::SYS_sethostname
            | libc::SYS_setresuid
            | libc::SYS_setresgid
            | libc::SYS_setgroups
            | libc::SYS_capset
            | libc::SYS_prctl
            | libc::SYS_seccomp
            | libc::SYS_landlock_restrict_self
            | libc::SYS_execve
            | libc::SYS_execveat
            | libc::SYS_mknodat
            | libc::SYS_mkdirat
            | libc::SYS_symlinkat
            | libc::SYS_write
            | libc::SYS_prlimit64
            | libc::SYS_sendto
            | libc::SYS_sendmsg
    ) || is_old(number)
}

/// Calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
fn is_old(number: i64) -> bool {
    matches!(number, libc::SYS_fork | libc::SYS_vfork | libc::SYS_mkdir)
}

#[cfg(not(target_arch = "x86_64"))]
fn is_old(_number: i64) -> bool {
    false
}

/// Files whose writes are told of.
enum Place {
    /// `/proc`, cgroups, and files with names and addresses that are generated for a container.
    Open,
    /// Other files that are generated for a container: they may be secret.
    Secret,
}

impl Place {
    fn of(path: &str) -> Option<Self> {
        let (directory, name) = path.rsplit_once('/')?;
        let of_process = ["uid_map", "gid_map", "setgroups", "oom_score_adj"].contains(&name);
        if path.starts_with("/proc/") && (of_process || path.starts_with("/proc/sys/")) {
            return Some(Self::Open);
        }
        if is_cgroup(path) {
            return Some(Self::Open);
        }
        let names = ["etc%2Fhosts", "etc%2Fhostname", "etc%2Fresolv.conf"].contains(&name);
        let place = if names { Self::Open } else { Self::Secret };
        directory.ends_with(container::launch::SCRATCH).then_some(place)
    }
}

/// Whether a path is one of a cgroup file system, where it is mounted everywhere.
pub(super) fn is_cgroup(path: &str) -> bool {
    path.starts_with("/sys/fs/cgroup/")
}

fn netlink_call(
    call: &'static str,
    process: &dyn Process,
    fd: u64,
    message: Option<Vec<u8>>,
) -> Option<Call> {
    let (namespace, requests) = process.netlink(fd as i32, &message?)?;
    Some(Call::Netlink { call, namespace, requests })
}

fn control(option: u64, argument: u64) -> Option<Call> {
    /// `PR_CAP_AMBIENT` and its operations that change something.
    const AMBIENT: u64 = 47;
    const AMBIENT_IS_SET: u64 = 1;
    let option = match libc::c_int::try_from(option).ok()? {
        libc::PR_CAPBSET_DROP => {
            return Some(Call::DropBounding { capabilities: vec![u32::try_from(argument).ok()?] });
        }
        libc::PR_SET_NO_NEW_PRIVS => Control::NoNewPrivileges,
        libc::PR_SET_DUMPABLE => Control::Dumpable,
        libc::PR_SET_PDEATHSIG => Control::ParentDeathSignal,
        libc::PR_SET_KEEPCAPS => Control::KeepCapabilities,
        other if other as u64 == AMBIENT && argument != AMBIENT_IS_SET => Control::Ambient,
        _ => return None,
    };
    Some(Call::Prctl { option, argument })
}

/// The two halves of three sets, as `_LINUX_CAPABILITY_VERSION_3` has them (capget(2)).
fn capability_sets(bytes: &[u8]) -> Option<CapabilitySets> {
    let half = |index: usize| {
        let bytes = bytes.get(index * 4..)?.first_chunk()?;
        Some(u64::from(u32::from_ne_bytes(*bytes)))
    };
    let set = |index: usize| Some(half(index)? | half(index + 3)? << 32);
    Some(CapabilitySets { effective: set(0)?, permitted: set(1)?, inheritable: set(2)? })
}

/// Word number `index` of a structure.
fn word(bytes: &[u8], index: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(index * 8..)?.first_chunk()?))
}

/// What arguments point to.
struct Reader<'a>(&'a dyn Process);

impl Reader<'_> {
    fn string(&self, address: u64) -> Option<String> {
        if address == 0 {
            return Some(String::new());
        }
        let bytes = self.0.memory(address, LONGEST)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// The strings of an array that a null pointer ends.
    fn strings(&self, address: u64) -> Option<Vec<String>> {
        let pointers = self.0.memory(address, MOST * 8)?;
        let (pointers, _) = pointers.as_chunks::<8>();
        pointers
            .iter()
            .map(|bytes| u64::from_ne_bytes(*bytes))
            .take_while(|pointer| *pointer != 0)
            .map(|pointer| self.string(pointer))
            .collect()
    }

    fn descriptor(&self, fd: u64) -> Option<String> {
        self.0.descriptor(fd as i32)
    }

    /// A path that is relative to a directory: as long as that is known, an absolute one.
    fn path(&self, directory: u64, path: u64) -> Option<String> {
        let path = self.string(path)?;
        if path.starts_with('/') {
            return Some(path);
        }
        let base = match directory as i32 {
            libc::AT_FDCWD => self.0.directory(),
            fd => self.0.descriptor(fd),
        };
        match (base, path.as_str()) {
            (None, "" | ".") => None,
            (None, _) => Some(path),
            (Some(base), "" | ".") => Some(base),
            (Some(base), _) => Some(format!("{}/{path}", base.trim_end_matches('/'))),
        }
    }

    /// The parts of a `struct msghdr`, joined.
    fn message(&self, address: u64) -> Option<Vec<u8>> {
        let header = self.0.memory(address, size_of::<libc::msghdr>())?;
        let (parts, count) = (word(&header, 2)?, word(&header, 3)?);
        let mut message = Vec::new();
        for index in 0..count.min(MOST as u64) {
            let part = self.0.memory(parts + index * 16, 16)?;
            let length = (word(&part, 1)? as usize).min(LONGEST_MESSAGE - message.len());
            message.extend(self.0.memory(word(&part, 0)?, length)?);
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A process with this in its memory.
    #[derive(Default)]
    struct Fake {
        memory: BTreeMap<u64, Vec<u8>>,
        unreadable: bool,
    }

    impl Fake {
        fn with(mut self, address: u64, bytes: &[u8]) -> Self {
            self.memory.insert(address, bytes.to_vec());
            self
        }
    }

    impl Process for Fake {
        fn memory(&self, address: u64, length: usize) -> Option<Vec<u8>> {
            let bytes = self.memory.get(&address).filter(|_| !self.unreadable)?;
            Some(bytes[..length.min(bytes.len())].to_vec())
        }
        fn descriptor(&self, fd: i32) -> Option<String> {
            match fd {
                3 => Some("/data/mnt/root".to_owned()),
                4 => Some("net:[42]".to_owned()),
                5 => Some("/proc/9/uid_map".to_owned()),
                6 => Some("/data/mnt/scratch/run%2Fsecrets%2Fpassword".to_owned()),
                7 => Some("/var/log/x".to_owned()),
                _ => None,
            }
        }
        fn directory(&self) -> Option<String> {
            Some("/data".to_owned())
        }
        fn object(&self, _fd: i32) -> Option<Object> {
            None
        }
        fn context(&self, _fd: i32) -> Option<String> {
            Some("tmpfs".to_owned())
        }
        fn netlink(&self, _fd: i32, _message: &[u8]) -> Option<(Option<String>, Vec<netlink::Request>)> {
            None
        }
    }

    fn line(process: &Fake, number: i64, arguments: [u64; 6]) -> Option<String> {
        assert!(is_of_interest(number));
        Some(decode(number, &arguments, process)?.line())
    }

    #[test]
    fn registers_and_memory_become_a_call() {
        let process = Fake::default()
            .with(1, b"overlay\0")
            .with(2, b"mnt/root\0")
            .with(3, b"lowerdir=l/a\0")
            .with(4, b"web");
        assert_eq!(
            line(&process, libc::SYS_mount, [1, 2, 1, libc::MS_NODEV, 3, 0]).unwrap(),
            "mount(\"overlay\", \"mnt/root\", \"overlay\", MS_NODEV, \"lowerdir=l/a\")"
        );
        assert_eq!(
            line(&process, libc::SYS_sethostname, [4, 3, 0, 0, 0, 0]).unwrap(),
            "sethostname(\"web\")"
        );
        assert_eq!(
            line(&process, libc::SYS_setns, [4, libc::CLONE_NEWNET as u64, 0, 0, 0, 0]).unwrap(),
            "setns(net:[42], CLONE_NEWNET)"
        );
        // Relative to a descriptor, and to the working directory.
        let process = process.with(5, b"dev/null\0").with(6, b"\0");
        assert_eq!(
            line(&process, libc::SYS_mknodat, [3, 5, u64::from(libc::S_IFREG) | 0o644, 0, 0, 0]).unwrap(),
            "mknodat(\"/data/mnt/root/dev/null\", S_IFREG|0644)"
        );
        assert_eq!(
            line(&process, libc::SYS_open_tree, [libc::AT_FDCWD as u64, 2, 1, 0, 0, 0]).unwrap(),
            "open_tree(\"/data/mnt/root\", OPEN_TREE_CLONE)"
        );
    }

    #[test]
    fn structures_are_read_by_their_fields() {
        let mut clone = [0u64; 11];
        clone[0] = libc::CLONE_NEWPID as u64;
        let bytes: Vec<u8> = clone.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let sets: Vec<u8> = [1u32, 2, 4, 0, 1, 0].iter().flat_map(|half| half.to_ne_bytes()).collect();
        let process = Fake::default().with(1, &bytes).with(2, &sets).with(3, &187u16.to_ne_bytes());
        assert_eq!(line(&process, libc::SYS_clone3, [1, 88, 0, 0, 0, 0]).unwrap(), "clone3(CLONE_NEWPID)");
        assert_eq!(
            line(&process, libc::SYS_capset, [0, 2, 0, 0, 0, 0]).unwrap(),
            "capset(0x1, 0x100000002, 0x4)"
        );
        assert_eq!(
            line(&process, libc::SYS_seccomp, [1, 0, 3, 0, 0, 0]).unwrap(),
            "seccomp(SECCOMP_SET_MODE_FILTER, 0, {187 instructions})"
        );
    }

    #[test]
    fn writes_are_told_of_by_where_they_go() {
        let process = Fake::default().with(1, b"0 1 2\n");
        assert_eq!(
            line(&process, libc::SYS_write, [5, 1, 6, 0, 0, 0]).unwrap(),
            r#"write("/proc/9/uid_map", "0 1 2\n", 6)"#
        );
        // What may be secret is not read.
        let told = line(&process, libc::SYS_write, [6, 1, 6, 0, 0, 0]).unwrap();
        assert!(told.ends_with(", ..., 6)"), "{told}");
        assert_eq!(line(&process, libc::SYS_write, [7, 1, 6, 0, 0, 0]), None);
    }

    #[test]
    fn what_changes_nothing_is_not_told_of() {
        let process = Fake::default();
        // How many threads there are; a look-up; a question; no filter.
        assert_eq!(line(&process, libc::SYS_unshare, [libc::CLONE_THREAD as u64, 0, 0, 0, 0, 0]), None);
        assert_eq!(line(&process, libc::SYS_open_tree, [3, 0, 0, 0, 0, 0]), None);
        assert_eq!(line(&process, libc::SYS_prlimit64, [0, 7, 0, 1, 0, 0]), None);
        assert_eq!(line(&process, libc::SYS_seccomp, [0, 0, 0, 0, 0, 0]), None);
        assert_eq!(line(&process, libc::SYS_prctl, [libc::PR_SET_NAME as u64, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn memory_that_cannot_be_read_is_said_to_be_so() {
        let process = Fake { unreadable: true, ..Fake::default() };
        assert_eq!(
            line(&process, libc::SYS_execve, [1, 2, 3, 0, 0, 0]).unwrap(),
            "execve((unreadable), (unreadable), (unreadable))"
        );
        // Registers are no memory.
        assert_eq!(
            line(&process, libc::SYS_setresuid, [33, 33, 33, 0, 0, 0]).unwrap(),
            "setresuid(33, 33, 33)"
        );
    }
}
