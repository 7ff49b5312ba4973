//! nftables over netlink: whole tables, made in one transaction. A small vocabulary of expressions, which is data;
//! their encoding, which is pure; and [`install`] and [`remove`], which have an effect.
//!
//! The encoding is that of `linux/netfilter/nf_tables.h`; what `nft --debug=netlink` prints for a rule is the list
//! of its expressions here.

use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink};

use crate::Error;
use crate::error::Doing;
use crate::netlink::attributes::{Attributes, netfilter_request};
use crate::netlink::exchange;

/// A table with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: &'static str,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
}

/// A set of keys, which rules of its table look something up in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// Bytes of each key.
    pub(crate) length: u32,
    /// Each is what the registers have: its parts, each filled up with zeros to a multiple of four bytes.
    pub(crate) keys: Vec<Vec<u8>>,
}

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// What goes through a bridge.
    Bridge = 7,
}

/// A chain of type `filter` that accepts what no rule decides about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    pub(crate) rules: Vec<Rule>,
}

/// Where a chain is on a packet's way (`NF_INET_*`, `NF_BR_*`: the numbers are the same).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
}

/// Expressions, evaluated one after another until one says that the rule does not apply.
pub(crate) type Rule = Vec<Expression>;

/// How the kernel at hand puts packets into a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queueing {
    /// nftables' own expression.
    Native,
    /// The target of iptables, for kernels without that.
    Target,
}

/// A step of a rule. What is loaded goes to the first register, and what uses a value takes it from there. A key of
/// several parts fills the registers that follow, too; each has four bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Loads a property of the packet.
    Load(Meta),
    /// Loads bytes of a header, to the register `at` behind the first one.
    Bytes { of: Header, offset: u32, length: u32, at: u32 },
    /// Loads the interface that packets to the packet's source leave by, if it came in by that one, else 0.
    ReversePath,
    /// Loads 1 when the socket that waits for the packet is transparent, and 0 when it is not. Without such a
    /// socket the rule does not apply. The socket of an ICMP error is the one whose packet it is about.
    SocketTransparent,
    /// Loads a constant.
    Constant(Vec<u8>),
    /// The rule applies if what is loaded is this.
    Equal(Vec<u8>),
    /// The rule applies if what is loaded is something else.
    Differs(Vec<u8>),
    /// The rule applies if the set of this name has what is loaded.
    In(&'static str),
    /// The rule applies if it has not.
    NotIn(&'static str),
    /// Sets the packet's mark to what is loaded.
    SetMark,
    /// Gives the packet to the established transparent socket that it belongs to, else to the listening one at
    /// the port that is loaded. Without such a socket the rule does not apply.
    TransparentProxy,
    /// Of what is loaded, these bits.
    Masked(Vec<u8>),
    /// Puts the packet into the queue of this number, if somebody reads it.
    Queue(Queueing, u16),
    /// Answers the packet with an error, and ends it.
    Reject(Rejection),
    /// Ends the evaluation of the chain: the packet goes on.
    Accept,
    /// The packet ends here.
    Drop,
}

/// How a packet is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// A TCP reset.
    Reset,
    /// An ICMP error: the host cannot be reached.
    HostUnreachable,
}

/// A header of a packet (`enum nft_payload_bases`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// A property of a packet (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    /// Its mark; four bytes, in host order.
    Mark = 3,
    /// Index of the interface that it came in by; four bytes, in host order.
    InputInterface = 4,
    /// Name of that interface; 16 bytes, see [`interface_name`].
    InputName = 6,
    /// Name of the interface that it leaves by.
    OutputName = 7,
    /// What the link layer carries (`ETH_P_*`); two bytes, in network order.
    LinkProtocol = 1,
    /// 2 is IPv4, 10 is IPv6; one byte.
    Protocol = 15,
    /// TCP, UDP, ... ; one byte.
    Transport = 16,
    /// Whom it is addressed to at the link layer, `PACKET_HOST` (0) is us; one byte.
    PacketType = 19,
}

