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

/// A text that is no [`Rule`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{rule}` is not an egress rule")]
pub struct RuleError {
    /// The whole text.
    pub rule: String,
}

impl RuleError {
    /// What to write.
    #[must_use]
    pub fn hint(&self) -> String {
        "write `example.org:443`".to_owned()
    }
}

impl std::str::FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (name, port) = text.split_once(':').ok_or_else(|| RuleError { rule: text.to_owned() })?;
        let port = port.parse().map_err(|_| RuleError { rule: text.to_owned() })?;
        Ok(Self { target: Target::Name(name.to_owned()), ports: Some((port, port)) })
    }
}
