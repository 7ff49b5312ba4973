//! Device nodes: those that every container has, and those of `config.json`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use init::report::{Failure, Stage};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::error::Error;
use crate::mounts::{clone_fd, ensure, existing, move_onto, split};

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Device {
    /// Absolute path inside.
    pub(super) path: String,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// "Default Devices" of the specification's `config-linux.md`, but for the console and the terminals' multiplexer.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links that programs expect ("Dev symbolic links" of the specification's `runtime-linux.md`).
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    MULTIPLEXER,
];

const MULTIPLEXER: (&str, &str) = ("/dev/ptmx", "pts/ptmx");

/// What `config` asks for, after the default ones that it does not name.
pub(super) fn resolve(config: &[LinuxDevice]) -> Result<Vec<Device>, Error> {
    let mut devices = Vec::new();
    for (index, device) in config.iter().enumerate() {
        let field = |name: &str| format!("linux.devices[{index}].{name}");
        let path = device.path().to_str().ok_or_else(|| Error::invalid(field("path"), "is not UTF-8"))?;
        if path == MULTIPLEXER.0 {
            // A link to the one of the container's own terminals, whatever the host's is.
            continue;
        }
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => return Err(Error::invalid(field("type"), "is no type of a node")),
        };
        let number = |name: &str, number: i64| {
            u32::try_from(number)
                .map_err(|_| Error::invalid(field(name), format!("{number} is no device number")))
        };
        let fifo = kind == FileType::Fifo;
        devices.push(Device {
            path: path.to_owned(),
            kind,
            major: if fifo { 0 } else { number("major", device.major())? },
            minor: if fifo { 0 } else { number("minor", device.minor())? },
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        });
    }
    for (path, major, minor) in DEFAULT {
        if !devices.iter().any(|device| device.path == path) {
            let (kind, path) = (FileType::CharacterDevice, path.to_owned());
            devices.push(Device { path, kind, major, minor, mode: 0o666, uid: 0, gid: 0 });
        }
    }
    Ok(devices)
}

/// Makes the node beneath `root`; binds the host's, where this process may not make one.
pub(super) fn make(root: BorrowedFd<'_>, device: &Device, bind: bool) -> Result<(), Failure> {
    let make = || -> io::Result<()> {
        if bind {
            return bind_host(root, device);
        }
        match node(root, device) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => bind_host(root, device),
            other => other,
        }
    };
    make().map_err(|error| Failure::new(Stage::Mount, format!("device {}", device.path), error))
}

fn node(root: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    let (parent, name) = split(&device.path)?;
    let parent = ensure(root, parent, true)?;
    let number = rustix::fs::makedev(device.major, device.minor);
    match rustix::fs::mknodat(&parent, name, device.kind, Mode::from_raw_mode(device.mode), number) {
        Ok(()) => {}
        // The image or a bind mount has one there; only the same will do.
        Err(Errno::EXIST) => return same(root, device),
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
    if !is(device, made.as_fd())? {
        return Err(Errno::EXIST.into());
    }
    // By the descriptor from here on: another name may stand there meanwhile, a link to a file of the host's for one.
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    // chown(2) clears bits. The root has not been changed yet, so this is the host's /proc.
    let path = format!("/proc/self/fd/{}", made.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(device.mode))?)
}

fn is(device: &Device, there: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = rustix::fs::fstat(there)?;
    let number =
        device.kind == FileType::Fifo || stat.st_rdev == rustix::fs::makedev(device.major, device.minor);
    Ok(number && FileType::from_raw_mode(stat.st_mode) == device.kind)
}

fn same(root: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    let there = existing(root, &device.path)?.ok_or(Errno::EXIST)?;
    if is(device, there.as_fd())? { Ok(()) } else { Err(Errno::EXIST.into()) }
}

fn bind_host(root: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let host = rustix::fs::openat(CWD, &device.path, flags, Mode::empty())?;
    if !is(device, host.as_fd())? {
        return Err(Errno::NODEV.into());
    }
    let tree = clone_fd(host.as_fd())?;
    let place = ensure(root, &device.path, false)?;
    move_onto(tree.as_fd(), place.as_fd())
}

/// Makes the links that programs expect in `/dev`; what is there already stays.
pub(super) fn link(root: BorrowedFd<'_>) -> Result<(), Failure> {
    for (path, to) in LINKS {
        let make = || -> io::Result<()> {
            let (parent, name) = split(path)?;
            let parent = ensure(root, parent, true)?;
            match rustix::fs::symlinkat(to, &parent, name) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        };
        make().map_err(|error| Failure::new(Stage::Mount, format!("link {path}"), error))?;
    }
    Ok(())
}
