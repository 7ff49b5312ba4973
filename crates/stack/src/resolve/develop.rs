//! What is watched while one works on a service.

use super::{Context, path, shown};
use crate::diagnostic::{Checked, Fault};
use crate::file::service::ServiceFile;
use crate::plan::{Watch, WatchAction};

/// What `develop.watch` of a service means. That it can be done is asked by who does it only.
pub(super) fn watched(service: &ServiceFile, context: &Context<'_>) -> Checked<Vec<Watch>> {
    let mut watched = Vec::new();
    for entry in &service.watch {
        let path = path(&entry.path.value, context);
        if context.options.watched {
            if !path.exists() {
                let message = format!("`{}`, which is to be watched, does not exist", shown(&path, context));
                return Err(Fault::new(&entry.path.span, message)
                    .hint("`path` is a file or a directory, relative to this file"));
            }
            if entry.settled.action == WatchAction::Rebuild && service.build.is_none() {
                let message =
                    format!("service `{}` has no `build`, so it cannot be rebuilt", service.key.name);
                return Err(Fault::new(&entry.action, message).hint("`restart` and `sync` need none"));
            }
        }
        watched.push(Watch { path, ..entry.settled.clone() });
    }
    Ok(watched)
}
