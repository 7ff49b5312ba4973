//! Balancing: which replica gets a connection. Pure data and decisions.

mod pool;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub(crate) use pool::{MemberId, Pick, Pool};

/// How the connections to a service are spread over its replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Who gets the next connection.
    pub policy: Algorithm,
    /// How many other replicas are tried when one cannot be connected to, before any byte was sent.
    pub retry: u32,
}

/// Who gets the next connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest open connections.
    LeastConn,
    /// By the client's address: a client keeps its replica while that one is there.
    Source,
}

impl Algorithm {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::RoundRobin, Self::LeastConn, Self::Source];

    /// As stack files write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastConn => "least-conn",
            Self::Source => "source",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        let known = Self::ALL.into_iter().find(|algorithm| algorithm.name() == text);
        known.ok_or_else(|| UnknownAlgorithm(text.to_owned()))
    }
}

/// What was to be an [`Algorithm`] and is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no balancing called `{0}`")]
pub struct UnknownAlgorithm(pub String);

impl UnknownAlgorithm {
    /// What there is.
    #[must_use]
    pub fn hint(&self) -> String {
        let all = Algorithm::ALL.map(|algorithm| format!("`{algorithm}`"));
        format!("it is one of {}", all.join(", "))
    }
}

/// Whether a container takes connections, as the supervisor sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs, and is healthy where it has a health check.
    #[default]
    Ready,
    /// It is being started or restarted: connections wait for it, names do not lead to it unless nobody else is
    /// there.
    Starting,
    /// It runs and is unhealthy: it gets connections only while there is nobody better.
    Unhealthy,
    /// It is about to be stopped: it keeps the connections it has and gets no new ones.
    Draining,
    /// It is stopped and will not start by itself: connections to it are refused.
    Down,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_have_one_name_in_files_and_messages() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
            assert_eq!(serde_json::to_value(algorithm).unwrap(), algorithm.name());
        }
        let error = "random".parse::<Algorithm>().unwrap_err();
        assert_eq!(error.to_string(), "there is no balancing called `random`");
        assert_eq!(error.hint(), "it is one of `round-robin`, `least-conn`, `source`");
        assert!("Round-Robin".parse::<Algorithm>().is_err());
    }
}
