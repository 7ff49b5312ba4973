//! What resolvers reply: checked, kept, and passed on to whoever asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::{
    CLASS_IN, CUT, Code, HEADER, OPCODE, OPT, Query, REPLY, Raw, TYPE_A, TYPE_AAAA, TYPE_ANY, TYPE_CNAME,
    TYPE_OPT, TYPE_SOA, number, overwrite, question, read_name, time,
};

/// Longest time to live that is believed and passed on, in seconds.
const LONGEST: u32 = 3600;
/// The same for "there is no such name" (RFC 2308 section 5 allows up to three hours).
const LONGEST_NEGATIVE: u32 = 300;
/// Aliases (CNAME) that are followed in one reply.
const CHAIN: usize = 16;

/// A resolver's reply, ready to be passed on to anybody who asked the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Without what concerns only the resolver and us (EDNS).
    message: Vec<u8>,
    /// Where each record's time to live is.
    times: Vec<u16>,
    /// How long it may be kept; never when there is nothing, as failures and what was cut are.
    lifetime: Option<Duration>,
    /// Addresses that the name asked for leads to, aliases followed.
    addresses: Vec<IpAddr>,
}

/// What a resolver has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// It is not about our query: somebody else's, or forged.
    Foreign,
    /// It does not know, or its reply makes no sense: another one may know better.
    Failure,
    /// There is more than fits into a datagram.
    Cut,
    /// A reply.
    Whole(Reply),
}

impl Reply {
    /// Reads what came in reply to `asked`, the message that was sent.
    #[must_use]
    pub fn read(message: &[u8], asked: &[u8]) -> Received {
        let (Some(header), Some(id)) = (message.get(..HEADER), asked.get(..2)) else {
            return Received::Foreign;
        };
        let (Some(ours), Some(theirs)) = (question(asked), question(message)) else {
            return Received::Foreign;
        };
        if header[..2] != *id || header[2] & (REPLY | OPCODE) != REPLY || ours != theirs {
            return Received::Foreign;
        }
        let code = header[3] & 15;
        if code == Code::ServerFailed as u8 || code == Code::Refused as u8 {
            return Received::Failure;
        }
        if header[2] & CUT != 0 {
            return Received::Cut;
        }
        match Self::records(message, &ours) {
            Some(reply) => Received::Whole(reply),
            None => Received::Failure,
        }
    }

    /// What a client gets when the reply does not fit into its datagram and it has to come again.
    pub(crate) fn cut(asked: &[u8]) -> Self {
        let end = question(asked).map_or(HEADER, |(.., end)| end);
        let mut message = asked.get(..end).unwrap_or(asked).to_vec();
        let third = message.get(2).copied().unwrap_or_default() | REPLY | CUT;
        overwrite(&mut message, 2, &[third, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        Self { message, times: Vec::new(), lifetime: None, addresses: Vec::new() }
    }

    fn records(message: &[u8], (name, kind, _, end): &(String, u16, u16, usize)) -> Option<Self> {
        let counts = [number(message, 6)?, number(message, 8)?, number(message, 10)?];
        let mut seen = Seen { least: LONGEST, ..Seen::default() };
        let mut times = Vec::new();
        let mut at = *end;
        let mut additional = counts[2];
        'records: for (section, count) in counts.into_iter().enumerate() {
            for index in 0..count {
                let record = Raw::read(message, at)?;
                if record.kind == TYPE_OPT {
                    // With the rest of the code, none of which is an answer.
                    if section != 2 || record.time >> 24 != 0 {
                        return None;
                    }
                    // What follows is additional, too, and nothing that a client needs.
                    additional = index;
                    break 'records;
                }
                seen.note(message, section, *kind, &record)?;
                times.push(u16::try_from(record.time_at).ok()?);
                at = record.end;
            }
        }
        let mut kept = message.get(..at)?.to_vec();
        overwrite(&mut kept, 10, &additional.to_be_bytes());
        let code = message.get(3)? & 15;
        let lifetime = seen.lifetime(code);
        let most = lifetime.unwrap_or(LONGEST);
        for at in times.iter().map(|at| usize::from(*at)) {
            let time = time(&kept, at)?.min(most);
            overwrite(&mut kept, at, &time.to_be_bytes());
        }
        let lifetime =
            lifetime.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()));
        Some(Self { message: kept, times, lifetime, addresses: seen.addresses_of(name) })
    }

    /// How long it may be kept.
    #[must_use]
    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// Addresses that the name asked for leads to.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its size in memory, about.
    pub(crate) fn size(&self) -> usize {
        self.message.len() + 2 * self.times.len() + size_of::<IpAddr>() * self.addresses.len()
    }

    /// The message for whoever asked `query`, `age` after it came: times to live are what is left of them.
    #[must_use]
    pub fn deliver(&self, query: &Query, age: Duration) -> Vec<u8> {
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let mut message = self.message.clone();
        for at in self.times.iter().map(|at| usize::from(*at)) {
            let left = time(&message, at).unwrap_or_default().saturating_sub(age);
            overwrite(&mut message, at, &left.to_be_bytes());
        }
        let room = query.limit() - if query.edns.is_some() { OPT } else { 0 };
        if message.len() > room {
            message.truncate(query.head.len());
            if let Some(third) = message.get_mut(2) {
                *third |= CUT;
            }
            overwrite(&mut message, 6, &[0; 6]);
        }
        // Its own id, and its own spelling of the name, which some check.
        overwrite(&mut message, 0, query.head.get(..2).unwrap_or_default());
        overwrite(&mut message, HEADER, query.question());
        query.append_opt(&mut message, Code::Ok);
        message
    }
}

