//! `extends`: a service begins as another one of the same file or of a different one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::layers::{Layers, Scope};
use super::{merge, paths};
use crate::diagnostic::{Checked, Fault, FileError, Span};
use crate::file::node::{Key, Node, Value, unknown_key};

/// How many services may extend each other in a row.
const MAX_CHAIN: usize = 32;

/// The services of one file.
struct Origin {
    /// `None` is the file that is being read.
    path: Option<PathBuf>,
    directory: PathBuf,
    services: Vec<(Key, Node)>,
}

/// What `extends` says.
struct Reference {
    span: Span,
    service: String,
    file: Option<(Span, String)>,
}

struct Follower<'a, 'b> {
    layers: &'a mut Layers<'b>,
    scope: &'a Scope,
    /// Files that were named before.
    files: HashMap<PathBuf, Rc<Origin>>,
}

/// Replace each service that has `extends` by what it stands for.
pub(super) fn follow(root: &mut Node, layers: &mut Layers<'_>, scope: &Scope) -> Result<(), FileError> {
    let Some(services) = root.get_mut("services") else { return Ok(()) };
    let Value::Map(entries) = &mut services.value else { return Ok(()) };
    if !entries.iter().any(|(_, service)| service.get("extends").is_some()) {
        return Ok(());
    }
    let origin = Origin { path: None, directory: scope.directory.clone(), services: entries.clone() };
    let mut follower = Follower { layers, scope, files: HashMap::new() };
    for (key, service) in entries {
        if service.get("extends").is_some() {
            *service = follower.service(&origin, &key.name, service, &mut Vec::new())?;
        }
    }
    Ok(())
}

impl Follower<'_, '_> {
    /// A service of a file with all that it extends. `trail` is the services that led here.
    fn service(
        &mut self,
        origin: &Origin,
        name: &str,
        service: &Node,
        trail: &mut Vec<(Option<PathBuf>, String)>,
    ) -> Result<Node, FileError> {
        let mut service = service.clone();
        let Some(extends) = service.remove("extends") else { return Ok(service) };
        let reference = reference(&extends, name)?;
        trail.push((origin.path.clone(), name.to_owned()));
        if trail.len() > MAX_CHAIN {
            let message = format!("more than {MAX_CHAIN} services extend each other");
            return Err(Fault::new(&reference.span, message).into());
        }
        let base = match &reference.file {
            None => self.base(origin, &reference, trail)?,
            Some((span, file)) => {
                let other = self.file(&origin.directory.join(file), span)?;
                let mut base = self.base(&other, &reference, trail)?;
                paths::rebase_service(&mut base, &other.directory, Some(&origin.directory));
                base
            }
        };
        trail.pop();
        let merged = merge::services(base, service)?;
        self.layers.weigh(&merged)?;
        Ok(merged)
    }

    fn base(
        &mut self,
        origin: &Origin,
        reference: &Reference,
        trail: &mut Vec<(Option<PathBuf>, String)>,
    ) -> Result<Node, FileError> {
        let name = &reference.service;
        let names = || origin.services.iter().map(|(key, _)| key.name.as_str());
        let Some((_, service)) = origin.services.iter().find(|(key, _)| key.name == *name) else {
            let message = match &reference.file {
                Some((_, file)) => format!("`{file}` has no service `{name}`"),
                None => format!("there is no service `{name}` in this file to extend"),
            };
            return Err(Fault::new(&reference.span, message)
                .label("no such service")
                .nearest(name, names())
                .into());
        };
        if let Some(at) = trail.iter().position(|(path, other)| *path == origin.path && other == name) {
            let circle: Vec<&str> = trail[at..].iter().map(|(_, name)| name.as_str()).collect();
            let message = format!("the services extend each other: {} -> {name}", circle.join(" -> "));
            return Err(Fault::new(&reference.span, message).into());
        }
        self.service(origin, name, service, trail)
    }

    fn file(&mut self, path: &Path, span: &Span) -> Result<Rc<Origin>, FileError> {
        // One file under two names is still found in a circle.
        let path = path.canonicalize().unwrap_or_else(|_missing| path.components().collect());
        if let Some(known) = self.files.get(&path) {
            return Ok(Rc::clone(known));
        }
        let mut services = Vec::new();
        for mut document in self.layers.named(&path, span, "extended")? {
            self.layers.replace_variables(&mut document, self.scope)?;
            if let Some(node) = document.remove("services") {
                services.extend(node.map("services")?.iter().cloned());
            }
        }
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let origin = Rc::new(Origin { path: Some(path.clone()), directory, services });
        self.files.insert(path, Rc::clone(&origin));
        Ok(origin)
    }
}

fn reference(node: &Node, name: &str) -> Checked<Reference> {
    if !matches!(node.value, Value::Map(_)) {
        return Ok(Reference { span: node.span.clone(), service: node.text("extends")?, file: None });
    }
    let (mut service, mut file) = (None, None);
    for (key, node) in node.map("extends")? {
        match key.name.as_str() {
            "service" => service = Some((node.span.clone(), node.text("service")?)),
            "file" if node.is_null() => {}
            "file" => file = Some((node.span.clone(), node.text("file")?)),
            _ => {
                let place = format!("`extends` of service `{name}`");
                return Err(unknown_key(key, &place, ["service", "file"]));
            }
        }
    }
    match service {
        Some((span, service)) => Ok(Reference { span, service, file }),
        None => Err(Fault::new(&node.span, format!("`extends` of service `{name}` needs `service`"))),
    }
}
