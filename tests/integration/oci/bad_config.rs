//! Bad configurations: each is refused in one line that names the field, and leaves nothing.

use std::fs;

use serde_json::{Value, json};

use super::bundle::{Bundle, can_pause};

/// Sets what a path of keys and numbers leads to; `null` removes it.
fn set(config: &mut Value, path: &str, value: &Value) {
    let (parents, last) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at = config;
    for word in parents.split('/').filter(|word| !word.is_empty()) {
        at = match word.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[word],
        };
    }
    match (last.parse::<usize>(), value) {
        (Ok(index), _) => at[index] = value.clone(),
        (Err(_), Value::Null) => drop(at.as_object_mut().unwrap().remove(last)),
        (Err(_), _) => at[last] = value.clone(),
    }
}

#[test]
fn no_configuration() {
    let bundle = Bundle::new("true");
    for text in ["", "{", "[]", "null", "\"x\"", "{}", "{\"ociVersion\": \"1.0.2\"}", "\u{0}"] {
        fs::write(bundle.path("config.json"), text).unwrap();
        bundle.refuses(&["config.json"]);
    }
    // Nesting without end must not end us.
    fs::write(bundle.path("config.json"), "[".repeat(1 << 20)).unwrap();
    bundle.refuses(&["config.json"]);
    fs::remove_file(bundle.path("config.json")).unwrap();
    bundle.refuses(&["config.json", "No such file or directory"]);
    fs::create_dir(bundle.path("config.json")).unwrap();
    bundle.refuses(&["config.json"]);
    bundle.fails(&["create", "--bundle", "/no/such/bundle", "x"], &["/no/such/bundle"]);
}

