//! Attributes of netlink messages (netlink(7)) for what `netlink-packet-route` does not know. Pure.

/// Set in the type of an attribute that holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;

/// A sequence of attributes, encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one with this value.
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a string with its terminating zero.
    pub(crate) fn string(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds a number in network byte order, as nftables wants them.
    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds one that holds others.
    pub(crate) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The bytes, a multiple of four.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A request of a subsystem of netfilter's (`linux/netfilter/nfnetlink.h`): netlink's header, `struct nfgenmsg`, of which
/// each subsystem uses family and resource in its own way, and attributes.
pub(crate) fn netfilter_request(
    kind: u16,
    flags: u16,
    sequence: u32,
    (family, resource): (u8, u16),
    attributes: &Attributes,
) -> Vec<u8> {
    let length = 16 + 4 + attributes.as_bytes().len();
    let mut bytes = u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((netlink_packet_core::NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_exclude_the_padding_and_nesting_is_marked() {
        let inner = Attributes::new().string(1, "ab").be32(2, 0x0102_0304);
        let expected: &[u8] = if cfg!(target_endian = "little") {
            &[7, 0, 1, 0, b'a', b'b', 0, 0, 8, 0, 2, 0, 1, 2, 3, 4]
        } else {
            &[0, 7, 0, 1, b'a', b'b', 0, 0, 0, 8, 0, 2, 1, 2, 3, 4]
        };
        assert_eq!(inner.as_bytes(), expected);
        let outer = Attributes::new().nested(4, &inner);
        let (header, value) = outer.as_bytes().split_at(4);
        assert_eq!(header, [20u16.to_ne_bytes(), (4 | NESTED).to_ne_bytes()].concat());
        assert_eq!(value, expected);
    }
}
