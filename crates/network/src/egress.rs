//! Egress policy: where a service may connect to outside of its stack. Pure data and decisions.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

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

/// One destination that is allowed: `example.org:443`, `*.example.org`, `10.0.0.0/8:5432`, `[fd00::]/8`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Whom.
    pub target: Target,
    /// First and last port; all when there is none.
    pub ports: Option<(u16, u16)>,
}

/// Whom a rule allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This name, lower case, without a dot at the end.
    Name(String),
    /// All names below this one (`*.NAME`), and not it itself.
    Below(String),
    /// Addresses: the first of a subnet, and its prefix length.
    Subnet(IpAddr, u8),
}
