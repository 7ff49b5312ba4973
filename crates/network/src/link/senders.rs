//! Who a container may send as: itself. Networks are shared, and what a container is allowed (its egress policy above
//! all) is known by its address, so that a neighbour's must not be anybody's to take.
//!
//! One table of the bridges checks each packet that comes in by a container's link: the source at the link layer and
//! the address together must be the link's own. What is neither IPv4, IPv6 nor ARP is dropped, because an address
//! could hide in it.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use rustix::io::Errno;

use crate::Error;
use crate::nft::{self, Chain, Expression, Family, Header, Hook, Meta, Rule, Set, Table};
use crate::plan::{Interface, NetworkPlan};

const TABLE: &str = "inception_senders";
/// Names of sets: a link's index, its link-layer address, and an address of it.
const IPV4: &str = "ipv4";
const IPV6: &str = "ipv6";
/// Before everything else that bridges do (`NF_BR_PRI_FIRST` is lower still).
const PRIORITY: i32 = -400;

/// `ETH_P_*`.
const ETH_IPV4: u16 = 0x0800;
const ETH_ARP: u16 = 0x0806;
const ETH_IPV6: u16 = 0x86dd;
const IPPROTO_ICMPV6: u8 = 58;
/// RFC 4861, section 4.4: the address that it is about follows eight bytes later.
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// Enforces it for the links of a plan, in place of the plan before. `peers` are the indices of their ends on bridges.
/// Without the kernel's help it is left out, and so are partitions of networks, which need the same.
///
/// # Errors
/// What the kernel says, unless it does not know such tables at all.
pub(super) fn bind(plan: &NetworkPlan, peers: &BTreeMap<String, u32>) -> Result<(), Error> {
    if peers.is_empty() {
        // No index is used twice, so that rules for links that are gone mean nobody.
        return Ok(());
    }
    match nft::install(&table(plan, peers)) {
        Err(error) if is_unknown(&error) => {
            tracing::debug!(%error, "containers of a network can send as each other");
            Ok(())
        }
        result => result,
    }
}

/// Whether the kernel lacks nftables, the family of bridges, or a kind of expression.
fn is_unknown(error: &Error) -> bool {
    let Error::System { source, .. } = error else { return false };
    let errno = source.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT))
}

fn table(plan: &NetworkPlan, peers: &BTreeMap<String, u32>) -> Table {
    use Expression::{Accept, Bytes, Drop, Equal, In, Load, NotIn};
    let links = || {
        let links = plan.endpoints.iter().flat_map(|endpoint| &endpoint.interfaces);
        links.filter_map(|link| Some((*peers.get(&link.peer)?, link)))
    };
    let ipv4 = links().map(|(index, link)| key(index, link, &link.address.octets())).collect();
    let ipv6 = links().flat_map(|(index, link)| {
        let addresses = link.address6.map(|address| [address, link_local(link.mac)]);
        addresses.into_iter().flatten().map(move |address| key(index, link, &address.octets()))
    });
    let sets = vec![
        Set { name: IPV4, length: 16, keys: ipv4 },
        Set { name: IPV6, length: 28, keys: ipv6.collect() },
    ];
    let carries = |protocol: u16| [Load(Meta::LinkProtocol), Equal(protocol.to_be_bytes().to_vec())];
    let sender = |of, offset| Bytes { of, offset, length: 6, at: 1 };
    let address = |of, offset, length| Bytes { of, offset, length, at: 3 };
    // The frame's own source, and an address.
    let from = |address| [Load(Meta::InputInterface), sender(Header::Link, 6), address];
    let arp_address = || address(Header::Network, 14, 4);
    let rule = |parts: &[&[Expression]]| -> Rule { parts.concat() };
    let rules = vec![
        rule(&[&carries(ETH_IPV4), &from(address(Header::Network, 12, 4)), &[In(IPV4), Accept]]),
        // What the message says of its sender is what neighbours believe.
        rule(&[
            &carries(ETH_ARP),
            &from(arp_address()),
            &[In(IPV4), Load(Meta::InputInterface), sender(Header::Network, 8), arp_address()],
            &[In(IPV4), Accept],
        ]),
        rule(&[
            &carries(ETH_IPV6),
            &[Load(Meta::Transport), Equal(vec![IPPROTO_ICMPV6])],
            &[Bytes { of: Header::Transport, offset: 0, length: 1, at: 0 }],
            &[Equal(vec![NEIGHBOR_ADVERTISEMENT])],
            &from(address(Header::Transport, 8, 16)),
            &[NotIn(IPV6), Drop],
        ]),
        rule(&[&carries(ETH_IPV6), &from(address(Header::Network, 8, 16)), &[In(IPV6), Accept]]),
        vec![Drop],
    ];
    let chain = Chain { name: "prerouting", hook: Hook::Prerouting, priority: PRIORITY, rules };
    Table { family: Family::Bridge, name: TABLE, sets, chains: vec![chain] }
}

/// As the registers have it: four bytes of the index in host order, six and two zeros, and the address.
fn key(index: u32, link: &Interface, address: &[u8]) -> Vec<u8> {
    [&index.to_ne_bytes()[..], &link.mac, &[0; 2], address].concat()
}

/// The address that the kernel gives a link with IPv6 (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
