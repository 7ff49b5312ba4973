//! The keys of a service that are about networks, addresses and names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use network::egress::{Policy, RuleError};

use super::bridge::{address, ipv4, ipv6};
use super::keys::{self, Level};
use super::node::{Key, Node, Value};
use super::process::{host_name, is_domain};
use super::service::{ServiceFile, one_or_more};
use super::sharing::Partner;
use super::{Located, located, ports};
use crate::diagnostic::{Checked, Fault, Span};

/// What the file says about a service's place in the network.
#[derive(Debug, Default)]
pub(crate) struct NetworkKeys {
    /// `None`: the default network. Empty: none at all. The first one is `eth0` and has the default route.
    pub(crate) networks: Option<Vec<NetworkUse>>,
    pub(crate) mode: Option<Located<ModeFile>>,
    pub(crate) container_name: Option<Located<String>>,
    pub(crate) has_hostname: bool,
    /// `uts: host`: it has the host's name.
    pub(crate) has_host_name: bool,
    /// `mac_address`, on the first network.
    pub(crate) mac: Option<Located<MacAddress>>,
    pub(crate) resolvers: Vec<IpAddr>,
    pub(crate) extra_hosts: Vec<ExtraHost>,
    pub(crate) links: Vec<LinkFile>,
    pub(crate) external_links: Vec<LinkFile>,
    pub(crate) egress: Policy,
    /// Which keys the file has, and where.
    present: Vec<Key>,
}

pub(crate) type MacAddress = [u8; 6];

/// One entry of `networks`.
#[derive(Debug)]
pub(crate) struct NetworkUse {
    pub(crate) network: Located<String>,
    pub(crate) aliases: Vec<String>,
    pub(crate) address: Option<Located<Ipv4Addr>>,
    pub(crate) address6: Option<Located<Ipv6Addr>>,
    pub(crate) mac: Option<Located<MacAddress>>,
}

/// `network_mode`.
#[derive(Debug, Clone)]
pub(crate) enum ModeFile {
    Bridge,
    None,
    Host,
    Shared(Partner),
}

/// One entry of `extra_hosts`.
#[derive(Debug)]
pub(crate) struct ExtraHost {
    pub(crate) name: String,
    /// `None`: `host-gateway`.
    pub(crate) address: Option<IpAddr>,
    pub(crate) span: Span,
}

/// One entry of `links`.
#[derive(Debug)]
pub(crate) struct LinkFile {
    pub(crate) service: Located<String>,
    pub(crate) alias: Option<String>,
}

/// Keys of a service that [`read`] knows.
pub(super) const KEYS: [&str; 14] = [
    "container_name",
    "dns",
    "dns_opt",
    "dns_search",
    "domainname",
    "egress",
    "external_links",
    "extra_hosts",
    "hostname",
    "links",
    "mac_address",
    "network_mode",
    "networks",
    "ports",
];

/// Reads one of [`KEYS`].
pub(super) fn read(
    service: &mut ServiceFile,
    name: &str,
    key: &Key,
    node: &Node,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let (settled, keys) = (&mut service.settled, &mut service.network);
    keys.present.push(Key { span: key.span.clone(), name: name.to_owned() });
    match name {
        "container_name" => {
            let container = host_name(node, name)?;
            settled.container_name = Some(container.clone());
            keys.container_name = Some(located(node, container));
        }
        "hostname" => {
            settled.hostname = host_name(node, name)?;
            keys.has_hostname = true;
        }
        "domainname" => settled.domainname = Some(domain(node, name)?),
        "dns" => keys.resolvers = one_or_more(node, |item| address(item, name))?,
        "dns_search" => settled.dns_search = one_or_more(node, |item| search(item, name))?,
        "dns_opt" => settled.dns_opt = one_or_more(node, |item| option(item, name))?,
        "extra_hosts" => keys.extra_hosts = extra_hosts(node)?,
        "egress" => keys.egress = egress(node)?,
        "links" => keys.links = links(node, name)?,
        "external_links" => keys.external_links = links(node, name)?,
        "mac_address" => keys.mac = Some(mac(node)?),
        "networks" => keys.networks = Some(networks(node, place, warnings)?),
        "network_mode" => keys.mode = Some(located(node, mode(node)?)),
        "ports" => service.ports = ports::parse(node, warnings)?,
        _ => return Err(Level::unread(key, place)),
    }
    Ok(())
}

