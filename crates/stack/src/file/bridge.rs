//! A network of the top level.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::keys::{self, Level};
use super::node::{Key, Node, Value, unknown_key};
use super::{Format, Located, located};
use crate::diagnostic::{Checked, Fault, Span};

/// A network of the top level.
#[derive(Debug)]
pub(crate) struct NetworkFile {
    pub(crate) key: Key,
    pub(crate) internal: bool,
    pub(crate) ipv6: bool,
    pub(crate) subnet: Option<Located<(Ipv4Addr, u8)>>,
    pub(crate) gateway: Option<Located<Ipv4Addr>>,
    pub(crate) subnet6: Option<Located<(Ipv6Addr, u8)>>,
    pub(crate) gateway6: Option<Located<Ipv6Addr>>,
    pub(crate) mtu: Option<Located<u32>>,
}

/// Docker's name for it.
const MTU_OPTION: &str = "com.docker.network.driver.mtu";
/// RFC 791: what every host takes.
const MIN_MTU: u32 = 576;
/// RFC 8200.
pub(crate) const MIN_MTU_IPV6: u32 = 1280;

/// Reads one network.
pub(super) fn parse(
    key: &Key,
    node: &Node,
    format: Format,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<NetworkFile> {
    let place = format!("network `{}`", key.name);
    let mut network = NetworkFile {
        key: key.clone(),
        internal: false,
        ipv6: false,
        subnet: None,
        gateway: None,
        subnet6: None,
        gateway6: None,
        mtu: None,
    };
    for (key, node) in node.map(&key.name)? {
        if !keys::NETWORK.admits(key, &key.name, &place, warnings)? || node.is_null() {
            continue;
        }
        match key.name.as_str() {
            "internal" => network.internal = node.boolean("internal")?,
            "enable_ipv6" => network.ipv6 = node.boolean("enable_ipv6")?,
            "ipam" => ipam(node, &place, &mut network, warnings)?,
            "driver" => {
                let driver = node.text("driver")?;
                match driver.as_str() {
                    "" | "bridge" | "default" => {}
                    // Between the machines of a Swarm it is what a bridge is on one.
                    "overlay" => {
                        let text = format!("`overlay` of {place} is a bridge: there is one machine");
                        warnings.push((node.span.clone(), text));
                    }
                    driver => {
                        let message = format!("network driver `{driver}` is not supported");
                        return Err(Fault::new(&node.span, message)
                            .hint("leave `driver` out: every network is a bridge of the stack's own"));
                    }
                }
            }
            "driver_opts" => {
                for (key, node) in node.map("driver_opts")? {
                    match key.name.as_str() {
                        MTU_OPTION => network.mtu = Some(mtu(node)?),
                        name => {
                            let text = format!(
                                "`{name}` of `driver_opts` of {place} is ignored: it is for Docker's own bridges"
                            );
                            warnings.push((key.span.clone(), text));
                        }
                    }
                }
            }
            "mtu" if format == Format::Stack => network.mtu = Some(mtu(node)?),
            "mtu" => {
                return Err(unknown_key(key, &place, [])
                    .hint(format!("a compose file has `driver_opts: {{ {MTU_OPTION}: 1400 }}` for it")));
            }
            "external" if matches!(node.value, Value::Bool(false)) => {}
            "external" => external(key, node, &place, warnings)?,
            "enable_ipv4" if node.boolean("enable_ipv4")? => {}
            "enable_ipv4" => {
                let text =
                    format!("`enable_ipv4: false` of {place} is ignored: every network has IPv4 addresses");
                warnings.push((key.span.clone(), text));
            }
            _ => return Err(Level::unread(key, &place)),
        }
    }
    if let Some(mtu) = &network.mtu
        && mtu.value < MIN_MTU_IPV6
        && (network.ipv6 || network.subnet6.is_some())
    {
        let message = format!("an MTU of {} is too small for IPv6", mtu.value);
        return Err(Fault::new(&mtu.span, message).hint(format!("IPv6 needs {MIN_MTU_IPV6}")));
    }
    Ok(network)
}

/// What other stacks share with Docker cannot be shared here: their networks belong to other user namespaces.
fn external(key: &Key, node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<()> {
    if !matches!(node.value, Value::Map(_)) && !node.boolean("external")? {
        return Ok(());
    }
    let text = format!(
        "{place} is external, and the stack gets one of its own: containers of other stacks are not on it, and are reached by ports that they publish"
    );
    warnings.push((key.span.clone(), text));
    Ok(())
}

fn mtu(node: &Node) -> Checked<Located<u32>> {
    let bytes = node.integer("mtu", MIN_MTU.into(), u16::MAX.into())?;
    Ok(located(node, u32::try_from(bytes).unwrap_or(MIN_MTU)))
}

fn ipam(
    node: &Node,
    place: &str,
    network: &mut NetworkFile,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    for (key, node) in node.map("ipam")? {
        if !keys::IPAM.admits(key, &key.name, "`ipam`", warnings)? || node.is_null() {
            continue;
        }
        match key.name.as_str() {
            "config" => {
                for item in node.list("config")? {
                    addresses(item, place, network, warnings)?;
                }
            }
            "driver" if matches!(node.text("driver")?.as_str(), "default" | "") => {}
            "driver" => {
                let text =
                    format!("`driver` of `ipam` of {place} is ignored: addresses are given by this program");
                warnings.push((node.span.clone(), text));
            }
            _ => return Err(Level::unread(key, "`ipam`")),
        }
    }
    Ok(())
}

/// One entry of `ipam.config`: the addresses of one family.
fn addresses(
    item: &Node,
    place: &str,
    network: &mut NetworkFile,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    for (key, node) in item.map("config")? {
        if !keys::IPAM_CONFIG.admits(key, &key.name, place, warnings)? {
            continue;
        }
        let again = match key.name.as_str() {
            "subnet" => match subnet(&node.span, &node.text("subnet")?)? {
                Subnet::V4(subnet) => network.subnet.replace(located(node, subnet)).is_some(),
                Subnet::V6(subnet) => network.subnet6.replace(located(node, subnet)).is_some(),
            },
            "gateway" => match address(node, "gateway")? {
                IpAddr::V4(address) => network.gateway.replace(located(node, address)).is_some(),
                IpAddr::V6(address) => network.gateway6.replace(located(node, address)).is_some(),
            },
            _ => return Err(Level::unread(key, "`ipam.config`")),
        };
        if again {
            let message = format!("{place} has a second `{}` of the same family", key.name);
            return Err(Fault::new(&node.span, message)
                .hint("a network has one IPv4 subnet, and one IPv6 subnet if it is to have IPv6"));
        }
    }
    Ok(())
}

/// An address of either family.
pub(super) fn address(node: &Node, what: &str) -> Checked<IpAddr> {
    let text = node.text(what)?;
    let plain = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(&text);
    plain.parse().map_err(|_why| {
        Fault::new(&node.span, format!("`{text}` is not an IP address"))
            .hint("write an address such as `172.28.0.10` or `fd00::10`")
    })
}

pub(super) fn ipv4(node: &Node, what: &str) -> Checked<Ipv4Addr> {
    let text = node.text(what)?;
    text.parse().map_err(|_why| {
        Fault::new(&node.span, format!("`{text}` is not an IPv4 address"))
            .hint("write four numbers, such as `172.28.0.10`")
    })
}

pub(super) fn ipv6(node: &Node, what: &str) -> Checked<Ipv6Addr> {
    let text = node.text(what)?;
    text.parse().map_err(|_why| {
        Fault::new(&node.span, format!("`{text}` is not an IPv6 address"))
            .hint("write an address such as `fd00:28::10`")
    })
}

enum Subnet {
    V4((Ipv4Addr, u8)),
    V6((Ipv6Addr, u8)),
}

fn subnet(span: &Span, text: &str) -> Checked<Subnet> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let prefix: Option<u8> = prefix.parse().ok();
    let within = |first: String| {
        Fault::new(span, format!("`{text}` is an address within a subnet"))
            .hint(format!("the subnet itself is `{first}`"))
    };
    if let Ok(address) = address.parse::<Ipv6Addr>() {
        let Some(prefix) = prefix.filter(|prefix| (64..=96).contains(prefix)) else {
            return Err(Fault::new(span, format!("`{text}` is not an IPv6 subnet for a network")).hint(
                "write a prefix length of 64 to 96, such as `fd00:28::/64`: addresses end in the IPv4 ones",
            ));
        };
        let first = Ipv6Addr::from(u128::from(address) & (u128::MAX << (128 - prefix)));
        return match first == address {
            true => Ok(Subnet::V6((address, prefix))),
            false => Err(within(format!("{first}/{prefix}"))),
        };
    }
    let address: Option<Ipv4Addr> = address.parse().ok();
    let (Some(address), Some(prefix)) = (address, prefix.filter(|prefix| (8..=30).contains(prefix))) else {
        return Err(Fault::new(span, format!("`{text}` is not an IPv4 subnet"))
            .hint("write an address and a prefix length of 8 to 30, such as `172.28.0.0/24`"));
    };
    let first = Ipv4Addr::from(u32::from(address) & (u32::MAX << (32 - prefix)));
    match first == address {
        true => Ok(Subnet::V4((address, prefix))),
        false => Err(within(format!("{first}/{prefix}"))),
    }
}
