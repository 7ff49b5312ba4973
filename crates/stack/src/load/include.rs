//! `include`: the resources of another model, which has a directory and variables of its own.

use std::path::{Path, PathBuf};

use super::layers::{Layers, Scope};
use super::{environment, paths, project};
use crate::diagnostic::{Checked, Fault, FileError, Span};
use crate::file::node::{Key, Node, Value, unknown_key};

/// What is taken over from an included model.
const RESOURCES: [&str; 5] = ["services", "networks", "volumes", "secrets", "configs"];
/// How deep files may include each other.
const MAX_DEPTH: usize = 16;

/// One entry of `include`.
struct Entry {
    span: Span,
    paths: Vec<(Span, String)>,
    directory: Option<String>,
    env_files: Vec<(Span, String)>,
}

/// Take the resources of the included models over. `trail` is the files that led here.
pub(super) fn follow(
    root: &mut Node,
    layers: &mut Layers<'_>,
    scope: &Scope,
    trail: &[PathBuf],
) -> Result<(), FileError> {
    let Some(include) = root.remove("include") else { return Ok(()) };
    for entry in entries(&include)? {
        let model = read(&entry, layers, scope, trail)?;
        for what in RESOURCES {
            take(&model, root, what)?;
        }
    }
    Ok(())
}

fn entries(include: &Node) -> Checked<Vec<Entry>> {
    if include.is_null() {
        return Ok(Vec::new());
    }
    let Value::List(items) = &include.value else { return Err(include.wrong("include", "a list")) };
    items.iter().map(entry).collect()
}

fn entry(node: &Node) -> Checked<Entry> {
    let span = node.span.clone();
    if !matches!(node.value, Value::Map(_)) {
        let path = (span.clone(), node.text("include")?);
        return Ok(Entry { span, paths: vec![path], directory: None, env_files: Vec::new() });
    }
    let mut entry = Entry { span, paths: Vec::new(), directory: None, env_files: Vec::new() };
    for (key, node) in node.map("include")? {
        match key.name.as_str() {
            "path" => entry.paths = texts(node, "path")?,
            "project_directory" => entry.directory = Some(node.text("project_directory")?),
            "env_file" => entry.env_files = texts(node, "env_file")?,
            _ => return Err(unknown_key(key, "`include`", ["path", "project_directory", "env_file"])),
        }
    }
    if entry.paths.is_empty() {
        return Err(Fault::new(&entry.span, "an `include` needs `path`"));
    }
    Ok(entry)
}

/// One text or a list of them.
fn texts(node: &Node, what: &str) -> Checked<Vec<(Span, String)>> {
    match &node.value {
        Value::List(items) => items.iter().map(|item| Ok((item.span.clone(), item.text(what)?))).collect(),
        Value::Null => Ok(Vec::new()),
        _ => Ok(vec![(node.span.clone(), node.text(what)?)]),
    }
}

/// The model of one entry, as it would be written in the file that includes it.
fn read(entry: &Entry, layers: &mut Layers<'_>, scope: &Scope, trail: &[PathBuf]) -> Result<Node, FileError> {
    let mut documents = Vec::new();
    let mut trail = trail.to_vec();
    let mut directory = None;
    for (at, (span, path)) in entry.paths.iter().enumerate() {
        if path.contains("://") || path.starts_with("git@") {
            return Err(Fault::new(span, format!("`{path}` is not a file of this machine"))
                .hint("fetch it, and include the copy")
                .into());
        }
        let path = scope.directory.join(path);
        let path = path.canonicalize().unwrap_or_else(|_missing| path.components().collect());
        // The first file is the model's own; what else is named goes over it.
        if at == 0 {
            if trail.contains(&path) {
                return Err(Fault::new(span, "the files include each other")
                    .label("includes this file")
                    .into());
            }
            if trail.len() >= MAX_DEPTH {
                return Err(
                    Fault::new(span, format!("more than {MAX_DEPTH} files include each other")).into()
                );
            }
            directory = path.parent().map(Path::to_owned);
            trail.push(path.clone());
        }
        documents.extend(layers.named(&path, span, "included")?);
    }
    let directory = match &entry.directory {
        Some(text) => scope.directory.join(text).components().collect(),
        None => directory.unwrap_or_else(|| scope.directory.clone()),
    };
    let variables = variables(entry, scope, &directory)?;
    let inner = Scope { directory, variables };
    let mut model = layers.model(documents, &inner, &trail)?;
    if layers.interpolate {
        environment::inherit(&mut model, &inner.variables)?;
        keep_secrets(&model, layers, scope, &inner)?;
    }
    paths::rebase(&mut model, &inner.directory, Some(&scope.directory));
    Ok(model)
}

/// Remember the variables that secrets of an included model name and that only it has: they are read when something
/// starts, which knows the variables of the whole only.
fn keep_secrets(model: &Node, layers: &mut Layers<'_>, outer: &Scope, inner: &Scope) -> Checked<()> {
    for what in ["secrets", "configs"] {
        let Some(Node { value: Value::Map(entries), .. }) = model.get(what) else { continue };
        for (_, secret) in entries {
            let Some(node) = secret.get("environment") else { continue };
            // What is no text is refused where it is read.
            let Ok(name) = node.text("environment") else { continue };
            if outer.variables.get(&name).is_some() {
                continue;
            }
            // One of a model that the included one includes may be kept already.
            let Some(value) = inner.variables.get(&name) else { continue };
            match layers.included.insert(name.clone(), value.to_owned()) {
                Some(other) if other != value => {
                    let message =
                        format!("variable `{name}` of {what} has another value in another `include`");
                    return Err(Fault::new(&node.span, message).hint("give one of them another name"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Those of the file that includes, then those of the entry's own files, or of `.env` in its directory.
fn variables(
    entry: &Entry,
    scope: &Scope,
    directory: &Path,
) -> Result<crate::interpolate::Variables, FileError> {
    let mut files = Vec::new();
    for (span, file) in &entry.env_files {
        let path = scope.directory.join(file);
        if !path.is_file() {
            let message = format!("the environment file `{file}` does not exist");
            return Err(Fault::new(span, message).into());
        }
        files.push(path);
    }
    let default = directory.join(".env");
    if files.is_empty() && default.is_file() {
        files.push(default);
    }
    let own = project::env_files(&files, &scope.variables)?;
    Ok(scope.variables.clone().or(own))
}

fn take(model: &Node, root: &mut Node, what: &str) -> Checked<()> {
    let Some(Node { value: Value::Map(entries), span, .. }) = model.get(what) else { return Ok(()) };
    let mut target = root.remove(what).unwrap_or_else(|| Node::new(span.clone(), Value::Null));
    if target.is_null() {
        target.value = Value::Map(Vec::new());
    }
    for (key, node) in entries {
        let Value::Map(own) = &mut target.value else { return Err(target.wrong(what, "a table")) };
        match own.iter().find(|(other, _)| other.name == key.name) {
            None => own.push((key.clone(), node.clone())),
            // The same thing twice is one thing, as in compose.
            Some((_, other)) if other.same(node) => {}
            Some((other, _)) => {
                let message = format!("`{what}.{}` is in an included file, too", key.name);
                return Err(Fault::new(&other.span, message).other(&key.span, "included from here").hint(
                    "rename one of them, or list both files as the `path` of one `include` to merge them",
                ));
            }
        }
    }
    root.put(Key::new(span, what), target);
    Ok(())
}
