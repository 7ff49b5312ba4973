//! What a pod mounts: claims, memory, files of the `Secret` and of `ConfigMap`s, directories of the node.

use std::collections::BTreeMap;

use base64::Engine;
use serde_json::{Map, Value, json};

use super::{Writer, names};
use crate::plan::{Mount, MountKind, Scope, SecretFile, Service, Tmpfs};

/// Volumes of a pod, by name, and what each container mounts.
#[derive(Default)]
pub(super) struct Volumes(BTreeMap<String, Value>);

impl Volumes {
    fn add(&mut self, name: &str, source: &str, value: Value) {
        let mut volume = Map::new();
        volume.insert("name".to_owned(), json!(name));
        volume.insert(source.to_owned(), value);
        self.0.insert(name.to_owned(), Value::Object(volume));
    }

    pub(super) fn into_values(self) -> Vec<Value> {
        self.0.into_values().collect()
    }
}

/// The named volumes that a service mounts.
pub(super) fn volumes_of(service: &Service) -> impl Iterator<Item = (&str, Scope)> {
    service.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Volume { name, scope, .. } => Some((name.as_str(), *scope)),
        _ => None,
    })
}

pub(super) fn has_claim(service: &Service) -> bool {
    volumes_of(service).next().is_some()
}

/// Where Docker and this program put secrets.
const SECRETS: &str = "/run/secrets/";

/// The shared memory that a container has anyway.
const USUAL_SHM: u64 = 64 << 20;

