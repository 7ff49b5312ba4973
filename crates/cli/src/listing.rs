//! `ps`, `inspect` and `plan`.

use stack::RemoteError;
use stack::control::{Command, Health, Notice, State, Status};
use stack::plan::{Condition, MountKind, Plan, Service, Source};

use crate::args::Format;
use crate::output::{self, Failure, age};
use crate::session::{Session, answer};

/// `ps`.
pub(crate) fn ps(session: &Session, format: Format, quiet: bool) -> Result<u8, Failure> {
    let status = match session.connect()?.1 {
        Some(mut client) => {
            let asked = client.send(&Command::Status, &[]).map_err(Failure::from);
            match asked.and_then(|()| status(&mut client)) {
                Ok(status) => status,
                // A supervisor that was ending: what it had is gone with it.
                Err(_) if client.wait_end().is_ok() => Vec::new(),
                Err(failure) => return Err(failure),
            }
        }
        // As compose: nothing runs, nothing is listed.
        None => Vec::new(),
    };
    if quiet {
        let running = status.iter().filter(|row| row.pid.is_some());
        output::print(&running.map(|row| format!("{}\n", row.container)).collect::<String>())?;
        return Ok(0);
    }
    match format {
        Format::Json => output::json(&status)?,
        Format::Table => {
            let rows: Vec<Vec<String>> = status.iter().map(row).collect();
            let head = ["CONTAINER", "STATE", "HEALTH", "PORTS", "IMAGE", "PID", "UPTIME"];
            output::print(&output::table(&head, &rows))?;
        }
    }
    Ok(0)
}

/// Receives the answer to [`Command::Status`].
pub(crate) fn status(client: &mut stack::client::Client) -> Result<Vec<Status>, Failure> {
    loop {
        if let Notice::Status(status) = answer(client)? {
            return Ok(status);
        }
    }
}

fn row(status: &Status) -> Vec<String> {
    let state = match (status.state, status.exit_code) {
        (State::Exited | State::Restarting, Some(code)) => {
            let why = if status.oom_killed { ", out of memory" } else { "" };
            format!("{} ({code}{why})", state_word(status.state))
        }
        (state, _) => state_word(state).to_owned(),
    };
    let health = match status.health {
        None => "-",
        Some(Health::Starting) => "starting",
        Some(Health::Healthy) => "healthy",
        Some(Health::Unhealthy) => "unhealthy",
    };
    let or_dash = |text: Option<String>| text.filter(|t| !t.is_empty()).unwrap_or_else(|| "-".to_owned());
    vec![
        status.container.clone(),
        state,
        health.to_owned(),
        or_dash(Some(status.ports.join(", "))),
        status.image.clone(),
        or_dash(status.pid.map(|pid| pid.to_string())),
        or_dash(status.uptime.map(age)),
    ]
}

/// The word for a state.
pub(crate) fn state_word(state: State) -> &'static str {
    match state {
        State::Created => "created",
        State::Waiting => "waiting",
        State::Running => "running",
        State::Restarting => "restarting",
        State::Draining => "draining",
        State::Stopping => "stopping",
        State::Exited => "exited",
    }
}

/// `inspect`.
pub(crate) fn inspect(session: &Session, service: &str) -> Result<u8, Failure> {
    let mut client = session.running()?;
    client.send(&Command::Container(service.to_owned()), &[])?;
    loop {
        if let Notice::Container(container) = answer(&mut client)? {
            output::json(&container)?;
            return Ok(0);
        }
    }
}

/// `plan`.
pub(crate) fn plan(session: &Session, format: Format, base: Option<&str>) -> Result<u8, Failure> {
    let plan = session.load(base)?.plan;
    match format {
        Format::Json => output::json(&plan)?,
        Format::Table => output::print(&outline(&plan))?,
    }
    Ok(0)
}

/// Checks names given on the command line before anything is done.
///
/// # Errors
/// For a name that is no service's; with the nearest one.
pub(crate) fn check_services(plan: &Plan, names: &[String]) -> Result<(), Failure> {
    for name in names {
        if plan.services.iter().all(|service| service.name != *name) {
            let known: Vec<&str> = plan.services.iter().map(|service| service.name.as_str()).collect();
            let mut error = RemoteError::message(format!("no such service: `{name}`"))
                .or_hint(format!("the stack's services are: {}", known.join(", ")));
            error.exit_code = 2;
            return Err(error.into());
        }
    }
    Ok(())
}

/// The plan for people: what is started, in which order, with what.
fn outline(plan: &Plan) -> String {
    let mut out = format!("stack {} ({})\n", plan.name, plan.directory.display());
    for network in &plan.network.networks {
        let internal = if network.internal { ", internal" } else { "" };
        out.push_str(&format!(
            "network {}: {}/{}, gateway {}, bridge {}{internal}\n",
            network.name, network.subnet, network.prefix, network.gateway, network.bridge
        ));
    }
    for volume in &plan.volumes {
        out.push_str(&format!("volume {volume}\n"));
    }
    for (index, service) in plan.services.iter().enumerate() {
        out.push_str(&format!("\n{}. service {}\n", index + 1, service.name));
        for (key, value) in facts(plan, service) {
            out.push_str(&format!("   {key:<12} {value}\n"));
        }
    }
    out
}

