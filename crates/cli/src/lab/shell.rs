//! Commands of a page, run as the reader would run them: by a shell, in the lab's directory, with this program found
//! under its name.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use stack::RemoteError;

use crate::output::Failure;

/// For one check. Most take milliseconds; one does what a limited service does slowly.
const CHECK_DEADLINE: Duration = Duration::from_secs(60);

/// A shell that will read `script`, in a process group of its own.
pub(super) fn shell(script: &Path, directory: &Path) -> Result<Command, Failure> {
    let mut command = Command::new("sh");
    command.arg(script).current_dir(directory).process_group(0).stdin(Stdio::null()).env("PATH", path()?);
    Ok(command)
}

/// The path with the directory of this program in front.
fn path() -> Result<std::ffi::OsString, Failure> {
    let program = std::env::current_exe().map_err(Failure::system("find this program"))?;
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    // Where `ip` and others are is in few ordinary users' path.
    let places = program.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&inherited));
    let places = places.chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(places)
        .map_err(|error| Failure::from(RemoteError::message(format!("make a PATH: {error}"))))
}

/// Whether the commands, of which the first that fails ends them, succeed.
pub(super) fn succeeds(commands: &str, directory: &Path) -> Result<bool, Failure> {
    let mut command = Command::new("sh");
    command.args(["-e", "-c", commands]).current_dir(directory).process_group(0).env("PATH", path()?);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(Failure::system("run `sh`"))?;
    Ok(wait(&mut child, CHECK_DEADLINE)?.is_some_and(|status| status.success()))
}

/// Waits for the end; whatever takes longer than the deadline is killed with its process group.
pub(super) fn wait(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>, Failure> {
    let waiting = Failure::system("wait for `sh`");
    let ended = sys::process::wait_until(child, Instant::now() + deadline).map_err(waiting)?;
    if ended.is_none() {
        kill_process_group(Pid::from_child(child), Signal::KILL)
            .map_err(Failure::system("kill commands that take too long"))?;
        child.wait().map_err(Failure::system("wait for `sh`"))?;
    }
    Ok(ended)
}
