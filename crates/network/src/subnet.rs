//! A subnet: the addresses that begin with the same bits. Pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The addresses of one family that have their first bits in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subnet(IpAddr, u8);

impl Subnet {
    /// The subnet that `address` is in. A prefix length beyond that of the address means the address alone.
    #[must_use]
    pub fn of(address: impl Into<IpAddr>, prefix: u8) -> Self {
        let address = address.into();
        let prefix = prefix.min(length(address));
        let first = match address {
            IpAddr::V4(address) => IpAddr::from(
                (u32::from(address) & !u32::MAX.checked_shr(prefix.into()).unwrap_or(0)).to_be_bytes(),
            ),
            IpAddr::V6(address) => IpAddr::from(
                (u128::from(address) & !u128::MAX.checked_shr(prefix.into()).unwrap_or(0)).to_be_bytes(),
            ),
        };
        Self(first, prefix)
    }

    /// The subnet that is this address.
    #[must_use]
    pub fn one(address: impl Into<IpAddr>) -> Self {
        Self::of(address, u8::MAX)
    }

    /// The first address.
    #[must_use]
    pub fn first(self) -> IpAddr {
        self.0
    }

    /// The last address: the broadcast address of an IPv4 subnet.
    #[must_use]
    pub fn last(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(first) => IpAddr::from(
                (u32::from(first) | u32::MAX.checked_shr(self.1.into()).unwrap_or(0)).to_be_bytes(),
            ),
            IpAddr::V6(first) => IpAddr::from(
                (u128::from(first) | u128::MAX.checked_shr(self.1.into()).unwrap_or(0)).to_be_bytes(),
            ),
        }
    }

    /// Prefix length: how many bits its addresses have in common.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.1
    }

    /// Whether it is no more than one address.
    #[must_use]
    pub(crate) fn is_single(self) -> bool {
        self.1 == length(self.0)
    }

    /// Whether `address`, of the same family, is in it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.is_ipv4() == address.is_ipv4() && Self::of(address, self.1) == self
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.1 <= other.1 && self.contains(other.0)
    }

    /// Whether an address is in both: then all of the smaller one is.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

/// Bits of an address.
fn length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn everything_nothing_but_one_and_the_other_family() {
        let [all, all6] = [Subnet::of(Ipv4Addr::LOCALHOST, 0), Subnet::of(Ipv6Addr::LOCALHOST, 0)];
        assert_eq!((all.first(), all.last()), (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()));
        assert_eq!(
            (all6.first(), all6.last()),
            (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from([0xff; 16]).into())
        );
        assert!(!all.contains(Ipv6Addr::UNSPECIFIED.into()) && !all6.contains(Ipv4Addr::UNSPECIFIED.into()));
        let one = Subnet::one(Ipv4Addr::LOCALHOST);
        assert!(one.is_single() && one.prefix() == 32 && one.first() == one.last() && all.covers(one));
        assert_eq!(Subnet::one(Ipv6Addr::LOCALHOST).prefix(), 128);
    }

    proptest! {
        #[test]
        fn its_addresses_share_its_bits(a in any::<u128>(), near in 0u32..=128, noise in any::<u128>(), prefix in 0u8..=128) {
            let b = a ^ noise.checked_shr(near).unwrap_or(0);
            let subnet = Subnet::of(Ipv6Addr::from(a), prefix);
            prop_assert_eq!(subnet.contains(Ipv6Addr::from(b).into()), (a ^ b).leading_zeros() >= prefix.into());
            let (a, b, prefix) = ((a >> 96) as u32, (b >> 96) as u32, prefix.min(32));
            let subnet = Subnet::of(Ipv4Addr::from(a), prefix);
            let within = IpAddr::from(Ipv4Addr::from(b));
            prop_assert_eq!(subnet.contains(within), (a ^ b).leading_zeros() >= prefix.into());
            prop_assert_eq!(subnet.contains(within), (subnet.first()..=subnet.last()).contains(&within));
        }

        #[test]
        fn two_overlap_where_one_covers_the_other(a in any::<u32>(), b in any::<u32>(), one in 0u8..=32, other in 0u8..=32) {
            let [one, other] = [Subnet::of(Ipv4Addr::from(a), one), Subnet::of(Ipv4Addr::from(b), other)];
            let common = one.first().max(other.first()) <= one.last().min(other.last());
            prop_assert_eq!(one.overlaps(other), common);
            prop_assert!(one.overlaps(one) && (!one.covers(other) || one.contains(other.last())));
        }
    }
}