/// What the keys of a service say together.
pub(super) fn check(service: &mut ServiceFile, warnings: &mut Vec<(Span, String)>) -> Checked<()> {
    // Everything else belongs to the owner of the network namespace.
    const OWN: [&str; 2] = ["container_name", "network_mode"];
    let shared: Vec<&str> = KEYS.into_iter().filter(|key| !OWN.contains(key)).collect();
    let keys = &mut service.network;
    let place = format!("service `{}`", service.key.name);
    let (text, refused, unused): (_, &[&str], &[&str]) = match keys.mode.as_ref().map(|mode| &mode.value) {
        None | Some(ModeFile::Bridge) => return first_mac(keys, &place),
        Some(ModeFile::None) => {
            ("none".to_owned(), &["links", "mac_address", "networks"], &["dns", "egress", "ports"])
        }
        Some(ModeFile::Host) => {
            ("host".to_owned(), &["egress", "links", "mac_address", "networks"], &["dns", "ports"])
        }
        Some(ModeFile::Shared(partner)) => (partner.to_string(), &shared, &[]),
    };
    for key in &keys.present {
        // An empty list says what the mode says.
        let empty = key.name == "networks" && keys.networks.as_ref().is_some_and(Vec::is_empty);
        let name = key.name.as_str();
        if refused.contains(&name) && !empty {
            let message = format!("`{name}` of {place} cannot be used with `network_mode: {text}`");
            let hint = match text.split_once(':') {
                Some((_, owner)) => format!("write it at `{owner}`, whose network namespace it is"),
                None => "leave one of the two out".to_owned(),
            };
            return Err(Fault::new(&key.span, message).hint(hint));
        }
        if unused.contains(&name) {
            let message = format!("`{name}` of {place} is ignored with `network_mode: {text}`");
            warnings.push((key.span.clone(), message));
        }
    }
    if let Some(balance) = &service.replicas.balance {
        let message = format!("`balance` of {place} cannot be used with `network_mode: {text}`");
        return Err(Fault::new(&balance.span, message).hint("it needs a network of the service's own"));
    }
    if unused.contains(&"ports") {
        service.ports.clear();
    }
    keys.resolvers.clear();
    keys.networks = Some(Vec::new());
    Ok(())
}

/// Hands `mac_address` of the service to its first network.
fn first_mac(keys: &mut NetworkKeys, place: &str) -> Checked<()> {
    let Some(mac) = &keys.mac else { return Ok(()) };
    let Some(uses) = &mut keys.networks else { return Ok(()) };
    let Some(first) = uses.first_mut() else {
        let message = format!("`mac_address` of {place}, which is on no network");
        return Err(Fault::new(&mac.span, message).hint("leave it out"));
    };
    match &first.mac {
        Some(other) if other.value != mac.value => {
            let message = format!("{place} has two MAC addresses on network `{}`", first.network.value);
            Err(Fault::new(&mac.span, message).other(&other.span, "the other one").hint("keep one of them"))
        }
        _ => {
            first.mac = Some(mac.clone());
            Ok(())
        }
    }
}

fn domain(node: &Node, what: &str) -> Checked<String> {
    let text = node.text(what)?;
    match is_domain(&text) {
        true => Ok(text),
        false => Err(Fault::new(&node.span, format!("`{text}` cannot be the name of a domain"))
            .hint("use letters, digits, `-`, `_` and `.`: `example.org`")),
    }
}

/// `.` searches nowhere, as with Docker.
fn search(node: &Node, what: &str) -> Checked<String> {
    match node.text(what)?.as_str() {
        "." => Ok(".".to_owned()),
        _ => domain(node, what),
    }
}

/// An option of resolv.conf(5): one word of a line.
fn option(node: &Node, what: &str) -> Checked<String> {
    let text = node.text(what)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:".contains(&byte);
    match !text.is_empty() && text.bytes().all(plain) {
        true => Ok(text),
        false => Err(Fault::new(&node.span, format!("`{text}` is not an option of resolv.conf(5)"))
            .hint("write options such as `timeout:2` and `use-vc`")),
    }
}

/// `NAME:ADDRESS` or `NAME=ADDRESS` items, or a table of addresses.
pub(super) fn extra_hosts(node: &Node) -> Checked<Vec<ExtraHost>> {
    let mut hosts = Vec::new();
    match &node.value {
        Value::Map(entries) => {
            for (key, node) in entries {
                for address in one_or_more(node, |item| Ok(located(item, item.text("extra_hosts")?)))? {
                    hosts.push(extra_host(&address.span, &key.name, &address.value)?);
                }
            }
        }
        _ => {
            for item in node.list("extra_hosts")? {
                let text = item.text("extra_hosts")?;
                let Some((name, address)) = text.split_once(['=', ':']) else {
                    return Err(Fault::new(&item.span, format!("`{text}` is not a name and an address"))
                        .hint("write `NAME=ADDRESS`, such as `db.example.org=192.0.2.7`"));
                };
                hosts.push(extra_host(&item.span, name, address)?);
            }
        }
    }
    Ok(hosts)
}

fn extra_host(span: &Span, name: &str, text: &str) -> Checked<ExtraHost> {
    if !is_domain(name) {
        return Err(Fault::new(span, format!("`{name}` cannot be a host name"))
            .hint("use letters, digits, `-`, `_` and `.`"));
    }
    let plain = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = match plain {
        "host-gateway" => None,
        _ => Some(plain.parse().map_err(|_why| {
            Fault::new(span, format!("`{text}` is not an IP address"))
                .hint("write an address, or `host-gateway` for the gateway of the first network")
                .nearest(text, ["host-gateway"])
        })?),
    };
    Ok(ExtraHost { name: name.to_owned(), address, span: span.clone() })
}

