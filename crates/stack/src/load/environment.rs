//! Variables of services: `env_file` is read, and a name without a value takes ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::layers::{Scope, shown};
use super::read_private;
use crate::diagnostic::{Checked, Fault, FileError, Span};
use crate::env_file;
use crate::file::keys::{self, Level};
use crate::file::node::{Key, Node, Value};
use crate::interpolate::Variables;

/// One file of `env_file`.
struct EnvFile {
    span: Span,
    path: String,
    required: bool,
    /// `format: raw`: values are taken as they are.
    raw: bool,
}

/// Give variables without a value the value that they have here: those of `environment` and of build arguments.
pub(super) fn inherit(root: &mut Node, variables: &Variables) -> Checked<()> {
    for service in services(root) {
        fill(service.get_mut("environment"), variables)?;
        fill(service.get_mut("build").and_then(|build| build.get_mut("args")), variables)?;
    }
    Ok(())
}

fn fill(node: Option<&mut Node>, variables: &Variables) -> Checked<()> {
    let Some(node) = node else { return Ok(()) };
    let value = |name: &str| variables.get(name).map(str::to_owned);
    match &mut node.value {
        Value::Map(entries) => {
            for (key, node) in entries.iter_mut().filter(|(_, node)| node.is_null()) {
                if let Some(value) = value(&key.name) {
                    node.value = Value::String(value);
                }
            }
        }
        Value::List(items) => {
            for item in items {
                if let Value::String(text) = &mut item.value
                    && !text.contains('=')
                    && let Some(value) = value(text)
                {
                    *text = format!("{text}={value}");
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Replace `env_file` of every service by the variables in these files; those of `environment` win over them.
pub(super) fn read_files(
    root: &mut Node,
    scope: &Scope,
    home: Option<&Path>,
    warnings: &mut Vec<(Span, String)>,
) -> Result<(), FileError> {
    let Scope { directory, variables } = scope;
    for service in services(root) {
        let Some(files) = service.remove("env_file") else { continue };
        let own = service.get("environment").map(|node| node.pairs("environment")).transpose()?;
        let own = own.unwrap_or_default();
        let mut entries = Node::new(files.span.clone(), Value::Map(Vec::new()));
        let mut values: BTreeMap<String, String> =
            own.iter().filter_map(|(key, value)| Some((key.name.clone(), value.clone()?))).collect();
        for file in env_files(&files, warnings)? {
            let Some(path) = find(&file, directory, home)? else { continue };
            let source = read_private(&path)?;
            let read = match file.raw {
                true => env_file::raw(&source.text),
                // What the stack file's variables say wins, then what `environment` says, then earlier lines.
                false => env_file::parse(&source, &variables.clone().or(values.clone()))?,
            };
            for (name, value) in read {
                let span = Span::start_of(&source);
                entries.put(Key::new(&span, &name), Node::new(span, Value::String(value.clone())));
                values.entry(name).or_insert(value);
            }
        }
        for (key, value) in own {
            let span = key.span.clone();
            // One without a value, not even here, leaves what a file says.
            if let Some(value) = value.or_else(|| variables.get(&key.name).map(str::to_owned)) {
                entries.put(key, Node::new(span, Value::String(value)));
            }
        }
        service.put(Key::new(&files.span, "environment"), entries);
    }
    Ok(())
}

/// The file's path; `None` if it may be missing and is.
fn find(file: &EnvFile, directory: &Path, home: Option<&Path>) -> Result<Option<PathBuf>, FileError> {
    let path = match (file.path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => directory.join(&file.path).components().collect(),
    };
    if path.is_file() {
        return Ok(Some(shown(&path)));
    }
    if !file.required && !path.exists() {
        return Ok(None);
    }
    let relative = path.strip_prefix(directory).unwrap_or(&path).display();
    let fault = match path.exists() {
        true => Fault::new(&file.span, format!("the environment file `{relative}` is not a file")),
        false => Fault::new(&file.span, format!("the environment file `{relative}` does not exist"))
            .hint("create it, or say `required: false`"),
    };
    Err(fault.into())
}

fn env_files(node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<EnvFile>> {
    let read = |item: &Node| match &item.value {
        Value::Map(_) => env_file(item, warnings),
        _ => {
            let path = item.text("env_file")?;
            Ok(EnvFile { span: item.span.clone(), path, required: true, raw: false })
        }
    };
    match node.is_null() {
        true => Ok(Vec::new()),
        false => node.one_or_more().iter().map(read).collect(),
    }
}

fn env_file(node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<EnvFile> {
    let mut file = EnvFile { span: node.span.clone(), path: String::new(), required: true, raw: false };
    for (key, node) in node.map("env_file")? {
        if !keys::ENV_FILE.admits(key, &key.name, "`env_file`", warnings)? {
            continue;
        }
        match key.name.as_str() {
            "path" => {
                file.span = node.span.clone();
                file.path = node.text("path")?;
            }
            "required" => file.required = node.boolean("required")?,
            "format" => match node.text("format")?.as_str() {
                "raw" => file.raw = true,
                "" => {}
                other => {
                    let message = format!("`{other}` is not a format of an environment file");
                    return Err(Fault::new(&node.span, message).hint("use `raw`, or leave `format` out"));
                }
            },
            _ => return Err(Level::unread(key, "`env_file`")),
        }
    }
    match file.path.is_empty() {
        true => Err(Fault::new(&node.span, "`env_file` needs `path`")),
        false => Ok(file),
    }
}

fn services(root: &mut Node) -> impl Iterator<Item = &mut Node> {
    let entries = match root.get_mut("services") {
        Some(Node { value: Value::Map(entries), .. }) => entries.as_mut_slice(),
        _ => &mut [],
    };
    entries.iter_mut().map(|(_, node)| node)
}
