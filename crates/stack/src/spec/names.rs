//! The files by which a container knows names: `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`.

use std::net::Ipv4Addr;

use container::sandbox::{Mount, MountSource};
use network::plan::{Interface, NetworkPlan};
use sys::mount::attribute::{NODEV, NOEXEC, NOSUID};

use crate::plan::{NetworkMode, Service};
use crate::remote::{Context, RemoteError};

/// Where they are.
pub(crate) const OWN_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// The files for a container of `service`, whose host name is settled.
///
/// # Errors
/// When the host's own files are wanted and cannot be read.
pub(super) fn files(
    service: &Service,
    container: &str,
    network: &NetworkPlan,
) -> Result<Vec<Mount>, RemoteError> {
    let (hosts, resolv) = match &service.network_mode {
        NetworkMode::Own => own_files(service, container, network),
        NetworkMode::Service(owner) => own_files(service, owner, network),
        NetworkMode::Host => (
            hosts_of_host(service, &host_file("/etc/hosts")?),
            resolv_of_host(service, &host_file("/etc/resolv.conf")?),
        ),
    };
    let contents = [format!("{}\n", service.hostname), hosts, resolv];
    let mount = |(target, content): (&str, String)| {
        let source = MountSource::File { content: content.into_bytes(), mode: 0o644, uid: 0, gid: 0 };
        Mount::new(target, source, NOSUID | NODEV | NOEXEC)
    };
    Ok(OWN_FILES.into_iter().zip(contents).map(mount).collect())
}

/// `/etc/hosts` and `/etc/resolv.conf` for the namespace of `endpoint`.
fn own_files(service: &Service, endpoint: &str, network: &NetworkPlan) -> (String, String) {
    let endpoint = network.endpoints.iter().find(|known| known.service == endpoint);
    let interfaces = endpoint.map_or(&[][..], |endpoint| &endpoint.interfaces);
    let first = interfaces.first().map(|interface| interface.network.as_str());
    let gateway = network.networks.iter().find(|known| Some(known.name.as_str()) == first);
    (hosts(service, interfaces), resolv(service, gateway.map(|network| network.gateway)))
}

fn hosts(service: &Service, interfaces: &[Interface]) -> String {
    let mut hosts = "127.0.0.1\tlocalhost\n".to_owned();
    if interfaces.iter().any(|interface| interface.address6.is_some()) {
        hosts.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    let names = own_names(service);
    for interface in interfaces {
        hosts.push_str(&format!("{}\t{names}\n", interface.address));
        if let Some(address) = interface.address6 {
            hosts.push_str(&format!("{address}\t{names}\n"));
        }
    }
    hosts + &extra_hosts(service)
}

/// The full name first: that is what `hostname --fqdn` says.
fn own_names(service: &Service) -> String {
    let hostname = &service.hostname;
    match (&service.domainname, hostname.split_once('.')) {
        (Some(domain), _) => format!("{hostname}.{domain} {hostname}"),
        (None, Some((label, _))) => format!("{hostname} {label}"),
        (None, None) => hostname.clone(),
    }
}

fn extra_hosts(service: &Service) -> String {
    service.extra_hosts.iter().map(|(name, address)| format!("{address}\t{name}\n")).collect()
}

fn resolv(service: &Service, gateway: Option<Ipv4Addr>) -> String {
    let Some(gateway) = gateway else { return "# this service is on no network\n".to_owned() };
    let has = |option: &str| service.dns_opt.iter().any(|known| known.starts_with(option));
    // Names of the stack have no dots, and the world's are to be asked for as they are.
    let ndots = if has("ndots:") { None } else { Some("ndots:0") };
    let options: Vec<&str> = ndots.into_iter().chain(service.dns_opt.iter().map(String::as_str)).collect();
    format!("nameserver {gateway}\n{}options {}\n", search(service), options.join(" "))
}

fn search(service: &Service) -> String {
    match service.dns_search.as_slice() {
        [] => String::new(),
        domains => format!("search {}\n", domains.join(" ")),
    }
}

/// With the host's network come the host's names; our own host name is one of them.
pub(super) fn hosts_of_host(service: &Service, hosts: &str) -> String {
    let mut text = with_newline(hosts);
    let known = |line: &str| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_whitespace().skip(1).any(|name| name == service.hostname)
    };
    if !hosts.lines().any(known) {
        text.push_str(&format!("127.0.0.1\t{}\n", own_names(service)));
    }
    text + &extra_hosts(service)
}

/// What the service says about `search` and `options` stands for what the host says.
pub(super) fn resolv_of_host(service: &Service, resolv: &str) -> String {
    let replaced = |line: &str| match line.split_whitespace().next() {
        Some("search" | "domain") => !service.dns_search.is_empty(),
        Some("options") => !service.dns_opt.is_empty(),
        _ => false,
    };
    let mut text: String =
        resolv.lines().filter(|line| !replaced(line)).map(|line| format!("{line}\n")).collect();
    text.push_str(&search(service));
    if !service.dns_opt.is_empty() {
        text.push_str(&format!("options {}\n", service.dns_opt.join(" ")));
    }
    text
}

fn with_newline(text: &str) -> String {
    match text.is_empty() || text.ends_with('\n') {
        true => text.to_owned(),
        false => format!("{text}\n"),
    }
}

/// A file of the host; nothing where there is none.
fn host_file(path: &str) -> Result<String, RemoteError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).context(|| format!("read {path}")),
    }
}
