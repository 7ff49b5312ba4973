//! A pod and its containers.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::mounts::{Volumes, bytes};
use super::probe::{probes, seconds};
use super::{Writer, names};
use crate::export::{ALL_PORTS, is_password};
use crate::plan::{Condition, Dependency, NetworkMode, Probe, PullPolicy, Seccomp, Service};

impl Writer<'_> {
    /// The pod of a service; `members` are it and those that have its network.
    pub(super) fn pod(&mut self, service: &Service, members: &[&Service], restart: Option<&str>) -> Value {
        let mut volumes = Volumes::default();
        let containers: Vec<Value> =
            members.iter().map(|member| self.container(member, &mut volumes)).collect();
        let waits: Vec<Value> = members.iter().flat_map(|member| self.waits(member)).collect();
        let host = service.network_mode == NetworkMode::Host;
        self.check_sharing(members);
        let grace = members.iter().map(|member| seconds(member.stop_grace_period)).max();
        json!({
            // No program of a stack knows of a cluster. (And the token's place is in the way of /run/secrets.)
            "automountServiceAccountToken": false,
            "containers": containers,
            "initContainers": waits,
            "volumes": volumes.into_values(),
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": grace,
            "shareProcessNamespace": members.iter().any(|member| member.init || member.sharing.pid.is_some()).then_some(true),
            "hostNetwork": host.then_some(true),
            "hostname": self.told.has(&service.name, "hostname").then(|| names::label(&service.hostname)),
            "hostAliases": self.host_aliases(service),
            "dnsPolicy": host.then_some("ClusterFirstWithHostNet"),
            "dnsConfig": dns(service),
            "nodeSelector": service.platform.as_deref().and_then(node),
            "securityContext": self.pod_security(members),
        })
    }

    /// Annotations and labels of the services of a pod: what a label of Docker says is seldom one of Kubernetes.
    pub(super) fn annotations(&mut self, members: &[&Service]) -> Value {
        let mut annotations = Map::new();
        for service in members {
            for (key, all) in [("labels", &service.labels), ("annotations", &service.annotations)] {
                for (name, value) in all {
                    if is_annotation(name) {
                        annotations.insert(name.clone(), json!(value));
                    } else {
                        let message = format!(
                            "`{name}` of service `{}` cannot be the name of an annotation in Kubernetes",
                            service.name
                        );
                        self.told.service(&service.name, &[key], message);
                    }
                }
            }
        }
        if annotations.is_empty() { Value::Null } else { Value::Object(annotations) }
    }

    fn container(&mut self, service: &Service, volumes: &mut Volumes) -> Value {
        let (command, args) = match (&service.entrypoint, &service.command) {
            // To clear the image's entrypoint is to replace it.
            (Some(entrypoint), Some(command)) if entrypoint.is_empty() => (Some(command), None),
            (entrypoint, command) => (entrypoint.as_ref(), command.as_ref()),
        };
        let (ready, start) = self.probes(service);
        json!({
            "name": self.names.service(&service.name),
            "image": self.image(service),
            "imagePullPolicy": self.pull_policy(service),
            "command": command.map(|words| literal(words)),
            "args": args.map(|words| literal(words)),
            "workingDir": service.working_dir,
            "env": self.environment(service),
            "ports": self.container_ports(service),
            "volumeMounts": self.mounts(service, volumes),
            "resources": resources(service),
            "securityContext": self.container_security(service),
            "readinessProbe": ready,
            "startupProbe": start,
            "lifecycle": self.lifecycle(service),
            "tty": service.tty.then_some(true),
            "stdin": service.stdin_open.then_some(true),
        })
    }

    /// The containers of a pod share their IPC namespace, and their PID namespace if told to; those of two share nothing.
    fn check_sharing(&mut self, members: &[&Service]) {
        for member in members {
            for (key, owner) in [("pid", &member.sharing.pid), ("ipc", &member.sharing.ipc)] {
                let Some(owner) = owner else { continue };
                if !members.iter().any(|other| other.name == *owner) {
                    let message = format!(
                        "service `{}` and `{owner}` share no namespace in Kubernetes: they are in two pods, unless the one has the network of the other",
                        member.name
                    );
                    self.told.service(&member.name, &[key], message);
                }
            }
        }
    }

    fn pull_policy(&mut self, service: &Service) -> &'static str {
        match service.pull_policy {
            Some(PullPolicy::Always) => "Always",
            Some(PullPolicy::Never) => "Never",
            Some(PullPolicy::Every(_)) => {
                let message = format!(
                    "Kubernetes has no word for how often the image of service `{}` is looked for",
                    service.name
                );
                self.told.service(&service.name, &["pull_policy", "pull_refresh_after"], message);
                "Always"
            }
            // What is built here has one name for all its versions.
            Some(PullPolicy::Missing | PullPolicy::Build) | None => "IfNotPresent",
        }
    }

    /// Variables; passwords among them are keys of the `Secret`.
    fn environment(&mut self, service: &Service) -> Vec<Value> {
        let mut variables = Vec::new();
        for (name, value) in &service.environment {
            let valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if name.is_empty() || !name.chars().all(valid) || name.starts_with(|c: char| c.is_ascii_digit()) {
                let message = format!("`{name}` cannot be the name of a variable in Kubernetes");
                self.told.service(&service.name, &["environment", "env_file"], message);
            } else if is_password(name) && !value.is_empty() {
                let key = format!("{}.{name}", self.names.service(&service.name));
                variables.push(json!({
                    "name": name,
                    "valueFrom": { "secretKeyRef": { "name": self.secret_name(), "key": key } },
                }));
                self.secrets.insert(key, value.as_bytes().to_vec());
            } else {
                variables.push(json!({ "name": name, "value": escaped(value) }));
            }
        }
        variables
    }

    fn probes(&mut self, service: &Service) -> (Value, Value) {
        let Some(check) = self.stack.healthcheck(service) else { return (Value::Null, Value::Null) };
        if let Some(Probe::Tcp(port) | Probe::Http { port, .. }) = check.test {
            let message = format!(
                "the health check of service `{}` comes to the pod's address in a cluster: what listens on the loopback address only, port {port}, is not reached",
                service.name
            );
            self.told.service(&service.name, &["healthcheck.test"], message);
        }
        probes(&check)
    }

    fn lifecycle(&mut self, service: &Service) -> Value {
        let mut hook = |key: &str, hooks: &[crate::plan::Hook]| {
            let plain = |hook: &crate::plan::Hook| {
                hook.user.is_none()
                    && !hook.privileged
                    && hook.working_dir.is_none()
                    && hook.environment.is_empty()
            };
            if hooks.len() > 1 || !hooks.iter().all(plain) {
                let message = format!(
                    "Kubernetes runs one command of `{key}` of service `{}`, as the service's user and with its variables",
                    service.name
                );
                self.told.service(&service.name, &[key], message);
            }
            hooks.first().map(|hook| json!({ "exec": { "command": hook.command } }))
        };
        json!({ "postStart": hook("post_start", &service.post_start), "preStop": hook("pre_stop", &service.pre_stop) })
    }

    fn container_security(&mut self, service: &Service) -> Value {
        let confinement = &service.confinement;
        let (user, group) = self.user(service);
        let seccomp = match &confinement.seccomp {
            _ if confinement.privileged => Value::Null,
            Seccomp::Default => json!({ "type": "RuntimeDefault" }),
            Seccomp::Unconfined => json!({ "type": "Unconfined" }),
            Seccomp::Profile(path) => {
                let message = format!(
                    "the profile of seccomp of service `{}` must be a file of every node: the node's default stands there instead of {}",
                    service.name,
                    path.display()
                );
                self.told.service(&service.name, &["security_opt"], message);
                json!({ "type": "RuntimeDefault" })
            }
        };
        // Who has all capabilities, or this one, may not be told otherwise.
        let gains =
            confinement.privileged || service.cap_add.iter().any(|name| name == "SYS_ADMIN" || name == "ALL");
        json!({
            "runAsUser": user,
            "runAsGroup": group,
            "privileged": confinement.privileged.then_some(true),
            "allowPrivilegeEscalation": (!gains).then_some(confinement.new_privileges),
            "readOnlyRootFilesystem": service.read_only.then_some(true),
            "procMount": confinement.unmasked.then_some("Unmasked"),
            "seccompProfile": seccomp,
            "capabilities": { "add": self.capabilities(service), "drop": service.cap_drop },
        })
    }

    /// Podman 4.3 knows no `sysctls` of a pod: there it takes a capability to have a port below 1024.
    fn capabilities(&self, service: &Service) -> Vec<String> {
        let mut added = service.cap_add.clone();
        let binds = "NET_BIND_SERVICE".to_owned();
        if self.options.pods && !service.cap_drop.is_empty() && !added.contains(&binds) {
            added.push(binds);
        }
        added
    }

    /// Numbers; names are in the image's files, which nobody reads there.
    fn user(&mut self, service: &Service) -> (Option<u32>, Option<u32>) {
        let Some(text) = &service.user else { return (None, None) };
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let mut number = |text: &str| {
            let number = text.parse().ok();
            if number.is_none() && !text.is_empty() {
                let message = format!(
                    "Kubernetes knows users and groups by number: `{text}` of service `{}` is left to the image's USER",
                    service.name
                );
                self.told.service(&service.name, &["user"], message);
            }
            number
        };
        (number(user), number(group))
    }

    fn pod_security(&mut self, members: &[&Service]) -> Value {
        let own = members.iter().all(|member| member.network_mode != NetworkMode::Host);
        let said = members.iter().flat_map(|member| &member.sysctls);
        // Every port is everybody's, as in a stack; the kubelet takes this one to be safe.
        let usual = own.then_some(ALL_PORTS).into_iter();
        let sysctls: BTreeMap<&str, &str> =
            usual.chain(said.map(|(name, value)| (name.as_str(), value.as_str()))).collect();
        let sysctls: Vec<Value> =
            sysctls.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        let mut groups: Vec<u32> = Vec::new();
        for member in members {
            for name in &member.group_add {
                match name.parse() {
                    Ok(group) => groups.push(group),
                    Err(_) => {
                        let message = format!(
                            "Kubernetes knows groups by number: `{name}` of service `{}` is left out",
                            member.name
                        );
                        self.told.service(&member.name, &["group_add"], message);
                    }
                }
            }
        }
        json!({ "sysctls": sysctls, "supplementalGroups": groups })
    }

    fn host_aliases(&mut self, service: &Service) -> Vec<Value> {
        let stack = self.stack;
        let file = stack.file.services.iter().find(|file| file.key.name == service.name);
        let hosts = file.into_iter().flat_map(|file| &file.network.extra_hosts);
        let mut aliases = Vec::new();
        for (index, host) in hosts.enumerate() {
            match host.address {
                Some(address) => aliases.push(json!({ "ip": address.to_string(), "hostnames": [host.name] })),
                None => {
                    let message = format!(
                        "`{}` of service `{}` is this machine's own address, which a cluster does not know",
                        host.name, service.name
                    );
                    self.told.item(&service.name, "extra_hosts", index, message);
                }
            }
        }
        aliases
    }

    /// Containers that wait, before a service starts, until a port of what it depends on is open: a name leads to
    /// pods that are ready.
    fn waits(&mut self, service: &Service) -> Vec<Value> {
        service.depends_on.iter().filter_map(|dependency| self.wait(service, dependency)).collect()
    }

    fn wait(&mut self, service: &Service, dependency: &Dependency) -> Option<Value> {
        let other = self.stack.service(&dependency.service)?;
        let reason = match (dependency.condition, &self.options.wait_image) {
            (Condition::Started, _) => "all is started at once".to_owned(),
            (Condition::Completed, _) => "a pod cannot wait for the end of a Job".to_owned(),
            (Condition::Healthy, None) => "all is started at once".to_owned(),
            (Condition::Healthy, Some(image)) => match self.port(service, other) {
                Ok(port) => return Some(self.wait_for(other, port, image)),
                Err(reason) => reason,
            },
        };
        let (name, other) = (&service.name, &other.name);
        let message = format!(
            "service `{name}` does not wait for `{other}` in a cluster: {reason}; it must bear that `{other}` is not there yet, or end, and is started again"
        );
        let keys = [format!("depends_on.{other}"), "depends_on".to_owned()];
        self.told.service(name, &[&keys[0], &keys[1]], message);
        None
    }

    /// A port of `other` that `service` can reach.
    fn port(&self, service: &Service, other: &Service) -> Result<u16, String> {
        let own = self.stack.networks(&service.name);
        if !self.stack.networks(&other.name).iter().any(|network| own.contains(network)) {
            return Err(format!("it is on no network with `{}`", other.name));
        }
        let checked = match self.stack.healthcheck(other).and_then(|check| check.test) {
            Some(Probe::Tcp(port)) => Some(port),
            _ => None,
        };
        let published = other.ports.iter().find(|port| !port.is_udp()).map(|port| port.container_port);
        let exposed = self.stack.exposed(other).into_iter().next();
        checked.or(exposed).or(published).ok_or_else(|| format!("no port of `{}` is known", other.name))
    }

    fn wait_for(&self, other: &Service, port: u16, image: &str) -> Value {
        let other = self.names.service(&other.name);
        // Not `-z`, which not every busybox has.
        let script = format!("until nc -w 2 {other} {port} -e true; do sleep 1; done");
        json!({
            "name": names::label(&format!("wait-for-{other}")),
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
            "resources": { "limits": { "memory": "32Mi", "cpu": "100m" } },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "runAsUser": 65534,
                "capabilities": { "drop": ["ALL"] },
                "seccompProfile": { "type": "RuntimeDefault" },
            },
        })
    }
}

