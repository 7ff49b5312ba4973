//! The keys of the top level.

#[cfg(test)]
use super::SERVICE;
#[cfg(test)]
use super::parts::*;
use super::{Level, accepted, honoured, own, warned};

/// The file.
pub(crate) const FILE: Level = Level {
    title: "The file",
    keys: &[
        own("base", "base distributions in the order of preference"),
        honoured("configs", ""),
        honoured("include", ""),
        warned("models", "there is no runner of models here"),
        honoured("name", ""),
        honoured("networks", ""),
        honoured("secrets", ""),
        honoured("services", ""),
        accepted("version", "it is obsolete and means nothing"),
        honoured("volumes", ""),
    ],
};

/// A network of the top level.
pub(crate) const NETWORK: Level = Level {
    title: "Networks",
    keys: &[
        accepted("attachable", "only Swarm has networks that are not"),
        honoured(
            "driver",
            "`bridge` and `default`; `overlay` is a bridge, with a warning; others are refused",
        ),
        honoured("driver_opts", "`com.docker.network.driver.mtu`; others with a warning"),
        honoured("enable_ipv4", "`true`; IPv4 cannot be switched off"),
        honoured("enable_ipv6", ""),
        honoured(
            "external",
            "the stack makes one of its own, with a warning: another stack's network cannot be joined",
        ),
        honoured("internal", ""),
        honoured("ipam", ""),
        accepted("labels", "networks have no labels"),
        own("mtu", "not in a compose file, which has `driver_opts`"),
        accepted("name", "a network is the stack's own, and no other stack sees its name"),
    ],
};

/// `ipam` of a network.
pub(crate) const IPAM: Level = Level {
    title: "`ipam` of a network",
    keys: &[
        honoured("config", ""),
        honoured("driver", "`default`; others with a warning"),
        warned("options", "there is no driver that would take them"),
    ],
};

/// An entry of `ipam.config`.
pub(crate) const IPAM_CONFIG: Level = Level {
    title: "`ipam.config` of a network",
    keys: &[
        warned(
            "aux_addresses",
            "an address that must stay free is one that no service is given with `ipv4_address`",
        ),
        honoured("gateway", ""),
        warned("ip_range", "addresses are given from the beginning of the subnet"),
        honoured("subnet", ""),
    ],
};

/// A volume of the top level.
pub(crate) const VOLUME: Level = Level {
    title: "Volumes",
    keys: &[
        honoured("driver", "`local`; others are refused"),
        honoured("driver_opts", ""),
        honoured(
            "external",
            "shared by all stacks that name it; made at its first use, and `down -v` leaves it alone",
        ),
        accepted("labels", "volumes have no labels"),
        honoured("name", "shared by all stacks that name it"),
    ],
};

/// A secret or configuration of the top level.
pub(crate) const SECRET: Level = Level {
    title: "Secrets and configs",
    keys: &[
        honoured("content", "of secrets too, which compose does not have"),
        accepted("driver", "only Swarm has drivers of secrets"),
        accepted("driver_opts", "only Swarm has drivers of secrets"),
        honoured("environment", ""),
        honoured(
            "external",
            "only `false`: there is no store of secrets outside of the file, as with Docker without Swarm",
        ),
        honoured("file", ""),
        accepted("labels", "secrets have no labels"),
        accepted("name", "a secret is the stack's own"),
        accepted("template_driver", "only Swarm has drivers of secrets"),
    ],
};

/// All tables, in the order of the documentation.
#[cfg(test)]
pub(crate) const LEVELS: &[&Level] = &[
    &FILE,
    &SERVICE,
    &BUILD,
    &DEPENDENCY,
    &HEALTHCHECK,
    &ENV_FILE,
    &MOUNT,
    &MOUNT_BIND,
    &MOUNT_VOLUME,
    &MOUNT_TMPFS,
    &GRANT,
    &PORT,
    &NETWORK_USE,
    &DEVICE,
    &LOGGING,
    &HOOK,
    &DEVELOP,
    &WATCH,
    &BLOCK_IO,
    &DEPLOY,
    &DEPLOY_LIMITS,
    &RESERVATIONS,
    &RESTART_POLICY,
    &UPDATE_CONFIG,
    &NETWORK,
    &IPAM,
    &IPAM_CONFIG,
    &VOLUME,
    &DRIVER_OPTIONS,
    &SECRET,
];
