//! Whose numbers a filter sees, and what they mean there.

use oci_spec::runtime::Arch;

use super::Error;
use super::numbers::{NONE, TABLE};

/// A calling convention with numbers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Architecture {
    /// `AUDIT_ARCH_` of `<linux/audit.h>`, by which a filter knows whose numbers it sees. x86-64 and x32 share one.
    pub(super) audit: u32,
    /// Column of [`TABLE`].
    column: usize,
    /// What its numbers have in common, see [`TABLE`].
    pub(super) base: u32,
    /// Its sockets and its System V IPC came as sub-calls of `socketcall` and `ipc`.
    multiplexes: bool,
}

/// Bit of the numbers of x32, `__X32_SYSCALL_BIT`.
pub(super) const X32_BIT: u32 = 0x4000_0000;
/// `AUDIT_ARCH_X86_64`.
pub(super) const AUDIT_X86_64: u32 = 0xc000_003e;
/// First of ARM's private calls, `__ARM_NR_BASE`, and the calls from the next number on (`<asm/unistd.h>`).
const ARM_PRIVATE: (u32, [&str; 6]) =
    (0x000f_0000, ["breakpoint", "cacheflush", "usr26", "usr32", "set_tls", "get_tls"]);
/// Sub-calls of `socketcall` from 1 on, `<linux/net.h>`.
const SOCKET_CALLS: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];
/// Sub-calls of `ipc`, `<linux/ipc.h>`.
const IPC_CALLS: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// All that [`Architecture::new`] knows.
pub(super) const KNOWN: [Arch; 18] = [
    Arch::ScmpArchAarch64,
    Arch::ScmpArchArm,
    Arch::ScmpArchLoongarch64,
    Arch::ScmpArchMips,
    Arch::ScmpArchMips64,
    Arch::ScmpArchMips64n32,
    Arch::ScmpArchMipsel,
    Arch::ScmpArchMipsel64,
    Arch::ScmpArchMipsel64n32,
    Arch::ScmpArchPpc,
    Arch::ScmpArchPpc64,
    Arch::ScmpArchPpc64le,
    Arch::ScmpArchRiscv64,
    Arch::ScmpArchS390,
    Arch::ScmpArchS390x,
    Arch::ScmpArchX32,
    Arch::ScmpArchX86,
    Arch::ScmpArchX86_64,
];

impl Architecture {
    /// # Errors
    /// When its numbers are not known.
    pub(super) fn new(arch: Arch) -> Result<Self, Error> {
        let (column, base, multiplexes) = match arch {
            Arch::ScmpArchNative => return Self::native(),
            Arch::ScmpArchX86_64 => (0, 0, false),
            Arch::ScmpArchX86 => (1, 0, true),
            Arch::ScmpArchX32 => (2, X32_BIT, false),
            Arch::ScmpArchArm => (3, 0, false),
            // LoongArch was made with the generic numbers, as AArch64 was; it lacks a few of the calls.
            Arch::ScmpArchAarch64 | Arch::ScmpArchLoongarch64 => (4, 0, false),
            Arch::ScmpArchRiscv64 => (5, 0, false),
            Arch::ScmpArchS390x => (6, 0, true),
            Arch::ScmpArchS390 => (7, 0, true),
            Arch::ScmpArchPpc64 | Arch::ScmpArchPpc64le => (8, 0, true),
            Arch::ScmpArchPpc => (9, 0, true),
            Arch::ScmpArchMips64 | Arch::ScmpArchMipsel64 => (10, 5000, false),
            Arch::ScmpArchMips64n32 | Arch::ScmpArchMipsel64n32 => (11, 6000, false),
            Arch::ScmpArchMips | Arch::ScmpArchMipsel => (12, 4000, true),
            Arch::ScmpArchParisc
            | Arch::ScmpArchParisc64
            | Arch::ScmpArchM68k
            | Arch::ScmpArchSh
            | Arch::ScmpArchSheb => return Err(Error::Architecture(arch.to_string())),
        };
        // The numbers of the enumeration are libseccomp's tokens: those of the kernel but for x32.
        let audit = if arch == Arch::ScmpArchX32 { AUDIT_X86_64 } else { arch as u32 };
        Ok(Self { audit, column, base, multiplexes })
    }

    /// The one that this program runs on.
    pub(super) fn native() -> Result<Self, Error> {
        Self::new(native()?)
    }

    /// The number of a call; absent when this architecture does not have it.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.number_in(row(name), name)
    }

    /// The same for a name whose [`row`] is known: finding it is most of the work.
    pub(super) fn number_in(&self, row: Option<&Row>, name: &str) -> Option<u32> {
        if self.audit == Arch::ScmpArchArm as u32
            && let Some(index) = arm_private(name)
        {
            return Some(ARM_PRIVATE.0 + 1 + index as u32);
        }
        let number = row?[self.column];
        (number != NONE).then(|| self.base + u32::from(number))
    }

    /// The other way to a call: the number of `socketcall` or `ipc`, and the sub-call that its first argument names.
    pub(super) fn multiplexed(&self, name: &str) -> Option<(u32, u64)> {
        if !self.multiplexes {
            return None;
        }
        let socket = SOCKET_CALLS.iter().position(|known| *known == name);
        if let Some(index) = socket {
            return Some((self.number("socketcall")?, index as u64 + 1));
        }
        let (_, call) = IPC_CALLS.iter().find(|(known, _)| *known == name)?;
        Some((self.number("ipc")?, *call))
    }
}

/// Numbers of one call, by column.
pub(super) type Row = [u16; 13];

/// The numbers of a call, if any architecture has it in the table.
pub(super) fn row(name: &str) -> Option<&'static Row> {
    let row = TABLE.binary_search_by_key(&name, |(known, _)| known).ok()?;
    Some(&TABLE[row].1)
}

/// Place of a call among ARM's private ones.
pub(super) fn arm_private(name: &str) -> Option<usize> {
    ARM_PRIVATE.1.iter().position(|known| *known == name)
}

/// The architecture that this program runs on.
///
/// # Errors
/// When its numbers are not known.
pub(super) fn native() -> Result<Arch, Error> {
    let little = cfg!(target_endian = "little");
    Ok(match std::env::consts::ARCH {
        "x86_64" => Arch::ScmpArchX86_64,
        "x86" => Arch::ScmpArchX86,
        "aarch64" => Arch::ScmpArchAarch64,
        "arm" => Arch::ScmpArchArm,
        "riscv64" => Arch::ScmpArchRiscv64,
        "s390x" => Arch::ScmpArchS390x,
        "powerpc64" if little => Arch::ScmpArchPpc64le,
        "powerpc64" => Arch::ScmpArchPpc64,
        "loongarch64" => Arch::ScmpArchLoongarch64,
        "mips64" if little => Arch::ScmpArchMipsel64,
        "mips64" => Arch::ScmpArchMips64,
        other => return Err(Error::Architecture(other.to_owned())),
    })
}
