//! The keys of tables inside of a service.

use super::{Level, accepted, honoured, own, refused, warned};

/// `build`.
pub(crate) const BUILD: Level = Level {
    title: "`build` of a service",
    keys: &[
        honoured(
            "additional_contexts",
            "directories, git repositories, `docker-image://IMAGE`, `service:SERVICE`",
        ),
        honoured("args", ""),
        accepted("cache_from", "the store is the cache: what other builds of this user made is found in it"),
        accepted("cache_to", "the store is the cache"),
        honoured(
            "context",
            "a directory of this machine, or a git repository: `https://HOST/PATH.git#REF:DIRECTORY`",
        ),
        honoured("dockerfile", ""),
        honoured("dockerfile_inline", ""),
        honoured("entitlements", "`network.host`, `security.insecure`; others with a warning"),
        honoured("extra_hosts", "addresses; a build has no `host-gateway`"),
        honoured("isolation", "`default`; others are Windows's and refused"),
        honoured("labels", ""),
        honoured("network", "`default`, `none`, `host`"),
        honoured("no_cache", ""),
        honoured("platforms", "this machine's; an image of others cannot be built here"),
        honoured("privileged", "as `entitlements: [security.insecure]`"),
        warned("provenance", "no attestations are made"),
        honoured("pull", ""),
        warned("sbom", "no attestations are made"),
        honoured("secrets", ""),
        honoured("shm_size", ""),
        honoured("ssh", ""),
        honoured("tags", ""),
        honoured("target", ""),
        honoured("ulimits", ""),
    ],
};

/// `deploy`.
pub(crate) const DEPLOY: Level = Level {
    title: "`deploy` of a service",
    keys: &[
        honoured("endpoint_mode", ""),
        accepted("labels", "they are the service's in Swarm, and not its containers'"),
        honoured("mode", "`replicated`; `global` is one container, with a warning"),
        accepted("placement", "there is one machine"),
        honoured("replicas", ""),
        honoured("resources", ""),
        honoured("restart_policy", "where the service has no `restart`"),
        warned("rollback_config", "a replacement that fails leaves the old containers in place"),
        honoured("update_config", ""),
    ],
};

/// `deploy.resources.limits`.
pub(crate) const DEPLOY_LIMITS: Level = Level {
    title: "`deploy.resources.limits`",
    keys: &[honoured("cpus", ""), honoured("memory", ""), honoured("pids", "")],
};

/// `deploy.resources.reservations`.
pub(crate) const RESERVATIONS: Level = Level {
    title: "`deploy.resources.reservations`",
    keys: &[
        warned("cpus", "cgroup v2 reserves no processor time; `cpu_shares` is a weight"),
        warned("devices", "devices are not reserved; `devices` of the service binds some"),
        warned("generic_resources", "there is no orchestrator that would count them"),
        honoured("memory", ""),
    ],
};

/// `deploy.restart_policy`.
pub(crate) const RESTART_POLICY: Level = Level {
    title: "`deploy.restart_policy`",
    keys: &[
        honoured("condition", ""),
        honoured("delay", "the first pause; it doubles as every pause does"),
        honoured("max_attempts", "with `condition: on-failure`"),
        accepted("window", "a run of 10 s begins the count anew"),
    ],
};

/// `deploy.update_config`.
pub(crate) const UPDATE_CONFIG: Level = Level {
    title: "`deploy.update_config`",
    keys: &[
        warned("delay", "`up --rolling` goes on when the new container is healthy"),
        warned("failure_action", "`up --rolling` stops, and leaves the old containers in place"),
        warned("max_failure_ratio", "`up --rolling` stops at the first failure"),
        warned("monitor", "`up --rolling` goes on when the new container is healthy"),
        honoured(
            "order",
            "`start-first`; `stop-first` is what `up` without `--rolling` does, a warning says so",
        ),
        warned("parallelism", "`up --rolling` replaces one container at a time"),
    ],
};

/// `healthcheck`.
pub(crate) const HEALTHCHECK: Level = Level {
    title: "`healthcheck` of a service",
    keys: &[
        honoured("disable", ""),
        honoured("interval", ""),
        honoured("retries", ""),
        honoured("start_interval", ""),
        honoured("start_period", ""),
        honoured("test", "without it the image's own, as often as it is said here"),
        honoured("timeout", ""),
    ],
};

/// An entry of `depends_on`.
pub(crate) const DEPENDENCY: Level = Level {
    title: "`depends_on` of a service",
    keys: &[
        honoured("condition", ""),
        honoured("required", "`false`: neither its absence nor its failure is in the way"),
        honoured("restart", "it is started anew when a command restarts or replaces the other"),
    ],
};

/// An entry of `post_start` or `pre_stop`.
pub(crate) const HOOK: Level = Level {
    title: "`post_start` and `pre_stop` of a service",
    keys: &[
        honoured("command", ""),
        honoured("environment", ""),
        honoured("privileged", ""),
        honoured("user", ""),
        honoured("working_dir", ""),
    ],
};

/// `develop`.
pub(crate) const DEVELOP: Level = Level { title: "`develop` of a service", keys: &[honoured("watch", "")] };

