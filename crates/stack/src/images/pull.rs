//! When an image is looked for in its registry (`pull_policy`).

use std::time::{Duration, SystemTime};

use image::{Image, Store};

use super::Progress;
use super::base::{self, Wanted};
use crate::paths::Paths;
use crate::plan::PullPolicy;
use crate::remote::RemoteError;

/// The image that a service names, after its policy.
pub(super) fn named(
    paths: &Paths,
    store: &Store,
    wanted: &Wanted<'_>,
    policy: Option<PullPolicy>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Image, RemoteError> {
    let reference = &wanted.reference;
    let present = store.image(reference)?;
    match (policy, present) {
        (Some(PullPolicy::Never), None) => Err(RemoteError::message(format!(
            "there is no image `{reference}`, and `pull_policy` is `never`"
        ))
        .or_hint(format!("`inception-run pull {reference}` fetches it"))),
        (_, Some(image)) if !is_due(store, &image, policy)? => Ok(image),
        // It has to be the registry's: a base of that name from elsewhere is another image.
        (Some(PullPolicy::Always | PullPolicy::Every(_)), Some(_)) => base::pull(paths, wanted, progress)
            .map_err(|failed| {
                failed.error.or_hint("with `pull_policy: missing` the image that is there is used")
            }),
        _ => base::provide(paths, wanted, false, progress),
    }
}

/// The image that a service builds, where its policy has it pulled first; none where it is to be built.
pub(super) fn before_build(
    paths: &Paths,
    store: &Store,
    wanted: &Wanted<'_>,
    present: Option<Image>,
    policy: Option<PullPolicy>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<Image>, RemoteError> {
    let due = match (policy, &present) {
        // Without a policy, what can be built is.
        (None | Some(PullPolicy::Never), _) => false,
        (Some(PullPolicy::Build), _) => return Ok(None),
        (Some(_), None) => true,
        (Some(_), Some(image)) => is_due(store, image, policy)?,
    };
    if !due {
        return Ok(present);
    }
    match base::pull(paths, wanted, progress) {
        Ok(image) => Ok(Some(image)),
        Err(failed) => {
            let what = if present.is_some() { "the image that is there is used" } else { "it is built" };
            progress(Progress::Warning(format!("{}; {what}", failed.error)));
            Ok(present)
        }
    }
}

/// Whether it is time to look for a newer image than the one that is there.
fn is_due(store: &Store, image: &Image, policy: Option<PullPolicy>) -> Result<bool, RemoteError> {
    Ok(match policy {
        Some(PullPolicy::Always) => true,
        Some(PullPolicy::Every(seconds)) => {
            let pulled = image::registry::pulled_at(store, &image.id)?;
            older_than(pulled, seconds, SystemTime::now())
        }
        Some(PullPolicy::Never | PullPolicy::Missing | PullPolicy::Build) | None => false,
    })
}

/// Whether something that happened at `then`, if ever, is at least so many seconds ago. What lies in the future has a
/// clock of another kind.
fn older_than(then: Option<SystemTime>, seconds: f64, now: SystemTime) -> bool {
    let Some(age) = then.and_then(|then| now.duration_since(then).ok()) else { return true };
    Duration::try_from_secs_f64(seconds).is_ok_and(|limit| age >= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_ages() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ago = |seconds| Some(now - Duration::from_secs(seconds));
        assert!(older_than(None, 86400.0, now));
        assert!(older_than(ago(86401), 86400.0, now) && !older_than(ago(86399), 86400.0, now));
        assert!(older_than(Some(now + Duration::from_secs(5)), 86400.0, now));
        // A time that is too long to be one is never over.
        assert!(!older_than(ago(5), f64::MAX, now));
    }
}
