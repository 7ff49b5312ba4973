//! Base images: which distribution a stack is built on, and where its root file system comes from.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use image::base::{BaseSources, Found};
use image::{BaseRequest, Digest, Image, Reference, Store};
use nix::sys::signal::Signal;

use super::Progress;
use super::scratch::Scratch;
use crate::paths::Paths;
use crate::plan::{BaseDockerfile, Build, BuildContext};
use crate::registry;
use crate::remote::{Context, RemoteError};

/// How long a package server may take to accept a connection.
const PROBE: Duration = Duration::from_secs(3);
/// How long a base may take to arrive.
const DOWNLOAD: Duration = Duration::from_secs(600);

/// The base that was chosen for a set of builds.
pub(super) struct Choice {
    /// `alpine`, `debian`, or empty where the file names none.
    base: String,
    /// Another base that could be tried.
    other: Option<String>,
}

impl Choice {
    fn new(base: &str, all: &[&str]) -> Self {
        let other = all.iter().find(|other| **other != base && !other.is_empty());
        Self { base: base.to_owned(), other: other.map(|other| (*other).to_owned()) }
    }

    pub(super) fn of<'a>(&self, build: &'a Build) -> Result<&'a BaseDockerfile, RemoteError> {
        let of_base = build.dockerfiles.iter().find(|dockerfile| dockerfile.base == self.base);
        of_base.or(build.dockerfiles.first()).ok_or_else(|| RemoteError::message("there is no Dockerfile"))
    }

    /// A failed build's error, with the other base as a way out.
    pub(super) fn failed(&self, service: &str, error: RemoteError) -> RemoteError {
        let error = match service {
            "" => error,
            _ => error.context(format!("build the image of service `{service}`")),
        };
        match &self.other {
            Some(other) => error.or_hint(format!("`--base {other}` builds on the other base")),
            None => error,
        }
    }
}

/// Chooses the first base whose packages can be reached, for all builds alike, and provides the images that the
/// Dockerfiles are `FROM`.
pub(super) fn choose(
    paths: &Paths,
    store: &Store,
    builds: &[(&str, &Build)],
    progress: &mut dyn FnMut(Progress),
) -> Result<Choice, RemoteError> {
    let mut bases: Vec<&str> = Vec::new();
    for dockerfile in builds.iter().flat_map(|(_, build)| &build.dockerfiles) {
        if !bases.contains(&dockerfile.base.as_str()) {
            bases.push(&dockerfile.base);
        }
    }
    // A choice once made is kept, without looking again at who can be reached.
    if let Some(kept) = earlier(store, builds, &bases)? {
        prepare(paths, store, builds, kept, false, progress)?;
        return Ok(Choice::new(kept, &bases));
    }
    let mut reasons = Vec::new();
    let mut last = None;
    for (index, base) in bases.iter().enumerate() {
        let final_one = index + 1 == bases.len();
        match prepare(paths, store, builds, base, !final_one, progress) {
            Ok(()) => {
                if !base.is_empty() && bases.len() > 1 {
                    let why =
                        if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
                    progress(Progress::Base(format!("{base}{why}")));
                }
                return Ok(Choice::new(base, &bases));
            }
            Err(error) => {
                reasons.push(format!("not {base}: {}", error.chain.last().map_or("", String::as_str)));
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| RemoteError::message("there is no Dockerfile")))
}

/// The base that the images in use were built on, where there are some and they agree.
fn earlier<'a>(
    store: &Store,
    builds: &[(&str, &Build)],
    bases: &[&'a str],
) -> Result<Option<&'a str>, RemoteError> {
    let mut found = None;
    let is_named = bases.iter().any(|base| !base.is_empty());
    for (_, build) in builds {
        if build.image.is_empty() || !is_named {
            continue;
        }
        let Some(used) = store.image(&super::reference(&build.image)?)? else { continue };
        for base in bases.iter().filter(|base| !base.is_empty()) {
            let on_base = store.image(&super::based_name(build, base)?)?;
            if on_base.is_some_and(|image| image.id == used.id) && *found.get_or_insert(*base) != *base {
                return Ok(None);
            }
        }
    }
    Ok(found)
}

/// Provides what the Dockerfiles of one base are `FROM`, and makes sure that its packages can be reached.
fn prepare(
    paths: &Paths,
    store: &Store,
    builds: &[(&str, &Build)],
    base: &str,
    probe: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), RemoteError> {
    let mut seen: Vec<Reference> = Vec::new();
    let mut again = true;
    while again {
        again = false;
        for (reference, pull) in needed(store, builds, base)? {
            if seen.contains(&reference) {
                continue;
            }
            let image = match store.image(&reference)? {
                Some(image) if !pull => image,
                _ => {
                    let wanted = Wanted { reference: reference.clone(), platform: None };
                    let image = provide(paths, &wanted, pull, progress)?;
                    // What it left for those that begin with it may need more.
                    again |= !image.config.config.on_build.is_empty();
                    image
                }
            };
            if probe {
                packages_in_reach(store, &image)?;
            }
            seen.push(reference);
        }
    }
    Ok(())
}

