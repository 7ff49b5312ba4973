//! The default profile: it blocks what Docker's does (`seccomp/default.json` of github.com/moby/profiles).

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

use super::Error;
use super::architecture;
use crate::capability;

/// Allowed to every process. Not in it, and therefore worth a word: `io_uring_*` (a way around filters, with a long
/// history of holes), `userfaultfd`, `keyctl` and its like (keyrings are not namespaced), `pivot_root`, `ustat`,
/// `uselib`, `nfsservctl`, `vm86`, `swapon`, `kexec_load`, and all that has a capability in [`WITH_CAPABILITY`].
const ALWAYS: &str = "\
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 \
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 \
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 \
fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat \
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait \
futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 \
geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid \
getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt \
gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 \
inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl \
ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 \
lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 \
madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 \
mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc \
pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease \
process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink \
readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename \
renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask \
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile \
sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid \
setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid \
setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr \
setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall \
socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo \
tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill \
truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork \
vmsplice wait4 waitid waitpid write writev";

/// Allowed to every process where these architectures are at home.
const ON_ARCHITECTURE: &[(&[Arch], &str)] = &[
    (&[Arch::ScmpArchPpc64le], "sync_file_range2 swapcontext"),
    (
        &[Arch::ScmpArchArm, Arch::ScmpArchAarch64],
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    ),
    (&[Arch::ScmpArchX86_64, Arch::ScmpArchX32], "arch_prctl"),
    (&[Arch::ScmpArchX86_64, Arch::ScmpArchX32, Arch::ScmpArchX86], "modify_ldt"),
    (&[Arch::ScmpArchS390x, Arch::ScmpArchS390], "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    (&[Arch::ScmpArchRiscv64], "riscv_flush_icache"),
];

/// Allowed to processes that may have the capability.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// `clone(2)` flags that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// What `personality(2)` may be asked for: `PER_LINUX`, `PER_LINUX32`, both with `UNAME26`, and the question which
/// it is.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];
/// `socket(2)` may make those below, and the others below. What is missing: DECnet, Econet, ATM's switched circuits,
/// IrDA, WANPIPE, ISDN and CAIF, which nothing uses; `AF_ALG`, a large part of the kernel for little use; and
/// `AF_VSOCK`, which reaches the hypervisor past every network namespace.
const FAMILIES_BELOW: u64 = 12;
/// See [`FAMILIES_BELOW`].
const FAMILIES: [u64; 25] =
    [13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45];

/// Architectures whose programs this one runs, too.
fn relatives(native: Arch) -> &'static [Arch] {
    match native {
        Arch::ScmpArchX86_64 => &[Arch::ScmpArchX86, Arch::ScmpArchX32],
        Arch::ScmpArchAarch64 => &[Arch::ScmpArchArm],
        Arch::ScmpArchMips64 => &[Arch::ScmpArchMips, Arch::ScmpArchMips64n32],
        Arch::ScmpArchMipsel64 => &[Arch::ScmpArchMipsel, Arch::ScmpArchMipsel64n32],
        Arch::ScmpArchS390x => &[Arch::ScmpArchS390],
        _ => &[],
    }
}

/// Docker's default profile as it is for this architecture and for a process that may have `capabilities` (bits of
/// capabilities(7)). What is not allowed fails with EPERM; `clone3` fails with ENOSYS, because its flags are behind
/// a pointer that a filter cannot read and the C libraries fall back to `clone` then.
///
/// # Errors
/// When the numbers of this architecture are not known.
pub fn docker_profile(capabilities: u64) -> Result<LinuxSeccomp, Error> {
    let native = architecture::native()?;
    let mut architectures = vec![native];
    architectures.extend(relatives(native));
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM as u32))
        .set_architectures(Some(architectures))
        .set_syscalls(Some(rules(native, capabilities)));
    Ok(profile)
}

/// Length in bytes of the shortest address of IPv4 or IPv6 that `bind` takes, `struct sockaddr_in`; of netlink's, which C
/// libraries bind to for every look-up of interfaces, it is 12.
const SHORTEST_ADDRESS: u64 = size_of::<libc::sockaddr_in>() as u64;

/// Asks about each `bind` of a longer address, and lets everything else pass.
///
/// # Errors
/// When the numbers of this architecture are not known.
pub(super) fn asking_to_bind() -> Result<LinuxSeccomp, Error> {
    let mut profile = LinuxSeccomp::default();
    let longer = LinuxSeccompOperator::ScmpCmpGe;
    let mut bind = allow_if("bind", 2, longer, SHORTEST_ADDRESS);
    if let Some(bind) = &mut bind {
        bind.set_action(LinuxSeccompAction::ScmpActNotify);
    }
    profile
        .set_default_action(LinuxSeccompAction::ScmpActAllow)
        .set_architectures(Some(vec![architecture::native()?]))
        .set_syscalls(Some(bind.into_iter().collect()));
    Ok(profile)
}

fn rules(native: Arch, capabilities: u64) -> Vec<LinuxSyscall> {
    let has = |name: &str| capability::bit(name).is_ok_and(|bit| capabilities & bit != 0);
    let mut rules = vec![allow(ALWAYS)];
    let at_home = |architectures: &[Arch]| {
        architectures.iter().any(|arch| *arch == native || relatives(native).contains(arch))
    };
    rules.extend(ON_ARCHITECTURE.iter().filter(|(homes, _)| at_home(homes)).map(|(_, names)| allow(names)));
    rules.extend(WITH_CAPABILITY.iter().filter(|(name, _)| has(name)).map(|(_, names)| allow(names)));
    rules.extend(allow_if("socket", 0, LinuxSeccompOperator::ScmpCmpLt, FAMILIES_BELOW));
    let equal = LinuxSeccompOperator::ScmpCmpEq;
    rules.extend(FAMILIES.iter().filter_map(|family| allow_if("socket", 0, equal, *family)));
    rules.extend(
        PERSONALITIES.iter().filter_map(|personality| allow_if("personality", 0, equal, *personality)),
    );
    if !has("SYS_ADMIN") {
        // The arguments of clone(2) stand in another order there.
        let flags = usize::from(native == Arch::ScmpArchS390x);
        // The bits of the mask are all unset.
        rules.extend(allow_if("clone", flags, LinuxSeccompOperator::ScmpCmpMaskedEq, NAMESPACE_FLAGS));
        let mut absent = LinuxSyscall::default();
        absent
            .set_names(vec!["clone3".to_owned()])
            .set_action(LinuxSeccompAction::ScmpActErrno)
            .set_errno_ret(Some(libc::ENOSYS as u32));
        rules.push(absent);
    }
    rules
}

fn allow(names: &str) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.split_ascii_whitespace().map(str::to_owned).collect())
        .set_action(LinuxSeccompAction::ScmpActAllow);
    rule
}

/// No rule, and so no permission, when the argument cannot be described; it can, all its fields have defaults.
fn allow_if(name: &str, index: usize, op: LinuxSeccompOperator, value: u64) -> Option<LinuxSyscall> {
    let argument = LinuxSeccompArgBuilder::default().index(index).op(op).value(value).build().ok()?;
    let mut rule = allow(name);
    rule.set_args(Some(vec![argument]));
    Some(rule)
}
