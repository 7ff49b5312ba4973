//! What a service uses of the host itself: devices, and files that say what it may do.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Context, path, shown};
use crate::diagnostic::{Checked, Fault, Span};
use crate::file::service::ServiceFile;
use crate::plan::{Confinement, Device, Seccomp};

/// The devices that the service can open. Others are left out, with a warning.
pub(super) fn devices(
    service: &ServiceFile,
    context: &Context<'_>,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<Vec<Device>> {
    let mut devices = Vec::new();
    for device in &service.devices {
        let source = path(&device.source.value, context);
        let Ok(meta) = std::fs::metadata(&source) else {
            return Err(Fault::new(
                &device.source.span,
                format!("the device `{}` does not exist", source.display()),
            )
            .hint("leave it out where the machine has none"));
        };
        let kind = meta.file_type();
        if !(kind.is_char_device() || kind.is_block_device() || kind.is_dir()) {
            return Err(Fault::new(&device.source.span, format!("`{}` is not a device", source.display()))
                .hint("files and directories are mounted with `volumes`"));
        }
        if kind.is_dir() || is_open_to(&meta, context) {
            devices.push(Device { source, target: device.target.clone() });
            continue;
        }
        let text = format!(
            "device `{}` of service `{}` is left out: inside, only what everybody or this user may open can be opened",
            source.display(),
            service.key.name
        );
        warnings.push((device.source.span.clone(), text));
    }
    Ok(devices)
}

/// `ulimits`, lowered to what this user may have, with a warning.
pub(super) fn ulimits(
    service: &ServiceFile,
    context: &Context<'_>,
    warnings: &mut Vec<(Span, String)>,
) -> BTreeMap<String, (u64, u64)> {
    let place = service.ulimits.as_ref().unwrap_or(&service.key.span);
    let what = format!("service `{}`", service.key.name);
    lowered(&service.settled.ulimits, place, &what, context, warnings)
}

/// Limits, lowered to what this user may have, with a warning.
pub(super) fn lowered(
    limits: &BTreeMap<String, (u64, u64)>,
    place: &Span,
    what: &str,
    context: &Context<'_>,
    warnings: &mut Vec<(Span, String)>,
) -> BTreeMap<String, (u64, u64)> {
    let mut limits = limits.clone();
    for (name, (soft, hard)) in &mut limits {
        let most = context.host.limits.get(name.as_str()).copied();
        let Some(most) = most.filter(|most| *hard > *most) else { continue };
        let asked = match *hard {
            u64::MAX => "unlimited".to_owned(),
            hard => hard.to_string(),
        };
        let text = format!(
            "`{name}` of `ulimits` of {what} is {most} instead of {asked}: more than the hard limit of the user who starts the stack cannot be had"
        );
        warnings.push((place.clone(), text));
        (*soft, *hard) = ((*soft).min(most), most);
    }
    limits
}

/// Whether root of a container can read and write it. Groups do not count: a container has none of its user's.
fn is_open_to(meta: &std::fs::Metadata, context: &Context<'_>) -> bool {
    let has = |shift: u32| meta.mode() >> shift & 0o6 == 0o6;
    // Started by root, a container's root is nobody in particular on the host.
    let is_owner = !context.host.is_root && meta.uid() == rustix::process::geteuid().as_raw();
    if is_owner { has(6) } else { has(0) }
}

/// `security_opt`, with the profile found.
pub(super) fn confinement(service: &ServiceFile, context: &Context<'_>) -> Checked<Confinement> {
    let mut confinement = service.settled.confinement.clone();
    if let Some(profile) = &service.seccomp_profile {
        let path = path(&profile.value, context);
        check_profile(&path, profile.span.clone(), context)?;
        confinement.seccomp = Seccomp::Profile(path);
    }
    if confinement.new_privileges && service.settled.landlock.is_some() {
        let message = format!("service `{}` has `landlock` and `no-new-privileges:false`", service.key.name);
        return Err(Fault::new(&service.key.span, message).hint(
            "leave one of the two out: only what gains no privileges can be restricted by `landlock`",
        ));
    }
    Ok(confinement)
}

fn check_profile(path: &Path, span: Span, context: &Context<'_>) -> Checked<()> {
    if path.is_file() {
        return Ok(());
    }
    let message = format!("the seccomp profile `{}` does not exist", shown(path, context));
    Err(Fault::new(&span, message).hint("write the path of a profile, or `seccomp=unconfined`"))
}
