//! Names: what the stack's DNS server answers, and the sockets it listens on.
//!
//! A container asks the gateway address of one of its networks and sees the names on all of its networks, and no
//! others. [`answer`] decides by plan and states alone; [`wire`] reads and writes messages, `lookup` knows what
//! names stand for, [`cache`] keeps what the host's resolvers said.

pub(crate) mod cache;
mod lookup;
mod sockets;
pub mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

pub use sockets::{NameSockets, bind_in_current_namespace};

use crate::balance::State;
use crate::plan::{Endpoint, NetworkPlan};
use lookup::{Lookup, View};
use wire::{CLASS_ANY, CLASS_IN, Code, Odd, Query, TYPE_AXFR, TYPE_TKEY, Transport};

/// The DNS port.
pub(crate) const PORT: u16 = 53;

/// What to do with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this back.
    Reply(Vec<u8>),
    /// Not ours: ask the host's resolvers.
    Forward(Query),
    /// Not a query at all.
    Drop,
}

/// The endpoint that a query came from, by its source address on the network whose gateway it asked.
#[must_use]
pub fn asker<'a>(plan: &'a NetworkPlan, network: &str, source: Ipv4Addr) -> Option<&'a Endpoint> {
    plan.endpoints.iter().find(|endpoint| {
        endpoint.interfaces.iter().any(|link| link.network == network && link.address == source)
    })
}

/// Answers a query of `asker`. Containers that `states` does not name are ready; `turn` tells which of several
/// addresses comes first, and should be another one for each query.
#[must_use]
pub fn answer(
    message: &[u8],
    transport: Transport,
    asker: &Endpoint,
    plan: &NetworkPlan,
    states: &BTreeMap<String, State>,
    turn: usize,
) -> Answer {
    let query = match Query::read(message, transport) {
        Ok(query) => query,
        Err(Odd::NoQuery) => return Answer::Drop,
        Err(Odd::Answer(reply)) => return Answer::Reply(reply),
    };
    let failed = |code| Answer::Reply(query.reply(code, &[], &[]));
    if query.is_of_unknown_version() {
        return failed(Code::BadVersion);
    }
    // Other classes, transfers of zones, and what is for one server only.
    if (query.class != CLASS_IN && query.class != CLASS_ANY) || (TYPE_TKEY..=TYPE_AXFR).contains(&query.kind)
    {
        return failed(Code::Refused);
    }
    match (View { asker, plan, states, turn }).lookup(&query) {
        Lookup::Found { answers, additional } => Answer::Reply(query.reply(Code::Ok, &answers, &additional)),
        Lookup::NoSuchName => failed(Code::NoSuchName),
        Lookup::Foreign => Answer::Forward(query),
    }
}

/// The name servers of a `resolv.conf` (resolv.conf(5)), three at the most as there. `index_of` tells the index of an
/// interface, which link-local addresses come with.
#[must_use]
pub(crate) fn parse_resolvers(text: &str, index_of: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let address = (fields.next() == Some("nameserver")).then(|| fields.next()).flatten()?;
        match address.split_once('%') {
            Some((address, interface)) => {
                let scope = interface.parse().ok().or_else(|| index_of(interface))?;
                Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
            }
            None => Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, PORT)),
        }
    };
    text.lines().filter_map(server).take(3).collect()
}

#[cfg(test)]
mod tests;