fn facts(plan: &Plan, service: &Service) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    facts.push(match &service.source {
        Source::Image(image) => ("image", image.clone()),
        Source::Rootfs(path) => ("rootfs", path.display().to_string()),
        Source::Build(build) => {
            let files: Vec<String> = build.dockerfiles.iter().map(|d| d.path.display().to_string()).collect();
            ("build", format!("{} from {}", build.image, files.join(" or ")))
        }
    });
    let mut add = |key, values: Vec<String>| {
        facts.extend(values.into_iter().map(|value| (key, value)));
    };
    add("entrypoint", service.entrypoint.iter().map(|argv| argv.join(" ")).collect());
    add("command", service.command.iter().map(|argv| argv.join(" ")).collect());
    add("user", service.user.iter().cloned().collect());
    let after = |d: &stack::plan::Dependency| {
        let condition = match d.condition {
            Condition::Started => "started",
            Condition::Healthy => "healthy",
            Condition::Completed => "completed",
        };
        format!("{} is {condition}", d.service)
    };
    add("after", service.depends_on.iter().map(after).collect());
    let endpoint = plan.network.endpoints.iter().find(|e| e.service == service.name);
    let interfaces = endpoint.map_or(&[][..], |e| e.interfaces.as_slice());
    add(
        "address",
        interfaces
            .iter()
            .map(|i| format!("{} on {} ({}) as {}", i.address, i.network, i.name, i.aliases.join(", ")))
            .collect(),
    );
    add("port", folded(service));
    add(
        "mount",
        service
            .mounts
            .iter()
            .map(|mount| {
                let source = match &mount.kind {
                    MountKind::Volume { name } => format!("volume {name}"),
                    MountKind::Bind { source, .. } => source.display().to_string(),
                    MountKind::Tmpfs { .. } => "tmpfs".to_owned(),
                };
                format!("{} <- {source}{}", mount.target, if mount.read_only { ", read-only" } else { "" })
            })
            .collect(),
    );
    add("secret", service.secrets.iter().map(|secret| secret.target.clone()).collect());
    let limits = &service.limits;
    add("memory", limits.memory.iter().map(|bytes| output::size(*bytes)).collect());
    add("cpus", limits.cpus.iter().map(ToString::to_string).collect());
    add("pids", limits.pids.iter().map(ToString::to_string).collect());
    let policy = serde_json::to_value(service.restart).unwrap_or_default();
    let policy = policy.as_str().map_or_else(|| policy.to_string(), str::to_owned);
    add("restart", vec![policy].into_iter().filter(|policy| policy != "no").collect());
    add("check", service.healthcheck.iter().map(|check| probe(&check.test)).collect());
    facts
}

fn probe(test: &Option<stack::plan::Probe>) -> String {
    use stack::plan::Probe;
    match test {
        None => "none".to_owned(),
        Some(Probe::Exec(argv)) => argv.join(" "),
        Some(Probe::Tcp(port)) => format!("tcp {port}"),
        Some(Probe::Http { port, path }) => format!("http {port}{path}"),
    }
}

/// Published ports, neighbours folded into ranges.
fn folded(service: &Service) -> Vec<String> {
    let mut ranges: Vec<(std::net::IpAddr, u16, u16, u16)> = Vec::new();
    for port in &service.ports {
        match ranges.last_mut() {
            Some((ip, host, inside, more))
                if *ip == port.host_ip
                    && u32::from(*host) + u32::from(*more) + 1 == u32::from(port.host_port)
                    && u32::from(*inside) + u32::from(*more) + 1 == u32::from(port.container_port) =>
            {
                *more += 1;
            }
            _ => ranges.push((port.host_ip, port.host_port, port.container_port, 0)),
        }
    }
    let range = |first: u16, more: u16| match more {
        0 => first.to_string(),
        _ => format!("{first}-{}", first + more),
    };
    ranges
        .iter()
        .map(|(ip, host, inside, more)| {
            let host = std::net::SocketAddr::new(*ip, *host);
            let tail = if *more > 0 { format!("-{}", host.port() + more) } else { String::new() };
            format!("{host}{tail} -> {}", range(*inside, *more))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_of_a_stopped_service() {
        let status = Status {
            container: "web".into(),
            service: "web".into(),
            replica: 1,
            state: State::Exited,
            health: None,
            ports: Vec::new(),
            image: "x-web:latest".into(),
            pid: None,
            exit_code: Some(3),
            oom_killed: false,
            restarts: 0,
            uptime: None,
        };
        assert_eq!(row(&status), ["web", "exited (3)", "-", "-", "x-web:latest", "-", "-"]);
        let killed = Status { exit_code: Some(137), oom_killed: true, ..status.clone() };
        assert_eq!(row(&killed)[1], "exited (137, out of memory)");
        let json = serde_json::to_value([status]).unwrap();
        assert!(json[0]["state"] == "exited" && json[0]["pid"].is_null());
    }
}