/// The images from outside that builds on a base need as far as is known by now, each once, and whether a newer one is
/// to be looked for.
fn needed(
    store: &Store,
    builds: &[(&str, &Build)],
    base: &str,
) -> Result<Vec<(Reference, bool)>, RemoteError> {
    let on_build = |reference: &Reference| {
        Ok(store.image(reference)?.map(|image| image.config.config.on_build).unwrap_or_default())
    };
    let mut needed: Vec<(Reference, bool)> = Vec::new();
    for (_, build) in builds {
        let Some(dockerfile) = build.dockerfiles.iter().find(|d| d.base == base) else { continue };
        let mut contexts = BTreeMap::new();
        for (name, context) in &build.contexts {
            let image = match context {
                BuildContext::Image(image) => Some(super::reference(image)?),
                BuildContext::Directory(_) | BuildContext::Repository(_) | BuildContext::Service(_) => None,
            };
            contexts.insert(name.clone(), image);
        }
        let request = BaseRequest {
            name: &dockerfile.path.display().to_string(),
            text: &super::check::text_of(build, dockerfile)?,
            args: &build.args,
            target: build.target.as_deref(),
            contexts: &contexts,
        };
        for reference in image::plan_bases(&request, &on_build)? {
            match needed.iter_mut().find(|(other, _)| *other == reference) {
                Some((_, pull)) => *pull |= build.pull,
                None => needed.push((reference, build.pull)),
            }
        }
    }
    Ok(needed)
}

/// Whether the first package repository of an Alpine image can be reached: a file, or a server that accepts a
/// connection.
fn packages_in_reach(store: &Store, image: &Image) -> Result<(), RemoteError> {
    let Some(list) = store.read_file(&image.layers, "/etc/apk/repositories", 1 << 16)? else { return Ok(()) };
    let list = String::from_utf8_lossy(&list).into_owned();
    let Some(first) = list.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#')) else {
        return Ok(());
    };
    let (scheme, rest) = match first.split_once("://") {
        Some(parts) => parts,
        None => return Ok(()),
    };
    let host = rest.split('/').next().unwrap_or(rest);
    let port = if scheme == "https" { 443 } else { 80 };
    let unreachable =
        |why: String| RemoteError::message(format!("packages of {host} are out of reach: {why}"));
    let addresses = (host, port).to_socket_addrs().map_err(|e| unreachable(e.to_string()))?;
    let mut why = "no address".to_owned();
    // All of them: a host without IPv6 gets such addresses all the same.
    for address in addresses {
        match TcpStream::connect_timeout(&address, PROBE) {
            Ok(_) => return Ok(()),
            Err(error) => why = error.to_string(),
        }
    }
    Err(unreachable(why))
}

/// An image that is to be had.
pub(super) struct Wanted<'a> {
    pub(super) reference: Reference,
    /// For another platform than this machine's.
    pub(super) platform: Option<&'a str>,
}

