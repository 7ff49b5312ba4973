//! `depends_on`: short and long syntax.

use super::keys::{self, Level};
use super::node::{Node, Value};
use super::{Located, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::Condition;

/// One entry of `depends_on`.
#[derive(Debug)]
pub(crate) struct DependencyFile {
    pub(crate) service: Located<String>,
    pub(crate) condition: Condition,
    pub(crate) required: bool,
    /// It is started anew with the other.
    pub(crate) restart: bool,
}

impl DependencyFile {
    /// One of which nothing else is said.
    pub(crate) fn plain(service: Located<String>) -> Self {
        Self { service, condition: Condition::Started, required: true, restart: false }
    }
}

/// Reads `depends_on`.
pub(super) fn parse(node: &Node, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<DependencyFile>> {
    if let Value::List(items) = &node.value {
        let names = items.iter().map(|item| Ok(located(item, item.text("depends_on")?)));
        return names.map(|name| name.map(DependencyFile::plain)).collect();
    }
    let Value::Map(entries) = &node.value else {
        return Err(node.wrong("depends_on", "a list or a table of services"));
    };
    let mut dependencies = Vec::new();
    for (key, node) in entries {
        let service = Located { span: key.span.clone(), value: key.name.clone() };
        let mut dependency = DependencyFile::plain(service);
        match &node.value {
            Value::Map(entries) => {
                for (key, node) in entries {
                    if !keys::DEPENDENCY.admits(key, &key.name, "`depends_on`", warnings)? {
                        continue;
                    }
                    match key.name.as_str() {
                        "condition" => dependency.condition = condition(node)?,
                        "required" => dependency.required = node.boolean("required")?,
                        "restart" => dependency.restart = node.boolean("restart")?,
                        _ => return Err(Level::unread(key, "`depends_on`")),
                    }
                }
            }
            Value::Null => {}
            _ => dependency.condition = condition(node)?,
        }
        dependencies.push(dependency);
    }
    Ok(dependencies)
}

fn condition(node: &Node) -> Checked<Condition> {
    let text = node.text("condition")?;
    match text.as_str() {
        "service_started" | "started" => Ok(Condition::Started),
        "service_healthy" | "healthy" => Ok(Condition::Healthy),
        "service_completed_successfully" | "completed" => Ok(Condition::Completed),
        _ => {
            let long = ["service_started", "service_healthy", "service_completed_successfully"];
            let short = ["started", "healthy", "completed"];
            Err(Fault::new(&node.span, format!("`{text}` is not a condition"))
                .hint("use `started`, `healthy` or `completed`")
                .nearest(&text, short.into_iter().chain(long)))
        }
    }
}