/// What is learned from the records of a reply.
#[derive(Default)]
struct Seen {
    /// Least time to live in seconds.
    least: u32,
    /// Of "there is no such thing", from the zone's SOA record (RFC 2308 section 5).
    negative: Option<u32>,
    /// There is a record of the type that was asked for.
    answered: bool,
    aliases: Vec<(String, String)>,
    addresses: Vec<(String, IpAddr)>,
}

impl Seen {
    /// Takes a record in; `None` when its data make no sense.
    fn note(&mut self, message: &[u8], section: usize, kind: u16, record: &Raw) -> Option<()> {
        self.least = self.least.min(record.time);
        let data = message.get(record.data..record.end)?;
        if section == 1 && record.kind == TYPE_SOA {
            let minimum = data.last_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))?;
            self.negative = Some(minimum.min(record.time).min(LONGEST_NEGATIVE));
        }
        if section != 0 {
            return Some(());
        }
        self.answered |= record.kind == kind || kind == TYPE_ANY;
        if record.class != CLASS_IN {
            return Some(());
        }
        let owner = || read_name(message, record.at).map(|(name, _)| name);
        match record.kind {
            TYPE_A => {
                let address = Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?);
                self.addresses.push((owner()?, address.into()));
            }
            TYPE_AAAA => {
                let address = Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?);
                self.addresses.push((owner()?, address.into()));
            }
            TYPE_CNAME => {
                let (target, end) = read_name(message, record.data)?;
                (end == record.end).then_some(())?;
                self.aliases.push((owner()?, target));
            }
            _ => {}
        }
        Some(())
    }

    /// In seconds; `None` for what is not to be kept.
    fn lifetime(&self, code: u8) -> Option<u32> {
        match code {
            0 if self.answered => Some(self.least),
            // A name without such a record, and no such name.
            0 | 3 => Some(self.negative?.min(self.least)),
            _ => None,
        }
    }

    /// The addresses that `name` leads to.
    fn addresses_of(self, name: &str) -> Vec<IpAddr> {
        let mut names = vec![name];
        while names.len() <= CHAIN
            && let Some(last) = names.last().copied()
            && let Some((_, next)) = self.aliases.iter().find(|(alias, _)| alias == last)
            && !names.contains(&next.as_str())
        {
            names.push(next);
        }
        let led_to = |owner: &String| names.contains(&owner.as_str());
        self.addresses.iter().filter(|(owner, _)| led_to(owner)).map(|(_, address)| *address).collect()
    }
}
