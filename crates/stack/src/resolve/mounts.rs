//! Mounts of a service.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Context, find, hex, path, service_names, shown};
use crate::diagnostic::{Checked, Fault, Span};
use crate::file::mounts::{MountFile, MountFileKind, VolumesFrom};
use crate::file::service::ServiceFile;
use crate::file::volumes::{VolumeDevice, VolumeFile};
use crate::file::{Format, Located, StackFile};
use crate::plan::{Mount, MountKind, Scope};

/// Where programs look for Docker's daemon.
const DOCKER_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/docker.sock"];

/// The mounts of a service: its own, and those of the services that `volumes_from` names. `volumes` gets the names of
/// the stack's own volumes among them.
pub(super) fn mounts(
    service: &ServiceFile,
    file: &StackFile,
    context: &Context<'_>,
    volumes: &mut BTreeSet<String>,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<Vec<Mount>> {
    let mut mounts = own(service, file, context, warnings)?;
    inherit(service, file, context, &mut mounts)?;
    for mount in &mounts {
        if let MountKind::Volume { name, scope: Scope::Stack, .. } = &mount.kind {
            volumes.insert(name.clone());
        }
    }
    // What is mounted later covers what is below it.
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    Ok(mounts)
}

fn own(
    service: &ServiceFile,
    file: &StackFile,
    context: &Context<'_>,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in &service.mounts {
        if mounts.iter().any(|other| other.target == mount.target) {
            return Err(Fault::new(
                &mount.span,
                format!("`{}` is mounted twice in service `{}`", mount.target, service.key.name),
            ));
        }
        if lacks_docker(mount, context) {
            warnings.push((mount.span.clone(), no_docker(service)));
            continue;
        }
        let (kind, read_only) = kind(service, mount, file, context)?;
        mounts.push(Mount { target: mount.target.clone(), read_only: mount.read_only || read_only, kind });
    }
    Ok(mounts)
}

/// Whether it is Docker's socket, where there is no Docker.
fn lacks_docker(mount: &MountFile, context: &Context<'_>) -> bool {
    let MountFileKind::Bind { source, .. } = &mount.kind else { return false };
    let source = path(source, context);
    DOCKER_SOCKETS.iter().any(|socket| source == Path::new(socket)) && !source.exists()
}

fn no_docker(service: &ServiceFile) -> String {
    format!(
        "service `{}` gets no `docker.sock`: there is no Docker daemon here, so what it does through it (finding, watching and starting containers) cannot work",
        service.key.name
    )
}

/// Adds the mounts of others, where nothing of its own is at that place.
fn inherit(
    service: &ServiceFile,
    file: &StackFile,
    context: &Context<'_>,
    mounts: &mut Vec<Mount>,
) -> Checked<()> {
    for from in &service.volumes_from {
        let owner = owner(from, file)?;
        let mut theirs = own(owner, file, context, &mut Vec::new())?;
        // There are no circles: it is a dependency.
        inherit(owner, file, context, &mut theirs)?;
        // A tmpfs is a container's, and no volume.
        for mut mount in theirs.into_iter().filter(|mount| !matches!(mount.kind, MountKind::Tmpfs(_))) {
            mount.read_only |= from.read_only;
            if mounts.iter().all(|own| own.target != mount.target) {
                mounts.push(mount);
            }
        }
    }
    Ok(())
}

/// The service that an entry of `volumes_from` means.
pub(super) fn owner<'a>(from: &VolumesFrom, file: &'a StackFile) -> Checked<&'a ServiceFile> {
    let name = &from.owner.value;
    let container = |other: &&ServiceFile| other.settled.container_name.as_ref() == Some(name);
    find(file, name).or_else(|| file.services.iter().find(container)).ok_or_else(|| {
        Fault::new(&from.owner.span, format!("there is no service `{name}` to take volumes from"))
            .label("no such service")
            .hint(format!("the services are: {}", service_names(file).collect::<Vec<_>>().join(", ")))
            .nearest(name, service_names(file))
    })
}

/// What is mounted, and whether the volume itself is read-only.
fn kind(
    service: &ServiceFile,
    mount: &MountFile,
    file: &StackFile,
    context: &Context<'_>,
) -> Checked<(MountKind, bool)> {
    match &mount.kind {
        MountFileKind::Bind { source, create } => {
            let source = path(source, context);
            Ok((MountKind::Bind { source, create: *create, fill: false }, false))
        }
        MountFileKind::Tmpfs(tmpfs) => Ok((MountKind::Tmpfs(tmpfs.clone()), false)),
        MountFileKind::Volume { name: None, nocopy, subpath } => {
            if subpath.is_some() {
                return Err(Fault::new(
                    &mount.span,
                    "a volume without a name has no directories to choose from",
                )
                .hint("leave `subpath` out, or name a volume with `source`"));
            }
            // Anonymous: the same service and target find it again.
            let digest = hex(&Sha256::digest(mount.target.as_bytes()));
            let name = format!("{}-{}", service.key.name, &digest[..12]);
            Ok((MountKind::Volume { name, scope: Scope::Stack, nocopy: *nocopy, subpath: None }, false))
        }
        MountFileKind::Volume { name: Some(name), nocopy, subpath } => {
            let volume = declared(name, mount, file, context.format)?;
            let kind = match &volume.device {
                None => MountKind::Volume {
                    name: volume.name.as_ref().map_or(name, |name| &name.value).clone(),
                    scope: volume.scope,
                    nocopy: *nocopy,
                    subpath: subpath.clone(),
                },
                Some(VolumeDevice::Tmpfs(tmpfs)) => MountKind::Tmpfs(tmpfs.clone()),
                Some(VolumeDevice::Directory(device)) => {
                    let directory = path(&device.value, context);
                    let source = subpath.as_ref().map_or(directory.clone(), |below| directory.join(below));
                    MountKind::Bind { source, create: false, fill: !nocopy && subpath.is_none() }
                }
            };
            Ok((kind, volume.read_only))
        }
    }
}

