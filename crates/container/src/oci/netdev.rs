//! Network devices that move into the container ("Network Devices" of the specification's `config-linux.md`): they keep
//! their addresses, get their name, and are up.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::Error;

/// A message of the kernel's is no longer than this, "recommended" in netlink(7).
const BUFFER: usize = 32 * 1024;
/// Length of a name with the zero byte at its end (`IFNAMSIZ`).
const NAME: usize = 16;

/// Names in the runtime's network namespace and in the container's.
pub(super) fn check(devices: &[(String, String)]) -> Result<(), Error> {
    for (index, (name, inside)) in devices.iter().enumerate() {
        for name in [name, inside] {
            let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
            if name.is_empty() || name.len() >= NAME || name == "." || name == ".." || name.contains(bad) {
                return Err(Error::invalid(format!("linux.netDevices.{name}"), "is no name of an interface"));
            }
        }
        if devices[..index].iter().any(|(_, other)| other == inside) {
            return Err(Error::invalid(
                format!("linux.netDevices.{name}.name"),
                format!("`{inside}` is there twice"),
            ));
        }
    }
    Ok(())
}

/// Moves them into the network namespace of process `pid`.
pub(super) fn move_all(devices: &[(String, String)], pid: i32) -> Result<(), Error> {
    if devices.is_empty() {
        return Ok(());
    }
    let own = File::open("/proc/self/ns/net").map_err(Error::system("open our network namespace"))?;
    let path = format!("/proc/{pid}/ns/net");
    let there = File::open(&path).map_err(Error::system(format!("open {path}")))?;
    for (name, inside) in devices {
        let fail = |what: &str| Error::system(format!("{what} network device `{name}`"));
        let mut outside = Netlink::open().map_err(fail("look for"))?;
        let index = rustix::net::netdevice::name_to_index(&outside.socket, name)
            .map_err(|e| fail("find")(e.into()))?;
        let addresses = outside.addresses(index).map_err(fail("read the addresses of"))?;
        outside.relocate(index, inside, pid).map_err(fail("move"))?;
        let enter = |to: &File| move_into_link_name_space(to.as_fd(), Some(LinkNameSpaceType::Network));
        enter(&there).map_err(|e| fail("follow")(e.into()))?;
        let configured = Netlink::open().and_then(|mut within| {
            let index = rustix::net::netdevice::name_to_index(&within.socket, inside)?;
            within.configure(index, addresses)
        });
        enter(&own).map_err(|e| Error::system("return to our network namespace")(e.into()))?;
        configured.map_err(fail("configure"))?;
    }
    Ok(())
}

/// Brings the loopback device of a new network namespace up; it is always the first there.
pub(super) fn bring_loopback_up() -> io::Result<()> {
    Netlink::open()?.up(1)
}

/// A socket of the network namespace in which it was opened.
struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let family = rustix::net::AddressFamily::NETLINK;
        let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and collects what is answered.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        self.sequence += 1;
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0u8; BUFFER];
        loop {
            // The kernel has answered by the time that the request was sent, or the rest of a long answer is ready.
            let (_, length) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                let length = (answer.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answers),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
            }
        }
    }

    /// The permanent global addresses of an interface, of both families.
    fn addresses(&mut self, index: u32) -> io::Result<Vec<AddressMessage>> {
        let all = self.ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        Ok(all
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(address) => Some(address),
                _ => None,
            })
            .filter(|address| {
                address.header.index == index
                    && address.header.scope == AddressScope::Universe
                    && address.header.flags.contains(AddressHeaderFlags::Permanent)
            })
            .collect())
    }

    fn relocate(&mut self, index: u32, name: &str, pid: i32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let pid = u32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
        link.attributes = vec![LinkAttribute::NetNsPid(pid), LinkAttribute::IfName(name.to_owned())];
        self.ask(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(drop)
    }

    fn configure(&mut self, index: u32, addresses: Vec<AddressMessage>) -> io::Result<()> {
        for mut address in addresses {
            address.header.index = index;
            // What the kernel tells of an address and does not take back.
            address.attributes.retain(|attribute| {
                matches!(
                    attribute,
                    AddressAttribute::Address(_)
                        | AddressAttribute::Local(_)
                        | AddressAttribute::Broadcast(_)
                )
            });
            debug_assert!(matches!(address.header.family, AddressFamily::Inet | AddressFamily::Inet6));
            self.ask(
                RouteNetlinkMessage::NewAddress(address),
                NLM_F_ACK | netlink_packet_core::NLM_F_CREATE,
            )?;
        }
        self.up(index)
    }

    fn up(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, inside: &str) -> (String, String) {
        (name.to_owned(), inside.to_owned())
    }

    #[test]
    fn names_are_names_of_interfaces() {
        check(&[device("eth0", "a"), device("eth1", "b")]).unwrap();
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-"] {
            assert!(check(&[device("eth0", bad)]).is_err(), "{bad:?}");
        }
        assert!(check(&[device("eth0", "a"), device("eth1", "a")]).is_err());
    }
}
