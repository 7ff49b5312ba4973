//! A volume of the top level.

use super::keys::{self, Level};
use super::mounts::TmpfsOptions;
use super::node::{Key, Node, Value};
use super::{Located, check_name_text, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::{Scope, Tmpfs};

/// A volume of the top level.
#[derive(Debug)]
pub(crate) struct VolumeFile {
    pub(crate) key: Key,
    /// Its name among the volumes of all stacks, if it is one of those.
    pub(crate) name: Option<Located<String>>,
    pub(crate) scope: Scope,
    /// What it is instead of a directory of ours.
    pub(crate) device: Option<VolumeDevice>,
    /// Nobody writes to it.
    pub(crate) read_only: bool,
}

/// What the options of the driver `local` make of a volume.
#[derive(Debug)]
pub(crate) enum VolumeDevice {
    /// `type: none, o: bind, device: PATH`: a directory of the host.
    Directory(Located<String>),
    /// `type: tmpfs`.
    Tmpfs(Tmpfs),
}

/// Reads one volume.
pub(super) fn parse(key: &Key, node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<VolumeFile> {
    let place = format!("volume `{}`", key.name);
    let mut volume =
        VolumeFile { key: key.clone(), name: None, scope: Scope::Stack, device: None, read_only: false };
    let mut outside = None;
    for (key, node) in node.map(&key.name)? {
        if !keys::VOLUME.admits(key, &key.name, &place, warnings)? || node.is_null() {
            continue;
        }
        match key.name.as_str() {
            "driver" => {
                let driver = node.text("driver")?;
                if driver != "local" && !driver.is_empty() {
                    return Err(Fault::new(&node.span, format!("volume driver `{driver}` is not supported"))
                        .hint("leave `driver` out: a volume is a directory of this machine"));
                }
            }
            "driver_opts" => options(node, &place, &mut volume, warnings)?,
            "external" => outside = external(key, node, &mut volume)?,
            "name" => volume.name = Some(located(node, node.text("name")?)),
            _ => return Err(Level::unread(key, &place)),
        }
    }
    if volume.name.is_some() {
        volume.scope = Scope::Named;
    }
    if let Some(external) = outside {
        volume.scope = Scope::External;
        if volume.device.is_some() {
            return Err(Fault::new(
                &external,
                format!("{place} is made elsewhere, and cannot have `driver_opts`"),
            )
            .hint("leave one of the two out"));
        }
        volume.name.get_or_insert_with(|| Located { span: key.span.clone(), value: key.name.clone() });
    }
    if let Some(name) = &volume.name {
        check_name_text(&name.span, &name.value, "volume")?;
    }
    Ok(volume)
}

/// `true`, `false`, or as it was once written `{ name: NAME }`. Where it says so, if it is.
fn external(key: &Key, node: &Node, volume: &mut VolumeFile) -> Checked<Option<Span>> {
    if let Value::Map(entries) = &node.value {
        for (key, node) in entries {
            match key.name.as_str() {
                "name" => volume.name = Some(located(node, node.text("name")?)),
                _ => return Err(super::node::unknown_key(key, "`external`", ["name"])),
            }
        }
        return Ok(Some(key.span.clone()));
    }
    Ok(node.boolean("external")?.then(|| key.span.clone()))
}

fn options(
    node: &Node,
    place: &str,
    volume: &mut VolumeFile,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let entries = node.map("driver_opts")?;
    if entries.is_empty() {
        return Ok(());
    }
    let (mut kind, mut flags, mut device) = (None, None, None);
    for (key, node) in entries {
        if !keys::DRIVER_OPTIONS.admits(key, &key.name, place, warnings)? {
            continue;
        }
        let text = located(node, node.text(&key.name)?);
        match key.name.as_str() {
            "type" => kind = Some(text),
            "o" => flags = Some(text),
            "device" => device = Some(text),
            _ => return Err(Level::unread(key, place)),
        }
    }
    let flags_text = flags.as_ref().map_or("", |flags| flags.value.as_str());
    let has = |wanted: &[&str]| flags_text.split(',').any(|flag| wanted.contains(&flag.trim()));
    volume.read_only = has(&["ro"]);
    let word = kind.as_ref().map_or("", |kind| kind.value.as_str());
    volume.device = Some(match (word, device) {
        ("none" | "bind" | "", Some(device)) if has(&["bind", "rbind"]) => VolumeDevice::Directory(device),
        ("tmpfs", _) => {
            let mut options = TmpfsOptions::default();
            if let Some(flags) = &flags {
                options.read(&flags.span, &flags.value)?;
            }
            VolumeDevice::Tmpfs(options.tmpfs)
        }
        ("none" | "bind" | "", _) => {
            return Err(Fault::new(&node.span, format!("{place} does not say which directory it is"))
                .hint("a directory of the host is `type: none`, `o: bind`, `device: PATH`"));
        }
        (other, _) => {
            let span = kind.as_ref().map_or(&node.span, |kind| &kind.span);
            let message = format!("{place} is to be a mount of type `{other}`, which takes root on the host");
            return Err(Fault::new(span, message).hint(
                "mount it on the host, and name the directory with `type: none`, `o: bind`, `device: PATH`",
            ));
        }
    });
    Ok(())
}
