//! Typed messages between our own processes, and errors that survive the way from one to another.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sys::channel::{Channel, Message};

/// Sends `message` and descriptors.
///
/// # Errors
/// As [`Channel::send`].
pub(crate) fn send(channel: &Channel, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    channel.send(&serde_json::to_vec(message)?, fds)
}

/// Decodes what [`send`] sent.
///
/// # Errors
/// `InvalidData` for anything else.
pub(crate) fn decode<T: DeserializeOwned>(message: Message) -> io::Result<(T, Vec<OwnedFd>)> {
    Ok((serde_json::from_slice(&message.bytes)?, message.fds))
}

/// An error of another process, with all that its user would have been told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoteError {
    /// The error and its causes, outermost first; never empty.
    pub chain: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Exit status of a command that fails because of it.
    pub exit_code: i32,
}

impl RemoteError {
    /// The message of `error` and of its causes.
    pub fn new(error: &(dyn StdError + 'static), hint: Option<String>, exit_code: i32) -> Self {
        let chain = std::iter::successors(Some(error), |e| (*e).source()).map(ToString::to_string).collect();
        Self { chain, hint, exit_code }
    }

    /// An error that begins here.
    pub fn message(text: impl Into<String>) -> Self {
        Self { chain: vec![text.into()], hint: None, exit_code: 1 }
    }

    /// The same error as the cause of `text`.
    #[must_use]
    pub fn context(mut self, text: impl Into<String>) -> Self {
        self.chain.insert(0, text.into());
        self
    }

    /// The same error with `text` as its innermost cause.
    #[must_use]
    pub(crate) fn caused_by(mut self, text: impl Into<String>) -> Self {
        self.chain.push(text.into());
        self
    }

    /// The same error with a hint, unless it has one.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl From<container::Error> for RemoteError {
    fn from(error: container::Error) -> Self {
        Self::new(&error, error.hint(), error.exit_code())
    }
}

impl From<container::cgroup::Error> for RemoteError {
    fn from(error: container::cgroup::Error) -> Self {
        container::Error::from(error).into()
    }
}

impl From<network::Error> for RemoteError {
    fn from(error: network::Error) -> Self {
        Self::new(&error, error.hint(), 1)
    }
}

impl From<image::Error> for RemoteError {
    fn from(error: image::Error) -> Self {
        Self::new(&error, error.hint(), 1)
    }
}

impl From<network::plan::AllocateError> for RemoteError {
    fn from(error: network::plan::AllocateError) -> Self {
        Self::new(&error, None, 1)
    }
}

impl From<io::Error> for RemoteError {
    fn from(error: io::Error) -> Self {
        Self::new(&error, None, 1)
    }
}

/// Adds to an error what was being done.
pub(crate) trait Context<T> {
    /// `text` becomes the outermost message.
    fn context(self, text: impl FnOnce() -> String) -> Result<T, RemoteError>;
}

impl<T, E: Into<RemoteError>> Context<T> for Result<T, E> {
    fn context(self, text: impl FnOnce() -> String) -> Result<T, RemoteError> {
        self.map_err(|error| error.into().context(text()))
    }
}
