//! The stack file: `stack.toml` or a compose file, read into one model.
//!
//! What is here knows the file alone. Looking up paths, variables' files, networks and addresses is
//! `resolve`'s business.

pub(crate) mod bridge;
pub(crate) mod build;
pub(crate) mod health;
mod limits;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod ports;
mod process;
pub(crate) mod replicas;
pub(crate) mod service;
mod toml;
pub(crate) mod units;
pub(crate) mod yaml;

use std::path::Path;
use std::sync::Arc;

use crate::diagnostic::{Checked, Fault, FileError, SourceText, Span};
use bridge::NetworkFile;
use mounts::ignored;
use node::{Key, Node, Value, unknown_key};
use service::ServiceFile;

/// The two notations. They differ in defaults, see `design` in ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `stack.toml`.
    Stack,
    /// `compose.yaml`.
    Compose,
}

impl Format {
    pub(crate) fn of(path: &Path) -> Result<Self, FileError> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Ok(Self::Stack),
            Some("yaml" | "yml") => Ok(Self::Compose),
            _ => Err(FileError::Format { path: path.to_owned() }),
        }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Located<T> {
    pub(crate) span: Span,
    pub(crate) value: T,
}

/// The whole file.
#[derive(Debug)]
pub(crate) struct StackFile {
    /// For what is wrong with it as a whole.
    pub(crate) span: Span,
    pub(crate) base: Vec<Located<String>>,
    pub(crate) services: Vec<ServiceFile>,
    pub(crate) networks: Vec<NetworkFile>,
    pub(crate) volumes: Vec<VolumeFile>,
    pub(crate) secrets: Vec<SecretSourceFile>,
    pub(crate) configs: Vec<SecretSourceFile>,
}

/// A volume of the top level.
#[derive(Debug)]
pub(crate) struct VolumeFile {
    pub(crate) key: Key,
    /// `driver_opts: { type: none, o: bind, device: PATH }`: a host directory under a volume's name.
    pub(crate) device: Option<Located<String>>,
}

/// A secret or configuration of the top level.
#[derive(Debug)]
pub(crate) struct SecretSourceFile {
    pub(crate) key: Key,
    pub(crate) source: SecretOrigin,
}

#[derive(Debug)]
pub(crate) enum SecretOrigin {
    File(Located<String>),
    Environment(Located<String>),
}

const TOP: &[&str] = &[
    "name", "base", "services", "networks", "volumes", "secrets", "configs", "version", "include", "models",
];

/// Parse a text into tables, which may be empty: YAML can have several documents.
pub(crate) fn documents(format: Format, source: &Arc<SourceText>) -> Checked<Vec<Node>> {
    let documents = match format {
        Format::Stack => vec![toml::parse(source)?],
        Format::Compose => yaml::parse(source)?,
    };
    match documents.iter().find(|root| !matches!(root.value, Value::Map(_) | Value::Null)) {
        Some(root) => Err(Fault::new(&root.span, "the file is not a table of keys and values")),
        None => Ok(documents),
    }
}

/// The value of the top level's `name`.
pub(crate) fn name_node(root: &Node) -> Checked<Option<Node>> {
    let mut entries = root.map("the file")?.iter();
    Ok(entries.find(|(key, _)| key.name == "name").map(|(_, node)| node.clone()))
}

/// Read the model out of an interpolated tree.
pub(crate) fn model(root: &Node, format: Format, warnings: &mut Vec<(Span, String)>) -> Checked<StackFile> {
    let mut file = StackFile {
        span: Span::start_of(&root.span.source),
        base: Vec::new(),
        services: Vec::new(),
        networks: Vec::new(),
        volumes: Vec::new(),
        secrets: Vec::new(),
        configs: Vec::new(),
    };
    let mut has_services = false;
    for (key, node) in root.map("the file")? {
        match key.name.as_str() {
            "base" => file.base = bases(node)?,
            "services" => {
                has_services = true;
                for (key, node) in node.map("services")? {
                    check_name(key, "service")?;
                    file.services.push(service::parse(key, node, format, warnings)?);
                }
            }
            "networks" => {
                for (key, node) in node.map("networks")? {
                    check_name(key, "network")?;
                    file.networks.push(bridge::parse(key, node, format, warnings)?);
                }
            }
            "volumes" => {
                for (key, node) in node.map("volumes")? {
                    check_name(key, "volume")?;
                    file.volumes.push(volume(key, node, warnings)?);
                }
            }
            "secrets" => file.secrets = secrets(node, "secret")?,
            "configs" => file.configs = secrets(node, "config")?,
            // Obsolete in the compose specification, and harmless.
            "version" => {}
            // `load` has settled them.
            "name" | "include" => {}
            "models" => warnings.push(ignored(key, "the file")),
            name if name.starts_with("x-") => {}
            _ => return Err(unknown_key(key, "the file", TOP.iter().copied())),
        }
    }
    if file.services.is_empty() {
        let key = root.map("the file")?.iter().find(|(key, _)| key.name == "services");
        let span = key.map_or(file.span.clone(), |(key, _)| key.span.clone());
        let message = match has_services {
            true => "`services` is empty",
            false => "the file has no `services`",
        };
        return Err(Fault::new(&span, message).hint(match format {
            Format::Stack => "start with `[services.web]` and an `image` or `build` below it",
            Format::Compose => "start with `services:` and one service below it",
        }));
    }
    Ok(file)
}

