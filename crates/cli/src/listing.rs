//! `ps`, `inspect` and `plan`.

use clap::Args;
use stack::client::Client;
use stack::control::{Command, Health, Notice, State, Status, Subject};
use stack::diagnostic::{nearest, no_such_service};
use stack::plan::{
    Condition, Mode, MountKind, NetworkMode, Plan, Policy, Protocol, PublishedPort, Service, Source,
};

use crate::args::Format;
use crate::output::{self, Failure, age};
use crate::session::{Session, answer};

/// `ps`.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
    /// Names of the running containers only, or of those in the states that are asked for
    #[arg(short, long)]
    quiet: bool,
    /// The same, but names of services
    #[arg(long, conflicts_with = "quiet")]
    services: bool,
    /// Only containers in this state: created, waiting, running, paused, restarting, draining, stopping, exited
    #[arg(long, value_name = "STATE", value_parser = state)]
    status: Vec<String>,
    /// Only containers with status=STATE
    #[arg(long, value_name = "status=STATE", value_parser = filter)]
    filter: Vec<String>,
    /// With -q and --services: those that do not run too; the table always has them
    #[arg(short, long)]
    all: bool,
    /// As compose has it: nothing is ever cut off
    #[arg(long, hide = true)]
    no_trunc: bool,
    /// As compose has it: there never are any
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    orphans: Option<bool>,
    /// Services, or single containers such as `web-2` [default: all]
    #[arg(value_name = "SERVICE")]
    names: Vec<String>,
}

/// All states, for messages.
const STATES: [State; 8] = [
    State::Created,
    State::Waiting,
    State::Running,
    State::Paused,
    State::Restarting,
    State::Draining,
    State::Stopping,
    State::Exited,
];

/// The words for states that compose knows besides ours; no container is ever in one of these.
const STATES_OF_COMPOSE: [&str; 2] = ["removing", "dead"];

fn state(text: &str) -> Result<String, String> {
    let words = STATES.map(state_word);
    match words.iter().chain(&STATES_OF_COMPOSE).any(|word| *word == text) {
        true => Ok(text.to_owned()),
        false => Err(match nearest(text, words) {
            Some(near) => format!("no state is called `{text}`; did you mean `{near}`?"),
            None => format!("no state is called `{text}`; there are {}", words.join(", ")),
        }),
    }
}

fn filter(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("status", word)) => state(word),
        _ => Err("the only filter is `status=STATE`".to_owned()),
    }
}

impl Ps {
    /// Whether the table has this container.
    fn wants(&self, row: &Status) -> bool {
        let mut states = self.status.iter().chain(&self.filter);
        self.any_state() || states.any(|word| word == state_word(row.state))
    }

    /// Whether a list of names has it, of those that the table has.
    fn names(&self, row: &Status) -> bool {
        self.all || !self.any_state() || row.pid.is_some()
    }

    fn any_state(&self) -> bool {
        self.status.is_empty() && self.filter.is_empty()
    }
}

/// The rows of the named services and containers; of all, when none is named.
fn rows(client: &mut Client, names: &[String]) -> Result<Vec<Status>, Failure> {
    if names.is_empty() {
        client.send(&Command::Status, &[])?;
        return status(client);
    }
    client.send(&Command::Subjects(names.to_vec()), &[])?;
    Ok(subjects(client)?.into_iter().map(|subject| subject.status).collect())
}

/// Carries out `ps`.
pub(crate) fn ps(session: &Session, arguments: &Ps) -> Result<u8, Failure> {
    let mut status = match session.connect()?.1 {
        Some(mut client) => {
            match rows(&mut client, &arguments.names) {
                Ok(status) => status,
                // Nobody is called so; said by who is there.
                Err(failure) if failure.exit_code() == 2 => return Err(failure),
                // A supervisor that was ending: what it had is gone with it.
                Err(_) if client.wait_end().is_ok() => Vec::new(),
                Err(failure) => return Err(failure),
            }
        }
        // As compose: nothing runs, nothing is listed.
        None => Vec::new(),
    };
    status.retain(|row| arguments.wants(row));
    if arguments.quiet || arguments.services {
        let named = status.iter().filter(|row| arguments.names(row));
        let name =
            |row: &Status| if arguments.services { row.service.clone() } else { row.container.clone() };
        let mut names: Vec<String> = named.map(name).collect();
        // The containers of a service stand together.
        names.dedup();
        output::print(&names.into_iter().map(|name| name + "\n").collect::<String>())?;
        return Ok(0);
    }
    match arguments.format {
        Format::Json => output::json(&status)?,
        Format::Table => {
            let rows: Vec<Vec<String>> = status.iter().map(row).collect();
            let head = ["CONTAINER", "STATE", "HEALTH", "PORTS", "IMAGE", "PID", "UPTIME"];
            let mut text = output::table(&head, &rows);
            let first = status.iter().filter(|status| status.replica == 1);
            let moved =
                first.flat_map(|status| status.moved_ports.iter().map(|ports| (&status.service, ports)));
            for (service, (asked, published)) in moved {
                text.push_str(&format!("port {asked} of {service} is published as {published}\n"));
            }
            output::print(&text)?;
        }
    }
    Ok(0)
}

/// Receives the answer to [`Command::Status`].
pub(crate) fn status(client: &mut Client) -> Result<Vec<Status>, Failure> {
    loop {
        if let Notice::Status(status) = answer(client)? {
            return Ok(status);
        }
    }
}

