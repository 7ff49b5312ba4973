//! A host in a network namespace of its own, and a client that is joined with it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// The host's address to the client.
pub(crate) const HOST: &str = "203.0.113.1";
pub(crate) const HOST6: &str = "2001:db8:7::1";
/// The client's address.
pub(crate) const CLIENT: &str = "203.0.113.7";
pub(crate) const CLIENT6: &str = "2001:db8:7::7";

/// The network namespace of a client.
pub(crate) struct Client(OwnedFd);

impl Client {
    /// Moves this thread, and what it starts from now on, into a new network namespace that is the host's, with a
    /// client in another one. Only root can have that and all that a stack needs.
    pub(crate) fn with_host() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let fresh = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        };
        let client = Self(std::thread::spawn(fresh).join().unwrap());
        fresh();
        let namespace = format!("/proc/{}/fd/{}", std::process::id(), client.0.as_raw_fd());
        ip(&format!("link add eth0 type veth peer name eth0 netns {namespace}"));
        up(HOST, HOST6);
        client.within(|| up(CLIENT, CLIENT6));
        Some(client)
    }

    /// Does something in the client's namespace.
    pub(crate) fn within<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
    }
}

/// `ip`, which must succeed.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.expect("the package iproute2 has `ip`").success(), "ip {arguments}");
}

fn up(address: &str, address6: &str) {
    ip("link set lo up");
    ip("link set eth0 up");
    ip(&format!("address add {address}/24 dev eth0"));
    if std::path::Path::new("/proc/net/if_inet6").exists() {
        ip(&format!("address add {address6}/64 dev eth0 nodad"));
    }
}