impl Writer<'_> {
    /// What a service mounts; its volumes are added to those of the pod.
    pub(super) fn mounts(&mut self, service: &Service, volumes: &mut Volumes) -> Vec<Value> {
        let mut mounts: Vec<Value> = service
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| self.mount(service, index, mount, volumes))
            .collect();
        if service.shm_size != USUAL_SHM {
            let name = self.own(service, "shm");
            volumes.add(&name, "emptyDir", memory(Some(service.shm_size)));
            mounts.push(json!({ "name": name, "mountPath": "/dev/shm" }));
        }
        mounts.extend(self.secret_mounts(service, volumes));
        mounts.extend(self.config_mounts(service, volumes));
        mounts
    }

    /// A name that no other container of the pod has.
    fn own(&self, service: &Service, what: &str) -> String {
        names::label(&format!("{}-{what}", self.names.service(&service.name)))
    }

    fn mount(&mut self, service: &Service, index: usize, mount: &Mount, volumes: &mut Volumes) -> Value {
        let read_only = mount.read_only.then_some(true);
        match &mount.kind {
            MountKind::Volume { name, nocopy, subpath, .. } => {
                let claim = self.names.claim(name).to_owned();
                let volume = names::label(&format!("volume-{claim}"));
                volumes.add(&volume, "persistentVolumeClaim", json!({ "claimName": claim }));
                // Once for each volume; and Podman does copy it.
                let told = !self.filled.insert(name.clone());
                if !nocopy && !told && !self.options.pods {
                    let message = format!(
                        "volume `{name}` begins empty in a cluster: what the image has at {} is not copied there",
                        mount.target
                    );
                    self.told.service(&service.name, &["volumes"], message);
                }
                json!({ "name": volume, "mountPath": mount.target, "readOnly": read_only, "subPath": subpath })
            }
            MountKind::Tmpfs(tmpfs) => {
                let name = self.own(service, &format!("tmpfs-{index}"));
                volumes.add(&name, "emptyDir", memory(tmpfs.size));
                self.tell_of_owner(service, mount, tmpfs);
                json!({ "name": name, "mountPath": mount.target, "readOnly": read_only })
            }
            MountKind::Bind { source, .. } => {
                if self.stack.mounted(source).is_some() {
                    if !mount.read_only {
                        let message = format!(
                            "{} is a file of a ConfigMap in a cluster, and cannot be written",
                            mount.target
                        );
                        self.told.service(&service.name, &["volumes"], message);
                    }
                    let key = file_key(&mount.target);
                    return json!({ "name": self.files(service, volumes), "mountPath": mount.target, "subPath": key, "readOnly": true });
                }
                let name = self.own(service, &format!("host-{index}"));
                let path = source.display().to_string();
                let message = format!(
                    "{path} is a directory of this machine: every node that runs service `{}` must have it",
                    service.name
                );
                self.told.service(&service.name, &["volumes", "volumes_from"], message);
                volumes.add(&name, "hostPath", json!({ "path": path }));
                json!({ "name": name, "mountPath": mount.target, "readOnly": read_only })
            }
        }
    }

    fn tell_of_owner(&mut self, service: &Service, mount: &Mount, tmpfs: &Tmpfs) {
        // An `emptyDir` is everybody's.
        if tmpfs.mode & 0o777 != 0o777 || (tmpfs.uid, tmpfs.gid) != (0, 0) {
            let message = format!(
                "Kubernetes has no word for the owner and mode of {} of service `{}` ({}:{}, {:04o}): everybody in the pod may write there",
                mount.target, service.name, tmpfs.uid, tmpfs.gid, tmpfs.mode
            );
            self.told.service(&service.name, &["tmpfs", "volumes"], message);
        }
    }

    /// Those in the usual place are a directory; others are single files, which leave their directories as they are.
    fn secret_mounts(&mut self, service: &Service, volumes: &mut Volumes) -> Vec<Value> {
        let stack = self.stack;
        let (mut items, mut others, mut mounts) = (Vec::new(), Vec::new(), Vec::new());
        for (name, file) in stack.secrets(service) {
            self.tell_of_file_owner(service, "secrets", file);
            self.secrets.insert(name.to_owned(), stack.value(&file.source).unwrap_or_default().to_vec());
            match file.target.strip_prefix(SECRETS) {
                Some(path) => items.push(json!({ "key": name, "path": path, "mode": file.mode })),
                None => {
                    let path = file_key(&file.target);
                    others.push(json!({ "key": name, "path": path, "mode": file.mode }));
                    let volume = self.own(service, "secret-files");
                    mounts.push(json!({ "name": volume, "mountPath": file.target, "subPath": path, "readOnly": true }));
                }
            }
        }
        let secret = self.secret_name();
        // What is the default is said for Podman 4.3, which takes it to be said.
        let source = |items| json!({ "secretName": secret, "items": items, "optional": false });
        if !items.is_empty() {
            let volume = self.own(service, "secrets");
            volumes.add(&volume, "secret", source(items));
            mounts.push(
                json!({ "name": volume, "mountPath": SECRETS.trim_end_matches('/'), "readOnly": true }),
            );
        }
        if !others.is_empty() {
            volumes.add(&self.own(service, "secret-files"), "secret", source(others));
        }
        mounts
    }

    fn config_mounts(&mut self, service: &Service, volumes: &mut Volumes) -> Vec<Value> {
        let stack = self.stack;
        let configs = stack.configs(service);
        configs
            .into_iter()
            .map(|(_, file)| {
                self.tell_of_file_owner(service, "configs", file);
                let name = self.files(service, volumes);
                json!({ "name": name, "mountPath": file.target, "subPath": file_key(&file.target), "readOnly": true })
            })
            .collect()
    }

    fn tell_of_file_owner(&mut self, service: &Service, key: &str, file: &SecretFile) {
        if (file.uid, file.gid) != (0, 0) {
            let message = format!(
                "Kubernetes has no word for the owner {}:{} of {} of service `{}`: it is root's",
                file.uid, file.gid, file.target, service.name
            );
            self.told.service(&service.name, &[key], message);
        }
    }

    /// The volume of a service's `ConfigMap`.
    fn files(&self, service: &Service, volumes: &mut Volumes) -> String {
        let (volume, map) = (self.own(service, "files"), self.own(service, "files"));
        let items: Vec<Value> = self
            .stack
            .configs(service)
            .iter()
            .map(|(_, file)| json!({ "key": file_key(&file.target), "path": file_key(&file.target), "mode": file.mode }))
            .chain(self.mounted_files(service).into_iter().map(|(key, _)| json!({ "key": key, "path": key })))
            .collect();
        volumes.add(&volume, "configMap", json!({ "name": map, "items": items }));
        volume
    }

    fn mounted_files<'s>(&'s self, service: &'s Service) -> Vec<(String, &'s [u8])> {
        let files = service.mounts.iter().filter_map(|mount| match &mount.kind {
            MountKind::Bind { source, .. } => Some((file_key(&mount.target), self.stack.mounted(source)?)),
            _ => None,
        });
        files.collect()
    }

    /// A `ConfigMap` for each service of a pod that has files.
    pub(super) fn config_maps(&self, members: &[&Service]) -> Vec<Value> {
        members.iter().filter_map(|service| self.config_map(service)).collect()
    }

    fn config_map(&self, service: &Service) -> Option<Value> {
        let configs = self.stack.configs(service).into_iter();
        let configs = configs
            .map(|(_, file)| (file_key(&file.target), self.stack.value(&file.source).unwrap_or_default()));
        let (mut texts, mut others) = (Map::new(), Map::new());
        for (key, content) in configs.chain(self.mounted_files(service)) {
            match std::str::from_utf8(content) {
                Ok(text) => texts.insert(key, json!(text)),
                Err(_) => {
                    others.insert(key, json!(base64::engine::general_purpose::STANDARD.encode(content)))
                }
            };
        }
        if texts.is_empty() && others.is_empty() {
            return None;
        }
        let content = json!({
            "data": (!texts.is_empty()).then_some(texts),
            "binaryData": (!others.is_empty()).then_some(others),
        });
        Some(self.object("v1", "ConfigMap", &self.own(service, "files"), content))
    }
}

fn memory(size: Option<u64>) -> Value {
    match size {
        Some(size) => json!({ "medium": "Memory", "sizeLimit": bytes(size) }),
        None => json!({ "medium": "Memory" }),
    }
}

/// `128Mi`: in the largest unit of which it is a whole number.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(30, "Gi"), (20, "Mi"), (10, "Ki")];
    let whole = units.into_iter().find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift));
    whole.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// The key of a file: its path inside, in the characters that a key may have.
fn file_key(target: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    target.trim_start_matches('/').chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_whole_units() {
        for (size, text) in
            [(128 << 20, "128Mi"), (1 << 30, "1Gi"), (1536, "1536"), (1 << 10, "1Ki"), (0, "0")]
        {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn a_path_is_a_key() {
        assert_eq!(file_key("/etc/nginx/conf.d/a b.conf"), "etc_nginx_conf.d_a_b.conf");
    }
}
