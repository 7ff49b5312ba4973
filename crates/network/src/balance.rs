//! Balancing: which replica gets a connection. Pure data and decisions.

use serde::{Deserialize, Serialize};

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
