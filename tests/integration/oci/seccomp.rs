//! Filters of `linux.seccomp`, as the kernel applies them.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

use super::bundle::Bundle;
use crate::harness::{finish, patient};

/// The bundle's process behind these rules.
fn behind(bundle: &Bundle, rules: Value) {
    bundle.configure(|config| config["linux"]["seccomp"] = rules);
}

#[test]
fn rules_decide_by_number_and_argument() {
    let bundle = Bundle::new(
        "kill -0 $$ && echo allowed; kill -10 $$; (mkdir /one); echo $?; (rmdir /one); echo $?; (sync); echo $?",
    );
    behind(
        &bundle,
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["kill", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71,
             "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]},
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["rmdir", "unlinkat"], "action": "SCMP_ACT_TRAP"},
            {"names": ["sync"], "action": "SCMP_ACT_LOG"},
        ]}),
    );
    let ended = bundle.run(&["run", &bundle.id]);
    // SIGSYS is 31.
    assert_eq!(ended.out, "allowed\n159\n159\n0\n", "{ended:?}");
    assert!(ended.err.contains("Protocol error"), "{ended:?}");
}

#[test]
fn an_agent_is_asked() {
    let bundle = Bundle::new("mkdir /made; echo end");
    let listener = patient(UnixListener::bind(bundle.path("agent")).unwrap());
    let agent = bundle.path("agent");
    behind(
        &bundle,
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": agent, "listenerMetadata": "of the test",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]}),
    );
    let run = bundle.spawn(&["run", &bundle.id]);
    let stream = patient(listener.accept().unwrap().0);
    let mut text = vec![0u8; 1 << 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut text)];
    let received = rustix::net::recvmsg(&stream, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let state: Value = serde_json::from_slice(&text[..received.bytes]).unwrap();
    assert_eq!(
        (&state["fds"], &state["metadata"]),
        (&json!(["seccompFd"]), &json!("of the test")),
        "{state}"
    );
    assert_eq!(state["state"]["id"], *bundle.id, "{state}");
    assert!(state["pid"].as_i64().is_some_and(|pid| pid > 0), "{state}");
    let [end] = &fds[..] else { panic!("{fds:?}") };
    let kind = fs::read_link(format!("/proc/self/fd/{}", end.as_raw_fd())).unwrap();
    assert_eq!(kind.to_str(), Some("anon_inode:seccomp notify"));
    // Without an agent such a call does not exist (seccomp_unotify(2)).
    drop((fds, stream));
    let ended = finish(run);
    assert!(ended.out == "end\n" && ended.err.contains("Function not implemented"), "{ended:?}");
}

#[test]
fn rules_that_cannot_be_enforced_are_refused() {
    let bundle = Bundle::new("true");
    let rule = |action: &str, name: &str| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [name], "action": action}]});
    let mut errno = rule("SCMP_ACT_ERRNO", "read");
    errno["syscalls"][0]["errnoRet"] = 70_000.into();
    let mut argument = rule("SCMP_ACT_ERRNO", "read");
    argument["syscalls"][0]["args"] = json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
    let mut operator = argument.clone();
    operator["syscalls"][0]["args"][0]["op"] = "SCMP_CMP_LIKE".into();
    let mut written = rule("SCMP_ACT_NOTIFY", "write");
    written["listenerPath"] = "/nowhere".into();
    let cases = [
        (rule("SCMP_ACT_NOTIFY", "mkdir"), "listenerPath"),
        (written, "write"),
        (rule("SCMP_ACT_FORGIVE", "mkdir"), "SCMP_ACT_FORGIVE"),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}), "default"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PARISC"]}),
            "SCMP_ARCH_PARISC",
        ),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]}), "SCMP_ARCH_Z80"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_X"]}),
            "SECCOMP_FILTER_FLAG_X",
        ),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}), "listenerMetadata"),
        (errno, "70000"),
        (argument, "argument 6"),
        (operator, "SCMP_CMP_LIKE"),
    ];
    for (rules, word) in cases {
        behind(&bundle, rules);
        bundle.refuses(&[word]);
    }
}

/// A program for i386 that ends with status 42, or by a fault when it is not let.
#[cfg(target_arch = "x86_64")]
fn i386_program() -> Vec<u8> {
    const START: u32 = 0x0804_8000;
    // mov eax, 1 (exit); mov ebx, 42; int 0x80; ud2
    let code = [0xb8, 1, 0, 0, 0, 0xbb, 42, 0, 0, 0, 0xcd, 0x80, 0x0f, 0x0b];
    let size = 52 + 32 + code.len() as u32;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, values: &[u16]| file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    // elf(5): executable, i386, version, entry, program headers at 52, no sections.
    half(&mut file, &[2, 3]);
    word(&mut file, &[1, START + 84, 52, 0, 0]);
    half(&mut file, &[52, 32, 1, 0, 0, 0]);
    // One segment, the file itself, to be read and executed.
    word(&mut file, &[1, 0, START, START, size, size, 5, 0x1000]);
    file.extend(code);
    file
}

#[test]
#[cfg(target_arch = "x86_64")]
fn each_architecture_is_asked_for_by_name() {
    use std::os::unix::fs::PermissionsExt;
    let bundle = Bundle::of(&["/bin/i386"]);
    let path = bundle.path("rootfs/bin/i386");
    fs::write(&path, i386_program()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let code = || bundle.run(&["run", &bundle.id]).code;
    bundle.configure(|config| drop(config["linux"].as_object_mut().unwrap().remove("seccomp")));
    if code() != 42 {
        let reason = "this kernel runs no programs for i386";
        return crate::harness::skipped("each_architecture_is_asked_for_by_name", reason);
    }
    behind(&bundle, json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    assert_eq!(code(), 159);
    behind(&bundle, json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"]}));
    assert_eq!(code(), 42);
    // Number 1 is exit there, and write here.
    let exit = json!([{"names": ["exit"], "action": "SCMP_ACT_KILL_PROCESS"}]);
    let rules =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": exit});
    behind(&bundle, rules);
    assert_eq!(code(), 159);
}