/// An interface's name as [`Meta::InputName`] loads it.
pub(crate) fn interface_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// The first of those with four bytes (`NFT_REG32_00`), which is where [`REGISTER`] begins.
const REGISTER_OF_FOUR: u32 = 8;
const LOOKUP_INVERTED: u32 = 1;
/// `NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF`.
const FIB_SOURCE_AND_INPUT: u32 = 1 | 8;
const FIB_RESULT_INTERFACE: u32 = 1;
const SOCKET_TRANSPARENT: u32 = 0;
/// `NFT_QUEUE_FLAG_BYPASS`, and `NFQ_FLAG_BYPASS`: without a reader packets go on.
const QUEUE_BYPASS: u16 = 1;
const REJECT_RESET: u32 = 1;
const REJECT_ICMPX: u32 = 2;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_DIFFERS: u32 = 1;

impl Expression {
    /// Name and attributes, as an element of `NFTA_RULE_EXPRESSIONS`.
    fn encode(&self) -> Attributes {
        let new = Attributes::new;
        let value = |bytes: &[u8]| new().bytes(1, bytes);
        let compare = |operation, bytes: &[u8]| {
            ("cmp", new().be32(1, REGISTER).be32(2, operation).nested(3, &value(bytes)))
        };
        let verdict = |code| {
            let verdict = new().nested(2, &new().be32(1, code));
            ("immediate", new().be32(1, REGISTER_VERDICT).nested(2, &verdict))
        };
        let (name, data) = match self {
            Self::Load(key) => ("meta", new().be32(1, REGISTER).be32(2, *key as u32)),
            Self::Bytes { of, offset, length, at } => {
                let place = new().be32(1, REGISTER_OF_FOUR + at).be32(2, *of as u32).be32(3, *offset);
                ("payload", place.be32(4, *length))
            }
            Self::ReversePath => {
                let result = new().be32(1, REGISTER).be32(2, FIB_RESULT_INTERFACE);
                ("fib", result.be32(3, FIB_SOURCE_AND_INPUT))
            }
            Self::SocketTransparent => ("socket", new().be32(1, SOCKET_TRANSPARENT).be32(2, REGISTER)),
            Self::Constant(bytes) => ("immediate", new().be32(1, REGISTER).nested(2, &value(bytes))),
            Self::Equal(bytes) => compare(COMPARE_EQUAL, bytes),
            Self::Differs(bytes) => compare(COMPARE_DIFFERS, bytes),
            Self::In(set) => ("lookup", new().string(1, set).be32(2, REGISTER)),
            Self::NotIn(set) => ("lookup", new().string(1, set).be32(2, REGISTER).be32(5, LOOKUP_INVERTED)),
            Self::SetMark => ("meta", new().be32(2, META_MARK).be32(3, REGISTER)),
            // Family 0: both.
            Self::TransparentProxy => ("tproxy", new().be32(1, 0).be32(3, REGISTER)),
            Self::Masked(mask) => {
                let length = mask.len() as u32;
                let registers = new().be32(1, REGISTER).be32(2, REGISTER).be32(3, length);
                ("bitwise", registers.nested(4, &value(mask)).nested(5, &value(&vec![0; mask.len()])))
            }
            Self::Queue(Queueing::Native, number) => {
                let [one, bypass] = [1, QUEUE_BYPASS].map(u16::to_be_bytes);
                ("queue", new().bytes(1, &number.to_be_bytes()).bytes(2, &one).bytes(3, &bypass))
            }
            // `struct xt_NFQ_info_v3`: number, how many, flags.
            Self::Queue(Queueing::Target, number) => {
                let information = [*number, 1, QUEUE_BYPASS, 0].map(u16::to_ne_bytes).concat();
                ("target", new().string(1, "NFQUEUE").be32(2, 3).bytes(3, &information))
            }
            Self::Reject(Rejection::Reset) => ("reject", new().be32(1, REJECT_RESET).bytes(2, &[0])),
            Self::Reject(Rejection::HostUnreachable) => {
                ("reject", new().be32(1, REJECT_ICMPX).bytes(2, &[2]))
            }
            Self::Accept => verdict(NF_ACCEPT),
            Self::Drop => verdict(NF_DROP),
        };
        new().string(1, name).nested(2, &data)
    }
}

/// `NFT_META_MARK`.
const META_MARK: u32 = 3;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const NEW_KEYS: u16 = SUBSYSTEM << 8 | 12;

/// Keys in one request: what a list attribute has room for is 64 KiB.
const KEYS: usize = 500;

