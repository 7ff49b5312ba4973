//! What a service may do beyond the usual or less than it, and which namespaces it has.

use std::path::Path;

use super::keys::{self, Level};
use super::mounts::absolute;
use super::node::{Node, Value};
use super::service::ServiceFile;
use super::sharing::Partner;
use super::{Located, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::Seccomp;

/// One entry of `devices`.
#[derive(Debug)]
pub(crate) struct DeviceFile {
    pub(crate) source: Located<String>,
    pub(crate) target: String,
}

/// Keys of a service that [`read`] knows.
pub(super) const KEYS: [&str; 9] =
    ["cgroup", "devices", "ipc", "oom_score_adj", "pid", "privileged", "security_opt", "userns_mode", "uts"];

/// Reads one of [`KEYS`].
pub(super) fn read(
    service: &mut ServiceFile,
    name: &str,
    node: &Node,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let settled = &mut service.settled;
    match name {
        "privileged" => settled.confinement.privileged = node.boolean(name)?,
        "security_opt" => security_options(service, node, place, warnings)?,
        "devices" => service.devices = devices(node, warnings)?,
        "oom_score_adj" => settled.oom_score_adj = oom_score(node, place, warnings)?,
        "uts" => match node.text(name)?.as_str() {
            "host" => service.network.has_host_name = true,
            "" | "private" => {}
            other => return Err(unknown_mode(node, name, other, "`host`, or leave it out")),
        },
        _ => namespace(service, name, node, place, warnings)?,
    }
    Ok(())
}

/// `ipc`, `pid`, `cgroup` and `userns_mode`: a container has its own, or of the first two another's.
fn namespace(
    service: &mut ServiceFile,
    name: &str,
    node: &Node,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let text = node.text(name)?;
    if let Some(partner) = Partner::read(&text) {
        let partner = Some(located(node, partner));
        match name {
            "pid" => service.sharing.pid = partner,
            "ipc" => service.sharing.ipc = partner,
            _ => {
                let message = format!("{place} cannot share the namespace that `{name}: {text}` names");
                return Err(Fault::new(&node.span, message).label("this one is each service's own").hint(
                    "what services can share: `network_mode`, `pid` and `ipc` with `service:NAME`, and volumes",
                ));
            }
        }
        return Ok(());
    }
    let why = match (name, text.as_str()) {
        ("ipc", "private") => {
            service.sharing.ipc_is_private = true;
            return Ok(());
        }
        ("ipc", "none") => {
            (service.sharing.ipc_is_private, service.settled.sharing.no_shm) = (true, true);
            return Ok(());
        }
        (_, "" | "private") | ("ipc", "shareable") => return Ok(()),
        ("ipc", "host") => "its shared memory is its own: the host's belongs to another user namespace",
        ("pid", "host") => "it sees its own processes only: the host's are out of reach of a user namespace",
        ("cgroup", "host") => "it sees its own cgroup as the root",
        ("userns_mode", "host") => "container root is never the host's root here",
        ("pid" | "ipc", _) => {
            return Err(unknown_mode(node, name, &text, "use `private` or `service:NAME`, or leave it out"));
        }
        _ => return Err(unknown_mode(node, name, &text, "leave it out")),
    };
    warnings.push((node.span.clone(), format!("`{name}: {text}` of {place} is ignored: {why}")));
    Ok(())
}

fn unknown_mode(node: &Node, name: &str, text: &str, hint: &str) -> Box<Fault> {
    Fault::new(&node.span, format!("`{text}` is not a value of `{name}`")).hint(hint)
}

/// Reads `group_add`.
pub(super) fn groups(node: &Node) -> Checked<Vec<String>> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-$".contains(&byte);
    let items = node.list("group_add")?.iter();
    items
        .map(|item| {
            let text = item.text("group_add")?;
            match !text.is_empty() && text.bytes().all(plain) {
                true => Ok(text),
                false => Err(Fault::new(&item.span, format!("`{text}` is not a group"))
                    .hint("write the name of a group of the image, or a number")),
            }
        })
        .collect()
}

