//! DNS messages (RFC 1035 section 4): queries of containers and replies of resolvers are read as the hostile input
//! that they are, replies are written. Pure data.

mod reply;

use std::net::IpAddr;

pub use reply::{Received, Reply};

/// Longest reply over UDP to a client that does not say otherwise (RFC 1035 section 2.3.4).
pub(crate) const UDP_LIMIT: usize = 512;
/// Longest reply over UDP to any client.
const UDP_LARGEST: u16 = 4096;
/// What fits into one packet everywhere; what we take over UDP (<https://www.dnsflagday.net/2020/>).
const UDP_PAYLOAD: u16 = 1232;
/// Longest name in bytes (RFC 1035 section 2.3.4).
const NAME: usize = 255;

/// Length of a message's header.
const HEADER: usize = 12;
/// Length of the record that says that a message follows RFC 6891, without options.
const OPT: usize = 11;

pub(crate) const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_SOA: u16 = 6;
pub(crate) const TYPE_PTR: u16 = 12;
pub(crate) const TYPE_AAAA: u16 = 28;
pub(crate) const TYPE_SRV: u16 = 33;
const TYPE_OPT: u16 = 41;
pub(crate) const TYPE_TKEY: u16 = 249;
pub(crate) const TYPE_AXFR: u16 = 252;
pub(crate) const TYPE_ANY: u16 = 255;
pub(crate) const CLASS_IN: u16 = 1;
pub(crate) const CLASS_ANY: u16 = 255;

/// Third byte of a header: it is a reply; kind of query; the reply is cut; recursion is asked for.
const REPLY: u8 = 0x80;
const OPCODE: u8 = 0x78;
const CUT: u8 = 0x02;
const RECURSE: u8 = 0x01;
/// Fourth byte: the reply was validated, do not validate (RFC 4035 section 3).
const AUTHENTIC: u8 = 0x20;
const UNCHECKED: u8 = 0x10;

/// Outcome in a reply's header (RFC 1035 section 4.1.1, RFC 6891 section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    Malformed = 1,
    ServerFailed = 2,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
    BadVersion = 16,
}

/// How a query came and its reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: replies have a limit.
    Udp,
    /// Over a connection.
    Tcp,
}

/// A query with one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Header and question as they came, to be repeated in the reply.
    head: Vec<u8>,
    /// Lower case, without the last dot; bytes that no name of ours can have, as `\ddd`.
    name: String,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    edns: Option<Edns>,
    transport: Transport,
}

/// What a client says of itself (RFC 6891 section 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edns {
    payload: u16,
    version: u8,
    dnssec: bool,
}

/// Why there is no query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Odd {
    /// A reply, or less than a header: never answered, or two servers could keep each other busy.
    NoQuery,
    /// To be answered with this.
    Answer(Vec<u8>),
}

/// What about a question two clients must agree in to get the same reply.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Sameness {
    name: String,
    kind: u16,
    class: u16,
    /// Recursion, validation, EDNS, DNSSEC records.
    flags: u8,
}

impl Sameness {
    /// Its size in memory, about.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + self.name.len()
    }
}

/// One record of a reply of ours. Its time to live is 0: addresses change when the stack does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// On the wire; the question's own when there is none.
    pub(crate) owner: Option<Vec<u8>>,
    pub(crate) kind: u16,
    pub(crate) data: Vec<u8>,
}

impl Record {
    /// An address of the name asked for.
    pub(crate) fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self { owner: None, kind: TYPE_A, data: address.octets().to_vec() },
            IpAddr::V6(address) => Self { owner: None, kind: TYPE_AAAA, data: address.octets().to_vec() },
        }
    }
}

impl Query {
    pub(crate) fn read(message: &[u8], transport: Transport) -> Result<Self, Odd> {
        let header = message.get(..HEADER).filter(|header| header[2] & REPLY == 0).ok_or(Odd::NoQuery)?;
        let bare = |code| Odd::Answer(bare(header, code));
        if header[2] & OPCODE != 0 {
            return Err(bare(Code::NotImplemented));
        }
        let (name, kind, class, end) = question(message).ok_or_else(|| bare(Code::Malformed))?;
        let edns = read_edns(message, end).map_err(|_| bare(Code::Malformed))?;
        let head = message.get(..end).unwrap_or_default().to_vec();
        Ok(Self { head, name, kind, class, edns, transport })
    }

