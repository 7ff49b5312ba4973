//! Where a service's root file system comes from.

use super::{Context, build, path, shown};
use crate::diagnostic::{Checked, Fault, Span};
use crate::file::service::ServiceFile;
use crate::file::{Located, StackFile};
use crate::plan::Source;

pub(super) fn source(
    service: &ServiceFile,
    stack: &str,
    bases: &[String],
    file: &StackFile,
    context: &Context<'_>,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<Source> {
    check(service)?;
    let name = &service.key.name;
    match (&service.build, &service.image, &service.rootfs) {
        (Some(build), image, None) => {
            let image = match image {
                Some(image) => image.value.clone(),
                // An image's name is lower case, a service's need not be.
                None => format!("{stack}-{}:latest", name.to_lowercase()),
            };
            let build = build::resolve(build, image, bases, file, context, warnings)?;
            Ok(Source::Build(Box::new(build)))
        }
        (None, Some(image), _) => Ok(Source::Image(image.value.clone())),
        (_, _, Some(rootfs)) => {
            let path = path(&rootfs.value, context);
            if !path.exists() {
                let message = format!("rootfs `{}` does not exist", shown(&path, context));
                return Err(Fault::new(&rootfs.span, message));
            }
            Ok(Source::Rootfs(path))
        }
        (None, None, None) => Err(none(service)),
    }
}

/// That there is one source, and that its name can be one.
pub(super) fn check(service: &ServiceFile) -> Checked<()> {
    if let Some(image) = &service.image {
        check_image(image)?;
    }
    match (&service.rootfs, service.build.is_some() || service.image.is_some()) {
        (Some(rootfs), true) => {
            let name = &service.key.name;
            let message = format!("service `{name}` has a `rootfs` besides an `image` or `build`");
            Err(Fault::new(&rootfs.span, message).hint("keep one of them"))
        }
        (None, false) => Err(none(service)),
        _ => Ok(()),
    }
}

fn none(service: &ServiceFile) -> Box<Fault> {
    let message = format!("service `{}` has no `image`, `build` or `rootfs`", service.key.name);
    Fault::new(&service.key.span, message)
        .hint("add `build` with the directory of its Dockerfile, or `image`")
}

/// The grammar of image references: `[DOMAIN[:PORT]/]NAME[/NAME…][:TAG][@DIGEST]`
/// (distribution/reference).
pub(super) fn check_image(image: &Located<String>) -> Checked<()> {
    let bad = |message: String| Fault::new(&image.span, message);
    let text = image.value.as_str();
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|byte| b"0123456789abcdef".contains(&byte)) {
            return Err(bad(format!("`{text}` has a bad digest"))
                .hint("a digest is `sha256:` and 64 hexadecimal digits"));
        }
    }
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !tag.bytes().all(plain) {
            return Err(bad(format!("`{text}` has a bad tag"))
                .hint("a tag has letters, digits, `_`, `.` and `-`, such as `alpine:3.20`"));
        }
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    let is_domain = parts[0].contains(['.', ':']) || parts[0] == "localhost";
    if parts.len() > 1 && is_domain {
        let domain = parts.remove(0);
        let (host, port) = domain.split_once(':').unwrap_or((domain, "0"));
        let good = |label: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !label.is_empty() && !label.starts_with('-') && label.bytes().all(plain)
        };
        if !host.split('.').all(good) || port.parse::<u16>().is_err() {
            return Err(bad(format!("`{text}` is not the name of an image"))
                .hint("write `NAME:TAG`, such as `alpine:3.20`"));
        }
    }
    let good = |part: &&str| {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(letter)
            && part.ends_with(letter)
            && part.chars().all(|c| letter(c) || "._-".contains(c))
    };
    if parts.iter().all(good) && name.len() <= 255 {
        return Ok(());
    }
    let fault = bad(format!("`{text}` is not the name of an image"));
    let lower = text.to_lowercase();
    if lower != text {
        return Err(fault.hint(format!("names of images are lower case: `{lower}`")));
    }
    Err(fault.hint("write `NAME:TAG`, such as `alpine:3.20`"))
}
