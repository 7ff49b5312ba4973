//! Hooks that run in the runtime's namespaces.

use init::entry::Hook;
use oci_spec::runtime::Hook as Config;
use serde::Serialize;

use super::error::Error;
use super::state::{Record, Status};

/// `hooks` of the configuration in the form that is carried out; they have been checked.
pub(super) fn resolve(hooks: &Option<Vec<Config>>) -> Vec<Hook> {
    hooks
        .iter()
        .flatten()
        .map(|hook| Hook {
            path: hook.path().clone(),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().as_ref().map(|env| {
                env.iter()
                    .map(|variable| {
                        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
                        (name.to_owned(), value.to_owned())
                    })
                    .collect()
            }),
            timeout: hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()),
        })
        .collect()
}

/// The state as the specification's `runtime.md` has it, and as hooks read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: Status,
    pid: i32,
    bundle: &'a std::path::Path,
    annotations: &'a std::collections::BTreeMap<String, String>,
}

/// What a hook reads.
pub(super) fn state(record: &Record, status: Status) -> String {
    let state = State {
        oci_version: &record.oci_version,
        id: &record.id,
        status,
        pid: if status == Status::Stopped { 0 } else { record.pid },
        bundle: &record.bundle,
        annotations: &record.annotations,
    };
    // Strings and numbers only: there is nothing that could not be written.
    serde_json::to_string(&state).unwrap_or_default()
}

/// Runs all in order; the first failure ends it.
pub(super) fn run(kind: &'static str, hooks: &[Hook], state: &str) -> Result<(), Error> {
    for hook in hooks {
        init::hook::run(hook, state).map_err(|reason| Error::Hook {
            kind,
            path: hook.path.clone(),
            reason,
        })?;
    }
    Ok(())
}