#[test]
fn every_field_may_be_wrong() {
    let bundle = Bundle::new("exec sleep 1000");
    let good = bundle.config();
    // Where there is no cgroup, any limit is one too many.
    let limit = |name| if can_pause() { name } else { "limit" };
    let long = "x".repeat(100_000);
    // Where, what, and a word that the message must have.
    let cases = [
        ("ociVersion", Value::Null, "ociVersion"),
        ("ociVersion", json!("2.0.0"), "ociVersion"),
        ("ociVersion", json!("new"), "ociVersion"),
        ("ociVersion", json!(1), "config.json"),
        ("process", json!([]), "config.json"),
        ("process/args", json!([]), "process.args"),
        ("process/args", json!("sh"), "config.json"),
        ("process/args", json!([7]), "config.json"),
        ("process/args", json!(["a\u{0}b"]), "process.args"),
        ("process/cwd", json!("relative"), "process.cwd"),
        ("process/cwd", json!(""), "process.cwd"),
        ("process/env", json!(["A=\u{0}"]), "process.env"),
        ("process/user", json!({"uid": -1, "gid": 0}), "config.json"),
        ("process/user", json!({"uid": 0, "gid": 4_294_967_296u64}), "config.json"),
        ("process/rlimits", json!([{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]), "config.json"),
        ("process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]), "process.rlimits"),
        (
            "process/rlimits",
            json!([{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}, {"type": "RLIMIT_CORE", "soft": 1, "hard": 1}]),
            "process.rlimits",
        ),
        ("process/capabilities/bounding", json!("CAP_KILL"), "config.json"),
        ("process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        ("process/oomScoreAdj", json!(-2000), "process.oomScoreAdj"),
        ("process/scheduler", json!({"policy": "SCHED_NONE"}), "config.json"),
        ("process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 9}), "process.ioPriority"),
        ("process/apparmorProfile", json!("no-such-profile"), "process.apparmorProfile"),
        ("process/selinuxLabel", json!("no:such:label"), "process.selinuxLabel"),
        ("linux/mountLabel", json!("no:such:label"), "linux.mountLabel"),
        ("process/terminal", json!("yes"), "config.json"),
        ("process/execCPUAffinity", json!({"initial": "0-"}), "execCPUAffinity"),
        ("root", Value::Null, "root"),
        ("root/path", json!("no/such/root"), "no/such/root"),
        ("root/path", json!("config.json"), "config.json"),
        ("root/path", json!(""), "root.path"),
        ("hostname", json!(long), "host name"),
        ("domainname", json!(long), "domain name"),
        ("mounts/0/destination", json!(""), "mounts[0]"),
        ("mounts/0/destination", json!("/a\u{0}b"), "zero byte"),
        ("mounts/0", json!({"destination": "/x", "type": "nonsensefs", "source": "x"}), "nonsensefs"),
        ("mounts/0", json!({"destination": "/x", "source": "/no/such", "options": ["bind"]}), "/no/such"),
        ("mounts/0", json!({"destination": "/x", "type": "tmpfs", "options": ["nonsense=1"]}), "/x"),
        ("mounts/0", json!({"destination": "/x", "type": "tmpfs", "options": [long.as_str()]}), "tmpfs"),
        ("linux/namespaces", json!([{"type": "nonsense"}]), "config.json"),
        ("linux/namespaces", json!([{"type": "mount"}, {"type": "mount"}]), "linux.namespaces"),
        ("linux/namespaces/0/path", json!("relative"), "linux.namespaces"),
        ("linux/namespaces/0/path", json!("/no/such"), "/no/such"),
        ("linux/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 0}]), "linux.uidMappings"),
        (
            "linux/uidMappings",
            json!([{"containerID": 4_294_967_295u32, "hostID": 0, "size": 5}]),
            "linux.uidMappings",
        ),
        ("linux/devices", json!([{"path": "/dev/x", "type": "q", "major": 1, "minor": 1}]), "config.json"),
        ("linux/devices", json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 1}]), "linux.devices"),
        ("linux/devices", json!([{"path": "/dev/x", "type": "c", "major": -7, "minor": 1}]), "linux.devices"),
        ("linux/sysctl", json!({"kernel.panic": "1"}), "kernel.panic"),
        ("linux/sysctl", json!({"net/../kernel/panic": "1"}), "linux.sysctl"),
        ("linux/sysctl", json!({"../../etc/passwd": "x"}), "linux.sysctl"),
        ("linux/rootfsPropagation", json!("nonsense"), "linux.rootfsPropagation"),
        ("linux/maskedPaths", json!(["relative"]), "linux.maskedPaths"),
        ("linux/readonlyPaths", json!(["relative"]), "linux.readonlyPaths"),
        ("linux/seccomp", json!({"defaultAction": "SCMP_ACT_NONSENSE"}), "config.json"),
        ("linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp"),
        (
            "linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NONE"]}),
            "config.json",
        ),
        (
            "linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]},
            ]}),
            "linux.seccomp",
        ),
        ("linux/personality", json!({"domain": "NONSENSE"}), "config.json"),
        ("linux/timeOffsets", json!({"boottime": {"secs": 1}}), "linux.timeOffsets"),
        ("linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        ("linux/memoryPolicy", json!({"mode": "MPOL_NONSENSE"}), "config.json"),
        ("linux/cgroupsPath", json!("../../escape"), "cgroup"),
        ("linux/resources", json!({"memory": {"limit": "much"}}), "config.json"),
        ("linux/resources", json!({"unified": {"../escape": "1"}}), "escape"),
        ("linux/resources", json!({"unified": {"cgroup.procs": "1"}}), "cgroup.procs"),
        ("linux/resources", json!({"cpu": {"period": 1}}), limit("cpu")),
        ("linux/resources", json!({"network": {"classID": 7}}), "classID"),
        ("hooks", json!({"prestart": [{"path": "relative"}]}), "hooks.prestart"),
        ("hooks", json!({"createRuntime": [{"path": "/bin/true", "timeout": 0}]}), "hooks.createRuntime"),
        ("hooks", json!({"createRuntime": [{"path": "/no/such/hook"}]}), "/no/such/hook"),
        ("annotations", json!({"": "x"}), "annotations"),
        ("annotations", json!({"key": 1}), "config.json"),
    ];
    let mut wrong = Vec::new();
    for (path, value, word) in cases {
        let mut config = good.clone();
        set(&mut config, path, &value);
        fs::write(bundle.path("config.json"), config.to_string()).unwrap();
        fs::remove_file(bundle.path("log")).ok();
        let ended = bundle.create_with(&[]);
        if let Some(missing) = bundle.misses(&ended, 1, &[word]) {
            let value: String = value.to_string().chars().take(200).collect();
            wrong.push(format!("{path} = {value}: {}", missing.chars().take(1000).collect::<String>()));
            bundle.run(&["delete", "--force", &bundle.id]).ok();
        }
        bundle.nothing_left();
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
    fs::write(bundle.path("config.json"), good.to_string()).unwrap();
    bundle.create();
}
