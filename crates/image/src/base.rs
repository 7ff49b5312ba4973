//! Where the base of an image is found: the store, a file of the user's, its registry; and where that cannot be
//! reached, Alpine's own server or a Debian bootstrap.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::archive;
use crate::config::{Image, architecture};
use crate::digest::Hasher;
use crate::error::{Error, Result, with_causes};
use crate::reference::Reference;
use crate::scratch;
use crate::store::Store;

/// Alpine's own server.
const ALPINE: &str = "https://dl-cdn.alpinelinux.org/alpine";
/// Longest a small file may take to arrive.
const SMALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest list or checksum file.
const SMALL_BYTES: u64 = 1 << 20;
/// Largest base: Alpine's have 3 MB, Debian's 50.
const BASE_BYTES: u64 = 4 << 30;

/// Where to look for bases, beyond the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct BaseSources<'a> {
    /// The local store, asked first.
    pub store: Option<&'a Store>,
    /// Tarballs, or directories that hold them: flat, or as Alpine's mirrors are laid out
    /// (`INCEPTION_BASE_DIR` and the configuration).
    pub paths: &'a [PathBuf],
    /// Ask no server.
    pub offline: bool,
}

/// Where a base was found.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// In the store: nothing to do.
    InStore(Box<Image>),
    /// In a file, to be handed to [`Store::import_tarball`].
    Tarball {
        /// The file.
        path: PathBuf,
        /// Hexadecimal SHA-256 from `SHA256SUMS` or `.sha256` beside it.
        sha256: Option<String>,
    },
    /// On a server; [`download`] fetches and checks it.
    Download {
        /// The tarball.
        url: String,
        /// Its checksum's file.
        sha256_url: String,
    },
    /// To be made from Debian's packages.
    Debootstrap {
        /// Debian's name of the release: `bookworm`.
        suite: String,
    },
    /// Nowhere.
    NotFound {
        /// Where it was looked for, and what was found there instead.
        tried: Vec<String>,
    },
}

/// What a name asks for.
enum Wanted {
    /// `3.20` or `3.20.3`; none is the newest.
    Alpine(Vec<u32>),
    Debian {
        suite: String,
    },
}

