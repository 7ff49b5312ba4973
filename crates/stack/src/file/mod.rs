//! The stack file: `stack.toml` or a compose file, read into one model.
//!
//! What is here knows the file alone. Looking up paths, variables' files, networks and addresses is
//! `resolve`'s business.

pub(crate) mod bridge;
pub(crate) mod build;
pub(crate) mod confinement;
pub(crate) mod dependencies;
mod deploy;
pub(crate) mod develop;
pub(crate) mod health;
pub(crate) mod keys;
mod lifecycle;
mod limits;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod ports;
mod process;
pub(crate) mod replicas;
pub(crate) mod secrets;
pub(crate) mod service;
pub(crate) mod sharing;
mod toml;
pub(crate) mod units;
pub(crate) mod volumes;
pub(crate) mod yaml;

use std::path::Path;
use std::sync::Arc;

use crate::diagnostic::{Checked, Fault, FileError, SourceText, Span};
use bridge::NetworkFile;
use keys::Level;
use node::{Key, Node, Value};
use secrets::SecretSourceFile;
use service::ServiceFile;
use volumes::VolumeFile;

/// The two notations. They differ in defaults, see `design` in ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `stack.toml`.
    Stack,
    /// `compose.yaml`.
    Compose,
}

impl Format {
    /// By the end of the name. A name without one (`/dev/fd/63`) is what only compose could have been given.
    pub(crate) fn of(path: &Path) -> Result<Self, FileError> {
        match path.extension().map(|extension| extension.to_str()) {
            Some(Some("toml")) => Ok(Self::Stack),
            Some(Some("yaml" | "yml")) | None => Ok(Self::Compose),
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
        let admitted = keys::FILE.admits(key, &key.name, "the file", warnings);
        if !admitted.map_err(|fault| if_a_service(fault, node, format))? {
            continue;
        }
        match key.name.as_str() {
            "base" => file.base = bases(node)?,
            "services" => {
                has_services = true;
                for (key, node) in node.map("services")? {
                    check_name(key, "service")?;
                    check_nesting(key, node, format)?;
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
                    file.volumes.push(volumes::parse(key, node, warnings)?);
                }
            }
            "secrets" => file.secrets = secrets::sources(node, "secret", warnings)?,
            "configs" => file.configs = secrets::sources(node, "config", warnings)?,
            // `load` has settled them.
            "name" | "include" => {}
            _ => return Err(Level::unread(key, "the file")),
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

/// Says of a fault of the top level what it is when its key looks like a service's name.
fn if_a_service(fault: Box<Fault>, node: &Node, format: Format) -> Box<Fault> {
    let Value::Map(entries) = &node.value else { return fault };
    let is_service = entries.iter().any(|(key, _)| matches!(key.name.as_str(), "image" | "build"));
    match (is_service && fault.hint.is_none(), format) {
        (false, _) => fault,
        (true, Format::Compose) => {
            fault.hint("a service stands below `services`, indented by two blanks more")
        }
        (true, Format::Stack) => fault.hint("a service's table is `[services.NAME]`"),
    }
}

/// Keys of a service that stand where its name belongs.
fn check_nesting(key: &Key, node: &Node, format: Format) -> Checked<()> {
    let is_key = matches!(
        key.name.as_str(),
        "image" | "build" | "container_name" | "restart" | "ports" | "environment"
    );
    if !is_key || matches!(node.value, Value::Map(_)) {
        return Ok(());
    }
    Err(Fault::new(&key.span, format!("`{}` stands where a service's name belongs", key.name)).hint(match format {
        Format::Compose => "below `services` come the names of services, and their keys below those, indented by two blanks more",
        Format::Stack => "a service's table is `[services.NAME]`",
    }))
}

pub(crate) fn located<T>(node: &Node, value: T) -> Located<T> {
    Located { span: node.span.clone(), value }
}

/// Names become host names, directory names and parts of image names.
fn check_name(key: &Key, what: &str) -> Checked<()> {
    check_name_text(&key.span, &key.name, what)
}

fn check_name_text(span: &Span, name: &str, what: &str) -> Checked<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if first && rest && name.len() <= 63 {
        return Ok(());
    }
    Err(Fault::new(span, format!("`{name}` is not a name for a {what}"))
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
