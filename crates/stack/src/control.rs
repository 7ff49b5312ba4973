//! What commands and a supervisor say to each other over the stack's control socket.
//!
//! The socket is `SOCK_SEQPACKET`, in the stack's runtime directory, which nobody else may enter. One connection
//! carries one command; the supervisor answers with notices until [`Notice::Done`] or [`Notice::Failed`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::fault::{Change, Faulty};
use crate::plan::{Plan, PublishedPort};
use crate::remote::RemoteError;
use crate::supervisor::memory;
pub use crate::supervisor::memory::Shortage;
use crate::topology::Topology;

/// What a command asks for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Command {
    /// Bring the stack to this plan.
    Up(Box<Up>),
    /// Change how many containers run services, until the next `Up`.
    Scale(Scale),
    /// Stop everything, and end the supervisor.
    Down {
        /// Remove the named volumes too.
        volumes: bool,
        /// As [`Stop::timeout`].
        #[serde(default)]
        timeout: Option<u32>,
    },
    /// Stop services or single containers; they stay stopped until started.
    Stop(Stop),
    /// Start services or single containers.
    Start(Start),
    /// Stop and start services or single containers.
    Restart {
        /// Which, and how long the stop may take.
        stop: Stop,
        /// Leave those alone that ask to be restarted with them.
        no_deps: bool,
    },
    /// Send services or single containers a signal. One that ends them is their end: they stay stopped.
    Kill {
        /// Which; all when empty. Those of `run` have no service, and are meant by their own names only.
        services: Vec<String>,
        /// The signal by name or number.
        signal: String,
    },
    /// Forget what is left of services and containers that do not run: their next start begins anew (all when empty).
    Remove(Vec<String>),
    /// Have the processes of services and containers stand still (all that run when empty).
    Pause(Vec<String>),
    /// Have them go on (all that are paused when empty).
    Unpause(Vec<String>),
    /// Answered by one [`Notice::Ports`] with what is published of a service, or of a one-off container.
    Ports(String),
    /// Answered by one [`Notice::Stack`].
    Stack,
    /// Answered by one [`Notice::Status`].
    Status,
    /// Answered by one [`Notice::Subjects`] with these services (all when empty).
    Subjects(Vec<String>),
    /// Answered by one [`Notice::Topology`].
    Topology,
    /// Send the log lines of these services (all when empty) from now on, until the connection closes.
    Follow(Vec<String>),
    /// Tell what happens to these services (all when empty), as [`Notice::Event`].
    Events {
        /// Services.
        services: Vec<String>,
        /// Begin with those of the last 1000 events that are not older than this (nanoseconds since 1970).
        since: Option<u64>,
        /// Go on until the connection closes; else [`Notice::Done`] follows at once.
        follow: bool,
    },
    /// Change what is wrong with the network of these services (for the end of all faults: all when empty). Answered by
    /// one [`Notice::Faults`] with what is in force there then.
    Net {
        /// Services.
        services: Vec<String>,
        /// What changes.
        change: Change,
    },
    /// Answered by one [`Notice::Faults`] with what is in force.
    Faults,
    /// Run a process in a running service. Descriptors: standard input, output, error.
    Exec(Exec),
    /// Run a one-off container with a service's configuration. Descriptors: standard input, output, error; none of a
    /// container whose output is kept because nobody waits for it.
    Run(Run),
    /// What this service waits for, because a container of it is about to be run: answered by one [`Notice::Needs`].
    Needs(String),
    /// On a connection that runs a process: send it this signal.
    Signal(i32),
    /// On the connection that started the supervisor: go on without it.
    Detach,
    /// On the connection that started the supervisor for a `run`: go on without it if others use the stack, which is
    /// answered by [`Notice::Done`]; else stop everything, and end.
    Leave,
    /// Answered by one [`Notice::Container`].
    Container(String),
    /// The same of a container that does not run; it does not start before this connection is closed.
    Hold(String),
    /// What `explain` cannot read from the kernel. Answered by one [`Notice::Known`].
    Known(String),
    /// Start a process in a running container, as `Exec` does, that tries calls which filters deny instead of becoming
    /// a program. Descriptors: standard input, output, error.
    Attempt(String),
}

/// `up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Up {
    /// What to bring up.
    pub plan: Plan,
    /// Image id of each service, as the builder or the store gave it.
    pub images: BTreeMap<String, String>,
    /// Values of the secrets that come from the environment or `.env`, by variable.
    pub secrets: BTreeMap<String, String>,
    /// Start only these services and what they depend on (all when empty).
    pub services: Vec<String>,
    /// `Done` only when all services are healthy, running, or have ended with status 0.
    pub wait: bool,
    /// Refuse limits that cannot be enforced here.
    pub strict: bool,
    /// Replace containers one by one, each when its successor is ready.
    #[serde(default)]
    pub rolling: bool,
    /// What is to be otherwise than usual.
    #[serde(default)]
    pub options: UpOptions,
}

