//! `security_opt: seccomp=FILE`: profiles in the notation of Docker and Podman, which is that of the runtime specification
//! with conditions.

use std::path::Path;

use container::capability;
use container::sandbox::Seccomp;
use oci_spec::runtime::LinuxSeccomp;
use serde_json::Value;

use crate::plan::{self, Confinement};
use crate::remote::{Context, RemoteError};

/// Largest profile that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// The filter of a service with these capabilities.
///
/// # Errors
/// A profile that cannot be read, or says what cannot be had.
pub(super) fn filter(confinement: &Confinement, capabilities: u64) -> Result<Seccomp, RemoteError> {
    match &confinement.seccomp {
        plan::Seccomp::Default if confinement.privileged => Ok(Seccomp::Unconfined),
        plan::Seccomp::Default => Ok(Seccomp::Default),
        plan::Seccomp::Unconfined => Ok(Seccomp::Unconfined),
        plan::Seccomp::Profile(path) => {
            let what = || format!("read the seccomp profile {}", path.display());
            Ok(Seccomp::Profile(Box::new(profile(&read(path).context(what)?, capabilities).context(what)?)))
        }
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(LIMIT).read_to_string(&mut text)?;
    Ok(text)
}

/// Leaves out the rules whose conditions do not hold.
fn profile(text: &str, capabilities: u64) -> Result<LinuxSeccomp, RemoteError> {
    let bad = |error: serde_json::Error| RemoteError::message(error.to_string());
    let mut profile: Value = serde_json::from_str(text).map_err(bad)?;
    if let Some(rules) = profile.get_mut("syscalls").and_then(Value::as_array_mut) {
        rules.retain(|rule| applies(rule, capabilities));
        // Once a rule had one name.
        for rule in rules {
            let name = rule.get("name").filter(|_| rule.get("names").is_none()).cloned();
            if let (Some(name), Some(rule)) = (name, rule.as_object_mut()) {
                rule.insert("names".to_owned(), Value::Array(vec![name]));
            }
        }
    }
    serde_json::from_value(profile).map_err(bad)
}

/// Whether a rule is for a process with these capabilities, on this machine.
fn applies(rule: &Value, capabilities: u64) -> bool {
    let words = |condition: &str, kind: &str| -> Vec<String> {
        let list = rule.get(condition).and_then(|condition| condition.get(kind)).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let has = |name: &String| {
        let name = name.strip_prefix("CAP_").unwrap_or(name).to_owned();
        capability::set(&[name], &["ALL".to_owned()]).is_ok_and(|bits| bits & capabilities != 0)
    };
    let here = |name: &String| match name.as_str() {
        "amd64" | "x32" | "x86" => std::env::consts::ARCH == "x86_64",
        "arm64" | "arm" => std::env::consts::ARCH == "aarch64",
        other => other == std::env::consts::ARCH,
    };
    let arches = words("includes", "arches");
    words("includes", "caps").iter().all(has)
        && !words("excludes", "caps").iter().any(has)
        && (arches.is_empty() || arches.iter().any(here))
        && !words("excludes", "arches").iter().any(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_count_where_their_conditions_hold() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"name": "write", "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["breakpoint"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}}
            ]
        }"#;
        let names = |capabilities| -> Vec<String> {
            let profile = profile(text, capabilities).unwrap();
            profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect()
        };
        assert_eq!(names(0), ["read", "write", "clone"]);
        assert_eq!(names(1 << 21), ["read", "write", "mount"]);
        assert!(profile("{}", 0).is_err() && profile("[", 0).is_err());
    }
}
