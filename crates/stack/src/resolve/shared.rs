//! Services that have the network namespace of another (`network_mode: service:NAME`).

use super::{find, mounts, service_names};
use crate::diagnostic::{Checked, Fault};
use crate::file::dependencies::DependencyFile;
use crate::file::network::ModeFile;
use crate::file::service::ServiceFile;
use crate::file::{Located, StackFile};
use crate::plan::NetworkMode;

/// Finds whose namespace it is, and makes every such service wait for that one, and those with `links` for
/// theirs. Circles among them are found where those of `depends_on` are.
pub(super) fn add_dependencies(file: &mut StackFile) -> Checked<()> {
    for index in 0..file.services.len() {
        let mut needed: Vec<Located<String>> = Vec::new();
        if let Some(owner) = owner(&file.services[index], file)? {
            let service = &mut file.services[index];
            if let Some(mode) = &mut service.network.mode {
                mode.value = ModeFile::Service(owner.value.clone());
            }
            needed.push(owner);
        }
        for from in &file.services[index].volumes_from {
            let owner = mounts::owner(from, file)?;
            needed.push(Located { span: from.owner.span.clone(), value: owner.key.name.clone() });
        }
        let service = &mut file.services[index];
        needed.extend(service.network.links.iter().map(|link| link.service.clone()));
        for needed in needed {
            if !service.depends_on.iter().any(|known| known.service.value == needed.value) {
                service.depends_on.push(DependencyFile::plain(needed));
            }
        }
    }
    Ok(())
}

/// The service that `network_mode` names, if it names one.
fn owner(service: &ServiceFile, file: &StackFile) -> Checked<Option<Located<String>>> {
    let Some(mode) = &service.network.mode else { return Ok(None) };
    let found = |name: &str| Some(Located { span: mode.span.clone(), value: name.to_owned() });
    match &mode.value {
        ModeFile::Service(name) if service_names(file).any(|other| other == name) => Ok(found(name)),
        ModeFile::Service(name) => {
            let message = format!("service `{}` shares the network of `{name}`", service.key.name);
            Err(Fault::new(&mode.span, format!("{message}, which does not exist"))
                .label("no such service")
                .hint(format!("the services are: {}", service_names(file).collect::<Vec<_>>().join(", ")))
                .nearest(name, service_names(file)))
        }
        ModeFile::Container(name) => {
            let container = |other: &&ServiceFile| {
                other.network.container_name.as_ref().is_some_and(|container| container.value == *name)
            };
            let owner = file.services.iter().find(container);
            let owner = owner.or_else(|| file.services.iter().find(|other| other.key.name == *name));
            match owner {
                Some(owner) => Ok(found(&owner.key.name)),
                None => Err(Fault::new(&mode.span, format!("no container of this stack is called `{name}`"))
                    .label("another stack's namespaces belong to another user namespace")
                    .hint("share the network of a service of this stack, or publish a port there")),
            }
        }
        ModeFile::Bridge | ModeFile::None | ModeFile::Host => Ok(None),
    }
}

/// Whose namespace a service has in the end. There are no circles.
pub(super) fn network_mode(service: &ServiceFile, file: &StackFile) -> NetworkMode {
    let mut at = service;
    loop {
        let next = match at.network.mode.as_ref().map(|mode| &mode.value) {
            Some(ModeFile::Host) => return NetworkMode::Host,
            Some(ModeFile::Service(name)) => find(file, name),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None if std::ptr::eq(at, service) => return NetworkMode::Own,
            None => return NetworkMode::Service(at.key.name.clone()),
        }
    }
}

/// The service whose names and files a service has: its own, or those of its namespace's owner.
pub(super) fn named<'a>(
    service: &'a ServiceFile,
    mode: &NetworkMode,
    file: &'a StackFile,
) -> &'a ServiceFile {
    match mode {
        NetworkMode::Service(owner) => find(file, owner).unwrap_or(service),
        NetworkMode::Own | NetworkMode::Host => service,
    }
}

/// A namespace is a container's: there must be one.
pub(super) fn check_owners(file: &StackFile) -> Checked<()> {
    for service in &file.services {
        if let NetworkMode::Service(owner) = network_mode(service, file)
            && find(file, &owner).is_some_and(|owner| owner.settled.replicas == 0)
        {
            let span = service.network.mode.as_ref().map_or(&service.key.span, |mode| &mode.span);
            let name = &service.key.name;
            let message = format!("service `{name}` shares the network of `{owner}`, which has no replica");
            return Err(
                Fault::new(span, message).hint(format!("give `{owner}` one, or stop `{name}` as well"))
            );
        }
    }
    Ok(())
}
