//! Build contexts in git repositories: fetched first, so that all that follows sees directories of this machine.

use std::path::{Path, PathBuf};

use image::Repository;
use rustix::fs::Mode;

use super::Progress;
use super::git::{self, Keys};
use super::scratch::Scratch;
use crate::plan::{Build, BuildContext};
use crate::remote::{Context, RemoteError};

/// The build argument with which a context keeps its `.git`, as BuildKit has it.
const KEEP_GIT_DIR: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";
/// The usual one: the modes of files in an image are not to depend on who builds it.
const UMASK: u32 = 0o022;

/// The git repository that is meant where a build context is named; none where it is something of this machine, an
/// image or a service.
///
/// # Errors
/// What is wrong with the address.
pub fn repository(text: &str) -> Result<Option<String>, String> {
    let address = match text.strip_prefix("github.com/") {
        // As Docker reads it.
        Some(path) => format!("https://github.com/{path}"),
        None if image::is_repository(text) => text.to_owned(),
        None if text.contains("://") => return Err("is not the address of a git repository".to_owned()),
        None => return Ok(None),
    };
    match Repository::parse(&address, false, None) {
        Ok(_) => Ok(Some(address)),
        Err(error) => Err(error.to_string()),
    }
}

/// Does something with builds whose contexts are all directories of this machine; what was fetched for it is gone
/// afterwards.
pub(super) fn with_local<T>(
    builds: &[(&str, &Build)],
    progress: &mut dyn FnMut(Progress),
    act: impl FnOnce(&[(&str, &Build)], &mut dyn FnMut(Progress)) -> Result<T, RemoteError>,
) -> Result<T, RemoteError> {
    if builds.iter().all(|(_, build)| is_local(build)) {
        return act(builds, progress);
    }
    let scratch = Scratch::new("context")?;
    let mut checkouts = Checkouts { top: scratch.path(), found: Vec::new() };
    let local: Result<Vec<Build>, RemoteError> =
        builds.iter().map(|(_, build)| checkouts.local(build, progress)).collect();
    let outcome = local.and_then(|local| {
        let builds: Vec<(&str, &Build)> =
            builds.iter().zip(&local).map(|((service, _), build)| (*service, build)).collect();
        act(&builds, progress)
    });
    scratch.finish(outcome)
}

fn is_local(build: &Build) -> bool {
    let is_remote = |context: &BuildContext| matches!(context, BuildContext::Repository(_));
    build.repository.is_none() && !build.contexts.values().any(is_remote)
}

/// What was fetched so far.
struct Checkouts<'a> {
    /// The directory of all of them.
    top: &'a Path,
    /// An address, whether `.git` is kept, and the directory.
    found: Vec<(String, bool, PathBuf)>,
}

impl Checkouts<'_> {
    /// The same build from directories.
    fn local(&mut self, build: &Build, progress: &mut dyn FnMut(Progress)) -> Result<Build, RemoteError> {
        let keep = build.args.get(KEEP_GIT_DIR).is_some_and(|value| matches!(value.as_str(), "1" | "true"));
        let mut local = build.clone();
        if let Some(address) = local.repository.take() {
            let directory = self.directory(&address, keep, progress)?;
            local.context = within(&directory, &build.context, &address)?;
            for dockerfile in local.dockerfiles.iter_mut().filter(|_| build.inline.is_none()) {
                dockerfile.path = within(&directory, &dockerfile.path, &address)?;
            }
        }
        for context in local.contexts.values_mut() {
            if let BuildContext::Repository(address) = context {
                *context = BuildContext::Directory(self.directory(address, keep, progress)?);
            }
        }
        Ok(local)
    }

    /// What an address means, fetched.
    fn directory(
        &mut self,
        address: &str,
        keep: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, RemoteError> {
        if let Some((_, _, directory)) =
            self.found.iter().find(|(a, k, _)| (a.as_str(), *k) == (address, keep))
        {
            return Ok(directory.clone());
        }
        progress(Progress::Fetching {
            image: address.to_owned(),
            how: "fetching the build context".to_owned(),
        });
        let root = self.top.join(self.found.len().to_string());
        let fetched =
            fetch(address, keep, &root).context(|| format!("fetch the build context `{address}`"))?;
        self.found.push((address.to_owned(), keep, fetched.clone()));
        Ok(fetched)
    }
}

fn fetch(address: &str, keep: bool, root: &Path) -> Result<PathBuf, RemoteError> {
    let mut repository = Repository::parse(address, keep, None)?;
    let commit = repository
        .find_commit(|source| git::commit(source, Keys::Users).map_err(|error| error.to_string().into()))?;
    let commit = commit.to_owned();
    std::fs::create_dir(root).context(|| format!("create {}", root.display()))?;
    let before = rustix::process::umask(Mode::from_raw_mode(UMASK));
    let fetched = git::fetch(repository.source(), &commit, root, Keys::Users);
    rustix::process::umask(before);
    fetched?;
    within(root, Path::new(repository.directory().trim_start_matches('/')), address)
}

/// A path in a repository. What is in it was written by others: no link leads out of it.
fn within(root: &Path, path: &Path, address: &str) -> Result<PathBuf, RemoteError> {
    let problem = |what: &str| RemoteError::message(format!("`{}` of `{address}` {what}", path.display()));
    let found = match root.join(path).canonicalize() {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(problem("does not exist")),
        Err(error) => return Err(RemoteError::from(error).context(problem("cannot be found").to_string())),
    };
    let root = root.canonicalize().context(|| format!("find {}", root.display()))?;
    if found.starts_with(root) { Ok(found) } else { Err(problem("leads out of it")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_of_a_repository_leads_out_of_it() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/Dockerfile"), "FROM scratch\n").unwrap();
        for (link, target) in [("out", "/etc"), ("up", ".."), ("fine", "sub")] {
            std::os::unix::fs::symlink(target, root.join(link)).unwrap();
        }
        let find =
            |path: &str| within(&root, Path::new(path), "git://e.org/a").map_err(|error| error.to_string());
        for path in ["", "sub", "sub/Dockerfile", "fine/Dockerfile", "sub/../fine"] {
            assert!(find(path).is_ok(), "{path}");
        }
        for (path, problem) in [
            ("out", "leads out"),
            ("out/passwd", "leads out"),
            ("up", "leads out"),
            ("..", "leads out"),
            ("/etc/passwd", "leads out"),
            ("missing", "`missing` of `git://e.org/a` does not exist"),
        ] {
            let error = find(path).unwrap_err();
            assert!(error.contains(problem), "{path}: {error}");
        }
    }
}
