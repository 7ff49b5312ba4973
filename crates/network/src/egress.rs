//! Egress policy: where a service may connect to outside of its stack. Pure data and decisions.

mod learned;
mod text;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use learned::Learned;
pub use text::{Problem, RuleError};

use crate::Subnet;

/// Where a service may connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Everywhere.
    #[default]
    All,
    /// Nowhere.
    None,
    /// Where one of these rules allows it.
    Only(Vec<Rule>),
}

impl Policy {
    /// Whether a container may connect to `destination`, which it looked up by `names` (see [`Learned`]). Port 0
    /// stands for what has no ports, such as an ICMP echo; only rules without ports allow it.
    #[must_use]
    pub fn allows<'a>(&self, destination: SocketAddr, names: impl IntoIterator<Item = &'a str>) -> bool {
        let rules = match self {
            Self::All => return true,
            Self::None => return false,
            Self::Only(rules) => rules,
        };
        let open = || rules.iter().filter(|rule| rule.has_port(destination.port()));
        open().any(|rule| rule.target.has_address(destination.ip()))
            || names.into_iter().any(|name| open().any(|rule| rule.target.has_name(name)))
    }

    /// Whether the name server forwards questions about `name`. Some rule must name it: a question carries data
    /// out as well as a connection does.
    #[must_use]
    pub(crate) fn may_resolve(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Only(rules) => rules.iter().any(|rule| rule.target.has_name(name)),
        }
    }
}

/// One destination that is allowed: `example.org:443`, `*.example.org`, `10.0.0.0/8:5432`, `[fd00::]/8`.
///
/// Its text forms are read by [`str::parse`] and written by [`Display`](std::fmt::Display).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Whom.
    pub target: Target,
    /// First and last port; all when there is none.
    pub ports: Option<(u16, u16)>,
}

impl Rule {
    fn has_port(&self, port: u16) -> bool {
        self.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
    }
}

/// Whom a rule allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This name, lower case, without a dot at the end.
    Name(String),
    /// All names below this one (`*.NAME`), and not it itself.
    Below(String),
    /// Addresses.
    Subnet(Subnet),
}

impl Target {
    /// An IPv4 address is one even where it is written as IPv6 (RFC 4291, section 2.5.5.2).
    fn has_address(&self, address: IpAddr) -> bool {
        matches!(self, Self::Subnet(subnet) if subnet.contains(address.to_canonical()))
    }

    fn has_name(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        match self {
            Self::Name(own) => name.eq_ignore_ascii_case(own),
            // Compared as bytes: a name from the network may have anything where the suffix is cut off.
            Self::Below(parent) => {
                let (name, parent) = (name.as_bytes(), parent.as_bytes());
                let split = name.len().checked_sub(parent.len()).map(|at| name.split_at(at));
                split.is_some_and(|(above, below)| {
                    below.eq_ignore_ascii_case(parent) && above.len() > 1 && above.ends_with(b".")
                })
            }
            Self::Subnet(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(rules: &[&str]) -> Policy {
        Policy::Only(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn allows(policy: &Policy, destination: &str, names: &[&str]) -> bool {
        policy.allows(destination.parse().unwrap(), names.iter().copied())
    }

    #[test]
    fn all_and_none() {
        assert!(allows(&Policy::All, "192.0.2.1:80", &[]) && Policy::All.may_resolve("example.org"));
        for policy in [Policy::None, Policy::Only(Vec::new())] {
            assert!(!allows(&policy, "192.0.2.1:80", &["example.org"]));
            assert!(!policy.may_resolve("example.org"));
        }
    }

    #[test]
    fn names_count_only_where_they_were_looked_up() {
        let policy = only(&["example.org:443"]);
        assert!(allows(&policy, "192.0.2.1:443", &["cdn.test", "Example.ORG."]));
        assert!(!allows(&policy, "192.0.2.1:443", &[]));
        assert!(!allows(&policy, "192.0.2.1:443", &["www.example.org", "xample.org", "example.org.test"]));
        assert!(!allows(&policy, "192.0.2.1:80", &["example.org"]));
        assert!(!allows(&only(&["example.org:80", "10.0.0.0/8:443"]), "192.0.2.1:443", &["example.org"]));
    }

    #[test]
    fn a_star_is_every_name_below_and_not_the_name_itself() {
        let policy = only(&["*.wordpress.org:80-443"]);
        for name in ["api.wordpress.org", "A.B.WordPress.org", "a.wordpress.org."] {
            assert!(policy.may_resolve(name), "{name}");
            assert!(allows(&policy, "[2001:db8::1]:443", &[name]), "{name}");
        }
        let not = ["wordpress.org", ".wordpress.org", "notwordpress.org", "wordpress.org.test", "é.org", ""];
        for name in not {
            assert!(!policy.may_resolve(name), "{name}");
        }
        assert!(!allows(&policy, "[2001:db8::1]:444", &["api.wordpress.org"]));
    }

    #[test]
    fn subnets_match_addresses_however_they_are_written() {
        let policy = only(&["10.0.0.0/8:5432", "192.0.2.7", "[2001:db8::]/32:443"]);
        assert!(allows(&policy, "10.255.0.1:5432", &[]));
        assert!(allows(&policy, "[::ffff:10.255.0.1]:5432", &[]));
        assert!(!allows(&policy, "11.0.0.0:5432", &[]) && !allows(&policy, "10.0.0.1:5433", &[]));
        assert!(allows(&policy, "192.0.2.7:1", &[]) && !allows(&policy, "192.0.2.6:1", &[]));
        assert!(allows(&policy, "[2001:db8:ffff::1]:443", &[]));
        assert!(!allows(&policy, "[2001:db9::1]:443", &[]));
        assert!(!policy.may_resolve("example.org"), "a subnet is no name");
        assert!(allows(&only(&["0.0.0.0/0"]), "192.0.2.1:1", &[]));
        assert!(!allows(&only(&["0.0.0.0/0"]), "[2001:db8::1]:1", &[]));
        assert!(allows(&only(&["[::]/0"]), "[2001:db8::1]:1", &[]));
        assert!(!allows(&only(&["[::]/0"]), "[::ffff:192.0.2.1]:1", &[]));
    }

    #[test]
    fn what_has_no_ports_is_allowed_by_rules_without_ports() {
        assert!(allows(&only(&["192.0.2.0/24"]), "192.0.2.1:0", &[]));
        assert!(!allows(&only(&["192.0.2.0/24:1-65535"]), "192.0.2.1:0", &[]));
    }

    proptest! {
        #[test]
        fn no_name_panics(name in ".{0,40}", parent in "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}") {
            let policy = Policy::Only(vec![Rule { target: Target::Below(parent.clone()), ports: None }]);
            let below = policy.may_resolve(&name);
            prop_assert!(!below || name.trim_end_matches('.').to_ascii_lowercase().ends_with(&parent));
            let joined = format!("x{name}.{parent}");
            prop_assert!(policy.may_resolve(&joined), "{joined}");
        }
    }
}
