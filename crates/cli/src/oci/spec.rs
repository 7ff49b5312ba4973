//! `spec`: a config.json to begin with. It says what runc's says, so that what is known of that one holds for it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::output::Failure;

/// Capabilities of the process.
const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// Writes it; never over another one.
///
/// # Errors
/// When there is one, or it cannot be written.
pub(super) fn write(bundle: &Path, rootless: bool) -> Result<(), Failure> {
    let path = bundle.join("config.json");
    let operation = &format!("write {}", path.display());
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut config = config(rootless.then_some((uid, gid)));
    // As runc: with cgroup v1 in use, programs look for the host's paths in it.
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        && let Some(namespaces) = config["linux"]["namespaces"].as_array_mut()
    {
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
    }
    // Through the type, whose fields have the order of the specification.
    let config: oci_spec::runtime::Spec =
        serde_json::from_value(config).map_err(Failure::system(operation))?;
    let text = serde_json::to_string_pretty(&config).map_err(Failure::system(operation))?;
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(Failure::system(operation))?;
    file.write_all(format!("{text}\n").as_bytes()).map_err(Failure::system(operation))
}

/// The configuration; for the user and group `own` on the host one that needs no privilege.
fn config(own: Option<(u32, u32)>) -> Value {
    let mut config = json!({
        "ociVersion": container::oci::SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "inception",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces(&["pid", "network", "ipc", "uts", "mount", "cgroup"]),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                "/sys/devices/virtual/powercap",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if let Some((uid, gid)) = own {
        let linux = &mut config["linux"];
        linux["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
        linux["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
        // The network stays the host's, because an ordinary user cannot connect another one to anything.
        linux["namespaces"] = namespaces(&["pid", "ipc", "uts", "mount", "cgroup", "user"]);
        // Without limits there is nothing that a user without a cgroup could not have.
        if let Some(linux) = linux.as_object_mut() {
            linux.remove("resources");
        }
        // The group tty has no number in there, and a sysfs of its own belongs to a network of its own.
        config["mounts"][2] = mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        );
        config["mounts"][5] = mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "rro"]);
        if let Some(mounts) = config["mounts"].as_array_mut() {
            // It comes with /sys, read-only as that is.
            mounts.pop();
        }
    }
    config
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

fn namespaces(kinds: &[&str]) -> Value {
    kinds.iter().map(|kind| json!({"type": kind})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Spec;

    #[test]
    fn both_are_what_the_specification_calls_a_configuration() {
        for own in [None, Some((1000, 100))] {
            let spec: Spec = serde_json::from_value(config(own)).unwrap();
            let linux = spec.linux().as_ref().unwrap();
            assert_eq!(linux.uid_mappings().is_some(), own.is_some());
            assert_eq!(linux.resources().is_none(), own.is_some());
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), false).unwrap();
        assert!(write(directory.path(), true).is_err());
    }
}
