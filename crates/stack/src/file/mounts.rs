//! `volumes`, `tmpfs` and `volumes_from` of a service: short and long syntax.

use super::keys::{self, Level};
use super::node::{Key, Node, Value};
use super::units;
use super::{Located, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::Tmpfs;

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
    Volume { name: Option<String>, nocopy: bool, subpath: Option<String> },
    /// A host path, possibly relative or starting with `~`.
    Bind { source: String, create: bool },
    /// A tmpfs.
    Tmpfs(Tmpfs),
}

/// One entry of `volumes_from`.
#[derive(Debug)]
pub(crate) struct VolumesFrom {
    /// The service, or the name of its container.
    pub(crate) owner: Located<String>,
    pub(crate) read_only: bool,
}

const DEFAULT_TMPFS_MODE: u32 = 0o1777;

/// Read a whole `volumes` list of a service.
pub(crate) fn volumes(node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<MountFile>> {
    node.list("volumes")?
        .iter()
        .map(|item| match &item.value {
            Value::Map(entries) => long(item, entries, warnings),
            _ => short(item, warnings),
        })
        .collect()
}

/// `[SOURCE:]TARGET[:OPTION[,OPTION…]]`.
fn short(node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<MountFile> {
    let text = node.text("volumes")?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, *target, ""),
        // `TARGET:ro`.
        [target, options] if target.starts_with('/') && !options.starts_with('/') => {
            (None, *target, *options)
        }
        [source, target] => (Some(*source), *target, ""),
        [source, target, options] => (Some(*source), *target, *options),
        _ => {
            return Err(Fault::new(&node.span, format!("`{text}` is not a volume"))
                .hint("write `SOURCE:TARGET` or `SOURCE:TARGET:ro`"));
        }
    };
    let (mut read_only, mut nocopy) = (false, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "nocopy" => nocopy = true,
            // Labels for SELinux, and hints for virtual machines of other systems.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate" => {
                let text = format!(
                    "volume option `{option}` is ignored: no mount goes from the stack's mount namespace to the host's or back"
                );
                warnings.push((node.span.clone(), text));
            }
            _ => {
                return Err(Fault::new(&node.span, format!("unknown volume option `{option}`"))
                    .nearest(option, ["ro", "rw", "nocopy"]));
            }
        }
    }
    let volume =
        |name: Option<&str>| MountFileKind::Volume { name: name.map(str::to_owned), nocopy, subpath: None };
    let kind = match source {
        None => volume(None),
        Some("") => {
            return Err(Fault::new(&node.span, format!("the source of `{text}` is empty")));
        }
        Some(path) if path.starts_with(['.', '/', '~']) => {
            MountFileKind::Bind { source: path.to_owned(), create: true }
        }
        Some(name) => volume(Some(name)),
    };
    Ok(MountFile { span: node.span.clone(), target: absolute(&node.span, target)?, read_only, kind })
}

/// What the long syntax says beside what is mounted where.
struct Details {
    create: bool,
    nocopy: bool,
    subpath: Option<String>,
    tmpfs: Tmpfs,
}

