//! What happens in a running stack, as `events` tells it.

use std::fmt;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Name of the container that it happened to, or of the service; none where it concerns the whole stack.
    pub container: Option<String>,
    /// What it was.
    pub what: What,
}

/// What happened. `Display` is what people read behind the time and the container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// Its process runs.
    Started {
        /// How often its policy has restarted it by now.
        restarts: u32,
    },
    /// It was sent its stop signal.
    Stopping,
    /// Its processes stand still.
    Paused,
    /// They go on.
    Unpaused,
    /// It ended.
    Exited {
        /// Exit code, or 128 plus the signal's number.
        status: i32,
        /// How it ended, in words.
        how: String,
        /// Whether it was killed for memory.
        oom_killed: bool,
        /// Whether its policy starts it again.
        restarts: bool,
    },
    /// It could not be started.
    Failed {
        /// The error.
        error: String,
    },
    /// Its health check succeeds.
    Healthy,
    /// Its health check has failed too often.
    Unhealthy {
        /// What the last probe said.
        output: String,
    },
    /// The kernel killed processes of it for memory.
    Oom {
        /// How many.
        processes: u64,
    },
    /// Its egress policy does not allow what it tried.
    EgressRefused {
        /// `tcp`, `udp` or `icmp`.
        protocol: String,
        /// Where it wanted to go.
        destination: SocketAddr,
        /// The name that it had looked that address up by, as far as is known.
        name: Option<String>,
    },
    /// That happened so often that not each is told.
    EgressRefusals {
        /// How many are not.
        left_out: u64,
    },
    /// It is draining and has no open connection any more.
    Drained,
    /// It could not be connected to and gets no new connections for a while.
    Ejected,
    /// It gets connections again.
    Restored,
    /// A client of its FTP port did what is not allowed.
    FtpViolation {
        /// Whose client.
        client: SocketAddr,
        /// What it was.
        violation: String,
    },
    /// netd died and was started again; published ports stayed open.
    NetdRestarted {
        /// How it died.
        reason: String,
    },
    /// A fault was put on its network, changed, or taken away.
    Network {
        /// What, in words.
        change: String,
    },
    /// None of the resolvers that are asked for names of the world answers, or one does again.
    Resolvers {
        /// They.
        resolvers: Vec<SocketAddr>,
        /// Whether one answers.
        answer: bool,
    },
    /// It writes more than the rate of its log allows, and waits. Told once a minute at the most.
    LogHeld {
        /// Bytes a second.
        rate: u64,
    },
    /// Lines that it wrote are not in its log.
    LogLeftOut {
        /// How many.
        lines: u64,
        /// Why.
        reason: String,
    },
    /// An earlier supervisor had ended without `down`. What it had started went with it; this one begins anew.
    Recovered,
    /// The stack ends because of this.
    Broken {
        /// The error.
        error: String,
    },
}

/// The names of all kinds of events, as they stand in `event`.
pub const KINDS: [&str; 22] = [
    "started",
    "paused",
    "unpaused",
    "stopping",
    "exited",
    "failed",
    "healthy",
    "unhealthy",
    "oom",
    "egress-refused",
    "egress-refusals",
    "drained",
    "ejected",
    "restored",
    "ftp-violation",
    "netd-restarted",
    "network",
    "resolvers",
    "log-held",
    "log-left-out",
    "recovered",
    "broken",
];

impl What {
    /// Its name, one of [`KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Paused => "paused",
            Self::Unpaused => "unpaused",
            Self::Stopping => "stopping",
            Self::Exited { .. } => "exited",
            Self::Failed { .. } => "failed",
            Self::Healthy => "healthy",
            Self::Unhealthy { .. } => "unhealthy",
            Self::Oom { .. } => "oom",
            Self::EgressRefused { .. } => "egress-refused",
            Self::EgressRefusals { .. } => "egress-refusals",
            Self::Drained => "drained",
            Self::Ejected => "ejected",
            Self::Restored => "restored",
            Self::FtpViolation { .. } => "ftp-violation",
            Self::NetdRestarted { .. } => "netd-restarted",
            Self::Network { .. } => "network",
            Self::Resolvers { .. } => "resolvers",
            Self::LogHeld { .. } => "log-held",
            Self::LogLeftOut { .. } => "log-left-out",
            Self::Recovered => "recovered",
            Self::Broken { .. } => "broken",
        }
    }
}