/// `SERVICE` or `SERVICE:ALIAS` items.
fn links(node: &Node, what: &str) -> Checked<Vec<LinkFile>> {
    let mut links = Vec::new();
    for item in node.list(what)? {
        let text = item.text(what)?;
        let (service, alias) = match text.split_once(':') {
            Some((service, alias)) => (service, Some(alias)),
            None => (text.as_str(), None),
        };
        let alias = alias.filter(|alias| *alias != service);
        if let Some(alias) = alias.filter(|alias| !is_domain(alias) || alias.len() > 63) {
            return Err(Fault::new(&item.span, format!("`{alias}` cannot be a host name"))
                .hint("write `SERVICE:ALIAS`, such as `db:database`"));
        }
        links.push(LinkFile { service: located(item, service.to_owned()), alias: alias.map(str::to_owned) });
    }
    Ok(links)
}

/// `none`, `all`, or a list of rules.
fn egress(node: &Node) -> Checked<Policy> {
    let Value::List(items) = &node.value else {
        let text = node.text("egress")?;
        return match text.as_str() {
            "all" => Ok(Policy::All),
            "none" => Ok(Policy::None),
            _ => Err(Fault::new(&node.span, format!("`{text}` is neither `all` nor `none`"))
                .hint(format!("write rules as a list: `[\"{text}\"]`"))
                .nearest(&text, ["all", "none"])),
        };
    };
    let rules = items.iter().map(|item| {
        let text = item.text("egress")?;
        text.parse().map_err(|error: RuleError| Fault::new(&item.span, error.to_string()).hint(error.hint()))
    });
    match rules.collect::<Checked<Vec<_>>>()? {
        rules if rules.is_empty() => Ok(Policy::None),
        rules => Ok(Policy::Only(rules)),
    }
}

/// Six bytes in hexadecimal, of one interface and not of a group of them.
fn mac(node: &Node) -> Checked<Located<MacAddress>> {
    let text = node.text("mac_address")?;
    let parse = || {
        let mut bytes = text.split([':', '-']).map(|byte| {
            let hex = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
            hex.then(|| u8::from_str_radix(byte, 16).ok())?
        });
        let mut mac = [0; 6];
        for byte in &mut mac {
            *byte = bytes.next()??;
        }
        (bytes.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
    };
    let mac = parse().ok_or_else(|| {
        Fault::new(&node.span, format!("`{text}` is not the MAC address of an interface"))
            .hint("write six bytes, the first one even, such as `02:42:ac:11:00:03`")
    })?;
    Ok(located(node, mac))
}

fn mode(node: &Node) -> Checked<ModeFile> {
    let text = node.text("network_mode")?;
    let mode = match text.as_str() {
        "none" => Some(ModeFile::None),
        "bridge" | "default" => Some(ModeFile::Bridge),
        "host" => Some(ModeFile::Host),
        text => Partner::read(text).map(ModeFile::Shared),
    };
    mode.ok_or_else(|| {
        Fault::new(&node.span, format!("`{text}` is not a network mode"))
            .hint("use `none`, `bridge`, `host`, `service:NAME` or `container:NAME`")
            .nearest(&text, ["none", "bridge", "default", "host"])
    })
}

/// Names, or a table of names; those with the highest priority first.
fn networks(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<NetworkUse>> {
    let new = |network| NetworkUse { network, aliases: Vec::new(), address: None, address6: None, mac: None };
    if let Value::List(items) = &node.value {
        return items.iter().map(|item| Ok(new(located(item, item.text("networks")?)))).collect();
    }
    let Value::Map(entries) = &node.value else {
        return Err(node.wrong("networks", "a list or a table of networks"));
    };
    let mut uses = Vec::new();
    for (key, node) in entries {
        let mut network = new(Located { span: key.span.clone(), value: key.name.clone() });
        let priority = network_use(&mut network, node, place, warnings)?;
        uses.push((priority, network));
    }
    uses.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    Ok(uses.into_iter().map(|(_, network)| network).collect())
}

/// Reads one entry, and says its `gw_priority` and `priority`, which count in this order.
fn network_use(
    network: &mut NetworkUse,
    node: &Node,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<(i64, i64)> {
    let (mut gateway, mut priority) = (0, 0);
    let place = format!("`networks` of {place}");
    for (key, node) in node.map("networks")? {
        if !keys::NETWORK_USE.admits(key, &key.name, &place, warnings)? || node.is_null() {
            continue;
        }
        match key.name.as_str() {
            "aliases" => {
                for item in node.list("aliases")? {
                    network.aliases.push(host_name(item, "aliases")?);
                }
            }
            "ipv4_address" => network.address = Some(located(node, ipv4(node, "ipv4_address")?)),
            "ipv6_address" => network.address6 = Some(located(node, ipv6(node, "ipv6_address")?)),
            "mac_address" => network.mac = Some(mac(node)?),
            "gw_priority" => gateway = node.integer("gw_priority", i64::MIN, i32::MAX.into())?,
            "priority" => priority = node.integer("priority", i64::MIN, i32::MAX.into())?,
            _ => return Err(Level::unread(key, &place)),
        }
    }
    Ok((gateway, priority))
}
