//! `develop`: what is watched while one works on a service.

use std::path::PathBuf;

use image::Ignore;

use super::keys::{self, Level};
use super::lifecycle::hook;
use super::node::Node;
use super::service::one_or_more;
use super::{Located, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::{Watch, WatchAction};

/// An entry of `develop.watch`.
#[derive(Debug)]
pub(crate) struct WatchFile {
    pub(crate) path: Located<String>,
    /// Where its action is.
    pub(crate) action: Span,
    /// What the file alone decides; its path is empty.
    pub(crate) settled: Watch,
}

/// Reads `develop`.
pub(super) fn parse(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<WatchFile>> {
    let place = format!("`develop` of {place}");
    let mut watched = Vec::new();
    for (key, node) in node.map("develop")? {
        if !keys::DEVELOP.admits(key, &key.name, &place, warnings)? || node.is_null() {
            continue;
        }
        match key.name.as_str() {
            "watch" => {
                for item in node.list("watch")? {
                    watched.push(entry(item, &format!("`watch` in {place}"), warnings)?);
                }
            }
            _ => return Err(Level::unread(key, &place)),
        }
    }
    Ok(watched)
}

fn entry(item: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<WatchFile> {
    let (mut path, mut action) = (None, None);
    let (mut target, mut exec, mut initial_sync) = (None, None, false);
    let (mut ignore, mut include) = (Vec::new(), Vec::new());
    for (key, node) in item.map("watch")? {
        if !keys::WATCH.admits(key, &key.name, place, warnings)? || node.is_null() {
            continue;
        }
        match key.name.as_str() {
            "path" => path = Some(located(node, node.text("path")?)),
            "action" => action = Some((read_action(node)?, node.span.clone())),
            "target" => target = Some(read_target(node)?),
            "ignore" => ignore = patterns(node, "ignore")?,
            "include" => include = patterns(node, "include")?,
            "initial_sync" => initial_sync = node.boolean("initial_sync")?,
            "exec" => exec = Some(hook(node, "exec", &format!("`exec` of {place}"), warnings)?),
            _ => return Err(Level::unread(key, place)),
        }
    }
    let missing = |key: &str| Fault::new(&item.span, format!("an entry of {place} needs `{key}`"));
    let path = path.filter(|path| !path.value.is_empty()).ok_or_else(|| missing("path"))?;
    let (action, span) = action.ok_or_else(|| missing("action"))?;
    if action.syncs() && target.is_none() {
        let hint = "it is where `path` is in the container: `target: /srv/app`";
        return Err(Fault::new(&span, format!("`{}` needs `target`", action.word())).hint(hint));
    }
    if action == WatchAction::SyncExec && exec.is_none() {
        let hint = "it is what is run in the container then: `exec: {command: nginx -s reload}`";
        return Err(Fault::new(&span, "`sync+exec` needs `exec`").hint(hint));
    }
    let settled = Watch { path: PathBuf::new(), action, target, ignore, include, initial_sync, exec };
    Ok(WatchFile { path, action: span, settled })
}

fn read_action(node: &Node) -> Checked<WatchAction> {
    let text = node.text("action")?;
    let known = WatchAction::ALL.map(WatchAction::word);
    WatchAction::ALL.into_iter().find(|action| action.word() == text).ok_or_else(|| {
        Fault::new(&node.span, format!("`{text}` is not an action"))
            .hint(format!("the actions are: {}", known.join(", ")))
            .nearest(&text, known)
    })
}

/// A path in the container. One that ends in a slash is a directory, which a file that is watched goes into.
fn read_target(node: &Node) -> Checked<String> {
    let text = node.text("target")?;
    let climbs = text.split('/').any(|part| part == "..");
    if !text.starts_with('/') || climbs || text.contains('\0') {
        let text = text.escape_debug();
        return Err(Fault::new(&node.span, format!("`{text}` is not an absolute path inside the service"))
            .hint("a `target` begins with `/`, and has no `..`"));
    }
    Ok(text)
}

/// Patterns as in a `.dockerignore`.
fn patterns(node: &Node, what: &str) -> Checked<Vec<String>> {
    one_or_more(node, |item| {
        let pattern = item.text(what)?;
        match Ignore::new(std::iter::once(pattern.as_str())) {
            Ok(_) => Ok(pattern),
            Err((_, problem)) => Err(Fault::new(&item.span, format!("a bad pattern in `{what}`: {problem}"))),
        }
    })
}