const CREATE: u16 = netlink_packet_core::NLM_F_CREATE;
const APPEND: u16 = netlink_packet_core::NLM_F_APPEND;
const ACK: u16 = netlink_packet_core::NLM_F_ACK;

/// Requests of one transaction, numbered from 0 on, and what each of them does.
#[derive(Debug, Default)]
struct Transaction {
    bytes: Vec<u8>,
    requests: Vec<String>,
}

impl Transaction {
    fn begin() -> Self {
        let mut new = Self::default();
        new.push("begin a transaction of nftables".into(), BATCH_BEGIN, 0, 0, &Attributes::new());
        new
    }

    /// `family` and what follows it are `struct nfgenmsg`.
    fn push(&mut self, what: String, kind: u16, flags: u16, family: u8, attributes: &Attributes) {
        // Only begin and end say which subsystem they are for.
        let subsystem = if kind < NEW_TABLE { SUBSYSTEM } else { 0 };
        let sequence = self.requests.len() as u32;
        self.bytes.extend(netfilter_request(kind, flags, sequence, (family, subsystem), attributes));
        self.requests.push(what);
    }

    /// Makes sure that there is no table of this name. Of every transaction this is the request whose success is
    /// answered: answers to hundreds of rules would not fit the socket's receive buffer.
    fn delete(&mut self, family: Family, name: &str) {
        let attributes = Attributes::new().string(1, name);
        // To delete what is not there is an error, to create what is there is not.
        self.push(
            format!("create nftables table `{name}`"),
            NEW_TABLE,
            ACK | CREATE,
            family as u8,
            &attributes,
        );
        self.push(format!("delete nftables table `{name}`"), DELETE_TABLE, ACK, family as u8, &attributes);
    }

    fn create(&mut self, table: &Table) {
        let (family, name) = (table.family as u8, table.name);
        let attributes = Attributes::new().string(1, name);
        self.push(format!("create nftables table `{name}`"), NEW_TABLE, CREATE, family, &attributes);
        for (number, set) in (1..).zip(&table.sets) {
            let what = format!("create set `{}` of nftables table `{name}`", set.name);
            let attributes = Attributes::new().string(1, name).string(2, set.name).be32(3, 0);
            let attributes = attributes.be32(5, set.length).be32(10, number);
            self.push(what, NEW_SET, CREATE, family, &attributes);
            for keys in set.keys.chunks(KEYS) {
                let list = keys.iter().fold(Attributes::new(), |list, key| {
                    let key = Attributes::new().nested(1, &Attributes::new().bytes(1, key));
                    list.nested(1, &key)
                });
                let what = format!("fill set `{}` of nftables table `{name}`", set.name);
                let attributes = Attributes::new().string(1, name).string(2, set.name).nested(3, &list);
                self.push(what, NEW_KEYS, CREATE, family, &attributes.be32(4, number));
            }
        }
        for chain in &table.chains {
            let hook = Attributes::new().be32(1, chain.hook as u32).be32(2, chain.priority as u32);
            let attributes = Attributes::new().string(1, name).string(3, chain.name).nested(4, &hook);
            let attributes = attributes.be32(5, NF_ACCEPT).string(7, "filter");
            let what = format!("create chain `{}` of nftables table `{name}`", chain.name);
            self.push(what, NEW_CHAIN, CREATE, family, &attributes);
            for (number, rule) in chain.rules.iter().enumerate() {
                let element =
                    |list: Attributes, expression: &Expression| list.nested(1, &expression.encode());
                let expressions = rule.iter().fold(Attributes::new(), element);
                let attributes = Attributes::new().string(1, name).string(2, chain.name);
                let attributes = attributes.nested(4, &expressions);
                let what =
                    format!("add rule {} to chain `{}` of nftables table `{name}`", number + 1, chain.name);
                self.push(what, NEW_RULE, CREATE | APPEND, family, &attributes);
            }
        }
    }

    /// All of it happens, or nothing.
    fn commit(mut self) -> Result<(), Error> {
        self.push("end a transaction of nftables".into(), BATCH_END, 0, 0, &Attributes::new());
        let flags = SocketFlags::CLOEXEC;
        let protocol = Some(netlink::NETFILTER);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
            .doing(|| "open a netlink socket for nftables")?;
        // What fails is answered, and of what succeeds only the deletion.
        exchange(&socket, &self.bytes, 0, &self.requests, 1)
    }
}

