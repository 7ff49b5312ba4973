//! Whether all that services name is in the files, without a look at the machine.

use super::{addresses, build, files, mounts, shared, source, start_order};
use crate::diagnostic::Checked;
use crate::file::{Format, StackFile};

/// Refuses a model that speaks of what it does not have.
pub(crate) fn check(file: &mut StackFile, format: Format) -> Checked<()> {
    shared::add_dependencies(file)?;
    start_order(file)?;
    for service in &file.services {
        source::check(service)?;
        for used in service.network.networks.iter().flatten() {
            addresses::check_declared(used, file, format)?;
        }
        for mount in &service.mounts {
            mounts::check_declared(mount, file, format)?;
        }
        for secret in &service.secrets {
            files::declared("secret", secret, &file.secrets, format)?;
        }
        for config in &service.configs {
            files::declared("config", config, &file.configs, format)?;
        }
        if let Some(build) = &service.build {
            build::check_declared(build, file, format)?;
        }
    }
    Ok(())
}
