//! What is to be said about an export, each with the place in the files that it is about.

use super::words::{self, Side};
use crate::diagnostic::{FileError, Span};
use crate::file::node::{Key, Node, Value};
use crate::load;

/// Finds places in a stack's files, and collects what is said about them.
pub(super) struct Told<'a> {
    root: &'a Node,
    found: Vec<(Span, String)>,
}

impl<'a> Told<'a> {
    /// Begins with what `side` has no word for at all.
    pub(super) fn new(root: &'a Node, side: Side) -> Self {
        let mut told = Self { root, found: Vec::new() };
        for word in words::all() {
            if let words::Fate::Lost(because) = word.fate(side) {
                for place in places(root, word.path) {
                    let message = format!("{} has no word for {}: {because}", side.name(), place.words);
                    told.found.push((place.span, message));
                }
            }
        }
        told
    }

    /// Says something about the first of these keys of a service that its file has, or about the service.
    pub(super) fn service(&mut self, service: &str, keys: &[&str], message: impl Into<String>) {
        let place = self.place_of(service, keys);
        self.found.push((place, message.into()));
    }

    /// Where the first of these keys of a service is that its file has, or the service.
    pub(super) fn place_of(&self, service: &str, keys: &[&str]) -> Span {
        let path = |key: &&str| places(self.root, &format!("services.{service}.{key}")).into_iter().next();
        let place = keys.iter().find_map(path);
        place.map_or_else(|| self.place("services", service), |place| place.span)
    }

    /// Says something about an entry of a list of a service.
    pub(super) fn item(&mut self, service: &str, key: &str, index: usize, message: impl Into<String>) {
        let value = |name: &str| self.root.get("services")?.get(service)?.get(name);
        let list = value(key).or_else(|| value(&format!("x-{key}")));
        match list.map(|node| &node.value) {
            Some(Value::List(items)) if index < items.len() => {
                self.found.push((items[index].span.clone(), message.into()));
            }
            _ => self.service(service, &[key], message),
        }
    }

    /// Says something about an entry of the top level.
    pub(super) fn top(&mut self, section: &str, name: &str, message: impl Into<String>) {
        let place = self.place(section, name);
        self.found.push((place, message.into()));
    }

    /// Whether a service's file has a key.
    pub(super) fn has(&self, service: &str, key: &str) -> bool {
        !places(self.root, &format!("services.{service}.{key}")).is_empty()
    }

    /// Where an entry of the top level is.
    pub(super) fn place(&self, section: &str, name: &str) -> Span {
        let entry = places(self.root, &format!("{section}.{name}")).into_iter().next();
        entry.map_or_else(|| self.root.span.clone(), |place| place.span)
    }

    /// As they are shown: in the order of the places; the first is an error with `strict`.
    pub(super) fn settle(self, strict: bool) -> Result<Vec<String>, FileError> {
        load::settled(self.found, strict)
    }
}

/// A key that a file has.
struct Place {
    span: Span,
    /// As it is called in a message.
    words: String,
}

/// The places of a path of keys. `*` is any key; entries of lists are walked through; names of services have dots
/// only where they are a single segment of their own.
fn places(root: &Node, path: &str) -> Vec<Place> {
    let mut found = Vec::new();
    let services = path.strip_prefix("services.");
    match services.and_then(|rest| service_of(root, rest)) {
        // A service's name may have dots.
        Some((service, rest)) => {
            walk(root, &["services", service], &split(rest), &mut found, &mut Vec::new())
        }
        None => walk(root, &[], &split(path), &mut found, &mut Vec::new()),
    }
    found
}

fn split(path: &str) -> Vec<&str> {
    path.split('.').filter(|segment| !segment.is_empty()).collect()
}

/// The service that a path begins with.
fn service_of<'a>(root: &'a Node, path: &'a str) -> Option<(&'a str, &'a str)> {
    let Value::Map(services) = &root.get("services")?.value else { return None };
    let names = services.iter().map(|(key, _)| key.name.as_str());
    let begins =
        |name: &&str| path.strip_prefix(*name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let name = names.filter(begins).max_by_key(|name| name.len())?;
    Some((name, path[name.len()..].trim_start_matches('.')))
}

fn walk<'a>(node: &'a Node, fixed: &[&str], path: &[&str], found: &mut Vec<Place>, way: &mut Vec<&'a str>) {
    let (segment, fixed, path) = match (fixed, path) {
        ([first, rest @ ..], path) => (*first, rest, path),
        ([], [first, rest @ ..]) => (*first, fixed, rest),
        ([], []) => return,
    };
    let last = fixed.is_empty() && path.is_empty();
    match &node.value {
        Value::Map(entries) => {
            for (key, value) in entries.iter().filter(|(key, _)| matches(key, segment)) {
                way.push(&key.name);
                match last {
                    true if value.is_null() && way.len() > 2 => {}
                    true => found.push(Place { span: key.span.clone(), words: described(way) }),
                    false => walk(value, fixed, path, found, way),
                }
                way.pop();
            }
        }
        Value::List(items) => {
            let mut path = path.to_vec();
            path.insert(0, segment);
            items.iter().for_each(|item| walk(item, fixed, &path, found, way));
        }
        _ => {}
    }
}

/// What is not of the specification is called `x-NAME` in a compose file.
fn matches(key: &Key, segment: &str) -> bool {
    segment == "*" || key.name == segment || key.name.strip_prefix("x-") == Some(segment)
}

/// `pids_limit` of service `web`.
fn described(way: &[&str]) -> String {
    match way {
        ["services", service] => format!("service `{service}`"),
        ["services", service, keys @ ..] => format!("`{}` of service `{service}`", keys.join(".")),
        [section, name, keys @ ..] if !keys.is_empty() => {
            format!("`{}` of {} `{name}`", keys.join("."), section.trim_end_matches('s'))
        }
        _ => format!("`{}`", way.join(".")),
    }
}
