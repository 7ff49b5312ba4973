//! Services that have a namespace of another (`network_mode`, `pid` and `ipc` with `service:NAME`).

use super::{find, mounts, service_names};
use crate::diagnostic::{Checked, Fault, Span};
use crate::file::dependencies::DependencyFile;
use crate::file::network::ModeFile;
use crate::file::service::ServiceFile;
use crate::file::sharing::Partner;
use crate::file::{Located, StackFile};
use crate::plan::{NetworkMode, Sharing};

/// A namespace that services can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shared {
    Network,
    Pid,
    Ipc,
}

impl Shared {
    const ALL: [Self; 3] = [Self::Network, Self::Pid, Self::Ipc];

    fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Pid => "PID namespace",
            Self::Ipc => "IPC namespace",
        }
    }

    /// With whom a service shares it, by the file.
    fn partner(self, service: &ServiceFile) -> Option<(&Span, &Partner)> {
        match self {
            Self::Network => match service.network.mode.as_ref() {
                Some(Located { span, value: ModeFile::Shared(partner) }) => Some((span, partner)),
                _ => None,
            },
            Self::Pid => service.sharing.pid.as_ref().map(|it| (&it.span, &it.value)),
            Self::Ipc => service.sharing.ipc.as_ref().map(|it| (&it.span, &it.value)),
        }
    }

    /// Writes down which service that is.
    fn settle(self, service: &mut ServiceFile, owner: &str) {
        let owner = Partner::Service(owner.to_owned());
        match self {
            Self::Network => {
                if let Some(mode) = &mut service.network.mode {
                    mode.value = ModeFile::Shared(owner);
                }
            }
            Self::Pid => service.sharing.pid.iter_mut().for_each(|it| it.value = owner.clone()),
            Self::Ipc => service.sharing.ipc.iter_mut().for_each(|it| it.value = owner.clone()),
        }
    }

    /// Whose namespace a service has in the end. There are no circles.
    fn owner(self, service: &ServiceFile, file: &'_ StackFile) -> Option<String> {
        let next = |at: &ServiceFile| match self.partner(at)?.1 {
            Partner::Service(name) => find(file, name),
            Partner::Container(_) => None,
        };
        std::iter::successors(next(service), |at| next(at)).last().map(|owner| owner.key.name.clone())
    }
}

/// Finds whose namespaces they are, and makes every such service wait for those, and those with `links` for
/// theirs. Circles among them are found where those of `depends_on` are.
pub(super) fn add_dependencies(file: &mut StackFile) -> Checked<()> {
    for index in 0..file.services.len() {
        let mut needed: Vec<DependencyFile> = Vec::new();
        for shared in Shared::ALL {
            let Some(owner) = named_owner(shared, &file.services[index], file)? else { continue };
            shared.settle(&mut file.services[index], &owner.value);
            // A network's namespace outlives the processes in it.
            let restart = shared != Shared::Network;
            needed.push(DependencyFile { restart, ..DependencyFile::plain(owner) });
        }
        for from in &file.services[index].volumes_from {
            let owner = mounts::owner(from, file)?;
            let owner = Located { span: from.owner.span.clone(), value: owner.key.name.clone() };
            needed.push(DependencyFile::plain(owner));
        }
        let service = &mut file.services[index];
        needed.extend(service.network.links.iter().map(|link| DependencyFile::plain(link.service.clone())));
        for needed in needed {
            let known = |known: &&mut DependencyFile| known.service.value == needed.service.value;
            match service.depends_on.iter_mut().find(known) {
                Some(known) => known.restart |= needed.restart,
                None => service.depends_on.push(needed),
            }
        }
    }
    Ok(())
}

/// The service that a key names as the owner of a namespace, if it names one.
fn named_owner(shared: Shared, service: &ServiceFile, file: &StackFile) -> Checked<Option<Located<String>>> {
    let Some((span, partner)) = shared.partner(service) else { return Ok(None) };
    let found = |name: &str| Some(Located { span: span.clone(), value: name.to_owned() });
    match partner {
        Partner::Service(name) if service_names(file).any(|other| other == name) => Ok(found(name)),
        Partner::Service(name) => {
            let message = format!("service `{}` shares the {} of `{name}`", service.key.name, shared.name());
            Err(Fault::new(span, format!("{message}, which does not exist"))
                .label("no such service")
                .hint(format!("the services are: {}", service_names(file).collect::<Vec<_>>().join(", ")))
                .nearest(name, service_names(file)))
        }
        Partner::Container(name) => {
            let container = |other: &&ServiceFile| {
                other.network.container_name.as_ref().is_some_and(|container| container.value == *name)
            };
            let owner = file.services.iter().find(container);
            let owner = owner.or_else(|| file.services.iter().find(|other| other.key.name == *name));
            let hint = match shared {
                Shared::Network => "share the network of a service of this stack, or publish a port there",
                Shared::Pid | Shared::Ipc => "share that of a service of this stack",
            };
            match owner {
                Some(owner) => Ok(found(&owner.key.name)),
                None => Err(Fault::new(span, format!("no container of this stack is called `{name}`"))
                    .label("another stack's namespaces belong to another user namespace")
                    .hint(hint)),
            }
        }
    }
}

/// Whose network namespace a service has in the end.
pub(super) fn network_mode(service: &ServiceFile, file: &StackFile) -> NetworkMode {
    let owner = Shared::Network.owner(service, file);
    let last = owner.as_deref().and_then(|owner| find(file, owner)).unwrap_or(service);
    match (last.network.mode.as_ref().map(|mode| &mode.value), owner) {
        (Some(ModeFile::Host), _) => NetworkMode::Host,
        (_, Some(owner)) => NetworkMode::Service(owner),
        (_, None) => NetworkMode::Own,
    }
}

/// Whose other namespaces it has.
pub(super) fn sharing(service: &ServiceFile, file: &StackFile) -> Sharing {
    Sharing {
        pid: Shared::Pid.owner(service, file),
        ipc: Shared::Ipc.owner(service, file),
        no_shm: service.settled.sharing.no_shm,
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

/// A namespace is a container's: there must be one, and it must not be kept back.
pub(super) fn check_owners(file: &StackFile) -> Checked<()> {
    for service in &file.services {
        for shared in Shared::ALL {
            let (Some((span, _)), Some(name)) = (shared.partner(service), shared.owner(service, file)) else {
                continue;
            };
            let Some(owner) = find(file, &name) else { continue };
            let what = format!("service `{}` shares the {} of `{name}`", service.key.name, shared.name());
            let host = matches!(owner.network.mode.as_ref().map(|mode| &mode.value), Some(ModeFile::Host));
            if owner.settled.replicas == 0 && !(shared == Shared::Network && host) {
                return Err(Fault::new(span, format!("{what}, which has no replica"))
                    .hint(format!("give `{name}` one, or stop `{}` as well", service.key.name)));
            }
            if shared == Shared::Ipc && owner.sharing.ipc_is_private {
                return Err(Fault::new(span, format!("{what}, which keeps that to itself"))
                    .hint(format!("write `ipc: shareable` at `{name}`")));
            }
        }
    }
    Ok(())
}
