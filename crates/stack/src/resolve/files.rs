//! Mounts, secrets and configurations of a service.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::{Context, hex, path, shown};
use crate::diagnostic::{Checked, Fault, Span};
use crate::file::mounts::{MountFile, MountFileKind, absolute};
use crate::file::service::{SecretUse, ServiceFile};
use crate::file::{Format, SecretOrigin, SecretSourceFile, StackFile};
use crate::interpolate::set_hint;
use crate::plan::{Mount, MountKind, SecretFile, SecretSource};

pub(super) fn mounts(
    service: &ServiceFile,
    file: &StackFile,
    context: &Context<'_>,
    volumes: &mut BTreeSet<String>,
) -> Checked<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in &service.mounts {
        if mounts.iter().any(|other| other.target == mount.target) {
            return Err(Fault::new(
                &mount.span,
                format!("`{}` is mounted twice in service `{}`", mount.target, service.key.name),
            ));
        }
        let kind = mount_kind(service, mount, file, context)?;
        if let MountKind::Volume { name } = &kind {
            volumes.insert(name.clone());
        }
        mounts.push(Mount { target: mount.target.clone(), read_only: mount.read_only, kind });
    }
    // What is mounted later covers what is below it.
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    Ok(mounts)
}

fn mount_kind(
    service: &ServiceFile,
    mount: &MountFile,
    file: &StackFile,
    context: &Context<'_>,
) -> Checked<MountKind> {
    let bind = |text: &str, create: bool, span: &Span| {
        let source = path(text, context);
        if !create && !source.exists() {
            return Err(Fault::new(span, format!("`{}` does not exist", shown(&source, context)))
                .hint("create it, or set `create_host_path`"));
        }
        Ok(MountKind::Bind { source, create })
    };
    match &mount.kind {
        MountFileKind::Bind { source, create } => bind(source, *create, &mount.span),
        MountFileKind::Tmpfs { size, mode } => Ok(MountKind::Tmpfs { size: *size, mode: *mode }),
        MountFileKind::Volume(None) => {
            // Anonymous: the same service and target find it again.
            let digest = hex(&Sha256::digest(mount.target.as_bytes()));
            let name = format!("{}-{}", service.key.name, &digest[..12]);
            Ok(MountKind::Volume { name })
        }
        MountFileKind::Volume(Some(name)) => {
            let declared = file.volumes.iter().map(|volume| volume.key.name.as_str());
            let Some(volume) = file.volumes.iter().find(|volume| volume.key.name == *name) else {
                let example = match context.format {
                    Format::Stack => format!("declare it: `[volumes.{name}]`"),
                    Format::Compose => format!("declare it: `volumes: {{ {name}: {{}} }}`"),
                };
                return Err(Fault::new(&mount.span, format!("volume `{name}` is not declared"))
                    .hint(format!("{example}, or write `./{name}` for a directory"))
                    .nearest(name, declared));
            };
            match &volume.device {
                Some(device) => bind(&device.value, true, &device.span),
                None => Ok(MountKind::Volume { name: name.clone() }),
            }
        }
    }
}

pub(super) fn secrets(
    service: &ServiceFile,
    file: &StackFile,
    context: &Context<'_>,
) -> Checked<Vec<SecretFile>> {
    let mut files: Vec<SecretFile> = Vec::new();
    let groups = [
        ("secret", "/run/secrets/", &service.secrets, &file.secrets),
        ("config", "/", &service.configs, &file.configs),
    ];
    for (what, parent, uses, sources) in groups {
        for secret in uses {
            let found = secret_file(what, parent, secret, sources, context)?;
            if files.iter().any(|other| other.target == found.target) {
                let message = format!("two files for `{}`", found.target);
                return Err(Fault::new(&secret.source.span, message));
            }
            files.push(found);
        }
    }
    Ok(files)
}

/// Where the value of a declared secret comes from.
pub(super) fn secret_source(
    what: &str,
    secret: &SecretUse,
    sources: &[SecretSourceFile],
    context: &Context<'_>,
) -> Checked<SecretSource> {
    let name = &secret.source.value;
    let names = sources.iter().map(|source| source.key.name.as_str());
    let Some(declared) = sources.iter().find(|source| source.key.name == *name) else {
        let example = match context.format {
            Format::Stack => format!("declare it: `[{what}s.{name}]`"),
            Format::Compose => format!("declare it below `{what}s:`"),
        };
        return Err(Fault::new(&secret.source.span, format!("{what} `{name}` is not declared"))
            .hint(format!("{example} with `file` or `environment`"))
            .nearest(name, names));
    };
    let source = match &declared.source {
        SecretOrigin::File(file) => {
            let path = path(&file.value, context);
            if !path.is_file() {
                let message =
                    format!("the file of {what} `{name}` does not exist: `{}`", shown(&path, context));
                return Err(Fault::new(&file.span, message));
            }
            SecretSource::File(path)
        }
        SecretOrigin::Environment(variable) => {
            if context.variables.get(&variable.value).is_none() {
                let variable_name = &variable.value;
                return Err(Fault::new(
                    &variable.span,
                    format!("variable `{variable_name}` of {what} `{name}` is not set"),
                )
                .hint(set_hint(variable_name, context.env_writer)));
            }
            SecretSource::Environment(variable.value.clone())
        }
    };
    Ok(source)
}

fn secret_file(
    what: &str,
    parent: &str,
    secret: &SecretUse,
    sources: &[SecretSourceFile],
    context: &Context<'_>,
) -> Checked<SecretFile> {
    let source = secret_source(what, secret, sources, context)?;
    let target = secret.target.as_deref().unwrap_or(&secret.source.value);
    let target = match target.starts_with('/') {
        true => target.to_owned(),
        false => format!("{parent}{target}"),
    };
    Ok(SecretFile {
        target: absolute(&secret.source.span, &target)?,
        source,
        uid: secret.uid,
        gid: secret.gid,
        mode: secret.mode,
    })
}