/// An entry of `watch` of that.
pub(crate) const WATCH: Level = Level {
    title: "`watch` in `develop` of a service",
    keys: &[
        honoured("action", "`sync`, `rebuild`, `restart`, `sync+restart`, `sync+exec`"),
        honoured("exec", "as an entry of `post_start`, with `action: sync+exec`"),
        honoured("ignore", "with the patterns of the build context's `.dockerignore`"),
        honoured("include", ""),
        honoured("initial_sync", "with every action that synchronises"),
        honoured("path", "links to it are followed, and none below it"),
        honoured("target", ""),
    ],
};

/// `logging`.
pub(crate) const LOGGING: Level = Level {
    title: "`logging` of a service",
    keys: &[
        honoured(
            "driver",
            "`json-file`, `local`, `none`; what others would get is kept as with `local`, with a warning",
        ),
        honoured(
            "options",
            "`max-size`, `max-file`, `mode`, and `rate`, which is ours; others with a warning",
        ),
    ],
};

/// An entry of `volumes` of a service.
pub(crate) const MOUNT: Level = Level {
    title: "`volumes` of a service",
    keys: &[
        honoured("bind", ""),
        accepted("consistency", "it is for virtual machines"),
        refused(
            "image",
            "volumes of type `image` are not supported",
            "use `volume`, which takes over what the image has at that place",
        ),
        honoured("read_only", ""),
        honoured("source", ""),
        honoured("target", ""),
        honoured("tmpfs", ""),
        honoured("type", "`volume`, `bind`, `tmpfs`; `image`, `cluster` and `npipe` are refused"),
        honoured("volume", ""),
    ],
};

/// `bind` of such an entry.
pub(crate) const MOUNT_BIND: Level = Level {
    title: "`bind` of a volume of a service",
    keys: &[
        honoured("create_host_path", ""),
        warned("propagation", "no mount goes from the stack's mount namespace to the host's or back"),
        honoured("recursive", "`enabled`; `disabled` is ignored with a warning"),
        accepted("selinux", "files are not relabelled"),
    ],
};

/// `volume` of such an entry.
pub(crate) const MOUNT_VOLUME: Level = Level {
    title: "`volume` of a volume of a service",
    keys: &[accepted("labels", "volumes have no labels"), honoured("nocopy", ""), honoured("subpath", "")],
};

/// `tmpfs` of such an entry.
pub(crate) const MOUNT_TMPFS: Level =
    Level { title: "`tmpfs` of a volume of a service", keys: &[honoured("mode", ""), honoured("size", "")] };

/// An entry of `secrets` or `configs` of a service.
pub(crate) const GRANT: Level = Level {
    title: "`secrets` and `configs` of a service",
    keys: &[
        honoured("gid", ""),
        honoured("mode", ""),
        honoured("source", ""),
        honoured("target", ""),
        honoured("uid", ""),
    ],
};

/// An entry of `ports`.
pub(crate) const PORT: Level = Level {
    title: "`ports` of a service",
    keys: &[
        own("announce", "with `ftp`: the address that passive mode announces"),
        accepted("app_protocol", "nothing here depends on it"),
        honoured("host_ip", ""),
        honoured("mode", "`host` and `ingress` are the same on one machine; *not in compose* `direct`"),
        accepted("name", "nothing here depends on it"),
        own("passive", "with `ftp`: the ports of passive mode"),
        honoured("protocol", "`tcp`, `udp`; *not in compose* `ftp`; `sctp` is refused"),
        honoured("published", "see below for ports below 1024"),
        honoured("target", ""),
    ],
};

/// An entry of `networks` of a service.
pub(crate) const NETWORK_USE: Level = Level {
    title: "`networks` of a service",
    keys: &[
        honoured("aliases", ""),
        warned("driver_opts", "no option of an interface is known"),
        honoured("gw_priority", ""),
        warned("interface_name", "interfaces are `eth0`, `eth1` and so on, in the order of their priority"),
        honoured("ipv4_address", ""),
        honoured("ipv6_address", ""),
        warned("link_local_ips", "an interface has the one address that its network gives it"),
        honoured("mac_address", ""),
        honoured("priority", ""),
    ],
};

/// An entry of `env_file`.
pub(crate) const ENV_FILE: Level = Level {
    title: "`env_file` of a service",
    keys: &[
        honoured("format", "`raw`: values are taken as they are"),
        honoured("path", ""),
        honoured("required", ""),
    ],
};

/// An entry of `devices`.
pub(crate) const DEVICE: Level = Level {
    title: "`devices` of a service",
    keys: &[
        honoured("permissions", "`rwm`; less is ignored with a warning: who may open it may do both"),
        honoured("source", ""),
        honoured("target", ""),
    ],
};

/// `blkio_config`.
pub(crate) const BLOCK_IO: Level = Level {
    title: "`blkio_config` of a service",
    keys: &[
        honoured("device_read_bps", ""),
        honoured("device_read_iops", ""),
        honoured("device_write_bps", ""),
        honoured("device_write_iops", ""),
        honoured("weight", ""),
        honoured("weight_device", ""),
    ],
};

/// What is refused in a volume's driver options.
pub(crate) const DRIVER_OPTIONS: Level = Level {
    title: "`driver_opts` of a volume",
    keys: &[
        honoured("device", "the host's directory"),
        honoured("o", "`bind`, `rbind`, `ro`, `rw`; with `tmpfs` `size`, `mode`, `uid`, `gid`"),
        refused("size", "a volume has no limit of its own", "leave it out"),
        honoured(
            "type",
            "`none` with `o: bind`, and `tmpfs`; `nfs`, `cifs` and others are refused: an ordinary user cannot mount them",
        ),
    ],
};
