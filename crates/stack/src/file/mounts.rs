//! `volumes` and `tmpfs` of a service: short and long syntax.

use super::node::{Key, Node, Value, unknown_key};
use super::units;
use crate::diagnostic::{Checked, Fault, Span};

/// One mount, its names not yet looked up.
#[derive(Debug, Clone)]
pub(crate) struct MountFile {
    pub(crate) span: Span,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    pub(crate) kind: MountFileKind,
}

#[derive(Debug, Clone)]
pub(crate) enum MountFileKind {
    /// A volume; without a name it is the service's own.
    Volume(Option<String>),
    /// A host path, possibly relative or starting with `~`.
    Bind { source: String, create: bool },
    /// A tmpfs.
    Tmpfs { size: Option<u64>, mode: u32 },
}

const LONG: &[&str] = &["type", "source", "target", "read_only", "bind", "volume", "tmpfs", "consistency"];
const DEFAULT_TMPFS_MODE: u32 = 0o1777;

/// Read a whole `volumes` list of a service.
pub(crate) fn volumes(node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<MountFile>> {
    node.list("volumes")?
        .iter()
        .map(|item| match &item.value {
            Value::Map(entries) => long(item, entries, warnings),
            _ => short(item),
        })
        .collect()
}

/// `[SOURCE:]TARGET[:OPTION[,OPTION…]]`.
fn short(node: &Node) -> Checked<MountFile> {
    let text = node.text("volumes")?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] => (Some(*source), *target, ""),
        [source, target, options] => (Some(*source), *target, *options),
        _ => {
            return Err(Fault::new(&node.span, format!("`{text}` is not a volume"))
                .hint("write `SOURCE:TARGET` or `SOURCE:TARGET:ro`"));
        }
    };
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            // Labels for SELinux, and hints for virtual machines of other systems.
            "rw" | "z" | "Z" | "nocopy" | "cached" | "delegated" | "consistent" => {}
            _ => {
                return Err(Fault::new(&node.span, format!("unknown volume option `{option}`"))
                    .nearest(option, ["ro", "rw"]));
            }
        }
    }
    let kind = match source {
        None => MountFileKind::Volume(None),
        Some("") => {
            return Err(Fault::new(&node.span, format!("the source of `{text}` is empty")));
        }
        Some(path) if path.starts_with(['.', '/', '~']) => {
            MountFileKind::Bind { source: path.to_owned(), create: true }
        }
        Some(name) => MountFileKind::Volume(Some(name.to_owned())),
    };
    Ok(MountFile { span: node.span.clone(), target: absolute(&node.span, target)?, read_only, kind })
}

fn long(node: &Node, entries: &[(Key, Node)], warnings: &mut Vec<(Span, String)>) -> Checked<MountFile> {
    let mut kind = None;
    let mut source = None;
    let mut target = None;
    let mut read_only = false;
    let mut create = true;
    let mut size = None;
    let mut mode = DEFAULT_TMPFS_MODE;
    for (key, value) in entries {
        match key.name.as_str() {
            "type" => kind = Some((value.text("type")?, value.span.clone())),
            "source" => source = Some(value.text("source")?),
            "target" => target = Some(absolute(&value.span, &value.text("target")?)?),
            "read_only" => read_only = value.boolean("read_only")?,
            "consistency" => {}
            "bind" => {
                for (key, value) in value.map("bind")? {
                    match key.name.as_str() {
                        "create_host_path" => create = value.boolean("create_host_path")?,
                        "selinux" => {}
                        "propagation" | "recursive" => warnings.push(ignored(key, "bind")),
                        _ => {
                            let known = ["create_host_path", "propagation", "recursive", "selinux"];
                            return Err(unknown_key(key, "`bind`", known));
                        }
                    }
                }
            }
            "volume" => {
                for (key, _) in value.map("volume")? {
                    match key.name.as_str() {
                        "nocopy" | "subpath" | "labels" => warnings.push(ignored(key, "volume")),
                        _ => {
                            return Err(unknown_key(key, "`volume`", ["nocopy", "subpath", "labels"]));
                        }
                    }
                }
            }
            "tmpfs" => {
                for (key, value) in value.map("tmpfs")? {
                    match key.name.as_str() {
                        "size" => size = Some(bytes(value, "size")?),
                        "mode" => mode = value.mode("mode")?,
                        _ => return Err(unknown_key(key, "`tmpfs`", ["size", "mode"])),
                    }
                }
            }
            _ => return Err(unknown_key(key, "a volume", LONG.iter().copied())),
        }
    }
    let Some(target) = target else {
        return Err(Fault::new(&node.span, "a volume needs `target`, the path inside"));
    };
    let Some((kind, kind_span)) = kind else {
        return Err(Fault::new(&node.span, "a volume needs `type`").hint("one of `volume`, `bind`, `tmpfs`"));
    };
    let kind = match (kind.as_str(), source) {
        ("volume", source) => MountFileKind::Volume(source),
        ("bind", Some(source)) => MountFileKind::Bind { source, create },
        ("bind", None) => return Err(Fault::new(&node.span, "a bind mount needs `source`")),
        ("tmpfs", None) => MountFileKind::Tmpfs { size, mode },
        ("tmpfs", Some(_)) => {
            return Err(Fault::new(&node.span, "a tmpfs has no `source`"));
        }
        (other, _) => {
            return Err(Fault::new(&kind_span, format!("`{other}` is not a type of volume"))
                .hint("one of `volume`, `bind`, `tmpfs`")
                .nearest(other, ["volume", "bind", "tmpfs"]));
        }
    };
    Ok(MountFile { span: node.span.clone(), target, read_only, kind })
}

