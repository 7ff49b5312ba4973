//! What a service's process gets: user, limits, capabilities, signals, restarts.

use std::collections::BTreeMap;

use container::landlock::Landlock;

use super::mounts;
use super::node::{Node, Value, unknown_key};
use super::units;
use crate::diagnostic::{Checked, Fault, nearest};
use crate::plan::RestartPolicy;

const CAPABILITIES: &[&str] = &[
    "ALL",
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// `getrlimit(2)`, without `RLIMIT_`.
const RLIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

const SIGNALS: &[&str] = &[
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

pub(super) fn restart(node: &Node) -> Checked<RestartPolicy> {
    if matches!(node.value, Value::Bool(false)) {
        return Ok(RestartPolicy::No);
    }
    let text = node.text("restart")?;
    let (policy, times) = match text.split_once(':') {
        Some((policy, times)) => (policy, Some(times)),
        None => (text.as_str(), None),
    };
    match (policy, times.map(str::parse)) {
        ("no", None) => Ok(RestartPolicy::No),
        ("always", None) => Ok(RestartPolicy::Always),
        ("unless-stopped", None) => Ok(RestartPolicy::UnlessStopped),
        ("on-failure", None) => Ok(RestartPolicy::OnFailure(None)),
        ("on-failure", Some(Ok(times))) => Ok(RestartPolicy::OnFailure(Some(times))),
        _ => Err(Fault::new(&node.span, format!("`{text}` is not a restart policy"))
            .hint("use `no`, `on-failure`, `on-failure:5`, `always` or `unless-stopped`")
            .nearest(&text, ["no", "on-failure", "always", "unless-stopped"])),
    }
}

/// `USER[:GROUP]`; nothing is the image's own. Where both are asked for and one is left empty, as a variable that is not
/// set leaves it, Docker takes root for the user, and the user's own group.
pub(super) fn user(node: &Node) -> Checked<Option<String>> {
    let written = node.text("user")?;
    let text = match written.split_once(':') {
        Some((user, group)) => {
            let user = if user.is_empty() { "0" } else { user };
            let group = if group.is_empty() { String::new() } else { format!(":{group}") };
            format!("{user}{group}")
        }
        None => written.clone(),
    };
    if text.is_empty() {
        return Ok(None);
    }
    let parts: Vec<&str> = text.split(':').collect();
    let good = |part: &&str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-$".contains(&byte);
        !part.is_empty() && part.bytes().all(plain)
    };
    if parts.len() <= 2 && parts.iter().all(good) {
        return Ok(Some(text));
    }
    Err(Fault::new(&node.span, format!("`{written}` is not a user"))
        .hint("write a name or number, with a group after a colon if needed: `www-data:www-data`"))
}

pub(super) fn working_directory(node: &Node) -> Checked<String> {
    let text = node.text("working_dir")?;
    match text.as_str() {
        "/" => Ok(text),
        _ => mounts::absolute(&node.span, &text),
    }
}

/// Which files a service can reach.
pub(super) fn landlock(node: &Node, place: &str) -> Checked<Landlock> {
    let mut landlock = Landlock::default();
    for (key, node) in node.map("landlock")? {
        let paths = match key.name.as_str() {
            "read" => &mut landlock.read,
            "write" => &mut landlock.write,
            _ => return Err(unknown_key(key, &format!("`landlock` of {place}"), ["read", "write"])),
        };
        for item in node.list("landlock")? {
            let path = item.text("landlock")?;
            let root = path == "/";
            paths.push(if root { path } else { mounts::absolute(&item.span, &path)? });
        }
    }
    if landlock.read.is_empty() {
        return Err(Fault::new(
            &node.span,
            "`landlock` without a path in `read` leaves no program to execute",
        )
        .hint("`read = [\"/\"]` lets all be read and executed, and nothing be written"));
    }
    Ok(landlock)
}

pub(super) fn host_name(node: &Node, what: &str) -> Checked<String> {
    let text = node.text(what)?;
    // The kernel's limit for host names is 64 bytes, that of a DNS label 63.
    if text.len() > 63 || !is_domain(&text) {
        return Err(Fault::new(&node.span, format!("`{text}` cannot be a host name"))
            .hint("use letters, digits, `-`, `_` and `.`, 63 at most"));
    }
    Ok(text)
}

/// Whether a text can be a name of the DNS.
pub(super) fn is_domain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.len() <= 253 && !text.starts_with(['-', '.']) && text.bytes().all(plain)
}