    /// The name asked for, lower case, without the last dot.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The question as it came.
    #[must_use]
    pub fn question(&self) -> &[u8] {
        self.head.get(HEADER..).unwrap_or_default()
    }

    /// Longest reply that the client takes, in bytes.
    pub(crate) fn limit(&self) -> usize {
        match (self.transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, Some(edns)) => usize::from(edns.payload.min(UDP_LARGEST)).max(UDP_LIMIT),
            (Transport::Udp, None) => UDP_LIMIT,
        }
    }

    /// Whether the client speaks a version of EDNS that nobody has defined yet.
    pub(crate) fn is_of_unknown_version(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version > 0)
    }

    pub(crate) fn sameness(&self) -> Sameness {
        let (third, fourth) = self.flags();
        let edns = u8::from(self.edns.is_some()) << 1;
        let dnssec = u8::from(self.edns.is_some_and(|edns| edns.dnssec)) << 2;
        let flags = third & RECURSE | fourth & (AUTHENTIC | UNCHECKED) | edns | dnssec;
        Sameness { name: self.name.clone(), kind: self.kind, class: self.class, flags }
    }

    fn flags(&self) -> (u8, u8) {
        (self.head.get(2).copied().unwrap_or_default(), self.head.get(3).copied().unwrap_or_default())
    }

    /// What a resolver is asked: the same question under another id, and nothing else that the client may have put
    /// into its message.
    #[must_use]
    pub fn onward(&self, id: [u8; 2]) -> Vec<u8> {
        let (third, fourth) = self.flags();
        let mut message = self.head.clone();
        let header =
            [id[0], id[1], third & RECURSE, fourth & (AUTHENTIC | UNCHECKED), 0, 1, 0, 0, 0, 0, 0, 0];
        overwrite(&mut message, 0, &header);
        self.append_opt(&mut message, Code::Ok);
        message
    }

    /// A reply with `answers` and, as far as there is room, `additional`; answers that do not fit are left out, and
    /// the reply says so.
    pub(crate) fn reply(&self, code: Code, answers: &[Record], additional: &[Record]) -> Vec<u8> {
        let room = self.limit() - if self.edns.is_some() { OPT } else { 0 };
        let mut message = self.head.clone();
        let mut append = |records: &[Record]| {
            let before = records.iter().take_while(|record| {
                let owner = record.owner.as_deref().unwrap_or(&[0xc0, HEADER as u8]);
                let fits = message.len() + owner.len() + 10 + record.data.len() <= room;
                if fits {
                    message.extend(owner);
                    message.extend(record.kind.to_be_bytes());
                    message.extend(CLASS_IN.to_be_bytes());
                    message.extend([0; 4]);
                    message.extend((record.data.len() as u16).to_be_bytes());
                    message.extend(&record.data);
                }
                fits
            });
            before.count() as u16
        };
        let answered = append(answers);
        let cut = usize::from(answered) < answers.len();
        let added = if cut { 0 } else { append(additional) };
        let (third, fourth) = self.flags();
        // Authoritative, recursion available.
        let flags = [
            third & RECURSE | REPLY | 0x04 | if cut { CUT } else { 0 },
            fourth & UNCHECKED | 0x80 | code as u8 & 15,
        ];
        let [answered, added] = [answered.to_be_bytes(), added.to_be_bytes()];
        overwrite(&mut message, 2, &flags);
        overwrite(&mut message, 4, &[0, 1, answered[0], answered[1], 0, 0, added[0], added[1]]);
        self.append_opt(&mut message, code);
        message
    }

    /// Says that we speak EDNS to those who do.
    fn append_opt(&self, message: &mut Vec<u8>, code: Code) {
        let Some(edns) = self.edns else { return };
        let [high, low] = UDP_PAYLOAD.to_be_bytes();
        let dnssec = u8::from(edns.dnssec) << 7;
        message.extend([0, 0, TYPE_OPT as u8, high, low, code as u8 >> 4, 0, dnssec, 0, 0, 0]);
        let count = number(message, 10).unwrap_or_default().saturating_add(1);
        overwrite(message, 10, &count.to_be_bytes());
    }
}

/// A reply without a question, to what has none that could be read.
fn bare(header: &[u8], code: Code) -> Vec<u8> {
    let mut message = header.to_vec();
    let flags = [header.get(2).copied().unwrap_or_default() & (OPCODE | RECURSE) | REPLY, 0x80 | code as u8];
    overwrite(&mut message, 2, &flags);
    overwrite(&mut message, 4, &[0; 8]);
    message
}

