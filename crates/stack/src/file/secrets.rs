//! Secrets and configurations: where they come from, and which services get them.

use super::keys::{self, Level};
use super::node::{Node, Value};
use super::{Located, check_name, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::file::node::Key;

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
    Content(String),
}

/// One entry of `secrets` or `configs` of a service.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) source: Located<String>,
    pub(crate) target: Option<String>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

/// Reads `secrets` or `configs` of the top level.
pub(super) fn sources(
    node: &Node,
    what: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<Vec<SecretSourceFile>> {
    let mut secrets = Vec::new();
    for (key, node) in node.map(what)? {
        check_name(key, what)?;
        let place = format!("{what} `{}`", key.name);
        let mut source = None;
        for (key, node) in node.map(&key.name)? {
            if !keys::SECRET.admits(key, &key.name, &place, warnings)? {
                continue;
            }
            let one = match key.name.as_str() {
                "file" => SecretOrigin::File(located(node, node.text("file")?)),
                "environment" => SecretOrigin::Environment(located(node, node.text("environment")?)),
                "content" => SecretOrigin::Content(node.loose_text("content")?),
                "external" if matches!(node.value, Value::Bool(false)) => continue,
                "external" => {
                    let message = format!(
                        "{place} is to come from outside of the file, and there is no store of {what}s"
                    );
                    return Err(Fault::new(&key.span, message).hint("use `file` or `environment`"));
                }
                _ => return Err(Level::unread(key, &place)),
            };
            if source.replace(one).is_some() {
                return Err(Fault::new(&key.span, format!("{place} has two sources"))
                    .hint("keep one of `file`, `environment` and `content`"));
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

/// Reads `secrets` or `configs` of a service.
pub(super) fn grants(node: &Node, what: &str, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<Grant>> {
    let place = format!("an entry of `{what}`");
    let mut grants = Vec::new();
    for item in node.list(what)? {
        let mut grant =
            Grant { source: located(item, String::new()), target: None, uid: 0, gid: 0, mode: 0o444 };
        let Value::Map(entries) = &item.value else {
            grant.source.value = item.text(what)?;
            grants.push(grant);
            continue;
        };
        for (key, node) in entries {
            if !keys::GRANT.admits(key, &key.name, &place, warnings)? {
                continue;
            }
            match key.name.as_str() {
                "source" => grant.source = located(node, node.text("source")?),
                "target" => grant.target = Some(node.text("target")?),
                "uid" => grant.uid = node.id("uid")?,
                "gid" => grant.gid = node.id("gid")?,
                "mode" => grant.mode = node.mode("mode")?,
                _ => return Err(Level::unread(key, &place)),
            }
        }
        if grant.source.value.is_empty() {
            return Err(Fault::new(&item.span, format!("{place} needs `source`")));
        }
        grants.push(grant);
    }
    Ok(grants)
}