/// Looks for a base where nobody else has to be asked: in the store, and in the user's files. None is its registry's to
/// have ([`crate::registry::pull`]), or its [`distribution`]'s.
pub fn locate(reference: &Reference, sources: &BaseSources<'_>) -> Result<Option<Found>> {
    if let Some(store) = sources.store
        && let Some(image) = store.image(reference)?
    {
        return Ok(Some(Found::InStore(Box::new(image))));
    }
    if let Some(wanted) = wanted(reference) {
        for path in sources.paths {
            if let Some(found) = on_disk(path, &wanted)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// Where a base comes from when its registry cannot be reached: from the distribution itself.
pub fn distribution(reference: &Reference, sources: &BaseSources<'_>) -> Result<Found> {
    let mut tried = Vec::new();
    if let Some(store) = sources.store {
        tried.push(format!("the store in {}: no image of this name", store.data_dir().display()));
    }
    let Some(wanted) = wanted(reference) else {
        tried.push(
            "only `alpine:X.Y[.Z]` and `debian:SUITE[-slim]` can be had from elsewhere than a registry"
                .to_owned(),
        );
        return Ok(Found::NotFound { tried });
    };
    tried.extend(
        sources.paths.iter().map(|path| format!("{}: holds no `{}`", path.display(), file_form(&wanted))),
    );
    match wanted {
        Wanted::Debian { suite } => Ok(Found::Debootstrap { suite }),
        Wanted::Alpine(_) if sources.offline => {
            tried.push(format!("{ALPINE}: not asked, downloads are switched off"));
            Ok(Found::NotFound { tried })
        }
        Wanted::Alpine(version) => match alpine_release(&version) {
            Ok(found) => Ok(found),
            Err(error) => {
                tried.push(with_causes(&error));
                Ok(Found::NotFound { tried })
            }
        },
    }
}

fn wanted(reference: &Reference) -> Option<Wanted> {
    // Only a registry knows what a digest stands for.
    if reference.digest().is_some() {
        return None;
    }
    let tag = reference.tag();
    match reference.name() {
        "alpine" if tag == "latest" => Some(Wanted::Alpine(Vec::new())),
        "alpine" => version(tag).filter(|version| version.len() <= 3).map(Wanted::Alpine),
        "debian" => {
            let suite = tag.strip_suffix("-slim").unwrap_or(tag);
            let suite = match suite.split('.').next().unwrap_or(suite) {
                "latest" => "stable",
                "10" => "buster",
                "11" => "bullseye",
                "12" => "bookworm",
                "13" => "trixie",
                other => other,
            };
            let is_name = !suite.is_empty() && suite.bytes().all(|b| b.is_ascii_lowercase());
            is_name.then(|| Wanted::Debian { suite: suite.to_owned() })
        }
        _ => None,
    }
}

fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

/// Architecture as Alpine names it.
fn alpine_arch() -> &'static str {
    match std::env::consts::ARCH {
        "arm" => "armv7",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn file_form(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Alpine(version) => {
            let mut parts: Vec<String> = version.iter().map(u32::to_string).collect();
            if parts.len() < 3 {
                parts.push("*".to_owned());
            }
            format!("alpine-minirootfs-{}-{}.tar.gz", parts.join("."), alpine_arch())
        }
        Wanted::Debian { suite } => format!("debian-{suite}[-{}].tar[.gz]", architecture()),
    }
}

/// How well a file fits: the version of an Alpine tarball, so that the highest wins.
fn fits(name: &str, wanted: &Wanted) -> Option<Vec<u32>> {
    match wanted {
        Wanted::Alpine(asked) => {
            let rest = name.strip_prefix("alpine-minirootfs-")?;
            let rest = rest.strip_suffix(".tar.gz").or_else(|| rest.strip_suffix(".tar"))?;
            // Release candidates (`3.20.0_rc1`) are no versions, and no candidates here.
            let found = version(rest.strip_suffix(alpine_arch())?.strip_suffix('-')?)?;
            found.starts_with(asked).then_some(found)
        }
        Wanted::Debian { suite } => {
            let rest = name.strip_prefix("debian-")?.strip_prefix(suite.as_str())?;
            let rest = rest.strip_suffix(".tar.gz").or_else(|| rest.strip_suffix(".tar"))?;
            let rest = rest.strip_prefix("-slim").unwrap_or(rest);
            let exact = rest.strip_prefix('-') == Some(architecture());
            (rest.is_empty() || exact).then(|| vec![u32::from(exact)])
        }
    }
}

fn on_disk(path: &Path, wanted: &Wanted) -> Result<Option<Found>> {
    let mut best: Option<(Vec<u32>, PathBuf)> = None;
    let mut consider = |file: PathBuf| {
        let score = file.file_name().and_then(|name| fits(name.to_str()?, wanted));
        if let Some(score) = score
            && best.as_ref().is_none_or(|(other, _)| *other < score)
        {
            best = Some((score, file));
        }
    };
    if path.is_file() {
        consider(path.to_owned());
    } else {
        for dir in mirror_dirs(path, wanted)? {
            for entry in read_dir(&dir)? {
                consider(entry);
            }
        }
    }
    let Some((_, path)) = best else { return Ok(None) };
    let sha256 = checksum_beside(&path)?;
    Ok(Some(Found::Tarball { path, sha256 }))
}

/// The directories that may hold the file: the one named, and those of a mirror's layout below it.
fn mirror_dirs(path: &Path, wanted: &Wanted) -> Result<Vec<PathBuf>> {
    let mut dirs = vec![path.to_owned()];
    let Wanted::Alpine(_) = wanted else { return Ok(dirs) };
    for root in [path.to_owned(), path.join("alpine")] {
        for branch in read_dir(&root)? {
            let is_branch =
                branch.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with('v'));
            if is_branch {
                dirs.push(branch.join("releases").join(alpine_arch()));
            }
        }
    }
    Ok(dirs)
}

/// A directory's entries; none where there is no such directory.
fn read_dir(dir: &Path) -> Result<Vec<PathBuf>> {
    let fail = |cause: io::Error| Error::io("read directory", dir, cause);
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(fail)).collect(),
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(cause) => Err(fail(cause)),
    }
}