/// What a manifest would replace by a variable is written so that it is not.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        out.push(c);
        if c == '$' && matches!(characters.peek(), Some('$' | '(')) {
            out.push('$');
        }
    }
    out
}

fn literal(words: &[String]) -> Vec<String> {
    words.iter().map(|word| escaped(word)).collect()
}

/// A word of 63 characters, after the name of a domain if there is a `/`.
fn is_annotation(name: &str) -> bool {
    let (domain, word) = name.split_once('/').map_or(("a", name), |(domain, word)| (domain, word));
    let ends = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let has = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    let domain = ends(domain) && domain.len() <= 253 && has(domain, "-.") && domain == domain.to_lowercase();
    domain && ends(word) && word.len() <= 63 && has(word, "-._")
}

/// `linux/arm64` names the nodes of an architecture.
fn node(platform: &str) -> Option<Value> {
    let architecture = platform.split('/').nth(1)?;
    Some(json!({ "kubernetes.io/os": "linux", "kubernetes.io/arch": architecture }))
}

fn dns(service: &Service) -> Value {
    let option = |option: &String| match option.split_once(':') {
        Some((name, value)) => json!({ "name": name, "value": value }),
        None => json!({ "name": option }),
    };
    let searches: Vec<&String> = service.dns_search.iter().filter(|domain| *domain != ".").collect();
    json!({ "searches": searches, "options": service.dns_opt.iter().map(option).collect::<Vec<_>>() })
}

fn resources(service: &Service) -> Value {
    let limits = &service.limits;
    // 1024 shares are what one CPU is to Kubernetes.
    let shares = limits.cpu_shares.map(|shares| millis(shares as f64 / 1024.0));
    json!({
        "limits": { "memory": limits.memory.map(bytes), "cpu": limits.cpus.map(millis) },
        "requests": { "memory": limits.memory_reservation.map(bytes), "cpu": shares },
    })
}

/// `1`, or `500m`; more than nothing.
fn millis(cpus: f64) -> String {
    let millis = (cpus * 1000.0).round().max(1.0) as u64;
    match millis % 1000 {
        0 => (millis / 1000).to_string(),
        _ => format!("{millis}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_replaced_in_a_text() {
        for (text, expected) in
            [("$HOME", "$HOME"), ("$(A)", "$$(A)"), ("a$$b", "a$$$b"), ("$$(A)", "$$$$(A)"), ("5$", "5$")]
        {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn cpus_are_whole_or_thousandths() {
        for (cpus, text) in [(1.0, "1"), (0.5, "500m"), (2.25, "2250m"), (0.0001, "1m")] {
            assert_eq!(millis(cpus), text);
        }
    }
}
