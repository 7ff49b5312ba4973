//! `features`: what this runtime can do, as `features.md` of the specification has it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::output::{Failure, json as print_json};

/// Lists of `config.json` whose programs are called.
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
/// Kinds of namespaces.
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];
/// What a filter may do with a call.
const SECCOMP_ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
/// How it may compare arguments.
const SECCOMP_OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];
/// Flags with which it may be loaded.
const SECCOMP_FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];
/// Policies and flags of `linux.memoryPolicy`.
const MEMORY_MODES: [&str; 7] = [
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];
const MEMORY_FLAGS: [&str; 3] = ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];

/// Prints them.
///
/// # Errors
/// When nobody reads them.
pub(super) fn show() -> Result<(), Failure> {
    print_json(&features())
}

fn features() -> Value {
    let yes = json!({"enabled": true});
    let no = json!({"enabled": false});
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": container::oci::SPEC_VERSION,
        "hooks": HOOKS,
        "mountOptions": container::oci::mount_options(),
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": container::capability::NAMES.iter().map(|name| format!("CAP_{name}")).collect::<Vec<_>>(),
            "cgroup": {"v1": false, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": SECCOMP_ACTIONS,
                "operators": SECCOMP_OPERATORS,
                "archs": container::seccomp::architectures(),
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": SECCOMP_FLAGS,
            },
            "apparmor": yes,
            "selinux": yes,
            "intelRdt": no,
            "memoryPolicy": {"modes": MEMORY_MODES, "flags": MEMORY_FLAGS},
            "mountExtensions": {"idmap": yes},
            "netDevices": yes,
        },
        "annotations": BTreeMap::from([("org.inception-run.oci.version", env!("CARGO_PKG_VERSION"))]),
        "potentiallyUnsafeConfigAnnotations": Vec::<String>::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_what_the_specification_calls_features() {
        let features: oci_spec::runtime::Features = serde_json::from_value(features()).unwrap();
        assert_eq!(features.hooks().as_ref().map(Vec::len), Some(HOOKS.len()));
    }
}