/// Refuses a volume that the file does not have.
pub(super) fn check_declared(mount: &MountFile, file: &StackFile, format: Format) -> Checked<()> {
    match &mount.kind {
        MountFileKind::Volume { name: Some(name), .. } => declared(name, mount, file, format).map(|_| ()),
        _ => Ok(()),
    }
}

fn declared<'a>(
    name: &str,
    mount: &MountFile,
    file: &'a StackFile,
    format: Format,
) -> Checked<&'a VolumeFile> {
    file.volumes.iter().find(|volume| volume.key.name == *name).ok_or_else(|| {
        let example = match format {
            Format::Stack => format!("declare it: `[volumes.{name}]`"),
            Format::Compose => format!("declare it: `volumes: {{ {name}: {{}} }}`"),
        };
        let declared = file.volumes.iter().map(|volume| volume.key.name.as_str());
        Fault::new(&mount.span, format!("volume `{name}` is not declared"))
            .hint(format!("{example}, or write `./{name}` for a directory"))
            .nearest(name, declared)
    })
}

/// A path of the host's that is to be mounted, and is not there.
struct Missing<'a> {
    span: &'a Span,
    path: PathBuf,
    /// The volume whose directory it is to be.
    volume: Option<&'a str>,
}

/// Refuses what is to be mounted and is not there, all of it at once. As with Docker, the directory that a volume is to
/// be is made by its owner, so that a mistake in its name is seen.
pub(super) fn check_sources(file: &StackFile, context: &Context<'_>) -> Checked<()> {
    let mut missing: Vec<Missing<'_>> = Vec::new();
    for mount in file.services.iter().flat_map(|service| &service.mounts) {
        let found = match &mount.kind {
            MountFileKind::Bind { source, create: false } if !lacks_docker(mount, context) => {
                let path = path(source, context);
                (!path.exists()).then_some(Missing { span: &mount.span, path, volume: None })
            }
            MountFileKind::Volume { name: Some(name), .. } => {
                let volume = declared(name, mount, file, context.format)?;
                match &volume.device {
                    Some(VolumeDevice::Directory(device)) if !context.options.images_only => {
                        missing_directory(name, device, context)?
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        missing.extend(found.filter(|found| missing.iter().all(|other| other.path != found.path)));
    }
    match missing.as_slice() {
        [] => Ok(()),
        [only] => Err(one_missing(only, context)),
        [first, ..] => Err(several_missing(first, &missing, context)),
    }
}

fn missing_directory<'a>(
    volume: &'a str,
    device: &'a Located<String>,
    context: &Context<'_>,
) -> Checked<Option<Missing<'a>>> {
    let path = path(&device.value, context);
    match (path.is_dir(), path.exists()) {
        (true, _) => Ok(None),
        (false, false) => Ok(Some(Missing { span: &device.span, path, volume: Some(volume) })),
        (false, true) => {
            let message = format!("`{}` of volume `{volume}` is not a directory", shown(&path, context));
            Err(Fault::new(&device.span, message).hint("name a directory with `device`"))
        }
    }
}

fn one_missing(missing: &Missing<'_>, context: &Context<'_>) -> Box<Fault> {
    let shown = shown(&missing.path, context);
    match missing.volume {
        Some(volume) => {
            let message = format!("the directory of volume `{volume}` does not exist: `{shown}`");
            Fault::new(missing.span, message).hint(format!("make it: `mkdir -p {}`", missing.path.display()))
        }
        None => Fault::new(missing.span, format!("`{shown}` does not exist"))
            .hint("create it, or set `create_host_path`"),
    }
}

fn several_missing(first: &Missing<'_>, all: &[Missing<'_>], context: &Context<'_>) -> Box<Fault> {
    let named = all.iter().map(|missing| {
        let shown = shown(&missing.path, context);
        let of = missing.volume.map_or_else(String::new, |volume| format!("volume `{volume}`, "));
        format!("`{shown}` ({of}{})", missing.span.place())
    });
    let message = format!("{} paths do not exist: {}", all.len(), named.collect::<Vec<_>>().join(", "));
    let paths: Vec<String> = all.iter().map(|missing| missing.path.display().to_string()).collect();
    Fault::new(first.span, message).hint(format!("make them: `mkdir -p {}`", paths.join(" ")))
}
