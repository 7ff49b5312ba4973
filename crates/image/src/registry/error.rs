//! What can go wrong between us and a registry.

use std::io;
use std::time::Duration;

use crate::manifest::Platform;

/// What `login` does, for messages.
pub(super) const LOG_IN: &str = "log in";

/// Something that a registry did not do, or did wrongly.
#[derive(Debug, thiserror::Error)]
#[error("registry `{registry}`{}", of(repository))]
pub struct RegistryError {
    /// As names spell it, or the address of a mirror.
    pub registry: String,
    /// The repository that it was about, if it was about one.
    pub repository: Option<String>,
    /// What.
    #[source]
    pub problem: Problem,
}

fn of(repository: &Option<String>) -> String {
    repository.as_ref().map(|repository| format!(", repository `{repository}`")).unwrap_or_default()
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// No connection, or none that can be trusted.
    #[error("it cannot be reached")]
    Unreachable(#[source] Box<ureq::Error>),
    /// It wants other credentials, or somebody else.
    #[error("{operation}: access denied{}", detail(said))]
    Denied {
        /// What was tried.
        operation: String,
        /// What it said.
        said: String,
        /// Whether we had credentials for it.
        logged_in: bool,
    },
    /// It does not have it.
    #[error("there is no {object} here{}", detail(said))]
    Unknown {
        /// `tag 1.2`, `blob sha256:...`.
        object: String,
        /// What it said.
        said: String,
    },
    /// It answered with an error.
    #[error("{operation}: it answered with status {status}{}", detail(said))]
    Status {
        /// What was tried.
        operation: String,
        /// HTTP's.
        status: u16,
        /// What it said.
        said: String,
    },
    /// It has had enough of us for now.
    #[error("{operation}: too many requests{}", after(wait))]
    TooMany {
        /// What was tried.
        operation: String,
        /// How long it wants us to wait.
        wait: Option<Duration>,
    },
    /// A connection broke, again and again.
    #[error("{operation}: the connection broke {attempts} times")]
    Broken {
        /// What was tried.
        operation: String,
        /// How often.
        attempts: u32,
        /// The last time.
        #[source]
        source: io::Error,
    },
    /// It does not send what it promised.
    #[error("{object}: {problem}")]
    Wrong {
        /// `blob sha256:...`, `manifest of tag 1.2`.
        object: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is something that we do not take.
    #[error("{problem}")]
    Refused {
        /// What, and why.
        problem: String,
    },
    /// An image for other machines.
    #[error("there is no image for {wanted}, only for {offered}")]
    OtherPlatform {
        /// Ours, or the one that was asked for.
        wanted: Platform,
        /// Those that there are.
        offered: String,
    },
    /// Another transfer failed, and this one was given up because of it.
    #[error("given up")]
    Stopped,
}

fn detail(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" ({said})") }
}

fn after(wait: &Option<Duration>) -> String {
    wait.map(|wait| format!(", it says to wait {} seconds", wait.as_secs())).unwrap_or_default()
}

/// Whether a connection was given up because nobody vouches for the other end. rustls's errors come inside of
/// others, and are no part of ureq's interface: their text is.
pub(super) fn is_distrust(cause: &ureq::Error) -> bool {
    cause.to_string().contains("invalid peer certificate")
}

impl RegistryError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let host = match &*self.registry {
            super::super::reference::DOCKER_HUB => String::new(),
            other => format!(" {other}"),
        };
        match &self.problem {
            Problem::Unreachable(cause) => Some(match **cause {
                ureq::Error::HostNotFound => {
                    "look whether the name of the registry is right, and whether there is a network"
                        .to_owned()
                }
                // Go's programs take such a certificate, TLS libraries that go by RFC 5280 do not.
                ref cause if cause.to_string().contains("CaUsedAsEndEntity") => {
                    "its certificate is that of an authority: give it one of its own (`openssl req -x509 -addext \
                     basicConstraints=critical,CA:FALSE` makes one that needs no authority)"
                        .to_owned()
                }
                ref cause if is_distrust(cause) => format!(
                    "put the certificate of its authority into \
                     ~/.config/inception-run/certs.d/{}/ca.crt, or allow plain HTTP in registries.toml",
                    self.registry
                ),
                _ => "look whether there is a network; a mirror can be named in registries.toml".to_owned(),
            }),
            Problem::Denied { operation, .. } if operation == LOG_IN => Some(
                "look at user name and password; many registries want an access token in place of the password"
                    .to_owned(),
            ),
            Problem::Denied { logged_in: false, .. } => Some(format!(
                "look whether the name is right; for a private repository, `inception-run login{host}` first"
            )),
            Problem::Denied { logged_in: true, .. } => Some(format!(
                "look whether the name is right, and whether this account may do that; \
                 `inception-run login{host}` changes the account"
            )),
            Problem::Unknown { .. } => Some("look whether name and tag are right".to_owned()),
            Problem::TooMany { .. } => Some(format!(
                "wait, log in with `inception-run login{host}`, or use a mirror (registries.toml)"
            )),
            Problem::OtherPlatform { .. } => Some("`--platform OS/ARCHITECTURE` chooses another".to_owned()),
            _ => None,
        }
    }

    /// Whether no connection could be had at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.problem, Problem::Unreachable(_))
    }
}