/// The checksum that `SHA256SUMS` or `<file>.sha256` gives for a file.
fn checksum_beside(path: &Path) -> Result<Option<String>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    for file in [path.with_file_name(format!("{name}.sha256")), path.with_file_name("SHA256SUMS")] {
        match fs::read_to_string(&file) {
            Ok(text) => {
                if let Some(sum) = checksum_in(&text, name) {
                    return Ok(Some(sum));
                }
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(Error::io("read", file, cause)),
        }
    }
    Ok(None)
}

/// A file's checksum in the format of `sha256sum`.
fn checksum_in(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (sum, file) = line.split_once(char::is_whitespace)?;
        let file = file.trim_start().trim_start_matches('*');
        let same = file.rsplit('/').next() == Some(name);
        (same && sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| sum.to_ascii_lowercase())
    })
}

fn alpine_release(version: &[u32]) -> Result<Found> {
    let arch = alpine_arch();
    let branch = match version {
        [major, minor, ..] => format!("v{major}.{minor}"),
        _ => "latest-stable".to_owned(),
    };
    let base = format!("{ALPINE}/{branch}/releases/{arch}");
    let file = match version {
        [major, minor, patch] => format!("alpine-minirootfs-{major}.{minor}.{patch}-{arch}.tar.gz"),
        _ => {
            let url = format!("{base}/latest-releases.yaml");
            let text = fetch_text(&url)?;
            let files = text.lines().filter_map(|line| line.trim().strip_prefix("file:").map(str::trim));
            let best =
                files.filter_map(|file| Some((fits(file, &Wanted::Alpine(version.to_vec()))?, file))).max();
            let problem = || format!("it lists no root file system for Alpine {}", join(version));
            best.map(|(_, file)| file.to_owned())
                .ok_or_else(|| Error::BadAnswer { url, problem: problem() })?
        }
    };
    // The checksum is fetched now: a base that cannot be had is better known before a build begins.
    let sha256_url = format!("{base}/{file}.sha256");
    fetch_text(&sha256_url)?;
    Ok(Found::Download { url: format!("{base}/{file}"), sha256_url })
}