/// A record as it is in a message.
struct Raw {
    at: usize,
    kind: u16,
    class: u16,
    time_at: usize,
    /// Time to live in seconds; more than 31 bits are none (RFC 2181 section 8).
    time: u32,
    /// Where its data are, up to `end`.
    data: usize,
    end: usize,
}

impl Raw {
    fn read(message: &[u8], at: usize) -> Option<Self> {
        let after = skip_name(message, at)?;
        let kind = number(message, after)?;
        let raw_time = u32::from_be_bytes(message.get(after + 4..after + 8)?.try_into().ok()?);
        // The OPT record keeps other things there.
        let time = if kind != TYPE_OPT && raw_time > i32::MAX as u32 { 0 } else { raw_time };
        let data = after + 10;
        let end = data + usize::from(number(message, after + 8)?);
        let class = number(message, after + 2)?;
        (end <= message.len()).then_some(Self { at, kind, class, time_at: after + 4, time, data, end })
    }
}

fn time(message: &[u8], at: usize) -> Option<u32> {
    let time = u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?);
    Some(if time > i32::MAX as u32 { 0 } else { time })
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

/// What is beyond the end stays away.
fn overwrite(message: &mut [u8], at: usize, bytes: &[u8]) {
    for (place, byte) in message.iter_mut().skip(at).zip(bytes) {
        *place = *byte;
    }
}

/// Name (lower case), type and class of the question, and where it ends; `None` unless there is exactly one.
fn question(message: &[u8]) -> Option<(String, u16, u16, usize)> {
    if number(message, 4)? != 1 {
        return None;
    }
    // Nothing is before it that a pointer could point to.
    let (name, end) = read_name(message, HEADER)?;
    Some((name, number(message, end)?, number(message, end + 2)?, end + 4))
}

/// What the client says of itself behind its question.
fn read_edns(message: &[u8], mut at: usize) -> Result<Option<Edns>, ()> {
    let count = |at| number(message, at).unwrap_or_default();
    let records = u32::from(count(6)) + u32::from(count(8)) + u32::from(count(10));
    let mut edns = None;
    for _ in 0..records {
        let record = Raw::read(message, at).ok_or(())?;
        if record.kind == TYPE_OPT {
            let [_, version, high, _] = record.time.to_be_bytes();
            let found = Edns { payload: record.class, version, dnssec: high & 0x80 != 0 };
            // Two of them are malformed (RFC 6891 section 6.1.1).
            if edns.replace(found).is_some() {
                return Err(());
            }
        }
        at = record.end;
    }
    Ok(edns)
}

/// Where the name at `at` ends.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + length,
            192.. => return (at + 2 <= message.len()).then_some(at + 2),
            _ => return None,
        }
        if at - start > NAME {
            return None;
        }
    }
}

/// The name at `at`, lower case, and where it ends. A pointer must lead back (RFC 1035 section 4.1.4), behind the
/// header, to a part that ends before the one that the pointer is in: so reading it ends, too.
fn read_name(message: &[u8], at: usize) -> Option<(String, usize)> {
    let end = skip_name(message, at)?;
    let mut name = String::new();
    let mut length = 0;
    let mut start = at;
    let mut part = message;
    let mut at = at;
    loop {
        let first = *part.get(at)?;
        match first {
            0 => return Some((name, end)),
            1..=63 => {
                let label = part.get(at + 1..at + 1 + usize::from(first))?;
                at += 1 + label.len();
                length += 1 + label.len();
                // With the last zero.
                if length + 1 > NAME {
                    return None;
                }
                if !name.is_empty() {
                    name.push('.');
                }
                label.iter().for_each(|byte| push_escaped(&mut name, *byte));
            }
            192.. => {
                let target = usize::from(number(part, at)? & 0x3fff);
                part = part.get(..start)?;
                (at, start) = (target, target);
                if target < HEADER {
                    return None;
                }
            }
            _ => return None,
        }
    }
}

fn push_escaped(name: &mut String, byte: u8) {
    if byte.is_ascii_graphic() && byte != b'.' && byte != b'\\' {
        name.push(char::from(byte.to_ascii_lowercase()));
    } else {
        name.push_str(&format!("\\{byte:03}"));
    }
}

/// A name on the wire; `None` when a label is empty or too long.
pub(crate) fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        out.push(length);
        out.extend(label.as_bytes());
    }
    out.push(0);
    (out.len() <= NAME).then_some(out)
}

#[cfg(test)]
mod tests;
