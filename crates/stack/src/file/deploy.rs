//! `deploy` of a service: what of it means something on one machine.

use super::keys::{self, Level};
use super::limits;
use super::node::{Node, unknown_key};
use super::process::seconds;
use super::service::ServiceFile;
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::RestartPolicy;

/// Reads `deploy`.
pub(super) fn parse(
    node: &Node,
    place: &str,
    service: &mut ServiceFile,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let place = format!("`deploy` of {place}");
    for (key, node) in node.map("deploy")? {
        if !keys::DEPLOY.admits(key, &key.name, &place, warnings)? || node.is_null() {
            continue;
        }
        match key.name.as_str() {
            "resources" => resources(node, &place, service, warnings)?,
            "restart_policy" => restart_policy(node, &place, service, warnings)?,
            "endpoint_mode" | "mode" | "replicas" | "update_config" => {
                service.replicas.read_deploy(key, node, &place, warnings)?;
            }
            _ => return Err(Level::unread(key, &place)),
        }
    }
    Ok(())
}

fn resources(
    node: &Node,
    place: &str,
    service: &mut ServiceFile,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    for (key, node) in node.map("resources")? {
        match key.name.as_str() {
            "limits" => {
                for (key, node) in node.map("limits")? {
                    if !keys::DEPLOY_LIMITS.admits(key, &key.name, "`limits`", warnings)? {
                        continue;
                    }
                    match key.name.as_str() {
                        "cpus" => limits::read(service, "cpus", node, place, warnings)?,
                        "memory" => limits::read(service, "mem_limit", node, place, warnings)?,
                        "pids" => limits::read(service, "pids_limit", node, place, warnings)?,
                        _ => return Err(Level::unread(key, "`limits`")),
                    }
                }
            }
            "reservations" => {
                let place = format!("`reservations` of {place}");
                for (key, node) in node.map("reservations")? {
                    if !keys::RESERVATIONS.admits(key, &key.name, &place, warnings)? {
                        continue;
                    }
                    match key.name.as_str() {
                        "memory" => limits::read(service, "mem_reservation", node, &place, warnings)?,
                        _ => return Err(Level::unread(key, &place)),
                    }
                }
            }
            name if name.starts_with("x-") => {}
            _ => return Err(unknown_key(key, "`resources`", ["limits", "reservations"])),
        }
    }
    Ok(())
}

fn restart_policy(
    node: &Node,
    place: &str,
    service: &mut ServiceFile,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let place = format!("`restart_policy` of {place}");
    let (mut condition, mut attempts) = ("any".to_owned(), None);
    for (key, node) in node.map("restart_policy")? {
        if !keys::RESTART_POLICY.admits(key, &key.name, &place, warnings)? {
            continue;
        }
        match key.name.as_str() {
            "condition" => condition = node.text("condition")?,
            "delay" => {
                service.settled.restart_delay = Some(seconds(node, "delay")?).filter(|delay| *delay > 0.0)
            }
            "max_attempts" => {
                let number = node.integer("max_attempts", 0, i64::from(u32::MAX))?;
                attempts = Some(located_number(node, number)).filter(|(_, number)| *number > 0);
            }
            _ => return Err(Level::unread(key, &place)),
        }
    }
    service.deploy_restart = Some(match condition.as_str() {
        "none" => RestartPolicy::No,
        "on-failure" => RestartPolicy::OnFailure(attempts.map(|(_, number)| number)),
        "any" => {
            if let Some((span, _)) = attempts {
                let text =
                    format!("`max_attempts` of {place} is ignored: it counts with `condition: on-failure`");
                warnings.push((span, text));
            }
            RestartPolicy::Always
        }
        other => {
            return Err(Fault::new(&node.span, format!("`{other}` is not a condition of a restart"))
                .hint("use `none`, `on-failure` or `any`")
                .nearest(other, ["none", "on-failure", "any"]));
        }
    });
    Ok(())
}

fn located_number(node: &Node, number: i64) -> (Span, u32) {
    (node.span.clone(), u32::try_from(number).unwrap_or(u32::MAX))
}