/// Installs a table in the current network namespace, in place of one of the same name.
///
/// # Errors
/// Names the table, chain or rule; nothing has changed then.
pub(crate) fn install(table: &Table) -> Result<(), Error> {
    let mut transaction = Transaction::begin();
    transaction.delete(table.family, table.name);
    transaction.create(table);
    transaction.commit()
}

/// Removes a table of the current network namespace, if there is one.
///
/// # Errors
/// What the kernel says.
pub(crate) fn remove(family: Family, name: &str) -> Result<(), Error> {
    let mut transaction = Transaction::begin();
    transaction.delete(family, name);
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `nft` encodes `tproxy to :1111` (`strace -xx -e trace=sendmsg nft ...`).
    #[test]
    fn expressions_are_a_name_and_data() {
        let encoded = Expression::TransparentProxy.encode();
        let data = Attributes::new().be32(1, 0).be32(3, 1);
        assert_eq!(encoded, Attributes::new().string(1, "tproxy").nested(2, &data));
        let bytes = Expression::Equal(vec![6]).encode();
        let value = Attributes::new().bytes(1, &[6]);
        let data = Attributes::new().be32(1, 1).be32(2, 0).nested(3, &value);
        assert_eq!(bytes, Attributes::new().string(1, "cmp").nested(2, &data));
        // `ip saddr . tcp dport @s`, and `!= @s`.
        let of = Header::Network;
        let encoded = Expression::Bytes { of, offset: 12, length: 4, at: 3 }.encode();
        let data = Attributes::new().be32(1, 11).be32(2, 1).be32(3, 12).be32(4, 4);
        assert_eq!(encoded, Attributes::new().string(1, "payload").nested(2, &data));
        let data = Attributes::new().string(1, "s").be32(2, 1).be32(5, 1);
        let encoded = Expression::NotIn("s").encode();
        assert_eq!(encoded, Attributes::new().string(1, "lookup").nested(2, &data));
        let verdict = Attributes::new().nested(2, &Attributes::new().be32(1, 1));
        let data = Attributes::new().be32(1, 0).nested(2, &verdict);
        assert_eq!(Expression::Accept.encode(), Attributes::new().string(1, "immediate").nested(2, &data));
    }

    #[test]
    fn a_transaction_numbers_its_requests_and_names_their_objects() {
        let rules = vec![vec![Expression::Drop], vec![Expression::Accept]];
        let chain = Chain { name: "input", hook: Hook::Input, priority: -150, rules };
        let set = Set { name: "s", length: 4, keys: vec![vec![0; 4]; KEYS + 1] };
        let mut transaction = Transaction::begin();
        transaction.create(&Table {
            family: Family::Bridge,
            name: "t",
            sets: vec![set],
            chains: vec![chain],
        });
        let expected = [
            "begin a transaction of nftables",
            "create nftables table `t`",
            "create set `s` of nftables table `t`",
            "fill set `s` of nftables table `t`",
            "fill set `s` of nftables table `t`",
            "create chain `input` of nftables table `t`",
            "add rule 1 to chain `input` of nftables table `t`",
            "add rule 2 to chain `input` of nftables table `t`",
        ];
        assert_eq!(transaction.requests, expected);
        let mut rest = &transaction.bytes[..];
        let kinds = [BATCH_BEGIN, NEW_TABLE, NEW_SET, NEW_KEYS, NEW_KEYS, NEW_CHAIN, NEW_RULE, NEW_RULE];
        for (number, kind) in kinds.into_iter().enumerate() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            assert_eq!(rest[4..6], kind.to_ne_bytes());
            assert_eq!(rest[8..12], (number as u32).to_ne_bytes());
            assert_eq!(rest[16], if kind == BATCH_BEGIN { 0 } else { 7 }, "the family");
            assert_eq!(rest[18..20], if kind == BATCH_BEGIN { [0, 10] } else { [0, 0] });
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn names_of_interfaces_are_padded() {
        assert_eq!(interface_name("eth0"), b"eth0\0\0\0\0\0\0\0\0\0\0\0\0");
    }
}
