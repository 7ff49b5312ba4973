use oci_spec::runtime::Arch;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::architecture::{AUDIT_X86_64, Architecture, X32_BIT};
use super::program::{action, code, offset};
use super::*;
use crate::capability;

const EPERM: u32 = action::ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = action::ERRNO | libc::ENOSYS as u32;

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
struct Call {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

/// Runs a program as the kernel would; the instructions that it took, too.
fn run(program: &[u8], call: Call) -> (u32, usize) {
    let mut data = Vec::new();
    data.extend(call.number.to_ne_bytes());
    data.extend(call.architecture.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    data.extend(call.arguments.iter().flat_map(|a| a.to_ne_bytes()));
    let (instructions, rest) = program.as_chunks::<8>();
    assert!(rest.is_empty() && instructions.len() <= 4096);
    let (mut at, mut word, mut taken) = (0, 0u32, 0);
    loop {
        let [a, b, if_true, if_false, c, d, e, f] = instructions[at];
        let operand = u32::from_ne_bytes([c, d, e, f]);
        taken += 1;
        let jump = |truth: bool| 1 + usize::from(if truth { if_true } else { if_false });
        at += match u16::from_ne_bytes([a, b]) {
            code::LOAD => {
                let from = operand as usize;
                word = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
                1
            }
            code::AND => {
                word &= operand;
                1
            }
            code::JUMP => 1 + operand as usize,
            code::JUMP_IF_EQUAL => jump(word == operand),
            code::JUMP_IF_GREATER => jump(word > operand),
            code::JUMP_IF_NOT_LESS => jump(word >= operand),
            code::RETURN => return (operand, taken),
            other => panic!("code {other}"),
        };
    }
}

fn parse(rules: Value) -> LinuxSeccomp {
    serde_json::from_value(rules).unwrap()
}

fn answer(filter: &Filter, arch: Arch, name: &str, arguments: [u64; 6]) -> u32 {
    let architecture = Architecture::new(arch).unwrap();
    let number = architecture.number(name).unwrap();
    run(&filter.program, Call { architecture: architecture.audit, number, arguments }).0
}

const X86_64: Arch = Arch::ScmpArchX86_64;
const X86: Arch = Arch::ScmpArchX86;

fn with(architectures: &[Arch], mut rest: Value) -> LinuxSeccomp {
    rest["architectures"] = json!(architectures);
    parse(rest)
}

#[test]
fn offsets_are_the_kernels() {
    assert_eq!(offset::NUMBER + 4, offset::ARCHITECTURE);
    assert_eq!(offset::LOW + offset::HIGH, 4);
}

#[test]
fn numbers_are_those_of_the_c_library() {
    let native = Architecture::native().unwrap();
    for (name, number) in [
        ("read", libc::SYS_read),
        ("mount", libc::SYS_mount),
        ("clone3", libc::SYS_clone3),
        ("seccomp", libc::SYS_seccomp),
        ("mseal", libc::SYS_mseal),
        ("_llseek", -1),
    ] {
        assert_eq!(native.number(name), u32::try_from(number).ok(), "{name}");
    }
    for arch in architecture::KNOWN {
        assert!(Architecture::new(arch).unwrap().number("openat").is_some(), "{arch}");
    }
    let number = |arch, name| Architecture::new(arch).unwrap().number(name);
    assert_eq!(number(Arch::ScmpArchArm, "set_tls"), Some(0xf0005));
    assert_eq!(number(Arch::ScmpArchMipsel64, "read"), Some(5000));
    assert_eq!(number(Arch::ScmpArchX32, "execve"), Some(X32_BIT + 520));
    assert_eq!(number(X86, "socketcall"), Some(102));
}

#[test]
fn rules_without_conditions_and_the_first_of_them_count() {
    let filter = compile(&parse(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdirat"], "action": "SCMP_ACT_TRAP",
             "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71},
            {"names": ["mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["unlinkat"], "action": "SCMP_ACT_TRACE", "errnoRet": 4660},
            {"names": ["fchdir"], "action": "SCMP_ACT_LOG"},
            {"names": ["chdir"], "action": "SCMP_ACT_KILL"},
        ],
    })))
    .unwrap();
    let native = native().unwrap();
    let answer = |name| answer(&filter, native, name, [1; 6]);
    assert_eq!(answer("mkdirat"), action::ERRNO | 71);
    assert_eq!(answer("unlinkat"), action::TRACE | 0x1234);
    assert_eq!(answer("fchdir"), action::LOG);
    assert_eq!(answer("chdir"), action::KILL_THREAD);
    assert_eq!(answer("read"), action::ALLOW);
    assert!(!filter.notify && filter.flags == 0);
}

#[test]
fn conditions_hold_together_unless_an_argument_is_asked_for_twice() {
    let rule = |second: usize| {
        compile(&parse(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["kcmp"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
                {"index": second, "value": 0xf0, "valueTwo": 0x10, "op": "SCMP_CMP_MASKED_EQ"},
            ]}],
        })))
        .unwrap()
    };
    let native = native().unwrap();
    let both = rule(2);
    assert_eq!(answer(&both, native, "kcmp", [1, 0, 0x1f, 0, 0, 0]), EPERM);
    assert_eq!(answer(&both, native, "kcmp", [1, 0, 0x2f, 0, 0, 0]), action::ALLOW);
    assert_eq!(answer(&both, native, "kcmp", [1 << 32 | 1, 0, 0x1f, 0, 0, 0]), action::ALLOW);
    let either = rule(0);
    assert_eq!(answer(&either, native, "kcmp", [1, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(answer(&either, native, "kcmp", [0x1f, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(answer(&either, native, "kcmp", [2, 0, 0, 0, 0, 0]), action::ALLOW);
}

#[test]
fn each_architecture_has_its_numbers() {
    let rules = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["socket", "semop"], "action": "SCMP_ACT_ERRNO"}]});
    let filter = compile(&with(&[X86_64, X86, Arch::ScmpArchAarch64], rules.clone())).unwrap();
    for arch in [X86_64, X86, Arch::ScmpArchAarch64] {
        assert_eq!(answer(&filter, arch, "socket", [2; 6]), EPERM);
        assert_eq!(answer(&filter, arch, "bind", [2; 6]), action::ALLOW);
    }
    // The same calls by the other way.
    assert_eq!(answer(&filter, X86, "socketcall", [1, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(answer(&filter, X86, "socketcall", [2, 0, 0, 0, 0, 0]), action::ALLOW);
    assert_eq!(answer(&filter, X86, "ipc", [0x0001_0001, 0, 0, 0, 0, 0]), EPERM);
    // What is not listed is not let through by another's numbers, nor are those of x32.
    assert_eq!(answer(&filter, Arch::ScmpArchRiscv64, "read", [0; 6]), action::KILL_PROCESS);
    assert_eq!(answer(&filter, Arch::ScmpArchX32, "read", [0; 6]), action::KILL_PROCESS);
    let call = |number| Call { architecture: AUDIT_X86_64, number, arguments: [0; 6] };
    assert_eq!(run(&filter.program, call(u32::MAX)).0, action::ALLOW, "a tracer's way to say no call");
    let filter = compile(&with(&[Arch::ScmpArchX32, X86_64], rules)).unwrap();
    assert_eq!(answer(&filter, Arch::ScmpArchX32, "socket", [2; 6]), EPERM);
    assert_eq!(answer(&filter, X86_64, "socket", [2; 6]), EPERM);
    assert_eq!(answer(&filter, X86_64, "read", [2; 6]), action::ALLOW);
}

#[test]
fn calls_that_came_after_the_profile_do_not_exist() {
    let native = Architecture::native().unwrap();
    let call = |number| Call { architecture: native.audit, number, arguments: [0; 6] };
    let rules = |default| {
        compile(&parse(json!({"defaultAction": default,
            "syscalls": [{"names": ["clone3"], "action": "SCMP_ACT_LOG"}]})))
        .unwrap()
    };
    let strict = rules("SCMP_ACT_KILL_PROCESS");
    assert_eq!(run(&strict.program, call(435)).0, action::LOG);
    assert_eq!(run(&strict.program, call(434)).0, action::KILL_PROCESS);
    assert_eq!(run(&strict.program, call(436)).0, ENOSYS);
    assert_eq!(run(&rules("SCMP_ACT_ALLOW").program, call(436)).0, action::ALLOW);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let one = |action: &str, name: &str| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [name], "action": action}]});
    let refusal = |rules: Value| compile(&parse(rules)).unwrap_err();
    assert_eq!(refusal(one("SCMP_ACT_NOTIFY", "mkdirat")), Error::NoListener);
    assert_eq!(refusal(one("SCMP_ACT_NOTIFY", "write")), Error::Notify("write".into()));
    assert_eq!(refusal(one("SCMP_ACT_KILL", "")), Error::NoName);
    assert_eq!(refusal(json!({"defaultAction": "SCMP_ACT_NOTIFY"})), Error::NotifyDefault);
    let errno = |action: &str, errno: u32| json!({"defaultAction": action, "defaultErrnoRet": errno});
    assert_eq!(refusal(errno("SCMP_ACT_ERRNO", 4096)), Error::Errno(4096));
    assert_eq!(refusal(errno("SCMP_ACT_TRACE", 0x7fff_0000)), Error::Errno(0x7fff_0000));
    assert_eq!(refusal(errno("SCMP_ACT_ALLOW", 1)), Error::ErrnoUnused("SCMP_ACT_ALLOW".into()));
    let mut rules = one("SCMP_ACT_ERRNO", "read");
    rules["syscalls"][0]["args"] = json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
    assert_eq!(refusal(rules), Error::Argument(6));
    let mut rules = one("SCMP_ACT_ERRNO", "read");
    rules["listenerMetadata"] = json!("x");
    assert_eq!(refusal(rules), Error::MetadataWithoutListener);
    assert_eq!(
        refusal(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_SHEB"]})),
        Error::Architecture("SCMP_ARCH_SHEB".into())
    );
    let mut args: Vec<_> = (0..2000).map(|n| json!({"index": 0, "value": n, "op": "SCMP_CMP_EQ"})).collect();
    let mut rules = one("SCMP_ACT_ERRNO", "read");
    args.extend((0..5000).map(|n| json!({"index": 1, "value": n, "op": "SCMP_CMP_EQ"})));
    rules["syscalls"][0]["args"] = json!(args);
    assert!(matches!(refusal(rules), Error::TooLong(_)));
}

#[test]
fn flags_are_the_kernels() {
    let rules = |action: &str, path: Option<&str>| {
        compile(&parse(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                      "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "listenerPath": path,
            "syscalls": [{"names": ["mkdirat"], "action": action}],
        })))
        .unwrap()
    };
    assert_eq!(rules("SCMP_ACT_LOG", None).flags, 0b00_0111);
    let notify = rules("SCMP_ACT_NOTIFY", Some("/run/agent"));
    assert_eq!(notify.flags, 0b11_1111);
    assert!(notify.notify && notify.listener_path == Some("/run/agent".into()));
}

