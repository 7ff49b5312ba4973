//! Manifests for Kubernetes.
//!
//! Every service becomes a `Deployment` (a `Job` where another waits for its end) and a headless `Service` under its
//! own name, so that each reaches every port of the others, as in a stack. Who may reach whom is said by
//! `NetworkPolicy`s. Named volumes are claims: replicas share one, as they do here, and so nothing is a `StatefulSet`.

mod mounts;
mod names;
mod network;
mod pod;
mod probe;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::told::Told;
use super::words::Side;
use super::{Export, ExportedFile, Stack, yaml};
use crate::diagnostic::{Fault, FileError};
use crate::plan::{Condition, NetworkMode, RestartPolicy, Scope, Service, Source};
use names::Names;

/// How manifests are written.
#[derive(Debug, Clone)]
pub struct Options {
    /// In front of the names of images that are built here: `registry.example.org/team`.
    pub registry: Option<String>,
    /// What each claim asks for: `1Gi`.
    pub volume_size: String,
    /// The class of storage, if not the cluster's default.
    pub storage_class: Option<String>,
    /// Published ports are ports of the node, as on this machine, and no `Service`s.
    pub host_ports: bool,
    /// A `Pod` for each service: Podman finds pods by their names, and knows neither `Service`s nor `Job`s.
    pub pods: bool,
    /// Image with `sh` and `nc` in which a pod waits for others; without it no pod waits.
    pub wait_image: Option<String>,
    /// With the `Secret` and its values.
    pub secrets: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            registry: None,
            volume_size: "1Gi".to_owned(),
            storage_class: None,
            host_ports: false,
            pods: false,
            wait_image: Some("docker.io/library/busybox:1".to_owned()),
            secrets: true,
        }
    }
}

/// What is known while the objects are made.
struct Writer<'a> {
    stack: &'a Stack,
    options: &'a Options,
    names: Names,
    told: Told<'a>,
    /// Values of the `Secret`, by key.
    secrets: BTreeMap<String, Vec<u8>>,
    /// Volumes of which it is told that they begin empty.
    filled: BTreeSet<String>,
}

/// Writes the manifests of a stack.
///
/// # Errors
/// What cannot be said at all, and with `--strict` what there is to warn of.
pub fn kubernetes(stack: &Stack, options: &Options) -> Result<Export, FileError> {
    let told = Told::new(&stack.root, Side::Kubernetes);
    let names = Names::of(stack, &told)?;
    let mut writer =
        Writer { stack, options, names, told, secrets: BTreeMap::new(), filled: BTreeSet::new() };
    writer.refuse_what_has_no_image()?;
    let mut services = Vec::new();
    for service in stack.plan.services.iter().filter(|service| owner(service).is_none()) {
        let objects = writer.service(service);
        services.push((writer.names.service(&service.name).to_owned(), objects));
    }
    let claims = writer.claims();
    let policies = if options.pods {
        writer.tell_of_networks();
        Vec::new()
    } else {
        writer.policies()
    };
    let secret = writer.secret();
    writer.tell_of_names_and_images();

    let mut export = Export::default();
    let mut add = |name: &str, objects: &[Value], private: bool| {
        if !objects.is_empty() {
            export.files.push(ExportedFile {
                name: format!("{name}.yaml"),
                text: documents(objects),
                private,
            });
        }
    };
    add("secrets", &secret, true);
    add("volumes", &claims, false);
    for (name, objects) in &services {
        add(&format!("service-{name}"), objects, false);
    }
    add("networks", &policies, false);
    export.warnings = writer.told.settle(stack.strict)?;
    export.notes = notes(stack, options);
    Ok(export)
}

fn documents(objects: &[Value]) -> String {
    let documents: Vec<String> = objects.iter().map(yaml::document).collect();
    documents.join("---\n")
}

fn notes(stack: &Stack, options: &Options) -> Vec<String> {
    let mut notes = Vec::new();
    if options.pods {
        let built = stack.plan.services.iter().filter(|service| matches!(service.source, Source::Build(_)));
        let images: Vec<String> = built.map(crate::spec::image_name).collect();
        if !images.is_empty() {
            notes.push(format!("images for Podman: inception-run save {} | podman load", images.join(" ")));
        }
    }
    let unknown = stack.unknown_images();
    if !unknown.is_empty() {
        notes.push(format!(
            "what these images say about ports and health is not known, since they are not in the store: {}",
            unknown.join(", ")
        ));
    }
    if !options.secrets && stack.plan.services.iter().any(|service| !stack.secrets(service).is_empty()) {
        let name = names::label(&format!("{}-secrets", stack.plan.name));
        notes.push(format!("the cluster must have a Secret `{name}` before the pods start"));
    }
    notes
}

