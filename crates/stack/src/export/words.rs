//! What becomes of every key of a stack's files in each export.
//!
//! A key that has no word on the other side is told where a file has it ([`super::told`]), and `docs/export.md` is
//! written from the same table. What depends on a key's value is told by the export itself.

#[cfg(test)]
mod document;

/// Which export it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Kubernetes,
    Quadlet,
}

impl Side {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "Kubernetes",
            Self::Quadlet => "Podman",
        }
    }
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// This says it.
    Said(&'static str),
    /// Nothing says it; told with the reason where a file has the key.
    Lost(&'static str),
    /// It is settled before, or means nothing there.
    Settled(&'static str),
}

/// A key, and what becomes of it.
pub(super) struct Word {
    /// From the top of the file; `*` is any name.
    pub(super) path: &'static str,
    kubernetes: Fate,
    quadlet: Fate,
}

impl Word {
    pub(super) const fn fate(&self, side: Side) -> Fate {
        match side {
            Side::Kubernetes => self.kubernetes,
            Side::Quadlet => self.quadlet,
        }
    }
}

const fn said(path: &'static str, kubernetes: &'static str, quadlet: &'static str) -> Word {
    Word { path, kubernetes: Fate::Said(kubernetes), quadlet: Fate::Said(quadlet) }
}

const fn settled(path: &'static str, about: &'static str) -> Word {
    Word { path, kubernetes: Fate::Settled(about), quadlet: Fate::Settled(about) }
}

/// Only Podman builds images, where it is asked to.
const fn built(path: &'static str, quadlet: Fate) -> Word {
    Word { path, kubernetes: Fate::Settled("the image is built here; see [Images](#images)"), quadlet }
}

const fn lost(path: &'static str, because: &'static str) -> Word {
    Word { path, kubernetes: Fate::Lost(because), quadlet: Fate::Lost(because) }
}

/// Only Podman has a word for it.
const fn podman(path: &'static str, because: &'static str, quadlet: &'static str) -> Word {
    Word { path, kubernetes: Fate::Lost(because), quadlet: Fate::Said(quadlet) }
}

/// Only Kubernetes has a word for it.
const fn cluster(path: &'static str, kubernetes: &'static str, because: &'static str) -> Word {
    Word { path, kubernetes: Fate::Said(kubernetes), quadlet: Fate::Lost(because) }
}

pub(super) fn all() -> impl Iterator<Item = &'static Word> {
    WORDS.iter()
}

const WORDS: &[Word] = &[
    settled("base", "it is settled when an image is built"),
    said("configs", "a `ConfigMap` for each service", "secrets of Podman, made by `secrets.sh`"),
    settled("include", "it is settled when the files are read"),
    settled("name", "the label `app.kubernetes.io/part-of`; what units are called"),
    said("networks", "a `NetworkPolicy` each: only pods of one network reach each other", "`.network`"),
    said("secrets", "a `Secret`", "secrets of Podman, made by `secrets.sh`"),
    settled("services", "see below"),
    said("volumes", "a `PersistentVolumeClaim` each", "`.volume`"),
    // --- a service
    said("services.*.annotations", "annotations of the pod", "`Annotation=`"),
    settled("services.*.attach", "it is about what `up` shows"),
    lost("services.*.balance", "connections are spread by the network there, at random or in turn"),
    lost("services.*.blkio_config", "block devices are not limited"),
    built(
        "services.*.build",
        Fate::Said("`.build` with `--build`; else the image is built here, see [Images](#images)"),
    ),
    said("services.*.cap_add", "`capabilities.add`", "`AddCapability=`"),
    said("services.*.cap_drop", "`capabilities.drop`", "`DropCapability=`"),
    settled("services.*.cgroup", "`private` is what there is"),
    said("services.*.command", "`args`, or `command` with an `entrypoint` that is empty", "`Exec=`"),
    said("services.*.configs", "files of the `ConfigMap`", "secrets of Podman, made by `secrets.sh`"),
    said("services.*.container_name", "another headless `Service`", "a network alias"),
    said("services.*.cpu_count", "`limits.cpu`", "`--cpus`"),
    said("services.*.cpu_period", "`limits.cpu`", "`--cpus`"),
    said("services.*.cpu_quota", "`limits.cpu`", "`--cpus`"),
    said("services.*.cpu_shares", "`requests.cpu`: 1024 are one CPU", "`--cpu-shares`"),
    said("services.*.cpus", "`limits.cpu`", "`--cpus`"),
    podman("services.*.cpuset", "the kubelet's CPU manager gives CPUs out", "`--cpuset-cpus`"),
    said(
        "services.*.depends_on",
        "`condition: service_healthy` an init container that waits for a port of the other; else a warning, since all \
         is started at once",
        "`Requires=` and `After=`: the order of the start; a warning where health or the end is waited for",
    ),
    settled("services.*.deploy", "see its keys"),
    podman("services.*.devices", "device plugins of the cluster hand devices out", "`AddDevice=`"),
    podman("services.*.dns", "the cluster's own DNS is asked", "`--dns`"),
    said("services.*.dns_opt", "`dnsConfig.options`", "`--dns-option`"),
    said("services.*.dns_search", "`dnsConfig.searches`", "`--dns-search`"),
    lost("services.*.domainname", "a host name there has no domain of its own"),
    cluster(
        "services.*.egress",
        "a `NetworkPolicy` of addresses and ports; a warning for each rule that is a name",
        "its networks are open or internal as a whole; `internal` of a network says that",
    ),
    said("services.*.entrypoint", "`command`", "`--entrypoint`"),
    settled("services.*.env_file", "its variables are in `env`, in `Environment=`"),
    said(
        "services.*.environment",
        "`env`; what is called like a password is a key of the `Secret`",
        "`Environment=`; what is called like a password is a secret, made by `secrets.sh`",
    ),
    settled("services.*.extends", "it is settled when the files are read"),
    said("services.*.external_links", "another headless `Service`", "a network alias"),
    said("services.*.extra_hosts", "`hostAliases`; a warning for `host-gateway`", "`--add-host`"),
    said("services.*.group_add", "`supplementalGroups`; a warning for names", "`--group-add`"),
    said("services.*.healthcheck", "`readinessProbe` and `startupProbe`", "`--health-cmd` and the like"),
    said("services.*.hostname", "`hostname`", "`--hostname`"),
    said("services.*.image", "`image`", "`Image=`"),
    said("services.*.init", "`shareProcessNamespace`: the pod's own process is PID 1", "`--init`"),
    lost("services.*.init_verbosity", "there is no init of ours"),
    said("services.*.ipc", "shared in a pod (`network_mode`); else a warning for `service:NAME`", "`--ipc`"),
    settled("services.*.isolation", "it is Windows's"),
    settled("services.*.label_file", "its labels are with the others"),
    said(
        "services.*.labels",
        "annotations of the pod: a label's value may be no more than a word",
        "`Label=`",
    ),
    lost("services.*.landlock", "no program there sets Landlock rules for a container"),
    said("services.*.links", "another headless `Service`", "a network alias"),
    podman("services.*.logging", "the node keeps what is written, and rotates it", "`--log-opt`"),
    podman("services.*.mac_address", "the cluster gives addresses out", "`--mac-address`"),
    said("services.*.mem_limit", "`limits.memory`", "`--memory`"),
    said("services.*.mem_reservation", "`requests.memory`", "`--memory-reservation`"),
    podman("services.*.memswap_limit", "swap is the node's business", "`--memory-swap`"),
    said(
        "services.*.network_mode",
        "`none` a `NetworkPolicy` that lets nothing through; `host` `hostNetwork`; `service:NAME` a container of the \
         same pod",
        "`Network=none`, `host`, `container:NAME`",
    ),
    said("services.*.networks", "a label of the pod for each", "`Network=`"),
    settled("services.*.oom_kill_disable", "cgroup v2 has no such setting"),
    podman("services.*.oom_score_adj", "the kubelet sets it by what a pod requests", "`--oom-score-adj`"),
    said(
        "services.*.pid",
        "`shareProcessNamespace` in a pod (`network_mode`); else a warning for `service:NAME`",
        "`--pid`",
    ),
    podman("services.*.pids_limit", "the kubelet limits processes (`podPidsLimit`)", "`--pids-limit`"),
    said("services.*.platform", "`nodeSelector`", "`--platform`"),
    said(
        "services.*.ports",
        "a `Service` of type `LoadBalancer`; where the host's address is a loopback one, `ClusterIP` with a warning; \
         with `--host-ports` `hostPort`",
        "`PublishPort=`",
    ),
    said("services.*.post_start", "`lifecycle.postStart`: one command", "`ExecStartPost=`"),
    said("services.*.pre_stop", "`lifecycle.preStop`: one command", "`ExecStop=`"),
    said("services.*.privileged", "`privileged`: of the whole machine there", "`--privileged`"),
    settled("services.*.profiles", "services of inactive profiles are not exported"),
    said(
        "services.*.pull_policy",
        "`imagePullPolicy`",
        "`--pull`; with `--build` an `.image` where it is `always`",
    ),
    settled("services.*.pull_refresh_after", "as `pull_policy: missing`"),
    said("services.*.read_only", "`readOnlyRootFilesystem`", "`ReadOnly=`"),
    cluster("services.*.replicas", "`replicas`", "a unit is one container"),
    said(
        "services.*.restart",
        "a `Deployment` always starts again: a warning for `no` and `on-failure`; a service whose end is waited for \
         is a `Job`",
        "`Restart=`",
    ),
    settled("services.*.rootfs", "refused: make an image of it with `import`"),
    cluster("services.*.scale", "`replicas`", "a unit is one container"),
    said(
        "services.*.secrets",
        "files of the `Secret`; a warning for other owners than root",
        "`--secret`, made by `secrets.sh`",
    ),
    said(
        "services.*.security_opt",
        "`allowPrivilegeEscalation`, `seccompProfile`, `procMount`; a warning for a profile of seccomp",
        "`NoNewPrivileges=`, `SeccompProfile=`, `--security-opt`",
    ),
    said("services.*.shm_size", "an `emptyDir` in memory at `/dev/shm`", "`--shm-size`"),
    said("services.*.stdin_open", "`stdin`", "`--interactive`"),
    said(
        "services.*.stop_grace_period",
        "`terminationGracePeriodSeconds`",
        "`--stop-timeout`, `TimeoutStopSec=`",
    ),
    podman("services.*.stop_signal", "a pod gets the signal that its image names", "`--stop-signal`"),
    said("services.*.sysctls", "`securityContext.sysctls`, which the kubelet must allow", "`--sysctl`"),
    said("services.*.tmpfs", "an `emptyDir` in memory; a warning for `mode`, `uid`, `gid`", "`--tmpfs`"),
    said("services.*.tty", "`tty`", "`--tty`"),
    podman("services.*.ulimits", "the container runtime of the node sets them", "`--ulimit`"),
    said("services.*.user", "`runAsUser` and `runAsGroup`; a warning for names", "`--user`"),
    settled("services.*.userns_mode", "every service is in a user namespace here"),
    settled("services.*.uts", "`private` is what there is"),
    said(
        "services.*.volumes",
        "a claim; a directory of the host a `hostPath`, with a warning; a single file of the host a file of the \
         `ConfigMap`",
        "`Volume=`",
    ),
    settled("services.*.volumes_from", "as if the volumes were written there"),
    said("services.*.working_dir", "`workingDir`", "`--workdir`"),
    // --- parts of a service; of `build` with `--build`
    built(
        "services.*.build.additional_contexts",
        Fate::Said("`--build-context`; `Requires=` for `service:NAME`"),
    ),
    built("services.*.build.args", Fate::Said("`--build-arg`")),
    built("services.*.build.cache_from", Fate::Settled("layers are found in Podman's own store")),
    built("services.*.build.cache_to", Fate::Settled("layers are kept in Podman's own store")),
    built("services.*.build.context", Fate::Said("`SetWorkingDirectory=`; a repository over SSH is refused")),
    built("services.*.build.dockerfile", Fate::Said("`File=`")),
    built("services.*.build.dockerfile_inline", Fate::Said("`File=-` and `StandardInputData=`")),
    built("services.*.build.entitlements", Fate::Said("a warning for `security.insecure`")),
    built("services.*.build.extra_hosts", Fate::Said("`--add-host`")),
    built("services.*.build.isolation", Fate::Settled("it is Windows's")),
    built("services.*.build.labels", Fate::Said("`Label=`")),
    built("services.*.build.network", Fate::Said("`Network=`")),
    built("services.*.build.no_cache", Fate::Said("`--no-cache`")),
    built("services.*.build.platforms", Fate::Settled("this machine's")),
    built("services.*.build.privileged", Fate::Said("a warning")),
    built("services.*.build.pull", Fate::Said("`--pull`")),
    built(
        "services.*.build.secrets",
        Fate::Said("`Secret=`; a warning where the value is in the stack's file or in a variable"),
    ),
    built("services.*.build.shm_size", Fate::Said("`--shm-size`")),
    built("services.*.build.ssh", Fate::Said("`--ssh`, with a warning: the agent must be there")),
    built("services.*.build.tags", Fate::Said("`--tag`")),
    built("services.*.build.target", Fate::Said("`Target=`")),
    built("services.*.build.ulimits", Fate::Said("`--ulimit`")),
    settled("services.*.deploy.endpoint_mode", "names lead to the pods, to the container themselves"),
    settled("services.*.deploy.mode", "`replicated`"),
    cluster("services.*.deploy.replicas", "`replicas`", "a unit is one container"),
    said("services.*.deploy.resources.limits.cpus", "`limits.cpu`", "`--cpus`"),
    said("services.*.deploy.resources.limits.memory", "`limits.memory`", "`--memory`"),
    podman(
        "services.*.deploy.resources.limits.pids",
        "the kubelet limits processes (`podPidsLimit`)",
        "`--pids-limit`",
    ),
    said("services.*.deploy.resources.reservations.memory", "`requests.memory`", "`--memory-reservation`"),
    said("services.*.deploy.restart_policy.condition", "as `restart`", "`Restart=`"),
    podman(
        "services.*.deploy.restart_policy.delay",
        "the kubelet waits as long as it likes",
        "`RestartSec=`",
    ),
    said("services.*.deploy.restart_policy.max_attempts", "as `restart`", "`StartLimitBurst=`"),
    cluster(
        "services.*.deploy.update_config.order",
        "`maxSurge` and `maxUnavailable`",
        "a unit is one container",
    ),
    settled("services.*.depends_on.*.condition", "see `depends_on`"),
    settled("services.*.depends_on.*.required", "see `depends_on`"),
    lost(
        "services.*.depends_on.*.restart",
        "services are replaced one by one, and know nothing of each other",
    ),
    said("services.*.healthcheck.disable", "no probes", "`--no-healthcheck`"),
    said("services.*.healthcheck.interval", "`periodSeconds`", "`--health-interval`"),
    said("services.*.healthcheck.retries", "`failureThreshold`", "`--health-retries`"),
    cluster(
        "services.*.healthcheck.start_interval",
        "`periodSeconds` of the `startupProbe`: a second at least",
        "a check has one interval",
    ),
    said(
        "services.*.healthcheck.start_period",
        "`failureThreshold` of the `startupProbe`",
        "`--health-start-period`",
    ),
    said(
        "services.*.healthcheck.test",
        "`exec`; `httpGet` and `tcpSocket` to the pod's address, with a warning",
        "`--health-cmd`; `HTTP` and `TCP` have no word there",
    ),
    said("services.*.healthcheck.timeout", "`timeoutSeconds`", "`--health-timeout`"),
    said("services.*.networks.*.aliases", "another headless `Service`", "a network alias"),
    settled("services.*.networks.*.gw_priority", "a pod has one interface; the order of `Network=`"),
    podman("services.*.networks.*.ipv4_address", "the cluster gives addresses out", "`ip=` of `Network=`"),
    podman("services.*.networks.*.ipv6_address", "the cluster gives addresses out", "`ip=` of `Network=`"),
    podman("services.*.networks.*.mac_address", "the cluster gives addresses out", "`mac=` of `Network=`"),
    settled("services.*.networks.*.priority", "a pod has one interface; the order of `Network=`"),
    said("services.*.volumes.volume.subpath", "`subPath`", "a warning: Podman 4.4 mounts volumes as a whole"),
    // --- the top level
    settled("networks.*.driver", "see `networks`"),
    podman("networks.*.driver_opts", "the cluster's network has the MTU that it has", "`--opt`"),
    settled("networks.*.enable_ipv4", "IPv4 is there"),
    podman("networks.*.enable_ipv6", "the families of the cluster are the cluster's", "`IPv6=`"),
    settled("networks.*.external", "the stack's own"),
    said("networks.*.internal", "a `NetworkPolicy` for what is on internal networks only", "`Internal=`"),
    podman("networks.*.ipam", "the cluster gives addresses out", "`Subnet=`, `Gateway=`"),
    podman("networks.*.mtu", "the cluster's network has the MTU that it has", "`Options=mtu=`"),
    settled("volumes.*.driver", "`local`"),
    settled("volumes.*.driver_opts", "a directory of the host, see `volumes` of a service"),
    said("volumes.*.external", "the claim is there already", "a volume that is there already"),
    said("volumes.*.name", "the name of the claim", "the name of the volume"),
    settled("secrets.*.content", "the value"),
    settled("secrets.*.environment", "the value that the variable has now"),
    settled("secrets.*.file", "what the file holds now"),
];
