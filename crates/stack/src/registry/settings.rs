//! `registries.toml`: mirrors, and registries without TLS; and the certificates of private authorities.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use image::registry::{ClientCertificate, DOCKER_HUB, Mirror, Registry};
use serde::Deserialize;

use crate::paths::entries;
use crate::remote::{Context, RemoteError};

/// The administrator's file; the user's comes after it.
const SYSTEM: &str = "/etc/inception-run/registries.toml";
/// Where the certificates of authorities lie, in a directory for each registry.
const CERTIFICATES: [&str; 2] = ["/etc/docker/certs.d", "/etc/inception-run/certs.d"];
/// Names a mirror of Docker Hub, before all others.
const MIRROR: &str = "INCEPTION_REGISTRY_MIRROR";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    registry: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    /// Asked first, in this order.
    #[serde(default)]
    mirrors: Vec<String>,
    /// Plain HTTP will do.
    #[serde(default)]
    plain_http: bool,
}

/// The user's directory for what configures this program.
fn home() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
    config.map(|config| config.join("inception-run"))
}

/// What the files and the environment say of registries.
pub(super) fn read() -> Result<BTreeMap<String, Registry>, RemoteError> {
    let mut registries = BTreeMap::new();
    let files = [Some(PathBuf::from(SYSTEM)), home().map(|home| home.join("registries.toml"))];
    for path in files.into_iter().flatten() {
        match std::fs::read_to_string(&path) {
            Ok(text) => registries.extend(parse(&path, &text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RemoteError::from(error).context(format!("read {}", path.display()))),
        }
    }
    if let Some(url) = std::env::var(MIRROR).ok().filter(|url| !url.is_empty()) {
        let mirror = mirror(&url).map_err(|error| error.context(format!("read {MIRROR}")))?;
        registries.entry(DOCKER_HUB.to_owned()).or_default().mirrors.insert(0, mirror);
    }
    Ok(registries)
}

fn mirror(url: &str) -> Result<Mirror, RemoteError> {
    Mirror::parse(url).ok_or_else(|| {
        RemoteError::message(format!("`{url}` is no address of a mirror"))
            .or_hint("one looks like `https://mirror.example` or `http://mirror.example:5000`")
    })
}

fn parse(path: &Path, text: &str) -> Result<BTreeMap<String, Registry>, RemoteError> {
    let context = || format!("read {}", path.display());
    let file: File = toml::from_str(text)
        .map_err(|error| RemoteError::message(error.to_string().trim_end().to_owned()).context(context()))?;
    let registry = |(name, entry): (String, Entry)| {
        let mirrors = entry.mirrors.iter().map(|url| mirror(url)).collect::<Result<_, _>>();
        let mirrors = mirrors.map_err(|error| error.context(format!("{}, registry `{name}`", context())))?;
        let registry = Registry { mirrors, plain_http: entry.plain_http, ..Registry::default() };
        Ok((name, registry))
    };
    file.registry.into_iter().map(registry).collect()
}

/// What the directories for a registry or a mirror hold.
#[derive(Default)]
pub(super) struct Certificates {
    /// Of authorities that vouch for it (`*.crt`).
    pub(super) authorities: Vec<String>,
    /// Ours (`*.cert`, with a `*.key` beside it): the first that there is.
    pub(super) own: Option<ClientCertificate>,
    /// Why there is none, though there is a file.
    pub(super) note: Option<String>,
}

/// Reads the certificates for a registry or a mirror.
pub(super) fn certificates(host: &str) -> Result<Certificates, RemoteError> {
    let user = home().map(|home| home.join("certs.d"));
    let mut found = Certificates::default();
    for top in CERTIFICATES.iter().map(PathBuf::from).chain(user) {
        add_certificates(&top.join(host), &mut found)?;
    }
    Ok(found)
}

fn add_certificates(directory: &Path, found: &mut Certificates) -> Result<(), RemoteError> {
    let read = |path: &Path| std::fs::read_to_string(path).context(|| format!("read {}", path.display()));
    for path in entries(directory)? {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => found.authorities.push(read(&path)?),
            Some("cert") if found.own.is_none() => {
                let key = path.with_extension("key");
                match std::fs::read_to_string(&key) {
                    Ok(key) => found.own = Some(ClientCertificate { chain: read(&path)?, key }),
                    // Keys in /etc may be for root alone, and not every registry insists.
                    Err(error) => {
                        found.note = Some(format!(
                            "go on without {}: its key {}: {error}",
                            path.display(),
                            key.display()
                        ));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_mirrors_and_hosts_without_tls() {
        let text = "[registry.\"docker.io\"]\nmirrors = [\"https://m.example/\", \"https://h/x/v2/hub\"]\n\
                    [registry.\"lan:5000\"]\nplain-http = true\n";
        let found = parse(Path::new("r.toml"), text).unwrap();
        let mirrors: Vec<_> =
            found["docker.io"].mirrors.iter().map(|mirror| (&*mirror.url, &*mirror.prefix)).collect();
        assert_eq!(mirrors, [("https://m.example", ""), ("https://h/x", "hub/")]);
        assert!(found["lan:5000"].plain_http && !found["docker.io"].plain_http);
    }

    #[test]
    fn certificates_come_with_their_key_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let mut found = Certificates::default();
        add_certificates(&place.path().join("none"), &mut found).unwrap();
        for (name, text) in
            [("ca.crt", "ca"), ("a.cert", "lost"), ("b.cert", "ours"), ("b.key", "key"), ("x", "")]
        {
            std::fs::write(place.path().join(name), text).unwrap();
        }
        add_certificates(place.path(), &mut found).unwrap();
        assert_eq!(found.authorities, ["ca"]);
        assert_eq!(found.own, Some(ClientCertificate { chain: "ours".to_owned(), key: "key".to_owned() }));
        assert!(found.note.unwrap().contains("a.key"));
        assert!(!format!("{:?}", found.own).contains("key"));
    }

    #[test]
    fn mistakes_have_a_place() {
        for (text, said) in [
            ("[registry.x]\nplain_http = true\n", "plain_http"),
            ("[registry.x]\nmirrors = [\"m.example\"]\n", "`m.example` is no address"),
            ("[registry.x]\nmirrors = [\"https://u:p@m.example\"]\n", "no address"),
            ("mirrors = 1\n", "mirrors"),
        ] {
            let error = parse(Path::new("/etc/r.toml"), text).unwrap_err();
            assert!(error.chain[0].contains("/etc/r.toml") && error.to_string().contains(said), "{error}");
        }
    }
}
