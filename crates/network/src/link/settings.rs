//! Kernel settings (`/proc/sys/net`) of the calling thread's network namespace.

use std::fs::File;
use std::io::{self, Write};

use crate::Error;
use crate::error::Doing;

/// What the stack's namespace needs.
pub(super) fn of_stack() -> Result<(), Error> {
    forward_nothing()?;
    // Strict: an address of another network is not believed.
    set("net/ipv4/conf/all/rp_filter", "1")?;
    // Connections to one port of a service, one after another: netd closes first, and without these the
    // kernel is slow to find a free source port after 14000 of them in a minute.
    set_if_present("net/ipv4/tcp_tw_reuse", "1")?;
    set("net/ipv4/ip_local_port_range", "1024 65535")?;
    no_ipv6_by_default()?;
    ipv6_at_once()?;
    for table in ["iptables", "ip6tables", "arptables"] {
        set_if_present(&format!("net/bridge/bridge-nf-call-{table}"), "0")?;
    }
    Ok(())
}

/// What a container's namespace needs, before it has links; `ping_groups` from [`ping_groups`].
pub(super) fn of_container(ping_groups: &str, ipv6: bool) -> Result<(), Error> {
    // A container on two networks must not join them.
    forward_nothing()?;
    set("net/ipv4/ip_unprivileged_port_start", "0")?;
    set("net/ipv4/ping_group_range", ping_groups)?;
    if !ipv6 {
        return no_ipv6_by_default();
    }
    // `::1`, also where the host's default is to have none.
    for links in ["lo", "default"] {
        self::ipv6(links, true)?;
    }
    ipv6_at_once()
}

/// A new namespace inherits the host's values, which are 1 where Docker runs.
fn forward_nothing() -> Result<(), Error> {
    set("net/ipv4/ip_forward", "0")?;
    set_if_present("net/ipv6/conf/all/forwarding", "0")
}

/// For links that are yet to come. Where the plan knows no IPv6 address there shall be no other: containers would
/// find each other by link-local ones, past the names of their networks.
fn no_ipv6_by_default() -> Result<(), Error> {
    set_if_present("net/ipv6/conf/default/disable_ipv6", "1")
}

/// For links that are yet to come: addresses are used without detection of duplicates, which takes a second, and
/// nobody's router advertisements are listened to.
fn ipv6_at_once() -> Result<(), Error> {
    set_if_present("net/ipv6/conf/default/accept_dad", "0")?;
    set_if_present("net/ipv6/conf/default/accept_ra", "0")
}

/// Whether a link has IPv6.
pub(super) fn ipv6(link: &str, enabled: bool) -> Result<(), Error> {
    set(&format!("net/ipv6/conf/{link}/disable_ipv6"), if enabled { "0" } else { "1" })
}

/// Has packets routed on, and those on the other side of `device` told that what is on this side is here.
pub(super) fn forward(device: &str) -> Result<(), Error> {
    set(&format!("net/ipv4/conf/{device}/proxy_arp"), "1")?;
    // At once: the answer is otherwise held back for up to 0.8 s, as if somebody else could have one.
    set(&format!("net/ipv4/neigh/{device}/proxy_delay"), "0")?;
    set("net/ipv4/ip_forward", "1")
}

/// Leaves echo requests to the raw sockets, whose holder answers them.
pub(super) fn leave_echo_requests(ipv6: bool) -> Result<(), Error> {
    set("net/ipv4/icmp_echo_ignore_all", "1")?;
    if ipv6 { set("net/ipv6/icmp/echo_ignore_all", "1") } else { Ok(()) }
}

/// Answers every connection that is not allowed: a container that tries many is not to wait for an error that the
/// kernel holds back (icmp(7), `icmp_ratemask`).
pub(super) fn answer_all(ipv6: bool) -> Result<(), Error> {
    set("net/ipv4/icmp_ratemask", "0")?;
    if ipv6 { set("net/ipv6/icmp/ratelimit", "0") } else { Ok(()) }
}

/// All groups that exist in this user namespace, as `ping_group_range` wants them: both ends must be mapped.
pub(super) fn ping_groups() -> String {
    let map = std::fs::read_to_string("/proc/thread-self/gid_map").unwrap_or_default();
    let last = map.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
        let (inside, count) = (fields.next()??, fields.nth(1)??);
        (inside + count).checked_sub(1)
    });
    format!("0 {}", last.max().unwrap_or(0).min(i32::MAX as u64))
}

fn set(name: &str, value: &str) -> Result<(), Error> {
    write(name, value).doing(|| format!("set sysctl `{}` to {value}", name.replace('/', ".")))
}

fn set_if_present(name: &str, value: &str) -> Result<(), Error> {
    match write(name, value) {
        // The part of the kernel that it governs is not loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.doing(|| format!("set sysctl `{}` to {value}", name.replace('/', "."))),
    }
}

fn write(name: &str, value: &str) -> io::Result<()> {
    File::options().write(true).open(format!("/proc/sys/{name}"))?.write_all(value.as_bytes())
}
