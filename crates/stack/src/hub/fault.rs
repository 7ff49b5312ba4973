//! Faults on the network of a container, as the kernel makes them.

use network::link::Namespaces;

use crate::fault::Fault;
use crate::remote::RemoteError;

/// Makes `fault` wrong with a container's network, and nothing else.
pub(super) fn put(_network: &mut Namespaces, _container: &str, fault: &Fault) -> Result<(), RemoteError> {
    match fault.is_none() {
        true => Ok(()),
        false => Err(RemoteError::message("faults on the network are not there yet")),
    }
}