/// What an `up` does otherwise than usual.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpOptions {
    /// Which containers are replaced.
    pub recreate: Recreate,
    /// Neither start nor wait for what the named services depend on, and replace nothing else.
    pub no_deps: bool,
    /// Make the containers and start none.
    pub no_start: bool,
    /// For what is replaced, as [`Stop::timeout`].
    pub timeout: Option<u32>,
    /// The stack's files, for who asks where it comes from.
    pub files: Vec<PathBuf>,
    /// It is for a one-off container: a stack that is there for such only ends with the last of them.
    pub one_off: bool,
}

/// Which containers that are there an `up` replaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recreate {
    /// Those whose configuration or image has changed.
    #[default]
    Changed,
    /// All of the named services.
    Always,
    /// None; they keep the configuration that they have.
    Never,
}

/// What to start, and until when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Services or single containers; all when empty.
    pub services: Vec<String>,
    /// As [`Up::wait`].
    pub wait: bool,
}

/// What to stop, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Services or single containers; all when empty.
    pub services: Vec<String>,
    /// Seconds from the stop signal to SIGKILL, instead of what each service asks for.
    pub timeout: Option<u32>,
}

/// `scale`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Scale {
    /// How many containers there are to be of each service that is named.
    pub counts: BTreeMap<String, u16>,
    /// What stands for these services, where nothing does yet.
    pub groups: Vec<network::plan::Group>,
    /// As [`UpOptions::no_deps`].
    #[serde(default)]
    pub no_deps: bool,
}

/// A process to run inside.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Exec {
    /// The service, or one container of it.
    pub service: String,
    /// Which replica of the service, from 1; otherwise the first one that runs.
    #[serde(default)]
    pub index: Option<u16>,
    /// Program and arguments; empty for the service's own (`run` only).
    pub argv: Vec<String>,
    /// Environment on top of the service's.
    pub env: Vec<(String, String)>,
    /// Working directory instead of the service's.
    pub cwd: Option<String>,
    /// User instead of the service's.
    pub user: Option<String>,
    /// With all capabilities of the stack's user namespace.
    #[serde(default)]
    pub privileged: bool,
    /// Standard input is a terminal.
    pub tty: bool,
    /// Nobody waits for its end.
    #[serde(default)]
    pub detach: bool,
}

/// A one-off container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Run {
    /// What runs in it. The index means nothing.
    pub exec: Exec,
    /// Its name, instead of one that nobody has.
    pub name: Option<String>,
    /// Entrypoint instead of the service's, whose command goes with it.
    pub entrypoint: Option<Vec<String>>,
    /// What it has beside the service's mounts, or in the place of those with the same target.
    pub mounts: Vec<crate::plan::Mount>,
    /// What it publishes.
    #[serde(default)]
    pub ports: Vec<RunPort>,
    /// It publishes what the service's file says, too.
    #[serde(default)]
    pub service_ports: bool,
    /// Capabilities that it has besides the service's.
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Capabilities of the service's that it does not have.
    #[serde(default)]
    pub cap_drop: Vec<String>,
}

/// A port that a one-off container publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPort {
    /// The host's address; without one that which the stack's file would mean.
    pub host_ip: Option<IpAddr>,
    /// Port of the host; 0 lets the kernel choose.
    pub host_port: u16,
    /// Port inside.
    pub container_port: u16,
    /// TCP or UDP.
    pub protocol: network::plan::Protocol,
}

impl RunPort {
    /// Reads `[IP:][HOST[-END]:]CONTAINER[-END][/PROTOCOL]`, as in a stack file.
    ///
    /// # Errors
    /// What is wrong with it, and what to write instead.
    pub fn read(word: &str) -> Result<Vec<Self>, String> {
        let ports = crate::file::ports::of_word(word).map_err(|fault| match fault.hint {
            Some(hint) => format!("{}; {hint}", fault.message),
            None => fault.message,
        })?;
        let port = |port: &crate::file::ports::PortFile| Self {
            host_ip: port.host_ip,
            host_port: port.host_port,
            container_port: port.container_port,
            protocol: port.protocol,
        };
        Ok(ports.iter().map(port).collect())
    }
}

/// What the supervisor tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Notice {
    /// A container changed its state.
    State {
        /// Name of the container, which is the service's for its first replica.
        service: String,
        /// The new state.
        state: State,
        /// A remark: why it failed, for example.
        detail: Option<String>,
    },
    /// A line that a service wrote.
    Log(Line),
    /// Something happened.
    Event(Event),
    /// Containers with what is wrong with their networks.
    Faults(Vec<Faulty>),
    /// Something that the user should know.
    Warning(String),
    /// The state of all containers.
    Status(Vec<Status>),
    /// The containers whose use of resources is asked for.
    Subjects(Vec<Subject>),
    /// How the services hang together.
    Topology(Topology),
    /// A container, in detail.
    Container(Box<Container>),
    /// What is published of a service, with the ports that the kernel chose.
    Ports(Vec<PublishedPort>),
    /// The stack itself.
    Stack(Stack),
    /// The name of the container of a `Run`.
    Name(String),
    /// What only the supervisor knows of a container.
    Known(Box<Known>),
    /// What is to be there before a one-off container.
    Needs(Needs),
    /// The process of an `Exec` or `Run` was started.
    Started {
        /// Host process id.
        pid: u32,
    },
    /// It ended: exit code, or 128 plus the signal's number.
    Exited {
        /// Exit status.
        status: i32,
    },
    /// Of a supervisor that was just started, and ends: the stack has another one.
    Occupied,
    /// To who would start something: the stack is being taken down, and can be brought up again when it is gone.
    Ending,
    /// The stack was taken down, and the supervisor ends. Without this word it has ended otherwise.
    TakenDown,
    /// The command was carried out.
    Done,
    /// It was not.
    Failed(RemoteError),
}

