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
use network::plan::{Attachment, EndpointRequest, NetworkRequest};
use rustix::mount::MountFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use serde::{Deserialize, Serialize};
use sys::channel::Channel;
use sys::process::namespace;

use super::facts::existing;
use crate::paths::Paths;
use crate::remote::{self, RemoteError};

/// How long the attempts may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long the kernel may take to answer a message.
const NETLINK_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// A table of packet rules.
    pub(super) nftables: Result<(), String>,
    /// Files of the current directory with mapped owners, as root only.
    pub(super) idmap: Option<Result<(), String>>,
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
        let links = links().map_err(|error| error.to_string());
        let nftables = table().map_err(|error| error.to_string());
        // Last, because it covers /tmp.
        let overlay = overlay().map_err(|(step, error)| format!("{step}: {error}"));
        let trials = Trials { overlay, links, nftables, idmap: None };
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
fn links() -> Result<(), RemoteError> {
    let name = "doctor".to_owned();
    let attachment = Attachment { network: name.clone(), ..Attachment::default() };
    let endpoint = EndpointRequest {
        service: name.clone(),
        attachments: vec![attachment],
        ..EndpointRequest::default()
    };
    let network = NetworkRequest { name, ..NetworkRequest::default() };
    let plan = network::plan::allocate(&[network], &[endpoint], &[])?;
    network::link::wire(&plan)?;
    Ok(())
}

/// A table of nftables in the child's own network namespace, in one transaction (`linux/netfilter/nfnetlink.h`).
fn table() -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(NETLINK_TIMEOUT))?;
    rustix::net::send(&socket, &transaction(), SendFlags::empty())?;
    let mut answer = [0u8; 4096];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    match status(answer.get(..length).unwrap_or_default()) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE` of netlink(7).
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const CREATE: u16 = 0x400;
/// `NLMSG_ERROR` of netlink(7), which an acknowledgement is too.
const ERROR: u16 = 2;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`; the upper half of a message's type. The lower half 0 is `NFT_MSG_NEWTABLE`.
const NFTABLES: u16 = 10;
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFTA_TABLE_NAME`.
const TABLE_NAME: u16 = 1;

/// Begin, a new table, end.
fn transaction() -> Vec<u8> {
    let mut bytes = message(BEGIN, REQUEST, 1, 0, NFTABLES, &[]);
    // Length, type, a name with its zero.
    let name = b"doctor\0\0";
    let mut attribute = (4 + 7u16).to_ne_bytes().to_vec();
    attribute.extend(TABLE_NAME.to_ne_bytes());
    attribute.extend(name);
    bytes.extend(message(NFTABLES << 8, REQUEST | ACKNOWLEDGE | CREATE, 2, INET, 0, &attribute));
    bytes.extend(message(END, REQUEST, 3, 0, NFTABLES, &[]));
    bytes
}

/// A netlink message with nfnetlink's header.
fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (20 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // To the kernel.
    bytes.extend(0u32.to_ne_bytes());
    // Version 0.
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// The error number in an acknowledgement; 0 is success.
fn status(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let negative = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (kind == ERROR).then_some(negative.checked_neg()?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole() {
        let bytes = transaction();
        let mut rest = bytes.as_slice();
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            assert!(length.is_multiple_of(4) && length <= rest.len());
            kinds.push(u16::from_ne_bytes(rest[4..6].try_into().unwrap()));
            rest = &rest[length..];
        }
        assert_eq!(kinds, [0x10, 0x0a00, 0x11]);
    }

    #[test]
    fn answers_of_the_kernel() {
        let answer = |kind: u16, errno: i32| {
            let mut bytes = message(kind, 0, 2, 0, 0, &[]);
            bytes.truncate(16);
            bytes.extend(errno.to_ne_bytes());
            bytes
        };
        assert_eq!(status(&answer(ERROR, 0)), Some(0));
        assert_eq!(status(&answer(ERROR, -1)), Some(1));
        assert_eq!(status(&answer(3, 0)), None);
        assert_eq!(status(&answer(ERROR, i32::MIN)), None);
        assert_eq!(status(&[]), None);
    }
}