impl Event {
    /// One of this moment.
    pub(crate) fn now(container: Option<&str>, what: What) -> Self {
        Self { time: now(), container: container.map(str::to_owned), what }
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { restarts: 0 } => f.write_str("started"),
            Self::Started { restarts } => write!(f, "started (restart {restarts})"),
            Self::Stopping => f.write_str("stopping"),
            Self::Paused => f.write_str("paused"),
            Self::Unpaused => f.write_str("unpaused"),
            Self::Exited { how, restarts: false, .. } => f.write_str(how),
            Self::Exited { how, restarts: true, .. } => write!(f, "{how}; it will be restarted"),
            Self::Failed { error } => write!(f, "failed: {error}"),
            Self::Healthy => f.write_str("healthy"),
            Self::Unhealthy { output } => write!(f, "unhealthy: {}", output.trim()),
            Self::Oom { processes } => write!(f, "out of memory: {processes} killed"),
            Self::EgressRefused { protocol, destination, name } => {
                write!(f, "egress refused: {protocol} ")?;
                match (protocol.as_str(), destination.port()) {
                    // A ping has no port.
                    ("icmp", _) | (_, 0) => write!(f, "{}", destination.ip())?,
                    _ => write!(f, "{destination}")?,
                }
                name.as_ref().map_or(Ok(()), |name| write!(f, " ({name})"))
            }
            Self::EgressRefusals { left_out } => write!(f, "egress refused: {left_out} more"),
            Self::Drained => f.write_str("drained"),
            Self::Ejected => f.write_str("ejected: it cannot be connected to"),
            Self::Restored => f.write_str("restored: it gets connections again"),
            Self::FtpViolation { client, violation } => write!(f, "ftp violation: {client}: {violation}"),
            Self::NetdRestarted { reason } => write!(f, "netd restarted: {reason}"),
            Self::Network { change } => write!(f, "network: {change}"),
            Self::Resolvers { resolvers, answer } => {
                let listed: Vec<String> = resolvers.iter().map(ToString::to_string).collect();
                let listed = listed.join(", ");
                match answer {
                    true => write!(f, "names of the world are answered again by {listed}"),
                    false => write!(f, "names of the world are not answered: {listed} is silent"),
                }
            }
            Self::LogHeld { rate } => {
                write!(f, "log held back: it writes more than {rate} bytes a second, and waits")
            }
            Self::LogLeftOut { lines, reason } => {
                write!(f, "log incomplete: {lines} lines were left out: {reason}")
            }
            Self::Recovered => f.write_str(
                "recovered: an earlier supervisor had ended without `down`; what it had started ended with it",
            ),
            Self::Broken { error } => write!(f, "the stack ends: {error}"),
        }
    }
}

/// What netd told, with the container or service that it is about, if it is about one.
pub(crate) fn from_netd(event: network::netd::Event) -> Option<(Option<String>, What)> {
    use network::netd::Event as Told;
    let (container, what) = match event {
        Told::Refused { container, destination, name, protocol } => {
            (container, What::EgressRefused { protocol, destination, name })
        }
        Told::Drained { container } => (container, What::Drained),
        Told::AtRest { .. } => return None,
        Told::Ejected { container } => (container, What::Ejected),
        Told::Restored { container } => (container, What::Restored),
        Told::Ftp { service, client, what } => (service, What::FtpViolation { client, violation: what }),
        Told::Resolvers { resolvers, answer } => return Some((None, What::Resolvers { resolvers, answer })),
    };
    Some((Some(container), what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_netd_tells_becomes_a_line() {
        let destination: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let refused = |protocol: &str, destination, name: Option<&str>| {
            let told = network::netd::Event::Refused {
                container: "web-2".into(),
                destination,
                name: name.map(str::to_owned),
                protocol: protocol.into(),
            };
            let (container, what) = from_netd(told).unwrap();
            assert_eq!(container.as_deref(), Some("web-2"));
            what.to_string()
        };
        assert_eq!(
            refused("tcp", destination, Some("example.org")),
            "egress refused: tcp 192.0.2.1:443 (example.org)"
        );
        assert_eq!(
            refused("udp", "[2001:db8::1]:53".parse().unwrap(), None),
            "egress refused: udp [2001:db8::1]:53"
        );
        assert_eq!(refused("icmp", "192.0.2.1:0".parse().unwrap(), None), "egress refused: icmp 192.0.2.1");
        let ftp = network::netd::Event::Ftp {
            service: "ftp".into(),
            client: "192.0.2.7:4000".parse().unwrap(),
            what: "PORT to another host".into(),
        };
        let (service, what) = from_netd(ftp).unwrap();
        assert_eq!(service.as_deref(), Some("ftp"));
        assert_eq!(what.to_string(), "ftp violation: 192.0.2.7:4000: PORT to another host");
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event {
            time: 1,
            container: Some("web".into()),
            what: What::Exited {
                status: 1,
                how: "exited with status 1".into(),
                oom_killed: false,
                restarts: true,
            },
        };
        let what = serde_json::to_value(&event.what).unwrap();
        assert_eq!(what["event"], "exited");
        assert_eq!(what["status"], 1);
        let back: Event = serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap();
        assert_eq!(back, event);
    }

    #[test]
    fn a_kind_is_called_what_the_object_says() {
        let all = [
            What::Started { restarts: 0 },
            What::Paused,
            What::Unpaused,
            What::Stopping,
            What::Exited { status: 0, how: String::new(), oom_killed: false, restarts: false },
            What::Failed { error: String::new() },
            What::Healthy,
            What::Unhealthy { output: String::new() },
            What::Oom { processes: 1 },
            What::EgressRefused {
                protocol: "tcp".into(),
                destination: "192.0.2.1:443".parse().unwrap(),
                name: None,
            },
            What::EgressRefusals { left_out: 1 },
            What::Drained,
            What::Ejected,
            What::Restored,
            What::FtpViolation { client: "192.0.2.1:443".parse().unwrap(), violation: String::new() },
            What::NetdRestarted { reason: String::new() },
            What::Network { change: String::new() },
            What::Resolvers { resolvers: Vec::new(), answer: true },
            What::LogHeld { rate: 1 },
            What::LogLeftOut { lines: 1, reason: String::new() },
            What::Recovered,
            What::Broken { error: String::new() },
        ];
        let said = |what: &What| serde_json::to_value(what).unwrap()["event"].as_str().unwrap().to_owned();
        assert!(all.iter().map(What::kind).eq(KINDS));
        assert!(all.iter().map(said).eq(KINDS));
    }
}