/// Receives the answer to [`Command::Subjects`].
pub(crate) fn subjects(client: &mut Client) -> Result<Vec<Subject>, Failure> {
    let mut found = Vec::new();
    loop {
        match answer(client)? {
            Notice::Subjects(subjects) => found = subjects,
            Notice::Done => return Ok(found),
            _ => {}
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
        State::Paused => "paused",
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
            return Err(no_such_service(name, &known).into());
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
    add(
        "replicas",
        Some(service.replicas).filter(|number| *number != 1).iter().map(u16::to_string).collect(),
    );
    let mode = match &service.network_mode {
        NetworkMode::Own => None,
        NetworkMode::Host => Some("the host's".to_owned()),
        NetworkMode::Service(other) => Some(format!("that of service {other}")),
    };
    add("network", mode.into_iter().collect());
    add("egress", endpoint.map_or(Vec::new(), |endpoint| egress(&endpoint.egress)));
    add("port", folded(&service.ports));
    let instead = |(asked, published): (&u16, &u16)| format!("{published} instead of the file's {asked}");
    add("moved", service.moved_ports.iter().map(instead).collect());
    add(
        "mount",
        service
            .mounts
            .iter()
            .map(|mount| {
                let source = match &mount.kind {
                    MountKind::Volume { name, subpath, .. } => match subpath {
                        Some(below) => format!("volume {name}, {below}"),
                        None => format!("volume {name}"),
                    },
                    MountKind::Bind { source, .. } => source.display().to_string(),
                    MountKind::Tmpfs(_) => "tmpfs".to_owned(),
                };
                format!("{} <- {source}{}", mount.target, if mount.read_only { ", read-only" } else { "" })
            })
            .collect(),
    );
    add("secret", service.secrets.iter().map(|secret| secret.target.clone()).collect());
    let limits = &service.limits;
    add("memory", limits.memory.iter().map(|bytes| output::binary_size(*bytes)).collect());
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
        Some(Probe::Image) => "the image's".to_owned(),
        Some(Probe::Tcp(port)) => format!("tcp {port}"),
        Some(Probe::Http { port, path }) => format!("http {port}{path}"),
    }
}

/// Published ports, neighbours folded into ranges.
fn folded(ports: &[PublishedPort]) -> Vec<String> {
    let mut ranges: Vec<(PublishedPort, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((first, more))
                if (first.host_ip, first.protocol, first.mode)
                    == (port.host_ip, port.protocol, port.mode)
                    && u32::from(first.host_port) + u32::from(*more) + 1 == u32::from(port.host_port)
                    && u32::from(first.container_port) + u32::from(*more) + 1
                        == u32::from(port.container_port) =>
            {
                *more += 1;
            }
            _ => ranges.push((*port, 0)),
        }
    }
    let end = |first: u16, more: u16| if more > 0 { format!("-{}", first + more) } else { String::new() };
    let text = |(port, more): &(PublishedPort, u16)| {
        let host = std::net::SocketAddr::new(port.host_ip, port.host_port);
        let (host_end, inside) = (end(port.host_port, *more), port.container_port);
        let inside_end = end(inside, *more);
        format!("{host}{host_end} -> {inside}{inside_end}{}", carried(port))
    };
    ranges.iter().map(text).collect()
}

/// What a port carries and who accepts, where it is not TCP and netd.
fn carried(port: &PublishedPort) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => String::new(),
        Protocol::Udp => "/udp".to_owned(),
        Protocol::Ftp { passive: (first, last), announce } => {
            let announced = announce.map(|address| format!(", announced as {address}")).unwrap_or_default();
            format!("/ftp, passive ports {first}-{last}{announced}")
        }
    };
    match port.mode {
        Mode::Proxy => protocol,
        Mode::Direct => protocol + ", direct",
    }
}

/// Where a service may connect to outside of the stack; nothing where that is everywhere.
fn egress(policy: &Policy) -> Vec<String> {
    match policy {
        Policy::All => Vec::new(),
        Policy::None => vec!["none".to_owned()],
        Policy::Only(rules) if rules.is_empty() => vec!["none".to_owned()],
        Policy::Only(rules) => rules.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_say_what_is_unusual_about_them() {
        let tcp = |host, inside| PublishedPort::tcp([127, 0, 0, 1].into(), host, inside);
        let udp = |host, inside| PublishedPort { protocol: Protocol::Udp, ..tcp(host, inside) };
        let ftp = Protocol::Ftp { passive: (2100, 2109), announce: Some([192, 0, 2, 1].into()) };
        let ports = [
            tcp(8000, 80),
            tcp(8001, 81),
            udp(8002, 82),
            PublishedPort { mode: Mode::Direct, ..tcp(8003, 83) },
            PublishedPort { protocol: ftp, ..tcp(2121, 21) },
        ];
        let expected = [
            "127.0.0.1:8000-8001 -> 80-81",
            "127.0.0.1:8002 -> 82/udp",
            "127.0.0.1:8003 -> 83, direct",
            "127.0.0.1:2121 -> 21/ftp, passive ports 2100-2109, announced as 192.0.2.1",
        ];
        assert_eq!(folded(&ports), expected);
    }

    #[test]
    fn egress_is_told_where_it_is_limited() {
        let rules = ["example.org:443", "10.0.0.0/8"].map(|rule| rule.parse().unwrap());
        assert_eq!(egress(&Policy::Only(rules.to_vec())), ["example.org:443", "10.0.0.0/8"]);
        assert_eq!(egress(&Policy::None), ["none"]);
        assert!(egress(&Policy::All).is_empty());
    }

    #[test]
    fn the_row_of_a_stopped_service() {
        let status = Status {
            container: "web".into(),
            service: "web".into(),
            replica: 1,
            state: State::Exited,
            health: None,
            ports: Vec::new(),
            moved_ports: std::collections::BTreeMap::new(),
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