/// `tmpfs`: one or several `TARGET[:OPTION[,OPTION…]]`.
pub(crate) fn tmpfs(node: &Node) -> Checked<Vec<MountFile>> {
    let one = std::slice::from_ref(node);
    let items = match &node.value {
        Value::List(items) => items.as_slice(),
        _ => one,
    };
    items.iter().map(tmpfs_mount).collect()
}

fn tmpfs_mount(node: &Node) -> Checked<MountFile> {
    let text = node.text("tmpfs")?;
    let (target, options) = text.split_once(':').unwrap_or((&text, ""));
    let mut read_only = false;
    let mut size = None;
    let mut mode = DEFAULT_TMPFS_MODE;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let bad = || Fault::new(&node.span, format!("bad tmpfs option `{option}`"));
        match option.split_once('=') {
            None if option == "ro" => read_only = true,
            // What every tmpfs of ours is anyway, or what is of no consequence.
            None if ["rw", "nosuid", "nodev", "noexec", "exec", "noatime"].contains(&option) => {}
            Some(("size", value)) => size = Some(units::size(value).ok_or_else(bad)?),
            Some(("mode", value)) => {
                let value = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                mode = value.ok_or_else(bad)?;
            }
            _ => return Err(bad().hint("known: `size=64m`, `mode=1777`, `ro`")),
        }
    }
    Ok(MountFile {
        span: node.span.clone(),
        target: absolute(&node.span, target)?,
        read_only,
        kind: MountFileKind::Tmpfs { size, mode },
    })
}

/// Bytes of a number or of a text such as `64m`.
pub(crate) fn bytes(node: &Node, what: &str) -> Checked<u64> {
    let text = node.text(what)?;
    units::size(&text.replace('_', "")).ok_or_else(|| {
        Fault::new(&node.span, format!("`{text}` is not a size"))
            .hint("write a number of bytes, or a number with a unit: `64m`, `1.5g`")
    })
}

/// A normal absolute path: it is used inside a container, where `..` has no business.
pub(crate) fn absolute(span: &Span, path: &str) -> Checked<String> {
    if !path.starts_with('/') {
        return Err(Fault::new(span, format!("`{path}` is not an absolute path inside the service")));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") || path.contains('\0') {
        return Err(Fault::new(span, format!("`{}` must not contain `..`", path.replace('\0', "\\0"))));
    }
    if parts.is_empty() {
        return Err(Fault::new(span, "nothing can be mounted over `/`"));
    }
    Ok(format!("/{}", parts.join("/")))
}

pub(crate) fn ignored(key: &Key, place: &str) -> (Span, String) {
    (key.span.clone(), format!("`{}` of {place} is not supported yet and is ignored", key.name))
}
