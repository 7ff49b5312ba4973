//! `healthcheck`.

use super::node::{Node, Value, unknown_key};
use super::process::seconds;
use crate::diagnostic::{Checked, Fault};
use crate::plan::{Healthcheck, Probe};

const KNOWN: &[&str] =
    &["test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"];

/// Read a `healthcheck` table.
pub(crate) fn parse(node: &Node, place: &str) -> Checked<Healthcheck> {
    let mut check = Healthcheck {
        test: None,
        interval: 30.0,
        timeout: 30.0,
        retries: 3,
        start_period: 0.0,
        start_interval: 5.0,
    };
    let mut has_test = false;
    for (key, node) in node.map("healthcheck")? {
        match key.name.as_str() {
            "test" => {
                has_test = true;
                check.test = probe(node)?;
            }
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
            name if name.starts_with("x-") => {}
            _ => {
                let place = format!("`healthcheck` of {place}");
                return Err(unknown_key(key, &place, KNOWN.iter().copied()));
            }
        }
    }
    if !has_test {
        return Err(Fault::new(&node.span, format!("the health check of {place} has no `test`"))
            .hint("add `test`, or `disable = true` to switch the image's check off"));
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
