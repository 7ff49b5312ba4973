//! Secrets and configurations of a service, and its other files.

use super::{Context, path, shown};
use crate::diagnostic::{Checked, Fault};
use crate::file::mounts::absolute;
use crate::file::secrets::{Grant, SecretOrigin, SecretSourceFile};
use crate::file::service::ServiceFile;
use crate::file::{Format, StackFile};
use crate::interpolate::set_hint;
use crate::plan::{SecretFile, SecretSource};

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

/// The secret that is meant.
pub(super) fn declared<'a>(
    what: &str,
    secret: &Grant,
    sources: &'a [SecretSourceFile],
    format: Format,
) -> Checked<&'a SecretSourceFile> {
    let name = &secret.source.value;
    let names = sources.iter().map(|source| source.key.name.as_str());
    sources.iter().find(|source| source.key.name == *name).ok_or_else(|| {
        let example = match format {
            Format::Stack => format!("declare it: `[{what}s.{name}]`"),
            Format::Compose => format!("declare it below `{what}s:`"),
        };
        Fault::new(&secret.source.span, format!("{what} `{name}` is not declared"))
            .hint(format!("{example} with `file` or `environment`"))
            .nearest(name, names)
    })
}

/// Where the value of a declared secret comes from; `needed`: it has to be there.
pub(super) fn secret_source(
    what: &str,
    secret: &Grant,
    sources: &[SecretSourceFile],
    needed: bool,
    context: &Context<'_>,
) -> Checked<SecretSource> {
    let name = &secret.source.value;
    let source = match &declared(what, secret, sources, context.format)?.source {
        SecretOrigin::File(file) => {
            let path = path(&file.value, context);
            if needed && !path.is_file() {
                let message =
                    format!("the file of {what} `{name}` does not exist: `{}`", shown(&path, context));
                return Err(Fault::new(&file.span, message));
            }
            SecretSource::File(path)
        }
        SecretOrigin::Environment(variable) => {
            let variable_name = &variable.value;
            let included = context.included.contains_key(variable_name);
            if needed && context.variables.get(variable_name).is_none() && !included {
                return Err(Fault::new(
                    &variable.span,
                    format!("variable `{variable_name}` of {what} `{name}` is not set"),
                )
                .hint(set_hint(variable_name, context.env_writer)));
            }
            SecretSource::Environment(variable.value.clone())
        }
        SecretOrigin::Content(content) => SecretSource::Content(content.clone()),
    };
    Ok(source)
}

fn secret_file(
    what: &str,
    parent: &str,
    secret: &Grant,
    sources: &[SecretSourceFile],
    context: &Context<'_>,
) -> Checked<SecretFile> {
    // A container gets it, no build does.
    let needed = !context.options.images_only;
    let source = secret_source(what, secret, sources, needed, context)?;
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
