//! BPF programs that decide which devices the processes of a cgroup may use (`bpf(2)`,
//! `BPF_PROG_TYPE_CGROUP_DEVICE`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

// The kernel's include/uapi/linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;

/// The most programs that the kernel lets one cgroup have.
const PROGRAMS_MAX: usize = 64;

#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Loads a device program, given as its instructions (`struct bpf_insn`) in memory order.
///
/// # Errors
/// `EPERM` without CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN; `EINVAL` and `EACCES` for a program that the
/// kernel's verifier refuses; `E2BIG` for one that is too long.
pub fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    // Only a GPL-compatible licence may call some functions; this program calls none, but the field is mandatory.
    let license = c"Apache-2.0";
    let mut load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    let fd = call(PROG_LOAD, &mut load)?;
    // SAFETY: on success the kernel returns a new descriptor, close-on-exec, that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup, beside those that it has: an access must be allowed by all.
///
/// # Errors
/// `EPERM` without the right to, `EINVAL` where the kernel has no such programs.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI,
    };
    call(PROG_ATTACH, &mut attach).map(drop)
}

/// Takes a device program off a cgroup.
///
/// # Errors
/// `ENOENT` when it is not attached there, `EPERM`.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        ..Attach::default()
    };
    call(PROG_DETACH, &mut attach).map(drop)
}

/// The device programs that are attached to a cgroup itself (not to those above it).
///
/// # Errors
/// `EPERM`, and what `BPF_PROG_QUERY` reports.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; PROGRAMS_MAX];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: PROGRAMS_MAX as u32,
        ..Query::default()
    };
    call(PROG_QUERY, &mut query)?;
    let count = (query.prog_cnt as usize).min(PROGRAMS_MAX);
    ids[..count]
        .iter()
        .map(|id| {
            let fd = call(PROG_GET_FD_BY_ID, &mut ById { id: *id, ..ById::default() })?;
            // SAFETY: on success the kernel returns a new descriptor that nobody else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        })
        .collect()
}

/// What [`call`] may hand to the kernel.
trait Attribute {}
impl Attribute for Load {}
impl Attribute for Attach {}
impl Attribute for Query {}
impl Attribute for ById {}

fn call<A: Attribute>(command: libc::c_int, attribute: &mut A) -> io::Result<RawFd> {
    // SAFETY: the attribute is a `repr(C)` struct that lays out the beginning of `union bpf_attr` for this command,
    // and its size is passed along. The pointers in it come from slices and arrays of our callers, with their
    // lengths beside them, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<A>()) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