#[test]
fn jumps_that_are_too_far_are_made_in_two_steps() {
    // Every other call of three architectures: far jumps between them, and within each.
    let names: Vec<_> = numbers::TABLE.iter().map(|(name, _)| *name).step_by(2).collect();
    let filter = compile(&with(
        &[X86_64, X86, Arch::ScmpArchS390x],
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]}),
    ))
    .unwrap();
    for arch in [X86_64, X86, Arch::ScmpArchS390x] {
        let architecture = Architecture::new(arch).unwrap();
        for (index, (name, _)) in numbers::TABLE.iter().enumerate() {
            let Some(number) = architecture.number(name) else { continue };
            // `umount` and `umount2` are one call somewhere, as are others.
            if numbers::TABLE.iter().filter(|(other, _)| architecture.number(other) == Some(number)).count()
                > 1
            {
                continue;
            }
            let call = Call { architecture: architecture.audit, number, arguments: [0; 6] };
            let result = run(&filter.program, call).0;
            assert_eq!(result == action::ALLOW, index % 2 == 0, "{name}: {result:x}");
        }
    }
}

#[test]
fn somebody_is_asked_about_binding_an_address_of_the_internet() {
    let process::Filter { program, flags } = asking_to_bind().unwrap();
    assert_eq!(flags, sys::seccomp::NEW_LISTENER);
    let filter = Filter { program, flags, notify: true, listener_path: None, listener_metadata: None };
    let native = native().unwrap();
    let bind = |length: u64| answer(&filter, native, "bind", [3, 0, length, 0, 0, 0]);
    let (netlink, ipv4, ipv6) = (12, size_of::<libc::sockaddr_in>(), size_of::<libc::sockaddr_in6>());
    assert_eq!(bind(netlink), action::ALLOW);
    assert_eq!(bind(ipv4 as u64 - 1), action::ALLOW);
    assert_eq!(bind(ipv4 as u64), action::NOTIFY);
    assert_eq!(bind(ipv6 as u64), action::NOTIFY);
    // The kernel looks at the lower half only.
    assert_eq!(bind(1 << 32 | ipv4 as u64), action::NOTIFY);
    let other = Architecture::native().unwrap();
    for (name, _) in numbers::TABLE.iter().filter(|(name, _)| *name != "bind") {
        let Some(number) = other.number(name) else { continue };
        let call = Call { architecture: other.audit, number, arguments: [u64::MAX; 6] };
        assert_eq!(run(&filter.program, call).0, action::ALLOW, "{name}");
    }
}

