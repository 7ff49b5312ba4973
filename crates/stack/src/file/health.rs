//! `healthcheck`.

use super::keys::{self, Level};
use super::node::{Node, Value};
use super::process::seconds;
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::{Healthcheck, Probe};

/// Read a `healthcheck` table.
pub(crate) fn parse(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<Healthcheck> {
    let place = format!("`healthcheck` of {place}");
    let mut check = Healthcheck {
        // Without `test` it is the image's check that is tried at other times.
        test: Some(Probe::Image),
        interval: 30.0,
        timeout: 30.0,
        retries: 3,
        start_period: 0.0,
        start_interval: 5.0,
    };
    for (key, node) in node.map("healthcheck")? {
        if !keys::HEALTHCHECK.admits(key, &key.name, &place, warnings)? || node.is_null() {
            continue;
        }
        match key.name.as_str() {
            "test" => check.test = probe(node)?,
            "interval" => check.interval = positive(node, "interval")?,
            "timeout" => check.timeout = positive(node, "timeout")?,
            "retries" => {
                let retries = node.integer("retries", 1, i64::from(u32::MAX))?;
                check.retries = u32::try_from(retries).unwrap_or(u32::MAX);
            }
            "start_period" => check.start_period = seconds(node, "start_period")?,
            "start_interval" => check.start_interval = positive(node, "start_interval")?,
            "disable" => {
                if node.boolean("disable")? {
                    check.test = None;
                    return Ok(check);
                }
            }
            _ => return Err(Level::unread(key, &place)),
        }
    }
    Ok(check)
}

fn positive(node: &Node, what: &str) -> Checked<f64> {
    let value = seconds(node, what)?;
    if value <= 0.0 {
        return Err(Fault::new(&node.span, format!("`{what}` must be longer than nothing")));
    }
    Ok(value)
}

fn probe(node: &Node) -> Checked<Option<Probe>> {
    const KINDS: &str = "use \"CMD\", \"CMD-SHELL\", \"TCP\", \"HTTP\" or \"NONE\"";
    let words = match &node.value {
        Value::List(_) => node.texts("test")?,
        _ => vec!["CMD-SHELL".to_owned(), node.text("test")?],
    };
    let bad = |message: String| Err(Fault::new(&node.span, message).hint(KINDS));
    let Some((kind, rest)) = words.split_first() else {
        return bad("`test` is empty".to_owned());
    };
    match (kind.as_str(), rest) {
        ("NONE", []) => Ok(None),
        ("CMD", [_, ..]) => Ok(Some(Probe::Exec(rest.to_vec()))),
        ("CMD-SHELL", [line]) => {
            Ok(Some(Probe::Exec(vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()])))
        }
        ("TCP", [port]) => Ok(Some(Probe::Tcp(port_number(node, port)?))),
        ("HTTP", [address]) => {
            let (port, path) = match address.split_once('/') {
                Some((port, path)) => (port, format!("/{path}")),
                None => (address.as_str(), "/".to_owned()),
            };
            // The path becomes part of a request line.
            if path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
                return bad(format!("`{path}` cannot be the path of a request"));
            }
            let port = port_number(node, port)?;
            Ok(Some(Probe::Http { port, path }))
        }
        ("NONE" | "CMD" | "CMD-SHELL" | "TCP" | "HTTP", _) => {
            bad(format!("\"{kind}\" is followed by the wrong number of words"))
        }
        _ => {
            let kinds = ["CMD", "CMD-SHELL", "TCP", "HTTP", "NONE"];
            Err(Fault::new(&node.span, format!("\"{kind}\" is not a kind of health check"))
                .hint(KINDS)
                .nearest(kind, kinds))
        }
    }
}

fn port_number(node: &Node, text: &str) -> Checked<u16> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Fault::new(&node.span, format!("`{text}` is not a port of the service"))),
    }
}
