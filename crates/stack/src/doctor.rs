//! `doctor`: everything on a host that can stand in the way, what it costs, and the exact fix.
//!
//! First the facts are gathered ([`facts`]), some of which only an attempt can tell; then a pure function makes
//! findings of them ([`findings`]), so that every host there is can be tested on this one. Nothing is changed: what is
//! attempted is attempted in a short-lived child, in namespaces of its own.

mod attempt;
mod facts;
mod findings;

use serde::Serialize;

use crate::paths::Paths;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something will not work, or not as well.
    Warning,
    /// No stack can run.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What the user has to do without.
    pub cost: Option<String>,
    /// What to do, a command where there is one.
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), cost: None, fix: None }
    }

    fn warning(
        name: &'static str,
        found: impl Into<String>,
        cost: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let (cost, fix) = (Some(cost.into()), Some(fix.into()));
        Self { name, status: Status::Warning, found: found.into(), cost, fix }
    }

    fn error(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        let cost = Some("no stack can run".to_owned());
        Self { name, status: Status::Error, found: found.into(), cost, fix: Some(fix.into()) }
    }
}

/// Whether this user's units run without a session of his (`loginctl enable-linger`).
#[must_use]
pub fn lingers() -> bool {
    facts::lingers_here()
}

/// Looks at everything.
pub fn run(paths: &Paths) -> Vec<Check> {
    let mut facts = facts::Facts::gather(paths);
    // Once a switch is known to be off the attempt can say nothing new.
    if findings::may_attempt(&facts) {
        facts.attempt = Some(attempt::make(paths));
    }
    findings::all(&facts)
}
