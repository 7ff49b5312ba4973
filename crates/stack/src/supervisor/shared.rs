//! Volumes that stacks share under a name. The stacks that run write down in their runtime directories which they use, so
//! that the end of one takes none away from another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::Supervisor;
use super::connection::Pending;
use crate::control::Notice;
use crate::plan::{MountKind, Plan, Scope};
use crate::remote::{Context, RemoteError};
use crate::{lock, paths, spec};

/// In the runtime directory of a stack that runs.
const NAME: &str = "shared.json";

/// As long as it is there, no other stack begins to use such a volume or takes one away.
struct Turn {
    _all: File,
}

impl Turn {
    /// Waits for it. `runtime` is a stack's runtime directory.
    fn take(runtime: &Path) -> Result<Self, RemoteError> {
        let all = runtime.parent().unwrap_or(runtime);
        let lock = || -> io::Result<File> {
            let directory = File::open(all)?;
            directory.lock()?;
            Ok(directory)
        };
        Ok(Self { _all: lock().context(|| format!("lock {}", all.display()))? })
    }

    /// The volumes that other stacks use which run, with one of these stacks.
    fn used_elsewhere(&self, runtime: &Path) -> Result<BTreeMap<String, String>, RemoteError> {
        let mut used = BTreeMap::new();
        for other in paths::entries(runtime.parent().unwrap_or(runtime))? {
            if other == runtime || !runs(&other) {
                continue;
            }
            let stack = other.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let record = match fs::read(other.join(NAME)) {
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    continue;
                }
                read => read.context(|| format!("read which volumes stack `{stack}` uses"))?,
            };
            let volumes: BTreeSet<String> = serde_json::from_slice(&record)
                .map_err(io::Error::from)
                .context(|| format!("read which volumes stack `{stack}` uses"))?;
            used.extend(volumes.into_iter().map(|volume| (volume, stack.clone())));
        }
        Ok(used)
    }
}

impl Supervisor {
    /// Takes the volumes away that go with the stack though others can share them, but not those that others use, or may.
    pub(super) fn remove_named_volumes(&mut self) -> Result<(), RemoteError> {
        let names = self.plan.as_ref().map(spec::named_volumes).unwrap_or_default();
        if names.is_empty() {
            return Ok(());
        }
        let turn = Turn::take(&self.runtime);
        let used =
            turn.as_ref().map_err(RemoteError::clone).and_then(|turn| turn.used_elsewhere(&self.runtime));
        let why_not = |name: &String| match &used {
            Ok(used) => used.get(name).map(|stack| format!("stack `{stack}`, which runs, uses it too")),
            Err(error) => Some(format!("others may use it: {error}")),
        };
        let mut doomed = Vec::new();
        for name in &names {
            let Some(why) = why_not(name) else {
                doomed.push(spec::shared_volume_directory(name));
                continue;
            };
            for id in self.waiting(|pending| matches!(pending, Pending::Down)) {
                self.notify(id, Notice::Warning(format!("volume `{name}` stays: {why}")));
            }
        }
        self.hub.remove(doomed)
    }
}

/// Whether a supervisor has the runtime directory, or something of its stack still runs.
fn runs(runtime: &Path) -> bool {
    let held = File::open(runtime.join(lock::NAME)).map(|file| file.try_lock_shared());
    matches!(held, Ok(Err(TryLockError::WouldBlock)))
}

/// Writes down which of them a stack uses. `runtime` is its runtime directory.
pub(super) fn keep(runtime: &Path, plan: &Plan) -> Result<(), RemoteError> {
    let mounts = plan.services.iter().flat_map(|service| &service.mounts);
    let shared = mounts.filter_map(|mount| match &mount.kind {
        MountKind::Volume { name, scope: Scope::Named | Scope::External, .. } => Some(name.as_str()),
        _ => None,
    });
    let shared: BTreeSet<&str> = shared.collect();
    let path = runtime.join(NAME);
    if shared.is_empty() && !path.exists() {
        return Ok(());
    }
    let text = serde_json::to_vec(&shared).map_err(io::Error::from)?;
    let _turn = Turn::take(runtime)?;
    // Who reads it has the turn.
    fs::write(&path, &text).context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_uses_a_volume() {
        let top = tempfile::tempdir().unwrap();
        let stack = |name: &str, volumes: &str| {
            let runtime = top.path().join(name);
            fs::create_dir(&runtime).unwrap();
            fs::write(runtime.join(NAME), volumes).unwrap();
            let held = File::create(runtime.join(lock::NAME)).unwrap();
            held.lock().unwrap();
            (runtime, held)
        };
        let (own, _held) = stack("own", r#"["mine"]"#);
        let (_, running) = stack("other", r#"["one","two"]"#);
        let (_, dead) = stack("dead", r#"["three"]"#);
        drop(dead);
        fs::write(top.path().join("file"), "").unwrap();
        let used = Turn::take(&own).unwrap().used_elsewhere(&own).unwrap();
        let other = |volume: &str| (volume.to_owned(), "other".to_owned());
        assert_eq!(used, [other("one"), other("two")].into());
        drop(running);
        assert!(Turn::take(&own).unwrap().used_elsewhere(&own).unwrap().is_empty());
    }
}
