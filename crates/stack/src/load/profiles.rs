//! `profiles`: which services there are for a command.

use std::collections::BTreeSet;

use crate::diagnostic::{Checked, Fault, FileError, Span};
use crate::file::node::{Node, Value};

/// Stands for every profile.
const ALL: &str = "*";

/// The profiles that services belong to.
pub(super) fn known(root: &Node) -> Checked<BTreeSet<String>> {
    let mut known = BTreeSet::new();
    for (_, service) in services(root) {
        known.extend(profiles(service)?);
    }
    Ok(known)
}

/// Take away the services none of whose profiles is active. A service that is named on the command line activates
/// its own; one that is `running` stays without that.
pub(super) fn select(
    root: &mut Node,
    active: &[String],
    named: &[String],
    running: &[String],
) -> Checked<()> {
    let mut active: BTreeSet<String> = active.iter().cloned().collect();
    for (name, service) in services(root) {
        if named.iter().any(|other| other == name) {
            active.extend(profiles(service)?);
        }
    }
    let mut inactive = Vec::new();
    for (name, service) in services(root) {
        let own = profiles(service)?;
        if running.iter().any(|other| other == name) {
            continue;
        }
        if !own.is_empty() && !active.contains(ALL) && own.iter().all(|profile| !active.contains(profile)) {
            inactive.push((name.to_owned(), own));
        }
    }
    if inactive.is_empty() {
        return Ok(());
    }
    let find = |name: &str| inactive.iter().find(|(other, _)| other == name);
    for (name, service) in services(root).filter(|(name, _)| find(name).is_none()) {
        for (span, other) in needs(service, false) {
            if let Some((_, profiles)) = find(&other) {
                let profiles = profiles.join("`, `");
                let message = format!("service `{name}` needs `{other}`, whose profile is not active");
                return Err(Fault::new(&span, message)
                    .label(format!("only there with profile `{profiles}`"))
                    .hint(format!("activate it with `--profile`, or give `{name}` the same profile")));
            }
        }
    }
    let Some(Node { value: Value::Map(entries), span, .. }) = root.get_mut("services") else { return Ok(()) };
    entries.retain(|(key, _)| find(&key.name).is_none());
    if entries.is_empty() {
        let names: BTreeSet<&str> = inactive.iter().flat_map(|(_, own)| own).map(String::as_str).collect();
        let names: Vec<&str> = names.into_iter().collect();
        return Err(Fault::new(span, "every service has a profile, and none is active")
            .hint(format!("name one with `--profile`: {}", names.join(", "))));
    }
    Ok(())
}

/// Take away the services that are neither named nor needed by those that are.
pub(super) fn only(root: &mut Node, named: &[String]) -> Result<(), FileError> {
    let mut wanted: Vec<String> = Vec::new();
    let mut todo = named.to_vec();
    while let Some(name) = todo.pop() {
        let Some((_, service)) = services(root).find(|(other, _)| *other == name) else {
            // What does not have to be there may be missing; what has to is told where it is named.
            if !named.contains(&name) {
                continue;
            }
            let known: Vec<&str> = services(root).map(|(other, _)| other).collect();
            return Err(FileError::no_such_service(&name, &known));
        };
        if !wanted.contains(&name) {
            todo.extend(needs(service, true).into_iter().map(|(_, other)| other));
            wanted.push(name);
        }
    }
    if let Some(Node { value: Value::Map(entries), .. }) = root.get_mut("services") {
        entries.retain(|(key, _)| wanted.contains(&key.name));
    }
    Ok(())
}

fn services(root: &Node) -> impl Iterator<Item = (&str, &Node)> {
    let entries = match root.get("services") {
        Some(Node { value: Value::Map(entries), .. }) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().map(|(key, node)| (key.name.as_str(), node))
}

fn profiles(service: &Node) -> Checked<Vec<String>> {
    let Some(node) = service.get("profiles") else { return Ok(Vec::new()) };
    let Value::List(items) = &node.value else {
        return match node.is_null() {
            true => Ok(Vec::new()),
            false => Err(node.wrong("profiles", "a list of names")),
        };
    };
    let name = |item: &Node| {
        let name = item.text("profiles")?;
        let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        match first && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
            true => Ok(name),
            false => Err(Fault::new(&item.span, format!("`{name}` is not the name of a profile"))
                .hint("use letters, digits, `_`, `.` and `-`, starting with a letter or digit")),
        }
    };
    items.iter().map(name).collect()
}

/// The services that one cannot be without; with `optional`, also those that it can be without.
fn needs(service: &Node, optional: bool) -> Vec<(Span, String)> {
    let mut needs = Vec::new();
    let text = |node: &Node| node.text("").ok();
    match service.get("depends_on").map(|node| &node.value) {
        Some(Value::List(items)) => {
            needs.extend(items.iter().filter_map(|item| Some((item.span.clone(), text(item)?))));
        }
        Some(Value::Map(entries)) => {
            let required = |node: &Node| {
                optional || !matches!(node.get("required").map(|node| node.boolean("")), Some(Ok(false)))
            };
            let entries = entries.iter().filter(|(_, node)| required(node));
            needs.extend(entries.map(|(key, _)| (key.span.clone(), key.name.clone())));
        }
        _ => {}
    }
    for key in ["links", "volumes_from"] {
        if let Some(Node { value: Value::List(items), .. }) = service.get(key) {
            let name = |item: &Node| {
                let text = text(item)?;
                Some((item.span.clone(), text.split(':').next().unwrap_or_default().to_owned()))
            };
            needs.extend(items.iter().filter_map(name));
        }
    }
    let contexts = service.get("build").and_then(|build| build.get("additional_contexts"));
    for (key, value) in contexts.and_then(|node| node.pairs("").ok()).unwrap_or_default() {
        if let Some(name) = value.as_deref().and_then(|value| value.strip_prefix("service:")) {
            needs.push((key.span, name.to_owned()));
        }
    }
    for key in ["network_mode", "ipc", "pid"] {
        let Some(node) = service.get(key) else { continue };
        if let Some(name) = text(node).and_then(|text| text.strip_prefix("service:").map(str::to_owned)) {
            needs.push((node.span.clone(), name));
        }
    }
    needs
}
