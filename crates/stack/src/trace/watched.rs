//! What the kernel tells of watched processes: their memory, descriptors, namespaces, mounts.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;

use super::call::{Call, CapabilitySets, Object, Origin};
use super::decode::Process;
use super::netlink::{self, Links, Request};

/// What was learnt from earlier calls and belongs to no single process.
#[derive(Debug, Default)]
pub(super) struct Learned {
    /// Detached mounts, by the number that the kernel has for each (`mnt_id` of `/proc/PID/fdinfo`).
    mounts: HashMap<u64, Object>,
    /// File systems in the making, by process and descriptor.
    contexts: HashMap<(i32, i32), Object>,
    /// Netlink sockets by what `/proc/PID/fd` calls them: protocol, and network namespace.
    sockets: HashMap<String, (i32, Option<String>)>,
    /// Names of links.
    links: RefCell<Links>,
}

impl Learned {
    /// The process has made a netlink socket.
    pub(super) fn socket(&mut self, pid: i32, fd: i32, protocol: i32) {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let namespace = namespace.and_then(|link| link.into_os_string().into_string().ok());
        if let Some(name) = descriptor(pid, fd) {
            self.sockets.insert(name, (protocol, namespace));
        }
    }

    /// A call has succeeded: what it made or changed is kept in mind. `argument` is its first one.
    pub(super) fn learn(&mut self, pid: i32, call: &Call, argument: u64, result: i64) {
        let (fd, made) = (argument as i32, result as i32);
        match call {
            Call::OpenTree { path, flags } => {
                let path = path.clone().unwrap_or_default();
                let recursive = flags & libc::AT_RECURSIVE as u64 != 0;
                self.detached(pid, made, Object { origin: Origin::Copy { path, recursive }, attributes: 0 });
            }
            Call::FsOpen { kind } => {
                let kind = kind.clone().unwrap_or_default();
                let origin = Origin::New { kind, options: Vec::new() };
                self.contexts.insert((pid, made), Object { origin, attributes: 0 });
            }
            Call::FsConfig { key: Some(key), value, .. } => {
                if let Some(Object { origin: Origin::New { options, .. }, .. }) =
                    self.contexts.get_mut(&(pid, fd))
                {
                    options.push((key.clone(), value.clone()));
                }
            }
            Call::FsMount { attributes, .. } => {
                if let Some(context) = self.contexts.remove(&(pid, fd)) {
                    self.detached(pid, made, Object { attributes: *attributes, ..context });
                }
            }
            Call::MoveMount { .. } => {
                if let Some(id) = mount_id(pid, fd) {
                    self.mounts.remove(&id);
                }
            }
            Call::MountSetattr { set, clear, .. } => {
                let object = mount_id(pid, fd).and_then(|id| self.mounts.get_mut(&id));
                if let Some(object) = object {
                    object.attributes = (object.attributes & !clear) | set;
                }
            }
            _ => {}
        }
    }

    fn detached(&mut self, pid: i32, fd: i32, object: Object) {
        if let Some(id) = mount_id(pid, fd) {
            self.mounts.insert(id, object);
        }
    }
}

/// A process that is stopped at a call.
pub(super) struct Watched<'a> {
    pub(super) pid: i32,
    pub(super) learned: &'a Learned,
}

impl Process for Watched<'_> {
    fn memory(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        sys::trace::read(self.pid, address, length).ok()
    }

    fn descriptor(&self, fd: i32) -> Option<String> {
        descriptor(self.pid, fd)
    }

    fn directory(&self) -> Option<String> {
        read_link(&format!("/proc/{}/cwd", self.pid))
    }

    fn object(&self, fd: i32) -> Option<Object> {
        let known = mount_id(self.pid, fd).and_then(|id| self.learned.mounts.get(&id).cloned());
        // What came from elsewhere, or is attached already.
        known.or_else(|| {
            let origin = Origin::Copy { path: self.descriptor(fd)?, recursive: false };
            Some(Object { origin, attributes: 0 })
        })
    }

    fn context(&self, fd: i32) -> Option<String> {
        match &self.learned.contexts.get(&(self.pid, fd))?.origin {
            Origin::New { kind, .. } => Some(kind.clone()),
            Origin::Copy { .. } => None,
        }
    }

    fn netlink(&self, fd: i32, message: &[u8]) -> Option<(Option<String>, Vec<Request>)> {
        let (protocol, namespace) = self.learned.sockets.get(&self.descriptor(fd)?)?;
        let known = matches!(*protocol, netlink::ROUTE | netlink::NETFILTER);
        let mut links = self.learned.links.borrow_mut();
        let requests = match known {
            true => {
                netlink::decode(message, *protocol, namespace.as_deref().unwrap_or(""), &mut links, &|fd| {
                    self.descriptor(fd)
                })
            }
            false => Vec::new(),
        };
        // What only asks has nothing in it to tell of.
        (!requests.is_empty()).then(|| (namespace.clone(), requests))
    }
}

fn descriptor(pid: i32, fd: i32) -> Option<String> {
    let path = read_link(&format!("/proc/{pid}/fd/{fd}"))?;
    // Of a descriptor of a process, which process.
    if path != "anon_inode:[pidfd]" {
        return Some(path);
    }
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    let of = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    Some(format!("pidfd:[{}]", of.trim()))
}

fn read_link(path: &str) -> Option<String> {
    Some(fs::read_link(path).ok()?.to_string_lossy().into_owned())
}

fn mount_id(pid: i32, fd: i32) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// The capabilities that a process has, which everybody may know.
pub(super) fn capabilities(pid: i32) -> Option<CapabilitySets> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let set = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        u64::from_str_radix(value.trim(), 16).ok()
    };
    Some(CapabilitySets { effective: set("CapEff")?, permitted: set("CapPrm")?, inheritable: set("CapInh")? })
}

/// What a process has just begun to run.
pub(super) struct Program {
    pub(super) path: String,
    pub(super) argv: Vec<String>,
    pub(super) environment: Option<Vec<String>>,
}

/// The program that a process has just executed.
pub(super) fn program(pid: i32) -> Option<Program> {
    let strings = |file: &str| {
        let text = fs::read(format!("/proc/{pid}/{file}")).ok()?;
        Some(String::from_utf8_lossy(&text).split_terminator('\0').map(str::to_owned).collect())
    };
    let path = read_link(&format!("/proc/{pid}/exe"))?;
    Some(Program { path, argv: strings("cmdline")?, environment: strings("environ") })
}
