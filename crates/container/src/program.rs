//! The embedded `inception-init`.

use std::io;
use std::os::fd::OwnedFd;

static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inception-init"));

/// A sealed copy of `inception-init` in memory: what runs inside a container can neither write to it nor
/// reach the runtime's own file through `/proc/PID/exe` (CVE-2019-5736). One serves any number of containers.
///
/// # Errors
/// What `memfd_create(2)` and writing report.
pub fn init() -> io::Result<OwnedFd> {
    sys::fd::sealed(c"inception-init", INIT, true)
}