/// Brings a base image into the store; `again` though it may be there.
pub(super) fn provide(
    paths: &Paths,
    wanted: &Wanted<'_>,
    again: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Image, RemoteError> {
    let reference = &wanted.reference;
    let store = paths.store()?;
    let configured: Vec<PathBuf> = std::env::var_os("INCEPTION_BASE_DIR")
        .map(|list| std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect())
        .unwrap_or_default();
    let sources = BaseSources { store: (!again).then_some(&store), paths: &configured, offline: false };
    let name = reference.to_string();
    let found = match image::base::locate(reference, &sources)? {
        Some(found) => found,
        None => match pull(paths, wanted, progress) {
            Ok(image) => return Ok(image),
            Err(failed) => instead(reference, &sources, failed, progress)?,
        },
    };
    let mut fetching = |how: &str| progress(Progress::Fetching { image: name.clone(), how: how.to_owned() });
    match found {
        Found::InStore(image) => Ok(*image),
        Found::Tarball { path, sha256 } => {
            fetching(&format!("importing {}", path.display()));
            super::import(paths, reference, &path, sha256)
        }
        Found::Download { url, sha256_url } => {
            fetching(&format!("downloading {url}"));
            let scratch = Scratch::new("base")?;
            let file = scratch.path().join("base.tar.gz");
            let mut report = |done, total| progress(Progress::Bytes { image: name.clone(), done, total });
            let imported = image::base::download(&url, &sha256_url, &file, DOWNLOAD, &mut report)
                .map_err(RemoteError::from)
                .and_then(|sha256| super::import(paths, reference, &file, Some(sha256)));
            scratch.finish(imported)
        }
        Found::Debootstrap { suite } => {
            fetching("making it with mmdebstrap; this takes a minute or two");
            let scratch = Scratch::new("base")?;
            let file = scratch.path().join("base.tar");
            let mut line =
                |line: String| progress(Progress::Output { service: name.clone(), step: None, line });
            let imported = mmdebstrap(&suite, &file, &mut line)
                .and_then(|()| super::import(paths, reference, &file, None));
            scratch.finish(imported)
        }
        Found::NotFound { tried } => {
            let mut error = RemoteError::message(format!("find the image `{name}`"));
            for attempt in tried {
                error = error.caused_by(attempt);
            }
            Err(error.or_hint(
                "build it, or name a directory with root file system tarballs in INCEPTION_BASE_DIR",
            ))
        }
    }
}

/// Pulls an image from its registry.
pub(super) fn pull(
    paths: &Paths,
    wanted: &Wanted<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Image, registry::Failed> {
    let image = wanted.reference.to_string();
    let pulled = registry::pull(paths, &image, wanted.platform, &mut |event| {
        progress(Progress::Transfer { image: image.clone(), event });
    })?;
    let id = Digest::from_str(&pulled.id).map_err(RemoteError::from)?;
    let found = paths.store()?.image_by_id(&id).map_err(RemoteError::from)?;
    Ok(found.ok_or_else(|| RemoteError::message("the pulled image is gone"))?)
}

/// What the distribution itself has in place of an image whose registry cannot be reached. Whatever else a registry
/// says is the answer.
fn instead(
    reference: &Reference,
    sources: &BaseSources<'_>,
    failed: registry::Failed,
    progress: &mut dyn FnMut(Progress),
) -> Result<Found, RemoteError> {
    if !failed.unreachable {
        return Err(failed.error);
    }
    match image::base::distribution(reference, sources)? {
        found @ (Found::Download { .. } | Found::Debootstrap { .. }) => {
            let why = failed.error.chain.last().map_or("", String::as_str);
            progress(Progress::Warning(format!(
                "`{reference}` comes from the distribution itself: registry `{}` cannot be reached ({why})",
                reference.registry()
            )));
            Ok(found)
        }
        // Nobody has it, and the registry is the one that should.
        _ => {
            let hint = "look whether there is a network; without one, build it, or name a directory with root file \
                        system tarballs in INCEPTION_BASE_DIR";
            Err(RemoteError { hint: Some(hint.to_owned()), ..failed.error })
        }
    }
}

fn mmdebstrap(suite: &str, file: &Path, line: &mut dyn FnMut(String)) -> Result<(), RemoteError> {
    // As root it mounts where it stands, so it stands in namespaces that end with it, whatever happens to it or to
    // us; for an ordinary user it makes such namespaces itself, and cleans up when it is told to end.
    let root = rustix::process::geteuid().is_root();
    let mut command = Command::new(if root { "unshare" } else { "mmdebstrap" });
    let end = if root { Signal::SIGKILL } else { Signal::SIGTERM };
    if root {
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "mmdebstrap"]);
        // Its own files go where what a killed command left is found again.
        command.env("TMPDIR", file.parent().unwrap_or(Path::new("/tmp")));
    }
    let mode = if root { "--mode=root" } else { "--mode=unshare" };
    command.args(["--variant=minbase", mode, "--format=tar", suite]).arg(file).args(host_mirror(suite));
    sys::process::signal_when_orphaned(&mut command, end as i32);
    let missing = |error: RemoteError| {
        error.context("run mmdebstrap").or_hint(
            "install it (Debian, Ubuntu: `sudo apt-get install mmdebstrap`), or name a directory with a root \
             file system tarball in INCEPTION_BASE_DIR",
        )
    };
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(|error| missing(error.into()))?;
    let mut last = String::new();
    if let Some(stderr) = child.stderr.take() {
        for text in BufReader::new(stderr).lines() {
            last = text.context(|| "read the output of mmdebstrap".into())?;
            line(last.clone());
        }
    }
    let status = child.wait().context(|| "wait for mmdebstrap".into())?;
    if status.success() {
        return Ok(());
    }
    if status.code() == Some(127) {
        return Err(missing(RemoteError::message(last)));
    }
    Err(RemoteError::message(format!("make a Debian `{suite}` root file system"))
        .caused_by(format!("mmdebstrap ended with {status}: {last}")))
}

/// On a Debian host, the mirror that it uses itself.
fn host_mirror(suite: &str) -> Option<String> {
    let release = std::fs::read_to_string("/etc/os-release").ok()?;
    release.lines().find(|line| *line == "ID=debian")?;
    let lists = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    let mut files: Vec<PathBuf> = lists.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.push("/etc/apt/sources.list".into());
    files.sort();
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    let mirror = texts.flat_map(|text| text.lines().filter_map(mirror_of).collect::<Vec<_>>()).next()?;
    Some(format!("deb {mirror} {suite} main"))
}

/// The mirror of one line of an apt source list, in either format; not the security archive.
fn mirror_of(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    if !matches!(words.next()?, "URIs:" | "deb") {
        return None;
    }
    words.find(|word| word.starts_with("http")).filter(|uri| !uri.contains("security")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_in_both_formats() {
        let some = |uri: &str| Some(uri.to_owned());
        assert_eq!(mirror_of("URIs: http://mirror.example/debian"), some("http://mirror.example/debian"));
        assert_eq!(
            mirror_of("deb [signed-by=/x] http://m.example/debian bookworm main"),
            some("http://m.example/debian")
        );
        assert_eq!(mirror_of("deb http://m.example/debian-security bookworm-security main"), None);
        assert_eq!(mirror_of("# deb http://m.example/debian bookworm main"), None);
    }
}
