//! The user's credentials: Docker's and Podman's files, and the helpers that they name.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use image::registry::{AuthFile, CredentialSource, Credentials};

use crate::remote::{Context, RemoteError};

/// Longest that a helper may take: it may have to ask the user.
const HELPER: Duration = Duration::from_secs(60);
/// What a helper says when it has nothing (`docker-credential-helpers`, `credentials/error.go`).
const NOTHING: &str = "credentials not found";

/// Where credentials went, or came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// This file.
    File(PathBuf),
    /// `docker-credential-NAME`.
    Helper(String),
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Docker's file: read first, and the one that is written.
fn docker_file() -> Result<PathBuf, RemoteError> {
    let directory = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
    let directory = directory.ok_or_else(|| {
        RemoteError::message("find the file of credentials").or_hint("set HOME or DOCKER_CONFIG")
    })?;
    Ok(directory.join("config.json"))
}

fn podman_files() -> impl Iterator<Item = PathBuf> {
    let runtime = variable("XDG_RUNTIME_DIR");
    let config = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
    [variable("REGISTRY_AUTH_FILE"), runtime.map(in_containers), config.map(in_containers)]
        .into_iter()
        .flatten()
}

fn in_containers(directory: PathBuf) -> PathBuf {
    directory.join("containers/auth.json")
}

fn read(path: &Path) -> Result<Option<AuthFile>, RemoteError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RemoteError::from(error).context(format!("read {}", path.display()))),
    };
    let file = AuthFile::parse(&text);
    file.map(Some)
        .map_err(|error| RemoteError::message(error.to_string()).context(format!("read {}", path.display())))
}

/// The credentials of a registry, from the first file that knows some.
pub(super) fn find(registry: &str) -> Result<Option<Credentials>, RemoteError> {
    for path in docker_file().into_iter().chain(podman_files()) {
        let Some(file) = read(&path)? else { continue };
        let source = file
            .find(registry)
            .map_err(|problem| RemoteError::message(problem).context(format!("read {}", path.display())))?;
        let found = match source {
            None => None,
            Some(CredentialSource::Inline(credentials)) => Some(credentials),
            Some(CredentialSource::Helper { name, key }) => ask(&name, &key)?,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Checks credentials with the registry and keeps them where Docker would: with the helper that its file names, or in
/// the file itself.
///
/// # Errors
/// When the registry does not take them, or they cannot be written.
pub fn log_in(registry: &str, credentials: &Credentials) -> Result<Kept, RemoteError> {
    super::check(registry, credentials)?;
    let path = docker_file()?;
    let mut file = read(&path)?.unwrap_or_default();
    if let Some((name, key)) = file.helper_for(registry) {
        let (user, secret) = match credentials {
            Credentials::Password { user, password } => (user.as_str(), password.as_str()),
            Credentials::IdentityToken(token) => ("<token>", token.as_str()),
        };
        let entry = serde_json::json!({ "ServerURL": key, "Username": user, "Secret": secret });
        helper(&name, "store", &entry.to_string())?;
        return Ok(Kept::Helper(name));
    }
    file.set(registry, credentials);
    write(&path, &file)?;
    Ok(Kept::File(path))
}

/// Forgets the credentials of a registry; says where they were.
///
/// # Errors
/// When a file cannot be read or written, or a helper fails.
pub fn log_out(registry: &str) -> Result<Vec<Kept>, RemoteError> {
    let mut gone = Vec::new();
    for path in docker_file().into_iter().chain(podman_files()) {
        let Some(mut file) = read(&path)? else { continue };
        if let Some((name, key)) = file.helper_for(registry)
            && ask(&name, &key)?.is_some()
        {
            helper(&name, "erase", &key)?;
            gone.push(Kept::Helper(name));
        }
        if file.remove(registry) {
            write(&path, &file)?;
            gone.push(Kept::File(path));
        }
    }
    Ok(gone)
}

/// Writes the file as a whole, for its owner alone.
fn write(path: &Path, file: &AuthFile) -> Result<(), RemoteError> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    // What stands there may be a link to where the user keeps such files.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = target.parent().unwrap_or(Path::new("/"));
    let name = format!(".inception-run-{}", std::process::id());
    let temporary = directory.join(name);
    let write = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        new.write_all(file.to_text().as_bytes())?;
        new.sync_all()?;
        fs::rename(&temporary, &target)
    };
    write().map_err(|error| {
        // It may not have come so far that there is one.
        fs::remove_file(&temporary).ok();
        RemoteError::from(error).context(format!("write {}", path.display()))
    })
}

/// What a helper knows of a registry.
fn ask(name: &str, key: &str) -> Result<Option<Credentials>, RemoteError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let (success, said) = run(name, "get", key)?;
    if !success {
        return if said.contains(NOTHING) { Ok(None) } else { Err(refused(name, "get", &said)) };
    }
    let answer: Answer = serde_json::from_str(&said)
        // Its answer may hold a secret: what is wrong with it is not shown.
        .map_err(|_| {
            RemoteError::message(format!("docker-credential-{name} gave an answer that cannot be read"))
        })?;
    Ok(Some(Credentials::from_helper(answer.username, answer.secret)))
}

fn helper(name: &str, action: &str, input: &str) -> Result<(), RemoteError> {
    match run(name, action, input)? {
        (true, _) => Ok(()),
        (false, said) => Err(refused(name, action, &said)),
    }
}

fn refused(name: &str, action: &str, said: &str) -> RemoteError {
    let said = if said.is_empty() { "it failed" } else { said };
    RemoteError::message(said).context(format!("run docker-credential-{name} {action}"))
}

/// Runs a helper: whether it succeeded, and what it said.
fn run(name: &str, action: &str, input: &str) -> Result<(bool, String), RemoteError> {
    let program = format!("docker-credential-{name}");
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.chars().all(fine) {
        return Err(RemoteError::message(format!("`{name}` is no name of a credential helper")));
    }
    let context = || format!("run {program} {action}");
    let mut command = Command::new(&program);
    command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context(context)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it says why by its status.
        stdin.write_all(input.as_bytes()).ok();
    }
    // What it says fits into a pipe: it need not be read before its end.
    let deadline = Instant::now() + HELPER;
    let Some(status) = sys::process::wait_until(&mut child, deadline).context(context)? else {
        child.kill().and_then(|()| child.wait()).context(context)?;
        let text = format!("wait for {program}: it did not end within {} seconds", HELPER.as_secs());
        return Err(RemoteError::message(text));
    };
    let said = child.stdout.take().map_or_else(|| Ok(String::new()), what_is_there).context(context)?;
    Ok((status.success(), said.trim().to_owned()))
}

/// What was written to a pipe, and not its end, which a process that a helper left behind may keep from coming.
fn what_is_there(mut pipe: ChildStdout) -> io::Result<String> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    // The usual size of a pipe (pipe(7)): a read takes all of it.
    let mut said = vec![0; 64 * 1024];
    let length = match pipe.read(&mut said) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        read => read?,
    };
    said.truncate(length);
    String::from_utf8(said).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
