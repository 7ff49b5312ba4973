//! Published ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use network::plan::{Mode, Protocol, PublishedPort};

use super::Context;
use crate::diagnostic::{Checked, Fault, FileError, Span};
use crate::file::ports::PortFile;
use crate::file::service::ServiceFile;
use crate::file::{Format, StackFile};

/// Where a port is published that names no address.
pub(crate) fn default_host_ip(format: Format) -> IpAddr {
    IpAddr::V4(match format {
        Format::Stack => Ipv4Addr::LOCALHOST,
        Format::Compose => Ipv4Addr::UNSPECIFIED,
    })
}

pub(super) fn published(service: &ServiceFile, context: &Context<'_>) -> Vec<PublishedPort> {
    let ports = service.ports.iter();
    ports
        .map(|port| PublishedPort {
            host_ip: port.host_ip.unwrap_or(default_host_ip(context.format)),
            host_port: host_port(port.host_port, context),
            container_port: port.container_port,
            protocol: port.protocol,
            mode: port.mode,
        })
        .collect()
}

/// The port that is published for one of the file's: another one where the user says so, or may not have this one and
/// named an offset.
fn host_port(port: u16, context: &Context<'_>) -> u16 {
    let choice = &context.ports;
    let offset = choice.offset.filter(|_| port != 0 && is_reserved(port, context));
    let single = choice.publish.get(&port).copied();
    single.or_else(|| port.checked_add(offset?)).unwrap_or(port)
}

/// The file's ports that others stand for.
pub(super) fn moved(service: &ServiceFile, context: &Context<'_>) -> BTreeMap<u16, u16> {
    let ports = service.ports.iter().map(|port| (port.host_port, host_port(port.host_port, context)));
    ports.filter(|(asked, published)| asked != published).collect()
}

/// A port that no service publishes has no other one.
pub(super) fn check_choice(file: &StackFile, context: &Context<'_>) -> Result<(), FileError> {
    let known: BTreeSet<u16> =
        file.services.iter().flat_map(|service| &service.ports).map(|port| port.host_port).collect();
    let choice = &context.ports.publish;
    // What the running stack remembers may be about another version of the file.
    let Some(stray) = choice.keys().find(|port| !known.contains(port)).filter(|_| !context.ports.kept) else {
        return Ok(());
    };
    let list: Vec<String> = known.iter().filter(|port| **port != 0).map(u16::to_string).collect();
    Err(FileError::Option {
        message: format!("no service publishes port {stray}, for which `--publish` names another one"),
        hint: Some(match list.as_slice() {
            [] => "no service of the file publishes a port of its choice".to_owned(),
            list => format!("the published ports are: {}", list.join(", ")),
        }),
    })
}

fn is_reserved(port: u16, context: &Context<'_>) -> bool {
    let may_have = context.host.is_root || context.options.images_only;
    port < context.host.unprivileged_port_start && !may_have
}

/// Who has a port of the host, and on which address.
struct Holder<'a> {
    service: &'a str,
    ip: IpAddr,
    span: &'a Span,
}

/// No two services on one host port, and none on a port that this user may not have.
pub(super) fn check(file: &StackFile, context: &Context<'_>) -> Checked<()> {
    // TCP and UDP are apart.
    let mut holders: BTreeMap<(bool, u16), Vec<Holder<'_>>> = BTreeMap::new();
    for service in &file.services {
        check_direct(service, context)?;
        let name = service.key.name.as_str();
        for port in &service.ports {
            let ip = port.host_ip.unwrap_or(default_host_ip(context.format));
            let passive = match port.protocol {
                Protocol::Ftp { passive: (first, last), .. } => Some(first..=last),
                Protocol::Tcp | Protocol::Udp => None,
            };
            let own = Some(host_port(port.host_port, context)).filter(|number| *number != 0);
            for number in own.into_iter().chain(passive.into_iter().flatten()) {
                check_reserved(port, number, context)?;
                let others = holders.entry((port.protocol == Protocol::Udp, number)).or_default();
                let clash = others.iter().find(|other| {
                    other.ip == ip
                        || (other.ip.is_ipv4() == ip.is_ipv4()
                            && (other.ip.is_unspecified() || ip.is_unspecified()))
                });
                if let Some(other) = clash {
                    let message = match other.service == name {
                        true => format!("service `{name}` publishes port {number} twice"),
                        false => {
                            format!("services `{}` and `{name}` both publish port {number}", other.service)
                        }
                    };
                    return Err(Fault::new(&port.span, message)
                        .label(format!("port {number} again"))
                        .other(other.span, "first published here")
                        .hint("give one of them another host port"));
                }
                others.push(Holder { service: name, ip, span: &port.span });
            }
        }
    }
    Ok(())
}

/// What a service accepts on by itself is one socket for each port and family.
fn check_direct(service: &ServiceFile, context: &Context<'_>) -> Checked<()> {
    let mut taken: BTreeMap<(bool, bool, u16), &Span> = BTreeMap::new();
    for port in service.ports.iter().filter(|port| port.mode == Mode::Direct) {
        let ip = port.host_ip.unwrap_or(default_host_ip(context.format));
        let udp = port.protocol == Protocol::Udp;
        if let Some(other) = taken.insert((udp, ip.is_ipv4(), port.container_port), &port.span) {
            let number = port.container_port;
            return Err(Fault::new(&port.span, format!("port {number} of a service is published twice"))
                .label("in direct mode again")
                .other(other, "first published here")
                .hint("leave `mode` out of one of them: a service accepts on one socket in direct mode"));
        }
    }
    Ok(())
}

fn check_reserved(port: &PortFile, number: u16, context: &Context<'_>) -> Checked<()> {
    if !is_reserved(number, context) {
        return Ok(());
    }
    let start = context.host.unprivileged_port_start;
    let other = unprivileged(number, start);
    let message = format!("an ordinary user cannot publish port {number}: the lowest is {start}");
    let sysctl = format!("`sudo sysctl net.ipv4.ip_unprivileged_port_start={number}` lowers the limit");
    // The pool of passive mode is what the service tells its clients.
    let hint = if matches!(port.protocol, Protocol::Ftp { .. }) && number != port.host_port {
        format!("name other ports, such as `passive = \"{other}-{}\"`, or {sysctl}", other.saturating_add(10))
    } else {
        let offset = OFFSET.max(start);
        format!(
            "`--port-offset {offset}` publishes it as {}, and every other one that is too low likewise; \
             `--publish {number}={other}` moves this one; {sysctl}",
            number.saturating_add(offset)
        )
    };
    Err(Fault::new(&port.span, message).hint(hint))
}

/// An offset that turns the ports of the web into what is customary for them.
const OFFSET: u16 = 8000;

/// The customary replacement of a low port.
fn unprivileged(port: u16, start: u16) -> u16 {
    let customary = match port {
        80 => 8080,
        20 | 21 => port + 2100,
        _ => port + 8000,
    };
    customary.max(start)
}
