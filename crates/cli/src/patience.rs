//! `--wait-timeout`: how long a command waits until services are ready.

use std::time::{Duration, Instant};

use stack::RemoteError;
use stack::client;
use stack::control::{Health, State, Status};
use stack::stats;

use crate::listing::state_word;
use crate::output::Failure;
use crate::session::Session;

/// How long to wait; as long as it takes without a number of seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    seconds: u32,
    end: Option<Instant>,
}

impl Patience {
    /// Begins now.
    pub(crate) fn new(seconds: Option<u32>) -> Self {
        let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
        Self { seconds: seconds.unwrap_or_default(), end }
    }

    /// When it ends.
    pub(crate) fn end(&self) -> Option<Instant> {
        self.end
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some_and(|end| end <= Instant::now())
    }

    /// Says which of these services (all when empty) of a stack that runs are not ready.
    pub(crate) fn failure(&self, session: &Session, stack: &str, services: &[String]) -> Failure {
        let message = format!("not all services are ready after {} s", self.seconds);
        let mut error = RemoteError::message(message);
        // A connection of its own: on the command's the answer would come between others.
        let asked = client::connect(&session.paths, stack).and_then(|client| match client {
            Some(mut client) => stats::subjects(&mut client, services),
            None => Ok(Vec::new()),
        });
        // Who is not ready is said if it can be known; that somebody is not is said already.
        for subject in asked.unwrap_or_default() {
            if let Some(why) = lacks(&subject.status) {
                error = error.caused_by(why);
            }
        }
        error.or_hint("they go on; `inception-run ps` shows what has become of them").into()
    }
}

/// What a container lacks to be ready.
fn lacks(status: &Status) -> Option<String> {
    let container = &status.container;
    match (status.state, status.health) {
        (State::Exited, _) if status.exit_code == Some(0) => None,
        (State::Running, None | Some(Health::Healthy)) => None,
        (State::Running, Some(_)) => Some(format!("`{container}` runs, and is not healthy")),
        (state, _) => Some(format!("`{container}` is {}", state_word(state))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_never_over() {
        assert!(!Patience::new(None).is_over() && Patience::new(None).end().is_none());
        assert!(Patience::new(Some(0)).is_over() && !Patience::new(Some(600)).is_over());
    }
}
