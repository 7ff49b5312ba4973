//! Git repositories: how they are named, and `ADD` of one.
//!
//! This crate speaks no git, and starts no process: the [`Runner`](crate::Runner) fetches. A library that does
//! (gitoxide) would be some two hundred crates for one rare flag's sake, while whoever adds a repository has `git`.

use std::path::Path;

use crate::build::source::{Source, Wanted, refused};
use crate::build::{BoxError, Builder, item};
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::layer::LayerWriter;
use crate::scratch::{Scratch, unique};
use crate::view::View;

/// A git repository that is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitSource {
    /// Its address: `https://`, `http://`, `ssh://`, `git://` or `user@host:path`.
    pub remote: String,
    /// A branch, a tag, a full name of either (`refs/...`), or a commit; the repository's own choice where absent.
    pub reference: Option<String>,
    /// With the repositories that it has inside.
    pub submodules: bool,
    /// With its `.git`.
    pub keep_git_dir: bool,
}

/// A repository as an instruction or a build context names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Repository {
    /// As written, for messages.
    written: String,
    source: GitSource,
    /// Which directory of it is meant; empty is all of it.
    directory: String,
    /// What its commit must be, or begin with.
    checksum: Option<String>,
    /// The commit, once it is known.
    commit: String,
}

/// Whether an address is that of a repository rather than that of a file.
pub fn is_repository(source: &str) -> bool {
    let address = source.split(['#', '?']).next().unwrap_or_default();
    match address.split_once("://") {
        Some(("http" | "https", path)) => path.contains('/') && path.ends_with(".git"),
        Some((scheme, _)) => matches!(scheme, "ssh" | "git"),
        None => is_scp(address),
    }
}

/// `user@host:path`, as ssh's own tools write it.
fn is_scp(address: &str) -> bool {
    let fits = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let parts = address.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?)));
    parts.is_some_and(|(user, (host, path))| {
        fits(user, "-_")
            && !user.starts_with('-')
            && fits(host, "-.")
            && !host.starts_with('-')
            && !path.is_empty()
    })
}

/// Whether a text is all digits of a commit's name.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Repository {
    /// Reads `ADDRESS[?OPTION=VALUE&...][#REFERENCE[:DIRECTORY]]`.
    ///
    /// # Errors
    /// When an option is not known, or what should name a commit cannot.
    pub fn parse(text: &str, keep_git_dir: bool, checksum: Option<&str>) -> Result<Self> {
        let refuse = |problem: String| refused(text, problem, None);
        let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (remote, query) = address.split_once('?').unwrap_or((address, ""));
        let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut repository = Self {
            written: text.to_owned(),
            source: GitSource {
                remote: remote.to_owned(),
                reference: Some(reference.to_owned()).filter(|reference| !reference.is_empty()),
                submodules: true,
                keep_git_dir,
            },
            directory: directory.to_owned(),
            checksum: checksum.map(str::to_owned),
            commit: String::new(),
        };
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let flag = || match value {
                "" | "1" | "true" => Ok(true),
                "0" | "false" => Ok(false),
                _ => Err(refuse(format!("has `{option}`: it is true or false"))),
            };
            let source = &mut repository.source;
            match key {
                "ref" => source.reference = Some(value.to_owned()),
                "branch" => source.reference = Some(format!("refs/heads/{}", short(value, "refs/heads/"))),
                "tag" => source.reference = Some(format!("refs/tags/{}", short(value, "refs/tags/"))),
                "subdir" => repository.directory = value.to_owned(),
                "commit" | "checksum" => repository.checksum = Some(value.to_owned()),
                "submodules" => source.submodules = flag()?,
                "keep-git-dir" => source.keep_git_dir = flag()?,
                _ => return Err(refuse(format!("has the unknown option `{key}`"))),
            }
        }
        let checksum = repository.checksum.as_deref();
        let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if checksum.is_some_and(|checksum| checksum.len() < 7 || !is_hex(checksum)) {
            return Err(refuse(
                "has a checksum that is no commit's name, nor the first seven digits of one".to_owned(),
            ));
        }
        let source = &mut repository.source;
        if source.reference.is_none() {
            source.reference = repository.checksum.clone().filter(|checksum| is_commit(checksum));
        }
        let reference = source.reference.as_deref().unwrap_or("HEAD");
        let is_name = |c: char| c.is_alphanumeric() || "-_./+@=".contains(c);
        if reference.is_empty() || reference.starts_with('-') || !reference.chars().all(is_name) {
            return Err(refuse(format!("names `{reference}`, which is no branch, tag or commit")));
        }
        Ok(repository)
    }

    /// What is fetched.
    #[must_use]
    pub fn source(&self) -> &GitSource {
        &self.source
    }

    /// Which directory of it is meant; empty is all of it.
    #[must_use]
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// Finds out which commit is meant; `ask` knows it of a branch or a tag.
    ///
    /// # Errors
    /// When it cannot be found out, or is another than was promised.
    pub fn find_commit(
        &mut self,
        ask: impl FnOnce(&GitSource) -> std::result::Result<String, BoxError>,
    ) -> Result<&str> {
        let commit = match &self.source.reference {
            Some(reference) if is_commit(reference) => reference.clone(),
            _ => ask(&self.source).map_err(|cause| failed(&self.source, cause))?,
        };
        let refuse = |problem: String| Err(refused(&self.written, problem, None));
        if !is_commit(&commit) {
            return refuse(format!("has `{commit}`, which is no commit"));
        }
        match &self.checksum {
            Some(checksum) if !commit.starts_with(checksum.as_str()) => {
                refuse(format!("is at commit {commit}, but {checksum} was promised"))
            }
            _ => {
                self.commit = commit;
                Ok(&self.commit)
            }
        }
    }

    /// Adds all that the layer depends on.
    pub(super) fn key(&self, key: &mut Hasher) {
        let GitSource { submodules, keep_git_dir, .. } = self.source;
        key.field(format!("git {} {submodules} {keep_git_dir}", self.commit).as_bytes());
        key.field(self.directory.as_bytes());
        if keep_git_dir {
            // It stands there.
            key.field(self.source.remote.as_bytes());
        }
    }
}

