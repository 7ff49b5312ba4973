//! `explain`: what a container is, read from the running kernel.
//!
//! [`service`] gathers everything in one place, as plain data, that every form of output is made from. It is read from
//! `/proc` and the cgroup, beside what this process reads of itself: the host. Only names and numbers by which to look
//! (processes of the stack, interfaces, the image) are asked of the supervisor and the store. All of it can change or
//! end while it is read: what is gone then is a [`Fact`] that says so, and when the container itself ended, whose
//! number another process may have by now, there is an error instead of a mixture.

mod cgroups;
mod images;
mod kernel;
mod mounts;
mod network;
mod powers;
mod processes;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use container::capability;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Serialize;

use crate::client::{self, Client};
use crate::control::{Command, Known, Notice, State, Subject};
use crate::paths::Paths;
use crate::remote::{Context, RemoteError};
use crate::{stats, store};

pub use cgroups::{Cgroup, Layout, Limit, Membership};
pub use images::{ImageFacts, Instruction, image};
pub use kernel::{Fact, Reason};
pub use mounts::{Layer, Mount, Mounts, Overlay};
pub use network::{Dns, Interface, Listener, Network, Published, Route, Seen};
pub use powers::{Attempt, Capabilities, Capability, Device, Filter, Refused};
pub use processes::{Example, Extent, IdMap, Namespace, Process};

use kernel::Kernel;

/// How long the supervisor, and what it starts for us, may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest `/etc/resolv.conf` that is read, in bytes.
const RESOLV_CONF: u64 = 64 << 10;

/// Everything about a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    /// Name of the stack.
    pub stack: String,
    /// Name of the service.
    pub service: String,
    /// Name of the container: the service's for its first replica.
    pub container: String,
    /// Name of the image that it was asked for with.
    pub image: String,
    /// Id of the image that it runs on, if the store has it.
    pub image_id: Option<String>,
    /// The kernel's release.
    pub kernel: String,
    /// Processes of the stack, by their numbers on the host.
    pub pids: Pids,
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// Processes, the container's PID 1 first.
    pub processes: Vec<Process>,
    /// User ids.
    pub uids: Fact<IdMap>,
    /// Group ids.
    pub gids: Fact<IdMap>,
    /// Mounts.
    pub mounts: Fact<Mounts>,
    /// Limits and use.
    pub cgroup: Cgroup,
    /// Capabilities of its program.
    pub capabilities: Capabilities,
    /// The filter on system calls of its program.
    pub seccomp: Filter,
    /// Device files.
    pub devices: Fact<Vec<Device>>,
    /// Network.
    pub network: Network,
}

/// Processes of a stack, by their numbers on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pids {
    /// The supervisor.
    pub supervisor: u32,
    /// The hub, which has the stack's own namespaces.
    pub hub: u32,
    /// What carries connections in and out, where the stack has a network.
    pub netd: Option<u32>,
    /// The container's PID 1.
    pub first: u32,
    /// Its program: the child of its init, or the same.
    pub program: u32,
}

/// Why a container cannot be explained.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// It does not run.
    #[error("service `{name}` is not running: it is {state}")]
    NotRunning { name: String, state: &'static str },
    /// It ended while it was read.
    #[error("service `{name}` ended while it was being looked at")]
    Ended { name: String },
}

impl Error {
    fn hint(&self) -> String {
        match self {
            Self::NotRunning { name, .. } => {
                format!("`inception-run start {name}` starts it; `explain --image` explains what it runs on")
            }
            Self::Ended { name } => {
                format!("`inception-run logs {name}` may say why; if it was restarted, try again")
            }
        }
    }
}

impl From<Error> for RemoteError {
    fn from(error: Error) -> Self {
        Self::new(&error, Some(error.hint()), 1)
    }
}

