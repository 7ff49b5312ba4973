//! D-Bus.

/// Why systemd could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no bus to ask it through.
    #[error("no bus")]
    NoBus,
}

impl Error {
    pub(in super::super) fn hint(&self) -> Option<String> {
        None
    }
}