fn long(node: &Node, entries: &[(Key, Node)], warnings: &mut Vec<(Span, String)>) -> Checked<MountFile> {
    let (mut kind, mut source, mut target) = (None, None, None);
    let mut read_only = false;
    let tmpfs = TmpfsOptions::default().tmpfs;
    // The long syntax makes no directory on the host unless it is told to.
    let mut details = Details { create: true, nocopy: false, subpath: None, tmpfs };
    for (key, value) in entries {
        if !keys::MOUNT.admits(key, &key.name, "a volume", warnings)? || value.is_null() {
            continue;
        }
        match key.name.as_str() {
            "type" => kind = Some((value.text("type")?, value.span.clone())),
            "source" => source = Some(value.text("source")?),
            "target" => target = Some(absolute(&value.span, &value.text("target")?)?),
            "read_only" => read_only = value.boolean("read_only")?,
            "bind" => bind_details(value, &mut details, warnings)?,
            "volume" => volume_details(value, &mut details, warnings)?,
            "tmpfs" => tmpfs_details(value, &mut details, warnings)?,
            _ => return Err(Level::unread(key, "a volume")),
        }
    }
    let Some(target) = target else {
        return Err(Fault::new(&node.span, "a volume needs `target`, the path inside"));
    };
    let Some((kind, kind_span)) = kind else {
        return Err(Fault::new(&node.span, "a volume needs `type`").hint("one of `volume`, `bind`, `tmpfs`"));
    };
    let Details { create, nocopy, subpath, tmpfs } = details;
    let kind = match (kind.as_str(), source) {
        ("volume", name) => MountFileKind::Volume { name, nocopy, subpath },
        ("bind", Some(source)) => MountFileKind::Bind { source, create },
        ("bind", None) => return Err(Fault::new(&node.span, "a bind mount needs `source`")),
        ("tmpfs", None) => MountFileKind::Tmpfs(tmpfs),
        ("tmpfs", Some(_)) => {
            return Err(Fault::new(&node.span, "a tmpfs has no `source`"));
        }
        ("image" | "cluster" | "npipe", _) => {
            return Err(Fault::new(&kind_span, format!("volumes of type `{kind}` are not supported"))
                .hint("use `volume`, which takes over what the image has at that place, or `bind`"));
        }
        (other, _) => {
            return Err(Fault::new(&kind_span, format!("`{other}` is not a type of volume"))
                .hint("one of `volume`, `bind`, `tmpfs`")
                .nearest(other, ["volume", "bind", "tmpfs"]));
        }
    };
    Ok(MountFile { span: node.span.clone(), target, read_only, kind })
}

fn bind_details(node: &Node, details: &mut Details, warnings: &mut Vec<(Span, String)>) -> Checked<()> {
    for (key, value) in node.map("bind")? {
        if !keys::MOUNT_BIND.admits(key, &key.name, "`bind`", warnings)? {
            continue;
        }
        match key.name.as_str() {
            "create_host_path" => details.create = value.boolean("create_host_path")?,
            "recursive" => match value.text("recursive")?.as_str() {
                "disabled" => {
                    let text = "`recursive: disabled` of `bind` is ignored: a user namespace cannot leave out what is mounted below a directory of the host";
                    warnings.push((value.span.clone(), text.to_owned()));
                }
                "enabled" | "writable" | "readonly" => {}
                other => {
                    let known = ["enabled", "disabled", "writable", "readonly"];
                    return Err(Fault::new(&value.span, format!("`{other}` is not a value of `recursive`"))
                        .hint("use `enabled` or `disabled`")
                        .nearest(other, known));
                }
            },
            _ => return Err(Level::unread(key, "`bind`")),
        }
    }
    Ok(())
}

fn volume_details(node: &Node, details: &mut Details, warnings: &mut Vec<(Span, String)>) -> Checked<()> {
    for (key, value) in node.map("volume")? {
        if !keys::MOUNT_VOLUME.admits(key, &key.name, "`volume`", warnings)? {
            continue;
        }
        match key.name.as_str() {
            "nocopy" => details.nocopy = value.boolean("nocopy")?,
            "subpath" => {
                let text = value.text("subpath")?;
                let parts: Vec<&str> =
                    text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
                if text.starts_with('/') || parts.contains(&"..") || text.contains('\0') {
                    return Err(Fault::new(
                        &value.span,
                        format!("`{}` is not a path within a volume", text.escape_debug()),
                    )
                    .hint("write a relative path without `..`"));
                }
                details.subpath = Some(parts.join("/")).filter(|path| !path.is_empty());
            }
            _ => return Err(Level::unread(key, "`volume`")),
        }
    }
    Ok(())
}