fn join(version: &[u32]) -> String {
    version.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

fn get(url: &str, timeout: Duration) -> Result<ureq::http::Response<ureq::Body>> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .timeout_connect(Some(SMALL_TIMEOUT.min(timeout)))
        .user_agent(concat!("inception-run/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent: ureq::Agent = config.into();
    agent.get(url).call().map_err(|cause| Error::Download { url: url.to_owned(), source: Box::new(cause) })
}

fn fetch_text(url: &str) -> Result<String> {
    let mut answer = get(url, SMALL_TIMEOUT)?;
    let text = answer.body_mut().with_config().limit(SMALL_BYTES).read_to_string();
    text.map_err(|cause| Error::Download { url: url.to_owned(), source: Box::new(cause) })
}

/// Downloads a tarball and checks it against the checksum that `sha256_url` serves, within `timeout`.
///
/// The file appears at `destination` when it is whole and checked; nothing is left otherwise. `progress`
/// gets the bytes that have arrived and the size, where the server tells it. Returns the checksum,
/// hexadecimal.
pub fn download(
    url: &str,
    sha256_url: &str,
    destination: &Path,
    timeout: Duration,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<String> {
    let deadline = Instant::now() + timeout;
    let file = url.rsplit('/').next().unwrap_or(url);
    let text = fetch_text(sha256_url)?;
    let expected = checksum_in(&text, file).ok_or_else(|| Error::BadAnswer {
        url: sha256_url.to_owned(),
        problem: format!("it holds no checksum of `{file}`"),
    })?;
    let mut answer = get(url, deadline.saturating_duration_since(Instant::now()))?;
    let size = answer.body().content_length();
    let mut reader = answer.body_mut().with_config().limit(BASE_BYTES).reader();
    let mut partial = destination.as_os_str().to_owned();
    partial.push(format!(".{}.part", scratch::unique()));
    let partial = PathBuf::from(partial);
    let result = receive(&mut reader, url, &partial, size, progress).and_then(|found| {
        archive::check(url, &expected, &found)?;
        fs::rename(&partial, destination).map_err(|cause| Error::io("create", destination, cause))
    });
    if result.is_err() {
        // It may not have come into being.
        fs::remove_file(&partial).ok();
    }
    result.map(|()| expected)
}

fn receive(
    reader: &mut dyn Read,
    url: &str,
    to: &Path,
    size: Option<u64>,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<crate::digest::Digest> {
    let mut file = File::create_new(to).map_err(|cause| Error::io("create", to, cause))?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut arrived = 0;
    loop {
        let length = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => {
                return Err(Error::Download {
                    url: url.to_owned(),
                    source: Box::new(ureq::Error::Io(cause)),
                });
            }
        };
        hasher.update(&buffer[..length]);
        file.write_all(&buffer[..length]).map_err(|cause| Error::io("write", to, cause))?;
        arrived += length as u64;
        progress(arrived, size);
    }
    file.sync_all().map_err(|cause| Error::io("write", to, cause))?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, dir: &Path) -> Found {
        let paths = [dir.to_owned()];
        let sources = BaseSources { store: None, paths: &paths, offline: true };
        let name = name.parse().unwrap();
        locate(&name, &sources).unwrap().unwrap_or_else(|| distribution(&name, &sources).unwrap())
    }

    #[test]
    fn the_highest_patch_release_wins() {
        let temp = tempfile::tempdir().unwrap();
        let arch = alpine_arch();
        for name in ["3.20.3", "3.20.10", "3.2.9", "3.21.0_rc1"] {
            fs::write(temp.path().join(format!("alpine-minirootfs-{name}-{arch}.tar.gz")), name).unwrap();
        }
        let sum = "ab".repeat(32);
        let best = temp.path().join(format!("alpine-minirootfs-3.20.10-{arch}.tar.gz"));
        let sums = format!("{sum}  ./{}\n", best.file_name().unwrap().to_str().unwrap());
        fs::write(temp.path().join("SHA256SUMS"), sums).unwrap();
        assert_eq!(
            found("alpine:3.20", temp.path()),
            Found::Tarball { path: best.clone(), sha256: Some(sum.clone()) }
        );
        assert_eq!(
            found("alpine:3", temp.path()),
            Found::Tarball { path: best.clone(), sha256: Some(sum.clone()) }
        );
        assert_eq!(found("alpine", temp.path()), Found::Tarball { path: best, sha256: Some(sum) });
        let Found::Tarball { path, sha256: None } = found("alpine:3.20.3", temp.path()) else { panic!() };
        assert!(path.ends_with(format!("alpine-minirootfs-3.20.3-{arch}.tar.gz")));
        let Found::NotFound { tried } = found("alpine:3.19", temp.path()) else { panic!() };
        assert!(tried[0].contains("alpine-minirootfs-3.19.*"), "{tried:?}");
        let Found::NotFound { tried } = found("busybox:1", temp.path()) else { panic!() };
        assert!(tried.last().unwrap().contains("than a registry"), "{tried:?}");
        let pinned = format!("alpine@sha256:{}", "ab".repeat(32));
        assert!(matches!(found(&pinned, temp.path()), Found::NotFound { .. }));
    }

    #[test]
    fn a_mirror_directory_and_debian_names() {
        let temp = tempfile::tempdir().unwrap();
        let releases = temp.path().join("alpine/v3.20/releases").join(alpine_arch());
        fs::create_dir_all(&releases).unwrap();
        let file = releases.join(format!("alpine-minirootfs-3.20.1-{}.tar.gz", alpine_arch()));
        fs::write(&file, "x").unwrap();
        assert_eq!(found("alpine:3.20", temp.path()), Found::Tarball { path: file, sha256: None });
        assert_eq!(found("debian:12-slim", temp.path()), Found::Debootstrap { suite: "bookworm".to_owned() });
        let tar = temp.path().join("debian-bookworm.tar");
        fs::write(&tar, "x").unwrap();
        assert_eq!(found("debian:bookworm", temp.path()), Found::Tarball { path: tar, sha256: None });
        let exact = temp.path().join(format!("debian-bookworm-{}.tar.gz", architecture()));
        fs::write(&exact, "x").unwrap();
        assert_eq!(found("debian:bookworm-slim", temp.path()), Found::Tarball { path: exact, sha256: None });
        assert!(matches!(found("debian:bookworm-20240101", temp.path()), Found::NotFound { .. }));
    }
}