/// The service whose pod a service is in, if not its own.
fn owner(service: &Service) -> Option<&str> {
    match &service.network_mode {
        NetworkMode::Service(owner) => Some(owner),
        NetworkMode::Own | NetworkMode::Host => None,
    }
}

impl Writer<'_> {
    /// An object with the labels that all of the stack have.
    fn object(&self, api: &str, kind: &str, name: &str, content: Value) -> Value {
        let mut object = json!({
            "apiVersion": api,
            "kind": kind,
            "metadata": { "name": name, "labels": self.stack_label() },
        });
        if let (Value::Object(object), Value::Object(content)) = (&mut object, content) {
            object.extend(content);
        }
        object
    }

    fn stack_label(&self) -> Value {
        json!({ "app.kubernetes.io/part-of": self.stack.plan.name })
    }

    /// What selects the pods of a service.
    fn selector(&self, service: &str) -> Value {
        json!({
            "app.kubernetes.io/name": self.names.service(service),
            "app.kubernetes.io/part-of": self.stack.plan.name,
        })
    }

    /// All objects of one service, and of those that are in its pod.
    fn service(&mut self, service: &Service) -> Vec<Value> {
        let stack = self.stack;
        let inside = |other: &&Service| owner(other) == Some(&service.name);
        let members: Vec<&Service> =
            std::iter::once(service).chain(stack.plan.services.iter().filter(inside)).collect();
        let mut objects = self.config_maps(&members);
        let names = self.names_of(service);
        let published = self.published(service);
        if !self.options.pods {
            objects.extend(names.into_iter().chain(published));
        }
        objects.push(self.workload(service, &members));
        objects
    }

    fn workload(&mut self, service: &Service, members: &[&Service]) -> Value {
        let job = self.is_awaited(service);
        let name = self.names.service(&service.name).to_owned();
        let labels = self.pod_labels(service);
        let annotations = self.annotations(members);
        let restart = self.restart(service, job);
        let spec = self.pod(service, members, restart);
        if self.options.pods {
            let mut pod = self.object("v1", "Pod", &name, json!({ "spec": spec }));
            pod["metadata"]["labels"] = labels;
            pod["metadata"]["annotations"] = annotations;
            return pod;
        }
        let template = json!({ "metadata": { "labels": labels, "annotations": annotations }, "spec": spec });
        if job {
            let limit = match service.restart {
                RestartPolicy::OnFailure(limit) => limit,
                _ => Some(0),
            };
            let content = json!({ "spec": { "backoffLimit": limit, "template": template } });
            return self.object("batch/v1", "Job", &name, content);
        }
        self.tell_of_restarts(members);
        let content = json!({ "spec": {
            "replicas": service.replicas,
            "selector": { "matchLabels": self.selector(&service.name) },
            "strategy": self.strategy(members),
            "template": template,
        } });
        self.object("apps/v1", "Deployment", &name, content)
    }

    /// When a pod starts its containers again; what a `Deployment` makes knows one answer only.
    fn restart(&self, service: &Service, job: bool) -> Option<&'static str> {
        match service.restart {
            _ if !job && !self.options.pods => None,
            RestartPolicy::No => Some("Never"),
            RestartPolicy::OnFailure(_) => Some("OnFailure"),
            RestartPolicy::Always | RestartPolicy::UnlessStopped => {
                Some(if job { "Never" } else { "Always" })
            }
        }
    }

    /// Whether another service waits for its end, so that it must have one.
    fn is_awaited(&self, service: &Service) -> bool {
        let dependencies = self.stack.plan.services.iter().flat_map(|other| &other.depends_on);
        let awaits =
            |d: &&crate::plan::Dependency| d.service == service.name && d.condition == Condition::Completed;
        dependencies.into_iter().any(|dependency| awaits(&dependency))
    }

    /// Two pods cannot have one port of a node, and two of some programs not one volume.
    fn strategy(&self, members: &[&Service]) -> Value {
        let alone = |service: &&Service| {
            let ports = self.options.host_ports && !service.ports.is_empty();
            ports || service.network_mode == NetworkMode::Host || mounts::has_claim(service)
        };
        let updates = |service: &&Service| self.told.has(&service.name, "deploy.update_config.order");
        match members {
            _ if members.iter().any(alone) => json!({ "type": "Recreate" }),
            _ if members.iter().any(updates) => {
                json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } })
            }
            _ => Value::Null,
        }
    }

    fn tell_of_restarts(&mut self, members: &[&Service]) {
        for service in members {
            let word = match service.restart {
                RestartPolicy::No => "no",
                RestartPolicy::OnFailure(_) => "on-failure",
                RestartPolicy::Always | RestartPolicy::UnlessStopped => continue,
            };
            let keys = ["restart", "deploy.restart_policy.condition"];
            // Who says nothing about it has nothing against it.
            if keys.iter().any(|key| self.told.has(&service.name, key)) {
                let name = &service.name;
                let message = format!(
                    "Kubernetes has no word for `restart: {word}` of service `{name}`: a Deployment always starts it again"
                );
                self.told.service(name, &keys, message);
            }
        }
    }

    /// Claims for the named volumes.
    fn claims(&self) -> Vec<Value> {
        let mut volumes = BTreeMap::new();
        for service in &self.stack.plan.services {
            for (name, scope) in mounts::volumes_of(service) {
                let users: &mut (Scope, BTreeSet<&str>) =
                    volumes.entry(name).or_insert((scope, BTreeSet::new()));
                users.1.insert(owner(service).unwrap_or(&service.name));
            }
        }
        let claim = |(name, (_, users)): (&str, (Scope, BTreeSet<&str>))| {
            let replicas = users.iter().filter_map(|user| self.stack.service(user)).map(|user| user.replicas);
            let mode = if replicas.sum::<u16>() > 1 { "ReadWriteMany" } else { "ReadWriteOnce" };
            let content = json!({ "spec": {
                "accessModes": [mode],
                "resources": { "requests": { "storage": self.options.volume_size } },
                "storageClassName": self.options.storage_class,
            } });
            self.object("v1", "PersistentVolumeClaim", self.names.claim(name), content)
        };
        volumes.into_iter().filter(|(_, (scope, _))| *scope != Scope::External).map(claim).collect()
    }

    /// The values of all secrets, if they are wanted.
    fn secret(&self) -> Vec<Value> {
        use base64::Engine;
        if !self.options.secrets || self.secrets.is_empty() {
            return Vec::new();
        }
        let encoded = |value: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(value);
        let data: BTreeMap<&String, String> =
            self.secrets.iter().map(|(key, value)| (key, encoded(value))).collect();
        vec![self.object("v1", "Secret", &self.secret_name(), json!({ "type": "Opaque", "data": data }))]
    }

    fn secret_name(&self) -> String {
        names::label(&format!("{}-secrets", self.stack.plan.name))
    }

    /// Under which name the cluster finds a service's image.
    fn image(&self, service: &Service) -> String {
        match (&service.source, &self.options.registry) {
            (Source::Build(build), Some(registry)) if !names_registry(&build.image) => {
                format!("{}/{}", registry.trim_end_matches('/'), build.image)
            }
            (Source::Build(build), _) => build.image.clone(),
            (Source::Image(image), _) => image.clone(),
            (Source::Rootfs(path), _) => path.display().to_string(),
        }
    }

    fn refuse_what_has_no_image(&self) -> Result<(), FileError> {
        for service in &self.stack.plan.services {
            if matches!(service.source, Source::Rootfs(_)) {
                let place = self.told.place("services", &service.name);
                let message = format!("service `{}` has a root file system and no image", service.name);
                let hint = "make an image of it with `inception-run import`, and name that with `image`";
                return Err(Fault::new(&place, message).hint(hint).into());
            }
        }
        Ok(())
    }

    /// Podman has one network for all pods, and so keeps none apart.
    fn tell_of_networks(&mut self) {
        let stack = self.stack;
        for service in &stack.plan.services {
            if service.replicas != 1 {
                let message =
                    format!("service `{}` is one pod for Podman, and not {}", service.name, service.replicas);
                self.told.service(&service.name, &["replicas", "scale", "deploy.replicas"], message);
            }
        }
        if let [first, _, ..] = stack.plan.network.networks.as_slice() {
            let message = "`podman kube play` puts all pods on one network: whoever is on none with another reaches it all the same, and everybody reaches the world";
            self.told.top("networks", &first.name, message);
        }
    }

    fn tell_of_names_and_images(&mut self) {
        let stack = self.stack;
        for service in &stack.plan.services {
            let name = &service.name;
            let here = self.names.service(name).to_owned();
            if here != *name {
                let message = format!(
                    "service `{name}` is called `{here}` in the cluster, where `{name}` is no name: who asks for it by its old name does not find it"
                );
                self.told.top("services", name, message);
            }
            let built = matches!(service.source, Source::Build(_)) && !self.options.pods;
            if built && !names_registry(&self.image(service)) {
                let message = format!(
                    "the image `{}` names no registry, and a cluster finds it nowhere: name one with `image`, or with `--registry`",
                    self.image(service)
                );
                self.told.service(name, &["image", "build"], message);
            }
        }
    }
}

/// Whether the first part of an image's name is a host: it has a dot or a port, or is `localhost`.
fn names_registry(image: &str) -> bool {
    image.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
}
