//! What only an attempt can tell, made in a short-lived child in namespaces of its own.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use container::cgroup::{self, Controller, Delegation, Reason};
use container::idmap::IdMap;
use network::link::Namespaces;
use network::plan::{Attachment, EndpointRequest, NetworkRequest};
use network::shape::Shape;
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};
use sys::channel::Channel;
use sys::process::namespace;

use super::facts::existing;
use crate::paths::Paths;
use crate::remote::{self, RemoteError};

/// How long the attempts may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Name of the network and of its one service.
const PROBE: &str = "doctor";

/// What came of it.
#[derive(Debug, Clone)]
pub(super) enum Attempt {
    /// No user namespace could be made, or not with the id map.
    Refused(String),
    /// The child did not tell.
    Lost(String),
    Made(Trials),
}

/// What was tried in a user namespace; errors in words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Trials {
    /// An overlay, and a write through it.
    pub(super) overlay: Result<(), String>,
    /// A bridge, and a network namespace that is linked to it.
    pub(super) links: Result<(), String>,
    /// What else networks need; `None` without links to try it with.
    pub(super) packets: Option<Packets>,
    /// Files of the current directory with mapped owners, as root only.
    pub(super) idmap: Option<Result<(), String>>,
}

/// What was tried with packets; errors in words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Packets {
    /// The rules that bring what leaves a network to netd, and their routes.
    pub(super) nftables: Result<(), String>,
    /// New connections wait in a queue until netd knows whether the other end is there.
    pub(super) queue: bool,
    /// Rules of a bridge.
    pub(super) partition: Result<(), String>,
    /// A link that delays.
    pub(super) netem: Result<(), String>,
}

/// Makes a user namespace with the id map, as a stack's would be, and tries what a stack does in it.
pub(super) fn make(paths: &Paths) -> Attempt {
    match attempt(paths) {
        Ok(attempt) => attempt,
        Err(error) => Attempt::Lost(error.to_string()),
    }
}

fn attempt(paths: &Paths) -> Result<Attempt, RemoteError> {
    let map = IdMap::current()?;
    let here = fs::File::open(existing(&paths.data)).or_else(|_| fs::File::open("/"))?;
    let namespaces = namespace::MOUNT | namespace::PID | namespace::NETWORK;
    let spawned = container::userns::spawn(&map, namespaces, here.as_fd(), |channel| {
        let linked = links().map_err(|error| error.to_string());
        let (links, packets) = match linked {
            Ok(mut namespaces) => (Ok(()), Some(packets(&mut namespaces))),
            Err(error) => (Err(error), None),
        };
        // Last, because it covers /tmp.
        let overlay = overlay().map_err(|(step, error)| format!("{step}: {error}"));
        let trials = Trials { overlay, links, packets, idmap: None };
        remote::send(&channel, &trials, &[]).map_or(1, |()| 0)
    });
    let (child, channel) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => return Ok(Attempt::Refused(RemoteError::from(error).to_string())),
    };
    let answer = channel.recv_until(Instant::now() + DEADLINE);
    let idmap = map.direct.then(|| idmap(child.pid).map_err(|error| error.to_string()));
    drop(channel);
    container::userns::end(&child)?;
    let message = answer?.ok_or_else(|| RemoteError::message("the attempt was killed"))?;
    let trials: Trials = remote::decode(message)?.0;
    Ok(Attempt::Made(Trials { idmap, ..trials }))
}

/// What a process finds that looks for a cgroup to divide.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Found {
    /// The cgroup below which others can be made.
    pub(super) parent: Option<PathBuf>,
    /// Its controllers.
    pub(super) controllers: Vec<String>,
    /// Controllers that cannot be had. In pairs, because keys of JSON are texts.
    missing: Vec<(Controller, Reason)>,
    /// Why systemd gave no scope.
    pub(super) refused: Option<String>,
}