/// Explains a running service, or one container of it such as `web-2`.
///
/// # Errors
/// A stack or service that does not run, an unknown one, one that ended meanwhile.
pub fn service(paths: &Paths, stack: &str, name: &str) -> Result<Facts, RemoteError> {
    let mut client = connect(paths, stack)?;
    let known = known(&mut client, name)?;
    let status = &known.container.status;
    let container = status.container.clone();
    let first =
        status.pid.ok_or_else(|| Error::NotRunning { name: name.to_owned(), state: word(status.state) })?;
    let kernel = Kernel::here();
    let ended = || Error::Ended { name: name.to_owned() };
    let began = kernel.began(first).ok_or_else(ended)?;
    let attempts = attempt(paths, stack, &container);
    let mut facts = gather(&kernel, paths, stack, &known, first, attempts)?;
    if let Some(root) =
        facts.mounts.known().and_then(|mounts| mounts.root.as_ref()).filter(|root| root.upper.is_some())
    {
        let size = match store::written_by(paths, stack, &container) {
            Ok(bytes) => Fact::Known(bytes),
            Err(error) => Fact::unknown(Reason::Failed, error.to_string()),
        };
        let root = Overlay { size, ..root.clone() };
        if let Fact::Known(mounts) = &mut facts.mounts {
            mounts.root = Some(root);
        }
    }
    // Of one and the same process, from the first to the last.
    if kernel.began(first) != Some(began) {
        return Err(ended().into());
    }
    Ok(facts)
}

fn gather(
    kernel: &Kernel,
    paths: &Paths,
    stack: &str,
    known: &Known,
    first: u32,
    attempts: Fact<Vec<Attempt>>,
) -> Result<Facts, RemoteError> {
    let status = &known.container.status;
    let image = store::image_of(paths, stack, &status.container)?;
    let (image, lines) = image.map_or((None, Vec::new()), |(image, lines)| (Some(image), lines));
    let names = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let uids = IdMap::read(kernel, first, "uid_map", &names("/etc/passwd"));
    let gids = IdMap::read(kernel, first, "gid_map", &names("/etc/group"));
    let mut pids = stats::processes_of(first)?;
    // PID 1 first; it has the lowest number but where numbers have wrapped around.
    pids.sort_by_key(|pid| (*pid != first, *pid));
    let no_map = IdMap::default();
    let processes: Vec<Process> =
        pids.iter().map(|pid| processes::process(kernel, *pid, uids.known().unwrap_or(&no_map))).collect();
    let program = program(kernel, known, first, &pids);
    let bounding = known.container.sandbox.process.capabilities.bounding();
    let bounding = bounding & ((1 << capability::NAMES.len()) - 1);
    let mut cgroup = cgroups::cgroup(kernel, first, known.hub, &missing());
    cgroup.usage = usage(known)?;
    Ok(Facts {
        stack: stack.to_owned(),
        service: status.service.clone(),
        container: status.container.clone(),
        image: status.image.clone(),
        image_id: image.map(|image| image.id.to_string()),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        pids: Pids { supervisor: known.supervisor, hub: known.hub, netd: known.netd, first, program },
        namespaces: processes::namespaces(kernel, known.hub, first),
        uids,
        gids,
        mounts: mounts::mounts(kernel, first, &lines),
        cgroup,
        capabilities: powers::capabilities(kernel, program),
        seccomp: powers::filter(kernel, program, &known.container.sandbox.seccomp, bounding, attempts)?,
        devices: powers::devices(kernel, first),
        network: network::network(kernel, first, &pids, known, resolv_conf(kernel, first)),
        processes,
    })
}

/// The program that the container is for: of what its init has as children, the first.
fn program(kernel: &Kernel, known: &Known, first: u32, pids: &[u32]) -> u32 {
    if known.container.sandbox.init.is_none() {
        return first;
    }
    let parent = |pid: u32| {
        let status = kernel.text(pid, "status");
        status.known().and_then(|text| kernel::field(text, "PPid")?.parse::<u32>().ok())
    };
    let child = pids.iter().copied().filter(|pid| *pid != first).find(|pid| parent(*pid) == Some(first));
    child.unwrap_or(first)
}

/// Controllers that cannot be had on this host, each reason once.
fn missing() -> Vec<String> {
    let delegation = container::cgroup::delegation();
    let mut by_reason: Vec<(String, Vec<&str>)> = Vec::new();
    for (controller, reason) in &delegation.missing {
        let reason = reason.to_string();
        match by_reason.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, controllers)) => controllers.push(controller.name()),
            None => by_reason.push((reason, vec![controller.name()])),
        }
    }
    let sentence = |(reason, controllers): &(String, Vec<&str>)| {
        format!("no limits of {} from version 2 here: {reason}", controllers.join(", "))
    };
    by_reason.iter().map(sentence).collect()
}