fn short<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

fn failed(source: &GitSource, cause: BoxError) -> Error {
    Error::Git { remote: source.remote.clone(), source: cause }
}

impl Builder<'_> {
    /// Fetches a repository and writes its files.
    pub(super) fn write_repository(
        &mut self,
        repository: &Repository,
        target: &Path,
        scratch: &Scratch,
        writer: &LayerWriter,
        wanted: &Wanted,
    ) -> Result<()> {
        let dir = scratch.make_dir(&unique())?;
        let (source, commit) = (&repository.source, &repository.commit);
        let time = self.runner.git_fetch(source, commit, &dir).map_err(|cause| failed(source, cause))?;
        let view =
            View::open(&[dir]).map_err(|(path, cause)| Error::io("open the repository", path, cause))?;
        let files = Source { view: &view, ignore: None, image: false, allowance: None };
        let mut items = Vec::new();
        for (named, node) in files.find(&repository.directory)? {
            files.collect(&named, node, target, true, wanted, &mut items)?;
        }
        for item in &mut items {
            item.attributes.mtime = Some((time, 0));
            if wanted.mode.is_none() {
                item.attributes.mode = item::plain_mode(item);
            }
            item.write(Some(&view), writer, wanted)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_told_from_files() {
        for (text, is) in [
            ("https://example.org/a/b.git", true),
            ("https://example.org/a/b.git#v1:dir", true),
            ("http://example.org/b.git?ref=x", true),
            ("https://example.org/b.git/file", false),
            ("https://example.org/b", false),
            ("https://example.git", false),
            ("git@example.org:a/b", true),
            ("git@example.org:a/b.git#main", true),
            ("ssh://git@example.org/a", true),
            ("git://example.org/a", true),
            ("ftp://example.org/a.git", false),
            ("a@b", false),
            ("-o@b:c", false),
            ("dir/a@b:c", false),
            ("file.git", false),
        ] {
            assert_eq!(is_repository(text), is, "{text}");
        }
    }

    #[test]
    fn references_and_directories() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (text, reference, directory) in [
            ("https://e.org/b.git", None, ""),
            ("https://e.org/b.git#v1.0", Some("v1.0"), ""),
            ("https://e.org/b.git#:docs", None, "docs"),
            ("git@e.org:b#feature/x:a/b", Some("feature/x"), "a/b"),
            ("https://e.org/b.git?branch=x&subdir=d", Some("refs/heads/x"), "d"),
            ("https://e.org/b.git?tag=refs/tags/x", Some("refs/tags/x"), ""),
            (&format!("https://e.org/b.git?commit={commit}"), Some(commit), ""),
        ] {
            let repository = Repository::parse(text, false, None).unwrap();
            assert_eq!(repository.source.reference.as_deref(), reference, "{text}");
            assert_eq!(repository.directory, directory, "{text}");
            assert!(!repository.source.remote.contains(['?', '#']));
        }
        let repository =
            Repository::parse("https://e.org/b.git?submodules=0&keep-git-dir", false, None).unwrap();
        assert!(!repository.source.submodules && repository.source.keep_git_dir);
        for (text, checksum, problem) in [
            ("https://e.org/b.git#--upload-pack=x", None, "no branch, tag or commit"),
            ("https://e.org/b.git#a b", None, "no branch, tag or commit"),
            ("https://e.org/b.git?depth=1", None, "unknown option `depth`"),
            ("https://e.org/b.git?submodules=2", None, "true or false"),
            ("https://e.org/b.git", Some("abc"), "no commit's name"),
            ("https://e.org/b.git", Some("sha256:01234567"), "no commit's name"),
        ] {
            let error = Repository::parse(text, false, checksum).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