/// Whoever is less likely to be ended than this program would have to be ended after it.
fn oom_score(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<Option<i32>> {
    let score = node.integer("oom_score_adj", -1000, 1000)?;
    if score < 0 {
        let message = format!(
            "`oom_score_adj: {score}` of {place} is ignored: to lower it takes rights that this program does not have"
        );
        warnings.push((node.span.clone(), message));
    }
    Ok(i32::try_from(score).ok().filter(|score| *score > 0))
}

fn security_options(
    service: &mut ServiceFile,
    node: &Node,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    for item in node.list("security_opt")? {
        let text = item.text("security_opt")?;
        // Docker takes `:` for `=`, as it was once written.
        let (name, value) = text.split_once(['=', ':']).unwrap_or((&text, ""));
        let confinement = &mut service.settled.confinement;
        match (name, value) {
            ("no-new-privileges", "" | "true") => confinement.new_privileges = false,
            ("no-new-privileges", "false") => confinement.new_privileges = true,
            ("seccomp", "unconfined") => confinement.seccomp = Seccomp::Unconfined,
            ("seccomp", "" | "builtin") => {}
            ("seccomp", path) => service.seccomp_profile = Some(located(item, path.to_owned())),
            ("systempaths", "unconfined") => confinement.unmasked = true,
            ("apparmor" | "label", _) => {
                let message = format!(
                    "`{text}` in `security_opt` of {place} is ignored: a user namespace has no say in the labels of the host's security modules"
                );
                warnings.push((item.span.clone(), message));
            }
            _ => {
                let known = ["no-new-privileges", "seccomp", "systempaths", "apparmor", "label"];
                return Err(Fault::new(&item.span, format!("`{text}` is not a security option"))
                    .hint("use `no-new-privileges:true`, `seccomp=FILE` or `seccomp=unconfined`")
                    .nearest(name, known));
            }
        }
    }
    Ok(())
}

/// `SOURCE[:TARGET[:PERMISSIONS]]`, or a table.
fn devices(node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<DeviceFile>> {
    let mut devices = Vec::new();
    for item in node.list("devices")? {
        let mut parts = (None, None, None);
        if let Value::Map(entries) = &item.value {
            for (key, node) in entries {
                let place = "an entry of `devices`";
                if !keys::DEVICE.admits(key, &key.name, place, warnings)? {
                    continue;
                }
                match key.name.as_str() {
                    "source" => parts.0 = Some(node.text("source")?),
                    "target" => parts.1 = Some(node.text("target")?),
                    "permissions" => parts.2 = Some(node.text("permissions")?),
                    _ => return Err(Level::unread(key, place)),
                }
            }
        } else {
            let text = item.text("devices")?;
            let mut words = text.split(':').map(str::to_owned);
            parts = (words.next(), words.next(), words.next());
            // `/dev/sda:r` is a device and its permissions.
            if parts.2.is_none() && parts.1.as_deref().is_some_and(|word| !word.starts_with('/')) {
                (parts.1, parts.2) = (None, parts.1);
            }
        }
        let (source, target, permissions) = parts;
        let source = source.filter(|source| Path::new(source).is_absolute()).ok_or_else(|| {
            Fault::new(&item.span, "a device needs its path on the host")
                .hint("write a path such as `/dev/fuse`")
        })?;
        let permissions = permissions.unwrap_or_else(|| "rwm".to_owned());
        if permissions.is_empty() || !permissions.bytes().all(|byte| b"rwm".contains(&byte)) {
            return Err(Fault::new(&item.span, format!("`{permissions}` are not permissions for a device"))
                .hint("use `r`, `w` and `m`"));
        }
        if !permissions.contains('r') || !permissions.contains('w') {
            let text = format!(
                "permissions `{permissions}` for `{source}` are ignored: an ordinary user gives no rules for devices, so who may open it may do both"
            );
            warnings.push((item.span.clone(), text));
        }
        devices.push(DeviceFile {
            target: absolute(&item.span, target.as_deref().unwrap_or(&source))?,
            source: located(item, source),
        });
    }
    Ok(devices)
}
