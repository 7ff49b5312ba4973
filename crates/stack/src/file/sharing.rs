//! Namespaces that services share: `network_mode`, `pid` and `ipc` with `service:NAME`.

use std::fmt;

use super::Located;
use super::service::ServiceFile;
use crate::diagnostic::{Checked, Fault, Span};

/// Who else has a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Partner {
    Service(String),
    /// Becomes a service when the names are looked up.
    Container(String),
}

impl Partner {
    /// Reads `service:NAME` or `container:NAME`.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty())?;
        match kind {
            "service" => Some(Self::Service(name.to_owned())),
            "container" => Some(Self::Container(name.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Partner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service:{name}"),
            Self::Container(name) => write!(f, "container:{name}"),
        }
    }
}

/// `pid` and `ipc`.
#[derive(Debug, Default)]
pub(crate) struct SharingFile {
    pub(crate) pid: Option<Located<Partner>>,
    pub(crate) ipc: Option<Located<Partner>>,
    /// It says of its own IPC namespace that nobody else is to have it.
    pub(crate) ipc_is_private: bool,
    /// Where it says how large its `/dev/shm` is.
    pub(crate) shm_size: Option<Span>,
}

/// What of a service belongs to the owner of its IPC namespace.
pub(super) fn check(service: &ServiceFile, warnings: &mut Vec<(Span, String)>) -> Checked<()> {
    let Some(ipc) = &service.sharing.ipc else { return Ok(()) };
    let (name, partner) = (&service.key.name, &ipc.value);
    let of_ipc = |name: &&String| {
        ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|of| name.starts_with(of))
    };
    if let Some(sysctl) = service.settled.sysctls.keys().find(of_ipc) {
        let message = format!("`{sysctl}` of service `{name}` cannot be set with `ipc: {partner}`");
        return Err(Fault::new(&ipc.span, message).hint("write it at the service whose IPC namespace it is"));
    }
    if let Some(span) = &service.sharing.shm_size {
        let message = format!("`shm_size` of service `{name}` is ignored with `ipc: {partner}`");
        warnings.push((span.clone(), message));
    }
    Ok(())
}