/// What [`Notice::Ending`] means to who does not wait for the end.
#[must_use]
pub fn being_taken_down() -> RemoteError {
    RemoteError::message("the stack is being taken down")
        .or_hint("`inception-run up` waits for the end of that, and brings it up again")
}

/// A stack that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Its files, absolute; none where it was read from standard input.
    pub files: Vec<PathBuf>,
}

/// What is to be there before a one-off container of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Needs {
    /// A container of the service that it can be like, or of one that it depends on: they are made by an `Up`.
    Container,
    /// These services, which are not what the service waits for.
    Services(Vec<String>),
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Name of the container, which is the service's for its first replica.
    pub service: String,
    /// `stdout` or `stderr`.
    pub stream: Stream,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// The line without its end; invalid UTF-8 is replaced.
    pub text: String,
}

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// State of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Known, not started.
    Created,
    /// Its dependencies are not there yet.
    Waiting,
    /// Its process runs.
    Running,
    /// Its processes stand still until somebody has them go on.
    Paused,
    /// It exited and will be started again after a pause.
    Restarting,
    /// It gets no new connections, and its stop signal when the ones it has are done, or after a while.
    Draining,
    /// It was sent its stop signal.
    Stopping,
    /// It exited.
    Exited,
}

/// Health of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No probe has succeeded yet, and none has counted as failed often enough.
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// As many probes as `retries` says failed in a row.
    Unhealthy,
}

/// One row of `ps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the container: the service's for its first replica.
    pub container: String,
    /// Service name.
    pub service: String,
    /// Which replica of the service it is, from 1.
    pub replica: u16,
    /// State.
    pub state: State,
    /// Health, when it has a health check and runs.
    pub health: Option<Health>,
    /// Published ports as `127.0.0.1:8443->443/tcp`, ranges folded.
    pub ports: Vec<String>,
    /// Those of them that stand for other ones of the file (`--port-offset`): from the file's to what is published.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moved_ports: BTreeMap<u16, u16>,
    /// Image name.
    pub image: String,
    /// Host process id of its PID 1 while it runs.
    pub pid: Option<u32>,
    /// Exit status of the last run.
    pub exit_code: Option<i32>,
    /// Whether the last run ended because a process was killed for memory.
    pub oom_killed: bool,
    /// How often it was restarted by its policy.
    pub restarts: u32,
    /// Seconds since it was started, while it runs.
    pub uptime: Option<f64>,
}

/// A container, and where the numbers of what it uses are found. They are read by whoever asks, not by the
/// supervisor, because that can take long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// Its row.
    pub status: Status,
    /// Its cgroup, where it has one.
    pub cgroup: Option<PathBuf>,
    /// The limits that the stack file asks for.
    pub limits: crate::plan::Limits,
    /// Whose memory was used up when it was killed for that.
    pub shortage: Option<Shortage>,
}

impl Subject {
    /// What there is to say about a container that was killed for memory.
    pub fn killed_for_memory(&self) -> Option<RemoteError> {
        let shortage = self.shortage.filter(|_| self.status.oom_killed)?;
        Some(memory::report(&self.status.container, shortage))
    }
}

/// `inspect`: what a container was started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Container {
    /// Its row.
    pub status: Status,
    /// The service as planned.
    pub service: crate::plan::Service,
    /// The sandbox as launched, without the content of generated files.
    pub sandbox: container::sandbox::Sandbox,
    /// Its addresses, by network.
    pub addresses: BTreeMap<String, std::net::Ipv4Addr>,
}

/// What only the supervisor knows of a container: where in the kernel to look, and what things are called there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Known {
    /// The container.
    pub container: Container,
    /// Its cgroup, where it has one.
    pub cgroup: Option<PathBuf>,
    /// Process id of the supervisor.
    pub supervisor: u32,
    /// Process id of the hub, which has the stack's own namespaces.
    pub hub: u32,
    /// Process id of netd, while it runs.
    pub netd: Option<u32>,
    /// Its interfaces, and their other ends.
    pub interfaces: Vec<network::plan::Interface>,
    /// The networks that it is on.
    pub networks: Vec<network::plan::Network>,
    /// The ports of its service that are published, with the numbers that they really have.
    pub published: Vec<PublishedPort>,
}
