//! `ADD` of a git repository: by the user's own `git`, which has their keys and their settings.

use std::path::Path;
use std::process::{Command, Stdio};

use image::GitSource;
use nix::sys::signal::Signal;

use crate::remote::{Context, RemoteError};

/// What a repository may not decide: which programs run, and which other places are read.
const SETTINGS: [&str; 9] = [
    "protocol.allow=never",
    "protocol.http.allow=always",
    "protocol.https.allow=always",
    "protocol.ssh.allow=always",
    "protocol.git.allow=always",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    // A server that has gone silent is given up: fewer than so many bytes a second, for so many seconds.
    "http.lowSpeedLimit=100",
    "http.lowSpeedTime=60",
];

/// Whose keys git has: those of the user who runs it, where the stack file names a repository or lends them (`ssh` of
/// `build`). Who wrote a Dockerfile could send what is in the user's own repositories anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Users,
    None,
}

/// What takes them away.
const WITHOUT_KEYS: [&str; 2] = ["protocol.ssh.allow=never", "credential.helper="];

/// Nobody is asked for a password, and a silent peer is given up.
const SSH: &str = "ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=30";

/// Most lines of an error of git's that are shown.
const SHOWN_LINES: usize = 5;

/// The commit that a repository's branch or tag means now.
pub(super) fn commit(source: &GitSource, keys: Keys) -> Result<String, RemoteError> {
    let name = source.reference.as_deref().unwrap_or("HEAD");
    let by_ssh = source.remote.starts_with("ssh://") || !source.remote.contains("://");
    if by_ssh && keys == Keys::None {
        let why = "it is fetched with your SSH keys, and the stack file does not lend them: `ssh` of `build` would have \
                   to name `default`";
        return Err(RemoteError::message(why));
    }
    let refs = git(None, keys, &["ls-remote", "--", &source.remote])?;
    choose(&refs, name).ok_or_else(|| {
        RemoteError::message(format!(
            "it has no branch or tag `{name}`, and a commit is named with all of its digits"
        ))
    })
}

/// What a name means among the lines of `git ls-remote`: a branch before a tag, as BuildKit has it; of a tag, what it
/// was put on.
fn choose(refs: &str, name: &str) -> Option<String> {
    let found = |wanted: &str| {
        refs.lines()
            .filter_map(|line| line.split_once('\t'))
            .find(|(_, reference)| *reference == wanted)
            .map(|(commit, _)| commit.to_owned())
    };
    let names = [format!("{name}^{{}}"), name.to_owned()];
    let heads = [format!("refs/heads/{name}")];
    let tags = [format!("refs/tags/{name}^{{}}"), format!("refs/tags/{name}")];
    names.iter().chain(&heads).chain(&tags).find_map(|name| found(name))
}

/// Puts the files of a commit into an empty directory. Returns the commit's time, seconds since 1970.
pub(super) fn fetch(
    source: &GitSource,
    commit: &str,
    directory: &Path,
    keys: Keys,
) -> Result<i64, RemoteError> {
    let git = |arguments: &[&str]| git(Some(directory), keys, arguments);
    git(&["init", "--quiet", "--template="])?;
    git(&["remote", "add", "--", "origin", &source.remote])?;
    let shallow = git(&["fetch", "--quiet", "--no-tags", "--depth=1", "origin", commit]);
    if shallow.is_err() {
        // Not every server gives single commits; its error is that of all of it, if that fails, too.
        git(&["fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*"])?;
    }
    git(&["checkout", "--quiet", "--detach", commit])?;
    if source.submodules {
        git(&["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"])?;
    }
    let time = git(&["log", "--max-count=1", "--format=%ct"])?;
    if !source.keep_git_dir {
        let own = directory.join(".git");
        std::fs::remove_dir_all(&own).context(|| format!("remove {}", own.display()))?;
    }
    time.trim()
        .parse()
        .map_err(|_bad| RemoteError::message(format!("git says that a commit is of `{}`", time.trim())))
}

/// Runs git in a directory, or away from all repositories, and returns what it wrote.
fn git(directory: Option<&Path>, keys: Keys, arguments: &[&str]) -> Result<String, RemoteError> {
    let mut command = Command::new("git");
    // Not where the user is: the settings of a repository there, which may have come with an archive, name programs.
    command.arg("-C").arg(directory.unwrap_or(Path::new("/")));
    for setting in SETTINGS {
        command.args(["-c", setting]);
    }
    if keys == Keys::None {
        for setting in WITHOUT_KEYS {
            command.args(["-c", setting]);
        }
        // What editors set to answer for the user.
        command.env("GIT_ASKPASS", "true");
    }
    command.args(arguments);
    command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_SSH_COMMAND", SSH);
    sys::process::signal_when_orphaned(&mut command, Signal::SIGKILL as i32);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| {
        RemoteError::from(error).context("run `git`, which has to be installed for ADD of a repository")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let said = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("; ");
    Err(RemoteError::message(format!("git {} ended with {}", arguments[0], output.status)).caused_by(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_branches_before_tags() {
        let refs = "1\tHEAD\n2\trefs/heads/main\n3\trefs/heads/both\n4\trefs/tags/both\n5\trefs/tags/v1\n\
                    6\trefs/tags/v1^{}\n7\trefs/tags/light\n";
        for (name, commit) in [
            ("HEAD", Some("1")),
            ("main", Some("2")),
            ("both", Some("3")),
            ("refs/tags/both", Some("4")),
            ("v1", Some("6")),
            ("refs/tags/v1", Some("6")),
            ("light", Some("7")),
            ("none", None),
            ("mai", None),
        ] {
            assert_eq!(choose(refs, name).as_deref(), commit, "{name}");
        }
    }
}
