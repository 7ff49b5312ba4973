//! How many containers every service has, and whether it can have that many.

use network::balance::Balance;
use network::plan::{Mode, Protocol, passive_slice, replica_name};

use super::{Context, service_names};
use crate::diagnostic::{Checked, Fault, FileError, Span};
use crate::file::StackFile;
use crate::file::network::ModeFile;
use crate::file::replicas::{MAX, default_balance};
use crate::file::service::ServiceFile;

/// Writes the numbers down: the option's, else the file's, else one.
pub(super) fn settle(file: &mut StackFile, context: &Context<'_>) -> Result<(), FileError> {
    for (name, number) in &context.options.scale {
        if !service_names(file).any(|known| known == name) {
            return Err(FileError::no_such_service(name, &service_names(file).collect::<Vec<_>>()));
        }
        if *number > MAX {
            return Err(FileError::Option {
                message: format!("service `{name}` cannot have {number} replicas"),
                hint: Some(format!("{MAX} at the most")),
            });
        }
    }
    for service in &mut file.services {
        let asked = context.options.scale.get(&service.key.name).copied();
        let stated = service.replicas.stated.as_ref().map(|stated| stated.value);
        service.settled.replicas = asked.or(stated).unwrap_or(1);
    }
    Ok(check(file, context)?)
}

/// How connections are spread over a service that is meant to have replicas.
pub(super) fn balance(service: &ServiceFile, context: &Context<'_>) -> Option<Balance> {
    let asked = context.options.scale.contains_key(&service.key.name);
    let balance = service.replicas.balance.as_ref().map(|balance| balance.value.clone());
    balance.or_else(|| (asked || service.replicas.stated.is_some()).then(default_balance))
}

fn check(file: &StackFile, context: &Context<'_>) -> Checked<()> {
    for service in &file.services {
        let number = service.settled.replicas;
        if number > 1 {
            check_unique(service, number)?;
        }
        check_passive(service, number)?;
        if balance(service, context).is_some() {
            check_names(service, number, file)?;
        }
    }
    Ok(())
}

/// What only one container can have.
fn check_unique(service: &ServiceFile, number: u16) -> Checked<()> {
    let keys = &service.network;
    let refuse = |span: &Span, what: &str| {
        let message = format!("service `{}` cannot have {number} replicas with {what}", service.key.name);
        let fault = Fault::new(span, message).label("only one container can have it");
        let fault = fault.hint("leave it out, or have one replica");
        Err(match &service.replicas.stated {
            Some(stated) if stated.value == number => fault.other(&stated.span, "the number of replicas"),
            _ => fault,
        })
    };
    if let Some(name) = &keys.container_name {
        return refuse(&name.span, "a `container_name`");
    }
    if let Some(mode) = keys.mode.as_ref().filter(|mode| matches!(mode.value, ModeFile::Host)) {
        return refuse(&mode.span, "the host's network");
    }
    if let Some(mac) = &keys.mac {
        return refuse(&mac.span, "a fixed `mac_address`");
    }
    for network in keys.networks.iter().flatten() {
        if let Some(address) = &network.address {
            return refuse(&address.span, "a static address");
        }
        if let Some(address) = &network.address6 {
            return refuse(&address.span, "a static address");
        }
        if let Some(mac) = &network.mac {
            return refuse(&mac.span, "a fixed `mac_address`");
        }
    }
    match service.ports.iter().find(|port| port.mode == Mode::Direct) {
        Some(port) => refuse(&port.span, "a port in direct mode"),
        None => Ok(()),
    }
}

/// Every replica needs a part of the pool of passive mode.
fn check_passive(service: &ServiceFile, number: u16) -> Checked<()> {
    for port in &service.ports {
        if let Protocol::Ftp { passive, .. } = port.protocol
            && passive_slice(passive, 1, number).is_none()
        {
            let message = format!("too few `passive` ports for {number} replicas of `{}`", service.key.name);
            return Err(Fault::new(&port.span, message)
                .hint("a replica needs a port for each data connection that is open at a time"));
        }
    }
    Ok(())
}

/// `web-2` is the name of `web`'s second replica, `web-1` another one of its first.
fn check_names(service: &ServiceFile, number: u16, file: &StackFile) -> Checked<()> {
    let name = &service.key.name;
    for other in &file.services {
        let taken = other.key.name == format!("{name}-1")
            || (2..=number).any(|number| replica_name(name, number) == other.key.name);
        if taken {
            let message = format!("service `{}` has the name of a replica of `{name}`", other.key.name);
            return Err(Fault::new(&other.key.span, message)
                .other(&service.key.span, format!("its replicas are `{name}-1`, `{name}-2`, ..."))
                .hint("rename one of the two"));
        }
    }
    Ok(())
}