fn tmpfs_details(node: &Node, details: &mut Details, warnings: &mut Vec<(Span, String)>) -> Checked<()> {
    for (key, value) in node.map("tmpfs")? {
        if !keys::MOUNT_TMPFS.admits(key, &key.name, "`tmpfs`", warnings)? {
            continue;
        }
        match key.name.as_str() {
            "size" => details.tmpfs.size = Some(bytes(value, "size")?).filter(|size| *size > 0),
            "mode" => details.tmpfs.mode = value.mode("mode")?,
            _ => return Err(Level::unread(key, "`tmpfs`")),
        }
    }
    Ok(())
}

/// `tmpfs`: one or several `TARGET[:OPTION[,OPTION…]]`.
pub(crate) fn tmpfs(node: &Node) -> Checked<Vec<MountFile>> {
    node.one_or_more().iter().map(tmpfs_mount).collect()
}

fn tmpfs_mount(node: &Node) -> Checked<MountFile> {
    let text = node.text("tmpfs")?;
    let (target, words) = text.split_once(':').unwrap_or((&text, ""));
    let mut options = TmpfsOptions::default();
    options.read(&node.span, words)?;
    Ok(MountFile {
        span: node.span.clone(),
        target: absolute(&node.span, target)?,
        read_only: options.read_only,
        kind: MountFileKind::Tmpfs(options.tmpfs),
    })
}

/// What the options of mount(8) say about a tmpfs.
pub(super) struct TmpfsOptions {
    pub(super) tmpfs: Tmpfs,
    pub(super) read_only: bool,
}

impl Default for TmpfsOptions {
    fn default() -> Self {
        let tmpfs = Tmpfs { size: None, mode: DEFAULT_TMPFS_MODE, uid: 0, gid: 0, exec: false };
        Self { tmpfs, read_only: false }
    }
}

impl TmpfsOptions {
    /// Reads `OPTION[,OPTION…]`; the last one counts.
    pub(super) fn read(&mut self, span: &Span, words: &str) -> Checked<()> {
        for option in words.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let bad = || Fault::new(span, format!("bad tmpfs option `{option}`"));
            let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX).ok_or_else(bad);
            match option.split_once('=') {
                None if option == "ro" => self.read_only = true,
                None if option == "rw" => self.read_only = false,
                None if option == "exec" => self.tmpfs.exec = true,
                None if option == "noexec" => self.tmpfs.exec = false,
                // What every tmpfs of ours is anyway, or what is of no consequence.
                None if ["nosuid", "nodev", "noatime", "relatime", "async"].contains(&option) => {}
                Some(("size", value)) => self.tmpfs.size = Some(units::size(value).ok_or_else(bad)?),
                Some(("mode", value)) => {
                    let value = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                    self.tmpfs.mode = value.ok_or_else(bad)?;
                }
                Some(("uid", value)) => self.tmpfs.uid = id(value)?,
                Some(("gid", value)) => self.tmpfs.gid = id(value)?,
                _ => {
                    return Err(
                        bad().hint("known: `size=64m`, `mode=1777`, `uid=33`, `gid=33`, `exec`, `ro`")
                    );
                }
            }
        }
        Ok(())
    }
}

/// `SERVICE[:ro]` or `container:NAME[:ro]` items.
pub(crate) fn volumes_from(node: &Node) -> Checked<Vec<VolumesFrom>> {
    let items = node.list("volumes_from")?.iter();
    items
        .map(|item| {
            let text = item.text("volumes_from")?;
            let name = text.strip_prefix("container:").unwrap_or(&text);
            let (name, read_only) = match name.split_once(':') {
                None | Some((_, "rw")) => (name.split(':').next().unwrap_or(name), false),
                Some((name, "ro")) => (name, true),
                Some((_, mode)) => {
                    return Err(Fault::new(&item.span, format!("`{mode}` is neither `ro` nor `rw`"))
                        .hint("write `SERVICE` or `SERVICE:ro`"));
                }
            };
            Ok(VolumesFrom { owner: located(item, name.to_owned()), read_only })
        })
        .collect()
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
