//! The mounts that a `RUN` asks for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use container::sandbox::{Mount, MountSource};
use image::{BoxError, RunSource, RunStep};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};
use sys::channel::Channel;
use sys::mount::attribute;

use super::network::Question;
use crate::remote::{self, RemoteError};

/// Mounts, and the detached ones among them.
#[derive(Default)]
pub(super) struct Mounted {
    pub(super) mounts: Vec<Mount>,
    pub(super) detached: Vec<OwnedFd>,
}

/// Makes a step's mounts ready. Runs in a storage worker; `command` is who can pass an agent's connections on.
pub(super) fn of(step: &RunStep, command: &Channel) -> Result<Mounted, BoxError> {
    let mut all = Mounted::default();
    for mount in &step.mounts {
        let mut attributes = attribute::NODEV;
        if mount.read_only {
            attributes |= attribute::RDONLY;
        }
        let source = match &mount.source {
            // It is there, so that nothing is copied to it.
            RunSource::Directory(path) => {
                MountSource::Volume { path: path.clone(), empty: true, subpath: None }
            }
            RunSource::Tmpfs { size } => {
                attributes |= attribute::NOSUID;
                MountSource::Tmpfs { size: *size, mode: 0o1777, uid: 0, gid: 0 }
            }
            RunSource::File { content, mode, uid, gid } => {
                MountSource::File { content: content.0.clone(), mode: *mode, uid: *uid, gid: *gid }
            }
            RunSource::Layers { layers, source, upper, work, merged } => {
                let tree = merge(layers, [upper, work, merged], source)
                    .map_err(|error| format!("mount `{source}` on `{}`: {error}", mount.target))?;
                all.detached.push(tree);
                MountSource::Descriptor(all.detached.len() - 1)
            }
            RunSource::Agent { id, path, mode, uid, gid } => {
                listen(command, id, Path::new(path), *mode, (*uid, *gid))
                    .map_err(|error| format!("pass on the SSH agent `{id}`: {error}"))?;
                MountSource::Volume { path: path.clone(), empty: true, subpath: None }
            }
        };
        all.mounts.push(Mount::new(&mount.target, source, attributes));
    }
    Ok(all)
}

/// The tree at `source` in an overlay of layers. What is written to it goes with the overlay.
fn merge(layers: &[String], [upper, work, merged]: [&String; 3], source: &str) -> io::Result<OwnedFd> {
    let mut lower: Vec<&str> = Vec::new();
    // overlayfs refuses a layer that comes twice; the lower of the two changes nothing.
    for layer in layers.iter().rev() {
        if !lower.contains(&layer.as_str()) {
            lower.push(layer);
        }
    }
    if lower.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the stage has no files"));
    }
    let options = format!("userxattr,lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("overlay", merged, "overlay", MountFlags::NODEV, Some(options.as_c_str()))?;
    let tree = open_tree(merged, source);
    // The copy keeps the file system.
    rustix::mount::unmount(merged, UnmountFlags::DETACH)?;
    tree
}

/// A detached copy of what is at `source`, links resolved as if `root` were `/`.
fn open_tree(root: &str, source: &str) -> io::Result<OwnedFd> {
    let open = |path: &str, directory| {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | directory, Mode::empty())
    };
    let root = open(root, OFlags::DIRECTORY)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let source = if source.is_empty() { "." } else { source };
    let found = loop {
        match rustix::fs::openat2(&root, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename somewhere raced with the look-up (openat2(2)).
            Err(Errno::AGAIN) => {}
            found => break found?,
        }
    };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(&found, "", flags)?)
}

/// A socket at `path` whose connections the command passes on to the user's agent.
fn listen(command: &Channel, id: &str, path: &Path, mode: u32, owner: (u32, u32)) -> Result<(), RemoteError> {
    let listener = UnixListener::bind(path)?;
    chown(path, Some(owner.0), Some(owner.1))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    remote::send(command, &Question::Agent(id.to_owned()), &[listener.as_fd()])?;
    let answer = command.recv()?.ok_or_else(|| RemoteError::message("the command is gone"))?;
    remote::decode::<Result<(), RemoteError>>(answer)?.0
}