pub(super) fn text_map(node: &Node, what: &str) -> Checked<BTreeMap<String, String>> {
    let pairs = node.pairs(what)?;
    let pairs = pairs.into_iter();
    Ok(pairs.map(|(key, value)| (key.name, value.unwrap_or_default())).collect())
}

pub(super) fn ulimits(node: &Node) -> Checked<BTreeMap<String, (u64, u64)>> {
    let limit = |node: &Node, what: &str| -> Checked<u64> {
        // -1 is "unlimited".
        let value = node.integer(what, -1, i64::MAX)?;
        Ok(u64::try_from(value).unwrap_or(u64::MAX))
    };
    let mut limits = BTreeMap::new();
    for (key, node) in node.map("ulimits")? {
        if !RLIMITS.contains(&key.name.as_str()) {
            return Err(Fault::new(&key.span, format!("`{}` is not a resource limit", key.name))
                .hint("the names are those of getrlimit(2), such as `nofile`")
                .nearest(&key.name, RLIMITS.iter().copied()));
        }
        let pair = match &node.value {
            Value::Map(entries) => {
                let mut soft = None;
                let mut hard = None;
                for (key, node) in entries {
                    match key.name.as_str() {
                        "soft" => soft = Some(limit(node, "soft")?),
                        "hard" => hard = Some(limit(node, "hard")?),
                        _ => return Err(unknown_key(key, "`ulimits`", ["soft", "hard"])),
                    }
                }
                match (soft, hard) {
                    (Some(soft), Some(hard)) => (soft, hard),
                    _ => {
                        let message = format!("`{}` needs `soft` and `hard`", key.name);
                        return Err(Fault::new(&node.span, message));
                    }
                }
            }
            _ => {
                let both = limit(node, &key.name)?;
                (both, both)
            }
        };
        if pair.0 > pair.1 {
            return Err(Fault::new(&node.span, "the soft limit is above the hard limit"));
        }
        limits.insert(key.name.clone(), pair);
    }
    Ok(limits)
}

pub(super) fn capabilities(node: &Node, what: &str) -> Checked<Vec<String>> {
    node.list(what)?
        .iter()
        .map(|item| {
            let text = item.text(what)?;
            let upper = text.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if !CAPABILITIES.contains(&name) {
                return Err(Fault::new(&item.span, format!("`{text}` is not a capability"))
                    .hint("see capabilities(7) for the names")
                    .nearest(name, CAPABILITIES.iter().copied()));
            }
            Ok(name.to_owned())
        })
        .collect()
}

pub(super) fn signal(node: &Node) -> Checked<String> {
    let text = node.text("stop_signal")?;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if SIGNALS.contains(&name) || name.starts_with("RTMIN") || name.starts_with("RTMAX") {
        return Ok(format!("SIG{name}"));
    }
    if name.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number)) {
        return Ok(name.to_owned());
    }
    let mut fault = Fault::new(&node.span, format!("`{text}` is not a signal"))
        .hint("write a name or number of signal(7), such as `SIGQUIT`");
    if let Some(found) = nearest(name, SIGNALS.iter().copied()) {
        fault = fault.hint(format!("did you mean `SIG{found}`?"));
    }
    Err(fault)
}

/// A duration in seconds.
pub(super) fn seconds(node: &Node, what: &str) -> Checked<f64> {
    let text = node.text(what)?;
    units::duration(&text).ok_or_else(|| {
        Fault::new(&node.span, format!("`{what}` is not a duration"))
            .hint("write a number with a unit: `10s`, `1m30s`, `500ms`")
    })
}

pub(super) fn pids(node: &Node, what: &str) -> Checked<Option<u64>> {
    // 0 and -1 are "unlimited".
    let value = node.integer(what, -1, i64::MAX)?;
    Ok(u64::try_from(value).ok().filter(|pids| *pids > 0))
}