mod default_profile {
    use super::*;

    fn built(capabilities: u64) -> Filter {
        let process::Filter { program, flags } = default_profile(capabilities).unwrap().remove(0);
        Filter { program, flags, notify: false, listener_path: None, listener_metadata: None }
    }

    /// Names of calls of this architecture that are not simply allowed.
    fn blocked(filter: &Filter) -> Vec<&'static str> {
        let native = Architecture::native().unwrap();
        let mut blocked: Vec<_> = numbers::TABLE.iter().map(|(name, _)| *name).collect();
        blocked.retain(|name| {
            native.number(name).is_some_and(|number| {
                // No socket, no personality and no clone is made by this.
                let call = Call { architecture: native.audit, number, arguments: [u64::MAX; 6] };
                run(&filter.program, call).0 != action::ALLOW
            })
        });
        blocked
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn blocks_what_dockers_does() {
        let expected = "_sysctl acct add_key afs_syscall bpf chroot clock_settime clone clone3 create_module \
            delete_module fanotify_init file_getattr file_setattr finit_module fsconfig fsmount fsopen fspick \
            get_kernel_syms get_mempolicy getpmsg init_module io_uring_enter io_uring_register io_uring_setup ioperm \
            iopl kcmp kexec_file_load kexec_load keyctl listns lookup_dcookie lsm_get_self_attr lsm_list_modules \
            lsm_set_self_attr mbind migrate_pages mount mount_setattr move_mount move_pages nfsservctl \
            open_by_handle_at open_tree open_tree_attr perf_event_open personality pidfd_getfd pivot_root \
            process_madvise putpmsg query_module quotactl quotactl_fd reboot request_key security set_mempolicy \
            set_mempolicy_home_node setdomainname sethostname setns settimeofday socket swapoff swapon sysfs syslog \
            tuxcall umount2 unshare uprobe uselib userfaultfd ustat vhangup vserver";
        let expected: Vec<_> = expected.split_whitespace().collect();
        assert_eq!(blocked(&built(0)), expected);
        let docker = capability::set(&[], &[]).unwrap();
        let with_chroot: Vec<_> = expected.iter().copied().filter(|name| *name != "chroot").collect();
        assert_eq!(blocked(&built(docker)), with_chroot);
        let never = "_sysctl add_key afs_syscall create_module file_getattr file_setattr get_kernel_syms getpmsg \
            io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl listns migrate_pages \
            move_pages nfsservctl open_tree_attr personality pivot_root putpmsg query_module request_key security \
            socket swapoff swapon sysfs tuxcall uprobe uselib userfaultfd ustat vserver";
        assert_eq!(blocked(&built(u64::MAX)), never.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn arguments_decide() {
        let filter = built(capability::set(&[], &[]).unwrap());
        let native = native().unwrap();
        let answer = |name, argument: u64| answer(&filter, native, name, [argument, 0, 0, 0, 0, 0]);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWNS, libc::CLONE_NEWCGROUP] {
            assert_eq!(answer("clone", (flag | libc::SIGCHLD) as u64), EPERM);
        }
        let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
        assert_eq!(answer("clone", thread as u64), action::ALLOW);
        let families: Vec<u64> = (0..100).filter(|family| answer("socket", *family) == EPERM).collect();
        let refused: Vec<u64> = [12, 19, 20, 23, 25, 34, 37, 38, 40].into_iter().chain(46..100).collect();
        assert_eq!(families, refused);
        // The kernel looks at 32 bits of it only.
        assert_eq!(answer("socket", 1 << 32 | 40), EPERM);
        assert_eq!(answer("personality", 0xffff_ffff), action::ALLOW);
        // ADDR_NO_RANDOMIZE.
        assert_eq!(answer("personality", 0x0004_0000), EPERM);
        assert_eq!(answer("clone3", 0), ENOSYS);
        assert_eq!(answer("mount", 0), EPERM);
    }

    #[test]
    fn capabilities_open_calls() {
        let filter = built(u64::MAX);
        for name in ["mount", "clone", "clone3", "setns"] {
            assert_eq!(answer(&filter, native().unwrap(), name, [u64::MAX; 6]), action::ALLOW);
        }
    }

    #[test]
    fn every_number_meets_its_verdict_soon() {
        let filter = built(capability::set(&[], &[]).unwrap());
        let native = Architecture::native().unwrap();
        let mut all = 0;
        for number in 0..512 {
            let call = Call { architecture: native.audit, number, arguments: [0; 6] };
            let (_, taken) = run(&filter.program, call);
            assert!(taken <= 20, "number {number} takes {taken} instructions");
            all += taken;
        }
        // What a start pays for (see the module): 12 for each number.
        assert!(all <= 12 * 512, "{all} instructions");
        assert!(filter.program.len() <= 200 * 8, "{} instructions", filter.program.len() / 8);
    }

    #[test]
    fn relatives_are_ended_here_and_have_their_rules_in_dockers() {
        let call = Call { architecture: X86 as u32, number: 3, arguments: [0; 6] };
        assert_eq!(run(&built(0).program, call).0, action::KILL_PROCESS);
        if native().unwrap() == X86_64 {
            let docker = compile(&docker_profile(0).unwrap()).unwrap();
            assert_eq!(answer(&docker, X86, "read", [0; 6]), action::ALLOW);
            assert_eq!(answer(&docker, X86, "mount", [0; 6]), EPERM);
            assert_eq!(answer(&docker, Arch::ScmpArchX32, "mount", [0; 6]), EPERM);
        }
    }
}

/// The rules read once more, in the simplest way: straight from the text of [`Rules::read`].
fn naive(seccomp: &LinuxSeccomp, arch: Arch, number: u32, arguments: [u64; 6]) -> u32 {
    use oci_spec::runtime::{LinuxSeccompAction as A, LinuxSeccompOperator as O};
    let encode = |action: A, errno: Option<u32>| action.as_u32(errno);
    let default = encode(seccomp.default_action(), seccomp.default_errno_ret());
    let architecture = Architecture::new(arch).unwrap();
    let rules: Vec<_> = seccomp.syscalls().iter().flatten().collect();
    let named = |rule: &oci_spec::runtime::LinuxSyscall| {
        rule.names().iter().any(|name| architecture.number(name) == Some(number))
    };
    let highest =
        rules.iter().flat_map(|rule| rule.names()).filter_map(|name| architecture.number(name)).max();
    if highest.is_some_and(|highest| number > highest)
        && !matches!(seccomp.default_action(), A::ScmpActAllow | A::ScmpActLog | A::ScmpActTrace)
    {
        return ENOSYS;
    }
    let acting: Vec<_> =
        rules.into_iter().filter(|r| named(r) && encode(r.action(), r.errno_ret()) != default).collect();
    if let Some(rule) = acting.iter().find(|rule| rule.args().iter().flatten().next().is_none()) {
        return encode(rule.action(), rule.errno_ret());
    }
    for rule in acting {
        let args = rule.args().as_ref().unwrap();
        let holds = |arg: &oci_spec::runtime::LinuxSeccompArg| {
            let actual = arguments[arg.index()];
            match arg.op() {
                O::ScmpCmpNe => actual != arg.value(),
                O::ScmpCmpLt => actual < arg.value(),
                O::ScmpCmpLe => actual <= arg.value(),
                O::ScmpCmpEq => actual == arg.value(),
                O::ScmpCmpGe => actual >= arg.value(),
                O::ScmpCmpGt => actual > arg.value(),
                O::ScmpCmpMaskedEq => actual & arg.value() == arg.value_two().unwrap_or(0),
            }
        };
        let mut indices: Vec<_> = args.iter().map(|arg| arg.index()).collect();
        indices.sort_unstable();
        indices.dedup();
        let matches =
            if indices.len() < args.len() { args.iter().any(holds) } else { args.iter().all(holds) };
        if matches {
            return encode(rule.action(), rule.errno_ret());
        }
    }
    default
}

/// Numbers that differ in either half, and their neighbours.
fn value() -> impl Strategy<Value = u64> {
    let half =
        prop_oneof![Just(0u64), Just(1), Just(2), Just(0x7fff_ffff), Just(0xffff_fffe), Just(0xffff_ffff)];
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

fn rule() -> impl Strategy<Value = Value> {
    // Few names, so that rules meet; one that no architecture has.
    let name =
        prop::sample::select(vec!["read", "mkdirat", "clone3", "kcmp", "sync_file_range", "no_such_call"]);
    let action = prop::sample::select(vec![
        json!({"action": "SCMP_ACT_ALLOW"}),
        json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 13}),
        json!({"action": "SCMP_ACT_ERRNO"}),
        json!({"action": "SCMP_ACT_KILL_PROCESS"}),
        json!({"action": "SCMP_ACT_LOG"}),
    ]);
    let operator = prop::sample::select(vec!["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]);
    // More often equality with an argument that others ask for, too.
    let operator = prop_oneof![operator, Just("EQ")];
    let index = prop_oneof![0..6usize, Just(0)];
    let arg = (index, value(), value(), operator).prop_map(
        |(index, value, two, op)| json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")}),
    );
    (prop::collection::vec(name, 1..3), action, prop::collection::vec(arg, 0..4)).prop_map(
        |(names, mut rule, args)| {
            rule["names"] = json!(names);
            rule["args"] = json!(args);
            rule
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_program_says_what_the_rules_say(
        rules in prop::collection::vec(rule(), 0..8),
        default in prop::sample::select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_THREAD"]),
        arguments in prop::array::uniform6(value()),
        other in prop::sample::select(vec![Arch::ScmpArchAarch64, Arch::ScmpArchX86, Arch::ScmpArchMipsel64]),
    ) {
        let native = native().unwrap();
        let seccomp = with(&[other], json!({"defaultAction": default, "syscalls": rules}));
        let filter = compile(&seccomp).unwrap();
        for arch in [native, other] {
            let architecture = Architecture::new(arch).unwrap();
            let named = ["read", "mkdirat", "clone3", "kcmp", "sync_file_range"];
            let numbers = named.iter().filter_map(|name| architecture.number(name));
            for number in numbers.flat_map(|n| [n.saturating_sub(1), n, n + 1]) {
                let call = Call { architecture: architecture.audit, number, arguments };
                prop_assert_eq!(
                    run(&filter.program, call).0,
                    naive(&seccomp, arch, number, arguments),
                    "{} {}", arch, number
                );
            }
        }
    }
}