impl From<&Delegation> for Found {
    fn from(delegation: &Delegation) -> Self {
        let controllers = delegation.parent.as_ref().map_or_else(String::new, |parent| {
            fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default()
        });
        Self {
            parent: delegation.parent.clone(),
            controllers: controllers.split_whitespace().map(str::to_owned).collect(),
            missing: delegation.missing.iter().map(|(c, reason)| (*c, reason.clone())).collect(),
            refused: delegation.refused().map(str::to_owned),
        }
    }
}

impl Found {
    /// Controllers that cannot be had.
    pub(super) fn missing(&self) -> BTreeMap<Controller, Reason> {
        self.missing.iter().cloned().collect()
    }
}

/// Asks systemd for a scope, as a stack with limits does for an ordinary user, for a child that ends at once, and the
/// scope with it.
pub(super) fn scope() -> Result<Found, RemoteError> {
    let (ours, theirs) = Channel::pair()?;
    let child = sys::process::spawn(0, || {
        let found = Found::from(&cgroup::delegation_for("doctor"));
        remote::send(&theirs, &found, &[]).map_or(1, |()| 0)
    })?;
    drop(theirs);
    let answer = ours.recv_until(Instant::now() + DEADLINE);
    container::userns::end(&child)?;
    let message = answer?.ok_or_else(|| RemoteError::message("the attempt was killed"))?;
    Ok(remote::decode(message)?.0)
}

/// A network with one service, as a stack has it, in the child's own network namespace.
fn links() -> Result<Namespaces, RemoteError> {
    let name = PROBE.to_owned();
    let attachment = Attachment { network: name.clone(), ..Attachment::default() };
    let endpoint = EndpointRequest {
        service: name.clone(),
        attachments: vec![attachment],
        ..EndpointRequest::default()
    };
    let network = NetworkRequest { name, ..NetworkRequest::default() };
    let plan = network::plan::allocate(&[network], &[endpoint], &[])?;
    let mut namespaces = Namespaces::open()?;
    namespaces.apply(&plan)?;
    Ok(namespaces)
}

/// What the rest of a stack's network needs of the kernel, tried with a service that is linked already.
fn packets(namespaces: &mut Namespaces) -> Packets {
    let words = |error: network::Error| RemoteError::from(error).to_string();
    let intercepted = namespaces.intercept().map_err(words);
    let queue = intercepted.as_ref().is_ok_and(|sockets| sockets.connections.is_some());
    let delay = Shape { delay: Some(Duration::from_millis(1)), ..Shape::default() };
    Packets {
        nftables: intercepted.map(drop),
        queue,
        partition: namespaces.partition(PROBE, &[]).map_err(words),
        netem: namespaces.shape(PROBE, &delay).map_err(words),
    }
}

/// Mounts an overlay on a tmpfs, in the child's own mount namespace, and writes through it.
fn overlay() -> Result<(), (&'static str, io::Error)> {
    let step = |step: &'static str| move |error: rustix::io::Errno| (step, io::Error::from(error));
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(step("make mounts private"))?;
    let none: Option<&CStr> = None;
    rustix::mount::mount("tmpfs", "/tmp", "tmpfs", MountFlags::empty(), none)
        .map_err(step("mount a tmpfs"))?;
    for directory in ["l", "u", "w", "m"] {
        fs::create_dir(Path::new("/tmp").join(directory)).map_err(|e| ("create a directory", e))?;
    }
    let options = c"lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w,userxattr";
    rustix::mount::mount("overlay", "/tmp/m", "overlay", MountFlags::empty(), options)
        .map_err(step("mount an overlay"))?;
    fs::write("/tmp/m/file", "x").map_err(|e| ("write through an overlay", e))
}

/// A detached copy of the current directory's mount with the child's owners: seen by nobody, and gone at once.
fn idmap(pid: i32) -> io::Result<()> {
    let namespace = OwnedFd::from(fs::File::open(format!("/proc/{pid}/ns/user"))?);
    sys::mount::idmapped_tree(Path::new("."), &namespace).map(drop)
}
