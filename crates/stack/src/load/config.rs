//! The model as it is after everything that files can do to each other, to be read by people and programs.

use std::collections::BTreeSet;

use super::model::Model;
use super::{LoadOptions, Running, canonical, emit, paths, profiles};
use crate::diagnostic::FileError;
use crate::file::node::{Key, Node, Value};
use crate::file::{self, Format};
use crate::host::HostFacts;
use crate::resolve::{self, DEFAULT_NETWORK};

/// A stack's files as one.
pub struct Config {
    root: Node,
    model: Model,
    /// Whether dollar signs are only dollar signs.
    interpolated: bool,
    warnings: Vec<String>,
}

/// The sections of a file, in the order in which they are written.
const SECTIONS: [&str; 7] = ["name", "base", "services", "networks", "volumes", "secrets", "configs"];

/// Read a stack's files into one model; with `services` in the options, of those and what they need. Without `interpolate` variables are left as they are written, and nothing is
/// checked but what merging needs.
pub fn config(options: &LoadOptions, host: &HostFacts, interpolate: bool) -> Result<Config, FileError> {
    let mut model = Model::read(options, host, interpolate, |_, _| Running::default())?;
    let mut warnings = std::mem::take(&mut model.warnings);
    if !options.services.is_empty() {
        profiles::only(&mut model.root, &options.services)?;
    }
    if interpolate {
        let mut file = file::model(&model.root, model.project.format, &mut warnings)?;
        resolve::check_references(&mut file, model.project.format)?;
    }
    let mut warnings = super::settled(warnings, options.strict)?;
    warnings.splice(0..0, model.project.warnings.iter().cloned());
    let mut root = model.root.clone();
    let span = root.span.clone();
    root.remove("version");
    root.put(Key::new(&span, "name"), Node::new(span.clone(), Value::String(model.name.clone())));
    if let Value::Map(entries) = &mut root.value {
        let rank = |key: &Key| SECTIONS.iter().position(|name| *name == key.name).unwrap_or(SECTIONS.len());
        entries.sort_by_key(|(key, _)| rank(key));
    }
    Ok(Config { root, model, interpolated: interpolate, warnings })
}

impl Config {
    /// What there is to warn of.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The names of a section: `services`, `volumes`, `networks`, …
    pub fn names(&self, section: &str) -> Vec<String> {
        match self.root.get(section) {
            Some(Node { value: Value::Map(entries), .. }) => {
                entries.iter().map(|(key, _)| key.name.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The names of the networks, with the one of services that name none.
    pub fn networks(&self) -> Vec<String> {
        let mut names = self.names("networks");
        let on_default = |service: &Node| match service.get("networks").map(|node| &node.value) {
            None | Some(Value::Null) => service.get("network_mode").is_none_or(Node::is_null),
            Some(Value::Map(uses)) => uses.iter().any(|(key, _)| key.name == DEFAULT_NETWORK),
            Some(Value::List(uses)) => {
                uses.iter().any(|name| name.text("").is_ok_and(|name| name == DEFAULT_NETWORK))
            }
            Some(_) => false,
        };
        let used = match self.root.get("services").map(|node| &node.value) {
            Some(Value::Map(services)) => services.iter().any(|(_, service)| on_default(service)),
            _ => false,
        };
        if used && !names.iter().any(|name| name == DEFAULT_NETWORK) {
            names.push(DEFAULT_NETWORK.to_owned());
        }
        names
    }

    /// The profiles that services belong to.
    pub fn profiles(&self) -> &BTreeSet<String> {
        &self.model.profiles
    }

    /// The images that the services have, each once.
    pub fn images(&self) -> Vec<String> {
        let mut images = BTreeSet::new();
        if let Some(Node { value: Value::Map(services), .. }) = self.root.get("services") {
            for (key, service) in services {
                match service.get("image").and_then(|node| node.text("image").ok()) {
                    Some(image) => images.insert(image),
                    None if service.get("build").is_some() => {
                        images.insert(format!("{}-{}", self.model.name, key.name.to_lowercase()))
                    }
                    None => false,
                };
            }
        }
        images.into_iter().collect()
    }

    /// As a compose file with the long forms of everything and absolute paths.
    pub fn yaml(&self) -> String {
        emit::yaml(&self.compose())
    }

    /// The same in JSON.
    pub fn json(&self) -> String {
        emit::json(&self.compose())
    }

    /// As a `stack.toml` that gives the same plan in the same directory.
    pub fn toml(&self) -> String {
        let mut root = self.root.clone();
        if self.model.project.format == Format::Compose {
            canonical::stack(&mut root);
        }
        self.escape(&mut root);
        emit::toml(&root)
    }

    fn compose(&self) -> Node {
        let mut root = self.root.clone();
        paths::rebase(&mut root, &self.model.project.directory, None);
        canonical::long(&mut root);
        self.escape(&mut root);
        root
    }

    /// What is read again is interpolated again.
    fn escape(&self, root: &mut Node) {
        fn escape(node: &mut Node) {
            match &mut node.value {
                Value::String(text) => *text = text.replace('$', "$$"),
                Value::List(items) => items.iter_mut().for_each(escape),
                Value::Map(entries) => entries.iter_mut().for_each(|(_, node)| escape(node)),
                _ => {}
            }
        }
        if let (true, Value::Map(entries)) = (self.interpolated, &mut root.value) {
            let entries = entries.iter_mut().filter(|(key, _)| !key.name.starts_with("x-"));
            entries.for_each(|(_, node)| escape(node));
        }
    }
}

#[cfg(test)]
mod tests;
