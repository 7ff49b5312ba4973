//! The process that `exec` starts.

use std::io::Read;
use std::path::Path;

use container::oci::Runtime;
use oci_spec::runtime::{Capability, LinuxCapabilities, Process, User};
use serde::Deserialize;

use super::args;
use crate::output::Failure;

/// A description of a process has no more bytes.
const MAX_SIZE: u64 = 16 << 20;

/// The container and the process that `exec` is asked for.
///
/// # Errors
/// When the description is none, contradicts itself, or asks for what is not supported.
pub(super) fn described(runtime: &Runtime, arguments: &args::Exec) -> Result<(String, Process), Failure> {
    let (id, words) = arguments.words.split_first().ok_or_else(no_program)?;
    if let Some(cgroup) = &arguments.cgroup
        && !matches!(cgroup.as_str(), "" | "/")
    {
        return Err(Failure::usage(
            format!("--cgroup {cgroup}"),
            "a process is started in the container's own cgroup only",
        ));
    }
    let mut process = match &arguments.process {
        Some(_) if !words.is_empty() => {
            return Err(Failure::usage("--process and a program", "the file has the program in `args`"));
        }
        Some(path) => read(path)?,
        None if words.is_empty() => return Err(no_program()),
        None => {
            let mut process = runtime.process_defaults(id)?;
            process.set_args(Some(words.to_vec())).set_terminal(None).set_console_size(None);
            change(&mut process, arguments)?;
            process
        }
    };
    if arguments.tty {
        process.set_terminal(Some(true));
    }
    Ok((id.clone(), process))
}

/// Gives the process's terminal the size of ours before it looks.
pub(super) fn size_as_ours(process: &mut Process) {
    // Ours may be no terminal: then there is no size to have.
    if let Ok(ours) = rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
        let (rows, columns) = (u64::from(ours.ws_row), u64::from(ours.ws_col));
        let size = oci_spec::runtime::BoxBuilder::default().height(rows).width(columns).build();
        process.set_console_size(size.ok());
    }
}

fn no_program() -> Failure {
    Failure::usage("no program to run", "write it after the container, or use --process")
}

fn read(path: &Path) -> Result<Process, Failure> {
    let operation = format!("read the process from {}", path.display());
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text))
        .map_err(Failure::system(&operation))?;
    container::oci::parse_process(&text).map_err(Failure::system(&operation))
}

/// Changes what the options name; all else stays as the container's own process has it.
fn change(process: &mut Process, arguments: &args::Exec) -> Result<(), Failure> {
    if let Some(cwd) = &arguments.cwd {
        process.set_cwd(cwd.clone());
    }
    if !arguments.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        // The last of one name counts.
        for variable in &arguments.env {
            let name = variable.split_once('=').map_or(variable.as_str(), |(name, _)| name);
            env.retain(|other| other.split_once('=').map_or(other.as_str(), |(other, _)| other) != name);
            env.push(variable.clone());
        }
        process.set_env(Some(env));
    }
    if let Some((uid, gid)) = arguments.user {
        let mut user = User::default();
        user.set_uid(uid).set_gid(gid.unwrap_or(0)).set_umask(process.user().umask());
        process.set_user(user);
    }
    if !arguments.additional_gids.is_empty() {
        let mut groups = process.user().additional_gids().clone().unwrap_or_default();
        groups.extend(&arguments.additional_gids);
        process.user_mut().set_additional_gids(Some(groups));
    }
    if !arguments.cap.is_empty() {
        let sets = process.capabilities().clone();
        let root = process.user().uid() == 0;
        process.set_capabilities(Some(with_capabilities(sets, &arguments.cap, root)));
    }
    if arguments.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(profile) = &arguments.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &arguments.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    Ok(())
}

/// Adds capabilities to the sets. Root has what is permitted; who is not root keeps over execve(2) what is ambient
/// only, and a capability must be inheritable to be that (capabilities(7)). A name that nobody knows is told and left
/// out, as in config.json.
fn with_capabilities(sets: Option<LinuxCapabilities>, names: &[String], root: bool) -> LinuxCapabilities {
    let mut added = Vec::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        match serde_json::from_value::<Capability>(full.into()) {
            Ok(known) => added.push(known),
            Err(_) => tracing::warn!("there is no capability `{name}`: nobody can have it"),
        }
    }
    let mut sets = sets.unwrap_or_else(|| {
        let mut none = LinuxCapabilities::default();
        none.set_bounding(None)
            .set_effective(None)
            .set_inheritable(None)
            .set_permitted(None)
            .set_ambient(None);
        none
    });
    let with = |set: &Option<oci_spec::runtime::Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(added.iter().copied());
        Some(set)
    };
    let (bounding, effective, permitted) =
        (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    let (inheritable, ambient) = (with(sets.inheritable()), with(sets.ambient()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    if !root {
        sets.set_inheritable(inheritable).set_ambient(ambient);
    }
    sets
}

/// Whether the process of this `config.json` wants a terminal. What is wrong with the file is told by `create`.
pub(super) fn wants_terminal(config: &Path) -> bool {
    #[derive(Deserialize)]
    struct Config {
        process: Option<Wish>,
    }
    #[derive(Deserialize)]
    struct Wish {
        terminal: Option<bool>,
    }
    let config = std::fs::read(config).ok();
    let config: Option<Config> = config.and_then(|text| serde_json::from_slice(&text).ok());
    config.and_then(|config| config.process?.terminal).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(words: &[&str]) -> args::Exec {
        let words = ["inception-oci", "exec"].iter().chain(words).map(Into::into).collect();
        let Ok(args::Parsed::Do(_, command)) = args::parse(words) else { panic!() };
        let args::Command::Exec(exec) = *command else { panic!() };
        exec
    }

    #[test]
    fn options_change_what_they_name() {
        let mut process: Process = serde_json::from_value(serde_json::json!({
            "user": {"uid": 5, "gid": 6, "umask": 18, "additionalGids": [7]},
            "env": ["A=1", "B=2"],
            "cwd": "/srv",
            "capabilities": {"bounding": ["CAP_KILL"]},
        }))
        .unwrap();
        change(&mut process, &exec(&["-e", "A=3", "-e", "C=", "-g", "8", "--cap", "sys_admin", "c", "ls"]))
            .unwrap();
        let value = serde_json::to_value(&process).unwrap();
        assert_eq!(value["env"], serde_json::json!(["B=2", "A=3", "C="]));
        assert_eq!(
            value["user"],
            serde_json::json!({"uid": 5, "gid": 6, "umask": 18, "additionalGids": [7, 8]})
        );
        assert_eq!(value["cwd"], "/srv");
        let bounding = value["capabilities"]["bounding"].as_array().unwrap();
        assert!(bounding.contains(&"CAP_KILL".into()) && bounding.contains(&"CAP_SYS_ADMIN".into()));
        assert_eq!(value["capabilities"]["effective"], serde_json::json!(["CAP_SYS_ADMIN"]));
        change(&mut process, &exec(&["-u", "1", "c", "ls"])).unwrap();
        let value = serde_json::to_value(&process).unwrap();
        assert_eq!(value["user"], serde_json::json!({"uid": 1, "gid": 0, "umask": 18}));
        let before = process.capabilities().clone();
        change(&mut process, &exec(&["--cap", "CAP_NONSENSE", "c", "ls"])).unwrap();
        assert_eq!(*process.capabilities(), before);
    }
}