pub(crate) fn located<T>(node: &Node, value: T) -> Located<T> {
    Located { span: node.span.clone(), value }
}

/// Names become host names, directory names and parts of image names.
fn check_name(key: &Key, what: &str) -> Checked<()> {
    let mut bytes = key.name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if first && rest && key.name.len() <= 63 {
        return Ok(());
    }
    Err(Fault::new(&key.span, format!("`{}` is not a name for a {what}", key.name))
        .hint("use letters, digits, `_`, `.` and `-`, starting with a letter or digit, 63 at most"))
}

/// A list of base distributions, or one.
fn bases(node: &Node) -> Checked<Vec<Located<String>>> {
    let one = std::slice::from_ref(node);
    let items = match &node.value {
        Value::List(items) => items.as_slice(),
        _ => one,
    };
    let mut bases: Vec<Located<String>> = Vec::new();
    for item in items {
        let base = item.text("base")?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if base.is_empty() || !base.bytes().all(plain) {
            return Err(Fault::new(&item.span, format!("`{base}` is not the name of a base distribution"))
                .hint("use names such as `alpine` and `debian`"));
        }
        if bases.iter().any(|other| other.value == base) {
            return Err(Fault::new(&item.span, format!("base `{base}` is named twice")));
        }
        bases.push(located(item, base));
    }
    Ok(bases)
}

fn volume(key: &Key, node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<VolumeFile> {
    const KNOWN: &[&str] = &["driver", "driver_opts", "external", "labels", "name"];
    let place = format!("volume `{}`", key.name);
    let mut device = None;
    for (key, node) in node.map(&key.name)? {
        match key.name.as_str() {
            "driver" => {
                let driver = node.text("driver")?;
                if driver != "local" {
                    return Err(Fault::new(&node.span, format!("volume driver `{driver}` is not supported"))
                        .hint("leave `driver` out: a volume is a directory of this machine"));
                }
            }
            "driver_opts" => device = driver_options(node, &place)?,
            "external" if matches!(node.value, Value::Bool(false)) => {}
            "external" => {
                return Err(Fault::new(&key.span, "external volumes are not supported yet")
                    .hint("leave `external` out: the stack then has a volume of its own"));
            }
            "labels" => {}
            "name" => warnings.push(ignored(key, &place)),
            name if name.starts_with("x-") => {}
            _ => return Err(unknown_key(key, &place, KNOWN.iter().copied())),
        }
    }
    Ok(VolumeFile { key: key.clone(), device })
}

/// The one use that compose files make of a local volume's options: a bind mount with a volume's name.
fn driver_options(node: &Node, place: &str) -> Checked<Option<Located<String>>> {
    let options = node.map("driver_opts")?;
    if options.is_empty() {
        return Ok(None);
    }
    let mut device = None;
    let mut bind = false;
    for (key, value) in options {
        let text = value.text(&key.name)?;
        match key.name.as_str() {
            "type" if text == "none" || text == "bind" || text.is_empty() => {}
            "o" => bind = text.split(',').any(|option| option == "bind" || option == "rbind"),
            "device" => device = Some(located(value, text)),
            "type" => {
                return Err(Fault::new(&value.span, format!("volumes of type `{text}` are not supported")));
            }
            _ => return Err(unknown_key(key, place, ["type", "o", "device"])),
        }
    }
    match (device, bind) {
        (Some(device), true) => Ok(Some(device)),
        _ => Err(Fault::new(&node.span, "these `driver_opts` are not supported")
            .hint("supported is `type: none`, `o: bind`, `device: PATH`, for a directory of the host")),
    }
}

fn secrets(node: &Node, what: &str) -> Checked<Vec<SecretSourceFile>> {
    const KNOWN: &[&str] = &["file", "environment", "external", "content", "name", "labels"];
    let mut secrets = Vec::new();
    for (key, node) in node.map(what)? {
        check_name(key, what)?;
        let place = format!("{what} `{}`", key.name);
        let mut source = None;
        for (key, node) in node.map(&key.name)? {
            let one = match key.name.as_str() {
                "file" => SecretOrigin::File(located(node, node.text("file")?)),
                "environment" => SecretOrigin::Environment(located(node, node.text("environment")?)),
                "external" | "content" => {
                    return Err(Fault::new(
                        &key.span,
                        format!("`{}` of {place} is not supported yet", key.name),
                    )
                    .hint("use `file` or `environment`"));
                }
                "name" | "labels" => continue,
                name if name.starts_with("x-") => continue,
                _ => return Err(unknown_key(key, &place, KNOWN.iter().copied())),
            };
            if source.replace(one).is_some() {
                return Err(Fault::new(&key.span, format!("{place} has both `file` and `environment`")));
            }
        }
        let Some(source) = source else {
            return Err(Fault::new(&key.span, format!("{place} has no source"))
                .hint("add `file = \"PATH\"` or `environment = \"VARIABLE\"`"));
        };
        secrets.push(SecretSourceFile { key: key.clone(), source });
    }
    Ok(secrets)
}