fn usage(known: &Known) -> Result<Option<stats::Measured>, RemoteError> {
    let subject = Subject {
        status: known.container.status.clone(),
        cgroup: known.cgroup.clone(),
        limits: known.container.service.limits.clone(),
        shortage: None,
    };
    let samples = stats::sample(vec![subject])?;
    let readings = stats::readings(&[], &samples, stats::host_memory());
    Ok(readings.into_iter().next().and_then(|reading| reading.usage))
}

/// The container's own file. Links on the way are its own to set, and are resolved inside.
fn resolv_conf(kernel: &Kernel, first: u32) -> Fact<String> {
    let path = kernel.path(&format!("{first}/root"));
    let read = || -> io::Result<String> {
        let root = File::open(&path)?;
        // It may be a FIFO, which nobody writes to.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened =
            rustix::fs::openat2(&root, "etc/resolv.conf", flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let mut bytes = Vec::new();
        File::from(opened).take(RESOLV_CONF).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => Fact::Known(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {
            Fact::unknown(Reason::Absent, "it has no /etc/resolv.conf")
        }
        Err(error) => kernel.unread(&first.to_string(), &path, &error),
    }
}

fn connect(paths: &Paths, stack: &str) -> Result<Client, RemoteError> {
    client::connect(paths, stack)?.ok_or_else(|| {
        RemoteError::message(format!("stack `{stack}` is not running"))
            .or_hint("`inception-run up -d` starts it")
    })
}

fn known(client: &mut Client, name: &str) -> Result<Known, RemoteError> {
    client.send(&Command::Known(name.to_owned()), &[])?;
    let deadline = Some(Instant::now() + DEADLINE);
    loop {
        match client.next(deadline)? {
            Some(Notice::Known(known)) => return Ok(*known),
            Some(Notice::Failed(error)) => return Err(error),
            Some(_) => {}
            None => return Err(RemoteError::message("the stack's supervisor has ended")),
        }
    }
}

/// Has a process put beside the program that tries what its filter denies.
fn attempt(paths: &Paths, stack: &str, container: &str) -> Fact<Vec<Attempt>> {
    match written_by_attempt(paths, stack, container) {
        Ok(text) => {
            Fact::Known(text).parse("what the process wrote that tried", |text| powers::attempts(&text))
        }
        Err(error) => Fact::unknown(Reason::Failed, error.to_string()),
    }
}

fn written_by_attempt(paths: &Paths, stack: &str, container: &str) -> Result<String, RemoteError> {
    let mut client = connect(paths, stack)?;
    let null =
        File::options().read(true).write(true).open("/dev/null").context(|| "open /dev/null".into())?;
    let (mut ours, theirs) = io::pipe().context(|| "create a pipe".into())?;
    let command = Command::Attempt(container.to_owned());
    client.send(&command, &[null.as_fd(), theirs.as_fd(), null.as_fd()])?;
    drop(theirs);
    let deadline = Some(Instant::now() + DEADLINE);
    loop {
        match client.next(deadline)? {
            Some(Notice::Exited { status: 0 }) => break,
            Some(Notice::Exited { status }) => {
                return Err(RemoteError::message(format!(
                    "the process that tried calls ended with status {status}"
                )));
            }
            Some(Notice::Failed(error)) => return Err(error),
            Some(_) => {}
            None => return Err(RemoteError::message("the stack's supervisor has ended")),
        }
    }
    // It has ended: all that it wrote, which is little, is in the pipe.
    let mut text = String::new();
    ours.read_to_string(&mut text).context(|| "read what was tried".into())?;
    Ok(text)
}

fn word(state: State) -> &'static str {
    match state {
        State::Created => "not started",
        State::Waiting => "waiting for what it depends on",
        State::Running => "ending",
        State::Paused => "paused",
        State::Restarting => "about to be restarted",
        State::Draining => "being drained",
        State::Stopping => "stopping",
        State::Exited => "exited",
    }
}
