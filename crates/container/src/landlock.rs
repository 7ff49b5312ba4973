//! Whether this host can keep a process to its files.

pub use init::landlock::Landlock;

use crate::Error;

/// # Errors
/// Why the kernel cannot, with a hint.
pub fn available() -> Result<(), Error> {
    init::landlock::available().map_err(Error::child)
}
